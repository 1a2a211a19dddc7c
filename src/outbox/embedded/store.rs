//! The outbox's store on disk: a state directory with a journal, an index, and what watches over them.
//!
//! ```text
//! lock               held while it is open
//! witness            how far the journal has come
//! suspect            damage was met: what the next start must look at
//! outbox/journal/    every commit (journal.rs)
//! outbox/index/      where in the journal the newest of every key stands (sled.rs)
//! *.damaged-<time>   what was replaced, for whoever can get more out of it
//! ```
//!
//! Holds: a damaged index is made again from the journal, and costs nothing. A damaged journal is replaced by what can be read of
//! the store, and kept. Neither happens in silence, nor a second time.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::journal::files::{Directory, sync_dir};
use super::journal::{self, Journal};
use super::journaled::{self, Journaled, Recovered, Stale, begin_index};
use super::kv::Failed;
use super::repair::{self, Report};
use super::sled::{OpenError as IndexError, SledIndex, sync_all_below, wait_until_let_go};
use crate::outbox::OpenError;
use crate::outbox::embedded::Settings;
use suspicion::Suspicion;
use witness::Witness;

pub mod place;

mod salvage;

mod suspicion;

mod witness;

pub use salvage::{Salvage, kept};

/// The store's directory below the state directory.
const STORE: &str = "outbox";

/// Where it is made before it is there (docs/adr/0001, rule 4).
const ASIDE: &str = "outbox.new";

const JOURNAL: &str = "journal";

const INDEX: &str = "index";

const INDEX_ASIDE: &str = "index.new";

/// The store, open. Holds the state directory's lock.
pub type Store = Journaled<SledIndex, Watcher>;

/// What an opening gave.
pub struct Opened {
    pub store: Store,
    /// What was done about damage that was found, if any was.
    pub salvaged: Option<Salvage>,
}

/// Opens the store in `state_dir`, making both if need be. A damaged one is replaced by what can be read of it, and kept.
pub fn open(state_dir: &Path, settings: &Settings) -> Result<Opened, OpenError> {
    let home = Home::open(state_dir)?;
    let mut salvaged = match home.suspicion.read() {
        Some(Suspicion::Index) => Some(home.set_index_aside("sled met damage in its last life")?),
        Some(Suspicion::Journal) | None => None,
    };
    let damage = match home.open_sound(settings) {
        Ok((store, replaced)) => {
            salvaged = salvaged.or(replaced);
            if home.suspicion.read() != Some(Suspicion::Journal) {
                home.suspicion.clear().map_err(io_error("tidying", state_dir))?;
                return Ok(Opened { store, salvaged });
            }
            if repair::check(&store).is_sound() {
                tracing::warn!("a journal value that could not be read before the restart can be read now");
                home.suspicion.clear().map_err(io_error("tidying", state_dir))?;
                return Ok(Opened { store, salvaged });
            }
            drop(store);
            "a value of the journal could not be read".to_owned()
        }
        Err(OpenError::Damaged { why, .. }) => why,
        Err(error @ (OpenError::Locked { .. } | OpenError::Newer { .. } | OpenError::Io { .. })) => return Err(error),
    };
    let salvaged = Some(home.salvage(settings, &damage)?);
    let (store, _) = home.open_sound(settings)?;
    Ok(Opened { store, salvaged })
}

/// What an offline look at a store found, and did.
#[derive(Debug)]
pub struct Examined {
    /// Why the store does not open, if it does not.
    pub unusable: Option<String>,
    /// Of the store as it was found.
    pub report: Report,
    /// Where the damaged store, or its index, is kept, if it was replaced.
    pub replaced: Option<PathBuf>,
}

/// Looks through the store of a daemon that does not run; with `repair`, one that is not sound is replaced by what can be read of
/// it. None if there is no store.
pub fn examine(state_dir: &Path, settings: &Settings, repair: bool) -> Result<Option<Examined>, OpenError> {
    if !state_dir.is_dir() {
        return Ok(None);
    }
    let home = Home::open(state_dir)?;
    if !home.store().exists() {
        return Ok(None);
    }
    let mut examined = Examined { unusable: None, report: Report::default(), replaced: None };
    match if repair { home.open_sound(settings) } else { home.open_as_it_is(settings).map(|store| (store, None)) } {
        Ok((store, replaced)) => {
            examined.report = repair::check(&store).with_damage(&store.damaged_areas());
            examined.replaced = replaced.map(|index| index.kept);
        }
        Err(OpenError::Damaged { why, .. }) => examined.unusable = Some(why),
        Err(error @ (OpenError::Locked { .. } | OpenError::Newer { .. } | OpenError::Io { .. })) => return Err(error),
    }
    if repair && !(examined.unusable.is_none() && examined.report.is_sound()) {
        let damage = examined.unusable.as_deref().unwrap_or("sendoff fsck found damage");
        let Salvage { report, kept } = home.salvage(settings, damage)?;
        let Report { damaged_areas, damaged, .. } = examined.report;
        examined.report = Report { damaged_areas, damaged, ..report };
        examined.replaced = Some(kept);
    }
    Ok(Some(examined))
}

/// The state directory, locked.
struct Home {
    dir: PathBuf,
    witness: Mutex<Witness>,
    suspicion: suspicion::Note,
    /// That the disk does not tell its size was said.
    size_unknown: AtomicBool,
    _lock: File,
}

/// What a store holds of its state directory.
pub struct Watcher(Arc<Home>);

impl journaled::Watch for Watcher {
    fn committed(&self, commit: u64) -> io::Result<()> {
        self.0.witness.lock().unwrap_or_else(PoisonError::into_inner).committed(commit)
    }

    fn damaged(&self) {
        self.0.suspicion.raise(Suspicion::Journal);
    }

    fn free(&self) -> Option<u64> {
        let free = match rustix::fs::statvfs(&self.0.dir) {
            Ok(fs) => free_of(fs.f_blocks, fs.f_bavail, fs.f_frsize),
            // The call is not there to be asked: as good as a file system that reports nothing.
            Err(Errno::NOSYS | Errno::OPNOTSUPP) => None,
            // Any other disk that cannot be asked is taken for full: refusing is safe, a failed write is not.
            Err(_) => Some(0),
        };
        if free.is_none() && !self.0.size_unknown.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                state_dir = %self.0.dir.display(),
                "the file system does not report its size: outbox.disk_reserve cannot be kept, outbox.bytes_max still holds"
            );
        }
        free
    }
}

/// The bytes that are free. FUSE and network file systems may report no blocks at all: then nothing is known, which does not
/// mean full.
fn free_of(blocks: u64, available: u64, block_bytes: u64) -> Option<u64> {
    (blocks > 0 && block_bytes > 0).then(|| available.saturating_mul(block_bytes))
}

impl Home {
    /// Makes the directory if need be, locks it, and finishes what a crash interrupted.
    fn open(state_dir: &Path) -> Result<Arc<Self>, OpenError> {
        if let Some(place::Remark { what, remedy, .. }) = place::look(state_dir, 0).into_iter().find(|it| it.is_fatal) {
            let doing = "cannot use the state directory";
            let why = format!("{what}; {remedy}");
            return Err(OpenError::Io { doing, path: state_dir.display().to_string(), why });
        }
        make_durable_dir(state_dir).map_err(io_error("cannot make the state directory", state_dir))?;
        let lock = lock(state_dir)?;
        salvage::finish_interrupted(state_dir).map_err(io_error("tidying", state_dir))?;
        let store = state_dir.join(STORE);
        if !store.exists() && witness::tells_of_a_store(state_dir) {
            let why =
                "it is gone, though it was there before; put it back, or remove `witness` to begin with an empty one";
            return Err(OpenError::Damaged { path: store.display().to_string(), why: why.into() });
        }
        let witness = Witness::open(state_dir).map_err(io_error("opening the witness in", state_dir))?;
        let suspicion = suspicion::Note::of(state_dir);
        Ok(Arc::new(Self {
            dir: state_dir.to_owned(),
            witness: Mutex::new(witness),
            suspicion,
            size_unknown: AtomicBool::new(false),
            _lock: lock,
        }))
    }

    fn store(&self) -> PathBuf {
        self.dir.join(STORE)
    }

    /// The last commit that is known to have been durable.
    fn seen(&self) -> Option<u64> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner).seen()
    }

    fn damaged(&self, why: impl ToString) -> OpenError {
        OpenError::Damaged { path: self.store().display().to_string(), why: why.to_string() }
    }

    /// Opens a store whose journal is sound. An index that is not is replaced, and told.
    fn open_sound(self: &Arc<Self>, settings: &Settings) -> Result<(Store, Option<Salvage>), OpenError> {
        if !self.store().exists() {
            create_aside(&self.dir, settings)?;
        }
        let why = match self.try_open(settings)? {
            Ok(store) => return Ok((store, None)),
            Err(why) => why,
        };
        let replaced = self.set_index_aside(&why)?;
        let store = self.try_open(settings)?.map_err(|why| self.damaged(format!("its index, just made: {why}")))?;
        Ok((store, Some(replaced)))
    }

    /// Opens a store, and replaces nothing.
    fn open_as_it_is(self: &Arc<Self>, settings: &Settings) -> Result<Store, OpenError> {
        self.try_open(settings)?.map_err(|why| {
            self.damaged(format!(
                "the index cannot be used: {why}; all is in the journal, the next start makes a new one"
            ))
        })
    }

    /// The store; or why its index is of no use.
    fn try_open(self: &Arc<Self>, settings: &Settings) -> Result<Result<Store, String>, OpenError> {
        let store = self.store();
        let journal = open_journal(&store, false)?;
        if !store.join(INDEX).exists() {
            create_index_aside(&store, settings, &journal)?;
        }
        let index = match SledIndex::open(&store.join(INDEX), settings.cache) {
            Ok(index) => index,
            Err(IndexError::Damaged(why)) => return Ok(Err(why)),
            Err(IndexError::Io { doing, source }) => return Err(io_error(doing, &store.join(INDEX))(source)),
        };
        let home = self.clone();
        let index = index.telling(move || home.suspicion.raise(Suspicion::Index));
        let watcher = Watcher(self.clone());
        let recovered = Journaled::recover(
            journal,
            index,
            watcher,
            journaled::Settings::of(settings.segment_bytes, settings.limits.bytes_max),
            self.seen(),
            false,
        );
        match recovered {
            Ok(Recovered { store, .. }) => Ok(Ok(store)),
            Err(Stale::Index(why)) => Ok(Err(why)),
            Err(Stale::Journal(why)) => Err(self.damaged(format!("journal: {why}"))),
            Err(Stale::Failed(Failed { doing, why, .. })) => {
                if self.suspicion.read() == Some(Suspicion::Index) {
                    return Ok(Err(why));
                }
                Err(OpenError::Io { doing, path: store.display().to_string(), why })
            }
        }
    }

    /// Takes the index out of use; a new one is made of the journal at the next opening.
    fn set_index_aside(&self, why: &str) -> Result<Salvage, OpenError> {
        let index = self.store().join(INDEX);
        let kept = salvage::free_name(&self.dir, INDEX);
        let moved = || -> io::Result<()> {
            if index.join("db").exists() {
                wait_until_let_go(&index)?;
            }
            if index.exists() {
                fs::rename(&index, &kept)?;
            }
            sync_dir(&self.dir)?;
            sync_dir(&self.store())?;
            self.suspicion.clear()
        };
        moved().map_err(io_error("setting aside", &index))?;
        tracing::error!(why, kept = %kept.display(), "the outbox's index was damaged: rebuilding it from the journal, nothing is lost");
        Ok(Salvage { report: Report::default(), kept })
    }

    fn salvage(&self, settings: &Settings, damage: &str) -> Result<Salvage, OpenError> {
        tracing::error!(damage, "the outbox is damaged: salvaging what can be read");
        let salvaged = salvage::replace(&self.dir, settings, self.seen())?;
        self.suspicion.clear().map_err(io_error("tidying", &self.dir))?;
        let Report { events, unreadable_events, unreadable_ranges, .. } = salvaged.report;
        tracing::error!(
            damage,
            kept = %salvaged.kept.display(),
            events,
            unreadable_events,
            unreadable_ranges,
            unreadable_ids = ?salvaged.report.unreadable_ids,
            "the outbox was damaged: a new store has everything readable, the damaged store is kept; docs/power-loss.md says what to do with it"
        );
        Ok(salvaged)
    }
}

fn open_journal(store: &Path, lenient: bool) -> Result<Journal, OpenError> {
    let dir = store.join(JOURNAL);
    let shown = || dir.display().to_string();
    if !dir.exists() {
        return Err(OpenError::Damaged { path: store.display().to_string(), why: "its journal is missing".into() });
    }
    Journal::open(Directory::of(&dir), lenient).map_err(|error| match error {
        journal::OpenError::Newer(found) => {
            OpenError::Newer { path: shown(), found, supported: journal::frame::FORMAT }
        }
        journal::OpenError::Damaged(why) => OpenError::Damaged { path: shown(), why },
        journal::OpenError::Io(error) => OpenError::Io { doing: "opening", path: shown(), why: error.to_string() },
    })
}

/// Rule 4: a store is made aside, made durable, and only then put in its place.
fn create_aside(state_dir: &Path, settings: &Settings) -> Result<(), OpenError> {
    let aside = state_dir.join(ASIDE);
    create(&aside, settings, 1)?;
    fs::rename(&aside, state_dir.join(STORE)).map_err(io_error("renaming", &aside))?;
    sync_dir(state_dir).map_err(io_error("syncing", state_dir))
}

/// A new, empty store, durable, in place of what an interrupted attempt may have left.
fn create(path: &Path, settings: &Settings, first_commit: u64) -> Result<(), OpenError> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(io_error("removing", path))?;
    }
    place::make_dir(path).map_err(io_error("making", path))?;
    let dir = path.join(JOURNAL);
    let made = place::make_dir(&dir).and_then(|()| Journal::create(&Directory::of(&dir), first_commit));
    made.map_err(io_error("making", &dir))?;
    let journal = open_journal(path, false)?;
    create_index_aside(path, settings, &journal)?;
    sync_all_below(path).map_err(io_error("syncing", path))
}

/// An index that has nothing of the journal yet; made aside too, as half a `conf` file of sled's would be unreadable for ever.
fn create_index_aside(store: &Path, settings: &Settings, journal: &Journal) -> Result<(), OpenError> {
    let aside = store.join(INDEX_ASIDE);
    let index = SledIndex::create(&aside, settings.cache).map_err(|error| OpenError::Io {
        doing: "making",
        path: aside.display().to_string(),
        why: error.to_string(),
    })?;
    begin_index(&index, journal).map_err(|Failed { doing, why, .. }| OpenError::Io {
        doing,
        path: aside.display().to_string(),
        why,
    })?;
    drop(index);
    wait_until_let_go(&aside).map_err(io_error("waiting for", &aside))?;
    sync_all_below(&aside).map_err(io_error("syncing", &aside))?;
    fs::rename(&aside, store.join(INDEX)).map_err(io_error("renaming", &aside))?;
    sync_dir(store).map_err(io_error("syncing", store))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.display().to_string();
    move |error| OpenError::Io { doing, path, why: place::in_words(&error) }
}

/// Takes the state directory's lock, held as long as the file is open.
fn lock(state_dir: &Path) -> Result<File, OpenError> {
    let path = state_dir.join("lock");
    let shown = path.display().to_string();
    let file = place::options().create(true).truncate(false).write(true).open(&path);
    let file =
        file.map_err(|error| OpenError::Io { doing: "opening", path: shown.clone(), why: place::in_words(&error) })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            let by = place::lock_holder(&file).map(|pid| format!(" (process {pid})")).unwrap_or_default();
            Err(OpenError::Locked { path: state_dir.display().to_string(), by })
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(OpenError::Io { doing: "locking", path: shown, why: error.to_string() })
        }
    }
}

/// Makes a directory and every missing parent, each durably entered in its parent.
fn make_durable_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_durable_dir(parent)?;
        place::make_dir(dir)?;
        return sync_dir(parent);
    }
    place::make_dir(dir)
}

#[cfg(test)]
mod tests;
