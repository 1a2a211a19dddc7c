//! Distinguishes frames of the journal from payload bytes that imitate one.
//!
//! The journal contains payloads as clients sent them, and a client can send the bytes of a frame. After damage, recovery
//! searches byte by byte for the next complete frame, through payloads too. So every store has a salt: random bytes that no
//! client knows. Each frame begins with half of the salt, and its checksum starts from all of it.
//!
//! The head of every segment contains the salt. So does the file `salt`, for segments whose head is damaged:
//!
//! ```text
//! salt   magic "sendoffS" | salt 8 bytes | first segment that has it u32 | crc u32 of what stands before it
//! ```
//!
//! Segments of format 1 have no salt. They are still read, but no longer written.

/// The random bytes of a store.
pub type Salt = [u8; 8];

/// How the frames of one segment are marked and checksummed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The first bytes of every frame.
    pub(super) mark: [u8; 4],
    /// The checksum of the salt, from which every frame's checksum starts.
    pub(super) crc: u32,
    /// Where the first frame begins.
    pub start: u64,
}

impl Seal {
    /// The seal of format 1.
    pub const PLAIN: Self = Self { mark: *b"FRAM", crc: 0, start: super::frame::PLAIN_HEAD_BYTES as u64 };

    pub fn of(salt: Option<Salt>) -> Self {
        let Some(salt) = salt else { return Self::PLAIN };
        let [a, b, c, d, ..] = salt;
        Self { mark: [a, b, c, d], crc: crc32fast::hash(&salt), start: super::frame::SEGMENT_HEAD_BYTES as u64 }
    }
}

const MAGIC: &[u8; 8] = b"sendoffS";

const BYTES: usize = 24;

/// The contents of the file `salt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub salt: Salt,
    /// The first segment with the salt. Earlier ones have none.
    pub since: u32,
}

impl Kept {
    pub fn encode(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.salt);
        bytes[16..20].copy_from_slice(&self.since.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..20]);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (said, crc) = bytes.split_at_checked(20)?;
        let (magic, rest) = said.split_first_chunk::<8>()?;
        let (salt, since) = rest.split_first_chunk::<8>()?;
        let whole = magic == MAGIC && crc == crc32fast::hash(said).to_le_bytes();
        whole.then_some(Self { salt: *salt, since: u32::from_le_bytes(since.try_into().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_salt_is_read_back_and_damage_is_found_wherever_it_is() {
        let kept = Kept { salt: *b"12345678", since: 7 };
        let bytes = kept.encode();
        assert_eq!(Kept::decode(&bytes), Some(kept));
        for at in 0..BYTES {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            assert_eq!(Kept::decode(&damaged), None, "byte {at}");
            assert_eq!(Kept::decode(&bytes[..at]), None);
        }
    }
}
