use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::clock::{Clock, UnixMillis};
use crate::event::{Carried, Event, Function, IdempotencyKey, KeySource};
use crate::outbox::embedded::Settings;
use crate::outbox::embedded::engine::Engine;
use crate::outbox::embedded::kv::Disk;
use crate::outbox::embedded::memory::MemoryDisk;
use crate::outbox::{Burial, BuryReason, History, LaneWant, LeaseWant, Limits, Settlement, Which};

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

/// A store in which some keys cannot be read.
struct Damaged<K> {
    kv: K,
    bad: BTreeSet<Vec<u8>>,
}

impl<K: Kv> Kv for Damaged<K> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        if self.bad.contains(key) { Err(failed()) } else { self.kv.get(key) }
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        self.kv.scan(from, to).map(|pair| match pair {
            Ok((key, _)) if self.bad.contains(&key[..]) => Err(failed()),
            pair => pair,
        })
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        self.kv.commit(batch)
    }

    fn disk(&self) -> Disk {
        self.kv.disk()
    }
}

fn failed() -> Failed {
    Failed::new("reading", "bad sector")
}

fn event(clock: &Clock, n: u16) -> Event {
    let name = FunctionName::new(if n.is_multiple_of(2) { "orders" } else { "mails" });
    Event {
        id: EventId::mint(NOW, clock.random_bits(), &name),
        function: Function { address: name.as_str().into(), name, qualifier: None, region: None },
        key: IdempotencyKey { value: format!("key-{n}"), source: KeySource::Header },
        carried: Carried::default(),
        payload: vec![b'x'; usize::from(n) * 500].into(),
        accepted_at: NOW,
        deliver_at: n.is_multiple_of(5).then(|| NOW.plus(Duration::from_secs(60))),
        expires_at: None,
        redrives: 0,
    }
}

fn open(disk: &MemoryDisk) -> Engine<crate::outbox::embedded::memory::MemoryKv> {
    let settings = Settings {
        limits: Limits {
            bytes_max: 1 << 30,
            events_max: 1 << 30,
            functions_max: 100,
            dedupe_window: Duration::from_secs(60),
            sdk_window: Duration::from_secs(60),
        },
        disk_reserve: 0,
        segment_bytes: 1 << 20,
        cache: 0,
    };
    Engine::open(disk.open(), settings, Clock::seeded(NOW, 1), "memory").unwrap()
}

/// Twenty events, in every state.
fn filled() -> (MemoryDisk, Vec<Event>) {
    let (disk, clock) = (MemoryDisk::default(), Clock::seeded(NOW, 7));
    let mut engine = open(&disk);
    let events: Vec<_> = (0..20).map(|n| event(&clock, n)).collect();
    let free = engine.disk();
    engine.append(events.clone(), free).unwrap();
    engine.commit().unwrap();
    let lanes = engine.lanes(0).unwrap().lanes;
    let want = |lane| LaneWant { lane, which: Which::Due, events_max: 3, bytes_max: u64::MAX, spent: None };
    let want = LeaseWant { lanes: lanes.iter().map(|view| want(view.lane)).collect(), bytes_max: u64::MAX };
    for (n, leased) in engine.lease(&want).unwrap().into_iter().enumerate() {
        let history = History { due: NOW.plus(Duration::from_secs(5)), ..leased.history };
        let burial = Some(Burial { reason: BuryReason::Refused, at: NOW, unshippable: None });
        let settlement = match n % 2 {
            0 => Settlement::RetryAt(history),
            _ => Settlement::Bury(History { burial, ..history }),
        };
        engine.settle(vec![(leased.lease, settlement)]).unwrap();
    }
    engine.commit().unwrap();
    (disk, events)
}

#[test]
fn a_sound_store_is_found_sound_and_a_copy_of_it_is_the_same_store() {
    let (disk, events) = filled();
    let report = check(&disk.open());
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.events, report.keys, report.functions), (20, 20, 2));
    let copy = MemoryDisk::default();
    assert_eq!(rebuild(&disk.open(), &mut copy.open()).unwrap(), report);
    assert_eq!(check(&copy.open()), report);
    assert_eq!(copy.len(), disk.len());
    let engine = open(&copy);
    for event in events {
        assert_eq!(engine.find(event.id).unwrap().unwrap().event, event);
    }
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_carried_over() {
    let (disk, events) = filled();
    let mut bad = BTreeSet::new();
    let lost_chunk = &events[11];
    bad.insert(keys::chunk(lost_chunk.id, 0));
    let lost_record = &events[14];
    for place in Place::ALL {
        let (from, to) = keys::all_events(place);
        bad.extend(disk.open().scan(&from, &to).filter_map(|pair| {
            let key = pair.unwrap().0;
            (keys::id_of(&key) == Some(lost_record.id)).then(|| key.to_vec())
        }));
    }
    assert_eq!(bad.len(), 2);
    let damaged = Damaged { kv: disk.open(), bad };
    let copy = MemoryDisk::default();
    let report = rebuild(&damaged, &mut copy.open()).unwrap();
    assert!(!report.is_sound());
    assert_eq!(report.unreadable_ids, [lost_chunk.id.to_string()]);
    assert!(report.unreadable_ranges >= 1, "{report:?}");
    assert!(check(&copy.open()).is_sound(), "{:?}", check(&copy.open()));
    let engine = open(&copy);
    let lost: Vec<_> = events.iter().filter(|event| engine.find(event.id).unwrap().is_none()).collect();
    assert_eq!(lost, [lost_chunk, lost_record]);
}

#[test]
fn wrong_counts_and_indexes_are_seen_and_made_anew() {
    let (disk, _) = filled();
    let mut kv = disk.open();
    let mut batch = Batch::default();
    let (from, to) = keys::all_due(Due::Ship);
    let entry = kv.scan(&from, &to).next().unwrap().unwrap().0;
    batch.remove(entry.to_vec());
    batch.put(keys::due(Due::Attempt, LaneId(0), NOW, EventId::from_bytes([3; 16])), vec![b'w']);
    let lane = LaneRecord {
        function: FunctionName::new("orders"),
        counts: [Count::default(); 4],
        paused: false,
        spent: crate::outbox::Spent::default(),
        proven: false,
    };
    batch.put(keys::lane(LaneId(0)), lane.encode());
    kv.commit(&batch).unwrap();
    let report = check(&kv);
    assert_eq!((report.index_missing, report.index_stray, report.wrong_counts), (1, 1, 1), "{report:?}");
    let copy = MemoryDisk::default();
    rebuild(&kv, &mut copy.open()).unwrap();
    assert!(check(&copy.open()).is_sound());
}
