//! Tests standard streams that cannot be written: a full disk, a log pipe whose reader is gone or stuck, a closed
//! terminal.

use std::path::Path;
use std::process::{Command, Output};

use crate::rig::daemon::{Daemon, Setup, scratch};
use crate::rig::eventually;
use crate::rig::lambda::{Lambda, payload};

/// Runs the daemon with its stderr redirected by a shell.
fn under(state: &Path, redirection: &str, lambda: &Lambda) -> Daemon {
    let script = format!("{redirection}; exec \"$0\" \"$@\"");
    Setup::new(state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("log.level", "trace")
        .under(&["sh", "-c", &script])
        .start_unheard()
}

fn dropped(daemon: &Daemon) -> f64 {
    daemon.scrape().sum("sendoff_log_dropped_total", &[])
}

/// Checks that it accepts, delivers, and ends on SIGTERM as with a working stderr.
fn serves_and_ends(daemon: Daemon, lambda: &Lambda, id: &str) {
    daemon.accept("orders", &[], &payload(id));
    lambda.wait_for(&[id.to_owned()]);
    daemon.wait_until_empty();
    daemon.terminate();
    assert_eq!(daemon.wait().code(), Some(0), "{id}");
}

#[test]
fn a_daemon_whose_stderr_fails_serves_on_and_counts_the_lines_that_are_lost() {
    let fifo = tempfile::tempdir().unwrap();
    let fifo = fifo.path().join("log");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let fifo = fifo.display();
    // The shell's own descriptor 9 reads from the pipe while it is open.
    let reader_gone = format!("exec 9<>{fifo} 2>{fifo} 9<&-");
    let lambda = Lambda::start();
    for (what, redirection) in
        [("full", "exec 2>/dev/full"), ("gone", reader_gone.as_str()), ("read-only", "exec 2</dev/zero")]
    {
        let (_scratch, state) = scratch();
        let daemon = under(&state, redirection, &lambda);
        if what != "read-only" {
            // Rust itself treats a stderr that is not open for writing as closed, and writes nothing.
            eventually("lost lines are counted", || (dropped(&daemon) > 0.0).then_some(()));
        }
        serves_and_ends(daemon, &lambda, what);
    }
}

#[test]
fn a_daemon_whose_terminal_is_gone_serves_on() {
    const CLOSED_TERMINAL: &str = "import os, pty, sys; m, s = pty.openpty(); os.dup2(s, 2); os.close(m); os.close(s); \
                                   os.execv(sys.argv[1], sys.argv[1:])";
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.under(&["python3", "-c", CLOSED_TERMINAL]).start_unheard();
    eventually("lost lines are counted", || (dropped(&daemon) > 0.0).then_some(()));
    serves_and_ends(daemon, &lambda, "terminal");
}

#[test]
fn a_daemon_whose_log_is_not_read_serves_on_and_ends_in_time() {
    let (_scratch, state) = scratch();
    let fifo = state.join("log");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let lambda = Lambda::start();
    // The daemon inherits descriptor 9, which reads nothing. So the pipe fills up, and then the queue before it.
    let daemon = under(&state, &format!("exec 9<>{0} 2>{0}", fifo.display()), &lambda);
    let mut sent = 0;
    eventually("lost lines are counted", || {
        for _ in 0..20 {
            daemon.accept("orders", &[], &payload(&format!("stuck-{sent}")));
            sent += 1;
        }
        (dropped(&daemon) > 0.0).then_some(())
    });
    serves_and_ends(daemon, &lambda, "stuck");
}

#[test]
fn closed_streams_are_never_the_store_s_files() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = under(&state, "exec <&- >&- 2>&-", &lambda);
    for stream in 0..3 {
        let path = std::fs::read_link(format!("/proc/{}/fd/{stream}", daemon.pid())).unwrap();
        assert_eq!(path, Path::new("/dev/null"), "{stream}");
    }
    serves_and_ends(daemon, &lambda, "closed");
}

/// Runs `sendoff` in a shell that redirects its streams.
fn shell(script: &str) -> Output {
    let binary = Path::new(env!("CARGO_BIN_EXE_sendoff"));
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command.args(["-c", script]).env_clear().env("HOME", "/nonexistent");
    command.env("PATH", format!("{}:{path}", binary.parent().unwrap().display()));
    command.output().unwrap()
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly() {
    for command in ["show-config", "man", "completions bash", "help", "check-config", "--version"] {
        let said = shell(&format!("sendoff {command} | true; exit ${{PIPESTATUS[0]}}"));
        assert_eq!((said.status.code(), String::from_utf8_lossy(&said.stderr).as_ref()), (Some(0), ""), "{command}");
    }
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    daemon.accept("orders", &[], b"{}");
    for command in ["status", "functions", "events list", "dead-letters list", "dead-letters export"] {
        let said = shell(&format!("sendoff {command} --admin http://{} | true; exit ${{PIPESTATUS[0]}}", daemon.admin));
        let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(0), "{command}: {stderr}");
        assert!(!stderr.contains("panicked"), "{command}: {stderr}");
    }
}

#[test]
fn a_command_that_cannot_write_says_so_and_keeps_its_exit_code() {
    for (script, code, said) in [
        ("sendoff show-config >/dev/full", 1, "cannot write to stdout: No space left"),
        ("sendoff completions bash >/dev/full", 1, "cannot write to stdout: No space left"),
        ("sendoff show-config >&-", 0, ""),
        ("sendoff check-config --set nonsense=1 2>/dev/full", 78, ""),
        ("sendoff check-config --set nonsense=1 2>&-", 78, ""),
        ("sendoff serve --set nonsense=1 2>/dev/full", 78, ""),
        ("sendoff serve --set log.level=inof 2>/dev/full", 78, ""),
        ("sendoff status --admin http://127.0.0.1:1 2>/dev/full", 69, ""),
        (
            "sendoff serve --state-dir /dev/null/x --set listen.ingest=127.0.0.1:0 --set listen.admin=127.0.0.1:0 2>/dev/full",
            69,
            "",
        ),
    ] {
        let output = shell(script);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{script}: {stderr}");
        assert!(stderr.contains(said) && !stderr.contains("panicked"), "{script}: {stderr}");
    }
}
