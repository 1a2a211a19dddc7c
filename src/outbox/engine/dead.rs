//! Dead letters as an operator sees and moves them.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::lane::Held;
use super::{Engine, account, unreadable};
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::dead::{BuriedPage, BuriedWant, Change, Changed, Cursor, Letter, Redriven};
use crate::outbox::kv::{Disk, Failed, Kv};
use crate::outbox::operator::Keys;
use crate::outbox::record::{Record, encode_body};
use crate::outbox::{Appended, History, LaneId, Place, keys};

/// Records that one page looks at: a filter that fits few must not hold up the store.
const PAGE_RECORDS_MAX: usize = 1_000;

/// Bytes of events that one page reads.
const PAGE_BYTES_MAX: usize = 8 << 20;

impl<K: Kv> Engine<K> {
    /// A page of dead letters. One that cannot be read is passed over; the log names it.
    pub fn buried(&self, want: &BuriedWant) -> Result<BuriedPage, Failed> {
        let mut page = BuriedPage::default();
        let (mut records, mut bytes) = (0, 0);
        let first = want.after.map_or(LaneId(0), |cursor| cursor.lane);
        for (&lane_id, lane) in self.lanes.range(first..) {
            let fits = || want.filter.function.as_ref().is_none_or(|pattern| lane.function().fits(pattern.as_str()));
            if lane.count(Place::Buried).events == 0 || !fits() {
                continue;
            }
            let after = want.after.filter(|cursor| cursor.lane == lane_id).map(|cursor| cursor.id);
            let (from, to) = keys::events_from(Place::Buried, lane_id, after);
            for pair in self.kv.scan(&from, &to) {
                let (key, value) = pair?;
                let Some(id) = keys::id_of(&key).filter(|&id| Some(id) != after) else { continue };
                records += 1;
                let letter = self.letter(lane_id, id, &value, want);
                bytes += letter.as_ref().map_or(0, |letter| letter.payload_bytes);
                page.letters.extend(letter);
                if page.letters.len() >= want.letters_max || records >= PAGE_RECORDS_MAX || bytes >= PAGE_BYTES_MAX {
                    page.next = Some(Cursor { lane: lane_id, id });
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    fn letter(&self, lane: LaneId, id: EventId, value: &Bytes, want: &BuriedWant) -> Option<Letter> {
        let fits = Record::decode(value).map(|record| want.filter.fits(&record.history));
        let read = match fits {
            Ok(true) => self.read(lane, id, value),
            Ok(false) => return None,
            Err(why) => Err(unreadable("reading a dead letter", &why)),
        };
        match read {
            Ok((_, record, event)) => {
                let leased = self.lanes.get(&lane).is_some_and(|lane| lane.is_leased(id));
                let payload_bytes = event.payload.len();
                let payload = if want.payloads { event.payload.clone() } else { Bytes::new() };
                Some(Letter { event: Event { payload, ..event }, payload_bytes, history: record.history, leased })
            }
            Err(error) => {
                tracing::error!(event_id = %id, %error, "dead letter cannot be read");
                None
            }
        }
    }

    /// Adds a change to the batch, which must be empty: what is read here is what was committed.
    pub fn change(&mut self, change: Change, disk: Disk) -> Result<Vec<Changed>, Failed> {
        let mut moved = BTreeSet::new();
        match change {
            Change::Redrive(redriven) => redriven.iter().map(|redriven| self.redrive(redriven, disk)).collect(),
            Change::Bury(letters) => {
                letters.into_iter().map(|(event, history)| self.bury(&event, history, disk)).collect()
            }
            Change::Revive { ids, redrives_max } => ids
                .into_iter()
                .map(|id| if moved.insert(id) { self.revive(id, redrives_max, disk) } else { Ok(Changed::NotFound) })
                .collect(),
            Change::Purge { ids, keys } => ids
                .into_iter()
                .map(|id| if moved.insert(id) { self.purge(id, keys) } else { Ok(Changed::NotFound) })
                .collect(),
        }
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
                if self.batch.pending(&key).flatten().is_some() || self.kv.get(&key)?.is_some() {
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

    fn revive(&mut self, id: EventId, redrives_max: u32, disk: Disk) -> Result<Changed, Failed> {
        let (lane, held, event) = match self.at_rest(id)? {
            Ok(found) => found,
            Err(changed) => return Ok(changed),
        };
        if event.redrives >= redrives_max {
            return Ok(Changed::Ceiling { redrives: event.redrives });
        }
        if let Some(full) = self.no_disk(held.bytes, disk) {
            return Ok(Changed::Full(full));
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
        Ok(Changed::Stored { id: new })
    }

    fn purge(&mut self, id: EventId, keys: Keys) -> Result<Changed, Failed> {
        Ok(match self.at_rest(id)? {
            Ok((lane, held, event)) => {
                if keys == Keys::Forget {
                    self.forget(&event)?;
                }
                self.remove(lane, id, held);
                tracing::warn!(event_id = %id, function = %event.function.name, "dead letter is purged");
                Changed::Purged
            }
            Err(changed) => changed,
        })
    }

    /// A dead letter that nobody has leased, and what removing it takes.
    fn at_rest(&self, id: EventId) -> Result<Result<(LaneId, Held, Event), Changed>, Failed> {
        let tagged = |function: &FunctionName| function.tag() == id.function_tag();
        for (&lane_id, lane) in self.lanes.iter().filter(|(_, lane)| tagged(lane.function())) {
            let Some(bytes) = self.kv.get(&keys::event(Place::Buried, lane_id, id))? else { continue };
            if lane.is_leased(id) {
                return Ok(Err(Changed::Leased));
            }
            return Ok(match self.read(lane_id, id, &bytes) {
                Ok((record_bytes, record, event)) => {
                    let held = Held {
                        place: Place::Buried,
                        due: Some(record.history.due),
                        bytes: account(record_bytes, record.body_bytes),
                        body_bytes: record.body_bytes,
                        expires_at: None,
                        key: keys::remembered_of(&event),
                    };
                    Ok((lane_id, held, event))
                }
                Err(why) => Err(Changed::Unreadable { why: why.to_string() }),
            });
        }
        Ok(Err(Changed::NotFound))
    }
}
