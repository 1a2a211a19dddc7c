//! Stage 4: sends dead letters to SQS, and brings them back.
//!
//! In: buried events leased from the outbox; messages of a queue. Out: messages through [`Ship`], settlements to the
//! outbox; letters to the destination of a redrive.
//! Holds: an event leaves the store only after SQS confirmed its message. A message leaves its queue only after the
//! store has its event (G2).
//! Limits: ten messages and 1 MiB in a batch (SQS `SendMessageBatch`), or less if the queue's own limit is lower.
//! Fails: the dead letters of a queue that is down, denied or missing wait in the store. Other queues go on.

use std::future::Future;
use std::time::Duration;

pub mod message;

pub mod destination;

pub mod pack;

pub mod ship;

pub mod letter;

pub mod admit;

pub mod export;

pub mod redrive;

pub use ship::DeadLetters;

/// Sends dead letters: to SQS, or to a fake in the simulation.
pub trait Ship: Clone + Send + Sync + 'static {
    /// Sends at most ten messages. Returns one answer for each message, in order.
    fn ship(&self, queue_url: &str, batch: Vec<message::Message>) -> impl Future<Output = Vec<Shipment>> + Send;

    /// Reads the settings of a queue.
    fn facts(&self, _queue_url: &str) -> impl Future<Output = Result<QueueFacts, Trouble>> + Send {
        std::future::ready(Ok(QueueFacts::default()))
    }
}

/// The settings of a queue, from `GetQueueAttributes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFacts {
    /// The largest message, in bytes: 1,024 to 1,048,576.
    pub message_bytes_max: usize,
    /// The age at which SQS deletes a message, read or not: 60 s to 14 days. SQS's default is 4 days.
    pub retention: Duration,
    /// The approximate number of messages in the queue.
    pub messages: u64,
}

impl Default for QueueFacts {
    /// The largest values that SQS allows.
    fn default() -> Self {
        let retention = Duration::from_secs(14 * 24 * 3_600);
        Self { message_bytes_max: message::MESSAGE_BYTES_MAX, retention, messages: 0 }
    }
}

/// Why a queue, or the destination of a redrive, did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Trouble {
    /// The service's error code, or our word for a transport failure.
    pub code: String,
    /// What failed, and what to do about it if we know.
    pub message: String,
    /// Whether it may pass by itself. Otherwise somebody must repair something.
    pub transient: bool,
}

/// SQS's answer for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shipment {
    /// SQS has the message, under this id.
    Confirmed { message_id: String },
    /// SQS will not accept this message as it is (too large, characters, attributes). It stays in the store.
    Refused { code: String, message: String },
    /// Retry later: throttled, no connection, or the queue is missing, denied or broken. `message` says what to do.
    Later { code: String, message: String },
}

/// Where dead letters go.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The queue for functions without one of their own. `None` keeps their dead letters in the store.
    pub queue_url: Option<String>,
    /// Queues by function name pattern. The first match in file order wins.
    pub functions: Vec<(String, String)>,
    /// The first wait after a failed shipment. It doubles with each failure, with full jitter, ...
    pub backoff_base: Duration,
    /// ... up to this.
    pub backoff_cap: Duration,
    /// The retention below which a queue gets a warning.
    pub retention_min: Duration,
    pub format: Format,
    pub oversize: Oversize,
    /// The most redrives of one event.
    pub redrives_max: u32,
}

/// What to do with an event that is too large for its queue, together with its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Oversize {
    /// Keep it in the store.
    #[default]
    Keep,
    /// Send it compressed, if it fits then.
    Compress,
}

/// The content of a message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The payload, as on Lambda's own dead-letter queues.
    DeadLetterQueue,
    /// The record that Lambda sends to an on-failure destination, with the payload in it.
    Destination,
}
