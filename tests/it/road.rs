//! Tests the whole way of events, with everything going wrong at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sendoff::standin::{Script, Trouble};
use serde_json::Value;

use crate::rig::daemon::{Setup, scratch};
use crate::rig::lambda::{Lambda, throttle};
use crate::rig::sender::Sender;
use crate::rig::sqs::Sqs;
use crate::rig::{eventually, lasting_port, python};

const EVENTS: usize = 500;
const FUNCTIONS: usize = 20;
/// The number of events that the AWS CLI sends. One for each function, because each call starts Python.
const BY_CLI: usize = FUNCTIONS;

/// The function that refuses every event for good.
const REFUSING: usize = 0;
/// The function that fails for every event. That is an outage, for which no event is charged. Its events grow too old.
const FAILING: usize = 1;

#[test]
fn every_accepted_event_is_delivered_or_a_dead_letter_though_lambda_throttles_and_the_daemon_is_killed_twice() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let behaviour = Script::default().chance(0.3, throttle());
    lambda.default_script(behaviour.latency(Duration::from_millis(2), Duration::from_millis(20)));
    let refusal = Trouble::error(400, "InvalidRequestContentException", "Could not parse request body into json");
    lambda.script(&function(REFUSING), Script::always(refusal));
    lambda.script(&function(FAILING), Script::always(Trouble::error(500, "ServiceException", "try again")));
    let sqs = Sqs::start();
    let queue_url = sqs.create_queue("road");
    let config = scratch.path().join("sendoff.toml");
    let too_old = format!("[functions.{}]\nage_max = \"20s\"\nbackoff_cap = \"5s\"\n", function(FAILING));
    std::fs::write(&config, too_old).unwrap();
    let setup = Setup::new(&state)
        .config(&config)
        .set("listen.ingest", &format!("127.0.0.1:{}", lasting_port()))
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("sqs.endpoint_url", &sqs.endpoint_url())
        .set("dead_letter.queue_url", &queue_url)
        .set("dead_letter.backoff_base", "100ms")
        .set("dead_letter.backoff_cap", "1s")
        .set("delivery.attempts_max", "3");
    let jobs: Vec<_> = (0..EVENTS).map(|n| (function(n % FUNCTIONS), format!("payload-{n:03}"))).collect();
    let (by_cli, by_boto3) = jobs.split_at(BY_CLI);

    let daemon = setup.start();
    let endpoint_url = daemon.endpoint_url();
    let accepted = std::thread::scope(|threads| {
        threads.spawn(|| by_cli.iter().for_each(|(function, id)| send_by_cli(&endpoint_url, function, id)));
        let sender = Sender::start(&endpoint_url, 4, scratch.path(), by_boto3);
        let mut daemon = daemon;
        for accepted in [EVENTS / 4, EVENTS / 2] {
            sender.wait_for_accepted(accepted);
            daemon.kill9();
            daemon = setup.start();
        }
        (sender.finish(), daemon)
    });
    let (accepted, daemon) = accepted;

    assert_eq!(accepted.len(), by_boto3.len(), "send.py was told 202 for each");
    assert_eq!(accepted.values().collect::<BTreeSet<_>>().len(), by_boto3.len(), "each has an id of its own");
    let dead_functions = [function(REFUSING), function(FAILING)];
    let (to_die, to_live): (Vec<_>, Vec<_>) = jobs.iter().partition(|(function, _)| dead_functions.contains(function));
    let ids = |jobs: &[&(String, String)]| jobs.iter().map(|(_, id)| id.clone()).collect::<Vec<_>>();
    let (to_die, to_live) = (ids(&to_die), ids(&to_live));

    lambda.wait_for(&to_live);
    let mut letters = Vec::new();
    let letters_by_id = eventually("every hopeless event is a dead letter", || {
        letters.extend(sqs.take_all(&queue_url));
        let by_id: BTreeMap<_, _> = letters.iter().map(|letter| (payload_id(letter), letter.clone())).collect();
        to_die.iter().all(|id| by_id.contains_key(id)).then_some(by_id)
    });
    daemon.wait_until_empty();

    let taken = lambda.taken();
    assert!(to_die.iter().all(|id| !taken.contains_key(id)), "a hopeless event was taken");
    assert_eq!(letters_by_id.len(), to_die.len(), "only hopeless events are dead letters: {:?}", letters_by_id.keys());
    for (function_name, id) in jobs.iter().filter(|(function, _)| dead_functions.contains(function)) {
        let reason = if *function_name == function(REFUSING) { "refused" } else { "event-age-exceeded" };
        assert_eq!(attribute(&letters_by_id[id], "Reason"), reason, "{id}");
    }
    let event_ids: BTreeSet<_> = letters.iter().map(event_id).collect();
    for (id, event_id) in accepted.iter().filter(|(id, _)| to_die.contains(id)) {
        assert!(
            event_ids.contains(event_id),
            "the letter of {id} is not that of the event {event_id} that was accepted"
        );
    }
}

fn function(n: usize) -> String {
    format!("orders-{n:02}")
}

/// Runs `aws lambda invoke` until it succeeds, as a shell script would.
fn send_by_cli(endpoint_url: &str, function: &str, id: &str) {
    eventually("the AWS CLI is told 202", || {
        let mut aws = python::aws(endpoint_url);
        aws.args(["lambda", "invoke", "--function-name", function, "--invocation-type", "Event"]).args([
            "--payload",
            &format!(r#"{{"id":"{id}"}}"#),
            "/dev/null",
        ]);
        let output = aws.output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        assert_eq!(answer["StatusCode"], 202);
        output.status.success().then_some(())
    });
}

/// The id in the payload, which is the message's body.
fn payload_id(letter: &Value) -> String {
    let payload: Value = serde_json::from_str(letter["Body"].as_str().unwrap()).unwrap();
    payload["id"].as_str().unwrap().to_owned()
}

fn event_id(letter: &Value) -> String {
    let envelope: Value = serde_json::from_str(attribute(letter, "Sendoff")).unwrap();
    envelope["id"].as_str().unwrap().to_owned()
}

fn attribute<'a>(letter: &'a Value, name: &str) -> &'a str {
    letter["MessageAttributes"][name]["StringValue"].as_str().unwrap_or_else(|| panic!("no {name} in {letter}"))
}
