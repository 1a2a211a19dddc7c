//! The handle of the shared outbox: what the stages ask.
//!
//! Every call runs as a task of the engine, so that dropping its future undoes nothing. Events that were leased for a caller
//! that is gone return to their lanes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::base::{Taken, Trouble, Want};
use super::engine::Shared;
use super::lanes::Held;
use super::{adopting, appending, commands, keeper, keys, overview, settling};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::outbox::handoff::{Adopted, Handed, RememberedKey};
use crate::outbox::{
    Appended, Census, Changes, Error, Found, Health, LaneId, LaneNews, LaneWant, Lease, LeaseWant, Leased, Leases,
    Outbox, Settlement, Unsettled, Which,
};

/// How often a lease goes on reading a lane whose first rows are all waiting or in flight.
const READS_MAX: usize = 8;

/// The handle of the outbox. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs a call as a task of the engine.
    pub(super) async fn run<T: Send + 'static, F>(&self, call: impl FnOnce(Arc<Shared>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.shared.is_usable()?;
        let task = self.shared.tasks.spawn_on(call(self.shared.clone()), &self.shared.runtime);
        task.await.unwrap_or_else(|error| {
            let why = format!("a call of the outbox panicked: {error}");
            self.shared.poison(why.clone());
            Err(Error::Poisoned { why })
        })
    }

    /// The caller's time.
    pub(super) fn now(&self) -> UnixMillis {
        let now = self.shared.clock.now();
        #[cfg(test)]
        self.pretend(now);
        now
    }

    /// Makes the server follow the caller's clock.
    #[cfg(test)]
    fn pretend(&self, now: UnixMillis) {
        use std::sync::atomic::Ordering;
        let pretended = &self.shared.settings.server.pretended;
        if pretended.load(Ordering::Relaxed) > 0 {
            pretended.store(
                now.0.saturating_add(self.shared.settings.server.ahead.load(Ordering::Relaxed)),
                Ordering::Relaxed,
            );
        }
    }
}

/// Leased events on their way to the caller. If it is gone, they return to their lanes.
struct OnTheWay {
    shared: Arc<Shared>,
    leases: Option<Leases>,
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        if let Some(leases) = self.leases.take().filter(|leases| !leases.events.is_empty()) {
            let mut state = self.shared.state();
            leases.events.iter().for_each(|leased| state.lanes.release(leased.lease));
            drop(state);
            self.shared.tell();
        }
    }
}

impl Outbox for Handle {
    async fn append(&self, batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.now();
        self.run(move |shared| async move {
            let limit = shared.settings.accept_timeout;
            let stored = append(&shared, batch, now);
            tokio::time::timeout(limit, stored).await.unwrap_or_else(|_| Err(appending::too_late(limit)))
        })
        .await
    }

    async fn lease(&self, want: LeaseWant, since: Option<u64>) -> Result<Leases, Error> {
        let now = self.now();
        let on_the_way = self.run(move |shared| async move {
            let mut leased = OnTheWay { shared: shared.clone(), leases: Some(Leases::default()) };
            let result = lease(&shared, &want, since, now, &mut leased).await;
            result.map(|()| leased).map_err(|trouble| shared.error(trouble))
        });
        Ok(on_the_way.await?.leases.take().unwrap_or_default())
    }

    async fn settle(&self, done: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        let now = self.now();
        let (answer, answered) = oneshot::channel();
        if let Err(why) = self.shared.is_usable() {
            return Err(Unsettled { why, done: Vec::new() });
        }
        let queued = settling::Queued { done, now, answer };
        if let Err(error) = self.shared.settles.send(queued).await {
            return Err(Unsettled { why: Error::Closed, done: error.0.done });
        }
        answered.await.unwrap_or_else(|_| Err(Unsettled { why: Error::Closed, done: Vec::new() }))
    }

    async fn adopt(&self, events: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        self.now();
        self.run(move |shared| async move {
            adopting::adopt(&shared, &events).await.map_err(|trouble| shared.error(trouble))
        })
        .await
    }

    async fn learn(&self, keys: Vec<RememberedKey>) -> Result<u64, Error> {
        self.now();
        self.run(move |shared| async move {
            adopting::learn(&shared.append[0], &keys).await.map_err(|trouble| shared.error(trouble))
        })
        .await
    }

    async fn lanes(&self, since: u64) -> Result<LaneNews, Error> {
        self.now();
        self.run(move |shared| async move {
            let news = async {
                shared.catch_up().await?;
                shared.news_since(since).await
            };
            news.await.map_err(|trouble| shared.error(trouble))
        })
        .await
    }

    async fn find(&self, id: EventId) -> Result<Option<Found>, Error> {
        self.find_part(id, true).await
    }

    async fn find_head(&self, id: EventId) -> Result<Option<Found>, Error> {
        self.find_part(id, false).await
    }

    async fn census(&self) -> Result<Census, Error> {
        self.now();
        self.run(|shared| async move { overview::census(&shared).await.map_err(|trouble| shared.error(trouble)) }).await
    }

    async fn changed(&self, since: u64, what: Changes) {
        self.shared.changed(since, what == Changes::Buried).await;
    }

    fn health(&self) -> Health {
        match (self.shared.poisoned(), self.shared.reach.away()) {
            (Some(why), _) => Health::Poisoned { why },
            (None, Some(why)) => Health::Away { why },
            // A network that is cut without a word shows nowhere else until a call gives up.
            (None, None) if self.shared.is_overdue() => Health::Away { why: "the database does not answer".to_owned() },
            (None, None) => Health::Well,
        }
    }

    async fn failed(&self) -> String {
        self.shared.until_poisoned().await
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn draining(&self) {
        let giving = keeper::give_back(self.shared.clone());
        self.shared.tasks.spawn_on(giving, &self.shared.runtime);
    }
}

impl Handle {
    async fn find_part(&self, id: EventId, payload: bool) -> Result<Option<Found>, Error> {
        self.run(move |shared| async move {
            let found = shared.read.find(id, payload).await.map_err(|trouble| shared.error(trouble))?;
            let Some((function, stored)) = found else { return Ok(None) };
            let history = stored.history().map_err(|why| Error::Unreadable { id, why })?;
            let leased = commands::in_flight(&shared, &[(stored.lane, id)]).await?.contains(&id);
            let (place, payload_bytes) = (stored.place, stored.payload_bytes);
            Ok(Some(Found { event: stored.into_event(&function), payload_bytes, history, place, leased }))
        })
        .await
    }
}

async fn append(shared: &Arc<Shared>, batch: Vec<Event>, now: UnixMillis) -> Result<Vec<Appended>, Error> {
    let cost: usize = batch.iter().map(Event::cost).sum();
    let kib = u32::try_from(cost.div_ceil(1_024).min(appending::QUEUE_KIB_MAX)).unwrap_or(u32::MAX);
    let permit = shared.queue.clone().acquire_many_owned(kib).await.map_err(|_| Error::Closed)?;
    let events = batch.into_iter().map(keys::new).collect();
    let (answer, answered) = oneshot::channel();
    let queued = appending::Queued { events, now, answer, permit };
    shared.appends.send(queued).await.map_err(|_| Error::Closed)?;
    answered.await.unwrap_or(Err(Error::Closed))
}

async fn lease(
    shared: &Shared,
    want: &LeaseWant,
    since: Option<u64>,
    now: UnixMillis,
    leased: &mut OnTheWay,
) -> Result<(), Trouble> {
    // One at a time, or two of them would find the same events.
    let _one = shared.leasing.lock().await;
    let member = shared.member();
    shared.catch_up().await?;
    // What is in the database stays there when a daemon goes: nothing is handed over.
    let stays = |want: &&LaneWant| matches!(want.which, Which::AtRest { .. });
    let mut wants: Vec<LaneWant> = want.lanes.iter().filter(|want| !stays(want)).cloned().collect();
    let mut bytes_left = want.bytes_max;
    for _ in 0..READS_MAX {
        let notes = wants.iter().any(|want| want.spent.is_some());
        if wants.is_empty() || (bytes_left == 0 && !notes) {
            break;
        }
        if bytes_left > 0 && !shared.may_begin() && shared.is_owner() {
            return Err(Trouble::Away("the lease of the lanes is over: the database has not answered".to_owned()));
        }
        bytes_left = lease_once(shared, &mut wants, bytes_left, now, leased).await?;
    }
    shared.tell();
    if let (Some(since), Some(leases)) = (since, leased.leases.as_mut()) {
        leases.news = Some(shared.news_since(since).await?);
    }
    // Last: each call above may have hung for longer than the lease of the lanes, and another daemon may have them by now.
    let is_lost = !shared.may_begin() || shared.member() != member;
    if is_lost && leased.leases.as_ref().is_some_and(|leases| !leases.events.is_empty()) {
        return Err(Trouble::Away("the lease of the lanes ended while events were read".to_owned()));
    }
    Ok(())
}

/// Asks for the wanted events once. Leaves in `wants` what may find more: lanes whose reading did not reach their end.
async fn lease_once(
    shared: &Shared,
    wants: &mut Vec<LaneWant>,
    bytes_max: u64,
    now: UnixMillis,
    leased: &mut OnTheWay,
) -> Result<u64, Trouble> {
    let (asked, busy, member) = {
        let state = shared.state();
        let mut asked = BTreeMap::new();
        wants.retain(|want| state.lanes.get(want.lane).is_some());
        let wanted = wants.iter().filter_map(|want| {
            let lane = state.lanes.get(want.lane)?;
            let after = state.lanes.after(want.lane);
            asked.insert(lane.id, (want.lane, after));
            Some(Want {
                lane: lane.id,
                which: number(want.which),
                events_max: want.events_max,
                bytes_max: want.bytes_max,
                after: if matches!(want.which, Which::Due | Which::Fresh) { after } else { None },
                cutoff: cutoff(want.which),
                spent: want.spent,
            })
        });
        let wanted: Vec<Want> = wanted.collect();
        let busy = state.lanes.busy(wants.iter().map(|want| want.lane));
        ((wanted, asked), busy, state.member)
    };
    let (wanted, known) = asked;
    let taken = shared.read.lease(member, now, bytes_max, &wanted, &busy).await?;
    let mut state = shared.state();
    if state.member != member {
        return Err(Trouble::Fenced("while it leased".to_owned()));
    }
    for want in wants.iter() {
        if let Some(spent) = want.spent {
            state.lanes.spend(want.lane, spent);
        }
    }
    let mut bytes_left = bytes_max;
    let mut more: BTreeMap<LaneId, bool> = BTreeMap::new();
    for taken in taken {
        match taken {
            Taken::Mark { lane, last, whole } => {
                if let Some(&(id, after)) = known.get(&lane) {
                    state.lanes.passed(id, last, after);
                    more.insert(id, !whole);
                }
            }
            Taken::Event(stored) => {
                let Some(&(id, _)) = known.get(&stored.lane) else { continue };
                let Some(function) = state.lanes.get(id).map(|lane| lane.function.clone()) else { continue };
                let history = match stored.history() {
                    Ok(history) => history,
                    Err(why) => {
                        tracing::error!(event_id = %stored.id, why, "an event cannot be read and is set aside");
                        continue;
                    }
                };
                let (place, due, bytes, expires_at) = (stored.place, stored.due, stored.bytes, stored.expires_at);
                let event = stored.into_event(&function);
                let key = keys::remembered(&event);
                let held = Held { place, due, bytes, expires_at, key, settling: false, doubtful: false };
                if !state.lanes.take(id, event.id, held) {
                    continue;
                }
                let size = event.payload.len().max(1) as u64;
                bytes_left = bytes_left.saturating_sub(size);
                if let Some(want) = wants.iter_mut().find(|want| want.lane == id) {
                    want.events_max = want.events_max.saturating_sub(1);
                    want.bytes_max = want.bytes_max.saturating_sub(size);
                }
                let lease = Lease { lane: id, id: event.id };
                let leases = leased.leases.get_or_insert_default();
                leases.events.push(Leased { lease, event, history });
            }
        }
    }
    wants.iter_mut().for_each(|want| want.spent = None);
    wants.retain(|want| want.events_max > 0 && want.bytes_max > 0 && more.get(&want.lane) == Some(&true));
    Ok(bytes_left)
}

fn number(which: Which) -> i16 {
    match which {
        Which::Due => 0,
        Which::Fresh => 1,
        Which::AcceptedBefore(_) => 2,
        Which::Buried | Which::AtRest { .. } => 3,
    }
}

fn cutoff(which: Which) -> Option<UnixMillis> {
    match which {
        Which::AcceptedBefore(cutoff) => Some(cutoff),
        Which::Due | Which::Fresh | Which::Buried | Which::AtRest { .. } => None,
    }
}
