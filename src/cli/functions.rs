//! `sendoff functions`: the functions of a daemon, with their lanes.

use clap::Args;

use super::admin_client::{AdminClient, Daemon};
use super::table::{Rows, or_dash};
use super::watch::Watch;
use super::{Exit, Failure, out};
use crate::admin::api::{FunctionPage, FunctionView};
use crate::config::Environment;
use crate::visible::visible_json;

const EXAMPLES: &str = "\
Examples:
  sendoff functions
  sendoff functions --watch
  sendoff functions --json | jq 'select(.held)'";

/// List the functions that have events: how many, how old, and what holds them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    watch: Watch,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let client = options.daemon.client(environment)?;
    super::runtime()?.block_on(async {
        if options.watch.watch {
            return options.watch.show(options.json, async || look(&client, options.json).await).await;
        }
        out::painted(&look(&client, options.json).await?)
    })
}

async fn look(client: &AdminClient, json: bool) -> Result<String, Failure> {
    let FunctionPage { functions } = client.get("/v1/functions").await?;
    if !json {
        return Ok(listed(&functions).lines());
    }
    functions.iter().try_fold(String::new(), |lines, function| {
        let line = serde_json::to_string(function).map_err(|error| Failure::new(Exit::Internal, error))?;
        Ok(lines + &visible_json(&line) + "\n")
    })
}

fn listed(functions: &[FunctionView]) -> Rows {
    let mut rows =
        Rows::headed(&["FUNCTION", "DEPTH", "OLDEST", "IN FLIGHT", "LIMIT", "BURIED", "OK/MIN", "FAILED/MIN", "STATE"]);
    for function in functions {
        rows.add([
            function.function.clone(),
            function.depth.to_string(),
            or_dash(function.oldest_age_seconds.map(|age| format!("{age:.0}s"))),
            function.in_flight.to_string(),
            or_dash(function.limit),
            function.buried.to_string(),
            function.delivered_per_minute.to_string(),
            function.failed_per_minute.to_string(),
            state(function),
        ]);
    }
    rows
}

fn state(function: &FunctionView) -> String {
    match (function.paused, &function.held) {
        (true, _) => "paused".to_owned(),
        (false, None) => match (&function.failing_since, &function.last_error) {
            (Some(since), Some(error)) => format!("failing since {since}: {}", error.message),
            (Some(since), None) => format!("failing since {since}"),
            (None, _) => "open".to_owned(),
        },
        (false, Some(held)) => format!("{} until {}: {}", held.kind, held.until, held.reason),
    }
}
