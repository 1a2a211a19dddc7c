//! What an operator may do to events that wait (look, pause a lane, purge, cancel, bring an attempt forward) and to dead
//! letters (look, send again, take in, remove).
//!
//! Holds: a leased event is nobody's but its attempt's; none of this touches it. Only what an operator names is removed
//! without having been delivered (G2). Limits: [`PAGE_MAX`] events a page, [`PIECE_EVENTS`] a piece of a purge.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use super::{Appended, Error, History, LaneView, Outbox, Place};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName, Pattern};

/// Events of one page.
pub const PAGE_MAX: usize = 500;

/// Events looked at in one piece of a purge, so that others get their turn between two.
pub const PIECE_EVENTS: usize = 500;

/// The states that a purge may empty; dead letters have doors of their own.
pub const LIVE: [Place; 3] = [Place::Ready, Place::Waiting, Place::Scheduled];

/// An outbox that an operator can reach into.
///
/// A call that names several events is done in pieces of one commit each, and others are served between them; it gives one
/// answer for each event, in order. After an error, or if the caller gives up, the pieces so far are done, and to ask again
/// does no harm.
pub trait Operator: Outbox {
    /// The lane of one function; none if it has none, which is so before its first event and some time after its last.
    fn lane(&self, function: &FunctionName) -> impl Future<Output = Result<Option<LaneView>, Error>> + Send;

    /// Pauses or resumes a lane; on stable storage when it returns. A function that has no lane gets one.
    fn pause(&self, function: &FunctionName, paused: bool) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes the events that fit, or only counts them. What is being attempted stays.
    fn purge(&self, purge: Purge) -> impl Future<Output = Result<Purged, Error>> + Send;

    /// Removes one event that waits.
    fn cancel(&self, id: EventId, keys: Keys) -> impl Future<Output = Result<Touched, Error>> + Send;

    /// Makes one event that waits due now.
    fn attempt_now(&self, id: EventId) -> impl Future<Output = Result<Touched, Error>> + Send;

    /// A page of events, by function and then in the order of acceptance.
    fn list(&self, want: ListWant) -> impl Future<Output = Result<Page, Error>> + Send;

    /// A page of the dead letters, by function and then in the order of acceptance.
    fn buried(&self, want: BuriedWant) -> impl Future<Output = Result<BuriedPage, Error>> + Send;

    /// Accepts events that come back from a queue.
    fn redrive(&self, events: Vec<Redriven>) -> impl Future<Output = Result<Vec<Appended>, Error>> + Send;

    /// Makes dead letters of the store Ready again, under new ids, so that their age counts from now. Those that came back
    /// `redrives_max` times already stay.
    fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> impl Future<Output = Result<Vec<Revived>, Error>> + Send;

    /// Takes in dead letters that were exported, under their own ids.
    fn import(&self, letters: Vec<(Event, History)>) -> impl Future<Output = Result<Vec<Imported>, Error>> + Send;

    /// Removes dead letters for good.
    fn discard(&self, ids: Vec<EventId>, keys: Keys) -> impl Future<Output = Result<Vec<Discarded>, Error>> + Send;
}

/// What to purge.
#[derive(Debug, Clone)]
pub struct Purge {
    pub function: FunctionName,
    /// Only events of this state; none means all of [`LIVE`].
    pub place: Option<Place>,
    pub accepted_before: Option<UnixMillis>,
    /// Only count.
    pub dry_run: bool,
    pub keys: Keys,
}

/// What becomes of the idempotency keys of events that an operator removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keys {
    /// The same key can be sent again and is stored.
    #[default]
    Forget,
    /// A repeat is still answered as one, until the key's window is over.
    Keep,
}

/// What a purge removed, or would remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    pub events: u64,
    pub bytes: u64,
}

/// What became of the one event that was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touched {
    Done,
    /// Not stored, or not any more.
    NotFound,
    /// Being attempted just now.
    InFlight,
    /// A dead letter: it is for `/v1/dead-letters`.
    Buried,
    /// It cannot be read, so it can only be removed; the log says why.
    Unreadable,
}

/// Which events to list.
#[derive(Debug, Clone, Default)]
pub struct ListWant {
    /// The function's canonical name, with `*` for any run of characters.
    pub function: Option<Pattern>,
    pub place: Option<Place>,
    /// Where the page before ended.
    pub after: Option<Cursor>,
    /// At most [`PAGE_MAX`].
    pub max: usize,
}

#[derive(Debug, Clone, Default)]
pub struct Page {
    pub events: Vec<Listed>,
    /// Where to go on; none if this was the last page.
    pub next: Option<Cursor>,
}

/// One event, without what the client sent.
#[derive(Debug, Clone)]
pub struct Listed {
    pub id: EventId,
    pub function: FunctionName,
    pub place: Place,
    /// Being attempted or shipped right now.
    pub leased: bool,
    /// Empty if it cannot be read.
    pub history: History,
    /// Why it cannot be read.
    pub unreadable: Option<String>,
}

/// A place in the order of function and acceptance. Its text is for the caller to give back, not to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub function: FunctionName,
    pub id: EventId,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No character that means something to a shell or in a URL, as `$LATEST` would.
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
