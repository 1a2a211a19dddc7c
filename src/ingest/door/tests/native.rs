//! The native door, and the rules for keys at both doors.

use serde_json::{Value, json};

use super::*;
use crate::ingest::openapi;
use crate::ingest::rules::{KeyExpression, Rule, Rules};

async fn send(door: &Door<Kept>, headers: &[(&str, &str)], body: &str) -> Reply {
    ask(door, post("/v1/events", headers, body)).await
}

fn lines(reply: &Reply) -> Vec<Value> {
    reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

/// Paused, as the delay counts from when the request was read, and that is not when the event gets its id.
#[tokio::test(start_paused = true)]
async fn an_event_is_answered_with_its_id_and_a_repeat_with_the_firsts() {
    let (door, kept) = door(settings());
    let event = r#"{"function":"orders","payload":{"a": 1},"idempotency_key":"k","delay":"10m"}"#;
    let first = send(&door, &[], event).await;
    let id = kept.events.lock().unwrap()[0].id.to_string();
    assert_eq!((first.status, first.header("x-sendoff-event-id")), (202, id.as_str()));
    let said: Value = serde_json::from_str(&first.body).unwrap();
    assert_eq!(said, json!({ "status": 202, "id": id, "duplicate": false, "key_source": "field" }));
    let stored = kept.events.lock().unwrap()[0].clone();
    assert_eq!(stored.payload, r#"{"a": 1}"#);
    assert_eq!(stored.deliver_at.unwrap().since(stored.accepted_at), Duration::from_secs(600));
    let again = send(&door, &[("idempotency-key", "k")], r#"{"function":"orders","payload":{"a": 1}}"#).await;
    let said: Value = serde_json::from_str(&again.body).unwrap();
    assert_eq!(said, json!({ "status": 202, "id": id, "duplicate": true, "key_source": "header" }));
    assert_eq!(again.header("x-sendoff-duplicate"), "true");
}

#[tokio::test]
async fn an_sdks_id_means_nothing_at_the_native_door() {
    let (door, kept) = door(settings());
    for _ in 0..2 {
        let reply = send(&door, &[("amz-sdk-invocation-id", "5f2c")], r#"{"function":"orders"}"#).await;
        assert_eq!(reply.header("x-sendoff-key-source"), "minted");
    }
    assert_eq!(kept.payloads().len(), 2);
}

#[tokio::test]
async fn a_batch_has_one_append_and_an_answer_for_each_event() {
    let (door, kept) = door(settings());
    let batch = "{\"function\":\"a\",\"payload\":1,\"idempotency_key\":\"k\"}\n\n\
                 {\"function\":\"a\",\"payload\":1,\"idempotency_key\":\"k\"}\n\
                 {\"function\":\"a\",\"payload\":2,\"idempotency_key\":\"k\"}\n\
                 {\"function\":\"a b\"}\n\
                 not json\n\
                 {\"function\":\"b\",\"payload\":3}";
    let reply = send(&door, &[NDJSON], batch).await;
    let said = lines(&reply);
    assert_eq!((reply.status, reply.header("content-type")), (207, "application/x-ndjson"));
    let statuses: Vec<_> = said.iter().map(|line| line["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 202, 422, 400, 400, 202]);
    assert_eq!((&said[1]["id"], &said[1]["duplicate"]), (&said[0]["id"], &json!(true)));
    assert_eq!((&said[2]["first"], &said[2]["code"]), (&said[0]["id"], &json!("IdempotencyConflictException")));
    assert_eq!(said[3]["code"], "ValidationException");
    assert_eq!(kept.payloads(), ["1", "3"]);
    assert_eq!(kept.appends.load(Ordering::Relaxed), 1);
    let all = send(&door, &[], "{\"function\":\"a\"}\n{\"function\":\"b\"}\n").await;
    assert_eq!((all.status, lines(&all).len()), (202, 2));
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_stores_nothing() {
    let (door, kept) = door(settings());
    let many = "{\"function\":\"a\"}\n".repeat(1_001);
    let large = format!("{{\"function\":\"a\",\"payload\":\"{}\"}}", "x".repeat(8 << 20));
    for (headers, body, status) in [
        (&[NDJSON][..], many.as_str(), 413),
        (&[NDJSON], &large, 413),
        (&[NDJSON], "\n\n", 400),
        (&[NDJSON, ("idempotency-key", "k")], "{\"function\":\"a\"}", 400),
        (&[("content-type", "application/json")], "{\"function\":\"a\"}\n{\"function\":\"a\"}", 400),
        (&[], "", 400),
        (&[], "[]", 400),
    ] {
        let reply = send(&door, headers, body).await;
        assert_eq!(reply.status, status, "{}", reply.body);
        assert!(!reply.header("x-amzn-errortype").is_empty());
    }
    *kept.trouble.lock().unwrap() = Some(Trouble::Poisoned);
    assert_eq!(send(&door, &[NDJSON], "{\"function\":\"a\"}").await.status, 503);
    *kept.trouble.lock().unwrap() = Some(Trouble::Full);
    let full = lines(&send(&door, &[NDJSON], "{\"function\":\"a\"}").await);
    assert_eq!(full[0]["status"], 503);
    assert!(full[0]["retry_after_ms"].as_u64().unwrap() >= 2_000);
    assert!(kept.is_empty());
}

#[tokio::test]
async fn a_key_conflict_is_422_and_names_the_first() {
    let (door, _kept) = door(settings());
    let first = send(&door, &[], r#"{"function":"f","payload":1,"idempotency_key":"secret"}"#).await;
    let reply = send(&door, &[], r#"{"function":"f","payload":2,"idempotency_key":"secret"}"#).await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (422, "IdempotencyConflictException"));
    assert_eq!(reply.header("x-sendoff-event-id"), first.header("x-sendoff-event-id"));
    assert!(!reply.body.contains("secret"));
}

#[tokio::test]
async fn an_events_state_is_shown_without_its_payload_and_key() {
    let (door, kept) = door(settings());
    let event = r#"{"function":"orders","payload":"hidden-payload","idempotency_key":"hidden-key"}"#;
    let id = send(&door, &[], event).await.header("x-sendoff-event-id").to_owned();
    let get = |path: String| ask(&door, Request::get(path).body(Full::default()).unwrap());
    let reply = get(format!("/v1/events/{id}")).await;
    let state: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!((reply.status, &state["state"], &state["attempts"]), (200, &json!("ready"), &json!(0)));
    assert!(!reply.body.contains("hidden"), "{}", reply.body);
    kept.events.lock().unwrap().clear();
    let gone = get(format!("/v1/events/{id}")).await;
    assert_eq!((gone.status, gone.header("x-amzn-errortype")), (404, "ResourceNotFoundException"));
    assert_eq!(get("/v1/events/7".to_owned()).await.status, 400);
    for (method, path, allow) in [("GET", "/v1/events", "POST"), ("DELETE", "/v1/events/7", "GET")] {
        let reply = ask(&door, Request::builder().method(method).uri(path).body(Full::default()).unwrap()).await;
        assert_eq!((reply.status, reply.header("allow")), (405, allow));
    }
    assert_eq!(get("/v1/functions".to_owned()).await.status, 404);
}

#[tokio::test]
async fn the_openapi_document_is_the_one_that_was_reviewed() {
    let (door, _kept) = door(settings());
    let reply = ask(&door, Request::get("/v1/openapi.json").body(Full::default()).unwrap()).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"));
    assert_eq!(reply.body, openapi::document());
    let golden = include_str!("../../../../tests/golden/openapi.json");
    assert_eq!(
        reply.body.trim(),
        golden.trim(),
        "if this is meant: curl http://127.0.0.1:9477/v1/openapi.json > tests/golden/openapi.json"
    );
}

fn ruled(rule: Rule) -> (Door<Kept>, Kept) {
    let (door, kept) = door(settings());
    (door.ruled(Rules { default: Rule::default(), functions: vec![("ord*".to_owned(), rule)] }), kept)
}

#[tokio::test]
async fn a_functions_expression_finds_the_key_at_both_doors() {
    let (door, kept) = ruled(Rule { key: Some(KeyExpression::parse("order_id").unwrap()), ..Rule::default() });
    let first = event(&door, &[("amz-sdk-invocation-id", "1")], r#"{"order_id":"o-1"}"#).await;
    let again = event(&door, &[("amz-sdk-invocation-id", "2")], r#"{"order_id":"o-1"}"#).await;
    assert_eq!(first.header("x-sendoff-key-source"), "expression");
    assert_eq!(again.header("x-amzn-requestid"), first.header("x-amzn-requestid"));
    let native = send(&door, &[], r#"{"function":"orders","payload":{"order_id":"o-1"}}"#).await;
    assert_eq!((native.status, native.header("x-sendoff-duplicate")), (202, "true"));
    let conflict = event(&door, &[], r#"{"order_id":"o-1","more":1}"#).await;
    assert_eq!(conflict.status, 409);
    assert_eq!(kept.payloads().len(), 1);
}

#[tokio::test]
async fn the_carried_key_is_stored_with_the_event() {
    let (door, kept) = ruled(Rule { key: None, durable: true, inject: Some("id".to_owned()) });
    let key = [("idempotency-key", "order-1")];
    let first = event(&door, &key, "{\"a\": 1}").await;
    let stored = kept.events.lock().unwrap()[0].clone();
    assert_eq!(stored.payload, "{\"id\":\"order-1\",\"a\": 1}");
    assert_eq!(stored.carried.durable_execution_name.as_deref(), Some("order-1"));
    let again = event(&door, &key, "{\"a\": 1}").await;
    assert_eq!(again.header("x-amzn-requestid"), first.header("x-amzn-requestid"), "the same bytes again");
    let grown = format!("{{\"a\":\"{}\"}}", "x".repeat(PAYLOAD_BYTES_MAX - 8));
    assert_eq!(grown.len(), PAYLOAD_BYTES_MAX);
    assert_eq!(event(&door, &[], &grown).await.status, 413);
    // An SDK id that another payload has: the new key is the one that is carried.
    let sdk = [("amz-sdk-invocation-id", "7")];
    event(&door, &sdk, "{\"b\":1}").await;
    event(&door, &sdk, "{\"b\":2}").await;
    let events = kept.events.lock().unwrap().clone();
    assert_eq!(events.len(), 3);
    for event in &events {
        assert!(String::from_utf8_lossy(&event.payload).contains(&event.key.value), "{:?}", event.payload);
    }
    assert_ne!(events[1].key, events[2].key);
}

proptest! {
    #[test]
    fn no_native_request_panics_or_is_our_fault(
        lines in prop::collection::vec(
            prop_oneof![
                "\\PC{0,40}",
                "\\{\"(function|payload|delay|deliver_at|expires_at|idempotency_key|tenant_id)\":[0-9\"a-z{}:-]{0,12}\\}",
                ("[a-z:$%]{0,12}", "[0-9a-z\"{}\\[\\]]{0,8}", any::<u64>())
                    .prop_map(|(name, payload, at)| format!(
                        "{{\"function\":\"{name}\",\"payload\":{payload},\"deliver_at\":{at}}}"
                    )),
            ],
            0..5,
        ),
        ndjson in any::<bool>(),
    ) {
        let headers: &[_] = if ndjson { &[NDJSON] } else { &[] };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (door, kept) = door(settings());
        let reply = runtime.block_on(send(&door, headers, &lines.join("\n")));
        prop_assert!(reply.status < 500, "{}: {}", reply.status, reply.body);
        let accepted = reply.body.matches("\"status\":202").count();
        prop_assert_eq!(accepted, kept.payloads().len());
    }
}
