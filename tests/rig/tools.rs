//! Tools and rights that a test may lack. The test then says so outside of its captured output: libtest hides what a
//! passing test prints.

use std::io::Write;
use std::path::PathBuf;

/// The path of a program. `None`, after a message, if it is missing and not required.
pub fn tool(name: &str, package: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let places = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&paths).chain(places).map(|dir| dir.join(name)).find(|path| path.is_file());
    if found.is_none() {
        not_run(&format!("{name} is missing (Debian package {package})"));
    }
    found
}

/// Says that the test cannot run because a tool is missing. Fails the test if tools are required, as in CI.
pub fn not_run(why: &str) {
    assert!(std::env::var_os("TEST_REQUIRE_TOOLS").is_none(), "{} cannot run: {why}", test());
    say(why);
}

/// Says that the test, or a part of it, cannot run because a right is missing, for example to mount a file system. CI
/// may lack it, too.
pub fn not_allowed(why: &str) {
    say(why);
}

fn test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Writes to the terminal, and to a file that `.ci/run` prints at its end.
fn say(why: &str) {
    let line = format!("NOT RUN: {}: {why}\n", test());
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/not-run.txt");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("write down what did not run");
    eprint!("{line}");
}
