//! Tests a disk that refuses writes and syncs, and a store whose bytes were changed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;

use crate::load::{Ack, Load};
use crate::rig::daemon::{Daemon, Setup};
use crate::rig::lambda::{Lambda, throttle};
use crate::rig::{eventually, http, lasting_port};
use crate::{recording, seed, size, store};

/// A daemon whose disk can be made to fail.
struct Bench {
    scratch: tempfile::TempDir,
    setup: Setup,
    lambda: Lambda,
    address: String,
}

impl Bench {
    fn new() -> Self {
        let scratch = store::scratch();
        let lambda = Lambda::start();
        lambda.default_script(sendoff::standin::Script::always(throttle()));
        let address = format!("127.0.0.1:{}", lasting_port());
        let state = scratch.path().join("state");
        let setup = Setup::new(&state)
            .set("lambda.endpoint_url", &lambda.endpoint_url())
            .set("listen.ingest", &address)
            .set("outbox.segment_bytes", "64KiB")
            .env("LD_PRELOAD", recording::library().to_str().unwrap())
            .env("RECORD_DIR", state.to_str().unwrap())
            .env("FAULT_FILE", scratch.path().join("fault").to_str().unwrap());
        Self { scratch, setup, lambda, address }
    }

    fn state(&self) -> std::path::PathBuf {
        self.scratch.path().join("state")
    }

    /// From now on all calls of this class (see recorder.c) fail, after `skip` more have succeeded.
    fn fail(&self, class: char, error: Errno, skip: u64) {
        let (draft, fault) = (self.scratch.path().join("draft"), self.scratch.path().join("fault"));
        fs::write(&draft, format!("{class} {} {skip}", error.raw_os_error())).unwrap();
        fs::rename(draft, fault).unwrap();
    }

    fn mend(&self) {
        fs::remove_file(self.scratch.path().join("fault")).unwrap();
    }

    fn load(&self) -> Load {
        Load::start(self.address.parse().unwrap(), 4, Duration::from_millis(2), |_| {})
    }

    /// Checks that the daemon starts and is ready on a healthy disk, and that every accepted event is there.
    fn assert_recovers(&self, acks: &[Ack]) {
        let daemon = self.setup.start();
        assert_eq!(http::get(daemon.admin, "/readyz").status, 200);
        daemon.kill9();
        let checked = store::check(&self.state(), acks, |_| false);
        assert!(checked.is_ok(), "{checked:?}");
    }
}

/// Fails the disk under load and checks that the daemon ends as promised. Returns what it had accepted.
fn poisoned_by(bench: &Bench, class: char, error: Errno, skip: u64) -> Vec<Ack> {
    let daemon = bench.setup.start();
    let load = bench.load();
    eventually("events are accepted", || (load.acks().len() > 30).then_some(()));
    bench.fail(class, error, skip);
    daemon.wait_for_log(|fields| {
        fields["level"] == "ERROR" && fields["message"].as_str().is_some_and(|said| said.contains("poisoned"))
    });
    let status = daemon.wait();
    assert_eq!(status.code(), Some(70), "{status:?}");
    let accepted = load.acks();
    let checked = store::check(&copy_of(bench), &accepted, |_| false);
    assert!(checked.is_ok(), "{class} {error:?} {skip}: {checked:?}");
    bench.mend();
    load.stop()
}

fn copy_of(bench: &Bench) -> std::path::PathBuf {
    let copy = bench.scratch.path().join(format!("copy-{}", fastrand::u64(..)));
    store::copy(&bench.state(), &copy);
    copy
}

#[test]
fn a_disk_that_is_full_at_any_write_poisons_the_store_and_a_restart_recovers() {
    for skip in (0..size("FAULTS", 6)).map(|n| n * n) {
        let bench = Bench::new();
        let acks = poisoned_by(&bench, 'w', Errno::NOSPC, skip);
        bench.assert_recovers(&acks);
    }
}

#[test]
fn a_failed_sync_poisons_the_store_and_is_not_tried_again() {
    for skip in 0..size("FAULTS", 6) / 2 {
        let bench = Bench::new();
        let acks = poisoned_by(&bench, 's', Errno::IO, skip * 3);
        bench.assert_recovers(&acks);
    }
}

#[test]
fn a_file_system_that_turned_read_only_poisons_the_store() {
    let bench = Bench::new();
    let acks = poisoned_by(&bench, 'w', Errno::ROFS, 2);
    bench.assert_recovers(&acks);
}

#[test]
fn a_disk_that_fails_during_the_start_ends_it_with_words_and_the_next_start_recovers() {
    let bench = Bench::new();
    let daemon = bench.setup.start();
    let load = bench.load();
    eventually("events are accepted", || (load.acks().len() > 30).then_some(()));
    daemon.kill9();
    let acks = load.stop();
    for (class, error, skip) in
        [('w', Errno::NOSPC, 0), ('w', Errno::NOSPC, 2), ('s', Errno::IO, 0), ('s', Errno::IO, 3)]
    {
        bench.fail(class, error, skip);
        let (code, said) = bench.setup.fail_to_start();
        assert!(matches!(code, Some(69 | 70)), "{class} {skip}: {code:?}: {said}");
        assert!(said.contains("sendoff: "), "it says why: {said}");
        bench.mend();
    }
    assert!(
        !fs::read_dir(bench.state()).unwrap().any(|entry| entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("damaged"))
    );
    bench.assert_recovers(&acks);
}

#[test]
fn a_damaged_store_is_salvaged_in_daylight_and_the_daemon_goes_on() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let bench = Bench::new();
    let daemon = bench.setup.start();
    let load = bench.load();
    eventually("events are accepted", || (load.acks().len() > 400).then_some(()));
    daemon.terminate();
    assert!(daemon.wait().success());
    let acks = load.stop();
    let pristine = bench.scratch.path().join("pristine");
    store::copy(&bench.state(), &pristine);
    for round in 0..size("DAMAGES", DAMAGES.len() as u64) {
        fs::remove_dir_all(bench.state()).unwrap();
        store::copy(&pristine, &bench.state());
        let damage = DAMAGES[(round % DAMAGES.len() as u64) as usize];
        damage.done_to(&bench.state().join("outbox"), &mut rng);
        let (daemon, lives) = until_it_lasts(&bench);
        let scrape = daemon.scrape();
        let kept = scrape.sum("sendoff_outbox_damaged_stores", &[]);
        let unreadable = scrape.sum("sendoff_outbox_unreadable_events", &[]);
        let stored = daemon.stored();
        eprintln!("{damage:?}: {lives} lives, {stored} of {} events, {unreadable} unreadable, {kept} kept", acks.len());
        let all = stored >= acks.len() as f64;
        match damage.of() {
            Of::Index => assert!(all, "{damage:?}: the index is made again from the journal, whole"),
            Of::Journal => assert!(kept > 0.0, "{damage:?}: nobody says so"),
            Of::JournalPerhaps => {}
        }
        daemon.kill9();
        if matches!(damage.of(), Of::JournalPerhaps) {
            // The damage may be in bytes that nothing needs any more, or in an event that was not read yet.
            let sound = fsck(&bench.state(), &[]).status.success();
            assert!(fsck(&bench.state(), &["--repair"]).status.success(), "{damage:?}");
            let set_aside = fs::read_dir(bench.state()).unwrap().flatten();
            let told = set_aside.filter(|entry| entry.file_name().to_string_lossy().contains(".damaged-")).count() > 0;
            assert!(sound && all || told, "{damage:?}: nobody says so");
        }
        fsck_says_sound(&bench.state());
    }
    drop(bench.lambda);
}

/// Starts the daemon until a life has read all events and stays up. One poisoned life may be needed to find the damage.
fn until_it_lasts(bench: &Bench) -> (Daemon, u32) {
    for life in 1..=3 {
        let daemon = bench.setup.start();
        let dispatched = eventually("it has tried its events, or ended", || {
            if !http::listens(daemon.admin) {
                return Some(false);
            }
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                daemon.scrape().sum("sendoff_dispatch_attempts_total", &[]) >= 4.0 && daemon.stored() > 0.0
                    || daemon.stored() == 0.0
            }));
            answer.ok()?.then_some(true)
        });
        if dispatched {
            return (daemon, life);
        }
    }
    panic!("it ended three times over the same damage");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    IndexCutInHalf,
    IndexConfOverwritten,
    IndexConfEmptied,
    IndexDataRemoved,
    IndexSnapshotFlipped,
    IndexBitFlipped,
    IndexBitsFlipped,
    IndexZeroed,
    IndexEmptied,
    IndexRemoved,
    JournalBitFlipped,
    JournalZeroed,
    JournalCutAtTheEnd,
    JournalZeroedAtTheEnd,
    JournalSegmentRemoved,
    JournalHeadOverwritten,
}

/// What is damaged.
enum Of {
    Index,
    Journal,
    JournalPerhaps,
}

const DAMAGES: [Damage; 16] = [
    Damage::IndexCutInHalf,
    Damage::IndexConfOverwritten,
    Damage::IndexConfEmptied,
    Damage::IndexDataRemoved,
    Damage::IndexSnapshotFlipped,
    Damage::IndexBitFlipped,
    Damage::IndexBitsFlipped,
    Damage::IndexZeroed,
    Damage::IndexEmptied,
    Damage::IndexRemoved,
    Damage::JournalBitFlipped,
    Damage::JournalZeroed,
    Damage::JournalCutAtTheEnd,
    Damage::JournalZeroedAtTheEnd,
    Damage::JournalSegmentRemoved,
    Damage::JournalHeadOverwritten,
];

impl Damage {
    fn of(self) -> Of {
        match self {
            Self::IndexCutInHalf
            | Self::IndexConfOverwritten
            | Self::IndexConfEmptied
            | Self::IndexDataRemoved
            | Self::IndexSnapshotFlipped
            | Self::IndexBitFlipped
            | Self::IndexBitsFlipped
            | Self::IndexZeroed
            | Self::IndexEmptied
            | Self::IndexRemoved => Of::Index,
            Self::JournalBitFlipped | Self::JournalZeroed => Of::JournalPerhaps,
            Self::JournalCutAtTheEnd
            | Self::JournalZeroedAtTheEnd
            | Self::JournalSegmentRemoved
            | Self::JournalHeadOverwritten => Of::Journal,
        }
    }

    fn done_to(self, outbox: &Path, rng: &mut fastrand::Rng) {
        let index = outbox.join("index");
        let (db, conf) = (index.join("db"), index.join("conf"));
        let mut segments: Vec<_> =
            fs::read_dir(outbox.join("journal")).unwrap().map(|entry| entry.unwrap().path()).collect();
        segments.sort();
        // The newest segment with some content.
        let newest = segments.iter().rev().find(|path| length(path) > 1_000).unwrap();
        let some = &segments[rng.usize(..segments.len() - 1)];
        match self {
            Self::IndexCutInHalf => cut(&db, length(&db) / 2),
            Self::IndexConfOverwritten => fs::write(conf, b"no configuration").unwrap(),
            Self::IndexConfEmptied => fs::write(conf, b"").unwrap(),
            Self::IndexDataRemoved => fs::remove_file(db).unwrap(),
            Self::IndexSnapshotFlipped => {
                let entries = fs::read_dir(&index).unwrap().map(|entry| entry.unwrap().path());
                let snapshots = entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."));
                snapshots.for_each(|snapshot| flip(&snapshot, rng, 3));
            }
            Self::IndexBitFlipped => flip(&db, rng, 1),
            Self::IndexBitsFlipped => flip(&db, rng, 40),
            Self::IndexZeroed => zero(&db, rng.u64(..length(&db).saturating_sub(65_536).max(1)), 65_536),
            Self::IndexEmptied => cut(&db, 0),
            Self::IndexRemoved => fs::remove_dir_all(index).unwrap(),
            Self::JournalBitFlipped => flip(some, rng, 1),
            Self::JournalZeroed => zero(some, rng.u64(..length(some).saturating_sub(4_096).max(1)), 4_096),
            Self::JournalCutAtTheEnd => cut(newest, length(newest) - 1),
            Self::JournalZeroedAtTheEnd => zero(newest, length(newest) - 600, 600),
            Self::JournalSegmentRemoved => fs::remove_file(&segments[segments.len() / 2]).unwrap(),
            Self::JournalHeadOverwritten => zero(some, 0, 28),
        }
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

fn cut(path: &Path, length: u64) {
    File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn zero(path: &Path, at: u64, bytes: usize) {
    File::options().write(true).open(path).unwrap().write_all_at(&vec![0; bytes], at).unwrap();
}

fn flip(path: &Path, rng: &mut fastrand::Rng, times: usize) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    for _ in 0..times {
        let (at, mut byte) = (rng.u64(..length(path)), [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << rng.u8(..8))], at).unwrap();
    }
}

fn fsck(state: &Path, more: &[&str]) -> std::process::Output {
    let mut fsck = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    fsck.args(["fsck", "--state-dir", state.to_str().unwrap()]).args(more).output().unwrap()
}

fn fsck_says_sound(state: &Path) {
    let output = fsck(state, &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(output.status.success() && report["sound"] == true, "{report} {output:?}");
}

#[test]
fn fsck_repairs_what_the_daemon_has_not_seen_yet() {
    let bench = Bench::new();
    let daemon = bench.setup.start();
    let load = bench.load();
    eventually("events are accepted", || (load.acks().len() > 30).then_some(()));
    daemon.kill9();
    let acks = load.stop();
    fsck_says_sound(&bench.state());
    fs::write(bench.state().join("outbox/index/conf"), b"no configuration").unwrap();
    let found = fsck(&bench.state(), &[]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let repaired = fsck(&bench.state(), &["--repair"]);
    assert!(repaired.status.success(), "{repaired:?}");
    assert!(String::from_utf8_lossy(&repaired.stdout).contains("index.damaged-"), "{repaired:?}");
    fsck_says_sound(&bench.state());
    let checked = store::check(&bench.state(), &acks, |_| false);
    assert!(checked.is_ok(), "a damaged conf costs nothing: {checked:?}");
}
