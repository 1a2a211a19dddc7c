//! Sends SIGKILL between every two steps of shipping and of a redrive. Afterwards no event is lost, and duplicates are
//! recognised.

use std::collections::BTreeSet;
use std::process::Command;

use super::{Parts, Service, address, ids, kill_events, patiently, redrive, refuse_all, run, sendoff, setup};
use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::gate::{At, Gate};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::process::Process;
use crate::rig::{PATIENCE, eventually, lasting_port};

/// The moments before and after each of these requests.
fn moments<'a>(requests: &'a [&'a str]) -> impl Iterator<Item = (&'a str, At)> {
    requests.iter().flat_map(|&request| [(request, At::Before), (request, At::After)])
}

const RECEIVE: &str = "AmazonSQS.ReceiveMessage";
const ACCEPT: &str = "POST /v1/redrive";
const DELETE: &str = "AmazonSQS.DeleteMessageBatch";
const RELEASE: &str = "AmazonSQS.ChangeMessageVisibilityBatch";
const SEND: &str = "AmazonSQS.SendMessageBatch";

/// The process to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Redrive,
    Daemon,
}

/// A redrive with gates in front of the queue and of the daemon.
struct Stage {
    parts: Parts,
    setup: Setup,
    daemon: Daemon,
    to_queue: Gate,
    to_daemon: Gate,
}

impl Stage {
    /// Kills `victim` while a redrive of `ids` is at this moment, then redrives to the end.
    fn die_at(mut self, (request, at): (&str, At), victim: Victim, ids: &[String]) -> Self {
        self.parts.lambda.take_all();
        let gate = if request == ACCEPT { &self.to_daemon } else { &self.to_queue };
        gate.hold(request, at);
        let args = ["redrive", "--queue", &self.parts.queue, "--visibility", "1s", "--progress", "none"];
        let mut command = sendoff(self.to_daemon.address(), &self.to_queue.url(), &args);
        let mut process = Process::spawn("redrive", &mut command);
        gate.wait_until_held();
        match victim {
            Victim::Redrive => process.kill9(),
            // The redrive continues by itself.
            Victim::Daemon => {
                self.daemon.kill9();
                self.daemon = self.setup.start();
                gate.drop_held();
                process.wait(PATIENCE * 2);
            }
        }
        drop(process);

        let said = patiently("nothing is left but what is foreign", || {
            let (_, said) = redrive(&self.daemon, &self.parts.service, &self.parts.queue, &["--visibility", "2s"]);
            (self.parts.service.count(&self.parts.queue) == 1).then_some(said)
        });
        assert!(said.contains("1 left on the queue: foreign"), "{said}");
        self.parts.lambda.wait_for(ids);
        self.daemon.wait_until_empty();
        self
    }
}

fn dies_at_every_step_of_a_redrive(victim: Victim) {
    let parts = Parts::new();
    let setup = parts
        .setup
        .clone()
        .set("listen.ingest", &format!("127.0.0.1:{}", lasting_port()))
        .set("listen.admin", &format!("127.0.0.1:{}", lasting_port()));
    let daemon = setup.start();
    let (to_queue, to_daemon) = (Gate::start(address(&parts.service.url())), Gate::start(daemon.admin));
    let mut stage = Stage { parts, setup, daemon, to_queue, to_daemon };
    for (n, moment) in moments(&[RECEIVE, ACCEPT, DELETE, RELEASE]).enumerate() {
        refuse_all(&stage.parts.lambda);
        let ids = ids(100 * n..100 * n + 35);
        kill_events(&stage.daemon, &stage.parts.service, &stage.parts.queue, &ids);
        stage.parts.service.send(&stage.parts.queue, "hello", &[]);
        stage = stage.die_at(moment, victim, &ids);
        stage.parts.service.empty(&stage.parts.queue);
        let taken = stage.parts.lambda.taken();
        let times: Vec<u64> = ids.iter().map(|id| taken[id]).collect();
        match victim {
            Victim::Redrive => assert!(times.iter().all(|&times| times == 1), "{moment:?}: {taken:?}"),
            // An attempt whose answer the kill cut off is repeated. The letter itself is accepted only once.
            Victim::Daemon => assert!(times.iter().all(|&times| (1..=2).contains(&times)), "{moment:?}: {taken:?}"),
        }
    }
}

#[test]
fn a_redrive_that_is_killed_between_any_two_steps_loses_nothing_and_repeats_nothing() {
    dies_at_every_step_of_a_redrive(Victim::Redrive);
}

#[test]
fn a_daemon_that_is_killed_between_any_two_steps_of_a_redrive_loses_nothing() {
    dies_at_every_step_of_a_redrive(Victim::Daemon);
}

#[test]
fn a_direct_redrive_that_is_killed_between_any_two_steps_loses_nothing() {
    let Parts { service, lambda, queue, setup, .. } = &Parts::new();
    let (to_queue, to_lambda) = (Gate::start(address(&service.url())), Gate::start(address(&lambda.endpoint_url())));
    let endpoint = format!("lambda.endpoint_url={}", to_lambda.url());
    let direct = |visibility: &str| {
        let args = ["redrive", "--direct", "--queue", queue, "--visibility", visibility, "--set", &endpoint];
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        command.args(args).args(["--set", &format!("sqs.endpoint_url={}", to_queue.url()), "--progress", "none"]);
        command.env_clear();
        crate::rig::python::aws_environment(&mut command);
        command
    };
    for (n, (request, at)) in moments(&[RECEIVE, "/invocations", DELETE]).enumerate() {
        refuse_all(lambda);
        let ids = ids(100 * n..100 * n + 35);
        let daemon = setup.start();
        kill_events(&daemon, service, queue, &ids);
        daemon.kill9();
        lambda.take_all();
        let gate = if request == "/invocations" { &to_lambda } else { &to_queue };
        gate.hold(request, at);
        let mut process = Process::spawn("redrive", &mut direct("5s"));
        gate.wait_until_held();
        process.kill9();
        drop(process);
        patiently("nothing is left", || {
            let (code, said) = run(direct("60s"));
            assert_eq!(code, 0, "{said}");
            (service.count(queue) == 0).then_some(())
        });
        let taken = lambda.taken();
        let twice = ids.iter().filter(|id| taken[*id] > 1).count();
        assert!(ids.iter().all(|id| taken[id] <= 2) && twice <= 35, "{request} {at:?}: {taken:?}");
        if (request, at) == (RECEIVE, At::Before) {
            assert_eq!(twice, 0, "nothing was invoked before");
        }
    }
}

/// Restarts the daemon, and checks that each of `ids` is in the queue and comes back once.
fn all_come_back(setup: &Setup, service: &Service, queue: &str, lambda: &Lambda, ids: &[String]) {
    let daemon = setup.start();
    patiently("the dead letters leave the store", || (daemon.stored() == 0.0).then_some(()));
    assert!(service.count(queue) >= ids.len(), "{} messages", service.count(queue));
    lambda.take_all();
    let (code, said) = redrive(&daemon, service, queue, &[]);
    assert_eq!((code, said.contains(&format!("{} redriven", ids.len()))), (0, true), "{said}");
    lambda.wait_for(ids);
    daemon.wait_until_empty();
    let taken = lambda.taken();
    assert!(ids.iter().all(|id| taken[id] == 1), "a copy is recognised: {taken:?}");
    daemon.kill9();
}

#[test]
fn a_daemon_that_is_killed_while_it_ships_loses_nothing_and_copies_are_recognised() {
    let Parts { service, lambda, queue, setup, .. } = &Parts::new();
    let gate = Gate::start(address(&service.url()));
    for (n, at) in [At::Before, At::After].into_iter().enumerate() {
        refuse_all(lambda);
        gate.hold(SEND, at);
        let daemon = setup.clone().set("sqs.endpoint_url", &gate.url()).start();
        let ids = ids(100 * n..100 * n + 25);
        for id in &ids {
            daemon.accept("orders", &[("Idempotency-Key", id)], &payload(id));
        }
        gate.wait_until_held();
        daemon.kill9();
        all_come_back(setup, service, queue, lambda, &ids);
    }
}

#[test]
fn a_daemon_that_is_killed_at_any_sync_of_an_events_life_and_death_loses_nothing() {
    let Some(_strace) = crate::rig::tools::tool("strace", "strace") else { return };
    let Parts { service, lambda, queue, .. } = &Parts::new();
    let (mut deaths, mut accepted_at_all) = (0, 0);
    for n in 1.. {
        let (_scratch, state) = scratch();
        refuse_all(lambda);
        let setup = setup(&state, lambda, &service.url()).set("dead_letter.queue_url", queue);
        // Create the store first. Otherwise its own syncs would be counted, too.
        setup.start().kill9();
        // SQS answers between two syncs: that of the burial, and that of the settlement, which removes the dead letter.
        // strace counts for each thread, and one thread makes all of these syncs.
        let inject = format!("inject=fdatasync:signal=KILL:when={n}");
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &inject];
        let mut process = setup.clone().under(&strace).spawn();
        let ready = process.line(PATIENCE, crate::rig::daemon::ready);
        let id = format!("letter of sync {n}");
        let accepted = ready.as_ref().is_some_and(|(ingest, _)| {
            let headers = [("X-Amz-Invocation-Type", "Event"), ("Idempotency-Key", id.as_str())];
            let path = crate::rig::daemon::invoke_path("orders");
            let body = payload(&id);
            let mut request = crate::rig::http::head(*ingest, "POST", &path, &headers, body.len());
            request.extend_from_slice(&body);
            crate::rig::http::exchange_if_there(*ingest, &request).is_some_and(|response| response.status == 202)
        });
        let lived = ready.is_some_and(|(_, admin)| {
            eventually("it dies, or the letter is shipped and settled", || {
                let scrape = crate::rig::http::exchange_if_there(
                    admin,
                    &crate::rig::http::head(admin, "GET", "/metrics", &[], 0),
                );
                match scrape {
                    None => Some(false),
                    Some(page) => {
                        let scrape = crate::rig::metrics::Scrape(page.text());
                        let shipped = scrape.sum("sendoff_deadletter_shipped_total", &[]) == 1.0;
                        (shipped && scrape.sum("sendoff_outbox_events", &[]) == 0.0).then_some(true)
                    }
                }
            })
        });
        process.kill9();
        drop(process);
        if lived {
            break;
        }
        deaths += 1;
        accepted_at_all += u32::from(accepted);
        if accepted {
            all_come_back(&setup, service, queue, lambda, &[id]);
        } else {
            // An event that was not accepted may be stored or not. Empty the queue for the next life.
            let daemon = setup.start();
            patiently("the store is empty", || (daemon.stored() == 0.0).then_some(()));
            daemon.kill9();
            service.empty(queue);
        }
    }
    let known: BTreeSet<String> = lambda.taken().into_keys().collect();
    println!("{deaths} lives ended at a sync, {accepted_at_all} after the event was accepted; back: {known:?}");
    assert!(accepted_at_all >= 2, "the burial and the settlement are synced after the acceptance");
}
