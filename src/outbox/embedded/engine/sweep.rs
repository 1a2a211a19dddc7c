//! Sweeps remembered keys whose window is over, one bounded piece at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use crate::event::EventId;
use crate::outbox::LaneId;
use crate::outbox::embedded::keys;
use crate::outbox::embedded::kv::{Failed, Kv};
use crate::outbox::embedded::record::KeyRecord;

/// The most keys that one piece of a sweep visits.
const PIECE_KEYS: usize = 1_000;

/// The most keys in one piece whose window is over. For each, the sweep checks whether its event is still stored.
const PIECE_SEARCHES: usize = 250;

/// The progress of the current sweep.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The key to continue from. `None` before the first.
    next: Option<Vec<u8>>,
    /// The keys kept so far.
    kept: u64,
    /// Events that were removed unread before it began: it forgets their keys.
    forgetting: BTreeSet<EventId>,
}

impl<K: Kv> Engine<K> {
    /// Does one piece of a sweep and adds it to the batch. Returns whether there is more.
    pub fn sweep(&mut self) -> Result<bool, Failed> {
        if self.mend()? {
            return Ok(true);
        }
        let now = self.clock.now();
        let (mut seen, mut expired, mut outlived, mut last) = (0, Vec::new(), Vec::new(), None);
        let mut lanes = None;
        let (start, end) = keys::all_remembered();
        let from = self.sweep.next.take().unwrap_or_else(|| {
            self.key_filter.begin(self.keys);
            self.sweep.forgetting = std::mem::take(&mut self.forgetting);
            // The scan below does not see this turn's additions.
            let added =
                self.batch.writes().filter(|(key, value)| value.is_some() && start[..] <= **key && **key < end[..]);
            added.for_each(|(key, _)| self.key_filter.kept(key));
            start
        });
        for pair in self.kv.pairs(&from, &end) {
            let (key, value) = pair?;
            let known = value.ok().and_then(|value| KeyRecord::decode(&value).ok());
            // An unreadable key is useless.
            let over = known
                .is_none_or(|known| self.is_over(&key, &known, now) || self.sweep.forgetting.contains(&known.first));
            seen += 1;
            // A key used again in this turn has a new record, which only the batch has.
            let over = over && self.batch.pending(&key).is_none();
            let lanes = over.then(|| lanes.get_or_insert_with(|| self.lanes_by_tag()));
            let of_tag = |known: &KeyRecord| lanes.and_then(|lanes| lanes.get(&known.first.function_tag()));
            let of_tag = known.as_ref().and_then(of_tag);
            match (over, known, of_tag) {
                (true, Some(known), Some(of_tag)) if self.stores(of_tag, known.first)? => {
                    outlived.push((key.to_vec(), known));
                }
                (true, ..) => expired.push(key.to_vec()),
                (false, ..) => self.key_filter.kept(&key),
            }
            last = Some(key);
            if seen == PIECE_KEYS || expired.len() + outlived.len() >= PIECE_SEARCHES {
                break;
            }
        }
        let more = last.is_some() && (seen == PIECE_KEYS || expired.len() + outlived.len() >= PIECE_SEARCHES);
        for (key, known) in outlived {
            // So it is checked once a window, not by every sweep.
            self.key_filter.kept(&key);
            let expires_at = now.plus(self.window(&key));
            self.batch.put(key, KeyRecord { expires_at, ..known }.encode());
        }
        self.sweep.kept += (seen - expired.len()) as u64;
        for key in expired {
            self.batch.remove(key);
            self.keys = self.keys.saturating_sub(1);
        }
        if more {
            self.sweep.next = last.map(|key| keys::after(&key));
            return Ok(true);
        }
        self.keys = std::mem::take(&mut self.sweep).kept;
        self.key_filter.complete();
        self.retire_idle_lanes();
        Ok(false)
    }

    /// The lanes by the tag of their function, which event ids contain.
    pub(super) fn lanes_by_tag(&self) -> BTreeMap<u16, Vec<LaneId>> {
        let mut lanes: BTreeMap<u16, Vec<LaneId>> = BTreeMap::new();
        for (&id, lane) in &self.lanes {
            lanes.entry(lane.function().tag()).or_default().push(id);
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Appended, Disk, Engine, UnixMillis};
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::event::testing::event;
    use crate::event::{Event, IdempotencyKey, KeySource};
    use crate::outbox::embedded::Settings;
    use crate::outbox::embedded::memory::MemoryDisk;
    use crate::outbox::{LaneWant, LeaseWant, Limits, Settlement, Spent, Which};

    const START: UnixMillis = UnixMillis(1_790_000_000_000);
    const WINDOW: Duration = Duration::from_secs(30);

    fn engine(clock: &Clock) -> Engine<impl Kv + use<>> {
        let settings = Settings {
            limits: Limits {
                bytes_max: 1 << 30,
                events_max: 1_000,
                functions_max: 100,
                dedupe_window: WINDOW,
                sdk_window: WINDOW,
            },
            disk_reserve: 0,
            segment_bytes: 1 << 20,
            cache: 0,
        };
        Engine::open(MemoryDisk::default().open(), settings, clock.clone(), "memory").unwrap()
    }

    fn keyed(clock: &Clock) -> Event {
        Event { key: IdempotencyKey { value: "key".into(), source: KeySource::Header }, ..event(clock, "orders") }
    }

    #[test]
    fn a_key_that_is_used_again_in_the_turn_of_its_sweep_is_remembered() {
        let clock = Clock::seeded(START, 1);
        let mut engine = engine(&clock);
        engine.append(vec![keyed(&clock)], Disk::ROOM).unwrap();
        engine.commit().unwrap();
        let lane = engine.lanes(0).unwrap().lanes[0].lane;
        let lanes = vec![LaneWant { lane, which: Which::Due, events_max: 1, bytes_max: u64::MAX, spent: None }];
        let leased = engine.lease(&LeaseWant { lanes, bytes_max: u64::MAX }).unwrap();
        engine.settle(leased.into_iter().map(|leased| (leased.lease, Settlement::Delivered)).collect()).unwrap();
        engine.commit().unwrap();
        clock.pass_until(START.plus(WINDOW * 2));
        let again = keyed(&clock);
        assert_eq!(engine.append(vec![again.clone()], Disk::ROOM).unwrap(), [Appended::Stored], "its window was over");
        while engine.sweep().unwrap() {}
        engine.commit().unwrap();
        let repeat = engine.append(vec![keyed(&clock)], Disk::ROOM).unwrap();
        assert_eq!(repeat, [Appended::Repeat { first: again.id }]);
    }

    #[test]
    fn a_key_that_is_added_in_the_turn_of_a_whole_sweep_is_remembered() {
        let clock = Clock::seeded(START, 1);
        let mut engine = engine(&clock);
        let first = keyed(&clock);
        engine.append(vec![first.clone()], Disk::ROOM).unwrap();
        assert!(!engine.sweep().unwrap(), "it was the last piece");
        engine.commit().unwrap();
        let repeat = engine.append(vec![keyed(&clock)], Disk::ROOM).unwrap();
        assert_eq!(repeat, [Appended::Repeat { first: first.id }]);
    }

    #[test]
    fn a_lane_that_has_spent_something_in_this_hour_is_not_retired() {
        let clock = Clock::seeded(START, 1);
        let mut engine = engine(&clock);
        engine.append(vec![keyed(&clock)], Disk::ROOM).unwrap();
        engine.commit().unwrap();
        let spent = Some(Spent { hour: Spent::hour_of(START), attempts: 7 });
        let lane = engine.lanes(0).unwrap().lanes[0].lane;
        let lanes = vec![LaneWant { lane, which: Which::Due, events_max: 1, bytes_max: u64::MAX, spent }];
        let want = LeaseWant { lanes, bytes_max: u64::MAX };
        engine.note_spent(&want);
        let leased = engine.lease(&want).unwrap();
        engine.settle(leased.into_iter().map(|leased| (leased.lease, Settlement::Shipped)).collect()).unwrap();
        for (minutes, lanes) in [(15, 1), (46, 1), (60, 0)] {
            clock.pass_until(START.plus(Duration::from_secs(minutes * 60)));
            while engine.sweep().unwrap() {}
            engine.commit().unwrap();
            assert_eq!(engine.lanes(0).unwrap().lanes.len(), lanes, "after {minutes} minutes");
        }
    }
}
