//! `sendoff status`: the state of the daemon, once or repeatedly.

use std::io::IsTerminal;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::admin_client::Daemon;
use super::watch::Watch;
use super::{Exit, Failure, out};
use crate::admin::api::{Fleet, FleetMember, Rates, Summary};
use crate::config::Environment;
use crate::plural::count;
use crate::visible::{visible, visible_json};

const EXAMPLES: &str = "\
Examples:
  sendoff status
  sendoff status --watch --interval 5
  sendoff status --json | jq .outbox.ready";

/// Show what the daemon stores, delivers and holds
///
/// Exits with 0 if the daemon is ready, 1 if it is not, 69 if it does not run.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    watch: Watch,
    /// Print a JSON object. With --watch, one per line
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let client = options.daemon.client(environment)?;
    let colours = std::io::stdout().is_terminal() && environment.get("NO_COLOR").is_none();
    super::runtime()?.block_on(async {
        if options.watch.watch {
            let mut before: Option<Summary> = None;
            let look = async || {
                let summary: Summary = client.get("/v1/status").await?;
                let rates = before.as_ref().and_then(|before| between(before, &summary));
                let text =
                    shown(&Summary { rates: rates.unwrap_or(summary.rates), ..summary.clone() }, options.json, colours);
                before = Some(summary);
                text
            };
            return options.watch.show(options.json, look).await;
        }
        let summary: Summary = client.get("/v1/status").await?;
        out::painted(&shown(&summary, options.json, colours)?)?;
        if summary.ready { Ok(()) } else { Err(Failure::saying(Exit::Failed, format!("not ready: {}", summary.state))) }
    })
}

/// The rates between two summaries of one process. `None` if the daemon was restarted in between.
fn between(before: &Summary, now: &Summary) -> Option<Rates> {
    let seconds = now.uptime_seconds - before.uptime_seconds;
    (seconds > 0.0).then(|| Rates::between(before.totals, now.totals, Duration::from_secs_f64(seconds)))
}

fn shown(summary: &Summary, json: bool, colours: bool) -> Result<String, Failure> {
    if !json {
        return Ok(table(summary, colours));
    }
    let text = serde_json::to_string(summary).map_err(|error| Failure::new(Exit::Internal, error))?;
    Ok(visible_json(&text).into_owned() + "\n")
}

fn table(summary: &Summary, colours: bool) -> String {
    let Summary { version, state, ready, uptime_seconds, log_level, outbox, totals, rates, held, fleet, problems } =
        summary;
    let age = |seconds: f64| humantime::format_duration(Duration::from_secs(seconds as u64)).to_string();
    let size = |bytes: u64| ByteSize::b(bytes).display().iec().to_string();
    let held = named(held);
    let free = match outbox.disk_free_bytes {
        u64::MAX => "the file system does not report what is free".to_owned(),
        free => format!("{} free", size(free)),
    };
    let rows = [
        ("state", format!("{state}, version {version}, up {}, log level {log_level}", age(*uptime_seconds))),
        (
            "stored",
            format!("{}, {}; {} in flight", count(outbox.events, "event"), size(outbox.bytes), outbox.in_flight),
        ),
        (
            "",
            format!(
                "{} ready, {} waiting, {} scheduled, {} buried",
                outbox.ready, outbox.waiting, outbox.scheduled, outbox.buried
            ),
        ),
        ("oldest", format!("{}, of those ready or waiting", age(outbox.oldest_age_seconds))),
        ("functions", format!("{}; held: {held}", outbox.functions)),
        ("keys", outbox.keys.to_string()),
        ("disk", format!("{} used, {}", size(outbox.disk_bytes), free)),
        (
            "per second",
            format!(
                "{:.1} accepted, {:.1} attempted, {:.1} delivered, {:.1} buried",
                rates.accepted_per_second,
                rates.attempts_per_second,
                rates.delivered_per_second,
                rates.buried_per_second
            ),
        ),
        ("", format!("over the last {:.0} s", rates.window_seconds)),
        (
            "since start",
            format!(
                "{} accepted, {}, {} refused",
                totals.accepted,
                count(totals.duplicates, "duplicate"),
                totals.refused
            ),
        ),
        (
            "",
            format!(
                "{}, {} delivered, {}; {} buried, {} shipped",
                count(totals.attempts, "attempt"),
                totals.delivered,
                count(totals.retries, "retry"),
                totals.buried,
                totals.shipped
            ),
        ),
    ];
    let mut rows = rows.to_vec();
    rows.extend(fleet.iter().flat_map(daemons));
    for (n, problem) in problems.iter().enumerate() {
        let name = if n == 0 { "problems" } else { "" };
        rows.insert(1 + 2 * n, (name, problem.message.clone()));
        rows.insert(2 + 2 * n, ("", format!("-> {}", problem.remedy)));
    }
    let text: String = rows.iter().map(|(name, value)| format!("{name:<13}{}\n", visible(value))).collect();
    if !colours {
        return text;
    }
    // A ready daemon accepts events. Green means that it also delivers them.
    let colour = match (ready, problems.is_empty()) {
        (true, true) => "\x1b[32m",
        (true, false) => "\x1b[33m",
        (false, _) => "\x1b[31m",
    };
    let state = visible(state);
    text.replacen(&*state, &format!("{colour}{state}\x1b[0m"), 1)
}

/// The daemons that share the outbox, two lines each.
fn daemons(fleet: &Fleet) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    for member in &fleet.members {
        let name = if rows.is_empty() { "daemons" } else { "" };
        let marks = [(member.this, " (this one)"), (member.draining, ", draining"), (!member.answers, ", no answer")];
        let marks: String = marks.into_iter().filter_map(|(is, mark)| is.then_some(mark)).collect();
        rows.push((name, format!("{}{marks}: {}", member.name, count(member.functions, "function"))));
        let FleetMember { version, since, beat_age_seconds, .. } = member;
        rows.push(("", format!("  version {version}, since {since}, beat {beat_age_seconds:.0} s ago")));
    }
    if fleet.unowned > 0 {
        rows.push(("", format!("{} without a daemon", count(fleet.unowned, "function"))));
    }
    rows
}

/// The first few names, and how many more there are. In an outage all functions may be held.
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
    use crate::admin::api::OutboxCounts;
    use crate::admin::api::{Problem, Severity};

    fn a_problem(message: &str, remedy: &str) -> Problem {
        Problem {
            kind: "held".to_owned(),
            severity: Severity::Warning,
            message: message.to_owned(),
            remedy: remedy.to_owned(),
            functions: Vec::new(),
        }
    }

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
    fn problems_stand_first_with_what_to_do_and_ready_is_not_green_beside_them() {
        let problem = a_problem("orders is held: AccessDenied\nstate        fine", "allow it");
        let text = table(&Summary { problems: vec![problem.clone(), problem], ..summary() }, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "problems     orders is held: AccessDenied\\nstate        fine");
        assert_eq!((lines[2], lines[4]), ("             -> allow it", "             -> allow it"));
        assert!(lines[5].starts_with("stored"), "{text}");
        let problem = a_problem("no", "yes");
        let coloured = table(&Summary { problems: vec![problem], ..summary() }, true);
        assert!(coloured.contains("\x1b[33mready") && !coloured.contains("\x1b[32m"), "{coloured}");
    }

    #[test]
    fn daemons_that_share_the_outbox_are_listed() {
        let member = FleetMember {
            name: "a".into(),
            version: "1".into(),
            this: true,
            answers: true,
            functions: 1,
            ..Default::default()
        };
        let other = FleetMember { name: "b".into(), draining: true, beat_age_seconds: 3.2, ..member.clone() };
        let fleet = Fleet { members: vec![member, FleetMember { this: false, answers: false, ..other }], unowned: 2 };
        let text = table(&Summary { fleet: Some(fleet), ..summary() }, false);
        assert!(text.contains("daemons      a (this one): 1 function\n               version 1, since"), "{text}");
        assert!(text.contains("\n             b, draining, no answer: 1 function\n"), "{text}");
        assert!(text.contains("beat 3 s ago\n             2 functions without a daemon\n"), "{text}");
    }

    #[test]
    fn json_is_what_the_daemon_said() {
        let back: Summary = serde_json::from_str(&shown(&summary(), true, true).unwrap()).unwrap();
        assert_eq!(back, summary());
    }
}
