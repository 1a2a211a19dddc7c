//! Tests a redrive while no daemon runs: into an outbox, or directly to Lambda.

use std::path::Path;
use std::process::Command;

use sendoff::standin::{Script, Trouble};

use super::{Parts, ids, kill_events, refuse_all, run, setup};
use crate::rig::daemon::scratch;
use crate::rig::lambda::{Lambda, payload, throttle};
use crate::rig::process::Process;
use crate::rig::{PATIENCE, eventually, python};

/// `sendoff redrive` without a daemon, with the same Lambda and SQS.
fn alone(state: &Path, lambda: &Lambda, sqs: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(["redrive", "--progress", "none", "--state-dir", state.to_str().unwrap()]).args(args);
    command.args(["--set", &format!("sqs.endpoint_url={sqs}")]);
    command.args(["--set", &format!("lambda.endpoint_url={}", lambda.endpoint_url())]);
    command.env_clear();
    python::aws_environment(&mut command);
    command
}

#[test]
fn letters_go_into_the_outbox_of_a_daemon_that_does_not_run_and_out_when_it_does() {
    let Parts { service, lambda, queue, setup, state, .. } = &Parts::new();
    let daemon = setup.start();
    kill_events(&daemon, service, queue, &ids(0..35));
    let redrive = |args: &[&str]| {
        run(alone(state, lambda, &service.url(), &[&["--queue", queue, "--standalone"], args].concat()))
    };
    let (code, said) = redrive(&[]);
    assert_eq!((code, said.contains("leave out --standalone")), (69, true), "the daemon has the lock: {said}");
    assert_eq!(service.count(queue), 35);
    daemon.kill9();

    lambda.take_all();
    let (code, said) = redrive(&["--dry-run"]);
    assert_eq!((code, said.contains("35 would be redriven")), (0, true), "{said}");
    let (code, said) = redrive(&["--limit", "30"]);
    assert_eq!((code, said.contains("30 redriven, 0 duplicates")), (0, true), "{said}");
    assert!(said.contains("The next daemon there delivers them"), "{said}");
    let (code, said) = redrive(&[]);
    assert_eq!((code, said.contains("5 redriven, 0 duplicates")), (0, true), "{said}");
    assert_eq!((service.count(queue), lambda.taken().len()), (0, 0), "accepted, not yet delivered");

    let daemon = setup.start();
    lambda.wait_for(&ids(0..35));
    daemon.wait_until_empty();
    assert!(lambda.taken().values().all(|&times| times == 1));
}

#[test]
fn without_a_daemon_it_says_at_once_what_to_do() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let admin = format!("http://127.0.0.1:{}", crate::rig::lasting_port());
    for source in [&["--local"][..], &["--queue", "http://127.0.0.1:9/123456789012/dead"]] {
        let args = [source, &["--admin", &admin]].concat();
        let (code, said) = run(alone(&state, &lambda, "http://127.0.0.1:9", &args));
        assert_eq!(code, 69, "{said}");
        assert!(said.contains("daemon not running at") && said.contains("--standalone or --direct"), "{said}");
    }
}

#[test]
fn letters_of_the_store_itself_come_back_without_a_daemon() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    refuse_all(&lambda);
    let setup = setup(&state, &lambda, "http://127.0.0.1:9");
    let daemon = setup.start();
    for id in ids(0..12) {
        daemon.accept("orders", &[], &payload(&id));
    }
    let buried = || daemon.scrape().sum("sendoff_outbox_events", &[("state", "buried")]);
    eventually("all are dead", || (buried() == 12.0).then_some(()));
    daemon.kill9();
    lambda.take_all();
    let (code, said) = run(alone(&state, &lambda, "http://127.0.0.1:9", &["--local", "--standalone"]));
    assert_eq!((code, said.contains("12 dead letters redriven from the store")), (0, true), "{said}");
    let daemon = setup.start();
    lambda.wait_for(&ids(0..12));
    daemon.wait_until_empty();
}

#[test]
fn letters_go_straight_to_lambda_and_are_deleted_once_it_has_them() {
    let Parts { service, lambda, queue, setup, state, .. } = &Parts::new();
    let daemon = setup.start();
    kill_events(&daemon, service, queue, &ids(0..45));
    daemon.kill9();
    let direct =
        |args: &[&str]| alone(state, lambda, &service.url(), &[&["--queue", queue, "--direct"], args].concat());

    // One function does not exist: its letters stay and are named. The others are throttled for a while.
    lambda.take_all();
    lambda.script("orders-1", Script::always(Trouble::error(404, "ResourceNotFoundException", "Function not found")));
    lambda.script("orders-2", Script::default().times(20, throttle()));
    let (code, said) = run(direct(&[]));
    let missing = service.count(queue);
    assert_eq!((code, missing > 10), (1, true), "{said}");
    assert!(said.contains(&format!("{} redriven", 45 - missing)), "{said}");
    assert!(said.contains(&format!("{missing} left on the queue: refused")), "{said}");
    assert!(said.contains("ResourceNotFoundException"), "{said}");
    assert_eq!(lambda.taken().len(), 45 - missing);

    // After an interruption the remaining messages are visible.
    lambda.script("orders-1", Script::default());
    let mut process = Process::spawn("redrive", &mut direct(&["--rate", "5/s"]));
    eventually("some are back", || (lambda.taken().len() > 45 - missing).then_some(()));
    process.signal(rustix::process::Signal::INT);
    assert_eq!(process.wait(PATIENCE).code(), Some(1), "{:?}", process.lines());
    assert_eq!(lambda.taken().len() + service.count(queue), 45);
    let (code, said) = run(direct(&[]));
    assert_eq!((code, service.count(queue)), (0, 0), "{said}");
    assert_eq!(lambda.taken().len(), 45);
    assert!(lambda.taken().values().all(|&times| times == 1));
    let entries = lambda.taken_entries();
    let key = |entry: &sendoff::standin::Entry| entry.idempotency_key.clone().unwrap_or_default();
    assert!(entries.iter().all(|entry| key(entry).starts_with("key of letter")), "each went with its key");
}
