//! The client of the demo: an HTTP client with pooled connections that behaves as an SDK does, and keeps receipts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock::Clock;

/// The field of the payload that names the event.
pub(super) const ID_FIELD: &str = "id";

/// The number of concurrent requests.
const WORKERS: usize = 64;

/// After this many events, an event that was accepted earlier is sent again.
const REPEAT_EVERY: usize = 10;

/// The longest time of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// The longest time of all requests for one event. Longer than the daemon takes to start.
const EVENT_LIMIT: Duration = Duration::from_secs(90);

/// The pause between two requests for one event.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The most bytes read of an answer.
const ANSWER_BYTES_MAX: usize = 16 * 1_048_576;

/// One event to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    /// Its id in the payload, and its idempotency key.
    pub(super) id: String,
    pub(super) function: String,
}

/// Makes the events, each for a random function.
pub(super) fn orders(events: u32, functions: &[String], clock: &Clock) -> Vec<Order> {
    (0..events)
        .map(|n| {
            let at = usize::try_from(clock.random_bits() % functions.len().max(1) as u128).unwrap_or(0);
            Order { id: format!("demo-{n:07}"), function: functions.get(at).cloned().unwrap_or_default() }
        })
        .collect()
}

/// The answers that the client got.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// Event id to function, for every event that got 202.
    pub(super) accepted: BTreeMap<String, String>,
    pub(super) counts: Counts,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Accepted events that the client sent again on purpose.
    pub(super) repeats: u64,
    /// Those of them that were answered as duplicates.
    pub(super) repeats_recognised: u64,
    /// Events whose first 202 was lost. The client repeated the request, and it was answered as a duplicate.
    pub(super) retries_recognised: u64,
}

/// Sends each event until it is accepted, and keeps the receipts.
#[derive(Debug)]
pub(super) struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
    orders: Vec<Order>,
    /// The current addresses of the daemons' ingest listeners.
    doors: watch::Receiver<Vec<SocketAddr>>,
    clock: Clock,
    next: AtomicUsize,
    /// The number of requests, which take turns with the doors.
    turn: AtomicUsize,
    receipts: Mutex<Receipts>,
    accepted: watch::Sender<u64>,
}

/// The answer to an accepted event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Receipt {
    duplicate: bool,
}

impl Sender {
    pub(super) fn new(orders: Vec<Order>, doors: watch::Receiver<Vec<SocketAddr>>, clock: Clock) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(WORKERS).build_http(),
            orders,
            doors,
            clock,
            next: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            receipts: Mutex::default(),
            accepted: watch::Sender::new(0),
        }
    }

    /// Returns when every event is accepted, or when the first one fails for good.
    pub(super) async fn send_all(self: Arc<Self>) -> anyhow::Result<()> {
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            workers.spawn(Arc::clone(&self).work());
        }
        while let Some(worked) = workers.join_next().await {
            worked.context("a worker of the client panicked")??;
        }
        Ok(())
    }

    /// Waits until this many events are accepted.
    pub(super) async fn accepted(&self, events: u64) {
        // Cannot fail: `self` holds the channel's sender.
        self.accepted.subscribe().wait_for(|accepted| *accepted >= events).await.ok();
    }

    pub(super) fn accepted_now(&self) -> u64 {
        *self.accepted.borrow()
    }

    pub(super) fn receipts<T>(&self, look: impl FnOnce(&Receipts) -> T) -> T {
        look(&self.lock())
    }

    /// Returns the body of a successful GET.
    pub(super) async fn fetch(&self, url: &str) -> anyhow::Result<String> {
        let request = Request::get(url).body(Full::default())?;
        let (status, _, body) = self.exchange(request).await.with_context(|| format!("asking {url}"))?;
        ensure!(status == StatusCode::OK, "asking {url}: {status}");
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn work(self: Arc<Self>) -> anyhow::Result<()> {
        while let Some((n, order)) = self.take() {
            let receipt = self.send(order).await?;
            self.file(order, receipt);
            if n % REPEAT_EVERY == REPEAT_EVERY - 1 {
                self.repeat(n).await?;
            }
        }
        Ok(())
    }

    fn take(&self) -> Option<(usize, &Order)> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Some((n, self.orders.get(n)?))
    }

    fn file(&self, order: &Order, receipt: Receipt) {
        self.note(order, u64::from(receipt.duplicate));
    }

    /// Notes an event that was accepted in another way than by this client.
    pub(super) fn note_accepted(&self, order: &Order) {
        self.note(order, 0);
    }

    fn note(&self, order: &Order, retries_recognised: u64) {
        let mut receipts = self.lock();
        receipts.accepted.insert(order.id.clone(), order.function.clone());
        receipts.counts.retries_recognised += retries_recognised;
        let accepted = receipts.accepted.len() as u64;
        // Sent under the lock, so that the number never decreases.
        self.accepted.send_replace(accepted);
    }

    /// Sends an earlier event again: the one half as far as the n-th, so that many duplicates come after the kill. If
    /// that one is not accepted yet, sends the n-th again.
    async fn repeat(&self, n: usize) -> anyhow::Result<()> {
        let earlier = &self.orders[n / 2];
        let known = self.receipts(|receipts| receipts.accepted.contains_key(&earlier.id));
        let receipt = self.send(if known { earlier } else { &self.orders[n] }).await?;
        let mut receipts = self.lock();
        receipts.counts.repeats += 1;
        receipts.counts.repeats_recognised += u64::from(receipt.duplicate);
        Ok(())
    }

    /// Sends one event until it is accepted, with the same key each time. As an SDK does, it retries after a refused or
    /// lost connection, a throttle, or a server error.
    async fn send(&self, order: &Order) -> anyhow::Result<Receipt> {
        let began = self.clock.instant();
        loop {
            let why = match self.exchange(self.request(order)?).await {
                Ok((StatusCode::ACCEPTED, headers, _)) => {
                    let duplicate = headers.get("x-sendoff-duplicate").is_some_and(|value| value == "true");
                    return Ok(Receipt { duplicate });
                }
                Ok((status, _, body)) if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() => {
                    bail!("the daemon refused {}: {status} {}", order.id, String::from_utf8_lossy(&body));
                }
                Ok((status, _, _)) => anyhow::anyhow!("the last answer was {status}"),
                Err(why) => why,
            };
            if began.elapsed() > EVENT_LIMIT {
                let limit = humantime::format_duration(EVENT_LIMIT);
                return Err(why.context(format!("{} was not accepted within {limit}", order.id)));
            }
            self.clock.sleep(RETRY_AFTER).await;
        }
    }

    fn request(&self, order: &Order) -> anyhow::Result<Request<Full<Bytes>>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let door = {
            let doors = self.doors.borrow();
            *doors.get(turn % doors.len().max(1)).context("no daemon is there")?
        };
        let payload = json!({ ID_FIELD: order.id, "function": order.function, "sent_by": "sendoff demo" });
        let request = Request::post(format!("http://{door}/2015-03-31/functions/{}/invocations", order.function))
            .header("x-amz-invocation-type", "Event")
            .header("idempotency-key", &order.id)
            .body(Full::new(Bytes::from(payload.to_string())))?;
        Ok(request)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, http::HeaderMap, Bytes)> {
        let exchange = async {
            let (head, body) = self.client.request(request).await.map(Response::into_parts)?;
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
            anyhow::Ok((head.status, head.headers, body.to_bytes()))
        };
        tokio::time::timeout(REQUEST_LIMIT, exchange).await.context("no answer in time")?
    }

    fn lock(&self) -> MutexGuard<'_, Receipts> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::standin::{Keep, Reason, Script, Settings, Standin, Trouble};

    /// A stand-in as the ingest listener. It speaks the same Invoke, but recognises no duplicates.
    fn door() -> (Standin, Clock) {
        let clock = Clock::seeded(UnixMillis(0), 3);
        let settings = Settings { keep: Keep::Entries, id_field: Some(ID_FIELD.to_owned()) };
        (Standin::start_with(clock.clone(), settings).unwrap(), clock)
    }

    fn sender(standin: &Standin, clock: &Clock, events: u32) -> (Arc<Sender>, watch::Sender<Vec<SocketAddr>>) {
        let (door, door_now) = watch::channel(vec![standin.address()]);
        let orders = orders(events, &["demo-01".to_owned(), "demo-02".to_owned()], clock);
        (Arc::new(Sender::new(orders, door_now, clock.clone())), door)
    }

    #[tokio::test]
    async fn every_event_is_sent_until_it_is_accepted() {
        let (standin, clock) = door();
        standin.default_script(
            Script::default()
                .chance(0.1, Trouble::throttle(Reason::CallerRateLimitExceeded))
                .chance(0.1, Trouble::error(500, "ServiceException", "no"))
                .chance(0.1, Trouble::LostReply),
        );
        let (sender, _door) = sender(&standin, &clock, 200);
        Arc::clone(&sender).send_all().await.unwrap();
        assert_eq!(sender.accepted_now(), 200);
        let ids = standin.ledger().read(|book| book.taken_ids().keys().cloned().collect::<Vec<_>>());
        assert_eq!(sender.receipts(|receipts| receipts.accepted.keys().cloned().collect::<Vec<_>>()), ids);
    }

    #[tokio::test]
    async fn a_refusal_for_good_ends_the_sending() {
        let (standin, clock) = door();
        standin.default_script(Script::always(Trouble::error(400, "ValidationException", "never")));
        let (sender, _door) = sender(&standin, &clock, 3);
        let why = sender.send_all().await.unwrap_err().to_string();
        assert!(why.contains("400") && why.contains("never"), "{why}");
    }

    #[tokio::test]
    async fn the_client_follows_the_door_to_its_new_address_with_the_same_keys() {
        let (first, clock) = door();
        let (sender, door_address) = sender(&first, &clock, 50);
        first.outage(true);
        let mut sending = JoinSet::new();
        sending.spawn(Arc::clone(&sender).send_all());
        let (second, _) = door();
        door_address.send_replace(vec![second.address()]);
        sending.join_next().await.unwrap().unwrap().unwrap();
        let keys = second.ledger().read(|book| {
            book.taken().map(|entry| entry.headers["idempotency-key"].to_str().unwrap().to_owned()).collect::<Vec<_>>()
        });
        assert_eq!(keys.len(), 50 + 5, "every tenth is followed by a repeat");
        assert!(keys.contains(&"demo-0000049".to_owned()));
    }

    #[tokio::test]
    async fn a_repeat_that_is_not_recognised_is_counted_as_such() {
        let (standin, clock) = door();
        let (sender, _door) = sender(&standin, &clock, 100);
        Arc::clone(&sender).send_all().await.unwrap();
        let counts = sender.receipts(|receipts| receipts.counts.clone());
        assert_eq!(counts, Counts { repeats: 10, repeats_recognised: 0, retries_recognised: 0 });
        assert_eq!(standin.ledger().read(|book| book.taken_ids().values().sum::<u64>()), 110);
    }

    #[tokio::test]
    async fn the_same_seed_orders_the_same_events() {
        let functions = (0..5).map(|n| format!("f{n}")).collect::<Vec<_>>();
        let of = |seed| orders(50, &functions, &Clock::seeded(UnixMillis(0), seed));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
