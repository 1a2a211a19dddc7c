//! Any sequence of calls, crashes included, does what a plain map of events would.

use proptest::prelude::*;

use super::*;
use crate::outbox::embedded::kv::{Disk as Room, Kv};

const FUNCTIONS: [&str; 3] = ["a", "b", "c"];

/// Ample, and nothing to do with a real disk.
const ROOM: Room = Room { used: 0, free: None, to_come: 0, behind: false };

#[derive(Debug, Clone)]
enum Call {
    Append { function: usize, key: Option<(u8, bool)>, payload: u8, bytes: usize, delay_ms: Option<u64> },
    Lease { function: usize, buried: bool, events_max: usize },
    Settle { nth: usize, how: u8, delay_ms: u64 },
    Sleep { ms: u64 },
    Cancel { nth: usize, keep_keys: bool },
    Sweep,
    Crash,
}

fn any_call() -> impl Strategy<Value = Call> {
    let function = 0..FUNCTIONS.len();
    let key = proptest::option::of((0..4_u8, any::<bool>()));
    let bytes = prop_oneof![Just(0_usize), Just(10), 1_400..1_600_usize, 4_000..9_000_usize];
    prop_oneof![
        4 => (function.clone(), key, 0..2_u8, bytes, proptest::option::weighted(0.2, 0..5_000_u64))
            .prop_map(|(function, key, payload, bytes, delay_ms)| Call::Append { function, key, payload, bytes, delay_ms }),
        3 => (function, proptest::bool::weighted(0.3), 0..6_usize)
            .prop_map(|(function, buried, events_max)| Call::Lease { function, buried, events_max }),
        4 => (any::<usize>(), 0..5_u8, 0..3_000_u64).prop_map(|(nth, how, delay_ms)| Call::Settle { nth, how, delay_ms }),
        2 => prop_oneof![0..40_000_u64, Just(1_000_000)].prop_map(|ms| Call::Sleep { ms }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(nth, keep_keys)| Call::Cancel { nth, keep_keys }),
        1 => Just(Call::Sweep),
        1 => Just(Call::Crash),
    ]
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

    /// What a lease gives, in order.
    fn lease(&mut self, function: &str, which: Which, max: usize, now: UnixMillis) -> Vec<(Event, History)> {
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
                    (Which::Buried, Place::Buried) if kept.history.due <= now => (0, kept.history.due, id),
                    (Which::Due | Which::Fresh | Which::AcceptedBefore(_) | Which::Buried, _) => return None,
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
        self.events.remove(&id);
        if keys == Keys::Forget {
            self.keys.retain(|_, (first, ..)| *first != id);
        }
        Touched::Done
    }

    /// A sweep forgets the keys whose time is over and whose event is gone; others it gives another window.
    fn sweep(&mut self, now: UnixMillis, limits: &Limits) {
        for ((_, _, sdk), (first, _, until)) in &mut self.keys {
            if *until <= now && self.events.contains_key(first) {
                *until = now.plus(if *sdk { limits.sdk_window } else { limits.dedupe_window });
            }
        }
        self.keys.retain(|_, (_, _, until)| *until > now);
    }

    fn settle(&mut self, id: EventId, settlement: &Settlement, now: UnixMillis, limits: &Limits) {
        if matches!(settlement, Settlement::Delivered | Settlement::Shipped) {
            self.outlive(id, now, limits);
        }
        let Some(kept) = self.events.get_mut(&id).filter(|kept| kept.leased) else { return };
        kept.leased = false;
        match settlement {
            Settlement::Release => {}
            Settlement::Delivered | Settlement::Shipped => drop(self.events.remove(&id)),
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

/// Of the live events, either order is drawn.
fn which(buried: bool, events_max: usize) -> Which {
    match (buried, events_max % 2) {
        (true, _) => Which::Buried,
        (false, 0) => Which::Due,
        (false, _) => Which::Fresh,
    }
}

/// One run of calls against an engine that `open` opens anew after each crash.
async fn agree<K: Kv>(calls: Vec<Call>, open: impl Fn() -> K) {
    let bench = Bench::new(Disk::Memory(MemoryDisk::default())); // for its clock, settings and events
    let (clock, settings) = (bench.clock.clone(), bench.settings.clone());
    let reopen = || Engine::open(open(), settings.clone(), clock.clone(), "model").unwrap();
    let (mut engine, mut model, mut leases) = (Some(reopen()), Model::default(), Vec::new());
    for call in calls {
        // Mints ids in the order of acceptance.
        clock.sleep(Duration::from_millis(1)).await;
        let now = clock.now();
        let store = engine.as_mut().unwrap();
        match call.clone() {
            Call::Append { function, key, payload, bytes, delay_ms } => {
                let payload = payload.to_string().repeat(bytes);
                let event = match key {
                    None => bench.event(FUNCTIONS[function], &payload),
                    Some((key, true)) => {
                        bench.keyed(FUNCTIONS[function], &payload, &key.to_string(), KeySource::SdkInvocationId)
                    }
                    Some((key, false)) => {
                        bench.keyed(FUNCTIONS[function], &payload, &key.to_string(), KeySource::Header)
                    }
                };
                let event = Event { deliver_at: delay_ms.map(|ms| now.plus(Duration::from_millis(ms))), ..event };
                let expected = model.append(&event, now, &settings.limits);
                assert_eq!(store.append(vec![event], ROOM).unwrap(), [expected], "{call:?}");
                store.commit().unwrap();
            }
            Call::Lease { function, buried, events_max } => {
                let which = which(buried, events_max);
                let news = store.lanes(0).unwrap();
                let lane = news.lanes.iter().find(|lane| lane.function.as_str() == FUNCTIONS[function]);
                let want = |lane| LaneWant { lane, which, events_max, bytes_max: u64::MAX, spent: None };
                let lanes = lane.map(|lane| want(lane.lane)).into_iter().collect();
                let leased = store.lease(&LeaseWant { lanes, bytes_max: u64::MAX }).unwrap();
                let got: Vec<_> = leased.iter().map(|l| (l.event.clone(), l.history.clone())).collect();
                assert_eq!(got, model.lease(FUNCTIONS[function], which, events_max, now), "{call:?}");
                leases.extend(leased);
            }
            Call::Settle { nth, how, delay_ms } if !leases.is_empty() => {
                let leased: Leased = leases.remove(nth % leases.len());
                let due = now.plus(Duration::from_millis(delay_ms));
                let buried = leased.history.burial.is_some();
                let settlement = match how {
                    0 if buried => Settlement::Shipped,
                    0 => Settlement::Delivered,
                    1 => Settlement::Release,
                    2 | 3 if buried => Settlement::RetryAt(burial(due)),
                    2 | 3 => Settlement::RetryAt(retry_at(due)),
                    _ => Settlement::Bury(burial(due)),
                };
                model.settle(leased.lease.id, &settlement, now, &settings.limits);
                store.settle(vec![(leased.lease, settlement)]).unwrap();
                store.commit().unwrap();
            }
            Call::Settle { .. } => {}
            Call::Cancel { nth, keep_keys } => {
                let keys = if keep_keys { Keys::Keep } else { Keys::Forget };
                let nth = nth.checked_rem(model.events.len());
                if let Some(id) = nth.and_then(|nth| model.events.keys().nth(nth).copied()) {
                    assert_eq!(store.cancel(id, keys).unwrap(), model.cancel(id, keys), "{call:?}");
                    store.commit().unwrap();
                }
            }
            Call::Sleep { ms } => clock.sleep(Duration::from_millis(ms)).await,
            Call::Sweep => {
                while store.sweep().unwrap() {}
                store.commit().unwrap();
                model.sweep(now, &settings.limits);
                assert_eq!(store.census().unwrap().keys, model.keys.len() as u64);
            }
            Call::Crash => {
                drop(engine.take());
                engine = Some(reopen());
                model.crash();
                leases.clear();
            }
        }
        compare(engine.as_mut().unwrap(), &model);
    }
}

fn compare<K: Kv>(store: &mut Engine<K>, model: &Model) {
    for kept in model.events.values() {
        let found = store.find(kept.event.id).unwrap().expect("it is stored");
        assert_eq!((&found.event, &found.history), (&kept.event, &kept.history));
        assert_eq!((found.place, found.leased), (kept.place, kept.leased));
    }
    let census = store.census().unwrap();
    assert_eq!(census.events, model.events.len() as u64);
    assert_eq!(census.bytes == 0, model.events.is_empty());
    for view in store.lanes(0).unwrap().lanes {
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

fn on_a_virtual_clock(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(story);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_calls_does_what_a_plain_map_would(calls in proptest::collection::vec(any_call(), 0..80)) {
        let disk = MemoryDisk::default();
        on_a_virtual_clock(agree(calls, || disk.open()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_calls_does_what_a_plain_map_would_on_sled(calls in proptest::collection::vec(any_call(), 0..80)) {
        let dir = tempfile::tempdir().unwrap();
        on_a_virtual_clock(agree(calls, || store::open(dir.path(), &settings()).unwrap().store));
    }
}
