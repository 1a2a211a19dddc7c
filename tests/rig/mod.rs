//! The tools that tests are built from: the real daemon, its neighbours and its clients. `tests/it` uses all of them, so
//! the compiler warns there of a tool that nothing uses. The other tests use a part.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub mod process;

pub mod daemon;

pub mod http;

pub mod h2;

pub mod metrics;

pub mod python;

pub mod sqs;

pub mod ministack;

pub mod lambda;

pub mod page;

pub mod lossy;

pub mod postgres;

pub mod wire;

pub mod gate;

pub mod sender;

pub mod streaming;

pub mod tools;

/// Long enough for a busy machine. A test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Calls `probe` until it returns a value. Fails the test with `what` after [`PATIENCE`].
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

/// A port that nothing listens on, below the range from which the kernel chooses ports. So it stays free between two
/// lives of a daemon. Returns another port each time, also in the next process.
pub fn lasting_port() -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    (0..1_000)
        .map(|_| std::process::id().wrapping_mul(16).wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed)))
        .map(|seed| 20_000 + u16::try_from(seed % 12_000).unwrap())
        .find(|&port| is_ours(port) && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port below 32000")
}

/// Whether no other test process has this port. The lock on a file shows it while this process lives. Otherwise two
/// processes could find a port free and start two daemons on it.
fn is_ours(port: u16) -> bool {
    let ports = std::env::temp_dir().join("sendoff-test-ports");
    std::fs::create_dir_all(&ports).unwrap();
    let file = std::fs::File::create(ports.join(port.to_string())).unwrap();
    let is_ours = file.try_lock().is_ok();
    std::mem::forget(file);
    is_ours
}
