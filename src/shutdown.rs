//! Stopping in order: signals, phases, and the tokens that each part listens to.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What tells the parts to stop, from the door inwards. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Cancelled first: accept no further connection; finish the requests already read.
    pub accepting: CancellationToken,
    /// Cancelled next: take no further lease.
    pub leasing: CancellationToken,
    /// Cancelled when the grace is over: give up attempts in flight and release their events, uncharged; end connections.
    pub working: CancellationToken,
}

impl Stop {
    /// Stops in order and waits for each part; true if all was finished within `grace`.
    pub async fn drain(&self, door: &TaskTracker, stages: &TaskTracker, grace: Duration) -> bool {
        door.close();
        stages.close();
        self.accepting.cancel();
        self.leasing.cancel();
        let in_time = tokio::time::timeout(grace, async {
            door.wait().await;
            stages.wait().await;
        })
        .await
        .is_ok();
        self.working.cancel();
        door.wait().await;
        stages.wait().await;
        in_time
    }
}

/// SIGTERM and SIGINT, caught from the moment this exists: until then either ends the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them; names the one that came.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Waits for SIGTERM or SIGINT; names the one that came.
pub async fn requested() -> std::io::Result<&'static str> {
    Ok(Signals::catch()?.next().await)
}
