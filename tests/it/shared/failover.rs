//! A failover to a synchronous standby, and a pooler between the daemons and the database.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Instant;

use super::{jobs, owner_of, setup, status};
use crate::rig::daemon::{Daemon, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::postgres::{Postgres, sendoff, unprivileged};
use crate::rig::process::Process;
use crate::rig::sender::Sender;
use crate::rig::tools::tool;
use crate::rig::wire::Wire;
use crate::rig::{eventually, lasting_port};

#[test]
fn a_failover_to_a_synchronous_standby_loses_nothing_and_forgets_no_key() {
    let Some(mut primary) = Postgres::start() else { return };
    primary.migrate();
    let standby = primary.start_synchronous_standby();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let both = format!("postgres://admin@127.0.0.1:{},127.0.0.1:{}/orders", primary.port(), standby.port());
    let daemons =
        ["first", "second"].map(|name| setup(&primary, &lambda, name, &dir).set("outbox.postgres.url", &both).start());
    daemons[0].accept("orders-0", &[("idempotency-key", "warm")], br#"{"id":"warm"}"#);

    lambda.throttle_all();
    let senders = [0, 1].map(|nth| {
        let place = dir.join(format!("sender-{nth}"));
        std::fs::create_dir(&place).unwrap();
        Sender::start(&daemons[nth].endpoint_url(), 4, &place, &jobs(&format!("s{nth}"), 120))
    });
    senders.iter().for_each(|sender| sender.wait_for_accepted(40));
    primary.crash();
    let crashed = Instant::now();
    standby.promote();
    for daemon in &daemons {
        eventually("it is ready", || (status(daemon, "/readyz") == 200).then_some(()));
    }
    eprintln!("ready {:?} after the primary was gone", crashed.elapsed());
    lambda.take_all();
    let accepted: Vec<_> = senders.into_iter().flat_map(Sender::finish).collect();
    lambda.wait_for(&accepted.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
    eventually("nothing is left", || {
        (standby.sql("orders", "SELECT count(*) FROM sendoff.event") == "0").then_some(())
    });
    // The keys came along.
    let again = daemons[1].invoke("orders-0", &[("idempotency-key", "warm")], br#"{"id":"warm"}"#);
    assert_eq!((again.status, again.header("x-sendoff-duplicate")), (202, Some("true")), "{again:?}");
    assert_eq!(standby.sql("orders", "SELECT count(*) FROM sendoff.daemons WHERE alive"), "2");
}

#[test]
fn a_failover_that_loses_commits_loses_only_those_and_the_daemons_go_on() {
    let Some(mut primary) = Postgres::start() else { return };
    primary.migrate();
    let wire = Wire::start(SocketAddr::from(([127, 0, 0, 1], primary.port())));
    let standby = primary.start_standby(wire.port());
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let both = format!("postgres://admin@127.0.0.1:{},127.0.0.1:{}/orders", primary.port(), standby.port());
    let daemons =
        ["first", "second"].map(|name| setup(&primary, &lambda, name, &dir).set("outbox.postgres.url", &both).start());
    lambda.throttle_all();
    let send = |nth: usize, function: &str, id: &str| {
        let headers = [("idempotency-key", id)];
        eventually("the event is accepted", || {
            Some(daemons[nth % 2].invoke(function, &headers, &payload(id))).filter(|answer| answer.status == 202)
        })
    };
    let events = |prefix: &str| (0..6).map(|n| format!("{prefix}-{n}")).collect::<Vec<_>>();
    let (before, lost, after) = (events("before"), events("lost"), events("after"));
    before.iter().enumerate().for_each(|(n, id)| drop(send(n, "orders", id)));
    eventually("the standby has them", || {
        (standby.sql("orders", "SELECT count(*) FROM sendoff.event") == "6").then_some(())
    });
    // From here on the standby hears nothing. A function that only the primary knows gets its number again later.
    wire.cut();
    lost.iter().enumerate().for_each(|(n, id)| drop(send(n, "payments", id)));
    primary.crash();
    standby.promote();
    lambda.take_all();
    for (n, id) in after.iter().enumerate() {
        let answer = send(n, if n % 2 == 0 { "mails" } else { "payments" }, id);
        assert_eq!(answer.header("x-sendoff-duplicate"), None, "{answer:?}");
    }
    // A client that sends a lost event again is not told that it is there.
    assert_eq!(send(0, "payments", &lost[0]).header("x-sendoff-duplicate"), None);
    let expected: Vec<String> = before.iter().chain(&after).chain(&lost[..1]).cloned().collect();
    lambda.wait_for(&expected);
    eventually("nothing is left", || {
        (standby.sql("orders", "SELECT count(*) FROM sendoff.event") == "0").then_some(())
    });
    let entries = lambda.taken_entries();
    assert_eq!(lambda.taken().len(), expected.len(), "the other lost ones are lost");
    for entry in entries {
        let id = entry.id.clone().unwrap();
        let is_right = match entry.function.as_str() {
            "orders" => id.starts_with("before"),
            "mails" => id.starts_with("after"),
            _ => id.starts_with("after") || id == lost[0],
        };
        assert!(is_right, "{id} went to {}", entry.function);
    }
}

/// PgBouncer in transaction mode, with fewer connections to the server than the daemons have to it.
fn pooler(server: &Postgres, connections: usize) -> Option<(Process, u16, tempfile::TempDir)> {
    let program = tool("pgbouncer", "pgbouncer")?;
    let (scratch, port) = (tempfile::tempdir().unwrap(), lasting_port());
    let settings = format!(
        "[databases]\norders = host=127.0.0.1 port={} dbname=orders user=admin\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = transaction\ndefault_pool_size = {connections}\nmax_client_conn = 100\n",
        server.port()
    );
    std::fs::write(scratch.path().join("pgbouncer.ini"), settings).unwrap();
    std::os::unix::fs::chown(scratch.path(), Some(65_534), Some(65_534)).ok();
    std::fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = unprivileged(&program);
    command.arg(scratch.path().join("pgbouncer.ini")).stdin(Stdio::null());
    let process = Process::spawn("pgbouncer", &mut command);
    eventually("the pooler listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    Some((process, port, scratch))
}

#[test]
fn a_wait_for_the_standby_that_somebody_cancels_is_no_202_directly_and_through_a_pooler() {
    let Some(server) = Postgres::start() else { return };
    let Some((_pooler, port, _scratch)) = pooler(&server, 30) else { return };
    server.migrate();
    let mut standby = server.start_synchronous_standby();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    lambda.throttle_all();
    let setup = |name: &str, url: &str| {
        setup(&server, &lambda, name, &dir)
            .set("outbox.postgres.url", url)
            .set("outbox.postgres.accept_timeout", "10s")
            .start()
    };
    let daemons = [setup("direct", &server.url()), setup("pooled", &server.url_by(port))];
    let send = |daemon: &Daemon, id: &str| daemon.invoke("orders", &[("idempotency-key", id)], &payload(id));
    for (nth, daemon) in daemons.iter().enumerate() {
        (0..4).for_each(|n| assert_eq!(send(daemon, &format!("warm-{nth}-{n}")).status, 202));
    }
    standby.crash();
    let stored = || server.sql("orders", "SELECT count(*) FROM sendoff.event").parse::<u64>().unwrap();
    for (daemon, id) in daemons.iter().zip(["direct", "pooled"]) {
        let before = stored();
        // The second time it is a repeat of an event that is stored, but not where it was to be stored.
        for time in ["first", "second"] {
            let sent = Instant::now();
            let answer = std::thread::scope(|threads| {
                let sending = threads.spawn(|| send(daemon, id));
                eventually("the wait was cancelled and the client is answered", || {
                    let waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
                    server.sql("orders", waiting);
                    sending.is_finished().then_some(())
                });
                sending.join().unwrap()
            });
            eprintln!("{id}, the {time} time: refused after {:?}", sent.elapsed());
            assert_eq!(answer.status, 503, "{id}, the {time} time: {answer:?}");
        }
        assert_eq!(stored(), before + 1, "{id}: a cancelled wait commits");
    }
    server.sql("postgres", "ALTER SYSTEM RESET synchronous_standby_names");
    server.sql("postgres", "SELECT pg_reload_conf()");
    for (daemon, id) in daemons.iter().zip(["direct", "pooled"]) {
        let again = eventually("it is accepted", || Some(send(daemon, id)).filter(|answer| answer.status == 202));
        assert_eq!(again.header("x-sendoff-duplicate"), Some("true"), "{again:?}");
    }
}

#[test]
fn daemons_work_through_a_pooler_in_transaction_mode_and_replace_each_other_there() {
    let Some(server) = Postgres::start() else { return };
    // What a daemon sets for its sessions elsewhere.
    server.sql("orders", "ALTER ROLE admin SET default_transaction_isolation = 'repeatable read'");
    server.sql("orders", "ALTER ROLE admin SET synchronous_commit = off");
    let Some((_pooler, port, _scratch)) = pooler(&server, 4) else { return };
    server.migrate_by(&server.url_by(port));
    let said = server.check_by(&server.url_by(port), &[]);
    assert!(said.1.contains("a pooler stands between") && said.1.contains("synchronous_commit is off"), "{said:?}");

    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let setup = |name: &str| setup(&server, &lambda, name, &dir).set("outbox.postgres.url", &server.url_by(port));
    let setup = |name: &str| setup(name).set("outbox.postgres.lease", "6s").start();
    let (first, second) = (setup("first"), setup("second"));
    first.accept("orders-0", &[("idempotency-key", "warm")], br#"{"id":"warm"}"#);
    lambda.throttle_all();
    let [to_first, to_second] = [(&first, "a"), (&second, "b")].map(|(daemon, name)| {
        let place = dir.join(name);
        std::fs::create_dir(&place).unwrap();
        Sender::start(&daemon.endpoint_url(), 4, &place, &jobs(name, 100))
    });
    to_first.wait_for_accepted(40);
    let of_first = to_first.accepted();
    first.kill9();
    lambda.take_all();
    let mut ids: Vec<String> = to_second.finish().into_keys().collect();
    ids.extend(of_first.into_keys());
    lambda.wait_for(&ids);
    second.wait_until_empty();
    assert_eq!(owner_of(&server, "orders-0"), "second");
    let again = second.invoke("orders-0", &[("idempotency-key", "warm")], br#"{"id":"warm"}"#);
    assert_eq!((again.status, again.header("x-sendoff-duplicate")), (202, Some("true")), "{again:?}");
    // Nothing of a session was left behind for other programs: neither statements nor settings.
    let prepared = "SELECT count(*) FROM pg_prepared_statements";
    assert_eq!(server.sql_by(port, "orders", prepared), "0");
    assert_eq!(server.sql_by(port, "orders", "SHOW synchronous_commit"), "off");
    second.terminate();
    assert!(second.wait().success());
}

#[test]
fn the_demo_on_a_named_server_loses_nothing_and_leaves_nothing_behind() {
    let Some(server) = Postgres::start() else { return };
    let named = server.url().replace("/orders", "/postgres");
    let (code, said) =
        sendoff(&["demo", "--postgres", "--events", "300", "--functions", "4", "--url", &named, "--seed", "7"]);
    assert_eq!(code, Some(0), "{said}");
    for (what, number) in [("LOST", "0"), ("rolled back and delivered nevertheless", "0"), ("rolled back by SQL", "5")]
    {
        let line = said.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {said}"));
        assert!(line.contains(&format!(" {number} ")), "{line}");
    }
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'sendoff_demo%'"), "0");
}
