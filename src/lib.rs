//! sendoff: a durable outbox in front of AWS Lambda's Event invocations.
//!
//! The modules are declared in the order in which an event meets them. Read from `ingest` to `deadletter` to follow
//! one event from the listener to the function. The stages never call each other: each reads from and writes to
//! `outbox`. ARCHITECTURE.md describes the path of an event and which module may import which.

pub mod event;

pub mod clock;

pub mod hop;

pub mod backoff;

pub mod metrics;

pub mod trace;

pub mod past;

pub mod ingest;

pub mod outbox;

pub mod dispatch;

pub mod deadletter;

pub mod handoff;

pub mod aws;

pub mod admin;

pub mod follow;

pub mod auth;

pub mod http;

pub mod https;

pub mod config;

pub mod shutdown;

pub mod telemetry;

pub mod visible;

pub mod readable;

pub mod plural;

pub mod activation;

pub mod notify;

pub mod reload;

pub mod daemon;

pub mod cli;

pub mod standin;

// In the library, so that `main.rs` is one line and every test links the same code.
pub use mimalloc::MiMalloc;
