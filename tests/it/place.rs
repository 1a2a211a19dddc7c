//! Tests the state directory and the listeners, and what sendoff says if it cannot use one of them.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::rig::daemon::{Setup, invoke_path, scratch};
use crate::rig::lambda::{Lambda, payload};
use crate::rig::{PATIENCE, http, lasting_port};

/// Everything below `path`, including itself but not sockets, with permission bits.
fn modes(path: &Path) -> Vec<(String, u32)> {
    let found = std::fs::symlink_metadata(path).unwrap();
    let mut all = vec![(path.display().to_string(), found.mode() & 0o777)];
    if found.is_dir() {
        all.extend(std::fs::read_dir(path).unwrap().flat_map(|entry| modes(&entry.unwrap().path())));
    }
    if found.file_type().is_socket() { Vec::new() } else { all }
}

#[test]
fn whatever_the_umask_is_what_is_kept_is_for_the_daemon_s_user_alone() {
    let lambda = Lambda::start();
    lambda.throttle_all();
    for umask in ["0000", "0022", "0777"] {
        let (scratch, _) = scratch();
        let state = scratch.path().join("made/by/itself");
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let daemon = Setup::new(&state)
            .set("lambda.endpoint_url", &lambda.endpoint_url())
            .set("outbox.segment_bytes", "64KiB")
            .under(&["sh", "-c", &script])
            .start();
        for n in 0..20 {
            daemon.accept("orders", &[], &payload(&format!("{umask}-{n}-{}", "x".repeat(10_000))));
        }
        daemon.terminate();
        assert_eq!(daemon.wait().code(), Some(0));
        let found = modes(&scratch.path().join("made"));
        assert!(found.len() > 8, "{found:?}");
        let wide: Vec<_> = found.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
        assert!(wide.is_empty(), "umask {umask}: {wide:?}");
    }
}

#[test]
fn a_daemon_whose_directory_is_moved_away_ends_and_loses_nothing() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let setup = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url());
    let daemon = setup.start();
    let id = daemon.accept("orders", &[], &payload("accepted before"));
    let elsewhere = scratch.path().join("elsewhere");
    std::fs::rename(&state, &elsewhere).unwrap();
    daemon.wait_for_log(|line| line.to_string().contains("moved, removed or replaced"));
    assert_eq!(daemon.wait().code(), Some(70));
    std::fs::rename(&elsewhere, &state).unwrap();
    let daemon = setup.start();
    let found = http::get(daemon.ingest, &format!("/v1/events/{id}"));
    assert_eq!(found.status, 200, "{found:?}");
}

#[test]
fn an_export_is_for_its_owner_alone() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).start();
    let export = scratch.path().join("export");
    let admin = format!("http://{}", daemon.admin);
    let script = "umask 0000; exec \"$0\" dead-letters export --admin \"$1\" \"$2\"";
    let binary = env!("CARGO_BIN_EXE_sendoff");
    let said = Command::new("sh").args(["-c", script, binary, &admin]).arg(&export).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(std::fs::metadata(&export).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_state_directory_that_others_can_enter_is_warned_of_and_left_as_it_is() {
    let (_scratch, state) = scratch();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = Setup::new(&state).start();
    let warned =
        daemon.wait_for_log(|fields| fields["message"].as_str().is_some_and(|text| text.contains("mode 0755")));
    assert_eq!(warned["remedy"], format!("take their rights away: chmod -R go-rwx {}", state.display()), "{warned}");
    assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o755);
}

#[test]
fn a_socket_file_has_its_mode_whatever_the_umask_is_and_serves() {
    let lambda = Lambda::start();
    for (umask, mode, group) in [("0077", "0660", ""), ("0000", "0600", ""), ("0777", "0666", "0")] {
        let (scratch, state) = scratch();
        let path = scratch.path().join("s");
        // What a killed daemon leaves behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let daemon = Setup::new(&state)
            .set("lambda.endpoint_url", &lambda.endpoint_url())
            .set("listen.unix", path.to_str().unwrap())
            .set("listen.unix_mode", mode)
            .set("listen.unix_group", group)
            .under(&["sh", "-c", &script])
            .start();
        assert_eq!(format!("{:04o}", std::fs::metadata(&path).unwrap().mode() & 0o777), mode);
        let curl = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "X-Amz-Invocation-Type: Event", "-d", "{}"];
        let url = format!("http://localhost{}", invoke_path("orders"));
        let said = Command::new("curl").args(curl).arg("--unix-socket").arg(&path).arg(url).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "202");
        daemon.terminate();
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(!path.exists());
    }
}

#[test]
fn whatever_is_in_the_way_of_a_socket_file_is_left_alone() {
    let (scratch, state) = scratch();
    let path = |name: &str| scratch.path().join(name);
    std::fs::write(path("file"), b"precious").unwrap();
    std::fs::create_dir(path("directory")).unwrap();
    std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
    let live = std::os::unix::net::UnixListener::bind(path("live")).unwrap();
    for (name, why) in [
        ("file", "a file that is no socket is there, and was left alone"),
        ("directory", "a directory is there, and was left alone"),
        ("link", "a symbolic link is there, and was left alone"),
        ("live", "another process listens on it"),
        ("missing/s", "missing does not exist"),
    ] {
        let (code, said) = Setup::new(&state).set("listen.unix", path(name).to_str().unwrap()).fail_to_start();
        assert_eq!(code, Some(69), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.contains(why) && last.contains("choose another listen.unix"), "{last}");
    }
    assert_eq!(std::fs::read(path("file")).unwrap(), b"precious");
    assert!(path("directory").is_dir() && path("link").is_symlink() && path("live").exists());
    drop(live);
}

#[test]
fn one_listener_on_any_address_takes_both_families() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let daemon = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("listen.ingest", "[::]:0")
        .set("listen.admin", "[::]:0")
        .set("listen.allow_unauthenticated_remote", "true")
        .start();
    for host in ["127.0.0.1", "::1"] {
        let at = |port: u16| SocketAddr::new(host.parse().unwrap(), port);
        assert_eq!(http::get(at(daemon.admin.port()), "/readyz").status, 200, "{host}");
        let event = [("X-Amz-Invocation-Type", "Event")];
        let answer = http::request(at(daemon.ingest.port()), "POST", &invoke_path("orders"), &event, &payload(host));
        assert_eq!(answer.status, 202, "{host}: {answer:?}");
    }
    lambda.wait_for(&["127.0.0.1".to_owned(), "::1".to_owned()]);
}

#[test]
fn several_addresses_are_listened_on_at_once() {
    let (_scratch, state) = scratch();
    let lambda = Lambda::start();
    let [one, two, admin] = [lasting_port(), lasting_port(), lasting_port()];
    let process = Setup::new(&state)
        .set("lambda.endpoint_url", &lambda.endpoint_url())
        .set("listen.ingest", &format!("127.0.0.1:{one} [::1]:{two}"))
        .set("listen.admin", &format!("127.0.0.1:{admin}"))
        .spawn();
    let said = format!("127.0.0.1:{one} [::1]:{two}");
    assert!(process.line(PATIENCE, |line| line.contains(&said).then_some(())).is_some(), "the log names both");
    for address in [format!("127.0.0.1:{one}"), format!("[::1]:{two}")] {
        let event = [("X-Amz-Invocation-Type", "Event")];
        let to: SocketAddr = address.parse().unwrap();
        let answer = http::request(to, "POST", &invoke_path("orders"), &event, &payload(&address));
        assert_eq!(answer.status, 202, "{address}: {answer:?}");
    }
    lambda.wait_for(&[format!("127.0.0.1:{one}"), format!("[::1]:{two}")]);
}

#[test]
fn a_start_that_fails_says_once_what_failed_why_and_what_to_do() {
    let (scratch, state) = scratch();
    let path = |name: &str| scratch.path().join(name);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let running = Setup::new(&state).start();
    std::fs::write(path("file"), b"").unwrap();
    let other = path("other");
    let locked = format!("is in use by another sendoff (process {}); stop that one first", running.pid());
    let in_use = format!(
        "sendoff: cannot listen on {address}: the address is in use; perhaps another sendoff runs (`sendoff status`): stop it, or \
         choose another listen."
    );
    for (setup, code, said) in [
        (Setup::new(&other).set("listen.ingest", &address), 69, format!("{in_use}ingest")),
        (Setup::new(&other).set("listen.admin", &address), 69, format!("{in_use}admin")),
        (Setup::new(&state), 69, locked),
        (Setup::new(&path("file")), 69, "file is not a directory; set state_dir to a directory".to_owned()),
        (Setup::new(&path("file/below")), 69, "file is not a directory; set state_dir to a directory".to_owned()),
        (Setup::new(Path::new("/proc/sendoff")), 69, "cannot use the state directory /proc/sendoff".to_owned()),
        (
            Setup::new(&other).set("listen.ingest", "192.0.2.1:0").set("listen.allow_unauthenticated_remote", "true"),
            69,
            "this machine has no such address; set listen.ingest to an address of this machine".to_owned(),
        ),
    ] {
        let (found, output) = setup.fail_to_start();
        assert_eq!(found, Some(code), "{output}");
        let last = output.lines().last().unwrap();
        assert!(last.contains(&said), "{said}\nin {last}");
        assert!(!output.contains("os error 98") && output.matches("is not a directory").count() <= 1, "{output}");
    }
}
