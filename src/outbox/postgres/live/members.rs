//! Being a member: joining, beats, taking lanes over, and housekeeping.

use tokio_postgres::Row;

use super::Link;
use super::rows::{get, number, signed, time};
use crate::outbox::postgres::base::{Beat, Joined, Member, Stats, Trouble};

/// What daemons tell each other of their build.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the daemons of an outbox send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::outbox::postgres) struct Realm {
    pub(in crate::outbox::postgres) name: String,
    pub(in crate::outbox::postgres) region: Option<String>,
    pub(in crate::outbox::postgres) account: Option<String>,
}

impl Link {
    /// Becomes a member. `instead_of` is the one that has the name, with its last beat.
    pub(in crate::outbox::postgres) async fn join(
        &self,
        member: i64,
        name: &str,
        realm: &Realm,
        instead_of: Option<(i64, i64)>,
    ) -> Result<Joined, Trouble> {
        let (other, beat) = instead_of.unzip();
        let row = self
            .query_one(
                "SELECT joined, other, other_beat FROM sendoff.join($1, $2, $3, $4, $5, $6, $7, $8)",
                &[&member, &name, &realm.name, &realm.region, &realm.account, &other, &beat, &VERSION],
            )
            .await?;
        if get(&row, "joined")? {
            return Ok(Joined::Yes);
        }
        Ok(Joined::Taken { by: get(&row, "other")?, beat: get(&row, "other_beat")? })
    }

    /// Shows that this member lives.
    pub(in crate::outbox::postgres) async fn beat(
        &self,
        member: i64,
        news_xid: Option<i64>,
        events: u64,
        bytes: u64,
    ) -> Result<Beat, Trouble> {
        let rows = self
            .query(
                "SELECT now_ms, incarnation, unowned, paused, id, name, beat, lanes, events, bytes, since, version, draining \
                 FROM sendoff.beat($1, $2, $3, $4)",
                &[&member, &news_xid, &signed(events), &signed(bytes)],
            )
            .await?;
        let mut beat = Beat::default();
        if let Some(row) = rows.first() {
            beat.now = time(row, "now_ms")?.unwrap_or_default();
            beat.incarnation = get(row, "incarnation")?;
            beat.unowned = number(row, "unowned")?;
            beat.paused = get(row, "paused")?;
        }
        let member = |row: &Row| {
            Ok(Member {
                id: get(row, "id")?,
                name: get(row, "name")?,
                beat: get(row, "beat")?,
                lanes: number(row, "lanes")?,
                events: number(row, "events")?,
                bytes: number(row, "bytes")?,
                since: time(row, "since")?.unwrap_or_default(),
                version: get::<Option<String>>(row, "version")?.unwrap_or_default(),
                draining: get(row, "draining")?,
            })
        };
        beat.members = rows.iter().map(member).collect::<Result<_, Trouble>>()?;
        Ok(beat)
    }

    /// Ends a member whose beat has not moved. Returns whether this call did.
    pub(in crate::outbox::postgres) async fn fence(&self, member: i64, other: i64, beat: i64) -> Result<bool, Trouble> {
        get(&self.query_one("SELECT sendoff.fence($1, $2, $3) AS fenced", &[&member, &other, &beat]).await?, "fenced")
    }

    /// Takes the lanes that nobody has, unless another living member has some. Returns the new ones.
    pub(in crate::outbox::postgres) async fn claim(&self, member: i64) -> Result<Vec<i64>, Trouble> {
        let rows = self.query("SELECT lane FROM sendoff.claim($1, NULL)", &[&member]).await?;
        rows.iter().map(|row| get(row, "lane")).collect()
    }

    /// From here on this member gives its lanes back, and claims none.
    pub(in crate::outbox::postgres) async fn drain(&self, member: i64) -> Result<(), Trouble> {
        self.query("SELECT sendoff.drain($1)", &[&member]).await.map(drop)
    }

    /// Lets lanes go, after the settlements under way.
    pub(in crate::outbox::postgres) async fn release(&self, member: i64, lanes: &[i64]) -> Result<(), Trouble> {
        self.query("SELECT sendoff.release($1, $2)", &[&member, &lanes]).await.map(drop)
    }

    /// Lets all lanes go, and stops being a member.
    pub(in crate::outbox::postgres) async fn leave(&self, member: i64) -> Result<(), Trouble> {
        self.query("SELECT sendoff.leave($1)", &[&member]).await.map(drop)
    }

    pub(in crate::outbox::postgres) async fn pause(&self, function: &str, paused: bool) -> Result<(), Trouble> {
        self.query("SELECT sendoff.pause($1, $2)", &[&function, &paused]).await.map(drop)
    }

    /// Marks own lanes as retired, if they hold nothing, or as in use. Returns those that are marked now.
    pub(in crate::outbox::postgres) async fn retire(
        &self,
        member: i64,
        lanes: &[i64],
        retired: bool,
    ) -> Result<Vec<i64>, Trouble> {
        let row = self.query_one("SELECT sendoff.retire($1, $2, $3) AS lanes", &[&member, &lanes, &retired]).await?;
        get(&row, "lanes")
    }

    /// Sets how long keys are remembered. Returns false if that must be tried again.
    pub(in crate::outbox::postgres) async fn set_windows(&self, given_ms: u64, sdk_ms: u64) -> Result<bool, Trouble> {
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&signed(given_ms), &signed(sdk_ms)];
        let row = self.query_one("SELECT sendoff.set_windows($1, $2) AS answer", &parameters).await?;
        Ok(get::<&str>(&row, "answer")? != "busy")
    }

    /// One piece of the housekeeping of keys. Returns whether there is more to do at once.
    pub(in crate::outbox::postgres) async fn tend_keys(&self) -> Result<bool, Trouble> {
        let row = self.query_one("SELECT sendoff.tend_keys() AS answer", &[]).await?;
        Ok(get::<&str>(&row, "answer")? == "more")
    }

    /// Deletes arrivals that every owner of lanes has been told of. Returns how many.
    pub(in crate::outbox::postgres) async fn tend_arrivals(&self, max: i32) -> Result<i32, Trouble> {
        get(&self.query_one("SELECT sendoff.tend_arrivals($1) AS deleted", &[&max]).await?, "deleted")
    }

    pub(in crate::outbox::postgres) async fn tend_members(&self) -> Result<(), Trouble> {
        self.query("SELECT sendoff.tend_members()", &[]).await.map(drop)
    }

    pub(in crate::outbox::postgres) async fn count_keys(&self) -> Result<u64, Trouble> {
        number(&self.query_one("SELECT sendoff.count_keys() AS keys", &[]).await?, "keys")
    }

    pub(in crate::outbox::postgres) async fn set_full(&self, why: Option<&str>) -> Result<(), Trouble> {
        self.query("SELECT sendoff.set_full($1)", &[&why]).await.map(drop)
    }

    pub(in crate::outbox::postgres) async fn stats(&self) -> Result<Stats, Trouble> {
        let row = self.query_one("SELECT disk_bytes, keys_estimate FROM sendoff.stats()", &[]).await?;
        Ok(Stats { disk_bytes: number(&row, "disk_bytes")?, keys: number(&row, "keys_estimate")? })
    }
}
