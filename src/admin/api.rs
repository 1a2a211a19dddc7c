//! The operator's API as types: what the admin listener answers and takes. The server writes them, the CLI reads them.
//!
//! Words, the same in every answer, in the CLI, in metrics and on the ingest door (ARCHITECTURE.md, "Words"): an event has an
//! `id`; `attempts` are all calls of Lambda for it, `charged` those of them that count towards `delivery.attempts_max`;
//! `last_error` is what Lambda or the network said last; `reason` is why sendoff buried an event or holds a lane; a
//! `duplicate` was accepted before. A field may be added, so a reader passes over what it does not know.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::dispatch::status;
use crate::event::EventId;
use crate::outbox::{BuryReason, LastOutcome};

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub message: String,
}

/// What the latest attempt that failed ended with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    pub at: String,
    /// HTTP status; 0 without an answer.
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

/// Something that keeps the daemon from delivering, of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One word, for machines.
    pub kind: String,
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// One event of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    pub id: EventId,
    pub function: String,
    /// `ready`, `waiting`, `scheduled` or `buried`.
    pub state: String,
    /// Being attempted, or shipped, right now.
    pub in_flight: bool,
    pub accepted_at: String,
    /// When the next attempt is due.
    pub due: String,
    /// Calls of Lambda.
    pub attempts: u32,
    /// Those of them that count towards `delivery.attempts_max`.
    pub charged: u32,
    pub last_error: Option<LastError>,
    /// Why it was buried.
    pub reason: Option<BuryReason>,
    /// Why it cannot be read. It can be removed by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// `GET /v1/events/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDetail {
    #[serde(flatten)]
    pub event: EventView,
    pub deliver_at: Option<String>,
    pub expires_at: Option<String>,
    pub redrives: u32,
    pub payload_bytes: usize,
    /// Only if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    pub events: Vec<EventView>,
    /// Where to go on; none at the end.
    pub next: Option<String>,
    /// How many events fit function and state, on all pages.
    pub total: u64,
}

/// `DELETE /v1/events/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    pub id: EventId,
    pub function: String,
    pub cancelled: bool,
}

/// `POST /v1/events/{id}/attempt`: what the attempt still waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Due {
    pub id: EventId,
    pub function: String,
    /// The lane is paused: nothing is attempted until it is resumed.
    pub paused: bool,
    /// The lane is held: nothing, or only a probe, is attempted until then.
    pub held: Option<Held>,
}

/// Why nothing of a lane is attempted, or only a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// `lane` or `account`.
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// Attempts that may be in flight; none while dispatch does not know the function.
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
}

/// A failed attempt of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FunctionPage {
    pub functions: Vec<FunctionView>,
}

/// `POST /v1/functions/{name}/pause` and `/resume`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paused {
    pub function: String,
    pub paused: bool,
    /// Resumed, and yet nothing is attempted until then.
    pub held: Option<Held>,
}

/// `POST /v1/functions/{name}/purge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    pub function: String,
    pub dry_run: bool,
    pub events: u64,
    pub bytes: u64,
}

/// A dead letter as it is listed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LetterView {
    pub id: EventId,
    pub function: String,
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
    pub export: Option<Box<RawValue>>,
}

/// A dead letter that cannot be read, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableLetter {
    pub id: EventId,
    pub why: String,
}

/// `GET /v1/dead-letters`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LetterPage {
    pub dead_letters: Vec<LetterView>,
    /// Those of this page that cannot be read. They can be purged by their ids.
    #[serde(default)]
    pub unreadable: Vec<UnreadableLetter>,
    /// Where to go on; none at the end. A page may be empty and yet have a next one.
    pub next: Option<String>,
    /// Dead letters in the store of the functions asked for, whatever the other filters.
    pub buried: u64,
    /// Those of these functions that queues have taken since the daemon's start.
    pub shipped: u64,
    /// The queues that these functions' dead letters go to.
    pub queues: Vec<String>,
}

/// `GET /v1/dead-letters/queues`: where dead letters go, and how SQS is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queues {
    /// `dead_letter.queue_url`, where no function has its own.
    pub queue_url: Option<String>,
    /// Functions, by pattern, that have a queue of their own; the first that fits counts.
    pub functions: Vec<FunctionQueue>,
    /// `sqs.endpoint_url`, if one is set.
    pub endpoint_url: Option<String>,
    pub region: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionQueue {
    pub function: String,
    pub queue_url: String,
}

/// Ids to redrive or to purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    pub ids: Vec<EventId>,
}

/// Answers of a request about several letters, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    pub answers: Vec<Answer>,
}

/// What became of one letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Answer {
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

impl Answer {
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
    fn the_word_of_an_answer_is_that_of_its_json() {
        let (id, message) = (EventId::from_bytes([7; 16]), String::new());
        for answer in [
            Answer::Stored { id },
            Answer::Duplicate { id },
            Answer::Busy { message: message.clone() },
            Answer::Ceiling { message: message.clone() },
            Answer::Refused { message: message.clone() },
            Answer::Shipping { message: message.clone() },
            Answer::NotFound { message },
            Answer::Purged { id },
        ] {
            let json = serde_json::to_value(&answer).unwrap();
            assert_eq!(json["result"], answer.result());
            assert_eq!(serde_json::from_value::<Answer>(json).unwrap(), answer);
        }
    }

    #[test]
    fn a_result_of_another_version_is_no_refusal_but_an_error() {
        let answers = r#"{"answers":[{"result":"postponed","message":"later"}]}"#;
        assert!(serde_json::from_str::<Answers>(answers).unwrap_err().to_string().contains("postponed"));
    }
}
