//! Rows and parameters: how the engine's types look to the client.

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;
use uuid::Uuid;

use crate::clock::UnixMillis;
use crate::event::{Carried, EventId, FunctionName, KeySource};
use crate::outbox::postgres::base::{LaneRow, Position, Stored, Trouble};
use crate::outbox::{Count, Place, Spent};

/// A column by its name. A row without it is of another version of the schema.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, Trouble> {
    row.try_get(name).map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Trouble::Poisoned(format!("the database answers what this build does not know ({error}{source})"))
    })
}

pub(super) fn uuid(id: EventId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

pub(super) fn digest(bytes: [u8; 16]) -> Uuid {
    Uuid::from_bytes(bytes)
}

pub(super) fn id(uuid: Uuid) -> EventId {
    EventId::from_bytes(*uuid.as_bytes())
}

/// The times that do not fit are "never".
pub(super) fn ms(time: UnixMillis) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub(super) fn number(row: &Row, name: &str) -> Result<u64, Trouble> {
    Ok(get::<Option<i64>>(row, name)?.map_or(0, |number| u64::try_from(number).unwrap_or(0)))
}

pub(super) fn small(row: &Row, name: &str) -> Result<u64, Trouble> {
    Ok(get::<Option<i32>>(row, name)?.map_or(0, |number| u64::try_from(number).unwrap_or(0)))
}

pub(super) fn time(row: &Row, name: &str) -> Result<Option<UnixMillis>, Trouble> {
    let time = get::<Option<i64>>(row, name)?;
    Ok(time.map(|time| if time == i64::MAX { UnixMillis::MAX } else { UnixMillis(u64::try_from(time).unwrap_or(0)) }))
}

pub(super) fn position(row: &Row) -> Result<Position, Trouble> {
    Ok(Position {
        xmax: get(row, "xmax")?,
        open: get(row, "open")?,
        xmin: get(row, "xmin")?,
        incarnation: get(row, "incarnation")?,
    })
}

pub(super) fn place_of(number: i16) -> Option<Place> {
    usize::try_from(number).ok().and_then(|nth| Place::ALL.get(nth).copied())
}

pub(super) fn place(row: &Row) -> Result<Place, Trouble> {
    let number: i16 = get(row, "place")?;
    place_of(number)
        .ok_or_else(|| Trouble::Poisoned(format!("the database has an event in an unknown place ({number})")))
}

pub(super) fn key_source(number: i16) -> Result<KeySource, Trouble> {
    let known = usize::try_from(number).ok().and_then(|nth| KeySource::ALL.get(nth).copied());
    known.ok_or_else(|| Trouble::Poisoned(format!("the database has a key of an unknown source ({number})")))
}

pub(super) fn source_number(source: KeySource) -> i16 {
    KeySource::ALL.iter().position(|known| *known == source).and_then(|nth| i16::try_from(nth).ok()).unwrap_or_default()
}

/// The columns of `lease`. Where the payload was not asked for, `payload_bytes` tells its size.
pub(super) fn stored(row: &Row) -> Result<Stored, Trouble> {
    let payload = if has(row, "payload") { get::<Option<&[u8]>>(row, "payload")? } else { None };
    let payload_bytes = match payload {
        Some(payload) => payload.len(),
        None => usize::try_from(get::<i32>(row, "payload_bytes")?).unwrap_or(0),
    };
    Ok(Stored {
        lane: get(row, "lane")?,
        place: place(row)?,
        id: id(get(row, "id")?),
        due: time(row, "due")?,
        history: get(row, "history")?,
        bytes: small(row, "bytes")?,
        redrives: u32::try_from(small(row, "redrives")?).unwrap_or(u32::MAX),
        key_source: key_source(get(row, "key_source")?)?,
        key_value: get(row, "key_value")?,
        address: get(row, "address")?,
        qualifier: get(row, "qualifier")?,
        region: get(row, "region")?,
        carried: Carried {
            trace_header: get(row, "trace")?,
            client_context: get(row, "context")?,
            tenant_id: get(row, "tenant")?,
            durable_execution_name: get(row, "durable")?,
        },
        deliver_at: time(row, "deliver_at")?,
        expires_at: time(row, "expires_at")?,
        payload: payload.map(Bytes::copy_from_slice).unwrap_or_default(),
        payload_bytes,
    })
}

fn has(row: &Row, name: &str) -> bool {
    row.columns().iter().any(|column| column.name() == name)
}

pub(super) fn function(row: &Row) -> Result<FunctionName, Trouble> {
    Ok(FunctionName::new(get::<&str>(row, "function")?))
}

pub(super) fn spent(row: &Row) -> Result<Spent, Trouble> {
    Ok(Spent { hour: number(row, "hour")?, attempts: number(row, "attempts")? })
}

/// A row of `lane_views`.
pub(super) fn lane(row: &Row) -> Result<LaneRow, Trouble> {
    let counted = |events: &str, bytes: &str| Ok(Count { events: number(row, events)?, bytes: number(row, bytes)? });
    let all = counted("n", "bytes")?;
    let (waiting, scheduled) = (counted("waiting", "waiting_bytes")?, counted("scheduled", "scheduled_bytes")?);
    let buried = counted("buried", "buried_bytes")?;
    let ready = Count {
        events: all.events.saturating_sub(waiting.events + scheduled.events),
        bytes: all.bytes.saturating_sub(waiting.bytes + scheduled.bytes),
    };
    Ok(LaneRow {
        id: get(row, "lane")?,
        function: function(row)?,
        paused: get(row, "paused")?,
        proven: get(row, "proven")?,
        retired: get(row, "retired")?,
        spent: spent(row)?,
        counts: [ready, waiting, scheduled, buried],
        next_due: time(row, "due")?,
        next_ship: time(row, "ship")?,
        next_expiry: time(row, "expiry")?,
        first: get::<Option<Uuid>>(row, "first")?.map(id),
        seen: Position { xmax: get(row, "xmax")?, open: get(row, "open")?, xmin: 0, incarnation: String::new() },
    })
}
