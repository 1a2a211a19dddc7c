//! `GET /v1/status`: the daemon in one answer. `PUT /v1/log-level`, and `/v1/drain`: what an operator changes while it runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::routing::{get, put};
use axum::{Json, Router};
use http::StatusCode;
use prometheus::core::Collector;

use super::actions::{Note, Noted};
use super::api::{self, DrainQuery, OutboxCounts, Rates, Summary, Totals};
use super::problems::{Facts, problems};
use super::series::{self, Full, Reading};
use super::{Admin, Look, Problem};
use crate::clock::{Clock, UnixMillis};
use crate::event::{EventId, FunctionName};
use crate::outbox::operator::Operator;
use crate::outbox::{Census, Place};
use crate::telemetry::LogLevel;

/// Seconds over which rates are measured, at most: one sample a second.
const WINDOW: usize = 60;

/// How long the beat waits for the store. A store that takes longer leaves a gap in the charts.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why the daemon is not ready while an operator empties it.
const DRAIN: &str = "draining on request";

/// What readiness says before the outbox is open.
const STARTING: &str = "starting";

/// What these handlers know. Cheap to clone. All clones are one.
#[derive(Clone)]
pub struct StatusRoutes<O> {
    admin: Admin<O>,
    level: LogLevel,
    samples: Arc<Mutex<VecDeque<(UnixMillis, Totals)>>>,
}

impl<O: Operator> StatusRoutes<O> {
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

    pub(super) fn admin(&self) -> &Admin<O> {
        &self.admin
    }

    /// Notes the counts of now, for rates and charts.
    pub async fn sample(&self) {
        let Admin { clock, metrics, series, .. } = &self.admin;
        let now = (clock.now(), self.totals());
        let full = match series.wants_full() {
            true => {
                let overview = match self.admin.outbox() {
                    Some(outbox) => tokio::time::timeout(PATIENCE, outbox.overview()).await.ok().and_then(Result::ok),
                    None => None,
                };
                Some(Full::read(metrics, overview.as_ref().map(|overview| &overview.census), now.0, clock))
            }
            false => None,
        };
        series.push(Reading { at: now.0, totals: now.1, commits: series::commits(metrics), full });
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

    /// All of it. None while there is no outbox that answers.
    pub async fn summary(&self) -> Option<Summary> {
        let census = self.admin.outbox()?.census().await.ok()?;
        Some(self.counted(&census))
    }

    /// All of it but the problems.
    fn counted(&self, census: &Census) -> Summary {
        let Admin { metrics, clock, readiness, .. } = &self.admin;
        let now = clock.now();
        let totals = self.totals();
        let why_not = readiness.why_not();
        let started = UnixMillis((metrics.start_time_seconds.get() * 1_000.0) as u64);
        Summary {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: why_not.unwrap_or("ready").to_owned(),
            ready: why_not.is_none(),
            uptime_seconds: now.since(started).as_secs_f64(),
            log_level: self.level.get(),
            outbox: counts(census, now),
            totals,
            rates: self.rates(now, totals),
            held: held(metrics),
            fleet: None,
            problems: Vec::new(),
        }
    }

    /// All of it, and the problems, as one look finds them.
    pub(super) fn whole(&self, look: &Look) -> Summary {
        let Admin { metrics, clock, .. } = &self.admin;
        let count = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or_default();
        let unwell = self.admin.unwell().map(|why| format!("the {why}"));
        let settings = self.admin.settings();
        let facts = Facts {
            now: clock.now(),
            stepped: clock.stepped(),
            not_ready: unwell.or_else(|| self.admin.readiness.why_not().map(str::to_owned)),
            missing: self.admin.missing(),
            not_reloaded: self.admin.not_reloaded(),
            lanes: look.lanes.clone(),
            paused: look.paused.iter().cloned().collect(),
            ages: ages(look, clock),
            census: look.census.clone(),
            limits: settings.as_ref().map(|settings| settings.limits).unwrap_or_default(),
            without_queue: settings.map(|settings| without_queue(&settings.queues, &look.census)).unwrap_or_default(),
            certificate_expires: Some(metrics.tls_certificate_expiry_timestamp_seconds.get())
                .filter(|seconds| *seconds > 0.0)
                .map(|seconds| UnixMillis((seconds * 1_000.0) as u64)),
            unreadable: count(&metrics.outbox_unreadable_events),
            set_aside: count(&metrics.outbox_damaged_stores),
            unshippable: sum_where(&metrics.deadletter_unshippable, ""),
            ship_failures: by_label(&metrics.deadletter_ship_failures),
            log_dropped: metrics.log_dropped.get(),
            fleet: look.fleet.clone(),
        };
        let summary = self.counted(&look.census);
        let held = match look.fleet {
            Some(_) => {
                let held = look.lanes.iter().filter(|(_, lane)| lane.held.is_some());
                held.map(|(name, _)| name.as_str().to_owned()).collect()
            }
            None => summary.held.clone(),
        };
        Summary { problems: problems(&facts), held, fleet: look.fleet.as_ref().map(Into::into), ..summary }
    }

    fn totals(&self) -> Totals {
        let metrics = &self.admin.metrics;
        let sum = |counter: &prometheus::IntCounterVec| sum_where(counter, "");
        let [attempts, delivered, throttled] = sums_where(&metrics.dispatch_attempts, ["", "delivered", "throttled"]);
        Totals {
            accepted: sum(&metrics.ingest_accepted),
            duplicates: sum(&metrics.ingest_duplicates),
            refused: sum(&metrics.ingest_refused),
            attempts,
            delivered,
            throttled,
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

/// The sum of a counter's series; only of those with the value `outcome` in some label, unless that is empty.
fn sum_where(counter: &prometheus::IntCounterVec, outcome: &str) -> u64 {
    let [sum] = sums_where(counter, [outcome]);
    sum
}

/// Several such sums at once, because reading the series takes longer than adding them up.
fn sums_where<const N: usize>(counter: &prometheus::IntCounterVec, outcomes: [&str; N]) -> [u64; N] {
    let families = counter.collect();
    let mut sums = [0; N];
    for metric in families.iter().flat_map(|family| family.get_metric()) {
        let count = metric.get_counter().get_value() as u64;
        for (sum, outcome) in sums.iter_mut().zip(outcomes) {
            let fits = outcome.is_empty() || metric.get_label().iter().any(|label| label.value() == outcome);
            *sum += if fits { count } else { 0 };
        }
    }
    sums
}

/// The ages of the oldest events that are ready or waiting, with those at which they are buried.
fn ages(look: &Look, clock: &Clock) -> Vec<(FunctionName, Duration, Duration)> {
    let now = clock.now();
    let ages = look.census.lanes.iter().filter_map(|(name, lane)| {
        let age_max = look.lanes.get(name).map(|lane| lane.age_max)?;
        Some((name.clone(), now.since(clock.present(lane.oldest_ready?)), age_max))
    });
    ages.collect()
}

/// Functions with dead letters that have no queue to go to, and how many there are.
fn without_queue(queues: &api::Queues, census: &Census) -> Vec<(FunctionName, u64)> {
    let has_queue = |name: &FunctionName| {
        queues.queue_url.is_some() || queues.functions.iter().any(|queue| name.fits(&queue.function))
    };
    let buried = census.lanes.iter().filter_map(|(name, lane)| {
        let count = lane.by_place.get(&Place::Buried).map_or(0, |count| count.events);
        (count > 0 && !has_queue(name)).then(|| (name.clone(), count))
    });
    buried.collect()
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
        in_flight: census.lanes.values().map(|lane| lane.leased).sum(),
        functions: census.lanes.len() as u64,
        keys: census.keys,
        bytes: census.bytes,
        disk_bytes: census.disk_bytes,
        disk_free_bytes: census.disk_free_bytes,
        oldest_age_seconds: oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64()),
    }
}

/// Show what the daemon is doing
///
/// Counts, rates, and what keeps it from delivering, with what to do about it.
#[utoipa::path(
    get,
    path = "/v1/status",
    operation_id = "show_status",
    responses(
        (status = 200, description = "The daemon in one answer", body = Summary),
    )
)]
pub(super) async fn status<O: Operator>(State(status): State<StatusRoutes<O>>) -> Result<Json<Summary>, Problem> {
    let look = status.admin.look().await?;
    Ok(Json(status.whole(&look)))
}

/// Show the log's level
#[utoipa::path(
    get,
    path = "/v1/log-level",
    operation_id = "show_log_level",
    responses(
        (status = 200, description = "The level in effect", body = api::LogLevel),
    )
)]
pub(super) async fn log_level<O: Operator>(State(status): State<StatusRoutes<O>>) -> Json<api::LogLevel> {
    Json(api::LogLevel { level: status.level.get() })
}

/// Change the log's level
///
/// Until the next restart, or until a reload brings another one from the configuration.
#[utoipa::path(
    put,
    path = "/v1/log-level",
    operation_id = "set_log_level",
    request_body = api::LogLevel,
    responses(
        (status = 200, description = "The level in effect", body = api::LogLevel),
        (status = 400, description = "Not a level", body = api::Message),
    )
)]
pub(super) async fn set_log_level<O: Operator>(
    State(status): State<StatusRoutes<O>>,
    Json(asked): Json<api::LogLevel>,
) -> Result<Noted<Json<api::LogLevel>>, Problem> {
    let before = status.level.get();
    status.level.set(&asked.level).map_err(|error| Problem::bad(error.to_string()))?;
    let note = Note::on(format!("{before} -> {}", asked.level));
    Ok(Noted(Json(asked), note))
}

/// Become not ready, so that load balancers send clients elsewhere
///
/// Requests that still arrive are served, and events are delivered. With `hand_off`, events at rest are also handed over to
/// the targets of `handoff.to`, until the drain ends.
#[utoipa::path(
    put,
    path = "/v1/drain",
    operation_id = "drain",
    params(DrainQuery),
    responses(
        (status = 204, description = "Not ready"),
        (status = 409, description = "Not ready for another reason, or no target for a hand-off", body = api::Message),
    )
)]
pub(super) async fn drain<O: Operator>(
    State(status): State<StatusRoutes<O>>,
    Query(query): Query<DrainQuery>,
) -> Result<StatusCode, Problem> {
    if query.hand_off && !status.admin.ask_for_hand_off(true) {
        return Err(Problem::conflict("there is no target for a hand-off: set handoff.to"));
    }
    match status.admin.readiness.why_not() {
        None => {
            status.admin.readiness.not_ready(DRAIN);
            Ok(StatusCode::NO_CONTENT)
        }
        Some(DRAIN) => Ok(StatusCode::NO_CONTENT),
        Some(why) => Err(Problem::conflict(format!("not ready already: {why}"))),
    }
}

/// End a drain
#[utoipa::path(
    delete,
    path = "/v1/drain",
    operation_id = "end_drain",
    responses(
        (status = 204, description = "Ready"),
        (status = 409, description = "Not ready for another reason", body = api::Message),
    )
)]
pub(super) async fn end_drain<O: Operator>(State(status): State<StatusRoutes<O>>) -> Result<StatusCode, Problem> {
    status.admin.ask_for_hand_off(false);
    match status.admin.readiness.why_not() {
        Some(DRAIN) => {
            status.admin.readiness.ready();
            Ok(StatusCode::NO_CONTENT)
        }
        None => Ok(StatusCode::NO_CONTENT),
        Some(why) => Err(Problem::conflict(format!("not ready for another reason: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
