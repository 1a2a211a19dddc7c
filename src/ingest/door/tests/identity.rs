//! Who calls, and what that client may do.

use serde_json::{Value, json};

use super::*;
use crate::ingest::client::{Client, Clients, Directory, Ways};

const ORDERS: &str = "token-of-orders-0123456789012345678901234567";
const ADMIN: &str = "token-of-everybody-0123456789012345678901234567";

/// Two clients: one for some functions, and one for everything.
fn directory(required: bool) -> tokio::sync::watch::Receiver<Arc<Directory>> {
    let files = tempfile::tempdir().unwrap();
    let client = |name: &str, functions: &str, calls, token: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, token).unwrap();
        let functions = functions.split(' ').map(str::to_owned).collect();
        let ways = Ways { path_token_file: Some(path.clone()), token_file: Some(path), ..Ways::default() };
        (Client { name: name.to_owned(), functions, calls, hands_over: false }, ways)
    };
    let clients = vec![client("orders", "orders orders-*", false, ORDERS), client("everybody", "*", true, ADMIN)];
    let clients = Clients { required, skew: Duration::from_secs(300), clients };
    let (sender, receiver) = tokio::sync::watch::channel(Arc::new(clients.load().unwrap().1));
    drop(sender);
    receiver
}

fn guarded(required: bool) -> (Door<Kept>, Kept) {
    let (door, kept) = door(settings());
    (door.knowing(Some(directory(required))), kept)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn refused(door: &Door<Kept>, client: &str, reason: &str) -> u64 {
    door.shared.metrics.ingest_client_refused.with_label_values(&[client, reason]).get()
}

#[tokio::test]
async fn a_client_hands_over_events_for_its_own_functions_only() {
    let (door, kept) = guarded(true);
    let event = ("x-amz-invocation-type", "Event");
    let by_path = format!("/c/{ORDERS}{INVOKE}");
    assert_eq!(ask(&door, post(&by_path, &[event], "{}")).await.status, 202);
    let by_header = [event, ("authorization", &bearer(ORDERS))];
    assert_eq!(ask(&door, post(INVOKE, &by_header, "{}")).await.status, 202);
    assert_eq!(kept.payloads().len(), 2);

    let mails = "/2015-03-31/functions/mails/invocations";
    let denied = ask(&door, post(mails, &by_header, "{}")).await;
    assert_eq!((denied.status, denied.header("x-amzn-errortype")), (403, "AccessDeniedException"));
    let said = "User: sendoff/orders is not authorized to perform: lambda:InvokeFunction on resource: mails because \
                clients.orders.functions in sendoff's configuration does not allow it";
    assert_eq!(serde_json::from_str::<Value>(&denied.body).unwrap(), json!({ "Message": said }));
    // Another version is another function, and the account's own region is not.
    for (function, status) in [
        ("orders:prod", 403),
        ("arn%3Aaws%3Alambda%3Aeu-central-1%3A123456789012%3Afunction%3Aorders", 202),
        ("arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Afunction%3Aorders", 403),
        ("orders-eu", 202),
    ] {
        let target = format!("/2015-03-31/functions/{function}/invocations");
        assert_eq!(ask(&door, post(&target, &by_header, "{}")).await.status, status, "{function}");
    }
    // Neither does it make calls.
    let call = ask(&door, post(INVOKE, &[("authorization", &bearer(ORDERS))], "{}")).await;
    assert!(call.status == 403 && call.body.contains("clients.orders.calls"), "{}", call.body);
    assert_eq!((refused(&door, "orders", "not-allowed"), refused(&door, "unknown", "not-allowed")), (4, 0));
    assert_eq!(door.shared.metrics.ingest_client_requests.with_label_values(&["orders"]).get(), 8);
}

#[tokio::test]
async fn strangers_get_lambdas_own_words_and_store_nothing() {
    let (door, kept) = guarded(true);
    let event = ("x-amz-invocation-type", "Event");
    let wrong = bearer(&ORDERS.replace('0', "1"));
    for (target, headers, code, body, reason) in [
        (
            INVOKE.to_owned(),
            vec![event],
            "MissingAuthenticationTokenException",
            r#"{"message":"Missing Authentication Token"}"#,
            "no-credentials",
        ),
        (
            INVOKE.to_owned(),
            vec![event, ("authorization", wrong.as_str())],
            "UnrecognizedClientException",
            r#"{"message":"The security token included in the request is invalid."}"#,
            "unknown-credentials",
        ),
        (
            format!("/c/{}{INVOKE}", ORDERS.to_uppercase()),
            vec![event],
            "UnrecognizedClientException",
            r#"{"message":"The security token included in the request is invalid."}"#,
            "unknown-credentials",
        ),
    ] {
        let before = refused(&door, "unknown", reason);
        let reply = ask(&door, post(&target, &headers, "{}")).await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype"), reply.body.as_str()), (403, code, body));
        assert_eq!(refused(&door, "unknown", reason), before + 1);
        assert!(!reply.body.contains(ORDERS));
    }
    let native = ask(&door, post("/v1/events", &[], r#"{"function":"orders"}"#)).await;
    assert_eq!((native.status, native.header("www-authenticate")), (401, "Bearer"));
    assert!(kept.is_empty());
}

#[tokio::test]
async fn a_refused_stranger_takes_no_memory_however_large_its_body_is() {
    let (door, _) = guarded(true);
    let _all = door.shared.admission.set_aside(settings().request_bytes_max).unwrap();
    let large = "x".repeat(1 << 20);
    let reply = ask(&door, post(INVOKE, &[("x-amz-invocation-type", "Event")], &large)).await;
    assert_eq!(reply.header("x-amzn-errortype"), "MissingAuthenticationTokenException");
}

#[tokio::test]
async fn each_line_of_a_batch_is_allowed_or_refused_by_itself() {
    let (door, kept) = guarded(true);
    let lines = "{\"function\":\"orders\",\"payload\":1}\n{\"function\":\"mails\",\"payload\":2,\"idempotency_key\":\"k\"}\n\
                 {\"function\":\"orders-eu\",\"payload\":3}";
    let headers = [("content-type", "application/x-ndjson"), ("authorization", &bearer(ORDERS))];
    let reply = ask(&door, post("/v1/events", &headers, lines)).await;
    let statuses: Vec<u64> = reply
        .body
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["status"].as_u64().unwrap())
        .collect();
    assert_eq!((reply.status, statuses), (207, vec![202, 403, 202]));
    assert_eq!(kept.payloads(), ["1", "3"]);
    assert_eq!(refused(&door, "orders", "not-allowed"), 1);

    // The key that it tried to take is still free for whom it belongs to.
    let own = r#"{"function":"mails","payload":9,"idempotency_key":"k"}"#;
    let reply = ask(&door, post("/v1/events", &[("authorization", &bearer(ADMIN))], own)).await;
    assert_eq!(reply.status, 202, "{}", reply.body);
}

#[tokio::test]
async fn where_an_event_is_only_its_clients_are_told() {
    let (door, _) = guarded(true);
    let sent = ask(&door, post("/v1/events", &[("authorization", &bearer(ADMIN))], r#"{"function":"mails"}"#)).await;
    let target = format!("/v1/events/{}", sent.header("x-sendoff-event-id"));
    let get = |token: &str| {
        let request = Request::get(&target).header("host", "127.0.0.1").header("authorization", bearer(token));
        request.body(Full::new(Bytes::new())).unwrap()
    };
    assert_eq!(ask(&door, get(ADMIN)).await.status, 200);
    assert_eq!(ask(&door, get(ORDERS)).await.status, 404, "not even that there is one");
}

#[tokio::test]
async fn without_being_asked_who_they_are_all_are_let_in_and_known_clients_still_keep_to_their_own() {
    let (door, kept) = guarded(false);
    let event = ("x-amz-invocation-type", "Event");
    let mails = "/2015-03-31/functions/mails/invocations";
    let foreign = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/eu-central-1/lambda/aws4_request, SignedHeaders=host, \
                   Signature=00";
    assert_eq!(ask(&door, post(mails, &[event], "{}")).await.status, 202);
    assert_eq!(ask(&door, post(mails, &[event, ("authorization", foreign)], "{}")).await.status, 202);
    assert_eq!(ask(&door, post(&format!("/c/{ORDERS}{mails}"), &[event], "{}")).await.status, 403);
    assert_eq!(ask(&door, post(&format!("/c/nobody{INVOKE}"), &[event], "{}")).await.status, 403);
    assert_eq!(kept.payloads().len(), 2);
}

#[tokio::test]
async fn behind_a_socket_file_its_permissions_suffice() {
    let (door, kept) = guarded(true);
    let door = door.behind_a_file(1000);
    assert_eq!(ask(&door, post(INVOKE, &[("x-amz-invocation-type", "Event")], "{}")).await.status, 202);
    assert_eq!(kept.payloads().len(), 1);
}
