//! Tests peers that ask and do not read, or begin and do not end. Each is ended, and nobody else notices.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::rig::daemon::{Daemon, Setup, invoke_path, scratch};
use crate::rig::h2::Client;
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{PATIENCE, eventually, http};

const EVENT: (&str, &str) = ("x-amz-invocation-type", "Event");

/// Short time limits, so that peers are ended within a test.
fn impatient(lambda: &Lambda, state: &std::path::Path) -> Setup {
    let setup = Setup::new(state).set("lambda.endpoint_url", &lambda.endpoint_url());
    setup.set("listen.header_timeout", "1s").set("listen.body_timeout", "1s")
}

fn connected(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Whether the server has closed the connection, as far as that shows without reading what it sent.
fn is_ended(stream: &mut TcpStream) -> bool {
    let mut bytes = vec![0; 1 << 20];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn http_2_peers_that_ask_and_give_no_window_are_ended_and_hold_no_call() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = impatient(&lambda, &state).set("lambda.passthrough_max", "2").start();
    let call = ("x-amz-invocation-type", "RequestResponse");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(daemon.ingest);
        client.ask("POST", &invoke_path("orders"), &[call], &payload("call")).unwrap();
        clients.push(client);
    }
    for _ in 0..5 {
        let mut client = Client::connect(daemon.admin);
        client.ask("GET", "/metrics", &[], b"").unwrap();
        clients.push(client);
    }
    eventually("both calls are given up", || {
        let answer = http::request(daemon.ingest, "POST", &invoke_path("orders"), &[call], &payload("other"));
        (answer.status == 200).then_some(())
    });
    clients.into_iter().for_each(Client::until_closed);
}

#[test]
fn http_1_peers_that_ask_and_do_not_read_are_ended() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = impatient(&lambda, &state).start();
    // More answers than the buffers of both sides hold. None of them is read.
    let ask = format!("GET /v1/openapi.json HTTP/1.1\r\nHost: {}\r\n\r\n", daemon.ingest);
    let mut stream = connected(daemon.ingest, b"");
    stream.set_nonblocking(true).unwrap();
    let (all, mut sent) = (ask.repeat(20_000).into_bytes(), 0);
    while let Ok(bytes) = stream.write(&all[sent..]) {
        sent += bytes;
        if sent == all.len() {
            break;
        }
    }
    let open = || daemon.scrape().sum("sendoff_ingest_connections", &[]);
    eventually("the connection is open", || (open() == 1.0 || sent > 0).then_some(()));
    eventually("the connection is ended", || (open() == 0.0).then_some(()));
    stream.set_nonblocking(false).unwrap();
    let mut answers = Vec::new();
    let ended = stream.read_to_end(&mut answers);
    let whole = String::from_utf8_lossy(&answers).matches("HTTP/1.1 200 OK").count();
    assert!(whole < sent / ask.len(), "everything was answered ({ended:?}), so nothing was shown");
}

/// Opens `count` connections with `begin` and keeps them.
fn flood(to: SocketAddr, count: usize, begin: &dyn Fn(SocketAddr) -> TcpStream) -> Vec<TcpStream> {
    (0..count).map(|_| begin(to)).collect()
}

fn assert_probes_answer(daemon: &Daemon, what: &str) {
    let begun = Instant::now();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(http::get(daemon.admin, path).status, 200, "{what}: {path}");
    }
    // A probe of Kubernetes waits a few seconds. Slow peers have a minute here.
    assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", begun.elapsed());
}

#[test]
fn probes_answer_however_many_slow_peers_sit_on_the_listener() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = impatient(&lambda, &state).set("listen.header_timeout", "60s").set("listen.body_timeout", "60s");
    let daemon = setup.start();
    let slow_head = |to| connected(to, b"GET /v1/status HTTP/1.1\r\nHost: 127");
    let silent = |to| connected(to, b"");
    let slow_body = |to: SocketAddr| {
        let head = "POST /v1/redrive HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
        connected(to, format!("{head}Content-Length: 100\r\n\r\n{{").as_bytes())
    };
    let no_window = |to| {
        let mut client = Client::connect(to);
        client.ask("GET", "/metrics", &[], b"").unwrap();
        client.stream
    };
    let floods: [(&str, &dyn Fn(SocketAddr) -> TcpStream); 4] =
        [("slow heads", &slow_head), ("silence", &silent), ("slow bodies", &slow_body), ("no window", &no_window)];
    for (what, begin) in floods {
        let held = flood(daemon.admin, 100, begin);
        assert_probes_answer(&daemon, what);
        drop(held);
    }
}

#[test]
fn idle_connections_give_way_to_a_client_that_has_something_to_say() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = impatient(&lambda, &state).set("listen.header_timeout", "60s").set("listen.connections_max", "8");
    let daemon = setup.start();
    let mut idle = flood(daemon.ingest, 12, &|to| connected(to, b""));
    let begun = Instant::now();
    for n in 0..10 {
        daemon.accept("orders", &[], &payload(&format!("among-idle-{n}")));
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(is_ended(&mut idle[0]), "the longest idle goes first");
}

#[test]
fn rapid_resets_end_their_connection_and_harm_nobody() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = impatient(&lambda, &state).start();
    let mut client = Client::connect(daemon.ingest);
    let ended = (0..100_000).any(|_| {
        let asked = client.ask("POST", &invoke_path("orders"), &[EVENT], &payload("reset"));
        asked.and_then(|stream| client.reset(stream)).is_err()
    });
    assert!(ended, "100,000 resets on one connection were taken");
    daemon.accept("invoices", &[], &payload("beside"));
    lambda.wait_for(&["beside".to_owned()]);
}

#[test]
fn a_body_that_does_not_come_is_answered_by_the_operators_api() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = impatient(&lambda, &state).start();
    let head = "POST /v1/redrive HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
    let answer = http::exchange(daemon.admin, format!("{head}Content-Length: 100\r\n\r\n{{").as_bytes()).unwrap();
    assert_eq!(answer.status, 408, "{answer:?}");
}

#[test]
fn each_scrape_adds_up_however_many_scrape_at_once() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = impatient(&lambda, &state).start();
    for n in 0..10 {
        daemon.accept(&format!("function-{n}"), &[], &payload(&n.to_string()));
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let scrape = daemon.scrape();
                    assert_eq!(scrape.sum("sendoff_outbox_events", &[]), 10.0, "{}", scrape.0);
                }
            });
        }
    });
}

/// Sets limits of open files: soft, hard.
fn limited(setup: Setup, limits: &str) -> Setup {
    setup.under(&["sh", "-c", &format!("{limits} && exec \"$0\" \"$@\"")])
}

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = limited(impatient(&lambda, &state), "ulimit -S -n 128").start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(fields[3], fields[4], "{line}");
}

#[test]
fn idle_clients_at_the_limit_of_open_files_keep_neither_events_nor_the_store_from_going_on() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = impatient(&lambda, &state).set("listen.header_timeout", "60s").set("outbox.segment_bytes", "1MiB");
    let daemon = limited(setup, "ulimit -n 512").start();
    let idle = flood(daemon.ingest, 600, &|to| connected(to, b""));
    let long = format!("{{\"id\":\"long\",\"filler\":\"{}\"}}", "x".repeat(1_000_000));
    for _ in 0..40 {
        daemon.accept("orders", &[], long.as_bytes());
    }
    lambda.wait_for(&["long".to_owned()]);
    daemon.wait_until_empty();
    assert_eq!(daemon.scrape().sum("sendoff_outbox_poisoned", &[]), 0.0);
    drop(idle);
}

#[test]
fn the_health_listener_has_probes_and_metrics_and_nothing_else() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    // Other addresses than loopback need no permission for this listener.
    let daemon = impatient(&lambda, &state).set("listen.health", "[::]:0").start();
    let ready = daemon.wait_for_log(|fields| fields["message"] == "ready");
    let health: SocketAddr = ready["health"].as_str().unwrap().parse().unwrap();
    let health = SocketAddr::from(([127, 0, 0, 1], health.port()));
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(http::get(health, path).status, 200, "{path}");
    }
    for path in ["/", "/v1/status", "/v1/events", "/v1/dead-letters?payloads=true"] {
        assert_eq!(http::get(health, path).status, 404, "{path}");
    }
    let purge = http::request(health, "POST", "/v1/functions/orders/purge", &[], b"");
    assert_eq!(purge.status, 404);
    let (code, said) = crate::operator::sendoff(health, &["healthcheck"]);
    assert_eq!((code, said.trim()), (0, "ready"));
    assert_eq!(http::get(daemon.admin, "/v1/status").status, 200, "the admin listener is as it was");
    let held = flood(health, 100, &|to| connected(to, b"GET /livez HT"));
    assert_eq!(http::get(health, "/livez").status, 200);
    drop(held);
}
