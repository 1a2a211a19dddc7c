//! The server that both listeners use: HTTP/1.1, and HTTP/2 with prior knowledge.
//!
//! Holds: everything that a peer can make us keep has a limit. A stop finishes the requests that were read.
//! Limits: [`Limits`], and the constants below for HTTP/2.
//! Fails: hyper itself answers heads that are torn, malformed or too large (400, 414, 431). They never reach a service.

use std::error::Error;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;

pub mod peer;

pub mod host;

pub mod handover;

mod progress;

pub mod tls;

mod open;

pub use open::GivesWay;

use open::{InFlight, Open};
use peer::{Identity, Peek, Peer, Watched};
use progress::{Answering, Progress};

/// How long to wait after an accept failed because this process lacks something (file descriptors, memory). The next
/// accept would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a stop waits for the first request of a new connection. Its client may be writing just now. To close at
/// once would refuse a request that the next process on the same socket would have accepted.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_millis(500);

/// The smallest read buffer that hyper allows, in bytes.
const BUFFER_BYTES_MIN: usize = 8 * 1024;

/// The most concurrent requests on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 128;

/// The most unread bytes that an HTTP/2 peer may send, for one request and for the whole connection. A peer can fill
/// this memory before a handler has reserved any (docs/operations.md, "Sizing").
const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// The most bytes of answers that h2 buffers for one stream beyond its window.
const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// The most streams that a peer may have opened and reset before we looked at them, and the most that we may have reset
/// for its mistakes. Beyond either, the connection ends (CVE-2023-44487, "rapid reset", and CVE-2025-8671, "made you
/// reset").
const H2_RESETS_MAX: usize = 64;

/// How often an HTTP/2 peer is pinged, and how long it has to answer.
const H2_PING_EVERY: Duration = Duration::from_secs(30);
const H2_PING_PATIENCE: Duration = Duration::from_secs(20);

/// The age at which an HTTP/2 connection is asked to close. Clients open another one. This bounds what a peer can pile
/// up on one connection, bit by bit.
const H2_AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// How long a connection that is closing may take for its last answers. Longer than any call that is passed through.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(17 * 60);

/// How long an idle connection that gives way to another may take to close by itself.
const LEAVE_PATIENCE: Duration = Duration::from_millis(100);

/// How often another connection is asked to give way while a new one waits for a slot.
const ROOM_EVERY: Duration = Duration::from_millis(50);

tokio::task_local! {
    /// Cancels the task of one HTTP/2 request.
    static ALONE: CancellationToken;
}

/// Limits on what a peer can make us keep.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most concurrent connections. Further ones wait in the listen queue.
    pub connections_max: usize,
    /// The most header lines of an HTTP/1 request. HTTP/2 counts bytes only.
    pub headers_max: usize,
    /// The most bytes of a request's head. At least 8 KiB.
    pub header_bytes_max: usize,
    /// How long the head of a request may take. Also how long a connection without a request is kept, and how long an
    /// answer waits for a peer that does not read it.
    pub header_timeout: Duration,
}

/// What listeners share: limits, the count of connections, and the stop. Cheap to clone. Clones share one limit.
#[derive(Clone)]
pub struct Server {
    limits: Limits,
    slots: Arc<Semaphore>,
    gauge: Option<IntGauge>,
    clock: Clock,
    stop: CancellationToken,
    cut: CancellationToken,
    connections: TaskTracker,
    open: Open,
    gives_way: GivesWay,
}

impl Server {
    /// `gauge` counts the open connections. When `stop` is cancelled, no connection is accepted, idle ones are closed,
    /// and requests already read are finished. Afterwards `connections` is empty.
    pub fn new(
        limits: Limits,
        gauge: Option<IntGauge>,
        clock: Clock,
        stop: CancellationToken,
        connections: TaskTracker,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
        let (cut, open) = (CancellationToken::new(), Open::default());
        Self { limits, slots, gauge, clock, stop, cut, connections, open, gives_way: GivesWay::Idle }
    }

    /// When `cut` is cancelled, every connection ends at once, even during a request.
    pub fn cut_by(self, cut: CancellationToken) -> Self {
        Self { cut, ..self }
    }

    pub fn giving_way(self, gives_way: GivesWay) -> Self {
        Self { gives_way, ..self }
    }

    /// Accepts connections until stopped, and serves each in a task of its own. Logs an error of accept and tries again
    /// after a pause. Returns early only if the socket does not listen any more, which cannot be repaired.
    pub async fn serve<L, S, B>(self, listener: L, service: S)
    where
        L: Listener,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    failing = false;
                    let Some(slot) = self.slot().await else { return };
                    self.connections.spawn(self.clone().connection(accepted, service.clone(), slot));
                }
                Err(error) if !listener.listens() => {
                    tracing::error!(%error, "a listening socket does not listen any more; restart the daemon");
                    return;
                }
                Err(error) if is_of_the_peer(&error) => {
                    tracing::debug!(%error, "connection gone before it was accepted")
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot accept connections");
                    }
                    // If file descriptors ran out, only closing an idle connection frees one.
                    self.open.make_room(self.gives_way);
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return,
                        () = self.clock.sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
    }

    /// Waits for a slot for one more connection, and asks another connection to give way. `None` means that the server
    /// was stopped.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let mut slot = pin!(Arc::clone(&self.slots).acquire_owned());
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                slot = slot.as_mut() => return slot.ok(),
                () = std::future::ready(()) => self.open.make_room(self.gives_way),
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                slot = slot.as_mut() => return slot.ok(),
                () = self.clock.sleep(ROOM_EVERY) => {}
            }
        }
    }

    async fn connection<A, S, B>(self, accepted: A, service: S, slot: OwnedSemaphorePermit)
    where
        A: Accepted,
        S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let _slot = slot;
        let _gauge = self.gauge.clone().map(Raised::new);
        let progress = Progress::new(self.clock.clone(), self.limits.header_timeout);
        let opened = self.open.add(&self.clock, progress.clone());
        let this = Arc::clone(&opened.connection);
        let in_flight = this.in_flight();
        let Some((io, identity)) = self.opened(accepted, &this).await else { return };
        let peer = Peer::known(identity);
        let io = Watched::new(io, peer.clone(), progress.clone());
        let asked = Arc::clone(&this);
        let counted = service_fn(move |mut request: Request<Incoming>| {
            let in_flight = InFlight::new(&asked);
            asked.speaks(request.version());
            let progress = asked.progress.clone();
            request.extensions_mut().insert(peer.clone());
            let answer = service.call(request);
            async move {
                let alone = ALONE.try_with(CancellationToken::clone).ok();
                answer.await.map(|answer| answer.map(|body| Answering::new(body, progress, alone, in_flight)))
            }
        });
        // The tasks of the connection's HTTP/2 requests end with it.
        let cut = self.cut.child_token();
        let _ends = cut.clone().drop_guard();
        let protocol = self.protocol(cut.clone());
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(io), counted));
        // hyper bounds the head of an HTTP/1 request. `quiet` bounds the rest: the bytes before the protocol is known,
        // and HTTP/2 connections without requests.
        let ended = tokio::select! {
            biased;
            () = cut.cancelled() => return,
            result = connection.as_mut() => Some(result),
            () = self.stopped(in_flight.clone()) => None,
            () = this.leave.cancelled() => None,
            () = self.quiet(in_flight.clone()) => None,
            () = self.aged(&this) => None,
            () = progress.stalled() => return,
        };
        let result = match ended {
            Some(result) => result,
            None => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    biased;
                    () = cut.cancelled() => return,
                    result = connection.as_mut() => result,
                    // The peer neither reads its answer nor closes.
                    () = self.quiet(in_flight.clone()) => Ok(()),
                    () = progress.stalled() => Ok(()),
                    () = self.left(&this, in_flight) => Ok(()),
                    () = self.clock.sleep(LAST_ANSWERS_MAX) => Ok(()),
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended with an error");
        }
    }

    /// Returns the stream of a connection, after its TLS handshake if it has one. `None` means that the handshake failed or
    /// took too long, or that the connection must end.
    async fn opened<A: Accepted>(&self, accepted: A, this: &open::Connection) -> Option<(A::Io, Identity)> {
        tokio::select! {
            biased;
            () = self.cut.cancelled() => None,
            opened = accepted.open() => match opened {
                Ok(opened) => Some(opened),
                Err(error) => {
                    tracing::debug!(%error, "connection ended before its first request");
                    None
                }
            },
            () = self.stopped(this.in_flight()) => None,
            () = this.leave.cancelled() => None,
            () = self.clock.sleep(self.limits.header_timeout) => None,
        }
    }

    /// Returns when a connection that was asked to give way has had its time.
    async fn left(&self, this: &open::Connection, mut in_flight: watch::Receiver<usize>) {
        this.leave.cancelled().await;
        self.clock.sleep(LEAVE_PATIENCE).await;
        match self.gives_way {
            GivesWay::Any => {}
            // A request that arrived at the last moment is still answered.
            GivesWay::Idle => drop(in_flight.wait_for(|requests| *requests == 0).await),
        }
    }

    /// Returns when an HTTP/2 connection has reached its maximum age. Never for HTTP/1.
    async fn aged(&self, this: &open::Connection) {
        self.clock.sleep(H2_AGE_MAX).await;
        if !this.is_http_2.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    fn protocol(&self, cut: CancellationToken) -> auto::Builder<Tracked> {
        let Limits { headers_max, header_bytes_max, header_timeout, .. } = self.limits;
        let mut builder = auto::Builder::new(Tracked { tasks: self.connections.clone(), cut });
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_headers(headers_max)
            .max_buf_size(header_bytes_max.max(BUFFER_BYTES_MIN))
            // A client that closes its side has still sent its request: finish it.
            .half_close(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(header_bytes_max).unwrap_or(u32::MAX))
            .max_concurrent_streams(H2_STREAMS_MAX)
            .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(H2_SEND_BUFFER_BYTES)
            .max_pending_accept_reset_streams(H2_RESETS_MAX)
            .max_local_error_reset_streams(H2_RESETS_MAX)
            .keep_alive_interval(H2_PING_EVERY)
            .keep_alive_timeout(H2_PING_PATIENCE);
        builder
    }

    /// Returns after the stop, once a first request has arrived or the time for it is over.
    async fn stopped(&self, mut in_flight: watch::Receiver<usize>) {
        self.stop.cancelled().await;
        if in_flight.has_changed().is_ok_and(|any_request| !any_request) {
            tokio::select! {
                biased;
                // An error means that the service is gone, so no request can arrive.
                _ = in_flight.changed() => {}
                () = self.clock.sleep(FIRST_REQUEST_PATIENCE) => {}
            }
        }
    }

    /// Returns when there was no request for `header_timeout`.
    async fn quiet(&self, mut in_flight: watch::Receiver<usize>) {
        loop {
            let idle = in_flight.wait_for(|requests| *requests == 0).await.is_ok();
            tokio::select! {
                biased;
                // Once the service is gone, the count cannot change. Only the rest of an answer is left to be read.
                Ok(()) = in_flight.changed(), if idle => {}
                () = self.clock.sleep(self.limits.header_timeout) => return,
            }
        }
    }
}

/// A source of connections.
pub trait Listener: Send + 'static {
    type Accepted: Accepted;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Accepted>> + Send;

    /// Whether it still accepts connections. Another process with the same socket can shut it down.
    fn listens(&self) -> bool;
}

/// An accepted connection from which nothing was read yet.
pub trait Accepted: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Peek + Send + Unpin + 'static;

    /// Returns the stream, and what is known of the peer. Runs in the connection's own task, within the time limit for a
    /// request's head.
    fn open(self) -> impl Future<Output = io::Result<(Self::Io, Identity)>> + Send;
}

/// Streams that need no handshake.
impl<I: AsyncRead + AsyncWrite + Peek + Send + Unpin + 'static> Accepted for I {
    type Io = I;

    fn open(self) -> impl Future<Output = io::Result<(I, Identity)>> + Send {
        let identity = self.identity();
        std::future::ready(Ok((self, identity)))
    }
}

impl Listener for TcpListener {
    type Accepted = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Answers are small. Without this, each could wait for the acknowledgement of the one before.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn listens(&self) -> bool {
        listens(self)
    }
}

impl Listener for UnixListener {
    type Accepted = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }

    fn listens(&self) -> bool {
        listens(self)
    }
}

/// If the socket does not tell, it counts as listening.
fn listens(socket: &impl AsFd) -> bool {
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(true)
}

/// Whether accept failed because of the peer's connection, so that the next accept may succeed.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, InvalidInput, NotConnected};
    // InvalidInput: setting an option of a socket that its peer has reset (macOS).
    matches!(error.kind(), ConnectionAborted | ConnectionReset | NotConnected | Interrupted | InvalidInput)
}

/// Runs the tasks of one connection's HTTP/2 requests in the server's tracker, each with a token that cancels it alone.
#[derive(Clone)]
struct Tracked {
    tasks: TaskTracker,
    cut: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let alone = self.cut.child_token();
        self.tasks.spawn(ALONE.scope(alone.clone(), async move {
            tokio::select! {
                biased;
                () = alone.cancelled() => {}
                _ = task => {}
            }
        }));
    }
}

/// Raises the gauge by one until dropped.
struct Raised(IntGauge);

impl Raised {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hyper_util::service::TowerToHyperService;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::clock::UnixMillis;

    const GET: &[u8] = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";

    fn server() -> Server {
        let limits = Limits {
            connections_max: 8,
            headers_max: 16,
            header_bytes_max: 8 * 1024,
            header_timeout: Duration::from_secs(10),
        };
        Server::new(limits, None, Clock::seeded(UnixMillis(0), 1), CancellationToken::new(), TaskTracker::new())
    }

    fn router(answer: String) -> TowerToHyperService<axum::Router> {
        let hello = axum::routing::get(move || std::future::ready(answer.clone()));
        TowerToHyperService::new(axum::Router::new().route("/hello", hello))
    }

    async fn stopped(server: Server) {
        server.stop.cancel();
        server.connections.close();
        server.connections.wait().await;
    }

    async fn answer(io: &mut (impl AsyncRead + Unpin), end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            text.push(io.read_u8().await.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    /// Returns the accepts that it holds, then waits for ever.
    struct Script(Mutex<Vec<io::Result<DuplexStream>>>);

    impl Script {
        fn new(mut accepts: Vec<io::Result<DuplexStream>>) -> Self {
            accepts.reverse();
            Self(Mutex::new(accepts))
        }
    }

    impl Listener for Script {
        type Accepted = DuplexStream;

        async fn accept(&self) -> io::Result<DuplexStream> {
            let next = self.0.lock().unwrap().pop();
            match next {
                Some(next) => next,
                None => std::future::pending().await,
            }
        }

        fn listens(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn a_router_is_served_over_a_unix_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let server = server();
        server.connections.spawn(server.clone().serve(UnixListener::bind(&path).unwrap(), router("hi".to_owned())));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(GET).await.unwrap();
        assert!(answer(&mut stream, "hi").await.starts_with("HTTP/1.1 200 OK"));
        stopped(server).await;
    }

    #[tokio::test(start_paused = true)]
    async fn accepting_goes_on_after_errors_and_waits_only_for_our_own() {
        let out_of_descriptors = || Err(io::Error::from_raw_os_error(24));
        let gone = || Err(io::Error::from(io::ErrorKind::ConnectionAborted));
        let (ours, mut theirs) = duplex(1024);
        let script = Script::new(vec![out_of_descriptors(), gone(), gone(), out_of_descriptors(), Ok(ours)]);
        let server = server();
        let started = server.clock.now();
        server.connections.spawn(server.clone().serve(script, router("hi".to_owned())));
        theirs.write_all(GET).await.unwrap();
        answer(&mut theirs, "hi").await;
        assert_eq!(server.clock.now().since(started), ACCEPT_PAUSE * 2);
        stopped(server).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_from_just_before_a_stop_has_its_first_request_answered() {
        let (ours, mut theirs) = duplex(1024);
        let server = server();
        server.connections.spawn(server.clone().serve(Script::new(vec![Ok(ours)]), router("hi".to_owned())));
        while server.connections.len() < 2 {
            tokio::task::yield_now().await;
        }
        server.stop.cancel();
        server.clock.sleep(FIRST_REQUEST_PATIENCE / 2).await;
        theirs.write_all(GET).await.unwrap();
        assert!(answer(&mut theirs, "hi").await.starts_with("HTTP/1.1 200 OK"));
        let (_silent, started) = (theirs, server.clock.now());
        stopped(server.clone()).await;
        assert!(server.clock.now().since(started) < FIRST_REQUEST_PATIENCE, "it is not kept for a second one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_take_its_answer_is_dropped() {
        let (ours, mut theirs) = duplex(64);
        let server = server();
        let long = "x".repeat(100_000);
        server.connections.spawn(server.clone().serve(Script::new(vec![Ok(ours)]), router(long)));
        theirs.write_all(GET).await.unwrap();
        theirs.read_u8().await.unwrap();
        // From here nobody reads, so only a limit can end the connection. Virtual time passes by itself.
        while server.connections.len() > 1 {
            server.clock.sleep(Duration::from_secs(1)).await;
            assert!(server.clock.now() < UnixMillis(30_000), "kept for ever");
        }
        stopped(server).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_hand_is_not_idle_however_long_it_takes() {
        let (ours, mut theirs) = duplex(1024);
        let server = server();
        let slow = axum::routing::get(|| async {
            tokio::time::sleep(Duration::from_secs(120)).await;
            "done"
        });
        let router = TowerToHyperService::new(axum::Router::new().route("/hello", slow));
        server.connections.spawn(server.clone().serve(Script::new(vec![Ok(ours)]), router));
        theirs.write_all(GET).await.unwrap();
        assert!(answer(&mut theirs, "done").await.starts_with("HTTP/1.1 200 OK"));
        stopped(server).await;
    }
}
