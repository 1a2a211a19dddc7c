//! Checks that what earlier versions wrote stays readable: store directories whose journals have formats 1 and 2, and the
//! bytes of each kind of record, of format 1.
//!
//! `WRITE_FIXTURES=1 cargo test --test format` writes the fixtures again. Do that only for a format that was never
//! released. For any other format, add a new version, and a fixture beside this one.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use sendoff::clock::{Clock, UnixMillis};
use sendoff::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use sendoff::outbox::OpenError;
use sendoff::outbox::embedded::Settings;
use sendoff::outbox::embedded::engine::Engine;
use sendoff::outbox::embedded::journal::files::segments_in;
use sendoff::outbox::embedded::keys::{self, META_FORMAT};
use sendoff::outbox::embedded::kv::{Batch, Disk, Kv};
use sendoff::outbox::embedded::memory::MemoryDisk;
use sendoff::outbox::embedded::record::{KeyRecord, LaneRecord, Record, encode_body};
use sendoff::outbox::embedded::store;
use sendoff::outbox::{
    Appended, Burial, BuryReason, History, LaneWant, LastOutcome, LeaseWant, Leased, Limits, Place, Settlement, Which,
};

const START: UnixMillis = UnixMillis(1_790_000_000_000);
const CACHE: u64 = 8 << 20;
const ROOM: Disk = Disk { used: 0, free: None, to_come: 0, behind: false };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn writing() -> bool {
    #[expect(clippy::disallowed_methods, reason = "how a person asks for new fixtures")]
    let asked = std::env::var("WRITE_FIXTURES");
    asked.is_ok()
}

/// Runs `story` with a clock that stands still, so that it writes the same every time.
fn at_a_standstill<T>(story: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { story() })
}

fn settings() -> Settings {
    Settings {
        limits: Limits {
            bytes_max: 1 << 30,
            events_max: 1_000,
            functions_max: 100,
            dedupe_window: Duration::from_secs(86_400 * 365),
            sdk_window: Duration::from_secs(3_600),
        },
        disk_reserve: 0,
        segment_bytes: 1 << 20,
        cache: CACHE,
    }
}

/// One event of every kind, by its number.
fn event(n: u8) -> Event {
    let name = FunctionName::new(if n == 4 { "invoices:prod" } else { "orders" });
    Event {
        id: EventId::mint(UnixMillis(START.0 + u64::from(n)), u128::from(n) << 64, &name),
        function: Function {
            address: if n == 4 { "arn:aws:lambda:eu-west-1:123456789012:function:invoices" } else { "orders" }.into(),
            name,
            qualifier: (n == 4).then(|| "prod".into()),
            region: (n == 4).then(|| "eu-west-1".into()),
        },
        key: IdempotencyKey {
            value: format!("key-{n}"),
            source: [KeySource::Header, KeySource::SdkInvocationId, KeySource::Minted][usize::from(n) % 3],
        },
        carried: Carried {
            trace_header: Some("Root=1-5759e988-bd862e3fe1be46a994272793;Lineage=1:2:3".into()),
            client_context: (n == 1).then(|| "e30=".into()),
            tenant_id: (n == 2).then(|| "tenant".into()),
            durable_execution_name: (n == 3).then(|| "order-3".into()),
        },
        payload: format!("{{\"n\":{n},\"p\":\"{}\"}}", "x".repeat(if n == 1 { 9_000 } else { 10 })).into(),
        accepted_at: UnixMillis(START.0 + u64::from(n)),
        deliver_at: (n == 3).then(|| START.plus(Duration::from_secs(3_600))),
        expires_at: (n == 3).then(|| START.plus(Duration::from_secs(7_200))),
        redrives: u32::from(n == 4),
    }
}

fn history(due: UnixMillis, burial: Option<Burial>) -> History {
    let last = LastOutcome {
        at: START,
        status: 429,
        code: "TooManyRequestsException".into(),
        message: "Rate Exceeded.".into(),
        request_id: Some("e1e2".into()),
    };
    History { attempts: 3, calls: 9, throttles: 6, setbacks: 1, due, last: Some(last), burial }
}

fn burial() -> Option<Burial> {
    Some(Burial { reason: BuryReason::RetriesExhausted, at: START, unshippable: Some("no".into()) })
}

/// The place and history of each event in the fixture.
fn resting() -> BTreeMap<EventId, (Event, Place, History)> {
    let due = START.plus(Duration::from_secs(60));
    let fresh = |due| History { due, ..History::default() };
    [
        (event(0), Place::Ready, fresh(START)),
        (event(1), Place::Ready, fresh(START)),
        (event(2), Place::Waiting, history(due, None)),
        (event(3), Place::Scheduled, fresh(START.plus(Duration::from_secs(3_600)))),
        (event(4), Place::Buried, history(due, burial())),
    ]
    .into_iter()
    .map(|(event, place, history)| (event.id, (event, place, history)))
    .collect()
}

fn lease_all<K: Kv>(store: &mut Engine<K>) -> Vec<Leased> {
    let views = store.lanes(0).unwrap().lanes;
    let lanes = views
        .iter()
        .map(|view| LaneWant { lane: view.lane, which: Which::Due, events_max: 10, bytes_max: u64::MAX, spent: None })
        .collect();
    store.lease(&LeaseWant { lanes, bytes_max: u64::MAX }).unwrap()
}

fn write_store(dir: &Path) {
    if dir.exists() {
        fs::remove_dir_all(dir).unwrap();
    }
    let kv = store::open(dir, &settings()).unwrap().store;
    let mut store = Engine::open(kv, settings(), Clock::seeded(START, 1), "fixture").unwrap();
    store.append((0..5).map(event).collect(), ROOM).unwrap();
    store.commit().unwrap();
    let settle = |leased: Leased| {
        let (_, place, history) = &resting()[&leased.event.id];
        let settlement = match place {
            Place::Waiting => Settlement::RetryAt(history.clone()),
            Place::Buried => Settlement::Bury(history.clone()),
            Place::Ready | Place::Scheduled => Settlement::Release,
        };
        (leased.lease, settlement)
    };
    let settled = lease_all(&mut store).into_iter().map(settle).collect();
    store.settle(settled).unwrap();
    store.commit().unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy of a store's fixture, so that a test can write to it.
fn store_of(version: u8) -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let state = scratch.path().join("state");
    copy(&fixtures().join(format!("store-v{version}")), &state);
    fs::remove_file(state.join("outbox/index/blobs/.gitkeep")).unwrap();
    (scratch, state)
}

fn open(state: &Path) -> Engine<store::Store> {
    let kv = store::open(state, &settings()).unwrap().store;
    Engine::open(kv, settings(), Clock::seeded(START, 2), "fixture").unwrap()
}

fn is_all_there(store: &mut Engine<store::Store>) {
    for (event, place, history) in resting().into_values() {
        let found = store.find(event.id).unwrap();
        let found = found.map(|found| (found.event, found.place, found.history));
        assert_eq!(found, Some((event.clone(), place, history)));
        if event.key.source != KeySource::Minted {
            let again = Event { id: EventId::mint(START, 99, &event.function.name), ..event.clone() };
            let answer = store.append(vec![again], ROOM).unwrap();
            assert_eq!(answer, [Appended::Repeat { first: event.id }]);
        }
    }
}

#[test]
fn a_store_of_every_version_is_read_whole() {
    if writing() {
        let fixture = fixtures().join("store-v2");
        at_a_standstill(|| write_store(&fixture));
        // sled needs this empty directory, and git does not keep empty directories.
        fs::write(fixture.join("outbox/index/blobs/.gitkeep"), "").unwrap();
    }
    for version in [1, 2] {
        let (_scratch, state) = store_of(version);
        at_a_standstill(|| {
            let mut store = open(&state);
            is_all_there(&mut store);
            let census = store.census().unwrap();
            assert_eq!((census.events, census.lanes.len()), (5, 2));
            assert_eq!(lease_all(&mut store).len(), 2, "Ready ones only are due");
        });
    }
}

#[test]
fn a_store_of_version_1_goes_on_in_the_present_version_and_keeps_what_it_had() {
    let (_scratch, state) = store_of(1);
    let new = Event {
        id: EventId::mint(START, 77 << 64, &FunctionName::new("orders")),
        key: IdempotencyKey { value: "minted".into(), source: KeySource::Minted },
        ..event(0)
    };
    at_a_standstill(|| {
        let mut store = open(&state);
        store.append(vec![new.clone()], ROOM).unwrap();
        store.commit().unwrap();
    });
    // The journal alone contains everything.
    fs::remove_dir_all(state.join("outbox/index")).unwrap();
    at_a_standstill(|| {
        let mut store = open(&state);
        is_all_there(&mut store);
        assert_eq!(store.find(new.id).unwrap().map(|found| found.event), Some(new.clone()));
    });
    let formats: Vec<u8> =
        segments_in(&state.join("outbox/journal")).unwrap().iter().map(|path| fs::read(path).unwrap()[8]).collect();
    assert_eq!((formats.first(), formats.last()), (Some(&1), Some(&2)), "{formats:?}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Bytes {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The pairs of a store with the fixture's events, as on any kind of disk.
fn pairs() -> BTreeMap<String, String> {
    let disk = MemoryDisk::default();
    let mut store = Engine::open(disk.open(), settings(), Clock::seeded(START, 1), "fixture").unwrap();
    store.append((0..5).map(event).collect(), ROOM).unwrap();
    store.commit().unwrap();
    let due = START.plus(Duration::from_secs(60));
    let settle = |leased: Leased| (leased.lease, Settlement::Bury(history(due, burial())));
    let buried =
        lease_all(&mut store).into_iter().filter(|leased| leased.event.id == event(4).id).map(settle).collect();
    store.settle(buried).unwrap();
    store.commit().unwrap();
    let kv = disk.open();
    // Leaves out chunks, which are pieces of bodies and are in the fixture of the store.
    let all = kv.scan(&[0], &[0xff]).map(Result::unwrap).filter(|(key, _)| key[0] != b'p');
    all.map(|(key, value)| (hex(&key), hex(&value))).collect()
}

#[test]
fn records_of_version_1_are_written_and_read_as_ever() {
    let fixture = fixtures().join("records-v1.txt");
    let written = at_a_standstill(pairs);
    if writing() {
        let text: String = written.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
        fs::write(&fixture, text).unwrap();
    }
    let text = fs::read_to_string(&fixture).unwrap();
    let kept: BTreeMap<_, _> =
        text.lines().map(|line| line.split_once(' ').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    assert_eq!(written, kept, "the bytes have changed: that needs a new version beside the old one");
    for (key, value) in &kept {
        let (key, value) = (from_hex(key), from_hex(value));
        match key[0] {
            b'l' => {
                assert!(["orders", "invoices:prod"].contains(&LaneRecord::decode(&value).unwrap().function.as_str()))
            }
            b'j' | b'k' => assert!(resting().contains_key(&KeyRecord::decode(&value).unwrap().first)),
            letter if keys::place(letter).is_some() => {
                let (event, ..) = &resting()[&keys::id_of(&key).unwrap()];
                let record = Record::decode(&value).unwrap();
                assert_eq!(record.body_bytes as usize, encode_body(event).len());
            }
            b'm' | b't' | b'u' | b'e' => {}
            other => panic!("a key of an unknown kind: {}", other as char),
        }
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_in_clear_words() {
    let scratch = tempfile::tempdir().unwrap();
    let mut kv = store::open(scratch.path(), &settings()).unwrap().store;
    let mut batch = Batch::default();
    batch.put(META_FORMAT.to_vec(), 7_u64.to_be_bytes().to_vec());
    batch.put(b"something new".to_vec(), b"kept".to_vec());
    kv.commit(&batch).unwrap();
    let refused = Engine::open(kv, settings(), Clock::seeded(START, 1), "/state").err().unwrap();
    assert!(matches!(refused, OpenError::Newer { found: 7, .. }));
    assert_eq!(refused.to_string(), "/state was written by a newer sendoff (format 7, this one reads up to 1)");
    let kv = store::open(scratch.path(), &settings()).unwrap().store;
    assert_eq!(&kv.get(b"something new").unwrap().unwrap()[..], b"kept");
}
