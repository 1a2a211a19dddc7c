use proptest::prelude::*;

use super::*;
use crate::clock::{Clock, UnixMillis};
use crate::deadletter::letter::{self, Reading, Wanted};
use crate::deadletter::message::MESSAGE_BYTES_MAX;
use crate::event::testing::event;
use crate::event::{Event, PAYLOAD_BYTES_MAX};
use crate::outbox::{Burial, BuryReason, History, LastOutcome};

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn home() -> Home {
    Home { region: Some("eu-central-1".to_owned()), account_id: Some("123456789012".to_owned()) }
}

fn handed(payload: impl Into<Bytes>) -> Handed {
    let clock = Clock::seeded(NOW, 1);
    let event = Event { payload: payload.into(), ..event(&clock, "orders") };
    Handed { event, history: History::default(), paused: false }
}

fn parcel(Handed { event, history, paused }: Handed) -> Parcel {
    let (envelope, payload) = Envelope::seal(event, history);
    Parcel { envelope: Envelope { paused, ..envelope }, payload }
}

/// As SQS would return it.
fn received(message: &Message) -> Received {
    let texts = message.attributes.iter().map(|(name, attribute)| (name.clone(), attribute.value()));
    Received { body: message.body.clone(), attributes: texts.collect(), ..Received::default() }
}

fn travel(handed: Handed) -> (Message, Handed) {
    let message = message_of(&parcel(handed), &home(), MESSAGE_BYTES_MAX).unwrap();
    let all: Vec<&str> = [message.body.as_str()].into_iter().collect();
    assert!(all.iter().all(|text| text.chars().all(is_carriable)));
    assert!(message.attributes.values().all(|attribute| attribute.value().chars().all(is_carriable)));
    let back = read(&received(&message), &home(), NOW).unwrap();
    (message, back)
}

#[test]
fn an_event_arrives_with_its_history_and_its_payload_byte_for_byte() {
    let last = LastOutcome {
        at: UnixMillis(1_790_000_000_500),
        status: 429,
        code: "TooManyRequestsException".to_owned(),
        message: "a\u{1}\u{ffff}b".to_owned(),
        request_id: None,
    };
    let sent = handed(r#"{"order": 17, "name": "Zoë"}"#);
    let history =
        History { attempts: 2, calls: 9, due: UnixMillis(1_790_000_100_001), last: Some(last), ..sent.history };
    let sent = Handed { history, ..sent };
    let (message, back) = travel(sent.clone());
    assert_eq!(back, sent);
    assert_eq!(message.body, r#"{"order": 17, "name": "Zoë"}"#, "a payload that SQS carries is readable on the queue");
    assert_eq!(message.attributes.len(), 1);
}

#[test]
fn a_payload_that_is_empty_or_that_sqs_cannot_carry_is_packed_and_arrives_unchanged() {
    for payload in [&b""[..], b"\"\xef\xbf\xbe\"", b"\xff\x00", b"\"\x0b\""] {
        let sent = handed(payload.to_vec());
        let (message, back) = travel(sent.clone());
        assert_eq!(back, sent, "{payload:?}");
        assert_eq!(message.attributes["ContentEncoding"].value(), "gzip+base64");
    }
}

#[test]
fn a_payload_that_is_too_large_is_packed_and_one_that_does_not_shrink_is_refused_by_its_size() {
    let sent = handed(format!("\"{}\"", "a".repeat(PAYLOAD_BYTES_MAX - 2)));
    let (message, back) = travel(sent.clone());
    assert!(back == sent && message.bytes() < 10_000, "{}", message.bytes());

    // Random bytes do not shrink.
    let clock = Clock::seeded(UnixMillis(0), 7);
    let noise: Vec<u8> = std::iter::repeat_with(|| clock.random_bits().to_be_bytes()).flatten().take(900_000).collect();
    let why = message_of(&parcel(handed(noise)), &home(), MESSAGE_BYTES_MAX).unwrap_err();
    assert!(why.to_string().contains("even compressed, the queue takes 1048576"), "{why}");
    let small = message_of(&parcel(handed("{}")), &home(), 100).unwrap_err();
    assert!(matches!(small, Unsendable::TooLarge { limit: 100, .. }), "{small}");
}

#[test]
fn a_message_of_another_place_a_later_format_or_no_sendoff_stays_and_the_reason_says_what_to_do() {
    let (message, _) = travel(handed("{}"));
    let good = received(&message);
    let elsewhere = Home { region: Some("us-east-1".to_owned()), ..home() };
    let nowhere = Home { account_id: None, ..home() };
    let changed = |from: &str, to: &str| {
        let head = good.attributes[HANDED].replace(from, to);
        assert_ne!(head, good.attributes[HANDED], "{from}");
        Received { attributes: BTreeMap::from([(HANDED.to_owned(), head)]), ..good.clone() }
    };
    let dead = Received { attributes: BTreeMap::from([(ENVELOPE.to_owned(), "{}".to_owned())]), ..good.clone() };
    for (received, home, kind, words) in [
        (good.clone(), elsewhere, Kind::Elsewhere, "region us-east-1"),
        (good.clone(), nowhere, Kind::Elsewhere, "account none"),
        (changed("\"format\":1", "\"format\":2"), home(), Kind::Foreign, "upgrade this one"),
        (changed("\"envelope\":{", "\"envelope\":["), home(), Kind::Broken, "SendoffHandoff is broken"),
        (changed("\"key\":\"", "\"kex\":\""), home(), Kind::Broken, "missing field `key`"),
        (changed("\"function\":\"orders\"", "\"function\":\"invoices\""), home(), Kind::Broken, "at its sender"),
        (Received { body: "[]".to_owned(), ..good.clone() }, home(), Kind::Broken, "not the one that was sent"),
        (Received { attributes: BTreeMap::new(), ..good.clone() }, home(), Kind::Foreign, "handed over"),
        (dead, home(), Kind::Foreign, "sendoff redrive"),
    ] {
        let left = read(&received, &home, NOW).unwrap_err();
        assert!(left.kind == kind && left.why.contains(words), "{words}: {left:?}");
    }
}

#[test]
fn a_redrive_names_a_handed_over_event_foreign_with_a_hint() {
    let burial = Burial { reason: BuryReason::Refused, at: UnixMillis(5), unshippable: None };
    let sent = handed("{}");
    let (message, _) = travel(Handed { history: History { burial: Some(burial), ..History::default() }, ..sent });
    let Reading::Foreign(why) = letter::read(&received(&message), &Wanted::default()) else { panic!("taken") };
    assert!(why.contains("handoff.receive_queue"), "{why}");
}

proptest! {
    #[test]
    fn any_bytes_arrive_unchanged(payload in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let sent = handed(payload);
        prop_assert_eq!(travel(sent.clone()).1, sent);
    }

    #[test]
    fn a_message_that_anybody_wrote_is_read_without_a_panic(head in any::<String>(), body in any::<String>()) {
        let received = Received { body, attributes: BTreeMap::from([(HANDED.to_owned(), head)]), ..Received::default() };
        prop_assert!(read(&received, &home(), NOW).is_err());
    }
}
