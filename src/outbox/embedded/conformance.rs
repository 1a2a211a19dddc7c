//! The sentences of `outbox/conformance`, on this engine: in memory, and as it stands on a disk.

use std::sync::Arc;
use std::thread::JoinHandle;

use proptest::prelude::*;

use super::Settings;
use super::engine::Engine;
use super::kv::Kv;
use super::memory::MemoryDisk;
use super::record::{INLINE_BYTES_MAX, VALUE_BYTES_MAX, encode_body};
use super::store;
use super::writer::{Handle, Writer};
use crate::clock::Clock;
use crate::event::Event;
use crate::metrics::Metrics;
use crate::outbox::conformance::{self, Bench, Subject, exercise, exercise_handoff, model};
use crate::outbox::{Limits, Opened, Outbox, Settlement, Which};

mod planted;

mod poison;

exercise!(memory, Some(Memory::default()));

exercise!(sled, Some(OnDisk::default()));

exercise_handoff!(memory_handoff, Some(Memory::default()));

exercise_handoff!(sled_handoff, Some(OnDisk::default()));

/// A store in memory.
#[derive(Default)]
struct Memory(MemoryDisk);

/// A store as it is: a journal and sled, in a directory of its own.
struct OnDisk(tempfile::TempDir);

impl Default for OnDisk {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

fn settings(limits: &Limits) -> Settings {
    Settings { limits: *limits, disk_reserve: 0, segment_bytes: 1 << 20, cache: 8 << 20 }
}

fn open(kv: impl Kv, limits: &Limits, clock: &Clock) -> Opened<Handle> {
    let metrics = Arc::new(Metrics::new().unwrap());
    let engine = Engine::open(kv, settings(limits), clock.clone(), "conformance").unwrap();
    let (writer, outbox) = Writer::new(engine, clock.clone(), metrics);
    let (thread, handle) = (spawn(writer), outbox.clone());
    let closing = async move {
        handle.close().await;
        thread.join().unwrap();
        Ok(())
    };
    Opened { outbox, upkeep: Box::pin(std::future::pending()), closing: Box::pin(closing) }
}

/// The writer's thread sees the test's paused clock only from within its runtime.
fn spawn<K: Kv>(writer: Writer<K>) -> JoinHandle<()> {
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let _inside = runtime.enter();
        writer.run();
    })
}

impl Subject for Memory {
    type Store = Handle;

    async fn open(&mut self, limits: &Limits, clock: &Clock) -> Opened<Handle> {
        open(self.0.open(), limits, clock)
    }

    async fn sweep(store: &Handle) {
        while store.sweep().await.unwrap() {}
    }

    /// The limits of records and chunks.
    fn awkward_bytes(event: &Event) -> Vec<usize> {
        let head = encode_body(event).len();
        [1, 2, 3]
            .map(|chunks| chunks * VALUE_BYTES_MAX)
            .into_iter()
            .chain([INLINE_BYTES_MAX])
            .map(|body| body - head)
            .collect()
    }
}

impl Subject for OnDisk {
    type Store = Handle;

    async fn open(&mut self, limits: &Limits, clock: &Clock) -> Opened<Handle> {
        open(store::open(self.0.path(), &settings(limits)).unwrap().store, limits, clock)
    }

    async fn sweep(store: &Handle) {
        Memory::sweep(store).await;
    }

    fn awkward_bytes(event: &Event) -> Vec<usize> {
        Memory::awkward_bytes(event)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_calls_does_what_a_plain_map_would(calls in proptest::collection::vec(model::any_call(), 0..80)) {
        model::on_a_virtual_clock(async { model::agree(Bench::new(Memory::default()).await, calls).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_calls_does_what_a_plain_map_would_on_sled(calls in proptest::collection::vec(model::any_call(), 0..80)) {
        model::on_a_virtual_clock(async { model::agree(Bench::new(OnDisk::default()).await, calls).await });
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivered_event_leaves_nothing_behind_in_the_key_value_store() {
    let bench = Bench::new(Memory::default()).await;
    for bytes in Memory::awkward_bytes(&bench.event("orders", "")) {
        bench.append(bench.event("orders", &"x".repeat(bytes + 1))).await;
        let leased = bench.lease("orders", Which::Due, 1).await;
        bench.settle(&leased[0], Settlement::Delivered).await;
    }
    assert_eq!(bench.store().census().await.unwrap().events, 0);
    // Format, clock, next lane, and the one lane.
    assert_eq!(bench.subject.0.len(), 4);
}
