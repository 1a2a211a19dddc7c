//! Tools and rights that a test may lack. It then says so where it is heard: libtest keeps what a passing test prints.

use std::io::Write;
use std::path::PathBuf;

/// A program on the path; none, said loudly, if it is missing and nobody demands it.
pub fn tool(name: &str, package: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let places = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&paths).chain(places).map(|dir| dir.join(name)).find(|path| path.is_file());
    if found.is_none() {
        not_run(&format!("{name} is missing (Debian package {package})"));
    }
    found
}

/// Says that the test does not run for want of a tool; fails it where tools are demanded, as in CI.
pub fn not_run(why: &str) {
    assert!(std::env::var_os("TEST_REQUIRE_TOOLS").is_none(), "{} cannot run: {why}", test());
    say(why);
}

/// Says that the test, or a part of it, does not run for want of a right, as to mount a file system. CI may lack it too.
pub fn not_allowed(why: &str) {
    say(why);
}

fn test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// To the terminal, and into a file that `.ci/run` shows at its end.
fn say(why: &str) {
    let line = format!("NOT RUN: {}: {why}\n", test());
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/not-run.txt");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("write down what did not run");
    eprint!("{line}");
}
