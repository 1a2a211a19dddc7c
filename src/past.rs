//! What happened lately: the outcomes of attempts, and what became of the events that left the store. The latest are in
//! memory, and ends are also kept ([`Archive`]).
//!
//! Holds: an end is noted only once the store has it on stable storage, so nothing contradicts it later. Nothing here is
//! a payload, a key or a text of a function.
//! Limits: [`OUTCOMES_MAX`] outcomes, as many ends as `history.events` says, [`WAITERS_MAX`] callers that wait for one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::clock::{Clock, UnixMillis};
use crate::event::{EventId, FunctionName};
use crate::outbox::{BuryReason, History, LastOutcome, Lease};
pub use files::Bounds;
pub use keeping::{Archive, Keep, in_directory};

mod files;

mod keeping;

mod record;

/// The settings of the history.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The most ends in memory.
    pub events: usize,
    /// How long ends are kept on disk. Zero: they are not.
    pub keep: Duration,
    /// The most bytes of their files.
    pub bytes_max: u64,
}

/// The most outcomes that are kept.
pub const OUTCOMES_MAX: usize = 1_000;

/// The most ends that may be kept. Each takes up to 1 KiB, and a search looks at all of them.
pub const ENDS_MAX: u32 = 100_000;

/// The longest that a caller may wait for the end of an event.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long after the store an end may be noted here. Whoever finds an event nowhere looks again after that.
pub const NOTED_WITHIN: Duration = Duration::from_millis(25);

/// How often whoever waits looks again, if other daemons also deliver.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The most callers that may wait for the ends of events.
const WAITERS_MAX: usize = 256;

/// The most bytes kept of a code or an id that Lambda or SQS sent.
const TEXT_BYTES_MAX: usize = 128;

/// What happened to an event: an attempt ended, or it left the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub at: UnixMillis,
    pub id: EventId,
    pub function: FunctionName,
    /// The word of an attempt's outcome, or of what else happened: `expired`, or that of an [`End`].
    pub word: &'static str,
    /// The HTTP status, 0 without an answer.
    pub status: u16,
    /// Empty after a success.
    pub code: String,
    /// `x-amzn-RequestId`.
    pub request_id: Option<String>,
    /// All calls of Lambda for the event so far.
    pub attempts: u32,
    pub next: Next,
}

impl Outcome {
    /// What an end looks like among the outcomes, if no attempt caused it.
    pub fn of_end(end: &End) -> Self {
        Self {
            at: end.at,
            id: end.id,
            function: end.function.clone(),
            word: end.how.as_str(),
            status: 0,
            code: String::new(),
            request_id: None,
            attempts: end.attempts,
            next: Next::Done,
        }
    }
}

/// What follows for the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has left the store.
    Done,
    Retry {
        due: UnixMillis,
    },
    Buried,
}

/// What became of an event that has left the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub id: EventId,
    pub function: FunctionName,
    pub at: UnixMillis,
    pub how: How,
    /// All calls of Lambda.
    pub attempts: u32,
    /// The calls that counted towards `attempts_max`.
    pub charged: u32,
    /// The last attempt that failed. Its message is empty, because it may quote what the function said.
    pub last_error: Option<LastOutcome>,
    /// Why it was buried, if it was.
    pub reason: Option<BuryReason>,
}

/// How an event left the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Lambda accepted it. `confirmed` means that the function has also ended without an error.
    Delivered { confirmed: bool, status: u16, request_id: Option<String> },
    /// Its dead-letter queue has it.
    Shipped { message_id: String },
    /// An operator removed it with others.
    Purged { by: String },
    /// An operator removed it by its id or with others that waited.
    Cancelled { by: String },
    /// An operator sent the dead letter again, under a new id.
    Redriven { by: String, new_id: EventId },
    /// Another sendoff, or a hand-off queue, has it.
    HandedOver { to: String },
}

impl How {
    /// Every word of [`How::as_str`].
    pub const WORDS: [&str; 6] = ["delivered", "shipped", "purged", "cancelled", "redriven", "handed-over"];

    /// The word in the API and in lists.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Delivered { .. } => "delivered",
            Self::Shipped { .. } => "shipped",
            Self::Purged { .. } => "purged",
            Self::Cancelled { .. } => "cancelled",
            Self::Redriven { .. } => "redriven",
            Self::HandedOver { .. } => "handed-over",
        }
    }
}

impl End {
    /// The end of an event with this history. The history does not include the call that ended it.
    pub fn of(id: EventId, function: FunctionName, at: UnixMillis, how: How, history: &History) -> Self {
        let call = u32::from(matches!(how, How::Delivered { .. }));
        let last_error = history.last.as_ref().map(|last| LastOutcome {
            code: cut(&last.code),
            message: String::new(),
            request_id: last.request_id.as_deref().map(cut),
            ..*last
        });
        Self {
            id,
            function,
            at,
            how,
            attempts: history.calls.saturating_add(call),
            charged: history.attempts,
            last_error,
            reason: history.burial.as_ref().map(|burial| burial.reason),
        }
    }

    /// The end of an event of which only this is known.
    pub fn bare(id: EventId, function: FunctionName, at: UnixMillis, how: How) -> Self {
        Self::of(id, function, at, how, &History::default())
    }
}

/// What became of an event, as both listeners tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndView {
    /// `delivered`, `shipped` (its dead-letter queue has it), `purged`, `cancelled`, `redriven` (an operator sent the dead
    /// letter again) or `handed-over` (another sendoff, or a hand-off queue, has it under the same id).
    pub outcome: String,
    #[schema(format = DateTime)]
    pub at: String,
    /// Of a delivered event: whether the function has ended without an error. False means that Lambda's queue has the event.
    pub confirmed: Option<bool>,
    /// Of a delivered event: the HTTP status of Lambda's answer.
    pub status: Option<u16>,
    /// Of a delivered event: Lambda's request id, to find the call in CloudWatch.
    pub request_id: Option<String>,
    /// The operator who caused it.
    pub by: Option<String>,
    /// Of a shipped event: the id of its message.
    pub message_id: Option<String>,
    /// Of a redriven event: its new id.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub new_id: Option<EventId>,
    /// Of an event that was handed over: the address of the other sendoff, or the queue.
    pub to: Option<String>,
}

impl From<&End> for EndView {
    fn from(end: &End) -> Self {
        let view = Self { outcome: end.how.as_str().to_owned(), at: end.at.rfc3339(), ..Self::default() };
        match &end.how {
            How::Delivered { confirmed, status, request_id } => {
                Self { confirmed: Some(*confirmed), status: Some(*status), request_id: request_id.clone(), ..view }
            }
            How::Shipped { message_id } => Self { message_id: Some(message_id.clone()), ..view },
            How::Purged { by } | How::Cancelled { by } => Self { by: Some(by.clone()), ..view },
            How::Redriven { by, new_id } => Self { by: Some(by.clone()), new_id: Some(*new_id), ..view },
            How::HandedOver { to } => Self { to: Some(to.clone()), ..view },
        }
    }
}

/// Records one by one, as [`Keep::append`] gets them.
pub fn split(records: &[u8]) -> impl Iterator<Item = (EventId, &[u8])> {
    record::records(records).map(|(at, record)| (record.id, &records[at..at + record.len()]))
}

/// The end in a record. `None` if it is damaged, or a later build wrote it.
pub fn read_end(record: &[u8]) -> Option<End> {
    record::first(record)?.end()
}

/// At most [`TEXT_BYTES_MAX`] bytes of a text, cut at a character.
pub fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

/// What a stage notes about one batch of settlements, before they are written.
#[derive(Debug, Default)]
pub struct Notes {
    pub outcomes: Vec<Outcome>,
    pub ends: Vec<End>,
}

impl Notes {
    /// Without the events whose settlement changed nothing.
    pub fn without(mut self, lost: &[Lease]) -> Self {
        if !lost.is_empty() {
            let is_lost = |id: &EventId| lost.iter().any(|lease| lease.id == *id);
            self.outcomes.retain(|outcome| !is_lost(&outcome.id));
            self.ends.retain(|end| !is_lost(&end.id));
        }
        self
    }
}

/// The latest outcomes and ends. Cheap to clone. All clones are one. The default keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct Past(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    kept: Mutex<Kept>,
    /// The most ends that are kept.
    ends_max: usize,
    /// The most outcomes that are kept.
    outcomes_max: usize,
    /// Cancelled when nobody should wait any longer.
    closing: CancellationToken,
    /// Where ends are kept on disk.
    archive: OnceLock<Archive>,
}

#[derive(Debug, Default)]
struct Kept {
    outcomes: VecDeque<Outcome>,
    ends: VecDeque<End>,
    waiters: BTreeMap<EventId, Vec<(u64, oneshot::Sender<()>)>>,
    /// How many waiters there are.
    waiting: usize,
    /// The number of the next waiter.
    next: u64,
}

impl Past {
    /// Keeps `ends_max` ends. Once `closing` is cancelled, nobody waits any longer.
    pub fn new(ends_max: usize, closing: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            kept: Mutex::default(),
            ends_max,
            outcomes_max: OUTCOMES_MAX,
            closing,
            archive: OnceLock::new(),
        }))
    }

    /// From now on ends are also kept there. The first call counts.
    pub fn keep_in(&self, archive: Archive) {
        self.0.archive.get_or_init(|| archive);
    }

    /// Writes the ends that are noted, and makes them durable.
    pub async fn written(&self) {
        if let Some(archive) = self.0.archive.get() {
            archive.close().await;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything is kept, so that a stage need not collect what nobody reads.
    pub fn is_kept(&self) -> bool {
        self.0.outcomes_max > 0
    }

    /// Keeps what happened, and wakes whoever waits for these events. Call it once the store has it.
    pub fn note(&self, Notes { outcomes, ends }: Notes) {
        if outcomes.is_empty() && ends.is_empty() {
            return;
        }
        // First, so that whoever is woken finds it.
        if let Some(archive) = self.0.archive.get().filter(|_| !ends.is_empty()) {
            archive.take(&ends);
        }
        let mut kept = self.kept();
        if kept.waiting > 0 {
            ends.iter().for_each(|end| kept.wake(end.id));
            outcomes.iter().filter(|outcome| outcome.next == Next::Buried).for_each(|outcome| kept.wake(outcome.id));
        }
        push(&mut kept.outcomes, outcomes, self.0.outcomes_max);
        push(&mut kept.ends, ends, self.0.ends_max);
    }

    /// Keeps ends that operators caused, each also as an outcome.
    pub fn note_ends(&self, ends: Vec<End>) {
        let from = ends.len().saturating_sub(self.0.outcomes_max);
        self.note(Notes { outcomes: ends[from..].iter().map(Outcome::of_end).collect(), ends });
    }

    /// What became of an event, if that is still in memory. Looks at every end there, from the latest on.
    pub fn end_of(&self, id: EventId) -> Option<End> {
        self.kept().ends.iter().rev().find(|end| end.id == id).cloned()
    }

    /// What became of an event that the store has no longer, from memory or from disk. Its end is noted a moment after the
    /// store's commit.
    pub async fn end_of_gone(&self, id: EventId, clock: &Clock) -> Option<End> {
        if let Some(end) = self.known(id).await {
            return Some(end);
        }
        if self.0.ends_max == 0 && self.0.archive.get().is_none() {
            return None;
        }
        clock.sleep(NOTED_WITHIN).await;
        self.known(id).await
    }

    async fn known(&self, id: EventId) -> Option<End> {
        if let Some(end) = self.end_of(id) {
            return Some(end);
        }
        self.0.archive.get()?.find(id).await
    }

    /// The latest outcomes that fit, the last one at the end.
    pub fn latest(&self, max: usize, fits: impl Fn(&Outcome) -> bool) -> Vec<Outcome> {
        let kept = self.kept();
        let mut found: Vec<_> = kept.outcomes.iter().rev().filter(|outcome| fits(outcome)).take(max).cloned().collect();
        found.reverse();
        found
    }

    /// Registers a caller who waits until the event ends or is buried. Register first, then look: so no end is missed.
    /// `None` if too many wait already.
    pub fn waiter(&self, id: EventId) -> Option<Waiter> {
        let mut kept = self.kept();
        if kept.waiting >= WAITERS_MAX {
            return None;
        }
        let (wake, woken) = oneshot::channel();
        let number = kept.next;
        kept.next += 1;
        kept.waiting += 1;
        kept.waiters.entry(id).or_default().push((number, wake));
        drop(kept);
        Some(Waiter { past: self.clone(), id, number, woken })
    }
}

impl Kept {
    fn wake(&mut self, id: EventId) {
        for (_, wake) in self.waiters.remove(&id).unwrap_or_default() {
            self.waiting -= 1;
            // The waiter may be gone.
            _ = wake.send(());
        }
    }
}

fn push<T>(kept: &mut VecDeque<T>, new: Vec<T>, max: usize) {
    kept.extend(new);
    let over = kept.len().saturating_sub(max);
    kept.drain(..over);
}

/// How long a caller wants to wait, as it is written: like `30s` or `500ms`, at most a minute. The OpenAPI documents have
/// this as a pattern, so nothing else is accepted.
pub fn read_wait(text: &str) -> Result<Duration, String> {
    const WHY: &str = "wait: write it like 30s or 500ms, at most 60s";
    let (digits, unit, zeros_max) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1, 4),
        None => (text.strip_suffix('s').ok_or(WHY)?, 1_000, 1),
    };
    let is_number = (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_padded = digits.starts_with('0') && digits.len() > zeros_max;
    let number = digits.parse::<u64>().ok().filter(|_| is_number && !is_padded);
    let wait = number.map(|number| Duration::from_millis(number * unit));
    wait.filter(|wait| *wait <= WAIT_MAX).ok_or_else(|| WHY.to_owned())
}

/// A caller who waits for the end of an event. Dropping it ends the wait.
#[derive(Debug)]
pub struct Waiter {
    past: Past,
    id: EventId,
    number: u64,
    woken: oneshot::Receiver<()>,
}

impl Waiter {
    /// Returns once the event has ended or was buried, once the time is over, or when the daemon stops. Carries no data: look
    /// again. Returns how much longer to wait if nothing was found: another daemon, which wakes nobody here, may end the event.
    pub async fn woken(&mut self, within: Duration) -> Duration {
        let is_shared = self.past.0.archive.get().is_some_and(Archive::is_shared);
        let piece = if is_shared { within.min(LOOK_EVERY) } else { within };
        let closing = self.past.0.closing.clone();
        let woken = async {
            tokio::select! {
                biased;
                _ = &mut self.woken => {}
                () = closing.cancelled() => {}
            }
        };
        match timeout(piece, woken).await {
            Ok(()) => Duration::ZERO,
            Err(_) => within - piece,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut kept = self.past.kept();
        let Some(waiters) = kept.waiters.get_mut(&self.id) else { return };
        let before = waiters.len();
        waiters.retain(|(number, _)| *number != self.number);
        let (gone, is_empty) = (before - waiters.len(), waiters.is_empty());
        if is_empty {
            kept.waiters.remove(&self.id);
        }
        kept.waiting -= gone;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> EventId {
        EventId::from_bytes([n; 16])
    }

    fn end(n: u8) -> End {
        End::bare(id(n), FunctionName::new("f"), UnixMillis(n.into()), How::Cancelled { by: "oncall".to_owned() })
    }

    /// How many wait, and for how many events.
    fn waiting_at(past: &Past) -> (usize, usize) {
        let kept = past.kept();
        (kept.waiting, kept.waiters.len())
    }

    #[test]
    fn a_wait_is_read_as_the_documents_say() {
        let pattern = "^(([0-9]|[1-5][0-9]|60)s|([0-9]{1,4}|[1-5][0-9]{4}|60000)ms)$";
        let pattern = regex_lite::Regex::new(pattern).unwrap();
        for text in [
            "0s", "9s", "30s", "60s", "61s", "05s", "0", "s", "ms", "", "1m", "+5s", "0ms", "0500ms", "59999ms",
            "60000ms", "60001ms", "00500ms", "123456ms", "1.5s", " 5s", "5 s", "5S",
        ] {
            assert_eq!(read_wait(text).is_ok(), pattern.is_match(text), "{text:?}");
        }
        assert_eq!(read_wait("500ms"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn only_the_latest_ends_and_outcomes_are_kept() {
        let past = Past::new(3, CancellationToken::new());
        past.note_ends((0..5).map(end).collect());
        assert_eq!(past.end_of(id(1)), None);
        assert_eq!(past.end_of(id(4)).map(|end| end.at), Some(UnixMillis(4)));
        for _ in 0..OUTCOMES_MAX {
            past.note_ends(vec![end(9)]);
        }
        assert_eq!(past.latest(usize::MAX, |_| true).len(), OUTCOMES_MAX);
        assert!(past.latest(2, |outcome| outcome.id == id(0)).is_empty());
        past.note_ends(vec![end(7), end(8)]);
        let latest: Vec<_> = past.latest(2, |_| true).iter().map(|outcome| outcome.id).collect();
        assert_eq!(latest, [id(7), id(8)], "the last one at the end");
        let off = Past::default();
        off.note_ends(vec![end(1)]);
        assert!(off.end_of(id(1)).is_none() && off.latest(9, |_| true).is_empty());
    }

    #[test]
    fn what_functions_said_is_not_kept_and_long_codes_are_cut() {
        let last = LastOutcome {
            at: UnixMillis(1),
            status: 200,
            code: "x".repeat(10_000),
            message: "a secret".to_owned(),
            request_id: Some("r".repeat(10_000)),
        };
        let history = History { calls: 2, attempts: 1, last: Some(last), ..History::default() };
        let how = How::Delivered { confirmed: true, status: 200, request_id: None };
        let end = End::of(id(1), FunctionName::new("f"), UnixMillis(2), how, &history);
        let kept = end.last_error.unwrap();
        assert_eq!((kept.code.len(), kept.message.as_str()), (TEXT_BYTES_MAX, ""));
        assert_eq!((end.attempts, end.charged), (3, 1), "the call that ended it counts");
    }

    #[test]
    fn a_settlement_that_changed_nothing_is_not_noted() {
        let notes = Notes { outcomes: Vec::new(), ends: vec![end(1), end(2)] };
        let lost = [Lease { lane: crate::outbox::LaneId(0), id: id(1) }];
        assert_eq!(notes.without(&lost).ends, [end(2)]);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_the_end_of_its_event_only() {
        let closing = CancellationToken::new();
        let past = Past::new(10, closing.clone());
        let (mut first, mut second) = (past.waiter(id(1)).unwrap(), past.waiter(id(1)).unwrap());
        let mut other = past.waiter(id(2)).unwrap();
        past.note_ends(vec![end(1)]);
        first.woken(Duration::MAX).await;
        second.woken(Duration::MAX).await;
        assert!(other.woken.try_recv().is_err());
        let buried = Outcome {
            at: UnixMillis(1),
            id: id(2),
            function: FunctionName::new("f"),
            word: "refused",
            status: 400,
            code: String::new(),
            request_id: None,
            attempts: 1,
            next: Next::Buried,
        };
        past.note(Notes { outcomes: vec![buried], ends: Vec::new() });
        other.woken(Duration::MAX).await;
        drop((first, second, other));
        assert_eq!(waiting_at(&past), (0, 0));

        let waiting: Vec<_> = (0..WAITERS_MAX).map(|n| past.waiter(id(n as u8)).unwrap()).collect();
        assert!(past.waiter(id(3)).is_none(), "there is a limit");
        drop(waiting);
        assert_eq!(waiting_at(&past), (0, 0), "who leaves makes room");
        let mut last = past.waiter(id(3)).unwrap();
        closing.cancel();
        last.woken(Duration::MAX).await;
    }
}
