//! `sendoff healthcheck`: a probe for images that have no shell and no curl.

use clap::Args;
use http::Method;

use super::admin_client::{Daemon, words};
use super::{Exit, Failure, print};
use crate::config::Environment;

/// Ask the daemon whether it is ready
///
/// Exits with 0 if it is, 1 if it is not, 69 if it does not answer.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Ask only whether it lives: /livez instead of /readyz
    #[arg(long)]
    live: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let client = options.daemon.client(environment)?;
    let path = if options.live { "/livez" } else { "/readyz" };
    let (status, body) = super::runtime()?.block_on(client.ask(Method::GET, path, None))?;
    let said = words(status, &body);
    if status.is_success() { print(&format!("{said}\n")) } else { Err(Failure::saying(Exit::Failed, said)) }
}
