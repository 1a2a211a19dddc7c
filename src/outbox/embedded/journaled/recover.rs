//! Opening the store: what the index does not have yet is read from the journal.

use std::io;
use std::sync::Arc;

use super::checkpoint::{Checkpointer, Job, Writing};
use super::entry::{CHECKPOINT, Checkpoint};
use super::overlay::{Key, Overlay, Slot, Value};
use super::{Journaled, Settings, Watch, reclaim};
use crate::outbox::embedded::journal::files::{Directory, Files};
use crate::outbox::embedded::journal::{Frame, Journal, Next};
use crate::outbox::embedded::kv::{Batch, Failed, Index};

/// A store that is open, and what of its journal could not be read: nothing, unless that was allowed.
pub struct Recovered<B, W, D: Files = Directory> {
    pub store: Journaled<B, W, D>,
    pub gaps: u64,
}

/// Why a store cannot be opened as it is.
#[derive(Debug, thiserror::Error)]
pub enum Stale {
    /// Nothing is lost: an empty index of [`begin_index`] can take its place.
    #[error("{0}")]
    Index(String),
    #[error("{0}")]
    Journal(String),
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Makes an empty index one of a journal of which it has nothing yet.
pub fn begin_index<B: Index, D: Files>(index: &B, journal: &Journal<D>) -> Result<(), Failed> {
    let mut batch = Batch::default();
    let checkpoint = Checkpoint { segment: journal.oldest().saturating_sub(1), live: 0 };
    batch.put(CHECKPOINT.to_vec(), checkpoint.encode());
    index.commit(&batch)
}

impl<B: Index, W: Watch, D: Files> Journaled<B, W, D> {
    /// Opens the store. `seen` is the last commit that is known to have been durable; a journal that ends before it is damaged.
    /// With `lenient`, what cannot be read of the journal is left out and counted, and the journal is not written to.
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
            // All but the last, which is brought in while the daemon already works.
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
            // A segment without a salt takes no more. Or the index is complete up to the end of that segment, so nothing may be added to it. There was another one behind it
            // when the index was told so; a power cut can take that one, if the start that told it came after a kill.
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
    /// Up to here the segment that was read last is known to have been durable.
    durable: u64,
    /// The number that the next commit must have; none before the first.
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
                    // Only the last commit of all may be torn, and only if nobody was told of it.
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

    /// The number of the commit after the last, where the index had everything.
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
