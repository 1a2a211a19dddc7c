//! Tests space and scale: what churn leaves on the disk, and how the daemon starts with a large backlog.

use std::fs;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use sendoff::event::{Event, IdempotencyKey, KeySource};
use sendoff::outbox::embedded::engine::Engine;
use sendoff::outbox::embedded::store::Store;
use sendoff::outbox::{LaneWant, LeaseWant, Settlement, Which};

use crate::rig::daemon::Setup;
use crate::rig::http;
use crate::rig::lambda::{Lambda, throttle};
use crate::{size, store};

const MIB: u64 = 1 << 20;
const BATCH: u64 = 200;

/// As docs/power-loss.md says: the files take at most this many times the most that was stored at once, and some
/// segments.
const FILES_PER_STORED: u64 = 3;
const FILES_BASE: u64 = 16 * MIB;

/// What sled's file keeps for each event of the largest backlog so far, because it does not shrink. The next backlog
/// uses it again.
const INDEX_PER_EVENT: u64 = 450;

#[test]
fn steady_churn_keeps_the_files_bounded_with_large_payloads_too() {
    let events = size("CHURN", 8_000);
    let scratch = store::scratch();
    let state = scratch.path().join("state");
    let mut engine = store::open(&state).unwrap();
    let (mut stored_most, mut file_most, mut next_shown) = (0, 0, 0);
    let begun = Instant::now();
    for first in (0..events).step_by(BATCH as usize) {
        fill(&mut engine, first..first + BATCH, |n| match n % 1_000 {
            0 => MIB as usize,
            _ => fastrand::usize(50..4_000),
        });
        stored_most = engine.census().unwrap().bytes.max(stored_most);
        drain(&mut engine);
        file_most = engine.disk().used.max(file_most);
        if first >= next_shown {
            eprintln!("{first} events: files {} MiB, {:?}", engine.disk().used / MIB, begun.elapsed());
            next_shown += events / 10;
        }
    }
    assert_eq!(engine.census().unwrap().events, 0);
    eprintln!("{events} events, at most {stored_most} bytes stored at once, files at most {file_most} bytes");
    let bound = FILES_PER_STORED * stored_most + FILES_BASE;
    assert!(file_most <= bound, "the files grew to {file_most}, the bound is {bound}");
}

#[test]
fn a_drained_backlog_gives_its_room_back() {
    let events = size("BACKLOG", 4_000);
    let scratch = store::scratch();
    let mut engine = store::open(&scratch.path().join("state")).unwrap();
    let mut files = Vec::new();
    for round in 0..3 {
        for first in (0..events).step_by(BATCH as usize) {
            let first = round * events + first;
            fill(&mut engine, first..first + BATCH, |_| 3_000);
        }
        let full = engine.disk().used;
        while engine.census().unwrap().events > 0 {
            drain(&mut engine);
        }
        while engine.tend().unwrap() {}
        files.push((full, engine.disk().used));
    }
    eprintln!("full and drained, three backlogs of {events} events: {files:?}");
    let bound = FILES_BASE + INDEX_PER_EVENT * events;
    assert!(files.iter().all(|&(full, drained)| full > events * 3_000 && drained < bound), "{files:?}");
}

#[test]
fn a_large_backlog_is_accepting_soon_after_a_kill_and_is_not_held_in_memory() {
    let events = size("SCALE", 20_000);
    let scratch = store::scratch();
    let state = scratch.path().join("state");
    let begun = Instant::now();
    let mut engine = store::open(&state).unwrap();
    for first in (0..events).step_by(BATCH as usize) {
        fill(&mut engine, first..first + BATCH, |_| 200);
    }
    let file = engine.disk().used;
    drop(engine);
    eprintln!("{events} events filled in {:?}, files {} MiB", begun.elapsed(), file / MIB);
    let lambda = Lambda::start();
    lambda.default_script(sendoff::standin::Script::always(throttle()));
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    for life in ["after a clean end", "after a kill"] {
        let begun = Instant::now();
        let daemon = setup.start();
        daemon.accept("orders", &[], b"{}");
        let took = begun.elapsed();
        assert!(daemon.stored() >= events as f64);
        let rss = resident(&state);
        eprintln!("{life}: accepting after {took:?}, {} MiB resident", rss / MIB);
        // The engine's cache (16 MiB by default) and 100 MiB, and more for a debug build. sled remembers where each of
        // its pages is, so events take memory, too.
        let bound = (16 + 100 + 64) * MIB + 32 * events;
        assert!(rss < bound, "{} MiB resident", rss / MIB);
        daemon.kill9();
    }
}

/// sled leaves the pages that a commit replaced to its epochs, which free too few of them: 2 KiB for each event here.
#[test]
fn what_was_accepted_does_not_stay_in_memory() {
    const BATCH: usize = 500;
    let scratch = store::scratch();
    let state = scratch.path().join("state");
    let lambda = Lambda::start();
    lambda.default_script(sendoff::standin::Script::always(throttle()));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let line = format!("{{\"function\":\"orders\",\"payload\":\"{}\"}}\n", "x".repeat(1_000));
    let batch = line.repeat(BATCH);
    let accept = |events: usize| {
        for _ in 0..events / BATCH {
            let headers = [("Content-Type", "application/x-ndjson")];
            let response = http::request(daemon.ingest, "POST", "/v1/events", &headers, batch.as_bytes());
            assert_eq!(response.status, 202, "{response:?}");
        }
        resident(&state)
    };
    let (warm, full) = (accept(20_000), accept(60_000));
    let grown = full.saturating_sub(warm);
    eprintln!("{} MiB resident with 20,000 waiting, {} more with 80,000", warm / MIB, grown / MIB);
    assert!(grown < 55 * MIB, "{} MiB more", grown / MIB);
}

fn fill(engine: &mut Engine<Store>, numbers: std::ops::Range<u64>, payload_bytes: impl Fn(u64) -> usize) {
    let events: Vec<_> = numbers
        .map(|n| Event {
            key: IdempotencyKey { value: n.to_string(), source: KeySource::Minted },
            payload: Bytes::from(vec![b'x'; payload_bytes(n)]),
            ..store::event(n * 40)
        })
        .collect();
    let disk = engine.disk();
    engine.append(events, disk).unwrap();
    engine.commit().unwrap();
}

/// Leases and delivers ready events, up to a thousand.
pub fn drain(engine: &mut Engine<Store>) {
    let lanes = engine.lanes(0).unwrap().lanes;
    let want = |lane| LaneWant { lane, which: Which::Due, events_max: 1_000, bytes_max: u64::MAX, spent: None };
    let want = LeaseWant { lanes: lanes.iter().map(|view| want(view.lane)).collect(), bytes_max: u64::MAX };
    let leased = engine.lease(&want).unwrap();
    engine.settle(leased.into_iter().map(|leased| (leased.lease, Settlement::Delivered)).collect()).unwrap();
    engine.commit().unwrap();
}

/// Resident bytes of the process that was started on `state`.
fn resident(state: &Path) -> u64 {
    let state = state.to_str().unwrap();
    let ours = fs::read_dir("/proc").unwrap().flatten().find(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|word| word == state)
    });
    let status = fs::read_to_string(ours.unwrap().path().join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
}
