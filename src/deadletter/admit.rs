//! Which letters may come back, and the events that they become. Pure but for the clock, which gives each its new id.
//!
//! Holds: a letter passes the checks that the doors make of a client's request. One that no request can be made of would hold
//! its function's lane.

use super::letter::Letter;
use crate::clock::Clock;
use crate::event::check::{Fields, check_carried, check_json, is_key};
use crate::event::name::{Home, Parts};
use crate::event::{Carried, Event, EventId, Function, IdempotencyKey, KEY_CHARS_MAX, KeySource, PAYLOAD_BYTES_MAX};
use crate::outbox::dead::Redriven;
use crate::plural::count;

/// What decides about letters that come back.
#[derive(Debug, Clone)]
pub struct Rules {
    pub home: Home,
    /// How often an event may come back.
    pub redrives_max: u32,
}

/// Why a letter is not admitted, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAdmitted {
    /// It came back too often.
    Ceiling(String),
    /// No request to Lambda can be made of it.
    Invalid(String),
}

/// The event that a letter becomes: a new id, so that its age counts from now, and one redrive more.
pub fn admit(letter: Letter, rules: &Rules, clock: &Clock) -> Result<Redriven, NotAdmitted> {
    if letter.redrives >= rules.redrives_max {
        let message = format!(
            "came back {}, dead_letter.redrives_max is {}",
            count(letter.redrives.into(), "time"),
            rules.redrives_max
        );
        return Err(NotAdmitted::Ceiling(message));
    }
    let (function, carried) = checked(&letter, &rules.home).map_err(NotAdmitted::Invalid)?;
    let accepted_at = clock.accepting();
    let id = EventId::mint(accepted_at, clock.random_bits(), &function.name);
    let key = match (letter.key, letter.key_source) {
        (Some(value), Some(source)) => IdempotencyKey { value, source }.outward(),
        (Some(value), None) => IdempotencyKey { value, source: KeySource::Field },
        (None, _) => IdempotencyKey { value: id.to_string(), source: KeySource::Minted },
    };
    let event = Event {
        id,
        function,
        key,
        carried,
        payload: letter.payload,
        accepted_at,
        deliver_at: None,
        expires_at: None,
        redrives: letter.redrives + 1,
    };
    Ok(Redriven { event, origin: letter.origin })
}

/// The function and what travels beside the payload, if the letter could have come through a door. The error says what is
/// wrong, and with what.
pub(super) fn checked(letter: &Letter, home: &Home) -> Result<(Function, Carried), String> {
    if letter.payload.len() > PAYLOAD_BYTES_MAX {
        return Err(format!("the payload has more than {PAYLOAD_BYTES_MAX} bytes"));
    }
    if letter.key.as_ref().is_some_and(|key| !is_key(key, letter.key_source)) {
        return Err(format!(
            "the idempotency key has not 1 to {KEY_CHARS_MAX} characters, none of them a control character"
        ));
    }
    if Parts::parse(&letter.function).is_none() {
        return Err(format!("{:?} is not a function's name", letter.function));
    }
    check_json(&letter.payload).map_err(|why| format!("the payload is not JSON: {why}"))?;
    let fields = Fields {
        address: letter.function.clone(),
        qualifier: letter.qualifier.clone(),
        tenant_id: letter.tenant_id.clone(),
    };
    let function = fields.function(home).map_err(|invalid| invalid.to_string())?;
    let carried = Carried {
        trace_header: letter.trace_header.clone(),
        client_context: letter.client_context.clone(),
        tenant_id: letter.tenant_id.clone(),
        durable_execution_name: letter.durable_execution_name.clone(),
    };
    check_carried(&carried).map_err(|invalid| invalid.to_string())?;
    Ok((function, carried))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::UnixMillis;

    pub(in crate::deadletter) fn rules() -> Rules {
        let home = Home { region: Some("eu-central-1".to_owned()), account_id: Some("123456789012".to_owned()) };
        Rules { home, redrives_max: 3 }
    }

    pub(in crate::deadletter) fn letter(change: impl FnOnce(&mut Letter)) -> Letter {
        let mut letter: Letter = serde_json::from_value(serde_json::json!({
            "origin": "o", "function": "arn:aws:lambda:eu-central-1:123456789012:function:orders", "payload_base64": "e30=",
        }))
        .unwrap();
        change(&mut letter);
        letter
    }

    #[test]
    fn a_letter_passes_the_checks_of_the_doors() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let sound = admit(letter(|letter| letter.trace_header = Some("Root=1-2-3".into())), &rules(), &clock).unwrap();
        assert_eq!(sound.event.function.name.as_str(), "orders");
        assert_eq!(sound.event.function.region.as_deref(), Some("eu-central-1"), "the region of an ARN is kept");
        type Damage = fn(&mut Letter);
        let changes: [(&str, Damage); 13] = [
            ("trace_header", |letter| letter.trace_header = Some("a\nb".into())),
            ("trace_header", |letter| letter.trace_header = Some("ü".into())),
            ("Client context", |letter| letter.client_context = Some("%%%".into())),
            ("Client context", |letter| letter.client_context = Some("A".repeat(4_000))),
            ("tenantId", |letter| letter.tenant_id = Some("a\r\nx-evil: 1".into())),
            ("durableExecutionName", |letter| letter.durable_execution_name = Some("a b".into())),
            ("is not a function's name", |letter| letter.function = "a/b".into()),
            ("functionName", |letter| letter.function = "f".repeat(300)),
            ("qualifier", |letter| letter.qualifier = Some("a.b".into())),
            ("key", |letter| letter.key = Some("a\nb".into())),
            ("key", |letter| letter.key = Some("k".repeat(256))),
            ("not JSON", |letter| letter.payload = "not json".into()),
            ("more than 1048576 bytes", |letter| letter.payload = "1".repeat(PAYLOAD_BYTES_MAX + 1).into()),
        ];
        for (what, change) in changes {
            let Err(NotAdmitted::Invalid(why)) = admit(letter(change), &rules(), &clock) else { panic!("{what}") };
            assert!(why.contains(what), "{what}: {why}");
        }
        let often = admit(letter(|letter| letter.redrives = 3), &rules(), &clock);
        assert!(matches!(often, Err(NotAdmitted::Ceiling(_))), "{often:?}");
    }

    #[test]
    fn an_sdks_key_of_an_earlier_version_comes_back_as_a_digest() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let old = letter(|letter| {
            letter.key = Some("AKIDEXAMPLE/5f2c".into());
            letter.key_source = Some(KeySource::SdkInvocationId);
        });
        let key = admit(old, &rules(), &clock).unwrap().event.key;
        assert_eq!(key, IdempotencyKey::of_sdk("AKIDEXAMPLE", "5f2c"));
        assert!(!key.value.contains("AKID"));
    }
}
