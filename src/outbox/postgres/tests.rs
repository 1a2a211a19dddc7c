//! The sentences of `outbox/conformance`, on this engine and a real server.
//!
//! The engine runs on a runtime of its own, in real time: the paused clock of a test jumps ahead whenever it waits for a
//! socket. The server follows the test's clock by the setting `sendoff.now_ms`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::test_runner::{Config as ProptestConfig, TestRunner};

use super::{Handle, Realm, Server, Settings, Tls, keeper};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::outbox::conformance::model::{Call, Wanted};
use crate::outbox::conformance::{self, Bench, START, Subject, exercise, model};
use crate::outbox::{Limits, Opened};

mod server;

use server::Running;

exercise!(shared, Shared::new().await);

// What is in the database stays there when a daemon goes, so of the sentences about a hand-off only those about its receiver.
exercise! { @each adopting, Shared::new().await,
    handoff:
        an_adopted_event_is_as_it_was_also_after_reopening
        an_event_is_adopted_once_however_often_it_is_handed_over
        an_adopted_key_is_known_unless_another_event_has_it
        the_window_of_an_adopted_key_counts_from_its_acceptance
        what_there_is_no_room_for_is_not_adopted
        an_event_of_a_paused_function_pauses_it_before_it_can_be_attempted;
}

/// A database of its own on the server of this process.
struct Shared {
    server: Server,
    runtime: Option<tokio::runtime::Runtime>,
    /// What the server's clock has seen.
    latest: u64,
}

impl Shared {
    /// `None` if there is no PostgreSQL here.
    async fn new() -> Option<Self> {
        let running = Running::get()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let url = runtime.spawn(running.database()).await.unwrap();
        let server = Server::new(url, None, Tls::Off);
        server.pretended.store(START.0, Ordering::Relaxed);
        Some(Self { server, runtime: Some(runtime), latest: START.0 })
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.runtime.as_ref().unwrap()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A runtime must not be dropped within another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Subject for Shared {
    type Store = Handle;

    async fn open(&mut self, limits: &Limits, clock: &Clock) -> Opened<Handle> {
        // Between two processes the server's clock never goes back, and follows a clock that went forward.
        let pretended = self.server.pretended.load(Ordering::Relaxed);
        self.latest = self.latest.max(pretended).max(clock.now().0);
        self.server.pretended.store(self.latest, Ordering::Relaxed);
        self.server.ahead.store(self.latest - clock.now().0, Ordering::Relaxed);
        let settings = Settings {
            limits: *limits,
            server: self.server.clone(),
            member: "conformance".to_owned(),
            lease: Duration::from_secs(10),
            poll_max: Duration::from_millis(100),
            accept_timeout: Duration::from_secs(20),
            realm: Realm::default(),
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let opening = super::open(settings, clock.clone(), metrics);
        let Opened { outbox, upkeep, closing } = self.runtime().spawn(opening).await.unwrap().unwrap();
        let upkeep = self.runtime().spawn(upkeep);
        let handle = self.runtime().handle().clone();
        let closing = async move {
            let closed = handle.spawn(closing).await.unwrap();
            upkeep.await.unwrap()?;
            closed
        };
        Opened { outbox, upkeep: Box::pin(std::future::pending()), closing: Box::pin(closing) }
    }

    async fn sweep(store: &Handle) {
        let now = store.now();
        let shared = store.shared.clone();
        let swept = async move {
            shared.catch_up().await?;
            keeper::sweep(&shared).await?;
            shared.retire_idle(now).await
        };
        store.shared.runtime.spawn(swept).await.unwrap().unwrap();
    }
}

/// A handful of the random stories that the embedded engine is put through: each costs a database.
#[test]
fn any_sequence_of_calls_does_what_a_plain_map_would() {
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let calls = proptest::collection::vec(model::any_call(), 0..60);
    let told = runner.run(&calls, |mut calls| {
        // It takes no part in a hand-off.
        calls.retain(|call| !matches!(call, Call::Adopt { .. } | Call::Lease { which: Wanted::AtRest(..), .. }));
        model::on_a_virtual_clock(async {
            if let Some(subject) = Shared::new().await {
                model::agree(Bench::new(subject).await, calls).await;
            }
        });
        Ok(())
    });
    told.unwrap();
}
