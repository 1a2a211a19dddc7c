use serde_json::json;

use super::*;
use crate::deadletter::message::{MESSAGE_BYTES_MAX, message_of};
use crate::deadletter::{Format, Oversize};
use crate::event::{Carried, Event, EventId, Function, IdempotencyKey};
use crate::outbox::{Burial, History, LastOutcome};

const SENT: UnixMillis = UnixMillis(1_573_841_765_568);

fn received(body: &str, attributes: &[(&str, &str)]) -> Received {
    Received {
        message_id: "m-1".into(),
        receipt: "r-1".into(),
        body: body.into(),
        attributes: attributes.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        sent_at: Some(SENT),
    }
}

fn letter(received: &Received, wanted: &Wanted) -> Read {
    match read(received, wanted) {
        Reading::Letter(read) => *read,
        Reading::Foreign(why) => panic!("foreign: {why}"),
    }
}

fn foreign(received: &Received) -> String {
    match read(received, &Wanted::default()) {
        Reading::Letter(read) => panic!("a letter: {read:?}"),
        Reading::Foreign(why) => why,
    }
}

fn event(payload: &str) -> Event {
    Event {
        id: "01900000-0000-7000-8000-00000000abcd".parse::<EventId>().unwrap(),
        function: Function {
            name: FunctionName::new("eu-west-1/orders:prod"),
            address: "arn:aws:lambda:eu-west-1:123456789012:function:orders".into(),
            qualifier: Some("prod".into()),
            region: Some("eu-west-1".into()),
        },
        key: IdempotencyKey { value: "order-17".into(), source: KeySource::Header },
        carried: Carried { tenant_id: Some("blue".into()), trace_header: Some("Root=1".into()), ..Carried::default() },
        payload: Bytes::from(payload.to_owned()),
        accepted_at: UnixMillis(5),
        deliver_at: None,
        expires_at: None,
        redrives: 2,
    }
}

fn history() -> History {
    History {
        calls: 4,
        last: Some(LastOutcome {
            at: UnixMillis(6),
            status: 429,
            code: "TooManyRequestsException".into(),
            message: "slow".into(),
            request_id: None,
        }),
        burial: Some(Burial { reason: BuryReason::EventAgeExceeded, at: UnixMillis(7), unshippable: None }),
        ..History::default()
    }
}

/// Our own message, as SQS returns it.
fn shipped(event: &Event, format: Format) -> Received {
    shipped_to(event, format, MESSAGE_BYTES_MAX)
}

/// The same, for a queue with its own size limit.
fn shipped_to(event: &Event, format: Format, bytes_max: usize) -> Received {
    let message = message_of(event, &history(), format, Oversize::Compress, bytes_max).unwrap();
    let attributes: Vec<_> = message.attributes.iter().map(|(name, value)| (name.as_str(), value.value())).collect();
    let attributes: Vec<_> = attributes.iter().map(|(name, value)| (*name, value.as_str())).collect();
    received(&message.body, &attributes)
}

#[test]
fn our_own_messages_come_back_whole_in_both_formats() {
    for format in [Format::DeadLetterQueue, Format::Destination] {
        for payload in ["{\"n\": 1.0, \"big\": 12345678901234567890.10}", "", "\"\"", "[1,2]"] {
            let event = event(payload);
            let read = letter(&shipped(&event, format), &Wanted::default());
            let expected = Letter {
                origin: event.id.to_string(),
                function: event.function.address.clone(),
                qualifier: Some("prod".into()),
                key: Some("order-17".into()),
                key_source: Some(KeySource::Header),
                trace_header: Some("Root=1".into()),
                client_context: None,
                tenant_id: Some("blue".into()),
                durable_execution_name: None,
                redrives: 2,
                payload: event.payload.clone(),
            };
            assert_eq!(read.letter, expected, "{format:?} {payload}");
            assert_eq!((read.reason, read.at), (Some(BuryReason::EventAgeExceeded), Some(SENT)));
            assert_eq!(read.error.as_deref(), Some("TooManyRequestsException: slow"));
        }
    }
}

#[test]
fn what_went_out_compressed_comes_back_byte_for_byte() {
    for payload in
        [format!("{{ \"text\": \"{}\u{fffe}\" }}", "é ".repeat(2_000)), format!("not json {}", "x".repeat(9_000))]
    {
        for format in [Format::DeadLetterQueue, Format::Destination] {
            let received = shipped_to(&event(&payload), format, 2_048);
            assert!(received.body.len() < 1_500, "{format:?}: {}", received.body.len());
            assert_eq!(received.attributes["ContentEncoding"], "gzip+base64");
            assert_eq!(letter(&received, &Wanted::default()).letter.payload, payload, "{format:?}");
        }
    }
    let mut broken = shipped_to(&event(&"x".repeat(9_000)), Format::DeadLetterQueue, 2_048);
    broken.body.truncate(20);
    assert!(foreign(&broken).contains("the body is not gzip"), "{}", foreign(&broken));
    assert!(
        !shipped(&event("{}"), Format::DeadLetterQueue).attributes.contains_key("ContentEncoding"),
        "it fits as it is"
    );
}

#[test]
fn text_that_is_not_json_comes_back_from_a_record_too() {
    let read = letter(&shipped(&event("not \"json\""), Format::Destination), &Wanted::default());
    assert_eq!(read.letter.payload, "not \"json\"");
}

#[test]
fn a_record_of_ours_reads_like_lambdas() {
    let message =
        message_of(&event("{\"n\":1}"), &history(), Format::Destination, Oversize::Keep, MESSAGE_BYTES_MAX).unwrap();
    let record: serde_json::Value = serde_json::from_str(&message.body).unwrap();
    let expected = json!({
        "version": "1.0",
        "timestamp": "1970-01-01T00:00:00.007Z",
        "requestContext": {
            "requestId": "01900000-0000-7000-8000-00000000abcd",
            "functionArn": "arn:aws:lambda:eu-west-1:123456789012:function:orders:prod",
            "condition": "EventAgeExceeded",
            "approximateInvokeCount": 4,
        },
        "requestPayload": { "n": 1 },
        "responseContext": { "statusCode": 429, "executedVersion": "prod" },
        "responsePayload": { "errorMessage": "slow", "errorType": "TooManyRequestsException" },
    });
    assert_eq!(record, expected);
}

/// A message of Lambda's dead-letter queue (AWS Lambda developer guide, "Adding a dead-letter queue").
fn lambdas_own() -> Received {
    let attributes = [
        ("RequestID", "e4b46cbf-b738-xmpl-8880-a18cdf61200e"),
        ("ErrorCode", "200"),
        ("ErrorMessage", "Process exited before completing request"),
    ];
    received("{\"order\": 17}", &attributes)
}

#[test]
fn a_message_of_lambdas_own_queue_is_for_the_function_that_is_given_or_tagged() {
    let given = Wanted { function: Some("orders".into()), queue_function: Some("tagged".into()), ..Wanted::default() };
    let read = letter(&lambdas_own(), &given);
    assert_eq!(read.letter.function, "orders");
    assert_eq!(read.letter.origin, "lambda/e4b46cbf-b738-xmpl-8880-a18cdf61200e");
    assert_eq!((read.letter.payload.as_ref(), read.letter.key), (&b"{\"order\": 17}"[..], None));
    let tagged = Wanted { function: Some("*".into()), queue_function: Some("tagged".into()), ..Wanted::default() };
    assert_eq!(letter(&lambdas_own(), &tagged).letter.function, "tagged");
    assert!(foreign(&lambdas_own()).contains("--function"));
}

/// A record as Lambda writes it (AWS Lambda developer guide, "Capturing records of Lambda asynchronous invocations").
fn lambdas_record(condition: &str) -> Received {
    let body = format!(
        r#"{{"version":"1.0","timestamp":"2019-11-14T18:16:05.568Z","requestContext":{{"requestId":"e4b46cbf-b738-xmpl-8880-a18cdf61200e","functionArn":"arn:aws:lambda:us-east-2:123456789012:function:my-function:$LATEST","condition":"{condition}","approximateInvokeCount":3}},"requestPayload":{{"ORDER_IDS":["9e07af03", 1.50]}},"responseContext":{{"statusCode":200,"executedVersion":"$LATEST","functionError":"Unhandled"}},"responsePayload":{{"errorMessage":"Process exited before completing request"}}}}"#
    );
    received(&body, &[])
}

#[test]
fn lambdas_records_of_failures_come_back_byte_for_byte() {
    for (condition, reason) in [
        ("RetriesExhausted", Some(BuryReason::RetriesExhausted)),
        ("EventAgeExceeded", Some(BuryReason::EventAgeExceeded)),
        ("ZeroReservedConcurrency", None),
    ] {
        let read = letter(&lambdas_record(condition), &Wanted::default());
        assert_eq!(read.letter.function, "arn:aws:lambda:us-east-2:123456789012:function:my-function:$LATEST");
        assert_eq!(read.letter.payload, r#"{"ORDER_IDS":["9e07af03", 1.50]}"#);
        assert_eq!((read.reason, read.at), (reason, Some(UnixMillis(1_573_755_365_568))));
        assert_eq!(read.error.as_deref(), Some("Process exited before completing request"));
    }
    assert!(foreign(&lambdas_record("Success")).contains("Success"));
}

#[test]
fn what_is_none_of_these_is_foreign() {
    for body in ["", "hello", "{}", "[]", "{\"requestContext\":{}}", "{\"version\":\"1.0\",\"requestPayload\":{}}"] {
        foreign(&received(body, &[("Other", "1")]));
    }
    assert!(foreign(&received("{}", &[(ENVELOPE, "{\"id\":")])).contains("broken"));
    let mut torn = shipped(&event("{}"), Format::Destination);
    torn.body = "{}".into();
    foreign(&torn);
}

#[test]
fn filters_take_what_fits_in_every_way() {
    let ours = letter(&shipped(&event("{}"), Format::DeadLetterQueue), &Wanted::default());
    let theirs = letter(&lambdas_record("RetriesExhausted"), &Wanted::default());
    let all = Wanted::default();
    let function = |name: &str| Wanted { function: Some(name.into()), ..Wanted::default() };
    for (wanted, takes_ours, takes_theirs) in [
        (all.clone(), true, true),
        (function("orders"), true, false),
        (function("eu-west-1/orders:*"), true, false),
        (function("my-*"), false, true),
        (Wanted { reason: Some(BuryReason::EventAgeExceeded), ..all.clone() }, true, false),
        (Wanted { since: Some(SENT), ..all.clone() }, true, false),
        (Wanted { until: Some(SENT), ..all.clone() }, false, true),
        (Wanted { error: Some("Process exited".into()), ..all }, false, true),
    ] {
        assert_eq!((wanted.fits(&ours), wanted.fits(&theirs)), (takes_ours, takes_theirs), "{wanted:?}");
    }
}

#[test]
fn a_letter_is_written_and_read_back_with_its_bytes() {
    let letter = fresh("o".into(), "orders".into(), Bytes::from_static(&[0, 0xff, b'"']));
    let text = serde_json::to_string(&letter).unwrap();
    assert_eq!(serde_json::from_str::<Letter>(&text).unwrap(), letter);
    assert!(!format!("{letter:?}").contains("key"));
}
