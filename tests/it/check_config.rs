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
        ("delivery.attempts_max=0", "must be from 1 to 1000000"),
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
    assert!(code == Some(78) && text.contains("move the keys of both into one table"), "{text}");
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
    let small = ["--set", "outbox.bytes_max=64MiB"];
    let words = [&["--config", file.to_str().unwrap(), "--state-dir", state], &small[..]].concat();
    let (code, text) = check(&words, &[]);
    assert_eq!((code, text), (Some(0), format!("read {}\nthe configuration has no problems\n", file.display())));
}

#[test]
fn a_state_directory_that_cannot_be_used_is_a_problem_unless_it_is_another_machine_s() {
    let (scratch, state) = scratch();
    let file = scratch.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let below = file.join("state");
    let (code, text) = check(&["--state-dir", below.to_str().unwrap()], &[]);
    assert!(code == Some(69) && text.contains("file is not a directory"), "{text}");
    let (code, text) = check(&["--state-dir", below.to_str().unwrap(), "--skip-state-dir"], &[]);
    assert!(code == Some(0) && text.contains("no problems"), "{text}");
    std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, text) = check(&["--state-dir", state.to_str().unwrap()], &[]);
    assert!(code == Some(0) && text.contains("chmod -R go-rwx"), "{text}");
    let words = ["--state-dir", state.to_str().unwrap(), "--set", "outbox.bytes_max=1000PiB"];
    let (code, text) = check(&words, &[]);
    assert!(code == Some(0) && text.contains("note: outbox.bytes_max is"), "{text}");
    let (code, text) = check(&["--state-dir", state.to_str().unwrap(), "--set", "outbox.disk_reserve=1000PiB"], &[]);
    assert!(code == Some(69) && text.contains("bytes free"), "{text}");
}

/// Starts `serve` and runs `check-config` with the same arguments and variables. Returns the exit code and the last
/// line of each.
fn both(words: &[&str], environment: &[(&str, &str)]) -> [(Option<i32>, String); 2] {
    ["serve", "check-config"].map(|name| {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", "20", env!("CARGO_BIN_EXE_sendoff"), name]).args(words);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let output = command.env_clear().env("PATH", path).envs(environment.iter().copied()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let last = said.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
        (output.status.code(), last.to_owned())
    })
}

#[test]
fn whatever_a_start_refuses_the_check_refuses_in_the_same_words() {
    let (scratch, state) = scratch();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("empty.pem"), "").unwrap();
    std::fs::write(path("file"), "x").unwrap();
    std::fs::write(path("profile"), format!("[default]\nca_bundle = {}\n", path("missing.pem"))).unwrap();
    let status = Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    assert!(status.success());
    let huge = std::fs::File::create(path("huge")).unwrap();
    huge.set_len(1 << 30).unwrap();
    let fifo = path("fifo");
    let set = |text: &str| vec!["--set".to_owned(), text.to_owned()];
    let config = |file: &str| vec!["--config".to_owned(), file.to_owned()];
    let unix = |file: &str| set(&format!("listen.unix={}", path(file)));
    let remote = set("listen.allow_unauthenticated_remote=true");
    for (words, variable, code, said) in [
        (vec![], Some(("AWS_CA_BUNDLE", path("missing.pem"))), 78, "No such file"),
        (vec![], Some(("AWS_CA_BUNDLE", path("empty.pem"))), 78, "it holds no certificate in PEM"),
        (vec![], Some(("AWS_CA_BUNDLE", fifo.clone())), 78, "it is a pipe"),
        (vec![], Some(("AWS_CA_BUNDLE", "/dev/zero".to_owned())), 78, "it is larger than 16 MiB"),
        (vec![], Some(("AWS_CONFIG_FILE", path("profile"))), 78, "ca_bundle of the AWS profile"),
        (vec![], Some(("AWS_CONFIG_FILE", fifo.clone())), 78, "AWS_CONFIG_FILE is"),
        (vec![], Some(("AWS_CONFIG_FILE", "/dev/zero".to_owned())), 78, "it is larger than 1 MiB"),
        (vec![], Some(("AWS_SHARED_CREDENTIALS_FILE", fifo.clone())), 78, "it is a pipe"),
        (vec![], Some(("SSL_CERT_FILE", fifo.clone())), 78, "SSL_CERT_FILE is"),
        (vec![], Some(("AWS_USE_FIPS_ENDPOINT", "true".to_owned())), 78, "FIPS"),
        ([unix("s"), set("listen.unix_group=no such group")].concat(), None, 69, "there is no group"),
        (unix("no/s"), None, 69, "no does not exist"),
        (unix("file"), None, 69, "a file that is no socket is there"),
        (unix("file/s"), None, 69, "file is not a directory"),
        ([set("listen.ingest=192.0.2.1:9477"), remote].concat(), None, 69, "cannot listen on 192.0.2.1:9477"),
        (set("lambda.endpoint_url=http://host/?query"), None, 78, "nothing after the path"),
        (config(&fifo), None, 78, "cannot be read: it is a pipe"),
        (config(scratch.path().to_str().unwrap()), None, 78, "cannot be read: it is a directory"),
        (config("/dev/zero"), None, 78, "cannot be read: it is larger than 1 MiB"),
        (config(&path("huge")), None, 78, "cannot be read: it is larger than 1 MiB"),
    ] {
        let fixed = ["--state-dir", state.to_str().unwrap(), "--set", "listen.admin=127.0.0.1:0"];
        let first = ["--set", "listen.ingest=127.0.0.1:0", "--set", "lambda.endpoint_url=http://127.0.0.1:9"];
        let words: Vec<&str> = fixed.into_iter().chain(first).chain(words.iter().map(String::as_str)).collect();
        let environment: Vec<(&str, &str)> = variable.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let [serve, checked] = both(&words, &environment);
        assert!(serve.0 == Some(code) && serve.1.contains(said), "{said}: {serve:?}");
        assert_eq!(checked, serve, "{said}");
    }
}

#[test]
fn a_check_for_another_machine_leaves_this_one_s_addresses_and_sockets_alone() {
    let (scratch, state) = scratch();
    let unix = format!("listen.unix={}", scratch.path().join("no/s").display());
    let elsewhere = ["--set", "listen.ingest=192.0.2.1:9477", "--set", "listen.allow_unauthenticated_remote=true"];
    let words =
        [&["--state-dir", state.to_str().unwrap(), "--skip-state-dir", "--set", &unix][..], &elsewhere].concat();
    let (code, text) = check(&words, &[]);
    assert!(code == Some(0) && text.contains("no problems"), "{text}");
}
