//! Who may go now. Pure: from what the outbox said of its lanes, and what attempts brought, to what to lease.
//!
//! Every lane that could do something stands on its account's agenda at the time when it could. A lane that is served goes
//! back to the end of those that are due, so a lane with a million events does not delay one with three; a lane whose own
//! slots are all taken is off the agenda until one is free, and no lane takes the last of the slots that all share.
//! Burying what is past its time needs no slot: for that there is an agenda of its own, which no hold stops.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::limiter::Limiter;
use super::rate::{Rate, SpendGuard};
use super::status::{Held, LaneStatus};
use super::verdict::{Outcome, Pause, PauseKind, Scope};
use super::{Mode, Policy, Settings};
use crate::clock::{Steps, UnixMillis};
use crate::event::FunctionName;
use crate::outbox::{LaneId, LaneNews, LaneView, LaneWant, Which};
use hold::{Ended, Hold};

mod hold;

mod step;

/// Events that a lane may take before the next lane's turn.
const QUANTUM: u32 = 64;

/// A lane takes no further slot once it has so many times the slots that are left: of those that want all they can get,
/// each ends with an equal part, and a little is always left for whoever comes next, however long attempts take.
const SHARE: u32 = 8;

/// Events past their age that are taken at once; they need no slot.
const EXPIRED_MAX: usize = 64;

/// How often a lane is searched for events past their age, at most.
const EXPIRY_EVERY: Duration = Duration::from_secs(1);

/// When a lane is asked again that had nothing after all.
const IDLE: Duration = Duration::from_millis(100);

/// A full reading of the outbox makes up for whatever news was lost.
pub const FULL_READING_EVERY: Duration = Duration::from_secs(60);

/// All lanes, and what binds them together.
pub struct Lanes {
    settings: Settings,
    lanes: BTreeMap<LaneId, Lane>,
    /// By region; the empty one is the daemon's own.
    accounts: BTreeMap<String, Account>,
    /// When each lane may hold events that are past their time.
    expiry: BTreeSet<(UnixMillis, LaneId)>,
    turn: u64,
    holds: u64,
    /// The lanes that the present plan took off the agenda.
    planned: Vec<LaneId>,
    /// The lanes that have their share of the slots already.
    parked: BTreeSet<LaneId>,
    in_flight: u32,
    bytes_in_flight: u64,
    rate: Option<Rate>,
    /// By which ages are counted.
    steps: Steps,
    /// What came with a new lane or the end of one, and people have not heard of.
    noticed: Vec<(FunctionName, Change)>,
}

/// What all functions of a region share.
struct Account {
    /// When each lane could do something; the number keeps those due at once in the order in which they came.
    agenda: BTreeSet<(UnixMillis, u64, LaneId)>,
    limiter: Limiter,
    in_flight: u32,
    /// As in [`Lane`].
    bound: bool,
    /// Slots that the present plan has given away.
    planned: u32,
    hold: Option<Hold>,
    lanes: u32,
}

struct Lane {
    view: LaneView,
    policy: Policy,
    limiter: Limiter,
    in_flight: u32,
    /// Whether the limit was reached when an attempt last began.
    bound: bool,
    hold: Option<Hold>,
    rate: Option<Rate>,
    spend: Option<SpendGuard>,
    /// The hour's ceiling is reached, and people have heard of it.
    spent: bool,
    /// Not to be searched for events past their age before.
    next_expiry: UnixMillis,
    /// Not to be asked before: it had nothing.
    idle_until: UnixMillis,
    /// Attempts that the present plan has brought.
    started: u32,
    on_agenda: Option<(UnixMillis, u64)>,
    expires: Option<UnixMillis>,
}

/// The right to one attempt: which holds it probes. [`Lanes::finished`] takes it back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticket {
    lane_hold: Option<u64>,
    account_hold: Option<u64>,
}

/// An attempt that ended.
#[derive(Debug)]
pub struct Finished<'a> {
    pub lane: LaneId,
    pub function: &'a FunctionName,
    pub ticket: Ticket,
    pub outcome: &'a Outcome,
    pub pause: Option<Pause>,
    pub payload_bytes: u64,
    pub began: Instant,
    pub ended: Instant,
}

/// What people should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Held { scope: Scope, kind: PauseKind, reason: String },
    Recovered { scope: Scope },
}

impl Lanes {
    pub fn new(settings: Settings) -> Self {
        Self {
            rate: Rate::per_second(settings.rate),
            steps: Steps::default(),
            settings,
            lanes: BTreeMap::new(),
            accounts: BTreeMap::new(),
            expiry: BTreeSet::new(),
            turn: 0,
            holds: 0,
            planned: Vec::new(),
            parked: BTreeSet::new(),
            in_flight: 0,
            bytes_in_flight: 0,
            noticed: Vec::new(),
        }
    }

    /// Takes in what the outbox says of the lanes that changed.
    pub fn learn(&mut self, news: LaneNews, now: UnixMillis) {
        for id in news.retired {
            self.retire(id);
        }
        for view in news.lanes {
            let id = view.lane;
            match self.lanes.get_mut(&id) {
                Some(lane) if lane.view == view => {}
                Some(lane) => (lane.view, lane.idle_until) = (view, UnixMillis(0)),
                None => {
                    let in_flight_max = self.settings.in_flight_max;
                    self.accounts
                        .entry(region(&view.function).to_owned())
                        .or_insert_with(|| Account::new(in_flight_max))
                        .lanes += 1;
                    let lane = Lane::new(view, &self.settings, now);
                    if lane.spent {
                        self.noticed.push((lane.view.function.clone(), lane.spent_change()));
                    }
                    self.lanes.insert(id, lane);
                }
            }
            self.reschedule(id, now);
        }
    }

    /// What people should hear of the lanes that are new, or no more.
    pub fn noticed(&mut self) -> Vec<(FunctionName, Change)> {
        std::mem::take(&mut self.noticed)
    }

    /// Takes in a reading of all lanes: one that is not in it is no more.
    pub fn learn_all(&mut self, mut news: LaneNews, now: UnixMillis) {
        let known: BTreeSet<_> = news.lanes.iter().map(|view| view.lane).collect();
        news.retired = self.lanes.keys().copied().filter(|id| !known.contains(id)).collect();
        self.learn(news, now);
    }

    /// Takes over other settings, for attempts that begin from now on. Rates and ceilings that changed count anew.
    pub fn reconfigure(&mut self, settings: Settings, now: UnixMillis) {
        self.rate = Rate::per_second(settings.rate);
        self.settings = settings;
        let in_flight_max = self.settings.in_flight_max;
        self.accounts.values_mut().for_each(|account| account.limiter.set_max(in_flight_max));
        let ids: Vec<_> = self.lanes.keys().copied().collect();
        for id in ids {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.policy = self.settings.policy(&lane.view.function).clone();
                lane.limiter.set_max(lane.policy.concurrency_max);
                lane.rate = Rate::per_second(lane.policy.rate);
                // The hour's count goes on under another ceiling.
                lane.spend = lane.spend.take().map_or_else(
                    || SpendGuard::per_hour(lane.policy.invocations_per_hour_max, lane.view.spent),
                    |spend| spend.with_max(lane.policy.invocations_per_hour_max),
                );
            }
            self.reschedule(id, now);
        }
    }

    /// When there will be something to lease; never, if only the end of an attempt can change anything.
    pub fn next_time(&self, now: UnixMillis) -> UnixMillis {
        let expiry = self.expiry.first().map_or(UnixMillis::MAX, |&(time, _)| time);
        if self.slots_left() == 0 {
            return expiry;
        }
        let work = self.accounts.values().map(Account::next_time).min().unwrap_or(UnixMillis::MAX);
        expiry.min(self.rate.as_ref().map_or(work, |rate| work.max(rate.next(now))))
    }

    /// Payload bytes that may still be taken into memory.
    pub fn bytes_left(&self) -> u64 {
        self.settings.in_flight_bytes_max.saturating_sub(self.bytes_in_flight)
    }

    /// What to lease now: each lane in its turn, as far as slots go. [`Lanes::planned`] must follow.
    pub fn plan(&mut self, now: UnixMillis) -> Vec<LaneWant> {
        let mut wants = Vec::new();
        let mut slots = self.slots_left();
        if let Some(rate) = &self.rate {
            slots = slots.min(rate.free(now));
        }
        while slots > 0 {
            let due = self.accounts.values().filter(|account| account.next_time() <= now);
            let Some((_, _, id)) = due.filter_map(|account| account.agenda.first().copied()).min() else { break };
            self.off_agenda(id);
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            let Some(account) = self.accounts.get_mut(region(&lane.view.function)) else { continue };
            let mut events = lane.free(now).min(lane.there(now)).min(slots).min(QUANTUM).min(account.free());
            if lane.hold.is_some() || account.hold.is_some() {
                events = events.min(1);
            }
            let share = (SHARE * slots).saturating_sub(lane.in_flight).div_ceil(SHARE + 1);
            if lane.work_time(now) <= now && share == 0 {
                self.parked.insert(id);
                continue;
            }
            self.planned.push(id);
            events = events.min(share);
            if events > 0 && lane.work_time(now) <= now {
                slots -= events;
                account.planned += events;
                let spent = lane.spend.as_mut().and_then(|spend| spend.reserve(events, now));
                wants.push(LaneWant { lane: id, which: Which::Due, events_max: events as usize, spent });
            }
        }
        wants
    }

    /// What to lease only to bury it: the lanes that may hold events past their time.
    pub fn expired(&mut self, now: UnixMillis) -> Vec<LaneWant> {
        let mut wants = Vec::new();
        while let Some(&(time, id)) = self.expiry.first().filter(|(time, _)| *time <= now) {
            self.expiry.remove(&(time, id));
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.expires = None;
            lane.next_expiry = now.plus(EXPIRY_EVERY);
            let cutoff = UnixMillis(self.steps.ago(lane.policy.age_max, now).0 + 1);
            wants.push(LaneWant {
                lane: id,
                which: Which::AcceptedBefore(cutoff),
                events_max: EXPIRED_MAX,
                spent: None,
            });
            self.schedule_expiry(id, now);
        }
        wants
    }

    /// Whether an attempt that was planned may still begin: not if the hour has turned, and a ceiling counts by the hour.
    pub fn may_begin(&self, id: LaneId, now: UnixMillis) -> bool {
        let spend = self.lanes.get(&id).and_then(|lane| lane.spend.as_ref());
        spend.is_none_or(|spend| spend.has_reserve(now))
    }

    /// What lanes have in reserve and will not use: to be noted by a lease that takes nothing.
    pub fn give_back(&mut self) -> Vec<LaneWant> {
        let unused = |(&lane, of): (&LaneId, &mut Lane)| {
            let spent = of.spend.as_mut().and_then(SpendGuard::give_back)?;
            Some(LaneWant { lane, which: Which::Due, events_max: 0, spent: Some(spent) })
        };
        self.lanes.iter_mut().filter_map(unused).collect()
    }

    /// An attempt of a leased event begins.
    pub fn started(&mut self, id: LaneId, payload_bytes: u64, now: UnixMillis) -> (Ticket, Vec<Change>) {
        self.in_flight += 1;
        self.bytes_in_flight += payload_bytes;
        if let Some(rate) = &mut self.rate {
            rate.take(now);
        }
        let Some(lane) = self.lanes.get_mut(&id) else { return Default::default() };
        lane.in_flight += 1;
        lane.bound = lane.in_flight >= lane.limiter.limit();
        lane.started += 1;
        if let Some(rate) = &mut lane.rate {
            rate.take(now);
        }
        let mut ticket = Ticket { lane_hold: lane.hold.as_mut().map(Hold::probe), account_hold: None };
        if let Some(account) = self.accounts.get_mut(region(&lane.view.function)) {
            account.in_flight += 1;
            account.bound = account.in_flight >= account.limiter.limit();
            ticket.account_hold = account.hold.as_mut().map(Hold::probe);
        }
        (ticket, lane.spend(now))
    }

    /// The leases of a plan have been asked for, and the attempts begun.
    pub fn planned(&mut self, now: UnixMillis) {
        self.accounts.values_mut().for_each(|account| account.planned = 0);
        for id in std::mem::take(&mut self.planned) {
            if let Some(lane) = self.lanes.get_mut(&id)
                && std::mem::take(&mut lane.started) == 0
            {
                lane.idle_until = now.plus(IDLE);
            }
            self.reschedule(id, now);
        }
    }

    /// An attempt ended; says what people should hear of.
    pub fn finished(&mut self, finished: Finished<'_>, now: UnixMillis) -> Vec<Change> {
        let Finished { lane: id, function, ticket, outcome, pause, payload_bytes, began, ended } = finished;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.bytes_in_flight = self.bytes_in_flight.saturating_sub(payload_bytes);
        self.holds += 1;
        let number = self.holds;
        let (for_lane, for_account) = match pause {
            Some(pause) if pause.scope == Scope::Account => (None, Some(pause)),
            pause => (pause, None),
        };
        let base = self.settings.policy(function).backoff_base;
        let mut changes = Vec::new();
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.learn(outcome, began, ended);
            let ended = Ended { probe: ticket.lane_hold, base, now, number };
            let change = Hold::judge(&mut lane.hold, for_lane, Scope::Lane, ended);
            if let Some(Change::Recovered { .. }) = change {
                lane.limiter.restart();
            }
            changes.extend(change);
        }
        if let Some(account) = self.accounts.get_mut(region(function)) {
            account.learn(outcome, began, ended);
            let ended = Ended { probe: ticket.account_hold, base, now, number };
            let change = Hold::judge(&mut account.hold, for_account, Scope::Account, ended);
            if let Some(Change::Recovered { .. }) = change {
                account.limiter.restart();
            }
            changes.extend(change);
        }
        for id in std::mem::take(&mut self.parked) {
            self.reschedule(id, now);
        }
        self.reschedule(id, now);
        changes
    }

    /// Attempts in flight of one lane.
    pub fn in_flight(&self, id: LaneId) -> u32 {
        self.lanes.get(&id).map_or(0, |lane| lane.in_flight)
    }

    /// Attempts of one lane that may be in flight.
    pub fn limit(&self, id: LaneId) -> u32 {
        self.lanes.get(&id).map_or(0, |lane| lane.limiter.limit())
    }

    /// The lanes of which a change tells, and whether each is held: one, or all of an account.
    pub fn told_of(&self, function: &FunctionName, change: &Change) -> Vec<(&FunctionName, bool)> {
        let (Change::Held { scope, .. } | Change::Recovered { scope }) = change;
        let region_of_it = region(function);
        let account_held = self.accounts.get(region_of_it).is_some_and(|account| account.hold.is_some());
        let lanes =
            self.lanes.values().map(|lane| (&lane.view.function, account_held || lane.hold.is_some() || lane.spent));
        match scope {
            Scope::Lane => lanes.filter(|(name, _)| *name == function).collect(),
            Scope::Account => lanes.filter(|(name, _)| region(name) == region_of_it).collect(),
        }
    }

    pub fn policy(&self, function: &FunctionName) -> &Policy {
        self.settings.policy(function)
    }

    /// What the operator sees of each lane.
    pub fn status(&self, now: UnixMillis) -> BTreeMap<FunctionName, LaneStatus> {
        let status = |lane: &Lane| {
            let account = self.accounts.get(region(&lane.view.function));
            let held = |scope, hold: &Hold| Held {
                scope,
                kind: hold.pause.kind,
                reason: hold.pause.reason.clone(),
                until: hold.pause.until,
            };
            let spent = lane.spend.as_ref().filter(|spend| spend.free(now) == 0).map(|spend| Held {
                scope: Scope::Lane,
                kind: PauseKind::Spent,
                reason: lane.spent_reason(),
                until: spend.next(now),
            });
            let of_account = account.and_then(|account| account.hold.as_ref());
            LaneStatus {
                in_flight: lane.in_flight,
                limit: lane.limiter.limit(),
                account_limit: account.map_or(0, |account| account.limiter.limit()),
                held: of_account
                    .map(|hold| held(Scope::Account, hold))
                    .or(lane.hold.as_ref().map(|hold| held(Scope::Lane, hold)))
                    .or(spent),
            }
        };
        self.lanes.values().map(|lane| (lane.view.function.clone(), status(lane))).collect()
    }

    fn slots_left(&self) -> u32 {
        if self.bytes_left() == 0 { 0 } else { self.settings.in_flight_max.saturating_sub(self.in_flight) }
    }

    fn retire(&mut self, id: LaneId) {
        self.off_agenda(id);
        let Some(lane) = self.lanes.remove(&id) else { return };
        if lane.hold.is_some() || lane.spent {
            self.noticed.push((lane.view.function.clone(), Change::Recovered { scope: Scope::Lane }));
        }
        if let Some(time) = lane.expires {
            self.expiry.remove(&(time, id));
        }
        let region = region(&lane.view.function);
        if let Some(account) = self.accounts.get_mut(region) {
            account.lanes -= 1;
            if account.lanes == 0 && account.in_flight == 0 {
                self.accounts.remove(region);
            }
        }
    }

    fn off_agenda(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        if let Some((time, turn)) = lane.on_agenda.take()
            && let Some(account) = self.accounts.get_mut(region(&lane.view.function))
        {
            account.agenda.remove(&(time, turn, id));
        }
    }

    /// Puts a lane where it belongs on the agendas. One that is due already keeps its turn.
    fn reschedule(&mut self, id: LaneId, now: UnixMillis) {
        self.schedule_expiry(id, now);
        let Some(lane) = self.lanes.get(&id) else { return };
        let time = lane.work_time(now);
        if lane.on_agenda.is_some_and(|(present, _)| present <= now && time <= now) {
            return;
        }
        self.off_agenda(id);
        let Some(lane) = self.lanes.get_mut(&id).filter(|_| time < UnixMillis::MAX) else { return };
        if let Some(account) = self.accounts.get_mut(region(&lane.view.function)) {
            self.turn += 1;
            account.agenda.insert((time.max(now), self.turn, id));
            lane.on_agenda = Some((time.max(now), self.turn));
        }
    }

    fn schedule_expiry(&mut self, id: LaneId, now: UnixMillis) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let time = lane.expiry_time(&self.steps, now).max(now);
        if lane.expires == Some(time) {
            return;
        }
        if let Some(present) = lane.expires.take() {
            self.expiry.remove(&(present, id));
        }
        if time < UnixMillis::MAX {
            lane.expires = Some(time);
            self.expiry.insert((time, id));
        }
    }
}

impl Account {
    fn new(in_flight_max: u32) -> Self {
        Self {
            agenda: BTreeSet::new(),
            limiter: Limiter::open(in_flight_max),
            in_flight: 0,
            bound: false,
            planned: 0,
            hold: None,
            lanes: 0,
        }
    }

    fn free(&self) -> u32 {
        self.limiter.limit().saturating_sub(self.in_flight + self.planned)
    }

    /// When one of its lanes may go.
    fn next_time(&self) -> UnixMillis {
        let Some(&(time, ..)) = self.agenda.first() else { return UnixMillis::MAX };
        match &self.hold {
            _ if self.free() == 0 => UnixMillis::MAX,
            Some(_) if self.planned > 0 => UnixMillis::MAX,
            Some(hold) => time.max(hold.ends()),
            None => time,
        }
    }

    fn learn(&mut self, outcome: &Outcome, began: Instant, ended: Instant) {
        match outcome {
            Outcome::Delivered | Outcome::FunctionFailed | Outcome::Refused => {
                self.limiter.succeeded(self.bound, None, began);
            }
            Outcome::Throttled { scope: Scope::Account, .. } => self.limiter.throttled(began, ended),
            Outcome::Throttled { scope: Scope::Lane, .. }
            | Outcome::Lost
            | Outcome::Transient
            | Outcome::Foreign
            | Outcome::NotSent
            | Outcome::Operator { .. } => {}
        }
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

impl Lane {
    fn new(view: LaneView, settings: &Settings, now: UnixMillis) -> Self {
        let policy = settings.policy(&view.function).clone();
        let spend = SpendGuard::per_hour(policy.invocations_per_hour_max, view.spent);
        let limiter = match policy.mode {
            Mode::Event => Limiter::new(policy.concurrency_max),
            Mode::Confirm { .. } => Limiter::patient(policy.concurrency_max),
        };
        Self {
            limiter,
            rate: Rate::per_second(policy.rate),
            spent: spend.as_ref().is_some_and(|spend| spend.free(now) == 0),
            spend,
            policy,
            view,
            in_flight: 0,
            bound: false,
            hold: None,
            next_expiry: UnixMillis(0),
            idle_until: UnixMillis(0),
            started: 0,
            on_agenda: None,
            expires: None,
        }
    }

    /// Events that may be there to attempt.
    fn there(&self, now: UnixMillis) -> u32 {
        match self.view.next_due {
            Some(due) if due <= now => u32::MAX,
            Some(_) | None => u32::try_from(self.view.ready).unwrap_or(u32::MAX),
        }
    }

    /// Attempts that may begin now, as far as this lane goes.
    fn free(&self, now: UnixMillis) -> u32 {
        let slots = self.limiter.limit().saturating_sub(self.in_flight);
        let rate = self.rate.as_ref().map_or(u32::MAX, |rate| rate.free(now));
        let spend = self.spend.as_ref().map_or(u32::MAX, |spend| spend.free(now));
        slots.min(rate).min(spend)
    }

    /// When an event could be attempted, as far as is known now and this lane goes.
    fn work_time(&self, now: UnixMillis) -> UnixMillis {
        if self.view.paused || self.in_flight >= self.limiter.limit() {
            return UnixMillis::MAX;
        }
        let ready = if self.view.ready > 0 { now } else { self.view.next_due.unwrap_or(UnixMillis::MAX) };
        let hold = self.hold.as_ref().map_or(now, Hold::ends);
        let rate = self.rate.as_ref().map_or(now, |rate| rate.next(now));
        let spend = self.spend.as_ref().map_or(now, |spend| spend.next(now));
        ready.max(hold).max(rate).max(spend).max(self.idle_until)
    }

    /// When an event may be past its time.
    fn expiry_time(&self, steps: &Steps, now: UnixMillis) -> UnixMillis {
        // What is due later was not due before.
        let next_due = self.view.next_due.map(|due| if due > now { due } else { steps.present(due, now) });
        let oldest = self.view.oldest.map(|oldest| steps.present(oldest, now));
        let by_age = [oldest, next_due].into_iter().flatten().min();
        let by_age = by_age.map(|oldest| oldest.plus(self.policy.age_max));
        let first = [by_age, self.view.next_expiry].into_iter().flatten().min();
        first.map_or(UnixMillis::MAX, |first| first.max(self.next_expiry))
    }

    /// One attempt more in this hour.
    fn spend(&mut self, now: UnixMillis) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(spend) = &mut self.spend else { return changes };
        let last = spend.take(now);
        if std::mem::take(&mut self.spent) {
            changes.push(Change::Recovered { scope: Scope::Lane });
        }
        if last {
            self.spent = true;
            changes.push(self.spent_change());
        }
        changes
    }

    fn spent_change(&self) -> Change {
        Change::Held { scope: Scope::Lane, kind: PauseKind::Spent, reason: self.spent_reason() }
    }

    fn spent_reason(&self) -> String {
        let max = self.policy.invocations_per_hour_max;
        format!("all {max} invocations of this hour are used (invocations_per_hour_max)")
    }

    fn learn(&mut self, outcome: &Outcome, began: Instant, ended: Instant) {
        // How long a confirmed call takes depends on its event.
        let latency = match self.policy.mode {
            Mode::Event => Some(ended.duration_since(began)),
            Mode::Confirm { .. } => None,
        };
        match outcome {
            Outcome::Delivered | Outcome::FunctionFailed | Outcome::Refused => {
                self.limiter.succeeded(self.bound, latency, began);
            }
            Outcome::Throttled { scope: Scope::Lane, .. } | Outcome::Lost => self.limiter.throttled(began, ended),
            Outcome::Throttled { scope: Scope::Account, .. }
            | Outcome::Transient
            | Outcome::Foreign
            | Outcome::NotSent
            | Outcome::Operator { .. } => {}
        }
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

fn region(function: &FunctionName) -> &str {
    function.region().unwrap_or_default()
}

#[cfg(test)]
mod tests;
