//! Reclaims the journal's oldest segments, a piece with every commit.
//!
//! Holds: an op is dropped only if the overlays and the index say that it is not its key's current value. Counts decide
//! whether reclaiming pays, but never whether an op may be dropped.

use bytes::Bytes;

use super::damage::Passing;
use super::{Journaled, Key, Next, Slot, Watch};
use crate::outbox::embedded::journal::Location;
use crate::outbox::embedded::journal::files::{Files, is_out_of_descriptors};
use crate::outbox::embedded::kv::{Batch, Failed, Index};

/// A commit visits this many bytes of the oldest segment, plus four times its own size.
const PIECE_BYTES: u64 = 128 << 10;

/// The most bytes that a commit visits, because copied ops make the frame larger.
const PIECE_BYTES_MAX: u64 = 16 << 20;

/// The progress in the oldest segment.
#[derive(Debug, Default)]
pub struct Progress {
    segment: u32,
    pub(super) at: u64,
    /// A damaged area that is being passed.
    pub(super) passing: Option<Passing>,
    /// A value that is still needed is lost. The segment is set aside instead of removed.
    pub(super) lost: bool,
}

impl<B: Index, W: Watch, D: Files> Journaled<B, W, D> {
    /// Whether the journal has more dead bytes than it may.
    pub(super) fn wants_reclaim(&self) -> bool {
        let (bytes, oldest) = (self.journal.bytes(), self.journal.oldest());
        if oldest > self.indexed.segment {
            return false;
        }
        let (settings, live) = (&self.settings, self.live());
        let many = bytes > 2 * live + settings.slack;
        let tight = bytes + self.index.bytes() > settings.bytes_max / 4 * 3
            && bytes > live + live / 8 + 2 * settings.segment_bytes;
        many || tight
    }

    /// Visits a piece of the oldest segment and copies live ops into the frame. Returns whether this was the last piece. The
    /// segment may then be removed once the frame is durable.
    pub(super) fn reclaim(&mut self, batch: &Batch, noted: &mut Vec<(Key, Slot)>) -> Result<bool, Failed> {
        if !self.wants_reclaim() {
            return Ok(false);
        }
        let segment = self.journal.oldest();
        if self.reclaim.segment != segment {
            self.reclaim = Progress { segment, at: self.journal.start(segment), passing: None, lost: false };
        }
        let own: u64 = batch.writes().map(|(key, value)| cost(key, value)).sum();
        let mut left = (PIECE_BYTES + 4 * own).min(PIECE_BYTES_MAX);
        loop {
            if let Some(passing) = self.reclaim.passing.take() {
                if !self.pass(passing, batch, noted)? {
                    return Ok(false);
                }
                continue;
            }
            let next = self.journal.read_on(segment, self.reclaim.at);
            let next = match next {
                // A later commit continues.
                Err(error) if is_out_of_descriptors(&error) => return Ok(false),
                next => next.map_err(|error| Failed::new("opening a segment of the journal", error))?,
            };
            let frame = match next {
                (Next::Frame(frame), _) => frame,
                (Next::End, _) => return Ok(true),
                (Next::Bad { resumes_at }, error) => {
                    self.begin_passing(segment, resumes_at, error);
                    continue;
                }
            };
            for (at, op) in frame.ops {
                let Some(value) = op.value else { continue };
                if batch.pending(&op.key).is_none() && self.is_newest(&op.key, at)? {
                    self.carry_over(&op.key, &value, noted);
                }
            }
            left = left.saturating_sub(frame.end - self.reclaim.at);
            self.reclaim.at = frame.end;
            if left == 0 {
                return Ok(self.reclaim.at >= self.journal.segment_bytes(segment));
            }
        }
    }

    fn is_newest(&self, key: &[u8], at: Location) -> Result<bool, Failed> {
        Ok(self.newest(key)?.is_some_and(|(newest, _)| newest == at))
    }

    pub(super) fn remove_oldest(&mut self) -> Result<(), Failed> {
        let removed = if self.reclaim.lost {
            tracing::error!(
                segment = self.reclaim.segment,
                "a journal segment contains a lost value: keeping it as *.segment.damaged in the journal directory"
            );
            self.journal.set_oldest_aside()
        } else {
            self.journal.remove_oldest()
        };
        removed.map_err(|error| Failed::new("removing a segment of the journal", error))
    }
}

fn cost(key: &[u8], value: Option<&Bytes>) -> u64 {
    (key.len() + value.map_or(0, Bytes::len)) as u64
}
