//! How a lane fared in the last minute, for people. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::UnixMillis;
use crate::dispatch::status::LastError;

/// The number of parts in which the minute is counted.
const PARTS: usize = 6;
const PART: Duration = Duration::from_secs(10);

/// The fewest failures within a minute that are worth a line in the log, if they are more than the successes.
const FAILURES_MIN: u32 = 5;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub delivered: u32,
    pub failed: u32,
}

/// Whether a lane has begun to fail, or has recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Failing,
    Well,
}

#[derive(Debug, Default)]
pub(super) struct Pulse {
    parts: [Counts; PARTS],
    /// The index of the current part. `ends` is when that part ends.
    at: usize,
    ends: Option<Instant>,
    pub last_error: Option<LastError>,
    pub failing_since: Option<UnixMillis>,
}

impl Pulse {
    /// Moves on to the part that contains `now`.
    fn turn(&mut self, now: Instant) {
        let ends = *self.ends.get_or_insert(now + PART);
        let late = now.saturating_duration_since(ends);
        if now < ends {
            return;
        }
        let passed = usize::try_from(late.as_secs() / PART.as_secs()).unwrap_or(usize::MAX).saturating_add(1);
        for _ in 0..passed.min(PARTS) {
            self.at = (self.at + 1) % PARTS;
            self.parts[self.at] = Counts::default();
        }
        self.ends = Some(now + PART);
    }

    /// What happened within the last minute.
    pub fn counts(&self, now: Instant) -> Counts {
        let idle = self.ends.map_or(Duration::ZERO, |ends| now.saturating_duration_since(ends));
        let gone = usize::try_from(idle.as_secs().div_ceil(PART.as_secs())).unwrap_or(PARTS).min(PARTS);
        // The oldest part follows the current one.
        let parts = (1..=PARTS).map(|back| self.parts[(self.at + back) % PARTS]).skip(gone);
        parts.fold(Counts::default(), |sum, part| Counts {
            delivered: sum.delivered.saturating_add(part.delivered),
            failed: sum.failed.saturating_add(part.failed),
        })
    }

    /// An attempt succeeded.
    pub fn succeeded(&mut self, now: Instant) -> Option<Turn> {
        self.turn(now);
        let part = &mut self.parts[self.at];
        part.delivered = part.delivered.saturating_add(1);
        self.failing_since?;
        let Counts { delivered, failed } = self.counts(now);
        if failed > delivered {
            return None;
        }
        self.failing_since = None;
        Some(Turn::Well)
    }

    /// An attempt failed.
    pub fn failed(&mut self, error: LastError, now: Instant) -> Option<Turn> {
        self.turn(now);
        let part = &mut self.parts[self.at];
        part.failed = part.failed.saturating_add(1);
        let at = error.at;
        self.last_error = Some(error);
        let Counts { delivered, failed } = self.counts(now);
        if self.failing_since.is_some() || failed < FAILURES_MIN || failed <= delivered {
            return None;
        }
        self.failing_since = Some(at);
        Some(Turn::Failing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn error(at: u64) -> LastError {
        LastError { at: UnixMillis(at), words: "500 ServiceException: no".into() }
    }

    #[test]
    fn a_minute_is_counted_and_then_forgotten() {
        let start = Clock::seeded(UnixMillis(0), 1).instant();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::default();
        for second in 0..60 {
            pulse.succeeded(at(second));
        }
        assert_eq!(pulse.counts(at(59)), Counts { delivered: 60, failed: 0 });
        pulse.failed(error(60), at(61));
        let counts = pulse.counts(at(61));
        assert!(counts.failed == 1 && (45..=55).contains(&counts.delivered), "{counts:?}");
        assert_eq!(pulse.counts(at(150)), Counts::default());
        pulse.succeeded(at(1_000));
        assert_eq!(pulse.counts(at(1_001)), Counts { delivered: 1, failed: 0 });
    }

    #[test]
    fn a_lane_that_fails_more_than_it_delivers_is_told_once_and_once_more_when_it_is_well() {
        let start = Clock::seeded(UnixMillis(0), 1).instant();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::default();
        let told: Vec<_> = (0..30).filter_map(|second| pulse.failed(error(second), at(second))).collect();
        assert_eq!(told, [Turn::Failing]);
        assert_eq!(pulse.failing_since, Some(UnixMillis(4)));
        let told: Vec<_> = (30..80).filter_map(|second| pulse.succeeded(at(second))).collect();
        assert_eq!(told, [Turn::Well]);
        assert_eq!(pulse.last_error, Some(error(29)), "what it failed with last stays to be seen");
    }

    #[test]
    fn a_lane_that_fails_now_and_then_is_not_told_of() {
        let start = Clock::seeded(UnixMillis(0), 1).instant();
        let mut pulse = Pulse::default();
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            let told = if second % 5 == 0 { pulse.failed(error(second), now) } else { pulse.succeeded(now) };
            assert_eq!(told, None);
        }
    }
}
