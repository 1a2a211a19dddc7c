//! An event that is handed over, as it travels: everything except its payload, as JSON. A peer gets it in a line of NDJSON,
//! a queue as an attribute of a message. Pure.
//!
//! Fields that a later version adds have defaults, and a receiver ignores fields that it does not know. A change that a
//! receiver must understand raises [`FORMAT`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::{MILLIS_MAX, UnixMillis};
use crate::event::check::{Fields, check_carried};
use crate::event::name::Home;
use crate::event::{
    Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KEY_CHARS_MAX, KeySource, PAYLOAD_BYTES_MAX,
};
use crate::outbox::handoff::Handed;
use crate::outbox::{Burial, History};

/// The version of the envelope. A receiver refuses a later one.
pub const FORMAT: u32 = 1;

/// The most bytes of an envelope. The longest possible one has about 20 KiB: a client context, an address, a key, and the
/// texts of its history, escaped as JSON.
pub const ENVELOPE_BYTES_MAX: usize = 64 << 10;

/// An event without its payload, and its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub id: EventId,
    /// The canonical name. It is relative to the region and account of the sender, so the receiver must have the same.
    pub function: FunctionName,
    /// The function as the client wrote it, if that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qualifier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    pub key: String,
    pub key_source: KeySource,
    #[serde(default)]
    pub carried: Carried,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<UnixMillis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMillis>,
    #[serde(default)]
    pub redrives: u32,
    pub history: History,
}

impl Envelope {
    /// Splits an event into its envelope and its payload.
    pub fn seal(event: Event, history: History) -> (Self, Bytes) {
        let Event { id, function, key, carried, payload, accepted_at: _, deliver_at, expires_at, redrives } = event;
        let Function { name, address, qualifier, region } = function;
        let envelope = Self {
            id,
            address: (address != name.as_str()).then_some(address),
            function: name,
            qualifier,
            region,
            key: key.value,
            key_source: key.source,
            carried,
            deliver_at,
            expires_at,
            redrives,
            history,
        };
        (envelope, payload)
    }

    /// Puts the event together again. Refuses what no door would have accepted, and what means another function here than
    /// it did there. The error says why.
    pub fn open(self, payload: Bytes, home: &Home) -> Result<Handed, String> {
        let Self {
            id,
            function,
            address,
            qualifier,
            region,
            key,
            key_source,
            carried,
            deliver_at,
            expires_at,
            redrives,
            history,
        } = self;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(format!("its payload has {} bytes of at most {PAYLOAD_BYTES_MAX}", payload.len()));
        }
        if !(1..=KEY_CHARS_MAX).contains(&key.chars().count()) {
            return Err(format!("its key does not have 1 to {KEY_CHARS_MAX} characters"));
        }
        check_carried(&carried).map_err(|invalid| invalid.to_string())?;
        // A canonical name with a region or an account is no address that Lambda knows, so there is always an address then.
        let address = address.unwrap_or_else(|| function.as_str().to_owned());
        let fields = Fields { address, qualifier, tenant_id: carried.tenant_id.clone() };
        let found = fields.function(home).map_err(|invalid| invalid.to_string())?;
        if found.name != function || function.tag() != id.function_tag() {
            return Err(format!(
                "its function is {:?} here and {:?} at its sender: give both the same lambda.region and lambda.account_id",
                found.name.as_str(),
                function.as_str()
            ));
        }
        let times = [deliver_at, expires_at, Some(history.due), Some(id.accepted_at())];
        if times.into_iter().flatten().any(|time| time.0 > MILLIS_MAX) {
            return Err("one of its times is after the year 9999".to_owned());
        }
        // A queue that refused it there may accept it here.
        let burial = history.burial.clone().map(|burial| Burial { unshippable: None, ..burial });
        let refused = history.burial.as_ref().is_some_and(|burial| burial.unshippable.is_some());
        let due = if refused { UnixMillis(0) } else { history.due };
        let event = Event {
            id,
            function: Function { region: region.or(found.region), ..found },
            key: IdempotencyKey { value: key, source: key_source },
            carried,
            payload,
            accepted_at: id.accepted_at(),
            deliver_at,
            expires_at,
            redrives,
        };
        Ok(Handed { event, history: History { due, burial, ..history } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::event::testing::event;
    use crate::outbox::{BuryReason, LastOutcome};

    fn home() -> Home {
        Home { region: Some("eu-central-1".to_owned()), account_id: Some("123456789012".to_owned()) }
    }

    fn longest() -> (Event, History) {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let name = FunctionName::new("us-east-1/orders:prod");
        let start = event(&clock, name.as_str());
        let event = Event {
            function: Function {
                address: "arn:aws:lambda:us-east-1:123456789012:function:orders".to_owned(),
                qualifier: Some("prod".to_owned()),
                region: Some("us-east-1".to_owned()),
                name,
            },
            key: IdempotencyKey { value: "\u{1F980}".repeat(255), source: KeySource::Field },
            carried: Carried {
                trace_header: Some("Root=1-5759e988-bd862e3fe1be46a994272793".to_owned()),
                client_context: Some("e30=".to_owned()),
                tenant_id: Some("blue team".to_owned()),
                durable_execution_name: Some("run-7".to_owned()),
            },
            payload: Bytes::from_static(&[0, 0xff, b'"', b'\n']),
            deliver_at: Some(UnixMillis(1_790_000_100_001)),
            expires_at: Some(UnixMillis(1_790_000_200_002)),
            redrives: 3,
            ..start
        };
        let last = LastOutcome {
            at: UnixMillis(1_790_000_000_500),
            status: 429,
            code: "TooManyRequestsException".to_owned(),
            message: "\u{1}".repeat(1_024),
            request_id: Some("e1e2".to_owned()),
        };
        let history = History {
            attempts: 2,
            calls: 9,
            throttles: 4,
            setbacks: 1,
            due: UnixMillis(1_790_000_100_001),
            last: Some(last),
            burial: None,
        };
        (event, history)
    }

    #[test]
    fn an_event_is_the_same_after_its_journey() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        for (event, history) in [longest(), (event(&clock, "orders"), History::default())] {
            let (envelope, payload) = Envelope::seal(event.clone(), history.clone());
            let text = serde_json::to_string(&envelope).unwrap();
            assert!(text.len() < ENVELOPE_BYTES_MAX / 2, "{} bytes", text.len());
            let read: Envelope = serde_json::from_str(&text).unwrap();
            assert_eq!(read, envelope);
            let handed = read.open(payload, &home()).unwrap();
            assert!(handed == Handed { event, history }, "{text}");
        }
    }

    #[test]
    fn fields_of_a_later_version_are_ignored_and_missing_ones_have_defaults() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let (envelope, _) = Envelope::seal(event(&clock, "orders"), History::default());
        let mut value = serde_json::to_value(&envelope).unwrap();
        value["priority"] = 7.into();
        value.as_object_mut().unwrap().remove("carried");
        assert_eq!(serde_json::from_value::<Envelope>(value).unwrap(), envelope);
    }

    #[test]
    fn an_event_that_means_another_function_here_is_refused() {
        let (event, history) = longest();
        let elsewhere = Home { region: Some("us-east-1".to_owned()), ..home() };
        let (envelope, payload) = Envelope::seal(event, history);
        let why = envelope.clone().open(payload.clone(), &elsewhere).unwrap_err();
        assert!(why.contains("lambda.region"), "{why}");
        let forged = Envelope { function: FunctionName::new("invoices"), address: None, ..envelope.clone() };
        assert!(forged.open(payload.clone(), &home()).is_err());
        let keyless = Envelope { key: String::new(), ..envelope.clone() };
        assert!(keyless.open(payload, &home()).unwrap_err().contains("its key"));
        assert!(envelope.open(vec![0; PAYLOAD_BYTES_MAX + 1].into(), &home()).unwrap_err().contains("payload"));
    }

    #[test]
    fn a_dead_letter_that_a_queue_refused_may_be_shipped_at_once() {
        let (event, history) = longest();
        let burial = |unshippable: Option<&str>| {
            let unshippable = unshippable.map(str::to_owned);
            Some(Burial { reason: BuryReason::Refused, at: UnixMillis(5), unshippable })
        };
        let history = History { burial: burial(Some("too large")), ..history };
        let (envelope, payload) = Envelope::seal(event, history);
        let handed = envelope.open(payload, &home()).unwrap();
        assert_eq!((handed.history.burial, handed.history.due), (burial(None), UnixMillis(0)));
    }
}
