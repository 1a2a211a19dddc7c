//! Tests what the operator's API tells whoever watches: snapshots, series, latest outcomes, the configuration.

use std::net::SocketAddr;

use serde_json::Value;

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
    assert_eq!(snapshot["limits"]["events_max"], 1_000_000, "{snapshot}");
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
