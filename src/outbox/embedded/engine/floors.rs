//! Remembers where a lane's first keys are, to skip removed ones.
//!
//! A queue is emptied from its front, and the store keeps tombstones of removed keys for a while. A search that starts at
//! the front would step over all of them each time.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::outbox::embedded::kv::Failed;

/// For each kind of key (its first byte): no key is below this one.
#[derive(Debug, Default)]
pub(super) struct Floors {
    by_kind: RefCell<BTreeMap<u8, Bytes>>,
}

impl Floors {
    /// A key was committed.
    pub(super) fn put(&mut self, key: &[u8]) {
        if let Some(floor) = key.first().and_then(|kind| self.by_kind.get_mut().get_mut(kind))
            && key < &floor[..]
        {
            *floor = Bytes::copy_from_slice(key);
        }
    }

    /// Records the result of a search from [`Floors::start`] to `to`. `key` is the key that was found.
    pub(super) fn noting<T, I: Iterator<Item = Result<T, Failed>>>(
        &self,
        mut found: I,
        to: &[u8],
        key: fn(&T) -> &Bytes,
    ) -> impl Iterator<Item = Result<T, Failed>> + use<T, I> {
        let first = found.next();
        let floor = match &first {
            Some(Ok(first)) => Some(key(first).clone()),
            Some(Err(_)) => None,
            None => Some(Bytes::copy_from_slice(to)),
        };
        self.raise(floor);
        first.into_iter().chain(found)
    }

    /// Where a search of a lane's whole range, from `from` to `to`, may begin. `None` if there is nothing to find.
    pub(super) fn start(&self, from: &[u8], to: &[u8]) -> Option<Bytes> {
        let by_kind = self.by_kind.borrow();
        match from.first().and_then(|kind| by_kind.get(kind)) {
            Some(floor) if from < &floor[..] => (floor[..] < *to).then(|| floor.clone()),
            Some(_) | None => Some(Bytes::copy_from_slice(from)),
        }
    }

    fn raise(&self, floor: Option<Bytes>) {
        let Some((floor, kind)) = floor.and_then(|floor| Some((floor.clone(), *floor.first()?))) else { return };
        let mut by_kind = self.by_kind.borrow_mut();
        // A search with an earlier end has seen less than a previous one.
        if by_kind.get(&kind).is_none_or(|known| *known < floor) {
            by_kind.insert(kind, floor);
        }
    }
}
