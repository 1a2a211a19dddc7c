//! The parts alone: if one of these fails, so will others, and sendoff is not to blame.

use serde_json::json;

use crate::rig::ministack::MiniStack;
use crate::rig::sqs::Sqs;
use crate::rig::{eventually, python};

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
