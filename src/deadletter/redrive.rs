//! Redrives dead letters from a queue: receive, have them accepted durably, delete.
//!
//! Holds: a message is deleted only after the destination said that its event is stored, now or earlier (G2). A crash between
//! any two steps costs at most a duplicate, which the destination recognises.
//! Limits: several concurrent receives and deletes of ten messages, and one call of the destination. At most [`IN_HAND_MAX`]
//! letters, and about [`IN_HAND_BYTES_MAX`], are in memory. At most [`LEFT_MAX`] messages that stay on the queue are
//! remembered, so that they are not looked at again and again.
//! Fails: foreign, broken and refused messages stay on the queue, are counted and named. A destination or queue that is down
//! for [`PATIENCE`] ends the redrive. It can be started again at any time.

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

/// The most remembered messages that stay on the queue. SQS allows as many in flight on a standard queue.
const LEFT_MAX: usize = 120_000;

/// The most messages named in the summary for each reason.
const NAMED_MAX: usize = 10;

/// The number of receives in a row without anything new after which the redrive is done.
const IDLE_RECEIVES: u32 = 3;

/// How long to retry a queue or destination that is down, throttled or full.
const PATIENCE: Duration = Duration::from_secs(60);

const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// The most messages of one receive, delete or release (SQS).
pub const MESSAGES_MAX: usize = 10;

/// The most letters in memory, each from its receipt to its deletion.
const IN_HAND_MAX: usize = 400;

/// Payload bytes in memory beyond which nothing more is received. Receives that are under way may still bring
/// [`Plan::calls`] times ten messages of 1 MiB.
const IN_HAND_BYTES_MAX: usize = 32 << 20;

/// The most letters in one call of the destination. They share one commit.
const LETTERS_MAX: usize = 100;

/// The most payload bytes in one call of the destination. A larger letter goes alone.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// With a rate, only this time's worth of letters is in hand, so that no message is hidden for long.
const IN_HAND_TIME: Duration = Duration::from_secs(10);

/// The queue that letters come from.
pub trait Queue: Send + Sync {
    /// Receives at most `messages_max` messages (1 to [`MESSAGES_MAX`]) and hides them from others for a while. Empty
    /// if the queue seems to be empty.
    fn receive(&self, messages_max: usize) -> impl Future<Output = Result<Vec<Received>, Trouble>> + Send;

    /// Deletes at most [`MESSAGES_MAX`] messages by their receipts. Returns one answer for each.
    fn delete(&self, receipts: &[String]) -> impl Future<Output = Vec<Result<(), Trouble>>> + Send;

    /// Makes at most [`MESSAGES_MAX`] messages visible to others again, now rather than later.
    fn release(&self, receipts: &[String]) -> impl Future<Output = ()> + Send;
}

/// Accepts letters: the daemon, a store, or Lambda itself.
pub trait Destination: Send + Sync {
    /// The most letters in one call. A crash during the call causes at most this many duplicates.
    fn letters_max(&self) -> usize {
        LETTERS_MAX
    }

    /// Returns when every letter that it calls accepted is on stable storage. One answer for each letter, in order.
    fn accept(&self, letters: &[Letter]) -> impl Future<Output = Result<Vec<Acceptance>, Trouble>> + Send;
}

/// The destination's answer for one letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    Accepted,
    /// The letter was accepted before.
    Repeat,
    /// No room now. Retry later, after `retry_after` if the destination gives it.
    Busy {
        why: String,
        retry_after: Option<Duration>,
    },
    /// The event has had its last redrive.
    Ceiling(String),
    /// The letter can never be accepted.
    Refused(String),
}

/// How to redrive.
#[derive(Debug, Clone)]
pub struct Plan {
    pub wanted: Wanted,
    /// The most letters to accept. `None` means all.
    pub limit: Option<u64>,
    /// The most letters a second.
    pub rate: Option<f64>,
    /// Only look, and leave all messages on the queue.
    pub dry_run: bool,
    /// The most concurrent receives, and the most concurrent deletes. At least 1.
    pub calls: usize,
}

/// The results so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Accepted for the first time. In a dry run, those that would be.
    pub accepted: u64,
    /// Accepted before, by this redrive or another.
    pub repeats: u64,
    /// Accepted but not deleted. They show up again, as duplicates.
    pub undeleted: u64,
    /// Left on the queue, by reason.
    pub left: BTreeMap<&'static str, Left>,
}

/// Messages left for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    pub count: u64,
    /// The ids of the first few, each with what is wrong.
    pub named: Vec<(String, String)>,
}

impl Tally {
    /// The number of messages looked at.
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
    /// No message is left to redrive.
    Done,
    Limit,
    Interrupted,
    /// Too many messages stay on the queue to find others among them.
    Clogged,
    Failed(Trouble),
}

/// How many letters, by their sizes in bytes, go to the destination together. Limited by bytes, and with a rate by a tenth of
/// a second of it.
fn fitting(sizes: impl Iterator<Item = usize>, letters_max: usize, rate: Option<f64>) -> usize {
    let at_once = rate.map_or(letters_max, |rate| ((rate / 10.0) as usize).clamp(1, letters_max));
    let mut bytes = 0;
    let fit = sizes.take_while(|size| {
        bytes += size;
        bytes <= BATCH_BYTES_MAX
    });
    fit.count().clamp(1, at_once)
}

/// The most letters in hand at a rate.
fn in_hand_max(rate: Option<f64>) -> usize {
    rate.map_or(IN_HAND_MAX, |rate| ((rate * IN_HAND_TIME.as_secs_f64()) as usize).clamp(1, IN_HAND_MAX))
}

/// Retries, until the patience ends.
#[derive(Debug, Clone, Copy)]
struct Tries {
    until: UnixMillis,
    failures: u32,
}

impl Tries {
    fn new(now: UnixMillis) -> Self {
        Self { until: now.plus(PATIENCE), failures: 0 }
    }

    /// How long to wait before the next try, at least `floor`. `None` means that the patience ends before.
    fn wait(&mut self, floor: Option<Duration>, clock: &Clock) -> Option<Duration> {
        let wait = backoff::delay(self.failures, BACKOFF_BASE, BACKOFF_CAP, floor.unwrap_or(BACKOFF_BASE), clock);
        self.failures += 1;
        (clock.now().plus(wait) <= self.until).then_some(wait)
    }

    /// Waits before the next try. Returns the trouble if it cannot pass, the patience is over, or `stop` is cancelled.
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
