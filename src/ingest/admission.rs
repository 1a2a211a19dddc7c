//! Accounts for the memory of requests. A request reserves memory as it needs it, and is refused rather than made to wait.
//!
//! Holds: a [`Permit`] covers the memory of its request, from its head to the last byte of its answer. It moves with that
//! memory: into the append to the outbox, which always runs to its end, and into the answer's body.
//! Limits: the sum of all permits is at most `request_bytes_max` (docs/adr/0017).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::request::Parts as Head;

use crate::event::PAYLOAD_BYTES_MAX;

/// The memory of a request without headers and body: its task, its buffers, and the one event that most requests
/// contain, also while that waits for the outbox's writer. It bounds the number of concurrent requests.
pub const SLOT_BYTES: u64 = 12 * 1024;

/// The memory of an event in a batch without its text: the parsed event, its entries in the writer's queue and commit,
/// and its line of the answer.
pub const EVENT_BYTES: u64 = 1024;

/// The memory of a header line without its text.
const HEADER_BYTES: u64 = 128;

/// The memory of a request with the largest headers, without its body.
pub const BESIDE_BODY_BYTES: u64 = SLOT_BYTES + 64 * 1024;

/// The smallest sensible `request_bytes_max`: a payload of 1 MiB fits twice, as text and as an event, with the largest
/// headers.
pub const REQUEST_BYTES_MIN: u64 = 4 * PAYLOAD_BYTES_MAX as u64;

/// The pool of memory for requests. Cheap to clone. All clones share one pool.
#[derive(Debug, Clone)]
pub struct Admission {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    used: AtomicU64,
    limit: u64,
}

impl Pool {
    fn take(&self, bytes: u64) -> Result<(), Crowded> {
        let fits = |used: u64| used.checked_add(bytes).filter(|total| *total <= self.limit);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map(drop).map_err(|used| Crowded { used, limit: self.limit })
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Admission {
    /// A pool of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { pool: Arc::new(Pool { used: AtomicU64::new(0), limit }) }
    }

    /// Reserves the memory of a request with this head, without its body. The error says how much is in use.
    pub fn admit(&self, head: &Head) -> Result<Permit, Crowded> {
        self.set_aside(SLOT_BYTES.saturating_add(head_bytes(head)))
    }

    /// Reserves this many bytes.
    pub fn set_aside(&self, bytes: u64) -> Result<Permit, Crowded> {
        self.pool.take(bytes)?;
        Ok(Permit { pool: Arc::clone(&self.pool), bytes })
    }
}

/// The memory of a request's head.
fn head_bytes(head: &Head) -> u64 {
    let path = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let lines = head.headers.iter().map(|(name, value)| HEADER_BYTES + (name.as_str().len() + value.len()) as u64);
    path as u64 + lines.sum::<u64>()
}

/// Why a request was not admitted. All numbers are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crowded {
    pub used: u64,
    pub limit: u64,
}

/// Reserved memory. Dropping it returns it to the pool.
#[derive(Debug)]
#[must_use = "dropping the permit gives the memory back"]
pub struct Permit {
    pool: Arc<Pool>,
    bytes: u64,
}

impl Permit {
    /// Reserves this many more bytes, or none.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Crowded> {
        self.pool.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Whether this many more bytes could be reserved now. Does not reserve them.
    pub fn could_grow(&self, bytes: u64) -> Result<(), Crowded> {
        let used = self.pool.used.load(Ordering::Relaxed);
        let fits = used.checked_add(bytes).is_some_and(|total| total <= self.pool.limit);
        if fits { Ok(()) } else { Err(Crowded { used, limit: self.pool.limit }) }
    }

    /// Returns all but this many bytes to the pool.
    pub fn keep(&mut self, bytes: u64) {
        let spare = self.bytes.saturating_sub(bytes);
        self.pool.give_back(spare);
        self.bytes -= spare;
    }

    /// Whether more than half of the pool is in use. Slow clients are then given up.
    pub fn is_scarce(&self) -> bool {
        self.pool.used.load(Ordering::Relaxed) > self.pool.limit / 2
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.pool.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(headers: usize) -> Head {
        let mut request = Request::post("/v1/events");
        for n in 0..headers {
            request = request.header(format!("x-{n:04}"), "v");
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn memory_is_set_aside_up_to_the_limit_and_given_back_on_drop() {
        let admission = Admission::new(200);
        let mut first = admission.set_aside(100).unwrap();
        let second = admission.set_aside(50).unwrap();
        assert_eq!(first.grow(51), Err(Crowded { used: 150, limit: 200 }));
        assert_eq!(first.could_grow(51), Err(Crowded { used: 150, limit: 200 }));
        assert_eq!((first.could_grow(50), first.grow(50)), (Ok(()), Ok(())));
        assert!(admission.set_aside(1).is_err());
        first.keep(10);
        first.keep(20);
        assert_eq!(admission.pool.used.load(Ordering::Relaxed), 60);
        drop((first, second));
        assert_eq!(admission.pool.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_absurd_length_is_refused_without_overflow() {
        let admission = Admission::new(u64::MAX);
        let mut held = admission.set_aside(1).unwrap();
        assert!(admission.set_aside(u64::MAX).is_err());
        assert!(held.grow(u64::MAX).is_err() && held.could_grow(u64::MAX).is_err());
    }

    #[test]
    fn requests_without_a_body_take_a_slot_each_and_many_headers_take_more() {
        let admission = Admission::new(3 * (SLOT_BYTES + 100));
        let held: Vec<_> = (0..3).map(|_| admission.admit(&head(0)).unwrap()).collect();
        assert!(admission.admit(&head(0)).is_err());
        drop(held);
        let one = Admission::new(SLOT_BYTES + 100 * HEADER_BYTES);
        assert!(one.admit(&head(90)).is_ok());
        assert!(one.admit(&head(100)).is_err());
    }

    #[test]
    fn memory_is_scarce_once_more_than_half_of_it_is_in_use() {
        let admission = Admission::new(100);
        let mut held = admission.set_aside(50).unwrap();
        assert!(!held.is_scarce());
        held.grow(1).unwrap();
        assert!(held.is_scarce());
    }
}
