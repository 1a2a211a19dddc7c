//! The hand-off queue: SQS holds the events for which no other sendoff is to be had, and a sendoff takes them from there.
//!
//! In: parcels of the sender; messages of the queue. Out: messages through [`Ship`](crate::deadletter::Ship); events to
//! the outbox.
//! Holds: the sender settles an event only after SQS confirmed its message. The receiver deletes a message only after the
//! outbox has its event on stable storage (G2). A message that is received twice is a repeat, by the event's id.
//! Limits: [`send::CALLS_MAX`] calls of a batch and [`receive::RECEIVES_MAX`] receives at once, of ten messages each.
//! Fails: a queue that is down is asked again, more slowly. What is foreign or broken stays on the queue and is named.

pub mod message;

pub mod receive;

pub mod send;

pub use receive::Receive;
pub use send::ToQueue;
