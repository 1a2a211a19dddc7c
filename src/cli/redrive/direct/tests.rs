use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::clock::UnixMillis;
use crate::config::{Environment, Flags, load};
use crate::dispatch::{Answer as Said, Failure as Unanswered, FailureKind, Reply};

/// A Lambda with scripted answers for each function. Remembers its calls.
#[derive(Clone, Default)]
struct Scripted {
    replies: Arc<Mutex<Vec<(String, Reply)>>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Invoke for Scripted {
    async fn invoke(&self, call: Call) -> Reply {
        let replies = self.replies.lock().unwrap();
        let reply = replies.iter().find(|(function, _)| *function == call.function.address);
        let reply = reply.map_or_else(|| said(202, None), |(_, reply)| reply.clone());
        self.calls.lock().unwrap().push(call);
        reply
    }

    async fn dry_run(&self, _function: crate::event::Function) -> Reply {
        said(204, None)
    }
}

fn said(status: u16, code: Option<&str>) -> Reply {
    Reply::Answer(Said { status, code: code.map(str::to_owned), ..Said::default() })
}

fn door(replies: &[(&str, Reply)]) -> Direct<Scripted> {
    let flags = Flags { state_dir: Some("/s".into()), ..Flags::default() };
    let config = load(&flags, &Environment::default()).unwrap().config;
    let rules = Rules { home: config.ingest.home, redrives_max: 3 };
    let replies = replies.iter().map(|(function, reply)| ((*function).to_owned(), reply.clone())).collect();
    let lambda = Scripted { replies: Arc::new(Mutex::new(replies)), calls: Arc::default() };
    Direct { lambda, rules, clock: Clock::seeded(UnixMillis(1_790_000_000_000), 1), calls_max: 16 }
}

fn letter(function: &str, key: Option<&str>) -> Letter {
    let letter = serde_json::json!({
        "origin": format!("lambda/{function}"), "function": function, "payload_base64": "e30=", "key": key,
        "tenant_id": "blue",
    });
    serde_json::from_value(letter).unwrap()
}

#[tokio::test]
async fn an_event_is_invoked_whole_with_a_key_that_is_the_same_each_time() {
    let door = door(&[]);
    let letters = [letter("orders", Some("order-17")), letter("invoices", None), letter("invoices", None)];
    assert_eq!(door.accept(&letters).await, Ok(vec![Acceptance::Accepted; 3]));
    let calls = door.lambda.calls.lock().unwrap();
    let keys: Vec<&str> = calls.iter().map(|call| call.key.value.as_str()).collect();
    assert_eq!(keys, ["order-17", "lambda/invoices", "lambda/invoices"]);
    for call in calls.iter() {
        assert_eq!((call.payload.clone(), call.mode), (Bytes::from_static(b"{}"), Mode::Event));
        assert_eq!(call.carried.tenant_id.as_deref(), Some("blue"));
    }
}

#[tokio::test]
async fn what_lambda_says_decides_whether_a_message_goes_waits_or_stays() {
    let throttled = Said {
        status: 429,
        code: Some("TooManyRequestsException".into()),
        retry_after: Some(Duration::from_secs(3)),
        ..Said::default()
    };
    let lost = Unanswered { kind: FailureKind::ReadTimeout, message: "no answer".into() };
    let door = door(&[
        ("throttled", Reply::Answer(throttled)),
        ("broken", said(500, Some("ServiceException"))),
        ("lost", Reply::Lost(lost)),
        ("missing", said(404, Some("ResourceNotFoundException"))),
        ("large", said(413, Some("RequestTooLargeException"))),
    ]);
    let names = ["throttled", "broken", "lost", "missing", "large", "sound"];
    let answers = door.accept(&names.map(|name| letter(name, None))).await.unwrap();
    assert!(matches!(&answers[0], Acceptance::Busy { retry_after: Some(time), .. } if *time == Duration::from_secs(3)));
    for waits in &answers[1..3] {
        assert!(matches!(waits, Acceptance::Busy { retry_after: None, .. }), "{waits:?}");
    }
    assert!(matches!(&answers[3], Acceptance::Refused(why) if why.contains("ResourceNotFound")), "{answers:?}");
    assert!(matches!(&answers[4], Acceptance::Refused(why) if why.contains("RequestTooLarge")), "{answers:?}");
    assert_eq!(answers[5], Acceptance::Accepted);
}

#[tokio::test]
async fn the_rules_are_the_daemons() {
    let door = door(&[]);
    let ceiling = Letter { redrives: 3, ..letter("orders", None) };
    let answers = door.accept(&[ceiling, letter("no such:name:at:all", None)]).await.unwrap();
    assert!(matches!(&answers[0], Acceptance::Ceiling(why) if why.contains("redrives_max is 3")), "{answers:?}");
    assert!(matches!(&answers[1], Acceptance::Refused(why) if why.contains("not a function's name")), "{answers:?}");
    assert_eq!(door.lambda.calls.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn credentials_that_do_not_serve_end_it_once_nothing_else_is_taken() {
    let denied = said(403, Some("UnrecognizedClientException"));
    let door = door(&[("orders", denied)]);
    let answers = door.accept(&[letter("orders", None), letter("invoices", None)]).await.unwrap();
    assert!(
        matches!(answers[0], Acceptance::Busy { .. }),
        "what was taken beside it must still be deleted: {answers:?}"
    );
    assert_eq!(answers[1], Acceptance::Accepted);
    let trouble = door.accept(&[letter("orders", None)]).await.unwrap_err();
    assert_eq!((trouble.code.as_str(), trouble.transient), ("lambda", false));
}
