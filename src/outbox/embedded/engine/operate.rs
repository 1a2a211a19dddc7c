//! Operators' calls for waiting events. They read the store, so earlier writes must be committed.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::dead::{Piece, in_piece};
use super::lane::Held;
use super::read::{Part, Visited};
use super::remember::Known;
use super::{Engine, unreadable};
use crate::event::{EVENT_BYTES, Event, EventId, FunctionName, IdempotencyKey, KeySource};
use crate::outbox::embedded::keys;
use crate::outbox::embedded::kv::{Failed, Kv};
use crate::outbox::embedded::record::Record;
use crate::outbox::operator::{
    Cursor, Keys, KnownKey, LIVE, LOOKED_AT_MAX, ListWant, Listed, PAGE_MAX, PIECE_EVENTS, Page, Purge, Purged, Touched,
};
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

    /// One piece of a purge, after `after`. Returns what it removed and where to continue. Reads no payloads.
    pub fn purge_piece(&mut self, purge: &Purge, after: Option<EventId>) -> Result<(Purged, Option<EventId>), Failed> {
        let mut purged = Purged::default();
        let Some(&lane) = self.by_name.get(&purge.function) else { return Ok((purged, None)) };
        let places = purge.place.as_ref().map_or(&LIVE[..], std::slice::from_ref);
        let mut found = Vec::new();
        let visited = self.visit_lane(lane, after, places, |place, id, record| {
            found.push((place, id, record));
            Ok(enough(found.len() == PIECE_EVENTS))
        })?;
        let next = found.last().map(|(_, id, _)| *id).filter(|_| visited.is_break());
        for (place, id, bytes) in found {
            let young = purge.accepted_before.is_some_and(|before| id.accepted_at() >= before);
            if young || self.lanes.get(&lane).is_none_or(|lane| lane.is_busy(id)) {
                continue;
            }
            let (held, event) = self.held(lane, place, id, bytes)?;
            purged.events += 1;
            purged.bytes += held.bytes;
            if !purge.dry_run {
                purged.ids.push(id);
                if purge.keys == Keys::Forget {
                    self.forget_removed(id, event.as_ref())?;
                }
                self.discard(lane, id, held);
            }
        }
        Ok((purged, next))
    }

    /// What is needed to remove an event. There is no event if it is unreadable.
    pub(super) fn held(
        &mut self,
        lane: LaneId,
        place: Place,
        id: EventId,
        bytes: Result<Bytes, Failed>,
    ) -> Result<(Held, Option<Event>), Failed> {
        match self.read(lane, id, bytes, Part::Head)? {
            Ok(read) => Ok((read.held(place), Some(read.event))),
            Err(failed) => {
                self.note_unreadable(id, &failed);
                Ok((self.held_by_keys(lane, place, id)?, None))
            }
        }
    }

    /// Removes one waiting event, even an unreadable one.
    pub fn cancel(&mut self, id: EventId, keys: Keys) -> Result<Touched, Failed> {
        let (lane, place) = match self.waiting(id)? {
            Ok(found) => found,
            Err(why) => return Ok(why),
        };
        let Some(bytes) = Failed::apart(self.kv.get(&keys::event(place, lane, id)))?.transpose() else {
            return Ok(Touched::NotFound);
        };
        let (held, event) = self.held(lane, place, id, bytes)?;
        if keys == Keys::Forget {
            self.forget_removed(id, event.as_ref())?;
        }
        self.discard(lane, id, held);
        Ok(Touched::Done)
    }

    /// A piece of a call for several events. Each is a commit's worth.
    pub fn cancel_piece(&mut self, ids: Vec<EventId>, keys: Keys) -> Result<Piece<EventId, Touched>, Failed> {
        in_piece(ids, |id| Ok((self.cancel(id, keys)?, EVENT_BYTES)))
    }

    pub fn attempt_piece(&mut self, ids: Vec<EventId>) -> Result<Piece<EventId, Touched>, Failed> {
        in_piece(ids, |id| Ok((self.attempt_now(id)?, EVENT_BYTES)))
    }

    /// What is remembered of a key that a client gave.
    pub fn known_key(
        &self,
        function: &FunctionName,
        tenant: Option<&str>,
        key: String,
    ) -> Result<Option<KnownKey>, Failed> {
        // Every source that clients can choose has the same digest.
        let key = IdempotencyKey { value: key, source: KeySource::Header };
        let Some(key) = keys::remembered(function, tenant, &key) else { return Ok(None) };
        Ok(match self.known(function, &key, self.clock.now())? {
            Known::Within(record) => Some(KnownKey { first: record.first, expires_at: record.expires_at }),
            Known::Over | Known::Nowhere => None,
        })
    }

    pub fn attempt_now(&mut self, id: EventId) -> Result<Touched, Failed> {
        let now = self.clock.now();
        let (lane, place) = match self.waiting(id)? {
            Ok(found) => found,
            Err(why) => return Ok(why),
        };
        match self.read_at(place, lane, id, Part::Head)? {
            None => Ok(Touched::NotFound),
            Some(Err(failed)) => {
                self.note_unreadable(id, &failed);
                Ok(Touched::Unreadable)
            }
            Some(Ok(read)) => {
                let held = read.held(place);
                let history = read.record.history;
                if place != Place::Ready && history.due > now {
                    self.rewrite(lane, id, held, place, History { due: now, ..history })?;
                }
                Ok(Touched::Done)
            }
        }
    }

    /// A page of events. Lists an unreadable one with the reason.
    pub fn list(&mut self, want: &ListWant) -> Result<Page, Failed> {
        let max = want.max.clamp(1, PAGE_MAX);
        let fits = |name: &FunctionName| want.function.as_ref().is_none_or(|pattern| name.fits(pattern.as_str()));
        let places = want.place.as_ref().map_or(&Place::ALL[..], std::slice::from_ref);
        let (mut page, mut failures) = (Page::default(), Vec::new());
        let (mut looked_at, mut last) = (0, None);
        let from = want.filter.since.map(keys::before);
        self.visit(want.after.as_ref(), from, fits, places, |lane, Visited { function, place, id, record }| {
            if page.events.len() == max || looked_at == LOOKED_AT_MAX {
                page.next = last.take();
                return Ok(ControlFlow::Break(()));
            }
            looked_at += 1;
            last = Some(Cursor { function: function.clone(), id });
            let record =
                record.and_then(|bytes| Record::decode(&bytes).map_err(|e| unreadable("reading an event record", &e)));
            let leased = self.lanes.get(&lane).is_some_and(|lane| lane.is_busy(id));
            if !want.filter.fits(id, leased, record.as_ref().ok().map(|record| &record.history)) {
                return Ok(ControlFlow::Continue(()));
            }
            let (history, unreadable) = match record {
                Ok(record) => (record.history, None),
                Err(failed) => {
                    let why = failed.to_string();
                    failures.push((id, failed));
                    (History::default(), Some(why))
                }
            };
            page.events.push(Listed { id, function: function.clone(), place, leased, history, unreadable });
            Ok(ControlFlow::Continue(()))
        })?;
        for (id, failed) in failures {
            self.note_unreadable(id, &failed);
        }
        Ok(page)
    }

    /// The place of an event that is neither buried nor leased, or why it must not be touched.
    fn waiting(&self, id: EventId) -> Result<Result<(LaneId, Place), Touched>, Failed> {
        let Some((lane_id, place)) = self.place_of(id)? else { return Ok(Err(Touched::NotFound)) };
        if place == Place::Buried {
            return Ok(Err(Touched::Buried));
        }
        let busy = self.lanes.get(&lane_id).is_some_and(|lane| lane.is_busy(id));
        Ok(if busy { Err(Touched::InFlight) } else { Ok((lane_id, place)) })
    }
}

pub(super) fn enough(enough: bool) -> ControlFlow<()> {
    if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
