//! Tries to make sendoff lose an event: kills, power cuts, failing and full disks, large backlogs (docs/power-loss.md).
//!
//! The sizes are those of CI. `make kill`, `make powerloss`, `make churn` and `make scale` run longer.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test measures real time and reads its size from the environment")]

#[expect(dead_code, reason = "tests/it uses the rest")]
#[path = "../rig/mod.rs"]
mod rig;

mod load;

mod store;

mod handoff;

mod kill;

mod shared;

mod recording;

mod disk_model;

mod power_loss;

mod loop_mount;

mod failing_disk;

mod space;

mod full;

mod hostile;

/// The size of a run: the number in this variable, or the size for CI.
fn size(variable: &str, in_ci: u64) -> u64 {
    std::env::var(variable).map_or(in_ci, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// The seed of a run: the variable `SEED`, or a new one. It is printed, so that a failure can be repeated.
fn seed() -> u64 {
    let seed = size("SEED", fastrand::u64(..));
    eprintln!("SEED={seed}");
    seed
}
