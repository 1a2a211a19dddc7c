//! Forgetting what is only remembered for a while, a bounded piece at a time.

use std::time::Duration;

use super::{Engine, unreadable};
use crate::outbox::keys;
use crate::outbox::kv::{Failed, Kv};
use crate::outbox::record::KeyRecord;

/// Keys looked at in one piece of a sweep.
const PIECE_KEYS: usize = 1_000;

/// A lane that held nothing for so long is retired; its function gets a new one with its next event.
const RETIRE_AFTER: Duration = Duration::from_secs(600);

/// How far the present sweep has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The key to go on from; none before the first.
    next: Option<Vec<u8>>,
    /// Keys seen and kept so far.
    kept: u64,
}

impl<K: Kv> Engine<K> {
    /// One piece of a sweep; says whether there is more of it. Adds to the batch.
    pub fn sweep(&mut self) -> Result<bool, Failed> {
        let now = self.clock.now();
        let (mut seen, mut expired, mut last) = (0, Vec::new(), None);
        let (start, end) = keys::all_remembered();
        let from = self.sweep.next.take().unwrap_or(start);
        for pair in self.kv.scan(&from, &end) {
            let (key, value) = pair?;
            let known = KeyRecord::decode(&value).map_err(|e| unreadable("sweeping remembered keys", &e))?;
            seen += 1;
            if known.expires_at <= now {
                expired.push(key.to_vec());
            }
            last = Some(key);
            if seen == PIECE_KEYS {
                break;
            }
        }
        self.sweep.kept += (seen - expired.len()) as u64;
        for key in expired {
            self.batch.remove(key);
            self.keys = self.keys.saturating_sub(1);
        }
        if seen == PIECE_KEYS {
            self.sweep.next = last.map(|key| keys::after(&key));
            return Ok(true);
        }
        self.keys = std::mem::take(&mut self.sweep).kept;
        self.retire_lanes();
        Ok(false)
    }

    fn retire_lanes(&mut self) {
        let now = self.clock.now();
        let retired: Vec<_> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.leased_count() == 0 && !lane.is_paused())
            .filter(|(_, lane)| lane.empty_since.is_some_and(|since| now.since(since) >= RETIRE_AFTER))
            .map(|(&id, lane)| (id, lane.function().clone()))
            .collect();
        for (id, function) in retired {
            self.touch(id);
            self.dirty.remove(&id);
            self.lanes.remove(&id);
            self.by_name.remove(&function);
            self.batch.remove(keys::lane(id));
        }
        // Readers that missed a retirement learn of it from a full reading, so only the latest need be kept.
        while self.changes.len() as u64 > self.lanes.len() as u64 + self.settings.functions_max {
            let gone = self.changes.iter().find(|(_, id)| !self.lanes.contains_key(id)).map(|(&version, _)| version);
            match gone {
                Some(version) => self.changes.remove(&version),
                None => break,
            };
        }
    }
}
