//! A value that is read from files, and read again when their content changes.
//!
//! Holds: the value in service was read and checked as a whole. If a change is bad, the old value stays in service. The
//! content decides, not the time of a file: Kubernetes swaps a symbolic link when a Secret changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// How often the files are read.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// When to read files again that do not fit together. They may have been in the middle of a change.
const SETTLE: Duration = Duration::from_secs(1);

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {path:?}: {why}")]
pub struct Bad {
    /// The configuration key that names the file.
    pub key: String,
    pub path: PathBuf,
    pub why: String,
}

/// Reads a value. Also returns a digest of the content, which shows a change.
type Read<T> = Arc<dyn Fn() -> Result<([u8; 32], T), Bad> + Send + Sync>;

/// The value in service, and how to read it from its files.
pub struct Follower<T> {
    what: &'static str,
    read: Read<T>,
    clock: Clock,
    failures: IntCounter,
    seen: [u8; 32],
    /// The last problem that was logged.
    told: Option<Bad>,
    serving: watch::Sender<Arc<T>>,
}

impl<T: Send + Sync + 'static> Follower<T> {
    /// Reads the files and serves their value. `what` names them in the log. `failures` counts changes that cannot be
    /// used.
    pub fn new(
        what: &'static str,
        clock: Clock,
        failures: IntCounter,
        read: impl Fn() -> Result<([u8; 32], T), Bad> + Send + Sync + 'static,
    ) -> Result<Self, Bad> {
        let (seen, value) = read()?;
        let (serving, _) = watch::channel(Arc::new(value));
        Ok(Self { what, read: Arc::new(read), clock, failures, seen, told: None, serving })
    }

    /// Returns a receiver of the latest value.
    pub fn value(&self) -> watch::Receiver<Arc<T>> {
        self.serving.subscribe()
    }

    /// Follows the files until stopped. `asked` makes it read them at once.
    pub async fn run(mut self, mut asked: watch::Receiver<u64>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = asked.changed() => {}
                () = self.clock.sleep(LOOK_EVERY) => {}
            }
            if self.look().await.is_err() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = self.clock.sleep(SETTLE) => {}
                }
                if let Err(bad) = self.look().await {
                    self.tell(bad);
                }
            }
        }
    }

    /// Reads the files, and serves their value if the content has changed.
    async fn look(&mut self) -> Result<(), Bad> {
        let read = Arc::clone(&self.read);
        // A panic in `read` is a bug, and the next look meets it again. The old value stays in service.
        let Ok(read) = tokio::task::spawn_blocking(move || read()).await else { return Ok(()) };
        let (digest, value) = read?;
        self.told = None;
        if self.seen != digest {
            self.seen = digest;
            self.serving.send_replace(Arc::new(value));
            tracing::info!(what = self.what, "files are reloaded");
        }
        Ok(())
    }

    /// Logs and counts a problem once.
    fn tell(&mut self, bad: Bad) {
        if self.told.as_ref() == Some(&bad) {
            return;
        }
        self.failures.inc();
        tracing::error!(what = self.what, %bad, "files are not reloaded: what was read before stays in service");
        self.told = Some(bad);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio_util::task::TaskTracker;

    use super::*;

    fn read(path: &Path) -> Result<([u8; 32], u8), Bad> {
        let bad = |why: String| Bad { key: "a.key".to_owned(), path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let number = text.parse().map_err(|_| bad("no number".to_owned()))?;
        Ok(([number; 32], number))
    }

    #[tokio::test]
    async fn a_change_is_served_a_bad_one_is_told_once_and_what_was_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        let failures = IntCounter::new("failures", "help").unwrap();
        let of = path.clone();
        assert!(Follower::new("numbers", Clock::system(), failures.clone(), move || read(&of)).is_err());
        std::fs::write(&path, "1").unwrap();
        let of = path.clone();
        let follower = Follower::new("numbers", Clock::system(), failures.clone(), move || read(&of)).unwrap();
        let mut value = follower.value();
        let (ask, asked) = watch::channel(0);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(follower.run(asked, stop.clone()));
        tasks.close();

        std::fs::write(&path, "one").unwrap();
        ask.send_modify(|times| *times += 1);
        while failures.get() == 0 {
            Clock::system().sleep(Duration::from_millis(5)).await;
        }
        assert!(**value.borrow() == 1 && !value.has_changed().unwrap());
        std::fs::write(&path, "2").unwrap();
        ask.send_modify(|times| *times += 1);
        value.changed().await.unwrap();
        assert!(**value.borrow_and_update() == 2 && failures.get() == 1);
        stop.cancel();
        tasks.wait().await;
    }
}
