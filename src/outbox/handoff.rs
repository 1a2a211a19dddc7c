//! The types of the calls that move events to another store: [`Outbox::adopt`](super::Outbox::adopt), and the remembered
//! keys that follow the events. docs/adr/0027 has the reasons.
//!
//! What every engine must keep:
//!
//! - An adopted event keeps its id, payload, times and history. Its state follows from them ([`place_of`]).
//! - The store remembers the id of an adopted event as long as it stores the event, and for `dedupe_window` from the
//!   adoption. Meanwhile the same id is a [`Adopted::Repeat`].
//! - It forgets the id when it hands the event on ([`Settlement::HandedOver`](super::Settlement)), or when an operator
//!   removes the event with [`Keys::Forget`](super::operator::Keys). Otherwise an event that comes back would be answered
//!   as a repeat, and removed by its sender, while nobody has it.
//! - An event of a function that is paused where it comes from pauses the function here, in the same commit, so that it is
//!   never attempted before an operator resumes the function. A dead letter does not: a pause concerns attempts only.
//! - An event's key is claimed only if no other event has it. A known key never costs an event that differs, that was
//!   redriven, or that is a dead letter. Nor does a key whose event is no longer stored here: that event may have been
//!   handed on and left to this one, so that nobody would have either.

use std::time::Duration;

use super::{Full, History, Place};
use crate::event::{Event, EventId};

/// An event that another store hands over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    pub event: Event,
    pub history: History,
    /// Whether the function is paused where the event comes from.
    pub paused: bool,
}

/// The result of an adoption for one event. Only [`Adopted::Full`] leaves the event with its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted {
    /// It is on stable storage here.
    Stored,
    /// This id is here, or was here and has left: delivered, shipped, or removed by an operator. Nothing changed.
    Repeat,
    /// Another event, which is stored here, has its key and the same payload, so this one repeats it. Nothing changed.
    KnownKey { first: EventId },
    /// No room for it.
    Full(Full),
}

/// A remembered key of an event that is no longer stored. It has no user data, only digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RememberedKey {
    /// The kind of the key, and 16 bytes of the SHA-256 of its scope and value. The same in every store.
    pub key: [u8; RememberedKey::BYTES],
    pub first: EventId,
    /// The first 16 bytes of the payload's SHA-256.
    pub fingerprint: [u8; 16],
    /// What is left of its window.
    pub left: Duration,
}

impl RememberedKey {
    /// Bytes of a key.
    pub const BYTES: usize = 17;
}

/// A page of remembered keys.
#[derive(Debug, Clone, Default)]
pub struct RememberedPage {
    pub keys: Vec<RememberedKey>,
    /// Where the next page begins. `None` at the end. A page may be empty and still have a next one.
    pub next: Option<[u8; RememberedKey::BYTES]>,
}

/// The most remembered keys that a page visits, and the most that one call learns.
pub const REMEMBERED_MAX: usize = 1_000;

/// The state of an event that is not leased, by what is known of it.
pub fn place_of(event: &Event, history: &History) -> Place {
    let History { attempts, calls, throttles, setbacks, due: _, last, burial } = history;
    if burial.is_some() {
        Place::Buried
    } else if event.deliver_at.is_some_and(|at| at > event.accepted_at) {
        Place::Scheduled
    } else if [attempts, calls, throttles, setbacks].into_iter().any(|count| *count > 0) || last.is_some() {
        Place::Waiting
    } else {
        Place::Ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMillis};
    use crate::event::testing::event;
    use crate::outbox::{Burial, BuryReason};

    #[test]
    fn the_state_of_an_event_follows_from_its_times_and_its_history() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let ready = event(&clock, "orders");
        let scheduled = Event { deliver_at: Some(ready.accepted_at.plus(Duration::from_secs(1))), ..ready.clone() };
        let past = Event { deliver_at: Some(ready.accepted_at), ..ready.clone() };
        let tried = History { setbacks: 1, ..History::default() };
        let burial = Some(Burial { reason: BuryReason::Refused, at: UnixMillis(1), unshippable: None });
        for (event, history, place) in [
            (&ready, History::default(), Place::Ready),
            (&past, History::default(), Place::Ready),
            (&ready, tried.clone(), Place::Waiting),
            (&scheduled, History::default(), Place::Scheduled),
            (&scheduled, tried, Place::Scheduled),
            (&scheduled, History { burial, ..History::default() }, Place::Buried),
        ] {
            assert_eq!(place_of(event, &history), place);
        }
    }
}
