//! Leases events for an attempt or for shipping.

use std::collections::BTreeSet;

use super::Engine;
use super::lane::Held;
use super::read::{Part, Read};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::outbox::embedded::keys::{self, Due};
use crate::outbox::embedded::kv::{Failed, Kv};
use crate::outbox::{LaneId, LaneWant, Lease, LeaseWant, Leased, Place, Which};

/// An event found by a scan: the key of its record, and its time in a due index.
struct Candidate {
    place: Place,
    id: EventId,
    due: Option<UnixMillis>,
}

/// The id just after `id`.
fn next(id: EventId) -> EventId {
    EventId::from_bytes(u128::from_be_bytes(*id.as_bytes()).saturating_add(1).to_be_bytes())
}

impl<K: Kv> Engine<K> {
    /// Leases the wanted events, as far as they exist. Fewer than a lane's `events_max` mean that the lane has no more, or that
    /// `bytes_max` is reached.
    pub fn lease(&mut self, want: &LeaseWant) -> Result<Vec<Leased>, Failed> {
        let mut taken = Vec::new();
        let mut bytes_left = want.bytes_max;
        for lane in &want.lanes {
            if bytes_left == 0 {
                break;
            }
            let allowed = bytes_left.min(lane.bytes_max);
            let mut left = allowed;
            self.lease_of(lane, &mut left, &mut taken)?;
            bytes_left -= allowed - left;
        }
        Ok(taken)
    }

    fn lease_of(&mut self, want: &LaneWant, bytes_left: &mut u64, taken: &mut Vec<Leased>) -> Result<(), Failed> {
        let mut wanted = want.events_max;
        while wanted > 0 {
            let (mut passed_over, before) = (false, taken.len());
            if self.lanes.get(&want.lane).is_none_or(|lane| lane.starved) {
                break;
            }
            for candidate in self.candidates(want.lane, want.which, wanted)? {
                if *bytes_left == 0 {
                    return Ok(());
                }
                let in_order = !matches!(want.which, Which::AtRest { .. });
                match self.take(want.lane, candidate, in_order)? {
                    Some(leased) => {
                        *bytes_left = bytes_left.saturating_sub(leased.event.payload.len().max(1) as u64);
                        taken.push(leased);
                    }
                    None if self.lanes.get(&want.lane).is_some_and(|lane| lane.starved) => return Ok(()),
                    None => passed_over = true,
                }
            }
            wanted -= taken.len() - before;
            // Unreadable events must not take the places of others.
            if !passed_over {
                break;
            }
        }
        Ok(())
    }

    /// Adds to the batch what a lease records for its lanes. Commit it before answering the lease.
    pub fn note_spent(&mut self, want: &LeaseWant) {
        for (id, spent) in want.lanes.iter().filter_map(|want| Some((want.lane, want.spent?))) {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.set_spent(spent);
                self.dirty.insert(id);
            }
        }
    }

    fn candidates(&self, lane: LaneId, which: Which, max: usize) -> Result<Vec<Candidate>, Failed> {
        let mut found = Vec::new();
        match which {
            // The caller may not know yet that the lane is retired.
            Which::Due | Which::Fresh if self.lanes.get(&lane).is_some_and(super::Lane::is_paused) => {}
            Which::Due => {
                self.scan_due(Due::Attempt, lane, self.clock.now(), max, &mut found)?;
                let after = self.lanes.get(&lane).and_then(super::Lane::ready_after);
                self.scan_events(Place::Ready, lane, after, UnixMillis::MAX, max, &mut found)?;
            }
            Which::Fresh => {
                let after = self.lanes.get(&lane).and_then(super::Lane::ready_after);
                self.scan_events(Place::Ready, lane, after, UnixMillis::MAX, max, &mut found)?;
                self.scan_due(Due::Attempt, lane, self.clock.now(), max, &mut found)?;
            }
            Which::AcceptedBefore(cutoff) => {
                self.scan_events(Place::Ready, lane, None, cutoff, max, &mut found)?;
                self.scan_events(Place::Waiting, lane, None, cutoff, max, &mut found)?;
                self.scan_due(Due::Attempt, lane, UnixMillis(cutoff.0.saturating_sub(1)), max, &mut found)?;
                self.scan_due(Due::Expiry, lane, self.clock.now(), max, &mut found)?;
                found.sort_by_key(|candidate| candidate.id);
            }
            Which::Buried => self.scan_due(Due::Ship, lane, self.clock.now(), max, &mut found)?,
            Which::AtRest { place, after } => {
                self.scan_events(place, lane, after.map(next), UnixMillis::MAX, max, &mut found)?;
            }
        }
        Ok(found)
    }

    fn scan_due(
        &self,
        index: Due,
        lane: LaneId,
        until: UnixMillis,
        max: usize,
        found: &mut Vec<Candidate>,
    ) -> Result<(), Failed> {
        let Some(leases) = self.lanes.get(&lane) else { return Ok(()) };
        let (from, to) = keys::due_until(index, lane, until);
        let Some(start) = leases.floors.start(&from, &to) else { return Ok(()) };
        // An event may be found by two of its times. It must count only once towards `max`.
        let known: BTreeSet<EventId> = found.iter().map(|candidate| candidate.id).collect();
        for pair in leases.floors.noting(self.kv.pairs(&start, &to), &to, |(key, _)| key) {
            if found.len() >= max {
                break;
            }
            let (key, letter) = pair?;
            let free = |id: &EventId| !leases.is_leased(*id) && !known.contains(id);
            let Some(id) = keys::id_of(&key).filter(free) else { continue };
            let letter = letter.ok().and_then(|letter| letter.first().copied());
            match (index, letter.and_then(keys::place)) {
                (Due::Ship, _) => found.push(Candidate { place: Place::Buried, id, due: keys::due_of(&key) }),
                (Due::Attempt, Some(place)) => found.push(Candidate { place, id, due: keys::due_of(&key) }),
                (Due::Attempt | Due::Expiry, _) => found.extend(self.resting(lane, id)?),
            }
        }
        Ok(())
    }

    /// Finds an event that is not buried, in any state.
    fn resting(&self, lane: LaneId, id: EventId) -> Result<Option<Candidate>, Failed> {
        let place = self.place_in(lane, id)?.filter(|place| *place != Place::Buried);
        Ok(place.map(|place| Candidate { place, id, due: None }))
    }

    fn scan_events(
        &self,
        place: Place,
        lane: LaneId,
        after: Option<EventId>,
        accepted_before: UnixMillis,
        max: usize,
        found: &mut Vec<Candidate>,
    ) -> Result<(), Failed> {
        let Some(leases) = self.lanes.get(&lane) else { return Ok(()) };
        if found.len() >= max || leases.count(place).events == 0 {
            return Ok(());
        }
        let (from, to) = keys::events_from(place, lane, after);
        for key in self.kv.keys(&from, &to) {
            let key = key?;
            let Some(id) = keys::id_of(&key) else { continue };
            if id.accepted_at() >= accepted_before || found.len() >= max {
                break;
            }
            if !leases.is_leased(id) {
                found.push(Candidate { place, id, due: None });
            }
        }
        Ok(())
    }

    /// Leases one event. `None` if it is unreadable: it then stays in its state, is set aside until a restart, and the log
    /// names it.
    fn take(&mut self, lane_id: LaneId, candidate: Candidate, in_order: bool) -> Result<Option<Leased>, Failed> {
        let taken = self.take_unseen(lane_id, candidate, in_order)?;
        // Also if it is unreadable: a plan that is made from the view must not ask for it again.
        self.touch_view(lane_id);
        Ok(taken)
    }

    fn take_unseen(&mut self, lane_id: LaneId, candidate: Candidate, in_order: bool) -> Result<Option<Leased>, Failed> {
        let Candidate { place, id, due } = candidate;
        let read = self.read_at(place, lane_id, id, Part::Whole)?;
        let missing = || Err(Failed::of_value("leasing an event", "it stands in the due index but has no record"));
        match read.unwrap_or_else(missing) {
            Ok(read) => {
                let held = Held {
                    due: if place == Place::Ready { None } else { due.or(read.held(place).due) },
                    ..read.held(place)
                };
                let Some(lane) = self.lanes.get_mut(&lane_id) else { return Ok(None) };
                if in_order {
                    lane.take(id, held);
                } else {
                    lane.take_apart(id, held);
                }
                let Read { event, record, .. } = read;
                Ok(Some(Leased { lease: Lease { lane: lane_id, id }, event, history: record.history }))
            }
            Err(failed) if failed.passes => {
                self.starve(lane_id, &failed);
                Ok(None)
            }
            Err(failed) => {
                self.set_aside(lane_id, place, id, due, &failed);
                Ok(None)
            }
        }
    }

    /// Sets an unreadable event aside until a restart. It stays in its state.
    pub(super) fn set_aside(
        &mut self,
        lane_id: LaneId,
        place: Place,
        id: EventId,
        due: Option<UnixMillis>,
        why: &Failed,
    ) {
        self.note_unreadable(id, why);
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.take_apart(
                id,
                Held { place, due, bytes: 0, body_bytes: 0, expires_at: None, key: None, set_aside: true },
            );
        }
    }
}
