//! What an operator may do to events that wait: look, pause a lane, purge, cancel, bring an attempt forward.
//!
//! Holds: a leased event is nobody's but its attempt's; none of this touches it. Only what an operator names is removed
//! without having been delivered (G2). Limits: [`PAGE_MAX`] events a page, [`PIECE_EVENTS`] a piece of a purge.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use super::embedded::keys;
use super::{Error, History, LaneId, Outbox, Place};
use crate::clock::UnixMillis;
use crate::event::{EventId, FunctionName, Pattern};

/// Events of one page.
pub const PAGE_MAX: usize = 500;

/// Events looked at in one piece of a purge, so that others get their turn between two.
pub const PIECE_EVENTS: usize = 500;

/// The states that a purge may empty; dead letters have doors of their own.
pub const LIVE: [Place; 3] = [Place::Ready, Place::Waiting, Place::Scheduled];

/// An outbox that an operator can reach into.
pub trait Operator: Outbox {
    /// Pauses or resumes a lane; on stable storage when it returns. A function that has no lane gets one.
    fn pause(&self, function: &FunctionName, paused: bool) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes what fits, or only counts it. What is being attempted stays.
    fn purge(&self, purge: Purge) -> impl Future<Output = Result<Purged, Error>> + Send;

    /// Removes one event that waits.
    fn cancel(&self, id: EventId, keys: Keys) -> impl Future<Output = Result<Touched, Error>> + Send;

    /// Makes one event that waits due now.
    fn attempt_now(&self, id: EventId) -> impl Future<Output = Result<Touched, Error>> + Send;

    /// Events in the order of lane, state and id.
    fn list(&self, want: ListWant) -> impl Future<Output = Result<Page, Error>> + Send;
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

/// A place in the listing. Its text is for the caller to give back, not to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub lane: LaneId,
    pub place: Place,
    pub id: EventId,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.lane.0, char::from(keys::letter(self.place)), self.id)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let at = text.find(|c: char| !c.is_ascii_digit()).ok_or(())?;
        let (lane, rest) = text.split_at(at);
        let (letter, id) = rest.split_at_checked(1).ok_or(())?;
        let place = letter.bytes().next().and_then(keys::place).ok_or(())?;
        Ok(Self { lane: LaneId(lane.parse().map_err(drop)?), place, id: id.parse().map_err(drop)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        for place in Place::ALL {
            let cursor = Cursor { lane: LaneId(17), place, id: EventId::from_bytes([9; 16]) };
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for text in ["", "17", "17x", "r", "17r", "17r-", "é"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
