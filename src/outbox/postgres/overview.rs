//! What all daemons of the outbox store, and who they are. Every daemon can tell.
//!
//! Counts live in the memory of each lane's owner, so the owners are asked, at most once in [`FRESH`] unless there are new functions. A daemon that does not
//! answer counts with what its last beat said, and its functions without numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::base::Trouble;
use super::commands::{Answer, Question, ask_all};
use super::engine::Shared;
use crate::clock::UnixMillis;
use crate::event::FunctionName;
use crate::outbox::operator::{Fleet, FleetMember, Overview};
use crate::outbox::{Census, Count, Error, LaneCensus, Place};

/// How old may be what others have told.
const FRESH: Duration = Duration::from_secs(1);

/// Up to this many, remembered keys are counted one by one. Beyond, the server's estimate is shown.
const COUNT_KEYS_MAX: u64 = 100_000;

/// What the owner of a lane knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub function: FunctionName,
    /// In the order of `Place::ALL`.
    pub counts: [Count; 4],
    pub in_flight: u64,
    pub oldest: Option<UnixMillis>,
    pub paused: bool,
}

impl Line {
    fn census(&self) -> LaneCensus {
        LaneCensus {
            by_place: Place::ALL.into_iter().zip(self.counts).collect(),
            leased: self.in_flight,
            oldest_ready: self.oldest,
        }
    }
}

/// What the other daemons have told.
#[derive(Debug, Default)]
pub(super) struct Others {
    told_at: Option<Instant>,
    lines: BTreeMap<FunctionName, Line>,
    /// Those that did not answer.
    silent: BTreeSet<i64>,
    /// Functions of the database that nobody told of.
    untold: BTreeSet<FunctionName>,
}

/// What this daemon knows of its lanes.
pub(super) async fn own(shared: &Shared) -> Result<Vec<Line>, Error> {
    shared.catch_up().await.map_err(|trouble| shared.error(trouble))?;
    Ok(shared.state().lanes.lines())
}

/// Counts of own lanes. What belongs to the whole database is told by one daemon only, so that sums over daemons are right.
pub(super) async fn census(shared: &Shared) -> Result<Census, Trouble> {
    shared.catch_up().await?;
    let (keys, disk_bytes) = if shared.is_first() { database(shared).await? } else { (0, 0) };
    let state = shared.state();
    let totals = state.lanes.totals();
    Ok(Census {
        lanes: state.lanes.lines().into_iter().map(|line| (line.function.clone(), line.census())).collect(),
        keys,
        bytes: totals.bytes,
        events: totals.events,
        disk_bytes,
        disk_free_bytes: u64::MAX,
    })
}

/// Remembered keys, and bytes on disk.
async fn database(shared: &Shared) -> Result<(u64, u64), Trouble> {
    let stats = shared.read.stats().await?;
    let keys = if stats.keys < COUNT_KEYS_MAX { shared.read.count_keys().await? } else { stats.keys };
    Ok((keys, stats.disk_bytes))
}

/// Counts of the whole store.
pub(super) async fn whole(shared: &Shared) -> Result<Overview, Error> {
    let (keys, disk_bytes) = database(shared).await.map_err(|trouble| shared.error(trouble))?;
    let mut overview = Overview::default();
    (overview.census.keys, overview.census.disk_bytes, overview.census.disk_free_bytes) = (keys, disk_bytes, u64::MAX);
    let own = own(shared).await?;
    if shared.others().is_empty() {
        overview.paused = own.iter().filter(|line| line.paused).map(|line| line.function.clone()).collect();
        own.iter().for_each(|line| count(&mut overview.census, line));
        overview.fleet = Some(fleet(shared, &BTreeSet::new()));
        return Ok(overview);
    }
    let own_names: BTreeSet<FunctionName> = own.iter().map(|line| line.function.clone()).collect();
    // What is paused is in the database, and holds from the moment that it is there.
    let shown = shared.read.shown().await.map_err(|trouble| shared.error(trouble))?;
    let mut others = shared.told_by_others.lock().await;
    let now = shared.clock.instant();
    let is_fresh = others.told_at.is_some_and(|at| now.saturating_duration_since(at) < FRESH);
    // Whoever has just sent the first event for a function looks for it.
    let is_known = |(name, _): &(FunctionName, bool)| {
        others.lines.contains_key(name) || others.untold.contains(name) || own_names.contains(name)
    };
    if !(is_fresh && shown.iter().all(is_known)) {
        *others = ask(shared).await;
        let told = |name: &FunctionName| others.lines.contains_key(name);
        others.untold = shown.iter().map(|(name, _)| name.clone()).filter(|name| !told(name)).collect();
    }
    for (function, paused) in shown {
        overview.census.lanes.insert(function.clone(), LaneCensus::default());
        overview.paused.extend(paused.then_some(function));
    }
    let theirs = others.lines.values().filter(|line| !own_names.contains(&line.function));
    theirs.chain(&own).for_each(|line| count(&mut overview.census, line));
    for member in shared.others().iter().filter(|member| others.silent.contains(&member.id)) {
        overview.census.events += member.events;
        overview.census.bytes += member.bytes;
    }
    overview.fleet = Some(fleet(shared, &others.silent));
    Ok(overview)
}

fn count(census: &mut Census, line: &Line) {
    for count in line.counts {
        census.events += count.events;
        census.bytes += count.bytes;
    }
    census.lanes.insert(line.function.clone(), line.census());
}

async fn ask(shared: &Shared) -> Others {
    let silent = shared.others().iter().map(|member| member.id).collect();
    let mut others = Others { silent, ..Others::default() };
    for (member, answer) in ask_all(shared, &Question::Census).await {
        if let Answer::Census(lines) = answer {
            others.silent.remove(&member.id);
            others.lines.extend(lines.into_iter().map(|line| (line.function.clone(), line)));
        }
    }
    others.told_at = Some(shared.clock.instant());
    others
}

/// All living daemons, as the last beat told.
fn fleet(shared: &Shared, silent: &BTreeSet<i64>) -> Fleet {
    let now = shared.clock.instant();
    let state = shared.state();
    let members = state.members.iter().map(|member| FleetMember {
        name: member.name.clone(),
        version: member.version.clone(),
        since: member.since,
        is_this: member.id == state.member,
        beat_age: state.moved.get(&member.id).map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at)),
        is_draining: member.draining,
        answers: !silent.contains(&member.id),
        functions: member.lanes,
        events: member.events,
        bytes: member.bytes,
    });
    let mut members: Vec<_> = members.collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    Fleet { members, unowned: state.unowned }
}
