//! The AWS CLI: what it prints, what it complains of, how it exits, and the file that it writes.

use super::*;

/// The options of `aws lambda invoke`, by name.
fn options() -> Vec<(&'static str, Vec<&'static str>)> {
    let event = ["--function-name", "orders", "--invocation-type", "Event"];
    let call = ["--function-name", "orders"];
    let of = |base: &[&'static str], more: &[&'static str]| [base, more].concat();
    vec![
        ("Event", of(&event, &["--payload", "{\"k\":1}"])),
        ("Event without a payload", of(&event, &[])),
        (
            "Event with every option",
            of(
                &event,
                &[
                    "--log-type",
                    "Tail",
                    "--client-context",
                    CONTEXT,
                    "--payload",
                    "{}",
                    "--qualifier",
                    "prod",
                    "--tenant-id",
                    "blue team",
                    "--durable-execution-name",
                    "run-1",
                ],
            ),
        ),
        ("Event that is not JSON", of(&event, &["--payload", "not json"])),
        ("Event by ARN", vec!["--function-name", ARN, "--invocation-type", "Event", "--payload", "{}"]),
        ("RequestResponse", of(&call, &["--payload", "{\"k\":1}"])),
        (
            "RequestResponse with every option",
            of(
                &call,
                &[
                    "--invocation-type",
                    "RequestResponse",
                    "--log-type",
                    "Tail",
                    "--client-context",
                    CONTEXT,
                    "--payload",
                    "{}",
                    "--qualifier",
                    "7",
                    "--tenant-id",
                    "blue team",
                    "--durable-execution-name",
                    "run-2",
                ],
            ),
        ),
        ("RequestResponse that fails", vec!["--function-name", "failing"]),
        ("RequestResponse to nobody", vec!["--function-name", "missing"]),
        ("DryRun", of(&call, &["--invocation-type", "DryRun"])),
        ("two qualifiers", vec!["--function-name", "orders:7", "--qualifier", "8"]),
    ]
}

/// Exit code, stdout, stderr and the file, without what differs between any two calls.
fn run(mut aws: Command, more: &[&str]) -> [String; 4] {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("answer");
    aws.args(["lambda", "invoke"]).args(more).arg(&file).env("AWS_MAX_ATTEMPTS", "1");
    let output = aws.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut stdout = text(&output.stdout);
    if let Ok(mut answer) = serde_json::from_str::<Value>(&stdout) {
        // The log of each call has its own id.
        if let Some(log) = answer.get_mut("LogResult") {
            *log = json!(!log.as_str().unwrap_or_default().is_empty());
        }
        stdout = answer.to_string();
    }
    let written = std::fs::read(&file).map_or("no file".to_owned(), |bytes| text(&bytes));
    let written = match serde_json::from_str::<Value>(&written) {
        Ok(mut answer) if answer.get("requestId").is_some() => {
            answer["requestId"] = json!("ID");
            answer.to_string()
        }
        Ok(_) | Err(_) => written,
    };
    // Of a parser's complaint about JSON the first words are Lambda's, the rest is the parser's own.
    let stderr = text(&output.stderr);
    let stderr = stderr.split("Could not parse payload into json: ").next().unwrap_or_default().to_owned();
    [format!("{:?}", output.status.code()), stdout, stderr, written]
}

fn compare_cli(aws: impl Fn(&str) -> Command + Sync) {
    let (_scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    for (name, options) in options() {
        let direct = run(aws(&lambda.endpoint_url()), &options);
        let through = run(aws(&daemon.endpoint_url()), &options);
        assert_eq!(through, direct, "{name}: sendoff left, Lambda right");
    }
    daemon.wait_until_empty();
}

#[test]
fn the_aws_cli_1_shows_the_same_for_every_option() {
    compare_cli(python::aws);
}

#[test]
fn the_aws_cli_2_shows_the_same_for_every_option() {
    let program = "/usr/bin/aws";
    let version = Command::new(program).arg("--version").output();
    if !version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).starts_with("aws-cli/2.")) {
        eprintln!("SKIPPED: the AWS CLI version 2 of Debian (package awscli) is not installed");
        return;
    }
    compare_cli(|endpoint_url| {
        let mut command = Command::new(program);
        command.args(["--endpoint-url", endpoint_url, "--output", "json", "--cli-binary-format", "raw-in-base64-out"]);
        python::aws_environment(&mut command);
        command
    });
}
