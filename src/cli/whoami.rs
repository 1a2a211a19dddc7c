//! `sendoff whoami`: who the daemon takes this caller for.

use clap::Args;

use super::admin_client::{Asker, Daemon};
use super::{Failure, out};
use crate::admin::api::Whoami;
use crate::config::Environment;

/// Show as whom the daemon knows you, and what you may do
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let me: Whoami = Asker::new(&options.daemon, environment)?.get("/v1/whoami")?;
    if options.json { out::json(&me) } else { out::line(in_words(&me)) }
}

fn in_words(me: &Whoami) -> String {
    let Whoami { name, proof, rights, read_only, host, version, .. } = me;
    let by = if proof == "none" { String::new() } else { format!(" by {proof}") };
    let read_only = if *read_only { "; it refuses every change (auth.read_only)" } else { "" };
    format!("{name}{by}, with the rights {}, on {host} (sendoff {version}){read_only}", rights.join(", "))
}
