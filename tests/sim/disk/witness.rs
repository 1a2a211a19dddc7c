//! The witness: written with every commit, synced with some.

use std::io;

use fastrand::Rng;
use sendoff::outbox::embedded::journaled::Watch;

use super::{FakeDisk, Plug};

/// Free bytes in normal times.
const ROOM: u64 = 1 << 40;

/// Commits between two syncs.
const SYNC_EVERY: u64 = 8;

#[derive(Clone, Copy, Default)]
pub struct Seen {
    live: Option<u64>,
    synced: Option<u64>,
}

impl Seen {
    pub fn live(self) -> Option<u64> {
        self.live
    }

    pub fn lose_unsynced(&mut self) {
        self.live = self.synced;
    }

    pub fn tear(&mut self, rng: &mut Rng) {
        let kept = if rng.bool() { self.live } else { self.synced };
        *self = Self { live: kept, synced: kept };
    }
}

pub struct FakeWitness {
    pub(super) disk: FakeDisk,
    pub(super) plug: Option<Plug>,
}

impl Watch for FakeWitness {
    fn committed(&self, commit: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.did.commits += 1;
        inner.seen.live = Some(commit);
        if inner.seen.synced.is_none_or(|synced| commit >= synced + SYNC_EVERY) {
            inner.seen.synced = Some(commit);
        }
        drop(inner);
        Plug::step(self.plug.as_ref(), "between sync and answer")
    }

    fn damaged(&self) {
        if let Some(plug) = &self.plug {
            plug.world.violated("G2", "a value of the journal cannot be read".into());
        }
    }

    fn free(&self) -> Option<u64> {
        Some(if self.plug.as_ref().is_some_and(|plug| plug.world.disk_is_full()) { 1_000 } else { ROOM })
    }
}
