//! The outbox as the stages see it. It takes time, may lose the power at every call, and checks all requests.

use std::sync::Arc;

use sendoff::clock::Clock;
use sendoff::event::{Event, EventId, FunctionName};
use sendoff::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use sendoff::outbox::handoff::{Adopted, Handed, RememberedKey, RememberedPage};
use sendoff::outbox::operator::{Keys, KnownKey, ListWant, Operator, Page, Purge, Purged, Touched};
use sendoff::outbox::{
    Appended, Census, Changes, Error, Found, Health, History, LaneNews, LaneView, Lease, LeaseWant, Leases, Outbox,
    Settlement, Unsettled,
};

use crate::sabotage::Sabotaged;
use crate::world::World;

/// The most time of a call besides the commit, in milliseconds.
pub const CALL_MS_MAX: u64 = 3;

#[derive(Clone)]
pub struct Tap {
    pub inner: Sabotaged,
    pub world: Arc<World>,
    pub life: u32,
    pub clock: Clock,
}

impl Outbox for Tap {
    async fn append(&self, batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        self.world.point(self.life, "before an append").await;
        self.world.pass(CALL_MS_MAX).await;
        let appended = self.inner.append(batch).await;
        self.world.point(self.life, "after an append").await;
        appended
    }

    async fn lease(&self, want: LeaseWant, since: Option<u64>) -> Result<Leases, Error> {
        self.world.point(self.life, "before a lease").await;
        let leases = self.inner.lease(want, since).await?;
        let now = self.clock.now();
        for leased in &leases.events {
            self.world.note(|| format!("lease {} calls={}", leased.event.id, leased.history.calls));
            let found = self.world.ledger().leased(leased, now, self.world.now());
            let delayed = self.world.ledger().delayed(leased.event.id, self.world.now());
            for (promise, what) in found.into_iter().chain(delayed) {
                self.world.violated(promise, what);
            }
        }
        self.world.point(self.life, "after a lease").await;
        Ok(leases)
    }

    async fn settle(&self, done: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        // The times at which the settlement was decided. The clock may be set before it is on the disk.
        let (now, world_now) = (self.clock.now(), self.world.now());
        self.world.point(self.life, "before a settlement").await;
        for (lease, settlement) in &done {
            self.world.note(|| format!("settle {} {}", lease.id, in_a_word(settlement)));
            let found = self.world.ledger().settling(lease.id, settlement);
            if let Some((promise, what)) = found {
                self.world.violated(promise, what);
            }
        }
        let settled = self.inner.settle(done.clone()).await;
        if settled.is_ok() {
            let mut ledger = self.world.ledger();
            done.iter().for_each(|(lease, settlement)| ledger.settled(lease.id, settlement, now, world_now));
        }
        self.world.point(self.life, "after a settlement").await;
        settled
    }

    async fn adopt(&self, events: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        self.world.point(self.life, "before an adoption").await;
        self.world.pass(CALL_MS_MAX).await;
        let adopted = self.inner.adopt(events).await;
        self.world.point(self.life, "after an adoption").await;
        adopted
    }

    async fn remembered(&self, after: Option<[u8; RememberedKey::BYTES]>) -> Result<RememberedPage, Error> {
        self.inner.remembered(after).await
    }

    async fn learn(&self, keys: Vec<RememberedKey>) -> Result<u64, Error> {
        self.inner.learn(keys).await
    }

    async fn lanes(&self, since: u64) -> Result<LaneNews, Error> {
        self.inner.lanes(since).await
    }

    async fn find(&self, id: EventId) -> Result<Option<Found>, Error> {
        self.inner.find(id).await
    }

    async fn census(&self) -> Result<Census, Error> {
        self.inner.census().await
    }

    async fn changed(&self, since: u64, what: Changes) {
        self.inner.changed(since, what).await;
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn failed(&self) -> String {
        self.inner.failed().await
    }
}

impl Operator for Tap {
    async fn lane(&self, function: &FunctionName) -> Result<Option<LaneView>, Error> {
        self.inner.lane(function).await
    }

    async fn pause(&self, function: &FunctionName, paused: bool) -> Result<(), Error> {
        self.world.point(self.life, "before a pause").await;
        let done = self.inner.pause(function, paused).await;
        self.world.point(self.life, "after a pause").await;
        done
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, Error> {
        self.world.point(self.life, "before a purge").await;
        let purged = self.inner.purge(purge).await;
        self.world.point(self.life, "after a purge").await;
        purged
    }

    async fn cancel(&self, id: EventId, keys: Keys) -> Result<Touched, Error> {
        self.world.point(self.life, "before a cancellation").await;
        let touched = self.inner.cancel(id, keys).await;
        self.world.point(self.life, "after a cancellation").await;
        touched
    }

    async fn attempt_now(&self, id: EventId) -> Result<Touched, Error> {
        self.world.point(self.life, "before an attempt now").await;
        let touched = self.inner.attempt_now(id).await;
        self.world.point(self.life, "after an attempt now").await;
        touched
    }

    async fn known_key(
        &self,
        function: &FunctionName,
        tenant: Option<String>,
        key: String,
    ) -> Result<Option<KnownKey>, Error> {
        self.inner.known_key(function, tenant, key).await
    }

    async fn list(&self, want: ListWant) -> Result<Page, Error> {
        self.inner.list(want).await
    }

    async fn buried(&self, want: BuriedWant) -> Result<BuriedPage, Error> {
        self.inner.buried(want).await
    }

    async fn redrive(&self, events: Vec<Redriven>) -> Result<Vec<Appended>, Error> {
        self.world.point(self.life, "before a redrive").await;
        let done = self.inner.redrive(events).await;
        self.world.point(self.life, "after a redrive").await;
        done
    }

    async fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> Result<Vec<Revived>, Error> {
        self.world.point(self.life, "before a revival").await;
        let done = self.inner.revive(ids, redrives_max).await;
        self.world.point(self.life, "after a revival").await;
        done
    }

    async fn import(&self, letters: Vec<(Event, History)>) -> Result<Vec<Imported>, Error> {
        self.inner.import(letters).await
    }

    async fn discard(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Discarded>, Error> {
        self.world.point(self.life, "before a removal of dead letters").await;
        let done = self.inner.discard(ids, keys).await;
        self.world.point(self.life, "after a removal of dead letters").await;
        done
    }
}

fn in_a_word(settlement: &Settlement) -> String {
    match settlement {
        Settlement::Delivered => "delivered".into(),
        Settlement::RetryAt(history) => format!("retry at {} after {} attempts", history.due.0, history.attempts),
        Settlement::Release => "release".into(),
        Settlement::Bury(history) => {
            format!("bury {}", history.burial.as_ref().map_or("", |burial| burial.reason.as_str()))
        }
        Settlement::Shipped => "shipped".into(),
        Settlement::HandedOver => "handed over".into(),
    }
}
