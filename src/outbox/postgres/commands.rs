//! Questions between daemons that share the outbox: rows of `command`, asked and answered.
//!
//! The owner of a lane keeps in memory what is in flight there. So another daemon has it carry out what depends on that, and
//! asks it for what only it knows.
//! Holds: a question is taken once, and never after its time. If it was not answered in time and nobody had taken it, it is
//! withdrawn, and nothing has changed. Else the asker does not know, and says so.
//! Limits: [`CHANGE_WITHIN`] and [`TELL_WITHIN`] for an answer, [`ASKING_MAX`] questions at once about single events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::base::{Member, Trouble};
use super::changing::{self, Changed, What};
use super::engine::{Shared, away, member_id};
use super::overview::{self, Line};
use crate::event::EventId;
use crate::outbox::Error;

/// How long to wait for the answer to a change.
pub(super) const CHANGE_WITHIN: Duration = Duration::from_secs(5);

/// How long to wait for the answer to a question that changes nothing.
pub(super) const TELL_WITHIN: Duration = Duration::from_millis(1_500);

/// The waits between two looks for an answer: the first one, doubling up to the last one.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_LAST: Duration = Duration::from_millis(50);

/// How long to wait before asking anew who has a lane that is just changing hands.
const MOVING: Duration = Duration::from_millis(100);

/// The most questions that are taken at once.
const PIECE: i32 = 16;

/// The most questions at once that only complete an answer.
pub(super) const ASKING_MAX: usize = 4;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    /// Change these events.
    Change {
        what: What,
        ids: Vec<EventId>,
    },
    Purge(changing::Piece),
    /// Which of these events are in flight?
    InFlight {
        events: Vec<(i64, EventId)>,
    },
    /// What do you know of your lanes?
    Census,
    /// Something that only the daemon around the outbox understands.
    Inform(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Changed(Vec<Changed>),
    Purged(changing::PurgedPiece),
    InFlight(BTreeSet<EventId>),
    Census(Vec<Line>),
    Informed(String),
    /// Whoever was asked does not have the lane, and has done nothing.
    NotHere,
    Failed(String),
}

/// What the database says of a question.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// There is no such question.
    Gone,
    Waiting {
        taken: bool,
        /// Whether the member that was asked lives.
        alive: bool,
    },
    Answered(String),
}

/// Asks a member and waits for its answer. The error of a change says whether it may have been carried out.
pub(super) async fn ask(
    shared: &Shared,
    (member, name): (i64, &str),
    question: &Question,
    within: Duration,
) -> Result<Answer, Error> {
    let id = member_id(&shared.clock);
    let text = serde_json::to_string(question).map_err(|error| away(error.to_string()))?;
    let asked = shared.read.ask(id, shared.member(), member, within, &text).await;
    if !asked.map_err(|trouble| shared.error(trouble))? {
        return Ok(Answer::NotHere);
    }
    let (deadline, mut wait) = (shared.clock.instant() + within, LOOK_FIRST);
    while shared.clock.instant() < deadline {
        shared.clock.sleep(wait).await;
        wait = (wait * 2).min(LOOK_LAST);
        match shared.read.answered(id).await.map_err(|trouble| shared.error(trouble))? {
            State::Answered(text) => return read(name, &text),
            State::Waiting { taken: false, alive: false } => return Ok(Answer::NotHere),
            State::Gone | State::Waiting { taken: true, alive: false } => return Err(unknown(name, id)),
            State::Waiting { alive: true, .. } => {}
        }
    }
    if shared.read.withdraw(id).await.map_err(|trouble| shared.error(trouble))? {
        return Err(away(format!(
            "the daemon {name} has these functions and did not answer within {} s; nothing was changed (command {id})",
            within.as_secs_f64()
        )));
    }
    match shared.read.answered(id).await.map_err(|trouble| shared.error(trouble))? {
        State::Answered(text) => read(name, &text),
        State::Gone | State::Waiting { .. } => Err(unknown(name, id)),
    }
}

fn unknown(name: &str, id: i64) -> Error {
    away(format!(
        "the daemon {name} began command {id} and has not answered: whether it was carried out is unknown; repeat it, which is harmless"
    ))
}

fn read(name: &str, text: &str) -> Result<Answer, Error> {
    match serde_json::from_str(text) {
        Ok(Answer::Failed(why)) => Err(away(format!("the daemon {name} answers: {why}"))),
        Ok(answer) => Ok(answer),
        Err(error) => Err(away(format!("the daemon {name} answers what this build does not know: {error}"))),
    }
}

/// The answer is none to this question: the other daemon is of another version.
pub(super) fn unexpected(name: &str) -> Error {
    away(format!("the daemon {name} answers something else: is it of another version?"))
}

/// Waits until a lane that changes hands may have arrived. The error: it takes too long.
pub(super) async fn moving(shared: &Shared, deadline: Instant) -> Result<(), Error> {
    if shared.clock.instant() >= deadline {
        return Err(away(
            "no daemon has these functions now: another one takes them over within outbox.postgres.lease".to_owned(),
        ));
    }
    shared.clock.sleep(MOVING).await;
    Ok(())
}

/// The other living daemons that own lanes. A lane that nobody else has is listed without one. A lane that is not shown is not
/// listed.
pub(super) async fn owners(shared: &Shared, lanes: &[i64]) -> Result<BTreeMap<i64, Option<(i64, String)>>, Error> {
    let owners = shared.read.owners(lanes).await.map_err(|trouble| shared.error(trouble))?;
    let other = |owner: Option<(i64, String)>| owner.filter(|(member, _)| *member != shared.member());
    Ok(owners.into_iter().map(|(lane, owner)| (lane, other(owner))).collect())
}

/// Answers what others ask this daemon.
pub(super) async fn serve(shared: &Shared) -> Result<(), Trouble> {
    loop {
        let questions = shared.read.asked(shared.member(), PIECE).await?;
        if questions.is_empty() {
            return Ok(());
        }
        for (id, question) in questions {
            let answer = match serde_json::from_str(&question) {
                Ok(question) => {
                    carry_out(shared, question).await.unwrap_or_else(|error| Answer::Failed(error.to_string()))
                }
                Err(error) => Answer::Failed(format!("this is not a question that it knows: {error}")),
            };
            let text = serde_json::to_string(&answer).unwrap_or_default();
            shared.read.answer(id, &text).await?;
        }
    }
}

async fn carry_out(shared: &Shared, question: Question) -> Result<Answer, Error> {
    let now = shared.now();
    match question {
        Question::Change { what, ids } => {
            let mut changed = Vec::with_capacity(ids.len());
            for id in ids {
                changed.push(changing::change_here(shared, what, id, now).await?);
            }
            Ok(Answer::Changed(changed))
        }
        Question::Purge(piece) => {
            let purged = changing::purge_here(shared, &piece, now).await?;
            Ok(purged.map_or(Answer::NotHere, Answer::Purged))
        }
        Question::InFlight { events } => {
            let state = shared.state();
            let busy = events.into_iter().filter(|(lane, id)| state.lanes.is_leased(*lane, *id));
            Ok(Answer::InFlight(busy.map(|(_, id)| id).collect()))
        }
        Question::Census => Ok(Answer::Census(overview::own(shared).await?)),
        Question::Inform(text) => match shared.informant.get() {
            // Dispatch may be busy with a database that is slow. Other questions must not wait for it.
            Some(informant) => match tokio::time::timeout(TELL_WITHIN, informant(text)).await {
                Ok(told) => Ok(Answer::Informed(told)),
                Err(_) => Ok(Answer::Failed("it is busy".to_owned())),
            },
            None => Ok(Answer::NotHere),
        },
    }
}

/// Which of these events are in flight, here or at other daemons. An owner that does not answer is taken to attempt none of
/// them.
pub(super) async fn in_flight(shared: &Shared, events: &[(i64, EventId)]) -> Result<BTreeSet<EventId>, Error> {
    let (mut busy, mut elsewhere) = (BTreeSet::new(), BTreeMap::<i64, Vec<(i64, EventId)>>::new());
    {
        let state = shared.state();
        for &(lane, id) in events {
            if state.lanes.of_number(lane).is_none() {
                elsewhere.entry(lane).or_default().push((lane, id));
            } else if state.lanes.is_leased(lane, id) {
                busy.insert(id);
            }
        }
    }
    if elsewhere.is_empty() || shared.others().is_empty() {
        return Ok(busy);
    }
    let Ok(_turn) = shared.asking.try_acquire() else { return Ok(busy) };
    let lanes: Vec<i64> = elsewhere.keys().copied().collect();
    let mut questions: BTreeMap<(i64, String), Vec<(i64, EventId)>> = BTreeMap::new();
    for (lane, owner) in owners(shared, &lanes).await? {
        if let Some(owner) = owner {
            questions.entry(owner).or_default().extend(elsewhere.remove(&lane).unwrap_or_default());
        }
    }
    let asking = questions.into_iter().map(async |((member, name), events)| {
        ask(shared, (member, &name), &Question::InFlight { events }, TELL_WITHIN).await
    });
    for answer in join_all(asking).await {
        match answer {
            Ok(Answer::InFlight(of_it)) => busy.extend(of_it),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "what another daemon has in flight is not known"),
        }
    }
    Ok(busy)
}

/// Asks all other living daemons at once. Whoever does not answer in time is left out.
pub(super) async fn ask_all(shared: &Shared, question: &Question) -> Vec<(Member, Answer)> {
    let others = shared.others();
    let asking = others.into_iter().map(async |member| {
        let answer = ask(shared, (member.id, &member.name), question, TELL_WITHIN).await;
        (member, answer)
    });
    let answered = join_all(asking).await.into_iter().filter_map(|(member, answer)| match answer {
        Ok(answer) => Some((member, answer)),
        Err(error) => {
            tracing::debug!(daemon = member.name, %error, "a daemon does not answer");
            None
        }
    });
    answered.collect()
}
