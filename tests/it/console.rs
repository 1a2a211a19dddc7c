//! Tests the console in a real browser, on the real daemon. The scripts in tests/console press its buttons.

use std::path::{Path, PathBuf};
use std::process::Command;

use sendoff::standin::{Script, Trouble};
use serde_json::{Value, json};

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::http;
use crate::rig::lambda::{Lambda, throttle};
use crate::rig::postgres::Postgres;
use crate::rig::{eventually, tools};

/// What a function or its payload may contain: markup, and a character that turns the direction of text.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\u{202e}";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The published packages that the tests and the console use. `None`, after a message, where npm is missing.
fn packages() -> Option<PathBuf> {
    tools::tool("node", "nodejs")?;
    tools::tool("npm", "npm")?;
    let packages = here("tests/console/node_modules");
    assert!(packages.join("playwright-core").is_dir(), "{} is not there: run `make test`", packages.display());
    Some(packages)
}

/// Runs a script of tests/console in a browser.
fn browse(script: &str, mut rig: Value) {
    if packages().is_none() {
        return;
    }
    let Some(chromium) = tools::tool("chromium", "chromium") else { return };
    rig["chromium"] = json!(chromium);
    run(script, &rig);
}

/// Runs a script of tests/console, which fails if anything is not as it must be.
fn run(script: &str, rig: &Value) {
    let mut command = Command::new("node");
    command.arg(here("tests/console").join(script)).env("CONSOLE", rig.to_string());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}:\n{}{}", text(&output.stdout), text(&output.stderr));
}

/// Sends one event a line. Returns their ids.
fn send(daemon: &Daemon, events: &[Value]) -> Vec<String> {
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    let headers = [("Content-Type", "application/x-ndjson")];
    let answer = http::request(daemon.ingest, "POST", "/v1/events", &headers, lines.as_bytes());
    let text = answer.text();
    let ids = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["id"].as_str().unwrap_or_else(|| panic!("not accepted: {line}")).to_owned()
    });
    ids.collect()
}

fn event(function: &str, id: &str) -> Value {
    json!({"function": function, "payload": {"id": id}})
}

fn later(function: &str) -> Value {
    json!({"function": function, "payload": {"id": "later"}, "delay": "1h"})
}

fn refusal() -> Trouble {
    Trouble::error(400, "InvalidRequestContentException", &format!("could not read {HOSTILE}"))
}

/// Waits until as many events are dead letters.
fn wait_for_dead_letters(daemon: &Daemon, count: u64) {
    eventually("they are dead letters", || {
        let outbox = http::get(daemon.admin, "/v1/status").json()["outbox"].clone();
        (outbox["buried"] == count).then_some(())
    });
}

fn url(address: std::net::SocketAddr) -> String {
    format!("http://{address}")
}

#[test]
fn the_console_vendors_published_packages_byte_for_byte() {
    let Some(packages) = packages() else { return };
    for (vendored, published) in [
        ("lit-html/lit-html.js", "lit-html/lit-html.js"),
        ("lit-html/directive.js", "lit-html/directive.js"),
        ("lit-html/directive-helpers.js", "lit-html/directive-helpers.js"),
        ("lit-html/directives/repeat.js", "lit-html/directives/repeat.js"),
        ("lit-html/directives/live.js", "lit-html/directives/live.js"),
        ("lit-html/LICENSE", "lit-html/LICENSE"),
        ("uplot/uPlot.iife.min.js", "uplot/dist/uPlot.iife.min.js"),
        ("uplot/uPlot.min.css", "uplot/dist/uPlot.min.css"),
        ("uplot/LICENSE", "uplot/LICENSE"),
    ] {
        let ours = std::fs::read(here("src/admin/console/vendor").join(vendored)).unwrap();
        assert!(ours == std::fs::read(packages.join(published)).unwrap(), "{vendored} is not what npm has");
    }
}

#[test]
fn the_scripts_of_the_console_keep_to_the_types_that_they_say() {
    let Some(packages) = packages() else { return };
    assert!(packages.join("typescript").is_dir(), "run `make test`, which installs TypeScript");
    run("types.mjs", &json!({}));
}

#[test]
fn every_view_is_sound_in_both_themes_and_on_a_phone() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.script("invoices", Script::always(refusal()));
    let unknown = Trouble::error(400, "InvalidParameterValueException", "the value of template is not known");
    lambda.script("emails", Script::always(unknown));
    lambda.script("orders", Script::default());
    lambda.default_script(Script::always(throttle()));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let mut delivered = event("orders", "delivered");
    delivered["idempotency_key"] = json!("key-of-the-delivered-one");
    let delivered = send(&daemon, &[delivered]).remove(0);
    let hostile = json!({"function": "invoices", "payload": {"text": "<script>alert(2)</script>", "turned": HOSTILE}});
    let buried = send(&daemon, &[hostile, event("invoices", "b"), event("invoices", "c")]).remove(0);
    let waiting: Vec<_> = (0..150).map(|n| event("thumbnails", &format!("t{n}"))).collect();
    let waiting = send(&daemon, &waiting).remove(0);
    send(&daemon, &[later("reports"), later("reports")]);
    http::request(daemon.admin, "POST", "/v1/functions/reports/pause", &[], b"");
    let emails: Vec<_> = (0..12).map(|n| event("emails", &format!("e{n}"))).collect();
    send(&daemon, &emails);
    wait_for_dead_letters(&daemon, 15);
    // `make screenshots` copies the pictures from there into docs.
    let shots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console");
    let (admin, ingest) = (url(daemon.admin), url(daemon.ingest));
    let ids = json!({"admin": admin, "ingest": ingest, "waiting": waiting, "buried": buried, "delivered": delivered, "shots": shots});
    browse("views.mjs", ids);
}

#[test]
fn every_action_of_the_console_does_what_it_says() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.script("refusing", Script::always(refusal()));
    lambda.script("mended", Script::default().times(3, refusal()));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = daemon.set("handoff.receive", "true").start();
    let (_other, other) = scratch();
    let leaving = Setup::new(&other).set("lambda.endpoint_url", &lambda.endpoint_url());
    let leaving = leaving.set("handoff.to", &daemon.endpoint_url()).start();
    let moved = send(&leaving, &[later("moved")]).remove(0);
    send(&daemon, &[event("orders", "one")]);
    let refused: Vec<_> = (0..4).map(|n| event("refusing", &format!("r{n}"))).collect();
    let refused = send(&daemon, &refused);
    let mended: Vec<_> = (0..3).map(|n| event("mended", &format!("m{n}"))).collect();
    let mended = send(&daemon, &mended);
    wait_for_dead_letters(&daemon, 7);
    let (admin, ingest) = (url(daemon.admin), url(daemon.ingest));
    browse(
        "actions.mjs",
        json!({
            "admin": admin, "ingest": ingest, "refused": refused, "mended": mended, "leaving": url(leaving.admin), "moved": moved,
        }),
    );
}

#[test]
fn the_console_works_with_a_hundred_thousand_events() {
    const EVENTS: usize = 100_000;
    const BATCH: usize = 1_000;
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.script("refusing", Script::always(refusal()));
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    for batch in 0..EVENTS / BATCH {
        // 250 functions, so that a list of them has more than one piece.
        let events: Vec<_> = (0..BATCH).map(|n| later(&format!("bulk-{}", (batch * BATCH + n) % 250))).collect();
        send(&daemon, &events);
    }
    let refused: Vec<_> = (0..3).map(|n| event("refusing", &format!("refused-{n}"))).collect();
    send(&daemon, &refused);
    let hostile = format!("\u{0} and \u{202e}{}", "x".repeat(900_000));
    let large = send(&daemon, &[json!({"function": "large", "payload": {"text": hostile}, "delay": "1h"})]).remove(0);
    wait_for_dead_letters(&daemon, 3);
    browse("many.mjs", json!({"admin": url(daemon.admin), "events": EVENTS, "large": large}));
}

#[test]
fn every_daemon_of_a_shared_outbox_shows_the_others_and_every_event() {
    let Some(server) = Postgres::start() else { return };
    server.migrate();
    let (lambda, (_scratch, dir)) = (Lambda::start(), scratch());
    let start = |name: &str| {
        let setup = Setup::new(&dir.join(name)).set("lambda.endpoint_url", &lambda.endpoint_url());
        let setup = setup.set("outbox.store", "postgres").set("outbox.postgres.url", &server.url());
        setup.set("outbox.postgres.member", name).start()
    };
    let (first, second) = (start("first"), start("second"));
    let id = send(&first, &[event("orders", "shared")]).remove(0);
    let end = http::get(second.ingest, &format!("/v1/events/{id}?wait=30s")).json()["end"].clone();
    assert_eq!(end["outcome"], "delivered");
    let daemons = json!({"first": url(first.admin), "second": url(second.admin)});
    browse("fleet.mjs", json!({"daemons": daemons, "event": id}));
}

#[test]
fn the_console_needs_no_mouse() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    send(&daemon, &[event("orders", "one"), later("later"), later("reports")]);
    browse("keyboard.mjs", json!({"admin": url(daemon.admin)}));
}

#[test]
fn the_console_shows_and_does_only_what_its_user_may() {
    const OPERATOR: &str = "operator-0123456789012345678901234567";
    const READER: &str = "reader-012345678901234567890123456789";
    const AUDITOR: &str = "auditor-01234567890123456789012345678";
    const SECRET: &str = "secret-of-the-payload";
    let lambda = Lambda::start();
    lambda.throttle_all();
    let started = |more: &dyn Fn(&Path, Setup) -> Setup| {
        let (scratch, state) = scratch();
        let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
        let daemon = more(scratch.path(), setup).start();
        (daemon, scratch)
    };
    let (open, _open) = started(&|_, setup| setup);
    let (empty, _empty) = started(&|_, setup| setup);
    let (prefixed, _prefixed) = started(&|_, setup| setup.set("listen.admin_prefix", "/ops/sendoff"));
    let (still, _still) = started(&|_, setup| setup.set("auth.read_only", "true"));
    let (guarded, _guarded) = started(&|directory, setup| {
        let mut text = "[auth]\nadmin = 'required'\n".to_owned();
        for (name, rights, token) in [
            ("operator", "role = 'operate'", OPERATOR),
            ("reader", "role = 'read'", READER),
            ("auditor", "role = 'read'\npayloads = true", AUDITOR),
        ] {
            let path = directory.join(name);
            std::fs::write(&path, token).unwrap();
            text += &format!("[operators.{name}]\n{rights}\ntoken_file = '{}'\n", path.display());
        }
        let file = directory.join("sendoff.toml");
        std::fs::write(&file, text).unwrap();
        setup.config(&file)
    });
    let payload = json!({"id": SECRET});
    let secret = |daemon: &Daemon| send(daemon, &[json!({"function": "orders", "payload": payload})]).remove(0);
    secret(&open);
    secret(&still);
    let event = secret(&guarded);
    let tokens = json!({"operator": OPERATOR, "reader": READER, "auditor": AUDITOR});
    browse(
        "safety.mjs",
        json!({
            "admin": url(open.admin), "guarded": url(guarded.admin), "readOnly": url(still.admin), "empty": url(empty.admin),
            "prefixed": url(prefixed.admin), "emptyIngest": url(empty.ingest), "event": event, "secret": SECRET,
            "payload": payload.to_string(), "tokens": tokens,
        }),
    );
}
