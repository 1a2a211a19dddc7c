//! Operators' calls. Reading works on every daemon. Changes work on the daemon that has the lanes.
//!
//! Holds: an event that a call changes is leased meanwhile, so that nobody attempts it.

use std::sync::Arc;

use super::appending::{Busy, answer_of, store};
use super::base::{New, Remembered, Room, Stored, Trouble, Verdict};
use super::engine::Shared;
use super::handle::{Handle, elsewhere};
use super::keys::{self, Family};
use super::lanes::Held;
use crate::clock::UnixMillis;
use crate::event::{EVENT_BYTES, Event, EventId, FunctionName};
use crate::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Letter, Redriven, Revived};
use crate::outbox::operator::{
    Cursor, Keys, KnownKey, LIVE, LOOKED_AT_MAX, ListFilter, ListWant, Listed, Operator, PAGE_MAX, PIECE_EVENTS, Page,
    Purge, Purged, Touched,
};
use crate::outbox::{Appended, Error, Full, History, LaneView, Lease, Place, bytes_for_events};

/// The most rows of a lane that a page visits at once.
const LIST_READS_MAX: usize = 2_000;

/// The most dead letters that a page visits, and the most bytes of events that it reads.
const PAGE_RECORDS_MAX: usize = 1_000;
const PAGE_BYTES_MAX: usize = 2 << 20;

impl Operator for Handle {
    async fn lane(&self, function: &FunctionName) -> Result<Option<LaneView>, Error> {
        let function = function.clone();
        self.now();
        self.run(move |shared| async move {
            let view = async {
                shared.catch_up().await?;
                let id = shared.state().lanes.id_of(&function);
                match id {
                    Some(id) => shared.view_of(id).await,
                    None => Ok(None),
                }
            };
            view.await.map_err(|trouble| shared.error(trouble))
        })
        .await
    }

    async fn pause(&self, function: &FunctionName, paused: bool) -> Result<(), Error> {
        let function = function.clone();
        self.now();
        self.run(move |shared| async move {
            pause(&shared, &function, paused).await.map_err(|trouble| shared.error(trouble))
        })
        .await
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, Error> {
        let (mut purged, mut after) = (Purged::default(), None);
        let now = self.now();
        loop {
            let purge = purge.clone();
            let (piece, next) = self.run(move |shared| purge_piece(shared, purge, after, now)).await?;
            purged.add(piece);
            after = next;
            if after.is_none() {
                return Ok(purged);
            }
        }
    }

    async fn cancel(&self, id: EventId, keys: Keys) -> Result<Touched, Error> {
        let now = self.now();
        self.run(move |shared| async move { cancel(&shared, id, keys, now).await }).await
    }

    async fn attempt_now(&self, id: EventId) -> Result<Touched, Error> {
        let now = self.now();
        self.run(move |shared| async move { attempt_now(&shared, id, now).await }).await
    }

    async fn known_key(
        &self,
        function: &FunctionName,
        tenant: Option<String>,
        key: String,
    ) -> Result<Option<KnownKey>, Error> {
        let key = keys::given(Family::Given, function, tenant.as_deref(), &key);
        self.now();
        self.run(move |shared| async move {
            let known = shared.read.known_key(key).await.map_err(|trouble| shared.error(trouble))?;
            Ok(known.map(|(first, expires_at)| KnownKey { first, expires_at }))
        })
        .await
    }

    async fn list(&self, want: ListWant) -> Result<Page, Error> {
        self.run(move |shared| async move { list(&shared, &want).await.map_err(|trouble| shared.error(trouble)) }).await
    }

    async fn buried(&self, want: BuriedWant) -> Result<BuriedPage, Error> {
        self.run(move |shared| async move { buried(&shared, &want).await.map_err(|trouble| shared.error(trouble)) })
            .await
    }

    async fn redrive(&self, events: Vec<Redriven>) -> Result<Vec<Appended>, Error> {
        let now = self.now();
        self.run(move |shared| async move {
            let stored = redrive(&shared, events, now).await.map_err(|trouble| shared.error(trouble))?;
            stored.into_iter().collect::<Result<_, _>>().map_err(|Busy| Busy::error())
        })
        .await
    }

    async fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> Result<Vec<Revived>, Error> {
        let mut answers = Vec::with_capacity(ids.len());
        for id in ids {
            let now = self.now();
            answers.push(self.run(move |shared| async move { revive(&shared, id, redrives_max, now).await }).await?);
        }
        Ok(answers)
    }

    async fn import(&self, letters: Vec<(Event, History)>) -> Result<Vec<Imported>, Error> {
        let mut answers = Vec::with_capacity(letters.len());
        for (event, history) in letters {
            let now = self.now();
            answers.push(self.run(move |shared| async move { import(&shared, event, history, now).await }).await?);
        }
        Ok(answers)
    }

    async fn discard(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Discarded>, Error> {
        let mut answers = Vec::with_capacity(ids.len());
        for id in ids {
            let now = self.now();
            answers.push(self.run(move |shared| async move { discard(&shared, id, keys, now).await }).await?);
        }
        Ok(answers)
    }
}

async fn pause(shared: &Shared, function: &FunctionName, paused: bool) -> Result<(), Trouble> {
    let known = shared.state().lanes.id_of(function);
    shared.read.pause(function.as_str(), paused).await?;
    match known {
        Some(id) => {
            shared.state().lanes.pause(id, paused);
            shared.tell();
        }
        // It may have got its lane by this.
        None if paused && shared.owner_elsewhere().is_none() => shared.claim_all().await?,
        None => {}
    }
    Ok(())
}

/// An event that a call changes, leased meanwhile.
struct Taken {
    stored: Stored,
    function: FunctionName,
    lease: Lease,
}

/// Why an event cannot be changed.
enum Not {
    Found,
    Free,
    Here,
}

/// Finds an event and leases it, so that nobody attempts it while it changes. The caller must settle or release it.
async fn take(shared: &Shared, id: EventId, payload: bool) -> Result<Result<Taken, (Not, Option<Place>)>, Error> {
    let found = async {
        // Or an event of a new lane would be taken for another daemon's.
        shared.catch_up().await?;
        shared.read.find(id, payload).await
    };
    let found = found.await.map_err(|trouble| shared.error(trouble))?;
    let Some((function, stored)) = found else { return Ok(Err((Not::Found, None))) };
    Ok(take_stored(shared, function, stored))
}

fn take_stored(shared: &Shared, function: FunctionName, stored: Stored) -> Result<Taken, (Not, Option<Place>)> {
    let mut state = shared.state();
    let place = Some(stored.place);
    let Some(lane) = state.lanes.of_number(stored.lane) else { return Err((Not::Here, place)) };
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
        return Err((Not::Free, place));
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

async fn cancel(shared: &Shared, id: EventId, keys: Keys, now: UnixMillis) -> Result<Touched, Error> {
    let taken = match take(shared, id, false).await? {
        Ok(taken) => taken,
        Err(why) => return not_touched(shared, &why),
    };
    if taken.stored.place == Place::Buried {
        shared.state().lanes.release(taken.lease);
        return Ok(Touched::Buried);
    }
    let removed = remove(shared, &[taken], keys, now).await.map_err(|trouble| shared.error(trouble))?;
    Ok(if removed == [true] { Touched::Done } else { Touched::NotFound })
}

fn not_touched(shared: &Shared, (not, place): &(Not, Option<Place>)) -> Result<Touched, Error> {
    match (not, place) {
        (Not::Found, _) => Ok(Touched::NotFound),
        (_, Some(Place::Buried)) => Ok(Touched::Buried),
        (Not::Free, _) => Ok(Touched::InFlight),
        (Not::Here, _) => Err(elsewhere(shared)),
    }
}

async fn attempt_now(shared: &Shared, id: EventId, now: UnixMillis) -> Result<Touched, Error> {
    let taken = match take(shared, id, false).await? {
        Ok(taken) => taken,
        Err(why) => return not_touched(shared, &why),
    };
    let (lease, place) = (taken.lease, taken.stored.place);
    let is_later = taken.stored.due.is_some_and(|due| due > now);
    match place {
        Place::Waiting | Place::Scheduled if is_later => {}
        Place::Ready | Place::Waiting | Place::Scheduled => {
            shared.state().lanes.release(lease);
            return Ok(Touched::Done);
        }
        Place::Buried => {
            shared.state().lanes.release(lease);
            return Ok(Touched::Buried);
        }
    }
    let _reading = shared.reading.read().await;
    let history = taken.stored.history.as_deref();
    let done = shared.read.attempt_now(shared.member(), taken.stored.lane, id, now, history).await;
    {
        let mut state = shared.state();
        match done {
            Ok(true) => state.lanes.waits(lease, place, now),
            Ok(false) => state.lanes.release(lease),
            Err(_) => {
                state.lanes.release(lease);
                state.lanes.doubt(taken.stored.lane);
            }
        }
    }
    shared.tell();
    done.map(|_| Touched::Done).map_err(|trouble| shared.error(trouble))
}

async fn purge_piece(
    shared: Arc<Shared>,
    purge: Purge,
    after: Option<EventId>,
    now: UnixMillis,
) -> Result<(Purged, Option<EventId>), Error> {
    let piece = async {
        shared.catch_up().await?;
        let lane = keys::lane(&purge.function);
        let rows = shared.read.list(&[lane], after, purge.place, PIECE_EVENTS, LIST_READS_MAX).await?;
        let next = rows
            .last()
            .map(|row| row.id)
            .filter(|_| rows.len() >= PIECE_EVENTS || rows.iter().any(|row| row.place.is_none()));
        let fits = |id: EventId| purge.accepted_before.is_none_or(|before| id.accepted_at() < before);
        let is_live = |place: Option<Place>| place.is_some_and(|place| LIVE.contains(&place));
        let wanted: Vec<_> =
            rows.iter().filter(|row| is_live(row.place) && fits(row.id)).map(|row| (row.lane, row.id)).collect();
        let heads = shared.read.heads(&wanted).await?;
        Ok((heads, next))
    };
    let (heads, next) = piece.await.map_err(|trouble| shared.error(trouble))?;
    let mut purged = Purged::default();
    if purge.dry_run {
        let free = heads.iter().filter(|stored| !shared.state().lanes.is_leased(stored.lane, stored.id));
        for stored in free {
            purged.events += 1;
            purged.bytes += stored.bytes;
        }
        return Ok((purged, next));
    }
    let mut taken = Vec::new();
    for stored in heads {
        match take_stored(&shared, purge.function.clone(), stored) {
            Ok(one) if LIVE.contains(&one.stored.place) => taken.push(one),
            Ok(one) => shared.state().lanes.release(one.lease),
            Err((Not::Here, _)) => return Err(elsewhere(&shared)),
            Err((Not::Free | Not::Found, _)) => {}
        }
    }
    if taken.is_empty() {
        return Ok((purged, next));
    }
    let removed = remove(&shared, &taken, purge.keys, now).await.map_err(|trouble| shared.error(trouble))?;
    for (one, _) in taken.iter().zip(removed).filter(|(_, removed)| *removed) {
        purged.events += 1;
        purged.bytes += one.stored.bytes;
        purged.ids.push(one.stored.id);
    }
    Ok((purged, next))
}

/// The lanes from where a page begins, in order: numbers and names.
async fn lanes_from(
    shared: &Shared,
    fits: impl Fn(&FunctionName) -> bool,
    after: Option<&Cursor>,
) -> Result<(Vec<(i64, FunctionName)>, Option<EventId>), Trouble> {
    let mut lanes = shared.read.functions().await?;
    lanes.retain(|(_, name)| fits(name) && after.is_none_or(|after| *name >= after.function));
    let within = after.filter(|after| lanes.first().is_some_and(|(_, name)| *name == after.function));
    Ok((lanes, within.map(|after| after.id)))
}

async fn list(shared: &Shared, want: &ListWant) -> Result<Page, Trouble> {
    let max = want.max.clamp(1, PAGE_MAX);
    let fits = |name: &FunctionName| want.function.as_ref().is_none_or(|pattern| name.fits(pattern.as_str()));
    let (lanes, after) = lanes_from(shared, fits, want.after.as_ref()).await?;
    let numbers: Vec<i64> = lanes.iter().map(|(number, _)| *number).collect();
    // Without a filter every row is shown. One more tells whether there is a next page.
    let rows_max = if want.filter == ListFilter::default() { max } else { LOOKED_AT_MAX };
    let rows = shared.read.list(&numbers, after, want.place, rows_max + 1, LIST_READS_MAX).await?;
    let (mut page, mut looked_at, mut last) = (Page::default(), 0, None);
    let name = |lane: i64| lanes.iter().find(|(number, _)| *number == lane).map(|(_, name)| name.clone());
    let state = shared.state();
    for row in rows {
        let Some(function) = name(row.lane) else { continue };
        let Some(place) = row.place else {
            page.next = Some(Cursor { function, id: row.id });
            break;
        };
        if page.events.len() == max || looked_at == LOOKED_AT_MAX {
            page.next = last;
            break;
        }
        looked_at += 1;
        last = Some(Cursor { function: function.clone(), id: row.id });
        let history = super::history::decode(row.history.as_deref(), row.due, row.id);
        let unreadable = history.as_ref().err().cloned();
        let leased = state.lanes.is_leased(row.lane, row.id);
        if !want.filter.fits(row.id, leased, history.as_ref().ok()) {
            continue;
        }
        let history = history.unwrap_or_default();
        page.events.push(Listed { id: row.id, function, place, leased, history, unreadable });
    }
    Ok(page)
}

async fn buried(shared: &Shared, want: &BuriedWant) -> Result<BuriedPage, Trouble> {
    let fits = |name: &FunctionName| want.filter.function.as_ref().is_none_or(|pattern| name.fits(pattern.as_str()));
    let (mut page, mut cursor) = (BuriedPage::default(), want.after.clone());
    let (mut records, mut bytes) = (0, 0);
    loop {
        let (lanes, after) = lanes_from(shared, fits, cursor.as_ref()).await?;
        let numbers: Vec<i64> = lanes.iter().map(|(number, _)| *number).collect();
        let left = PAGE_BYTES_MAX.saturating_sub(bytes).max(1);
        let wanted = want.letters_max.clamp(1, 100);
        let letters = shared.read.buried(&numbers, after, wanted, left, want.payloads).await?;
        if letters.is_empty() {
            return Ok(page);
        }
        for stored in letters {
            let Some((_, function)) = lanes.iter().find(|(number, _)| *number == stored.lane) else { continue };
            records += 1;
            cursor = Some(Cursor { function: function.clone(), id: stored.id });
            match stored.history() {
                Err(why) => page.unreadable.push((stored.id, why)),
                Ok(history) if want.filter.fits(&history) => {
                    let leased = shared.state().lanes.is_leased(stored.lane, stored.id);
                    let payload_bytes = stored.payload_bytes;
                    bytes += if want.payloads { payload_bytes } else { 0 } + EVENT_BYTES;
                    page.letters.push(Letter { event: stored.into_event(function), payload_bytes, history, leased });
                }
                Ok(_) => {}
            }
            let shown = page.letters.len() + page.unreadable.len();
            if shown >= want.letters_max || records >= PAGE_RECORDS_MAX || bytes >= PAGE_BYTES_MAX {
                page.next = cursor;
                return Ok(page);
            }
        }
    }
}

async fn redrive(
    shared: &Shared,
    events: Vec<Redriven>,
    now: UnixMillis,
) -> Result<Vec<Result<Appended, Busy>>, Trouble> {
    let new = |redriven: &Redriven| New {
        key: Some(keys::redriven(&redriven.event.function.name, &redriven.origin, redriven.event.redrives)),
        ..keys::new(redriven.event.clone())
    };
    let batch: Vec<New> = events.iter().map(new).collect();
    let answers = store(shared, &shared.append[0], &batch, now).await?;
    let stored = batch.iter().zip(&answers).filter(|(_, answer)| **answer == Ok(Appended::Stored));
    let again: Vec<_> = stored.filter_map(|(new, _)| again(&new.event)).collect();
    if !again.is_empty() {
        shared.append[0].remember_again(&again).await?;
    }
    Ok(answers)
}

/// What makes an event's own key its own again.
fn again(event: &Event) -> Option<(Remembered, EventId, [u8; 16])> {
    Some((keys::remembered(event)?, event.id, keys::print(&event.payload)))
}

async fn revive(shared: &Shared, id: EventId, redrives_max: u32, now: UnixMillis) -> Result<Revived, Error> {
    let taken = match take(shared, id, true).await? {
        Ok(taken) => taken,
        Err((Not::Free, Some(Place::Buried))) => return Ok(Revived::Leased),
        Err((Not::Here, Some(Place::Buried))) => return Err(elsewhere(shared)),
        Err(_) => return Ok(Revived::NotFound),
    };
    let (lease, stored) = (taken.lease, &taken.stored);
    let refused = match stored.place {
        Place::Ready | Place::Waiting | Place::Scheduled => Some(Revived::NotFound),
        Place::Buried if stored.redrives >= redrives_max => Some(Revived::Ceiling { redrives: stored.redrives }),
        Place::Buried => None,
    };
    if let Some(refused) = refused {
        shared.state().lanes.release(lease);
        return Ok(refused);
    }
    let new = EventId::mint(now, shared.clock.random_bits(), &taken.function);
    let (lane, bytes) = (stored.lane, stored.bytes);
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
        return Ok(Revived::NotFound);
    }
    let again: Vec<_> = again(&event).into_iter().collect();
    if !again.is_empty() {
        shared.read.remember_again(&again).await.map_err(|trouble| shared.error(trouble))?;
    }
    Ok(Revived::Stored { id: new })
}

async fn import(shared: &Shared, event: Event, history: History, now: UnixMillis) -> Result<Imported, Error> {
    import_one(shared, &event, &history, now).await.map_err(|trouble| shared.error(trouble))
}

async fn import_one(shared: &Shared, event: &Event, history: &History, now: UnixMillis) -> Result<Imported, Trouble> {
    loop {
        shared.catch_up().await?;
        let limits = &shared.settings.limits;
        let known = shared.state().lanes.id_of(&event.function.name);
        let totals = shared.state().lanes.totals();
        let room = Room {
            events: limits.events_max.saturating_sub(totals.events),
            bytes: bytes_for_events(limits.bytes_max).saturating_sub(totals.bytes),
            functions: limits.functions_max,
        };
        let reading = shared.reading.read().await;
        let verdict = shared.read.import(shared.member(), event, history, room).await;
        let verdict = verdict.inspect_err(|_| shared.state().lanes.doubt(keys::lane(&event.function.name)))?;
        match verdict {
            None => {
                if let Some(lane) = known {
                    let bytes = weight(event);
                    shared.state().lanes.added(lane, Place::Buried, event.id, bytes, Some(history.due));
                }
                drop(reading);
                if known.is_none() && shared.owner_elsewhere().is_none() {
                    shared.claim_all().await?;
                }
                shared.tell();
                let again: Vec<_> = again(event).into_iter().collect();
                if !again.is_empty() {
                    shared.read.remember_again(&again).await?;
                }
                return Ok(Imported::Stored);
            }
            Some(Verdict::Repeat { .. }) => return Ok(Imported::Repeat),
            Some(Verdict::NoFunctions) if shared.make_way(now).await? => {}
            Some(other) => {
                return Ok(match answer_of(shared, other, event, room) {
                    Appended::Full(full) => Imported::Full(full),
                    Appended::Stored | Appended::Repeat { .. } | Appended::Conflict { .. } => {
                        Imported::Full(Full::Behind)
                    }
                });
            }
        }
    }
}

/// What an event counts towards `bytes_max`, as the database computes it.
fn weight(event: &Event) -> u64 {
    let Event { function, key, carried, payload, .. } = event;
    let address = if function.address == function.name.as_str() { 0 } else { function.address.len() };
    let texts = [
        &function.qualifier,
        &function.region,
        &carried.trace_header,
        &carried.client_context,
        &carried.tenant_id,
        &carried.durable_execution_name,
    ];
    let texts: usize = texts.into_iter().flatten().map(String::len).sum();
    (128 + payload.len() + key.value.len() + address + texts) as u64
}

async fn discard(shared: &Shared, id: EventId, keys: Keys, now: UnixMillis) -> Result<Discarded, Error> {
    let taken = match take(shared, id, false).await? {
        Ok(taken) => taken,
        Err((Not::Free, Some(Place::Buried))) => return Ok(Discarded::Leased),
        Err((Not::Here, Some(Place::Buried))) => return Err(elsewhere(shared)),
        Err(_) => return Ok(Discarded::NotFound),
    };
    if taken.stored.place != Place::Buried {
        shared.state().lanes.release(taken.lease);
        return Ok(Discarded::NotFound);
    }
    let function = taken.function.clone();
    let removed = remove(shared, &[taken], keys, now).await.map_err(|trouble| shared.error(trouble))?;
    if removed != [true] {
        return Ok(Discarded::NotFound);
    }
    tracing::warn!(event_id = %id, %function, "dead letter purged");
    Ok(Discarded::Done)
}
