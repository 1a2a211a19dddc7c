//! What several lanes share: the account that owns their functions, and the caller, which is the same for a whole
//! region.
//!
//! Lambda limits concurrency by account and region of the function, and the rate of calls by account and region of the
//! caller. Functions of another account, addressed by ARN, therefore share the caller with ours, but not the account. A
//! throttle or hold of one account says nothing about another.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::health::Witnesses;
use super::hold::ActiveHold;
use crate::clock::UnixMillis;
use crate::dispatch::limiter::Limiter;
use crate::dispatch::verdict::{Outcome, Scope};
use crate::event::FunctionName;
use crate::outbox::LaneId;

/// How long after one lane's rejected signature a second lane's still counts against the caller.
const ACCUSED: Duration = Duration::from_secs(2 * 60);

/// The limits of one scope.
pub(super) struct Shared {
    pub limiter: Limiter,
    pub in_flight: u32,
    /// Whether the limit was reached when the last attempt began.
    pub bound: bool,
    /// Slots that the current plan has given away.
    pub planned: u32,
    pub hold: Option<ActiveHold>,
    pub lanes: u32,
}

/// All functions of one account in one region.
pub(super) struct Account {
    pub shared: Shared,
    pub region: String,
    /// When each lane could next attempt an event. The number keeps lanes with the same time in the order in which they
    /// came.
    pub agenda: BTreeSet<(UnixMillis, u64, LaneId)>,
}

/// All calls into one region. They use the same credentials.
pub(super) struct Caller {
    pub shared: Shared,
    /// How the lanes of the region fare.
    pub witnesses: Witnesses<LaneId>,
    /// The lane whose signature was rejected last, if nothing got through since.
    accuser: Option<(LaneId, Instant)>,
}

/// The region in a function's name. Empty means the daemon's own.
pub(super) fn region(function: &FunctionName) -> &str {
    function.region().unwrap_or_default()
}

/// Region and account in a function's name. Empty means the daemon's own.
pub(super) fn account(function: &FunctionName) -> &str {
    function.as_str().rsplit_once('/').map_or("", |(account, _)| account)
}

impl Shared {
    fn new(in_flight_max: u32) -> Self {
        Self { limiter: Limiter::open(in_flight_max), in_flight: 0, bound: false, planned: 0, hold: None, lanes: 0 }
    }

    pub fn free(&self) -> u32 {
        self.limiter.limit().saturating_sub(self.in_flight + self.planned)
    }

    pub fn is_unused(&self) -> bool {
        self.lanes == 0 && self.in_flight == 0
    }

    /// When a lane of this scope may go that itself could go at `time`.
    fn next_time(&self, time: UnixMillis) -> UnixMillis {
        match &self.hold {
            _ if self.free() == 0 => UnixMillis::MAX,
            Some(_) if self.planned > 0 => UnixMillis::MAX,
            Some(hold) => time.max(hold.ends()),
            None => time,
        }
    }

    /// An attempt begins. Returns the number of the hold that it probes.
    pub fn started(&mut self) -> Option<u64> {
        self.in_flight += 1;
        self.bound = self.in_flight >= self.limiter.limit();
        self.hold.as_mut().map(ActiveHold::probe)
    }

    fn learn(&mut self, outcome: &Outcome, own: Scope, began: Instant, ended: Instant) {
        self.limiter.learn(outcome.load(own), self.bound, None, began, ended);
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

impl Account {
    pub fn new(region: &str, in_flight_max: u32) -> Self {
        Self { shared: Shared::new(in_flight_max), region: region.to_owned(), agenda: BTreeSet::new() }
    }

    /// When a lane of this account may go.
    pub fn next_time(&self, caller: Option<&Caller>) -> UnixMillis {
        let Some(&(time, ..)) = self.agenda.first() else { return UnixMillis::MAX };
        let time = self.shared.next_time(time);
        caller.map_or(time, |caller| caller.shared.next_time(time))
    }

    pub fn learn(&mut self, outcome: &Outcome, began: Instant, ended: Instant) {
        self.shared.learn(outcome, Scope::Account, began, ended);
    }
}

impl Caller {
    pub fn new(in_flight_max: u32) -> Self {
        Self { shared: Shared::new(in_flight_max), witnesses: Witnesses::new(), accuser: None }
    }

    pub fn learn(&mut self, lane: LaneId, outcome: &Outcome, is_suspect: bool, began: Instant, ended: Instant) {
        self.shared.learn(outcome, Scope::Caller, began, ended);
        match outcome {
            Outcome::Delivered | Outcome::FunctionFailed | Outcome::Refused => {
                self.accuser = None;
                self.witnesses.note_latest(lane, true, began, ended);
            }
            Outcome::Lost | Outcome::Transient | Outcome::Foreign | Outcome::Rejected => {
                // An event that fails while others of its lane get through says nothing about the region.
                if !is_suspect {
                    self.witnesses.note_latest(lane, false, began, ended);
                }
            }
            Outcome::Throttled { .. } | Outcome::Unready | Outcome::NotSent | Outcome::Operator { .. } => {}
        }
    }

    /// Whom a rejected signature concerns. A single event may cause one rejection, but hardly two lanes at once.
    pub fn accused_by(&mut self, lane: LaneId, now: Instant) -> Scope {
        let other =
            self.accuser.is_some_and(|(accuser, at)| accuser != lane && now.saturating_duration_since(at) <= ACCUSED);
        if !other {
            self.accuser = Some((lane, now));
        }
        if other { Scope::Caller } else { Scope::Lane }
    }
}
