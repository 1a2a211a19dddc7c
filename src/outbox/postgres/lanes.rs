//! What the owner of lanes knows of them: counts, leases and cursors, never the backlog. Pure: plain data in, plain data out.
//!
//! Holds: all Ready events of a lane up to its cursor are leased. So a reading that begins after the cursor misses nothing.
//! A count is what the database had at the last reading, and all that was told or settled since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};

use super::base::{Arrival, LaneRow, Peek, Position, Remembered, Unknown};
use super::overview::Line;
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName};
use crate::outbox::idle::{Crowd, Key};
use crate::outbox::{Count, LaneId, LaneView, Lease, Place, Spent};

mod idle;

/// The next number of a lane. It outlives an outbox that is closed and opened again, so that no number means two lanes.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// What is needed to settle a leased event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub place: Place,
    pub due: Option<UnixMillis>,
    pub expires_at: Option<UnixMillis>,
    pub bytes: u64,
    pub key: Option<Remembered>,
    /// Its settlement is on the way.
    pub settling: bool,
    /// A settlement of it was not answered. The database may have carried it out, and a reading may have counted that.
    pub doubtful: bool,
}

/// A time of a lane's view, if it is known.
#[derive(Debug, Clone, Copy)]
enum Known {
    Yes(Option<UnixMillis>),
    /// It must be asked for. `at` rises with each change that an answer under way cannot have seen. `met` came in meanwhile,
    /// perhaps after that answer was read.
    No {
        at: u64,
        met: Option<UnixMillis>,
    },
}

impl Known {
    fn unknown(change: u64) -> Self {
        Self::No { at: change, met: None }
    }

    /// Something with this time came in.
    fn meets(&mut self, time: Option<UnixMillis>) {
        let (Self::Yes(known) | Self::No { met: known, .. }) = self;
        if let Some(time) = time {
            *known = Some(known.map_or(time, |known| known.min(time)));
        }
    }

    /// Something with this time went away.
    fn loses(&mut self, time: Option<UnixMillis>, change: u64) {
        match self {
            Self::Yes(Some(known)) if time.is_none_or(|time| time <= *known) => *self = Self::unknown(change),
            Self::Yes(_) => {}
            Self::No { .. } => *self = Self::unknown(change),
        }
    }

    fn time(self) -> Option<UnixMillis> {
        match self {
            Self::Yes(time) => time,
            Self::No { .. } => None,
        }
    }

    fn is_unknown(self) -> bool {
        matches!(self, Self::No { .. })
    }

    /// Takes an answer to a question of `asked_at`, unless something has changed since.
    fn answer(&mut self, time: Option<UnixMillis>, asked_at: u64) {
        match *self {
            Self::No { at, met } if at <= asked_at => *self = Self::Yes(time.into_iter().chain(met).min()),
            Self::No { .. } | Self::Yes(_) => {}
        }
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) id: i64,
    pub(super) function: FunctionName,
    counts: [Count; 4],
    pub(super) paused: bool,
    proven: bool,
    spent: Spent,
    leased: BTreeMap<EventId, Held>,
    leased_by_place: [u64; 4],
    after: Option<EventId>,
    next_due: Known,
    next_ship: Known,
    next_expiry: Known,
    oldest: Known,
    buried_told: (u64, u64),
    /// Since when it has been empty.
    empty_since: Option<UnixMillis>,
    /// Its key among the idle lanes.
    idle: Option<Key>,
    /// What the reading of its counts has seen.
    seen: Position,
    version: u64,
}

impl Lane {
    fn count(&self, place: Place) -> Count {
        self.counts[place as usize]
    }

    fn free(&self, place: Place) -> u64 {
        self.count(place).events.saturating_sub(self.leased_by_place[place as usize])
    }

    fn delayed(&self) -> u64 {
        self.count(Place::Waiting).events + self.count(Place::Scheduled).events
    }

    fn unknown(&self) -> Unknown {
        let aging = self.count(Place::Ready).events + self.count(Place::Waiting).events;
        Unknown {
            due: self.delayed() > 0 && self.next_due.is_unknown(),
            ship: self.count(Place::Buried).events > 0 && self.next_ship.is_unknown(),
            expiry: self.delayed() + self.count(Place::Ready).events > 0 && self.next_expiry.is_unknown(),
            oldest: aging > 0 && self.oldest.is_unknown(),
        }
    }

    fn rewind(&mut self, id: EventId) {
        if self.after.is_some_and(|after| id <= after) {
            self.after = before(id);
        }
    }
}

/// The id just before.
fn before(id: EventId) -> Option<EventId> {
    let before = u128::from_be_bytes(*id.as_bytes()).checked_sub(1)?;
    Some(EventId::from_bytes(before.to_be_bytes()))
}

/// All own lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<LaneId, Lane>,
    by_name: BTreeMap<FunctionName, LaneId>,
    by_number: BTreeMap<i64, LaneId>,
    totals: Count,
    version: u64,
    buried_version: u64,
    changes: BTreeMap<u64, LaneId>,
    retired: BTreeMap<u64, LaneId>,
    idle: BTreeSet<Key>,
    proven: u64,
    crowd: Crowd,
    functions_max: u64,
    /// Rises with every change of what a lane holds.
    change: u64,
    /// Lanes whose counts may differ from the database: they must be read anew.
    doubted: BTreeSet<i64>,
}

impl Lanes {
    pub(super) fn new(functions_max: u64) -> Self {
        Self { functions_max, ..Self::default() }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn buried_version(&self) -> u64 {
        self.buried_version
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn totals(&self) -> Count {
        self.totals
    }

    pub(super) fn crowded(&self) -> bool {
        self.crowd.is_near()
    }

    pub(super) fn change(&self) -> u64 {
        self.change
    }

    pub(super) fn id_of(&self, function: &FunctionName) -> Option<LaneId> {
        self.by_name.get(function).copied()
    }

    pub(super) fn of_number(&self, number: i64) -> Option<LaneId> {
        self.by_number.get(&number).copied()
    }

    pub(super) fn get(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.get(&id)
    }

    /// The names of all lanes with their numbers, in order.
    pub(super) fn names(&self) -> Vec<(i64, FunctionName)> {
        let number = |id: &LaneId| self.lanes.get(id).map(|lane| lane.id);
        self.by_name.iter().filter_map(|(name, id)| Some((number(id)?, name.clone()))).collect()
    }

    /// Takes over what a reading has counted. Leases stay: what is in flight is in flight whatever the database says.
    pub(super) fn read(&mut self, row: LaneRow, now: UnixMillis) {
        if row.retired {
            return;
        }
        let known = self.by_number.get(&row.id).copied();
        let id = known.unwrap_or_else(|| LaneId(NEXT.fetch_add(1, Ordering::Relaxed)));
        let old = self.lanes.remove(&id);
        if let Some(old) = &old {
            self.changes.remove(&old.version);
            old.idle.map(|key| self.idle.remove(&key));
            self.proven -= u64::from(old.proven);
            old.counts.iter().for_each(|count| subtract(&mut self.totals, *count));
        }
        row.counts.iter().for_each(|count| add(&mut self.totals, *count));
        self.proven += u64::from(row.proven);
        let empty = row.counts.iter().all(|count| count.events == 0);
        self.change += 1;
        let (leased, leased_by_place) = old.map(|old| (old.leased, old.leased_by_place)).unwrap_or_default();
        // The reading knows nothing of leases. Without any, its times are ours.
        let known = |time| if leased.is_empty() { Known::Yes(time) } else { Known::unknown(self.change) };
        let lane = Lane {
            id: row.id,
            function: row.function.clone(),
            counts: row.counts,
            paused: row.paused,
            proven: row.proven,
            spent: row.spent,
            leased_by_place,
            after: None,
            next_due: known(row.next_due),
            next_ship: known(row.next_ship),
            next_expiry: known(row.next_expiry),
            oldest: match row.counts[Place::Scheduled as usize].events {
                0 => Known::Yes(row.first.map(|first| first.accepted_at())),
                _ => Known::unknown(self.change),
            },
            buried_told: (0, 0),
            empty_since: empty.then_some(now),
            idle: None,
            seen: row.seen,
            version: 0,
            leased,
        };
        self.by_name.insert(row.function, id);
        self.by_number.insert(row.id, id);
        self.lanes.insert(id, lane);
        self.touch(id);
        self.note_crowd();
    }

    /// Counts what a transaction has stored. Returns false if the lane is not known here.
    pub(super) fn arrived(&mut self, arrival: &Arrival) -> bool {
        let Some(&id) = self.by_number.get(&arrival.lane) else { return false };
        let Some(lane) = self.lanes.get_mut(&id) else { return false };
        if lane.seen.sees(arrival.xid) {
            return true;
        }
        if arrival.ready.events + arrival.scheduled.events == 0 {
            // Events of another store that wait, or are dead letters.
            self.doubted.insert(arrival.lane);
            return true;
        }
        add(&mut lane.counts[Place::Ready as usize], arrival.ready);
        add(&mut lane.counts[Place::Scheduled as usize], arrival.scheduled);
        add(&mut self.totals, arrival.ready);
        add(&mut self.totals, arrival.scheduled);
        lane.empty_since = None;
        lane.next_due.meets(arrival.due);
        lane.next_expiry.meets(arrival.expiry);
        self.change += 1;
        let aging = lane.count(Place::Ready).events + lane.count(Place::Waiting).events;
        match lane.oldest.time() {
            Some(oldest) if oldest <= arrival.first.accepted_at() => {}
            _ if aging == arrival.ready.events && arrival.scheduled.events == 0 => {
                lane.oldest = Known::Yes(Some(arrival.first.accepted_at()));
            }
            _ => lane.oldest = Known::unknown(self.change),
        }
        lane.rewind(arrival.first);
        self.touch(id);
        true
    }

    /// Counts an event that this process has stored in a place of its own choice: an imported or a revived one.
    pub(super) fn added(&mut self, id: LaneId, place: Place, event: EventId, bytes: u64, due: Option<UnixMillis>) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let count = Count { events: 1, bytes };
        add(&mut lane.counts[place as usize], count);
        add(&mut self.totals, count);
        lane.empty_since = None;
        self.change += 1;
        match place {
            Place::Ready => {
                lane.oldest.meets(Some(event.accepted_at()));
                if lane.count(Place::Ready).events + lane.count(Place::Waiting).events == 1 {
                    lane.oldest = Known::Yes(Some(event.accepted_at()));
                }
                lane.rewind(event);
            }
            Place::Waiting | Place::Scheduled => lane.next_due.meets(due),
            Place::Buried => {
                if lane.count(Place::Buried).events == 1 {
                    lane.next_ship = Known::Yes(due);
                }
                lane.next_ship.meets(due);
            }
        }
        self.touch(id);
    }

    fn gone(&mut self, id: LaneId, place: Place, event: EventId, bytes: u64, now: UnixMillis) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let count = Count { events: 1, bytes };
        subtract(&mut lane.counts[place as usize], count);
        subtract(&mut self.totals, count);
        if lane.counts.iter().all(|count| count.events == 0) {
            lane.empty_since = Some(now);
        }
        if place != Place::Scheduled {
            lane.oldest.loses(Some(event.accepted_at()), self.change);
        }
    }

    /// Leases an event. Returns false if it is leased already.
    pub(super) fn take(&mut self, id: LaneId, event: EventId, held: Held) -> bool {
        let Some(lane) = self.lanes.get_mut(&id) else { return false };
        if lane.leased.contains_key(&event) {
            return false;
        }
        self.change += 1;
        lane.leased_by_place[held.place as usize] += 1;
        match held.place {
            Place::Ready => {}
            Place::Waiting | Place::Scheduled => lane.next_due.loses(held.due, self.change),
            Place::Buried => lane.next_ship.loses(held.due, self.change),
        }
        if held.expires_at.is_some() {
            lane.next_expiry.loses(held.expires_at, self.change);
        }
        lane.leased.insert(event, held);
        self.touch(id);
        true
    }

    /// All Ready events up to `last` were read, and are leased or not Ready.
    pub(super) fn passed(&mut self, id: LaneId, last: Option<EventId>, after: Option<EventId>) {
        // Only if nothing was rewound meanwhile.
        if let (Some(lane), Some(last)) = (self.lanes.get_mut(&id), last)
            && lane.after == after
        {
            lane.after = Some(last);
        }
    }

    /// Marks a lease whose settlement is on the way. Returns `None` if it is not held, or is being settled already.
    pub(super) fn begin_settling(&mut self, lease: Lease) -> Option<(i64, Held)> {
        let lane = self.lanes.get_mut(&lease.lane)?;
        let held = lane.leased.get_mut(&lease.id).filter(|held| !held.settling)?;
        held.settling = true;
        Some((lane.id, *held))
    }

    /// The settlement was not answered. It may have been written.
    pub(super) fn not_settled(&mut self, lease: Lease) {
        if let Some(held) = self.lanes.get_mut(&lease.lane).and_then(|lane| lane.leased.get_mut(&lease.id)) {
            held.settling = false;
            held.doubtful = true;
        }
    }

    /// A change of a lane was not answered, and nobody repeats it.
    pub(super) fn doubt(&mut self, number: i64) {
        self.doubted.insert(number);
    }

    pub(super) fn doubted(&self) -> &BTreeSet<i64> {
        &self.doubted
    }

    /// These lanes were read anew.
    pub(super) fn counted(&mut self, numbers: &[i64]) {
        self.doubted.retain(|number| !numbers.contains(number));
    }

    fn give_back(&mut self, lease: Lease) -> Option<Held> {
        let lane = self.lanes.get_mut(&lease.lane)?;
        let held = lane.leased.remove(&lease.id)?;
        lane.leased_by_place[held.place as usize] -= 1;
        self.change += 1;
        // If a reading has counted the settlement already, it counts twice from here on.
        if held.doubtful {
            self.doubted.insert(lane.id);
        }
        Some(held)
    }

    /// The event is as it was before the lease.
    pub(super) fn release(&mut self, lease: Lease) {
        let Some(held) = self.give_back(lease) else { return };
        if let Some(lane) = self.lanes.get_mut(&lease.lane) {
            match held.place {
                Place::Ready => lane.rewind(lease.id),
                Place::Waiting | Place::Scheduled => lane.next_due.meets(held.due),
                Place::Buried => lane.next_ship.meets(held.due),
            }
            lane.next_expiry.meets(held.expires_at);
        }
        self.touch(lease.lane);
    }

    /// The event has left the store.
    pub(super) fn left(&mut self, lease: Lease, now: UnixMillis) {
        let Some(held) = self.give_back(lease) else { return };
        self.gone(lease.lane, held.place, lease.id, held.bytes, now);
        self.touch(lease.lane);
    }

    /// The event waits until `due` in `place`.
    pub(super) fn waits(&mut self, lease: Lease, place: Place, due: UnixMillis) {
        let Some(held) = self.give_back(lease) else { return };
        let change = self.change;
        if let Some(lane) = self.lanes.get_mut(&lease.lane) {
            let count = Count { events: 1, bytes: held.bytes };
            subtract(&mut lane.counts[held.place as usize], count);
            // Nothing else is there, so the time is known.
            let only = match place {
                Place::Ready => false,
                Place::Waiting | Place::Scheduled => lane.delayed() == 0,
                Place::Buried => lane.count(Place::Buried).events == 0,
            };
            add(&mut lane.counts[place as usize], count);
            let next = match place {
                Place::Ready => None,
                Place::Waiting | Place::Scheduled => Some(&mut lane.next_due),
                Place::Buried => Some(&mut lane.next_ship),
            };
            if let Some(next) = next {
                if only {
                    *next = Known::Yes(Some(due));
                }
                next.meets(Some(due));
            }
            if place == Place::Buried {
                if held.place != Place::Buried {
                    lane.oldest.loses(Some(lease.id.accepted_at()), change);
                }
            } else {
                lane.next_expiry.meets(held.expires_at);
            }
        }
        self.touch(lease.lane);
    }

    pub(super) fn is_proven(&self, id: LaneId) -> bool {
        self.lanes.get(&id).is_some_and(|lane| lane.proven)
    }

    /// Lambda has accepted an event of the lane.
    pub(super) fn prove(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        self.proven += u64::from(!std::mem::replace(&mut lane.proven, true));
    }

    pub(super) fn spend(&mut self, id: LaneId, spent: Spent) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.spent = spent;
        }
    }

    pub(super) fn pause(&mut self, id: LaneId, paused: bool) {
        if let Some(lane) = self.lanes.get_mut(&id).filter(|lane| lane.paused != paused) {
            lane.paused = paused;
            self.touch(id);
        }
    }

    /// Takes over which lanes are paused.
    pub(super) fn all_paused(&mut self, paused: &[i64]) {
        let differ = |(id, lane): (&LaneId, &Lane)| {
            let is = paused.contains(&lane.id);
            (lane.paused != is).then_some((*id, is))
        };
        let changed: Vec<_> = self.lanes.iter().filter_map(differ).collect();
        changed.into_iter().for_each(|(id, is)| self.pause(id, is));
    }

    /// Forgets a lane that is no longer ours.
    pub(super) fn lose(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.remove(&id) else { return };
        self.proven -= u64::from(lane.proven);
        lane.idle.map(|key| self.idle.remove(&key));
        lane.counts.iter().for_each(|count| subtract(&mut self.totals, *count));
        self.by_name.remove(&lane.function);
        self.by_number.remove(&lane.id);
        self.doubted.remove(&lane.id);
        self.changes.remove(&lane.version);
        self.version += 1;
        self.retired.insert(self.version, id);
        // Readers that missed it learn it from a full reading.
        if self.retired.len() as u64 > self.functions_max {
            self.retired.pop_first();
        }
        self.note_crowd();
    }

    pub(super) fn lose_all(&mut self) {
        let all: Vec<_> = self.lanes.keys().copied().collect();
        all.into_iter().for_each(|id| self.lose(id));
    }

    /// Lanes that changed after `since`, and those that are gone.
    pub(super) fn changed(&self, since: u64) -> (Vec<LaneId>, Vec<LaneId>) {
        let changed = self.changes.range(since + 1..).map(|(_, id)| *id).collect();
        (changed, self.retired.range(since + 1..).map(|(_, id)| *id).collect())
    }

    /// What must be asked for before these lanes can be shown, and what is in flight there.
    pub(super) fn unknown(&self, ids: &[LaneId]) -> (Vec<(i64, Unknown)>, Vec<EventId>) {
        let lanes = ids.iter().filter_map(|id| self.lanes.get(id)).filter(|lane| lane.unknown().any());
        let (mut asked, mut busy) = (Vec::new(), Vec::new());
        for lane in lanes {
            asked.push((lane.id, lane.unknown()));
            busy.extend(lane.leased.keys().copied());
        }
        (asked, busy)
    }

    /// Takes over the answers to a question of `asked_at`.
    pub(super) fn answered(&mut self, number: i64, asked: Unknown, peek: Peek, asked_at: u64) {
        let lane = self.by_number.get(&number).and_then(|id| self.lanes.get_mut(id));
        let Some(lane) = lane else { return };
        let answer = |wanted: bool, known: &mut Known, time| {
            if wanted {
                known.answer(time, asked_at);
            }
        };
        answer(asked.due, &mut lane.next_due, peek.due);
        answer(asked.ship, &mut lane.next_ship, peek.ship);
        answer(asked.expiry, &mut lane.next_expiry, peek.expiry);
        answer(asked.oldest, &mut lane.oldest, peek.oldest.map(|oldest| oldest.accepted_at()));
    }

    pub(super) fn view(&self, id: LaneId) -> Option<LaneView> {
        let lane = self.lanes.get(&id)?;
        let some = |is: bool, known: Known| if is { known.time() } else { None };
        let aging = lane.count(Place::Ready).events + lane.count(Place::Waiting).events;
        Some(LaneView {
            lane: id,
            function: lane.function.clone(),
            ready: lane.free(Place::Ready),
            next_due: some(lane.delayed() > 0, lane.next_due),
            oldest: some(aging > 0, lane.oldest),
            buried: lane.free(Place::Buried),
            next_ship: some(lane.count(Place::Buried).events > 0, lane.next_ship),
            next_expiry: some(lane.delayed() + lane.count(Place::Ready).events > 0, lane.next_expiry),
            paused: lane.paused,
            spent: lane.spent,
            proven: lane.proven,
        })
    }

    /// What is known of each lane.
    pub(super) fn lines(&self) -> Vec<Line> {
        let of = |lane: &Lane| Line {
            function: lane.function.clone(),
            counts: lane.counts,
            in_flight: lane.leased.len() as u64,
            oldest: lane.oldest.time(),
            paused: lane.paused,
        };
        self.lanes.values().map(of).collect()
    }

    /// Forgets all lanes in which nothing is in flight, and returns their numbers: another daemon may have them. Lanes with a
    /// spend guard stay until the end, when their unused reserve is written.
    pub(super) fn let_go(&mut self, now: UnixMillis) -> Vec<i64> {
        let is_free = |lane: &&Lane| lane.leased.is_empty() && !lane.spent.counts(now);
        let free: Vec<i64> = self.lanes.values().filter(is_free).map(|lane| lane.id).collect();
        free.iter()
            .filter_map(|number| self.of_number(*number))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|id| self.lose(id));
        free
    }

    /// All that is in flight in these lanes.
    pub(super) fn busy(&self, ids: impl Iterator<Item = LaneId>) -> Vec<EventId> {
        ids.filter_map(|id| self.lanes.get(&id)).flat_map(|lane| lane.leased.keys().copied()).collect()
    }

    pub(super) fn after(&self, id: LaneId) -> Option<EventId> {
        self.lanes.get(&id)?.after
    }

    pub(super) fn is_leased(&self, number: i64, event: EventId) -> bool {
        let lane = self.by_number.get(&number).and_then(|id| self.lanes.get(id));
        lane.is_some_and(|lane| lane.leased.contains_key(&event))
    }

    /// Records that a lane's view changed.
    fn touch(&mut self, id: LaneId) {
        self.version += 1;
        if let Some(lane) = self.lanes.get_mut(&id) {
            self.changes.remove(&lane.version);
            lane.version = self.version;
            self.changes.insert(self.version, id);
            let buried = (lane.count(Place::Buried).events, lane.leased_by_place[Place::Buried as usize]);
            if std::mem::replace(&mut lane.buried_told, buried) != buried {
                self.buried_version = self.version;
            }
        }
        self.note_idle(id);
    }
}

fn add(count: &mut Count, more: Count) {
    count.events += more.events;
    count.bytes += more.bytes;
}

fn subtract(count: &mut Count, less: Count) {
    count.events = count.events.saturating_sub(less.events);
    count.bytes = count.bytes.saturating_sub(less.bytes);
}

#[cfg(test)]
mod tests;
