//! Opens the store. Reads from the journal what is not in the index yet.

use std::io;
use std::sync::Arc;

use super::checkpoint::{Checkpointer, Job, Writing};
use super::entry::{CHECKPOINT, Checkpoint};
use super::overlay::{Key, Overlay, Slot, Value};
use super::{Journaled, Settings, Watch, reclaim};
use crate::outbox::embedded::journal::files::{Directory, Files};
use crate::outbox::embedded::journal::{Frame, Journal, Next};
use crate::outbox::embedded::kv::{Batch, Failed, Index};

/// An open store, and the unreadable parts of its journal. There are none unless they were allowed.
pub struct Recovered<B, W, D: Files = Directory> {
    pub store: Journaled<B, W, D>,
    pub gaps: u64,
}

/// Why a store cannot be opened as it is.
#[derive(Debug, thiserror::Error)]
pub enum Stale {
    /// The index is unusable. Nothing is lost: an empty one from [`begin_index`] can replace it.
    #[error("{0}")]
    Index(String),
    #[error("{0}")]
    Journal(String),
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Prepares an empty index for a journal of which it has nothing yet.
pub fn begin_index<B: Index, D: Files>(index: &B, journal: &Journal<D>) -> Result<(), Failed> {
    let mut batch = Batch::default();
    let checkpoint = Checkpoint { segment: journal.oldest().saturating_sub(1), live: 0 };
    batch.put(CHECKPOINT.to_vec(), checkpoint.encode());
    index.commit(&batch)
}

impl<B: Index, W: Watch, D: Files> Journaled<B, W, D> {
    /// Opens the store. `seen` is the last commit known to be durable: a journal that ends before it is damaged. With `lenient`,
    /// skips and counts unreadable parts of the journal, and does not write to it.
    pub fn recover(
        journal: Journal<D>,
        index: B,
        watch: W,
        settings: Settings,
        seen: Option<u64>,
        lenient: bool,
    ) -> Result<Recovered<B, W, D>, Stale> {
        let found = index.get(CHECKPOINT)?.ok_or_else(|| Stale::Index("it has no checkpoint".to_owned()))?;
        let found = Checkpoint::decode(&found).ok_or_else(|| Stale::Index("its checkpoint is damaged".to_owned()))?;
        if found.segment + 1 < journal.oldest() || found.segment > journal.newest() {
            let (oldest, newest) = (journal.oldest(), journal.newest());
            let why = format!("it ends with segment {}, the journal has {oldest} to {newest}", found.segment);
            return Err(Stale::Index(why));
        }
        let index = Arc::new(index);
        let mut replay = Replay {
            journal,
            index: &*index,
            keys_per_commit: settings.keys_per_commit,
            overlay: Overlay::default(),
            indexed: found,
            durable: 0,
            expected: None,
            gaps: 0,
        };
        for segment in found.segment + 1..=replay.journal.newest() {
            replay.segment(segment, seen, lenient)?;
            // All overlays but the last, which is checkpointed while the daemon already works.
            if segment < replay.journal.newest() && replay.overlay.bytes() >= settings.segment_bytes {
                replay.checkpoint(segment)?;
            }
        }
        let (newest, next) = (replay.journal.newest(), replay.expected);
        let next = match next {
            Some(next) => next,
            None => replay.next_commit_of(newest)?,
        };
        if let Some(seen) = seen.filter(|&seen| seen >= next) {
            replay.gap(lenient, || format!("it ends with commit {}, but {seen} was there", next.saturating_sub(1)))?;
        }
        let Replay { mut journal, overlay, indexed, gaps, durable, .. } = replay;
        if !lenient {
            journal.write_again(durable).map_err(writing)?;
        }
        journal.is_at(next.max(seen.map_or(0, |seen| seen + 1)));
        let checkpointer = Checkpointer::start(index.clone(), settings.checkpoints)?;
        let (frozen, reclaim) = (None, reclaim::Progress::default());
        let mut store =
            Self { journal, index, checkpointer, watch, settings, overlay, frozen, indexed, reclaim, uncounted: 0 };
        if !lenient && !store.overlay.is_empty() {
            store.freeze()?;
        } else if !lenient && (store.journal.newest() <= found.segment || store.journal.is_plain()) {
            // Begin a new segment in two cases. A segment without a salt must not grow. Neither must one up to whose end the index
            // is complete: its successor existed when the index recorded that, but a power cut can remove the successor if the
            // recording start came after a kill.
            store.journal.roll().map_err(writing)?;
        }
        Ok(Recovered { store, gaps })
    }
}

/// The journal being read.
struct Replay<'a, B, D: Files> {
    journal: Journal<D>,
    index: &'a B,
    keys_per_commit: usize,
    overlay: Overlay,
    indexed: Checkpoint,
    /// The offset up to which the last segment read is known to be durable.
    durable: u64,
    /// The number that the next commit must have. `None` before the first.
    expected: Option<u64>,
    gaps: u64,
}

impl<B: Index, D: Files> Replay<'_, B, D> {
    fn segment(&mut self, segment: u32, seen: Option<u64>, lenient: bool) -> Result<(), Stale> {
        if self.journal.segment_bytes(segment) == 0 {
            return self.gap(lenient, || format!("segment {segment} is missing"));
        }
        let mut at = self.journal.start(segment);
        self.durable = 0;
        if self.expected.is_none() {
            self.expected = self.journal.first_commit(segment).map_err(reading)?;
        }
        loop {
            match self.journal.read(segment, at).map_err(reading)? {
                Next::End => return Ok(()),
                Next::Frame(frame) => {
                    let (commit, expected) = (frame.commit, self.expected.unwrap_or(frame.commit));
                    if commit != expected {
                        self.gap(lenient, || {
                            format!("segment {segment}, byte {at}: commit {commit}, but {expected} comes next")
                        })?;
                    }
                    at = frame.end;
                    if seen.is_some_and(|seen| seen >= commit) {
                        self.durable = at;
                    }
                    self.note(frame);
                }
                Next::Bad { resumes_at: Some(next) } => {
                    self.gap(lenient, || format!("segment {segment}, bytes {at} to {next} are damaged"))?;
                    at = next;
                }
                Next::Bad { resumes_at: None } => {
                    let expected = self.expected.unwrap_or(0);
                    // Only the very last commit may be torn, and only if it was never acknowledged.
                    let torn = segment == self.journal.newest() && seen.is_none_or(|seen| seen < expected);
                    if !torn {
                        return self.gap(lenient, || format!("segment {segment}, from byte {at} on, is damaged"));
                    }
                    if !lenient {
                        tracing::info!(
                            segment,
                            at,
                            "removed an incomplete commit, which a crash cut off before it was acknowledged"
                        );
                        self.journal.cut(at).map_err(reading)?;
                    }
                    return Ok(());
                }
            }
        }
    }

    fn gap(&mut self, lenient: bool, why: impl FnOnce() -> String) -> Result<(), Stale> {
        if !lenient {
            return Err(Stale::Journal(why()));
        }
        self.gaps += 1;
        Ok(())
    }

    fn note(&mut self, frame: Frame) {
        self.expected = Some(frame.commit + 1);
        for (at, op) in frame.ops {
            let value = Value::read(op.value.as_ref());
            self.overlay.note(Key::from_slice(&op.key), Slot { value, at, is_new: false });
        }
    }

    fn checkpoint(&mut self, segment: u32) -> Result<(), Failed> {
        let overlay = Arc::new(std::mem::take(&mut self.overlay));
        let job = Job { overlay, from: self.indexed, segment, keys_per_commit: self.keys_per_commit };
        self.indexed = Writing::of(job).finish(self.index)?;
        Ok(())
    }

    /// The number of the next commit, if the index had everything.
    fn next_commit_of(&self, segment: u32) -> Result<u64, Stale> {
        let mut next = self.journal.first_commit(segment).map_err(reading)?.unwrap_or(0);
        let mut at = self.journal.start(segment);
        while let Next::Frame(frame) = self.journal.read(segment, at).map_err(reading)? {
            (next, at) = (frame.commit + 1, frame.end);
        }
        Ok(next)
    }
}

fn writing(error: io::Error) -> Failed {
    Failed::new("writing the journal", error)
}

fn reading(error: io::Error) -> Failed {
    Failed::new("reading the journal", error)
}
