//! Worlds with outages: for minutes to an hour, every call of one function or of all functions fails. One event in each
//! such world is poison: it always fails. docs/adr/0012 says how dispatch distinguishes the two.

use std::time::Duration;

use fastrand::Rng;
use sendoff::dispatch::Policy;

use crate::run::Report;
use crate::sabotage::Bug;
use crate::scenario::Scenario;
use crate::world::Trail;
use crate::{must_be_caught_in, run, run_all};

/// Number of seeds in CI. Each lasts about two virtual hours.
const SEEDS: u64 = 60;

/// The event that always fails: an order of the first client.
const POISON: u64 = 10_002;

/// The function of the poison event. Never the one that must stay healthy.
pub const POISONED: &str = "f0";

/// Outages begin within this time.
const BEGIN_WITHIN_MS: u64 = 60 * 60_000;

/// How calls fail during an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Lambda answers with an error and a code.
    Answers,
    /// Something in between answers with an error that is not Lambda's.
    ProxyAnswers,
    /// No answer comes in time.
    TimesOut,
    /// The connection is closed.
    Closes,
    /// Something in between answers 200 in Lambda's place.
    ForeignSuccess,
}

impl How {
    pub const ALL: [Self; 5] = [Self::Answers, Self::ProxyAnswers, Self::TimesOut, Self::Closes, Self::ForeignSuccess];
}

/// A time in which every call fails.
#[derive(Debug, Clone)]
pub struct Outage {
    /// The function. `None` means that all functions fail.
    function: Option<String>,
    from_ms: u64,
    until_ms: u64,
    /// `None` means that each call fails in its own way.
    pub how: Option<How>,
    /// This many of a hundred calls get through during the outage.
    pub passes_percent: u8,
}

impl Scenario {
    /// A world with no other weather than outages, so that nothing else uses up an event's attempts.
    pub fn with_outages(seed: u64, bug: Option<Bug>) -> Self {
        let plain = Self::new(seed, bug);
        let mut rng = Rng::with_seed(seed ^ 0x0074_a9e5);
        let everywhere = rng.u8(0..3) == 0;
        let outages = (0..rng.u32(1..4)).map(|_| {
            let from_ms = rng.u64(0..BEGIN_WITHIN_MS);
            let function = (!everywhere).then(|| plain.functions[rng.usize(0..plain.functions.len() - 1)].clone());
            let how = rng.bool().then(|| How::ALL[rng.usize(0..How::ALL.len())]);
            Outage { function, from_ms, until_ms: from_ms + rng.u64(5..60) * 60_000, how, passes_percent: 0 }
        });
        let outages = outages.collect();
        let policy =
            Policy { attempts_max: rng.u32(6..13), age_max: Duration::from_secs(21_600), ..plain.policy.clone() };
        Self {
            policy,
            outages,
            poison: Some(POISON),
            client_gap_ms: [3_000, 60_000, 200_000][rng.usize(0..3)],
            orders_per_client: rng.u64(5..20),
            lives: rng.u32(3..6),
            life_ms_max: 40 * 60_000,
            steps_max: 20_000,
            sdk_window: Duration::from_secs(300),
            dedupe_window: Duration::from_secs(86_400),
            bytes_max: 1 << 30,
            // If all functions fail, the healthy one waits as well.
            account_faults: everywhere,
            sync_failures: false,
            full_disks: false,
            clock_jumps: false,
            clock_steps: false,
            rate: 0,
            per_hour: 0,
            confirm: false,
            operator: false,
            refusals: false,
            queue: true,
            ..plain
        }
    }

    /// A world whose outages flap: a few calls get through.
    pub fn with_flapping_outages(seed: u64, bug: Option<Bug>) -> Self {
        let mut flapping = Self::with_outages(seed, bug);
        let mut rng = Rng::with_seed(seed ^ 0x00f1_a995);
        flapping.outages.iter_mut().for_each(|outage| outage.passes_percent = [1, 10, 30][rng.usize(0..3)]);
        flapping
    }

    /// A world with outages in which all functions except the healthy one are invoked in confirm mode.
    pub fn with_confirmed_outages(seed: u64, bug: Option<Bug>) -> Self {
        Self { confirm: true, ..Self::with_outages(seed, bug) }
    }

    /// The outage that a function is in.
    pub fn outage(&self, function: &str, now_ms: u64) -> Option<&Outage> {
        let concerns = |outage: &&Outage| outage.function.as_deref().is_none_or(|ill| ill == function);
        self.outages.iter().filter(concerns).find(|outage| (outage.from_ms..outage.until_ms).contains(&now_ms))
    }
}

/// Runs the seeds of such worlds. `OUTAGES=number` repeats one of them.
fn bury_nothing(make: fn(u64, Option<Bug>) -> Scenario, number: u64) -> Report {
    let (broken, sums) = run_all(0..SEEDS, None, make);
    println!("{SEEDS} seeds with outages: {sums}");
    let shown: Vec<_> = broken.iter().map(|(seed, report)| format!("SEED={seed}: {}", report.violations[0])).collect();
    assert!(
        broken.is_empty(),
        "{} of {SEEDS} seeds break a promise; replay one with OUTAGES={number} SEED=n cargo test --test sim replay -- --ignored --nocapture\n{}",
        broken.len(),
        shown.join("\n")
    );
    assert!(sums.failed_in_outages > 10 * SEEDS, "outages hardly happen: {sums}");
    sums
}

#[test]
fn outages_bury_nothing_and_a_poison_event_among_healthy_ones_ends() {
    let sums = bury_nothing(Scenario::with_outages, 1);
    assert!(sums.poison_ended > SEEDS / 2, "poison hardly happens: {sums}");
}

#[test]
fn outages_in_which_some_calls_get_through_bury_nothing() {
    bury_nothing(Scenario::with_flapping_outages, 2);
}

#[test]
fn outages_of_functions_in_confirm_mode_bury_nothing() {
    bury_nothing(Scenario::with_confirmed_outages, 3);
}

#[test]
fn the_same_seed_with_outages_gives_the_same_trace() {
    for seed in 0..3 {
        let trace = |()| run(Scenario::with_outages(seed, None), Trail::Kept).trace;
        assert!(trace(()) == trace(()), "seed {seed} differs from itself");
    }
}

#[test]
fn charging_everything_during_an_outage_is_caught() {
    must_be_caught_in(Scenario::with_outages, Bug::ChargeOutages, &["outage"]);
}

#[test]
fn never_charging_is_caught() {
    must_be_caught_in(Scenario::with_outages, Bug::NeverCharge, &["liveness"]);
}

#[test]
fn charging_everything_while_an_outage_flaps_is_caught() {
    must_be_caught_in(Scenario::with_flapping_outages, Bug::ChargeOutages, &["outage"]);
}

#[test]
fn taking_a_foreign_200_for_a_confirmation_is_caught() {
    must_be_caught_in(Scenario::with_confirmed_outages, Bug::BelieveForeigners, &["G2", "confirm"]);
}
