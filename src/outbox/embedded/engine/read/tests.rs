use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::clock::{Clock, UnixMillis};
use crate::event::testing::event;
use crate::event::{FunctionName, IdempotencyKey, KeySource};
use crate::outbox::dead::{BuriedWant, Discarded, Revived};
use crate::outbox::embedded::Settings;
use crate::outbox::embedded::engine::Piece;
use crate::outbox::embedded::kv::{Batch, Disk, Pair};
use crate::outbox::embedded::memory::{MemoryDisk, MemoryKv};
use crate::outbox::operator::{Keys, ListWant, Purge, Touched};
use crate::outbox::{
    Appended, Burial, BuryReason, Full, History, LaneWant, LeaseWant, Leased, Limits, Settlement, Which,
};

const START: UnixMillis = UnixMillis(1_790_000_000_000);

/// What a test knows of a store: which values are bad, how many bytes were read, how many the largest commit had.
#[derive(Default)]
struct Known {
    bad: Mutex<BTreeSet<Vec<u8>>>,
    /// Nothing can be read for want of descriptors.
    starved: AtomicBool,
    read: AtomicUsize,
    committed: AtomicUsize,
}

struct Watched {
    inner: MemoryKv,
    known: Arc<Known>,
}

impl Watched {
    fn value(&self, key: &[u8], value: Bytes) -> Result<Bytes, Failed> {
        if self.known.starved.load(Ordering::Relaxed) && keys::id_of(key).is_some() {
            return Err(Failed::passing("reading", "too many open files"));
        }
        if self.known.bad.lock().unwrap().contains(key) {
            return Err(Failed::of_value("reading", "bad sector"));
        }
        self.known.read.fetch_add(value.len(), Ordering::Relaxed);
        Ok(value)
    }
}

impl Kv for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        self.inner.get(key)?.map(|value| self.value(key, value)).transpose()
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        self.pairs(from, to).map(|pair| pair.and_then(|(key, value)| Ok((key, value?))))
    }

    fn pairs(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Pair, Failed>> {
        self.inner.scan(from, to).map(|pair| {
            let (key, value) = pair?;
            let value = self.value(&key, value);
            Ok((key, value))
        })
    }

    fn keys(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Bytes, Failed>> {
        self.inner.keys(from, to)
    }

    fn value_bytes(&self, key: &[u8]) -> Result<Option<usize>, Failed> {
        self.inner.value_bytes(key)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        let bytes = batch.writes().map(|(_, value)| value.map_or(0, Bytes::len)).sum();
        self.known.committed.fetch_max(bytes, Ordering::Relaxed);
        self.inner.commit(batch)
    }

    fn disk(&self) -> Disk {
        Disk::ROOM
    }
}

struct Bench {
    clock: Clock,
    disk: MemoryDisk,
    known: Arc<Known>,
    engine: Engine<Watched>,
}

impl Bench {
    fn new() -> Self {
        let (clock, disk, known) = (Clock::seeded(START, 1), MemoryDisk::default(), Arc::new(Known::default()));
        let settings = Settings {
            limits: Limits {
                bytes_max: 1 << 30,
                events_max: 10_000,
                functions_max: 100,
                dedupe_window: Duration::from_secs(30),
                sdk_window: Duration::from_secs(30),
            },
            disk_reserve: 0,
            segment_bytes: 1 << 20,
            cache: 0,
        };
        let kv = Watched { inner: disk.open(), known: known.clone() };
        let engine = Engine::open(kv, settings, clock.clone(), "memory").unwrap();
        Self { clock, disk, known, engine }
    }

    fn append(&mut self, payload_bytes: usize, edit: impl FnOnce(&mut Event)) -> EventId {
        let mut event = Event { payload: vec![b'x'; payload_bytes].into(), ..event(&self.clock, "orders") };
        edit(&mut event);
        let id = event.id;
        assert_eq!(self.engine.append(vec![event], Disk::ROOM).unwrap(), [Appended::Stored]);
        self.engine.commit().unwrap();
        id
    }

    fn lease(&mut self, which: Which, events_max: usize) -> Vec<Leased> {
        let lane = self.engine.lanes(0).unwrap().lanes[0].lane;
        let lanes = vec![LaneWant { lane, which, events_max, bytes_max: u64::MAX, spent: None }];
        self.engine.lease(&LeaseWant { lanes, bytes_max: u64::MAX }).unwrap()
    }

    fn settle(&mut self, leased: &Leased, settlement: Settlement) {
        self.engine.settle(vec![(leased.lease, settlement)]).unwrap();
        self.engine.commit().unwrap();
    }

    fn bury(&mut self, payload_bytes: usize) -> EventId {
        let id = self.append(payload_bytes, |_| {});
        let leased = self.lease(Which::Due, 1);
        let burial = Burial { reason: BuryReason::Refused, at: START, unshippable: None };
        self.settle(&leased[0], Settlement::Bury(History { burial: Some(burial), due: START, ..History::default() }));
        id
    }

    fn spoil(&self, place: Place, id: EventId) {
        self.known.bad.lock().unwrap().insert(keys::event(place, LaneId(0), id));
    }

    /// Does `work` piece by piece, each in a commit of its own.
    fn in_pieces<W, A>(
        &mut self,
        work: Vec<W>,
        piece: impl Fn(&mut Engine<Watched>, Vec<W>) -> Result<Piece<W, A>, Failed>,
    ) -> Vec<A> {
        let (mut answers, mut left) = (Vec::new(), work);
        while !left.is_empty() {
            let done = piece(&mut self.engine, left).unwrap();
            self.engine.commit().unwrap();
            answers.extend(done.answers);
            left = done.left;
        }
        answers
    }

    fn revive(&mut self, ids: Vec<EventId>) -> Vec<Revived> {
        self.in_pieces(ids, |engine, ids| engine.revive(ids, 9, Disk::ROOM))
    }

    fn discard(&mut self, ids: Vec<EventId>) -> Vec<Discarded> {
        self.in_pieces(ids, |engine, ids| engine.discard_letters(ids, Keys::Forget))
    }

    fn totals(&self) -> (u64, u64) {
        let census = self.engine.census().unwrap();
        (census.events, census.bytes)
    }

    fn read(&self) -> usize {
        self.known.read.swap(0, Ordering::Relaxed)
    }
}

#[test]
fn an_event_that_cannot_be_read_is_reported_counted_once_and_nobody_elses_trouble() {
    let mut bench = Bench::new();
    let bad = bench.append(10, |_| {});
    let good = bench.append(10, |_| {});
    bench.spoil(Place::Ready, bad);

    let found = bench.engine.find_part(bad, Part::Head).unwrap().unwrap();
    assert!(found.is_err_and(|failed| failed.why.contains("bad sector")));
    let page = bench.engine.list(&ListWant { max: 10, ..ListWant::default() }).unwrap();
    let listed: Vec<_> = page.events.iter().map(|listed| (listed.id, listed.unreadable.is_some())).collect();
    assert_eq!(listed, [(bad, true), (good, false)]);
    assert_eq!(bench.engine.attempt_now(bad).unwrap(), Touched::Unreadable);
    // The bad one does not take the place of the good one.
    let leased = bench.lease(Which::Due, 1);
    assert_eq!(leased.iter().map(|leased| leased.event.id).collect::<Vec<_>>(), [good]);
    assert_eq!(bench.engine.unreadable(), 1);
    bench.settle(&leased[0], Settlement::Delivered);
    assert_eq!(bench.totals().0, 1, "the bad one is still stored");
}

#[test]
fn an_event_that_cannot_be_read_can_be_removed_and_leaves_nothing_behind() {
    for how in ["cancel", "purge", "cancel after a lease met it"] {
        let mut bench = Bench::new();
        let clean = bench.disk.len();
        let in_an_hour = START.plus(Duration::from_secs(3_600));
        let bad = bench.append(200_000, |event| {
            event.expires_at = Some(in_an_hour);
            event.deliver_at = (how != "cancel after a lease met it").then_some(in_an_hour);
        });
        let place = if how == "cancel after a lease met it" { Place::Ready } else { Place::Scheduled };
        bench.spoil(place, bad);
        match how {
            "purge" => {
                let purge = Purge {
                    function: FunctionName::new("orders"),
                    place: None,
                    accepted_before: None,
                    dry_run: false,
                    keys: Keys::Forget,
                };
                let (purged, next) = bench.engine.purge_piece(&purge, None).unwrap();
                assert_eq!((purged.events, next), (1, None));
            }
            "cancel" => assert_eq!(bench.engine.cancel(bad, Keys::Forget).unwrap(), Touched::Done),
            _ => {
                assert!(bench.lease(Which::Due, 1).is_empty());
                assert_eq!(bench.engine.cancel(bad, Keys::Forget).unwrap(), Touched::Done);
            }
        }
        bench.engine.commit().unwrap();
        assert_eq!(bench.totals(), (0, 0), "{how}");
        // What stays is the lane and its number.
        assert_eq!(bench.disk.len(), clean + 2, "{how}");
        assert_eq!(bench.engine.unreadable(), 0, "{how}");
        assert!(bench.engine.find(bad).unwrap().is_none());
    }
}

#[test]
fn a_settlement_that_cannot_read_its_record_sets_the_event_aside() {
    let mut bench = Bench::new();
    let bad = bench.append(10, |_| {});
    let leased = bench.lease(Which::Due, 1);
    bench.spoil(Place::Ready, bad);
    bench.settle(&leased[0], Settlement::RetryAt(History { due: START, ..History::default() }));
    assert_eq!(bench.engine.unreadable(), 1);
    assert!(bench.lease(Which::Due, 1).is_empty(), "it is out of the way");
    let good = bench.append(10, |_| {});
    assert_eq!(bench.lease(Which::Due, 9)[0].event.id, good);
    assert_eq!(bench.engine.cancel(bad, Keys::Forget).unwrap(), Touched::Done);
}

#[test]
fn a_dead_letter_that_cannot_be_read_stands_in_the_list_stays_dead_and_can_be_purged() {
    let mut bench = Bench::new();
    let (bad, good) = (bench.bury(100_000), bench.bury(10));
    bench.spoil(Place::Buried, bad);
    let page = bench.engine.buried(&BuriedWant { letters_max: 10, ..BuriedWant::default() }).unwrap();
    assert_eq!(page.letters.iter().map(|letter| letter.event.id).collect::<Vec<_>>(), [good]);
    assert_eq!(page.unreadable.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [bad]);
    let answers = bench.revive(vec![bad, good]);
    assert!(matches!(answers[..], [Revived::Unreadable { .. }, Revived::Stored { .. }]), "{answers:?}");
    assert_eq!(bench.discard(vec![bad]), [Discarded::Done]);
    assert_eq!(bench.totals().0, 1);
}

#[test]
fn what_needs_no_payload_reads_none() {
    const HEAD: usize = 70_000;
    let mut bench = Bench::new();
    let id = bench.append(PAYLOAD, |event| event.expires_at = Some(START.plus(Duration::from_secs(60))));
    bench.read();
    let found = bench.engine.find_part(id, Part::Head).unwrap().unwrap().unwrap();
    assert_eq!((found.payload_bytes, found.event.payload.len()), (PAYLOAD, 0));
    assert_eq!(found.event.expires_at, Some(START.plus(Duration::from_secs(60))));
    assert!(bench.read() < HEAD);
    bench.engine.list(&ListWant { max: 10, ..ListWant::default() }).unwrap();
    assert!(bench.read() < HEAD);
    bench.engine.cancel(id, Keys::Forget).unwrap();
    bench.engine.commit().unwrap();
    assert!(bench.read() < HEAD);
    assert_eq!(bench.totals(), (0, 0));

    let dead = bench.bury(PAYLOAD);
    bench.read();
    let page = bench.engine.buried(&BuriedWant { letters_max: 10, ..BuriedWant::default() }).unwrap();
    assert_eq!(page.letters[0].payload_bytes, PAYLOAD);
    assert!(bench.read() < HEAD);
    bench.discard(vec![dead]);
    assert!(bench.read() < HEAD);
}

const PAYLOAD: usize = 1_000_000;

#[test]
fn a_change_of_many_letters_is_many_commits_and_an_answer_for_each_letter() {
    let mut bench = Bench::new();
    let large: Vec<EventId> = (0..30).map(|_| bench.bury(PAYLOAD)).collect();
    let small: Vec<EventId> = (0..250).map(|_| bench.bury(10)).collect();
    bench.known.committed.store(0, Ordering::Relaxed);
    let ids = [large.clone(), small.clone(), large].concat();
    let answers = bench.revive(ids);
    assert_eq!(answers.len(), 310);
    assert!(answers[..280].iter().all(|answer| matches!(answer, Revived::Stored { .. })));
    assert!(answers[280..].iter().all(|answer| *answer == Revived::NotFound), "each comes back once");
    let committed = bench.known.committed.load(Ordering::Relaxed);
    assert!(committed < 6 << 20, "{committed} bytes in one commit");
    let piece = bench.engine.discard_letters(small, Keys::Forget).unwrap();
    assert_eq!((piece.answers.len(), piece.left.len()), (100, 150));
}

#[test]
fn a_search_for_expired_events_brings_as_many_as_it_may_while_there_are_more() {
    let mut bench = Bench::new();
    let soon = START.plus(Duration::from_secs(1));
    // Each is past its own time and older than the limit: found twice, counted once.
    let ids: Vec<EventId> = (0..70).map(|_| bench.append(1, |event| event.expires_at = Some(soon))).collect();
    bench.spoil(Place::Ready, ids[3]);
    bench.clock.pass_until(START.plus(Duration::from_secs(5)));
    let which = Which::AcceptedBefore(bench.clock.now());
    assert_eq!(bench.lease(which, 64).len(), 64);
    assert_eq!(bench.lease(which, 64).len(), 5);
}

#[test]
fn while_the_index_is_behind_nothing_new_is_taken_and_all_else_goes_on() {
    let mut bench = Bench::new();
    let dead = bench.bury(10);
    let id = bench.append(10, |_| {});
    let behind = Disk { behind: true, ..Disk::ROOM };
    let leased = bench.lease(Which::Due, 1);
    let another = Event { id: EventId::from_bytes([1; 16]), ..leased[0].event.clone() };
    assert_eq!(bench.engine.append(vec![another], behind).unwrap(), [Appended::Full(Full::Behind)]);
    let piece = bench.engine.revive(vec![dead], 9, behind).unwrap();
    assert_eq!(piece.answers, [Revived::Full(Full::Behind)]);
    assert_eq!(leased[0].event.id, id);
    bench.settle(&leased[0], Settlement::Delivered);
    assert!(bench.engine.find(id).unwrap().is_none());
}

#[test]
fn a_disk_that_does_not_tell_its_size_is_not_full_and_a_reserve_of_nothing_asks_none() {
    let mut bench = Bench::new();
    bench.engine.settings.disk_reserve = 1 << 30;
    let event = |bench: &mut Bench| {
        bench.append(10, |_| {});
        let event = bench.lease(Which::Due, 1).remove(0).event;
        Event { id: EventId::mint(START, bench.clock.random_bits(), &event.function.name), ..event }
    };
    let first = event(&mut bench);
    let full = Disk { free: Some(0), ..Disk::ROOM };
    let answer = bench.engine.append(vec![first.clone()], full).unwrap();
    assert!(matches!(answer[..], [Appended::Full(Full::Disk { .. })]));
    assert_eq!(bench.engine.append(vec![first], Disk { free: None, ..Disk::ROOM }).unwrap(), [Appended::Stored]);
    bench.engine.settings.disk_reserve = 0;
    let second = event(&mut bench);
    assert_eq!(bench.engine.append(vec![second], full).unwrap(), [Appended::Stored]);
}

#[test]
fn no_commit_grows_beyond_what_the_journal_can_say() {
    let mut bench = Bench::new();
    bench.engine.commit_bytes_max = 2_500_000;
    let event = |_| Event { payload: vec![b'x'; PAYLOAD].into(), ..event(&bench.clock, "orders") };
    let events: Vec<Event> = (0..3).map(event).collect();
    let answers = bench.engine.append(events.clone(), Disk::ROOM).unwrap();
    assert_eq!(answers, [Appended::Stored, Appended::Stored, Appended::Full(Full::Commit { limit: 2_500_000 })]);
    bench.engine.commit().unwrap();
    assert_eq!(bench.engine.append(vec![events[2].clone()], Disk::ROOM).unwrap(), [Appended::Stored], "in the next");
}

#[test]
fn events_that_cannot_be_read_for_want_of_descriptors_wait_and_are_not_taken_for_damaged() {
    let mut bench = Bench::new();
    let (first, second) = (bench.append(10, |_| {}), bench.append(10, |_| {}));
    let leased = bench.lease(Which::Due, 1);
    let starve = |bench: &Bench, starved| bench.known.starved.store(starved, Ordering::Relaxed);
    starve(&bench, true);
    assert!(bench.lease(Which::Due, 10).is_empty());
    assert!(bench.engine.find_part(second, Part::Head).unwrap().unwrap().is_err());
    let view = |bench: &mut Bench, since| bench.engine.lanes(since).unwrap().lanes.remove(0);
    let since = bench.engine.version() - 1;
    assert_eq!((view(&mut bench, since).ready, view(&mut bench, since).oldest), (0, None), "nobody asks in vain");
    // What cannot be written down is as if it had not been tried.
    bench.settle(&leased[0], Settlement::RetryAt(History { due: START, calls: 1, ..History::default() }));
    assert_eq!((bench.engine.unreadable(), bench.totals().0), (0, 2));
    assert!(bench.lease(Which::Due, 10).is_empty());

    starve(&bench, false);
    let lane = view(&mut bench, 0);
    assert_eq!(lane.ready, 2, "a reading of all lanes lets it try again");
    let ids: Vec<_> = bench.lease(Which::Due, 10).iter().map(|leased| leased.event.id).collect();
    assert_eq!((ids, bench.engine.unreadable()), (vec![first, second], 0));
}

#[test]
fn the_key_of_an_event_that_was_removed_unread_is_forgotten_by_the_next_sweep() {
    for (keys, again) in [(Keys::Forget, true), (Keys::Keep, false)] {
        let mut bench = Bench::new();
        let keyed = |value: &'static str| {
            move |event: &mut Event| event.key = IdempotencyKey { value: value.into(), source: KeySource::Header }
        };
        let bad = bench.append(10, keyed("a"));
        let other = bench.append(10, keyed("b"));
        bench.spoil(Place::Ready, bad);
        assert_eq!(bench.engine.cancel(bad, keys).unwrap(), Touched::Done);
        bench.engine.commit().unwrap();
        while bench.engine.sweep().unwrap() {}
        bench.engine.commit().unwrap();
        let mut offer = |key: &'static str| {
            let mut event = Event { payload: vec![b'x'; 10].into(), ..event(&bench.clock, "orders") };
            keyed(key)(&mut event);
            bench.engine.append(vec![event], Disk::ROOM).unwrap().remove(0)
        };
        assert_eq!(offer("a") == Appended::Stored, again, "{keys:?}");
        assert_eq!(offer("b"), Appended::Repeat { first: other });
    }
}
