//! Tests a disk that fills up.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::daemon::{Setup, scratch};
use crate::rig::eventually;
use crate::rig::lambda::Lambda;

const MIB: usize = 1 << 20;

#[test]
fn a_full_disk_refuses_what_is_new_keeps_what_was_accepted_and_accepts_again_once_there_is_room() {
    let (_scratch, state) = scratch();
    let Some(_disk) = Tmpfs::mount(&state, 80 * MIB) else { return };
    let filler = state.join("filler");
    std::fs::write(&filler, vec![0; 32 * MIB]).unwrap();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("outbox.disk_reserve", "16MiB")
        .start();

    let mut accepted = Vec::new();
    let refusal = eventually("the disk is full", || {
        let id = format!("event-{}", accepted.len());
        let response = daemon.invoke("orders", &[], &large_payload(&id));
        if response.status == 202 {
            accepted.push(id);
            return None;
        }
        Some(response)
    });
    assert!(!accepted.is_empty());
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert_eq!(refusal.header("x-amzn-errortype"), Some("ServiceException"), "{refusal:?}");
    assert!(refusal.header("retry-after").is_some() && refusal.header("x-amz-retry-after").is_some(), "{refusal:?}");
    assert!(refusal.text().contains("disk"), "it says what is full: {}", refusal.text());
    daemon.wait_for_log(|fields| {
        ["WARN", "ERROR"].iter().any(|level| fields["level"] == *level) && fields.to_string().contains("disk")
    });

    lambda.take_all();
    lambda.wait_for(&accepted);
    assert_eq!(lambda.taken().len(), accepted.len(), "what was refused is not delivered");

    std::fs::remove_file(&filler).unwrap();
    let late = eventually("events are accepted again", || {
        (daemon.invoke("orders", &[], &large_payload("late")).status == 202).then(|| "late".to_owned())
    });
    lambda.wait_for(&[late]);
}

/// 128 KiB.
fn large_payload(id: &str) -> Vec<u8> {
    serde_json::json!({ "id": id, "ballast": "x".repeat(MIB / 8) }).to_string().into_bytes()
}

/// A file system in memory. Dropping it unmounts it.
struct Tmpfs {
    at: PathBuf,
}

impl Tmpfs {
    /// `None`, after a message, if mounting is not allowed.
    fn mount(at: &Path, bytes: usize) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(at);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self { at: at.to_owned() }),
            failed => {
                crate::rig::tools::not_allowed(&format!("the right to mount a tmpfs is missing: {failed:?}"));
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.at).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.at.display());
        }
    }
}
