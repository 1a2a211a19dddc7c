//! Empty lanes, and when they give way to others: the same rules as in the embedded engine.
//!
//! Clients name functions and can invent any number of names. A lane is *proven* once Lambda has accepted an event for its
//! function.
//! Holds: an unproven lane gives way to a new function as soon as it is empty. No invented name replaces a proven function
//! while at most half of `functions_max` are proven.

use std::time::Duration;

use super::Lanes;
use crate::clock::UnixMillis;
use crate::outbox::LaneId;

/// A lane that has been empty for this long is retired. The function's next event brings it back.
const RETIRE_AFTER: Duration = Duration::from_secs(600);

/// The same for a proven lane, if there is room.
const RETIRE_PROVEN_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// The most idle lanes that a search for one that may give way visits.
const LOOK_AT_MAX: usize = 64;

/// The order of idle lanes: proven or not, since when empty, number.
pub(super) type Key = (bool, UnixMillis, LaneId);

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
            let wait = if self.may_go(proven) { RETIRE_AFTER } else { RETIRE_PROVEN_AFTER };
            now.since(since) >= wait && !self.has_spent(id, now)
        };
        let number = |&(.., id): &Key| Some((id, self.lanes.get(&id)?.id));
        self.idle.iter().filter(is_long).filter_map(number).collect()
    }

    /// Whether lanes of this kind give way. Proven ones do only if there are too many of them.
    fn may_go(&self, proven: bool) -> bool {
        !proven || self.proven > self.functions_max / 2
    }

    fn has_spent(&self, id: LaneId, now: UnixMillis) -> bool {
        self.lanes.get(&id).is_some_and(|lane| lane.spent.counts(now))
    }

    /// Updates whether the number of functions is near `functions_max`.
    pub(super) fn note_crowd(&mut self) {
        let (lanes, limit) = (self.lanes.len() as u64, self.functions_max);
        if !self.crowded && lanes * 8 >= limit * 7 {
            self.crowded = true;
            tracing::warn!(
                functions = lanes,
                functions_max = limit,
                "nearly as many functions are known as outbox.functions_max allows: until there are fewer, events of functions that \
                never took one and are held become dead letters after 10 minutes. docs/operations.md, \"Invented function names\", \
                says what to do"
            );
        } else if self.crowded && lanes * 4 < limit * 3 {
            self.crowded = false;
            tracing::info!(functions = lanes, functions_max = limit, "there is room for more functions again");
        }
    }
}
