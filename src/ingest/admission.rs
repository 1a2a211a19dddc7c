//! The memory for requests: it is set aside as a request comes to need it, and never waited for.
//!
//! Holds: a [`Permit`] stands for what its request takes in memory, from its head to the last byte of its answer. It moves
//! with that memory: into the hand-over to the outbox, which nobody can cut short, and into the answer's body.
//! Limits: the sum of all permits is at most `request_bytes_max` (docs/adr/0017).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::request::Parts as Head;

use crate::event::PAYLOAD_BYTES_MAX;

/// What a request takes beside its headers and its body: its task, its buffers, and the one event that most requests
/// become, also while that waits for the outbox's writer. It bounds the number of requests at once.
pub const SLOT_BYTES: u64 = 12 * 1024;

/// What an event of a batch takes beside its text: the parsed event, its place in the writer's queue and in the writer's
/// turn, and its line of the answer.
pub const EVENT_BYTES: u64 = 1024;

/// What a header line takes beside its text.
const HEADER_BYTES: u64 = 128;

/// What a request with large headers takes beside its body.
pub const BESIDE_BODY_BYTES: u64 = SLOT_BYTES + 64 * 1024;

/// The smallest sensible `request_bytes_max`: a payload of 1 MiB fits twice, as text and as an event, whatever comes with it.
pub const REQUEST_BYTES_MIN: u64 = 4 * PAYLOAD_BYTES_MAX as u64;

/// The memory for requests. Cheap to clone; all clones share one pool.
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

    /// Sets aside what a request with this head takes before its body, or says how much is in use.
    pub fn admit(&self, head: &Head) -> Result<Permit, Crowded> {
        self.set_aside(SLOT_BYTES.saturating_add(head_bytes(head)))
    }

    /// Sets aside so many bytes.
    pub fn set_aside(&self, bytes: u64) -> Result<Permit, Crowded> {
        self.pool.take(bytes)?;
        Ok(Permit { pool: Arc::clone(&self.pool), bytes })
    }
}

/// What a request's head takes in memory.
fn head_bytes(head: &Head) -> u64 {
    let path = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let lines = head.headers.iter().map(|(name, value)| HEADER_BYTES + (name.as_str().len() + value.len()) as u64);
    path as u64 + lines.sum::<u64>()
}

/// Why a request was not admitted, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crowded {
    pub used: u64,
    pub limit: u64,
}

/// Memory that is set aside; dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping the permit gives the memory back"]
pub struct Permit {
    pool: Arc<Pool>,
    bytes: u64,
}

impl Permit {
    /// Sets so many bytes more aside, or none.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Crowded> {
        self.pool.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Whether so many bytes more would be set aside now; they are not.
    pub fn could_grow(&self, bytes: u64) -> Result<(), Crowded> {
        let used = self.pool.used.load(Ordering::Relaxed);
        let fits = used.checked_add(bytes).is_some_and(|total| total <= self.pool.limit);
        if fits { Ok(()) } else { Err(Crowded { used, limit: self.pool.limit }) }
    }

    /// Gives back all but so many bytes.
    pub fn keep(&mut self, bytes: u64) {
        let spare = self.bytes.saturating_sub(bytes);
        self.pool.give_back(spare);
        self.bytes -= spare;
    }

    /// Whether more than half of the pool is in use: then nobody may take his time.
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
