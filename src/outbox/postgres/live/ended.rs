//! What became of events that have left the store.

use super::Link;
use super::rows::{get, signed, uuid};
use crate::event::EventId;
use crate::outbox::postgres::base::Trouble;

impl Link {
    /// Keeps records, each of another event.
    pub(in crate::outbox::postgres) async fn keep_ended(&self, ends: &[(EventId, Vec<u8>)]) -> Result<(), Trouble> {
        let ids: Vec<_> = ends.iter().map(|(id, _)| uuid(*id)).collect();
        let records: Vec<_> = ends.iter().map(|(_, record)| record.as_slice()).collect();
        self.query("SELECT sendoff.keep_ended($1, $2)", &[&ids, &records]).await.map(drop)
    }

    pub(in crate::outbox::postgres) async fn find_ended(&self, id: EventId) -> Result<Option<Vec<u8>>, Trouble> {
        let row = self.query_one("SELECT sendoff.find_ended($1) AS record", &[&uuid(id)]).await?;
        get(&row, "record")
    }

    /// Begins a new generation if the current one is of this age or size.
    pub(in crate::outbox::postgres) async fn turn_ended(&self, age_ms: u64, bytes: u64) -> Result<(), Trouble> {
        let sql = "SELECT sendoff.turn_ended($1, $2)";
        self.query(sql, &[&signed(age_ms), &signed(bytes)]).await.map(drop)
    }
}
