//! Two or three daemons that hand events over to each other, or to a queue (`fleet_queue.rs`): each with a fake disk and a
//! power of its own, which may go at any step, and with answers that get lost. A disk goes away with its daemon whenever a
//! hand-off has said that nothing is left on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt, Full};
use sendoff::clock::{Clock, UnixMillis};
use sendoff::event::EventId;
use sendoff::handoff::protocol::{PATH, Party, read_answers, write_parcel};
use sendoff::handoff::send::{Progress, Sender, Until};
use sendoff::handoff::target::{Answer, Parcel, Sizes, Taken, Target, Trouble};
use sendoff::ingest::door::{Door, Reception};
use sendoff::metrics::Metrics;
use sendoff::outbox::embedded::engine::Engine;
use sendoff::outbox::embedded::writer::Writer;
use sendoff::outbox::handoff::RememberedKey;
use sendoff::outbox::{Burial, BuryReason, History, LaneWant, LeaseWant, Leased, Outbox, Settlement, Which};
use sendoff::shutdown::Stop;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::fits_together;
use crate::disk::{self, NotOpened, Plug};
use crate::fleet_queue::{FleetQueue, take, to_queue};
use crate::ledger::serial_of;
use crate::life::{ingest_settings, outbox_settings};
use crate::sabotage::{Bug, Sabotaged};
use crate::scenario::Scenario;
use crate::tap::Tap;
use crate::world::{START, Trail, World};

/// One of this many answers of a receiver is lost.
const LOST_PERCENT: u8 = 10;

/// In a last life without faults, the queue is emptied within this time.
const EMPTIED_WITHIN: Duration = Duration::from_secs(300);

/// The daemons of a world, and what their clients were told.
pub struct Fleet {
    pub scenario: Scenario,
    sites: Vec<Mutex<Site>>,
    /// Two of three fleets have a queue, ...
    pub queue: Option<FleetQueue>,
    /// ... and two of three hand over to each other.
    peers: bool,
    book: Mutex<Book>,
    rng: Mutex<fastrand::Rng>,
    pub clock: Clock,
}

/// A place where a daemon runs, one after the other.
struct Site {
    world: Arc<World>,
    /// Counts the disks that it has had.
    disk: u32,
    front: Option<Front>,
}

/// The door of a running daemon.
#[derive(Clone)]
struct Front {
    door: Door<Tap>,
    world: Arc<World>,
    life: u32,
    disk: u32,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Book {
    violations: Vec<String>,
    /// The accepted events, with the serial numbers in their payloads.
    accepted: BTreeMap<EventId, u64>,
    delivered: BTreeSet<EventId>,
    not_before: BTreeMap<u64, UnixMillis>,
    /// Which event got a key, by site and disk.
    owners: BTreeMap<(usize, u32, String), (EventId, u64)>,
    handed: u64,
    gone: u64,
    crashes: u64,
    /// Events that came from the queue.
    taken: u64,
}

/// What a seed came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub violations: Vec<String>,
    pub accepted: usize,
    pub handed: u64,
    /// Disks that went away.
    pub gone: u64,
    pub crashes: u64,
    /// Messages that the queue got, and events that daemons took from it.
    pub queued: u64,
    pub taken: u64,
}

pub fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let fleet = Arc::new(Fleet::new(seed, bug));
        story(&fleet).await;
        let book = fleet.book.lock().unwrap();
        let violations = book.violations.clone();
        let (accepted, handed) = (book.accepted.len(), book.handed);
        let queued = fleet.queue.as_ref().map_or(0, FleetQueue::sent);
        Outcome { violations, accepted, handed, gone: book.gone, crashes: book.crashes, queued, taken: book.taken }
    })
}

async fn story(fleet: &Arc<Fleet>) {
    let lives = fleet.draw(|rng| rng.u32(2..6));
    let (sites, clients) = (TaskTracker::new(), TaskTracker::new());
    for at in 0..fleet.sites.len() {
        let fleet = Arc::clone(fleet);
        sites.spawn(async move {
            for life in 1..=lives {
                live(&fleet, at, life).await;
                fleet.audit();
                fleet.pass(400).await;
            }
        });
    }
    for number in 1..=3_u64 {
        clients.spawn(client(Arc::clone(fleet), number * 1_000));
    }
    clients.close();
    sites.close();
    sites.wait().await;
    clients.wait().await;
    fleet.audit();
    if fleet.queue.is_some() {
        empty_the_queue(fleet, lives + 1).await;
        fleet.audit();
    }
}

/// A last life without faults: whatever sendoffs have put into the queue must be taken from it.
async fn empty_the_queue(fleet: &Arc<Fleet>, life: u32) {
    let Some(queue) = &fleet.queue else { return };
    queue.calm_down();
    let world = fleet.sites[0].lock().unwrap().world.clone();
    world.calm_down();
    world.switch_on(life, None);
    let Some(parts) = start(fleet, 0, life) else {
        fleet.violated("G2: a store does not open".to_owned());
        return;
    };
    let until = fleet.clock.now().plus(EMPTIED_WITHIN);
    while queue.left() > 0 && fleet.clock.now() < until {
        fleet.pass(1_000).await;
    }
    if queue.left() > 0 {
        fleet.violated(format!("liveness: {} events are left on the queue", queue.left()));
    }
    let Parts { tap, stop, doors, stages, writers, .. } = parts;
    fleet.sites[0].lock().unwrap().front = None;
    stop.accepting.cancel();
    stop.leasing.cancel();
    for all in [doors, stages] {
        all.close();
        all.wait().await;
    }
    tap.inner.handle.close().await;
    writers.close();
    writers.wait().await;
    world.end_process();
}

impl Fleet {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0xf1ee7);
        let scenario = Scenario {
            bytes_max: 1 << 30,
            dedupe_window: Duration::from_secs(3_600),
            sync_failures: false,
            full_disks: false,
            outages: Vec::new(),
            ..Scenario::new(seed, bug)
        };
        let site = |_| Mutex::new(Site { world: World::new(scenario.clone(), Trail::None), disk: 0, front: None });
        let sites = (0..rng.usize(2..4)).map(site).collect();
        let clock = Clock::seeded(START, seed);
        let queue = (!seed.is_multiple_of(3)).then(|| FleetQueue::new(&clock, &mut rng));
        let peers = seed % 3 < 2;
        Self { sites, scenario, queue, peers, book: Mutex::default(), rng: Mutex::new(rng), clock }
    }

    pub fn draw<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    pub async fn pass(&self, millis_max: u64) {
        let millis = self.draw(|rng| rng.u64(0..=millis_max));
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn front(&self, at: usize) -> Option<Front> {
        self.sites[at].lock().unwrap().front.clone()
    }

    pub fn violated(&self, what: String) {
        self.book.lock().unwrap().violations.push(what);
    }

    /// An event that a sendoff accepted whose disk is gone already.
    pub fn accepted_elsewhere(&self, id: EventId, serial: u64, not_before: UnixMillis) {
        let mut book = self.book.lock().unwrap();
        book.accepted.insert(id, serial);
        book.not_before.insert(serial, not_before);
    }

    pub fn took_from_the_queue(&self) {
        self.book.lock().unwrap().taken += 1;
    }

    /// Every accepted event was delivered, or is on the disk of some site or on the queue, or a repeat of it is.
    fn audit(&self) {
        let mut there: BTreeSet<u64> = self.queue.iter().flat_map(FleetQueue::serials).collect();
        for site in &self.sites {
            let world = site.lock().unwrap().world.clone();
            match world.disk.synced(disk::settings(&self.scenario)).and_then(|pairs| fits_together(&pairs)) {
                Ok(stored) => there.extend(stored.values()),
                Err(why) => self.violated(format!("G2: a store does not fit together: {why}")),
            }
        }
        let mut book = self.book.lock().unwrap();
        there.extend(book.delivered.iter().filter_map(|id| book.accepted.get(id)));
        let lost: Vec<_> =
            book.accepted.iter().filter(|(_, serial)| !there.contains(serial)).map(|(id, _)| *id).collect();
        for id in lost {
            book.violations.push(format!("G2: {id} is nowhere"));
        }
    }

    /// A client was answered.
    fn answered(&self, (at, disk): (usize, u32), serial: u64, key: Option<String>, answer: (u16, Option<EventId>)) {
        let mut book = self.book.lock().unwrap();
        let (status, id) = answer;
        let owner = key.as_ref().and_then(|key| book.owners.get(&(at, disk, key.clone())).copied());
        match (status, id, owner) {
            (202, Some(id), Some((first, of))) if of == serial && first != id => {
                book.violations.push(format!("G3: a repeat of {first} was accepted as {id}"));
            }
            (422, _, Some((first, of))) if of == serial => {
                book.violations.push(format!("G3: a repeat of {first} was refused as a conflict"));
            }
            _ => {}
        }
        if let (202, Some(id)) = (status, id) {
            book.accepted.insert(id, serial);
            if let Some(key) = key {
                book.owners.entry((at, disk, key)).or_insert((id, serial));
            }
        }
    }
}

/// The parts of a running daemon.
struct Parts {
    tap: Tap,
    party: Party,
    /// Whether its door takes hand-offs.
    stays: Arc<AtomicBool>,
    stop: Stop,
    doors: TaskTracker,
    stages: TaskTracker,
    writers: TaskTracker,
}

/// Starts a site's daemon. `None` if its store does not open.
fn start(fleet: &Arc<Fleet>, at: usize, life: u32) -> Option<Parts> {
    let (world, disk) = {
        let site = fleet.sites[at].lock().unwrap();
        (site.world.clone(), site.disk)
    };
    let clock = Clock::seeded(fleet.clock.now(), fleet.draw(|rng| rng.u64(..)));
    let plug = Plug { world: world.clone(), life };
    let opened = world.disk.open(Some(&plug), disk::settings(&world.scenario)).and_then(|store| {
        let engine = Engine::open(store, outbox_settings(&world), clock.clone(), "the fake disk");
        engine.map_err(|error| NotOpened::Failed(error.to_string()))
    });
    let engine = opened.ok()?;
    let metrics = Arc::new(Metrics::new().unwrap());
    let (writer, handle) = Writer::new(engine, clock.clone(), metrics.clone());
    let (doors, stages, writers) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    let stop = Stop::default();
    let latency = {
        let fleet = Arc::clone(fleet);
        move || Duration::from_millis(fleet.draw(|rng| rng.u64(1..=8)))
    };
    world.powers(writers.spawn(writer.run_async(latency)).abort_handle());
    let inner = Sabotaged { handle, bug: world.scenario.bug, attempts_max: u32::MAX };
    let tap = Tap { inner, world: world.clone(), life, clock: clock.clone() };
    let stays = Arc::new(AtomicBool::new(true));
    let instance = uuid::Uuid::from_u128(fleet.draw(|rng| rng.u128(..)));
    let party = Party { instance, home: ingest_settings().home };
    let asked = stays.clone();
    let reception =
        Reception { party: party.clone(), is_open: true, stays: Arc::new(move || asked.load(Ordering::Relaxed)) };
    let door = Door::new(tap.clone(), clock, metrics, ingest_settings()).receiving(reception);
    let front = Front { door, world: world.clone(), life, disk, tasks: doors.clone() };
    fleet.sites[at].lock().unwrap().front = Some(front);
    let delivering = deliver(Arc::clone(fleet), tap.clone(), stop.leasing.clone());
    world.powers(stages.spawn(delivering).abort_handle());
    if let Some(taking) = take(fleet, &tap, &stays, &stop) {
        world.powers(stages.spawn(taking).abort_handle());
    }
    Some(Parts { tap, party, stays, stop, doors, stages, writers })
}

/// One life of a site's daemon, from opening its store to a crash, or to a stop with a hand-off.
async fn live(fleet: &Arc<Fleet>, at: usize, life: u32) {
    let world = fleet.sites[at].lock().unwrap().world.clone();
    world.switch_on(life, fleet.draw(|rng| rng.bool().then(|| rng.u64(1..200))));
    let Some(parts) = start(fleet, at, life) else {
        if world.is_on(life) {
            fleet.violated("G2: a store does not open".to_owned());
        }
        world.power_went.notified().now_or_never().unwrap_or_default();
        world.end_process();
        return;
    };
    let Parts { tap, party, stays, stop, doors, stages, writers } = parts;
    let after = fleet.draw(|rng| Duration::from_millis(rng.u64(1..4_000)));
    let goes_on = tokio::select! {
        biased;
        () = world.power_went.notified() => false,
        () = tokio::time::sleep(after) => true,
    };
    fleet.sites[at].lock().unwrap().front = None;
    let mut is_empty = false;
    if goes_on && fleet.draw(|rng| rng.u8(0..4)) == 0 {
        world.cut_power("at a quiet moment");
        world.power_went.notified().await;
    } else if goes_on {
        stays.store(false, Ordering::Relaxed);
        stop.leasing.cancel();
        stages.close();
        tokio::select! {
            biased;
            () = world.power_went.notified() => {}
            left = hand_over(fleet, at, &tap, &party, (&stages, &doors)) => is_empty = left == Some(0),
        }
    }
    if world.is_on(life) {
        tap.inner.handle.close().await;
        writers.close();
        writers.wait().await;
    } else {
        fleet.book.lock().unwrap().crashes += 1;
        is_empty = false;
    }
    world.end_process();
    for all in [doors, stages, writers] {
        all.close();
        all.wait().await;
    }
    if is_empty && fleet.draw(|rng| rng.u8(0..3)) > 0 {
        fleet.book.lock().unwrap().gone += 1;
        let mut site = fleet.sites[at].lock().unwrap();
        site.world = World::new(fleet.scenario.clone(), Trail::None);
        site.disk += 1;
    }
}

/// A stop's hand-off. Returns how many events are left.
async fn hand_over(
    fleet: &Arc<Fleet>,
    at: usize,
    tap: &Tap,
    party: &Party,
    (stages, doors): (&TaskTracker, &TaskTracker),
) -> Option<u64> {
    let others = (0..fleet.sites.len()).filter(|other| *other != at);
    let target = |to| -> Arc<dyn Target> {
        Arc::new(Neighbour { fleet: Arc::clone(fleet), tap: tap.clone(), party: party.clone(), at: to })
    };
    let metrics = Arc::new(Metrics::new().unwrap());
    let mut targets: Vec<_> = others.filter(|_| fleet.peers).map(target).collect();
    targets.extend(to_queue(fleet, tap));
    let sender = Sender::new(tap.clone(), targets, true, tap.clock.clone(), metrics);
    let until = Until::default();
    let (last, over, progress) = (until.last.clone(), until.over.clone(), Progress::default());
    let ending = async {
        doors.close();
        doors.wait().await;
        stages.wait().await;
        last.cancel();
        tokio::time::sleep(Duration::from_secs(20)).await;
        over.cancel();
        std::future::pending::<()>().await;
    };
    let summary = tokio::select! {
        biased;
        summary = sender.run(until, progress.clone()) => summary.ok(),
        () = ending => None,
    };
    fleet.book.lock().unwrap().handed += progress.events();
    summary.map(|summary| summary.left)
}

/// Another site as the target.
struct Neighbour {
    fleet: Arc<Fleet>,
    tap: Tap,
    party: Party,
    at: usize,
}

impl Target for Neighbour {
    fn name(&self) -> &str {
        "a neighbour"
    }

    fn sizes(&self) -> Sizes {
        Sizes { events_max: 4, bytes_max: 1 << 20, batches_max: 3 }
    }

    fn send<'a>(&'a self, batch: &'a [Parcel]) -> BoxFuture<'a, Result<Vec<Answer>, Trouble>> {
        let mut body = Vec::new();
        batch.iter().for_each(|parcel| write_parcel(&mut body, parcel));
        self.ask(PATH, body, batch.len()).boxed()
    }

    fn send_keys<'a>(&'a self, keys: &'a [RememberedKey]) -> Option<BoxFuture<'a, Result<(), Trouble>>> {
        let mut body = Vec::new();
        keys.iter().for_each(|key| sendoff::handoff::protocol::write_key(&mut body, key));
        Some(self.ask(sendoff::handoff::protocol::KEYS_PATH, body, 0).map(|asked| asked.map(drop)).boxed())
    }
}

impl Neighbour {
    async fn ask(&self, path: &str, body: Vec<u8>, events: usize) -> Result<Vec<Answer>, Trouble> {
        let Tap { world, life, .. } = &self.tap;
        world.point(*life, "before an offer").await;
        let not_now = |why: &str| Trouble::NotNow { why: why.to_owned(), retry_after: Duration::from_millis(100) };
        let Some(front) = self.fleet.front(self.at) else { return Err(not_now("it is not there")) };
        let mut request = Request::post(path).body(Full::<Bytes>::from(body)).unwrap();
        request.headers_mut().extend(self.party.headers());
        let (answer, answered) = oneshot::channel();
        let (fleet, to) = (Arc::clone(&self.fleet), front.clone());
        let serving = front.tasks.spawn(async move {
            fleet.pass(5).await;
            to.world.point(to.life, "a hand-off arrives").await;
            let (head, body) = to.door.handle(request).await.into_parts();
            to.world.point(to.life, "its answer leaves").await;
            if fleet.draw(|rng| rng.u8(0..100)) >= LOST_PERCENT {
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                answer.send((head.status.as_u16(), body)).unwrap_or_default();
            }
        });
        front.world.powers(serving.abort_handle());
        if self.fleet.scenario.bug == Some(Bug::SettleBeforeAnswer) {
            return Ok(vec![Answer::Taken(Taken::Adopted); events]);
        }
        let answered = tokio::time::timeout(Duration::from_secs(2), answered).await;
        world.point(*life, "after an offer").await;
        let unanswered = || Trouble::Unanswered { why: "no answer".to_owned() };
        match answered {
            Ok(Ok((200, body))) if path == PATH => read_answers(&body, events).ok_or_else(unanswered),
            Ok(Ok((200, _))) => Ok(Vec::new()),
            Ok(Ok((503 | 429, _))) => Err(not_now("not now")),
            Ok(Ok((status, body))) => {
                self.fleet.violated(format!("a hand-off was answered with {status}: {body:?}"));
                Err(unanswered())
            }
            Ok(Err(_)) | Err(_) => Err(unanswered()),
        }
    }
}

/// Takes events for Lambda: most are delivered, some are to be retried, and some become dead letters.
async fn deliver(fleet: Arc<Fleet>, tap: Tap, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let Ok(news) = tap.lanes(0).await else { return };
        let want = |lane| LaneWant { lane, which: Which::Due, events_max: 2, bytes_max: u64::MAX, spent: None };
        let lanes = news.lanes.iter().map(|view| want(view.lane)).collect();
        let Ok(leases) = tap.lease(LeaseWant { lanes, bytes_max: u64::MAX }, None).await else { return };
        let mut done = Vec::new();
        for Leased { lease, event, history } in leases.events {
            fleet.pass(60).await;
            let now = tap.clock.now();
            let serial = serial_of(&event.payload).unwrap_or_default();
            let early = fleet.book.lock().unwrap().not_before.get(&serial).is_some_and(|at| *at > now);
            if early {
                fleet.violated(format!("G5: {} is attempted before its time", event.id));
            }
            let tried = History { attempts: history.attempts + 1, calls: history.calls + 1, ..history };
            let due = now.plus(Duration::from_millis(fleet.draw(|rng| rng.u64(0..5_000))));
            done.push((
                lease,
                match fleet.draw(|rng| rng.u8(0..10)) {
                    0..5 => {
                        fleet.book.lock().unwrap().delivered.insert(event.id);
                        Settlement::Delivered
                    }
                    5..9 => Settlement::RetryAt(History { due, ..tried }),
                    _ => {
                        let burial = Some(Burial { reason: BuryReason::Refused, at: now, unshippable: None });
                        Settlement::Bury(History { due, burial, ..tried })
                    }
                },
            ));
        }
        if tap.settle(done).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = fleet.pass(300) => {}
        }
    }
}

/// Sends events to any site, some of them again, some with a key that has another payload somewhere.
async fn client(fleet: Arc<Fleet>, number: u64) {
    let mut sent: Vec<(u64, Option<String>, Bytes)> = Vec::new();
    for n in 0..25 {
        fleet.pass(400).await;
        if let Some(queue) = fleet.queue.as_ref().filter(|_| fleet.draw(|rng| rng.u8(0..12)) == 0) {
            queue.put_for_later(&fleet, number + 500 + n);
            continue;
        }
        let again = fleet.draw(|rng| (rng.u8(0..3) == 0 && !sent.is_empty()).then(|| rng.usize(0..sent.len())));
        let (serial, key, body) = match again {
            Some(nth) => sent[nth].clone(),
            None => fleet.order(number + n),
        };
        sent.push((serial, key.clone(), body.clone()));
        let at = fleet.draw(|rng| rng.usize(0..fleet.sites.len()));
        let Some(front) = fleet.front(at) else { continue };
        let (told, to) = (Arc::clone(&fleet), front.clone());
        let serving = front.tasks.spawn(async move {
            told.pass(5).await;
            let request = Request::post("/v1/events").header("content-type", "application/json");
            let answer = to.door.handle(request.body(Full::new(body)).unwrap()).await;
            let (head, body) = answer.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let value = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
            let id = value["id"].as_str().and_then(|id| id.parse().ok());
            told.answered((at, to.disk), serial, key, (head.status.as_u16(), id));
        });
        front.world.powers(serving.abort_handle());
    }
}

impl Fleet {
    /// A new order: its serial number, its key, and the body of its request.
    fn order(&self, serial: u64) -> (u64, Option<String>, Bytes) {
        // Few keys, so that different orders meet in them.
        let key = self.draw(|rng| (rng.u8(0..2) == 0).then(|| format!("key-{}", rng.u8(0..40))));
        let delay_ms = self.draw(|rng| (rng.u8(0..5) == 0).then(|| rng.u64(1..8_000)));
        if let Some(delay_ms) = delay_ms {
            let at = self.clock.now().plus(Duration::from_millis(delay_ms));
            self.book.lock().unwrap().not_before.insert(serial, at);
        }
        let function = self.draw(|rng| format!("f{}", rng.u8(0..3)));
        let padding = "x".repeat(self.draw(|rng| [10, 10, 2_000, 9_000][rng.usize(0..4)]));
        let key_field = key.as_ref().map_or(String::new(), |key| format!(r#","idempotency_key":"{function}-{key}""#));
        let at = self.book.lock().unwrap().not_before.get(&serial).copied();
        let delay = at.map_or(String::new(), |at| format!(r#","deliver_at":{}"#, at.0));
        let body =
            format!(r#"{{"function":"{function}","payload":{{"n":{serial},"p":"{padding}"}}{key_field}{delay}}}"#);
        (serial, key.map(|key| format!("{function}-{key}")), body.into())
    }
}
