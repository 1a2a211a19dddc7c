//! Builds the stages, runs them and drains them. The only file that knows every stage.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::api::{FunctionQueue, Queues};
use crate::admin::guard::{Guard, guarded};
use crate::admin::problems;
use crate::admin::status::Status;
use crate::admin::{self, Admin, Readiness};
use crate::aws;
use crate::aws::Own;
use crate::aws::configured::Configured;
use crate::clock::Clock;
use crate::config::Config;
use crate::deadletter::DeadLetters;
use crate::deadletter::admit::Rules;
use crate::dispatch::Dispatch;
use crate::dispatch::verdict::Outcome;
use crate::event::KeySource;
use crate::follow::Bad;
use crate::hop::Hop;
use crate::http::host::Hosts;
use crate::http::tls::Port;
use crate::http::{GivesWay, Limits, Server};
use crate::ingest;
use crate::ingest::door::Door;
use crate::ingest::refusal::Refusal;
use crate::metrics::{Metrics, Words};
use crate::notify;
use crate::outbox::embedded::engine::{Engine, OpenError};
use crate::outbox::embedded::store::place::exposure;
use crate::outbox::embedded::store::{self, kept};
use crate::outbox::embedded::writer::{Handle, Writer};
use crate::outbox::{self, BuryReason, Outbox};
use crate::reload::Reload;
use crate::shutdown::{Signals, Stop};

mod listeners;

mod socket;

mod vital;

mod descriptors;

mod ending;

mod tls;

use ending::{AdminParts, Running};
use listeners::Listeners;
use vital::Vital;

/// The longest time between two sweeps, which forget expired keys and empty lanes. A sweep is a full pass over all
/// keys.
const SWEEP_EVERY_MAX: Duration = Duration::from_secs(3_600);

/// The pause between two pieces of housekeeping, so that it does not delay new requests.
const BREATH: Duration = Duration::from_millis(5);

/// The pause between two searches for room while events are refused.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// How often the daemon checks whether a write has failed or hangs.
const WRITE_LOOK_EVERY: Duration = Duration::from_millis(500);

/// A write that this many checks in a row found unfinished (30 s) counts as failed. A working disk answers within
/// seconds.
const WRITE_LOOKS_MAX: u32 = 60;

/// The most connections of the admin listener, and of the health listener.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {why}; {remedy}")]
    Bind { key: &'static str, address: String, why: String, remedy: String },
    #[error("a file of the configuration cannot be used: {0}")]
    File(#[from] Bad),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Aws(#[from] aws::Error),
    // The source is printed separately.
    #[error("{doing}")]
    System { doing: &'static str, source: io::Error },
}

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything in flight finished within the grace period.
    Drained,
    /// The grace period ended. The events of the attempts in flight are still in the outbox, uncharged.
    CutOff,
    /// A second signal ended it at once. As after a crash, all accepted events are in the outbox.
    AtOnce,
    /// The outbox failed. A restart recovers it.
    Poisoned,
    /// A stage ended too early. A restart brings it back.
    Failed(&'static str),
}

/// The clients of AWS.
struct Clients {
    shared: aws::Shared,
    lambda: Configured<aws::direct::Client>,
    passthrough: Configured<aws::passthrough::LambdaPassthrough>,
    sqs: Configured<aws::sqs::Sqs>,
}

impl Clients {
    async fn load(config: &Config, clock: &Clock, own: Own, operator: &Admin<Handle>) -> Result<Self, Error> {
        let shared = aws::Shared::load(config.lambda.region.as_deref(), &config.outside, own, clock.clone()).await?;
        let lambda = aws::direct::Client::new(&shared, &config.lambda, config.transport, clock.clone()).await;
        let passthrough = aws::passthrough::LambdaPassthrough::new(&shared, &config.lambda, clock.clone());
        let (lambda, passthrough) = (Configured::of(lambda)?.warned(), Configured::of(passthrough)?);
        let sqs = Configured::of(aws::sqs::Sqs::new(&shared, &config.sqs))?.warned();
        operator.set_missing([lambda.missing(), sqs.missing()].into_iter().flatten().collect());
        Ok(Self { shared, lambda, passthrough, sqs })
    }
}

/// Runs until SIGTERM or SIGINT, until the outbox fails, or until a stage ends. A second signal ends the process at
/// once, and so does the first one during the start. Both are as safe as a crash.
pub async fn run(config: Config, reload: Reload) -> Result<Ended, Error> {
    let mut signals = Signals::catch().map_err(|source| Error::System { doing: "listening for signals", source })?;
    let running = tokio::select! {
        biased;
        signal = signals.next() => {
            notify::stopping(signal);
            tracing::info!(signal, "stopped while starting");
            return Ok(Ended::AtOnce);
        }
        running = start(config, reload) => running?,
    };
    running.until_ended(signals).await
}

async fn start(config: Config, reload: Reload) -> Result<Running, Error> {
    let clock = Clock::system();
    let metrics = metrics(&clock)?;
    let dropped = metrics.log_dropped.clone();
    reload.level().count_dropped(move |lines| dropped.inc_by(lines));
    let open_files = descriptors::raise();
    for variable in &config.ignored_endpoints {
        tracing::warn!(variable, "ignoring the variable: it points to this daemon's own listener");
    }

    let listeners = Listeners::open(&config.listen).await?;
    let own = Own { hop: Hop::minted(clock.random_bits()), addresses: listeners.addresses()? };
    let Listeners { ingest, admin, health, unix } = listeners;
    let (stop, door, stages, vital) = (Stop::default(), TaskTracker::new(), TaskTracker::new(), Vital::new());
    let readiness = Readiness::new(&metrics);
    let operator = Admin::<Handle>::new(readiness.clone(), metrics.clone(), clock.clone());
    let (admin_address, health_address) = (address(&admin)?, health.as_ref().map(address).transpose()?);
    let parts = AdminParts::default();
    let tls = tls::secured(&config, &clock, &metrics, &reload, &parts, &vital)?;
    let status = Status::new(operator.clone(), reload.level().clone());
    let routes = operator.router().merge(status.router());
    let routes = guarded(routes, guard(&config, &metrics));
    serve_admin("admin", Port::new(admin, tls.admin), routes, &config, &clock, &parts, &vital);
    if let Some(health) = health {
        let routes = guarded(operator.health_router(), guard(&config, &metrics));
        serve_admin("health", Port::new(health, None), routes, &config, &clock, &parts, &vital);
    }
    let pulse = notify::pulse(status, clock.clone(), parts.stop.clone());
    vital.spawn_endless(&parts.tasks, "notify", parts.stop.clone(), pulse);
    let policies = reload.dispatch();
    let hangup = Reload::signal().map_err(|source| Error::System { doing: "listening for signals", source })?;
    vital.spawn_endless(&parts.tasks, "reload", parts.stop.clone(), reload.run(hangup, parts.stop.clone()));

    let (outbox, writer) = open(&config, &clock, &metrics).await?;
    // Only now: holding the store's lock proves that no other daemon uses the socket file that is replaced here.
    let mut unix = unix.open()?;
    operator.set_outbox(Some(outbox.clone()));
    let Clients { shared, lambda, passthrough, sqs } = Clients::load(&config, &clock, own, &operator).await?;

    let leasing = || stop.leasing.clone();
    let dispatch = Dispatch::new(outbox.clone(), lambda, config.dispatch.clone(), clock.clone(), metrics.clone());
    operator.set_dispatch(dispatch.status());
    vital.spawn(&stages, "dispatch", leasing(), dispatch.following(policies).run(stop.clone()));
    let letters = DeadLetters::new(outbox.clone(), sqs, config.dead_letter.clone(), clock.clone(), metrics.clone());
    vital.spawn(&stages, "dead letters", leasing(), letters.run(stop.clone()));
    vital.spawn(&stages, "making room", leasing(), make_room(outbox.clone(), clock.clone(), leasing()));
    vital.spawn(&stages, "sweep", leasing(), sweep(outbox.clone(), clock.clone(), config.outbox.clone(), leasing()));

    let ingest_address = ingest.first().map(address).transpose()?.unwrap_or_default();
    operator.set_settings(admin_settings(&config, &shared));
    let home = config.ingest.home.clone().or_region(shared.region());
    let settings = ingest::Settings { home, ..config.ingest.clone() };
    let limits = limits(&settings, descriptors::connections(open_files, &config, 2 * ADMIN_CONNECTIONS_MAX));
    let connections = Some(metrics.ingest_connections.clone());
    let server = Server::new(limits, connections, clock.clone(), stop.accepting.clone(), door.clone());
    let server = server.cut_by(stop.working.clone());
    {
        // Only the tasks hold the door, so that the outbox closes with the last of them.
        let closed = Door::new(outbox.clone(), clock.clone(), metrics.clone(), settings).leaving(door.clone());
        let closed = closed.marked(shared.hop()).ruled(config.rules.clone()).called(config.listen.ingest_hosts.clone());
        let opened = closed.passing(passthrough, config.passthrough.clone());
        let accepting = || stop.accepting.clone();
        for unix in unix.listeners.drain(..) {
            let serving = server.clone().serve(unix, opened.clone().called(Hosts::any()).service());
            vital.spawn_endless(&door, "ingest", accepting(), serving);
        }
        for ingest in ingest {
            let serving = server.clone().serve(Port::new(ingest, tls.ingest.clone()), opened.service());
            vital.spawn_endless(&door, "ingest", accepting(), serving);
        }
    }

    announce(&config, &readiness, [ingest_address, admin_address, health_address.unwrap_or_default()]);
    let grace = config.grace;
    Ok(Running { outbox, writer, clock, operator, readiness, stop, vital, door, stages, admin: parts, unix, grace })
}

fn announce(config: &Config, readiness: &Readiness, [ingest, admin, health]: [String; 3]) {
    readiness.ready();
    let state_dir = config.state_dir.display().to_string();
    tracing::info!(ingest, admin, health, state_dir, "ready");
    notify::ready();
}

fn guard(config: &Config, metrics: &Arc<Metrics>) -> Guard {
    let (hosts, body_timeout) = (config.listen.admin_hosts.clone(), config.ingest.body_timeout);
    Guard { hosts, body_timeout, metrics: metrics.clone() }
}

/// Registers the metrics, with every series whose labels are known.
fn metrics(clock: &Clock) -> Result<Arc<Metrics>, Error> {
    let metrics = Metrics::new()
        .map_err(|error| Error::System { doing: "registering metrics", source: io::Error::other(error.to_string()) })?;
    metrics.begin(Words {
        refused: &Refusal::REASONS,
        buried: BuryReason::ALL.map(BuryReason::as_str).to_vec(),
        outcomes: &Outcome::WORDS,
        key_sources: KeySource::ALL.map(KeySource::as_str).to_vec(),
    });
    metrics.start_time_seconds.set(clock.now().0 as f64 / 1_000.0);
    Ok(Arc::new(metrics))
}

/// Serves the operator's API or the probes. Every new connection is accepted, and another one gives way, because probes
/// must always be answered.
fn serve_admin(
    stage: &'static str,
    listener: Port,
    routes: axum::Router,
    config: &Config,
    clock: &Clock,
    parts: &AdminParts,
    vital: &Vital,
) {
    let AdminParts { tasks, stop, cut } = parts;
    let limits = limits(&config.ingest, ADMIN_CONNECTIONS_MAX);
    let server = Server::new(limits, None, clock.clone(), stop.clone(), tasks.clone());
    let server = server.cut_by(cut.clone()).giving_way(GivesWay::Any);
    vital.spawn_endless(tasks, stage, stop.clone(), server.serve(listener, TowerToHyperService::new(routes)));
}

fn limits(settings: &ingest::Settings, connections_max: usize) -> Limits {
    Limits {
        connections_max,
        headers_max: settings.headers_max,
        header_bytes_max: settings.header_bytes_max,
        header_timeout: settings.header_timeout,
    }
}

fn address(listener: &TcpListener) -> Result<String, Error> {
    let address = listener.local_addr();
    address.map(|address| address.to_string()).map_err(|source| Error::System { doing: "reading an address", source })
}

/// What the operator's API is told.
pub fn admin_settings(config: &Config, shared: &aws::Shared) -> admin::Settings {
    let dead_letter = &config.dead_letter;
    let own = |(function, queue_url): &(String, String)| FunctionQueue {
        function: function.clone(),
        queue_url: queue_url.clone(),
    };
    let queues = Queues {
        queue_url: dead_letter.queue_url.clone(),
        functions: dead_letter.functions.iter().map(own).collect(),
        endpoint_url: config.sqs.endpoint_url.clone(),
        region: config.sqs.region.clone().or_else(|| shared.region().map(str::to_owned)),
    };
    let outbox::Settings { bytes_max, events_max, functions_max, disk_reserve, .. } = config.outbox;
    let limits = problems::Limits { bytes_max, events_max, disk_reserve };
    let home = config.ingest.home.clone().or_region(shared.region());
    let rules = Rules { home, redrives_max: dead_letter.redrives_max };
    admin::Settings { rules, limits, functions_max, queues }
}

/// Opens the store, which may take a while, and starts its writer.
pub async fn open(config: &Config, clock: &Clock, metrics: &Arc<Metrics>) -> Result<(Handle, JoinHandle<()>), Error> {
    let (dir, settings) = (config.state_dir.clone(), config.outbox.clone());
    let (clock, metrics, labels) = (clock.clone(), metrics.clone(), metrics.clone());
    let shown = dir.display().to_string();
    let shown_again = shown.clone();
    tracing::info!(state_dir = shown, "opening the outbox");
    let began = clock.instant();
    let opened = tokio::task::spawn_blocking(move || -> Result<_, OpenError> {
        let path = dir.display().to_string();
        let store::Opened { store, salvaged } = store::open(&dir, &settings)?;
        let lost = salvaged.map_or(0, |salvaged| salvaged.report.unreadable_events);
        metrics.outbox_unreadable_events.set(i64::try_from(lost).unwrap_or(i64::MAX));
        metrics.outbox_damaged_stores.set(i64::try_from(kept(&dir).len()).unwrap_or(i64::MAX));
        let engine = Engine::open(store, settings, clock.clone(), &path)?;
        Ok(Writer::new(engine, clock, metrics))
    });
    let (writer, handle) = opened.await.map_err(|error| OpenError::Damaged {
        path: shown,
        why: format!("the engine panicked while opening it: {error}"),
    })??;
    if let Some(remark) = exposure(&config.state_dir) {
        tracing::warn!(state_dir = shown_again, remedy = remark.remedy, "{}", remark.what);
    }
    let thread = std::thread::Builder::new().name("outbox".into()).spawn(move || writer.run());
    let thread = thread.map_err(|source| Error::System { doing: "starting the outbox's thread", source })?;
    let census = handle.census().await.unwrap_or_default();
    // Creates the series of every known function before they count.
    for function in census.lanes.keys() {
        labels.function_label(function);
    }
    tracing::info!(events = census.events, bytes = census.bytes, functions = census.lanes.len(), took = ?began.elapsed(), "outbox is open");
    Ok((handle, thread))
}

/// Waits until the writer has finished its requests and released the store.
pub async fn close(writer: JoinHandle<()>) -> Result<(), Error> {
    let closed = tokio::task::spawn_blocking(move || writer.join()).await;
    match closed {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => {
            Err(Error::System { doing: "closing the outbox", source: io::Error::other("its thread panicked") })
        }
    }
}

/// Forgets expired keys and lanes that have long been empty. A full pass, in small pieces, a few times in each window.
async fn sweep(
    outbox: Handle,
    clock: Clock,
    settings: outbox::Settings,
    stop: CancellationToken,
) -> Result<(), outbox::Error> {
    let pause = (settings.dedupe_window.min(settings.sdk_window) / 4).clamp(Duration::from_secs(1), SWEEP_EVERY_MAX);
    loop {
        in_pieces(|| outbox.sweep(), &clock, &stop).await?;
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            // If the clock was set, sweep at once: events that wait for a time of the wrong clock must not wait for the
            // next sweep.
            () = clock.until_stepped() => {}
            () = clock.sleep(pause) => {}
        }
    }
}

/// Repeats `piece` until nothing is left to do or `stop` is cancelled.
async fn in_pieces<F: Future<Output = Result<bool, outbox::Error>>>(
    piece: impl Fn() -> F,
    clock: &Clock,
    stop: &CancellationToken,
) -> Result<(), outbox::Error> {
    while !stop.is_cancelled() && piece().await? {
        clock.sleep(BREATH).await;
    }
    Ok(())
}

/// Makes room whenever events are refused: a store that was full and has drained must not stay full until the next
/// sweep.
async fn make_room(outbox: Handle, clock: Clock, stop: CancellationToken) -> Result<(), outbox::Error> {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = outbox.room_is_wanted() => {}
        }
        in_pieces(|| outbox.tend(), &clock, &stop).await?;
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = clock.sleep(ROOM_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;

    use super::ending::tests::until_poisoned;
    use super::*;
    use crate::clock::UnixMillis;
    use crate::config::{self, Environment, Flags};
    use crate::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
    use crate::outbox::LeaseWant;
    use crate::outbox::embedded::kv::{Batch, Disk, Failed, Kv};
    use crate::outbox::embedded::memory::{MemoryDisk, MemoryKv};

    /// A disk whose writes after the first return only when the test allows it.
    struct Hanging {
        inner: MemoryKv,
        commits: u32,
        let_go: mpsc::Receiver<()>,
    }

    impl Kv for Hanging {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
            self.inner.get(key)
        }

        fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
            self.inner.scan(from, to)
        }

        fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
            self.commits += 1;
            if self.commits > 1 {
                self.let_go.recv().unwrap_or_default();
            }
            self.inner.commit(batch)
        }

        fn disk(&self) -> Disk {
            self.inner.disk()
        }
    }

    fn event(clock: &Clock) -> Event {
        let name = FunctionName::new("orders");
        Event {
            id: EventId::mint(clock.now(), clock.random_bits(), &name),
            function: Function { name, address: "orders".into(), qualifier: None, region: None },
            key: IdempotencyKey { value: "minted".into(), source: KeySource::Minted },
            carried: Carried::default(),
            payload: Bytes::from_static(b"{}"),
            accepted_at: clock.now(),
            deliver_at: None,
            expires_at: None,
            redrives: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_never_returns_is_given_up_and_nothing_more_is_accepted() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let (release, let_go) = mpsc::channel();
        let kv = Hanging { inner: MemoryDisk::default().open(), commits: 0, let_go };
        let config = config::load(&Flags::default(), &Environment::from_pairs(&[("HOME", "/h")]));
        let engine = Engine::open(kv, config.unwrap().config.outbox, clock.clone(), "hanging").unwrap();
        let (writer, handle) = Writer::new(engine, clock.clone(), Arc::new(Metrics::new().unwrap()));
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::spawn(move || {
            let _inside = runtime.enter();
            writer.run();
        });

        let waiting = handle.clone();
        assert!(waiting.lease(LeaseWant::default()).await.is_ok(), "reads commit nothing");
        let event = event(&clock);
        let tasks = TaskTracker::new();
        tasks.spawn(async move { waiting.append(vec![event]).await });
        let began = clock.now();
        until_poisoned(&handle, &clock).await;
        assert!(clock.now().since(began) >= WRITE_LOOK_EVERY * WRITE_LOOKS_MAX);
        assert!(handle.poisoned().is_some_and(|why| why.contains("not returned")));
        assert!(matches!(handle.census().await, Err(outbox::Error::Poisoned { .. })));

        drop(release);
        tasks.close();
        tasks.wait().await;
        drop(handle);
        thread.join().unwrap();
    }
}
