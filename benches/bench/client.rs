//! Closed-loop clients: each connection sends a request, waits for its answer, and sends the next. They use little CPU
//! time, because they share the machine with what they measure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sendoff::clock::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub connections: usize,
    /// Requests over all connections.
    pub events: u64,
    pub payload_bytes: usize,
    /// Events go to `f0`, `f1`, ... in turn.
    pub functions: usize,
    pub headers: Headers,
    pub way: Way,
}

/// How the client gets in. By default over plain TCP, with a signature that nobody verifies.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Over TLS, to 127.0.0.1.
    pub tls: Option<Arc<ClientConfig>>,
    /// What is before the path of Lambda's API.
    pub prefix: String,
    /// Header lines that take the place of the signature.
    pub proof: Option<String>,
}

/// Which client the requests imitate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Headers {
    /// An AWS SDK: signed, each with its own invocation id, which sendoff remembers.
    Sdk,
    /// The minimum: no key, so sendoff remembers nothing.
    Bare,
}

/// The results of a load.
pub struct Done {
    pub took: Duration,
    /// From the first byte sent to the last byte of the answer, in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Done {
    pub fn per_second(&self) -> f64 {
        self.latency.len() as f64 / self.took.as_secs_f64()
    }

    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }
}

pub fn histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1_000, 120_000_000_000, 3).context("making a histogram")
}

/// Sends everything. Any answer except 202 is an error.
pub async fn run(load: &Load, clock: &Clock) -> anyhow::Result<Done> {
    let left = Arc::new(AtomicU64::new(load.events));
    let mut streams = Vec::new();
    for _ in 0..load.connections {
        streams.push(connect(load).await?);
    }
    let began = clock.instant();
    let mut connections = JoinSet::new();
    for stream in streams {
        connections.spawn(connection(stream, load.clone(), Arc::clone(&left), clock.clone()));
    }
    let mut latency = histogram()?;
    while let Some(of_one) = connections.join_next().await {
        latency.add(of_one.context("a client panicked")??)?;
    }
    Ok(Done { took: began.elapsed(), latency })
}

/// A TCP connection, with or without TLS.
type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

async fn connect(load: &Load) -> anyhow::Result<Stream> {
    let stream = TcpStream::connect(load.address).await.context("connecting to the door")?;
    stream.set_nodelay(true)?;
    let Some(config) = &load.way.tls else { return Ok(Either::Left(stream)) };
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await.context("the TLS handshake")?;
    Ok(Either::Right(Box::new(stream)))
}

async fn connection(stream: Stream, load: Load, left: Arc<AtomicU64>, clock: Clock) -> anyhow::Result<Histogram<u64>> {
    let mut latency = histogram()?;
    let mut connection = Connection::new(stream, load);
    while let Ok(number) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
        let began = clock.instant();
        connection.send(number, &clock).await?;
        latency.record(u64::try_from(began.elapsed().as_nanos())?)?;
    }
    Ok(latency)
}

/// One keep-alive connection.
pub struct Connection {
    stream: Stream,
    load: Load,
    payload: Vec<u8>,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    pub async fn open(load: Load) -> anyhow::Result<Self> {
        let stream = connect(&load).await?;
        Ok(Self::new(stream, load))
    }

    fn new(stream: Stream, load: Load) -> Self {
        let payload = payload(load.payload_bytes);
        Self { stream, load, payload, request: Vec::new(), answer: Vec::new() }
    }

    /// Sends one request and reads its answer.
    pub async fn send(&mut self, number: u64, clock: &Clock) -> anyhow::Result<()> {
        write_request(&mut self.request, &self.load, number, clock.random_bits(), &self.payload);
        self.stream.write_all(&self.request).await.context("sending a request")?;
        self.stream.flush().await.context("sending a request")?;
        read_answer(&mut self.stream, &mut self.answer).await
    }
}

/// A signature in form.
const UNVERIFIED: &str = "x-amz-date: 20260101T000000Z\r\n\
     authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/eu-central-1/lambda/aws4_request, \
     SignedHeaders=content-length;content-type;host;x-amz-date;x-amz-invocation-type, \
     Signature=0000000000000000000000000000000000000000000000000000000000000000\r\n";

fn write_request(request: &mut Vec<u8>, load: &Load, number: u64, random: u128, payload: &[u8]) {
    request.clear();
    let (function, length) = (number % load.functions as u64, payload.len());
    let head = format!(
        "POST {}/2015-03-31/functions/f{function}/invocations HTTP/1.1\r\nhost: {}\r\n\
         x-amz-invocation-type: Event\r\ncontent-length: {length}\r\n",
        load.way.prefix, load.address
    );
    request.extend_from_slice(head.as_bytes());
    if load.headers == Headers::Sdk {
        let id = uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid();
        let sdk = format!(
            "content-type: application/octet-stream\r\naccept: */*\r\namz-sdk-invocation-id: {id}\r\n\
             amz-sdk-request: attempt=1; max=3\r\n\
             user-agent: aws-sdk-rust/1.3 api/lambda/1.1 os/linux lang/rust/1.95\r\n"
        );
        request.extend_from_slice(sdk.as_bytes());
        request.extend_from_slice(load.way.proof.as_deref().unwrap_or(UNVERIFIED).as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(payload);
}

async fn read_answer(stream: &mut Stream, answer: &mut Vec<u8>) -> anyhow::Result<()> {
    answer.clear();
    // A 202 has no body, so it ends with its head.
    while !answer.ends_with(b"\r\n\r\n") {
        let read = stream.read_buf(answer).await.context("reading an answer")?;
        let accepted = answer.starts_with(b"HTTP/1.1 202") || answer.len() < 12;
        anyhow::ensure!(read > 0 && accepted, "not accepted: {}", String::from_utf8_lossy(answer));
    }
    Ok(())
}

/// A JSON object of this many bytes (at least 100) in the shape of a business event: short fields, then text.
pub fn payload(bytes: usize) -> Vec<u8> {
    let head = r#"{"order":{"id":4711,"currency":"EUR","lines":[{"sku":"A-1","n":2}]},"note":""#;
    let mut payload = head.as_bytes().to_vec();
    let filler = "the quick brown fox jumps over the lazy dog ".as_bytes().iter().cycle();
    payload.extend(filler.take(bytes.saturating_sub(head.len() + 2)));
    payload.extend_from_slice(b"\"}");
    payload
}
