//! Reads stored events, completely or only their heads, and handles unreadable ones.
//!
//! Holds: an unreadable event affects no other. It is logged once, counted, and can be removed by its id. Only a failure
//! of the store itself is returned as [`Failed`].

use std::ops::{Bound, ControlFlow};

use bytes::{Bytes, BytesMut};

use super::lane::Held;
use super::{Engine, account, unreadable};
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::embedded::keys::{self, Due};
use crate::outbox::embedded::kv::{Failed, Kv};
use crate::outbox::embedded::record::{Record, chunk_count, decode_body};
use crate::outbox::operator::Cursor;
use crate::outbox::{Found, LaneId, Place};

/// The most unreadable events remembered by id, so that each is counted and logged once.
const UNREADABLE_MAX: usize = 10_000;

/// How much of an event to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything except the payload.
    Head,
    Whole,
}

/// A visited record.
pub(super) struct Visited<'a> {
    pub function: &'a FunctionName,
    pub place: Place,
    pub id: EventId,
    pub record: Result<Bytes, Failed>,
}

/// A stored event as it was read.
pub(super) struct Read {
    /// The size of its record in bytes.
    pub record_bytes: usize,
    pub record: Record,
    /// The payload is empty if only the head was requested.
    pub event: Event,
    pub payload_bytes: usize,
}

impl Read {
    /// What is needed to rewrite or remove it, as if it were leased.
    pub(super) fn held(&self, place: Place) -> Held {
        Held {
            place,
            due: (place != Place::Ready).then_some(self.record.history.due),
            bytes: account(self.record_bytes, self.record.body_bytes),
            body_bytes: self.record.body_bytes,
            expires_at: self.event.expires_at.filter(|_| place != Place::Buried),
            key: keys::remembered_of(&self.event),
            set_aside: false,
        }
    }
}

impl<K: Kv> Engine<K> {
    /// Reads an event, given the bytes of its record. The inner error concerns only this event.
    pub(super) fn read(
        &self,
        lane: LaneId,
        id: EventId,
        bytes: Result<Bytes, Failed>,
        part: Part,
    ) -> Result<Result<Read, Failed>, Failed> {
        Failed::apart(bytes.and_then(|bytes| self.read_part(lane, id, &bytes, part)))
    }

    fn read_part(&self, lane: LaneId, id: EventId, bytes: &Bytes, part: Part) -> Result<Read, Failed> {
        let record = Record::decode(bytes).map_err(|e| unreadable("reading an event record", &e))?;
        let lane = self.lanes.get(&lane).ok_or_else(|| damaged("its lane is missing"))?;
        let chunks = chunk_count(record.body_bytes);
        if part == Part::Head && chunks > 0 {
            let first = self.chunk(id, 0)?;
            // The head of every event that a door accepts fits into the first chunk.
            if let Ok(event) = decode_body(id, lane.function(), &first) {
                let head_bytes = first.len() - event.payload.len();
                let payload_bytes = (record.body_bytes as usize).saturating_sub(head_bytes);
                let event = Event { payload: Bytes::new(), ..event };
                return Ok(Read { record_bytes: bytes.len(), record, event, payload_bytes });
            }
        }
        let body = if chunks == 0 { record.inline.clone() } else { self.body(id, record.body_bytes)? };
        if body.len() != record.body_bytes as usize {
            return Err(damaged("the chunks have another length than the record says"));
        }
        let event = decode_body(id, lane.function(), &body).map_err(|e| unreadable("reading an event", &e))?;
        let payload_bytes = event.payload.len();
        let payload = if part == Part::Head { Bytes::new() } else { event.payload };
        Ok(Read { record_bytes: bytes.len(), record, event: Event { payload, ..event }, payload_bytes })
    }

    fn body(&self, id: EventId, bytes: u32) -> Result<Bytes, Failed> {
        let mut body = BytesMut::with_capacity(bytes as usize);
        for index in 0..chunk_count(bytes) {
            body.extend_from_slice(&self.chunk(id, index)?);
        }
        Ok(body.freeze())
    }

    fn chunk(&self, id: EventId, index: u16) -> Result<Bytes, Failed> {
        self.kv.get(&keys::chunk(id, index))?.ok_or_else(|| damaged("a chunk is missing"))
    }

    /// Reads an event by its place. `None` if it is not there. The inner error concerns only this event.
    pub(super) fn read_at(
        &self,
        place: Place,
        lane: LaneId,
        id: EventId,
        part: Part,
    ) -> Result<Option<Result<Read, Failed>>, Failed> {
        match Failed::apart(self.kv.get(&keys::event(place, lane, id)))? {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => self.read(lane, id, Ok(bytes), part).map(Some),
            Err(failed) => Ok(Some(Err(failed))),
        }
    }

    /// The place of an event in a lane, according to the store and this batch.
    pub(super) fn place_in(&self, lane: LaneId, id: EventId) -> Result<Option<Place>, Failed> {
        for place in Place::ALL {
            let key = keys::event(place, lane, id);
            let there = match self.batch.pending(&key) {
                Some(pending) => pending.is_some(),
                None => self.kv.value_bytes(&key)?.is_some(),
            };
            if there {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// The place of an event, by its id alone.
    pub(super) fn place_of(&self, id: EventId) -> Result<Option<(LaneId, Place)>, Failed> {
        for (&lane, _) in self.lanes.iter().filter(|(_, lane)| lane.function().tag() == id.function_tag()) {
            if let Some(place) = self.place_in(lane, id)? {
                return Ok(Some((lane, place)));
            }
        }
        Ok(None)
    }

    /// Visits the records of matching functions in these states, by function and then in the order of acceptance, until
    /// `visit` breaks off. `from` skips all ids up to it. An unreadable record comes with the reason.
    pub(super) fn visit(
        &self,
        after: Option<&Cursor>,
        from: Option<EventId>,
        fits: impl Fn(&FunctionName) -> bool,
        places: &[Place],
        mut visit: impl FnMut(LaneId, Visited<'_>) -> Result<ControlFlow<()>, Failed>,
    ) -> Result<(), Failed> {
        let first = after.map_or(Bound::Unbounded, |after| Bound::Included(&after.function));
        for (function, &lane) in self.by_name.range::<FunctionName, _>((first, Bound::Unbounded)) {
            let after = after.filter(|after| after.function == *function).map(|after| after.id).max(from);
            if !fits(function) {
                continue;
            }
            let visit = |place, id, record| visit(lane, Visited { function, place, id, record });
            if self.visit_lane(lane, after, places, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The part of one lane in [`Engine::visit`].
    pub(super) fn visit_lane(
        &self,
        lane: LaneId,
        after: Option<EventId>,
        places: &[Place],
        mut visit: impl FnMut(Place, EventId, Result<Bytes, Failed>) -> Result<ControlFlow<()>, Failed>,
    ) -> Result<ControlFlow<()>, Failed> {
        let has_any = |place: &&Place| self.lanes.get(&lane).is_some_and(|lane| lane.count(**place).events > 0);
        let ranges = places.iter().filter(has_any).map(|&place| {
            let (first, to) = keys::events_from(place, lane, after);
            (place, if after.is_some() { keys::after(&first) } else { first }, to)
        });
        let ranges: Vec<_> = ranges.collect();
        let scans = ranges.iter().map(|(place, first, to)| {
            let found = self.kv.pairs(first, to).filter_map(|pair| match pair {
                Ok((key, record)) => keys::id_of(&key).map(|id| Ok((id, record))),
                Err(failed) => Some(Err(failed)),
            });
            (*place, found.peekable())
        });
        let mut scans: Vec<_> = scans.collect();
        loop {
            // A failure of the store sorts before every id, so it comes first.
            let heads = scans
                .iter_mut()
                .enumerate()
                .filter_map(|(nth, (_, found))| Some((found.peek()?.as_ref().ok().map(|(id, _)| *id), nth)));
            let Some((_, first)) = heads.min() else { return Ok(ControlFlow::Continue(())) };
            let Some((place, found)) = scans.get_mut(first) else { return Ok(ControlFlow::Continue(())) };
            if let Some(found) = found.next() {
                let (id, record) = found?;
                if visit(*place, id, record)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }

    /// An event by its id alone.
    pub fn find(&self, id: EventId) -> Result<Option<Found>, Failed> {
        self.found(id, Part::Whole)?.transpose()
    }

    /// Reads the wanted part of an event, by its id alone. The inner error says why it is unreadable.
    pub fn find_part(&mut self, id: EventId, part: Part) -> Result<Option<Result<Found, Failed>>, Failed> {
        let found = self.found(id, part)?;
        if let Some(Err(failed)) = &found {
            self.note_unreadable(id, failed);
        }
        Ok(found)
    }

    fn found(&self, id: EventId, part: Part) -> Result<Option<Result<Found, Failed>>, Failed> {
        let Some((lane_id, place)) = self.place_of(id)? else { return Ok(None) };
        let leased = self.lanes.get(&lane_id).is_some_and(|lane| lane.is_busy(id));
        let read = self.read_at(place, lane_id, id, part)?;
        Ok(read.map(|read| {
            let Read { event, payload_bytes, record, .. } = read?;
            Ok(Found { event, payload_bytes, history: record.history, place, leased })
        }))
    }

    /// Counts and logs an unreadable event when it is found for the first time.
    pub(super) fn note_unreadable(&mut self, id: EventId, why: &Failed) {
        if !why.passes && self.unreadable.len() < UNREADABLE_MAX && self.unreadable.insert(id) {
            tracing::error!(
                event_id = %id,
                error = %why,
                "a stored event cannot be read; remove it by its id, or stop the daemon and run `sendoff fsck`"
            );
        }
    }

    /// Leaves a lane alone whose events cannot be read for want of descriptors. Nothing is known of the events.
    pub(super) fn starve(&mut self, lane_id: LaneId, why: &Failed) {
        let Some(lane) = self.lanes.get_mut(&lane_id).filter(|lane| !lane.starved) else { return };
        lane.starved = true;
        tracing::warn!(
            function = lane.function().as_str(),
            error = %why,
            "no file descriptor is left to read stored events: this function's wait for up to a minute. Raise the limit of open files, \
            or lower listen.connections_max"
        );
        self.touch_view(lane_id);
    }

    /// Lets every such lane try again.
    pub(super) fn feed(&mut self) {
        let starved: Vec<_> = self.lanes.iter().filter(|(_, lane)| lane.starved).map(|(&id, _)| id).collect();
        for id in starved {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.starved = false;
            }
            self.touch_view(id);
        }
    }

    /// What is needed to remove an event, from its keys alone. Works for unreadable events.
    pub(super) fn held_by_keys(&self, lane: LaneId, place: Place, id: EventId) -> Result<Held, Failed> {
        let record_bytes = self.kv.value_bytes(&keys::event(place, lane, id))?.unwrap_or(0);
        let mut body_bytes = 0_usize;
        let mut index = 0;
        // A body has all of its chunks, because they were committed together with its record.
        while let Some(bytes) = self.kv.value_bytes(&keys::chunk(id, index))? {
            body_bytes += bytes;
            let Some(next) = index.checked_add(1) else { break };
            index = next;
        }
        // The shortest body with chunks is longer than any body in a record.
        let body_bytes = u32::try_from(body_bytes).unwrap_or(u32::MAX);
        let due = match Due::of(place) {
            Some(index) => self.time_of(index, lane, id)?,
            None => None,
        };
        let expires_at = if place == Place::Buried { None } else { self.time_of(Due::Expiry, lane, id)? };
        let bytes = account(record_bytes, body_bytes);
        Ok(Held { place, due, bytes, body_bytes, expires_at, key: None, set_aside: true })
    }

    /// The time of an event in an index. Scans the lane's part of the index, so use it only for unreadable events.
    fn time_of(&self, index: Due, lane: LaneId, id: EventId) -> Result<Option<crate::clock::UnixMillis>, Failed> {
        let (from, to) = keys::due_until(index, lane, crate::clock::UnixMillis(u64::MAX - 1));
        for key in self.kv.keys(&from, &to) {
            let key = key?;
            if keys::id_of(&key) == Some(id) {
                return Ok(keys::due_of(&key));
            }
        }
        Ok(None)
    }

    /// Removes an event that an operator named, or ends the lease that set it aside.
    pub(super) fn discard(&mut self, lane_id: LaneId, id: EventId, held: Held) {
        if let Some(lane) = self.lanes.get_mut(&lane_id)
            && lane.is_set_aside(id)
        {
            lane.give_back(id);
        }
        self.unreadable.remove(&id);
        self.remove(lane_id, id, held);
    }
}

fn damaged(why: &str) -> Failed {
    Failed::of_value("reading an event", why)
}

#[cfg(test)]
mod tests;
