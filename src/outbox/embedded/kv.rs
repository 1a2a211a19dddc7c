//! The key-value store that the engine needs: ordered reads, and atomic, durable commits. Also the index that such a store
//! needs.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A key, and its value if that can be read.
pub type Pair = (Bytes, Result<Bytes, Failed>);

/// An ordered map of bytes on stable storage. Used from one thread only (docs/adr/0001, rules 1 and 5).
pub trait Kv: Send + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed>;

    /// The pairs from `from` (included) to `to` (excluded), in order.
    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>>;

    /// Like [`Kv::scan`], with a result for each value. An unreadable value does not end the scan.
    fn pairs(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Pair, Failed>> {
        self.scan(from, to).map(|pair| pair.map(|(key, value)| (key, Ok(value))))
    }

    /// The length of a key's value, without reading it. `None` if there is no such key.
    fn value_bytes(&self, key: &[u8]) -> Result<Option<usize>, Failed> {
        Ok(self.get(key)?.map(|value| value.len()))
    }

    /// Like [`Kv::scan`], without reading the values.
    fn keys(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Bytes, Failed>> {
        self.scan(from, to).map(|pair| pair.map(|(key, _)| key))
    }

    /// Writes all of the batch or nothing. On stable storage when it returns. After an error the contents are unknown, and
    /// the store must not be used again.
    fn commit(&mut self, batch: &Batch) -> Result<(), Failed>;

    /// Does a bounded piece of maintenance while there is nothing to commit. Returns whether there is more. `stored` is the
    /// number of bytes that the caller has stored.
    fn tend(&mut self, stored: u64) -> Result<bool, Failed> {
        let _ = stored;
        Ok(false)
    }

    /// Handles background events. Called between commits.
    fn catch_up(&mut self) -> Result<(), Failed> {
        Ok(())
    }

    /// The bytes of the store, and the free bytes of its disk.
    fn disk(&self) -> Disk;
}

/// The index below a journal: an ordered map that one thread reads while another commits to it.
pub trait Index: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed>;

    /// The pairs from `from` (included) to `to` (excluded), in order. May or may not show concurrent commits.
    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>>;

    /// Like [`Kv::commit`]. Called by one thread only.
    fn commit(&self, batch: &Batch) -> Result<(), Failed>;

    /// Its bytes on disk.
    fn bytes(&self) -> u64;
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Disk {
    pub used: u64,
    /// `None` if the file system does not report it.
    pub free: Option<u64>,
    /// Estimated bytes that the store will still write for what it has already.
    pub to_come: u64,
    /// The disk does not keep up: write nothing new until the index has caught up.
    pub behind: bool,
}

#[cfg(test)]
impl Disk {
    /// An empty disk without a limit.
    pub const ROOM: Self = Self { used: 0, free: None, to_come: 0, behind: false };
}

/// A failed read or write.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct Failed {
    pub doing: &'static str,
    pub why: String,
    /// Only this value is damaged. Everything else is readable.
    pub one_value: bool,
    /// It says nothing about the value: the same read may succeed a moment later.
    pub passes: bool,
}

impl Failed {
    /// The whole store failed.
    pub fn new(doing: &'static str, why: impl ToString) -> Self {
        Self { doing, why: why.to_string(), one_value: false, passes: false }
    }

    /// One value could not be read.
    pub fn of_value(doing: &'static str, why: impl ToString) -> Self {
        Self { doing, why: why.to_string(), one_value: true, passes: false }
    }

    /// One value could not be read just now.
    pub fn passing(doing: &'static str, why: impl ToString) -> Self {
        Self { passes: true, ..Self::of_value(doing, why) }
    }

    /// Separates the failure of one value (inner error) from that of the whole store (outer error).
    pub fn apart<T>(result: Result<T, Self>) -> Result<Result<T, Self>, Self> {
        match result {
            Err(failed) if !failed.one_value => Err(failed),
            of_value => Ok(of_value),
        }
    }
}

/// The writes of one commit. The last write to a key counts.
#[derive(Debug, Default)]
pub struct Batch {
    writes: BTreeMap<Vec<u8>, Write>,
}

/// The write to one key.
#[derive(Debug, Clone)]
pub struct Write {
    /// `None` removes the key.
    pub value: Option<Bytes>,
    /// The key is new, so the store need not search for an older value.
    pub is_new: bool,
}

impl Batch {
    pub fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.writes.insert(key, Write { value: Some(value.into()), is_new: false });
    }

    /// Like [`Batch::put`], for a key that neither the store nor this batch has.
    pub fn put_new(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.writes.insert(key, Write { value: Some(value.into()), is_new: true });
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.writes.insert(key, Write { value: None, is_new: false });
    }

    /// This batch's write to a key, if there is one.
    pub fn pending(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.writes.get(key).map(|write| write.value.as_ref())
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.writes.len()
    }

    pub fn writes(&self) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        self.writes.iter().map(|(key, write)| (key.as_slice(), write.value.as_ref()))
    }

    /// Like [`Batch::writes`], with whether each key is new.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &Write)> {
        self.writes.iter().map(|(key, write)| (key.as_slice(), write))
    }
}
