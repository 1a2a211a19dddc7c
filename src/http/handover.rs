//! Runs an append to its end, even if its request is dropped.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// A future that always runs to its end: if it is dropped earlier, it continues as a task of `leftovers`.
///
/// The events of a request stay in the writer's queue even if the client has left, so their memory must stay reserved.
/// This costs an allocation for each request, and a task for each request whose client has left.
pub struct ToItsEnd<F: Future<Output: Send> + Send + 'static> {
    /// `None` once it has ended.
    future: Option<Pin<Box<F>>>,
    leftovers: TaskTracker,
}

impl<F: Future<Output: Send> + Send + 'static> ToItsEnd<F> {
    pub fn new(future: F, leftovers: &TaskTracker) -> Self {
        Self { future: Some(Box::pin(future)), leftovers: leftovers.clone() }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for ToItsEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Polling after the end is a bug of the caller, which then waits.
        let Some(future) = &mut self.future else { return Poll::Pending };
        let output = std::task::ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for ToItsEnd<F> {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and with it the outbox.
        if let (Some(future), Ok(runtime)) = (self.future.take(), Handle::try_current()) {
            self.leftovers.spawn_on(future, &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn what_is_dropped_halfway_goes_on_as_a_task_that_is_waited_for() {
        let (leftovers, go_on, held) = (TaskTracker::new(), Arc::new(Notify::new()), Arc::new(()));
        let future = {
            let (go_on, held) = (go_on.clone(), held.clone());
            async move {
                go_on.notified().await;
                drop(held);
            }
        };
        let mut handover = ToItsEnd::new(future, &leftovers);
        assert!(futures_util::poll!(&mut handover).is_pending());
        drop(handover);
        assert_eq!((leftovers.len(), Arc::strong_count(&held)), (1, 2));
        go_on.notify_one();
        leftovers.close();
        leftovers.wait().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn what_has_ended_leaves_nothing() {
        let leftovers = TaskTracker::new();
        assert_eq!(ToItsEnd::new(async { 7 }, &leftovers).await, 7);
        assert!(leftovers.is_empty());
    }
}
