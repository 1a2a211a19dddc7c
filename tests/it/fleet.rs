//! Operators' calls in a fleet: every daemon that shares an outbox answers for all of it, also one that owns nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sendoff::standin::{Script, Trouble};
use serde_json::Value;

use crate::rig::daemon::{Daemon, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::postgres::Postgres;
use crate::rig::{eventually, http};
use crate::shared::{owner, setup};

/// Two daemons: one that owns all functions, and one that owns nothing.
fn two(server: &Postgres, lambda: &Lambda, dir: &Path) -> (Daemon, Daemon) {
    server.migrate();
    let first = setup(server, lambda, "first", dir).set("delivery.attempts_max", "1").start();
    first.accept("warm", &[], &payload("warm"));
    eventually("the first has the lanes", || (owner(server) == "first").then_some(()));
    let second = setup(server, lambda, "second", dir).set("delivery.attempts_max", "1").start();
    eventually("the second knows the first", || {
        (get(&second, "/v1/status")["fleet"]["members"].as_array()?.len() == 2).then_some(())
    });
    (first, second)
}

fn get(daemon: &Daemon, path: &str) -> Value {
    let response = http::get(daemon.admin, path);
    assert_eq!(response.status, 200, "{path}: {response:?}");
    response.json()
}

fn ask(daemon: &Daemon, method: &str, path: &str, body: &[u8]) -> http::Response {
    http::request(daemon.admin, method, path, &[("Content-Type", "application/json")], body)
}

fn done(daemon: &Daemon, method: &str, path: &str, body: &[u8]) -> Value {
    let response = ask(daemon, method, path, body);
    assert!((200..300).contains(&response.status), "{method} {path}: {response:?}");
    if response.text().is_empty() { Value::Null } else { response.json() }
}

/// A function as a daemon shows it.
fn function(daemon: &Daemon, name: &str) -> Value {
    let page = get(daemon, "/v1/functions");
    page["functions"].as_array().unwrap().iter().find(|view| view["function"] == name).cloned().unwrap_or_default()
}

fn state_of(daemon: &Daemon, id: &str) -> String {
    let response = http::get(daemon.admin, &format!("/v1/events/{id}"));
    let shown = if response.status == 404 { Value::Null } else { response.json() };
    let state = shown["end"]["outcome"].as_str().or(shown["state"].as_str());
    state.unwrap_or("gone").to_owned()
}

#[test]
fn a_daemon_that_owns_nothing_answers_for_the_whole_outbox_and_changes_events_of_others() {
    let Some(server) = Postgres::start() else { return };
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let (first, second) = two(&server, &lambda, &dir);
    lambda.wait_for(&["warm".to_owned()]);

    // What is in memory of the first only: counts, holds, outcomes, and what became of events that are gone.
    lambda.throttle_all();
    let mut ids: Vec<String> = (0..6)
        .map(|n| {
            [&first, &second][n % 2].accept(
                "orders",
                &[("Idempotency-Key", &format!("k{n}"))],
                &payload(&format!("e{n}")),
            )
        })
        .collect();
    let waiting = |daemon: &Daemon| function(daemon, "orders")["depth"] == 6;
    eventually("both show the events", || (waiting(&first) && waiting(&second)).then_some(()));
    eventually("a beat has told what the first owns", || {
        (get(&second, "/v1/status")["fleet"]["members"][0]["functions"] == 2).then_some(())
    });
    let [one, other] = [&first, &second].map(|daemon| get(daemon, "/v1/status"));
    assert_eq!((&one["outbox"]["events"], &other["outbox"]["events"]), (&6.into(), &6.into()), "{other}");
    assert_eq!(one["outbox"]["keys"], other["outbox"]["keys"]);
    let [owner, standby] = [0, 1].map(|nth| other["fleet"]["members"][nth].clone());
    assert_eq!((&owner["name"], &standby["name"], &standby["this"]), (&"first".into(), &"second".into(), &true.into()));
    assert_eq!((&owner["functions"], &standby["functions"]), (&2.into(), &0.into()), "{other}");
    assert_eq!((&owner["version"], &owner["answers"]), (&env!("CARGO_PKG_VERSION").into(), &true.into()));
    assert!(owner["beat_age_seconds"].as_f64().unwrap() < 10.0, "{owner}");
    eventually("the second shows the limit that the first has found", || {
        function(&second, "orders")["limit"].as_u64().map(drop)
    });
    assert_eq!(get(&second, "/v1/events?function=orders")["events"].as_array().unwrap().len(), 6);
    // Each event counts in one daemon's metrics, and what belongs to the database does, too.
    assert_eq!((first.stored(), second.stored()), (6.0, 0.0));
    let keys = [&first, &second].map(|daemon| daemon.scrape().sum("sendoff_outbox_keys", &[]));
    assert_eq!(keys.iter().sum::<f64>(), other["outbox"]["keys"].as_f64().unwrap(), "{keys:?}");
    assert_eq!(second.scrape().sum("sendoff_outbox_members", &[]), 2.0);

    // Pause, cancel, purge, resume, attempt.
    done(&second, "POST", "/v1/functions/orders/pause", b"");
    assert_eq!(function(&second, "orders")["paused"], true);
    eventually("the first knows of the pause", || (function(&first, "orders")["paused"] == true).then_some(()));
    let cancelled = ids.remove(0);
    eventually("an event between two attempts is cancelled", || {
        let response = ask(&second, "DELETE", &format!("/v1/events/{cancelled}"), b"");
        assert!([200, 409].contains(&response.status), "{response:?}");
        (response.status == 200).then_some(())
    });
    assert_eq!(ask(&second, "DELETE", &format!("/v1/events/{cancelled}"), b"").status, 404);
    first.accept("other", &[], &payload("to be purged"));
    eventually("the purge removes it", || {
        (done(&second, "POST", "/v1/functions/other/purge", b"")["events"] == 1).then_some(())
    });
    lambda.take_all();
    done(&second, "POST", "/v1/functions/orders/resume", b"");
    for id in &ids {
        // Delivered already, or attempted at once.
        let status = ask(&second, "POST", &format!("/v1/events/{id}/attempt"), b"").status;
        assert!([200, 404, 409].contains(&status), "{status}");
    }
    lambda.wait_for(&(1..6).map(|n| format!("e{n}")).collect::<Vec<_>>());
    first.wait_until_empty();
    assert_eq!(lambda.taken().keys().filter(|id| *id == "e0" || *id == "to be purged").count(), 0);

    // What the first delivered, the second tells to operators and to applications.
    let end = get(&second, &format!("/v1/events/{}", ids[0]));
    assert_eq!(end["end"]["outcome"], "delivered", "{end}");
    assert_eq!(http::get(second.ingest, &format!("/v1/events/{}", ids[0])).status, 200);
    let recent = get(&second, "/v1/recent?function=orders");
    assert!(recent["outcomes"].as_array().unwrap().iter().any(|outcome| outcome["id"] == ids[0].as_str()), "{recent}");
    let late = second.accept("orders", &[], &payload("waited for"));
    let waited = get(&second, &format!("/v1/events/{late}?wait=20s"));
    assert_eq!(waited["end"]["outcome"], "delivered", "{waited}");
}

#[test]
fn dead_letters_of_another_daemon_are_listed_redriven_and_purged() {
    let Some(server) = Postgres::start() else { return };
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let (first, second) = two(&server, &lambda, &dir);
    lambda.default_script(Script::always(Trouble::error(413, "RequestTooLargeException", "too large")));
    let ids: Vec<String> = (0..3).map(|n| second.accept("orders", &[], &payload(&format!("d{n}")))).collect();
    eventually("all are buried", || (function(&second, "orders")["buried"] == 3).then_some(()));
    let letters = get(&second, "/v1/dead-letters");
    assert_eq!(letters["dead_letters"].as_array().unwrap().len(), 3, "{letters}");
    lambda.take_all();
    let asked = serde_json::json!({ "ids": [ids[0]] }).to_string();
    let redriven = done(&second, "POST", "/v1/dead-letters/redrive", asked.as_bytes());
    lambda.wait_for(&["d0".to_owned()]);
    done(&second, "DELETE", &format!("/v1/dead-letters/{}", ids[1]), b"");
    eventually("one is left", || (function(&first, "orders")["buried"] == 1).then_some(()));
    assert_eq!(state_of(&second, &ids[2]), "buried", "{redriven}");
    assert_eq!(get(&second, &format!("/v1/events/{}", ids[0]))["end"]["outcome"], "redriven");
}

#[test]
fn what_another_daemon_attempts_just_now_is_shown_so_and_is_not_cancelled() {
    let Some(server) = Postgres::start() else { return };
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let (first, second) = two(&server, &lambda, &dir);
    lambda.wait_for(&["warm".to_owned()]);
    lambda.script("slow", Script::default().once(Trouble::SlowReply(Duration::from_secs(3))));
    let id = second.accept("slow", &[], &payload("slow"));
    eventually("it is in flight", || {
        (get(&second, "/v1/events?function=slow")["events"][0]["in_flight"] == true).then_some(())
    });
    let refused = ask(&second, "DELETE", &format!("/v1/events/{id}"), b"");
    assert_eq!(refused.status, 409, "{refused:?}");
    assert_eq!(done(&second, "POST", "/v1/functions/slow/purge", b"")["events"], 0, "a purge leaves it");
    first.wait_until_empty();
    assert_eq!(lambda.taken()["slow"], 1);
}

#[test]
fn a_command_to_a_daemon_that_is_frozen_changes_nothing_later_and_works_after_the_takeover() {
    let Some(server) = Postgres::start() else { return };
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let (first, second) = two(&server, &lambda, &dir);
    lambda.wait_for(&["warm".to_owned()]);
    done(&second, "POST", "/v1/functions/orders/pause", b"");
    let id = second.accept("orders", &[], &payload("kept"));
    eventually("a beat of the owner has told of the event", || {
        (get(&second, "/v1/status")["fleet"]["members"][0]["events"] == 1).then_some(())
    });
    first.signal(Signal::STOP);
    let began = Instant::now();
    let refused = ask(&second, "DELETE", &format!("/v1/events/{id}"), b"");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some() && refused.text().contains("nothing was changed"), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    // Who is silent is named, and the rest is answered.
    let status = get(&second, "/v1/status");
    let silent = status["problems"].as_array().unwrap().iter().any(|problem| problem["kind"] == "silent");
    let waits = status["outbox"]["events"] == 1;
    assert!(silent && waits || owner(&server) == "second", "{status}");
    assert_eq!(server.sql("orders", "SELECT count(*) FROM sendoff.command WHERE question LIKE '%cancel%'"), "0");
    eventually("the second has the lanes", || (owner(&server) == "second").then_some(()));
    first.signal(Signal::CONT);
    assert_eq!(state_of(&second, &id), "ready", "the withdrawn command is never carried out");
    done(&second, "DELETE", &format!("/v1/events/{id}"), b"");
    eventually("the first joins anew, and answers what the second knows", || {
        (state_of(&first, &id) == "cancelled").then_some(())
    });
}

#[test]
fn a_daemon_that_drains_gives_its_functions_back_while_one_of_its_attempts_is_still_in_flight() {
    let Some(server) = Postgres::start() else { return };
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let (first, second) = two(&server, &lambda, &dir);
    lambda.wait_for(&["warm".to_owned()]);
    first.accept("orders", &[], &payload("before"));
    lambda.wait_for(&["before".to_owned()]);
    lambda.script("slow", Script::default().once(Trouble::SlowReply(Duration::from_secs(8))));
    first.accept("slow", &[], &payload("slow"));
    lambda.wait_for(&["slow".to_owned()]);
    first.terminate();
    second.accept("orders", &[], &payload("during"));
    lambda.wait_for(&["during".to_owned()]);
    let status = get(&second, "/v1/status");
    let member =
        status["fleet"]["members"].as_array().unwrap().iter().find(|member| member["name"] == "first").cloned();
    let member = member.unwrap_or_else(|| panic!("the first has left already: {status}"));
    assert_eq!((&member["draining"], &member["functions"]), (&true.into(), &1.into()), "{status}");
    let owned =
        |name: &str| server.sql("orders", &format!("SELECT daemon FROM sendoff.functions WHERE function = '{name}'"));
    assert_eq!((owned("slow").as_str(), owned("orders").as_str()), ("first", "second"));
    assert!(first.wait().success());
    eventually("the second has all", || (owner(&server) == "second").then_some(()));
    second.wait_until_empty();
    assert_eq!(lambda.taken()["slow"], 1, "the attempt in flight was settled by whoever made it");
}
