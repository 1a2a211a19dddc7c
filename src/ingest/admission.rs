//! Reserve first: no body is read before the memory for it is set aside.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::PAYLOAD_BYTES_MAX;

/// What a request takes beside its body: its head, its task and its copy in the outbox's queue. It bounds the number of
/// requests at once, so that a flood of empty bodies is refused too.
pub const SLOT_BYTES: u64 = 16 * 1024;

/// The smallest sensible `request_bytes_max`: one request with the largest payload.
pub const REQUEST_BYTES_MIN: u64 = PAYLOAD_BYTES_MAX as u64 + SLOT_BYTES;

/// The memory for requests. Cheap to clone; all clones share one pool.
#[derive(Debug, Clone)]
pub struct Admission {
    used: Arc<AtomicU64>,
    limit: u64,
}

impl Admission {
    /// A pool of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { used: Arc::default(), limit }
    }

    /// Sets aside a slot and `body_bytes` of memory, or says how much is in use. Never waits.
    pub fn admit(&self, body_bytes: u64) -> Result<Permit, Crowded> {
        let bytes = body_bytes.saturating_add(SLOT_BYTES);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|total| *total <= self.limit)
            })
            .map_err(|used| Crowded { used, limit: self.limit })?;
        Ok(Permit { used: Arc::clone(&self.used), bytes })
    }
}

/// Why a request was not admitted, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crowded {
    pub used: u64,
    pub limit: u64,
}

/// Reserved memory; dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping the permit gives the memory back"]
pub struct Permit {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reserved_up_to_the_limit_and_given_back_on_drop() {
        let admission = Admission::new(2 * (SLOT_BYTES + 100));
        let first = admission.admit(100).unwrap();
        let second = admission.admit(100).unwrap();
        assert_eq!(admission.admit(0).unwrap_err(), Crowded { used: admission.limit, limit: admission.limit });
        drop(first);
        assert!(admission.admit(101).is_err());
        assert!(admission.admit(100).is_ok());
        drop(second);
        assert_eq!(admission.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_absurd_length_is_refused_without_overflow() {
        let admission = Admission::new(u64::MAX);
        let _held = admission.admit(1).unwrap();
        assert!(admission.admit(u64::MAX).is_err());
    }

    #[test]
    fn empty_bodies_take_a_slot_each() {
        let admission = Admission::new(3 * SLOT_BYTES);
        let held: Vec<_> = (0..3).map(|_| admission.admit(0).unwrap()).collect();
        assert!(admission.admit(0).is_err());
        drop(held);
    }
}
