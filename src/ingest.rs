//! Stage 1: from the wire to the outbox.
//!
//! In: HTTP requests. Out: events, appended to the outbox; 202 once they are durable (G1).
//! Holds: what is refused is not stored; what is answered with 202 is.
//! Limits: body, header, connection, time and memory limits of [`Settings`].
//! Fails: every refusal has Lambda's own error shape.

use std::time::Duration;

pub mod lambda_api;

pub mod name;

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

pub mod server;

/// What the door allows.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connections at once; further ones wait in the listen queue.
    pub connections_max: usize,
    /// Bytes of requests in memory at once, counted as [`admission`] does; beyond them a request is refused with 429. At
    /// least [`admission::REQUEST_BYTES_MIN`], or the largest payloads never fit.
    pub request_bytes_max: u64,
    /// Header lines of a request.
    pub headers_max: usize,
    /// Bytes of request line and headers together.
    pub header_bytes_max: usize,
    /// From the first byte of a request to the end of its headers; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
    /// The daemon's own region: an ARN of this region means the same function as its bare name.
    pub region: Option<String>,
    /// The daemon's own account, likewise.
    pub account_id: Option<String>,
}
