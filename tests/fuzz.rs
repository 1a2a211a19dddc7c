//! Runs the fuzzer's checks without a fuzzer: on its seeds, on the requests that real clients sent, and on changed
//! ones. Keeps `fuzz/` compiling and correct on the stable compiler.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[path = "../fuzz/one_request.rs"]
mod one_request;

/// Changed requests in one run. A fuzzer makes as many in a second. This only tests that its check works.
const CHANGED: usize = 50_000;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Every seed, and every recorded request with a body of its kind.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = files(&root().join("fuzz/seeds")).iter().map(|file| std::fs::read(file).unwrap()).collect();
    for file in files(&root().join("tests/golden/wire")) {
        for recorded in std::fs::read_to_string(file).unwrap().split("\n\n") {
            let head: Vec<_> =
                recorded.lines().filter(|line| !line.starts_with("# ") && !line.starts_with("=> ")).collect();
            seeds.push((head.join("\n") + "\n\n{\"k\":\"v\"}").into_bytes());
        }
    }
    seeds
}

#[test]
fn no_seed_is_refused_as_our_fault_or_stored_on_refusal() {
    let bench = one_request::Bench::new();
    let mut statuses = BTreeMap::new();
    for seed in seeds() {
        let status = bench.check(&seed).unwrap_or_else(|| panic!("not HTTP: {}", String::from_utf8_lossy(&seed)));
        *statuses.entry(status).or_insert(0) += 1;
    }
    for status in [200, 202, 207, 400, 403, 404, 405, 409, 422] {
        assert!(statuses.contains_key(&status), "no seed leads to {status}: {statuses:?}");
    }
}

#[test]
fn no_changed_request_is_refused_as_our_fault_or_stored_on_refusal() {
    let bench = one_request::Bench::new();
    let (seeds, mut random) = (seeds(), fastrand::Rng::with_seed(20_261_128));
    let mut answered = 0;
    for _ in 0..CHANGED {
        let mut input = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..=input.len());
            match random.u8(..4) {
                0 => input.insert(at, random.u8(..)),
                1 => drop(input.splice(at..(at + random.usize(..9)).min(input.len()), [])),
                2 => {
                    let other = &seeds[random.usize(..seeds.len())];
                    let from = random.usize(..=other.len());
                    let part = other[from..(from + random.usize(..40)).min(other.len())].to_vec();
                    drop(input.splice(at..at, part));
                }
                _ if at < input.len() => input[at] ^= 1 << random.u8(..8),
                _ => {}
            }
        }
        answered += usize::from(bench.check(&input).is_some());
    }
    assert!(answered > CHANGED / 4, "only {answered} of {CHANGED} were HTTP at all");
}
