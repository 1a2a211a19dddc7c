//! Tests adaptive delivery on the real binary: sendoff does what Lambda asks for, and shows what holds a function.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use sendoff::standin::{Reason, Script, Throttle, Trouble};
use serde_json::Value;

use crate::operator::{listed, sendoff};
use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{eventually, http};

/// One function from `GET /v1/functions`. Null if it is not listed.
fn shown(admin: SocketAddr, function: &str) -> Value {
    let answer = http::get(admin, "/v1/functions").json();
    let functions = answer["functions"].as_array().unwrap().iter();
    functions.clone().find(|shown| shown["function"] == function).cloned().unwrap_or_default()
}

/// Waits until a function is held in this way. Returns what is shown then.
fn held(daemon: &Daemon, function: &str, kind: &str, scope: &str) -> Value {
    let held = eventually(&format!("{function} is held: {kind}, {scope}"), || {
        let held = shown(daemon.admin, function)["held"].clone();
        (held["kind"] == kind && held["scope"] == scope).then_some(held)
    });
    // The command line says the same, and so does the metric.
    let (code, said) = sendoff(daemon.admin, &["functions"]);
    let line = said.lines().find(|line| line.trim_start().starts_with(function)).unwrap_or_default();
    assert!(code == 0 && line.contains(&format!("{kind} until ")), "{said}");
    eventually("the metric says so", || {
        (daemon.scrape().sum("sendoff_dispatch_held", &[("function", function)]) == 1.0).then_some(())
    });
    held
}

fn accept_all(daemon: &Daemon, function: &str, events: std::ops::Range<usize>) -> Vec<String> {
    let ids: Vec<String> = events.map(|n| format!("{function}-{n}")).collect();
    ids.iter().for_each(|id| drop(daemon.accept(function, &[], &payload(id))));
    ids
}

#[test]
fn retry_after_is_a_floor_in_seconds_and_in_milliseconds_and_one_event_probes_when_it_is_over() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let throttle = || Throttle::new(Reason::ReservedFunctionInvocationRateLimitExceeded);
    let script = Script::default()
        .once(Trouble::Throttle(throttle().retry_after(Duration::from_secs(6))))
        .once(Trouble::Throttle(throttle().retry_after_millis(Duration::from_millis(1_300))));
    lambda.script("orders", script);
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let first = accept_all(&daemon, "orders", 0..1);
    let reason = held(&daemon, "orders", "throttled", "lane")["reason"].clone();
    assert!(reason.as_str().unwrap().contains("TooManyRequestsException"), "{reason}");
    let rest = accept_all(&daemon, "orders", 1..30);
    lambda.wait_for(&[first, rest].concat());
    daemon.wait_until_empty();
    let seen = lambda.seen("orders");
    assert_eq!((seen.len(), seen[0].1, seen[1].1), (32, false, false), "no more than one asked each time: {seen:?}");
    let gaps: Vec<Duration> = seen.windows(2).map(|pair| pair[1].0.since(pair[0].0)).take(2).collect();
    assert!(gaps[0] >= Duration::from_secs(6), "{gaps:?}");
    assert!(gaps[1] >= Duration::from_millis(1_300), "{gaps:?}");
}

#[test]
fn a_functions_own_limit_pauses_that_function_and_the_accounts_pauses_all() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let wait = Duration::from_secs(3);
    let throttled = |reason| Script::always(Trouble::Throttle(Throttle::new(reason).retry_after(wait)));
    lambda.script("own", throttled(Reason::ReservedFunctionConcurrentInvocationLimitExceeded));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    accept_all(&daemon, "own", 0..1);
    held(&daemon, "own", "throttled", "lane");
    lambda.wait_for(&accept_all(&daemon, "beside", 0..20));
    assert_eq!(shown(daemon.admin, "beside")["held"], Value::Null);

    lambda.script("shared", throttled(Reason::ConcurrentInvocationLimitExceeded));
    accept_all(&daemon, "shared", 0..1);
    held(&daemon, "shared", "throttled", "account");
    accept_all(&daemon, "beside", 20..21);
    let of_all = shown(daemon.admin, "beside");
    assert_eq!(of_all["held"]["scope"], "account", "{of_all}");
    lambda.take_all();
    for function in ["own", "shared"] {
        lambda.script(function, Script::default());
    }
    daemon.wait_until_empty();
    let throttled_at = lambda.seen("shared")[0].0;
    let beside_at = lambda.seen("beside")[20].0;
    assert!(beside_at.since(throttled_at) >= wait, "it waited, too");
    eventually("nothing is held any more", || {
        ["own", "shared", "beside"].iter().all(|name| shown(daemon.admin, name)["held"].is_null()).then_some(())
    });
}

#[test]
fn a_held_function_says_why_spends_no_attempts_and_recovers_by_itself() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.script("orders", Script::always(Trouble::error(403, "AccessDeniedException", "not authorized to invoke")));
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("delivery.attempts_max", "1");
    let daemon = setup.start();
    let ids = accept_all(&daemon, "orders", 0..5);
    let held = held(&daemon, "orders", "held", "lane");
    assert!(held["reason"].as_str().unwrap().contains("AccessDeniedException: not authorized"), "{held}");
    assert!(http::get(daemon.admin, "/v1/status").json()["held"].as_array().unwrap().contains(&"orders".into()));
    daemon.wait_for_log(|fields| fields["message"] == "lane is held" && fields["function"] == "orders");
    eventually("it has been probed", || (lambda.seen("orders").len() >= 3).then_some(()));
    lambda.script("orders", Script::default());
    lambda.wait_for(&ids);
    daemon.wait_until_empty();
    daemon.wait_for_log(|fields| fields["message"] == "lane is no longer held");
}

#[test]
fn a_paused_function_is_shown_as_paused() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    accept_all(&daemon, "orders", 0..2);
    let (code, said) = sendoff(daemon.admin, &["pause", "orders"]);
    assert_eq!((code, said.as_str()), (0, "orders is paused\n"));
    assert_eq!(shown(daemon.admin, "orders")["paused"], true);
    let (_, said) = sendoff(daemon.admin, &["functions"]);
    assert!(said.lines().any(|line| line.trim_start().starts_with("orders") && line.ends_with("paused")), "{said}");
    let (code, said) = sendoff(daemon.admin, &["resume", "orders"]);
    assert_eq!((code, said.as_str()), (0, "orders is resumed\n"));
    assert_eq!(listed(daemon.admin, &["functions", "--json"])[0]["paused"], false);
}

/// One try. `None` if an hour of the clock ended meanwhile.
fn spend_over_a_kill() -> Option<()> {
    let hour = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 3_600;
    let began = hour();
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("delivery.invocations_per_hour_max", "30");
    let daemon = setup.start();
    lambda.wait_for(&accept_all(&daemon, "orders", 0..20));
    daemon.kill9();
    let daemon = setup.start();
    accept_all(&daemon, "orders", 20..60);
    let spent = held(&daemon, "orders", "spent", "lane");
    let at_once = lambda.seen("orders").len();
    daemon.kill9();
    // The function is held from the first moment of the next life.
    let daemon = setup.start();
    daemon.wait_for_log(|fields| fields["message"] == "lane is held" && fields["kind"] == "spent");
    held(&daemon, "orders", "spent", "lane");
    let seen = lambda.seen("orders").len();
    if hour() != began {
        return None;
    }
    assert!(spent["reason"].as_str().unwrap().contains("invocations_per_hour_max"), "{spent}");
    assert_eq!(seen, at_once, "nothing more in this hour");
    // A kill may cost the reserve, which is a twentieth. No attempt was in flight here.
    assert!((28..=30).contains(&seen), "{seen} of 30 invocations");
    Some(())
}

#[test]
fn the_ceiling_of_an_hour_holds_over_sigkills() {
    while spend_over_a_kill().is_none() {}
}
