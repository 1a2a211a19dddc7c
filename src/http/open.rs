//! The open connections of a server, and which of them gives way when the limit is reached.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use crate::clock::Clock;

/// Which connections give way to a new one when all slots are taken. The one that has been in that state for longest
/// goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivesWay {
    /// Only connections without a request, because their clients can connect again. While all are busy, new ones wait.
    Idle,
    /// First idle connections, then those whose answer waits for its reader, then any. For listeners that must always
    /// be reachable.
    Any,
}

/// One connection, as the others see it.
#[derive(Debug)]
pub struct Connection {
    clock: Clock,
    /// Requests whose answer is not complete.
    requests: watch::Sender<usize>,
    since: Mutex<Instant>,
    pub progress: Progress,
    /// Cancelled to ask the connection to give way.
    pub leave: CancellationToken,
    pub is_http_2: AtomicBool,
}

impl Connection {
    pub fn in_flight(&self) -> watch::Receiver<usize> {
        self.requests.subscribe()
    }

    fn count(&self, change: impl FnOnce(&mut usize)) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = self.clock.instant();
        self.requests.send_modify(change);
    }

    /// The connection with the lowest rank gives way first.
    fn rank(&self) -> (u8, Instant) {
        let kind = match (*self.requests.borrow(), self.progress.waits()) {
            (0, _) => 0,
            (_, true) => 1,
            (_, false) => 2,
        };
        (kind, *self.since.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One request whose answer is not complete.
pub struct InFlight(Arc<Connection>);

impl InFlight {
    pub fn new(connection: &Arc<Connection>) -> Self {
        connection.count(|requests| *requests += 1);
        Self(Arc::clone(connection))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.count(|requests| *requests -= 1);
    }
}

/// All open connections. Cheap to clone. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Open(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    last_number: u64,
    by_number: BTreeMap<u64, Arc<Connection>>,
}

impl Open {
    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a connection until the result is dropped.
    pub fn add(&self, clock: &Clock, progress: Progress) -> Opened {
        let connection = Arc::new(Connection {
            clock: clock.clone(),
            requests: watch::channel(0).0,
            since: Mutex::new(clock.instant()),
            progress,
            leave: CancellationToken::new(),
            is_http_2: AtomicBool::new(false),
        });
        let mut all = self.all();
        all.last_number += 1;
        let number = all.last_number;
        all.by_number.insert(number, Arc::clone(&connection));
        Opened { open: self.clone(), number, connection }
    }

    /// Asks one connection to leave, unless one is already leaving.
    pub fn make_room(&self, gives_way: GivesWay) {
        let all = self.all();
        if all.by_number.values().any(|connection| connection.leave.is_cancelled()) {
            return;
        }
        let first =
            all.by_number.values().map(|connection| (connection.rank(), connection)).min_by_key(|(rank, _)| *rank);
        match (first, gives_way) {
            (Some(((0, _), connection)), GivesWay::Idle) | (Some((_, connection)), GivesWay::Any) => {
                connection.leave.cancel();
            }
            (Some(_), GivesWay::Idle) | (None, _) => {}
        }
    }
}

/// A connection that is listed until this is dropped.
pub struct Opened {
    open: Open,
    number: u64,
    pub connection: Arc<Connection>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.open.all().by_number.remove(&self.number);
    }
}

impl Connection {
    pub fn speaks(&self, version: http::Version) {
        if version == http::Version::HTTP_2 {
            self.is_http_2.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::UnixMillis;

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_gives_way_and_a_busy_one_only_where_any_may() {
        let clock = Clock::seeded(UnixMillis(0), 1);
        let open = Open::default();
        let mut opened = Vec::new();
        for _ in 0..3 {
            opened.push(open.add(&clock, Progress::new(clock.clone(), Duration::from_secs(30))));
            clock.sleep(Duration::from_secs(1)).await;
        }
        let leaving = |opened: &[Opened]| -> Vec<bool> {
            opened.iter().map(|opened| opened.connection.leave.is_cancelled()).collect()
        };
        let busy = InFlight::new(&opened[0].connection);
        open.make_room(GivesWay::Idle);
        open.make_room(GivesWay::Idle);
        assert_eq!(leaving(&opened), [false, true, false], "one at a time");
        opened.remove(1);
        let last = InFlight::new(&opened[1].connection);
        open.make_room(GivesWay::Idle);
        assert_eq!(leaving(&opened), [false, false]);
        open.make_room(GivesWay::Any);
        assert_eq!(leaving(&opened), [true, false], "the one that has been busy for the longest");
        drop((busy, last));
    }
}
