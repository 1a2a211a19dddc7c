//! Writes Lambda's record for on-failure destinations, and reads those that Lambda or sendoff wrote. Pure.
//!
//! AWS defines the form ("Capturing records of Lambda asynchronous invocations", version 1.0 of the record).

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::Event;
use crate::outbox::{BuryReason, History};

const VERSION: &str = "1.0";

/// The version that Lambda writes for a function without a qualifier.
const LATEST: &str = "$LATEST";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordOut<'a> {
    version: &'a str,
    timestamp: String,
    request_context: RequestContextOut<'a>,
    request_payload: RequestPayload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_context: Option<ResponseContextOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_payload: Option<ResponsePayloadOut<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestContextOut<'a> {
    request_id: String,
    function_arn: String,
    condition: &'a str,
    approximate_invoke_count: u32,
}

#[derive(Serialize)]
#[serde(untagged)]
enum RequestPayload<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Empty {},
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseContextOut<'a> {
    status_code: u16,
    executed_version: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponsePayloadOut<'a> {
    error_message: &'a str,
    error_type: &'a str,
}

/// The record of a dead letter, and whether its payload is a string because it is not JSON. `None` means that the
/// payload is not text.
pub fn body_of(event: &Event, history: &History) -> Option<(String, bool)> {
    let text = std::str::from_utf8(&event.payload).ok()?;
    let json: Option<&RawValue> = serde_json::from_str(text).ok();
    let request_payload = match json {
        Some(json) => RequestPayload::Json(json),
        None if text.is_empty() => RequestPayload::Empty {},
        None => RequestPayload::Text(text),
    };
    let text_payload = matches!(request_payload, RequestPayload::Text(_));
    let last = history.last.as_ref();
    let version = event.function.qualifier.as_deref().unwrap_or(LATEST);
    let request_id = last.and_then(|last| last.request_id.clone()).unwrap_or_else(|| event.id.to_string());
    let record = RecordOut {
        version: VERSION,
        timestamp: history.burial.as_ref().map_or(event.accepted_at, |burial| burial.at).rfc3339(),
        request_context: RequestContextOut {
            request_id,
            function_arn: function_arn(&event.function.address, version),
            condition: history.burial.as_ref().map_or("RetriesExhausted", |burial| condition_of(burial.reason)),
            approximate_invoke_count: history.calls,
        },
        request_payload,
        response_context: last.map(|last| ResponseContextOut { status_code: last.status, executed_version: version }),
        response_payload: last.map(|last| ResponsePayloadOut { error_message: &last.message, error_type: &last.code }),
    };
    Some((serde_json::to_string(&record).ok()?, text_payload))
}

/// Lambda has no word for an event that it refuses. The attribute `Reason` is exact.
fn condition_of(reason: BuryReason) -> &'static str {
    match reason {
        BuryReason::EventAgeExceeded => "EventAgeExceeded",
        BuryReason::RetriesExhausted | BuryReason::Refused => "RetriesExhausted",
    }
}

/// The ARN with its version, as Lambda writes it. A bare name stays a name, because the account is not known here.
fn function_arn(address: &str, version: &str) -> String {
    let has_version = match address.strip_prefix("arn:") {
        Some(arn) => arn.split(':').count() > 6,
        None => address.contains(':'),
    };
    if has_version { address.to_owned() } else { format!("{address}:{version}") }
}

/// What a redrive needs from a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub request_id: String,
    pub function_arn: String,
    pub condition: String,
    /// In RFC 3339, as written.
    pub timestamp: Option<String>,
    /// The payload's JSON as in the record, byte for byte.
    pub payload: String,
    pub error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordIn<'a> {
    #[serde(default)]
    timestamp: Option<String>,
    request_context: RequestContextIn,
    #[serde(borrow)]
    request_payload: &'a RawValue,
    #[serde(default, borrow)]
    response_payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestContextIn {
    request_id: String,
    function_arn: String,
    condition: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResponsePayloadIn {
    error_message: Option<String>,
    error_type: Option<String>,
}

/// Reads a body as a record. `None` means that it is not one.
pub fn read(body: &str) -> Option<Record> {
    let record: RecordIn<'_> = serde_json::from_str(body).ok()?;
    let response = record.response_payload.and_then(|raw| serde_json::from_str::<ResponsePayloadIn>(raw.get()).ok());
    let error = response.and_then(|response| match (response.error_type, response.error_message) {
        (Some(kind), Some(message)) => Some(format!("{kind}: {message}")),
        (kind, message) => kind.or(message),
    });
    Some(Record {
        request_id: record.request_context.request_id,
        function_arn: record.request_context.function_arn,
        condition: record.request_context.condition,
        timestamp: record.timestamp,
        payload: record.request_payload.get().to_owned(),
        error,
    })
}
