//! The rules of the outbox over any [`Kv`]: which keys an append, a lease and a settlement read and write.
//!
//! Holds: one thread uses it. All writes since the last commit are in one batch, which one commit makes durable
//! (docs/adr/0001, rule 1). Every event has exactly one record, under the letter of its state. Leases are in memory only.
//! The engine is synchronous and has no clock, so that the simulation runs the same code on a fake disk.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::keys;
use super::kv::{Batch, Disk, Failed, Kv};
use super::record::{KeyRecord, LaneRecord, Record, Unreadable, chunks, encode_body};
use crate::clock::{Clock, Steps, UnixMillis};
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::embedded::Settings;
use crate::outbox::idle::{Crowd, Key};
use crate::outbox::{
    Appended, Census, Count, Full, History, LaneCensus, LaneId, LaneNews, LaneView, Limits, OpenError, Place, Spent,
    bytes_for_events,
};
use key_filter::KeyFilter;
use lane::Lane;
use remember::Known;

pub use dead::Piece;
pub use read::Part;

mod adopt;

mod dead;

mod floors;

mod idle;

mod key_filter;

mod lane;

mod lease;

mod mend;

mod read;

mod remember;

mod settle;

mod sweep;

mod operate;

/// The current time is written with a commit at most this often.
const CLOCK_EVERY_MS: u64 = 1_000;

/// Bytes of keys and index entries for each record, counted towards `bytes_max`.
const KEYS_BYTES: u64 = 64;

/// How many times its own size an append may take on disk: in the journal, in the index, and again when the journal is
/// rewritten. The check of the disk reserve uses this, so that the whole reserve stays available for settling.
const WRITE_AMPLIFICATION: u64 = 4;

/// The most bytes of new events in a commit, far below the 32-bit limit of lengths in the journal.
const COMMIT_BYTES_MAX: u64 = 256 << 20;

pub struct Engine<K> {
    kv: K,
    settings: Settings,
    clock: Clock,
    lanes: BTreeMap<LaneId, Lane>,
    by_name: BTreeMap<FunctionName, LaneId>,
    next_lane: u32,
    totals: Count,
    /// The number of remembered keys: the count of the last full sweep plus the appends since.
    keys: u64,
    key_filter: KeyFilter,
    sweep: sweep::Progress,
    /// The lanes by the version of their last change.
    changes: BTreeMap<u64, LaneId>,
    /// Recently retired lanes, by the version of their retirement.
    retired: BTreeMap<u64, LaneId>,
    /// The empty lanes, in the order in which they give way.
    idle: BTreeSet<Key>,
    /// The number of proven lanes.
    proven: u64,
    /// The number of functions is near its limit.
    crowd: Crowd,
    version: u64,
    /// The version of the last change of Buried events.
    buried_version: u64,
    clock_stored: UnixMillis,
    steps_stored: Steps,
    /// The progress of correcting due times after the clock was set back. `None` if nothing needs correction.
    mending: Option<mend::Mending>,
    /// The sum of the clock's steps when last checked.
    stepped: i64,
    /// The writes since the last commit.
    batch: Batch,
    /// The bytes of events in the batch, and their limit.
    uncommitted: u64,
    commit_bytes_max: u64,
    /// The lanes whose counts the batch must write.
    dirty: BTreeSet<LaneId>,
    /// Unreadable events found since the start.
    unreadable: BTreeSet<EventId>,
    /// Events that were removed unread: the next sweep forgets their keys.
    forgetting: BTreeSet<EventId>,
}

/// The version of the layout of keys. Records have their own versions.
pub(super) const FORMAT: u32 = 1;

impl<K: Kv> Engine<K> {
    /// Reads the lanes, and passes the stored clock steps to `clock`.
    pub fn open(kv: K, settings: Settings, clock: Clock, path: &str) -> Result<Self, OpenError> {
        let damaged = |why: String| OpenError::Damaged { path: path.to_owned(), why };
        let mut batch = Batch::default();
        let format = read_number(&kv, keys::META_FORMAT).map_err(|e| damaged(e.to_string()))?;
        match format {
            None => batch.put(keys::META_FORMAT.to_vec(), u64::from(FORMAT).to_be_bytes().to_vec()),
            Some(found) if found > u64::from(FORMAT) => {
                let found = u32::try_from(found).unwrap_or(u32::MAX);
                return Err(OpenError::Newer { path: path.to_owned(), found, supported: FORMAT });
            }
            Some(_) => {}
        }
        let clock_stored = read_number(&kv, keys::META_CLOCK).map_err(|e| damaged(e.to_string()))?.unwrap_or(0);
        let steps = kv.get(keys::META_STEPS).map_err(|e| damaged(e.to_string()))?;
        // Wrong durations are better than a store that does not open.
        let steps = steps.and_then(|bytes| Steps::decode(&bytes)).unwrap_or_default();
        if let Some(step) = clock.resume(steps, UnixMillis(clock_stored)) {
            tracing::warn!(
                last_commit = step.before.rfc3339(),
                now = step.after.rfc3339(),
                "the wall clock was set since the store's last commit; going on with the present time. If it is wrong now, \
                correct the clock of the machine: the daemon follows it"
            );
        }
        let next_lane = read_number(&kv, keys::META_NEXT_LANE).map_err(|e| damaged(e.to_string()))?.unwrap_or(0);
        let mut engine = Self {
            settings,
            lanes: BTreeMap::new(),
            by_name: BTreeMap::new(),
            next_lane: u32::try_from(next_lane).unwrap_or(u32::MAX),
            totals: Count::default(),
            keys: 0,
            key_filter: KeyFilter::default(),
            sweep: sweep::Progress::default(),
            changes: BTreeMap::new(),
            retired: BTreeMap::new(),
            idle: BTreeSet::new(),
            proven: 0,
            crowd: Crowd::default(),
            version: 0,
            buried_version: 0,
            clock_stored: UnixMillis(clock_stored),
            steps_stored: Steps::default(),
            mending: Some(mend::Mending::at_start()),
            stepped: clock.stepped(),
            batch,
            uncommitted: 0,
            commit_bytes_max: COMMIT_BYTES_MAX,
            dirty: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            forgetting: BTreeSet::new(),
            kv,
            clock,
        };
        engine.read_lanes().map_err(damaged)?;
        engine.learn_of_no_keys().map_err(|e| damaged(e.to_string()))?;
        engine.commit().map_err(|e| damaged(e.to_string()))?;
        Ok(engine)
    }

    fn read_lanes(&mut self) -> Result<(), String> {
        let (from, to) = keys::lanes();
        let now = self.clock.now();
        let mut found = Vec::new();
        for pair in self.kv.scan(&from, &to) {
            let (key, value) = pair.map_err(|e| e.to_string())?;
            let id = keys::lane_of(&key).ok_or("key of a lane")?;
            let record = LaneRecord::decode(&value).map_err(|e| e.to_string())?;
            found.push((id, record));
        }
        for (id, record) in found {
            for count in record.counts {
                self.totals.add(count);
            }
            self.by_name.insert(record.function.clone(), id);
            self.proven += u64::from(record.proven);
            self.lanes.insert(id, Lane::new(record, now));
            self.touch(id);
        }
        self.note_crowd();
        self.dirty.clear();
        Ok(())
    }

    /// The filter learns keys by a sweep. Without any keys it is complete at once.
    fn learn_of_no_keys(&mut self) -> Result<(), Failed> {
        let (from, to) = keys::all_remembered();
        if self.kv.keys(&from, &to).next().transpose()?.is_none() {
            self.key_filter.begin(0);
            self.key_filter.complete();
        }
        Ok(())
    }

    /// Adds events to the batch. They are accepted once it is committed. `disk` is the current state of the disk.
    pub fn append(&mut self, events: Vec<Event>, disk: Disk) -> Result<Vec<Appended>, Failed> {
        events.into_iter().map(|event| self.append_one(&event, disk)).collect()
    }

    fn append_one(&mut self, event: &Event, disk: Disk) -> Result<Appended, Failed> {
        let key = keys::remembered(&event.function.name, event.carried.tenant_id.as_deref(), &event.key);
        let known = match &key {
            Some(key) => self.known_of(event, key, self.clock.now())?,
            None => Known::Nowhere,
        };
        self.append_keyed(event, key.map(|key| (key, known)), disk)
    }

    /// Like [`Engine::append_one`], for an event with a remembered key, given what is known of that key.
    fn append_keyed(&mut self, event: &Event, key: Option<(Vec<u8>, Known)>, disk: Disk) -> Result<Appended, Failed> {
        let now = self.clock.now();
        let fingerprint = keys::fingerprint(&event.payload);
        if let Some((_, Known::Within(KeyRecord { first, fingerprint: known, .. }))) = key {
            let same = known == fingerprint;
            return Ok(if same { Appended::Repeat { first } } else { Appended::Conflict { first } });
        }

        let body = encode_body(event);
        let (place, due) = match event.deliver_at {
            Some(at) if at > now => (Place::Scheduled, at),
            _ => (Place::Ready, now),
        };
        let record = Record::new(History { due, ..Default::default() }, &body);
        let encoded = record.encode();
        let bytes = account(encoded.len(), record.body_bytes);
        if let Some(full) = self.full(event, bytes, disk) {
            return Ok(Appended::Full(full));
        }

        let lane = self.lane_for(&event.function.name);
        self.put_event(lane, event.id, place, due, encoded, &body, bytes);
        if let Some(expires_at) = event.expires_at {
            self.batch.put_new(keys::due(keys::Due::Expiry, lane, expires_at, event.id), Vec::new());
        }
        if let Some((key, known)) = key {
            self.remember(key, &known, event.id, fingerprint);
        }
        Ok(Appended::Stored)
    }

    /// Adds a new event's record, chunks and index entry to the batch, and counts it.
    #[expect(clippy::too_many_arguments, reason = "what its callers have at hand, each already computed")]
    fn put_event(
        &mut self,
        lane_id: LaneId,
        id: EventId,
        place: Place,
        due: UnixMillis,
        encoded: Vec<u8>,
        body: &Bytes,
        bytes: u64,
    ) {
        self.batch.put_new(keys::event(place, lane_id, id), encoded);
        for (index, chunk) in chunks(body) {
            self.batch.put_new(keys::chunk(id, index), chunk);
        }
        if let Some(index) = keys::Due::of(place) {
            self.batch.put_new(keys::due(index, lane_id, due, id), vec![keys::letter(place)]);
        }
        let count = Count { events: 1, bytes };
        self.uncommitted += bytes;
        self.totals.add(count);
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.added(place, count, id);
        }
        self.touch(lane_id);
    }

    fn full(&mut self, event: &Event, bytes: u64, disk: Disk) -> Option<Full> {
        let Limits { bytes_max, events_max, functions_max, .. } = self.settings.limits;
        let functions = self.lanes.len() as u64;
        // Counts the files or their contents, whichever is larger, plus what is about to be written. A part stays free for
        // settling.
        let used = self.totals.bytes.max(disk.used + disk.to_come + self.uncommitted);
        let limit = bytes_for_events(bytes_max);
        if let Some(not_now) = self.not_now(bytes, disk) {
            Some(not_now)
        } else if used + bytes > limit {
            Some(Full::Bytes { used, wanted: bytes, limit })
        } else if self.totals.events + 1 > events_max {
            Some(Full::Events { used: self.totals.events, limit: events_max })
        } else if !self.by_name.contains_key(&event.function.name) && !self.make_way() {
            Some(Full::Functions { used: functions, limit: functions_max })
        } else {
            None
        }
    }

    /// Why the disk cannot take this many bytes now.
    fn not_now(&self, bytes: u64, disk: Disk) -> Option<Full> {
        let (reserve, limit) = (self.settings.disk_reserve, self.commit_bytes_max);
        if disk.behind {
            return Some(Full::Behind);
        }
        if self.uncommitted + bytes > limit {
            return Some(Full::Commit { limit });
        }
        // A reserve of 0 skips the check. A disk that does not report its free space is not taken for full: the write shows.
        let free = disk.free.filter(|_| reserve > 0)?;
        let full = free < reserve.saturating_add((self.uncommitted + bytes) * WRITE_AMPLIFICATION);
        full.then_some(Full::Disk { free, reserve })
    }

    fn lane_for(&mut self, function: &FunctionName) -> LaneId {
        if let Some(&id) = self.by_name.get(function) {
            return id;
        }
        let id = LaneId(self.next_lane);
        self.next_lane += 1;
        self.batch.put(keys::META_NEXT_LANE.to_vec(), u64::from(self.next_lane).to_be_bytes().to_vec());
        let record = LaneRecord {
            function: function.clone(),
            counts: [Count::default(); 4],
            paused: false,
            spent: Spent::default(),
            proven: false,
        };
        self.by_name.insert(function.clone(), id);
        self.lanes.insert(id, Lane::new(record, self.clock.now()));
        self.note_crowd();
        id
    }

    /// Makes everything since the last commit durable. Returns whether there was anything. After an error the engine must
    /// not be used again.
    pub fn commit(&mut self) -> Result<bool, Failed> {
        for id in std::mem::take(&mut self.dirty) {
            if let Some(lane) = self.lanes.get(&id) {
                self.batch.put(keys::lane(id), lane.record().encode());
            }
        }
        if self.batch.is_empty() {
            return Ok(false);
        }
        let now = self.clock.now();
        // Also after it was set back, or the next start would detect a step.
        if now < self.clock_stored || now.0 >= self.clock_stored.0 + CLOCK_EVERY_MS {
            self.note_time(now);
        }
        let batch = std::mem::take(&mut self.batch);
        self.uncommitted = 0;
        self.kv.commit(&batch)?;
        for (key, _) in batch.writes().filter(|(_, value)| value.is_some()) {
            if let Some(lane) = keys::lane_placed(key).and_then(|lane| self.lanes.get_mut(&lane)) {
                lane.floors.put(key);
            }
        }
        Ok(true)
    }

    /// Adds the current time, and new steps of the clock, to the batch.
    fn note_time(&mut self, now: UnixMillis) {
        self.batch.put(keys::META_CLOCK.to_vec(), now.0.to_be_bytes().to_vec());
        self.clock_stored = now;
        let steps = self.clock.steps();
        if steps != self.steps_stored {
            self.batch.put(keys::META_STEPS.to_vec(), steps.encode());
            self.steps_stored = steps;
        }
    }

    /// Does a piece of the store's maintenance. Returns whether there is more.
    pub fn tend(&mut self) -> Result<bool, Failed> {
        self.kv.tend(self.totals.bytes)
    }

    /// Records that a lane's counts changed, and therefore its view.
    fn touch(&mut self, id: LaneId) {
        self.dirty.insert(id);
        self.touch_view(id);
    }

    /// Records that a lane's view changed, but nothing stored.
    fn touch_view(&mut self, id: LaneId) {
        self.version += 1;
        if let Some(lane) = self.lanes.get_mut(&id) {
            self.changes.remove(&lane.version);
            lane.version = self.version;
            self.changes.insert(self.version, id);
            if lane.tell_buried() {
                self.buried_version = self.version;
            }
        }
        self.note_idle(id);
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// The version of the last change of Buried events or their leases.
    pub fn buried_version(&self) -> u64 {
        self.buried_version
    }

    pub fn disk(&self) -> Disk {
        self.kv.disk()
    }

    /// Lets the store handle its background events. The batch must be empty.
    pub fn catch_up(&mut self) -> Result<(), Failed> {
        self.kv.catch_up()
    }

    /// Unreadable events found since the start that are still stored.
    pub fn unreadable(&self) -> u64 {
        self.unreadable.len() as u64
    }

    /// The lanes that changed after `since`.
    pub fn lanes(&mut self, since: u64) -> Result<LaneNews, Failed> {
        if since == 0 {
            self.feed();
        }
        let mut lanes = Vec::new();
        for &id in self.changes.range(since + 1..).map(|(_, id)| id) {
            if let Some(lane) = self.lanes.get(&id) {
                lanes.push(lane.view(id, &self.kv)?);
            }
        }
        let retired = self.retired.range(since + 1..).map(|(_, &id)| id).collect();
        Ok(LaneNews { version: self.version, lanes, crowded: self.crowd.is_near(), retired })
    }

    /// The lane of one function.
    pub fn lane(&self, function: &FunctionName) -> Result<Option<LaneView>, Failed> {
        let known = self.by_name.get(function).and_then(|id| Some((*id, self.lanes.get(id)?)));
        known.map(|(id, lane)| lane.view(id, &self.kv)).transpose()
    }

    pub fn census(&self) -> Result<Census, Failed> {
        let mut lanes = BTreeMap::new();
        for (&id, lane) in &self.lanes {
            let by_place = Place::ALL.into_iter().map(|place| (place, lane.count(place))).collect();
            let oldest_ready = lane.oldest(id, &self.kv)?;
            let counted = LaneCensus { by_place, leased: lane.leased_count(), oldest_ready };
            lanes.insert(lane.function().clone(), counted);
        }
        let disk = self.kv.disk();
        Ok(Census {
            lanes,
            keys: self.keys,
            bytes: self.totals.bytes,
            events: self.totals.events,
            disk_bytes: disk.used,
            disk_free_bytes: disk.free.unwrap_or(u64::MAX),
        })
    }
}

impl Count {
    pub(super) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, other: Self) {
        self.events = self.events.saturating_sub(other.events);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// The bytes that a record counts towards `bytes_max`.
pub(super) fn account(record_bytes: usize, body_bytes: u32) -> u64 {
    let chunked = if super::record::chunk_count(body_bytes) == 0 { 0 } else { u64::from(body_bytes) };
    record_bytes as u64 + chunked + KEYS_BYTES
}

fn unreadable(doing: &'static str, why: &Unreadable) -> Failed {
    Failed::of_value(doing, why)
}

fn read_number(kv: &impl Kv, key: &[u8]) -> Result<Option<u64>, Failed> {
    let Some(bytes) = kv.get(key)? else { return Ok(None) };
    let number = bytes[..].try_into().map(u64::from_be_bytes);
    number.map(Some).map_err(|_| Failed::new("reading a number", "not 8 bytes"))
}

/// The id just before `id`.
fn before(id: EventId) -> EventId {
    EventId::from_bytes(u128::from_be_bytes(*id.as_bytes()).saturating_sub(1).to_be_bytes())
}
