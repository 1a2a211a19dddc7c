//! Operators' calls for waiting events (list, pause a lane, purge, cancel, attempt now) and for dead letters (list,
//! redrive, import, remove).
//!
//! Holds: no call touches a leased event. Only events that an operator names are removed without delivery (G2).
//! Limits: [`PAGE_MAX`] events in a page, [`PIECE_EVENTS`] in a piece of a purge.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;

use super::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use super::{Appended, Census, Error, History, LaneView, Outbox, Place};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName, Pattern};

/// The most events in a page.
pub const PAGE_MAX: usize = 500;

/// The most records that a page looks at, so that a narrow filter does not block the store.
pub const LOOKED_AT_MAX: usize = 1_000;

/// The most ids of removed events that a purge returns.
pub const PURGED_IDS_MAX: usize = 10_000;

/// The most events that one piece of a purge visits. Other requests are served between pieces.
pub const PIECE_EVENTS: usize = 500;

/// The states that a purge may empty. Dead letters have calls of their own.
pub const LIVE: [Place; 3] = [Place::Ready, Place::Waiting, Place::Scheduled];

/// Answers what another daemon asks about this one: text in, text out. The store does not read either.
pub type Informant = Arc<dyn Fn(String) -> BoxFuture<'static, String> + Send + Sync>;

/// An outbox with the operators' calls. All of them concern the whole store, also lanes that other daemons own.
///
/// A call for several events runs in pieces of one commit each, and other requests are served between them. It returns
/// one answer for each event, in order. After an error or a dropped call, the finished pieces stay, and repeating the
/// call is harmless.
pub trait Operator: Outbox {
    /// Counts of the whole store, and who shares it. Asks the other daemons, and waits a little for those that do not answer.
    fn overview(&self) -> impl Future<Output = Result<Overview, Error>> + Send {
        async {
            let census = self.census().await?;
            let paused = self.lanes(0).await?.lanes.into_iter().filter(|lane| lane.paused).map(|lane| lane.function);
            Ok(Overview { census, paused: paused.collect(), fleet: None })
        }
    }

    /// Sets who answers what other daemons ask about this one.
    fn inform(&self, informant: Informant) {
        drop(informant);
    }

    /// Asks the informants of the other living daemons. Returns the answers that come in time.
    fn ask_others(&self, question: String) -> impl Future<Output = Vec<String>> + Send {
        drop(question);
        async { Vec::new() }
    }

    /// The lane of a function. `None` before its first event and some time after its last one. Of a lane of another daemon
    /// only `function`, `paused` and `proven` are known.
    fn lane(&self, function: &FunctionName) -> impl Future<Output = Result<Option<LaneView>, Error>> + Send;

    /// Pauses or resumes a lane, on stable storage when it returns. A function without a lane gets one.
    fn pause(&self, function: &FunctionName, paused: bool) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes the matching events, or only counts them. Events that are being attempted stay.
    fn purge(&self, purge: Purge) -> impl Future<Output = Result<Purged, Error>> + Send;

    /// Removes one waiting event.
    fn cancel(&self, id: EventId, keys: Keys) -> impl Future<Output = Result<Touched, Error>> + Send;

    /// Makes one waiting event due now.
    fn attempt_now(&self, id: EventId) -> impl Future<Output = Result<Touched, Error>> + Send;

    /// Like [`Operator::cancel`], for several events.
    fn cancel_all(&self, ids: Vec<EventId>, keys: Keys) -> impl Future<Output = Result<Vec<Touched>, Error>> + Send {
        async move {
            let mut touched = Vec::with_capacity(ids.len());
            for id in ids {
                touched.push(self.cancel(id, keys).await?);
            }
            Ok(touched)
        }
    }

    /// Like [`Operator::attempt_now`], for several events.
    fn attempt_all(&self, ids: Vec<EventId>) -> impl Future<Output = Result<Vec<Touched>, Error>> + Send {
        async move {
            let mut touched = Vec::with_capacity(ids.len());
            for id in ids {
                touched.push(self.attempt_now(id).await?);
            }
            Ok(touched)
        }
    }

    /// What is remembered of a key that a client gave. `None` if an event with this key would be a new one.
    fn known_key(
        &self,
        function: &FunctionName,
        tenant: Option<String>,
        key: String,
    ) -> impl Future<Output = Result<Option<KnownKey>, Error>> + Send;

    /// A page of events, by function and then in the order of acceptance.
    fn list(&self, want: ListWant) -> impl Future<Output = Result<Page, Error>> + Send;

    /// A page of the dead letters, by function and then in the order of acceptance.
    fn buried(&self, want: BuriedWant) -> impl Future<Output = Result<BuriedPage, Error>> + Send;

    /// Accepts events that return from a queue.
    fn redrive(&self, events: Vec<Redriven>) -> impl Future<Output = Result<Vec<Appended>, Error>> + Send;

    /// Makes stored dead letters Ready again, under new ids, so that their age counts from now. Letters that were redriven
    /// `redrives_max` times stay.
    fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> impl Future<Output = Result<Vec<Revived>, Error>> + Send;

    /// Stores exported dead letters, under their own ids.
    fn import(&self, letters: Vec<(Event, History)>) -> impl Future<Output = Result<Vec<Imported>, Error>> + Send;

    /// Removes dead letters for good.
    fn discard(&self, ids: Vec<EventId>, keys: Keys) -> impl Future<Output = Result<Vec<Discarded>, Error>> + Send;
}

/// The whole store.
#[derive(Debug, Clone, Default)]
pub struct Overview {
    pub census: Census,
    pub paused: BTreeSet<FunctionName>,
    /// The daemons that share the store. `None` if it belongs to one daemon.
    pub fleet: Option<Fleet>,
}

/// The daemons that share a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    /// The living, by name.
    pub members: Vec<FleetMember>,
    /// Lanes that nobody owned when this daemon last looked.
    pub unowned: u64,
}

/// A living daemon of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetMember {
    pub name: String,
    pub version: String,
    /// When it started, by the clock of the store.
    pub since: UnixMillis,
    pub is_this: bool,
    /// How long its beat has stood still, as seen by the daemon that tells.
    pub beat_age: Duration,
    /// It stops, and gives its lanes back.
    pub is_draining: bool,
    /// It told its counts in time. Those of one that did not are missing from the census.
    pub answers: bool,
    /// The lanes that it owns.
    pub functions: u64,
    /// What it stores in them.
    pub events: u64,
    pub bytes: u64,
}

/// What to purge.
#[derive(Debug, Clone)]
pub struct Purge {
    pub function: FunctionName,
    /// Only events in this state. `None` means all of [`LIVE`].
    pub place: Option<Place>,
    pub accepted_before: Option<UnixMillis>,
    /// Only count.
    pub dry_run: bool,
    pub keys: Keys,
}

/// What happens to the idempotency keys of removed events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keys {
    /// The key is forgotten: an event with the same key is stored again.
    #[default]
    Forget,
    /// The key is kept: a repeat is recognised until the key's window ends.
    Keep,
}

/// What a purge removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purged {
    pub events: u64,
    pub bytes: u64,
    /// The removed events, at most [`PURGED_IDS_MAX`] of them. Empty after a dry run.
    pub ids: Vec<EventId>,
}

impl Purged {
    /// Adds what the next piece of the purge removed.
    pub fn add(&mut self, piece: Self) {
        self.events += piece.events;
        self.bytes += piece.bytes;
        let room = PURGED_IDS_MAX.saturating_sub(self.ids.len());
        self.ids.extend(piece.ids.into_iter().take(room));
    }
}

/// What is remembered of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownKey {
    /// The event that came with it first.
    pub first: EventId,
    /// When it is forgotten, unless the event is still stored then.
    pub expires_at: UnixMillis,
}

/// The result for the named event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touched {
    Done,
    /// Not stored, or no longer.
    NotFound,
    /// Currently being attempted.
    InFlight,
    /// A dead letter. Use `/v1/dead-letters` for it.
    Buried,
    /// Unreadable: it can only be removed. The log says why.
    Unreadable,
}

/// Which events to list.
#[derive(Debug, Clone, Default)]
pub struct ListWant {
    /// A pattern for the canonical name, in which `*` matches any run of characters.
    pub function: Option<Pattern>,
    pub place: Option<Place>,
    pub filter: ListFilter,
    /// The end of the previous page.
    pub after: Option<Cursor>,
    /// At most [`PAGE_MAX`].
    pub max: usize,
}

/// A filter for events. A field that is `None` matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Accepted at or after this time.
    pub since: Option<UnixMillis>,
    /// Accepted before this time.
    pub until: Option<UnixMillis>,
    /// Attempted at least so often.
    pub attempts_min: Option<u32>,
    /// A part of the last outcome's code or message.
    pub error: Option<String>,
    /// Whether the event is being attempted or shipped.
    pub in_flight: Option<bool>,
}

impl ListFilter {
    /// Whether an event matches. `None` for the history of an event that cannot be read.
    pub fn fits(&self, id: EventId, leased: bool, history: Option<&History>) -> bool {
        let accepted_at = id.accepted_at();
        let attempted = |min: u32| history.is_some_and(|history| history.calls >= min);
        let said = |text: &String| {
            let last = history.and_then(|history| history.last.as_ref());
            last.is_some_and(|last| last.code.contains(text) || last.message.contains(text))
        };
        self.since.is_none_or(|since| accepted_at >= since)
            && self.until.is_none_or(|until| accepted_at < until)
            && self.in_flight.is_none_or(|wanted| wanted == leased)
            && self.attempts_min.is_none_or(attempted)
            && self.error.as_ref().is_none_or(said)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Page {
    pub events: Vec<Listed>,
    /// Where the next page begins. `None` on the last page. A page may be empty and still have a next one, because an
    /// engine looks at no more than [`LOOKED_AT_MAX`] records for one.
    pub next: Option<Cursor>,
}

/// An event without what the client sent.
#[derive(Debug, Clone)]
pub struct Listed {
    pub id: EventId,
    pub function: FunctionName,
    pub place: Place,
    /// Currently being attempted or shipped.
    pub leased: bool,
    /// Empty if it cannot be read.
    pub history: History,
    /// Why it cannot be read.
    pub unreadable: Option<String>,
}

/// A position in the order of function and acceptance. Its text is opaque: callers return it unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub function: FunctionName,
    pub id: EventId,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Encoded, because names such as `$LATEST` contain characters with a meaning in shells and URLs.
        let bytes = [&self.id.as_bytes()[..], self.function.as_str().as_bytes()].concat();
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "not a token of a page; take it from `next`";
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| WHY)?;
        let (id, function) = bytes.split_first_chunk::<16>().ok_or(WHY)?;
        let function = str::from_utf8(function).ok().filter(|name| !name.is_empty()).ok_or(WHY)?;
        Ok(Self { function: FunctionName::new(function), id: EventId::from_bytes(*id) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text_which_needs_no_quotes() {
        for function in ["orders", "eu-west-1/123456789012/orders:$LATEST"] {
            let cursor = Cursor { function: FunctionName::new(function), id: EventId::from_bytes([9; 16]) };
            let text = cursor.to_string();
            assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')), "{text}");
            assert_eq!(text.parse(), Ok(cursor));
        }
        for text in ["", "17", "CQkJCQkJCQkJCQkJCQkJCQ", "orders", "é"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
