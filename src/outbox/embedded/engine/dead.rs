//! Operators' calls for dead letters.

use bytes::Bytes;

use super::operate::enough;
use super::read::{Part, Read, Visited};
use super::{Engine, account, unreadable};
use crate::event::{EVENT_BYTES, Event, EventId, FunctionName};
use crate::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Letter, Redriven, Revived};
use crate::outbox::embedded::keys;
use crate::outbox::embedded::kv::{Disk, Failed, Kv};
use crate::outbox::embedded::record::{Record, encode_body};
use crate::outbox::operator::{Cursor, Keys};
use crate::outbox::{Appended, History, LaneId, Place};

/// The most records that a page visits, so that a narrow filter does not block the store.
const PAGE_RECORDS_MAX: usize = 1_000;

/// The most bytes of events that a page reads.
const PAGE_BYTES_MAX: usize = 2 << 20;

/// The most bytes and events that one commit moves. Other requests are served between commits.
const PIECE_BYTES: usize = 4 << 20;
const PIECE_EVENTS: usize = 100;

impl<K: Kv> Engine<K> {
    /// A page of dead letters. Lists an unreadable one with the reason.
    pub fn buried(&mut self, want: &BuriedWant) -> Result<BuriedPage, Failed> {
        let mut page = BuriedPage::default();
        let (mut records, mut bytes) = (0, 0);
        let fits =
            |name: &FunctionName| want.filter.function.as_ref().is_none_or(|pattern| name.fits(pattern.as_str()));
        let mut failures = Vec::new();
        self.visit(want.after.as_ref(), None, fits, &[Place::Buried], |lane, Visited { function, id, record, .. }| {
            records += 1;
            match self.letter(lane, id, record, want)? {
                Ok(None) => {}
                Ok(Some(letter)) => {
                    bytes += if want.payloads { letter.payload_bytes } else { 0 } + EVENT_BYTES;
                    page.letters.push(letter);
                }
                Err(failed) => failures.push((id, failed)),
            }
            let shown = page.letters.len() + failures.len();
            let full = shown >= want.letters_max || records >= PAGE_RECORDS_MAX || bytes >= PAGE_BYTES_MAX;
            page.next = full.then(|| Cursor { function: function.clone(), id });
            Ok(enough(full))
        })?;
        for (id, failed) in failures {
            self.note_unreadable(id, &failed);
            page.unreadable.push((id, failed.to_string()));
        }
        Ok(page)
    }

    /// A dead letter, if it matches. The inner error concerns only this letter.
    fn letter(
        &self,
        lane: LaneId,
        id: EventId,
        value: Result<Bytes, Failed>,
        want: &BuriedWant,
    ) -> Result<Result<Option<Letter>, Failed>, Failed> {
        let fits = value.and_then(|value| {
            let record = Record::decode(&value).map_err(|e| unreadable("reading a dead letter", &e))?;
            Ok(want.filter.fits(&record.history).then_some(value))
        });
        let value = match fits {
            Ok(Some(value)) => value,
            Ok(None) => return Ok(Ok(None)),
            Err(failed) => return Ok(Err(failed)),
        };
        let part = if want.payloads { Part::Whole } else { Part::Head };
        let leased = self.lanes.get(&lane).is_some_and(|lane| lane.is_busy(id));
        Ok(self.read(lane, id, Ok(value), part)?.map(|Read { event, payload_bytes, record, .. }| {
            Some(Letter { event, payload_bytes, history: record.history, leased })
        }))
    }

    /// Adds a piece of a redrive to the batch. The batch must be empty, because this function and the three below read
    /// committed data.
    pub fn redrive(&mut self, events: Vec<Redriven>, disk: Disk) -> Result<Piece<Redriven, Appended>, Failed> {
        in_piece(events, |redriven| Ok((self.redrive_one(&redriven, disk)?, redriven.event.cost())))
    }

    pub fn revive(
        &mut self,
        ids: Vec<EventId>,
        redrives_max: u32,
        disk: Disk,
    ) -> Result<Piece<EventId, Revived>, Failed> {
        in_piece(ids, |id| self.revive_one(id, redrives_max, disk))
    }

    pub fn import(
        &mut self,
        letters: Vec<(Event, History)>,
        disk: Disk,
    ) -> Result<Piece<(Event, History), Imported>, Failed> {
        in_piece(letters, |(event, history)| Ok((self.import_one(&event, history, disk)?, event.cost())))
    }

    pub fn discard_letters(&mut self, ids: Vec<EventId>, keys: Keys) -> Result<Piece<EventId, Discarded>, Failed> {
        in_piece(ids, |id| Ok((self.discard_letter(id, keys)?, EVENT_BYTES)))
    }

    fn redrive_one(&mut self, redriven: &Redriven, disk: Disk) -> Result<Appended, Failed> {
        let Redriven { event, origin } = redriven;
        let name = &event.function.name;
        let key = keys::redriven(name, origin, event.redrives);
        let known = self.known(name, &key, self.clock.now())?;
        let appended = self.append_keyed(event, Some((key, known)), disk)?;
        if appended == Appended::Stored {
            self.remember_again(event)?;
        }
        Ok(appended)
    }

    fn import_one(&mut self, event: &Event, history: History, disk: Disk) -> Result<Imported, Failed> {
        let name = &event.function.name;
        if let Some(&lane) = self.by_name.get(name)
            && self.place_in(lane, event.id)?.is_some()
        {
            return Ok(Imported::Repeat);
        }
        let body = encode_body(event);
        let record = Record::new(history, &body);
        let encoded = record.encode();
        let bytes = account(encoded.len(), record.body_bytes);
        if let Some(full) = self.full(event, bytes, disk) {
            return Ok(Imported::Full(full));
        }
        let lane = self.lane_for(name);
        self.put_event(lane, event.id, Place::Buried, record.history.due, encoded, &body, bytes);
        self.remember_again(event)?;
        Ok(Imported::Stored)
    }

    /// The result, and the bytes it needs.
    fn revive_one(&mut self, id: EventId, redrives_max: u32, disk: Disk) -> Result<(Revived, usize), Failed> {
        let lane = match self.at_rest(id)? {
            Ok(lane) => lane,
            Err(NotAtRest::Gone) => return Ok((Revived::NotFound, EVENT_BYTES)),
            Err(NotAtRest::Leased) => return Ok((Revived::Leased, EVENT_BYTES)),
        };
        let read = match self.read_at(Place::Buried, lane, id, Part::Whole)? {
            None => return Ok((Revived::NotFound, EVENT_BYTES)),
            Some(Err(failed)) => {
                self.note_unreadable(id, &failed);
                return Ok((Revived::Unreadable { why: failed.to_string() }, EVENT_BYTES));
            }
            Some(Ok(read)) => read,
        };
        let (held, cost) = (read.held(Place::Buried), EVENT_BYTES + read.payload_bytes);
        let event = read.event;
        if event.redrives >= redrives_max {
            return Ok((Revived::Ceiling { redrives: event.redrives }, cost));
        }
        if let Some(full) = self.not_now(held.bytes, disk) {
            return Ok((Revived::Full(full), cost));
        }
        let now = self.clock.now();
        let new = EventId::mint(now, self.clock.random_bits(), &event.function.name);
        let redrives = event.redrives.saturating_add(1);
        let event = Event { id: new, accepted_at: now, deliver_at: None, expires_at: None, redrives, ..event };
        let body = encode_body(&event);
        let record = Record::new(History { due: now, ..History::default() }, &body);
        let encoded = record.encode();
        let bytes = account(encoded.len(), record.body_bytes);
        self.remove(lane, id, held);
        self.put_event(lane, new, Place::Ready, now, encoded, &body, bytes);
        self.remember_again(&event)?;
        Ok((Revived::Stored { id: new }, cost))
    }

    /// Removes a dead letter, even an unreadable one.
    fn discard_letter(&mut self, id: EventId, keys: Keys) -> Result<Discarded, Failed> {
        let lane = match self.at_rest(id)? {
            Ok(lane) => lane,
            Err(NotAtRest::Gone) => return Ok(Discarded::NotFound),
            Err(NotAtRest::Leased) => return Ok(Discarded::Leased),
        };
        let Some(bytes) = Failed::apart(self.kv.get(&keys::event(Place::Buried, lane, id)))?.transpose() else {
            return Ok(Discarded::NotFound);
        };
        let (held, event) = self.held(lane, Place::Buried, id, bytes)?;
        if keys == Keys::Forget {
            self.forget_removed(id, event.as_ref())?;
        }
        let function = self.lanes.get(&lane).map(|lane| lane.function().as_str()).unwrap_or_default();
        tracing::warn!(event_id = %id, function, "dead letter purged");
        self.discard(lane, id, held);
        Ok(Discarded::Done)
    }

    /// The lane of a dead letter that is not leased, or why it must not be touched.
    fn at_rest(&self, id: EventId) -> Result<Result<LaneId, NotAtRest>, Failed> {
        let Some((lane_id, Place::Buried)) = self.place_of(id)? else { return Ok(Err(NotAtRest::Gone)) };
        let busy = self.lanes.get(&lane_id).is_some_and(|lane| lane.is_busy(id));
        Ok(if busy { Err(NotAtRest::Leased) } else { Ok(lane_id) })
    }
}

/// Why a dead letter must not be touched.
enum NotAtRest {
    Gone,
    Leased,
}

/// The progress of a larger call: the answers of one commit, and the rest.
pub struct Piece<W, A> {
    pub answers: Vec<A>,
    pub left: Vec<W>,
}

/// Takes as much from the front of `work` as one commit may hold.
pub(super) fn in_piece<W, A>(
    work: Vec<W>,
    mut each: impl FnMut(W) -> Result<(A, usize), Failed>,
) -> Result<Piece<W, A>, Failed> {
    let (mut answers, mut bytes) = (Vec::new(), 0);
    let mut work = work.into_iter();
    while answers.len() < PIECE_EVENTS && bytes < PIECE_BYTES {
        let Some(item) = work.next() else { break };
        let (answer, cost) = each(item)?;
        bytes += cost;
        answers.push(answer);
    }
    Ok(Piece { answers, left: work.collect() })
}
