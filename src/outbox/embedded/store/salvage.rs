//! Salvages a damaged store: a new store gets everything readable, and the damaged one is kept unchanged under a dated
//! name for further recovery by hand.
//!
//! Holds: deletes nothing except its own unfinished copies. A crash at any point leaves either the damaged store in place,
//! or the complete new one in place or about to be moved there.
//! Limits: needs free space for a copy of the index and for what is salvaged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::place::make_dir;
use super::{INDEX, JOURNAL, STORE, create, create_index_aside, io_error, open_journal, sync_dir};
use crate::clock::Clock;
use crate::outbox::OpenError;
use crate::outbox::embedded::Settings;
use crate::outbox::embedded::engine::FORMAT;
use crate::outbox::embedded::journal::files::{salt_in, segments_in};
use crate::outbox::embedded::journaled::{self, Journaled, Recovered, Stale, Watch};
use crate::outbox::embedded::kv::Kv;
use crate::outbox::embedded::repair::{self, Report};
use crate::outbox::embedded::sled::{SledIndex, sync_all_below, wait_until_let_go};
use crate::outbox::embedded::{journal, keys};

/// A copy to read from, because opening a store changes it.
const COPY: &str = "outbox.copy";

/// The salvaged store. It is complete once the damaged store has been moved away.
const SALVAGED: &str = "outbox.salvaged";

/// The part of a damaged store's new name between its old name and the time.
const DAMAGED: &str = ".damaged-";

/// What was done about a damaged store.
#[derive(Debug, Clone)]
pub struct Salvage {
    pub report: Report,
    /// Where the damaged store or index is kept.
    pub kept: PathBuf,
}

/// How a copy is read. The old index may help to read a journal that has lost a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    AsItIs,
    ByItsJournalAlone,
}

/// Nobody writes to a copy, so there is nothing to record.
struct Nobody;

impl Watch for Nobody {
    fn committed(&self, _commit: u64) -> io::Result<()> {
        Ok(())
    }

    fn damaged(&self) {}

    fn free(&self) -> Option<u64> {
        None
    }
}

type Copy = Journaled<SledIndex, Nobody>;

/// Completes or removes an interrupted salvage.
pub(super) fn finish_interrupted(state_dir: &Path) -> io::Result<()> {
    let (store, salvaged, copy) = (state_dir.join(STORE), state_dir.join(SALVAGED), state_dir.join(COPY));
    if copy.exists() {
        fs::remove_dir_all(copy)?;
    }
    if !salvaged.exists() {
        return Ok(());
    }
    if store.exists() {
        return fs::remove_dir_all(salvaged);
    }
    fs::rename(salvaged, store)?;
    sync_dir(state_dir)
}

/// Replaces the store by its readable part. `seen` is the last commit known to be durable: the new store continues from
/// there.
pub(super) fn replace(state_dir: &Path, settings: &Settings, seen: Option<u64>) -> Result<Salvage, OpenError> {
    let store = state_dir.join(STORE);
    let failed = |doing: &str, error: &dyn std::fmt::Display| OpenError::Damaged {
        path: store.display().to_string(),
        why: format!("{doing}: {error}; it was left as it is (docs/power-loss.md says what can be done)"),
    };
    let salvaged = state_dir.join(SALVAGED);
    create(&salvaged, settings, seen.map_or(1, |seen| seen + 1))?;
    let source = readable_copy(state_dir, settings, seen)?;
    if let Some(newer) = source.as_ref().and_then(|(source, _)| newer(source, &store)) {
        return Err(newer);
    }
    let journal = open_journal(&salvaged, false)?;
    let target = unwatched(&salvaged, journal, settings, None, false);
    let mut target = target.map_err(|e| failed("salvaging it", &e))?.store;
    let report = match &source {
        Some((source, gaps)) => repair::rebuild(source, &mut target)
            .map(|report| Report { unreadable_ranges: report.unreadable_ranges + gaps, ..report }),
        None => repair::rebuild(&crate::outbox::embedded::memory::MemoryDisk::default().open(), &mut target)
            .map(|empty| Report { unreadable_ranges: 1, ..empty }),
    };
    let report = report.map_err(|e| failed("salvaging it", &e))?;
    drop((source, target));
    let moved = || -> io::Result<PathBuf> {
        wait_until_let_go(&salvaged.join(INDEX))?;
        sync_all_below(&salvaged)?;
        sync_dir(state_dir)?;
        let kept = free_name(state_dir, STORE);
        fs::rename(&store, &kept)?;
        fs::rename(&salvaged, &store)?;
        sync_dir(state_dir)?;
        Ok(kept)
    };
    let kept = moved().map_err(|e| failed("putting the salvaged store in its place", &e))?;
    // Its content is no longer needed. If it stays, the next start removes it.
    fs::remove_dir_all(state_dir.join(COPY)).ok();
    Ok(Salvage { report, kept })
}

/// The opened copy with the most readable events, and the number of gaps in its journal. `None` if no copy opens.
fn readable_copy(state_dir: &Path, settings: &Settings, seen: Option<u64>) -> Result<Option<(Copy, u64)>, OpenError> {
    let mut best = None;
    for how in [How::AsItIs, How::ByItsJournalAlone] {
        if let Some((copy, _)) = open_copy(state_dir, settings, seen, how)? {
            let events = repair::check(&copy).events;
            if best.is_none_or(|(most, _)| events > most) {
                best = Some((events, how));
            }
        }
    }
    match best {
        Some((_, how)) => open_copy(state_dir, settings, seen, how),
        None => Ok(None),
    }
}

fn open_copy(
    state_dir: &Path,
    settings: &Settings,
    seen: Option<u64>,
    how: How,
) -> Result<Option<(Copy, u64)>, OpenError> {
    let copy = copy_store(state_dir, how).map_err(io_error("copying", &state_dir.join(STORE)))?;
    let Ok(journal) = open_journal(&copy, true) else { return Ok(None) };
    if how == How::ByItsJournalAlone {
        create_index_aside(&copy, settings, &journal)?;
    }
    let recovered = unwatched(&copy, journal, settings, seen, true);
    Ok(recovered.ok().map(|Recovered { store, gaps }| (store, gaps)))
}

/// Copies the store. Returns the copy, which may be opened and written to: the store stays as it is.
fn copy_store(state_dir: &Path, how: How) -> io::Result<PathBuf> {
    let (store, copy) = (state_dir.join(STORE), state_dir.join(COPY));
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    make_dir(&copy)?;
    make_dir(&copy.join(JOURNAL))?;
    if store.join(JOURNAL).exists() {
        let to = |file: &Path| copy.join(JOURNAL).join(file.file_name().unwrap_or_default());
        let mut segments = segments_in(&store.join(JOURNAL))?;
        // An opening may write to the newest segment, so that one is copied. All others are only read.
        if let Some(newest) = segments.pop() {
            fs::copy(&newest, to(&newest))?;
        }
        let salt = Some(salt_in(&store.join(JOURNAL))).filter(|salt| salt.exists());
        for file in segments.into_iter().chain(salt) {
            fs::hard_link(&file, to(&file)).or_else(|_| fs::copy(&file, to(&file)).map(drop))?;
        }
    }
    if how == How::AsItIs && store.join(INDEX).exists() {
        copy_dir(&store.join(INDEX), &copy.join(INDEX))?;
    }
    Ok(copy)
}

/// Checks a copy of the store, opened as a start opens the store. Returns the report, or why a start could not open it.
pub(super) fn check_copy(
    state_dir: &Path,
    settings: &Settings,
    seen: Option<u64>,
) -> Result<Result<Report, String>, OpenError> {
    let store = state_dir.join(STORE);
    let copy = copy_store(state_dir, How::AsItIs).map_err(io_error("copying", &store))?;
    let checked = open_journal(&copy, false).and_then(|journal| {
        if !copy.join(INDEX).exists() {
            create_index_aside(&copy, settings, &journal)?;
        }
        let opened = match unwatched(&copy, journal, settings, seen, false) {
            Ok(Recovered { store, .. }) => store,
            Err(Stale::Index(why)) => {
                let remedy = "all is in the journal, the next start makes a new one";
                return Ok(Err(format!("the index cannot be used: {why}; {remedy}")));
            }
            Err(Stale::Journal(why)) => return Ok(Err(format!("journal: {why}"))),
            Err(Stale::Failed(failed)) => return Ok(Err(failed.to_string())),
        };
        if let Some(newer) = newer(&opened, &store) {
            return Err(newer);
        }
        Ok(Ok(repair::check(&opened).with_damage(&opened.damaged_areas())))
    });
    fs::remove_dir_all(&copy).map_err(io_error("removing", &copy))?;
    // What is wrong is wrong with the store, not with its copy.
    let path = store.display().to_string();
    match checked {
        Err(OpenError::Damaged { why, .. }) => Ok(Err(why)),
        Err(OpenError::Newer { found, supported, .. }) => Err(OpenError::Newer { path, found, supported }),
        Err(OpenError::Locked { by, .. }) => Err(OpenError::Locked { path, by }),
        Err(OpenError::Io { doing, why, .. }) => Err(OpenError::Io { doing, path, why }),
        Ok(checked) => Ok(checked),
    }
}

/// Opens a store other than the daemon's.
fn unwatched(
    store: &Path,
    journal: journal::Journal,
    settings: &Settings,
    seen: Option<u64>,
    lenient: bool,
) -> Result<Recovered<SledIndex, Nobody>, Stale> {
    let index = SledIndex::open(&store.join(INDEX), settings.cache).map_err(|error| Stale::Index(error.to_string()))?;
    let settings = journaled::Settings::of(settings.segment_bytes, u64::MAX);
    Journaled::recover(journal, index, Nobody, settings, seen, lenient)
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    make_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// A store of a newer sendoff is unreadable for this build, but not damaged.
fn newer(source: &Copy, store: &Path) -> Option<OpenError> {
    let format = source.get(keys::META_FORMAT).ok()??;
    let found = u32::try_from(u64::from_be_bytes(format[..].try_into().ok()?)).ok()?;
    (found > FORMAT).then(|| OpenError::Newer { path: store.display().to_string(), found, supported: FORMAT })
}

/// An unused name for a damaged store or index.
pub(super) fn free_name(state_dir: &Path, what: &str) -> PathBuf {
    let now = Clock::system().now().rfc3339();
    let plain = state_dir.join(format!("{what}{DAMAGED}{now}"));
    let names = (2_u32..).map(|n| state_dir.join(format!("{what}{DAMAGED}{now}-{n}")));
    std::iter::once(plain.clone()).chain(names).find(|path| !path.exists()).unwrap_or(plain)
}

/// The damaged stores and indexes in a state directory.
pub fn kept(state_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let mut kept: Vec<_> =
        entries.filter(|e| e.file_name().to_string_lossy().contains(DAMAGED)).map(|e| e.path()).collect();
    kept.sort();
    kept
}
