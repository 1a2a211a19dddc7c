//! Checks the rules that no compiler checks (CONTRIBUTING.md has the reasons), by a scan of the text and one table for
//! each rule.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

// Beside this file it would be a test target of its own.
#[path = "tidy/links.rs"]
mod links;

/// Which of our modules a module may name besides itself. The longest matching path applies.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("main", &["sendoff"]),
    ("lib", &[]),
    // the data that flows
    ("clock", &[]),
    ("hop", &[]),
    ("event", &["clock", "plural"]),
    ("metrics", &["event"]),
    ("trace", &["event"]),
    // what happened to events, as the stages note it; of the outbox only its contract
    ("past", &["clock", "event", "metrics", "outbox"]),
    // the stages: never each other, they meet in the outbox
    ("outbox", &["event", "clock", "metrics", "plural"]),
    (
        "ingest",
        &[
            "auth", "follow", "event", "clock", "hop", "metrics", "trace", "past", "outbox", "http", "shutdown",
            "plural", "handoff",
        ],
    ),
    ("dispatch", &["event", "clock", "metrics", "trace", "past", "outbox", "shutdown", "backoff"]),
    ("handoff", &["event", "clock", "metrics", "outbox", "past", "plural"]),
    // a queue's messages, and its calls, are those of dead letters
    ("handoff::queue", &["event", "clock", "metrics", "outbox", "plural", "backoff", "shutdown", "deadletter"]),
    ("handoff::peer", &["event", "clock", "metrics", "outbox", "plural", "https"]),
    ("deadletter", &["event", "clock", "metrics", "past", "outbox", "shutdown", "backoff", "plural"]),
    // what serves a stage knows that stage
    ("aws", &["event", "clock", "hop", "readable", "visible"]),
    ("aws::lambda", &["event", "clock", "hop", "dispatch"]),
    ("aws::direct", &["event", "clock", "hop", "dispatch"]),
    ("aws::passthrough", &["event", "clock", "hop", "ingest"]),
    ("aws::sqs", &["event", "clock", "hop", "deadletter"]),
    ("aws::configured", &["event", "dispatch", "deadletter"]),
    ("aws::answer", &["clock", "dispatch", "hop"]),
    ("aws::probe", &["event", "dispatch", "deadletter"]),
    // around the stages
    ("backoff", &["clock"]),
    ("follow", &["clock"]),
    ("auth", &["readable"]),
    ("http", &["clock", "follow", "readable"]),
    ("https", &["auth", "readable", "http"]),
    ("shutdown", &[]),
    ("visible", &[]),
    ("readable", &[]),
    ("plural", &[]),
    ("telemetry", &["config", "trace", "visible"]),
    ("activation", &[]),
    ("notify", &["admin", "clock", "outbox", "plural"]),
    ("reload", &["admin", "config", "dispatch", "event", "follow", "ingest", "notify", "telemetry"]),
    // of dispatch only its status, for the operator
    // of deadletter the rules of a redrive
    (
        "admin",
        &[
            "auth",
            "follow",
            "event",
            "clock",
            "metrics",
            "past",
            "outbox",
            "dispatch",
            "deadletter",
            "http",
            "shutdown",
            "telemetry",
            "plural",
        ],
    ),
    (
        "config",
        &[
            "admin",
            "auth",
            "follow",
            "event",
            "clock",
            "hop",
            "http",
            "https",
            "handoff",
            "ingest",
            "past",
            "outbox",
            "outbox::embedded",
            "outbox::postgres",
            "dispatch",
            "deadletter",
            "aws",
            "shutdown",
            "readable",
            "visible",
        ],
    ),
    ("standin", &["event", "clock", "http"]),
    // the only modules that may name all others
    (
        "daemon",
        &[
            "event",
            "clock",
            "hop",
            "metrics",
            "past",
            "ingest",
            "outbox",
            "outbox::embedded",
            "outbox::postgres",
            "dispatch",
            "deadletter",
            "handoff",
            "aws",
            "admin",
            "http",
            "https",
            "follow",
            "config",
            "shutdown",
            "telemetry",
            "activation",
            "notify",
            "readable",
            "reload",
        ],
    ),
    (
        "cli",
        &[
            "auth",
            "event",
            "clock",
            "config",
            "daemon",
            "handoff",
            "http",
            "https",
            "past",
            "outbox",
            "outbox::embedded",
            "outbox::postgres",
            "shutdown",
            "standin",
            "telemetry",
            "admin",
            "aws",
            "plural",
            "readable",
            "reload",
            "visible",
        ],
    ),
    (
        "cli::hand_off",
        &["cli", "clock", "config", "daemon", "handoff", "metrics", "outbox", "plural", "shutdown", "telemetry"],
    ),
    ("cli::arguments", &["cli", "config", "event", "ingest", "past", "visible"]),
    ("cli::admin_client", &["cli", "admin", "config", "deadletter", "event", "visible"]),
    ("cli::dead_letters", &["cli", "admin", "clock", "config", "deadletter", "event", "outbox", "plural"]),
    // without a daemon it is one, as far as accepting goes
    (
        "cli::redrive",
        &[
            "cli",
            "clock",
            "config",
            "deadletter",
            "event",
            "outbox",
            "aws",
            "shutdown",
            "admin",
            "daemon",
            "dispatch",
            "metrics",
            "plural",
            "visible",
        ],
    ),
];

/// Parts of a module that other modules may not name, unless their row lists them: the engines of the outbox.
const APART: &[&str] = &["outbox::embedded", "outbox::postgres"];

/// Words that code may use in some files only: (word, where, why). `where` is a path prefix below src.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("aws_config", &["aws"], "only aws/ names the SDK"),
    ("aws_sdk_lambda", &["aws"], "only aws/ names the SDK"),
    ("aws_sdk_sqs", &["aws"], "only aws/ names the SDK"),
    ("aws_sdk_sts", &["aws"], "only aws/ names the SDK"),
    ("aws_runtime", &["aws"], "only aws/ names the SDK"),
    ("hyper_rustls", &["aws", "https.rs"], "only aws/ and https.rs open connections with TLS"),
    ("aws_smithy_runtime_api", &["aws"], "only aws/ names the SDK"),
    ("aws_smithy_types", &["aws"], "only aws/ names the SDK"),
    (
        "rustls_native_certs",
        &["aws", "https.rs", "outbox/postgres/live"],
        "only aws/, https.rs and the client of the database open connections with TLS",
    ),
    (
        "tokio_rustls",
        &["http/tls", "outbox/postgres/live"],
        "only http/tls takes connections with TLS, and only the client of the database opens them by it",
    ),
    ("tokio_postgres", &["outbox/postgres/live"], "only outbox/postgres/live speaks to the database"),
    (
        "sled::",
        &["outbox/embedded/sled"],
        "only outbox/embedded/sled names the engine, so that it can be replaced in one place",
    ),
    (
        "SystemTime",
        &["clock.rs", "aws/sign.rs", "aws/rds.rs", "aws/direct/skew.rs", "aws/answer/retry_after.rs"],
        "only the clock knows the time, or the simulation is none",
    ),
    ("fastrand::", &["clock.rs"], "only the clock draws random numbers, or a seed does not repeat a run"),
    ("println!", &[], "it panics where stdout is closed: use cli::print"),
    ("print!", &[], "it panics where stdout is closed: use cli::print"),
    ("eprintln!", &[], "it panics where stderr is closed: use telemetry::say"),
    ("eprint!", &[], "it panics where stderr is closed: use telemetry::say"),
    ("dbg!", &[], "it panics where stderr is closed: use tracing"),
    ("env::var", &["config"], "only config/ reads the environment"),
    ("env::vars", &["config"], "only config/ reads the environment"),
    ("env::var_os", &["config"], "only config/ reads the environment"),
    ("env::vars_os", &["config"], "only config/ reads the environment"),
];

/// Words for unfinished work.
const UNDONE: &[&str] = &["TO\x44O", "FIX\x4dE", "X\x58X", "todo\x21", "unimplemented\x21"];

/// The most lines of a file, including tests. Beyond that, find the idea that splits it.
const LINES_MAX: usize = 700;

/// Files that may be longer, and why.
const LONG: &[(&str, &str)] = &[];

/// Folders and files whose metric names must exist.
const TELL_OF_METRICS: &[&str] = &["README.md", "ARCHITECTURE.md", "docs", "config", "deploy"];

/// Names there that look like metrics but are none.
const NO_METRICS: &[&str] = &["sendoff_daemon", "sendoff_enqueue", "sendoff_read"];

#[test]
fn modules_know_only_whom_they_may() {
    assert_none(sources().iter().flat_map(|(path, text)| forbidden_acquaintances(path, text)));
}

#[test]
fn words_stand_only_where_they_may() {
    assert_none(sources().iter().flat_map(|(path, text)| misplaced_words(path, text)));
}

#[test]
fn nothing_is_left_undone_and_no_file_is_too_long() {
    let files = ["src", "tests", "benches"].iter().flat_map(|folder| files_below(folder, &["rs", "py"]));
    assert_none(files.flat_map(|(path, text)| undone(&path, &text).into_iter().chain(too_long(&path, &text))));
}

#[test]
fn metrics_that_are_written_about_exist() {
    let known = metric_names(&read("src/metrics.rs"));
    assert!(known.len() > 10, "the names are no longer found in src/metrics.rs: {known:?}");
    let texts =
        TELL_OF_METRICS.iter().flat_map(|path| files_below(path, &["md", "toml", "yaml", "yml", "json", "rules"]));
    assert_none(texts.flat_map(|(path, text)| unknown_metrics(&path, &text, &known)));
}

#[test]
fn every_row_of_the_doors_names_tests_that_exist() {
    let sources = ["src", "tests"].iter().flat_map(|folder| files_below(folder, &["rs"]));
    let code: String = sources.map(|(_, text)| text).collect();
    let tables = read("docs/lambda-api.md");
    assert_none(rows_without_tests(&tables, &code).into_iter());
    assert!(tables.matches("\n| ").count() > 30, "the tables are no longer found");
}

#[test]
fn a_number_before_a_noun_is_written_by_one_helper() {
    assert_none(sources().into_iter().flat_map(|(path, text)| bare_plurals(&path, &text)));
}

#[test]
fn every_program_of_tests_has_a_row_in_contributing() {
    let page = read("CONTRIBUTING.md");
    assert_none(test_programs().into_iter().filter(|program| !page.contains(&format!("`{program}`"))));
    assert!(test_programs().contains(&"tests/it".to_owned()), "the programs are no longer found");
}

#[test]
fn every_broken_rule_is_found() {
    let found = |text: &str| bare_plurals("cli/fsck.rs", text).len();
    assert_eq!(found("format!(\"{events} events wait\")"), 1);
    assert_eq!(found("format!(\"{} keys\", 1)"), 1);
    assert_eq!(found("format!(\"{} wait\", count(events, \"event\"))"), 0);
    assert_eq!(found("// {n} events"), 0);
    assert_eq!(found("#[cfg(test)]\nmod tests {\n format!(\"{n} events\");\n}"), 0);

    // Who may know whom: groups, tests aside, comments and strings aside, and modules that the table does not have.
    let found = |path: &str, text: &str| forbidden_acquaintances(path, text).len();
    assert_eq!(found("dispatch/lane.rs", "use crate::event::Event;\nuse crate::dispatch::Policy;"), 0);
    assert_eq!(found("dispatch/lane.rs", "use crate::ingest::door;"), 1);
    assert_eq!(found("dispatch.rs", "use crate::{event, deadletter::{Ship, ship}, config};"), 2);
    assert_eq!(found("dispatch.rs", "fn f() -> crate::aws::Settings {}"), 1);
    assert_eq!(
        found("dispatch.rs", "// crate::aws\nconst S: &str = \"crate::aws\"; const R: &str = r#\"\"crate::aws\"#;"),
        0
    );
    assert_eq!(found("dispatch.rs", "#[cfg(test)]\nmod tests {\n use crate::aws::lambda;\n}"), 0);
    assert_eq!(found("dispatch/tests.rs", "use crate::aws::lambda;"), 0);
    assert_eq!(found("aws/lambda.rs", "use crate::dispatch::Invoke;"), 0);
    assert_eq!(found("aws/sqs.rs", "use crate::dispatch::Invoke;"), 1);
    assert_eq!(found("metrics.rs", "use super::daemon;"), 1, "the long way round");
    assert_eq!(found("outbox/operator.rs", "use super::super::daemon::run;"), 1, "the longer way round");
    for path in ["ingest/server.rs", "dispatch/run.rs", "deadletter/ship.rs", "admin/events.rs"] {
        assert_eq!(found(path, "use crate::outbox::{Outbox, operator::{Keys, Page}};"), 0);
        assert_eq!(found(path, "use crate::outbox::{Outbox, embedded::{engine::Engine}};"), 1, "{path}: an engine");
        assert_eq!(
            found(path, "use crate::outbox;\nfn f(_: outbox::embedded::Settings) {}"),
            1,
            "{path}: by its parent"
        );
    }
    assert_eq!(found("outbox/operator.rs", "use super::embedded::keys;"), 1, "the contract knows no engine");
    assert_eq!(found("outbox/embedded/engine.rs", "use super::keys;\nuse crate::outbox::embedded::kv::Kv;"), 0);
    assert_eq!(found("daemon.rs", "use crate::outbox::embedded;"), 0);
    assert_eq!(found("unheard_of.rs", ""), 1, "a module without a row");

    let found = |path: &str, text: &str| misplaced_words(path, text).len();
    assert_eq!(found("aws/lambda.rs", "use aws_sdk_lambda::Client;"), 0);
    assert_eq!(found("daemon.rs", "use aws_sdk_lambda::Client;"), 1);
    assert_eq!(found("outbox/embedded/sled.rs", "let db = sled::open(path);"), 0);
    assert_eq!(found("outbox/embedded/engine.rs", "let db = sled::open(path);"), 1);
    assert_eq!(found("daemon.rs", "use crate::outbox::embedded::sled::Sled;"), 0, "our own module");
    assert_eq!(found("cli/demo.rs", "std::env::current_exe()"), 0);
    assert_eq!(found("cli/demo.rs", "std::env::var(name)"), 1);
    assert_eq!(found("cli/demo.rs", "let c = '\"'; std::env::var(\"X\")"), 1, "a quote as a character opens no string");
    assert_eq!(found("outbox.rs", "// SystemTime is not ours"), 0);
    assert_eq!(found("cli/send.rs", "eprintln!(\"gone\")"), 1);
    assert_eq!(found("outbox.rs", "fn f<'a>(t: &'a SystemTime) {}"), 1);

    assert_eq!(undone("a.rs", &format!("// {}: later", UNDONE[0])).len(), 1);
    assert_eq!(undone("a.rs", &format!("{}()", UNDONE[3])).len(), 1);
    assert_eq!(undone("a.rs", "autodo"), [""; 0]);
    assert!(too_long("a.rs", &"\n".repeat(LINES_MAX)).is_none());
    assert!(too_long("a.rs", &"\n".repeat(LINES_MAX + 1)).is_some());

    let found = |row: &str| rows_without_tests(row, "fn it_works() {}").len();
    assert_eq!(found("| Option | Tests |\n|---|---|\n| a | `it_works` |"), 0);
    assert_eq!(found("| a | `it_works`, `it_flies` |\n| b | |"), 2);

    let known = metric_names(r#"f(r, "sendoff_ingest_seconds"); f(r, "sendoff_ingest_total")"#);
    let found = |text: &str| unknown_metrics("a.md", text, &known).len();
    assert_eq!(found("sendoff_ingest_seconds_bucket{le=\"1\"} and sendoff_ingest_total and sendoff_ingest_*"), 0);
    assert_eq!(found("rate(sendoff_ingest_second[5m]) sendoff_egress_*"), 2);
}

/// `crate::X` where the module may not know X.
fn forbidden_acquaintances(path: &str, text: &str) -> Vec<String> {
    let module = path.trim_end_matches(".rs").replace('/', "::");
    if is_test(path) {
        return Vec::new();
    }
    let row = MAY_KNOW.iter().filter(|(name, _)| is_within(&module, name)).max_by_key(|(name, _)| name.len());
    let Some((_, allowed)) = row else { return vec![format!("{path}: MAY_KNOW has no row for it")] };
    let own = root_of(&module);
    let is_allowed = |named: &String| match APART.iter().find(|apart| is_within(named, apart)) {
        Some(apart) => is_within(&module, apart) || allowed.contains(apart),
        None => root_of(named) == own || allowed.contains(&root_of(named)),
    };
    let forbidden = named(&module, &without_tests(&code_only(text))).into_iter().filter(|named| !is_allowed(named));
    // Once for each module, however many of its items are named.
    let told = |named: String| {
        let apart = APART.iter().find(|apart| is_within(&named, apart));
        apart.map_or_else(|| root_of(&named).to_owned(), |apart| (*apart).to_owned())
    };
    let forbidden: BTreeSet<String> = forbidden.map(told).collect();
    forbidden.into_iter().map(|named| format!("{path} names {named}, but `{own}` may only know {allowed:?}")).collect()
}

/// The paths from the crate's root that a module names.
fn named(module: &str, code: &str) -> BTreeSet<String> {
    let from_crate = words(code, "crate::").flat_map(|at| paths(code[at + "crate::".len()..].trim_start()));
    let mut named: BTreeSet<String> = from_crate.collect();
    for at in words(code, "super::").filter(|&at| !code[..at].ends_with("::")) {
        let (mut parent, mut rest) = (module, &code[at..]);
        while let Some(more) = rest.strip_prefix("super::") {
            (parent, rest) = (parent.rsplit_once("::").map_or("", |(parent, _)| parent), more);
        }
        let whole = |path: String| if parent.is_empty() { path } else { format!("{parent}::{path}") };
        named.extend(paths(rest.trim_start()).into_iter().map(whole));
    }
    // Paths by an imported parent.
    for parent in APART.iter().filter_map(|apart| apart.split_once("::")).map(|(parent, _)| format!("{parent}::")) {
        named.extend(words(code, &parent).flat_map(|at| paths(&code[at..])));
    }
    named
}

fn root_of(path: &str) -> &str {
    path.split("::").next().unwrap()
}

fn misplaced_words(path: &str, text: &str) -> Vec<String> {
    if is_test(path) {
        return Vec::new();
    }
    let code = without_tests(&code_only(text));
    let misplaced = ONLY_IN.iter().filter(|(word, places, _)| {
        !places.iter().any(|place| path.starts_with(place)) && words(&code, word).next().is_some()
    });
    misplaced.map(|(word, places, why)| format!("{path} uses `{word}`, which is for {places:?}: {why}")).collect()
}

/// Lines with a placeholder right before a plural, which would be wrong with the number 1.
fn bare_plurals(path: &str, text: &str) -> Vec<String> {
    const NOUNS: [&str; 16] = [
        "events",
        "functions",
        "attempts",
        "letters",
        "messages",
        "keys",
        "gaps",
        "times",
        "dead letters",
        "retries",
        "things",
        "records",
        "requests",
        "calls",
        "duplicates",
        "stores",
    ];
    /// Texts where the number is a rate, a constant, or never 1.
    const FINE: [&str; 4] = ["} events/s", "{BATCH_EVENTS_MAX} events", "{of} letters", "{pos}/{len} letters"];
    if is_test(path) {
        return Vec::new();
    }
    let code = without_tests(text);
    let lines = code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let lines = lines.filter(|(_, line)| !FINE.iter().any(|fine| line.contains(fine)));
    lines
        .filter(|(_, line)| NOUNS.iter().any(|noun| words(line, noun).any(|at| line[..at].ends_with("} "))))
        .map(|(n, _)| format!("{path}:{} has a number before a plural: use plural::count or plural::agree", n + 1))
        .collect()
}

fn undone(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    lines
        .flat_map(|(n, line)| UNDONE.iter().filter(move |word| words(line, word).next().is_some()).map(move |_| n + 1))
        .map(|line| format!("{path}:{line} leaves something undone: do it, or file an issue"))
        .collect()
}

fn too_long(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let allowed = LONG.iter().any(|(long, _)| *long == path);
    (lines > LINES_MAX && !allowed)
        .then(|| format!("{path} has {lines} lines of at most {LINES_MAX}: find the idea that splits it"))
}

/// Names in a text that begin like ours but are not metrics in `known`. `sendoff_ingest_*` means all that begin so.
fn unknown_metrics(path: &str, text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    words(text, "sendoff_")
        .map(|at| text[at..].split(|c| !is_part(c)).next().unwrap())
        .filter(|name| {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_known = known.contains(*name) || base.is_some_and(|base| known.contains(base));
            let is_prefix = name.ends_with('_') && known.iter().any(|metric| metric.starts_with(*name));
            !is_known && !is_prefix && !NO_METRICS.contains(name)
        })
        .map(|name| format!("{path} names {name}, which src/metrics.rs does not have"))
        .collect()
}

fn metric_names(metrics_source: &str) -> BTreeSet<String> {
    metrics_source
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("sendoff_"))
        .map(str::to_owned)
        .collect()
}

/// Rows of a document's tables whose last cell names no test, or a test that does not exist.
fn rows_without_tests(document: &str, code: &str) -> Vec<String> {
    let rows = document.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| Tests |"));
    rows.flat_map(|row| {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        let missing = names.iter().filter(|name| !code.contains(&format!("fn {name}(")));
        let missing: Vec<String> = missing.map(|name| format!("no test is called {name}: {row:.60}")).collect();
        if names.is_empty() { vec![format!("a row without a test: {row:.60}")] } else { missing }
    })
    .collect()
}

fn is_within(module: &str, of: &str) -> bool {
    module.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests.rs" || part == "tests")
}

/// The code before the tests at a file's end.
fn without_tests(code: &str) -> String {
    let mut lines = code.lines().peekable();
    let mut kept = String::new();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.trim_start().starts_with("mod ")) {
            break;
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// The path at the start of `rest`. A group in braces gives each of its paths.
fn paths(rest: &str) -> Vec<String> {
    if let Some(group) = rest.strip_prefix('{') {
        return items(group).into_iter().flat_map(|item| paths(item.trim_start())).collect();
    }
    let name = identifier(rest);
    match rest[name.len()..].strip_prefix("::") {
        Some(more) => paths(more.trim_start()).into_iter().map(|path| format!("{name}::{path}")).collect(),
        None => vec![name],
    }
}

/// The parts between the commas of a group, after its opening brace.
fn items(group: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut items) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                items.push(&group[begin..at]);
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    items.retain(|item| !item.trim().is_empty());
    items
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// Where `word` is a whole word in `text`, not a part of a longer word or of a path.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let ends_open = word.ends_with([':', '!', '_']);
    text.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        let in_path = word.ends_with("::") && word != "crate::" && word != "super::" && before.ends_with("::");
        !before.ends_with(is_part) && !in_path && (ends_open || !after.starts_with(is_part))
    })
}

/// The text with comments, strings and characters replaced by spaces, line by line.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let blank = blank_len(rest, code.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'));
        if blank == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..blank].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[blank..];
        }
    }
    code
}

/// How many bytes at the start of `rest` are a comment, string or character.
fn blank_len(rest: &str, within_word: bool) -> usize {
    let through = |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return through(2, "*/");
    }
    let raw = rest.strip_prefix('b').unwrap_or(rest);
    if !within_word && let Some(raw) = raw.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let opened = rest.len() - raw.len() + hashes + 1;
            return through(opened, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    let mut chars = rest.char_indices();
    match chars.next() {
        Some((_, '"')) => quoted_len(rest, '"'),
        // A lifetime has no closing quote after its first character.
        Some((_, '\'')) => match (chars.next(), chars.next()) {
            (Some((_, '\\')), _) => quoted_len(rest, '\''),
            (Some(_), Some((at, '\''))) => at + 1,
            _ => 0,
        },
        _ => 0,
    }
}

/// The length of a literal with escapes, including its quotes.
fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The test programs that Cargo finds: `tests/NAME.rs`, and `tests/NAME` with a main.rs.
fn test_programs() -> Vec<String> {
    let files = files_below("tests", &["rs"]).into_keys();
    files
        .filter_map(|path| match path.split('/').collect::<Vec<_>>()[..] {
            ["tests", _] => Some(path),
            ["tests", folder, "main.rs"] => Some(format!("tests/{folder}")),
            _ => None,
        })
        .collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// Every Rust file of src, by its path below src.
fn sources() -> BTreeMap<String, String> {
    let files = files_below("src", &["rs"]);
    files.into_iter().map(|(path, text)| (path.strip_prefix("src/").unwrap().to_owned(), text)).collect()
}

/// The files with these endings below a folder (or the file itself), by path. Empty if it does not exist.
fn files_below(start: &str, endings: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root().join(start)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known)) && path.is_file()
        {
            found.insert(relative(&path), std::fs::read_to_string(&path).unwrap());
        }
    }
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

fn assert_none(problems: impl Iterator<Item = String>) {
    let problems: Vec<_> = problems.collect();
    assert!(problems.is_empty(), "{} broken rules:\n{}", problems.len(), problems.join("\n"));
}
