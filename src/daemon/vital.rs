//! Tasks that the daemon needs. If one ends early, by an error, a panic or without reason, the daemon ends. Otherwise a
//! daemon could accept events, never deliver them, and still look healthy.

use std::any::Any;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts vital tasks and reports the first that has ended. Cheap to clone. Clones share one state.
#[derive(Debug, Clone)]
pub(super) struct Vital {
    failed: watch::Sender<Option<&'static str>>,
}

impl Vital {
    pub(super) fn new() -> Self {
        Self { failed: watch::Sender::new(None) }
    }

    /// Runs `stage` as one of `tasks`. It may end after `stop` is cancelled.
    pub(super) fn spawn<E: Display>(
        &self,
        tasks: &TaskTracker,
        stage: &'static str,
        stop: CancellationToken,
        run: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let failed = self.failed.clone();
        tasks.spawn(async move {
            match AssertUnwindSafe(run).catch_unwind().await {
                Ok(Ok(())) if stop.is_cancelled() => return,
                Ok(Ok(())) => tracing::error!(stage, "stage has ended without being told to: please report this bug"),
                Ok(Err(error)) => tracing::error!(stage, %error, "stage has ended"),
                Err(panic) => {
                    tracing::error!(stage, panic = text(&*panic), "stage has panicked: please report this bug")
                }
            }
            failed.send_if_modified(|first| first.replace(first.unwrap_or(stage)).is_none());
        });
    }

    /// As [`Vital::spawn`], for a task that cannot fail.
    pub(super) fn spawn_endless(
        &self,
        tasks: &TaskTracker,
        stage: &'static str,
        stop: CancellationToken,
        run: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(tasks, stage, stop, run.map(Ok::<(), std::convert::Infallible>));
    }

    /// The first stage that ended too early.
    pub(super) fn failed(&self) -> Option<&'static str> {
        *self.failed.borrow()
    }

    /// Returns when a stage has ended too early.
    pub(super) async fn fails(&self) -> &'static str {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(stage) = *failed.borrow_and_update() {
                return stage;
            }
            // Cannot fail: `self` holds the sender.
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied()).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn outcome(
        run: impl Future<Output = Result<(), &'static str>> + Send + 'static,
        stopped: bool,
    ) -> Option<&'static str> {
        let (vital, tasks, stop) = (Vital::new(), TaskTracker::new(), CancellationToken::new());
        if stopped {
            stop.cancel();
        }
        vital.spawn_endless(&tasks, "lasting", CancellationToken::new(), std::future::pending());
        vital.spawn(&tasks, "dispatch", stop, run);
        tokio::time::timeout(Duration::from_secs(1), vital.fails()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_ends_early_or_panics_is_named_and_one_that_was_stopped_is_not() {
        assert_eq!(outcome(async { Ok(()) }, false).await, Some("dispatch"));
        assert_eq!(outcome(async { Err("the outbox is closed") }, false).await, Some("dispatch"));
        assert_eq!(outcome(async { panic!("of a test") }, false).await, Some("dispatch"));
        assert_eq!(outcome(async { panic!("of a test, while it drains") }, true).await, Some("dispatch"));
        assert_eq!(outcome(async { Ok(()) }, true).await, None);
        assert_eq!(outcome(std::future::pending(), false).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_stage_to_fail_is_the_one_that_is_named() {
        let (vital, tasks, stop) = (Vital::new(), TaskTracker::new(), CancellationToken::new());
        vital.spawn(&tasks, "sweep", stop.clone(), async { Err("first") });
        tokio::task::yield_now().await;
        assert_eq!(vital.fails().await, "sweep");
        vital.spawn(&tasks, "dispatch", stop, async { Err("second") });
        tasks.close();
        tasks.wait().await;
        assert_eq!((vital.failed(), vital.fails().await), (Some("sweep"), "sweep"));
    }
}
