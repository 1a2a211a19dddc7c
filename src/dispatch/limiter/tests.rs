use proptest::prelude::*;

use super::*;
use crate::clock::{Clock, UnixMillis};

fn begin() -> Instant {
    Clock::seeded(UnixMillis(0), 1).instant()
}

proptest! {
    #[test]
    fn the_limit_stays_between_one_and_its_maximum(
        max in 0..300_u32, throttles in proptest::collection::vec((any::<bool>(), 0..40_u64), 0..800),
    ) {
        let begin = begin();
        let mut limiter = Limiter::new(max);
        for (n, (throttled, age)) in throttles.into_iter().enumerate() {
            let now = begin + Duration::from_millis(40 + n as u64);
            let began = now - Duration::from_millis(age);
            if throttled {
                limiter.throttled(began, now);
            } else {
                limiter.succeeded(true, Some(now - began), began);
            }
            prop_assert!((1..=max.max(1)).contains(&limiter.limit()));
        }
    }

    #[test]
    fn a_throttle_never_raises_the_limit_unless_cuts_are_useless_and_an_answer_never_lowers_it(
        throttles in proptest::collection::vec(any::<bool>(), 0..300),
    ) {
        let begin = begin();
        let mut limiter = Limiter::new(100);
        for (n, throttled) in throttles.into_iter().enumerate() {
            let now = begin + Duration::from_millis(n as u64);
            let before = limiter.clone();
            if throttled { limiter.throttled(now, now) } else { limiter.succeeded(true, None, now) }
            if !throttled {
                prop_assert!(limiter.limit >= before.limit);
            } else if limiter.noise.is_none() || before.noise.is_some() {
                prop_assert!(limiter.limit <= before.limit);
            }
        }
    }
}

#[test]
fn throttles_of_one_round_trip_cut_once() {
    let begin = begin();
    let mut limiter = Limiter::patient(64);
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
    let now = begin();
    let mut limiter = Limiter::patient(64);
    limiter.set_max(2);
    assert_eq!(limiter.limit(), 2);
    limiter.set_max(3);
    limiter.succeeded(true, None, now);
    assert_eq!(limiter.limit(), 3);
}

#[test]
fn a_limit_that_does_not_bind_does_not_grow() {
    let now = begin();
    let mut limiter = Limiter::patient(64);
    let start = limiter.limit();
    limiter.succeeded(false, None, now);
    assert_eq!(limiter.limit(), start);
    limiter.succeeded(true, None, now);
    assert_eq!(limiter.limit(), start + 1);
}

#[test]
fn a_rise_of_latency_stops_growth_and_becomes_usual_only_slowly() {
    let now = begin();
    let mut limiter = Limiter::patient(10_000);
    let answer = |limiter: &mut Limiter, millis| {
        limiter.succeeded(true, Some(Duration::from_millis(millis)), now);
    };
    (0..50).for_each(|_| answer(&mut limiter, 20));
    (0..20).for_each(|_| answer(&mut limiter, 200));
    let risen = limiter.limit();
    // A hundred round trips.
    (0..100 * risen).for_each(|_| answer(&mut limiter, 200));
    assert_eq!(limiter.limit(), risen);
    (0..16_000 * risen).for_each(|_| answer(&mut limiter, 200));
    assert!(limiter.limit() > risen, "what lasts is usual");
    (0..20).for_each(|_| answer(&mut limiter, 20));
    let fallen = limiter.limit();
    (0..20).for_each(|_| answer(&mut limiter, 100));
    assert!(limiter.limit() < fallen + 20, "a fall is usual at once");
}

#[test]
fn one_attempt_goes_until_it_is_answered() {
    let now = begin();
    let mut limiter = Limiter::new(64);
    for _ in 0..20 {
        assert_eq!(limiter.limit(), 1);
        limiter.throttled(now, now);
    }
    limiter.succeeded(true, None, now);
    assert_eq!(limiter.limit(), 8, "and what failed before is forgotten");
    limiter.succeeded(true, None, now);
    assert_eq!(limiter.limit(), 9);
    assert_eq!(Limiter::patient(64).limit(), 8, "not where an answer takes minutes");
}

#[test]
fn a_lane_that_nobody_answers_any_more_comes_down_to_one_attempt_within_three_round_trips() {
    let begin = begin();
    let mut limiter = Limiter::patient(64);
    (0..2_000).for_each(|_| limiter.succeeded(true, None, begin));
    assert_eq!(limiter.limit(), 64);
    for round in 1..=3 {
        let began = begin + Duration::from_secs(10 * round);
        (0..limiter.limit()).for_each(|_| limiter.throttled(began, began + Duration::from_secs(10)));
    }
    assert_eq!(limiter.limit(), 1);
    // The limiter does not take it for throttling that no cut cures.
    for round in 4..200 {
        let began = begin + Duration::from_secs(10 * round);
        (0..limiter.limit()).for_each(|_| limiter.throttled(began, began + Duration::from_secs(10)));
        assert_eq!(limiter.limit(), 1);
    }
}

#[test]
fn a_restart_after_a_pause_begins_low() {
    let now = begin();
    let mut limiter = Limiter::patient(1_000);
    (0..2_000).for_each(|_| limiter.succeeded(true, None, now));
    assert!(limiter.limit() > 150);
    limiter.restart();
    assert_eq!(limiter.limit(), 8);
    (0..2_000).for_each(|_| limiter.succeeded(true, None, now));
    assert!(limiter.limit() > 150, "{}", limiter.limit());
}
