//! What was committed lately and is not in the index yet, in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound::{Excluded, Included, Unbounded};

use bytes::Bytes;

use smallvec::SmallVec;

use super::entry::INLINE_BYTES_MAX;
use crate::outbox::embedded::journal::Location;

/// A key as an overlay has it: in place, as nearly all are short and tens of thousands are held and compared.
pub type Key = SmallVec<[u8; 24]>;

/// The newest writes to their keys. Limits: grows until it is handed to the index.
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
    /// No older value of this key is anywhere: if it goes, nothing need be remembered of it.
    pub is_new: bool,
}

/// What a key was set to.
#[derive(Debug, Clone)]
pub enum Value {
    Held(Bytes),
    /// As it stands in the journal.
    Journaled,
    /// The key was removed.
    Removed,
}

impl Value {
    /// Of what was read from a frame of the journal. It must not keep the frame in memory.
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

    /// Where its value stands in the journal, and the value if it is held; none if the key was removed.
    pub fn found(&self) -> Option<(Location, Option<Bytes>)> {
        match &self.value {
            Value::Held(value) => Some((self.at, Some(value.clone()))),
            Value::Journaled => Some((self.at, None)),
            Value::Removed => None,
        }
    }

    /// The bytes of a value that is held though the journal would do.
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
        // Whatever came before in here is superseded, what lies below is not.
        let is_new = if old.is_some() { was_new } else { slot.is_new };
        self.bytes += u64::from(slot.at.bytes);
        self.slots.insert(key, Slot { is_new, ..slot });
    }

    /// From `from` (included) to `to` (excluded).
    pub fn range(&self, from: &[u8], to: &[u8]) -> Range<'_, Key, Slot> {
        self.slots.range::<[u8], _>((Included(from), Excluded(to.max(from))))
    }

    /// All behind a key, or all there are.
    pub fn after(&self, key: Option<&Key>) -> Range<'_, Key, Slot> {
        self.slots.range::<Key, _>((key.map_or(Unbounded, Excluded), Unbounded))
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// As [`Slot::held`], of all.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The bytes in the journal of what has a value.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// The bytes of all ops that were noted, also of those that are superseded: about what a replay costs.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}
