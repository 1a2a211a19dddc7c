//! Tests dead letters with SQS as moto and MiniStack serve it: shipping and redrive, with kills at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sendoff::standin::{Script, Trouble};
use serde_json::{Value, json};

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::ministack::MiniStack;
use crate::rig::process::Process;
use crate::rig::sqs::Sqs;
use crate::rig::{PATIENCE, eventually, http, lasting_port, python};

mod faults;

mod standalone;

mod steps;

/// A server of SQS's JSON protocol.
pub struct Service {
    address: SocketAddr,
    region: &'static str,
    /// Ends when this is dropped.
    _server: Box<dyn std::any::Any>,
}

impl Service {
    pub fn moto() -> Self {
        let sqs = Sqs::start();
        let address = address(&sqs.endpoint_url());
        Self { _server: Box::new(sqs), ..Self::moto_at(address) }
    }

    /// A moto server that already runs.
    fn moto_at(address: SocketAddr) -> Self {
        Self { address, region: python::REGION, _server: Box::new(()) }
    }

    pub fn ministack(scratch: &Path) -> Self {
        let stack = MiniStack::start(scratch);
        Self { address: address(&stack.endpoint_url()), region: python::REGION, _server: Box::new(stack) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn create_queue(&self, name: &str, attributes: &Value) -> String {
        let created = self.call("CreateQueue", &json!({ "QueueName": name, "Attributes": attributes }));
        created["QueueUrl"].as_str().unwrap().to_owned()
    }

    pub fn send(&self, queue: &str, body: &str, attributes: &[(&str, &str, &str)]) {
        let attributes: serde_json::Map<String, Value> = attributes
            .iter()
            .map(|(name, kind, value)| ((*name).to_owned(), json!({ "DataType": kind, "StringValue": value })))
            .collect();
        self.call("SendMessage", &json!({ "QueueUrl": queue, "MessageBody": body, "MessageAttributes": attributes }));
    }

    /// Removes all messages from the queue.
    fn empty(&self, queue: &str) {
        patiently("the queue is empty", || {
            let received = self.call("ReceiveMessage", &json!({ "QueueUrl": queue, "MaxNumberOfMessages": 10 }));
            for message in received["Messages"].as_array().into_iter().flatten() {
                self.call("DeleteMessage", &json!({ "QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"] }));
            }
            (self.count(queue) == 0).then_some(())
        });
    }

    /// The number of messages in the queue, including hidden ones.
    pub fn count(&self, queue: &str) -> usize {
        let names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
        let asked = self.call("GetQueueAttributes", &json!({ "QueueUrl": queue, "AttributeNames": names }));
        names.iter().map(|name| asked["Attributes"][*name].as_str().unwrap().parse::<usize>().unwrap()).sum()
    }

    pub fn call(&self, operation: &str, input: &Value) -> Value {
        let scope = format!("AKIDEXAMPLE/20261123/{}/sqs/aws4_request", self.region);
        let authorization = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0");
        let target = format!("AmazonSQS.{operation}");
        let headers = [
            ("X-Amz-Target", target.as_str()),
            ("Content-Type", "application/x-amz-json-1.0"),
            ("Authorization", authorization.as_str()),
        ];
        let response = http::request(self.address, "POST", "/", &headers, input.to_string().as_bytes());
        assert_eq!(response.status, 200, "{operation}: {}", response.text());
        if response.body.is_empty() { Value::Null } else { response.json() }
    }
}

pub fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// The setup of a daemon with fixed ports, a dead-letter queue, and one attempt per event.
fn setup(state: &Path, lambda: &Lambda, sqs: &str) -> Setup {
    Setup::new(state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("sqs.endpoint_url", sqs)
        .set("dead_letter.backoff_base", "50ms")
        .set("dead_letter.backoff_cap", "500ms")
        .set("delivery.attempts_max", "1")
}

/// A queue in MiniStack, a Lambda that refuses everything, and how to start a daemon between them.
struct Parts {
    service: Service,
    lambda: Lambda,
    queue: String,
    setup: Setup,
    state: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Parts {
    fn new() -> Self {
        let (_scratch, state) = scratch();
        // moto mixes up calls that overlap: it gives a message twice, and forgets deletions.
        let (service, lambda) = (Service::ministack(_scratch.path()), Lambda::start());
        refuse_all(&lambda);
        let queue = service.create_queue("dead", &json!({}));
        let setup = setup(&state, &lambda, &service.url()).set("dead_letter.queue_url", &queue);
        Self { service, lambda, queue, setup, state, _scratch }
    }
}

fn refuse_all(lambda: &Lambda) {
    let refusal = Trouble::error(400, "InvalidRequestContentException", "Could not parse request body into json");
    lambda.default_script(Script::always(refusal));
}

/// `sendoff` with these arguments, with the same Lambda and SQS as the daemon.
fn sendoff(admin: SocketAddr, sqs: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(args).args(["--admin", &format!("http://{admin}"), "--state-dir", "/nowhere"]);
    command.args(["--set", &format!("sqs.endpoint_url={sqs}")]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    python::aws_environment(&mut command);
    command
}

/// Runs a command to its end. Returns its exit code and all output.
fn run(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), said)
}

fn redrive(daemon: &Daemon, service: &Service, queue: &str, more: &[&str]) -> (i32, String) {
    run(sendoff(daemon.admin, &service.url(), &[&["redrive", "--queue", queue], more].concat()))
}

fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("letter-{n:05}")).collect()
}

/// Sends events that all become dead letters, and waits until they are in the queue.
fn kill_events(daemon: &Daemon, service: &Service, queue: &str, ids: &[String]) {
    std::thread::scope(|threads| {
        for ids in ids.chunks(ids.len().div_ceil(4)) {
            threads.spawn(move || {
                for (n, id) in ids.iter().enumerate() {
                    let key = format!("key of {id}");
                    daemon.accept(&format!("orders-{}", n % 3), &[("Idempotency-Key", &key)], &payload(id));
                }
            });
        }
    });
    patiently("the dead letters leave the store", || (daemon.stored() == 0.0).then_some(()));
    assert_eq!(service.count(queue), ids.len());
}

/// As `eventually`, for things that take an emulator minutes. Asks seldom, so that it does not keep the emulator busy.
pub fn patiently<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    for _ in 0..6_000 {
        if let Some(answer) = probe() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("waited ten minutes in vain: {what}");
}

fn out_and_back(service: &Service, format: &str, fifo: bool, calls: &str) {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    refuse_all(&lambda);
    let (name, attributes) = if fifo { ("dead.fifo", json!({ "FifoQueue": "true" })) } else { ("dead", json!({})) };
    let queue = service.create_queue(name, &attributes);
    let setup =
        setup(&state, &lambda, &service.url()).set("dead_letter.queue_url", &queue).set("dead_letter.format", format);
    let daemon = setup.start();
    let ids = ids(0..45);
    kill_events(&daemon, service, &queue, &ids);
    assert_eq!(daemon.scrape().sum("sendoff_deadletter_shipped_total", &[]), 45.0);

    // A dry run of a FIFO queue sees only the head of each group.
    let (code, said) = redrive(&daemon, service, &queue, &["--dry-run", "--calls", calls]);
    assert_eq!((code, fifo || said.contains("45 would be redriven")), (0, true), "{said}");
    assert_eq!(service.count(&queue), 45);

    lambda.take_all();
    let (code, said) = redrive(&daemon, service, &queue, &["--calls", calls]);
    assert_eq!((code, said.contains("45 redriven, 0 duplicates")), (0, true), "{said}");
    lambda.wait_for(&ids);
    daemon.wait_until_empty();
    assert!(lambda.taken().values().all(|&times| times == 1), "{:?}", lambda.taken());
    assert_eq!(service.count(&queue), 0);
    assert_eq!(daemon.scrape().sum("sendoff_deadletter_redriven_total", &[("source", "queue")]), 45.0);
}

#[test]
fn dead_letters_go_out_to_a_queue_of_moto_and_come_back() {
    out_and_back(&Service::moto(), "dlq", false, "1");
}

#[test]
fn dead_letters_go_out_to_a_queue_of_ministack_and_come_back() {
    let (scratch, _) = scratch();
    out_and_back(&Service::ministack(scratch.path()), "dlq", false, "8");
}

#[test]
fn destination_records_go_out_to_a_fifo_queue_and_come_back() {
    let (scratch, _) = scratch();
    out_and_back(&Service::ministack(scratch.path()), "destination", true, "8");
}

/// Kills daemon and redrive, each at random moments, until the redrive reports that nothing is left.
fn redrive_under_kills(letters: usize, kills: u32) {
    let (scratch, state) = scratch();
    let service = Service::ministack(scratch.path());
    let lambda = Lambda::start();
    refuse_all(&lambda);
    let queue = service.create_queue("dead", &json!({}));
    let setup = setup(&state, &lambda, &service.url())
        .set("dead_letter.queue_url", &queue)
        .set("listen.ingest", &format!("127.0.0.1:{}", lasting_port()))
        .set("listen.admin", &format!("127.0.0.1:{}", lasting_port()));
    let mut daemon = setup.start();
    let ids = ids(0..letters);

    // Shipping, while the daemon is killed again and again. Every accepted event reaches the queue at least once.
    for (n, ids) in ids.chunks(letters.div_ceil(kills as usize)).enumerate() {
        for id in ids {
            daemon.accept("orders", &[("Idempotency-Key", id)], &payload(id));
        }
        std::thread::sleep(Duration::from_millis(7 * n as u64 % 60));
        daemon.kill9();
        daemon = setup.start();
    }
    patiently("the dead letters leave the store", || (daemon.stored() == 0.0).then_some(()));
    let shipped = service.count(&queue);
    assert!(shipped >= letters, "{shipped} messages of {letters} letters");

    // And the redrive.
    lambda.take_all();
    let admin = daemon.admin;
    let start = |visibility| {
        let args = ["redrive", "--queue", &queue, "--visibility", visibility, "--progress", "none"];
        Process::spawn("redrive", &mut sendoff(admin, &service.url(), &args))
    };
    for n in 0..kills {
        let mut process = start("2s");
        std::thread::sleep(Duration::from_millis(u64::from(150 + 53 * n % 400)));
        process.kill9();
        if n % 2 == 0 {
            daemon.kill9();
            daemon = setup.start();
        }
    }
    patiently("the last redrive finds nothing left", || {
        let mut process = start("30s");
        process.wait(PATIENCE * 10);
        (service.count(&queue) == 0).then_some(())
    });
    patiently("all is delivered", || (daemon.stored() == 0.0).then_some(()));
    let taken = lambda.taken();
    let known: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(taken.keys().collect::<BTreeSet<_>>(), known, "nothing is lost, nothing is invented");
    let twice = taken.values().filter(|&&times| times > 1).count();
    // A duplicate that a killed shipment left in the queue is recognised by its id. The remaining duplicates are
    // attempts whose answer was cut off by a kill of the daemon.
    println!("{letters} letters, {shipped} messages, {kills} kills of each kind, {twice} delivered more than once");
    assert!(twice <= 64 * kills as usize, "{twice} of {letters} delivered more than once");
}

#[test]
fn a_thousand_letters_come_back_though_daemon_and_redrive_are_killed_again_and_again() {
    redrive_under_kills(1_000, 8);
}

#[test]
#[ignore = "takes minutes: cargo test --test it ten_thousand -- --ignored --nocapture"]
fn ten_thousand_letters_come_back_though_daemon_and_redrive_are_killed_again_and_again() {
    redrive_under_kills(10_000, 20);
}

/// Foreign messages that queues may contain: tests/fixtures/dead-letters.
fn fixtures() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dead-letters");
    let files = std::fs::read_dir(folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    files.map(|bytes| serde_json::from_slice(&bytes).unwrap()).collect()
}

#[test]
fn what_lambda_itself_put_on_a_queue_is_redriven_and_what_is_foreign_is_left_and_named() {
    let (scratch, state) = scratch();
    let service = Service::ministack(scratch.path());
    let lambda = Lambda::start();
    let queue = service.create_queue("lambdas-own", &json!({}));
    let daemon = setup(&state, &lambda, &service.url()).start();
    let fixtures = fixtures();
    let mut sent = 0;
    for fixture in &fixtures {
        let attributes = fixture["attributes"].as_object().unwrap();
        let attributes: Vec<(&str, &str, &str)> = attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value[0].as_str().unwrap(), value[1].as_str().unwrap()))
            .collect();
        // Messages with Lambda's attributes are sent twice, as SQS may deliver them.
        for _ in 0..=usize::from(fixture["attributes"].get("RequestID").is_some()) {
            service.send(&queue, fixture["body"].as_str().unwrap(), &attributes);
            sent += 1;
        }
    }
    let (foreign, letters): (Vec<&Value>, Vec<&Value>) =
        fixtures.iter().partition(|fixture| fixture["expect"].get("foreign").is_some());
    assert!((foreign.len(), letters.len()) >= (6, 4), "{fixtures:?}");

    // Nothing names the function of Lambda's first message, so both copies stay, too.
    let (code, said) = redrive(&daemon, &service, &queue, &["--dry-run"]);
    let expected = format!("{} left on the queue: foreign", foreign.len() + 2);
    assert_eq!((code, said.contains(&expected)), (1, true), "{said}");

    service.call("TagQueue", &json!({ "QueueUrl": queue, "Tags": { "sendoff:function": "orders" } }));
    let (code, said) = redrive(&daemon, &service, &queue, &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("{} redriven, 1 duplicate", letters.len())), "{said}");
    assert!(said.contains(&format!("{} left on the queue: foreign", foreign.len())), "{said}");
    for foreign in &foreign {
        let why = foreign["expect"]["foreign"].as_str().unwrap();
        assert!(said.contains(why), "{why:?} is not in {said}");
    }
    assert_eq!((service.count(&queue), sent), (foreign.len(), foreign.len() + letters.len() + 1));
    daemon.wait_until_empty();
    let taken: BTreeMap<String, String> = lambda
        .taken_entries()
        .iter()
        .map(|entry| (entry.id.clone().unwrap(), entry.lane.split(':').next().unwrap().to_owned()))
        .collect();
    let word = |fixture: &Value, name: &str| fixture["expect"][name].as_str().unwrap().to_owned();
    let expected: BTreeMap<_, _> =
        letters.iter().map(|fixture| (word(fixture, "id"), word(fixture, "function"))).collect();
    assert_eq!(taken, expected);
    assert!(lambda.taken().values().all(|&times| times == 1));
}

#[test]
fn an_event_that_dies_again_comes_back_until_the_ceiling_and_no_client_repeat_slips_in() {
    let Parts { service, queue, setup, .. } = &Parts::new();
    let daemon = setup.clone().set("dead_letter.redrives_max", "2").start();
    kill_events(&daemon, service, queue, &ids(0..1));
    for _ in 0..2 {
        let (_, said) = redrive(&daemon, service, queue, &[]);
        assert!(said.contains("1 redriven"), "{said}");
        eventually("it is dead again", || (service.count(queue) == 1).then_some(()));
    }
    let (code, said) = redrive(&daemon, service, queue, &[]);
    assert_eq!((code, said.contains("1 left on the queue: ceiling")), (1, true), "{said}");
    assert!(said.contains("dead_letter.redrives_max is 2"), "{said}");
    assert_eq!(service.count(queue), 1);
}

#[test]
fn what_is_larger_than_the_queue_takes_stays_listed_and_a_forgetful_queue_is_warned_of() {
    let (scratch, state) = scratch();
    let service = Service::ministack(scratch.path());
    let lambda = Lambda::start();
    refuse_all(&lambda);
    let attributes = json!({ "MaximumMessageSize": "2048", "MessageRetentionPeriod": "3600" });
    let queue = service.create_queue("small", &attributes);
    let daemon = setup(&state, &lambda, &service.url()).set("dead_letter.queue_url", &queue).start();
    let warned = daemon.wait_for_log(|fields| fields["retention"] == "1h");
    assert_eq!((&warned["level"], &warned["floor"]), (&json!("WARN"), &json!("4days")));
    let id = daemon.accept("orders", &[], json!({ "id": "x".repeat(4_000) }).to_string().as_bytes());
    daemon.accept("orders", &[], &payload("small"));
    eventually("the small one is in the queue", || (service.count(&queue) == 1).then_some(()));
    eventually("the large one is counted", || {
        (daemon.scrape().sum("sendoff_deadletter_unshippable_total", &[("function", "orders")]) == 1.0).then_some(())
    });
    let listed = http::get(daemon.admin, "/v1/dead-letters?unshippable=true").json();
    assert_eq!(listed["dead_letters"][0]["id"], id.as_str());
    assert_eq!(daemon.scrape().sum("sendoff_deadletter_queue_retention_seconds", &[("queue", "small")]), 3_600.0);
}

#[test]
fn what_is_larger_than_the_queue_takes_goes_compressed_where_that_is_configured() {
    let (scratch, state) = scratch();
    let service = Service::ministack(scratch.path());
    let lambda = Lambda::start();
    refuse_all(&lambda);
    let queue = service.create_queue("small", &json!({ "MaximumMessageSize": "2048" }));
    let daemon = setup(&state, &lambda, &service.url())
        .set("dead_letter.queue_url", &queue)
        .set("dead_letter.oversize", "compress")
        .start();
    let large = json!({ "id": "large", "text": "é ".repeat(100_000) }).to_string().into_bytes();
    daemon.accept("orders", &[], &large);
    // Text that does not shrink to a tenth.
    let noise: String =
        (0..600_u64).map(|n| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17))).collect();
    let noise = daemon.accept("orders", &[], json!({ "id": "noise", "text": noise }).to_string().as_bytes());
    eventually("the one that shrinks is in the queue", || (service.count(&queue) == 1).then_some(()));
    eventually("the other is counted", || {
        (daemon.scrape().sum("sendoff_deadletter_unshippable_total", &[]) == 1.0).then_some(())
    });
    let listed = http::get(daemon.admin, "/v1/dead-letters?unshippable=true").json();
    assert_eq!(listed["dead_letters"][0]["id"], noise.as_str());
    let why = listed["dead_letters"][0]["unshippable"].as_str().unwrap();
    assert!(why.contains("even compressed"), "{why}");

    lambda.take_all();
    let (code, said) = redrive(&daemon, &service, &queue, &[]);
    assert_eq!((code, said.contains("1 redriven, 0 duplicates")), (0, true), "{said}");
    lambda.wait_for(&["large".to_owned()]);
    let entries = lambda.taken_entries();
    assert_eq!(entries[0].payload.as_deref(), Some(&large[..]), "byte for byte");
}

#[test]
fn a_function_has_its_own_queue_by_arn_in_another_region() {
    let (scratch, state) = scratch();
    let service = Service::moto();
    let elsewhere = Service { region: "us-west-2", ..Service::moto_at(service.address) };
    let lambda = Lambda::start();
    refuse_all(&lambda);
    let queue = service.create_queue("dead", &json!({}));
    let theirs = elsewhere.create_queue("payments-dlq.fifo", &json!({ "FifoQueue": "true" }));
    let config = scratch.path().join("sendoff.toml");
    let arn = "arn:aws:sqs:us-west-2:123456789012:payments-dlq.fifo";
    std::fs::write(&config, format!("[functions.\"payments-*\"]\nqueue_url = \"{arn}\"\n")).unwrap();
    let daemon = setup(&state, &lambda, &service.url()).config(&config).set("dead_letter.queue_url", &queue).start();
    daemon.accept("payments-eu", &[], &payload("payment"));
    daemon.accept("orders", &[], &payload("order"));
    daemon.wait_until_empty();
    assert_eq!((service.count(&queue), elsewhere.count(&theirs)), (1, 1));
    lambda.take_all();
    let (code, said) = redrive(&daemon, &service, arn, &[]);
    assert_eq!((code, said.contains("1 redriven")), (0, true), "{said}");
    lambda.wait_for(&["payment".to_owned()]);
    assert_eq!(elsewhere.count(&theirs), 0);
}

#[test]
fn without_a_queue_dead_letters_are_listed_shown_exported_imported_redriven_and_purged() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    refuse_all(&lambda);
    let daemon = setup(&state, &lambda, "http://127.0.0.1:9").start();
    let accept = |n: usize| daemon.accept(if n < 12 { "orders" } else { "invoices" }, &[], &payload(&ids(n..n + 1)[0]));
    let events: Vec<String> = (0..15).map(accept).collect();
    let buried = || daemon.scrape().sum("sendoff_outbox_events", &[("state", "buried")]);
    eventually("all are dead", || (buried() == 15.0).then_some(()));
    let cli = |args: &[&str]| run(sendoff(daemon.admin, "http://127.0.0.1:9", args));

    let (code, said) = cli(&["dead-letters", "list", "--function", "inv*", "--where", "reason=refused"]);
    assert_eq!((code, said.matches("InvalidRequestContentException").count()), (0, 3), "{said}");
    assert!(
        said.contains("3 dead letters shown\n3 dead letters in the store; no dead-letter queue is configured"),
        "{said}"
    );
    let (_, said) = cli(&["dead-letters", "list", "--where", "error=no such text"]);
    assert!(said.contains("0 dead letters shown"), "{said}");
    let (_, said) = cli(&["dead-letters", "show", &events[0]]);
    assert!(said.contains("\"retries-exhausted\"") || said.contains("\"refused\""), "{said}");
    assert!(!said.contains("letter-00000"), "no payload unless asked for: {said}");
    let (code, said) = cli(&["dead-letters", "show", &events[0], "--payload"]);
    assert_eq!((code, said.into_bytes()), (0, payload("letter-00000")));

    let file = scratch.path().join("export.ndjson");
    let file = file.to_str().unwrap();
    let (code, said) = cli(&["dead-letters", "export", file]);
    assert_eq!((code, std::fs::read_to_string(file).unwrap().lines().count()), (0, 15), "{said}");
    let (code, said) = cli(&[
        &["dead-letters", "purge", "--yes"],
        &events.iter().map(String::as_str).collect::<Vec<_>>()[..],
    ]
    .concat());
    assert_eq!((code, buried()), (0, 0.0), "{said}");
    let (code, said) = cli(&["dead-letters", "import", file]);
    assert_eq!((code, said.contains("15 dead letters imported, 0 were")), (0, true), "{said}");
    let (_, said) = cli(&["dead-letters", "import", file]);
    assert!(said.contains("0 dead letters imported, 15 were already"), "{said}");
    let newer = scratch.path().join("newer.ndjson");
    let text = std::fs::read_to_string(file).unwrap().replacen("\"envelope\":{", "\"envelope\":{\"colour\":1,", 1);
    std::fs::write(&newer, text).unwrap();
    let (code, said) = cli(&["dead-letters", "import", newer.to_str().unwrap()]);
    assert!(code == 1 && said.contains("does not know the field envelope.colour"), "{said}");

    lambda.take_all();
    let (code, said) = cli(&["redrive", "--local", "--limit", "4", "--function", "orders"]);
    assert_eq!((code, said.contains("4 dead letters redriven from the store, 8 stay there")), (0, true), "{said}");
    let (code, said) = cli(&["redrive", "--local", "--rate", "100/s"]);
    assert_eq!((code, said.contains("11 dead letters redriven from the store, 0 stay there")), (0, true), "{said}");
    lambda.wait_for(&ids(0..15));
    daemon.wait_until_empty();
    assert!(lambda.taken().values().all(|&times| times == 1));
}

#[test]
fn a_redrive_that_is_interrupted_finishes_what_it_has_and_leaves_the_rest_visible() {
    let Parts { service, lambda, queue, setup, .. } = &Parts::new();
    let daemon = setup.start();
    kill_events(&daemon, service, queue, &ids(0..60));
    lambda.take_all();
    let args = ["redrive", "--queue", queue, "--rate", "20/s"];
    let mut process = Process::spawn("redrive", &mut sendoff(daemon.admin, &service.url(), &args));
    eventually("some are back", || (lambda.taken().len() > 4).then_some(()));
    process.signal(rustix::process::Signal::INT);
    let status = process.wait(PATIENCE);
    process.line(PATIENCE, |_| None::<()>);
    assert_eq!(status.code(), Some(1), "{:?}", process.lines());
    assert!(process.lines().iter().any(|line| line.contains("interrupted")), "{:?}", process.lines());
    daemon.wait_until_empty();
    assert_eq!(lambda.taken().len() + service.count(queue), 60);
    let (code, said) = redrive(&daemon, service, queue, &[]);
    assert_eq!(code, 0, "{said}");
    lambda.wait_for(&ids(0..60));
    assert!(lambda.taken().values().all(|&times| times == 1));
}

#[test]
fn a_redrive_asks_the_daemon_which_queue_it_is_and_how_to_reach_it() {
    let Parts { service, lambda, queue, setup, .. } = &Parts::new();
    let daemon = setup.start();
    kill_events(&daemon, service, queue, &ids(0..3));
    let admin = format!("http://{}", daemon.admin);
    let mut list = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    list.args(["dead-letters", "list", "--admin", &admin]).env_clear();
    let (code, said) = run(list);
    assert_eq!((code, said.contains("0 dead letters in the store; 3 shipped to dead since")), (0, true), "{said}");
    lambda.take_all();
    let redrive = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        command.arg("redrive").args(args).args(["--admin", &admin]).env_clear();
        python::aws_environment(&mut command);
        run(command)
    };
    // Neither the queue nor its endpoint is given on the command line.
    let (code, said) = redrive(&["--calls", "1"]);
    assert_eq!((code, said.contains("3 redriven")), (0, true), "{said}");
    lambda.wait_for(&ids(0..3));
    let (code, said) = redrive(&["--queue", &format!("{}-that-is-none", queue)]);
    assert_eq!((code, said.contains("there is no queue")), (1, true), "{said}");
    let nowhere = format!("http://127.0.0.1:{}", lasting_port());
    let (code, said) = redrive(&["--queue", queue, "--set", &format!("sqs.endpoint_url={nowhere}")]);
    assert_eq!((code, said.contains("cannot reach the queue") && said.contains(&nowhere)), (69, true), "{said}");
    drop(daemon);

    let daemon = setup.clone().set("dead_letter.queue_url", "").start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(["redrive", "--admin", &format!("http://{}", daemon.admin)]).env_clear();
    let (code, said) = run(command);
    assert_eq!(
        (code, said.contains("no dead-letter queue is configured") && said.contains("--local")),
        (1, true),
        "{said}"
    );
}
