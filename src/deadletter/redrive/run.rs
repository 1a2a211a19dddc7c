//! Runs the redrive: decides what to begin, and what follows from results.
//!
//! All decisions happen in one task, between two awaits. Only the calls run concurrently.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;

use super::{
    Acceptance, Destination, Ended, IDLE_RECEIVES, IN_HAND_BYTES_MAX, LEFT_MAX, MESSAGES_MAX, Plan, Queue, Tally,
    Tries, fitting, in_hand_max,
};
use crate::clock::{Clock, UnixMillis};
use crate::deadletter::Trouble;
use crate::deadletter::letter::{Letter, Reading, Received, read};

/// A redrive in progress.
pub struct Redrive<'a, Q, D> {
    queue: &'a Q,
    destination: &'a D,
    plan: Plan,
    clock: Clock,
    began: UnixMillis,
    tally: Tally,
    /// Receipts of the messages that stay, by message id. They stay hidden until the end, so that receives bring
    /// others.
    left: BTreeMap<String, String>,
    /// Letters for the destination, in the order of their receipt.
    ready: VecDeque<InHand>,
    /// Receipts of accepted letters whose deletion has not begun.
    accepted: Vec<String>,
    under_way: UnderWay,
    /// When the rate and the destination allow the next letter.
    next: UnixMillis,
    /// Set while the destination has no room.
    busy: Option<Tries>,
    /// Whether the last receive brought nothing new. Then only one receive runs at a time, and only with nothing in
    /// hand: a FIFO queue gives no more messages of a group until those in hand are deleted.
    dry: bool,
    /// Number of receives in a row without anything new and with nothing in hand.
    idle: u32,
    ended: Option<Ended>,
}

/// A letter between its receipt and its deletion.
struct InHand {
    message_id: String,
    receipt: String,
    letter: Letter,
}

/// The calls in progress.
#[derive(Default)]
struct UnderWay {
    receives: usize,
    /// The messages that these receives may bring.
    asked: usize,
    /// Letters at the destination, all in one call, and their payload bytes.
    at_destination: usize,
    at_destination_bytes: usize,
    deletes: usize,
    /// The letters in these deletes.
    deleting: usize,
}

/// What may begin next.
enum Step {
    Receive(usize),
    HandOver(Vec<InHand>),
    Delete(Vec<String>),
}

/// A finished call and its result.
enum Done {
    Received { asked: usize, with_nothing_in_hand: bool, received: Result<Vec<Received>, Trouble> },
    Answered { batch: Vec<InHand>, answers: Result<Vec<Acceptance>, Trouble> },
    Deleted { letters: usize, undeleted: usize },
}

impl<'a, Q: Queue, D: Destination> Redrive<'a, Q, D> {
    pub fn new(queue: &'a Q, destination: &'a D, plan: Plan, clock: Clock) -> Self {
        let began = clock.now();
        Self {
            queue,
            destination,
            plan,
            clock,
            began,
            tally: Tally::default(),
            left: BTreeMap::new(),
            ready: VecDeque::new(),
            accepted: Vec::new(),
            under_way: UnderWay::default(),
            next: began,
            busy: None,
            dry: false,
            idle: 0,
            ended: None,
        }
    }

    /// Works until nothing is left. After `stop`, finishes the calls in progress. Calls `report` after every step.
    pub async fn run(mut self, stop: &CancellationToken, mut report: impl FnMut(&Tally)) -> (Ended, Tally) {
        let mut work: FuturesUnordered<BoxFuture<'a, Done>> = FuturesUnordered::new();
        loop {
            self.look_for_the_end(stop);
            while let Some(step) = self.next_step() {
                work.push(self.begin(step, stop));
            }
            let wake = self.wake();
            if work.is_empty() && wake.is_none() {
                break;
            }
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.ended.is_none() => {}
                Some(done) = work.next() => {
                    self.take_in(done);
                    report(&self.tally);
                }
                () = self.clock.sleep_until(wake.unwrap_or(UnixMillis::MAX)), if wake.is_some() => {}
            }
        }
        self.release_left().await;
        (self.ended.unwrap_or(Ended::Done), self.tally)
    }

    fn look_for_the_end(&mut self, stop: &CancellationToken) {
        if stop.is_cancelled() {
            self.end(Ended::Interrupted);
        } else if self.plan.limit.is_some_and(|limit| self.tally.accepted >= limit) {
            self.end(Ended::Limit);
        } else if self.left.len() >= LEFT_MAX {
            self.end(Ended::Clogged);
        }
    }

    /// From now on only deletes begin. Letters that are not at the destination stay on the queue. The first reason to end
    /// wins.
    fn end(&mut self, ended: Ended) {
        if self.ended.is_none() {
            self.ended = Some(ended);
            let ready = std::mem::take(&mut self.ready);
            self.give_back(ready);
        }
    }

    fn next_step(&mut self) -> Option<Step> {
        if self.under_way.deletes < self.plan.calls && !self.accepted.is_empty() {
            let at = self.accepted.len().saturating_sub(MESSAGES_MAX);
            return Some(Step::Delete(self.accepted.split_off(at)));
        }
        if self.ended.is_some() {
            return None;
        }
        if self.wants_the_destination() && self.next <= self.clock.now() {
            return Some(Step::HandOver(self.batch()));
        }
        self.may_receive().map(Step::Receive)
    }

    /// Whether letters are ready, the destination is free, and the limit allows another letter.
    fn wants_the_destination(&self) -> bool {
        self.ended.is_none() && self.under_way.at_destination == 0 && !self.ready.is_empty()
    }

    /// When the rate or a busy destination allows the letters that are ready.
    fn wake(&self) -> Option<UnixMillis> {
        self.wants_the_destination().then_some(self.next)
    }

    /// Takes the letters of the next call of the destination, and reserves their time in the rate.
    fn batch(&mut self) -> Vec<InHand> {
        let sizes = self.ready.iter().map(|in_hand| in_hand.letter.payload.len());
        let fit = fitting(sizes, self.destination.letters_max(), self.plan.rate);
        let within = self.plan.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.tally.accepted));
        let count = fit.min(usize::try_from(within).unwrap_or(usize::MAX)).min(self.ready.len());
        if let Some(rate) = self.plan.rate {
            self.next = self.next.max(self.clock.now()).plus(Duration::from_secs_f64(count as f64 / rate));
        }
        self.ready.drain(..count).collect()
    }

    /// How many messages a receive may ask for now. `None` means that it must wait.
    fn may_receive(&self) -> Option<usize> {
        let UnderWay { receives, asked, at_destination, at_destination_bytes, .. } = self.under_way;
        let in_hand = self.in_hand();
        let calls_max = if self.dry { 1 } else { self.plan.calls };
        if receives >= calls_max || self.dry && in_hand > 0 || self.idle >= IDLE_RECEIVES {
            return None;
        }
        let bytes: usize = self.ready.iter().map(|in_hand| in_hand.letter.payload.len()).sum();
        // Messages that filters leave out do not count, so that a small limit does not cause small receives.
        let promised = self.tally.accepted + (self.ready.len() + at_destination + asked) as u64;
        if bytes + at_destination_bytes >= IN_HAND_BYTES_MAX || self.plan.limit.is_some_and(|limit| promised >= limit) {
            return None;
        }
        let room = in_hand_max(self.plan.rate).saturating_sub(in_hand + asked);
        (room > 0).then_some(room.min(MESSAGES_MAX))
    }

    /// Letters that were received and not yet deleted.
    fn in_hand(&self) -> usize {
        self.ready.len() + self.under_way.at_destination + self.accepted.len() + self.under_way.deleting
    }

    fn begin(&mut self, step: Step, stop: &CancellationToken) -> BoxFuture<'a, Done> {
        let (clock, stop) = (self.clock.clone(), stop.clone());
        match step {
            Step::Receive(asked) => {
                let with_nothing_in_hand = self.in_hand() == 0;
                self.under_way.receives += 1;
                self.under_way.asked += asked;
                let received = receive(self.queue, asked, clock, stop);
                received.map(move |received| Done::Received { asked, with_nothing_in_hand, received }).boxed()
            }
            Step::HandOver(batch) => {
                self.under_way.at_destination = batch.len();
                self.under_way.at_destination_bytes = batch.iter().map(|in_hand| in_hand.letter.payload.len()).sum();
                hand_over(self.destination, batch, clock, stop).boxed()
            }
            Step::Delete(receipts) => {
                self.under_way.deletes += 1;
                self.under_way.deleting += receipts.len();
                delete(self.queue, receipts, clock).boxed()
            }
        }
    }

    fn take_in(&mut self, done: Done) {
        match done {
            Done::Received { asked, with_nothing_in_hand, received } => {
                self.under_way.receives -= 1;
                self.under_way.asked -= asked;
                match received {
                    Ok(messages) => self.received(messages, with_nothing_in_hand),
                    Err(trouble) => self.end(Ended::Failed(trouble)),
                }
            }
            Done::Answered { batch, answers } => {
                self.under_way.at_destination = 0;
                self.under_way.at_destination_bytes = 0;
                match answers {
                    Ok(answers) => self.answered(batch, answers),
                    Err(trouble) => {
                        self.give_back(batch);
                        self.end(Ended::Failed(trouble));
                    }
                }
            }
            Done::Deleted { letters, undeleted } => {
                self.under_way.deletes -= 1;
                self.under_way.deleting -= letters;
                self.tally.undeleted += undeleted as u64;
                self.dry = false;
            }
        }
    }

    fn received(&mut self, messages: Vec<Received>, with_nothing_in_hand: bool) {
        let mut is_news = false;
        for message in messages {
            // For a message that was seen before, the newest receipt counts.
            if let Some(receipt) = self.left.get_mut(&message.message_id) {
                *receipt = message.receipt;
                continue;
            }
            is_news = true;
            if self.ended.is_some() {
                self.left.insert(message.message_id, message.receipt);
            } else {
                self.sort(message);
            }
        }
        self.dry = !is_news;
        // A receive beside other calls proves little: they may have emptied the queue, or have its only group in hand.
        let was_alone = with_nothing_in_hand && self.in_hand() == 0 && self.under_way.receives == 0;
        self.idle = if is_news { 0 } else { self.idle + u32::from(was_alone) };
    }

    /// Decides what to do with a message.
    fn sort(&mut self, message: Received) {
        match read(&message, &self.plan.wanted) {
            Reading::Letter(read) if !self.plan.wanted.fits(&read) => {
                self.leave("not-selected", message.message_id, message.receipt, "the filters leave it out".to_owned());
            }
            // Otherwise one redrive could use up all redrives of an event.
            Reading::Letter(read) if read.redriven_at.is_some_and(|at| at >= self.began) => {
                let why = "since this redrive began it came back, and died again".to_owned();
                self.leave("died-again", message.message_id, message.receipt, why);
            }
            Reading::Letter(_) if self.plan.dry_run => {
                let has_room = self.plan.limit.is_none_or(|limit| self.tally.accepted < limit);
                self.tally.accepted += u64::from(has_room);
                self.left.insert(message.message_id, message.receipt);
            }
            Reading::Letter(read) => {
                let Received { message_id, receipt, .. } = message;
                self.ready.push_back(InHand { message_id, receipt, letter: read.letter });
            }
            Reading::Foreign(why) => self.leave("foreign", message.message_id, message.receipt, why),
        }
    }

    fn answered(&mut self, batch: Vec<InHand>, answers: Vec<Acceptance>) {
        let (mut waiting, mut why_busy, mut floor, mut taken) = (Vec::new(), None, None, false);
        for (in_hand, answer) in batch.into_iter().zip(answers) {
            match answer {
                Acceptance::Accepted => {
                    taken = true;
                    self.tally.accepted += 1;
                    self.accepted.push(in_hand.receipt);
                }
                Acceptance::Repeat => {
                    taken = true;
                    self.tally.repeats += 1;
                    self.accepted.push(in_hand.receipt);
                }
                Acceptance::Busy { why, retry_after } => {
                    why_busy = Some(why);
                    floor = floor.max(retry_after);
                    waiting.push(in_hand);
                }
                Acceptance::Ceiling(why) => self.leave("ceiling", in_hand.message_id, in_hand.receipt, why),
                Acceptance::Refused(why) => self.leave("refused", in_hand.message_id, in_hand.receipt, why),
            }
        }
        let Some(message) = why_busy else {
            self.busy = None;
            return;
        };
        if self.ended.is_some() {
            return self.give_back(waiting);
        }
        let now = self.clock.now();
        // The destination accepted some of them, so the patience starts again.
        let fresh = Tries::new(now);
        let mut tries = if taken { fresh } else { self.busy.unwrap_or(fresh) };
        let wait = tries.wait(floor, &self.clock);
        self.busy = Some(tries);
        match wait {
            Some(wait) => {
                self.next = self.next.max(now.plus(wait));
                waiting.into_iter().rev().for_each(|in_hand| self.ready.push_front(in_hand));
            }
            None => {
                self.give_back(waiting);
                self.end(Ended::Failed(Trouble { code: "busy".to_owned(), message, transient: true }));
            }
        }
    }

    fn leave(&mut self, kind: &'static str, message_id: String, receipt: String, why: String) {
        self.tally.leave(kind, &message_id, why);
        self.left.insert(message_id, receipt);
    }

    fn give_back(&mut self, letters: impl IntoIterator<Item = InHand>) {
        self.left.extend(letters.into_iter().map(|in_hand| (in_hand.message_id, in_hand.receipt)));
    }

    async fn release_left(&mut self) {
        let receipts: Vec<String> = std::mem::take(&mut self.left).into_values().collect();
        let queue = self.queue;
        stream::iter(receipts.chunks(MESSAGES_MAX))
            .for_each_concurrent(self.plan.calls, |some| queue.release(some))
            .await;
    }
}

async fn receive<Q: Queue>(
    queue: &Q,
    messages_max: usize,
    clock: Clock,
    stop: CancellationToken,
) -> Result<Vec<Received>, Trouble> {
    let mut tries = Tries::new(clock.now());
    loop {
        match queue.receive(messages_max).await {
            Ok(received) => return Ok(received),
            Err(trouble) => tries.again(trouble, &clock, &stop).await?,
        }
    }
}

async fn hand_over<D: Destination>(destination: &D, batch: Vec<InHand>, clock: Clock, stop: CancellationToken) -> Done {
    let letters: Vec<Letter> = batch.iter().map(|in_hand| in_hand.letter.clone()).collect();
    let mut tries = Tries::new(clock.now());
    let answers = loop {
        match destination.accept(&letters).await {
            Ok(answers) => break Ok(answers),
            Err(trouble) => {
                if let Err(trouble) = tries.again(trouble, &clock, &stop).await {
                    break Err(trouble);
                }
            }
        }
    };
    Done::Answered { batch, answers }
}

/// Deletes accepted letters. Continues after `stop`, because these letters would otherwise come back as duplicates.
async fn delete<Q: Queue>(queue: &Q, mut receipts: Vec<String>, clock: Clock) -> Done {
    let letters = receipts.len();
    let mut undeleted = 0;
    let mut tries = Tries::new(clock.now());
    while !receipts.is_empty() {
        let answers = queue.delete(&receipts).await;
        let (mut transient, mut again) = (None, Vec::new());
        for (receipt, answer) in receipts.into_iter().zip(answers) {
            match answer {
                Ok(()) => {}
                Err(trouble) if trouble.transient => {
                    transient = Some(trouble);
                    again.push(receipt);
                }
                Err(_) => undeleted += 1,
            }
        }
        receipts = again;
        if transient.is_some() {
            let Some(wait) = tries.wait(None, &clock) else { break };
            clock.sleep(wait).await;
        }
    }
    Done::Deleted { letters, undeleted: undeleted + receipts.len() }
}
