//! Taking events for an attempt or a shipment, and finding one by its id.

use bytes::{Bytes, BytesMut};

use super::lane::Held;
use super::{Engine, account, unreadable};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::outbox::keys::{self, Due};
use crate::outbox::kv::{Failed, Kv};
use crate::outbox::record::{Record, chunk_count, decode_body};
use crate::outbox::{Found, LaneId, Lease, LeaseWant, Leased, Place, Which};

/// What a scan came upon: where the record is, and its place in a due index.
struct Candidate {
    place: Place,
    id: EventId,
    due: Option<UnixMillis>,
}

impl<K: Kv> Engine<K> {
    /// Takes what is wanted, as far as it is there.
    pub fn lease(&mut self, want: &LeaseWant) -> Result<Vec<Leased>, Failed> {
        let mut taken = Vec::new();
        let mut bytes_left = want.bytes_max;
        for lane in &want.lanes {
            for candidate in self.candidates(lane.lane, lane.which, lane.events_max)? {
                if bytes_left == 0 {
                    return Ok(taken);
                }
                if let Some(leased) = self.take(lane.lane, candidate)? {
                    bytes_left = bytes_left.saturating_sub(leased.event.payload.len().max(1) as u64);
                    taken.push(leased);
                }
            }
        }
        Ok(taken)
    }

    /// Adds to the batch what a lease is to note of its lanes; it must be committed before the lease is answered.
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
            // Whoever asks may not have heard of it yet.
            Which::Due if self.lanes.get(&lane).is_some_and(super::Lane::is_paused) => {}
            Which::Due => {
                self.scan_due(Due::Attempt, lane, self.clock.now(), max, &mut found)?;
                let after = self.lanes.get(&lane).and_then(super::Lane::ready_after);
                self.scan_events(Place::Ready, lane, after, UnixMillis::MAX, max, &mut found)?;
            }
            Which::AcceptedBefore(cutoff) => {
                self.scan_events(Place::Ready, lane, None, cutoff, max, &mut found)?;
                self.scan_events(Place::Waiting, lane, None, cutoff, max, &mut found)?;
                self.scan_due(Due::Attempt, lane, UnixMillis(cutoff.0.saturating_sub(1)), max, &mut found)?;
                self.scan_due(Due::Expiry, lane, self.clock.now(), max, &mut found)?;
                // One may be found by two of its times.
                found.sort_by_key(|candidate| candidate.id);
                found.dedup_by_key(|candidate| candidate.id);
            }
            Which::Buried => self.scan_due(Due::Ship, lane, self.clock.now(), max, &mut found)?,
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
        for pair in leases.floors.noting(self.kv.scan(&start, &to), &to, |(key, _)| key) {
            if found.len() >= max {
                break;
            }
            let (key, letter) = pair?;
            let Some(id) = keys::id_of(&key).filter(|id| !leases.is_leased(*id)) else { continue };
            match index {
                Due::Ship => found.push(Candidate { place: Place::Buried, id, due: keys::due_of(&key) }),
                Due::Attempt => {
                    if let Some(place) = letter.first().and_then(|&letter| keys::place(letter)) {
                        found.push(Candidate { place, id, due: keys::due_of(&key) });
                    }
                }
                Due::Expiry => found.extend(self.resting(lane, id)?),
            }
        }
        Ok(())
    }

    /// An event that is not buried, wherever it rests.
    fn resting(&self, lane: LaneId, id: EventId) -> Result<Option<Candidate>, Failed> {
        for place in [Place::Ready, Place::Waiting, Place::Scheduled] {
            let key = keys::event(place, lane, id);
            if let Some(found) = self.kv.keys(&key, &keys::after(&key)).next() {
                return found.map(|_| Some(Candidate { place, id, due: None }));
            }
        }
        Ok(None)
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

    /// Leases one event; none if its bytes cannot be read: it then stays where it is, out of the way until restart, and
    /// the log names it.
    fn take(&mut self, lane_id: LaneId, candidate: Candidate) -> Result<Option<Leased>, Failed> {
        let taken = self.take_unseen(lane_id, candidate)?;
        // Also where it cannot be read: whoever plans by the view must not ask for it again.
        self.touch_view(lane_id);
        Ok(taken)
    }

    fn take_unseen(&mut self, lane_id: LaneId, candidate: Candidate) -> Result<Option<Leased>, Failed> {
        let Candidate { place, id, due } = candidate;
        let record = match self.kv.get(&keys::event(place, lane_id, id)) {
            Err(failed) if failed.one_value => Some(Err(failed)),
            record => record?.map(Ok),
        };
        let read = record.map(|record| record.and_then(|record| self.read(lane_id, id, &record)));
        let Some(lane) = self.lanes.get_mut(&lane_id) else { return Ok(None) };
        let (record_bytes, record, event) = match read {
            Some(Ok(read)) => read,
            Some(Err(failed)) => {
                tracing::error!(event_id = %id, function = %lane.function(), error = %failed, "event cannot be read and is set aside");
                lane.take(id, Held { place, due, bytes: 0, body_bytes: 0, expires_at: None, key: None });
                self.unreadable += 1;
                return Ok(None);
            }
            None => {
                tracing::error!(event_id = %id, function = %lane.function(), "event stands in the due index but has no record");
                lane.take(id, Held { place, due, bytes: 0, body_bytes: 0, expires_at: None, key: None });
                self.unreadable += 1;
                return Ok(None);
            }
        };
        let due = match place {
            Place::Ready => None,
            Place::Waiting | Place::Scheduled | Place::Buried => due.or(Some(record.history.due)),
        };
        let bytes = account(record_bytes, record.body_bytes);
        let expires_at = event.expires_at.filter(|_| place != Place::Buried);
        let key = keys::remembered_of(&event);
        lane.take(id, Held { place, due, bytes, body_bytes: record.body_bytes, expires_at, key });
        Ok(Some(Leased { lease: Lease { lane: lane_id, id, place }, event, history: record.history }))
    }

    /// The event of a record, with its body from the record or from its chunks.
    pub(super) fn read(&self, lane: LaneId, id: EventId, bytes: &Bytes) -> Result<(usize, Record, Event), Failed> {
        let damaged = |why: &str| Failed::new("reading an event", why);
        let record = Record::decode(bytes).map_err(|e| unreadable("reading an event record", &e))?;
        let body = match chunk_count(record.body_bytes) {
            0 => record.inline.clone(),
            count => {
                let mut body = BytesMut::with_capacity(record.body_bytes as usize);
                for index in 0..count {
                    let chunk = self.kv.get(&keys::chunk(id, index))?.ok_or_else(|| damaged("a chunk is missing"))?;
                    body.extend_from_slice(&chunk);
                }
                body.freeze()
            }
        };
        if body.len() != record.body_bytes as usize {
            return Err(damaged("the chunks have another length than the record says"));
        }
        let lane = self.lanes.get(&lane).ok_or_else(|| damaged("its lane is missing"))?;
        let event = decode_body(id, lane.function(), &body).map_err(|e| unreadable("reading an event", &e))?;
        Ok((bytes.len(), record, event))
    }

    /// Where an event is, by its id alone.
    pub fn find(&self, id: EventId) -> Result<Option<Found>, Failed> {
        for (&lane_id, lane) in self.lanes.iter().filter(|(_, lane)| lane.function().tag() == id.function_tag()) {
            for place in Place::ALL {
                if let Some(bytes) = self.kv.get(&keys::event(place, lane_id, id))? {
                    let (_, record, event) = self.read(lane_id, id, &bytes)?;
                    return Ok(Some(Found { event, history: record.history, place, leased: lane.is_leased(id) }));
                }
            }
        }
        Ok(None)
    }
}
