use std::sync::Mutex;

use futures_util::StreamExt;
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::event::PAYLOAD_BYTES_MAX;
use crate::http::{Limits, Server};
use crate::ingest::admission::REQUEST_BYTES_MIN;
use crate::ingest::lambda_api::tests::settings;
use crate::outbox::handoff::{Adopted, Handed};
use crate::outbox::{
    Census, Changes, Found, Full as OutboxFull, Health as OutboxHealth, History, LaneNews, Lease, LeaseWant, Leases,
    Place, Settlement, Unsettled,
};

mod identity;

mod memory;

mod native;

mod passed;

const INVOKE: &str = "/2015-03-31/functions/orders/invocations";

/// Keeps events in memory, and can be told to be full or poisoned.
#[derive(Clone, Default)]
struct Kept {
    events: Arc<Mutex<Vec<Event>>>,
    trouble: Arc<Mutex<Option<Trouble>>>,
    /// Calls of append.
    appends: Arc<AtomicU64>,
    /// While it is locked, appends wait.
    gate: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Full,
    Poisoned,
    Away,
}

impl Kept {
    fn payloads(&self) -> Vec<Bytes> {
        self.events.lock().unwrap().iter().map(|event| event.payload.clone()).collect()
    }

    fn is_empty(&self) -> bool {
        self.events.lock().unwrap().is_empty()
    }
}

impl Outbox for Kept {
    async fn append(&self, batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        drop(self.gate.lock().await);
        self.appends.fetch_add(1, Ordering::Relaxed);
        match *self.trouble.lock().unwrap() {
            Some(Trouble::Full) => {
                return Ok(vec![Appended::Full(OutboxFull::Bytes { used: 7, wanted: 1, limit: 7 }); batch.len()]);
            }
            Some(Trouble::Away) => {
                return Err(Error::Away { why: "no connection".to_owned(), retry_after: Duration::from_secs(7) });
            }
            Some(Trouble::Poisoned) => return Err(Error::Poisoned { why: "fsync failed".to_owned() }),
            None => {}
        }
        let mut events = self.events.lock().unwrap();
        let mut appended = Vec::new();
        for event in batch {
            let known =
                events.iter().find(|e| e.key.value == event.key.value && e.function.name == event.function.name);
            appended.push(match known {
                Some(known) if known.payload == event.payload => Appended::Repeat { first: known.id },
                Some(known) => Appended::Conflict { first: known.id },
                None => {
                    events.push(event);
                    Appended::Stored
                }
            });
        }
        Ok(appended)
    }

    async fn lease(&self, _: LeaseWant, _: Option<u64>) -> Result<Leases, Error> {
        Ok(Leases::default())
    }

    async fn settle(&self, _: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        Ok(Vec::new())
    }

    async fn adopt(&self, events: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        if *self.trouble.lock().unwrap() == Some(Trouble::Full) {
            let full = Adopted::Full(OutboxFull::Bytes { used: 7, wanted: 1, limit: 7 });
            return Ok(vec![full; events.len()]);
        }
        let mut kept = self.events.lock().unwrap();
        let mut adopted = Vec::new();
        for Handed { event, .. } in events {
            if kept.iter().any(|known| known.id == event.id) {
                adopted.push(Adopted::Repeat);
            } else {
                kept.push(event);
                adopted.push(Adopted::Stored);
            }
        }
        Ok(adopted)
    }

    async fn lanes(&self, _: u64) -> Result<LaneNews, Error> {
        Ok(LaneNews::default())
    }

    async fn find(&self, id: EventId) -> Result<Option<Found>, Error> {
        let event = self.events.lock().unwrap().iter().find(|event| event.id == id).cloned();
        let found = |event: Event| Found {
            payload_bytes: event.payload.len(),
            event,
            history: History::default(),
            place: Place::Ready,
            leased: false,
        };
        Ok(event.map(found))
    }

    async fn census(&self) -> Result<Census, Error> {
        Ok(Census::default())
    }

    async fn changed(&self, _since: u64, _: Changes) {}

    fn health(&self) -> OutboxHealth {
        OutboxHealth::Well
    }

    async fn failed(&self) -> String {
        std::future::pending().await
    }
}

struct Reply {
    status: u16,
    headers: http::HeaderMap,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

fn door(settings: Settings) -> (Door<Kept>, Kept) {
    let kept = Kept::default();
    let metrics = Arc::new(Metrics::new().unwrap());
    (Door::new(kept.clone(), Clock::seeded(UnixMillis(1_790_000_000_000), 7), metrics, settings), kept)
}

fn post(target: &str, headers: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method("POST").uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::from(body.to_owned())).unwrap()
}

async fn ask(door: &Door<Kept>, request: Request<Full<Bytes>>) -> Reply {
    let (head, body) = door.handle(request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Reply { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

async fn event(door: &Door<Kept>, headers: &[(&str, &str)], body: &str) -> Reply {
    let headers = [headers, &[("x-amz-invocation-type", "Event")]].concat();
    ask(door, post(INVOKE, &headers, body)).await
}

#[tokio::test]
async fn an_event_is_stored_and_answered_with_its_id() {
    let (door, kept) = door(settings());
    let reply = event(&door, &[], "{\"k\":\"v\"}").await;
    let stored = kept.events.lock().unwrap()[0].clone();
    assert_eq!((reply.status, reply.body.as_str()), (202, ""));
    assert_eq!(reply.header("x-amzn-requestid"), stored.id.to_string());
    assert_eq!(reply.header("x-sendoff-event-id"), stored.id.to_string());
    assert_eq!(reply.header("x-sendoff-key-source"), "minted");
    assert_eq!(reply.header("x-sendoff-duplicate"), "");
    assert_eq!(stored.payload, "{\"k\":\"v\"}");
    assert_eq!(door.shared.metrics.ingest_accepted.with_label_values(&["orders"]).get(), 1);
}

#[tokio::test]
async fn a_repeat_is_answered_with_the_first_events_id() {
    let (door, kept) = door(settings());
    let first = event(&door, &[("idempotency-key", "order-1")], "1").await;
    let second = event(&door, &[("idempotency-key", "\"order-1\"")], "1").await;
    assert_eq!(second.status, 202);
    assert_eq!(second.header("x-amzn-requestid"), first.header("x-amzn-requestid"));
    assert_eq!(second.header("x-sendoff-event-id"), first.header("x-amzn-requestid"));
    assert_eq!(second.header("x-sendoff-duplicate"), "true");
    assert_eq!(kept.payloads().len(), 1);
    let repeats = &door.shared.metrics.ingest_duplicates;
    assert_eq!(repeats.with_label_values(&["orders", "header"]).get(), 1);
}

#[tokio::test]
async fn the_same_key_with_another_payload_is_a_conflict() {
    let (door, kept) = door(settings());
    let first = event(&door, &[("idempotency-key", "secret-key")], "1").await;
    let second = event(&door, &[("idempotency-key", "secret-key")], "2").await;
    assert_eq!(second.status, 409);
    assert!(second.body.contains(first.header("x-amzn-requestid")) && !second.body.contains("secret-key"));
    assert_eq!(kept.payloads(), ["1"]);
}

#[tokio::test]
async fn the_same_sdk_id_with_another_payload_is_another_event() {
    let (door, kept) = door(settings());
    let sdk = [("amz-sdk-invocation-id", "00f2e1ab-796a-4889-b2f2-b9c130f70117")];
    let first = event(&door, &sdk, "1").await;
    let retry = event(&door, &sdk, "1").await;
    let other = event(&door, &sdk, "2").await;
    assert_eq!((first.status, retry.status, other.status), (202, 202, 202));
    assert_eq!(retry.header("x-sendoff-duplicate"), "true");
    assert_eq!(other.header("x-sendoff-key-source"), "minted");
    assert_ne!(other.header("x-amzn-requestid"), first.header("x-amzn-requestid"));
    assert_eq!(kept.payloads(), ["1", "2"]);
}

#[tokio::test]
async fn a_full_outbox_names_its_limit_and_says_when_to_come_back() {
    let (door, kept) = door(settings());
    *kept.trouble.lock().unwrap() = Some(Trouble::Full);
    let reply = event(&door, &[], "{}").await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (503, "ServiceException"));
    assert!(reply.body.contains("outbox.bytes_max"), "{}", reply.body);
    let millis: u64 = reply.header("x-amz-retry-after").parse().unwrap();
    let seconds: u64 = reply.header("retry-after").parse().unwrap();
    assert!((2_000..=4_000).contains(&millis) && seconds * 1_000 >= millis, "{millis} ms, {seconds} s");
    *kept.trouble.lock().unwrap() = Some(Trouble::Poisoned);
    assert_eq!(event(&door, &[], "{}").await.status, 503);
    *kept.trouble.lock().unwrap() = None;
    assert_eq!(event(&door, &[], "{}").await.status, 202);
}

#[tokio::test]
async fn a_store_that_is_away_is_answered_with_503_and_the_time_that_it_asks_for() {
    let (door, kept) = door(settings());
    *kept.trouble.lock().unwrap() = Some(Trouble::Away);
    let reply = event(&door, &[], "{}").await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (503, "ServiceException"));
    let seconds: u64 = reply.header("retry-after").parse().unwrap();
    assert!((7..=14).contains(&seconds), "{seconds} s");
    assert!(kept.is_empty());
    *kept.trouble.lock().unwrap() = None;
    assert_eq!(event(&door, &[], "{}").await.status, 202);
}

#[tokio::test]
async fn a_body_that_does_not_fit_into_memory_is_refused_before_it_is_read() {
    let (door, kept) = door(Settings { request_bytes_max: REQUEST_BYTES_MIN, ..settings() });
    let held = door.shared.admission.set_aside(REQUEST_BYTES_MIN - PAYLOAD_BYTES_MAX as u64).unwrap();
    let large = "1".repeat(PAYLOAD_BYTES_MAX);
    let reply = event(&door, &[], &large).await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (429, "TooManyRequestsException"));
    assert!(reply.body.contains("\"Reason\":\"CallerRateLimitExceeded\""));
    assert!(!reply.header("retry-after").is_empty() && !reply.header("x-amz-retry-after").is_empty());
    assert!(kept.is_empty());
    drop(held);
    assert_eq!(event(&door, &[], &large).await.status, 202);
}

#[tokio::test]
async fn what_is_refused_is_not_stored_and_is_counted() {
    let (door, kept) = door(settings());
    let too_large = "1".repeat(PAYLOAD_BYTES_MAX + 1);
    let too_large_async = "1".repeat(262_145);
    let typed = [("x-amz-invocation-type", "Event")];
    for (target, headers, body, status, reason) in [
        (INVOKE, &typed[..], "not json", 400, "invalid-content"),
        (INVOKE, &typed, &too_large, 413, "payload-too-large"),
        ("/2014-11-13/functions/orders/invoke-async/", &[], &too_large_async, 413, "payload-too-large"),
        (INVOKE, &[], "{}", 400, "mode-not-supported"),
        (INVOKE, &[("x-amz-invocation-type", "DryRun")], "{}", 400, "mode-not-supported"),
        (INVOKE, &[("x-amz-invocation-type", "Later")], "{}", 400, "validation"),
        ("/2015-03-31/functions/a%20b/invocations", &typed, "{}", 400, "validation"),
        ("/v2/events", &typed, "{}", 404, "unknown-operation"),
    ] {
        let counter = door.shared.metrics.ingest_refused.with_label_values(&[reason]);
        let before = counter.get();
        let reply = ask(&door, post(target, headers, body)).await;
        assert_eq!((reply.status, counter.get()), (status, before + 1), "{target} {reason}: {}", reply.body);
        assert_eq!(reply.header("content-type"), "application/json");
        assert!(!reply.header("x-amzn-requestid").is_empty());
    }
    assert!(kept.is_empty());
    assert!(door.shared.admission.set_aside(settings().request_bytes_max).is_ok(), "all memory is given back");
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_read_within_limits() {
    const CHUNK: usize = 64 * 1024;
    let (door, kept) = door(settings());
    for (chunks, read) in [(0..80, 80), (0..usize::MAX, 6_291_456 / CHUNK + 1)] {
        let taken = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&taken);
        let frames = futures_util::stream::iter(chunks).map(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from_static(&[b'1'; CHUNK])))
        });
        let request = Request::post("/unknown").body(http_body_util::StreamBody::new(frames)).unwrap();
        assert_eq!(door.handle(request).await.status(), 404);
        assert_eq!(taken.load(Ordering::Relaxed), read as u64);
    }
    assert!(kept.is_empty());
}

#[tokio::test]
async fn the_largest_payloads_are_accepted() {
    let (door, kept) = door(Settings { request_bytes_max: REQUEST_BYTES_MIN, ..settings() });
    let largest = "1".repeat(PAYLOAD_BYTES_MAX);
    assert_eq!(event(&door, &[], &largest).await.status, 202);
    let largest_async = "1".repeat(262_144);
    let reply = ask(&door, post("/2014-11-13/functions/orders/invoke-async/", &[], &largest_async)).await;
    assert_eq!(reply.status, 202);
    assert_eq!(kept.payloads().len(), 2);
}

#[test]
fn the_log_hears_of_a_change_once() {
    let clock = Clock::seeded(UnixMillis(1_000_000), 1);
    let log = HealthLog::default();
    assert!(!log.changed(Health::Accepting, &clock));
    assert!(log.changed(Health::Full, &clock));
    assert!(!log.changed(Health::Full, &clock));
    assert!(!log.changed(Health::Accepting, &clock), "flapping is not told");
    clock.pass_until(UnixMillis(1_000_000).plus(HEALTH_LOG_INTERVAL * 2));
    assert!(log.changed(Health::Accepting, &clock), "what lasts is told in the end");
    assert!(!log.changed(Health::Accepting, &clock));
}

proptest! {
    #[test]
    fn no_request_panics_or_is_our_fault(
        path in "(/2015-03-31/functions/)?[!-~]{0,60}(/invocations)?(\\?[!-~]{0,20})?",
        headers in prop::collection::vec((0_usize..8, prop::collection::vec(any::<u8>(), 0..40)), 0..5),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        const NAMES: [&str; 8] = [
            "x-amz-invocation-type", "x-amz-client-context", "x-amz-tenant-id", "x-amz-durable-execution-name",
            "idempotency-key", "amz-sdk-invocation-id", "authorization", "x-amzn-trace-id",
        ];
        let mut request = Request::builder().method("POST").uri(&path).header("x-amz-invocation-type", "Event");
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                request = request.header(NAMES[name], value);
            }
        }
        let Ok(request) = request.body(Full::from(body)) else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (door, kept) = door(settings());
        let reply = runtime.block_on(ask(&door, request));
        prop_assert!(reply.status < 500, "{}: {}", reply.status, reply.body);
        prop_assert_eq!(reply.status == 202, !kept.is_empty());
    }
}

/// A door behind a real socket.
struct Served {
    address: std::net::SocketAddr,
    kept: Kept,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Served {
    async fn start(settings: Settings) -> Self {
        let limits = Limits {
            connections_max: settings.connections_max,
            headers_max: settings.headers_max,
            header_bytes_max: settings.header_bytes_max,
            header_timeout: settings.header_timeout,
        };
        let (door, kept) = door(settings);
        let metrics = Arc::clone(&door.shared.metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let open = Some(metrics.ingest_connections.clone());
        let server = Server::new(limits, open, Clock::system(), stop.clone(), tasks.clone());
        tasks.spawn(server.serve(listener, door.service()));
        Self { address, kept, metrics, stop, tasks }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Writes `request`, and reads until the server closes.
    async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        to_end(&mut stream).await
    }

    async fn finish(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(30), self.tasks.wait()).await.expect("stops");
        assert_eq!(self.metrics.ingest_connections.get(), 0);
    }
}

async fn to_end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut text));
    read.await.expect("the server closes").unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads one answer without a body.
async fn one_head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(Duration::from_secs(30), stream.read_u8());
        text.push(byte.await.expect("an answer").unwrap());
    }
    String::from_utf8(text).unwrap()
}

fn head(more: &str) -> String {
    format!("POST {INVOKE} HTTP/1.1\r\nHost: x\r\nX-Amz-Invocation-Type: Event\r\n{more}")
}

const CLOSE: &str = "Connection: close\r\n";

#[tokio::test]
async fn a_sized_and_a_chunked_body_arrive_whole() {
    let served = Served::start(settings()).await;
    let sized = served.raw(head(&format!("{CLOSE}Content-Length: 2\r\n\r\n{{}}"))).await;
    assert!(sized.starts_with("HTTP/1.1 202 Accepted\r\n"), "{sized}");
    let lower = sized.to_lowercase();
    assert!(lower.contains("\r\ndate: ") && lower.contains("\r\ncontent-length: 0\r\n") && !lower.contains("\r\nage:"));
    let chunked = "Transfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n";
    let chunked = served.raw(head(&format!("{CLOSE}{chunked}"))).await;
    assert!(chunked.starts_with("HTTP/1.1 202"), "{chunked}");
    assert_eq!(served.kept.payloads(), ["{}", "[1,2]"]);
    served.finish().await;
}

#[tokio::test]
async fn one_connection_serves_requests_one_after_the_other_and_pipelined() {
    let served = Served::start(settings()).await;
    let mut stream = served.connect().await;
    for _ in 0..2 {
        stream.write_all(head("Content-Length: 1\r\n\r\n1").as_bytes()).await.unwrap();
        assert!(one_head(&mut stream).await.starts_with("HTTP/1.1 202"));
    }
    let pipelined = head("Content-Length: 1\r\n\r\n2") + &head(&format!("{CLOSE}Content-Length: 1\r\n\r\n3"));
    stream.write_all(pipelined.as_bytes()).await.unwrap();
    assert_eq!(to_end(&mut stream).await.matches("HTTP/1.1 202").count(), 2);
    assert_eq!(served.kept.payloads(), ["1", "1", "2", "3"]);
    served.finish().await;
}

#[tokio::test]
async fn who_expects_a_continue_gets_it_or_the_refusal() {
    let served = Served::start(settings()).await;
    let mut stream = served.connect().await;
    stream.write_all(head("Expect: 100-continue\r\nContent-Length: 1\r\n\r\n").as_bytes()).await.unwrap();
    assert!(one_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    stream.write_all(b"1").await.unwrap();
    assert!(one_head(&mut stream).await.starts_with("HTTP/1.1 202"));
    let refused = served.raw(head("Expect: 100-continue\r\nContent-Length: 1048577\r\n\r\n")).await;
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
    assert!(refused.contains("1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)"));
    served.finish().await;
}

#[tokio::test]
async fn a_client_that_sends_too_much_still_reads_the_refusal() {
    let served = Served::start(settings()).await;
    let large = "1".repeat(3 * PAYLOAD_BYTES_MAX);
    let sized = served.raw(head(&format!("{CLOSE}Content-Length: {}\r\n\r\n{large}", large.len()))).await;
    assert!(sized.starts_with("HTTP/1.1 413"), "{sized}");
    let chunked = format!("{CLOSE}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let chunked = served.raw(head(&chunked)).await;
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");
    assert!(served.kept.is_empty());
    served.finish().await;
}

#[tokio::test]
async fn a_client_that_closes_its_side_gets_its_answer() {
    let served = Served::start(settings()).await;
    let gate = served.kept.gate.lock().await;
    let mut stream = served.connect().await;
    stream.write_all(head("Content-Length: 1\r\n\r\n1").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await;
    assert!(early.is_err(), "answered before the event was stored");
    drop(gate);
    assert!(to_end(&mut stream).await.starts_with("HTTP/1.1 202"));
    assert_eq!(served.kept.payloads(), ["1"]);
    served.finish().await;
}

#[tokio::test]
async fn torn_and_malformed_requests_store_nothing() {
    let served = Served::start(settings()).await;
    for torn in [
        head("Content-Len"),
        head("Content-Length: 10\r\n\r\n{\"k\""),
        head("Transfer-Encoding: chunked\r\n\r\n5\r\n[1,"),
        head("Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
        head("Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        head("Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        head("Content-Length: -1\r\n\r\n{}"),
        head("no colon\r\n\r\n"),
        "\0\u{1}\u{2}\r\n\r\n".to_owned(),
        "PRI * HTTP/2".to_owned(),
        String::new(),
    ] {
        let mut stream = served.connect().await;
        stream.write_all(torn.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let reply = to_end(&mut stream).await;
        assert!(!reply.contains(" 202 ") && !reply.contains("HTTP/1.1 5"), "{torn:?}: {reply}");
    }
    assert!(served.kept.is_empty());
    served.finish().await;
}

#[tokio::test]
async fn a_flood_of_headers_is_refused() {
    let served = Served::start(settings()).await;
    let many: String = (0..70).map(|n| format!("x-{n}: v\r\n")).collect();
    assert!(served.raw(head(&format!("{many}\r\n"))).await.starts_with("HTTP/1.1 431"));
    let huge = format!("x-huge: {}\r\n\r\n", "v".repeat(20 << 10));
    assert!(served.raw(head(&huge)).await.starts_with("HTTP/1.1 431"));
    assert!(served.kept.is_empty());
    served.finish().await;
}

#[tokio::test]
async fn whoever_is_too_slow_is_cut_off() {
    let short = Duration::from_millis(300);
    let served = Served::start(Settings { header_timeout: short, body_timeout: short, ..settings() }).await;
    for silent in ["", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &head("Content-Le")] {
        let reply = served.raw(silent).await;
        assert!(!reply.contains(" 202 "), "{silent:?}: {reply}");
    }
    let reply = served.raw(head("Content-Length: 10\r\n\r\n{\"k\"")).await;
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("RequestTimeoutException"), "{reply}");
    assert!(served.kept.is_empty());
    served.finish().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_one_ends() {
    let served = Served::start(Settings { connections_max: 1, ..settings() }).await;
    let mut first = served.connect().await;
    let request = head("Content-Length: 1\r\n\r\n1");
    first.write_all(request.as_bytes()).await.unwrap();
    assert!(one_head(&mut first).await.starts_with("HTTP/1.1 202"));
    let mut second = served.connect().await;
    second.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(served.metrics.ingest_connections.get(), 1);
    assert_eq!(served.kept.payloads().len(), 1);
    drop(first);
    assert!(one_head(&mut second).await.starts_with("HTTP/1.1 202"));
    drop(second);
    served.finish().await;
}

#[tokio::test]
async fn a_stop_finishes_the_request_in_hand_and_closes_idle_connections() {
    let served = Served::start(settings()).await;
    let (mut fresh, mut idle, mut busy) = (served.connect().await, served.connect().await, served.connect().await);
    idle.write_all(head("Content-Length: 1\r\n\r\n1").as_bytes()).await.unwrap();
    assert!(one_head(&mut idle).await.starts_with("HTTP/1.1 202"));
    // The answer "100 Continue" tells that the request is in hand.
    busy.write_all(head("Expect: 100-continue\r\nContent-Length: 1\r\n\r\n").as_bytes()).await.unwrap();
    assert!(one_head(&mut busy).await.starts_with("HTTP/1.1 100"));
    while served.metrics.ingest_connections.get() < 3 {
        tokio::task::yield_now().await;
    }
    served.stop.cancel();
    assert_eq!(to_end(&mut fresh).await, "");
    assert_eq!(to_end(&mut idle).await, "");
    busy.write_all(b"2").await.unwrap();
    let reply = to_end(&mut busy).await;
    assert!(reply.starts_with("HTTP/1.1 202") && reply.contains("connection: close"), "{reply}");
    assert_eq!(served.kept.payloads(), ["1", "2"]);
    assert!(TcpStream::connect(served.address).await.is_err(), "the listener is closed");
    served.finish().await;
}

#[tokio::test]
async fn http_2_with_prior_knowledge_is_served_and_stopped() {
    let served = Served::start(settings()).await;
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http::<Full<Bytes>>();
    let url = format!("http://{}{INVOKE}", served.address);
    let request = post(&url, &[("x-amz-invocation-type", "Event")], "{}");
    let reply = client.request(request).await.unwrap();
    assert_eq!((reply.status(), reply.version()), (StatusCode::ACCEPTED, http::Version::HTTP_2));
    assert_eq!(served.kept.payloads(), ["{}"]);
    served.finish().await;
}
