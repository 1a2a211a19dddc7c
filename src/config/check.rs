//! Turns the layers into a [`Config`]: what each key means, and what must hold between keys.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::listen::Guarded;
use super::problem::{Origin, Problem};
use super::raw::Values;
use super::read::{DISK_MAX, MEMORY_MAX, Reader, Zero};
use super::{Config, Environment, Log, LogFormat};
use super::{
    clients, embedded, endpoint, handoff, level, listen, operators, outside, passthrough, patterns, postgres, queue,
    rules, tls,
};
use crate::aws::direct::Transport;
use crate::dispatch::{Mode, Policy};
use crate::event::PAYLOAD_BYTES_MAX;
use crate::event::name::{Home, is_account_id};
use crate::ingest::admission::REQUEST_BYTES_MIN;
use crate::past;
use crate::{aws, deadletter, dispatch, hop, ingest};

/// The least limit for payloads. Below it, the largest payload that Lambda accepts could never be delivered.
const ONE_PAYLOAD: u64 = PAYLOAD_BYTES_MAX as u64;

/// Returns the config if there is no problem, the values in effect, and the problems.
pub fn check(values: Values, environment: &Environment) -> (Option<Config>, Values, Vec<Problem>) {
    let mut reader = Reader::new(values);
    let config = config(&mut reader, environment);
    let (values, problems, _) = reader.finish();
    (config.filter(|_| problems.is_empty()), values, problems)
}

/// Reads every key, even after a problem. `None` means that at least one value is unusable.
fn config(r: &mut Reader, environment: &Environment) -> Option<Config> {
    let state_dir = state_dir(r, environment);
    let tls = tls::read(r);
    let required = clients::required(r);
    let operators_required = operators::required(r);
    let served = tls.iter().flatten().next();
    let guarded = Guarded {
        ingest: required == Some(true) && served.is_some_and(|tls| tls.on_ingest),
        admin: operators_required == Some(true) && served.is_some_and(|tls| tls.on_admin),
    };
    admin_socket(r, environment);
    let listen = listen::read(r, &guarded);
    let own = listen::own_addresses(r);

    let region = region(r, "lambda.region", environment);
    if let (Some(Some(region)), Some(None)) = (&region, r.optional("sqs.region")) {
        r.fill("sqs.region", region, r.origin("lambda.region"));
    }
    let lambda = service(r, "lambda", region.clone(), &own, environment);
    let transport = r.word("lambda.transport", &[("direct", Transport::Direct), ("sdk", Transport::Sdk)]);
    let sqs_region = self::region(r, "sqs.region", environment);
    let sqs = service(r, "sqs", sqs_region, &own, environment);

    let own_region = region.clone().flatten();
    let outside = outside::read(r, environment);
    let ingest = ingest(r, region);
    patterns::read(r, own_region.as_deref());
    let asks = served.filter(|tls| tls.files.client_ca.is_some()).map(|tls| tls.on_ingest);
    let clients = clients::read(r, own_region.as_deref(), required, asks);
    let operators = operators::read(r, operators_required, listen.as_ref(), tls.iter().flatten().next());
    let passthrough = passthrough::read(r);
    let rules = rules::read(r);
    let outbox = embedded::read(r);
    let postgres = postgres::read(r, outbox.as_ref().map(|outbox| outbox.limits));
    let dispatch = r.live(dispatch);
    let dead_letter = dead_letter(r, &own);
    let history = history(r);
    let handoff = handoff::read(r, &own);
    let grace = r.duration("shutdown.grace", Zero::Allowed);
    let log = log(r, environment);

    let (lambda, mut ignored_endpoints) = lambda?;
    let (sqs, ignored_for_sqs) = sqs?;
    ignored_endpoints.extend(ignored_for_sqs);
    ignored_endpoints.dedup();
    Some(Config {
        state_dir: state_dir?,
        listen: listen?,
        tls: tls?,
        ingest: ingest?,
        clients: clients?,
        operators: operators?,
        passthrough: passthrough?,
        rules: rules?,
        outbox: outbox?,
        postgres: postgres?,
        lambda,
        transport: transport?,
        sqs,
        outside,
        ignored_endpoints,
        own_variables: endpoint::own_variables(environment, &own),
        dispatch: dispatch?,
        dead_letter: dead_letter?,
        history: history?,
        handoff: handoff?,
        grace: grace?,
        log: log?,
    })
}

fn history(r: &mut Reader) -> Option<past::Settings> {
    /// Room for sixteen files of a thousand ends.
    const BYTES_MIN: u64 = 1 << 20;
    let events = r.number("history.events", 0..=past::ENDS_MAX);
    let keep = r.duration("history.keep", Zero::Allowed);
    let bytes_max = r.size("history.bytes_max", BYTES_MIN..=DISK_MAX);
    Some(past::Settings { events: events? as usize, keep: keep?, bytes_max: bytes_max? })
}

/// Without a path for the socket of the operator's API, it is in the directory that systemd makes for it.
fn admin_socket(r: &mut Reader, environment: &Environment) {
    const KEY: &str = "listen.admin_unix";
    const VARIABLE: &str = "RUNTIME_DIRECTORY";
    let is_unset = r.values().find(KEY).is_some_and(|entry| entry.value.to_string().is_empty());
    // systemd separates several with colons.
    let directory = environment.get(VARIABLE).and_then(|directories| directories.split(':').next());
    if let Some(directory) = directory.filter(|_| is_unset) {
        r.fill(KEY, &format!("{directory}/admin.sock"), Origin::Environment(VARIABLE.to_owned()));
    }
}

/// The directory as configured, or by the conventions of systemd or XDG.
fn state_dir(r: &mut Reader, environment: &Environment) -> Option<PathBuf> {
    const KEY: &str = "state_dir";
    if let Some(written) = r.optional(KEY)? {
        return Some(written.into());
    }
    // systemd separates several directories by colons. The first is ours.
    let of_systemd = environment.get("STATE_DIRECTORY").and_then(|list| list.split(':').next()).map(PathBuf::from);
    // The XDG Base Directory Specification says to ignore relative paths.
    let of_user = |variable, below: &str| {
        environment.get(variable).map(PathBuf::from).filter(|base| base.is_absolute()).map(|base| base.join(below))
    };
    let found = [
        ("STATE_DIRECTORY", of_systemd),
        ("XDG_STATE_HOME", of_user("XDG_STATE_HOME", "sendoff")),
        ("HOME", of_user("HOME", ".local/state/sendoff")),
    ];
    let Some((variable, Some(path))) = found.into_iter().find(|(_, path)| path.is_some()) else {
        let hint = "set it, or one of $STATE_DIRECTORY, $XDG_STATE_HOME, $HOME";
        return r.refuse(KEY, "no directory for the outbox is known", Some(hint));
    };
    r.fill(KEY, &path.to_string_lossy(), Origin::Environment(variable.to_owned()));
    Some(path)
}

/// The region as configured, or as the SDK would find it in the environment. Ingest needs it, too.
fn region(r: &mut Reader, key: &str, environment: &Environment) -> Option<Option<String>> {
    if r.optional(key)?.is_none() {
        let inherited =
            ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find_map(|name| Some((name, environment.get(name)?)));
        if let Some((variable, region)) = inherited {
            r.fill(key, region, Origin::Environment(variable.to_owned()));
        }
    }
    let region = r.optional(key)?;
    let is_valid = |region: &String| region.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if region.as_ref().is_some_and(|region| !is_valid(region)) {
        return r.refuse(key, "not an AWS region", Some("write it like \"eu-central-1\""));
    }
    Some(region)
}

/// The settings for Lambda or SQS, and the variables that are ignored because they name one of `own`.
fn service(
    r: &mut Reader,
    table: &str,
    region: Option<Option<String>>,
    own: &[SocketAddr],
    environment: &Environment,
) -> Option<(aws::Settings, Vec<&'static str>)> {
    let variables: &[&str] = match table {
        "lambda" => &["AWS_ENDPOINT_URL_LAMBDA", "AWS_ENDPOINT_URL"],
        _ => &["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"],
    };
    let key = format!("{table}.endpoint_url");
    let mut endpoint_url = r.endpoint(&key);
    let mut ignored = Vec::new();
    if endpoint_url == Some(None) {
        let inherited = endpoint::inherited(environment, variables, own);
        ignored = inherited.ignored;
        if let Some((variable, url)) = inherited.endpoint {
            r.fill(&key, &url, Origin::Environment(variable.to_owned()));
            endpoint_url = r.endpoint(&key);
        }
    }
    if let Some(Some(url)) = &endpoint_url
        && own.iter().any(|own| hop::points_at(url, *own))
    {
        r.refuse::<()>(&key, "sendoff's own address: it would deliver to itself", Some("leave it empty to use AWS"));
    }
    let connect_timeout = r.duration(&format!("{table}.connect_timeout"), Zero::Refused);
    let read_timeout = r.duration(&format!("{table}.read_timeout"), Zero::Refused);
    let settings = aws::Settings {
        region: region?,
        endpoint_url: endpoint_url?,
        ignore_configured_endpoint_urls: !ignored.is_empty(),
        connect_timeout: connect_timeout?,
        read_timeout: read_timeout?,
    };
    Some((settings, ignored))
}

fn ingest(r: &mut Reader, region: Option<Option<String>>) -> Option<ingest::Settings> {
    /// hyper refuses a smaller read buffer (hyper 1, `http1::Builder::max_buf_size`).
    const HEADER_BYTES_MIN: u64 = 8 << 10;
    const HEADER_BYTES_MAX: u64 = 1 << 20;
    let connections_max = r.number("listen.connections_max", 1..=1_000_000);
    let request_bytes_max = r.size("listen.request_bytes_max", REQUEST_BYTES_MIN..=MEMORY_MAX);
    let headers_max = r.number("listen.headers_max", 1..=1_000);
    let header_bytes_max = r.size("listen.header_bytes_max", HEADER_BYTES_MIN..=HEADER_BYTES_MAX);
    let header_timeout = r.duration("listen.header_timeout", Zero::Refused);
    let body_timeout = r.duration("listen.body_timeout", Zero::Refused);
    let account_id = account_id(r);
    Some(ingest::Settings {
        connections_max: connections_max? as usize,
        request_bytes_max: request_bytes_max?,
        headers_max: headers_max? as usize,
        header_bytes_max: usize::try_from(header_bytes_max?).ok()?,
        header_timeout: header_timeout?,
        body_timeout: body_timeout?,
        home: Home { region: region?, account_id: account_id? },
    })
}

const ACCOUNT_EXAMPLE: &str = "write it like \"123456789012\", with quotes; `aws sts get-caller-identity` tells it";

fn account_id(r: &mut Reader) -> Option<Option<String>> {
    let account_id = r.optional("lambda.account_id")?;
    if account_id.as_ref().is_some_and(|id| !is_account_id(id)) {
        return r.refuse("lambda.account_id", "not the 12 digits of an AWS account", Some(ACCOUNT_EXAMPLE));
    }
    Some(account_id)
}

/// The highest rate that makes sense, in attempts a second.
const RATE_MAX: u32 = 1_000_000;

fn dispatch(r: &mut Reader) -> Option<dispatch::Settings> {
    let in_flight_max = r.number("lambda.in_flight_max", 1..=100_000);
    let in_flight_bytes_max = r.size("lambda.in_flight_bytes_max", ONE_PAYLOAD..=MEMORY_MAX);
    let default = policy(r, None, in_flight_max);
    let tables = r.values().functions().to_vec();
    let functions: Vec<Option<(String, Policy)>> =
        tables.into_iter().map(|(pattern, table)| Some((pattern, policy(r, Some(&table), in_flight_max)?))).collect();
    let rate = r.number("lambda.rate", 0..=RATE_MAX);
    Some(dispatch::Settings {
        rate: rate?,
        in_flight_max: in_flight_max?,
        in_flight_bytes_max: in_flight_bytes_max?,
        policy: default?,
        functions: functions.into_iter().collect::<Option<_>>()?,
    })
}

/// The policy of `[delivery]`. Keys of `table`, one of `[functions]`, override it.
fn policy(r: &mut Reader, table: Option<&str>, in_flight_max: Option<u32>) -> Option<Policy> {
    let key = |r: &Reader, name: &str| {
        table
            .map(|table| format!("{table}.{name}"))
            .filter(|key| r.values().find(key).is_some())
            .unwrap_or_else(|| format!("delivery.{name}"))
    };
    let [mode, attempts, age, base, cap, concurrency] =
        ["mode", "attempts_max", "age_max", "backoff_base", "backoff_cap", "concurrency_max"].map(|name| key(r, name));
    let [confirm_timeout, rate, per_hour] =
        ["confirm_timeout", "rate", "invocations_per_hour_max"].map(|name| key(r, name));
    let timeout = r.duration(&confirm_timeout, Zero::Refused);
    let timeout_or_none = timeout.unwrap_or_default();
    let mode = r.word(&mode, &[("event", Mode::Event), ("confirm", Mode::Confirm { timeout: timeout_or_none })]);
    let rate = r.number(&rate, 0..=RATE_MAX);
    let invocations_per_hour_max = r.number(&per_hour, 0..=u32::MAX);
    let attempts_max = r.number(&attempts, 1..=1_000_000);
    let age_max = r.duration(&age, Zero::Refused);
    let backoff_base = r.duration(&base, Zero::Refused);
    let backoff_cap = r.duration(&cap, Zero::Refused);
    let concurrency_max = r.number(&concurrency, 1..=100_000);
    if let (Some(low), Some(high)) = (backoff_base, backoff_cap)
        && low > high
    {
        r.contradiction(&base, "is above", &cap, None);
    }
    if let (Some(low), Some(high)) = (backoff_cap, age_max)
        && low > high
    {
        r.contradiction(&cap, "is above", &age, Some("an event would be buried before its next attempt"));
    }
    if let (Some(low), Some(high)) = (concurrency_max, in_flight_max)
        && low > high
    {
        r.contradiction(
            &concurrency,
            "is above",
            "lambda.in_flight_max",
            Some("concurrency_max limits one function, in_flight_max all of them together"),
        );
    }
    timeout?;
    Some(Policy {
        mode: mode?,
        rate: rate?,
        invocations_per_hour_max: invocations_per_hour_max?,
        attempts_max: attempts_max?,
        age_max: age_max?,
        backoff_base: backoff_base?,
        backoff_cap: backoff_cap?,
        concurrency_max: concurrency_max?,
    })
}

fn dead_letter(r: &mut Reader, own: &[SocketAddr]) -> Option<deadletter::Settings> {
    let queue_url = queue::read(r, "dead_letter.queue_url", own);
    let mut functions = Vec::new();
    for (pattern, table) in r.values().functions().to_vec() {
        let key = format!("{table}.queue_url");
        if r.values().find(&key).is_none() {
            continue;
        }
        match queue::read(r, &key, own) {
            Some(Some(url)) => functions.push((pattern, url)),
            Some(None) => {
                r.refuse::<()>(&key, "empty", Some("leave it out to use dead_letter.queue_url"));
            }
            None => {}
        }
    }
    let backoff_base = r.duration("dead_letter.backoff_base", Zero::Refused);
    let backoff_cap = r.duration("dead_letter.backoff_cap", Zero::Refused);
    if let (Some(low), Some(high)) = (backoff_base, backoff_cap)
        && low > high
    {
        r.contradiction("dead_letter.backoff_base", "is above", "dead_letter.backoff_cap", None);
    }
    let retention_min = r.duration("dead_letter.retention_min", Zero::Allowed);
    let formats = [("dlq", deadletter::Format::DeadLetterQueue), ("destination", deadletter::Format::Destination)];
    let format = r.word("dead_letter.format", &formats);
    let oversizes = [("keep", deadletter::Oversize::Keep), ("compress", deadletter::Oversize::Compress)];
    let oversize = r.word("dead_letter.oversize", &oversizes);
    let redrives_max = r.number("dead_letter.redrives_max", 1..=1_000);
    Some(deadletter::Settings {
        queue_url: queue_url?,
        functions,
        backoff_base: backoff_base?,
        backoff_cap: backoff_cap?,
        retention_min: retention_min?,
        format: format?,
        oversize: oversize?,
        redrives_max: redrives_max?,
    })
}

fn log(r: &mut Reader, environment: &Environment) -> Option<Log> {
    let format = r.word("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let level = r.live(level::read);
    // https://no-color.org: any value counts, if it is not empty.
    let no_color = environment.get("NO_COLOR").is_some();
    Some(Log { format: format?, level: level?, no_color, otlp_endpoint: otlp_endpoint(environment) })
}

/// OpenTelemetry's specification, "OTLP exporter": the variable for traces is a whole URL, the general one only its
/// beginning.
fn otlp_endpoint(environment: &Environment) -> Option<String> {
    let of_all = || {
        let base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")?;
        Some(format!("{}/v1/traces", base.trim_end_matches('/')))
    };
    environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").map(str::to_owned).or_else(of_all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::raw::{self, Document};
    use crate::config::{Flags, Loaded, Problems};

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Problems> {
        let environment = Environment::from_pairs(&[&[("HOME", "/home/me")], variables].concat());
        crate::config::check_layers(Some(Document { name: "s.toml", text }), &environment, &Flags::default())
    }

    fn config_of(text: &str, variables: &[(&str, &str)]) -> Config {
        load(text, variables).unwrap().config
    }

    #[track_caller]
    fn assert_refused(text: &str, variables: &[(&str, &str)], said: &[&str]) {
        let problems = load(text, variables).unwrap_err();
        let lines: Vec<String> = problems.as_slice().iter().map(ToString::to_string).collect();
        let first_lines: Vec<&str> = lines.iter().filter_map(|problem| problem.lines().next()).collect();
        assert_eq!(first_lines, said);
    }

    #[test]
    fn the_defaults_file_has_exactly_the_keys_that_are_read() {
        let environment = Environment::from_pairs(&[("HOME", "/home/me")]);
        let (values, problems) = raw::layered(None, &environment, &Flags::default());
        assert_eq!(problems, []);
        let written: BTreeSet<String> = values.entries().iter().map(|entry| entry.key.clone()).collect();
        let mut reader = Reader::new(values);
        assert!(config(&mut reader, &environment).is_some());
        let (_, problems, asked) = reader.finish();
        assert_eq!(problems, []);
        assert_eq!(written, asked);
    }

    #[test]
    fn the_state_directory_follows_systemd_then_xdg_then_home() {
        let state_dir = |variables: &[(&str, &str)]| config_of("", variables).state_dir;
        let xdg = ("XDG_STATE_HOME", "/xdg");
        assert_eq!(state_dir(&[("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), xdg]), PathBuf::from("/var/lib/a"));
        assert_eq!(state_dir(&[xdg]), PathBuf::from("/xdg/sendoff"));
        assert_eq!(state_dir(&[("XDG_STATE_HOME", "not/absolute")]), PathBuf::from("/home/me/.local/state/sendoff"));
        assert_eq!(config_of("state_dir = 'here'", &[xdg]).state_dir, PathBuf::from("here"));
        assert_refused("", &[("HOME", "")], &["default: state_dir = \"\": no directory for the outbox is known"]);
    }

    #[test]
    fn listeners_that_others_can_reach_need_to_be_allowed() {
        assert_refused(
            "listen.ingest = '[::]:1'\nlisten.admin = '10.0.0.1:2'",
            &[],
            &[
                "s.toml:1: listen.ingest = \"[::]:1\": not a loopback address",
                "s.toml:2: listen.admin = \"10.0.0.1:2\": not a loopback address",
            ],
        );
        let allowed = "listen.ingest = '0.0.0.0:1'\nlisten.allow_unauthenticated_remote = true";
        assert_eq!(config_of(allowed, &[]).listen.ingest[0].port(), 1);
        assert_eq!(config_of("listen.ingest = '[::1]:1'\nlisten.admin = '127.0.0.2:2'", &[]).listen.admin.port(), 2);
    }

    #[test]
    fn two_listeners_need_two_addresses() {
        assert_refused(
            "listen.ingest = '127.0.0.1:9478'",
            &[],
            &["s.toml:1: listen.admin = \"127.0.0.1:9478\" is the same address as listen.ingest = \"127.0.0.1:9478\""],
        );
        let any_port = config_of("listen.ingest = '127.0.0.1:0'\nlisten.admin = '127.0.0.1:0'", &[]);
        assert_eq!(any_port.listen.ingest, [any_port.listen.admin]);
        let both = config_of("listen.ingest = '127.0.0.1:9477 [::1]:9477'", &[]);
        assert_eq!(both.listen.ingest, ["127.0.0.1:9477".parse().unwrap(), "[::1]:9477".parse().unwrap()]);
        for (ingest, why) in [
            ("127.0.0.1:9477 10.0.0.1:9477", "not a loopback address"),
            ("127.0.0.1:9477 127.0.0.1:9478", "is the same address as"),
            ("[::ffff:127.0.0.1]:9478", "is the same address as"),
            ("127.0.0.1:9477 127.0.0.1:9477", "names 127.0.0.1:9477 twice"),
            ("127.0.0.1:9477 [::ffff:127.0.0.1]:9477", "twice"),
            ("127.0.0.1:9477,[::1]:9477", "not addresses and ports"),
            ("", "not addresses and ports"),
            ("localhost:9477", "not addresses and ports"),
        ] {
            let problems = load(&format!("listen.ingest = '{ingest}'"), &[]).unwrap_err().to_string();
            assert!(problems.contains(why), "{ingest}: {problems}");
        }
        let endpoint = "listen.ingest = '127.0.0.1:9477 127.0.0.2:9500'\nlambda.endpoint_url = 'http://127.0.0.2:9500'";
        let problems = load(endpoint, &[]).unwrap_err().to_string();
        assert!(problems.contains("it would deliver to itself"), "{problems}");
    }

    #[test]
    fn a_socket_path_fits_into_the_address_of_a_socket() {
        let socket = |more: &str| config_of(&format!("listen.unix = '/run/s.sock'\n{more}"), &[]).listen.unix.unwrap();
        assert_eq!((socket("").path, socket("").mode, socket("").group), (PathBuf::from("/run/s.sock"), 0o660, None));
        let socket = socket("listen.unix_mode = '0600'\nlisten.unix_group = 'web'");
        assert_eq!((socket.mode, socket.group.as_deref()), (0o600, Some("web")));
        for mode in ["660", "0o660", "0777"] {
            assert!(load(&format!("listen.unix_mode = '{mode}'"), &[]).is_ok(), "{mode}");
        }
        for (mode, why) in [
            ("rw-", "not the mode"),
            ("1777", "not the mode"),
            ("0060", "does not let its owner"),
            ("99", "not the mode"),
        ] {
            let problems = load(&format!("listen.unix_mode = '{mode}'"), &[]).unwrap_err().to_string();
            assert!(problems.contains(why), "{problems}");
        }
        let long = format!("/{}", "x".repeat(107));
        let problems = load(&format!("listen.unix = '{long}'"), &[]).unwrap_err().to_string();
        assert!(problems.contains("longer than 107 bytes, the longest path of a socket"), "{problems}");
    }

    #[test]
    fn the_region_of_the_environment_serves_ingest_lambda_and_sqs() {
        let config = config_of("", &[("AWS_REGION", "eu-central-1"), ("AWS_DEFAULT_REGION", "us-east-1")]);
        let eu = Some("eu-central-1".to_owned());
        assert_eq!((config.ingest.home.region, config.lambda.region, config.sqs.region), (eu.clone(), eu.clone(), eu));
        let config = config_of("lambda.region = 'us-east-2'", &[("AWS_REGION", "eu-central-1")]);
        assert_eq!(config.sqs.region.as_deref(), Some("us-east-2"));
        assert_refused(
            "",
            &[("AWS_REGION", "EU")],
            &[
                "$AWS_REGION: lambda.region = \"EU\": not an AWS region",
                "$AWS_REGION: sqs.region = \"EU\": not an AWS region",
            ],
        );
    }

    #[test]
    fn an_inherited_endpoint_is_used_unless_it_is_our_own() {
        let own = ("AWS_ENDPOINT_URL_LAMBDA", "http://localhost:9477");
        let config = config_of("", &[own]);
        assert_eq!(config.ignored_endpoints, ["AWS_ENDPOINT_URL_LAMBDA"]);
        assert_eq!((config.lambda.endpoint_url, config.lambda.ignore_configured_endpoint_urls), (None, true));
        assert!(!config.sqs.ignore_configured_endpoint_urls);

        let config = config_of("", &[own, ("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")]);
        assert_eq!(config.lambda.endpoint_url.as_deref(), Some("http://127.0.0.1:4566"));
        assert_eq!(config.sqs.endpoint_url.as_deref(), Some("http://127.0.0.1:4566"));

        let config = config_of("lambda.endpoint_url = 'http://127.0.0.1:9001'", &[own]);
        assert_eq!(config.lambda.endpoint_url.as_deref(), Some("http://127.0.0.1:9001"));
        assert_eq!(config.ignored_endpoints, Vec::<&str>::new());

        let config = config_of("", &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9477")]);
        assert_eq!(config.ignored_endpoints, ["AWS_ENDPOINT_URL"]);
        assert!(config.lambda.ignore_configured_endpoint_urls && config.sqs.ignore_configured_endpoint_urls);
    }

    #[test]
    fn an_endpoint_that_is_written_must_be_valid_and_not_our_own() {
        assert_refused(
            "lambda.endpoint_url = 'http://127.0.0.1:9477'\nsqs.endpoint_url = 'ftp://host'",
            &[],
            &[
                "s.toml:1: lambda.endpoint_url = \"http://127.0.0.1:9477\": sendoff's own address: it would deliver to itself",
                "s.toml:2: sqs.endpoint_url: not an http:// or https:// URL",
            ],
        );
        assert_refused(
            "[dead_letter]\nqueue_url = 'http://localhost:9477/123456789012/q'",
            &[],
            &[
                "s.toml:2: dead_letter.queue_url = \"http://localhost:9477/123456789012/q\": sendoff's own address, not a queue",
            ],
        );
        assert_refused(
            "",
            &[("AWS_ENDPOINT_URL_SQS", "localhost")],
            &["$AWS_ENDPOINT_URL_SQS: sqs.endpoint_url: not an http:// or https:// URL"],
        );
    }

    #[test]
    fn limits_that_cannot_work_are_refused() {
        assert_refused(
            "listen.request_bytes_max = '1MB'\nlisten.header_bytes_max = '4KiB'\nlambda.account_id = '1234'\nlog.format = 'xml'",
            &[],
            &[
                "s.toml:1: listen.request_bytes_max = \"1MB\": less than 4.0 MiB, the least that works",
                "s.toml:2: listen.header_bytes_max = \"4KiB\": less than 8.0 KiB, the least that works",
                "s.toml:3: lambda.account_id = \"1234\": not the 12 digits of an AWS account",
                "s.toml:4: log.format = \"xml\": must be \"text\" or \"json\"",
            ],
        );
    }

    #[test]
    fn waits_grow_and_end_before_the_event_does() {
        assert_refused(
            "[delivery]\nbackoff_base = '2m'\nage_max = '30s'\n[dead_letter]\nbackoff_base = '6m'",
            &[],
            &[
                "s.toml:2: delivery.backoff_base = \"2m\" is above delivery.backoff_cap = \"60s\"",
                "s.toml:3: delivery.backoff_cap = \"60s\" is above delivery.age_max = \"30s\"",
                "s.toml:5: dead_letter.backoff_base = \"6m\" is above dead_letter.backoff_cap = \"5m\"",
            ],
        );
        assert_refused(
            "",
            &[("SENDOFF_LAMBDA__IN_FLIGHT_MAX", "8")],
            &["$SENDOFF_LAMBDA__IN_FLIGHT_MAX: delivery.concurrency_max = 64 is above lambda.in_flight_max = 8"],
        );
    }

    #[test]
    fn functions_override_what_they_write_and_keep_the_rest() {
        let file = r#"
delivery.attempts_max = 5
dead_letter.queue_url = "https://sqs/1/default"
[functions."orders-eu-*"]
age_max = "24h"
[functions."orders-*"]
concurrency_max = 2
queue_url = "https://sqs/1/orders"
"#;
        let config = config_of(file, &[]);
        let [(narrow, eu), (wide, orders)] = config.dispatch.functions.as_slice() else { panic!("two tables") };
        assert_eq!((narrow.as_str(), wide.as_str()), ("orders-eu-*", "orders-*"));
        assert_eq!((eu.attempts_max, eu.age_max.as_secs(), eu.concurrency_max), (5, 24 * 3600, 64));
        assert_eq!((orders.attempts_max, orders.age_max.as_secs(), orders.concurrency_max), (5, 6 * 3600, 2));
        assert_eq!(config.dead_letter.queue_url.as_deref(), Some("https://sqs/1/default"));
        assert_eq!(config.dead_letter.functions, [("orders-*".to_owned(), "https://sqs/1/orders".to_owned())]);
    }

    #[test]
    fn functions_are_checked_like_delivery_and_their_patterns_too() {
        assert_refused(
            r#"
[functions."*"]
mode = "confirm"
concurrency_max = 300
[functions."late"]
queue_url = ""
[functions."a b"]
queue_url = "https://sqs"
"#,
            &[],
            &[
                "s.toml:4: functions.\"*\".concurrency_max = 300 is above lambda.in_flight_max = 256",
                "s.toml:6: [functions.late]: never applies: the earlier pattern \"*\" matches all of \"late\"",
                "s.toml:6: functions.late.queue_url = \"\": empty",
                "s.toml:8: [functions.\"a b\"]: cannot match the name of a function",
                "s.toml:8: [functions.\"a b\"]: never applies: the earlier pattern \"*\" matches all of \"a b\"",
                "s.toml:8: functions.\"a b\".queue_url = \"https://sqs\": not the URL of a queue",
            ],
        );
    }

    #[test]
    fn a_pattern_beyond_the_limits_of_patterns_is_refused() {
        let (stars, long) = ("*a".repeat(17), "b".repeat(513));
        let file = format!("[functions.\"{stars}\"]\nage_max = \"1h\"\n[functions.{long}]\nage_max = \"1h\"\n");
        assert_refused(
            &file,
            &[],
            &[
                &format!("s.toml:2: [functions.\"{stars}\"]: the pattern has 17 stars; use at most 16"),
                &format!("s.toml:4: [functions.{long}]: the pattern has 513 bytes; use at most 512"),
            ],
        );
    }

    #[test]
    fn a_log_level_that_would_silence_the_log_is_refused() {
        for level in ["info", "WARN", "off", "info,sendoff::dispatch=debug", "warn,sendoff=trace"] {
            assert_eq!(config_of(&format!("log.level = '{level}'"), &[]).log.level, level);
        }
        const LOUD: &str = "not a filter: error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \
                            \"debug\", \"trace\", or a number 0-5";
        for (level, why) in [
            ("inof", "\"inof\" is not a level"),
            ("", "has an empty part"),
            ("sendoff::dispatch", "\"sendoff::dispatch\" is not a level"),
            ("sendoff=loud", LOUD),
        ] {
            let said = format!("s.toml:1: log.level = \"{level}\": {why}");
            assert_refused(&format!("log.level = '{level}'"), &[], &[&said]);
        }
        assert!(config_of("", &[("NO_COLOR", "1")]).log.no_color);
        assert!(!config_of("", &[("NO_COLOR", "")]).log.no_color);
    }

    #[test]
    fn spans_go_where_opentelemetry_s_own_variables_say() {
        let endpoint = |variables: &[(&str, &str)]| config_of("", variables).log.otlp_endpoint;
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");
        assert_eq!(endpoint(&[]), None);
        assert_eq!(endpoint(&[general]).as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/traces");
        assert_eq!(endpoint(&[general, own]).as_deref(), Some("http://127.0.0.1:1/traces"));
    }
}
