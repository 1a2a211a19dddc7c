//! Tests TLS on the listeners: with real clients and a private authority, through changes of the certificate, and with
//! bad certificates.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_lambda::primitives::Blob;
use aws_sdk_lambda::types::InvocationType;
use rustix::process::Signal;
use serde_json::json;

use crate::rig::daemon::{Daemon, Setup, invoke_path, scratch};
use crate::rig::lambda::Lambda;
use crate::rig::streaming::{Step, Streaming};
use crate::rig::{eventually, http, python};

pub mod authority;

use authority::{Authority, Client, Pair, again};

/// The setup of a daemon with TLS. Its files are below `files`.
fn setup(state: &Path, files: &Path, pair: &Pair) -> Setup {
    pair.swap_in(files);
    let path = |name: &str| files.join(name).to_str().unwrap().to_owned();
    Setup::new(state).set("tls.cert", &path("tls.crt")).set("tls.key", &path("tls.key"))
}

fn https(daemon: &Daemon) -> String {
    format!("https://{}", daemon.ingest)
}

fn metric(client: &Client, daemon: &Daemon, name: &str) -> f64 {
    let text = client.request(daemon.admin, "GET", "/metrics", &[], b"").unwrap().text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing")).parse().unwrap()
}

/// A client that writes a body of a megabyte reads the refusal only if the connection stays open for it.
#[test]
fn whoever_is_refused_over_tls_sees_why_however_large_the_body_is() {
    let (scratch, state) = scratch();
    let files = scratch.path();
    let authority = Authority::new("test authority");
    let ca = authority.write(files);
    let secret = "0123456789abcdef0123456789abcdef";
    std::fs::write(files.join("orders"), secret).unwrap();
    let daemon = setup(&state, files, &authority.for_loopback(2100))
        .set("auth.ingest", "required")
        .set("clients.orders.functions", "orders")
        .set("clients.orders.path_token_file", files.join("orders").to_str().unwrap())
        .start();
    let cases: Vec<_> = (1..=6)
        .map(|n| {
            let args = json!({ "FunctionName": "mails", "InvocationType": "Event", "Payload": n * 170_000 });
            (n.to_string(), "invoke", args)
        })
        .collect();
    for (path, code) in
        [(format!("/c/{secret}"), "AccessDeniedException"), (String::new(), "UnrecognizedClientException")]
    {
        let mut boto3 = python::script("invoke.py");
        boto3.arg(https(&daemon) + &path).env("AWS_CA_BUNDLE", &ca);
        for case in crate::clients::shown(boto3, &cases) {
            assert_eq!(case["shown"]["Error"]["Code"], code, "{case}");
        }
    }
}

#[test]
fn real_clients_hand_over_events_by_https_with_a_private_authority() {
    let (scratch, state) = scratch();
    let files = scratch.path();
    let authority = Authority::new("test authority");
    let ca = authority.write(files);
    let lambda = Lambda::start();
    let daemon = setup(&state, files, &authority.for_loopback(2100)).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = daemon.start();
    let out = files.join("answer");
    let invoke = |mut aws: Command, id: &str| {
        let payload = json!({ "id": id }).to_string();
        aws.args(["lambda", "invoke", "--function-name", "orders", "--invocation-type", "Event"])
            .args(["--payload", &payload])
            .arg(&out);
        aws.env("AWS_CA_BUNDLE", &ca);
        aws
    };
    python::run(&mut invoke(python::aws(&https(&daemon)), "cli-1"));
    if let Some(aws) = crate::clients::cli::version_2(&https(&daemon)) {
        python::run(&mut invoke(aws, "cli-2"));
    }
    let cases = |id: &str, operation: &'static str| {
        let payload = json!({ "id": id }).to_string();
        let args = json!({ "FunctionName": "orders", "InvocationType": "Event", "Payload": payload });
        vec![(id.to_owned(), operation, args)]
    };
    let mut boto3 = python::script("invoke.py");
    boto3.arg(https(&daemon)).env("AWS_CA_BUNDLE", &ca);
    assert_eq!(crate::clients::shown(boto3, &cases("boto3", "invoke"))[0]["shown"]["status"], 202);
    if let Some(node) = crate::clients::javascript() {
        let mut js = Command::new(node);
        js.arg(crate::clients::js("invoke.mjs")).arg(https(&daemon)).env("NODE_EXTRA_CA_CERTS", &ca);
        python::aws_environment(&mut js);
        assert_eq!(crate::clients::shown(js, &cases("js", "Invoke"))[0]["shown"]["status"], 202);
    }
    if let Some(program) = crate::clients::go::program() {
        let mut go = crate::clients::go::invoke(&program, &https(&daemon), "orders", "Event", r#"{"id":"go"}"#);
        assert_eq!(crate::clients::go::status(go.env("AWS_CA_BUNDLE", &ca)), 202);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = crate::clients::rust::client_trusting(&https(&daemon), authority.pem.as_bytes());
    let call = client.invoke().function_name("orders").invocation_type(InvocationType::Event);
    let answer = runtime.block_on(call.payload(Blob::new(r#"{"id":"rust"}"#)).send()).unwrap();
    assert_eq!(answer.status_code(), 202);
    let send = |more: &[&str]| {
        let mut send = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        send.args(["send", "orders", r#"{"id":"send"}"#, "--endpoint", &https(&daemon)]).args(more);
        send.output().unwrap()
    };
    assert!(send(&["--ca", ca.to_str().unwrap()]).status.success());
    let distrustful = send(&[]);
    assert!(String::from_utf8_lossy(&distrustful.stderr).contains("name the authority of its certificate with --ca"));

    let sent = ["boto3", "cli-1", "rust", "send"];
    let is_taken = || sent.iter().all(|id| lambda.taken().contains_key(*id));
    eventually("all are delivered", || is_taken().then_some(()));
    assert!(lambda.taken().values().all(|times| *times == 1), "{:?}", lambda.taken());
}

/// `openssl req -x509` makes such a certificate. SDKs trust it.
#[test]
fn commands_trust_a_certificate_that_is_its_own_authority_for_its_names() {
    let (scratch, state) = scratch();
    let files = scratch.path();
    let Some(openssl) = crate::rig::tools::tool("openssl", "openssl") else { return };
    let mut own = Command::new(openssl);
    own.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=own"]);
    own.args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "own.key", "-out", "own.crt"]);
    python::run(own.current_dir(files));
    let (cert, key) = (files.join("own.crt"), files.join("own.key"));
    let setup = Setup::new(&state).set("tls.cert", cert.to_str().unwrap()).set("tls.key", key.to_str().unwrap());
    let own = setup.set("lambda.endpoint_url", "http://127.0.0.1:9").start();
    let ca = Authority::new("another").write(files);
    let send_to = |name: &str, ca: &Path| {
        let mut send = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        send.args(["send", "orders", "{}", "--endpoint", &format!("https://{name}:{}", own.ingest.port()), "--ca"]);
        send.arg(ca).output().unwrap()
    };
    assert!(send_to("127.0.0.1", &cert).status.success(), "{:?}", send_to("127.0.0.1", &cert));
    assert!(!send_to("localhost", &cert).status.success(), "it has another name");
    let distrustful = String::from_utf8(send_to("127.0.0.1", &ca).stderr).unwrap();
    assert!(distrustful.contains("the certificate is its own authority, and not a trusted one"), "{distrustful}");
}

#[test]
fn http_2_is_chosen_by_alpn_and_plain_http_is_told_what_to_do() {
    let (scratch, state) = scratch();
    let authority = Authority::new("test authority");
    let ca = authority.write(scratch.path());
    let daemon = setup(&state, scratch.path(), &authority.for_loopback(2100)).start();
    let Some(curl) = crate::rig::tools::tool("curl", "curl") else { return };
    let version = |more: &[&str]| {
        let mut curl = Command::new(&curl);
        curl.args(["--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_version} %{http_code}"])
            .args(["--cacert", ca.to_str().unwrap(), "-H", "X-Amz-Invocation-Type: Event", "-d", "{}"])
            .args(more)
            .arg(format!("{}{}", https(&daemon), invoke_path("orders")));
        String::from_utf8(python::run(&mut curl).stdout).unwrap()
    };
    assert_eq!(version(&[]), "2 202");
    assert_eq!(version(&["--http1.1"]), "1.1 202");
    assert_eq!(version(&["--tlsv1.2", "--tls-max", "1.2"]), "2 202");

    for at in [daemon.ingest, daemon.admin] {
        let answer = http::get(at, "/v1/status");
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("InvalidRequestException")));
        assert!(answer.text().contains("https://"), "{answer:?}");
    }
}

#[test]
fn certificates_that_change_under_load_cost_no_request_and_a_bad_pair_changes_nothing() {
    let (scratch, state) = scratch();
    let (old, new) = (Authority::new("old authority"), Authority::new("new authority"));
    let lambda = Lambda::start();
    let setup = setup(&state, scratch.path(), &old.for_loopback(2090));
    let daemon = setup.set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let (by_old, by_new) = (Client::new(&old, None), Client::new(&new, None));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load: Vec<_> = (0..4)
            .map(|_| {
                let mut tls = by_old.connect(daemon.ingest).unwrap();
                let done = &done;
                scope.spawn(move || {
                    let mut requests = 0_u64;
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(again(&mut tls, &invoke_path("orders"), "{}").unwrap(), 202);
                        requests += 1;
                    }
                    requests
                })
            })
            .collect();
        // The key of another certificate is refused.
        let torn = Pair { key: new.for_loopback(2091).key, ..new.for_loopback(2091) };
        torn.swap_in(scratch.path());
        daemon.signal(Signal::HUP);
        eventually("the bad pair is refused", || {
            (metric(&by_old, &daemon, "sendoff_tls_reload_failures_total") == 1.0).then_some(())
        });
        new.for_loopback(2092).swap_in(scratch.path());
        daemon.signal(Signal::HUP);
        eventually("new connections get the new certificate", || by_new.connect(daemon.ingest).ok());
        assert!(by_old.connect(daemon.ingest).is_err());
        eventually("so does the admin listener", || by_new.connect(daemon.admin).ok());
        // A change is also found without a signal.
        old.for_loopback(2093).swap_in(scratch.path());
        eventually("a change is found without a signal", || by_old.connect(daemon.ingest).ok());
        done.store(true, Ordering::Relaxed);
        for one in load {
            assert!(one.join().unwrap() > 0);
        }
    });
    assert_eq!(metric(&by_old, &daemon, "sendoff_tls_certificate_expiry_timestamp_seconds"), 3_881_606_400.0);
    let said = daemon.log().join("\n");
    assert!(said.contains("files are not reloaded: what was read before stays in service"), "{said}");
    assert!(!said.contains("PRIVATE KEY"), "{said}");
}

#[test]
fn a_caller_who_leaves_ends_its_call_over_tls() {
    let lambda = Streaming::start(vec![("/2015-03-31/", vec![Step::UntilLeft])]);
    let (scratch, state) = scratch();
    let authority = Authority::new("test authority");
    let setup = setup(&state, scratch.path(), &authority.for_loopback(2100));
    let daemon = setup.set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let client = Client::new(&authority, None);
    for (calls, says_so) in [(1, true), (2, false)] {
        let mut tls = client.connect(daemon.ingest).unwrap();
        let call = http::head(daemon.ingest, "POST", &invoke_path("orders"), &[], 2);
        std::io::Write::write_all(&mut tls, &[&call[..], b"{}"].concat()).unwrap();
        eventually("the call is at Lambda", || (lambda.heads().len() == calls).then_some(()));
        if says_so {
            tls.conn.send_close_notify();
            tls.conn.write_tls(&mut tls.sock).unwrap();
        }
        drop(tls);
        lambda.wait_until_left();
    }
}

#[test]
fn clients_without_the_certificate_that_is_required_do_not_get_in() {
    let (scratch, state) = scratch();
    let authority = Authority::new("test authority");
    let ca = authority.write(scratch.path());
    let setup = setup(&state, scratch.path(), &authority.for_loopback(2100));
    let daemon = setup.set("tls.client_ca", ca.to_str().unwrap()).set("tls.client_required", "true").start();
    let own = authority.issue(&["orders.shop.test"], 2100);
    let headers = [("X-Amz-Invocation-Type", "Event")];
    let invoke = |client: Client| client.request(daemon.ingest, "POST", &invoke_path("orders"), &headers, b"{}");
    assert_eq!(invoke(Client::new(&authority, Some(&own))).unwrap().status, 202);
    assert!(invoke(Client::new(&authority, None)).is_err());
    let forged = Authority::new("test authority").issue(&["orders.shop.test"], 2100);
    assert!(invoke(Client::new(&authority, Some(&forged))).is_err());
    let probe = Client::new(&authority, None).request(daemon.admin, "GET", "/readyz", &[], b"").unwrap();
    assert_eq!(probe.status, 200, "probes have no certificate");
}

#[test]
fn commands_know_the_daemon_of_their_configuration_and_files_are_checked_before_it_starts() {
    let (scratch, state) = scratch();
    let files = scratch.path();
    let authority = Authority::new("test authority");
    // A name that no address of loopback has.
    let daemon = setup(&state, files, &authority.issue(&["sendoff.shop.test"], 2100)).start();
    let config = files.join("s.toml");
    let text = format!(
        "state_dir = {state:?}\n[listen]\ningest = \"{}\"\nadmin = \"{}\"\n[tls]\ncert = {:?}\nkey = {:?}\n",
        daemon.ingest,
        daemon.admin,
        files.join("tls.crt"),
        files.join("tls.key")
    );
    std::fs::write(&config, &text).unwrap();
    let sendoff = |line: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        command.args(line).args(["--config", config.to_str().unwrap()]);
        python::aws_environment(&mut command);
        let output = command.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), said)
    };
    for line in [&["healthcheck"][..], &["status"], &["send", "orders", "{}"]] {
        let (code, said) = sendoff(line);
        assert_eq!(code, 0, "{line:?}: {said}");
    }
    assert!(sendoff(&["check-config"]).1.contains("certificate is good until 2100-01-01"));
    Authority::new("another").issue(&["sendoff.shop.test"], 2100).swap_in(files);
    let (code, said) = sendoff(&["status"]);
    assert!(code == 69 && said.contains("presents another certificate than the one of tls.cert"), "{said}");

    authority.issue(&["sendoff.shop.test"], 2001).swap_in(files);
    let (code, said) = sendoff(&["check-config"]);
    assert!(code == 78 && said.contains("expired on 2001-01-01"), "{said}");
    std::fs::write(&config, text.replace("tls.crt", "none.crt")).unwrap();
    let (code, said) = sendoff(&["check-config"]);
    assert!(code == 78 && said.contains("does not work here:\n\n  tls.cert = "), "lines are lines: {said}");
    assert!(said.contains("cannot be read: No such file"), "{said}");
    let (code, said) = sendoff(&["serve", "--set", "listen.ingest=127.0.0.1:0", "--set", "listen.admin=127.0.0.1:0"]);
    assert!(code == 78 && said.contains("a file of the configuration cannot be used: tls.cert"), "{code} {said}");
    assert_eq!(said.matches("No such file").count(), 1, "said once: {said}");
}
