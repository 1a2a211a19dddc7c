//! Where events are handed over to: the contract between the sender and each kind of target.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::envelope::Envelope;
use crate::outbox::handoff::RememberedKey;

/// An event on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    pub envelope: Envelope,
    pub payload: Bytes,
}

/// What a target says about one event of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is on stable storage there. The event may be settled.
    Taken(Taken),
    /// There is no room now. Another target may have some.
    Busy(String),
    /// This target never takes it, for example because it is too large.
    Refused(String),
}

/// Why the target has an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Adopted,
    /// It was handed over before.
    Repeat,
    /// The target has accepted another event with the same key and payload.
    KnownKey,
}

impl Taken {
    /// The word in metrics and in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adopted => "adopted",
            Self::Repeat => "repeat",
            Self::KnownKey => "known-key",
        }
    }
}

/// Why a whole batch has no answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The target has nothing of it and takes nothing now: it cannot be reached, is full, or is draining itself. Ask again
    /// after `retry_after`.
    NotNow { why: String, retry_after: Duration },
    /// The target takes nothing from this sender: it is this daemon itself, belongs to another region or account, does not
    /// know hand-offs, or refuses the sender.
    Never { why: String },
    /// No answer came. The target may have the batch, so offer it to the same target again.
    Unanswered { why: String },
}

/// The sizes that suit a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The most events of a batch.
    pub events_max: usize,
    /// The most payload bytes of a batch. A single event may have more.
    pub bytes_max: u64,
    /// The most batches in flight.
    pub batches_max: usize,
}

/// A place that events are handed over to.
pub trait Target: Send + Sync {
    /// Its address, for people. It has no secret.
    fn name(&self) -> &str;

    fn sizes(&self) -> Sizes;

    /// Sends a batch. Returns an answer for each event, in order. Must return within some seconds, also if the target hangs.
    fn send<'a>(&'a self, batch: &'a [Parcel]) -> BoxFuture<'a, Result<Vec<Answer>, Trouble>>;

    /// Sends remembered keys, at most [`REMEMBERED_MAX`](crate::outbox::handoff::REMEMBERED_MAX). `None` if this kind of
    /// target keeps none.
    fn send_keys<'a>(&'a self, keys: &'a [RememberedKey]) -> Option<BoxFuture<'a, Result<(), Trouble>>>;
}
