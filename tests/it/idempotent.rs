//! Runs the functions of docs/idempotent-functions.md in MiniStack, as written on the page, with the page's table,
//! policy and configuration. Each event gets 202, is invoked more than once, and must have its effect once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use sendoff::standin::{Script, Trouble};
use serde_json::{Value, json};

use crate::rig::daemon::{Setup, scratch};
use crate::rig::gate::{At, Gate};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::ministack::{MiniStack, ROOT};
use crate::rig::page::examples;
use crate::rig::{eventually, python};

const EVENTS: usize = 200;

/// Counts the runs of the page's handler, and lets a test make it fail.
const INDEX: &str = r#"
import json
import os

import fault
import page

fault.install(page)


def note(event, how):
    file = os.open(os.environ["RUNS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, (json.dumps({"id": event["id"], "how": how}) + "\n").encode())
    os.close(file)


def handle(event, context):
    fault.event = event
    try:
        answer = page.handler(event, context)
    except Exception as why:
        note(event, type(why).__name__)
        raise
    note(event, "done")
    return answer
"#;

const NO_FAULT: &str = "def install(page): pass\n";

/// The first run of each event fails after its effect, for example because DynamoDB's answer is lost.
const FAILS_AFTER_ITS_EFFECT: &str = r#"
import os


def fail(**_):
    try:
        open(os.path.join(os.path.dirname(os.environ["RUNS"]), "failed-" + event["id"]), "x").close()
    except FileExistsError:
        return
    raise ConnectionError("the answer of DynamoDB is lost")


def install(page):
    for operation in ["UpdateItem", "TransactWriteItems"]:
        page.dynamodb.meta.client.meta.events.register("after-call.dynamodb." + operation, fail)
"#;

/// Every run waits before its effect until the test lets it continue.
const WAITS_BEFORE_ITS_EFFECT: &str = r#"
import os
import time


def wait(**_):
    while not os.path.exists(os.path.join(os.path.dirname(os.environ["RUNS"]), "go-on")):
        time.sleep(0.02)


def install(page):
    page.dynamodb.meta.client.meta.events.register("before-call.dynamodb.UpdateItem", wait)
"#;

/// AWS as the page sets it up, with a table `orders` for the effects.
struct Aws {
    stack: MiniStack,
    scratch: PathBuf,
}

/// How a run of the handler ended.
#[derive(Debug, PartialEq)]
struct Run {
    id: String,
    how: String,
}

impl Aws {
    fn start(scratch: &Path) -> Self {
        let stack = MiniStack::start_guarded(scratch);
        stack.create_role();
        let mut table = vec!["dynamodb", "create-table", "--table-name", "orders", "--billing-mode", "PAY_PER_REQUEST"];
        table.extend(["--attribute-definitions", "AttributeName=id,AttributeType=S"]);
        table.extend(["--key-schema", "AttributeName=id,KeyType=HASH"]);
        stack.aws(&table);
        let aws = Self { stack, scratch: scratch.to_owned() };
        let policy = example("policy");
        let mut words = vec!["iam", "put-role-policy", "--role-name", "orders", "--policy-name", "idempotency"];
        words.extend(["--policy-document", &policy]);
        aws.stack.aws(&words);
        aws.run_as_root(Command::new("sh").args(["-ec", &example("table")]));
        aws
    }

    /// Runs a command that uses the AWS CLI on this AWS, with all permissions.
    fn run_as_root(&self, command: &mut Command) {
        let programs = python::program("aws");
        let path = std::env::var("PATH").unwrap_or_default();
        python::aws_environment(command);
        command.env("PATH", format!("{}:{path}", programs.parent().unwrap().display()));
        command.env("AWS_ACCESS_KEY_ID", ROOT.0).env("AWS_SECRET_ACCESS_KEY", ROOT.1);
        python::run(command.env("AWS_ENDPOINT_URL", self.stack.endpoint_url()));
    }

    /// Creates a function whose handler is in `page`.
    fn create_function(&self, name: &str, page: &str, fault: &str) {
        let runs = self.runs_file();
        let files = [("index.py", INDEX), ("page.py", page), ("fault.py", fault)];
        self.stack.create_function(name, &self.scratch, &files, &[("RUNS", runs.to_str().unwrap())]);
    }

    fn runs_file(&self) -> PathBuf {
        self.scratch.join("runs")
    }

    /// The runs of the handler that have ended.
    fn runs(&self) -> Vec<Run> {
        let text = std::fs::read_to_string(self.runs_file()).unwrap_or_default();
        let runs = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        runs.map(|run| Run { id: text(&run["id"]), how: text(&run["how"]) }).collect()
    }

    fn runs_that(&self, ended: &str) -> usize {
        self.runs().iter().filter(|run| run.how == ended).count()
    }

    /// How often each order was charged.
    fn charges(&self) -> BTreeMap<String, u64> {
        let table = self.stack.aws(&["dynamodb", "scan", "--table-name", "orders"]);
        let charges = |item: &Value| item["charges"]["N"].as_str().unwrap().parse().unwrap();
        let items = table["Items"].as_array().unwrap();
        items.iter().map(|item| (item["id"]["S"].as_str().unwrap().to_owned(), charges(item))).collect()
    }

    /// A daemon with the page's configuration, in front of `lambda`.
    fn setup(&self, state: &Path, lambda: &str) -> Setup {
        let config = self.scratch.join("sendoff.toml");
        std::fs::write(&config, example("sendoff")).unwrap();
        Setup::new(state)
            .config(&config)
            .set("lambda.endpoint_url", lambda)
            .env("AWS_ACCESS_KEY_ID", ROOT.0)
            .env("AWS_SECRET_ACCESS_KEY", ROOT.1)
    }
}

fn example(name: &str) -> String {
    let found = examples("idempotent-functions.md").into_iter().find(|example| example.name == name);
    found.unwrap_or_else(|| panic!("docs/idempotent-functions.md has no example {name}")).text
}

/// Gives another function the settings that the page has for `orders`.
fn with_keys(setup: Setup, function: &str) -> Setup {
    let set = |setup: Setup, key: &str, value: &str| setup.set(&format!("functions.{function}.{key}"), value);
    set(set(setup, "key", "id"), "inject", "idempotency_key")
}

/// The page's function without the line that makes it idempotent.
fn without_the_utility() -> String {
    let function = example("function");
    let without = function.replace("@idempotent(config=config, persistence_store=store)\n", "");
    assert_ne!(without, function);
    without
}

/// Events that are sent before the test waits for their runs. MiniStack starts a process for each concurrent run.
const AT_ONCE: usize = 4;

#[test]
fn events_invoked_twice_have_one_effect_each_and_without_the_utility_they_have_more() {
    let (scratch, state) = scratch();
    let aws = Aws::start(scratch.path());
    aws.create_function("orders", &example("function"), NO_FAULT);
    aws.create_function("unprotected", &without_the_utility(), NO_FAULT);
    let gate = Gate::start(aws.stack.address());
    gate.lose_one_of(6, 202);
    let setup = with_keys(aws.setup(&state, &gate.url()), "unprotected");
    let mut daemon = setup.start();

    let mut accepted = BTreeSet::new();
    let numbers: Vec<usize> = (0..EVENTS).collect();
    for (round, some) in numbers.chunks(AT_ONCE).enumerate() {
        let killed = [(5, "orders"), (15, "unprotected"), (25, "orders")].iter().find(|(when, _)| *when == round);
        if let Some((_, function)) = killed {
            gate.hold(&format!("/functions/{function}/invocations"), At::After);
        }
        for (n, function) in some.iter().flat_map(|n| [(n, "orders"), (n, "unprotected")]) {
            let id = format!("{function}-{n:03}");
            daemon.accept(function, &[], &payload(&id));
            accepted.insert(id);
        }
        if killed.is_some() {
            // Lambda has accepted an event, but the daemon does not know it.
            gate.wait_until_held();
            daemon.kill9();
            daemon = setup.start();
        }
        daemon.wait_until_empty();
        eventually("every invocation that Lambda took has ended well", || {
            (aws.runs_that("done") == gate.answered_with(202)).then_some(())
        });
    }

    let (charges, runs) = (aws.charges(), aws.runs());
    assert!(accepted.len() == 2 * EVENTS && charges.keys().eq(&accepted), "{:?}", charges.keys());
    let of = |function: &str| {
        let effects: u64 = charges.iter().filter(|(id, _)| id.starts_with(function)).map(|(_, times)| times).sum();
        let runs = runs.iter().filter(|run| run.how == "done" && run.id.starts_with(function)).count();
        (usize::try_from(effects).unwrap(), runs)
    };
    let (effects, runs) = of("orders");
    println!("with the utility: {runs} runs, {effects} effects; {} answers lost", gate.lost());
    assert!(runs >= EVENTS + 2 && gate.lost() > 20, "no repeats, no proof: {runs} runs, {} lost answers", gate.lost());
    assert_eq!(effects, EVENTS, "of {runs} runs: {charges:?}");
    let (effects, runs) = of("unprotected");
    println!("without it: {runs} runs, {effects} effects");
    assert!(effects > EVENTS && effects == runs, "without the utility: {effects} effects of {runs} runs");
}

#[test]
fn a_run_that_fails_after_its_effect_repeats_it_unless_key_and_effect_are_one_transaction() {
    let (scratch, state) = scratch();
    let aws = Aws::start(scratch.path());
    aws.create_function("orders", &example("function"), FAILS_AFTER_ITS_EFFECT);
    aws.create_function("together", &example("transaction"), FAILS_AFTER_ITS_EFFECT);
    let daemon = with_keys(aws.setup(&state, &aws.stack.endpoint_url()), "together").start();
    for n in 0..AT_ONCE {
        for function in ["orders", "together"] {
            daemon.accept(function, &[], &payload(&format!("{function}-{n}")));
        }
    }
    eventually("Lambda has run each failed event again", || (aws.runs_that("done") == 2 * AT_ONCE).then_some(()));
    assert_eq!(aws.runs_that("ConnectionError"), 2 * AT_ONCE, "{:?}", aws.runs());
    let charges = aws.charges();
    assert_eq!(charges.len(), 2 * AT_ONCE, "{charges:?}");
    for (id, times) in charges {
        assert_eq!(times, if id.starts_with("orders") { 2 } else { 1 }, "{id}");
    }
}

#[test]
fn a_repeat_that_comes_while_the_first_run_goes_on_fails_and_is_told_the_first_runs_answer_later() {
    let (scratch, state) = scratch();
    let aws = Aws::start(scratch.path());
    aws.create_function("orders", &example("function"), WAITS_BEFORE_ITS_EFFECT);
    let daemon = aws
        .setup(&state, &aws.stack.endpoint_url())
        .set("delivery.mode", "confirm")
        // Shorter than the function takes, so the daemon stops waiting and calls again.
        .set("delivery.confirm_timeout", "3s")
        .set("delivery.attempts_max", "1000")
        .start();
    daemon.accept("orders", &[], &payload("order-17"));
    eventually("a repeat has met the first run", || {
        (aws.runs_that("IdempotencyAlreadyInProgressError") > 0).then_some(())
    });
    std::fs::write(scratch.path().join("go-on"), "").unwrap();
    daemon.wait_until_empty();
    assert!(aws.runs_that("done") >= 2, "the first run and a repeat: {:?}", aws.runs());
    assert_eq!(aws.charges(), [("order-17".to_owned(), 1)].into());
}

#[test]
fn the_key_that_confirm_mode_sends_is_where_the_function_looks_for_it_on_every_attempt() {
    let (scratch, state) = scratch();
    let aws = Aws::start(scratch.path());
    let lambda = Lambda::start();
    lambda.script("orders", Script::default().once(Trouble::LostReply));
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("delivery.mode", "confirm")
        .set("delivery.key", "id")
        .start();
    daemon.accept("orders", &[], &payload("order-17"));
    daemon.wait_until_empty();
    let calls: Vec<_> = lambda.taken_entries();
    assert_eq!(calls.len(), 2, "a lost reply and its repeat");
    let lines = calls.iter().map(|call| {
        let event: Value = serde_json::from_slice(call.payload.as_ref().unwrap()).unwrap();
        let client_context = call.headers["x-amz-client-context"].to_str().unwrap();
        json!({ "event": event, "client_context": client_context }).to_string() + "\n"
    });
    let input = scratch.path().join("calls");
    std::fs::write(&input, lines.collect::<String>()).unwrap();
    std::fs::write(scratch.path().join("page.py"), example("confirm")).unwrap();
    let mut driver = python::script("client_context.py");
    aws.run_as_root(driver.arg(scratch.path()).stdin(std::fs::File::open(input).unwrap()));
    assert_eq!(aws.charges(), [("order-17".to_owned(), 1)].into());
}
