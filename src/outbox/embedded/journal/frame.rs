//! The encoding of a journal: the head of a segment, and its frames. Pure.
//!
//! ```text
//! segment   head frame frame ...
//! head      magic "sendoffJ" | format u32 | number u32 | first commit u64 | crc u32 of what stands before it
//!           | salt 8 bytes | crc u32 of all that stands before it
//! frame     salt, its first 4 bytes | body length u32 | commit u64 | crc u32 of salt, length, commit and body | body: op op ...
//! op        crc u32 of the rest of the op | value length u32, or all ones for a removal | key length u8 | key | value
//! ```
//!
//! Numbers are little-endian; crc is CRC-32 (IEEE 802.3). A frame is one commit. An op carries a checksum of its own, so that
//! one value can be read, and trusted, without its frame. The salt keeps a payload from passing for a frame (seal.rs).
//!
//! Format 1 had no salt: its heads end with the first crc, and its frames begin with "FRAM".

use bytes::Bytes;
use crc32fast::Hasher;

use super::seal::{Salt, Seal};

/// The format that this build writes, and the latest that it reads.
pub const FORMAT: u32 = 2;

/// The format without a salt.
const PLAIN_FORMAT: u32 = 1;

/// The bytes of a segment's head, now and in format 1. The first ones are the same in all formats.
pub const SEGMENT_HEAD_BYTES: usize = 40;
pub const PLAIN_HEAD_BYTES: usize = 28;

pub const FRAME_HEAD_BYTES: usize = 20;

const OP_HEAD_BYTES: usize = 9;

const SEGMENT_MAGIC: &[u8; 8] = b"sendoffJ";

const REMOVAL: u32 = u32::MAX;

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    pub number: u32,
    /// The number of its first commit.
    pub first_commit: u64,
    /// `None` in a segment of format 1.
    pub salt: Option<Salt>,
}

/// Why this build cannot use the head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHead {
    Newer(u32),
    Damaged,
}

impl SegmentHead {
    pub fn encode(self) -> Vec<u8> {
        let format = if self.salt.is_some() { FORMAT } else { PLAIN_FORMAT };
        let mut bytes = Vec::with_capacity(SEGMENT_HEAD_BYTES);
        bytes.extend_from_slice(SEGMENT_MAGIC);
        bytes.extend_from_slice(&format.to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.first_commit.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        if let Some(salt) = self.salt {
            bytes.extend_from_slice(&salt);
            bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        }
        bytes
    }

    /// Reads the head at the start of `bytes`. Earlier builds read as far as the format, so they refuse newer formats by number.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHead> {
        let plain: &[u8; PLAIN_HEAD_BYTES] = bytes.first_chunk().ok_or(BadHead::Damaged)?;
        if &plain[..8] != SEGMENT_MAGIC || crc32fast::hash(&plain[..24]) != u32_at(plain, 24) {
            return Err(BadHead::Damaged);
        }
        let salt = match u32_at(plain, 8) {
            PLAIN_FORMAT => None,
            FORMAT => {
                let whole: &[u8; SEGMENT_HEAD_BYTES] = bytes.first_chunk().ok_or(BadHead::Damaged)?;
                if crc32fast::hash(&whole[..36]) != u32_at(whole, 36) {
                    return Err(BadHead::Damaged);
                }
                Some(u64_at(whole, PLAIN_HEAD_BYTES).to_le_bytes())
            }
            format if format > FORMAT => return Err(BadHead::Newer(format)),
            _ => return Err(BadHead::Damaged),
        };
        Ok(Self { number: u32_at(plain, 12), first_commit: u64_at(plain, 16), salt })
    }
}

/// The head of a frame. The body is not checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    pub commit: u64,
    pub body_bytes: u32,
    crc: u32,
}

impl FrameHead {
    /// `None` if no frame with this `seal` begins here.
    pub fn decode(bytes: &[u8], seal: &Seal) -> Option<Self> {
        let bytes: &[u8; FRAME_HEAD_BYTES] = bytes.first_chunk()?;
        (bytes[..4] == seal.mark).then(|| Self {
            body_bytes: u32_at(bytes, 4),
            commit: u64_at(bytes, 8),
            crc: u32_at(bytes, 16),
        })
    }

    pub fn fits(self, body: &[u8], seal: &Seal) -> bool {
        body.len() == self.body_bytes as usize && frame_crc(seal, self.body_bytes, self.commit, body) == self.crc
    }
}

/// The next offset from `from` on that has the first bytes of a frame with this `seal`.
pub fn find_mark(bytes: &[u8], from: usize, seal: &Seal) -> Option<usize> {
    let found = bytes.get(from..)?.windows(seal.mark.len()).position(|window| window == seal.mark)?;
    Some(from + found)
}

/// The memory that is always kept for the next frame, in bytes.
const KEPT_BYTES: usize = 256 << 10;

/// Builds frames, and reuses its memory.
#[derive(Debug, Default)]
pub struct FrameWriter {
    bytes: Vec<u8>,
    /// The largest frame since the last [`FrameWriter::shrink`].
    peak: usize,
}

impl FrameWriter {
    pub fn begin(&mut self) {
        self.bytes.clear();
        self.bytes.resize(FRAME_HEAD_BYTES, 0);
    }

    /// Adds an op. Returns its offset in the frame and its length.
    pub fn op(&mut self, key: &[u8], value: Option<&[u8]>) -> (u32, u32) {
        let at = self.bytes.len();
        let value_bytes = value.map_or(REMOVAL, |value| value.len() as u32);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&value_bytes.to_le_bytes());
        self.bytes.push(key.len() as u8);
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        let crc = crc32fast::hash(&self.bytes[at + 4..]);
        self.bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        (at as u32, (self.bytes.len() - at) as u32)
    }

    /// The bytes so far, including the head.
    pub fn frame_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Frees the memory of a large frame that no frame since the last call needed.
    pub fn shrink(&mut self) {
        let needed = std::mem::take(&mut self.peak).max(KEPT_BYTES);
        if self.bytes.capacity() > 2 * needed {
            self.bytes.clear();
            self.bytes.shrink_to(needed);
        }
    }

    /// The complete frame, for a segment with this seal.
    pub fn finish(&mut self, commit: u64, seal: &Seal) -> &[u8] {
        let (head, body) = self.bytes.split_at_mut(FRAME_HEAD_BYTES);
        let body_bytes = body.len() as u32;
        head[..4].copy_from_slice(&seal.mark);
        head[4..8].copy_from_slice(&body_bytes.to_le_bytes());
        head[8..16].copy_from_slice(&commit.to_le_bytes());
        head[16..].copy_from_slice(&frame_crc(seal, body_bytes, commit, body).to_le_bytes());
        self.peak = self.peak.max(self.bytes.len());
        &self.bytes
    }
}

/// The size of an op in bytes.
pub fn op_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    OP_HEAD_BYTES + key_bytes + value_bytes
}

/// One write in a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub key: Bytes,
    /// `None` removes the key.
    pub value: Option<Bytes>,
}

/// The op at the start of `bytes`, and its length. `None` if it is damaged.
pub fn read_op(bytes: &Bytes) -> Option<(Op, usize)> {
    let head: &[u8; OP_HEAD_BYTES] = bytes.first_chunk()?;
    let (crc, value_bytes, key_bytes) = (u32_at(head, 0), u32_at(head, 4), usize::from(head[8]));
    let key_end = OP_HEAD_BYTES + key_bytes;
    let end = if value_bytes == REMOVAL { key_end } else { key_end.checked_add(value_bytes as usize)? };
    if crc32fast::hash(bytes.get(4..end)?) != crc {
        return None;
    }
    let value = (value_bytes != REMOVAL).then(|| bytes.slice(key_end..end));
    Some((Op { key: bytes.slice(OP_HEAD_BYTES..key_end), value }, end))
}

fn frame_crc(seal: &Seal, body_bytes: u32, commit: u64, body: &[u8]) -> u32 {
    let mut crc = Hasher::new_with_initial(seal.crc);
    crc.update(&body_bytes.to_le_bytes());
    crc.update(&commit.to_le_bytes());
    crc.update(body);
    crc.finalize()
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Ops = Vec<(Vec<u8>, Option<Vec<u8>>)>;

    const SALT: Salt = *b"\x07salt\0\xff\x10";

    fn seal() -> Seal {
        Seal::of(Some(SALT))
    }

    fn write(commit: u64, ops: &Ops, seal: &Seal) -> Vec<u8> {
        let mut frame = FrameWriter::default();
        frame.begin();
        for (key, value) in ops {
            frame.op(key, value.as_deref());
        }
        frame.finish(commit, seal).to_vec()
    }

    fn read(frame: &[u8], seal: &Seal) -> Option<(u64, Ops)> {
        let head = FrameHead::decode(frame, seal)?;
        let mut body = Bytes::copy_from_slice(&frame[FRAME_HEAD_BYTES..]);
        if !head.fits(&body, seal) {
            return None;
        }
        let mut ops = Vec::new();
        while !body.is_empty() {
            let (op, end) = read_op(&body)?;
            ops.push((op.key.to_vec(), op.value.map(|value| value.to_vec())));
            body = body.slice(end..);
        }
        Some((head.commit, ops))
    }

    fn any_ops() -> impl Strategy<Value = Ops> {
        let key = proptest::collection::vec(any::<u8>(), 0..40);
        let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..3_000));
        proptest::collection::vec((key, value), 0..8)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(commit in any::<u64>(), ops in any_ops(), salt in any::<Option<Salt>>()) {
            let seal = Seal::of(salt);
            prop_assert_eq!(read(&write(commit, &ops, &seal), &seal), Some((commit, ops)));
        }

        #[test]
        fn a_changed_byte_is_found_wherever_it_is(ops in any_ops(), at in any::<usize>(), bit in 0..8_u8) {
            let mut frame = write(7, &ops, &seal());
            let at = at % frame.len();
            frame[at] ^= 1 << bit;
            prop_assert_eq!(read(&frame, &seal()), None);
        }

        #[test]
        fn damaged_bytes_are_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(SegmentHead::decode(&bytes).is_err());
            prop_assert!(FrameHead::decode(&bytes, &seal()).is_none_or(|head| !head.fits(&bytes, &seal())));
            drop(read_op(&Bytes::from(bytes)));
        }

        #[test]
        fn a_frame_under_any_other_salt_is_none(ops in any_ops(), salt in any::<Option<Salt>>()) {
            prop_assume!(salt != Some(SALT));
            // Even if half of it is known.
            let other = Seal::of(salt);
            let half_known = Seal { mark: seal().mark, ..other };
            for forger in [other, half_known] {
                prop_assert_eq!(read(&write(7, &ops, &forger), &seal()), None);
            }
        }
    }

    #[test]
    fn a_segment_s_head_is_read_back_refused_if_damaged_and_named_if_newer() {
        for salt in [None, Some(SALT)] {
            let head = SegmentHead { number: 3, first_commit: u64::MAX - 5, salt };
            let bytes = head.encode();
            assert_eq!(bytes.len() as u64, Seal::of(salt).start);
            assert_eq!(SegmentHead::decode(&bytes), Ok(head));
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                assert_eq!(SegmentHead::decode(&damaged), Err(BadHead::Damaged), "byte {at}");
            }
            let mut newer = bytes;
            newer[8..12].copy_from_slice(&3_u32.to_le_bytes());
            let crc = crc32fast::hash(&newer[..24]);
            newer[24..28].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(SegmentHead::decode(&newer), Err(BadHead::Newer(3)));
        }
    }

    #[test]
    fn builds_that_know_no_salt_see_a_newer_format_and_no_damage() {
        let bytes = SegmentHead { number: 3, first_commit: 9, salt: Some(SALT) }.encode();
        // What such a build reads of a head.
        let known: &[u8; 28] = bytes.first_chunk().unwrap();
        assert_eq!(crc32fast::hash(&known[..24]), u32_at(known, 24));
        assert_eq!((&known[..8], u32_at(known, 8)), (&b"sendoffJ"[..], 2));
    }

    #[test]
    fn the_memory_of_a_large_frame_is_given_back_once_frames_are_small_again() {
        let mut frame = FrameWriter::default();
        let mut write = |bytes: usize| {
            frame.begin();
            frame.op(b"k", Some(&vec![0; bytes]));
            frame.finish(1, &seal());
            frame.shrink();
            frame.bytes.capacity()
        };
        assert!(write(8 << 20) >= 8 << 20, "the last frames were large");
        assert!(write(100) <= KEPT_BYTES);
    }
}
