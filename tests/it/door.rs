//! Tests Lambda's Invoke on the real daemon: the bytes on the wire, which key counts, and what is passed on to Lambda.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use http_body_util::Full;

use crate::rig::daemon::{Daemon, Setup, invoke_path, scratch};
use crate::rig::http::{self, Response};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{PATIENCE, eventually};

const INVOKE_ASYNC_BYTES_MAX: usize = 262_144;

fn in_front_of(lambda: &Lambda, state: &std::path::Path) -> Setup {
    Setup::new(state).set("lambda.endpoint_url", &lambda.endpoint_url())
}

/// The head of an Event invocation. A test may add headers.
fn event(more: &str) -> String {
    format!("POST {} HTTP/1.1\r\nHost: x\r\nX-Amz-Invocation-Type: Event\r\n{more}", invoke_path("orders"))
}

fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.ingest).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads to the end of the next head.
fn next_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn what_a_client_may_do_with_a_connection_is_served() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = in_front_of(&lambda, &state).start();

    let mut stream = connect(&daemon);
    let one = |id: &str| {
        let body = format!("{{\"id\":\"{id}\"}}");
        event(&format!("Content-Length: {}\r\n\r\n{body}", body.len()))
    };
    stream.write_all(one("kept-alive").as_bytes()).unwrap();
    assert!(next_head(&mut stream).starts_with("HTTP/1.1 202 Accepted\r\n"));
    stream.write_all((one("piped-1") + &one("piped-2") + &one("piped-3")).as_bytes()).unwrap();
    for _ in 0..3 {
        assert!(next_head(&mut stream).starts_with("HTTP/1.1 202 Accepted\r\n"));
    }
    let chunked = "Transfer-Encoding: chunked\r\n\r\n8\r\n{\"id\":\"c\r\n7\r\nhunked\"\r\n1\r\n}\r\n0\r\n\r\n";
    stream.write_all(event(chunked).as_bytes()).unwrap();
    assert!(next_head(&mut stream).starts_with("HTTP/1.1 202 Accepted\r\n"));
    stream.write_all(event("Expect: 100-continue\r\nContent-Length: 15\r\n\r\n").as_bytes()).unwrap();
    assert!(next_head(&mut stream).starts_with("HTTP/1.1 100 Continue\r\n"));
    stream.write_all(b"{\"id\":\"waited\"}").unwrap();
    assert!(next_head(&mut stream).starts_with("HTTP/1.1 202 Accepted\r\n"));

    lambda.wait_for(&["kept-alive", "piped-1", "piped-2", "piped-3", "chunked", "waited"].map(str::to_owned));
}

#[test]
fn http_2_with_prior_knowledge_reaches_lambda() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = in_front_of(&lambda, &state).start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = |kind: &str, id: &str| {
        runtime.block_on(async {
            let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
                .http2_only(true)
                .build_http::<Full<Bytes>>();
            let request = ::http::Request::post(format!("{}{}", daemon.endpoint_url(), invoke_path("orders")))
                .header("x-amz-invocation-type", kind)
                .body(Full::from(payload(id)))
                .unwrap();
            let answer = client.request(request).await.unwrap();
            assert_eq!(answer.version(), ::http::Version::HTTP_2);
            answer.status().as_u16()
        })
    };
    assert_eq!((status("Event", "event"), status("RequestResponse", "call")), (202, 200));
    lambda.wait_for(&["event", "call"].map(str::to_owned));
}

#[test]
fn every_answer_has_the_right_date_and_no_age() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = in_front_of(&lambda, &state).start();
    let post = |path: &str, kind| http::request(daemon.ingest, "POST", path, &[("X-Amz-Invocation-Type", kind)], b"{}");
    let orders = invoke_path("orders");
    for response in [
        post(&orders, "Event"),
        post(&orders, "RequestResponse"),
        post(&orders, "DryRun"),
        post(&orders, "Soon"),
        http::request(daemon.ingest, "POST", "/v1/events", &[], b"{\"function\":\"orders\"}"),
    ] {
        // An SDK corrects its clock by the Date of every answer, and takes an Age for a cache's answer.
        let date = response.headers.iter().filter(|(name, _)| name == "date").collect::<Vec<_>>();
        assert_eq!(date.len(), 1, "{response:?}");
        let date = SystemTime::try_from(DateTime::from_str(&date[0].1, Format::HttpDate).unwrap()).unwrap();
        let off = SystemTime::now().duration_since(date).unwrap_or_else(|early| early.duration());
        assert!(off < PATIENCE, "{off:?} off: {response:?}");
        assert_eq!(response.header("age"), None);
    }
}

#[test]
fn invoke_async_takes_256_kib_on_both_paths() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = in_front_of(&lambda, &state).start();
    for (id, slash) in [("without", ""), ("with", "/")] {
        let path = format!("/2014-11-13/functions/orders/invoke-async{slash}");
        let of = |bytes: usize| {
            let rest = format!("{{\"id\":\"{id}\",\"x\":\"\"}}").len();
            format!("{{\"id\":\"{id}\",\"x\":\"{}\"}}", "x".repeat(bytes - rest))
        };
        let reply = http::request(daemon.ingest, "POST", &path, &[], of(INVOKE_ASYNC_BYTES_MAX + 1).as_bytes());
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (413, Some("RequestEntityTooLargeException")));
        assert!(reply.text().contains("(limit 262144 bytes)"), "{}", reply.text());
        let reply = http::request(daemon.ingest, "POST", &path, &[], of(INVOKE_ASYNC_BYTES_MAX).as_bytes());
        assert_eq!((reply.status, reply.text().as_str()), (202, ""), "{reply:?}");
    }
    lambda.wait_for(&["with", "without"].map(str::to_owned));
    assert_eq!(lambda.requests(), 2, "what is too large is not stored");
}

/// Headers that name a key, the best source first, each with the word for it.
const SOURCES: [(&str, &str, &str); 4] = [
    ("header", "Idempotency-Key", "by-header"),
    ("durable-execution-name", "X-Amz-Durable-Execution-Name", "by-name"),
    // {"custom":{"idempotency_key":"by-context"}}
    ("client-context", "X-Amz-Client-Context", "eyJjdXN0b20iOnsiaWRlbXBvdGVuY3lfa2V5IjoiYnktY29udGV4dCJ9fQ=="),
    ("sdk-invocation-id", "amz-sdk-invocation-id", "1f4f1a36-2fe6-4b3b-9d0a-6d6b0a3b7b11"),
];

#[test]
fn the_sources_of_a_key_count_in_their_order_and_a_conflict_names_the_first_event() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let config = scratch.path().join("sendoff.toml");
    std::fs::write(&config, "[functions.ruled]\nkey = \"order.id\"\n").unwrap();
    let daemon = in_front_of(&lambda, &state).config(&config).start();
    let all = r#"{"order":{"id":"by-expression"},"specversion":"1.0","source":"/shop","id":"by-cloud-event"}"#;
    let plain = r#"{"id":"plain"}"#;
    let [header, name, context, sdk] = SOURCES.map(|(_, header, value)| (header, value));
    for (expected, function, headers, payload) in [
        ("header", "ruled", &[header, name, context, sdk][..], all),
        ("durable-execution-name", "ruled", &[name, context, sdk], all),
        ("client-context", "ruled", &[context, sdk], all),
        ("expression", "ruled", &[sdk], all),
        ("cloud-event", "orders", &[sdk], all),
        ("sdk-invocation-id", "orders", &[sdk], plain),
        ("minted", "orders", &[], plain),
    ] {
        let send = |payload: &str| daemon.invoke(function, headers, payload.as_bytes());
        let source = |reply: &Response| reply.header("x-sendoff-key-source").map(str::to_owned);
        let first = send(payload);
        assert_eq!((first.status, source(&first).as_deref()), (202, Some(expected)), "{first:?}");
        assert_eq!(first.header("x-sendoff-duplicate"), None);
        let first = first.header("x-amzn-requestid").unwrap();

        let again = send(payload);
        let is_repeat = again.header("x-sendoff-duplicate") == Some("true");
        assert_eq!(is_repeat, expected != "minted", "{expected}: {again:?}");
        assert_eq!(again.header("x-amzn-requestid") == Some(first), is_repeat);

        let other = send(&format!("{{\"more\":1,{}", &payload[1..]));
        match expected {
            // No client chose these keys, so another payload is another event.
            "sdk-invocation-id" | "minted" => {
                assert_eq!((other.status, source(&other).as_deref()), (202, Some("minted")), "{other:?}");
            }
            _ => {
                assert_eq!(other.status, 409, "{expected}: {other:?}");
                assert_eq!(other.header("x-sendoff-event-id"), Some(first), "what it was first: {other:?}");
                assert!(other.text().contains(first) && other.text().contains(&format!("({expected})")), "{other:?}");
            }
        }
    }
    daemon.wait_until_empty();
    assert_eq!(lambda.taken_entries().len(), 7 + 1 + 2, "one for each key, and those that are other events");
}

/// A header of a request to Lambda, as text.
fn sent<'a>(entry: &'a sendoff::standin::Entry, name: &str) -> Option<&'a str> {
    entry.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn what_an_event_carries_is_the_same_on_every_attempt_also_after_a_kill() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let config = scratch.path().join("sendoff.toml");
    std::fs::write(&config, "[functions.\"orders*\"]\ninject = \"sent_by\"\ndurable = true\n").unwrap();
    let setup = in_front_of(&lambda, &state).config(&config);
    let daemon = setup.start();
    let carried = [
        ("X-Amz-Tenant-Id", "blue team"),
        ("X-Amzn-Trace-Id", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"),
        ("X-Amz-Client-Context", "eyJjdXN0b20iOnsiZW52IjoidGVzdCJ9fQ=="),
        ("Idempotency-Key", "order 17/"),
    ];
    daemon.accept("orders:prod", &carried, b"{ \"id\": \"carried\" }");
    eventually("two attempts are throttled", || (lambda.requests() >= 2).then_some(()));
    daemon.kill9();
    let daemon = setup.start();
    let before = lambda.requests();
    eventually("the next daemon's attempt is throttled too", || (lambda.requests() > before).then_some(()));
    lambda.take_all();
    lambda.wait_for(&["carried".to_owned()]);
    daemon.wait_until_empty();

    let entries = lambda.entries();
    let last = entries.last().unwrap();
    assert_eq!(last.payload.as_deref(), Some(&b"{\"sent_by\":\"order 17/\", \"id\": \"carried\" }"[..]));
    assert_eq!(
        (sent(last, "x-amz-tenant-id"), sent(last, "x-amzn-trace-id")),
        (Some(carried[0].1), Some(carried[1].1))
    );
    assert_eq!(last.idempotency_key.as_deref(), Some("order 17/"), "in the client context");
    let name = sent(last, "x-amz-durable-execution-name").unwrap();
    assert!(
        name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "it does not fit, so hashed: {name}"
    );
    assert_eq!((last.function.as_str(), last.qualifier.as_deref()), ("orders:prod", Some("prod")));
    for entry in &entries {
        assert_eq!((&entry.payload, &entry.lane), (&last.payload, &last.lane));
        for name in [
            "x-amz-tenant-id",
            "x-amzn-trace-id",
            "x-amz-client-context",
            "x-amz-durable-execution-name",
            "x-amz-invocation-type",
        ] {
            assert_eq!(sent(entry, name), sent(last, name), "{name}");
        }
    }
}

#[test]
fn the_region_of_an_arn_is_called_and_signed_for_by_events_and_calls() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    for transport in ["direct", "sdk"] {
        let daemon = in_front_of(&lambda, &state).set("lambda.transport", transport).start();
        let known = lambda.entries().len();
        for region in ["eu-central-1", "us-east-1", "ap-southeast-2"] {
            let arn = format!("arn:aws:lambda:{region}:123456789012:function:orders");
            daemon.accept(&arn, &[], b"{}");
            let reply = http::request(daemon.ingest, "POST", &invoke_path(&arn.replace(':', "%3A")), &[], b"{}");
            assert_eq!(reply.status, 200, "{reply:?}");
        }
        daemon.wait_until_empty();
        let entries = lambda.entries().split_off(known);
        let signed_for = |region: &str| {
            let scope = format!("/{region}/lambda/aws4_request");
            let of = |entry: &&std::sync::Arc<sendoff::standin::Entry>| {
                sent(entry, "authorization").unwrap().contains(&scope) && entry.function.contains(region)
            };
            entries.iter().filter(of).count()
        };
        for region in ["eu-central-1", "us-east-1", "ap-southeast-2"] {
            assert_eq!(signed_for(region), 2, "an Event and a call for {region}, by {transport}");
        }
    }
}
