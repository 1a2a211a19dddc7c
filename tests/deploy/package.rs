//! Tests the Debian package: made by cargo-deb, and installed, upgraded, removed and purged in a booted systemd.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools::{boot, is_root, root, said, succeed, tool};

/// cargo-deb in .tools, where CI installs it, or on the path.
fn cargo_deb() -> Option<PathBuf> {
    let own = root().join(".tools/bin/cargo-deb");
    if own.is_file() { Some(own) } else { tool("cargo-deb", "none: cargo install cargo-deb --locked") }
}

/// Makes the package of this build's binary, with this revision.
fn build(cargo_deb: &Path, binary: &Path, to: &Path, revision: &str) {
    let mut build = Command::new(root().join("deploy/debian/build.sh"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(cargo_deb.parent().unwrap().to_owned()).chain(std::env::split_paths(&path));
    build.env("PATH", std::env::join_paths(dirs).unwrap()).env("SENDOFF_BINARY", binary);
    build.env_remove("CARGO_TARGET_DIR");
    succeed(build.arg(to).args(["--fast", "--deb-revision", revision]));
}

#[test]
fn the_package_installs_starts_upgrades_and_goes_without_a_trace() {
    let Some(cargo_deb) = cargo_deb() else { return };
    let scratch = tempfile::Builder::new().prefix("sendoff-").tempdir().unwrap();
    let (first, second) = (scratch.path().join("first.deb"), scratch.path().join("second.deb"));
    // Without debug information: a third of the bytes to pack, twice.
    let binary = scratch.path().join("sendoff");
    succeed(Command::new("strip").arg("-o").arg(&binary).arg(env!("CARGO_BIN_EXE_sendoff")));
    build(&cargo_deb, &binary, &first, "1");
    build(&cargo_deb, &binary, &second, "2");

    let files = succeed(Command::new("dpkg-deb").arg("--contents").arg(&first));
    for file in [
        "./usr/bin/sendoff",
        "./usr/lib/systemd/system/sendoff.service",
        "./usr/lib/systemd/system/sendoff.socket",
        "./etc/sendoff/sendoff.toml",
        "./usr/share/man/man1/sendoff-status.1.gz",
        "./usr/share/bash-completion/completions/sendoff",
        "./usr/share/doc/sendoff/iam/deliver.json",
        "./usr/share/doc/sendoff/docs/operations.md",
    ] {
        assert!(files.lines().any(|line| line.ends_with(file)), "{file} is not in\n{files}");
    }
    let control = succeed(Command::new("dpkg-deb").arg("--info").arg(&first));
    assert!(control.contains("Version: 0.1.0-1") && control.contains("ca-certificates"), "{control}");

    let Some(nspawn) = tool("systemd-nspawn", "systemd-container") else { return };
    if !is_root() {
        return crate::rig::tools::not_allowed("booting a container needs root");
    }
    let Some(tree) = Overlay::mount(scratch.path()) else {
        return crate::rig::tools::not_allowed("no overlay file system");
    };
    let out = scratch.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let mut command = boot(&nspawn, "package", 120);
    command.arg("-D").arg(&tree.merged);
    command.arg(format!("--bind={}:/out", out.display()));
    for (file, at) in [(&first, "/opt/first.deb"), (&second, "/opt/second.deb")] {
        command.arg(format!("--bind-ro={}:{at}", file.display()));
    }
    let script = root().join("tests/deploy/package_in_container.sh");
    command.arg(format!("--bind-ro={}:/opt/in_container.sh", script.display()));
    let check = scratch.path().join("check.service");
    std::fs::write(&check, crate::systemd::CHECK).unwrap();
    command.arg(format!("--bind-ro={}:/etc/systemd/system/check.service", check.display()));
    let booted = command.arg("systemd.unit=check.service").stdin(std::process::Stdio::null()).output().unwrap();

    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap_or_default();
    let text = read("seen");
    let seen: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let all = format!("{text}\n{}\n{}", read("log"), said(&booted));
    for (name, expected) in [
        ("installed", "active enabled"),
        ("accepted", "yes"),
        ("upgraded", "active 0.1.0-2 another-process 1 event"),
        ("own-setting", "kept"),
        ("removed", "no-unit no-process"),
        ("outbox-after-removal", "there, said"),
        ("installed-again", "active 1 event"),
        ("purged", "no-outbox no-configuration, said"),
        ("left-over", "nothing"),
        ("done", "yes"),
    ] {
        assert_eq!(seen.get(name).copied().unwrap_or_default(), expected, "{name} in\n{all}");
    }
}

/// This machine's own root as a writable tree that is discarded.
struct Overlay {
    merged: PathBuf,
}

impl Overlay {
    /// `None` if the kernel has no such file system, or it cannot be mounted over this root.
    fn mount(scratch: &Path) -> Option<Self> {
        let layers = scratch.join("layers");
        let merged = scratch.join("merged");
        std::fs::create_dir(&layers).unwrap();
        std::fs::create_dir(&merged).unwrap();
        // An overlay cannot be on an overlay, which /tmp may be.
        if !Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&layers).status().unwrap().success() {
            return None;
        }
        let mounted = Self { merged };
        for dir in ["upper", "work"] {
            std::fs::create_dir(layers.join(dir)).unwrap();
        }
        let options =
            format!("lowerdir=/,upperdir={},workdir={}", layers.join("upper").display(), layers.join("work").display());
        let done =
            Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&mounted.merged).status();
        done.unwrap().success().then_some(mounted)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let layers = self.merged.with_file_name("layers");
        for dir in [&self.merged, &layers] {
            // Fails if it was not mounted, which does not matter.
            drop(Command::new("umount").arg("--lazy").arg(dir).output());
        }
    }
}
