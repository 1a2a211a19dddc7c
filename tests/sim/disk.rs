//! A disk that keeps what was synced. What was only written is lost by a crash, or is there by luck: whole, as the store
//! promises that a commit is atomic.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use sendoff::outbox::kv::{Batch, Disk, Failed, Kv};
use sendoff::outbox::record::VALUE_BYTES_MAX;

use crate::sabotage::Bug;
use crate::world::World;

/// Bytes free in quiet times.
const ROOM: u64 = 1 << 40;

/// Of so many commits, the planted bug "202 before the sync" syncs one.
const LAZY_SYNC_EVERY: u64 = 4;

type Pairs = BTreeMap<Vec<u8>, Bytes>;

/// Clones are one disk; it outlives every daemon that writes to it.
#[derive(Clone, Default)]
pub struct FakeDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// As a reader sees it: synced, and written since.
    live: Pairs,
    /// What undoes the writes since the last sync, oldest first.
    undo: Vec<(Vec<u8>, Option<Bytes>)>,
    commits: u64,
}

impl FakeDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn open(&self, world: &Arc<World>, life: u32) -> FakeKv {
        FakeKv { disk: self.clone(), world: world.clone(), life }
    }

    /// The power goes: what was not synced is gone, or kept by luck.
    pub fn lose_unsynced(&self, kept_by_luck: bool) {
        let mut inner = self.inner();
        let undo = std::mem::take(&mut inner.undo);
        if kept_by_luck {
            return;
        }
        for (key, value) in undo.into_iter().rev() {
            match value {
                Some(value) => inner.live.insert(key, value),
                None => inner.live.remove(&key),
            };
        }
    }

    /// What the disk would have if the power went now.
    pub fn synced(&self) -> Pairs {
        let inner = self.inner();
        let mut pairs = inner.live.clone();
        for (key, value) in inner.undo.iter().rev() {
            match value {
                Some(value) => pairs.insert(key.clone(), value.clone()),
                None => pairs.remove(key),
            };
        }
        pairs
    }

    pub fn commits(&self) -> u64 {
        self.inner().commits
    }

    fn write(&self, batch: &Batch) {
        let mut inner = self.inner();
        let Inner { live, undo, commits } = &mut *inner;
        *commits += 1;
        for (key, value) in batch.writes() {
            let before = match value {
                Some(value) => live.insert(key.to_vec(), value.clone()),
                None => live.remove(key),
            };
            undo.push((key.to_vec(), before));
        }
    }

    fn sync(&self) {
        self.inner().undo.clear();
    }
}

/// The store on the disk, as one life of the daemon has it.
pub struct FakeKv {
    disk: FakeDisk,
    world: Arc<World>,
    life: u32,
}

impl Kv for FakeKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        Ok(self.disk.inner().live.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        let mut next = Bound::Included(from.to_vec());
        let to = to.to_vec();
        std::iter::from_fn(move || {
            let inner = self.disk.inner();
            let (key, value) = inner.live.range((next.clone(), Bound::Excluded(to.clone()))).next()?;
            next = Bound::Excluded(key.clone());
            Some(Ok((Bytes::copy_from_slice(key), value.clone())))
        })
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        let failed = |why: &str| Err(Failed::new("syncing", why));
        if let Some(value) = batch.writes().filter_map(|(_, value)| value).find(|value| value.len() > VALUE_BYTES_MAX) {
            self.world.violated("G2", format!("a value of {} bytes would poison the real store", value.len()));
        }
        if self.world.step(self.life, "before a commit") {
            return failed("no power");
        }
        self.disk.write(batch);
        if self.world.step(self.life, "between write and sync") {
            return failed("no power");
        }
        if self.world.sync_fails() {
            self.world.note(|| "a sync failed".into());
            return failed("input/output error");
        }
        let lazy = self.world.scenario.bug == Some(Bug::AckBeforeSync);
        if !lazy || self.disk.commits().is_multiple_of(LAZY_SYNC_EVERY) {
            self.disk.sync();
        }
        if self.world.step(self.life, "between sync and answer") {
            return failed("no power");
        }
        Ok(())
    }

    fn disk(&self) -> Disk {
        let free = if self.world.disk_is_full() { 1_000 } else { ROOM };
        Disk { used: 0, free }
    }
}
