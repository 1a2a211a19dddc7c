//! The OpenAPI document of the native door, generated from the types that read and write its bodies.

use std::sync::LazyLock;

use utoipa::openapi::{Object, RefOr, Schema};
use utoipa::{Modify, Number, OpenApi};

use crate::clock::MILLIS_MAX;
use crate::event::name::{NAME_PATTERN, QUALIFIER_PATTERN};
use crate::handoff::protocol::{Greeting, HandedEvent, LearnedKeys};
use crate::ingest::events_api::{
    AHEAD_MAX, AcceptedEvent, DELAY_PATTERN, ErrorBody, EventAnswer, EventState, MILLIS_MIN, NewEvent,
};

/// The document, as JSON.
pub fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        // Serialising a document of texts and numbers cannot fail.
        Document::openapi().to_pretty_json().unwrap_or_default()
    });
    &DOCUMENT
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "sendoff",
        description = "A durable outbox in front of AWS Lambda: the native door. Lambda's own Invoke is served beside it, \
                       as AWS documents it.",
    ),
    paths(take_events, show_event, greet, take_handed, take_keys),
    components(schemas(EventAnswer, HandedEvent)),
    modifiers(&Limits)
)]
struct Document;

/// Adds what attributes cannot express: patterns and limits that are constants, and those of the two forms of a time.
struct Limits;

impl Modify for Limits {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let Some(components) = &mut document.components else { return };
        let schemas = &mut components.schemas;
        if let Some(RefOr::T(Schema::Object(event))) = schemas.get_mut("NewEvent") {
            for (field, pattern) in [("function", NAME_PATTERN), ("qualifier", QUALIFIER_PATTERN)] {
                if let Some(field) = event.properties.get_mut(field).and_then(object) {
                    field.pattern = Some(format!("^(?:{pattern})$"));
                }
            }
        }
        let number = |number: u64| usize::try_from(number).ok().map(Number::from);
        if let Some([millis, _]) = schemas.get_mut("Time").and_then(forms) {
            (millis.minimum, millis.maximum) = (number(MILLIS_MIN), number(MILLIS_MAX));
        }
        if let Some([seconds, text]) = schemas.get_mut("Delay").and_then(forms) {
            seconds.maximum = number(AHEAD_MAX.as_secs());
            text.pattern = Some(DELAY_PATTERN.to_owned());
        }
    }
}

fn object(schema: &mut RefOr<Schema>) -> Option<&mut Object> {
    if let RefOr::T(Schema::Object(object)) = schema { Some(object) } else { None }
}

/// The schemas of a value that is written as a number or as a text.
fn forms(schema: &mut RefOr<Schema>) -> Option<[&mut Object; 2]> {
    let RefOr::T(Schema::OneOf(either)) = schema else { return None };
    let [number, text] = either.items.as_mut_slice() else { return None };
    Some([object(number)?, object(text)?])
}

/// Store an event, or a batch of them, and have them delivered
///
/// One JSON object is one event. Lines of JSON objects (NDJSON) are a batch: at most 1,000 events and 8 MiB, stored by one
/// commit, answered by one line for each, in order. What is answered with 202 is on stable storage.
#[utoipa::path(
    post,
    path = "/v1/events",
    params(
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
         pattern = "^[!#-~]([ -~]*[!-~])?$",
         description = "The key of a single event: bare as described here, or a quoted string of RFC 8941. Not for a batch"),
    ),
    request_body(
        content(
            (NewEvent = "application/json"),
            (String = "application/x-ndjson"),
        ),
        description = "One event, or lines of events"
    ),
    responses(
        (status = 202, description = "Stored: the event, or every event of the batch",
         content((AcceptedEvent = "application/json"), (String = "application/x-ndjson"))),
        (status = 207, description = "Some events of a batch are refused; each line has its own status (EventAnswer)",
         content((String = "application/x-ndjson"))),
        (status = 400, description = "Not an event", body = ErrorBody, content_type = "application/json"),
        (status = 401, description = "Not a known client, where that is required", body = ErrorBody,
         content_type = "application/json"),
        (status = 403, description = "The client may not use the function", body = ErrorBody,
         content_type = "application/json"),
        (status = 408, description = "The body did not come in time", body = ErrorBody, content_type = "application/json"),
        (status = 413, description = "Payload or batch too large", body = ErrorBody, content_type = "application/json"),
        (status = 415, description = "The body is compressed or otherwise encoded", body = ErrorBody, content_type = "application/json"),
        (status = 422, description = "The key is another event's", body = ErrorBody, content_type = "application/json"),
        (status = 429, description = "Too many requests in memory", body = ErrorBody, content_type = "application/json"),
        (status = 503, description = "Full, or unable to store", body = ErrorBody, content_type = "application/json"),
    )
)]
#[expect(dead_code, reason = "only its description is used")]
fn take_events() {}

/// Where an event is
///
/// Or what became of one that has left the store lately.
#[utoipa::path(
    get,
    path = "/v1/events/{id}",
    params(
        ("id" = String, Path, description = "The event's id", format = "uuid"),
        ("wait" = Option<String>, Query, pattern = "^(([0-9]|[1-5][0-9]|60)s|([0-9]{1,4}|[1-5][0-9]{4}|60000)ms)$",
         description = "Answer once it has left the store or is a dead letter, but after so long at the latest; at most 60s"),
    ),
    responses(
        (status = 200, description = "It is stored, or has left the store", body = EventState),
        (status = 400, description = "Not the id of an event, or not a time to wait", body = ErrorBody, content_type = "application/json"),
        (status = 401, description = "Not a known client, where that is required", body = ErrorBody,
         content_type = "application/json"),
        (status = 404, description = "Neither stored nor remembered", body = ErrorBody, content_type = "application/json"),
        (status = 429, description = "Too many requests in memory, or too many wait", body = ErrorBody,
         content_type = "application/json"),
        (status = 503, description = "The outbox cannot say", body = ErrorBody, content_type = "application/json"),
    )
)]
#[expect(dead_code, reason = "only its description is used")]
fn show_event() {}

/// Who would take a hand-off
///
/// For people and checks. Only where handoff.receive is true, or for a client that may hand over.
#[utoipa::path(
    get,
    path = "/v1/handoff",
    responses(
        (status = 200, description = "This daemon takes hand-offs", body = Greeting),
        (status = 401, description = "Not a known client, where that is required", body = ErrorBody,
         content_type = "application/json"),
        (status = 403, description = "The client may not hand over", body = ErrorBody, content_type = "application/json"),
        (status = 404, description = "This daemon takes no hand-offs", body = ErrorBody, content_type = "application/json"),
    )
)]
#[expect(dead_code, reason = "only its description is used")]
fn greet() {}

/// Hand events over to this daemon, as another sendoff does when it stops
///
/// Lines of JSON (NDJSON), at most 1,000 events and 8 MiB, stored by one commit. Each line has the event's `envelope` and
/// `payload_base64`. The answer has a line for each event (HandedEvent): what it calls adopted is on stable storage.
#[utoipa::path(
    post,
    path = "/v1/handoff",
    params(
        ("x-sendoff-handoff" = Option<String>, Header, description = "The version of the envelope: 1"),
        ("x-sendoff-instance" = Option<String>, Header, description = "The sending process"),
        ("x-sendoff-region" = Option<String>, Header, description = "The sender's region. It must be the receiver's"),
        ("x-sendoff-account" = Option<String>, Header, description = "The sender's account. It must be the receiver's"),
    ),
    request_body(content((String = "application/x-ndjson"))),
    responses(
        (status = 200, description = "An answer for each event", content((String = "application/x-ndjson"))),
        (status = 400, description = "Not text", body = ErrorBody, content_type = "application/json"),
        (status = 401, description = "Not a known client, where that is required", body = ErrorBody,
         content_type = "application/json"),
        (status = 403, description = "The client may not hand over", body = ErrorBody, content_type = "application/json"),
        (status = 404, description = "This daemon takes no hand-offs", body = ErrorBody, content_type = "application/json"),
        (status = 409, description = "Not from this sender: another region, account or format, or the same process",
         body = ErrorBody, content_type = "application/json"),
        (status = 413, description = "Too large", body = ErrorBody, content_type = "application/json"),
        (status = 429, description = "Too many requests in memory", body = ErrorBody, content_type = "application/json"),
        (status = 503, description = "Draining, or unable to store", body = ErrorBody, content_type = "application/json"),
    )
)]
#[expect(dead_code, reason = "only its description is used")]
fn take_handed() {}

/// Tell this daemon remembered idempotency keys, after the events
///
/// Lines of JSON (NDJSON), at most 1,000. They have digests only.
#[utoipa::path(
    post,
    path = "/v1/handoff/keys",
    params(
        ("x-sendoff-handoff" = Option<String>, Header, description = "As for events"),
        ("x-sendoff-instance" = Option<String>, Header, description = "As for events"),
        ("x-sendoff-region" = Option<String>, Header, description = "As for events"),
        ("x-sendoff-account" = Option<String>, Header, description = "As for events"),
    ),
    request_body(content((String = "application/x-ndjson"))),
    responses(
        (status = 200, description = "Remembered, on stable storage", body = LearnedKeys),
        (status = 400, description = "Not keys", body = ErrorBody, content_type = "application/json"),
        (status = 401, description = "Not a known client, where that is required", body = ErrorBody,
         content_type = "application/json"),
        (status = 403, description = "The client may not hand over", body = ErrorBody, content_type = "application/json"),
        (status = 404, description = "This daemon takes no hand-offs", body = ErrorBody, content_type = "application/json"),
        (status = 409, description = "Not from this sender", body = ErrorBody, content_type = "application/json"),
        (status = 413, description = "Too large", body = ErrorBody, content_type = "application/json"),
        (status = 429, description = "Too many requests in memory", body = ErrorBody, content_type = "application/json"),
        (status = 503, description = "Draining, or unable to store", body = ErrorBody, content_type = "application/json"),
    )
)]
#[expect(dead_code, reason = "only its description is used")]
fn take_keys() {}
