use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::aws::testing::{Act, Server, refusing_address, say, settings, shared};
use crate::deadletter::redrive::Queue as _;
use crate::event::EventId;

const QUEUE: &str = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders-dlq";

fn id(n: u8) -> EventId {
    EventId::from_bytes([n; 16])
}

fn message(n: u8) -> Message {
    let attributes = [
        ("ErrorCode".to_owned(), Attribute::Number(500)),
        ("RequestID".to_owned(), Attribute::String("r-1".to_owned())),
    ];
    Message {
        id: id(n),
        group: "orders".into(),
        body: format!("{{\"n\": {n}}}"),
        attributes: attributes.into(),
        trace_header: (n == 1).then(|| "Root=1-5759e988-bd862e3fe1be46a994272793".to_owned()),
    }
}

fn ok(n: u8) -> Value {
    json!({ "Id": id(n).to_string(), "MessageId": format!("m-{n}"), "MD5OfMessageBody": "0" })
}

fn bad(n: u8, code: &str, sender_fault: bool) -> Value {
    json!({ "Id": id(n).to_string(), "Code": code, "Message": "why", "SenderFault": sender_fault })
}

fn entries(successful: &[Value], failed: &[Value]) -> Act {
    say("200 OK", &[("x-amzn-requestid", "r-1")], &json!({ "Successful": successful, "Failed": failed }).to_string())
}

fn error(code: &str) -> Act {
    let body = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": "why" });
    say("400 Bad Request", &[], &body.to_string())
}

async fn ship(server: &Server, queue_url: &str, batch: Vec<Message>) -> Vec<Shipment> {
    Sqs::new(&shared().await, &server.settings()).unwrap().ship(queue_url, batch).await
}

fn confirmed(n: u8) -> Shipment {
    Shipment::Confirmed { message_id: format!("m-{n}") }
}

fn later(code: &str, message: &str) -> Shipment {
    Shipment::Later { code: code.into(), message: message.into() }
}

fn refused(code: &str) -> Shipment {
    Shipment::Refused { code: code.into(), message: "why".into() }
}

#[test]
fn the_table_of_faults_is_sorted() {
    assert!(MESSAGE_FAULTS.is_sorted(), "binary search relies on it");
}

#[tokio::test]
async fn a_batch_is_one_request_with_all_of_each_message() {
    let server = Server::start([entries(&[ok(2), ok(1)], &[])]).await;
    let shipments = ship(&server, QUEUE, vec![message(1), message(2)]).await;
    assert_eq!(shipments, [confirmed(1), confirmed(2)], "in the order of the batch");
    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("x-amz-target"), Some("AmazonSQS.SendMessageBatch"));
    let attributes = json!({
        "ErrorCode": { "DataType": "Number", "StringValue": "500" },
        "RequestID": { "DataType": "String", "StringValue": "r-1" },
    });
    let trace = json!({
        "AWSTraceHeader": { "DataType": "String", "StringValue": "Root=1-5759e988-bd862e3fe1be46a994272793" },
    });
    let first = json!({
        "Id": id(1).to_string(), "MessageBody": "{\"n\": 1}",
        "MessageAttributes": attributes, "MessageSystemAttributes": trace,
    });
    let second = json!({ "Id": id(2).to_string(), "MessageBody": "{\"n\": 2}", "MessageAttributes": attributes });
    let sent: Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!(sent, json!({ "QueueUrl": QUEUE, "Entries": [first, second] }));
}

#[tokio::test]
async fn a_fifo_queue_gets_group_and_deduplication_id() {
    let server = Server::start([entries(&[ok(1)], &[])]).await;
    assert_eq!(ship(&server, &format!("{QUEUE}.fifo"), vec![message(1)]).await, [confirmed(1)]);
    let sent: Value = serde_json::from_slice(&server.seen()[0].body).unwrap();
    assert_eq!(sent["Entries"][0]["MessageGroupId"], "orders");
    assert_eq!(sent["Entries"][0]["MessageDeduplicationId"], id(1).to_string());
}

#[tokio::test]
async fn each_message_has_its_own_answer() {
    let failed = [
        bad(2, "InvalidMessageContents", true),
        bad(3, "InternalError", false),
        bad(4, "KMS.AccessDeniedException", true),
        bad(5, "RequestThrottled", true),
    ];
    let server = Server::start([entries(&[ok(1)], &failed)]).await;
    let shipments = ship(&server, QUEUE, (1..=6).map(message).collect()).await;
    let kms = "why (allow kms:GenerateDataKey and kms:Decrypt on the queue's key, and see that it is enabled)";
    let expected = [
        confirmed(1),
        refused("InvalidMessageContents"),
        later("InternalError", "why"),
        later("KMS.AccessDeniedException", kms),
        later("RequestThrottled", "why (sendoff retries, more slowly)"),
        later("unanswered", "the answer does not name this message"),
    ];
    assert_eq!(shipments, expected);
}

#[tokio::test]
async fn a_queue_that_is_missing_or_denied_keeps_the_whole_batch_with_advice() {
    for (code, advice) in [
        ("AWS.SimpleQueueService.NonExistentQueue", "create the queue or correct its name"),
        ("QueueDoesNotExist", "create the queue or correct its name"),
        ("AccessDeniedException", "allow the call in the role's policy and in the queue's"),
        ("ThrottlingException", "sendoff retries, more slowly"),
    ] {
        let server = Server::start([error(code)]).await;
        let shipments = ship(&server, QUEUE, vec![message(1), message(2)]).await;
        assert_eq!(shipments, vec![later(code, &format!("why ({advice})")); 2]);
        assert_eq!(server.seen().len(), 1, "no retries");
    }
}

#[tokio::test]
async fn one_message_that_is_too_large_for_the_queue_does_not_keep_the_others() {
    let code = "AWS.SimpleQueueService.BatchRequestTooLong";
    let acts = [error(code), entries(&[ok(1)], &[]), error(code), entries(&[ok(3)], &[])];
    let server = Server::start(acts).await;
    let shipments = ship(&server, QUEUE, (1..=3).map(message).collect()).await;
    assert_eq!(shipments, [confirmed(1), refused(code), confirmed(3)]);
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn what_does_not_answer_is_tried_later() {
    let refusing = refusing_address();
    let sqs = Sqs::new(&shared().await, &settings(&refusing.url)).unwrap();
    let unreachable = sqs.ship(QUEUE, vec![message(1)]).await;
    for act in [Act::CloseUnanswered, Act::Hang] {
        let server = Server::start([act]).await;
        let mut settings = server.settings();
        settings.read_timeout = Duration::from_millis(300);
        let sqs = Sqs::new(&shared().await, &settings).unwrap();
        let shipments = sqs.ship(QUEUE, vec![message(1), message(2)]).await;
        assert_eq!(shipments.len(), 2);
        for shipment in shipments.iter().chain(&unreachable) {
            assert!(matches!(shipment, Shipment::Later { code, .. } if code == "unreachable"), "{shipment:?}");
        }
        assert_eq!(server.seen().len(), 1, "no retries");
    }
}

#[tokio::test]
async fn a_proxys_page_is_tried_later() {
    let server = Server::start([say("503 Service Unavailable", &[("content-type", "text/html")], "<html>")]).await;
    let shipments = ship(&server, QUEUE, vec![message(1)]).await;
    assert!(matches!(&shipments[0], Shipment::Later { .. }), "{shipments:?}");
}

#[tokio::test]
async fn every_documented_failure_of_sending_is_handled_as_its_class_says() {
    // Errors that blame the message refuse it. All others leave it waiting: they pass, or an operator repairs the cause.
    for (code, is_refused) in [
        ("InvalidMessageContents", true),
        ("InvalidParameterValue", true),
        ("AWS.SimpleQueueService.BatchRequestTooLong", true),
        ("QueueDoesNotExist", false),
        ("InvalidAddress", false),
        ("InvalidSecurity", false),
        ("UnsupportedOperation", false),
        ("KmsAccessDenied", false),
        ("KmsDisabled", false),
        ("KmsInvalidState", false),
        ("KmsNotFound", false),
        ("KmsOptInRequired", false),
        ("KmsInvalidKeyUsage", false),
        ("RequestThrottled", false),
        ("KmsThrottled", false),
        ("InternalFailure", false),
        ("ServiceUnavailable", false),
    ] {
        let server = Server::start([error(code)]).await;
        let shipments = ship(&server, QUEUE, vec![message(1)]).await;
        assert_eq!(matches!(shipments[0], Shipment::Refused { .. }), is_refused, "{code}: {shipments:?}");
    }
}

#[test]
fn only_what_somebody_must_repair_ends_a_redrive() {
    for (code, transient) in [
        ("QueueDoesNotExist", false),
        ("AWS.SimpleQueueService.NonExistentQueue", false),
        ("InvalidAddress", false),
        ("InvalidSecurity", false),
        ("UnsupportedOperation", false),
        ("AccessDeniedException", false),
        ("KmsAccessDenied", false),
        ("KmsDisabled", false),
        ("KMS.NotFoundException", false),
        ("KmsInvalidKeyUsage", false),
        ("KmsThrottled", true),
        ("RequestThrottled", true),
        ("OverLimit", true),
        ("InternalError", true),
        ("unreachable", true),
    ] {
        assert_eq!(trouble_of(code, "why").transient, transient, "{code}");
    }
}

#[tokio::test]
async fn the_facts_of_a_queue_are_read() {
    let attributes = json!({ "MaximumMessageSize": "262144", "MessageRetentionPeriod": "345600", "ApproximateNumberOfMessages": "7" });
    let server = Server::start([say("200 OK", &[], &json!({ "Attributes": attributes }).to_string())]).await;
    let facts = Sqs::new(&shared().await, &server.settings()).unwrap().facts_of(QUEUE).await.unwrap();
    let expected =
        QueueFacts { message_bytes_max: 262_144, retention: Duration::from_secs(4 * 24 * 3_600), messages: 7 };
    assert_eq!(facts, expected);
    let server = Server::start([error("AccessDenied")]).await;
    let trouble = Sqs::new(&shared().await, &server.settings()).unwrap().facts_of(QUEUE).await.unwrap_err();
    assert_eq!((trouble.code.as_str(), trouble.transient), ("AccessDenied", false));
}

#[tokio::test]
async fn a_queue_elsewhere_is_called_in_its_own_region() {
    let server = Server::start([entries(&[ok(1)], &[]), entries(&[ok(1)], &[])]).await;
    let sqs = Sqs::new(&shared().await, &server.settings()).unwrap();
    let arn = "arn:aws:sqs:us-west-2:210987654321:orders-dlq.fifo";
    sqs.ship(arn, vec![message(1)]).await;
    sqs.ship("https://sqs.ap-south-1.amazonaws.com/210987654321/q", vec![message(1)]).await;
    let seen = server.seen();
    for (seen, region) in seen.iter().zip(["us-west-2", "ap-south-1"]) {
        let authorization = seen.header("authorization").unwrap_or_default();
        assert!(authorization.contains(&format!("/{region}/sqs/")), "{authorization}");
    }
    let sent: Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!(sent["QueueUrl"], format!("{}/210987654321/orders-dlq.fifo", server.url));
    assert_eq!(sent["Entries"][0]["MessageGroupId"], "orders");
}

#[tokio::test]
async fn messages_are_received_with_their_attributes_and_deleted_one_by_one() {
    let message = json!({
        "MessageId": "m-1", "ReceiptHandle": "r-1", "Body": "{}", "Attributes": { "SentTimestamp": "1573841765568" },
        "MessageAttributes": {
            "ErrorCode": { "DataType": "Number", "StringValue": "500" },
            "Blob": { "DataType": "Binary", "BinaryValue": "AAAA" },
        },
    });
    let deleted = json!({ "Successful": [{ "Id": "1" }],
                          "Failed": [{ "Id": "0", "Code": "ReceiptHandleIsInvalid", "SenderFault": true }] });
    let server = Server::start([
        say("200 OK", &[], &json!({ "Messages": [message] }).to_string()),
        say("200 OK", &[], &deleted.to_string()),
    ])
    .await;
    let queue = Sqs::new(&shared().await, &server.settings()).unwrap().queue(QUEUE, Duration::from_secs(60));
    let received = queue.receive(10).await.unwrap();
    assert_eq!((received.len(), received[0].receipt.as_str()), (1, "r-1"));
    assert_eq!(received[0].attributes, [("ErrorCode".to_owned(), "500".to_owned())].into());
    assert_eq!(received[0].sent_at, Some(crate::clock::UnixMillis(1_573_841_765_568)));
    let answers = queue.delete(&["r-1".to_owned(), "r-2".to_owned(), "r-3".to_owned()]).await;
    let codes: Vec<_> = answers.iter().map(|answer| answer.clone().map_err(|trouble| trouble.code)).collect();
    assert_eq!(codes, [Err("ReceiptHandleIsInvalid".to_owned()), Ok(()), Err("unanswered".to_owned())]);
    let asked: Value = serde_json::from_slice(&server.seen()[0].body).unwrap();
    assert_eq!((&asked["VisibilityTimeout"], &asked["MaxNumberOfMessages"]), (&json!(60), &json!(10)));
}
