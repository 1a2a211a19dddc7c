use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::event::{Carried, Function, FunctionName};
use crate::outbox::{Burial, BuryReason, LastOutcome};

const TRACE: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1;Lineage=a:1";

/// For a queue with SQS's own limits.
fn message_of(event: &Event, history: &History) -> Result<Message, Unshippable> {
    super::message_of(event, history, Format::DeadLetterQueue, Oversize::Keep, MESSAGE_BYTES_MAX)
}

fn event() -> Event {
    Event {
        id: "01900000-0000-7000-8000-00000000abcd".parse().unwrap(),
        function: Function {
            name: FunctionName::new("orders:prod"),
            address: "arn:aws:lambda:eu-central-1:123456789012:function:orders".into(),
            qualifier: Some("prod".into()),
            region: Some("eu-central-1".into()),
        },
        key: IdempotencyKey { value: "order-17".into(), source: KeySource::Header },
        carried: Carried {
            trace_header: Some(TRACE.into()),
            client_context: Some("e30=".into()),
            tenant_id: Some("tenant a".into()),
            durable_execution_name: Some("order-17".into()),
        },
        payload: Bytes::from_static(br#"{"order": 17}"#),
        accepted_at: UnixMillis(1_573_841_765_568),
        deliver_at: None,
        expires_at: None,
        redrives: 1,
    }
}

fn history() -> History {
    History {
        attempts: 12,
        calls: 14,
        last: Some(LastOutcome {
            at: UnixMillis(1_573_841_800_000),
            status: 500,
            code: "ServiceException".into(),
            message: "Internal\u{0} error".into(),
            request_id: Some("a1b2".into()),
        }),
        burial: Some(Burial {
            reason: BuryReason::RetriesExhausted,
            at: UnixMillis(1_573_841_800_000),
            unshippable: None,
        }),
        ..History::default()
    }
}

fn bare() -> Event {
    Event {
        key: IdempotencyKey { value: "m".into(), source: KeySource::Minted },
        carried: Carried::default(),
        payload: Bytes::new(),
        ..event()
    }
}

#[test]
fn a_dead_letter_looks_like_this() {
    let text = |text: &str| Attribute::String(text.to_owned());
    let envelope = concat!(
        r#"{"id":"01900000-0000-7000-8000-00000000abcd","function":"orders:prod","#,
        r#""address":"arn:aws:lambda:eu-central-1:123456789012:function:orders","qualifier":"prod","#,
        r#""region":"eu-central-1","key":"order-17","key_source":"header","#,
        r#""trace_header":"Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1;Lineage=a:1","#,
        r#""client_context":"e30=","tenant_id":"tenant a","durable_execution_name":"order-17","#,
        r#""accepted_at":1573841765568,"redrives":1}"#,
    );
    let attributes = [
        ("AcceptedAt", text("2019-11-15T18:16:05.568Z")),
        ("Attempts", Attribute::Number(12)),
        ("ErrorCode", Attribute::Number(500)),
        ("ErrorMessage", text("ServiceException: Internal\u{fffd} error")),
        ("Function", text("orders:prod")),
        ("IdempotencyKey", text("order-17")),
        ("Reason", text("retries-exhausted")),
        ("RequestID", text("a1b2")),
        ("Sendoff", text(envelope)),
    ];
    let golden = Message {
        id: event().id,
        group: "orders:prod".into(),
        body: r#"{"order": 17}"#.into(),
        attributes: attributes.map(|(name, value)| (name.to_owned(), value)).into(),
        trace_header: Some(TRACE.into()),
    };
    assert_eq!(message_of(&event(), &history()).unwrap(), golden);
}

#[test]
fn all_that_a_redrive_needs_travels() {
    for event in [event(), bare()] {
        let message = message_of(&event, &history()).unwrap();
        let Attribute::String(json) = &message.attributes[ENVELOPE] else { panic!("not text") };
        let envelope: Envelope = serde_json::from_str(json).unwrap();
        assert!(envelope == Envelope::of(&event));
        assert_eq!((envelope.key, envelope.key_source), (event.key.value.clone(), event.key.source));
        assert_eq!(envelope.empty_payload, event.payload.is_empty());
    }
}

#[test]
fn an_event_that_was_never_attempted_has_an_id_and_words() {
    let message = message_of(&bare(), &History::default()).unwrap();
    assert_eq!(message.body, "{}");
    assert_eq!(message.attributes["RequestID"], Attribute::String(event().id.to_string()));
    assert_eq!(message.attributes["ErrorCode"], Attribute::Number(0));
    assert_eq!(message.attributes["ErrorMessage"], Attribute::String("no attempt was made".into()));
    assert!(!message.attributes.contains_key("IdempotencyKey"), "a minted key means nothing to others");
    assert_eq!(message.trace_header, None);
}

#[test]
fn the_error_message_is_cut_to_a_kilobyte_of_whole_characters() {
    let mut history = history();
    let last = history.last.as_mut().unwrap();
    (last.code, last.message) = ("C".into(), "é".repeat(1_000));
    let message = message_of(&event(), &history).unwrap();
    assert_eq!(message.attributes["ErrorMessage"], Attribute::String(format!("C: {}", "é".repeat(510))));
}

#[test]
fn characters_that_sqs_refuses_are_escaped_and_the_json_means_the_same() {
    let mut event = event();
    event.payload = Bytes::from("{\"a\u{7f}\": \"x\u{fffe}\\\\\u{ffff}\u{1fffe}\",\n\t\"b\": \"\\u0000\"}");
    event.key.value = "k\u{ffff}".into();
    let message = message_of(&event, &history()).unwrap();
    assert_eq!(message.body, "{\"a\u{7f}\": \"x\\ufffe\\\\\\uffff\u{1fffe}\",\n\t\"b\": \"\\u0000\"}");
    let value = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
    assert_eq!(value(message.body.as_bytes()), value(&event.payload));
    assert_eq!(message.attributes["IdempotencyKey"], Attribute::String("k\u{fffd}".into()));
    let Attribute::String(json) = &message.attributes[ENVELOPE] else { panic!("not text") };
    assert_eq!(serde_json::from_str::<Envelope>(json).unwrap().key, "k\u{ffff}", "the exact key is in the envelope");
}

#[test]
fn a_payload_that_is_no_text_stays_in_the_store() {
    for payload in [&b"\xff\xfe"[..], b"{\"a\": \"\x01\"}"] {
        let event = Event { payload: Bytes::copy_from_slice(payload), ..event() };
        assert_eq!(message_of(&event, &history()), Err(Unshippable::NotText));
    }
}

#[test]
fn the_limit_is_exact_and_counts_names_types_and_values() {
    let overhead = message_of(&event(), &history()).unwrap().bytes() - event().payload.len();
    let sized = |body: usize| {
        let payload = Bytes::from(format!("\"{}\"", "x".repeat(body - 2)));
        message_of(&Event { payload, ..event() }, &history())
    };
    assert_eq!(sized(MESSAGE_BYTES_MAX - overhead).unwrap().bytes(), MESSAGE_BYTES_MAX);
    let bytes = MESSAGE_BYTES_MAX + 1;
    assert_eq!(
        sized(bytes - overhead),
        Err(Unshippable::TooLarge { bytes, limit: MESSAGE_BYTES_MAX, compressed: false })
    );
    // Random digits hardly shrink, so the message does not fit even compressed.
    let digits: String =
        (0..MESSAGE_BYTES_MAX as u64).map(|n| char::from(b'0' + (n * n * 7919 % 10_007 % 10) as u8)).collect();
    let noise = Event { payload: Bytes::from(format!("\"{}\"", &digits[..4_000])), ..event() };
    let kept = super::message_of(&noise, &history(), Format::DeadLetterQueue, Oversize::Compress, 1_500);
    assert!(matches!(kept, Err(Unshippable::TooLarge { limit: 1_500, compressed: true, .. })), "{kept:?}");
    assert!(kept.unwrap_err().to_string().contains("bytes even compressed, the queue takes 1500"));
    let small = Message {
        id: event().id,
        group: String::new(),
        body: "{}".into(),
        attributes: [("Ab".to_owned(), Attribute::Number(-12)), ("C".to_owned(), Attribute::String("é".into()))].into(),
        trace_header: Some(TRACE.into()),
    };
    assert_eq!(small.bytes(), 2 + (2 + 6 + 3) + (1 + 6 + 2));
}

#[test]
fn only_a_well_formed_trace_header_travels_as_such() {
    for (header, well_formed) in [
        (TRACE, true),
        ("Self=1-67891234-12456789abcdef012345678a; Root=1-67891233-abcdef012345678912345678", true),
        ("Root=1-67891233-abcdef012345678912345678", true),
        ("Root=2-67891233-abcdef012345678912345678", false),
        ("Root=1-67891233-abcdef0123456789123456", false),
        ("Root=1-67891233-abcdef01234567891234567g", false),
        ("Root=1-67891233-abcdef012345678912345678\u{7}", false),
        ("Parent=53995c3f42cd8ad8", false),
        ("", false),
    ] {
        let mut event = event();
        event.carried.trace_header = Some(header.into());
        let message = message_of(&event, &history()).unwrap();
        assert_eq!(message.trace_header.is_some(), well_formed, "{header}");
    }
}

#[test]
fn a_group_id_is_short_and_ascii() {
    assert_eq!(group_of("eu-west-1/123456789012/f:$LATEST"), "eu-west-1/123456789012/f:$LATEST");
    assert_eq!(group_of(&"é x".repeat(100)).len(), GROUP_CHARS_MAX);
    assert_eq!(group_of("é x"), "--x");
}

proptest! {
    #[test]
    fn sqs_takes_every_message(
        text in any::<String>(), key in any::<String>(), message in any::<String>(), code in any::<String>(),
        name in ".{1,200}", request_id in proptest::option::of(any::<String>()), status in any::<u16>(),
    ) {
        let mut event = event();
        event.payload = Bytes::from(serde_json::to_vec(&text).unwrap());
        event.key.value = key;
        event.function.name = FunctionName::new(&name);
        let mut history = history();
        history.last = Some(LastOutcome { at: UnixMillis(0), status, code, message, request_id });
        let letter = message_of(&event, &history).unwrap();
        prop_assert_eq!(serde_json::from_str::<String>(&letter.body).unwrap(), text);
        prop_assert!(letter.attributes.len() <= 10);
        for value in letter.attributes.values().map(Attribute::value).chain([letter.body.clone()]) {
            prop_assert!(!value.is_empty() && value.chars().all(is_carriable), "{:?}", value);
        }
    }
}
