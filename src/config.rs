//! The configuration: defaults, then the file, then the environment, then flags. The later layer wins.
//!
//! Holds: a [`Config`] that exists was checked as a whole and has no contradictions. All problems are reported at once,
//! each with its line.
//! Limits: a file of 1 MiB.
//! Fails: with [`Problems`], before anything starts.
//!
//! Only this module reads the environment, and only in [`Environment::inherited`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::http::host::Hosts;
use crate::outbox::{embedded as local, postgres as shared};
use crate::{admin, aws, deadletter, dispatch, ingest, readable};

pub mod problem;

pub mod raw;

pub mod read;

pub mod endpoint;

pub mod outside;

pub mod passthrough;

mod near;

mod patterns;

pub mod shapes;

pub mod rules;

pub mod queue;

pub mod check;

pub mod handoff;

pub mod level;

pub mod listen;

pub mod tls;

mod clients;

mod embedded;

mod postgres;

mod unix;

pub mod operators;

pub use patterns::of_function;
pub use problem::{Origin, Problem, Problems};
pub use raw::{Entry, TOKEN_FILE, Value};

/// The settings of all stages, and of what surrounds them.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of the outbox. It need not exist yet.
    pub state_dir: PathBuf,
    pub listen: Listen,
    /// `None` means that every listener speaks plain HTTP.
    pub tls: Option<tls::Tls>,
    pub ingest: ingest::Settings,
    /// The known clients of the ingest listener, and whether others are refused.
    pub clients: ingest::client::Clients,
    /// Who may use the operator's API.
    pub operators: admin::operators::Operators,
    /// The limits of calls that are passed through to Lambda. `None` means that such calls are refused.
    pub passthrough: Option<ingest::passthrough::Limits>,
    pub rules: ingest::rules::Rules,
    pub outbox: local::Settings,
    /// The database that is the outbox. `None` means that the outbox is on the local disk.
    pub postgres: Option<shared::Settings>,
    pub lambda: aws::Settings,
    pub transport: aws::direct::Transport,
    pub sqs: aws::Settings,
    /// Proxies, certificates and profile files that the environment names.
    pub outside: aws::outside::Outside,
    /// Inherited variables that sendoff ignores because they name its own listener. The daemon logs them.
    pub ignored_endpoints: Vec<&'static str>,
    /// Variables about endpoints that the SDK must not see, because they name our own listener.
    pub own_variables: Vec<String>,
    pub dispatch: dispatch::Settings,
    pub dead_letter: deadletter::Settings,
    /// What is remembered of events that have left the store.
    pub history: crate::past::Settings,
    pub handoff: crate::handoff::Settings,
    /// How long a stop waits for requests and attempts in flight.
    pub grace: Duration,
    pub log: Log,
}

/// Where to listen. Port 0 means any free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// At least one address.
    pub ingest: Vec<SocketAddr>,
    pub admin: SocketAddr,
    /// A listener for probes and metrics only. `None` means that only the admin listener serves them.
    pub health: Option<SocketAddr>,
    pub unix: Option<UnixSocket>,
    /// A socket that serves the operator's API.
    pub admin_unix: Option<UnixSocket>,
    /// The names, besides addresses and localhost, that the ingest listener answers when a browser could send the
    /// request.
    pub ingest_hosts: Hosts,
    /// The same for the admin listener, except for probes and metrics.
    pub admin_hosts: Hosts,
    /// A path below which the admin listener also serves: empty, or from a slash to no slash.
    pub admin_prefix: String,
}

/// A socket file, and who may connect to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSocket {
    /// The configuration key that names it.
    pub key: &'static str,
    pub path: PathBuf,
    /// The permission bits of the file.
    pub mode: u32,
    /// The group of the file, by name or number. `None` means the daemon's own.
    pub group: Option<String>,
}

/// The format and the level of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// A valid directive of `tracing_subscriber::EnvFilter`.
    pub level: String,
    /// Whether `NO_COLOR` is set.
    pub no_color: bool,
    /// Where spans go, from the variables that OpenTelemetry defines. Builds without the feature `otlp` export none.
    pub otlp_endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The flags of the command line that concern the configuration.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The configuration file. `None` means that no file is read.
    pub file: Option<PathBuf>,
    pub state_dir: Option<String>,
    /// Pairs `key=value`, in order.
    pub set: Vec<String>,
}

/// The environment variables.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process. Bytes that are not Unicode are replaced, so that a check sees the variable and
    /// refuses it.
    pub fn inherited() -> Self {
        let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
        Self(std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect())
    }

    pub fn from_pairs(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// The value of a variable. An empty value counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// A configuration, and the value and origin of each of its keys.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// In the order of `config/sendoff.toml`, then the keys of `[functions]`.
    pub entries: Vec<Entry>,
}

/// The most bytes of the file: enough for hundreds of functions. A larger file is probably not a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads the file, applies the layers in order, and checks the result.
pub fn load(flags: &Flags, environment: &Environment) -> Result<Loaded, Problems> {
    let Some(path) = &flags.file else { return check_layers(None, environment, flags) };
    let name = path.to_string_lossy();
    match readable::read_text(path, FILE_BYTES_MAX) {
        Ok(text) => check_layers(Some(raw::Document { name: &name, text: &text }), environment, flags),
        Err(error) => Err(Problems::new(vec![Problem {
            origin: Origin::Flag("--config"),
            subject: Some(name.into_owned()),
            why: format!("cannot be read: {error}"),
            hint: None,
        }])),
    }
}

fn check_layers(file: Option<raw::Document<'_>>, environment: &Environment, flags: &Flags) -> Result<Loaded, Problems> {
    let (values, mut problems) = raw::layered(file, environment, flags);
    let (config, values, found) = check::check(values, environment);
    problems.extend(found);
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded { config, entries: values.entries().to_vec() }),
        Some(_) | None => Err(Problems::new(problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: (&str, &str) = ("HOME", "/home/me");

    const GOLDEN: &str = r#"the configuration has 15 problems:

  s.toml:2: state_dri: unknown key
      did you mean `state_dir`?
  s.toml:5: listen.ingest = "0.0.0.0:9477": not a loopback address
      everyone who reaches the port uses sendoff's rights: set tls.cert, tls.key and auth.ingest = "required", or, if you trust the network, listen.allow_unauthenticated_remote = true
  s.toml:6: listen.header_timeout = "30": not a duration
      write it like "500ms", "30s", "5m" or "6h"
  s.toml:9: outbox.bytes_max = "10 gigs": not a size
      write it like "64KiB", "512MiB" or "10GiB"
  s.toml:10: outbox.store = "rocks": must be "sled" or "postgres"
  s.toml:13: delivery.concurrency_max = 64 is above lambda.in_flight_max = 8
      concurrency_max limits one function, in_flight_max all of them together
  s.toml:14: lambda.endpoint_url = "http://localhost:9477/": sendoff's own address: it would deliver to itself
      leave it empty to use AWS
  s.toml:17: delivery.attempts_max = 0: must be from 1 to 1000000
  s.toml:18: delivery.backoff_base = "2m" is above delivery.backoff_cap = "60s"
  s.toml:21: functions."*".mode = "sure": must be "event" or "confirm"
  s.toml:24: [functions."orders-*"]: never applies: the earlier pattern "*" matches all of "orders-*"
      put the narrow pattern before the wide one
  s.toml:24: functions."orders-*".queue_url = "": empty
      leave it out to use dead_letter.queue_url
  s.toml:25: functions."orders-*".attempt_max: unknown key
      did you mean `functions."orders-*".attempts_max`?
  $SENDOFF_LISTEN__ADMIN: listen.admin = "9478": not an address and a port
      write it like "127.0.0.1:9478" or "[::1]:9478": an IP address, not a name
  $SENDOFF_OUTBOX_CACHE: unknown variable
      did you mean `SENDOFF_OUTBOX__CACHE`?"#;

    fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Problems> {
        let environment = Environment::from_pairs(&[&[HOME], variables].concat());
        check_layers(Some(raw::Document { name: "s.toml", text }), &environment, &Flags::default())
    }

    #[test]
    fn the_defaults_are_the_contract() {
        let Loaded { config, entries } = load_text("", &[]).unwrap();
        assert_eq!(config.state_dir, PathBuf::from("/home/me/.local/state/sendoff"));
        assert_eq!(config.listen.ingest, ["127.0.0.1:9477".parse().unwrap()]);
        assert_eq!(config.listen.admin.to_string(), "127.0.0.1:9478");
        assert_eq!((config.listen.unix, config.listen.admin_unix), (None, None));
        assert_eq!(config.outbox.limits.bytes_max, 10 << 30);
        assert_eq!(config.outbox.limits.dedupe_window, Duration::from_secs(24 * 3600));
        assert_eq!(config.outbox.limits.sdk_window, Duration::from_secs(3600));
        assert_eq!(config.outbox.cache, 16 << 20);
        assert_eq!(config.lambda.region, None);
        assert_eq!(config.dispatch.in_flight_max, 256);
        assert_eq!(config.dispatch.policy.attempts_max, 12);
        assert_eq!(config.dispatch.policy.age_max, Duration::from_secs(6 * 3600));
        assert_eq!(config.dispatch.policy.backoff_base, Duration::from_millis(500));
        assert_eq!(config.dispatch.policy.concurrency_max, 64);
        assert_eq!(config.dead_letter.queue_url, None);
        assert_eq!(config.grace, Duration::from_secs(25));
        assert_eq!(
            config.log,
            Log { format: LogFormat::Text, level: "info".to_owned(), no_color: false, otlp_endpoint: None }
        );
        let state_dir = entries.iter().find(|entry| entry.key == "state_dir").unwrap();
        assert_eq!(state_dir.origin.to_string(), "$HOME");
    }

    #[test]
    fn a_config_file_that_is_not_there_is_a_problem() {
        let flags = Flags { file: Some("no/such/file.toml".into()), ..Flags::default() };
        let problems = load(&flags, &Environment::from_pairs(&[HOME])).unwrap_err().to_string();
        assert!(
            problems.starts_with(
                "the configuration has a problem:\n\n  --config: no/such/file.toml: cannot be read: No such file"
            ),
            "{problems}"
        );
    }

    #[test]
    fn a_config_file_is_read_up_to_a_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.toml");
        std::fs::write(&path, "state_dir = '/s'\n").unwrap();
        let flags = Flags { file: Some(path.clone()), ..Flags::default() };
        assert_eq!(load(&flags, &Environment::default()).unwrap().config.state_dir, PathBuf::from("/s"));
        std::fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
        let problems = load(&flags, &Environment::default()).unwrap_err().to_string();
        assert!(problems.ends_with("cannot be read: it is larger than 1 MiB"), "{problems}");
    }

    #[test]
    fn all_problems_are_said_at_once_with_lines_in_order() {
        let file = r#"
state_dri = "/var/lib/sendoff"

[listen]
ingest = "0.0.0.0:9477"
header_timeout = "30"

[outbox]
bytes_max = "10 gigs"
store = "rocks"

[lambda]
in_flight_max = 8
endpoint_url = "http://localhost:9477/"

[delivery]
attempts_max = 0
backoff_base = "2m"

[functions."*"]
mode = "sure"

[functions."orders-*"]
queue_url = ""
attempt_max = 3
"#;
        let variables = [("SENDOFF_LISTEN__ADMIN", "9478"), ("SENDOFF_OUTBOX_CACHE", "1GiB")];
        let said = load_text(file, &variables).unwrap_err().to_string();
        assert_eq!(said, GOLDEN, "\n--- said:\n{said}\n---");
    }
}
