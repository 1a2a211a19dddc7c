//! accept: from the request to the durable 202. Lambda cannot be reached meanwhile, so that only acceptance is
//! measured.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use sendoff::clock::Clock;

use crate::client::{self, Done, Headers, Load, Way};
use crate::daemon::{Daemon, Role};
use crate::process;
use crate::report::{Report, Sample};

#[derive(Debug, Args)]
pub struct Options {
    /// Keep-alive connections, each with one request at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    connections: Vec<usize>,
    /// Payloads in bytes. Sizes after the first run only with 64 connections, 1 MiB with 16
    #[arg(long, value_delimiter = ',', default_values_t = [1_024, 100, 65_536, 1_048_576])]
    payload_bytes: Vec<usize>,
    /// The most payload bytes of one measurement
    #[arg(long, default_value_t = 128 << 20)]
    bytes_max: u64,
    /// The most requests of one measurement
    #[arg(long, default_value_t = 20_000)]
    events: u64,
    #[arg(long, value_enum, default_value = "sdk")]
    headers: Headers,
    /// Other builds of the program to measure in the same rounds
    #[arg(long)]
    also: Vec<PathBuf>,
    /// Leave out the bare append + fdatasync and the listener that stores nothing
    #[arg(long)]
    only_daemons: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: vec![1, 16, 64, 256],
            payload_bytes: vec![1_024, 100, 65_536, 1_048_576],
            bytes_max: 128 << 20,
            events: 20_000,
            headers: Headers::Sdk,
            also: Vec::new(),
            only_daemons: false,
        }
    }
}

pub const COLUMNS: &[&str] = &["accept/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU s/1,000", "syncs/1,000", "RSS MiB"];

pub async fn run(options: &Options, rounds: usize) -> anyhow::Result<()> {
    let mut report = Report::new("accept", COLUMNS);
    let clock = Clock::system();
    for (connections, payload_bytes) in options.cases() {
        let events = options.events.min(options.bytes_max / payload_bytes as u64).max(64);
        // With one connection the disk's sync is the limit. A few events show that.
        let events = if connections == 1 { events.min(2_000) } else { events };
        for round in 1..=rounds {
            eprintln!("accept: {connections} connections, {payload_bytes} bytes, round {round} of {rounds}");
            let case = format!("{connections} x {payload_bytes} B");
            let (headers, way) = (options.headers, Way::default());
            let load = |address| {
                let way = way.clone();
                Load { address, connections, events, payload_bytes, functions: 1, headers, way }
            };
            if !options.only_daemons {
                report.add(&format!("nothing stored, {case}"), door(load, &clock).await?);
                report.add(&format!("bare fdatasync, {case}"), bare(connections, payload_bytes, events, &clock)?);
            }
            report.add(&format!("sendoff, {case}"), daemon(None, load, &clock).await?);
            for (n, program) in options.also.iter().enumerate() {
                report.add(&format!("also {n}, {case}"), daemon(Some(program), load, &clock).await?);
            }
        }
        let case = |system: &str| format!("{system}, {connections} x {payload_bytes} B");
        let (ours, door, bare) = (case("sendoff"), case("nothing stored"), case("bare fdatasync"));
        if !options.only_daemons {
            report.ratio((&ours, "accept/s"), (&door, "accept/s"), "at least 0.35 at 64 x 1 KiB, goal 0.5");
            report.ratio((&ours, "p99 ms"), (&bare, "p99 ms"), "at most 4 at 64 x 1 KiB");
        }
        for n in 0..options.also.len() {
            let other = format!("also {n}, {connections} x {payload_bytes} B");
            report.ratio((&ours, "accept/s"), (&other, "accept/s"), "");
            report.ratio((&ours, "CPU s/1,000"), (&other, "CPU s/1,000"), "");
        }
    }
    report.finish()
}

impl Options {
    fn cases(&self) -> Vec<(usize, usize)> {
        let first = self.payload_bytes.iter().take(1);
        let by_connections = first.flat_map(|&bytes| self.connections.iter().map(move |&n| (n, bytes)));
        let others = self.payload_bytes.iter().skip(1);
        by_connections.chain(others.map(|&bytes| (if bytes >= 1 << 20 { 16 } else { 64 }, bytes))).collect()
    }
}

fn sample(done: &Done, cpu: Duration) -> Sample {
    let events = done.latency.len() as f64;
    Sample::from([
        ("accept/s", done.per_second()),
        ("p50 ms", done.quantile_ms(0.5)),
        ("p99 ms", done.quantile_ms(0.99)),
        ("p99.9 ms", done.quantile_ms(0.999)),
        ("CPU s/1,000", cpu.as_secs_f64() * 1_000.0 / events),
    ])
}

async fn door(load: impl Fn(std::net::SocketAddr) -> Load, clock: &Clock) -> anyhow::Result<Sample> {
    let role = Role::start(&["door".to_owned()]).await?;
    let load = load(role.said.parse().context("the door's address")?);
    client::run(&Load { events: load.connections as u64, ..load.clone() }, clock).await?;
    let before = process::cpu(role.pid()?)?;
    let done = client::run(&load, clock).await?;
    Ok(sample(&done, process::cpu(role.pid()?)?.saturating_sub(before)))
}

async fn daemon(
    program: Option<&PathBuf>,
    load: impl Fn(std::net::SocketAddr) -> Load,
    clock: &Clock,
) -> anyhow::Result<Sample> {
    // Bound but not listening: calls are refused at once, and lanes are held.
    let nobody = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", nobody.local_addr()?);
    drop(nobody);
    let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let daemon = Daemon::start(program.map(PathBuf::as_path), state.path(), &url, &[]).await?;
    let sample = measured(&daemon, &load(daemon.ingest), clock).await?;
    daemon.kill().await?;
    Ok(sample)
}

/// Sends one request on each connection that does not count, and then the load.
pub async fn measured(daemon: &Daemon, load: &Load, clock: &Clock) -> anyhow::Result<Sample> {
    client::run(&Load { events: load.connections as u64, ..load.clone() }, clock).await?;
    let (cpu, syncs) = (process::cpu(daemon.pid()?)?, daemon.metric("sendoff_outbox_flush_seconds_count").await?);
    let done = client::run(load, clock).await?;
    let cpu = process::cpu(daemon.pid()?)?.saturating_sub(cpu);
    let syncs = daemon.metric("sendoff_outbox_flush_seconds_count").await? - syncs;
    let mut sample = sample(&done, cpu);
    sample.insert("syncs/1,000", syncs * 1_000.0 / load.events as f64);
    sample.insert("RSS MiB", process::memory_mib(daemon.pid()?)?.1);
    Ok(sample)
}

/// What the disk allows: batches of as many records as there are connections, appended to a file and synced.
fn bare(connections: usize, payload_bytes: usize, events: u64, clock: &Clock) -> anyhow::Result<Sample> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut file = File::create(directory.path().join("log"))?;
    let batch = client::payload(payload_bytes).repeat(connections);
    let mut latency = client::histogram()?;
    let cpu = process::cpu(std::process::id())?;
    let began = clock.instant();
    for _ in 0..events.div_ceil(connections as u64) {
        let begun = clock.instant();
        file.write_all(&batch)?;
        file.sync_data()?;
        latency.record_n(u64::try_from(begun.elapsed().as_nanos())?, connections as u64)?;
    }
    let done = Done { took: began.elapsed(), latency };
    let cpu = process::cpu(std::process::id())?.saturating_sub(cpu);
    let mut sample = sample(&done, cpu);
    sample.insert("syncs/1,000", 1_000.0 / connections as f64);
    Ok(sample)
}
