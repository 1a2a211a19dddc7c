//! Stage 4: dead letters go out to SQS.
//!
//! In: buried events leased from the outbox. Out: messages through [`Ship`], settlements to the outbox.
//! Holds: an event leaves the store only after SQS confirmed its message (G2).
//! Limits: ten messages and 1 MiB a batch (SQS `SendMessageBatch`).
//! Fails: a queue that is down, denied or missing keeps its letters waiting here; nothing else stops.

use std::future::Future;
use std::time::Duration;

pub mod message;

pub mod ship;

pub use ship::DeadLetters;

/// What takes dead letters: SQS, or a fake in the simulation.
pub trait Ship: Clone + Send + Sync + 'static {
    /// Sends at most ten messages; one answer per message, in order.
    fn ship(&self, queue_url: &str, batch: Vec<message::Message>) -> impl Future<Output = Vec<Shipment>> + Send;
}

/// What SQS said of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shipment {
    /// SQS has it, under this message id.
    Confirmed { message_id: String },
    /// SQS will not take this message as it is (too large, characters, attributes): it stays, listed.
    Refused { code: String, message: String },
    /// Try later: throttled, no connection, or the queue is missing, denied or broken. Says in words what to do.
    Later { code: String, message: String },
}

/// Where dead letters go.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The queue where no function has its own; none keeps dead letters in the store.
    pub queue_url: Option<String>,
    /// Queues by function name pattern; the first match in file order counts.
    pub functions: Vec<(String, String)>,
    /// Waits after a failed shipment: from this, doubling, with full jitter, ...
    pub backoff_base: Duration,
    /// ... to this.
    pub backoff_cap: Duration,
}
