//! Back from a queue: receive, have it accepted durably, delete.
//!
//! Holds: a message is deleted only after the door said that its event is stored, now or before (G2). A crash between any
//! two steps costs a repeat at most, which the door recognises.
//! Limits: ten messages at a time; [`LEFT_MAX`] messages that stay are remembered, so that none is looked at for ever.
//! Fails: what is foreign, broken or refused stays on the queue, counted and named; a door or queue that is down for
//! [`PATIENCE`] ends the redrive, which can be started again at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Trouble;
use super::letter::{Letter, Reading, Received, Wanted, read};
use crate::backoff;
use crate::clock::{Clock, UnixMillis};

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

/// Payload bytes handed to the door at once; a larger letter goes alone.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// Where letters come from.
pub trait Queue: Send + Sync {
    /// At most ten messages, hidden from others for a while; none if there seem to be no more.
    fn receive(&self) -> impl Future<Output = Result<Vec<Received>, Trouble>> + Send;

    /// Deletes messages by their receipts; one answer each.
    fn delete(&self, receipts: &[String]) -> impl Future<Output = Vec<Result<(), Trouble>>> + Send;

    /// Shows messages to others again, now rather than later.
    fn release(&self, receipts: &[String]) -> impl Future<Output = ()> + Send;
}

/// Who accepts letters: the daemon.
pub trait Door: Send + Sync {
    /// Returns once everything that it calls accepted is on stable storage; one answer a letter, in order.
    fn accept(&self, letters: &[Letter]) -> impl Future<Output = Result<Vec<Answer>, Trouble>> + Send;
}

/// What the door said of one letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// It was accepted before.
    Repeat,
    /// No room now.
    Busy(String),
    /// It came back too often.
    Ceiling(String),
    /// It cannot be accepted at all.
    Refused(String),
}

/// How to redrive.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub wanted: Wanted,
    /// Letters to accept, at most; none is all.
    pub limit: Option<u64>,
    /// Letters a second, at most.
    pub rate: Option<f64>,
    /// Looks, and leaves everything where it is.
    pub dry_run: bool,
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

/// A redrive under way.
pub struct Redrive<'a, Q, D> {
    queue: &'a Q,
    door: &'a D,
    plan: Plan,
    clock: Clock,
    tally: Tally,
    /// The receipts of messages that stay, by message id: they stay hidden until the end, so that others are received.
    left: BTreeMap<String, String>,
    /// When the rate allows the next letter.
    next: UnixMillis,
    began: UnixMillis,
}

impl<'a, Q: Queue, D: Door> Redrive<'a, Q, D> {
    pub fn new(queue: &'a Q, door: &'a D, plan: Plan, clock: Clock) -> Self {
        let began = clock.now();
        Self { queue, door, plan, clock, tally: Tally::default(), left: BTreeMap::new(), next: began, began }
    }

    /// Works until nothing is left, or told to stop: then the batch in hand is finished. `report` hears of every batch.
    pub async fn run(mut self, stop: &CancellationToken, mut report: impl FnMut(&Tally)) -> (Ended, Tally) {
        let mut idle = 0;
        let ended = loop {
            if stop.is_cancelled() {
                break Ended::Interrupted;
            }
            if self.plan.limit.is_some_and(|limit| self.tally.accepted >= limit) {
                break Ended::Limit;
            }
            if self.left.len() >= LEFT_MAX {
                break Ended::Clogged;
            }
            let received = tokio::select! {
                biased;
                received = self.receive() => received,
                () = stop.cancelled() => break Ended::Interrupted,
            };
            let received = match received {
                Ok(received) => received,
                Err(trouble) => break Ended::Failed(trouble),
            };
            let fresh = self.sort_out(received);
            idle = if fresh.is_empty() { idle + 1 } else { 0 };
            if idle >= IDLE_RECEIVES {
                break Ended::Done;
            }
            let done = self.batch(fresh, stop).await;
            report(&self.tally);
            match done {
                Ok(()) => {}
                Err(ended) => break ended,
            }
        };
        self.release_left().await;
        (ended, self.tally)
    }

    async fn receive(&self) -> Result<Vec<Received>, Trouble> {
        let mut tries = Tries::new(&self.clock);
        loop {
            match self.queue.receive().await {
                Ok(received) => return Ok(received),
                Err(trouble) => tries.again(trouble).await?,
            }
        }
    }

    /// The messages that were not seen before; the newest receipt of the others counts.
    fn sort_out(&mut self, received: Vec<Received>) -> Vec<Received> {
        let mut fresh = Vec::new();
        for message in received {
            match self.left.get_mut(&message.message_id) {
                Some(receipt) => *receipt = message.receipt,
                None => fresh.push(message),
            }
        }
        fresh
    }

    async fn batch(&mut self, messages: Vec<Received>, stop: &CancellationToken) -> Result<(), Ended> {
        let mut letters = Vec::new();
        for message in messages {
            let room = self.plan.limit.is_none_or(|limit| self.tally.accepted + (letters.len() as u64) < limit);
            match read(&message, &self.plan.wanted) {
                Reading::Letter(read) if !self.plan.wanted.fits(&read) => {
                    self.leave("not-selected", message, "the filters leave it out".to_owned());
                }
                // Else one redrive would use up all that an event has.
                Reading::Letter(read) if read.redriven_at.is_some_and(|at| at >= self.began) => {
                    self.leave(
                        "died-again",
                        message,
                        "since this redrive began it came back, and died again".to_owned(),
                    );
                }
                // Beyond the limit: not looked at, only given back.
                Reading::Letter(_) if !room => drop(self.left.insert(message.message_id, message.receipt)),
                Reading::Letter(_) if self.plan.dry_run => {
                    self.tally.accepted += 1;
                    self.left.insert(message.message_id, message.receipt);
                }
                Reading::Letter(read) => letters.push((message, read.letter)),
                Reading::Foreign(why) => self.leave("foreign", message, why),
            }
        }
        while !letters.is_empty() {
            let (rest, mut bytes) = (letters.split_off(fitting(&letters, self.plan.rate)), 0);
            let now = std::mem::replace(&mut letters, rest);
            for (_, letter) in &now {
                bytes += letter.payload.len();
            }
            tracing::debug!(letters = now.len(), bytes, "handing letters to the door");
            if !self.pace(now.len(), stop).await {
                self.give_back(now.into_iter().chain(letters));
                return Err(Ended::Interrupted);
            }
            if let Err((trouble, now)) = self.hand_over(now).await {
                self.give_back(now.into_iter().chain(letters));
                return Err(Ended::Failed(trouble));
            }
        }
        Ok(())
    }

    /// Waits until the rate allows so many letters; false if told to stop meanwhile.
    async fn pace(&mut self, letters: usize, stop: &CancellationToken) -> bool {
        let Some(rate) = self.plan.rate else { return true };
        let now = self.clock.now();
        let start = self.next.max(now);
        self.next = start.plus(Duration::from_secs_f64(letters as f64 / rate));
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = self.clock.sleep_until(start) => true,
        }
    }

    /// To the door, and then off the queue. An error gives back those that are neither.
    async fn hand_over(&mut self, batch: Vec<(Received, Letter)>) -> Result<(), (Trouble, Vec<(Received, Letter)>)> {
        let clock = self.clock.clone();
        let mut tries = Tries::new(&clock);
        let mut waiting = batch;
        while !waiting.is_empty() {
            let letters: Vec<Letter> = waiting.iter().map(|(_, letter)| letter.clone()).collect();
            let answers = match self.door.accept(&letters).await {
                Ok(answers) => answers,
                Err(trouble) => match tries.again(trouble).await {
                    Ok(()) => continue,
                    Err(trouble) => return Err((trouble, waiting)),
                },
            };
            let (mut done, mut busy, mut why_busy) = (Vec::new(), Vec::new(), None);
            for ((message, letter), answer) in waiting.into_iter().zip(answers) {
                match answer {
                    Answer::Accepted => {
                        self.tally.accepted += 1;
                        done.push(message.receipt);
                    }
                    Answer::Repeat => {
                        self.tally.repeats += 1;
                        done.push(message.receipt);
                    }
                    Answer::Busy(why) => {
                        why_busy = Some(why);
                        busy.push((message, letter));
                    }
                    Answer::Ceiling(why) => self.leave("ceiling", message, why),
                    Answer::Refused(why) => self.leave("refused", message, why),
                }
            }
            self.delete(done).await;
            waiting = busy;
            if let Some(message) = why_busy
                && let Err(trouble) = tries.again(Trouble { code: "full".into(), message, transient: true }).await
            {
                return Err((trouble, waiting));
            }
        }
        Ok(())
    }

    async fn delete(&mut self, mut receipts: Vec<String>) {
        let clock = self.clock.clone();
        let mut tries = Tries::new(&clock);
        while !receipts.is_empty() {
            let answers = self.queue.delete(&receipts).await;
            let mut transient = None;
            let mut again = Vec::new();
            for (receipt, answer) in receipts.into_iter().zip(answers) {
                match answer {
                    Ok(()) => {}
                    Err(trouble) if trouble.transient => {
                        transient = Some(trouble);
                        again.push(receipt);
                    }
                    Err(_) => self.tally.undeleted += 1,
                }
            }
            receipts = again;
            if let Some(trouble) = transient
                && tries.again(trouble).await.is_err()
            {
                self.tally.undeleted += receipts.len() as u64;
                return;
            }
        }
    }

    fn leave(&mut self, kind: &'static str, message: Received, why: String) {
        self.tally.leave(kind, &message.message_id, why);
        self.left.insert(message.message_id, message.receipt);
    }

    fn give_back(&mut self, messages: impl IntoIterator<Item = (Received, Letter)>) {
        self.left.extend(messages.into_iter().map(|(message, _)| (message.message_id, message.receipt)));
    }

    async fn release_left(&self) {
        let receipts: BTreeSet<&String> = self.left.values().collect();
        let receipts: Vec<String> = receipts.into_iter().cloned().collect();
        for receipts in receipts.chunks(10) {
            self.queue.release(receipts).await;
        }
    }
}

/// How many of the letters go to the door together: by bytes, and with a rate not more than a tenth of a second of it.
fn fitting(letters: &[(Received, Letter)], rate: Option<f64>) -> usize {
    let at_once = rate.map_or(usize::MAX, |rate| ((rate / 10.0) as usize).max(1));
    let mut bytes = 0;
    let fit = letters.iter().take_while(|(_, letter)| {
        bytes += letter.payload.len();
        bytes <= BATCH_BYTES_MAX
    });
    fit.count().clamp(1, at_once)
}

/// Trying again, for as long as the patience lasts.
struct Tries<'a> {
    clock: &'a Clock,
    until: UnixMillis,
    failures: u32,
}

impl<'a> Tries<'a> {
    fn new(clock: &'a Clock) -> Self {
        Self { clock, until: clock.now().plus(PATIENCE), failures: 0 }
    }

    /// Waits a little, if the trouble may pass and there is time left; else gives it back.
    async fn again(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        let wait = backoff::delay(self.failures, BACKOFF_BASE, BACKOFF_CAP, BACKOFF_BASE, self.clock);
        if !trouble.transient || self.clock.now().plus(wait) > self.until {
            return Err(trouble);
        }
        self.failures += 1;
        self.clock.sleep(wait).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
