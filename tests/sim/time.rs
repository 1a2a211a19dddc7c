//! Tests clocks that are set while the daemon runs. Instants follow the clock, spans do not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sendoff::clock::{Clock, UnixMillis};
use sendoff::dispatch::{Answer, Call, Dispatch, Failure, FailureKind, Invoke, Mode, Policy, Reply, Settings};
use sendoff::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use sendoff::metrics::Metrics;
use sendoff::outbox::embedded;
use sendoff::outbox::embedded::engine::Engine;
use sendoff::outbox::embedded::memory::MemoryDisk;
use sendoff::outbox::embedded::upkeep::Upkeep;
use sendoff::outbox::embedded::writer::{Handle, Writer};
use sendoff::outbox::{self, BuryReason, Outbox, Place};
use sendoff::shutdown::Stop;
use tokio_util::sync::CancellationToken;

use crate::world::World;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const HOUR_MS: i64 = 3_600_000;
const TEN_YEARS_MS: i64 = 24 * 3_653 * HOUR_MS;

/// Sets the clock of a life now and then, by a little or by up to an hour, until `stop` or the end of the faults.
pub async fn set_now_and_then(world: Arc<World>, clock: Clock, stop: CancellationToken) -> Result<(), outbox::Error> {
    loop {
        let (after, most) = world.draw(|rng| (rng.u64(1_000..20_000), [3_000, 100_000, HOUR_MS][rng.usize(0..3)]));
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(after)) => {}
        }
        if world.is_calm() {
            return Ok(());
        }
        let by = world.draw(|rng| rng.i64(-most..most));
        world.note(|| format!("the clock is set by {by} ms"));
        world.ledger().sets_clock(world.now(), by);
        clock.step(by);
    }
}

/// A Lambda that follows its instructions and notes when it was called.
#[derive(Clone)]
struct Told {
    clock: Clock,
    reply: Arc<Mutex<Reply>>,
    /// By the steady clock.
    calls: Arc<Mutex<Vec<UnixMillis>>>,
}

impl Invoke for Told {
    async fn invoke(&self, _call: Call) -> Reply {
        self.calls.lock().unwrap().push(self.clock.steady());
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.reply.lock().unwrap().clone()
    }

    async fn dry_run(&self, _function: Function) -> Reply {
        self.reply.lock().unwrap().clone()
    }
}

fn taken() -> Reply {
    Reply::Answer(Answer { status: 202, ..Answer::default() })
}

fn no_credentials() -> Reply {
    Reply::NotSent(Failure { kind: FailureKind::Credentials, message: "none".into() })
}

/// One life of a daemon that only delivers.
struct Life {
    clock: Clock,
    outbox: Handle,
    lambda: Told,
    stop: Stop,
    tasks: tokio::task::JoinSet<()>,
}

impl Life {
    fn begin(disk: &MemoryDisk, start: UnixMillis, reply: Reply) -> Self {
        let clock = Clock::seeded(start, 7);
        let settings = embedded::Settings {
            limits: outbox::Limits {
                bytes_max: 1 << 30,
                events_max: 1_000,
                functions_max: 100,
                dedupe_window: HOUR,
                sdk_window: HOUR,
            },
            disk_reserve: 0,
            segment_bytes: 1 << 20,
            cache: 0,
        };
        let (limits, metrics) = (settings.limits, Arc::new(Metrics::new().unwrap()));
        let engine = Engine::open(disk.open(), settings, clock.clone(), "memory").unwrap();
        let (writer, outbox) = Writer::new(engine, clock.clone(), metrics.clone());
        let lambda = Told { clock: clock.clone(), reply: Arc::new(Mutex::new(reply)), calls: Arc::default() };
        let policy = Policy {
            attempts_max: 10_000,
            age_max: HOUR,
            backoff_base: Duration::from_millis(500),
            backoff_cap: MINUTE,
            concurrency_max: 4,
            rate: 0,
            invocations_per_hour_max: 0,
            mode: Mode::Event,
        };
        let settings =
            Settings { in_flight_max: 16, rate: 0, in_flight_bytes_max: 1 << 20, policy, functions: Vec::new() };
        let dispatch = Dispatch::new(outbox.clone(), lambda.clone(), settings, clock.clone(), metrics);
        let (stop, mut tasks) = (Stop::default(), tokio::task::JoinSet::new());
        tasks.spawn(writer.run_async(|| Duration::from_millis(1)));
        let running = dispatch.run(stop.clone());
        tasks.spawn(async move { running.await.unwrap() });
        let upkeep = Upkeep::new(outbox.clone(), clock.clone(), &limits);
        tasks.spawn(async move { upkeep.housekeeping().await.unwrap() });
        Self { clock, outbox, lambda, stop, tasks }
    }

    async fn accept(&self, deliver_at: Option<UnixMillis>, expires_at: Option<UnixMillis>) -> EventId {
        let (name, accepted_at) = (FunctionName::new("orders"), self.clock.accepting());
        let event = Event {
            id: EventId::mint(accepted_at, self.clock.random_bits(), &name),
            function: Function { name, address: "orders".into(), qualifier: None, region: None },
            key: IdempotencyKey { value: "minted".into(), source: KeySource::Minted },
            carried: Carried::default(),
            payload: "{}".into(),
            accepted_at,
            deliver_at,
            expires_at,
            redrives: 0,
        };
        let id = event.id;
        self.outbox.append(vec![event]).await.unwrap();
        id
    }

    /// How long until an event is delivered, or buried and why. Waits three days at most.
    async fn ends(&self, id: EventId) -> (Duration, Option<BuryReason>) {
        let began = self.clock.steady();
        loop {
            let passed = self.clock.steady().since(began);
            match self.outbox.find(id).await.unwrap() {
                None => return (passed, None),
                Some(found) if found.place == Place::Buried => {
                    return (passed, found.history.burial.map(|burial| burial.reason));
                }
                Some(_) => assert!(passed < 72 * HOUR, "it is still there"),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn end(mut self) {
        self.stop.leasing.cancel();
        self.stop.working.cancel();
        // Only dispatch ends by itself, because its last settlements come first.
        self.tasks.join_next().await.unwrap().unwrap();
        self.outbox.close().await;
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn about(time: Duration, expected: Duration) -> bool {
    time + Duration::from_secs(5) > expected && time < expected + Duration::from_secs(5)
}

#[tokio::test(start_paused = true)]
async fn an_instant_follows_the_wall_clock_in_both_directions() {
    for (by_ms, after) in [(HOUR_MS, Duration::ZERO), (-HOUR_MS, 2 * HOUR - MINUTE), (30 * 60_000, 29 * MINUTE)] {
        let life = Life::begin(&MemoryDisk::default(), NOW, taken());
        let id = life.accept(Some(NOW.plus(HOUR)), None).await;
        life.pass(MINUTE).await;
        life.clock.step(by_ms);
        let (passed, buried) = life.ends(id).await;
        assert!(buried.is_none() && about(passed, after), "{by_ms}: after {passed:?}, not {after:?}; {buried:?}");
        life.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_a_step_has_expired_is_buried_and_never_attempted() {
    let life = Life::begin(&MemoryDisk::default(), NOW, taken());
    let id = life.accept(Some(NOW.plus(30 * MINUTE)), Some(NOW.plus(45 * MINUTE))).await;
    life.pass(MINUTE).await;
    life.clock.step(HOUR_MS);
    let (passed, buried) = life.ends(id).await;
    assert!(passed < MINUTE && buried == Some(BuryReason::EventAgeExceeded), "{passed:?} {buried:?}");
    assert_eq!(life.lambda.calls.lock().unwrap().len(), 0);
    life.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_age_counts_the_time_that_has_passed_however_the_clock_is_set() {
    for by_ms in [7 * HOUR_MS, -7 * HOUR_MS, TEN_YEARS_MS, -TEN_YEARS_MS, 250] {
        let life = Life::begin(&MemoryDisk::default(), NOW, no_credentials());
        let id = life.accept(None, None).await;
        life.pass(10 * MINUTE).await;
        life.clock.step(by_ms);
        let (passed, buried) = life.ends(id).await;
        assert_eq!(buried, Some(BuryReason::EventAgeExceeded));
        assert!(about(passed, 50 * MINUTE), "{by_ms}: after {passed:?}");
        life.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_before_the_clock_was_set_for_the_first_time_is_delivered() {
    let disk = MemoryDisk::default();
    let boot = UnixMillis(60_000);
    for over_a_restart in [false, true] {
        let mut life = Life::begin(&disk, boot, no_credentials());
        let id = life.accept(None, None).await;
        life.pass(MINUTE).await;
        if over_a_restart {
            life.end().await;
            life = Life::begin(&disk, NOW, taken());
        } else {
            *life.lambda.reply.lock().unwrap() = taken();
            life.clock.step((NOW.0 - boot.0) as i64);
        }
        let (passed, buried) = life.ends(id).await;
        assert!(buried.is_none() && passed < 6 * MINUTE, "{over_a_restart}: {passed:?} {buried:?}");
        life.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_ten_years_ahead_poisons_nothing_once_the_clock_is_corrected() {
    let disk = MemoryDisk::default();
    let ahead = Life::begin(&disk, NOW.shifted(TEN_YEARS_MS), no_credentials());
    let old = ahead.accept(None, None).await;
    ahead.pass(MINUTE).await;
    ahead.end().await;

    let life = Life::begin(&disk, NOW, taken());
    let in_an_hour = life.accept(Some(life.clock.now().plus(HOUR)), Some(life.clock.now().plus(2 * HOUR))).await;
    let (passed, buried) = life.ends(old).await;
    assert!(buried.is_none() && passed < 6 * MINUTE, "{passed:?} {buried:?}");
    let (passed, buried) = life.ends(in_an_hour).await;
    assert!(buried.is_none() && passed < HOUR && passed > HOUR - 7 * MINUTE, "{passed:?} {buried:?}");
    life.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_keeps_its_length_however_the_clock_is_set() {
    for by_ms in [HOUR_MS, -HOUR_MS, -TEN_YEARS_MS] {
        let life = Life::begin(&MemoryDisk::default(), NOW, no_credentials());
        life.accept(None, None).await;
        life.pass(10 * MINUTE).await;
        let before = life.lambda.calls.lock().unwrap().len();
        life.clock.step(by_ms);
        life.pass(20 * MINUTE).await;
        let calls = life.lambda.calls.lock().unwrap().len() - before;
        // A hold pauses for five minutes at most, and an event in it waits a little longer.
        assert!((2..=20).contains(&calls), "{by_ms}: {calls} probes within 20 minutes");
        life.end().await;
    }
}

#[test]
fn one_story_with_steps_is_told_twice_alike() {
    let story = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let life = Life::begin(&MemoryDisk::default(), NOW, no_credentials());
            let mut ends = BTreeMap::new();
            let id = life.accept(Some(NOW.plus(MINUTE)), None).await;
            for by in [3_600_000, -7_200_000, 1] {
                life.pass(MINUTE).await;
                life.clock.step(by);
            }
            ends.insert(id, life.ends(id).await);
            let calls = life.lambda.calls.lock().unwrap().clone();
            life.end().await;
            (ends, calls)
        })
    };
    assert_eq!(story(), story());
}
