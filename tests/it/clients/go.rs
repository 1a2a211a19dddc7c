//! The AWS SDK for Go v2, from Debian's package.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::*;

/// Where the package has its sources.
const SOURCES: &str = "/usr/share/gocode";

/// The program of tests/go, compiled. `None`, after a message, if Go or the SDK is missing.
pub fn program() -> Option<PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(compile).clone()
}

fn compile() -> Option<PathBuf> {
    let go = tool("go", "golang-go")?;
    if !Path::new(SOURCES).join("src/github.com/aws/aws-sdk-go-v2/service/lambda").is_dir() {
        let package = "golang-github-aws-aws-sdk-go-v2-dev";
        crate::rig::tools::not_run(&format!("the AWS SDK for Go is missing (Debian package {package})"));
        return None;
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (source(), target.join("go-invoke"));
    // One test compiles it, and the others wait.
    let lock = std::fs::File::create(target.join("go-invoke.lock")).unwrap();
    lock.lock().unwrap();
    let time = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    if time(&program) > time(&source.join("invoke.go")) {
        return Some(program);
    }
    let mut build = Command::new(go);
    build.args(["build", "-o"]).arg(&program).arg("invoke.go");
    build.current_dir(source);
    build.env("GO111MODULE", "off").env("GOPATH", SOURCES).env("GOFLAGS", "").env("GOCACHE", target.join("go-cache"));
    python::run(&mut build);
    Some(program)
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go")
}

/// One call. The program prints the status.
pub fn invoke(program: &Path, url: &str, function: &str, kind: &str, payload: &str) -> Command {
    let mut command = Command::new(program);
    command.args([url, function, kind, payload]);
    python::aws_environment(&mut command);
    command
}

/// The status that it printed.
pub fn status(command: &mut Command) -> u16 {
    let output = python::run(command);
    let said = String::from_utf8(output.stdout).unwrap();
    said.trim().parse().unwrap_or_else(|why| panic!("{why}: {said} {}", String::from_utf8_lossy(&output.stderr)))
}
