use super::*;
use crate::aws::testing::{Server, refusing_address, say, settings, shared};
use crate::dispatch::Failure;

fn answer(status: u16, code: Option<&str>) -> Reply {
    Reply::Answer(Answer { status, code: code.map(str::to_owned), message: "so it is".into(), ..Answer::default() })
}

#[track_caller]
fn remedy(verdict: Verdict) -> String {
    let Verdict::Missing { remedy, .. } = verdict else { panic!("{verdict:?}") };
    remedy
}

#[test]
fn a_function_is_proven_by_success_alone() {
    const ARN: &str = "arn:aws:lambda:eu-central-1:123456789012:function:orders";
    assert!(matches!(judge_function(&answer(204, None), ARN), Verdict::Proven(_)));
    let denied = remedy(judge_function(&answer(403, Some("AccessDeniedException")), ARN));
    assert!(denied.contains("lambda:InvokeFunction on arn:aws:lambda:") && denied.contains("deploy/iam/deliver.json"));
    assert!(remedy(judge_function(&answer(404, Some("ResourceNotFoundException")), ARN)).starts_with("create arn:"));
    assert!(remedy(judge_function(&answer(403, Some("ExpiredTokenException")), ARN)).contains("renew"));
    assert!(remedy(judge_function(&answer(403, Some("InvalidSignatureException")), ARN)).contains("clock"));
    for (status, code) in [(429, Some("TooManyRequestsException")), (500, Some("ServiceException")), (502, None)] {
        assert!(matches!(judge_function(&answer(status, code), ARN), Verdict::Unknown(_)), "{status}");
    }
    let failure = |kind| Failure { kind, message: "so it is".into() };
    assert!(remedy(judge_function(&Reply::NotSent(failure(FailureKind::Credentials)), ARN)).contains("credentials"));
    assert!(remedy(judge_function(&Reply::NotSent(failure(FailureKind::Connect)), ARN)).contains("endpoint_url"));
    assert!(remedy(judge_function(&Reply::Lost(failure(FailureKind::ReadTimeout)), ARN)).contains("network"));
}

#[test]
fn a_queue_s_refusal_names_the_action_and_the_policy_that_grants_it() {
    const ARN: &str = "arn:aws:sqs:eu-central-1:123456789012:dead";
    let judged = |code: &str| {
        judge_queue(
            Err(Trouble { code: code.into(), message: String::new(), transient: false }),
            "sqs:SendMessage",
            ARN,
            Role::DeadLetters,
        )
    };
    assert_eq!(judge_queue(Ok("there".into()), "a", ARN, Role::Receive), Verdict::Proven("there".into()));
    let denied = remedy(judged("AccessDeniedException"));
    assert!(denied.contains("sqs:SendMessage on arn:aws:sqs:") && denied.contains("deploy/iam/dead-letter.json"));
    assert!(remedy(judged("AWS.SimpleQueueService.NonExistentQueue")).contains("dead_letter.queue_url"));
    assert!(
        remedy(judged("KMS.AccessDeniedException")).contains("kms:") || remedy(judged("KmsDisabled")).contains("kms:")
    );
    assert!(remedy(judged("unreachable")).contains("sqs.endpoint_url"));
    assert!(remedy(judged("InvalidClientTokenId")).contains("access key"));
    assert!(matches!(judged("Throttling"), Verdict::Unknown(_)));
}

#[test]
fn a_hand_off_queue_must_keep_its_events() {
    let settings =
        |days: u64| QueueSettings { retention: Some(Duration::from_secs(days * 86_400)), ..Default::default() };
    let judged = |settings: &QueueSettings| judge_keeping(settings).map(|(_, verdict)| verdict);
    let [retention, policy, encryption] = judged(&settings(3));
    assert!(remedy(retention).contains("1209600"));
    assert!(matches!(policy, Verdict::Proven(_)), "{policy:?}");
    assert!(matches!(encryption, Verdict::Unknown(ref why) if why.contains("SqsManagedSseEnabled")), "{encryption:?}");
    let good = QueueSettings { is_encrypted_by_sqs: true, ..settings(4) };
    assert!(judged(&good).iter().all(|verdict| matches!(verdict, Verdict::Proven(_))));
    let policy = Some("{\"maxReceiveCount\":3}".to_owned());
    let moves = QueueSettings { redrive_policy: policy, key: Some("alias/orders".to_owned()), ..good };
    let [_, policy, encryption] = judged(&moves);
    assert!(matches!(policy, Verdict::Unknown(ref why) if why.contains("maxReceiveCount")), "{policy:?}");
    assert!(matches!(encryption, Verdict::Unknown(ref why) if why.contains("alias/orders")), "{encryption:?}");
}

#[test]
fn names_of_functions_in_all_their_forms_lead_to_an_arn() {
    for (text, region, address, arn) in [
        ("orders", None, "orders", "arn:aws:lambda:own:1:function:orders"),
        ("orders:prod", None, "orders:prod", "arn:aws:lambda:own:1:function:orders:prod"),
        ("us-east-1/orders", Some("us-east-1"), "orders", "arn:aws:lambda:us-east-1:1:function:orders"),
        ("2/orders", None, "2:function:orders", "arn:aws:lambda:own:2:function:orders"),
        (
            "us-east-1/2/orders:a",
            Some("us-east-1"),
            "2:function:orders:a",
            "arn:aws:lambda:us-east-1:2:function:orders:a",
        ),
        (
            "arn:aws:lambda:us-east-1:2:function:f",
            Some("us-east-1"),
            "arn:aws:lambda:us-east-1:2:function:f",
            "arn:aws:lambda:us-east-1:2:function:f",
        ),
    ] {
        let target = Target::of(text);
        assert_eq!((target.region.as_deref(), target.address.as_str()), (region, address), "{text}");
        assert_eq!(target.arn(region.or(Some("own")), Some("1")), arn, "{text}");
    }
    assert_eq!(Target::of("orders").arn(None, None), "arn:aws:lambda:REGION:ACCOUNT:function:orders");
}

#[test]
fn urls_of_queues_lead_to_an_arn() {
    for (queue, arn) in [
        ("https://sqs.us-east-1.amazonaws.com/123456789012/q", "arn:aws:sqs:us-east-1:123456789012:q"),
        ("http://127.0.0.1:1/123456789012/q.fifo", "arn:aws:sqs:own:123456789012:q.fifo"),
        ("http://127.0.0.1:1/q", "arn:aws:sqs:own:ACCOUNT:q"),
        ("arn:aws:sqs:eu-west-1:123456789012:q", "arn:aws:sqs:eu-west-1:123456789012:q"),
    ] {
        assert_eq!(Queue::of(queue, Some("own")).arn(), arn);
    }
}

#[tokio::test]
async fn a_dry_run_is_asked_for_and_nothing_is_sent_with_it() {
    let server = Server::start([say("204 No Content", &[], "")]).await;
    let probe = Probe::new(&shared().await, &server.settings(), &server.settings()).unwrap();
    let finding = probe.function(&Target::of("orders:prod")).await;
    assert!(!finding.is_missing(), "{finding:?}");
    let [seen] = &server.seen()[..] else { panic!("one request") };
    assert_eq!((seen.header("x-amz-invocation-type"), seen.body.len()), (Some("DryRun"), 0));
    assert!(seen.head.starts_with("POST /2015-03-31/functions/orders%3Aprod/invocations"), "{}", seen.head);
}

#[tokio::test]
async fn the_right_to_send_is_asked_for_with_a_batch_that_no_queue_takes() {
    let refusal = r#"{"__type":"com.amazonaws.sqs#BatchEntryIdsNotDistinct","message":"Id a repeated."}"#;
    let server = Server::start([
        say("200 OK", &[], r#"{"Attributes":{"MessageRetentionPeriod":"1209600","MaximumMessageSize":"1048576"}}"#),
        say("400 Bad Request", &[], refusal),
    ])
    .await;
    let probe = Probe::new(&shared().await, &server.settings(), &server.settings()).unwrap();
    let findings = probe.queue(&format!("{}/123456789012/dead", server.url), Role::DeadLetters).await;
    assert!(findings.iter().all(|finding| matches!(finding.verdict, Verdict::Proven(_))), "{findings:?}");
    let batch: serde_json::Value = serde_json::from_slice(&server.seen()[1].body).unwrap();
    let ids: Vec<_> = batch["Entries"].as_array().unwrap().iter().map(|entry| entry["Id"].clone()).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1], "equal ids are what SQS refuses the whole batch for");
}

#[tokio::test]
async fn what_cannot_be_reached_is_missing_and_said_so() {
    let nowhere = refusing_address();
    let probe = Probe::new(&shared().await, &settings(&nowhere.url), &settings(&nowhere.url)).unwrap();
    assert!(probe.function(&Target::of("orders")).await.is_missing());
    let findings = probe.queue(&format!("{}/123456789012/dead", nowhere.url), Role::DeadLetters).await;
    assert!(findings.iter().all(Finding::is_missing), "{findings:?}");
}
