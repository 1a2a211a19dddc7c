//! One life of the daemon, from opening the store to a drain or a crash: the real stages on a fake disk.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sendoff::clock::Clock;
use sendoff::deadletter::{self, DeadLetters};
use sendoff::dispatch::{self, Dispatch};
use sendoff::event::name::Home;
use sendoff::ingest;
use sendoff::ingest::door::Door;
use sendoff::metrics::Metrics;
use sendoff::outbox::embedded;
use sendoff::outbox::embedded::engine::Engine;
use sendoff::outbox::embedded::upkeep::Upkeep;
use sendoff::outbox::embedded::writer::Writer;
use sendoff::outbox::{self, Health, History, LaneWant, LeaseWant, Leases, Outbox, Settlement, Which};
use sendoff::shutdown::Stop;
use tokio_util::task::TaskTracker;

use crate::disk::{self, NotOpened, Plug};
use crate::lambda::FlakyLambda;
use crate::queue::FlakyQueue;
use crate::sabotage::{Bug, Sabotaged};
use crate::tap::Tap;
use crate::world::{Front, World};

/// How a life ends, unless its power goes before.
#[derive(Debug, Clone, Copy)]
pub enum Ending {
    /// SIGKILL or a power cut after this time.
    Crash(Duration),
    /// SIGTERM after this time.
    Drain(Duration),
}

/// The parts of a running daemon.
struct Parts {
    tap: Tap,
    stop: Stop,
    door: TaskTracker,
    stages: TaskTracker,
    writer: TaskTracker,
}

/// Runs life number `life` to its end. `clock_offset_ms` is how far its clock is ahead of the world's.
pub async fn live(world: &Arc<World>, life: u32, clock_offset_ms: i64, steps_left: Option<u64>, ending: Ending) {
    world.note(|| format!("life {life} begins, its clock {clock_offset_ms} ms off, ending {ending:?}"));
    world.switch_on(life, steps_left);
    world.ledger().begins_life(world.now(), clock_offset_ms);
    let Some(parts) = start(world, life, clock_offset_ms) else {
        world.end_process();
        return;
    };
    let (after, crashes) = match ending {
        Ending::Crash(after) => (after, true),
        Ending::Drain(after) => (after, false),
    };
    let drains = tokio::select! {
        biased;
        () = world.power_went.notified() => false,
        _ = parts.tap.failed() => true,
        () = tokio::time::sleep(after) => !crashes,
    };
    if drains {
        tokio::select! {
            biased;
            () = world.power_went.notified() => {}
            () = drain(world, &parts) => {}
        }
    } else if world.is_on(life) {
        world.cut_power("at a quiet moment");
        world.power_went.notified().await; // take the notice, so that the next life does not
    }
    world.set_front(None);
    let Parts { tap, door, stages, writer, .. } = parts;
    if drains && world.is_on(life) && tap.health() == Health::Well {
        // The process ends when the writer has released the store.
        door.wait().await;
        tap.inner.handle.close().await;
        writer.close();
        writer.wait().await;
    }
    world.end_process();
    for tasks in [door, stages, writer] {
        tasks.close();
        tasks.wait().await;
    }
}

fn start(world: &Arc<World>, life: u32, clock_offset_ms: i64) -> Option<Parts> {
    let scenario = &world.scenario;
    let wall = world.now().0.saturating_add_signed(clock_offset_ms);
    let clock = Clock::seeded(sendoff::clock::UnixMillis(wall), world.draw(|rng| rng.u64(..)));
    let plug = Plug { world: world.clone(), life };
    let opened = world.disk.open(Some(&plug), disk::settings(scenario)).and_then(|store| {
        let engine = Engine::open(store, outbox_settings(world), clock.clone(), "the fake disk");
        engine.map_err(|error| NotOpened::Failed(error.to_string()))
    });
    let engine = match opened {
        Ok(engine) => engine,
        Err(why) => {
            let excused = scenario.sync_failures && matches!(why, NotOpened::Failed(_));
            if world.is_on(life) && !excused {
                world.violated("G2", format!("the store does not open: {why}"));
            }
            // The power may have gone while the store opened.
            world.power_went.notified().now_or_never().unwrap_or_default();
            return None;
        }
    };
    let metrics = Arc::new(Metrics::new().unwrap());
    let (writer, handle) = Writer::new(engine, clock.clone(), metrics.clone());
    let (stop, door, stages, writers) = (Stop::default(), TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    // Never zero: two things at the same instant have an order only in the real world.
    let latency = {
        let world = world.clone();
        move || Duration::from_millis(world.draw(|rng| rng.u64(1..=world.scenario.commit_ms_max)))
    };
    world.powers(writers.spawn(writer.run_async(latency)).abort_handle());

    let inner = Sabotaged { handle, bug: scenario.bug, attempts_max: scenario.policy.attempts_max };
    let tap = Tap { inner, world: world.clone(), life, clock: clock.clone() };
    let lambda = FlakyLambda { world: world.clone(), life, clock: clock.clone() };
    let queue = FlakyQueue { world: world.clone(), life };
    let dispatch = Dispatch::new(tap.clone(), lambda, dispatch_settings(world), clock.clone(), metrics.clone());
    let letters = DeadLetters::new(tap.clone(), queue, letter_settings(world), clock.clone(), metrics.clone());
    let upkeep = Upkeep::new(tap.inner.handle.clone(), clock.clone(), &outbox_settings(world).limits);
    let keeping = watched(tap.clone(), "upkeep", async move { upkeep.housekeeping().await }.boxed());
    world.powers(writers.spawn(keeping).abort_handle());
    if scenario.clock_steps {
        let setting = crate::time::set_now_and_then(world.clone(), clock.clone(), stop.leasing.clone());
        world.powers(stages.spawn(setting).abort_handle());
    }
    for (name, stage) in
        [("dispatch", dispatch.run(stop.clone()).boxed()), ("dead letters", letters.run(stop.clone()).boxed())]
    {
        world.powers(stages.spawn(watched(tap.clone(), name, stage)).abort_handle());
    }
    let front = Front {
        life,
        door: Door::new(tap.clone(), clock.clone(), metrics, ingest_settings()),
        outbox: tap.clone(),
        clock,
        tasks: door.clone(),
    };
    world.set_front(Some(front));
    Some(Parts { tap, stop, door, stages, writer: writers })
}

/// A stage may end early only together with its outbox.
async fn watched(tap: Tap, name: &'static str, stage: impl Future<Output = Result<(), outbox::Error>>) {
    match AssertUnwindSafe(stage).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if tap.health() == Health::Well && tap.world.is_on(tap.life) => {
            tap.world.violated("G2", format!("{name} ended: {error}"));
        }
        Ok(Err(_)) => {}
        Err(_) => tap.world.violated("G2", format!("{name} panicked")),
    }
}

/// Drains as the daemon does (G6): within the grace period, and afterwards no part may still work.
async fn drain(world: &Arc<World>, parts: &Parts) {
    let grace = world.scenario.grace;
    world.note(|| format!("drain within {grace:?}"));
    world.set_front(None);
    if world.scenario.bug == Some(Bug::ChargeForDrain) {
        charge_all(&parts.tap).await;
    }
    let began = world.now();
    let in_time = parts.stop.drain(&parts.door, &parts.stages, grace).await;
    let took = world.now().since(began);
    world.note(|| format!("drained in {took:?}, in time: {in_time}"));
    // The last settlements are written after the grace period. No attempt is waited for.
    let slack = Duration::from_millis(20 * (world.scenario.commit_ms_max + crate::tap::CALL_MS_MAX));
    if took > grace + slack {
        world.violated("G6", format!("a drain took {took:?} of {grace:?}"));
    }
}

/// The planted bug: charges an attempt for everything that is not settled when the drain begins.
async fn charge_all(tap: &Tap) {
    let Ok(news) = tap.inner.handle.lanes(0).await else { return };
    let lanes = news.lanes.iter().map(|view| LaneWant {
        lane: view.lane,
        which: Which::Due,
        events_max: 100,
        bytes_max: u64::MAX,
        spent: None,
    });
    let want = LeaseWant { lanes: lanes.collect(), bytes_max: u64::MAX };
    let Ok(Leases { events: leased, .. }) = tap.inner.handle.lease(want, None).await else { return };
    let charge = |history: History| History { attempts: history.attempts + 1, ..history };
    let done = leased.into_iter().map(|l| (l.lease, Settlement::RetryAt(charge(l.history)))).collect();
    drop(tap.inner.handle.settle(done).await);
}

pub fn outbox_settings(world: &World) -> embedded::Settings {
    embedded::Settings {
        limits: outbox::Limits {
            bytes_max: world.scenario.bytes_max,
            events_max: 10_000,
            functions_max: 1_000,
            dedupe_window: world.scenario.dedupe_window,
            sdk_window: world.scenario.sdk_window,
        },
        disk_reserve: 1 << 20,
        segment_bytes: 1 << 20,
        cache: 1 << 20,
    }
}

fn dispatch_settings(world: &World) -> dispatch::Settings {
    let scenario = &world.scenario;
    let mut others = scenario.policy_of_the_others();
    if scenario.bug == Some(Bug::IgnoreRates) {
        others.rate = 0;
    }
    dispatch::Settings {
        in_flight_max: 256,
        rate: 0,
        in_flight_bytes_max: 64 << 20,
        policy: scenario.policy.clone(),
        functions: vec![("f*".to_owned(), others)],
    }
}

fn letter_settings(world: &World) -> deadletter::Settings {
    deadletter::Settings {
        queue_url: world.scenario.queue.then(|| "https://queue".to_owned()),
        functions: Vec::new(),
        backoff_base: Duration::from_millis(500),
        backoff_cap: Duration::from_secs(60),
        retention_min: Duration::ZERO,
        format: deadletter::Format::DeadLetterQueue,
        oversize: deadletter::Oversize::Keep,
        redrives_max: crate::dead_letters::REDRIVES_MAX,
    }
}

pub fn ingest_settings() -> ingest::Settings {
    ingest::Settings {
        connections_max: 100,
        request_bytes_max: 64 << 20,
        headers_max: 64,
        header_bytes_max: 16 << 10,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(10),
        home: Home::default(),
    }
}
