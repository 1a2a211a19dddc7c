//! What proves who calls: secrets in files, and whose they are. The ingest listener's clients use it; whatever else names its
//! callers uses the same.
//!
//! Holds: a secret is never shown, logged or part of an error. It is compared in constant time. Every line of a file is a secret, so
//! that an old and a new one are good at the same time while callers move from one to the other.

pub mod secret;

pub use secret::{Secret, Tokens};
