//! Tests the commands of an operator against a real daemon.

use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::process::Process;
use crate::rig::{PATIENCE, eventually, http};
use crate::tools::{said, sendoff, succeed};

fn ask(daemon: &Daemon, words: &[&str]) -> Output {
    sendoff().args(words).arg("--admin").arg(format!("http://{}", daemon.admin)).output().unwrap()
}

#[test]
fn status_shows_counts_and_rates_as_text_and_json_and_keeps_watching() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    daemon.accept("orders", &[], &payload("one"));
    lambda.wait_for(&["one".to_owned()]);
    daemon.wait_until_empty();
    let json: serde_json::Value = serde_json::from_slice(&ask(&daemon, &["status", "--json"]).stdout).unwrap();
    assert_eq!(
        (&json["ready"], &json["totals"]["accepted"], &json["totals"]["delivered"]),
        (&true.into(), &1.into(), &1.into())
    );
    let text = said(&ask(&daemon, &["status"]));
    assert!(text.contains("state        ready, version") && text.contains("1 accepted, 0 duplicates"), "{text}");
    assert!(!text.contains('\x1b'), "no colours beside a terminal");
    let watched = ask(&daemon, &["status", "--watch", "--json", "--count", "2"]);
    assert_eq!(said(&watched).lines().count(), 2, "{watched:?}");
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_what_starts_it() {
    let free = crate::rig::lasting_port();
    let output = sendoff().args(["status", "--admin", &format!("http://127.0.0.1:{free}")]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(said(&output).contains("start it with `sendoff serve`"), "{}", said(&output));
    let output = sendoff().args(["healthcheck", "--admin", &format!("http://127.0.0.1:{free}")]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
}

#[test]
fn drain_makes_it_not_ready_until_undone_and_waits_for_the_backlog() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    assert_eq!(ask(&daemon, &["healthcheck"]).status.code(), Some(0));
    daemon.accept("orders", &[], &payload("late"));
    let output = ask(&daemon, &["drain", "--timeout", "0s"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("1 event still waits"), "{}", said(&output));
    let output = ask(&daemon, &["healthcheck"]);
    assert_eq!((output.status.code(), said(&output).contains("draining on request")), (Some(1), true));
    // Requests that still arrive are served.
    daemon.accept("orders", &[], &payload("later"));
    lambda.take_all();
    assert!(said(&ask(&daemon, &["drain", "--timeout", "30s"])).contains("drained"));
    assert_eq!(ask(&daemon, &["drain", "--undo"]).status.code(), Some(0));
    assert_eq!(ask(&daemon, &["healthcheck"]).status.code(), Some(0));
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", "http://127.0.0.1:9").start();
    let put = |body: &str| {
        http::request(daemon.admin, "PUT", "/v1/log-level", &[("content-type", "application/json")], body.as_bytes())
    };
    assert_eq!(put("{\"level\":\"inof\"}").status, 400);
    assert_eq!(put("{\"level\":\"info,sendoff=debug\"}").status, 200);
    assert_eq!(http::get(daemon.admin, "/v1/log-level").json()["level"], "info,sendoff=debug");
    daemon.accept("orders", &[], b"{}");
    daemon.wait_for_log(|fields| fields["level"] == "DEBUG");
}

/// A daemon with a configuration file.
fn with_file(file: &Path, state: &Path) -> Process {
    let mut command = sendoff();
    command.args(["serve", "--config"]).arg(file).arg("--state-dir").arg(state);
    command.args([
        "--set",
        "listen.ingest=127.0.0.1:0",
        "--set",
        "listen.admin=127.0.0.1:0",
        "--set",
        "log.format=json",
    ]);
    let process = Process::spawn("sendoff", &mut command);
    process.line(PATIENCE, |line| line.contains("\"ready\"").then_some(())).unwrap();
    process
}

#[test]
fn a_reload_applies_what_it_can_names_the_rest_and_survives_a_broken_file() {
    let (scratch, state) = scratch();
    let file = scratch.path().join("sendoff.toml");
    std::fs::write(&file, "[lambda]\nendpoint_url = \"http://127.0.0.1:9\"\n").unwrap();
    let mut process = with_file(&file, &state);
    let reload = |text: &str| {
        std::fs::write(&file, format!("[lambda]\nendpoint_url = \"http://127.0.0.1:9\"\n{text}")).unwrap();
        process.signal(Signal::HUP);
    };
    let heard = |what: &str| {
        eventually(what, || process.lines().iter().find(|line| line.contains(what)).cloned());
    };
    reload("[delivery]\nattempts_max = 3\n[outbox]\nbytes_max = \"1GiB\"\n");
    heard("\"applied\":\"delivery.attempts_max\"");
    heard("\"needs_restart\":\"outbox.bytes_max\"");
    reload("[nonsense]\n");
    heard("configuration not reloaded: the running one stays in effect");
    reload("[log]\nlevel = \"debug\"\n");
    heard("log.level");
    process.signal(Signal::TERM);
    assert!(process.wait(PATIENCE).success());
}

#[test]
fn completions_and_manual_pages_are_written_from_the_command_line_itself() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = succeed(sendoff().args(["completions", shell]));
        assert!(script.contains("check-config"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    succeed(sendoff().args(["man", "--dir"]).arg(dir.path()));
    let page = dir.path().join("sendoff-status.1");
    assert!(page.is_file());
    if Path::new("/usr/bin/man").exists() {
        let text = succeed(Command::new("man").env("MANPAGER", "cat").env("LC_ALL", "C").arg("--warnings").arg(&page));
        assert!(text.contains("--watch"), "{text}");
    }
}
