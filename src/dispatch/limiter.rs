//! How many attempts may be in flight: found by trying, as TCP finds its window. Pure.
//!
//! The limit grows only while it is reached: it doubles at first (slow start), then grows by steps that double with
//! each round trip without a throttle. It shrinks at most once a round trip, when Lambda throttles or does not answer:
//! by the last step, and then by [`DECREASE`] if that did not suffice. The limit that was throttled is the *ceiling*.
//! The limit returns quickly to one below the ceiling. It goes beyond only when each throttled call is paid for with
//! [`PRICE`] answered ones (CUBIC's plateau, counted in calls). So at any capacity about one call in [`PRICE`] is
//! wasted on looking for more.
//!
//! Some throttling has nothing to do with concurrency. An experiment tells: if the share of throttled calls stays the
//! same cut after cut, the limiter restores the limit and accepts that share (*noise*). After a while it repeats the
//! experiment. Further cuts would end at one attempt at a time, with the same share throttled.
//!
//! A rise of latency stops growth, because more attempts at once would only wait elsewhere.
//!
//! A lane that had no answer yet has one attempt in flight. A lane that gets no answers any more is cut to a quarter,
//! even within a round trip. Attempts that hang occupy slots that all lanes share.

use std::time::Duration;

use tokio::time::Instant;

/// The limit at which the search begins, after the first answer.
const START: f64 = 8.0;

/// The part of the limit that a first cut leaves at least. Each further cut in a row leaves exactly this part.
const DECREASE: f64 = 0.8;

/// The part of the limit that a cut leaves if as many attempts as the limit allows have failed in a row.
const DECREASE_UNANSWERED: f64 = 0.25;

/// Answered calls that pay for a throttled one. Also the longest stay below the ceiling, in round trips.
const PRICE: f64 = 40.0;

/// How fast a limit returns towards its ceiling: this part of the way in the first round trip.
const RETURN: f64 = 0.25;

/// Number of calls over which the share of throttled ones is smoothed.
const SHARE_CALLS: f64 = 64.0;

/// Number of cuts in a row after which the share is compared with the share at the second cut.
const EXPERIMENT_CUTS: u32 = 4;

/// The share counts as unchanged if at least this part of it is left, because chance takes some away. Cuts that help
/// leave less: three of them nearly halve the limit.
const UNCHANGED: f64 = 0.6;

/// Above this share, cuts go on even if they do not help.
const NOISE_MAX: f64 = 0.5;

/// How far the share may rise above the noise before cuts begin again.
const NOISE_MARGIN: f64 = 0.15;

/// Round trips between two experiments.
const NOISE_ROUNDS: u32 = 20;

/// The fewest attempts that count as a round trip. With fewer, the lack of a throttle may be chance.
const ROUND_MIN: f64 = 8.0;

/// Number of answers over which the current latency is smoothed.
const LATENCY_NOW: f64 = 16.0;

/// If the current latency is this many times the usual, the limit does not grow beyond the one that had the usual
/// latency.
const LATENCY_RISE: f64 = 2.0;

/// The usual latency is the lowest of late. It rises by this part in a round trip. Slowness that we cause must not
/// become usual, or the limit would creep up for ever.
const USUAL_RISE: f64 = 1.0 / 8_192.0;

/// What an attempt says about a limit of attempts in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Lambda took the call, whatever became of it.
    Taken,
    TooMuch,
    /// Nothing.
    Unknown,
}

#[derive(Debug, Clone)]
pub struct Limiter {
    limit: f64,
    max: f64,
    /// What the limit grows by in a round trip.
    step: f64,
    /// The limit that was throttled last. Infinite if none is known.
    ceiling: f64,
    /// Answered calls until the limit may pass the ceiling again.
    debt: f64,
    round: Round,
    /// Whether an answer has arrived yet.
    proven: bool,
    /// Failures since the last answer, or since the last cut that they caused.
    unanswered: f64,
    share: Share,
    streak: Streak,
    noise: Option<Noise>,
    /// The highest limit that an experiment restored, where the next one that finds noise returns to, however low
    /// chance has brought the limit. Zero if there was none.
    borne: f64,
    latency_now: f64,
    latency_usual: f64,
    /// Number of answers in the current latency, up to [`LATENCY_NOW`].
    latencies: u32,
    /// The limit at which the latency was last the usual one.
    calm: f64,
}

/// The smoothed share of throttled calls: at first a mean over all calls, later over about the last [`SHARE_CALLS`].
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

/// A round trip: as many attempts as the limit allows at once, all of them begun under this limit.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// Attempts that began before this ran under an older, higher limit.
    since: Option<Instant>,
    ended: f64,
}

/// Cuts without a quiet round trip between them.
#[derive(Debug, Clone, Copy, Default)]
struct Streak {
    cuts: u32,
    /// The limit before the first cut.
    limit: f64,
    /// The share at the second cut, when the first limit had its effect.
    share: f64,
}

/// Throttling that cuts did not cure.
#[derive(Debug, Clone, Copy)]
struct Noise {
    share: f64,
    rounds_left: u32,
}

impl Limiter {
    /// A limiter that searches for its limit, up to `max` (at least 1). It allows one attempt until the first answer.
    pub fn new(max: u32) -> Self {
        Self { proven: false, ..Self::starting_at(1.0, max) }
    }

    /// As [`Limiter::new`], but allows several attempts before the first answer. For calls whose answer may take
    /// minutes.
    pub fn patient(max: u32) -> Self {
        Self::starting_at(START, max)
    }

    /// A limiter that stays at `max` (at least 1) until it is throttled.
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

    /// Sets the maximum (at least 1).
    pub fn set_max(&mut self, max: u32) {
        self.max = f64::from(max.max(1));
        self.limit = self.limit.min(self.max);
    }

    /// Attempts that may be in flight: at least 1, at most the maximum.
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Searches again from a low limit. Called after a hold, so that waiting events do not all come back at once.
    pub fn restart(&mut self) {
        self.limit = self.limit.min(START);
        self.step = self.limit;
        self.round = Round::default();
        self.streak = Streak::default();
    }

    /// Learns from the end of an attempt. See [`Limiter::succeeded`].
    pub fn learn(&mut self, load: Load, bound: bool, latency: Option<Duration>, began: Instant, ended: Instant) {
        match load {
            Load::Taken => self.succeeded(bound, latency, began),
            Load::TooMuch => self.throttled(began, ended),
            Load::Unknown => {}
        }
    }

    /// An attempt got an answer that is no throttle. `bound` says whether the limit was reached when the last attempt
    /// began. It does not say whether it is reached now, because several attempts may end before another begins.
    /// `latency` is `None` if it depends on the event.
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
        // If the limit was not reached, the answer tells nothing about a higher one.
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
            // Just below the ceiling. `limit()` returns only the whole part.
            self.limit = self.limit.max(self.ceiling - 1.0 / 1_024.0);
        }
    }

    /// An attempt that began at `began` was throttled or got no answer.
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

    /// The first answer starts the search.
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

    /// Restores the limit from before the useless cuts.
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

    /// Whether an attempt began under the current limit, so that its result counts.
    fn is_own(&self, began: Instant) -> bool {
        self.round.since.is_none_or(|since| began >= since)
    }

    /// Counts an attempt of the round that ended without a cut.
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
        // At first a plain mean. It counts as usual only once it covers several answers, because the first one may be
        // the quickest of all.
        self.latency_now += (latency - self.latency_now) / LATENCY_NOW.min(f64::from(self.latencies));
        if f64::from(self.latencies) >= LATENCY_NOW {
            self.latencies = LATENCY_NOW as u32;
            self.latency_usual = self.latency_usual.min(self.latency_now);
        }
    }
}

#[cfg(test)]
mod tests;
