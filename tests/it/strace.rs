//! Tests G1 as the kernel sees it: a sync comes between the request and its 202.

use std::path::Path;

use crate::rig::daemon::{Setup, scratch};
use crate::rig::eventually;
use crate::rig::lambda::{Lambda, payload};
use crate::rig::tools::tool;

#[test]
fn between_the_request_and_its_202_the_store_is_synced() {
    let Some(_strace) = tool("strace", "strace") else { return };
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let trace = scratch.path().join("trace");
    let calls = "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,fsync,fdatasync";
    let strace = ["strace", "-f", "-y", "-s", "1024", "-e", calls, "-o", trace.to_str().unwrap()];
    let daemon = Setup::new(&state).set("lambda.endpoint_url", &lambda.endpoint_url()).under(&strace).start();
    for n in 0..5 {
        let function = format!("traced-{n}");
        let id = daemon.accept(&function, &[], &payload(&function));
        let verdict = eventually("strace has written down the answer", || {
            // Match only a part of the path: the server reads the first 24 bytes separately, to recognise the HTTP
            // version.
            synced_before_answer(&read(&trace), &format!("/{function}/invocations"), &id)
        });
        assert_eq!(verdict, Ok(()), "{function}");
    }
}

fn read(trace: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(trace).unwrap()).into_owned()
}

/// Whether a sync of the journal began after the request with `path` was read, and succeeded before the answer with
/// `id` was written. `None` if the trace does not contain that answer yet.
fn synced_before_answer(trace: &str, path: &str, id: &str) -> Option<Result<(), String>> {
    let lines: Vec<_> = trace.lines().collect();
    let asked = lines.iter().position(|line| is_call(line, READS) && line.contains(path))?;
    let answered = asked
        + lines[asked..].iter().position(|line| is_call(line, WRITES) && line.contains("202") && line.contains(id))?;
    let synced = (asked..answered).any(|at| succeeded(&lines, at, answered));
    Some(if synced { Ok(()) } else { Err(lines[asked..=answered].join("\n")) })
}

const READS: &[&str] = &["read", "readv", "recvfrom", "recvmsg"];
const WRITES: &[&str] = &["write", "writev", "sendto", "sendmsg"];
const SYNCS: &[&str] = &["fsync", "fdatasync"];

/// Whether a line (`PID call(arguments...`) is one of `calls`, complete or resumed.
fn is_call(line: &str, calls: &[&str]) -> bool {
    let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').trim_start_matches("<... ");
    calls.iter().any(|name| call.strip_prefix(name).is_some_and(|rest| rest.starts_with(['(', ' '])))
}

/// Whether the call that begins at line `at` is a sync of the store that returned 0 before line `end`.
fn succeeded(lines: &[&str], at: usize, end: usize) -> bool {
    let line = lines[at];
    if !(is_call(line, SYNCS) && line.contains(".segment>")) {
        return false;
    }
    if !line.contains("<unfinished") {
        return line.ends_with("= 0");
    }
    let pid = line.split_whitespace().next();
    lines[at + 1..end]
        .iter()
        .find(|later| later.split_whitespace().next() == pid)
        .is_some_and(|resumed| is_call(resumed, SYNCS) && resumed.ends_with("= 0"))
}

#[test]
fn a_trace_without_the_sync_in_between_is_told_from_one_with_it() {
    let asked =
        r#"7 recvfrom(9<TCP:[1]>, "POST /2015-03-31/functions/f/invocations HTTP/1.1\r\n", 8192, 0, NULL, NULL) = 99"#;
    let answered =
        r#"7 sendto(9<TCP:[1]>, "HTTP/1.1 202 Accepted\r\nx-amzn-requestid: id-1\r\n", 99, 0, NULL, 0) = 99"#;
    let synced = "8 fdatasync(5</state/outbox/journal/0000000001.segment>) = 0";
    let begun = "8 fdatasync(5</state/outbox/journal/0000000001.segment> <unfinished ...>";
    let ended = "8 <... fdatasync resumed>) = 0";
    let verdict =
        |lines: &[&str]| synced_before_answer(&lines.join("\n"), "/f/invocations", "id-1").map(|it| it.is_ok());
    assert_eq!(verdict(&[asked, synced, answered]), Some(true));
    assert_eq!(verdict(&[asked, begun, "7 read(1, \"\", 8) = 0", ended, answered]), Some(true));
    assert_eq!(verdict(&[asked, answered, synced]), Some(false), "too late");
    assert_eq!(verdict(&[synced, asked, answered]), Some(false), "too early");
    assert_eq!(verdict(&[begun, asked, ended, answered]), Some(false), "begun too early");
    assert_eq!(verdict(&[asked, begun, answered, ended]), Some(false), "ended too late");
    assert_eq!(
        verdict(&[
            asked,
            "8 fdatasync(5</state/outbox/journal/0000000001.segment>) = -1 EIO (Input/output error)",
            answered
        ]),
        Some(false)
    );
    assert_eq!(verdict(&[asked, "8 fdatasync(5</state/witness>) = 0", answered]), Some(false), "another file");
    assert_eq!(verdict(&[asked, synced]), None);
}
