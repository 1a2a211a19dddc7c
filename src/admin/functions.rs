//! The operator's API for lanes: list, pause, resume, purge.

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::{Admin, Problem, api, moment};
use crate::dispatch::status::{self, LaneStatus};
use crate::event::FunctionName;
use crate::outbox::operator::{Keys, LIVE, Operator, Purge};
use crate::outbox::{LaneCensus, Outbox, Place};

/// The routes below `/v1/functions`.
pub fn router<O: Operator>() -> Router<Admin<O>> {
    Router::new()
        .route("/v1/functions", get(list::<O>))
        .route("/v1/functions/{name}/pause", post(pause::<O>))
        .route("/v1/functions/{name}/resume", post(resume::<O>))
        .route("/v1/functions/{name}/purge", post(purge::<O>))
}

async fn list<O: Operator>(State(admin): State<Admin<O>>) -> Result<Json<api::FunctionPage>, Problem> {
    let outbox = admin.store()?;
    let census = outbox.census().await?;
    let paused = outbox.lanes(0).await?.lanes.into_iter().filter(|lane| lane.paused).map(|lane| lane.function);
    let paused: std::collections::BTreeSet<_> = paused.collect();
    let status = admin.lane_status().await;
    let now = admin.clock.now();
    let shown = census.lanes.iter().map(|(name, lane)| {
        let age = lane.oldest_ready.map(|oldest| now.since(admin.clock.present(oldest)).as_secs_f64());
        shown(name, lane, age, paused.contains(name), status.get(name))
    });
    Ok(Json(api::FunctionPage { functions: shown.collect() }))
}

fn shown(
    name: &FunctionName,
    lane: &LaneCensus,
    age: Option<f64>,
    paused: bool,
    status: Option<&LaneStatus>,
) -> api::FunctionView {
    let events = |place| lane.by_place.get(&place).map_or(0, |count| count.events);
    api::FunctionView {
        function: name.as_str().to_owned(),
        depth: LIVE.into_iter().map(events).sum(),
        ready: events(Place::Ready),
        waiting: events(Place::Waiting),
        scheduled: events(Place::Scheduled),
        buried: events(Place::Buried),
        oldest_age_seconds: age,
        in_flight: status.map_or(0, |status| status.in_flight),
        limit: status.map(|status| status.limit),
        account_limit: status.map(|status| status.account_limit),
        paused,
        held: status.and_then(|status| status.held.as_ref()).map(held),
        delivered_per_minute: status.map_or(0, |status| status.delivered_per_minute),
        failed_per_minute: status.map_or(0, |status| status.failed_per_minute),
        last_error: status.and_then(|status| status.last_error.as_ref()).map(last_error),
        failing_since: status.and_then(|status| status.failing_since).map(|since| since.rfc3339()),
    }
}

fn last_error(error: &status::LastError) -> api::LaneError {
    api::LaneError { at: error.at.rfc3339(), message: error.words.clone() }
}

pub(super) fn held(held: &status::Held) -> api::Held {
    let status::Held { scope, kind, reason, until } = held;
    api::Held {
        scope: scope.as_str().to_owned(),
        kind: kind.as_str().to_owned(),
        reason: reason.clone(),
        until: until.rfc3339(),
    }
}

pub(super) async fn is_paused<O: Operator>(store: &O, function: &FunctionName) -> Result<bool, Problem> {
    Ok(store.lane(function).await?.is_some_and(|lane| lane.paused))
}

/// A function need not have been seen: whoever pauses one before its first event must find it paused then.
async fn pause<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(name): Path<String>,
) -> Result<Json<api::Paused>, Problem> {
    let store = admin.store()?;
    let function = match store.lane(&FunctionName::new(&name)).await? {
        Some(lane) => lane.function,
        None => admin.new_lane(&name, store.census().await?.lanes.len())?,
    };
    store.pause(&function, true).await?;
    tracing::info!(%function, "an operator paused the function");
    Ok(Json(api::Paused { function: function.as_str().to_owned(), paused: true, held: None }))
}

async fn resume<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(name): Path<String>,
) -> Result<Json<api::Paused>, Problem> {
    let function = known(&admin, &name).await?;
    admin.store()?.pause(&function, false).await?;
    tracing::info!(%function, "an operator resumed the function");
    // What holds it is probed at once: an operator who resumes a function has perhaps just mended it.
    let held = admin.probe(&function).await.as_ref().map(held);
    Ok(Json(api::Paused { function: function.as_str().to_owned(), paused: false, held }))
}

/// Which events to purge.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeQuery {
    state: Option<String>,
    accepted_before: Option<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    keep_keys: bool,
}

async fn purge<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(name): Path<String>,
    Query(query): Query<PurgeQuery>,
) -> Result<Json<api::Purged>, Problem> {
    let function = known(&admin, &name).await?;
    let place = query.state.as_deref().map(|word| state(word, &LIVE)).transpose()?;
    let before = query.accepted_before.as_deref();
    let accepted_before = before.map(|text| moment("accepted_before", text, &admin.clock)).transpose()?;
    let dry_run = query.dry_run;
    let keys = if query.keep_keys { Keys::Keep } else { Keys::Forget };
    let purge = Purge { function: function.clone(), place, accepted_before, dry_run, keys };
    let purged = admin.store()?.purge(purge).await?;
    if !dry_run {
        tracing::warn!(%function, events = purged.events, bytes = purged.bytes, "an operator purged events");
    }
    let function = function.as_str().to_owned();
    Ok(Json(api::Purged { function, dry_run, events: purged.events, bytes: purged.bytes }))
}

/// One of the states that may be named here.
pub(super) fn state(word: &str, of: &[Place]) -> Result<Place, Problem> {
    let words: Vec<_> = of.iter().map(|place| place.as_str()).collect();
    let found = of.iter().copied().find(|place| place.as_str() == word);
    found.ok_or_else(|| Problem::bad(format!("{word:?} is not a state here; write {}", words.join(", "))))
}

/// A function that has a lane: what is done to a misspelt name must not look as if it had worked.
async fn known<O: Operator>(admin: &Admin<O>, name: &str) -> Result<FunctionName, Problem> {
    let function = FunctionName::new(name);
    let lane = admin.store()?.lane(&function).await?;
    if lane.is_some() { Ok(function) } else { Err(unknown(name)) }
}

/// The lanes of the functions that fit a pattern; all of them without one. That none fits is an error, since an empty answer
/// would look as if there were no events.
pub(super) async fn matching<O: Outbox>(
    store: &O,
    pattern: Option<&str>,
) -> Result<Vec<(FunctionName, LaneCensus)>, Problem> {
    let lanes = store.census().await?.lanes.into_iter();
    let found: Vec<_> = lanes.filter(|(name, _)| pattern.is_none_or(|pattern| name.fits(pattern))).collect();
    match pattern {
        Some(pattern) if found.is_empty() => Err(unknown(pattern)),
        Some(_) | None => Ok(found),
    }
}

fn unknown(name: &str) -> Problem {
    let why = match name.contains('*') {
        true => format!("no known function fits {name:?}"),
        false => format!("no function {name:?} is known"),
    };
    Problem::not_found(format!("{why}; `sendoff functions` lists those that have events, or had some minutes ago"))
}
