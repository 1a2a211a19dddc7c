//! What the database is asked and what it answers, as plain data. `live` speaks to the server; the rest of the engine sees
//! only these types.

use bytes::Bytes;

use super::keys::Family;
use crate::clock::UnixMillis;
use crate::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use crate::outbox::{Count, History, Place, Spent};

/// Why a call of the database failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// The database cannot be reached, or cannot serve now. It is unknown whether the call was carried out.
    #[error("{0}")]
    Away(String),
    /// The database no longer counts this member among the living: another daemon has its lanes.
    #[error("this daemon was taken for dead ({0}), and another one took over its lanes")]
    Fenced(String),
    /// A later session settles for this member. What this call carried was sent again.
    #[error("a later session has replaced this one")]
    Replaced,
    /// A lock was not granted in time.
    #[error("a lock of the database was not free in time: {0}")]
    Locked(String),
    /// The disk of the database is full.
    #[error("the disk of the database is full: {0}")]
    DiskFull(String),
    /// The database refused the statement. Repeating it does not help.
    #[error("the database refused a statement: {0}")]
    Refused(String),
    /// Only a change of the database or of the configuration, and a restart, help.
    #[error("{0}")]
    Poisoned(String),
}

/// What is remembered about a client's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Remembered {
    pub family: Family,
    pub digest: [u8; 16],
}

/// An event to store.
#[derive(Debug, Clone)]
pub(super) struct New {
    pub event: Event,
    pub key: Option<Remembered>,
    pub print: [u8; 16],
}

/// What became of an event that was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Repeat {
        first: EventId,
    },
    Conflict {
        first: EventId,
    },
    NoBytes,
    NoEvents,
    NoFunctions,
    /// An open transaction of somebody else holds the key.
    Busy,
}

/// Why an event of another store was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotAdopted {
    Repeat,
    KnownKey { first: EventId },
    NoRoom(Verdict),
}

/// How much may still be stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub events: u64,
    pub bytes: u64,
    pub functions: u64,
}

/// A point in the order of commits: what a snapshot of the database sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The first transaction that was not assigned yet.
    pub xmax: i64,
    /// Transactions below it that were open.
    pub open: Vec<i64>,
    /// The first transaction that was not told yet.
    pub xmin: i64,
    /// Names the running server. It changes with a restart and with a failover.
    pub incarnation: String,
}

impl Position {
    /// Whether a snapshot taken here sees this transaction.
    pub(super) fn sees(&self, xid: i64) -> bool {
        xid < self.xmax && !self.open.contains(&xid)
    }
}

/// What one transaction has stored in one lane.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub xid: i64,
    pub lane: i64,
    /// Those that are Ready.
    pub ready: Count,
    /// Those that are Scheduled.
    pub scheduled: Count,
    pub due: Option<UnixMillis>,
    pub expiry: Option<UnixMillis>,
    /// The least id of them.
    pub first: EventId,
}

/// Arrivals since a position.
#[derive(Debug, Clone, Default)]
pub(super) struct News {
    pub position: Position,
    /// Another daemon asks this one something.
    pub asked: bool,
    pub arrivals: Vec<Arrival>,
}

/// A lane as the database has it.
#[derive(Debug, Clone)]
pub(super) struct LaneRow {
    pub id: i64,
    pub function: FunctionName,
    pub paused: bool,
    pub proven: bool,
    pub retired: bool,
    pub spent: Spent,
    /// In the order of `Place::ALL`.
    pub counts: [Count; 4],
    pub next_due: Option<UnixMillis>,
    pub next_ship: Option<UnixMillis>,
    pub next_expiry: Option<UnixMillis>,
    /// The first event that is not buried.
    pub first: Option<EventId>,
    /// What the reading has seen.
    pub seen: Position,
}

/// What of a lane's view must be asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Unknown {
    pub due: bool,
    pub ship: bool,
    pub expiry: bool,
    pub oldest: bool,
}

impl Unknown {
    pub(super) fn any(self) -> bool {
        self.due || self.ship || self.expiry || self.oldest
    }
}

/// The answers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peek {
    pub due: Option<UnixMillis>,
    pub ship: Option<UnixMillis>,
    pub expiry: Option<UnixMillis>,
    pub oldest: Option<EventId>,
}

/// Which events of one lane to lease.
#[derive(Debug, Clone)]
pub(super) struct Want {
    pub lane: i64,
    pub which: i16,
    pub events_max: usize,
    pub bytes_max: u64,
    pub after: Option<EventId>,
    pub cutoff: Option<UnixMillis>,
    pub spent: Option<Spent>,
}

/// One answer to a want.
#[derive(Debug, Clone)]
pub(super) enum Taken {
    Event(Box<Stored>),
    /// The ready part of a lane was read up to `last`.
    Mark {
        lane: i64,
        last: Option<EventId>,
        /// The end of the lane was reached.
        whole: bool,
    },
}

/// An event as the database has it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub lane: i64,
    pub place: Place,
    pub id: EventId,
    pub due: Option<UnixMillis>,
    pub history: Option<Vec<u8>>,
    /// What it counts towards `bytes_max`.
    pub bytes: u64,
    pub redrives: u32,
    pub key_source: KeySource,
    pub key_value: String,
    pub address: Option<String>,
    pub qualifier: Option<String>,
    pub region: Option<String>,
    pub carried: Carried,
    pub deliver_at: Option<UnixMillis>,
    pub expires_at: Option<UnixMillis>,
    pub payload: Bytes,
    pub payload_bytes: usize,
}

impl Stored {
    pub(super) fn history(&self) -> Result<History, String> {
        super::history::decode(self.history.as_deref(), self.due, self.id)
    }

    pub(super) fn into_event(self, function: &FunctionName) -> Event {
        Event {
            id: self.id,
            function: Function {
                name: function.clone(),
                address: self.address.unwrap_or_else(|| function.as_str().to_owned()),
                qualifier: self.qualifier,
                region: self.region,
            },
            key: IdempotencyKey { value: self.key_value, source: self.key_source },
            carried: self.carried,
            payload: self.payload,
            accepted_at: self.id.accepted_at(),
            deliver_at: self.deliver_at,
            expires_at: self.expires_at,
            redrives: self.redrives,
        }
    }
}

/// Settlements of one commit.
#[derive(Debug, Clone, Default)]
pub(super) struct Settling {
    pub delivered: Vec<(i64, EventId)>,
    pub shipped: Vec<(i64, EventId)>,
    pub retry: Vec<(i64, EventId, Place, History)>,
    pub reship: Vec<(i64, EventId, History)>,
    pub bury: Vec<(i64, EventId, History)>,
    /// Lanes for whose function Lambda has accepted an event for the first time.
    pub proven: Vec<i64>,
    /// Keys that outlive their event by a window.
    pub outlive: Vec<(Remembered, EventId)>,
}

impl Settling {
    pub(super) fn is_empty(&self) -> bool {
        self.delivered.is_empty()
            && self.shipped.is_empty()
            && self.retry.is_empty()
            && self.reship.is_empty()
            && self.bury.is_empty()
    }
}

/// A living daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Member {
    pub id: i64,
    pub name: String,
    pub beat: i64,
    pub lanes: u64,
    pub events: u64,
    pub bytes: u64,
    /// When it started, by the server's clock.
    pub since: UnixMillis,
    pub version: String,
    /// It stops, and gives its lanes back.
    pub draining: bool,
}

/// The answer to a beat.
#[derive(Debug, Clone, Default)]
pub(super) struct Beat {
    pub now: UnixMillis,
    pub incarnation: String,
    /// Lanes that have no owner.
    pub unowned: u64,
    /// Own lanes that are paused.
    pub paused: Vec<i64>,
    pub members: Vec<Member>,
}

/// The answer to a request to join.
#[derive(Debug, Clone, Copy)]
pub(super) enum Joined {
    Yes,
    /// Somebody alive has the name.
    Taken {
        by: i64,
        beat: i64,
    },
}

/// What the server says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Stats {
    pub disk_bytes: u64,
    /// Remembered keys, as the server's statistics have it.
    pub keys: u64,
}
