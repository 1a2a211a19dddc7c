//! The operator's API for lanes: list, pause, resume, purge.

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Problem};
use crate::dispatch::status::{Held, LaneStatus};
use crate::event::FunctionName;
use crate::outbox::operator::{Keys, LIVE, Operator, Purge};
use crate::outbox::{LaneCensus, Place};

/// The routes below `/v1/functions`.
pub fn router<O: Operator>() -> Router<Admin<O>> {
    Router::new()
        .route("/v1/functions", get(list::<O>))
        .route("/v1/functions/{name}/pause", post(pause::<O>))
        .route("/v1/functions/{name}/resume", post(resume::<O>))
        .route("/v1/functions/{name}/purge", post(purge::<O>))
}

async fn list<O: Operator>(State(admin): State<Admin<O>>) -> Result<Json<Value>, Problem> {
    let outbox = admin.store()?;
    let census = outbox.census().await?;
    let paused = outbox.lanes(0).await?.lanes.into_iter().filter(|lane| lane.paused).map(|lane| lane.function);
    let paused: std::collections::BTreeSet<_> = paused.collect();
    let status = admin.lane_status().await;
    let now = admin.clock.now();
    let functions: Vec<Value> = census
        .lanes
        .iter()
        .map(|(name, lane)| {
            let age = lane.oldest_ready.map(|oldest| now.since(oldest).as_secs_f64());
            shown(name, lane, age, paused.contains(name), status.get(name))
        })
        .collect();
    Ok(Json(json!({ "functions": functions })))
}

fn shown(name: &FunctionName, lane: &LaneCensus, age: Option<f64>, paused: bool, status: Option<&LaneStatus>) -> Value {
    let events = |place| lane.by_place.get(&place).map_or(0, |count| count.events);
    let depth: u64 = LIVE.into_iter().map(events).sum();
    let held = status.and_then(|status| status.held.as_ref()).map(held);
    json!({
        "function": name.as_str(),
        "depth": depth,
        "ready": events(Place::Ready),
        "waiting": events(Place::Waiting),
        "scheduled": events(Place::Scheduled),
        "buried": events(Place::Buried),
        "oldest_age_seconds": age,
        "in_flight": status.map_or(0, |status| status.in_flight),
        "limit": status.map(|status| status.limit),
        "account_limit": status.map(|status| status.account_limit),
        "paused": paused,
        "held": held,
    })
}

fn held(held: &Held) -> Value {
    let Held { scope, kind, reason, until } = held;
    json!({ "scope": scope.as_str(), "kind": kind.as_str(), "reason": reason, "until": until.rfc3339() })
}

async fn pause<O: Operator>(State(admin): State<Admin<O>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    set_paused(&admin, &name, true).await
}

async fn resume<O: Operator>(State(admin): State<Admin<O>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    set_paused(&admin, &name, false).await
}

async fn set_paused<O: Operator>(admin: &Admin<O>, name: &str, paused: bool) -> Result<Json<Value>, Problem> {
    let function = known(admin, name).await?;
    admin.store()?.pause(&function, paused).await?;
    tracing::info!(%function, paused, "operator has set the lane");
    Ok(Json(json!({ "function": name, "paused": paused })))
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
) -> Result<Json<Value>, Problem> {
    let function = known(&admin, &name).await?;
    let place = query.state.as_deref().map(|word| state(word, &LIVE)).transpose()?;
    let accepted_before = query.accepted_before.as_deref().map(super::events::time).transpose()?;
    let dry_run = query.dry_run;
    let keys = if query.keep_keys { Keys::Keep } else { Keys::Forget };
    let purge = Purge { function: function.clone(), place, accepted_before, dry_run, keys };
    let purged = admin.store()?.purge(purge).await?;
    if !dry_run {
        tracing::warn!(%function, events = purged.events, bytes = purged.bytes, "operator has purged events");
    }
    Ok(Json(json!({ "function": name, "dry_run": dry_run, "events": purged.events, "bytes": purged.bytes })))
}

/// One of the states that may be named here.
pub(super) fn state(word: &str, of: &[Place]) -> Result<Place, Problem> {
    let words: Vec<_> = of.iter().map(|place| place.as_str()).collect();
    let found = of.iter().copied().find(|place| place.as_str() == word);
    found.ok_or_else(|| Problem::bad(format!("{word:?} is not a state here; write {}", words.join(", "))))
}

/// A function that has a lane: pausing a misspelt name must not look as if it had worked.
async fn known<O: Operator>(admin: &Admin<O>, name: &str) -> Result<FunctionName, Problem> {
    let function = FunctionName::new(name);
    if admin.store()?.census().await?.lanes.contains_key(&function) {
        return Ok(function);
    }
    Err(Problem::not_found(format!("no function {name:?} is known; `sendoff functions` lists those that are")))
}
