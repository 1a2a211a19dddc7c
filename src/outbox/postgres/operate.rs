//! Operators' calls. They work on every daemon: changes of events go to the owner of their lane (`changing`, `commands`).

use std::collections::BTreeSet;

use super::appending::{Busy, answer_of, room_left, store};
use super::base::{New, Trouble, Verdict};
use super::changing::{self, Changed, What, again};
use super::commands::{self, Answer, Question};
use super::engine::Shared;
use super::handle::Handle;
use super::keys::{self, Family};
use super::overview;
use crate::clock::UnixMillis;
use crate::event::{EVENT_BYTES, Event, EventId, FunctionName};
use crate::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Letter, Redriven, Revived};
use crate::outbox::operator::{
    Cursor, Informant, Keys, KnownKey, LOOKED_AT_MAX, ListFilter, ListWant, Listed, Operator, Overview, PAGE_MAX, Page,
    Purge, Purged, Touched,
};
use crate::outbox::{Appended, Error, Full, History, LaneId, LaneView, Place};

/// The most rows of a lane that a page visits at once.
pub(super) const LIST_READS_MAX: usize = 2_000;

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
                    None => shared.read.lane_elsewhere(keys::lane(&function)).await.map(|lane| lane.map(elsewhere)),
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
            let piece = self.run(move |shared| async move { changing::purge(&shared, &purge, after, now).await });
            let (piece, next) = piece.await?;
            purged.add(piece);
            after = next;
            if after.is_none() {
                return Ok(purged);
            }
        }
    }

    async fn cancel(&self, id: EventId, keys: Keys) -> Result<Touched, Error> {
        Ok(self.cancel_all(vec![id], keys).await?.pop().unwrap_or(Touched::NotFound))
    }

    async fn attempt_now(&self, id: EventId) -> Result<Touched, Error> {
        Ok(self.attempt_all(vec![id]).await?.pop().unwrap_or(Touched::NotFound))
    }

    async fn cancel_all(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Touched>, Error> {
        let what = What::Cancel { keep_keys: keys == Keys::Keep };
        Ok(self.change(what, ids).await?.into_iter().map(touched).collect())
    }

    async fn attempt_all(&self, ids: Vec<EventId>) -> Result<Vec<Touched>, Error> {
        Ok(self.change(What::AttemptNow, ids).await?.into_iter().map(touched).collect())
    }

    async fn overview(&self) -> Result<Overview, Error> {
        self.now();
        self.run(|shared| async move { overview::whole(&shared).await }).await
    }

    fn inform(&self, informant: Informant) {
        // The first one stays: there is one daemon around an outbox.
        drop(self.shared.informant.set(informant));
    }

    async fn ask_others(&self, question: String) -> Vec<String> {
        let answers = self.run(|shared| async move {
            // A few at a time: clients of the ingest listener cause some of them.
            let Ok(Ok(_turn)) = tokio::time::timeout(commands::TELL_WITHIN, shared.asking.acquire()).await else {
                return Ok(Vec::new());
            };
            let answers = commands::ask_all(&shared, &Question::Inform(question)).await;
            let informed = answers.into_iter().filter_map(|(_, answer)| match answer {
                Answer::Informed(text) => Some(text),
                Answer::Changed(_)
                | Answer::Purged(_)
                | Answer::InFlight(_)
                | Answer::Census(_)
                | Answer::NotHere
                | Answer::Failed(_) => None,
            });
            Ok(informed.collect())
        });
        answers.await.unwrap_or_default()
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
        self.run(move |shared| async move { list(&shared, &want).await }).await
    }

    async fn buried(&self, want: BuriedWant) -> Result<BuriedPage, Error> {
        self.run(move |shared| async move { buried(&shared, &want).await }).await
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
        let changed = self.change(What::Revive { redrives_max }, ids).await?;
        let revived = changed.into_iter().map(|changed| match changed {
            Changed::Stored(id) => Revived::Stored { id },
            Changed::Ceiling(redrives) => Revived::Ceiling { redrives },
            Changed::InFlight => Revived::Leased,
            Changed::Done | Changed::NotFound | Changed::Buried | Changed::Elsewhere(_) => Revived::NotFound,
        });
        Ok(revived.collect())
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
        let changed = self.change(What::Discard { keep_keys: keys == Keys::Keep }, ids).await?;
        let discarded = changed.into_iter().map(|changed| match changed {
            Changed::Done => Discarded::Done,
            Changed::InFlight => Discarded::Leased,
            Changed::Stored(_) | Changed::Ceiling(_) | Changed::NotFound | Changed::Buried | Changed::Elsewhere(_) => {
                Discarded::NotFound
            }
        });
        Ok(discarded.collect())
    }
}

impl Handle {
    async fn change(&self, what: What, ids: Vec<EventId>) -> Result<Vec<Changed>, Error> {
        let now = self.now();
        self.run(move |shared| async move { changing::change(&shared, what, &ids, now).await }).await
    }
}

fn touched(changed: Changed) -> Touched {
    match changed {
        Changed::Done => Touched::Done,
        Changed::InFlight => Touched::InFlight,
        Changed::Buried => Touched::Buried,
        Changed::Stored(_) | Changed::Ceiling(_) | Changed::NotFound | Changed::Elsewhere(_) => Touched::NotFound,
    }
}

/// The lane of another daemon, as far as it is known here.
fn elsewhere((function, paused, proven): (FunctionName, bool, bool)) -> LaneView {
    LaneView {
        // No lane of this process has this number.
        lane: LaneId(u32::MAX),
        function,
        ready: 0,
        next_due: None,
        oldest: None,
        buried: 0,
        next_ship: None,
        next_expiry: None,
        paused,
        spent: crate::outbox::Spent::default(),
        proven,
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
        None if paused && shared.may_claim() => shared.claim_all().await?,
        None => {}
    }
    Ok(())
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

async fn list(shared: &Shared, want: &ListWant) -> Result<Page, Error> {
    let max = want.max.clamp(1, PAGE_MAX);
    let fits = |name: &FunctionName| want.function.as_ref().is_none_or(|pattern| name.fits(pattern.as_str()));
    let read = async {
        let (lanes, after) = lanes_from(shared, fits, want.after.as_ref()).await?;
        let numbers: Vec<i64> = lanes.iter().map(|(number, _)| *number).collect();
        // Without a filter every row is shown. One more tells whether there is a next page.
        let rows_max = if want.filter == ListFilter::default() { max } else { LOOKED_AT_MAX };
        let rows = shared.read.list(&numbers, after, want.place, rows_max + 1, LIST_READS_MAX).await?;
        Ok((lanes, rows))
    };
    let (lanes, rows) = read.await.map_err(|trouble| shared.error(trouble))?;
    let events: Vec<_> = rows.iter().filter(|row| row.place.is_some()).map(|row| (row.lane, row.id)).collect();
    let in_flight = commands::in_flight(shared, &events).await?;
    let (mut page, mut looked_at, mut last) = (Page::default(), 0, None);
    let name = |lane: i64| lanes.iter().find(|(number, _)| *number == lane).map(|(_, name)| name.clone());
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
        let leased = in_flight.contains(&row.id);
        if !want.filter.fits(row.id, leased, history.as_ref().ok()) {
            continue;
        }
        let history = history.unwrap_or_default();
        page.events.push(Listed { id: row.id, function, place, leased, history, unreadable });
    }
    Ok(page)
}

async fn buried(shared: &Shared, want: &BuriedWant) -> Result<BuriedPage, Error> {
    let mut page = buried_page(shared, want).await.map_err(|trouble| shared.error(trouble))?;
    let letters = page.letters.iter().map(|letter| (keys::lane(&letter.event.function.name), letter.event.id));
    let letters: Vec<_> = letters.collect();
    let in_flight: BTreeSet<EventId> = commands::in_flight(shared, &letters).await?;
    page.letters.iter_mut().for_each(|letter| letter.leased = in_flight.contains(&letter.event.id));
    Ok(page)
}

/// A page that does not tell yet what is being shipped.
async fn buried_page(shared: &Shared, want: &BuriedWant) -> Result<BuriedPage, Trouble> {
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
                    let payload_bytes = stored.payload_bytes;
                    bytes += if want.payloads { payload_bytes } else { 0 } + EVENT_BYTES;
                    let event = stored.into_event(function);
                    page.letters.push(Letter { event, payload_bytes, history, leased: false });
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

async fn import(shared: &Shared, event: Event, history: History, now: UnixMillis) -> Result<Imported, Error> {
    import_one(shared, &event, &history, now).await.map_err(|trouble| shared.error(trouble))
}

async fn import_one(shared: &Shared, event: &Event, history: &History, now: UnixMillis) -> Result<Imported, Trouble> {
    loop {
        shared.catch_up().await?;
        let known = shared.state().lanes.id_of(&event.function.name);
        let room = room_left(shared);
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
                if known.is_none() && shared.may_claim() {
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
