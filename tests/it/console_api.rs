//! Tests what the operator's API tells whoever watches: snapshots, series, latest outcomes, the configuration.

use std::net::SocketAddr;

use serde_json::Value;

use crate::operator::{listed, sendoff};
use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{eventually, http};

fn get(admin: SocketAddr, path: &str) -> Value {
    let answer = http::get(admin, path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    answer.json()
}

fn delivering() -> (tempfile::TempDir, Lambda, Daemon) {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    (scratch, lambda, daemon)
}

#[test]
fn whoever_watches_is_told_what_is_stored_what_happened_and_what_is_configured() {
    let (_scratch, lambda, daemon) = delivering();
    let delivered = daemon.accept("orders", &[("Idempotency-Key", "key-of-orders")], &payload("told"));
    lambda.wait_for(&["told".to_owned()]);
    daemon.wait_until_empty();

    let outcomes = get(daemon.admin, "/v1/recent?function=ord*")["outcomes"].clone();
    let outcome = &outcomes.as_array().unwrap()[0];
    assert_eq!(
        (&outcome["id"], &outcome["outcome"], &outcome["next"]),
        (&Value::from(delivered.as_str()), &Value::from("delivered"), &Value::from("done"))
    );
    assert_eq!((&outcome["status"], &outcome["attempts"]), (&Value::from(202), &Value::from(1)), "{outcome}");
    assert!(!outcomes.to_string().contains("key-of-orders") && !outcomes.to_string().contains("told"));
    assert_eq!(get(daemon.admin, "/v1/recent?function=mails")["outcomes"], Value::Array(Vec::new()));

    lambda.throttle_all();
    daemon.accept("orders", &[], &payload("waits"));
    let snapshot = eventually("the snapshot shows the event", || {
        let snapshot = get(daemon.admin, "/v1/snapshot");
        (snapshot["status"]["outbox"]["events"] == 1).then_some(snapshot)
    });
    assert_eq!(
        (&snapshot["functions_total"], &snapshot["functions"][0]["function"]),
        (&Value::from(1), &Value::from("orders"))
    );
    assert_eq!(snapshot["limits"]["events_max"], 20_000_000, "{snapshot}");
    assert!(get(daemon.admin, "/v1/functions?function=mails")["functions"].as_array().unwrap().is_empty());

    let series = eventually("the beat has measured the event", || {
        let series = get(daemon.admin, "/v1/series?window=5m");
        let waits = series["ready"].as_array().unwrap().iter().zip(series["waiting"].as_array().unwrap());
        waits.into_iter().any(|(ready, waiting)| ready == 1.0 || waiting == 1.0).then_some(series)
    });
    let columns = ["accepted", "attempts", "delivered", "oldest_age_seconds", "disk_bytes", "commit_p99_seconds"];
    let times = series["times"].as_array().unwrap().len();
    for column in columns {
        assert_eq!(series[column].as_array().unwrap().len(), times, "{column}");
    }
    assert!(series["limit"].as_array().unwrap().is_empty() && series["backlog"].as_array().unwrap().is_empty());
    assert_eq!(http::get(daemon.admin, "/v1/series?window=1y").status, 400);
    assert_eq!(http::get(daemon.admin, "/v1/series?function=nobody").status, 404);

    let config = get(daemon.admin, "/v1/config");
    let find = |key: &str| {
        let entries = config["entries"].as_array().unwrap();
        entries.iter().find(|entry| entry["key"] == key).unwrap_or_else(|| panic!("{key} in {config}")).clone()
    };
    assert_eq!(find("history.events")["value"], 10_000);
    assert_eq!(find("lambda.endpoint_url")["value"], lambda.endpoint_url());
    assert_eq!(
        (&find("delivery.attempts_max")["live"], &find("listen.admin")["live"]),
        (&Value::Bool(true), &Value::Bool(false))
    );

    let me = get(daemon.admin, "/v1/whoami");
    assert_eq!(
        (&me["name"], &me["proof"], &me["required"]),
        (&Value::from("anyone"), &Value::from("none"), &Value::Bool(false))
    );
    assert_eq!(me["rights"], serde_json::json!(["read", "operate", "payloads"]));
}

#[test]
fn however_many_look_the_store_is_asked_once_a_second() {
    let (_scratch, _lambda, daemon) = delivering();
    let snapshots: Vec<Value> = (0..20).map(|_| get(daemon.admin, "/v1/snapshot")).collect();
    let mut times: Vec<&str> = snapshots.iter().map(|snapshot| snapshot["at"].as_str().unwrap()).collect();
    times.dedup();
    let (first, last) = (times[0], times[times.len() - 1]);
    let second = |time: &str| -> u64 { time[17..19].parse().unwrap() };
    let passed = (60 + second(last) - second(first)) % 60 + 1;
    assert!(times.len() as u64 <= passed + 1, "{times:?}");
}

/// Posts JSON to the operator's API.
fn post(admin: SocketAddr, path: &str, body: &Value) -> http::Response {
    http::request(admin, "POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

#[test]
fn what_became_of_an_event_is_told_at_both_doors_after_it_has_left() {
    let (_scratch, lambda, daemon) = delivering();
    let delivered = daemon.accept("orders", &[], &payload("delivered"));
    let waited = get(daemon.admin, &format!("/v1/events/{delivered}?wait=30s"));
    assert_eq!((&waited["state"], &waited["end"]["outcome"]), (&Value::from("done"), &Value::from("delivered")));
    assert_eq!((&waited["end"]["status"], &waited["attempts"]), (&Value::from(202), &Value::from(1)), "{waited}");
    assert_eq!((&waited["end"]["confirmed"], &waited["payload_bytes"]), (&Value::Bool(false), &Value::Null));
    let at_ingest = http::get(daemon.ingest, &format!("/v1/events/{delivered}")).json();
    assert_eq!((&at_ingest["state"], &at_ingest["end"]["outcome"]), (&Value::from("done"), &Value::from("delivered")));

    lambda.throttle_all();
    let cancelled = daemon.accept("orders", &[], &payload("cancelled"));
    let purged = daemon.accept("orders", &[], &payload("purged"));
    eventually("the event is cancelled", || {
        (sendoff(daemon.admin, &["events", "cancel", &cancelled]).0 == 0).then_some(())
    });
    eventually("the other one is purged", || {
        sendoff(daemon.admin, &["purge", "orders", "--yes"]);
        (daemon.stored() == 0.0).then_some(())
    });
    for (id, outcome) in [(&cancelled, "cancelled"), (&purged, "purged")] {
        let (code, said) = sendoff(daemon.admin, &["events", "show", id]);
        let shown: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((code, &shown["end"]["outcome"]), (0, &Value::from(outcome)), "{said}");
        assert_eq!(shown["end"]["by"], "anyone");
        let at_ingest = http::get(daemon.ingest, &format!("/v1/events/{id}")).json();
        assert_eq!((&at_ingest["end"]["outcome"], &at_ingest["end"]["by"]), (&Value::from(outcome), &Value::Null));
    }
    let unknown = "01a0c5a1-b2c3-74e5-b607-18293a4b5c6d";
    assert_eq!(http::get(daemon.admin, &format!("/v1/events/{unknown}?wait=60s")).status, 404, "nothing to wait for");
    assert_eq!(http::get(daemon.admin, &format!("/v1/events/{delivered}?wait=2h")).status, 400);
    assert_eq!(http::get(daemon.ingest, &format!("/v1/events/{delivered}?wait=2h")).status, 400);
}

#[test]
fn a_sender_can_wait_until_its_event_is_delivered() {
    let (_scratch, lambda, daemon) = delivering();
    let send = |line: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sendoff"));
        command.args(["send", "orders"]).args(line).args(["--endpoint", &daemon.endpoint_url()]).env_clear();
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = send(&["{}", "--wait", "30s"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.lines().nth(1).is_some_and(|line| line == "delivered after 1 attempt"), "{said}");
    lambda.throttle_all();
    let (code, said) = send(&["{}", "--wait", "100ms", "--json"]);
    assert_eq!(code, 75, "{said}");
    let event: Value = serde_json::from_str(said.lines().nth(1).unwrap()).unwrap();
    assert_eq!(event["end"], Value::Null, "{said}");
}

#[test]
fn whoever_waits_gets_an_answer_when_the_daemon_stops() {
    let (_scratch, lambda, daemon) = delivering();
    lambda.throttle_all();
    let id = daemon.accept("orders", &[], &payload("waits"));
    let ingest = daemon.ingest;
    let waiting = std::thread::spawn(move || http::get(ingest, &format!("/v1/events/{id}?wait=60s")));
    eventually("the event was attempted", || (lambda.requests() > 0).then_some(()));
    daemon.terminate();
    let answer = waiting.join().unwrap();
    assert!(answer.status == 200 && answer.json()["end"] == Value::Null, "{answer:?}");
    assert!(daemon.wait().success());
}

#[test]
fn many_events_are_changed_by_one_command_and_the_audit_says_by_whom() {
    let (_scratch, lambda, daemon) = delivering();
    lambda.throttle_all();
    for n in 0..5 {
        daemon.accept("orders", &[], &payload(&format!("o{n}")));
    }
    daemon.accept("mails", &[], &payload("m"));
    // Paused, so that none is in flight.
    assert_eq!(sendoff(daemon.admin, &["pause", "orders"]).0, 0);
    eventually("no attempt is in flight", || {
        let events = listed(daemon.admin, &["events", "list", "--function", "orders", "--json"]);
        events.iter().all(|event| event["in_flight"] == false).then_some(())
    });
    let start =
        |more: &[&str]| sendoff(daemon.admin, &[&["bulk", "start", "cancel", "--function", "ord*"], more].concat());
    let (code, said) = start(&["--dry-run"]);
    assert!(code == 0 && said.starts_with("5 events, the oldest accepted at"), "{said}");
    let asked = serde_json::json!({ "action": "cancel", "filter": { "function": "ord*" }, "expect": 3 });
    let surprised = post(daemon.admin, "/v1/bulk", &asked);
    assert!(surprised.status == 409 && surprised.text().contains("5 events fit now"), "{surprised:?}");
    let (code, said) = start(&[]);
    assert!(code == 1 && said.contains("--yes"), "nobody can be asked: {said}");
    let (code, said) = start(&["--yes", "--limit", "2", "--rate", "50/s"]);
    assert!(code == 0 && said.contains("is done: 2 cancelled"), "{said}");
    let (code, said) = start(&["--yes"]);
    assert!(code == 0 && said.contains("is done: 3 cancelled"), "{said}");
    assert_eq!(daemon.stored(), 1.0, "the other function's");
    let jobs = listed(daemon.admin, &["bulk", "list", "--json"]);
    let states: Vec<&str> = jobs.iter().filter_map(|job| job["state"].as_str()).collect();
    assert_eq!(
        states,
        ["done", "refused", "done", "done", "done"],
        "the second dry run is the one before the question"
    );
    let audit = listed(daemon.admin, &["actions", "--json", "--limit", "1000"]);
    let ends: Vec<&Value> =
        audit.iter().filter(|line| line["action"] == "end-bulk" && line["result"] == "done").collect();
    assert_eq!(ends.len(), 2, "{audit:?}");
    assert_eq!((&ends[1]["events"], &ends[1]["operator"]), (&Value::from(3), &Value::from("anyone")));
    assert_eq!(daemon.scrape().sum("sendoff_admin_bulk_events_total", &[("action", "cancel")]), 5.0);
}

#[test]
fn dead_letters_are_counted_by_their_cause_and_a_key_leads_to_its_event() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon =
        Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("delivery.age_max", "1s").start();
    lambda.throttle_all();
    let id = daemon.accept("orders", &[("Idempotency-Key", "order-17")], &payload("a"));
    daemon.accept("orders", &[], &payload("b"));
    eventually("both are dead letters", || {
        let groups = get(daemon.admin, "/v1/dead-letters/groups?function=ord*");
        (groups["groups"][0]["events"] == 2).then_some(groups)
    });
    let (code, said) = sendoff(daemon.admin, &["dead-letters", "groups"]);
    assert!(code == 0 && said.contains("event-age-exceeded") && said.contains("2 dead letters in the store"), "{said}");
    let key =
        |key: &str| http::request(daemon.admin, "GET", "/v1/keys?function=orders", &[("Idempotency-Key", key)], b"");
    let found = key("order-17").json();
    assert_eq!((&found["first"], &found["state"]), (&Value::from(id.as_str()), &Value::from("buried")), "{found}");
    assert!(!found.to_string().contains("order-17"));
    assert_eq!(key("order-18").status, 404);
    assert_eq!(http::get(daemon.admin, "/v1/keys?function=orders").status, 400);
    let (code, said) = sendoff(daemon.admin, &["events", "key", "orders", "order-17"]);
    assert!(code == 0 && said.contains(&id), "{said}");
    let (code, said) = sendoff(daemon.admin, &["bulk", "start", "redrive", "--reason", "event-age-exceeded", "--yes"]);
    assert!(code == 0 && said.contains("2 stored"), "{said}");
    let (code, said) = sendoff(daemon.admin, &["events", "recent"]);
    assert!(code == 0 && said.contains("redriven"), "{said}");
}

#[test]
fn everything_is_served_below_a_prefix_too() {
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state).set("listen.admin_prefix", "/ops/sendoff").start();
    for path in ["/livez", "/ops/sendoff/livez", "/v1/status", "/ops/sendoff/v1/status?"] {
        assert_eq!(http::get(daemon.admin, path).status, 200, "{path}");
    }
    assert_eq!(get(daemon.admin, "/ops/sendoff/v1/whoami")["prefix"], "/ops/sendoff");
    let slash = http::get(daemon.admin, "/ops/sendoff");
    assert_eq!((slash.status, slash.header("location")), (308, Some("/ops/sendoff/")));
    let foreign = [("Host", "evil.example"), ("Connection", "close")];
    let head = format!(
        "GET /ops/sendoff/v1/status HTTP/1.1\r\n{}\r\n",
        foreign.map(|(k, v)| format!("{k}: {v}\r\n")).concat()
    );
    assert_eq!(http::status(daemon.admin, head.as_bytes()), 421, "the guard stands below the prefix, too");
    assert_eq!(http::get(daemon.admin, "/ops/sendoffx/v1/status").status, 404);
}
