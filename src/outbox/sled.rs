//! The outbox's engine: sled 0.34.7, used by the five rules of storage.md, without which it loses data on power loss.
//! docs/adr/0001 has the reasons; each rule is marked where it is kept.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::engine::{FORMAT, OpenError};
use super::keys;
use super::kv::{Batch, Disk, Failed, Kv};
use super::record::VALUE_BYTES_MAX;
use super::repair::{self, Report};
use crate::clock::UnixMillis;
use witness::Witness;

mod salvage;

mod witness;

pub use salvage::{Salvage, kept};

/// The store's directory below the state directory.
const STORE: &str = "sled";

/// Where it is made before it is there (rule 4).
const ASIDE: &str = "sled.new";

/// sled's own lock is let go by its threads some time after the last handle is dropped; this long is waited for it.
const UNLOCK_TRIES: u32 = 200;
const UNLOCK_WAIT: Duration = Duration::from_millis(10);

/// One open store. Holds the state directory's lock.
pub struct SledKv {
    db: ::sled::Db,
    /// A descriptor of our own for the data file: sled's `flush` never syncs (rule 5).
    data: File,
    store: PathBuf,
    blobs_seen: bool,
    /// None for the copies that a salvage reads.
    home: Option<Home>,
    salvaged: Option<Salvage>,
}

/// What a store holds of its state directory.
struct Home {
    dir: PathBuf,
    witness: Witness,
    _lock: File,
}

impl SledKv {
    /// Opens the store in `state_dir`, making both if need be. `cache` is sled's page cache in bytes.
    ///
    /// A damaged store is replaced by what can be read of it, and kept: see [`SledKv::salvaged`].
    pub fn open(state_dir: &Path, cache: u64) -> Result<Self, OpenError> {
        let home = Home::open(state_dir)?;
        let damage = match open_sound(&home, cache) {
            Ok(kv) if !salvage::is_suspect(state_dir) => return Ok(kv.at_home(home)),
            Ok(kv) => {
                let report = repair::check(&kv);
                if report.is_sound() {
                    tracing::warn!("the engine met damage in its last life, and there is none to be found");
                    salvage::clear_suspect(state_dir).map_err(io_error("tidying", state_dir))?;
                    return Ok(kv.at_home(home));
                }
                drop(kv);
                wait_until_let_go(&state_dir.join(STORE)).map_err(io_error("waiting for", state_dir))?;
                "the engine met damage in its last life".to_owned()
            }
            Err(OpenError::Damaged { why, .. }) => why,
            Err(error @ (OpenError::Locked { .. } | OpenError::Newer { .. } | OpenError::Io { .. })) => {
                return Err(error);
            }
        };
        let salvaged = home.salvage(cache, &damage)?;
        let kv = open_sound(&home, cache)?;
        Ok(Self { salvaged: Some(salvaged), ..kv.at_home(home) })
    }

    /// What was done about damage that the opening found, if it found any.
    pub fn salvaged(&self) -> Option<&Salvage> {
        self.salvaged.as_ref()
    }

    fn over(db: ::sled::Db, store: PathBuf) -> io::Result<Self> {
        let data = File::open(store.join("db"))?;
        Ok(Self { db, data, store, blobs_seen: false, home: None, salvaged: None })
    }

    fn at_home(self, home: Home) -> Self {
        Self { home: Some(home), ..self }
    }

    /// The time of the last commit that noted it.
    fn clock(&self) -> Result<Option<UnixMillis>, Failed> {
        let Some(bytes) = self.get(keys::META_CLOCK)? else { return Ok(None) };
        let time = bytes[..].try_into().map(u64::from_be_bytes);
        time.map(|time| Some(UnixMillis(time)))
            .map_err(|_| Failed { doing: "reading the clock", why: "not 8 bytes".into() })
    }

    /// Asks sled. It may answer with a panic; that and corruption are damage, which the next start must look for.
    fn ask<T>(&self, doing: &'static str, ask: impl FnOnce() -> ::sled::Result<T>) -> Result<T, Failed> {
        let (why, damage) = match catch_unwind(AssertUnwindSafe(ask)) {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error @ (::sled::Error::Corruption { .. } | ::sled::Error::ReportableBug(_)))) => {
                (error.to_string(), true)
            }
            Ok(Err(
                error @ (::sled::Error::Io(_) | ::sled::Error::Unsupported(_) | ::sled::Error::CollectionNotFound(_)),
            )) => (error.to_string(), false),
            Err(_) => ("sled panicked".to_owned(), true),
        };
        if let (true, Some(home)) = (damage, &self.home) {
            salvage::suspect(&home.dir);
        }
        Err(Failed { doing, why })
    }
}

impl Home {
    /// Makes the directory if need be, locks it, and finishes what a crash interrupted.
    fn open(state_dir: &Path) -> Result<Self, OpenError> {
        make_durable_dir(state_dir).map_err(io_error("making", state_dir))?;
        let lock = lock(state_dir)?;
        salvage::finish_interrupted(state_dir).map_err(io_error("tidying", state_dir))?;
        if !state_dir.join(STORE).exists() && witness::tells_of_a_store(state_dir) {
            let why =
                "it is gone, though it was there before; put it back, or remove `witness` to begin with an empty one";
            return Err(OpenError::Damaged { path: state_dir.join(STORE).display().to_string(), why: why.into() });
        }
        let witness = Witness::open(state_dir).map_err(io_error("opening the witness in", state_dir))?;
        Ok(Self { dir: state_dir.to_owned(), witness, _lock: lock })
    }

    fn salvage(&self, cache: u64, damage: &str) -> Result<Salvage, OpenError> {
        tracing::error!(damage, "the outbox is damaged: salvaging what can be read");
        let salvaged = salvage::replace(&self.dir, cache, self.witness.seen())?;
        salvage::clear_suspect(&self.dir).map_err(io_error("tidying", &self.dir))?;
        let Report { events, unreadable_events, unreadable_ranges, .. } = salvaged.report;
        tracing::error!(
            damage,
            kept = %salvaged.kept.display(),
            events,
            unreadable_events,
            unreadable_ranges,
            unreadable_ids = ?salvaged.report.unreadable_ids,
            "the outbox was damaged: what could be read goes on in a new store, the damaged one is kept; docs/power-loss.md says what to do with it"
        );
        Ok(salvaged)
    }
}

/// Opens the store, which must be sound as far as that shows at once.
fn open_sound(home: &Home, cache: u64) -> Result<SledKv, OpenError> {
    let store = home.dir.join(STORE);
    if !store.exists() {
        create_aside(&home.dir, cache)?;
    }
    remove_unfinished_snapshots(&store).map_err(io_error("tidying", &store))?;
    // Whatever a killed process left in the page cache must not become the base of recovery before it is durable.
    sync_all_below(&store).map_err(io_error("syncing", &store))?;
    let damaged = |why: String| OpenError::Damaged { path: store.display().to_string(), why };
    if !store.join("db").exists() || !store.join("conf").exists() {
        return Err(damaged("a file of it is missing".into())); // sled would make a new, empty one
    }
    let db = open_unlocked(&store, cache)?;
    sync_all_below(&store).map_err(io_error("syncing", &store))?;
    let kv = SledKv::over(db, store.clone()).map_err(io_error("opening", &store))?;
    let format = kv.get(keys::META_FORMAT).map_err(|e| damaged(e.to_string()))?;
    if format.is_none() {
        return Err(damaged("it opens, but empty".into()));
    }
    let clock = kv.clock().map_err(|e| damaged(e.to_string()))?;
    match home.witness.seen() {
        Some(seen) if clock.is_none_or(|clock| clock < seen) => {
            Err(damaged(format!("it opens, but without what it held at {}", seen.rfc3339())))
        }
        Some(_) | None => Ok(kv),
    }
}

/// What an offline look at a store found, and did.
#[derive(Debug)]
pub struct Examined {
    /// Why the store does not open, if it does not.
    pub unusable: Option<String>,
    /// Of the store as it was found.
    pub report: Report,
    /// Where the damaged store is kept, if it was replaced.
    pub replaced: Option<PathBuf>,
}

/// Looks through the store of a daemon that does not run; with `repair`, one that is not sound is replaced by what can be read of
/// it. None if there is no store.
pub fn examine(state_dir: &Path, cache: u64, repair: bool) -> Result<Option<Examined>, OpenError> {
    if !state_dir.is_dir() {
        return Ok(None);
    }
    let home = Home::open(state_dir)?;
    if !state_dir.join(STORE).exists() {
        return Ok(None);
    }
    let mut examined = match open_sound(&home, cache) {
        Ok(kv) => Examined { unusable: None, report: repair::check(&kv), replaced: None },
        Err(OpenError::Damaged { why, .. }) => {
            Examined { unusable: Some(why), report: Report::default(), replaced: None }
        }
        Err(error @ (OpenError::Locked { .. } | OpenError::Newer { .. } | OpenError::Io { .. })) => return Err(error),
    };
    if repair && !(examined.unusable.is_none() && examined.report.is_sound()) {
        if state_dir.join(STORE).join("db").exists() {
            wait_until_let_go(&state_dir.join(STORE)).map_err(io_error("waiting for", state_dir))?;
        }
        let damage = examined.unusable.as_deref().unwrap_or("sendoff fsck found damage");
        let Salvage { report, kept } = home.salvage(cache, damage)?;
        examined.report = report;
        examined.replaced = Some(kept);
    }
    Ok(Some(examined))
}

impl Kv for SledKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        let value = self.ask("reading", || self.db.get(key))?;
        Ok(value.map(Bytes::from_owner))
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        let mut pairs = self.db.range(from..to);
        std::iter::from_fn(move || {
            let pair = self.ask("scanning", || pairs.next().transpose()).transpose()?;
            Some(pair.map(|(key, value)| (Bytes::from_owner(key), Bytes::from_owner(value))))
        })
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        let mut writes = ::sled::Batch::default();
        for (key, value) in batch.writes() {
            match value {
                // Rule 2: a larger value might end in a blob file, which sled never syncs.
                Some(value) if value.len() > VALUE_BYTES_MAX => {
                    let why = format!("a value of {} bytes; at most {VALUE_BYTES_MAX} are safe", value.len());
                    return Err(Failed { doing: "writing", why });
                }
                Some(value) => writes.insert(key, &value[..]),
                None => writes.remove(key),
            }
        }
        // Rule 1: one batch, one flush, one fdatasync, and no other write between two of them.
        self.ask("writing", || self.db.apply_batch(writes))?;
        self.ask("flushing", || self.db.flush())?;
        let synced = |error: io::Error| Failed { doing: "syncing", why: error.to_string() };
        self.data.sync_data().map_err(synced)?;
        self.watch_blobs();
        if let Some(Some(clock)) = batch.pending(keys::META_CLOCK)
            && let Ok(clock) = clock[..].try_into().map(u64::from_be_bytes)
            && let Some(home) = &mut self.home
        {
            home.witness.committed(UnixMillis(clock)).map_err(synced)?;
        }
        Ok(())
    }

    fn disk(&self) -> Disk {
        let used = self.data.metadata().map(|file| file.len()).unwrap_or(0);
        // A disk that cannot be asked is taken for full: refusing is safe, a failed write is not.
        let free = rustix::fs::statvfs(&self.store).map(|fs| fs.f_bavail * fs.f_frsize).unwrap_or(0);
        Disk { used, free }
    }
}

impl SledKv {
    /// Rule 2's alarm: with values of at most 4 KiB no blob was ever seen.
    fn watch_blobs(&mut self) {
        if !self.blobs_seen && fs::read_dir(self.store.join("blobs")).is_ok_and(|mut dir| dir.next().is_some()) {
            self.blobs_seen = true;
            tracing::error!(store = %self.store.display(), "sled wrote a blob file, which it never syncs: please report this");
        }
    }
}

/// Takes the state directory's lock, held as long as the file is open.
fn lock(state_dir: &Path) -> Result<File, OpenError> {
    let path = state_dir.join("lock");
    let shown = path.display().to_string();
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| OpenError::Io { doing: "opening", path: shown.clone(), why: error.to_string() })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::Locked { path: state_dir.display().to_string() }),
        Err(fs::TryLockError::Error(error)) => {
            Err(OpenError::Io { doing: "locking", path: shown, why: error.to_string() })
        }
    }
}

/// Rule 4: a store is made aside, made durable, and only then put in its place; sled syncs no directory, and a half-written
/// `conf` file would be unreadable for ever.
fn create_aside(state_dir: &Path, cache: u64) -> Result<(), OpenError> {
    let aside = state_dir.join(ASIDE);
    let mut kv = create(&aside, cache)?;
    // From now on a store without it has lost its content.
    let mut batch = Batch::default();
    batch.put(keys::META_FORMAT.to_vec(), u64::from(FORMAT).to_be_bytes().to_vec());
    let path = aside.display().to_string();
    kv.commit(&batch).map_err(|Failed { doing, why }| OpenError::Io { doing, path, why })?;
    drop(kv);
    wait_until_let_go(&aside).map_err(io_error("waiting for", &aside))?;
    sync_all_below(&aside).map_err(io_error("syncing", &aside))?;
    fs::rename(&aside, state_dir.join(STORE)).map_err(io_error("renaming", &aside))?;
    sync_dir(state_dir).map_err(io_error("syncing", state_dir))
}

/// A new, empty store in place of what an interrupted attempt may have left.
fn create(path: &Path, cache: u64) -> Result<SledKv, OpenError> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(io_error("removing", path))?;
    }
    let db = open_unlocked(path, cache)?;
    SledKv::over(db, path.to_owned()).map_err(io_error("opening", path))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.display().to_string();
    move |error| OpenError::Io { doing, path, why: error.to_string() }
}

/// Opens with the settings of rule 5: no background flusher. A panic is sled's answer to some kinds of damage.
fn open_unlocked(path: &Path, cache: u64) -> Result<::sled::Db, OpenError> {
    let shown = || path.display().to_string();
    // Threads of a store that this process has dropped may still hold it; sled itself would not wait.
    if path.join("db").exists() {
        wait_until_let_go(path).map_err(io_error("waiting for", path))?;
    }
    let config = ::sled::Config::new().path(path).cache_capacity(cache).flush_every_ms(None);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(::sled::Error::Corruption { .. })) => {
            Err(OpenError::Damaged { path: shown(), why: "sled reports corruption".into() })
        }
        Ok(Err(error)) => Err(OpenError::Io { doing: "opening", path: shown(), why: error.to_string() }),
        Err(_) => Err(OpenError::Damaged { path: shown(), why: "sled panicked while opening it".into() }),
    }
}

/// Waits until no thread of a dropped store holds its data file any more.
fn wait_until_let_go(store: &Path) -> io::Result<()> {
    let data = File::open(store.join("db"))?;
    for _ in 0..UNLOCK_TRIES {
        match data.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) => thread::sleep(UNLOCK_WAIT),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "sled still holds its data file"))
}

/// Rule 3: sled takes an unfinished snapshot for the newest one and then cannot open; the finished older one is still there.
fn remove_unfinished_snapshots(store: &Path) -> io::Result<()> {
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %name, "removing a snapshot that was cut off while being written");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes a directory and every missing parent, each durably entered in its parent.
fn make_durable_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_durable_dir(parent)?;
        fs::create_dir(dir)?;
        return sync_dir(parent);
    }
    fs::create_dir(dir)
}

/// Syncs every file and directory from `dir` down.
fn sync_all_below(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_all_below(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
