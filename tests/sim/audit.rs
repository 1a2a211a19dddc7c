//! Opens a copy of the disk as the next start would. Checks that all events are there and that the parts of the store
//! fit together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use sendoff::event::{EventId, FunctionName};
use sendoff::outbox::embedded::keys::{self, Due};
use sendoff::outbox::embedded::record::{LaneRecord, Record, chunk_count, decode_body};
use sendoff::outbox::{LaneId, Place};

use crate::ledger::serial_of;
use crate::world::World;

/// Checks what the disk would contain if the power went now.
pub fn audit(world: &Arc<World>) {
    let found = world.disk.synced(crate::disk::settings(&world.scenario));
    let stored = match found.and_then(|pairs| fits_together(&pairs)) {
        Ok(stored) => stored,
        Err(why) => return world.violated("G2", format!("the store does not fit together: {why}")),
    };
    let lost = {
        let ledger = world.ledger();
        ledger.lost(&ledger.nowhere(&stored))
    };
    for what in lost {
        world.violated("G2", what);
    }
}

/// Returns the events of a store, with the serial numbers in their payloads. An error if an index entry, count or chunk belongs to no record, or a record lacks
/// its own.
pub fn fits_together(pairs: &BTreeMap<Vec<u8>, Bytes>) -> Result<BTreeMap<EventId, u64>, String> {
    let mut counts: BTreeMap<(LaneId, u8), u64> = BTreeMap::new();
    let mut expected: BTreeSet<Vec<u8>> = BTreeSet::new();
    let (mut stored, mut buried) = (BTreeMap::new(), BTreeSet::new());
    for (key, value) in pairs {
        let Some(place) = keys::place(key[0]) else { continue };
        let (Some(lane), Some(id)) = (keys::lane_of(key), keys::id_of(key)) else {
            return Err("a record's key is short".into());
        };
        let record = Record::decode(value).map_err(|error| error.to_string())?;
        if stored.insert(id, serial_in(pairs, id, &record)?).is_some() {
            return Err(format!("{id} has two records"));
        }
        *counts.entry((lane, key[0])).or_default() += 1;
        expected.extend((0..chunk_count(record.body_bytes)).map(|index| keys::chunk(id, index)));
        match place {
            Place::Ready => {}
            Place::Waiting | Place::Scheduled => {
                expected.insert(keys::due(Due::Attempt, lane, record.history.due, id));
            }
            Place::Buried => {
                buried.insert(id);
                expected.insert(keys::due(Due::Ship, lane, record.history.due, id));
            }
        }
    }
    for key in pairs.keys().filter(|key| matches!(key[0], b'p' | b't' | b'u')) {
        if !expected.remove(key) {
            return Err(format!("{} {:02x?} belongs to no event", key[0] as char, key));
        }
    }
    // The body of an event says whether it has an `expires_at`. No other event may be in that index.
    for key in pairs.keys().filter(|key| key[0] == b'e') {
        if keys::id_of(key).is_none_or(|id| !stored.contains_key(&id) || buried.contains(&id)) {
            return Err(format!("an expiry {key:02x?} belongs to no waiting event"));
        }
    }
    if let Some(key) = expected.first() {
        return Err(format!("{} {key:02x?} is missing", key[0] as char));
    }
    let (from, to) = keys::lanes();
    for (key, value) in pairs.range(from..to) {
        let lane = keys::lane_of(key).ok_or("a lane's key is short")?;
        let record = LaneRecord::decode(value).map_err(|error| error.to_string())?;
        for (place, count) in Place::ALL.into_iter().zip(record.counts) {
            let real = counts.remove(&(lane, keys::letter(place))).unwrap_or(0);
            if real != count.events {
                return Err(format!("{} counts {} {}, has {real}", record.function, count.events, place.as_str()));
            }
        }
    }
    if let Some(((lane, _), _)) = counts.first_key_value() {
        return Err(format!("lane {} has events and no record", lane.0));
    }
    Ok(stored)
}

/// The serial number in the payload of an event.
fn serial_in(pairs: &BTreeMap<Vec<u8>, Bytes>, id: EventId, record: &Record) -> Result<u64, String> {
    let chunks = (0..chunk_count(record.body_bytes)).map(|index| pairs.get(&keys::chunk(id, index)));
    let chunks: Option<Vec<&[u8]>> = chunks.map(|chunk| chunk.map(|chunk| &chunk[..])).collect();
    let chunks = chunks.ok_or_else(|| format!("{id} lacks a chunk"))?.concat();
    let body = if chunks.is_empty() { record.inline.clone() } else { chunks.into() };
    // The name only says what an address is short for.
    let event = decode_body(id, &FunctionName::new("any"), &body).map_err(|error| error.to_string())?;
    serial_of(&event.payload).ok_or_else(|| format!("{id} has a payload that nobody sent"))
}
