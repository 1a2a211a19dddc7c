//! Keeps this daemon a member: joins, beats, watches the others, takes lanes over, hears news, and tidies.
//!
//! Holds: no clock is compared with another one's. No attempt begins after this daemon may have been taken for dead.
//! Fails: a daemon that was taken for dead loses its lanes and joins anew. One that was replaced by another with its name has
//! lost the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Settings;
use super::base::{Joined, Member, Trouble};
use super::commands;
use super::engine::{BEAT_EVERY, Shared, member_id};
use super::live::Realm;
use super::watch::Watch;
use crate::clock::Steps;
use crate::outbox::Error;

/// How long a newcomer waits for a sign of life of whoever has its name. Longer than a beat.
const NAME_PATIENCE: Duration = Duration::from_millis(2_500);

/// A beat that took longer says nothing about others: the whole database may have been slow.
const SLOW_BEAT: Duration = Duration::from_secs(2);

/// The shortest wait between two looks for news.
const POLL_MIN: Duration = Duration::from_millis(10);

/// How often to tidy, ...
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// ... and how many rounds later the rest.
const SELDOM: u64 = 30;

/// How often a daemon that stops looks for lanes in which nothing is in flight.
const GIVE_BACK_EVERY: Duration = Duration::from_millis(100);

/// The most arrivals that one statement deletes.
const ARRIVALS_PIECE: i32 = 10_000;

/// A server whose clock is ahead of ours by more than this: ours was set back, or is wrong.
const AHEAD_MAX: Duration = Duration::from_secs(5);

/// Becomes a member, and takes over what nobody has.
pub(super) async fn join(shared: &Arc<Shared>) -> Result<(), Trouble> {
    enter(shared).await?;
    if !set_windows(shared).await? {
        tracing::warn!("the windows of keys are not set yet: an open transaction holds a key; tried again");
    }
    shared.claim_all().await
}

/// Sets the windows of keys. Returns false if an open transaction holds a key: to be tried again.
async fn set_windows(shared: &Shared) -> Result<bool, Trouble> {
    let limits = &shared.settings.limits;
    let millis = |window: Duration| u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    shared.beat.set_windows(millis(limits.dedupe_window), millis(limits.sdk_window)).await
}

/// Joins under the daemon's name, and beats once.
async fn enter(shared: &Shared) -> Result<(), Trouble> {
    let (name, realm) = (shared.settings.member.as_str(), realm(&shared.settings));
    let member = shared.member();
    if let Joined::Taken { by, beat } = shared.beat.join(member, name, &realm, None).await? {
        tracing::info!(name, "another daemon has this name: waiting for a sign of its life");
        shared.clock.sleep(NAME_PATIENCE).await;
        if let Joined::Taken { .. } = shared.beat.join(member, name, &realm, Some((by, beat))).await? {
            return Err(Trouble::Fenced(format!("another living daemon calls itself {name}")));
        }
    }
    beat_once(shared).await.map(drop)
}

pub(super) fn realm(settings: &Settings) -> Realm {
    let super::Realm { region, account, endpoint } = &settings.realm;
    let or = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".to_owned());
    Realm {
        name: format!("region {}, account {}, endpoint {}", or(region), or(account), or(endpoint)),
        region: region.clone(),
        account: account.clone(),
    }
}

struct Beaten {
    incarnation: String,
    slow: bool,
    unowned: u64,
}

async fn beat_once(shared: &Shared) -> Result<Beaten, Trouble> {
    let (member, news_xid, totals) = {
        let state = shared.state();
        (state.member, state.news_xid, state.lanes.totals())
    };
    let sent = shared.clock.instant();
    let beat = shared.beat.beat(member, news_xid, totals.events, totals.bytes).await?;
    let slow = shared.clock.instant() - sent > SLOW_BEAT;
    shared.reach.is_back();
    shared.beaten(sent);
    let ours = shared.now();
    if beat.now.since(ours) > AHEAD_MAX && shared.clock.resume(Steps::default(), beat.now).is_some() {
        tracing::warn!(
            ours = ours.rfc3339(),
            database = beat.now.rfc3339(),
            "the clock of this machine is behind that of the database"
        );
    }
    {
        let mut state = shared.state();
        let (before, seen) = (std::mem::take(&mut state.moved), shared.clock.instant());
        state.moved = beat.members.iter().map(|member| (member.id, stood(&before, member, seen))).collect();
        state.members = beat.members;
        state.unowned = beat.unowned;
        state.lanes.all_paused(&beat.paused);
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        shared.metrics.outbox_members.set(gauge(state.members.len() as u64));
        shared.metrics.outbox_functions_owned.set(gauge(state.lanes.len() as u64));
        shared.metrics.outbox_functions_unowned.set(gauge(beat.unowned));
    }
    shared.tell();
    Ok(Beaten { incarnation: beat.incarnation, slow, unowned: beat.unowned })
}

/// The beat of a member, and since when it has stood still as seen from here.
fn stood(before: &BTreeMap<i64, (i64, Instant)>, member: &Member, seen: Instant) -> (i64, Instant) {
    before.get(&member.id).filter(|(beat, _)| *beat == member.beat).copied().unwrap_or((member.beat, seen))
}

/// Works until the outbox is closed. An error means that this process has lost the store.
pub(super) async fn keep(shared: Arc<Shared>) -> Result<(), Error> {
    tokio::select! {
        biased;
        () = shared.closed.cancelled() => Ok(()),
        why = shared.until_poisoned() => Err(Error::Poisoned { why }),
        () = beat(&shared) => Ok(()),
        () = listen(&shared) => Ok(()),
        () = answer(&shared) => Ok(()),
        () = tidy(&shared) => Ok(()),
    }
}

/// Beats, watches the others, and takes over.
async fn beat(shared: &Shared) {
    let (mut watch, mut incarnation) = (Watch::default(), None);
    loop {
        shared.clock.sleep(BEAT_EVERY).await;
        match beat_once(shared).await {
            Ok(beaten) => {
                if beaten.slow {
                    watch.forget();
                }
                let is_new =
                    incarnation.replace(beaten.incarnation.clone()).is_some_and(|known| known != beaten.incarnation);
                if let Err(trouble) = react(shared, &mut watch, beaten, is_new).await {
                    failed(shared, trouble).await;
                }
            }
            Err(trouble) => {
                watch.forget();
                failed(shared, trouble).await;
            }
        }
    }
}

async fn react(shared: &Shared, watch: &mut Watch, beaten: Beaten, is_new: bool) -> Result<(), Trouble> {
    if is_new {
        tracing::warn!("the database was restarted, or another server has taken its place: reading the lanes anew");
        watch.forget();
        return shared.claim_all().await;
    }
    let (me, members) = {
        let state = shared.state();
        (state.member, state.members.clone())
    };
    let mut unowned = beaten.unowned;
    if let Some(dead) = watch.look(me, &members, shared.clock.instant(), shared.settings.lease)
        && shared.beat.fence(me, dead.id, dead.beat).await?
    {
        tracing::warn!(daemon = dead.name, "a daemon has shown no sign of life for a lease: taking over its lanes");
        watch.forget();
        unowned = 1;
        shared.state().members.retain(|member| member.id != dead.id);
    }
    if unowned > 0 && shared.may_claim() {
        if shared.is_owner() {
            shared.claim_more().await?;
        } else {
            shared.claim_all().await?;
        }
        tracing::info!(lanes = shared.state().lanes.names().len(), "took lanes over");
    }
    Ok(())
}

/// Gives the lanes back one by one, as soon as nothing of them is in flight. Ends with the outbox.
pub(super) async fn give_back(shared: Arc<Shared>) {
    shared.state().draining = true;
    let member = shared.member();
    if let Err(trouble) = shared.beat.drain(member).await {
        tracing::debug!(%trouble, "the lanes are given back at the end");
        return;
    }
    loop {
        let lanes = shared.state().lanes.let_go(shared.now());
        if !lanes.is_empty() {
            shared.tell();
            match shared.beat.release(member, &lanes).await {
                Ok(()) => tracing::info!(lanes = lanes.len(), "gave lanes back"),
                // Leaving gives them back.
                Err(trouble) => tracing::debug!(%trouble, "lanes are given back at the end"),
            }
        }
        tokio::select! {
            biased;
            () = shared.closed.cancelled() => return,
            () = shared.clock.sleep(GIVE_BACK_EVERY) => {}
        }
    }
}

/// What a failed beat or takeover means.
async fn failed(shared: &Shared, trouble: Trouble) {
    match trouble {
        Trouble::Fenced(why) if why == "replaced" => {
            let name = &shared.settings.member;
            shared.poison(format!("another daemon calls itself {name}, and has taken this one's place"));
        }
        Trouble::Fenced(why) => {
            tracing::warn!(why, "this daemon was taken for dead: joining anew");
            shared.fenced();
            shared.state().member = member_id(&shared.clock);
            if let Err(trouble) = enter(shared).await {
                tracing::warn!(%trouble, "joining failed; tried again");
            }
        }
        Trouble::Away(why) => tracing::debug!(why, "a beat failed"),
        Trouble::Poisoned(why) => shared.poison(why),
        Trouble::Replaced | Trouble::Locked(_) | Trouble::DiskFull(_) | Trouble::Refused(_) => {
            tracing::warn!(%trouble, "a beat failed");
        }
    }
}

/// Hears the news: at once after an own append, else often while some come, and less often when none do.
async fn listen(shared: &Shared) {
    let mut wait = POLL_MIN;
    loop {
        tokio::select! {
            biased;
            () = shared.bell.notified() => {}
            () = shared.clock.sleep(wait) => {}
        }
        wait = match shared.hear().await {
            Ok(true) => POLL_MIN,
            Ok(false) => (wait * 2).min(shared.settings.poll_max),
            Err(Trouble::Fenced(_)) => BEAT_EVERY,
            Err(trouble) => {
                tracing::debug!(%trouble, "the news could not be heard");
                shared.settings.poll_max
            }
        };
    }
}

/// Answers what other daemons ask.
async fn answer(shared: &Shared) {
    loop {
        shared.asked.notified().await;
        if let Err(trouble) = commands::serve(shared).await {
            tracing::debug!(%trouble, "questions of other daemons are not answered; tried again");
        }
    }
}

/// Tidies, a little at a time.
async fn tidy(shared: &Shared) {
    let mut round = 0_u64;
    loop {
        shared.clock.sleep(TIDY_EVERY).await;
        round += 1;
        if let Err(trouble) = tidy_once(shared, round.is_multiple_of(SELDOM)).await {
            tracing::debug!(%trouble, "tidying failed; tried again");
        }
    }
}

async fn tidy_once(shared: &Shared, also_seldom: bool) -> Result<(), Trouble> {
    while shared.beat.tend_arrivals(ARRIVALS_PIECE).await? == ARRIVALS_PIECE {}
    if !also_seldom {
        return Ok(());
    }
    set_windows(shared).await?;
    while shared.beat.tend_keys().await? {}
    shared.beat.tend_members().await?;
    if !shared.is_owner() {
        return Ok(());
    }
    shared.retire_idle(shared.now()).await?;
    let (limits, totals) = (&shared.settings.limits, shared.state().lanes.totals());
    let full = totals.events >= limits.events_max || totals.bytes >= crate::outbox::bytes_for_events(limits.bytes_max);
    shared.beat.set_full(full.then_some("the outbox is full: outbox.events_max or outbox.bytes_max is reached")).await
}

/// All that upkeep does within an hour.
#[cfg(test)]
pub(super) async fn sweep(shared: &Shared) -> Result<(), Trouble> {
    while shared.beat.tend_keys().await? {}
    Ok(())
}
