//! Tests what an operator meets: probes, metrics, and settings that would do harm.

use crate::rig::daemon::{Setup, invoke_path, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{http, lasting_port};

#[test]
fn a_ready_daemon_says_so_by_probe_and_metric() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    assert_eq!(http::get(daemon.admin, "/livez").status, 200);
    assert_eq!(http::get(daemon.admin, "/readyz").status, 200);
    let metrics = http::get(daemon.admin, "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{metrics:?}");
    let scrape = daemon.scrape();
    assert_eq!(scrape.sum("sendoff_ready", &[]), 1.0);
    assert_eq!(scrape.sum("sendoff_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert!(scrape.sum("sendoff_start_time_seconds", &[]) > 1.7e9, "{scrape:?}");

    daemon.accept("orders", &[], &payload("counted"));
    lambda.wait_for(&["counted".to_owned()]);
    daemon.wait_until_empty();
    let scrape = daemon.scrape();
    assert_eq!(scrape.sum("sendoff_ingest_accepted_total", &[("function", "orders")]), 1.0);
    assert_eq!(scrape.sum("sendoff_dispatch_attempts_total", &[("function", "orders")]), 1.0);
    assert!(scrape.sum("sendoff_outbox_flush_seconds_count", &[]) >= 1.0);
    assert_eq!(http::get(daemon.ingest, "/metrics").status, 404, "the two doors are apart");
}

#[test]
fn an_address_beyond_loopback_is_refused_with_the_key_that_allows_it() {
    let (_scratch, state) = scratch();
    let (code, said) = Setup::new(&state).set("listen.ingest", "0.0.0.0:0").fail_to_start();
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("allow_unauthenticated_remote"), "{said}");
}

#[test]
fn an_endpoint_variable_that_names_the_daemon_itself_is_passed_over_and_logged() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let own = format!("127.0.0.1:{}", lasting_port());
    let daemon = Setup::new(&state)
        .set("listen.ingest", &own)
        .env("AWS_ENDPOINT_URL_LAMBDA", &format!("http://{own}"))
        .env("AWS_ENDPOINT_URL", &lambda.endpoint_url())
        .start();
    daemon.wait_for_log(|fields| fields["level"] == "WARN" && fields.to_string().contains("AWS_ENDPOINT_URL_LAMBDA"));
    daemon.accept("orders", &[], &payload("not-in-circles"));
    lambda.wait_for(&["not-in-circles".to_owned()]);
    daemon.wait_until_empty();
    let scrape = daemon.scrape();
    assert_eq!(scrape.sum("sendoff_ingest_accepted_total", &[]), 1.0, "it did not invoke itself");
    assert_eq!(scrape.sum("sendoff_ingest_duplicates_total", &[]), 0.0);
}

#[test]
fn a_missing_region_is_said_once_for_each_service_and_in_our_own_words() {
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state)
        .without_env("AWS_REGION")
        .without_env("AWS_DEFAULT_REGION")
        .env("AWS_EC2_METADATA_DISABLED", "false")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &format!("http://127.0.0.1:{}", lasting_port()))
        .start();
    let warnings = daemon.warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (warning, service) in warnings.iter().zip(["lambda", "sqs"]) {
        assert!(warning.contains(&format!("set {service}.region, {service}.endpoint_url or AWS_REGION")), "{warning}");
    }
}

#[test]
fn without_ca_certificates_the_daemon_says_so_and_accepts_all_the_same() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = Setup::new(&state).env("SSL_CERT_FILE", "/dev/null");
    let daemon = setup.start();
    let warnings = daemon.warnings();
    assert!(warnings.len() == 2 && warnings.iter().all(|warning| warning.contains("ca-certificates")), "{warnings:?}");
    daemon.accept("orders", &[], &payload("waits"));
    let call = http::request(daemon.ingest, "POST", &invoke_path("orders"), &[], b"{}");
    assert!(call.status == 503 && call.text().contains("SSL_CERT_FILE"), "{call:?}");
    drop(daemon);

    // If nothing speaks TLS, nothing is missing.
    let plain =
        setup.set("lambda.endpoint_url", &lambda.endpoint_url()).set("sqs.endpoint_url", &lambda.endpoint_url());
    let daemon = plain.start();
    assert_eq!(daemon.warnings(), [""; 0]);
    lambda.wait_for(&["waits".to_owned()]);
    daemon.wait_until_empty();
}
