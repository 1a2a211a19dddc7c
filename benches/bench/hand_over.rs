//! hand-over: fills the store while Lambda cannot be reached, stops the daemon, and measures how long it takes until a peer, or
//! a queue, has everything.

use std::net::TcpListener;

use clap::Args;
use sendoff::clock::Clock;

use crate::client::{self, Headers, Load, Way};
use crate::daemon::{Daemon, Role};
use crate::report::{Report, Sample};

#[derive(Debug, Args)]
pub struct Options {
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    #[arg(long, default_value_t = 10)]
    functions: usize,
    /// How long a call of the queue takes, in milliseconds
    #[arg(long, default_value_t = 20)]
    call_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { events: 100_000, payload_bytes: 1_024, functions: 10, call_ms: 20 }
    }
}

const COLUMNS: &[&str] = &["seconds", "events/s"];
const CONNECTIONS: usize = 64;

/// Longer than any run takes.
const WITHIN: &str = "handoff.within=10m";

pub async fn run(options: &Options, rounds: usize) -> anyhow::Result<()> {
    let mut report = Report::new("hand-over", COLUMNS);
    for round in 1..=rounds {
        eprintln!("hand-over: round {round} of {rounds}");
        let call = options.call_ms.to_string();
        let queue = Role::start(&["queue".to_owned(), "--call-ms".to_owned(), call]).await?;
        let to = format!("handoff.to=http://{}/123456789012/handoff", queue.said);
        report.add("to a queue", measure(options, &[to, format!("sqs.endpoint_url=http://{}", queue.said)]).await?);

        let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let peer = Daemon::start(None, state.path(), &closed()?, &["handoff.receive=true".to_owned()]).await?;
        report.add("to a peer", measure(options, &[format!("handoff.to=http://{}", peer.ingest)]).await?);
    }
    report.finish()
}

/// An address that nobody listens on.
fn closed() -> anyhow::Result<String> {
    Ok(format!("http://{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?))
}

async fn measure(options: &Options, to: &[String]) -> anyhow::Result<Sample> {
    let clock = Clock::system();
    let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let settings = [&["handoff.on_stop=always".to_owned(), WITHIN.to_owned()], to].concat();
    let daemon = Daemon::start(None, state.path(), &closed()?, &settings).await?;
    let load = Load {
        address: daemon.ingest,
        connections: CONNECTIONS,
        events: options.events,
        payload_bytes: options.payload_bytes,
        functions: options.functions,
        headers: Headers::Sdk,
        way: Way::default(),
    };
    client::run(&load, &clock).await?;
    let began = clock.instant();
    let status = daemon.stop().await?;
    let took = began.elapsed().as_secs_f64();
    anyhow::ensure!(status.success(), "the daemon ended with {status}: events are left on its disk");
    Ok(Sample::from([("seconds", took), ("events/s", options.events as f64 / took)]))
}
