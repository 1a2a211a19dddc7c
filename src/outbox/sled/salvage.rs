//! What becomes of a damaged store: what can be read goes on in a new one, and the damaged one is kept whole under a dated
//! name, for whoever can get more out of it.
//!
//! Holds: nothing is deleted but our own unfinished copies. A crash at any point leaves either the damaged store where it
//! was, or the new one, whole, in its place or about to be put there.
//! Limits: needs free space for a copy of the store and for what is salvaged of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{STORE, SledKv, create, open_unlocked, remove_unfinished_snapshots, sync_dir, wait_until_let_go};
use crate::clock::{Clock, UnixMillis};
use crate::outbox::engine::{FORMAT, OpenError};
use crate::outbox::keys;
use crate::outbox::kv::{Batch, Failed, Kv};
use crate::outbox::repair::{self, Report};

/// A copy to read from: opening a store changes it.
const COPY: &str = "sled.copy";

/// What was salvaged, complete as soon as the damaged store is no longer in its place.
const SALVAGED: &str = "sled.salvaged";

/// What a damaged store is called from then on, and the time.
const DAMAGED: &str = "sled.damaged-";

/// That the engine met damage while it ran: the next start looks closely.
const SUSPECT: &str = "suspect";

/// sled's unit of the data file, by default.
const SEGMENT_BYTES: u64 = 512 << 10;

/// What was done about a damaged store.
#[derive(Debug, Clone)]
pub struct Salvage {
    pub report: Report,
    /// Where the damaged store is kept.
    pub kept: PathBuf,
}

/// How a copy is opened: sled can sometimes do without its snapshots what it cannot do with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    AsItIs,
    WithoutSnapshots,
}

/// Finishes or removes what an interrupted salvage left.
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

/// Replaces the store by what can be read of it. `seen` is how far it had come, by the witness.
pub(super) fn replace(state_dir: &Path, cache: u64, seen: Option<UnixMillis>) -> Result<Salvage, OpenError> {
    let store = state_dir.join(STORE);
    let failed = |doing: &str, error: &dyn std::fmt::Display| OpenError::Damaged {
        path: store.display().to_string(),
        why: format!("{doing}: {error}; it was left as it is (docs/power-loss.md says what can be done)"),
    };
    let salvaged = state_dir.join(SALVAGED);
    let mut target = create(&salvaged, cache)?;
    let source = readable_copy(state_dir, cache).map_err(|e| failed("copying it to read from", &e))?;
    if let Some(newer) = source.as_ref().and_then(|source| newer(source, &store)) {
        return Err(newer);
    }
    let report = match &source {
        Some(source) => repair::rebuild(source, &mut target),
        None => repair::rebuild(&crate::outbox::memory::MemoryDisk::default().open(), &mut target)
            .map(|empty| Report { unreadable_ranges: 1, ..empty }),
    };
    let report = report.map_err(|e| failed("salvaging it", &e))?;
    note_time(&mut target, seen).map_err(|e| failed("salvaging it", &e))?;
    drop((source, target));
    let moved = || -> io::Result<PathBuf> {
        wait_until_let_go(&salvaged)?;
        super::sync_all_below(&salvaged)?;
        sync_dir(state_dir)?;
        let kept = free_name(state_dir);
        fs::rename(&store, &kept)?;
        fs::rename(&salvaged, &store)?;
        sync_dir(state_dir)?;
        Ok(kept)
    };
    let kept = moved().map_err(|e| failed("putting the salvaged store in its place", &e))?;
    // Its content is of no more use; if it stays, the next start removes it.
    fs::remove_dir_all(state_dir.join(COPY)).ok();
    Ok(Salvage { report, kept })
}

/// The copy from which the most can be read, open; none if no copy opens.
fn readable_copy(state_dir: &Path, cache: u64) -> io::Result<Option<SledKv>> {
    let mut best = None;
    for how in [How::AsItIs, How::WithoutSnapshots] {
        if let Some(copy) = open_copy(state_dir, cache, how)? {
            let report = repair::check(&copy);
            if report.is_sound() && report.events > 0 {
                return Ok(Some(copy));
            }
            if best.is_none_or(|(events, _)| report.events > events) {
                best = Some((report.events, how));
            }
        }
    }
    match best {
        Some((_, how)) => open_copy(state_dir, cache, how),
        None => Ok(None),
    }
}

fn open_copy(state_dir: &Path, cache: u64, how: How) -> io::Result<Option<SledKv>> {
    let (store, copy) = (state_dir.join(STORE), state_dir.join(COPY));
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    copy_dir(&store, &copy)?;
    // Every store of ours has the same configuration, so a damaged one is no loss; and a file that was cut off must still
    // end where a segment does.
    fs::copy(state_dir.join(SALVAGED).join("conf"), copy.join("conf"))?;
    let data = fs::File::options().create(true).truncate(false).write(true).open(copy.join("db"))?;
    data.set_len(data.metadata()?.len().next_multiple_of(SEGMENT_BYTES))?;
    drop(data);
    remove_unfinished_snapshots(&copy)?;
    if how == How::WithoutSnapshots {
        for entry in fs::read_dir(&copy)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("snap.") {
                fs::remove_file(entry.path())?;
            }
        }
    }
    let Ok(db) = open_unlocked(&copy, cache) else { return Ok(None) };
    Ok(SledKv::over(db, copy).ok())
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
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

/// A newer sendoff's store is not damaged for being unreadable to us.
fn newer(source: &SledKv, store: &Path) -> Option<OpenError> {
    let format = source.get(keys::META_FORMAT).ok()??;
    let found = u32::try_from(u64::from_be_bytes(format[..].try_into().ok()?)).ok()?;
    (found > FORMAT).then(|| OpenError::Newer { path: store.display().to_string(), found, supported: FORMAT })
}

/// The new store has come as far as the old one, even if what it did last was lost: else it would look stale itself.
fn note_time(target: &mut SledKv, seen: Option<UnixMillis>) -> Result<(), Failed> {
    let Some(seen) = seen else { return Ok(()) };
    if target.clock()?.is_some_and(|clock| clock >= seen) {
        return Ok(());
    }
    let mut batch = Batch::default();
    batch.put(keys::META_CLOCK.to_vec(), seen.0.to_be_bytes().to_vec());
    target.commit(&batch)
}

fn free_name(state_dir: &Path) -> PathBuf {
    let now = Clock::system().now().rfc3339();
    let names = (1_u32..).map(|n| if n == 1 { format!("{DAMAGED}{now}") } else { format!("{DAMAGED}{now}-{n}") });
    names.map(|name| state_dir.join(name)).find(|path| !path.exists()).unwrap_or_else(|| state_dir.join(DAMAGED))
}

/// The damaged stores that are kept in a state directory.
pub fn kept(state_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let mut kept: Vec<_> =
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(DAMAGED)).map(|e| e.path()).collect();
    kept.sort();
    kept
}

/// Notes that the engine met damage. If even that fails, the damage will be met again.
pub(super) fn suspect(state_dir: &Path) {
    let path = state_dir.join(SUSPECT);
    if !path.exists() && fs::write(&path, b"").is_ok() {
        sync_dir(state_dir).ok();
    }
}

pub(super) fn is_suspect(state_dir: &Path) -> bool {
    state_dir.join(SUSPECT).exists()
}

pub(super) fn clear_suspect(state_dir: &Path) -> io::Result<()> {
    match fs::remove_file(state_dir.join(SUSPECT)) {
        Ok(()) => sync_dir(state_dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
