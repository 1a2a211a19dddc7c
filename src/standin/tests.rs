//! Tests each behaviour over a real socket.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::clock::UnixMillis;

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Caller {
    fn of(standin: &Standin) -> Self {
        // If the client itself repeated requests on stale connections, it would hide the resets.
        let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http();
        Self { client, base: standin.endpoint_url() }
    }

    async fn call(&self, function: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Got, String> {
        self.post(&format!("/2015-03-31/functions/{function}/invocations"), headers, body).await
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Got, String> {
        let mut request = Request::post(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = self.client.request(request).await.map_err(|why| format!("{why:?}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|why| format!("{why:?}"))?.to_bytes();
        Ok(Got { status: head.status, headers: head.headers, body })
    }

    async fn event(&self, function: &str, body: &'static str) -> Result<Got, String> {
        self.call(function, &[EVENT], body).await
    }

    async fn sync(&self, function: &str, body: &'static str) -> Result<Got, String> {
        self.call(function, &[], body).await
    }
}

const EVENT: (&str, &str) = ("X-Amz-Invocation-Type", "Event");

fn start() -> (Standin, Caller) {
    start_with(Settings::default())
}

fn start_with(settings: Settings) -> (Standin, Caller) {
    let standin = Standin::start_with(Clock::seeded(UnixMillis(1_790_000_000_000), 7), settings).unwrap();
    let caller = Caller::of(&standin);
    (standin, caller)
}

#[tokio::test]
async fn an_event_is_answered_with_202_no_body_and_a_request_id() {
    let (standin, caller) = start();
    let got = caller.event("orders", "{}").await.unwrap();
    assert_eq!(got.status, StatusCode::ACCEPTED);
    assert!(got.body.is_empty());
    let entry = &standin.ledger().taken()[0];
    assert_eq!(got.header("x-amzn-requestid"), Some(entry.request_id.to_string().as_str()));
    assert_eq!(entry.request_id.get_version_num(), 4);
    assert_eq!(entry.answered, Answered::Accepted);
    assert!(entry.at >= UnixMillis(1_790_000_000_000));
}

#[tokio::test]
async fn a_request_response_gets_the_result_the_version_and_the_log_on_demand() {
    let (standin, caller) = start();
    standin.script("orders", Script::default().result(r#"{"ok":true}"#));
    let got = caller.sync("orders", "{}").await.unwrap();
    assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &br#"{"ok":true}"#[..]));
    assert_eq!(got.header("x-amz-executed-version"), Some("$LATEST"));
    assert_eq!(got.header("x-amz-log-result"), None);
    let got = caller.call("orders:7", &[("X-Amz-Log-Type", "Tail")], "").await.unwrap();
    assert_eq!(got.header("x-amz-executed-version"), Some("7"));
    let log = String::from_utf8(STANDARD.decode(got.header("x-amz-log-result").unwrap()).unwrap()).unwrap();
    assert!(log.starts_with("START RequestId: "), "{log}");
}

#[tokio::test]
async fn a_dry_run_is_204_and_takes_nothing() {
    let (standin, caller) = start();
    let got = caller.call("orders", &[("X-Amz-Invocation-Type", "DryRun")], "").await.unwrap();
    assert_eq!((got.status, got.body.len()), (StatusCode::NO_CONTENT, 0));
    let counts = standin.ledger().read(|book| book.total().clone());
    assert_eq!((counts.requests, counts.taken, counts.dry_runs), (1, 0, 1));
}

#[tokio::test]
async fn every_throttle_reason_travels_with_its_retry_after() {
    let (standin, caller) = start();
    for reason in Reason::ALL {
        let throttle = Throttle::new(reason).retry_after(Duration::from_millis(1_200));
        standin.script("orders", Script::default().once(Trouble::Throttle(throttle)));
        let got = caller.event("orders", "{}").await.unwrap();
        assert_eq!(got.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(got.header("x-amzn-errortype"), Some("TooManyRequestsException"));
        assert_eq!(got.header("retry-after"), Some("2"));
        assert_eq!(got.json(), json!({"Reason": reason.as_str(), "Type": "User", "message": "Rate Exceeded."}));
        assert_eq!(standin.ledger().entries().last().unwrap().answered, Answered::Throttled(reason));
        assert_eq!(caller.event("orders", "{}").await.unwrap().status, StatusCode::ACCEPTED, "only once");
    }
    assert_eq!(standin.ledger().taken().len(), Reason::ALL.len());
}

#[tokio::test]
async fn a_share_of_the_calls_is_throttled_at_random() {
    let (standin, caller) = start();
    standin.default_script(Script::default().chance(0.3, Trouble::throttle(Reason::CallerRateLimitExceeded)));
    for _ in 0..400 {
        caller.event("orders", "{}").await.unwrap();
    }
    let counts = standin.ledger().read(|book| book.function("orders"));
    assert_eq!(counts.taken + counts.throttled, 400);
    assert!((80..160).contains(&counts.throttled), "{counts:?}");
}

#[tokio::test]
async fn beyond_a_rate_calls_are_throttled() {
    let (standin, caller) = start();
    let throttle = Throttle::new(Reason::FunctionInvocationRateLimitExceeded);
    // So slow that no token returns during the test.
    standin.script("orders", Script::default().rate_with_burst(RateLimit { per_second: 0.001, burst: 3.0, throttle }));
    for n in 0..5 {
        let expected = if n < 3 { StatusCode::ACCEPTED } else { StatusCode::TOO_MANY_REQUESTS };
        assert_eq!(caller.event("orders", "{}").await.unwrap().status, expected, "call {n}");
    }
    assert_eq!(caller.event("bills", "{}").await.unwrap().status, StatusCode::ACCEPTED, "another function");
}

#[tokio::test]
async fn beyond_a_concurrency_calls_are_throttled_and_the_ledger_knows_how_many_were_in_flight() {
    let (standin, caller) = start();
    let throttle = Throttle::new(Reason::ReservedFunctionConcurrentInvocationLimitExceeded);
    let hang = Trouble::SlowReply(LIMIT);
    standin.script("orders", Script::default().times(2, hang).concurrency(2, throttle));
    let hanging = [spawn_event(&caller), spawn_event(&caller)];
    assert!(standin.ledger().wait_until(|book| book.function("orders").taken == 2, LIMIT).await);
    assert_eq!(caller.event("orders", "{}").await.unwrap().status, StatusCode::TOO_MANY_REQUESTS);
    assert!(standin.ledger().wait_until(|book| book.function("orders").in_flight == 2, LIMIT).await);
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(standin.ledger().wait_until(|book| book.function("orders").in_flight == 0, LIMIT).await);
    assert_eq!(caller.event("orders", "{}").await.unwrap().status, StatusCode::ACCEPTED);
    assert_eq!(standin.ledger().read(|book| book.function("orders").in_flight_max), 3, "the throttled one too");
}

#[expect(clippy::disallowed_methods, reason = "a test's own task, aborted by its handle")]
fn spawn_event(caller: &Caller) -> tokio::task::JoinHandle<()> {
    let caller = caller.clone();
    tokio::spawn(async move { drop(caller.event("orders", "{}").await) })
}

#[tokio::test]
async fn errors_have_the_field_case_of_their_shape() {
    let (standin, caller) = start();
    for (status, code, expected) in [
        (500, "ServiceException", json!({"Type": "Service", "Message": "why"})),
        (404, "ResourceNotFoundException", json!({"Type": "User", "Message": "why"})),
        (502, "ResourceNotReadyException", json!({"Type": "Service", "message": "why"})),
        (409, "ResourceConflictException", json!({"Type": "User", "message": "why"})),
        (400, "ValidationException", json!({"message": "why"})),
    ] {
        standin.script("orders", Script::default().once(Trouble::error(status, code, "why")));
        let got = caller.event("orders", "{}").await.unwrap();
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (status, Some(code)));
        assert_eq!(got.header("content-type"), Some("application/json"));
        assert_eq!(got.json(), expected);
        let answered = standin.ledger().entries().last().unwrap().answered.clone();
        assert_eq!(answered, Answered::Refused { status, code: Some(code.to_owned()) });
    }
    assert!(standin.ledger().taken().is_empty());
}

#[tokio::test]
async fn a_proxy_answers_without_code_and_request_id() {
    let (standin, caller) = start();
    standin.script("orders", Script::always(Trouble::Html(502)));
    let got = caller.event("orders", "{}").await.unwrap();
    assert_eq!((got.status, got.header("content-type")), (StatusCode::BAD_GATEWAY, Some("text/html")));
    assert_eq!((got.header("x-amzn-errortype"), got.header("x-amzn-requestid")), (None, None));
    assert_eq!(standin.ledger().entries()[0].answered, Answered::Refused { status: 502, code: None });
}

/// Sends a head and as much of a body as given. Returns the error of reading the answer.
async fn read_error(standin: &Standin, head_and_body: &str) -> std::io::ErrorKind {
    let mut stream = TcpStream::connect(standin.address()).await.unwrap();
    stream.write_all(head_and_body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    match tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap() {
        Err(why) => why.kind(),
        Ok(_) => panic!("no reset, but {:?}", String::from_utf8_lossy(&answer)),
    }
}

const RAW: &str = "POST /2015-03-31/functions/orders/invocations HTTP/1.1\r\nHost: x\r\nX-Amz-Invocation-Type: Event\r\nContent-Length: 2\r\n\r\n";

#[tokio::test]
async fn a_reset_comes_before_the_body_is_read_and_takes_nothing() {
    let (standin, _) = start();
    standin.script("orders", Script::always(Trouble::Reset));
    assert_eq!(read_error(&standin, RAW).await, std::io::ErrorKind::ConnectionReset);
    let entry = &standin.ledger().entries()[0];
    assert_eq!((&entry.answered, &entry.payload_sha256), (&Answered::Reset, &None));
    assert!(standin.ledger().taken().is_empty());
}

#[tokio::test]
async fn a_lost_reply_is_a_reset_of_an_event_that_was_taken() {
    let (standin, caller) = start();
    standin.script("orders", Script::default().times(2, Trouble::LostReply));
    assert_eq!(read_error(&standin, &format!("{RAW}{{}}")).await, std::io::ErrorKind::ConnectionReset);
    assert!(caller.event("orders", "{}").await.is_err());
    assert_eq!(caller.event("orders", "{}").await.unwrap().status, StatusCode::ACCEPTED);
    let counts = standin.ledger().read(|book| book.function("orders"));
    assert_eq!((counts.taken, counts.lost_replies), (3, 2));
}

#[tokio::test]
async fn a_slow_reply_comes_late_and_is_taken_at_once() {
    let (standin, caller) = start();
    let clock = Clock::system();
    let late = Duration::from_millis(150);
    standin.script("orders", Script::default().once(Trouble::SlowReply(late)));
    let began = clock.instant();
    assert_eq!(caller.event("orders", "{}").await.unwrap().status, StatusCode::ACCEPTED);
    assert!(began.elapsed() >= late);
    assert_eq!(standin.ledger().taken()[0].answered, Answered::SlowReply(late));
}

#[tokio::test]
async fn latency_delays_answers_but_not_throttles() {
    let (standin, caller) = start();
    let throttle = Trouble::throttle(Reason::CallerRateLimitExceeded);
    standin.script("orders", Script::always(throttle).latency(LIMIT * 10, Duration::ZERO));
    let throttled = tokio::time::timeout(LIMIT, caller.event("orders", "{}")).await.unwrap().unwrap();
    assert_eq!(throttled.status, StatusCode::TOO_MANY_REQUESTS);

    let fixed = Duration::from_millis(120);
    standin.script("orders", Script::default().latency(fixed, Duration::from_millis(5)));
    let clock = Clock::system();
    let began = clock.instant();
    assert_eq!(caller.event("orders", "{}").await.unwrap().status, StatusCode::ACCEPTED);
    assert!(began.elapsed() >= fixed);
}

#[tokio::test]
async fn a_function_error_is_shown_to_request_response_only() {
    let (standin, caller) = start();
    standin.script("orders", Script::always(Trouble::FunctionError("out of stock".into())));
    let got = caller.sync("orders", "{}").await.unwrap();
    assert_eq!((got.status, got.header("x-amz-function-error")), (StatusCode::OK, Some("Unhandled")));
    assert_eq!(got.json()["errorMessage"], "out of stock");
    assert_eq!(caller.event("orders", "{}").await.unwrap().status, StatusCode::ACCEPTED);
    let counts = standin.ledger().read(|book| book.function("orders"));
    assert_eq!((counts.taken, counts.function_errors), (1, 1));
}

#[tokio::test]
async fn payloads_are_checked_as_lambda_does() {
    let (standin, caller) = start();
    let got = caller.event("orders", "{nope").await.unwrap();
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, Some("InvalidRequestContentException")));
    let text = got.json()["message"].as_str().unwrap().to_owned();
    assert!(text.starts_with("Could not parse request body into json: Could not parse payload into json: "), "{text}");

    let sized = |len: usize| format!("\"{}\"", "x".repeat(len - 2));
    assert_eq!(caller.call("orders", &[EVENT], sized(1_048_576)).await.unwrap().status, StatusCode::ACCEPTED);
    let got = caller.call("orders", &[EVENT], sized(1_048_577)).await.unwrap();
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (413, Some("RequestEntityTooLargeException")));
    assert_eq!(
        got.json()["message"],
        "1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)"
    );
    assert_eq!(caller.call("orders", &[], sized(1_048_577)).await.unwrap().status, StatusCode::OK);
    assert_eq!(caller.event("orders", "").await.unwrap().status, StatusCode::ACCEPTED, "an empty body is allowed");
    assert_eq!(standin.ledger().taken().len(), 3);
}

#[tokio::test]
async fn what_is_not_invoke_or_names_no_function_is_refused() {
    let (standin, caller) = start();
    let got = caller.post("/2015-03-31/functions/orders", &[], "").await.unwrap();
    assert_eq!(got.status, StatusCode::NOT_FOUND);
    let got = caller.event("or%2Fders", "{}").await.unwrap();
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, Some("ValidationException")));
    let path = "/2015-03-31/functions/orders%3Aprod/invocations?Qualifier=dev";
    let got = caller.post(path, &[EVENT], "{}").await.unwrap();
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, Some("InvalidParameterValueException")));
    assert_eq!(standin.ledger().read(|book| (book.strays(), book.total().requests)), (3, 0));
}

#[tokio::test]
async fn the_ledger_keeps_what_a_request_carried() {
    let (standin, caller) = start_with(Settings { keep: Keep::EntriesAndPayloads, id_field: Some("order".to_owned()) });
    let context = STANDARD.encode(r#"{"custom":{"idempotency_key":"key-1"}}"#);
    let headers =
        [EVENT, ("X-Amz-Client-Context", context.as_str()), ("X-Amzn-Trace-Id", "Root=1-a"), ("X-Other", "kept")];
    let arn = "arn%3Aaws%3Alambda%3Aeu-central-1%3A123456789012%3Afunction%3Aorders%3A%24LATEST";
    caller.call(arn, &headers, r#"{"order":"A7"}"#).await.unwrap();
    let path = "/2015-03-31/functions/orders/invocations?Qualifier=%24LATEST";
    caller.post(path, &[EVENT, ("X-Amz-Durable-Execution-Name", "key-2")], r#"{"order":"A7"}"#).await.unwrap();

    let entries = standin.ledger().entries();
    let first = &entries[0];
    assert_eq!(first.function, "arn:aws:lambda:eu-central-1:123456789012:function:orders:$LATEST");
    assert_eq!(first.invocation_type, InvocationType::Event);
    assert_eq!(first.idempotency_key.as_deref(), Some("key-1"));
    assert_eq!(first.trace_header.as_deref(), Some("Root=1-a"));
    assert_eq!(first.headers.get("x-other").unwrap(), "kept");
    assert_eq!(first.id.as_deref(), Some("A7"));
    assert_eq!(first.payload.as_deref(), Some(&br#"{"order":"A7"}"#[..]));
    assert_eq!(first.payload_len, 14);
    // From: printf '{"order":"A7"}' | sha256sum
    let digest = "cba96874251dc5428a990dca8b07ca00bee6fccd1a94c956634d0863c7f74315";
    assert_eq!(first.payload_sha256.as_deref(), Some(digest));
    assert_eq!(entries[1].idempotency_key.as_deref(), Some("key-2"));
    assert_eq!(entries[1].payload_sha256, first.payload_sha256);
    assert!(entries.iter().all(|it| it.lane == "orders:$LATEST" && it.qualifier.as_deref() == Some("$LATEST")));
    assert_eq!(standin.ledger().read(|book| book.taken_ids().get("A7").copied()), Some(2));
}

#[tokio::test]
async fn counts_alone_still_tell_events_apart() {
    let (standin, caller) = start_with(Settings { keep: Keep::Counts, id_field: Some("id".to_owned()) });
    standin.script("orders", Script::default().once(Trouble::throttle(Reason::CallerRateLimitExceeded)));
    for _ in 0..3 {
        caller.event("orders", r#"{"id":"a"}"#).await.unwrap();
    }
    standin.ledger().read(|book| {
        assert!(book.entries().is_empty());
        assert_eq!((book.total().requests, book.total().taken, book.total().throttled), (3, 2, 1));
        assert_eq!(book.total().taken_bytes, 20);
        assert_eq!(book.taken_ids().iter().map(|(id, n)| (id.as_str(), *n)).collect::<Vec<_>>(), [("a", 2)]);
    });
}

#[tokio::test]
async fn an_outage_resets_new_and_open_connections_until_it_ends() {
    let (standin, caller) = start();
    caller.event("orders", "{}").await.unwrap();
    standin.outage(true);
    assert!(caller.event("orders", "{}").await.is_err());
    assert!(caller.event("orders", "{}").await.is_err());
    standin.outage(false);
    assert_eq!(caller.event("orders", "{}").await.unwrap().status, StatusCode::ACCEPTED);
    assert_eq!(standin.ledger().taken().len(), 2);
}

#[tokio::test]
async fn waiting_ends_in_time_when_the_condition_never_holds() {
    let (standin, _) = start();
    assert!(!standin.ledger().wait_until(|book| book.total().taken > 0, Duration::from_millis(20)).await);
}

#[tokio::test]
async fn stopping_ends_hanging_requests_and_frees_the_port() {
    let (standin, caller) = start();
    standin.script("orders", Script::always(Trouble::SlowReply(Duration::from_secs(600))));
    let hanging = spawn_event(&caller);
    assert!(standin.ledger().wait_until(|book| book.total().taken == 1, LIMIT).await);
    let address = standin.address();
    tokio::time::timeout(LIMIT, standin.stop()).await.unwrap();
    tokio::time::timeout(LIMIT, hanging).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
