//! Questions between daemons.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Link;
use super::rows::{function, get, signed};
use crate::event::FunctionName;
use crate::outbox::postgres::base::Trouble;
use crate::outbox::postgres::commands::State;

impl Link {
    /// Asks a member. Returns false if it does not live.
    pub(in crate::outbox::postgres) async fn ask(
        &self,
        id: i64,
        asker: i64,
        member: i64,
        within: Duration,
        question: &str,
    ) -> Result<bool, Trouble> {
        let wait_ms = signed(u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        let sql = "SELECT sendoff.ask($1, $2, $3, $4, $5) AS asked";
        get(&self.query_one(sql, &[&id, &asker, &member, &wait_ms, &question]).await?, "asked")
    }

    /// Whether somebody asks this member something.
    pub(in crate::outbox::postgres) async fn is_asked(&self, member: i64) -> Result<bool, Trouble> {
        let sql = "SELECT EXISTS (SELECT FROM sendoff.command c WHERE c.member = $1 AND NOT c.taken) AS asked";
        get(&self.query_one(sql, &[&member]).await?, "asked")
    }

    /// Takes questions to this member.
    pub(in crate::outbox::postgres) async fn asked(
        &self,
        member: i64,
        max: i32,
    ) -> Result<Vec<(i64, String)>, Trouble> {
        let rows = self.query("SELECT id, question FROM sendoff.asked($1, $2)", &[&member, &max]).await?;
        rows.iter().map(|row| Ok((get(row, "id")?, get(row, "question")?))).collect()
    }

    pub(in crate::outbox::postgres) async fn answer(&self, id: i64, answer: &str) -> Result<(), Trouble> {
        self.query("SELECT sendoff.answer($1, $2)", &[&id, &answer]).await.map(drop)
    }

    /// What became of a question. An answer is told once.
    pub(in crate::outbox::postgres) async fn answered(&self, id: i64) -> Result<State, Trouble> {
        let rows = self.query("SELECT taken, alive, answer FROM sendoff.answered($1)", &[&id]).await?;
        let Some(row) = rows.first() else { return Ok(State::Gone) };
        Ok(match get::<Option<String>>(row, "answer")? {
            Some(answer) => State::Answered(answer),
            None => State::Waiting { taken: get(row, "taken")?, alive: get(row, "alive")? },
        })
    }

    /// Takes a question back. Returns whether nobody had taken it.
    pub(in crate::outbox::postgres) async fn withdraw(&self, id: i64) -> Result<bool, Trouble> {
        get(&self.query_one("SELECT sendoff.withdraw($1) AS withdrawn", &[&id]).await?, "withdrawn")
    }

    /// The living owners of lanes that are shown.
    pub(in crate::outbox::postgres) async fn owners(
        &self,
        lanes: &[i64],
    ) -> Result<BTreeMap<i64, Option<(i64, String)>>, Trouble> {
        let mut owners = BTreeMap::new();
        for row in self.query("SELECT lane, owner, name FROM sendoff.owners($1)", &[&lanes]).await? {
            let owner = get::<Option<i64>>(&row, "owner")?.zip(get::<Option<String>>(&row, "name")?);
            owners.insert(get(&row, "lane")?, owner);
        }
        Ok(owners)
    }

    /// A lane that is shown, whoever has it: its function, and whether it is paused and proven.
    pub(in crate::outbox::postgres) async fn lane_elsewhere(
        &self,
        lane: i64,
    ) -> Result<Option<(FunctionName, bool, bool)>, Trouble> {
        let sql = "SELECT function, paused, proven FROM sendoff.lane WHERE id = $1 AND NOT retired";
        let rows = self.query(sql, &[&lane]).await?;
        rows.first().map(|row| Ok((function(row)?, get(row, "paused")?, get(row, "proven")?))).transpose()
    }

    /// All functions that are shown, and whether they are paused.
    pub(in crate::outbox::postgres) async fn shown(&self) -> Result<Vec<(FunctionName, bool)>, Trouble> {
        let rows = self.query("SELECT function, paused FROM sendoff.lane WHERE NOT retired", &[]).await?;
        rows.iter().map(|row| Ok((function(row)?, get(row, "paused")?))).collect()
    }
}
