//! As much of HTTP/2 as an attacker needs: frames written by hand. Answers are not parsed.

use crate::rig::daemon::invoke_path;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The beginning of a connection whose client lets the server send this many bytes of each answer.
pub fn preface(window: u32) -> Vec<u8> {
    let mut initial_window_size = vec![0, 4];
    initial_window_size.extend_from_slice(&window.to_be_bytes());
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &initial_window_size)].concat()
}

/// The head of a request (RFC 7541 section 6.2.3, without indexing).
fn head(stream: u32, path: &str, headers: &[(&str, &str)], ends: bool) -> Vec<u8> {
    let method = if ends { 0x82 } else { 0x83 };
    let mut block = vec![method, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(b"\x01\x09localhost");
    for (name, value) in headers {
        block.extend_from_slice(&[0, u8::try_from(name.len()).unwrap()]);
        block.extend_from_slice(name.as_bytes());
        block.push(u8::try_from(value.len()).unwrap());
        block.extend_from_slice(value.as_bytes());
    }
    frame(HEADERS, END_HEADERS | if ends { END_STREAM } else { 0 }, stream, &block)
}

pub fn get(stream: u32, path: &str) -> Vec<u8> {
    head(stream, path, &[], true)
}

/// The head of an event, and this part of its body.
pub fn event(stream: u32, body: &[u8], ends: bool) -> Vec<u8> {
    let mut frames = head(stream, &invoke_path("attack"), &[("x-amz-invocation-type", "Event")], false);
    for piece in body.chunks(16_384) {
        frames.extend(frame(DATA, 0, stream, piece));
    }
    if ends {
        frames.extend(frame(DATA, END_STREAM, stream, b""));
    }
    frames
}

/// A complete batch.
pub fn batch(stream: u32, body: &[u8]) -> Vec<u8> {
    let mut frames = head(stream, "/v1/events", &[("content-type", "application/x-ndjson")], false);
    for piece in body.chunks(16_384) {
        frames.extend(frame(DATA, 0, stream, piece));
    }
    frames.extend(frame(DATA, END_STREAM, stream, b""));
    frames
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}
