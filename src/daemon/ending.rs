//! Ends the daemon within the grace period and two seconds, whatever hangs.

use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handing::{self, Handing};
use super::listeners::UnixSockets;
use super::vital::Vital;
use super::{Ended, Error, Store};
use crate::admin::{Admin, Readiness};
use crate::notify;
use crate::outbox::{self, Health, Outbox};
use crate::past::Past;
use crate::shutdown::{Signals, Stop};

/// How long callers may still get a 503 after the outbox is poisoned or a stage has ended.
const FAILED_GRACE: Duration = Duration::from_secs(2);

/// After the grace period: how long aborted tasks may take to end, ...
const CUT_OFF_PATIENCE: Duration = Duration::from_millis(500);

/// ... how long the admin listener may take for its last answers, ...
const ADMIN_PATIENCE: Duration = Duration::from_millis(250);

/// ... and how long the outbox may take to close. After that the process ends as in a crash, which loses nothing.
const CLOSE_PATIENCE: Duration = Duration::from_millis(750);

/// When a thread of its own ends the process, in case even the runtime hangs.
const LAST_WORD_AFTER: Duration = Duration::from_millis(1_800);

/// sysexits.h: EX_SOFTWARE.
const EXIT_INTERNAL: i32 = 70;

/// Why a daemon begins to end.
#[derive(Debug, Clone, Copy)]
enum Why {
    Signal(&'static str),
    Poisoned,
    Failed(&'static str),
}

/// The outbox of a running daemon.
pub(super) struct OpenStore {
    pub(super) outbox: Store,
    /// Cancelled before the store is closed, so that its upkeep ends.
    pub(super) closed: CancellationToken,
    pub(super) closing: BoxFuture<'static, Result<(), outbox::Error>>,
}

/// A running daemon.
pub(super) struct Running {
    pub(super) store: OpenStore,
    pub(super) operator: Admin<Store>,
    pub(super) readiness: Readiness,
    pub(super) stop: Stop,
    pub(super) vital: Vital,
    pub(super) door: TaskTracker,
    pub(super) stages: TaskTracker,
    pub(super) admin: AdminParts,
    pub(super) unix: [UnixSockets; 2],
    pub(super) grace: Duration,
    pub(super) handing: Option<Handing>,
    pub(super) past: Past,
}

/// The tasks that serve the operator and the probes.
#[derive(Clone, Default)]
pub(super) struct AdminParts {
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Cancelled to end all connections at once.
    pub(super) cut: CancellationToken,
}

impl Running {
    /// Runs until a signal arrives or a vital part fails, then ends in order. A second signal ends it at once, at any
    /// moment.
    pub(super) async fn until_ended(self, mut signals: Signals) -> Result<Ended, Error> {
        let why = tokio::select! {
            biased;
            signal = signals.next() => Why::Signal(signal),
            _ = self.store.outbox.failed() => Why::Poisoned,
            stage = self.vital.fails() => Why::Failed(stage),
        };
        // If the outbox is poisoned, stages end, too. Then the outbox is the reason.
        let why = match self.store.outbox.health() {
            Health::Poisoned { .. } => Why::Poisoned,
            Health::Well | Health::Away { .. } => why,
        };
        let grace = match why {
            Why::Signal(signal) => {
                self.readiness.not_ready("draining");
                notify::stopping(signal);
                tracing::info!(signal, grace = ?self.grace, "draining: no new requests, no new attempts");
                self.store.outbox.draining();
                self.grace
            }
            Why::Poisoned => {
                self.readiness.not_ready("outbox is poisoned");
                notify::stopping("outbox is poisoned");
                FAILED_GRACE
            }
            Why::Failed(stage) => {
                self.readiness.not_ready("a stage has ended");
                notify::stopping("a stage has ended");
                tracing::error!(stage, "exiting so that a restart brings the stage back, all accepted events are kept");
                FAILED_GRACE
            }
        };
        let within = self.handing.as_ref().and_then(Handing::within).filter(|_| matches!(why, Why::Signal(_)));
        let longest = within.map_or(grace, |within| within.max(grace));
        last_word(longest + LAST_WORD_AFTER, matches!(why, Why::Signal(_)));
        tokio::select! {
            biased;
            signal = signals.next() => {
                tracing::warn!(signal, "second signal: ending at once, the outbox keeps undelivered events");
                Ok(match why {
                    Why::Signal(_) => Ended::AtOnce,
                    Why::Poisoned => Ended::Poisoned,
                    Why::Failed(stage) => Ended::Failed(stage),
                })
            }
            ended = self.end(why, grace, within) => ended,
        }
    }

    async fn end(self, why: Why, grace: Duration, within: Option<Duration>) -> Result<Ended, Error> {
        let Self { store, stop, vital, door, stages, .. } = &self;
        let grace = within.map_or(grace, |within| handing::grace(grace, within));
        let draining = drained(stop, door, stages, grace, store.outbox.failed());
        let (drained, summary) = match self.handing.as_ref().zip(within) {
            Some((handing, within)) => handing.beside(within, draining).await,
            None => (draining.await, None),
        };
        let left = summary.map_or(0, |summary| summary.left);
        if matches!(store.outbox.health(), Health::Poisoned { .. }) {
            return Ok(Ended::Poisoned);
        }
        let ended = match (why, vital.failed()) {
            // Unreachable: the outbox was asked above.
            (Why::Poisoned, _) => Ended::Poisoned,
            (Why::Failed(stage), _) | (Why::Signal(_), Some(stage)) => Ended::Failed(stage),
            (Why::Signal(_), None) if left > 0 => Ended::LeftBehind(left),
            (Why::Signal(_), None) if drained => Ended::Drained,
            (Why::Signal(_), None) => {
                tracing::warn!(
                    "the grace period is over: abandoning the attempts in flight, their events stay in the outbox"
                );
                Ended::CutOff
            }
        };
        let Self { store, operator, admin, unix, past, .. } = self;
        operator.set_outbox(None);
        admin.stop.cancel();
        admin.tasks.close();
        if tokio::time::timeout(ADMIN_PATIENCE, admin.tasks.wait()).await.is_err() {
            admin.cut.cancel();
            drop(tokio::time::timeout(ADMIN_PATIENCE, admin.tasks.wait()).await);
        }
        unix.iter().for_each(UnixSockets::remove);
        store.closed.cancel();
        let closing = async { tokio::join!(store.closing, past.written()) };
        match tokio::time::timeout(CLOSE_PATIENCE, closing).await {
            Ok((closed, ())) => closed.map_err(Error::Closing)?,
            Err(_) => {
                tracing::warn!("closing the outbox takes too long: ending without waiting, the next start recovers it")
            }
        }
        tracing::info!(ended = ?ended, "stopped");
        Ok(ended)
    }
}

/// Drains within `grace`. If the outbox has failed, or fails meanwhile, within [`FAILED_GRACE`] of that: callers get their 503,
/// and a write that never returns is not waited for. Returns whether all parts ended in time.
async fn drained(
    stop: &Stop,
    door: &TaskTracker,
    stages: &TaskTracker,
    grace: Duration,
    failed: impl Future<Output = String>,
) -> bool {
    let failed_long_ago = async {
        failed.await;
        tokio::time::sleep(FAILED_GRACE + CUT_OFF_PATIENCE).await;
    };
    tokio::select! {
        biased;
        in_time = stop.drain(door, stages, grace) => return in_time,
        () = tokio::time::sleep(grace + CUT_OFF_PATIENCE) => {}
        () = failed_long_ago => {}
    }
    tracing::warn!("a task does not stop: ending without it");
    false
}

/// Ends the process after `time`, if nothing else has. sendoff promises to end within the grace period and two seconds,
/// even if something hangs.
fn last_word(time: Duration, was_asked: bool) {
    let exit = move || {
        std::thread::sleep(time);
        tracing::error!("a task hangs: exiting at once, all accepted events are kept");
        std::process::exit(if was_asked { 0 } else { EXIT_INTERNAL });
    };
    // If this thread cannot start, the orderly stop remains.
    drop(std::thread::Builder::new().name("last word".into()).spawn(exit));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const PATIENT: Duration = Duration::from_secs(60);

    /// How long a drain takes whose one request gets its answer `answer` after the drain began, and whether it got it.
    async fn drain(answer: Duration, grace: Duration, failed: impl Future<Output = String>) -> (Duration, bool, bool) {
        let (stop, door, stages, clock) = (Stop::default(), TaskTracker::new(), TaskTracker::new(), Clock::system());
        let answered = door.spawn({
            let accepting = stop.accepting.clone();
            async move {
                accepting.cancelled().await;
                tokio::time::sleep(answer).await;
            }
        });
        let began = clock.instant();
        let in_time = drained(&stop, &door, &stages, grace, failed).await;
        (clock.instant() - began, in_time, answered.is_finished())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_gets_its_503_though_the_outbox_is_poisoned_already() {
        let poisoned = async { "a failed sync".to_owned() };
        let (took, in_time, answered) = drain(Duration::from_millis(1_900), FAILED_GRACE, poisoned).await;
        assert!(answered && in_time && took < FAILED_GRACE, "it took {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_never_returns_is_not_waited_for() {
        let poisoned = async { "a disk that hangs".to_owned() };
        let (took, in_time, answered) = drain(PATIENT, FAILED_GRACE, poisoned).await;
        assert!(!in_time && !answered && took <= FAILED_GRACE + CUT_OFF_PATIENCE, "it took {took:?}");
        let later = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            "while it drains".to_owned()
        };
        let (took, in_time, answered) = drain(PATIENT, PATIENT * 2, later).await;
        assert!(!in_time && !answered && took < Duration::from_secs(13), "it took {took:?}");
    }
}
