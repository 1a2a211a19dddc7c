//! Daemons that share an outbox on PostgreSQL, on a real server: takeover, outages, and the commands for the database.

use std::time::Instant;

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::Lambda;
use crate::rig::postgres::Postgres;
use crate::rig::sender::Sender;
use crate::rig::{eventually, http};

mod failover;

mod imported;

mod network;

mod refusals;

pub fn setup(server: &Postgres, lambda: &Lambda, name: &str, state_dir: &std::path::Path) -> Setup {
    Setup::new(&state_dir.join(name))
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("outbox.store", "postgres")
        .set("outbox.postgres.url", &server.url())
        .set("outbox.postgres.member", name)
}

/// Which daemon has the lanes.
pub fn owner(server: &Postgres) -> String {
    server.sql("orders", "SELECT DISTINCT daemon FROM sendoff.functions WHERE owned")
}

/// Which daemon has the lane of a function.
fn owner_of(server: &Postgres, function: &str) -> String {
    server.sql("orders", &format!("SELECT daemon FROM sendoff.functions WHERE function = '{function}'"))
}

fn jobs(prefix: &str, count: usize) -> Vec<(String, String)> {
    (0..count).map(|n| (format!("orders-{}", n % 4), format!("{prefix}-{n}"))).collect()
}

fn status(daemon: &Daemon, path: &str) -> u16 {
    http::get(daemon.admin, path).status
}

#[test]
fn a_daemon_that_is_killed_under_load_is_replaced_by_the_other_and_nothing_is_lost() {
    let Some(server) = Postgres::start() else { return };
    assert!(server.migrate().contains("ran tables"), "the first time");
    assert!(server.migrate().contains("up to date"), "the second time");
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let first = setup(&server, &lambda, "first", &dir).start();
    first.accept("orders-0", &[], br#"{"id":"warm"}"#);
    eventually("the first has the lanes", || (owner(&server) == "first").then_some(()));
    let second = setup(&server, &lambda, "second", &dir).start();

    // Events that only the first may deliver, accepted by both, and still there when it is killed.
    lambda.throttle_all();
    let [to_first, to_second] = [(&first, "a"), (&second, "b")].map(|(daemon, name)| {
        let place = dir.join(name);
        std::fs::create_dir(&place).unwrap();
        Sender::start(&daemon.endpoint_url(), 4, &place, &jobs(name, 150))
    });
    to_first.wait_for_accepted(60);
    to_second.wait_for_accepted(60);
    let accepted_by_first = to_first.accepted();
    first.kill9();
    let killed = Instant::now();
    lambda.take_all();
    let mut ids: Vec<String> = to_second.finish().into_keys().collect();
    ids.extend(accepted_by_first.into_keys());
    lambda.wait_for(&ids);
    eprintln!("{} events were delivered {:?} after the owner was killed", ids.len(), killed.elapsed());
    eventually("the second has the lanes", || (owner(&server) == "second").then_some(()));
    second.wait_until_empty();
    drop(to_first);

    // A restart under its old name gets in, and stands by.
    let first = setup(&server, &lambda, "first", &dir).start();
    first.accept("orders-1", &[], br#"{"id":"through a standby"}"#);
    lambda.wait_for(&["through a standby".to_owned()]);
    assert_eq!(owner(&server), "second");

    // An orderly stop hands the lanes over with the next beat.
    second.terminate();
    assert!(second.wait().success());
    eventually("the first has the lanes again", || (owner(&server) == "first").then_some(()));
    first.accept("orders-2", &[], br#"{"id":"after the handover"}"#);
    lambda.wait_for(&["after the handover".to_owned()]);
    first.wait_until_empty();
}

#[test]
fn a_database_that_is_away_means_503_and_delivery_goes_on_when_it_is_back() {
    let Some(mut server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let daemon = setup(&server, &lambda, "only", &dir).start();
    lambda.throttle_all();
    let ids: Vec<String> = (0..20).map(|n| format!("before-{n}")).collect();
    for id in &ids {
        daemon.accept("orders", &[], format!(r#"{{"id":"{id}"}}"#).as_bytes());
    }
    assert_eq!((status(&daemon, "/readyz"), status(&daemon, "/livez")), (200, 200));
    server.crash();
    let refused = daemon.invoke("orders", &[], br#"{"id":"during"}"#);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    eventually("it is not ready", || (status(&daemon, "/readyz") == 503).then_some(()));
    assert_eq!(status(&daemon, "/livez"), 200);
    lambda.take_all();
    server.begin();
    eventually("it is ready again", || (status(&daemon, "/readyz") == 200).then_some(()));
    daemon.accept("orders", &[], br#"{"id":"after"}"#);
    lambda.wait_for(&ids);
    lambda.wait_for(&["after".to_owned()]);
    daemon.wait_until_empty();
}

#[test]
fn a_daemon_says_what_is_wrong_with_its_database_and_two_of_one_name_are_refused() {
    let Some(server) = Postgres::start() else { return };
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let (code, output) = setup(&server, &lambda, "one", &dir).fail_to_start();
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("sendoff postgres migrate"), "{output}");
    server.migrate();
    let one = setup(&server, &lambda, "one", &dir).start();
    let (code, output) = setup(&server, &lambda, "one", &dir.join("elsewhere")).fail_to_start();
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("outbox.postgres.member"), "{output}");
    let (_, output) = setup(&server, &lambda, "two", &dir).set("lambda.region", "us-west-2").fail_to_start();
    assert!(output.contains("belongs to"), "{output}");
    // A transaction of an application is delivered once it has committed.
    server.sql("orders", "SELECT sendoff.add_function('orders')");
    server.sql("orders", r#"BEGIN; SELECT sendoff.enqueue('orders', '{"id":"rolled back"}'::text); ROLLBACK"#);
    server.sql("orders", r#"SELECT sendoff.enqueue('orders', '{"id":"committed"}'::text, key => 'k')"#);
    lambda.wait_for(&["committed".to_owned()]);
    one.wait_until_empty();
    assert!(!lambda.taken().contains_key("rolled back"));
}
