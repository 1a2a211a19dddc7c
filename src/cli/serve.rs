//! `sendoff serve`: the daemon in the foreground.

use clap::Args;

use super::{ConfigOptions, Exit, Failure};
use crate::config::Environment;
use crate::daemon::{self, Ended};
use crate::outbox::OpenError;
use crate::plural::agree;
use crate::reload::Reload;
use crate::telemetry;

/// Run the daemon in the foreground until SIGTERM, SIGINT or SIGQUIT
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub(super) config: ConfigOptions,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let loaded = options.config.clone().load(environment)?;
    super::again::without_own_endpoints(&loaded.config);
    // Kept to the end, so that the last spans are exported.
    let (level, _telemetry) =
        telemetry::install(&loaded.config.log).map_err(|error| Failure::new(Exit::Internal, error))?;
    if loaded.config.log.otlp_endpoint.is_some() && !cfg!(feature = "otlp") {
        tracing::warn!(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but this build exports no spans: build it with --features otlp"
        );
    }
    let outside = super::show_config::outside(&loaded.config, environment);
    let environment = environment.clone();
    let reload = Reload::new(&loaded, level, move || options.config.clone().load(&environment)).with_outside(outside);
    let runtime = super::runtime()?;
    let ended = runtime.block_on(daemon::run(loaded.config, reload));
    // Do not wait for threads that hang, for example while opening a store on a disk that does not answer.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::Drained | Ended::CutOff | Ended::AtOnce) => Ok(()),
        Ok(Ended::LeftBehind(left)) => {
            let left = agree(left, "event was", "events were");
            Err(Failure::saying(Exit::Failed, format!("{left} not handed over and stay in the state directory")))
        }
        Ok(Ended::Poisoned) => Err(Failure::saying(
            Exit::Internal,
            "a write to the outbox failed: restart sendoff, which recovers every accepted event",
        )),
        Ok(Ended::Failed(stage)) => Err(Failure::saying(
            Exit::Internal,
            format!("the stage {stage:?} of the daemon has ended; read the log for the reason, and restart sendoff"),
        )),
        Err(error) => Err(Failure::new(exit_of(&error), error)),
    }
}

/// The exit code of a daemon that cannot run.
pub(super) fn exit_of(error: &daemon::Error) -> Exit {
    match error {
        daemon::Error::Bind { .. } => Exit::Unavailable,
        daemon::Error::Store(OpenError::Locked { .. } | OpenError::Io { .. }) => Exit::Unavailable,
        daemon::Error::Store(OpenError::Newer { .. } | OpenError::Damaged { .. }) => Exit::Internal,
        daemon::Error::Aws(_) | daemon::Error::File(_) | daemon::Error::HandOff(_) => Exit::Configuration,
        daemon::Error::Closing(_) | daemon::Error::System { .. } => Exit::Internal,
    }
}
