//! Tests dispatch as a whole, on the real engine with a store in memory, a fake Lambda and virtual time.

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::dispatch::verdict::HoldKind;
use crate::dispatch::{Answer, Mode, Policy};
use crate::event::testing::event;
use crate::event::{Event, EventId, Function};
use crate::outbox::embedded;
use crate::outbox::embedded::engine::Engine;
use crate::outbox::embedded::memory::MemoryDisk;
use crate::outbox::embedded::writer::{Handle, Writer};
use crate::outbox::operator::{Keys, Operator, Purge, Touched};
use crate::outbox::testing::Leaving;
use crate::outbox::{self, Place};

mod accounts;

mod away;

mod crowd;

mod outages;

const START: UnixMillis = UnixMillis(1_790_000_000_000);

/// What the fake Lambda answers, and after how long.
type Says = dyn Fn(&Call, UnixMillis) -> (Duration, Reply) + Send + Sync;

/// The fake Lambda: its answers, and the time and function of every call.
#[derive(Clone)]
struct Fake {
    says: Arc<Says>,
    dry: Arc<SaysDry>,
    clock: Clock,
    calls: Arc<Mutex<Vec<(UnixMillis, String)>>>,
    delivered: Arc<Mutex<BTreeMap<String, Vec<UnixMillis>>>>,
}

impl Invoke for Fake {
    async fn invoke(&self, call: Call) -> Reply {
        let name = call.function.name.as_str().to_owned();
        self.calls.lock().unwrap().push((self.clock.now(), name.clone()));
        let (took, reply) = (self.says)(&call, self.clock.now());
        self.clock.sleep(took).await;
        if matches!(&reply, Reply::Answer(answer) if answer.status < 300 && !answer.foreign && answer.function_error.is_none())
        {
            self.delivered.lock().unwrap().entry(name).or_default().push(self.clock.now());
        }
        reply
    }

    async fn dry_run(&self, function: Function) -> Reply {
        let (took, reply) = (self.dry)(&function, self.clock.now());
        self.clock.sleep(took).await;
        reply
    }
}

/// What the fake Lambda answers to a dry run, and after how long.
type SaysDry = dyn Fn(&Function, UnixMillis) -> (Duration, Reply) + Send + Sync;

fn well() -> Reply {
    Reply::Answer(Answer { status: 204, ..Answer::default() })
}

/// An outbox, a dispatch on it, and the fake Lambda.
struct Bench {
    outbox: Handle,
    /// The outbox as dispatch sees it.
    leaving: Leaving<Handle>,
    fake: Fake,
    clock: Clock,
    status: Status,
    metrics: Arc<Metrics>,
    stop: Stop,
    tasks: JoinSet<()>,
}

impl Bench {
    fn new(settings: Settings, says: impl Fn(&Call, UnixMillis) -> (Duration, Reply) + Send + Sync + 'static) -> Self {
        Self::with(settings, Duration::ZERO, says, |_, _| (FAST, well()))
    }

    /// A bench whose store takes this long for a commit, and whose fake answers dry runs by `dry`.
    fn with(
        settings: Settings,
        commit: Duration,
        says: impl Fn(&Call, UnixMillis) -> (Duration, Reply) + Send + Sync + 'static,
        dry: impl Fn(&Function, UnixMillis) -> (Duration, Reply) + Send + Sync + 'static,
    ) -> Self {
        Self::of_functions(1_000, settings, commit, says, dry)
    }

    /// A bench whose store knows at most this many functions.
    fn of_functions(
        functions_max: u64,
        settings: Settings,
        commit: Duration,
        says: impl Fn(&Call, UnixMillis) -> (Duration, Reply) + Send + Sync + 'static,
        dry: impl Fn(&Function, UnixMillis) -> (Duration, Reply) + Send + Sync + 'static,
    ) -> Self {
        let clock = Clock::seeded(START, 7);
        let metrics = Arc::new(Metrics::new().unwrap());
        let limits = embedded::Settings {
            limits: outbox::Limits {
                bytes_max: 1 << 30,
                events_max: 1_000_000,
                functions_max,
                dedupe_window: Duration::from_secs(3_600),
                sdk_window: Duration::from_secs(60),
            },
            disk_reserve: 0,
            segment_bytes: 1 << 20,
            cache: 8 << 20,
        };
        let engine = Engine::open(MemoryDisk::default().open(), limits, clock.clone(), "memory").unwrap();
        let (writer, outbox) = Writer::new(engine, clock.clone(), metrics.clone());
        let fake = Fake {
            says: Arc::new(says),
            dry: Arc::new(dry),
            clock: clock.clone(),
            calls: Arc::default(),
            delivered: Arc::default(),
        };
        let leaving = Leaving::new(outbox.clone());
        let dispatch = Dispatch::new(leaving.clone(), fake.clone(), settings, clock.clone(), metrics.clone());
        let (status, stop, mut tasks) = (dispatch.status(), Stop::default(), JoinSet::new());
        tasks.spawn(writer.run_async(move || commit));
        let run = dispatch.run(stop.clone());
        tasks.spawn(async move { run.await.unwrap() });
        Self { outbox, leaving, fake, clock, status, metrics, stop, tasks }
    }

    fn event(&self, function: &str) -> Event {
        event(&self.clock, function)
    }

    async fn append(&self, events: Vec<Event>) {
        self.outbox.append(events).await.unwrap();
    }

    async fn count(&self, place: Place) -> u64 {
        let census = self.outbox.census().await.unwrap();
        census.lanes.values().filter_map(|lane| lane.by_place.get(&place)).map(|count| count.events).sum()
    }

    /// Lets virtual time pass until the outbox is empty. Fails after `at_most`. Returns the time it took.
    async fn until_empty(&self, at_most: Duration) -> Duration {
        let began = self.clock.now();
        loop {
            let left = self.outbox.census().await.unwrap();
            let buried = self.count(Place::Buried).await;
            let passed = self.clock.now().since(began);
            if left.events == buried {
                return passed;
            }
            assert!(passed < at_most, "{} events are left", left.events);
            self.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    fn delivered(&self, function: &str) -> usize {
        self.fake.delivered.lock().unwrap().get(function).map_or(0, Vec::len)
    }

    async fn end(mut self) {
        self.stop.leasing.cancel();
        self.stop.working.cancel();
        drop((self.outbox, self.leaving));
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn policy() -> Policy {
    Policy {
        attempts_max: 12,
        age_max: Duration::from_secs(6 * 3_600),
        backoff_base: Duration::from_millis(500),
        backoff_cap: Duration::from_secs(60),
        concurrency_max: 64,
        rate: 0,
        invocations_per_hour_max: 0,
        mode: Mode::Event,
    }
}

fn settings(policy: Policy) -> Settings {
    Settings { in_flight_max: 256, rate: 0, in_flight_bytes_max: 64 << 20, policy, functions: Vec::new() }
}

fn accepted() -> Reply {
    Reply::Answer(Answer { status: 202, ..Answer::default() })
}

fn error(status: u16, code: &str) -> Reply {
    Reply::Answer(Answer { status, code: Some(code.into()), message: "why".into(), ..Answer::default() })
}

const FAST: Duration = Duration::from_millis(20);

#[tokio::test(start_paused = true)]
async fn credentials_that_expire_for_ten_minutes_cost_no_event() {
    let renewed = START.plus(Duration::from_secs(600));
    let bench = Bench::new(settings(policy()), move |_, now| {
        (FAST, if now < renewed { error(403, "ExpiredTokenException") } else { accepted() })
    });
    for lane in 0..5 {
        let events = (0..100).map(|_| bench.event(&format!("f{lane}"))).collect();
        bench.append(events).await;
    }
    bench.clock.sleep(Duration::from_secs(300)).await;
    let status = bench.status.lanes().await;
    assert!(status.values().all(|lane| lane.held.as_ref().is_some_and(|held| held.kind == HoldKind::Operator)));
    let held = |bench: &Bench| {
        (0..5).map(|lane| bench.metrics.dispatch_held.with_label_values(&[&format!("f{lane}")]).get()).sum::<i64>()
    };
    assert_eq!(held(&bench), 5, "the whole account, by the metric too");
    let took = bench.until_empty(Duration::from_secs(1_800)).await;
    assert_eq!(bench.count(Place::Buried).await, 0);
    assert_eq!((0..5).map(|lane| bench.delivered(&format!("f{lane}"))).sum::<usize>(), 500);
    assert!(took < Duration::from_secs(300 + 300 + 330), "found within a probe's pause: {took:?}");
    let tried = bench.fake.calls.lock().unwrap().iter().filter(|(at, _)| *at < renewed).count();
    assert!(tried < 60, "{tried} calls with expired credentials");
    assert_eq!(held(&bench), 0, "whoever's event it was that probed");
    bench.end().await;
}

/// The answers of a function that is dead in this way.
fn dead(way: &str) -> (Duration, Reply) {
    let lost = Failure { kind: FailureKind::ReadTimeout, message: "no answer".into() };
    let away = Failure { kind: FailureKind::Connect, message: "refused".into() };
    match way {
        "missing" => (FAST, error(404, "ResourceNotFoundException")),
        "failing" => (FAST, error(500, "ServiceException")),
        "throttled" => (FAST, error(429, "TooManyRequestsException")),
        "away" => (Duration::from_secs(3), Reply::NotSent(away)),
        _ => (Duration::from_secs(10), Reply::Lost(lost)),
    }
}

/// How long 90 functions take over 200 events each, in seconds, while other functions (`way` and a number) are dead
/// from `since` on.
async fn ninety_beside(others: &[&str], since: Duration, pause: Duration) -> f64 {
    let ill = START.plus(since);
    let bench = Bench::new(settings(policy()), move |call, now| match call.function.name.as_str().split_once('-') {
        Some((way, _)) if now >= ill => dead(way),
        _ => (FAST, accepted()),
    });
    let all_append = async |events: usize| {
        for (number, way) in others.iter().enumerate() {
            bench.append((0..events).map(|_| bench.event(&format!("{way}-{number}"))).collect()).await;
        }
    };
    all_append(300).await;
    bench.clock.sleep(since).await;
    all_append(300).await;
    bench.clock.sleep(pause).await;
    let began = bench.clock.now();
    for lane in 0..90 {
        bench.append((0..200).map(|_| bench.event(&format!("live{lane}"))).collect()).await;
    }
    while (0..90).any(|lane| bench.delivered(&format!("live{lane}")) < 200) {
        assert!(bench.clock.now().since(began) < Duration::from_secs(600));
        bench.clock.sleep(Duration::from_millis(1)).await;
    }
    let took = bench.clock.now().since(began).as_secs_f64();
    bench.end().await;
    took
}

#[tokio::test(start_paused = true)]
async fn ten_dead_functions_slow_ninety_by_less_than_a_twentieth() {
    let alone = ninety_beside(&[], Duration::ZERO, Duration::ZERO).await;
    let mixed = ["missing", "failing", "throttled", "away", "silent"].repeat(2);
    let silent = ["silent"].repeat(10);
    let (at_once, minute) = (Duration::ZERO, Duration::from_secs(60));
    let cases = [
        ("of all kinds, from the first moment", &mixed, at_once, at_once),
        ("of all kinds, for a minute", &mixed, at_once, minute),
        ("that never answer, from the first moment", &silent, at_once, at_once),
        ("that never answer, for a minute", &silent, at_once, minute),
        // These work at first, so their limits have grown.
        ("that fell silent a minute ago", &silent, Duration::from_secs(30), minute),
    ];
    for (case, others, since, pause) in cases {
        let beside = ninety_beside(others, since, pause).await;
        println!("90 alone {alone:.3} s, beside ten {case}: {beside:.3} s, {:+.1} %", (beside / alone - 1.0) * 100.0);
        assert!(beside < alone * 1.05, "{case}: {beside:.3} s, alone {alone:.3} s");
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_throttled_events_do_not_come_back_at_once() {
    // A call takes a second, and each answer raises the limit. It has reached 10,000 when every call is throttled.
    let second = Duration::from_secs(1);
    let ill = START.plus(Duration::from_millis(17_900));
    let healed = ill.plus(Duration::from_secs(20));
    let policy = Policy { concurrency_max: 10_000, ..policy() };
    let bench = Bench::new(Settings { in_flight_max: 20_000, ..settings(policy) }, move |_, now| {
        (second, if (ill..healed).contains(&now) { error(429, "TooManyRequestsException") } else { accepted() })
    });
    for _ in 0..4 {
        bench.append((0..10_000).map(|_| bench.event("f")).collect()).await;
    }
    bench.until_empty(Duration::from_secs(3_600)).await;
    assert_eq!((bench.delivered("f"), bench.count(Place::Buried).await), (40_000, 0));
    let mut waves: BTreeMap<i64, usize> = BTreeMap::new();
    for (at, _) in bench.fake.calls.lock().unwrap().iter() {
        *waves.entry((at.0 as i64 - ill.0 as i64).div_euclid(1_000)).or_default() += 1;
    }
    let at_once = waves[&0];
    let next = waves.range(1..20).map(|(_, calls)| *calls).max().unwrap();
    let last = waves.range(15..20).map(|(_, calls)| *calls).max().unwrap();
    let first = waves.range(20..23).map(|(_, calls)| *calls).sum::<usize>();
    println!("{at_once} at once, then at most {next} a second, {last} in the end; {first} in 3 s when it was over");
    assert!(at_once >= 8_000, "{at_once} were throttled at once");
    assert!(next * 10 <= at_once, "{next} in a second after {at_once}");
    assert!(last <= 2, "{last}: one at a time");
    assert!(first <= 30, "{first} in three round trips when it was over");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_retry_after_one_event_probes_before_the_rest() {
    let wait = Duration::from_secs(30);
    let ill = START.plus(Duration::from_secs(5));
    let bench = Bench::new(settings(policy()), move |_, now| {
        let answer = Answer { status: 429, code: Some("TooManyRequestsException".into()), ..Answer::default() };
        let throttle = Reply::Answer(Answer { retry_after: Some(wait), ..answer });
        (FAST, if (ill..ill.plus(Duration::from_secs(1))).contains(&now) { throttle } else { accepted() })
    });
    bench.append((0..2_000).map(|_| bench.event("f")).collect()).await;
    bench.clock.sleep(Duration::from_secs(5)).await;
    bench.append((0..2_000).map(|_| bench.event("f")).collect()).await;
    bench.until_empty(Duration::from_secs(600)).await;
    let calls: Vec<_> = bench.fake.calls.lock().unwrap().iter().map(|(at, _)| *at).collect();
    let pauses = |pair: &[UnixMillis]| pair[0] >= ill && pair[1].since(pair[0]) > Duration::from_secs(1);
    let pause = calls.windows(2).position(pauses).unwrap();
    let (probe, next) = (calls[pause + 1], calls[pause + 2]);
    assert!(probe.since(calls[pause]) >= wait, "not before it is over: {:?}", probe.since(calls[pause]));
    assert!(next.since(probe) >= FAST, "alone until it is answered");
    let rest = calls[pause + 2..].iter().filter(|at| at.since(next) < FAST).count();
    assert!(rest <= 8, "{rest} at once after the probe");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_panics_gives_its_slot_back_and_is_counted() {
    let first = Arc::new(Mutex::new(true));
    let policy = Policy { concurrency_max: 1, ..policy() };
    let bench = Bench::new(settings(policy), move |_, _| {
        let panics = std::mem::take(&mut *first.lock().unwrap());
        assert!(!panics, "on purpose");
        (FAST, accepted())
    });
    bench.append((0..3).map(|_| bench.event("f")).collect()).await;
    bench.until_empty(Duration::from_secs(60)).await;
    assert_eq!(bench.delivered("f"), 3);
    assert_eq!(bench.status.lanes().await[&FunctionName::new("f")].in_flight, 0);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn in_confirm_mode_a_functions_error_is_retried_then_buried_in_its_own_words() {
    let timeout = Duration::from_secs(900);
    let policy = Policy { mode: Mode::Confirm { timeout }, attempts_max: 3, ..policy() };
    let bench = Bench::new(settings(policy), move |call, _| {
        assert_eq!(call.mode, Mode::Confirm { timeout });
        let failed = Answer {
            status: 200,
            function_error: Some("Unhandled".into()),
            message: "ValueError: no such order".into(),
            ..Answer::default()
        };
        (FAST, Reply::Answer(failed))
    });
    let event = bench.event("f");
    let id = event.id;
    bench.append(vec![event]).await;
    bench.until_empty(Duration::from_secs(600)).await;
    let found = bench.outbox.find(id).await.unwrap().unwrap();
    assert_eq!((found.place, found.history.attempts), (Place::Buried, 3));
    let last = found.history.last.unwrap();
    assert_eq!(
        (last.status, last.code.as_str(), last.message.as_str()),
        (200, "Unhandled", "ValueError: no such order")
    );
    assert_eq!(found.history.burial.unwrap().reason, BuryReason::RetriesExhausted);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn calls_of_fifteen_minutes_do_not_block_another_lane() {
    let policy = Policy { mode: Mode::Confirm { timeout: Duration::from_secs(900) }, ..policy() };
    let bench = Bench::new(Settings { in_flight_max: 16, ..settings(policy) }, |call, _| {
        let took = if call.function.name.as_str() == "slow" { Duration::from_secs(890) } else { FAST };
        (took, Reply::Answer(Answer { status: 200, ..Answer::default() }))
    });
    bench.append((0..100).map(|_| bench.event("slow")).collect()).await;
    bench.clock.sleep(Duration::from_secs(5)).await;
    bench.append((0..100).map(|_| bench.event("quick")).collect()).await;
    let began = bench.clock.now();
    while bench.delivered("quick") < 100 {
        assert!(bench.clock.now().since(began) < Duration::from_secs(10));
        bench.clock.sleep(Duration::from_millis(10)).await;
    }
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn schedule_and_expiry_are_kept_also_in_a_lane_that_is_held() {
    let open = START.plus(Duration::from_secs(400));
    let bench = Bench::new(settings(policy()), move |call, now| {
        let held = call.function.name.as_str() == "held" && now < open;
        (FAST, if held { error(403, "AccessDeniedException") } else { accepted() })
    });
    let later = |seconds| Some(bench.clock.now().plus(Duration::from_secs(seconds)));
    bench.append(vec![bench.event("held")]).await;
    bench.clock.sleep(Duration::from_secs(5)).await;
    let scheduled = Event { deliver_at: later(100), ..bench.event("f") };
    let expiring = Event { expires_at: later(30), ..bench.event("held") };
    let scheduled_expiring = Event { deliver_at: later(60), expires_at: later(90), ..bench.event("held") };
    let (expiring_id, scheduled_id) = (expiring.id, scheduled_expiring.id);
    bench.append(vec![scheduled, expiring, scheduled_expiring]).await;
    bench.clock.sleep(Duration::from_secs(32)).await;
    assert_eq!(bench.outbox.find(expiring_id).await.unwrap().unwrap().place, Place::Buried);
    assert_eq!(bench.outbox.find(scheduled_id).await.unwrap().unwrap().place, Place::Scheduled);
    bench.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.outbox.find(scheduled_id).await.unwrap().unwrap().place, Place::Buried);
    assert_eq!(bench.delivered("f"), 0, "not before its time");
    bench.until_empty(Duration::from_secs(900)).await;
    let at = bench.fake.delivered.lock().unwrap()["f"][0];
    assert!((105_020..105_200).contains(&at.since(START).as_millis()), "{at:?}");
    assert_eq!(bench.delivered("held"), 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_operators_hand_reaches_what_waits() {
    let bench = Bench::new(settings(policy()), |_, _| (FAST, accepted()));
    let f = FunctionName::new("f");
    bench.outbox.pause(&f, true).await.unwrap();
    let events: Vec<_> = (0..20).map(|_| bench.event("f")).collect();
    let (cancelled, scheduled) = (events[3].id, bench.event("g"));
    bench.append(events).await;
    bench.clock.sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.fake.calls.lock().unwrap().len(), 0, "paused");
    assert_eq!(bench.outbox.cancel(cancelled, Keys::Forget).await.unwrap(), Touched::Done);
    assert_eq!(bench.outbox.cancel(cancelled, Keys::Forget).await.unwrap(), Touched::NotFound);
    let purge =
        |dry_run| Purge { function: f.clone(), place: None, accepted_before: None, dry_run, keys: Keys::Forget };
    assert_eq!(bench.outbox.purge(purge(true)).await.unwrap().events, 19);
    assert_eq!(bench.count(Place::Ready).await, 19, "only counted");
    bench.outbox.pause(&f, false).await.unwrap();
    bench.until_empty(Duration::from_secs(60)).await;
    assert_eq!(bench.delivered("f"), 19);

    let scheduled = Event { deliver_at: Some(bench.clock.now().plus(Duration::from_secs(3_600))), ..scheduled };
    let id = scheduled.id;
    bench.append(vec![scheduled]).await;
    bench.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.delivered("g"), 0);
    assert_eq!(bench.outbox.attempt_now(id).await.unwrap(), Touched::Done);
    bench.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.delivered("g"), 1);
    bench.end().await;
}
