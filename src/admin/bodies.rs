//! The memory for bodies of the operator's API.
//!
//! Holds: a body takes its memory as it arrives, and keeps it until its request is answered, also if its client has gone: what was
//! parsed out of it waits in the outbox's queue. There is no waiting for memory: several bodies that are half read would then wait
//! for each other.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one body at most: what axum takes of JSON.
pub(super) const BODY_BYTES_MAX: usize = 2 << 20;

/// Memory for all bodies at once. docs/operations.md counts it.
pub(super) const MEMORY_MAX: usize = 32 << 20;

/// What a byte of a body takes: the body, which is read into a buffer of up to twice its size, the JSON of each letter, and its
/// payload.
const COST: usize = 4;

/// The memory is counted in pieces of so many bytes.
const PIECE: usize = 1024;

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// Longer than [`BODY_BYTES_MAX`], or torn.
    TooLarge,
    /// Other bodies take the memory.
    Crowded,
}

/// The memory. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Self::new(MEMORY_MAX)
    }
}

impl Bodies {
    fn new(memory: usize) -> Self {
        Self(Arc::new(Semaphore::new(memory / PIECE)))
    }

    /// The whole body, and the memory that it takes.
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

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Unread> {
        let pieces = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX);
        Arc::clone(&self.0).try_acquire_many_owned(pieces).map_err(|_| Unread::Crowded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_take_memory_until_their_requests_are_answered_and_no_more_than_there_is() {
        let bodies = Bodies::new(16 << 10);
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
        assert_eq!(bodies.0.available_permits(), 16, "a refusal gives everything back");
    }
}
