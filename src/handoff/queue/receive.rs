//! The stage that takes events from a hand-off queue, for as long as the daemon runs.
//!
//! All decisions happen in one task, between two awaits. Only the calls run concurrently.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::message::{Left, read};
use crate::backoff;
use crate::clock::{Clock, UnixMillis};
use crate::deadletter::redrive::{MESSAGES_MAX, Queue};
use crate::deadletter::{QueueFacts, Ship, Trouble};
use crate::event::name::Home;
use crate::handoff::target::Taken;
use crate::metrics::Metrics;
use crate::outbox::handoff::{Adopted, Handed};
use crate::outbox::{Error, Limits, Outbox, bytes_for_events};
use crate::plural::count;
use crate::shutdown::Stop;

/// The most receives at once. Each may bring ten messages of 1 MiB, so this bounds the memory: see [`MEMORY_MAX`].
pub const RECEIVES_MAX: usize = 8;

/// The most memory of this stage, in bytes: all receives at once, and one whose text is being read.
pub const MEMORY_MAX: u64 = 96 << 20;

/// The most deletions at once.
const DELETES_MAX: usize = 16;

/// How long SQS hides a received message from others. Afterwards a message that stayed on the queue is looked at again.
pub const VISIBILITY: Duration = Duration::from_secs(120);

/// How long a receive waits for a message. SQS allows no more; a queue without messages costs 4,320 calls a day.
pub const LONG_POLL: Duration = Duration::from_secs(20);

/// The most payload bytes that one commit adopts. A larger event goes alone.
const ADOPT_BYTES_MAX: usize = 1 << 20;

/// The part of the store's limits, in percent, above which nothing is taken. Clients keep the rest.
const FULL_PERCENT: u64 = 80;

/// How long a known fill of the store counts.
const FILL_FOR: Duration = Duration::from_secs(2);

/// When to look again whether the daemon may take events: while it drains, or is full.
const CLOSED_WAIT: Duration = Duration::from_secs(2);

/// The wait after a failed call, as in [`backoff`].
const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_CAP: Duration = Duration::from_secs(60);

/// The most messages that stay on the queue whose ids are remembered, so that each is named once.
const NAMED_MAX: usize = 1_000;

/// The retention below which a queue gets a warning. Events may wait on it until a sendoff runs again.
const RETENTION_MIN: Duration = Duration::from_secs(4 * 24 * 3_600);

/// What this stage needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The queue's URL or ARN.
    pub queue: String,
    /// This daemon's region and account. Events of others stay on the queue.
    pub home: Home,
    /// The limits of the store.
    pub limits: Limits,
}

/// Takes events from a queue. `open` says whether the daemon takes events now: not while it drains.
pub struct Receive<O, Q, G> {
    outbox: O,
    queue: Q,
    open: G,
    settings: Settings,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// What became of the messages of one receive.
#[derive(Default)]
struct Took {
    /// The number of messages.
    messages: usize,
    /// Why some messages were given back: the daemon drains, or the store is full or away. None is received for a while.
    closed: Option<String>,
    /// Of the messages whose events are stored here.
    receipts: Vec<String>,
    /// The ids of the messages that stay, and why.
    left: Vec<(String, Left)>,
}

impl<O: Outbox, Q: Queue, G: Fn() -> bool + Send + Sync> Receive<O, Q, G> {
    pub fn new(outbox: O, queue: Q, open: G, settings: Settings, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self { outbox, queue, open, settings, clock, metrics }
    }

    /// Runs until `stop.leasing`. Then finishes its deletions, until `stop.working` at the latest. An error means that this
    /// process can no longer use the outbox.
    pub async fn run(self, stop: Stop) -> Result<(), Error> {
        let (mut receives, mut deletes) = (FuturesUnordered::new(), FuturesUnordered::new());
        let (mut pace, mut diary) = (Pace::default(), Diary::default());
        let mut fill = Fill::default();
        self.answered();
        while !stop.leasing.is_cancelled() {
            let now = self.clock.now();
            if receives.is_empty() && pace.not_before <= now && !self.may_take(&mut fill).await? {
                pace.not_before = now.plus(CLOSED_WAIT);
            }
            while receives.len() < pace.width && pace.not_before <= now && deletes.len() < DELETES_MAX {
                receives.push(self.take());
            }
            tokio::select! {
                biased;
                // Dropping a receive hides its messages for a while. Waiting for it would delay the stop by 20 seconds.
                () = stop.leasing.cancelled() => break,
                Some(()) = deletes.next() => {}
                Some(taken) = receives.next() => match taken? {
                    Ok(took) => {
                        pace.took(took.messages, fill.is_old(self.clock.now()));
                        if took.closed.is_some() {
                            pace.not_before = self.clock.now().plus(CLOSED_WAIT);
                        }
                        diary.took(&self, &took);
                        if !took.receipts.is_empty() {
                            deletes.push(self.delete(took.receipts));
                        }
                    }
                    Err(trouble) => {
                        pace.failed(&self.clock);
                        diary.failed(&self, &trouble);
                    }
                },
                () = self.clock.sleep_until(pace.not_before), if pace.not_before > now => {}
            }
        }
        tokio::select! {
            biased;
            () = stop.working.cancelled() => {}
            () = deletes.collect::<()>() => {}
        }
        Ok(())
    }

    /// Whether the daemon takes events, and has room for some. Asks the store if its fill is not known.
    async fn may_take(&self, fill: &mut Fill) -> Result<bool, Error> {
        if !(self.open)() {
            return Ok(false);
        }
        let now = self.clock.now();
        if fill.is_old(now) {
            let census = match self.outbox.census().await {
                Ok(census) => census,
                Err(Error::Away { .. }) => return Ok(false),
                Err(error) => return Err(error),
            };
            let Limits { bytes_max, events_max, .. } = self.settings.limits;
            let above = |used: u64, limit: u64| used >= limit / 100 * FULL_PERCENT;
            let is_full = above(census.disk_bytes, bytes_for_events(bytes_max)) || above(census.events, events_max);
            if is_full && !fill.is_full {
                let queue = &self.settings.queue;
                tracing::warn!(queue, "the outbox is above {FULL_PERCENT} %: events stay on the hand-off queue");
            }
            *fill = Fill { is_full, known_until: now.plus(FILL_FOR) };
        }
        Ok(!fill.is_full)
    }

    /// Receives, and adopts what came. The inner error is the queue's.
    async fn take(&self) -> Result<Result<Took, Trouble>, Error> {
        let received = match self.queue.receive(MESSAGES_MAX).await {
            Ok(received) => received,
            Err(trouble) => return Ok(Err(trouble)),
        };
        self.answered();
        let mut took = Took { messages: received.len(), ..Took::default() };
        let (mut oldest, now) = (None, self.clock.now());
        let (mut ready, mut back) = (Vec::with_capacity(received.len()), Vec::new());
        if !received.is_empty() && !(self.open)() {
            took.closed = Some("the daemon drains".to_owned());
            back.extend(received.into_iter().map(|message| message.receipt));
        } else {
            for message in received {
                match read(&message, &self.settings.home, now) {
                    Ok(handed) => {
                        oldest = oldest.into_iter().chain(message.sent_at).min();
                        ready.push((handed, message.receipt));
                    }
                    Err(left) => took.left.push((message.message_id, left)),
                }
            }
        }
        let age = oldest.map_or(0.0, |sent_at| now.since(sent_at).as_secs_f64());
        self.metrics.handoff_queue_oldest_age_seconds.set(age);
        for (events, receipts) in commits(ready) {
            match self.outbox.adopt(events).await {
                Ok(answers) => {
                    for (answer, receipt) in answers.into_iter().zip(receipts) {
                        match word_of(answer) {
                            Ok(word) => {
                                self.count(word);
                                took.receipts.push(receipt);
                            }
                            Err(why) => {
                                self.count("busy");
                                took.closed = Some(why);
                                back.push(receipt);
                            }
                        }
                    }
                }
                Err(Error::Away { why, .. }) => {
                    took.closed = Some(why);
                    back.extend(receipts);
                }
                Err(error) => return Err(error),
            }
        }
        if !back.is_empty() {
            self.queue.release(&back).await;
        }
        Ok(Ok(took))
    }

    /// Deletes messages whose events are stored here. One that cannot be deleted comes again, as a repeat.
    async fn delete(&self, receipts: Vec<String>) {
        let answers = self.queue.delete(&receipts).await;
        let failed: Vec<Trouble> = answers.into_iter().filter_map(Result::err).collect();
        if let Some(Trouble { code, message, .. }) = failed.first() {
            let (queue, events) = (&self.settings.queue, count(failed.len() as u64, "message"));
            tracing::warn!(
                queue,
                code,
                why = message,
                "{events} could not be deleted from the hand-off queue and will be recognised as repeats"
            );
        }
    }

    /// The queue has answered, so this stage is not stuck.
    fn answered(&self) {
        let now = self.clock.now().0 as f64 / 1_000.0;
        self.metrics.handoff_queue_last_receive_timestamp_seconds.set(now);
    }

    fn count(&self, result: &str) {
        self.metrics.handoff_events.with_label_values(&["in", result]).inc();
    }
}

/// Warns about a queue that deletes messages early.
pub async fn look<S: Ship>(ship: &S, queue: &str) {
    match ship.facts(queue).await {
        Ok(QueueFacts { retention, .. }) if retention < RETENTION_MIN => {
            let retention = humantime::format_duration(retention);
            tracing::warn!(
                queue,
                %retention,
                "the hand-off queue deletes events early, taken or not: raise its MessageRetentionPeriod to 14 days"
            );
        }
        Ok(_) => {}
        Err(Trouble { code, message, .. }) => {
            tracing::warn!(queue, code, why = message, "the attributes of the hand-off queue could not be read");
        }
    }
}

/// The word for an event that is stored here, or why it is not.
fn word_of(answer: Adopted) -> Result<&'static str, String> {
    match answer {
        Adopted::Stored => Ok(Taken::Adopted.as_str()),
        Adopted::Repeat => Ok(Taken::Repeat.as_str()),
        Adopted::KnownKey { first: _ } => Ok(Taken::KnownKey.as_str()),
        Adopted::Full(full) => Err(full.to_string()),
    }
}

/// Groups events for commits of at most [`ADOPT_BYTES_MAX`].
fn commits(ready: Vec<(Handed, String)>) -> Vec<(Vec<Handed>, Vec<String>)> {
    let mut commits: Vec<(Vec<Handed>, Vec<String>)> = Vec::new();
    let mut bytes = 0;
    for (handed, receipt) in ready {
        let more = handed.event.payload.len();
        match commits.last_mut().filter(|_| bytes + more <= ADOPT_BYTES_MAX) {
            Some((events, receipts)) => {
                bytes += more;
                events.push(handed);
                receipts.push(receipt);
            }
            None => {
                bytes = more;
                commits.push((vec![handed], vec![receipt]));
            }
        }
    }
    commits
}

/// How many receives run at once: one while the queue is empty, more while it is not.
#[derive(Debug)]
struct Pace {
    width: usize,
    /// No receive begins before this time.
    not_before: UnixMillis,
    failures: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { width: 1, not_before: UnixMillis(0), failures: 0 }
    }
}

impl Pace {
    /// A receive brought this many messages. With `look_again`, no receive begins before all are back and the store's fill is
    /// read again.
    fn took(&mut self, messages: usize, look_again: bool) {
        self.failures = 0;
        self.width = match messages {
            0 => 1,
            _ if look_again => 1,
            MESSAGES_MAX.. => (self.width * 2).min(RECEIVES_MAX),
            _ => self.width,
        };
    }

    fn failed(&mut self, clock: &Clock) {
        let wait = backoff::delay(self.failures, BACKOFF_BASE, BACKOFF_CAP, BACKOFF_BASE, clock);
        self.failures += 1;
        (self.width, self.not_before) = (1, clock.now().plus(wait));
    }
}

/// Whether the store is too full, as far as that is known.
#[derive(Debug, Default)]
struct Fill {
    is_full: bool,
    known_until: UnixMillis,
}

impl Fill {
    fn is_old(&self, now: UnixMillis) -> bool {
        now >= self.known_until
    }
}

/// What was logged, so that nothing is logged twice.
#[derive(Debug, Default)]
struct Diary {
    /// Messages that stay on the queue.
    named: BTreeSet<String>,
    /// The code of the trouble that lasts.
    trouble: Option<String>,
    /// Events taken since the queue was last empty.
    events: u64,
}

impl Diary {
    fn took<O: Outbox, Q: Queue, G: Fn() -> bool + Send + Sync>(&mut self, stage: &Receive<O, Q, G>, took: &Took) {
        let Took { messages, closed, receipts, left } = took;
        let queue = &stage.settings.queue;
        if self.trouble.take().is_some() {
            tracing::info!(queue, "the hand-off queue answers again");
        }
        for (message_id, Left { kind, why }) in left {
            let kind = kind.as_str();
            if self.named.len() >= NAMED_MAX {
                self.named.pop_first();
            }
            if self.named.insert(message_id.clone()) {
                stage.metrics.handoff_queue_left.with_label_values(&[kind]).inc();
                tracing::warn!(queue, message_id, kind, why, "a message stays on the hand-off queue");
            }
        }
        if let Some(why) = closed {
            tracing::warn!(queue, why, "events stay on the hand-off queue for now");
        }
        self.events += receipts.len() as u64;
        if *messages == 0 && self.events > 0 {
            let events = std::mem::take(&mut self.events);
            tracing::info!(queue, events, "took events from the hand-off queue; it is empty now");
        }
    }

    fn failed<O: Outbox, Q: Queue, G: Fn() -> bool + Send + Sync>(
        &mut self,
        stage: &Receive<O, Q, G>,
        trouble: &Trouble,
    ) {
        stage.metrics.handoff_queue_failures.inc();
        let Trouble { code, message, .. } = trouble;
        if self.trouble.as_ref() != Some(code) {
            let queue = &stage.settings.queue;
            tracing::warn!(queue, code, why = message, "the hand-off queue cannot be read; sendoff asks again");
            self.trouble = Some(code.clone());
        }
    }
}

#[cfg(test)]
mod tests;
