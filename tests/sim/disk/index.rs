//! The index: sled as it promises to be, and worse. A commit is complete or missing. After a power cut, the index may
//! also be some commits old, or gone.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use fastrand::Rng;
use sendoff::outbox::embedded::journaled::entry::CHECKPOINT;
use sendoff::outbox::embedded::kv::{Batch, Failed, Index};

use super::{FakeDisk, Plug};
use crate::sabotage::Bug;

/// The most commits by which it may fall back.
const FALLS_BACK_BY: usize = 12;

/// The longest value that sled stores without a blob (rule 2).
const VALUE_BYTES_MAX: usize = 4_096;

type Pair = (Vec<u8>, Option<Bytes>);

#[derive(Clone, Default)]
pub struct Indexed {
    pairs: BTreeMap<Vec<u8>, Bytes>,
    bytes: u64,
    /// The steps that undo the last commits, oldest first.
    undo: VecDeque<Vec<Pair>>,
    /// Whether the last of these is not synced.
    unsynced: bool,
}

impl Indexed {
    fn write(&mut self, writes: &[Pair]) {
        let undo = writes.iter().map(|(key, value)| (key.clone(), self.set(key, value.clone()))).collect();
        self.undo.push_back(undo);
        if self.undo.len() > FALLS_BACK_BY {
            self.undo.pop_front();
        }
        self.unsynced = true;
    }

    fn set(&mut self, key: &[u8], value: Option<Bytes>) -> Option<Bytes> {
        let bytes = |value: &Bytes| (key.len() + value.len()) as u64;
        self.bytes += value.as_ref().map_or(0, bytes);
        let old = match value {
            Some(value) => self.pairs.insert(key.to_vec(), value),
            None => self.pairs.remove(key),
        };
        self.bytes -= old.as_ref().map_or(0, bytes);
        old
    }

    fn undo_one(&mut self) {
        for (key, value) in self.undo.pop_back().into_iter().flatten().rev() {
            self.set(&key, value);
        }
    }

    pub fn lose_unsynced(&mut self) {
        if std::mem::take(&mut self.unsynced) {
            self.undo_one();
        }
    }

    pub fn tear(&mut self, rng: &mut Rng) {
        if rng.bool() {
            self.lose_unsynced();
        }
        self.unsynced = false;
        match rng.u8(0..20) {
            0 => *self = Self::default(),
            1 | 2 => (0..rng.usize(1..=FALLS_BACK_BY)).for_each(|_| self.undo_one()),
            _ => {}
        }
    }
}

#[derive(Clone)]
pub struct FakeIndex {
    pub(super) disk: FakeDisk,
    pub(super) plug: Option<Plug>,
}

impl FakeIndex {
    fn write(&self, writes: &[Pair], synced: bool) -> Result<(), Failed> {
        let step =
            |place| Plug::step(self.plug.as_ref(), place).map_err(|error| Failed::new("writing the index", error));
        step("before a commit of the index")?;
        self.disk.inner().index.write(writes);
        step("between write and sync of the index")?;
        if let Some(plug) = &self.plug
            && plug.world.sync_fails()
        {
            plug.world.note(|| "a sync of the index failed".into());
            return Err(Failed::new("syncing the index", "input/output error"));
        }
        self.disk.inner().index.unsynced = !synced;
        step("after a commit of the index")
    }
}

impl Index for FakeIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        Ok(self.disk.inner().index.pairs.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        let mut next = Bound::Included(from.to_vec());
        let to = to.to_vec();
        std::iter::from_fn(move || {
            let inner = self.disk.inner();
            let (key, value) = inner.index.pairs.range((next.clone(), Bound::Excluded(to.clone()))).next()?;
            next = Bound::Excluded(key.clone());
            Some(Ok((Bytes::copy_from_slice(key), value.clone())))
        })
    }

    fn commit(&self, batch: &Batch) -> Result<(), Failed> {
        let writes: Vec<Pair> = batch.writes().map(|(key, value)| (key.to_vec(), value.cloned())).collect();
        if let Some(plug) = &self.plug {
            for (key, value) in writes.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
                if value.len() > VALUE_BYTES_MAX {
                    plug.world.violated("G2", format!("{} bytes of {key:02x?} would poison the index", value.len()));
                }
            }
            if writes[0].0 == CHECKPOINT {
                plug.world.note(|| format!("{} keys go into the index", writes.len() - 1));
                self.disk.inner().did.index_commits += 1;
                if plug.world.scenario.bug == Some(Bug::MarkBeforeKeys) {
                    self.write(&writes[..1], true)?;
                    return self.write(&writes[1..], false);
                }
            }
        }
        self.write(&writes, true)
    }

    fn bytes(&self) -> u64 {
        self.disk.inner().index.bytes
    }
}
