//! Decides whose fault a failure is: the event's own, or an outage's. Pure. docs/adr/0012 has the reasons.
//!
//! One event alone proves nothing. So each lane remembers how its last attempts ended, and each region the last attempt
//! of each of its lanes. These are the *witnesses*. An event is charged for a failure if other events of its lane got
//! through meanwhile. If it is the only one that fails and nothing else is known, Lambda is asked (`DryRun`). Otherwise
//! the failure counts as an outage: nothing is charged, and the lane is held and probed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::dispatch::verdict::{Blame, Scope};

/// The most results remembered, over all witnesses.
const WITNESSES_MAX: usize = 64;

/// The most results remembered of one witness.
const WORDS_EACH_MAX: usize = 4;

/// How long a success counts for its lane.
const FRESH: Duration = Duration::from_secs(2 * 60);

/// How long a failure counts against its lane.
const STALE: Duration = Duration::from_secs(5 * 60);

/// A lane counts as well while it has this many successes for each failure. With three, in a lane that fails at random
/// and is just well enough to be charged, one event in sixteen million fails twelve times in a row.
const WELL: usize = 3;

/// The most failing events remembered.
const FAILING_MAX: usize = 1_024;

const OUTAGE: Blame = Blame::Outage { scope: Scope::Lane };

/// The result of one attempt.
#[derive(Debug, Clone, Copy)]
struct Word<W> {
    who: W,
    began: Instant,
    ended: Instant,
    well: bool,
}

/// The latest results, oldest first.
#[derive(Debug)]
pub(super) struct Witnesses<W> {
    words: VecDeque<Word<W>>,
}

impl<W: Copy + Eq> Witnesses<W> {
    pub fn new() -> Self {
        Self { words: VecDeque::new() }
    }

    /// Replaces the earlier results of a witness by this one.
    pub fn note_latest(&mut self, who: W, well: bool, began: Instant, ended: Instant) {
        self.forget(who);
        self.note(who, well, began, ended);
    }

    /// Adds the result of one attempt.
    fn note(&mut self, who: W, well: bool, began: Instant, ended: Instant) {
        // An event that is retried again and again must not push out the results of others.
        if self.words.iter().filter(|word| word.who == who).count() >= WORDS_EACH_MAX
            && let Some(first) = self.words.iter().position(|word| word.who == who)
        {
            self.words.remove(first);
        }
        if self.words.len() >= WITNESSES_MAX {
            self.words.pop_front();
        }
        self.words.push_back(Word { who, began, ended, well });
    }

    /// Removes a witness that no longer counts, because its event was buried or its lane removed.
    pub fn forget(&mut self, who: W) {
        self.words.retain(|word| word.who != who);
    }

    /// How many recent results of others are successes, and how many are failures.
    fn of_others(&self, who: W, now: Instant, counts: impl Fn(W) -> bool) -> (usize, usize) {
        let others = || self.words.iter().filter(|word| word.who != who);
        let age = |word: &Word<W>| now.saturating_duration_since(word.ended);
        let well = others().filter(|word| word.well && age(word) <= FRESH).count();
        let ill = others().filter(|word| !word.well && age(word) <= STALE && counts(word.who)).count();
        (well, ill)
    }

    /// Whether another's attempt began at `since` or later and succeeded.
    fn another_got_through(&self, who: W, since: Instant) -> bool {
        self.words.iter().any(|word| word.who != who && word.well && word.began >= since)
    }

    /// Whether the failures of others outweigh their successes.
    pub fn contradict(&self, who: W, now: Instant) -> bool {
        let (well, ill) = self.of_others(who, now, |_| true);
        ill > 0 && well < WELL * ill
    }
}

/// A failure that may be the event's own fault.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doubt<E> {
    pub event: E,
    pub began: Instant,
    pub ended: Instant,
    /// The function ran and failed, so it can be reached. No dry run is needed.
    pub ran: bool,
    /// Other functions of the region fail too, and few get through.
    pub others_fail: bool,
}

/// An event whose last attempt failed.
#[derive(Debug, Clone, Copy)]
struct Failing {
    last: Instant,
    /// Other events got through meanwhile, so this event's failures say nothing about the lane.
    is_suspect: bool,
}

/// How the events of a lane fare.
#[derive(Debug)]
pub(super) struct Health<E> {
    witnesses: Witnesses<E>,
    failing: BTreeMap<E, Failing>,
    /// Whether a dry run is under way.
    pub asking: bool,
    doubtful: bool,
}

impl<E: Copy + Ord> Health<E> {
    pub fn new() -> Self {
        Self { witnesses: Witnesses::new(), failing: BTreeMap::new(), asking: false, doubtful: false }
    }

    /// Decides whose fault a failure is. Call this before [`Health::failed`].
    pub fn weigh(&self, doubt: Doubt<E>) -> Blame {
        let Doubt { event, began, ended, ran, others_fail } = doubt;
        let (well, ill) = self.of_others(event, ended);
        match () {
            () if self.is_alone(event, began, ended) => Blame::Event,
            () if ill > 0 && well < WELL * (ill + 1) => OUTAGE,
            () if ran => Blame::Event,
            () if others_fail => OUTAGE,
            () if self.asking => Blame::Wait,
            () => Blame::Ask,
        }
    }

    fn of_others(&self, event: E, now: Instant) -> (usize, usize) {
        self.witnesses.of_others(event, now, |who| self.failing.get(&who).is_none_or(|failing| !failing.is_suspect))
    }

    /// Whether most other events of the lane get through, and one did since this event's last attempt.
    fn is_alone(&self, event: E, began: Instant, ended: Instant) -> bool {
        let since = self.failing.get(&event).map_or(began, |failing| failing.last.min(began));
        let (well, ill) = self.of_others(event, ended);
        well >= WELL * (ill + 1) && self.witnesses.another_got_through(event, since)
    }

    /// An attempt failed. Returns whether other events of the lane got through meanwhile.
    pub fn failed(&mut self, event: E, began: Instant, ended: Instant) -> bool {
        // An event that is a suspect stays one until it gets through.
        let was_suspect = self.failing.get(&event).is_some_and(|failing| failing.is_suspect);
        let is_suspect = was_suspect || self.is_alone(event, began, ended);
        self.failing.insert(event, Failing { last: ended, is_suspect });
        if self.failing.len() > FAILING_MAX {
            self.failing.pop_first();
        }
        self.witnesses.note(event, false, began, ended);
        let (well, ill) = self.of_others(event, ended);
        let ill = ill + usize::from(!is_suspect);
        self.doubtful = ill > 0 && well < WELL * ill;
        is_suspect
    }

    /// An attempt succeeded, and its event is gone.
    pub fn succeeded(&mut self, event: E, began: Instant, ended: Instant) {
        self.failing.remove(&event);
        self.witnesses.note(event, true, began, ended);
        if self.doubtful {
            let (well, ill) = self.of_others(event, ended);
            self.doubtful = ill > 0 && well + 1 < WELL * ill;
        }
    }

    /// The event was buried, so its results no longer count.
    pub fn buried(&mut self, event: E) {
        self.failing.remove(&event);
        self.witnesses.forget(event);
    }

    /// Whether more attempts fail than in a lane that is well. Events that were never attempted then go first, because
    /// those that failed tell nothing new.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }
}

#[cfg(test)]
mod tests;
