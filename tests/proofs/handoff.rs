//! Sends SIGKILL to the sender or the receiver of a hand-off at random moments.

use std::time::Duration;

use crate::rig::daemon::Setup;
use crate::rig::lambda::Lambda;
use crate::rig::lasting_port;
use crate::{seed, size, store};

/// Events of each round.
const EVENTS: usize = 30;

#[test]
fn no_kill_of_either_side_at_any_moment_of_a_hand_off_loses_an_accepted_event() {
    let kills = size("HANDOFF_KILLS", 20);
    let mut rng = fastrand::Rng::with_seed(seed());
    let scratch = store::scratch();
    let (from_dir, to_dir) = (scratch.path().join("from"), scratch.path().join("to"));
    let lambda = Lambda::start();
    lambda.throttle_all();
    let address = format!("127.0.0.1:{}", lasting_port());
    let both = |setup: Setup| {
        setup
            .set("lambda.endpoint_url", &lambda.endpoint_url())
            .set("outbox.segment_bytes", "128KiB")
            .set("delivery.backoff_base", "2s")
            .set("delivery.backoff_cap", "2s")
    };
    let receiver = both(Setup::new(&to_dir)).set("listen.ingest", &address).set("handoff.receive", "true");
    let sender = both(Setup::new(&from_dir))
        .set("handoff.to", &format!("http://{address}"))
        .set("handoff.on_stop", "always")
        .set("handoff.within", "8s");

    let (mut ids, mut moved, mut to) = (Vec::new(), 0, receiver.start());
    for kill in 0..kills {
        let from = sender.start();
        for n in 0..EVENTS {
            let id = format!("e-{kill}-{n}");
            let padding = "x".repeat([10, 10, 2_000, 80_000][rng.usize(..4)]);
            let body = format!("{{\"id\":{id:?},\"p\":{padding:?}}}");
            from.accept(["orders", "invoices"][n % 2], &[], body.as_bytes());
            ids.push(id);
        }
        from.terminate();
        std::thread::sleep(Duration::from_micros(rng.u64(..60_000)));
        if rng.bool() {
            from.kill9();
        } else {
            to.kill9();
            std::thread::sleep(Duration::from_micros(rng.u64(..300_000)));
            to = receiver.start();
            if from.wait().success() {
                // The disk goes away with the sender, which said that nothing is left on it.
                std::fs::remove_dir_all(&from_dir).unwrap();
                moved += 1;
            }
        }
    }
    lambda.take_all();
    // What is left on the sender's disk is delivered from there.
    let from = sender.set("handoff.on_stop", "never").start();
    lambda.wait_for(&ids);
    let taken = lambda.taken();
    let twice = ids.iter().filter(|id| taken[*id] > 1).count();
    eprintln!("{kills} kills, {} events, {moved} disks gone, none lost, {twice} delivered twice", ids.len());
    drop(from);
}
