//! The form of a dead letter.

use std::collections::BTreeMap;

/// One SQS message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The event's id: the batch entry's id, and the deduplication id on a FIFO queue.
    pub id: crate::event::EventId,
    pub body: String,
    pub attributes: BTreeMap<String, Attribute>,
    /// `AWSTraceHeader`, SQS's only system attribute.
    pub trace_header: Option<String>,
}

/// A message attribute of SQS type String or Number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    String(String),
    Number(i64),
}
