//! Changes of single events and of what waits in a lane, by their owner, or by this daemon for another one.
//!
//! Holds: an event that a call changes is leased meanwhile, so that nobody attempts it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::base::{Remembered, Stored, Trouble};
use super::commands::{Answer, CHANGE_WITHIN, Question, ask, moving, owners, unexpected};
use super::engine::Shared;
use super::keys;
use super::lanes::Held;
use super::operate::LIST_READS_MAX;
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::operator::{Keys, LIVE, PIECE_EVENTS, Purge, Purged};
use crate::outbox::{Error, Lease, Place};

/// The most events of one question.
const ASKED_MAX: usize = 100;

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Cancel { keep_keys: bool },
    AttemptNow,
    Revive { redrives_max: u32 },
    Discard { keep_keys: bool },
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Changed {
    Done,
    /// It is stored again, under this id.
    Stored(EventId),
    NotFound,
    /// Being attempted, or shipped.
    InFlight,
    Buried,
    /// It was redriven so often already.
    Ceiling(u32),
    /// Another daemon has the lane with this number.
    Elsewhere(i64),
}

fn keys_of(keep_keys: bool) -> Keys {
    if keep_keys { Keys::Keep } else { Keys::Forget }
}

/// Changes events wherever they are. Returns what became of each, in order.
pub(super) async fn change(
    shared: &Shared,
    what: What,
    ids: &[EventId],
    now: UnixMillis,
) -> Result<Vec<Changed>, Error> {
    let deadline = shared.clock.instant() + CHANGE_WITHIN;
    let mut changed: Vec<Option<Changed>> = vec![None; ids.len()];
    loop {
        let mut elsewhere: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (nth, id) in ids.iter().enumerate().filter(|(nth, _)| changed[*nth].is_none()).collect::<Vec<_>>() {
            let one = change_here(shared, what, *id, now).await?;
            if let Changed::Elsewhere(lane) = one {
                elsewhere.entry(lane).or_default().push(nth);
            } else {
                changed[nth] = Some(one);
            }
        }
        let lanes: Vec<i64> = elsewhere.keys().copied().collect();
        if lanes.is_empty() {
            return Ok(changed.into_iter().flatten().collect());
        }
        let mut asked: BTreeMap<(i64, String), Vec<usize>> = BTreeMap::new();
        for (lane, owner) in owners(shared, &lanes).await? {
            if let Some(owner) = owner {
                asked.entry(owner).or_default().extend(elsewhere.remove(&lane).unwrap_or_default());
            }
        }
        for ((member, name), nths) in asked {
            for piece in nths.chunks(ASKED_MAX) {
                let question = Question::Change { what, ids: piece.iter().map(|nth| ids[*nth]).collect() };
                match ask(shared, (member, &name), &question, CHANGE_WITHIN).await? {
                    Answer::Changed(of_it) if of_it.len() == piece.len() => {
                        let known = piece.iter().zip(of_it).filter(|(_, one)| !matches!(one, Changed::Elsewhere(_)));
                        known.for_each(|(nth, one)| changed[*nth] = Some(one));
                    }
                    Answer::NotHere => {}
                    Answer::Changed(_)
                    | Answer::Purged(_)
                    | Answer::InFlight(_)
                    | Answer::Census(_)
                    | Answer::Informed(_)
                    | Answer::Failed(_) => return Err(unexpected(&name)),
                }
            }
        }
        if changed.iter().any(Option::is_none) {
            moving(shared, deadline).await?;
        }
    }
}

/// Changes an event of an own lane.
pub(super) async fn change_here(shared: &Shared, what: What, id: EventId, now: UnixMillis) -> Result<Changed, Error> {
    let with_payload = matches!(what, What::Revive { .. });
    let found = async {
        // Or an event of a new lane would be taken for another daemon's.
        shared.catch_up().await?;
        shared.read.find(id, with_payload).await
    };
    let found = found.await.map_err(|trouble| shared.error(trouble))?;
    let Some((function, stored)) = found else { return Ok(Changed::NotFound) };
    let is_letter = matches!(what, What::Revive { .. } | What::Discard { .. });
    match (stored.place, is_letter) {
        (Place::Buried, false) => return Ok(Changed::Buried),
        (Place::Ready | Place::Waiting | Place::Scheduled, true) => return Ok(Changed::NotFound),
        (Place::Buried, true) | (Place::Ready | Place::Waiting | Place::Scheduled, false) => {}
    }
    let taken = match take(shared, function, stored) {
        Ok(taken) => taken,
        Err(not) => return Ok(not),
    };
    match what {
        What::Cancel { keep_keys } => removed(shared, taken, keep_keys, now).await,
        What::Discard { keep_keys } => {
            let function = taken.function.clone();
            let done = removed(shared, taken, keep_keys, now).await?;
            if done == Changed::Done {
                tracing::warn!(event_id = %id, %function, "dead letter purged");
            }
            Ok(done)
        }
        What::AttemptNow => attempt_now(shared, taken, now).await,
        What::Revive { redrives_max } => revive(shared, taken, redrives_max, now).await,
    }
}

async fn removed(shared: &Shared, taken: Taken, keep_keys: bool, now: UnixMillis) -> Result<Changed, Error> {
    let removed = remove(shared, &[taken], keys_of(keep_keys), now).await.map_err(|trouble| shared.error(trouble))?;
    Ok(if removed == [true] { Changed::Done } else { Changed::NotFound })
}

/// An event that a call changes, leased meanwhile.
struct Taken {
    stored: Stored,
    function: FunctionName,
    lease: Lease,
}

/// Leases an event of an own lane, so that nobody attempts it while it changes. The caller must settle or release it.
fn take(shared: &Shared, function: FunctionName, stored: Stored) -> Result<Taken, Changed> {
    let mut state = shared.state();
    let Some(lane) = state.lanes.of_number(stored.lane) else { return Err(Changed::Elsewhere(stored.lane)) };
    let held = Held {
        place: stored.place,
        due: stored.due,
        expires_at: stored.expires_at,
        bytes: stored.bytes,
        key: None,
        settling: true,
        doubtful: false,
    };
    if !state.lanes.take(lane, stored.id, held) {
        return Err(Changed::InFlight);
    }
    let lease = Lease { lane, id: stored.id };
    Ok(Taken { stored, function, lease })
}

/// The remembered key of an event without its payload.
fn key_of(taken: &Taken) -> Option<Remembered> {
    keys::remembered(&taken.stored.clone().into_event(&taken.function))
}

/// Removes leased events. Returns whether each was there.
async fn remove(shared: &Shared, taken: &[Taken], keys: Keys, now: UnixMillis) -> Result<Vec<bool>, Trouble> {
    let events: Vec<_> = taken.iter().map(|one| (one.stored.lane, one.stored.id, one.stored.place)).collect();
    let _reading = shared.reading.read().await;
    let removed = shared.read.remove(shared.member(), &events).await;
    let known = |one: &Taken| [key_of(one), Some(keys::adopted(one.stored.id))].into_iter().flatten();
    let forgotten: Vec<_> = taken.iter().flat_map(|one| known(one).map(|key| (key, one.stored.id))).collect();
    let removed = match removed {
        Ok(removed) if keys == Keys::Forget && !forgotten.is_empty() => {
            shared.read.forget(&forgotten).await.map(|()| removed)
        }
        other => other,
    };
    let mut state = shared.state();
    let removed = match removed {
        Ok(removed) => removed,
        Err(trouble) => {
            for one in taken {
                state.lanes.release(one.lease);
                state.lanes.doubt(one.stored.lane);
            }
            return Err(trouble);
        }
    };
    let mut answers = Vec::new();
    for one in taken {
        let was_there = removed.contains(&one.stored.id);
        if was_there {
            state.lanes.left(one.lease, now);
        } else {
            state.lanes.release(one.lease);
        }
        answers.push(was_there);
    }
    drop(state);
    shared.tell();
    Ok(answers)
}

async fn attempt_now(shared: &Shared, taken: Taken, now: UnixMillis) -> Result<Changed, Error> {
    let (lease, stored) = (taken.lease, taken.stored);
    if stored.due.is_none_or(|due| due <= now) {
        shared.state().lanes.release(lease);
        return Ok(Changed::Done);
    }
    let _reading = shared.reading.read().await;
    let history = stored.history.as_deref();
    let done = shared.read.attempt_now(shared.member(), stored.lane, stored.id, now, history).await;
    {
        let mut state = shared.state();
        match done {
            Ok(true) => state.lanes.waits(lease, stored.place, now),
            Ok(false) => state.lanes.release(lease),
            Err(_) => {
                state.lanes.release(lease);
                state.lanes.doubt(stored.lane);
            }
        }
    }
    shared.tell();
    done.map(|_| Changed::Done).map_err(|trouble| shared.error(trouble))
}

async fn revive(shared: &Shared, taken: Taken, redrives_max: u32, now: UnixMillis) -> Result<Changed, Error> {
    let (lease, stored) = (taken.lease, &taken.stored);
    if stored.redrives >= redrives_max {
        shared.state().lanes.release(lease);
        return Ok(Changed::Ceiling(stored.redrives));
    }
    let new = EventId::mint(now, shared.clock.random_bits(), &taken.function);
    let (lane, bytes, id) = (stored.lane, stored.bytes, stored.id);
    let event = Event { id: new, ..taken.stored.clone().into_event(&taken.function) };
    let reading = shared.reading.read().await;
    let revived = shared.read.revive(shared.member(), lane, id, new).await;
    {
        let mut state = shared.state();
        if let Ok(true) = revived {
            state.lanes.left(lease, now);
            state.lanes.added(lease.lane, Place::Ready, new, bytes, None);
        } else {
            state.lanes.release(lease);
        }
        if revived.is_err() {
            state.lanes.doubt(lane);
        }
    }
    drop(reading);
    shared.tell();
    if !revived.map_err(|trouble| shared.error(trouble))? {
        return Ok(Changed::NotFound);
    }
    let again: Vec<_> = again(&event).into_iter().collect();
    if !again.is_empty() {
        shared.read.remember_again(&again).await.map_err(|trouble| shared.error(trouble))?;
    }
    Ok(Changed::Stored(new))
}

/// What makes an event's own key its own again.
pub(super) fn again(event: &Event) -> Option<(Remembered, EventId, [u8; 16])> {
    Some((keys::remembered(event)?, event.id, keys::print(&event.payload)))
}

/// A piece of a purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    function: FunctionName,
    /// Its place in `Place::ALL`.
    place: Option<usize>,
    accepted_before: Option<UnixMillis>,
    dry_run: bool,
    keep_keys: bool,
    after: Option<EventId>,
}

/// What a piece removed, and where the next one begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PurgedPiece {
    events: u64,
    bytes: u64,
    ids: Vec<EventId>,
    next: Option<EventId>,
}

/// Purges a piece of a lane, wherever that is. Returns where the next piece begins.
pub(super) async fn purge(
    shared: &Shared,
    purge: &Purge,
    after: Option<EventId>,
    now: UnixMillis,
) -> Result<(Purged, Option<EventId>), Error> {
    let deadline = shared.clock.instant() + CHANGE_WITHIN;
    let piece = Piece {
        function: purge.function.clone(),
        place: purge.place.map(|place| place as usize),
        accepted_before: purge.accepted_before,
        dry_run: purge.dry_run,
        keep_keys: purge.keys == Keys::Keep,
        after,
    };
    let lane = keys::lane(&purge.function);
    let PurgedPiece { events, bytes, ids, next } = loop {
        if let Some(purged) = purge_here(shared, &piece, now).await? {
            break purged;
        }
        let owner = match owners(shared, &[lane]).await?.remove(&lane) {
            // There is no such function.
            None => break PurgedPiece::default(),
            Some(owner) => owner,
        };
        if let Some((member, name)) = owner {
            match ask(shared, (member, &name), &Question::Purge(piece.clone()), CHANGE_WITHIN).await? {
                Answer::Purged(purged) => break purged,
                Answer::NotHere => {}
                Answer::Changed(_)
                | Answer::InFlight(_)
                | Answer::Census(_)
                | Answer::Informed(_)
                | Answer::Failed(_) => return Err(unexpected(&name)),
            }
        }
        moving(shared, deadline).await?;
    };
    Ok((Purged { events, bytes, ids }, next))
}

/// Purges a piece of an own lane. `None` if it is not one.
pub(super) async fn purge_here(shared: &Shared, piece: &Piece, now: UnixMillis) -> Result<Option<PurgedPiece>, Error> {
    let lane = keys::lane(&piece.function);
    let found = async {
        shared.catch_up().await?;
        if shared.state().lanes.of_number(lane).is_none() {
            return Ok(None);
        }
        find_piece(shared, lane, piece).await.map(Some)
    };
    let Some((heads, next)) = found.await.map_err(|trouble| shared.error(trouble))? else { return Ok(None) };
    let mut purged = PurgedPiece { next, ..PurgedPiece::default() };
    if piece.dry_run {
        let state = shared.state();
        for stored in heads.iter().filter(|stored| !state.lanes.is_leased(stored.lane, stored.id)) {
            purged.events += 1;
            purged.bytes += stored.bytes;
        }
        return Ok(Some(purged));
    }
    let (mut taken, mut is_gone) = (Vec::new(), false);
    for stored in heads.into_iter().filter(|stored| LIVE.contains(&stored.place)) {
        match take(shared, piece.function.clone(), stored) {
            Ok(one) => taken.push(one),
            Err(not) => is_gone |= matches!(not, Changed::Elsewhere(_)),
        }
    }
    if is_gone {
        // The lane has left meanwhile. Its new owner does all of the piece.
        let mut state = shared.state();
        taken.iter().for_each(|one| state.lanes.release(one.lease));
        return Ok(None);
    }
    if taken.is_empty() {
        return Ok(Some(purged));
    }
    let removed = remove(shared, &taken, keys_of(piece.keep_keys), now).await;
    let removed = removed.map_err(|trouble| shared.error(trouble))?;
    for (one, _) in taken.iter().zip(removed).filter(|(_, removed)| *removed) {
        purged.events += 1;
        purged.bytes += one.stored.bytes;
        purged.ids.push(one.stored.id);
    }
    Ok(Some(purged))
}

/// The events of a piece, and where the next one begins.
async fn find_piece(shared: &Shared, lane: i64, piece: &Piece) -> Result<(Vec<Stored>, Option<EventId>), Trouble> {
    let place = piece.place.and_then(|nth| Place::ALL.get(nth).copied());
    let rows = shared.read.list(&[lane], piece.after, place, PIECE_EVENTS, LIST_READS_MAX).await?;
    let is_full = rows.len() >= PIECE_EVENTS || rows.iter().any(|row| row.place.is_none());
    let next = rows.last().map(|row| row.id).filter(|_| is_full);
    let fits = |id: EventId| piece.accepted_before.is_none_or(|before| id.accepted_at() < before);
    let is_live = |place: Option<Place>| place.is_some_and(|place| LIVE.contains(&place));
    let wanted: Vec<_> =
        rows.iter().filter(|row| is_live(row.place) && fits(row.id)).map(|row| (row.lane, row.id)).collect();
    Ok((shared.read.heads(&wanted).await?, next))
}
