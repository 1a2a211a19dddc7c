//! The PostgreSQL engine: one outbox that any number of daemons share.
//!
//! A lane is owned by one daemon at a time. Its owner knows counts, leases and cursors in memory (`lanes`), leases by reading
//! and settles by deleting, so no row says that an event is leased. Every daemon accepts events. In this release one daemon
//! owns all lanes, and the others stand by (docs/postgres.md). Operators may ask any daemon: it asks the owner (`commands`).
//!
//! `engine` is the state that all tasks share. `handle` answers the stages, `appending` and `settling` write, `keeper` beats,
//! takes over and tidies. `operate`, `changing` and `overview` serve operators. `live` speaks to the server. docs/adr/0026 has the reasons.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::outbox::{Error, Limits, OpenError, Opened};
use base::Trouble;
use engine::Shared;
use live::Shown;

pub use handle::Handle;
pub use import::Importer;
pub use migrate::{Finding, Script, check, migrate, scripts};
pub use statements::Sql;

mod adopting;

mod appending;

mod base;

mod changing;

mod commands;

mod ended;

mod engine;

mod handle;

mod history;

mod import;

mod keeper;

mod keys;

mod lanes;

mod live;

mod migrate;

mod operate;

mod overview;

mod settling;

mod statements;

mod watch;

#[cfg(test)]
mod tests;

/// The limits of the outbox, and the settings of this engine.
#[derive(Debug, Clone)]
pub struct Settings {
    pub limits: Limits,
    pub server: Server,
    /// The name of this daemon among those that share the outbox. Two living daemons never have the same.
    pub member: String,
    /// A daemon that does not show itself for so long is taken for dead. The same for all daemons of an outbox.
    pub lease: Duration,
    /// The longest time between two looks for new events.
    pub poll_max: Duration,
    /// How long an append may take before it is answered that the outbox is away.
    pub accept_timeout: Duration,
    pub realm: Realm,
}

/// Where the daemons of an outbox deliver to. All of them must agree.
#[derive(Debug, Clone, Default)]
pub struct Realm {
    pub region: Option<String>,
    pub account: Option<String>,
    pub endpoint: Option<String>,
}

/// A server, and how to reach it.
#[derive(Debug, Clone)]
pub struct Server {
    /// `postgres://user@host:port/database`, without a password.
    pub url: String,
    pub password_file: Option<PathBuf>,
    pub tls: Tls,
    /// AWS makes the passwords. Whoever knows its credentials sets `passwords`.
    pub iam: bool,
    pub passwords: Option<Arc<dyn Passwords>>,
    /// The time that a test makes the server believe, in ms, and how far it is ahead of the daemon's. 0: its own.
    #[cfg(test)]
    pub(crate) pretended: Arc<std::sync::atomic::AtomicU64>,
    #[cfg(test)]
    pub(crate) ahead: Arc<std::sync::atomic::AtomicU64>,
}

/// Makes the password for one login.
pub trait Passwords: fmt::Debug + Send + Sync {
    /// The error says why there is none.
    fn password<'a>(&'a self, host: &'a str, port: u16, user: &'a str) -> BoxFuture<'a, Result<String, String>>;
}

/// Whether connections are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    Off,
    /// The server's certificate is verified, with its name.
    VerifyFull {
        /// Whom to trust. `None` means the machine's certificates.
        ca: Option<PathBuf>,
    },
}

impl Server {
    pub fn new(url: String, password_file: Option<PathBuf>, tls: Tls) -> Self {
        Self {
            url,
            password_file,
            tls,
            iam: false,
            passwords: None,
            #[cfg(test)]
            pretended: Arc::default(),
            #[cfg(test)]
            ahead: Arc::default(),
        }
    }

    /// Host and database, for messages.
    pub fn shown(&self) -> String {
        live::shown(&self.url).map_or_else(|_| "the database".to_owned(), |shown| shown.place)
    }
}

/// What of a URL matters to a configuration, or what is wrong with it.
pub fn examine(url: &str) -> Result<Place, String> {
    let Shown { is_local, has_password, .. } = live::shown(url)?;
    Ok(Place { is_local, has_password })
}

/// What a URL says of its server.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// All its hosts are this machine.
    pub is_local: bool,
    pub has_password: bool,
}

/// A name for this daemon that survives restarts: the host's, and a random part that is kept in the state directory. Where
/// nothing can be kept, the name is new with each start.
pub fn member_name(state_dir: &Path, clock: &Clock) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "daemon" } else { host };
    let path = state_dir.join("member");
    let kept = std::fs::read_to_string(&path).ok().map(|kept| kept.trim().to_owned());
    let is_one =
        |kept: &String| (4..=40).contains(&kept.len()) && kept.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let random = kept.filter(is_one).unwrap_or_else(|| {
        let random = format!("{:08x}", clock.random_bits() as u32);
        let written = std::fs::create_dir_all(state_dir).and_then(|()| std::fs::write(&path, &random));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "the name of this daemon cannot be kept: it has a new one with each start");
        }
        random
    });
    format!("{host}-{random}")
}

/// Whether this build can use the database. Logs what an operator should know of it.
async fn examine_for_use(server: &Server) -> Result<(), OpenError> {
    let path = server.shown();
    let findings = migrate::examine(server).await.map_err(|trouble| OpenError::Io {
        doing: "examining the database",
        path: path.clone(),
        why: trouble.to_string(),
    })?;
    for finding in findings {
        match finding {
            Finding::Newer { found, supported } => return Err(OpenError::Newer { path, found, supported }),
            Finding::Refused(why) => return Err(OpenError::Io { doing: "using the database", path, why }),
            Finding::Remark(remark) => tracing::warn!(database = path, "{remark}"),
            Finding::Fact(fact) => tracing::info!(database = path, "{fact}"),
        }
    }
    Ok(())
}

/// Joins the daemons of an outbox, and takes over the lanes that nobody has.
pub async fn open(settings: Settings, clock: Clock, metrics: Arc<Metrics>) -> Result<Opened<Handle>, OpenError> {
    let path = settings.server.shown();
    let failed = |doing: &'static str, path: &str, trouble: Trouble| {
        let path = path.to_owned();
        if let Trouble::Fenced(_) = trouble {
            return OpenError::Locked { path, by: " that has the same name (outbox.postgres.member)".to_owned() };
        }
        OpenError::Io { doing, path, why: trouble.to_string() }
    };
    examine_for_use(&settings.server).await?;
    let (shared, queues) = Shared::new(settings, clock, metrics);
    keeper::join(&shared).await.map_err(|why| failed("joining the daemons of", &path, why))?;
    let handle = Handle::new(shared.clone());
    queues.begin(&shared);
    let (kept, closing) = (shared.clone(), shared);
    let upkeep = async move { keeper::keep(kept).await };
    let close = async move {
        closing.close().await;
        Ok::<(), Error>(())
    };
    Ok(Opened { outbox: handle, upkeep: Box::pin(upkeep), closing: Box::pin(close) })
}
