//! A disk that refuses writes and syncs, and a store that is not what was written.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;

use crate::it::rig::daemon::{Daemon, Setup};
use crate::it::rig::lambda::{Lambda, throttle};
use crate::it::rig::{eventually, http, lasting_port};
use crate::load::{Ack, Load};
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
            .env("LD_PRELOAD", recording::library().to_str().unwrap())
            .env("RECORD_DIR", state.to_str().unwrap())
            .env("FAULT_FILE", scratch.path().join("fault").to_str().unwrap());
        Self { scratch, setup, lambda, address }
    }

    fn state(&self) -> std::path::PathBuf {
        self.scratch.path().join("state")
    }

    /// From now on, once `skip` more such calls have succeeded, all of this class (see recorder.c) fail.
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

    /// A healthy start on the state, then nothing but what was accepted.
    fn assert_recovers(&self, acks: &[Ack]) {
        let daemon = self.setup.start();
        assert_eq!(http::get(daemon.admin, "/readyz").status, 200);
        daemon.kill9();
        let checked = store::check(&self.state(), acks, |_| false);
        assert!(checked.is_ok(), "{checked:?}");
    }
}

/// Fails the disk under load and sees the daemon end as it promises; gives what it had accepted.
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
    for round in 0..size("DAMAGES", 9) {
        fs::remove_dir_all(bench.state()).unwrap();
        store::copy(&pristine, &bench.state());
        let damage = damage(&bench.state().join("sled"), round, &mut rng);
        let (daemon, lives) = until_it_lasts(&bench);
        let scrape = daemon.scrape();
        let kept = scrape.sum("sendoff_outbox_damaged_stores", &[]);
        let unreadable = scrape.sum("sendoff_outbox_unreadable_events", &[]);
        let stored = daemon.stored();
        // What is missing is either named or the damaged store is kept for it. One gap is known (docs/power-loss.md): damage
        // to the last seconds of `db` reads as a log that ends there, younger than the witness.
        let may_be_the_end = damage.contains("of db");
        assert!(
            may_be_the_end || kept > 0.0 || stored >= acks.len() as f64,
            "{damage}: {stored} of {} and nobody says so",
            acks.len()
        );
        eprintln!("{damage}: {lives} lives, {stored} of {} events, {unreadable} unreadable, {kept} kept", acks.len());
        daemon.kill9();
        fsck_says_sound(&bench.state());
    }
    drop(bench.lambda);
}

/// Starts until a life lasts that has read all its events; a store may take one poisoned life to be found out.
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

/// Damages a store in one of several ways; says how.
fn damage(store: &Path, round: u64, rng: &mut fastrand::Rng) -> String {
    let db = store.join("db");
    let length = fs::metadata(&db).unwrap().len();
    let snapshot = || {
        let mut entries = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."))
    };
    let flip = |path: &Path, rng: &mut fastrand::Rng, times: usize| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        for _ in 0..times {
            let (at, mut byte) = (rng.u64(..length), [0]);
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << rng.u8(..8))], at).unwrap();
        }
    };
    match round % 9 {
        0 => {
            File::options().write(true).open(&db).unwrap().set_len(length / 2).unwrap();
            "db cut in half".into()
        }
        1 => {
            fs::write(store.join("conf"), b"no configuration").unwrap();
            "conf overwritten".into()
        }
        2 => {
            fs::remove_file(&db).unwrap();
            "db removed".into()
        }
        3 => match snapshot() {
            Some(snapshot) => {
                flip(&snapshot, rng, 3);
                "bits of the snapshot flipped".into()
            }
            None => "no snapshot to damage".into(),
        },
        4 => {
            flip(&db, rng, 1);
            "a bit of db flipped".into()
        }
        5 => {
            flip(&db, rng, 40);
            "40 bits of db flipped".into()
        }
        6 => {
            let file = File::options().write(true).open(&db).unwrap();
            let at = rng.u64(..length.saturating_sub(65_536).max(1));
            file.write_all_at(&[0; 65_536], at).unwrap();
            "64 KiB of db zeroed".into()
        }
        7 => {
            File::options().write(true).open(&db).unwrap().set_len(0).unwrap();
            "db emptied".into()
        }
        _ => {
            fs::write(store.join("conf"), b"").unwrap();
            "conf emptied".into()
        }
    }
}

fn fsck_says_sound(state: &Path) {
    let mut fsck = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    let output = fsck.args(["fsck", "--json", "--state-dir", state.to_str().unwrap()]).output().unwrap();
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
    fs::write(bench.state().join("sled/conf"), b"no configuration").unwrap();
    let fsck = |more: &[&str]| {
        let mut fsck = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        fsck.args(["fsck", "--state-dir", bench.state().to_str().unwrap()]).args(more).output().unwrap()
    };
    let found = fsck(&[]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let repaired = fsck(&["--repair"]);
    assert!(repaired.status.success(), "{repaired:?}");
    assert!(String::from_utf8_lossy(&repaired.stdout).contains("sled.damaged-"), "{repaired:?}");
    fsck_says_sound(&bench.state());
    let checked = store::check(&bench.state(), &acks, |_| false);
    assert!(checked.is_ok(), "a damaged conf costs nothing: {checked:?}");
}
