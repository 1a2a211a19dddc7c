//! Tests InvokeWithResponseStream: sendoff passes the stream from Lambda to each SDK that can read it, while Lambda
//! still writes.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;
use crate::rig::streaming::{STREAM, Step, Streaming, chunk, complete};
use crate::rig::{PATIENCE, http};

const PATH: &str = "/2021-11-15/functions/orders/response-streaming-invocations";

/// Answers to streamed calls of three functions: one works, one fails half way, one does not exist.
fn lambda() -> Streaming {
    let missing = "404 Not Found\r\nContent-Type: application/json\r\nx-amzn-ErrorType: ResourceNotFoundException\r\n\
                   x-amzn-RequestId: 0b8f4c2e-6f5e-4f0a-9c62-8d9be4a1c1f7";
    let body = r#"{"Type":"User","Message":"Function not found: missing"}"#;
    let log = r#"{"LogResult":"U1RBUlQ="}"#;
    let failed = r#"{"ErrorCode":"Unhandled","ErrorDetails":"out of stock","LogResult":"U1RBUlQ="}"#;
    Streaming::start(vec![
        (
            "/2021-11-15/functions/orders",
            vec![STREAM, chunk("first, "), chunk("x".repeat(1 << 20)), chunk("last"), complete(log), Step::End],
        ),
        ("/2021-11-15/functions/failing", vec![STREAM, chunk("half of"), complete(failed), Step::End]),
        ("/2021-11-15/functions/missing", vec![Step::Head(missing), Step::Bytes(body.into()), Step::End]),
    ])
}

/// The options of a streamed call, as name and arguments.
fn streamed() -> Vec<(String, Value)> {
    let of = |function: &str| json!({ "FunctionName": function, "Payload": "{\"k\":1}" });
    let every = json!({
        "FunctionName": "orders", "Payload": "{}", "InvocationType": "RequestResponse", "LogType": "Tail",
        "ClientContext": CONTEXT, "Qualifier": "7", "TenantId": "blue team",
    });
    [("plain", of("orders")), ("every option", every), ("failing", of("failing")), ("missing", of("missing"))]
        .map(|(name, args)| (name.to_owned(), args))
        .to_vec()
}

/// Runs `script` against Lambda and against sendoff in front of it. Both must show the same, with Lambda's words.
fn compare_streams(operation: &'static str, script: impl Fn(&str) -> Command) {
    let (_scratch, state) = scratch();
    let lambda = lambda();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let cases: Vec<_> = streamed().into_iter().map(|(name, args)| (name, operation, args)).collect();
    let direct = shown(script(&lambda.endpoint_url()), &cases);
    let through = shown(script(&daemon.endpoint_url()), &cases);
    assert_eq!(through, direct, "sendoff left, Lambda right");
    let whole = format!("first, {}last", "x".repeat(1 << 20));
    for (at, streamed, end) in
        [(0, whole.as_str(), "U1RBUlQ="), (1, &whole, "U1RBUlQ="), (2, "half of", "out of stock")]
    {
        assert_eq!(through[at]["shown"]["streamed"], streamed);
        assert!(through[at]["shown"]["complete"].to_string().contains(end), "{}", through[at]["shown"]["complete"]);
    }
    assert_eq!(through[3]["shown"]["status"], 404);
    let sent = |head: &String, name: &str| {
        let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let heads = lambda.heads();
    assert_eq!(heads.len(), 2 * cases.len());
    for name in ["x-amz-log-type", "x-amz-client-context", "x-amz-tenant-id", "x-amz-invocation-type"] {
        let (direct, through) = (sent(&heads[1], name), sent(&heads[1 + cases.len()], name));
        assert!(direct.is_some() && through == direct, "{name}: {through:?}, not {direct:?}");
    }
    assert!(heads[1 + cases.len()].starts_with(&format!("POST {PATH}?Qualifier=7 ")));
}

#[test]
fn boto3_reads_a_response_stream_as_from_lambda_itself() {
    compare_streams("invoke_with_response_stream", |endpoint_url| {
        let mut command = python::script("invoke.py");
        command.arg(endpoint_url);
        command
    });
}

#[test]
fn the_javascript_sdk_reads_a_response_stream_as_from_lambda_itself() {
    let Some(node) = javascript() else { return };
    compare_streams("InvokeWithResponseStream", |endpoint_url| {
        let mut command = Command::new(&node);
        command.arg(js("invoke.mjs")).arg(endpoint_url);
        python::aws_environment(&mut command);
        command
    });
}

/// What the Rust SDK shows of one streamed call.
async fn shown_by_rust(client: &aws_sdk_lambda::Client, args: &Value) -> (String, String) {
    use aws_sdk_lambda::types::InvokeWithResponseStreamResponseEvent::{InvokeComplete, PayloadChunk};
    let payload = args["Payload"].as_str().unwrap().as_bytes().to_vec();
    let call = client
        .invoke_with_response_stream()
        .function_name(args["FunctionName"].as_str().unwrap())
        .payload(aws_sdk_lambda::primitives::Blob::new(payload));
    let mut answer = match call.send().await {
        Ok(answer) => answer,
        Err(error) => {
            return (String::new(), format!("{:?}", aws_sdk_lambda::error::ProvideErrorMetadata::code(&error)));
        }
    };
    let (mut streamed, mut end) = (String::new(), String::new());
    while let Some(event) = answer.event_stream.recv().await.unwrap() {
        if let PayloadChunk(part) = &event {
            streamed += std::str::from_utf8(part.payload().unwrap().as_ref()).unwrap();
        } else if let InvokeComplete(complete) = &event {
            end = format!("{complete:?}");
        } else {
            panic!("{event:?}");
        }
    }
    (streamed, end)
}

#[test]
fn the_rust_sdk_reads_a_response_stream_as_from_lambda_itself() {
    let (_scratch, state) = scratch();
    let lambda = lambda();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (direct, through) = (rust::client(&lambda.endpoint_url(), 1), rust::client(&daemon.endpoint_url(), 1));
        for (name, args) in streamed() {
            let (direct, through) = (shown_by_rust(&direct, &args).await, shown_by_rust(&through, &args).await);
            assert_eq!(through, direct, "{name}: sendoff left, Lambda right");
            assert!(!through.1.is_empty(), "{name}: it has an end or an error");
        }
    });
}

/// Sends a call of `path` and does not read the answer.
fn call(daemon: &Daemon, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.ingest).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[&http::head(daemon.ingest, "POST", path, &[], 2)[..], b"{}"].concat()).unwrap();
    stream
}

/// The peak resident memory of the daemon, in bytes.
fn peak_memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1_024
}

#[test]
fn a_streams_first_bytes_arrive_before_its_last_are_written_and_are_not_kept_in_memory() {
    const PIECES: usize = 64;
    let piece = || Step::Bytes(vec![b'x'; 1 << 20]);
    let mut steps = vec![STREAM];
    steps.extend((0..PIECES).map(|_| piece()));
    steps.extend([Step::Gate, piece(), Step::End]);
    let lambda = Streaming::start(vec![("/", steps)]);
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let before = peak_memory(&daemon);
    let mut stream = call(&daemon, PATH);
    let mut read = 0;
    let mut part = vec![0; 64 << 10];
    while read < PIECES << 20 {
        let more = stream.read(&mut part).unwrap();
        assert_ne!(more, 0, "ended after {read} bytes, before Lambda had ended");
        read += more;
    }
    let grown = peak_memory(&daemon) - before;
    assert!(grown < 16 << 20, "a stream of {PIECES} MiB took {grown} bytes of memory");
    lambda.go_on();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.len() >= 1 << 20 && rest.ends_with(b"0\r\n\r\n"), "the last piece, and the end");
}

#[test]
fn a_caller_who_leaves_a_call_or_a_stream_ends_it_at_lambda() {
    let lambda = Streaming::start(vec![
        ("/2021-11-15/", vec![STREAM, chunk("first"), Step::UntilLeft]),
        ("/2015-03-31/", vec![Step::UntilLeft]),
    ]);
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let mut streaming = call(&daemon, PATH);
    let mut head = [0; 12];
    streaming.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    drop(streaming);
    lambda.wait_until_left();

    let waiting = call(&daemon, &crate::rig::daemon::invoke_path("orders"));
    crate::rig::eventually("the call is at Lambda", || (lambda.heads().len() == 2).then_some(()));
    drop(waiting);
    lambda.wait_until_left();
}
