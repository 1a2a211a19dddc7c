//! The schema: its numbered scripts, and what a database must be like.
//!
//! Holds: scripts run forward only, each in a transaction of its own, one daemon at a time. A released script is never
//! changed: its hash is recorded.

use sha2::{Digest, Sha256};

use super::Server;
use super::base::Trouble;
use super::live::Scripts;

/// The scripts, in order.
const SCRIPTS: &[(&str, &str)] = &[
    ("tables", include_str!("sql/001_tables.sql")),
    ("basics", include_str!("sql/002_basics.sql")),
    ("keys", include_str!("sql/003_keys.sql")),
    ("append", include_str!("sql/004_append.sql")),
    ("read", include_str!("sql/005_read.sql")),
    ("settle", include_str!("sql/006_settle.sql")),
    ("members", include_str!("sql/007_members.sql")),
    ("operate", include_str!("sql/008_operate.sql")),
    ("enqueue", include_str!("sql/009_enqueue.sql")),
    ("rights", include_str!("sql/010_rights.sql")),
    ("adopt", include_str!("sql/011_adopt.sql")),
    ("ended", include_str!("sql/012_ended.sql")),
];

/// The oldest server that has what the schema needs.
const VERSION_MIN: u32 = 140_000;

/// Excludes other migrations. Any number that no other program uses.
const LOCK: i64 = 1_936_027_236_002;

/// A script of the schema.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    pub version: usize,
    pub name: &'static str,
    pub text: &'static str,
}

/// The scripts of this build, in order.
pub fn scripts() -> impl Iterator<Item = Script> {
    SCRIPTS.iter().enumerate().map(|(nth, &(name, text))| Script { version: nth + 1, name, text })
}

/// What was found out about a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// No daemon of this build may use it.
    Refused(String),
    /// A newer build has changed it.
    Newer {
        found: u32,
        supported: u32,
    },
    /// It works, but an operator should know.
    Remark(String),
    Fact(String),
}

/// Brings the schema up to date. Returns the names of the scripts that ran.
pub async fn migrate(server: &Server) -> Result<Vec<&'static str>, String> {
    let said = |trouble: Trouble| trouble.to_string();
    let connection = Scripts::open(server).await.map_err(said)?;
    if let Some(why) = unfit(&connection).await.map_err(said)? {
        return Err(why);
    }
    let begin = format!(
        "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '30s'; SELECT pg_advisory_xact_lock({LOCK})"
    );
    let mut ran = Vec::new();
    for script in scripts() {
        // Asked for each, under the lock: another one may be migrating.
        connection.run(&begin).await.map_err(said)?;
        let done = step(&connection, script).await;
        let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = connection.run(end).await.map_err(said);
        if done? {
            ran.push(script.name);
        }
        ended?;
    }
    Ok(ran)
}

/// Runs one script, unless it has run. Returns whether it did.
async fn step(connection: &Scripts, script: Script) -> Result<bool, String> {
    let Script { version, name, text } = script;
    let failed = |trouble: Trouble| format!("script {version} ({name}): {trouble}");
    if let Some((_, hash)) = applied(connection).await.map_err(failed)?.into_iter().find(|(known, _)| *known == version)
    {
        if hash != hash_of(text) {
            return Err(format!(
                "script {version} ({name}) ran in another form: the database was made by a build that was never released. \
                 Use a new database"
            ));
        }
        return Ok(false);
    }
    connection.run(text).await.map_err(failed)?;
    let hash = hash_of(text);
    let record =
        format!("INSERT INTO sendoff.migration (version, name, sha256) VALUES ({version}, '{name}', '\\x{hash}')");
    connection.run(&record).await.map_err(failed)?;
    Ok(true)
}

/// Finds out whether a daemon can use the database, and how safe what it stores is.
pub(super) async fn examine(server: &Server) -> Result<Vec<Finding>, Trouble> {
    let connection = Scripts::open(server).await?;
    let mut findings = Vec::new();
    if let Some(why) = unfit(&connection).await? {
        return Ok(vec![Finding::Refused(why)]);
    }
    findings.extend(durability(&connection).await?);
    let applied = applied(&connection).await?;
    let supported = SCRIPTS.len();
    let found = applied.iter().map(|(version, _)| *version).max().unwrap_or(0);
    if found < supported {
        findings.push(Finding::Refused(format!(
            "the schema is at version {found}, this build needs {supported}: run `sendoff postgres migrate`"
        )));
    }
    for script in scripts() {
        let differs = |(version, hash): &(usize, String)| *version == script.version && *hash != hash_of(script.text);
        if applied.iter().any(differs) {
            let Script { version, name, .. } = script;
            findings
                .push(Finding::Refused(format!("script {version} ({name}) ran in another form than this build has")));
        }
    }
    if found > supported && !is_compatible(&connection).await? {
        let (found, supported) =
            (u32::try_from(found).unwrap_or(u32::MAX), u32::try_from(supported).unwrap_or(u32::MAX));
        findings.push(Finding::Newer { found, supported });
    }
    Ok(findings)
}

/// Finds out whether a daemon can use the database, and how safe what it stores is. The error says why it could not be asked.
pub async fn check(server: &Server) -> Result<Vec<Finding>, String> {
    examine(server).await.map_err(|trouble| trouble.to_string())
}

async fn one(connection: &Scripts, query: &str) -> Result<String, Trouble> {
    let rows = connection.ask(query).await?;
    Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten().unwrap_or_default())
}

/// Why the server cannot hold an outbox at all.
async fn unfit(connection: &Scripts) -> Result<Option<String>, Trouble> {
    let version = one(connection, "SELECT version()").await?;
    for (word, name) in [("CockroachDB", "CockroachDB"), ("-YB-", "YugabyteDB"), ("DSQL", "Aurora DSQL")] {
        if version.contains(word) {
            return Ok(Some(format!(
                "{name} has no PostgreSQL snapshots and advisory locks, which the outbox needs. Use PostgreSQL, RDS or Aurora"
            )));
        }
    }
    let number: u32 = one(connection, "SHOW server_version_num").await?.parse().unwrap_or(0);
    if number < VERSION_MIN {
        return Ok(Some(format!("PostgreSQL 14 or later is needed, this is {}", number / 10_000)));
    }
    let encoding = one(connection, "SHOW server_encoding").await?;
    if encoding != "UTF8" {
        return Ok(Some(format!("the database has the encoding {encoding}; create one with ENCODING 'UTF8'")));
    }
    // Whoever loses settings would also lose the warning that a standby has not confirmed. Through a pooler that is known, each
    // call sets them.
    let level = one(connection, "SHOW client_min_messages").await?;
    if level != "warning" && !connection.is_pooled() {
        return Ok(Some(format!(
            "settings of a session do not hold (client_min_messages is {level}): is there a pooler?"
        )));
    }
    if one(connection, "SELECT pg_is_in_recovery()").await? == "t" {
        return Ok(Some("the server is a standby and takes no writes: name the primary first".to_owned()));
    }
    Ok(None)
}

/// How safe a commit is.
async fn durability(connection: &Scripts) -> Result<Vec<Finding>, Trouble> {
    let mut findings = Vec::new();
    if one(connection, "SHOW fsync").await? != "on" {
        findings.push(Finding::Remark(
            "fsync is off: a crash of the server's machine loses accepted events and may damage the database. Switch it on, \
             unless the storage of a managed service does it"
                .to_owned(),
        ));
    }
    if one(connection, "SHOW full_page_writes").await? != "on" {
        findings.push(Finding::Remark("full_page_writes is off: a crash may damage the database".to_owned()));
    }
    let standbys = one(connection, "SHOW synchronous_standby_names").await?;
    findings.push(Finding::Fact(if standbys.is_empty() {
        "no synchronous standby: accepted events survive a crash of the server, but a failover to a standby may lose the last ones"
            .to_owned()
    } else {
        format!("synchronous standbys: {standbys}")
    }));
    // Sessions of daemons set it. This is what the login has without that.
    let default = "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'";
    if one(connection, default).await? == "off" {
        findings.push(Finding::Remark(
            "synchronous_commit is off for this login: daemons switch it on for their own commits. An application that calls \
             sendoff.enqueue with it off may lose the event in a crash of the server, together with its own transaction"
                .to_owned(),
        ));
    }
    if connection.is_pooled() {
        findings.push(Finding::Fact(
            "a pooler stands between: each call is a transaction of its own, with its settings".to_owned(),
        ));
    }
    Ok(findings)
}

/// The scripts that have run: versions, and hashes in hex.
async fn applied(connection: &Scripts) -> Result<Vec<(usize, String)>, Trouble> {
    if one(connection, "SELECT to_regclass('sendoff.migration') IS NOT NULL").await? != "t" {
        return Ok(Vec::new());
    }
    let rows = connection.ask("SELECT version, encode(sha256, 'hex') FROM sendoff.migration ORDER BY version").await?;
    let row = |row: Vec<Option<String>>| {
        let mut cells = row.into_iter().flatten();
        Some((cells.next()?.parse().ok()?, cells.next()?))
    };
    Ok(rows.into_iter().filter_map(row).collect())
}

/// Whether a newer schema still serves this build. It says so itself.
async fn is_compatible(connection: &Scripts) -> Result<bool, Trouble> {
    Ok(one(connection, "SELECT format FROM sendoff.control").await? == "1")
}

fn hash_of(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
