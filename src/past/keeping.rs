//! Keeps ends beyond the ring in memory: they survive a restart, and are many more.
//!
//! Holds: no delivery waits for it. An end is written a moment after the store has its settlement, without a sync, so a
//! killed daemon loses some milliseconds of ends, and a power cut what the system has not written yet.
//! Limits: [`PENDING_BYTES_MAX`] wait to be written. What comes beyond them is not kept, and counted.
//! Fails: a place that cannot be written costs ends only. The log says so once, and again when it works.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::End;
use super::files::{Bounds, Files};
use super::record;
use crate::clock::{Clock, UnixMillis};
use crate::event::EventId;
use crate::metrics::Metrics;

/// The most bytes of ends that wait to be written: some seconds of full load.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// How long ends are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(10);

/// How often old ends are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(300);

/// A place that keeps ends. [`split`](super::split) and [`read_end`](super::read_end) read its records.
pub trait Keep: Send + Sync + 'static {
    /// What it is, for the log.
    fn place(&self) -> String;

    /// Whether other daemons write there, too.
    fn is_shared(&self) -> bool;

    /// Appends whole records. After an error they are not kept, or only in part.
    fn append(&self, records: Arc<Vec<u8>>, now: UnixMillis) -> BoxFuture<'_, io::Result<()>>;

    /// What became of an event, if that is kept.
    fn find(&self, id: EventId, now: UnixMillis) -> BoxFuture<'_, io::Result<Option<End>>>;

    /// Removes what is too old.
    fn sweep(&self, now: UnixMillis) -> BoxFuture<'_, io::Result<()>>;

    /// Makes durable what is appended.
    fn sync(&self) -> BoxFuture<'_, io::Result<()>>;
}

/// Opens a directory that keeps ends, and creates it if needed.
pub async fn in_directory(dir: &Path, bounds: Bounds) -> io::Result<Arc<dyn Keep>> {
    let (opened, place) = (dir.to_owned(), dir.display().to_string());
    let files = tokio::task::spawn_blocking(move || Files::open(&opened, bounds)).await;
    let files = Arc::new(Mutex::new(files.map_err(io::Error::other)??));
    Ok(Arc::new(InDirectory { files, place }))
}

struct InDirectory {
    files: Arc<Mutex<Files>>,
    place: String,
}

impl InDirectory {
    /// Works on the files, on a thread that may wait for the disk.
    fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'_, io::Result<T>> {
        let files = self.files.clone();
        let work = move || work(&mut files.lock().unwrap_or_else(PoisonError::into_inner));
        async { tokio::task::spawn_blocking(work).await.map_err(io::Error::other)? }.boxed()
    }
}

impl Keep for InDirectory {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn append(&self, records: Arc<Vec<u8>>, now: UnixMillis) -> BoxFuture<'_, io::Result<()>> {
        self.with_files(move |files| files.append(&records, now))
    }

    fn find(&self, id: EventId, now: UnixMillis) -> BoxFuture<'_, io::Result<Option<End>>> {
        self.with_files(move |files| files.find(id, now))
    }

    fn sweep(&self, now: UnixMillis) -> BoxFuture<'_, io::Result<()>> {
        self.with_files(move |files| files.sweep(now))
    }

    fn sync(&self) -> BoxFuture<'_, io::Result<()>> {
        self.with_files(|files| files.sync())
    }
}

/// The ends that are kept. All clones are one.
#[derive(Clone)]
pub struct Archive(Arc<Inner>);

struct Inner {
    keep: Arc<dyn Keep>,
    pending: Mutex<Pending>,
    /// Held while something is written.
    turn: tokio::sync::Mutex<()>,
    wake: Notify,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// Whether the log has said that nothing can be written.
    in_trouble: AtomicBool,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Archive").field(&self.0.keep.place()).finish()
    }
}

/// Records that are not written yet.
#[derive(Debug, Default)]
struct Pending {
    queued: Vec<u8>,
    /// They are being written.
    writing: Arc<Vec<u8>>,
}

impl Archive {
    pub fn new(keep: Arc<dyn Keep>, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let (pending, wake) = (Mutex::default(), Notify::new());
        let (turn, in_trouble) = (tokio::sync::Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(Inner { keep, pending, turn, wake, clock, metrics, in_trouble }))
    }

    pub(super) fn is_shared(&self) -> bool {
        self.0.keep.is_shared()
    }

    /// Takes ends, which [`Archive::run`] writes.
    pub(super) fn take(&self, ends: &[End]) {
        let mut records = Vec::with_capacity(ends.len() * 128);
        ends.iter().for_each(|end| record::encode(end, &mut records));
        let mut pending = self.pending();
        if pending.queued.len() + records.len() > PENDING_BYTES_MAX {
            drop(pending);
            self.0.metrics.history_lost.inc_by(ends.len() as u64);
            return;
        }
        pending.queued.append(&mut records);
        drop(pending);
        self.0.wake.notify_one();
    }

    /// What became of an event, if that is kept.
    pub(super) async fn find(&self, id: EventId) -> Option<End> {
        {
            let pending = self.pending();
            let of = |bytes: &[u8]| record::records(bytes).filter(|(_, found)| found.id == id).last()?.1.end();
            if let Some(end) = of(&pending.queued).or_else(|| of(&pending.writing)) {
                return Some(end);
            }
        }
        let found = self.0.keep.find(id, self.0.clock.now()).await;
        found.inspect_err(|error| tracing::warn!(event_id = %id, %error, "the history cannot be read")).ok()?
    }

    /// Writes what is taken, and removes what is too old. Never returns.
    pub async fn run(self) {
        let Inner { keep, wake, clock, .. } = &*self.0;
        let mut next_sweep = clock.steady();
        loop {
            if clock.steady() >= next_sweep {
                next_sweep = clock.steady().plus(SWEEP_EVERY);
                let swept = keep.sweep(clock.now()).await;
                self.note_trouble(swept.err());
            }
            tokio::select! {
                biased;
                () = wake.notified() => clock.sleep(GATHER).await,
                () = clock.sleep(next_sweep.since(clock.steady())) => {}
            }
            self.write().await;
        }
    }

    /// Writes what is taken, and makes it durable.
    pub(super) async fn close(&self) {
        self.write().await;
        let synced = self.0.keep.sync().await;
        self.note_trouble(synced.err());
    }

    async fn write(&self) {
        let _turn = self.0.turn.lock().await;
        let records = {
            let mut pending = self.pending();
            pending.writing = Arc::new(std::mem::take(&mut pending.queued));
            pending.writing.clone()
        };
        if records.is_empty() {
            return;
        }
        let done = self.0.keep.append(records.clone(), self.0.clock.now()).await;
        if done.is_err() {
            self.0.metrics.history_lost.inc_by(record::records(&records).count() as u64);
        }
        self.pending().writing = Arc::default();
        self.note_trouble(done.err());
    }

    fn note_trouble(&self, trouble: Option<io::Error>) {
        let place = || self.0.keep.place();
        match (trouble, self.0.in_trouble.load(Ordering::Relaxed)) {
            (Some(error), false) => tracing::warn!(
                place = place(), %error,
                "what becomes of events cannot be kept: until it can, only the latest is remembered, in memory; events are safe"
            ),
            (None, true) => tracing::info!(place = place(), "what becomes of events is kept again"),
            (Some(_), true) | (None, false) => return,
        }
        self.0.in_trouble.fetch_not(Ordering::Relaxed);
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
