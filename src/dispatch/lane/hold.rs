//! A pause of a lane, an account or a caller, and the probes that end it. Pure.

use std::time::Duration;

use super::Change;
use crate::backoff;
use crate::clock::UnixMillis;
use crate::dispatch::verdict::{Pause, Scope};

/// A pause. After it, one attempt goes alone as a probe, and its outcome ends or prolongs the hold.
pub(super) struct Hold {
    pub pause: Pause,
    /// Distinguishes this hold from all others.
    number: u64,
    /// Failed probes in a row. The pauses grow with them.
    strikes: u32,
    /// Probes in flight.
    probes: u32,
    /// Whether the next probe should be an event that was never attempted.
    fresh: bool,
}

/// The end of an attempt, as a hold needs it.
#[derive(Clone, Copy)]
pub(super) struct Ended {
    /// The shortest pause of this lane. Pauses grow from it.
    pub base: Duration,
    pub now: UnixMillis,
    /// The number of the hold that this attempt may cause.
    pub number: u64,
}

impl Hold {
    /// When the next attempt may go. [`UnixMillis::MAX`] while a probe is in flight.
    pub fn ends(&self) -> UnixMillis {
        if self.probes > 0 { UnixMillis::MAX } else { self.pause.until }
    }

    /// An attempt begins under this hold, as a probe. Returns the hold's number.
    pub fn probe(&mut self) -> u64 {
        self.probes += 1;
        self.fresh = !self.fresh;
        self.number
    }

    /// The clock was set forward by this many milliseconds. A pause keeps its length.
    pub fn stepped(&mut self, by: i64) {
        self.pause.until = self.pause.until.shifted(by);
    }

    pub fn wants_fresh(&self) -> bool {
        self.fresh
    }

    /// An operator asks whether the function works again. The next probe may go at once, and takes an event that is
    /// due.
    pub fn end_pause(&mut self, now: UnixMillis) {
        self.pause.until = self.pause.until.min(now);
        self.fresh = false;
    }

    /// Applies the end of an attempt to a hold. `probe` is the number of the hold that the attempt was to probe. An
    /// attempt that began before the hold can prolong the hold, but cannot end it.
    pub fn judge(
        hold: &mut Option<Self>,
        probe: Option<u64>,
        pause: Option<Pause>,
        scope: Scope,
        ended: Ended,
    ) -> Option<Change> {
        let Ended { base, now, number } = ended;
        let probed = hold.as_ref().is_some_and(|hold| Some(hold.number) == probe);
        if let Some(hold) = hold.as_mut().filter(|_| probed) {
            hold.probes = hold.probes.saturating_sub(1);
        }
        match (hold.as_mut(), pause) {
            (None, None) => None,
            (None, Some(pause)) => {
                let (kind, reason) = (pause.kind, pause.reason.clone());
                *hold = Some(Self { pause, number, strikes: 0, probes: 0, fresh: true });
                Some(Change::Held { scope, kind, reason })
            }
            (Some(_), None) if probed => {
                *hold = None;
                Some(Change::Recovered { scope })
            }
            (Some(_), None) => None,
            (Some(hold), Some(pause)) => {
                if probed {
                    hold.strikes += 1;
                }
                let grown =
                    pause.kind.pause_max().map_or(Duration::ZERO, |max| backoff::ceiling(hold.strikes, base, max));
                let until = pause.until.max(now.plus(grown)).max(hold.pause.until);
                hold.pause = Pause { until, ..pause };
                None
            }
        }
    }
}
