//! Finds the tools, and decides what happens if one is missing.

use std::path::Path;
use std::process::{Command, Output};

pub use crate::rig::tools::{not_run, tool};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn sendoff() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    clean(&mut command);
    command
}

/// Removes the caller's own variables. sendoff refuses unknown variables with its prefix.
pub fn clean(command: &mut Command) {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
    crate::rig::python::aws_environment(command);
}

/// A program in .venv-deploy.
///
/// # Panics
/// If it is missing: `make test` installs it.
pub fn validator(name: &str) -> Command {
    let path = root().join(".venv-deploy/bin").join(name);
    assert!(path.is_file(), "{} is not there: run `make test`, which installs it", path.display());
    Command::new(path)
}

/// Boots a systemd in a container without a network, and ends it after this many seconds. The caller adds its tree and
/// its bind mounts.
pub fn boot(nspawn: &Path, name: &str, seconds: u32) -> Command {
    let mut boot = Command::new("timeout");
    boot.args(["-s", "TERM", "-k", "5", &seconds.to_string()]).arg(nspawn);
    boot.args(["--boot", "--private-network", "--register=no", "--keep-unit", "--console=pipe", "--link-journal=no"]);
    boot.args(["--system-call-filter=pidfd_getfd", &format!("--machine=sendoff-{name}-{}", std::process::id())]);
    boot
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Both streams as text.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command. Fails the test unless it succeeds. Returns all output.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|why| panic!("cannot start {command:?}: {why}"));
    let text = said(&output);
    assert!(output.status.success(), "{command:?} failed with {}:\n{text}", output.status);
    text
}
