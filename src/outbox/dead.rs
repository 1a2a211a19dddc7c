//! The types of the calls for dead letters: filters, letters and results. The calls are in
//! [`Operator`](super::operator::Operator).

use super::operator::Cursor;
use super::{BuryReason, Full, History};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, Pattern};

/// Which dead letters to list.
#[derive(Debug, Clone, Default)]
pub struct BuriedWant {
    pub filter: Filter,
    /// The end of the previous page.
    pub after: Option<Cursor>,
    /// The most letters in the page.
    pub letters_max: usize,
    /// Whether to read payloads. [`Letter::payload_bytes`] has the size in any case.
    pub payloads: bool,
}

/// A filter for dead letters. A field that is `None` matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// A pattern for the function's canonical name.
    pub function: Option<Pattern>,
    pub reason: Option<BuryReason>,
    /// Buried at or after this time.
    pub since: Option<UnixMillis>,
    /// Buried before this time.
    pub until: Option<UnixMillis>,
    /// A part of the last outcome's code or message, or of the reason why no queue accepts it.
    pub error: Option<String>,
    /// Whether no queue can accept it.
    pub unshippable: Option<bool>,
}

impl Filter {
    /// Whether the history of a dead letter matches. Does not check the function.
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
    /// Unreadable dead letters and the reasons. They can be removed by id.
    pub unreadable: Vec<(EventId, String)>,
    /// Where the next page begins. `None` at the end. A page may be empty and still have a next one.
    pub next: Option<Cursor>,
}

/// A dead letter in the store.
#[derive(Debug, Clone)]
pub struct Letter {
    /// The payload is empty unless payloads were requested.
    pub event: Event,
    pub payload_bytes: usize,
    pub history: History,
    /// Currently being shipped.
    pub leased: bool,
}

/// An event that returns from a queue.
#[derive(Debug, Clone)]
pub struct Redriven {
    /// Has a new id and an increased `redrives`.
    pub event: Event,
    /// The name of the dead letter, the same in every copy of its message. Together with `redrives` it is remembered as long
    /// as a client's key. So a message received twice is accepted once, and is not taken for a repeat of the buried event.
    pub origin: String,
}

/// The result of a redrive for one dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revived {
    /// Stored under this id, and Ready.
    Stored {
        id: EventId,
    },
    /// Already redriven this often. It stays buried.
    Ceiling {
        redrives: u32,
    },
    /// No room for it now.
    Full(Full),
    NotFound,
    /// Currently being shipped.
    Leased,
    /// Unreadable.
    Unreadable {
        why: String,
    },
}

/// The result of an import for one dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    Stored,
    /// An event with its id is stored already. Nothing changed.
    Repeat,
    /// No room for it.
    Full(Full),
}

/// The result of a removal for one dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    Done,
    NotFound,
    /// Currently being shipped.
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
