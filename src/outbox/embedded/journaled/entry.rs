//! The encoding of the index: the location of a key's value in the journal, and the value itself if it is short.
//!
//! ```text
//! entry        segment u32 | offset u32 | bytes u32 | inlined: u8 | value, if inlined
//! checkpoint   segment u32 | live bytes u64          under a key of its own
//! ```
//!
//! Numbers are big-endian.

use bytes::Bytes;

use crate::outbox::embedded::journal::Location;

/// Values up to this many bytes are also in the index: counts of lanes, remembered keys, indexes by time.
pub const INLINE_BYTES_MAX: usize = 128;

/// Sorts before every key of the engine.
pub const CHECKPOINT: &[u8] = &[0];

const HEAD_BYTES: usize = 13;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub at: Location,
    pub inlined: Option<Bytes>,
}

impl Entry {
    pub fn of(at: Location, value: &Bytes) -> Self {
        Self { at, inlined: (value.len() <= INLINE_BYTES_MAX).then(|| value.clone()) }
    }

    pub fn encode(&self) -> Vec<u8> {
        let value = self.inlined.as_deref().unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + value.len());
        for number in [self.at.segment, self.at.offset, self.at.bytes] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.push(u8::from(self.inlined.is_some()));
        bytes.extend_from_slice(value);
        bytes
    }

    /// `None` if the bytes are not an entry.
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let head: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let at = Location { segment: number(0), offset: number(4), bytes: number(8) };
        match head[12] {
            0 if bytes.len() == HEAD_BYTES => Some(Self { at, inlined: None }),
            1 => Some(Self { at, inlined: Some(bytes.slice(HEAD_BYTES..)) }),
            _ => None,
        }
    }
}

/// The progress of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The index has everything up to the end of this segment.
    pub segment: u32,
    /// The journal bytes of everything in the index, including the commits of an unfinished checkpoint.
    pub live: u64,
}

impl Checkpoint {
    pub fn encode(self) -> Vec<u8> {
        [&self.segment.to_be_bytes()[..], &self.live.to_be_bytes()].concat()
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (segment, live) = bytes.split_first_chunk()?;
        Some(Self { segment: u32::from_be_bytes(*segment), live: u64::from_be_bytes(live.try_into().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_anything_else_is_not_taken_for_it() {
        let at = Location { segment: 7, offset: 70_000, bytes: 1_300 };
        for bytes in [0, 1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1] {
            let entry = Entry::of(at, &Bytes::from(vec![9; bytes]));
            assert_eq!(entry.inlined.is_some(), bytes <= INLINE_BYTES_MAX);
            assert_eq!(Entry::decode(&entry.encode().into()), Some(entry));
        }
        for wrong in [&[][..], &[0; 12], &[2; 13], &[0; 14]] {
            assert_eq!(Entry::decode(&Bytes::copy_from_slice(wrong)), None);
        }
        let checkpoint = Checkpoint { segment: 3, live: 1 << 40 };
        assert_eq!(Checkpoint::decode(&checkpoint.encode()), Some(checkpoint));
        assert_eq!(Checkpoint::decode(&[1; 5]), None);
    }
}
