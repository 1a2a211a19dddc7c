//! Changes the tables of clients and operators while the daemon runs, and knows clients by their user on the Unix socket.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::rig::daemon::{Setup, scratch};
use crate::rig::http::{self, Response};
use crate::rig::{eventually, tools};

/// A secret of this name.
fn secret(name: &str) -> String {
    format!("{name}-0123456789012345678901234567890")
}

/// Writes the file of a secret, and a table that names it.
fn table(directory: &Path, family: &str, name: &str, more: &str) -> String {
    let file = directory.join(format!("{family}-{name}"));
    std::fs::write(&file, secret(name)).unwrap();
    format!("[{family}.{name}]\n{more}\ntoken_file = '{}'\n", file.display())
}

fn send(to: SocketAddr, name: &str, function: &str) -> Response {
    let bearer = format!("Bearer {}", secret(name));
    let body = format!(r#"{{"function":"{function}"}}"#);
    http::request(to, "POST", "/v1/events", &[("Authorization", &bearer)], body.as_bytes())
}

#[test]
fn clients_and_operators_come_change_and_go_by_a_reload_and_what_protects_the_listener_stays() {
    let (scratch, state) = scratch();
    let directory = scratch.path();
    let config = directory.join("sendoff.toml");
    let write = |ingest: &str, tables: &[String]| {
        let text = format!("[auth]\ningest = '{ingest}'\nadmin = 'required'\n{}", tables.concat());
        std::fs::write(&config, text).unwrap();
    };
    let client = |name: &str, functions: &str| table(directory, "clients", name, &format!("functions = '{functions}'"));
    let oncall = table(directory, "operators", "oncall", "role = 'read'");
    write("required", &[client("a", "orders"), oncall.clone()]);
    let setup = Setup::new(&state).config(&config).set("lambda.endpoint_url", "http://127.0.0.1:9");
    let daemon = setup.start();
    let status = |name: &str, function: &str| send(daemon.ingest, name, function).status;
    let operate = |name: &str| {
        let bearer = format!("Bearer {}", secret(name));
        http::request(daemon.admin, "POST", "/v1/functions/orders/pause", &[("Authorization", &bearer)], b"").status
    };
    assert_eq!((status("a", "orders"), status("a", "mails"), status("b", "orders")), (202, 403, 401));
    assert_eq!((operate("oncall"), operate("web")), (403, 401));

    // One is added, the other changed.
    let oncall = oncall.replace("read", "operate");
    let web = table(directory, "operators", "web", "role = 'operate'");
    write("required", &[client("a", "mails"), client("b", "*"), oncall.clone(), web]);
    daemon.signal(Signal::HUP);
    eventually("b is let in", || (status("b", "orders") == 202).then_some(()));
    assert_eq!((status("a", "orders"), status("a", "mails")), (403, 202));
    eventually("web may operate", || (operate("web") == 200).then_some(()));
    assert_eq!(operate("oncall"), 200);
    let applied = daemon.wait_for_log(|record| record["message"] == "configuration reloaded");
    let keys = "clients.a.functions, clients.b.functions, clients.b.token_file, operators.oncall.role, \
                operators.web.role, operators.web.token_file";
    assert_eq!(applied["applied"], keys);

    // A table whose secret is missing changes nothing at all.
    let missing = client("c", "*");
    std::fs::remove_file(directory.join("clients-c")).unwrap();
    write("required", &[client("b", "mails"), missing, oncall.clone()]);
    daemon.signal(Signal::HUP);
    let refused = daemon.wait_for_log(|record| {
        record["message"].as_str().is_some_and(|message| message.starts_with("configuration not reloaded"))
    });
    let problems = refused["problems"].as_str().unwrap();
    assert!(problems.contains("clients.c.token_file") && problems.contains("No such file"), "{problems}");
    assert_eq!((status("a", "mails"), status("b", "orders"), operate("web")), (202, 202, 200));

    // Removed tables let nobody in. The listener still asks, whatever the file says now.
    write("none", &[client("b", "*"), oncall.clone()]);
    daemon.signal(Signal::HUP);
    eventually("a is nobody", || (status("a", "mails") == 401).then_some(()));
    eventually("web is nobody", || (operate("web") == 401).then_some(()));
    assert_eq!((status("b", "orders"), operate("oncall")), (202, 200));
    assert_eq!(http::request(daemon.ingest, "POST", "/v1/events", &[], br#"{"function":"orders"}"#).status, 401);
    let told = daemon.wait_for_log(|record| record["needs_restart"] == "auth.ingest");
    assert_eq!(told["level"], "WARN");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log(|record| record["message"] == "configuration read again: no key has changed");
    // What is again as at the start needs no restart.
    write("required", &[client("b", "*"), oncall]);
    daemon.signal(Signal::HUP);
    eventually("the third reading is over", || {
        let logged = daemon.log();
        (logged.iter().filter(|line| line.contains("read again: no key has changed")).count() >= 2).then_some(())
    });
    assert_eq!(daemon.log().iter().filter(|line| line.contains("\"needs_restart\"")).count(), 1);
}

#[test]
fn the_first_client_can_be_added_while_nobody_is_asked() {
    let (scratch, state) = scratch();
    let config = scratch.path().join("sendoff.toml");
    std::fs::write(&config, "").unwrap();
    let setup = Setup::new(&state).config(&config).set("lambda.endpoint_url", "http://127.0.0.1:9");
    let daemon = setup.start();
    assert_eq!(send(daemon.ingest, "a", "mails").status, 202, "a token means nothing yet");
    std::fs::write(&config, table(scratch.path(), "clients", "a", "functions = 'orders'")).unwrap();
    daemon.signal(Signal::HUP);
    eventually("a is held to its functions", || (send(daemon.ingest, "a", "mails").status == 403).then_some(()));
    assert_eq!(send(daemon.ingest, "a", "orders").status, 202);
    assert_eq!(daemon.invoke("mails", &[], b"{}").status, 202, "everybody else is let in as before");
}

#[test]
fn tables_wait_for_a_restart_if_names_of_functions_would_mean_others() {
    let (scratch, state) = scratch();
    let config = scratch.path().join("sendoff.toml");
    let client = |functions: &str| table(scratch.path(), "clients", "a", &format!("functions = '{functions}'"));
    std::fs::write(&config, client("orders")).unwrap();
    let setup = Setup::new(&state).config(&config).set("lambda.endpoint_url", "http://127.0.0.1:9");
    let daemon = setup.start();
    // In the region of the file this pattern means the bare name, and in the daemon's it does not.
    let arn = "arn:aws:lambda:us-east-1:123456789012:function:mails";
    let text = format!("lambda.region = 'us-east-1'\nlambda.account_id = '123456789012'\n{}", client(arn));
    std::fs::write(&config, text).unwrap();
    daemon.signal(Signal::HUP);
    let told = daemon.wait_for_log(|record| record["needs_restart"].is_string());
    let told = told["needs_restart"].as_str().unwrap();
    assert!(told.contains("clients.a.functions") && told.contains("lambda.region"), "{told}");
    assert_eq!((send(daemon.ingest, "a", "mails").status, send(daemon.ingest, "a", "orders").status), (403, 202));
}

#[test]
fn a_user_on_the_unix_socket_is_a_client_and_another_is_not() {
    let (scratch, state) = scratch();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = scratch.path().join("ingest.sock");
    let config = scratch.path().join("sendoff.toml");
    std::fs::write(&config, "[auth]\ningest = 'required'\n[clients.web]\nfunctions = 'orders'\nuid = '4321'\n")
        .unwrap();
    let setup = Setup::new(&state).config(&config).set("listen.unix", socket.to_str().unwrap());
    let setup = setup.set("listen.unix_mode", "0666").set("lambda.endpoint_url", "http://127.0.0.1:9");
    let daemon = setup.start();
    let Some(setpriv) = tools::tool("setpriv", "util-linux") else { return };
    let Some(curl) = tools::tool("curl", "curl") else { return };
    if !rustix::process::geteuid().is_root() {
        return tools::not_allowed("only root can become another user");
    }
    let status = |uid: &str, path: &str, function: &str| {
        let mut command = Command::new(&setpriv);
        command.args(["--reuid", uid, "--clear-groups"]).arg(&curl);
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "X-Amz-Invocation-Type: Event", "-d"]);
        command.arg(format!(r#"{{"function":"{function}"}}"#)).arg("--unix-socket").arg(&socket);
        command.arg(format!("http://localhost{path}"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    for (uid, function, native, lambda) in [
        ("4321", "orders", "202", "202"),
        ("4321", "mails", "403", "403"),
        ("4322", "orders", "401", "403"),
        ("0", "mails", "202", "202"),
    ] {
        assert_eq!(status(uid, "/v1/events", function), native, "uid {uid}: {function}");
        let invoke = crate::rig::daemon::invoke_path(function);
        assert_eq!(status(uid, &invoke, function), lambda, "uid {uid}: {function} at Lambda's door");
    }
    let by_tcp = http::request(daemon.ingest, "POST", "/v1/events", &[], br#"{"function":"orders"}"#);
    assert_eq!(by_tcp.status, 401);
    let metrics = http::get(daemon.admin, "/metrics").text();
    assert!(metrics.contains("sendoff_ingest_client_requests_total{client=\"web\"} 4"), "{metrics}");
    let names: Vec<Value> = daemon.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(names.iter().all(|record| record["level"] != "ERROR"), "every user has a number here: {names:?}");
}
