use super::*;
use crate::clock::{Clock, UnixMillis};

/// A lane whose events are numbers. Times are seconds since the start.
struct Bench {
    start: Instant,
    health: Health<u32>,
}

const OTHERS_FINE: bool = false;
const OTHERS_FAIL: bool = true;

impl Bench {
    fn new() -> Self {
        Self { start: Clock::seeded(UnixMillis(0), 1).instant(), health: Health::new() }
    }

    fn at(&self, second: f64) -> Instant {
        self.start + Duration::from_secs_f64(second)
    }

    /// An attempt of `event` succeeded.
    fn well(&mut self, event: u32, from: f64, to: f64) {
        let (began, ended) = (self.at(from), self.at(to));
        self.health.succeeded(event, began, ended);
    }

    /// An attempt of `event` failed. Returns whose fault it is.
    fn fails(&mut self, event: u32, from: f64, to: f64, others_fail: bool) -> Blame {
        let (began, ended) = (self.at(from), self.at(to));
        let blame = self.health.weigh(Doubt { event, began, ended, ran: false, others_fail });
        self.health.failed(event, began, ended);
        blame
    }
}

#[test]
fn one_that_fails_while_others_get_through_is_to_blame() {
    let mut bench = Bench::new();
    let mut blamed = 0;
    for turn in 0..12 {
        let now = f64::from(turn) * 10.0;
        for other in 1..=5 {
            bench.well(100 * turn + other, now + 1.0, now + 1.1);
        }
        let blame = bench.fails(0, now + 2.0, now + 2.1, OTHERS_FINE);
        assert!(matches!(blame, Blame::Event | Blame::Ask), "{blame:?}");
        blamed += u32::from(blame == Blame::Event);
    }
    assert!(blamed >= 11, "only the first time may be in doubt: {blamed}");
}

#[test]
fn an_outage_is_told_by_the_second_event_that_fails() {
    let mut bench = Bench::new();
    for event in 1..50 {
        bench.well(event, 0.0, 0.1);
    }
    assert_eq!(bench.fails(100, 1.0, 1.1, OTHERS_FINE), Blame::Ask, "one alone proves nothing");
    bench.health.asking = true;
    assert_eq!(bench.fails(101, 1.0, 1.1, OTHERS_FINE), Blame::Wait);
    bench.health.asking = false;
    for second in 2..600 {
        let blame = bench.fails(100 + second, f64::from(second), f64::from(second) + 0.1, OTHERS_FINE);
        assert_ne!(blame, Blame::Event, "nothing got through: {second}");
        assert!(second < 120 || blame == OUTAGE, "old successes say nothing: {second}");
    }
}

#[test]
fn a_lane_that_fails_from_the_first_moment_is_asked_after_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.fails(1, 0.0, 0.1, OTHERS_FINE), Blame::Ask);
    for event in 2..1_000 {
        assert_eq!(bench.fails(event, f64::from(event), f64::from(event) + 0.1, OTHERS_FINE), OUTAGE);
    }
    assert!(bench.health.is_doubtful());
}

#[test]
fn the_only_event_of_a_lane_is_asked_after_unless_the_region_fails() {
    let mut bench = Bench::new();
    for second in 0..10 {
        let (from, to) = (f64::from(second), f64::from(second) + 0.1);
        assert_eq!(bench.fails(1, from, to, OTHERS_FINE), Blame::Ask);
        assert_eq!(bench.fails(1, from + 0.5, to + 0.5, OTHERS_FAIL), OUTAGE);
    }
}

#[test]
fn a_functions_own_error_needs_no_question() {
    let bench = Bench::new();
    let doubt = Doubt { event: 1, began: bench.at(0.0), ended: bench.at(1.0), ran: true, others_fail: OTHERS_FAIL };
    assert_eq!(bench.health.weigh(doubt), Blame::Event);
}

#[test]
fn a_function_that_fails_every_event_has_an_outage() {
    let mut bench = Bench::new();
    bench.fails(1, 0.0, 0.1, OTHERS_FINE);
    let doubt = Doubt { event: 2, began: bench.at(1.0), ended: bench.at(1.1), ran: true, others_fail: OTHERS_FINE };
    assert_eq!(bench.health.weigh(doubt), OUTAGE);
}

#[test]
fn several_that_fail_among_many_are_each_to_blame_also_when_they_are_all_that_is_left() {
    let mut bench = Bench::new();
    let poison = 900..903;
    for turn in 0..3 {
        let now = f64::from(turn);
        for other in 0..30 {
            bench.well(100 * turn + other, now + 0.01, now + 0.02);
        }
        for event in poison.clone() {
            bench.fails(event, now + 0.5, now + 0.6, OTHERS_FINE);
        }
    }
    // No other events come any more. The bad ones are known, and do not count against each other.
    for second in 10..1_000 {
        for event in poison.clone() {
            let (from, to) = (f64::from(second), f64::from(second) + 0.1);
            assert_eq!(bench.fails(event, from, to, OTHERS_FINE), Blame::Ask);
        }
    }
}

#[test]
fn a_lane_of_nothing_but_poison_is_taken_for_an_outage_until_something_gets_through() {
    let mut bench = Bench::new();
    for second in 0..100 {
        for event in 1..=3 {
            bench.fails(event, f64::from(second), f64::from(second) + 0.1, OTHERS_FINE);
        }
    }
    assert_eq!(bench.fails(1, 200.0, 200.1, OTHERS_FINE), OUTAGE);
    // A buried event no longer counts.
    bench.health.buried(2);
    bench.health.buried(3);
    assert_eq!(bench.fails(1, 201.0, 201.1, OTHERS_FINE), Blame::Ask);
}

/// However few calls get through: thousands of events fail, and none is charged often.
#[test]
fn a_lane_that_flaps_charges_nobody_to_death() {
    for (percent, dry_runs_pass) in [(1, false), (1, true), (10, true), (30, false), (30, true), (60, true)] {
        let mut rng = fastrand::Rng::with_seed(percent);
        let mut bench = Bench::new();
        let mut charged = vec![0_u32; 2_000];
        let mut now = 0.0;
        let (mut open, mut next) = (charged.iter().map(|_| true).collect::<Vec<_>>(), 0);
        for _ in 0..60_000 {
            now += 0.05;
            next = (next + 1) % 50 + next / 50 * 50;
            if (next / 50 * 50..next / 50 * 50 + 50).all(|event| !open[event]) {
                next += 50;
            }
            if next + 50 > open.len() {
                break;
            }
            let event = next as u32;
            if !open[next] {
                continue;
            }
            if rng.u64(0..100) < percent {
                bench.well(event, now, now + 0.01);
                open[next] = false;
            } else {
                let blame = bench.fails(event, now, now + 0.01, OTHERS_FINE);
                let asked = blame == Blame::Ask && (dry_runs_pass || rng.u64(0..100) < percent);
                charged[next] += u32::from(blame == Blame::Event || asked);
            }
        }
        let most = charged.iter().max().unwrap();
        assert!(*most < 12, "{percent} % get through, dry runs pass: {dry_runs_pass}: one was charged {most} times");
    }
}

#[test]
fn a_region_contradicts_where_most_of_its_lanes_fail() {
    let start = Clock::seeded(UnixMillis(0), 1).instant();
    let at = |second| start + Duration::from_secs(second);
    let mut lanes = Witnesses::new();
    lanes.note_latest(1, false, at(0), at(0));
    assert!(!lanes.contradict(1, at(0)), "its own word does not count");
    assert!(lanes.contradict(2, at(0)));
    for lane in 3..6 {
        lanes.note_latest(lane, true, at(1), at(1));
    }
    assert!(!lanes.contradict(2, at(1)), "three well, one ill");
    assert!(lanes.contradict(2, at(200)), "those successes are old");
    lanes.forget(1);
    assert!(!lanes.contradict(2, at(200)));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut bench = Bench::new();
    for event in 0..10_000 {
        let now = f64::from(event);
        bench.well(event + 20_000, now, now);
        bench.fails(event, now, now, OTHERS_FINE);
    }
    assert!(bench.health.witnesses.words.len() <= WITNESSES_MAX && bench.health.failing.len() <= FAILING_MAX);
}
