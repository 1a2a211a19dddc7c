//! The operator's API for events: list, show, cancel, attempt now.

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;

use super::actions::{Note, Noted};
use super::api::{Cancelled, Due, EventDetail, EventPage, EventView};
use super::lookup::{event_id, is_paused, matching, page_size, pattern, state, time};
use super::{Admin, Problem, api};
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName};
use crate::outbox::operator::{Cursor, ListFilter, ListWant, Listed, Operator, PAGE_MAX, Touched};
use crate::outbox::{self, Found, History, Place};

/// The number of events in a page if the request does not set it.
const PAGE: usize = 100;

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
    let time = |name, text: Option<String>| text.map(|text| time(name, &text, &admin.clock)).transpose();
    let filter = ListFilter {
        since: time("since", query.since)?,
        until: time("until", query.until)?,
        attempts_min: query.attempts_min,
        error: query.error,
        in_flight: query.in_flight,
    };
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
        due: history.due.rfc3339(),
        attempts: history.calls,
        charged: history.attempts,
        last_error: history.last.as_ref().map(Into::into),
        reason: history.burial.as_ref().map(|burial| burial.reason),
        unreadable: None,
    }
}

/// Show an event
#[utoipa::path(
    get,
    path = "/v1/events/{id}",
    operation_id = "show_event",
    params(("id" = EventId, Path), api::PayloadQuery),
    responses(
        (status = 200, description = "It is stored", body = EventDetail),
        (status = 404, description = "Not stored, or no more", body = api::Message),
        (status = 500, description = "It cannot be read", body = api::Message),
    )
)]
pub(super) async fn show<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(id): Path<String>,
    Query(query): Query<api::PayloadQuery>,
) -> Result<Noted<Json<EventDetail>>, Problem> {
    let id = event_id(&id)?;
    let store = admin.store()?;
    let found = if query.payload { store.find(id).await? } else { store.find_head(id).await? };
    let Found { event, payload_bytes, history, place, leased } = found.ok_or_else(|| gone(id))?;
    let detail = EventDetail {
        event: view(id, &event.function.name, place, leased, &history),
        deliver_at: event.deliver_at.map(UnixMillis::rfc3339),
        expires_at: event.expires_at.map(UnixMillis::rfc3339),
        redrives: event.redrives,
        payload_bytes,
        payload_base64: query.payload.then(|| BASE64_STANDARD.encode(&event.payload)),
    };
    Ok(Noted(Json(detail), Note::of(1)))
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
    Path(id): Path<String>,
    Query(query): Query<api::KeysQuery>,
) -> Result<Noted<Json<Cancelled>>, Problem> {
    let (id, store) = (event_id(&id)?, admin.store()?);
    let function = function_of(&store, id).await?;
    touched(store.cancel(id, query.keys()).await?, id)?;
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
    let function = function_of(&store, id).await?;
    touched(store.attempt_now(id).await?, id)?;
    let paused = is_paused(&store, &function).await?;
    let held = admin.probe(&function).await.as_ref().map(Into::into);
    Ok(Noted(Json(Due { id, function: function.as_str().to_owned(), paused, held }), Note::of(1)))
}

async fn function_of<O: Operator>(store: &O, id: EventId) -> Result<FunctionName, Problem> {
    match store.find_head(id).await {
        Ok(found) => Ok(found.ok_or_else(|| gone(id))?.event.function.name),
        // An unreadable event can still be removed.
        Err(outbox::Error::Unreadable { .. }) => Ok(FunctionName::new("unknown")),
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
    Problem::not_found(format!("event {id} is not stored; it may have been delivered, shipped, cancelled or purged"))
}
