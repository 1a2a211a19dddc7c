use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use super::*;
use crate::deadletter::letter::Received;
use crate::deadletter::message::MESSAGE_BYTES_MAX;
use crate::event::testing::event;
use crate::event::{Event, EventId, IdempotencyKey, KeySource};
use crate::handoff::envelope::Envelope;
use crate::handoff::queue::message::message_of;
use crate::handoff::target::Parcel;
use crate::outbox::embedded;
use crate::outbox::embedded::engine::Engine;
use crate::outbox::embedded::memory::MemoryDisk;
use crate::outbox::embedded::writer::{Handle, Writer};
use crate::outbox::testing::Leaving;
use crate::outbox::{History, LastOutcome};

const START: UnixMillis = UnixMillis(1_790_000_000_000);

/// How long a call of the queue takes.
const CALL: Duration = Duration::from_millis(20);

/// A standard queue. Received messages are hidden for [`VISIBILITY`].
#[derive(Clone)]
struct FakeQueue {
    clock: Clock,
    messages: Arc<Mutex<BTreeMap<String, (Received, UnixMillis)>>>,
    receives: Arc<Mutex<Vec<UnixMillis>>>,
    /// Troubles that the next receives and deletes return.
    receive_troubles: Arc<Mutex<u32>>,
    delete_troubles: Arc<Mutex<u32>>,
}

impl FakeQueue {
    fn put(&self, message: Received) {
        let mut messages = self.messages.lock().unwrap();
        let id = format!("{:05}", messages.len());
        let message = Received { message_id: id.clone(), receipt: id.clone(), ..message };
        messages.insert(id, (message, UnixMillis(0)));
    }

    fn len(&self) -> usize {
        self.messages.lock().unwrap().len()
    }

    fn receives(&self) -> usize {
        self.receives.lock().unwrap().len()
    }

    fn fails(left: &Mutex<u32>) -> Result<(), Trouble> {
        let mut left = left.lock().unwrap();
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        Err(Trouble { code: "InternalFailure".to_owned(), message: "as told".to_owned(), transient: true })
    }
}

impl Queue for FakeQueue {
    async fn receive(&self, messages_max: usize) -> Result<Vec<Received>, Trouble> {
        self.receives.lock().unwrap().push(self.clock.now());
        self.clock.sleep(CALL).await;
        Self::fails(&self.receive_troubles)?;
        let until = self.clock.now().plus(LONG_POLL);
        loop {
            let now = self.clock.now();
            let found: Vec<Received> = {
                let mut messages = self.messages.lock().unwrap();
                let visible = messages.values_mut().filter(|(_, hidden_until)| *hidden_until <= now).take(messages_max);
                visible
                    .map(|(message, hidden_until)| {
                        *hidden_until = now.plus(VISIBILITY);
                        message.clone()
                    })
                    .collect()
            };
            if !found.is_empty() || now >= until {
                return Ok(found);
            }
            self.clock.sleep(Duration::from_secs(1)).await;
        }
    }

    async fn delete(&self, receipts: &[String]) -> Vec<Result<(), Trouble>> {
        self.clock.sleep(CALL).await;
        if let Err(trouble) = Self::fails(&self.delete_troubles) {
            return vec![Err(trouble); receipts.len()];
        }
        let mut messages = self.messages.lock().unwrap();
        receipts.iter().for_each(|receipt| drop(messages.remove(receipt)));
        vec![Ok(()); receipts.len()]
    }

    async fn release(&self, receipts: &[String]) {
        let mut messages = self.messages.lock().unwrap();
        receipts.iter().for_each(|receipt| messages.get_mut(receipt).unwrap().1 = UnixMillis(0));
    }
}

struct Bench {
    store: Handle,
    leaving: Leaving<Handle>,
    queue: FakeQueue,
    open: Arc<AtomicBool>,
    clock: Clock,
    metrics: Arc<Metrics>,
    limits: Limits,
    tasks: JoinSet<()>,
}

impl Bench {
    fn new(events_max: u64) -> Self {
        let clock = Clock::seeded(START, 1);
        let metrics = Arc::new(Metrics::new().unwrap());
        let limits = Limits {
            bytes_max: 100 << 20,
            events_max,
            functions_max: 100,
            dedupe_window: Duration::from_secs(3_600),
            sdk_window: Duration::from_secs(60),
        };
        let settings = embedded::Settings { limits, disk_reserve: 0, segment_bytes: 1 << 20, cache: 8 << 20 };
        let engine = Engine::open(MemoryDisk::default().open(), settings, clock.clone(), "memory").unwrap();
        let (writer, store) = Writer::new(engine, clock.clone(), metrics.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run_async(|| Duration::ZERO));
        let queue = FakeQueue {
            clock: clock.clone(),
            messages: Arc::default(),
            receives: Arc::default(),
            receive_troubles: Arc::default(),
            delete_troubles: Arc::default(),
        };
        let (leaving, open) = (Leaving::new(store.clone()), Arc::new(AtomicBool::new(true)));
        Self { store, leaving, queue, open, clock, metrics, limits, tasks }
    }

    /// Puts the message of a new event into the queue.
    fn hand_over(&self, function: &str, history: History) -> (Event, Received) {
        let event = event(&self.clock, function);
        let (envelope, payload) = Envelope::seal(event.clone(), history);
        let message = message_of(&Parcel { envelope, payload }, &home(), MESSAGE_BYTES_MAX).unwrap();
        let texts = message.attributes.iter().map(|(name, attribute)| (name.clone(), attribute.value()));
        let received = Received { body: message.body.clone(), attributes: texts.collect(), ..Received::default() };
        self.queue.put(received.clone());
        (event, received)
    }

    fn start(&self) -> (Stop, JoinSet<Result<(), Error>>) {
        let (stop, open) = (Stop::default(), self.open.clone());
        let settings = Settings { queue: "q".to_owned(), home: home(), limits: self.limits };
        let stage = Receive::new(
            self.leaving.clone(),
            self.queue.clone(),
            move || open.load(Ordering::Relaxed),
            settings,
            self.clock.clone(),
            self.metrics.clone(),
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(stage.run(stop.clone()));
        (stop, tasks)
    }

    /// Runs the stage for this much virtual time, then stops it. Returns how long the stop took.
    async fn run_for(&self, seconds: u64) -> Duration {
        let (stop, mut stage) = self.start();
        self.clock.sleep(Duration::from_secs(seconds)).await;
        let began = self.clock.now();
        stop.leasing.cancel();
        stage.join_next().await.unwrap().unwrap().unwrap();
        self.clock.now().since(began)
    }

    async fn stored(&self) -> u64 {
        self.store.census().await.unwrap().events
    }

    fn counted(&self, result: &str) -> u64 {
        self.metrics.handoff_events.with_label_values(&["in", result]).get()
    }

    fn left(&self, reason: &str) -> u64 {
        self.metrics.handoff_queue_left.with_label_values(&[reason]).get()
    }

    async fn append(&self, events: usize) {
        let batch = (0..events).map(|_| event(&self.clock, "orders")).collect();
        self.store.append(batch).await.unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

fn home() -> Home {
    Home { region: Some("eu-central-1".to_owned()), account_id: None }
}

#[tokio::test(start_paused = true)]
async fn handed_over_events_are_stored_as_they_were_and_their_messages_are_deleted() {
    let bench = Bench::new(10_000);
    let last = LastOutcome {
        at: START,
        status: 503,
        code: "ServiceUnavailable".to_owned(),
        message: String::new(),
        request_id: None,
    };
    let history = History {
        attempts: 3,
        calls: 4,
        due: START.plus(Duration::from_secs(7)),
        last: Some(last),
        ..History::default()
    };
    let sent: Vec<Event> = (0..250).map(|_| bench.hand_over("orders", history.clone()).0).collect();
    bench.run_for(10).await;
    assert_eq!((bench.stored().await, bench.queue.len(), bench.counted("adopted")), (250, 0, 250));
    for event in sent {
        let found = bench.store.find(event.id).await.unwrap().expect("stored");
        assert_eq!((found.event, found.history), (event, history.clone()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_queue_costs_one_call_in_twenty_seconds_and_a_stop_does_not_wait_for_it() {
    let bench = Bench::new(10_000);
    let stopping = bench.run_for(3_595).await;
    assert!((175..=181).contains(&bench.queue.receives()), "{}", bench.queue.receives());
    assert!(stopping < Duration::from_secs(1), "{stopping:?}");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_twice_is_a_repeat_also_after_a_restart() {
    let bench = Bench::new(10_000);
    let (_, message) = bench.hand_over("orders", History::default());
    bench.queue.put(message.clone());
    bench.run_for(10).await;
    assert_eq!((bench.stored().await, bench.queue.len(), bench.counted("repeat")), (1, 0, 1));
    bench.queue.put(message);
    bench.run_for(10).await;
    assert_eq!((bench.stored().await, bench.queue.len(), bench.counted("repeat")), (1, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_be_deleted_comes_again_as_a_repeat() {
    let bench = Bench::new(10_000);
    (0..10).for_each(|_| drop(bench.hand_over("orders", History::default())));
    *bench.queue.delete_troubles.lock().unwrap() = 1;
    bench.run_for(10).await;
    assert_eq!((bench.stored().await, bench.queue.len()), (10, 10));
    bench.run_for(VISIBILITY.as_secs()).await;
    assert_eq!((bench.stored().await, bench.queue.len(), bench.counted("repeat")), (10, 0, 10));
}

#[tokio::test(start_paused = true)]
async fn foreign_messages_stay_and_are_named_once_while_others_are_taken() {
    let bench = Bench::new(10_000);
    bench.queue.put(Received { body: "hello".to_owned(), ..Received::default() });
    let (_, elsewhere) = bench.hand_over("orders", History::default());
    let attributes = elsewhere.attributes.iter().map(|(name, value)| (name.clone(), value.replace("eu-", "us-")));
    bench.queue.put(Received { attributes: attributes.collect(), ..elsewhere });
    bench.run_for(10 * VISIBILITY.as_secs()).await;
    let counts = (bench.counted("adopted"), bench.left("foreign"), bench.left("elsewhere"));
    assert_eq!((bench.stored().await, bench.queue.len(), counts), (1, 2, (1, 1, 1)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_while_the_daemon_drains() {
    let bench = Bench::new(10_000);
    bench.open.store(false, Ordering::Relaxed);
    bench.hand_over("orders", History::default());
    bench.run_for(100).await;
    assert_eq!((bench.queue.receives(), bench.stored().await), (0, 0));

    // A receive that waits for a message when the drain begins gives the message back.
    bench.open.store(true, Ordering::Relaxed);
    bench.run_for(10).await;
    assert_eq!(bench.stored().await, 1);
    let (stop, mut stage) = bench.start();
    bench.clock.sleep(Duration::from_secs(5)).await;
    bench.open.store(false, Ordering::Relaxed);
    bench.hand_over("orders", History::default());
    bench.clock.sleep(Duration::from_secs(10)).await;
    assert_eq!((bench.stored().await, bench.queue.len()), (1, 1));
    assert_eq!(
        bench.queue.messages.lock().unwrap().values().next().unwrap().1,
        UnixMillis(0),
        "it is visible to others"
    );
    stop.leasing.cancel();
    stage.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_above_four_fifths_of_the_store_and_a_full_store_gives_messages_back() {
    let bench = Bench::new(100);
    bench.append(80).await;
    (0..30).for_each(|_| drop(bench.hand_over("orders", History::default())));
    bench.run_for(100).await;
    assert_eq!((bench.queue.receives(), bench.stored().await), (0, 80));

    // Just below, receives that run together may fill the store. What does not fit stays on the queue.
    let bench = Bench::new(100);
    bench.append(79).await;
    (0..30).for_each(|_| drop(bench.hand_over("orders", History::default())));
    bench.run_for(100).await;
    let stored = bench.stored().await;
    assert!((80..=100).contains(&stored), "{stored}");
    assert_eq!(bench.queue.len() as u64, 30 - (stored - 79));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_costs_no_event() {
    let bench = Bench::new(10_000);
    bench.leaving.leave();
    (0..30).for_each(|_| drop(bench.hand_over("orders", History::default())));
    bench.run_for(60).await;
    assert_eq!((bench.queue.len(), bench.stored().await), (30, 0));
    bench.leaving.come_back();
    bench.run_for(VISIBILITY.as_secs() + 10).await;
    assert_eq!((bench.queue.len(), bench.stored().await), (0, 30));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_fails_is_asked_ever_more_slowly_and_works_once_it_answers() {
    let bench = Bench::new(10_000);
    *bench.queue.receive_troubles.lock().unwrap() = 1_000;
    bench.hand_over("orders", History::default());
    bench.run_for(600).await;
    assert!((8..=80).contains(&bench.queue.receives()), "{}", bench.queue.receives());
    *bench.queue.receive_troubles.lock().unwrap() = 0;
    bench.run_for(10).await;
    assert_eq!((bench.queue.len(), bench.stored().await), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_known_here_with_the_same_payload_is_not_stored_twice() {
    let bench = Bench::new(10_000);
    let key = IdempotencyKey { value: "k".to_owned(), source: KeySource::Header };
    let here = Event { key: key.clone(), ..event(&bench.clock, "orders") };
    bench.store.append(vec![here.clone()]).await.unwrap();
    let there = Event { key, id: EventId::mint(START, 77, &here.function.name), ..here };
    let (envelope, payload) = Envelope::seal(there, History::default());
    let message = message_of(&Parcel { envelope, payload }, &home(), MESSAGE_BYTES_MAX).unwrap();
    let texts = message.attributes.iter().map(|(name, attribute)| (name.clone(), attribute.value()));
    bench.queue.put(Received { body: message.body.clone(), attributes: texts.collect(), ..Received::default() });
    bench.run_for(10).await;
    assert_eq!((bench.stored().await, bench.queue.len(), bench.counted("known-key")), (1, 0, 1));
}
