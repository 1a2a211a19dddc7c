//! Lambda's answers on the wire. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::json;
use uuid::Uuid;

use crate::standin::request::{Asked, InvocationType};
use crate::standin::script::{ErrorAnswer, Throttle};

pub(super) type Reply = Response<Full<Bytes>>;

/// Error codes whose text is in `message`. In all others it is in `Message`. From AWS's API model of Lambda
/// (2015-03-31), and for codes outside of the model from what is known of the wire.
const LOWER_CASE_MESSAGE: &[&str] = &[
    "TooManyRequestsException",
    "InvalidParameterValueException",
    "InvalidRequestContentException",
    "RequestTooLargeException",
    "RequestEntityTooLargeException",
    "SerializedRequestEntityTooLargeException",
    "UnsupportedMediaTypeException",
    "ResourceConflictException",
    "ResourceNotReadyException",
    "RuntimeAliasDeletedException",
    "RuntimeVersionDeletedException",
    "CodeArtifactUserPendingException",
    "CodeArtifactUserDeletedException",
    "CodeArtifactUserFailedException",
    "ModeNotSupportedException",
];

/// The successful answer for each invocation type.
pub(super) fn success(asked: &Asked, request_id: Uuid, result: Bytes) -> Reply {
    match asked.invocation_type {
        InvocationType::Event => answer(StatusCode::ACCEPTED, request_id, Bytes::new()),
        InvocationType::DryRun => answer(StatusCode::NO_CONTENT, request_id, Bytes::new()),
        InvocationType::RequestResponse => ran(asked, request_id, result),
    }
}

/// The answer to a `RequestResponse` whose function ran and failed.
pub(super) fn function_error(asked: &Asked, request_id: Uuid, message: &str) -> Reply {
    let body = json!({
        "errorMessage": message,
        "errorType": "Error",
        "requestId": request_id.to_string(),
        "stackTrace": [],
    });
    let mut reply = ran(asked, request_id, Bytes::from(body.to_string()));
    reply.headers_mut().insert("x-amz-function-error", HeaderValue::from_static("Unhandled"));
    reply
}

fn ran(asked: &Asked, request_id: Uuid, body: Bytes) -> Reply {
    let mut reply = answer(StatusCode::OK, request_id, body);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let version = asked.qualifier.as_deref().filter(|it| it.bytes().all(|b| b.is_ascii_digit())).unwrap_or("$LATEST");
    insert(headers, "x-amz-executed-version", version);
    if asked.tail {
        let log = format!("START RequestId: {request_id} Version: {version}\nEND RequestId: {request_id}\n");
        insert(headers, "x-amz-log-result", &STANDARD.encode(log));
    }
    reply
}

pub(super) fn throttled(throttle: Throttle, request_id: Uuid) -> Reply {
    let body = json!({ "Reason": throttle.reason.as_str(), "Type": "User", "message": "Rate Exceeded." });
    let mut reply = coded(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException", request_id, &body);
    if let Some(wait) = throttle.retry_after {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(wait) = throttle.retry_after_millis {
        insert(reply.headers_mut(), "x-amz-retry-after", &wait.as_millis().to_string());
    }
    reply
}

pub(super) fn error(error: &ErrorAnswer, request_id: Uuid) -> Reply {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fault = if status.is_server_error() { "Service" } else { "User" };
    let body = if error.code == "ValidationException" {
        json!({ "message": error.message })
    } else if LOWER_CASE_MESSAGE.contains(&error.code.as_str()) {
        json!({ "Type": fault, "message": error.message })
    } else {
        json!({ "Type": fault, "Message": error.message })
    };
    coded(status, &error.code, request_id, &body)
}

/// The page of a proxy or load balancer: no error code, no request id, not JSON.
pub(super) fn html(status: u16) -> Reply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let body = format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>");
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    reply
}

pub(super) fn unknown_path(request_id: Uuid) -> Reply {
    coded(StatusCode::NOT_FOUND, "UnknownOperationException", request_id, &json!({}))
}

fn coded(status: StatusCode, code: &str, request_id: Uuid, body: &serde_json::Value) -> Reply {
    let mut reply = answer(status, request_id, Bytes::from(body.to_string()));
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    insert(headers, "x-amzn-errortype", code);
    reply
}

fn answer(status: StatusCode, request_id: Uuid, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    insert(reply.headers_mut(), "x-amzn-requestid", &request_id.to_string());
    reply
}

/// Omits the header if a script's text is not a valid value.
fn insert(headers: &mut http::HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
