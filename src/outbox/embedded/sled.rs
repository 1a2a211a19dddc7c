//! The index: sled 0.34.7, used by the five rules of docs/adr/0001. Without them it loses data on power loss. Comments mark
//! where each rule is followed.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::kv::{Batch, Failed, Index};

/// sled's threads release its lock some time after the last handle is dropped. This is how long to wait for it.
const UNLOCK_TRIES: u32 = 200;
const UNLOCK_WAIT: Duration = Duration::from_millis(10);

/// sled counts its cache in bytes on disk. In memory, entries as small as ours take about four times as much.
const CACHE_OVERHEAD: u64 = 4;

/// One round frees the garbage of at most 512 replacements, and a key may cause about ten (its leaf, and splits).
const KEYS_PER_ROUND: usize = 32;

/// The garbage of an epoch can be freed two rounds after the last round that uses it.
const ROUNDS_MIN: usize = 4;

/// The largest value, in bytes (rule 2).
const VALUE_BYTES_MAX: usize = 4096;

/// Why an index cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Damaged(String),
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
}

/// One open index.
pub struct SledIndex {
    db: ::sled::Db,
    /// A descriptor of our own for the data file: sled's `flush` never syncs (rule 5).
    data: File,
    path: PathBuf,
    blobs_seen: AtomicBool,
    /// Notified of damage, which the next start must examine.
    damaged: Option<Box<dyn Fn() + Send + Sync>>,
}

impl SledIndex {
    /// Creates an empty index at `path`, and replaces the rest of an interrupted attempt. It is durable only after it was
    /// dropped, [`wait_until_let_go`] has returned, and [`sync_all_below`] has run (rule 4). `cache` is the approximate memory
    /// of sled's page cache, in bytes.
    pub fn create(path: &Path, cache: u64) -> Result<Self, OpenError> {
        if path.exists() {
            fs::remove_dir_all(path).map_err(io_error("removing an unfinished index"))?;
        }
        Self::over(open_db(path, cache)?, path)
    }

    /// Opens an index that was made durable.
    pub fn open(path: &Path, cache: u64) -> Result<Self, OpenError> {
        if !path.join("db").exists() || !path.join("conf").exists() {
            return Err(OpenError::Damaged("a file of it is missing".into())); // sled would make a new, empty one
        }
        remove_unfinished_snapshots(path).map_err(io_error("tidying"))?;
        // Data that a killed process left in the page cache must be durable before recovery builds on it.
        sync_all_below(path).map_err(io_error("syncing"))?;
        let db = open_db(path, cache)?;
        sync_all_below(path).map_err(io_error("syncing"))?;
        Self::over(db, path)
    }

    /// Notifies `damaged` of damage.
    pub fn telling(self, damaged: impl Fn() + Send + Sync + 'static) -> Self {
        Self { damaged: Some(Box::new(damaged)), ..self }
    }

    fn over(db: ::sled::Db, path: &Path) -> Result<Self, OpenError> {
        let data = File::open(path.join("db")).map_err(io_error("opening its data file"))?;
        Ok(Self { db, data, path: path.to_owned(), blobs_seen: AtomicBool::new(false), damaged: None })
    }

    /// Calls sled. A panic or a corruption error counts as damage.
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
        if let (true, Some(tell)) = (damage, &self.damaged) {
            tell();
        }
        Err(Failed::new(doing, why))
    }

    /// The alarm for rule 2. With values of at most 4 KiB, sled never wrote a blob in tests.
    fn watch_blobs(&self) {
        let seen = || fs::read_dir(self.path.join("blobs")).is_ok_and(|mut dir| dir.next().is_some());
        if !self.blobs_seen.load(Ordering::Relaxed) && seen() {
            self.blobs_seen.store(true, Ordering::Relaxed);
            tracing::error!(index = %self.path.display(), "sled wrote a blob file, which it never syncs: please report this");
        }
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        let value = self.ask("reading the index", || self.db.get(key))?;
        Ok(value.map(Bytes::from_owner))
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        let mut pairs = self.db.range(from..to);
        std::iter::from_fn(move || {
            let pair = self.ask("scanning the index", || pairs.next().transpose()).transpose()?;
            Some(pair.map(|(key, value)| (Bytes::from_owner(key), Bytes::from_owner(value))))
        })
    }

    fn commit(&self, batch: &Batch) -> Result<(), Failed> {
        let mut writes = ::sled::Batch::default();
        for (key, value) in batch.writes() {
            match value {
                // Rule 2: a larger value might end in a blob file, which sled never syncs.
                Some(value) if value.len() > VALUE_BYTES_MAX => {
                    let why = format!("a value of {} bytes; at most {VALUE_BYTES_MAX} are safe", value.len());
                    return Err(Failed::new("writing the index", why));
                }
                Some(value) => writes.insert(key, &value[..]),
                None => writes.remove(key),
            }
        }
        // Rule 1: one batch, one flush, one fdatasync, and no other write between two of them.
        self.ask("writing the index", || self.db.apply_batch(writes))?;
        self.ask("flushing the index", || self.db.flush())?;
        self.data.sync_data().map_err(|error| Failed::new("syncing the index", error))?;
        drop_garbage(batch.len());
        self.watch_blobs();
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.data.metadata().map(|file| file.len()).unwrap_or(0)
    }
}

/// Frees the page versions that a commit of this many keys replaced.
///
/// sled's epochs free a few of them on each 128th call. One call here writes thousands of keys, so without this the
/// garbage would grow by about 2 KiB of memory for each event.
fn drop_garbage(keys: usize) {
    for _ in 0..keys / KEYS_PER_ROUND + ROUNDS_MIN {
        ::sled::pin().flush();
    }
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { doing, source }
}

/// Opens with the settings of rule 5: no background flusher. A panic is sled's answer to some kinds of damage.
fn open_db(path: &Path, cache: u64) -> Result<::sled::Db, OpenError> {
    // Threads of an index that this process dropped may still hold the lock, and sled does not wait for it.
    if path.join("db").exists() {
        wait_until_let_go(path).map_err(io_error("waiting for it"))?;
    }
    let cache = cache / CACHE_OVERHEAD;
    let config = ::sled::Config::new().path(path).cache_capacity(cache).flush_every_ms(None);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(::sled::Error::Corruption { .. })) => Err(OpenError::Damaged("sled reports corruption".into())),
        Ok(Err(::sled::Error::Io(source))) => Err(OpenError::Io { doing: "opening", source }),
        Ok(Err(error)) => Err(OpenError::Damaged(error.to_string())),
        Err(_) => Err(OpenError::Damaged("sled panicked while opening it".into())),
    }
}

/// Waits until the threads of a dropped index have released its data file.
pub fn wait_until_let_go(path: &Path) -> io::Result<()> {
    let data = File::open(path.join("db"))?;
    for _ in 0..UNLOCK_TRIES {
        match data.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) => thread::sleep(UNLOCK_WAIT),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "sled still holds its data file"))
}

/// Rule 3: sled would take an unfinished snapshot for the newest one and fail to open. The finished older one still exists.
fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
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

/// Syncs every file and directory below `dir`, and `dir` itself.
pub fn sync_all_below(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_all_below(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
