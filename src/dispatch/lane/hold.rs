//! A hold of a lane, an account or a caller, and the probes that end it. Pure.

use std::time::Duration;

use super::Notice;
use crate::backoff;
use crate::clock::UnixMillis;
use crate::dispatch::verdict::{Hold, Scope};

/// A hold that is in force. When its time is over, one attempt goes alone as a probe, and its outcome ends or prolongs the hold.
pub(super) struct ActiveHold {
    pub hold: Hold,
    /// Distinguishes this hold from all others.
    number: u64,
    /// Failed probes in a row. The waits grow with them.
    strikes: u32,
    /// Probes in flight.
    probes: u32,
    /// Whether the next probe should be an event that was never attempted.
    fresh: bool,
}

/// The end of an attempt, as a hold needs it.
#[derive(Clone, Copy)]
pub(super) struct Ended {
    /// The shortest wait of this lane. Waits grow from it.
    pub base: Duration,
    pub now: UnixMillis,
    /// The number of the hold that this attempt may cause.
    pub number: u64,
}

impl ActiveHold {
    /// When the next attempt may go. [`UnixMillis::MAX`] while a probe is in flight.
    pub fn ends(&self) -> UnixMillis {
        if self.probes > 0 { UnixMillis::MAX } else { self.hold.until }
    }

    /// An attempt begins under this hold, as a probe. Returns the hold's number.
    pub fn probe(&mut self) -> u64 {
        self.probes += 1;
        self.fresh = !self.fresh;
        self.number
    }

    /// The clock was set forward by this many milliseconds. A hold keeps its length.
    pub fn stepped(&mut self, by: i64) {
        self.hold.until = self.hold.until.shifted(by);
    }

    pub fn wants_fresh(&self) -> bool {
        self.fresh
    }

    /// An operator asks whether the function works again. The next probe may go at once, and takes an event that is
    /// due.
    pub fn end_wait(&mut self, now: UnixMillis) {
        self.hold.until = self.hold.until.min(now);
        self.fresh = false;
    }

    /// Applies the end of an attempt to a hold. `probe` is the number of the hold that the attempt was to probe. An
    /// attempt that began before the hold can prolong the hold, but cannot end it.
    pub fn judge(
        hold: &mut Option<Self>,
        probe: Option<u64>,
        new: Option<Hold>,
        scope: Scope,
        ended: Ended,
    ) -> Option<Notice> {
        let Ended { base, now, number } = ended;
        let probed = hold.as_ref().is_some_and(|hold| Some(hold.number) == probe);
        if let Some(hold) = hold.as_mut().filter(|_| probed) {
            hold.probes = hold.probes.saturating_sub(1);
        }
        match (hold.as_mut(), new) {
            (None, None) => None,
            (None, Some(new)) => {
                let (kind, reason) = (new.kind, new.reason.clone());
                *hold = Some(Self { hold: new, number, strikes: 0, probes: 0, fresh: true });
                Some(Notice::Held { scope, kind, reason })
            }
            (Some(_), None) if probed => {
                *hold = None;
                Some(Notice::Recovered { scope })
            }
            (Some(_), None) => None,
            (Some(hold), Some(new)) => {
                if probed {
                    hold.strikes += 1;
                }
                let grown = new.kind.wait_max().map_or(Duration::ZERO, |max| backoff::ceiling(hold.strikes, base, max));
                let until = new.until.max(now.plus(grown)).max(hold.hold.until);
                hold.hold = Hold { until, ..new };
                None
            }
        }
    }
}
