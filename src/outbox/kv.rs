//! What the engine needs of a key-value store: ordered reads, and one atomic, durable commit at a time.

use std::collections::BTreeMap;

use bytes::Bytes;

/// An ordered map of bytes on stable storage. Used from one thread only (storage.md rules 1 and 5).
pub trait Kv: Send + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed>;

    /// The pairs from `from` (included) to `to` (excluded), in order.
    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>>;

    /// Writes all of the batch or nothing; on stable storage when it returns. After an error nothing is known any more:
    /// the caller must not use the store again.
    fn commit(&mut self, batch: &Batch) -> Result<(), Failed>;

    /// Bytes that the store takes, and that its disk has free.
    fn disk(&self) -> Disk;
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Disk {
    pub used: u64,
    pub free: u64,
}

/// A read or write that the store could not do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct Failed {
    pub doing: &'static str,
    pub why: String,
}

/// The writes of one commit; of several to one key the last counts.
#[derive(Debug, Default)]
pub struct Batch {
    writes: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl Batch {
    pub fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.writes.insert(key, Some(value.into()));
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    /// What this batch will make of a key: none if it does not touch it.
    pub fn pending(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.writes.get(key).map(Option::as_ref)
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub fn writes(&self) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        self.writes.iter().map(|(key, value)| (key.as_slice(), value.as_ref()))
    }
}
