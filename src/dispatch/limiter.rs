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

use std::time::Duration;

use tokio::time::Instant;

/// The first limit.
const START: f64 = 8.0;

/// What a cut leaves of the limit at least; and what a further one in a row leaves.
const DECREASE: f64 = 0.8;

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

/// Answers over which latency is smoothed: the present, and what it is compared with.
const LATENCY_NOW: f64 = 16.0;
const LATENCY_USUAL: f64 = 256.0;

/// A present latency of so many times the usual stops growth.
const LATENCY_RISE: f64 = 2.0;

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
    /// The smoothed share of throttled calls.
    share: f64,
    streak: Streak,
    noise: Option<Noise>,
    /// The highest limit that noise let stand: where the next experiment that ends so goes back to, however low chance
    /// has brought it. Zero if none.
    borne: f64,
    latency_now: f64,
    latency_usual: f64,
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
    /// A limiter that looks for its limit, up to `max`, which is at least 1.
    pub fn new(max: u32) -> Self {
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
            limit,
            max,
            step: limit,
            ceiling: f64::INFINITY,
            debt: 0.0,
            round: Round::default(),
            share: 0.0,
            streak: Streak::default(),
            noise: None,
            borne: 0.0,
            latency_now: 0.0,
            latency_usual: 0.0,
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

    /// An attempt was answered without complaint while `in_flight`, itself included, were under way. `latency` counts
    /// only where it does not depend on the event.
    pub fn succeeded(&mut self, in_flight: u32, latency: Option<Duration>, began: Instant) {
        self.share -= self.share / SHARE_CALLS;
        self.debt = (self.debt - 1.0).max(0.0);
        self.watch(latency);
        if self.is_own(began) {
            self.count();
        }
        // A limit that does not bind teaches nothing about a higher one.
        if in_flight < self.limit() || self.latency_now > LATENCY_RISE * self.latency_usual {
            return;
        }
        let grown = (self.limit + self.step / self.limit).min(self.max);
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
        self.share += (1.0 - self.share) / SHARE_CALLS;
        if self.noise.is_some() {
            if self.is_own(began) {
                self.count();
            }
            return;
        }
        self.debt = (self.debt + PRICE).min(PRICE * self.limit.max(2.0));
        if self.is_own(began) {
            self.cut(now);
        }
    }

    fn cut(&mut self, now: Instant) {
        if self.streak.cuts == 0 {
            self.streak.limit = self.limit;
        }
        self.streak.cuts += 1;
        if self.streak.cuts == 2 {
            self.streak.share = self.share;
        }
        let useless = self.streak.cuts >= EXPERIMENT_CUTS && self.share >= UNCHANGED * self.streak.share;
        if useless && self.share <= NOISE_MAX {
            self.bear(now);
            return;
        }
        self.ceiling = self.limit.floor().max(2.0);
        let least = self.limit * DECREASE;
        self.limit = if self.streak.cuts == 1 { least.max(self.limit - self.step) } else { least }.max(1.0);
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
        self.noise = Some(Noise { share: self.share, rounds_left: NOISE_ROUNDS });
        self.round = Round { since: Some(now), ended: 0.0 };
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
        match &mut self.noise {
            Some(noise) => {
                noise.rounds_left -= 1;
                let risen = self.share > noise.share + NOISE_MARGIN;
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
        if self.latency_usual == 0.0 {
            (self.latency_now, self.latency_usual) = (latency, latency);
        }
        self.latency_now += (latency - self.latency_now) / LATENCY_NOW;
        self.latency_usual += (latency - self.latency_usual) / LATENCY_USUAL;
    }
}

#[cfg(test)]
mod tests;
