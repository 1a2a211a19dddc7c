//! Refusals and their answers, in Lambda's own error shape, so that every SDK understands them.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::event::check::{Invalid, echo};
use crate::event::{EventId, KeySource};
use crate::hop::Marked;
use crate::ingest::admission::Crowded;
use crate::ingest::client::Unidentified;
use crate::ingest::sigv4::Flaw;
use crate::plural::agree;

pub const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The event that an answer is about. In a conflict, the event that has the key.
pub const EVENT_ID: HeaderName = HeaderName::from_static("x-sendoff-event-id");

/// When to retry, in milliseconds. boto3 and the Rust SDK obey this header, all other clients `Retry-After`.
pub const RETRY_AFTER_MILLIS: HeaderName = HeaderName::from_static("x-amz-retry-after");

/// Why a request is refused. Nothing of it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    UnknownOperation,
    /// A web page sent it.
    FromBrowser,
    /// The host name is not a known one, as after DNS rebinding by a web page. `host` is the name, or what is wrong with it.
    HostUnknown {
        host: String,
    },
    /// A sendoff sent it, and would take the answer for Lambda's.
    Looped {
        by: Marked,
    },
    MethodNotAllowed {
        allow: &'static str,
    },
    /// The caller is no known client.
    Unidentified(Unidentified),
    /// The client may not do this.
    NotAllowed(NotAllowed),
    Invalid(Invalid),
    /// The body is compressed or otherwise encoded, as `header` says.
    Encoded {
        header: &'static str,
        coding: String,
    },
    /// `bytes` is the payload's length, if it is known.
    PayloadTooLarge {
        bytes: Option<u64>,
        limit: u64,
    },
    /// A batch is too large. `limit` describes the limit.
    BatchTooLarge {
        limit: String,
    },
    /// The event is not stored, or no longer.
    EventUnknown {
        id: EventId,
    },
    /// Too many requests wait for the ends of events.
    TooManyWait {
        retry_after: Duration,
    },
    /// The same for a call that is passed through.
    CallTooLarge {
        limit: u64,
    },
    /// Not an Event invocation. `mode` is the requested type.
    ModeNotSupported {
        mode: &'static str,
    },
    Crowded {
        crowded: Crowded,
        retry_after: Duration,
    },
    /// The limit of concurrent pass-through calls is reached.
    CallsInFlight {
        limit: usize,
        retry_after: Duration,
    },
    /// A call could not be passed through, and was certainly not sent.
    NotPassed {
        why: String,
        retry_after: Duration,
    },
    /// A call was passed through without an answer. It may have run.
    AnswerLost {
        why: String,
    },
    /// The caller left before the answer.
    CallerGone,
    /// The body did not arrive in time.
    BodyTimeout,
    /// The connection ended before the body did.
    BodyTorn,
    /// The key belongs to another event.
    Conflict {
        first: EventId,
        source: KeySource,
    },
    /// A sendoff hands over events that mean something else here, or are this daemon's own. With `retry_after`: this daemon
    /// is draining.
    HandOffElsewhere {
        why: String,
        retry_after: Option<Duration>,
    },
    /// The outbox is full. The text names the limit.
    Full {
        why: String,
        retry_after: Duration,
    },
    /// The outbox cannot store anything now.
    Unavailable {
        why: String,
        retry_after: Duration,
    },
}

/// What a client may not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAllowed {
    pub client: String,
    /// Lambda's name of the permission.
    pub action: &'static str,
    /// The function, or the path of the operation, shortened by [`echo`].
    pub resource: String,
    /// The key of the client's table that would allow it.
    pub key: &'static str,
}

/// The fixed part of a refusal.
struct Shape {
    status: StatusCode,
    code: &'static str,
    /// The `Type` in the body. Lambda's ValidationException has none.
    fault: Option<&'static str>,
    /// Lambda names the text `message` in some errors and `Message` in others.
    text_field: &'static str,
    /// The label in metrics.
    reason: &'static str,
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl Refusal {
    /// A header or the payload is invalid. `why` says how.
    pub fn content(why: String) -> Self {
        Self::Invalid(Invalid::Content(why))
    }

    /// All values of [`Refusal::reason`].
    pub const REASONS: [&str; 30] = [
        "no-credentials",
        "unknown-credentials",
        "bad-signature",
        "malformed-signature",
        "not-allowed",
        "unknown-operation",
        "from-browser",
        "host-unknown",
        "looped",
        "event-unknown",
        "waiting",
        "batch-too-large",
        "method-not-allowed",
        "validation",
        "qualifier-mismatch",
        "invalid-content",
        "encoded",
        "payload-too-large",
        "mode-not-supported",
        "crowded",
        "body-timeout",
        "body-torn",
        "conflict",
        "handoff-elsewhere",
        "calls-in-flight",
        "not-passed",
        "answer-lost",
        "caller-gone",
        "full",
        "unavailable",
    ];

    /// The label in `sendoff_ingest_refused_total` and in the log, one of a few words.
    pub fn reason(&self) -> &'static str {
        self.shape().reason
    }

    /// Whether the caller has no right to what it asks for. Such a refusal must cost little.
    pub fn is_of_a_stranger(&self) -> bool {
        matches!(self, Self::Unidentified(_) | Self::NotAllowed(_))
    }

    /// Whether the client may still be sending the body. Reading the rest then lets it see the answer.
    pub fn leaves_body(&self) -> bool {
        !matches!(self, Self::BodyTimeout | Self::BodyTorn)
    }

    /// The answer.
    pub fn response(&self, request_id: &str) -> Response<Full<Bytes>> {
        let shape = self.shape();
        let mut body = json!({ shape.text_field: self.message() });
        if let Some(fault) = shape.fault {
            body["Type"] = fault.into();
        }
        if matches!(self, Self::Crowded { .. } | Self::CallsInFlight { .. } | Self::TooManyWait { .. }) {
            body["Reason"] = "CallerRateLimitExceeded".into();
        }
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = shape.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ERROR_TYPE, HeaderValue::from_static(shape.code));
        headers.insert(REQUEST_ID, header_value(request_id));
        if let Some(delay) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(delay)));
            headers.insert(RETRY_AFTER_MILLIS, header_value(&delay.as_millis().to_string()));
        }
        if let Self::MethodNotAllowed { allow } = self {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Self::Conflict { first, .. } = self {
            headers.insert(EVENT_ID, header_value(&first.to_string()));
        }
        response
    }

    /// The status, and Lambda's error code.
    pub fn status_and_code(&self) -> (StatusCode, &'static str) {
        let Shape { status, code, .. } = self.shape();
        (status, code)
    }

    /// When a retry may succeed.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Crowded { retry_after, .. }
            | Self::TooManyWait { retry_after }
            | Self::CallsInFlight { retry_after, .. }
            | Self::NotPassed { retry_after, .. }
            | Self::Full { retry_after, .. }
            | Self::Unavailable { retry_after, .. } => Some(*retry_after),
            Self::UnknownOperation
            | Self::FromBrowser
            | Self::HostUnknown { .. }
            | Self::Looped { .. }
            | Self::MethodNotAllowed { .. }
            | Self::Unidentified(_)
            | Self::NotAllowed(_)
            | Self::BatchTooLarge { .. }
            | Self::EventUnknown { .. }
            | Self::Invalid(_)
            | Self::Encoded { .. }
            | Self::PayloadTooLarge { .. }
            | Self::CallTooLarge { .. }
            | Self::ModeNotSupported { .. }
            | Self::AnswerLost { .. }
            | Self::CallerGone
            | Self::BodyTimeout
            | Self::BodyTorn
            | Self::Conflict { .. } => None,
            Self::HandOffElsewhere { retry_after, .. } => *retry_after,
        }
    }

    /// The status for a hand-off that goes elsewhere.
    fn elsewhere(&self) -> StatusCode {
        if self.retry_after().is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CONFLICT }
    }

    fn shape(&self) -> Shape {
        let user = |status, code, reason| Shape { status, code, fault: Some("User"), text_field: "message", reason };
        let capital = |shape: Shape| Shape { text_field: "Message", ..shape };
        let service = |status, reason| Shape {
            status,
            code: "ServiceException",
            fault: Some("Service"),
            text_field: "Message",
            reason,
        };
        match self {
            Self::UnknownOperation => user(StatusCode::NOT_FOUND, "UnknownOperationException", "unknown-operation"),
            Self::FromBrowser => capital(user(StatusCode::FORBIDDEN, "AccessDeniedException", "from-browser")),
            Self::HostUnknown { .. } => Shape {
                text_field: "Message",
                ..user(StatusCode::MISDIRECTED_REQUEST, "MisdirectedRequestException", "host-unknown")
            },
            // Neither a success, nor a throttle, nor a status that SDKs retry.
            Self::Looped { .. } => user(StatusCode::LOOP_DETECTED, "LoopDetectedException", "looped"),
            Self::EventUnknown { .. } => {
                capital(user(StatusCode::NOT_FOUND, "ResourceNotFoundException", "event-unknown"))
            }
            Self::BatchTooLarge { .. } => {
                user(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLargeException", "batch-too-large")
            }
            Self::MethodNotAllowed { .. } => {
                user(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowedException", "method-not-allowed")
            }
            Self::Unidentified(unidentified) => {
                let (code, reason) = match unidentified {
                    Unidentified::Missing => ("MissingAuthenticationTokenException", "no-credentials"),
                    Unidentified::Unknown => ("UnrecognizedClientException", "unknown-credentials"),
                    Unidentified::Flawed(Flaw::Malformed(_)) => ("IncompleteSignatureException", "malformed-signature"),
                    Unidentified::Flawed(Flaw::Mismatch | Flaw::Expired { .. } | Flaw::Early { .. }) => {
                        ("InvalidSignatureException", "bad-signature")
                    }
                };
                Shape { fault: None, ..user(StatusCode::FORBIDDEN, code, reason) }
            }
            Self::NotAllowed(_) => Shape {
                fault: None,
                text_field: "Message",
                ..user(StatusCode::FORBIDDEN, "AccessDeniedException", "not-allowed")
            },
            Self::Invalid(Invalid::Fields(_)) => {
                Shape { fault: None, ..user(StatusCode::BAD_REQUEST, "ValidationException", "validation") }
            }
            Self::Invalid(Invalid::QualifierMismatch) => {
                user(StatusCode::BAD_REQUEST, "InvalidParameterValueException", "qualifier-mismatch")
            }
            Self::Invalid(Invalid::Content(_)) => {
                user(StatusCode::BAD_REQUEST, "InvalidRequestContentException", "invalid-content")
            }
            // Lambda's code for a body that is not JSON.
            Self::Encoded { .. } => {
                user(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaTypeException", "encoded")
            }
            Self::PayloadTooLarge { .. } | Self::CallTooLarge { .. } => {
                user(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLargeException", "payload-too-large")
            }
            Self::ModeNotSupported { .. } => {
                user(StatusCode::BAD_REQUEST, "ModeNotSupportedException", "mode-not-supported")
            }
            Self::Crowded { .. } => user(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException", "crowded"),
            Self::TooManyWait { .. } => user(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException", "waiting"),
            Self::BodyTimeout => user(StatusCode::REQUEST_TIMEOUT, "RequestTimeoutException", "body-timeout"),
            Self::BodyTorn => user(StatusCode::BAD_REQUEST, "RequestAbortedException", "body-torn"),
            // Lambda's answer if the key is the name of a durable execution. Lambda has no code for the other sources.
            Self::Conflict { source: KeySource::DurableExecutionName, .. } => Shape {
                text_field: "Message",
                ..user(StatusCode::CONFLICT, "DurableExecutionAlreadyStartedException", "conflict")
            },
            Self::Conflict { .. } => user(StatusCode::CONFLICT, "IdempotencyConflictException", "conflict"),
            Self::HandOffElsewhere { .. } => user(self.elsewhere(), "ElsewhereException", "handoff-elsewhere"),
            Self::CallsInFlight { .. } => {
                user(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException", "calls-in-flight")
            }
            // SDKs retry both, as they retry Lambda's own errors.
            Self::NotPassed { .. } => service(StatusCode::SERVICE_UNAVAILABLE, "not-passed"),
            Self::AnswerLost { .. } => service(StatusCode::BAD_GATEWAY, "answer-lost"),
            Self::CallerGone => user(StatusCode::BAD_REQUEST, "RequestAbortedException", "caller-gone"),
            Self::Full { .. } => service(StatusCode::SERVICE_UNAVAILABLE, "full"),
            Self::Unavailable { .. } => service(StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        }
    }

    /// The text for people.
    pub fn message(&self) -> String {
        match self {
            Self::UnknownOperation => "sendoff serves Lambda's Invoke and InvokeAsync: \
                POST /2015-03-31/functions/{FunctionName}/invocations, and POST /v1/events. Other operations of Lambda's API pass \
                through if lambda.passthrough lets them: \"reads\" those that only read, \"all\" every one, \"none\" none; a path \
                with . or .. in it never does"
                .to_owned(),
            Self::FromBrowser => {
                "requests with Origin or Sec-Fetch-Site are refused, as only browsers send those: a web \
                page must not invoke functions with the rights of the machine that shows it"
                    .to_owned()
            }
            Self::HostUnknown { host } => format!(
                "{host:?} is not a known name of sendoff, so a web page may have made it point here: use an IP address or \
                localhost, or add the name to listen.ingest_hosts in sendoff's configuration"
            ),
            Self::Looped { by } => format!(
                "this call comes from {}, and a sendoff must deliver to Lambda itself: correct the endpoint that the \
                calling sendoff uses (lambda.endpoint_url, AWS_ENDPOINT_URL_LAMBDA, AWS_ENDPOINT_URL, or endpoint_url in \
                its AWS profile); nothing was stored",
                match by {
                    Marked::ByThisProcess => "this very sendoff",
                    Marked::ByAnother => "another sendoff",
                }
            ),
            Self::MethodNotAllowed { allow } => format!("this path takes {allow} only"),
            Self::Unidentified(Unidentified::Missing) => "Missing Authentication Token".to_owned(),
            Self::Unidentified(Unidentified::Unknown) => {
                "The security token included in the request is invalid.".to_owned()
            }
            Self::Unidentified(Unidentified::Flawed(flaw)) => flaw.message(),
            Self::NotAllowed(NotAllowed { client, action, resource, key }) => format!(
                "User: sendoff/{client} is not authorized to perform: {action} on resource: {resource} because \
                 clients.{client}.{key} in sendoff's configuration does not allow it"
            ),
            Self::BatchTooLarge { limit } => format!("a batch is at most {limit}: send it in parts"),
            Self::EventUnknown { id } => {
                let why = "it was never accepted, or it has left the store longer ago than [history] remembers";
                format!("event {id} is not stored: {why}")
            }
            Self::TooManyWait { .. } => {
                "Rate Exceeded. Too many requests wait for the ends of events; ask without wait, or again".to_owned()
            }
            Self::Invalid(invalid) => invalid.to_string(),
            Self::Encoded { header, coding } => format!(
                "{header} {coding} is not supported: sendoff hands bodies on as they are, so send the JSON itself, without {header}",
                coding = echo(coding)
            ),
            Self::PayloadTooLarge { bytes, limit } => {
                let size = bytes.map(|bytes| format!("{bytes} byte ")).unwrap_or_default();
                format!("{size}payload is too large for the Event invocation type (limit {limit} bytes)")
            }
            Self::CallTooLarge { limit } => {
                format!("Request must be smaller than {limit} bytes for the InvokeFunction operation")
            }
            Self::ModeNotSupported { mode } => format!(
                "This sendoff stores Event invocations and passes no other calls through to Lambda (lambda.passthrough = \
                 \"none\"), so it cannot take {mode}: set the invocation type to Event, call Lambda itself, or set \
                 lambda.passthrough to \"reads\""
            ),
            Self::CallsInFlight { limit, .. } => {
                let calls = agree(*limit as u64, "call is", "calls are");
                format!("Rate Exceeded. {calls} being passed through to Lambda (lambda.passthrough_max)")
            }
            Self::NotPassed { why, .. } => format!("sendoff could not pass the call through to Lambda: {why}"),
            Self::AnswerLost { why } => {
                format!("sendoff passed the call through to Lambda and got no answer; it may have run: {why}")
            }
            Self::CallerGone => "the caller closed its connection, so the call was cancelled".to_owned(),
            Self::Crowded { crowded: Crowded { used, limit }, .. } => {
                format!("Rate Exceeded. Requests in progress hold {used} bytes of at most {limit} (request_bytes_max)")
            }
            Self::BodyTimeout => "the request body did not arrive in time".to_owned(),
            Self::BodyTorn => "the connection ended within the request body".to_owned(),
            Self::Conflict { first, source } => format!(
                "the idempotency key ({}) was used before with another payload, by event {first}; nothing was stored",
                source.as_str()
            ),
            Self::HandOffElsewhere { why, .. } => format!("this daemon does not take these events: {why}"),
            Self::Full { why, .. } | Self::Unavailable { why, .. } => why.clone(),
        }
    }
}

/// A header value of text that we wrote ourselves: ids, numbers and words. What cannot be a header value becomes empty,
/// rather than a panic.
pub fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// Whole seconds, rounded up and never 0, because a client that retries early is refused again.
fn whole_seconds(delay: Duration) -> u64 {
    (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::clock::UnixMillis;
    use crate::event::FunctionName;
    use crate::event::check::Violation;

    async fn parts(refusal: &Refusal) -> (u16, String, String) {
        let (head, body) = refusal.response("req-1").into_parts();
        assert_eq!(head.headers[REQUEST_ID], "req-1");
        assert_eq!(head.headers[CONTENT_TYPE], "application/json");
        let body = body.collect().await.unwrap().to_bytes();
        let code = head.headers[ERROR_TYPE].to_str().unwrap().to_owned();
        (head.status.as_u16(), code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_refusal_has_lambdas_shape_to_the_byte() {
        let first = EventId::mint(UnixMillis(1), 0, &FunctionName::new("f"));
        let wait = Duration::from_millis(1_500);
        let violation =
            |field| Violation { field, value: "a b".into(), constraint: "Member must satisfy something".into() };
        let conflict = |source| Refusal::Conflict { first, source };
        let known = [
            (
                Refusal::Invalid(Invalid::Fields(vec![violation("functionName"), violation("qualifier")])),
                400,
                "ValidationException",
                r#"{"message":"2 validation errors detected: Value 'a b' at 'functionName' failed to satisfy constraint: Member must satisfy something; Value 'a b' at 'qualifier' failed to satisfy constraint: Member must satisfy something"}"#.to_owned(),
            ),
            (
                Refusal::Invalid(Invalid::QualifierMismatch),
                400,
                "InvalidParameterValueException",
                r#"{"Type":"User","message":"The derived qualifier from the function name does not match the specified qualifier."}"#.to_owned(),
            ),
            (
                Refusal::PayloadTooLarge { bytes: Some(1_048_577), limit: 1_048_576 },
                413,
                "RequestEntityTooLargeException",
                r#"{"Type":"User","message":"1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)"}"#.to_owned(),
            ),
            (
                Refusal::PayloadTooLarge { bytes: None, limit: 1_048_576 },
                413,
                "RequestEntityTooLargeException",
                r#"{"Type":"User","message":"payload is too large for the Event invocation type (limit 1048576 bytes)"}"#.to_owned(),
            ),
            (
                Refusal::Crowded { crowded: Crowded { used: 9, limit: 10 }, retry_after: wait },
                429,
                "TooManyRequestsException",
                r#"{"Reason":"CallerRateLimitExceeded","Type":"User","message":"Rate Exceeded. Requests in progress hold 9 bytes of at most 10 (request_bytes_max)"}"#.to_owned(),
            ),
            (
                Refusal::Encoded { header: "Content-Encoding", coding: "gzip".into() },
                415,
                "UnsupportedMediaTypeException",
                r#"{"Type":"User","message":"Content-Encoding gzip is not supported: sendoff hands bodies on as they are, so send the JSON itself, without Content-Encoding"}"#.to_owned(),
            ),
            (
                Refusal::Full { why: "the outbox is full".into(), retry_after: wait },
                503,
                "ServiceException",
                r#"{"Message":"the outbox is full","Type":"Service"}"#.to_owned(),
            ),
            (
                conflict(KeySource::Header),
                409,
                "IdempotencyConflictException",
                format!(r#"{{"Type":"User","message":"the idempotency key (header) was used before with another payload, by event {first}; nothing was stored"}}"#),
            ),
            (
                conflict(KeySource::DurableExecutionName),
                409,
                "DurableExecutionAlreadyStartedException",
                format!(r#"{{"Message":"the idempotency key (durable-execution-name) was used before with another payload, by event {first}; nothing was stored","Type":"User"}}"#),
            ),
        ];
        for (refusal, status, code, body) in known {
            assert!(Refusal::REASONS.contains(&refusal.reason()), "{}", refusal.reason());
            assert_eq!(parts(&refusal).await, (status, code.to_owned(), body));
        }
    }

    #[tokio::test]
    async fn strangers_are_refused_in_lambdas_words_to_the_byte() {
        let known = [
            (
                Refusal::Unidentified(Unidentified::Missing),
                403,
                "MissingAuthenticationTokenException",
                r#"{"message":"Missing Authentication Token"}"#.to_owned(),
            ),
            (
                Refusal::Unidentified(Unidentified::Unknown),
                403,
                "UnrecognizedClientException",
                r#"{"message":"The security token included in the request is invalid."}"#.to_owned(),
            ),
            (
                Refusal::Unidentified(Unidentified::Flawed(Flaw::Mismatch)),
                403,
                "InvalidSignatureException",
                r#"{"message":"The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."}"#.to_owned(),
            ),
            (
                Refusal::Unidentified(Unidentified::Flawed(Flaw::Expired {
                    at: "20240522T115159Z".into(),
                    now: UnixMillis(1_716_379_819_000),
                    skew: Duration::from_secs(300),
                })),
                403,
                "InvalidSignatureException",
                r#"{"message":"Signature expired: 20240522T115159Z is now earlier than 20240522T120519Z (20240522T121019Z - 5 min.)"}"#.to_owned(),
            ),
            (
                Refusal::Unidentified(Unidentified::Flawed(Flaw::Malformed("Authorization header requires 'Signature' parameter.".into()))),
                403,
                "IncompleteSignatureException",
                r#"{"message":"Authorization header requires 'Signature' parameter."}"#.to_owned(),
            ),
            (
                Refusal::NotAllowed(NotAllowed {
                    client: "orders".into(),
                    action: "lambda:InvokeFunction",
                    resource: "mails".into(),
                    key: "functions",
                }),
                403,
                "AccessDeniedException",
                r#"{"Message":"User: sendoff/orders is not authorized to perform: lambda:InvokeFunction on resource: mails because clients.orders.functions in sendoff's configuration does not allow it"}"#.to_owned(),
            ),
        ];
        for (refusal, status, code, body) in known {
            assert!(Refusal::REASONS.contains(&refusal.reason()), "{}", refusal.reason());
            assert!(refusal.is_of_a_stranger());
            assert_eq!(parts(&refusal).await, (status, code.to_owned(), body));
        }
    }

    #[test]
    fn whoever_must_wait_is_told_in_both_headers() {
        let refusal = Refusal::Full { why: String::new(), retry_after: Duration::from_millis(1_500) };
        let response = refusal.response("r");
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[RETRY_AFTER_MILLIS], "1500");
        assert!(!Refusal::BodyTorn.response("r").headers().contains_key(RETRY_AFTER));
    }
}
