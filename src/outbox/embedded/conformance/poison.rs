//! A store that fails: no further promise is made, everybody hears why, and opening it again recovers.

use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::event::KeySource;
use crate::outbox::conformance::Bench;
use crate::outbox::embedded::kv::{Batch, Disk as Room, Failed, Kv};
use crate::outbox::embedded::memory::MemoryKv;
use crate::outbox::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// A commit fails, and nothing of it is there.
    CommitNothing,
    /// A commit fails, but all of it is there.
    CommitAll,
    CommitPanics,
    ReadFails,
    ReadPanics,
}

struct FailingKv {
    inner: MemoryKv,
    trouble: Arc<Mutex<Trouble>>,
}

impl FailingKv {
    fn read(&self) -> Result<(), Failed> {
        let trouble = *self.trouble.lock().unwrap();
        match trouble {
            Trouble::ReadFails => Err(Failed::new("reading", "input/output error")),
            Trouble::ReadPanics => panic!("a page that cannot be"),
            Trouble::None | Trouble::CommitNothing | Trouble::CommitAll | Trouble::CommitPanics => Ok(()),
        }
    }
}

impl Kv for FailingKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        self.read()?;
        self.inner.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        let failed = self.read().err().map(Err);
        failed.into_iter().chain(self.inner.scan(from, to))
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        let trouble = *self.trouble.lock().unwrap();
        let failed = Err(Failed::new("syncing", "input/output error"));
        match trouble {
            Trouble::CommitNothing => failed,
            Trouble::CommitAll => self.inner.commit(batch).and(failed),
            Trouble::CommitPanics => panic!("an assertion of the engine"),
            Trouble::None | Trouble::ReadFails | Trouble::ReadPanics => self.inner.commit(batch),
        }
    }

    fn disk(&self) -> Room {
        self.inner.disk()
    }
}

/// Opens a store on `disk` that fails as `trouble` says, from when it says so.
fn open(
    bench: &Bench<Memory>,
    disk: &MemoryDisk,
    trouble: &Arc<Mutex<Trouble>>,
) -> (Handle, JoinHandle<()>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new().unwrap());
    let kv = FailingKv { inner: disk.open(), trouble: trouble.clone() };
    let engine = Engine::open(kv, settings(&bench.limits), bench.clock.clone(), "failing").unwrap();
    let (writer, handle) = Writer::new(engine, bench.clock.clone(), metrics.clone());
    (handle, spawn(writer), metrics)
}

fn poisons<T: std::fmt::Debug>(answer: Result<T, Error>) {
    assert!(matches!(answer, Err(Error::Poisoned { .. })), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_nothing_is_accepted_everybody_hears_it_and_reopening_recovers() {
    for trouble in
        [Trouble::CommitNothing, Trouble::CommitAll, Trouble::CommitPanics, Trouble::ReadFails, Trouble::ReadPanics]
    {
        let bench = Bench::new(Memory::default()).await;
        let (disk, switch) = (MemoryDisk::default(), Arc::new(Mutex::new(Trouble::None)));
        let (store, thread, metrics) = open(&bench, &disk, &switch);
        let accepted = bench.keyed("orders", "{}", "k", KeySource::Header);
        assert_eq!(store.append(vec![accepted.clone()]).await.unwrap(), [Appended::Stored]);
        let seen = store.lanes(0).await.unwrap().version;

        *switch.lock().unwrap() = trouble;
        let doubtful = bench.keyed("orders", "{}", "l", KeySource::Header);
        // The repeat makes it read, the other write.
        let repeat = bench.keyed("orders", "{}", "k", KeySource::Header);
        poisons(store.append(vec![repeat, doubtful.clone()]).await);
        *switch.lock().unwrap() = Trouble::None; // "retry the fsync and hope" is not offered
        poisons(store.append(vec![bench.event("orders", "{}")]).await);
        poisons(store.append(vec![bench.keyed("orders", "{}", "k", KeySource::Header)]).await);
        poisons(store.lease(LeaseWant::default(), Some(0)).await);
        poisons(store.settle(Vec::new()).await.map_err(Error::from));
        poisons(store.lanes(0).await);
        poisons(store.find(accepted.id).await);
        poisons(store.sweep().await);
        poisons(store.census().await);
        store.changed(seen, Changes::Any).await;
        store.changed(seen, Changes::Buried).await;
        let why = store.failed().await;
        assert!(!why.is_empty(), "{trouble:?}");
        assert_eq!(store.health(), Health::Poisoned { why });
        assert_eq!(metrics.outbox_poisoned.get(), 1);
        drop(store);
        thread.join().unwrap();

        let (store, thread, _) = open(&bench, &disk, &switch);
        assert_eq!(store.find(accepted.id).await.unwrap().unwrap().event, accepted, "{trouble:?}");
        let there = store.find(doubtful.id).await.unwrap().is_some();
        assert_eq!(there, trouble == Trouble::CommitAll);
        let again = bench.keyed("orders", "{}", "l", KeySource::Header);
        let expected = if there { Appended::Repeat { first: doubtful.id } } else { Appended::Stored };
        assert_eq!(store.append(vec![again]).await.unwrap(), [expected]);
        assert_eq!(store.census().await.unwrap().events, 2);
        drop(store);
        thread.join().unwrap();
    }
}
