//! Tests `check-config --online` against an AWS that verifies signatures and policies (MiniStack with AUTH=true).

use serde_json::Value;

use crate::rig::ministack::MiniStack;
use crate::tools::{root, said, sendoff};

/// An access key of a new user without any permission.
fn new_user(stack: &MiniStack, name: &str) -> (String, String) {
    stack.aws(&["iam", "create-user", "--user-name", name]);
    let key = stack.aws(&["iam", "create-access-key", "--user-name", name]);
    let part = |name: &str| key["AccessKey"][name].as_str().unwrap().to_owned();
    (part("AccessKeyId"), part("SecretAccessKey"))
}

/// Gives the user a policy from deploy/.
fn grant(stack: &MiniStack, user: &str, policy: &str) {
    let file = format!("file://{}", root().join("deploy/iam").join(policy).display());
    let words = ["iam", "put-user-policy", "--user-name", user, "--policy-name", policy, "--policy-document", &file];
    stack.aws(&words);
}

/// Runs the check with an access key. Returns its exit code and all output.
fn check(stack: &MiniStack, key: &(String, String), more: &[&str]) -> (i32, String) {
    let queue = format!("{}/123456789012/orders-dlq", stack.endpoint_url());
    let mut command = sendoff();
    command.env("AWS_ENDPOINT_URL", stack.endpoint_url());
    command.env("AWS_ACCESS_KEY_ID", &key.0).env("AWS_SECRET_ACCESS_KEY", &key.1);
    command.args(["check-config", "--online", "--state-dir", "/nowhere", "--set", "functions.orders-new.age_max=1h"]);
    command.args(["--set", &format!("dead_letter.queue_url={queue}")]).args(more);
    let output = command.output().unwrap();
    (output.status.code().unwrap(), said(&output))
}

#[test]
fn what_an_identity_lacks_is_named_with_the_policy_that_grants_it() {
    let scratch = tempfile::tempdir().unwrap();
    let stack = MiniStack::start_guarded(scratch.path());
    stack.create_role();
    // Nothing invokes this function.
    stack.create_function("orders-new", scratch.path(), &[("index.py", "raise RuntimeError('invoked')\n")], &[]);
    stack.aws(&["sqs", "create-queue", "--queue-name", "orders-dlq"]);
    let key = new_user(&stack, "sendoff");

    let (code, said) = check(&stack, &key, &[]);
    assert_eq!(code, 1, "{said}");
    for expected in [
        "ok      identity: arn:aws:iam::123456789012:user/sendoff",
        "MISSING function orders-new",
        "allow lambda:InvokeFunction on arn:aws:lambda:eu-central-1:123456789012:function:orders-new: deploy/iam/deliver.json",
        "allow sqs:GetQueueAttributes on arn:aws:sqs:eu-central-1:123456789012:orders-dlq: deploy/iam/dead-letter.json",
        "allow sqs:SendMessage on arn:aws:sqs:eu-central-1:123456789012:orders-dlq: deploy/iam/dead-letter.json",
        "3 things are missing",
    ] {
        assert!(said.contains(expected), "{expected}:\n{said}");
    }

    // What the check names helps, and the policies from deploy/ suffice.
    grant(&stack, "sendoff", "deliver.json");
    let (code, said) = check(&stack, &key, &[]);
    assert!(
        code == 1 && said.contains("ok      function orders-new") && said.contains("2 things are missing"),
        "{said}"
    );
    grant(&stack, "sendoff", "dead-letter.json");
    // AWS has no action of this name. SendMessage also allows batches (IAM, "Actions defined by Amazon SQS").
    let own = "{\"Version\":\"2012-10-17\",\"Statement\":[{\"Effect\":\"Allow\",\"Action\":\"sqs:SendMessageBatch\",\
        \"Resource\":\"arn:aws:sqs:eu-central-1:123456789012:orders-dlq\"}]}";
    let words =
        ["iam", "put-user-policy", "--user-name", "sendoff", "--policy-name", "ministack", "--policy-document", own];
    stack.aws(&words);
    let (code, said) = check(&stack, &key, &[]);
    // The endpoints, the credentials, the identity, the function, and two checks of the queue.
    assert!(code == 0 && !said.contains("MISSING") && said.matches("\nok ").count() == 6, "{said}");
    let received = ["sqs", "receive-message", "--queue-url"];
    let queue = format!("{}/123456789012/orders-dlq", stack.endpoint_url());
    assert_eq!(stack.aws(&[&received[..], &[queue.as_str()]].concat()), Value::Null, "nothing was sent");

    // A function that does not exist, one that the policy does not name, and a queue that does not exist.
    let (code, said) = check(&stack, &key, &["--function", "orders-gone", "--function", "invoices"]);
    assert!(
        code == 1 && said.contains("create arn:aws:lambda:eu-central-1:123456789012:function:orders-gone"),
        "{said}"
    );
    assert!(said.contains("on arn:aws:lambda:eu-central-1:123456789012:function:invoices"), "{said}");

    let wrong = (key.0.clone(), "wrong".to_owned());
    let (code, said) = check(&stack, &wrong, &[]);
    assert!(code == 1 && said.contains("correct the secret key"), "{said}");
    let unknown = ("AKIAUNKNOWNUNKNOWN12".to_owned(), "wrong".to_owned());
    let (code, said) = check(&stack, &unknown, &[]);
    assert!(code == 1 && said.contains("correct the access key"), "{said}");
}

#[test]
fn hand_off_queues_are_asked_for_what_a_hand_off_needs() {
    let scratch = tempfile::tempdir().unwrap();
    let stack = MiniStack::start_guarded(scratch.path());
    stack.aws(&["sqs", "create-queue", "--queue-name", "orders-handoff"]);
    let key = new_user(&stack, "sendoff");
    let queue = format!("{}/123456789012/orders-handoff", stack.endpoint_url());
    let (to, from) = (format!("handoff.to={queue}"), format!("handoff.receive_queue={queue}"));
    let ask = || check(&stack, &key, &["--set", &to, "--set", &from]);

    let (code, said) = ask();
    assert_eq!(code, 1, "{said}");
    let arn = "arn:aws:sqs:eu-central-1:123456789012:orders-handoff";
    for (action, policy) in [
        ("sqs:GetQueueAttributes", "handoff-send"),
        ("sqs:SendMessage", "handoff-send"),
        ("sqs:ReceiveMessage", "handoff-receive"),
        ("sqs:DeleteMessage", "handoff-receive"),
    ] {
        let expected = format!("allow {action} on {arn}: deploy/iam/{policy}.json");
        assert!(said.contains(&expected), "{expected}:\n{said}");
    }
    grant(&stack, "sendoff", "handoff-send.json");
    grant(&stack, "sendoff", "handoff-receive.json");
    // MiniStack has actions for batches, and AWS has not.
    let own = format!(
        "{{\"Version\":\"2012-10-17\",\"Statement\":[{{\"Effect\":\"Allow\",\"Action\":[\"sqs:SendMessageBatch\",\
         \"sqs:DeleteMessageBatch\"],\"Resource\":\"{arn}\"}}]}}"
    );
    let words =
        ["iam", "put-user-policy", "--user-name", "sendoff", "--policy-name", "ministack", "--policy-document", &own];
    stack.aws(&words);
    let (_, said) = ask();
    for line in [": look: there", ": send: may be sent to", ": receive: may be received from", ": delete: its messages"]
    {
        assert!(said.contains(line), "{line}:\n{said}");
    }
    assert!(!said.contains("MISSING hand-off queue") && !said.contains("MISSING receive queue"), "{said}");
}

#[test]
fn without_credentials_nothing_else_is_asked() {
    let mut command = sendoff();
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.args(["check-config", "--online", "--state-dir", "/nowhere", "--function", "orders"]);
    let output = command.output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("MISSING credentials") && said.contains("docs/iam.md"), "{said}");
    assert!(!said.contains("function orders"), "{said}");
}
