//! `sendoff healthcheck`: a probe for images without a shell and curl.

use clap::Args;
use http::Method;

use super::admin_client::{Daemon, words};
use super::{Exit, Failure, out};
use crate::config::Environment;

const EXAMPLES: &str = "\
Examples:
  sendoff healthcheck
  sendoff healthcheck --live --admin http://127.0.0.1:9478";

/// Ask the daemon whether it is ready
///
/// Exits with 0 if it is, 1 if it is not, 69 if it does not answer.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
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
    let answered = super::runtime()?.block_on(client.ask(Method::GET, path, None))?;
    if answered.status.is_success() {
        return out::line(words(answered.status, &answered.body));
    }
    Err(Failure::saying(Exit::Failed, client.refusal(&answered).message))
}
