//! A store in memory whose "disk" outlives it. The conformance suite runs the engine on it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::kv::{Batch, Disk, Failed, Kv};
use super::record::VALUE_BYTES_MAX;

/// A disk that keeps committed data. Clones share the disk, so it survives the crash of its writer.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    pairs: Arc<Mutex<BTreeMap<Vec<u8>, Bytes>>>,
}

/// The store on such a disk.
#[derive(Debug)]
pub struct MemoryKv {
    disk: MemoryDisk,
    free: u64,
}

impl MemoryDisk {
    pub fn open(&self) -> MemoryKv {
        MemoryKv { disk: self.clone(), free: u64::MAX }
    }

    fn pairs(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Bytes>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Key-value pairs on the disk.
    pub fn len(&self) -> usize {
        self.pairs().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl MemoryKv {
    /// The same store on a disk with this many free bytes.
    pub fn with_free(self, free: u64) -> Self {
        Self { free, ..self }
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        Ok(self.disk.pairs().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        let mut next = Bound::Included(from.to_vec());
        let to = to.to_vec();
        std::iter::from_fn(move || {
            let pairs = self.disk.pairs();
            let (key, value) = pairs.range((next.clone(), Bound::Excluded(to.clone()))).next()?;
            next = Bound::Excluded(key.clone());
            Some(Ok((Bytes::copy_from_slice(key), value.clone())))
        })
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        // As strict as the real store, so that tests on this one hold for that.
        if let Some(value) = batch.writes().filter_map(|(_, value)| value).find(|value| value.len() > VALUE_BYTES_MAX) {
            let why = format!("a value of {} bytes; at most {VALUE_BYTES_MAX} are safe", value.len());
            return Err(Failed::new("writing", why));
        }
        let mut pairs = self.disk.pairs();
        for (key, value) in batch.writes() {
            match value {
                Some(value) => drop(pairs.insert(key.to_vec(), value.clone())),
                None => drop(pairs.remove(key)),
            }
        }
        Ok(())
    }

    fn disk(&self) -> Disk {
        let used = self.disk.pairs().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        Disk { used, free: Some(self.free), to_come: 0, behind: false }
    }
}
