//! A proxy that discards answers: the server carries out the request, but the client never learns it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Serves `answers_lost + 1` requests to `to`, one connection each. Passes on the first `answers_lost` and discards
/// their answers. Answers the last one. Returns the proxy's address. Its thread ends with the last answer.
pub fn proxy(to: SocketAddr, answers_lost: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for served in 0..=answers_lost {
            let (mut client, _) = listener.accept().unwrap();
            let request = read_request(&client);
            let mut server = TcpStream::connect(to).unwrap();
            server.write_all(&request).unwrap();
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).unwrap();
            if served == answers_lost {
                client.write_all(&answer).unwrap();
            }
        }
    });
    address
}

/// Reads a whole request, changed so that its connection has no other.
fn read_request(client: &TcpStream) -> Vec<u8> {
    let mut reader = BufReader::new(client);
    let mut request = Vec::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if line == "\r\n" {
            break;
        }
        if name == "content-length" {
            length = line[name.len() + 1..].trim().parse().unwrap();
        }
        if name != "connection" {
            request.extend_from_slice(line.as_bytes());
        }
    }
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    request.extend_from_slice(&body);
    request
}
