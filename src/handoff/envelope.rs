//! An event that is handed over, as it travels: everything except its payload, as JSON. A peer gets it in a line of NDJSON,
//! a queue as an attribute of a message. Pure.
//!
//! Fields that a later version adds have defaults, and a receiver ignores fields that it does not know. A change that a
//! receiver must understand raises [`FORMAT`].

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::{MILLIS_MAX, UnixMillis};
use crate::event::check::{Fields, check_carried, is_key};
use crate::event::name::Home;
use crate::event::{
    Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KEY_CHARS_MAX, KeySource, PAYLOAD_BYTES_MAX,
};
use crate::outbox::handoff::{Handed, place_of};
use crate::outbox::{Burial, History, LastOutcome, Place};

/// The version of the envelope. A receiver refuses a later one.
pub const FORMAT: u32 = 1;

/// The most bytes of an envelope. The longest possible one has about 20 KiB: a client context, an address, a key, and the
/// texts of its history, escaped as JSON.
pub const ENVELOPE_BYTES_MAX: usize = 64 << 10;

/// How far ahead of the receiver's clock a time may be at which something is to happen. Clients may ask for 366 days; the
/// rest is for clocks that differ.
const AHEAD_MAX: Duration = Duration::from_secs(367 * 24 * 3_600);

/// The most attempts, calls, throttles, setbacks or redrives of an event. No sender comes near it, and the receiver adds to
/// these counts.
const COUNT_MAX: u32 = 1_000_000_000;

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
    /// Whether an operator has paused the function at the sender. The receiver then pauses it, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
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
            paused: false,
        };
        (envelope, payload)
    }

    /// Puts the event together again. Trusts nothing in it: refuses what no sendoff could have stored, and what means another
    /// function here than it did there. The error says why.
    ///
    /// An event that is to be delivered later waits for that time, also if an operator has brought it forward at the sender.
    pub fn open(self, payload: Bytes, home: &Home, now: UnixMillis) -> Result<Handed, String> {
        self.check_values(&payload)?;
        self.check_times(now)?;
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
            paused,
        } = self;
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
        // The region decides where credentials go, so only the address may name it.
        if region.is_some() && region != found.region {
            return Err("its region is not the one in its function's address".to_owned());
        }
        let event = Event {
            id,
            function: found,
            key: IdempotencyKey { value: key, source: key_source },
            carried,
            payload,
            accepted_at: id.accepted_at(),
            deliver_at,
            expires_at,
            redrives,
        };
        let history = at_home(&event, history, now);
        Ok(Handed { event, history, paused })
    }

    /// Refuses values that no door accepts, and counts that no sender has.
    fn check_values(&self, payload: &[u8]) -> Result<(), String> {
        let Self { id, key, key_source, carried, redrives, history, .. } = self;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(format!("its payload has {} bytes of at most {PAYLOAD_BYTES_MAX}", payload.len()));
        }
        if !id.is_minted() {
            return Err("its id is not one that a sendoff makes: no UUID of version 7".to_owned());
        }
        if !is_key(key, Some(*key_source)) {
            return Err(format!(
                "its key does not have 1 to {KEY_CHARS_MAX} characters, none of them a control character"
            ));
        }
        check_carried(carried).map_err(|invalid| invalid.to_string())?;
        let History { attempts, calls, throttles, setbacks, due: _, last: _, burial: _ } = history;
        if [attempts, calls, throttles, setbacks, redrives].into_iter().any(|count| *count > COUNT_MAX) {
            return Err(format!("one of its counts is above {COUNT_MAX}"));
        }
        Ok(())
    }

    /// Refuses times that no clock shows, and those so far ahead that the event would wait for ever.
    fn check_times(&self, now: UnixMillis) -> Result<(), String> {
        let Self { id, deliver_at, expires_at, history, .. } = self;
        let History { due, last, burial, .. } = history;
        let last = last.as_ref().map(|LastOutcome { at, .. }| *at);
        let buried_at = burial.as_ref().map(|burial| burial.at);
        let all = [*deliver_at, *expires_at, Some(*due), Some(id.accepted_at()), last, buried_at];
        if all.into_iter().flatten().any(|time| time.0 > MILLIS_MAX) {
            return Err("one of its times is after the year 9999".to_owned());
        }
        let latest = UnixMillis(now.plus(AHEAD_MAX).0.min(MILLIS_MAX));
        for (what, time) in [
            ("was accepted", Some(id.accepted_at())),
            ("is to be delivered", *deliver_at),
            ("is to be attempted", Some(*due)),
        ] {
            if let Some(time) = time.filter(|time| *time > latest) {
                return Err(format!(
                    "it {what} at {}, more than {} days after this sendoff's time: correct the clocks",
                    time.rfc3339(),
                    AHEAD_MAX.as_secs() / 86_400
                ));
            }
        }
        Ok(())
    }
}

/// The history as the receiver keeps it: whatever it says, the event is not attempted before its `deliver_at`.
fn at_home(event: &Event, history: History, now: UnixMillis) -> History {
    // A queue that refused it there may accept it here.
    let refused = history.burial.as_ref().is_some_and(|burial| burial.unshippable.is_some());
    let burial = history.burial.map(|burial| Burial { unshippable: None, ..burial });
    let history = History { burial, ..history };
    let not_before = event.deliver_at.map_or(history.due, |at| history.due.max(at));
    match place_of(event, &history) {
        Place::Buried if refused => History { due: UnixMillis(0), ..history },
        // By the sender's clock its time had come when it was accepted. A setback makes it wait for that time here.
        Place::Ready if not_before > now && event.deliver_at.is_some() => {
            History { due: not_before, setbacks: 1, ..history }
        }
        Place::Scheduled | Place::Waiting => History { due: not_before, ..history },
        Place::Ready | Place::Buried => history,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::event::testing::event;
    use crate::outbox::{BuryReason, LastOutcome};

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn home() -> Home {
        Home { region: Some("eu-central-1".to_owned()), account_id: Some("123456789012".to_owned()) }
    }

    fn longest() -> (Event, History) {
        let clock = Clock::seeded(NOW, 1);
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
        let clock = Clock::seeded(NOW, 1);
        for (event, history) in [longest(), (event(&clock, "orders"), History::default())] {
            let (envelope, payload) = Envelope::seal(event.clone(), history.clone());
            let text = serde_json::to_string(&envelope).unwrap();
            assert!(text.len() < ENVELOPE_BYTES_MAX / 2, "{} bytes", text.len());
            let read: Envelope = serde_json::from_str(&text).unwrap();
            assert_eq!(read, envelope);
            let handed = read.open(payload, &home(), NOW).unwrap();
            assert!(handed == Handed { event, history, paused: false }, "{text}");
        }
    }

    #[test]
    fn fields_of_a_later_version_are_ignored_and_missing_ones_have_defaults() {
        let clock = Clock::seeded(NOW, 1);
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
        let why = envelope.clone().open(payload.clone(), &elsewhere, NOW).unwrap_err();
        assert!(why.contains("lambda.region"), "{why}");
        let forged = Envelope { function: FunctionName::new("invoices"), address: None, ..envelope.clone() };
        assert!(forged.open(payload.clone(), &home(), NOW).is_err());
        let keyless = Envelope { key: String::new(), ..envelope.clone() };
        assert!(keyless.open(payload, &home(), NOW).unwrap_err().contains("its key"));
        assert!(envelope.open(vec![0; PAYLOAD_BYTES_MAX + 1].into(), &home(), NOW).unwrap_err().contains("payload"));
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
        let handed = envelope.open(payload, &home(), NOW).unwrap();
        assert_eq!((handed.history.burial, handed.history.due), (burial(None), UnixMillis(0)));
    }

    /// What became of an event after a change to its envelope.
    fn changed(change: impl FnOnce(&mut Envelope)) -> Result<Handed, String> {
        let (event, history) = longest();
        let (mut envelope, payload) = Envelope::seal(event, history);
        change(&mut envelope);
        envelope.open(payload, &home(), NOW)
    }

    #[test]
    fn an_event_for_later_waits_for_its_time_whatever_the_envelope_says() {
        let at = longest().0.deliver_at.unwrap();
        for due in [UnixMillis(0), NOW, UnixMillis(at.0 - 1)] {
            let handed = changed(|envelope| envelope.history.due = due).unwrap();
            assert_eq!((handed.history.due, place_of(&handed.event, &handed.history)), (at, Place::Scheduled));
        }
        // Accepted, by its id, after the time at which it is to be delivered.
        let late = |envelope: &mut Envelope| {
            let name = FunctionName::new("us-east-1/orders:prod");
            envelope.id = EventId::mint(at.plus(Duration::from_secs(1)), 7, &name);
            envelope.history.due = UnixMillis(0);
        };
        let tried = changed(late).unwrap();
        assert_eq!((tried.history.due, place_of(&tried.event, &tried.history)), (at, Place::Waiting));
        let fresh = changed(|envelope| {
            late(envelope);
            envelope.history = History::default();
        });
        let fresh = fresh.unwrap();
        assert_eq!((fresh.history.due, place_of(&fresh.event, &fresh.history)), (at, Place::Waiting));
        let retry = UnixMillis(at.0 + 5_000);
        assert_eq!(changed(|envelope| envelope.history.due = retry).unwrap().history.due, retry, "a later time counts");
    }

    #[test]
    fn what_no_sendoff_could_have_stored_is_refused_and_the_error_says_what_it_is() {
        type Change = fn(&mut Envelope);
        const DAY_MS: u64 = 24 * 3_600 * 1_000;
        let changes: [(&str, Change); 16] = [
            ("above 1000000000", |envelope| envelope.history.attempts = u32::MAX),
            ("above 1000000000", |envelope| envelope.history.calls = u32::MAX),
            ("above 1000000000", |envelope| envelope.history.throttles = u32::MAX),
            ("above 1000000000", |envelope| envelope.history.setbacks = u32::MAX),
            ("above 1000000000", |envelope| envelope.redrives = u32::MAX),
            ("is to be attempted at", |envelope| envelope.history.due.0 = NOW.0 + 368 * DAY_MS),
            ("is to be delivered at", |envelope| envelope.deliver_at = Some(UnixMillis(NOW.0 + 368 * DAY_MS))),
            ("was accepted at", |envelope| {
                let name = FunctionName::new("us-east-1/orders:prod");
                envelope.id = EventId::mint(UnixMillis(NOW.0 + 368 * DAY_MS), 7, &name);
            }),
            ("after the year 9999", |envelope| envelope.expires_at = Some(UnixMillis(u64::MAX))),
            ("after the year 9999", |envelope| envelope.history.last.as_mut().unwrap().at = UnixMillis::MAX),
            ("after the year 9999", |envelope| {
                envelope.history.burial =
                    Some(Burial { reason: BuryReason::Refused, at: UnixMillis::MAX, unshippable: None });
            }),
            ("UUID of version 7", |envelope| {
                let mut bytes = *envelope.id.as_bytes();
                bytes[6] = 0x40 | (bytes[6] & 0x0f);
                envelope.id = EventId::from_bytes(bytes);
            }),
            ("none of them a control character", |envelope| envelope.key = "a\r\nx-evil: 1".to_owned()),
            ("its region", |envelope| envelope.region = Some("evil.example.com/#".to_owned())),
            ("trace_header", |envelope| envelope.carried.trace_header = Some("a\nb".to_owned())),
            ("tenantId", |envelope| envelope.carried.tenant_id = Some("a\r\nx: y".to_owned())),
        ];
        for (words, change) in changes {
            let why = changed(change).unwrap_err();
            assert!(why.contains(words), "{words}: {why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_opens_waits_for_its_time(
            due in proptest::prelude::any::<u64>(),
            at in proptest::option::of(0..NOW.0 * 2),
            accepted in 0..NOW.0 * 2,
            counts in proptest::prelude::any::<[u32; 4]>(),
            small: bool,
            buried: bool,
        ) {
            let handed = changed(|envelope| {
                let name = FunctionName::new("us-east-1/orders:prod");
                envelope.id = EventId::mint(UnixMillis(accepted), 7, &name);
                envelope.deliver_at = at.map(UnixMillis);
                let [attempts, calls, throttles, setbacks] = counts.map(|count| if small { count % 2 } else { count });
                let burial = buried.then_some(Burial { reason: BuryReason::Refused, at: NOW, unshippable: None });
                let due = UnixMillis(if small { due % (NOW.0 * 2) } else { due });
                envelope.history = History { attempts, calls, throttles, setbacks, due, last: None, burial };
            });
            if let Ok(Handed { event, history, .. }) = handed {
                let is_early = event.deliver_at.is_some_and(|at| at > NOW);
                match place_of(&event, &history) {
                    Place::Ready => proptest::prop_assert!(!is_early),
                    Place::Waiting | Place::Scheduled => {
                        proptest::prop_assert!(!is_early || event.deliver_at <= Some(history.due));
                    }
                    Place::Buried => {}
                }
            }
        }
    }
}
