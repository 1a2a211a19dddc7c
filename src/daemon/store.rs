//! The store of a daemon: one of the engines, behind the contract that they share.

use crate::event::{Event, EventId, FunctionName};
use crate::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use crate::outbox::handoff::{Adopted, Handed, RememberedKey, RememberedPage};
use crate::outbox::operator::{Informant, Keys, KnownKey, ListWant, Operator, Overview, Page, Purge, Purged, Touched};
use crate::outbox::{
    Appended, Census, Changes, Error, Found, Health, History, LaneNews, LaneView, Lease, LeaseWant, Leases, Outbox,
    Settlement, Unsettled, embedded, postgres,
};

/// The handle of an open store.
#[derive(Clone)]
pub enum Store {
    Embedded(embedded::writer::Handle),
    Postgres(postgres::Handle),
}

/// Calls the engine.
macro_rules! engine {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Embedded($store) => $call,
            Self::Postgres($store) => $call,
        }
    };
}

impl Outbox for Store {
    async fn append(&self, batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        engine!(self, store => store.append(batch).await)
    }

    async fn lease(&self, want: LeaseWant, since: Option<u64>) -> Result<Leases, Error> {
        engine!(self, store => store.lease(want, since).await)
    }

    async fn settle(&self, done: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        engine!(self, store => store.settle(done).await)
    }

    async fn adopt(&self, events: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        engine!(self, store => store.adopt(events).await)
    }

    async fn remembered(&self, after: Option<[u8; RememberedKey::BYTES]>) -> Result<RememberedPage, Error> {
        engine!(self, store => store.remembered(after).await)
    }

    async fn learn(&self, keys: Vec<RememberedKey>) -> Result<u64, Error> {
        engine!(self, store => store.learn(keys).await)
    }

    async fn lanes(&self, since: u64) -> Result<LaneNews, Error> {
        engine!(self, store => store.lanes(since).await)
    }

    async fn find(&self, id: EventId) -> Result<Option<Found>, Error> {
        engine!(self, store => store.find(id).await)
    }

    async fn find_head(&self, id: EventId) -> Result<Option<Found>, Error> {
        engine!(self, store => store.find_head(id).await)
    }

    async fn census(&self) -> Result<Census, Error> {
        engine!(self, store => store.census().await)
    }

    async fn changed(&self, since: u64, what: Changes) {
        engine!(self, store => store.changed(since, what).await);
    }

    fn health(&self) -> Health {
        engine!(self, store => store.health())
    }

    async fn failed(&self) -> String {
        engine!(self, store => store.failed().await)
    }

    fn is_shared(&self) -> bool {
        engine!(self, store => store.is_shared())
    }

    fn draining(&self) {
        engine!(self, store => store.draining());
    }
}

impl Operator for Store {
    async fn overview(&self) -> Result<Overview, Error> {
        engine!(self, store => store.overview().await)
    }

    fn inform(&self, informant: Informant) {
        engine!(self, store => store.inform(informant));
    }

    async fn ask_others(&self, question: String) -> Vec<String> {
        engine!(self, store => store.ask_others(question).await)
    }

    async fn lane(&self, function: &FunctionName) -> Result<Option<LaneView>, Error> {
        engine!(self, store => store.lane(function).await)
    }

    async fn pause(&self, function: &FunctionName, paused: bool) -> Result<(), Error> {
        engine!(self, store => store.pause(function, paused).await)
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, Error> {
        engine!(self, store => store.purge(purge).await)
    }

    async fn cancel(&self, id: EventId, keys: Keys) -> Result<Touched, Error> {
        engine!(self, store => store.cancel(id, keys).await)
    }

    async fn attempt_now(&self, id: EventId) -> Result<Touched, Error> {
        engine!(self, store => store.attempt_now(id).await)
    }

    async fn cancel_all(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Touched>, Error> {
        engine!(self, store => store.cancel_all(ids, keys).await)
    }

    async fn attempt_all(&self, ids: Vec<EventId>) -> Result<Vec<Touched>, Error> {
        engine!(self, store => store.attempt_all(ids).await)
    }

    async fn known_key(
        &self,
        function: &FunctionName,
        tenant: Option<String>,
        key: String,
    ) -> Result<Option<KnownKey>, Error> {
        engine!(self, store => store.known_key(function, tenant, key).await)
    }

    async fn list(&self, want: ListWant) -> Result<Page, Error> {
        engine!(self, store => store.list(want).await)
    }

    async fn buried(&self, want: BuriedWant) -> Result<BuriedPage, Error> {
        engine!(self, store => store.buried(want).await)
    }

    async fn redrive(&self, events: Vec<Redriven>) -> Result<Vec<Appended>, Error> {
        engine!(self, store => store.redrive(events).await)
    }

    async fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> Result<Vec<Revived>, Error> {
        engine!(self, store => store.revive(ids, redrives_max).await)
    }

    async fn import(&self, letters: Vec<(Event, History)>) -> Result<Vec<Imported>, Error> {
        engine!(self, store => store.import(letters).await)
    }

    async fn discard(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Discarded>, Error> {
        engine!(self, store => store.discard(ids, keys).await)
    }
}
