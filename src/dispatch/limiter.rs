//! How many attempts of one lane may be in flight: found by trying, as TCP finds its window. Pure.
//!
//! Doubles each round trip until the first throttle (slow start), then grows by one a round trip while it is what binds,
//! and shrinks by [`DECREASE`] at most once a round trip when Lambda throttles or does not answer.

use tokio::time::Instant;

/// The first limit.
const START: f64 = 8.0;

/// What a throttle leaves of the limit.
const DECREASE: f64 = 0.7;

#[derive(Debug, Clone)]
pub struct Limiter {
    limit: f64,
    max: f64,
    slow_start: bool,
    /// Attempts that began before this have no say: they ran under the older, higher limit.
    cut_at: Option<Instant>,
}

impl Limiter {
    /// A limiter that never exceeds `max`, which is at least 1.
    pub fn new(max: u32) -> Self {
        let max = f64::from(max.max(1));
        Self { limit: START.min(max), max, slow_start: true, cut_at: None }
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

    /// An attempt was answered without complaint while `in_flight`, itself included, were under way.
    pub fn succeeded(&mut self, in_flight: u32) {
        // A limit that does not bind teaches nothing about a higher one.
        if in_flight < self.limit() {
            return;
        }
        let step = if self.slow_start { 1.0 } else { 1.0 / self.limit };
        self.limit = (self.limit + step).min(self.max);
    }

    /// An attempt that began at `began` was throttled, or got no answer.
    pub fn throttled(&mut self, began: Instant, now: Instant) {
        if self.cut_at.is_some_and(|cut_at| began < cut_at) {
            return;
        }
        self.slow_start = false;
        self.limit = (self.limit * DECREASE).max(1.0);
        self.cut_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock, UnixMillis};

    proptest! {
        #[test]
        fn the_limit_stays_between_one_and_its_maximum(max in 0..300_u32, throttles in proptest::collection::vec(any::<bool>(), 0..500)) {
            let begin = Clock::seeded(UnixMillis(0), 1).instant();
            let mut limiter = Limiter::new(max);
            for (n, throttled) in throttles.into_iter().enumerate() {
                let now = begin + Duration::from_millis(n as u64);
                if throttled { limiter.throttled(now, now) } else { limiter.succeeded(limiter.limit()) }
                prop_assert!((1..=max.max(1)).contains(&limiter.limit()));
            }
        }
    }

    #[test]
    fn throttles_of_one_round_trip_cut_once() {
        let begin = Clock::seeded(UnixMillis(0), 1).instant();
        let mut limiter = Limiter::new(64);
        let later = begin + Duration::from_millis(10);
        limiter.throttled(begin, later);
        let once = limiter.limit();
        limiter.throttled(begin, later);
        assert_eq!(limiter.limit(), once);
        limiter.throttled(later, later);
        assert!(limiter.limit() < once);
    }

    #[test]
    fn another_maximum_binds_at_once() {
        let mut limiter = Limiter::new(64);
        limiter.set_max(2);
        assert_eq!(limiter.limit(), 2);
        limiter.set_max(3);
        limiter.succeeded(2);
        assert_eq!(limiter.limit(), 3);
    }

    #[test]
    fn a_limit_that_does_not_bind_does_not_grow() {
        let mut limiter = Limiter::new(64);
        let start = limiter.limit();
        limiter.succeeded(start - 1);
        assert_eq!(limiter.limit(), start);
        limiter.succeeded(start);
        assert_eq!(limiter.limit(), start + 1);
    }
}
