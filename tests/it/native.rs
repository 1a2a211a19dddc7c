//! Tests the native API and pass-through of the real daemon.

use serde_json::{Value, json};

use crate::rig::daemon::{Daemon, Setup, invoke_path, scratch};
use crate::rig::http::{self, Response};
use crate::rig::lambda::Lambda;
use crate::rig::{eventually, lasting_port};
use crate::schemathesis;

fn send(daemon: &Daemon, content_type: &str, body: &str) -> Response {
    http::request(daemon.ingest, "POST", "/v1/events", &[("Content-Type", content_type)], body.as_bytes())
}

fn state(daemon: &Daemon, id: &Value) -> Response {
    http::get(daemon.ingest, &format!("/v1/events/{}", id.as_str().unwrap()))
}

#[test]
fn a_batch_is_delivered_and_shown_until_it_is() {
    let (_scratch, state_dir) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state_dir).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let batch = "{\"function\":\"orders\",\"payload\":{\"id\":\"one\"},\"idempotency_key\":\"k\"}\n\
                 {\"function\":\"orders\",\"payload\":{\"id\":\"late\"},\"delay\":\"1h\"}\n\
                 {\"function\":\"or ders\"}\n\
                 {\"function\":\"orders\",\"payload\":{\"id\":\"one\"},\"idempotency_key\":\"k\"}\n";
    let reply = send(&daemon, "application/x-ndjson", batch);
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((reply.status, lines.len()), (207, 4), "{reply:?}");
    assert_eq!(lines[2]["status"], 400);
    assert_eq!((&lines[3]["duplicate"], &lines[3]["id"]), (&json!(true), &lines[0]["id"]));

    let throttled = eventually("the event is throttled once", || {
        let shown = state(&daemon, &lines[0]["id"]).json();
        (shown["last_error"]["code"] == "TooManyRequestsException").then_some(shown)
    });
    assert_eq!(throttled["charged"], 0, "a throttle is no event's fault");
    assert!(throttled["attempts"].as_u64() >= Some(1), "{throttled}");
    assert_eq!(state(&daemon, &lines[1]["id"]).json()["state"], "scheduled");

    lambda.take_all();
    lambda.wait_for(&["one".to_owned()]);
    let end = eventually("the delivered event has left the store", || {
        let shown = state(&daemon, &lines[0]["id"]).json();
        (shown["state"] == "done").then_some(shown)
    });
    assert_eq!(end["end"]["outcome"], "delivered", "{end}");
    assert_eq!(daemon.stored(), 1.0, "the late one waits");
    assert_eq!(lambda.taken().get("one"), Some(&1));
}

#[test]
fn an_event_that_expires_before_lambda_takes_it_is_buried() {
    let (_scratch, state_dir) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state_dir).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let soon = std::time::SystemTime::now() + std::time::Duration::from_millis(1_500);
    let soon = soon.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let event = format!("{{\"function\":\"orders\",\"payload\":{{}},\"expires_at\":{soon}}}");
    let accepted = send(&daemon, "application/json", &event).json();
    let shown = eventually("the event is buried", || {
        let shown = state(&daemon, &accepted["id"]).json();
        (shown["state"] == "buried").then_some(shown)
    });
    assert_eq!(shown["reason"], "event-age-exceeded");
}

#[test]
fn the_openapi_document_is_served() {
    let (_scratch, state_dir) = scratch();
    let daemon = Setup::new(&state_dir).start();
    let document = http::get(daemon.ingest, "/v1/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(
        document["paths"]["/v1/events"]["post"].is_object() && document["paths"]["/v1/events/{id}"]["get"].is_object()
    );
}

#[test]
fn schemathesis_finds_nothing_between_the_openapi_document_and_the_door() {
    let (scratch, state_dir) = scratch();
    let lambda = Lambda::start();
    // So that events stay stored until it asks for them.
    lambda.throttle_all();
    let daemon = Setup::new(&state_dir).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let document = format!("{}/v1/openapi.json", daemon.endpoint_url());
    schemathesis::finds_nothing(scratch.path(), "openapi", &document, (3, 5));
    assert!(daemon.stored() > 0.0, "some of what it sent was valid");
}

#[test]
fn a_call_that_cannot_reach_lambda_is_answered_503_and_events_are_still_taken() {
    let (_scratch, state_dir) = scratch();
    let nobody = format!("http://127.0.0.1:{}", lasting_port());
    let daemon = Setup::new(&state_dir).set("lambda.endpoint_url", &nobody).start();
    let reply = http::request(daemon.ingest, "POST", &invoke_path("orders"), &[], b"{}");
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (503, Some("ServiceException")), "{reply:?}");
    assert!(reply.header("retry-after").is_some() && reply.header("x-amz-retry-after").is_some());
    daemon.accept("orders", &[], b"{}");
    assert_eq!(daemon.stored(), 1.0);
}

#[test]
fn a_closed_way_through_is_said_in_lambdas_own_word() {
    let (_scratch, state_dir) = scratch();
    let lambda = Lambda::start();
    let setup = Setup::new(&state_dir).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.set("lambda.passthrough", "false").start();
    for kind in ["RequestResponse", "DryRun"] {
        let headers = [("X-Amz-Invocation-Type", kind)];
        let reply = http::request(daemon.ingest, "POST", &invoke_path("orders"), &headers, b"{}");
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (400, Some("ModeNotSupportedException")));
    }
    assert_eq!(lambda.requests(), 0);
}

#[test]
fn all_forms_of_one_function_share_a_lane_once_the_account_is_known() {
    let (_scratch, state_dir) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let setup = Setup::new(&state_dir).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.set("lambda.account_id", "123456789012").start();
    let key = [("Idempotency-Key", "one")];
    let first = daemon.accept("orders", &key, b"{}");
    for form in [
        "orders:%24LATEST",
        "orders?Qualifier=%24LATEST",
        "function%3Aorders",
        "123456789012%3Aorders",
        "123456789012%3Afunction%3Aorders",
        "arn%3Aaws%3Alambda%3Aeu-central-1%3A123456789012%3Afunction%3Aorders",
        "arn:aws:lambda:eu-central-1:123456789012:function:orders",
    ] {
        let (name, query) =
            form.split_once('?').map_or((form, String::new()), |(name, query)| (name, format!("?{query}")));
        let path = format!("{}{query}", invoke_path(name));
        let headers = [("X-Amz-Invocation-Type", "Event"), key[0]];
        let reply = http::request(daemon.ingest, "POST", &path, &headers, b"{}");
        assert_eq!(reply.header("x-amzn-requestid"), Some(first.as_str()), "{form}: {reply:?}");
    }
    let elsewhere = daemon.accept("arn:aws:lambda:eu-central-1:210987654321:function:orders", &key, b"{}");
    assert_ne!(elsewhere, first, "another account's function is another function");
    assert_eq!(daemon.stored(), 2.0);
}

#[test]
fn a_configured_key_is_found_and_carried_to_the_function() {
    let (scratch, state_dir) = scratch();
    let lambda = Lambda::start();
    let config = scratch.path().join("sendoff.toml");
    std::fs::write(&config, "[functions.\"ord*\"]\nkey = \"order.id\"\ninject = \"key\"\ndurable = true\n").unwrap();
    let setup = Setup::new(&state_dir).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.config(&config).start();
    let payload = b"{\"order\":{\"id\":\"o-17\"},\"id\":\"carried\"}";
    let reply = daemon.invoke("orders", &[], payload);
    assert_eq!((reply.status, reply.header("x-sendoff-key-source")), (202, Some("expression")));
    assert_eq!(daemon.invoke("orders", &[], payload).header("x-sendoff-duplicate"), Some("true"));
    lambda.wait_for(&["carried".to_owned()]);
    daemon.wait_until_empty();
    let entry = lambda.taken_entries().pop().expect("an entry");
    let payload = entry.payload.clone().unwrap();
    let name = entry.headers["x-amz-durable-execution-name"].to_str().unwrap();
    assert_eq!(payload, "{\"key\":\"o-17\",\"order\":{\"id\":\"o-17\"},\"id\":\"carried\"}");
    assert_eq!(name, "o-17");
    assert_eq!(lambda.taken().get("carried"), Some(&1));
}
