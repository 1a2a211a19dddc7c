//! Runs every example of docs/applications.md, as written, against the real daemon.

use std::path::Path;
use std::process::Command;

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::Lambda;
use crate::rig::page::{Example, examples};
use crate::rig::python;

/// Runs one example twice, as an application that repeats itself. `None`, after a message, if its client is missing.
fn run(example: &Example, daemon: &Daemon, directory: &Path) -> Option<()> {
    let Example { name, language, text } = example;
    let file = |ending: &str| {
        let path = directory.join(format!("{name}.{ending}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    let path = |first: &Path| format!("{}:{}", first.display(), std::env::var("PATH").unwrap_or_default());
    for _ in 0..2 {
        let mut command = match language.as_str() {
            "python" => {
                let mut command = Command::new(python::program("python"));
                command.arg(file("py"));
                command
            }
            "javascript" => {
                crate::clients::javascript()?;
                let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/js/node_modules");
                let link = directory.join("node_modules");
                if !link.exists() {
                    std::os::unix::fs::symlink(packages, link).unwrap();
                }
                let mut command = Command::new("node");
                command.arg(file("mjs"));
                command
            }
            "sh" => {
                let mut command = Command::new("sh");
                command.args(["-ec", text]);
                command
            }
            other => panic!("no test runs {other}"),
        };
        let cli_1 = python::program("aws");
        let first = if name == "cli2" { Path::new("/usr/bin") } else { cli_1.parent().unwrap() };
        if name == "cli2" && !first.join("aws").exists() {
            crate::rig::tools::not_run("/usr/bin/aws is not the AWS CLI 2 (Debian: apt-get install awscli)");
            return None;
        }
        command.current_dir(directory);
        python::aws_environment(&mut command);
        command.env("PATH", path(first)).env("AWS_ENDPOINT_URL_LAMBDA", daemon.endpoint_url());
        let output = command.output().unwrap_or_else(|why| panic!("{name}: cannot start {command:?}: {why}"));
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "{name}: {said}");
        assert!(name == "curl" || said.contains("202"), "{name}: {said}");
    }
    Some(())
}

#[test]
fn every_example_for_applications_runs_as_it_stands_on_the_page() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let examples = examples("applications.md");
    let names: Vec<&str> = examples.iter().map(|example| example.name.as_str()).collect();
    assert_eq!(names, ["key", "context", "sdk", "cli1", "cli2", "curl", "timeouts"]);
    for example in &examples {
        if run(example, &daemon, scratch.path()).is_none() {
            continue;
        }
        let id = example.text.rsplit("order-").next().unwrap().split('"').next().unwrap();
        lambda.wait_for(&[format!("order-{id}")]);
    }
    // Examples with a key made one event each, although they ran several times.
    daemon.wait_until_empty();
    let taken = lambda.taken();
    for keyed in ["order-py", "order-context", "order-js", "order-curl"] {
        assert_eq!(taken.get(keyed), Some(&1), "{keyed} of {taken:?}");
    }
}
