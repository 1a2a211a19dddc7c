//! The network to the database: cut, silent, and deaf. And machines that hang.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sendoff::standin::Script;

use super::{owner_of, setup, status};
use crate::rig::daemon::{Daemon, scratch};
use crate::rig::eventually;
use crate::rig::http::Response;
use crate::rig::lambda::{Lambda, payload};
use crate::rig::postgres::Postgres;
use crate::rig::wire::Wire;

fn wire_to(server: &Postgres) -> Wire {
    Wire::start(SocketAddr::from(([127, 0, 0, 1], server.port())))
}

fn send(daemon: &Daemon, id: &str) -> Response {
    daemon.invoke("orders", &[("idempotency-key", id)], &payload(id))
}

/// Sends until it is accepted, as an SDK does. Returns the event's id, and whether the answer calls it a duplicate.
fn send_until_accepted(daemon: &Daemon, id: &str) -> (String, bool) {
    let accepted = eventually("the event is accepted", || Some(send(daemon, id)).filter(|answer| answer.status == 202));
    let duplicate = accepted.header("x-sendoff-duplicate") == Some("true");
    (accepted.header("x-amzn-requestid").unwrap().to_owned(), duplicate)
}

fn stored(server: &Postgres) -> Vec<String> {
    let rows = server.sql("orders", "SELECT id FROM sendoff.event ORDER BY id");
    rows.lines().map(str::to_owned).collect()
}

/// Who has delivered an event that was delivered more than once, and when.
fn repeated(lambda: &Lambda) -> Vec<String> {
    let (taken, entries) = (lambda.taken(), lambda.taken_entries());
    let is_repeated = |id: &String| taken.get(id).is_some_and(|times| *times > 1);
    let lines = entries
        .iter()
        .filter(|entry| entry.id.as_ref().is_some_and(is_repeated))
        .map(|entry| format!("{:?} at {:?} by {:?}", entry.id, entry.at, entry.headers.get(sendoff::hop::HEADER)));
    lines.collect()
}

fn is_refused(answer: &Response) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

/// Sends an event whose answers from the database are lost. Returns whether the database has stored it.
fn lose_the_answer(daemon: &Daemon, server: &Postgres, wire: &Wire, id: &str, breaks: bool) -> bool {
    let before = stored(server).len();
    wire.lose_answers();
    let answer = std::thread::scope(|threads| {
        let sending = threads.spawn(|| send(daemon, id));
        eventually("the event is stored, or refused", || {
            (sending.is_finished() || stored(server).len() > before).then_some(())
        });
        if breaks {
            wire.cut();
        }
        sending.join().unwrap()
    });
    is_refused(&answer);
    assert!(wire.lost() > 0, "an answer was lost");
    wire.mend();
    stored(server).len() > before
}

#[test]
fn an_event_whose_commit_was_not_answered_is_refused_and_its_retry_is_recognised() {
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let wire = wire_to(&server);
    let daemon = setup(&server, &lambda, "only", &dir)
        .set("outbox.postgres.url", &server.url_by(wire.port()))
        .set("outbox.postgres.accept_timeout", "1s")
        .start();
    lambda.throttle_all();
    let mut ids = Vec::new();
    for how in ["the connection stays", "the connection breaks"] {
        let caught = (0..20).find(|n| {
            let id = format!("{how}-{n}");
            // The statement is prepared at its first use. If that answer is lost, nothing is stored. So let the two connections
            // that take turns with storing know the statement.
            ids.extend((0..4).map(|n| send_until_accepted(&daemon, &format!("before {id}: {n}")).0));
            let is_stored = lose_the_answer(&daemon, &server, &wire, &id, how.ends_with("breaks"));
            let (accepted, duplicate) = send_until_accepted(&daemon, &id);
            assert_eq!(duplicate, is_stored, "{id}: a repeat of what nobody was told of, if that is stored");
            ids.push(accepted);
            is_stored
        });
        assert!(caught.is_some(), "{how}: no answer to a commit was lost");
        ids.sort();
        assert_eq!(stored(&server), ids, "{how}");
    }
    lambda.take_all();
    daemon.wait_until_empty();
    let taken = lambda.taken();
    assert_eq!(taken.len(), ids.len());
    assert!(taken.values().all(|times| *times == 1), "{taken:?}");
}

#[test]
fn a_daemon_whose_network_falls_silent_is_replaced_begins_nothing_and_stands_by_when_it_is_back() {
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let wire = wire_to(&server);
    let lease = |setup: crate::rig::daemon::Setup| {
        setup.set("outbox.postgres.lease", "6s").set("outbox.postgres.accept_timeout", "1s")
    };
    let first =
        lease(setup(&server, &lambda, "first", &dir)).set("outbox.postgres.url", &server.url_by(wire.port())).start();
    lambda.throttle_all();
    let mut ids: Vec<String> = (0..10).map(|n| format!("first-{n}")).collect();
    ids.iter().for_each(|id| drop(send_until_accepted(&first, id)));
    let second = lease(setup(&server, &lambda, "second", &dir)).start();
    assert_eq!(owner_of(&server, "orders"), "first");

    wire.fall_silent();
    is_refused(&send(&first, "into the silence"));
    eventually("the first is not ready", || (status(&first, "/readyz") == 503).then_some(()));
    assert_eq!(status(&first, "/livez"), 200);
    ids.extend((0..10).map(|n| format!("second-{n}")));
    ids[10..].iter().for_each(|id| drop(send_until_accepted(&second, id)));
    eventually("the second has the lane", || (owner_of(&server, "orders") == "second").then_some(()));
    lambda.take_all();
    lambda.wait_for(&ids);
    second.wait_until_empty();

    // What it sent into the silence arrives now: its event, and settlements of a lane that it has lost.
    wire.mend();
    first.wait_for_log(|record| record["message"].as_str().is_some_and(|message| message.contains("joining anew")));
    eventually("the first is ready again", || (status(&first, "/readyz") == 200).then_some(()));
    assert_eq!(owner_of(&server, "orders"), "second");
    ids.extend(["into the silence".to_owned(), "through the standby".to_owned()]);
    send_until_accepted(&first, "into the silence");
    send_until_accepted(&first, "through the standby");
    lambda.wait_for(&ids);
    second.wait_until_empty();
    assert_eq!(lambda.taken().len(), ids.len());
    assert_eq!(repeated(&lambda), [""; 0], "none was in flight when the network fell silent");
}

#[test]
fn the_settlements_of_a_daemon_that_was_frozen_for_longer_than_its_lease_are_refused() {
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let setup = |name: &str| setup(&server, &lambda, name, &dir).set("outbox.postgres.lease", "6s");
    let first = setup("first").start();
    send_until_accepted(&first, "warm");
    lambda.wait_for(&["warm".to_owned()]);
    first.wait_until_empty();
    let second = setup("second").start();
    // Lambda accepts the event, but the daemon is frozen before it hears of it.
    lambda.default_script(Script::default().latency(Duration::from_millis(700), Duration::from_millis(700)));
    send_until_accepted(&first, "in flight");
    eventually("the attempt is under way", || (lambda.in_flight() == 1).then_some(()));
    first.signal(Signal::STOP);
    let frozen = Instant::now();
    lambda.wait_for(&["in flight".to_owned()]);
    lambda.throttle_all();
    send_until_accepted(&second, "meanwhile");
    eventually("the second has the lane", || (owner_of(&server, "orders") == "second").then_some(()));
    eprintln!("taken over {:?} after the owner was frozen", frozen.elapsed());
    assert_eq!(stored(&server).len(), 2);
    first.signal(Signal::CONT);
    first.wait_for_log(|record| record["message"].as_str().is_some_and(|message| message.contains("joining anew")));
    send_until_accepted(&first, "through the standby");
    assert_eq!(stored(&server).len(), 3, "what the first was told is no longer its business");
    assert_eq!(owner_of(&server, "orders"), "second");
    lambda.take_all();
    second.wait_until_empty();
    let expected = [("in flight", 2), ("meanwhile", 1), ("through the standby", 1), ("warm", 1)];
    assert_eq!(lambda.taken(), expected.map(|(id, times)| (id.to_owned(), times)).into());
}

#[test]
fn a_database_that_hangs_for_longer_than_a_lease_ends_no_daemon_and_loses_nothing() {
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let setup = |name: &str| {
        let setup = setup(&server, &lambda, name, &dir).set("outbox.postgres.lease", "6s");
        setup.set("outbox.postgres.accept_timeout", "1s").start()
    };
    let (first, second) = (setup("first"), setup("second"));
    lambda.throttle_all();
    let mut ids: Vec<String> = (0..10).map(|n| format!("before-{n}")).collect();
    ids.iter().for_each(|id| drop(send_until_accepted(&first, id)));
    let owner = owner_of(&server, "orders");
    let members = server.sql("orders", "SELECT id FROM sendoff.member WHERE alive ORDER BY id");
    server.freeze();
    let frozen = Instant::now();
    is_refused(&send(&first, "hanging"));
    for daemon in [&first, &second] {
        eventually("it is not ready", || (status(daemon, "/readyz") == 503).then_some(()));
        assert_eq!(status(daemon, "/livez"), 200);
    }
    lambda.take_all();
    eventually("longer than a lease", || (frozen.elapsed() > Duration::from_secs(9)).then_some(()));
    server.thaw();
    for daemon in [&first, &second] {
        eventually("it is ready again", || (status(daemon, "/readyz") == 200).then_some(()));
    }
    ids.push("hanging".to_owned());
    send_until_accepted(&second, "hanging");
    lambda.wait_for(&ids);
    eventually("nothing is left", || stored(&server).is_empty().then_some(()));
    assert_eq!(owner_of(&server, "orders"), owner);
    assert_eq!(server.sql("orders", "SELECT id FROM sendoff.member WHERE alive ORDER BY id"), members);
    let taken = lambda.taken();
    assert!(taken.len() == ids.len() && taken.values().all(|times| *times == 1), "{taken:?}");
}
