//! `sendoff drain`: before a stop, sends clients elsewhere and delivers the backlog.

use std::time::Duration;

use clap::Args;
use http::Method;

use super::admin_client::{AdminClient, Daemon};
use super::{Exit, Failure, out};
use crate::admin::api::{OutboxCounts, Summary};
use crate::clock::Clock;
use crate::config::Environment;
use crate::plural::agree;
use crate::shutdown::Signals;

/// The pause between two checks of what is left.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What holds after a drain that did not end.
const STAYS: &str = "the daemon stays not ready, and `sendoff drain --undo` makes it ready again";

const EXAMPLES: &str = "\
Examples:
  sendoff drain --timeout 60s
  sendoff drain --hand-off --timeout 45s
  sendoff drain --undo";

/// Make the daemon not ready, and wait until it has delivered its events
///
/// Load balancers then send clients elsewhere. Requests that still arrive are served. The command does not wait for
/// dead letters and for events that are scheduled for later. It exits with 0 when no event is left, and with 1 after
/// the timeout. Events that are left stay on disk.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// How long to wait, for example "20s". With 0s it does not wait
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Also hand events over to the targets of `handoff.to`, and wait until the store is empty
    ///
    /// Use it where the disk ends with the task, for example in a preStop hook. The hand-off goes on after the command
    /// has ended, until the daemon stops or --undo ends it.
    #[arg(long)]
    hand_off: bool,
    /// Make the daemon ready again instead
    #[arg(long, conflicts_with_all = ["timeout", "hand_off"])]
    undo: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let client = options.daemon.client(environment)?;
    super::runtime()?.block_on(async {
        if options.undo {
            client.tell(Method::DELETE, "/v1/drain").await?;
            return out::line("ready again");
        }
        // Before the daemon is told, so that whoever interrupts the drain learns what holds.
        let mut signals = Signals::catch().map_err(|error| Failure::new(Exit::Internal, error))?;
        client.tell(Method::PUT, if options.hand_off { "/v1/drain?hand_off=true" } else { "/v1/drain" }).await?;
        tokio::select! {
            biased;
            done = until_empty(&client, options.timeout, options.hand_off) => done,
            signal = signals.next() => Err(Failure::saying(Exit::Failed, format!("{signal}: no longer waiting; {STAYS}"))),
        }
    })
}

async fn until_empty(client: &AdminClient, timeout: Duration, hand_off: bool) -> Result<(), Failure> {
    let clock = Clock::system();
    let until = clock.now().plus(timeout);
    loop {
        let summary: Summary = client.get("/v1/status").await?;
        let OutboxCounts { events, ready, waiting, .. } = summary.outbox;
        let left = if hand_off { events } else { ready + waiting };
        if left == 0 && hand_off {
            return out::line("drained: no event is left in the store");
        }
        if left == 0 {
            return out::line("drained: no event is waiting for delivery");
        }
        if clock.now() >= until {
            let why = if hand_off {
                let left = agree(left, "event is", "events are");
                format!("{left} still in the store; the hand-off goes on until the daemon stops; {STAYS}")
            } else {
                let left = agree(left, "event still waits", "events still wait");
                format!("{left} for delivery; what is left stays on disk for the next start; {STAYS}")
            };
            return Err(Failure::saying(Exit::Failed, why));
        }
        clock.sleep(LOOK_EVERY).await;
    }
}
