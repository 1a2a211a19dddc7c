//! The key-value store: a journal of every commit, and an index that checkpoints bring up to date.
//!
//! ```text
//! commit       -> frame of the journal, synced -> overlay (memory)
//! checkpoint   overlay -> index, when a segment is full; values removed by then never reach the index
//! read         from the overlay, the overlay of a running checkpoint, the index; long values from the journal
//! reclaim      ops of the oldest segment that are still current are written again; then the segment is removed
//! start        everything after the index's last checkpoint is read from the journal
//! ```
//!
//! Holds: the journal has all data, so a lost or stale index can be rebuilt from it without loss. Only ops that are not the
//! newest of their key may be dropped, together with everything older.
//! Limits: an overlay has the keys of one segment. If the index falls behind by [`OVERLAYS_MAX`] segments, each commit waits
//! a little. At twice that, the store refuses new events and accepts only settlements. The journal has at most twice the
//! live bytes plus [`Settings::slack`], less near [`Settings::bytes_max`].
//! Fails: the next commit reports a failed write, also of the index. The store must then not be used again. A value that
//! cannot be read is reported as such, and the store continues.

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

/// How many segments the index may be behind before commits wait for it. At twice that, the store refuses new events.
const OVERLAYS_MAX: u64 = 2;

/// How long such a commit waits. On a healthy disk the index catches up in that time, and clients get slower answers instead
/// of refusals. A whole checkpoint on a slow disk takes far longer.
const WAIT_FOR_INDEX: Duration = Duration::from_millis(50);

/// The largest frame and the largest segment: lengths and offsets have 32 bits.
const FRAME_BYTES_MAX: u64 = 1 << 30;
const SEGMENT_END_MAX: u64 = u32::MAX as u64;

/// The most keys in an overlay, which bounds its checkpoint.
const OVERLAY_KEYS_MAX: usize = 65_536;

/// The approximate bytes of a key in sled's file. Measured: 218 bytes, for events with short payloads.
const INDEX_BYTES_PER_KEY: u64 = 256;

/// The most bytes of long values in an overlay, those accepted last. Enough for events that are delivered at once. The
/// payloads of others are read from the journal when they are attempted.
const HELD_BYTES_MAX: u64 = 4 << 20;

/// Callbacks that record the journal's progress and damage so that they survive a restart.
pub trait Watch: Send + 'static {
    /// A commit is durable.
    fn committed(&self, commit: u64) -> io::Result<()>;

    /// A value of the journal cannot be read.
    fn damaged(&self);

    /// The free bytes of the disk. `None` if it does not report them.
    fn free(&self) -> Option<u64>;
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// A segment is full at this many bytes. The commit that fills it may exceed this.
    pub segment_bytes: u64,
    /// The journal may have this many dead bytes beyond twice the live bytes.
    pub slack: u64,
    /// Beyond three quarters of this, the journal is kept as small as possible.
    pub bytes_max: u64,
    /// The bytes of long values that an overlay keeps in memory. Others are read from the journal.
    pub held_bytes_max: u64,
    pub checkpoints: Checkpoints,
    /// The most keys in one commit of the index.
    pub keys_per_commit: usize,
}

impl Settings {
    /// Settings for a store of at most `bytes_max`, in segments of at most `segment_bytes`.
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
    // Declared before the index, so that it is dropped first and no thread holds the index any more.
    checkpointer: Checkpointer<B>,
    watch: W,
    settings: Settings,
    /// Writes that are not in the index yet.
    overlay: Overlay,
    /// Writes of the running checkpoint.
    frozen: Option<Arc<Overlay>>,
    /// The progress of the index before the running checkpoint.
    indexed: Checkpoint,
    reclaim: reclaim::Progress,
    /// The least overhead of live bytes over the caller's count since the index was last up to date.
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

    /// The bytes of live ops. A superseded op counts until the index knows that it is superseded.
    fn live(&self) -> u64 {
        self.indexed.live + self.frozen.as_ref().map_or(0, |frozen| frozen.live()) + self.overlay.live()
    }

    fn entry(&self, bytes: &Bytes) -> Result<Entry, Failed> {
        Entry::decode(bytes).ok_or_else(|| Failed::new("reading the index", "an entry of it is none"))
    }

    /// Reads a value by its location in the journal, and checks that it is the value of `key`.
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

    /// The location of a key's value, and the value if it is in memory.
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
        // After the index's own key.
        let (from, to) = (from.max(&[1][..]), to.max(&[1][..]));
        merge([Some(&self.overlay), self.frozen.as_deref()], from, to, self.index.scan(from, to))
    }

    /// Writes the collected frame and adds it to the overlay.
    fn append(&mut self, noted: Vec<(Key, Slot)>) -> Result<(), Failed> {
        let end = self.journal.segment_bytes(self.journal.newest()) + self.journal.frame().frame_bytes() as u64;
        if end > SEGMENT_END_MAX {
            self.journal.roll().map_err(|error| Failed::new("beginning a segment of the journal", error))?;
        }
        let (frame, commit) = self.journal.append().map_err(|error| Failed::new("writing the journal", error))?;
        self.watch.committed(commit).map_err(|error| Failed::new("writing the witness", error))?;
        for (key, mut slot) in noted {
            // Never for removals and short values, which keep nothing in memory.
            if slot.held() > self.settings.held_bytes_max.saturating_sub(self.overlay.held()) {
                slot.value = Value::Journaled;
            }
            let at = Location { segment: frame.segment, offset: frame.offset + slot.at.offset, ..slot.at };
            self.overlay.note(key, Slot { at, ..slot });
        }
        Ok(())
    }

    /// Handles a finished checkpoint, and begins the next one if it is time. Never waits for a whole checkpoint.
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

    /// Whether the overlay exceeds its limit this many times while a checkpoint runs.
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
            // The file was not created. The current segment can take more, and the next commit tries again.
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
        // First, so that this batch takes precedence.
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
        // Removed values count as live until the index knows. Updating the index costs a segment, so wait until it pays.
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
