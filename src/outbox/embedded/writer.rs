//! The thread that owns the store, and its handle.
//!
//! Holds: each turn takes all queued requests, puts their writes into one batch, commits once, and then answers (G1;
//! docs/adr/0001, rules 1 and 5). Reads run after the commit of their turn, so they see it.
//! Limits: [`QUEUE_MAX`] requests of [`QUEUE_KIB_MAX`] are queued; further callers wait for a place. A turn takes up to
//! [`TURN_BYTES_MAX`], and makes up to [`TURN_COMMITS_MAX`] extra commits. Operators' calls run in pieces, each a request,
//! so that other requests are served between them.
//! Fails: a failed or panicking write poisons the store: this and every later request gets [`Error::Poisoned`]. A write
//! that never returns is detected from outside ([`Handle::pulse`]) and given up. An unreadable value fails only the
//! request for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::engine::{Engine, Part, Piece};
use super::kv::{Failed, Kv};
use crate::clock::Clock;
use crate::event::{EVENT_BYTES, Event, EventId, FunctionName, PAYLOAD_BYTES_MAX};
use crate::metrics::Metrics;
use crate::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use crate::outbox::handoff::{Adopted, Handed, RememberedKey, RememberedPage};
use crate::outbox::operator::{Keys, KnownKey, ListWant, Page, Purge, Purged, Touched};
use crate::outbox::{
    Appended, Census, Changes, Error, Found, Health, History, LaneNews, LaneView, Lease, LeaseWant, Leases, Outbox,
    Settlement, Unsettled,
};
use news::{AllNews, Poison};
use pulse::Pulse;

pub use pulse::Watch;

mod news;

mod operator;

mod pulse;

/// The most queued requests.
const QUEUE_MAX: usize = 4_096;

/// The most memory of all queued requests, in KiB: payloads, and [`EVENT_BYTES`] for each event.
const QUEUE_KIB_MAX: u32 = 32 << 10;

/// The most memory of one turn's requests, counted in the same way. It bounds the repeats after a crash and the time of
/// a sync. A larger request gets a turn of its own.
const TURN_BYTES_MAX: usize = 16 << 20;

/// The most commits that a turn makes for operators, so that clients need not wait for all of them.
const TURN_COMMITS_MAX: usize = 8;

/// The most requests in a turn.
const TURN_REQUESTS_MAX: usize = 1_024;

/// The handle of the outbox. Cheap to clone. The writer ends when it is told to close, or without any handle left.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Queued>,
    /// The KiB that the queue can still take.
    queue: Arc<Semaphore>,
    news: Arc<AllNews>,
    poison: Arc<Poison>,
    pulse: Arc<Pulse>,
    room: Arc<Notify>,
}

/// A queued request, with its permits, which it keeps until it is answered.
struct Queued {
    request: Request,
    place: OwnedSemaphorePermit,
}

enum Request {
    Append(Vec<Event>, Answer<Vec<Appended>>),
    Adopt(Vec<Handed>, Answer<Vec<Adopted>>),
    Settle(Settlements, Answer<Vec<Lease>>),
    Sweep(Answer<bool>),
    Tend(Answer<bool>),
    Lease(LeaseWant, Option<u64>, Answer<Leases>),
    Lanes(u64, Answer<LaneNews>),
    Lane(FunctionName, Answer<Option<LaneView>>),
    KnownKey(FunctionName, Option<String>, String, Answer<Option<KnownKey>>),
    Find(EventId, Part, Answer<Option<Found>>),
    Census(Answer<Census>),
    Buried(BuriedWant, Answer<BuriedPage>),
    Remembered(Option<[u8; RememberedKey::BYTES]>, Answer<RememberedPage>),
    Operate(Operation),
    /// Accepts no more requests. Queued ones are still carried out.
    Close,
}

/// An operator's request. Each is a commit of its own.
enum Operation {
    Pause(FunctionName, bool, Answer<()>),
    Purge(Purge, Option<EventId>, Answer<(Purged, Option<EventId>)>),
    Cancel(EventId, Keys, Answer<Touched>),
    AttemptNow(EventId, Answer<Touched>),
    CancelAll(Vec<EventId>, Keys, Answer<Piece<EventId, Touched>>),
    AttemptAll(Vec<EventId>, Answer<Piece<EventId, Touched>>),
    List(ListWant, Answer<Page>),
    Redrive(Vec<Redriven>, Answer<Piece<Redriven, Appended>>),
    Revive(Vec<EventId>, u32, Answer<Piece<EventId, Revived>>),
    Import(Vec<(Event, History)>, Answer<Piece<(Event, History), Imported>>),
    Discard(Vec<EventId>, Keys, Answer<Piece<EventId, Discarded>>),
    Learn(Vec<RememberedKey>, Answer<u64>),
}

impl Operation {
    /// Its estimated memory without [`EVENT_BYTES`].
    fn cost(&self) -> usize {
        match self {
            Self::Redrive(events, _) => events.iter().map(|redriven| redriven.event.cost()).sum(),
            Self::Import(letters, _) => letters.iter().map(|(event, _)| event.cost()).sum(),
            Self::Revive(ids, ..) => size_of_val(ids.as_slice()),
            Self::Discard(ids, ..) | Self::CancelAll(ids, ..) => size_of_val(ids.as_slice()),
            Self::AttemptAll(ids, _) => size_of_val(ids.as_slice()),
            Self::Learn(keys, _) => size_of_val(keys.as_slice()),
            Self::Pause(..) | Self::Purge(..) | Self::Cancel(..) | Self::AttemptNow(..) | Self::List(..) => 0,
        }
    }
}

type Settlements = Vec<(Lease, Settlement)>;

type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// The owner of the engine. [`Writer::run`] runs it on its own thread. The simulation drives it turn by turn.
pub struct Writer<K> {
    engine: Engine<K>,
    requests: mpsc::Receiver<Queued>,
    /// A request that did not fit into the previous turn.
    ahead: Option<Queued>,
    news: Arc<AllNews>,
    poison: Arc<Poison>,
    pulse: Arc<Pulse>,
    /// Notified when an event is refused for lack of room.
    room: Arc<Notify>,
    /// Unreadable events already counted in the metric.
    unreadable: i64,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl<K: Kv> Writer<K> {
    pub fn new(engine: Engine<K>, clock: Clock, metrics: Arc<Metrics>) -> (Self, Handle) {
        let (sender, requests) = mpsc::channel(QUEUE_MAX);
        let news = Arc::new(AllNews::default());
        news.tell(engine.version(), engine.buried_version());
        let poison = Arc::new(Poison::default());
        let pulse = Arc::new(Pulse::default());
        let room = Arc::new(Notify::new());
        let handle = Handle {
            requests: sender,
            queue: Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize)),
            news: news.clone(),
            poison: poison.clone(),
            pulse: pulse.clone(),
            room: room.clone(),
        };
        (Self { engine, requests, ahead: None, news, poison, pulse, room, unreadable: 0, clock, metrics }, handle)
    }

    /// Works until it is closed or the last handle is dropped. Blocks.
    pub fn run(mut self) {
        while let Some(first) = self.ahead.take().or_else(|| self.requests.blocking_recv()) {
            self.turn(first);
        }
    }

    /// Like [`Writer::run`], for a runtime with a virtual clock. A turn begins `latency` after its first request, as if the
    /// previous sync still ran, and so gathers the requests that arrive meanwhile.
    pub async fn run_async(mut self, mut latency: impl FnMut() -> Duration) {
        loop {
            let first = match self.ahead.take() {
                Some(first) => first,
                None => match self.requests.recv().await {
                    Some(first) => first,
                    None => return,
                },
            };
            self.clock.sleep(latency()).await;
            self.turn(first);
        }
    }

    /// One turn. After a failure the requests are dropped unanswered, and their callers find the store poisoned.
    fn turn(&mut self, first: Queued) {
        let mut turn = self.gather(first);
        if turn.closes {
            self.requests.close();
        }
        if self.poison.get().is_some() {
            return;
        }
        self.pulse.begin();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.carry_out(&mut turn)));
        self.pulse.rest();
        let newly_unreadable = self.newly_unreadable();
        self.metrics.outbox_unreadable_events.add(newly_unreadable);
        let why = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(failed)) => failed.to_string(),
            Err(panic) => format!("the engine panicked: {}", panic_text(panic.as_ref())),
        };
        say_poisoned(&why);
        self.metrics.outbox_poisoned.set(1);
        self.poison.set(why);
        self.news.tell(u64::MAX, u64::MAX);
    }

    /// The first request and all queued behind it, up to a turn's limits.
    fn gather(&mut self, first: Queued) -> Turn {
        let mut turn = Turn::default();
        let mut next = Some(first);
        while let Some(queued) = next {
            if !turn.has_room_for(&queued.request) {
                self.ahead = Some(queued);
                break;
            }
            turn.add(queued);
            next = self.requests.try_recv().ok();
        }
        turn
    }

    /// The number of unreadable events found since the last call.
    fn newly_unreadable(&mut self) -> i64 {
        let known = i64::try_from(self.engine.unreadable()).unwrap_or(i64::MAX);
        known - std::mem::replace(&mut self.unreadable, known)
    }

    fn carry_out(&mut self, turn: &mut Turn) -> Result<(), Failed> {
        let started = self.clock.instant();
        let before = self.engine.version();
        let mut appended = Vec::with_capacity(turn.appends.len());
        let mut events = 0;
        self.engine.catch_up()?;
        if !turn.appends.is_empty() {
            let disk = self.engine.disk();
            for (batch, _) in &mut turn.appends {
                events += batch.len();
                appended.push(self.engine.append(std::mem::take(batch), disk)?);
            }
        }
        let mut adopted = Vec::with_capacity(turn.adoptions.len());
        if !turn.adoptions.is_empty() {
            let disk = self.engine.disk();
            for (batch, _) in &mut turn.adoptions {
                events += batch.len();
                adopted.push(self.engine.adopt(&std::mem::take(batch), disk)?);
            }
        }
        let mut lost = Vec::with_capacity(turn.settles.len());
        for (done, _) in &mut turn.settles {
            events += done.len();
            lost.push(self.engine.settle(std::mem::take(done))?);
        }
        if appended.iter().flatten().any(|appended| matches!(appended, Appended::Full(full) if full.wants_room()))
            || adopted.iter().flatten().any(|adopted| matches!(adopted, Adopted::Full(full) if full.wants_room()))
        {
            self.room.notify_one();
        }
        let swept = if turn.sweeps.is_empty() { false } else { self.engine.sweep()? };
        let idle = turn.sweeps.is_empty() && turn.tends.is_empty();
        let tended = if idle { false } else { self.engine.tend()? };
        for request in &turn.reads {
            if let Request::Lease(want, ..) = request {
                self.engine.note_spent(want);
            }
        }
        if self.engine.commit()? {
            self.metrics.outbox_flush_seconds.observe(started.elapsed().as_secs_f64());
            self.metrics.outbox_batch_events.observe(events as f64);
        }
        self.pulse.beat();
        self.tell(before);

        // A caller that gave up has dropped its receiver. Its request is still carried out.
        for ((_, answer), appended) in turn.appends.drain(..).zip(appended) {
            drop(answer.send(Ok(appended)));
        }
        for ((_, answer), adopted) in turn.adoptions.drain(..).zip(adopted) {
            drop(answer.send(Ok(adopted)));
        }
        for ((_, answer), lost) in turn.settles.drain(..).zip(lost) {
            drop(answer.send(Ok(lost)));
        }
        turn.sweeps.drain(..).for_each(|answer| drop(answer.send(Ok(swept || tended))));
        turn.tends.drain(..).for_each(|answer| drop(answer.send(Ok(tended))));
        turn.operations.drain(..).try_for_each(|operation| self.operate(operation))?;
        turn.reads.drain(..).try_for_each(|request| self.read(request))
    }

    fn tell(&self, before: u64) {
        if self.engine.version() != before {
            self.news.tell(self.engine.version(), self.engine.buried_version());
        }
    }

    fn operate(&mut self, operation: Operation) -> Result<(), Failed> {
        let before = self.engine.version();
        match operation {
            Operation::Pause(function, paused, answer) => {
                self.engine.pause(&function, paused);
                self.written((), before, answer)?;
            }
            Operation::Purge(purge, after, answer) => {
                let purged = self.engine.purge_piece(&purge, after)?;
                self.written(purged, before, answer)?;
            }
            Operation::Cancel(id, keys, answer) => {
                let touched = self.engine.cancel(id, keys)?;
                self.written(touched, before, answer)?;
            }
            Operation::AttemptNow(id, answer) => {
                let touched = self.engine.attempt_now(id)?;
                self.written(touched, before, answer)?;
            }
            Operation::CancelAll(ids, keys, answer) => {
                let piece = self.engine.cancel_piece(ids, keys)?;
                self.written(piece, before, answer)?;
            }
            Operation::AttemptAll(ids, answer) => {
                let piece = self.engine.attempt_piece(ids)?;
                self.written(piece, before, answer)?;
            }
            Operation::List(want, answer) => drop(answer.send(Ok(self.engine.list(&want)?))),
            Operation::Redrive(events, answer) => {
                let piece = self.engine.redrive(events, self.engine.disk())?;
                self.written(piece, before, answer)?;
            }
            Operation::Revive(ids, redrives_max, answer) => {
                let piece = self.engine.revive(ids, redrives_max, self.engine.disk())?;
                self.written(piece, before, answer)?;
            }
            Operation::Import(letters, answer) => {
                let piece = self.engine.import(letters, self.engine.disk())?;
                self.written(piece, before, answer)?;
            }
            Operation::Discard(ids, keys, answer) => {
                let piece = self.engine.discard_letters(ids, keys)?;
                self.written(piece, before, answer)?;
            }
            Operation::Learn(keys, answer) => {
                let new = self.engine.learn(keys)?;
                self.written(new, before, answer)?;
            }
        }
        self.pulse.beat();
        Ok(())
    }

    /// Commits, and only then notifies waiters and answers.
    fn written<T>(&mut self, what: T, before: u64, answer: Answer<T>) -> Result<(), Failed> {
        self.engine.commit()?;
        self.tell(before);
        drop(answer.send(Ok(what)));
        Ok(())
    }

    fn read(&mut self, request: Request) -> Result<(), Failed> {
        match request {
            Request::Lease(want, since, answer) => {
                let events = self.engine.lease(&want)?;
                let news = since.map(|since| self.engine.lanes(since)).transpose()?;
                if let Err(Ok(Leases { events, .. })) = answer.send(Ok(Leases { events, news })) {
                    // Nobody is left to settle them.
                    self.engine.settle(events.into_iter().map(|l| (l.lease, Settlement::Release)).collect())?;
                }
            }
            Request::Lanes(since, answer) => drop(answer.send(Ok(self.engine.lanes(since)?))),
            Request::Lane(function, answer) => drop(answer.send(Ok(self.engine.lane(&function)?))),
            Request::Find(id, part, answer) => {
                let found = self.engine.find_part(id, part)?.transpose();
                drop(answer.send(found.map_err(|failed| Error::Unreadable { id, why: failed.to_string() })));
            }
            Request::KnownKey(function, tenant, key, answer) => {
                drop(answer.send(Ok(self.engine.known_key(&function, tenant.as_deref(), key)?)));
            }
            Request::Census(answer) => drop(answer.send(Ok(self.engine.census()?))),
            Request::Buried(want, answer) => drop(answer.send(Ok(self.engine.buried(&want)?))),
            Request::Remembered(after, answer) => drop(answer.send(Ok(self.engine.remembered(after)?))),
            Request::Append(..)
            | Request::Adopt(..)
            | Request::Settle(..)
            | Request::Sweep(_)
            | Request::Tend(_)
            | Request::Operate(_)
            | Request::Close => {}
        }
        self.pulse.beat();
        Ok(())
    }
}

/// The work of one turn, with writes separate from reads.
#[derive(Default)]
struct Turn {
    appends: Vec<(Vec<Event>, Answer<Vec<Appended>>)>,
    adoptions: Vec<(Vec<Handed>, Answer<Vec<Adopted>>)>,
    settles: Vec<(Settlements, Answer<Vec<Lease>>)>,
    sweeps: Vec<Answer<bool>>,
    tends: Vec<Answer<bool>>,
    operations: Vec<Operation>,
    reads: Vec<Request>,
    /// The outbox is being closed.
    closes: bool,
    requests: usize,
    /// Their memory.
    bytes: usize,
    /// Their commits besides the turn's own.
    commits: usize,
    /// Released once all of them are answered.
    places: Vec<OwnedSemaphorePermit>,
}

impl Turn {
    fn has_room_for(&self, request: &Request) -> bool {
        self.requests == 0
            || (self.requests < TURN_REQUESTS_MAX
                && self.bytes + request.cost() <= TURN_BYTES_MAX
                && self.commits + request.commits() <= TURN_COMMITS_MAX)
    }

    fn add(&mut self, Queued { request, place }: Queued) {
        self.requests += 1;
        self.bytes += request.cost();
        self.commits += request.commits();
        self.places.push(place);
        match request {
            Request::Append(events, answer) => self.appends.push((events, answer)),
            Request::Adopt(events, answer) => self.adoptions.push((events, answer)),
            Request::Settle(done, answer) => self.settles.push((done, answer)),
            Request::Sweep(answer) => self.sweeps.push(answer),
            Request::Tend(answer) => self.tends.push(answer),
            Request::Operate(operation) => self.operations.push(operation),
            Request::Close => self.closes = true,
            read @ (Request::Lease(..)
            | Request::Lanes(..)
            | Request::Lane(..)
            | Request::KnownKey(..)
            | Request::Find(..)
            | Request::Census(_)
            | Request::Remembered(..)
            | Request::Buried(..)) => self.reads.push(read),
        }
    }
}

impl Request {
    /// The estimated memory of a request until it is answered.
    fn cost(&self) -> usize {
        match self {
            Self::Append(events, _) => events.iter().map(Event::cost).sum(),
            Self::Adopt(events, _) => events.iter().map(|handed| handed.event.cost()).sum(),
            Self::Settle(done, _) => done.len() * EVENT_BYTES,
            Self::Find(_, Part::Whole, _) => PAYLOAD_BYTES_MAX,
            Self::Buried(want, _) if want.payloads => 2 * PAYLOAD_BYTES_MAX,
            Self::Sweep(_)
            | Self::Tend(_)
            | Self::Lease(..)
            | Self::Lanes(..)
            | Self::Lane(..)
            | Self::KnownKey(..)
            | Self::Find(_, Part::Head, _)
            | Self::Census(_)
            | Self::Close
            | Self::Remembered(..)
            | Self::Buried(..) => EVENT_BYTES,
            Self::Operate(operation) => EVENT_BYTES + operation.cost(),
        }
    }

    /// Its commits besides the turn's own.
    fn commits(&self) -> usize {
        match self {
            Self::Operate(_) => 1,
            Self::Append(..)
            | Self::Adopt(..)
            | Self::Settle(..)
            | Self::Sweep(_)
            | Self::Tend(_)
            | Self::Lease(..)
            | Self::Lanes(..)
            | Self::Lane(..)
            | Self::KnownKey(..)
            | Self::Find(..)
            | Self::Census(_)
            | Self::Close
            | Self::Remembered(..)
            | Self::Buried(..) => 0,
        }
    }
}

impl Handle {
    /// The number of pieces of work that the writer has finished. `None` while it is idle. See [`Watch`].
    pub fn pulse(&self) -> Option<u64> {
        self.pulse.read()
    }

    /// Returns once an event is refused for lack of room.
    pub async fn room_is_wanted(&self) {
        self.room.notified().await;
    }

    /// Does a piece of the store's maintenance, which reclaims space. Returns whether there is more.
    pub async fn tend(&self) -> Result<bool, Error> {
        self.ask(Request::Tend).await
    }

    /// Does a bounded piece of a sweep, which forgets keys whose window is over and lanes that have long been empty. Returns
    /// whether there is more.
    pub async fn sweep(&self) -> Result<bool, Error> {
        self.ask(Request::Sweep).await
    }

    /// Gives the outbox up from outside, because its writer hangs.
    pub fn give_up(&self, why: String) {
        say_poisoned(&why);
        self.poison.set(why);
    }

    /// Closes the outbox: earlier requests are carried out, later ones get [`Error::Closed`]. Returns once the writer knows.
    /// The writer ends when it has finished.
    pub async fn close(&self) {
        let Ok(place) = self.queue.clone().acquire_owned().await else { return };
        if self.requests.send(Queued { request: Request::Close, place }).await.is_ok() {
            self.closed().await;
        }
    }

    /// Returns once the outbox is closed.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, Error> {
        if self.poison.get().is_some() {
            return Err(self.why_unanswered());
        }
        let (answer, answered) = oneshot::channel();
        let request = request(answer);
        let cost = u32::try_from(request.cost().div_ceil(1_024)).unwrap_or(u32::MAX).clamp(1, QUEUE_KIB_MAX);
        let Ok(place) = self.queue.clone().acquire_many_owned(cost).await else { return Err(self.why_unanswered()) };
        if self.requests.send(Queued { request, place }).await.is_err() {
            return Err(self.why_unanswered());
        }
        answered.await.unwrap_or_else(|_| Err(self.why_unanswered()))
    }

    /// Does `work` in pieces of one commit each, as [`crate::outbox::operator::Operator`] says.
    async fn in_pieces<W, A>(
        &self,
        work: Vec<W>,
        operation: impl Fn(Vec<W>, Answer<Piece<W, A>>) -> Operation,
    ) -> Result<Vec<A>, Error> {
        let (mut answers, mut left) = (Vec::with_capacity(work.len()), work);
        while !left.is_empty() {
            let piece = self.ask(|answer| Request::Operate(operation(left, answer))).await?;
            answers.extend(piece.answers);
            left = piece.left;
        }
        Ok(answers)
    }

    fn why_unanswered(&self) -> Error {
        self.poison.get().map_or(Error::Closed, |why| Error::Poisoned { why: why.clone() })
    }
}

impl Outbox for Handle {
    async fn append(&self, batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        self.ask(|answer| Request::Append(batch, answer)).await
    }

    async fn adopt(&self, events: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        self.ask(|answer| Request::Adopt(events, answer)).await
    }

    async fn remembered(&self, after: Option<[u8; RememberedKey::BYTES]>) -> Result<RememberedPage, Error> {
        self.ask(|answer| Request::Remembered(after, answer)).await
    }

    async fn learn(&self, keys: Vec<RememberedKey>) -> Result<u64, Error> {
        self.ask(|answer| Request::Operate(Operation::Learn(keys, answer))).await
    }

    async fn lease(&self, want: LeaseWant, since: Option<u64>) -> Result<Leases, Error> {
        self.ask(|answer| Request::Lease(want, since, answer)).await
    }

    async fn settle(&self, done: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        let lost = self.ask(|answer| Request::Settle(done, answer)).await;
        // This store is never away, so there is nothing to settle again.
        lost.map_err(|why| Unsettled { why, done: Vec::new() })
    }

    async fn lanes(&self, since: u64) -> Result<LaneNews, Error> {
        self.ask(|answer| Request::Lanes(since, answer)).await
    }

    async fn find(&self, id: EventId) -> Result<Option<Found>, Error> {
        self.ask(|answer| Request::Find(id, Part::Whole, answer)).await
    }

    async fn find_head(&self, id: EventId) -> Result<Option<Found>, Error> {
        self.ask(|answer| Request::Find(id, Part::Head, answer)).await
    }

    async fn census(&self) -> Result<Census, Error> {
        self.ask(Request::Census).await
    }

    async fn changed(&self, since: u64, what: Changes) {
        match what {
            Changes::Any => self.news.any.after(since).await,
            Changes::Buried => self.news.buried.after(since).await,
        }
    }

    fn health(&self) -> Health {
        self.poison.get().map_or(Health::Well, |why| Health::Poisoned { why: why.clone() })
    }

    async fn failed(&self) -> String {
        self.poison.wait().await
    }
}

impl<K> Drop for Writer<K> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.poison.set("the outbox's thread panicked".to_owned());
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

fn say_poisoned(why: &str) {
    tracing::error!(why, "outbox is poisoned: nothing is accepted or settled any more, restart to recover");
}

#[cfg(test)]
mod tests;
