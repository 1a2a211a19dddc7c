//! Tests a lost 202: the event is stored, but the client never learns it. sendoff recognises the SDK's retry.

use super::*;
use crate::rig::lossy;

/// Sends one event through a proxy that discards the first answer. Returns the id that the client gets.
fn told(daemon: &Daemon, lambda: &Lambda, id: &str, invoke: impl Fn(&str) -> String) {
    let proxy = lossy::proxy(daemon.ingest, 1);
    let told = invoke(&format!("http://{proxy}"));
    lambda.wait_for(&[id.to_owned()]);
    daemon.wait_until_empty();
    assert_eq!(lambda.taken().get(id), Some(&1), "{id} is delivered once");
    let logged = daemon.scrape().sum("sendoff_ingest_duplicates_total", &[("key_source", "sdk-invocation-id")]);
    assert!(logged >= 1.0, "{id}: the retry was recognised");
    assert!(told.len() == 36, "the client is told an event's id: {told}");
}

#[test]
fn a_lost_202_is_repeated_by_each_sdk_and_delivered_once() {
    let (_scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    told(&daemon, &lambda, "boto3", |endpoint_url| {
        let code = "import boto3, sys\n\
                    answer = boto3.client('lambda', endpoint_url=sys.argv[1]).invoke(FunctionName='orders',\n\
                    InvocationType='Event', Payload='{\"id\":\"boto3\"}')\n\
                    assert answer['ResponseMetadata']['RetryAttempts'] == 1, answer\n\
                    print(answer['ResponseMetadata']['RequestId'])";
        let mut command = Command::new(python::program("python"));
        python::aws_environment(command.args(["-c", code, endpoint_url]));
        String::from_utf8(python::run(&mut command).stdout).unwrap().trim().to_owned()
    });
    told(&daemon, &lambda, "cli", |endpoint_url| {
        let mut command = python::aws(endpoint_url);
        command.args(["lambda", "invoke", "--function-name", "orders", "--invocation-type", "Event"]);
        command.args(["--payload", "{\"id\":\"cli\"}", "--debug", "/dev/null"]);
        let output = python::run(&mut command);
        let debug = String::from_utf8_lossy(&output.stderr).into_owned();
        let (_, after) =
            debug.rsplit_once("x-sendoff-event-id': '").expect("the answer's headers are in the debug log");
        after[..36].to_owned()
    });
    told(&daemon, &lambda, "rust", |endpoint_url| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(
            rust::client(endpoint_url, 3)
                .invoke()
                .function_name("orders")
                .invocation_type(aws_sdk_lambda::types::InvocationType::Event)
                .payload(aws_sdk_lambda::primitives::Blob::new("{\"id\":\"rust\"}"))
                .send(),
        );
        aws_sdk_lambda::operation::RequestId::request_id(&answer.unwrap()).unwrap().to_owned()
    });
    let Some(node) = javascript() else { return };
    told(&daemon, &lambda, "js", |endpoint_url| {
        let code = "import('@aws-sdk/client-lambda').then(async (lambda) => {\n\
                    const client = new lambda.LambdaClient({ endpoint: process.argv[1] });\n\
                    const answer = await client.send(new lambda.InvokeCommand({ FunctionName: 'orders',\n\
                    InvocationType: 'Event', Payload: '{\"id\":\"js\"}' }));\n\
                    if (answer.$metadata.attempts !== 2) throw new Error(JSON.stringify(answer.$metadata));\n\
                    console.log(answer.$metadata.requestId); client.destroy(); })";
        let mut command = Command::new(&node);
        python::aws_environment(command.current_dir(js("")).args(["-e", code, endpoint_url]));
        String::from_utf8(python::run(&mut command).stdout).unwrap().trim().to_owned()
    });
}

#[test]
fn the_retry_is_told_the_first_events_id() {
    let (_scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    lambda.throttle_all();
    let sdk = ("amz-sdk-invocation-id", "1f4f1a36-2fe6-4b3b-9d0a-6d6b0a3b7b11");
    let first = daemon.accept("orders", &[sdk], b"{\"id\":\"first\"}");
    let again = daemon.invoke("orders", &[sdk], b"{\"id\":\"first\"}");
    assert_eq!(again.header("x-amzn-requestid"), Some(first.as_str()));
    assert_eq!(again.header("x-sendoff-duplicate"), Some("true"));
    assert_eq!(daemon.stored(), 1.0);
}
