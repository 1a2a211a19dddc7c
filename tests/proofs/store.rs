//! Checks a store that a crash left: is every accepted event there and complete, and is its key known?

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use sendoff::clock::Clock;
use sendoff::event::{Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KeySource};
use sendoff::outbox::embedded::Settings;
use sendoff::outbox::embedded::engine::Engine;
use sendoff::outbox::embedded::store::{self, Store};
use sendoff::outbox::{Appended, Limits};

use crate::load::{self, Ack};

/// An open that takes longer than this hangs.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

pub fn settings() -> Settings {
    Settings {
        limits: Limits {
            bytes_max: 1 << 40,
            events_max: u64::MAX,
            functions_max: 10_000,
            dedupe_window: Duration::from_secs(86_400),
            sdk_window: Duration::from_secs(3_600),
        },
        // With a reserve of zero, the disk would not be asked.
        disk_reserve: 1,
        segment_bytes: 1 << 20,
        cache: 16 * MIB,
    }
}

/// The result of a check.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    pub stored: u64,
    pub gone: u64,
}

pub fn open(state: &Path) -> Result<Engine<Store>, String> {
    let store = store::open(state, &settings()).map_err(|error| error.to_string())?.store;
    Engine::open(store, settings(), Clock::system(), "the store").map_err(|error| error.to_string())
}

/// Opens the store in a thread that may panic or hang, and looks for every acknowledged event. `taken` says which of
/// them Lambda had by then. Then writes to the store, opens it again, and looks again.
pub fn check(state: &Path, acks: &[Ack], taken: impl Fn(&Ack) -> bool) -> Result<Found, String> {
    let acks: Vec<_> = acks.iter().map(|ack| (ack.clone(), taken(ack))).collect();
    let (state, (report, reported)) = (state.to_owned(), mpsc::channel());
    std::thread::spawn(move || {
        let outcome = std::panic::catch_unwind(|| {
            let found = check_once(&state, &acks)?;
            write_one(&state)?;
            check_once(&state, &acks).map_err(|why| format!("after a write: {why}"))?;
            Ok(found)
        });
        drop(report.send(outcome.unwrap_or_else(|_| Err("it panicked".to_owned()))));
    });
    reported.recv_timeout(OPEN_LIMIT).unwrap_or_else(|_| Err("it hangs".to_owned()))
}

fn check_once(state: &Path, acks: &[(Ack, bool)]) -> Result<Found, String> {
    let mut engine = open(state)?;
    let mut found = Found::default();
    for (ack, taken) in acks {
        let event = event(ack.n);
        let disk = engine.disk();
        let appended = engine.append(vec![event.clone()], disk).map_err(|why| why.to_string())?;
        if appended != [Appended::Repeat { first: ack.id }] {
            return Err(format!("the key of {ack:?} is not known: {appended:?}"));
        }
        match engine.find(ack.id).map_err(|why| format!("{ack:?}: {why}"))? {
            Some(stored) if stored.event.payload != event.payload => {
                return Err(format!("{ack:?} has another payload"));
            }
            Some(_) => found.stored += 1,
            None if *taken => found.gone += 1,
            None => return Err(format!("{ack:?} for {} is lost", load::function(ack.n))),
        }
    }
    Ok(found)
}

fn write_one(state: &Path) -> Result<(), String> {
    let mut engine = open(state)?;
    let disk = engine.disk();
    engine.append(vec![event(fastrand::u64(1 << 40..))], disk).map_err(|why| why.to_string())?;
    engine.commit().map(drop).map_err(|why| why.to_string())
}

/// The n-th event as ingest would make it, with a new id.
pub fn event(n: u64) -> Event {
    let clock = Clock::system();
    let name = FunctionName::new(load::function(n));
    let now = clock.now();
    Event {
        id: EventId::mint(now, clock.random_bits(), &name),
        function: Function { address: name.as_str().to_owned(), name, qualifier: None, region: None },
        key: IdempotencyKey { value: load::key(n), source: KeySource::Header },
        carried: Carried::default(),
        payload: Bytes::from(load::payload(n)),
        accepted_at: now,
        deliver_at: None,
        expires_at: None,
        redrives: 0,
    }
}

/// Copies a directory with all its contents.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A scratch directory, in memory if possible: the tests make and discard images by the hundred.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}
