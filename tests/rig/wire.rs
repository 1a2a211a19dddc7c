//! A wire to a server that a test may cut: a proxy of TCP connections.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What becomes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// What the server says is lost. What it is told arrives.
    Deaf,
    /// Nothing arrives, and nothing is lost: it goes on when the wire is whole again.
    Silent,
    /// Every connection breaks.
    Cut,
}

/// The proxy. Its threads end with the process.
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    now: Mutex<Now>,
    news: Condvar,
}

struct Now {
    state: State,
    /// Both ends of every connection.
    ends: Vec<TcpStream>,
    /// Bytes of the server that were lost.
    lost: usize,
}

impl Wire {
    /// A wire to `to`.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let now = Now { state: State::Whole, ends: Vec::new(), lost: 0 };
        let shared = Arc::new(Shared { now: Mutex::new(now), news: Condvar::new() });
        let own = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                connect(&own, client.unwrap(), to);
            }
        });
        Self { address, shared }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on answers are lost.
    pub fn lose_answers(&self) {
        self.set(State::Deaf);
    }

    /// From now on nothing arrives, and no connection breaks.
    pub fn fall_silent(&self) {
        self.set(State::Silent);
    }

    /// Breaks all connections, and refuses new ones.
    pub fn cut(&self) {
        self.set(State::Cut);
        self.shared.break_all();
    }

    /// Lets everything through again. Connections that have lost something break.
    pub fn mend(&self) {
        let before = self.shared.now().state;
        if before == State::Deaf {
            self.shared.break_all();
        }
        self.set(State::Whole);
    }

    /// Bytes of answers that were lost so far.
    pub fn lost(&self) -> usize {
        self.shared.now().lost
    }

    fn set(&self, state: State) {
        self.shared.now().state = state;
        self.shared.news.notify_all();
    }
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_all(&self) {
        for end in self.now().ends.drain(..) {
            // It may be broken already.
            drop(end.shutdown(Shutdown::Both));
        }
    }

    /// The state, once bytes may pass or are lost.
    fn passes(&self) -> State {
        let mut now = self.now();
        while now.state == State::Silent {
            now = self.news.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        now.state
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, to: SocketAddr) {
    if shared.now().state == State::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(to) else { return };
    let both = |stream: &TcpStream| stream.try_clone().unwrap();
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    shared.now().ends.extend([both(&client), both(&server)]);
    for (from, to, is_answer) in [(both(&client), both(&server), false), (server, client, true)] {
        let shared = shared.clone();
        std::thread::spawn(move || pass_on(&shared, from, to, is_answer));
    }
}

fn pass_on(shared: &Shared, mut from: TcpStream, mut to: TcpStream, is_answer: bool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut bytes) {
        if read == 0 {
            break;
        }
        match shared.passes() {
            State::Deaf if is_answer => shared.now().lost += read,
            State::Whole | State::Deaf | State::Silent => {
                if to.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            State::Cut => break,
        }
    }
    for end in [from, to] {
        drop(end.shutdown(Shutdown::Both));
    }
}
