//! Stage 2: the durable hand-over. This file is the contract that every engine keeps and every stage may rely on.
//!
//! In: events admitted by ingest. Out: leases to dispatch and deadletter.
//! Holds: an event is in exactly one state; only `settle` moves it out of a lease (G2).
//! Limits: [`Limits`]; beyond them append refuses, it never waits for room.
//! Fails: a write that fails poisons the store: every later call says so until a restart (G1). A store that cannot be reached for
//! a while says [`Error::Away`].
//!
//! ```text
//! append   (nothing) -> Ready, or Scheduled if it is not to be delivered yet
//! lease    Ready, due Waiting or Scheduled -> Leased          Buried -> Shipping
//! settle   Leased   -> gone (Delivered) | Waiting (RetryAt; a Scheduled one stays so) | as before (Release) | Buried (Bury)
//!          Shipping -> gone (Shipped) | as before (Release) | Buried (RetryAt: not to be shipped before)
//! crash    Leased and Shipping go back: a lease lives in memory only
//! ```
//!
//! What a lease is worth: a lane has one owner at a time, and whoever leases from it is the owner. The store gives an event to
//! nobody else until the lease is settled, the process ends, or the store takes the lane away, which only a store that several
//! daemons share does. [`LaneNews::retired`] then names the lane, as it names one that is gone, and a settlement that comes
//! later changes nothing: `settle` names its lease as lost. So an event may be attempted twice, and is never settled twice.
//!
//! Cancellation: to drop a call's future is safe at every await, and takes nothing back. An append or a settlement may still
//! be carried out, whole or not at all. Events that a dropped lease took go back by themselves.
//!
//! Versions: [`LaneNews::version`] counts the changes of this process's view. It begins anew with every start, so a version
//! must never be kept longer than the handle that gave it.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName};
use crate::plural::count;

pub mod dead;

pub mod operator;

pub mod patience;

pub mod embedded;

#[cfg(test)]
pub mod testing;

#[cfg(test)]
mod conformance;

/// One store of events. Handles are cheap to clone and all mean the same store.
///
/// Every call may answer [`Error::Poisoned`], [`Error::Closed`] or [`Error::Away`]; none of them waits for a store that is away.
pub trait Outbox: Clone + Send + Sync + 'static {
    /// Returns only when every event of the batch is on stable storage, or none is. One answer per event, in order.
    /// A batch is one commit; concurrent calls share one too. After an error an event may be stored or not: its key tells.
    fn append(&self, batch: Vec<Event>) -> impl Future<Output = Result<Vec<Appended>, Error>> + Send;

    /// Takes events for attempting (or shipping); see above for how long they are nobody else's. With `since`, brings the news
    /// after that version along, as [`Outbox::lanes`] does: they tell of this lease, too.
    fn lease(&self, want: LeaseWant, since: Option<u64>) -> impl Future<Output = Result<Leases, Error>> + Send;

    /// Writes what became of leased events; returns when that is on stable storage. Gives the leases that were no longer held:
    /// nothing was written of them. To settle the same once more does no harm.
    fn settle(&self, done: Vec<(Lease, Settlement)>) -> impl Future<Output = Result<Vec<Lease>, Unsettled>> + Send;

    /// The lanes that changed after `since` (0: all of them) and the version to ask with next time.
    fn lanes(&self, since: u64) -> impl Future<Output = Result<LaneNews, Error>> + Send;

    /// One event's state, or none if it is not stored (any more). An event whose bytes are lost is [`Error::Unreadable`].
    fn find(&self, id: EventId) -> impl Future<Output = Result<Option<Found>, Error>> + Send;

    /// As [`Outbox::find`], without reading the payload.
    fn find_head(&self, id: EventId) -> impl Future<Output = Result<Option<Found>, Error>> + Send {
        self.find(id)
    }

    /// Counts by lane and state. Looks at every lane: for people and metrics, not for each event.
    fn census(&self) -> impl Future<Output = Result<Census, Error>> + Send;

    /// Waits until a lane has changed after `since`, a version that [`Outbox::lanes`] gave, or until the store is poisoned.
    /// Carries no data: whoever wakes reads the store again. Never returns once the outbox is closed.
    fn changed(&self, since: u64, what: Changes) -> impl Future<Output = ()> + Send;

    /// How the store is at this moment.
    fn health(&self) -> Health;

    /// Returns, with the reason, once the store is lost to this process. A store that is away is not lost.
    fn failed(&self) -> impl Future<Output = String> + Send;
}

/// What opening an engine gives.
pub struct Opened<O> {
    pub outbox: O,
    /// The engine's own work beside what it is asked. To be run as a task; it ends once the store is closed, or with an error if
    /// the store is lost.
    pub upkeep: BoxFuture<'static, Result<(), Error>>,
    /// Closes the store when it is awaited: all that was asked before is written, whoever asks later gets [`Error::Closed`].
    /// A store that is never closed ends as by a crash, which loses nothing.
    pub closing: BoxFuture<'static, Result<(), Error>>,
}

/// Why a store could not be opened. `path` is where it is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another sendoff{by}; stop that one first, or give this one its own --state-dir")]
    Locked { path: String, by: String },
    #[error("{path} was written by a newer sendoff (format {found}, this one reads up to {supported})")]
    Newer { path: String, found: u32, supported: u32 },
    #[error("{path} is damaged: {why}")]
    Damaged { path: String, why: String },
    #[error("{doing} {path}: {why}")]
    Io { doing: &'static str, path: String, why: String },
}

/// How a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Well,
    /// It cannot be reached just now; it comes back by itself.
    Away {
        why: String,
    },
    /// It is lost to this process; a restart reads what is really there.
    Poisoned {
        why: String,
    },
}

/// What became of one event of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    Stored,
    /// The key is known and the payload the same: nothing was stored.
    Repeat {
        first: EventId,
    },
    /// The key is known with another payload: nothing was stored.
    Conflict {
        first: EventId,
    },
    /// No room for this one.
    Full(Full),
}

/// A limit that was reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The limit is what a sixteenth, kept for settling, leaves of `outbox.bytes_max`.
    #[error(
        "the outbox takes {used} bytes; {wanted} more would be over {limit}, which is 15/16 of outbox.bytes_max: the rest is kept for settling"
    )]
    Bytes { used: u64, wanted: u64, limit: u64 },
    #[error("the outbox holds {} of at most {limit} (outbox.events_max)", count(*.used, "event"))]
    Events { used: u64, limit: u64 },
    #[error("the outbox knows {} of at most {limit} (outbox.functions_max)", count(*.used, "function"))]
    Functions { used: u64, limit: u64 },
    #[error("the disk has {free} bytes free, {reserve} are kept for settling (outbox.disk_reserve)")]
    Disk { free: u64, reserve: u64 },
    /// The disk is slower than what comes in. It passes by itself.
    #[error(
        "the disk is too slow for the incoming events, so the outbox's index is behind its journal; retry in a moment"
    )]
    Behind,
    /// One commit cannot hold more.
    #[error("one commit of the outbox takes at most {limit} bytes; send fewer events at once")]
    Commit { limit: u64 },
}

impl Full {
    /// Whether it helps to give back what the files hold and nobody needs.
    pub fn wants_room(&self) -> bool {
        match self {
            Self::Bytes { .. } | Self::Disk { .. } => true,
            Self::Events { .. } | Self::Functions { .. } | Self::Behind | Self::Commit { .. } => false,
        }
    }
}

/// Why the outbox could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A write or sync failed: what is on disk is no longer known. Restart to recover.
    #[error("the outbox is poisoned and needs a restart: {why}")]
    Poisoned { why: String },
    #[error("the outbox is closed")]
    Closed,
    /// The store cannot be reached just now. Nothing is known to be stored; to ask again after `retry_after` does no harm.
    #[error("the outbox is away: {why}; it is asked again")]
    Away { why: String, retry_after: Duration },
    /// The one event that was asked for cannot be read; everything else goes on.
    #[error(
        "event {id} is stored but cannot be read ({why}); remove it by its id, or stop the daemon and run `sendoff fsck`"
    )]
    Unreadable { id: EventId, why: String },
}

/// Settlements that were not written.
#[derive(Debug)]
pub struct Unsettled {
    pub why: Error,
    /// What was handed over, if the store is away: it is to be handed over again. Empty otherwise.
    pub done: Vec<(Lease, Settlement)>,
}

impl From<Unsettled> for Error {
    fn from(unsettled: Unsettled) -> Self {
        unsettled.why
    }
}

/// Which events to take.
#[derive(Debug, Clone, Default)]
pub struct LeaseWant {
    /// How many of each lane at most, in the order in which to serve the lanes.
    pub lanes: Vec<LaneWant>,
    /// How many payload bytes in all, at most; the first event is taken whatever its size.
    pub bytes_max: u64,
}

/// Which events of one lane to take.
#[derive(Debug, Clone)]
pub struct LaneWant {
    pub lane: LaneId,
    pub which: Which,
    pub events_max: usize,
    /// How many of their payload bytes at most; the first event is taken whatever its size.
    pub bytes_max: u64,
    /// To be kept with the lane, on stable storage before the lease is answered.
    pub spent: Option<Spent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that may be attempted now, due ones first, then in the order of acceptance.
    Due,
    /// The same events, those that were never attempted first.
    Fresh,
    /// Those past their time, whether due or not: Ready or Waiting and accepted before this, due before this and not yet
    /// attempted, or past an `expires_at` of their own.
    AcceptedBefore(UnixMillis),
    /// The dead letters that may be shipped now.
    Buried,
}

/// A lane's number in this store, as long as the process lives; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u32);

/// What a lease gave.
#[derive(Debug, Default)]
pub struct Leases {
    pub events: Vec<Leased>,
    /// The news, if they were asked for.
    pub news: Option<LaneNews>,
}

/// An event and the right to settle it.
#[derive(Debug, Clone)]
pub struct Leased {
    pub lease: Lease,
    pub event: Event,
    pub history: History,
}

/// The right to settle one event. Given out once; of two settlements the first decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub lane: LaneId,
    pub id: EventId,
}

/// In which state an event rests between leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Ready,
    /// Attempted before, and due later.
    Waiting,
    /// Accepted with a `deliver_at` ahead; its age counts from there, so it is kept apart from Waiting.
    Scheduled,
    Buried,
}

impl Place {
    pub const ALL: [Self; 4] = [Self::Ready, Self::Waiting, Self::Scheduled, Self::Buried];

    /// The word used in metrics, logs and the operator's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Scheduled => "scheduled",
            Self::Buried => "buried",
        }
    }
}

/// What happened to an event so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Attempts that count against `attempts_max`.
    pub attempts: u32,
    /// All calls of Invoke, the uncharged included.
    pub calls: u32,
    /// How often Lambda throttled it: what its backoff grows with, beside `attempts`.
    pub throttles: u32,
    /// Uncharged failures in a row that were not throttles (no connection, held): what the wait for them grows with.
    pub setbacks: u32,
    /// Not before this.
    pub due: UnixMillis,
    pub last: Option<LastOutcome>,
    /// Set once it is buried.
    pub burial: Option<Burial>,
}

/// What the last attempt brought, for people and for the dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastOutcome {
    pub at: UnixMillis,
    /// HTTP status; 0 if there was no reply.
    pub status: u16,
    /// Lambda's error code, or our word for a failure of transport.
    pub code: String,
    /// At most 1,024 bytes, as in Lambda's own dead letters.
    pub message: String,
    /// `x-amzn-RequestId`: the join key to CloudWatch.
    pub request_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burial {
    pub reason: BuryReason,
    pub at: UnixMillis,
    /// Why no queue can take it, in words; it then stays in the store.
    pub unshippable: Option<String>,
}

/// Why an event is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuryReason {
    /// `attempts_max` charged attempts failed.
    RetriesExhausted,
    /// Older than `age_max`, or past its own `expires_at`.
    EventAgeExceeded,
    /// Lambda will never take this event: too large, not JSON, ...
    Refused,
}

impl BuryReason {
    pub const ALL: [Self; 3] = [Self::RetriesExhausted, Self::EventAgeExceeded, Self::Refused];

    /// The word used in metrics, logs, attributes and the operator's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RetriesExhausted => "retries-exhausted",
            Self::EventAgeExceeded => "event-age-exceeded",
            Self::Refused => "refused",
        }
    }
}

/// What is written about a leased event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Lambda took it: it is gone.
    Delivered,
    /// To be tried again (or shipped again, if buried) at `history.due`.
    RetryAt(History),
    /// Given back untouched: a shutdown costs no attempt.
    Release,
    /// Dead, with `history.burial` saying why.
    Bury(History),
    /// SQS confirmed it: it is gone.
    Shipped,
}

/// Which changes of lanes are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    Any,
    /// Of Buried events only, leases of them included.
    Buried,
}

/// The lanes that changed.
#[derive(Debug, Clone, Default)]
pub struct LaneNews {
    /// What to ask with next time.
    pub version: u64,
    pub lanes: Vec<LaneView>,
    /// Nearly as many functions are known as may be (`outbox.functions_max`).
    pub crowded: bool,
    /// Lanes that are no more, or no longer this daemon's. A function whose lane is gone gets a new one with its next event.
    pub retired: Vec<LaneId>,
}

/// What dispatch and deadletter need to know of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    pub lane: LaneId,
    pub function: FunctionName,
    /// Ready and not leased.
    pub ready: u64,
    /// When the next Waiting or Scheduled event is due (it may be past); none if there is none.
    pub next_due: Option<UnixMillis>,
    /// Acceptance of the oldest event that is Ready or Waiting, leased or not.
    pub oldest: Option<UnixMillis>,
    /// Buried and not leased.
    pub buried: u64,
    /// When the next buried event may be shipped (it may be past).
    pub next_ship: Option<UnixMillis>,
    /// When the next event that has an `expires_at` of its own is past it.
    pub next_expiry: Option<UnixMillis>,
    /// An operator wants nothing of it attempted.
    pub paused: bool,
    /// As a lease said last ([`LaneWant::spent`]).
    pub spent: Spent,
    /// Lambda has taken an event for this function at least once.
    pub proven: bool,
}

/// What was spent in an hour still counts when the clock is set back by no more hours than this.
const HOURS_BACK_MAX: u64 = 24;

/// What a lane may have spent at most: attempts within one hour of the clock, those in reserve included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Hours since 1970.
    pub hour: u64,
    pub attempts: u64,
}

impl Spent {
    pub fn hour_of(now: UnixMillis) -> u64 {
        now.0 / 3_600_000
    }

    /// Whether it still counts at `now`: also if the clock stands up to a day before the hour in which it was spent. An hour
    /// that lies further ahead is of a wrong clock.
    pub fn counts(self, now: UnixMillis) -> bool {
        self.attempts > 0 && self.is_of(now)
    }

    /// Whether its hour has not turned at `now`.
    pub fn is_of(self, now: UnixMillis) -> bool {
        let hour = Self::hour_of(now);
        (hour..=hour + HOURS_BACK_MAX).contains(&self.hour)
    }
}

/// Where an event is.
#[derive(Debug, Clone)]
pub struct Found {
    /// With an empty payload if only its head was asked for.
    pub event: Event,
    pub payload_bytes: usize,
    pub history: History,
    pub place: Place,
    /// Being attempted or shipped right now.
    pub leased: bool,
}

/// Counts, for metrics, limits and people.
#[derive(Debug, Clone, Default)]
pub struct Census {
    pub lanes: BTreeMap<FunctionName, LaneCensus>,
    /// Keys that are remembered.
    pub keys: u64,
    /// Bytes of the records of all events.
    pub bytes: u64,
    pub events: u64,
    /// Bytes that the store takes on disk.
    pub disk_bytes: u64,
    /// Bytes that its disk has free; `u64::MAX` if the file system does not tell.
    pub disk_free_bytes: u64,
}

/// One lane's counts: events and bytes by state. Leased events count where they rest.
#[derive(Debug, Clone, Default)]
pub struct LaneCensus {
    pub by_place: BTreeMap<Place, Count>,
    pub leased: u64,
    /// Acceptance of the oldest event that is ready, or was once.
    pub oldest_ready: Option<UnixMillis>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub events: u64,
    pub bytes: u64,
}

/// The limits that every store has.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes that the store takes, at most.
    pub bytes_max: u64,
    pub events_max: u64,
    pub functions_max: u64,
    /// How long a given key is remembered.
    pub dedupe_window: Duration,
    /// How long an SDK's invocation id is remembered: its retries of one call span minutes, not hours.
    pub sdk_window: Duration,
}
