//! Tests the parts alone. If one of these tests fails, others will, too, and sendoff is not at fault.

use serde_json::json;

use crate::rig::lambda::Lambda;
use crate::rig::ministack::MiniStack;
use crate::rig::sender::Sender;
use crate::rig::sqs::Sqs;
use crate::rig::{eventually, lossy, python};

#[test]
fn the_aws_cli_is_there() {
    let output = python::run(python::aws("http://127.0.0.1:1").arg("--version"));
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("aws-cli/1."));
}

#[test]
fn sqs_gives_back_what_boto3_sent() {
    let sqs = Sqs::start();
    let queue_url = sqs.create_queue("parts");
    let send = "import boto3, sys\n\
                boto3.client('sqs', endpoint_url=sys.argv[1]).send_message(QueueUrl=sys.argv[2], MessageBody='{}',\n\
                MessageAttributes={'reason': {'DataType': 'String', 'StringValue': 'refused'}})";
    let mut command = std::process::Command::new(python::program("python"));
    python::aws_environment(command.args(["-c", send, &sqs.endpoint_url(), &queue_url]));
    python::run(&mut command);

    let messages = sqs.take_all(&queue_url);
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0]["Body"], "{}");
    assert_eq!(messages[0]["MessageAttributes"]["reason"]["StringValue"], "refused");
    assert_eq!(sqs.take_all(&queue_url), [json!(null); 0], "taken is gone");
}

#[test]
fn ministack_runs_a_function_that_the_cli_made() {
    let scratch = tempfile::tempdir().unwrap();
    let lambda = MiniStack::start(scratch.path());
    lambda.create_writer("writer", scratch.path(), scratch.path());
    python::run(
        python::aws(&lambda.endpoint_url())
            .args(["lambda", "invoke", "--function-name", "writer", "--invocation-type", "Event"])
            .args(["--payload", r#"{"id":"alone"}"#])
            .arg(scratch.path().join("answer")),
    );
    eventually("the function has run", || scratch.path().join("alone").exists().then_some(()));
}

#[test]
fn boto3_calls_again_when_its_answer_is_swallowed() {
    let scratch = tempfile::tempdir().unwrap();
    let lambda = Lambda::start();
    let proxy = lossy::proxy(lambda.endpoint_url().strip_prefix("http://").unwrap().parse().unwrap(), 1);
    let job = [("orders".to_owned(), "twice".to_owned())];
    let accepted = Sender::start(&format!("http://{proxy}"), 1, scratch.path(), &job).finish();
    assert_eq!(accepted.keys().collect::<Vec<_>>(), ["twice"]);
    assert_eq!(lambda.taken().get("twice"), Some(&2));
}

#[test]
fn the_stand_in_throttles_until_told_otherwise() {
    let scratch = tempfile::tempdir().unwrap();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let jobs: Vec<_> = (0..8).map(|n| (format!("orders-{n}"), format!("id-{n}"))).collect();
    let sender = Sender::start(&lambda.endpoint_url(), 4, scratch.path(), &jobs);
    eventually("boto3 is throttled", || (lambda.requests() > 8).then_some(()));
    assert!(lambda.taken().is_empty());
    lambda.take_all();
    assert_eq!(sender.finish().len(), jobs.len());
    assert!(lambda.taken().values().all(|&times| times == 1));
}
