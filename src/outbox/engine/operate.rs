//! The operator's hand in the store. Reads the store, so what came before must be committed.

use super::lane::Held;
use super::{Engine, account, unreadable};
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::keys;
use crate::outbox::kv::{Failed, Kv};
use crate::outbox::operator::{
    Cursor, Keys, LIVE, ListWant, Listed, PAGE_MAX, PIECE_EVENTS, Page, Purge, Purged, Touched,
};
use crate::outbox::record::Record;
use crate::outbox::{History, LaneId, Place};

impl<K: Kv> Engine<K> {
    pub fn pause(&mut self, function: &FunctionName, paused: bool) {
        if !paused && !self.by_name.contains_key(function) {
            return;
        }
        let id = self.lane_for(function);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.set_paused(paused);
        }
        self.touch(id);
    }

    /// One piece of a purge, after `after`; says what it took and where to go on.
    pub fn purge_piece(&mut self, purge: &Purge, after: Option<Cursor>) -> Result<(Purged, Option<Cursor>), Failed> {
        let want = ListWant { function: None, place: purge.place, after, max: PIECE_EVENTS };
        let lanes = self.by_name.get(&purge.function).copied().into_iter().collect();
        let (found, next) = self.scan_pages(&want, lanes, &LIVE)?;
        let mut purged = Purged::default();
        for (cursor, bytes) in found {
            let Cursor { lane, place, id } = cursor;
            let young = purge.accepted_before.is_some_and(|before| id.accepted_at() >= before);
            if young || self.lanes.get(&lane).is_none_or(|lane| lane.is_leased(id)) {
                continue;
            }
            let (_, held, event) = self.held(lane, place, id, &bytes)?;
            purged.events += 1;
            purged.bytes += held.bytes;
            if !purge.dry_run {
                if purge.keys == Keys::Forget {
                    self.forget(&event)?;
                }
                self.remove(lane, id, held);
            }
        }
        Ok((purged, next))
    }

    pub fn cancel(&mut self, id: EventId, keys: Keys) -> Result<Touched, Failed> {
        match self.waiting(id)? {
            Ok(Waiting { lane, held, event, .. }) => {
                if keys == Keys::Forget {
                    self.forget(&event)?;
                }
                self.remove(lane, id, held);
                Ok(Touched::Done)
            }
            Err(why) => Ok(why),
        }
    }

    pub fn attempt_now(&mut self, id: EventId) -> Result<Touched, Failed> {
        let now = self.clock.now();
        match self.waiting(id)? {
            Ok(Waiting { lane, held, history, .. }) if held.place != Place::Ready && history.due > now => {
                self.rewrite(lane, id, held, held.place, History { due: now, ..history })?;
                Ok(Touched::Done)
            }
            Ok(_) => Ok(Touched::Done),
            Err(why) => Ok(why),
        }
    }

    pub fn list(&self, want: &ListWant) -> Result<Page, Failed> {
        let want = ListWant { max: want.max.clamp(1, PAGE_MAX), ..want.clone() };
        let fits = |name: &FunctionName| want.function.as_ref().is_none_or(|pattern| name.fits(pattern.as_str()));
        let lanes = self.lanes.iter().filter(|(_, lane)| fits(lane.function())).map(|(&id, _)| id).collect();
        let (found, next) = self.scan_pages(&want, lanes, &Place::ALL)?;
        let mut events = Vec::new();
        for (Cursor { lane, place, id }, bytes) in found {
            let Some(lane) = self.lanes.get(&lane) else { continue };
            let record = Record::decode(&bytes).map_err(|e| unreadable("listing events", &e))?;
            let (function, leased) = (lane.function().clone(), lane.is_leased(id));
            events.push(Listed { id, function, place, leased, history: record.history });
        }
        Ok(Page { events, next })
    }

    /// Up to `max` records of these lanes in the order of lane, state and id, and where to go on.
    fn scan_pages(&self, want: &ListWant, lanes: Vec<LaneId>, places: &[Place]) -> Result<Scanned, Failed> {
        let mut found = Vec::new();
        let from = want.after.map(|after| (after.lane, after.place, after.id));
        let wanted = |place: &&Place| want.place.is_none_or(|wanted| wanted == **place);
        for lane in lanes {
            for &place in places.iter().filter(wanted) {
                if self.lanes.get(&lane).is_none_or(|lane| lane.count(place).events == 0)
                    || from.is_some_and(|(l, p, _)| (lane, place) < (l, p))
                {
                    continue;
                }
                let start = from.filter(|&(l, p, _)| (l, p) == (lane, place)).map(|(_, _, id)| id);
                let (first, to) = keys::events_from(place, lane, start);
                let first = if start.is_some() { keys::after(&first) } else { first };
                for pair in self.kv.scan(&first, &to) {
                    let (key, bytes) = pair?;
                    let Some(id) = keys::id_of(&key) else { continue };
                    if found.len() == want.max {
                        let next = found.last().map(|&(cursor, _)| cursor);
                        return Ok((found, next));
                    }
                    found.push((Cursor { lane, place, id }, bytes));
                }
            }
        }
        Ok((found, None))
    }

    /// An event that is neither buried nor leased; or why it is not to be touched.
    fn waiting(&self, id: EventId) -> Result<Result<Waiting, Touched>, Failed> {
        let lanes = self.lanes.iter().filter(|(_, lane)| lane.function().tag() == id.function_tag());
        for (&lane_id, lane) in lanes {
            for place in Place::ALL {
                let Some(bytes) = self.kv.get(&keys::event(place, lane_id, id))? else { continue };
                if place == Place::Buried {
                    return Ok(Err(Touched::Buried));
                }
                if lane.is_leased(id) {
                    return Ok(Err(Touched::InFlight));
                }
                let (history, held, event) = self.held(lane_id, place, id, &bytes)?;
                return Ok(Ok(Waiting { lane: lane_id, held, history, event }));
            }
        }
        Ok(Err(Touched::NotFound))
    }

    /// What must be known of an event to rewrite or remove it, as if it had been leased.
    fn held(
        &self,
        lane: LaneId,
        place: Place,
        id: EventId,
        bytes: &bytes::Bytes,
    ) -> Result<(History, Held, Event), Failed> {
        let (record_bytes, record, event) = self.read(lane, id, bytes)?;
        let due = (place != Place::Ready).then_some(record.history.due);
        let bytes = account(record_bytes, record.body_bytes);
        let (expires_at, key) = (event.expires_at, keys::remembered_of(&event));
        Ok((record.history, Held { place, due, bytes, body_bytes: record.body_bytes, expires_at, key }, event))
    }
}

/// An event that an operator may touch, and what that takes.
struct Waiting {
    lane: LaneId,
    held: Held,
    history: History,
    event: Event,
}

/// Records with their places, and where to go on.
type Scanned = (Vec<(Cursor, bytes::Bytes)>, Option<Cursor>);
