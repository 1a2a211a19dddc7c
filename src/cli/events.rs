//! `sendoff events`: those that a daemon stores.

use clap::{Args, Subcommand};
use comfy_table::Table;
use serde_json::Value;

use super::admin_client::{Ask, Asker, plain, query, text};
use super::dead_letters::Daemon;
use super::send::percent;
use super::{Failure, print};
use crate::config::Environment;

/// Look at stored events, cancel one, or have one attempted now
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List them, by function, state and time of acceptance
    List {
        #[command(flatten)]
        daemon: Daemon,
        /// Only this function's
        #[arg(long)]
        function: Option<String>,
        /// Only those in this state: ready, waiting, scheduled or buried
        #[arg(long)]
        state: Option<String>,
        /// Show so many at most
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one as JSON
    Show {
        #[command(flatten)]
        daemon: Daemon,
        /// The event's id
        id: String,
        /// With its payload, as base64
        #[arg(long)]
        payload: bool,
    },
    /// Remove one that waits, without delivering it
    Cancel {
        #[command(flatten)]
        daemon: Daemon,
        /// The event's id
        id: String,
    },
    /// Make one that waits due now
    Attempt {
        #[command(flatten)]
        daemon: Daemon,
        /// The event's id
        id: String,
    },
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    match options.command {
        Command::List { daemon, function, state, limit, json } => {
            let asker = Asker::new(daemon, environment)?;
            let events = collect(&asker, function.as_deref(), state.as_deref(), limit)?;
            if json {
                return events.iter().try_for_each(|event| print(&format!("{event}\n")));
            }
            print(&plain(table(&events)))
        }
        Command::Show { daemon, id, payload } => {
            let path = format!("{}{}", path(&id), query(&[("payload", payload.then_some("true"))]));
            let event = Asker::new(daemon, environment)?.ask(&Ask::Get(path))?;
            print(&format!("{event:#}\n"))
        }
        Command::Cancel { daemon, id } => {
            Asker::new(daemon, environment)?.ask(&Ask::Delete(path(&id)))?;
            print(&format!("{id} is cancelled\n"))
        }
        Command::Attempt { daemon, id } => {
            Asker::new(daemon, environment)?.ask(&Ask::Post(format!("{}/attempt", path(&id))))?;
            print(&format!("{id} is due now\n"))
        }
    }
}

fn path(id: &str) -> String {
    format!("/v1/events/{}", percent(id))
}

/// Page by page, up to `limit`.
fn collect(asker: &Asker, function: Option<&str>, state: Option<&str>, limit: usize) -> Result<Vec<Value>, Failure> {
    let mut events = Vec::new();
    let mut after: Option<String> = None;
    while events.len() < limit {
        let left = (limit - events.len()).to_string();
        let filter =
            [("function", function), ("state", state), ("after", after.as_deref()), ("limit", Some(left.as_str()))];
        let page = asker.ask(&Ask::Get(format!("/v1/events{}", query(&filter))))?;
        events.extend(page["events"].as_array().into_iter().flatten().cloned());
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    Ok(events)
}

fn table(events: &[Value]) -> Table {
    let mut table = Table::new();
    table.set_header(["EVENT", "FUNCTION", "STATE", "ACCEPTED", "DUE", "ATTEMPTS", "LAST"]);
    for event in events {
        let cell = |name: &str| text(&event[name]);
        table.add_row([
            cell("event_id"),
            cell("function"),
            if event["in_flight"] == true { "in flight".to_owned() } else { cell("state") },
            cell("accepted_at"),
            cell("due"),
            cell("attempts"),
            text(&event["last"]["code"]),
        ]);
    }
    table
}
