//! The shipping loop: lease buried events, send them, settle what SQS confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::message::{MESSAGE_BYTES_MAX, Message, message_of};
use super::{QueueFacts, Settings, Ship, Shipment, Trouble};
use crate::backoff;
use crate::clock::{Clock, UnixMillis};
use crate::event::FunctionName;
use crate::metrics::Metrics;
use crate::outbox::{
    Burial, Changes, Error, History, LaneId, LaneView, LaneWant, Lease, LeaseWant, Leased, Outbox, Settlement, Which,
    patience,
};
use crate::past::{self, End, How, Notes, Past};
use crate::shutdown::Stop;

/// The most messages of one batch (SQS, `SendMessageBatch`).
const BATCH_MESSAGES_MAX: usize = 10;

/// The most queues that are sent to at once. Each has its own task, so that a queue that hangs delays only its own dead
/// letters.
const QUEUES_MAX: usize = 16;

/// The most bytes of dead letters taken for one queue at once. The first one is taken at any size. With [`QUEUES_MAX`]
/// this bounds the memory.
const QUEUE_BYTES_MAX: u64 = 2 << 20;

/// The most lanes from which one queue's dead letters are taken at once.
const QUEUE_LANES_MAX: usize = 4;

/// When to retry a dead letter that its queue refuses. The cause may be the queue's settings, which somebody may
/// correct.
const REFUSED_RETRY: Duration = Duration::from_secs(3_600);

/// How often the loop reads all lanes, in case it missed news of one.
const FULL_READING_EVERY: Duration = Duration::from_secs(60);

/// How long to wait for a queue that does not answer about its settings. All queues wait meanwhile.
const FACTS_PATIENCE: Duration = Duration::from_secs(5);

/// How often the loop reads the settings and sizes of the queues.
const FACTS_EVERY: Duration = Duration::from_secs(300);

/// Stage 4, ready to run.
pub struct DeadLetters<O, S> {
    outbox: O,
    ship: S,
    settings: Settings,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// The lanes that hold dead letters.
    lanes: BTreeMap<LaneId, LaneView>,
    /// The queues that refused or failed: when to try again, and the number of failures in a row.
    pauses: BTreeMap<String, (UnixMillis, u32)>,
    /// The settings of the queues, as far as they are known.
    facts: BTreeMap<String, QueueFacts>,
    /// The queues that are being sent to.
    busy: BTreeSet<String>,
    shipping: JoinSet<Shipped>,
    /// The lane that was served last, for each queue. The next turn begins with the lane after it.
    served: BTreeMap<String, LaneId>,
    past: Past,
    /// Cancelled when settlements must no longer wait for a store that is away.
    give_up: CancellationToken,
}

/// The results of the dead letters that were taken for one queue.
struct Shipped {
    queue: String,
    began: UnixMillis,
    batches: Vec<(Vec<Letter>, Vec<Shipment>)>,
}

/// A dead letter that is being sent.
struct Letter {
    lease: Lease,
    history: History,
    function: FunctionName,
    message: Message,
}

impl<O: Outbox, S: Ship> DeadLetters<O, S> {
    pub fn new(outbox: O, ship: S, settings: Settings, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let (lanes, pauses, facts, busy, served) = Default::default();
        let (shipping, past, give_up) = (JoinSet::new(), Past::default(), CancellationToken::new());
        Self { outbox, ship, settings, clock, metrics, lanes, pauses, facts, busy, shipping, served, past, give_up }
    }

    /// Notes there what is shipped.
    pub fn noting(self, past: Past) -> Self {
        Self { past, ..self }
    }

    /// Runs until `stop.leasing`. Then finishes the batches in progress, or aborts them at `stop.working`: their dead
    /// letters are still in the store. An error means that this process can no longer use the outbox.
    pub async fn run(mut self, stop: Stop) -> Result<(), Error> {
        self.give_up = stop.working.clone();
        let mut seen = 0;
        let mut next_full_reading = UnixMillis(0);
        let mut next_facts = UnixMillis(0);
        let mut stepped = 0;
        while !stop.leasing.is_cancelled() {
            let by = self.clock.stepped() - stepped;
            if by != 0 {
                // The clock was set. A pause keeps its length.
                stepped += by;
                self.pauses.values_mut().for_each(|(until, _)| *until = until.shifted(by));
                (next_full_reading, next_facts) = Default::default();
            }
            if self.clock.now() >= next_facts {
                tokio::select! {
                    biased;
                    () = stop.leasing.cancelled() => break,
                    () = self.ask_queues() => {}
                }
                next_facts = self.clock.now().plus(FACTS_EVERY);
            }
            let now = self.clock.now();
            let full = now >= next_full_reading;
            let next = match self.turn(if full { 0 } else { seen }).await {
                Ok(version) => {
                    seen = version;
                    if full {
                        next_full_reading = now.plus(FULL_READING_EVERY);
                    }
                    self.next_time().min(next_full_reading).min(next_facts)
                }
                Err(Error::Away { why, retry_after }) => {
                    tracing::warn!(why, "the outbox is away: no dead letter is shipped until it is back");
                    if !patience::wait(retry_after, &self.clock, &stop.leasing).await {
                        break;
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                biased;
                () = stop.leasing.cancelled() => break,
                Some(shipped) = self.shipping.join_next() => self.settle(shipped).await?,
                () = self.outbox.changed(seen, Changes::Buried) => {}
                () = self.clock.sleep_until(next) => {}
            }
        }
        while !self.shipping.is_empty() {
            tokio::select! {
                biased;
                () = stop.working.cancelled() => break,
                Some(shipped) = self.shipping.join_next() => self.settle(shipped).await?,
            }
        }
        self.shipping.abort_all();
        Ok(())
    }

    /// Reads the news after `since` (0 means all lanes) and ships what is due. Returns the version of the news.
    async fn turn(&mut self, since: u64) -> Result<u64, Error> {
        let news = self.outbox.lanes(since).await?;
        if since == 0 {
            self.lanes.clear();
        }
        for view in news.lanes {
            match view.next_ship {
                Some(_) => drop(self.lanes.insert(view.lane, view)),
                None => drop(self.lanes.remove(&view.lane)),
            }
        }
        for id in news.retired {
            self.lanes.remove(&id);
        }
        self.ship_due().await?;
        Ok(news.version)
    }

    /// Reads the settings of all queues. A queue that does not answer keeps its last settings. If it has none, SQS's
    /// own limits count, and SQS refuses what is too large.
    async fn ask_queues(&mut self) {
        let queues: std::collections::BTreeSet<String> =
            self.settings.functions.iter().map(|(_, queue)| queue).chain(&self.settings.queue_url).cloned().collect();
        let asked = queues.iter().map(|queue| tokio::time::timeout(FACTS_PATIENCE, self.ship.facts(queue)));
        let asked = join_all(asked).await;
        for (queue, facts) in queues.into_iter().zip(asked) {
            match facts {
                Ok(Ok(facts)) => self.learn(queue, facts),
                Err(_elapsed) => {
                    tracing::warn!(queue, "the attributes of the dead-letter queue could not be read in time")
                }
                Ok(Err(Trouble { code, message, .. })) => {
                    tracing::warn!(queue, code, message, "the attributes of the dead-letter queue could not be read");
                }
            }
        }
    }

    fn learn(&mut self, queue: String, facts: QueueFacts) {
        let label = queue.rsplit(['/', ':']).next().unwrap_or_default();
        let retention = facts.retention;
        self.metrics.deadletter_queue_retention_seconds.with_label_values(&[label]).set(retention.as_secs_f64());
        let messages = i64::try_from(facts.messages).unwrap_or(i64::MAX);
        self.metrics.deadletter_queue_messages.with_label_values(&[label]).set(messages);
        let known = self.facts.insert(queue.clone(), facts);
        if retention < self.settings.retention_min && known.is_none_or(|known| known.retention != retention) {
            let (retention, floor) = (humantime::format_duration(retention), self.settings.retention_min);
            let floor = humantime::format_duration(floor);
            tracing::warn!(queue, %retention, %floor, "the dead-letter queue deletes messages early: raise its MessageRetentionPeriod");
        }
    }

    fn queue_of(&self, function: &FunctionName) -> Option<&str> {
        let own = self.settings.functions.iter().find(|(pattern, _)| function.fits(pattern));
        own.map(|(_, queue)| queue.as_str()).or(self.settings.queue_url.as_deref())
    }

    /// When the dead letters of a lane may be sent. [`UnixMillis::MAX`] if there is no queue or the queue is busy.
    fn time_of(&self, view: &LaneView) -> UnixMillis {
        let (Some(queue), Some(due)) = (self.queue_of(&view.function), view.next_ship) else { return UnixMillis::MAX };
        if self.busy.contains(queue) || self.busy.len() >= QUEUES_MAX {
            return UnixMillis::MAX;
        }
        self.pauses.get(queue).map_or(due, |&(until, _)| due.max(until))
    }

    fn next_time(&self) -> UnixMillis {
        self.lanes.values().map(|view| self.time_of(view)).min().unwrap_or(UnixMillis::MAX)
    }

    /// Leases due dead letters for each free queue, from its lanes in turn, and begins to send them.
    async fn ship_due(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        let mut due: BTreeMap<String, Vec<LaneId>> = BTreeMap::new();
        for view in self.lanes.values().filter(|view| self.time_of(view) <= now) {
            if let Some(queue) = self.queue_of(&view.function) {
                due.entry(queue.to_owned()).or_default().push(view.lane);
            }
        }
        for (queue, mut lanes) in due {
            if self.busy.len() >= QUEUES_MAX {
                break;
            }
            let next = self.served.get(&queue).map_or(0, |served| lanes.partition_point(|lane| lane <= served));
            let first = next.checked_rem(lanes.len()).unwrap_or(0);
            lanes.rotate_left(first);
            lanes.truncate(QUEUE_LANES_MAX);
            if let Some(&last) = lanes.last() {
                self.served.insert(queue.clone(), last);
            }
            self.ship_from(queue, lanes, now).await?;
        }
        Ok(())
    }

    async fn ship_from(&mut self, queue: String, lanes: Vec<LaneId>, now: UnixMillis) -> Result<(), Error> {
        let want = |lane| LaneWant {
            lane,
            which: Which::Buried,
            events_max: BATCH_MESSAGES_MAX,
            bytes_max: u64::MAX,
            spent: None,
        };
        let lanes = lanes.into_iter().map(want).collect();
        let leased = self.outbox.lease(LeaseWant { lanes, bytes_max: QUEUE_BYTES_MAX }, None).await?.events;
        let bytes_max = self.facts.get(&queue).copied().unwrap_or_default().message_bytes_max;
        let (mut settlements, mut letters) = (Vec::new(), Vec::new());
        for Leased { lease, event, history } in leased {
            let function = event.function.name.clone();
            match message_of(&event, &history, self.settings.format, self.settings.oversize, bytes_max) {
                Ok(message) => letters.push(Letter { lease, history, function, message }),
                Err(why) => settlements.push((lease, self.keep(&function, &event.id, history, why.to_string()))),
            }
        }
        if !settlements.is_empty() {
            patience::settle(&self.outbox, settlements, &self.clock, &self.give_up).await?;
        }
        if letters.is_empty() {
            return Ok(());
        }
        self.busy.insert(queue.clone());
        let ship = self.ship.clone();
        self.shipping.spawn(async move {
            let mut done = Vec::new();
            for batch in batches(letters) {
                let messages = batch.iter().map(|letter| letter.message.clone()).collect();
                let shipments = ship.ship(&queue, messages).await;
                done.push((batch, shipments));
            }
            Shipped { queue, began: now, batches: done }
        });
        Ok(())
    }

    /// Settles the dead letters by the answers of their queue.
    async fn settle(&mut self, shipped: Result<Shipped, tokio::task::JoinError>) -> Result<(), Error> {
        let Shipped { queue, began, batches } = match shipped {
            Ok(shipped) => shipped,
            Err(error) => {
                // Its dead letters stay leased until a restart. None is lost or sent twice.
                tracing::error!(%error, "shipping dead letters panicked: please report this bug");
                return Err(Error::Closed);
            }
        };
        self.busy.remove(&queue);
        let (mut settlements, mut notes) = (Vec::new(), Notes::default());
        for (batch, shipments) in batches {
            settlements.extend(self.judge(&queue, batch, shipments, began, &mut notes));
        }
        if let Some(lost) = patience::settle(&self.outbox, settlements, &self.clock, &self.give_up).await? {
            self.past.note(notes.without(&lost));
        }
        Ok(())
    }

    /// Keeps a dead letter that its queue refuses. It stays in the store, and is retried after a while and after a
    /// restart.
    fn keep(&self, function: &FunctionName, id: &crate::event::EventId, history: History, why: String) -> Settlement {
        // A second refusal is not news.
        if history.burial.as_ref().is_none_or(|burial| burial.unshippable.is_none()) {
            tracing::error!(event_id = %id, %function, why, "dead letter cannot be shipped and stays in the store");
            self.metrics.deadletter_ship_failures.with_label_values(&["unshippable"]).inc();
            let label = self.metrics.function_label(function);
            self.metrics.deadletter_unshippable.with_label_values(&[label]).inc();
        }
        let burial = history.burial.clone().map(|burial| Burial { unshippable: Some(why), ..burial });
        let wait = REFUSED_RETRY + self.clock.jitter(REFUSED_RETRY / 4);
        Settlement::RetryAt(History { due: self.clock.now().plus(wait), burial, ..history })
    }

    fn judge(
        &mut self,
        queue: &str,
        batch: Vec<Letter>,
        shipments: Vec<Shipment>,
        now: UnixMillis,
        notes: &mut Notes,
    ) -> Vec<(Lease, Settlement)> {
        let mut settlements = Vec::new();
        let mut refusal = None;
        for (letter, shipment) in batch.into_iter().zip(shipments) {
            let Letter { lease, history, function, message } = letter;
            let settlement = match shipment {
                Shipment::Confirmed { message_id } => {
                    let label = self.metrics.function_label(&function);
                    self.metrics.deadletter_shipped.with_label_values(&[label]).inc();
                    tracing::info!(event_id = %message.id, %function, message_id, "dead letter shipped");
                    if self.past.is_kept() {
                        shipped(notes, lease, function, &history, &message_id, self.clock.now());
                    }
                    Settlement::Shipped
                }
                Shipment::Refused { code, message: words } => {
                    self.keep(&function, &message.id, history, format!("{code}: {words}"))
                }
                Shipment::Later { code, message } => {
                    self.metrics.deadletter_ship_failures.with_label_values(&[&code]).inc();
                    refusal = Some((code, message));
                    Settlement::Release
                }
            };
            settlements.push((lease, settlement));
        }
        self.pause(queue, refusal, now);
        settlements
    }

    /// Pauses a queue that did not accept everything.
    fn pause(&mut self, queue: &str, refusal: Option<(String, String)>, now: UnixMillis) {
        let Some((code, message)) = refusal else {
            if self.pauses.remove(queue).is_some() {
                tracing::info!(queue, "the dead-letter queue accepts messages again");
            }
            return;
        };
        let strikes = self.pauses.get(queue).map_or(0, |&(_, strikes)| strikes);
        let Settings { backoff_base, backoff_cap, .. } = self.settings;
        let wait = backoff::delay(strikes, backoff_base, backoff_cap, backoff_base, &self.clock);
        self.pauses.insert(queue.to_owned(), (now.plus(wait), strikes.saturating_add(1)));
        tracing::warn!(queue, code, message, retry_in = ?wait, "the dead-letter queue does not accept messages: dead letters wait in the store");
    }
}

/// Notes that a queue has a dead letter.
fn shipped(
    notes: &mut Notes,
    lease: Lease,
    function: FunctionName,
    history: &History,
    message_id: &str,
    now: UnixMillis,
) {
    let end = End::of(lease.id, function, now, How::Shipped { message_id: past::cut(message_id) }, history);
    notes.outcomes.push(past::Outcome::of_end(&end));
    notes.ends.push(end);
}

/// Divides dead letters into batches of at most ten messages and 1 MiB together.
fn batches(letters: Vec<Letter>) -> Vec<Vec<Letter>> {
    let mut batches: Vec<Vec<Letter>> = Vec::new();
    let mut bytes = 0;
    for letter in letters {
        let size = letter.message.bytes();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_MESSAGES_MAX && bytes + size <= MESSAGE_BYTES_MAX => {
                bytes += size;
                batch.push(letter);
            }
            _ => {
                bytes = size;
                batches.push(vec![letter]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests;
