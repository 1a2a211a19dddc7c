//! `sendoff status`: what the daemon is doing, once or as it goes.

use std::io::IsTerminal;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::admin_client::{AdminClient, Daemon};
use super::{Exit, Failure, print};
use crate::admin::status::Summary;
use crate::clock::Clock;
use crate::config::Environment;

/// Show what the daemon stores, delivers and holds
///
/// Exits with 0 if the daemon is ready, 1 if it is not, 69 if it does not run.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Show it again every second, until interrupted
    #[arg(long)]
    watch: bool,
    /// Seconds between two showings
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600), requires = "watch")]
    interval: u64,
    /// Stop after so many showings
    #[arg(long, value_name = "N", requires = "watch")]
    count: Option<u64>,
    /// Print JSON: one object, with --watch one a line
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let client = options.daemon.client(environment)?;
    let terminal = std::io::stdout().is_terminal();
    let colours = terminal && environment.get("NO_COLOR").is_none();
    super::runtime()?.block_on(async {
        if options.watch {
            return watch(&client, &options, terminal, colours).await;
        }
        let summary = summary(&client).await?;
        print(&shown(&summary, options.json, colours)?)?;
        if summary.ready { Ok(()) } else { Err(Failure::saying(Exit::Failed, format!("not ready: {}", summary.state))) }
    })
}

async fn summary(client: &AdminClient) -> Result<Summary, Failure> {
    client.value("/v1/status").await
}

async fn watch(client: &AdminClient, options: &Options, terminal: bool, colours: bool) -> Result<(), Failure> {
    /// Cursor to the corner, and everything from there cleared.
    const TO_THE_CORNER: &str = "\x1b[H\x1b[J";
    let clock = Clock::system();
    let mut left = options.count;
    while left != Some(0) {
        // A daemon that restarts is worth watching, too: say so and go on.
        let text = match summary(client).await {
            Ok(summary) => shown(&summary, options.json, colours)?,
            Err(failure) if options.json => serde_json::json!({ "error": failure.to_string() }).to_string() + "\n",
            Err(failure) => format!("{failure}\n"),
        };
        let corner = if terminal && !options.json { TO_THE_CORNER } else { "" };
        print(&format!("{corner}{text}"))?;
        left = left.map(|left| left - 1);
        if left != Some(0) {
            clock.sleep(Duration::from_secs(options.interval)).await;
        }
    }
    Ok(())
}

fn shown(summary: &Summary, json: bool, colours: bool) -> Result<String, Failure> {
    if !json {
        return Ok(table(summary, colours));
    }
    let text = serde_json::to_string(summary).map_err(|error| Failure::new(Exit::Internal, error))?;
    Ok(text + "\n")
}

fn table(summary: &Summary, colours: bool) -> String {
    let Summary { version, state, ready, uptime_seconds, log_level, outbox, totals, rates, held } = summary;
    let age = |seconds: f64| humantime::format_duration(Duration::from_secs(seconds as u64)).to_string();
    let size = |bytes: u64| ByteSize::b(bytes).display().iec().to_string();
    let state = match (colours, ready) {
        (false, _) => state.clone(),
        (true, true) => format!("\x1b[32m{state}\x1b[0m"),
        (true, false) => format!("\x1b[31m{state}\x1b[0m"),
    };
    let held = named(held);
    let rows = [
        ("state", format!("{state}, version {version}, up {}, log level {log_level}", age(*uptime_seconds))),
        ("stored", format!("{} events, {}; {} in flight", outbox.events, size(outbox.bytes), outbox.leased)),
        (
            "",
            format!(
                "{} ready, {} waiting, {} scheduled, {} buried",
                outbox.ready, outbox.waiting, outbox.scheduled, outbox.buried
            ),
        ),
        ("oldest ready", age(outbox.oldest_ready_age_seconds)),
        ("functions", format!("{}; held: {held}", outbox.functions)),
        ("keys", outbox.keys.to_string()),
        ("disk", format!("{} used, {} free", size(outbox.disk_bytes), size(outbox.disk_free_bytes))),
        (
            "a second",
            format!(
                "{:.1} accepted, {:.1} attempted, {:.1} delivered, {:.1} buried",
                rates.accepted_per_second,
                rates.attempts_per_second,
                rates.delivered_per_second,
                rates.buried_per_second
            ),
        ),
        ("", format!("on average over the last {:.0} s", rates.window_seconds)),
        (
            "since start",
            format!("{} accepted, {} repeats, {} refused", totals.accepted, totals.repeats, totals.refused),
        ),
        (
            "",
            format!(
                "{} attempts, {} delivered, {} retries; {} buried, {} shipped",
                totals.attempts, totals.delivered, totals.retries, totals.buried, totals.shipped
            ),
        ),
    ];
    rows.iter().map(|(name, value)| format!("{name:<13}{value}\n")).collect()
}

/// The first few of them, and how many more: in an outage they are all.
fn named(held: &[String]) -> String {
    const SHOWN: usize = 3;
    match held {
        [] => "none".to_owned(),
        few if few.len() <= SHOWN => few.join(", "),
        many => format!("{} and {} more", many[..SHOWN].join(", "), many.len() - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::OutboxCounts;

    fn summary() -> Summary {
        let outbox = OutboxCounts { events: 3, ready: 2, buried: 1, bytes: 2_048, ..OutboxCounts::default() };
        Summary {
            state: "ready".into(),
            ready: true,
            version: "1".into(),
            uptime_seconds: 61.4,
            outbox,
            ..Summary::default()
        }
    }

    #[test]
    fn the_table_has_units_that_people_read() {
        let text = table(&summary(), false);
        assert!(text.starts_with("state        ready, version 1, up 1m 1s"), "{text}");
        assert!(
            text.contains("stored       3 events, 2.0 KiB; 0 in flight\n             2 ready, 0 waiting"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 80), "a terminal of 80 columns shows it unbroken: {text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(table(&summary(), true).contains("\x1b[32mready\x1b[0m"));
    }

    #[test]
    fn held_lanes_are_named_as_far_as_a_line_goes() {
        let held: Vec<String> = (0..1_000).map(|n| format!("f{n}")).collect();
        assert_eq!(named(&[]), "none");
        assert_eq!(named(&held[..3]), "f0, f1, f2");
        assert_eq!(named(&held), "f0, f1, f2 and 997 more");
    }

    #[test]
    fn json_is_what_the_daemon_said() {
        let back: Summary = serde_json::from_str(&shown(&summary(), true, true).unwrap()).unwrap();
        assert_eq!(back, summary());
    }
}
