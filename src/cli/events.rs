//! `sendoff events`: those that a daemon stores.

use clap::{Args, Subcommand};
use comfy_table::Table;
use serde_json::Value;

use super::admin_client::{Ask, Asker, Listing, One, query, text};
use super::send::percent;
use super::{Failure, print, table};
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
        listing: Listing,
        /// Only this function's
        #[arg(long)]
        function: Option<String>,
        /// Only those in this state: ready, waiting, scheduled or buried
        #[arg(long)]
        state: Option<String>,
    },
    /// Show one as JSON
    Show {
        #[command(flatten)]
        event: One,
        /// With its payload, as base64
        #[arg(long)]
        payload: bool,
    },
    /// Remove one that waits, without delivering it
    Cancel {
        #[command(flatten)]
        event: One,
        /// Keep its idempotency key: the same key sent again is then a duplicate and is not stored
        #[arg(long)]
        keep_keys: bool,
    },
    /// Make one that waits due now
    Attempt(One),
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    match options.command {
        Command::List { listing: Listing { daemon, limit, json }, function, state } => {
            let asker = Asker::new(&daemon, environment)?;
            let events = collect(&asker, function.as_deref(), state.as_deref(), limit)?;
            if json {
                return events.iter().try_for_each(|event| print(&format!("{event}\n")));
            }
            print(&table::lines(listed(&events)))
        }
        Command::Show { event: One { daemon, id }, payload } => {
            let path = format!("{}{}", path(&id), query(&[("payload", payload.then_some("true"))]));
            let event = Asker::new(&daemon, environment)?.ask(&Ask::Get(path))?;
            print(&format!("{event:#}\n"))
        }
        Command::Cancel { event: One { daemon, id }, keep_keys } => {
            let path = format!("{}{}", path(&id), query(&[("keep_keys", keep_keys.then_some("true"))]));
            Asker::new(&daemon, environment)?.ask(&Ask::Delete(path))?;
            print(&format!("{id} is cancelled\n"))
        }
        Command::Attempt(One { daemon, id }) => {
            Asker::new(&daemon, environment)?.ask(&Ask::Post(format!("{}/attempt", path(&id))))?;
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

fn listed(events: &[Value]) -> Table {
    let mut table = table::headed(&["EVENT", "FUNCTION", "STATE", "ACCEPTED", "DUE", "ATTEMPTS", "LAST"]);
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
