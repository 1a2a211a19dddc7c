//! Stage 2: durable storage of events. This file is the contract that every engine fulfils and every stage relies on.
//!
//! In: events admitted by ingest. Out: leases to dispatch and deadletter.
//! Holds: an event is in exactly one state; only `settle` moves it out of a lease (G2).
//! Limits: [`Limits`]. Beyond them append refuses events. It never waits for room.
//! Fails: a failed write poisons the store, and every later call returns [`Error::Poisoned`] until a restart (G1). A store
//! that cannot be reached for a while returns [`Error::Away`].
//!
//! ```text
//! append   (nothing) -> Ready, or Scheduled if it is not to be delivered yet
//! lease    Ready, due Waiting or Scheduled -> Leased          Buried -> Shipping
//! adopt    (nothing) -> the state that it had in another store
//! settle   Leased   -> gone (Delivered) | Waiting (RetryAt; a Scheduled one stays so) | as before (Release) | Buried (Bury)
//!          Shipping -> gone (Shipped) | as before (Release) | Buried (RetryAt: not to be shipped before)
//!          any      -> gone (HandedOver)
//! crash    Leased and Shipping go back: a lease lives in memory only
//! ```
//!
//! Leases: a lane has one owner at a time. The store leases an event to nobody else until the lease is settled, the process
//! ends, or the store takes the lane away. Only a store that several daemons share takes lanes away. [`LaneNews::retired`]
//! then names the lane, as it names lanes that no longer exist. A later settlement changes nothing: `settle` returns its
//! lease as lost. So an event may be attempted twice, but is never settled twice.
//!
//! Cancellation: a call's future may be dropped at every await. Dropping it undoes nothing. An append or a settlement may
//! still be carried out, completely or not at all. Events leased by a dropped call return to their state by themselves.
//!
//! Versions: [`LaneNews::version`] counts changes in the view of this process. It restarts with the process, so never keep
//! a version longer than the handle that returned it.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName};
use crate::plural::count;
use handoff::{Adopted, Handed, RememberedKey, RememberedPage};

pub mod dead;

pub mod handoff;

pub mod idle;

pub mod operator;

pub mod patience;

pub mod embedded;

pub mod postgres;

#[cfg(test)]
pub mod testing;

#[cfg(test)]
mod conformance;

/// A store of events. Handles are cheap to clone, and all clones are handles of the same store.
///
/// Every call may return [`Error::Poisoned`], [`Error::Closed`] or [`Error::Away`]. No call waits for a store that is away.
pub trait Outbox: Clone + Send + Sync + 'static {
    /// Stores a batch in one commit, which concurrent calls may share. Returns one answer per event, in order, once every
    /// accepted event is on stable storage. After an error an event may be stored or not. Append it again: its key tells.
    fn append(&self, batch: Vec<Event>) -> impl Future<Output = Result<Vec<Appended>, Error>> + Send;

    /// Leases events for an attempt or for shipping. With `since`, also returns the news after that version, as
    /// [`Outbox::lanes`] does, including the changes made by this lease.
    fn lease(&self, want: LeaseWant, since: Option<u64>) -> impl Future<Output = Result<Leases, Error>> + Send;

    /// Writes the results of leased events. Returns once they are on stable storage, with the leases that were no longer held:
    /// nothing was written for those. Settling a lease twice is harmless.
    fn settle(&self, done: Vec<(Lease, Settlement)>) -> impl Future<Output = Result<Vec<Lease>, Unsettled>> + Send;

    /// Stores events that another store hands over, in one commit, which concurrent calls may share. Returns one answer per
    /// event, in order, once every adopted event is on stable storage. Adopting an event again is harmless. [`handoff`] has
    /// the rules.
    fn adopt(&self, events: Vec<Handed>) -> impl Future<Output = Result<Vec<Adopted>, Error>> + Send;

    /// A page of the remembered keys whose events are no longer stored, after `after`. An engine whose keys mean nothing to
    /// other stores returns none.
    fn remembered(
        &self,
        after: Option<[u8; RememberedKey::BYTES]>,
    ) -> impl Future<Output = Result<RememberedPage, Error>> + Send {
        let _ = after;
        async { Ok(RememberedPage::default()) }
    }

    /// Remembers keys of another store for the rest of their windows, but no longer than this store's own. Skips keys that
    /// are known here. Takes at most [`handoff::REMEMBERED_MAX`]. Returns the number of new keys, on stable storage.
    fn learn(&self, keys: Vec<RememberedKey>) -> impl Future<Output = Result<u64, Error>> + Send {
        drop(keys);
        async { Ok(0) }
    }

    /// The lanes that changed after `since` (0 means all lanes), and the version for the next call.
    fn lanes(&self, since: u64) -> impl Future<Output = Result<LaneNews, Error>> + Send;

    /// The state of an event. `None` if it is not stored, or no longer. [`Error::Unreadable`] if its bytes are damaged.
    fn find(&self, id: EventId) -> impl Future<Output = Result<Option<Found>, Error>> + Send;

    /// Like [`Outbox::find`], without the payload.
    fn find_head(&self, id: EventId) -> impl Future<Output = Result<Option<Found>, Error>> + Send {
        self.find(id)
    }

    /// Counts by lane and state, of the lanes that this daemon owns. Visits every lane, so use it for people and metrics, not
    /// for each event.
    fn census(&self) -> impl Future<Output = Result<Census, Error>> + Send;

    /// Waits until a lane changes after `since`, a version from [`Outbox::lanes`], or until the store is poisoned. Carries no
    /// data: read the store again after it returns. Never returns once the outbox is closed.
    fn changed(&self, since: u64, what: Changes) -> impl Future<Output = ()> + Send;

    /// The current health of the store.
    fn health(&self) -> Health;

    /// Returns once this process has lost the store, with the reason. A store that is away is not lost.
    fn failed(&self) -> impl Future<Output = String> + Send;

    /// Whether other daemons may own lanes of this store.
    fn is_shared(&self) -> bool {
        false
    }

    /// Tells the store that this daemon stops. A store that several daemons share gives each lane to another one as soon as
    /// nothing of it is in flight.
    fn draining(&self) {}
}

/// An opened engine.
pub struct Opened<O> {
    pub outbox: O,
    /// The engine's own maintenance. Run it as a task. It ends once the store is closed, or with an error if the store is
    /// lost.
    pub upkeep: BoxFuture<'static, Result<(), Error>>,
    /// Closes the store when awaited. Earlier calls are completed, later calls return [`Error::Closed`]. Never awaiting it is
    /// the same as a crash, which loses nothing.
    pub closing: BoxFuture<'static, Result<(), Error>>,
}

/// Why a store could not be opened. `path` is its location.
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

/// The health of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Well,
    /// It cannot be reached now. It returns by itself.
    Away {
        why: String,
    },
    /// This process has lost it. A restart reads what is on disk.
    Poisoned {
        why: String,
    },
}

/// The result for one event of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    Stored,
    /// The key is known, with the same payload. Nothing was stored.
    Repeat {
        first: EventId,
    },
    /// The key is known, with a different payload. Nothing was stored.
    Conflict {
        first: EventId,
    },
    /// No room for this event.
    Full(Full),
}

/// The bytes that new events may use of `bytes_max`. The rest, a sixteenth, is kept for settling, so that a full store can
/// still deliver.
pub fn bytes_for_events(bytes_max: u64) -> u64 {
    bytes_max - bytes_max / 16
}

/// A limit that was reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The limit is 15/16 of `outbox.bytes_max`. The rest is reserved for settling.
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
    /// The disk is slower than the incoming events. This passes by itself.
    #[error(
        "the disk is too slow for the incoming events, so the outbox's index is behind its journal; retry in a moment"
    )]
    Behind,
    /// The size limit of one commit.
    #[error("one commit of the outbox takes at most {limit} bytes; send fewer events at once")]
    Commit { limit: u64 },
}

impl Full {
    /// Whether reclaiming space in the files can help.
    pub fn wants_room(&self) -> bool {
        match self {
            Self::Bytes { .. } | Self::Disk { .. } => true,
            Self::Events { .. } | Self::Functions { .. } | Self::Behind | Self::Commit { .. } => false,
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A write or sync failed, so the contents of the disk are unknown. Restart to recover.
    #[error("the outbox is poisoned and needs a restart: {why}")]
    Poisoned { why: String },
    #[error("the outbox is closed")]
    Closed,
    /// The store cannot be reached now. It is unknown whether anything was stored. Retrying after `retry_after` is harmless.
    #[error("the outbox is away: {why}; it is asked again")]
    Away { why: String, retry_after: Duration },
    /// The requested event cannot be read. Everything else works.
    #[error(
        "event {id} is stored but cannot be read ({why}); remove it by its id, or stop the daemon and run `sendoff fsck`"
    )]
    Unreadable { id: EventId, why: String },
}

/// Settlements that were not written.
#[derive(Debug)]
pub struct Unsettled {
    pub why: Error,
    /// The settlements to hand over again, if the store is away. Empty otherwise.
    pub done: Vec<(Lease, Settlement)>,
}

impl From<Unsettled> for Error {
    fn from(unsettled: Unsettled) -> Self {
        unsettled.why
    }
}

/// Which events to lease.
#[derive(Debug, Clone, Default)]
pub struct LeaseWant {
    /// The wish of each lane, in the order in which to serve the lanes.
    pub lanes: Vec<LaneWant>,
    /// The most payload bytes in all. The first event is leased whatever its size.
    pub bytes_max: u64,
}

/// Which events of one lane to lease.
#[derive(Debug, Clone)]
pub struct LaneWant {
    pub lane: LaneId,
    pub which: Which,
    pub events_max: usize,
    /// The most payload bytes for the lane. The first event is leased whatever its size.
    pub bytes_max: u64,
    /// Stored with the lane before the lease is answered.
    pub spent: Option<Spent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Events that may be attempted now: due ones first, then in the order of acceptance.
    Due,
    /// The same events, but those never attempted first.
    Fresh,
    /// Expired events, whether due or not: Ready or Waiting and accepted before this time, Scheduled and due before this
    /// time, or past their own `expires_at`.
    AcceptedBefore(UnixMillis),
    /// Dead letters that may be shipped now.
    Buried,
    /// Events in this state, in the order of acceptance, from the one after `after`: due or not, whether the lane is paused
    /// or not.
    AtRest { place: Place, after: Option<EventId> },
}

/// The number of a lane, valid until the process ends. Never reused for another lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u32);

/// The result of a lease.
#[derive(Debug, Default)]
pub struct Leases {
    pub events: Vec<Leased>,
    /// The news, if requested.
    pub news: Option<LaneNews>,
}

/// An event and the right to settle it.
#[derive(Debug, Clone)]
pub struct Leased {
    pub lease: Lease,
    pub event: Event,
    pub history: History,
}

/// The right to settle one event. The first settlement decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub lane: LaneId,
    pub id: EventId,
}

/// The state of an event between leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Ready,
    /// Attempted before, due later.
    Waiting,
    /// Accepted with a future `deliver_at`. Separate from Waiting because its age counts from that time.
    Scheduled,
    Buried,
}

impl Place {
    pub const ALL: [Self; 4] = [Self::Ready, Self::Waiting, Self::Scheduled, Self::Buried];

    /// The word in metrics, logs and the operator's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Scheduled => "scheduled",
            Self::Buried => "buried",
        }
    }
}

/// The history of an event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Attempts that count towards `attempts_max`.
    pub attempts: u32,
    /// All calls of Invoke, including uncharged ones.
    pub calls: u32,
    /// How often Lambda throttled it. The backoff grows with this and `attempts`.
    pub throttles: u32,
    /// Consecutive uncharged failures other than throttles (no connection, held). The wait after them grows with this.
    pub setbacks: u32,
    /// Not attempted before this time.
    pub due: UnixMillis,
    pub last: Option<LastOutcome>,
    /// Set once the event is buried.
    pub burial: Option<Burial>,
}

/// Limits in bytes for texts from outside in a stored history: error messages (the same limit as Lambda's own dead letters),
/// the reason why no queue accepts a letter, codes and request ids. They bound what every retry writes again.
const MESSAGE_BYTES_MAX: usize = 1_024;
const UNSHIPPABLE_BYTES_MAX: usize = 512;
const WORD_BYTES_MAX: usize = 128;

impl History {
    /// As engines store it: texts from outside are cut to their limits.
    pub fn bounded(mut self) -> Self {
        let cut = |text: &mut String, bytes_max: usize| text.truncate(text.floor_char_boundary(bytes_max));
        if let Some(last) = &mut self.last {
            cut(&mut last.code, WORD_BYTES_MAX);
            cut(&mut last.message, MESSAGE_BYTES_MAX);
            last.request_id.iter_mut().for_each(|id| cut(id, WORD_BYTES_MAX));
        }
        if let Some(why) = self.burial.as_mut().and_then(|burial| burial.unshippable.as_mut()) {
            cut(why, UNSHIPPABLE_BYTES_MAX);
        }
        self
    }
}

/// The result of the last attempt, for people and for the dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastOutcome {
    pub at: UnixMillis,
    /// The HTTP status, 0 without a reply.
    pub status: u16,
    /// Lambda's error code, or sendoff's word for a network failure.
    pub code: String,
    /// At most 1,024 bytes, as in Lambda's own dead letters.
    pub message: String,
    /// `x-amzn-RequestId`, to find the call in CloudWatch.
    pub request_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burial {
    pub reason: BuryReason,
    pub at: UnixMillis,
    /// Why no queue can accept the event. It then stays in the store.
    pub unshippable: Option<String>,
}

/// Why an event was buried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuryReason {
    /// `attempts_max` charged attempts failed.
    RetriesExhausted,
    /// Older than `age_max`, or past its own `expires_at`.
    EventAgeExceeded,
    /// Lambda will never accept this event: too large, not JSON, ...
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

/// The result of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Lambda accepted it. Removed.
    Delivered,
    /// Retry it (or ship it again, if buried) at `history.due`.
    RetryAt(History),
    /// Returned unchanged, for example by a shutdown, which costs no attempt.
    Release,
    /// Given up. `history.burial` says why.
    Bury(History),
    /// SQS confirmed it. Removed.
    Shipped,
    /// Another store, or the hand-off queue, has it on stable storage. Removed, and its adoption is forgotten.
    HandedOver,
}

/// Which changes of lanes to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    Any,
    /// Changes of Buried events only, including their leases.
    Buried,
}

/// Lanes that changed.
#[derive(Debug, Clone, Default)]
pub struct LaneNews {
    /// The version for the next call.
    pub version: u64,
    pub lanes: Vec<LaneView>,
    /// The number of functions is near its limit (`outbox.functions_max`).
    pub crowded: bool,
    /// Lanes that no longer exist or no longer belong to this daemon. A function without a lane gets one with its next event.
    pub retired: Vec<LaneId>,
}

/// What dispatch and deadletter need to know about a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    pub lane: LaneId,
    pub function: FunctionName,
    /// Ready and not leased.
    pub ready: u64,
    /// When the next Waiting or Scheduled event is due, possibly in the past. `None` without such events.
    pub next_due: Option<UnixMillis>,
    /// When the oldest Ready or Waiting event was accepted, leased or not.
    pub oldest: Option<UnixMillis>,
    /// Buried and not leased.
    pub buried: u64,
    /// When the next buried event may be shipped, possibly in the past.
    pub next_ship: Option<UnixMillis>,
    /// The earliest `expires_at` of an event.
    pub next_expiry: Option<UnixMillis>,
    /// Paused by an operator.
    pub paused: bool,
    /// The value of the last lease ([`LaneWant::spent`]).
    pub spent: Spent,
    /// Lambda has accepted an event for this function at least once.
    pub proven: bool,
}

/// Attempts of an hour still count if the clock is set back by at most this many hours.
const HOURS_BACK_MAX: u64 = 24;

/// The most attempts that a lane may have made within one hour of the clock, including reserved ones.
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

    /// Whether it still counts at `now`. It also counts up to a day before its hour, after the clock was set back. An hour
    /// further ahead came from a wrong clock.
    pub fn counts(self, now: UnixMillis) -> bool {
        self.attempts > 0 && self.is_of(now)
    }

    /// Whether its hour has not ended at `now`.
    pub fn is_of(self, now: UnixMillis) -> bool {
        let hour = Self::hour_of(now);
        (hour..=hour + HOURS_BACK_MAX).contains(&self.hour)
    }
}

/// Where an event is.
#[derive(Debug, Clone)]
pub struct Found {
    /// The payload is empty if only the head was requested.
    pub event: Event,
    pub payload_bytes: usize,
    pub history: History,
    pub place: Place,
    /// Currently being attempted or shipped. Of a lane of another daemon: false if that one does not answer.
    pub leased: bool,
}

/// Counts for metrics, limits and people.
#[derive(Debug, Clone, Default)]
pub struct Census {
    pub lanes: BTreeMap<FunctionName, LaneCensus>,
    /// Remembered keys. Of daemons that share a store, one counts them in its census, and the others have 0.
    pub keys: u64,
    /// Bytes of the records of all events.
    pub bytes: u64,
    pub events: u64,
    /// Bytes of the store on disk. Told by one daemon, as `keys`.
    pub disk_bytes: u64,
    /// Free bytes on its disk. `u64::MAX` if the file system does not report them.
    pub disk_free_bytes: u64,
}

/// The counts of a lane: events and bytes by state. Leased events count in their previous state.
#[derive(Debug, Clone, Default)]
pub struct LaneCensus {
    pub by_place: BTreeMap<Place, Count>,
    pub leased: u64,
    /// When the oldest event that is or was Ready was accepted.
    pub oldest_ready: Option<UnixMillis>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub events: u64,
    pub bytes: u64,
}

/// The limits that every engine has.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most bytes of the store.
    pub bytes_max: u64,
    pub events_max: u64,
    pub functions_max: u64,
    /// How long a client's key is remembered.
    pub dedupe_window: Duration,
    /// How long an SDK's invocation id is remembered. An SDK retries a call for minutes, not hours.
    pub sdk_window: Duration,
}
