//! One request of any bytes at the whole door, in front of an outbox in memory. Panics if the door does, if it says that bad
//! input is its own fault, or if what it answers and what is stored do not agree.
//!
//! The fuzz target calls this, and so does `tests/fuzz.rs`, which keeps it compiling on the stable compiler.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use sendoff::clock::{Clock, UnixMillis};
use sendoff::event::name::Home;
use sendoff::event::{Event, EventId};
use sendoff::ingest::Settings;
use sendoff::ingest::door::Door;
use sendoff::ingest::rules::{KeyExpression, Rule, Rules};
use sendoff::ingest::sigv4::{Claim, sha256};
use sendoff::metrics::Metrics;
use sendoff::outbox::handoff::{Adopted, Handed};
use sendoff::outbox::{
    Appended, Census, Changes, Error, Found, Health, History, LaneNews, Lease, LeaseWant, Leases, Outbox, Place,
    Settlement, Unsettled,
};

/// The event that is there before each request, so that a key can be another's.
const TAKEN: &[u8] =
    b"POST /v1/events HTTP/1.1\n\n{\"function\":\"orders\",\"payload\":1,\"idempotency_key\":\"taken\"}";

/// What a request is read with; built once, as making metrics takes longer than a request.
pub struct Bench {
    runtime: tokio::runtime::Runtime,
    door: Door<Kept>,
    kept: Kept,
}

impl Bench {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let kept = Kept::default();
        let (clock, metrics) = (Clock::seeded(UnixMillis(1_790_000_000_000), 7), Metrics::new().expect("metrics"));
        let key = KeyExpression::parse("[order.id, powertools_json(body).id]").expect("an expression");
        let rule = Rule { key: Some(key), durable: true, inject: Some("sent_by".to_owned()) };
        let rules = Rules { default: Rule::default(), functions: vec![("ruled*".to_owned(), rule)] };
        let door = Door::new(kept.clone(), clock, Arc::new(metrics), settings()).ruled(rules);
        let bench = Self { runtime, door, kept };
        assert_eq!(bench.check(TAKEN), Some(202));
        bench
    }

    /// `input` is a method and a target, a line of each header, an empty line, and a body; lines end with `\n`, and a `\r`
    /// before it is left out. What is no HTTP never reaches the door. Gives the status, if it was asked at all.
    pub fn check(&self, input: &[u8]) -> Option<u16> {
        let request = read(input)?;
        if let Some((head, ())) = read(input).map(|request| request.map(drop).into_parts()) {
            // No door of this kind verifies signatures; reading them must not panic either.
            let skew = Duration::from_secs(u64::from(u32::MAX));
            if let Ok(Some(claim)) = Claim::read(&head, UnixMillis(1_790_000_000_000), skew) {
                assert!(!claim.holds(b"a secret that nobody has signed with", &sha256(input)));
            }
        }
        let before = self.kept.forget_all_but_the_first();
        let native = request.uri().path().starts_with("/v1/");
        let answer = self.runtime.block_on(async {
            let (head, body) = self.door.handle(request).await.into_parts();
            (head, body.collect().await.map(|body| body.to_bytes()).unwrap_or_default())
        });
        let (head, body) = answer;
        let (status, stored) = (head.status.as_u16(), self.kept.len() - before);
        assert!(status < 500, "{status}: {}", String::from_utf8_lossy(&body));
        assert!(native || head.headers.contains_key("x-amzn-requestid"), "{status} without a request's id");
        let accepted = match status {
            202 | 207 if native => accepted_of(&body),
            202 => usize::from(!head.headers.contains_key("x-sendoff-duplicate")),
            _ => 0,
        };
        assert_eq!(accepted, stored, "{status}: {}", String::from_utf8_lossy(&body));
        Some(status)
    }
}

fn read(input: &[u8]) -> Option<Request<Full<Bytes>>> {
    let (head, body) = match input.windows(2).position(|two| two == b"\n\n") {
        Some(at) => (&input[..at], &input[at + 2..]),
        None => (input, &[][..]),
    };
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut start = lines.next()?.splitn(3, |byte| *byte == b' ');
    let mut request = Request::builder().method(start.next()?).uri(start.next()?);
    for line in lines {
        if let Some(colon) = line.iter().position(|byte| *byte == b':') {
            request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
        }
    }
    request.body(Full::from(Bytes::copy_from_slice(body))).ok()
}

/// Events that an answer of the native door says are new: of one event, or of each line.
fn accepted_of(answer: &[u8]) -> usize {
    let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let new = lines.map(|line| serde_json::from_slice::<serde_json::Value>(line).expect("a line of JSON"));
    new.filter(|line| line["status"] == 202 && line["duplicate"] == false).count()
}

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        connections_max: 1,
        request_bytes_max: 64 << 20,
        headers_max: 64,
        header_bytes_max: 16 << 10,
        header_timeout: second,
        body_timeout: second,
        home: Home { region: Some("eu-central-1".to_owned()), account_id: Some("123456789012".to_owned()) },
    }
}

/// Keeps events in memory, and knows their keys.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Event>>>);

impl Kept {
    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many are left: none before there was one.
    fn forget_all_but_the_first(&self) -> usize {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.truncate(1);
        events.len()
    }
}

impl Outbox for Kept {
    async fn append(&self, batch: Vec<Event>) -> Result<Vec<Appended>, Error> {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut appended = Vec::new();
        for event in batch {
            assert!((1..=255).contains(&event.key.value.chars().count()), "a key of its length");
            assert!(event.payload.len() <= 1_048_576, "a payload that Lambda takes");
            let is_same =
                |known: &&Event| known.key.value == event.key.value && known.function.name == event.function.name;
            appended.push(match events.iter().find(is_same) {
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

    async fn find(&self, id: EventId) -> Result<Option<Found>, Error> {
        let event = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|event| event.id == id).cloned();
        Ok(event.map(|event| Found {
            payload_bytes: event.payload.len(),
            event,
            history: History::default(),
            place: Place::Ready,
            leased: false,
        }))
    }

    async fn lease(&self, _: LeaseWant, _: Option<u64>) -> Result<Leases, Error> {
        Ok(Leases::default())
    }

    async fn settle(&self, _: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Unsettled> {
        Ok(Vec::new())
    }

    async fn adopt(&self, _: Vec<Handed>) -> Result<Vec<Adopted>, Error> {
        Err(Error::Closed)
    }

    async fn lanes(&self, _: u64) -> Result<LaneNews, Error> {
        Ok(LaneNews::default())
    }

    async fn census(&self) -> Result<Census, Error> {
        Ok(Census::default())
    }

    async fn changed(&self, _since: u64, _: Changes) {}

    fn health(&self) -> Health {
        Health::Well
    }

    async fn failed(&self) -> String {
        std::future::pending().await
    }
}
