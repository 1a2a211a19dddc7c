//! Tests the image: linted, built from scratch and run, as far as this machine allows.

use std::path::Path;
use std::process::Command;

use crate::tools::{is_root, not_run, root, succeed, tool, validator};

#[test]
fn the_dockerfile_has_no_findings() {
    succeed(validator("hadolint").arg(root().join("deploy/container/Dockerfile")));
}

/// Links the binary again without shared libraries, from the crates that this test was built with. This saves minutes
/// compared to a separate build.
fn static_binary(to: &Path) -> bool {
    let deps = Path::new(env!("CARGO_BIN_EXE_sendoff")).with_file_name("deps");
    let mut libraries: Vec<_> = std::fs::read_dir(&deps)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("libsendoff-") && name.ends_with(".rlib")
        })
        .collect();
    libraries.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
    let Some(library) = libraries.last() else { return false };
    let mut link = Command::new("rustc");
    link.args([
        "--edition",
        "2024",
        "--crate-name",
        "sendoff",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "strip=symbols",
    ])
    .arg(root().join("src/main.rs"))
    .arg("-L")
    .arg(format!("dependency={}", deps.display()))
    .arg("--extern")
    .arg(format!("sendoff={}", library.display()))
    .arg("-o")
    .arg(to);
    succeed(&mut link);
    true
}

#[test]
fn the_image_is_built_from_scratch_and_runs_as_nobody() {
    let scratch = tempfile::tempdir().unwrap();
    let (binary, context) = (scratch.path().join("static"), scratch.path().join("context"));
    if !static_binary(&binary) {
        return not_run("the library is not beside the binary");
    }
    let build = root().join("deploy/container/build.sh");
    let dynamic =
        Command::new(&build).arg(&context).env("SENDOFF_BINARY", env!("CARGO_BIN_EXE_sendoff")).output().unwrap();
    assert!(!dynamic.status.success(), "a binary that needs a C library must be refused");
    succeed(Command::new(&build).arg(&context).env("SENDOFF_BINARY", &binary));

    let Some(buildah) = tool("buildah", "buildah") else { return };
    if !is_root() {
        return crate::rig::tools::not_allowed("chroot isolation needs root");
    }
    let buildah = |args: &[&str]| {
        let mut command = Command::new(&buildah);
        command.env("STORAGE_DRIVER", "vfs").env("BUILDAH_ISOLATION", "chroot");
        command.arg("--root").arg(scratch.path().join("root")).arg("--runroot").arg(scratch.path().join("run"));
        command.args(args);
        succeed(&mut command)
    };
    buildah(&["bud", "--format", "docker", "-t", "localhost/sendoff:test", context.to_str().unwrap()]);
    let config = buildah(&["inspect", "--type", "image", "localhost/sendoff:test"]);
    for part in ["65532:65532", "healthcheck", "/var/lib/sendoff", "SIGTERM"] {
        assert!(config.contains(part), "{part} is not in the image's configuration");
    }
    let container = buildah(&["from", "localhost/sendoff:test"]).lines().last().unwrap().to_owned();
    // The image has no /tmp, where the demo would put its scratch directory.
    let options = ["run", "--isolation", "chroot", "--env", "TMPDIR=/var/lib/sendoff", &container, "--"];
    let run = |words: &[&str]| buildah(&[&options[..], words].concat());
    assert!(run(&["/sendoff", "--version"]).starts_with("sendoff "));
    assert!(run(&["/sendoff", "check-config"]).contains("no problems"));
    // Runs the demo as uid 65532: a store, a listener, a SIGKILL half way. It fails if an event is lost.
    run(&["/sendoff", "demo", "--events", "200"]);
    buildah(&["rm", &container]);
}
