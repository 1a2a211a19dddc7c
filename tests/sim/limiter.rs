//! Tests the limiter against a Lambda in virtual time, in the scenarios of `make limiter`, for what docs/delivery.md
//! says about it.

use crate::controllers::{Account, Fixed, InAccount, Sendoff, Vector};
use crate::model::{ATTEMPTS_MAX, Backlog, Controller, Outcome, SECOND, Scenario, Weather, run};
use crate::scenarios::{HOLD_OUT, drawn, known};

fn endless(weather: Vec<Weather>) -> Scenario {
    Scenario { name: "of a test", weather, backlog: Backlog::Endless, lanes: 1, seed: 7 }
}

fn of_sendoff(scenario: &Scenario, max: u32) -> Vec<Outcome> {
    run(scenario, &mut [Box::new(Sendoff::up_to(max)) as Box<dyn Controller>])
}

fn whole(scenario: &Scenario, mut controllers: Vec<Box<dyn Controller>>) -> Outcome {
    Outcome::sum(&run(scenario, &mut controllers))
}

#[test]
fn the_limit_settles_within_a_tenth_of_a_capacity_that_changes_and_wastes_little() {
    // Slots, and the time to find them.
    let course = [(10, 5), (100, 10), (5, 5), (1, 5), (400, 10)];
    let weather =
        course.iter().flat_map(|&(slots, settling)| [Weather::slots(settling, slots), Weather::slots(60, slots)]);
    let outcomes = of_sendoff(&endless(weather.collect()), ATTEMPTS_MAX);
    for (steady, (slots, _)) in outcomes.iter().skip(1).step_by(2).zip(course) {
        println!("{slots} slots: {:.1} % used, {:.2} % wasted", steady.used() * 100.0, steady.wasted() * 100.0);
        assert!((0.9..1.05).contains(&steady.used()), "{slots} slots: {:.3} used", steady.used());
        assert!(steady.wasted() < 0.05, "{slots} slots: {:.3} wasted", steady.wasted());
    }
}

#[test]
fn throttling_that_cuts_do_not_cure_is_borne() {
    for noise in [0.02, 0.1, 0.3] {
        let free = |seconds| Weather { noise, ..Weather::slots(seconds, u32::MAX) };
        let narrow = |seconds| Weather::slots(seconds, 20);
        let outcomes = of_sendoff(&endless(vec![free(20), free(120), narrow(10), narrow(60)]), 64);
        let [_, borne, _, after] = &outcomes[..] else { panic!("four stretches") };
        let at_once = borne.answered[0] as f64 / 1_200.0;
        println!("{noise}: {at_once:.1} at once, {:.1} % wasted", borne.wasted() * 100.0);
        // Slots that wait after a throttle do no work. With a share s of throttles, so much less than 64 is possible.
        assert!(at_once > 0.7 * 64.0 * (1.0 - noise), "{noise}: {at_once}");
        // The limit is found again when the noise ends and capacity begins to matter.
        assert!(after.used() > 0.9 && after.wasted() < 0.05, "{noise}: {} {}", after.used(), after.wasted());
    }
}

#[test]
fn calls_that_slow_each_other_down_do_not_raise_the_limit_for_ever() {
    let knee = |seconds| Weather { knee: 40, ..Weather::slots(seconds, u32::MAX) };
    let outcomes = of_sendoff(&endless(vec![knee(60), knee(540), knee(60)]), ATTEMPTS_MAX);
    let after_ten_minutes = outcomes[2].call_millis();
    println!("a call takes {after_ten_minutes:.0} ms after ten minutes, 100 alone");
    assert!(outcomes[2].used() > 0.95);
    assert!(after_ten_minutes < 500.0, "{after_ten_minutes}");
}

#[test]
fn lanes_that_share_an_accounts_limit_get_equal_parts() {
    let account = Account::new(256);
    let lanes = (0..2).map(|_| Box::new(InAccount::new(&account)) as Box<dyn Controller>).collect();
    let scenario = Scenario { lanes: 2, ..endless(vec![Weather::slots(60, 60)]) };
    let outcome = whole(&scenario, lanes);
    assert!(outcome.fairness() > 0.9 && outcome.used() > 0.9 && outcome.wasted() < 0.05, "{outcome:?}");
}

/// Scenarios that were not used when the limiter's constants were chosen.
#[test]
fn where_nobody_tuned_it_it_uses_more_and_wastes_less_than_vectors() {
    let seeds = HOLD_OUT.start..HOLD_OUT.start + 15;
    let median = |make: fn() -> Box<dyn Controller>| {
        let outcomes: Vec<_> = seeds.clone().map(|seed| whole(&drawn(seed), vec![make()])).collect();
        let middle = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        (middle(outcomes.iter().map(Outcome::used).collect()), middle(outcomes.iter().map(Outcome::wasted).collect()))
    };
    let ours = median(|| Box::new(Sendoff::up_to(ATTEMPTS_MAX)));
    let vector = median(|| Box::new(Vector::new()));
    let fixed = median(|| Box::new(Fixed(64)));
    println!("used and wasted: sendoff {ours:?}, Vector's {vector:?}, fixed {fixed:?}");
    assert!(ours.0 > 0.8 && ours.1 < 0.08, "{ours:?}");
    assert!(ours.0 > vector.0 && ours.1 < vector.1, "{ours:?} {vector:?}");
    // A fixed number above the capacity uses all of it, but wastes nearly all calls.
    assert!(ours.1 * 5.0 < fixed.1, "{ours:?} {fixed:?}");
}

#[test]
fn bursts_are_through_sooner_than_with_vectors() {
    let scenario = known().into_iter().find(|scenario| scenario.name.starts_with("300 events")).unwrap();
    let ours = whole(&scenario, vec![Box::new(Sendoff::up_to(ATTEMPTS_MAX))]);
    let vector = whole(&scenario, vec![Box::new(Vector::new())]);
    assert!(scenario.weather[0].lasts == 60 * SECOND && ours.used() > 0.99);
    assert!(ours.wait_millis() < vector.wait_millis(), "{} {}", ours.wait_millis(), vector.wait_millis());
}
