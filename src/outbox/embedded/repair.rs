//! Checks a store for damage, and builds a sound one from everything readable.
//!
//! In: any [`Kv`], even one that fails or panics at some keys. Out: a [`Report`], and a new store on request.
//! Holds: copies only complete events, and rebuilds counts and indexes from the records. Does not change the source.
//! Limits: memory for one event and the ids in the report. The target commits every [`COMMIT_BYTES`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use super::engine::{FORMAT, account};
use super::keys::{self, Due};
use super::kv::{Batch, Failed, Kv};
use super::record::{KeyRecord, LaneRecord, Record, chunk_count, chunks, decode_body};
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName};
use crate::outbox::{Count, LaneId, Place};

/// The bytes of one commit of a repair.
const COMMIT_BYTES: usize = 8 << 20;

/// The most unreadable events that a report names. It counts the others.
const NAMED_MAX: usize = 100;

/// The contents of a store, and its damage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub functions: u64,
    pub events: u64,
    /// Bytes as `outbox.bytes_max` counts them.
    pub bytes: u64,
    pub keys: u64,
    /// Incomplete events: their record, body or function cannot be read.
    pub unreadable_events: u64,
    /// The ids of the first hundred of them.
    pub unreadable_ids: Vec<String>,
    /// Unreadable gaps. The number of events in them is unknown.
    pub unreadable_ranges: u64,
    /// Damaged areas of the journal, including areas that are no longer needed.
    pub damaged_areas: u64,
    /// Descriptions of the first hundred of them.
    pub damaged: Vec<String>,
    /// Remembered keys and lanes whose record cannot be read.
    pub unreadable_records: u64,
    /// Functions whose stored counts are wrong.
    pub wrong_counts: u64,
    /// Events without an index entry. They would never be attempted or shipped.
    pub index_missing: u64,
    /// Index entries without an event.
    pub index_stray: u64,
    /// Events that have chunks but no record. They only cost space.
    pub stray_bodies: u64,
}

impl Report {
    /// Whether everything stored can be read and found.
    pub fn is_sound(&self) -> bool {
        self.unreadable_events + self.unreadable_ranges + self.unreadable_records + self.damaged_areas == 0
            && self.wrong_counts + self.index_missing + self.index_stray == 0
    }

    /// This report, with the damage of the journal added.
    pub fn with_damage(self, areas: &[impl ToString]) -> Self {
        let damaged = areas.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        Self { damaged_areas: areas.len() as u64, damaged, ..self }
    }

    fn name_unreadable(&mut self, id: EventId) {
        self.unreadable_events += 1;
        if self.unreadable_ids.len() < NAMED_MAX {
            self.unreadable_ids.push(id.to_string());
        }
    }
}

/// Reads everything and changes nothing.
pub fn check<K: Kv>(store: &K) -> Report {
    let mut survey = Survey::new(store);
    // Without a target nothing can fail.
    survey.run(&mut None::<(&mut K, Batch, usize)>).unwrap_or_default();
    survey.report
}

/// Copies everything readable of `source` into the empty `target`.
pub fn rebuild<S: Kv, T: Kv>(source: &S, target: &mut T) -> Result<Report, Failed> {
    let mut survey = Survey::new(source);
    let mut sink = Some((target, Batch::default(), 0));
    survey.run(&mut sink)?;
    Ok(survey.report)
}

/// The target of a repair, if there is one: the store, the current batch, and its bytes.
type Sink<'a, T> = Option<(&'a mut T, Batch, usize)>;

fn put<T: Kv>(sink: &mut Sink<'_, T>, key: Vec<u8>, value: impl Into<Bytes>) -> Result<(), Failed> {
    let Some((target, batch, bytes)) = sink else { return Ok(()) };
    let value = value.into();
    *bytes += key.len() + value.len();
    batch.put(key, value);
    if *bytes >= COMMIT_BYTES {
        *bytes = 0;
        target.commit(&std::mem::take(batch))?;
    }
    Ok(())
}

struct Survey<'a, S> {
    source: &'a S,
    report: Report,
    lanes: BTreeMap<LaneId, (LaneRecord, [Count; 4])>,
    bodies: BTreeSet<EventId>,
}

impl<'a, S: Kv> Survey<'a, S> {
    fn new(source: &'a S) -> Self {
        Self { source, report: Report::default(), lanes: BTreeMap::new(), bodies: BTreeSet::new() }
    }

    fn run<T: Kv>(&mut self, sink: &mut Sink<'_, T>) -> Result<(), Failed> {
        self.meta(sink)?;
        self.lanes();
        self.keys(sink)?;
        for place in Place::ALL {
            self.events(place, sink)?;
        }
        self.strays(Due::Attempt);
        self.strays(Due::Ship);
        self.stray_expiries();
        self.stray_bodies();
        let mut next_lane = 0;
        for (id, (stored, counts)) in std::mem::take(&mut self.lanes) {
            self.report.functions += 1;
            self.report.wrong_counts += u64::from(stored.counts != counts);
            next_lane = id.0.saturating_add(1);
            put(sink, keys::lane(id), LaneRecord { counts, ..stored }.encode())?;
        }
        put(sink, keys::META_NEXT_LANE.to_vec(), u64::from(next_lane).to_be_bytes().to_vec())?;
        put(sink, keys::META_FORMAT.to_vec(), u64::from(FORMAT).to_be_bytes().to_vec())?;
        match sink {
            Some((target, batch, _)) => target.commit(batch),
            None => Ok(()),
        }
    }

    fn meta<T: Kv>(&mut self, sink: &mut Sink<'_, T>) -> Result<(), Failed> {
        match self.source.get(keys::META_CLOCK) {
            Ok(Some(clock)) => put(sink, keys::META_CLOCK.to_vec(), clock),
            Ok(None) => Ok(()),
            Err(_) => {
                self.report.unreadable_records += 1;
                Ok(())
            }
        }
    }

    fn lanes(&mut self) {
        let (from, to) = keys::lanes();
        let mut found = Vec::new();
        let mut bad = 0;
        self.report.unreadable_ranges += walk(self.source, from, &to, |key, value| {
            match (keys::lane_of(key), LaneRecord::decode(&value)) {
                (Some(id), Ok(record)) => found.push((id, record)),
                (None, _) | (_, Err(_)) => bad += 1,
            }
            Ok(())
        })
        .unwrap_or_default();
        self.report.unreadable_records += bad;
        for (id, record) in found {
            self.lanes.insert(id, (record, [Count::default(); 4]));
        }
    }

    fn keys<T: Kv>(&mut self, sink: &mut Sink<'_, T>) -> Result<(), Failed> {
        let (from, to) = keys::all_remembered();
        let (mut good, mut bad) = (0, 0);
        let gaps = walk(self.source, from, &to, |key, value| {
            if KeyRecord::decode(&value).is_err() {
                bad += 1;
                return Ok(());
            }
            good += 1;
            put(sink, key.to_vec(), value)
        })?;
        self.report.unreadable_ranges += gaps;
        self.report.unreadable_records += bad;
        self.report.keys = good;
        Ok(())
    }

    fn events<T: Kv>(&mut self, place: Place, sink: &mut Sink<'_, T>) -> Result<(), Failed> {
        let (from, to) = keys::all_events(place);
        let source = self.source;
        let gaps = walk(source, from, &to, |key, value| {
            let (Some(lane), Some(id)) = (keys::lane_of(key), keys::id_of(key)) else {
                self.report.unreadable_records += 1;
                return Ok(());
            };
            match whole(source, self.lanes.get(&lane).map(|(record, _)| &record.function), id, &value) {
                Some(event) => self.good(place, lane, id, &value, &event, sink),
                None => {
                    self.report.name_unreadable(id);
                    Ok(())
                }
            }
        })?;
        self.report.unreadable_ranges += gaps;
        Ok(())
    }

    fn good<T: Kv>(
        &mut self,
        place: Place,
        lane: LaneId,
        id: EventId,
        encoded: &Bytes,
        whole: &Whole,
        sink: &mut Sink<'_, T>,
    ) -> Result<(), Failed> {
        let Whole { record, body, expires_at } = whole;
        let count = Count { events: 1, bytes: account(encoded.len(), record.body_bytes) };
        self.report.events += 1;
        self.report.bytes += count.bytes;
        if let Some((_, counted)) = self.lanes.get_mut(&lane) {
            counted[place as usize].add(count);
        }
        if let Some(index) = Due::of(place) {
            let key = keys::due(index, lane, record.history.due, id);
            self.report.index_missing += u64::from(!matches!(self.source.get(&key), Ok(Some(_))));
            put(sink, key, vec![keys::letter(place)])?;
        }
        if let Some(expires_at) = expires_at.filter(|_| place != Place::Buried) {
            let key = keys::due(Due::Expiry, lane, expires_at, id);
            self.report.index_missing += u64::from(!matches!(self.source.get(&key), Ok(Some(_))));
            put(sink, key, Vec::new())?;
        }
        put(sink, keys::event(place, lane, id), encoded.clone())?;
        for (index, chunk) in chunks(body) {
            self.bodies.insert(id);
            put(sink, keys::chunk(id, index), chunk)?;
        }
        Ok(())
    }

    /// Counts index entries without an event.
    fn strays(&mut self, index: Due) {
        let (from, to) = keys::all_due(index);
        let (source, mut stray) = (self.source, 0);
        let gaps = walk(source, from, &to, |key, letter| {
            let place = match index {
                Due::Ship => Some(Place::Buried),
                Due::Attempt | Due::Expiry => letter.first().and_then(|&letter| keys::place(letter)),
            };
            let record = match (place, keys::lane_of(key), keys::id_of(key)) {
                (Some(place), Some(lane), Some(id)) => source.get(&keys::event(place, lane, id)).ok().flatten(),
                (None, ..) | (_, None, _) | (.., None) => None,
            };
            let due = record.and_then(|record| Record::decode(&record).ok()).map(|record| record.history.due);
            stray += u64::from(due.is_none() || due != keys::due_of(key));
            Ok(())
        });
        self.report.unreadable_ranges += gaps.unwrap_or_default();
        self.report.index_stray += stray;
    }

    fn stray_expiries(&mut self) {
        let (from, to) = keys::all_due(Due::Expiry);
        let (source, mut stray) = (self.source, 0);
        let gaps = walk(source, from, &to, |key, _| {
            let live = keys::lane_of(key).zip(keys::id_of(key)).is_some_and(|(lane, id)| {
                [Place::Ready, Place::Waiting, Place::Scheduled]
                    .into_iter()
                    .any(|place| matches!(source.get(&keys::event(place, lane, id)), Ok(Some(_))))
            });
            stray += u64::from(!live);
            Ok(())
        });
        self.report.unreadable_ranges += gaps.unwrap_or_default();
        self.report.index_stray += stray;
    }

    fn stray_bodies(&mut self) {
        let (from, to) = keys::all_chunks();
        let (mut last, mut strays) = (None, 0);
        let gaps = walk(self.source, from, &to, |key, _| {
            let id = keys::id_of_chunk(key);
            if id != last {
                last = id;
                strays += u64::from(id.is_none_or(|id| !self.bodies.contains(&id)));
            }
            Ok(())
        });
        self.report.unreadable_ranges += gaps.unwrap_or_default();
        // The chunks of an unreadable event are not stray.
        self.report.stray_bodies = strays.saturating_sub(self.report.unreadable_events);
    }
}

/// A completely readable event.
struct Whole {
    record: Record,
    body: Bytes,
    expires_at: Option<UnixMillis>,
}

/// An event's record and body, if both are readable.
fn whole<S: Kv>(source: &S, function: Option<&FunctionName>, id: EventId, value: &Bytes) -> Option<Whole> {
    let record = Record::decode(value).ok()?;
    let body = match chunk_count(record.body_bytes) {
        0 => record.inline.clone(),
        count => {
            let mut body = BytesMut::new();
            for index in 0..count {
                body.extend_from_slice(&source.get(&keys::chunk(id, index)).ok()??);
            }
            body.freeze()
        }
    };
    if body.len() != record.body_bytes as usize {
        return None;
    }
    let expires_at = decode_body(id, function?, &body).ok()?.expires_at;
    Some(Whole { record, body, expires_at })
}

/// Visits every readable pair and skips unreadable ones. Returns the number of gaps.
fn walk<S: Kv>(
    source: &S,
    from: Vec<u8>,
    to: &[u8],
    mut visit: impl FnMut(&[u8], Bytes) -> Result<(), Failed>,
) -> Result<u64, Failed> {
    let (mut gaps, mut start) = (0, from);
    loop {
        let mut last = None;
        let mut failed = false;
        for pair in source.scan(&start, to) {
            match pair {
                Ok((key, value)) => {
                    visit(&key, value)?;
                    last = Some(key);
                }
                Err(_) => {
                    failed = true;
                    break;
                }
            }
        }
        if !failed {
            return Ok(gaps);
        }
        gaps += 1;
        let stuck = last.map_or(start, |last| keys::after(&last));
        match beyond(source, &stuck, to) {
            Some(next) => start = next,
            None => return Ok(gaps),
        }
    }
}

/// A key after `stuck` from which reading may continue. Each attempt jumps 256 times as far as the previous one.
fn beyond<S: Kv>(source: &S, stuck: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let mut padded = stuck.to_vec();
    padded.resize(stuck.len().max(KEY_BYTES_MAX), 0);
    for at in (1..padded.len()).rev() {
        let byte = padded[at];
        for step in STEPS {
            let Some(next) = byte.checked_add(step) else { break };
            let candidate = [&padded[..at], &[next]].concat();
            if candidate.as_slice() < to && !matches!(source.scan(&candidate, to).next(), Some(Err(_))) {
                return Some(candidate);
            }
        }
    }
    None
}

/// The longest key: an index entry.
const KEY_BYTES_MAX: usize = 29;

const STEPS: [u8; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 255];

#[cfg(test)]
mod tests;
