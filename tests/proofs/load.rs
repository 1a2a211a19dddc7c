//! Several clients that send events with keys until each is accepted, over as many lives of the daemon as needed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sendoff::event::EventId;

use crate::rig::daemon::invoke_path;

/// Functions whose events are delivered, after troubles of the stand-in.
const DELIVERED: [&str; 4] = ["orders", "invoices", "mails", "audit"];

/// A function that is throttled for ever: its events must be in the store at the end.
pub const KEPT: &str = "kept";

/// A function that refuses its events: they become dead letters.
pub const DOOMED: &str = "doomed";

/// How long a client waits for an answer before it calls again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// An event that got 202.
#[derive(Debug, Clone)]
pub struct Ack {
    pub n: u64,
    pub id: EventId,
}

/// The function of the n-th event. Everything about an event follows from its number.
pub fn function(n: u64) -> &'static str {
    match n % 10 {
        0 => KEPT,
        1 => DOOMED,
        _ => DELIVERED[(n % 4) as usize],
    }
}

pub fn key(n: u64) -> String {
    format!("key-{n}")
}

pub fn payload_id(n: u64) -> String {
    format!("event-{n}")
}

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";

/// The payload of the n-th event: mostly short, some in chunks, a few large. It is made again for each image that is
/// checked, so it must be quick.
pub fn payload(n: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(n);
    let fill = match n % 40 {
        39 => rng.usize(100_000..400_000),
        30..39 => rng.usize(2_000..20_000),
        _ => rng.usize(0..1_200),
    };
    let mut text = vec![0; fill];
    rng.fill(&mut text);
    text.iter_mut().for_each(|byte| *byte = ALPHABET[usize::from(*byte) % ALPHABET.len()]);
    [format!(r#"{{"id":"{}","fill":""#, payload_id(n)).as_bytes(), &text, br#""}"#].concat()
}

/// Clients at work. Dropping this stops them.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The doors. A client that gets no answer at one goes on at another.
    to: Vec<SocketAddr>,
    stop: AtomicBool,
    next: AtomicU64,
    acks: Mutex<Vec<Ack>>,
    violations: Mutex<Vec<String>>,
    on_ack: Box<dyn Fn(&Ack) + Send + Sync>,
    pause: Duration,
}

impl Load {
    /// Starts `clients` clients, each with this pause between events. Calls `on_ack` for every acknowledgement before
    /// anything else happens to it.
    pub fn start(
        to: SocketAddr,
        clients: usize,
        pause: Duration,
        on_ack: impl Fn(&Ack) + Send + Sync + 'static,
    ) -> Self {
        Self::start_from(0, to, clients, pause, on_ack)
    }

    /// The same, with events numbered from `first`.
    pub fn start_from(
        first: u64,
        to: SocketAddr,
        clients: usize,
        pause: Duration,
        on_ack: impl Fn(&Ack) + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(first, vec![to], clients, pause, on_ack)
    }

    /// The same, at several doors of one outbox.
    pub fn start_at(
        first: u64,
        to: Vec<SocketAddr>,
        clients: usize,
        pause: Duration,
        on_ack: impl Fn(&Ack) + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            to,
            stop: AtomicBool::new(false),
            next: AtomicU64::new(first),
            acks: Mutex::default(),
            violations: Mutex::default(),
            on_ack: Box::new(on_ack),
            pause,
        });
        let clients = (0..clients)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.client())
            })
            .collect();
        Self { shared, clients }
    }

    /// All events that were accepted so far.
    pub fn acks(&self) -> Vec<Ack> {
        self.shared.acks.lock().unwrap().clone()
    }

    /// Stops the clients and returns what was accepted.
    ///
    /// # Panics
    /// If an answer broke a promise.
    pub fn stop(mut self) -> Vec<Ack> {
        self.halt();
        let violations = self.shared.violations.lock().unwrap().clone();
        assert!(violations.is_empty(), "{violations:#?}");
        self.acks()
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.clients.drain(..).for_each(|client| drop(client.join()));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn client(&self) {
        let mut connection = None;
        while !self.stopped() {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(id) = self.until_accepted(&mut connection, n) else { return };
            let ack = Ack { n, id };
            (self.on_ack)(&ack);
            self.acks.lock().unwrap().push(ack);
            if n.is_multiple_of(8) {
                self.repeat_one(&mut connection);
            }
            std::thread::sleep(self.pause);
        }
    }

    /// Sends an accepted event again. The answer must have the same id.
    fn repeat_one(&self, connection: &mut Option<TcpStream>) {
        let ack = fastrand::choice(self.acks.lock().unwrap().iter()).cloned();
        let Some(ack) = ack else { return };
        if let Some(again) = self.until_accepted(connection, ack.n)
            && again != ack.id
        {
            self.violation(format!("{} was accepted as {} and again as {again}", key(ack.n), ack.id));
        }
    }

    fn until_accepted(&self, connection: &mut Option<TcpStream>, n: u64) -> Option<EventId> {
        while !self.stopped() {
            let to = if connection.is_some() { None } else { fastrand::choice(&self.to).copied() };
            match call(to.unwrap_or(self.to[0]), connection, n) {
                Some((202, Some(id))) => return Some(id),
                Some((429 | 500 | 503, _)) => {
                    // Perhaps at another door.
                    *connection = None;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Some((status, _)) => {
                    self.violation(format!("{} was answered with {status}", key(n)));
                    return None;
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        None
    }

    fn violation(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }
}

/// Sends one request. Returns the status and the event's id. `None` if there was no complete answer.
fn call(to: SocketAddr, connection: &mut Option<TcpStream>, n: u64) -> Option<(u16, Option<EventId>)> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(to).ok()?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
            stream
        }
    };
    let payload = payload(n);
    let mut request = format!(
        "POST {} HTTP/1.1\r\nHost: {to}\r\nX-Amz-Invocation-Type: Event\r\nIdempotency-Key: {}\r\nContent-Length: {}\r\n\r\n",
        invoke_path(function(n)),
        key(n),
        payload.len()
    )
    .into_bytes();
    request.extend_from_slice(&payload);
    stream.write_all(&request).ok()?;
    let answer = read_answer(&stream)?;
    *connection = Some(stream);
    Some(answer)
}

fn read_answer(stream: &TcpStream) -> Option<(u16, Option<EventId>)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let status = line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let (mut id, mut length) = (None, 0);
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "x-amzn-requestid" => id = value.trim().parse().ok(),
            "content-length" => length = value.trim().parse().ok()?,
            _ => {}
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    Some((status, id))
}
