//! Events and keys of other stores.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::Link;
use super::calls::{Columns, burial, place_number, remembered};
use super::rows::{digest, get, id, ms, signed};
use crate::event::EventId;
use crate::outbox::handoff::{Handed, place_of};
use crate::outbox::postgres::base::{NotAdopted, Remembered, Room, Trouble, Verdict};
use crate::outbox::postgres::{history, keys};

/// A key that another store remembers: for which event, the print of its payload, and what is left of its window in ms.
pub(in crate::outbox::postgres) type Learned = (Remembered, EventId, [u8; 16], u64);

impl Link {
    /// Stores events of another store, all in one commit. Returns why some were not stored, by their place in `events`.
    pub(in crate::outbox::postgres) async fn adopt(
        &self,
        events: &[Handed],
        room: Room,
    ) -> Result<Vec<(usize, NotAdopted)>, Trouble> {
        let c = Columns::of(events.iter().map(|handed| &handed.event));
        let key_of = |handed: &Handed| keys::remembered(&handed.event);
        let families: Vec<Option<i16>> = events.iter().map(|one| key_of(one).map(|key| key.family.number())).collect();
        let digests: Vec<Option<Uuid>> = events.iter().map(|one| key_of(one).map(|key| digest(key.digest))).collect();
        let prints: Vec<Uuid> = events.iter().map(|one| digest(keys::print(&one.event.payload))).collect();
        let adopted: Vec<Uuid> = events.iter().map(|one| digest(keys::adopted(one.event.id).digest)).collect();
        let places: Vec<i16> = events.iter().map(|one| place_number(place_of(&one.event, &one.history))).collect();
        let dues: Vec<i64> = events.iter().map(|one| ms(one.history.due)).collect();
        let (buried_at, reasons): (Vec<i64>, Vec<i16>) = events.iter().map(|one| burial(&one.history)).unzip();
        let histories: Vec<Vec<u8>> = events.iter().map(|one| history::encode(&one.history)).collect();
        let paused: Vec<bool> = events.iter().map(|one| one.paused).collect();
        let (room_events, room_bytes) = (signed(room.events), signed(room.bytes));
        let functions_max = i32::try_from(room.functions).unwrap_or(i32::MAX);
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&room_events, &room_bytes, &functions_max];
        params.extend(c.params());
        let more: [&(dyn ToSql + Sync); 10] =
            [&families, &digests, &prints, &adopted, &places, &dues, &buried_at, &reasons, &histories, &paused];
        params.extend(more);
        let rows = self
            .query_durable(
                "SELECT ord, verdict, first FROM sendoff.adopt($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
                 $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30)",
                &params,
            )
            .await?;
        let refused = rows.iter().map(|row| {
            let ord: i32 = get(row, "ord")?;
            let first: Option<Uuid> = get(row, "first")?;
            let why = match get::<i16>(row, "verdict")? {
                1 => NotAdopted::Repeat,
                2 => NotAdopted::KnownKey { first: id(first.unwrap_or_default()) },
                3 => NotAdopted::NoRoom(Verdict::NoBytes),
                4 => NotAdopted::NoRoom(Verdict::NoEvents),
                5 => NotAdopted::NoRoom(Verdict::NoFunctions),
                other => {
                    return Err(Trouble::Poisoned(format!("adopt answered {other}, which this build does not know")));
                }
            };
            Ok((usize::try_from(ord - 1).unwrap_or_default(), why))
        });
        refused.collect()
    }

    /// Remembers keys of another store. Returns how many are new.
    pub(in crate::outbox::postgres) async fn learn(&self, learned: &[Learned]) -> Result<u64, Trouble> {
        let of: Vec<_> = learned.iter().map(|(key, first, ..)| (*key, *first)).collect();
        let (families, digests, firsts) = remembered(&of);
        let prints: Vec<Uuid> = learned.iter().map(|(.., print, _)| digest(*print)).collect();
        let left: Vec<i64> = learned.iter().map(|(.., left)| signed(*left)).collect();
        let sql = "SELECT sendoff.learn($1, $2, $3, $4, $5) AS new";
        let rows = self.query_durable(sql, &[&families, &digests, &firsts, &prints, &left]).await?;
        let row = rows.first().ok_or_else(|| Trouble::Refused("learn gave no row".to_owned()))?;
        super::rows::number(row, "new")
    }

    /// Whether no daemon has joined this outbox yet.
    pub(in crate::outbox::postgres) async fn is_new(&self) -> Result<bool, Trouble> {
        get(&self.query_one("SELECT realm IS NULL AS new FROM sendoff.control", &[]).await?, "new")
    }
}
