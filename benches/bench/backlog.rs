//! backlog: fills the store while Lambda cannot be reached, kills the daemon, starts it again, and lets it drain.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use clap::Args;
use sendoff::clock::Clock;
use tokio::net::TcpStream;

use crate::client::{self, Connection, Headers, Load, Way};
use crate::daemon::Daemon;
use crate::report::{Report, Sample};
use crate::{process, road};

#[derive(Debug, Args)]
pub struct Options {
    /// Events of the large backlog
    #[arg(long, default_value_t = 50_000)]
    events: u64,
    /// Events of the small backlog
    #[arg(long, default_value_t = 10_000)]
    beside: u64,
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    #[arg(long, default_value_t = 10)]
    functions: usize,
    /// The most deliveries over which the drain rate is taken
    #[arg(long, default_value_t = 100_000)]
    drain: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { events: 50_000, beside: 10_000, payload_bytes: 1_024, functions: 10, drain: 100_000 }
    }
}

const COLUMNS: &[&str] = &[
    "fill/s",
    "ready after s",
    "first 202 after s",
    "first arrival after s",
    "drain/s",
    "CPU s/1,000",
    "RSS filled MiB",
    "RSS at the start MiB",
    "RSS drained MiB",
    "peak RSS MiB",
    "disk B/event",
];

const CONNECTIONS: usize = 64;

pub async fn run(options: &Options, rounds: usize) -> anyhow::Result<()> {
    let mut report = Report::new("backlog", COLUMNS);
    let label = |events: u64| format!("{events} waiting");
    for round in 1..=rounds {
        eprintln!("backlog: round {round} of {rounds}");
        for events in [options.beside, options.events] {
            report.add(&label(events), measure(options, events).await?);
        }
    }
    report.ratio((&label(options.events), "drain/s"), (&label(options.beside), "drain/s"), "at least 0.8");
    report.finish()
}

async fn measure(options: &Options, events: u64) -> anyhow::Result<Sample> {
    let clock = Clock::system();
    let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let nobody = TcpListener::bind("127.0.0.1:0")?;
    let closed = format!("http://{}", nobody.local_addr()?);
    drop(nobody);

    let filling = Daemon::start(None, state.path(), &closed, &[]).await?;
    let load = Load {
        address: filling.ingest,
        connections: CONNECTIONS,
        events,
        payload_bytes: options.payload_bytes,
        functions: options.functions,
        headers: Headers::Sdk,
        way: Way::default(),
    };
    let filled = client::run(&load, &clock).await?;
    let rss_filled = process::memory_mib(filling.pid()?)?.0;
    filling.kill().await?;
    let disk = bytes_below(state.path())?;

    let standin = road::standin(&clock)?;
    let ingest = free_address()?;
    let settings = [format!("listen.ingest={ingest}")];
    let began = clock.instant();
    let url = standin.endpoint_url();
    let first = first_accepted(Load { address: ingest, events: 1, ..load.clone() }, &clock);
    let arrived = road::arrived(&standin, 1, &clock);
    let (daemon, first, arrived) = tokio::join!(
        async { (Daemon::start(None, state.path(), &url, &settings).await, began.elapsed()) },
        async { (first.await, began.elapsed()) },
        async { (arrived.await, began.elapsed()) },
    );
    let (ready_after, first_after, arrival_after) = (daemon.1, first.1, arrived.1);
    let daemon = daemon.0?;
    first.0?;
    arrived.0?;
    let (rss_start, _) = process::memory_mib(daemon.pid()?)?;
    let (cpu, begun) = (process::cpu(daemon.pid()?)?, clock.instant());
    let counted = standin.ledger().read(|book| book.total().taken);
    let target = (counted + options.drain).min(events);
    road::arrived(&standin, target, &clock).await?;
    let (took, drained) = (begun.elapsed().as_secs_f64(), (target - counted) as f64);
    let cpu = process::cpu(daemon.pid()?)?.saturating_sub(cpu);
    road::arrived(&standin, events, &clock).await?;
    let (rss_drained, peak) = process::memory_mib(daemon.pid()?)?;
    daemon.stop().await?;
    standin.stop().await;
    Ok(Sample::from([
        ("fill/s", filled.per_second()),
        ("ready after s", ready_after.as_secs_f64()),
        ("first 202 after s", first_after.as_secs_f64()),
        ("first arrival after s", arrival_after.as_secs_f64()),
        ("drain/s", drained / took),
        ("CPU s/1,000", cpu.as_secs_f64() * 1_000.0 / drained),
        ("RSS filled MiB", rss_filled),
        ("RSS at the start MiB", rss_start),
        ("RSS drained MiB", rss_drained),
        ("peak RSS MiB", peak),
        ("disk B/event", disk as f64 / events as f64),
    ]))
}

fn bytes_below(dir: &std::path::Path) -> std::io::Result<u64> {
    std::fs::read_dir(dir)?.try_fold(0, |bytes, entry| {
        let entry = entry?;
        let below = if entry.file_type()?.is_dir() { bytes_below(&entry.path())? } else { entry.metadata()?.len() };
        Ok(bytes + below)
    })
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Connects until somebody listens. Returns once an event is accepted.
async fn first_accepted(load: Load, clock: &Clock) -> anyhow::Result<()> {
    let began = clock.instant();
    while TcpStream::connect(load.address).await.is_err() {
        anyhow::ensure!(began.elapsed() < Duration::from_secs(600), "nobody listens on {}", load.address);
        clock.sleep(Duration::from_millis(1)).await;
    }
    Connection::open(load).await?.send(0, clock).await
}
