//! Tests the hand-off queue with SQS as moto and MiniStack serve it: what is taken, what stays, kills and failures.

use std::time::Duration;

use bytes::Bytes;
use sendoff::clock::{Clock, UnixMillis};
use sendoff::deadletter::message::MESSAGE_BYTES_MAX;
use sendoff::event::name::Home;
use sendoff::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use sendoff::handoff::envelope::Envelope;
use sendoff::handoff::queue::message::message_of;
use sendoff::handoff::target::Parcel;
use sendoff::outbox::History;
use serde_json::json;

use crate::dead_letters::{Service, address, patiently};
use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::gate::{At, Gate};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{eventually, http, python};

/// The daemons of these tests have no account.
fn home() -> Home {
    Home { region: Some(python::REGION.to_owned()), account_id: None }
}

fn event(id: &str, change: impl FnOnce(&mut Event)) -> Event {
    let clock = Clock::system();
    let (name, accepted_at) = (FunctionName::new("orders"), clock.now());
    let mut event = Event {
        id: EventId::mint(accepted_at, clock.random_bits(), &name),
        function: Function { name, address: "orders".to_owned(), qualifier: None, region: None },
        key: IdempotencyKey { value: format!("key of {id}"), source: KeySource::Header },
        carried: Carried::default(),
        payload: Bytes::from(payload(id)),
        accepted_at,
        deliver_at: None,
        expires_at: None,
        redrives: 0,
    };
    change(&mut event);
    event
}

/// Puts the event on the queue, as another sendoff does.
fn hand_over(service: &Service, queue: &str, event: &Event, home: &Home) {
    let history = History { due: event.deliver_at.unwrap_or_default(), ..History::default() };
    let (envelope, payload) = Envelope::seal(event.clone(), history);
    let message = message_of(&Parcel { envelope, payload }, home, MESSAGE_BYTES_MAX).unwrap();
    let attributes: Vec<(String, String)> =
        message.attributes.iter().map(|(name, attribute)| (name.clone(), attribute.value())).collect();
    let attributes: Vec<(&str, &str, &str)> =
        attributes.iter().map(|(name, value)| (name.as_str(), "String", value.as_str())).collect();
    service.send(queue, &message.body, &attributes);
}

fn taken(daemon: &Daemon, result: &str) -> f64 {
    daemon.scrape().sum("sendoff_handoff_events_total", &[("direction", "in"), ("result", result)])
}

/// moto mixes up receives that overlap, so a test with it stays below the ten messages after which they do.
fn takes_from(service: &Service, events: usize) {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let queue = service.create_queue("handoff", &json!({}));
    let ids: Vec<String> = (0..events).map(|n| format!("handed-{n:05}")).collect();
    for id in &ids {
        hand_over(service, &queue, &event(id, |_| {}), &home());
    }
    // A copy, as SQS may deliver it; a payload that SQS carries packed only; one for later; foreign ones.
    let twice = event("twice", |_| {});
    hand_over(service, &queue, &twice, &home());
    hand_over(service, &queue, &twice, &home());
    let large = format!("{{\"id\":\"large\",\"pad\":\"{}\"}}", "a".repeat(MESSAGE_BYTES_MAX - 30));
    hand_over(service, &queue, &event("large", |event| event.payload = large.into()), &home());
    let due = Clock::system().now().plus(Duration::from_secs(3_600));
    let later = event("later", |event| event.deliver_at = Some(due));
    hand_over(service, &queue, &later, &home());
    service.send(&queue, "hello", &[]);
    let elsewhere = Home { region: Some("us-east-1".to_owned()), account_id: None };
    hand_over(service, &queue, &event("elsewhere", |_| {}), &elsewhere);

    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.set("sqs.endpoint_url", &service.url()).set("handoff.receive_queue", &queue).start();
    patiently("what is foreign is left over", || (service.count(&queue) == 2).then_some(()));
    lambda.wait_for(&[ids, vec!["twice".to_owned(), "large".to_owned()]].concat());
    eventually("one is left for later", || (daemon.stored() == 1.0).then_some(()));
    assert!(lambda.taken().values().all(|&times| times == 1), "{:?}", lambda.taken());
    assert_eq!((taken(&daemon, "adopted"), taken(&daemon, "repeat")), (events as f64 + 3.0, 1.0));
    let found = http::get(daemon.admin, &format!("/v1/events/{}", later.id)).json();
    let at = found["deliver_at"].as_str().unwrap().to_owned();
    assert_eq!((found["state"].as_str(), UnixMillis::read_rfc3339(&at)), (Some("scheduled"), Some(due)), "{found}");
    let left = |reason| daemon.scrape().sum("sendoff_handoff_queue_left_total", &[("reason", reason)]);
    assert_eq!((left("foreign"), left("elsewhere"), left("broken")), (1.0, 1.0, 0.0));

    // A client that lost the 202 of the first sendoff repeats its request here.
    let key = [("Idempotency-Key", "key of twice")];
    assert_eq!(daemon.accept("orders", &key, &payload("twice")), twice.id.to_string());
}

#[test]
fn events_are_taken_from_a_queue_of_moto() {
    takes_from(&Service::moto(), 3);
}

#[test]
fn events_are_taken_from_a_queue_of_ministack() {
    let (scratch, _) = scratch();
    takes_from(&Service::ministack(scratch.path()), 25);
}

/// SQS gives a message again whose receiver was killed. That takes two minutes, so the test sends a copy instead, to a queue
/// where no receive of the killed daemon still waits.
#[test]
fn a_daemon_that_is_killed_between_any_two_steps_loses_and_doubles_no_event() {
    let (scratch, state) = scratch();
    let service = Service::ministack(scratch.path());
    let lambda = Lambda::start();
    let queue = service.create_queue("handoff", &json!({}));
    let setup =
        Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("handoff.receive_queue", &queue);
    let steps = [("Receive", At::After), ("DeleteMessageBatch", At::Before), ("DeleteMessageBatch", At::After)];
    for (n, (call, at)) in steps.into_iter().enumerate() {
        let id = format!("handed-{n:05}");
        let event = event(&id, |_| {});
        let [queue, copies] = ["queue", "copies"].map(|name| service.create_queue(&format!("{name}-{n}"), &json!({})));
        hand_over(&service, &queue, &event, &home());
        let gate = Gate::start(address(&service.url()));
        gate.hold(&format!("AmazonSQS.{call}"), at);
        let setup = setup.clone().set("handoff.receive_queue", &queue);
        let daemon = setup.clone().set("sqs.endpoint_url", &gate.url()).start();
        gate.wait_until_held();
        if call != "Receive" {
            lambda.wait_for(std::slice::from_ref(&id));
            daemon.wait_until_empty();
        }
        daemon.kill9();

        hand_over(&service, &copies, &event, &home());
        let setup = setup.set("handoff.receive_queue", &copies);
        let daemon = setup.set("sqs.endpoint_url", &service.url()).start();
        let known = if call == "Receive" { "adopted" } else { "repeat" };
        patiently(&format!("after {call} {at:?}, the copy is {known}"), || {
            (taken(&daemon, known) == 1.0).then_some(())
        });
        lambda.wait_for(std::slice::from_ref(&id));
        daemon.wait_until_empty();
        assert_eq!(lambda.taken()[&id], 1, "{call} {at:?}");
    }
}

#[test]
fn failures_of_the_queue_pass_and_the_log_names_them_once() {
    let (scratch, state) = scratch();
    let service = Service::ministack(scratch.path());
    let lambda = Lambda::start();
    let queue = service.create_queue("handoff", &json!({}));
    let gate = Gate::start(address(&service.url()));
    let failed =
        |code: &str| (400, json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": "as told" }).to_string());
    gate.answer("AmazonSQS.ReceiveMessage", 2, move |_| failed("QueueDoesNotExist"));
    let setup =
        Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("handoff.receive_queue", &queue);
    let daemon = setup.set("sqs.endpoint_url", &gate.url()).start();
    let said =
        daemon.wait_for_log(|fields| fields["message"] == "the hand-off queue cannot be read; sendoff asks again");
    assert_eq!(said["code"], "QueueDoesNotExist", "{said}");
    hand_over(&service, &queue, &event("handed", |_| {}), &home());
    daemon.wait_for_log(|fields| fields["message"] == "the hand-off queue answers again");
    lambda.wait_for(&["handed".to_owned()]);
    assert_eq!(daemon.scrape().sum("sendoff_handoff_queue_failures_total", &[]), 2.0);
}

#[test]
fn a_stop_does_not_wait_for_a_queue_without_messages() {
    let (scratch, state) = scratch();
    let service = Service::ministack(scratch.path());
    let queue = service.create_queue("handoff", &json!({}));
    let gate = Gate::start(address(&service.url()));
    gate.hold("AmazonSQS.ReceiveMessage", At::Before);
    let setup = Setup::new(&state).set("handoff.receive_queue", &queue).set("sqs.endpoint_url", &gate.url());
    let daemon = setup.start();
    gate.wait_until_held();
    let began = std::time::Instant::now();
    daemon.terminate();
    assert!(daemon.wait().success());
    assert!(began.elapsed() < Duration::from_secs(10), "the long poll takes twenty seconds");
}

/// A daemon that hands over to the queue when it stops, and whose Lambda cannot be reached.
fn leaving(state: &std::path::Path, sqs: &str, queue: &str) -> Setup {
    Setup::new(state)
        .set("lambda.endpoint_url", "http://127.0.0.1:1")
        .set("sqs.endpoint_url", sqs)
        .set("handoff.to", queue)
        .set("handoff.on_stop", "always")
}

/// Sends events, stops the daemon, and returns its exit code and the ids that clients got.
fn accept_and_stop(daemon: Daemon, ids: &[String]) -> (Option<i32>, Vec<String>) {
    let accepted = ids.iter().map(|id| daemon.accept("orders", &[("Idempotency-Key", id)], &payload(id))).collect();
    daemon.terminate();
    (daemon.wait().code(), accepted)
}

fn names(events: usize) -> Vec<String> {
    (0..events).map(|n| format!("moved-{n:05}")).collect()
}

fn out_and_in(service: &Service, events: usize) {
    let ((_first, state), (_second, other)) = (scratch(), scratch());
    let lambda = Lambda::start();
    let queue = service.create_queue("handoff", &json!({}));
    let ids = names(events);
    let (code, accepted) = accept_and_stop(leaving(&state, &service.url(), &queue).start(), &ids);
    assert_eq!((code, service.count(&queue)), (Some(0), events));

    let setup = Setup::new(&other).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.set("sqs.endpoint_url", &service.url()).set("handoff.receive_queue", &queue).start();
    lambda.wait_for(&ids);
    daemon.wait_until_empty();
    patiently("the queue is empty", || (service.count(&queue) == 0).then_some(()));
    assert!(lambda.taken().values().all(|&times| times == 1), "{:?}", lambda.taken());
    for (id, first) in ids.iter().zip(accepted) {
        assert_eq!(daemon.accept("orders", &[("Idempotency-Key", id)], &payload(id)), first);
    }
    // Nothing is left where they came from.
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    assert_eq!(daemon.stored(), 0.0);
}

#[test]
fn a_stopping_daemon_hands_over_to_a_queue_of_moto_and_another_takes_it_from_there() {
    out_and_in(&Service::moto(), 9);
}

#[test]
fn a_stopping_daemon_hands_over_to_a_queue_of_ministack_and_another_takes_it_from_there() {
    let (scratch, _) = scratch();
    out_and_in(&Service::ministack(scratch.path()), 60);
}

#[test]
fn lost_answers_of_the_queue_cost_copies_which_the_receiver_recognises() {
    let ((scratch, state), (_second, other)) = (scratch(), scratch());
    let service = Service::ministack(scratch.path());
    let lambda = Lambda::start();
    let queue = service.create_queue("handoff", &json!({}));
    let gate = Gate::start(address(&service.url()));
    let ids = names(60);
    let daemon = leaving(&state, &gate.url(), &queue).start();
    gate.lose_one_of(3, 200);
    let (code, _) = accept_and_stop(daemon, &ids);
    assert_eq!(code, Some(0));
    let copies = service.count(&queue) - 60;
    assert!(gate.lost() > 0 && copies > 0, "{} answers were lost, {copies} copies", gate.lost());

    let setup = Setup::new(&other).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.set("sqs.endpoint_url", &service.url()).set("handoff.receive_queue", &queue).start();
    lambda.wait_for(&ids);
    patiently("the queue is empty", || (service.count(&queue) == 0).then_some(()));
    daemon.wait_until_empty();
    assert_eq!((taken(&daemon, "adopted"), taken(&daemon, "repeat")), (60.0, copies as f64));
    assert!(lambda.taken().values().all(|&times| times == 1), "{:?}", lambda.taken());
}

#[test]
fn an_event_that_is_too_large_for_the_queue_stays_on_the_disk_and_the_exit_code_says_so() {
    let (scratch, state) = scratch();
    let service = Service::ministack(scratch.path());
    let queue = service.create_queue("handoff", &json!({}));
    let daemon = leaving(&state, &service.url(), &queue).start();
    // Text that does not shrink.
    let clock = Clock::seeded(UnixMillis(0), 7);
    let noise = std::iter::repeat_with(|| clock.random_bits().to_be_bytes()).flatten();
    let noise = noise.map(|byte| char::from(b'#' + byte % 90)).filter(|&c| c != '\\');
    let large = format!("\"{}\"", noise.take(MESSAGE_BYTES_MAX - 2).collect::<String>());
    daemon.accept("orders", &[], large.as_bytes());
    daemon.accept("orders", &[], &payload("small"));
    daemon.terminate();
    let said = daemon.wait_for_log(|fields| fields["level"] == "ERROR");
    assert!(said.to_string().contains("the queue takes 1048576"), "{said}");
    assert_eq!((daemon.wait().code(), service.count(&queue)), (Some(1), 1));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", "http://127.0.0.1:1").start();
    assert_eq!(daemon.stored(), 1.0);
}
