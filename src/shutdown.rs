//! Ordered shutdown: signals, phases, and the cancellation token of each phase.

use std::task::Poll;
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

/// Signals that mean something to other daemons, or to whoever mistypes a number, and would end a process that does not catch them.
/// SIGXFSZ (a file beyond the limit of `ulimit -f`) is among them, so that the write fails with an error that can be logged.
const MEANINGLESS: [(rustix::process::Signal, &str); 9] = [
    (rustix::process::Signal::USR1, "SIGUSR1"),
    (rustix::process::Signal::USR2, "SIGUSR2"),
    (rustix::process::Signal::ALARM, "SIGALRM"),
    (rustix::process::Signal::VTALARM, "SIGVTALRM"),
    (rustix::process::Signal::PROF, "SIGPROF"),
    (rustix::process::Signal::IO, "SIGIO"),
    (rustix::process::Signal::POWER, "SIGPWR"),
    (rustix::process::Signal::STKFLT, "SIGSTKFLT"),
    (rustix::process::Signal::XFSZ, "SIGXFSZ"),
];

/// Catches SIGTERM, SIGINT and SIGQUIT from its creation on. Before that, each of them ends the process at once.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    meaningless: Vec<(Signal, &'static str)>,
}

impl Signals {
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            meaningless: Vec::new(),
        })
    }

    /// The same for a daemon, which no other signal ends by accident.
    pub fn catch_all() -> std::io::Result<Self> {
        let caught =
            MEANINGLESS.into_iter().map(|(number, name)| Ok((signal(SignalKind::from_raw(number.as_raw()))?, name)));
        Ok(Self { meaningless: caught.collect::<std::io::Result<_>>()?, ..Self::catch()? })
    }

    /// Waits for the next of those that stop; names the one that came.
    pub async fn next(&mut self) -> &'static str {
        loop {
            let name = tokio::select! {
                biased;
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.quit.recv() => return "SIGQUIT",
                name = any(&mut self.meaningless) => name,
            };
            tracing::info!(
                signal = name,
                "ignored: SIGTERM, SIGINT and SIGQUIT stop sendoff, and SIGHUP reloads its configuration"
            );
        }
    }
}

/// The name of the next that comes; never returns where there is none.
async fn any(signals: &mut [(Signal, &'static str)]) -> &'static str {
    std::future::poll_fn(|cx| {
        let came = signals.iter_mut().find_map(|(signal, name)| signal.poll_recv(cx).is_ready().then_some(*name));
        came.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Waits for SIGTERM, SIGINT or SIGQUIT; names the one that came.
pub async fn requested() -> std::io::Result<&'static str> {
    Ok(Signals::catch()?.next().await)
}
