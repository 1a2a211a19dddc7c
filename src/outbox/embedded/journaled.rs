//! The store: a journal of every commit, and an index below it that is brought up to it from time to time.
//!
//! ```text
//! commit       -> frame of the journal, synced -> overlay (memory)
//! checkpoint   overlay -> index, when a segment is full; what is gone by then never reaches it
//! read         overlay, the one being brought in, index; a long value is read from the journal
//! reclaim      the oldest segment's ops that are still the newest of their key are written anew; then it is removed
//! start        what came after the index's checkpoint is read from the journal
//! ```
//!
//! Holds: the journal alone has everything, so an index that is lost or stale is made again from it, and nothing is lost
//! with it. Every op that is not the newest of its key may go, and only with all that is older.
//! Limits: an overlay holds the keys of a segment's worth. If the index does not keep up, each commit waits for it a little from
//! [`OVERLAYS_MAX`] of them on. At twice that the store says that it is behind, and takes settlements only. The journal holds at
//! most twice what is live and [`Settings::slack`], less near [`Settings::bytes_max`].
//! Fails: a failed write, also one of the index, is told by the next commit; then the store must not be used again. A value
//! that cannot be read is told as such, and the store goes on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::journal::files::{Directory, Files, is_out_of_descriptors};
use super::journal::frame::{Op, op_bytes};
use super::journal::{Journal, Location, Next};
use super::kv::{Batch, Disk, Failed, Index, Kv, Pair};
use checkpoint::{Checkpointer, Job};
use entry::{Checkpoint, Entry};
use merge::{Newest, merge};
use overlay::{Key, Overlay, Slot, Value};

mod checkpoint;

pub mod damage;

pub mod entry;

mod merge;

mod overlay;

mod recover;

mod reclaim;

#[cfg(test)]
mod tests;

pub use checkpoint::{Checkpoints, KEYS_PER_COMMIT};
pub use recover::{Recovered, Stale, begin_index};

/// How many segments' worth of overlay is held until commits wait a little for the index. At twice that the store says that
/// its index is behind, and nothing new is taken.
const OVERLAYS_MAX: u64 = 2;

/// How long a commit waits for the index from then on. On a disk that is well, the index catches up meanwhile, and clients see
/// a slower answer instead of a refusal. It is far from the time of a whole checkpoint on a slow disk.
const WAIT_FOR_INDEX: Duration = Duration::from_millis(50);

/// The largest frame, and the end of the largest segment: lengths and offsets have 32 bits.
const FRAME_BYTES_MAX: u64 = 1 << 30;
const SEGMENT_END_MAX: u64 = u32::MAX as u64;

/// Keys in an overlay, which bounds the commit that brings it in.
const OVERLAY_KEYS_MAX: usize = 65_536;

/// What a key takes in sled's file, about, once the index has heard of it: 218 bytes were measured of events with short payloads.
const INDEX_BYTES_PER_KEY: u64 = 256;

/// Bytes of long values that an overlay holds, of what was accepted last: enough for what is delivered at once. What waits
/// longer is read from the journal when its turn comes.
const HELD_BYTES_MAX: u64 = 4 << 20;

/// Of the journal's own kind of trouble, for those who must remember it over a restart.
pub trait Watch: Send + 'static {
    /// A commit is durable.
    fn committed(&self, commit: u64) -> io::Result<()>;

    /// A value of the journal cannot be read.
    fn damaged(&self);

    /// Bytes that the disk has free; none if it does not tell.
    fn free(&self) -> Option<u64>;
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// A segment is full at this many bytes; the commit that fills it may be larger.
    pub segment_bytes: u64,
    /// Beyond twice what is live, the journal may hold this many bytes that are worthless.
    pub slack: u64,
    /// Beyond three quarters of this the journal is kept as small as it can be.
    pub bytes_max: u64,
    /// Of long values an overlay holds this many bytes in memory; the others are read from the journal.
    pub held_bytes_max: u64,
    pub checkpoints: Checkpoints,
    /// Keys in one commit of the index.
    pub keys_per_commit: usize,
}

impl Settings {
    /// For a store that may take `bytes_max`, in segments of `segment_bytes` or less.
    pub fn of(segment_bytes: u64, bytes_max: u64) -> Self {
        let segment_bytes = segment_bytes.min(bytes_max / 16);
        Self {
            segment_bytes,
            slack: 4 * segment_bytes,
            bytes_max,
            held_bytes_max: HELD_BYTES_MAX,
            checkpoints: Checkpoints::Beside,
            keys_per_commit: KEYS_PER_COMMIT,
        }
    }
}

pub struct Journaled<B, W, D: Files = Directory> {
    journal: Journal<D>,
    index: Arc<B>,
    // Before the index in a drop, so that no thread holds it any more.
    checkpointer: Checkpointer<B>,
    watch: W,
    settings: Settings,
    /// What is not in the index yet.
    overlay: Overlay,
    /// What is being brought into it.
    frozen: Option<Arc<Overlay>>,
    /// How far the index had come before that.
    indexed: Checkpoint,
    reclaim: reclaim::Progress,
    /// The least that was ever live beside what the caller counts, since the index was last told of everything.
    uncounted: u64,
}

impl<B: Index, W: Watch, D: Files> Journaled<B, W, D> {
    fn newest(&self, key: &[u8]) -> Result<Option<(Location, Option<Bytes>)>, Failed> {
        let noted = self.overlay.get(key).or_else(|| self.frozen.as_ref().and_then(|frozen| frozen.get(key)));
        if let Some(slot) = noted {
            return Ok(slot.found());
        }
        let Some(entry) = self.index.get(key)? else { return Ok(None) };
        let Entry { at, inlined } = self.entry(&entry)?;
        Ok(Some((at, inlined)))
    }

    /// Bytes of ops that are the newest of their key; one that a newer one supersedes counts until the index has heard of it.
    fn live(&self) -> u64 {
        self.indexed.live + self.frozen.as_ref().map_or(0, |frozen| frozen.live()) + self.overlay.live()
    }

    fn entry(&self, bytes: &Bytes) -> Result<Entry, Failed> {
        Entry::decode(bytes).ok_or_else(|| Failed::new("reading the index", "an entry of it is none"))
    }

    /// A value by its place in the journal, which must be the value of `key`.
    fn value_at(&self, key: &[u8], at: Location) -> Result<Bytes, Failed> {
        let why = match self.journal.read_op(at) {
            Ok(Some(Op { key: found, value: Some(value) })) if found == key => return Ok(value),
            Ok(Some(_) | None) => "it is damaged".to_owned(),
            Err(error) if is_out_of_descriptors(&error) => {
                let why = format!("{error}; nothing is damaged, and it is tried again");
                return Err(Failed::passing("opening a segment of the journal", why));
            }
            Err(error) => error.to_string(),
        };
        self.watch.damaged();
        let why = format!("segment {}, byte {}: {why}", at.segment, at.offset);
        Err(Failed::of_value("reading a value from the journal", why))
    }

    /// Where a key's value was found, and the value if it is held in memory.
    fn place_of(&self, newest: Newest) -> Result<(Location, Option<Bytes>), Failed> {
        match newest {
            Newest::Noted(at, held) => Ok((at, held)),
            Newest::Indexed(entry) => {
                let Entry { at, inlined } = self.entry(&entry)?;
                Ok((at, inlined))
            }
        }
    }

    fn merged(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Newest), Failed>> {
        // Above the index's own key.
        let (from, to) = (from.max(&[1][..]), to.max(&[1][..]));
        merge([Some(&self.overlay), self.frozen.as_deref()], from, to, self.index.scan(from, to))
    }

    /// Writes a frame of what is put together, and notes it.
    fn append(&mut self, noted: Vec<(Key, Slot)>) -> Result<(), Failed> {
        let end = self.journal.segment_bytes(self.journal.newest()) + self.journal.frame().frame_bytes() as u64;
        if end > SEGMENT_END_MAX {
            self.journal.roll().map_err(|error| Failed::new("beginning a segment of the journal", error))?;
        }
        let (frame, commit) = self.journal.append().map_err(|error| Failed::new("writing the journal", error))?;
        self.watch.committed(commit).map_err(|error| Failed::new("writing the witness", error))?;
        for (key, mut slot) in noted {
            // Never of a removal or a short value, which hold nothing.
            if slot.held() > self.settings.held_bytes_max.saturating_sub(self.overlay.held()) {
                slot.value = Value::Journaled;
            }
            let at = Location { segment: frame.segment, offset: frame.offset + slot.at.offset, ..slot.at };
            self.overlay.note(key, Slot { at, ..slot });
        }
        Ok(())
    }

    /// Hears of a checkpoint that is done, and begins the next one if it is time. Never waits for a whole one.
    fn checkpoint(&mut self) -> Result<(), Failed> {
        self.hear_of_checkpoint()?;
        if self.is_behind(1) && self.checkpointer.runs_beside() {
            if let Some(indexed) = self.checkpointer.wait_for(WAIT_FOR_INDEX)? {
                self.checkpoint_done(indexed)?;
            }
        } else if self.is_behind(1) && !self.checkpointer.runs_beside() {
            let indexed = self.checkpointer.finish()?;
            self.checkpoint_done(indexed)?;
        }
        let full = self.overlay.len() >= OVERLAY_KEYS_MAX
            || self.journal.segment_bytes(self.journal.newest()) >= self.settings.segment_bytes;
        if full && self.frozen.is_none() { self.freeze() } else { Ok(()) }
    }

    /// Whether the overlay holds this many times what it may while a checkpoint is being written.
    fn is_behind(&self, times: u64) -> bool {
        self.frozen.is_some()
            && (self.overlay.bytes() >= times * OVERLAYS_MAX * self.settings.segment_bytes
                || self.overlay.len() as u64 >= times * OVERLAYS_MAX * OVERLAY_KEYS_MAX as u64)
    }

    fn hear_of_checkpoint(&mut self) -> Result<(), Failed> {
        if self.frozen.is_some()
            && let Some(indexed) = self.checkpointer.poll()?
        {
            self.checkpoint_done(indexed)?;
        }
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), Failed> {
        let segment = self.journal.newest();
        match self.journal.roll() {
            Ok(()) => {}
            // The file was not made, and the segment that there is takes more: the next commit tries again.
            Err(error) if is_out_of_descriptors(&error) => {
                tracing::warn!(%error, "cannot create a journal segment: continuing in the current one");
                return Ok(());
            }
            Err(error) => return Err(Failed::new("beginning a segment of the journal", error)),
        }
        let overlay = Arc::new(std::mem::take(&mut self.overlay));
        self.frozen = Some(overlay.clone());
        let Settings { keys_per_commit, .. } = self.settings;
        self.checkpointer.begin(Job { overlay, from: self.indexed, segment, keys_per_commit })
    }

    fn checkpoint_done(&mut self, indexed: Checkpoint) -> Result<(), Failed> {
        self.indexed = indexed;
        self.frozen.take().map_or(Ok(()), |overlay| self.checkpointer.drop_overlay(overlay))
    }
}

impl<B: Index, W: Watch, D: Files> Kv for Journaled<B, W, D> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        match self.newest(key)? {
            Some((_, Some(value))) => Ok(Some(value)),
            Some((at, None)) => self.value_at(key, at).map(Some),
            None => Ok(None),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        self.pairs(from, to).map(|pair| pair.and_then(|(key, value)| Ok((key, value?))))
    }

    fn pairs(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Pair, Failed>> {
        self.merged(from, to).map(|found| {
            let (key, newest) = found?;
            let (at, held) = self.place_of(newest)?;
            let value = held.map_or_else(|| self.value_at(&key, at), Ok);
            Ok((key, value))
        })
    }

    fn value_bytes(&self, key: &[u8]) -> Result<Option<usize>, Failed> {
        let bytes = |at: Location| (at.bytes as usize).saturating_sub(op_bytes(key.len(), 0));
        Ok(self.newest(key)?.map(|(at, held)| held.map_or_else(|| bytes(at), |held| held.len())))
    }

    fn keys(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Bytes, Failed>> {
        self.merged(from, to).map(|found| found.map(|(key, _)| key))
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        let bytes: usize = batch.writes().map(|(key, value)| op_bytes(key.len(), value.map_or(0, Bytes::len))).sum();
        if bytes as u64 > FRAME_BYTES_MAX {
            let why = format!("a commit of {bytes} bytes; at most {FRAME_BYTES_MAX} are safe");
            return Err(Failed::new("writing the journal", why));
        }
        let mut noted = Vec::with_capacity(batch.len());
        self.journal.frame().begin();
        // First, so that this batch has the last word.
        let reclaimed = self.reclaim(batch, &mut noted)?;
        for (key, write) in batch.entries() {
            let (offset, bytes) = self.journal.frame().op(key, write.value.as_deref());
            let at = Location { segment: 0, offset, bytes };
            let value = write.value.clone().map_or(Value::Removed, Value::Held);
            noted.push((Key::from_slice(key), Slot { value, at, is_new: write.is_new }));
        }
        self.append(noted)?;
        if reclaimed {
            self.remove_oldest()?;
        }
        self.checkpoint()
    }

    fn tend(&mut self, stored: u64) -> Result<bool, Failed> {
        self.hear_of_checkpoint()?;
        self.journal.frame().shrink();
        if self.wants_reclaim() {
            self.commit(&Batch::default())?;
            return Ok(true);
        }
        // What went while the index does not know of it still counts as live. Each time it is told costs a segment, so there
        // must be enough of it.
        if self.frozen.is_none() {
            let uncounted = self.live().saturating_sub(stored);
            self.uncounted = self.uncounted.min(uncounted);
            let much = uncounted - self.uncounted > self.settings.segment_bytes / 2;
            if much && !self.overlay.is_empty() && self.journal.bytes() > self.settings.slack {
                self.uncounted = u64::MAX;
                self.freeze()?;
            }
        }
        Ok(self.frozen.is_some())
    }

    fn catch_up(&mut self) -> Result<(), Failed> {
        if self.checkpointer.runs_beside() { self.checkpoint() } else { Ok(()) }
    }

    fn disk(&self) -> Disk {
        let keys = self.overlay.len() + self.frozen.as_ref().map_or(0, |frozen| frozen.len());
        Disk {
            used: self.journal.bytes() + self.index.bytes(),
            free: self.watch.free(),
            to_come: keys as u64 * INDEX_BYTES_PER_KEY,
            behind: self.is_behind(2),
        }
    }
}
