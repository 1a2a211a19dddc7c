//! Rates and ceilings that an operator has set. Pure.

use std::time::Duration;

use crate::clock::UnixMillis;
use crate::outbox::Spent;

/// The part of a second's starts that may happen at once: a tenth.
const BURST_PART: f64 = 10.0;

/// Limits starts per second. A token bucket, stored as the time at which it is full again (GCRA).
#[derive(Debug, Clone)]
pub struct Rate {
    /// Milliseconds between two starts.
    interval: f64,
    /// Starts that may happen at once.
    burst: f64,
    /// When the bucket is full again, in milliseconds.
    full_at: f64,
}

impl Rate {
    /// Returns `None` for 0, which means no limit.
    pub fn per_second(rate: u32) -> Option<Self> {
        let rate = f64::from(rate);
        (rate > 0.0).then(|| Self {
            interval: 1_000.0 / rate,
            burst: (rate / BURST_PART).floor().max(1.0),
            full_at: 0.0,
        })
    }

    /// Starts that are allowed now.
    pub fn free(&self, now: UnixMillis) -> u32 {
        let used = ((self.full_at - now.0 as f64) / self.interval).max(0.0);
        (self.burst - used + 1e-6).max(0.0) as u32
    }

    /// When the next start is allowed.
    pub fn next(&self, now: UnixMillis) -> UnixMillis {
        let at = self.full_at - (self.burst - 1.0) * self.interval;
        UnixMillis(at.max(0.0).ceil() as u64).max(now)
    }

    /// The clock was set forward by this many milliseconds.
    pub fn stepped(&mut self, by: i64) {
        self.full_at += by as f64;
    }

    /// Counts one start.
    pub fn take(&mut self, now: UnixMillis) {
        self.full_at = self.full_at.max(now.0 as f64) + self.interval;
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

/// A reserve is this part of the ceiling. A crash can cost at most one reserve.
const RESERVE_PART: u64 = 20;

/// The most attempts in a reserve.
const RESERVE_MAX: u64 = 1_000;

/// Limits starts in each hour of the clock: a guard against unlimited spending, not a rate.
///
/// A start must come from a stored reserve, and after a crash the whole reserve counts as spent. So the ceiling also
/// holds over restarts, and one write covers many starts.
#[derive(Debug, Clone)]
pub struct SpendGuard {
    max: u64,
    spent: Spent,
    /// Starts of this hour that are on stable storage, or will be with the lease that asked for them.
    reserved: u64,
}

impl SpendGuard {
    /// Continues from what was spent before. Returns `None` for 0, which means no limit.
    pub fn per_hour(max: u32, spent: Spent) -> Option<Self> {
        (max > 0).then(|| Self { max: max.into(), spent, reserved: spent.attempts })
    }

    /// Starts that are left in this hour.
    pub fn free(&self, now: UnixMillis) -> u32 {
        let started = if self.spent.counts(now) { self.spent.attempts } else { 0 };
        u32::try_from(self.max.saturating_sub(started)).unwrap_or(u32::MAX)
    }

    /// When the next start is allowed.
    pub fn next(&self, now: UnixMillis) -> UnixMillis {
        if self.free(now) > 0 {
            now
        } else {
            UnixMillis(0).plus(HOUR * u32::try_from(self.spent.hour + 1).unwrap_or(u32::MAX))
        }
    }

    /// Reserves this many of the free starts. Returns what to store first if the reserve does not suffice yet.
    pub fn reserve(&mut self, starts: u32, now: UnixMillis) -> Option<Spent> {
        self.turn(now);
        let needed = self.spent.attempts + u64::from(starts);
        if needed <= self.reserved {
            return None;
        }
        let reserve = (self.max / RESERVE_PART).clamp(1, RESERVE_MAX);
        self.reserved = needed.max((self.spent.attempts + reserve).min(self.max));
        Some(Spent { attempts: self.reserved, ..self.spent })
    }

    /// Whether a start is in reserve. The turn of the hour ends a reserve.
    pub fn has_reserve(&self, now: UnixMillis) -> bool {
        self.spent.is_of(now) && self.spent.attempts < self.reserved
    }

    /// Gives back the unused reserve. Returns what to store, if there was one.
    pub fn give_back(&mut self) -> Option<Spent> {
        let unused = self.reserved > self.spent.attempts;
        self.reserved = self.spent.attempts;
        unused.then_some(self.spent)
    }

    /// Counts one start. Returns whether it was the last of the hour.
    pub fn take(&mut self, now: UnixMillis) -> bool {
        self.turn(now);
        self.spent.attempts += 1;
        self.spent.attempts == self.max
    }

    /// Keeps the count and changes the ceiling.
    pub fn with_max(self, max: u32) -> Option<Self> {
        (max > 0).then(|| Self { max: max.into(), ..self })
    }

    /// Starts a new count if `now` is in a later hour, or long before an hour that a wrong clock noted.
    fn turn(&mut self, now: UnixMillis) {
        let hour = Spent::hour_of(now);
        if !self.spent.is_of(now) {
            (self.spent, self.reserved) = (Spent { hour, attempts: 0 }, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_second_has_more_starts_than_the_rate_and_a_burst(
            rate in 1..1_000_u32, asked in proptest::collection::vec(0..50_u64, 1..60),
        ) {
            let mut bucket = Rate::per_second(rate).unwrap();
            let mut now = UnixMillis(1_000_000);
            let mut starts = Vec::new();
            for wait in asked {
                now = now.plus(Duration::from_millis(wait));
                for _ in 0..bucket.free(now) {
                    bucket.take(now);
                    starts.push(now.0);
                }
            }
            for (at, first) in starts.iter().enumerate() {
                let within = starts[at..].iter().take_while(|start| **start < first + 1_000).count();
                prop_assert!(within as f64 <= f64::from(rate) * 1.1 + 2.0, "{within} in a second at {rate}");
            }
        }

        #[test]
        fn the_next_start_is_allowed_when_it_is_said_to_be(rate in 1..3_000_u32, takes in 1..500_u32) {
            let mut bucket = Rate::per_second(rate).unwrap();
            let now = UnixMillis(1_000_000);
            (0..takes).for_each(|_| bucket.take(now));
            prop_assert!(bucket.free(bucket.next(now)) >= 1);
        }
    }

    #[test]
    fn a_rate_is_reached() {
        let mut bucket = Rate::per_second(250).unwrap();
        let mut starts = 0;
        let mut now = UnixMillis(1_000_000);
        while now.0 < 1_010_000 {
            while bucket.free(now) > 0 {
                bucket.take(now);
                starts += 1;
            }
            now = bucket.next(now);
        }
        assert!((2_500..=2_526).contains(&starts), "{starts}");
    }

    const HOUR_5: UnixMillis = UnixMillis(3_600_000 * 5 + 17);

    fn guard(max: u32, attempts: u64) -> SpendGuard {
        SpendGuard::per_hour(max, Spent { hour: 5, attempts }).unwrap()
    }

    #[test]
    fn an_hour_has_its_ceiling_and_the_next_one_is_new() {
        let mut guard = guard(2, 0);
        assert!(!guard.take(HOUR_5));
        assert!(guard.take(HOUR_5));
        assert_eq!((guard.free(HOUR_5), guard.next(HOUR_5)), (0, UnixMillis(3_600_000 * 6)));
        assert_eq!(guard.free(guard.next(HOUR_5)), 2);
    }

    #[test]
    fn what_was_spent_before_counts_also_if_the_clock_went_back() {
        for now in [HOUR_5, UnixMillis(3_600_000 * 3)] {
            assert_eq!((guard(10, 4).free(now), guard(10, 12).free(now)), (6, 0));
        }
        assert_eq!(guard(10, 4).free(UnixMillis(3_600_000 * 6)), 10);
    }

    #[test]
    fn a_reserve_is_given_back_or_goes_with_its_hour() {
        let mut guard = guard(100, 0);
        assert_eq!(guard.reserve(2, HOUR_5), Some(Spent { hour: 5, attempts: 5 }), "a twentieth");
        guard.take(HOUR_5);
        assert!(guard.has_reserve(HOUR_5));
        assert!(!guard.has_reserve(UnixMillis(3_600_000 * 6)), "nothing of the new hour is in reserve");
        assert_eq!(guard.give_back(), Some(Spent { hour: 5, attempts: 1 }));
        assert_eq!(guard.give_back(), None);
    }

    proptest! {
        /// However often the process dies, no more starts happen than the ceiling allows, and each crash costs at most
        /// one reserve.
        #[test]
        fn the_ceiling_holds_over_crashes(
            max in 1..3_000_u32, steps in proptest::collection::vec((1..40_u32, 0..40_u32, any::<bool>()), 1..200),
        ) {
            let mut stored = Spent { hour: 5, attempts: 0 };
            let mut guard = SpendGuard::per_hour(max, stored).unwrap();
            let (mut starts, mut crashes) = (0, 0);
            for (asked, begun, crash) in steps {
                let asked = asked.min(guard.free(HOUR_5));
                if asked > 0 {
                    stored = guard.reserve(asked, HOUR_5).unwrap_or(stored);
                    for _ in 0..begun.min(asked) {
                        prop_assert!(guard.has_reserve(HOUR_5));
                        guard.take(HOUR_5);
                        starts += 1;
                    }
                }
                if crash {
                    crashes += 1;
                    guard = SpendGuard::per_hour(max, stored).unwrap();
                }
            }
            prop_assert!(starts <= max);
            let lost = u64::from(max) - u64::from(guard.free(HOUR_5)) - u64::from(starts);
            prop_assert!(lost <= crashes * (RESERVE_MAX.min(u64::from(max) / RESERVE_PART).max(40)), "{lost} of {crashes}");
        }
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(Rate::per_second(0).is_none() && SpendGuard::per_hour(0, Spent::default()).is_none());
    }
}
