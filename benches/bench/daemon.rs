//! Runs the real daemon as a child process, and processes of this program for comparison.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// How long a start may take. A large backlog is read at every start.
const START_MAX: Duration = Duration::from_secs(300);

/// A running daemon. Dropping it kills it.
pub struct Daemon {
    pub ingest: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
    _log: JoinSet<()>,
}

impl Daemon {
    /// Starts `program`, or this build's own, and returns when it is ready. `settings` are `key=value`.
    pub async fn start(
        program: Option<&Path>,
        state_dir: &Path,
        lambda_url: &str,
        settings: &[String],
    ) -> anyhow::Result<Self> {
        let program = program.unwrap_or(Path::new(env!("CARGO_BIN_EXE_sendoff")));
        let mut command = Command::new(program);
        command.arg("serve").arg("--state-dir").arg(state_dir);
        let own = [
            "listen.ingest=127.0.0.1:0",
            "listen.admin=127.0.0.1:0",
            "lambda.region=eu-central-1",
            &format!("lambda.endpoint_url={lambda_url}"),
            "log.format=json",
        ];
        for setting in own.into_iter().chain(settings.iter().map(String::as_str)) {
            command.arg("--set").arg(setting);
        }
        command.env_clear().envs([
            ("AWS_ACCESS_KEY_ID", "bench"),
            ("AWS_SECRET_ACCESS_KEY", "bench"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting the daemon")?;
        let mut lines = BufReader::new(child.stderr.take().context("the daemon has no stderr")?).lines();
        let ready = async {
            let mut said = Vec::new();
            while let Some(line) = lines.next_line().await? {
                if let Some(addresses) = addresses(&line) {
                    return Ok(addresses);
                }
                said.push(line);
            }
            anyhow::bail!("the daemon ended before it was ready:\n{}", said.join("\n"))
        };
        let (ingest, admin) = tokio::time::timeout(START_MAX, ready).await.context("the daemon is not ready")??;
        let mut log = JoinSet::new();
        // Only so that the pipe does not fill up.
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { ingest, admin, child, _log: log })
    }

    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the daemon has ended")
    }

    /// Sends SIGKILL, and waits for the end.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("killing the daemon")
    }

    /// Sends SIGTERM, and waits for the end.
    pub async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::TERM).context("stopping the daemon")?;
        self.child.wait().await.context("waiting for the daemon")
    }

    /// One metric of `/metrics`: the sum over all labels.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let mut stream = TcpStream::connect(self.admin).await.context("connecting to the admin listener")?;
        let get = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin);
        stream.write_all(get.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        Ok(lines
            .filter(|rest| rest.starts_with([' ', '{']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }
}

/// The addresses in the log's line `ready`.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let value = serde_json::from_str::<serde_json::Value>(line).ok()?;
    let fields = value.get("fields").unwrap_or(&value);
    let text = |name: &str| fields.get(name)?.as_str();
    (text("message")? == "ready").then_some(())?;
    Some((text("ingest")?.parse().ok()?, text("admin")?.parse().ok()?))
}

/// A process of this program in a role. Dropping it kills it.
pub struct Role {
    child: Child,
    /// The first line of its output.
    pub said: String,
}

impl Role {
    /// Starts it and waits for its first line.
    pub async fn start(arguments: &[String]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command.arg("role").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting a role")?;
        let mut lines = BufReader::new(child.stdout.take().context("the role has no stdout")?).lines();
        let said = lines.next_line().await?.with_context(|| format!("the role {arguments:?} said nothing"))?;
        Ok(Self { child, said })
    }

    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the role has ended")
    }
}
