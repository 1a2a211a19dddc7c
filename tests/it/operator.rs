//! Tests what an operator does on the command line: pause, resume, cancel, purge, and the lists.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use crate::rig::daemon::{Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{eventually, http};
use crate::schemathesis;

/// Runs `sendoff` against a daemon to its end. Returns its exit code and its output.
pub fn sendoff(admin: SocketAddr, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(args).args(["--admin", &format!("http://{admin}")]).env_clear();
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), said)
}

/// The output of a command, line by line, as JSON.
pub fn listed(admin: SocketAddr, args: &[&str]) -> Vec<Value> {
    let (code, said) = sendoff(admin, args);
    assert_eq!(code, 0, "{said}");
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_paused_function_keeps_its_events_over_a_kill_until_it_is_resumed() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.start();
    daemon.accept("orders", &[], &payload("before"));
    lambda.wait_for(&["before".to_owned()]);
    daemon.wait_until_empty();

    let (code, said) = sendoff(daemon.admin, &["pause", "orders"]);
    assert_eq!(code, 0, "{said}");
    daemon.accept("orders", &[], &payload("kept"));
    daemon.kill9();
    let daemon = setup.start();
    daemon.accept("invoices", &[], &payload("beside"));
    lambda.wait_for(&["beside".to_owned()]);
    assert!(!lambda.taken().contains_key("kept"));
    let functions = listed(daemon.admin, &["functions", "--json"]);
    let orders = functions.iter().find(|function| function["function"] == "orders").unwrap();
    assert_eq!((&orders["paused"], &orders["depth"]), (&Value::Bool(true), &Value::from(1)), "{orders}");

    let (code, said) = sendoff(daemon.admin, &["resume", "orders"]);
    assert_eq!(code, 0, "{said}");
    lambda.wait_for(&["kept".to_owned()]);
    daemon.wait_until_empty();
}

#[test]
fn what_is_cancelled_or_purged_is_gone_and_nothing_else_is() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let cancelled = daemon.accept("orders", &[], &payload("cancelled"));
    daemon.accept("orders", &[], &payload("purged-1"));
    daemon.accept("orders", &[], &payload("purged-2"));
    daemon.accept("invoices", &[], &payload("stays"));
    assert_eq!(listed(daemon.admin, &["events", "list", "--json"]).len(), 4);

    // An event in flight cannot be cancelled or purged. Its attempt ends soon.
    eventually("the event is cancelled", || {
        (sendoff(daemon.admin, &["events", "cancel", &cancelled]).0 == 0).then_some(())
    });
    let (code, said) = sendoff(daemon.admin, &["events", "show", &cancelled]);
    assert!(code == 0 && said.contains("\"outcome\": \"cancelled\""), "{said}");
    // While both events are in flight there is nothing to ask about.
    eventually("nobody was asked, so nothing was purged", || {
        let (code, _) = sendoff(daemon.admin, &["purge", "orders"]);
        assert_eq!(daemon.stored(), 3.0);
        (code == 1).then_some(())
    });
    let (code, said) = sendoff(daemon.admin, &["purge", "orders", "--dry-run"]);
    assert_eq!((code, daemon.stored()), (0, 3.0), "{said}");
    eventually("both are purged", || {
        let (code, said) = sendoff(daemon.admin, &["purge", "orders", "--yes"]);
        assert_eq!(code, 0, "{said}");
        (daemon.stored() == 1.0).then_some(())
    });

    lambda.take_all();
    lambda.wait_for(&["stays".to_owned()]);
    daemon.wait_until_empty();
    assert_eq!(lambda.taken().into_keys().collect::<Vec<_>>(), ["stays"]);
}

#[test]
fn a_hostile_pattern_is_answered_at_once_and_the_daemon_goes_on() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    daemon.accept("orders-of-a-rather-long-name", &[], &payload("before"));
    let list = |pattern: &str| http::get(daemon.admin, &format!("/v1/dead-letters?function={pattern}"));
    for (pattern, status) in [
        ("%2A".repeat(200) + "x", 404),
        ("*".repeat(200) + "x", 404),
        ("%2Ao".repeat(16) + "x", 404),
        ("%2Ao".repeat(2) + "*", 200),
        ("%2Ao".repeat(17) + "x", 400),
        ("o".repeat(513), 400),
        (String::new(), 400),
    ] {
        let answer = list(&pattern);
        assert_eq!(answer.status, status, "{pattern}: {}", answer.text());
        assert!(status != 400 || answer.text().contains("function: the pattern"), "{}", answer.text());
    }
    let (code, said) = sendoff(daemon.admin, &["dead-letters", "list", "--function", &"*a".repeat(17)]);
    assert!(code != 0 && said.contains("the pattern has 17 stars; use at most 16"), "{code}: {said}");
    daemon.accept("orders-of-a-rather-long-name", &[], &payload("after"));
    lambda.wait_for(&["before".to_owned(), "after".to_owned()]);
}

#[test]
fn schemathesis_finds_nothing_between_the_openapi_document_and_the_admin_listener() {
    let (scratch, state_dir) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state_dir).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    daemon.accept("orders", &[], b"{}");
    let document = format!("http://{}/v1/openapi.json", daemon.admin);
    schemathesis::finds_nothing(scratch.path(), "openapi_admin", &document, (35, 36));
}
