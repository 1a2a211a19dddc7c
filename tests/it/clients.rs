//! Tests the AWS CLI and the SDKs with every option of Invoke, once against sendoff in front of the stand-in, and once
//! against the stand-in alone. They must show their user the same.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use sendoff::standin::{Reason, Script, Trouble};
use serde_json::{Value, json};

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::Lambda;
use crate::rig::python;
use crate::rig::tools::tool;

pub mod cli;

pub mod go;

mod lost;

pub mod rust;

mod streams;

const ARN: &str = "arn:aws:lambda:eu-central-1:123456789012:function:orders";

/// Base64 of `{"custom":{"env":"test"}}`.
const CONTEXT: &str = "eyJjdXN0b20iOnsiZW52IjoidGVzdCJ9fQ==";

/// Every option of Invoke, and every error of it, as name, operation and arguments.
fn cases() -> Vec<(String, &'static str, Value)> {
    let mut cases = Vec::new();
    let mut case = |name: &str, args: Value| cases.push((name.to_owned(), "invoke", args));
    for kind in ["Event", "RequestResponse", "DryRun"] {
        let with = |more: Value| {
            let mut args = json!({ "FunctionName": "orders", "InvocationType": kind, "Payload": "{\"k\":1}" });
            args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            args
        };
        case(&format!("{kind}: plain"), with(json!({})));
        for name in ["orders:prod", "123456789012:function:orders", "function:orders", ARN, &format!("{ARN}:7")] {
            case(&format!("{kind}: {name}"), with(json!({ "FunctionName": name })));
        }
        for qualifier in ["7", "prod", "$LATEST"] {
            case(&format!("{kind}: qualifier {qualifier}"), with(json!({ "Qualifier": qualifier })));
        }
        case(
            &format!("{kind}: the same qualifier twice"),
            with(json!({ "FunctionName": "orders:7", "Qualifier": "7" })),
        );
        case(&format!("{kind}: two qualifiers"), with(json!({ "FunctionName": "orders:7", "Qualifier": "8" })));
        case(&format!("{kind}: log tail"), with(json!({ "LogType": "Tail" })));
        case(&format!("{kind}: log none"), with(json!({ "LogType": "None" })));
        case(&format!("{kind}: client context"), with(json!({ "ClientContext": CONTEXT })));
        case(&format!("{kind}: tenant"), with(json!({ "TenantId": "blue team" })));
        case(&format!("{kind}: durable execution"), with(json!({ "DurableExecutionName": format!("run-{kind}") })));
        case(&format!("{kind}: empty payload"), with(json!({ "Payload": "" })));
        case(&format!("{kind}: no such name"), with(json!({ "FunctionName": "or ders" })));
    }
    for (name, function) in [("a failing function", "failing"), ("no such function", "missing"), ("throttled", "busy")]
    {
        case(name, json!({ "FunctionName": function, "Payload": "{}", "LogType": "Tail" }));
    }
    case("no type", json!({ "FunctionName": "orders", "Payload": "{}" }));
    case("the largest event", json!({ "FunctionName": "orders", "InvocationType": "Event", "Payload": 1_048_576 }));
    case("too large an event", json!({ "FunctionName": "orders", "InvocationType": "Event", "Payload": 1_048_577 }));
    case("a large call", json!({ "FunctionName": "orders", "Payload": 6_291_456 }));
    cases
}

/// The stand-in with the scripts of the cases, and sendoff in front of it.
fn both(state: &Path) -> (Lambda, Daemon) {
    let lambda = Lambda::start();
    lambda.default_script(Script::default().result(r#"{"answer": "ä",  "n": 1.50}"#));
    lambda.script("failing", Script::always(Trouble::FunctionError("out of stock".to_owned())));
    lambda.script("busy", Script::always(Trouble::throttle(Reason::ReservedFunctionConcurrentInvocationLimitExceeded)));
    let missing = Trouble::error(404, "ResourceNotFoundException", "Function not found: missing");
    lambda.script("missing", Script::always(missing));
    let daemon = Setup::new(state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    (lambda, daemon)
}

/// Runs the cases with a script that reads them from stdin. Returns what it showed for each case.
pub fn shown(mut command: Command, cases: &[(String, &str, Value)]) -> Vec<Value> {
    command.env("AWS_MAX_ATTEMPTS", "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|why| panic!("cannot start {command:?}: {why}"));
    let mut stdin = child.stdin.take().unwrap();
    let lines: String = cases
        .iter()
        .map(|(name, operation, args)| json!({ "name": name, "operation": operation, "args": args }).to_string() + "\n")
        .collect();
    let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    writing.join().unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn compare(script: impl Fn(&str) -> Command, cases: &[(String, &'static str, Value)]) {
    let (_scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    let direct = shown(script(&lambda.endpoint_url()), cases);
    let through = shown(script(&daemon.endpoint_url()), cases);
    assert_eq!(direct.len(), cases.len());
    for (direct, through) in direct.iter().zip(&through) {
        assert_eq!(through, direct, "sendoff left, Lambda right");
    }
    assert_eq!(through.len(), cases.len());
    daemon.wait_until_empty();
}

#[test]
fn boto3_shows_the_same_for_every_option() {
    let script = |endpoint_url: &str| {
        let mut command = python::script("invoke.py");
        command.arg(endpoint_url);
        command
    };
    compare(script, &cases());
}

#[test]
fn the_javascript_sdk_shows_the_same_for_every_option() {
    let Some(node) = javascript() else { return };
    let cases: Vec<_> = cases().into_iter().map(|(name, _, args)| (name, "Invoke", args)).collect();
    let script = |endpoint_url: &str| {
        let mut command = Command::new(&node);
        command.arg(js("invoke.mjs")).arg(endpoint_url);
        python::aws_environment(&mut command);
        command
    };
    compare(script, &cases);
}

#[test]
fn the_deprecated_invoke_async_is_taken_from_boto3_and_javascript() {
    let (_scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    let mut boto3 = python::script("invoke.py");
    boto3.arg(daemon.endpoint_url());
    let cases =
        [("async".to_owned(), "invoke_async", json!({ "FunctionName": "orders", "Payload": "{\"id\":\"py\"}" }))];
    assert_eq!(shown(boto3, &cases)[0]["shown"]["status"], 202);
    lambda.wait_for(&["py".to_owned()]);
    let Some(node) = javascript() else { return };
    let mut script = Command::new(node);
    script.arg(js("invoke.mjs")).arg(daemon.endpoint_url());
    python::aws_environment(&mut script);
    let cases =
        [("async".to_owned(), "InvokeAsync", json!({ "FunctionName": "orders", "Payload": "{\"id\":\"js\"}" }))];
    assert_eq!(shown(script, &cases)[0]["shown"]["status"], 202);
    lambda.wait_for(&["js".to_owned()]);
}

pub fn js(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/js").join(name)
}

/// The path of Node. `None`, after a message, if it is missing. Its packages are required: `make test` installs them.
pub fn javascript() -> Option<String> {
    tool("node", "nodejs")?;
    let packages = js("node_modules/@aws-sdk/client-lambda");
    assert!(packages.is_dir(), "{} is not there: run `make test`, which installs it", packages.display());
    Some("node".to_owned())
}
