//! The disk below the real store: the files of a journal, an index and a witness, which keep what was synced. A power
//! cut loses what was only written, or keeps it, or keeps a part of it.
//!
//! This file does what `src/outbox/embedded/store.rs` does around these: it creates the first store completely, and
//! makes an unusable index again.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use fastrand::Rng;
use sendoff::outbox::embedded::journal::Journal;
use sendoff::outbox::embedded::journaled::{self, Checkpoints, Journaled, Recovered, Stale, begin_index};
use sendoff::outbox::embedded::kv::Kv;

use crate::world::World;
use files::{FakeFiles, Segments};
use index::{FakeIndex, Indexed};
use witness::{FakeWitness, Seen};

mod files;
mod index;
mod witness;

pub type FakeStore = Journaled<FakeIndex, FakeWitness, FakeFiles>;

/// A disk that outlives every daemon that writes to it. Clones share one disk.
#[derive(Clone, Default)]
pub struct FakeDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone, Default)]
struct Inner {
    segments: Segments,
    index: Indexed,
    seen: Seen,
    did: Did,
}

/// What happened on a disk. What never happens is not tested.
#[derive(Debug, Clone, Copy, Default)]
pub struct Did {
    pub commits: u64,
    pub index_commits: u64,
    pub segments_removed: u64,
    /// Commits of which a power cut left a part.
    pub torn: u64,
    pub indexes_made_again: u64,
}

impl Did {
    pub fn add(&mut self, other: Self) {
        self.commits += other.commits;
        self.index_commits += other.index_commits;
        self.segments_removed += other.segments_removed;
        self.torn += other.torn;
        self.indexes_made_again += other.indexes_made_again;
    }
}

/// What a power cut does to what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing: only the process ended.
    Kill,
    AllLost,
    /// Each piece is there or not.
    Torn,
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    #[error("the disk did not do as it was told: {0}")]
    Failed(String),
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// Cuts the power of one life of the daemon.
#[derive(Clone)]
pub struct Plug {
    pub world: Arc<World>,
    pub life: u32,
}

impl Plug {
    fn step(plug: Option<&Self>, place: &str) -> io::Result<()> {
        match plug {
            Some(plug) if plug.world.step(plug.life, place) => Err(io::Error::other("no power")),
            Some(_) | None => Ok(()),
        }
    }

    fn note(plug: Option<&Self>, line: impl FnOnce() -> String) {
        if let Some(plug) = plug {
            plug.world.note(line);
        }
    }
}

impl FakeDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Opens the store. Without a plug, it opens as for an inspection.
    pub fn open(&self, plug: Option<&Plug>, settings: journaled::Settings) -> Result<FakeStore, NotOpened> {
        let failed = |error: &dyn std::fmt::Display| NotOpened::Failed(error.to_string());
        let files = FakeFiles { disk: self.clone(), plug: plug.cloned() };
        let index = FakeIndex { disk: self.clone(), plug: plug.cloned() };
        let journal = || {
            Journal::open(files.clone(), false).map_err(|error| match error {
                sendoff::outbox::embedded::journal::OpenError::Io(error) => failed(&error),
                damaged => NotOpened::Damaged(damaged.to_string()),
            })
        };
        if self.inner().segments.is_empty() {
            // As if made elsewhere and then put in its place.
            let whole = FakeFiles { disk: self.clone(), plug: None };
            Journal::create(&whole, 1).unwrap();
        }
        loop {
            let witness = FakeWitness { disk: self.clone(), plug: plug.cloned() };
            let seen = self.inner().seen.live();
            match Journaled::recover(journal()?, index.clone(), witness, settings, seen, false) {
                Ok(Recovered { store, .. }) => return Ok(store),
                Err(Stale::Index(why)) => {
                    Plug::note(plug, || format!("the index is made again: {why}"));
                    self.inner().index = Indexed::default();
                    self.inner().did.indexes_made_again += 1;
                    begin_index(&index, &journal()?).map_err(|error| failed(&error))?;
                }
                Err(Stale::Failed(error)) => return Err(failed(&error)),
                Err(Stale::Journal(why)) => return Err(NotOpened::Damaged(why)),
            }
        }
    }

    /// The process ends, or the power goes.
    pub fn cut(&self, cut: Cut, rng: &mut Rng) {
        let mut inner = self.inner();
        let Inner { segments, index, seen, .. } = &mut *inner;
        match cut {
            Cut::Kill => {}
            Cut::AllLost => {
                segments.lose_unsynced();
                index.lose_unsynced();
                seen.lose_unsynced();
            }
            Cut::Torn => {
                segments.tear(rng);
                index.tear(rng);
                seen.tear(rng);
            }
        }
    }

    /// What a start would find in the store if the power went now.
    pub fn synced(&self, settings: journaled::Settings) -> Result<BTreeMap<Vec<u8>, Bytes>, String> {
        let copy = Self { inner: Arc::new(Mutex::new(self.inner().clone())) };
        copy.cut(Cut::AllLost, &mut Rng::with_seed(0));
        let store = copy.open(None, settings).map_err(|why| format!("it does not open: {why}"))?;
        store
            .scan(&[1], &[0xff; 64])
            .map(|pair| pair.map(|(key, value)| (key.to_vec(), value)).map_err(|error| error.to_string()))
            .collect()
    }

    pub fn did(&self) -> Did {
        self.inner().did
    }
}

/// Settings that give a store many segments and checkpoints in one seed.
pub fn settings(scenario: &crate::scenario::Scenario) -> journaled::Settings {
    journaled::Settings {
        held_bytes_max: scenario.segment_bytes / 4,
        checkpoints: Checkpoints::InTurn,
        keys_per_commit: scenario.keys_per_commit,
        ..journaled::Settings::of(scenario.segment_bytes, scenario.bytes_max)
    }
}
