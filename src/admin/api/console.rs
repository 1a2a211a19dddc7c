//! What the operator's API answers to whoever watches: who they are, snapshots, series, latest outcomes, the configuration.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{FunctionView, Summary};
use crate::event::EventId;
use crate::outbox::BuryReason;
use crate::past::{Next, Outcome};

/// `GET /v1/whoami`: who asks, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// The operator's name; `root`, `sendoff` (the daemon's own user) or `anyone`.
    pub name: String,
    /// How the caller proved that: `token`, `certificate`, `user` (of the Unix socket) or `none`.
    pub proof: String,
    /// `read` or `operate`.
    pub role: String,
    /// What the caller may do now: `read`, `operate`, `payloads`.
    pub rights: Vec<String>,
    /// The daemon refuses every change (`auth.read_only`).
    pub read_only: bool,
    /// Callers must be operators (`auth.admin`).
    pub required: bool,
    pub version: String,
    /// The name of the daemon's machine.
    pub host: String,
    /// When the daemon started. All that is in memory only begins then.
    pub started_at: String,
    /// `listen.admin_prefix`.
    pub prefix: String,
}

/// `GET /v1/snapshot`: what an overview shows, read at most once a second however many ask.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// When it was read, by the daemon's clock.
    pub at: String,
    /// How much the clock was set since the start.
    pub clock_offset_seconds: f64,
    pub status: Summary,
    pub limits: StoreLimits,
    /// At most 500, those to look at first: held, failing and paused ones, then those with the most events.
    pub functions: Vec<FunctionView>,
    /// How many functions there are.
    pub functions_total: u64,
}

/// The limits of the store, to compare [`super::OutboxCounts`] with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreLimits {
    /// `outbox.bytes_max`; new events may use 15/16 of it.
    pub bytes_max: u64,
    pub events_max: u64,
    /// `outbox.disk_reserve`, in bytes.
    pub disk_reserve: u64,
}

/// Which functions to list.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct FunctionsQuery {
    /// Only those whose name fits. `*` stands for any characters.
    #[param(min_length = 1, max_length = 512)]
    pub function: Option<String>,
}

/// Which series to show.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct SeriesQuery {
    /// `5m`, a second apart, or `1h`, ten seconds apart; `5m` unless given.
    #[param(pattern = "^(5m|1h)$")]
    pub window: Option<String>,
    /// One of `functions`. Without it, the totals.
    #[param(min_length = 1, max_length = 512)]
    pub function: Option<String>,
    /// Only what was measured after this, in seconds since 1970.
    pub since: Option<u64>,
}

/// A column of [`SeriesView`]. A gap is null.
type Column = Vec<Option<f32>>;

/// `GET /v1/series`: columns over `times`. Those that do not apply are empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SeriesView {
    pub step_seconds: u64,
    /// Seconds since 1970, by the daemon's clock.
    pub times: Vec<u64>,
    /// The functions with a series of their own: the 50 busiest.
    pub functions: Vec<String>,
    /// Events, or attempts, a second.
    pub accepted: Column,
    pub refused: Column,
    pub attempts: Column,
    pub delivered: Column,
    pub throttled: Column,
    pub buried: Column,
    pub shipped: Column,
    /// Events in the store, by state.
    pub ready: Column,
    pub waiting: Column,
    pub scheduled: Column,
    pub dead_letters: Column,
    /// Of the oldest event that is ready or waiting.
    pub oldest_age_seconds: Column,
    pub in_flight: Column,
    /// Attempts that may be in flight. Of one function only.
    pub limit: Column,
    /// Events to be delivered. Of one function only.
    pub backlog: Column,
    pub disk_bytes: Column,
    pub disk_free_bytes: Column,
    /// How long a commit of the store took: the median, and what 99 of 100 stay below.
    pub commit_p50_seconds: Column,
    pub commit_p99_seconds: Column,
}

/// Which of the latest outcomes to list.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct RecentQuery {
    /// Only those of functions whose name fits. `*` stands for any characters.
    #[param(min_length = 1, max_length = 512)]
    pub function: Option<String>,
    /// How many, the latest; 100 unless given, at most 1,000.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 4_294_967_295_u32)]
    pub limit: Option<NonZeroU32>,
}

/// `GET /v1/recent`: the latest, the last one at the end. They are kept in memory only, 1,000 of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutcomePage {
    pub outcomes: Vec<OutcomeView>,
}

/// What happened to an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutcomeView {
    pub at: String,
    pub id: EventId,
    pub function: String,
    /// Of an attempt: `delivered`, `function-failed`, `throttled`, `transient`, `rejected`, `unready`, `foreign`, `lost`,
    /// `not-sent`, `held` or `refused`. Else `expired`, `shipped`, `purged`, `cancelled`,
    /// `redriven` or `handed-over`.
    pub outcome: String,
    /// HTTP status. 0 without an answer.
    pub status: u16,
    /// The error's code. Empty after a success.
    pub code: String,
    /// Lambda's request id, to find the call in CloudWatch.
    pub request_id: Option<String>,
    /// Calls of Lambda so far.
    pub attempts: u32,
    /// `done` (it has left the store), `retry` or `buried`.
    pub next: String,
    /// When it is retried.
    pub due: Option<String>,
}

impl From<&Outcome> for OutcomeView {
    fn from(outcome: &Outcome) -> Self {
        let (next, due) = match outcome.next {
            Next::Done => ("done", None),
            Next::Retry { due } => ("retry", Some(due.rfc3339())),
            Next::Buried => ("buried", None),
        };
        Self {
            at: outcome.at.rfc3339(),
            id: outcome.id,
            function: outcome.function.as_str().to_owned(),
            outcome: outcome.word.to_owned(),
            status: outcome.status,
            code: outcome.code.clone(),
            request_id: outcome.request_id.clone(),
            attempts: outcome.attempts,
            next: next.to_owned(),
            due,
        }
    }
}

/// `GET /v1/config`: every value in effect, as `sendoff show-config` prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConfigView {
    pub entries: Vec<ConfigEntry>,
}

/// Which values to show.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ConfigQuery {
    /// Only those that apply to this function: its own, and the general ones that it does not replace.
    #[param(min_length = 1, max_length = 512)]
    pub function: Option<String>,
}

/// A key of the configuration, or a variable of the environment that the daemon follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConfigEntry {
    pub key: String,
    /// Text, a number, or true or false. It has no secret: those are in files, whose names are shown.
    #[schema(value_type = serde_json::Value)]
    pub value: serde_json::Value,
    /// Where it comes from: `default`, a line of the file, a variable or a flag.
    pub origin: String,
    /// A reload (SIGHUP) applies it to the running daemon.
    pub live: bool,
    /// The file or the environment say something else by now, which takes a restart.
    #[serde(default)]
    pub needs_restart: bool,
}

/// Which key to look for. The key itself is in the header `Idempotency-Key`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KeyQuery {
    /// The function's name, in any form that clients use.
    #[param(min_length = 1, max_length = 512)]
    pub function: String,
    /// For functions with tenant isolation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
}

/// `GET /v1/keys`: what is remembered of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    pub function: String,
    /// The event that came with it first.
    pub first: EventId,
    /// When it is forgotten, unless the event is still stored then.
    pub expires_at: String,
    pub stored: bool,
    /// Of the event, while it is stored: `ready`, `waiting`, `scheduled` or `buried`.
    pub state: Option<String>,
}

/// `GET /v1/dead-letters/groups`: dead letters of the store, by what they have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupPage {
    /// The largest first; 500 at most.
    pub groups: Vec<GroupView>,
    /// How many dead letters are in groups.
    pub counted: u64,
    /// How many there are.
    pub buried: u64,
    /// All of them are counted. Else each function's oldest are.
    pub complete: bool,
}

/// Dead letters of one function, reason and code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    pub function: String,
    #[schema(value_type = Option<String>)]
    pub reason: Option<BuryReason>,
    /// Of the last attempt that failed. Empty without one.
    pub code: String,
    /// HTTP status. 0 without an answer.
    pub status: u16,
    pub events: u64,
    /// Those of them that no queue can take.
    pub unshippable: u64,
    pub oldest_buried_at: Option<String>,
    pub newest_buried_at: Option<String>,
    /// The one that was buried last.
    pub example: Option<EventId>,
}
