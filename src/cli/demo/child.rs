//! Runs the daemon as a child process.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::clock::Clock;

/// The longest time from the start of the process to `ready`.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The longest time from SIGTERM to the end.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// Lines of its log that are shown if it ends by itself.
const TAIL_LINES: usize = 20;

/// How to start the daemon.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) state_dir: PathBuf,
    /// The stand-in's URL.
    pub(super) lambda_url: String,
    /// More settings, `key=value`.
    pub(super) settings: Vec<String>,
}

impl Launch {
    /// Sets every important key on the command line, so that a configuration file cannot change the demo.
    fn command(&self) -> Command {
        let settings = [
            "listen.ingest=127.0.0.1:0",
            "listen.admin=127.0.0.1:0",
            "lambda.region=eu-central-1",
            &format!("lambda.endpoint_url={}", self.lambda_url),
            // Fast retries make the demo fast. With so many attempts, the stand-in's random failures bury no event.
            "delivery.backoff_base=50ms",
            "delivery.backoff_cap=1s",
            "delivery.attempts_max=1000",
            "log.format=json",
            "log.level=info",
        ]
        .map(str::to_owned);
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--state-dir").arg(&self.state_dir);
        for setting in settings.iter().chain(&self.settings) {
            command.arg("--set").arg(setting);
        }
        // An empty environment, without the caller's proxy, profile, endpoint and SENDOFF_ variables.
        command.env_clear().envs([
            ("AWS_ACCESS_KEY_ID", "demo"),
            ("AWS_SECRET_ACCESS_KEY", "demo"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        command
    }
}

/// The ports where the daemon listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) ingest: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) ports: Ports,
    child: Child,
    tail: Arc<Mutex<VecDeque<String>>>,
    /// The task that reads its log.
    reading: JoinSet<()>,
}

impl Daemon {
    /// Starts the daemon and waits until it is ready.
    pub(super) async fn start(launch: &Launch, clock: &Clock) -> anyhow::Result<Self> {
        Self::run(launch.command(), clock).await
    }

    async fn run(mut command: Command, clock: &Clock) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting the daemon")?;
        let log = child.stderr.take().context("the daemon has no stderr")?;
        let tail = Arc::default();
        let (say_ready, ready) = oneshot::channel();
        let mut reading = JoinSet::new();
        reading.spawn(read_log(log, Arc::clone(&tail), say_ready));
        let placeholder = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut daemon = Self { ports: Ports { ingest: placeholder, admin: placeholder }, child, tail, reading };
        let ports = tokio::select! {
            biased;
            ports = ready => ports.ok(),
            () = clock.sleep(READY_LIMIT) => {
                let limit = humantime::format_duration(READY_LIMIT);
                return Err(anyhow!("the daemon is not ready after {limit}; its last words:\n{}", daemon.last_words()));
            }
        };
        match ports {
            Some(ports) => {
                daemon.ports = ports;
                Ok(daemon)
            }
            // Its stderr ended before it was ready.
            None => Err(daemon.ended().await),
        }
    }

    /// Waits until the daemon ends by itself. Returns how it ended.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => {
                // The end of the process closes the pipe, so this reads the rest of the log at once.
                while self.reading.join_next().await.is_some() {}
                anyhow!("the daemon ended ({status}); its last words:\n{}", self.last_words())
            }
            Err(why) => anyhow::Error::new(why).context("waiting for the daemon"),
        }
    }

    /// Sends SIGKILL, so that the daemon cannot write anything more.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("killing the daemon")
    }

    /// Sends SIGTERM, and waits for the orderly end.
    pub(super) async fn stop(mut self, clock: &Clock) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(pid.context("the daemon has ended already")?, Signal::TERM).context("stopping the daemon")?;
        tokio::select! {
            biased;
            status = self.child.wait() => {
                let status = status.context("waiting for the daemon")?;
                anyhow::ensure!(status.success(), "the daemon stopped with {status}; its last words:\n{}", self.last_words());
                Ok(())
            }
            () = clock.sleep(STOP_LIMIT) => {
                Err(anyhow!("the daemon did not stop within {}", humantime::format_duration(STOP_LIMIT)))
            }
        }
    }

    fn last_words(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().map(|line| format!("  {line}\n")).collect()
    }
}

/// Reads the log to its end, keeps the last lines, and reports the ports when they appear.
async fn read_log(log: ChildStderr, tail: Arc<Mutex<VecDeque<String>>>, say_ready: oneshot::Sender<Ports>) {
    let mut say_ready = Some(say_ready);
    let mut lines = BufReader::new(log).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(ports) = ready_ports(&line)
            && let Some(say_ready) = say_ready.take()
        {
            // Nobody waits any more if the start was given up.
            say_ready.send(ports).ok();
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}

/// The ports in the line `ready` of a JSON log. Its fields are in `fields` or at the top level.
fn ready_ports(line: &str) -> Option<Ports> {
    let value = serde_json::from_str::<serde_json::Value>(line).ok()?;
    let fields = value.get("fields").unwrap_or(&value);
    let text = |name: &str| fields.get(name)?.as_str();
    let ready = text("message")? == "ready";
    let address = |name: &str| text(name)?.parse().ok();
    ready.then_some(Ports { ingest: address("ingest")?, admin: address("admin")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        command
    }

    const READY: &str =
        r#"{"level":"INFO","fields":{"message":"ready","ingest":"127.0.0.1:41","admin":"127.0.0.1:42"}}"#;

    #[test]
    fn the_ports_are_read_from_the_ready_line_alone() {
        let ports = Ports { ingest: "127.0.0.1:41".parse().unwrap(), admin: "127.0.0.1:42".parse().unwrap() };
        assert_eq!(ready_ports(READY), Some(ports));
        let flat = r#"{"message":"ready","ingest":"127.0.0.1:41","admin":"127.0.0.1:42"}"#;
        assert_eq!(ready_ports(flat), Some(ports));
        assert_eq!(ready_ports(&READY.replace("ready", "stopped")), None);
        assert_eq!(ready_ports("not json"), None);
    }

    #[tokio::test]
    async fn a_daemon_that_dies_before_it_is_ready_shows_its_last_words() {
        let command = shell("for n in $(seq 30); do echo line $n >&2; done; exit 3");
        let why = Daemon::run(command, &Clock::system()).await.unwrap_err().to_string();
        assert!(why.contains("exit status: 3") && why.contains("line 30\n"), "{why}");
        assert_eq!(why.lines().filter(|line| line.starts_with("  line")).count(), TAIL_LINES);
    }

    #[tokio::test]
    async fn a_ready_daemon_can_be_killed_or_stopped() {
        let clock = Clock::system();
        let lasting = || shell(&format!("echo '{READY}' >&2; exec sleep 600"));
        let daemon = Daemon::run(lasting(), &clock).await.unwrap();
        assert_eq!(daemon.ports.admin.port(), 42);
        daemon.kill().await.unwrap();
        let why = Daemon::run(lasting(), &clock).await.unwrap().stop(&clock).await.unwrap_err().to_string();
        assert!(why.contains("SIGTERM"), "sleep does not drain: {why}");
    }
}
