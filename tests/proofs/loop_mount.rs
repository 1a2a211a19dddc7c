//! Tests a power cut on a real ext4: the raw image of the file system at the moment of a 202, mounted elsewhere.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use sendoff::event::EventId;

use crate::load::{self, Ack};
use crate::rig::daemon::Setup;
use crate::rig::eventually;
use crate::rig::lambda::{Lambda, throttle};
use crate::rig::tools::{not_allowed, tool};
use crate::{size, store};

const IMAGE_BYTES: u64 = 96 << 20;

#[test]
fn what_was_accepted_is_on_a_copy_of_the_raw_disk_made_the_instant_the_202_came() {
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("disk");
    File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
    let Some(mkfs) = tool("mkfs.ext4", "e2fsprogs") else { return };
    let made = Command::new(mkfs).args(["-q", "-F"]).arg(&image).output();
    assert!(made.is_ok_and(|output| output.status.success()), "make a file system");
    let Some(mounted) = Mounted::at(&image, scratch.path().join("mounted")) else { return };
    let lambda = Lambda::start();
    lambda.default_script(sendoff::standin::Script::always(throttle()));
    let state = mounted.at.join("state");
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("outbox.disk_reserve", "1MiB")
        .start();
    let mut acks = Vec::new();
    for cut in 0..size("CUTS", 4) {
        for _ in 0..=cut * 5 {
            let n = acks.len() as u64;
            let id = daemon.accept(load::function(n), &[("Idempotency-Key", &load::key(n))], &load::payload(n));
            acks.push(Ack { n, id: id.parse::<EventId>().unwrap() });
        }
        let copy = scratch.path().join("copy");
        daemon.signal(Signal::STOP);
        copy_at_rest(&image, &copy);
        daemon.signal(Signal::CONT);
        let after = Mounted::at(&copy, scratch.path().join("after")).expect("the copy mounts: its journal is whole");
        let checked = store::check(&after.at.join("state"), &acks, |_| false);
        assert!(checked.is_ok(), "{} events, cut {cut}: {checked:?}", acks.len());
    }
    daemon.kill9();
}

/// Copies a disk while nothing is written to it. The file system's own thread may write at any time, and a power cut
/// never leaves a mixture of two moments.
fn copy_at_rest(image: &Path, copy: &Path) {
    let written = || fs::metadata(image).unwrap().modified().unwrap();
    eventually("a copy of one moment", || {
        let before = written();
        fs::copy(image, copy).unwrap();
        (written() == before).then_some(())
    });
}

/// A loop mount of a disk image. Dropping it unmounts it.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// `None`, after a message, if mounting is not allowed.
    fn at(image: &Path, at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(&at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { at }),
            failed => {
                not_allowed(&format!("root and a loop device are missing: {failed:?}"));
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.at).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.at.display());
        }
    }
}
