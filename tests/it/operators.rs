//! Who may use the operator's API: by the socket, by a token, by a certificate; what each may do, and what the audit says.

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::http::{self, Response};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{eventually, tools};
use crate::tls::authority::{Authority, Client};

const OPERATE: &str = "operate-0123456789012345678901234567";
const READ: &str = "read-0123456789012345678901234567890";
const PAYLOADS: &str = "payloads-012345678901234567890123456";
const WRONG: &str = "wrong-012345678901234567890123456789";

/// Files of secrets and the tables that name them, in a configuration file.
fn operators(directory: &Path, more: &str) -> PathBuf {
    let token = |name: &str, secret: &str| {
        let path = directory.join(name);
        std::fs::write(&path, secret).unwrap();
        path.display().to_string()
    };
    let (operate, read, payloads) = (token("operate", OPERATE), token("read", READ), token("payloads", PAYLOADS));
    let text = format!(
        "[auth]\nadmin = 'required'\n{more}\n[operators.oncall]\nrole = 'operate'\ntoken_file = '{operate}'\n\
         [operators.board]\ntoken_file = '{read}'\n\
         [operators.auditor]\nrole = 'read'\npayloads = true\ntoken_file = '{payloads}'\n"
    );
    let file = directory.join("sendoff.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn ask(admin: SocketAddr, method: &str, path: &str, token: Option<&str>) -> Response {
    let bearer = token.map(bearer);
    let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
    let body = if path.ends_with("log-level") && method == "PUT" { &br#"{"level":"info"}"#[..] } else { b"" };
    let json = [("Content-Type", "application/json")];
    let headers: Vec<_> = if body.is_empty() { headers } else { headers.into_iter().chain(json).collect() };
    http::request(admin, method, path, &headers, body)
}

/// A daemon that delivers nothing, so that an event stays.
fn holding(setup: Setup, lambda: &Lambda) -> (Daemon, String) {
    lambda.throttle_all();
    // With a level of "error" the log does not say when it is ready.
    let daemon = setup.set("lambda.endpoint_url", &lambda.endpoint_url()).start_unheard();
    let id = daemon.accept("orders", &[], &payload("secret-payload"));
    (daemon, id)
}

/// The lines of the audit, once there are as many; the log is written by a thread of its own.
fn audit(daemon: &Daemon, count: usize) -> Vec<Value> {
    let lines = || -> Vec<Value> {
        let records = daemon.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        records.filter(|record| record["target"] == "sendoff::audit").collect()
    };
    eventually("the audit is written", || (lines().len() >= count).then_some(()));
    lines()
}

#[test]
fn each_role_may_do_what_it_says_on_every_kind_of_route() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let file = operators(scratch.path(), "metrics = true\n");
    let (daemon, id) = holding(Setup::new(&state).config(&file).set("log.level", "error"), &lambda);
    let event = format!("/v1/events/{id}");
    let shown = format!("{event}?payload=true");
    let callers = [None, Some(WRONG), Some(READ), Some(PAYLOADS), Some(OPERATE)];
    // No token, a wrong one, read, read with payloads, operate.
    let routes = [
        ("GET", "/livez", [200, 200, 200, 200, 200]),
        ("GET", "/readyz", [200, 200, 200, 200, 200]),
        ("GET", "/metrics", [401, 401, 200, 200, 200]),
        ("GET", "/v1/status", [401, 401, 200, 200, 200]),
        ("GET", "/v1/actions", [401, 401, 200, 200, 200]),
        ("GET", "/v1/whoami", [401, 401, 200, 200, 200]),
        ("GET", "/v1/snapshot", [401, 401, 200, 200, 200]),
        ("GET", "/v1/series", [401, 401, 200, 200, 200]),
        ("GET", "/v1/recent", [401, 401, 200, 200, 200]),
        ("GET", "/v1/config", [401, 401, 200, 200, 200]),
        ("GET", "/v1/bulk", [401, 401, 200, 200, 200]),
        ("GET", "/v1/dead-letters/groups", [401, 401, 200, 200, 200]),
        ("DELETE", "/v1/bulk/1", [401, 401, 403, 403, 404]),
        ("GET", "/v1/dead-letters", [401, 401, 200, 200, 200]),
        ("GET", event.as_str(), [401, 401, 200, 200, 200]),
        ("HEAD", shown.as_str(), [401, 401, 403, 200, 403]),
        ("GET", shown.as_str(), [401, 401, 403, 200, 403]),
        ("GET", "/v1/dead-letters?payloads=true", [401, 401, 403, 200, 403]),
        ("GET", "/v1/dead-letters?%70ayloads=true", [401, 401, 403, 200, 403]),
        ("PUT", "/v1/log-level", [401, 401, 403, 403, 200]),
        ("PUT", "/v1/drain", [401, 401, 403, 403, 204]),
        ("DELETE", "/v1/drain", [401, 401, 403, 403, 204]),
        ("POST", "/v1/functions/orders/pause", [401, 401, 403, 403, 200]),
        ("POST", "/v1/functions/orders/resume", [401, 401, 403, 403, 200]),
        ("POST", "/v1/functions/orders/purge?dry_run=true", [401, 401, 403, 403, 200]),
        ("GET", "/nowhere", [401, 401, 404, 404, 404]),
        ("POST", "/v1/status", [405, 405, 405, 405, 405]),
    ];
    for (method, path, statuses) in routes {
        for (token, status) in callers.into_iter().zip(statuses) {
            // With HEAD no body follows, whatever the head says.
            let answer = if method == "HEAD" {
                let bearer = token.map(bearer).unwrap_or_default();
                let head = http::head(daemon.admin, method, path, &[("Authorization", &bearer)], 0);
                assert_eq!(http::status(daemon.admin, &head), status, "{method} {path} {token:?}");
                continue;
            } else {
                ask(daemon.admin, method, path, token)
            };
            assert_eq!(answer.status, status, "{method} {path} {token:?}: {answer:?}");
            let challenge = answer.header("www-authenticate");
            assert_eq!(challenge, (status == 401).then_some("Bearer"), "{method} {path}");
            if status >= 400 {
                assert!(answer.json()["message"].as_str().is_some_and(|text| !text.is_empty()), "{answer:?}");
            }
        }
    }
    let denied = ask(daemon.admin, "POST", "/v1/functions/orders/pause", Some(READ)).text();
    assert!(denied.contains("operators.board.role"), "{denied}");
    let denied = ask(daemon.admin, "GET", &shown, Some(OPERATE)).text();
    assert!(denied.contains("operators.oncall.payloads"), "{denied}");

    the_audit_says_it(&daemon);
}

/// What the requests above are to the audit, under log.level = "error", and to the metrics.
fn the_audit_says_it(daemon: &Daemon) {
    let page = ask(daemon.admin, "GET", "/v1/actions?limit=1000", Some(READ)).json();
    let kept = page["actions"].as_array().unwrap().len();
    let lines = audit(daemon, kept);
    assert_eq!(lines.len(), kept);
    let count = |operator: &str, action: &str, result: &str| {
        let fits = |line: &&Value| {
            line["operator"] == operator
                && line["action"] == action
                && line["result"] == result
                && line["proof"] == "token"
        };
        lines.iter().filter(fits).count()
    };
    for (action, done) in
        [("set-log-level", 1), ("drain", 1), ("end-drain", 1), ("pause-function", 1), ("purge-function", 1)]
    {
        assert_eq!(count("oncall", action, "done"), done, "{action}");
        assert_eq!(count("auditor", action, "denied"), 1, "{action}");
    }
    assert_eq!(count("auditor", "view-payload", "done") + count("auditor", "view-payloads", "done"), 4);
    assert_eq!(count("board", "view-payload", "denied") + count("board", "view-payloads", "denied"), 4);
    let paused = lines.iter().find(|line| line["action"] == "pause-function" && line["result"] == "done").unwrap();
    assert_eq!((&paused["object"], &paused["status"]), (&Value::from("orders"), &Value::from(200)));
    assert!(paused["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{paused}");

    let metrics = ask(daemon.admin, "GET", "/metrics", Some(READ)).text();
    for series in [
        "sendoff_admin_actions_total{action=\"pause-function\",result=\"done\"} 1",
        "sendoff_admin_actions_total{action=\"redrive-from-queue\",result=\"done\"} 0",
        "sendoff_admin_denied_total{operator=\"board\",reason=\"operate\"} 8",
        "sendoff_admin_denied_total{operator=\"unknown\",reason=\"no-credentials\"}",
        "sendoff_admin_denied_total{operator=\"unknown\",reason=\"unknown-credentials\"}",
    ] {
        assert!(metrics.contains(series), "{series} in {metrics}");
    }
    let said = daemon.log().join("\n");
    for secret in [OPERATE, READ, PAYLOADS, WRONG, "secret-payload"] {
        assert!(!said.contains(secret) && !metrics.contains(secret), "{secret}");
    }
}

#[test]
fn a_read_only_daemon_is_changed_by_nobody() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let socket = scratch.path().join("admin.sock");
    let file = operators(scratch.path(), "read_only = true\n");
    let setup = Setup::new(&state).config(&file).set("listen.admin_unix", socket.to_str().unwrap());
    let (daemon, _) = holding(setup, &lambda);
    let refused = ask(daemon.admin, "POST", "/v1/functions/orders/purge", Some(OPERATE));
    assert!(refused.status == 403 && refused.text().contains("auth.read_only"), "{refused:?}");
    let (code, said) = by_socket(&socket, &["pause", "orders"], &[]);
    assert!(code == 1 && said.contains("auth.read_only"), "{said}");
    assert_eq!(by_socket(&socket, &["status"], &[]).0, 0);
    let bearer = bearer(READ);
    assert_eq!(http::request(daemon.admin, "GET", "/v1/status", &[("Authorization", &bearer)], b"").status, 200);
}

/// Runs a command that finds the daemon by its socket, as whom the wrapper makes it.
fn by_socket(socket: &Path, args: &[&str], wrapper: &[&str]) -> (i32, String) {
    let binary = env!("CARGO_BIN_EXE_sendoff");
    let words: Vec<&str> = wrapper.iter().copied().chain([binary]).chain(args.iter().copied()).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("SENDOFF_LISTEN__ADMIN_UNIX", socket).env("SENDOFF_LISTEN__ADMIN", "127.0.0.1:1");
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), said)
}

#[test]
fn the_socket_needs_no_token_from_the_daemons_own_user_and_commands_try_it_first() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let socket = scratch.path().join("admin.sock");
    // What a killed daemon leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let setup = Setup::new(&state).set("listen.admin_unix", socket.to_str().unwrap()).set("auth.admin", "required");
    let (daemon, id) = holding(setup.clone(), &lambda);
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    assert_eq!(http::get(daemon.admin, "/v1/status").status, 401, "by TCP nobody is known");
    for args in
        [&["status"][..], &["healthcheck"], &["pause", "orders"], &["events", "show", &id], &["resume", "orders"]]
    {
        let (code, said) = by_socket(&socket, args, &[]);
        assert_eq!(code, 0, "{args:?}: {said}");
    }
    let (code, said) = by_socket(&socket, &["actions", "--json"], &[]);
    assert_eq!(code, 0, "{said}");
    let actions: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let uid = rustix::process::geteuid().as_raw();
    let name = if uid == 0 { "root" } else { "sendoff" };
    assert_eq!(actions.len(), 2, "{said}");
    assert_eq!((&actions[0]["action"], &actions[0]["operator"]), (&"pause-function".into(), &name.into()));
    assert_eq!((&actions[1]["proof"], &actions[1]["peer"]), (&"user".into(), &format!("uid {uid}").into()));
    let (_, table) = by_socket(&socket, &["actions"], &[]);
    assert!(table.contains("pause-function") && table.contains("done (200)"), "{table}");

    let (_other_scratch, other) = self::scratch();
    let second = Setup::new(&other).set("listen.admin_unix", socket.to_str().unwrap());
    let (code, said) = second.fail_to_start();
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("another process listens on it") && said.contains("another listen.admin_unix"), "{said}");
    assert_eq!(by_socket(&socket, &["status"], &[]).0, 0, "the live socket was left alone");

    daemon.terminate();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!socket.exists());
    let (code, said) = by_socket(&socket, &["status"], &[]);
    assert!(code == 69 && said.contains("admin.sock: No such file"), "{said}");
}

#[test]
fn another_user_on_the_socket_is_nobody_unless_it_is_an_operator() {
    let (scratch, state) = scratch();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = scratch.path().join("admin.sock");
    let file = scratch.path().join("sendoff.toml");
    std::fs::write(&file, "[auth]\nadmin = 'required'\n[operators.web]\nuid = '4321'\n").unwrap();
    let setup = Setup::new(&state).config(&file).set("listen.admin_unix", socket.to_str().unwrap());
    let daemon = setup.set("listen.admin_unix_mode", "0666").start();
    let Some(setpriv) = tools::tool("setpriv", "util-linux") else { return };
    let setpriv = setpriv.to_str().unwrap().to_owned();
    if !rustix::process::geteuid().is_root() {
        println!("NOT RUN: only root can become another user");
        return;
    }
    // The binary of the test is where another user may not look, so a file that it can reach asks.
    let curl = |uid: &str, method: &str, path: &str| {
        let mut command = Command::new(&setpriv);
        command.args([
            "--reuid",
            uid,
            "--clear-groups",
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            method,
        ]);
        command.arg("--unix-socket").arg(&socket).arg(format!("http://localhost{path}"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    for (uid, method, path, status) in [
        ("4322", "GET", "/v1/status", "401"),
        ("4322", "POST", "/v1/functions/orders/pause", "401"),
        ("4322", "GET", "/readyz", "200"),
        ("4321", "GET", "/v1/status", "200"),
        ("4321", "POST", "/v1/functions/orders/pause", "403"),
        ("0", "POST", "/v1/functions/orders/pause", "200"),
    ] {
        assert_eq!(curl(uid, method, path), status, "uid {uid}: {method} {path}");
    }
    let denied: Vec<_> =
        audit(&daemon, 2).iter().map(|line| (line["operator"].clone(), line["result"].clone())).collect();
    assert_eq!(denied, [("web".into(), "denied".into()), ("root".into(), "done".into())]);
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(curl("4321", "GET", "/v1/status"), "000", "the file keeps others out");
}

#[test]
fn commands_show_a_token_over_tls_and_a_certificate_names_an_operator() {
    let (scratch, state) = scratch();
    let directory = scratch.path();
    let authority = Authority::new("test authority");
    let ca = authority.write(directory);
    authority.for_loopback(2100).swap_in(directory);
    let file = operators(directory, "");
    let text = std::fs::read_to_string(&file).unwrap() + "[operators.mesh]\nsan = 'spiffe://shop.test/ops'\n";
    std::fs::write(&file, text).unwrap();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let setup = Setup::new(&state).config(&file).set("tls.client_ca", ca.to_str().unwrap());
    let setup =
        setup.set("tls.cert", &path("tls.crt")).set("tls.key", &path("tls.key")).set("listen.admin", "0.0.0.0:0");
    let daemon = setup.start();
    let port = daemon.admin.port();
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        command.args(args).env_clear().envs(variables.iter().copied());
        command.args(["--admin", &format!("https://127.0.0.1:{port}"), "--ca", ca.to_str().unwrap()]);
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), said)
    };
    let (operate, read) = (path("operate"), path("read"));
    let (code, said) = run(&["status"], &[]);
    assert!(code == 1 && said.contains("--token-file") && said.contains("listen.admin_unix"), "{said}");
    assert_eq!(run(&["status", "--token-file", &read], &[]).0, 0);
    assert_eq!(run(&["status"], &[("SENDOFF_ADMIN_TOKEN_FILE", &read)]).0, 0);
    let (code, said) = run(&["pause", "orders", "--token-file", &read], &[]);
    assert!(code == 1 && said.contains("operators.board.role"), "{said}");
    let (code, said) = run(&["pause", "orders", "--token-file", &operate], &[("SENDOFF_ADMIN_TOKEN_FILE", &read)]);
    assert_eq!(code, 0, "the flag counts: {said}");
    let (code, said) = run(&["status", "--token-file", &path("nowhere")], &[]);
    assert!(code == 1 && said.contains("cannot use the token"), "{said}");

    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let mesh = authority.issue(&["spiffe://shop.test/ops"], 2100);
    let stranger = authority.issue(&["spiffe://shop.test/web"], 2100);
    let status = |own: Option<&crate::tls::authority::Pair>| {
        Client::new(&authority, own).request(at, "GET", "/v1/status", &[], b"").unwrap().status
    };
    assert_eq!((status(Some(&mesh)), status(Some(&stranger)), status(None)), (200, 401, 401));

    // A new token is taken without a restart, and the old one is good for nothing.
    std::fs::write(directory.join("read"), WRONG).unwrap();
    daemon.signal(Signal::HUP);
    let new = path("new");
    std::fs::write(&new, READ).unwrap();
    eventually("the old token is refused", || (run(&["status", "--token-file", &new], &[]).0 == 1).then_some(()));
    assert_eq!(run(&["status", "--token-file", &read], &[]).0, 0);
}

#[test]
fn without_authentication_everybody_operates_as_before_and_is_audited() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = Setup::new(&state).set("log.level", "off").set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.start_unheard();
    assert_eq!(http::request(daemon.admin, "POST", "/v1/functions/orders/pause", &[], b"").status, 200);
    let id = daemon.accept("orders", &[], &payload("kept"));
    assert_eq!(http::request(daemon.admin, "DELETE", &format!("/v1/events/{id}"), &[], b"").status, 200);
    assert_eq!(http::request(daemon.admin, "DELETE", &format!("/v1/events/{id}"), &[], b"").status, 404);
    let headers = [("Content-Type", "application/json")];
    let off = http::request(daemon.admin, "PUT", "/v1/log-level", &headers, br#"{"level":"sendoff::audit=off"}"#);
    assert_eq!(off.status, 400, "{off:?}");
    let lines = audit(&daemon, 4);
    let said: Vec<_> =
        lines.iter().map(|line| (line["action"].as_str().unwrap(), line["result"].as_str().unwrap())).collect();
    assert_eq!(
        said,
        [("pause-function", "done"), ("cancel-event", "done"), ("cancel-event", "failed"), ("set-log-level", "failed")]
    );
    assert!(
        lines[1]["operator"] == "anyone" && lines[1]["object"] == id.as_str() && lines[1]["events"] == 1,
        "{lines:?}"
    );
}
