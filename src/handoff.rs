//! Hands events over to another sendoff, or to a queue, when the disk goes away (docs/handoff.md, docs/adr/0027).
//!
//! In: events at rest in the outbox. Out: batches to a target, settled once the target has them on stable storage (G2).
//! Holds: nothing is settled before the target's answer. What no target takes stays in the store.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

pub mod envelope;

pub mod target;

pub mod protocol;

pub mod peer;

pub mod queue;

pub mod send;

/// How long before the end of the time the attempts in flight are cut off, so that their events can follow.
pub const RESERVE: Duration = Duration::from_secs(5);

/// The settings of a hand-off.
#[derive(Debug, Clone)]
pub struct Settings {
    /// In the order in which they are tried. Empty: events are never handed over.
    pub to: Vec<Address>,
    /// Whether every stop hands over.
    pub on_stop: bool,
    /// How long a stop with a hand-off may take, from the signal.
    pub within: Duration,
    /// Whether remembered keys of events that have left follow.
    pub keys: bool,
    /// Whether callers that are no known clients may hand over to this daemon.
    pub receive: bool,
    /// The queue to take events from, by its URL or ARN.
    pub receive_queue: Option<String>,
    /// The file with the token for other sendoffs.
    pub token_file: Option<PathBuf>,
    /// The file with the authorities that other sendoffs' certificates must come from. `None` means the machine's.
    pub ca: Option<PathBuf>,
}

/// A target as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Another sendoff: a URL without a path.
    Peer(Uri),
    /// An SQS queue, by its URL or ARN.
    Queue(String),
}
