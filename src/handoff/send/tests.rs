//! The sender against the real engine with a store in memory, fake targets and virtual time.

use std::collections::BTreeMap;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_util::task::TaskTracker;

use super::*;
use crate::event::testing::event;
use crate::event::{Event, FunctionName, IdempotencyKey, KeySource};
use crate::handoff::target::Taken;
use crate::outbox::embedded;
use crate::outbox::embedded::engine::Engine;
use crate::outbox::embedded::memory::MemoryDisk;
use crate::outbox::embedded::writer::{Handle, Writer};
use crate::outbox::handoff::{Handed, RememberedKey};
use crate::outbox::operator::Operator as _;
use crate::outbox::{Appended, Burial, BuryReason, History, Limits};

const START: UnixMillis = UnixMillis(1_790_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

/// What a fake target says to the nth request with so many events.
type Says = dyn Fn(usize, usize) -> Result<Vec<Answer>, Trouble> + Send + Sync;

struct Fake {
    name: &'static str,
    sizes: Sizes,
    takes: Duration,
    says: Box<Says>,
    clock: Clock,
    /// The ids of each request.
    got: Mutex<Vec<Vec<EventId>>>,
    parcels: Mutex<BTreeMap<EventId, Parcel>>,
    keys: Mutex<Vec<RememberedKey>>,
}

impl Target for Fake {
    fn name(&self) -> &str {
        self.name
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn send<'a>(&'a self, batch: &'a [Parcel]) -> BoxFuture<'a, Result<Vec<Answer>, Trouble>> {
        async {
            self.clock.sleep(self.takes).await;
            let nth = {
                let mut got = self.got.lock().unwrap();
                got.push(batch.iter().map(|parcel| parcel.envelope.id).collect());
                got.len()
            };
            let mut parcels = self.parcels.lock().unwrap();
            batch.iter().for_each(|parcel| drop(parcels.insert(parcel.envelope.id, parcel.clone())));
            (self.says)(nth, batch.len())
        }
        .boxed()
    }

    fn send_keys<'a>(&'a self, keys: &'a [RememberedKey]) -> Option<BoxFuture<'a, Result<(), Trouble>>> {
        self.keys.lock().unwrap().extend(keys);
        Some(async { Ok(()) }.boxed())
    }
}

fn takes_all(_: usize, events: usize) -> Result<Vec<Answer>, Trouble> {
    Ok(vec![Answer::Taken(Taken::Adopted); events])
}

fn never(_: usize, _: usize) -> Result<Vec<Answer>, Trouble> {
    Err(Trouble::Never { why: "another region".to_owned() })
}

struct Bench {
    outbox: Handle,
    past: Past,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new() -> Self {
        let clock = Clock::seeded(START, 1);
        let limits = Limits {
            bytes_max: 1 << 30,
            events_max: 100_000,
            functions_max: 1_000,
            dedupe_window: HOUR,
            sdk_window: HOUR,
        };
        let settings = embedded::Settings { limits, disk_reserve: 0, segment_bytes: 1 << 20, cache: 0 };
        let metrics = Arc::new(Metrics::new().unwrap());
        let engine = Engine::open(MemoryDisk::default().open(), settings, clock.clone(), "test").unwrap();
        let (writer, outbox) = Writer::new(engine, clock.clone(), metrics.clone());
        // On this runtime: its paused clock would not wait for another thread.
        TaskTracker::new().spawn(writer.run_async(|| Duration::ZERO));
        Self { outbox, past: Past::new(100, CancellationToken::new()), clock, metrics }
    }

    fn target(
        &self,
        name: &'static str,
        says: impl Fn(usize, usize) -> Result<Vec<Answer>, Trouble> + Send + Sync + 'static,
    ) -> Arc<Fake> {
        let sizes = Sizes { events_max: 3, bytes_max: 1 << 20, batches_max: 2 };
        let (got, parcels, keys) = Default::default();
        let takes = Duration::from_millis(1);
        Arc::new(Fake { name, sizes, takes, says: Box::new(says), clock: self.clock.clone(), got, parcels, keys })
    }

    async fn accept(&self, function: &str) -> EventId {
        let event = event(&self.clock, function);
        let id = event.id;
        self.clock.sleep(Duration::from_millis(1)).await;
        assert_eq!(self.outbox.append(vec![event]).await.unwrap(), [Appended::Stored]);
        id
    }

    async fn put(&self, event: Event, history: History) -> EventId {
        let id = event.id;
        self.clock.sleep(Duration::from_millis(1)).await;
        self.outbox.adopt(vec![Handed { event, history, paused: false }]).await.unwrap();
        id
    }

    fn sender(&self, targets: &[&Arc<Fake>]) -> Sender<Handle> {
        let targets = targets.iter().map(|&target| Arc::clone(target) as Arc<dyn Target>).collect();
        let sender = Sender::new(self.outbox.clone(), targets, true, self.clock.clone(), self.metrics.clone());
        sender.noting(self.past.clone())
    }

    /// A run that ends once nothing more can be done, or after a minute.
    async fn run(&self, targets: &[&Arc<Fake>]) -> Summary {
        let until = Until::default();
        until.last.cancel();
        let (sender, over) = (self.sender(targets), until.over.clone());
        let run = sender.run(until, Progress::default());
        tokio::pin!(run);
        tokio::select! {
            biased;
            summary = &mut run => return summary.unwrap(),
            () = self.clock.sleep(Duration::from_secs(60)) => over.cancel(),
        }
        run.await.unwrap()
    }

    async fn left(&self) -> u64 {
        self.outbox.census().await.unwrap().events
    }
}

#[tokio::test(start_paused = true)]
async fn everything_at_rest_goes_with_its_history_the_ready_first_and_dead_letters_last() {
    let bench = Bench::new();
    let late = START.plus(HOUR);
    let burial = Some(Burial { reason: BuryReason::Refused, at: START, unshippable: None });
    let buried = History { attempts: 3, calls: 3, due: late, burial, ..History::default() };
    let letter = bench.put(event(&bench.clock, "orders"), buried.clone()).await;
    let scheduled = Event { deliver_at: Some(late), ..event(&bench.clock, "orders") };
    let scheduled = bench.put(scheduled, History { due: late, ..History::default() }).await;
    let tried = History { attempts: 2, calls: 5, due: late, ..History::default() };
    let waiting = bench.put(event(&bench.clock, "invoices"), tried.clone()).await;
    let mut ready = Vec::new();
    for _ in 0..5 {
        ready.push(bench.accept("orders").await);
    }
    bench.outbox.pause(&FunctionName::new("orders"), true).await.unwrap();

    let target = bench.target("peer", takes_all);
    let summary = bench.run(&[&target]).await;
    assert_eq!((summary.events, summary.left, summary.why), (8, 0, None));
    let got: Vec<EventId> = target.got.lock().unwrap().concat();
    let at = |id: &EventId| got.iter().position(|got| got == id).unwrap();
    assert!(ready.iter().chain([&waiting]).all(|id| at(id) < at(&scheduled)), "{got:?}");
    assert!(at(&scheduled) < at(&letter));
    assert!(ready.is_sorted_by_key(at), "the oldest first");
    let parcels = target.parcels.lock().unwrap();
    assert_eq!(parcels[&waiting].envelope.history, tried);
    assert_eq!(parcels[&letter].envelope.history, buried);
    assert_eq!(parcels[&scheduled].envelope.deliver_at, Some(late));
    assert!(target.got.lock().unwrap().iter().all(|batch| batch.len() <= 3), "a batch has its size");
    let is_paused = |parcel: &Parcel| parcel.envelope.function.as_str() == "orders";
    assert!(parcels.values().all(|parcel| parcel.envelope.paused == is_paused(parcel)), "a pause goes with its events");
    let counted = bench.metrics.handoff_events.with_label_values(&["out", "adopted"]).get();
    assert_eq!(counted, 8);
    let end = bench.past.end_of(waiting).unwrap();
    assert_eq!((end.how, end.attempts), (How::HandedOver { to: "peer".to_owned() }, tried.calls));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_settled_before_the_answer_and_what_has_none_stays() {
    let bench = Bench::new();
    bench.accept("orders").await;
    let target = Arc::into_inner(bench.target("peer", takes_all)).unwrap();
    let slow = Arc::new(Fake { takes: Duration::from_secs(5), ..target });
    let until = Until::default();
    let sender = bench.sender(&[&slow]);
    let run = sender.run(until.clone(), Progress::default());
    tokio::pin!(run);
    tokio::select! {
        biased;
        _ = &mut run => panic!("it waits for the answer"),
        () = bench.clock.sleep(Duration::from_secs(4)) => {}
    }
    assert_eq!(bench.left().await, 1, "there is no answer yet");
    until.over.cancel();
    let summary = run.await.unwrap();
    assert_eq!((summary.events, summary.left), (0, 1));
    assert_eq!(bench.run(&[&bench.target("peer", takes_all)]).await.events, 1, "it was released");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_takes_nothing_is_passed_over_for_the_next() {
    let bench = Bench::new();
    for _ in 0..7 {
        bench.accept("orders").await;
    }
    let full = |_: usize, events: usize| Ok(vec![Answer::Busy("full".to_owned()); events]);
    let away = |_: usize, _: usize| {
        Err(Trouble::NotNow { why: "it cannot be reached".to_owned(), retry_after: Duration::from_secs(1) })
    };
    let (elsewhere, full) = (bench.target("elsewhere", never), bench.target("full", full));
    let (away, last) = (bench.target("away", away), bench.target("last", takes_all));
    let summary = bench.run(&[&elsewhere, &full, &away, &last]).await;
    assert_eq!((summary.events, summary.left), (7, 0));
    assert!(elsewhere.got.lock().unwrap().len() <= 3, "it is not asked for every batch");
    assert_eq!(last.parcels.lock().unwrap().len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_an_answer_is_offered_to_the_same_target_again_for_a_while() {
    let bench = Bench::new();
    let id = bench.accept("orders").await;
    let lost = |nth: usize, events: usize| match nth {
        1 | 2 => Err(Trouble::Unanswered { why: "the connection ended".to_owned() }),
        _ => Ok(vec![Answer::Taken(Taken::Repeat); events]),
    };
    let (first, second) = (bench.target("first", lost), bench.target("second", takes_all));
    assert_eq!(bench.run(&[&first, &second]).await.events, 1);
    assert_eq!(*first.got.lock().unwrap(), [[id], [id], [id]]);
    assert!(second.got.lock().unwrap().is_empty());

    bench.accept("orders").await;
    let silent = |_: usize, _: usize| Err(Trouble::Unanswered { why: "the connection ended".to_owned() });
    let (first, second) = (bench.target("first", silent), bench.target("second", takes_all));
    let began = bench.clock.now();
    assert_eq!(bench.run(&[&first, &second]).await.events, 1);
    assert!(bench.clock.now().since(began) >= SAME_TARGET_FOR);
    assert_eq!(second.got.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_every_target_refuses_is_counted_and_does_not_hold_up_the_end() {
    let bench = Bench::new();
    for _ in 0..3 {
        bench.accept("orders").await;
    }
    let picky = |_: usize, events: usize| {
        let mut answers = vec![Answer::Taken(Taken::Adopted); events];
        answers[0] = Answer::Refused("too large".to_owned());
        Ok(answers)
    };
    let summary = bench.run(&[&bench.target("picky", picky)]).await;
    assert_eq!((summary.events, summary.left, summary.refused), (2, 1, 1));
    assert_eq!((summary.why.as_deref(), summary.functions.as_str()), (Some("too large"), "orders 1"));

    let began = bench.clock.now();
    let summary = bench.run(&[&bench.target("elsewhere", never)]).await;
    assert_eq!((summary.events, summary.left, summary.why.as_deref()), (0, 1, Some("another region")));
    assert!(bench.clock.now().since(began) < Duration::from_secs(20), "there is no use in waiting for it");
}

#[tokio::test(start_paused = true)]
async fn what_comes_to_rest_during_the_run_follows() {
    let bench = Bench::new();
    bench.accept("orders").await;
    let lane = bench.outbox.lanes(0).await.unwrap().lanes[0].lane;
    let lanes = vec![LaneWant { lane, which: Which::Due, events_max: 1, bytes_max: u64::MAX, spent: None }];
    let leased = bench.outbox.lease(LeaseWant { lanes, bytes_max: u64::MAX }, None).await.unwrap().events;
    let target = bench.target("peer", takes_all);
    let (until, sender) = (Until::default(), bench.sender(&[&target]));
    let run = sender.run(until.clone(), Progress::default());
    let attempt = async {
        bench.clock.sleep(Duration::from_secs(3)).await;
        assert_eq!(bench.left().await, 1, "it is being attempted");
        let done = leased.into_iter().map(|leased| (leased.lease, Settlement::Release)).collect();
        assert_eq!(bench.outbox.settle(done).await.unwrap(), []);
        until.last.cancel();
    };
    let (summary, ()) = tokio::join!(run, attempt);
    assert_eq!((summary.as_ref().unwrap().events, summary.unwrap().left), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn keys_of_delivered_events_follow_and_those_of_events_that_stay_do_not() {
    let bench = Bench::new();
    let keyed = |value: &str| Event {
        key: IdempotencyKey { value: value.into(), source: KeySource::Header },
        ..event(&bench.clock, "orders")
    };
    let delivered = keyed("a");
    bench.outbox.append(vec![delivered.clone()]).await.unwrap();
    let lane = bench.outbox.lanes(0).await.unwrap().lanes[0].lane;
    let lanes = vec![LaneWant { lane, which: Which::Due, events_max: 1, bytes_max: u64::MAX, spent: None }];
    let leased = bench.outbox.lease(LeaseWant { lanes, bytes_max: u64::MAX }, None).await.unwrap().events;
    bench.outbox.settle(leased.into_iter().map(|l| (l.lease, Settlement::Delivered)).collect()).await.unwrap();
    bench.outbox.append(vec![keyed("b")]).await.unwrap();

    let refuses = |_: usize, events: usize| Ok(vec![Answer::Refused("no".to_owned()); events]);
    let target = bench.target("peer", refuses);
    let summary = bench.run(&[&target]).await;
    let keys = target.keys.lock().unwrap().clone();
    assert_eq!((summary.keys, summary.left), (1, 1));
    assert_eq!(keys.iter().map(|key| key.first).collect::<Vec<_>>(), [delivered.id]);
    assert!(keys[0].left <= HOUR);

    let other = Bench::new();
    assert_eq!(other.outbox.learn(keys.clone()).await.unwrap(), 1);
    assert_eq!(other.outbox.learn(keys).await.unwrap(), 0, "it is known");
    let again = Event { id: EventId::from_bytes([7; 16]), ..delivered.clone() };
    assert_eq!(other.outbox.append(vec![again]).await.unwrap(), [Appended::Repeat { first: delivered.id }]);
}
