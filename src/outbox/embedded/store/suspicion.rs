//! Records damage that was found at run time, so that the next start examines the store.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const NAME: &str = "suspect";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// The index is suspect. It is rebuilt from the journal.
    Index,
    /// The journal is suspect. Everything is read.
    Journal,
}

pub(super) struct Note {
    state_dir: PathBuf,
}

impl Note {
    pub(super) fn of(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }

    pub(super) fn read(&self) -> Option<Suspicion> {
        let text = fs::read(self.state_dir.join(NAME)).ok()?;
        Some(if text == b"index" { Suspicion::Index } else { Suspicion::Journal })
    }

    /// If even this fails, the damage will be found again.
    pub(super) fn raise(&self, suspicion: Suspicion) {
        let text: &[u8] = match suspicion {
            Suspicion::Index => b"index",
            Suspicion::Journal => b"journal",
        };
        // The more serious suspicion stays. A salvage of the journal rebuilds the index in any case.
        if self.read().is_none() && fs::write(self.state_dir.join(NAME), text).is_ok() {
            super::sync_dir(&self.state_dir).ok();
        }
    }

    pub(super) fn clear(&self) -> io::Result<()> {
        match fs::remove_file(self.state_dir.join(NAME)) {
            Ok(()) => super::sync_dir(&self.state_dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}
