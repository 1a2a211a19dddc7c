//! Runs one job: counts what fits, then changes it piece by piece.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::wanted::{Selection, Wanted};
use crate::admin::api::{BulkAction, BulkJob, BulkState};
use crate::admin::dead_letters::{counted, of_discarded, of_revived, redriven};
use crate::admin::{Admin, Problem};
use crate::event::{EventId, FunctionName};
use crate::outbox::dead::BuriedWant;
use crate::outbox::operator::{Cursor, ListWant, Operator, Touched};
use crate::outbox::{self, History, Place};
use crate::past::{End, How};
use crate::plural::count;

/// The most events of a page.
const PAGE: usize = 500;

/// The most events of one change, which is one commit of the store.
const BATCH: usize = 100;

/// A slow rate changes a few events several times a second, so that its progress is even.
const STEPS_PER_SECOND: f64 = 4.0;

/// How long a job waits for room or for a store that is away before it tries again, ...
const RETRY: Duration = Duration::from_secs(1);

/// ... and how often in a row.
const RETRIES_MAX: u32 = 60;

/// An event that a job may change.
struct Item {
    id: EventId,
    function: FunctionName,
    history: History,
}

/// Events that fit, and where to go on.
struct Found {
    items: Vec<Item>,
    next: Option<Cursor>,
}

/// Why a job ends before its end.
enum Cut {
    Stopped,
    Failed(String),
}

impl From<Problem> for Cut {
    fn from(problem: Problem) -> Self {
        Self::Failed(problem.message)
    }
}

/// A job at work.
pub(super) struct Run<O> {
    pub admin: Admin<O>,
    pub wanted: Wanted,
    /// Where it tells how far it is.
    pub view: watch::Sender<BulkJob>,
    pub stop: CancellationToken,
}

impl<O: Operator> Run<O> {
    /// Runs the job. Returns what it tells of itself at its end.
    pub async fn run(self) -> BulkJob {
        let ended = self.work().await;
        let (state, message) = match ended {
            Ok(state) => (state, None),
            Err(Cut::Stopped) => (BulkState::Stopped, None),
            Err(Cut::Failed(why)) => (BulkState::Failed, Some(why)),
        };
        let now = self.admin.clock.now().rfc3339();
        self.view.send_modify(|job| {
            job.state = state;
            job.ended_at = Some(now);
            // A refusal has said why already.
            if state != BulkState::Refused {
                job.message = message;
            }
        });
        let job = self.view.borrow().clone();
        tracing::info!(
            job = job.id.as_str(),
            action = job.action.as_str(),
            state = job.state.as_str(),
            done = job.done,
            dry_run = job.dry_run,
            "bulk job ended"
        );
        job
    }

    async fn work(&self) -> Result<BulkState, Cut> {
        let matched = self.count().await?;
        if self.wanted.is_surprising(matched) {
            let expect = self.wanted.expect.unwrap_or_default();
            let fit = count(matched, "event");
            let why =
                format!("{fit} fit now, more than a tenth over the {expect} that were expected; nothing was done");
            self.view.send_modify(|job| job.message = Some(why));
            return Ok(BulkState::Refused);
        }
        if self.wanted.dry_run {
            return Ok(BulkState::Done);
        }
        self.view.send_modify(|job| {
            job.state = BulkState::Running;
            job.looked_at = 0;
        });
        self.change().await?;
        Ok(BulkState::Done)
    }

    /// Counts what fits.
    async fn count(&self) -> Result<u64, Cut> {
        let (mut after, mut matched, mut oldest) = (None, 0, None);
        loop {
            let found = self.page(after).await?;
            let first = found.items.iter().map(|item| item.id.accepted_at()).min();
            oldest = [oldest, first].into_iter().flatten().min();
            matched += found.items.len() as u64;
            after = found.next;
            if after.is_none() {
                break;
            }
        }
        self.view.send_modify(|job| {
            job.matched = Some(matched);
            job.oldest_at = oldest.map(|oldest| oldest.rfc3339());
        });
        Ok(matched)
    }

    /// Changes what fits, up to the limit and as fast as the rate allows.
    async fn change(&self) -> Result<(), Cut> {
        let began = self.admin.clock.instant();
        let (mut after, mut left, mut taken) = (None, self.wanted.limit, 0_u64);
        let batch = self.wanted.rate.map_or(BATCH, |rate| ((rate / STEPS_PER_SECOND) as usize).clamp(1, BATCH));
        loop {
            let found = self.page(after).await?;
            let mut items = found.items;
            items.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            while !items.is_empty() {
                let rest = items.split_off(batch.min(items.len()));
                taken += items.len() as u64;
                left -= items.len() as u64;
                self.apply(items).await?;
                items = rest;
                if let Some(rate) = self.wanted.rate {
                    let due = began + Duration::from_secs_f64(taken as f64 / rate);
                    self.sleep(due.saturating_duration_since(self.admin.clock.instant())).await?;
                }
            }
            after = found.next;
            if after.is_none() || left == 0 {
                return Ok(());
            }
        }
    }

    async fn sleep(&self, duration: Duration) -> Result<(), Cut> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Cut::Stopped),
            () = self.admin.clock.sleep(duration) => Ok(()),
        }
    }

    /// Asks the store, and again while it is away.
    async fn ask<T: Send, F: Future<Output = Result<T, outbox::Error>> + Send>(
        &self,
        ask: impl Fn(O) -> F + Send,
    ) -> Result<T, Cut> {
        let mut retries = 0;
        loop {
            if self.stop.is_cancelled() {
                return Err(Cut::Stopped);
            }
            match ask(self.admin.store()?).await {
                Ok(answer) => return Ok(answer),
                Err(outbox::Error::Away { why, retry_after }) if retries < RETRIES_MAX => {
                    retries += 1;
                    let message = format!("the outbox is away: {why}; it is asked again");
                    self.view.send_modify(|job| job.message = Some(message));
                    self.sleep(retry_after.max(RETRY)).await?;
                }
                Err(error) => return Err(Problem::from(error).into()),
            }
        }
    }

    /// A page of what fits.
    async fn page(&self, after: Option<Cursor>) -> Result<Found, Cut> {
        let (found, looked_at) = match &self.wanted.which {
            Selection::Letters { filter, .. } => {
                let want = BuriedWant { filter: filter.clone(), after, letters_max: PAGE, payloads: false };
                let page = self
                    .ask(|store: O| {
                        let want = want.clone();
                        async move { store.buried(want).await }
                    })
                    .await?;
                let looked_at = page.letters.len();
                let fitting = page.letters.into_iter().filter(|letter| !letter.leased);
                let fitting = fitting.filter(|letter| self.wanted.which.fits(Place::Buried, &letter.history));
                let item = |letter: outbox::dead::Letter| Item {
                    id: letter.event.id,
                    function: letter.event.function.name,
                    history: letter.history,
                };
                (Found { items: fitting.map(item).collect(), next: page.next }, looked_at)
            }
            Selection::Events { place, filter } => {
                let (function, place) = (self.wanted.function.clone(), *place);
                let want = ListWant { function, place, filter: filter.clone(), after, max: PAGE };
                let page = self
                    .ask(|store: O| {
                        let want = want.clone();
                        async move { store.list(want).await }
                    })
                    .await?;
                let looked_at = page.events.len();
                let fitting = page.events.into_iter();
                let fitting = fitting.filter(|event| self.wanted.which.fits(event.place, &event.history));
                let item = |event: outbox::operator::Listed| Item {
                    id: event.id,
                    function: event.function,
                    history: event.history,
                };
                (Found { items: fitting.map(item).collect(), next: page.next }, looked_at)
            }
        };
        self.view.send_modify(|job| job.looked_at += looked_at as u64);
        Ok(found)
    }

    /// Does the action to these events. Those that find no room are tried again.
    async fn apply(&self, items: Vec<Item>) -> Result<(), Cut> {
        let mut left = items;
        let mut retries = 0;
        loop {
            let ids: Vec<EventId> = left.iter().map(|item| item.id).collect();
            let results = self.results(ids).await?;
            let is_busy = |(word, _): &(&'static str, Option<How>)| *word == "busy";
            let all_busy = results.iter().all(is_busy);
            let (mut busy, mut ends, mut words) = (Vec::new(), Vec::new(), Vec::new());
            let now = self.admin.clock.now();
            for (item, result) in left.into_iter().zip(results) {
                let is_busy = is_busy(&result);
                let (word, how) = result;
                if is_busy && retries < RETRIES_MAX {
                    busy.push(item);
                    continue;
                }
                if let Some(how) = how {
                    ends.push(End::of(item.id, item.function, now, how, &item.history));
                }
                words.push(word);
            }
            self.admin.past.note_ends(ends);
            let action = self.wanted.action;
            for word in &words {
                self.admin.metrics.admin_bulk_events.with_label_values(&[action.as_str(), word]).inc();
            }
            self.view.send_modify(|job| {
                for word in words {
                    job.done += u64::from(word == done(action));
                    *job.results.entry(word.to_owned()).or_default() += 1;
                }
                job.message = (!busy.is_empty()).then(|| "the store has no room now; it is tried again".to_owned());
            });
            if busy.is_empty() {
                return match all_busy && retries > 0 {
                    true => Err(Cut::Failed("the store had no room for a minute".to_owned())),
                    false => Ok(()),
                };
            }
            left = busy;
            retries = if all_busy { retries + 1 } else { 1 };
            self.sleep(RETRY).await?;
        }
    }

    /// What became of each event, in order: a word, and how it left the store if it did.
    async fn results(&self, ids: Vec<EventId>) -> Result<Vec<(&'static str, Option<How>)>, Cut> {
        let by = self.view.borrow().by.clone();
        let (action, keys, redrives_max) = (self.wanted.action, self.wanted.keys, self.wanted.redrives_max);
        let asked = ids.clone();
        let touched = match action {
            BulkAction::Redrive => {
                let revive = |store: O| {
                    let ids = asked.clone();
                    async move { store.revive(ids, redrives_max).await }
                };
                let revived = self.ask(revive).await?;
                let answers = revived.iter().zip(&ids).map(|(answer, id)| {
                    let answer = counted(of_revived(answer, *id), &self.admin.metrics, "store");
                    (answer.result(), redriven(&answer, &by))
                });
                return Ok(answers.collect());
            }
            BulkAction::Purge => {
                let discard = |store: O| {
                    let ids = asked.clone();
                    async move { store.discard(ids, keys).await }
                };
                let answers = self.ask(discard).await?.into_iter().zip(&ids).map(|(answer, id)| {
                    let word = of_discarded(answer, *id).result();
                    (word, (word == done(action)).then(|| How::Purged { by: by.clone() }))
                });
                return Ok(answers.collect());
            }
            BulkAction::Cancel => {
                let cancel = |store: O| {
                    let ids = asked.clone();
                    async move { store.cancel_all(ids, keys).await }
                };
                self.ask(cancel).await?
            }
            BulkAction::Attempt => {
                let attempt = |store: O| {
                    let ids = asked.clone();
                    async move { store.attempt_all(ids).await }
                };
                self.ask(attempt).await?
            }
        };
        let is_removed = |touched| touched == Touched::Done && action == BulkAction::Cancel;
        let how = |touched| is_removed(touched).then(|| How::Cancelled { by: by.clone() });
        Ok(touched.into_iter().map(|touched| (word_of(touched, action), how(touched))).collect())
    }
}

/// The word for an event to which the action was done.
fn done(action: BulkAction) -> &'static str {
    match action {
        BulkAction::Redrive => "stored",
        BulkAction::Purge => "purged",
        BulkAction::Cancel => "cancelled",
        BulkAction::Attempt => "due",
    }
}

fn word_of(touched: Touched, action: BulkAction) -> &'static str {
    match touched {
        Touched::Done => done(action),
        Touched::NotFound => "not-found",
        Touched::InFlight => "in-flight",
        Touched::Buried => "buried",
        Touched::Unreadable => "unreadable",
    }
}
