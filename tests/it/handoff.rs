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
    let narrow = token("n");
    let few = table("few", &narrow, "handoff = true").replace("\"*\"", "\"orders\"");
    let text = table("peer", &right, "handoff = true") + &table("app", &other, "") + &few;
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
    // Keys are digests, so nobody can tell whether they belong to functions that a client may use.
    let keys = |bearer: &str| {
        let authorization = format!("Bearer {bearer}");
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/x-ndjson")];
        http::request(to.ingest, "POST", "/v1/handoff/keys", &headers, b"\n")
    };
    let refused = keys(&"n".repeat(40));
    assert!(refused.status == 403 && refused.text().contains("remembered keys"), "{refused:?}");
    assert_ne!(keys(&"r".repeat(40)).status, 403);

    let (_kept, from_state) = crate::rig::daemon::scratch();
    let from = sender(&from_state, &to.endpoint_url()).set("handoff.token_file", right.to_str().unwrap()).start();
    from.accept("orders", &[], &payload("authenticated"));
    assert_eq!(stop(from), Some(0));
    assert_eq!(to.stored(), 1.0);
}

#[test]
fn a_check_of_the_configuration_asks_the_receivers() {
    let (scratches, lambda) = ([scratch(), scratch(), scratch(), scratch()], Lambda::start());
    let good = receiver(&scratches[0].1, &lambda).start();
    let elsewhere = receiver(&scratches[1].1, &lambda).set("lambda.region", "us-west-2").start();
    let closed = Setup::new(&scratches[2].1).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let own = receiver(&scratches[3].1, &lambda).start();
    // Its own address by another name.
    let itself = Gate::start(own.ingest);
    let said = |to: &str, token_file: &str| {
        let to = format!("handoff.to={to}");
        let token = format!("handoff.token_file={token_file}");
        let listen = format!("listen.ingest={}", own.ingest);
        let state = scratches[3].1.to_str().unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sendoff"));
        command.args(["check-config", "--online", "--skip-state-dir", "--state-dir", state]).env_clear();
        command.args(["--set", &to, "--set", &listen, "--set", &token]);
        crate::rig::python::aws_environment(&mut command);
        command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1").env("AWS_EC2_METADATA_DISABLED", "true");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    for (to, expected) in [
        (good.endpoint_url(), "takes hand-offs of this one"),
        (elsewhere.endpoint_url(), "its lambda.region is us-west-2"),
        (closed.endpoint_url(), "handoff.receive = true there"),
        (itself.url(), "it is this daemon itself"),
        ("http://127.0.0.1:1".to_owned(), "it cannot be reached"),
        (lambda.endpoint_url(), "hand-off to http"),
    ] {
        let text = said(&to, "");
        let at = text.find("hand-off to ").map(|at| &text[at..]).unwrap_or_default();
        let lines: Vec<&str> = at.lines().take(2).collect();
        let is_good = text.contains("ok      hand-off to");
        assert!(lines.concat().contains(expected), "{to}: {expected} in\n{text}");
        assert_eq!(is_good, to == good.endpoint_url(), "{to}:\n{text}");
    }
    let text = said(&good.endpoint_url(), "/nowhere/token");
    assert!(text.contains("cannot use the token of /nowhere/token") && text.contains("handoff.ca"), "{text}");
    assert_eq!(good.stored(), 0.0, "nothing was handed over");
}

#[test]
fn a_pause_goes_with_its_events_and_what_became_of_them_can_be_asked() {
    let (scratches, lambda) = ([scratch(), scratch()], Lambda::start());
    let to = receiver(&scratches[1].1, &lambda).start();
    let from = sender(&scratches[0].1, &to.endpoint_url()).set("handoff.on_stop", "never").start();
    assert_eq!(http::request(from.admin, "POST", "/v1/functions/orders/pause", &[], b"").status, 200);
    let paused = from.accept("orders", &[], &payload("paused"));
    let other = put(&from, &serde_json::json!({"function": "invoices", "payload": {"id": "other"}, "delay": "1h"}));
    assert_eq!(http::request(from.admin, "PUT", "/v1/drain?hand_off=true", &[], b"").status, 204);
    eventually("both have moved", || (from.stored() == 0.0 && to.stored() == 2.0).then_some(()));
    for id in [&paused, &other] {
        let state = state_of(&from, id).unwrap();
        let end = &state["end"];
        assert_eq!((state["state"].as_str(), end["outcome"].as_str()), (Some("done"), Some("handed-over")), "{state}");
        assert_eq!(end["to"].as_str().map(|to| to.trim_end_matches('/')), Some(to.endpoint_url().as_str()), "{state}");
    }
    let all = http::get(to.admin, "/v1/functions").json();
    let is_paused = |name: &str| {
        let found = all["functions"].as_array().unwrap().iter().find(|function| function["function"] == name);
        found.and_then(|function| function["paused"].as_bool())
    };
    assert_eq!((is_paused("orders"), is_paused("invoices")), (Some(true), Some(false)), "{all}");
    to.wait_for_log(|fields| {
        fields["function"] == "orders" && fields["message"].to_string().contains("paused here, too")
    });
    to.accept("mails", &[], &payload("elsewhere"));
    lambda.wait_for(&["elsewhere".to_owned()]);
    assert!(!lambda.taken().contains_key("paused"), "an operator has paused it");
    assert_eq!(http::request(to.admin, "POST", "/v1/functions/orders/resume", &[], b"").status, 200);
    lambda.wait_for(&["paused".to_owned()]);
}

#[test]
fn a_hand_off_that_was_changed_on_its_way_is_refused_line_by_line_and_nothing_goes_early() {
    let ((_scratch, state), lambda) = (scratch(), Lambda::start());
    let to = receiver(&state, &lambda).start();
    let clock = sendoff::clock::Clock::system();
    let (name, now) = (sendoff::event::FunctionName::new("orders"), clock.now());
    let at = now.plus(Duration::from_secs(3_600));
    let line = |change: &dyn Fn(&mut Value)| {
        let id = sendoff::event::EventId::mint(now, clock.random_bits(), &name);
        let mut line = serde_json::json!({"envelope": {
            "id": id, "function": "orders", "key": id.to_string(), "key_source": "minted",
            "history": {"attempts": 0, "calls": 0, "throttles": 0, "setbacks": 0, "due": 0, "last": null, "burial": null},
        }, "payload_base64": "e30="});
        change(&mut line["envelope"]);
        format!("{line}\n")
    };
    let far = now.plus(Duration::from_secs(400 * 86_400)).0;
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Value));
    let changes: [Change<'_>; 8] = [
        ("adopted", &|envelope| envelope["deliver_at"] = at.0.into()),
        ("above 1000000000", &|envelope| envelope["history"]["attempts"] = u32::MAX.into()),
        ("is to be attempted", &|envelope| envelope["history"]["due"] = far.into()),
        ("control character", &|envelope| envelope["key"] = "a\r\nx: y".into()),
        ("its region", &|envelope| envelope["region"] = "evil.example.com/".into()),
        ("UUID of version 7", &|envelope| envelope["id"] = "00000000-0000-4000-8000-000000000000".into()),
        ("of at most 65536", &|envelope| envelope["carried"] = serde_json::json!({"trace_header": "x".repeat(70_000)})),
        ("invalid type", &|envelope| envelope["history"] = 7.into()),
    ];
    let body: String = changes.iter().map(|(_, change)| line(change)).collect();
    let region = crate::rig::python::REGION;
    let headers = [
        ("Content-Type", "application/x-ndjson"),
        ("X-Sendoff-Handoff", "1"),
        ("X-Sendoff-Instance", "00000000-0000-4000-8000-000000000001"),
        ("X-Sendoff-Region", region),
    ];
    let answer = http::request(to.ingest, "POST", "/v1/handoff", &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = String::from_utf8(answer.body.clone()).unwrap();
    let answers: Vec<&str> = text.lines().collect();
    for ((words, _), answer) in changes.iter().zip(&answers) {
        let word = if *words == "adopted" { "adopted" } else { "refused" };
        assert!(answer.contains(&format!("\"result\":\"{word}\"")) && answer.contains(words), "{words}: {answer}");
    }
    assert_eq!((answers.len(), to.stored()), (8, 1.0), "only the first one is kept");
    let all = http::get(to.admin, "/v1/events?function=orders").json();
    let kept = &all["events"][0];
    assert_eq!(kept["state"], "scheduled", "{all}");
    let due = kept["due"].as_str().and_then(sendoff::clock::UnixMillis::read_rfc3339);
    assert_eq!(due, Some(at), "it waits for its time, whatever its history says");
    assert!(lambda.taken().is_empty());
}

/// Runs a command of the real binary. Returns its exit code.
fn sendoff(args: &[&str]) -> Option<i32> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(args).env_clear().env("HOME", "/nonexistent");
    crate::rig::python::aws_environment(&mut command);
    Process::spawn("sendoff", &mut command).wait(PATIENCE).code()
}
