//! What an operator asks of the dead letters in the store: to see them, to send them again, to remove them by name.
//!
//! Apart from [`Outbox`]: no stage needs it, only the operator's API.

use std::future::Future;

use super::operator::Keys;
use super::{BuryReason, Error, Full, History, LaneId, Outbox};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, Pattern};

/// A store whose dead letters can be listed and moved.
pub trait Graveyard: Outbox {
    /// A page of the dead letters, by lane and then in the order of acceptance.
    fn buried(&self, want: BuriedWant) -> impl Future<Output = Result<BuriedPage, Error>> + Send;

    /// Carries out `change`, in pieces of one commit each, between which others are served; one answer per event of it, in
    /// order. After an error, or if the caller gives up, the pieces so far are done, and to ask again does no harm.
    fn change(&self, change: Change) -> impl Future<Output = Result<Vec<Changed>, Error>> + Send;
}

/// Which dead letters to show.
#[derive(Debug, Clone, Default)]
pub struct BuriedWant {
    pub filter: Filter,
    /// Where the page before ended.
    pub after: Option<Cursor>,
    /// Letters of the page, at most.
    pub letters_max: usize,
    /// With payloads; without them [`Letter::payload_bytes`] still tells the size.
    pub payloads: bool,
}

/// What a dead letter must be like; a part that is none fits all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// What the function's canonical name must fit.
    pub function: Option<Pattern>,
    pub reason: Option<BuryReason>,
    /// Buried at or after this.
    pub since: Option<UnixMillis>,
    /// Buried before this.
    pub until: Option<UnixMillis>,
    /// Part of the last outcome's code or message, or of why it is unshippable.
    pub error: Option<String>,
    /// Whether no queue can take it.
    pub unshippable: Option<bool>,
}

impl Filter {
    /// Whether the history of a dead letter fits; the function is not looked at here.
    pub fn fits(&self, history: &History) -> bool {
        let Some(burial) = &history.burial else { return false };
        let unshippable = burial.unshippable.as_deref();
        let said = |text: &String| {
            let last = history.last.as_ref();
            last.is_some_and(|last| last.code.contains(text) || last.message.contains(text))
                || unshippable.is_some_and(|why| why.contains(text))
        };
        self.reason.is_none_or(|reason| reason == burial.reason)
            && self.since.is_none_or(|since| burial.at >= since)
            && self.until.is_none_or(|until| burial.at < until)
            && self.unshippable.is_none_or(|wanted| wanted == unshippable.is_some())
            && self.error.as_ref().is_none_or(said)
    }
}

/// A place in the order of dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub lane: LaneId,
    pub id: EventId,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.lane.0, self.id)
    }
}

impl std::str::FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "not what `next` of a page said";
        let (lane, id) = text.split_once('.').ok_or(WHY)?;
        Ok(Self { lane: LaneId(lane.parse().map_err(|_| WHY)?), id: id.parse().map_err(|_| WHY)? })
    }
}

#[derive(Debug, Clone, Default)]
pub struct BuriedPage {
    pub letters: Vec<Letter>,
    /// Dead letters that cannot be read, and why. They can be removed by their ids.
    pub unreadable: Vec<(EventId, String)>,
    /// Where to go on; none at the end. A page may be empty and yet have a next one.
    pub next: Option<Cursor>,
}

/// A dead letter in the store.
#[derive(Debug, Clone)]
pub struct Letter {
    /// With an empty payload unless payloads were asked for.
    pub event: Event,
    pub payload_bytes: usize,
    pub history: History,
    /// Being shipped right now.
    pub leased: bool,
}

/// What to do with dead letters.
#[derive(Debug, Clone)]
pub enum Change {
    /// Accepts events that come back from a queue.
    Redrive(Vec<Redriven>),
    /// Makes dead letters of the store Ready again, under new ids, so that their age counts from now; those that came
    /// back `redrives_max` times already stay.
    Revive { ids: Vec<EventId>, redrives_max: u32 },
    /// Takes in dead letters that were exported, under their own ids.
    Bury(Vec<(Event, History)>),
    /// Removes dead letters for good.
    Purge { ids: Vec<EventId>, keys: Keys },
}

impl Change {
    /// The bytes of memory that it takes while it waits, about.
    pub fn cost(&self) -> usize {
        match self {
            Self::Redrive(redriven) => redriven.iter().map(|redriven| redriven.event.cost()).sum(),
            Self::Bury(letters) => letters.iter().map(|(event, _)| event.cost()).sum(),
            Self::Revive { ids, .. } | Self::Purge { ids, .. } => size_of_val(ids.as_slice()),
        }
    }
}

/// An event that comes back from a queue.
#[derive(Debug, Clone)]
pub struct Redriven {
    /// With a new id, and `redrives` counted up.
    pub event: Event,
    /// What names the dead letter, the same in every copy of its message. With `redrives` it is remembered as long as a
    /// given key, so that a message received twice is accepted once, and yet is no repeat of the event that died.
    pub origin: String,
}

/// What became of one event of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Stored under this id.
    Stored {
        id: EventId,
    },
    /// It was accepted before: nothing was stored.
    Repeat {
        first: EventId,
    },
    /// Another payload was accepted before under the same origin: nothing was stored.
    Conflict {
        first: EventId,
    },
    /// No room for this one.
    Full(Full),
    /// It has come back this often already and stays dead.
    Ceiling {
        redrives: u32,
    },
    Purged,
    /// No such dead letter.
    NotFound,
    /// It is on its way to a queue just now.
    Leased,
    /// Its bytes cannot be read.
    Unreadable {
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Burial, LastOutcome};

    #[test]
    fn a_cursor_is_read_back() {
        let cursor = Cursor { lane: LaneId(7), id: EventId::from_bytes([9; 16]) };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "7", "7.x", "x.00000000-0000-0000-0000-000000000000"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_filter_looks_at_reason_time_error_and_shippability() {
        let history = History {
            last: Some(LastOutcome {
                at: UnixMillis(5),
                status: 413,
                code: "RequestTooLargeException".into(),
                message: "too many bytes".into(),
                request_id: None,
            }),
            burial: Some(Burial {
                reason: BuryReason::Refused,
                at: UnixMillis(100),
                unshippable: Some("SQS takes 1024".into()),
            }),
            ..History::default()
        };
        let all = Filter::default();
        for (filter, fits) in [
            (all.clone(), true),
            (Filter { reason: Some(BuryReason::Refused), ..all.clone() }, true),
            (Filter { reason: Some(BuryReason::RetriesExhausted), ..all.clone() }, false),
            (Filter { since: Some(UnixMillis(100)), until: Some(UnixMillis(101)), ..all.clone() }, true),
            (Filter { until: Some(UnixMillis(100)), ..all.clone() }, false),
            (Filter { error: Some("TooLarge".into()), ..all.clone() }, true),
            (Filter { error: Some("takes 1024".into()), ..all.clone() }, true),
            (Filter { error: Some("other".into()), ..all.clone() }, false),
            (Filter { unshippable: Some(false), ..all }, false),
        ] {
            assert_eq!(filter.fits(&history), fits, "{filter:?}");
        }
    }
}
