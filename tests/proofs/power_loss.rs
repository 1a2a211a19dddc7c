//! Cuts the power at any moment of the real binary's work. From a recording of all its writes, the test builds the
//! disks that may be left. Every accepted event must be on each of them (docs/power-loss.md).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sendoff::standin::Script;

use crate::disk_model::{Disk, Variant};
use crate::load::{self, Ack, KEPT, Load};
use crate::recording::{Op, Recorder, Step};
use crate::rig::daemon::Setup;
use crate::rig::lambda::{Lambda, throttle};
use crate::rig::{PATIENCE, eventually, http, lasting_port};
use crate::{seed, size, store};

/// A recording, the disk at its beginning, and when Lambda had taken each event.
struct Recorded {
    before: Disk,
    steps: Vec<Step>,
    taken: BTreeMap<String, u64>,
}

/// The results for the images of one recording.
#[derive(Debug, Default)]
struct Outcome {
    images: u64,
    failures: Vec<String>,
}

#[test]
fn no_power_cut_at_any_moment_loses_an_accepted_event() {
    let images = size("IMAGES", 300);
    let mut rng = fastrand::Rng::with_seed(seed());
    let recorded = record(&[Duration::from_millis(2_500), Duration::from_millis(1_500)]);
    let points = crash_points(&recorded.steps, images / Variant::ALL.len() as u64, &mut rng);
    let outcome = recorded.cut(&points, &Variant::ALL, &mut rng);
    let marks = recorded.steps.iter().filter(|step| matches!(step.op, Op::Mark(_))).count();
    eprintln!(
        "{} operations, {marks} acknowledgements, {} crash points, {} images, {} bad",
        recorded.steps.len(),
        points.len(),
        outcome.images,
        outcome.failures.len()
    );
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
}

#[test]
fn no_power_cut_while_the_store_is_made_leaves_one_that_does_not_open() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let recorded = record(&[Duration::from_millis(300)]);
    let first = recorded.steps.iter().position(|step| matches!(step.op, Op::Mark(_))).unwrap();
    let points: Vec<_> = (0..=first).collect();
    let outcome = recorded.cut(&points, &[Variant::Drop, Variant::Bare, Variant::Random, Variant::Hole], &mut rng);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
}

#[test]
fn a_second_power_cut_during_the_recovery_from_the_first_loses_nothing() {
    let firsts = size("SECOND_CUTS", 3);
    let mut rng = fastrand::Rng::with_seed(seed());
    let recorded = record(&[Duration::from_millis(2_000)]);
    for first in crash_points(&recorded.steps, firsts, &mut rng) {
        let scratch = store::scratch();
        let state = scratch.path().join("state");
        let (disk, acks) = recorded.at(first);
        let variant = Variant::ALL[rng.usize(..Variant::ALL.len())];
        disk.image(&state, variant, &mut rng);
        let again = record_on(scratch.path(), &state, &[Duration::from_millis(300)], 1 << 32);
        let points = crash_points(&again.steps, size("IMAGES", 300) / 40, &mut rng);
        let first_ms = recorded.steps[first].unix_ms;
        for point in points {
            let (disk, later) = again.at(point);
            let acks: Vec<_> = acks.iter().chain(&later).cloned().collect();
            let unix_ms = again.steps[point].unix_ms;
            for variant in Variant::ALL {
                let taken = |ack: &Ack| recorded.had_taken(ack, first_ms) || again.had_taken(ack, unix_ms);
                let checked = check(&disk, variant, &acks, &mut rng, taken);
                assert!(checked.is_ok(), "cut at {first}, then at {point}, {variant:?}: {checked:?}");
            }
        }
    }
}

#[test]
fn the_model_catches_an_engine_that_does_not_sync_its_data() {
    without(is_sync_of_the_journal);
}

#[test]
fn the_model_catches_an_engine_that_does_not_sync_its_directories() {
    without(
        |step| matches!(&step.op, Op::Sync { path, .. } if ["", "outbox", "outbox/journal"].iter().any(|dir| path == Path::new(dir))),
    );
}

#[test]
fn the_model_catches_an_answer_before_the_sync() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut recorded = record(&[Duration::from_millis(1_500)]);
    // Move each mark to just before the sync that it waited for.
    let mut sync = None;
    for at in 0..recorded.steps.len() {
        match &recorded.steps[at].op {
            Op::Sync { .. } if is_sync_of_the_journal(&recorded.steps[at]) => sync = Some(at),
            Op::Mark(_) => {
                if let Some(to) = sync {
                    recorded.steps[to..=at].rotate_right(1);
                    sync = Some(to + 1);
                }
            }
            Op::Create { .. }
            | Op::Mkdir { .. }
            | Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Sync { .. }
            | Op::Rename { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. } => {}
        }
    }
    let points: Vec<_> = recorded
        .steps
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| matches!((&pair[0].op, &pair[1].op), (Op::Mark(_), Op::Sync { .. })))
        .map(|(at, _)| at)
        .take(20)
        .collect();
    let outcome = recorded.cut(&points, &[Variant::Drop], &mut rng);
    assert!(!outcome.failures.is_empty(), "{} images and none bad", outcome.images);
}

fn is_sync_of_the_journal(step: &Step) -> bool {
    matches!(&step.op, Op::Sync { path, .. } if path.extension().is_some_and(|extension| extension == "segment"))
}

/// Checks that the recording without some of its syncs leaves bad images.
fn without(planted: impl Fn(&Step) -> bool) {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut recorded = record(&[Duration::from_millis(1_500)]);
    recorded.steps.retain(|step| !planted(step));
    let points = crash_points(&recorded.steps, 8, &mut rng);
    let outcome = recorded.cut(&points, &[Variant::Drop, Variant::Random], &mut rng);
    assert!(!outcome.failures.is_empty(), "{} images and none bad", outcome.images);
}

#[test]
fn each_commit_is_one_sync_of_the_journal_and_each_checkpoint_one_of_the_index() {
    let scratch = store::scratch();
    let state = scratch.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let recorder = Recorder::new(&state, scratch.path());
    let lambda = Lambda::start();
    let setup =
        Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("outbox.segment_bytes", "64KiB");
    let daemon = recorder.watch(setup).start();
    // An event for tomorrow, and a pause: sendoff attempts nothing, so only acceptances cause commits.
    let later = http::request(daemon.ingest, "POST", "/v1/events", &[], br#"{"function":"orders","delay":"24h"}"#);
    assert_eq!(later.status, 202, "{later:?}");
    let paused = http::request(daemon.admin, "POST", "/v1/functions/orders/pause", &[], b"");
    assert!(matches!(paused.status, 200 | 204), "{paused:?}");
    let count = |of: &dyn Fn(&Step) -> bool| recorder.read().iter().filter(|step| of(step)).count() as f64;
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "segment");
    let segments = || count(&|step| matches!(&step.op, Op::Create { path, .. } if is_segment(path)));
    // A new segment is synced once when it is created.
    let journal_syncs = || count(&is_sync_of_the_journal) - segments();
    let index_syncs =
        || count(&|step| matches!(&step.op, Op::Sync { path, .. } if path == Path::new("outbox/index/db")));
    let commits = || daemon.scrape().sum("sendoff_outbox_flush_seconds_count", &[]);
    let (syncs_before, commits_before, segments_before) = (journal_syncs(), commits(), segments());
    let index_before = index_syncs();
    for n in 1..80 {
        daemon.accept("orders", &[], format!("{{\"ballast\":\"{}{n}\"}}", "x".repeat(3_000)).as_bytes());
    }
    // More than twice the interval of sled's own flusher, which must be off (rule 5).
    std::thread::sleep(Duration::from_millis(1_200));
    let (made, rolled) = (commits() - commits_before, segments() - segments_before);
    assert!(made >= 79.0 && rolled >= 3.0, "{made} commits, {rolled} new segments");
    assert_eq!(journal_syncs() - syncs_before, made);
    assert_eq!(index_syncs() - index_before, rolled, "rule 1: one sync of the index for each segment that is full");
}

/// A kill at another moment would leave a recording that does not show what is on the disk.
#[test]
fn no_call_is_made_while_the_recording_is_held() {
    let scratch = store::scratch();
    let state = scratch.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let recorder = Recorder::new(&state, scratch.path());
    let lambda = Lambda::start();
    let daemon = recorder.watch(Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url())).start();
    daemon.accept("orders", &[], &load::payload(0));
    std::thread::scope(|scope| {
        let held = recorder.hold();
        let (told, answered) = std::sync::mpsc::channel();
        let daemon = &daemon;
        scope.spawn(move || {
            daemon.accept("orders", &[], &load::payload(1));
            told.send(()).unwrap();
        });
        answered.recv_timeout(Duration::from_millis(500)).expect_err("it cannot be written, and not be answered");
        drop(held);
        answered.recv_timeout(PATIENCE).expect("it is written now");
    });
    daemon.wait_until_empty();
}

fn record(lives: &[Duration]) -> Recorded {
    let scratch = store::scratch();
    let state = scratch.path().join("state");
    std::fs::create_dir(&state).unwrap();
    record_on(scratch.path(), &state, lives, 0)
}

/// Runs the daemon on `state` under load, with a kill between lives. Events are numbered from `first`.
fn record_on(scratch: &Path, state: &Path, lives: &[Duration], first: u64) -> Recorded {
    let before = Disk::of(state);
    let recorder = Recorder::new(state, scratch);
    let lambda = Lambda::start();
    lambda.default_script(Script::default().chance(0.2, throttle()));
    lambda.script(KEPT, Script::always(throttle()));
    let address = format!("127.0.0.1:{}", lasting_port());
    // Small segments, so that a short life has many checkpoints and reclaims segments.
    let setup = Setup::new(state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("listen.ingest", &address)
        .set("outbox.segment_bytes", "64KiB");
    let setup = recorder.watch(setup);
    let load = Load::start_from(first, address.parse().unwrap(), 4, Duration::from_millis(8), recorder.marker());
    for &life in lives {
        let accepted = load.acks().len();
        let daemon = setup.start();
        eventually("events are accepted", || (load.acks().len() > accepted + 20).then_some(()));
        std::thread::sleep(life);
        recorder.kill9(daemon);
    }
    load.stop();
    let mut taken = BTreeMap::new();
    for entry in lambda.taken_entries() {
        if let Some(id) = &entry.id {
            taken.entry(id.clone()).or_insert(entry.at.0);
        }
    }
    Recorded { before, steps: recorder.read(), taken }
}

/// Random moments, and as many just before and just after a sync.
fn crash_points(steps: &[Step], count: u64, rng: &mut fastrand::Rng) -> Vec<usize> {
    let syncs: Vec<_> =
        steps.iter().enumerate().filter(|(_, step)| matches!(step.op, Op::Sync { .. })).map(|(at, _)| at).collect();
    let mut points: Vec<_> = (0..count)
        .map(|n| match n % 3 {
            0 if !syncs.is_empty() => syncs[rng.usize(..syncs.len())],
            1 if !syncs.is_empty() => syncs[rng.usize(..syncs.len())].saturating_sub(1),
            _ => rng.usize(..steps.len()),
        })
        .collect();
    points.sort_unstable();
    points.dedup();
    points
}

impl Recorded {
    /// The disk just after a step, and the events acknowledged by then.
    fn at(&self, point: usize) -> (Disk, Vec<Ack>) {
        let (mut disk, mut acks) = (self.before.clone(), Vec::new());
        self.steps[..=point].iter().for_each(|step| advance(&mut disk, &mut acks, step));
        (disk, acks)
    }

    fn had_taken(&self, ack: &Ack, by_unix_ms: u64) -> bool {
        self.taken.get(&load::payload_id(ack.n)).is_some_and(|&at| at <= by_unix_ms)
    }

    /// Cuts the power after each of these steps (sorted), once for each variant.
    fn cut(&self, points: &[usize], variants: &[Variant], rng: &mut fastrand::Rng) -> Outcome {
        let (mut disk, mut acks, mut outcome) = (self.before.clone(), Vec::new(), Outcome::default());
        let mut next = 0;
        for &point in points {
            self.steps[next..=point].iter().for_each(|step| advance(&mut disk, &mut acks, step));
            next = point + 1;
            let step = &self.steps[point];
            for &variant in variants {
                outcome.images += 1;
                let taken = |ack: &Ack| self.had_taken(ack, step.unix_ms);
                if let Err(why) = check(&disk, variant, &acks, rng, taken) {
                    outcome.failures.push(format!("after step {point}, {variant:?}: {why}"));
                }
            }
        }
        outcome
    }
}

fn advance(disk: &mut Disk, acks: &mut Vec<Ack>, step: &Step) {
    disk.apply(step);
    if let Op::Mark(ack) = &step.op {
        acks.push(ack.clone());
    }
}

fn check(
    disk: &Disk,
    variant: Variant,
    acks: &[Ack],
    rng: &mut fastrand::Rng,
    taken: impl Fn(&Ack) -> bool,
) -> Result<store::Found, String> {
    let scratch = store::scratch();
    let image = scratch.path().join("image");
    disk.image(&image, variant, rng);
    store::check(&image, acks, taken)
}
