//! A file that records the last durable commit of the journal. A journal that lost its end looks like one that never had it.
//! The witness detects that.
//!
//! Holds: a commit is durable in the journal before the witness records it. An unreadable witness is ignored. It is written
//! with every commit and synced with some. After a power cut it may be [`SYNC_EVERY`] commits behind, otherwise it is exact.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const NAME: &str = "witness";

/// The number of commits between two syncs of the witness. A sync with each would double the cost of a commit.
const SYNC_EVERY: u64 = 64;

/// A number and its complement, so that a partial write is detected.
const BYTES: usize = 16;

pub(super) struct Witness {
    file: File,
    seen: Option<u64>,
    synced: u64,
}

impl Witness {
    /// Opens the witness, or creates an empty one.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(NAME);
        let known = path.exists();
        let file = super::place::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        if !known {
            super::sync_dir(state_dir)?;
        }
        let mut bytes = [0; BYTES];
        let whole = file.read_exact_at(&mut bytes, 0).is_ok();
        let seen = if whole { read(&bytes) } else { None };
        Ok(Self { file, seen, synced: seen.unwrap_or(0) })
    }

    /// The last commit recorded as durable.
    pub(super) fn seen(&self) -> Option<u64> {
        self.seen
    }

    /// Records a durable commit.
    pub(super) fn committed(&mut self, commit: u64) -> io::Result<()> {
        let bytes = [commit.to_be_bytes(), (!commit).to_be_bytes()].concat();
        self.file.write_all_at(&bytes, 0)?;
        self.seen = Some(commit);
        if commit >= self.synced + SYNC_EVERY {
            self.file.sync_data()?;
            self.synced = commit;
        }
        Ok(())
    }
}

/// Whether a witness exists, which means that there was a store.
pub(super) fn tells_of_a_store(state_dir: &Path) -> bool {
    let bytes = fs::read(state_dir.join(NAME)).unwrap_or_default();
    bytes.first_chunk().and_then(read).is_some()
}

fn read(bytes: &[u8; BYTES]) -> Option<u64> {
    let (number, check) = bytes.split_at(BYTES / 2);
    let read = |half: &[u8]| half.try_into().map(u64::from_be_bytes).ok();
    let (number, check) = (read(number)?, read(check)?);
    (number == !check).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_the_last_commit_and_nothing_of_a_torn_write() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!tells_of_a_store(dir.path()));
        let mut witness = Witness::open(dir.path()).unwrap();
        assert_eq!(witness.seen(), None);
        witness.committed(7).unwrap();
        witness.committed(8).unwrap();
        assert_eq!(Witness::open(dir.path()).unwrap().seen(), Some(8));
        assert!(tells_of_a_store(dir.path()));
        witness.file.write_all_at(&[0xab], 3).unwrap();
        assert_eq!(Witness::open(dir.path()).unwrap().seen(), None);
    }
}
