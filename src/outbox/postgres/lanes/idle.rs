//! Empty lanes, and when they give way to others ([`crate::outbox::idle`]).

use super::Lanes;
use crate::clock::UnixMillis;
use crate::outbox::LaneId;
use crate::outbox::idle::{self, Key, LOOK_AT_MAX};

impl Lanes {
    /// Updates the position of a lane among the idle ones.
    pub(super) fn note_idle(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let is_idle = lane.leased.is_empty() && !lane.paused;
        let key = lane.empty_since.filter(|_| is_idle).map(|since| (lane.proven, since, id));
        let before = std::mem::replace(&mut lane.idle, key);
        if before != key {
            before.map(|key| self.idle.remove(&key));
            self.idle.extend(key);
        }
    }

    /// A lane that may give way to a new function at once.
    pub(in crate::outbox::postgres) fn may_give_way(&self, now: UnixMillis) -> Option<(LaneId, i64)> {
        let may_go = |&&(proven, _, id): &&Key| self.may_go(proven) && !self.has_spent(id, now);
        let &(.., id) = self.idle.iter().take(LOOK_AT_MAX).find(may_go)?;
        Some((id, self.lanes.get(&id)?.id))
    }

    /// Lanes that have been empty for long.
    pub(in crate::outbox::postgres) fn long_idle(&self, now: UnixMillis) -> Vec<(LaneId, i64)> {
        let is_long = |&&(proven, since, id): &&Key| {
            now.since(since) >= idle::retire_after(self.may_go(proven)) && !self.has_spent(id, now)
        };
        let number = |&(.., id): &Key| Some((id, self.lanes.get(&id)?.id));
        self.idle.iter().filter(is_long).filter_map(number).collect()
    }

    fn may_go(&self, proven: bool) -> bool {
        idle::may_go(proven, self.proven, self.functions_max)
    }

    fn has_spent(&self, id: LaneId, now: UnixMillis) -> bool {
        self.lanes.get(&id).is_some_and(|lane| lane.spent.counts(now))
    }

    /// Updates whether the number of functions is near `functions_max`.
    pub(super) fn note_crowd(&mut self) {
        self.crowd.note(self.lanes.len(), self.functions_max);
    }
}
