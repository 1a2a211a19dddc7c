//! Recent commits that are not in the index yet, in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound::{Excluded, Included, Unbounded};

use bytes::Bytes;

use smallvec::SmallVec;

use super::entry::INLINE_BYTES_MAX;
use crate::outbox::embedded::journal::Location;

/// A key in an overlay, stored inline: nearly all keys are short, and tens of thousands are stored and compared.
pub type Key = SmallVec<[u8; 24]>;

/// The latest write to each key. Limits: grows until it is passed to the index.
#[derive(Debug, Default)]
pub struct Overlay {
    slots: BTreeMap<Key, Slot>,
    bytes: u64,
    live: u64,
    held: u64,
}

#[derive(Debug, Clone)]
pub struct Slot {
    pub value: Value,
    pub at: Location,
    /// The key has no older value. If it is removed, nothing need be kept.
    pub is_new: bool,
}

/// The write to a key.
#[derive(Debug, Clone)]
pub enum Value {
    Held(Bytes),
    /// A value in the journal.
    Journaled,
    /// The key was removed.
    Removed,
}

impl Value {
    /// Copies from a frame of the journal, so that it does not keep the frame in memory.
    pub fn read(value: Option<&Bytes>) -> Self {
        match value {
            Some(value) if is_long(value) => Self::Journaled,
            Some(value) => Self::Held(Bytes::copy_from_slice(value)),
            None => Self::Removed,
        }
    }
}

fn is_long(value: &Bytes) -> bool {
    value.len() > INLINE_BYTES_MAX
}

impl Slot {
    fn live(&self) -> u64 {
        match self.value {
            Value::Held(_) | Value::Journaled => u64::from(self.at.bytes),
            Value::Removed => 0,
        }
    }

    /// The location of its value in the journal, and the value if it is in memory. `None` if the key was removed.
    pub fn found(&self) -> Option<(Location, Option<Bytes>)> {
        match &self.value {
            Value::Held(value) => Some((self.at, Some(value.clone()))),
            Value::Journaled => Some((self.at, None)),
            Value::Removed => None,
        }
    }

    /// The bytes of a value that is kept in memory although it is in the journal.
    pub fn held(&self) -> u64 {
        match &self.value {
            Value::Held(value) if is_long(value) => value.len() as u64,
            Value::Held(_) | Value::Journaled | Value::Removed => 0,
        }
    }
}

impl Overlay {
    pub fn get(&self, key: &[u8]) -> Option<&Slot> {
        self.slots.get(key)
    }

    pub fn note(&mut self, key: Key, slot: Slot) {
        let old = self.slots.get(&key);
        let was_new = old.is_some_and(|old| old.is_new);
        self.live += slot.live();
        self.live -= old.map_or(0, Slot::live);
        self.held -= old.map_or(0, Slot::held);
        if matches!(slot.value, Value::Removed) && was_new {
            self.slots.remove(&key);
            return;
        }
        self.held += slot.held();
        // An older write in this overlay is superseded. One in the index is not.
        let is_new = if old.is_some() { was_new } else { slot.is_new };
        self.bytes += u64::from(slot.at.bytes);
        self.slots.insert(key, Slot { is_new, ..slot });
    }

    /// From `from` (included) to `to` (excluded).
    pub fn range(&self, from: &[u8], to: &[u8]) -> Range<'_, Key, Slot> {
        self.slots.range::<[u8], _>((Included(from), Excluded(to.max(from))))
    }

    /// All keys after this one, or all keys.
    pub fn after(&self, key: Option<&Key>) -> Range<'_, Key, Slot> {
        self.slots.range::<Key, _>((key.map_or(Unbounded, Excluded), Unbounded))
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The sum of [`Slot::held`] of all keys.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The journal bytes of all values.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// The bytes of all ops, including superseded ones. About what a replay costs.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}
