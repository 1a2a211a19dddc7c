//! Tests what the next life of a daemon knows about the one before.

use crate::rig::daemon::{Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::lossy;
use crate::rig::sender::Sender;

#[test]
fn what_waited_when_the_daemon_was_killed_is_delivered_by_the_next_once() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.start();
    let ids: Vec<_> = (0..20).map(|n| format!("waiting-{n}")).collect();
    for id in &ids {
        daemon.accept("orders", &[], &payload(id));
    }
    daemon.kill9();
    assert!(lambda.taken().is_empty());

    lambda.take_all();
    let daemon = setup.start();
    lambda.wait_for(&ids);
    daemon.wait_until_empty();
    assert!(lambda.taken().values().all(|&times| times == 1), "{:?}", lambda.taken());
}

#[test]
fn the_same_key_is_one_event_before_and_after_its_delivery_and_over_a_kill() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.start();
    let key = [("Idempotency-Key", "\"order-17\"")];
    let first = daemon.accept("orders", &key, &payload("order-17"));
    let assert_repeat = |response: crate::rig::http::Response| {
        assert_eq!(response.status, 202, "{response:?}");
        assert_eq!(response.header("x-amzn-requestid"), Some(first.as_str()));
        assert_eq!(response.header("x-sendoff-duplicate"), Some("true"));
    };
    assert_repeat(daemon.invoke("orders", &key, &payload("order-17")));
    daemon.kill9();

    let daemon = setup.start();
    assert_repeat(daemon.invoke("orders", &key, &payload("order-17")));
    lambda.take_all();
    lambda.wait_for(&["order-17".to_owned()]);
    daemon.wait_until_empty();
    assert_repeat(daemon.invoke("orders", &key, &payload("order-17")));

    let other = daemon.invoke("orders", &key, &payload("order-18"));
    assert_eq!(other.status, 409, "the same key, another payload: {other:?}");
    let elsewhere = daemon.accept("invoices", &key, &payload("invoice-17"));
    assert_ne!(elsewhere, first, "a key counts for one function");

    lambda.wait_for(&["invoice-17".to_owned()]);
    assert_eq!(lambda.taken().get("order-17"), Some(&1));
    assert_eq!(lambda.taken().len(), 2, "{:?}", lambda.taken());
}

#[test]
fn an_sdk_that_calls_again_because_the_answer_was_lost_makes_no_second_event() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let proxy = lossy::proxy(daemon.ingest, 1);
    let job = [("orders".to_owned(), "lost-answer".to_owned())];
    let accepted = Sender::start(&format!("http://{proxy}"), 1, scratch.path(), &job).finish();
    assert_eq!(accepted.len(), 1);

    lambda.wait_for(&["lost-answer".to_owned()]);
    daemon.wait_until_empty();
    assert_eq!(lambda.taken().get("lost-answer"), Some(&1));
    let scrape = daemon.scrape();
    assert_eq!(scrape.sum("sendoff_ingest_accepted_total", &[]), 1.0);
    assert_eq!(scrape.sum("sendoff_ingest_duplicates_total", &[("key_source", "sdk-invocation-id")]), 1.0);
}

#[test]
fn a_second_daemon_on_the_same_state_does_not_start() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    let first = setup.start();
    let (code, said) = setup.fail_to_start();
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains(state.to_str().unwrap()), "it names the directory: {said}");

    first.accept("orders", &[], &payload("undisturbed"));
    lambda.wait_for(&["undisturbed".to_owned()]);
}
