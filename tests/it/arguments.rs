//! Tests arguments that cannot be valid: they are refused at once with exit code 2, before anybody is asked.

use std::process::Command;
use std::time::Instant;

use crate::rig::PATIENCE;

/// The exit code and all output.
fn sendoff(words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    let output = command.args(words).env_clear().env("HOME", "/nonexistent").output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn a_password_in_a_url_is_never_repeated() {
    let url = "http://me:secret@127.0.0.1:1";
    let odd = "me:se/c?r#et secret@127.0.0.1:1";
    let queue = "http://me:secret@127.0.0.1:1/123456789012/q";
    for words in [
        &["status", "--admin", url][..],
        &["status", "--admin", odd],
        &["status", "--endpoint", url],
        &["send", "orders", "--endpoint", url],
        &["send", "orders", "--endpoint", odd],
        &["send", "orders", "--admin", url],
        &["redrive", "--queue", queue],
        &["redrive", "--queue", odd],
        &["events", "list", "--admn", url],
        &["events", "list", &format!("--admn={url}")],
        &["check-config", "--set", &format!("lambda.endpoint_url={url}")],
        &["check-config", "--set", &format!("sqs.endpoint_url={odd}")],
        &["check-config", "--set", &format!("listen.admin={url}")],
        &["check-config", "--set", &format!("listen.ingest={odd}")],
        &["check-config", "--set", &format!("dead_letter.queue_url={queue}")],
        &["check-config", "--set", url],
    ] {
        let (code, said) = sendoff(words);
        assert!(matches!(code, Some(2 | 78)), "{words:?}: {code:?} {said}");
        assert!(!said.contains("secret"), "{words:?}: {said}");
    }
}

#[test]
fn what_cannot_mean_anything_is_refused_before_anybody_is_asked() {
    let began = Instant::now();
    // Nobody listens there, so a command that asked would end with 69.
    let admin = ["--admin", "http://127.0.0.1:1"];
    for words in [
        &["events", "list", "--limit", "0"][..],
        &["dead-letters", "list", "--limit", "0"],
        &["redrive", "--limit", "0"],
        &["redrive", "--queue", "nonsense"],
        &["redrive", "--queue", "arn:aws:sns:eu-central-1:123456789012:topic"],
        &["redrive", "--queue", "https://sqs.eu-central-1.amazonaws.com/123456789012"],
        &["redrive", "--rate", "0"],
        &["events", "list", "--state", "sleeping"],
        &["events", "show", "no-id"],
        &["purge", "orders", "--state", "buried"],
        &["purge", "two words"],
        &["pause", ""],
        &["pause", "a/b/c/d"],
        &["resume", ".."],
        &["status", "--watch", "--count", "0"],
        &["status", "--watch", "--interval", "0"],
        &["drain", "--timeout", "soon"],
    ] {
        let (code, said) = sendoff(&[words, &admin].concat());
        assert_eq!(code, Some(2), "{words:?}: {said}");
    }
    assert!(began.elapsed() < PATIENCE);
}
