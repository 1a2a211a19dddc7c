//! SIGTERM ends the daemon within the grace period and two seconds, whatever it is doing.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sendoff::standin::Script;

use crate::rig::daemon::{Daemon, Setup, invoke_path, scratch};
use crate::rig::h2::Client;
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{PATIENCE, eventually, http, lasting_port};

/// The grace period is one second here, plus two seconds, plus time for a busy machine. A daemon that waited for its
/// peer would take minutes.
const IN_TIME: Duration = Duration::from_secs(12);

fn brief(lambda: &Lambda, state: &std::path::Path) -> Setup {
    Setup::new(state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("lambda.read_timeout", "120s")
        .set("shutdown.grace", "1s")
        .set("listen.header_timeout", "120s")
        .set("listen.body_timeout", "120s")
}

fn assert_ends_in_time(daemon: Daemon) {
    let begun = Instant::now();
    daemon.terminate();
    let status = daemon.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(begun.elapsed() < IN_TIME, "it took {:?}", begun.elapsed());
}

fn sends(to: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

fn slow_lambda() -> Lambda {
    let lambda = Lambda::start();
    lambda.default_script(Script::default().latency(PATIENCE * 2, Duration::ZERO));
    lambda
}

#[test]
fn while_a_call_is_passed_through_on_either_protocol() {
    let (_scratch, state) = scratch();
    let lambda = slow_lambda();
    let daemon = brief(&lambda, &state).start();
    let head = http::head(daemon.ingest, "POST", &invoke_path("orders"), &[], 2);
    let _one = sends(daemon.ingest, &format!("{}{{}}", String::from_utf8(head).unwrap()));
    let mut two = Client::connect(daemon.ingest);
    two.ask("POST", &invoke_path("orders"), &[], b"{}").unwrap();
    eventually("both calls are in flight", || (lambda.in_flight() >= 2).then_some(()));
    assert_ends_in_time(daemon);
}

#[test]
fn while_peers_neither_send_what_they_began_nor_read_what_they_asked_for() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = brief(&lambda, &state).start();
    let mut held = Vec::new();
    let body = "Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    held.push(sends(daemon.ingest, &format!("POST /v1/events HTTP/1.1\r\n{body}")));
    held.push(sends(daemon.ingest, "POST /v1/events HTT"));
    held.push(sends(daemon.admin, &format!("POST /v1/redrive HTTP/1.1\r\n{body}")));
    held.push(sends(daemon.admin, "GET /metr"));
    held.push(sends(daemon.admin, ""));
    let mut client = Client::connect(daemon.ingest);
    client.ask("POST", &invoke_path("orders"), &[], b"{}").unwrap();
    let mut admin = Client::connect(daemon.admin);
    admin.ask("GET", "/metrics", &[], b"").unwrap();
    lambda.default_script(Script::default());
    eventually("the call is answered", || (lambda.requests() > 0).then_some(()));
    assert_ends_in_time(daemon);
}

/// A server that accepts connections and sends nothing.
fn silence() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[test]
fn while_the_dead_letter_queue_and_lambda_do_not_answer() {
    let (_scratch, state) = scratch();
    let lambda = slow_lambda();
    let (listener, url) = silence();
    let queue = format!("{url}/000000000000/dlq");
    let setup = brief(&lambda, &state).set("sqs.endpoint_url", &url).set("sqs.read_timeout", "120s");
    let daemon = setup.set("dead_letter.queue_url", &queue).start();
    daemon.accept("orders", &[], &payload("in flight"));
    eventually("an attempt is in flight", || (lambda.in_flight() > 0).then_some(()));
    let _asked = listener.accept().unwrap();
    assert_ends_in_time(daemon);
}

#[test]
fn though_the_parent_has_blocked_every_signal() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = brief(&lambda, &state).under(&["env", "--block-signal"]).start();
    daemon.accept("orders", &[], &payload("accepted"));
    assert_ends_in_time(daemon);
}

#[test]
fn while_credentials_do_not_come() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let profile = scratch.path().join("config");
    std::fs::write(&profile, "[default]\ncredential_process = sleep 600\n").unwrap();
    let mut setup = brief(&lambda, &state).env("AWS_CONFIG_FILE", profile.to_str().unwrap());
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        setup = setup.without_env(name);
    }
    let daemon = setup.start();
    daemon.accept("orders", &[], &payload("without credentials"));
    assert_ends_in_time(daemon);
}

#[test]
fn while_the_store_is_being_opened() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    // Opening a FIFO for writing blocks until somebody reads. This stands for a disk that does not answer.
    assert!(Command::new("mkfifo").arg(state.join("lock")).status().unwrap().success());
    let port = lasting_port();
    let setup = brief(&lambda, &state).set("listen.admin", &format!("127.0.0.1:{port}"));
    let mut process = setup.spawn();
    let admin = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("it lives and is not ready", || {
        (http::listens(admin) && http::get(admin, "/readyz").status == 503).then_some(())
    });
    let begun = Instant::now();
    process.signal(Signal::TERM);
    let status = process.wait(PATIENCE);
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(begun.elapsed() < IN_TIME, "it took {:?}", begun.elapsed());
}

#[test]
fn while_nobody_reads_its_log() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let ports = [lasting_port(), lasting_port()];
    let [ingest, admin] = ports.map(|port| format!("127.0.0.1:{port}"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendoff"));
    command.args(["serve", "--state-dir", state.to_str().unwrap(), "--set", "log.level=trace"]);
    for (key, value) in [
        ("listen.ingest", ingest.as_str()),
        ("listen.admin", &admin),
        ("lambda.endpoint_url", &lambda.endpoint_url()),
        ("shutdown.grace", "1s"),
    ] {
        command.args(["--set", &format!("{key}={value}")]);
    }
    crate::rig::python::aws_environment(&mut command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (ingest, admin): (SocketAddr, SocketAddr) = (ingest.parse().unwrap(), admin.parse().unwrap());
    eventually("it is ready", || (http::listens(admin) && http::get(admin, "/readyz").status == 200).then_some(()));
    // More lines than a pipe holds.
    for n in 0..300 {
        let headers = [("X-Amz-Invocation-Type", "Event")];
        let answer = http::request(ingest, "POST", &invoke_path("orders"), &headers, &payload(&n.to_string()));
        assert_eq!(answer.status, 202);
    }
    let begun = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(begun.elapsed() < IN_TIME, "it took {:?}", begun.elapsed());
}

#[test]
fn a_second_signal_is_heard_while_a_peer_holds_the_last_connection() {
    let (_scratch, state) = scratch();
    let lambda = slow_lambda();
    let daemon = brief(&lambda, &state).set("shutdown.grace", "600s").start();
    let mut client = Client::connect(daemon.ingest);
    client.ask("POST", &invoke_path("orders"), &[], b"{}").unwrap();
    eventually("the call is in flight", || (lambda.in_flight() > 0).then_some(()));
    daemon.terminate();
    eventually("it is not ready", || (http::get(daemon.admin, "/readyz").status == 503).then_some(()));
    assert_ends_in_time(daemon);
}

#[test]
fn sigquit_drains_as_sigterm_does_and_loses_nothing() {
    let (_scratch, state) = scratch();
    let lambda = slow_lambda();
    let setup = brief(&lambda, &state);
    let daemon = setup.start();
    daemon.accept("orders", &[], &payload("kept"));
    eventually("it is in flight", || (lambda.in_flight() >= 1).then_some(()));
    daemon.signal(Signal::QUIT);
    daemon.wait_for_log(|fields| fields["message"].as_str().is_some_and(|text| text.starts_with("draining")));
    assert_eq!(daemon.wait().code(), Some(0));
    lambda.default_script(Script::default());
    let daemon = setup.start();
    lambda.wait_for(&["kept".to_owned()]);
    daemon.wait_until_empty();
}

#[test]
fn signals_that_mean_nothing_here_are_logged_and_end_nothing() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = brief(&lambda, &state).start();
    for (signal, name) in [
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::VTALARM, "SIGVTALRM"),
        (Signal::PROF, "SIGPROF"),
        (Signal::IO, "SIGIO"),
        (Signal::POWER, "SIGPWR"),
        (Signal::STKFLT, "SIGSTKFLT"),
        (Signal::XFSZ, "SIGXFSZ"),
        (Signal::PIPE, ""),
        (Signal::WINCH, ""),
    ] {
        daemon.signal(signal);
        if !name.is_empty() {
            daemon.wait_for_log(|fields| fields["signal"] == name);
        }
        daemon.accept("orders", &[], &payload(&format!("after-{}", signal.as_raw())));
    }
    assert_ends_in_time(daemon);
}

/// This process holds the daemon's listening socket, too, as systemd would, and shuts it down.
#[test]
fn a_stage_that_ends_by_itself_ends_the_daemon_with_70_and_the_next_start_has_every_event() {
    let (scratch, state) = scratch();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (ingest, admin) = (socket.local_addr().unwrap(), lasting_port());
    let log = scratch.path().join("log");
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"", "sh"]);
    command.arg(env!("CARGO_BIN_EXE_sendoff")).args(["serve", "--state-dir"]).arg(&state);
    for setting in [format!("listen.admin=127.0.0.1:{admin}"), "lambda.endpoint_url=http://127.0.0.1:9".to_owned()] {
        command.args(["--set", &setting]);
    }
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
    crate::rig::python::aws_environment(&mut command);
    command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap()))).stdout(Stdio::null());
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut daemon = command.spawn().unwrap();
    let ready = || http::listens(ingest) && http::get(([127, 0, 0, 1], admin).into(), "/readyz").status == 200;
    eventually("the daemon is ready", || (http::listens(([127, 0, 0, 1], admin).into()) && ready()).then_some(()));
    let headers = [("X-Amz-Invocation-Type", "Event")];
    let accepted = http::request(ingest, "POST", &invoke_path("orders"), &headers, b"{\"kept\":1}");
    assert_eq!(accepted.status, 202, "{accepted:?}");

    rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
    let status = eventually("the daemon ends", || daemon.try_wait().unwrap());
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(70), "{status}: {said}");
    assert!(said.contains("does not listen any more") && said.contains("ingest"), "{said}");

    let lambda = Lambda::start();
    let _next = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    eventually("the event is delivered", || (lambda.requests() > 0).then_some(()));
}
