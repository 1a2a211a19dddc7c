//! Bugs planted on purpose, one for each promise. The checks must catch every one, or they prove nothing.

use std::time::Duration;

use sendoff::clock::UnixMillis;
use sendoff::event::{Event, EventId, FunctionName, KeySource};
use sendoff::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use sendoff::outbox::embedded::writer::Handle;
use sendoff::outbox::handoff::{Adopted, Handed, RememberedKey, RememberedPage};
use sendoff::outbox::operator::{Keys, KnownKey, ListWant, Operator, Page, Purge, Purged, Touched};
use sendoff::outbox::{
    Appended, Burial, BuryReason, Census, Changes, Error, Found, Health, History, LaneNews, LaneView, Lease, LeaseWant,
    Leases, Outbox, Settlement, Unsettled,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// G1: the store answers before it has synced (in `disk/files.rs`).
    AckBeforeSync,
    /// G1: the directory of the journal's segments is never synced (in `disk/files.rs`).
    ForgetDirectories,
    /// G1: the index records its progress before it has made it (in `disk/index.rs`).
    MarkBeforeKeys,
    /// G2: an event leaves the store when it is leased.
    DeleteOnLease,
    /// G2: an event that ran out of attempts is dropped.
    DropInsteadOfBury,
    /// G3: a duplicate is accepted as a new event.
    ForgetKeys,
    /// G4: a retry has lost its trace header.
    LoseTraceHeader,
    /// G5: an event that must wait goes at once.
    IgnoreDueTimes,
    /// G6: an attempt that a drain cut off is charged (in `life.rs`).
    ChargeForDrain,
    /// G5: `deliver_at` is lost on the way in.
    IgnoreSchedule,
    /// expiry: `expires_at` is lost on the way out.
    IgnoreExpiry,
    /// confirm: a function that ran and failed counts as one that succeeded (in `lambda.rs`).
    BelieveFunctionErrors,
    /// rate: the fixed rate does not reach dispatch (in `life.rs`).
    IgnoreRates,
    /// spend: the spend count is not stored, so a crash forgets it.
    ForgetSpending,
    /// operator: a pause is answered but not stored.
    ForgetPauses,
    /// operator: a cancelled event stays.
    PretendToCancel,
    /// G2: a purge removes more than it should.
    PurgeBeyond,
    /// operator: "attempt now" does nothing.
    PretendToAttempt,
    /// G2: a dead letter that is to come back is removed, and no event is written in its place.
    ForgetToRevive,
    /// G2: an event that comes back from the queue is answered, and not written.
    ForgetToRedrive,
    /// G2: a removal of dead letters removes others, too.
    DiscardBeyond,
    /// G2: a failure during an outage is charged to its event.
    ChargeOutages,
    /// confirm: an answer that is not Lambda's counts as the function's (in `lambda.rs`).
    BelieveForeigners,
    /// G2: an event is settled before the receiver of a hand-off has answered (in `fleet.rs`).
    SettleBeforeAnswer,
    /// G2: a message leaves the hand-off queue when it is received (in `fleet_queue.rs`).
    DeleteBeforeAdoption,
    /// G2: a send to the hand-off queue without an answer counts as confirmed (in `fleet_queue.rs`).
    BelieveLostSends,
    /// queue: whatever is received from the hand-off queue is deleted (in `fleet_queue.rs`).
    DeleteForeign,
    /// liveness: events that were taken from the hand-off queue are never deleted there (in `fleet_queue.rs`).
    LeaveMessages,
    /// G2: an event that was handed on is still remembered as adopted.
    KeepAdoptions,
    /// G3: an adopted event takes its key from another event.
    ClaimKeys,
    /// G5: no failure is ever charged, so that poison stays for ever.
    NeverCharge,
}

/// The store, with or without a bug.
#[derive(Clone)]
pub struct Sabotaged {
    pub handle: Handle,
    pub bug: Option<Bug>,
    pub attempts_max: u32,
}

impl Sabotaged {
    fn spoil(&self, (lease, settlement): (Lease, Settlement)) -> (Lease, Settlement) {
        let spoilt = match (self.bug, settlement) {
            (Some(Bug::DropInsteadOfBury), Settlement::Bury(_)) => Settlement::Delivered,
            (Some(Bug::IgnoreDueTimes), Settlement::RetryAt(history)) => {
                Settlement::RetryAt(History { due: UnixMillis(0), ..history })
            }
            (Some(Bug::ChargeOutages), Settlement::RetryAt(history)) if history.setbacks > 0 => {
                let history = History { attempts: history.attempts + 1, ..history };
                let (at, is_last) = (history.due, history.attempts >= self.attempts_max);
                let burial = Burial { reason: BuryReason::RetriesExhausted, at, unshippable: None };
                match is_last {
                    true => Settlement::Bury(History { burial: Some(burial), ..history }),
                    false => Settlement::RetryAt(history),
                }
            }
            // Later than it would be. Otherwise one seed would make a hundred thousand calls.
            (Some(Bug::NeverCharge), Settlement::RetryAt(history)) if history.attempts > 0 => uncharged(history),
            (Some(Bug::NeverCharge), Settlement::Bury(history))
                if history.burial.as_ref().is_some_and(|b| b.reason == BuryReason::RetriesExhausted) =>
            {
                uncharged(history)
            }
            (Some(Bug::KeepAdoptions), Settlement::HandedOver) => Settlement::Delivered,
            (_, settlement) => settlement,
        };
        (lease, spoilt)
    }
}

impl Sabotaged {
    /// Gives an adopted event the key that another event has.
    async fn claim_key(&self, handed: Handed) -> Result<(), Error> {
        let event = &handed.event;
        let mut bytes = *event.id.as_bytes();
        bytes[8] ^= 1;
        let probe = Event { id: EventId::from_bytes(bytes), ..event.clone() };
        if let [Appended::Conflict { first }] = self.handle.append(vec![probe]).await?[..]
            && let Some(Found { event: other, history, .. }) = self.handle.find(first).await?
        {
            for id in [event.id, first] {
                self.handle.cancel(id, Keys::Forget).await?;
            }
            self.handle.adopt(vec![handed, Handed { event: other, history, paused: false }]).await?;
        }
        Ok(())
    }
}

fn uncharged(history: History) -> Settlement {
    let due = history.due.plus(Duration::from_secs(30));
    Settlement::RetryAt(History { attempts: 0, burial: None, due, ..history })
}

impl Outbox for Sabotaged {
    async fn append(&self, mut batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        if self.bug == Some(Bug::ForgetKeys) {
            batch.iter_mut().for_each(|event| event.key.source = KeySource::Minted);
        }
        if self.bug == Some(Bug::IgnoreSchedule) {
            batch.iter_mut().for_each(|event| event.deliver_at = None);
        }
        self.handle.append(batch).await
    }

    async fn lease(&self, mut want: LeaseWant, since: Option<u64>) -> Result<Leases, Error> {
        if self.bug == Some(Bug::ForgetSpending) {
            want.lanes.iter_mut().for_each(|lane| lane.spent = None);
        }
        let mut leases = self.handle.lease(want, since).await?;
        let leased = &mut leases.events;
        if self.bug == Some(Bug::DeleteOnLease) {
            self.handle.settle(leased.iter().map(|l| (l.lease, Settlement::Delivered)).collect()).await?;
        }
        if self.bug == Some(Bug::LoseTraceHeader) {
            leased.iter_mut().filter(|l| l.history.calls > 0).for_each(|l| l.event.carried.trace_header = None);
        }
        if self.bug == Some(Bug::IgnoreExpiry) {
            leased.iter_mut().for_each(|l| l.event.expires_at = None);
        }
        Ok(leases)
    }

    async fn settle(&self, done: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        self.handle.settle(done.into_iter().map(|settled| self.spoil(settled)).collect()).await
    }

    async fn adopt(&self, events: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        let adopted = self.handle.adopt(events.clone()).await?;
        if self.bug == Some(Bug::ClaimKeys) {
            for (handed, _) in events.into_iter().zip(&adopted).filter(|(_, adopted)| **adopted == Adopted::Stored) {
                self.claim_key(handed).await?;
            }
        }
        Ok(adopted)
    }

    async fn remembered(&self, after: Option<[u8; RememberedKey::BYTES]>) -> Result<RememberedPage, Error> {
        self.handle.remembered(after).await
    }

    async fn learn(&self, keys: Vec<RememberedKey>) -> Result<u64, Error> {
        self.handle.learn(keys).await
    }

    async fn lanes(&self, since: u64) -> Result<LaneNews, Error> {
        self.handle.lanes(since).await
    }

    async fn find(&self, id: EventId) -> Result<Option<Found>, Error> {
        self.handle.find(id).await
    }

    async fn census(&self) -> Result<Census, Error> {
        self.handle.census().await
    }

    async fn changed(&self, since: u64, what: Changes) {
        self.handle.changed(since, what).await;
    }

    fn health(&self) -> Health {
        self.handle.health()
    }

    async fn failed(&self) -> String {
        self.handle.failed().await
    }
}

impl Operator for Sabotaged {
    async fn lane(&self, function: &FunctionName) -> Result<Option<LaneView>, Error> {
        self.handle.lane(function).await
    }

    async fn pause(&self, function: &FunctionName, paused: bool) -> Result<(), Error> {
        match self.bug {
            Some(Bug::ForgetPauses) => Ok(()),
            _ => self.handle.pause(function, paused).await,
        }
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, Error> {
        if self.bug == Some(Bug::PurgeBeyond) {
            return self.handle.purge(Purge { accepted_before: None, ..purge }).await;
        }
        self.handle.purge(purge).await
    }

    async fn cancel(&self, id: EventId, keys: Keys) -> Result<Touched, Error> {
        match self.bug {
            Some(Bug::PretendToCancel) => Ok(Touched::Done),
            _ => self.handle.cancel(id, keys).await,
        }
    }

    async fn attempt_now(&self, id: EventId) -> Result<Touched, Error> {
        match self.bug {
            Some(Bug::PretendToAttempt) => Ok(Touched::Done),
            _ => self.handle.attempt_now(id).await,
        }
    }

    async fn known_key(
        &self,
        function: &FunctionName,
        tenant: Option<String>,
        key: String,
    ) -> Result<Option<KnownKey>, Error> {
        self.handle.known_key(function, tenant, key).await
    }

    async fn list(&self, want: ListWant) -> Result<Page, Error> {
        self.handle.list(want).await
    }

    async fn buried(&self, want: BuriedWant) -> Result<BuriedPage, Error> {
        self.handle.buried(want).await
    }

    async fn redrive(&self, events: Vec<Redriven>) -> Result<Vec<Appended>, Error> {
        if self.bug == Some(Bug::ForgetToRedrive) {
            return Ok(events.iter().map(|_| Appended::Stored).collect());
        }
        self.handle.redrive(events).await
    }

    async fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> Result<Vec<Revived>, Error> {
        if self.bug == Some(Bug::ForgetToRevive) {
            let gone = self.handle.discard(ids.clone(), Keys::Keep).await?;
            let answers = gone.into_iter().zip(ids).map(|(gone, id)| match gone {
                Discarded::Done => Revived::Stored { id },
                Discarded::NotFound => Revived::NotFound,
                Discarded::Leased => Revived::Leased,
            });
            return Ok(answers.collect());
        }
        self.handle.revive(ids, redrives_max).await
    }

    async fn import(&self, letters: Vec<(Event, History)>) -> Result<Vec<Imported>, Error> {
        self.handle.import(letters).await
    }

    async fn discard(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Discarded>, Error> {
        if self.bug == Some(Bug::DiscardBeyond) {
            let page = self.handle.buried(BuriedWant { letters_max: 100, ..BuriedWant::default() }).await?;
            let all = page.letters.iter().map(|letter| letter.event.id).filter(|id| !ids.contains(id)).collect();
            self.handle.discard(all, keys).await?;
        }
        self.handle.discard(ids, keys).await
    }
}
