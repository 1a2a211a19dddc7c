//! The operator's API for events: list, show, cancel, attempt now.

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;

use super::actions::{Note, Noted};
use super::api::{Cancelled, Due, EventDetail, EventPage, EventView};
use super::lookup::{event_id, is_paused, matching, page_size, pattern, span, state};
use super::operators::Caller;
use super::whoami::name_of;
use super::{Admin, Problem, api};
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName};
use crate::outbox::operator::{Cursor, ListFilter, ListWant, Listed, Operator, PAGE_MAX, Touched};
use crate::outbox::{self, Found, History, Place};
use crate::past::{self, End, EndView, How};

/// The number of events in a page if the request does not set it.
const PAGE: usize = 100;

/// The state of an event that has left the store.
const DONE: &str = "done";

/// The routes below `/v1/events`.
pub fn router<O: Operator>() -> Router<Admin<O>> {
    Router::new()
        .route("/v1/events", get(list::<O>))
        .route("/v1/events/{id}", get(show::<O>).delete(cancel::<O>))
        .route("/v1/events/{id}/attempt", post(attempt::<O>))
}

/// List stored events
///
/// By function, state and time of acceptance, without what clients sent.
#[utoipa::path(
    get,
    path = "/v1/events",
    operation_id = "list_events",
    params(api::EventsQuery),
    responses(
        (status = 200, description = "A page", body = EventPage),
        (status = 404, description = "No known function fits", body = api::Message),
    )
)]
pub(super) async fn list<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<api::EventsQuery>,
) -> Result<Json<EventPage>, Problem> {
    let cursor = |text: String| text.parse::<Cursor>().map_err(|why| Problem::bad(format!("after: {why}")));
    let place = query.state.as_deref().map(|word| state(word, &Place::ALL)).transpose()?;
    let (since, until) = span(query.since.as_deref(), query.until.as_deref(), &admin.clock)?;
    let filter =
        ListFilter { since, until, attempts_min: query.attempts_min, error: query.error, in_flight: query.in_flight };
    let store = admin.store()?;
    let pattern = pattern(query.function)?;
    let lanes = matching(&store, pattern.as_ref()).await?;
    let places = place.as_ref().map_or(&Place::ALL[..], std::slice::from_ref);
    let count = |lane: &crate::outbox::LaneCensus| -> u64 {
        places.iter().filter_map(|place| lane.by_place.get(place)).map(|count| count.events).sum()
    };
    let total = lanes.iter().map(|(_, lane)| count(lane)).sum();
    let want = ListWant {
        function: pattern,
        place,
        filter,
        after: query.after.map(cursor).transpose()?,
        max: page_size(query.limit, PAGE, PAGE_MAX),
    };
    let page = store.list(want).await?;
    let events = page.events.iter().map(listed).collect();
    Ok(Json(EventPage { events, next: page.next.map(|next| next.to_string()), total }))
}

fn listed(event: &Listed) -> EventView {
    let Listed { id, function, place, leased, history, unreadable } = event;
    EventView { unreadable: unreadable.clone(), ..view(*id, function, *place, *leased, history) }
}

fn view(id: EventId, function: &FunctionName, place: Place, leased: bool, history: &History) -> EventView {
    EventView {
        id,
        function: function.as_str().to_owned(),
        state: place.as_str().to_owned(),
        in_flight: leased,
        accepted_at: id.accepted_at().rfc3339(),
        due: Some(history.due.rfc3339()),
        attempts: history.calls,
        charged: history.attempts,
        last_error: history.last.as_ref().map(Into::into),
        reason: history.burial.as_ref().map(|burial| burial.reason),
        unreadable: None,
    }
}

/// Show an event
///
/// One that is stored, or what became of one that has left the store (`[history]` in the configuration says for how long).
#[utoipa::path(
    get,
    path = "/v1/events/{id}",
    operation_id = "show_event",
    params(("id" = EventId, Path), api::EventQuery),
    responses(
        (status = 200, description = "It is stored, or has left the store", body = EventDetail),
        (status = 404, description = "Neither stored nor remembered", body = api::Message),
        (status = 429, description = "Too many wait for the ends of events", body = api::Message),
        (status = 500, description = "It cannot be read", body = api::Message),
    )
)]
pub(super) async fn show<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(id): Path<String>,
    Query(query): Query<api::EventQuery>,
) -> Result<Noted<Json<EventDetail>>, Problem> {
    let id = event_id(&id)?;
    let wait = query.wait.as_deref().map(past::read_wait).transpose().map_err(Problem::bad)?;
    // Registered before the first look, so that no end is missed.
    let waiter =
        wait.map(|wait| admin.past.waiter(id).map(|waiter| (wait, waiter)).ok_or_else(too_many)).transpose()?;
    let mut detail = look(&admin, id, query.payload).await?;
    if let Some((mut wait, mut waiter)) = waiter {
        while !wait.is_zero() && detail.end.is_none() && detail.event.reason.is_none() {
            wait = waiter.woken(wait).await;
            detail = look(&admin, id, query.payload).await?;
        }
    }
    Ok(Noted(Json(detail), Note::of(1)))
}

/// An event in the store, or what became of it.
async fn look<O: Operator>(admin: &Admin<O>, id: EventId, payload: bool) -> Result<EventDetail, Problem> {
    let store = admin.store()?;
    let found = if payload { store.find(id).await? } else { store.find_head(id).await? };
    let Some(Found { event, payload_bytes, history, place, leased }) = found else {
        return admin.past.end_of_gone(id, &admin.clock).await.map(ended).ok_or_else(|| gone(id));
    };
    Ok(EventDetail {
        event: view(id, &event.function.name, place, leased, &history),
        deliver_at: event.deliver_at.map(UnixMillis::rfc3339),
        expires_at: event.expires_at.map(UnixMillis::rfc3339),
        redrives: event.redrives,
        payload_bytes: Some(payload_bytes),
        payload_base64: payload.then(|| BASE64_STANDARD.encode(&event.payload)),
        end: None,
    })
}

/// An event that has left the store.
fn ended(end: End) -> EventDetail {
    let shown = EndView::from(&end);
    let event = EventView {
        id: end.id,
        function: end.function.as_str().to_owned(),
        state: DONE.to_owned(),
        in_flight: false,
        accepted_at: end.id.accepted_at().rfc3339(),
        due: None,
        attempts: end.attempts,
        charged: end.charged,
        last_error: end.last_error.as_ref().map(Into::into),
        reason: end.reason,
        unreadable: None,
    };
    EventDetail {
        event,
        deliver_at: None,
        expires_at: None,
        redrives: 0,
        payload_bytes: None,
        payload_base64: None,
        end: Some(shown),
    }
}

fn too_many() -> Problem {
    let why = "too many requests wait for the ends of events; ask without `wait`, or try again";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, why)
}

/// Remove an event that waits
///
/// Without delivering it.
#[utoipa::path(
    delete,
    path = "/v1/events/{id}",
    operation_id = "cancel_event",
    params(("id" = EventId, Path), api::KeysQuery),
    responses(
        (status = 200, description = "Removed, on stable storage", body = Cancelled),
        (status = 404, description = "Not stored, or no more", body = api::Message),
        (status = 409, description = "It is being attempted, or is a dead letter", body = api::Message),
    )
)]
pub(super) async fn cancel<O: Operator>(
    State(admin): State<Admin<O>>,
    caller: Option<Extension<Caller>>,
    Path(id): Path<String>,
    Query(query): Query<api::KeysQuery>,
) -> Result<Noted<Json<Cancelled>>, Problem> {
    let (id, store) = (event_id(&id)?, admin.store()?);
    let (function, history) = head_of(&store, id).await?;
    touched(store.cancel(id, query.keys()).await?, id)?;
    let how = How::Cancelled { by: name_of(caller) };
    admin.past.note_ends(vec![End::of(id, function.clone(), admin.clock.now(), how, &history)]);
    Ok(Noted(Json(Cancelled { id, function: function.as_str().to_owned(), cancelled: true }), Note::of(1)))
}

/// Make an event that waits due now
#[utoipa::path(
    post,
    path = "/v1/events/{id}/attempt",
    operation_id = "attempt_event",
    params(("id" = EventId, Path)),
    responses(
        (status = 200, description = "Due; and what the attempt still waits for", body = Due),
        (status = 404, description = "Not stored, or no more", body = api::Message),
        (status = 409, description = "It is being attempted, or is a dead letter", body = api::Message),
        (status = 500, description = "It cannot be read", body = api::Message),
    )
)]
pub(super) async fn attempt<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(id): Path<String>,
) -> Result<Noted<Json<Due>>, Problem> {
    let (id, store) = (event_id(&id)?, admin.store()?);
    let (function, _) = head_of(&store, id).await?;
    touched(store.attempt_now(id).await?, id)?;
    let paused = is_paused(&store, &function).await?;
    let held = admin.probe(&function).await.as_ref().map(Into::into);
    Ok(Noted(Json(Due { id, function: function.as_str().to_owned(), paused, held }), Note::of(1)))
}

async fn head_of<O: Operator>(store: &O, id: EventId) -> Result<(FunctionName, History), Problem> {
    match store.find_head(id).await {
        Ok(found) => {
            let Found { event, history, .. } = found.ok_or_else(|| gone(id))?;
            Ok((event.function.name, history))
        }
        // An unreadable event can still be removed.
        Err(outbox::Error::Unreadable { .. }) => Ok((FunctionName::new("unknown"), History::default())),
        Err(error) => Err(error.into()),
    }
}

fn touched(touched: Touched, id: EventId) -> Result<(), Problem> {
    match touched {
        Touched::Done => Ok(()),
        Touched::NotFound => Err(gone(id)),
        Touched::InFlight => Err(Problem::conflict(format!("event {id} is being attempted just now; try again"))),
        Touched::Unreadable => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("event {id} cannot be read, so it cannot be attempted; `sendoff events cancel {id}` removes it"),
        )),
        Touched::Buried => Err(Problem::conflict(format!(
            "event {id} is a dead letter: `sendoff redrive --local` sends dead letters again, `sendoff dead-letters purge` \
             removes them"
        ))),
    }
}

fn gone(id: EventId) -> Problem {
    let why = "it was never accepted here, or it has left the store longer ago than [history] remembers";
    Problem::not_found(format!("event {id} is not stored; {why}"))
}
