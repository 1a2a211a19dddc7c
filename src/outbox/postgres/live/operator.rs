//! Operators' calls.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::Link;
use super::calls::{Columns, burial, pairs, place_number, remembered};
use super::rows::{count, digest, get, id, ms, place_of, signed, stored, time, uuid};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::postgres::base::{Remembered, Room, Stored, Trouble, Verdict};
use crate::outbox::postgres::history;
use crate::outbox::{History, Place};

/// An event in a list.
#[derive(Debug, Clone)]
pub(in crate::outbox::postgres) struct Line {
    pub(in crate::outbox::postgres) lane: i64,
    pub(in crate::outbox::postgres) id: EventId,
    /// `None` is no event, but says where the reading stopped.
    pub(in crate::outbox::postgres) place: Option<Place>,
    pub(in crate::outbox::postgres) due: Option<UnixMillis>,
    pub(in crate::outbox::postgres) history: Option<Vec<u8>>,
}

impl Link {
    pub(in crate::outbox::postgres) async fn find(
        &self,
        event: EventId,
        payload: bool,
    ) -> Result<Option<(FunctionName, Stored)>, Trouble> {
        let sql = "SELECT function, payload_bytes, lane, place, id, due, history, bytes, redrives, key_source, deliver_at, \
                   expires_at, key_value, address, qualifier, region, trace, context, tenant, durable, payload \
                   FROM sendoff.find($1, $2)";
        let rows = self.query(sql, &[&uuid(event), &payload]).await?;
        rows.first().map(|row| Ok((super::rows::function(row)?, stored(row)?))).transpose()
    }

    /// The names of all lanes that are shown, in order.
    pub(in crate::outbox::postgres) async fn functions(&self) -> Result<Vec<(i64, FunctionName)>, Trouble> {
        let rows = self.query("SELECT id, function FROM sendoff.lane WHERE NOT retired ORDER BY function", &[]).await?;
        rows.iter().map(|row| Ok((get(row, "id")?, super::rows::function(row)?))).collect()
    }

    pub(in crate::outbox::postgres) async fn list(
        &self,
        lanes: &[i64],
        after: Option<EventId>,
        wanted: Option<Place>,
        max: usize,
        reads_max: usize,
    ) -> Result<Vec<Line>, Trouble> {
        let rows = self
            .query(
                "SELECT lane, id, place, due, history FROM sendoff.list($1, $2, $3, $4, $5)",
                &[&lanes, &after.map(uuid), &wanted.map(place_number), &count(max), &count(reads_max)],
            )
            .await?;
        let listed = |row: &Row| {
            Ok(Line {
                lane: get(row, "lane")?,
                id: id(get(row, "id")?),
                place: place_of(get(row, "place")?),
                due: time(row, "due")?,
                history: get(row, "history")?,
            })
        };
        rows.iter().map(listed).collect()
    }

    pub(in crate::outbox::postgres) async fn buried(
        &self,
        lanes: &[i64],
        after: Option<EventId>,
        max: usize,
        bytes_max: usize,
        payloads: bool,
    ) -> Result<Vec<Stored>, Trouble> {
        let bytes_max = signed(bytes_max as u64);
        let sql = "SELECT payload_bytes, lane, place, id, due, history, bytes, redrives, key_source, deliver_at, expires_at, \
                   key_value, address, qualifier, region, trace, context, tenant, durable, payload \
                   FROM sendoff.buried($1, $2, $3, $4, $5)";
        let rows = self.query(sql, &[&lanes, &after.map(uuid), &count(max), &bytes_max, &payloads]).await?;
        rows.iter().map(stored).collect()
    }

    /// Events without their payloads, wherever they are. Not in order.
    pub(in crate::outbox::postgres) async fn heads(&self, events: &[(i64, EventId)]) -> Result<Vec<Stored>, Trouble> {
        let (lanes, ids) = pairs(events);
        let sql = "SELECT payload_bytes, lane, place, id, due, history, bytes, redrives, key_source, deliver_at, expires_at, \
                   key_value, address, qualifier, region, trace, context, tenant, durable FROM sendoff.heads($1, $2)";
        let rows = self.query(sql, &[&lanes, &ids]).await?;
        rows.iter().map(stored).collect()
    }

    /// Removes events of own lanes, each only if it is still in the given place. Returns those that were there.
    pub(in crate::outbox::postgres) async fn remove(
        &self,
        member: i64,
        events: &[(i64, EventId, Place)],
    ) -> Result<Vec<EventId>, Trouble> {
        let lanes: Vec<i64> = events.iter().map(|(lane, ..)| *lane).collect();
        let ids: Vec<Uuid> = events.iter().map(|(_, id, _)| uuid(*id)).collect();
        let places: Vec<i16> = events.iter().map(|(.., place)| place_number(*place)).collect();
        let rows =
            self.query("SELECT id FROM sendoff.remove($1, $2, $3, $4)", &[&member, &lanes, &ids, &places]).await?;
        rows.iter().map(|row| Ok(id(get(row, "id")?))).collect()
    }

    /// Makes an event that waits due now. Returns false if it no longer waits.
    pub(in crate::outbox::postgres) async fn attempt_now(
        &self,
        member: i64,
        lane: i64,
        event: EventId,
        now: UnixMillis,
        history: Option<&[u8]>,
    ) -> Result<bool, Trouble> {
        let sql = "SELECT sendoff.attempt_now($1, $2, $3, $4, $5) AS done";
        get(&self.query_one(sql, &[&member, &lane, &uuid(event), &ms(now), &history]).await?, "done")
    }

    /// Makes events of dead letters, under new ids. Returns whether it was there.
    pub(in crate::outbox::postgres) async fn revive(
        &self,
        member: i64,
        lane: i64,
        event: EventId,
        new: EventId,
    ) -> Result<bool, Trouble> {
        let sql = "SELECT sendoff.revive($1, $2, $3, $4) AS revived";
        let row = self.query_one(sql, &[&member, &vec![lane], &vec![uuid(event)], &vec![uuid(new)]]).await?;
        Ok(!get::<Vec<Uuid>>(&row, "revived")?.is_empty())
    }

    /// What is remembered of a key that a client gave: its event, and until when.
    pub(in crate::outbox::postgres) async fn known_key(
        &self,
        key: Remembered,
    ) -> Result<Option<(EventId, UnixMillis)>, Trouble> {
        let sql = "SELECT k.first, k.until FROM sendoff.control c, sendoff._known(c, false, $1) k \
                   WHERE k.first IS NOT NULL AND (k.until > sendoff.now_ms() OR sendoff._stored(k.first))";
        let rows = self.query(sql, &[&digest(key.digest)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some((id(get(row, "first")?), time(row, "until")?.unwrap_or_default())))
    }

    pub(in crate::outbox::postgres) async fn forget(&self, keys: &[(Remembered, EventId)]) -> Result<(), Trouble> {
        let (families, digests, firsts) = remembered(keys);
        self.query("SELECT sendoff.forget($1, $2, $3)", &[&families, &digests, &firsts]).await.map(drop)
    }

    /// The key of an event that came back becomes its own, unless it has become another's.
    pub(in crate::outbox::postgres) async fn remember_again(
        &self,
        keys: &[(Remembered, EventId, [u8; 16])],
    ) -> Result<(), Trouble> {
        let of: Vec<_> = keys.iter().map(|(key, id, _)| (*key, *id)).collect();
        let (families, digests, ids) = remembered(&of);
        let prints: Vec<Uuid> = keys.iter().map(|(.., print)| digest(*print)).collect();
        let sql = "SELECT sendoff.remember_again($1, $2, $3, $4)";
        self.query(sql, &[&families, &digests, &ids, &prints]).await.map(drop)
    }

    /// Stores a dead letter under its own id. `None` if it was stored.
    pub(in crate::outbox::postgres) async fn import(
        &self,
        member: i64,
        event: &Event,
        history: &History,
        room: Room,
    ) -> Result<Option<Verdict>, Trouble> {
        let c = Columns::of(std::iter::once(event));
        let (room_events, room_bytes) = (signed(room.events), signed(room.bytes));
        let functions_max = i32::try_from(room.functions).unwrap_or(i32::MAX);
        let (at, reason) = burial(history);
        let (due, encoded) = (vec![ms(history.due)], vec![history::encode(history)]);
        let (at, reason) = (vec![at], vec![reason]);
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&member, &room_events, &room_bytes, &functions_max];
        params.extend(c.params());
        params.extend([&due as &(dyn ToSql + Sync), &at, &reason, &encoded]);
        let rows = self
            .query(
                "SELECT ord, verdict FROM sendoff.import($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
                 $17, $18, $19, $20, $21, $22, $23, $24, $25)",
                &params,
            )
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(match get::<i16>(row, "verdict")? {
            1 => Verdict::Repeat { first: event.id },
            3 => Verdict::NoBytes,
            4 => Verdict::NoEvents,
            5 => Verdict::NoFunctions,
            other => return Err(Trouble::Poisoned(format!("import answered {other}, which this build does not know"))),
        }))
    }
}
