//! A scripted server on a real socket, which records the requests it receives.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_lambda::config::{Credentials, Region};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::outside::Outside;
use super::wire::Wire;
use super::{Own, SdkConfig, Settings, Shared, loader};
use crate::clock::Clock;

/// What the server does with one connection.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Reads the request, answers with these bytes, closes.
    Say(String),
    /// Closes before it reads.
    CloseUnread,
    /// Reads the request, closes without an answer.
    CloseUnanswered,
    /// Reads the request, never answers.
    Hang,
    /// Reads the request, answers with these bytes, then neither ends nor closes.
    SayAndHang(String),
}

/// One request as received.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Ends with its value.
pub(super) struct Server {
    pub(super) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Performs one act for each connection, in order. The last act serves all further connections.
    pub(super) async fn start(acts: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut acts: VecDeque<Act> = acts.into_iter().collect();
        let mut tasks = JoinSet::new();
        let log = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let act = if acts.len() > 1 { acts.pop_front() } else { acts.front().cloned() }.unwrap();
                connections.spawn(serve(stream, act, Arc::clone(&log)));
            }
        });
        Self { url, seen, _tasks: tasks }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn settings(&self) -> Settings {
        settings(&self.url)
    }
}

async fn serve(mut stream: TcpStream, act: Act, log: Arc<Mutex<Vec<Seen>>>) {
    if matches!(act, Act::CloseUnread) {
        return;
    }
    let request = read_request(&mut stream).await;
    log.lock().unwrap().push(request);
    match act {
        Act::Say(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
        Act::CloseUnread | Act::CloseUnanswered => {}
        Act::Hang => std::future::pending().await,
        Act::SayAndHang(answer) => {
            stream.write_all(answer.as_bytes()).await.unwrap();
            std::future::pending().await
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Seen {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "ended within the head");
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut seen = Seen { head, body: bytes[head_end..].to_vec() };
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while seen.body.len() < length {
        assert_ne!(stream.read_buf(&mut seen.body).await.unwrap(), 0, "ended within the body");
    }
    seen
}

/// An address that refuses connections while this value lives. It is bound, so that no other process gets it, but does
/// not listen.
pub(super) struct Refusing {
    pub(super) url: String,
    _socket: TcpSocket,
}

pub(super) fn refusing_address() -> Refusing {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    Refusing { url: format!("http://{}", socket.local_addr().unwrap()), _socket: socket }
}

/// An answer's bytes.
pub(super) fn say(status: &str, headers: &[(&str, &str)], body: &str) -> Act {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    Act::Say(format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"))
}

pub(super) fn settings(url: &str) -> Settings {
    Settings {
        region: Some("eu-central-1".into()),
        endpoint_url: Some(url.to_owned()),
        ignore_configured_endpoint_urls: true,
        connect_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(5),
    }
}

/// With dummy credentials.
pub(super) async fn shared() -> Shared {
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
    with(loader(&wire()).region(Region::new("eu-central-1")).credentials_provider(credentials).load().await)
}

pub(super) fn wire() -> Wire {
    Wire::new(&Outside::default(), None)
}

/// With that configuration, and no listener.
pub(super) fn with(config: SdkConfig) -> Shared {
    Shared::with(config, wire(), Own::nobody(), Clock::system())
}
