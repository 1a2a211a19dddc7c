//! The sender: leases events at rest, offers them to the targets in turn, and settles what a target has.
//!
//! Order: Ready and Waiting events, then Scheduled ones, then dead letters, then remembered keys. Within each, the lanes
//! share a batch, and a lane's oldest events go first.
//! Holds: an event is settled only after a target has said that it is on stable storage there. What no target takes is
//! released, and offered again in the next round.
//! Limits: the batches in flight and their size are the target's ([`Sizes`]).

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::envelope::Envelope;
use super::target::{Answer, Parcel, Sizes, Target, Trouble};
use crate::clock::{Clock, UnixMillis};
use crate::event::EventId;
use crate::metrics::Metrics;
use crate::outbox::handoff::{REMEMBERED_MAX, place_of};
use crate::outbox::{
    Census, Error, LaneCensus, LaneId, LaneView, LaneWant, Lease, LeaseWant, Leased, Outbox, Place, Settlement, Which,
    patience,
};
use crate::past::{self, End, How, Notes, Past};
use crate::plural;

/// The most memory of a run, in bytes: the batches in flight, as events and as they travel.
pub const MEMORY_MAX: u64 = 32 << 20;

/// How long a batch without an answer is offered to the same target. Two receivers share no memory of ids, so offering it
/// to another one may deliver it twice.
const SAME_TARGET_FOR: Duration = Duration::from_secs(3);

/// The pause between two offers to the same target.
const OFFER_AGAIN: Duration = Duration::from_millis(200);

/// How long a target rests that takes nothing from this sender, or did not answer. A name may stand for several receivers,
/// and another one may answer next.
const REST: Duration = Duration::from_secs(2);

/// A run ends if every target has refused this sender this many times, and none has ever taken anything.
const REFUSALS_MAX: u32 = 3;

/// The pause between two rounds in which nothing moved.
const ROUND_EVERY: Duration = Duration::from_millis(250);

/// The most lanes that share a batch.
const BATCH_LANES_MAX: usize = 32;

/// The most events that are counted as refused. Further ones are only released.
const REFUSED_MAX: usize = 100_000;

/// The most functions that a summary names.
const NAMED_MAX: usize = 10;

/// The order of the states.
const ORDER: [&[Place]; 3] = [&[Place::Ready, Place::Waiting], &[Place::Scheduled], &[Place::Buried]];

/// What a run has moved so far. Cheap to clone. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    events: AtomicU64,
    keys: AtomicU64,
}

impl Progress {
    pub fn events(&self) -> u64 {
        self.0.events.load(Ordering::Relaxed)
    }

    pub fn keys(&self) -> u64 {
        self.0.keys.load(Ordering::Relaxed)
    }
}

/// When a run ends.
#[derive(Debug, Clone, Default)]
pub struct Until {
    /// Cancelled once no attempt is in flight and nothing new is accepted. The run then ends as soon as nothing is left that
    /// a target might take. Without it, the run goes on and waits for more.
    pub last: CancellationToken,
    /// Cancelled when the time is over, or when the run is no longer wanted. Events that were not taken are released.
    pub over: CancellationToken,
}

/// How a run ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events that a target has.
    pub events: u64,
    /// Remembered keys that a target was told.
    pub keys: u64,
    /// Events that are still in the store.
    pub left: u64,
    /// Events that every target refused, of those that are left.
    pub refused: u64,
    /// The functions with the most events that are left, for people: `orders 12, invoices 3`.
    pub functions: String,
    /// Why the latest offer failed.
    pub why: Option<String>,
}

/// A sender, ready to run. Cheap to clone.
#[derive(Clone)]
pub struct Sender<O> {
    outbox: O,
    /// In the order in which they are tried. At least one.
    targets: Arc<[Arc<dyn Target>]>,
    /// Whether remembered keys follow the events.
    keys: bool,
    /// Remembers where events went.
    past: Past,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// The state of one run, which its tasks share.
struct Run<O> {
    sender: Sender<O>,
    states: Mutex<Vec<State>>,
    refused: Mutex<BTreeSet<EventId>>,
    why: Mutex<Option<String>>,
    progress: Progress,
    until: Until,
}

/// What is known of a target.
#[derive(Debug, Clone, Default)]
struct State {
    /// It is not asked before this time, by the steady clock.
    rests_until: UnixMillis,
    /// How often in a row it took nothing from this sender.
    refusals: u32,
    has_taken: bool,
    /// Why it took nothing, as the log said last.
    said: Option<String>,
}

/// A lane that may hold more, and the last event that was leased from it.
type Position = (LaneId, Place, Option<EventId>);

impl<O: Outbox> Sender<O> {
    pub fn new(outbox: O, targets: Vec<Arc<dyn Target>>, keys: bool, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self { outbox, targets: targets.into(), keys, past: Past::default(), clock, metrics }
    }

    /// The same sender, which notes there where each event went.
    pub fn noting(self, past: Past) -> Self {
        Self { past, ..self }
    }

    /// The names of the targets, for people.
    pub fn names(&self) -> String {
        self.targets.iter().map(|target| target.name()).collect::<Vec<_>>().join(" ")
    }

    /// Hands over what is at rest. An error means that this process can no longer use the outbox.
    pub async fn run(&self, until: Until, progress: Progress) -> Result<Summary, Error> {
        let states = Mutex::new(vec![State::default(); self.targets.len()]);
        let (refused, why) = Default::default();
        let run = Arc::new(Run { sender: self.clone(), states, refused, why, progress, until });
        let begun = run.progress.events();
        while !run.until.over.is_cancelled() {
            let is_last = run.until.last.is_cancelled();
            let before = run.progress.events();
            let busy = run.round().await?;
            let moved = run.progress.events() > before;
            if run.is_hopeless() || (is_last && !moved && !busy) {
                break;
            }
            if !moved {
                run.pause(ROUND_EVERY).await;
            }
        }
        let mut keys = 0;
        if self.keys && !run.until.over.is_cancelled() && run.until.last.is_cancelled() {
            keys = run.hand_over_keys().await?;
        }
        let census = self.outbox.census().await?;
        let (left, functions) = (census.events, most(&census));
        let refused = run.refused.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        let why = run.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let events = run.progress.events() - begun;
        Ok(Summary { events, keys, left, refused: refused.min(left), functions, why: why.filter(|_| left > 0) })
    }
}

impl<O: Outbox> Run<O> {
    /// Offers every event at rest once. Returns whether some are left that a target may take later.
    async fn round(self: &Arc<Self>) -> Result<bool, Error> {
        let mut busy = false;
        for places in ORDER {
            let mut tasks = JoinSet::new();
            let lanes = self.sender.outbox.lanes(0).await?.lanes;
            let paused = lanes.iter().filter(|lane| lane.paused).map(|lane| lane.lane);
            let paused: Arc<BTreeSet<LaneId>> = Arc::new(paused.collect());
            let holding = |place| lanes.iter().filter(move |lane| may_hold(lane, place)).map(|lane| lane.lane);
            let positions = places.iter().flat_map(|&place| holding(place).map(move |lane| (lane, place, None)));
            let mut left: VecDeque<Position> = positions.collect();
            while !left.is_empty() && !self.until.over.is_cancelled() {
                let Some(sizes) = self.sizes_of_the_next_target() else {
                    // Every target rests.
                    busy = true;
                    break;
                };
                while tasks.len() >= sizes.batches_max {
                    busy |= done(tasks.join_next().await)?;
                }
                let batch = self.lease(&mut left, sizes).await?;
                if !batch.is_empty() {
                    let (run, paused) = (Arc::clone(self), Arc::clone(&paused));
                    tasks.spawn(async move { run.hand_over(batch, &paused).await });
                }
            }
            while let Some(ended) = tasks.join_next().await {
                busy |= done(Some(ended))?;
            }
        }
        Ok(busy)
    }

    /// Leases a batch from the first lanes of `left`, which then stand behind the others, unless they hold no more.
    async fn lease(&self, left: &mut VecDeque<Position>, sizes: Sizes) -> Result<Vec<Leased>, Error> {
        let turn = left.len().min(BATCH_LANES_MAX).min(sizes.events_max).max(1);
        let asked: Vec<Position> = left.drain(..turn.min(left.len())).collect();
        let each = (sizes.events_max / asked.len().max(1)).max(1);
        let want = |&(lane, place, after): &Position| LaneWant {
            lane,
            which: Which::AtRest { place, after },
            events_max: each,
            bytes_max: sizes.bytes_max,
            spent: None,
        };
        let lanes = asked.iter().map(want).collect();
        let leased = match self.sender.outbox.lease(LeaseWant { lanes, bytes_max: sizes.bytes_max }, None).await {
            Ok(leases) => leases.events,
            Err(Error::Away { retry_after, .. }) => {
                left.extend(asked);
                self.pause(retry_after).await;
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        // An event counts with at least one byte towards the limit.
        let bytes: u64 = leased.iter().map(|leased| leased.event.payload.len().max(1) as u64).sum();
        for (lane, place, after) in asked {
            let of_lane = leased
                .iter()
                .filter(|leased| leased.lease.lane == lane && place_of(&leased.event, &leased.history) == place);
            let (count, last) = of_lane.fold((0, after), |(count, _), leased| (count + 1, Some(leased.lease.id)));
            if count >= each || bytes >= sizes.bytes_max {
                left.push_back((lane, place, last));
            }
        }
        Ok(leased)
    }

    /// Offers a batch to the targets in turn, and settles it. Returns whether a target may take some of it later.
    async fn hand_over(&self, batch: Vec<Leased>, paused: &BTreeSet<LaneId>) -> Result<bool, Error> {
        let Sender { targets, .. } = &self.sender;
        let mut open: Vec<(Lease, Parcel)> = Vec::with_capacity(batch.len());
        for Leased { lease, event, history } in batch {
            let (envelope, payload) = Envelope::seal(event, history);
            let envelope = Envelope { paused: paused.contains(&lease.lane), ..envelope };
            open.push((lease, Parcel { envelope, payload }));
        }
        let mut busy = false;
        for (nth, target) in targets.iter().enumerate() {
            if open.is_empty() {
                break;
            }
            if self.rests(nth) {
                busy = true;
                continue;
            }
            let (leases, parcels): (Vec<_>, Vec<_>) = open.into_iter().unzip();
            match self.offer(nth, target.as_ref(), &parcels).await {
                Some(answers) => {
                    let (rest, may_later) = self.judge(nth, leases, parcels, answers).await?;
                    open = rest;
                    busy |= may_later;
                }
                None => {
                    busy = true;
                    open = leases.into_iter().zip(parcels).collect();
                }
            }
        }
        let released = open.into_iter().map(|(lease, _)| (lease, Settlement::Release)).collect();
        self.settle(released).await?;
        Ok(busy)
    }

    /// Settles what the target has. Returns the rest, and whether this target may take some of it later.
    async fn judge(
        &self,
        nth: usize,
        leases: Vec<Lease>,
        parcels: Vec<Parcel>,
        answers: Vec<Answer>,
    ) -> Result<(Vec<(Lease, Parcel)>, bool), Error> {
        let Sender { metrics, targets, .. } = &self.sender;
        let count = |result: &str| metrics.handoff_events.with_label_values(&["out", result]).inc();
        let (mut taken, mut rest, mut busy) = (Vec::new(), Vec::new(), false);
        let (mut notes, now) = (Notes::default(), self.sender.clock.now());
        let to = targets.get(nth).map(|target| past::cut(target.name())).unwrap_or_default();
        for ((lease, parcel), answer) in leases.into_iter().zip(parcels).zip(answers) {
            match answer {
                Answer::Taken(why) => {
                    count(why.as_str());
                    let Envelope { id, function, history, .. } = parcel.envelope;
                    let end = End::of(id, function, now, How::HandedOver { to: to.clone() }, &history);
                    notes.outcomes.push(past::Outcome::of_end(&end));
                    notes.ends.push(end);
                    taken.push((lease, Settlement::HandedOver));
                }
                Answer::Busy(why) => {
                    count("busy");
                    self.say(nth, &why, UnixMillis(0));
                    busy = true;
                    rest.push((lease, parcel));
                }
                Answer::Refused(why) => {
                    count("refused");
                    tracing::warn!(event_id = %lease.id, to, why, "the target of the hand-off refuses this event");
                    self.note_why(&why);
                    let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                    if refused.len() < REFUSED_MAX {
                        refused.insert(lease.id);
                    }
                    rest.push((lease, parcel));
                }
            }
        }
        if !taken.is_empty() {
            let events = taken.len() as u64;
            {
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                refused.retain(|id| taken.iter().all(|(lease, _)| lease.id != *id));
            }
            // Without an answer of the store, the event may still be in it.
            if let Some(lost) = self.settle(taken).await? {
                self.sender.past.note(notes.without(&lost));
            }
            self.progress.0.events.fetch_add(events, Ordering::Relaxed);
            self.with_state(nth, |state| {
                state.has_taken = true;
                state.refusals = 0;
            });
        }
        if busy {
            self.rest(nth, ROUND_EVERY);
        }
        Ok((rest, busy))
    }

    /// Offers a batch to one target. `None` if the target has none of it as far as anybody knows.
    async fn offer(&self, nth: usize, target: &dyn Target, parcels: &[Parcel]) -> Option<Vec<Answer>> {
        let clock = &self.sender.clock;
        let give_up = clock.steady().plus(SAME_TARGET_FOR);
        loop {
            let answered = tokio::select! {
                biased;
                () = self.until.over.cancelled() => return None,
                answered = target.send(parcels) => answered,
            };
            match answered {
                Ok(answers) if answers.len() == parcels.len() => return Some(answers),
                Ok(_) => self.say(nth, "it does not answer for every event", clock.steady().plus(REST)),
                Err(Trouble::Unanswered { why }) if clock.steady() < give_up => {
                    self.say(nth, &why, UnixMillis(0));
                    self.pause(OFFER_AGAIN).await;
                    continue;
                }
                Err(Trouble::Unanswered { why }) => self.say(nth, &why, clock.steady().plus(REST)),
                Err(Trouble::NotNow { why, retry_after }) => self.say(nth, &why, clock.steady().plus(retry_after)),
                Err(Trouble::Never { why }) => {
                    self.say(nth, &why, clock.steady().plus(REST));
                    self.with_state(nth, |state| state.refusals += 1);
                }
            }
            return None;
        }
    }

    async fn hand_over_keys(&self) -> Result<u64, Error> {
        let Sender { outbox, targets, metrics, .. } = &self.sender;
        let (mut told, mut after) = (0, None);
        loop {
            let page = outbox.remembered(after).await?;
            for keys in page.keys.chunks(REMEMBERED_MAX) {
                let mut is_told = false;
                for (nth, target) in targets.iter().enumerate().filter(|(nth, _)| !self.rests(*nth)) {
                    let Some(sending) = target.send_keys(keys) else { continue };
                    let sent = tokio::select! {
                        biased;
                        () = self.until.over.cancelled() => return Ok(told),
                        sent = sending => sent,
                    };
                    match sent {
                        Ok(()) => {
                            is_told = true;
                            break;
                        }
                        Err(Trouble::NotNow { why, .. } | Trouble::Never { why } | Trouble::Unanswered { why }) => {
                            self.say(nth, &why, self.sender.clock.steady().plus(REST));
                        }
                    }
                }
                if !is_told {
                    return Ok(told);
                }
                told += keys.len() as u64;
                metrics.handoff_keys.with_label_values(&["out"]).inc_by(keys.len() as u64);
                self.progress.0.keys.fetch_add(keys.len() as u64, Ordering::Relaxed);
            }
            after = page.next;
            if after.is_none() || self.until.over.is_cancelled() {
                return Ok(told);
            }
        }
    }

    /// Returns the leases that were no longer held, or `None` if the settlements are not written.
    async fn settle(&self, done: Vec<(Lease, Settlement)>) -> Result<Option<Vec<Lease>>, Error> {
        if done.is_empty() {
            return Ok(Some(Vec::new()));
        }
        patience::settle(&self.sender.outbox, done, &self.sender.clock, &self.until.over).await
    }

    // --- the targets ---

    fn with_state<T: Default>(&self, nth: usize, with: impl FnOnce(&mut State) -> T) -> T {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.get_mut(nth).map(with).unwrap_or_default()
    }

    fn rests(&self, nth: usize) -> bool {
        let now = self.sender.clock.steady();
        self.with_state(nth, |state| state.rests_until > now)
    }

    fn rest(&self, nth: usize, time: Duration) {
        let until = self.sender.clock.steady().plus(time);
        self.with_state(nth, |state| state.rests_until = state.rests_until.max(until));
    }

    /// The sizes of the first target that does not rest.
    fn sizes_of_the_next_target(&self) -> Option<Sizes> {
        let targets = self.sender.targets.iter().enumerate();
        targets.filter(|(nth, _)| !self.rests(*nth)).map(|(_, target)| target.sizes()).next()
    }

    /// Whether every target has refused this sender for good, as far as anybody can tell.
    fn is_hopeless(&self) -> bool {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.iter().all(|state| !state.has_taken && state.refusals >= REFUSALS_MAX)
    }

    /// Logs why a target takes nothing, and lets it rest until then.
    fn say(&self, nth: usize, why: &str, rests_until: UnixMillis) {
        let to = self.sender.targets.get(nth).map(|target| target.name());
        self.note_why(why);
        let is_news = self.with_state(nth, |state| {
            state.rests_until = state.rests_until.max(rests_until);
            let is_news = state.said.as_deref() != Some(why);
            state.said = Some(why.to_owned());
            is_news
        });
        if is_news {
            tracing::warn!(to, why, "the target of the hand-off takes nothing now");
        }
    }

    fn note_why(&self, why: &str) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            biased;
            () = self.until.over.cancelled() => {}
            () = self.sender.clock.sleep(time) => {}
        }
    }
}

/// The functions with the most events, and how many each has.
fn most(census: &Census) -> String {
    let count = |lane: &LaneCensus| lane.by_place.values().map(|count| count.events).sum::<u64>();
    let mut all: Vec<_> = census.lanes.iter().map(|(name, lane)| (count(lane), name)).collect();
    all.retain(|(events, _)| *events > 0);
    all.sort_by_key(|(events, _)| std::cmp::Reverse(*events));
    let more = all.len().saturating_sub(NAMED_MAX);
    let mut named: Vec<_> = all.iter().take(NAMED_MAX).map(|(events, name)| format!("{name} {events}")).collect();
    named.extend((more > 0).then(|| format!("{} more", plural::count(more as u64, "function"))));
    named.join(", ")
}

/// Whether a lane may have events of this state that are not leased.
fn may_hold(lane: &LaneView, place: Place) -> bool {
    match place {
        Place::Ready => lane.ready > 0,
        Place::Waiting | Place::Scheduled => lane.next_due.is_some(),
        Place::Buried => lane.buried > 0,
    }
}

/// Whether a target may take later what a task could not hand over.
fn done(ended: Option<Result<Result<bool, Error>, tokio::task::JoinError>>) -> Result<bool, Error> {
    match ended {
        None => Ok(false),
        Some(Ok(busy)) => busy,
        Some(Err(error)) => {
            // Its events stay leased until the process ends, and none is lost.
            tracing::error!(%error, "handing over events panicked: please report this bug");
            Err(Error::Closed)
        }
    }
}

#[cfg(test)]
mod tests;
