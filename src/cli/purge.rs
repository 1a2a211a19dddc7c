//! `sendoff purge`: removes events that wait, after saying how many.

use std::io::{IsTerminal, Write};

use clap::Args;

use super::admin_client::{Ask, Asker, Daemon, lane_path, query, text};
use super::{Exit, Failure, print};
use crate::config::Environment;

/// Remove a function's events that wait, without delivering them
///
/// Says first how many they are and asks. What is being attempted, and dead letters, stay.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// The function, as `sendoff functions` lists it
    function: String,
    /// Only events in this state: ready, waiting or scheduled
    #[arg(long)]
    state: Option<String>,
    /// Only events accepted before this time, as in 2026-11-23T14:00:00Z
    #[arg(long, value_name = "TIME")]
    accepted_before: Option<String>,
    /// Keep the idempotency keys of the events: the same key sent again is then a duplicate and is not stored
    #[arg(long)]
    keep_keys: bool,
    /// Only say how many
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let path = |dry_run| {
        let filter = [
            ("state", options.state.as_deref()),
            ("accepted_before", options.accepted_before.as_deref()),
            ("dry_run", Some(dry_run)),
            ("keep_keys", options.keep_keys.then_some("true")),
        ];
        Ask::Post(format!("{}{}", lane_path(&options.function, "purge"), query(&filter)))
    };
    let asker = Asker::new(&options.daemon, environment)?;
    let counted = asker.ask(&path("true"))?;
    let said =
        format!("{} events of {}, {} bytes", text(&counted["events"]), options.function, text(&counted["bytes"]));
    if options.dry_run || counted["events"] == 0 {
        return print(&format!("{said}\n"));
    }
    if !options.yes && !agreed(&format!("purge {said}? [y/N] "))? {
        return Err(Failure::saying(Exit::Failed, "nothing is purged"));
    }
    let purged = asker.ask(&path("false"))?;
    print(&format!("{} events are purged\n", text(&purged["events"])))
}

/// Whether a person says yes; nobody to ask is an error, not a yes.
fn agreed(question: &str) -> Result<bool, Failure> {
    let failed = |error| Failure::new(Exit::Failed, anyhow::Error::new(error).context("cannot ask"));
    if !std::io::stdin().is_terminal() {
        return Err(Failure::saying(Exit::Failed, "nobody to ask: repeat with --yes, or with --dry-run"));
    }
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
