//! `sendoff hand-off`: empties the state directory of a daemon that no longer runs.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{ConfigOptions, Exit, Failure, out};
use crate::clock::Clock;
use crate::config::Environment;
use crate::config::handoff::target;
use crate::daemon::{self, handing};
use crate::handoff::send::{Progress, Sender, Summary, Until};
use crate::metrics::Metrics;
use crate::outbox::{OpenError, Opened};
use crate::plural::{agree, count};
use crate::{shutdown, telemetry};

const EXAMPLES: &str = "\
Examples:
  sendoff hand-off --standalone --state-dir /mnt/orphaned --to http://sendoff.sendoff.svc:9477
  sendoff hand-off --standalone --config /etc/sendoff/sendoff.toml --timeout 10m";

/// Hand the events of a state directory over to another sendoff, or to a queue
///
/// For a directory that no daemon uses any more, such as the volume of a pod that will not come back. Region and account
/// must be those of the daemon that used it. Exits with 0 when no event is left, and with 1 otherwise. Events that are left
/// stay in the directory, and the command may be repeated.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    config: ConfigOptions,
    /// Open the state directory in this process. A running daemon hands over by `sendoff drain --hand-off`
    #[arg(long, required = true)]
    standalone: bool,
    /// Another sendoff's ingest listener, or an SQS queue, instead of handoff.to. May be repeated
    #[arg(long, value_name = "URL")]
    to: Vec<String>,
    /// The longest time, for example "10m"
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let Options { config, standalone: _, to, timeout } = options;
    let mut loaded = config.load(environment)?;
    let installed = telemetry::install(&loaded.config.log);
    let (_level, _telemetry) = installed.map_err(|error| Failure::new(Exit::Internal, error))?;
    if !to.is_empty() {
        let targets = to.iter().map(|text| target(text).map_err(|why| format!("--to: {why}")));
        let targets: Result<Vec<_>, _> = targets.collect();
        loaded.config.handoff.to = targets.map_err(|why| Failure::saying(Exit::Usage, why))?;
    }
    if loaded.config.handoff.to.is_empty() {
        return Err(Failure::saying(Exit::Usage, "there is no target: name one by --to, or set handoff.to"));
    }
    super::again::without_own_endpoints(&loaded.config);
    super::runtime()?.block_on(hand_over(loaded.config, timeout))
}

async fn hand_over(config: crate::config::Config, timeout: Duration) -> Result<(), Failure> {
    let (clock, metrics) = (Clock::system(), Arc::new(Metrics::new().map_err(|e| Failure::new(Exit::Internal, e))?));
    let failed = |error: daemon::Error| match error {
        daemon::Error::Store(OpenError::Locked { path, .. }) => {
            let why = format!("a daemon uses {path}: run `sendoff drain --hand-off` instead");
            Failure::saying(Exit::Unavailable, why)
        }
        error @ (daemon::Error::Store(_)
        | daemon::Error::Bind { .. }
        | daemon::Error::File(_)
        | daemon::Error::Closing(_)
        | daemon::Error::Aws(_)
        | daemon::Error::HandOff(_)
        | daemon::Error::System { .. }) => Failure::new(super::serve::exit_of(&error), error),
    };
    let (region, sqs) = daemon::place(&config, &clock).await.map_err(failed)?;
    let home = config.ingest.home.clone().or_region(region.as_deref());
    let targets = handing::targets(&config.handoff, &handing::party(&clock, &home), &sqs, &clock).map_err(failed)?;
    let Opened { outbox, upkeep, closing } = daemon::open(&config, &clock, &metrics).await.map_err(failed)?;
    let mut keeping = tokio::task::JoinSet::new();
    keeping.spawn(upkeep);
    let past = daemon::history::alone(&config, &outbox, (&clock, &metrics), &mut keeping).await;
    let sender = Sender::new(outbox, targets, config.handoff.keys, clock.clone(), metrics).noting(past.clone());
    out::line(format!("handing over to {}", sender.names()))?;
    let until = Until::default();
    until.last.cancel();
    let over = until.over.clone();
    let summary = {
        let run = sender.run(until, Progress::default());
        tokio::pin!(run);
        tokio::select! {
            biased;
            summary = &mut run => summary,
            () = stopped(&clock, timeout, &over) => run.await,
        }
    };
    drop(sender);
    let (closed, ()) = tokio::join!(closing, past.written());
    drop(keeping);
    closed.map_err(|error| Failure::new(Exit::Internal, error))?;
    said(&summary.map_err(|error| Failure::new(Exit::Internal, error))?)
}

/// Returns after the time, or at a signal, with the run told to end.
async fn stopped(clock: &Clock, timeout: Duration, over: &CancellationToken) {
    tokio::select! {
        biased;
        _ = shutdown::requested() => {}
        () = clock.sleep(timeout) => {}
    }
    over.cancel();
}

fn said(summary: &Summary) -> Result<(), Failure> {
    let Summary { events, keys, left, refused, functions, why } = summary;
    let done = format!("{} and {} handed over", count(*events, "event"), count(*keys, "key"));
    if *left == 0 {
        return out::line(format!("{done}, no event is left"));
    }
    out::line(done)?;
    let left = agree(*left, "event is", "events are");
    let refused = if *refused == 0 { String::new() } else { format!(", {refused} of them refused") };
    let why = why.as_deref().unwrap_or("the time was over");
    Err(Failure::saying(Exit::Failed, format!("{left} left in the state directory{refused} ({functions}): {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_a_failure_and_says_why() {
        assert!(said(&Summary { events: 3, ..Summary::default() }).is_ok());
        let why = Some("the outbox is full".to_owned());
        let failure = said(&Summary {
            events: 3,
            left: 2,
            refused: 1,
            functions: "orders 2".to_owned(),
            why,
            ..Summary::default()
        })
        .unwrap_err();
        let expected = "2 events are left in the state directory, 1 of them refused (orders 2): the outbox is full";
        assert_eq!((failure.exit, failure.to_string().as_str()), (Exit::Failed, expected));
    }
}
