//! A collector for tests: accepts OTLP over HTTP and keeps the spans. Parses only as much of protobuf as that needs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A span as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub name: String,
    /// In hex, as the next two.
    pub trace_id: String,
    pub parent_id: String,
    /// Attributes that are text or numbers, as text.
    pub attributes: BTreeMap<String, String>,
}

/// Accepts spans during a test.
pub struct Collector {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || serve(stream.unwrap(), &kept));
            }
        });
        Self { address, bodies }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.bodies.lock().unwrap().iter().flat_map(|body| spans(body)).collect()
    }

    /// Whether the text is anywhere in what was received.
    pub fn said(&self, text: &str) -> bool {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().any(|body| body.windows(text.len()).any(|window| window == text.as_bytes()))
    }
}

fn serve(stream: TcpStream, kept: &Mutex<Vec<Vec<u8>>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.last().is_some_and(String::is_empty) {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            head.push(line.trim_end().to_ascii_lowercase());
        }
        assert!(head[0].starts_with("post /v1/traces "), "{head:?}");
        assert!(head.iter().any(|line| line == "content-type: application/x-protobuf"), "{head:?}");
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        kept.lock().unwrap().push(body);
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    }
}

/// The spans of an `ExportTraceServiceRequest` (opentelemetry-proto, trace/v1/trace.proto).
fn spans(request: &[u8]) -> Vec<Span> {
    let below = |message: &[u8], number| -> Vec<Vec<u8>> {
        fields(message).into_iter().filter(|(field, _)| *field == number).map(|(_, bytes)| bytes.to_vec()).collect()
    };
    let resources = below(request, 1);
    let scopes = resources.iter().flat_map(|resource| below(resource, 2));
    scopes.flat_map(|scope| below(&scope, 2)).map(|span| span_of(&span)).collect()
}

fn span_of(span: &[u8]) -> Span {
    let of = |number| fields(span).into_iter().find(|(field, _)| *field == number).map_or(&[][..], |(_, bytes)| bytes);
    let attributes = fields(span).into_iter().filter(|(field, _)| *field == 9).filter_map(|(_, pair)| {
        let of = |number| fields(pair).into_iter().find(|(field, _)| *field == number).map(|(_, bytes)| bytes);
        let (_, value) = fields(of(2)?).into_iter().find(|(field, _)| *field == 1)?;
        Some((text(of(1)?), text(value)))
    });
    Span { name: text(of(5)), trace_id: hex(of(1)), parent_id: hex(of(4)), attributes: attributes.collect() }
}

/// The fields of a message that have a length. Numbers are skipped.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        match tag & 7 {
            0 => drop(varint(&mut message)),
            1 => message = &message[8..],
            2 => {
                let length = usize::try_from(varint(&mut message)).unwrap();
                let (bytes, rest) = message.split_at(length);
                found.push((tag >> 3, bytes));
                message = rest;
            }
            5 => message = &message[4..],
            other => panic!("no such wire type: {other}"),
        }
    }
    found
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().unwrap();
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
