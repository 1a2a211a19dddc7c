//! Dead letters as an operator sees and moves them.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::read::{Part, Read};
use super::{Engine, account, unreadable};
use crate::event::{EVENT_BYTES, Event, EventId};
use crate::outbox::dead::{BuriedPage, BuriedWant, Change, Changed, Cursor, Letter, Redriven};
use crate::outbox::embedded::keys;
use crate::outbox::embedded::kv::{Disk, Failed, Kv};
use crate::outbox::embedded::record::{Record, encode_body};
use crate::outbox::operator::Keys;
use crate::outbox::{Appended, History, LaneId, Place};

/// Records that one page looks at: a filter that fits few must not hold up the store.
const PAGE_RECORDS_MAX: usize = 1_000;

/// Bytes of events that one page reads.
const PAGE_BYTES_MAX: usize = 2 << 20;

/// Bytes, and events, that one commit of a change may move: others are served before the next.
const PIECE_BYTES: usize = 4 << 20;
const PIECE_EVENTS: usize = 100;

impl<K: Kv> Engine<K> {
    /// A page of dead letters. One that cannot be read stands in it with the reason.
    pub fn buried(&mut self, want: &BuriedWant) -> Result<BuriedPage, Failed> {
        let mut page = BuriedPage::default();
        let (mut records, mut bytes) = (0, 0);
        let first = want.after.map_or(LaneId(0), |cursor| cursor.lane);
        let mut failures = Vec::new();
        'lanes: for (&lane_id, lane) in self.lanes.range(first..) {
            let fits = || want.filter.function.as_ref().is_none_or(|pattern| lane.function().fits(pattern.as_str()));
            if lane.count(Place::Buried).events == 0 || !fits() {
                continue;
            }
            let after = want.after.filter(|cursor| cursor.lane == lane_id).map(|cursor| cursor.id);
            let (from, to) = keys::events_from(Place::Buried, lane_id, after);
            for pair in self.kv.pairs(&from, &to) {
                let (key, value) = pair?;
                let Some(id) = keys::id_of(&key).filter(|&id| Some(id) != after) else { continue };
                records += 1;
                match self.letter(lane_id, id, value, want)? {
                    Ok(None) => {}
                    Ok(Some(letter)) => {
                        bytes += if want.payloads { letter.payload_bytes } else { 0 } + EVENT_BYTES;
                        page.letters.push(letter);
                    }
                    Err(failed) => failures.push((id, failed)),
                }
                let shown = page.letters.len() + failures.len();
                if shown >= want.letters_max || records >= PAGE_RECORDS_MAX || bytes >= PAGE_BYTES_MAX {
                    page.next = Some(Cursor { lane: lane_id, id });
                    break 'lanes;
                }
            }
        }
        for (id, failed) in failures {
            self.note_unreadable(id, &failed);
            page.unreadable.push((id, failed.to_string()));
        }
        Ok(page)
    }

    /// One dead letter, if it fits; the inner error is this one's.
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

    /// Adds a piece of a change to the batch, which must be empty: what is read here is what was committed. Gives the answers,
    /// and what of the change is left for the next commit.
    pub fn change(&mut self, change: Change, disk: Disk) -> Result<(Vec<Changed>, Option<Change>), Failed> {
        let mut moved = BTreeSet::new();
        Ok(match change {
            Change::Redrive(redriven) => {
                let each = |redriven: Redriven| Ok((self.redrive(&redriven, disk)?, redriven.event.cost()));
                let (changed, left) = in_piece(redriven, each)?;
                (changed, (!left.is_empty()).then_some(Change::Redrive(left)))
            }
            Change::Bury(letters) => {
                let each = |(event, history): (Event, History)| {
                    let cost = event.cost();
                    Ok((self.bury(&event, history, disk)?, cost))
                };
                let (changed, left) = in_piece(letters, each)?;
                (changed, (!left.is_empty()).then_some(Change::Bury(left)))
            }
            Change::Revive { ids, redrives_max } => {
                let each = |id| {
                    if moved.insert(id) { self.revive(id, redrives_max, disk) } else { Ok((Changed::NotFound, 0)) }
                };
                let (changed, ids) = in_piece(ids, each)?;
                (changed, (!ids.is_empty()).then_some(Change::Revive { ids, redrives_max }))
            }
            Change::Purge { ids, keys } => {
                let each =
                    |id| Ok((if moved.insert(id) { self.purge(id, keys)? } else { Changed::NotFound }, EVENT_BYTES));
                let (changed, ids) = in_piece(ids, each)?;
                (changed, (!ids.is_empty()).then_some(Change::Purge { ids, keys }))
            }
        })
    }

    fn redrive(&mut self, redriven: &Redriven, disk: Disk) -> Result<Changed, Failed> {
        let Redriven { event, origin } = redriven;
        let name = &event.function.name;
        let key = keys::redriven(name, origin, event.redrives);
        let known = self.known(name, &key, self.clock.now())?;
        Ok(match self.append_keyed(event, Some((key, known)), disk)? {
            Appended::Stored => {
                self.remember_again(event)?;
                Changed::Stored { id: event.id }
            }
            Appended::Repeat { first } => Changed::Repeat { first },
            Appended::Conflict { first } => Changed::Conflict { first },
            Appended::Full(full) => Changed::Full(full),
        })
    }

    fn bury(&mut self, event: &Event, history: History, disk: Disk) -> Result<Changed, Failed> {
        let name = &event.function.name;
        if let Some(&lane) = self.by_name.get(name) {
            for place in Place::ALL {
                let key = keys::event(place, lane, event.id);
                if self.batch.pending(&key).flatten().is_some() || self.kv.value_bytes(&key)?.is_some() {
                    return Ok(Changed::Repeat { first: event.id });
                }
            }
        }
        let body = encode_body(event);
        let record = Record::new(history, &body);
        let encoded = record.encode();
        let bytes = account(encoded.len(), record.body_bytes);
        if let Some(full) = self.full(event, bytes, disk) {
            return Ok(Changed::Full(full));
        }
        let lane = self.lane_for(name);
        self.put_event(lane, event.id, Place::Buried, record.history.due, encoded, &body, bytes);
        self.remember_again(event)?;
        Ok(Changed::Stored { id: event.id })
    }

    /// What became of it, and the bytes that it took.
    fn revive(&mut self, id: EventId, redrives_max: u32, disk: Disk) -> Result<(Changed, usize), Failed> {
        let lane = match self.at_rest(id)? {
            Ok(lane) => lane,
            Err(changed) => return Ok((changed, EVENT_BYTES)),
        };
        let read = match self.read_at(Place::Buried, lane, id, Part::Whole)? {
            None => return Ok((Changed::NotFound, EVENT_BYTES)),
            Some(Err(failed)) => {
                self.note_unreadable(id, &failed);
                return Ok((Changed::Unreadable { why: failed.to_string() }, EVENT_BYTES));
            }
            Some(Ok(read)) => read,
        };
        let (held, cost) = (read.held(Place::Buried), EVENT_BYTES + read.payload_bytes);
        let event = read.event;
        if event.redrives >= redrives_max {
            return Ok((Changed::Ceiling { redrives: event.redrives }, cost));
        }
        if let Some(full) = self.not_now(held.bytes, disk) {
            return Ok((Changed::Full(full), cost));
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
        Ok((Changed::Stored { id: new }, cost))
    }

    /// Removes a dead letter, also one that cannot be read.
    fn purge(&mut self, id: EventId, keys: Keys) -> Result<Changed, Failed> {
        let lane = match self.at_rest(id)? {
            Ok(lane) => lane,
            Err(changed) => return Ok(changed),
        };
        let Some(bytes) = Failed::apart(self.kv.get(&keys::event(Place::Buried, lane, id)))?.transpose() else {
            return Ok(Changed::NotFound);
        };
        let (held, event) = self.held(lane, Place::Buried, id, bytes)?;
        if let (Keys::Forget, Some(event)) = (keys, event) {
            self.forget(&event)?;
        }
        let function = self.lanes.get(&lane).map(|lane| lane.function().as_str()).unwrap_or_default();
        tracing::warn!(event_id = %id, function, "dead letter purged");
        self.discard(lane, id, held);
        Ok(Changed::Purged)
    }

    /// The lane of a dead letter that nobody has leased; or why it is not to be touched.
    fn at_rest(&self, id: EventId) -> Result<Result<LaneId, Changed>, Failed> {
        let Some((lane_id, Place::Buried)) = self.place_of(id)? else { return Ok(Err(Changed::NotFound)) };
        let busy = self.lanes.get(&lane_id).is_some_and(|lane| lane.is_busy(id));
        Ok(if busy { Err(Changed::Leased) } else { Ok(lane_id) })
    }
}

/// Takes from the front of `work` what one commit may hold; gives the answers, and what is left.
fn in_piece<T>(
    work: Vec<T>,
    mut each: impl FnMut(T) -> Result<(Changed, usize), Failed>,
) -> Result<(Vec<Changed>, Vec<T>), Failed> {
    let (mut changed, mut bytes) = (Vec::new(), 0);
    let mut work = work.into_iter();
    while changed.len() < PIECE_EVENTS && bytes < PIECE_BYTES {
        let Some(item) = work.next() else { break };
        let (answer, cost) = each(item)?;
        bytes += cost;
        changed.push(answer);
    }
    Ok((changed, work.collect()))
}
