//! Any sequence of calls, crashes included, does what a plain map of events would.

use proptest::prelude::*;

use super::*;
use crate::outbox::dead::{Discarded, Revived};
use crate::outbox::handoff::{Adopted, Handed, place_of};
use crate::outbox::operator::LIVE;

const FUNCTIONS: [&str; 3] = ["a", "b", "c"];

/// How often an event may come back from the dead.
const REDRIVES_MAX: u32 = 2;

#[derive(Debug, Clone)]
pub enum Call {
    Append { function: usize, key: Option<(u8, bool)>, payload: u8, bytes: usize, delay_ms: Option<u64> },
    Adopt { function: usize, again: Option<usize>, key: Option<(u8, bool)>, payload: u8, age_ms: u64, place: Place },
    Lease { function: usize, which: Wanted, events_max: usize },
    Settle { nth: usize, how: u8, delay_ms: u64 },
    Sleep { ms: u64 },
    Operate { nth: usize, operation: Operation },
    Pause { function: usize, paused: bool },
    Sweep,
    Crash,
}

/// Which events a lease is about.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    Due,
    Fresh,
    Buried,
    /// All that were accepted so long ago.
    Older(u64),
    /// Those of one state, perhaps only the later half.
    AtRest(Place, bool),
}

impl Wanted {
    fn at(self, now: UnixMillis, events_max: usize, middle: Option<EventId>) -> (Which, usize) {
        match self {
            Self::AtRest(place, half) => (Which::AtRest { place, after: middle.filter(|_| half) }, events_max),
            Self::Due => (Which::Due, events_max),
            Self::Fresh => (Which::Fresh, events_max),
            Self::Buried => (Which::Buried, events_max),
            Self::Older(ms) => (Which::AcceptedBefore(UnixMillis(now.0 - ms)), 1_000),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Operation {
    Cancel(Keys),
    AttemptNow,
    Discard(Keys),
    Revive,
    Purge { place: Option<Place>, younger_ms: Option<u64>, dry_run: bool, keys: Keys },
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let keys = || prop_oneof![Just(Keys::Forget), Just(Keys::Keep)];
    let place = proptest::option::of((0..LIVE.len()).prop_map(|nth| LIVE[nth]));
    let purge = (place, proptest::option::of(0..40_000_u64), any::<bool>(), keys());
    prop_oneof![
        keys().prop_map(Operation::Cancel),
        Just(Operation::AttemptNow),
        keys().prop_map(Operation::Discard),
        Just(Operation::Revive),
        purge.prop_map(|(place, younger_ms, dry_run, keys)| Operation::Purge { place, younger_ms, dry_run, keys }),
    ]
}

fn any_place() -> impl Strategy<Value = Place> {
    (0..Place::ALL.len()).prop_map(|nth| Place::ALL[nth])
}

fn any_adoption() -> impl Strategy<Value = Call> {
    let again = proptest::option::weighted(0.4, any::<usize>());
    let key = proptest::option::of((0..4_u8, any::<bool>()));
    let age_ms = prop_oneof![0..3_000_u64, 0..4_000_000_u64];
    (0..FUNCTIONS.len(), again, key, 0..2_u8, age_ms, any_place()).prop_map(
        |(function, again, key, payload, age_ms, place)| Call::Adopt { function, again, key, payload, age_ms, place },
    )
}

pub fn any_call() -> impl Strategy<Value = Call> {
    let function = 0..FUNCTIONS.len();
    let key = proptest::option::of((0..4_u8, any::<bool>()));
    let bytes = prop_oneof![Just(0_usize), Just(10), 1_400..1_600_usize, 4_000..9_000_usize];
    let which = prop_oneof![
        3 => Just(Wanted::Due),
        3 => Just(Wanted::Fresh),
        3 => Just(Wanted::Buried),
        1 => (0..60_000_u64).prop_map(Wanted::Older),
        1 => (any_place(), any::<bool>()).prop_map(|(place, half)| Wanted::AtRest(place, half)),
    ];
    prop_oneof![
        4 => (function.clone(), key, 0..2_u8, bytes, proptest::option::weighted(0.2, 0..5_000_u64))
            .prop_map(|(function, key, payload, bytes, delay_ms)| Call::Append { function, key, payload, bytes, delay_ms }),
        2 => any_adoption(),
        3 => (function.clone(), which, 0..6_usize)
            .prop_map(|(function, which, events_max)| Call::Lease { function, which, events_max }),
        4 => (any::<usize>(), 0..6_u8, 0..3_000_u64).prop_map(|(nth, how, delay_ms)| Call::Settle { nth, how, delay_ms }),
        2 => prop_oneof![0..40_000_u64, Just(1_000_000)].prop_map(|ms| Call::Sleep { ms }),
        2 => (any::<usize>(), any_operation()).prop_map(|(nth, operation)| Call::Operate { nth, operation }),
        1 => (function, proptest::bool::weighted(0.3)).prop_map(|(function, paused)| Call::Pause { function, paused }),
        1 => Just(Call::Sweep),
        1 => Just(Call::Crash),
    ]
}

impl<S: Subject> Bench<S> {
    /// An event with one of a few keys, or with none.
    fn any_event(&self, function: &str, key: Option<(u8, bool)>, payload: &str) -> Event {
        match key {
            None => self.event(function, payload),
            Some((key, sdk)) => {
                let source = if sdk { KeySource::SdkInvocationId } else { KeySource::Header };
                self.keyed(function, payload, &key.to_string(), source)
            }
        }
    }
}

impl<S: Subject> Bench<S> {
    /// An event of another store, accepted there so long ago.
    fn any_handed(&self, function: &str, key: Option<(u8, bool)>, payload: u8, age_ms: u64, place: Place) -> Handed {
        let event = self.any_event(function, key, &payload.to_string().repeat(10));
        let accepted_at = UnixMillis(self.clock.now().0 - age_ms);
        let id = EventId::mint(accepted_at, self.clock.random_bits(), &event.function.name);
        let due = accepted_at.plus(Duration::from_millis(age_ms / 2 + 700));
        let deliver_at = (place == Place::Scheduled).then_some(due);
        let history = match place {
            Place::Ready | Place::Scheduled => History { due, ..History::default() },
            Place::Waiting => retry_at(due),
            Place::Buried => burial(due),
        };
        Handed {
            event: Event { id, accepted_at, deliver_at, redrives: u32::from(payload) * REDRIVES_MAX, ..event },
            history,
            paused: false,
        }
    }
}

struct Kept {
    event: Event,
    history: History,
    place: Place,
    leased: bool,
}

/// The independent model: no indexes, no chunks, no batches.
#[derive(Default)]
struct Model {
    events: BTreeMap<EventId, Kept>,
    keys: BTreeMap<(String, String, bool), (EventId, Bytes, UnixMillis)>,
    paused: BTreeSet<String>,
    /// How long the ids of adopted events are remembered.
    adopted: BTreeMap<EventId, UnixMillis>,
}

type Bytes = bytes::Bytes;

impl Model {
    fn append(&mut self, event: &Event, now: UnixMillis, limits: &Limits) -> Appended {
        let sdk = event.key.source == KeySource::SdkInvocationId;
        if event.key.source != KeySource::Minted {
            let scope = (event.function.name.as_str().to_owned(), event.key.value.clone(), sdk);
            if let Some((first, payload, until)) = self.keys.get(&scope)
                && (*until > now || self.events.contains_key(first))
            {
                let first = *first;
                return if *payload == event.payload {
                    Appended::Repeat { first }
                } else {
                    Appended::Conflict { first }
                };
            }
            let window = if sdk { limits.sdk_window } else { limits.dedupe_window };
            self.keys.insert(scope, (event.id, event.payload.clone(), now.plus(window)));
        }
        let (place, due) = match event.deliver_at {
            Some(at) if at > now => (Place::Scheduled, at),
            _ => (Place::Ready, now),
        };
        let history = History { due, ..History::default() };
        self.events.insert(event.id, Kept { event: event.clone(), history, place, leased: false });
        Appended::Stored
    }

    fn adopt(&mut self, Handed { event, history, paused: _ }: &Handed, now: UnixMillis, limits: &Limits) -> Adopted {
        let id = event.id;
        if self.events.contains_key(&id) || self.adopted.get(&id).is_some_and(|until| *until > now) {
            return Adopted::Repeat;
        }
        let place = place_of(event, history);
        let sdk = event.key.source == KeySource::SdkInvocationId;
        let scope = (event.function.name.as_str().to_owned(), event.key.value.clone(), sdk);
        let known = self.keys.get(&scope).filter(|(first, _, until)| *until > now || self.events.contains_key(first));
        match known {
            _ if event.key.source == KeySource::Minted => {}
            Some((first, payload, _)) if *first != id => {
                let is_stored = self.events.contains_key(first);
                if is_stored && *payload == event.payload && event.redrives == 0 && place != Place::Buried {
                    return Adopted::KnownKey { first: *first };
                }
            }
            Some(_) => {}
            None => {
                let window = if sdk { limits.sdk_window } else { limits.dedupe_window };
                let until = now.plus(window.saturating_sub(now.since(event.accepted_at)));
                self.keys.insert(scope, (id, event.payload.clone(), until));
            }
        }
        self.adopted.insert(id, now.plus(limits.dedupe_window));
        self.events.insert(id, Kept { event: event.clone(), history: history.clone(), place, leased: false });
        Adopted::Stored
    }

    /// What a lease gives, in order.
    fn lease(&mut self, function: &str, which: Which, max: usize, now: UnixMillis) -> Vec<(Event, History)> {
        if self.paused.contains(function) && matches!(which, Which::Due | Which::Fresh) {
            return Vec::new();
        }
        let mut found: Vec<_> = self
            .events
            .values()
            .filter(|kept| kept.event.function.name.as_str() == function && !kept.leased)
            .filter_map(|kept| {
                let id = kept.event.id;
                let rank = match (which, kept.place) {
                    (Which::Due, Place::Waiting | Place::Scheduled) if kept.history.due <= now => {
                        (0, kept.history.due, id)
                    }
                    (Which::Due, Place::Ready) => (1, UnixMillis(0), id),
                    (Which::Fresh, Place::Ready) => (0, UnixMillis(0), id),
                    (Which::Fresh, Place::Waiting | Place::Scheduled) if kept.history.due <= now => {
                        (1, kept.history.due, id)
                    }
                    (Which::AtRest { place, after }, at) if at == place && after.is_none_or(|after| id > after) => {
                        (0, UnixMillis(0), id)
                    }
                    (Which::Buried, Place::Buried) if kept.history.due <= now => (0, kept.history.due, id),
                    (Which::AcceptedBefore(cutoff), Place::Ready | Place::Waiting)
                        if kept.event.accepted_at < cutoff
                            || (kept.place == Place::Waiting && kept.history.due < cutoff) =>
                    {
                        (0, UnixMillis(0), id)
                    }
                    (Which::AcceptedBefore(cutoff), Place::Scheduled) if kept.history.due < cutoff => {
                        (0, UnixMillis(0), id)
                    }
                    (
                        Which::Due | Which::Fresh | Which::AcceptedBefore(_) | Which::Buried | Which::AtRest { .. },
                        _,
                    ) => return None,
                };
                Some((rank, id))
            })
            .collect();
        found.sort_by_key(|&(rank, _)| rank);
        found.truncate(max);
        let take = |(_, id)| {
            let kept = self.events.get_mut(&id)?;
            kept.leased = true;
            Some((kept.event.clone(), kept.history.clone()))
        };
        found.into_iter().filter_map(take).collect()
    }

    /// A key outlives its event by its window, if that did not leave soon.
    fn outlive(&mut self, id: EventId, now: UnixMillis, limits: &Limits) {
        for ((_, _, sdk), (first, _, until)) in &mut self.keys {
            let window = if *sdk { limits.sdk_window } else { limits.dedupe_window };
            if *first == id && now.since(id.accepted_at()) >= window / 8 {
                *until = now.plus(window);
            }
        }
    }

    /// An operator removes an event, and its key with it.
    fn cancel(&mut self, id: EventId, keys: Keys) -> Touched {
        match self.events.get(&id) {
            None => return Touched::NotFound,
            Some(kept) if kept.place == Place::Buried => return Touched::Buried,
            Some(kept) if kept.leased => return Touched::InFlight,
            Some(_) => {}
        }
        self.remove(id, keys);
        Touched::Done
    }

    fn attempt_now(&mut self, id: EventId, now: UnixMillis) -> Touched {
        match self.events.get_mut(&id) {
            None => Touched::NotFound,
            Some(kept) if kept.place == Place::Buried => Touched::Buried,
            Some(kept) if kept.leased => Touched::InFlight,
            Some(kept) => {
                if kept.place != Place::Ready && kept.history.due > now {
                    kept.history.due = now;
                }
                Touched::Done
            }
        }
    }

    fn discard(&mut self, id: EventId, keys: Keys) -> Discarded {
        match self.events.get(&id) {
            Some(kept) if kept.place == Place::Buried && kept.leased => Discarded::Leased,
            Some(kept) if kept.place == Place::Buried => {
                self.remove(id, keys);
                Discarded::Done
            }
            Some(_) | None => Discarded::NotFound,
        }
    }

    /// `new` is the id that the store has given, if it has brought the event back.
    fn revive(&mut self, id: EventId, new: Option<EventId>, now: UnixMillis, limits: &Limits) -> Revived {
        match self.events.get(&id) {
            Some(kept) if kept.place != Place::Buried => return Revived::NotFound,
            None => return Revived::NotFound,
            Some(kept) if kept.leased => return Revived::Leased,
            Some(kept) if kept.event.redrives >= REDRIVES_MAX => {
                return Revived::Ceiling { redrives: kept.event.redrives };
            }
            Some(_) => {}
        }
        let (new, Kept { event, .. }) = (new.expect("it comes back"), self.events.remove(&id).unwrap());
        let redrives = event.redrives + 1;
        let event = Event { id: new, accepted_at: now, deliver_at: None, expires_at: None, redrives, ..event };
        let history = History { due: now, ..History::default() };
        self.events.insert(new, Kept { event: event.clone(), history, place: Place::Ready, leased: false });
        self.remember_again(&event, now, limits);
        Revived::Stored { id: new }
    }

    /// The key of an event that came back is its own, unless it has become another's.
    fn remember_again(&mut self, event: &Event, now: UnixMillis, limits: &Limits) {
        if event.key.source == KeySource::Minted {
            return;
        }
        let sdk = event.key.source == KeySource::SdkInvocationId;
        let scope = (event.function.name.as_str().to_owned(), event.key.value.clone(), sdk);
        if let Some((first, payload, until)) = self.keys.get(&scope) {
            let stored = self.events.contains_key(first);
            if stored || (*until > now && *payload != event.payload) {
                return;
            }
        }
        let window = if sdk { limits.sdk_window } else { limits.dedupe_window };
        self.keys.insert(scope, (event.id, event.payload.clone(), now.plus(window)));
    }

    fn purge(&mut self, purge: &Purge) -> u64 {
        let fits = |kept: &&Kept| {
            kept.event.function.name == purge.function
                && !kept.leased
                && LIVE.contains(&kept.place)
                && purge.place.is_none_or(|place| place == kept.place)
                && purge.accepted_before.is_none_or(|before| kept.event.accepted_at < before)
        };
        let ids: Vec<_> = self.events.values().filter(fits).map(|kept| kept.event.id).collect();
        if !purge.dry_run {
            ids.iter().for_each(|&id| self.remove(id, purge.keys));
        }
        ids.len() as u64
    }

    fn remove(&mut self, id: EventId, keys: Keys) {
        self.events.remove(&id);
        if keys == Keys::Forget {
            self.keys.retain(|_, (first, ..)| *first != id);
            self.adopted.remove(&id);
        }
    }

    fn pause(&mut self, function: &str, paused: bool) {
        if paused {
            self.paused.insert(function.to_owned());
        } else {
            self.paused.remove(function);
        }
    }

    /// A sweep forgets the keys whose time is over and whose event is gone; others it gives another window.
    fn sweep(&mut self, now: UnixMillis, limits: &Limits) {
        for ((_, _, sdk), (first, _, until)) in &mut self.keys {
            if *until <= now && self.events.contains_key(first) {
                *until = now.plus(if *sdk { limits.sdk_window } else { limits.dedupe_window });
            }
        }
        self.keys.retain(|_, (_, _, until)| *until > now);
        for (id, until) in &mut self.adopted {
            if *until <= now && self.events.contains_key(id) {
                *until = now.plus(limits.dedupe_window);
            }
        }
        self.adopted.retain(|_, until| *until > now);
    }

    fn settle(&mut self, id: EventId, settlement: &Settlement, now: UnixMillis, limits: &Limits) {
        if matches!(settlement, Settlement::Delivered | Settlement::Shipped | Settlement::HandedOver) {
            self.outlive(id, now, limits);
        }
        if *settlement == Settlement::HandedOver {
            self.adopted.remove(&id);
        }
        let Some(kept) = self.events.get_mut(&id).filter(|kept| kept.leased) else { return };
        kept.leased = false;
        match settlement {
            Settlement::Release => {}
            Settlement::Delivered | Settlement::Shipped | Settlement::HandedOver => drop(self.events.remove(&id)),
            Settlement::RetryAt(history) => {
                kept.history = history.clone();
                if kept.place == Place::Ready {
                    kept.place = Place::Waiting;
                }
            }
            Settlement::Bury(history) => {
                kept.history = history.clone();
                kept.place = Place::Buried;
            }
        }
    }

    fn crash(&mut self) {
        self.events.values_mut().for_each(|kept| kept.leased = false);
    }
}

/// One run of calls against a store that is opened anew after each crash.
pub async fn agree(mut bench: Bench<impl Subject>, calls: Vec<Call>) {
    let (mut model, mut leases) = (Model::default(), Vec::new());
    let mut handed: Vec<Handed> = Vec::new();
    for call in calls {
        // Mints ids in the order of acceptance.
        bench.clock.sleep(Duration::from_millis(1)).await;
        let (now, limits) = (bench.clock.now(), bench.limits);
        match call.clone() {
            Call::Append { function, key, payload, bytes, delay_ms } => {
                let event = bench.any_event(FUNCTIONS[function], key, &payload.to_string().repeat(bytes));
                let deliver_at = delay_ms.map(|ms| now.plus(Duration::from_millis(ms)));
                // Some events have come back as often as they may.
                let event = Event { deliver_at, redrives: u32::from(payload) * REDRIVES_MAX, ..event };
                let expected = model.append(&event, now, &limits);
                assert_eq!(bench.append(event).await, expected, "{call:?}");
            }
            Call::Adopt { function, again, key, payload, age_ms, place } => {
                let again = again.and_then(|nth| handed.get(nth.checked_rem(handed.len())?)).cloned();
                let new = again.unwrap_or_else(|| bench.any_handed(FUNCTIONS[function], key, payload, age_ms, place));
                handed.push(new.clone());
                let expected = model.adopt(&new, now, &limits);
                assert_eq!(bench.store().adopt(vec![new]).await.unwrap(), [expected], "{call:?}");
            }
            Call::Lease { function, which, events_max } => {
                let middle = model.events.keys().nth(model.events.len() / 2).copied();
                let (which, events_max) = which.at(now, events_max, middle);
                let news = bench.store().lanes(0).await.unwrap();
                let lane = news.lanes.iter().find(|lane| lane.function.as_str() == FUNCTIONS[function]);
                let want = |lane| LaneWant { lane, which, events_max, bytes_max: u64::MAX, spent: None };
                let lanes = lane.map(|lane| want(lane.lane)).into_iter().collect();
                let want = LeaseWant { lanes, bytes_max: u64::MAX };
                let Leases { events, news: told } = bench.store().lease(want, Some(news.version)).await.unwrap();
                let got: Vec<_> = events.iter().map(|l| (l.event.clone(), l.history.clone())).collect();
                assert_eq!(got, model.lease(FUNCTIONS[function], which, events_max, now), "{call:?}");
                assert_eq!(told.unwrap().lanes.len(), usize::from(!got.is_empty()), "its news tell of it: {call:?}");
                leases.extend(events);
            }
            Call::Settle { nth, how, delay_ms } if !leases.is_empty() => {
                let leased: Leased = leases.remove(nth % leases.len());
                let settlement = any_settlement(&leased, how, now.plus(Duration::from_millis(delay_ms)));
                model.settle(leased.lease.id, &settlement, now, &limits);
                bench.settle(&leased, settlement).await;
                let again = vec![(leased.lease, Settlement::Delivered)];
                assert_eq!(bench.store().settle(again).await.unwrap(), [leased.lease], "it is settled: {call:?}");
            }
            Call::Settle { .. } => {}
            Call::Operate { nth, operation } => {
                let nth = nth.checked_rem(model.events.len());
                if let Some(id) = nth.and_then(|nth| model.events.keys().nth(nth).copied()) {
                    operate(&bench, &mut model, id, operation, now).await;
                }
            }
            Call::Pause { function, paused } => {
                bench.store().pause(&FunctionName::new(FUNCTIONS[function]), paused).await.unwrap();
                model.pause(FUNCTIONS[function], paused);
            }
            Call::Sleep { ms } => bench.clock.sleep(Duration::from_millis(ms)).await,
            Call::Sweep => {
                bench.sweep().await;
                model.sweep(now, &limits);
                let keys = model.keys.len() + model.adopted.len();
                assert_eq!(bench.store().census().await.unwrap().keys, keys as u64);
            }
            Call::Crash => {
                bench.reopen().await;
                model.crash();
                leases.clear();
            }
        }
        compare(&bench, &model).await;
    }
}

fn any_settlement(leased: &Leased, how: u8, due: UnixMillis) -> Settlement {
    let buried = leased.history.burial.is_some();
    match how {
        0 if buried => Settlement::Shipped,
        0 => Settlement::Delivered,
        1 => Settlement::Release,
        2 | 3 if buried => Settlement::RetryAt(burial(due)),
        2 | 3 => Settlement::RetryAt(retry_at(due)),
        4 => Settlement::HandedOver,
        _ => Settlement::Bury(burial(due)),
    }
}

/// What an operator asks about one event, or about its function.
async fn operate(bench: &Bench<impl Subject>, model: &mut Model, id: EventId, operation: Operation, now: UnixMillis) {
    let store = bench.store();
    match operation {
        Operation::Cancel(keys) => assert_eq!(store.cancel(id, keys).await.unwrap(), model.cancel(id, keys)),
        Operation::AttemptNow => assert_eq!(store.attempt_now(id).await.unwrap(), model.attempt_now(id, now)),
        Operation::Discard(keys) => assert_eq!(store.discard(vec![id], keys).await.unwrap(), [model.discard(id, keys)]),
        Operation::Revive => {
            let revived = store.revive(vec![id], REDRIVES_MAX).await.unwrap().remove(0);
            let new = if let Revived::Stored { id } = &revived { Some(*id) } else { None };
            assert_eq!(revived, model.revive(id, new, now, &bench.limits));
        }
        Operation::Purge { place, younger_ms, dry_run, keys } => {
            let function = model.events[&id].event.function.name.clone();
            let accepted_before = younger_ms.map(|ms| UnixMillis(now.0 - ms));
            let purge = Purge { function, place, accepted_before, dry_run, keys };
            assert_eq!(store.purge(purge.clone()).await.unwrap().events, model.purge(&purge), "{purge:?}");
        }
    }
}

async fn compare(bench: &Bench<impl Subject>, model: &Model) {
    let store = bench.store();
    for kept in model.events.values() {
        let found = store.find(kept.event.id).await.unwrap().expect("it is stored");
        assert_eq!((&found.event, &found.history), (&kept.event, &kept.history));
        assert_eq!((found.place, found.leased), (kept.place, kept.leased));
    }
    let census = store.census().await.unwrap();
    assert_eq!(census.events, model.events.len() as u64);
    assert_eq!(census.bytes == 0, model.events.is_empty());
    for view in store.lanes(0).await.unwrap().lanes {
        assert_eq!(store.lane(&view.function).await.unwrap().as_ref(), Some(&view));
        assert_eq!(view.paused, model.paused.contains(view.function.as_str()));
        let of_lane = || model.events.values().filter(|kept| kept.event.function.name == view.function);
        let free = |place| of_lane().filter(move |kept| kept.place == place && !kept.leased);
        let next = |place| free(place).map(|kept| kept.history.due).min();
        assert_eq!(view.ready, free(Place::Ready).count() as u64);
        assert_eq!(view.buried, free(Place::Buried).count() as u64);
        assert_eq!(view.next_ship, next(Place::Buried));
        assert_eq!(view.next_due, next(Place::Waiting).into_iter().chain(next(Place::Scheduled)).min());
        let aging = of_lane().filter(|kept| matches!(kept.place, Place::Ready | Place::Waiting));
        assert_eq!(view.oldest, aging.map(|kept| kept.event.accepted_at).min());
        let counts = &census.lanes[&view.function];
        for place in Place::ALL {
            assert_eq!(counts.by_place[&place].events, of_lane().filter(|kept| kept.place == place).count() as u64);
        }
        assert_eq!(counts.leased, of_lane().filter(|kept| kept.leased).count() as u64);
    }
}

/// Runs a story on a clock of its own.
pub fn on_a_virtual_clock(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(story);
}
