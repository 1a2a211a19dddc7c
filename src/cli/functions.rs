//! `sendoff functions`: the lanes of a daemon.

use clap::Args;
use comfy_table::Table;
use serde_json::Value;

use super::admin_client::{Ask, Asker, plain, text};
use super::dead_letters::Daemon;
use super::{Failure, print};
use crate::config::Environment;

/// List the functions that have events: how many, how old, how fast, and what holds them
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let answer = Asker::new(options.daemon, environment)?.ask(&Ask::Get("/v1/functions".to_owned()))?;
    let functions = answer["functions"].as_array().map_or(&[][..], Vec::as_slice);
    if options.json {
        return functions.iter().try_for_each(|function| print(&format!("{function}\n")));
    }
    print(&plain(table(functions)))
}

fn table(functions: &[Value]) -> Table {
    let mut table = Table::new();
    table.set_header(["FUNCTION", "DEPTH", "OLDEST", "IN FLIGHT", "LIMIT", "BURIED", "STATE"]);
    for function in functions {
        let age = function["oldest_age_seconds"].as_f64().map_or_else(|| "-".to_owned(), |age| format!("{age:.0}s"));
        let held = &function["held"];
        let state = match (function["paused"].as_bool(), held.is_null()) {
            (Some(true), _) => "paused".to_owned(),
            (_, true) => "open".to_owned(),
            (_, false) => format!("{} until {}: {}", text(&held["kind"]), text(&held["until"]), text(&held["reason"])),
        };
        let cell = |name: &str| text(&function[name]);
        table.add_row([cell("function"), cell("depth"), age, cell("in_flight"), cell("limit"), cell("buried"), state]);
    }
    table
}
