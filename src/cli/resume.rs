//! `sendoff resume`.

use clap::Args;

use super::admin_client::{Ask, Asker, Daemon, lane_path};
use super::{Failure, print};
use crate::config::Environment;

/// Attempt a paused function's events again
///
/// A pause of Lambda itself, or a held lane, ends by itself and needs no resuming.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// The function, as `sendoff functions` lists it
    function: String,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let asker = Asker::new(&options.daemon, environment)?;
    asker.ask(&Ask::Post(lane_path(&options.function, "resume")))?;
    print(&format!("{} is resumed\n", options.function))
}
