//! `sendoff actions`: what operators did.

use clap::Args;

use super::admin_client::Daemon;
use super::table::{Rows, or_dash};
use super::{Exit, Failure, out};
use crate::admin::api::{Action, ActionPage};
use crate::config::Environment;
use crate::visible::visible_json;

const EXAMPLES: &str = "\
Examples:
  sendoff actions
  sendoff actions --limit 1000 --json | jq 'select(.result == \"denied\")'";

/// List the latest changes and views of payloads by operators
///
/// The daemon keeps the latest 1000 since its start. Its log has all of them, with the target sendoff::audit.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Show at most this many, the latest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let client = options.daemon.client(environment)?;
    let path = format!("/v1/actions?limit={}", options.limit);
    let ActionPage { actions } = super::runtime()?.block_on(client.get(&path))?;
    if !options.json {
        return out::print(&listed(&actions).lines());
    }
    for action in &actions {
        let line = serde_json::to_string(action).map_err(|error| Failure::new(Exit::Internal, error))?;
        out::line(visible_json(&line))?;
    }
    Ok(())
}

fn listed(actions: &[Action]) -> Rows {
    let mut rows = Rows::headed(&["AT", "OPERATOR", "PROOF", "PEER", "ACTION", "OBJECT", "EVENTS", "RESULT"]);
    for action in actions {
        let object = [action.object.as_str(), action.filter.as_str()];
        let object: Vec<_> = object.into_iter().filter(|text| !text.is_empty()).collect();
        rows.add([
            action.at.clone(),
            action.operator.clone(),
            action.proof.clone(),
            action.peer.clone(),
            action.action.clone(),
            or_dash((!object.is_empty()).then(|| object.join(" ?"))),
            or_dash(action.events),
            action.status.map_or_else(|| action.result.clone(), |status| format!("{} ({status})", action.result)),
        ]);
    }
    rows
}
