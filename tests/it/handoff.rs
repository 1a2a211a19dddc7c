//! Events move from one sendoff to another when the first one stops.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::gate::{At, Gate};
use crate::rig::http;
use crate::rig::lambda::{Lambda, payload};
use crate::rig::process::Process;
use crate::rig::{PATIENCE, eventually};

/// A daemon that takes hand-offs.
fn receiver(state: &std::path::Path, lambda: &Lambda) -> Setup {
    Setup::new(state).set("handoff.receive", "true").set("lambda.endpoint_url", &lambda.endpoint_url())
}

/// A daemon whose Lambda does not answer, and that hands over when it stops.
fn sender(state: &std::path::Path, to: &str) -> Setup {
    Setup::new(state)
        .set("lambda.endpoint_url", "http://127.0.0.1:1")
        .set("handoff.to", to)
        .set("handoff.on_stop", "always")
        .set("handoff.within", "20s")
}

fn state_of(daemon: &Daemon, id: &str) -> Option<Value> {
    let answer = http::get(daemon.ingest, &format!("/v1/events/{id}"));
    (answer.status == 200).then(|| answer.json())
}

/// Puts an event through the native door. Returns its id.
fn put(daemon: &Daemon, event: &Value) -> String {
    let headers = [("Content-Type", "application/json")];
    let answer = http::request(daemon.ingest, "POST", "/v1/events", &headers, event.to_string().as_bytes());
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn stop(daemon: Daemon) -> Option<i32> {
    daemon.terminate();
    daemon.wait().code()
}

#[test]
fn a_stop_hands_everything_to_another_sendoff_as_it_was() {
    let (scratches, lambda) = ([scratch(), scratch()], Lambda::start());
    lambda.throttle_all();
    let to = receiver(&scratches[1].1, &lambda).start();
    let from = sender(&scratches[0].1, &to.endpoint_url()).set("delivery.backoff_base", "1s");
    let from = from.set("delivery.backoff_cap", "1s").start();
    let keyed = [("Idempotency-Key", "k-1")];
    let tried = from.accept("orders", &keyed, &payload("tried"));
    let scheduled = put(&from, &serde_json::json!({"function": "orders", "payload": {"id": "later"}, "delay": "1h"}));
    let large =
        from.accept("invoices", &[], format!("{{\"id\":\"large\",\"x\":\"{}\"}}", "x".repeat(900_000)).as_bytes());
    eventually("the first attempts have failed", || {
        let waits = |id: &String| state_of(&from, id).is_some_and(|state| state["attempts"].as_u64() > Some(0));
        [&tried, &large].into_iter().all(waits).then_some(())
    });
    let ids = [tried.clone(), scheduled.clone(), large];
    let before = ids.each_ref().map(|id| state_of(&from, id).unwrap());
    assert_eq!(stop(from), Some(0));

    for (id, before) in ids.iter().zip(before) {
        let mut after = state_of(&to, id).unwrap_or_else(|| panic!("{id} is not there"));
        // It is attempted here, too.
        if before["state"] == "waiting" {
            assert!(after["attempts"].as_u64() >= before["attempts"].as_u64(), "{after} after {before}");
            for field in ["attempts", "due", "last_error", "in_flight", "charged"] {
                after[field] = before[field].clone();
            }
        }
        assert_eq!(after, before);
    }
    let again = to.invoke("orders", &keyed, &payload("tried"));
    assert_eq!((again.status, again.header("x-amzn-requestid")), (202, Some(tried.as_str())), "the first id");
    assert_eq!(again.header("x-sendoff-duplicate"), Some("true"));
    lambda.take_all();
    lambda.wait_for(&["tried".to_owned(), "large".to_owned()]);
    assert!(state_of(&to, &scheduled).is_some());
    let adopted = to.scrape().sum("sendoff_handoff_events_total", &[("direction", "in"), ("result", "adopted")]);
    assert_eq!(adopted, 3.0);

    let emptied = sender(&scratches[0].1, &to.endpoint_url()).set("handoff.on_stop", "never").start();
    assert_eq!(emptied.stored(), 0.0, "nothing is left behind");
}

#[test]
fn a_target_that_takes_nothing_is_passed_over_and_what_nobody_takes_stays_and_ends_with_1() {
    let (scratches, lambda) = ([scratch(), scratch(), scratch(), scratch(), scratch()], Lambda::start());
    let state = |nth: usize| scratches[nth].1.as_path();
    let old = Gate::start(lambda.endpoint_url()["http://".len()..].parse().unwrap());
    old.answer("/v1/handoff", usize::MAX, |_| (404, "{}".to_owned()));
    let elsewhere = receiver(state(1), &lambda).set("lambda.region", "us-west-2").start();
    let full = receiver(state(2), &lambda).set("outbox.events_max", "1").start();
    lambda.throttle_all();
    full.accept("orders", &[], &payload("first"));
    let draining = receiver(state(3), &lambda).start();
    assert_eq!(http::request(draining.admin, "PUT", "/v1/drain", &[], b"").status, 204);
    let not_receiving = Setup::new(state(4)).set("lambda.endpoint_url", &lambda.endpoint_url()).start();

    // Its own address by another name, which only the other side can recognise.
    let port = crate::rig::lasting_port();
    let own = format!("127.0.0.1:{port}");
    let itself = Gate::start(own.parse().unwrap());
    let mut targets: Vec<String> = [&elsewhere, &full, &draining, &not_receiving].map(Daemon::endpoint_url).into();
    targets.extend([old.url(), itself.url(), "http://127.0.0.1:1".to_owned()]);
    let setup = sender(state(0), &targets.join(" ")).set("listen.ingest", &own).set("handoff.within", "9s");
    let setup = setup.set("handoff.receive", "true");
    let from = setup.start();
    let id = from.accept("orders", &[], &payload("moved"));
    // A request to itself is refused while it still serves.
    assert_eq!(http::request(from.admin, "PUT", "/v1/drain?hand_off=true", &[], b"").status, 204);
    eventually("every target has been asked", || {
        let said = from.log().join("\n");
        let whys =
            ["lambda.region differs", "outbox.events_max", "draining", "takes no hand-offs", "the sender itself"];
        whys.into_iter().all(|why| said.contains(why)).then_some(())
    });
    let begun = Instant::now();
    assert_eq!(stop(from), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());

    let last = receiver(&scratches[1].0.path().join("last"), &lambda).start();
    targets.push(last.endpoint_url());
    let from = setup.set("handoff.to", &targets.join(" ")).start();
    assert!(state_of(&from, &id).is_some(), "it was left on the disk");
    assert_eq!(stop(from), Some(0));
    assert!(state_of(&last, &id).is_some());
}

#[test]
fn a_hand_off_whose_answer_was_lost_is_recognised_when_it_is_repeated() {
    let (scratches, lambda) = ([scratch(), scratch()], Lambda::start());
    let to = receiver(&scratches[1].1, &lambda).start();
    let gate = Gate::start(to.ingest);
    gate.hold("/v1/handoff", At::After);
    let setup = sender(&scratches[0].1, &gate.url());
    let from = setup.start();
    // Scheduled, so that none is being attempted when the hand-off begins.
    let later = |id| serde_json::json!({"function": "orders", "payload": {"id": id}, "delay": "1h"});
    let ids = ["a", "b"].map(|id| put(&from, &later(id)));
    from.terminate();
    gate.wait_until_held();
    // It has the events, the sender does not know, and is killed.
    from.kill9();
    let result = |result| to.scrape().sum("sendoff_handoff_events_total", &[("direction", "in"), ("result", result)]);
    assert_eq!((result("adopted"), result("repeat")), (2.0, 0.0));

    let from = setup.start();
    assert!(ids.iter().all(|id| state_of(&from, id).is_some()), "nothing was settled before the answer");
    assert_eq!(stop(from), Some(0));
    assert_eq!((result("adopted"), result("repeat")), (2.0, 2.0));
    assert_eq!(to.stored(), 2.0, "each is there once");
}

#[test]
fn a_drain_with_a_hand_off_empties_a_daemon_that_still_accepts() {
    let (scratches, lambda) = ([scratch(), scratch()], Lambda::start());
    lambda.throttle_all();
    let to = receiver(&scratches[1].1, &lambda).start();
    let from = sender(&scratches[0].1, &to.endpoint_url()).set("handoff.on_stop", "never").start();
    from.accept("orders", &[], &payload("before"));
    let drain = |args: &[&str]| sendoff(&[&["drain", "--admin", &format!("http://{}", from.admin)], args].concat());
    assert_eq!(drain(&["--hand-off", "--timeout", "30s"]), Some(0));
    assert_eq!((from.stored(), to.stored()), (0.0, 1.0));
    from.accept("orders", &[], &payload("meanwhile"));
    eventually("it follows", || (to.stored() == 2.0).then_some(()));
    assert_eq!(drain(&["--undo"]), Some(0));
    let id = from.accept("orders", &[], &payload("after"));
    assert_eq!(stop(from), Some(0), "without on_stop, events stay");
    let left = Setup::new(&scratches[0].1).set("lambda.endpoint_url", "http://127.0.0.1:1").start();
    assert!(state_of(&left, &id).is_some());
    let nowhere = http::request(left.admin, "PUT", "/v1/drain?hand_off=true", &[], b"");
    assert_eq!(nowhere.status, 409, "{nowhere:?}");
}

#[test]
fn a_directory_without_a_daemon_is_handed_over_by_a_command() {
    let (scratches, lambda) = ([scratch(), scratch()], Lambda::start());
    let to = receiver(&scratches[1].1, &lambda).start();
    let state = scratches[0].1.to_str().unwrap();
    let setup = Setup::new(&scratches[0].1).set("lambda.endpoint_url", "http://127.0.0.1:1");
    let from = setup.start();
    from.accept("orders", &[], &payload("orphan"));
    let url = to.endpoint_url();
    let hand_off = ["hand-off", "--standalone", "--state-dir", state, "--timeout", "20s", "--to"];
    assert_eq!(sendoff(&[&hand_off[..], &[&url]].concat()), Some(69), "a daemon uses it");
    from.kill9();
    assert_eq!(sendoff(&[&hand_off[..4], &["--timeout", "1s", "--to", "http://127.0.0.1:1"]].concat()), Some(1));
    assert_eq!(sendoff(&[&hand_off[..], &[&url]].concat()), Some(0));
    lambda.wait_for(&["orphan".to_owned()]);
    assert_eq!(setup.start().stored(), 0.0);
}

#[test]
fn only_a_client_with_the_right_may_hand_over_where_clients_are_required() {
    let (scratch, state) = scratch();
    let token = |name: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, name.repeat(40)).unwrap();
        path
    };
    let (right, other) = (token("r"), token("o"));
    let config = scratch.path().join("s.toml");
    let table = |name: &str, path: &std::path::Path, more: &str| {
        format!("[clients.{name}]\nfunctions = \"*\"\ntoken_file = {path:?}\n{more}\n")
    };
    let text = table("peer", &right, "handoff = true") + &table("app", &other, "");
    std::fs::write(&config, format!("[auth]\ningest = \"required\"\n{text}")).unwrap();
    let to = Setup::new(&state).config(&config).start();
    let greeting = |bearer: &str| {
        let authorization = format!("Bearer {bearer}");
        http::request(to.ingest, "GET", "/v1/handoff", &[("Authorization", &authorization)], b"")
    };
    assert_eq!(greeting(&"r".repeat(40)).status, 200);
    assert_eq!(greeting(&"r".repeat(40)).json()["format"], 1);
    assert_eq!(greeting(&"o".repeat(40)).status, 403);
    assert_eq!(greeting(&"x".repeat(40)).status, 401);

    let (_kept, from_state) = crate::rig::daemon::scratch();
    let from = sender(&from_state, &to.endpoint_url()).set("handoff.token_file", right.to_str().unwrap()).start();
    from.accept("orders", &[], &payload("authenticated"));
    assert_eq!(stop(from), Some(0));
    assert_eq!(to.stored(), 1.0);
}

/// Runs a command of the real binary. Returns its exit code.
fn sendoff(args: &[&str]) -> Option<i32> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(args).env_clear().env("HOME", "/nonexistent");
    crate::rig::python::aws_environment(&mut command);
    Process::spawn("sendoff", &mut command).wait(PATIENCE).code()
}
