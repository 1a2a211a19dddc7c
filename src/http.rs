//! The accept loop that both listeners share: HTTP/1.1 and HTTP/2 with prior knowledge, with limits on all that a peer can
//! make us hold, and a stop that finishes what was read.
//!
//! What hyper answers by itself (400, 414, 431 for heads that are torn, malformed or too large) never reaches a service.

use std::error::Error;
use std::future::Future;
use std::io;
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

mod progress;

pub mod tls;

mod open;

pub use open::GivesWay;

use open::{InFlight, Open};
use peer::{Peek, Peer, Watched};
use progress::{Answering, Progress};

/// How long to wait after an accept that failed for a reason of our own (no file descriptors, no memory): the next one
/// would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a stop waits for the first request of a connection that has sent none: its client connected in good faith, and
/// may be writing just now. Closing at once would refuse what the next process, on the same socket, would have taken.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_millis(500);

/// The smallest read buffer that hyper allows, in bytes.
const BUFFER_BYTES_MIN: usize = 8 * 1024;

/// Requests at once on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 128;

/// Unread bytes that an HTTP/2 peer may send, for one request and for the whole connection.
const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes of answers that wait in h2 for one stream's reader, beside those that have window.
const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Streams that a peer may have opened and reset before they were looked at, and streams that we reset for its mistakes; beyond
/// either the connection ends (CVE-2023-44487, "rapid reset", and CVE-2025-8671, "made you reset").
const H2_RESETS_MAX: usize = 64;

/// How often an HTTP/2 peer is asked for a sign of life, and how long it has to give one.
const H2_PING_EVERY: Duration = Duration::from_secs(30);
const H2_PING_PATIENCE: Duration = Duration::from_secs(20);

/// After so long an HTTP/2 connection is asked to close; whoever has more to ask opens another. Bounds what a peer can pile up
/// on one connection, bit by bit.
const H2_AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// How long a connection that is told to close may take for its last answers: longer than any call that is passed through.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(17 * 60);

/// How long an idle connection that gives way to another may take to close by itself.
const LEAVE_PATIENCE: Duration = Duration::from_millis(100);

/// While a new connection waits for a place: how often the others are looked at.
const ROOM_EVERY: Duration = Duration::from_millis(50);

tokio::task_local! {
    /// Ends the task of one HTTP/2 request alone.
    static ALONE: CancellationToken;
}

/// What a peer may make us hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; further ones wait in the listen queue.
    pub connections_max: usize,
    /// Header lines of an HTTP/1 request; HTTP/2 counts bytes only.
    pub headers_max: usize,
    /// Bytes of a request's head, at least 8 KiB.
    pub header_bytes_max: usize,
    /// Until a request's head is complete; also how long a connection without a request is kept, and how long an answer may wait
    /// for a peer that does not take it.
    pub header_timeout: Duration,
}

/// What listeners share: limits, the count of connections, and the stop. Cheap to clone; a clone shares all of it, so that
/// several listeners keep one limit.
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
    /// `gauge` shows the open connections. Once `stop` is cancelled no connection is accepted, idle ones are closed, and
    /// requests already read are finished; `connections` is empty when all of that is done.
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

    /// Once `cut` is cancelled every connection ends at once, whatever it is doing.
    pub fn cut_by(self, cut: CancellationToken) -> Self {
        Self { cut, ..self }
    }

    pub fn giving_way(self, gives_way: GivesWay) -> Self {
        Self { gives_way, ..self }
    }

    /// Accepts connections until stopped, and serves each in a task of its own. Never fails: what goes wrong with accepting
    /// is logged, and tried again after a pause.
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
                Err(error) if is_of_the_peer(&error) => {
                    tracing::debug!(%error, "connection gone before it was accepted")
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot accept connections");
                    }
                    // Without descriptors the one of an idle client is all that can be had.
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

    /// A place for one more connection, for which another one may have to give way; none once stopped.
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
        let Some((io, names)) = self.opened(accepted, &this).await else { return };
        let peer = Peer::named(names);
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
        // The tasks of its HTTP/2 requests end with it.
        let cut = self.cut.child_token();
        let _ends = cut.clone().drop_guard();
        let protocol = self.protocol(cut.clone());
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(io), counted));
        // hyper bounds the head of an HTTP/1 request; `quiet` bounds what it does not: the bytes before the protocol is
        // known, and HTTP/2 connections that ask for nothing.
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
                    // The peer neither takes its answer nor closes.
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

    /// The stream of a connection, after the handshake if it has one. None if the handshake fails, or does not end in time.
    async fn opened<A: Accepted>(&self, accepted: A, this: &open::Connection) -> Option<(A::Io, Vec<String>)> {
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

    /// Returns once a connection that is told to give way has had its time.
    async fn left(&self, this: &open::Connection, mut in_flight: watch::Receiver<usize>) {
        this.leave.cancelled().await;
        self.clock.sleep(LEAVE_PATIENCE).await;
        match self.gives_way {
            GivesWay::Any => {}
            // A request that came at the last moment is answered.
            GivesWay::Idle => drop(in_flight.wait_for(|requests| *requests == 0).await),
        }
    }

    /// Returns once an HTTP/2 connection is old.
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
            // A client that closes its side has sent its request all the same: finish it.
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

    /// Returns once told to stop, and not before a first request has come or its time is over.
    async fn stopped(&self, mut in_flight: watch::Receiver<usize>) {
        self.stop.cancelled().await;
        if in_flight.has_changed().is_ok_and(|any_request| !any_request) {
            tokio::select! {
                biased;
                // An error means that the service is gone, and with it whatever there was to wait for.
                _ = in_flight.changed() => {}
                () = self.clock.sleep(FIRST_REQUEST_PATIENCE) => {}
            }
        }
    }

    /// Returns once there was no request for `header_timeout`.
    async fn quiet(&self, mut in_flight: watch::Receiver<usize>) {
        loop {
            let idle = in_flight.wait_for(|requests| *requests == 0).await.is_ok();
            tokio::select! {
                biased;
                // Once the service is gone there is nothing to change, only the rest of an answer to be taken.
                Ok(()) = in_flight.changed(), if idle => {}
                () = self.clock.sleep(self.limits.header_timeout) => return,
            }
        }
    }
}

/// What connections come from.
pub trait Listener: Send + 'static {
    type Accepted: Accepted;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Accepted>> + Send;
}

/// A connection that was accepted, before anything was read from it.
pub trait Accepted: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Peek + Send + Unpin + 'static;

    /// What can be read and written, and the names of the peer that are proven. Runs in the connection's own task, under the
    /// time-out for a request's head.
    fn open(self) -> impl Future<Output = io::Result<(Self::Io, Vec<String>)>> + Send;
}

/// A stream that needs no handshake.
impl<I: AsyncRead + AsyncWrite + Peek + Send + Unpin + 'static> Accepted for I {
    type Io = I;

    fn open(self) -> impl Future<Output = io::Result<(I, Vec<String>)>> + Send {
        std::future::ready(Ok((self, Vec::new())))
    }
}

impl Listener for TcpListener {
    type Accepted = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Answers are small: without this each may wait for the acknowledgement of the one before.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Accepted = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Whether an accept failed because of the connection that was to be accepted, so that the next one may well succeed.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, InvalidInput, NotConnected};
    // InvalidInput: setting an option of a socket that its peer has reset (macOS).
    matches!(error.kind(), ConnectionAborted | ConnectionReset | NotConnected | Interrupted | InvalidInput)
}

/// Runs the tasks of one connection's HTTP/2 requests where they are waited for at the stop, each with what ends it alone.
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

/// One more, until dropped.
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

    /// Gives out what it holds, then waits for ever.
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
        // From here nobody reads: only a limit can end the connection, and time passes by itself.
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
