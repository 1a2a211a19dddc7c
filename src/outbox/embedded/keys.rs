//! The keys of the single ordered tree. It uses prefixes instead of several trees, because a commit must be one batch
//! (docs/adr/0001, rule 1).
//!
//! | key | value |
//! |---|---|
//! | `m` name | facts of the store: format, clock, next lane |
//! | `l` lane | [`LaneRecord`](super::record::LaneRecord) |
//! | `r` `w` `s` `b` lane id | [`Record`](super::record::Record) of a Ready, Waiting, Scheduled, Buried event |
//! | `p` id chunk | a chunk of the body |
//! | `t` lane due id | index of Waiting and Scheduled events by due time; value: the state's letter |
//! | `u` lane due id | index of Buried events by the time they may be shipped |
//! | `e` lane time id | index of events that are not Buried by their own `expires_at` |
//! | `k` `j` `i` digest | [`KeyRecord`](super::record::KeyRecord) of a given key, of an SDK's invocation id, of a redriven event |
//! | `h` id | [`KeyRecord`](super::record::KeyRecord) of an event that was adopted from another store |
//!
//! Numbers are big-endian, so that keys sort as numbers do; ids sort by time of acceptance.

use sha2::{Digest, Sha256};

use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName, IdempotencyKey, KeySource};
use crate::outbox::handoff::RememberedKey;
use crate::outbox::{LaneId, Place};

pub const META_FORMAT: &[u8] = b"mformat";
pub const META_CLOCK: &[u8] = b"mclock";
/// The steps of the wall clock, see [`Steps`](crate::clock::Steps). Versions that do not know this key ignore it.
pub const META_STEPS: &[u8] = b"msteps";
pub const META_NEXT_LANE: &[u8] = b"mlane";

const LANES: u8 = b'l';

const CHUNKS: u8 = b'p';

/// Adjacent letters, so that one scan sweeps all of them.
const ADOPTED: u8 = b'h';
const REDRIVEN: u8 = b'i';
const SDK_KEYS: u8 = b'j';
const GIVEN_KEYS: u8 = b'k';

/// The indexes by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// When to attempt.
    Attempt,
    /// When to ship.
    Ship,
    /// When to give up, if the event has an `expires_at`.
    Expiry,
}

impl Due {
    /// The index that lists events of a state.
    pub fn of(place: Place) -> Option<Self> {
        match place {
            Place::Ready => None,
            Place::Waiting | Place::Scheduled => Some(Self::Attempt),
            Place::Buried => Some(Self::Ship),
        }
    }

    fn prefix(self) -> u8 {
        match self {
            Self::Attempt => b't',
            Self::Ship => b'u',
            Self::Expiry => b'e',
        }
    }
}

/// The letter of a state.
pub fn letter(place: Place) -> u8 {
    match place {
        Place::Ready => b'r',
        Place::Waiting => b'w',
        Place::Scheduled => b's',
        Place::Buried => b'b',
    }
}

/// The state of a letter.
pub fn place(letter: u8) -> Option<Place> {
    Place::ALL.into_iter().find(|&place| self::letter(place) == letter)
}

pub fn lane(lane: LaneId) -> Vec<u8> {
    [&[LANES][..], &lane.0.to_be_bytes()].concat()
}

pub fn lane_of(key: &[u8]) -> Option<LaneId> {
    Some(LaneId(u32::from_be_bytes(key.get(1..5)?.try_into().ok()?)))
}

/// The lane in the key of an event or of an index by time. `None` for any other key.
pub fn lane_placed(key: &[u8]) -> Option<LaneId> {
    let is_due = |kind| [Due::Attempt, Due::Ship, Due::Expiry].into_iter().any(|index| index.prefix() == kind);
    let kind = *key.first()?;
    if place(kind).is_some() || is_due(kind) { lane_of(key) } else { None }
}

pub fn event(place: Place, lane: LaneId, id: EventId) -> Vec<u8> {
    [&[letter(place)][..], &lane.0.to_be_bytes(), id.as_bytes()].concat()
}

pub fn chunk(id: EventId, index: u16) -> Vec<u8> {
    [&[CHUNKS][..], id.as_bytes(), &index.to_be_bytes()].concat()
}

pub fn due(index: Due, lane: LaneId, due: UnixMillis, id: EventId) -> Vec<u8> {
    [&[index.prefix()][..], &lane.0.to_be_bytes(), &due.0.to_be_bytes(), id.as_bytes()].concat()
}

/// From the start of a lane's events of one state, or from an id in it, to the end.
pub fn events_from(place: Place, lane: LaneId, from: Option<EventId>) -> (Vec<u8>, Vec<u8>) {
    let start = from.unwrap_or(EventId::from_bytes([0; 16]));
    (event(place, lane, start), after(&event(place, lane, EventId::from_bytes([0xff; 16]))))
}

/// From a lane's first due event to the last that is due at `until`.
pub fn due_until(index: Due, lane: LaneId, until: UnixMillis) -> (Vec<u8>, Vec<u8>) {
    let first = due(index, lane, UnixMillis(0), EventId::from_bytes([0; 16]));
    let last = due(index, lane, until, EventId::from_bytes([0xff; 16]));
    (first, after(&last))
}

/// All lanes.
pub fn lanes() -> (Vec<u8>, Vec<u8>) {
    (vec![LANES], vec![LANES + 1])
}

/// All remembered keys.
pub fn all_remembered() -> (Vec<u8>, Vec<u8>) {
    (vec![ADOPTED], vec![GIVEN_KEYS + 1])
}

/// All events of one state.
pub fn all_events(place: Place) -> (Vec<u8>, Vec<u8>) {
    (vec![letter(place)], vec![letter(place) + 1])
}

/// All entries of one index.
pub fn all_due(index: Due) -> (Vec<u8>, Vec<u8>) {
    (vec![index.prefix()], vec![index.prefix() + 1])
}

/// All chunks of bodies.
pub fn all_chunks() -> (Vec<u8>, Vec<u8>) {
    (vec![CHUNKS], vec![CHUNKS + 1])
}

/// The event to which a chunk belongs.
pub fn id_of_chunk(key: &[u8]) -> Option<EventId> {
    Some(EventId::from_bytes(key.get(1..17)?.try_into().ok()?))
}

/// The first key after `key`.
pub fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// The id at the end of an event or due key.
pub fn id_of(key: &[u8]) -> Option<EventId> {
    Some(EventId::from_bytes(*key.last_chunk::<16>()?))
}

/// The time in a due key.
pub fn due_of(key: &[u8]) -> Option<UnixMillis> {
    Some(UnixMillis(u64::from_be_bytes(key.get(5..13)?.try_into().ok()?)))
}

/// Bytes of the key of a remembered key: its kind and a digest.
pub const REMEMBERED_BYTES: usize = RememberedKey::BYTES;

/// Where a key is remembered. `None` for a key that sendoff made, which cannot repeat. The scope of a key is the function
/// and, if the function isolates tenants, the tenant. SDK ids have their own scope and a shorter window.
pub fn remembered(function: &FunctionName, tenant: Option<&str>, key: &IdempotencyKey) -> Option<Vec<u8>> {
    let prefix = match key.source {
        KeySource::Minted => return None,
        KeySource::SdkInvocationId => SDK_KEYS,
        KeySource::Header
        | KeySource::DurableExecutionName
        | KeySource::Field
        | KeySource::ClientContext
        | KeySource::Expression
        | KeySource::CloudEvent => GIVEN_KEYS,
    };
    Some(match tenant {
        None => scoped(prefix, function, key.value.as_bytes()),
        // Tenant ids contain no control characters, so different pairs never give the same bytes.
        Some(tenant) => digest(prefix, &[function.as_str(), "\u{1}", tenant, "\0", &key.value].map(str::as_bytes)),
    })
}

/// An id that sorts before all events accepted at or after this time, and after those accepted before.
pub fn before(time: UnixMillis) -> EventId {
    let mut bytes = [0; 16];
    // A UUID of version 7 has the time in its first 48 bits, and its version, which is not 0, after them.
    bytes[..6].copy_from_slice(&time.0.min((1 << 48) - 1).to_be_bytes()[2..]);
    EventId::from_bytes(bytes)
}

/// Like [`remembered`], for an event.
pub fn remembered_of(event: &Event) -> Option<[u8; REMEMBERED_BYTES]> {
    remembered(&event.function.name, event.carried.tenant_id.as_deref(), &event.key)?.try_into().ok()
}

/// Whether a remembered key is an SDK's invocation id.
pub fn is_of_sdk(key: &[u8]) -> bool {
    key.first() == Some(&SDK_KEYS)
}

/// Where the return of a dead letter is remembered, by its name and the number of the redrive. Separate from clients'
/// keys, so that the letter is never taken for a repeat of the buried event.
pub fn redriven(function: &FunctionName, origin: &str, redrives: u32) -> Vec<u8> {
    scoped(REDRIVEN, function, &[&redrives.to_be_bytes(), origin.as_bytes()].concat())
}

/// Where the adoption of an event is remembered. Versions that do not know this prefix ignore it.
pub fn adopted(id: EventId) -> Vec<u8> {
    [&[ADOPTED][..], id.as_bytes()].concat()
}

/// Whether a key can be one of a remembered key.
pub fn is_remembered(key: &[u8]) -> bool {
    key.len() == REMEMBERED_BYTES && key.first().is_some_and(|kind| (ADOPTED..=GIVEN_KEYS).contains(kind))
}

fn scoped(prefix: u8, function: &FunctionName, value: &[u8]) -> Vec<u8> {
    // Function names contain no zero byte, so different pairs never give the same bytes.
    digest(prefix, &[function.as_str().as_bytes(), &[0], value])
}

fn digest(prefix: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    [&[prefix][..], &digest.finalize()[..REMEMBERED_BYTES - 1]].concat()
}

/// Distinguishes payloads with the same key: the first 16 bytes of SHA-256.
pub fn fingerprint(payload: &[u8]) -> [u8; 16] {
    let digest = Sha256::digest(payload);
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_keys_sort_by_lane_then_time() {
        let id = |n| EventId::from_bytes([n; 16]);
        let early = due(Due::Attempt, LaneId(1), UnixMillis(5), id(9));
        let late = due(Due::Attempt, LaneId(1), UnixMillis(256), id(1));
        let other = due(Due::Attempt, LaneId(2), UnixMillis(0), id(0));
        assert!(early < late && late < other);
        let (from, to) = due_until(Due::Attempt, LaneId(1), UnixMillis(5));
        assert!(from <= early && early < to && to <= late);
        assert_eq!(
            (due_of(&late), id_of(&late), lane_of(&late)),
            (Some(UnixMillis(256)), Some(id(1)), Some(LaneId(1)))
        );
    }

    #[test]
    fn a_range_of_events_holds_its_first_and_last_and_no_other_lane() {
        let (from, to) = events_from(Place::Ready, LaneId(7), None);
        for byte in [0, 0xff] {
            let key = event(Place::Ready, LaneId(7), EventId::from_bytes([byte; 16]));
            assert!(from <= key && key < to);
        }
        assert!(event(Place::Ready, LaneId(8), EventId::from_bytes([0; 16])) >= to);
    }

    #[test]
    fn keys_are_scoped_to_their_function_and_kind() {
        let key = |value: &str, source| IdempotencyKey { value: value.into(), source };
        let (f, g) = (FunctionName::new("f"), FunctionName::new("g"));
        let remembered = |function, key| remembered(function, None, &key);
        let given = remembered(&f, key("a", KeySource::Header));
        assert_eq!(given, remembered(&f, key("a", KeySource::Field)));
        assert_ne!(given, remembered(&g, key("a", KeySource::Header)));
        assert_ne!(given, remembered(&f, key("a", KeySource::SdkInvocationId)));
        assert_eq!(remembered(&f, key("a", KeySource::Minted)), None);
    }

    #[test]
    fn keys_are_scoped_to_their_tenant_and_no_two_pairs_run_together() {
        let key = |tenant, value: &str| {
            let key = IdempotencyKey { value: value.into(), source: KeySource::Header };
            remembered(&FunctionName::new("f"), tenant, &key).unwrap()
        };
        let pairs =
            [(None, "17"), (Some("a"), "17"), (Some("b"), "17"), (Some("a"), "7"), (Some("a1"), "7"), (None, "a")];
        let keys: std::collections::BTreeSet<_> = pairs.iter().map(|&(tenant, value)| key(tenant, value)).collect();
        assert_eq!(keys.len(), pairs.len());
        assert!(keys.iter().all(|key| key.len() == REMEMBERED_BYTES));
    }
}
