//! Tests restarts while somebody else holds the listening socket, as systemd does. No client is refused.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::rig::daemon::{invoke_path, scratch};
use crate::rig::{eventually, http, lasting_port};

/// A daemon that got `socket` as its descriptor 3. Dropping it kills it.
struct Given(Child);

impl Drop for Given {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(socket: &TcpListener, admin: u16, state: &Path) -> Given {
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"", "sh"]);
    command.arg(env!("CARGO_BIN_EXE_sendoff")).args(["serve", "--state-dir"]).arg(state);
    command.args([
        "--set",
        &format!("listen.admin=127.0.0.1:{admin}"),
        "--set",
        "lambda.endpoint_url=http://127.0.0.1:9",
    ]);
    crate::tools::clean(&mut command);
    command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap()))).stdout(Stdio::null()).stderr(Stdio::null());
    let given = Given(command.spawn().unwrap());
    let admin = format!("127.0.0.1:{admin}").parse().unwrap();
    eventually("the daemon is ready", || {
        (http::listens(admin) && http::get(admin, "/readyz").status == 200).then_some(())
    });
    given
}

#[test]
fn no_client_is_refused_while_a_daemon_follows_another_on_one_socket() {
    let (_scratch, state) = scratch();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (ingest, admin) = (socket.local_addr().unwrap(), lasting_port());
    let (enough, accepted) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut daemon = start(&socket, admin, &state);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                let headers = [("X-Amz-Invocation-Type", "Event")];
                let response = http::request(ingest, "POST", &invoke_path("orders"), &headers, b"{}");
                assert_eq!(response.status, 202, "{response:?}");
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..3 {
            let before = accepted.load(Ordering::Relaxed);
            rustix::process::kill_process(rustix::process::Pid::from_child(&daemon.0), rustix::process::Signal::TERM)
                .unwrap();
            assert!(daemon.0.wait().unwrap().success());
            daemon = start(&socket, admin, &state);
            eventually("the next daemon accepts", || (accepted.load(Ordering::Relaxed) > before + 5).then_some(()));
        }
        enough.store(true, Ordering::Relaxed);
    });
    let admin = format!("127.0.0.1:{admin}").parse().unwrap();
    let stored = http::get(admin, "/v1/status").json()["outbox"]["events"].as_u64();
    assert_eq!(stored, Some(accepted.load(Ordering::Relaxed).into()), "each is kept once");
}
