//! `GET /v1/status`: the daemon in one answer. `PUT /v1/log-level`, and `/v1/drain`: what an operator changes while it runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use http::StatusCode;
use prometheus::core::Collector;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::problems::{Facts, problems};
use super::{Admin, api};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::outbox::{Census, Outbox, Place};
use crate::telemetry::LogLevel;

/// Seconds over which rates are measured, at most: one sample a second.
const WINDOW: usize = 60;

/// Why the daemon is not ready while an operator empties it.
const DRAIN: &str = "draining on request";

/// What readiness says before the outbox is open.
const STARTING: &str = "starting";

/// The daemon in one value: what `GET /v1/status` answers and `sendoff status` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub version: String,
    /// `ready`, or why it is not.
    pub state: String,
    pub ready: bool,
    pub uptime_seconds: f64,
    pub log_level: String,
    pub outbox: OutboxCounts,
    /// Since the start of the process.
    pub totals: Totals,
    pub rates: Rates,
    /// Functions whose lane is held for a reason that is not its events' fault.
    pub held: Vec<String>,
    /// What keeps it from delivering, with what to do.
    #[serde(default)]
    pub problems: Vec<api::Problem>,
}

/// What is stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutboxCounts {
    pub events: u64,
    pub ready: u64,
    pub waiting: u64,
    pub scheduled: u64,
    pub buried: u64,
    /// Being attempted or shipped; each counts where it rests, too.
    pub leased: u64,
    pub functions: u64,
    /// Idempotency keys that are remembered.
    pub keys: u64,
    pub bytes: u64,
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
    /// Of the oldest event that is ready or waiting.
    pub oldest_age_seconds: f64,
}

/// Counts of the process's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub accepted: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub attempts: u64,
    pub delivered: u64,
    pub retries: u64,
    pub buried: u64,
    pub shipped: u64,
}

/// What happens a second, over the last `window_seconds`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    pub window_seconds: f64,
    pub accepted_per_second: f64,
    pub attempts_per_second: f64,
    pub delivered_per_second: f64,
    pub buried_per_second: f64,
}

/// What these handlers know. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Status<O> {
    admin: Admin<O>,
    level: LogLevel,
    samples: Arc<Mutex<VecDeque<(UnixMillis, Totals)>>>,
}

impl<O: Outbox> Status<O> {
    pub fn new(admin: Admin<O>, level: LogLevel) -> Self {
        Self { admin, level, samples: Arc::default() }
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/status", get(status::<O>))
            .route("/v1/log-level", get(log_level::<O>).put(set_log_level::<O>))
            .route("/v1/drain", put(drain::<O>).delete(end_drain::<O>))
            .with_state(self.clone())
    }

    pub fn is_starting(&self) -> bool {
        self.admin.readiness.why_not() == Some(STARTING)
    }

    /// Notes the counts of now, for the rates.
    pub fn sample(&self) {
        let now = (self.admin.clock.now(), self.totals());
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        while samples.len() >= WINDOW {
            samples.pop_front();
        }
        samples.push_back(now);
    }

    /// Whether the outbox answers a question within `patience`.
    pub async fn outbox_answers(&self, patience: Duration) -> bool {
        let Some(outbox) = self.admin.outbox() else { return true };
        let question = outbox.find(EventId::from_bytes([0; 16]));
        tokio::time::timeout(patience, question).await.is_ok_and(|answer| answer.is_ok())
    }

    /// All of it; none while there is no outbox that answers.
    pub async fn summary(&self) -> Option<Summary> {
        let census = self.admin.outbox()?.census().await.ok()?;
        let Admin { metrics, clock, readiness, .. } = &self.admin;
        let now = clock.now();
        let totals = self.totals();
        let why_not = readiness.why_not();
        let started = UnixMillis((metrics.start_time_seconds.get() * 1_000.0) as u64);
        Some(Summary {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: why_not.unwrap_or("ready").to_owned(),
            ready: why_not.is_none(),
            uptime_seconds: now.since(started).as_secs_f64(),
            log_level: self.level.get(),
            outbox: counts(&census, now),
            totals,
            rates: self.rates(now, totals),
            held: held(metrics),
            problems: Vec::new(),
        })
    }

    /// All of it, and the problems.
    async fn whole(&self) -> Option<Summary> {
        let mut summary = self.summary().await?;
        let Admin { metrics, .. } = &self.admin;
        let outbox = self.admin.outbox()?;
        let unwell = self.admin.unwell().map(|why| format!("the {why}"));
        let lanes = outbox.lanes(0).await.ok()?.lanes;
        let count = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or_default();
        let facts = Facts {
            not_ready: unwell.or_else(|| self.admin.readiness.why_not().map(str::to_owned)),
            missing: self.admin.missing(),
            not_reloaded: self.admin.not_reloaded(),
            lanes: self.admin.lane_status().await,
            paused: lanes.into_iter().filter(|lane| lane.paused).map(|lane| lane.function).collect(),
            census: outbox.census().await.ok()?,
            limits: self.admin.settings().map(|settings| settings.limits).unwrap_or_default(),
            unreadable: count(&metrics.outbox_unreadable_events),
            set_aside: count(&metrics.outbox_damaged_stores),
            unshippable: sum_where(&metrics.deadletter_unshippable, ""),
            ship_failures: by_label(&metrics.deadletter_ship_failures),
            log_dropped: metrics.log_dropped.get(),
        };
        summary.problems = problems(&facts);
        Some(summary)
    }

    fn totals(&self) -> Totals {
        let metrics = &self.admin.metrics;
        let sum = |counter: &prometheus::IntCounterVec| sum_where(counter, "");
        Totals {
            accepted: sum(&metrics.ingest_accepted),
            duplicates: sum(&metrics.ingest_duplicates),
            refused: sum(&metrics.ingest_refused),
            attempts: sum(&metrics.dispatch_attempts),
            delivered: sum_where(&metrics.dispatch_attempts, "delivered"),
            retries: sum(&metrics.dispatch_retries),
            buried: sum(&metrics.deadletter_buried),
            shipped: sum(&metrics.deadletter_shipped),
        }
    }

    fn rates(&self, now: UnixMillis, totals: Totals) -> Rates {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(&(since, before)) = samples.front() else { return Rates::default() };
        Rates::between(before, totals, now.since(since))
    }
}

impl Rates {
    /// The means between two readings of the counts.
    pub fn between(before: Totals, after: Totals, window: Duration) -> Self {
        let seconds = window.as_secs_f64();
        if seconds <= 0.0 {
            return Self::default();
        }
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        Self {
            window_seconds: seconds,
            accepted_per_second: rate(before.accepted, after.accepted),
            attempts_per_second: rate(before.attempts, after.attempts),
            delivered_per_second: rate(before.delivered, after.delivered),
            buried_per_second: rate(before.buried, after.buried),
        }
    }
}

/// The sum of a counter's series; only of those with the value `outcome` in some label, unless that is empty.
fn sum_where(counter: &prometheus::IntCounterVec, outcome: &str) -> u64 {
    let families = counter.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    series
        .filter(|metric| outcome.is_empty() || metric.get_label().iter().any(|label| label.value() == outcome))
        .map(|metric| metric.get_counter().get_value() as u64)
        .sum()
}

/// The series of a counter with one label that counted anything.
fn by_label(counter: &prometheus::IntCounterVec) -> BTreeMap<String, u64> {
    let families = counter.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let counted = series.filter_map(|metric| {
        let count = metric.get_counter().get_value() as u64;
        (count > 0).then_some((metric.get_label().first()?.value().to_owned(), count))
    });
    counted.collect()
}

/// The functions whose lane is held, as their label says.
fn held(metrics: &crate::metrics::Metrics) -> Vec<String> {
    let families = metrics.dispatch_held.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let held = series.filter(|metric| metric.get_gauge().get_value() > 0.0);
    held.filter_map(|metric| Some(metric.get_label().first()?.value().to_owned())).collect()
}

fn counts(census: &Census, now: UnixMillis) -> OutboxCounts {
    let place =
        |place: Place| census.lanes.values().filter_map(|lane| lane.by_place.get(&place)).map(|c| c.events).sum();
    let oldest = census.lanes.values().filter_map(|lane| lane.oldest_ready).min();
    OutboxCounts {
        events: census.events,
        ready: place(Place::Ready),
        waiting: place(Place::Waiting),
        scheduled: place(Place::Scheduled),
        buried: place(Place::Buried),
        leased: census.lanes.values().map(|lane| lane.leased).sum(),
        functions: census.lanes.len() as u64,
        keys: census.keys,
        bytes: census.bytes,
        disk_bytes: census.disk_bytes,
        disk_free_bytes: census.disk_free_bytes,
        oldest_age_seconds: oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64()),
    }
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message }))).into_response()
}

async fn status<O: Outbox>(State(status): State<Status<O>>) -> Response {
    match status.whole().await {
        Some(summary) => Json(summary).into_response(),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, "the outbox is not open, or does not answer"),
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Level {
    level: String,
}

async fn log_level<O: Outbox>(State(status): State<Status<O>>) -> Json<Level> {
    Json(Level { level: status.level.get() })
}

async fn set_log_level<O: Outbox>(State(status): State<Status<O>>, Json(asked): Json<Level>) -> Response {
    let before = status.level.get();
    match status.level.set(&asked.level) {
        Ok(()) => {
            tracing::info!(before, level = asked.level, "log level changed");
            Json(asked).into_response()
        }
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// Not ready from now on, so that load balancers send clients elsewhere; who comes all the same is served.
async fn drain<O: Outbox>(State(status): State<Status<O>>) -> Response {
    match status.admin.readiness.why_not() {
        None => {
            status.admin.readiness.not_ready(DRAIN);
            tracing::info!("draining on request: not ready, still accepting and delivering");
            StatusCode::NO_CONTENT.into_response()
        }
        Some(DRAIN) => StatusCode::NO_CONTENT.into_response(),
        Some(why) => problem(StatusCode::CONFLICT, &format!("not ready already: {why}")),
    }
}

async fn end_drain<O: Outbox>(State(status): State<Status<O>>) -> Response {
    match status.admin.readiness.why_not() {
        Some(DRAIN) => {
            status.admin.readiness.ready();
            tracing::info!("ready again");
            StatusCode::NO_CONTENT.into_response()
        }
        None => StatusCode::NO_CONTENT.into_response(),
        Some(why) => problem(StatusCode::CONFLICT, &format!("not ready for another reason: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_over_their_time() {
        let before = Totals { accepted: 10, delivered: 4, ..Totals::default() };
        let after = Totals { accepted: 30, delivered: 4, ..before };
        let found = Rates::between(before, after, Duration::from_secs(4));
        assert_eq!((found.accepted_per_second, found.delivered_per_second, found.window_seconds), (5.0, 0.0, 4.0));
        assert_eq!(Rates::between(before, after, Duration::ZERO), Rates::default());
    }

    #[test]
    fn counters_are_added_up_over_functions() {
        let metrics = crate::metrics::Metrics::new().unwrap();
        metrics.dispatch_attempts.with_label_values(&["a", "delivered"]).inc_by(2);
        metrics.dispatch_attempts.with_label_values(&["b", "delivered"]).inc();
        metrics.dispatch_attempts.with_label_values(&["b", "lost"]).inc_by(4);
        assert_eq!(sum_where(&metrics.dispatch_attempts, ""), 7);
        assert_eq!(sum_where(&metrics.dispatch_attempts, "delivered"), 3);
    }

    #[test]
    fn held_lanes_are_named() {
        let metrics = crate::metrics::Metrics::new().unwrap();
        metrics.dispatch_held.with_label_values(&["a"]).set(0);
        metrics.dispatch_held.with_label_values(&["b"]).set(1);
        assert_eq!(held(&metrics), ["b"]);
    }
}
