//! The hand-off queue of a fleet: a standard queue of SQS at its worst. Sends and answers get lost, a message comes twice or
//! again after its deletion, and the queue has messages of others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sendoff::clock::{Clock, UnixMillis};
use sendoff::deadletter::letter::{HANDED, Received};
use sendoff::deadletter::message::{MESSAGE_BYTES_MAX, Message};
use sendoff::deadletter::redrive::Queue;
use sendoff::deadletter::{Ship, Shipment, Trouble};
use sendoff::event::name::Home;
use sendoff::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use sendoff::handoff::envelope::Envelope;
use sendoff::handoff::queue::message::message_of;
use sendoff::handoff::queue::{Receive, ToQueue, receive};
use sendoff::handoff::target::{Parcel, Target};
use sendoff::metrics::Metrics;
use sendoff::outbox::History;
use sendoff::shutdown::Stop;

use crate::fleet::Fleet;
use crate::ledger::serial_of;
use crate::life::{ingest_settings, outbox_settings};
use crate::sabotage::Bug;
use crate::tap::Tap;

const URL: &str = "https://sqs.example.com/123456789012/handoff";

/// Faults of the queue, in percent of its calls or messages.
const LOST_PERCENT: u8 = 10;
const REFUSED_PERCENT: u8 = 10;
const TWICE_PERCENT: u8 = 10;
const BACK_AGAIN_PERCENT: u8 = 5;

/// How long a receive waits for a message, and how often it looks.
const POLLS: u32 = 5;
const POLL_EVERY: Duration = Duration::from_millis(100);

pub struct FleetQueue {
    clock: Clock,
    visibility: Duration,
    held: Mutex<Held>,
    calm: AtomicBool,
}

#[derive(Default)]
struct Held {
    /// By number.
    messages: BTreeMap<u64, Kept>,
    next: u64,
    sent: u64,
}

struct Kept {
    message: Received,
    is_foreign: bool,
    /// Not given to a receiver before.
    hidden_until: UnixMillis,
}

impl FleetQueue {
    /// A queue with some messages that are none of a sendoff of this fleet.
    pub fn new(clock: &Clock, rng: &mut fastrand::Rng) -> Self {
        let visibility = Duration::from_millis([40, 400, 2_000][rng.usize(0..3)]);
        let queue = Self { clock: clock.clone(), visibility, held: Mutex::default(), calm: AtomicBool::new(false) };
        let broken = |head: String| Received { attributes: BTreeMap::from([(HANDED.to_owned(), head)]), ..hello() };
        let (_, elsewhere) =
            queue.event(0, START_OF_ELSEWHERE, &Home { region: Some("us-west-2".to_owned()), ..home() });
        let early = elsewhere.attributes[HANDED].replace("\"format\":1", "\"format\":9");
        for foreign in [hello(), broken("{}".to_owned()), broken(early), elsewhere] {
            queue.put(foreign, true);
        }
        queue
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    fn put(&self, message: Received, is_foreign: bool) {
        let mut held = self.held();
        held.next += 1;
        let (number, id) = (held.next, format!("m-{}", held.next));
        let message = Received { message_id: id, receipt: number.to_string(), ..message };
        held.messages.insert(number, Kept { message, is_foreign, hidden_until: UnixMillis(0) });
        held.sent += u64::from(!is_foreign);
    }

    /// Messages that sendoffs have sent.
    pub fn sent(&self) -> u64 {
        self.held().sent
    }

    /// The events on the queue.
    pub fn serials(&self) -> Vec<u64> {
        let held = self.held();
        let own = held.messages.values().filter(|kept| !kept.is_foreign);
        own.filter_map(|kept| serial_of(kept.message.body.as_bytes())).collect()
    }

    pub fn left(&self) -> usize {
        self.held().messages.values().filter(|kept| !kept.is_foreign).count()
    }

    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    fn fails(&self, fleet: &Fleet, percent: u8) -> bool {
        fleet.draw(|rng| rng.u8(0..100)) < percent && !self.calm.load(Ordering::Relaxed)
    }

    /// The message of a new event.
    fn event(&self, serial: u64, deliver_at: UnixMillis, home: &Home) -> (EventId, Received) {
        let (name, accepted_at) = (FunctionName::new("f0"), self.clock.now());
        let id = EventId::mint(accepted_at, self.clock.random_bits(), &name);
        let event = Event {
            id,
            function: Function { name, address: "f0".to_owned(), qualifier: None, region: None },
            key: IdempotencyKey { value: id.to_string(), source: KeySource::Minted },
            carried: Carried::default(),
            payload: format!("{{\"n\":{serial}}}").into(),
            accepted_at,
            deliver_at: Some(deliver_at),
            expires_at: None,
            redrives: 0,
        };
        let (envelope, payload) = Envelope::seal(event, History::default());
        (id, as_received(&message_of(&Parcel { envelope, payload }, home, MESSAGE_BYTES_MAX).unwrap()))
    }

    /// Puts an event here that is for later, though its history says that it is due.
    pub fn put_for_later(&self, fleet: &Fleet, serial: u64) {
        let at = self.clock.now().plus(Duration::from_millis(fleet.draw(|rng| rng.u64(1..8_000))));
        let (id, message) = self.event(serial, at, &home());
        fleet.accepted_elsewhere(id, serial, at);
        self.put(message, false);
    }

    /// Gives up to this many visible messages, and hides them.
    fn give(&self, fleet: &Fleet, max: usize) -> Vec<Received> {
        let now = self.clock.now();
        let mut held = self.held();
        let visible = held.messages.values_mut().filter(|kept| kept.hidden_until <= now).take(max);
        visible
            .map(|kept| {
                if !self.fails(fleet, TWICE_PERCENT) {
                    kept.hidden_until = now.plus(self.visibility);
                }
                kept.message.clone()
            })
            .collect()
    }

    fn remove(&self, fleet: &Fleet, receipt: &str) {
        // It comes again, as if a server of SQS had been away.
        if self.fails(fleet, BACK_AGAIN_PERCENT) {
            return;
        }
        let removed = receipt.parse().ok().and_then(|number: u64| self.held().messages.remove(&number));
        if removed.is_some_and(|kept| kept.is_foreign) {
            fleet.violated(format!("queue: the foreign message {receipt} was deleted"));
        }
    }
}

/// Far enough ahead, so that it would be noticed.
const START_OF_ELSEWHERE: UnixMillis = UnixMillis(1_790_000_900_000);

fn hello() -> Received {
    Received { body: "hello".to_owned(), ..Received::default() }
}

fn home() -> Home {
    ingest_settings().home
}

/// As SQS would return it.
fn as_received(message: &Message) -> Received {
    let texts = message.attributes.iter().map(|(name, attribute)| (name.clone(), attribute.value()));
    Received { body: message.body.clone(), attributes: texts.collect(), ..Received::default() }
}

/// A daemon's connection to the queue.
#[derive(Clone)]
struct Line {
    fleet: Arc<Fleet>,
    tap: Tap,
}

/// The queue as a target of a daemon's hand-off.
pub fn to_queue(fleet: &Arc<Fleet>, tap: &Tap) -> Option<Arc<dyn Target>> {
    fleet.queue.as_ref()?;
    let line = Line { fleet: Arc::clone(fleet), tap: tap.clone() };
    Some(Arc::new(ToQueue::new(line, URL.to_owned(), home())))
}

/// The stage that takes from the queue.
pub fn take(
    fleet: &Arc<Fleet>,
    tap: &Tap,
    stays: &Arc<AtomicBool>,
    stop: &Stop,
) -> Option<impl Future<Output = ()> + use<>> {
    fleet.queue.as_ref()?;
    let line = Line { fleet: Arc::clone(fleet), tap: tap.clone() };
    let limits = outbox_settings(&tap.world).limits;
    let settings = receive::Settings { queue: URL.to_owned(), home: home(), limits };
    let (stays, metrics) = (Arc::clone(stays), Arc::new(Metrics::new().unwrap()));
    let open = move || stays.load(Ordering::Relaxed);
    let stage = Receive::new(tap.clone(), line, open, settings, tap.clock.clone(), metrics);
    let (stop, fleet, tap) = (stop.clone(), Arc::clone(fleet), tap.clone());
    Some(async move {
        if let Err(error) = stage.run(stop).await
            && tap.world.is_on(tap.life)
        {
            fleet.violated(format!("G2: the stage of the queue ended: {error}"));
        }
    })
}

fn unreachable() -> Trouble {
    Trouble { code: "unreachable".to_owned(), message: "lost".to_owned(), transient: true }
}

impl Line {
    async fn point(&self, place: &str) {
        self.tap.world.point(self.tap.life, place).await;
    }

    fn queue(&self) -> &FleetQueue {
        self.fleet.queue.as_ref().unwrap()
    }

    fn has(&self, bug: Bug) -> bool {
        self.fleet.scenario.bug == Some(bug)
    }
}

impl Ship for Line {
    async fn ship(&self, _queue_url: &str, batch: Vec<Message>) -> Vec<Shipment> {
        let (fleet, queue) = (&self.fleet, self.queue());
        let later = |code: &str| Shipment::Later { code: code.to_owned(), message: String::new() };
        let confirmed = || Shipment::Confirmed { message_id: "m".to_owned() };
        self.point("before a send to the queue").await;
        fleet.pass(5).await;
        self.point("a send arrives at the queue").await;
        let lost = || match self.has(Bug::BelieveLostSends) {
            true => confirmed(),
            false => later("unreachable"),
        };
        if queue.fails(fleet, LOST_PERCENT) {
            fleet.pass(2_000).await;
            return batch.iter().map(|_| lost()).collect();
        }
        let mut answers = Vec::with_capacity(batch.len());
        for message in &batch {
            answers.push(match queue.fails(fleet, REFUSED_PERCENT) {
                true => later("InternalFailure"),
                false => {
                    queue.put(as_received(message), false);
                    confirmed()
                }
            });
        }
        fleet.pass(5).await;
        self.point("an answer of the queue arrives").await;
        if queue.fails(fleet, LOST_PERCENT) {
            return batch.iter().map(|_| lost()).collect();
        }
        answers
    }
}

impl Queue for Line {
    async fn receive(&self, messages_max: usize) -> Result<Vec<Received>, Trouble> {
        let (fleet, queue) = (&self.fleet, self.queue());
        self.point("before a receive").await;
        for _ in 0..POLLS {
            fleet.pass(5).await;
            let received = queue.give(fleet, messages_max);
            if received.is_empty() {
                tokio::time::sleep(POLL_EVERY).await;
                continue;
            }
            if self.has(Bug::DeleteBeforeAdoption) || self.has(Bug::DeleteForeign) {
                let is_own = |message: &&Received| message.attributes.contains_key(HANDED) && message.body != "hello";
                let doomed = received.iter().filter(|message| self.has(Bug::DeleteForeign) || is_own(message));
                doomed.for_each(|message| queue.remove(fleet, &message.receipt));
            }
            fleet.pass(5).await;
            self.point("messages arrive").await;
            if queue.fails(fleet, LOST_PERCENT) {
                return Err(unreachable());
            }
            received.iter().filter(|message| serial_of(message.body.as_bytes()).is_some()).for_each(|_| {
                fleet.took_from_the_queue();
            });
            return Ok(received);
        }
        Ok(Vec::new())
    }

    async fn delete(&self, receipts: &[String]) -> Vec<Result<(), Trouble>> {
        let (fleet, queue) = (&self.fleet, self.queue());
        self.point("before a deletion").await;
        fleet.pass(5).await;
        self.point("a deletion arrives").await;
        let mut answers = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            answers.push(match queue.fails(fleet, REFUSED_PERCENT) || self.has(Bug::LeaveMessages) {
                true => Err(unreachable()),
                false => {
                    queue.remove(fleet, receipt);
                    Ok(())
                }
            });
        }
        fleet.pass(5).await;
        self.point("the answer to a deletion arrives").await;
        match queue.fails(fleet, LOST_PERCENT) {
            true => receipts.iter().map(|_| Err(unreachable())).collect(),
            false => answers,
        }
    }

    async fn release(&self, receipts: &[String]) {
        self.point("before a release").await;
        let mut held = self.queue().held();
        for number in receipts.iter().filter_map(|receipt| receipt.parse::<u64>().ok()) {
            if let Some(kept) = held.messages.get_mut(&number) {
                kept.hidden_until = UnixMillis(0);
            }
        }
    }
}
