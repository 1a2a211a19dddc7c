//! Tests an orderly stop.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sendoff::standin::Script;

use crate::operator::sendoff;
use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::process::Process;
use crate::rig::{PATIENCE, eventually, http};

#[test]
fn a_drain_finishes_the_attempt_in_flight_and_leaves_the_rest_to_the_next_daemon() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.default_script(answers_after(Duration::from_secs(2)));
    let setup =
        Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("delivery.concurrency_max", "1");
    let daemon = setup.start();
    let ids: Vec<_> = (0..3).map(|n| format!("drained-{n}")).collect();
    for id in &ids {
        daemon.accept("orders", &[], &payload(id));
    }
    wait_for_an_attempt(&lambda);
    let (ingest, begun) = (daemon.ingest, Instant::now());
    daemon.terminate();
    wait_until_not_ready(&daemon);
    eventually("no connection is accepted", || (!http::listens(ingest)).then_some(()));
    let status = daemon.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(20), "it stopped when it was done, not when the grace was over");
    assert_eq!(lambda.taken().len(), 1, "one was in flight, and no other was begun: {:?}", lambda.taken());

    lambda.take_all();
    let daemon = setup.start();
    lambda.wait_for(&ids);
    daemon.wait_until_empty();
    assert!(lambda.taken().values().all(|&times| times == 1), "{:?}", lambda.taken());
}

#[test]
fn an_attempt_that_outlives_the_grace_is_given_up_and_not_charged() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.default_script(answers_after(PATIENCE));
    let setup = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("lambda.read_timeout", "120s")
        .set("shutdown.grace", "300ms")
        // The first charged attempt would be the last.
        .set("delivery.attempts_max", "1");
    let daemon = setup.start();
    daemon.accept("orders", &[], &payload("outlived"));
    wait_for_an_attempt(&lambda);
    daemon.terminate();
    let status = daemon.wait();
    assert_eq!(status.code(), Some(0), "{status}");

    lambda.take_all();
    let daemon = setup.start();
    lambda.wait_for(&["outlived".to_owned()]);
    daemon.wait_until_empty();
    assert_eq!(daemon.scrape().sum("sendoff_deadletter_buried_total", &[]), 0.0);
}

#[test]
fn a_second_signal_ends_it_at_once_and_costs_no_event() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.default_script(answers_after(PATIENCE));
    let setup = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("lambda.read_timeout", "120s")
        .set("shutdown.grace", "120s");
    let daemon = setup.start();
    daemon.accept("orders", &[], &payload("impatient"));
    wait_for_an_attempt(&lambda);
    daemon.terminate();
    wait_until_not_ready(&daemon);
    let begun = Instant::now();
    daemon.terminate();
    daemon.wait();
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());

    lambda.take_all();
    let daemon = setup.start();
    lambda.wait_for(&["impatient".to_owned()]);
    daemon.wait_until_empty();
}

#[test]
fn an_interrupted_drain_says_that_the_daemon_stays_not_ready_and_how_to_undo_it() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.default_script(answers_after(PATIENCE));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    daemon.accept("orders", &[], &payload("waits"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(["drain", "--timeout", "60s", "--admin", &format!("http://{}", daemon.admin)]);
    let mut drain = Process::spawn("drain", &mut command);
    wait_until_not_ready(&daemon);
    drain.signal(Signal::INT);
    assert_eq!(drain.wait(PATIENCE).code(), Some(1));
    drain.line(PATIENCE, |line| line.contains("sendoff drain --undo").then_some(())).expect("it says how to go on");
    assert_eq!(http::get(daemon.admin, "/readyz").status, 503);
    assert_eq!(sendoff(daemon.admin, &["drain", "--undo"]).0, 0);
    assert_eq!(http::get(daemon.admin, "/readyz").status, 200);
}

fn answers_after(latency: Duration) -> Script {
    Script::default().latency(latency, Duration::ZERO)
}

fn wait_for_an_attempt(lambda: &Lambda) {
    eventually("an attempt is in flight", || (lambda.in_flight() > 0).then_some(()));
}

fn wait_until_not_ready(daemon: &Daemon) {
    eventually("it is not ready", || (http::get(daemon.admin, "/readyz").status == 503).then_some(()));
}
