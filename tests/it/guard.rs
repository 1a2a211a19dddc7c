//! Tests requests of web pages: a browser on this machine cannot change, invoke or read anything.

use std::io::Write;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use serde_json::Value;

use crate::operator::sendoff;
use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{eventually, http};

/// Sends a request with exactly these headers, including `Host`.
fn raw(to: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> http::Response {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let text =
        format!("{method} {target} HTTP/1.1\r\n{lines}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    http::exchange(to, text.as_bytes()).unwrap_or_else(|| panic!("no answer to {method} {target}"))
}

fn holding(lambda: &Lambda, state: &std::path::Path) -> Daemon {
    lambda.throttle_all();
    let setup = Setup::new(state).set("lambda.endpoint_url", &lambda.endpoint_url());
    setup.set("listen.admin_hosts", "ops.example.com").set("listen.ingest_hosts", "*.sendoff.svc").start()
}

#[track_caller]
fn assert_refused(response: &http::Response, status: u16, says: &str) {
    assert_eq!(response.status, status, "{response:?}");
    let message = response.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains(says), "{message}");
    assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{response:?}");
    assert_eq!(response.header("access-control-allow-origin"), None);
}

#[test]
fn no_web_page_can_change_or_read_anything_by_the_admin_listener() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = holding(&lambda, &state);
    let id = daemon.accept("orders", &[], &payload("secret"));
    let (admin, host) = (daemon.admin, daemon.admin.to_string());
    let event = format!("/v1/events/{id}?payload=true");
    let cancelled = format!("/v1/events/{id}");
    let changes = [
        ("POST", "/v1/functions/orders/purge", ""),
        ("POST", "/v1/functions/orders/pause", ""),
        ("DELETE", &cancelled, ""),
        ("PUT", "/v1/drain", ""),
        ("PUT", "/v1/log-level", "{\"level\":\"off\"}"),
        ("POST", "/v1/redrive", "{\"letters\":[]}"),
        ("OPTIONS", "/v1/functions/orders/purge", ""),
    ];
    for (method, path, body) in changes {
        for mark in [
            ("Origin", "https://evil.example"),
            ("Origin", "null"),
            ("Origin", "http://127.0.0.1:1"),
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Site", "same-site"),
        ] {
            let headers = [("Host", host.as_str()), ("Content-Type", "application/json"), mark];
            assert_refused(&raw(admin, method, path, &headers, body), 403, "another site");
        }
        assert_refused(&raw(admin, method, path, &[("Host", "evil.example:9478")], body), 421, "listen.admin_hosts");
        if !body.is_empty() {
            let plain = [("Host", host.as_str()), ("Content-Type", "text/plain")];
            assert_refused(&raw(admin, method, path, &plain, body), 415, "application/json");
        }
    }
    for path in [event.as_str(), "/v1/dead-letters?payloads=true", "/v1/status", "/v1/events", "/nowhere"] {
        for method in ["GET", "HEAD"] {
            let status = |headers: &[(&str, &str)]| raw_status(admin, method, path, headers);
            assert_eq!(status(&[("Host", "evil.example:9478")]), 421, "{method} {path}");
            assert_eq!(status(&[("Host", "evil.example"), ("Sec-Fetch-Site", "same-origin")]), 421, "{method} {path}");
            assert_eq!(status(&[("Host", &host), ("Origin", "https://evil.example")]), 403, "{method} {path}");
            assert_eq!(status(&[("Host", &host), ("Sec-Fetch-Site", "cross-site")]), 403, "{method} {path}");
            assert_eq!(status(&[("Host", &host), ("Host", "evil.example")]), 400, "{method} {path}");
            assert_eq!(status(&[]), 400, "{method} {path}");
        }
    }
    let absolute = format!("http://evil.example{event}");
    assert_eq!(raw(admin, "GET", &absolute, &[("Host", &host)], "").status, 400, "the target and Host differ");
    assert_eq!(raw(admin, "GET", &absolute, &[("Host", "evil.example")], "").status, 421);

    let link = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
    let followed = |path: &str| raw_status(admin, "GET", path, &[&[("Host", host.as_str())], &link[..]].concat());
    assert_eq!((followed("/v1/status"), followed(&event)), (200, 403));
    assert_eq!(daemon.stored(), 1.0, "nothing was purged or cancelled");
    let shown = raw(admin, "GET", &event, &[("Host", "ops.example.com:9478")], "");
    assert_eq!((shown.status, &shown.json()["state"] != "null"), (200, true), "no page, and a listed name");
    assert!(daemon.scrape().sum("sendoff_admin_refused_total", &[]) > 30.0);
}

fn raw_status(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let text = format!("{method} {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n");
    http::status(to, text.as_bytes())
}

#[test]
fn probes_and_metrics_answer_to_every_name_and_our_own_commands_go_on_working() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = holding(&lambda, &state);
    daemon.accept("orders", &[], &payload("kept"));
    for path in ["/livez", "/readyz", "/metrics"] {
        for method in ["GET", "HEAD"] {
            for host in ["sendoff.sendoff.svc:9478", "10.0.0.7:9478", "sendoff-0.sendoff-pods"] {
                assert_eq!(raw_status(daemon.admin, method, path, &[("Host", host)]), 200, "{method} {path} {host}");
            }
        }
    }
    for args in [&["status"][..], &["pause", "orders"], &["resume", "orders"], &["purge", "orders", "--dry-run"]] {
        let (code, said) = sendoff(daemon.admin, args);
        assert_eq!(code, 0, "{args:?}: {said}");
    }
}

#[test]
fn http_2_is_guarded_by_its_authority() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = holding(&lambda, &state);
    daemon.accept("orders", &[], &payload("kept"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let purge = |authority: &str, headers: &[(&str, &str)]| {
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(daemon.admin).await.unwrap();
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            let task = tokio::spawn(connection);
            let request = ::http::Request::post(format!("http://{authority}/v1/functions/orders/purge"));
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let answer = client.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
            task.abort();
            answer.status().as_u16()
        })
    };
    let own = daemon.admin.to_string();
    assert_eq!(purge("evil.example:9478", &[]), 421);
    assert_eq!(purge(&own, &[("host", "evil.example:9478")]), 400);
    assert_eq!(purge("evil.example:9478", &[("host", &own)]), 400);
    assert_eq!(purge(&own, &[("origin", "https://evil.example")]), 403);
    assert_eq!(purge(&own, &[("sec-fetch-site", "cross-site")]), 403);
    assert_eq!(daemon.stored(), 1.0);
    assert_eq!(purge(&own, &[]), 200);
}

#[test]
fn no_web_page_reads_where_an_event_is_nor_invokes_a_function() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = holding(&lambda, &state);
    let id = daemon.accept("orders", &[], &payload("kept"));
    let path = format!("/v1/events/{id}");
    let host = daemon.ingest.to_string();
    for method in ["GET", "HEAD"] {
        let status = |host: &str| raw_status(daemon.ingest, method, &path, &[("Host", host)]);
        assert_eq!(status("evil.example:9477"), 421, "{method}");
        let absolute = format!("http://evil.example{path}");
        assert_eq!(raw_status(daemon.ingest, method, &absolute, &[("Host", &host)]), 421, "{method}");
        let known = if method == "GET" { 200 } else { 405 };
        assert_eq!((status(&host), status("localhost"), status("orders.sendoff.svc")), (known, known, known));
    }
    let refused = raw(daemon.ingest, "GET", &path, &[("Host", "evil.example")], "");
    assert!(refused.text().contains("listen.ingest_hosts"), "{}", refused.text());
    let event = "{\"function\":\"orders\",\"payload\":1}";
    for mark in [("Origin", "null"), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-origin")] {
        let refused = raw(daemon.ingest, "POST", "/v1/events", &[("Host", &host), mark], event);
        assert_eq!((refused.status, refused.header("x-amzn-errortype")), (403, Some("AccessDeniedException")));
    }
    let by_name = raw(daemon.ingest, "POST", "/v1/events", &[("Host", "any.name:9477")], event);
    assert_eq!((by_name.status, &by_name.json()["duplicate"]), (202, &Value::Bool(false)), "clients use any name");
    assert_eq!(daemon.stored(), 2.0);
}

#[test]
fn every_refusal_of_the_operators_api_is_json_that_says_what_is_wrong() {
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", "http://127.0.0.1:9").start();
    let json = [("Content-Type", "application/json"), ("Host", "localhost")];
    for (method, path, body, status, says) in [
        ("GET", "/v1/nosuch", "", 404, "no such path"),
        ("DELETE", "/v1/status", "", 405, "other methods"),
        ("POST", "/livez", "", 405, "other methods"),
        ("GET", "/v1/events?limit=many", "", 400, "limit"),
        ("GET", "/v1/events?since=1h&until=2h", "", 400, "since is not before until"),
        (
            "GET",
            "/v1/dead-letters?since=2026-11-30T00:00:00Z&until=2026-11-30T00:00:00Z",
            "",
            400,
            "since is not before until",
        ),
        (
            "POST",
            "/v1/bulk",
            r#"{"action":"cancel","filter":{"since":"1h","until":"2h"}}"#,
            400,
            "since is not before until",
        ),
        ("GET", "/v1/events?nosuch=1", "", 400, "unknown field `nosuch`"),
        ("POST", "/v1/redrive", "{", 400, "EOF"),
        ("POST", "/v1/redrive", "[]", 400, "send an object"),
        ("PUT", "/v1/log-level", " [\"debug\"]", 400, "send an object"),
        ("POST", "/v1/dead-letters/redrive", "[[]]", 400, "send an object"),
        ("PUT", "/v1/log-level", "\"info\"", 400, "expected struct LogLevel"),
        ("POST", "/v1/functions/%ff/purge", "", 400, "UTF-8"),
    ] {
        assert_refused(&raw(daemon.admin, method, path, &json, body), status, says);
    }
    let refused = raw(daemon.admin, "DELETE", "/v1/status", &json, "");
    assert_eq!(refused.header("allow"), Some("GET,HEAD"), "{refused:?}");
    let not_ready = raw(daemon.admin, "GET", "/readyz", &[("Host", "localhost")], "");
    assert_eq!((not_ready.status, not_ready.text().as_str()), (200, "ready\n"));
}

#[test]
fn bodies_for_the_operators_api_take_no_more_memory_than_there_is_for_them() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let crowded = || daemon.scrape().sum("sendoff_admin_refused_total", &[("reason", "crowded")]);
    // Bodies that never end. Each keeps the memory of what it has sent.
    let json = [("Content-Type", "application/json")];
    let head = http::head(daemon.admin, "POST", "/v1/redrive", &json, 2_000_000);
    let held: Vec<_> = (0..20)
        .filter_map(|_| {
            let mut stream = std::net::TcpStream::connect(daemon.admin).ok()?;
            let body = vec![b' '; 1_900_000];
            stream.write_all(&head).and_then(|()| stream.write_all(&body)).ok()?;
            Some(stream)
        })
        .collect();
    eventually("a body is refused for want of memory", || (crowded() >= 1.0).then_some(()));
    assert_eq!(http::get(daemon.admin, "/readyz").status, 200);
    for told in ["/metrics", "/v1/status", "/v1/snapshot"] {
        assert_eq!(http::get(daemon.admin, told).status, 200, "{told} is answered whoever sends bodies");
    }
    drop(held);
    eventually("their memory is free again", || {
        let answer = http::request(daemon.admin, "POST", "/v1/dead-letters/redrive", &json, b"{\"ids\":[]}");
        assert!(matches!(answer.status, 200 | 503), "{answer:?}");
        (answer.status == 200).then_some(())
    });
}
