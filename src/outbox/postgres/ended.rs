//! What became of events that have left the store: kept for all daemons, beside what the contract asks of an engine.
//!
//! Holds: a failure here is told to the caller only. The store goes on.

use std::time::Duration;

use super::base::Trouble;
use super::handle::Handle;
use crate::event::EventId;

impl Handle {
    /// Keeps what became of events, each as bytes that only the caller understands, and each event at most once. Not synced.
    pub async fn keep_ended(&self, ends: &[(EventId, Vec<u8>)]) -> Result<(), String> {
        self.shared.read.keep_ended(ends).await.map_err(said)
    }

    /// What is kept of an event.
    pub async fn find_ended(&self, id: EventId) -> Result<Option<Vec<u8>>, String> {
        self.shared.read.find_ended(id).await.map_err(said)
    }

    /// Forgets what is older than `keep`, and the older half of what takes more than `bytes_max`, a while later.
    pub async fn forget_ended(&self, keep: Duration, bytes_max: u64) -> Result<(), String> {
        let age_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        self.shared.read.turn_ended(age_ms, bytes_max / 2).await.map_err(said)
    }
}

fn said(trouble: Trouble) -> String {
    trouble.to_string()
}
