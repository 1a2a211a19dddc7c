//! Giving back the journal's oldest segments, a piece with every commit.
//!
//! Holds: an op is given up only if it is not where the newest of its key stands, by the overlays and the index. Whether it
//! *pays* to look is decided by counts; whether an op may *go*, never.

use bytes::Bytes;

use super::{Journaled, Key, Next, Slot, Value, Watch};
use crate::outbox::journal::files::Files;
use crate::outbox::journal::{self, Location};
use crate::outbox::kv::{Batch, Failed, Index};

/// Bytes of the oldest segment that are looked at with a commit, beside four times its own; and at most so many, as what is
/// carried over makes the frame larger.
const PIECE_BYTES: u64 = 128 << 10;
const PIECE_BYTES_MAX: u64 = 16 << 20;

/// How far the oldest segment has been looked through.
#[derive(Debug, Default)]
pub struct Progress {
    segment: u32,
    at: u64,
    /// It cannot be read to its end, and must stay.
    stuck: bool,
}

impl<B: Index, W: Watch, D: Files> Journaled<B, W, D> {
    /// Whether the journal has more that is worthless than it may.
    pub(super) fn wants_reclaim(&self) -> bool {
        let (bytes, oldest) = (self.journal.bytes(), self.journal.oldest());
        if oldest > self.indexed.segment || (self.reclaim.stuck && self.reclaim.segment == oldest) {
            return false;
        }
        let (settings, live) = (&self.settings, self.live());
        let many = bytes > 2 * live + settings.slack;
        let tight = bytes + self.index.bytes() > settings.bytes_max / 4 * 3
            && bytes > live + live / 8 + 2 * settings.segment_bytes;
        many || tight
    }

    /// Looks through a piece of the oldest segment, and adds to the frame what must not go with it. Says whether that was
    /// its last piece: then, once the frame is durable, it may be removed.
    pub(super) fn reclaim(&mut self, batch: &Batch, noted: &mut Vec<(Key, Slot)>) -> Result<bool, Failed> {
        if !self.wants_reclaim() {
            return Ok(false);
        }
        let segment = self.journal.oldest();
        if self.reclaim.segment != segment {
            self.reclaim = Progress { segment, at: journal::START, stuck: false };
        }
        let own: u64 = batch.writes().map(|(key, value)| cost(key, value)).sum();
        let mut left = (PIECE_BYTES + 4 * own).min(PIECE_BYTES_MAX);
        loop {
            let next = self.journal.read(segment, self.reclaim.at);
            let frame = match next.map_err(|error| Failed::new("reading the journal", error))? {
                Next::Frame(frame) => frame,
                Next::End => return Ok(true),
                Next::Bad { .. } => {
                    self.reclaim.stuck = true;
                    self.watch.damaged();
                    tracing::error!(
                        segment,
                        at = self.reclaim.at,
                        "the journal is damaged: its oldest segment stays until a restart has salvaged what can be read"
                    );
                    return Ok(false);
                }
            };
            for (at, op) in frame.ops {
                let Some(value) = op.value else { continue };
                if batch.pending(&op.key).is_none() && self.is_newest(&op.key, at)? {
                    let (offset, bytes) = self.journal.frame().op(&op.key, Some(&value));
                    let at = Location { segment: 0, offset, bytes };
                    let value = Value::read(Some(&value));
                    noted.push((Key::from_slice(&op.key), Slot { value, at, is_new: false }));
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
        self.journal.remove_oldest().map_err(|error| Failed::new("removing a segment of the journal", error))
    }
}

fn cost(key: &[u8], value: Option<&Bytes>) -> u64 {
    (key.len() + value.map_or(0, Bytes::len)) as u64
}
