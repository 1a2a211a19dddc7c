//! `sendoff serve`: the daemon in the foreground.

use clap::Args;

use super::{ConfigOptions, Exit, Failure};
use crate::config::Environment;
use crate::{daemon, telemetry};

/// Run the daemon in the foreground until SIGTERM or SIGINT
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub(super) config: ConfigOptions,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let config = options.config.load(environment)?.config;
    telemetry::install(&config.log).map_err(|error| Failure::new(Exit::Internal, error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Unavailable, anyhow::Error::new(error).context("cannot start threads")))?;
    runtime.block_on(daemon::run(config)).map_err(|error| {
        let exit = match error {
            daemon::Error::Unavailable { .. } => Exit::Unavailable,
            daemon::Error::Internal { .. } => Exit::Internal,
        };
        Failure::new(exit, error)
    })
}
