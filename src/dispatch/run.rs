//! The dispatch loop: read the outbox, plan, lease, attempt, settle.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::lane::{EXPIRED_BYTES_MAX, FULL_READING_EVERY, Finished, Lanes, Notice, Settled, Ticket};
use super::status::{Question, Questions, Status};
use super::verdict::{Blame, Outcome, Scope, blame_after_dry_run, bury, deadline, decide, outcome_for, outcome_of};
use super::{Call, Failure, FailureKind, Invoke, Mode, Reply, Settings};
use crate::clock::{Clock, UnixMillis};
use crate::event::FunctionName;
use crate::metrics::Metrics;
use crate::outbox::{
    BuryReason, Changes, Error, LaneId, LaneNews, Lease, LeaseWant, Leased, Leases, Outbox, Settlement, patience,
};
use crate::past::{Notes, Past};
use crate::shutdown::Stop;
use crate::trace;

/// The most batches of settlements that may wait for their commit. With this many, the loop waits for one.
const SETTLING_MAX: usize = 8;

/// The most concurrent dry runs. Each is for another lane, and keeps one event waiting for its verdict.
const ASKING_MAX: usize = 64;

/// Stage 3, ready to run.
pub struct Dispatch<O, I> {
    outbox: O,
    invoke: I,
    clock: Clock,
    metrics: Arc<Metrics>,
    lanes: Lanes,
    changes: watch::Receiver<Settings>,
    seen: u64,
    next_full_reading: UnixMillis,
    /// Set while the store is away: when to ask it again.
    away_until: Option<Instant>,
    /// Cancelled when settlements must no longer wait for a store that is away.
    give_up: CancellationToken,
    /// The sum of the clock's steps that the lanes know of, in milliseconds.
    stepped: i64,
    attempts: JoinSet<Attempted>,
    settling: JoinSet<Result<(), Error>>,
    /// The events whose failure Lambda is being asked about, by lane.
    doubted: BTreeMap<LaneId, Doubted>,
    asking: JoinSet<(LaneId, Reply)>,
    status: Status,
    questions: Questions,
    past: Past,
    /// What the settlements that are not yet handed to the outbox mean for their events.
    notes: Notes,
}

/// A finished attempt.
struct Attempted {
    leased: Leased,
    mode: Mode,
    ticket: Ticket,
    reply: Reply,
    began: Instant,
    ended: Instant,
}

/// A failed attempt whose cause is not known yet. Its payload is dropped.
struct Doubted {
    leased: Leased,
    mode: Mode,
    ticket: Ticket,
    reply: Reply,
    outcome: Outcome,
}

impl<O: Outbox, I: Invoke> Dispatch<O, I> {
    pub fn new(outbox: O, invoke: I, settings: Settings, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let (status, questions) = Status::new();
        let (_, changes) = watch::channel(settings.clone());
        Self {
            status,
            questions,
            outbox,
            invoke,
            clock,
            metrics,
            lanes: Lanes::new(settings),
            changes,
            seen: 0,
            next_full_reading: UnixMillis(0),
            away_until: None,
            give_up: CancellationToken::new(),
            stepped: 0,
            attempts: JoinSet::new(),
            settling: JoinSet::new(),
            doubted: BTreeMap::new(),
            asking: JoinSet::new(),
            past: Past::default(),
            notes: Notes::default(),
        }
    }

    /// Notes what happens to events there.
    pub fn noting(self, past: Past) -> Self {
        Self { past, ..self }
    }

    /// Returns the handle that tells what this dispatch is doing.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Makes dispatch apply new settings from this channel while it runs.
    pub fn following(self, changes: watch::Receiver<Settings>) -> Self {
        Self { changes, ..self }
    }

    /// Runs until `stop.leasing`, then waits for the attempts in flight until `stop.working`. Attempts that are still
    /// in flight then are aborted; their events stay in the outbox, uncharged. An error means that this process can no
    /// longer use the outbox.
    pub async fn run(mut self, stop: Stop) -> Result<(), Error> {
        self.give_up = stop.working.clone();
        self.stepped = self.clock.stepped();
        self.lanes.stepped(0, self.clock.steps(), self.now());
        while !stop.leasing.is_cancelled() {
            self.notice_step();
            // Called in every round: `select!` prefers finished attempts, and under load there may always be one.
            self.hear();
            let next = self.round().await?;
            let next = if self.clock.stepped() == self.stepped { next } else { UnixMillis(0) };
            tokio::select! {
                biased;
                () = stop.leasing.cancelled() => break,
                Some(first) = self.attempts.join_next(), if self.settling.len() < SETTLING_MAX => {
                    self.settle_finished(first).await?;
                }
                Some(settled) = self.settling.join_next() => joined(settled)?,
                Some(answered) = self.asking.join_next() => self.settle_answered(answered).await?,
                Ok(()) = self.changes.changed() => self.reconfigure(),
                () = self.outbox.changed(self.seen, Changes::Any), if self.away_until.is_none() => {}
                Some(question) = self.questions.recv() => self.answer(question),
                () = self.clock.sleep_until(next) => {}
            }
        }
        self.settle_doubted().await?;
        while !(self.attempts.is_empty() && self.settling.is_empty()) {
            tokio::select! {
                biased;
                () = stop.working.cancelled() => break,
                Some(first) = self.attempts.join_next() => self.settle_finished(first).await?,
                Some(settled) = self.settling.join_next() => joined(settled)?,
                Some(question) = self.questions.recv() => self.answer(question),
            }
        }
        self.attempts.abort_all();
        while let Some(settled) = self.settling.join_next().await {
            joined(settled)?;
        }
        let lanes = self.lanes.give_back();
        if lanes.is_empty() {
            return Ok(());
        }
        match self.outbox.lease(LeaseWant { lanes, bytes_max: 0 }, None).await {
            // The reserve then counts as spent.
            Ok(_) | Err(Error::Away { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The time as the lanes know it. They learn of a step of the clock only between two rounds.
    fn now(&self) -> UnixMillis {
        self.clock.steady().shifted(self.stepped)
    }

    /// If the clock was set, moves everything that waits for a span of time.
    fn notice_step(&mut self) {
        let by = self.clock.stepped() - self.stepped;
        if by != 0 {
            self.stepped += by;
            self.lanes.stepped(by, self.clock.steps(), self.now());
            self.next_full_reading = UnixMillis(0);
        }
    }

    /// Asks the store once, for events that are known to be due and for the news, which count in the next round.
    /// Returns when the next round is due. Asks a store that is away again later.
    async fn round(&mut self) -> Result<UnixMillis, Error> {
        let left = |until: Instant, clock: &Clock| until.saturating_duration_since(clock.instant());
        if let Some(until) = self.away_until
            && !left(until, &self.clock).is_zero()
        {
            return Ok(self.now().plus(left(until, &self.clock)));
        }
        match self.lease().await {
            Ok(()) => {
                if self.away_until.take().is_some() {
                    tracing::info!("the outbox is back");
                }
                Ok(self.lanes.next_time(self.now()).min(self.next_full_reading))
            }
            Err(Error::Away { why, retry_after }) => {
                if self.away_until.replace(self.clock.instant() + retry_after).is_none() {
                    tracing::warn!(why, "the outbox is away: no attempt begins until it is back");
                }
                Ok(self.now().plus(retry_after))
            }
            Err(error) => Err(error),
        }
    }

    /// `full` says whether these are the news of all lanes.
    fn learn(&mut self, news: LaneNews, full: bool) {
        let now = self.now();
        self.seen = news.version;
        if full {
            self.lanes.learn_all(news, now);
            self.next_full_reading = now.plus(FULL_READING_EVERY);
        } else {
            self.lanes.learn(news, now);
        }
        self.announce_noticed();
    }

    fn announce_noticed(&mut self) {
        for (function, notice) in self.lanes.noticed() {
            self.announce(&function, notice);
        }
    }

    /// Applies new settings and answers questions.
    fn hear(&mut self) {
        if self.changes.has_changed().unwrap_or(false) {
            self.reconfigure();
        }
        while let Ok(question) = self.questions.try_recv() {
            self.answer(question);
        }
    }

    fn reconfigure(&mut self) {
        let settings = self.changes.borrow_and_update().clone();
        self.lanes.reconfigure(settings, self.now());
    }

    /// Answers a question. The asker may be gone, so a failed send is ignored.
    fn answer(&mut self, question: Question) {
        let now = self.now();
        match question {
            Question::Lanes(answer) => drop(answer.send(self.lanes.status(now, self.clock.instant()))),
            Question::Probe(function, answer) => drop(answer.send(self.lanes.probe_now(&function, now))),
        }
    }

    /// Leases what the plan wants, begins the attempts, and takes over the news of the lanes.
    async fn lease(&mut self) -> Result<(), Error> {
        self.bury_all_expired().await?;
        let now = self.now();
        let full = now >= self.next_full_reading;
        let want = LeaseWant { lanes: self.lanes.plan(now), bytes_max: self.lanes.bytes_left() };
        let leases = self.outbox.lease(want, Some(if full { 0 } else { self.seen })).await;
        let Leases { events, news } = match leases {
            Ok(leases) => leases,
            Err(error) => {
                self.lanes.planned(self.now());
                return Err(error);
            }
        };
        let mut done = Vec::new();
        for leased in events {
            let lease = leased.lease;
            // Read the clock again: the lease may have taken a while.
            let now = self.now();
            let age_max = self.lanes.policy(&leased.event.function.name).age_max;
            if now < deadline(&leased.event, age_max, &self.clock) {
                if self.lanes.may_begin(lease.lane, now) {
                    self.begin(leased);
                } else {
                    done.push((lease, Settlement::Release));
                }
            } else {
                done.extend(self.bury_expired(leased, Some(age_max), now).map(|settlement| (lease, settlement)));
            }
        }
        self.write(done).await?;
        if let Some(news) = news {
            self.learn(news, full);
        }
        self.lanes.planned(self.now());
        Ok(())
    }

    /// Searches the lanes that may hold events past their age, and buries those.
    async fn bury_all_expired(&mut self) -> Result<(), Error> {
        let lanes = self.lanes.expired(self.now());
        if lanes.is_empty() {
            return Ok(());
        }
        let leases = self.outbox.lease(LeaseWant { lanes, bytes_max: EXPIRED_BYTES_MAX }, None).await?;
        let now = self.now();
        let mut settlements = Vec::new();
        for leased in leases.events {
            let lease = leased.lease;
            // While room for functions is short, this may be less than the policy's `age_max`.
            let age_max = self.lanes.age_max(lease.lane);
            let buried = self.bury_expired(leased, age_max, now);
            if buried.is_some() {
                self.lanes.found_expired(lease.lane, now);
            }
            // An event that is not past its age goes back to the lane: it has no slot for an attempt.
            settlements.push((lease, buried.unwrap_or(Settlement::Release)));
        }
        self.write(settlements).await
    }

    /// Buries an event that is older than `age_max` (by default that of its policy) or past its own time. `None` means that
    /// it is not.
    fn bury_expired(&mut self, leased: Leased, age_max: Option<Duration>, now: UnixMillis) -> Option<Settlement> {
        let name = &leased.event.function.name;
        let age_max = age_max.unwrap_or_else(|| self.lanes.policy(name).age_max);
        if now < deadline(&leased.event, age_max, &self.clock) {
            return None;
        }
        let function = self.metrics.function_label(name);
        let reason = BuryReason::EventAgeExceeded;
        self.metrics.deadletter_buried.with_label_values(&[function, reason.as_str()]).inc();
        tracing::warn!(event_id = %leased.event.id, function, "event expired and was buried");
        if self.past.is_kept() {
            self.notes.outcomes.push(notes::expired(&leased, now));
        }
        Some(bury(leased.history, reason, now))
    }

    fn begin(&mut self, leased: Leased) {
        let event = &leased.event;
        let name = &event.function.name;
        let (ticket, notices) = self.lanes.started(leased.lease.lane, event.payload.len() as u64, self.now());
        notices.into_iter().for_each(|notice| self.announce(name, notice));
        self.show(name, leased.lease.lane);
        let call = Call {
            function: event.function.clone(),
            key: event.key.outward(),
            carried: event.carried.clone(),
            payload: event.payload.clone(),
            mode: self.lanes.policy(name).mode,
        };
        let mode = call.mode;
        let trace_header = event.carried.trace_header.as_deref();
        let label = self.metrics.function_label(name);
        let span = trace::attempt(event.id, label, leased.history.calls + 1, trace_header);
        let (invoke, clock) = (self.invoke.clone(), self.clock.clone());
        let began = clock.instant();
        let attempt = async move {
            // A panic is a bug. The event must still be settled, and its slot freed.
            let reply = AssertUnwindSafe(async { invoke.invoke(call).await }).catch_unwind().await;
            let reply = reply.unwrap_or_else(|panic| panicked(panic.as_ref())).timed(clock.now());
            trace::ended(outcome_of(&reply, mode).as_str());
            Attempted { leased, mode, ticket, reply, began, ended: clock.instant() }
        };
        self.attempts.spawn(attempt.instrument(span));
    }

    /// Settles all attempts that have finished, in one batch.
    async fn settle_finished(&mut self, first: Result<Attempted, JoinError>) -> Result<(), Error> {
        let mut done = Vec::new();
        let mut next = Some(first);
        while let Some(attempted) = next {
            match attempted {
                Ok(attempted) => done.extend(self.judge(attempted)),
                // Attempts catch their panics, so this happens only when the runtime shuts down.
                Err(error) => {
                    tracing::error!(%error, "an attempt's task failed: its event stays leased until a restart")
                }
            }
            next = self.attempts.try_join_next();
        }
        self.write(done).await
    }

    /// Decides what follows from an attempt. `None` means that Lambda must be asked first.
    fn judge(&mut self, attempted: Attempted) -> Option<(Lease, Settlement)> {
        let Attempted { leased, mode, ticket, reply, began, ended } = attempted;
        let Leased { lease, event, history } = &leased;
        let (lease, now) = (*lease, self.now());
        let outcome = outcome_for(event, &reply, mode);
        let blame = if outcome.is_doubtful() {
            let may_ask = self.asking.len() < ASKING_MAX;
            self.lanes.weigh(lease.lane, event.id, &outcome, (began, ended), may_ask)
        } else {
            Blame::Event
        };
        let name = &event.function.name;
        let policy = self.lanes.policy(name);
        let verdict = decide(&outcome, blame, &reply, event, history, policy, now, &self.clock);

        if outcome == Outcome::Delivered {
            self.metrics.prove(name);
        }
        let function = self.metrics.function_label(name);
        self.metrics.dispatch_attempts.with_label_values(&[function, outcome.as_str()]).inc();
        let seconds = ended.duration_since(began).as_secs_f64();
        self.metrics.dispatch_attempt_seconds.with_label_values(&[function]).observe(seconds);

        let finished = Finished {
            lane: lease.lane,
            function: name,
            event: event.id,
            ticket,
            outcome: &outcome,
            blame,
            hold: verdict.hold,
            buried: matches!(verdict.settlement, Settlement::Bury(_)),
            said: reply.in_words(),
            payload_bytes: event.payload.len() as u64,
            began,
            ended,
        };
        for notice in self.lanes.finished(finished, now) {
            self.announce(name, notice);
        }
        self.show(name, lease.lane);
        if blame == Blame::Ask {
            self.ask(Doubted { leased, mode, ticket, reply, outcome });
            return None;
        }
        self.log(&event.id, function, &outcome, &verdict.settlement, &reply);
        self.note(&leased, mode, &outcome, &reply, &verdict.settlement, now);
        Some((lease, verdict.settlement))
    }

    /// Asks Lambda whether the function of a failed event can be invoked.
    fn ask(&mut self, mut doubted: Doubted) {
        let lane = doubted.leased.lease.lane;
        doubted.leased.event.payload = Bytes::new();
        let (invoke, function) = (self.invoke.clone(), doubted.leased.event.function.clone());
        self.doubted.insert(lane, doubted);
        self.asking.spawn(async move {
            let reply = AssertUnwindSafe(async { invoke.dry_run(function).await }).catch_unwind().await;
            (lane, reply.unwrap_or_else(|panic| panicked(panic.as_ref())))
        });
    }

    async fn settle_answered(&mut self, answered: Result<(LaneId, Reply), JoinError>) -> Result<(), Error> {
        let done = match answered {
            Ok((lane, answer)) => {
                let doubted = self.doubted.remove(&lane);
                doubted.map(|doubted| self.conclude(doubted, blame_after_dry_run(&answer), &answer.in_words()))
            }
            // Dry runs catch their panics, so this happens only when the runtime shuts down.
            Err(error) => {
                tracing::error!(%error, "a dry run's task failed: its event stays leased until a restart");
                None
            }
        };
        self.write(done.into_iter().collect()).await
    }

    /// Settles the events whose dry run has not returned: a stop does not wait for it. They are not charged.
    async fn settle_doubted(&mut self) -> Result<(), Error> {
        self.asking.abort_all();
        let doubted = std::mem::take(&mut self.doubted);
        let done = doubted.into_values().map(|doubted| self.conclude(doubted, Blame::Wait, "not awaited"));
        let done = done.collect();
        self.write(done).await
    }

    fn conclude(&mut self, doubted: Doubted, blame: Blame, answer: &str) -> (Lease, Settlement) {
        let Doubted { leased, mode, ticket, reply, outcome } = doubted;
        let Leased { lease, event, history } = &leased;
        let (lease, name, now) = (*lease, &event.function.name, self.now());
        let function = self.metrics.function_label(name);
        tracing::debug!(event_id = %event.id, function, answer, ?blame, "a dry run decided whether the event is to blame");
        let policy = self.lanes.policy(name);
        let verdict = decide(&outcome, blame, &reply, event, history, policy, now, &self.clock);
        let settled = Settled {
            lane: lease.lane,
            function: name,
            event: event.id,
            ticket,
            hold: verdict.hold,
            buried: matches!(verdict.settlement, Settlement::Bury(_)),
        };
        for notice in self.lanes.answered(settled, now) {
            self.announce(name, notice);
        }
        self.log(&event.id, function, &outcome, &verdict.settlement, &reply);
        self.note(&leased, mode, &outcome, &reply, &verdict.settlement, now);
        (lease, verdict.settlement)
    }

    /// Notes what a settlement means for its event. Kept once the settlement is written.
    fn note(
        &mut self,
        leased: &Leased,
        mode: Mode,
        outcome: &Outcome,
        reply: &Reply,
        settlement: &Settlement,
        now: UnixMillis,
    ) {
        if self.past.is_kept() {
            notes::add(&mut self.notes, leased, mode, outcome, reply, settlement, now);
        }
    }

    fn log(
        &self,
        event_id: &crate::event::EventId,
        function: &str,
        outcome: &Outcome,
        settlement: &Settlement,
        reply: &Reply,
    ) {
        match settlement {
            Settlement::Delivered => tracing::debug!(%event_id, function, "event delivered"),
            Settlement::RetryAt(history) => {
                self.metrics.dispatch_retries.with_label_values(&[function]).inc();
                let (outcome, attempts) = (outcome.as_str(), history.attempts);
                tracing::debug!(%event_id, function, outcome, attempts, due = history.due.rfc3339(), "event will be retried");
            }
            Settlement::Bury(history) => {
                let reason = history.burial.as_ref().map_or("", |burial| burial.reason.as_str());
                self.metrics.deadletter_buried.with_label_values(&[function, reason]).inc();
                let (attempts, answer) = (history.attempts, reply.in_words());
                tracing::warn!(%event_id, function, reason, attempts, answer, "event buried");
            }
            Settlement::Release | Settlement::Shipped | Settlement::HandedOver => {}
        }
    }

    fn announce(&self, name: &FunctionName, notice: Notice) {
        let function = self.metrics.function_label(name);
        match notice {
            Notice::Held { scope, kind, reason } => {
                self.show_held(name, scope);
                tracing::warn!(function, scope = scope.as_str(), kind = kind.as_str(), reason, "lane is held");
            }
            Notice::Recovered { scope } => {
                self.show_held(name, scope);
                tracing::info!(function, scope = scope.as_str(), "lane is no longer held");
            }
            Notice::Failing { delivered, failed, last } => {
                tracing::warn!(
                    function,
                    delivered,
                    failed,
                    last,
                    "function fails: more of the last minute's attempts failed than succeeded"
                );
            }
            Notice::Well => tracing::info!(function, "function no longer fails"),
        }
    }

    fn show_held(&self, name: &FunctionName, scope: Scope) {
        // Several functions may share a label.
        let mut held = BTreeMap::from([(self.metrics.function_label(name), false)]);
        for (told, is_held) in self.lanes.told_of(name, scope) {
            *held.entry(self.metrics.function_label(told)).or_default() |= is_held;
        }
        for (label, is_held) in held {
            self.metrics.dispatch_held.with_label_values(&[label]).set(is_held.into());
        }
    }

    fn show(&self, function: &FunctionName, lane: LaneId) {
        let label = self.metrics.function_label(function);
        self.metrics.dispatch_in_flight.with_label_values(&[label]).set(i64::from(self.lanes.in_flight(lane)));
        self.metrics.dispatch_limit.with_label_values(&[label]).set(i64::from(self.lanes.limit(lane)));
    }

    /// Hands settlements to the outbox, which commits them together with other requests. The loop does not wait.
    async fn write(&mut self, done: Vec<(Lease, Settlement)>) -> Result<(), Error> {
        if done.is_empty() {
            return Ok(());
        }
        while self.settling.len() >= SETTLING_MAX {
            if let Some(settled) = self.settling.join_next().await {
                joined(settled)?;
            }
        }
        let outbox = self.outbox.clone();
        let (clock, give_up) = (self.clock.clone(), self.give_up.clone());
        let (past, notes) = (self.past.clone(), std::mem::take(&mut self.notes));
        self.settling.spawn(async move {
            if let Some(lost) = patience::settle(&outbox, done, &clock, &give_up).await? {
                past.note(notes.without(&lost));
            }
            Ok(())
        });
        Ok(())
    }
}

fn joined(settled: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    settled.unwrap_or_else(|error| {
        tracing::error!(%error, "a settlement panicked: please report this bug");
        Err(Error::Closed)
    })
}

/// The reply of an attempt that panicked. The request may have been sent.
fn panicked(panic: &(dyn Any + Send)) -> Reply {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let message = format!("the attempt panicked: {}", text.unwrap_or("no text"));
    tracing::error!(message, "a bug in sendoff: please report it");
    Reply::Lost(Failure { kind: FailureKind::Panicked, message })
}

mod notes;

#[cfg(test)]
mod tests;
