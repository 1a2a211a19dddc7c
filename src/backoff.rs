//! Exponential backoff, capped, with full jitter. Pure, except that it draws random jitter.

use std::time::Duration;

use ::backoff::backoff::Backoff;
use ::backoff::exponential::ExponentialBackoffBuilder;

use crate::clock::Clock;

/// The longest wait. A longer base, cap or floor counts as this. Up to here the doubling, in floating point, is exact
/// to the nanosecond.
pub const WAIT_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// One nanosecond doubled this many times exceeds [`WAIT_MAX`], so further doublings change nothing.
const DOUBLINGS_MAX: u32 = 52;

/// Waits are spread over this part (1/8) of the floor above it, so that events with the same floor do not wake at once.
const FLOOR_SPREAD: u32 = 8;

/// The longest wait after `n` earlier failures: `min(cap, base * 2^n)`.
pub fn ceiling(n: u32, base: Duration, cap: Duration) -> Duration {
    let (base, cap) = (base.min(WAIT_MAX), cap.min(WAIT_MAX));
    let mut schedule = ExponentialBackoffBuilder::<::backoff::SystemClock>::new()
        .with_initial_interval(base)
        .with_multiplier(2.0)
        .with_randomization_factor(0.0) // we add our own jitter, which is full and can be seeded
        .with_max_interval(cap)
        .with_max_elapsed_time(None)
        .build();
    for _ in 0..n.min(DOUBLINGS_MAX) {
        // The current interval is read below. The return value of `next_backoff` is off by a random nanosecond.
        if schedule.next_backoff().is_none() || schedule.current_interval >= cap {
            break;
        }
    }
    schedule.current_interval.min(cap)
}

/// The wait after `n` earlier failures: uniformly random in `0..=ceiling(n, base, cap)`. If that is less than `floor`
/// (the wait a server asked for), the wait is random between the floor and nine eighths of it.
pub fn delay(n: u32, base: Duration, cap: Duration, floor: Duration, clock: &Clock) -> Duration {
    let floor = floor.min(WAIT_MAX);
    let wait = clock.jitter(ceiling(n, base, cap));
    if wait >= floor { wait } else { floor + clock.jitter(floor / FLOOR_SPREAD) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::UnixMillis;

    fn any_duration() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::MAX),
            (0..10_000_u64).prop_map(Duration::from_millis),
            (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(s, n)| Duration::new(s, n)),
            (0..4_000_000_u64, 0..1_000_000_000_u32).prop_map(|(s, n)| Duration::new(s, n)),
        ]
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let at = |n| ceiling(n, Duration::from_millis(500), Duration::from_secs(60)).as_millis();
        assert_eq!([0, 1, 2, 6, 7, 8, u32::MAX].map(at), [500, 1_000, 2_000, 32_000, 60_000, 60_000, 60_000]);
    }

    proptest! {
        #[test]
        fn the_ceiling_is_the_formula_exactly(n in any::<u32>(), base in any_duration(), cap in any_duration()) {
            let (base, cap) = (base.min(WAIT_MAX).as_nanos(), cap.min(WAIT_MAX).as_nanos());
            let formula = base.saturating_mul(1_u128 << n.min(60)).min(cap);
            let nanos = |nanos: u128| Duration::from_nanos(u64::try_from(nanos).unwrap());
            prop_assert_eq!(ceiling(n, nanos(base), nanos(cap)), nanos(formula));
        }

        #[test]
        fn the_ceiling_never_falls_as_failures_grow(n in 0..80_u32, base in any_duration(), cap in any_duration()) {
            prop_assert!(ceiling(n, base, cap) <= ceiling(n + 1, base, cap));
            prop_assert!(ceiling(n, base, cap) <= cap);
        }

        #[test]
        fn a_delay_keeps_its_bounds(
            n in any::<u32>(), base in any_duration(), cap in any_duration(), floor in any_duration(), seed in any::<u64>(),
        ) {
            let clock = Clock::seeded(UnixMillis(0), seed);
            let (floor, wait) = (floor.min(WAIT_MAX), delay(n, base, cap, floor, &clock));
            prop_assert!(wait >= floor);
            prop_assert!(wait <= ceiling(n, base, cap).max(floor + floor / FLOOR_SPREAD));
        }
    }

    #[test]
    fn delays_are_spread_over_the_whole_range_and_above_a_floor() {
        let clock = Clock::seeded(UnixMillis(0), 1);
        let base = Duration::from_secs(8);
        let draws: Vec<_> = (0..500).map(|_| delay(0, base, base, Duration::ZERO, &clock)).collect();
        assert!(draws.iter().any(|wait| *wait < base / 10) && draws.iter().any(|wait| *wait > base * 9 / 10));
        let floored: std::collections::BTreeSet<_> =
            (0..500).map(|_| delay(0, Duration::ZERO, base, base, &clock)).collect();
        assert!(floored.len() > 400, "they do not wake at once");
    }
}
