//! Decides which lanes may attempt events now. Pure: from the news of the outbox and the results of attempts to what to
//! lease.
//!
//! Each account has an agenda: its lanes, each at the time when it could next attempt an event. A lane that was served
//! goes to the end of those that are due, so a lane with a million events does not delay one with three. A lane whose
//! own slots are all taken is off the agenda until one is free. No lane may take the last of the slots that all lanes
//! share. To bury an event takes no slot. It has an agenda of its own, which no hold stops.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::limiter::Limiter;
use super::rate::{Rate, SpendGuard};
use super::status::{Held, LaneStatus};
use super::verdict::{Blame, Hold, HoldKind, Outcome, Scope};
use super::{Policy, Settings};
use crate::clock::{Steps, UnixMillis};
use crate::event::{EventId, FunctionName};
use crate::outbox::{LaneId, LaneNews, LaneWant, Which};
use health::Doubt;
use hold::{ActiveHold, Ended};
use one::Lane;
use shared::{Account, Caller, account, region};

mod health;

mod hold;

mod one;

mod pulse;

mod shared;

mod step;

/// The most events a lane may take before the next lane's turn.
const QUANTUM: u32 = 64;

/// A lane takes no further slot once it has this many times the slots that are left. Lanes that want all they can get
/// then end with equal parts, and some slots stay free for a lane that comes later, however long attempts take.
const SHARE: u32 = 8;

/// As [`SHARE`], for payload bytes in flight.
const BYTES_SHARE: u64 = 8;

/// The most events past their age that one search takes from a lane. They need no slot.
const EXPIRED_MAX: usize = 64;

/// The most lanes searched in one round for events past their age.
const EXPIRED_LANES_MAX: usize = 64;

/// The most bytes of events past their age in memory. They do not count as in flight: burying must go on while attempts
/// use all of `in_flight_bytes_max`.
pub const EXPIRED_BYTES_MAX: u64 = 4 << 20;

/// How often a lane is searched for events past their age, while searches find none.
const EXPIRY_EVERY: Duration = Duration::from_secs(1);

/// How long to wait before asking a lane again that turned out to be empty.
const IDLE: Duration = Duration::from_millis(100);

/// How often dispatch reads all lanes, in case it missed news of one.
pub const FULL_READING_EVERY: Duration = Duration::from_secs(60);

/// All lanes, and the limits that they share.
pub struct Lanes {
    settings: Settings,
    lanes: BTreeMap<LaneId, Lane>,
    /// Accounts by `region/account`. The empty key is the daemon's own account.
    accounts: BTreeMap<String, Account>,
    /// Callers by region. The empty key is the daemon's own region.
    callers: BTreeMap<String, Caller>,
    /// When each lane may hold events past their age.
    expiry: BTreeSet<(UnixMillis, LaneId)>,
    turn: u64,
    holds: u64,
    /// The lanes that the current plan took off the agenda.
    planned: Vec<LaneId>,
    /// Lanes that have their share of the slots. They return to the agenda when an attempt ends.
    parked: BTreeSet<LaneId>,
    in_flight: u32,
    bytes_in_flight: u64,
    rate: Option<Rate>,
    /// The steps of the clock. An age is a span of time, so it must not count them.
    steps: Steps,
    /// Whether the outbox knows nearly as many functions as it may.
    crowded: bool,
    /// Changes that came with a new or removed lane and were not announced yet.
    noticed: Vec<(FunctionName, Notice)>,
}

/// The right to one attempt. Names the holds that the attempt probes. [`Lanes::finished`] or [`Lanes::answered`] takes
/// it back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticket {
    lane_hold: Option<u64>,
    account_hold: Option<u64>,
    caller_hold: Option<u64>,
}

/// An attempt that ended.
#[derive(Debug)]
pub struct Finished<'a> {
    pub lane: LaneId,
    pub function: &'a FunctionName,
    pub event: EventId,
    pub ticket: Ticket,
    pub outcome: &'a Outcome,
    /// The answer of [`Lanes::weigh`]. Ignored unless the outcome is doubtful.
    pub blame: Blame,
    pub hold: Option<Hold>,
    /// The event was buried, so its failures no longer count against its lane.
    pub buried: bool,
    /// Code and message, for people.
    pub said: String,
    pub payload_bytes: u64,
    pub began: Instant,
    pub ended: Instant,
}

/// What became of an attempt's event.
#[derive(Debug)]
pub struct Settled<'a> {
    pub lane: LaneId,
    pub function: &'a FunctionName,
    pub event: EventId,
    pub ticket: Ticket,
    pub hold: Option<Hold>,
    /// The event was buried, so its failures no longer count against its lane.
    pub buried: bool,
}

/// What dispatch announces in the log and in metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Held {
        scope: Scope,
        kind: HoldKind,
        reason: String,
    },
    Recovered {
        scope: Scope,
    },
    /// More attempts fail than succeed, though the lane is not held.
    Failing {
        delivered: u32,
        failed: u32,
        last: String,
    },
    /// At least as many attempts succeed as fail again.
    Well,
}

impl Lanes {
    pub fn new(settings: Settings) -> Self {
        Self {
            rate: Rate::per_second(settings.rate),
            steps: Steps::default(),
            settings,
            lanes: BTreeMap::new(),
            accounts: BTreeMap::new(),
            callers: BTreeMap::new(),
            expiry: BTreeSet::new(),
            turn: 0,
            holds: 0,
            planned: Vec::new(),
            parked: BTreeSet::new(),
            in_flight: 0,
            bytes_in_flight: 0,
            crowded: false,
            noticed: Vec::new(),
        }
    }

    /// Takes over what the outbox reports of changed lanes.
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
                    let (account, region) = (account(&view.function), region(&view.function));
                    let account = self.accounts.entry(account.to_owned());
                    account.or_insert_with(|| Account::new(region, in_flight_max)).shared.lanes += 1;
                    let caller = self.callers.entry(region.to_owned());
                    caller.or_insert_with(|| Caller::new(in_flight_max)).shared.lanes += 1;
                    let lane = Lane::new(view, &self.settings, now);
                    if lane.spent {
                        self.noticed.push((lane.view.function.clone(), lane.spent_notice()));
                    }
                    self.lanes.insert(id, lane);
                }
            }
            self.reschedule(id, now);
        }
        if std::mem::replace(&mut self.crowded, news.crowded) != news.crowded {
            let ids: Vec<_> = self.lanes.keys().copied().collect();
            ids.into_iter().for_each(|id| self.schedule_expiry(id, now));
        }
    }

    /// Returns the notices of new and removed lanes that were not announced yet.
    pub fn noticed(&mut self) -> Vec<(FunctionName, Notice)> {
        std::mem::take(&mut self.noticed)
    }

    /// Takes over a reading of all lanes. A lane that is missing from it was removed.
    pub fn learn_all(&mut self, mut news: LaneNews, now: UnixMillis) {
        let known: BTreeSet<_> = news.lanes.iter().map(|view| view.lane).collect();
        news.retired = self.lanes.keys().copied().filter(|id| !known.contains(id)).collect();
        self.learn(news, now);
    }

    /// Applies new settings to attempts that begin from now on. Rates start with a full bucket.
    pub fn reconfigure(&mut self, settings: Settings, now: UnixMillis) {
        self.rate = Rate::per_second(settings.rate);
        self.settings = settings;
        let in_flight_max = self.settings.in_flight_max;
        let accounts = self.accounts.values_mut().map(|account| &mut account.shared);
        let callers = self.callers.values_mut().map(|caller| &mut caller.shared);
        accounts.chain(callers).for_each(|shared| shared.limiter.set_max(in_flight_max));
        let ids: Vec<_> = self.lanes.keys().copied().collect();
        for id in ids {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.policy = self.settings.policy(&lane.view.function).clone();
                lane.limiter.set_max(lane.policy.concurrency_max);
                lane.rate = Rate::per_second(lane.policy.rate);
                // The hour's count continues under the new ceiling.
                lane.spend = lane.spend.take().map_or_else(
                    || SpendGuard::per_hour(lane.policy.invocations_per_hour_max, lane.view.spent),
                    |spend| spend.with_max(lane.policy.invocations_per_hour_max),
                );
            }
            self.reschedule(id, now);
        }
    }

    /// When there will be something to lease. [`UnixMillis::MAX`] means that only the end of an attempt can change
    /// anything.
    pub fn next_time(&self, now: UnixMillis) -> UnixMillis {
        let expiry = self.expiry.first().map_or(UnixMillis::MAX, |&(time, _)| time);
        if self.slots_left() == 0 {
            return expiry;
        }
        let work = self.accounts.values().map(|account| self.next_time_of(account)).min().unwrap_or(UnixMillis::MAX);
        expiry.min(self.rate.as_ref().map_or(work, |rate| work.max(rate.next(now))))
    }

    fn next_time_of(&self, account: &Account) -> UnixMillis {
        account.next_time(self.callers.get(&account.region))
    }

    /// Payload bytes that attempts may still take into memory.
    pub fn bytes_left(&self) -> u64 {
        self.settings.in_flight_bytes_max.saturating_sub(self.bytes_in_flight)
    }

    /// What to lease now: from each lane in its turn, while slots last. The caller must call [`Lanes::planned`]
    /// afterwards.
    pub fn plan(&mut self, now: UnixMillis) -> Vec<LaneWant> {
        let mut wants = Vec::new();
        let mut slots = self.slots_left();
        if let Some(rate) = &self.rate {
            slots = slots.min(rate.free(now));
        }
        let bytes_left = self.bytes_left();
        while slots > 0 {
            let due = self.accounts.values().filter(|account| self.next_time_of(account) <= now);
            let Some((_, _, id)) = due.filter_map(|account| account.agenda.first().copied()).min() else { break };
            self.off_agenda(id);
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            let Some(account) = self.accounts.get_mut(account(&lane.view.function)) else { continue };
            let Some(caller) = self.callers.get_mut(&account.region) else { continue };
            let shared = account.shared.free().min(caller.shared.free());
            let mut events = lane.free(now).min(lane.there(now)).min(slots).min(QUANTUM).min(shared);
            if lane.hold.is_some() || account.shared.hold.is_some() || caller.shared.hold.is_some() {
                events = events.min(1);
            }
            let share = (SHARE * slots).saturating_sub(lane.in_flight).div_ceil(SHARE + 1);
            let bytes_max = (BYTES_SHARE * bytes_left).saturating_sub(lane.bytes).div_ceil(BYTES_SHARE + 1);
            if lane.work_time(now) <= now && (share == 0 || bytes_max == 0) {
                self.parked.insert(id);
                continue;
            }
            self.planned.push(id);
            events = events.min(share);
            if events > 0 && lane.work_time(now) <= now {
                slots -= events;
                account.shared.planned += events;
                caller.shared.planned += events;
                let spent = lane.spend.as_mut().and_then(|spend| spend.reserve(events, now));
                wants.push(LaneWant { lane: id, which: lane.which(), events_max: events as usize, bytes_max, spent });
            }
        }
        wants
    }

    /// What to lease only to bury it: from lanes that may hold events past their age.
    pub fn expired(&mut self, now: UnixMillis) -> Vec<LaneWant> {
        let mut wants = Vec::new();
        while wants.len() < EXPIRED_LANES_MAX
            && let Some(&(time, id)) = self.expiry.first().filter(|(time, _)| *time <= now)
        {
            self.expiry.remove(&(time, id));
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.expires = None;
            lane.next_expiry = now.plus(EXPIRY_EVERY);
            let cutoff = UnixMillis(self.steps.ago(lane.age_max(self.crowded), now).0 + 1);
            wants.push(LaneWant {
                lane: id,
                which: Which::AcceptedBefore(cutoff),
                events_max: EXPIRED_MAX,
                bytes_max: EXPIRED_BYTES_MAX,
                spent: None,
            });
            self.schedule_expiry(id, now);
        }
        wants
    }

    /// A search found events past their age. The lane may hold more, so it is searched again at once.
    pub fn found_expired(&mut self, id: LaneId, now: UnixMillis) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.next_expiry = now;
            self.schedule_expiry(id, now);
        }
    }

    /// Whether a planned attempt may still begin. It may not if the hour has turned since and the lane has an hourly
    /// ceiling.
    pub fn may_begin(&self, id: LaneId, now: UnixMillis) -> bool {
        let spend = self.lanes.get(&id).and_then(|lane| lane.spend.as_ref());
        spend.is_none_or(|spend| spend.has_reserve(now))
    }

    /// The reserves that lanes will not use. The caller stores them with a lease that takes no event.
    pub fn give_back(&mut self) -> Vec<LaneWant> {
        let unused = |(&lane, of): (&LaneId, &mut Lane)| {
            let spent = of.spend.as_mut().and_then(SpendGuard::give_back)?;
            Some(LaneWant { lane, which: Which::Due, events_max: 0, bytes_max: 0, spent: Some(spent) })
        };
        self.lanes.iter_mut().filter_map(unused).collect()
    }

    /// An attempt of a leased event begins.
    pub fn started(&mut self, id: LaneId, payload_bytes: u64, now: UnixMillis) -> (Ticket, Vec<Notice>) {
        self.in_flight += 1;
        self.bytes_in_flight += payload_bytes;
        if let Some(rate) = &mut self.rate {
            rate.take(now);
        }
        let Some(lane) = self.lanes.get_mut(&id) else { return Default::default() };
        lane.in_flight += 1;
        lane.bytes += payload_bytes;
        lane.bound = lane.in_flight >= lane.limiter.limit();
        lane.started += 1;
        if let Some(rate) = &mut lane.rate {
            rate.take(now);
        }
        let function = &lane.view.function;
        let ticket = Ticket {
            lane_hold: lane.hold.as_mut().map(ActiveHold::probe),
            account_hold: self.accounts.get_mut(account(function)).and_then(|account| account.shared.started()),
            caller_hold: self.callers.get_mut(region(function)).and_then(|caller| caller.shared.started()),
        };
        (ticket, lane.spend(now))
    }

    /// The leases of the plan were taken and their attempts have begun.
    pub fn planned(&mut self, now: UnixMillis) {
        self.accounts.values_mut().for_each(|account| account.shared.planned = 0);
        self.callers.values_mut().for_each(|caller| caller.shared.planned = 0);
        for id in std::mem::take(&mut self.planned) {
            if let Some(lane) = self.lanes.get_mut(&id)
                && std::mem::take(&mut lane.started) == 0
            {
                lane.idle_until = now.plus(IDLE);
            }
            self.reschedule(id, now);
        }
    }

    /// Decides whose fault a doubtful failure is, as far as its lane and its region can tell. Call this before
    /// [`Lanes::finished`]. `may_ask` says whether Lambda may be asked. After [`Blame::Ask`], [`Lanes::answered`] must
    /// follow.
    pub fn weigh(
        &mut self,
        id: LaneId,
        event: EventId,
        outcome: &Outcome,
        (began, ended): (Instant, Instant),
        may_ask: bool,
    ) -> Blame {
        let outage = Blame::Outage { scope: Scope::Lane };
        // This answer is not Lambda's, so it proves nothing about the event.
        if *outcome == Outcome::Foreign {
            return outage;
        }
        let Some(lane) = self.lanes.get_mut(&id) else { return outage };
        let caller = self.callers.get_mut(region(&lane.view.function));
        let others_fail = caller.as_ref().is_some_and(|caller| caller.witnesses.contradict(id, ended));
        let ran = *outcome == Outcome::FunctionFailed;
        let blame = lane.health.weigh(Doubt { event, began, ended, ran, others_fail });
        match (blame, caller) {
            (Blame::Ask, _) if !may_ask => return Blame::Wait,
            (Blame::Ask, _) => lane.health.asking = true,
            (Blame::Outage { .. }, Some(caller)) if *outcome == Outcome::Rejected => {
                return Blame::Outage { scope: caller.accused_by(id, ended) };
            }
            (Blame::Event | Blame::Wait | Blame::Outage { .. }, _) => {}
        }
        blame
    }

    /// An attempt ended. Returns the notices to announce.
    pub fn finished(&mut self, finished: Finished<'_>, now: UnixMillis) -> Vec<Notice> {
        let Finished { lane: id, function, event, ticket, outcome, blame, began, ended, .. } = finished;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.bytes_in_flight = self.bytes_in_flight.saturating_sub(finished.payload_bytes);
        let (mut notices, mut is_suspect) = (Vec::new(), false);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.bytes = lane.bytes.saturating_sub(finished.payload_bytes);
            lane.learn(outcome, began, ended);
            is_suspect = lane.note(event, outcome, began, ended);
            notices.extend(lane.tell(outcome, finished.said, now, ended));
        }
        if let Some(account) = self.accounts.get_mut(account(function)) {
            account.learn(outcome, began, ended);
        }
        if let Some(caller) = self.callers.get_mut(region(function)) {
            caller.learn(id, outcome, is_suspect, began, ended);
        }
        if blame != Blame::Ask {
            let Finished { hold, buried, .. } = finished;
            notices.extend(self.settled(Settled { lane: id, function, event, ticket, hold, buried }, now));
        }
        for id in std::mem::take(&mut self.parked) {
            self.reschedule(id, now);
        }
        self.reschedule(id, now);
        notices
    }

    /// Lambda has answered a dry run. Only now does the attempt end as a probe.
    pub fn answered(&mut self, settled: Settled<'_>, now: UnixMillis) -> Vec<Notice> {
        let id = settled.lane;
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.health.asking = false;
        }
        let notices = self.settled(settled, now);
        self.reschedule(id, now);
        notices
    }

    /// Applies the end of an attempt to the holds that it probed or causes.
    fn settled(&mut self, settled: Settled<'_>, now: UnixMillis) -> Vec<Notice> {
        let Settled { lane: id, function, event, ticket, hold, buried } = settled;
        self.holds += 1;
        let ended = Ended { base: self.settings.policy(function).backoff_base, now, number: self.holds };
        let mut notices = Vec::new();
        let mut judge = |active: &mut Option<ActiveHold>, limiter: &mut Limiter, probe, scope| {
            let of_scope = hold.clone().filter(|hold| hold.scope == scope);
            let notice = ActiveHold::judge(active, probe, of_scope, scope, ended);
            if let Some(Notice::Recovered { .. }) = notice {
                limiter.restart();
            }
            notices.extend(notice);
        };
        if let Some(lane) = self.lanes.get_mut(&id) {
            judge(&mut lane.hold, &mut lane.limiter, ticket.lane_hold, Scope::Lane);
            if buried {
                lane.health.buried(event);
            }
        }
        if let Some(Account { shared, .. }) = self.accounts.get_mut(account(function)) {
            judge(&mut shared.hold, &mut shared.limiter, ticket.account_hold, Scope::Account);
        }
        if let Some(Caller { shared, witnesses, .. }) = self.callers.get_mut(region(function)) {
            judge(&mut shared.hold, &mut shared.limiter, ticket.caller_hold, Scope::Caller);
            if buried {
                witnesses.forget(id);
            }
        }
        notices
    }

    /// An operator asks whether a function works again. Ends the wait of every hold that stops it, so that one probe
    /// may go at once. Returns what holds the function until that probe returns.
    pub fn probe_now(&mut self, function: &FunctionName, now: UnixMillis) -> Option<Held> {
        let id = self.lanes.iter().find(|(_, lane)| lane.view.function == *function).map(|(&id, _)| id)?;
        let accounts = self.accounts.get_mut(account(function)).and_then(|account| account.shared.hold.as_mut());
        let callers = self.callers.get_mut(region(function)).and_then(|caller| caller.shared.hold.as_mut());
        accounts.into_iter().chain(callers).for_each(|hold| hold.end_wait(now));
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.hold.iter_mut().for_each(|hold| hold.end_wait(now));
            lane.idle_until = UnixMillis(0);
        }
        self.reschedule(id, now);
        self.held(id, now)
    }

    /// Attempts in flight of one lane.
    pub fn in_flight(&self, id: LaneId) -> u32 {
        self.lanes.get(&id).map_or(0, |lane| lane.in_flight)
    }

    /// The most attempts that one lane may have in flight now.
    pub fn limit(&self, id: LaneId) -> u32 {
        self.lanes.get(&id).map_or(0, |lane| lane.limiter.limit())
    }

    /// The lanes that a change of this scope concerns, and whether each is held: one lane, or all of an account or
    /// region.
    pub fn told_of(&self, function: &FunctionName, scope: Scope) -> Vec<(&FunctionName, bool)> {
        let concerned = |name: &FunctionName| match scope {
            Scope::Lane => name == function,
            Scope::Account => account(name) == account(function),
            Scope::Caller => region(name) == region(function),
        };
        let lanes = self.lanes.values().filter(|lane| concerned(&lane.view.function));
        lanes.map(|lane| (&lane.view.function, lane.hold.is_some() || lane.spent || self.holds_all(lane))).collect()
    }

    fn holds_all(&self, lane: &Lane) -> bool {
        let (account, caller) = self.shared_of(lane);
        account.is_some_and(|account| account.shared.hold.is_some())
            || caller.is_some_and(|caller| caller.shared.hold.is_some())
    }

    fn shared_of(&self, lane: &Lane) -> (Option<&Account>, Option<&Caller>) {
        let function = &lane.view.function;
        (self.accounts.get(account(function)), self.callers.get(region(function)))
    }

    pub fn policy(&self, function: &FunctionName) -> &Policy {
        self.settings.policy(function)
    }

    /// The age at which the events of a lane are buried now.
    pub fn age_max(&self, id: LaneId) -> Option<Duration> {
        self.lanes.get(&id).map(|lane| lane.age_max(self.crowded))
    }

    /// The state of each lane, for the operator.
    pub fn status(&self, now: UnixMillis, instant: Instant) -> BTreeMap<FunctionName, LaneStatus> {
        let status = |(&id, lane): (&LaneId, &Lane)| {
            let (account, caller) = self.shared_of(lane);
            let limits = [account.map(|account| &account.shared.limiter), caller.map(|caller| &caller.shared.limiter)];
            let counts = lane.pulse.counts(instant);
            let status = LaneStatus {
                in_flight: lane.in_flight,
                limit: lane.limiter.limit(),
                account_limit: limits.into_iter().flatten().map(Limiter::limit).min().unwrap_or(0),
                held: self.held(id, now),
                delivered_per_minute: counts.delivered,
                failed_per_minute: counts.failed,
                last_error: lane.pulse.last_error.clone(),
                failing_since: lane.pulse.failing_since,
                age_max: lane.policy.age_max,
            };
            (lane.view.function.clone(), status)
        };
        self.lanes.iter().map(status).collect()
    }

    /// What holds a lane. If several holds do, the one with the widest scope.
    fn held(&self, id: LaneId, now: UnixMillis) -> Option<Held> {
        let lane = self.lanes.get(&id)?;
        let (account, caller) = self.shared_of(lane);
        let held = |scope, hold: &ActiveHold| Held {
            scope,
            kind: hold.hold.kind,
            reason: hold.hold.reason.clone(),
            until: hold.hold.until,
        };
        let spent = lane.spend.as_ref().filter(|spend| spend.free(now) == 0).map(|spend| Held {
            scope: Scope::Lane,
            kind: HoldKind::Spent,
            reason: lane.spent_reason(),
            until: spend.next(now),
        });
        let of_caller = caller.and_then(|caller| caller.shared.hold.as_ref());
        let of_account = account.and_then(|account| account.shared.hold.as_ref());
        of_caller
            .map(|hold| held(Scope::Caller, hold))
            .or_else(|| of_account.map(|hold| held(Scope::Account, hold)))
            .or_else(|| lane.hold.as_ref().map(|hold| held(Scope::Lane, hold)))
            .or(spent)
    }

    fn slots_left(&self) -> u32 {
        if self.bytes_left() == 0 { 0 } else { self.settings.in_flight_max.saturating_sub(self.in_flight) }
    }

    fn retire(&mut self, id: LaneId) {
        self.off_agenda(id);
        let Some(lane) = self.lanes.remove(&id) else { return };
        if lane.hold.is_some() || lane.spent {
            self.noticed.push((lane.view.function.clone(), Notice::Recovered { scope: Scope::Lane }));
        }
        if let Some(time) = lane.expires {
            self.expiry.remove(&(time, id));
        }
        let function = &lane.view.function;
        if let Some(account) = self.accounts.get_mut(account(function)) {
            account.shared.lanes -= 1;
        }
        if let Some(caller) = self.callers.get_mut(region(function)) {
            caller.shared.lanes -= 1;
            caller.witnesses.forget(id);
        }
        self.accounts.retain(|key, account| key != self::account(function) || !account.shared.is_unused());
        self.callers.retain(|key, caller| key != region(function) || !caller.shared.is_unused());
    }

    fn off_agenda(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        if let Some((time, turn)) = lane.on_agenda.take()
            && let Some(account) = self.accounts.get_mut(account(&lane.view.function))
        {
            account.agenda.remove(&(time, turn, id));
        }
    }

    /// Puts a lane on the agendas at its next time. A lane that is already due keeps its turn.
    fn reschedule(&mut self, id: LaneId, now: UnixMillis) {
        self.schedule_expiry(id, now);
        let Some(lane) = self.lanes.get(&id) else { return };
        let time = lane.work_time(now);
        if lane.on_agenda.is_some_and(|(present, _)| present <= now && time <= now) {
            return;
        }
        self.off_agenda(id);
        let Some(lane) = self.lanes.get_mut(&id).filter(|_| time < UnixMillis::MAX) else { return };
        if let Some(account) = self.accounts.get_mut(account(&lane.view.function)) {
            self.turn += 1;
            account.agenda.insert((time.max(now), self.turn, id));
            lane.on_agenda = Some((time.max(now), self.turn));
        }
    }

    fn schedule_expiry(&mut self, id: LaneId, now: UnixMillis) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let time = lane.expiry_time(&self.steps, self.crowded, now).max(now);
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

#[cfg(test)]
mod tests;
