//! A reverse proxy that can stop a request at a chosen moment, or answer for the server. With it a test kills a process
//! exactly between two of its steps, and shows it every failure of a service.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::{PATIENCE, http};

/// Where a request is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The server never gets the request.
    Before,
    /// The server has carried out the request, but the client never gets the answer.
    After,
}

/// The answer to give for the server: from the request's body to status and body.
type Instead = Box<dyn Fn(&str) -> (u16, String) + Send>;

/// A gate in front of a server. Its threads end with their connections.
pub struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    orders: Mutex<Orders>,
    news: Condvar,
}

#[derive(Default)]
struct Orders {
    /// Stops the next request whose head contains this text.
    hold: Option<(String, At)>,
    held: bool,
    /// Whether the held request's connection is to end without an answer.
    dropped: bool,
    /// Answers this many requests whose head contains this text.
    instead: Option<(String, usize, Instead)>,
    /// One of this many answers with this status is lost.
    lose: Option<(usize, u16)>,
    lost: usize,
    /// The statuses of the server's answers, also of those that the client never got.
    statuses: Vec<u16>,
    passed: Vec<String>,
}

impl Gate {
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let (accepting, weak) = (listener, Arc::downgrade(&shared));
        std::thread::spawn(move || {
            while let Ok((client, _)) = accepting.accept() {
                let Some(shared) = weak.upgrade() else { return };
                std::thread::spawn(move || serve(&client, to, &shared));
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops the next request whose head contains `text`. Others pass.
    pub fn hold(&self, text: &str, at: At) {
        let mut orders = self.orders();
        orders.hold = Some((text.to_owned(), at));
        orders.held = false;
        orders.dropped = false;
    }

    /// Waits until the request has been stopped.
    pub fn wait_until_held(&self) {
        let (orders, waited) =
            self.shared.news.wait_timeout_while(self.orders(), PATIENCE, |orders| !orders.held).unwrap();
        assert!(!waited.timed_out(), "no request came to be held; passed: {:?}", orders.passed);
    }

    /// Ends the connection of the held request, so that the client can go on.
    pub fn drop_held(&self) {
        self.orders().dropped = true;
    }

    /// Answers the next `times` requests whose head contains `text`.
    pub fn answer(&self, text: &str, times: usize, instead: impl Fn(&str) -> (u16, String) + Send + 'static) {
        self.orders().instead = Some((text.to_owned(), times, Box::new(instead)));
    }

    /// From now on the client never gets one of every so many answers of that status, though the server has carried out the
    /// request.
    pub fn lose_one_of(&self, every: usize, status: u16) {
        self.orders().lose = Some((every, status));
    }

    /// How many answers were lost in that way.
    pub fn lost(&self) -> usize {
        self.orders().lost
    }

    /// How often the server answered with `status`, whether or not the client got the answer.
    pub fn answered_with(&self, status: u16) -> usize {
        self.orders().statuses.iter().filter(|&&answered| answered == status).count()
    }

    /// Whether all of those answers were given.
    pub fn has_answered(&self) -> bool {
        self.orders().instead.is_none()
    }

    fn orders(&self) -> std::sync::MutexGuard<'_, Orders> {
        self.shared.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the requests of one connection.
fn serve(client: &TcpStream, to: SocketAddr, shared: &Shared) {
    client.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(client);
    while let Some((head, body)) = read_request(&mut reader) {
        let (hold, instead) = order(shared, &head, &body);
        if hold == Some(At::Before) {
            return keep(client, shared);
        }
        let (answer, is_lost) = match instead {
            Some((status, answer)) => {
                let headers = vec![("content-type".to_owned(), "application/x-amz-json-1.0".to_owned())];
                (http::Response { status, headers, body: answer.into_bytes() }, false)
            }
            None => {
                let mut request = head.into_bytes();
                request.extend_from_slice(b"Connection: close\r\n\r\n");
                request.extend_from_slice(&body);
                // A server that was killed answers nothing, and so does the gate.
                let Some(response) = http::exchange_if_there(to, &request) else { return };
                let is_lost = note(shared, response.status, hold.is_some());
                (response, is_lost)
            }
        };
        if hold == Some(At::After) {
            return keep(client, shared);
        }
        if is_lost || (&*client).write_all(&bytes(&answer)).is_err() {
            return;
        }
    }
}

/// Records the server's answer. Returns whether it is to be lost. The answer to a held request is lost anyway.
fn note(shared: &Shared, status: u16, is_held: bool) -> bool {
    let mut orders = shared.orders.lock().unwrap_or_else(PoisonError::into_inner);
    orders.statuses.push(status);
    let nth = orders.statuses.iter().filter(|&&answered| answered == status).count();
    let is_lost = !is_held && orders.lose.is_some_and(|(every, which)| which == status && nth.is_multiple_of(every));
    orders.lost += usize::from(is_lost);
    is_lost
}

/// An answer with the server's own headers, framed for a connection that stays open.
fn bytes(answer: &http::Response) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} As Told\r\n", answer.status);
    let framing = ["connection", "content-length", "transfer-encoding"];
    for (name, value) in answer.headers.iter().filter(|(name, _)| !framing.contains(&name.as_str())) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    [head.as_bytes(), &answer.body].concat()
}

/// What to do with this request.
fn order(shared: &Shared, head: &str, body: &[u8]) -> (Option<At>, Option<(u16, String)>) {
    let mut orders = shared.orders.lock().unwrap_or_else(PoisonError::into_inner);
    orders.passed.push(head.lines().next().unwrap_or_default().to_owned());
    let hold = orders.hold.take_if(|(text, _)| has(head, text)).map(|(_, at)| at);
    let mut answer = None;
    if let Some((_, times, instead)) = orders.instead.as_mut().filter(|(text, ..)| has(head, text)) {
        answer = Some(instead(&String::from_utf8_lossy(body)));
        *times -= 1;
    }
    if orders.instead.as_ref().is_some_and(|(_, times, _)| *times == 0) {
        orders.instead = None;
    }
    (hold, answer)
}

fn has(head: &str, text: &str) -> bool {
    head.to_ascii_lowercase().contains(&text.to_ascii_lowercase())
}

/// Tells the test, and keeps the connection until the client leaves or the test drops it.
fn keep(mut client: &TcpStream, shared: &Shared) {
    let orders = || shared.orders.lock().unwrap_or_else(PoisonError::into_inner);
    orders().held = true;
    shared.news.notify_all();
    client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut rest = [0; 1_024];
    loop {
        match client.read(&mut rest) {
            Ok(0) => return,
            Ok(_) => {}
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
        if orders().dropped {
            return;
        }
    }
}

/// Reads the next request: its head without `Connection` and the empty line, and its body. `None` once the client has
/// left.
fn read_request(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if name == "content-length" {
            length = line[name.len() + 1..].trim().parse().unwrap();
        }
        if name != "connection" {
            head.push_str(&line);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}
