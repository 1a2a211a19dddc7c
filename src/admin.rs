//! The operator's listener: probes, metrics, and what the daemon is doing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderValue, StatusCode, header};
use tokio::sync::watch;

use self::series::Series;
use crate::clock::Clock;
use crate::deadletter::admit;
use crate::dispatch::status::{self as lanes, Status};
use crate::event::FunctionName;
use crate::metrics::Metrics;
use crate::outbox::operator::{Fleet, Operator};
use crate::outbox::{self, Census, Health, Outbox, Place};
use crate::past::Past;

pub mod api;

pub mod access;

pub mod actions;

pub mod console;

pub mod operators;

pub mod dead_letters;

pub mod functions;

pub mod events;

mod lookup;

pub mod openapi;

pub mod problems;

mod refusal;

pub mod status;

pub mod guard;

pub mod bodies;

pub mod whoami;

pub mod snapshot;

pub mod series;

mod recent;

mod groups;

mod keys;

mod others;

pub mod bulk;

pub mod prefix;

mod shown_config;

/// Whether the daemon can keep its promises, and if not, why. Cheap to clone. All clones are one.
#[derive(Clone, Debug)]
pub struct Readiness {
    why_not: Arc<Mutex<Option<&'static str>>>,
    metrics_ready: prometheus::IntGauge,
}

impl Readiness {
    /// Not ready: starting.
    pub fn new(metrics: &Metrics) -> Self {
        Self { why_not: Arc::new(Mutex::new(Some("starting"))), metrics_ready: metrics.ready.clone() }
    }

    pub fn ready(&self) {
        self.set(None);
    }

    pub fn not_ready(&self, why: &'static str) {
        self.set(Some(why));
    }

    fn set(&self, why_not: Option<&'static str>) {
        self.metrics_ready.set(i64::from(why_not.is_none()));
        *self.why_not.lock().unwrap_or_else(PoisonError::into_inner) = why_not;
    }

    pub fn is_ready(&self) -> bool {
        self.why_not().is_none()
    }

    fn why_not(&self) -> Option<&'static str> {
        *self.why_not.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of the configuration that the operator's API needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The rules for letters that come back.
    pub rules: admit::Rules,
    pub limits: problems::Limits,
    /// The most functions in the store.
    pub functions_max: u64,
    /// Where dead letters go.
    pub queues: api::Queues,
}

/// The state of the handlers. The listener answers before the outbox is open, so the outbox is set later.
#[derive(Clone)]
pub struct Admin<O> {
    readiness: Readiness,
    metrics: Arc<Metrics>,
    clock: Clock,
    outbox: Arc<Mutex<Option<O>>>,
    settings: Arc<Mutex<Option<Settings>>>,
    status: Arc<Mutex<Option<Status>>>,
    /// Held while the store's gauges are set and gathered.
    rendering: Arc<Mutex<()>>,
    /// What the daemon lacks to reach AWS at all, in words.
    missing: Arc<Mutex<Vec<String>>>,
    /// Whether an operator asks for a hand-off. `None` without a target.
    hand_off: Arc<Mutex<Option<watch::Sender<bool>>>>,
    /// Why the latest reload of the configuration changed nothing.
    not_reloaded: Arc<Mutex<Option<watch::Receiver<Option<String>>>>>,
    /// Tells the configuration in effect.
    config: Option<Arc<ShowConfig>>,
    /// What happened lately.
    past: Past,
    /// What was measured lately.
    series: Series,
}

/// Tells the configuration in effect.
pub type ShowConfig = dyn Fn(Option<&str>) -> Vec<api::ConfigEntry> + Send + Sync;

/// What several answers are made of: one look at the store and at dispatch, of all daemons that share the store.
struct Look {
    census: Census,
    paused: BTreeSet<FunctionName>,
    lanes: lanes::Lanes,
    fleet: Option<Fleet>,
}

impl<O: Operator> Admin<O> {
    pub fn new(readiness: Readiness, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let (outbox, settings, status, rendering, missing, hand_off, not_reloaded) = Default::default();
        let (config, past, series) = (None, Past::default(), Series::new(clock.clone()));
        Self {
            readiness,
            metrics,
            clock,
            outbox,
            settings,
            status,
            rendering,
            missing,
            hand_off,
            not_reloaded,
            config,
            past,
            series,
        }
    }

    /// Reads and notes there what happens to events.
    pub fn noting(self, past: Past) -> Self {
        Self { past, ..self }
    }

    /// Opens the routes that need the outbox; without one, closes them.
    pub fn set_outbox(&self, outbox: Option<O>) {
        *self.outbox.lock().unwrap_or_else(PoisonError::into_inner) = outbox;
    }

    /// Probes and metrics alone, which change nothing.
    pub fn health_router(&self) -> Router {
        self.open_routes().with_state(self.clone())
    }

    fn open_routes(&self) -> Router<Self> {
        Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz::<O>))
            .route("/metrics", get(metrics::<O>))
    }

    pub fn router(&self) -> Router {
        self.open_routes()
            .merge(dead_letters::router())
            .merge(functions::router())
            .merge(events::router())
            .route("/v1/recent", get(recent::list::<O>))
            .route("/v1/keys", get(keys::show::<O>))
            .route("/v1/dead-letters/groups", get(groups::list::<O>))
            .route("/v1/config", get(shown_config::show::<O>))
            .route("/v1/openapi.json", get(openapi::show))
            .with_state(self.clone())
            .merge(self.series.router())
            .merge(console::router())
    }
}

impl<O: Outbox> Admin<O> {
    /// Lets operators ask for a hand-off. Returns whether one does.
    pub fn hand_offs(&self) -> watch::Receiver<bool> {
        let (wanted, told) = watch::channel(false);
        *self.hand_off.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted);
        told
    }

    /// Begins or ends a hand-off. Returns false without a target.
    fn ask_for_hand_off(&self, wanted: bool) -> bool {
        let hand_off = self.hand_off.lock().unwrap_or_else(PoisonError::into_inner);
        hand_off.as_ref().is_some_and(|asked| {
            asked.send_replace(wanted);
            true
        })
    }

    /// What the daemon lacks to reach AWS at all.
    pub fn set_missing(&self, missing: Vec<String>) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }

    /// Where to look for why the latest reload of the configuration changed nothing.
    pub fn set_reload_failure(&self, failed: watch::Receiver<Option<String>>) {
        *self.not_reloaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed);
    }

    fn not_reloaded(&self) -> Option<String> {
        let failed = self.not_reloaded.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().and_then(|failed| failed.borrow().clone())
    }

    pub fn set_settings(&self, settings: Settings) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
    }

    /// Shows this configuration.
    pub fn showing(self, config: Arc<ShowConfig>) -> Self {
        Self { config: Some(config), ..self }
    }

    fn settings(&self) -> Result<Settings, Problem> {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        settings.ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is starting; try again"))
    }

    fn missing(&self) -> Vec<String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn lane_status(&self) -> lanes::Lanes {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match status {
            Some(status) => status.lanes().await,
            None => lanes::Lanes::new(),
        }
    }

    fn store(&self) -> Result<O, Problem> {
        let starting = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the outbox is not open");
        self.outbox().ok_or_else(starting)
    }

    /// What ails the outbox, in words.
    fn unwell(&self) -> Option<String> {
        match self.outbox()?.health() {
            Health::Well => None,
            Health::Away { why } => Some(format!("outbox is away: {why}")),
            Health::Poisoned { why } => Some(format!("outbox is poisoned: {why}")),
        }
    }

    fn outbox(&self) -> Option<O> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a request is not answered as asked.
struct Problem {
    status: StatusCode,
    message: String,
    /// When to ask again, if that is known.
    retry_after: Option<Duration>,
}

impl Problem {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }
}

impl From<outbox::Error> for Problem {
    fn from(error: outbox::Error) -> Self {
        let (status, retry_after) = match &error {
            outbox::Error::Away { retry_after, .. } => (StatusCode::SERVICE_UNAVAILABLE, Some(*retry_after)),
            outbox::Error::Poisoned { .. } | outbox::Error::Closed => (StatusCode::SERVICE_UNAVAILABLE, None),
            outbox::Error::Unreadable { .. } => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        Self { status, message: error.to_string(), retry_after }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(api::Message { message: self.message })).into_response();
        if let Some(delay) = self.retry_after {
            // Whole seconds, rounded up.
            let seconds = (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Tell whether the process runs
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "livez",
    responses((status = 200, description = "It runs", body = String, content_type = "text/plain"))
)]
async fn livez() -> &'static str {
    "live\n"
}

/// Tell whether the daemon can keep its promises
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    responses(
        (status = 200, description = "Ready", body = String, content_type = "text/plain"),
        (status = 503, description = "Not ready, and why", body = String, content_type = "text/plain"),
    )
)]
async fn readyz<O: Outbox>(State(admin): State<Admin<O>>) -> Response {
    match (admin.unwell(), admin.readiness.why_not()) {
        (Some(why), _) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        (None, Some(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        (None, None) => (StatusCode::OK, "ready\n".to_owned()),
    }
    .into_response()
}

/// Metrics, in the text format of Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    responses(
        (status = 200, description = "docs/metrics.md lists them", body = String, content_type = "text/plain"),
        (status = 500, description = "They cannot be written", body = api::Message),
    )
)]
async fn metrics<O: Outbox>(State(admin): State<Admin<O>>) -> Response {
    // If the store does not answer, its gauges keep their values, and all other metrics are still current.
    let census = match admin.outbox() {
        Some(outbox) => outbox.census().await.ok(),
        None => None,
    };
    // Scrapers may come at the same time. Each gathers its values before the next one changes the gauges.
    let _one_at_a_time = admin.rendering.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(census) = census {
        show(&census, &admin.metrics, &admin.clock);
    }
    match admin.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Writes the store's counts into the gauges. Functions beyond the label cap are added up.
fn show(census: &Census, metrics: &Metrics, clock: &Clock) {
    metrics.outbox_events.reset();
    metrics.outbox_bytes.reset();
    metrics.outbox_oldest_age_seconds.reset();
    let now = clock.now();
    for (function, lane) in &census.lanes {
        let label = metrics.function_label(function);
        for place in Place::ALL {
            let count = lane.by_place.get(&place).copied().unwrap_or_default();
            metrics.outbox_events.with_label_values(&[label, place.as_str()]).add(gauge(count.events));
            metrics.outbox_bytes.with_label_values(&[label, place.as_str()]).add(gauge(count.bytes));
        }
        let age = lane.oldest_ready.map_or(0.0, |oldest| now.since(clock.present(oldest)).as_secs_f64());
        let shown = metrics.outbox_oldest_age_seconds.with_label_values(&[label]);
        shown.set(shown.get().max(age));
    }
    metrics.clock_offset_seconds.set(clock.stepped() as f64 / 1_000.0);
    metrics.outbox_disk_bytes.set(gauge(census.disk_bytes));
    metrics.outbox_disk_free_bytes.set(gauge(census.disk_free_bytes));
    metrics.outbox_keys.set(gauge(census.keys));
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
