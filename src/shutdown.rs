//! Ordered shutdown: signals, phases, and the cancellation token of each phase.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells the parts to stop, from the listeners inwards. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Cancelled first: accept no more connections, and finish the requests already read.
    pub accepting: CancellationToken,
    /// Cancelled second: take no more leases.
    pub leasing: CancellationToken,
    /// Cancelled when the grace period is over: abandon the attempts in flight, release their events uncharged, and end
    /// connections.
    pub working: CancellationToken,
}

impl Stop {
    /// Stops each phase in order and waits for it. Returns whether all ended within `grace`.
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

/// Catches SIGTERM and SIGINT from its creation on. Before that, either signal ends the process at once.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Waits for SIGTERM or SIGINT and returns its name.
pub async fn requested() -> std::io::Result<&'static str> {
    Ok(Signals::catch()?.next().await)
}
