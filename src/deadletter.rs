//! Stage 4: dead letters go out to SQS, and come back.
//!
//! In: buried events leased from the outbox; messages of a queue. Out: messages through [`Ship`], settlements to the
//! outbox; letters to the daemon's redrive door.
//! Holds: an event leaves the store only after SQS confirmed its message, and a message leaves its queue only after the
//! store has its event (G2).
//! Limits: ten messages and 1 MiB a batch (SQS `SendMessageBatch`), or less if the queue is set lower.
//! Fails: a queue that is down, denied or missing keeps its letters waiting here; nothing else stops.

use std::future::Future;
use std::time::Duration;

pub mod message;

pub mod destination;

pub mod pack;

pub mod ship;

pub mod letter;

pub mod redrive;

pub use ship::DeadLetters;

/// What takes dead letters: SQS, or a fake in the simulation.
pub trait Ship: Clone + Send + Sync + 'static {
    /// Sends at most ten messages; one answer per message, in order.
    fn ship(&self, queue_url: &str, batch: Vec<message::Message>) -> impl Future<Output = Vec<Shipment>> + Send;

    /// What a queue is set to.
    fn facts(&self, _queue_url: &str) -> impl Future<Output = Result<QueueFacts, Trouble>> + Send {
        std::future::ready(Ok(QueueFacts::default()))
    }
}

/// What a queue is set to, as `GetQueueAttributes` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFacts {
    /// The largest message, in bytes: 1,024 to 1,048,576.
    pub message_bytes_max: usize,
    /// After this a message is deleted, read or not: 60 s to 14 days, SQS's default is 4 days.
    pub retention: Duration,
    /// Messages in it, about.
    pub messages: u64,
}

impl Default for QueueFacts {
    /// The largest that SQS allows.
    fn default() -> Self {
        let retention = Duration::from_secs(14 * 24 * 3_600);
        Self { message_bytes_max: message::MESSAGE_BYTES_MAX, retention, messages: 0 }
    }
}

/// Why a queue, or the door of a redrive, did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Trouble {
    /// The service's error code, or our word for a failure of transport.
    pub code: String,
    /// In words, with what to do about it where we know.
    pub message: String,
    /// It may pass by itself; otherwise somebody must repair something.
    pub transient: bool,
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
    /// A queue that keeps messages for less than this is worth a warning.
    pub retention_min: Duration,
    pub format: Format,
    pub oversize: Oversize,
    /// How often an event may come back from the dead.
    pub redrives_max: u32,
}

/// What becomes of an event that does not fit its queue with its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Oversize {
    /// It stays in the store, listed and counted.
    #[default]
    Keep,
    /// It goes compressed, if it fits then.
    Compress,
}

/// The form of a message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The payload as it is, as on Lambda's own dead-letter queues.
    DeadLetterQueue,
    /// Lambda's record for destinations on failure, with the payload in it.
    Destination,
}
