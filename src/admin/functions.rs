//! The operator's API for lanes: list, pause, resume, purge.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};

use super::actions::{Note, Noted};
use super::lookup::{known, known_or_new, pattern, state, time};
use super::operators::Caller;
use super::whoami::name_of;
use super::{Admin, Look, Problem, api};
use crate::dispatch::status::LaneStatus;
use crate::event::FunctionName;
use crate::outbox::operator::{LIVE, Operator, Purge};
use crate::outbox::{LaneCensus, Place};
use crate::past::{End, How};

/// The routes below `/v1/functions`.
pub fn router<O: Operator>() -> Router<Admin<O>> {
    Router::new()
        .route("/v1/functions", get(list::<O>))
        .route("/v1/functions/{name}/pause", post(pause::<O>))
        .route("/v1/functions/{name}/resume", post(resume::<O>))
        .route("/v1/functions/{name}/purge", post(purge::<O>))
}

/// List functions
///
/// Those that have events, or had some minutes ago: their counts, limits and holds.
#[utoipa::path(
    get,
    path = "/v1/functions",
    operation_id = "list_functions",
    params(api::FunctionsQuery),
    responses(
        (status = 200, description = "Every known function that fits", body = api::FunctionPage),
    )
)]
pub(super) async fn list<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<api::FunctionsQuery>,
) -> Result<Json<api::FunctionPage>, Problem> {
    let pattern = pattern(query.function)?;
    let fits = |name: &FunctionName| pattern.as_ref().is_none_or(|pattern| name.fits(pattern.as_str()));
    let look = admin.look().await?;
    Ok(Json(api::FunctionPage { functions: views(&admin, &look, &admin.series.rates(), fits) }))
}

/// The functions that fit, as they are shown.
pub(super) fn views<O: Operator>(
    admin: &Admin<O>,
    look: &Look,
    rates: &BTreeMap<String, api::LaneRates>,
    fits: impl Fn(&FunctionName) -> bool,
) -> Vec<api::FunctionView> {
    let now = admin.clock.now();
    let fitting = look.census.lanes.iter().filter(|(name, _)| fits(name));
    let shown = fitting.map(|(name, lane)| {
        let age = lane.oldest_ready.map(|oldest| now.since(admin.clock.present(oldest)).as_secs_f64());
        let rates = rates.get(name.as_str()).copied();
        shown(name, lane, age, look.paused.contains(name), look.lanes.get(name), rates)
    });
    shown.collect()
}

fn shown(
    name: &FunctionName,
    lane: &LaneCensus,
    age: Option<f64>,
    paused: bool,
    status: Option<&LaneStatus>,
    rates: Option<api::LaneRates>,
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
        held: status.and_then(|status| status.held.as_ref()).map(Into::into),
        delivered_per_minute: status.map_or(0, |status| status.delivered_per_minute),
        failed_per_minute: status.map_or(0, |status| status.failed_per_minute),
        last_error: status.and_then(|status| status.last_error.as_ref()).map(Into::into),
        failing_since: status.and_then(|status| status.failing_since).map(|since| since.rfc3339()),
        rates,
    }
}

/// Pause a function
///
/// Its events are accepted and kept, and still expire; none is attempted. A function need not have been seen: whoever pauses
/// one before its first event finds it paused then.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/pause",
    operation_id = "pause_function",
    params(("name" = String, Path, description = "The function's canonical name, as `GET /v1/functions` lists it")),
    responses(
        (status = 200, description = "Paused, on stable storage", body = api::Paused),
        (status = 400, description = "Not the name of a function", body = api::Message),
        (status = 409, description = "No room for one more function", body = api::Message),
    )
)]
pub(super) async fn pause<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(name): Path<String>,
) -> Result<Json<api::Paused>, Problem> {
    let function = known_or_new(&admin, &name).await?;
    admin.store()?.pause(&function, true).await?;
    Ok(Json(api::Paused { function: function.as_str().to_owned(), paused: true, held: None }))
}

/// Attempt a paused function's events again
///
/// What holds the function is probed at once, and shown.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/resume",
    operation_id = "resume_function",
    params(("name" = String, Path, description = "The function's canonical name, as `GET /v1/functions` lists it")),
    responses(
        (status = 200, description = "Resumed, on stable storage", body = api::Paused),
        (status = 404, description = "No such function is known", body = api::Message),
    )
)]
pub(super) async fn resume<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(name): Path<String>,
) -> Result<Json<api::Paused>, Problem> {
    let function = known(&admin, &name).await?;
    admin.store()?.pause(&function, false).await?;
    // What holds it is probed at once: an operator who resumes a function has perhaps just mended it.
    let held = admin.probe(&function).await.as_ref().map(Into::into);
    Ok(Json(api::Paused { function: function.as_str().to_owned(), paused: false, held }))
}

/// Remove a function's events that wait
///
/// Without delivering them. Events that are being attempted stay, and so do dead letters.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/purge",
    operation_id = "purge_function",
    params(("name" = String, Path, description = "The function's canonical name, as `GET /v1/functions` lists it"), api::PurgeQuery),
    responses(
        (status = 200, description = "Removed; or counted, of a dry run", body = api::Purged),
        (status = 400, description = "Not a state or a time", body = api::Message),
        (status = 404, description = "No such function is known", body = api::Message),
    )
)]
pub(super) async fn purge<O: Operator>(
    State(admin): State<Admin<O>>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    Query(query): Query<api::PurgeQuery>,
) -> Result<Noted<Json<api::Purged>>, Problem> {
    let function = known(&admin, &name).await?;
    let place = query.state.as_deref().map(|word| state(word, &LIVE)).transpose()?;
    let before = query.accepted_before.as_deref();
    let accepted_before = before.map(|text| time("accepted_before", text, &admin.clock)).transpose()?;
    let dry_run = query.dry_run;
    let keys = api::KeysQuery { keep_keys: query.keep_keys }.keys();
    let purge = Purge { function: function.clone(), place, accepted_before, dry_run, keys };
    let purged = admin.store()?.purge(purge).await?;
    let (now, how) = (admin.clock.now(), How::Purged { by: name_of(caller) });
    let ends = purged.ids.into_iter().map(|id| End::bare(id, function.clone(), now, how.clone()));
    admin.past.note_ends(ends.collect());
    let function = function.as_str().to_owned();
    // A dry run changes nothing. Its filter says that it was one.
    let note = if dry_run { Note::of(0) } else { Note::of(purged.events).with_bytes(purged.bytes) };
    Ok(Noted(Json(api::Purged { function, dry_run, events: purged.events, bytes: purged.bytes }), note))
}
