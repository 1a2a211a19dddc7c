//! Tests the AWS CLI: its output, its complaints, its exit code, and the file that it writes.

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

/// Exit code, stdout, stderr and the file, without the parts that differ between any two calls.
fn run(mut aws: Command, more: &[&str]) -> [String; 4] {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("answer");
    aws.args(["lambda", "invoke"]).args(more).arg(&file).env("AWS_MAX_ATTEMPTS", "1");
    let output = aws.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut stdout = text(&output.stdout);
    if let Ok(mut answer) = serde_json::from_str::<Value>(&stdout) {
        // The log of each call contains its own id.
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
    // Keep only Lambda's part of a complaint about JSON. The rest is the parser's.
    let stderr = text(&output.stderr);
    let stderr = stderr.split("Could not parse payload into json: ").next().unwrap_or_default().to_owned();
    [format!("{:?}", output.status.code()), stdout, stderr, written]
}

/// Options that some releases of the CLI do not have yet.
const YOUNG: [&str; 2] = ["--tenant-id", "--durable-execution-name"];

/// The options that this CLI does not know. It reports all of them at once, before any call.
fn unknown(mut aws: Command) -> Vec<&'static str> {
    let values = YOUNG.iter().flat_map(|option| [*option, "x"]);
    let output = aws.args(["lambda", "invoke", "--function-name", "x"]).args(values).arg("/dev/null").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let unknown = said.split_once("Unknown options:").map_or("", |(_, options)| options);
    YOUNG.into_iter().filter(|option| unknown.contains(option)).collect()
}

/// The options without those in `left_out` and without their values.
fn without<'a>(options: &[&'a str], left_out: &[&str]) -> Vec<&'a str> {
    options.chunks(2).filter(|option| !left_out.contains(&option[0])).flatten().copied().collect()
}

fn compare_cli(aws: impl Fn(&str) -> Command + Sync) {
    let (_scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    let unknown = unknown(aws(&lambda.endpoint_url()));
    for (name, options) in options() {
        let options = without(&options, &unknown);
        let (direct, through) = std::thread::scope(|scope| {
            let direct = scope.spawn(|| run(aws(&lambda.endpoint_url()), &options));
            let through = run(aws(&daemon.endpoint_url()), &options);
            (direct.join().unwrap(), through)
        });
        assert_eq!(through, direct, "{name}: sendoff left, Lambda right");
    }
    daemon.wait_until_empty();
}

#[test]
fn the_aws_cli_1_shows_the_same_for_every_option() {
    assert_eq!(unknown(python::aws("http://127.0.0.1:1")), [""; 0], "the pinned CLI knows every option");
    compare_cli(python::aws);
}

/// The CLI of Debian's package, by its path, because the name may be version 1 in `PATH`. `None`, after a message, if
/// it is missing.
pub fn version_2(endpoint_url: &str) -> Option<Command> {
    let program = "/usr/bin/aws";
    let version = Command::new(program).arg("--version").output();
    if !version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).starts_with("aws-cli/2.")) {
        crate::rig::tools::not_run(&format!("{program} is not the AWS CLI 2 (Debian: apt-get install awscli)"));
        return None;
    }
    let mut command = Command::new(program);
    command.args(["--endpoint-url", endpoint_url, "--output", "json", "--cli-binary-format", "raw-in-base64-out"]);
    python::aws_environment(&mut command);
    Some(command)
}

#[test]
fn the_aws_cli_2_shows_the_same_for_every_option() {
    if version_2("http://127.0.0.1:1").is_some() {
        compare_cli(|endpoint_url| version_2(endpoint_url).unwrap());
    }
}

#[test]
fn a_lost_202_that_the_aws_cli_2_repeats_is_one_event_if_it_carries_a_key() {
    // Debian's CLI sends no SDK id. Only the client context can carry a key.
    let key = "eyJjdXN0b20iOnsiaWRlbXBvdGVuY3lfa2V5Ijoib3JkZXItMTcifX0="; // {"custom":{"idempotency_key":"order-17"}}
    let (_scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    let proxy = crate::rig::lossy::proxy(daemon.ingest, 1);
    let Some(mut aws) = version_2(&format!("http://{proxy}")) else { return };
    aws.args(["lambda", "invoke", "--function-name", "orders", "--invocation-type", "Event"]);
    aws.args(["--payload", "{\"id\":\"v2\"}", "--client-context", key, "/dev/null"]);
    python::run(&mut aws);
    lambda.wait_for(&["v2".to_owned()]);
    daemon.wait_until_empty();
    assert_eq!(lambda.taken().get("v2"), Some(&1));
    let repeats = daemon.scrape().sum("sendoff_ingest_duplicates_total", &[("key_source", "client-context")]);
    assert_eq!(repeats, 1.0, "the CLI's own retry was recognised");
}

#[test]
fn the_deprecated_invoke_async_is_taken_from_both_clis() {
    let (scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    let endpoint_url = daemon.endpoint_url();
    for (id, aws) in [("cli-1", Some(python::aws(&endpoint_url))), ("cli-2", version_2(&endpoint_url))] {
        let Some(mut aws) = aws else { continue };
        let args = scratch.path().join(id);
        std::fs::write(&args, crate::rig::lambda::payload(id)).unwrap();
        aws.args(["lambda", "invoke-async", "--function-name", "orders", "--invoke-args"]).arg(&args);
        let answer: Value = serde_json::from_slice(&python::run(&mut aws).stdout).unwrap();
        assert_eq!(answer["Status"], 202, "{id}");
        lambda.wait_for(&[id.to_owned()]);
    }
}
