//! Starts the real `sendoff`, as an operator does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::Signal;
use serde_json::Value;

use super::http::{self, Response};
use super::metrics::Scrape;
use super::process::Process;
use super::{PATIENCE, eventually};

/// How to start a daemon. The same setup starts it again on the same state.
#[derive(Debug, Clone)]
pub struct Setup {
    args: Vec<String>,
    env: Vec<(String, String)>,
    env_removed: Vec<String>,
    wrapper: Vec<String>,
}

impl Setup {
    /// Uses free ports of loopback, and short waits, so that a test sees many retries in little time.
    pub fn new(state_dir: &Path) -> Self {
        let args = ["serve", "--state-dir", state_dir.to_str().unwrap()].map(str::to_owned).to_vec();
        Self { args, env: Vec::new(), env_removed: Vec::new(), wrapper: Vec::new() }
            .set("listen.ingest", "127.0.0.1:0")
            .set("listen.admin", "127.0.0.1:0")
            .set("log.format", "json")
            .set("delivery.backoff_base", "20ms")
            .set("delivery.backoff_cap", "200ms")
    }

    /// Sets a configuration key. The last value of a key wins.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        let prefix = format!("{key}=");
        let known = self.args.windows(2).position(|pair| pair[0] == "--set" && pair[1].starts_with(&prefix));
        let setting = format!("{prefix}{value}");
        match known {
            Some(at) => self.args[at + 1] = setting,
            None => self.args.extend(["--set".to_owned(), setting]),
        }
        self
    }

    /// Uses a configuration file.
    pub fn config(mut self, file: &Path) -> Self {
        self.args.extend(["--config".to_owned(), file.to_str().unwrap().to_owned()]);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes a variable that the rig sets.
    pub fn without_env(mut self, name: &str) -> Self {
        self.env_removed.push(name.to_owned());
        self
    }

    /// Starts the daemon by another program with these arguments.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Starts the daemon and does not wait.
    pub fn spawn(&self) -> Process {
        Process::spawn("sendoff", &mut self.command())
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&self) -> Daemon {
        self.start_if_it_can().unwrap_or_else(|lines| panic!("sendoff ended before it was ready: {lines:?}"))
    }

    /// The same. If it ends before it is ready, returns what it said.
    pub fn start_if_it_can(&self) -> Result<Daemon, Vec<String>> {
        let process = self.spawn();
        match process.line(PATIENCE, ready) {
            Some((ingest, admin)) => Ok(Daemon { process, ingest, admin }),
            None => Err(process.lines()),
        }
    }

    /// Starts the daemon with a log that cannot be read, on ports that are chosen before, and waits until it is ready.
    pub fn start_unheard(self) -> Daemon {
        let [ingest, admin] =
            [super::lasting_port(), super::lasting_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let setup = self.set("listen.ingest", &ingest.to_string()).set("listen.admin", &admin.to_string());
        let daemon = Daemon { process: setup.spawn(), ingest, admin };
        let probe = http::head(admin, "GET", "/readyz", &[], 0);
        eventually("it is ready", || {
            http::exchange_if_there(admin, &probe).filter(|answer| answer.status == 200).map(drop)
        });
        daemon
    }

    /// Starts the daemon and waits until it ends by itself. Returns its exit code and all output.
    pub fn fail_to_start(&self) -> (Option<i32>, String) {
        let mut process = Process::spawn("sendoff that must not start", &mut self.command());
        let status = process.wait(PATIENCE);
        process.line(PATIENCE, |_| None::<()>);
        (status.code(), process.lines().join("\n"))
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_sendoff").to_owned();
        let words: Vec<_> = self.wrapper.iter().chain([&binary]).chain(&self.args).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        super::python::aws_environment(&mut command);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        for name in &self.env_removed {
            command.env_remove(name);
        }
        command
    }
}

/// A daemon that was ready once. Dropping it sends SIGKILL.
pub struct Daemon {
    process: Process,
    pub ingest: SocketAddr,
    pub admin: SocketAddr,
}

impl Daemon {
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.ingest)
    }

    /// Sends an `Event` invocation over a raw socket.
    pub fn invoke(&self, function: &str, headers: &[(&str, &str)], payload: &[u8]) -> Response {
        let headers: Vec<_> = [("X-Amz-Invocation-Type", "Event")].iter().chain(headers).copied().collect();
        http::request(self.ingest, "POST", &invoke_path(function), &headers, payload)
    }

    /// Sends an event that must be accepted. Returns its id.
    pub fn accept(&self, function: &str, headers: &[(&str, &str)], payload: &[u8]) -> String {
        let response = self.invoke(function, headers, payload);
        assert_eq!((response.status, response.text().as_str()), (202, ""), "{response:?}");
        response.header("x-amzn-requestid").expect("the event's id").to_owned()
    }

    pub fn scrape(&self) -> Scrape {
        let response = http::get(self.admin, "/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        Scrape(response.text())
    }

    /// Events in the store, in any state, from the metrics.
    pub fn stored(&self) -> f64 {
        self.scrape().sum("sendoff_outbox_events", &[])
    }

    /// Waits until the store is empty.
    pub fn wait_until_empty(&self) {
        eventually("the store is empty", || (self.stored() == 0.0).then_some(()));
    }

    /// The messages of all warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        let records = self.process.lines().into_iter().filter_map(|line| log_fields(&line));
        records.filter(|fields| fields["level"] == "WARN").map(|fields| fields["message"].to_string()).collect()
    }

    /// Waits for a log record that `fits`.
    pub fn wait_for_log(&self, fits: impl Fn(&Value) -> bool) -> Value {
        self.process
            .line(PATIENCE, |line| log_fields(line).filter(|fields| fits(fields)))
            .expect("the record comes before the daemon ends")
    }

    /// The process id of the daemon, or of the program that started it.
    pub fn pid(&self) -> i32 {
        self.process.pid().as_raw_nonzero().get()
    }

    /// All lines of the log so far.
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }

    pub fn kill9(mut self) {
        self.process.kill9();
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until the daemon ends. Returns how it ended.
    pub fn wait(mut self) -> ExitStatus {
        self.process.wait(PATIENCE)
    }
}

/// The addresses for clients and for operators, from the log record `ready`.
pub fn ready(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let ready = log_fields(line).filter(|fields| fields["message"] == "ready")?;
    let bound = |field: &str| -> SocketAddr {
        ready[field].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {field} in {ready}"))
    };
    Some((bound("ingest"), bound("admin")))
}

/// The path of Lambda's Invoke.
pub fn invoke_path(function: &str) -> String {
    format!("/2015-03-31/functions/{function}/invocations")
}

/// A scratch directory, and a state directory in it.
pub fn scratch() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let state = scratch.path().join("state");
    // The mode that sendoff uses itself. It would warn about a wider one.
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&state).unwrap();
    (scratch, state)
}

/// The fields of a JSON log record with its level. They may be in an object of their own or beside the time.
fn log_fields(line: &str) -> Option<Value> {
    let record: Value = serde_json::from_str(line).ok()?;
    let level = record.get("level")?.clone();
    let mut fields = record.get("fields").unwrap_or(&record).clone();
    fields["level"] = level;
    Some(fields)
}

#[test]
fn a_later_setting_replaces_an_earlier_one() {
    let setup = Setup::new(Path::new("/nowhere")).set("a.b", "1").set("a.b", "2").set("a.c", "3");
    assert_eq!(setup.args.iter().filter(|arg| arg.starts_with("a.b=")).collect::<Vec<_>>(), ["a.b=2"]);
    assert!(setup.args.contains(&"a.c=3".to_owned()));
}

#[test]
fn fields_are_found_in_both_forms_of_a_record() {
    let nested = r#"{"level":"INFO","fields":{"message":"ready","ingest":"127.0.0.1:1"}}"#;
    let flat = r#"{"level":"INFO","message":"ready","ingest":"127.0.0.1:1"}"#;
    for line in [nested, flat] {
        let fields = log_fields(line).unwrap();
        assert_eq!((&fields["message"], &fields["level"]), (&Value::from("ready"), &Value::from("INFO")));
    }
    assert_eq!(log_fields("thread 'main' panicked"), None);
}
