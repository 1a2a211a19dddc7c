//! The attackers. Each does one thing wrong, again and again, on several connections.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Attack, h2};
use crate::rig::daemon::invoke_path;

/// Attacks once, or for some seconds.
pub type Attacker = fn(&Attack);

/// All attackers, each with its number of threads.
pub fn all() -> Vec<(usize, Attacker)> {
    vec![
        (1, slow_heads),
        (1, slow_bodies),
        (1, idle_connections),
        (2, unread_answers),
        (2, resets_of_large_events),
        (1, streams_without_a_body),
        (1, answers_without_a_window),
        (1, floods_of_headers),
        (2, pipelines),
        (8, tiny_batches),
        (1, bodies_of_tiny_chunks),
        (1, nonsense),
        (2, the_operators_door),
        (1, large_bodies_without_an_end),
    ]
}

/// Starts these attackers.
pub fn start(attack: &Arc<Attack>, kinds: &[(usize, Attacker)]) -> Vec<JoinHandle<()>> {
    let threads = kinds.iter().flat_map(|(threads, attacker)| (0..*threads).map(move |_| *attacker));
    let start = |attacker: Attacker| {
        let attack = attack.clone();
        std::thread::spawn(move || {
            while attack.goes_on() {
                attacker(&attack);
            }
        })
    };
    threads.map(start).collect()
}

fn head(more: &str) -> String {
    let path = invoke_path("attack");
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Amz-Invocation-Type: Event\r\n{more}")
}

/// Opens this many connections with `first` on each, then adds `piece` to each now and then, for a few seconds.
fn slowly(attack: &Attack, connections: usize, first: &str, piece: &str) {
    let mut streams: Vec<TcpStream> = Vec::new();
    let begun = Instant::now();
    while attack.goes_on() && begun.elapsed() < Duration::from_secs(8) {
        if streams.len() < connections
            && let Some(mut stream) = attack.connect(attack.ingest)
            && stream.write_all(first.as_bytes()).is_ok()
        {
            attack.asked(1);
            streams.push(stream);
        } else {
            std::thread::sleep(Duration::from_millis(100));
        }
        streams.retain_mut(|stream| stream.write_all(piece.as_bytes()).is_ok());
    }
}

fn slow_heads(attack: &Attack) {
    slowly(attack, 60, "POST /v1/events HTTP/1.1\r\nX-A: ", "a");
}

fn slow_bodies(attack: &Attack) {
    slowly(attack, 60, &head("Content-Length: 1048576\r\n\r\n"), "1");
}

/// Sends batches of 2 MB on many connections, but never their last bytes.
pub fn large_bodies_without_an_end(attack: &Attack) {
    let body = vec![b'1'; 2_000_000];
    let head = "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4194304\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..45 {
        let Some(mut stream) = attack.connect(attack.ingest) else { break };
        attack.asked(1);
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_ok() {
            held.push(stream);
        }
        if !attack.goes_on() {
            return;
        }
    }
    wait(attack, 20);
}

/// Asks on more connections than the daemon accepts, and never reads the answers.
pub fn answers_that_are_never_taken(attack: &Attack) {
    let asks: Vec<u8> = (0..4).flat_map(|n| h2::get(2 * n + 1, "/v1/openapi.json")).collect();
    let mut held = Vec::new();
    for _ in 0..120 {
        let Some(mut stream) = attack.connect(attack.ingest) else { break };
        if stream.write_all(&[h2::preface(0), asks.clone()].concat()).is_ok() {
            attack.asked(4);
            held.push(stream);
        }
    }
    wait(attack, 20);
}

/// More connections than the daemon has descriptors for.
fn idle_connections(attack: &Attack) {
    slowly(attack, 700, "", "");
}

/// Asks for long answers and reads none of them.
fn unread_answers(attack: &Attack) {
    let asks = "GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    slowly(attack, 10, &asks, "");
}

/// Sends complete events of 1 MiB and leaves before they are answered.
fn resets_of_large_events(attack: &Attack) {
    let Some(mut stream) = attack.connect(attack.ingest) else { return };
    let body = [b"\"".as_slice(), &vec![b'x'; 1_000_000], b"\""].concat();
    let mut sent = stream.write_all(&h2::preface(65_535));
    for n in 0..20 {
        let stream_id = 2 * n + 1;
        // Only as much as the windows allow, because an attacker does not read.
        let part = &body[..if n % 2 == 0 { 60_000 } else { 20_000 }];
        sent = sent.and_then(|()| stream.write_all(&[h2::event(stream_id, part, true), h2::reset(stream_id)].concat()));
        attack.asked(1);
    }
    drop(sent);
    read_a_little(&mut stream);
}

/// Begins as many requests as a connection may have at once. Their bodies never come.
fn streams_without_a_body(attack: &Attack) {
    let mut held = Vec::new();
    for _ in 0..16 {
        let Some(mut stream) = attack.connect(attack.ingest) else { break };
        let heads: Vec<u8> = (0..128).flat_map(|n| h2::event(2 * n + 1, b"\"", false)).collect();
        if stream.write_all(&[h2::preface(65_535), heads].concat()).is_ok() {
            attack.asked(128);
            held.push(stream);
        }
    }
    wait(attack, 4);
}

/// Sends batches whose answers of 100 KiB never fit the client's window.
fn answers_without_a_window(attack: &Attack) {
    let mut held = Vec::new();
    let batch = "{\"function\":\"attack\",\"payload\":1,\"idempotency_key\":\"k\"}\n".repeat(1_000);
    for _ in 0..8 {
        let Some(mut stream) = attack.connect(attack.ingest) else { break };
        let mut sent = stream.write_all(&h2::preface(0));
        for n in 0..100 {
            let asked = if n % 2 == 0 {
                h2::batch(2 * n + 1, batch.as_bytes())
            } else {
                h2::get(2 * n + 1, "/v1/openapi.json")
            };
            sent = sent.and_then(|()| stream.write_all(&asked));
            attack.asked(1);
        }
        drop(sent);
        held.push(stream);
    }
    wait(attack, 4);
}

fn floods_of_headers(attack: &Attack) {
    let many: String = (0..2_000).map(|n| format!("x-{n}: v\r\n")).collect();
    let long = format!("x-long: {}\r\n", "v".repeat(200_000));
    let context = format!("X-Amz-Client-Context: {}\r\nContent-Length: 2\r\n\r\n{{}}", "A".repeat(60_000));
    for flood in [many, long, context] {
        exchange(attack, head(&flood).as_bytes(), 1);
    }
}

fn pipelines(attack: &Attack) {
    let one = head("Idempotency-Key: pipelined\r\nContent-Length: 2\r\n\r\n{}");
    exchange(attack, one.repeat(500).as_bytes(), 500);
}

/// Sends batches of as many tiny events as allowed: now and then new ones, otherwise duplicates, which leave nothing to
/// deliver.
fn tiny_batches(attack: &Attack) {
    for n in 0..20 {
        let line = if n == 0 {
            "{\"function\":\"attack\"}\n"
        } else {
            "{\"function\":\"attack\",\"idempotency_key\":\"t\"}\n"
        };
        let body = line.repeat(1_000);
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        exchange(attack, [head, body].concat().as_bytes(), 1);
        if !attack.goes_on() {
            return;
        }
    }
}

fn bodies_of_tiny_chunks(attack: &Attack) {
    let chunks = "1\r\n1\r\n".repeat(20_000);
    exchange(
        attack,
        head(&format!("Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")).as_bytes(),
        1,
    );
    let gzip = head("Connection: close\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\u{1f}\u{1f}");
    exchange(attack, gzip.as_bytes(), 1);
    let deep = [b"[".repeat(500_000), b"]".repeat(500_000)].concat();
    let head = head(&format!("Connection: close\r\nContent-Length: {}\r\n\r\n", deep.len()));
    exchange(attack, &[head.into_bytes(), deep].concat(), 1);
}

/// Sends the test text of virus scanners, a TLS greeting, and an end without a beginning.
fn nonsense(attack: &Attack) {
    let eicar = r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*";
    exchange(attack, head(&format!("Content-Length: {}\r\n\r\n{eicar}", eicar.len())).as_bytes(), 1);
    for bytes in [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[0xff; 4_096], b"\r\n\r\n", b"0\r\n\r\n"]
    {
        exchange(attack, bytes, 1);
    }
    std::thread::sleep(Duration::from_millis(20));
}

/// Sends patterns that once took for ever, and requests of web pages.
fn the_operators_door(attack: &Attack) {
    let stars = "%2A".repeat(200);
    let origin = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    for request in [
        format!("GET /v1/dead-letters?function={stars}x HTTP/1.1\r\nHost: localhost\r\n"),
        format!("POST /v1/functions/good/purge HTTP/1.1\r\nHost: localhost\r\n{origin}Content-Length: 0\r\n"),
        format!("POST /v1/functions/good/pause HTTP/1.1\r\nHost: localhost\r\n{origin}Content-Length: 0\r\n"),
        "POST /v1/functions/good/purge HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\n".to_owned(),
    ] {
        attack.asked(1);
        let Some(mut stream) = attack.connect(attack.admin) else { continue };
        let sent = stream.write_all(format!("{request}Connection: close\r\n\r\n").as_bytes());
        let mut answer = Vec::new();
        drop(sent.and_then(|()| stream.read_to_end(&mut answer)));
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 2") || request.starts_with("GET"), "{request} was obeyed: {answer}");
    }
    // Answers that nobody reads. The probe must still be answered.
    let mut held = Vec::new();
    for _ in 0..80 {
        let Some(mut stream) = attack.connect(attack.admin) else { break };
        let asks: Vec<u8> = (0..20).flat_map(|n| h2::get(2 * n + 1, "/metrics")).collect();
        if stream.write_all(&[h2::preface(0), asks].concat()).is_ok() {
            attack.asked(20);
            held.push(stream);
        }
    }
    wait(attack, 2);
}

/// Writes as much as the daemon takes, and reads for a moment.
fn exchange(attack: &Attack, bytes: &[u8], requests: u64) {
    let Some(mut stream) = attack.connect(attack.ingest) else { return };
    attack.asked(requests);
    drop(stream.write_all(bytes));
    read_a_little(&mut stream);
}

fn read_a_little(stream: &mut TcpStream) {
    let mut answer = [0; 16 * 1024];
    while stream.read(&mut answer).is_ok_and(|read| read > 0) {}
}

fn wait(attack: &Attack, seconds: u64) {
    let begun = Instant::now();
    while attack.goes_on() && begun.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(50));
    }
}
