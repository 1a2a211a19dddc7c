//! The in-memory part of a lane: counts and leases, never the backlog.

use std::collections::BTreeMap;

use super::before;
use super::floors::Floors;
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName};
use crate::outbox::embedded::keys::{self, Due};
use crate::outbox::embedded::kv::{Failed, Kv};
use crate::outbox::embedded::record::LaneRecord;
use crate::outbox::{Count, LaneId, LaneView, Place, Spent};

pub(super) struct Lane {
    record: LaneRecord,
    leased: BTreeMap<EventId, Held>,
    /// The number of leased events by state, in the order of `Place::ALL`.
    leased_by_place: [u64; 4],
    /// All Ready events up to this id are leased, so the next scan may start here.
    ready_after: Option<EventId>,
    pub(super) floors: Floors,
    /// The numbers of Buried and of leased Buried events when a change was last notified.
    buried_told: (u64, u64),
    /// Since when the lane has been empty. `None` while it is not.
    pub(super) empty_since: Option<UnixMillis>,
    pub(super) version: u64,
    /// Its events could not be read for want of descriptors: nothing of it is shown or leased until all lanes are read again.
    pub(super) starved: bool,
    /// Its key among the idle lanes, if it is idle.
    pub(super) idle: Option<crate::outbox::idle::Key>,
}

/// What is needed to settle a leased event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub place: Place,
    /// Its time in the due index, if it is in one.
    pub due: Option<UnixMillis>,
    pub bytes: u64,
    pub body_bytes: u32,
    /// Its time in the index of expiry, if it is in it.
    pub expires_at: Option<UnixMillis>,
    /// Where its idempotency key is remembered, if the key can repeat.
    pub key: Option<[u8; keys::REMEMBERED_BYTES]>,
    /// Not leased, but set aside because it is unreadable.
    pub set_aside: bool,
}

impl Lane {
    pub(super) fn new(record: LaneRecord, now: UnixMillis) -> Self {
        let empty = record.counts.iter().all(|count| count.events == 0);
        Self {
            record,
            leased: BTreeMap::new(),
            leased_by_place: [0; 4],
            ready_after: None,
            floors: Floors::default(),
            buried_told: (0, 0),
            empty_since: empty.then_some(now),
            version: 0,
            starved: false,
            idle: None,
        }
    }

    pub(super) fn record(&self) -> &LaneRecord {
        &self.record
    }

    pub(super) fn function(&self) -> &FunctionName {
        &self.record.function
    }

    pub(super) fn count(&self, place: Place) -> Count {
        self.record.counts[place as usize]
    }

    pub(super) fn is_paused(&self) -> bool {
        self.record.paused
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.record.paused = paused;
    }

    pub(super) fn is_proven(&self) -> bool {
        self.record.proven
    }

    /// Records that Lambda accepted an event. Returns whether that is new.
    pub(super) fn prove(&mut self) -> bool {
        !std::mem::replace(&mut self.record.proven, true)
    }

    pub(super) fn spent(&self) -> Spent {
        self.record.spent
    }

    pub(super) fn set_spent(&mut self, spent: Spent) {
        self.record.spent = spent;
    }

    pub(super) fn leased_count(&self) -> u64 {
        self.leased.len() as u64
    }

    pub(super) fn ready_after(&self) -> Option<EventId> {
        self.ready_after
    }

    pub(super) fn is_leased(&self, id: EventId) -> bool {
        self.leased.contains_key(&id)
    }

    /// Whether the event is being attempted or shipped.
    pub(super) fn is_busy(&self, id: EventId) -> bool {
        self.leased.get(&id).is_some_and(|held| !held.set_aside)
    }

    pub(super) fn is_set_aside(&self, id: EventId) -> bool {
        self.leased.get(&id).is_some_and(|held| held.set_aside)
    }

    pub(super) fn added(&mut self, place: Place, count: Count, id: EventId) {
        self.record.counts[place as usize].add(count);
        self.empty_since = None;
        if place == Place::Ready {
            self.rewind(id);
        }
    }

    pub(super) fn removed(&mut self, place: Place, count: Count, now: UnixMillis) {
        self.record.counts[place as usize].subtract(count);
        if self.record.counts.iter().all(|count| count.events == 0) {
            self.empty_since = Some(now);
        }
    }

    /// Leases an event. All Ready events before it are leased already.
    pub(super) fn take(&mut self, id: EventId, held: Held) {
        if held.place == Place::Ready && self.ready_after.is_none_or(|last| last < id) {
            self.ready_after = Some(id);
        }
        self.take_apart(id, held);
    }

    /// Leases an event out of its order.
    pub(super) fn take_apart(&mut self, id: EventId, held: Held) {
        self.leased_by_place[held.place as usize] += 1;
        self.leased.insert(id, held);
    }

    /// Ends a lease. `None` if there was none.
    pub(super) fn give_back(&mut self, id: EventId) -> Option<Held> {
        let held = self.leased.remove(&id)?;
        self.leased_by_place[held.place as usize] -= 1;
        Some(held)
    }

    /// Moves the start of the next scan back: an id may be committed after a later one was leased, or a lease released.
    pub(super) fn rewind(&mut self, id: EventId) {
        if self.ready_after.is_some_and(|last| id <= last) {
            self.ready_after = Some(before(id));
        }
    }

    pub(super) fn view(&self, id: LaneId, kv: &impl Kv) -> Result<LaneView, Failed> {
        if self.starved {
            return Ok(self.starved_view(id));
        }
        let delayed = self.count(Place::Waiting).events + self.count(Place::Scheduled).events;
        let buried = self.count(Place::Buried).events;
        let live = delayed + self.count(Place::Ready).events;
        Ok(LaneView {
            lane: id,
            function: self.record.function.clone(),
            ready: self.free(Place::Ready),
            next_due: if delayed == 0 { None } else { self.next(Due::Attempt, id, kv)? },
            oldest: self.oldest(id, kv)?,
            buried: self.free(Place::Buried),
            next_ship: if buried == 0 { None } else { self.next(Due::Ship, id, kv)? },
            next_expiry: if live == 0 { None } else { self.next(Due::Expiry, id, kv)? },
            paused: self.record.paused,
            spent: self.record.spent,
            proven: self.record.proven,
        })
    }

    /// As if it held nothing, so that nobody asks for what cannot be read now.
    fn starved_view(&self, id: LaneId) -> LaneView {
        LaneView {
            lane: id,
            function: self.record.function.clone(),
            ready: 0,
            next_due: None,
            oldest: None,
            buried: 0,
            next_ship: None,
            next_expiry: None,
            paused: self.record.paused,
            spent: self.record.spent,
            proven: self.record.proven,
        }
    }

    /// Whether the Buried events have changed since the last call. Every change shows in a count, because letters are leased
    /// and settled.
    pub(super) fn tell_buried(&mut self) -> bool {
        let buried = (self.count(Place::Buried).events, self.leased_by_place[Place::Buried as usize]);
        std::mem::replace(&mut self.buried_told, buried) != buried
    }

    /// The number of events in a state that are not leased.
    fn free(&self, place: Place) -> u64 {
        self.count(place).events.saturating_sub(self.leased_by_place[place as usize])
    }

    /// When the oldest Ready or Waiting event was accepted.
    pub(super) fn oldest(&self, id: LaneId, kv: &impl Kv) -> Result<Option<UnixMillis>, Failed> {
        let mut oldest = None;
        for place in [Place::Ready, Place::Waiting] {
            if self.count(place).events == 0 {
                continue;
            }
            let (from, to) = keys::events_from(place, id, None);
            let Some(start) = self.floors.start(&from, &to) else { continue };
            if let Some(first) = self.floors.noting(kv.keys(&start, &to), &to, |key| key).next() {
                let accepted = keys::id_of(&first?).map(|id| id.accepted_at());
                oldest = match (oldest, accepted) {
                    (Some(a), Some(b)) => Some(std::cmp::min::<UnixMillis>(a, b)),
                    (a, b) => a.or(b),
                };
            }
        }
        Ok(oldest)
    }

    fn next(&self, index: Due, id: LaneId, kv: &impl Kv) -> Result<Option<UnixMillis>, Failed> {
        let (from, to) = keys::due_until(index, id, UnixMillis(UnixMillis::MAX.0 - 1));
        let Some(start) = self.floors.start(&from, &to) else { return Ok(None) };
        for key in self.floors.noting(kv.keys(&start, &to), &to, |key| key) {
            let key = key?;
            if keys::id_of(&key).is_some_and(|id| !self.is_leased(id)) {
                return Ok(keys::due_of(&key));
            }
        }
        Ok(None)
    }
}
