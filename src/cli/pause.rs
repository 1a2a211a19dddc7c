//! `sendoff pause`.

use clap::Args;

use super::admin_client::{Ask, Asker, Daemon, lane_path};
use super::{Failure, print};
use crate::config::Environment;

/// Stop attempting a function's events until they are resumed
///
/// They are accepted and kept as before, and still expire. Holds over restarts. What is in flight is finished.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// The function, as `sendoff functions` lists it
    function: String,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let asker = Asker::new(&options.daemon, environment)?;
    asker.ask(&Ask::Post(lane_path(&options.function, "pause")))?;
    print(&format!("{} is paused\n", options.function))
}
