//! A store that can be away for a while, for tests of the stages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use super::handoff::{Adopted, Handed, RememberedKey, RememberedPage};
use super::operator::{Keys, KnownKey, ListWant, Operator, Page, Purge, Purged, Touched};
use super::*;

/// The `retry_after` of its answers.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An outbox that can be away. Clones share that state.
#[derive(Clone)]
pub struct Leaving<O> {
    pub inner: O,
    pub is_away: Arc<AtomicBool>,
    /// The number of calls made while it was away.
    pub refused: Arc<AtomicU64>,
}

impl<O: Outbox> Leaving<O> {
    pub fn new(inner: O) -> Self {
        Self { inner, is_away: Arc::default(), refused: Arc::default() }
    }

    pub fn leave(&self) {
        self.is_away.store(true, Ordering::Relaxed);
    }

    pub fn come_back(&self) {
        self.is_away.store(false, Ordering::Relaxed);
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn here(&self) -> Result<(), Error> {
        if !self.is_away.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(Error::Away { why: "a test".to_owned(), retry_after: RETRY_AFTER })
    }
}

impl<O: Outbox> Outbox for Leaving<O> {
    async fn append(&self, batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        self.here()?;
        self.inner.append(batch).await
    }

    async fn lease(&self, want: LeaseWant, since: Option<u64>) -> Result<Leases, Error> {
        self.here()?;
        self.inner.lease(want, since).await
    }

    async fn settle(&self, done: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        match self.here() {
            Ok(()) => self.inner.settle(done).await,
            Err(why) => Err(Unsettled { why, done }),
        }
    }

    async fn adopt(&self, events: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        self.here()?;
        self.inner.adopt(events).await
    }

    async fn remembered(&self, after: Option<[u8; RememberedKey::BYTES]>) -> Result<RememberedPage, Error> {
        self.here()?;
        self.inner.remembered(after).await
    }

    async fn learn(&self, keys: Vec<RememberedKey>) -> Result<u64, Error> {
        self.here()?;
        self.inner.learn(keys).await
    }

    async fn lanes(&self, since: u64) -> Result<LaneNews, Error> {
        self.here()?;
        self.inner.lanes(since).await
    }

    async fn find(&self, id: EventId) -> Result<Option<Found>, Error> {
        self.here()?;
        self.inner.find(id).await
    }

    async fn census(&self) -> Result<Census, Error> {
        self.here()?;
        self.inner.census().await
    }

    async fn changed(&self, since: u64, what: Changes) {
        self.inner.changed(since, what).await;
    }

    fn health(&self) -> Health {
        match self.here() {
            Ok(()) => self.inner.health(),
            Err(error) => Health::Away { why: error.to_string() },
        }
    }

    async fn failed(&self) -> String {
        self.inner.failed().await
    }
}

impl<O: Operator> Operator for Leaving<O> {
    async fn lane(&self, function: &FunctionName) -> Result<Option<LaneView>, Error> {
        self.here()?;
        self.inner.lane(function).await
    }

    async fn pause(&self, function: &FunctionName, paused: bool) -> Result<(), Error> {
        self.here()?;
        self.inner.pause(function, paused).await
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, Error> {
        self.here()?;
        self.inner.purge(purge).await
    }

    async fn cancel(&self, id: EventId, keys: Keys) -> Result<Touched, Error> {
        self.here()?;
        self.inner.cancel(id, keys).await
    }

    async fn attempt_now(&self, id: EventId) -> Result<Touched, Error> {
        self.here()?;
        self.inner.attempt_now(id).await
    }

    async fn cancel_all(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Touched>, Error> {
        self.here()?;
        self.inner.cancel_all(ids, keys).await
    }

    async fn attempt_all(&self, ids: Vec<EventId>) -> Result<Vec<Touched>, Error> {
        self.here()?;
        self.inner.attempt_all(ids).await
    }

    async fn known_key(
        &self,
        function: &FunctionName,
        tenant: Option<String>,
        key: String,
    ) -> Result<Option<KnownKey>, Error> {
        self.here()?;
        self.inner.known_key(function, tenant, key).await
    }

    async fn list(&self, want: ListWant) -> Result<Page, Error> {
        self.here()?;
        self.inner.list(want).await
    }

    async fn buried(&self, want: BuriedWant) -> Result<BuriedPage, Error> {
        self.here()?;
        self.inner.buried(want).await
    }

    async fn redrive(&self, events: Vec<Redriven>) -> Result<Vec<Appended>, Error> {
        self.here()?;
        self.inner.redrive(events).await
    }

    async fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> Result<Vec<Revived>, Error> {
        self.here()?;
        self.inner.revive(ids, redrives_max).await
    }

    async fn import(&self, letters: Vec<(Event, History)>) -> Result<Vec<Imported>, Error> {
        self.here()?;
        self.inner.import(letters).await
    }

    async fn discard(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Discarded>, Error> {
        self.here()?;
        self.inner.discard(ids, keys).await
    }
}
