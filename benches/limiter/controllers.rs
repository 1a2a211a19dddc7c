//! The controllers that are compared: sendoff's limiter, a fixed number, and Vector's adaptive request concurrency.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use sendoff::dispatch::limiter::Limiter;
use tokio::time::Instant;

use crate::model::{ATTEMPTS_MAX, Controller, Micros, SECOND};

/// The fixed point from which instants are counted.
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time; what it is makes no difference")]
fn origin() -> Instant {
    thread_local!(static ORIGIN: Instant = Instant::now());
    ORIGIN.with(|origin| *origin)
}

fn at(time: Micros) -> Instant {
    origin() + Duration::from_micros(time)
}

pub struct Sendoff {
    limiter: Limiter,
    bound: bool,
}

impl Sendoff {
    pub fn up_to(max: u32) -> Self {
        Self { limiter: Limiter::new(max), bound: false }
    }
}

impl Controller for Sendoff {
    fn limit(&self) -> u32 {
        self.limiter.limit()
    }

    fn began(&mut self, in_flight: u32) {
        self.bound = in_flight >= self.limiter.limit();
    }

    fn answered(&mut self, began: Micros, now: Micros) {
        self.limiter.succeeded(self.bound, Some(at(now) - at(began)), at(began));
    }

    fn throttled(&mut self, began: Micros, now: Micros) {
        self.limiter.throttled(at(began), at(now));
    }
}

/// What several lanes of one account share. Throttles that name the account's limit slow the whole account.
pub struct Account {
    limiter: Limiter,
    in_flight: u32,
    bound: bool,
}

impl Account {
    pub fn new(in_flight_max: u32) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { limiter: Limiter::open(in_flight_max), in_flight: 0, bound: false }))
    }
}

/// sendoff's limiter of a lane, below that of its account.
pub struct InAccount {
    lane: Limiter,
    in_flight: u32,
    bound: bool,
    account: Rc<RefCell<Account>>,
}

impl InAccount {
    pub fn new(account: &Rc<RefCell<Account>>) -> Self {
        Self { lane: Limiter::new(ATTEMPTS_MAX), in_flight: 0, bound: false, account: account.clone() }
    }
}

impl Controller for InAccount {
    fn limit(&self) -> u32 {
        let account = self.account.borrow();
        let free = account.limiter.limit().saturating_sub(account.in_flight);
        self.lane.limit().min(self.in_flight + free)
    }

    fn began(&mut self, in_flight: u32) {
        self.in_flight = in_flight;
        self.bound = in_flight >= self.lane.limit();
        let account = &mut *self.account.borrow_mut();
        account.in_flight += 1;
        account.bound = account.in_flight >= account.limiter.limit();
    }

    fn answered(&mut self, began: Micros, now: Micros) {
        self.in_flight -= 1;
        self.lane.succeeded(self.bound, Some(at(now) - at(began)), at(began));
        let account = &mut *self.account.borrow_mut();
        account.limiter.succeeded(account.bound, None, at(began));
        account.in_flight -= 1;
    }

    fn throttled(&mut self, began: Micros, now: Micros) {
        self.in_flight -= 1;
        let account = &mut *self.account.borrow_mut();
        account.limiter.throttled(at(began), at(now));
        account.in_flight -= 1;
    }
}

pub struct Fixed(pub u32);

impl Controller for Fixed {
    fn limit(&self) -> u32 {
        self.0
    }

    fn began(&mut self, _in_flight: u32) {}

    fn answered(&mut self, _began: Micros, _now: Micros) {}

    fn throttled(&mut self, _began: Micros, _now: Micros) {}
}

/// Vector's adaptive request concurrency with its defaults, written anew from its documentation and
/// `src/sinks/util/adaptive_concurrency` (vectordotdev/vector 05b56b79). Once in a mean round trip it grows by one, if
/// its limit was reached, nothing pushed back and the round trip was not longer than usual. It shrinks to nine tenths
/// if something pushed back, or if the round trip was longer by two and a half deviations. Only its maximum of 200 is
/// raised to ours, so that the scenarios do not reach it.
pub struct Vector {
    limit: u32,
    usual: Option<Usual>,
    /// Sum and number of the round trips in this interval.
    present: (f64, u32),
    next_update: Micros,
    reached: bool,
    pushed_back: bool,
}

#[derive(Clone, Copy)]
struct Usual {
    mean: f64,
    variance: f64,
}

const INITIAL: u32 = 1;
const DECREASE_RATIO: f64 = 0.9;
const EWMA_ALPHA: f64 = 0.4;
const DEVIATION_SCALE: f64 = 2.5;

impl Vector {
    pub fn new() -> Self {
        Self { limit: INITIAL, usual: None, present: (0.0, 0), next_update: 0, reached: false, pushed_back: false }
    }

    fn ended(&mut self, now: Micros) {
        let present = (self.present.1 > 0).then(|| self.present.0 / f64::from(self.present.1));
        let Some(usual) = self.usual else {
            if let Some(mean) = present {
                self.usual = Some(Usual { mean, variance: 0.0 });
                self.next_update = now + (mean * SECOND as f64) as Micros;
            }
            return;
        };
        if now < self.next_update {
            return;
        }
        let calm = !self.pushed_back && present.is_some_and(|present| present <= usual.mean);
        let late = present.is_some_and(|present| present >= usual.mean + usual.variance.sqrt() * DEVIATION_SCALE);
        if self.limit < ATTEMPTS_MAX && self.reached && calm {
            self.limit += 1;
        } else if self.limit > 1 && (self.pushed_back || late) {
            self.limit = ((f64::from(self.limit) * DECREASE_RATIO) as u32).max(1);
        }
        let usual = present.map_or(usual, |present| {
            let off = present - usual.mean;
            let step = EWMA_ALPHA * off;
            Usual { mean: usual.mean + step, variance: (1.0 - EWMA_ALPHA) * (usual.variance + off * step) }
        });
        self.usual = Some(usual);
        self.next_update = now + (usual.mean * SECOND as f64) as Micros;
        (self.present, self.reached, self.pushed_back) = ((0.0, 0), false, false);
    }
}

impl Controller for Vector {
    fn limit(&self) -> u32 {
        self.limit
    }

    fn began(&mut self, in_flight: u32) {
        self.reached |= in_flight >= self.limit;
    }

    fn answered(&mut self, began: Micros, now: Micros) {
        self.present.0 += (now - began) as f64 / SECOND as f64;
        self.present.1 += 1;
        self.ended(now);
    }

    fn throttled(&mut self, _began: Micros, now: Micros) {
        self.pushed_back = true;
        self.ended(now);
    }
}
