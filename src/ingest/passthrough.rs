//! Passes calls that are not Events through to Lambda while the caller waits. Never stores them.
//!
//! Holds: the caller sees Lambda's answer: status, headers and body, without the headers of a single connection. Lambda
//! applies its limits to these calls. Ours only keep them from starving Events.
//! Limits: [`Limits`]; [`CALL_TIME_MAX`] for one call with its answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::event::Function;
use crate::event::name::percent_decode;
use crate::event::sendable::is_dot_segment;
use crate::ingest::admission::Admission;

/// The largest payload of a call that is passed through, in bytes (AWS, "Lambda quotas": 6 MB synchronous).
pub const CALL_BYTES_MAX: usize = 6_291_456;

/// The most time for a call including its answer: Lambda's longest function time-out, plus a minute for the network.
pub const CALL_TIME_MAX: Duration = Duration::from_secs(16 * 60);

/// The request headers that are passed on, besides `Content-Length`, which follows from the payload. All others belong
/// to the connection or to the caller's signature, or mean nothing to Lambda.
const FORWARDED: [HeaderName; 7] = [
    CONTENT_TYPE,
    HeaderName::from_static("x-amz-invocation-type"),
    HeaderName::from_static("x-amz-log-type"),
    HeaderName::from_static("x-amz-client-context"),
    HeaderName::from_static("x-amz-tenant-id"),
    HeaderName::from_static("x-amz-durable-execution-name"),
    HeaderName::from_static("x-amzn-trace-id"),
];

/// The headers that belong to a single connection (RFC 9110 section 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-connection"),
];

/// Calls Lambda for a caller that waits.
pub trait Passthrough: Clone + Send + Sync + 'static {
    /// Makes one call, without retries. Dropping the future or the answer's body cancels the call.
    fn call(&self, call: PassthroughCall) -> impl Future<Output = Result<Response<AnswerBody>, Failed>> + Send;

    /// The same for an operation of Lambda's API that does not invoke.
    fn other(&self, other: Other) -> impl Future<Output = Result<Response<AnswerBody>, Failed>> + Send;
}

/// A streamed body.
pub type AnswerBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Passes nothing through.
#[derive(Debug, Clone)]
pub enum Off {}

impl Passthrough for Off {
    async fn call(&self, _call: PassthroughCall) -> Result<Response<AnswerBody>, Failed> {
        match *self {}
    }

    async fn other(&self, _other: Other) -> Result<Response<AnswerBody>, Failed> {
        match *self {}
    }
}

/// A call to make.
#[derive(Debug, Clone)]
pub struct PassthroughCall {
    pub operation: Operation,
    pub function: Function,
    /// Only headers for Lambda, each with one value of printable text.
    pub headers: HeaderMap,
    /// At most [`CALL_BYTES_MAX`].
    pub payload: Bytes,
}

/// A request, as received, for an operation that does not invoke, such as `GetFunction` or `ListFunctions`.
#[derive(Debug, Clone)]
pub struct Other {
    pub method: Method,
    /// Path and query, encoded as the client encoded them.
    pub target: String,
    pub headers: HeaderMap,
    pub payload: Bytes,
}

/// Which operations pass through besides those that invoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Those that only read: GET and HEAD.
    Reads,
    All,
}

impl Others {
    /// Whether a request is for an operation of Lambda's API that may pass. Apart from those that invoke, operations read by
    /// GET and write by POST, PUT, PATCH and DELETE (botocore's model of Lambda).
    pub(super) fn take(self, method: &Method, path: &str) -> bool {
        let reads = *method == Method::GET || *method == Method::HEAD;
        is_of_lambdas_api(path) && !leads_elsewhere(path) && (reads || self == Self::All)
    }
}

/// Whether a path begins with a version of Lambda's API: a date, as in `/2015-03-31/functions`.
fn is_of_lambdas_api(path: &str) -> bool {
    let Some((version, rest)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else { return false };
    let is_date = version.len() == 10
        && version
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() });
    is_date && !rest.is_empty()
}

/// Whether a path has a part that a proxy or AWS would resolve, so that another operation is called than the one that was judged
/// here: `.` or `..`, encoded or not, between slashes of either kind. sendoff does not resolve it itself: no SDK sends one.
fn leads_elsewhere(path: &str) -> bool {
    percent_decode(path).split(['/', '\\']).any(is_dot_segment)
}

/// The operations that are passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Invoke,
    InvokeWithResponseStream,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The call was certainly not sent: no connection, or no credentials.
    NotSent(String),
    /// The call was sent and may have run.
    Lost(String),
}

/// The limits of calls that pass through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The most concurrent calls.
    pub calls_max: usize,
    /// The most bytes of their payloads in memory. At least [`CALL_BYTES_MAX`].
    pub bytes_max: u64,
    /// Which operations that do not invoke may pass as well.
    pub others: Others,
}

/// The pass-through with its own limits. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Gate<P> {
    pub(super) passthrough: P,
    pub(super) limits: Limits,
    pub(super) slots: Arc<Semaphore>,
    pub(super) admission: Admission,
}

impl<P> Gate<P> {
    pub(super) fn new(passthrough: P, limits: Limits) -> Self {
        let slots = Arc::new(Semaphore::new(limits.calls_max.min(Semaphore::MAX_PERMITS)));
        let admission = Admission::new(limits.bytes_max);
        Self { passthrough, limits, slots, admission }
    }
}

/// The headers of a request that are for Lambda. Drops a value that is not text, which no field of Lambda's allows.
pub(super) fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let names = FORWARDED;
    let known = names.iter().filter_map(|name| Some((name, headers.get(name)?)));
    known.filter(|(_, value)| value.to_str().is_ok()).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Removes the headers of an answer that belong to its connection.
pub(super) fn without_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| HeaderValue::to_str(value).ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The body of an answer. It holds its call's slot, and ends when the call's time is over or the caller leaves.
pub struct Passed {
    pub(super) body: AnswerBody,
    /// Ready once the caller has left. A failed write would tell too, but a stream may have nothing to write for minutes.
    pub(super) gone: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(super) time_is_up: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Body for Passed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.time_is_up.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the call took longer than Lambda lets any take".into())));
        }
        if this.gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the caller closed its connection".into())));
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn only_lambdas_own_headers_are_forwarded() {
        let all = headers(&[
            ("x-amz-log-type", "Tail"),
            ("x-amz-tenant-id", "blue team"),
            ("authorization", "AWS4-HMAC-SHA256 Credential=AKID/x"),
            ("x-amz-security-token", "secret"),
            ("x-amz-date", "20261123T072741Z"),
            ("host", "127.0.0.1:9477"),
            ("cookie", "c"),
            ("connection", "keep-alive"),
            ("amz-sdk-invocation-id", "5f2c"),
        ]);
        assert_eq!(forwarded(&all), headers(&[("x-amz-log-type", "Tail"), ("x-amz-tenant-id", "blue team")]));
        let mut binary = HeaderMap::new();
        binary.insert("x-amz-tenant-id", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(forwarded(&binary), HeaderMap::new());
    }

    #[test]
    fn reads_of_lambdas_api_pass_and_changes_only_where_all_may() {
        for (method, path, reads, all) in [
            (Method::GET, "/2015-03-31/functions/orders", true, true),
            (Method::HEAD, "/2015-03-31/functions/", true, true),
            (Method::GET, "/2018-10-31/layers", true, true),
            (Method::GET, "/2025-11-30/capacity-providers", true, true),
            (Method::DELETE, "/2015-03-31/functions/orders", false, true),
            (Method::POST, "/2015-03-31/functions", false, true),
            (Method::PUT, "/2017-10-31/functions/orders/concurrency", false, true),
            (Method::GET, "/v1/events", false, false),
            (Method::GET, "/latest/meta-data", false, false),
            (Method::GET, "/2015-03-31", false, false),
            (Method::GET, "/2015-03-31/", false, false),
            (Method::GET, "/2015-3-31/functions", false, false),
            (Method::GET, "/2015-03-31/functions/../../x", false, false),
            (Method::GET, "/2015-03-31/functions/..", false, false),
            (Method::GET, "/2015-03-31/./functions", false, false),
            (Method::GET, "/2015-03-31/functions/%2e%2E/event-source-mappings", false, false),
            (Method::GET, "/2015-03-31/functions/.%2e/x", false, false),
            (Method::GET, "/2015-03-31/functions/a%2F..%2Fb", false, false),
            (Method::GET, "/2015-03-31/functions/..\\x", false, false),
            (Method::GET, "/2015-03-31/functions/a..b/policy", true, true),
            (Method::GET, "/2015-03-31/functions/.../policy", true, true),
        ] {
            assert_eq!(Others::Reads.take(&method, path), reads, "{method} {path}");
            assert_eq!(Others::All.take(&method, path), all, "{method} {path}");
        }
    }

    #[test]
    fn what_belongs_to_one_connection_is_taken_out_of_an_answer() {
        let mut answer = headers(&[
            ("connection", "x-mine, keep-alive"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-amzn-requestid", "r"),
            ("x-amz-function-error", "Unhandled"),
        ]);
        without_hop_by_hop(&mut answer);
        assert_eq!(answer, headers(&[("x-amzn-requestid", "r"), ("x-amz-function-error", "Unhandled")]));
    }
}
