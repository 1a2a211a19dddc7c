//! The requests and answers of the native door, `/v1/events` and `/v1/events/{id}`, as plain data.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::clock::{MILLIS_MAX, UnixMillis};
use crate::event::check::{Fields, echo_of};
use crate::event::{Carried, EventId, Function, KeySource, PAYLOAD_BYTES_MAX};
use crate::ingest::Settings;
use crate::ingest::key::Offers;
use crate::ingest::refusal::Refusal;
use crate::outbox::{Found, LastOutcome};
use crate::past::{End, EndView};
use crate::trace;

/// The most events in a batch.
pub const BATCH_EVENTS_MAX: usize = 1_000;

/// The most bytes in a batch.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

/// How far ahead an event may be scheduled. A time further ahead is more likely in the wrong unit.
pub const AHEAD_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);

/// A smaller number is taken for seconds: as milliseconds it would lie before September 2001.
pub const MILLIS_MIN: u64 = 1_000_000_000_000;

/// The pattern of a duration as humantime reads it.
pub const DELAY_PATTERN: &str = "^(0|([0-9]+(\\.[0-9]+)? *(nanos|nsec|ns|usec|us|millis|msec|ms|seconds?|secs?|s|minutes?|mins?|m|\
                                 hours?|hrs?|h|days?|d|weeks?|wks?|w|months?|M|years?|yrs?|y) *)+)$";

/// An event to be stored and delivered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEvent<'a> {
    /// Name, partial ARN or ARN, as in Lambda's Invoke.
    #[schema(min_length = 1, max_length = 256)]
    function: String,
    /// What the function is called with, byte for byte; without it, nothing, which Lambda takes for `{}`. At most 1 MiB.
    #[serde(borrow, default, deserialize_with = "raw")]
    #[schema(value_type = Option<serde_json::Value>)]
    payload: Option<&'a RawValue>,
    /// Version or alias.
    #[schema(min_length = 1, max_length = 128)]
    qualifier: Option<String>,
    /// The same key means the same event. The header `Idempotency-Key` comes before it, for a single event.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    idempotency_key: Option<String>,
    /// Not to be attempted before; at most 366 days ahead, and not beside `delay`.
    deliver_at: Option<Time>,
    /// Not to be attempted before so much time has passed.
    delay: Option<Delay>,
    /// Not worth attempting after: then it becomes a dead letter. After now, `deliver_at` and `delay`.
    expires_at: Option<Time>,
    /// For functions with tenant isolation.
    #[schema(min_length = 1, max_length = 256, pattern = "^[a-zA-Z0-9._:/=+@ -]+$")]
    tenant_id: Option<String>,
    /// `X-Amzn-Trace-Id`. A single event without it takes the trace of its request.
    #[schema(max_length = 1024, pattern = "^[ -~]*$")]
    trace_header: Option<String>,
}

/// `null` is a payload, not the absence of one.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A point in time: milliseconds since 1970 UTC, or RFC 3339.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Time {
    Millis(u64),
    #[schema(format = DateTime)]
    Text(String),
}

/// A span of time of at most 366 days: seconds, or as in `10m`, `1h 30m`, `500ms`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Delay {
    Seconds(u64),
    Text(String),
}

/// A whole number or a text. serde's `untagged` would first buffer any value, for example a list of millions of numbers
/// at 32 bytes each.
struct WholeOrText<T> {
    expected: &'static str,
    whole: fn(u64) -> T,
    text: fn(String) -> T,
}

impl<T> Visitor<'_> for WholeOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        Ok((self.whole)(number))
    }

    /// Accepts `7.0` as whole, as JSON Schema does. Some JSON writers produce it.
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        if number.fract() != 0.0 || !(0.0..9e15).contains(&number) {
            return Err(E::invalid_value(Unexpected::Float(number), &self));
        }
        // All accepted times and delays are far below 2^53, so the conversion is exact.
        Ok((self.whole)(number as u64))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        Ok((self.text)(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a time: text like \"2026-11-23T15:00:00Z\", or whole milliseconds";
        deserializer.deserialize_any(WholeOrText { expected, whole: Self::Millis, text: Self::Text })
    }
}

impl<'de> Deserialize<'de> for Delay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a delay: text like \"10m\", or whole seconds";
        deserializer.deserialize_any(WholeOrText { expected, whole: Self::Seconds, text: Self::Text })
    }
}

/// An event before acceptance. Everything is checked except the key, which may be in the payload.
#[derive(Debug, Clone)]
pub struct Draft {
    pub function: Function,
    pub carried: Carried,
    pub keys: Offers,
    pub payload: Bytes,
    pub deliver_at: Option<UnixMillis>,
    pub expires_at: Option<UnixMillis>,
    /// In bytes.
    pub payload_max: usize,
}

/// Reads one event. `text` must be a part of `body`, so that the payload can share the body's memory.
pub fn read_event(
    text: &str,
    body: &Bytes,
    headers: Option<&http::HeaderMap>,
    now: UnixMillis,
    settings: &Settings,
) -> Result<Draft, Refusal> {
    let invalid = Refusal::content;
    // serde also reads a struct from a list of its fields, in the order of the source.
    if text.trim_start().starts_with('[') {
        return Err(invalid(
            "not an event: a list. Send an object, or one object a line as application/x-ndjson".to_owned(),
        ));
    }
    let event: NewEvent<'_> =
        serde_json::from_str(text).map_err(|error| invalid(format!("not an event: {}", echo_of(&error))))?;
    let payload = event.payload.map_or_else(Bytes::new, |raw| body.slice_ref(raw.get().as_bytes()));
    if payload.len() > PAYLOAD_BYTES_MAX {
        let (bytes, limit) = (Some(payload.len() as u64), PAYLOAD_BYTES_MAX as u64);
        return Err(Refusal::PayloadTooLarge { bytes, limit });
    }
    if event.trace_header.as_ref().is_some_and(|text| !trace::is_header(text)) {
        return Err(invalid(trace::HEADER_RULE.to_owned()));
    }
    let fields = Fields { address: event.function, qualifier: event.qualifier, tenant_id: event.tenant_id };
    let function = fields.function(&settings.home)?;
    let deliver_at = match (event.deliver_at, event.delay) {
        (Some(_), Some(_)) => return Err(invalid("deliver_at and delay contradict each other: give one".to_owned())),
        (Some(time), None) => Some(time.read("deliver_at")?),
        (None, Some(delay)) => Some(now.plus(delay.read()?)),
        (None, None) => None,
    };
    let expires_at = event.expires_at.map(|time| time.read("expires_at")).transpose()?;
    if deliver_at.is_some_and(|time| time > now.plus(AHEAD_MAX)) {
        return Err(invalid("deliver_at is more than 366 days ahead".to_owned()));
    }
    if expires_at.is_some_and(|time| time <= deliver_at.unwrap_or(now).max(now)) {
        return Err(invalid("expires_at is not after now and deliver_at".to_owned()));
    }
    let of_request = || headers.and_then(trace::header).filter(|text| trace::is_header(text));
    let trace_header = event.trace_header.or_else(of_request);
    let carried = Carried { trace_header, tenant_id: fields.tenant_id, ..Carried::default() };
    let keys = Offers::native(headers, event.idempotency_key)?;
    let deliver_at = deliver_at.filter(|time| *time > now);
    Ok(Draft { function, carried, keys, payload, deliver_at, expires_at, payload_max: PAYLOAD_BYTES_MAX })
}

impl Time {
    fn read(self, field: &str) -> Result<UnixMillis, Refusal> {
        match self {
            Self::Millis(millis) if (MILLIS_MIN..=MILLIS_MAX).contains(&millis) => Ok(UnixMillis(millis)),
            Self::Millis(..MILLIS_MIN) => Err(Refusal::content(format!("{field} is in milliseconds, not in seconds"))),
            Self::Millis(_) => Err(Refusal::content(format!("{field} is after the year 9999"))),
            Self::Text(text) => UnixMillis::read_rfc3339(&text).ok_or_else(|| {
                Refusal::content(format!("{field} must be like \"2026-11-23T15:00:00Z\", or milliseconds"))
            }),
        }
    }
}

impl Delay {
    fn read(self) -> Result<Duration, Refusal> {
        let delay = match self {
            Self::Seconds(seconds) => Some(Duration::from_secs(seconds)),
            Self::Text(text) => humantime::parse_duration(&text).ok(),
        };
        delay
            .filter(|delay| *delay <= AHEAD_MAX)
            .ok_or_else(|| Refusal::content("delay must be seconds, or like \"10m\", and at most 366 days".to_owned()))
    }
}

/// Whether the body is a batch of lines: by its type if that says so, else by its first line.
pub fn is_batch(content_type: Option<&str>, body: &str) -> bool {
    let mime = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let says_lines = ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];
    if says_lines.contains(&mime.as_str()) {
        return true;
    }
    if mime == "application/json" {
        return false;
    }
    let Some((first, rest)) = body.trim_start().split_once('\n') else { return false };
    !rest.trim().is_empty() && serde_json::from_str::<serde::de::IgnoredAny>(first).is_ok()
}

/// The non-blank lines of a batch.
pub fn lines(body: &str) -> impl Iterator<Item = &str> {
    body.lines().filter(|line| !line.trim().is_empty())
}

/// What became of one event: the answer to it, or its line in the answer to a batch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum EventAnswer {
    Accepted(AcceptedEvent),
    Refused(RefusedEvent),
}

impl EventAnswer {
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted(_))
    }
}

/// The event is on stable storage.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AcceptedEvent {
    /// Always 202.
    pub status: u16,
    /// The event's id, or the first event's for a repeat.
    #[schema(value_type = String, format = "uuid")]
    pub id: EventId,
    /// The key was known, with the same payload: nothing was stored.
    pub duplicate: bool,
    /// Where the key came from.
    #[schema(value_type = String)]
    pub key_source: KeySource,
}

/// Nothing of the event is stored.
#[derive(Debug, Serialize, ToSchema)]
pub struct RefusedEvent {
    /// What the event would have been answered with alone: 400, 413, 422, 503.
    pub status: u16,
    /// Lambda's error code, or ours where it has none.
    pub code: String,
    pub message: String,
    /// Whose key it is, if another event's.
    #[schema(value_type = Option<String>, format = "uuid")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<EventId>,
    /// When to come back, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// A request that is refused as a whole, in Lambda's own shape. The code is in the header `x-amzn-ErrorType`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct ErrorBody {
    /// `User` or `Service`: whose fault it is.
    #[serde(rename = "Type")]
    #[schema(rename = "Type")]
    pub fault: Option<String>,
    /// The text, in some errors.
    #[serde(rename = "message")]
    #[schema(rename = "message")]
    pub lower_message: Option<String>,
    /// The text, in all others.
    pub message: Option<String>,
    /// Of a 429.
    pub reason: Option<String>,
}

/// Where an event is. Never its payload, never its key.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventState {
    #[schema(value_type = String, format = "uuid")]
    pub id: EventId,
    /// The canonical name.
    pub function: String,
    /// `ready`, `waiting` for its next attempt, `scheduled` for its first, or `buried`; `done` once it has left the store.
    pub state: &'static str,
    /// Whether the event is being attempted or shipped now.
    pub in_flight: bool,
    /// All calls of Lambda for the event.
    pub attempts: u32,
    /// The calls that count towards `attempts_max`.
    pub charged: u32,
    #[schema(format = DateTime)]
    pub accepted_at: String,
    #[schema(format = DateTime)]
    pub deliver_at: Option<String>,
    #[schema(format = DateTime)]
    pub expires_at: Option<String>,
    /// When the next attempt is due.
    #[schema(format = DateTime)]
    pub due: Option<String>,
    pub last_error: Option<Outcome>,
    /// Why the event was buried: `retries-exhausted`, `event-age-exceeded` or `refused`.
    pub reason: Option<&'static str>,
    #[schema(format = DateTime)]
    pub buried_at: Option<String>,
    /// What became of it, once it has left the store.
    pub end: Option<EndView>,
}

impl EventState {
    /// Whether it will not change by itself: it has left the store, or is a dead letter.
    pub fn is_final(&self) -> bool {
        self.end.is_some() || self.reason.is_some()
    }
}

/// An event that has left the store. Who removed it is none of its client's business.
impl From<End> for EventState {
    fn from(end: End) -> Self {
        let shown = EndView { by: None, ..EndView::from(&end) };
        Self {
            id: end.id,
            function: end.function.as_str().to_owned(),
            state: "done",
            in_flight: false,
            attempts: end.attempts,
            charged: end.charged,
            accepted_at: end.id.accepted_at().rfc3339(),
            deliver_at: None,
            expires_at: None,
            due: None,
            last_error: end.last_error.map(Into::into),
            reason: end.reason.map(|reason| reason.as_str()),
            buried_at: None,
            end: Some(shown),
        }
    }
}

/// The result of the last failed attempt.
#[derive(Debug, Serialize, ToSchema)]
pub struct Outcome {
    #[schema(format = DateTime)]
    pub at: String,
    /// The HTTP status, or 0 without an answer.
    pub status: u16,
    pub code: String,
    pub message: String,
    /// Lambda's request id, to find the call in CloudWatch.
    pub request_id: Option<String>,
}

impl From<LastOutcome> for Outcome {
    fn from(last: LastOutcome) -> Self {
        let LastOutcome { at, status, code, message, request_id } = last;
        Self { at: at.rfc3339(), status, code, message, request_id }
    }
}

impl From<Found> for EventState {
    fn from(found: Found) -> Self {
        let Found { event, history, place, leased, payload_bytes: _ } = found;
        Self {
            id: event.id,
            function: event.function.name.as_str().to_owned(),
            state: place.as_str(),
            in_flight: leased,
            attempts: history.calls,
            charged: history.attempts,
            accepted_at: event.accepted_at.rfc3339(),
            deliver_at: event.deliver_at.map(UnixMillis::rfc3339),
            expires_at: event.expires_at.map(UnixMillis::rfc3339),
            due: Some(history.due).filter(|due| due.0 > 0).map(UnixMillis::rfc3339),
            last_error: history.last.map(Into::into),
            reason: history.burial.as_ref().map(|burial| burial.reason.as_str()),
            buried_at: history.burial.map(|burial| burial.at.rfc3339()),
            end: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::lambda_api::tests::settings;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn read(text: &str) -> Result<Draft, String> {
        let body = Bytes::from(text.to_owned());
        let text = std::str::from_utf8(&body).unwrap();
        read_event(text, &body, None, NOW, &settings()).map_err(|refusal| refusal.message())
    }

    #[test]
    fn a_single_event_takes_the_trace_of_its_request() {
        const TRACE: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1";
        let headers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("x-amzn-trace-id"),
            http::HeaderValue::from_static(TRACE),
        )]);
        for (own, headers, expected) in [
            ("", Some(&headers), Some(TRACE)),
            (r#","trace_header":"Root=1""#, Some(&headers), Some("Root=1")),
            ("", None, None),
        ] {
            let body = Bytes::from(format!(r#"{{"function":"orders"{own}}}"#));
            let text = std::str::from_utf8(&body).unwrap();
            let draft = read_event(text, &body, headers, NOW, &settings()).unwrap();
            assert_eq!(draft.carried.trace_header.as_deref(), expected);
        }
    }

    #[test]
    fn an_event_keeps_the_bytes_of_its_payload() {
        for (payload, expected) in [
            (r#","payload":{"a": 1.50,  "b":[ 1 ]}"#, r#"{"a": 1.50,  "b":[ 1 ]}"#),
            (r#","payload":null"#, "null"),
            (r#","payload":"\u00e4""#, r#""\u00e4""#),
            ("", ""),
        ] {
            let draft = read(&format!(r#"{{"function":"orders"{payload}}}"#)).unwrap();
            assert_eq!(draft.payload, expected);
        }
        let whole = read(
            r#"{"function":"orders:prod","qualifier":"prod","tenant_id":"blue team","trace_header":"Root=1",
                "idempotency_key":"k","delay":"10m","expires_at":1790003600000.0}"#,
        )
        .unwrap();
        assert_eq!(whole.function.name.as_str(), "orders:prod");
        assert_eq!(whole.carried.tenant_id.as_deref(), Some("blue team"));
        assert_eq!(whole.carried.trace_header.as_deref(), Some("Root=1"));
        assert_eq!(whole.deliver_at, Some(NOW.plus(Duration::from_secs(600))));
        assert_eq!(whole.expires_at, Some(UnixMillis(1_790_003_600_000)));
    }

    #[test]
    fn an_event_that_is_not_valid_says_why() {
        let too_large = format!(r#""payload":"{}""#, "x".repeat(PAYLOAD_BYTES_MAX));
        for (fields, why) in [
            (r#""payload":{}"#, "missing field `function`"),
            (r#""function":"f","idempotencyKey":"k""#, "unknown field `idempotencyKey`"),
            (r#""function":"a b""#, "at 'functionName' failed to satisfy constraint"),
            (r#""function":"f:dev","qualifier":"prod""#, "does not match the specified qualifier"),
            (r##""function":"f","tenant_id":"#""##, "at 'tenantId' failed to satisfy constraint"),
            (r#""function":"f","trace_header":"a\nb""#, "trace_header must be printable"),
            (r#""function":"f","idempotency_key":"""#, "idempotency_key must have 1 to 255 characters"),
            (r#""function":"f","deliver_at":1790003600"#, "deliver_at is in milliseconds"),
            (r#""function":"f","expires_at":253402300800000"#, "expires_at is after the year 9999"),
            (r#""function":"f","deliver_at":"tomorrow""#, "deliver_at must be like"),
            (r#""function":"f","deliver_at":"2099-01-01T00:00:00Z""#, "more than 366 days ahead"),
            (r#""function":"f","deliver_at":1790003600000,"delay":1"#, "contradict each other"),
            (r#""function":"f","delay":"soon""#, "delay must be seconds"),
            (r#""function":"f","delay":-1"#, "expected a delay: text like \"10m\", or whole seconds"),
            (r#""function":"f","delay":1.5"#, "or whole seconds"),
            (r#""function":"f","expires_at":true"#, "or whole milliseconds"),
            (r#""function":"f","expires_at":1790000000000"#, "expires_at is not after now"),
            (r#""function":"f","delay":60,"expires_at":1790000060000"#, "expires_at is not after now"),
            (&format!(r#""function":"f",{too_large}"#), "1048578 byte payload is too large"),
        ] {
            let said = read(&format!("{{{fields}}}")).unwrap_err();
            assert!(said.contains(why), "{fields:.80}: {said}");
        }
        for list in ["[]", " [\"f\",{}]", "[{\"function\":\"f\"}]"] {
            assert!(read(list).unwrap_err().contains("Send an object"), "{list}");
        }
    }

    #[test]
    fn a_delay_is_read_as_the_document_says() {
        let pattern = regex_lite::Regex::new(DELAY_PATTERN).unwrap();
        for (text, fits) in [
            ("10m", true),
            ("1h 30m", true),
            ("2 days 3hrs", true),
            ("500ms", true),
            ("0", true),
            ("7", false),
            ("m", false),
            ("10 parsecs", false),
            ("-1s", false),
            ("1.5h", true),
            (".5h", false),
            ("", false),
        ] {
            assert_eq!(pattern.is_match(text), fits, "{text:?}");
            assert_eq!(Delay::Text(text.to_owned()).read().is_ok(), fits, "{text:?}");
        }
    }

    #[test]
    fn a_batch_is_told_by_its_type_or_by_its_first_line() {
        let (two, pretty) = ("{\"a\":1}\n\n{\"b\":2}\n", "{\n  \"a\": 1\n}\n");
        assert_eq!(lines(two).collect::<Vec<_>>(), ["{\"a\":1}", "{\"b\":2}"]);
        for (content_type, body, batch) in [
            (Some("application/x-ndjson; charset=utf-8"), two, true),
            (Some("application/x-ndjson"), "{\"a\":1}", true),
            (None, two, true),
            (Some("application/x-www-form-urlencoded"), two, true),
            (Some("application/json"), two, false),
            (None, pretty, false),
            (None, "{\"a\":1}\n", false),
            (None, "", false),
        ] {
            assert_eq!(is_batch(content_type, body), batch, "{content_type:?} {body}");
        }
    }
}
