//! Tests `sendoff check-config` on typical mistakes: each is reported with what helps.

use std::process::Command;

use crate::rig::daemon::scratch;

/// The exit code and all output.
fn check(words: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.arg("check-config").args(words).env_clear().envs(environment.iter().copied());
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn each_typical_mistake_gets_the_remedy_for_it() {
    let (_scratch, state) = scratch();
    let state = state.to_str().unwrap();
    for (set, said) in [
        ("age=1h", "did you mean `delivery.age_max`?"),
        ("region=eu-central-1", "did you mean `lambda.region`"),
        ("queue_url=x", "did you mean `dead_letter.queue_url`?"),
        ("log_level=debug", "did you mean `log.level`?"),
        ("outbox.max_bytes=1GiB", "did you mean `outbox.bytes_max`?"),
        (
            "dead_letter.queue_url=orders-dlq",
            "write it like \"https://sqs.eu-central-1.amazonaws.com/123456789012/orders-dlq\"",
        ),
        ("dead_letter.queue_url=https://sqs.eu-central-1.amazonaws.com/123456789012", "not the URL of a queue"),
        ("dead_letter.queue_url=https://sqs.eu-central-1.amazonaws.com/123456789012/", "not the URL of a queue"),
        ("dead_letter.queue_url=https://sqs.eu-central-1.amazonaws.com/", "not the URL of a queue"),
        ("dead_letter.queue_url=arn:aws:sqs:eu-central-1:123456789012", "write it like \"arn:aws:sqs:"),
        ("listen.admin=localhost:9478", "write it like \"127.0.0.1:9478\""),
        ("listen.ingest=9477", "write it like \"127.0.0.1:9477\""),
        ("lambda.endpoint_url=lambda", "write it like \"https://vpce-1.lambda."),
        ("lambda.region=EU", "write it like \"eu-central-1\""),
        ("delivery.age_max=6", "write it like \"500ms\", \"30s\", \"5m\" or \"6h\""),
        ("delivery.age_max=0s", "must not be zero"),
        ("delivery.attempts_max=many", "write digits without quotes"),
        ("delivery.attempts_max=0", "not in 1 to 1000000"),
        ("lambda.passthrough_max=yes", "write digits without quotes"),
        ("listen.allow_unauthenticated_remote=yes", "write true or false"),
        ("outbox.bytes_max=10", "the least that works"),
        ("listen.unix_mode=rwx", "write it in octal, like \"0660\""),
        ("functions.\"a b\".age_max=1h", "write a function's name"),
    ] {
        let (code, text) = check(&["--state-dir", state, "--set", set], &[]);
        assert_eq!(code, Some(78), "{set}: {text}");
        assert!(text.contains(said), "{set}: {said} in\n{text}");
    }
    let two = ["--set", "functions.orders.age_max=1h", "--set", "functions.\"function:orders\".age_max=2h"];
    let (code, text) = check(&[&["--state-dir", state], &two[..]].concat(), &[]);
    assert!(code == Some(78) && text.contains("put the keys of both into one table"), "{text}");
}

#[test]
fn it_names_what_it_read_and_what_looks_like_a_mistake() {
    let (scratch, state) = scratch();
    let state = state.to_str().unwrap();
    let (code, text) = check(&["--state-dir", state], &[("AWS_REGION", "eu-centrl-1")]);
    assert_eq!(code, Some(0), "{text}");
    for said in ["read no file", "$AWS_REGION", "the configuration has no problems", "did you mean \"eu-central-1\"?"] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    let file = scratch.path().join("sendoff.toml");
    std::fs::write(&file, "lambda.region = \"eu-central-1\"\n").unwrap();
    let (code, text) = check(&["--config", file.to_str().unwrap(), "--state-dir", state], &[]);
    assert_eq!((code, text), (Some(0), format!("read {}\nthe configuration has no problems\n", file.display())));
}

#[test]
fn a_state_directory_that_cannot_be_used_is_a_problem_unless_it_is_another_machine_s() {
    let (scratch, state) = scratch();
    let file = scratch.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let below = file.join("state");
    let (code, text) = check(&["--state-dir", below.to_str().unwrap()], &[]);
    assert!(code == Some(78) && text.contains("file is not a directory"), "{text}");
    let (code, text) = check(&["--state-dir", below.to_str().unwrap(), "--skip-state-dir"], &[]);
    assert!(code == Some(0) && text.contains("no problems"), "{text}");
    std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, text) = check(&["--state-dir", state.to_str().unwrap()], &[]);
    assert!(code == Some(0) && text.contains("chmod -R go-rwx"), "{text}");
    let (code, text) = check(&["--state-dir", state.to_str().unwrap(), "--set", "outbox.disk_reserve=1000PiB"], &[]);
    assert!(code == Some(78) && text.contains("bytes free"), "{text}");
}
