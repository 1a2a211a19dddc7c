//! `sendoff pause` and `sendoff resume`.

use clap::Args;

use super::admin_client::{Ask, Asker, Daemon, lane_path};
use super::{Failure, print};
use crate::config::Environment;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// The function, as `sendoff functions` lists it
    function: String,
}

pub fn pause(options: Options, environment: &Environment) -> Result<(), Failure> {
    ask(options, environment, "pause", "paused")
}

pub fn resume(options: Options, environment: &Environment) -> Result<(), Failure> {
    ask(options, environment, "resume", "resumed")
}

fn ask(options: Options, environment: &Environment, what: &str, done: &str) -> Result<(), Failure> {
    let asker = Asker::new(&options.daemon, environment)?;
    asker.ask(&Ask::Post(lane_path(&options.function, what)))?;
    print(&format!("{} is {done}\n", options.function))
}
