//! What became of events: told after a restart, by the daemon that handed them over, and by any daemon of a shared outbox.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::postgres::Postgres;
use crate::rig::python::aws_environment;
use crate::rig::{eventually, http};

/// What both listeners say of an event that has left the store.
fn ended(daemon: &Daemon, id: &str) -> Option<Value> {
    let path = format!("/v1/events/{id}");
    let [own, clients] = [daemon.admin, daemon.ingest].map(|listener| http::get(listener, &path));
    if own.status != 200 || own.json()["state"] != "done" {
        return None;
    }
    assert_eq!(clients.json()["end"]["outcome"], own.json()["end"]["outcome"], "{clients:?}");
    Some(own.json())
}

/// All bytes of the files that keep ends.
fn kept(state: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(state.join("history")).unwrap();
    files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn what_became_of_events_survives_a_stop_and_a_kill_without_payloads_and_keys() {
    let ((_scratch, state), lambda) = (scratch(), Lambda::start());
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    // Whatever memory still has is not what is asked for here.
    let setup = setup.set("history.events", "0");
    let daemon = setup.start();
    let keyed = [("Idempotency-Key", "a-key-of-a-client")];
    let first = daemon.accept("orders", &keyed, &payload("secret-of-the-first"));
    let told = eventually("the first is delivered", || ended(&daemon, &first));
    daemon.terminate();
    assert!(daemon.wait().success());

    let daemon = setup.start();
    let after = ended(&daemon, &first).expect("a stop forgets nothing");
    assert_eq!(after, told);
    assert_eq!((&after["end"]["outcome"], &after["attempts"]), (&Value::from("delivered"), &Value::from(1)));
    let before = kept(&state).len();
    let second = daemon.accept("orders", &[], &payload("secret-of-the-second"));
    eventually("the end of the second is written", || (kept(&state).len() > before).then_some(()));
    daemon.kill9();

    let daemon = setup.start();
    for id in [&first, &second] {
        let found = ended(&daemon, id).unwrap_or_else(|| panic!("{id} is forgotten"));
        assert_eq!(found["end"]["outcome"], "delivered");
    }
    let bytes = kept(&state);
    assert!(holds(&bytes, "orders"));
    for text in ["secret-of", "a-key-of-a-client"] {
        assert!(!holds(&bytes, text), "{text} is on the disk");
    }
    let unknown = http::get(daemon.admin, "/v1/events/01990000-0000-7000-8000-000000000000");
    assert_eq!(unknown.status, 404, "{unknown:?}");
    daemon.terminate();
    assert!(daemon.wait().success());

    // Switched off, nothing is kept, and what was is left alone.
    let daemon = setup.set("history.keep", "0s").start();
    let third = daemon.accept("orders", &[], &payload("third"));
    daemon.wait_until_empty();
    assert!(ended(&daemon, &third).is_none() && ended(&daemon, &first).is_none());
    assert_eq!(kept(&state), bytes);
}

#[test]
fn a_history_that_cannot_be_kept_costs_no_event_and_is_said() {
    let ((_scratch, state), lambda) = (scratch(), Lambda::start());
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("history"), "a file where the directory belongs").unwrap();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let id = daemon.accept("orders", &[], &payload("delivered"));
    let told = eventually("it is delivered", || ended(&daemon, &id));
    assert_eq!(told["end"]["outcome"], "delivered", "memory still tells it");
    let is_it = |line: &Value| line.to_string().contains("remembered in memory only");
    daemon.wait_for_log(is_it);
}

#[test]
fn a_daemon_tells_where_it_handed_an_event_over_to_also_after_its_restart() {
    let (scratches, lambda) = ([scratch(), scratch()], Lambda::start());
    lambda.throttle_all();
    let to = Setup::new(&scratches[1].1).set("handoff.receive", "true");
    let to = to.set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let setup = Setup::new(&scratches[0].1).set("lambda.endpoint_url", "http://127.0.0.1:1");
    let from = setup.clone().set("handoff.to", &to.endpoint_url()).start();
    let moved = from.accept("orders", &[], &payload("moved"));
    assert_eq!(http::request(from.admin, "PUT", "/v1/drain?hand_off=true", &[], b"").status, 204);
    let told = eventually("it is handed over", || ended(&from, &moved));
    let end = &told["end"];
    assert_eq!(end["outcome"], "handed-over", "{told}");
    let url = to.endpoint_url();
    assert_eq!(end["to"].as_str().unwrap().trim_end_matches('/'), url, "{told}");
    from.terminate();
    from.wait();

    let from = setup.start();
    assert_eq!(ended(&from, &moved), Some(told));
    // Also by the command, of a directory that no daemon uses.
    let orphan = from.accept("orders", &[], &payload("orphan"));
    from.kill9();
    let state = scratches[0].1.to_str().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(["hand-off", "--standalone", "--state-dir", state, "--timeout", "20s", "--to", &url]);
    command.env_clear().env("HOME", "/nonexistent");
    aws_environment(&mut command);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let from = setup.start();
    assert_eq!(ended(&from, &orphan).expect("the command keeps it")["end"]["outcome"], "handed-over");
}

#[test]
fn any_daemon_of_a_shared_outbox_tells_what_became_of_an_event() {
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let setup = |name: &str| {
        Setup::new(&dir.join(name))
            .set("lambda.endpoint_url", &lambda.endpoint_url())
            .set("outbox.store", "postgres")
            .set("outbox.postgres.url", &server.url())
            .set("outbox.postgres.member", name)
    };
    let [first, second] = ["first", "second"].map(|name| setup(name).start());
    let id = first.accept("orders", &[], &payload("shared"));
    // Whoever waits at a daemon that does not deliver it is answered, too.
    for daemon in [&first, &second] {
        let waited = http::get(daemon.ingest, &format!("/v1/events/{id}?wait=20s"));
        assert_eq!(waited.json()["end"]["outcome"], "delivered", "{waited:?}");
        let told = eventually("it is told", || ended(daemon, &id));
        assert_eq!(told["end"]["outcome"], "delivered");
    }
    let rows = server.sql("orders", "SELECT count(*) FROM sendoff.ended_0");
    assert_eq!(rows, "1", "without the payload: its record is the daemon's own");
    for daemon in [first, second] {
        daemon.terminate();
        daemon.wait();
    }
    let again = setup("third").start();
    assert_eq!(ended(&again, &id).expect("a restart forgets nothing")["end"]["outcome"], "delivered");
}
