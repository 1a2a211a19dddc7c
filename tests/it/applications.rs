//! docs/applications.md: every example of it is run as it stands there, against the real daemon.

use std::path::Path;
use std::process::Command;

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::Lambda;
use crate::rig::python;

/// The examples of the page: what the line that opens them calls them, their language, and their text.
fn examples() -> Vec<(String, String, String)> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/applications.md")).unwrap();
    let mut found = Vec::new();
    let mut parts = page.split("\n```");
    while let (Some(_), Some(block)) = (parts.next(), parts.next()) {
        let (opening, text) = block.split_once('\n').unwrap();
        let (language, name) = opening.split_once(' ').unwrap();
        found.push((name.to_owned(), language.to_owned(), format!("{text}\n")));
    }
    found
}

/// Runs one example twice, as an application that repeats itself; none, loudly, if its client is not there.
fn run(name: &str, language: &str, text: &str, daemon: &Daemon, directory: &Path) -> Option<()> {
    let file = |ending: &str| {
        let path = directory.join(format!("{name}.{ending}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    let path = |first: &Path| format!("{}:{}", first.display(), std::env::var("PATH").unwrap_or_default());
    for _ in 0..2 {
        let mut command = match language {
            "python" => {
                let mut command = Command::new(python::program("python"));
                command.arg(file("py"));
                command
            }
            "javascript" => {
                let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/js/node_modules");
                assert!(packages.is_dir(), "run `make test`");
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
            eprintln!("NOT RUN: /usr/bin/aws is not there (Debian: apt-get install awscli)");
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
    let examples = examples();
    let names: Vec<&str> = examples.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(names, ["key", "context", "sdk", "cli1", "cli2", "curl", "timeouts"]);
    for (name, language, text) in &examples {
        if run(name, language, text, &daemon, scratch.path()).is_none() {
            continue;
        }
        let id = text.rsplit("order-").next().unwrap().split('"').next().unwrap();
        lambda.wait_for(&[format!("order-{id}")]);
    }
    // Those with a key were one event each, however often they were run.
    daemon.wait_until_empty();
    let taken = lambda.taken();
    for keyed in ["order-py", "order-context", "order-js", "order-curl"] {
        assert_eq!(taken.get(keyed), Some(&1), "{keyed} of {taken:?}");
    }
}
