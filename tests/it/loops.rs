//! Tests a sendoff whose endpoint is a sendoff. With every configuration, no event is lost, and the log says what to
//! correct.

use std::path::Path;

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::payload;
use crate::rig::{eventually, http, lasting_port};

/// Waits until the daemon holds its function for this reason.
fn held_for(daemon: &Daemon, word: &str) {
    eventually(&format!("the function is held: {word}"), || {
        let functions = http::get(daemon.admin, "/v1/functions").json();
        let held = functions["functions"][0]["held"].clone();
        (held["kind"] == "held" && held["reason"].as_str().is_some_and(|reason| reason.contains(word))).then_some(())
    });
}

/// Makes the files that the SDKs read, with a profile that names `url`.
fn profiles(scratch: &Path, text: &str) -> String {
    let path = scratch.join("aws-config");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_chain_of_sendoffs_that_ends_where_it_began_loses_nothing() {
    let (_a, state_a) = scratch();
    let (_b, state_b) = scratch();
    let port = lasting_port().to_string();
    let a = Setup::new(&state_a).set("lambda.endpoint_url", &format!("http://127.0.0.1:{port}")).start();
    let b = Setup::new(&state_b)
        .set("listen.ingest", &format!("127.0.0.1:{port}"))
        .set("lambda.endpoint_url", &a.endpoint_url())
        .start();
    a.accept("orders", &[("Idempotency-Key", "k-1")], &payload("one"));
    held_for(&a, "LoopDetectedException");
    assert_eq!((a.stored(), b.stored()), (1.0, 0.0));
    let path = "/2015-03-31/functions/orders/invocations";
    let call = http::request(a.ingest, "POST", path, &[("X-Amz-Invocation-Type", "RequestResponse")], b"{}");
    assert_eq!((call.status, call.header("x-amzn-errortype")), (508, Some("LoopDetectedException")));
}

#[test]
fn an_endpoint_of_the_profile_that_is_sendoff_itself_is_not_followed() {
    for (text, section) in [
        ("[default]\nservices = s\n\n[services s]\nlambda =\n  endpoint_url = URL\n", "services"),
        ("[default]\nendpoint_url = URL\n", "profile"),
    ] {
        let (scratch, state) = scratch();
        let port = lasting_port();
        let url = format!("http://localhost:{port}");
        let file = profiles(scratch.path(), &text.replace("URL", &url));
        let daemon = Setup::new(&state)
            .set("listen.ingest", &format!("127.0.0.1:{port}"))
            .env("AWS_CONFIG_FILE", &file)
            .env("HTTPS_PROXY", "http://127.0.0.1:1")
            .start();
        daemon.accept("orders", &[("Idempotency-Key", "k-1")], &payload("one"));
        eventually("an attempt was made", || {
            (daemon.scrape().sum("sendoff_dispatch_attempts_total", &[]) >= 1.0).then_some(())
        });
        assert_eq!(daemon.stored(), 1.0, "{section}");
        assert!(daemon.log().iter().any(|line| line.contains("own address") && line.contains(&url)), "{section}");
    }
}
