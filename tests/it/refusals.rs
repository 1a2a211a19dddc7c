//! Tests requests that are not events. They are refused in Lambda's words, store nothing, and harm nobody.

use crate::rig::daemon::{Daemon, Setup, invoke_path, scratch};
use crate::rig::http::{self, Response};
use crate::rig::lambda::{Lambda, payload};

const PAYLOAD_BYTES_MAX: usize = 1_048_576;

#[test]
fn a_request_that_lambda_would_refuse_is_refused_in_its_words_and_not_stored() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let post = |path: &str, headers: &[(&str, &str)], body: &[u8]| {
        let headers: Vec<_> = [("X-Amz-Invocation-Type", "Event")].iter().chain(headers).copied().collect();
        http::request(daemon.ingest, "POST", path, &headers, body)
    };
    let orders = invoke_path("orders");
    let too_large = json_string_of(PAYLOAD_BYTES_MAX + 1);
    let long_key = "k".repeat(256);
    let refused = [
        ("not JSON", post(&orders, &[], b"{not json"), 400, "InvalidRequestContentException"),
        ("JSON and more", post(&orders, &[], b"{} {}"), 400, "InvalidRequestContentException"),
        ("over 1 MiB", post(&orders, &[], &too_large), 413, "RequestEntityTooLargeException"),
        ("over 1 MiB, chunked", chunked(&daemon, &orders, &too_large), 413, "RequestEntityTooLargeException"),
        ("a name with a space", post(&invoke_path("or%20ders"), &[], b"{}"), 400, "ValidationException"),
        ("a name of 300", post(&invoke_path(&"n".repeat(300)), &[], b"{}"), 400, "ValidationException"),
        (
            "two qualifiers",
            post(&format!("{}?Qualifier=dev", invoke_path("orders:prod")), &[], b"{}"),
            400,
            "InvalidParameterValueException",
        ),
        (
            "a key of 256",
            post(&orders, &[("Idempotency-Key", &long_key)], b"{}"),
            400,
            "InvalidRequestContentException",
        ),
        (
            "a context that is no base64",
            post(&orders, &[("X-Amz-Client-Context", "{}")], b"{}"),
            400,
            "InvalidRequestContentException",
        ),
        (
            "no such type",
            http::request(daemon.ingest, "POST", &orders, &[("X-Amz-Invocation-Type", "Soon")], b"{}"),
            400,
            "ValidationException",
        ),
        ("no such path", post("/2015-03-31/functions", &[], b"{}"), 404, "UnknownOperationException"),
        ("the root", http::get(daemon.ingest, "/"), 404, "UnknownOperationException"),
        ("GET", http::get(daemon.ingest, &orders), 405, "MethodNotAllowedException"),
        ("DELETE", http::request(daemon.ingest, "DELETE", &orders, &[], b""), 405, "MethodNotAllowedException"),
    ];
    for (what, response, status, code) in &refused {
        assert_lambdas_shape(what, response, *status, code);
    }
    assert_eq!(daemon.scrape().sum("sendoff_ingest_refused_total", &[]), refused.len() as f64);
    assert_unharmed(&daemon, &lambda);
}

#[test]
fn what_is_hardly_http_ends_its_own_connection_only() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let (to, orders) = (daemon.ingest, invoke_path("orders"));
    let event = ("X-Amz-Invocation-Type", "Event");

    let whole = http::head(to, "POST", &orders, &[event], 100);
    http::send_and_leave(to, &whole);
    http::send_and_leave(to, &[&whole[..], b"{\"id\":\"torn\""].concat());
    http::send_and_leave(to, &whole[..whole.len() / 2]);
    http::send_and_leave(to, b"");

    let flood: Vec<_> = (0..5_000).map(|n| (format!("X-Flood-{n}"), "x")).collect();
    let flood: Vec<_> = flood.iter().map(|(name, value)| (name.as_str(), *value)).chain([event]).collect();
    let long = "x".repeat(1 << 20);
    let clashing = format!(
        "POST {orders} HTTP/1.1\r\nHost: x\r\nX-Amz-Invocation-Type: Event\r\n\
        Content-Length: 2\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{{}}"
    );
    let nonsense = [
        ("a flood of headers", [&http::head(to, "POST", &orders, &flood, 2)[..], b"{}"].concat()),
        ("a header of 1 MiB", [&http::head(to, "POST", &orders, &[event, ("X-Long", &long)], 2)[..], b"{}"].concat()),
        ("two lengths", clashing.into_bytes()),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in &nonsense {
        let response = http::exchange(to, bytes);
        let status = response.as_ref().map(|response| response.status);
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{what}: {response:?}");
    }
    assert_unharmed(&daemon, &lambda);
}

/// Checks that nothing was stored or delivered, and that the next event is accepted.
fn assert_unharmed(daemon: &Daemon, lambda: &Lambda) {
    let scrape = daemon.scrape();
    assert_eq!(scrape.sum("sendoff_ingest_accepted_total", &[]), 0.0);
    assert_eq!(scrape.sum("sendoff_outbox_events", &[]), 0.0);
    assert_eq!(http::get(daemon.admin, "/livez").status, 200);
    assert_eq!(http::get(daemon.admin, "/readyz").status, 200);

    daemon.accept("orders", &[], &payload("good"));
    daemon.accept("orders", &[], &json_string_of(PAYLOAD_BYTES_MAX));
    lambda.wait_for(&["good".to_owned()]);
    daemon.wait_until_empty();
    assert_eq!(lambda.requests(), 2, "nothing but the good ones went out");
    assert_eq!(daemon.scrape().sum("sendoff_ingest_accepted_total", &[]), 2.0);
}

fn assert_lambdas_shape(what: &str, response: &Response, status: u16, code: &str) {
    assert_eq!(response.status, status, "{what}: {response:?}");
    assert_eq!(response.header("x-amzn-errortype"), Some(code), "{what}: {response:?}");
    assert_eq!(response.header("content-type"), Some("application/json"), "{what}");
    assert!(response.header("x-amzn-requestid").is_some_and(|id| !id.is_empty()), "{what}");
    let body = response.json();
    let text = body["message"].as_str().or(body["Message"].as_str());
    assert!(text.is_some_and(|text| !text.is_empty()), "{what}: {body}");
}

/// A JSON string of this many bytes, including its quotes.
fn json_string_of(bytes: usize) -> Vec<u8> {
    format!("\"{}\"", "x".repeat(bytes - 2)).into_bytes()
}

/// The same request in one chunk, without a `Content-Length`.
fn chunked(daemon: &Daemon, path: &str, body: &[u8]) -> Response {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nX-Amz-Invocation-Type: Event\r\nConnection: close\r\n\
        Transfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        body.len()
    );
    http::exchange(daemon.ingest, &[head.as_bytes(), body, b"\r\n0\r\n\r\n"].concat()).expect("an answer")
}
