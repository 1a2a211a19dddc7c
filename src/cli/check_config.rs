//! `sendoff check-config`: the same reading and checking as `serve`, and nothing else.

use clap::Args;

use super::{ConfigOptions, Failure, print};
use crate::config::Environment;

/// Check the configuration, naming all that is wrong with it
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    config: ConfigOptions,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let loaded = options.config.load(environment)?;
    let mut said = "the configuration has no problems\n".to_owned();
    for variable in loaded.config.ignored_endpoints {
        said += &format!("note: ${variable} names sendoff's own listener, so sendoff itself does not follow it\n");
    }
    print(&said)
}
