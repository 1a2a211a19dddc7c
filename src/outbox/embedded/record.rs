//! The versioned encodings of event records, lane records and remembered keys.
//!
//! An event has a *body* (what the client sent, never changes) and a *history* (small, rewritten by every retry). A short
//! body is in the record together with the history. A longer one is stored in separate chunks.
//!
//! To change a format, add a new version, write only that, read both, and keep a fixture of the old one. A record of an
//! unknown version is refused.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::event::sendable::region_in;
use crate::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use crate::outbox::{Count, History, Spent};

/// The version of every kind of record that this build writes.
pub const VERSION: u8 = 1;

/// The largest value in the store, in bytes, and so the most that one read of the journal returns.
pub const VALUE_BYTES_MAX: usize = 65_536;

/// Bodies up to this many bytes are in the record, and every retry rewrites them with the history.
pub const INLINE_BYTES_MAX: usize = 1536;

/// The usual size of a head. This many bytes are read first.
const HEAD_BYTES: usize = 128;

/// Why stored bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("record version {0} is newer than this build's {VERSION}; run the sendoff that wrote it, or a later one")]
    Newer(u8),
    #[error("record is damaged: {0}")]
    Damaged(&'static str),
}

/// An event's record: its history, and its body if that is short.
#[derive(Debug, Clone)]
pub struct Record {
    pub history: History,
    pub body_bytes: u32,
    /// Empty if the body is in chunks.
    pub inline: Bytes,
}

#[derive(Serialize, Deserialize)]
struct StateV1 {
    history: History,
    body_bytes: u32,
}

impl Record {
    /// The record for a body from [`encode_body`].
    pub fn new(history: History, body: &Bytes) -> Self {
        let inline = if body.len() > INLINE_BYTES_MAX { Bytes::new() } else { body.clone() };
        Self { history, body_bytes: u32::try_from(body.len()).unwrap_or(u32::MAX), inline }
    }

    pub fn encode(&self) -> Vec<u8> {
        let state = StateV1 { history: self.history.clone().bounded(), body_bytes: self.body_bytes };
        let head = versioned(&state);
        let mut bytes = Vec::with_capacity(head.len() + self.inline.len());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&self.inline);
        bytes
    }

    pub fn decode(bytes: &Bytes) -> Result<Self, Unreadable> {
        let (state, rest) = split_version::<StateV1>(bytes)?;
        let inline = bytes.slice_ref(rest);
        let expected = if chunk_count(state.body_bytes) == 0 { state.body_bytes as usize } else { 0 };
        if inline.len() != expected {
            return Err(Unreadable::Damaged("length of the body in an event record"));
        }
        Ok(Self { history: state.history, body_bytes: state.body_bytes, inline })
    }
}

/// The number of chunks of a body with this many bytes. 0 if it is in the record.
pub fn chunk_count(body_bytes: u32) -> u16 {
    if body_bytes as usize <= INLINE_BYTES_MAX {
        return 0;
    }
    u16::try_from((body_bytes as usize).div_ceil(VALUE_BYTES_MAX)).unwrap_or(u16::MAX)
}

/// The chunks of a body that is not in its record.
pub fn chunks(body: &Bytes) -> impl Iterator<Item = (u16, Bytes)> + '_ {
    let count = chunk_count(u32::try_from(body.len()).unwrap_or(u32::MAX));
    (0..count).map(move |index| {
        let from = usize::from(index) * VALUE_BYTES_MAX;
        (index, body.slice(from..body.len().min(from + VALUE_BYTES_MAX)))
    })
}

#[derive(Serialize)]
struct BodyOutV1<'a> {
    address: Option<&'a str>,
    qualifier: Option<&'a str>,
    region: Option<&'a str>,
    key: &'a str,
    key_source: KeySource,
    carried: &'a Carried,
    deliver_at: Option<UnixMillis>,
    expires_at: Option<UnixMillis>,
    redrives: u32,
}

#[derive(Deserialize)]
struct BodyInV1 {
    address: Option<String>,
    qualifier: Option<String>,
    region: Option<String>,
    key: String,
    key_source: KeySource,
    carried: Carried,
    deliver_at: Option<UnixMillis>,
    expires_at: Option<UnixMillis>,
    redrives: u32,
}

/// What the client sent, payload last. The lane has the function's canonical name, the id the time of acceptance.
pub fn encode_body(event: &Event) -> Bytes {
    let address = &event.function.address;
    let head = BodyOutV1 {
        address: (address != event.function.name.as_str()).then_some(address),
        qualifier: event.function.qualifier.as_deref(),
        region: event.function.region.as_deref(),
        key: &event.key.value,
        key_source: event.key.source,
        carried: &event.carried,
        deliver_at: event.deliver_at,
        expires_at: event.expires_at,
        redrives: event.redrives,
    };
    let head = versioned(&head);
    let mut body = BytesMut::with_capacity(head.len() + event.payload.len());
    body.put_slice(&head);
    body.put_slice(&event.payload);
    body.freeze()
}

/// The event of a body; the payload shares the body's memory.
pub fn decode_body(id: EventId, name: &FunctionName, body: &Bytes) -> Result<Event, Unreadable> {
    let (head, rest) = split_version::<BodyInV1>(body)?;
    Ok(Event {
        id,
        function: Function {
            name: name.clone(),
            // Earlier versions left out the daemon's own region.
            region: head.region.or_else(|| head.address.as_deref().and_then(region_in).map(str::to_owned)),
            address: head.address.unwrap_or_else(|| name.as_str().to_owned()),
            qualifier: head.qualifier,
        },
        key: IdempotencyKey { value: head.key, source: head.key_source },
        carried: head.carried,
        payload: body.slice_ref(rest),
        accepted_at: id.accepted_at(),
        deliver_at: head.deliver_at,
        expires_at: head.expires_at,
        redrives: head.redrives,
    })
}

/// A lane: its function, what it holds, by state in the order of `Place::ALL`, whether an operator has paused it, what it has
/// spent, and whether it is proven.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaneRecord {
    pub function: FunctionName,
    pub counts: [Count; 4],
    pub paused: bool,
    pub spent: Spent,
    /// Lambda has taken an event for this function at least once. A byte behind the rest of the record, written only for a
    /// proven lane. Records from before it have none, and builds from before it do not read that far.
    #[serde(skip)]
    pub proven: bool,
}

/// The byte behind the record of a proven lane.
const PROVEN: u8 = 1;

impl LaneRecord {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = versioned(self);
        if self.proven {
            bytes.push(PROVEN);
        }
        exact(bytes)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (record, rest) = split_version::<Self>(bytes)?;
        Ok(Self { proven: rest.first() == Some(&PROVEN), ..record })
    }
}

/// A remembered key: its event, the payload's fingerprint, and how long to remember it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    pub first: EventId,
    /// The first 16 bytes of the payload's SHA-256.
    pub fingerprint: [u8; 16],
    pub expires_at: UnixMillis,
}

impl KeyRecord {
    pub fn encode(&self) -> Vec<u8> {
        exact(versioned(self))
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        split_version(bytes).map(|(record, _)| record)
    }
}

fn versioned(value: &impl Serialize) -> Vec<u8> {
    // Encoding plain data cannot fail. An empty value would be refused when read.
    let mut bytes = Vec::with_capacity(HEAD_BYTES);
    bytes.push(VERSION);
    postcard::to_extend(value, bytes).unwrap_or_default()
}

/// Allocates no more than needed, because the value may stay in memory for a while.
fn exact(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_boxed_slice().into_vec()
}

fn split_version<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), Unreadable> {
    match bytes.split_first() {
        None => Err(Unreadable::Damaged("empty")),
        Some((&version, _)) if version > VERSION => Err(Unreadable::Newer(version)),
        Some((0, _)) => Err(Unreadable::Damaged("version 0")),
        Some((_, rest)) => postcard::take_from_bytes(rest).map_err(|_| Unreadable::Damaged("does not parse")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::outbox::{Burial, BuryReason, LastOutcome};

    fn event(address: &str, key: &str, payload: Vec<u8>) -> Event {
        let name = FunctionName::new("orders:prod");
        Event {
            id: EventId::mint(UnixMillis(1_790_000_000_000), 42, &name),
            function: Function { name, address: address.into(), qualifier: Some("prod".into()), region: None },
            key: IdempotencyKey { value: key.into(), source: KeySource::Header },
            carried: Carried { trace_header: Some("Root=1-2-3".into()), ..Carried::default() },
            payload: payload.into(),
            accepted_at: UnixMillis(1_790_000_000_000),
            deliver_at: None,
            expires_at: Some(UnixMillis(1_790_000_100_000)),
            redrives: 2,
        }
    }

    fn history() -> History {
        History {
            attempts: 3,
            calls: 9,
            due: UnixMillis(77),
            last: Some(LastOutcome {
                at: UnixMillis(76),
                status: 429,
                code: "TooManyRequestsException".into(),
                message: "x".repeat(1024),
                request_id: Some("e1e2".into()),
            }),
            burial: Some(Burial { reason: BuryReason::RetriesExhausted, at: UnixMillis(78), unshippable: None }),
            ..History::default()
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(address in ".{0,300}", key in ".{1,255}", payload in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let event = event(&address, &key, payload);
            let body = encode_body(&event);
            prop_assert_eq!(&decode_body(event.id, &event.function.name, &body).unwrap(), &event);

            let record = Record::new(history(), &body);
            let bytes = Bytes::from(record.encode());
            prop_assert!(bytes.len() <= VALUE_BYTES_MAX);
            let back = Record::decode(&bytes).unwrap();
            prop_assert_eq!(&back.history, &record.history);
            let joined: Vec<u8> = match chunk_count(back.body_bytes) {
                0 => back.inline.to_vec(),
                _ => chunks(&body).flat_map(|(_, chunk)| chunk.to_vec()).collect(),
            };
            prop_assert_eq!(&joined[..], &body[..]);
        }

        #[test]
        fn damaged_bytes_are_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let name = FunctionName::new("f");
            drop(Record::decode(&bytes));
            drop(decode_body(EventId::from_bytes([0; 16]), &name, &bytes));
            drop(LaneRecord::decode(&bytes));
            drop(KeyRecord::decode(&bytes));
        }
    }

    #[test]
    fn a_lane_is_proven_by_a_byte_that_earlier_records_do_not_have() {
        let function = FunctionName::new("orders");
        let lane = LaneRecord {
            function,
            counts: [Count::default(); 4],
            paused: true,
            spent: Spent::default(),
            proven: false,
        };
        let (before, proven) = (lane.encode(), LaneRecord { proven: true, ..lane }.encode());
        assert_eq!([&before[..], &[PROVEN]].concat(), proven, "all that earlier builds read is the same");
        for (bytes, expected) in [(before, false), (proven, true)] {
            let read = LaneRecord::decode(&bytes).unwrap();
            assert_eq!((read.proven, read.paused), (expected, true));
        }
    }

    #[test]
    fn no_chunk_is_larger_than_the_engine_takes_inline() {
        let body = Bytes::from(vec![7; 1_048_576 + 5000]);
        assert_eq!(chunks(&body).count(), usize::from(chunk_count(body.len() as u32)));
        assert!(chunks(&body).all(|(_, chunk)| chunk.len() <= VALUE_BYTES_MAX && !chunk.is_empty()));
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = Record::new(history(), &Bytes::from_static(b"{}")).encode();
        bytes[0] = VERSION + 1;
        assert_eq!(Record::decode(&bytes.into()).unwrap_err(), Unreadable::Newer(VERSION + 1));
    }
}
