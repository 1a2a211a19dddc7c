//! Damage in the journal: passing it while the oldest segment is reclaimed, and finding all of it.
//!
//! Holds: readable values in a damaged area are copied before their segment is removed. They are found by key: the index
//! says which current values are in the area. If such a value is lost, its key continues to point to the segment, which is
//! set aside. So a read of that key reports the damage.

use bytes::Bytes;

use super::{Journaled, Key, Next, Slot, Value, Watch};
use crate::outbox::embedded::journal::Location;
use crate::outbox::embedded::journal::files::Files;
use crate::outbox::embedded::kv::{Batch, Failed, Index};

/// The most keys visited with one commit.
const PIECE_KEYS: usize = 4_096;

/// The approximate bytes copied with one commit.
const PIECE_BYTES: u64 = 4 << 20;

/// Sorts after every key of the engine.
const END: &[u8] = &[0xff; 32];

/// The damaged area of the oldest segment that is being passed.
#[derive(Debug)]
pub struct Passing {
    from: u64,
    to: u64,
    /// Keys up to this one were visited.
    next: Vec<u8>,
}

/// Bytes of the journal that are not a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    pub segment: u32,
    pub from: u64,
    pub to: u64,
    /// Why the disk could not read them, if so.
    pub error: Option<String>,
}

impl std::fmt::Display for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { segment, from, to, error } = self;
        write!(f, "segment {segment} of the journal, bytes {from} to {to}: ")?;
        f.write_str(error.as_deref().unwrap_or("the checksum is wrong"))
    }
}

impl<B: Index, W: Watch, D: Files> Journaled<B, W, D> {
    /// Records that reclaiming found an area that is not a frame.
    pub(super) fn begin_passing(&mut self, segment: u32, resumes_at: Option<u64>, error: Option<String>) {
        let (from, end) = (self.reclaim.at, self.journal.segment_bytes(segment));
        let area = Area { segment, from, to: resumes_at.unwrap_or(end), error };
        tracing::error!(
            %area,
            "the journal is damaged: copying what is readable of the damaged area; `sendoff fsck` says whether anything is lost"
        );
        self.reclaim.passing = Some(Passing { from, to: area.to, next: Vec::new() });
    }

    /// Copies a piece of the readable values in the damaged area. Returns whether the area is passed.
    pub(super) fn pass(
        &mut self,
        passing: Passing,
        batch: &Batch,
        noted: &mut Vec<(Key, Slot)>,
    ) -> Result<bool, Failed> {
        let segment = self.journal.oldest();
        let (mut wanted, mut seen, mut bytes, mut last) = (Vec::new(), 0, 0, None);
        for found in self.merged(&passing.next, END) {
            let (key, newest) = found?;
            let (at, held) = self.place_of(newest)?;
            let inside = at.segment == segment && (passing.from..passing.to).contains(&u64::from(at.offset));
            if inside && batch.pending(&key).is_none() {
                bytes += u64::from(at.bytes);
                wanted.push((key.clone(), at, held));
            }
            seen += 1;
            last = Some(key);
            if seen == PIECE_KEYS || bytes >= PIECE_BYTES {
                break;
            }
        }
        for (key, at, held) in wanted {
            match held.map_or_else(|| self.value_at(&key, at), Ok) {
                Ok(value) => self.carry_over(&key, &value, noted),
                Err(failed) if failed.passes => {
                    // A later commit visits the same piece again.
                    self.reclaim.passing = Some(passing);
                    return Ok(false);
                }
                Err(failed) if failed.one_value => self.reclaim.lost = true,
                Err(failed) => return Err(failed),
            }
        }
        match last.filter(|_| seen == PIECE_KEYS || bytes >= PIECE_BYTES) {
            Some(last) => {
                self.reclaim.passing = Some(Passing { next: [&last[..], &[0]].concat(), ..passing });
                Ok(false)
            }
            None => {
                self.reclaim.at = passing.to;
                Ok(true)
            }
        }
    }

    pub(super) fn carry_over(&mut self, key: &[u8], value: &Bytes, noted: &mut Vec<(Key, Slot)>) {
        let (offset, bytes) = self.journal.frame().op(key, Some(value));
        let at = Location { segment: 0, offset, bytes };
        noted.push((Key::from_slice(key), Slot { value: Value::read(Some(value)), at, is_new: false }));
    }

    /// Reads the whole journal and reports every damaged area, including those no longer needed.
    pub fn damaged_areas(&self) -> Vec<Area> {
        let mut areas = Vec::new();
        for segment in self.journal.oldest()..=self.journal.newest() {
            let (mut at, end) = (self.journal.start(segment), self.journal.segment_bytes(segment));
            loop {
                let (resumes_at, error) = match self.journal.read_on(segment, at) {
                    Ok((Next::Frame(frame), _)) => {
                        at = frame.end;
                        continue;
                    }
                    Ok((Next::End, _)) => break,
                    Ok((Next::Bad { resumes_at }, error)) => (resumes_at, error),
                    Err(error) => (None, Some(error.to_string())),
                };
                let to = resumes_at.unwrap_or(end);
                areas.push(Area { segment, from: at, to, error });
                at = to;
                if resumes_at.is_none() {
                    break;
                }
            }
        }
        areas
    }
}
