//! A raw HTTP/2 client. Unlike a library, it can ask and never read the answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A connection with prior knowledge. Its window is 0, so the server can send no body.
pub struct Client {
    pub stream: TcpStream,
    next_stream: u32,
}

const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

impl Client {
    pub fn connect(to: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        stream.set_write_timeout(Some(super::PATIENCE)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        // SETTINGS_INITIAL_WINDOW_SIZE = 0
        stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
        Self { stream, next_stream: 1 }
    }

    /// Sends a request with this body, if any. Returns the number of the stream. Headers are literal, as in RFC 7541
    /// section 6.2.2.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<u32> {
        let mut block = Vec::new();
        let mut literal = |name: &str, value: &str| {
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127, "a length of one byte");
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        };
        literal(":method", method);
        literal(":scheme", "http");
        literal(":path", path);
        literal(":authority", "127.0.0.1");
        headers.iter().for_each(|(name, value)| literal(name, value));
        let stream = self.next_stream;
        self.next_stream += 2;
        // END_HEADERS, and END_STREAM without a body
        self.stream.write_all(&frame(HEADERS, if body.is_empty() { 5 } else { 4 }, stream, &block))?;
        if !body.is_empty() {
            self.stream.write_all(&frame(DATA, 1, stream, body))?;
        }
        Ok(stream)
    }

    pub fn reset(&mut self, stream: u32) -> std::io::Result<()> {
        self.stream.write_all(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()))
    }

    /// Reads and discards everything until the server ends the connection.
    pub fn until_closed(mut self) {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the server keeps the connection: {error}"),
            }
        }
    }
}
