//! What a step of the wall clock means for lanes. Holds and rates are spans of time and keep their length.

use super::Lanes;
use super::hold::ActiveHold;
use crate::clock::{Steps, UnixMillis};
use crate::dispatch::rate::Rate;

impl Lanes {
    /// The clock was set forward by `by` milliseconds and now shows `now`. `steps` are all steps, for ages.
    pub fn stepped(&mut self, by: i64, steps: Steps, now: UnixMillis) {
        self.steps = steps;
        self.rate.iter_mut().for_each(|rate| Rate::stepped(rate, by));
        let accounts = self.accounts.values_mut().map(|account| &mut account.shared);
        let callers = self.callers.values_mut().map(|caller| &mut caller.shared);
        for shared in accounts.chain(callers) {
            shared.hold.iter_mut().for_each(|hold| ActiveHold::stepped(hold, by));
        }
        let ids: Vec<_> = self.lanes.keys().copied().collect();
        for id in ids {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.hold.iter_mut().for_each(|hold| ActiveHold::stepped(hold, by));
                lane.rate.iter_mut().for_each(|rate| Rate::stepped(rate, by));
                lane.next_expiry = lane.next_expiry.shifted(by);
                lane.idle_until = lane.idle_until.shifted(by);
            }
            // The lane's turn on the agenda was set by the old clock.
            self.off_agenda(id);
            self.reschedule(id, now);
        }
    }
}
