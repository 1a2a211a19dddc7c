//! road: from the first request to the last arrival at the stand-in, which is a real HTTP server in this process.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sendoff::clock::Clock;
use sendoff::standin::{Keep, Settings, Standin};

use crate::client::{self, Headers, Load, Way};
use crate::daemon::{Daemon, Role};
use crate::process;
use crate::report::{Report, Sample};

#[derive(Debug, Args)]
pub struct Options {
    /// Events of one measurement
    #[arg(long, default_value_t = 20_000)]
    events: u64,
    /// Number of functions that the events are for
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 1_000])]
    functions: Vec<usize>,
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    #[arg(long, default_value_t = 1_024)]
    payload_bytes: usize,
    #[arg(long, value_enum, default_value = "sdk")]
    headers: Headers,
    /// Further settings of the daemon, KEY=VALUE. With `|` between alternatives to measure side by side
    #[arg(long)]
    set: Option<String>,
    /// Other builds of the program to measure in the same rounds
    #[arg(long)]
    also: Vec<PathBuf>,
    /// Leave out the bare loops
    #[arg(long)]
    only_daemons: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            events: 20_000,
            functions: vec![1, 10, 1_000],
            concurrency: 64,
            payload_bytes: 1_024,
            headers: Headers::Sdk,
            set: None,
            also: Vec::new(),
            only_daemons: false,
        }
    }
}

const COLUMNS: &[&str] = &["road/s", "CPU s/1,000", "syncs/1,000", "peak RSS MiB"];

/// How often the stand-in is asked whether all events have arrived.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Without any arrival for this long, something is wrong.
const STALLED: Duration = Duration::from_secs(30);

pub async fn run(options: &Options, rounds: usize) -> anyhow::Result<()> {
    let mut report = Report::new("road", COLUMNS);
    let clock = Clock::system();
    let alternatives: Vec<&str> = options.set.as_deref().map_or(vec![""], |set| set.split('|').collect());
    for &functions in &options.functions {
        let label = |system: &str| format!("{system}, {functions} functions");
        for round in 1..=rounds {
            eprintln!("road: {functions} functions, round {round} of {rounds}");
            if !options.only_daemons {
                for transport in ["sdk", "signed"] {
                    report.add(&label(&format!("bare {transport} loop")), bare(transport, options, functions).await?);
                }
            }
            for set in &alternatives {
                report.add(&label(&format!("sendoff {set}")), daemon(None, set, options, functions, &clock).await?);
            }
            for (n, program) in options.also.iter().enumerate() {
                report.add(&label(&format!("also {n}")), daemon(Some(program), "", options, functions, &clock).await?);
            }
        }
        for set in &alternatives {
            let ours = label(&format!("sendoff {set}"));
            if !options.only_daemons {
                let (sdk, signed) = (label("bare sdk loop"), label("bare signed loop"));
                report.ratio((&ours, "road/s"), (&sdk, "road/s"), "at least 0.7, goal 1");
                report.ratio((&ours, "CPU s/1,000"), (&sdk, "CPU s/1,000"), "goal: below 1");
                report.ratio((&ours, "road/s"), (&signed, "road/s"), "");
            }
            for n in 0..options.also.len() {
                report.ratio((&ours, "road/s"), (&label(&format!("also {n}")), "road/s"), "");
                report.ratio((&ours, "CPU s/1,000"), (&label(&format!("also {n}")), "CPU s/1,000"), "");
            }
        }
    }
    report.finish()
}

pub fn standin(clock: &Clock) -> anyhow::Result<Standin> {
    Ok(Standin::start_with(clock.clone(), Settings { keep: Keep::Counts, id_field: None })?)
}

pub async fn arrived(standin: &Standin, events: u64, clock: &Clock) -> anyhow::Result<()> {
    let (mut before, mut since) = (0, clock.instant());
    loop {
        let taken = standin.ledger().read(|book| book.total().taken);
        if taken >= events {
            return Ok(());
        }
        if taken > before {
            (before, since) = (taken, clock.instant());
        }
        anyhow::ensure!(since.elapsed() < STALLED, "{taken} of {events} events arrived, and no more come");
        clock.sleep(LOOK_EVERY).await;
    }
}

async fn bare(transport: &str, options: &Options, functions: usize) -> anyhow::Result<Sample> {
    let standin = standin(&Clock::system())?;
    let arguments = [
        "call",
        "--transport",
        transport,
        "--url",
        &standin.endpoint_url(),
        "--events",
        &options.events.to_string(),
        "--concurrency",
        &options.concurrency.to_string(),
        "--functions",
        &functions.to_string(),
        "--payload-bytes",
        &options.payload_bytes.to_string(),
    ];
    let role = Role::start(&arguments.map(str::to_owned)).await?;
    standin.stop().await;
    let said: serde_json::Value = serde_json::from_str(&role.said)?;
    let number = |name: &str| said.get(name).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
    Ok(Sample::from([
        ("road/s", options.events as f64 / number("seconds")),
        ("CPU s/1,000", number("cpu_seconds") * 1_000.0 / options.events as f64),
    ]))
}

async fn daemon(
    program: Option<&PathBuf>,
    set: &str,
    options: &Options,
    functions: usize,
    clock: &Clock,
) -> anyhow::Result<Sample> {
    let standin = standin(clock)?;
    let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let settings: Vec<String> = set.split(',').filter(|set| !set.is_empty()).map(str::to_owned).collect();
    let daemon = Daemon::start(program.map(PathBuf::as_path), state.path(), &standin.endpoint_url(), &settings).await?;
    let (connections, payload_bytes, headers) = (options.concurrency, options.payload_bytes, options.headers);
    let load = Load {
        address: daemon.ingest,
        connections,
        events: options.events,
        payload_bytes,
        functions,
        headers,
        way: Way::default(),
    };
    let warm = connections as u64;
    client::run(&Load { events: warm, ..load.clone() }, clock).await?;
    arrived(&standin, warm, clock).await?;

    let (cpu, syncs) = (process::cpu(daemon.pid()?)?, daemon.metric("sendoff_outbox_flush_seconds_count").await?);
    let began = clock.instant();
    client::run(&load, clock).await?;
    arrived(&standin, warm + options.events, clock).await?;
    let took = began.elapsed();
    let cpu = process::cpu(daemon.pid()?)?.saturating_sub(cpu);
    let syncs = daemon.metric("sendoff_outbox_flush_seconds_count").await? - syncs;
    let (_, peak) = process::memory_mib(daemon.pid()?)?;
    daemon.stop().await?;
    standin.stop().await;
    let events = options.events as f64;
    Ok(Sample::from([
        ("road/s", events / took.as_secs_f64()),
        ("CPU s/1,000", cpu.as_secs_f64() * 1_000.0 / events),
        ("syncs/1,000", syncs * 1_000.0 / events),
        ("peak RSS MiB", peak),
    ]))
}
