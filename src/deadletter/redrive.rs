//! Back from a queue: receive, have it accepted durably, delete.
//!
//! Holds: a message is deleted only after the door said that its event is stored, now or before (G2). A crash between any
//! two steps costs a repeat at most, which the door recognises.
//! Limits: several receives and deletes of ten are under way at once, and one call of the door, which takes all that has
//! come meanwhile; [`IN_HAND_MAX`] letters and [`IN_HAND_BYTES_MAX`] are in memory; [`LEFT_MAX`] messages that stay are
//! remembered, so that none is looked at for ever.
//! Fails: what is foreign, broken or refused stays on the queue, counted and named; a door or queue that is down for
//! [`PATIENCE`] ends the redrive, which can be started again at any time.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Trouble;
use super::letter::{Letter, Received, Wanted};
use crate::backoff;
use crate::clock::{Clock, UnixMillis};

mod run;

pub use run::Redrive;

/// Messages that stay which are remembered: as many as SQS lets be in flight on a standard queue.
const LEFT_MAX: usize = 120_000;

/// Messages named in the summary for each reason.
const NAMED_MAX: usize = 10;

/// Receives in a row without anything new, after which the queue counts as done.
const IDLE_RECEIVES: u32 = 3;

/// How long a queue or door that is down, throttled or full is tried again.
const PATIENCE: Duration = Duration::from_secs(60);

const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// Messages of one receive, delete or release (SQS).
pub const MESSAGES_MAX: usize = 10;

/// Letters in memory, from their receipt to their deletion.
const IN_HAND_MAX: usize = 400;

/// Payload bytes in memory beyond which nothing more is received; what is under way then may bring [`Plan::calls`] times
/// ten messages of 1 MiB.
const IN_HAND_BYTES_MAX: usize = 32 << 20;

/// Letters handed to a door at once: they share one commit.
const LETTERS_MAX: usize = 100;

/// Payload bytes handed to the door at once; a larger letter goes alone.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// With a rate, no more is in hand than this time's worth, so that none is hidden for long.
const IN_HAND_TIME: Duration = Duration::from_secs(10);

/// Where letters come from.
pub trait Queue: Send + Sync {
    /// At most so many messages, of 1 to [`MESSAGES_MAX`], hidden from others for a while; none if there seem to be no more.
    fn receive(&self, messages_max: usize) -> impl Future<Output = Result<Vec<Received>, Trouble>> + Send;

    /// Deletes at most [`MESSAGES_MAX`] messages by their receipts; one answer each.
    fn delete(&self, receipts: &[String]) -> impl Future<Output = Vec<Result<(), Trouble>>> + Send;

    /// Shows at most [`MESSAGES_MAX`] messages to others again, now rather than later.
    fn release(&self, receipts: &[String]) -> impl Future<Output = ()> + Send;
}

/// Who accepts letters: the daemon, a store, or Lambda itself.
pub trait Door: Send + Sync {
    /// Letters of one call, at most: as many repeats a crash during it costs.
    fn letters_max(&self) -> usize {
        LETTERS_MAX
    }

    /// Returns once everything that it calls accepted is on stable storage; one answer a letter, in order.
    fn accept(&self, letters: &[Letter]) -> impl Future<Output = Result<Vec<Answer>, Trouble>> + Send;
}

/// What the door said of one letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// It was accepted before.
    Repeat,
    /// No room now; in a while, of this length if the door says it.
    Busy {
        why: String,
        retry_after: Option<Duration>,
    },
    /// It came back too often.
    Ceiling(String),
    /// It cannot be accepted at all.
    Refused(String),
}

/// How to redrive.
#[derive(Debug, Clone)]
pub struct Plan {
    pub wanted: Wanted,
    /// Letters to accept, at most; none is all.
    pub limit: Option<u64>,
    /// Letters a second, at most.
    pub rate: Option<f64>,
    /// Looks, and leaves everything where it is.
    pub dry_run: bool,
    /// Receives under way at once, and deletions; at least 1.
    pub calls: usize,
}

/// What was done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Accepted for the first time; of a dry run, those that would be.
    pub accepted: u64,
    /// Accepted before, by this redrive or another.
    pub repeats: u64,
    /// Accepted, but not deleted: they show up again, and are repeats then.
    pub undeleted: u64,
    /// Left on the queue, by why.
    pub left: BTreeMap<&'static str, Left>,
}

/// Messages left for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    pub count: u64,
    /// The ids of the first few, with what is wrong.
    pub named: Vec<(String, String)>,
}

impl Tally {
    /// Messages that were looked at.
    pub fn seen(&self) -> u64 {
        self.accepted + self.repeats + self.left.values().map(|left| left.count).sum::<u64>()
    }

    fn leave(&mut self, kind: &'static str, message_id: &str, why: String) {
        let left = self.left.entry(kind).or_default();
        left.count += 1;
        if left.named.len() < NAMED_MAX {
            left.named.push((message_id.to_owned(), why));
        }
    }
}

/// How a redrive ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is left to be redriven.
    Done,
    Limit,
    Interrupted,
    /// Too many messages stay on the queue to find others among them.
    Clogged,
    Failed(Trouble),
}

/// How many of the letters, by their sizes in bytes, go to the door together: by bytes, and with a rate not more than a
/// tenth of a second of it.
fn fitting(sizes: impl Iterator<Item = usize>, letters_max: usize, rate: Option<f64>) -> usize {
    let at_once = rate.map_or(letters_max, |rate| ((rate / 10.0) as usize).clamp(1, letters_max));
    let mut bytes = 0;
    let fit = sizes.take_while(|size| {
        bytes += size;
        bytes <= BATCH_BYTES_MAX
    });
    fit.count().clamp(1, at_once)
}

/// How many letters may be in hand at a rate.
fn in_hand_max(rate: Option<f64>) -> usize {
    rate.map_or(IN_HAND_MAX, |rate| ((rate * IN_HAND_TIME.as_secs_f64()) as usize).clamp(1, IN_HAND_MAX))
}

/// Trying again, for as long as the patience lasts.
#[derive(Debug, Clone, Copy)]
struct Tries {
    until: UnixMillis,
    failures: u32,
}

impl Tries {
    fn new(now: UnixMillis) -> Self {
        Self { until: now.plus(PATIENCE), failures: 0 }
    }

    /// How long to wait before the next try, at least `floor`; none if the patience ends before.
    fn wait(&mut self, floor: Option<Duration>, clock: &Clock) -> Option<Duration> {
        let wait = backoff::delay(self.failures, BACKOFF_BASE, BACKOFF_CAP, floor.unwrap_or(BACKOFF_BASE), clock);
        self.failures += 1;
        (clock.now().plus(wait) <= self.until).then_some(wait)
    }

    /// Waits a little, if the trouble may pass and there is time left; else, or told to stop, gives it back.
    async fn again(&mut self, trouble: Trouble, clock: &Clock, stop: &CancellationToken) -> Result<(), Trouble> {
        let wait = if trouble.transient { self.wait(None, clock) } else { None };
        let Some(wait) = wait else { return Err(trouble) };
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(trouble),
            () = clock.sleep(wait) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
