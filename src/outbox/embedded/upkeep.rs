//! The maintenance of the embedded store: sweeping remembered keys, reclaiming space, and watching its thread.
//!
//! Holds: works in small pieces, and requests are served between them.
//! Fails: with the store. Gives the store up if a write has not returned after [`WRITE_LOOKS_MAX`] checks, or if its
//! directory is gone.

use std::time::Duration;

use super::store::place::Anchor;
use super::writer::{Handle, Watch};
use crate::clock::Clock;
use crate::outbox::{Error, Limits, Outbox};

/// The least time between two full sweeps.
const SWEEP_EVERY_MAX: Duration = Duration::from_secs(3_600);

/// The pause between two pieces of maintenance, so that they do not delay requests.
const BREATH: Duration = Duration::from_millis(5);

/// The time between two attempts to reclaim space while events are refused.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// How often to check whether a write hangs, and whether the directory is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A single write that is unfinished after this many checks in a row (30 s) counts as failed. Working disks answer within
/// seconds.
const WRITE_LOOKS_MAX: u32 = 60;

/// A directory that is missing in this many looks in a row (2 s) counts as gone.
const PLACE_LOOKS_MAX: u32 = 4;

/// The upkeep of one open store.
pub struct Upkeep {
    handle: Handle,
    clock: Clock,
    sweep_every: Duration,
    /// The place of the store on disk. `None` for a store in memory.
    anchor: Option<Anchor>,
}

impl Upkeep {
    pub fn new(handle: Handle, clock: Clock, limits: &Limits) -> Self {
        let window = limits.dedupe_window.min(limits.sdk_window);
        let sweep_every = (window / 4).clamp(Duration::from_secs(1), SWEEP_EVERY_MAX);
        Self { handle, clock, sweep_every, anchor: None }
    }

    /// Watches the place of the store, too.
    pub fn at(self, anchor: Anchor) -> Self {
        Self { anchor: Some(anchor), ..self }
    }

    /// Works until the store is closed. An error means that this process has lost the store.
    pub async fn run(self) -> Result<(), Error> {
        tokio::select! {
            biased;
            done = self.housekeeping() => done,
            never = self.watch() => match never {},
            never = self.watch_place() => match never {},
        }
    }

    /// The part that changes the store. Ends as [`Upkeep::run`] does.
    pub async fn housekeeping(&self) -> Result<(), Error> {
        let done = tokio::select! {
            biased;
            () = self.handle.closed() => Ok(()),
            why = self.handle.failed() => Err(Error::Poisoned { why }),
            done = self.sweep() => done,
            done = self.make_room() => done,
        };
        match done {
            Err(Error::Closed) => Ok(()),
            done => done,
        }
    }

    /// Sweeps keys whose window is over and lanes that have long been empty, a few times in each window.
    async fn sweep(&self) -> Result<(), Error> {
        loop {
            self.in_pieces(|| self.handle.sweep()).await?;
            tokio::select! {
                biased;
                // Due times from a wrong clock must be corrected before the next sweep.
                () = self.clock.until_stepped() => {}
                () = self.clock.sleep(self.sweep_every) => {}
            }
        }
    }

    /// Reclaims space when events are refused, so that a drained store does not stay full until the next sweep.
    async fn make_room(&self) -> Result<(), Error> {
        loop {
            self.handle.room_is_wanted().await;
            self.in_pieces(|| self.handle.tend()).await?;
            self.clock.sleep(ROOM_EVERY).await;
        }
    }

    /// Repeats `piece` until nothing is left.
    async fn in_pieces<F: Future<Output = Result<bool, Error>>>(&self, piece: impl Fn() -> F) -> Result<(), Error> {
        while piece().await? {
            self.clock.sleep(BREATH).await;
        }
        Ok(())
    }

    /// Gives the store up once a write has not returned for too long. Each write that returns restarts the count, so a slow
    /// disk does not count as failed. Neither does a stopped process, which makes no checks.
    async fn watch(&self) -> std::convert::Infallible {
        let mut watch = Watch::default();
        loop {
            if watch.look(self.handle.pulse()) >= WRITE_LOOKS_MAX {
                let seconds = (LOOK_EVERY * WRITE_LOOKS_MAX).as_secs();
                self.handle.give_up(format!("a write has not returned for {seconds} s"));
            }
            self.clock.sleep(LOOK_EVERY).await;
        }
    }

    /// Gives the store up once its directory is gone. Nothing accepted from then on could be found by the next start, and
    /// another daemon could begin a new store in its place.
    async fn watch_place(&self) -> std::convert::Infallible {
        let Some(anchor) = self.anchor.clone() else { return std::future::pending().await };
        let mut missing = 0;
        loop {
            let looked = anchor.clone();
            // On a thread of its own: a disk that hangs must not stop the runtime.
            let is_gone = tokio::task::spawn_blocking(move || looked.is_gone()).await.unwrap_or(false);
            missing = if is_gone { missing + 1 } else { 0 };
            if missing == PLACE_LOOKS_MAX {
                self.handle.give_up(format!(
                    "the state directory was moved, removed or replaced ({anchor}); put it back, then start sendoff again"
                ));
            }
            self.clock.sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use bytes::Bytes;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::clock::UnixMillis;
    use crate::event::testing::event;
    use crate::metrics::Metrics;
    use crate::outbox::embedded::Settings;
    use crate::outbox::embedded::engine::Engine;
    use crate::outbox::embedded::kv::{Batch, Disk, Failed, Kv};
    use crate::outbox::embedded::memory::{MemoryDisk, MemoryKv};
    use crate::outbox::embedded::writer::Writer;
    use crate::outbox::{Health, LeaseWant};

    /// A disk whose writes after the first return only when the test lets them.
    struct Hanging {
        inner: MemoryKv,
        commits: u32,
        let_go: mpsc::Receiver<()>,
    }

    impl Kv for Hanging {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
            self.inner.get(key)
        }

        fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
            self.inner.scan(from, to)
        }

        fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
            self.commits += 1;
            if self.commits > 1 {
                self.let_go.recv().unwrap_or_default();
            }
            self.inner.commit(batch)
        }

        fn disk(&self) -> Disk {
            self.inner.disk()
        }
    }

    fn settings() -> Settings {
        let window = Duration::from_secs(3_600);
        let limits = Limits {
            bytes_max: 1 << 30,
            events_max: 1_000,
            functions_max: 100,
            dedupe_window: window,
            sdk_window: window,
        };
        Settings { limits, disk_reserve: 0, segment_bytes: 1 << 20, cache: 0 }
    }

    fn start(kv: impl Kv, clock: &Clock) -> (Handle, std::thread::JoinHandle<()>) {
        let engine = Engine::open(kv, settings(), clock.clone(), "test").unwrap();
        let (writer, handle) = Writer::new(engine, clock.clone(), Arc::new(Metrics::new().unwrap()));
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::spawn(move || {
            let _inside = runtime.enter();
            writer.run();
        });
        (handle, thread)
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_never_returns_is_given_up_and_nothing_more_is_accepted() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let (release, let_go) = mpsc::channel();
        let kv = Hanging { inner: MemoryDisk::default().open(), commits: 0, let_go };
        let (handle, thread) = start(kv, &clock);
        assert!(handle.lease(LeaseWant::default(), None).await.is_ok(), "reads commit nothing");
        let (waiting, event) = (handle.clone(), event(&clock, "orders"));
        let tasks = TaskTracker::new();
        let asked = tasks.spawn(async move { waiting.append(vec![event]).await });
        let began = clock.now();
        let ended = Upkeep::new(handle.clone(), clock.clone(), &settings().limits).run().await;
        assert!(matches!(ended, Err(Error::Poisoned { why }) if why.contains("not returned")));
        assert!(clock.now().since(began) >= LOOK_EVERY * WRITE_LOOKS_MAX);
        assert!(matches!(handle.health(), Health::Poisoned { why } if why.contains("not returned")));
        assert!(matches!(handle.census().await, Err(Error::Poisoned { .. })));

        drop(release);
        drop(asked.await.unwrap());
        handle.close().await;
        thread.join().unwrap();
    }

    // Real time: a paused clock would advance past the write's limit while the writer's thread works.
    #[tokio::test]
    async fn a_store_that_is_closed_has_done_all_that_was_asked_before_and_ends_its_upkeep() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let disk = MemoryDisk::default();
        let (handle, thread) = start(disk.open(), &clock);
        let tasks = TaskTracker::new();
        let upkeep = tasks.spawn(Upkeep::new(handle.clone(), clock.clone(), &settings().limits).run());
        let asked: Vec<_> = (0..20)
            .map(|_| {
                let (handle, event) = (handle.clone(), event(&clock, "orders"));
                tasks.spawn(async move { handle.append(vec![event]).await })
            })
            .collect();
        tokio::task::yield_now().await;
        handle.close().await;
        thread.join().unwrap();
        upkeep.await.unwrap().unwrap();
        for asked in asked {
            asked.await.unwrap().unwrap();
        }
        assert!(matches!(handle.append(vec![event(&clock, "orders")]).await, Err(Error::Closed)));
        let (again, thread) = start(disk.open(), &clock);
        assert_eq!(again.census().await.unwrap().events, 20);
        again.close().await;
        thread.join().unwrap();
    }
}
