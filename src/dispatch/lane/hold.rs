//! A pause of a lane or an account, and the probes that end it. Pure.

use std::time::Duration;

use super::Change;
use crate::backoff;
use crate::clock::UnixMillis;
use crate::dispatch::verdict::{Pause, Scope};

/// A pause; after it one attempt goes alone, and its outcome decides.
pub(super) struct Hold {
    pub pause: Pause,
    /// Tells it from all other holds.
    number: u64,
    /// Failed probes in a row: what the pauses grow with.
    strikes: u32,
    /// Probes under way.
    probes: u32,
    /// Whether the next probe is an event that was never attempted, if there is one.
    fresh: bool,
}

/// An attempt that has ended, as far as a hold goes.
#[derive(Clone, Copy)]
pub(super) struct Ended {
    /// From what the pauses of this lane grow.
    pub base: Duration,
    pub now: UnixMillis,
    /// The number of a hold that this may make.
    pub number: u64,
}

impl Hold {
    /// Not before its probe has come back, if one is under way.
    pub fn ends(&self) -> UnixMillis {
        if self.probes > 0 { UnixMillis::MAX } else { self.pause.until }
    }

    /// An attempt begins under this hold: it is a probe, and gets the hold's number.
    pub fn probe(&mut self) -> u64 {
        self.probes += 1;
        self.fresh = !self.fresh;
        self.number
    }

    /// The clock was set by so many milliseconds: a pause is a span.
    pub fn stepped(&mut self, by: i64) {
        self.pause.until = self.pause.until.shifted(by);
    }

    pub fn wants_fresh(&self) -> bool {
        self.fresh
    }

    /// An operator wants to know: the next probe may go at once, and takes what is due.
    pub fn end_pause(&mut self, now: UnixMillis) {
        self.pause.until = self.pause.until.min(now);
        self.fresh = false;
    }

    /// What the end of an attempt makes of a hold. Attempts that began before the hold can prolong it, not end it.
    /// `probe` is the hold that it was to probe.
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
