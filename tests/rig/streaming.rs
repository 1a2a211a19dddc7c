//! A Lambda that answers piece by piece: response streams, and answers that stop where a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};

use super::PATIENCE;

/// One part of an answer.
#[derive(Debug, Clone)]
pub enum Step {
    /// Status line and headers of an answer whose body comes in chunks.
    Head(&'static str),
    Bytes(Vec<u8>),
    /// Waits for [`Streaming::go_on`].
    Gate,
    /// Waits until the caller has left, and reports it to [`Streaming::wait_until_left`].
    UntilLeft,
    /// The end of the body.
    End,
}

/// The head of a response stream, as Lambda writes it.
pub const STREAM: Step = Step::Head(
    "200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nX-Amz-Executed-Version: $LATEST\r\n\
     x-amzn-RequestId: 0b8f4c2e-6f5e-4f0a-9c62-8d9be4a1c1f7",
);

/// Serves until its process ends. All requests of one connection get the same steps.
pub struct Streaming {
    address: SocketAddr,
    gate: Sender<()>,
    left: Receiver<()>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Streaming {
    /// Starts the server. `steps` are given by the beginning of a request's path.
    pub fn start(steps: Vec<(&'static str, Vec<Step>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ((gate, opened), (leaving, left)) = (channel(), channel());
        let opened = Arc::new(Mutex::new(opened));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (steps, opened, leaving, seen) =
                    (steps.clone(), Arc::clone(&opened), leaving.clone(), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream.unwrap(), &steps, &opened, &leaving, &seen));
            }
        });
        Self { address, gate, left, heads }
    }

    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Opens one gate.
    pub fn go_on(&self) {
        self.gate.send(()).unwrap();
    }

    /// Waits until a caller has left for whom a step waits.
    pub fn wait_until_left(&self) {
        self.left.recv_timeout(PATIENCE).expect("the caller leaves");
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    steps: &[(&str, Vec<Step>)],
    gate: &Mutex<Receiver<()>>,
    leaving: &Sender<()>,
    seen: &Mutex<Vec<String>>,
) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(head) = read_request(&mut reader) {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        seen.lock().unwrap().push(head);
        let (_, steps) = steps.iter().find(|(start, _)| path.starts_with(start)).expect("steps for the request");
        for step in steps {
            // A caller that leaves early ends its connection. Some tests need that.
            let written = match step {
                Step::Head(head) => {
                    stream.write_all(format!("HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes())
                }
                Step::Bytes(bytes) => {
                    let size = format!("{:x}\r\n", bytes.len());
                    stream.write_all(&[size.as_bytes(), bytes, b"\r\n"].concat())
                }
                Step::Gate => gate.lock().unwrap().recv_timeout(PATIENCE).map_err(std::io::Error::other),
                Step::UntilLeft => {
                    let rest = reader.read(&mut [0]);
                    assert!(!matches!(rest, Ok(1..)), "a caller who waits sends nothing");
                    leaving.send(()).ok();
                    return;
                }
                Step::End => stream.write_all(b"0\r\n\r\n"),
            };
            if written.is_err() {
                return;
            }
        }
    }
}

/// The head of the next request, after its body was read, too. `None` if no further request comes.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    reader.read_exact(&mut vec![0; length.unwrap_or_default()]).ok()?;
    Some(head)
}

/// A frame with a part of a function's answer.
pub fn chunk(payload: impl Into<Vec<u8>>) -> Step {
    frame("PayloadChunk", "application/octet-stream", payload.into())
}

/// The frame that ends a stream.
pub fn complete(json: &str) -> Step {
    frame("InvokeComplete", "application/json", json.as_bytes().to_vec())
}

fn frame(event: &'static str, content_type: &'static str, payload: Vec<u8>) -> Step {
    let text = |text: &'static str| HeaderValue::String(text.into());
    let message = Message::new(payload)
        .add_header(Header::new(":event-type", text(event)))
        .add_header(Header::new(":content-type", text(content_type)))
        .add_header(Header::new(":message-type", text("event")));
    let mut bytes = Vec::new();
    write_message_to(&message, &mut bytes).unwrap();
    Step::Bytes(bytes)
}
