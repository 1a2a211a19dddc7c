//! A raw HTTP/1.1 client. It sends exactly the bytes that the test wrote.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::PATIENCE;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names are in lower case, in the order of arrival.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first header with this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("not JSON ({why}): {}", self.text()))
    }
}

/// Sends one request on a new connection, with `Host`, `Content-Length` and `Connection: close`.
pub fn request(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut bytes = head(to, method, path, headers, body.len());
    bytes.extend_from_slice(body);
    exchange(to, &bytes).unwrap_or_else(|| panic!("no answer to {method} {path}"))
}

pub fn get(to: SocketAddr, path: &str) -> Response {
    request(to, "GET", path, &[], b"")
}

/// The head of such a request.
pub fn head(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body_len: usize) -> Vec<u8> {
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Length: {body_len}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Sends `bytes` unchanged, then reads everything that comes. `None` if that is not an answer.
pub fn exchange(to: SocketAddr, bytes: &[u8]) -> Option<Response> {
    let mut stream = connect(to);
    // A server may refuse and close before it has read everything. Its answer counts, not our failure to write.
    let sent = stream.write_all(bytes);
    let mut answer = Vec::new();
    let received = stream.read_to_end(&mut answer);
    let response = parse(&answer);
    assert!(
        response.is_some() || !received.as_ref().is_err_and(timed_out),
        "no answer within {PATIENCE:?} (sent: {sent:?}, received: {received:?})"
    );
    response
}

/// Sends `bytes` unchanged. Returns the status of the answer. For answers to HEAD, which announce a body that does not
/// come.
pub fn status(to: SocketAddr, bytes: &[u8]) -> u16 {
    let mut stream = connect(to);
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let received = stream.read_to_end(&mut answer);
    let line = String::from_utf8_lossy(&answer);
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.unwrap_or_else(|| panic!("no answer ({received:?}): {line}"))
}

/// As [`exchange`], for a server that may be gone or may go. `None` in that case.
pub fn exchange_if_there(to: SocketAddr, bytes: &[u8]) -> Option<Response> {
    let mut stream = TcpStream::connect(to).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    parse(&answer)
}

/// Sends `bytes`, closes the sending side, and leaves.
pub fn send_and_leave(to: SocketAddr, bytes: &[u8]) {
    let mut stream = connect(to);
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
}

/// Whether connections are accepted at this address.
pub fn listens(at: SocketAddr) -> bool {
    TcpStream::connect(at).is_ok()
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap_or_else(|why| panic!("cannot connect to {to}: {why}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn timed_out(why: &std::io::Error) -> bool {
    matches!(why.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Parses a whole answer, skipping interim (1xx) answers. `None` if it is torn or not an answer.
pub fn parse(bytes: &[u8]) -> Option<Response> {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..split]).ok()?;
    let rest = &bytes[split + 4..];
    let mut lines = head.split("\r\n");
    let status: u16 = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    if (100..200).contains(&status) {
        return parse(rest);
    }
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status, headers, body: Vec::new() };
    response.body = if response.header("transfer-encoding") == Some("chunked") {
        unchunk(rest)?
    } else if let Some(length) = response.header("content-length") {
        rest.get(..length.parse().ok()?)?.to_vec()
    } else {
        rest.to_vec()
    };
    Some(response)
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?.trim(), 16).ok()?;
        rest = &rest[line + 2..];
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..length)?);
        rest = rest.get(length + 2..)?;
    }
}

#[test]
fn answers_are_read_whatever_their_framing() {
    let body_of = |bytes: &[u8]| parse(bytes).map(|response| response.text());
    let counted = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\n yo\r\n0\r\n\r\n";
    let after_continue = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(body_of(counted).as_deref(), Some("hi"));
    assert_eq!(body_of(chunked).as_deref(), Some("hi yo"));
    assert_eq!(parse(after_continue).map(|response| response.status), Some(202));
    assert_eq!(body_of(&counted[..counted.len() - 1]), None, "torn");
    assert_eq!(body_of(b""), None);
}
