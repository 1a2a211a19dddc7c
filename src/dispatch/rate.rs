//! Rates that an operator has fixed. Pure.

use std::time::Duration;

use crate::clock::UnixMillis;

/// How much of a second's tokens may be used at once: a tenth.
const BURST_PART: f64 = 10.0;

/// At most so many starts a second (a token bucket, kept as the time at which it is full again: GCRA).
#[derive(Debug, Clone)]
pub struct Rate {
    /// Milliseconds between two starts.
    interval: f64,
    /// Starts at once.
    burst: f64,
    /// When the bucket is full again, in milliseconds.
    full_at: f64,
}

impl Rate {
    /// None for 0, which means no limit.
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

    /// One start.
    pub fn take(&mut self, now: UnixMillis) {
        self.full_at = self.full_at.max(now.0 as f64) + self.interval;
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

/// At most so many starts in each hour of the clock: a guard against spending without bound, not a rate. Counted in memory:
/// a restart begins a new count.
#[derive(Debug, Clone)]
pub struct SpendGuard {
    max: u64,
    hour: u64,
    started: u64,
}

impl SpendGuard {
    /// None for 0, which means no limit.
    pub fn per_hour(max: u32) -> Option<Self> {
        (max > 0).then(|| Self { max: max.into(), hour: 0, started: 0 })
    }

    /// Starts that are left in this hour.
    pub fn free(&self, now: UnixMillis) -> u32 {
        let started = if self.hour == hour(now) { self.started } else { 0 };
        u32::try_from(self.max.saturating_sub(started)).unwrap_or(u32::MAX)
    }

    /// When the next start is allowed.
    pub fn next(&self, now: UnixMillis) -> UnixMillis {
        if self.free(now) > 0 {
            now
        } else {
            UnixMillis(0).plus(HOUR * u32::try_from(hour(now) + 1).unwrap_or(u32::MAX))
        }
    }

    /// One start; says whether it was the last of the hour.
    pub fn take(&mut self, now: UnixMillis) -> bool {
        if self.hour != hour(now) {
            (self.hour, self.started) = (hour(now), 0);
        }
        self.started += 1;
        self.started == self.max
    }

    /// The same count under another ceiling.
    pub fn with_max(self, max: u32) -> Option<Self> {
        (max > 0).then(|| Self { max: max.into(), ..self })
    }
}

fn hour(now: UnixMillis) -> u64 {
    now.0 / 3_600_000
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

    #[test]
    fn an_hour_has_its_ceiling_and_the_next_one_is_new() {
        let mut guard = SpendGuard::per_hour(2).unwrap();
        let now = UnixMillis(3_600_000 * 5 + 17);
        assert!(!guard.take(now));
        assert!(guard.take(now));
        assert_eq!((guard.free(now), guard.next(now)), (0, UnixMillis(3_600_000 * 6)));
        assert_eq!(guard.free(guard.next(now)), 2);
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(Rate::per_second(0).is_none() && SpendGuard::per_hour(0).is_none());
    }
}
