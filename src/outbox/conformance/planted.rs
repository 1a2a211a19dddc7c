//! Engines with a bug, planted on purpose: each breaks one rule of the contract. The sentences and the model must catch
//! every one of them, or they prove nothing.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use super::*;
use crate::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use crate::outbox::handoff::{Adopted, Handed, RememberedKey, RememberedPage};
use crate::outbox::operator::{KnownKey, Page, Purged};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// None: what catches this one is wrong itself.
    None,
    /// A lost lease is not named.
    HideLostLeases,
    /// The news that a lease brings along were read before it.
    StaleNews,
    /// A repeat is a new event.
    ForgetKeys,
    /// Events past their age are found only if they are due.
    OverlookTheOld,
    /// What was never attempted is not preferred.
    IgnoreFresh,
    /// A retry is due at once.
    IgnoreDueTimes,
    /// A pause is answered, and not kept.
    ForgetPauses,
    /// A purge that was to count removes.
    PurgeForReal,
    /// A purge looks at no state.
    PurgeEveryState,
    /// A cancellation forgets the key that it was to keep.
    ForgetKeptKeys,
    /// An event is not brought forward.
    PretendToAttempt,
    /// A dead letter that was to come back is gone.
    LoseTheRevived,
    /// A dead letter comes back more often than it may.
    ReviveForEver,
    /// A dead letter that was to be removed stays.
    PretendToDiscard,
    /// An event that was handed on is still remembered as adopted.
    KeepAdoptions,
    /// An adopted event begins anew.
    LoseHistories,
    /// An adopted event takes its key from another event.
    ClaimKeys,
}

/// A subject whose engine has the bug.
pub struct Planted<S> {
    pub subject: S,
    pub bug: Bug,
}

impl<S: Subject> Subject for Planted<S> {
    type Store = Buggy<S::Store>;

    async fn open(&mut self, limits: &Limits, clock: &Clock) -> Opened<Self::Store> {
        let Opened { outbox, upkeep, closing } = self.subject.open(limits, clock).await;
        let outbox = Buggy { inner: outbox, bug: self.bug, clock: clock.clone() };
        Opened { outbox, upkeep, closing }
    }

    async fn sweep(store: &Self::Store) {
        S::sweep(&store.inner).await;
    }
}

/// Whether a sentence catches the bug of the engine that it runs on.
pub async fn is_caught(sentence: impl Future<Output = ()>) -> bool {
    AssertUnwindSafe(sentence).catch_unwind().await.is_err()
}

#[derive(Clone)]
pub struct Buggy<O> {
    inner: O,
    bug: Bug,
    clock: Clock,
}

impl<O: Operator> Outbox for Buggy<O> {
    async fn append(&self, mut batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        if self.bug == Bug::ForgetKeys {
            batch.iter_mut().for_each(|event| event.key.source = KeySource::Minted);
        }
        self.inner.append(batch).await
    }

    async fn lease(&self, mut want: LeaseWant, since: Option<u64>) -> Result<Leases, Error> {
        for lane in &mut want.lanes {
            if matches!(
                (self.bug, lane.which),
                (Bug::OverlookTheOld, Which::AcceptedBefore(_)) | (Bug::IgnoreFresh, Which::Fresh)
            ) {
                lane.which = Which::Due;
            }
        }
        if self.bug == Bug::StaleNews
            && let Some(since) = since
        {
            let news = Some(self.inner.lanes(since).await?);
            return Ok(Leases { news, ..self.inner.lease(want, None).await? });
        }
        self.inner.lease(want, since).await
    }

    async fn settle(&self, mut done: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        for (_, settlement) in &mut done {
            if let (Bug::IgnoreDueTimes, Settlement::RetryAt(history)) = (self.bug, &mut *settlement) {
                history.due = self.clock.now();
            }
            if (self.bug, &*settlement) == (Bug::KeepAdoptions, &Settlement::HandedOver) {
                *settlement = Settlement::Delivered;
            }
        }
        let lost = self.inner.settle(done).await?;
        Ok(if self.bug == Bug::HideLostLeases { Vec::new() } else { lost })
    }

    async fn adopt(&self, events: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        if self.bug == Bug::LoseHistories {
            let anew =
                |handed: Handed| Handed { history: History { attempts: 0, calls: 0, ..handed.history }, ..handed };
            return self.inner.adopt(events.into_iter().map(anew).collect()).await;
        }
        let adopted = self.inner.adopt(events.clone()).await?;
        if self.bug == Bug::ClaimKeys {
            for (handed, _) in events.into_iter().zip(&adopted).filter(|(_, adopted)| **adopted == Adopted::Stored) {
                self.claim_key(handed).await?;
            }
        }
        Ok(adopted)
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

impl<O: Operator> Buggy<O> {
    /// Gives an adopted event the key that another event has.
    async fn claim_key(&self, handed: Handed) -> Result<(), Error> {
        let mine = handed.event.id;
        let id = EventId::mint(self.clock.now(), self.clock.random_bits(), &handed.event.function.name);
        let appended = self.inner.append(vec![Event { id, ..handed.event.clone() }]).await?;
        if let [Appended::Conflict { first }] = appended[..]
            && let Some(Found { event, history, .. }) = self.inner.find(first).await?
        {
            for id in [mine, first] {
                self.inner.cancel(id, Keys::Forget).await?;
            }
            self.inner.adopt(vec![handed, Handed { event, history, paused: false }]).await?;
        }
        Ok(())
    }
}

impl<O: Operator> Operator for Buggy<O> {
    async fn lane(&self, function: &FunctionName) -> Result<Option<LaneView>, Error> {
        self.inner.lane(function).await
    }

    async fn pause(&self, function: &FunctionName, paused: bool) -> Result<(), Error> {
        self.inner.pause(function, paused && self.bug != Bug::ForgetPauses).await
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, Error> {
        let dry_run = purge.dry_run && self.bug != Bug::PurgeForReal;
        let place = purge.place.filter(|_| self.bug != Bug::PurgeEveryState);
        self.inner.purge(Purge { dry_run, place, ..purge }).await
    }

    async fn cancel(&self, id: EventId, keys: Keys) -> Result<Touched, Error> {
        let keys = if self.bug == Bug::ForgetKeptKeys { Keys::Forget } else { keys };
        self.inner.cancel(id, keys).await
    }

    async fn attempt_now(&self, id: EventId) -> Result<Touched, Error> {
        match (self.bug, self.inner.find(id).await?) {
            (Bug::PretendToAttempt, Some(Found { leased: false, place, .. })) if place != Place::Buried => {
                Ok(Touched::Done)
            }
            _ => self.inner.attempt_now(id).await,
        }
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
        self.inner.redrive(events).await
    }

    async fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> Result<Vec<Revived>, Error> {
        let redrives_max = if self.bug == Bug::ReviveForEver { u32::MAX } else { redrives_max };
        let revived = self.inner.revive(ids, redrives_max).await?;
        if self.bug == Bug::LoseTheRevived {
            for answer in &revived {
                if let Revived::Stored { id } = answer {
                    self.inner.cancel(*id, Keys::Keep).await?;
                }
            }
        }
        Ok(revived)
    }

    async fn import(&self, letters: Vec<(Event, History)>) -> Result<Vec<Imported>, Error> {
        self.inner.import(letters).await
    }

    async fn discard(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Discarded>, Error> {
        if self.bug != Bug::PretendToDiscard {
            return self.inner.discard(ids, keys).await;
        }
        let mut answers = Vec::new();
        for id in ids {
            answers.push(match self.inner.find(id).await? {
                Some(Found { place: Place::Buried, leased: false, .. }) => Discarded::Done,
                Some(Found { place: Place::Buried, leased: true, .. }) => Discarded::Leased,
                Some(_) | None => Discarded::NotFound,
            });
        }
        Ok(answers)
    }
}
