//! lag: from the request to its event's arrival at the stand-in, one event at a time on an idle daemon.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use sendoff::clock::Clock;
use sendoff::standin::Standin;
use tokio::time::Instant;

use crate::call::{Caller, Transport};
use crate::client::{self, Connection, Headers, Load, Way};
use crate::daemon::Daemon;
use crate::report::{Report, Sample};
use crate::road;

#[derive(Debug, Args)]
pub struct Options {
    /// Events of one measurement
    #[arg(long, default_value_t = 1_000)]
    events: u64,
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { events: 1_000, payload_bytes: 1_024 }
    }
}

const COLUMNS: &[&str] = &["p50 ms", "p99 ms"];

/// An event that has not arrived after this time is lost.
const LOST: Duration = Duration::from_secs(10);

/// Events at the beginning of each measurement that do not count: they open connections and touch pages.
const WARM: u64 = 50;

pub async fn run(options: &Options, rounds: usize) -> anyhow::Result<()> {
    let mut report = Report::new("lag", COLUMNS);
    let clock = Clock::system();
    for round in 1..=rounds {
        eprintln!("lag: round {round} of {rounds}");
        report.add("bare fdatasync + sdk call", bare(options, &clock).await?);
        report.add("sendoff", daemon(options, &clock).await?);
    }
    report.ratio(("sendoff", "p50 ms"), ("bare fdatasync + sdk call", "p50 ms"), "below 3");
    report.finish()
}

/// When the stand-in has taken this many events.
async fn arrival(standin: &Standin, events: u64, clock: &Clock) -> anyhow::Result<Instant> {
    let there = standin.ledger().wait_until(|book| book.total().taken >= events, LOST).await;
    anyhow::ensure!(there, "event {events} has not arrived");
    Ok(clock.instant())
}

fn sample(latency: &Histogram<u64>) -> Sample {
    let quantile = |quantile| latency.value_at_quantile(quantile) as f64 / 1e6;
    Sample::from([("p50 ms", quantile(0.5)), ("p99 ms", quantile(0.99))])
}

async fn daemon(options: &Options, clock: &Clock) -> anyhow::Result<Sample> {
    let standin = road::standin(clock)?;
    let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let daemon = Daemon::start(None, state.path(), &standin.endpoint_url(), &[]).await?;
    let load = Load {
        address: daemon.ingest,
        connections: 1,
        events: options.events,
        payload_bytes: options.payload_bytes,
        functions: 1,
        headers: Headers::Sdk,
        way: Way::default(),
    };
    let mut connection = Connection::open(load).await?;
    let mut latency = client::histogram()?;
    for number in 1..=options.events + WARM {
        let began = clock.instant();
        let (sent, arrived) = tokio::join!(connection.send(0, clock), arrival(&standin, number, clock));
        sent?;
        if number > WARM {
            latency.record(u64::try_from(arrived?.duration_since(began).as_nanos())?)?;
        }
    }
    daemon.stop().await?;
    standin.stop().await;
    Ok(sample(&latency))
}

async fn bare(options: &Options, clock: &Clock) -> anyhow::Result<Sample> {
    let standin = road::standin(clock)?;
    let caller = Caller::new(Transport::Sdk, &standin.endpoint_url()).await;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let file = Arc::new(File::create(directory.path().join("log"))?);
    let payload = Bytes::from(client::payload(options.payload_bytes));
    let mut latency = client::histogram()?;
    for number in 1..=options.events + WARM {
        let began = clock.instant();
        let (file, written) = (Arc::clone(&file), payload.clone());
        let call = async {
            tokio::task::spawn_blocking(move || {
                (&*file).write_all(&written)?;
                file.sync_data()
            })
            .await??;
            caller.call("f0".to_owned(), payload.clone()).await
        };
        let (called, arrived) = tokio::join!(call, arrival(&standin, number, clock));
        called?;
        if number > WARM {
            latency.record(u64::try_from(arrived?.duration_since(began).as_nanos())?)?;
        }
    }
    standin.stop().await;
    Ok(sample(&latency))
}
