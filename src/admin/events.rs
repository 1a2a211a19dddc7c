//! The operator's API for events: list, show, cancel, attempt now.

use std::time::UNIX_EPOCH;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::functions::state;
use super::{Admin, Problem};
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName};
use crate::outbox::operator::{Cursor, Keys, ListWant, Listed, Operator, PAGE_MAX, Touched};
use crate::outbox::{Found, History, Place};

/// Events of a page that nobody asked the size of.
const PAGE: usize = 100;

/// The routes below `/v1/events`.
pub fn router<O: Operator>() -> Router<Admin<O>> {
    Router::new()
        .route("/v1/events", get(list::<O>))
        .route("/v1/events/{id}", get(show::<O>).delete(cancel::<O>))
        .route("/v1/events/{id}/attempt", post(attempt::<O>))
}

/// Which events, and from where.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    function: Option<String>,
    state: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

async fn list<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let cursor = |text: String| text.parse::<Cursor>().map_err(|()| Problem::bad("after: not a token of a page"));
    let want = ListWant {
        function: query.function.as_deref().map(FunctionName::new),
        place: query.state.as_deref().map(|word| state(word, &Place::ALL)).transpose()?,
        after: query.after.map(cursor).transpose()?,
        max: query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX),
    };
    let page = admin.store()?.list(want).await?;
    let events: Vec<Value> = page.events.iter().map(listed).collect();
    Ok(Json(json!({ "events": events, "next": page.next.map(|next| next.to_string()) })))
}

fn listed(event: &Listed) -> Value {
    let Listed { id, function, place, leased, history } = event;
    view(*id, function, *place, *leased, history)
}

fn view(id: EventId, function: &FunctionName, place: Place, leased: bool, history: &History) -> Value {
    let last = history.last.as_ref().map(|last| {
        json!({
            "at": last.at.rfc3339(),
            "status": last.status,
            "code": last.code,
            "message": last.message,
            "request_id": last.request_id,
        })
    });
    json!({
        "event_id": id.to_string(),
        "function": function.as_str(),
        "state": place.as_str(),
        "in_flight": leased,
        "accepted_at": id.accepted_at().rfc3339(),
        "due": history.due.rfc3339(),
        "attempts": history.attempts,
        "calls": history.calls,
        "last": last,
        "buried": history.burial.as_ref().map(|burial| burial.reason.as_str()),
    })
}

/// Whether to show what the client sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    #[serde(default)]
    payload: bool,
}

async fn show<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(id): Path<String>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<Value>, Problem> {
    let id = event_id(&id)?;
    let found = admin.store()?.find(id).await?;
    let Found { event, history, place, leased } = found.ok_or_else(|| gone(id))?;
    let mut shown = view(id, &event.function.name, place, leased, &history);
    shown["deliver_at"] = event.deliver_at.map(UnixMillis::rfc3339).into();
    shown["expires_at"] = event.expires_at.map(UnixMillis::rfc3339).into();
    shown["redrives"] = event.redrives.into();
    shown["payload_bytes"] = event.payload.len().into();
    if query.payload {
        shown["payload_base64"] = BASE64_STANDARD.encode(&event.payload).into();
    }
    Ok(Json(shown))
}

/// What to do with the key of an event that is removed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysQuery {
    #[serde(default)]
    keep_keys: bool,
}

impl KeysQuery {
    pub(super) fn keys(&self) -> Keys {
        if self.keep_keys { Keys::Keep } else { Keys::Forget }
    }
}

async fn cancel<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(id): Path<String>,
    Query(query): Query<KeysQuery>,
) -> Result<Json<Value>, Problem> {
    let id = event_id(&id)?;
    touched(admin.store()?.cancel(id, query.keys()).await?, id)?;
    tracing::warn!(event_id = %id, "operator has cancelled the event");
    Ok(Json(json!({ "event_id": id.to_string(), "cancelled": true })))
}

async fn attempt<O: Operator>(State(admin): State<Admin<O>>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let id = event_id(&id)?;
    touched(admin.store()?.attempt_now(id).await?, id)?;
    tracing::info!(event_id = %id, "operator has made the event due");
    Ok(Json(json!({ "event_id": id.to_string(), "due": "now" })))
}

fn touched(touched: Touched, id: EventId) -> Result<(), Problem> {
    match touched {
        Touched::Done => Ok(()),
        Touched::NotFound => Err(gone(id)),
        Touched::InFlight => Err(Problem::conflict(format!("event {id} is being attempted just now; try again"))),
        Touched::Buried => Err(Problem::conflict(format!("event {id} is a dead letter: use /v1/dead-letters"))),
    }
}

fn gone(id: EventId) -> Problem {
    Problem::not_found(format!("event {id} is not stored; it may have been delivered"))
}

fn event_id(text: &str) -> Result<EventId, Problem> {
    text.parse().map_err(|_| Problem::bad(format!("{text:?} is not an event's id")))
}

/// A time of RFC 3339.
pub(super) fn time(text: &str) -> Result<UnixMillis, Problem> {
    let time = humantime::parse_rfc3339_weak(text).ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let bad = || Problem::bad(format!("{text:?} is not a time; write it like 2026-11-23T14:00:00Z"));
    time.map(|since| UnixMillis(0).plus(since)).ok_or_else(bad)
}
