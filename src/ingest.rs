//! Stage 1: accepts events over HTTP and stores them in the outbox.
//!
//! In: HTTP requests. Out: events, appended to the outbox; 202 once they are durable (G1).
//! Holds: a refused event is not stored. An event answered with 202 is stored.
//! Limits: sizes of bodies and headers, connections, times and memory, see [`Settings`].
//! Fails: with Lambda's own error shape.

use std::time::Duration;

use crate::event::name::Home;

pub mod lambda_api;

pub mod exact;

pub mod key;

pub mod rules;

pub mod refusal;

pub mod admission;

pub mod body;

pub mod content;

pub mod events_api;

pub mod openapi;

pub mod pattern;

pub mod passthrough;

pub mod sigv4;

pub mod client;

pub mod door;

/// The limits of the ingest listener, and the names that count as the daemon's own.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The most concurrent connections. Further ones wait in the listen queue.
    pub connections_max: usize,
    /// The most memory for requests, in bytes as [`admission`] counts them. Beyond it a request is refused with 429. At
    /// least [`admission::REQUEST_BYTES_MIN`], so that the largest payload fits.
    pub request_bytes_max: u64,
    /// The most header lines in a request.
    pub headers_max: usize,
    /// The most bytes of request line and headers together.
    pub header_bytes_max: usize,
    /// The time from the first byte of a request to the end of its headers. Also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// The time from the end of the headers to the end of the body.
    pub body_timeout: Duration,
    pub home: Home,
}
