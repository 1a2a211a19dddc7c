//! Operators' calls for waiting events (list, pause a lane, purge, cancel, attempt now) and for dead letters (list,
//! redrive, import, remove).
//!
//! Holds: no call touches a leased event. Only events that an operator names are removed without delivery (G2).
//! Limits: [`PAGE_MAX`] events in a page, [`PIECE_EVENTS`] in a piece of a purge.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use super::{Appended, Error, History, LaneView, Outbox, Place};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName, Pattern};

/// The most events in a page.
pub const PAGE_MAX: usize = 500;

/// The most events that one piece of a purge visits. Other requests are served between pieces.
pub const PIECE_EVENTS: usize = 500;

/// The states that a purge may empty. Dead letters have calls of their own.
pub const LIVE: [Place; 3] = [Place::Ready, Place::Waiting, Place::Scheduled];

/// An outbox with the operators' calls.
///
/// A call for several events runs in pieces of one commit each, and other requests are served between them. It returns
/// one answer for each event, in order. After an error or a dropped call, the finished pieces stay, and repeating the
/// call is harmless.
pub trait Operator: Outbox {
    /// The lane of a function. `None` before its first event and some time after its last one.
    fn lane(&self, function: &FunctionName) -> impl Future<Output = Result<Option<LaneView>, Error>> + Send;

    /// Pauses or resumes a lane, on stable storage when it returns. A function without a lane gets one.
    fn pause(&self, function: &FunctionName, paused: bool) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes the matching events, or only counts them. Events that are being attempted stay.
    fn purge(&self, purge: Purge) -> impl Future<Output = Result<Purged, Error>> + Send;

    /// Removes one waiting event.
    fn cancel(&self, id: EventId, keys: Keys) -> impl Future<Output = Result<Touched, Error>> + Send;

    /// Makes one waiting event due now.
    fn attempt_now(&self, id: EventId) -> impl Future<Output = Result<Touched, Error>> + Send;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    pub events: u64,
    pub bytes: u64,
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
    /// The end of the previous page.
    pub after: Option<Cursor>,
    /// At most [`PAGE_MAX`].
    pub max: usize,
}

#[derive(Debug, Clone, Default)]
pub struct Page {
    pub events: Vec<Listed>,
    /// Where the next page begins. `None` on the last page.
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
