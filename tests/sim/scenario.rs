//! What one seed stands for: the shape of a world and its weather. All other chance is drawn while it runs.

use std::time::Duration;

use fastrand::Rng;
use sendoff::dispatch::{Mode, Policy};

use crate::outages::Outage;
use crate::sabotage::Bug;

/// The function that is always well. A bad neighbour must not delay it.
pub const STEADY: &str = "steady";

/// How long confirm mode waits for an answer.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(900);

/// How long one kind of weather lasts.
const SLICE_MS: u64 = 20_000;

#[derive(Debug, Clone)]
pub struct Scenario {
    pub seed: u64,
    pub bug: Option<Bug>,
    pub functions: Vec<String>,
    pub policy: Policy,
    /// Attempts a second of each function except the healthy one. 0 means no limit.
    pub rate: u32,
    /// Attempts of each function except the healthy one in an hour of the daemon's clock. 0 means no ceiling.
    pub per_hour: u32,
    /// Whether all functions except the healthy one are invoked in confirm mode.
    pub confirm: bool,
    /// Whether an operator pauses, purges, cancels and makes events due.
    pub operator: bool,
    pub clients: u64,
    pub orders_per_client: u64,
    pub client_gap_ms: u64,
    /// Lives of the daemon before the faults end.
    pub lives: u32,
    pub life_ms_max: u64,
    /// The most steps of a life before its power goes. So crashes may happen at any important instruction.
    pub steps_max: u64,
    pub commit_ms_max: u64,
    pub dedupe_window: Duration,
    pub sdk_window: Duration,
    pub bytes_max: u64,
    /// Size of the journal's segments: small, so that a seed has many.
    pub segment_bytes: u64,
    /// Keys in one commit of the index. A checkpoint is several commits.
    pub keys_per_commit: usize,
    pub grace: Duration,
    /// Whether whole accounts fail, too. Every function then waits.
    pub account_faults: bool,
    pub sync_failures: bool,
    pub full_disks: bool,
    /// Whether the clock may be different in the next life, ...
    pub clock_jumps: bool,
    /// ... and whether it is set within a life.
    pub clock_steps: bool,
    pub refusals: bool,
    /// Whether there is a queue.
    pub queue: bool,
    /// Times in which every call fails. A world with outages has no other weather (`outages.rs`).
    pub outages: Vec<Outage>,
    /// The serial number of the order that always fails.
    pub poison: Option<u64>,
}

/// How a function (or the queue) fares for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fair,
    Throttled,
    Errors,
    Lossy,
    Slow,
    Away,
    /// Somebody must repair something.
    Operator,
}

impl Scenario {
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let functions = (0..rng.u32(1..5)).map(|n| format!("f{n}")).chain([STEADY.to_owned()]).collect();
        let policy = Policy {
            attempts_max: rng.u32(2..9),
            age_max: Duration::from_secs([60, 600, 21_600][rng.usize(0..3)]),
            backoff_base: Duration::from_millis(rng.u64(50..1_000)),
            backoff_cap: Duration::from_secs(rng.u64(2..60)),
            concurrency_max: rng.u32(1..17),
            rate: 0,
            invocations_per_hour_max: 0,
            mode: Mode::Event,
        };
        Self {
            seed,
            bug,
            functions,
            policy,
            clients: rng.u64(1..6),
            orders_per_client: rng.u64(5..30),
            client_gap_ms: [20, 300, 3_000][rng.usize(0..3)],
            lives: rng.u32(2..8),
            life_ms_max: [500, 5_000, 60_000][rng.usize(0..3)],
            steps_max: [20, 100, 1_000][rng.usize(0..3)],
            commit_ms_max: [1, 8, 60][rng.usize(0..3)],
            dedupe_window: Duration::from_secs([30, 300, 86_400][rng.usize(0..3)]),
            sdk_window: Duration::from_secs([20, 300][rng.usize(0..2)]),
            bytes_max: if rng.u8(0..8) == 0 { 20_000 } else { 1 << 30 },
            segment_bytes: [1_000, 8_000, 40_000][rng.usize(0..3)],
            keys_per_commit: [3, 20, 1_000][rng.usize(0..3)],
            grace: Duration::from_millis([0, 200, 5_000, 25_000][rng.usize(0..4)]),
            account_faults: rng.u8(0..4) == 0,
            sync_failures: rng.u8(0..4) == 0,
            full_disks: rng.u8(0..4) == 0,
            clock_jumps: rng.bool(),
            clock_steps: seed.is_multiple_of(3),
            rate: [0, 0, 4, 40][rng.usize(0..4)],
            per_hour: if rng.u8(0..4) == 0 { rng.u32(5..80) } else { 0 },
            confirm: rng.u8(0..3) == 0,
            operator: rng.bool(),
            refusals: rng.bool(),
            queue: rng.u8(0..8) > 0,
            outages: Vec::new(),
            poison: None,
        }
    }

    /// The policy of the functions that may fail: `f*`.
    pub fn policy_of_the_others(&self) -> Policy {
        let mode = if self.confirm { Mode::Confirm { timeout: CONFIRM_TIMEOUT } } else { Mode::Event };
        Policy { mode, rate: self.rate, invocations_per_hour_max: self.per_hour, ..self.policy.clone() }
    }

    /// The weather at a place and time. Always the same for the same question.
    pub fn weather(&self, place: &str, now_ms: u64) -> Weather {
        let place = place
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let slice = (now_ms / SLICE_MS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match Rng::with_seed(self.seed ^ place ^ slice).u8(0..12) {
            0..5 => Weather::Fair,
            5 | 6 => Weather::Throttled,
            7 => Weather::Errors,
            8 => Weather::Lossy,
            9 => Weather::Slow,
            10 => Weather::Away,
            _ => Weather::Operator,
        }
    }
}
