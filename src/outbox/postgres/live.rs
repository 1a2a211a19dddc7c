//! The connections to the server. Only this folder names the client.
//!
//! Holds: every call is one statement outside of any transaction block, so calls may share a connection. Through a pooler it is
//! one transaction, see `pooler`. A call whose connection broke has an unknown result.
//! Limits: [`STATEMENT_MAX`] or [`READING_MAX`] for a call, [`CONNECT_MAX`] for a connection. A link that cannot connect answers at once until it
//! tries again.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::config::{Config, Host, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{NoTls, TlsStream};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Connection, Row, Socket, Statement};

use super::base::Trouble;
use super::{Passwords, Server, Tls};
use crate::clock::Clock;

mod adopt;

mod calls;

mod commands;

mod ended;

mod members;

mod operator;

mod pooler;

mod rows;

mod script;

mod tls;

pub(super) use members::Realm;
pub(super) use script::Scripts;

/// When the server cuts a statement off.
pub(super) const STATEMENT_MAX: Duration = Duration::from_secs(10);

/// The same for the connection that also counts whole lanes, some millions of events, when they are taken over.
pub(super) const READING_MAX: Duration = Duration::from_secs(120);

/// How much longer the client waits for an answer.
const ANSWER_MORE: Duration = Duration::from_secs(5);

/// The port of a URL without one.
const PORT: u16 = 5_432;

/// The longest wait for a connection, including the settings of the session.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The wait before a further attempt to connect: doubles from the first to the second, with jitter.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// How often a statement is repeated that the server rolled back because of others.
const TRIES: u32 = 5;

/// Settings of each session. A role or a database may have other defaults. A pooler loses them: `pooler` sets what matters
/// with each call.
/// `client_min_messages`: the warning about a cancelled wait for a standby must arrive, or a 202 would be a lie.
/// `tcp_*`: the server notices a dead client within some 20 s, and frees its locks.
const SESSION: &str = "\
    SET default_transaction_isolation = 'read committed'; \
    SET client_min_messages = 'warning'; \
    SET idle_in_transaction_session_timeout = '5s'; \
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
    SET tcp_user_timeout = 15000";

/// Makes commits durable, on a synchronous standby too if there is one. For the session, or only for the transaction.
fn durable_commits(is_local: bool) -> String {
    format!(
        "SELECT set_config('synchronous_commit', \
         CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, {is_local})"
    )
}

/// How the client says that a server is read-only, and what that means.
const NO_WRITES: &str = "database does not allow writes";
const NO_WRITES_HINT: &str = "it is a standby, or default_transaction_read_only is on. Name the primary in outbox.postgres.url, \
    or all servers, separated by commas";

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Whether the server can be reached, for all links of an engine.
#[derive(Debug, Default)]
pub(super) struct Reach {
    away: Mutex<Option<String>>,
}

impl Reach {
    pub(super) fn away(&self) -> Option<String> {
        self.lock().clone()
    }

    pub(super) fn is_back(&self) {
        self.lock().take();
    }

    pub(super) fn is_away(&self, why: &str) {
        self.lock().get_or_insert_with(|| why.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, opened again when it breaks.
#[derive(Debug)]
pub(super) struct Link {
    server: Server,
    clock: Clock,
    statement_max: Duration,
    slot: Mutex<Slot>,
    reach: Arc<Reach>,
    #[cfg(test)]
    pub(super) pretended: Pretended,
}

/// The time that tests make the server believe, in ms. 0: the server's own.
#[cfg(test)]
pub(super) type Pretended = Arc<AtomicU64>;

#[derive(Debug, Default)]
struct Slot {
    session: Option<Arc<Session>>,
    connecting: bool,
    /// The number of sessions so far.
    opened: u64,
    failures: u32,
    not_before: Option<Instant>,
    why: String,
}

impl Link {
    pub(super) fn new(server: Server, statement_max: Duration, clock: Clock, reach: Arc<Reach>) -> Self {
        let slot = Mutex::default();
        #[cfg(test)]
        let pretended = server.pretended.clone();
        Self {
            server,
            clock,
            statement_max,
            slot,
            reach,
            #[cfg(test)]
            pretended,
        }
    }

    /// The open session, or a new one. Answers at once while another caller connects, and until the next attempt is due.
    pub(super) async fn session(&self) -> Result<Arc<Session>, Trouble> {
        {
            let mut slot = self.slot();
            if let Some(session) = slot.session.as_ref().filter(|session| session.is_open()) {
                return Ok(session.clone());
            }
            let early = slot.not_before.is_some_and(|at| self.clock.instant() < at);
            if slot.connecting || early {
                let why = if slot.why.is_empty() { "connecting" } else { &slot.why };
                return Err(Trouble::Away(why.to_owned()));
            }
            slot.session = None;
            slot.connecting = true;
        }
        let connecting = Session::open(&self.server, self.statement_max);
        let opened = tokio::time::timeout(CONNECT_MAX, connecting).await;
        let opened = opened.unwrap_or_else(|_| Err(Trouble::Away(format!("{} does not answer", self.server.shown()))));
        let mut slot = self.slot();
        slot.connecting = false;
        match opened {
            Ok(session) => {
                (slot.failures, slot.not_before) = (0, None);
                slot.opened += 1;
                let session = Arc::new(Session { serial: slot.opened, ..session });
                slot.session = Some(session.clone());
                Ok(session)
            }
            Err(trouble) => {
                let wait = RETRY_FIRST.saturating_mul(1 << slot.failures.min(8)).min(RETRY_LAST);
                slot.failures += 1;
                slot.not_before = Some(self.clock.instant() + wait / 2 + self.clock.jitter(wait / 2));
                slot.why = trouble.to_string();
                self.reach.is_away(&slot.why);
                Err(trouble)
            }
        }
    }

    async fn query(&self, sql: &'static str, parameters: Parameters<'_>) -> Result<Vec<Row>, Trouble> {
        let session = self.session().await?;
        self.query_on(&session, sql, parameters).await
    }

    async fn query_on(
        &self,
        session: &Session,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, Trouble> {
        for _ in 1..TRIES {
            #[cfg(test)]
            session.pretend(self.pretended.load(Ordering::Relaxed)).await?;
            match session.query(sql, parameters).await {
                Err(Failed::Again(why)) => tracing::debug!(why, "a statement is repeated"),
                Err(Failed::Trouble(trouble)) => {
                    if matches!(trouble, Trouble::Away(_)) {
                        self.reach.is_away(&trouble.to_string());
                    }
                    return Err(trouble);
                }
                Ok(rows) => return Ok(rows),
            }
        }
        Err(Trouble::Locked("rolled back again and again because of other transactions".to_owned()))
    }

    /// Like [`Link::query`], for a statement that returns one row.
    async fn query_one(&self, sql: &'static str, parameters: Parameters<'_>) -> Result<Row, Trouble> {
        let rows = self.query(sql, parameters).await?;
        rows.into_iter().next().ok_or_else(|| Trouble::Refused(format!("no row came from: {sql}")))
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    /// Prepared on this connection.
    statements: Mutex<BTreeMap<&'static str, Statement>>,
    /// Through a pooler: whose turn it is, and the types of the parameters of statements.
    pooled: Option<tokio::sync::Mutex<()>>,
    types: Mutex<BTreeMap<&'static str, Vec<Type>>>,
    /// Warnings that the server has sent.
    warnings: Arc<AtomicU64>,
    broken: AtomicBool,
    statement_max: Duration,
    /// Tells one session of a link from the others.
    serial: u64,
    /// What moves the bytes. It ends with the session.
    _driver: JoinSet<()>,
}

enum Failed {
    /// Rolled back. Nothing has happened.
    Again(String),
    Trouble(Trouble),
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Session {
    async fn open(server: &Server, statement_max: Duration) -> Result<Self, Trouble> {
        let mut session = match &server.passwords {
            None => Self::connect(&config(server)?, server).await?,
            Some(passwords) => Self::connect_to_each(server, passwords.as_ref()).await?,
        };
        session.statement_max = statement_max;
        if session.is_pooled().await? {
            // The settings of a session would become those of other programs.
            session.pooled = Some(tokio::sync::Mutex::default());
            return Ok(session);
        }
        let settings =
            format!("SET statement_timeout = {}; {SESSION}; {}", statement_max.as_millis(), durable_commits(false));
        session.client.batch_execute(&settings).await.map_err(|error| session.trouble(&error))?;
        Ok(session)
    }

    async fn connect(config: &Config, server: &Server) -> Result<Self, Trouble> {
        match &server.tls {
            Tls::Off => Self::over(config.connect(NoTls).await, server),
            Tls::VerifyFull { ca } => Self::over(config.connect(tls::Maker::new(ca.as_deref())?).await, server),
        }
    }

    /// Tries one host after the other, each with a password of its own.
    async fn connect_to_each(server: &Server, passwords: &dyn Passwords) -> Result<Self, Trouble> {
        let whole = config(server)?;
        let mut failed = Trouble::Poisoned("tokens of IAM need the URL of a server".to_owned());
        for nth in 0..whole.get_hosts().len() {
            let Some((mut one, host, port)) = of_host(&whole, server, nth) else { continue };
            let user = whole.get_user().unwrap_or_default();
            let no_token = |why: String| Trouble::Away(format!("there is no token of IAM for {host}: {why}"));
            one.password(passwords.password(&host, port, user).await.map_err(no_token)?);
            match Self::connect(&one, server).await {
                Ok(session) => return Ok(session),
                Err(trouble) => failed = trouble,
            }
        }
        Err(failed)
    }

    fn over<S>(
        opened: Result<(Client, Connection<Socket, S>), tokio_postgres::Error>,
        server: &Server,
    ) -> Result<Self, Trouble>
    where
        S: TlsStream + Unpin + Send + 'static,
    {
        let (client, mut connection) = opened.map_err(|error| {
            let trouble = class(&error);
            if let Trouble::Away(why) = trouble {
                let why = if why.ends_with(NO_WRITES) { format!("{why}: {NO_WRITES_HINT}") } else { why };
                Trouble::Away(format!("{}: {why}", server.shown()))
            } else {
                trouble
            }
        })?;
        let warnings = Arc::new(AtomicU64::new(0));
        let (counted, mut driver) = (warnings.clone(), JoinSet::new());
        driver.spawn(async move {
            let mut messages = pin!(stream::poll_fn(move |context| connection.poll_message(context)));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notice(notice) = message
                    && notice.severity() == "WARNING"
                {
                    counted.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(code = notice.code().code(), notice = notice.message(), "the database warns");
                }
            }
        });
        Ok(Self {
            client,
            statements: Mutex::default(),
            pooled: None,
            types: Mutex::default(),
            warnings,
            broken: AtomicBool::new(false),
            statement_max: STATEMENT_MAX,
            serial: 0,
            _driver: driver,
        })
    }

    fn is_open(&self) -> bool {
        !self.broken.load(Ordering::Relaxed) && !self.client.is_closed()
    }

    /// The number of warnings so far. The wait for a standby that somebody has cancelled shows in nothing else.
    fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Relaxed)
    }

    async fn query(&self, sql: &'static str, parameters: Parameters<'_>) -> Result<Vec<Row>, Failed> {
        let types = if self.pooled.is_some() { self.types(sql, parameters)? } else { Vec::new() };
        let answered = async {
            if let Some(turn) = &self.pooled {
                return self.query_pooled(turn, sql, &types, parameters).await;
            }
            let statement = self.statement(sql).await?;
            self.client.query(&statement, parameters).await
        };
        match tokio::time::timeout(self.statement_max + ANSWER_MORE, answered).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => {
                self.broken.store(true, Ordering::Relaxed);
                Err(Trouble::Away("the database does not answer".to_owned()).into())
            }
        }
    }

    async fn statement(&self, sql: &'static str) -> Result<Statement, tokio_postgres::Error> {
        let known = self.prepared().get(sql).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let statement = self.client.prepare(sql).await?;
        self.prepared().insert(sql, statement.clone());
        Ok(statement)
    }

    fn failed(&self, error: &tokio_postgres::Error) -> Failed {
        let code = error.code();
        let again =
            [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].iter().any(|c| code == Some(c));
        // A migration has changed what the statement returns, or somebody has discarded the session's statements.
        let stale =
            [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME].iter().any(|c| code == Some(c));
        if stale {
            self.prepared().clear();
        }
        if again || stale { Failed::Again(class(error).to_string()) } else { Failed::Trouble(self.trouble(error)) }
    }

    fn trouble(&self, error: &tokio_postgres::Error) -> Trouble {
        let trouble = class(error);
        if matches!(trouble, Trouble::Away(_)) {
            self.broken.store(true, Ordering::Relaxed);
        }
        trouble
    }

    fn prepared(&self) -> MutexGuard<'_, BTreeMap<&'static str, Statement>> {
        self.statements.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the server believe in a time.
    #[cfg(test)]
    async fn pretend(&self, now_ms: u64) -> Result<(), Trouble> {
        if now_ms > 0 {
            let sql = format!("SET sendoff.now_ms = '{now_ms}'");
            self.client.batch_execute(&sql).await.map_err(|error| self.trouble(&error))?;
        }
        Ok(())
    }
}

/// What an error of the client means for the engine.
fn class(error: &tokio_postgres::Error) -> Trouble {
    let Some(said) = error.as_db_error() else {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        return Trouble::Away(format!("{error}{source}"));
    };
    let code = said.code().code();
    let text = format!("{} ({code})", said.message());
    match code {
        "SO001" => Trouble::Fenced(said.detail().unwrap_or("unknown").to_owned()),
        "SO002" => Trouble::Replaced,
        "SO003" | "SO004" => Trouble::Poisoned(text),
        "55P03" => Trouble::Locked(text),
        "53100" => Trouble::DiskFull(text),
        // A standby was reached, or the server has become one.
        "25006" => Trouble::Away(text),
        _ => match &code[..2] {
            // Connections, resources, an operator's or the server's end, passwords that turn, files.
            "08" | "53" | "57" | "58" | "28" => Trouble::Away(text),
            // The schema or the rights are not as this build needs them.
            "42" | "3D" | "3F" => Trouble::Poisoned(format!("{text}; `sendoff postgres check` says what is wrong")),
            _ => Trouble::Refused(text),
        },
    }
}

fn config(server: &Server) -> Result<Config, Trouble> {
    let mut config = parse(&server.url).map_err(Trouble::Poisoned)?;
    tune(&mut config, server);
    if let Some(path) = &server.password_file {
        let unreadable = |error: std::io::Error| {
            Trouble::Away(format!("the password file {} cannot be read: {error}", path.display()))
        };
        let password = std::fs::read_to_string(path).map_err(unreadable)?;
        config.password(password.trim_end_matches(['\r', '\n']));
    }
    Ok(config)
}

/// The same for one of its hosts. `None` for a socket.
fn of_host(whole: &Config, server: &Server, nth: usize) -> Option<(Config, String, u16)> {
    let Host::Tcp(host) = whole.get_hosts().get(nth)? else { return None };
    let port = match whole.get_ports() {
        [one] => *one,
        ports => ports.get(nth).copied().unwrap_or(PORT),
    };
    let mut one = Config::new();
    one.host(host).port(port).user(whole.get_user()?);
    if let Some(database) = whole.get_dbname() {
        one.dbname(database);
    }
    if let Some(options) = whole.get_options() {
        one.options(options);
    }
    tune(&mut one, server);
    Some((one, host.clone(), port))
}

fn tune(config: &mut Config, server: &Server) {
    config.application_name("sendoff");
    config.connect_timeout(CONNECT_MAX / 2);
    config.keepalives_idle(Duration::from_secs(5));
    config.keepalives_interval(Duration::from_secs(5));
    config.keepalives_retries(3);
    config.tcp_user_timeout(Duration::from_secs(15));
    // Of several hosts, the one that takes writes.
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    config.ssl_mode(match server.tls {
        Tls::Off => SslMode::Disable,
        Tls::VerifyFull { .. } => SslMode::Require,
    });
}

fn parse(url: &str) -> Result<Config, String> {
    let config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        format!("not the URL of a PostgreSQL database: {error}{source}")
    })?;
    if config.get_hosts().is_empty() {
        return Err("not the URL of a PostgreSQL database: it names no host".to_owned());
    }
    Ok(config)
}

/// The hosts and the database of a URL, without user and password, or what is wrong with it.
pub(super) fn shown(url: &str) -> Result<Shown, String> {
    let config = parse(url)?;
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let is_local = |host: &Host| match host {
        Host::Tcp(name) => ["localhost", "127.0.0.1", "::1"].contains(&name.as_str()),
        Host::Unix(_) => true,
    };
    Ok(Shown {
        place: format!("{}/{}", hosts.collect::<Vec<_>>().join(","), config.get_dbname().unwrap_or_default()),
        is_local: config.get_hosts().iter().all(is_local),
        has_password: config.get_password().is_some(),
    })
}

/// What may be shown and must be known of a URL.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub place: String,
    /// All hosts are this machine.
    pub is_local: bool,
    pub has_password: bool,
}
