//! Tests the sections of docs/operations.md that no other test tries: what an operator sees, and that the advice helps.

use std::process::Command;
use std::time::Duration;

use sendoff::standin::{Reason, Script, Throttle, Trouble};

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{eventually, http};
use crate::tools::{said, sendoff, succeed, tool};

fn operator(daemon: &Daemon, words: &[&str]) -> String {
    said(&sendoff().args(words).arg("--admin").arg(format!("http://{}", daemon.admin)).output().unwrap())
}

/// Sends events with distinct ids.
fn hand_over(daemon: &Daemon, events: usize) -> Vec<String> {
    let ids: Vec<_> = (0..events).map(|n| format!("event-{n}")).collect();
    ids.iter().for_each(|id| drop(daemon.accept("orders", &[], &payload(id))));
    ids
}

#[test]
fn a_throttled_account_shows_as_held_lanes_and_an_age_and_costs_no_event() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let reason = Reason::ConcurrentInvocationLimitExceeded;
    lambda.default_script(Script::always(Trouble::Throttle(Throttle::new(reason).retry_after(Duration::from_secs(5)))));
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("delivery.attempts_max", "1");
    let daemon = setup.start();
    let ids = hand_over(&daemon, 5);
    eventually("the lane is held", || operator(&daemon, &["status"]).contains("held: orders").then_some(()));
    let functions = operator(&daemon, &["functions"]);
    assert!(functions.contains("throttled until") && functions.contains("TooManyRequestsException"), "{functions}");
    eventually("what the alert watches grows", || {
        (daemon.scrape().sum("sendoff_outbox_oldest_age_seconds", &[("function", "orders")]) > 0.5).then_some(())
    });
    assert!(daemon.scrape().sum("sendoff_dispatch_attempts_total", &[("outcome", "throttled")]) >= 1.0);
    lambda.take_all();
    lambda.wait_for(&ids);
    daemon.wait_until_empty();
    // With only one allowed attempt, a charged attempt would have buried its event.
    assert_eq!(daemon.scrape().sum("sendoff_deadletter_buried_total", &[]), 0.0);
}

#[test]
fn expired_credentials_hold_all_lanes_in_words_and_are_charged_to_no_event() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let expired = Trouble::error(403, "ExpiredTokenException", "The security token included in the request is expired");
    lambda.default_script(Script::always(expired));
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("delivery.attempts_max", "1");
    let daemon = setup.start();
    daemon.accept("orders", &[], &payload("kept"));
    let held = daemon.wait_for_log(|fields| fields["message"] == "lane is held");
    assert!(held["reason"].as_str().unwrap().contains("ExpiredTokenException"), "{held}");
    eventually("the metric of the alert", || {
        (daemon.scrape().sum("sendoff_dispatch_held", &[("function", "orders")]) == 1.0).then_some(())
    });
    assert_eq!(http::get(daemon.admin, "/readyz").status, 200, "it goes on accepting");
    daemon.accept("orders", &[], &payload("accepted-meanwhile"));
    lambda.take_all();
    // Renewed credentials in the environment need the restart that the page asks for.
    daemon.terminate();
    assert!(daemon.wait().success());
    let daemon = setup.start();
    lambda.wait_for(&["kept".to_owned(), "accepted-meanwhile".to_owned()]);
    daemon.wait_until_empty();
    assert_eq!(daemon.scrape().sum("sendoff_deadletter_buried_total", &[]), 0.0);
}

#[test]
fn a_copy_of_a_stopped_daemon_s_directory_delivers_elsewhere() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let ids = hand_over(&daemon, 3);
    daemon.terminate();
    assert!(daemon.wait().success());
    let moved = scratch.path().join("moved");
    succeed(Command::new("cp").arg("-a").arg(&state).arg(&moved));
    lambda.take_all();
    let daemon = Setup::new(&moved).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    lambda.wait_for(&ids);
    daemon.wait_until_empty();
    assert!(lambda.taken().values().all(|&times| times == 1), "{:?}", lambda.taken());
}

#[test]
fn a_slow_disk_shows_in_the_histogram_that_the_alert_watches() {
    let Some(strace) = tool("strace", "strace") else { return };
    let (_scratch, state) = scratch();
    let slow = "inject=fdatasync,fsync:delay_exit=600000";
    let wrapper = [strace.to_str().unwrap(), "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", slow];
    let daemon = Setup::new(&state).set("lambda.endpoint_url", "http://127.0.0.1:9").under(&wrapper).start();
    daemon.accept("orders", &[], &payload("slow"));
    let scrape = daemon.scrape();
    let mean =
        scrape.sum("sendoff_outbox_flush_seconds_sum", &[]) / scrape.sum("sendoff_outbox_flush_seconds_count", &[]);
    assert!(mean > 0.5, "{mean} s");
}
