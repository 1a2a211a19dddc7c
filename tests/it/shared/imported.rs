//! `sendoff postgres import`: a local outbox that no daemon uses moves into the shared one.

use std::path::Path;

use sendoff::standin::{Script, Trouble};
use serde_json::{Value, json};

use super::{setup, status};
use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::postgres::{Postgres, sendoff};
use crate::rig::process::Process;
use crate::rig::{eventually, http};

fn import(state: &Path, server: &Postgres, lambda: &Lambda, database: &str) -> (Option<i32>, String) {
    let url = server.url().replace("/orders", &format!("/{database}"));
    let (state, endpoint) = (state.to_str().unwrap(), format!("lambda.endpoint_url={}", lambda.endpoint_url()));
    sendoff(&import_args(state, &url, &endpoint))
}

fn import_args<'a>(state: &'a str, url: &'a str, endpoint: &'a str) -> Vec<&'a str> {
    let region = "lambda.region=eu-central-1";
    vec!["postgres", "import", "--state-dir", state, "--url", url, "--set", endpoint, "--set", region]
}

fn local(state: &Path, lambda: &Lambda) -> Setup {
    Setup::new(state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("lambda.region", "eu-central-1")
}

fn shared(server: &Postgres, lambda: &Lambda, dir: &Path) -> Daemon {
    setup(server, lambda, "shared", dir).set("lambda.region", "eu-central-1").start()
}

fn state_of(daemon: &Daemon, id: &str) -> Value {
    let answer = http::get(daemon.ingest, &format!("/v1/events/{id}"));
    assert_eq!(answer.status, 200, "{id}: {answer:?}");
    answer.json()
}

fn put(daemon: &Daemon, event: &Value) -> String {
    let headers = [("Content-Type", "application/json")];
    let answer = http::request(daemon.ingest, "POST", "/v1/events", &headers, event.to_string().as_bytes());
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn pause(daemon: &Daemon, function: &str, word: &str) {
    let (code, said) = sendoff(&[word, function, "--admin", &format!("http://{}", daemon.admin)]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_local_outbox_is_imported_with_ids_states_histories_keys_and_pauses() {
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let refusal = Trouble::error(400, "InvalidRequestContentException", "no");
    lambda.script("doomed", Script::always(refusal));
    let state = dir.join("local");
    let daemon = local(&state, &lambda).set("delivery.backoff_base", "1h").set("delivery.backoff_cap", "1h").start();
    let key = |key: &'static str| [("idempotency-key", key)];
    let delivered = daemon.accept("orders", &key("delivered"), &payload("delivered"));
    lambda.wait_for(&["delivered".to_owned()]);
    daemon.wait_until_empty();
    lambda.throttle_all();
    pause(&daemon, "paused", "pause");
    let tried = daemon.accept("orders", &key("tried"), &payload("tried"));
    let paused = daemon.accept("paused", &[], &payload("paused"));
    let large = format!("{{\"id\":\"large\",\"x\":\"{}\"}}", "x".repeat(900_000));
    let large =
        daemon.accept("invoices", &[("x-amzn-trace-id", "Root=1-5759e988-bd862e3fe1be46a994272793")], large.as_bytes());
    let scheduled = put(&daemon, &json!({"function": "orders", "payload": {"id": "later"}, "delay": "1h"}));
    let dead = daemon.accept("doomed", &key("dead"), &payload("dead"));
    let ids = [tried.clone(), large, scheduled.clone(), paused, dead.clone()];
    eventually("all are at rest", || {
        let states = ids.each_ref().map(|id| state_of(&daemon, id)["state"].clone());
        (states == ["waiting", "waiting", "scheduled", "ready", "buried"]).then_some(())
    });
    let before = ids.each_ref().map(|id| state_of(&daemon, id));

    let (code, said) = import(&state, &server, &lambda, "orders");
    assert!(code == Some(69) && said.contains("a daemon uses"), "{said}");
    daemon.terminate();
    assert!(daemon.wait().success());
    let (code, said) = import(&dir.join("nothing"), &server, &lambda, "orders");
    assert!(code == Some(1) && said.contains("no local outbox"), "{said}");
    let (code, said) = import(&state, &server, &lambda, "orders");
    assert_eq!(code, Some(0), "{said}");
    let counted = "1 ready, 2 waiting for a retry, 1 scheduled, 1 dead letter; 0 of them redriven";
    for expected in ["5 events of 4 functions imported", counted, "1 remembered key imported", "1 function is paused"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let (code, said) = import(&state, &server, &lambda, "orders");
    assert!(code == Some(0) && said.contains("5 events were imported before"), "{said}");

    // Nobody delivers from there, and no second database gets the events.
    let (code, said) = local(&state, &lambda).fail_to_start();
    assert!(code == Some(69) && said.contains("its events were imported into 127.0.0.1/orders"), "{said}");
    server.sql("postgres", "CREATE DATABASE other");
    let (code, said) = import(&state, &server, &lambda, "other");
    assert!(code == Some(1) && said.contains("were imported into 127.0.0.1/orders"), "{said}");

    let daemon = shared(&server, &lambda, &dir);
    for (id, before) in ids.iter().zip(before) {
        let mut after = state_of(&daemon, id);
        if after["state"] == "ready" {
            after["due"] = before["due"].clone();
        }
        assert_eq!(after, before, "as it was: the retries are an hour away");
    }
    for (id, name) in [(&tried, "tried"), (&delivered, "delivered")] {
        let again = daemon.invoke("orders", &[("idempotency-key", name)], &payload(name));
        assert_eq!((again.status, again.header("x-amzn-requestid")), (202, Some(id.as_str())), "{again:?}");
        assert_eq!(again.header("x-sendoff-duplicate"), Some("true"));
    }
    let stored = |state: &str| daemon.scrape().sum("sendoff_outbox_events", &[("state", state)]);
    eventually("the owner has counted what came in", || {
        (["ready", "waiting", "scheduled", "buried"].map(stored) == [1.0, 2.0, 1.0, 1.0]).then_some(())
    });
    lambda.take_all();
    lambda.script("doomed", Script::default());
    let admin = format!("http://{}", daemon.admin);
    pause(&daemon, "paused", "resume");
    for id in [&ids[0], &ids[1], &scheduled] {
        let (code, said) = sendoff(&["events", "attempt", id, "--admin", &admin]);
        assert_eq!(code, Some(0), "{said}");
    }
    lambda.wait_for(&["tried", "large", "later", "paused"].map(str::to_owned));
    eventually("only the dead letter is left", || (stored("buried") == 1.0 && daemon.stored() == 1.0).then_some(()));
    assert_eq!(state_of(&daemon, &dead)["state"], "buried");
    let taken = lambda.taken();
    assert!(taken.len() == 5 && taken.values().all(|times| *times == 1), "{taken:?}");
}

#[test]
fn an_import_that_was_cut_off_goes_on_and_brings_nothing_twice_though_daemons_deliver_meanwhile() {
    const EVENTS: usize = 700;
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    lambda.throttle_all();
    let state = dir.join("local");
    let daemon = local(&state, &lambda).start();
    let ids: Vec<String> = (0..EVENTS).map(|n| format!("event-{n}")).collect();
    for chunk in ids.chunks(100) {
        let lines = chunk.iter().map(|id| json!({"function": "orders", "payload": {"id": id}}).to_string());
        let body = lines.collect::<Vec<_>>().join("\n") + "\n";
        let headers = [("Content-Type", "application/x-ndjson")];
        let answer = http::request(daemon.ingest, "POST", "/v1/events", &headers, body.as_bytes());
        assert!(answer.status == 202 || answer.status == 207, "{answer:?}");
    }
    daemon.terminate();
    assert!(daemon.wait().success());

    let shared = shared(&server, &lambda, &dir);
    lambda.take_all();
    let (url, endpoint) = (server.url(), format!("lambda.endpoint_url={}", lambda.endpoint_url()));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(import_args(state.to_str().unwrap(), &url, &endpoint)).env_clear();
    let mut cut_off = Process::spawn("import", &mut command);
    eventually("some events have come in and were delivered", || (!lambda.taken().is_empty()).then_some(()));
    cut_off.kill9();
    drop(cut_off);
    let (code, said) = local(&state, &lambda).fail_to_start();
    assert!(code == Some(69) && said.contains("were imported into"), "a daemon is kept out already: {said}");
    let (code, said) = import(&state, &server, &lambda, "orders");
    assert_eq!(code, Some(0), "{said}");
    eprintln!("{said}");
    lambda.wait_for(&ids);
    shared.wait_until_empty();
    let taken = lambda.taken();
    assert!(taken.len() == EVENTS && taken.values().all(|times| *times == 1), "{taken:?}");
    assert_eq!(status(&shared, "/readyz"), 200);
}

#[test]
fn a_daemon_hands_its_events_over_to_a_daemon_on_a_shared_outbox() {
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    lambda.throttle_all();
    let to = setup(&server, &lambda, "shared", &dir).set("lambda.region", "eu-central-1");
    let to = to.set("handoff.receive", "true").start();
    let from = local(&dir.join("local"), &lambda)
        .set("handoff.to", &to.endpoint_url())
        .set("handoff.on_stop", "always")
        .set("handoff.within", "30s")
        .start();
    let keyed = [("idempotency-key", "k")];
    let first = from.accept("orders", &keyed, &payload("keyed"));
    let scheduled = put(&from, &json!({"function": "orders", "payload": {"id": "later"}, "delay": "1h"}));
    let before = state_of(&from, &scheduled);
    from.terminate();
    assert!(from.wait().success());
    assert_eq!(state_of(&to, &scheduled), before);
    let again = to.invoke("orders", &keyed, &payload("keyed"));
    assert_eq!((again.status, again.header("x-amzn-requestid")), (202, Some(first.as_str())), "{again:?}");
    lambda.take_all();
    lambda.wait_for(&["keyed".to_owned()]);
    eventually("the scheduled one is left", || (to.stored() == 1.0).then_some(()));
    assert_eq!(lambda.taken(), [("keyed".to_owned(), 1)].into());
}
