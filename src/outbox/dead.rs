//! The words of an operator who asks about dead letters: what to show, and what became of those that were moved.
//! [`Operator`](super::operator::Operator) has the questions.

use super::operator::Cursor;
use super::{BuryReason, Full, History};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, Pattern};

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

/// An event that comes back from a queue.
#[derive(Debug, Clone)]
pub struct Redriven {
    /// With a new id, and `redrives` counted up.
    pub event: Event,
    /// What names the dead letter, the same in every copy of its message. With `redrives` it is remembered as long as a
    /// given key, so that a message received twice is accepted once, and yet is no repeat of the event that died.
    pub origin: String,
}

/// What became of a dead letter that was to become an event again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revived {
    /// It is stored under this id, and Ready.
    Stored {
        id: EventId,
    },
    /// It has come back this often already and stays dead.
    Ceiling {
        redrives: u32,
    },
    /// No room for it just now.
    Full(Full),
    NotFound,
    /// It is on its way to a queue.
    Leased,
    /// Its bytes cannot be read.
    Unreadable {
        why: String,
    },
}

/// What became of a dead letter that was exported and comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    Stored,
    /// An event with its id is stored already: nothing was changed.
    Repeat,
    /// No room for it.
    Full(Full),
}

/// What became of a dead letter that an operator removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    Done,
    NotFound,
    /// It is on its way to a queue.
    Leased,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Burial, LastOutcome};

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
