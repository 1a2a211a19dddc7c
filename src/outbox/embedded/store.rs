//! The store on disk: a state directory with a journal, an index, and the files that guard them.
//!
//! ```text
//! lock               held while the store is open
//! witness            the last durable commit
//! suspect            damage was found: what the next start must examine
//! imported           the events were imported into another store: no daemon may use this one
//! outbox/journal/    every commit (journal.rs)
//! outbox/index/      where in the journal the current value of every key is (sled.rs)
//! *.damaged-<time>   replaced stores and indexes, for further recovery by hand
//! ```
//!
//! Holds: a damaged index is rebuilt from the journal without loss. A damaged journal is kept and replaced by everything
//! readable of the store. Both are logged, and happen only once.

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

mod imported;

mod salvage;

mod suspicion;

mod witness;

pub use imported::{imported, note_import};
pub use salvage::{Salvage, kept};

/// The store's directory below the state directory.
const STORE: &str = "outbox";

/// Where the store is created before it is moved into place (docs/adr/0001, rule 4).
const ASIDE: &str = "outbox.new";

/// The file that an open store holds locked.
const LOCK: &str = "lock";

const JOURNAL: &str = "journal";

const INDEX: &str = "index";

const INDEX_ASIDE: &str = "index.new";

/// An open store. Holds the state directory's lock.
pub type Store = Journaled<SledIndex, Watcher>;

/// The result of an opening.
pub struct Opened {
    pub store: Store,
    /// What was done about damage, if any was found.
    pub salvaged: Option<Salvage>,
}

/// Opens the store in `state_dir`, and creates both if needed. Keeps a damaged store and replaces it by its readable part.
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

/// Whether there is a store in a state directory.
pub fn is_in(state_dir: &Path) -> bool {
    state_dir.join(STORE).exists()
}

/// The result of an offline check of a store.
#[derive(Debug)]
pub struct Examined {
    /// Why the store does not open, if it does not.
    pub unusable: Option<String>,
    /// The report about the store as it was found.
    pub report: Report,
    /// Where the damaged store or index is kept, if it was replaced.
    pub replaced: Option<PathBuf>,
}

/// Checks the store of a stopped daemon, without a change to it: reads a copy, because opening a store changes it. With
/// `repair`, opens the store itself and replaces a damaged one by its readable part. `None` if there is no store.
pub fn examine(state_dir: &Path, settings: &Settings, repair: bool) -> Result<Option<Examined>, OpenError> {
    if !state_dir.is_dir() {
        return Ok(None);
    }
    let home = Home::open(state_dir)?;
    if !home.store().exists() {
        return Ok(None);
    }
    let mut examined = Examined { unusable: None, report: Report::default(), replaced: None };
    if !repair {
        match salvage::check_copy(&home.dir, settings, home.seen())? {
            Ok(report) => examined.report = report,
            Err(why) => examined.unusable = Some(why),
        }
        return Ok(Some(examined));
    }
    match home.open_sound(settings) {
        Ok((store, replaced)) => {
            examined.report = repair::check(&store).with_damage(&store.damaged_areas());
            examined.replaced = replaced.map(|index| index.kept);
        }
        Err(OpenError::Damaged { why, .. }) => examined.unusable = Some(why),
        Err(error @ (OpenError::Locked { .. } | OpenError::Newer { .. } | OpenError::Io { .. })) => return Err(error),
    }
    if !(examined.unusable.is_none() && examined.report.is_sound()) {
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
    /// Whether the log has said that the disk does not report its size.
    size_unknown: AtomicBool,
    _lock: File,
}

/// What a store keeps of its state directory.
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
            // The system call does not exist here. Treated like a file system that reports nothing.
            Err(Errno::NOSYS | Errno::OPNOTSUPP) => None,
            // After any other error the disk counts as full: refusing events is safe, a failed write is not.
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

/// The free bytes. FUSE and network file systems may report no blocks at all, which means unknown, not full.
fn free_of(blocks: u64, available: u64, block_bytes: u64) -> Option<u64> {
    (blocks > 0 && block_bytes > 0).then(|| available.saturating_mul(block_bytes))
}

impl Home {
    /// Creates the directory if needed, locks it, and completes what a crash interrupted.
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

    /// The last commit known to be durable.
    fn seen(&self) -> Option<u64> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner).seen()
    }

    fn damaged(&self, why: impl ToString) -> OpenError {
        OpenError::Damaged { path: self.store().display().to_string(), why: why.to_string() }
    }

    /// Opens a store with a sound journal. Replaces a damaged index, and reports it.
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

    /// The store, or why its index is unusable.
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

    /// Moves the index away. The next opening builds a new one from the journal.
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

/// Rule 4: a store is created elsewhere, made durable, and only then moved into place.
fn create_aside(state_dir: &Path, settings: &Settings) -> Result<(), OpenError> {
    let aside = state_dir.join(ASIDE);
    create(&aside, settings, 1)?;
    fs::rename(&aside, state_dir.join(STORE)).map_err(io_error("renaming", &aside))?;
    sync_dir(state_dir).map_err(io_error("syncing", state_dir))
}

/// Creates an empty, durable store. Replaces the rest of an interrupted attempt.
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

/// Creates an empty index. It too is created elsewhere, because sled can never open an index with half a `conf` file.
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

/// Takes the state directory's lock, which is held while the file is open.
fn lock(state_dir: &Path) -> Result<File, OpenError> {
    let path = state_dir.join(LOCK);
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

/// Creates a directory and its missing parents, each durably.
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
