//! Storing, telling, leasing and settling.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::rows::{self, count, digest, get, id, ms, number, signed, small, time, uuid};
use super::{Link, Session};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::outbox::postgres::base::{
    Arrival, LaneRow, New, News, Peek, Position, Remembered, Room, Settling, Taken, Trouble, Unknown, Verdict, Want,
};
use crate::outbox::postgres::history;
use crate::outbox::postgres::keys::lane;
use crate::outbox::{BuryReason, Count, History, Place};

/// The most rows of a lane that one reading of its ready events, or of its oldest one, may pass over.
const READS_MAX: i32 = 2_000;

/// The most rows that a count of a lane reads. Beyond that it is "at least".
const COUNT_MAX: i32 = 50_000_000;

/// The columns of events, one array each.
#[derive(Default)]
pub(super) struct Columns<'a> {
    pub(super) functions: Vec<&'a str>,
    pub(super) lanes: Vec<i64>,
    pub(super) function: Vec<i32>,
    pub(super) id: Vec<Uuid>,
    pub(super) deliver_at: Vec<Option<i64>>,
    pub(super) expires_at: Vec<Option<i64>>,
    pub(super) redrives: Vec<i32>,
    pub(super) key_source: Vec<i16>,
    pub(super) key_value: Vec<&'a str>,
    pub(super) address: Vec<Option<&'a str>>,
    pub(super) qualifier: Vec<Option<&'a str>>,
    pub(super) region: Vec<Option<&'a str>>,
    pub(super) trace: Vec<Option<&'a str>>,
    pub(super) context: Vec<Option<&'a str>>,
    pub(super) tenant: Vec<Option<&'a str>>,
    pub(super) durable: Vec<Option<&'a str>>,
    pub(super) payload: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(events: impl Iterator<Item = &'a Event>) -> Self {
        let mut columns = Self::default();
        events.for_each(|event| columns.add(event));
        columns
    }

    fn add(&mut self, event: &'a Event) {
        let name = event.function.name.as_str();
        // Batches have few functions, and neighbours often share one.
        let nth = self.functions.iter().rposition(|known| *known == name).unwrap_or_else(|| {
            self.functions.push(name);
            self.lanes.push(lane(&event.function.name));
            self.functions.len() - 1
        });
        self.function.push(count(nth + 1));
        self.id.push(uuid(event.id));
        self.deliver_at.push(event.deliver_at.map(ms));
        self.expires_at.push(event.expires_at.map(ms));
        self.redrives.push(i32::try_from(event.redrives).unwrap_or(i32::MAX));
        self.key_source.push(rows::source_number(event.key.source));
        self.key_value.push(&event.key.value);
        let address = event.function.address.as_str();
        self.address.push((address != name).then_some(address));
        self.qualifier.push(event.function.qualifier.as_deref());
        self.region.push(event.function.region.as_deref());
        self.trace.push(event.carried.trace_header.as_deref());
        self.context.push(event.carried.client_context.as_deref());
        self.tenant.push(event.carried.tenant_id.as_deref());
        self.durable.push(event.carried.durable_execution_name.as_deref());
        self.payload.push(&event.payload);
    }

    /// The columns, in the order in which the SQL functions take them.
    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 17] {
        [
            &self.functions,
            &self.lanes,
            &self.function,
            &self.id,
            &self.deliver_at,
            &self.expires_at,
            &self.redrives,
            &self.key_source,
            &self.key_value,
            &self.address,
            &self.qualifier,
            &self.region,
            &self.trace,
            &self.context,
            &self.tenant,
            &self.durable,
            &self.payload,
        ]
    }
}

pub(super) fn pairs(of: &[(i64, EventId)]) -> (Vec<i64>, Vec<Uuid>) {
    of.iter().map(|(lane, id)| (*lane, uuid(*id))).unzip()
}

impl Link {
    /// Stores events, all in one commit. Returns the verdict of those that were not stored, by their place in `events`. A
    /// `careful` call goes key by key and does not wait for keys that others hold.
    pub(in crate::outbox::postgres) async fn append(
        &self,
        member: i64,
        events: &[New],
        room: Room,
        careful: bool,
    ) -> Result<Vec<(usize, Verdict)>, Trouble> {
        let rows = self.append_rows(member, events, room, careful).await?;
        rows.iter().map(verdict).collect()
    }

    /// A call whose answer says that something is stored.
    pub(super) async fn query_durable(
        &self,
        sql: &'static str,
        parameters: super::Parameters<'_>,
    ) -> Result<Vec<Row>, Trouble> {
        let session = self.session().await?;
        let before = session.warnings();
        let rows = self.query_on(&session, sql, parameters).await?;
        if session.warnings() != before {
            // Somebody cancelled the wait for a standby: the events are stored, but not where they were to be stored.
            return Err(Trouble::Away("the database warned while it stored events".to_owned()));
        }
        Ok(rows)
    }

    async fn append_rows(&self, member: i64, events: &[New], room: Room, careful: bool) -> Result<Vec<Row>, Trouble> {
        let c = Columns::of(events.iter().map(|new| &new.event));
        let family: Vec<Option<i16>> = events.iter().map(|new| new.key.map(|key| key.family.number())).collect();
        let digests: Vec<Option<Uuid>> = events.iter().map(|new| new.key.map(|key| digest(key.digest))).collect();
        let prints: Vec<Uuid> = events.iter().map(|new| digest(new.print)).collect();
        let (room_events, room_bytes) = (signed(room.events), signed(room.bytes));
        let functions_max = i32::try_from(room.functions).unwrap_or(i32::MAX);
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&member, &careful, &room_events, &room_bytes, &functions_max];
        params.extend(c.params());
        params.extend([&family as &(dyn ToSql + Sync), &digests, &prints]);
        self.query_durable(
            "SELECT ord, verdict, first FROM sendoff.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
             $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)",
            &params,
        )
        .await
    }

    /// Where news begins.
    pub(in crate::outbox::postgres) async fn position(&self) -> Result<Position, Trouble> {
        let row = self.query_one("SELECT xmax, open, xmin, incarnation FROM sendoff.position()", &[]).await?;
        rows::position(&row)
    }

    /// What was committed since `from`.
    pub(in crate::outbox::postgres) async fn news(&self, member: i64, from: &Position) -> Result<News, Trouble> {
        let sql = "SELECT xmax, open, xmin, incarnation, lane, n, n_later, bytes, bytes_later, due, expiry, first, xid, asked \
                   FROM sendoff.news($1, $2, $3)";
        let mut news = News::default();
        for row in self.query(sql, &[&from.xmax, &from.open, &member]).await? {
            if get::<Option<i64>>(&row, "lane")?.is_none() {
                news.position = rows::position(&row)?;
                news.asked = get(&row, "asked")?;
                continue;
            }
            news.arrivals.push(Arrival {
                xid: get(&row, "xid")?,
                lane: get(&row, "lane")?,
                ready: Count { events: small(&row, "n")?, bytes: number(&row, "bytes")? },
                scheduled: Count { events: small(&row, "n_later")?, bytes: number(&row, "bytes_later")? },
                due: time(&row, "due")?,
                expiry: time(&row, "expiry")?,
                first: id(get(&row, "first")?),
            });
        }
        Ok(news)
    }

    /// Finds events to lease. Writes nothing of them: that they are leased is known to their owner only.
    pub(in crate::outbox::postgres) async fn lease(
        &self,
        member: i64,
        now: UnixMillis,
        bytes_max: u64,
        wants: &[Want],
        busy: &[EventId],
    ) -> Result<Vec<Taken>, Trouble> {
        let lanes: Vec<i64> = wants.iter().map(|want| want.lane).collect();
        let which: Vec<i16> = wants.iter().map(|want| want.which).collect();
        let events: Vec<i32> = wants.iter().map(|want| count(want.events_max)).collect();
        let bytes: Vec<i64> = wants.iter().map(|want| signed(want.bytes_max)).collect();
        let after: Vec<Option<Uuid>> = wants.iter().map(|want| want.after.map(uuid)).collect();
        let cutoff: Vec<Option<i64>> = wants.iter().map(|want| want.cutoff.map(ms)).collect();
        let floors: Vec<Option<i64>> = vec![None; wants.len()];
        let busy: Vec<Uuid> = busy.iter().map(|id| uuid(*id)).collect();
        let hours: Vec<Option<i64>> = wants.iter().map(|want| want.spent.map(|spent| signed(spent.hour))).collect();
        let spent: Vec<Option<i64>> = wants.iter().map(|want| want.spent.map(|spent| signed(spent.attempts))).collect();
        let (now, bytes_max) = (ms(now), signed(bytes_max));
        let rows = self
            .query(
                "SELECT lane, place, id, due, history, bytes, redrives, key_source, deliver_at, expires_at, key_value, address, \
                 qualifier, region, trace, context, tenant, durable, payload \
                 FROM sendoff.lease($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
                &[
                    &member, &now, &bytes_max, &lanes, &which, &events, &bytes, &after, &cutoff, &floors, &busy, &READS_MAX,
                    &hours, &spent,
                ],
            )
            .await?;
        rows.iter().map(taken).collect()
    }

    /// Asks for the next times of lanes, without what is in flight.
    pub(in crate::outbox::postgres) async fn peek(
        &self,
        lanes: &[(i64, Unknown)],
        busy: &[EventId],
    ) -> Result<Vec<(i64, Peek)>, Trouble> {
        let ids: Vec<i64> = lanes.iter().map(|(lane, _)| *lane).collect();
        let wanted = |part: fn(&Unknown) -> bool| lanes.iter().map(|(_, unknown)| part(unknown)).collect::<Vec<bool>>();
        let (due, ship) = (wanted(|unknown| unknown.due), wanted(|unknown| unknown.ship));
        let (expiry, oldest) = (wanted(|unknown| unknown.expiry), wanted(|unknown| unknown.oldest));
        let busy: Vec<Uuid> = busy.iter().map(|id| uuid(*id)).collect();
        let rows = self
            .query(
                "SELECT lane, due, ship, expiry, oldest FROM sendoff.peeks($1, $2, $3, $4, $5, $6, $7)",
                &[&ids, &due, &ship, &expiry, &oldest, &busy, &READS_MAX],
            )
            .await?;
        let peek = |row: &Row| {
            let oldest: Option<Uuid> = get(row, "oldest")?;
            let peek = Peek {
                due: time(row, "due")?,
                ship: time(row, "ship")?,
                expiry: time(row, "expiry")?,
                oldest: oldest.map(id),
            };
            Ok((get(row, "lane")?, peek))
        };
        rows.iter().map(peek).collect()
    }

    /// Counts what own lanes hold: these, or `lanes_max` of all after a number.
    pub(in crate::outbox::postgres) async fn lane_views(
        &self,
        member: i64,
        lanes: Option<&[i64]>,
        after: Option<i64>,
        lanes_max: usize,
    ) -> Result<Vec<LaneRow>, Trouble> {
        let rows = self
            .query(
                "SELECT lane, function, paused, proven, retired, hour, attempts, first, n, bytes, whole, waiting, waiting_bytes, \
                 scheduled, scheduled_bytes, buried, buried_bytes, due, ship, expiry, xmax, open \
                 FROM sendoff.lane_views($1, $2, $3, $4, $5)",
                &[&member, &lanes, &after, &count(lanes_max), &COUNT_MAX],
            )
            .await?;
        rows.iter().map(rows::lane).collect()
    }

    /// Settles for this member. `known` is the connection of the last call and its number at the database: a new connection
    /// gets a new number, and what was sent before is refused from then on. Returns the lanes that are not this member's.
    pub(in crate::outbox::postgres) async fn settle(
        &self,
        member: i64,
        known: &mut Option<(u64, i64)>,
        done: &Settling,
    ) -> Result<Vec<i64>, Trouble> {
        let session = self.session().await?;
        let number = match *known {
            Some((serial, number)) if serial == session.serial => number,
            _ => {
                let rows = self.query_on(&session, "SELECT sendoff.new_session($1) AS session", &[&member]).await?;
                let row = rows.first().ok_or_else(|| Trouble::Refused("new_session gave no row".to_owned()))?;
                let number = get(row, "session")?;
                *known = Some((session.serial, number));
                number
            }
        };
        self.settle_on(&session, member, number, done).await
    }

    async fn settle_on(
        &self,
        session: &Session,
        member: i64,
        number: i64,
        done: &Settling,
    ) -> Result<Vec<i64>, Trouble> {
        let (done_lanes, done_ids) = pairs(&done.delivered);
        let (ship_lanes, ship_ids) = pairs(&done.shipped);
        let (retry_lanes, retry_ids): (Vec<i64>, Vec<Uuid>) =
            done.retry.iter().map(|(lane, id, ..)| (*lane, uuid(*id))).unzip();
        let retry_places: Vec<i16> = done.retry.iter().map(|(_, _, place, _)| place_number(*place)).collect();
        let (retry_dues, retry_histories) = written(done.retry.iter().map(|(.., history)| history));
        let (bury_lanes, bury_ids): (Vec<i64>, Vec<Uuid>) =
            done.bury.iter().map(|(lane, id, _)| (*lane, uuid(*id))).unzip();
        let (bury_dues, bury_histories) = written(done.bury.iter().map(|(.., history)| history));
        let burials = done.bury.iter().map(|(.., history)| burial(history));
        let (bury_ats, bury_reasons): (Vec<i64>, Vec<i16>) = burials.unzip();
        let (reship_lanes, reship_ids): (Vec<i64>, Vec<Uuid>) =
            done.reship.iter().map(|(lane, id, _)| (*lane, uuid(*id))).unzip();
        let (reship_dues, reship_histories) = written(done.reship.iter().map(|(.., history)| history));
        let (families, digests, firsts) = remembered(&done.outlive);
        let rows = self
            .query_on(
                session,
                "SELECT sendoff.settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
                 $20, $21, $22, $23, $24, $25) AS lost",
                &[
                    &member,
                    &number,
                    &done_lanes,
                    &done_ids,
                    &retry_lanes,
                    &retry_ids,
                    &retry_places,
                    &retry_dues,
                    &retry_histories,
                    &bury_lanes,
                    &bury_ids,
                    &bury_dues,
                    &bury_ats,
                    &bury_reasons,
                    &bury_histories,
                    &ship_lanes,
                    &ship_ids,
                    &reship_lanes,
                    &reship_ids,
                    &reship_dues,
                    &reship_histories,
                    &done.proven,
                    &families,
                    &digests,
                    &firsts,
                ],
            )
            .await?;
        let row = rows.first().ok_or_else(|| Trouble::Refused("settle gave no row".to_owned()))?;
        get(row, "lost")
    }
}

pub(super) fn remembered(of: &[(Remembered, EventId)]) -> (Vec<i16>, Vec<Uuid>, Vec<Uuid>) {
    let families = of.iter().map(|(key, _)| key.family.number()).collect();
    let digests = of.iter().map(|(key, _)| digest(key.digest)).collect();
    (families, digests, of.iter().map(|(_, first)| uuid(*first)).collect())
}

fn written<'a>(histories: impl Iterator<Item = &'a History>) -> (Vec<i64>, Vec<Vec<u8>>) {
    histories.map(|history| (ms(history.due), history::encode(history))).unzip()
}

/// When and why an event was buried, as columns.
pub(super) fn burial(history: &History) -> (i64, i16) {
    let Some(burial) = &history.burial else { return (0, 0) };
    let reason = BuryReason::ALL.iter().position(|known| *known == burial.reason).unwrap_or_default();
    (ms(burial.at), i16::try_from(reason).unwrap_or_default())
}

pub(super) fn place_number(place: Place) -> i16 {
    match place {
        Place::Ready => 0,
        Place::Waiting => 1,
        Place::Scheduled => 2,
        Place::Buried => 3,
    }
}

fn verdict(row: &Row) -> Result<(usize, Verdict), Trouble> {
    let ord: i32 = get(row, "ord")?;
    let first: Option<Uuid> = get(row, "first")?;
    let first = id(first.unwrap_or_default());
    let verdict = match get::<i16>(row, "verdict")? {
        1 => Verdict::Repeat { first },
        2 => Verdict::Conflict { first },
        3 => Verdict::NoBytes,
        4 => Verdict::NoEvents,
        5 => Verdict::NoFunctions,
        6 => Verdict::Busy,
        other => return Err(Trouble::Poisoned(format!("append answered {other}, which this build does not know"))),
    };
    Ok((usize::try_from(ord - 1).unwrap_or_default(), verdict))
}

fn taken(row: &Row) -> Result<Taken, Trouble> {
    if get::<i16>(row, "place")? >= 0 {
        return Ok(Taken::Event(Box::new(rows::stored(row)?)));
    }
    let last: Option<Uuid> = get(row, "id")?;
    Ok(Taken::Mark { lane: get(row, "lane")?, last: last.map(id), whole: get::<Option<i64>>(row, "due")? == Some(1) })
}
