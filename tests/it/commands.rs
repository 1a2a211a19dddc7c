//! Tests the output of commands: it is complete, uses the same words, and no foreign text acts on the terminal.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use sendoff::standin::{Script, Trouble};
use serde_json::{Value, json};

use crate::operator::{listed, sendoff};
use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::eventually;
use crate::rig::lambda::{Lambda, payload};

/// Text that clears the screen, rings the bell, forges a row, changes the direction of text, and hides.
const HOSTILE: &str = "no\x1b[2J\x07\r\nready  forged row\u{9b}31m\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}";

fn is_hazard(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn assert_harmless(args: &[&str], said: &str) {
    assert!(!said.contains(is_hazard), "{args:?}: {said:?}");
    assert!(!said.lines().any(|line| line.starts_with("ready  forged")), "{args:?}: {said}");
}

/// A server that answers every request with the result of `answer` for its method and path, one connection at a time.
fn server(answer: impl Fn(&str, &str) -> (&'static str, String) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            let head_end = |request: &[u8]| request.windows(4).position(|end| end == b"\r\n\r\n");
            while head_end(&request).is_none() {
                match connection.read(&mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => request.extend_from_slice(&chunk[..read]),
                }
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let mut words = text.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let (status, body) = answer(method, path.split('?').next().unwrap_or_default());
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            drop(connection.write_all(format!("{head}{body}").as_bytes()));
        }
    });
    address
}

const ID: &str = "0197a1b2-0000-7000-8000-000000000001";

/// The answers of a daemon if all text in them were hostile.
fn hostile(method: &str, path: &str) -> (&'static str, String) {
    let error = json!({ "at": HOSTILE, "status": 500, "code": HOSTILE, "message": HOSTILE, "request_id": HOSTILE });
    let held = json!({ "scope": HOSTILE, "kind": HOSTILE, "reason": HOSTILE, "until": HOSTILE });
    let event = json!({
        "id": ID, "function": HOSTILE, "state": HOSTILE, "in_flight": false, "accepted_at": HOSTILE, "due": HOSTILE,
        "attempts": 1, "charged": 1, "last_error": error, "reason": "refused", "deliver_at": HOSTILE, "expires_at": null,
        "redrives": 0, "payload_bytes": 2,
    });
    let letter = json!({
        "id": ID, "function": HOSTILE, "reason": "refused", "buried_at": HOSTILE, "accepted_at": HOSTILE, "attempts": 1,
        "charged": 1, "redrives": 0, "last_error": error, "unshippable": HOSTILE, "shipping": false, "payload_bytes": 2,
        "export": { "envelope": HOSTILE },
    });
    let function = json!({
        "function": HOSTILE, "depth": 1, "ready": 1, "waiting": 0, "scheduled": 0, "buried": 0, "oldest_age_seconds": 1.0,
        "in_flight": 0, "limit": 1, "account_limit": 1, "paused": false, "held": held,
        "delivered_per_minute": 0, "failed_per_minute": 1, "failing_since": null,
        "last_error": { "at": "2026-01-01T00:00:00Z", "message": HOSTILE },
    });
    let body = match (method, path) {
        ("GET", "/v1/events") => json!({ "events": [event], "next": HOSTILE, "total": 2 }),
        ("DELETE", path) if path.starts_with("/v1/events/") => {
            json!({ "id": ID, "function": HOSTILE, "cancelled": true })
        }
        ("POST", path) if path.starts_with("/v1/events/") => {
            json!({ "id": ID, "function": HOSTILE, "paused": false, "held": held })
        }
        ("GET", path) if path.starts_with("/v1/events/") => event,
        ("GET", "/v1/functions") => json!({ "functions": [function] }),
        ("POST", path) if path.ends_with("/purge") && path.contains("functions") => {
            json!({ "function": HOSTILE, "dry_run": true, "events": 1, "bytes": 2 })
        }
        ("POST", path) if path.contains("functions") => json!({ "function": HOSTILE, "paused": false, "held": held }),
        ("GET", "/v1/dead-letters") => {
            json!({ "dead_letters": [letter], "next": null, "buried": 1, "shipped": 2, "queues": [HOSTILE] })
        }
        ("GET", path) if path.starts_with("/v1/dead-letters/") => letter,
        ("POST", path) if path.starts_with("/v1/dead-letters") => {
            json!({ "answers": [{ "result": "refused", "message": HOSTILE }] })
        }
        _ => return ("500 Internal Server Error", json!({ "message": HOSTILE }).to_string()),
    };
    ("200 OK", body.to_string())
}

#[test]
fn no_text_of_others_acts_on_the_terminal_whichever_command_shows_it() {
    let admin = server(hostile);
    let commands: [&[&str]; 19] = [
        &["events", "list"],
        &["events", "list", "--limit", "1", "--json"],
        &["events", "show", ID],
        &["events", "cancel", ID],
        &["events", "attempt", ID],
        &["functions"],
        &["functions", "--json"],
        &["pause", "f"],
        &["resume", "f"],
        &["resume", "*"],
        &["purge", "*", "--dry-run"],
        &["dead-letters", "list"],
        &["dead-letters", "list", "--json"],
        &["dead-letters", "show", ID],
        &["dead-letters", "purge", ID, "--yes"],
        &["dead-letters", "export"],
        &["redrive", "--local"],
        &["status"],
        &["drain", "--timeout", "0s"],
    ];
    for args in commands {
        let (code, said) = sendoff(admin, args);
        assert!(code <= 1, "{args:?}: {code} {said}");
        assert_harmless(args, &said);
        // Escaped text can still be read.
        assert!(said.contains("forged row"), "{args:?}: {said}");
    }
    let refusing = server(|_, _| ("409 Conflict", json!({ "message": HOSTILE }).to_string()));
    for args in commands.iter().copied().chain([&["healthcheck"][..]]) {
        let (code, said) = sendoff(refusing, args);
        assert_eq!((code, said.contains("forged row")), (1, true), "{args:?}: {said}");
        assert_harmless(args, &said);
    }
    let plain = server(|_, _| ("502 Bad Gateway", HOSTILE.to_owned()));
    let (code, said) = sendoff(plain, &["status"]);
    assert_eq!(code, 1, "{said}");
    assert_harmless(&["status"], &said);
}

#[test]
fn lambdas_own_words_forge_no_row() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.default_script(Script::always(Trouble::error(400, "InvalidRequestContentException", HOSTILE)));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("log.format", "text");
    let mut daemon = daemon.spawn();
    let ready = |line: &str| {
        let address =
            |name: &str| line.split(name).nth(1)?.trim_start_matches(['=', '"']).split('"').next()?.parse().ok();
        if line.contains("ready ingest") { Some((address("ingest")?, address("admin")?)) } else { None }
    };
    let (ingest, admin): (SocketAddr, SocketAddr) = daemon.line(crate::rig::PATIENCE, ready).unwrap();
    let headers = [("X-Amz-Invocation-Type", "Event")];
    let path = crate::rig::daemon::invoke_path("orders");
    assert_eq!(crate::rig::http::request(ingest, "POST", &path, &headers, &payload("dies")).status, 202);
    eventually("it is dead", || {
        let (code, said) = sendoff(admin, &["dead-letters", "list"]);
        (code == 0 && said.contains("1 dead letter shown")).then_some(())
    });
    for args in [&["dead-letters", "list"][..], &["events", "list"], &["functions"], &["status"]] {
        let (code, said) = sendoff(admin, args);
        assert_eq!(code, 0, "{args:?}: {said}");
        assert_harmless(args, &said);
    }
    daemon.kill9();
    for line in daemon.lines() {
        assert_harmless(&["the log"], &line);
    }
}

/// A daemon whose Lambda throttles, with this many events of `orders` and one of `invoices`.
fn backlog(lambda: &Lambda, state: &std::path::Path, orders: usize) -> Daemon {
    lambda.throttle_all();
    let daemon = Setup::new(state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    for n in 0..orders {
        daemon.accept("orders", &[], &payload(&format!("order-{n}")));
    }
    daemon.accept("invoices", &[], &payload("invoice"));
    daemon
}

#[test]
fn a_list_of_events_says_how_many_it_left_out_and_goes_on_where_it_ended() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = backlog(&lambda, &state, 7);
    // Attempts move events between states, and so between pages.
    assert_eq!(sendoff(daemon.admin, &["pause", "*"]).0, 0);
    eventually("nothing is in flight", || {
        let functions = listed(daemon.admin, &["functions", "--json"]);
        functions.iter().all(|function| function["in_flight"] == 0).then_some(())
    });
    let (code, said) = sendoff(daemon.admin, &["events", "list", "--limit", "5"]);
    assert_eq!((code, said.contains("5 of 8 shown; continue with --after ")), (0, true), "{said}");
    let token = said.split("--after ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let (code, said) = sendoff(daemon.admin, &["events", "list", "--after", &token]);
    assert_eq!((code, said.contains("3 events shown")), (0, true), "{said}");
    let (code, said) = sendoff(daemon.admin, &["events", "list", "--all"]);
    assert_eq!((code, said.contains("8 events shown")), (0, true), "{said}");
    let (code, said) = sendoff(daemon.admin, &["events", "list", "--function", "ord*", "--limit", "7"]);
    assert_eq!((code, said.contains("7 events shown")), (0, true), "{said}");
    // With --json the events go to stdout, and the rest of the text to stderr.
    let (code, said) = sendoff(daemon.admin, &["events", "list", "--limit", "2", "--json"]);
    assert_eq!((code, said.lines().count(), said.contains("2 of 8 shown")), (0, 3, true), "{said}");
}

#[test]
fn a_function_that_nobody_knows_is_an_error_wherever_one_is_named() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = backlog(&lambda, &state, 1);
    for args in [
        &["events", "list", "--function", "ordres"][..],
        &["events", "list", "--function", "ordres*"],
        &["dead-letters", "list", "--function", "ordres"],
        &["dead-letters", "export", "--function", "ordres*"],
        &["dead-letters", "purge", "--function", "ordres", "--yes"],
        &["purge", "ordres", "--yes"],
        &["purge", "ordres*", "--yes"],
        &["resume", "ordres"],
        &["pause", "ordres*"],
    ] {
        let (code, said) = sendoff(daemon.admin, args);
        assert_eq!((code, said.contains("ordres")), (1, true), "{args:?}: {said}");
        assert!(said.contains("`sendoff functions`"), "{args:?}: {said}");
    }
    // A known function without dead letters is no error.
    let (code, said) = sendoff(daemon.admin, &["dead-letters", "list", "--function", "orders"]);
    assert_eq!((code, said.contains("0 dead letters shown")), (0, true), "{said}");
}

#[test]
fn a_function_is_paused_before_its_first_event_and_over_a_kill() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).set("outbox.functions_max", "3");
    let daemon = setup.start();
    let arn = "arn:aws:lambda:eu-west-3:210987654321:function:reports:prod";
    for name in ["orders", arn] {
        let (code, said) = sendoff(daemon.admin, &["pause", name]);
        assert_eq!((code, said.contains("is paused")), (0, true), "{said}");
    }
    // The command itself refuses what no daemon could accept. Only the daemon knows what a region is.
    for (wrong, code, says) in [
        ("no function's name", 2, "no function can have this name"),
        ("a/b/c/d", 2, "no function can have this name"),
        ("eu-west-3/", 2, "no function can have this name"),
        ("orders/prod", 1, "is no function's name"),
    ] {
        let (found, said) = sendoff(daemon.admin, &["pause", wrong]);
        assert_eq!((found, said.contains(says)), (code, true), "{wrong}: {said}");
    }
    daemon.kill9();
    let daemon = setup.start();
    let orders = daemon.accept("orders", &[], &payload("kept"));
    daemon.accept("invoices", &[], &payload("beside"));
    lambda.wait_for(&["beside".to_owned()]);
    assert!(!lambda.taken().contains_key("kept"));
    let names = listed(daemon.admin, &["functions", "--json"]);
    let paused: Vec<&Value> =
        names.iter().filter(|name| name["paused"] == true).map(|name| &name["function"]).collect();
    assert_eq!(paused, ["eu-west-3/210987654321/reports:prod", "orders"]);
    let (code, said) = sendoff(daemon.admin, &["pause", "a-fourth"]);
    assert_eq!((code, said.contains("outbox.functions_max")), (1, true), "{said}");
    // The event is not attempted now, and the command says why.
    let (code, said) = sendoff(daemon.admin, &["events", "attempt", &orders]);
    assert_eq!((code, said.contains("orders is paused: `sendoff resume orders`")), (0, true), "{said}");
    let (code, said) = sendoff(daemon.admin, &["resume", "orders"]);
    assert_eq!(code, 0, "{said}");
    lambda.wait_for(&["kept".to_owned()]);
}

#[test]
fn dead_letters_are_purged_by_filter_after_a_question_and_exported_once_and_for_their_owner_alone() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.default_script(Script::always(Trouble::error(400, "InvalidRequestContentException", "no")));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let ids: Vec<String> = (0..6).map(|n| daemon.accept("orders", &[], &payload(&format!("order-{n}")))).collect();
    daemon.accept("invoices", &[], &payload("invoice"));
    let buried = || daemon.scrape().sum("sendoff_outbox_events", &[("state", "buried")]);
    eventually("all are dead", || (buried() == 7.0).then_some(()));
    let cli = |args: &[&str]| sendoff(daemon.admin, args);

    let (code, said) = cli(&["dead-letters", "list", "--limit", "2"]);
    assert_eq!((code, said.contains("2 of 7 shown; continue with --after ")), (0, true), "{said}");
    let (code, said) = cli(&["dead-letters", "list", "--limit", "7"]);
    assert_eq!((code, said.contains("7 dead letters shown")), (0, true), "{said}");

    let file = scratch.path().join("dead.ndjson");
    let file = file.to_str().unwrap();
    let (code, said) = cli(&["dead-letters", "export", file]);
    assert_eq!((code, said.contains("7 dead letters written to")), (0, true), "{said}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, said) = cli(&["dead-letters", "export", file]);
    assert_eq!((code, said.contains(file) && said.contains("--force")), (1, true), "{said}");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, said) = cli(&["dead-letters", "export", file, "--function", "inv*", "--force"]);
    assert_eq!((code, std::fs::read_to_string(file).unwrap().lines().count()), (0, 1), "{said}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);

    // Nobody can answer the question here, so nothing was purged.
    for args in [&["dead-letters", "purge", &ids[0]][..], &["dead-letters", "purge", "--function", "orders"]] {
        let (code, said) = cli(args);
        assert_eq!((code, said.contains("--yes")), (1, true), "{said}");
    }
    assert_eq!(cli(&["dead-letters", "purge", "--yes"]).0, 2, "all of them must be asked for by a filter");
    assert_eq!(cli(&["dead-letters", "purge", &ids[0], "--function", "orders", "--yes"]).0, 2);
    let (code, said) = cli(&["dead-letters", "purge", "--function", "orders", "--dry-run"]);
    assert_eq!((code, said.contains("6 dead letters")), (0, true), "{said}");
    assert_eq!(buried(), 7.0);
    let (code, said) = cli(&["dead-letters", "purge", &ids[0], "--yes"]);
    assert_eq!((code, said.contains("1 dead letter purged")), (0, true), "{said}");
    let (code, said) = cli(&["dead-letters", "purge", &ids[0], "--yes"]);
    assert_eq!((code, said.contains(&ids[0])), (1, true), "{said}");
    let (code, said) = cli(&["dead-letters", "purge", "--function", "ord*", "--where", "reason=refused", "--yes"]);
    assert_eq!((code, said.contains("5 dead letters purged"), buried()), (0, true, 1.0), "{said}");
}

#[test]
fn status_names_what_keeps_events_here_and_what_to_do() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.script("orders", Script::always(Trouble::error(403, "AccessDeniedException", "not authorized")));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let (code, said) = sendoff(daemon.admin, &["status"]);
    assert_eq!((code, said.contains("problems")), (0, false), "{said}");
    daemon.accept("orders", &[], &payload("held"));
    assert_eq!(sendoff(daemon.admin, &["pause", "invoices"]).0, 0);
    let said = eventually("the held function is named", || {
        let (code, said) = sendoff(daemon.admin, &["status"]);
        (code == 0 && said.contains("orders is held: ")).then_some(said)
    });
    assert!(said.contains("AccessDeniedException") && said.contains("check-config --online"), "{said}");
    assert!(said.contains("invoices is paused by an operator"), "{said}");
    let problems = listed(daemon.admin, &["status", "--json"])[0]["problems"].clone();
    let kinds: Vec<&str> =
        problems.as_array().unwrap().iter().map(|problem| problem["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["held", "paused"], "{problems}");
    assert_eq!(sendoff(daemon.admin, &["functions", "--watch", "--count", "1"]).0, 0);
}

#[test]
fn status_names_a_missing_region_before_any_event() {
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state)
        .without_env("AWS_REGION")
        .without_env("AWS_DEFAULT_REGION")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .start();
    let (code, said) = sendoff(daemon.admin, &["status"]);
    assert_eq!((code, said.contains("no AWS region for lambda: set lambda.region")), (0, true), "{said}");
}

#[test]
fn send_schedules_and_expires_events() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let send = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        command.arg("send").args(args).args(["--endpoint", &daemon.endpoint_url(), "--json"]).env_clear();
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), said)
    };
    let (code, said) = send(&["orders", "{\"a\":1}", "--delay", "1h", "--expires", "2h", "--key", "k"]);
    assert_eq!(code, 0, "{said}");
    let sent: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(sent["duplicate"], false, "{said}");
    let (_, again) = send(&["orders", "{\"a\":1}", "--delay", "1h", "--expires", "2h", "--key", "k"]);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!((&again["duplicate"], &again["id"]), (&json!(true), &sent["id"]));
    let (code, said) = sendoff(daemon.admin, &["events", "show", sent["id"].as_str().unwrap()]);
    let shown: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &shown["state"], &shown["id"]), (0, &json!("scheduled"), &sent["id"]), "{said}");
    assert!(shown["deliver_at"].is_string() && shown["expires_at"].is_string(), "{said}");
    // The payload only, as with `dead-letters show --payload`.
    let (code, said) = sendoff(daemon.admin, &["events", "show", sent["id"].as_str().unwrap(), "--payload"]);
    assert_eq!((code, said.as_str()), (0, "{\"a\":1}"));
    let (code, said) = send(&["orders", "{}", "--at", "2099-01-01T00:00:00Z"]);
    assert_eq!((code, said.contains("366 days")), (1, true), "{said}");
    let (code, said) = send(&["orders", "not json", "--delay", "1s"]);
    assert_eq!((code, said.contains("not JSON")), (1, true), "{said}");
    let (code, said) = sendoff(daemon.admin, &["purge", "orders", "--accepted-before", "2h", "--yes"]);
    assert_eq!((code, said.contains("0 events of orders")), (0, true), "{said}");
}

#[test]
fn a_listener_that_is_the_other_one_is_explained() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    for args in [&["status"][..], &["functions"], &["events", "list"], &["pause", "f"], &["healthcheck"]] {
        let (code, said) = sendoff(daemon.ingest, args);
        assert_eq!((code, said.contains("that is the ingest listener")), (1, true), "{args:?}: {said}");
    }
    let url = format!("http://{}", daemon.admin);
    for (args, hint) in [
        (&["send", "f", "{}", "--endpoint", &url][..], "name the ingest listener"),
        (&["send", "f", "{}", "--delay", "1m", "--endpoint", &url], "name the ingest listener"),
        (&["send", "f", "{}", "--admin", &url], "give --endpoint"),
        (&["functions", "--endpoint", &url], "give --admin"),
        (&["functions", "--admin", "127.0.0.1:9478"], "http://127.0.0.1:9478"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_sendoff")).args(args).env_clear().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(hint), "{args:?}: {said}");
    }
}
