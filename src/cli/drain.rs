//! `sendoff drain`: before a stop, let clients go elsewhere and the backlog out.

use std::time::Duration;

use clap::Args;

use super::admin_client::{AdminClient, Daemon};
use super::{Exit, Failure, print};
use crate::admin::status::Summary;
use crate::clock::Clock;
use crate::config::Environment;

/// Between two looks at what is left.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Make the daemon not ready, and wait until it has delivered what it holds
///
/// Load balancers then send clients elsewhere; who comes all the same is served. Dead letters and events with a time ahead
/// are not waited for. Exits with 0 once nothing is left, 1 if the time is up before: what is left stays on disk.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// How long to wait, as "20s"; 0s does not wait
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Make it ready again instead
    #[arg(long, conflicts_with = "timeout")]
    undo: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let client = options.daemon.client(environment)?;
    super::runtime()?.block_on(async {
        if options.undo {
            client.delete("/v1/drain").await?;
            return print("ready again\n");
        }
        client.put("/v1/drain").await?;
        until_empty(&client, options.timeout).await
    })
}

async fn until_empty(client: &AdminClient, timeout: Duration) -> Result<(), Failure> {
    let clock = Clock::system();
    let until = clock.now().plus(timeout);
    loop {
        let summary: Summary = client.value("/v1/status").await?;
        let left = summary.outbox.ready + summary.outbox.waiting;
        if left == 0 {
            return print("drained: no event is waiting for delivery\n");
        }
        if clock.now() >= until {
            let why = format!("{left} events still wait for delivery; they stay on disk for the next start");
            return Err(Failure::saying(Exit::Failed, why));
        }
        clock.sleep(LOOK_EVERY).await;
    }
}
