//! Sends SIGKILL at random moments of every phase, under load.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sendoff::outbox::Place;
use sendoff::standin::{Script, Trouble};

use crate::load::{self, Ack, DOOMED, KEPT, Load};
use crate::rig::daemon::Setup;
use crate::rig::lambda::{Lambda, throttle};
use crate::rig::{eventually, lasting_port};
use crate::{seed, size, store};

/// When to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// In the first 60 ms of the process: recovery, and creation of the store.
    Start,
    /// Within 150 ms after it is ready: the first leases and the first sweep.
    Ready,
    /// Under load, up to 400 ms later. Sweeps come every second.
    Load,
    /// After SIGTERM.
    Drain,
}

const PHASES: [Phase; 6] = [Phase::Start, Phase::Start, Phase::Ready, Phase::Load, Phase::Load, Phase::Drain];

#[test]
fn no_kill_at_any_moment_loses_an_accepted_event_or_forgets_its_key() {
    let kills = size("KILLS", 100);
    let mut rng = fastrand::Rng::with_seed(seed());
    let scratch = store::scratch();
    let state = scratch.path().join("state");
    let lambda = Lambda::start();
    misbehave(&lambda);
    let port = lasting_port();
    let address = format!("127.0.0.1:{port}");
    let setup = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("listen.ingest", &address)
        // Small segments, so that kills hit checkpoints and the reclaiming of segments.
        .set("outbox.segment_bytes", "128KiB")
        // One sweep per second.
        .set("outbox.sdk_retry_window", "4s")
        // Short backoff, so that the doomed events are buried soon, although attempts that a kill cuts off are not
        // charged.
        .set("delivery.backoff_cap", "100ms");
    let load = Load::start(address.parse().unwrap(), 6, Duration::from_millis(2), |_| {});

    let mut by_phase = BTreeMap::<Phase, u64>::new();
    for kill in 0..kills {
        // The first start creates the store, so kill it early a few times.
        let phase = if kill < 5 { Phase::Start } else { PHASES[rng.usize(..PHASES.len())] };
        blow(&setup, phase, &mut rng);
        *by_phase.entry(phase).or_default() += 1;
        let acks = load.acks();
        let copy = scratch.path().join("copy");
        if acks.is_empty() {
            continue;
        }
        store::copy(&state, &copy);
        let taken = lambda.taken();
        let checked = store::check(&copy, recent(&acks), |ack| taken.contains_key(&load::payload_id(ack.n)));
        assert!(checked.is_ok(), "after kill {kill} ({phase:?}): {checked:?}");
        std::fs::remove_dir_all(&copy).unwrap();
    }

    let last = setup.start();
    let acks = load.stop();
    all_is_accounted_for(last, &lambda, &state, &acks);
    eprintln!("{kills} kills ({by_phase:?}), {} events accepted, none lost", acks.len());
}

/// Only the latest acknowledgements, which a kill endangers: a check takes time for each event. The end of the test
/// checks all of them.
fn recent(acks: &[Ack]) -> &[Ack] {
    &acks[acks.len().saturating_sub(2_000)..]
}

fn blow(setup: &Setup, phase: Phase, rng: &mut fastrand::Rng) {
    let within = |rng: &mut fastrand::Rng, ms: u64| std::thread::sleep(Duration::from_micros(rng.u64(..ms * 1_000)));
    if phase == Phase::Start {
        let mut process = setup.spawn();
        within(rng, 60);
        process.kill9();
        return;
    }
    let daemon = setup.start();
    match phase {
        Phase::Start => {}
        Phase::Ready => within(rng, 150),
        Phase::Load => within(rng, 400),
        Phase::Drain => {
            within(rng, 300);
            daemon.terminate();
            within(rng, 60);
        }
    }
    daemon.kill9();
}

/// Throttles, errors and lost replies. One function never gets through, one refuses its events.
fn misbehave(lambda: &Lambda) {
    lambda.default_script(
        Script::default()
            .chance(0.10, throttle())
            .chance(0.05, Trouble::error(500, "ServiceException", "trouble"))
            .chance(0.05, Trouble::LostReply)
            .latency(Duration::from_millis(1), Duration::from_millis(10)),
    );
    lambda.script(KEPT, Script::always(throttle()));
    lambda.script(DOOMED, refusal());
}

fn refusal() -> Script {
    Script::always(Trouble::error(400, "InvalidRequestContentException", "no"))
}

fn all_is_accounted_for(daemon: crate::rig::daemon::Daemon, lambda: &Lambda, state: &Path, acks: &[Ack]) {
    lambda.default_script(Script::default());
    lambda.script(KEPT, Script::default());
    let (dead, delivered): (Vec<_>, Vec<_>) = acks.iter().partition(|ack| load::function(ack.n) == DOOMED);
    lambda.wait_for(&delivered.iter().map(|ack| load::payload_id(ack.n)).collect::<Vec<_>>());
    eventually("the rest is buried", || {
        let scrape = daemon.scrape();
        let alive =
            ["ready", "waiting", "scheduled"].map(|state| scrape.sum("sendoff_outbox_events", &[("state", state)]));
        (alive.iter().sum::<f64>() == 0.0).then_some(())
    });
    daemon.terminate();
    assert!(daemon.wait().success());
    let engine = store::open(state).unwrap();
    for ack in dead {
        let found = engine.find(ack.id).unwrap().unwrap_or_else(|| panic!("{ack:?} is lost"));
        assert_eq!(found.place, Place::Buried, "{ack:?}");
        assert_eq!(found.event.payload, load::payload(ack.n), "{ack:?}");
    }
    for ack in delivered {
        assert!(engine.find(ack.id).unwrap().is_none(), "{ack:?} is delivered and still stored");
    }
}
