//! Tests a full store: `outbox.bytes_max` limits what the files take, and a full store still works.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sendoff::clock::Clock;
use sendoff::event::Event;
use sendoff::outbox::Appended;
use sendoff::outbox::embedded::Settings;
use sendoff::outbox::embedded::engine::Engine;
use sendoff::outbox::embedded::kv::Disk;

use crate::rig::daemon::{Daemon, Setup};
use crate::rig::eventually;
use crate::rig::http::Response;
use crate::rig::lambda::Lambda;
use crate::space::drain;
use crate::store;

const MIB: u64 = 1 << 20;

/// The smallest value that is allowed.
const BYTES_MAX: u64 = 64 * MIB;

/// Less than that, so that short events fill it sooner.
const SHORT_BYTES_MAX: u64 = 32 * MIB;

const CLIENTS: u64 = 12;

/// A client gives up after this many refusals of its shortest events in a row.
const REFUSALS: u64 = 5;

#[test]
fn the_files_never_take_more_than_bytes_max_and_a_full_store_drains_and_accepts_again() {
    let scratch = tempfile::tempdir().unwrap();
    let state = scratch.path().join("state");
    let lambda = Lambda::start();
    lambda.throttle_all();
    let setup = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("outbox.bytes_max", "64MiB")
        .set("delivery.backoff_base", "500ms")
        .set("delivery.backoff_cap", "2s");
    let daemon = setup.start();
    let accepted = Mutex::new(Vec::new());
    let most = while_watching(&state, || {
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (daemon, accepted) = (&daemon, &accepted);
                scope.spawn(move || fill(daemon, client, accepted));
            }
        });
    });
    let accepted = accepted.into_inner().unwrap();
    let stored: u64 = accepted.iter().map(|(_, bytes)| bytes).sum();
    eprintln!("full: {} events with {} MiB; the files took {most} of {BYTES_MAX} bytes", accepted.len(), stored / MIB);
    assert!(most <= BYTES_MAX, "the files took {most} bytes");
    assert!(stored > BYTES_MAX / 2, "it was full with {stored} bytes of payload only");
    assert_eq!(daemon.stored(), accepted.len() as f64);

    // Waiting events are retried, which writes, too. A start reads and writes.
    let most = while_watching(&state, || {
        let before = lambda.requests();
        eventually("it is retried", || (lambda.requests() > before + 40).then_some(()));
        daemon.kill9();
    });
    assert!(most <= BYTES_MAX, "the files took {most} bytes while events were retried");
    let mut restarted = None;
    let most = while_watching(&state, || {
        let daemon = setup.start();
        assert_eq!(daemon.stored(), accepted.len() as f64);
        assert!(is_full(&send(&daemon, "one more", MIB)));
        lambda.take_all();
        daemon.wait_until_empty();
        restarted = Some(daemon);
    });
    assert!(most <= BYTES_MAX, "the files took {most} bytes while it drained");
    let taken = lambda.taken();
    assert!(accepted.iter().all(|(id, _)| taken.contains_key(id)), "an accepted event was not delivered");
    assert_eq!(taken.len(), accepted.len(), "what was refused is not delivered");

    let daemon = restarted.unwrap();
    eventually("it accepts again", || {
        let response = send(&daemon, "late", MIB);
        assert!(response.status == 202 || is_full(&response), "{response:?}");
        (response.status == 202).then_some(())
    });
    let left = eventually("room is given back", || size(&state).ok().filter(|&left| left < BYTES_MAX / 2));
    eprintln!("drained: the files take {left} bytes");
    lambda.wait_for(&["late".to_owned()]);
}

#[test]
fn one_turn_of_appends_does_not_pass_the_limit() {
    let scratch = store::scratch();
    let mut engine = store::open(&scratch.path().join("state")).unwrap();
    let limit = store::settings().limits.bytes_max / 16 * 15;
    let event = |n| Event { payload: vec![b'x'; MIB as usize].into(), ..store::event(n * 40) };
    for (used, to_come) in [(limit - 3 * MIB, 0), (limit - 8 * MIB, 5 * MIB)] {
        let disk = Disk { used, to_come, ..Disk::default() };
        let appended = engine.append((used..used + 16).map(event).collect(), disk).unwrap();
        let stored = appended.iter().filter(|appended| **appended == Appended::Stored).count();
        engine.commit().unwrap();
        assert_eq!(stored, 2, "two and their heads, in three MiB");
    }
    let disk = Disk { free: Some(20 * MIB), ..Disk::default() };
    let appended = engine.append((0..16).map(event).collect(), disk).unwrap();
    let stored = appended.iter().filter(|appended| **appended == Appended::Stored).count();
    assert!((1..=5).contains(&stored), "{stored} were accepted with 20 MiB free");
}

#[test]
fn many_short_events_do_not_take_more_than_bytes_max_either() {
    let scratch = store::scratch();
    let state = scratch.path().join("state");
    let mut settings = Settings { segment_bytes: 16 * MIB, ..store::settings() };
    settings.limits.bytes_max = SHORT_BYTES_MAX;
    let open = || {
        let store = sendoff::outbox::embedded::store::open(&state, &settings).unwrap().store;
        Engine::open(store, settings.clone(), Clock::system(), "the store").unwrap()
    };
    let mut engine = open();
    let (mut accepted, mut most) = (0, 0);
    for first in (0..).step_by(500) {
        let events = (first..first + 500).map(|n| Event { payload: n.to_string().into(), ..store::event(n * 40) });
        let disk = engine.disk();
        let appended = engine.append(events.collect(), disk).unwrap();
        engine.commit().unwrap();
        most = most.max(size(&state).unwrap_or(0));
        let stored = appended.iter().filter(|appended| **appended == Appended::Stored).count();
        accepted += stored as u64;
        if stored == 0 {
            break;
        }
    }
    drop(engine);
    most = most.max(size(&state).unwrap());
    eprintln!("full: {accepted} short events; the files took {most} of {SHORT_BYTES_MAX} bytes");
    let mut engine = open();
    assert_eq!(engine.census().unwrap().events, accepted);
    while engine.census().unwrap().events > 0 {
        drain(&mut engine);
        most = most.max(size(&state).unwrap_or(0));
    }
    drop(engine);
    most = most.max(size(&state).unwrap());
    assert!(
        most <= SHORT_BYTES_MAX,
        "the files took {most} bytes after a start, a drain and an end: {:?}",
        files(&state).unwrap()
    );
}

/// Sends events of all sizes until even the shortest are refused.
fn fill(daemon: &Daemon, client: u64, accepted: &Mutex<Vec<(String, u64)>>) {
    let mut refusals = 0;
    for n in 0.. {
        let id = format!("event-{client}-{n}");
        let short = n % 4 == 3;
        let bytes = match n % 4 {
            0 => MIB,
            1 => 60_000,
            2 => 3_000,
            _ => 100,
        };
        let response = send(daemon, &id, bytes);
        if response.status == 202 {
            accepted.lock().unwrap().push((id, bytes));
            refusals = 0;
            continue;
        }
        assert!(is_full(&response), "{response:?}");
        refusals += u64::from(short);
        if refusals == REFUSALS {
            return;
        }
    }
}

fn send(daemon: &Daemon, id: &str, bytes: u64) -> Response {
    let empty = serde_json::json!({ "id": id, "ballast": "" }).to_string().len();
    let ballast = "x".repeat((bytes as usize).saturating_sub(empty));
    daemon.invoke("orders", &[], serde_json::json!({ "id": id, "ballast": ballast }).to_string().as_bytes())
}

/// Whether a refusal has Lambda's shape and says what is full and when to retry.
fn is_full(response: &Response) -> bool {
    response.status == 503
        && response.header("x-amzn-errortype") == Some("ServiceException")
        && response.header("retry-after").is_some()
        && response.header("x-amz-retry-after").is_some()
        && response.text().contains("outbox.bytes_max")
}

/// The most bytes that the files below `state` took during `work`.
fn while_watching(state: &Path, work: impl FnOnce()) -> u64 {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(size(state).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // After a panic, the other thread must still end.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    most.into_inner()
}

/// What all files take on the disk. An error if the files changed meanwhile.
fn size(state: &Path) -> io::Result<u64> {
    let before = files(state)?;
    let after = files(state)?;
    if before.keys().eq(after.keys()) { Ok(before.values().sum()) } else { Err(io::Error::other("files came or went")) }
}

fn files(below: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(below)? {
        let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        if metadata.is_dir() {
            found.append(&mut files(&path)?);
        } else {
            found.insert(path, metadata.blocks() * 512);
        }
    }
    Ok(found)
}
