//! The loop: read the outbox, plan, lease, attempt, settle.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::lane::{Change, FULL_READING_EVERY, Finished, Lanes, Ticket};
use super::status::{Questions, Status};
use super::verdict::{Outcome, bury, deadline, decide, outcome_for, outcome_of};
use super::{Call, Failure, FailureKind, Invoke, Mode, Reply, Settings};
use crate::clock::{Clock, UnixMillis};
use crate::event::FunctionName;
use crate::metrics::Metrics;
use crate::outbox::{BuryReason, Changes, Error, LaneId, LaneNews, Lease, LeaseWant, Leased, Outbox, Settlement};
use crate::shutdown::Stop;
use crate::trace;

/// Batches of settlements that may be on their way to the disk; then the loop waits for one.
const SETTLING_MAX: usize = 8;

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
    /// The sum of the clock's steps, as far as the lanes know them.
    stepped: i64,
    attempts: JoinSet<Attempted>,
    settling: JoinSet<Result<(), Error>>,
    status: Status,
    questions: Questions,
}

/// An attempt that came back.
struct Attempted {
    leased: Leased,
    mode: Mode,
    ticket: Ticket,
    reply: Reply,
    began: Instant,
    ended: Instant,
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
            stepped: 0,
            attempts: JoinSet::new(),
            settling: JoinSet::new(),
        }
    }

    /// Whom to ask what this dispatch is doing.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Takes over settings as they change, without a restart.
    pub fn following(self, changes: watch::Receiver<Settings>) -> Self {
        Self { changes, ..self }
    }

    /// Works until told to stop leasing; then waits for the attempts in flight, until told to stop working. What is then
    /// still in flight stays in the outbox, uncharged. An error means that the outbox is lost to this process.
    pub async fn run(mut self, stop: Stop) -> Result<(), Error> {
        self.stepped = self.clock.stepped();
        self.lanes.stepped(0, self.clock.steps(), self.now());
        while !stop.leasing.is_cancelled() {
            self.notice_step();
            // Where what is known is enough to go on with, the lease brings the news along.
            let now = self.now();
            let enough = now < self.next_full_reading && self.lanes.next_time(now) <= now;
            if !enough {
                self.read_lanes().await?;
            }
            let heard = self.lease().await?;
            if enough && !heard {
                self.read_lanes().await?;
            }
            let next = self.lanes.next_time(self.now()).min(self.next_full_reading);
            let next = if self.clock.stepped() == self.stepped { next } else { UnixMillis(0) };
            tokio::select! {
                biased;
                () = stop.leasing.cancelled() => break,
                Some(first) = self.attempts.join_next() => self.settle_finished(first).await?,
                Some(settled) = self.settling.join_next() => joined(settled)?,
                Ok(()) = self.changes.changed() => {
                    let settings = self.changes.borrow_and_update().clone();
                    self.lanes.reconfigure(settings, self.now());
                }
                () = self.outbox.changed(self.seen, Changes::Any) => {}
                Some(question) = self.questions.recv() => self.answer(question),
                () = self.clock.sleep_until(next) => {}
            }
        }
        while !(self.attempts.is_empty() && self.settling.is_empty()) {
            tokio::select! {
                biased;
                () = stop.working.cancelled() => break,
                Some(first) = self.attempts.join_next() => self.settle_finished(first).await?,
                Some(settled) = self.settling.join_next() => joined(settled)?,
            }
        }
        self.attempts.abort_all();
        while let Some(settled) = self.settling.join_next().await {
            joined(settled)?;
        }
        let lanes = self.lanes.give_back();
        if !lanes.is_empty() {
            self.outbox.lease(LeaseWant { lanes, bytes_max: 0 }).await?;
        }
        Ok(())
    }

    /// The present time, as far as the lanes have heard: a step of the clock reaches them between two rounds only.
    fn now(&self) -> UnixMillis {
        self.clock.steady().shifted(self.stepped)
    }

    /// Moves what waits for a span to where the clock stands now, if it was set.
    fn notice_step(&mut self) {
        let by = self.clock.stepped() - self.stepped;
        if by != 0 {
            self.stepped += by;
            self.lanes.stepped(by, self.clock.steps(), self.now());
            self.next_full_reading = UnixMillis(0);
        }
    }

    async fn read_lanes(&mut self) -> Result<(), Error> {
        let now = self.now();
        if now >= self.next_full_reading {
            let news = self.outbox.lanes(0).await?;
            self.seen = news.version;
            self.lanes.learn_all(news, now);
            self.announce_noticed();
            self.next_full_reading = now.plus(FULL_READING_EVERY);
        } else {
            let news = self.outbox.lanes(self.seen).await?;
            self.learn(news);
        }
        Ok(())
    }

    fn learn(&mut self, news: LaneNews) {
        self.seen = news.version;
        self.lanes.learn(news, self.now());
        self.announce_noticed();
    }

    fn announce_noticed(&mut self) {
        for (function, change) in self.lanes.noticed() {
            self.announce(&function, change);
        }
    }

    /// Whoever asked may have gone.
    fn answer(&self, question: tokio::sync::oneshot::Sender<super::status::Lanes>) {
        drop(question.send(self.lanes.status(self.now())));
    }

    /// Buries what is past its time, leases what the plan wants and begins its attempts. Says whether the news were heard, too.
    async fn lease(&mut self) -> Result<bool, Error> {
        let now = self.now();
        let expired = self.lanes.expired(now);
        if !expired.is_empty() {
            let want = LeaseWant { lanes: expired, bytes_max: self.lanes.bytes_left() };
            // What turns out not to be past its time has no slot: it goes back.
            let leased = self.outbox.lease(want).await?;
            let settlements = leased.into_iter().map(|leased| {
                let lease = leased.lease;
                (lease, self.bury_expired(leased, now).unwrap_or(Settlement::Release))
            });
            let settlements = settlements.collect();
            self.write(settlements).await?;
            self.read_lanes().await?;
        }
        let wants = self.lanes.plan(now);
        let hears = !wants.is_empty();
        if hears {
            let want = LeaseWant { lanes: wants, bytes_max: self.lanes.bytes_left() };
            let mut done = Vec::new();
            // Asked together, both are answered in one turn of the outbox, the lease first.
            let (leased, news) =
                futures_util::future::try_join(self.outbox.lease(want), self.outbox.lanes(self.seen)).await?;
            for leased in leased {
                let lease = leased.lease;
                if now < deadline(&leased.event, self.lanes.policy(&leased.event.function.name), &self.clock) {
                    if self.lanes.may_begin(lease.lane, self.now()) {
                        self.begin(leased);
                    } else {
                        done.push((lease, Settlement::Release));
                    }
                } else {
                    done.extend(self.bury_expired(leased, now).map(|settlement| (lease, settlement)));
                }
            }
            self.write(done).await?;
            self.learn(news);
        }
        self.lanes.planned(self.now());
        Ok(hears)
    }

    /// The burial of an event that is past its time; none if it is not.
    fn bury_expired(&self, leased: Leased, now: UnixMillis) -> Option<Settlement> {
        let name = &leased.event.function.name;
        if now < deadline(&leased.event, self.lanes.policy(name), &self.clock) {
            return None;
        }
        let function = self.metrics.function_label(name);
        let reason = BuryReason::EventAgeExceeded;
        self.metrics.deadletter_buried.with_label_values(&[function, reason.as_str()]).inc();
        tracing::warn!(event_id = %leased.event.id, function, "event is past its age and buried");
        Some(bury(leased.history, reason, now))
    }

    fn begin(&mut self, leased: Leased) {
        let event = &leased.event;
        let name = &event.function.name;
        let (ticket, changes) = self.lanes.started(leased.lease.lane, event.payload.len() as u64, self.now());
        changes.into_iter().for_each(|change| self.announce(name, change));
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
            // A panic is a bug; its event must still be settled, and its slot given back.
            let reply = AssertUnwindSafe(async { invoke.invoke(call).await }).catch_unwind().await;
            let reply = reply.unwrap_or_else(|panic| panicked(panic.as_ref()));
            trace::ended(outcome_of(&reply, mode).as_str());
            Attempted { leased, mode, ticket, reply, began, ended: clock.instant() }
        };
        self.attempts.spawn(attempt.instrument(span));
    }

    /// Settles every attempt that has come back, in one batch.
    async fn settle_finished(&mut self, first: Result<Attempted, tokio::task::JoinError>) -> Result<(), Error> {
        let mut done = Vec::new();
        let mut next = Some(first);
        while let Some(attempted) = next {
            match attempted {
                Ok(attempted) => done.push(self.judge(attempted)),
                // Attempts catch their panics, so this is the end of the runtime.
                Err(error) => tracing::error!(%error, "an attempt was lost; its event stays leased until restart"),
            }
            next = self.attempts.try_join_next();
        }
        self.write(done).await
    }

    fn judge(&mut self, attempted: Attempted) -> (Lease, Settlement) {
        let Attempted { leased, mode, ticket, reply, began, ended } = attempted;
        let Leased { lease, event, history } = leased;
        let now = self.now();
        let name = &event.function.name;
        let policy = self.lanes.policy(name);
        let outcome = outcome_for(&event, &reply, mode);
        let verdict = decide(&outcome, &reply, &event, &history, policy, now, &self.clock);

        if outcome == Outcome::Delivered {
            self.metrics.is_proven(name);
        }
        let function = self.metrics.function_label(name);
        self.metrics.dispatch_attempts.with_label_values(&[function, outcome.as_str()]).inc();
        let seconds = ended.duration_since(began).as_secs_f64();
        self.metrics.dispatch_attempt_seconds.with_label_values(&[function]).observe(seconds);
        self.log(&event.id, function, &outcome, &verdict.settlement, &reply);

        let payload_bytes = event.payload.len() as u64;
        let pause = verdict.pause;
        let (lane, outcome) = (lease.lane, &outcome);
        let finished = Finished { lane, function: name, ticket, outcome, pause, payload_bytes, began, ended };
        for change in self.lanes.finished(finished, now) {
            self.announce(name, change);
        }
        self.show(name, lane);
        (lease, verdict.settlement)
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
                tracing::debug!(%event_id, function, outcome, attempts, due = history.due.rfc3339(), "event will be tried again");
            }
            Settlement::Bury(history) => {
                let reason = history.burial.as_ref().map_or("", |burial| burial.reason.as_str());
                self.metrics.deadletter_buried.with_label_values(&[function, reason]).inc();
                let (attempts, answer) = (history.attempts, reply.in_words());
                tracing::warn!(%event_id, function, reason, attempts, answer, "event is buried");
            }
            Settlement::Release | Settlement::Shipped => {}
        }
    }

    fn announce(&self, name: &FunctionName, change: Change) {
        let function = self.metrics.function_label(name);
        // Several functions may share a label.
        let mut held = BTreeMap::from([(function, false)]);
        for (told, is_held) in self.lanes.told_of(name, &change) {
            *held.entry(self.metrics.function_label(told)).or_default() |= is_held;
        }
        for (label, is_held) in held {
            self.metrics.dispatch_held.with_label_values(&[label]).set(is_held.into());
        }
        match change {
            Change::Held { scope, kind, reason } => {
                tracing::warn!(function, scope = scope.as_str(), kind = kind.as_str(), reason, "lane is held");
            }
            Change::Recovered { scope } => {
                tracing::info!(function, scope = scope.as_str(), "lane is no longer held");
            }
        }
    }

    fn show(&self, function: &FunctionName, lane: LaneId) {
        let label = self.metrics.function_label(function);
        self.metrics.dispatch_in_flight.with_label_values(&[label]).set(i64::from(self.lanes.in_flight(lane)));
        self.metrics.dispatch_limit.with_label_values(&[label]).set(i64::from(self.lanes.limit(lane)));
    }

    /// Hands settlements to the outbox, which commits them with whatever else waits; the loop goes on meanwhile.
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
        self.settling.spawn(async move { outbox.settle(done).await });
        Ok(())
    }
}

fn joined(settled: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    settled.unwrap_or_else(|error| {
        tracing::error!(%error, "a settlement panicked: please report this");
        Err(Error::Closed)
    })
}

/// What is said of an attempt that panicked: it may have been sent.
fn panicked(panic: &(dyn Any + Send)) -> Reply {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let message = format!("the attempt panicked: {}", text.unwrap_or("no text"));
    tracing::error!(message, "a bug of sendoff: please report this");
    Reply::Lost(Failure { kind: FailureKind::Panicked, message })
}

#[cfg(test)]
mod tests;
