//! What settlements mean for their events, for whoever asks later. Pure.

use crate::clock::UnixMillis;
use crate::dispatch::verdict::Outcome;
use crate::dispatch::{Mode, Reply};
use crate::outbox::{Leased, Settlement};
use crate::past::{self, End, How, Next, Notes};

/// The word for an event that was buried without an attempt because of its age.
const EXPIRED: &str = "expired";

/// Adds what an attempt and its settlement mean. A release changes nothing, so it adds nothing.
pub(super) fn add(
    notes: &mut Notes,
    leased: &Leased,
    mode: Mode,
    outcome: &Outcome,
    reply: &Reply,
    settlement: &Settlement,
    now: UnixMillis,
) {
    let next = match settlement {
        Settlement::Delivered | Settlement::Shipped => Next::Done,
        Settlement::RetryAt(history) => Next::Retry { due: history.due },
        Settlement::Bury(_) => Next::Buried,
        Settlement::Release | Settlement::HandedOver => return,
    };
    let (status, code, request_id) = match reply {
        Reply::Answer(answer) => {
            let code = answer.code.as_ref().or(answer.function_error.as_ref());
            (answer.status, code.map(|code| past::cut(code)).unwrap_or_default(), answer.request_id.as_deref())
        }
        Reply::NotSent(failure) | Reply::Lost(failure) => (0, failure.kind.as_str().to_owned(), None),
    };
    let request_id = request_id.map(past::cut);
    let (id, function) = (leased.event.id, leased.event.function.name.clone());
    if next == Next::Done {
        let confirmed = match mode {
            Mode::Event => false,
            Mode::Confirm { .. } => true,
        };
        let how = How::Delivered { confirmed, status, request_id: request_id.clone() };
        notes.ends.push(End::of(id, function.clone(), now, how, &leased.history));
    }
    let attempts = leased.history.calls.saturating_add(1);
    let word = outcome.as_str();
    notes.outcomes.push(past::Outcome { at: now, id, function, word, status, code, request_id, attempts, next });
}

/// What is noted of an event that is buried because of its age.
pub(super) fn expired(leased: &Leased, now: UnixMillis) -> past::Outcome {
    past::Outcome {
        at: now,
        id: leased.event.id,
        function: leased.event.function.name.clone(),
        word: EXPIRED,
        status: 0,
        code: String::new(),
        request_id: None,
        attempts: leased.history.calls,
        next: Next::Buried,
    }
}
