//! Builds the stages, runs them and drains them. The only file that knows every stage.

use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::api::{FunctionQueue, Queues};
use crate::admin::bodies::Bodies;
use crate::admin::problems;
use crate::admin::status::StatusRoutes;
use crate::admin::{self, Admin, Readiness, access, actions};
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
use crate::http::{Limits, Server};
use crate::https;
use crate::ingest;
use crate::ingest::door::Door;
use crate::ingest::refusal::Refusal;
use crate::metrics::{Metrics, Words};
use crate::notify;
use crate::outbox::{self, BuryReason, Limits as OutboxLimits, OpenError, Opened, Outbox, embedded, postgres};
use crate::past::Past;
use crate::reload::Reload;
use crate::shutdown::{Signals, Stop};

mod serving;

mod showing;

mod listeners;

mod socket;

mod vital;

mod descriptors;

mod ending;

mod passwords;

mod followed;

mod store;

mod users;

pub mod handing;

pub mod history;

use ending::{AdminParts, OpenStore, Running};
use followed::Following;
use handing::Handing;
use listeners::Listeners;
use serving::Serving;
pub use store::Store;
use vital::Vital;

/// The most connections of each listener for operators and probes: admin, its Unix socket, health.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {why}; {remedy}")]
    Bind { key: &'static str, address: String, why: String, remedy: String },
    // The source is printed separately.
    #[error("a file of the configuration cannot be used")]
    File(#[from] Bad),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("closing the outbox: {0}")]
    Closing(outbox::Error),
    #[error(transparent)]
    Aws(#[from] aws::Error),
    #[error(transparent)]
    HandOff(#[from] https::Unusable),
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
    /// A hand-off ended, and this many events are left on the disk.
    LeftBehind(u64),
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

/// Finds what `run` would refuse, as far as that shows without listening, writing, or asking anybody. With `here`, also
/// checks what depends on this machine: addresses, and the place of the socket file.
pub async fn check(config: &Config, here: bool) -> Result<(), Error> {
    if here {
        listeners::check(&config.listen)?;
    }
    let clock = Clock::system();
    let listen = &config.listen;
    let own = Own {
        addresses: listen.ingest.iter().chain([&listen.admin]).chain(&listen.health).copied().collect(),
        ..Own::nobody()
    };
    let region = config.lambda.region.as_deref();
    let shared = aws::Shared::without_asking(region, &config.outside, own, clock.clone()).await?;
    Clients::of(shared, config, &clock).await.map(drop)
}

impl Clients {
    async fn load(config: &Config, clock: &Clock, own: Own, operator: &Admin<Store>) -> Result<Self, Error> {
        let shared = aws::Shared::load(config.lambda.region.as_deref(), &config.outside, own, clock.clone()).await?;
        let Self { shared, lambda, passthrough, sqs } = Self::of(shared, config, clock).await?;
        let (lambda, sqs) = (lambda.warned(), sqs.warned());
        operator.set_missing([lambda.missing(), sqs.missing()].into_iter().flatten().collect());
        Ok(Self { shared, lambda, passthrough, sqs })
    }

    async fn of(shared: aws::Shared, config: &Config, clock: &Clock) -> Result<Self, Error> {
        let lambda = aws::direct::Client::new(&shared, &config.lambda, config.transport, clock.clone()).await;
        let passthrough = aws::passthrough::LambdaPassthrough::new(&shared, &config.lambda, clock.clone());
        let (lambda, passthrough) = (Configured::of(lambda)?, Configured::of(passthrough)?);
        let sqs = Configured::of(aws::sqs::Sqs::new(&shared, &config.sqs))?;
        Ok(Self { shared, lambda, passthrough, sqs })
    }
}

/// Runs until SIGTERM, SIGINT or SIGQUIT, until the outbox fails, or until a stage ends. A second signal ends the
/// process at once, and so does the first one during the start. Both are as safe as a crash.
pub async fn run(config: Config, reload: Reload) -> Result<Ended, Error> {
    // Checked before a port is bound: an unusable file is a wrong configuration, even if the ports are in use.
    config.tls.as_ref().map(|tls| tls.files.load()).transpose()?;
    config.clients.load()?;
    config.operators.load()?;
    let mut signals =
        Signals::catch_all().map_err(|source| Error::System { doing: "listening for signals", source })?;
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
    let Listeners { ingest, admin, health, unix, admin_unix } = listeners;
    let (stop, door, stages, vital) = (Stop::default(), TaskTracker::new(), TaskTracker::new(), Vital::new());
    let readiness = Readiness::new(&metrics);
    let past = Past::new(config.history.events, stop.accepting.clone());
    let operator = Admin::<Store>::new(readiness.clone(), metrics.clone(), clock.clone()).noting(past.clone());
    let operator = operator.showing(showing::config(reload.in_effect()));
    let (admin_address, health_address) = (address(&admin)?, health.as_ref().map(address).transpose()?);
    let (parts, bodies) = (AdminParts::default(), Bodies::default());
    let following =
        Following { config: &config, clock: &clock, metrics: &metrics, reload: &reload, parts: &parts, vital: &vital };
    let (tls, clients, operators) = (following.secured()?, following.clients()?, following.operators()?);
    let status = StatusRoutes::new(operator.clone(), reload.level().clone());
    let access = serving::access(&config, &clock, &metrics, operators);
    let routes = serving::routes(&operator, &status, &access, &parts, (&config.listen.admin_prefix, &clock));
    let serving =
        Serving { config: &config, clock: &clock, metrics: &metrics, parts: &parts, vital: &vital, access, bodies };
    serving.port("admin", admin, tls.admin, routes.clone());
    if let Some(health) = health {
        serving.port("health", health, None, operator.health_router());
    }
    let pulse = notify::pulse(status, clock.clone(), parts.stop.clone());
    vital.spawn_endless(&parts.tasks, "notify", parts.stop.clone(), pulse);
    let policies = reload.dispatch();
    operator.set_reload_failure(reload.failed());
    let hangup = Reload::signal().map_err(|source| Error::System { doing: "listening for signals", source })?;
    vital.spawn_endless(&parts.tasks, "reload", parts.stop.clone(), reload.run(hangup, parts.stop.clone()));

    let store = open_store(&config, &clock, &metrics, &vital).await?;
    let outbox = store.outbox.clone();
    // Only now: holding the store's lock proves that no other daemon uses the socket file that is replaced here.
    let (mut unix, admin_unix) = (unix.open()?, serving.socket(admin_unix, &routes)?);
    history::keep(&config, (&outbox, &past), (&clock, &metrics), &TaskTracker::new()).await;
    operator.set_outbox(Some(outbox.clone()));
    let Clients { shared, lambda, passthrough, sqs } = Clients::load(&config, &clock, own, &operator).await?;

    let leasing = || stop.leasing.clone();
    let dispatch = Dispatch::new(outbox.clone(), lambda, config.dispatch.clone(), clock.clone(), metrics.clone());
    operator.set_dispatch(dispatch.status());
    vital.spawn(&stages, "dispatch", leasing(), dispatch.following(policies).noting(past.clone()).run(stop.clone()));
    let letters =
        DeadLetters::new(outbox.clone(), sqs.clone(), config.dead_letter.clone(), clock.clone(), metrics.clone());
    vital.spawn(&stages, "dead letters", leasing(), letters.noting(past.clone()).run(stop.clone()));

    let ingest_addresses = ingest.iter().map(address).collect::<Result<Vec<_>, _>>()?.join(" ");
    operator.set_settings(admin_settings(&config, &shared));
    let home = config.ingest.home.clone().or_region(shared.region());
    let party = handing::party(&clock, &home);
    let settings = ingest::Settings { home, ..config.ingest.clone() };
    let taking = (&outbox, &sqs, &party, &readiness);
    handing::take_from_queue(&config, taking, (&clock, &metrics), (&vital, &stages, &stop))?;
    let wanted = handing::wanted(&config, &operator);
    let handing = Handing::new(&config, (&party, &sqs), (&outbox, &past), &clock, &metrics, wanted)?;
    let on_request = handing::on_request(handing.as_ref(), stop.leasing.clone());
    vital.spawn(&stages, "hand-off", leasing(), on_request);
    let connections_max = descriptors::connections(open_files, &config, 3 * ADMIN_CONNECTIONS_MAX);
    let server = ingest_server(limits(&settings, connections_max), &clock, &metrics, &stop, &door);
    let closed = Door::new(outbox, clock, metrics, settings).leaving(door.clone()).recalling(past.clone());
    let closed = closed.marked(shared.hop()).ruled(config.rules.clone()).called(config.listen.ingest_hosts.clone());
    let closed = closed.receiving(handing::reception(&config, &party, &readiness));
    let opened = closed.passing(passthrough, config.passthrough.clone()).knowing(Some(clients));
    let (accepting, own_uid) = (|| stop.accepting.clone(), rustix::process::geteuid().as_raw());
    for unix in unix.listeners.drain(..) {
        let serving = server.clone().serve(unix, opened.clone().called(Hosts::any()).behind_a_file(own_uid).service());
        vital.spawn_endless(&door, "ingest", accepting(), serving);
    }
    for ingest in ingest {
        let serving = server.clone().serve(Port::new(ingest, tls.ingest.clone()), opened.service());
        vital.spawn_endless(&door, "ingest", accepting(), serving);
    }

    announce(&config, &readiness, [ingest_addresses, admin_address, health_address.unwrap_or_default()]);
    let (unix, grace) = ([unix, admin_unix], config.grace);
    Ok(Running { store, operator, readiness, stop, vital, door, stages, admin: parts, unix, grace, handing, past })
}

/// The region of this machine's configuration, as a daemon finds it, and its client of SQS.
pub async fn place(config: &Config, clock: &Clock) -> Result<(Option<String>, Configured<aws::sqs::Sqs>), Error> {
    let region = config.lambda.region.as_deref();
    let shared = aws::Shared::load(region, &config.outside, Own::nobody(), clock.clone()).await?;
    let sqs = Configured::of(aws::sqs::Sqs::new(&shared, &config.sqs))?;
    Ok((shared.region().map(str::to_owned), sqs))
}

/// Opens the store, with its upkeep as a vital task.
async fn open_store(config: &Config, clock: &Clock, metrics: &Arc<Metrics>, vital: &Vital) -> Result<OpenStore, Error> {
    let Opened { outbox, upkeep, closing } = open(config, clock, metrics).await?;
    let closed = CancellationToken::new();
    vital.spawn(&TaskTracker::new(), "upkeep of the outbox", closed.clone(), upkeep);
    Ok(OpenStore { outbox, closed, closing })
}

/// The server of the ingest listeners.
fn ingest_server(limits: Limits, clock: &Clock, metrics: &Metrics, stop: &Stop, door: &TaskTracker) -> Server {
    let connections = Some(metrics.ingest_connections.clone());
    let server = Server::new(limits, connections, clock.clone(), stop.accepting.clone(), door.clone());
    server.cut_by(stop.working.clone())
}

fn announce(config: &Config, readiness: &Readiness, [ingest, admin, health]: [String; 3]) {
    readiness.ready();
    let state_dir = config.state_dir.display().to_string();
    tracing::info!(ingest, admin, health, state_dir, "ready");
    notify::ready();
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
        actions: access::actions(),
        action_results: &actions::RESULTS,
    });
    metrics.start_time_seconds.set(clock.now().0 as f64 / 1_000.0);
    Ok(Arc::new(metrics))
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

/// The settings for the operator's API.
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
    let OutboxLimits { bytes_max, events_max, functions_max, .. } = config.outbox.limits;
    let disk_reserve = config.outbox.disk_reserve;
    let limits = problems::Limits { bytes_max, events_max, disk_reserve };
    let home = config.ingest.home.clone().or_region(shared.region());
    let rules = Rules { home, redrives_max: dead_letter.redrives_max };
    admin::Settings { rules, limits, functions_max, queues }
}

/// The settings of the shared outbox, with the region where the SDK finds it if no setting names it.
pub async fn shared_settings(config: &Config, clock: &Clock) -> Result<postgres::Settings, Error> {
    let no_database = || Error::System { doing: "finding the database", source: io::ErrorKind::NotFound.into() };
    let mut settings = config.postgres.clone().ok_or_else(no_database)?;
    if settings.realm.region.is_none() || settings.server.iam {
        let region = settings.realm.region.as_deref();
        let shared = aws::Shared::load(region, &config.outside, Own::nobody(), clock.clone()).await?;
        if settings.server.iam {
            let tokens = aws::rds::Tokens::new(&shared, region, clock.clone())?;
            settings.server.passwords = Some(Arc::new(tokens));
        }
        settings.realm.region = settings.realm.region.or_else(|| shared.region().map(str::to_owned));
    }
    Ok(settings)
}

/// Opens the store, which may take a while.
pub async fn open(config: &Config, clock: &Clock, metrics: &Arc<Metrics>) -> Result<Opened<Store>, Error> {
    let began = clock.instant();
    let opened = match &config.postgres {
        None => {
            tracing::info!(state_dir = %config.state_dir.display(), "opening the outbox");
            let settings = config.outbox.clone();
            let opened = embedded::open(&config.state_dir, settings, clock.clone(), metrics.clone()).await?;
            Opened { outbox: Store::Embedded(opened.outbox), upkeep: opened.upkeep, closing: opened.closing }
        }
        Some(_) => {
            let mut settings = shared_settings(config, clock).await?;
            if settings.member.is_empty() {
                settings.member = postgres::member_name(&config.state_dir, clock);
            }
            if embedded::store::is_in(&config.state_dir)
                && matches!(embedded::store::imported(&config.state_dir), Ok(None))
            {
                tracing::warn!(
                    state_dir = %config.state_dir.display(),
                    "the state directory has a local outbox, whose events nobody delivers. If there may be some, import them by \
                     `sendoff postgres import`"
                );
            }
            tracing::info!(database = settings.server.shown(), member = settings.member, "opening the shared outbox");
            let opened = postgres::open(settings, clock.clone(), metrics.clone()).await?;
            Opened { outbox: Store::Postgres(opened.outbox), upkeep: opened.upkeep, closing: opened.closing }
        }
    };
    let census = opened.outbox.census().await.unwrap_or_default();
    // Creates the series of every known function before they count.
    for function in census.lanes.keys() {
        metrics.function_label(function);
    }
    tracing::info!(events = census.events, bytes = census.bytes, functions = census.lanes.len(), took = ?began.elapsed(), "outbox is open");
    Ok(opened)
}
