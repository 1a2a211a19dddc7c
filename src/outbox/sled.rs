//! The outbox's engine: sled 0.34.7, used by the five rules of storage.md, without which it loses data on power loss.
//! docs/adr/0001 has the reasons; each rule is marked where it is kept.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::engine::OpenError;
use super::kv::{Batch, Disk, Failed, Kv};
use super::record::VALUE_BYTES_MAX;

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
    _lock: File,
}

impl SledKv {
    /// Opens the store in `state_dir`, making both if need be. `cache` is sled's page cache in bytes.
    pub fn open(state_dir: &Path, cache: u64) -> Result<Self, OpenError> {
        let io_error = |doing: &'static str, path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| OpenError::Io { doing, path, why: error.to_string() }
        };
        make_durable_dir(state_dir).map_err(io_error("making", state_dir))?;
        let lock = lock(state_dir)?;
        let store = state_dir.join(STORE);
        if !store.exists() {
            create_aside(state_dir, cache)?;
        }
        remove_unfinished_snapshots(&store).map_err(io_error("tidying", &store))?;
        // Whatever a killed process left in the page cache must not become the base of recovery before it is durable.
        sync_all_below(&store).map_err(io_error("syncing", &store))?;
        let db = open_unlocked(&store, cache)?;
        sync_all_below(&store).map_err(io_error("syncing", &store))?;
        let data = File::open(store.join("db")).map_err(io_error("opening", &store))?;
        Ok(Self { db, data, store, blobs_seen: false, _lock: lock })
    }
}

impl Kv for SledKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        let value = self.db.get(key).map_err(failed("reading"))?;
        Ok(value.map(Bytes::from_owner))
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        self.db.range(from..to).map(|pair| {
            let (key, value) = pair.map_err(failed("scanning"))?;
            Ok((Bytes::from_owner(key), Bytes::from_owner(value)))
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
        self.db.apply_batch(writes).map_err(failed("writing"))?;
        self.db.flush().map_err(failed("flushing"))?;
        self.data.sync_data().map_err(|error| Failed { doing: "syncing", why: error.to_string() })?;
        self.watch_blobs();
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
    let io_error = |doing: &'static str| {
        let path = aside.display().to_string();
        move |error: io::Error| OpenError::Io { doing, path, why: error.to_string() }
    };
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(io_error("removing"))?;
    }
    let db = open_unlocked(&aside, cache)?;
    let path = aside.display().to_string();
    db.flush().map_err(|error| OpenError::Io { doing: "flushing", path, why: error.to_string() })?;
    drop(db);
    wait_until_let_go(&aside).map_err(io_error("waiting for"))?;
    sync_all_below(&aside).map_err(io_error("syncing"))?;
    fs::rename(&aside, state_dir.join(STORE)).map_err(io_error("renaming"))?;
    sync_dir(state_dir).map_err(io_error("syncing the parent of"))
}

/// Opens with the settings of rule 5: no background flusher. A panic is sled's answer to some kinds of damage.
fn open_unlocked(path: &Path, cache: u64) -> Result<::sled::Db, OpenError> {
    let shown = || path.display().to_string();
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

fn failed(doing: &'static str) -> impl Fn(::sled::Error) -> Failed {
    move |error| Failed { doing, why: error.to_string() }
}
