//! What the engine needs of a key-value store: ordered reads, and one atomic, durable commit at a time; and what such a
//! store needs of the index below it.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A key, and its value if that can be read.
pub type Pair = (Bytes, Result<Bytes, Failed>);

/// An ordered map of bytes on stable storage. Used from one thread only (docs/adr/0001, rules 1 and 5).
pub trait Kv: Send + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed>;

    /// The pairs from `from` (included) to `to` (excluded), in order.
    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>>;

    /// As [`Kv::scan`], with each value's own outcome: one that cannot be read does not end the scan.
    fn pairs(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Pair, Failed>> {
        self.scan(from, to).map(|pair| pair.map(|(key, value)| (key, Ok(value))))
    }

    /// The bytes of a key's value, without reading it; none if there is no such key.
    fn value_bytes(&self, key: &[u8]) -> Result<Option<usize>, Failed> {
        Ok(self.get(key)?.map(|value| value.len()))
    }

    /// As [`Kv::scan`], without reading the values.
    fn keys(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Bytes, Failed>> {
        self.scan(from, to).map(|pair| pair.map(|(key, _)| key))
    }

    /// Writes all of the batch or nothing; on stable storage when it returns. After an error nothing is known any more:
    /// the caller must not use the store again.
    fn commit(&mut self, batch: &Batch) -> Result<(), Failed>;

    /// A bounded piece of the store's own housekeeping, for when there is nothing to commit; says whether there is more. `stored`
    /// is how many bytes the caller knows to be in it.
    fn tend(&mut self, stored: u64) -> Result<bool, Failed> {
        let _ = stored;
        Ok(false)
    }

    /// Hears of what goes on beside the commits. Called between two of them.
    fn catch_up(&mut self) -> Result<(), Failed> {
        Ok(())
    }

    /// Bytes that the store takes, and that its disk has free.
    fn disk(&self) -> Disk;
}

/// An ordered map of bytes that one thread reads while another commits to it: what lies below a journal.
pub trait Index: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed>;

    /// The pairs from `from` (included) to `to` (excluded), in order. What is committed meanwhile may show or not.
    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>>;

    /// As [`Kv::commit`]; called by one thread only.
    fn commit(&self, batch: &Batch) -> Result<(), Failed>;

    /// Bytes that it takes on the disk.
    fn bytes(&self) -> u64;
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Disk {
    pub used: u64,
    /// None if the file system does not tell.
    pub free: Option<u64>,
    /// Bytes that the store will take, about, for what it has already.
    pub to_come: u64,
    /// Nothing new should be written before what is there has been brought in order: the disk does not keep up.
    pub behind: bool,
}

/// A read or write that the store could not do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct Failed {
    pub doing: &'static str,
    pub why: String,
    /// Only this one value is bad; everything else can be read as before.
    pub one_value: bool,
    /// It says nothing about the value: the same read may succeed a moment later.
    pub passes: bool,
}

impl Failed {
    /// The store as a whole could not do it.
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

    /// Tells the trouble of one value, inside, from that of the whole store, outside.
    pub fn apart<T>(result: Result<T, Self>) -> Result<Result<T, Self>, Self> {
        match result {
            Err(failed) if !failed.one_value => Err(failed),
            of_value => Ok(of_value),
        }
    }
}

/// The writes of one commit; of several to one key the last counts.
#[derive(Debug, Default)]
pub struct Batch {
    writes: BTreeMap<Vec<u8>, Write>,
}

/// What becomes of one key.
#[derive(Debug, Clone)]
pub struct Write {
    /// None: the key is removed.
    pub value: Option<Bytes>,
    /// The store does not have this key: it need not look for an older value.
    pub is_new: bool,
}

impl Batch {
    pub fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.writes.insert(key, Write { value: Some(value.into()), is_new: false });
    }

    /// As [`Batch::put`], of a key that neither the store has nor this batch.
    pub fn put_new(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.writes.insert(key, Write { value: Some(value.into()), is_new: true });
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.writes.insert(key, Write { value: None, is_new: false });
    }

    /// What this batch will make of a key: none if it does not touch it.
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

    /// As [`Batch::writes`], with what is known of each key.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &Write)> {
        self.writes.iter().map(|(key, write)| (key.as_slice(), write))
    }
}
