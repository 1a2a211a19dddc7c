//! Sends events through sendoff to a function that really runs.

use crate::rig::daemon::{Setup, scratch};
use crate::rig::ministack::MiniStack;
use crate::rig::sender::Sender;
use crate::rig::{eventually, python};

#[test]
fn a_function_made_with_the_aws_cli_runs_once_for_every_accepted_event() {
    let (scratch, state) = scratch();
    let wrote = scratch.path().join("wrote");
    std::fs::create_dir(&wrote).unwrap();
    let lambda = MiniStack::start(scratch.path());
    lambda.create_writer("writer", scratch.path(), &wrote);
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("delivery.concurrency_max", "2")
        .start();

    let jobs: Vec<_> = (0..10).map(|n| ("writer".to_owned(), format!("event-{n}"))).collect();
    let accepted = Sender::start(&daemon.endpoint_url(), 2, scratch.path(), &jobs).finish();
    assert_eq!(accepted.len(), jobs.len());
    let runs = eventually("the function has run for every event", || {
        let runs = jobs.iter().map(|(_, id)| std::fs::read_to_string(wrote.join(id)).ok());
        runs.collect::<Option<Vec<_>>>().filter(|runs| runs.iter().all(|run| run.ends_with('\n')))
    });
    daemon.wait_until_empty();
    assert!(runs.iter().all(|run| run.lines().count() == 1), "{runs:?}");
    assert_eq!(std::fs::read_dir(&wrote).unwrap().count(), jobs.len());
}

#[test]
fn a_client_that_asks_about_functions_and_waits_for_them_gets_lambdas_own_answers() {
    let (scratch, state) = scratch();
    let wrote = scratch.path().join("wrote");
    std::fs::create_dir(&wrote).unwrap();
    let lambda = MiniStack::start(scratch.path());
    lambda.create_writer("writer", scratch.path(), &wrote);
    lambda.create_writer("other", scratch.path(), &wrote);
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let ask = |words: &[&str]| {
        let answer = |endpoint: &str| python::run(python::aws(endpoint).arg("lambda").args(words)).stdout;
        let (here, there) = (answer(&daemon.endpoint_url()), answer(&lambda.endpoint_url()));
        assert_eq!(String::from_utf8(here.clone()).unwrap(), String::from_utf8(there).unwrap(), "{words:?}");
        String::from_utf8(here).unwrap()
    };
    ask(&["wait", "function-active-v2", "--function-name", "writer"]);
    assert!(ask(&["get-function-configuration", "--function-name", "writer"]).contains("\"writer\""));
    assert!(ask(&["list-functions", "--page-size", "1"]).contains("\"other\""));
    ask(&["list-versions-by-function", "--function-name", "writer"]);
    let refused = python::aws(&daemon.endpoint_url())
        .args(["lambda", "delete-function", "--function-name", "writer"])
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("UnknownOperationException"), "{said}");
}
