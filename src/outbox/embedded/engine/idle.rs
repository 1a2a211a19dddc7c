//! Empty lanes, and when they give way to others ([`crate::outbox::idle`]).

use super::Engine;
use crate::clock::UnixMillis;
use crate::outbox::LaneId;
use crate::outbox::embedded::keys;
use crate::outbox::embedded::kv::Kv;
use crate::outbox::idle::{self, Key, LOOK_AT_MAX};

impl<K: Kv> Engine<K> {
    /// Updates the position of a lane among the idle ones, after any change.
    pub(super) fn note_idle(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let is_idle = lane.leased_count() == 0 && !lane.is_paused();
        let key = lane.empty_since.filter(|_| is_idle).map(|since| (lane.is_proven(), since, id));
        let before = std::mem::replace(&mut lane.idle, key);
        if before != key {
            before.map(|key| self.idle.remove(&key));
            self.idle.extend(key);
        }
    }

    /// Makes room for one more function by retiring an empty lane. Returns whether there is room.
    pub(super) fn make_way(&mut self) -> bool {
        let limit = self.settings.limits.functions_max;
        if (self.lanes.len() as u64) < limit {
            return true;
        }
        let now = self.clock.now();
        let may_go = |&&(proven, _, id): &&Key| self.may_go(proven) && !self.has_spent(id, now);
        let Some(&(.., id)) = self.idle.iter().take(LOOK_AT_MAX).find(may_go) else { return false };
        self.retire(id);
        (self.lanes.len() as u64) < limit
    }

    /// Retires lanes that have been empty for long.
    pub(super) fn retire_idle_lanes(&mut self) {
        let now = self.clock.now();
        let lanes: Vec<_> = self.idle.iter().copied().collect();
        for (proven, since, id) in lanes {
            // Computed for each lane: the fewer proven lanes are left, the longer they may stay.
            if now.since(since) >= idle::retire_after(self.may_go(proven)) && !self.has_spent(id, now) {
                self.retire(id);
            }
        }
    }

    fn may_go(&self, proven: bool) -> bool {
        idle::may_go(proven, self.proven, self.settings.limits.functions_max)
    }

    fn has_spent(&self, id: LaneId, now: UnixMillis) -> bool {
        self.lanes.get(&id).is_some_and(|lane| lane.spent().counts(now))
    }

    /// Adds the removal of an idle lane to the batch.
    fn retire(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.remove(&id) else { return };
        self.proven -= u64::from(lane.is_proven());
        if let Some(key) = lane.idle {
            self.idle.remove(&key);
        }
        self.by_name.remove(lane.function());
        self.dirty.remove(&id);
        self.batch.remove(keys::lane(id));
        self.changes.remove(&lane.version);
        self.version += 1;
        self.retired.insert(self.version, id);
        // Readers that missed a retirement learn it from a full reading, so only recent ones need be kept.
        if self.retired.len() as u64 > self.settings.limits.functions_max {
            self.retired.pop_first();
        }
        self.note_crowd();
    }

    /// Updates whether the number of functions is near `functions_max`.
    pub(super) fn note_crowd(&mut self) {
        self.crowd.note(self.lanes.len(), self.settings.limits.functions_max);
    }
}
