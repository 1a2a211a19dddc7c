use std::collections::BTreeSet;
use std::sync::Mutex;

use tokio::task::JoinSet;

use super::*;
use crate::clock::UnixMillis;
use crate::deadletter::{Format, Oversize, Trouble};
use crate::event::testing::event;
use crate::event::{Event, EventId};
use crate::outbox::dead::BuriedWant;
use crate::outbox::embedded;
use crate::outbox::embedded::engine::Engine;
use crate::outbox::embedded::kv::{Batch, Disk, Failed, Kv};
use crate::outbox::embedded::memory::{MemoryDisk, MemoryKv};
use crate::outbox::embedded::writer::{Handle, Writer};
use crate::outbox::operator::Operator;
use crate::outbox::testing::Leaving;
use crate::outbox::{self, BuryReason, Outbox};

const START: UnixMillis = UnixMillis(1_790_000_000_000);

/// A store in memory whose commits can be made to fail.
struct Fragile(MemoryKv, Arc<Mutex<bool>>);

impl Kv for Fragile {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, Failed> {
        self.0.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(bytes::Bytes, bytes::Bytes), Failed>> {
        self.0.scan(from, to)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        if *self.1.lock().unwrap() {
            return Err(Failed::new("committing", "the disk is told to fail"));
        }
        self.0.commit(batch)
    }

    fn disk(&self) -> Disk {
        self.0.disk()
    }
}

/// Answers for a message, by queue and payload. Without one, the message is confirmed.
type Script = BTreeMap<(String, String), Vec<Shipment>>;

/// A fake SQS that follows its script and keeps the messages that it confirmed.
#[derive(Clone, Default)]
struct FakeSqs {
    script: Arc<Mutex<Script>>,
    /// Queues that accept nothing.
    down: Arc<Mutex<BTreeSet<String>>>,
    facts: Arc<Mutex<BTreeMap<String, QueueFacts>>>,
    /// The bodies that each queue has.
    has: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    batches: Arc<Mutex<Vec<(String, usize, UnixMillis)>>>,
    clock: Option<Clock>,
    /// Takes the messages, but never answers.
    hangs: Arc<Mutex<bool>>,
    /// Queues that neither answer nor accept anything.
    silent: Arc<Mutex<BTreeSet<String>>>,
}

impl FakeSqs {
    fn had(&self, queue: &str) -> Vec<String> {
        let mut had = self.has.lock().unwrap().get(queue).cloned().unwrap_or_default();
        had.sort();
        had
    }
}

impl Ship for FakeSqs {
    async fn ship(&self, queue: &str, batch: Vec<Message>) -> Vec<Shipment> {
        let now = self.clock.as_ref().map(Clock::now).unwrap_or_default();
        self.batches.lock().unwrap().push((queue.to_owned(), batch.len(), now));
        if self.silent.lock().unwrap().contains(queue) {
            std::future::pending::<()>().await;
        }
        let answers = batch
            .iter()
            .map(|message| {
                if self.down.lock().unwrap().contains(queue) {
                    return later();
                }
                let key = (queue.to_owned(), message.body.clone());
                let told = self.script.lock().unwrap().get_mut(&key).and_then(Vec::pop);
                let shipment = told.unwrap_or_else(|| Shipment::Confirmed { message_id: "m".into() });
                if matches!(shipment, Shipment::Confirmed { .. }) {
                    self.has.lock().unwrap().entry(queue.to_owned()).or_default().push(message.body.clone());
                }
                shipment
            })
            .collect();
        if *self.hangs.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        answers
    }

    async fn facts(&self, queue: &str) -> Result<QueueFacts, Trouble> {
        if self.silent.lock().unwrap().contains(queue) {
            std::future::pending::<()>().await;
        }
        self.facts.lock().unwrap().get(queue).copied().ok_or_else(|| Trouble {
            code: "AccessDenied".into(),
            message: "why".into(),
            transient: false,
        })
    }
}

fn later() -> Shipment {
    Shipment::Later { code: "QueueDoesNotExist".into(), message: "why".into() }
}

fn refused() -> Shipment {
    Shipment::Refused { code: "InvalidMessageContents".into(), message: "why".into() }
}

struct Bench {
    store: Handle,
    /// The outbox as the stage sees it.
    leaving: Leaving<Handle>,
    clock: Clock,
    metrics: Arc<Metrics>,
    sqs: FakeSqs,
    settings: Settings,
    broken: Arc<Mutex<bool>>,
    past: Past,
    tasks: JoinSet<()>,
}

impl Bench {
    fn new() -> Self {
        let clock = Clock::seeded(START, 1);
        let metrics = Arc::new(Metrics::new().unwrap());
        let limits = embedded::Settings {
            limits: outbox::Limits {
                bytes_max: 100 << 20,
                events_max: 1_000,
                functions_max: 100,
                dedupe_window: Duration::from_secs(3_600),
                sdk_window: Duration::from_secs(60),
            },
            disk_reserve: 0,
            segment_bytes: 1 << 20,
            cache: 8 << 20,
        };
        let broken = Arc::new(Mutex::new(false));
        let kv = Fragile(MemoryDisk::default().open(), broken.clone());
        let engine = Engine::open(kv, limits, clock.clone(), "memory").unwrap();
        let (writer, store) = Writer::new(engine, clock.clone(), metrics.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run_async(|| std::time::Duration::ZERO));
        let settings = Settings {
            queue_url: Some("q".into()),
            functions: Vec::new(),
            backoff_base: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(60),
            retention_min: Duration::from_secs(4 * 24 * 3_600),
            format: Format::DeadLetterQueue,
            oversize: Oversize::Keep,
            redrives_max: 3,
        };
        let sqs = FakeSqs { clock: Some(clock.clone()), ..FakeSqs::default() };
        let leaving = Leaving::new(store.clone());
        let past = Past::new(100, tokio_util::sync::CancellationToken::new());
        Self { store, leaving, clock, metrics, sqs, settings, broken, past, tasks }
    }

    async fn bury(&self, function: &str, payload: &str) -> EventId {
        self.clock.sleep(Duration::from_millis(1)).await;
        let now = self.clock.now();
        let event = Event { payload: payload.to_owned().into(), ..event(&self.clock, function) };
        let id = event.id;
        self.store.append(vec![event]).await.unwrap();
        let lanes = self.store.lanes(0).await.unwrap().lanes;
        let lane = lanes.iter().find(|lane| lane.function.as_str() == function).unwrap().lane;
        let lanes = vec![LaneWant { lane, which: Which::Due, events_max: 1, bytes_max: u64::MAX, spent: None }];
        let leased = self.store.lease(LeaseWant { lanes, bytes_max: u64::MAX }, None).await.unwrap().events;
        let burial = Burial { reason: BuryReason::Refused, at: now, unshippable: None };
        let history = History { burial: Some(burial), due: now, ..History::default() };
        self.store.settle(vec![(leased[0].lease, Settlement::Bury(history))]).await.unwrap();
        id
    }

    /// Starts the stage.
    fn start(&self) -> (Stop, JoinSet<Result<(), Error>>) {
        let stop = Stop::default();
        let (ship, settings) = (self.sqs.clone(), self.settings.clone());
        let letters = DeadLetters::new(self.leaving.clone(), ship, settings, self.clock.clone(), self.metrics.clone());
        let mut stage = JoinSet::new();
        stage.spawn(letters.noting(self.past.clone()).run(stop.clone()));
        (stop, stage)
    }

    /// Runs the stage for this much virtual time, then stops it.
    async fn run_for(&self, seconds: u64) {
        let (stop, mut stage) = self.start();
        self.clock.sleep(Duration::from_secs(seconds)).await;
        stop.leasing.cancel();
        stage.join_next().await.unwrap().unwrap().unwrap();
    }

    /// The dead letters that are still in the store: payload, and why they cannot be sent.
    async fn buried(&self) -> Vec<(String, Option<String>)> {
        let want = BuriedWant { letters_max: 1_000, payloads: true, ..BuriedWant::default() };
        let letters = self.store.buried(want).await.unwrap().letters;
        let shown = |letter: outbox::dead::Letter| {
            assert!(!letter.leased, "a lease was kept");
            let payload = String::from_utf8_lossy(&letter.event.payload).into_owned();
            (payload, letter.history.burial.and_then(|burial| burial.unshippable))
        };
        letters.into_iter().map(shown).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    let mut numbers: Vec<String> = range.map(|n| n.to_string()).collect();
    numbers.sort();
    numbers
}

#[tokio::test(start_paused = true)]
async fn what_is_confirmed_is_gone_in_batches_of_ten() {
    let bench = Bench::new();
    for n in 0..25 {
        bench.bury("orders", &n.to_string()).await;
    }
    bench.run_for(5).await;
    assert_eq!(bench.sqs.had("q"), numbers(0..25));
    assert_eq!(bench.buried().await, []);
    let sizes: Vec<usize> = bench.sqs.batches.lock().unwrap().iter().map(|(_, size, _)| *size).collect();
    assert_eq!(sizes, [10, 10, 5]);
    assert_eq!(bench.metrics.deadletter_shipped.with_label_values(&["orders"]).get(), 25);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_stays_listed_for_a_while_and_keeps_no_other() {
    let bench = Bench::new();
    bench.sqs.script.lock().unwrap().insert(("q".into(), "1".into()), vec![refused()]);
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(bench.bury("orders", &n.to_string()).await);
    }
    bench.run_for(600).await;
    let ends: Vec<_> = ids.iter().map(|id| bench.past.end_of(*id).map(|end| end.how)).collect();
    let shipped = Some(How::Shipped { message_id: "m".to_owned() });
    assert_eq!(ends, [shipped.clone(), None, shipped], "an end is noted of what has left the store only");
    assert_eq!(bench.sqs.had("q"), ["0", "2"]);
    assert_eq!(bench.buried().await, [("1".to_owned(), Some("InvalidMessageContents: why".to_owned()))]);
    assert_eq!(bench.sqs.batches.lock().unwrap().len(), 1);
    assert_eq!(bench.metrics.deadletter_unshippable.with_label_values(&["orders"]).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_queue_refused_is_tried_again_after_a_while_and_counted_once() {
    let bench = Bench::new();
    // The last answer in the list is given first.
    let mistaken = Shipment::Refused { code: "InvalidParameterValue".into(), message: "the queue is mistaken".into() };
    bench.sqs.script.lock().unwrap().insert(("q".into(), "1".into()), vec![mistaken.clone(), mistaken]);
    bench.bury("orders", "1").await;
    bench.run_for(3 * 3_600).await;
    assert_eq!((bench.sqs.had("q"), bench.buried().await), (vec!["1".to_owned()], vec![]));
    assert_eq!(bench.sqs.batches.lock().unwrap().len(), 3);
    assert_eq!(bench.metrics.deadletter_unshippable.with_label_values(&["orders"]).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_hangs_delays_its_own_letters_only() {
    let mut bench = Bench::new();
    bench.settings.functions = vec![("orders".into(), "silent".into())];
    bench.sqs.silent.lock().unwrap().insert("silent".into());
    for n in 0..30 {
        bench.bury("orders", "kept").await;
        bench.bury("invoices", &n.to_string()).await;
    }
    let (stop, mut stage) = bench.start();
    bench.clock.sleep(Duration::from_secs(20)).await;
    assert_eq!(bench.sqs.had("q"), numbers(0..30));
    assert_eq!(bench.sqs.had("silent"), [""; 0]);
    stop.leasing.cancel();
    stop.working.cancel();
    stage.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_lanes_of_one_queue_take_turns() {
    let bench = Bench::new();
    for lane in 0..10 {
        for _ in 0..40 {
            bench.bury(&format!("f{lane}"), &lane.to_string()).await;
        }
    }
    bench.run_for(60).await;
    let has = bench.sqs.has.lock().unwrap()["q"].clone();
    assert_eq!(has.len(), 400);
    let first_of = |lane: usize| has.iter().position(|body| *body == lane.to_string()).unwrap();
    assert!((0..10).all(|lane| first_of(lane) < 100 + 20), "each lane has its turn before any has a second");
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_does_not_take_letters_is_left_alone_ever_longer_and_found_when_it_is_back() {
    let bench = Bench::new();
    bench.sqs.down.lock().unwrap().insert("q".into());
    bench.bury("orders", "1").await;
    let (stop, mut stage) = bench.start();
    bench.clock.sleep(Duration::from_secs(600)).await;
    let tries = bench.sqs.batches.lock().unwrap().len();
    assert!((8..40).contains(&tries), "{tries} tries in ten minutes");
    assert_eq!(bench.buried().await, [("1".to_owned(), None)]);
    bench.sqs.down.lock().unwrap().clear();
    bench.clock.sleep(Duration::from_secs(70)).await;
    assert_eq!((bench.sqs.had("q").len(), bench.buried().await.len()), (1, 0));
    stop.leasing.cancel();
    stage.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_down_does_not_keep_the_letters_of_another() {
    let mut bench = Bench::new();
    bench.settings.functions = vec![("orders-*".into(), "orders-q".into())];
    bench.sqs.down.lock().unwrap().insert("orders-q".into());
    for n in 0..5 {
        bench.bury("orders-eu", &format!("o{n}")).await;
        bench.bury("invoices", &n.to_string()).await;
    }
    bench.run_for(30).await;
    assert_eq!(bench.sqs.had("q"), numbers(0..5));
    assert_eq!(bench.buried().await.len(), 5);
    bench.sqs.down.lock().unwrap().clear();
    bench.run_for(1).await;
    assert_eq!(bench.sqs.had("orders-q").len(), 5);
    assert_eq!(bench.buried().await, []);
}

#[tokio::test(start_paused = true)]
async fn each_message_of_a_batch_goes_its_own_way() {
    let bench = Bench::new();
    {
        let mut script = bench.sqs.script.lock().unwrap();
        script.insert(("q".into(), "1".into()), vec![refused()]);
        script.insert(("q".into(), "2".into()), vec![later(), later()]);
    }
    for n in 0..4 {
        bench.bury("orders", &n.to_string()).await;
    }
    bench.run_for(60).await;
    assert_eq!(bench.sqs.had("q"), ["0", "2", "3"], "each once");
    assert_eq!(bench.buried().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_everything_stays_and_nothing_is_leased() {
    let mut bench = Bench::new();
    bench.settings.queue_url = None;
    bench.settings.functions = vec![("orders".into(), "orders-q".into())];
    bench.bury("invoices", "1").await;
    bench.bury("orders", "2").await;
    bench.run_for(120).await;
    assert_eq!(bench.buried().await, [("1".to_owned(), None)]);
    assert_eq!(bench.sqs.had("orders-q"), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_larger_than_the_queue_takes_is_never_sent_and_stays_listed() {
    let bench = Bench::new();
    let facts = QueueFacts { message_bytes_max: 2_048, ..QueueFacts::default() };
    bench.sqs.facts.lock().unwrap().insert("q".into(), facts);
    bench.bury("orders", &format!("\"{}\"", "x".repeat(3_000))).await;
    bench.bury("orders", "2").await;
    bench.run_for(600).await;
    assert_eq!(bench.sqs.had("q"), ["2"]);
    let buried = bench.buried().await;
    let why = buried[0].1.as_deref().unwrap();
    assert!(why.contains("the queue takes 2048"), "{why}");
    assert_eq!(bench.metrics.deadletter_queue_messages.with_label_values(&["q"]).get(), 0);
    let largest = "x".repeat(1_048_570);
    bench.bury("orders", &format!("\"{largest}\"")).await;
    bench.run_for(5).await;
    assert_eq!(bench.buried().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn large_letters_are_cut_into_batches_of_one_mebibyte() {
    let bench = Bench::new();
    for _ in 0..5 {
        bench.bury("orders", &format!("\"{}\"", "x".repeat(400_000))).await;
    }
    bench.run_for(5).await;
    let sizes: Vec<usize> = bench.sqs.batches.lock().unwrap().iter().map(|(_, size, _)| *size).collect();
    assert_eq!(sizes, [2, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn told_to_stop_working_it_gives_up_the_batch_and_the_letters_are_still_there() {
    let bench = Bench::new();
    *bench.sqs.hangs.lock().unwrap() = true;
    bench.bury("orders", "1").await;
    let (stop, mut stage) = bench.start();
    bench.clock.sleep(Duration::from_secs(1)).await;
    stop.leasing.cancel();
    bench.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.len(), 1, "it finishes the batch under way");
    stop.working.cancel();
    stage.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(bench.store.census().await.unwrap().events, 1);
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_store_ends_the_stage_and_keeps_the_letters() {
    let bench = Bench::new();
    bench.bury("orders", "1").await;
    *bench.broken.lock().unwrap() = true;
    let (_stop, mut stage) = bench.start();
    let ended = stage.join_next().await.unwrap().unwrap();
    assert!(matches!(ended, Err(Error::Poisoned { .. })), "{ended:?}");
    assert_eq!(bench.sqs.had("q"), ["1"], "shipped, but not settled: it is shipped again after a restart");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_waited_out_and_its_letters_are_shipped_once_it_is_back() {
    let bench = Bench::new();
    bench.bury("f", "1").await;
    bench.leaving.leave();
    let (stop, mut stage) = bench.start();
    bench.clock.sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.buried().await.len(), 1);
    let refused = bench.leaving.refused();
    assert!((2..=60).contains(&refused), "it was asked {refused} times within 30 s");
    bench.leaving.come_back();
    bench.clock.sleep(Duration::from_secs(5)).await;
    assert!(bench.buried().await.is_empty(), "shipped");
    bench.leaving.leave();
    bench.clock.sleep(Duration::from_secs(5)).await;
    stop.leasing.cancel();
    stage.join_next().await.unwrap().unwrap().unwrap();
}
