//! Who may go now. Pure: from what the outbox said of its lanes, and what attempts brought, to what to lease.
//!
//! Every lane that could do something stands on the agenda at the time when it could. A lane that is served goes back to the
//! end of those that are due, so a lane with a million events does not delay one with three; a lane whose own slots are
//! all taken is off the agenda until one is free.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::limiter::Limiter;
use super::verdict::{HOLD_MAX, Outcome, Pause, PauseKind, Scope, UNREACHABLE_PAUSE_MAX};
use super::{Policy, Settings};
use crate::backoff;
use crate::clock::UnixMillis;
use crate::outbox::{LaneId, LaneNews, LaneView, LaneWant, Which};

/// Events that a lane may take before the next lane's turn.
const QUANTUM: u32 = 16;

/// Events past their age that are taken at once; they need no slot.
const EXPIRED_MAX: usize = 64;

/// How often a lane is searched for events past their age, at most.
const EXPIRY_EVERY: Duration = Duration::from_secs(1);

/// A full reading of the outbox makes up for whatever news was lost.
pub const FULL_READING_EVERY: Duration = Duration::from_secs(60);

/// All lanes, and what binds them together.
pub struct Lanes {
    settings: Settings,
    lanes: BTreeMap<LaneId, Lane>,
    /// When each lane could do something; the number keeps those due at once in the order in which they came.
    agenda: BTreeSet<(UnixMillis, u64, LaneId)>,
    turn: u64,
    /// The lanes that the present plan took off the agenda.
    planned: Vec<LaneId>,
    in_flight: u32,
    bytes_in_flight: u64,
    /// Pauses of all functions of a region (none: the daemon's own).
    accounts: BTreeMap<Option<String>, Hold>,
}

struct Lane {
    view: LaneView,
    policy: Policy,
    limiter: Limiter,
    in_flight: u32,
    hold: Option<Hold>,
    /// Not to be searched for events past their age before.
    next_expiry: UnixMillis,
    on_agenda: Option<(UnixMillis, u64)>,
}

/// A pause; after it one attempt goes alone, and its outcome decides.
struct Hold {
    pause: Pause,
    /// Attempts that began before this have no say.
    since: Instant,
    /// Failed probes in a row: what the pauses grow with.
    strikes: u32,
    probes: u32,
}

/// An attempt that ended.
#[derive(Debug)]
pub struct Finished<'a> {
    pub lane: LaneId,
    pub outcome: &'a Outcome,
    pub pause: Option<Pause>,
    pub payload_bytes: u64,
    pub began: Instant,
    pub ended: Instant,
}

/// What people should hear of.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    Held { scope: Scope, kind: PauseKind, reason: String },
    Recovered { scope: Scope },
}

impl Lanes {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            lanes: BTreeMap::new(),
            agenda: BTreeSet::new(),
            turn: 0,
            planned: Vec::new(),
            in_flight: 0,
            bytes_in_flight: 0,
            accounts: BTreeMap::new(),
        }
    }

    /// Takes in what the outbox says of the lanes that changed.
    pub fn learn(&mut self, news: LaneNews, now: UnixMillis) {
        for id in news.retired {
            self.off_agenda(id);
            self.lanes.remove(&id);
        }
        for view in news.lanes {
            let id = view.lane;
            match self.lanes.get_mut(&id) {
                Some(lane) => lane.view = view,
                None => drop(self.lanes.insert(id, Lane::new(view, &self.settings))),
            }
            self.reschedule(id, now);
        }
    }

    /// Takes in a reading of all lanes: one that is not in it is no more.
    pub fn learn_all(&mut self, mut news: LaneNews, now: UnixMillis) {
        let known: BTreeSet<_> = news.lanes.iter().map(|view| view.lane).collect();
        news.retired = self.lanes.keys().copied().filter(|id| !known.contains(id)).collect();
        self.learn(news, now);
    }

    /// Takes over other settings, for attempts that begin from now on.
    pub fn reconfigure(&mut self, settings: Settings, now: UnixMillis) {
        self.settings = settings;
        let ids: Vec<_> = self.lanes.keys().copied().collect();
        for id in ids {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.policy = self.settings.policy(&lane.view.function).clone();
                lane.limiter.set_max(lane.policy.concurrency_max);
            }
            self.reschedule(id, now);
        }
    }

    /// When there will be something to lease; never, if only the end of an attempt can change anything.
    pub fn next_time(&self) -> UnixMillis {
        match self.agenda.first() {
            Some(&(time, ..)) if self.slots_left() > 0 => time,
            _ => UnixMillis::MAX,
        }
    }

    /// Payload bytes that may still be taken into memory.
    pub fn bytes_left(&self) -> u64 {
        self.settings.in_flight_bytes_max.saturating_sub(self.bytes_in_flight)
    }

    /// What to lease now: each lane in its turn, as far as slots go. [`Lanes::planned`] must follow.
    pub fn plan(&mut self, now: UnixMillis) -> Vec<LaneWant> {
        let mut wants = Vec::new();
        let mut slots = self.slots_left();
        let mut probed = BTreeSet::new();
        while let Some(&(time, _, id)) = self.agenda.first() {
            if time > now || slots == 0 {
                break;
            }
            self.off_agenda(id);
            self.planned.push(id);
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            if lane.expiry_time() <= now {
                lane.next_expiry = now.plus(EXPIRY_EVERY);
                let cutoff = UnixMillis(now.0.saturating_sub(millis(lane.policy.age_max)) + 1);
                wants.push(LaneWant { lane: id, which: Which::AcceptedBefore(cutoff), events_max: EXPIRED_MAX });
            }
            let region = lane.view.function.region().map(str::to_owned);
            let account = self.accounts.get(&region);
            let mut events = lane.free_slots().min(slots).min(QUANTUM);
            if lane.work_time(account, now) > now || (account.is_some() && probed.contains(&region)) {
                events = 0;
            } else if lane.hold.is_some() || account.is_some() {
                events = events.min(1);
            }
            if events > 0 {
                if account.is_some() {
                    probed.insert(region);
                }
                slots -= events;
                wants.push(LaneWant { lane: id, which: Which::Due, events_max: events as usize });
            }
        }
        wants
    }

    /// An attempt of a leased event begins.
    pub fn started(&mut self, id: LaneId, payload_bytes: u64) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.in_flight += 1;
        self.in_flight += 1;
        self.bytes_in_flight += payload_bytes;
        if let Some(hold) = &mut lane.hold {
            hold.probes += 1;
        }
        if let Some(hold) = self.accounts.get_mut(&lane.region()) {
            hold.probes += 1;
        }
    }

    /// The leases of a plan have been asked for, and the attempts begun.
    pub fn planned(&mut self, now: UnixMillis) {
        for id in std::mem::take(&mut self.planned) {
            self.reschedule(id, now);
        }
    }

    /// An attempt ended; says what people should hear of.
    pub fn finished(&mut self, finished: Finished<'_>, now: UnixMillis) -> Vec<Change> {
        let Finished { lane: id, outcome, pause, payload_bytes, began, ended } = finished;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.bytes_in_flight = self.bytes_in_flight.saturating_sub(payload_bytes);
        let Some(lane) = self.lanes.get_mut(&id) else { return Vec::new() };
        match outcome {
            Outcome::Delivered | Outcome::Refused => lane.limiter.succeeded(lane.in_flight),
            Outcome::Throttled { .. } | Outcome::Lost => lane.limiter.throttled(began, ended),
            Outcome::Transient | Outcome::NotSent | Outcome::Operator { .. } => {}
        }
        lane.in_flight = lane.in_flight.saturating_sub(1);
        let base = lane.policy.backoff_base;
        let (for_lane, for_account) = match pause {
            Some(pause) if pause.scope == Scope::Account => (None, Some(pause)),
            pause => (pause, None),
        };
        let region = lane.region();
        let mut changes = Vec::new();
        changes.extend(Hold::judge(&mut lane.hold, for_lane, Scope::Lane, base, began, ended, now));
        let mut account = self.accounts.remove(&region);
        let was_held = account.is_some();
        let change = Hold::judge(&mut account, for_account, Scope::Account, base, began, ended, now);
        let is_held = account.is_some();
        if let Some(hold) = account {
            self.accounts.insert(region, hold);
        }
        changes.extend(change);
        if was_held || is_held {
            let ids: Vec<_> = self.lanes.keys().copied().collect();
            ids.into_iter().for_each(|id| self.reschedule(id, now));
        } else {
            self.reschedule(id, now);
        }
        changes
    }

    /// Attempts in flight of one lane.
    pub fn in_flight(&self, id: LaneId) -> u32 {
        self.lanes.get(&id).map_or(0, |lane| lane.in_flight)
    }

    pub fn policy(&self, id: LaneId) -> Option<&Policy> {
        self.lanes.get(&id).map(|lane| &lane.policy)
    }

    fn slots_left(&self) -> u32 {
        if self.bytes_left() == 0 { 0 } else { self.settings.in_flight_max.saturating_sub(self.in_flight) }
    }

    fn off_agenda(&mut self, id: LaneId) {
        if let Some((time, turn)) = self.lanes.get_mut(&id).and_then(|lane| lane.on_agenda.take()) {
            self.agenda.remove(&(time, turn, id));
        }
    }

    /// Puts a lane where it belongs on the agenda. One that is due already keeps its turn.
    fn reschedule(&mut self, id: LaneId, now: UnixMillis) {
        let Some(lane) = self.lanes.get(&id) else { return };
        let time = lane.work_time(self.accounts.get(&lane.region()), now).min(lane.expiry_time());
        if lane.on_agenda.is_some_and(|(present, _)| present <= now && time <= now) {
            return;
        }
        self.off_agenda(id);
        if time < UnixMillis::MAX {
            self.turn += 1;
            self.agenda.insert((time.max(now), self.turn, id));
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.on_agenda = Some((time.max(now), self.turn));
            }
        }
    }
}

impl Lane {
    fn new(view: LaneView, settings: &Settings) -> Self {
        let policy = settings.policy(&view.function).clone();
        Self {
            limiter: Limiter::new(policy.concurrency_max),
            policy,
            view,
            in_flight: 0,
            hold: None,
            next_expiry: UnixMillis(0),
            on_agenda: None,
        }
    }

    fn region(&self) -> Option<String> {
        self.view.function.region().map(str::to_owned)
    }

    fn free_slots(&self) -> u32 {
        self.limiter.limit().saturating_sub(self.in_flight)
    }

    /// When an event could be attempted, as far as is known now.
    fn work_time(&self, account: Option<&Hold>, now: UnixMillis) -> UnixMillis {
        let ready = if self.view.ready > 0 { now } else { self.view.next_due.unwrap_or(UnixMillis::MAX) };
        if self.free_slots() == 0 {
            return UnixMillis::MAX;
        }
        [self.hold.as_ref(), account].into_iter().flatten().fold(ready, |time, hold| time.max(hold.ends()))
    }

    /// When an event may be past its age.
    fn expiry_time(&self) -> UnixMillis {
        self.view.oldest.map_or(UnixMillis::MAX, |oldest| oldest.plus(self.policy.age_max).max(self.next_expiry))
    }
}

impl Hold {
    /// Not before its probe has come back, if one is under way.
    fn ends(&self) -> UnixMillis {
        if self.probes > 0 { UnixMillis::MAX } else { self.pause.until }
    }

    /// What the end of an attempt makes of a hold.
    fn judge(
        hold: &mut Option<Self>,
        pause: Option<Pause>,
        scope: Scope,
        base: Duration,
        began: Instant,
        ended: Instant,
        now: UnixMillis,
    ) -> Option<Change> {
        let probed = hold.as_ref().is_some_and(|hold| hold.since <= began);
        if let Some(hold) = hold.as_mut().filter(|_| probed) {
            hold.probes = hold.probes.saturating_sub(1);
        }
        match (hold.as_mut(), pause) {
            (None, None) => None,
            (None, Some(pause)) => {
                let (kind, reason) = (pause.kind, pause.reason.clone());
                *hold = Some(Self { pause, since: ended, strikes: 0, probes: 0 });
                Some(Change::Held { scope, kind, reason })
            }
            (Some(_), None) if probed => {
                *hold = None;
                Some(Change::Recovered { scope })
            }
            (Some(_), None) => None,
            (Some(hold), Some(pause)) => {
                if probed {
                    hold.strikes += 1;
                    hold.since = ended;
                }
                let grown = match pause.kind {
                    PauseKind::Throttled => Duration::ZERO,
                    PauseKind::Unreachable => backoff::ceiling(hold.strikes, base, UNREACHABLE_PAUSE_MAX),
                    PauseKind::Held => backoff::ceiling(hold.strikes, base, HOLD_MAX),
                };
                let until = pause.until.max(now.plus(grown)).max(hold.pause.until);
                hold.pause = Pause { until, ..pause };
                None
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
