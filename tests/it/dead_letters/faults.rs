//! Tests every failure that SQS documents for our calls, on the wire. Each must be handled by its class.

use serde_json::{Value, json};

use super::{Parts, address, ids, kill_events, redrive, run, sendoff};
use crate::rig::daemon::Daemon;
use crate::rig::eventually;
use crate::rig::gate::Gate;
use crate::rig::lambda::payload;

/// What must happen to a dead letter after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The message itself is at fault. It stays in the store.
    Message,
    /// The failure may pass, or an operator can repair it. The dead letter waits and is sent later.
    Waits,
}

/// The failures of SendMessageBatch (SQS API reference, and its codes in the query protocol).
const SENDING: &[(&str, Class)] = &[
    ("InvalidMessageContents", Class::Message),
    ("AWS.SimpleQueueService.BatchRequestTooLong", Class::Message),
    ("BatchRequestTooLong", Class::Message),
    ("InvalidParameterValue", Class::Message),
    ("QueueDoesNotExist", Class::Waits),
    ("AWS.SimpleQueueService.NonExistentQueue", Class::Waits),
    ("InvalidAddress", Class::Waits),
    ("InvalidSecurity", Class::Waits),
    ("UnsupportedOperation", Class::Waits),
    ("AWS.SimpleQueueService.UnsupportedOperation", Class::Waits),
    ("KmsAccessDenied", Class::Waits),
    ("KMS.AccessDeniedException", Class::Waits),
    ("KmsDisabled", Class::Waits),
    ("KMS.DisabledException", Class::Waits),
    ("KmsInvalidState", Class::Waits),
    ("KMS.InvalidStateException", Class::Waits),
    ("KmsNotFound", Class::Waits),
    ("KMS.NotFoundException", Class::Waits),
    ("KmsOptInRequired", Class::Waits),
    ("KMS.OptInRequired", Class::Waits),
    ("KmsInvalidKeyUsage", Class::Waits),
    ("KMS.InvalidKeyUsageException", Class::Waits),
    ("RequestThrottled", Class::Waits),
    ("KmsThrottled", Class::Waits),
    ("KMS.ThrottlingException", Class::Waits),
    ("ThrottlingException", Class::Waits),
    ("AccessDeniedException", Class::Waits),
    ("InternalFailure", Class::Waits),
    ("ServiceUnavailable", Class::Waits),
];

/// The answer to a call that fails.
fn failure(code: &str) -> (u16, String) {
    let status = if matches!(code, "InternalFailure" | "ServiceUnavailable") { 500 } else { 400 };
    (status, json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": "as told" }).to_string())
}

/// The answer to a call that succeeds although each of its entries fails.
fn entries_failed(body: &str, code: &str) -> (u16, String) {
    let request: Value = serde_json::from_str(body).unwrap();
    let failed = |entry: &Value| json!({ "Id": entry["Id"], "Code": code, "Message": "as told", "SenderFault": true });
    let failed: Vec<Value> = request["Entries"].as_array().unwrap().iter().map(failed).collect();
    (200, json!({ "Successful": [], "Failed": failed }).to_string())
}

fn unshippable(daemon: &Daemon) -> f64 {
    daemon.scrape().sum("sendoff_deadletter_unshippable_total", &[])
}

#[test]
fn each_failure_of_sending_is_handled_as_its_class_says_of_a_call_and_of_an_entry() {
    let Parts { service, queue, setup, .. } = &Parts::new();
    let gate = Gate::start(address(&service.url()));
    let daemon = setup.clone().set("sqs.endpoint_url", &gate.url()).start();
    let (mut kept, mut sent) = (0.0, 0);
    for (n, (code, class)) in SENDING.iter().flat_map(|failure| [failure, failure]).enumerate() {
        let of_an_entry = n % 2 == 1;
        gate.answer("AmazonSQS.SendMessageBatch", 1, move |body| {
            if of_an_entry { entries_failed(body, code) } else { failure(code) }
        });
        daemon.accept("orders", &[], &payload(&format!("letter-{n:05}")));
        match class {
            Class::Message => {
                kept += 1.0;
                eventually(&format!("{code} keeps it, listed"), || (unshippable(&daemon) == kept).then_some(()));
            }
            Class::Waits => {
                sent += 1;
                eventually(&format!("{code} passes"), || (service.count(queue) == sent).then_some(()));
                let seen = daemon.scrape().sum("sendoff_deadletter_ship_failures_total", &[("code", code)]);
                assert!(seen >= 1.0, "{code} is counted by its name");
            }
        }
        assert!(gate.has_answered(), "{code} was met");
    }
    // No dead letter is lost: those that are not in the queue are in the store, with the reason.
    eventually("what is shipped is settled", || (daemon.stored() == kept).then_some(()));
    let listed = crate::rig::http::get(daemon.admin, "/v1/dead-letters?unshippable=true&limit=1000").json();
    let reasons: Vec<&str> =
        listed["dead_letters"].as_array().unwrap().iter().map(|l| l["unshippable"].as_str().unwrap()).collect();
    assert_eq!(reasons.len() as f64, kept);
    assert!(reasons.iter().all(|reason| reason.contains("as told")), "{reasons:?}");
}

#[test]
fn failures_of_receiving_pass_or_end_the_redrive_in_words_and_no_letter_is_lost() {
    let Parts { service, lambda, queue, setup, .. } = &Parts::new();
    let daemon = setup.start();
    kill_events(&daemon, service, queue, &ids(0..20));
    let gate = Gate::start(address(&service.url()));
    let redrive = |more: &[&str]| {
        let args = [&["redrive", "--queue", queue, "--progress", "none"], more].concat();
        run(sendoff(daemon.admin, &gate.url(), &args))
    };
    for code in [
        "QueueDoesNotExist",
        "AWS.SimpleQueueService.NonExistentQueue",
        "InvalidAddress",
        "InvalidSecurity",
        "UnsupportedOperation",
        "KmsAccessDenied",
        "KmsDisabled",
        "KmsInvalidState",
        "KmsNotFound",
        "KmsOptInRequired",
        "KmsInvalidKeyUsage",
        "AccessDeniedException",
    ] {
        // All of the eight concurrent receives.
        gate.answer("AmazonSQS.ReceiveMessage", 8, move |_| failure(code));
        let (exit, said) = redrive(&["--dry-run"]);
        assert_eq!((exit, said.contains(code)), (1, true), "{said}");
        assert!(said.contains("the rest is still on the queue"), "{said}");
        assert_eq!(service.count(queue), 20);
    }
    lambda.take_all();
    for (n, code) in ["RequestThrottled", "KmsThrottled", "OverLimit", "InternalFailure"].into_iter().enumerate() {
        gate.answer("AmazonSQS.ReceiveMessage", 2, move |_| failure(code));
        let (exit, said) = redrive(&["--limit", "5"]);
        assert_eq!((exit, said.contains("5 redriven")), (0, true), "{code}: {said}");
        assert_eq!((service.count(queue), gate.has_answered()), (15 - 5 * n, true), "{code}");
    }
    lambda.wait_for(&ids(0..20));
    daemon.wait_until_empty();
    assert!(lambda.taken().values().all(|&times| times == 1));
}

#[test]
fn failures_of_deleting_leave_messages_that_the_next_redrive_recognises() {
    let Parts { service, lambda, queue, setup, .. } = &Parts::new();
    let daemon = setup.start();
    kill_events(&daemon, service, queue, &ids(0..10));
    lambda.take_all();
    let gate = Gate::start(address(&service.url()));
    // With a limit, one receive brings all messages, and so one delete has all of them.
    let args = ["redrive", "--queue", queue, "--progress", "none", "--visibility", "1s", "--limit", "10"];
    let gated = || run(sendoff(daemon.admin, &gate.url(), &args));
    // A receipt that no longer counts never works again. A throttled delete is retried.
    gate.answer("AmazonSQS.DeleteMessageBatch", 1, |body| entries_failed(body, "ReceiptHandleIsInvalid"));
    let (code, said) = gated();
    assert_eq!((code, said.contains("10 redriven, 0 duplicates")), (0, true), "{said}");
    assert!(said.contains("10 accepted but not deleted"), "{said}");
    assert_eq!(service.count(queue), 10);
    gate.answer("AmazonSQS.DeleteMessageBatch", 2, |_| failure("RequestThrottled"));
    let said = eventually("they are visible again, and recognised", || {
        let (_, said) = gated();
        (service.count(queue) == 0).then_some(said)
    });
    assert!(said.contains("0 redriven, 10 duplicates"), "{said}");
    daemon.wait_until_empty();
    assert!(lambda.taken().values().all(|&times| times == 1));
    let (code, said) = redrive(&daemon, service, queue, &[]);
    assert_eq!((code, said.contains("0 redriven, 0 duplicates")), (0, true), "{said}");
}
