//! Charts without Prometheus: what was measured in the last five minutes and in the last hour, in rings of fixed size.
//!
//! The daemon's beat adds a [`Reading`] each second. Counters are read each time. Values that only the store knows are read
//! each second while somebody asks for the series. Otherwise they are read every [`COARSE`], with gaps in between.
//! Limits: [`FINE_MAX`] readings a second apart, [`COARSE_MAX`] readings ten seconds apart, [`LANES_MAX`] functions with
//! series of their own. That is under 1 MiB.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use prometheus::core::Collector;
use tokio::time::Instant;

use super::Problem;
use super::api::{self, LaneRates, SeriesQuery, SeriesView, Totals};
use crate::clock::{Clock, UnixMillis};
use crate::metrics::Metrics;
use crate::outbox::{Census, Place};

/// The most readings that are a second apart.
const FINE_MAX: usize = 300;

/// The most readings that are [`COARSE`] apart.
const COARSE_MAX: usize = 360;

/// The time between two complete readings if nobody asks.
const COARSE: Duration = Duration::from_secs(10);

/// The most functions with a series of their own: the busiest.
const LANES_MAX: usize = 50;

/// How long after a request somebody is assumed to be looking.
const LOOKING: Duration = Duration::from_secs(15);

/// How much busier another function must be to take the place of one that has a series.
const STICKY: f64 = 2.0;

/// The series of the whole daemon, in the order of the columns.
const ACCEPTED: usize = 0;
const REFUSED: usize = 1;
const ATTEMPTS: usize = 2;
const DELIVERED: usize = 3;
const THROTTLED: usize = 4;
const BURIED: usize = 5;
const SHIPPED: usize = 6;
const READY: usize = 7;
const WAITING: usize = 8;
const SCHEDULED: usize = 9;
const DEAD_LETTERS: usize = 10;
const OLDEST: usize = 11;
const IN_FLIGHT: usize = 12;
const DISK: usize = 13;
const DISK_FREE: usize = 14;
const COMMIT_P50: usize = 15;
const COMMIT_P99: usize = 16;
const COLUMNS: usize = 17;

/// The series of one function, in the order of the columns.
const LANE_ACCEPTED: usize = 0;
const LANE_ATTEMPTS: usize = 1;
const LANE_DELIVERED: usize = 2;
const LANE_THROTTLED: usize = 3;
const LANE_IN_FLIGHT: usize = 4;
const LANE_LIMIT: usize = 5;
const LANE_BACKLOG: usize = 6;
const LANE_COLUMNS: usize = 7;

/// The value of a gap.
const GAP: f32 = f32::NAN;

/// One reading of the beat.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    pub at: UnixMillis,
    pub totals: Totals,
    /// How many commits took at most so many seconds, since the start.
    pub commits: Vec<(f64, u64)>,
    /// The values that only the store knows.
    pub full: Option<Full>,
}

#[derive(Debug, Clone, Default)]
pub struct Full {
    pub lanes: BTreeMap<String, LaneCounts>,
    /// None while the store does not answer.
    pub stored: Option<Stored>,
}

/// Counts of one function since the start, and its gauges of now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LaneCounts {
    pub accepted: u64,
    pub attempts: u64,
    pub delivered: u64,
    pub throttled: u64,
    pub in_flight: f64,
    pub limit: f64,
    /// Events to be delivered. None if the store did not answer.
    pub backlog: Option<u64>,
}

/// The values that only the store knows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stored {
    pub by_place: [u64; 4],
    pub oldest_age: f64,
    pub in_flight: u64,
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
}

impl Full {
    pub fn read(metrics: &Metrics, census: Option<&Census>, now: UnixMillis, clock: &Clock) -> Self {
        let mut lanes = lane_counts(metrics);
        if let Some(census) = census {
            for (name, lane) in &mut lanes {
                let found = census.lanes.get(&crate::event::FunctionName::new(name));
                let events = |place| found.and_then(|lane| lane.by_place.get(&place)).map_or(0, |count| count.events);
                lane.backlog = Some([Place::Ready, Place::Waiting, Place::Scheduled].into_iter().map(events).sum());
            }
        }
        Self { lanes, stored: census.map(|census| Stored::of(census, now, clock)) }
    }
}

impl Stored {
    fn of(census: &Census, now: UnixMillis, clock: &Clock) -> Self {
        let events = |place: Place| {
            census.lanes.values().filter_map(|lane| lane.by_place.get(&place)).map(|count| count.events).sum()
        };
        let oldest = census.lanes.values().filter_map(|lane| lane.oldest_ready).min();
        Self {
            by_place: Place::ALL.map(events),
            oldest_age: oldest.map_or(0.0, |oldest| now.since(clock.present(oldest)).as_secs_f64()),
            in_flight: census.lanes.values().map(|lane| lane.leased).sum(),
            disk_bytes: census.disk_bytes,
            disk_free_bytes: census.disk_free_bytes,
        }
    }
}

/// The counts of every function that has a label of its own.
fn lane_counts(metrics: &Metrics) -> BTreeMap<String, LaneCounts> {
    let mut found: BTreeMap<String, LaneCounts> = BTreeMap::new();
    each(&metrics.ingest_accepted, |lane, _, value| lane.accepted += value as u64, &mut found);
    let attempts = |lane: &mut LaneCounts, outcome: &str, value: f64| {
        let count = value as u64;
        lane.attempts += count;
        lane.delivered += if outcome == "delivered" { count } else { 0 };
        lane.throttled += if outcome == "throttled" { count } else { 0 };
    };
    each(&metrics.dispatch_attempts, attempts, &mut found);
    each(&metrics.dispatch_in_flight, |lane, _, value| lane.in_flight = value, &mut found);
    each(&metrics.dispatch_limit, |lane, _, value| lane.limit = value, &mut found);
    found
}

/// Calls `add` with the lane, the other label's value and the value of each series.
fn each(family: &impl Collector, add: impl Fn(&mut LaneCounts, &str, f64), lanes: &mut BTreeMap<String, LaneCounts>) {
    for family in family.collect() {
        for metric in family.get_metric() {
            let label = |name: &str| metric.get_label().iter().find(|label| label.name() == name);
            let Some(function) = label("function") else { continue };
            let outcome = label("outcome").map(|label| label.value()).unwrap_or_default();
            // One of the two is 0, whichever the kind of the metric is.
            let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
            match lanes.get_mut(function.value()) {
                Some(lane) => add(lane, outcome, value),
                None => add(lanes.entry(function.value().to_owned()).or_default(), outcome, value),
            }
        }
    }
}

/// How many commits took at most so many seconds, since the start.
pub fn commits(metrics: &Metrics) -> Vec<(f64, u64)> {
    let families = metrics.outbox_flush_seconds.collect();
    let Some(metric) = families.first().and_then(|family| family.get_metric().first()) else { return Vec::new() };
    let histogram = metric.get_histogram();
    let buckets = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    buckets.chain([(f64::INFINITY, histogram.get_sample_count())]).collect()
}

/// The rings. Cheap to clone. All clones are one.
#[derive(Clone)]
pub struct Series {
    rings: Arc<Mutex<Rings>>,
    clock: Clock,
}

#[derive(Default)]
struct Rings {
    fine: Ring,
    coarse: Ring,
    lanes: BTreeMap<String, Lane>,
    last: Reading,
    last_coarse: Reading,
    /// When somebody asked last.
    asked: Option<Instant>,
    rates: BTreeMap<String, LaneRates>,
}

/// Readings of the whole daemon, with their times.
#[derive(Default)]
struct Ring {
    times: VecDeque<UnixMillis>,
    rows: VecDeque<[f32; COLUMNS]>,
}

/// Readings of one function. The last ones belong to the last times.
#[derive(Default)]
struct Lane {
    fine: VecDeque<[f32; LANE_COLUMNS]>,
    coarse: VecDeque<[f32; LANE_COLUMNS]>,
}

impl Series {
    pub fn new(clock: Clock) -> Self {
        Self { rings: Arc::default(), clock }
    }

    pub fn router(&self) -> Router {
        Router::new().route("/v1/series", get(show)).with_state(self.clone())
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that somebody looks.
    pub fn is_asked(&self) {
        let now = self.clock.instant();
        self.rings().asked = Some(now);
    }

    /// Whether the next reading is to be complete.
    pub fn wants_full(&self) -> bool {
        let now = self.clock.instant();
        let rings = self.rings();
        let looking = rings.asked.is_some_and(|asked| now.saturating_duration_since(asked) < LOOKING);
        looking || rings.is_coarse(self.clock.now())
    }

    pub fn push(&self, reading: Reading) {
        self.rings().push(reading);
    }

    /// The rates of each function over about the last ten seconds.
    pub fn rates(&self) -> BTreeMap<String, LaneRates> {
        self.rings().rates.clone()
    }
}

impl Rings {
    /// Whether a reading at this time goes into the coarse rings, too. After a step of the clock the next one does.
    fn is_coarse(&self, now: UnixMillis) -> bool {
        let last = self.last_coarse.at;
        now < last || now.since(last) + Duration::from_millis(500) >= COARSE
    }

    fn push(&mut self, reading: Reading) {
        // Rates need two readings.
        if self.last.at == UnixMillis(0) || reading.at < self.last.at {
            self.last_coarse = reading.clone();
            self.last = reading;
            return;
        }
        let is_coarse = self.is_coarse(reading.at);
        if is_coarse && let Some(full) = &reading.full {
            self.choose_lanes(full, reading.at);
        }
        let seconds = reading.at.since(self.last.at).as_secs_f64();
        self.fine.push(reading.at, row(&self.last, &reading, seconds), FINE_MAX);
        for (name, lane) in &mut self.lanes {
            let row = lane_row(name, self.last.full.as_ref(), reading.full.as_ref(), seconds);
            keep(&mut lane.fine, row, FINE_MAX);
        }
        if is_coarse {
            let seconds = reading.at.since(self.last_coarse.at).as_secs_f64();
            self.coarse.push(reading.at, row(&self.last_coarse, &reading, seconds), COARSE_MAX);
            for (name, lane) in &mut self.lanes {
                let row = lane_row(name, self.last_coarse.full.as_ref(), reading.full.as_ref(), seconds);
                keep(&mut lane.coarse, row, COARSE_MAX);
            }
            self.last_coarse = reading.clone();
        }
        self.last = reading;
    }

    /// Notes the rates of all functions, and gives the busiest a series.
    fn choose_lanes(&mut self, full: &Full, at: UnixMillis) {
        let seconds = at.since(self.last_coarse.at).as_secs_f64();
        let before = self.last_coarse.full.as_ref();
        let rates = full.lanes.iter().map(|(name, now)| {
            let before = before.and_then(|before| before.lanes.get(name)).copied().unwrap_or_default();
            let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds.max(0.001);
            let rates = LaneRates {
                accepted_per_second: rate(before.accepted, now.accepted),
                attempts_per_second: rate(before.attempts, now.attempts),
                delivered_per_second: rate(before.delivered, now.delivered),
                throttled_per_second: rate(before.throttled, now.throttled),
            };
            (name.clone(), rates)
        });
        self.rates = rates.collect();
        let busy = |name: &str| {
            let rates = self.rates.get(name).copied().unwrap_or_default();
            let backlog = full.lanes.get(name).and_then(|lane| lane.backlog).unwrap_or(0) as f64;
            let busy = rates.accepted_per_second + rates.attempts_per_second + backlog.sqrt() / 100.0;
            if self.lanes.contains_key(name) { busy * STICKY } else { busy }
        };
        let mut names: Vec<(f64, &String)> = full.lanes.keys().map(|name| (busy(name), name)).collect();
        names.sort_by(|(a, one), (b, other)| b.total_cmp(a).then(one.cmp(other)));
        let chosen: std::collections::BTreeSet<String> =
            names.into_iter().take(LANES_MAX).map(|(_, name)| name.clone()).collect();
        self.lanes.retain(|name, _| chosen.contains(name));
        for name in chosen {
            self.lanes.entry(name).or_default();
        }
    }
}

impl Ring {
    fn push(&mut self, at: UnixMillis, row: [f32; COLUMNS], max: usize) {
        keep(&mut self.times, at, max);
        keep(&mut self.rows, row, max);
    }

    /// The rows after `since`, by their number from the front.
    fn after(&self, since: Option<u64>) -> usize {
        since.map_or(0, |since| self.times.partition_point(|time| time.0 / 1_000 <= since))
    }
}

fn keep<T>(kept: &mut VecDeque<T>, new: T, max: usize) {
    while kept.len() >= max {
        kept.pop_front();
    }
    kept.push_back(new);
}

fn row(before: &Reading, now: &Reading, seconds: f64) -> [f32; COLUMNS] {
    let mut row = [GAP; COLUMNS];
    let (old, new) = (&before.totals, &now.totals);
    for (column, old, new) in [
        (ACCEPTED, old.accepted, new.accepted),
        (REFUSED, old.refused, new.refused),
        (ATTEMPTS, old.attempts, new.attempts),
        (DELIVERED, old.delivered, new.delivered),
        (THROTTLED, old.throttled, new.throttled),
        (BURIED, old.buried, new.buried),
        (SHIPPED, old.shipped, new.shipped),
    ] {
        row[column] = rate(old, new, seconds);
    }
    if let Some(stored) = now.full.as_ref().and_then(|full| full.stored) {
        for (column, count) in [READY, WAITING, SCHEDULED, DEAD_LETTERS].into_iter().zip(stored.by_place) {
            row[column] = count as f32;
        }
        row[OLDEST] = stored.oldest_age as f32;
        row[IN_FLIGHT] = stored.in_flight as f32;
        row[DISK] = stored.disk_bytes as f32;
        // Some file systems report no limit.
        row[DISK_FREE] = if stored.disk_free_bytes == u64::MAX { GAP } else { stored.disk_free_bytes as f32 };
    }
    row[COMMIT_P50] = quantile(&before.commits, &now.commits, 0.5);
    row[COMMIT_P99] = quantile(&before.commits, &now.commits, 0.99);
    row
}

fn lane_row(name: &str, before: Option<&Full>, now: Option<&Full>, seconds: f64) -> [f32; LANE_COLUMNS] {
    let mut row = [GAP; LANE_COLUMNS];
    let Some(new) = now.and_then(|now| now.lanes.get(name)) else { return row };
    row[LANE_IN_FLIGHT] = new.in_flight as f32;
    row[LANE_LIMIT] = new.limit as f32;
    row[LANE_BACKLOG] = new.backlog.map_or(GAP, |backlog| backlog as f32);
    // A function that was not there before counted from 0.
    let Some(before) = before else { return row };
    let old = before.lanes.get(name).copied().unwrap_or_default();
    row[LANE_ACCEPTED] = rate(old.accepted, new.accepted, seconds);
    row[LANE_ATTEMPTS] = rate(old.attempts, new.attempts, seconds);
    row[LANE_DELIVERED] = rate(old.delivered, new.delivered, seconds);
    row[LANE_THROTTLED] = rate(old.throttled, new.throttled, seconds);
    row
}

fn rate(before: u64, now: u64, seconds: f64) -> f32 {
    if seconds > 0.0 { (now.saturating_sub(before) as f64 / seconds) as f32 } else { GAP }
}

/// A quantile of what was counted between two readings, in seconds, interpolated within its bucket as Prometheus does.
fn quantile(before: &[(f64, u64)], now: &[(f64, u64)], quantile: f64) -> f32 {
    let count = |nth: usize| {
        let before = before.get(nth).map_or(0, |(_, count)| *count);
        now.get(nth).map_or(0, |(_, count)| count.saturating_sub(before)) as f64
    };
    let Some(last) = now.len().checked_sub(1) else { return GAP };
    let all = count(last);
    if all == 0.0 {
        return GAP;
    }
    let rank = quantile * all;
    let (mut lower, mut below) = (0.0, 0.0);
    for (nth, (upper, _)) in now.iter().enumerate() {
        let here = count(nth);
        if here >= rank {
            // Beyond the last bound only the bound is known.
            let part = if here > below { (rank - below) / (here - below) } else { 1.0 };
            return if upper.is_finite() { (lower + (upper - lower) * part) as f32 } else { lower as f32 };
        }
        (lower, below) = (*upper, here);
    }
    GAP
}

/// The column of these rows. A gap is `None`.
fn column<const N: usize>(rows: &VecDeque<[f32; N]>, from: usize, column: usize) -> Vec<Option<f32>> {
    rows.iter().skip(from).map(|row| Some(row[column]).filter(|value| value.is_finite())).collect()
}

/// Show what was measured lately
///
/// Rates, backlog, ages and latencies of the last five minutes or the last hour, as columns over `times`.
#[utoipa::path(
    get,
    path = "/v1/series",
    operation_id = "show_series",
    params(SeriesQuery),
    responses(
        (status = 200, description = "The columns", body = SeriesView),
        (status = 404, description = "The function has no series: it is not among the busiest", body = api::Message),
    )
)]
pub(super) async fn show(
    State(series): State<Series>,
    Query(query): Query<SeriesQuery>,
) -> Result<Json<SeriesView>, Problem> {
    let is_fine = match query.window.as_deref() {
        None | Some("5m") => true,
        Some("1h") => false,
        Some(other) => return Err(Problem::bad(format!("window: {other:?} is not one here; write 5m or 1h"))),
    };
    series.is_asked();
    let rings = series.rings();
    let ring = if is_fine { &rings.fine } else { &rings.coarse };
    let from = ring.after(query.since);
    let mut view = SeriesView {
        step_seconds: if is_fine { 1 } else { COARSE.as_secs() },
        times: ring.times.iter().skip(from).map(|time| time.0 / 1_000).collect(),
        functions: rings.lanes.keys().cloned().collect(),
        ..SeriesView::default()
    };
    match &query.function {
        None => fill(&mut view, ring, from),
        Some(name) => {
            let why = || {
                let why = format!("{name:?} has no series: only the {LANES_MAX} busiest functions have one");
                Problem::not_found(format!("{why}; `functions` of GET /v1/series names them"))
            };
            let lane = rings.lanes.get(name).ok_or_else(why)?;
            fill_lane(&mut view, if is_fine { &lane.fine } else { &lane.coarse }, ring.times.len(), from);
        }
    }
    Ok(Json(view))
}

fn fill(view: &mut SeriesView, ring: &Ring, from: usize) {
    let of = |wanted| column(&ring.rows, from, wanted);
    view.accepted = of(ACCEPTED);
    view.refused = of(REFUSED);
    view.attempts = of(ATTEMPTS);
    view.delivered = of(DELIVERED);
    view.throttled = of(THROTTLED);
    view.buried = of(BURIED);
    view.shipped = of(SHIPPED);
    view.ready = of(READY);
    view.waiting = of(WAITING);
    view.scheduled = of(SCHEDULED);
    view.dead_letters = of(DEAD_LETTERS);
    view.oldest_age_seconds = of(OLDEST);
    view.in_flight = of(IN_FLIGHT);
    view.disk_bytes = of(DISK);
    view.disk_free_bytes = of(DISK_FREE);
    view.commit_p50_seconds = of(COMMIT_P50);
    view.commit_p99_seconds = of(COMMIT_P99);
}

/// `times` are those of the ring, of which the lane may have only the last ones.
fn fill_lane(view: &mut SeriesView, rows: &VecDeque<[f32; LANE_COLUMNS]>, times: usize, from: usize) {
    let missing = times.saturating_sub(rows.len());
    let of = |wanted| {
        let gaps = std::iter::repeat_n(None, missing.saturating_sub(from));
        gaps.chain(column(rows, from.saturating_sub(missing), wanted)).collect()
    };
    view.accepted = of(LANE_ACCEPTED);
    view.attempts = of(LANE_ATTEMPTS);
    view.delivered = of(LANE_DELIVERED);
    view.throttled = of(LANE_THROTTLED);
    view.in_flight = of(LANE_IN_FLIGHT);
    view.limit = of(LANE_LIMIT);
    view.backlog = of(LANE_BACKLOG);
}

#[cfg(test)]
mod tests;
