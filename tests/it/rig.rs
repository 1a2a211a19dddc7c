//! What the tests are built from.

use std::time::{Duration, Instant};

pub mod process;

pub mod daemon;

pub mod http;

pub mod metrics;

pub mod python;

pub mod sqs;

pub mod ministack;

// pub mod lambda;

pub mod lossy;

/// Long enough for a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `probe` until it answers; fails the test with `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that nothing listens on, below the range from which the kernel takes ports by itself: it stays free between two
/// lives of a daemon.
pub fn lasting_port() -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    (first..32_000)
        .find(|&port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port below 32000")
}
