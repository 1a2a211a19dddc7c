use std::collections::{BTreeSet, VecDeque};

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
                limiter.succeeded(limiter.limit(), Some(now - began), began);
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
            if throttled { limiter.throttled(now, now) } else { limiter.succeeded(limiter.limit(), None, now) }
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
    let now = begin();
    let mut limiter = Limiter::new(64);
    limiter.set_max(2);
    assert_eq!(limiter.limit(), 2);
    limiter.set_max(3);
    limiter.succeeded(2, None, now);
    assert_eq!(limiter.limit(), 3);
}

#[test]
fn a_limit_that_does_not_bind_does_not_grow() {
    let now = begin();
    let mut limiter = Limiter::new(64);
    let start = limiter.limit();
    limiter.succeeded(start - 1, None, now);
    assert_eq!(limiter.limit(), start);
    limiter.succeeded(start, None, now);
    assert_eq!(limiter.limit(), start + 1);
}

#[test]
fn a_rise_of_latency_stops_growth_until_it_is_the_usual_one() {
    let now = begin();
    let mut limiter = Limiter::new(10_000);
    let answer = |limiter: &mut Limiter, millis| {
        limiter.succeeded(limiter.limit(), Some(Duration::from_millis(millis)), now);
    };
    (0..50).for_each(|_| answer(&mut limiter, 20));
    (0..20).for_each(|_| answer(&mut limiter, 200));
    let risen = limiter.limit();
    (0..20).for_each(|_| answer(&mut limiter, 200));
    assert_eq!(limiter.limit(), risen);
    (0..1_000).for_each(|_| answer(&mut limiter, 200));
    assert!(limiter.limit() > risen);
}

/// A Lambda of so many slots, in virtual milliseconds: an endless backlog, sent as fast as the limiter allows.
pub struct Simulation {
    pub limiter: Limiter,
    begin: Instant,
    pub now: u64,
    /// End, number, begin and whether it was throttled.
    calls: BTreeSet<(u64, u64, u64, bool)>,
    occupied: u32,
    number: u64,
    random: fastrand::Rng,
}

/// What a stretch of the simulation brought.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub answered: u64,
    pub throttled: u64,
    millis: u64,
}

impl Tally {
    fn wasted(&self) -> f64 {
        self.throttled as f64 / (self.answered + self.throttled).max(1) as f64
    }

    /// Calls under way on average.
    fn concurrency(&self) -> f64 {
        self.answered as f64 * LATENCY as f64 / self.millis as f64
    }
}

/// How long a call takes, on average, and how long a throttle, in milliseconds.
const LATENCY: u64 = 100;
const THROTTLE_LATENCY: u64 = 10;

impl Simulation {
    pub fn new(max: u32) -> Self {
        Self::of(Limiter::new(max))
    }

    fn of(limiter: Limiter) -> Self {
        let random = fastrand::Rng::with_seed(7);
        Self { limiter, begin: begin(), now: 0, calls: BTreeSet::new(), occupied: 0, number: 0, random }
    }

    fn at(&self, millis: u64) -> Instant {
        self.begin + Duration::from_millis(millis)
    }

    /// Goes on for `millis` with so many slots, and a random share of calls throttled whatever the slots.
    pub fn run(&mut self, millis: u64, slots: u32, random_share: f64) -> Tally {
        let until = self.now + millis;
        let mut tally = Tally { millis, ..Tally::default() };
        loop {
            while self.calls.len() < self.limiter.limit() as usize {
                let throttled = self.occupied >= slots || self.random.f64() < random_share;
                let took = if throttled { THROTTLE_LATENCY } else { self.random.u64(LATENCY / 2..=LATENCY * 3 / 2) };
                self.occupied += u32::from(!throttled);
                self.number += 1;
                self.calls.insert((self.now + took, self.number, self.now, throttled));
            }
            match self.calls.first() {
                Some(&(end, ..)) if end <= until => {}
                Some(_) | None => break,
            }
            let in_flight = self.calls.len() as u32;
            let Some((end, _, began, throttled)) = self.calls.pop_first() else { break };
            self.now = end;
            let (began, ended) = (self.at(began), self.at(end));
            if throttled {
                tally.throttled += 1;
                self.limiter.throttled(began, ended);
            } else {
                tally.answered += 1;
                self.occupied -= 1;
                self.limiter.succeeded(in_flight, Some(ended - began), began);
            }
        }
        self.now = until;
        tally
    }
}

#[test]
fn the_limit_follows_capacity_up_and_down_and_wastes_little() {
    let mut simulation = Simulation::new(1_000);
    for (slots, settling) in [(10, 5_000), (100, 10_000), (5, 5_000), (1, 5_000), (400, 10_000)] {
        simulation.run(settling, slots, 0.0);
        let steady = simulation.run(60_000, slots, 0.0);
        println!("{slots}: {:.1} at once, {:.2} % wasted", steady.concurrency(), steady.wasted() * 100.0);
        assert!(steady.concurrency() > 0.9 * f64::from(slots), "{slots} slots: {steady:?}");
        assert!(steady.wasted() < 0.05, "{slots} slots: {steady:?}");
    }
}

#[test]
fn throttling_that_cuts_do_not_cure_is_borne() {
    for share in [0.02, 0.1, 0.3] {
        let mut simulation = Simulation::new(64);
        simulation.run(20_000, u32::MAX, share);
        let steady = simulation.run(120_000, u32::MAX, share);
        println!("{share}: {:.1} at once, {:.1} % wasted", steady.concurrency(), steady.wasted() * 100.0);
        // Slots that wait for a throttle do no work: with a share s, so much less than 64.
        assert!(steady.concurrency() > 0.7 * 64.0 * (1.0 - share), "{share}: {steady:?}");
        // And it is found again when the noise ends and capacity begins to count.
        simulation.run(10_000, 20, 0.0);
        let capacity = simulation.run(60_000, 20, 0.0);
        assert!(capacity.concurrency() > 18.0 && capacity.wasted() < 0.05, "{share}: {capacity:?}");
    }
}

#[test]
fn a_restart_after_a_pause_begins_low() {
    let mut simulation = Simulation::new(1_000);
    simulation.run(10_000, 200, 0.0);
    assert!(simulation.limiter.limit() > 150);
    simulation.limiter.restart();
    assert!(simulation.limiter.limit() <= 8);
    simulation.run(5_000, 200, 0.0);
    assert!(simulation.limiter.limit() > 150, "{}", simulation.limiter.limit());
}

/// The settlement of issue 5: the adaptive limiter against fixed concurrency and Vector's published constants.
#[test]
fn it_uses_nine_tenths_of_a_capacity_that_changes() {
    let course = [(30_000, 10), (30_000, 100), (30_000, 5)];
    let mut simulation = Simulation::new(1_000);
    let tallies: VecDeque<Tally> = course.iter().map(|&(millis, slots)| simulation.run(millis, slots, 0.0)).collect();
    let answered: u64 = tallies.iter().map(|tally| tally.answered).sum();
    let throttled: u64 = tallies.iter().map(|tally| tally.throttled).sum();
    let possible = course.iter().map(|&(millis, slots)| millis * u64::from(slots) / LATENCY).sum::<u64>();
    println!("{answered} of {possible} possible, {throttled} throttled");
    assert!(answered as f64 > 0.9 * possible as f64);
    assert!((throttled as f64) < 0.05 * answered as f64);
}

/// Writes docs/limiter.svg: `cargo test --lib plot_of_the_limiter -- --ignored`.
#[test]
#[ignore = "writes docs/limiter.svg, which is kept in the repository"]
fn plot_of_the_limiter() {
    const SECONDS: u64 = 60;
    const TOP: f64 = 140.0;
    let x = |millis: u64| 50.0 + millis as f64 / (SECONDS as f64 * 1_000.0) * 640.0;
    let y = |limit: f64| 270.0 - limit / TOP * 240.0;
    let capacity = |millis: u64| match millis {
        0..20_000 => 10_u32,
        20_000..40_000 => 100,
        _ => 5,
    };
    let mut simulation = Simulation::new(1_000);
    let (mut limits, mut slots) = (String::new(), String::new());
    for at in (0..SECONDS * 1_000).step_by(50) {
        limits += &format!("{:.1},{:.1} ", x(at), y(f64::from(simulation.limiter.limit())));
        slots += &format!("{:.1},{:.1} ", x(at), y(f64::from(capacity(at))));
        simulation.run(50, capacity(at), 0.0);
    }
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 310\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"720\" height=\"310\" fill=\"white\"/>\n",
    );
    for tick in (0..=6).map(|n| f64::from(n) * 20.0) {
        svg += &format!(
            "<path d=\"M50 {0:.1}H690\" stroke=\"#ddd\"/><text x=\"15\" y=\"{0:.1}\">{tick}</text>\n",
            y(tick)
        );
    }
    for tick in (0..=6).map(|n| n * 10) {
        svg += &format!("<text x=\"{:.0}\" y=\"288\">{tick} s</text>\n", x(tick * 1_000) - 8.0);
    }
    svg += &format!(
        "<polyline points=\"{slots}\" fill=\"none\" stroke=\"#888\" stroke-dasharray=\"5 3\"/>\n\
         <polyline points=\"{limits}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"1.5\"/>\n\
         <text x=\"60\" y=\"22\"><tspan fill=\"#888\">Lambda's slots</tspan> and the \
         <tspan fill=\"#06c\">limit</tspan>; a call takes 50 to 150 ms, a throttle 10 ms</text>\n</svg>\n"
    );
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/limiter.svg"), svg).unwrap();
}
