//! Changes of many events at once: what is asked for, and how far a job is.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is done to every event that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BulkAction {
    /// Dead letters become events again.
    Redrive,
    /// Dead letters are removed for good.
    Purge,
    /// Events that wait are removed, without delivering them.
    Cancel,
    /// Events that wait become due now.
    Attempt,
}

impl BulkAction {
    pub const ALL: [Self; 4] = [Self::Redrive, Self::Purge, Self::Cancel, Self::Attempt];

    /// The word in the API, in metrics and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redrive => "redrive",
            Self::Purge => "purge",
            Self::Cancel => "cancel",
            Self::Attempt => "attempt",
        }
    }

    /// Whether it is about dead letters, or else about events that wait.
    pub fn is_of_letters(self) -> bool {
        match self {
            Self::Redrive | Self::Purge => true,
            Self::Cancel | Self::Attempt => false,
        }
    }
}

/// Which events. Without any field, all that the action can be done to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BulkFilter {
    /// Only those for functions whose name fits. `*` stands for any characters.
    #[schema(min_length = 1, max_length = 512)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Of events that wait: `ready`, `waiting` or `scheduled`. Without it, `attempt` takes those in `waiting` only, because
    /// somebody has chosen the time of scheduled ones.
    #[schema(pattern = "^(ready|waiting|scheduled)$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Of dead letters: `retries-exhausted`, `event-age-exceeded` or `refused`.
    #[schema(pattern = "^(retries-exhausted|event-age-exceeded|refused)$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of dead letters: the code of the last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Part of what the last attempt said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Buried (dead letters) or accepted (others) at or after this: RFC 3339, or how long ago (`2h`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Buried or accepted before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Of events that wait: attempted at least so often.
    #[schema(maximum = 4_294_967_295_u32)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts_min: Option<u32>,
    /// Of dead letters: only those that no queue can take. If false, only the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unshippable: Option<bool>,
}

/// Reads the filter from a JSON object only. serde would also take a list of its fields in order, and `[null, null]` would
/// mean everything.
fn from_object<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BulkFilter, D::Error> {
    let fields = serde_json::Map::deserialize(from)?;
    BulkFilter::deserialize(serde_json::Value::Object(fields)).map_err(serde::de::Error::custom)
}

/// `POST /v1/bulk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BulkRequest {
    pub action: BulkAction,
    #[serde(default, deserialize_with = "from_object")]
    pub filter: BulkFilter,
    /// At most so many events, the oldest of each function first.
    #[serde(default)]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 4_294_967_295_u32)]
    pub limit: Option<NonZeroU32>,
    /// At most so many events a second, as in `50/s`.
    #[serde(default)]
    #[schema(pattern = "^[1-9][0-9]{0,5}/s$")]
    pub rate: Option<String>,
    /// How many a dry run has found. If over a tenth more fit now, nothing is done (409).
    #[serde(default)]
    #[schema(maximum = 4_294_967_295_u32)]
    pub expect: Option<u32>,
    /// Only count.
    #[serde(default)]
    pub dry_run: bool,
    /// The idempotency keys of removed events are kept, so that the same key sent again is a duplicate.
    #[serde(default)]
    pub keep_keys: bool,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BulkState {
    /// It finds out how many events fit.
    Counting,
    Running,
    Done,
    /// An operator stopped it. What is done stays done.
    Stopped,
    /// More events fit than were expected. Nothing was done.
    Refused,
    /// `message` says why it ended. What is done stays done.
    Failed,
}

impl BulkState {
    pub fn is_over(self) -> bool {
        match self {
            Self::Counting | Self::Running => false,
            Self::Done | Self::Stopped | Self::Refused | Self::Failed => true,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counting => "counting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// A change of many events, which goes on without its caller. It is in memory only: a restart forgets it, not its effects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BulkJob {
    /// A number, which counts from 1 since the daemon's start.
    pub id: String,
    pub action: BulkAction,
    pub filter: BulkFilter,
    pub dry_run: bool,
    pub limit: Option<u32>,
    pub rate: Option<String>,
    pub keep_keys: bool,
    /// The operator who began it.
    pub by: String,
    pub state: BulkState,
    pub started_at: String,
    pub ended_at: Option<String>,
    /// How many events fitted at its beginning. None while it counts.
    pub matched: Option<u64>,
    /// When the oldest of them was accepted.
    pub oldest_at: Option<String>,
    /// How many records it has looked at.
    pub looked_at: u64,
    /// To how many events the action was done.
    pub done: u64,
    /// What became of the events, by word: `stored`, `busy`, `ceiling`, `refused`, `shipping` and `not-found` (redrive),
    /// `purged`, `cancelled`, `due`, `in-flight`, `buried`, `unreadable`.
    pub results: BTreeMap<String, u64>,
    /// Why it failed or was refused, or what it waits for.
    pub message: Option<String>,
}

/// `GET /v1/bulk`: the latest jobs, the last one at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BulkPage {
    pub jobs: Vec<BulkJob>,
}
