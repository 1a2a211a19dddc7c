//! The memory for bodies of the operator's API: those of requests, and large ones of answers.
//!
//! Holds: a request's body takes its memory as it arrives, and keeps it until its request is answered, also if its client
//! has left: its parsed parts wait in the outbox's queue. An answer keeps its memory until the client has taken it, so
//! clients that ask and do not read cannot take more than there is. Nothing waits for memory: several bodies that are half
//! read would then wait for each other.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most bytes of a request's body, which is axum's limit for JSON.
pub(super) const BODY_BYTES_MAX: usize = 2 << 20;

/// The memory for all bodies together. The formula in docs/operations.md includes it.
pub const MEMORY_MAX: usize = 32 << 20;

/// The part of it that only answers get, so that bodies which are half read leave room for metrics and status.
const RESERVE: usize = 4 << 20;

/// The memory of each byte of a body: the body itself, whose buffer may be twice as large, the JSON of each letter, and
/// its payload.
const COST: usize = 4;

/// What a byte of an answer takes: it is written into a buffer that grows by doubling.
const ANSWER_COST: usize = 2;

/// Answers up to this many bytes are not counted. They are part of what a connection takes, and include every refusal.
const SMALL: usize = 4 * 1024;

/// The memory is counted in pieces of this many bytes.
const PIECE: usize = 1024;

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// Longer than [`BODY_BYTES_MAX`], or incomplete.
    TooLarge,
    /// Other bodies use the memory.
    Crowded,
}

/// The memory. Cheap to clone. All clones share it.
#[derive(Debug, Clone)]
pub struct Bodies {
    shared: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
}

impl Default for Bodies {
    fn default() -> Self {
        Self::new(MEMORY_MAX - RESERVE, RESERVE)
    }
}

impl Bodies {
    fn new(shared: usize, reserve: usize) -> Self {
        let pieces = |bytes: usize| Arc::new(Semaphore::new(bytes / PIECE));
        Self { shared: pieces(shared), reserve: pieces(reserve) }
    }

    /// Reads the whole body. Returns it with its memory.
    pub(super) async fn read(&self, mut body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Unread> {
        let mut memory = self.take(PIECE)?;
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Unread::TooLarge)?.into_data() else { continue };
            if bytes.len() + data.len() > BODY_BYTES_MAX {
                return Err(Unread::TooLarge);
            }
            memory.merge(self.take(data.len() * COST)?);
            bytes.extend_from_slice(&data);
        }
        Ok((bytes.freeze(), memory))
    }

    /// The answer, whose body holds its memory until it has been sent. Fails if there is none left.
    pub(super) async fn hold(&self, answer: Response) -> Result<Response, Unread> {
        let size = answer.body().size_hint().lower();
        let Ok(size) = usize::try_from(size) else { return Err(Unread::Crowded) };
        if size <= SMALL {
            return Ok(answer);
        }
        let memory = self.take(size * ANSWER_COST).or_else(|_| take(&self.reserve, size * ANSWER_COST))?;
        let (head, body) = answer.into_parts();
        let Ok(body) = body.collect().await else { return Err(Unread::Crowded) };
        // HTTP/2 queues a body's data after it has let go of the body, so the data itself must hold the memory.
        let held = Bytes::from_owner(Held { bytes: body.to_bytes(), _memory: memory });
        Ok(Response::from_parts(head, Body::from(held)))
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Unread> {
        take(&self.shared, bytes)
    }
}

fn take(from: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Unread> {
    let pieces = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX);
    Arc::clone(from).try_acquire_many_owned(pieces).map_err(|_| Unread::Crowded)
}

/// The bytes of an answer, and their memory.
struct Held {
    bytes: Bytes,
    _memory: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_that_are_not_taken_hold_their_memory_and_further_ones_are_refused() {
        let bodies = Bodies::new(32 << 10, 0);
        let answer = |bytes: usize| Response::new(Body::from(vec![b' '; bytes]));
        let first = bodies.hold(answer(10 << 10)).await.unwrap();
        assert!(matches!(bodies.hold(answer(10 << 10)).await, Err(Unread::Crowded)));
        assert!(bodies.hold(answer(SMALL)).await.is_ok(), "refusals and probes are always answered");
        // HTTP/2 drops the body once it has its data, and keeps the data until the client's window opens.
        let data = first.into_body().collect().await.unwrap().to_bytes();
        assert!(bodies.hold(answer(10 << 10)).await.is_err());
        drop(data);
        assert!(bodies.hold(answer(10 << 10)).await.is_ok());
    }

    #[tokio::test]
    async fn bodies_that_are_half_read_leave_room_for_answers() {
        let bodies = Bodies::new(16 << 10, 16 << 10);
        let body = || Body::from(vec![b' '; 3 << 10]);
        let (_, _held) = bodies.read(body()).await.unwrap();
        assert_eq!(bodies.read(body()).await.unwrap_err(), Unread::Crowded);
        let answer = || Response::new(Body::from(vec![b' '; 5 << 10]));
        let _first = bodies.hold(answer()).await.unwrap();
        assert!(matches!(bodies.hold(answer()).await, Err(Unread::Crowded)), "the reserve has an end, too");
    }

    #[tokio::test]
    async fn bodies_take_memory_until_their_requests_are_answered_and_no_more_than_there_is() {
        let bodies = Bodies::new(16 << 10, 0);
        let body = || Body::from(vec![b' '; 1_024]);
        let (read, first) = bodies.read(body()).await.unwrap();
        assert_eq!(read.len(), 1_024);
        let (_, second) = bodies.read(body()).await.unwrap();
        let (_, third) = bodies.read(body()).await.unwrap();
        assert_eq!(bodies.read(body()).await.unwrap_err(), Unread::Crowded);
        drop(first);
        assert!(bodies.read(body()).await.is_ok());
        drop((second, third));
        let large = Body::from(vec![b' '; BODY_BYTES_MAX + 1]);
        assert_eq!(Bodies::default().read(large).await.unwrap_err(), Unread::TooLarge);
        assert_eq!(bodies.shared.available_permits(), 16, "a refusal gives everything back");
    }
}
