//! Stores events: gathers what waits, one statement and one commit for all of it.
//!
//! Holds: an event is answered as stored only after the commit has been confirmed (G1). Of two events with one key in a batch,
//! the second is decided by what became of the first.
//! Limits: [`QUEUE_MAX`] requests of [`QUEUE_KIB_MAX`] wait; a batch has up to [`BATCH_EVENTS_MAX`] events or
//! [`BATCH_BYTES_MAX`], and one request more.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::base::{New, Remembered, Room, Trouble, Verdict};
use super::engine::{Shared, away};
use super::live::Link;
use crate::clock::UnixMillis;
use crate::event::Event;
use crate::outbox::{Appended, Error, Full, bytes_for_events};

/// The most queued requests.
pub(super) const QUEUE_MAX: usize = 4_096;

/// The most memory of all queued requests, in KiB.
pub(super) const QUEUE_KIB_MAX: usize = 32 << 10;

/// The most events of a batch.
const BATCH_EVENTS_MAX: usize = 256;

/// The most memory of a batch.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// How often a batch is repeated whose locks were not granted.
const LOCK_TRIES: u32 = 4;

/// With less room than this, a batch is stored only after the news were heard, one batch at a time.
const TIGHT_EVENTS: u64 = 10_000;
const TIGHT_BYTES: u64 = 64 << 20;

/// A request, with its share of the queue.
pub(super) struct Queued {
    pub events: Vec<New>,
    pub now: UnixMillis,
    pub answer: oneshot::Sender<Result<Vec<Appended>, Error>>,
    pub permit: OwnedSemaphorePermit,
}

/// One of the tasks that store, with a connection of its own.
pub(super) async fn run(shared: Arc<Shared>, nth: usize, queue: Arc<tokio::sync::Mutex<mpsc::Receiver<Queued>>>) {
    loop {
        let batch = {
            let mut queue = queue.lock().await;
            let first = tokio::select! {
                biased;
                first = queue.recv() => first,
                () = shared.closed.cancelled() => queue.try_recv().ok(),
            };
            match first {
                Some(first) => gather(first, &mut queue),
                None => return,
            }
        };
        // Who has given up waiting was told that nothing is known to be stored. Nothing will be.
        let batch: Vec<Queued> = batch.into_iter().filter(|queued| !queued.answer.is_closed()).collect();
        if !batch.is_empty() {
            answer(&shared, &shared.append[nth], batch).await;
        }
    }
}

fn gather(first: Queued, queue: &mut mpsc::Receiver<Queued>) -> Vec<Queued> {
    let weight = |queued: &Queued| -> (usize, usize) {
        (queued.events.len(), queued.events.iter().map(|new| new.event.cost()).sum())
    };
    let (mut events, mut bytes) = weight(&first);
    let mut batch = vec![first];
    while events < BATCH_EVENTS_MAX && bytes < BATCH_BYTES_MAX {
        let Ok(next) = queue.try_recv() else { break };
        let (more, heavier) = weight(&next);
        events += more;
        bytes += heavier;
        batch.push(next);
    }
    batch
}

async fn answer(shared: &Shared, link: &Link, mut batch: Vec<Queued>) {
    let began = shared.clock.instant();
    let now = batch.iter().map(|queued| queued.now).max().unwrap_or_default();
    let lengths: Vec<usize> = batch.iter().map(|queued| queued.events.len()).collect();
    let events: Vec<New> = batch.iter_mut().flat_map(|queued| std::mem::take(&mut queued.events)).collect();
    let stored = store(shared, link, &events, now).await;
    if let Err(Trouble::Refused(why)) = &stored
        && batch.len() > 1
    {
        // One request has what the database does not accept. The others must not suffer from it.
        tracing::warn!(why, "the database refused a batch: its requests are stored one by one");
        let mut events = events.into_iter();
        for (queued, length) in batch.into_iter().zip(lengths) {
            let own: Vec<New> = events.by_ref().take(length).collect();
            let stored = store(shared, link, &own, now).await;
            drop(
                queued.answer.send(
                    stored.map_err(|trouble| shared.error(trouble)).and_then(|answers| whole(answers.into_iter())),
                ),
            );
        }
        return;
    }
    match stored {
        Ok(answers) => {
            shared.metrics.outbox_flush_seconds.observe(began.elapsed().as_secs_f64());
            shared.metrics.outbox_batch_events.observe(answers.len() as f64);
            let mut answers = answers.into_iter();
            for (queued, length) in batch.into_iter().zip(lengths) {
                drop(queued.permit);
                drop(queued.answer.send(whole(answers.by_ref().take(length))));
            }
        }
        Err(trouble) => {
            let error = shared.error(trouble);
            batch.into_iter().for_each(|queued| drop(queued.answer.send(Err(error.clone()))));
        }
    }
}

/// The answer to a request. If one of its events is busy, the request is sent again as a whole.
fn whole(answers: impl Iterator<Item = Answer>) -> Result<Vec<Appended>, Error> {
    answers.collect::<Result<_, _>>().map_err(|Busy| Busy::error())
}

/// An open transaction of somebody else holds the key of an event. Until it ends, nobody knows whether the event is a repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

impl Busy {
    pub(super) fn error() -> Error {
        away("an open transaction of another program holds the idempotency key".to_owned())
    }
}

type Answer = Result<Appended, Busy>;

/// Stores events and says what became of each.
pub(super) async fn store(
    shared: &Shared,
    link: &Link,
    events: &[New],
    now: UnixMillis,
) -> Result<Vec<Answer>, Trouble> {
    let mut answers: Vec<Option<Answer>> = vec![None; events.len()];
    loop {
        let turn = next_turn(events, &answers);
        if turn.is_empty() {
            break;
        }
        let batch: Vec<New> = turn.iter().map(|nth| events[*nth].clone()).collect();
        let verdicts = store_once(shared, link, &batch, now).await?;
        for (nth, appended) in turn.into_iter().zip(verdicts) {
            answers[nth] = Some(appended);
        }
        decide_repeats(events, &mut answers);
    }
    shared.ring();
    Ok(answers.into_iter().flatten().collect())
}

/// The events to store next: of those with the same key, the first only.
fn next_turn(events: &[New], answers: &[Option<Answer>]) -> Vec<usize> {
    let mut keys = std::collections::BTreeSet::new();
    let is_first =
        |new: &New, keys: &mut std::collections::BTreeSet<Remembered>| new.key.is_none_or(|key| keys.insert(key));
    let open = events.iter().enumerate().filter(|(nth, _)| answers[*nth].is_none());
    open.filter(|(_, new)| is_first(new, &mut keys)).map(|(nth, _)| nth).collect()
}

/// Decides repeats within a batch, as far as the answer to the first tells.
fn decide_repeats(events: &[New], answers: &mut [Option<Answer>]) {
    let mut firsts: BTreeMap<Remembered, usize> = BTreeMap::new();
    for nth in 0..events.len() {
        let Some(key) = events[nth].key else { continue };
        if answers[nth].is_some() {
            firsts.entry(key).or_insert(nth);
            continue;
        }
        let Some(&first) = firsts.get(&key) else { continue };
        let same = events[first].print == events[nth].print;
        answers[nth] = match &answers[first] {
            Some(Ok(Appended::Stored)) => Some(Ok(repeat(events[first].event.id, same))),
            Some(Ok(Appended::Repeat { first })) => Some(Ok(repeat(*first, same))),
            Some(Ok(Appended::Conflict { first })) if same => Some(Ok(Appended::Conflict { first: *first })),
            Some(Err(Busy)) => Some(Err(Busy)),
            // Another payload, of which nothing is known; or the first found no room.
            Some(Ok(Appended::Conflict { .. } | Appended::Full(_))) | None => None,
        };
    }
}

fn repeat(first: crate::event::EventId, same: bool) -> Appended {
    if same { Appended::Repeat { first } } else { Appended::Conflict { first } }
}

/// Stores events with different keys. Makes way for new functions, if there are too many.
async fn store_once(shared: &Shared, link: &Link, events: &[New], now: UnixMillis) -> Result<Vec<Answer>, Trouble> {
    let mut answers: Vec<Option<Answer>> = vec![None; events.len()];
    loop {
        let open: Vec<usize> = (0..events.len()).filter(|nth| answers[*nth].is_none()).collect();
        if open.is_empty() {
            return Ok(answers.into_iter().flatten().collect());
        }
        let batch: Vec<New> = open.iter().map(|nth| events[*nth].clone()).collect();
        let (room, verdicts) = send(shared, link, &batch).await?;
        let mut crowded_out = Vec::new();
        let mut refused: BTreeMap<usize, Verdict> = verdicts.into_iter().collect();
        for (at, nth) in open.into_iter().enumerate() {
            let verdict = refused.remove(&at);
            if verdict == Some(Verdict::NoFunctions) {
                crowded_out.push(nth);
                continue;
            }
            answers[nth] = Some(match verdict {
                None => Ok(Appended::Stored),
                Some(Verdict::Busy) => Err(Busy),
                Some(verdict) => Ok(answer_of(shared, verdict, &events[nth].event, room)),
            });
        }
        if !crowded_out.is_empty() {
            shared.ring();
            shared.catch_up().await?;
            if !shared.make_way(now).await? {
                let limit = shared.settings.limits.functions_max;
                for nth in crowded_out {
                    answers[nth] = Some(Ok(Appended::Full(Full::Functions { used: limit, limit })));
                }
            }
        }
    }
}

async fn send(shared: &Shared, link: &Link, events: &[New]) -> Result<(Room, Vec<(usize, Verdict)>), Trouble> {
    let mut careful = false;
    for _ in 0..LOCK_TRIES {
        let (room, _alone) = room(shared).await?;
        match link.append(shared.member(), events, room, careful).await {
            Err(Trouble::Locked(_)) => careful = true,
            Err(trouble) => return Err(trouble),
            Ok(verdicts) => {
                // Before the next batch looks at the room.
                shared.ring();
                return Ok((room, verdicts));
            }
        }
    }
    Err(Trouble::Locked("the generation of keys is being changed".to_owned()))
}

/// How much may still be stored. Near a limit, whoever stores is alone, and has heard of all before.
pub(super) async fn room(shared: &Shared) -> Result<(Room, Option<tokio::sync::MutexGuard<'_, ()>>), Trouble> {
    let room = room_left(shared);
    if room.events > TIGHT_EVENTS && room.bytes > TIGHT_BYTES {
        return Ok((room, None));
    }
    let alone = shared.storing.lock().await;
    shared.catch_up().await?;
    Ok((room_left(shared), Some(alone)))
}

/// How much may still be stored, as far as this daemon knows: others tell with their beats what they have.
pub(super) fn room_left(shared: &Shared) -> Room {
    let limits = &shared.settings.limits;
    let state = shared.state();
    let (mut events, mut bytes) = (state.lanes.totals().events, state.lanes.totals().bytes);
    for member in state.members.iter().filter(|member| member.id != state.member) {
        events += member.events;
        bytes += member.bytes;
    }
    Room {
        events: limits.events_max.saturating_sub(events),
        bytes: bytes_for_events(limits.bytes_max).saturating_sub(bytes),
        functions: limits.functions_max,
    }
}

/// What a client is told of an event that was not stored.
pub(super) fn answer_of(shared: &Shared, verdict: Verdict, event: &Event, room: Room) -> Appended {
    let limits = &shared.settings.limits;
    let bytes_max = bytes_for_events(limits.bytes_max);
    match verdict {
        Verdict::Repeat { first } => Appended::Repeat { first },
        Verdict::Conflict { first } => Appended::Conflict { first },
        Verdict::NoBytes => Appended::Full(Full::Bytes {
            used: bytes_max.saturating_sub(room.bytes),
            wanted: event.payload.len() as u64,
            limit: bytes_max,
        }),
        Verdict::NoEvents => Appended::Full(Full::Events {
            used: limits.events_max.saturating_sub(room.events),
            limit: limits.events_max,
        }),
        Verdict::NoFunctions => {
            Appended::Full(Full::Functions { used: limits.functions_max, limit: limits.functions_max })
        }
        // Never answered: whoever is busy is told to come back.
        Verdict::Busy => Appended::Full(Full::Behind),
    }
}

/// The answer of an append that took too long.
pub(super) fn too_late(limit: std::time::Duration) -> Error {
    away(format!("storing took longer than {} s", limit.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::event::testing::event;
    use crate::event::{IdempotencyKey, KeySource};
    use crate::outbox::postgres::keys;

    fn keyed(clock: &Clock, payload: &str, key: &str) -> New {
        let key = IdempotencyKey { value: key.to_owned(), source: KeySource::Header };
        keys::new(Event { key, payload: payload.to_owned().into(), ..event(clock, "orders") })
    }

    #[test]
    fn repeats_within_a_batch_are_decided_by_what_became_of_the_first() {
        let clock = Clock::seeded(UnixMillis(1), 1);
        let events =
            [keyed(&clock, "1", "k"), keyed(&clock, "2", "other"), keyed(&clock, "1", "k"), keyed(&clock, "2", "k")];
        let first = events[0].event.id;
        let mut answers = vec![None; 4];
        assert_eq!(next_turn(&events, &answers), [0, 1]);
        answers[0] = Some(Ok(Appended::Stored));
        answers[1] = Some(Ok(Appended::Stored));
        decide_repeats(&events, &mut answers);
        assert_eq!(answers[2..], [Some(Ok(Appended::Repeat { first })), Some(Ok(Appended::Conflict { first }))]);

        // The first is a conflict with something unknown, which the other payload may be equal to.
        let first = keyed(&clock, "x", "y").event.id;
        let mut answers = vec![Some(Ok(Appended::Conflict { first })), Some(Ok(Appended::Stored)), None, None];
        decide_repeats(&events, &mut answers);
        assert_eq!(answers[2..], [Some(Ok(Appended::Conflict { first })), None]);
        assert_eq!(next_turn(&events, &answers), [3]);
    }
}
