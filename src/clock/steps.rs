//! The steps of the wall clock during the life of a store. Pure.
//!
//! An instant ("deliver at noon") follows the wall clock. A span ("for 24 hours") counts elapsed time, so it must know
//! by how much the clock was set meanwhile. Times are stored as the wall clock showed them. The steps convert a stored
//! time to what the clock shows now.

use std::time::Duration;

use super::UnixMillis;

/// The number of steps kept. A clock with more steps within the longest span cannot be relied on anyway.
const STEPS_MAX: usize = 16;

/// The time last noted in the store may be this much older than the newest commit.
const SLACK: Duration = Duration::from_secs(2);

/// One setting of the clock: the time it showed before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub before: UnixMillis,
    pub after: UnixMillis,
}

impl Step {
    fn by(self) -> i128 {
        i128::from(self.after.0) - i128::from(self.before.0)
    }
}

/// Steps, oldest first. Between two steps the clock ran evenly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    all: Vec<Step>,
}

impl Steps {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The last step. Since then the clock has run evenly.
    pub fn latest(&self) -> Option<Step> {
        self.all.last().copied()
    }

    pub fn note(&mut self, step: Step) {
        self.all.push(step);
        let surplus = self.all.len().saturating_sub(STEPS_MAX);
        self.all.drain(..surplus);
    }

    /// Converts `at`, as the clock once showed it, to the present time line: the result's distance from `now` is the
    /// elapsed time. If the clock showed `at` twice, the later occasion counts, so that nothing appears older than it is.
    pub fn present(&self, at: UnixMillis, now: UnixMillis) -> UnixMillis {
        let (mut later, mut end) = (0, now);
        for step in self.all.iter().rev() {
            if step.after <= at && at <= end.plus(SLACK) {
                return shifted(at, later);
            }
            if step.before < at && at < step.after {
                // The step skipped this time: the clock never showed it.
                return shifted(step.after, later);
            }
            later += step.by();
            end = step.before;
        }
        match self.all.last() {
            // The time lies ahead of everything the clock has shown.
            Some(last) if at > end.plus(SLACK) => last.after,
            Some(_) | None => shifted(at, later),
        }
    }

    /// What the clock showed `span` ago. Everything it showed earlier lies further back.
    pub fn ago(&self, span: Duration, now: UnixMillis) -> UnixMillis {
        let (mut left, mut end) = (millis(span), now.0);
        for step in self.all.iter().rev() {
            let since_step = end.saturating_sub(step.after.0);
            if left <= since_step {
                break;
            }
            (left, end) = (left - since_step, step.before.0);
        }
        UnixMillis(end.saturating_sub(left))
    }

    /// The encoding for the store.
    pub fn encode(&self) -> Vec<u8> {
        let numbers = self.all.iter().flat_map(|step| [step.before, step.after]);
        numbers.flat_map(|time| time.0.to_be_bytes()).collect()
    }

    /// Decodes bytes from the store. `None` if they do not encode steps.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (pairs, rest) = bytes.as_chunks::<16>();
        let number = |bytes: &[u8]| bytes.try_into().ok().map(|bytes| UnixMillis(u64::from_be_bytes(bytes)));
        let steps = pairs.iter().map(|pair| Some(Step { before: number(&pair[..8])?, after: number(&pair[8..])? }));
        let mut read = Self::default();
        for step in steps {
            read.note(step?);
        }
        rest.is_empty().then_some(read)
    }

    /// Puts the store's steps first. A process that opens its store again knows them already.
    pub(super) fn after(&self, stored: Self) -> Self {
        let mut all = stored;
        let new: Vec<_> = self.all.iter().copied().filter(|step| !all.all.contains(step)).collect();
        new.into_iter().for_each(|step| all.note(step));
        all
    }
}

fn shifted(at: UnixMillis, by: i128) -> UnixMillis {
    UnixMillis(u64::try_from((i128::from(at.0) + by).max(0)).unwrap_or(u64::MAX))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn steps(pairs: &[(u64, u64)]) -> Steps {
        let mut steps = Steps::default();
        for &(before, after) in pairs {
            steps.note(Step { before: UnixMillis(before * HOUR), after: UnixMillis(after * HOUR) });
        }
        steps
    }

    fn present(pairs: &[(u64, u64)], at: u64, now: u64) -> u64 {
        steps(pairs).present(UnixMillis(at * HOUR), UnixMillis(now * HOUR)).0 / HOUR
    }

    #[test]
    fn a_time_of_before_a_step_is_moved_by_it_and_one_of_after_it_is_not() {
        for (pairs, at, now, expected) in [
            (&[][..], 10, 20, 10),
            (&[(100, 200)], 99, 201, 199),
            (&[(100, 200)], 150, 201, 200),
            (&[(100, 200)], 200, 201, 200),
            // Set back: at 190 it was ten hours before the step, at 101 one hour ago.
            (&[(200, 100)], 190, 105, 90),
            (&[(200, 100)], 101, 105, 101),
            (&[(200, 100)], 99, 105, 0),
            // Ahead of everything: counts as the moment of the step.
            (&[(200, 100)], 900, 105, 100),
            (&[(200, 100), (110, 210)], 190, 215, 210),
            (&[(200, 100), (110, 210)], 105, 215, 205),
        ] {
            assert_eq!(present(pairs, at, now), expected, "{at} at {now} after {pairs:?}");
        }
    }

    #[test]
    fn a_span_counts_the_time_that_has_passed() {
        let ago = |pairs: &[(u64, u64)], span: u64, now: u64| {
            steps(pairs).ago(Duration::from_millis(span * HOUR), UnixMillis(now * HOUR)).0 / HOUR
        };
        assert_eq!(ago(&[], 6, 20), 14);
        assert_eq!(ago(&[(100, 200)], 6, 202), 96);
        assert_eq!(ago(&[(100, 200)], 6, 210), 204);
        assert_eq!(ago(&[(200, 100)], 6, 102), 196);
        assert_eq!(ago(&[(1, 500_000)], 6, 500_001), 0, "a clock that was not set yet");
    }

    #[test]
    fn steps_are_read_back_and_bounded() {
        let mut many = Steps::default();
        for n in 0..40 {
            many.note(Step { before: UnixMillis(n), after: UnixMillis(n + 1) });
        }
        assert_eq!(many.all.len(), STEPS_MAX);
        assert_eq!(Steps::decode(&many.encode()), Some(many.clone()));
        assert_eq!(many.after(many.clone()), many);
        assert_eq!(Steps::decode(&[1; 15]), None);
    }
}
