//! What a start and `sendoff postgres check` say of a database that cannot be used, or not safely. And TLS.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::setup;
use crate::rig::daemon::{Setup, scratch};
use crate::rig::lambda::Lambda;
use crate::rig::postgres::{Postgres, sendoff};
use crate::tls::authority::Authority;

/// The daemon does not start and says this, and so does `check`.
fn is_refused(server: &Postgres, setup: &Setup, says: &str) {
    let (code, output) = setup.fail_to_start();
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains(says), "{says}: {output}");
    let (code, output) = server.check_by(&server.url(), &[]);
    assert!(code != Some(0) && output.contains(says), "{says}: {output}");
}

#[test]
fn a_database_that_cannot_be_used_is_refused_with_what_to_do() {
    let Some(server) = Postgres::start() else { return };
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let setup = setup(&server, &lambda, "one", &dir);
    let sql = |statement: &str| server.sql("orders", statement);

    is_refused(&server, &setup, "run `sendoff postgres migrate`");
    server.migrate();
    let last = sql("SELECT max(version) FROM sendoff.migration");
    sql(&format!("CREATE TABLE kept AS SELECT * FROM sendoff.migration WHERE version = {last}"));
    sql(&format!("DELETE FROM sendoff.migration WHERE version = {last}"));
    is_refused(&server, &setup, "run `sendoff postgres migrate`");
    sql("INSERT INTO sendoff.migration SELECT * FROM kept");

    // A newer schema says itself whether this build can use it.
    sql("INSERT INTO sendoff.migration (version, name, sha256) VALUES (99, 'later', '\\x00')");
    let (code, said) = server.check_by(&server.url(), &[]);
    assert_eq!(code, Some(0), "{said}");
    sql("UPDATE sendoff.control SET format = 2");
    let (code, output) = setup.fail_to_start();
    assert!(code == Some(69) || code == Some(70), "{output}");
    assert!(output.contains("newer sendoff"), "{output}");
    let (code, said) = server.check_by(&server.url(), &[]);
    assert!(code != Some(0) && said.contains("version 99"), "{said}");
    sql("UPDATE sendoff.control SET format = 1");
    sql("DELETE FROM sendoff.migration WHERE version = 99");

    sql("UPDATE sendoff.migration SET sha256 = '\\x00' WHERE version = 3");
    is_refused(&server, &setup, "in another form");
    let (code, output) = sendoff(&["postgres", "migrate", "--url", &server.url()]);
    assert!(code != Some(0) && output.contains("in another form"), "{output}");
}

#[test]
fn a_server_that_takes_no_writes_or_serves_another_region_is_refused_and_an_unsafe_one_is_named() {
    let Some(mut server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let setup = setup(&server, &lambda, "one", &dir);
    let daemon = setup.start();
    // The region of the environment counts, too.
    let elsewhere = setup.clone().set("outbox.postgres.member", "two").env("AWS_REGION", "us-west-2");
    let (code, output) = elsewhere.env("AWS_DEFAULT_REGION", "us-west-2").fail_to_start();
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("this outbox belongs to") && output.contains("us-west-2"), "{output}");
    let other_endpoint =
        setup.clone().set("outbox.postgres.member", "two").set("lambda.endpoint_url", "http://127.0.0.1:9");
    let (_, output) = other_endpoint.fail_to_start();
    assert!(output.contains("this outbox belongs to"), "{output}");
    daemon.terminate();
    assert!(daemon.wait().success());

    server.sql("postgres", "ALTER DATABASE orders SET default_transaction_read_only = on");
    let (code, output) = setup.fail_to_start();
    assert_eq!(code, Some(69), "{output}");
    assert!(output.contains("takes no writes") || output.contains("Name the primary"), "{output}");
    let (code, output) = server.check_by(&server.url(), &[]);
    assert!(code == Some(69) && output.contains("Name the primary"), "{output}");
    server.sql("postgres", "ALTER DATABASE orders RESET default_transaction_read_only");

    let standby = server.start_synchronous_standby();
    let (code, output) = server.check_by(&standby.url(), &[]);
    assert!(code == Some(69) && output.contains("it is a standby"), "{output}");
    let (code, output) = server.check_by(&server.url(), &[]);
    assert!(code == Some(0) && output.contains("synchronous standbys: standby"), "{output}");
    // Before it goes, or commits would wait for it.
    server.sql("postgres", "ALTER SYSTEM RESET synchronous_standby_names");
    server.sql("postgres", "SELECT pg_reload_conf()");
    drop(standby);
    server.sql("postgres", "ALTER SYSTEM SET fsync = off");
    server.sql("postgres", "ALTER ROLE admin SET synchronous_commit = off");
    server.crash();
    server.begin();
    let (code, output) = server.check_by(&server.url(), &[]);
    assert_eq!(code, Some(0), "{output}");
    for said in ["warning: fsync is off", "warning: synchronous_commit is off", "a daemon can use it"] {
        assert!(output.contains(said), "{said}: {output}");
    }
    let daemon = setup.start();
    for warned in ["fsync is off", "synchronous_commit is off"] {
        assert!(daemon.warnings().iter().any(|warning| warning.contains(warned)), "{:?}", daemon.warnings());
    }
    // Commits of the daemon wait for the disk all the same.
    daemon.accept("orders", &[], br#"{"id":"1"}"#);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sendoff'";
    assert!(server.sql("orders", sessions).parse::<u32>().unwrap() >= 3);
}

#[test]
fn a_database_is_used_over_tls_only_if_its_certificate_is_of_its_name_and_of_a_known_authority() {
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    let server = Postgres::start_prepared(|server| {
        let pair = right.issue(&["localhost"], 2100);
        server.write("server.crt", &pair.cert);
        server.write("server.key", &pair.key);
        server.write(
            "pg_hba.conf",
            "host all admin 127.0.0.1/32 trust\nhostssl all sendoff 127.0.0.1/32 scram-sha-256\n",
        );
        server.configure("ssl = on");
    });
    let Some(server) = server else { return };
    server.migrate();
    server.sql("orders", "CREATE ROLE sendoff LOGIN PASSWORD 'open sesame' IN ROLE sendoff_daemon");
    let (lambda, (_guard, dir)) = (Lambda::start(), scratch());
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name).to_str().unwrap().to_owned()
    };
    let (ca, wrong_ca) = (write("ca.pem", &right.pem), write("wrong.pem", &wrong.pem));
    let password = write("password", "open sesame\n");
    let url = |host: &str| format!("postgres://sendoff@{host}:{}/orders", server.port());
    let check = |host: &str, ca: &str, password: &str| {
        let settings = [
            "outbox.postgres.tls=verify-full".to_owned(),
            format!("outbox.postgres.tls_ca={ca}"),
            format!("outbox.postgres.password_file={password}"),
        ];
        server.check_by(&url(host), &settings.each_ref().map(String::as_str))
    };
    let (code, said) = check("localhost", &ca, &password);
    assert_eq!(code, Some(0), "{said}");
    for (host, ca, password, why) in [
        ("127.0.0.1", &ca, &password, "not valid for name"),
        ("localhost", &wrong_ca, &password, "UnknownIssuer"),
        ("localhost", &write("none.pem", ""), &password, "outbox.postgres.tls_ca"),
        ("localhost", &ca, &write("stale", "open pepper"), "password authentication failed"),
        ("localhost", &ca, &"/nonexistent/password".to_owned(), "password file"),
    ] {
        let (code, said) = check(host, ca, password);
        assert!(code == Some(69) && said.contains(why), "{why}: {said}");
        assert!(!said.contains("sesame"), "{said}");
    }
    let (code, said) = server.check_by(&url("localhost"), &[&format!("outbox.postgres.password_file={password}")]);
    assert!(code == Some(69) && said.contains("no encryption"), "without TLS: {said}");

    // A password that was turned: open connections stay, and new ones read the file again.
    let daemon = setup(&server, &lambda, "one", &dir)
        .set("outbox.postgres.url", &url("localhost"))
        .set("outbox.postgres.tls", "verify-full")
        .set("outbox.postgres.tls_ca", &ca)
        .set("outbox.postgres.password_file", &password)
        .start();
    daemon.accept("orders", &[], br#"{"id":"before"}"#);
    server.sql("orders", "ALTER ROLE sendoff PASSWORD 'open pepper'");
    write("password", "open pepper\n");
    server.sql("orders", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sendoff'");
    crate::rig::eventually("events are accepted again", || {
        (daemon.invoke("orders", &[], br#"{"id":"after"}"#).status == 202).then_some(())
    });
    lambda.wait_for(&["before".to_owned(), "after".to_owned()]);
    let unencrypted =
        "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) WHERE usename = 'sendoff' AND NOT s.ssl";
    assert_eq!(server.sql("orders", unencrypted), "0");
}

/// A server that only asks for the password of a login, over TLS, and refuses it. Returns what it was told.
fn password_told_to_a_server(right: &Authority, connect: impl FnOnce(u16) + Send) -> String {
    let pair = right.issue(&["localhost"], 2100);
    let certificates = CertificateDer::pem_slice_iter(pair.cert.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(certificates, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::scope(|threads| {
        let serving = threads.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // A request for TLS, which has 8 bytes.
            stream.read_exact(&mut [0; 8]).unwrap();
            stream.write_all(b"S").unwrap();
            let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
            let mut message = |has_kind: bool| {
                let mut head = [0; 5];
                stream.read_exact(&mut head[usize::from(!has_kind)..]).unwrap();
                let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4;
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                // It wants a password in clear text, as RDS does for tokens.
                stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).unwrap();
                stream.flush().unwrap();
                body
            };
            message(false);
            let password = message(true);
            String::from_utf8(password[..password.len() - 1].to_vec()).unwrap()
        });
        connect(port);
        serving.join().unwrap()
    })
}

#[test]
fn a_login_with_iam_sends_a_signed_url_as_its_password_over_tls_only() {
    let (right, (_guard, dir)) = (Authority::new("right"), scratch());
    let ca = format!("outbox.postgres.tls_ca={}", right.write(&dir).display());
    let check = |port: u16, settings: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sendoff"));
        let url = format!("postgres://my_daemon@localhost:{port}/orders");
        command.args(["postgres", "check", "--url", &url, "--set", "outbox.postgres.iam=true"]).env_clear();
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        crate::rig::python::aws_environment(&mut command);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let token = password_told_to_a_server(&right, |port| {
        let (code, said) = check(port, &["outbox.postgres.tls=verify-full", &ca]);
        assert!(code == Some(69) && !said.contains("X-Amz"), "{said}");
    });
    for part in ["localhost:", "/?Action=connect&DBUser=my_daemon&", "%2Frds-db%2Faws4_request", "X-Amz-Expires=900"] {
        assert!(token.contains(part), "{part}: {token}");
    }
    let (code, said) = check(1, &[]);
    assert!(code == Some(78) && said.contains("needs TLS"), "{said}");
}
