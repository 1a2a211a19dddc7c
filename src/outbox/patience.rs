//! Waits for a store that is away.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Error, Lease, Outbox, Settlement, Unsettled};
use crate::clock::Clock;

/// Settles, and retries while the store is away. Returns the leases that were no longer held. If told to give up, returns
/// `None` and leaves the events leased: they return with the next start, or with the lane's next owner.
pub async fn settle<O: Outbox>(
    outbox: &O,
    done: Vec<(Lease, Settlement)>,
    clock: &Clock,
    give_up: &CancellationToken,
) -> Result<Option<Vec<Lease>>, Error> {
    let mut left = done;
    loop {
        match outbox.settle(left).await {
            Ok(lost) => {
                for Lease { id, .. } in &lost {
                    tracing::warn!(
                        event_id = %id,
                        "a settlement came too late: the event was no longer leased by this daemon, so it may be attempted twice"
                    );
                }
                return Ok(Some(lost));
            }
            Err(Unsettled { why: Error::Away { why, retry_after }, done }) => {
                left = done;
                if !wait(retry_after, clock, give_up).await {
                    let events = left.len();
                    tracing::warn!(why, events, "the outbox is away: what became of these events is not written");
                    return Ok(None);
                }
            }
            Err(Unsettled { why, .. }) => return Err(why),
        }
    }
}

/// Waits before the next try. Returns false if told to give up meanwhile.
pub async fn wait(retry_after: Duration, clock: &Clock, give_up: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = give_up.cancelled() => false,
        () = clock.sleep(retry_after) => true,
    }
}
