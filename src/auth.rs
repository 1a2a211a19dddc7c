//! Proves who calls: secrets in files, and whose they are. Used for the clients of the ingest listener, and for any
//! other listener that names its callers.
//!
//! Holds: a secret is never shown, logged or part of an error. It is compared in constant time. Every line of a file is
//! a secret, so that an old and a new one both work while callers change over.

pub mod secret;

pub use secret::{Secret, Tokens};
