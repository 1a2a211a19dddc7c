//! Tests what the log says, and what it must never say.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sendoff::standin::{Script, Trouble};

use crate::rig::daemon::{Setup, scratch};
use crate::rig::lambda::{Lambda, throttle};
use crate::rig::sqs::Sqs;
use crate::rig::{eventually, http};

const TRACE: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";

#[test]
fn request_and_attempts_are_joined_by_the_event_s_id() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.script("orders", Script::default().once(throttle()));
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("log.level", "info,sendoff=debug")
        .start();
    let id =
        daemon.accept("orders", &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")], b"{}");
    daemon.wait_until_empty();
    let accepted = daemon.wait_for_log(|fields| fields["message"] == "event accepted");
    assert_eq!(
        (&accepted["event_id"], &accepted["span"]["name"]),
        (&id.as_str().into(), &"request".into()),
        "{accepted}"
    );
    daemon.wait_for_log(|fields| fields["message"] == "event will be retried" && fields["event_id"] == id.as_str());
    daemon.wait_for_log(|fields| fields["message"] == "event delivered" && fields["event_id"] == id.as_str());
    let sent = lambda.taken_entries();
    let carried = sent[0].trace_header.as_deref().unwrap();
    assert_eq!(carried, "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1");
}

#[test]
fn payloads_and_keys_are_in_no_log_line_at_any_level() {
    const PAYLOAD: &str = "canary-payload-1f0e";
    const KEY: &str = "canary-key-77aa";
    let (_scratch, state) = scratch();
    let (lambda, sqs) = (Lambda::start(), Sqs::start());
    let queue = sqs.create_queue("dead");
    lambda.script("slow", Script::default().once(throttle()).once(Trouble::error(500, "ServiceException", "no")));
    lambda.script("refused", Script::always(Trouble::error(400, "InvalidRequestContentException", "no")));
    for transport in ["direct", "sdk"] {
        let daemon = Setup::new(&state)
            .set("lambda.endpoint_url", &lambda.endpoint_url())
            .set("lambda.transport", transport)
            .set("sqs.endpoint_url", &sqs.endpoint_url())
            .set("dead_letter.queue_url", &queue)
            .set("functions.keyed.key", "id")
            .set("log.level", "trace")
            .start();
        let payload = format!("{{\"id\":\"{PAYLOAD}\"}}");
        let key = format!("{KEY}-{transport}");
        let context = STANDARD.encode(format!("{{\"custom\":{{\"idempotency_key\":\"{key}\"}}}}"));
        for function in ["orders", "slow", "refused"] {
            daemon.accept(function, &[("Idempotency-Key", &key), ("X-Amzn-Trace-Id", TRACE)], payload.as_bytes());
        }
        daemon.accept("in-context", &[("X-Amz-Client-Context", &context)], payload.as_bytes());
        // A duplicate, a conflict, a key from the payload, the native API, a body that is not JSON, a call that passes
        // through.
        daemon.invoke("orders", &[("Idempotency-Key", &key)], payload.as_bytes());
        assert_eq!(daemon.invoke("orders", &[("Idempotency-Key", &key)], b"{}").status, 409);
        daemon.accept("keyed", &[], format!("{{\"id\":\"{PAYLOAD}-{transport}\"}}").as_bytes());
        let native = format!("{{\"function\":\"orders\",\"payload\":{payload},\"idempotency_key\":\"{key}-native\"}}");
        assert_eq!(http::request(daemon.ingest, "POST", "/v1/events", &[], native.as_bytes()).status, 202);
        assert_eq!(daemon.invoke("orders", &[], format!("{{{PAYLOAD}").as_bytes()).status, 400);
        let call = [("X-Amz-Invocation-Type", "RequestResponse")];
        let path = crate::rig::daemon::invoke_path("orders");
        assert_eq!(http::request(daemon.ingest, "POST", &path, &call, payload.as_bytes()).status, 200);
        eventually("a letter is shipped", || (!sqs.take_all(&queue).is_empty()).then_some(()));
        daemon.wait_until_empty();

        let log = daemon.log();
        for said in ["event accepted", "event buried", "dead letter shipped", "hyper_util"] {
            assert!(log.iter().any(|line| line.contains(said)), "it logs all that it does: {said}");
        }
        let encoded = [PAYLOAD, KEY].map(|canary| STANDARD.encode(canary)[..16].to_owned());
        let leaks: Vec<&String> = log
            .iter()
            .filter(|line| {
                line.contains(PAYLOAD) || line.contains(KEY) || encoded.iter().any(|canary| line.contains(canary))
            })
            .collect();
        assert!(leaks.is_empty(), "{transport}: {} lines leak:\n{leaks:#?}", leaks.len());
    }
}
