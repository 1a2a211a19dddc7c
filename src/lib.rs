//! sendoff: a durable outbox in front of AWS Lambda's Event invocations.
//!
//! The modules stand in the order in which an event meets them: read `ingest` to `deadletter` and you
//! have followed one event from door to function. The stages never call each other; they meet in
//! `outbox`. ARCHITECTURE.md has the walk, and who may know whom.

pub mod event;

pub mod clock;

pub mod hop;

pub mod backoff;

pub mod metrics;

pub mod trace;

pub mod ingest;

pub mod outbox;

pub mod dispatch;

pub mod deadletter;

pub mod aws;

pub mod admin;

pub mod http;

pub mod config;

pub mod shutdown;

pub mod telemetry;

pub mod visible;

pub mod activation;

pub mod notify;

pub mod reload;

pub mod daemon;

pub mod cli;

pub mod standin;

// So that a binary is the library and one file, however it is linked.
pub use mimalloc::MiMalloc;
