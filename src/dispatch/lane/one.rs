//! One lane: its limits, its hold, its health.

use std::time::Duration;

use tokio::time::Instant;

use super::Notice;
use super::health::Health;
use super::hold::ActiveHold;
use super::pulse::{Counts, Pulse, Turn};
use crate::clock::{Steps, UnixMillis};
use crate::dispatch::limiter::Limiter;
use crate::dispatch::rate::{Rate, SpendGuard};
use crate::dispatch::status::LastError;
use crate::dispatch::verdict::{HoldKind, Outcome, Scope};
use crate::dispatch::{Mode, Policy, Settings};
use crate::event::EventId;
use crate::outbox::{LaneView, Which};

/// The age at which events of a held function are buried that was never proven, while the outbox has hardly any room for
/// more functions. Clients can invent names of functions, and those must make way.
const CROWDED_AGE_MAX: Duration = Duration::from_secs(600);

/// The events of one function, and what dispatch knows of it.
pub(super) struct Lane {
    pub view: LaneView,
    pub policy: Policy,
    pub limiter: Limiter,
    pub in_flight: u32,
    /// Whether the limit was reached when the last attempt began.
    pub bound: bool,
    pub hold: Option<ActiveHold>,
    pub health: Health<EventId>,
    pub pulse: Pulse,
    /// Payload bytes in flight.
    pub bytes: u64,
    pub rate: Option<Rate>,
    pub spend: Option<SpendGuard>,
    /// The hour's ceiling is reached and was announced.
    pub spent: bool,
    /// When the lane may next be searched for events past their age.
    pub next_expiry: UnixMillis,
    /// When the lane may next be asked. It was empty before.
    pub idle_until: UnixMillis,
    /// Attempts that began under the current plan.
    pub started: u32,
    pub on_agenda: Option<(UnixMillis, u64)>,
    pub expires: Option<UnixMillis>,
}

impl Lane {
    pub fn new(view: LaneView, settings: &Settings, now: UnixMillis) -> Self {
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
            health: Health::new(),
            pulse: Pulse::default(),
            bytes: 0,
            next_expiry: UnixMillis(0),
            idle_until: UnixMillis(0),
            started: 0,
            on_agenda: None,
            expires: None,
        }
    }

    /// The most events that may be there to attempt.
    pub fn there(&self, now: UnixMillis) -> u32 {
        match self.view.next_due {
            Some(due) if due <= now => u32::MAX,
            Some(_) | None => u32::try_from(self.view.ready).unwrap_or(u32::MAX),
        }
    }

    /// Attempts that the lane's own limits allow to begin now.
    pub fn free(&self, now: UnixMillis) -> u32 {
        let slots = self.limiter.limit().saturating_sub(self.in_flight);
        let rate = self.rate.as_ref().map_or(u32::MAX, |rate| rate.free(now));
        let spend = self.spend.as_ref().map_or(u32::MAX, |spend| spend.free(now));
        slots.min(rate).min(spend)
    }

    /// When the next event may be attempted, as far as the lane knows now.
    pub fn work_time(&self, now: UnixMillis) -> UnixMillis {
        if self.view.paused || self.in_flight >= self.limiter.limit() {
            return UnixMillis::MAX;
        }
        let ready = if self.view.ready > 0 { now } else { self.view.next_due.unwrap_or(UnixMillis::MAX) };
        let hold = self.hold.as_ref().map_or(now, ActiveHold::ends);
        let rate = self.rate.as_ref().map_or(now, |rate| rate.next(now));
        let spend = self.spend.as_ref().map_or(now, |spend| spend.next(now));
        ready.max(hold).max(rate).max(spend).max(self.idle_until)
    }

    /// Which events to take next. While many attempts fail, events that were never attempted go first: an event that
    /// failed tells nothing new, and must not block those that would get through. Probes alternate between both kinds,
    /// so that neither is forgotten.
    pub fn which(&self) -> Which {
        let fresh = self.hold.as_ref().map_or_else(|| self.health.is_doubtful(), ActiveHold::wants_fresh);
        if fresh { Which::Fresh } else { Which::Due }
    }

    /// The age at which its events are buried now.
    pub fn age_max(&self, crowded: bool) -> Duration {
        let is_held = self.hold.as_ref().is_some_and(|hold| hold.hold.kind == HoldKind::Operator);
        let makes_way = crowded && is_held && !self.view.proven && !self.view.paused;
        if makes_way { self.policy.age_max.min(CROWDED_AGE_MAX) } else { self.policy.age_max }
    }

    /// When an event may be past its age.
    pub fn expiry_time(&self, steps: &Steps, crowded: bool, now: UnixMillis) -> UnixMillis {
        // An event that is due in the future was not due before a step of the clock.
        let next_due = self.view.next_due.map(|due| if due > now { due } else { steps.present(due, now) });
        let oldest = self.view.oldest.map(|oldest| steps.present(oldest, now));
        let by_age = [oldest, next_due].into_iter().flatten().min();
        let by_age = by_age.map(|oldest| oldest.plus(self.age_max(crowded)));
        let first = [by_age, self.view.next_expiry].into_iter().flatten().min();
        first.map_or(UnixMillis::MAX, |first| first.max(self.next_expiry))
    }

    /// Records what an attempt says about the lane. Returns whether the event failed while others got through.
    pub fn note(&mut self, event: EventId, outcome: &Outcome, began: Instant, ended: Instant) -> bool {
        match outcome {
            // A refusal also shows that Lambda works.
            Outcome::Delivered | Outcome::Refused => {
                self.health.succeeded(event, began, ended);
                false
            }
            Outcome::FunctionFailed | Outcome::Transient | Outcome::Foreign | Outcome::Rejected | Outcome::Lost => {
                self.health.failed(event, began, ended)
            }
            Outcome::Throttled { .. } | Outcome::Unready | Outcome::NotSent | Outcome::Operator { .. } => false,
        }
    }

    /// Counts an attempt. Returns a notice to announce. A hold was announced already, so a held lane is not announced
    /// as failing.
    pub fn tell(&mut self, outcome: &Outcome, said: String, now: UnixMillis, ended: Instant) -> Option<Notice> {
        let turn = match outcome {
            Outcome::Delivered => self.pulse.succeeded(ended),
            Outcome::FunctionFailed
            | Outcome::Throttled { .. }
            | Outcome::Transient
            | Outcome::Rejected
            | Outcome::Unready
            | Outcome::Foreign
            | Outcome::Lost
            | Outcome::NotSent
            | Outcome::Operator { .. }
            | Outcome::Refused => self.pulse.failed(LastError { at: now, words: said }, ended),
        };
        match turn? {
            Turn::Failing if self.hold.is_some() => None,
            Turn::Failing => {
                let Counts { delivered, failed } = self.pulse.counts(ended);
                let last = self.pulse.last_error.as_ref().map(|error| error.words.clone()).unwrap_or_default();
                Some(Notice::Failing { delivered, failed, last })
            }
            Turn::Well => Some(Notice::Well),
        }
    }

    /// Counts one attempt in this hour.
    pub fn spend(&mut self, now: UnixMillis) -> Vec<Notice> {
        let mut notices = Vec::new();
        let Some(spend) = &mut self.spend else { return notices };
        let last = spend.take(now);
        if std::mem::take(&mut self.spent) {
            notices.push(Notice::Recovered { scope: Scope::Lane });
        }
        if last {
            self.spent = true;
            notices.push(self.spent_notice());
        }
        notices
    }

    pub fn spent_notice(&self) -> Notice {
        Notice::Held { scope: Scope::Lane, kind: HoldKind::Spent, reason: self.spent_reason() }
    }

    pub fn spent_reason(&self) -> String {
        let max = self.policy.invocations_per_hour_max;
        format!("all {max} invocations of this hour are used (invocations_per_hour_max)")
    }

    pub fn learn(&mut self, outcome: &Outcome, began: Instant, ended: Instant) {
        // The duration of a confirmed call depends on its event.
        let latency = match self.policy.mode {
            Mode::Event => Some(ended.duration_since(began)),
            Mode::Confirm { .. } => None,
        };
        self.limiter.learn(outcome.load(Scope::Lane), self.bound, latency, began, ended);
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}
