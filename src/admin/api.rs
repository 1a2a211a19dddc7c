//! The operator's API as types: what the admin listener answers and takes. The server writes them, the CLI reads them.
//!
//! Words, the same in every answer, in the CLI, in metrics and on the ingest door (ARCHITECTURE.md, "Words"): an event has an
//! `id`; `attempts` are all calls of Lambda for it, `charged` those of them that count towards `delivery.attempts_max`;
//! `last_error` is what Lambda or the network said last; `reason` is why sendoff buried an event or holds a lane; a
//! `duplicate` was accepted before. A field may be added, so a reader passes over what it does not know.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::deadletter::letter::Letter;
use crate::dispatch::status;
use crate::event::EventId;
use crate::outbox::operator::Keys;
use crate::outbox::{BuryReason, LastOutcome};
use crate::past::EndView;

/// Why a span of time is refused.
pub const EMPTY_SPAN: &str = "since is not before until, so nothing lies between them: swap them";

mod bulk;

mod console;

mod fleet;

pub use bulk::{BulkAction, BulkFilter, BulkJob, BulkPage, BulkRequest, BulkState};
pub use console::{
    ConfigEntry, ConfigQuery, ConfigView, FunctionsQuery, GroupPage, GroupView, KeyQuery, KeyView, OutcomePage,
    OutcomeView, RecentQuery, SeriesQuery, SeriesView, Snapshot, StoreLimits, Whoami,
};
pub use fleet::{Fleet, FleetMember};

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    pub message: String,
}

/// What the latest attempt that failed ended with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastError {
    pub at: String,
    /// HTTP status. 0 without an answer.
    pub status: u16,
    pub code: String,
    pub message: String,
    pub request_id: Option<String>,
}

impl From<&LastOutcome> for LastError {
    fn from(last: &LastOutcome) -> Self {
        Self {
            at: last.at.rfc3339(),
            status: last.status,
            code: last.code.clone(),
            message: last.message.clone(),
            request_id: last.request_id.clone(),
        }
    }
}

/// How urgent a problem is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Events are refused, or none is delivered.
    Critical,
    /// Some events are not delivered, or soon will not be.
    #[default]
    Warning,
    /// To know. It passes by itself, or an operator wanted it.
    Info,
}

/// Something that keeps the daemon from delivering, of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// One word, for machines.
    pub kind: String,
    #[serde(default)]
    pub severity: Severity,
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// The functions that it is about, 20 at most.
    #[serde(default)]
    pub functions: Vec<String>,
}

/// `GET /v1/status`: the daemon in one answer, which `sendoff status` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Summary {
    pub version: String,
    /// `ready`, or why it is not.
    pub state: String,
    pub ready: bool,
    pub uptime_seconds: f64,
    pub log_level: String,
    /// Of the whole outbox, also of what other daemons own.
    pub outbox: OutboxCounts,
    /// Of this daemon since its start.
    pub totals: Totals,
    /// Of this daemon.
    pub rates: Rates,
    /// Functions whose lane is held for a reason that is not its events' fault, at whichever daemon.
    pub held: Vec<String>,
    /// The daemons that share the outbox. None if it is embedded.
    #[serde(default)]
    pub fleet: Option<Fleet>,
    /// What keeps it from delivering, with what to do; the worst first.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// What is stored, in [`Summary`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutboxCounts {
    pub events: u64,
    pub ready: u64,
    pub waiting: u64,
    pub scheduled: u64,
    pub buried: u64,
    /// Events that are being attempted or shipped. Each also counts in its state.
    pub in_flight: u64,
    pub functions: u64,
    /// Idempotency keys that are remembered.
    pub keys: u64,
    pub bytes: u64,
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
    /// Of the oldest event that is ready or waiting.
    pub oldest_age_seconds: f64,
}

/// Counts of the process's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    pub accepted: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub attempts: u64,
    pub delivered: u64,
    pub retries: u64,
    pub buried: u64,
    pub shipped: u64,
    /// Those of `attempts` that Lambda throttled.
    #[serde(default)]
    pub throttled: u64,
}

/// What happens a second, over the last `window_seconds`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rates {
    pub window_seconds: f64,
    pub accepted_per_second: f64,
    pub attempts_per_second: f64,
    pub delivered_per_second: f64,
    pub buried_per_second: f64,
}

impl Rates {
    /// The means between two readings of the counts.
    pub fn between(before: Totals, after: Totals, window: Duration) -> Self {
        let seconds = window.as_secs_f64();
        if seconds <= 0.0 {
            return Self::default();
        }
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        Self {
            window_seconds: seconds,
            accepted_per_second: rate(before.accepted, after.accepted),
            attempts_per_second: rate(before.attempts, after.attempts),
            delivered_per_second: rate(before.delivered, after.delivered),
            buried_per_second: rate(before.buried, after.buried),
        }
    }
}

/// `GET` and `PUT /v1/log-level`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// A level, or levels by module, as in `info,sendoff::dispatch=debug`.
    pub level: String,
}

/// What an operator did, or tried to do: a change, or a view of payloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Action {
    pub at: String,
    /// The operator's name; `root`, `sendoff` (the daemon's own user) or `anyone`.
    pub operator: String,
    /// How it proved that: `token`, `certificate`, `user` (of the Unix socket) or `none`.
    pub proof: String,
    /// Where it came from: an address, or `uid N`.
    pub peer: String,
    /// One word, such as `pause-function`.
    pub action: String,
    /// The function or the events that it was done to. Empty if it is about the daemon, or about what `filter` says.
    pub object: String,
    /// The query of the request, decoded.
    pub filter: String,
    /// `done`, `failed`, `denied`, or `unfinished` if the caller left before the answer.
    pub result: String,
    /// Of the answer.
    pub status: Option<u16>,
    /// How many events were changed or shown.
    pub events: Option<u64>,
    pub bytes: Option<u64>,
    /// How many events of those named were not changed.
    pub refused: Option<u64>,
}

/// `GET /v1/actions`: the latest, the last one at the end. They are kept in memory only. The log has all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActionPage {
    pub actions: Vec<Action>,
}

/// One event of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    pub id: EventId,
    pub function: String,
    /// `ready`, `waiting`, `scheduled` or `buried`; `done` once it has left the store.
    pub state: String,
    /// Being attempted, or shipped, right now.
    pub in_flight: bool,
    pub accepted_at: String,
    /// When the next attempt is due. None once it has left the store.
    pub due: Option<String>,
    /// Calls of Lambda.
    pub attempts: u32,
    /// Those of them that count towards `delivery.attempts_max`.
    pub charged: u32,
    pub last_error: Option<LastError>,
    /// Why it was buried.
    #[schema(value_type = Option<String>)]
    pub reason: Option<BuryReason>,
    /// Why it cannot be read. It can be removed by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// `GET /v1/events/{id}`: an event in the store, or one that has left it and is still remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventDetail {
    #[serde(flatten)]
    pub event: EventView,
    pub deliver_at: Option<String>,
    pub expires_at: Option<String>,
    pub redrives: u32,
    /// None once it has left the store.
    pub payload_bytes: Option<usize>,
    /// Only if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// What became of it, once it has left the store.
    #[serde(default)]
    pub end: Option<EndView>,
}

/// `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    pub events: Vec<EventView>,
    /// Where to go on. None at the end. A page may be empty and yet have a next one.
    pub next: Option<String>,
    /// How many events fit function and state, on all pages, whatever the other filters.
    pub total: u64,
}

/// `DELETE /v1/events/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cancelled {
    pub id: EventId,
    pub function: String,
    pub cancelled: bool,
}

/// `POST /v1/events/{id}/attempt`: what the attempt still waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Due {
    pub id: EventId,
    pub function: String,
    /// The lane is paused: nothing is attempted until it is resumed.
    pub paused: bool,
    /// The lane is held: nothing, or only a probe, is attempted until then.
    pub held: Option<Held>,
}

/// Why nothing of a lane is attempted, or only a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Held {
    /// `lane`, `account` or `caller`.
    pub scope: String,
    pub kind: String,
    pub reason: String,
    /// When the next probe may go, or attempts go on.
    pub until: String,
}

impl From<&status::Held> for Held {
    fn from(held: &status::Held) -> Self {
        let status::Held { scope, kind, reason, until } = held;
        Self {
            scope: scope.as_str().to_owned(),
            kind: kind.as_str().to_owned(),
            reason: reason.clone(),
            until: until.rfc3339(),
        }
    }
}

/// One function of `GET /v1/functions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FunctionView {
    pub function: String,
    /// Events to be delivered: ready, waiting and scheduled.
    pub depth: u64,
    pub ready: u64,
    pub waiting: u64,
    pub scheduled: u64,
    pub buried: u64,
    /// Age of the oldest event that is ready or waiting.
    pub oldest_age_seconds: Option<f64>,
    pub in_flight: u32,
    /// Attempts that may be in flight. None while dispatch does not know the function.
    pub limit: Option<u32>,
    pub account_limit: Option<u32>,
    pub paused: bool,
    pub held: Option<Held>,
    /// Attempts of about the last minute.
    pub delivered_per_minute: u32,
    pub failed_per_minute: u32,
    /// What the latest attempt that failed said, since the daemon's start.
    pub last_error: Option<LaneError>,
    /// Since when more attempts fail than succeed, if they do.
    pub failing_since: Option<String>,
    /// Over about the last ten seconds. None while they are not known.
    #[serde(default)]
    pub rates: Option<LaneRates>,
}

/// What happens to a function's events, a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LaneRates {
    pub accepted_per_second: f64,
    pub attempts_per_second: f64,
    pub delivered_per_second: f64,
    pub throttled_per_second: f64,
}

/// A failed attempt of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LaneError {
    pub at: String,
    /// Status, code and message.
    pub message: String,
}

impl From<&status::LastError> for LaneError {
    fn from(error: &status::LastError) -> Self {
        Self { at: error.at.rfc3339(), message: error.words.clone() }
    }
}

/// `GET /v1/functions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FunctionPage {
    pub functions: Vec<FunctionView>,
}

/// `POST /v1/functions/{name}/pause` and `/resume`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Paused {
    pub function: String,
    pub paused: bool,
    /// Resumed, and yet nothing is attempted until then.
    pub held: Option<Held>,
}

/// `POST /v1/functions/{name}/purge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Purged {
    pub function: String,
    pub dry_run: bool,
    pub events: u64,
    pub bytes: u64,
}

/// A dead letter as it is listed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LetterView {
    pub id: EventId,
    pub function: String,
    #[schema(value_type = Option<String>)]
    pub reason: Option<BuryReason>,
    pub buried_at: Option<String>,
    pub accepted_at: String,
    pub attempts: u32,
    pub charged: u32,
    pub redrives: u32,
    pub last_error: Option<LastError>,
    /// Why no queue can take it.
    pub unshippable: Option<String>,
    /// On its way to a queue right now.
    pub shipping: bool,
    pub payload_bytes: usize,
    /// All of it, as a line of an export, if payloads were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub export: Option<Box<RawValue>>,
}

/// A dead letter that cannot be read, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnreadableLetter {
    pub id: EventId,
    pub why: String,
}

/// `GET /v1/dead-letters`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LetterPage {
    pub dead_letters: Vec<LetterView>,
    /// Those of this page that cannot be read. They can be purged by their ids.
    #[serde(default)]
    pub unreadable: Vec<UnreadableLetter>,
    /// Where to go on. None at the end. A page may be empty and yet have a next one.
    pub next: Option<String>,
    /// Dead letters in the store of the functions asked for, whatever the other filters.
    pub buried: u64,
    /// Those of these functions that queues have taken since the daemon's start.
    pub shipped: u64,
    /// The queues that these functions' dead letters go to.
    pub queues: Vec<String>,
}

/// `GET /v1/dead-letters/queues`: where dead letters go, and how SQS is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Queues {
    /// `dead_letter.queue_url`, where no function has its own.
    pub queue_url: Option<String>,
    /// Functions, by pattern, that have a queue of their own; the first that fits counts.
    pub functions: Vec<FunctionQueue>,
    /// `sqs.endpoint_url`, if one is set.
    pub endpoint_url: Option<String>,
    pub region: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FunctionQueue {
    pub function: String,
    pub queue_url: String,
}

/// `POST /v1/redrive`: letters of a queue.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Letters {
    pub letters: Vec<Letter>,
}

/// `POST /v1/dead-letters`: lines of an export. The CLI passes them on as they are; the server reads them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Import<L> {
    pub letters: Vec<L>,
}

/// Which page of the events.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only those for functions whose name fits. `*` stands for any characters.
    #[param(min_length = 1, max_length = 512)]
    pub function: Option<String>,
    /// `ready`, `waiting`, `scheduled` or `buried`.
    #[param(pattern = "^(ready|waiting|scheduled|buried)$")]
    pub state: Option<String>,
    /// Accepted at or after this: RFC 3339, or how long ago (`2h`).
    pub since: Option<String>,
    /// Accepted before this.
    pub until: Option<String>,
    /// Attempted at least so often.
    #[param(value_type = Option<u32>, minimum = 0, maximum = 4_294_967_295_u32)]
    pub attempts_min: Option<u32>,
    /// Part of what the last attempt said.
    pub error: Option<String>,
    /// Only those that are being attempted or shipped. If false, only the others.
    pub in_flight: Option<bool>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// Events of the page; 100 unless given, at most 500.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 4_294_967_295_u32)]
    pub limit: Option<NonZeroU32>,
}

/// Which page of the dead letters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct LettersQuery {
    /// Only those for functions whose name fits. `*` stands for any characters.
    #[param(min_length = 1, max_length = 512)]
    pub function: Option<String>,
    /// `retries-exhausted`, `event-age-exceeded` or `refused`.
    #[param(pattern = "^(retries-exhausted|event-age-exceeded|refused)$")]
    pub reason: Option<String>,
    /// Part of what the last attempt said, or of why it is unshippable.
    pub error: Option<String>,
    /// Buried at or after this: RFC 3339, or how long ago (`2h`).
    pub since: Option<String>,
    /// Buried before this.
    pub until: Option<String>,
    /// Only those that no queue can take. If false, only the others.
    pub unshippable: Option<bool>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// Letters of the page; 100 unless given, at most 1,000.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 4_294_967_295_u32)]
    pub limit: Option<NonZeroU32>,
    /// With `export`, which has all that the client sent.
    pub payloads: bool,
}

/// Whether to show what the client sent.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PayloadQuery {
    pub payload: bool,
}

/// How to show an event.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Also what the client sent.
    pub payload: bool,
    /// Answer once the event has left the store or is a dead letter, but after so long at the latest: like `30s`, at most a
    /// minute.
    #[param(pattern = "^(([0-9]|[1-5][0-9]|60)s|([0-9]{1,4}|[1-5][0-9]{4}|60000)ms)$")]
    pub wait: Option<String>,
}

/// What to do with the keys of what is removed.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct KeysQuery {
    /// The same idempotency key sent again is then a duplicate, and is not stored.
    pub keep_keys: bool,
}

impl KeysQuery {
    pub fn keys(self) -> Keys {
        if self.keep_keys { Keys::Keep } else { Keys::Forget }
    }
}

/// How to drain.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct DrainQuery {
    /// Also hand events over to other sendoffs.
    pub hand_off: bool,
}

/// Which events of a function to purge.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PurgeQuery {
    /// `ready`, `waiting` or `scheduled`; all three unless given.
    #[param(pattern = "^(ready|waiting|scheduled)$")]
    pub state: Option<String>,
    /// Accepted before this: RFC 3339, or how long ago (`2h`).
    pub accepted_before: Option<String>,
    /// Only count.
    pub dry_run: bool,
    /// The same idempotency key sent again is then a duplicate, and is not stored.
    pub keep_keys: bool,
}

/// Ids to redrive or to purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    pub ids: Vec<EventId>,
}

/// Answers of a request about several letters, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Answers {
    pub answers: Vec<LetterResult>,
}

/// What became of one letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum LetterResult {
    /// It is on stable storage, under this id.
    Stored {
        id: EventId,
    },
    /// It was accepted before, as this event.
    Duplicate {
        id: EventId,
    },
    /// No room now.
    Busy {
        message: String,
    },
    /// It came back too often.
    Ceiling {
        message: String,
    },
    /// It cannot be accepted.
    Refused {
        message: String,
    },
    /// It is on its way to a queue right now.
    Shipping {
        message: String,
    },
    /// No such dead letter in the store.
    NotFound {
        message: String,
    },
    Purged {
        id: EventId,
    },
}

impl LetterResult {
    /// The word of `result`, as metrics have it.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Stored { .. } => "stored",
            Self::Duplicate { .. } => "duplicate",
            Self::Busy { .. } => "busy",
            Self::Ceiling { .. } => "ceiling",
            Self::Refused { .. } => "refused",
            Self::Shipping { .. } => "shipping",
            Self::NotFound { .. } => "not-found",
            Self::Purged { .. } => "purged",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_over_their_time() {
        let before = Totals { accepted: 10, delivered: 4, ..Totals::default() };
        let after = Totals { accepted: 30, delivered: 4, ..before };
        let found = Rates::between(before, after, Duration::from_secs(4));
        assert_eq!((found.accepted_per_second, found.delivered_per_second, found.window_seconds), (5.0, 0.0, 4.0));
        assert_eq!(Rates::between(before, after, Duration::ZERO), Rates::default());
    }

    #[test]
    fn the_word_of_an_answer_is_that_of_its_json() {
        let (id, message) = (EventId::from_bytes([7; 16]), String::new());
        for answer in [
            LetterResult::Stored { id },
            LetterResult::Duplicate { id },
            LetterResult::Busy { message: message.clone() },
            LetterResult::Ceiling { message: message.clone() },
            LetterResult::Refused { message: message.clone() },
            LetterResult::Shipping { message: message.clone() },
            LetterResult::NotFound { message },
            LetterResult::Purged { id },
        ] {
            let json = serde_json::to_value(&answer).unwrap();
            assert_eq!(json["result"], answer.result());
            assert_eq!(serde_json::from_value::<LetterResult>(json).unwrap(), answer);
        }
    }

    #[test]
    fn a_result_of_another_version_is_no_refusal_but_an_error() {
        let answers = r#"{"answers":[{"result":"postponed","message":"later"}]}"#;
        assert!(serde_json::from_str::<Answers>(answers).unwrap_err().to_string().contains("postponed"));
    }
}
