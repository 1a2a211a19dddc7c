//! Tells which keys the store certainly does not remember. Most keys are new. Looking one up costs a search of the index,
//! and a wait for a commit of the index in progress.
//!
//! Holds: [`KeyFilter::lacks`] is never true for a remembered key. Each full sweep rebuilds the filter without the keys
//! whose window is over. Before the first full sweep it knows nothing.
//! Limits: 10 bits of memory for each key, twice that during a sweep. 1 in 100 new keys is looked up anyway.

use fastbloom::BloomFilter;

const FALSE_POSITIVES: f64 = 0.01;

const LAYER_KEYS_MIN: u64 = 1 << 16;

#[derive(Debug, Default)]
pub(super) struct KeyFilter {
    /// All remembered keys. `None` while they are not known.
    all: Option<Layers>,
    /// The keys seen by the current sweep, and those added since it began.
    swept: Option<Layers>,
}

impl KeyFilter {
    /// A sweep of about this many keys begins.
    pub(super) fn begin(&mut self, keys: u64) {
        self.swept = Some(Layers::of(keys));
    }

    /// The sweep kept a key.
    pub(super) fn kept(&mut self, key: &[u8]) {
        if let Some(swept) = &mut self.swept {
            swept.insert(key);
        }
    }

    /// The sweep has seen all keys.
    pub(super) fn complete(&mut self) {
        if let Some(swept) = self.swept.take() {
            self.all = Some(swept);
        }
    }

    /// A key will be remembered.
    pub(super) fn added(&mut self, key: &[u8]) {
        for layers in [&mut self.all, &mut self.swept].into_iter().flatten() {
            layers.insert(key);
        }
    }

    /// Whether the store certainly does not remember a key.
    pub(super) fn lacks(&self, key: &[u8]) -> bool {
        self.all.as_ref().is_some_and(|all| !all.may_have(key))
    }
}

/// A list of Bloom filters, because one cannot grow. When the last is full, one as large as all before it is added.
#[derive(Debug)]
struct Layers {
    layers: Vec<BloomFilter>,
    /// The capacity of all filters together, in keys.
    room: u64,
    keys: u64,
}

impl Layers {
    fn of(keys: u64) -> Self {
        let room = (keys + keys / 4).max(LAYER_KEYS_MIN);
        Self { layers: vec![layer(room)], room, keys: 0 }
    }

    fn insert(&mut self, key: &[u8]) {
        if self.keys == self.room {
            self.layers.push(layer(self.room));
            self.room *= 2;
        }
        self.keys += 1;
        if let Some(last) = self.layers.last_mut() {
            last.insert_hash(hash(key));
        }
    }

    fn may_have(&self, key: &[u8]) -> bool {
        self.layers.iter().any(|layer| layer.contains_hash(hash(key)))
    }
}

fn layer(keys: u64) -> BloomFilter {
    BloomFilter::with_false_pos(FALSE_POSITIVES).expected_items(usize::try_from(keys).unwrap_or(usize::MAX))
}

/// Remembered keys are digests, so their last bytes serve as the hash.
fn hash(key: &[u8]) -> u64 {
    key.last_chunk().copied().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FunctionName, IdempotencyKey, KeySource};
    use crate::outbox::embedded::keys;

    fn key(n: u64) -> Vec<u8> {
        let key = IdempotencyKey { value: n.to_string(), source: KeySource::Header };
        keys::remembered(&FunctionName::new("orders"), None, &key).unwrap()
    }

    #[test]
    fn it_lacks_no_key_that_was_added_or_kept_and_most_others_also_when_it_has_outgrown_itself() {
        let mut filter = KeyFilter::default();
        assert!(!filter.lacks(&key(0)), "it knows nothing yet");
        filter.begin(0);
        let keys = 3 * LAYER_KEYS_MIN;
        for n in 0..keys {
            if n % 2 == 0 { filter.kept(&key(n)) } else { filter.added(&key(n)) }
        }
        assert!(!filter.lacks(&key(keys)), "nor before the sweep is over");
        filter.complete();
        assert_eq!((0..keys).filter(|&n| filter.lacks(&key(n))).count(), 0);
        let lacking = (keys..keys + 10_000).filter(|&n| filter.lacks(&key(n))).count();
        assert!(lacking > 9_600, "{lacking} of 10,000");
    }

    #[test]
    fn what_a_sweep_did_not_keep_is_forgotten_and_what_came_meanwhile_is_not() {
        let mut filter = KeyFilter::default();
        filter.begin(0);
        filter.complete();
        filter.added(&key(1));
        filter.begin(1);
        filter.added(&key(2));
        assert!(!filter.lacks(&key(1)) && !filter.lacks(&key(2)));
        filter.complete();
        assert!(filter.lacks(&key(1)) && !filter.lacks(&key(2)));
    }
}
