//! The embedded engine: the outbox on the local disk. A journal takes every commit, an index (sled) finds it again.
//!
//! `writer` has the one thread that owns the store and the handle by which everybody asks it; `engine` the rules over any
//! key-value store (`kv`); `journaled` the store itself; `store` the state directory.

pub mod writer;

pub mod engine;

pub mod kv;

pub mod keys;

pub mod record;

pub mod journaled;

pub mod journal;

pub mod sled;

pub mod store;

pub mod repair;

pub mod memory;
