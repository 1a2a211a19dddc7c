//! A file beside the store that remembers how far the store had come: sled can lose its log and open, cleanly, as an older
//! or an empty store. The witness makes that loud.
//!
//! Holds: what the witness says was durable in the store before. A witness that cannot be read says nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::clock::UnixMillis;

const NAME: &str = "witness";

/// The witness follows the store's clock at this distance: one sync of its own in so many milliseconds of work.
const EVERY_MS: u64 = 10_000;

/// A time, and its complement: half a write is no witness.
const BYTES: usize = 16;

pub(super) struct Witness {
    file: File,
    seen: Option<UnixMillis>,
}

impl Witness {
    /// Opens it, or makes an empty one.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(NAME);
        let known = path.exists();
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        if !known {
            super::sync_dir(state_dir)?;
        }
        let mut bytes = [0; BYTES];
        let whole = file.read_exact_at(&mut bytes, 0).is_ok();
        Ok(Self { file, seen: if whole { read(&bytes) } else { None } })
    }

    /// The time up to which the store was durable, at least.
    pub(super) fn seen(&self) -> Option<UnixMillis> {
        self.seen
    }

    /// To be told of the clock that a commit has made durable.
    pub(super) fn committed(&mut self, clock: UnixMillis) -> io::Result<()> {
        if self.seen.is_some_and(|seen| clock.0 < seen.0.saturating_add(EVERY_MS)) {
            return Ok(());
        }
        let bytes = [clock.0.to_be_bytes(), (!clock.0).to_be_bytes()].concat();
        self.file.write_all_at(&bytes, 0)?;
        self.file.sync_data()?;
        self.seen = Some(clock);
        Ok(())
    }
}

/// Whether there is one: then there was a store.
pub(super) fn tells_of_a_store(state_dir: &Path) -> bool {
    let bytes = fs::read(state_dir.join(NAME)).unwrap_or_default();
    bytes.first_chunk().and_then(read).is_some()
}

fn read(bytes: &[u8; BYTES]) -> Option<UnixMillis> {
    let (time, check) = bytes.split_at(BYTES / 2);
    let number = |half: &[u8]| half.try_into().map(u64::from_be_bytes).ok();
    let (time, check) = (number(time)?, number(check)?);
    (time == !check).then_some(UnixMillis(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_the_time_and_nothing_of_a_torn_write() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!tells_of_a_store(dir.path()));
        let mut witness = Witness::open(dir.path()).unwrap();
        assert_eq!(witness.seen(), None);
        witness.committed(UnixMillis(50_000)).unwrap();
        witness.committed(UnixMillis(50_001)).unwrap();
        assert_eq!(Witness::open(dir.path()).unwrap().seen(), Some(UnixMillis(50_000)), "too near to be written");
        witness.committed(UnixMillis(60_000)).unwrap();
        assert_eq!(Witness::open(dir.path()).unwrap().seen(), Some(UnixMillis(60_000)));
        assert!(tells_of_a_store(dir.path()));
        witness.file.write_all_at(&[0xab], 3).unwrap();
        assert_eq!(Witness::open(dir.path()).unwrap().seen(), None);
    }
}
