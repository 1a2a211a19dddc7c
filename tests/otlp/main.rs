//! Tests spans in a build with the feature `otlp` (`make otlp`): a collector receives those of a real run.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test measures real time and reads where its parts are installed")]

#[expect(dead_code, reason = "tests/it uses the rest")]
#[path = "../rig/mod.rs"]
mod rig;

mod collector;

use std::collections::BTreeSet;

use sendoff::standin::Script;

use collector::{Collector, Span};
use rig::daemon::{Setup, scratch};
use rig::eventually;
use rig::lambda::{Lambda, throttle};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const CANARY: &str = "canary-1f0e";

#[test]
fn a_request_and_its_attempts_are_spans_of_the_client_s_trace_joined_by_the_event_s_id() {
    let (_scratch, state) = scratch();
    let (lambda, collector) = (Lambda::start(), Collector::start());
    lambda.script("orders", Script::default().once(throttle()));
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        // The log level does not decide which spans are exported.
        .set("log.level", "warn,sendoff=info")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start();
    let payload = format!("{{\"id\":\"{CANARY}\"}}");
    let key = ("Idempotency-Key", CANARY);
    let traced = daemon.accept("orders", &[("traceparent", TRACEPARENT), key], payload.as_bytes());
    let untraced = daemon.accept("invoices", &[key], payload.as_bytes());
    daemon.wait_until_empty();
    let of = |id: &str| -> Vec<Span> {
        collector
            .spans()
            .into_iter()
            .filter(|span| span.attributes.get("event_id").is_some_and(|of| of == id))
            .collect()
    };
    eventually("all spans have come", || (of(&traced).len() >= 3 && of(&untraced).len() >= 2).then_some(()));

    let spans = of(&traced);
    let named = |name: &str| spans.iter().filter(|span| span.name == name).count();
    assert_eq!((named("request"), named("attempt")), (1, 2), "{spans:?}");
    for span in &spans {
        assert_eq!(span.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736", "{span:?}");
        assert_eq!(span.parent_id, "00f067aa0ba902b7", "{span:?}");
    }
    let outcomes: BTreeSet<&str> =
        spans.iter().filter_map(|span| span.attributes.get("outcome")).map(String::as_str).collect();
    assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), ["delivered", "throttled"]);
    // The same trace reaches the function, in X-Ray's form.
    let sent = lambda.taken_entries();
    let sent = sent.iter().find(|entry| entry.lane == "orders").unwrap();
    assert_eq!(
        sent.trace_header.as_deref(),
        Some("Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1")
    );
    // Without a trace of the client, the attempts share one that is named after the event.
    let attempt = of(&untraced).into_iter().find(|span| span.name == "attempt").unwrap();
    assert_eq!(attempt.trace_id, untraced.replace('-', ""));

    // The last spans are exported when the daemon ends, and no span contains a payload or a key.
    let late = daemon.accept("orders", &[], payload.as_bytes());
    daemon.wait_until_empty();
    daemon.terminate();
    assert!(daemon.wait().success());
    assert!(of(&late).iter().any(|span| span.name == "attempt"));
    assert!(!collector.said(CANARY), "a payload or a key has left");
}

#[test]
fn a_collector_that_is_not_there_costs_nothing_but_the_spans() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{}", rig::lasting_port()))
        .start();
    daemon.accept("orders", &[], b"{\"id\":\"alone\"}");
    lambda.wait_for(&["alone".to_owned()]);
    daemon.wait_until_empty();
    daemon.terminate();
    assert!(daemon.wait().success());
}
