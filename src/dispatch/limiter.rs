//! How many attempts of one lane may be in flight: found by trying, as TCP finds its window. Pure.
//!
//! Grows while it is what binds: by doubling at first (slow start), then by steps that double with each round trip that
//! brings no throttle. Shrinks at most once a round trip, when Lambda throttles or does not answer: by the last step, and
//! further by [`DECREASE`] if that was not enough. What was throttled is the *ceiling*. Up to one below it the limit
//! comes back quickly; beyond it only once the throttled calls are paid for, each with [`PRICE`] answered ones (CUBIC's
//! plateau, counted in calls). So whatever the capacity is, large or small, about one call in [`PRICE`] is wasted on
//! looking for more.
//!
//! Throttling that has nothing to do with concurrency is told by experiment: if cut after cut the share of throttled calls
//! stays what it was, the limit is put back and that share is borne (*noise*), for a while; then the experiment is made
//! again. Cutting on would end at one attempt at a time and still have the same share throttled.
//!
//! A rise of latency stops growth: more attempts at once would only wait elsewhere.
//!
//! A lane that nobody has answered yet has one attempt under way, and one that nobody answers any more is cut to a quarter,
//! also within a round trip: what hangs occupies slots that all share, and costs the others no more than one of them.

use std::time::Duration;

use tokio::time::Instant;

/// The limit with which the search begins, once there was an answer.
const START: f64 = 8.0;

/// What a cut leaves of the limit at least; and what a further one in a row leaves.
const DECREASE: f64 = 0.8;

/// What a cut leaves of the limit once as many attempts as it allows have failed in a row.
const DECREASE_UNANSWERED: f64 = 0.25;

/// Answered calls that pay for a throttled one. Also the longest stay below the ceiling, in round trips.
const PRICE: f64 = 40.0;

/// How fast a limit comes back towards its ceiling: this part of the way in the first round trip.
const RETURN: f64 = 0.25;

/// Calls over which the share of throttled ones is smoothed.
const SHARE_CALLS: f64 = 64.0;

/// Cuts in a row after which the share is compared with what it was after the second.
const EXPERIMENT_CUTS: u32 = 4;

/// The share counts as unchanged if so much of it is left: chance takes some of it away. Cuts that help leave less, as
/// three of them nearly halve the limit.
const UNCHANGED: f64 = 0.6;

/// Above this share, cutting goes on whatever it brings.
const NOISE_MAX: f64 = 0.5;

/// How far the share may rise above the noise before cutting begins again.
const NOISE_MARGIN: f64 = 0.15;

/// Round trips between experiments.
const NOISE_ROUNDS: u32 = 20;

/// Attempts of a round trip at least; fewer without a throttle may be chance.
const ROUND_MIN: f64 = 8.0;

/// Answers over which the present latency is smoothed.
const LATENCY_NOW: f64 = 16.0;

/// A present latency of so many times the usual stops growth beyond the limit that had the usual one.
const LATENCY_RISE: f64 = 2.0;

/// The usual latency is the lowest of late: it rises by this part in a round trip. What is slow because of us must not
/// become usual, or the limit would creep up for ever.
const USUAL_RISE: f64 = 1.0 / 8_192.0;

#[derive(Debug, Clone)]
pub struct Limiter {
    limit: f64,
    max: f64,
    /// What the limit grows by in a round trip.
    step: f64,
    /// The limit that was throttled last; infinite if none is known.
    ceiling: f64,
    /// Answered calls until the ceiling may be tried again.
    debt: f64,
    round: Round,
    /// Whether anybody has answered yet.
    proven: bool,
    /// Failures since the last answer, or since the last cut that they brought.
    unanswered: f64,
    share: Share,
    streak: Streak,
    noise: Option<Noise>,
    /// The highest limit that noise let stand: where the next experiment that ends so goes back to, however low chance
    /// has brought it. Zero if none.
    borne: f64,
    latency_now: f64,
    latency_usual: f64,
    /// How many answers the present latency is of, as far as that matters.
    latencies: u32,
    /// The limit with which the latency was last the usual one.
    calm: f64,
}

/// The smoothed share of throttled calls: a mean over all calls at first, over the last [`SHARE_CALLS`] or so later.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    throttled: f64,
    calls: f64,
}

impl Share {
    fn note(&mut self, throttled: bool) {
        self.throttled += (f64::from(u8::from(throttled)) - self.throttled) / SHARE_CALLS;
        self.calls += (1.0 - self.calls) / SHARE_CALLS;
    }

    fn get(self) -> f64 {
        if self.calls > 0.0 { self.throttled / self.calls } else { 0.0 }
    }
}

/// As many attempts as the limit allows at once, all of which ran under it.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// Attempts that began before ran under an older, higher limit.
    since: Option<Instant>,
    ended: f64,
}

/// Cuts with no quiet round trip between them.
#[derive(Debug, Clone, Copy, Default)]
struct Streak {
    cuts: u32,
    /// The limit before the first.
    limit: f64,
    /// The share at the second, when the first limit had its effect.
    share: f64,
}

/// Throttling that cuts did not cure.
#[derive(Debug, Clone, Copy)]
struct Noise {
    share: f64,
    rounds_left: u32,
}

impl Limiter {
    /// A limiter that looks for its limit, up to `max`, which is at least 1; with one attempt until that is answered.
    pub fn new(max: u32) -> Self {
        Self { proven: false, ..Self::starting_at(1.0, max) }
    }

    /// As [`Limiter::new`], but several attempts may go before the first is answered: for calls whose answer takes minutes.
    pub fn patient(max: u32) -> Self {
        Self::starting_at(START, max)
    }

    /// A limiter that stands at `max`, which is at least 1, until it is throttled.
    pub fn open(max: u32) -> Self {
        Self::starting_at(f64::INFINITY, max)
    }

    fn starting_at(limit: f64, max: u32) -> Self {
        let max = f64::from(max.max(1));
        let limit = limit.min(max);
        Self {
            proven: true,
            unanswered: 0.0,
            limit,
            max,
            step: limit,
            ceiling: f64::INFINITY,
            debt: 0.0,
            round: Round::default(),
            share: Share::default(),
            streak: Streak::default(),
            noise: None,
            borne: 0.0,
            latency_now: 0.0,
            latency_usual: f64::INFINITY,
            latencies: 0,
            calm: limit,
        }
    }

    /// From now on never above `max`, which is at least 1.
    pub fn set_max(&mut self, max: u32) {
        self.max = f64::from(max.max(1));
        self.limit = self.limit.min(self.max);
    }

    /// Attempts that may be in flight; at least 1, at most the maximum.
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// After a pause: looks for the limit again, from a low one, so that what has waited does not come back at once.
    pub fn restart(&mut self) {
        self.limit = self.limit.min(START);
        self.step = self.limit;
        self.round = Round::default();
        self.streak = Streak::default();
    }

    /// An attempt was answered without complaint. `bound` says whether the limit was reached when an attempt last began:
    /// then, not now, as several may end before another begins. `latency` counts only where it does not depend on the event.
    pub fn succeeded(&mut self, bound: bool, latency: Option<Duration>, began: Instant) {
        self.share.note(false);
        self.unanswered = 0.0;
        self.debt = (self.debt - 1.0).max(0.0);
        self.watch(latency);
        if !self.proven {
            self.begin();
            return;
        }
        if self.is_own(began) {
            self.count();
        }
        let slow = self.latency_now > LATENCY_RISE * self.latency_usual;
        if !slow {
            self.calm = self.limit;
        }
        // A limit that does not bind teaches nothing about a higher one.
        if !bound || slow && self.limit >= self.calm {
            return;
        }
        let most = if slow { self.calm } else { self.max };
        let grown = (self.limit + self.step / self.limit).min(most);
        if grown < self.ceiling {
            self.limit = grown;
        } else if self.debt <= 0.0 {
            self.ceiling = f64::INFINITY;
            self.step = 1.0;
            self.limit = (self.limit + self.step / self.limit).min(self.max);
        } else {
            // Just below it; by a fraction, of which the limit keeps only the whole part.
            self.limit = self.limit.max(self.ceiling - 1.0 / 1_024.0);
        }
    }

    /// An attempt that began at `began` was throttled, or got no answer.
    pub fn throttled(&mut self, began: Instant, now: Instant) {
        self.share.note(true);
        self.unanswered += 1.0;
        if self.noise.is_some() {
            if self.is_own(began) {
                self.count();
            }
            return;
        }
        self.debt = (self.debt + PRICE).min(PRICE * self.limit.max(2.0));
        if self.is_own(began) || self.is_unanswered() {
            self.cut(now);
        }
    }

    /// The first answer: the search begins.
    fn begin(&mut self) {
        self.proven = true;
        self.limit = START.min(self.max);
        self.step = self.limit;
        self.ceiling = f64::INFINITY;
        self.debt = 0.0;
        self.round = Round::default();
        self.streak = Streak::default();
    }

    fn cut(&mut self, now: Instant) {
        if self.streak.cuts == 0 {
            self.streak.limit = self.limit;
        }
        self.streak.cuts += 1;
        if self.streak.cuts == 2 {
            self.streak.share = self.share.get();
        }
        let share = self.share.get();
        let useless = self.streak.cuts >= EXPERIMENT_CUTS && share >= UNCHANGED * self.streak.share;
        if useless && share <= NOISE_MAX {
            self.bear(now);
            return;
        }
        self.ceiling = self.limit.floor().max(2.0);
        if self.is_unanswered() {
            self.unanswered = 0.0;
            self.limit = (self.limit * DECREASE_UNANSWERED).max(1.0);
        } else {
            let least = self.limit * DECREASE;
            self.limit = if self.streak.cuts == 1 { least.max(self.limit - self.step) } else { least }.max(1.0);
        }
        self.step = ((self.ceiling - self.limit) * RETURN).max(1.0);
        self.round = Round { since: Some(now), ended: 0.0 };
    }

    /// Goes back to the limit of before the useless cuts.
    fn bear(&mut self, now: Instant) {
        self.limit = self.streak.limit.max(self.borne).min(self.max);
        self.step = 1.0;
        self.ceiling = f64::INFINITY;
        self.debt = 0.0;
        self.streak = Streak::default();
        self.noise = Some(Noise { share: self.share.get(), rounds_left: NOISE_ROUNDS });
        self.round = Round { since: Some(now), ended: 0.0 };
    }

    fn is_unanswered(&self) -> bool {
        self.unanswered >= self.limit.max(ROUND_MIN)
    }

    /// Whether an attempt ran under the present limit, and so has a say.
    fn is_own(&self, began: Instant) -> bool {
        self.round.since.is_none_or(|since| began >= since)
    }

    /// One more of the round has ended, without a cut.
    fn count(&mut self) {
        self.round.ended += 1.0;
        if self.round.ended < self.limit.max(ROUND_MIN) {
            return;
        }
        self.round.ended = 0.0;
        self.latency_usual *= 1.0 + USUAL_RISE;
        match &mut self.noise {
            Some(noise) => {
                noise.rounds_left -= 1;
                let risen = self.share.get() > noise.share + NOISE_MARGIN;
                if risen || noise.rounds_left == 0 {
                    self.noise = None;
                }
                self.borne = if risen { 0.0 } else { self.limit };
            }
            None => {
                self.streak = Streak::default();
                if self.ceiling.is_infinite() {
                    self.step = (self.step * 2.0).min(self.limit);
                }
            }
        }
    }

    fn watch(&mut self, latency: Option<Duration>) {
        let Some(latency) = latency.map(|latency| latency.as_secs_f64()) else { return };
        self.latencies += 1;
        // A mean at first, and usual only once it is one of several: the first answer may be the quickest of all.
        self.latency_now += (latency - self.latency_now) / LATENCY_NOW.min(f64::from(self.latencies));
        if f64::from(self.latencies) >= LATENCY_NOW {
            self.latencies = LATENCY_NOW as u32;
            self.latency_usual = self.latency_usual.min(self.latency_now);
        }
    }
}

#[cfg(test)]
mod tests;
