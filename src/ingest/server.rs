//! The door: one request from its head to its answer.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{EXPECT, HeaderName, HeaderValue};
use http::request::Parts as Head;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use tracing::Instrument as _;

use crate::clock::{Clock, UnixMillis};
use crate::event::{Event, EventId, FunctionName, KeySource, PAYLOAD_BYTES_MAX};
use crate::hop::Hop;
use crate::http::host::Hosts;
use crate::ingest::Settings;
use crate::ingest::admission::Admission;
use crate::ingest::events_api::{AcceptedEvent, Draft};
use crate::ingest::lambda_api::{InvocationType, Invoke, check_payload, read_head};
use crate::ingest::passthrough::{self, Gate, Off, Passed, Passthrough};
use crate::ingest::refusal::{EVENT_ID, REQUEST_ID, Refusal, header_value};
use crate::ingest::rules::Rules;
use crate::ingest::{body, key};
use crate::metrics::Metrics;
use crate::outbox::{Appended, Error, Outbox};
use crate::trace;

mod browser;

mod native;

mod pass;

use native::{json, native_refusal, written};

pub const KEY_SOURCE: HeaderName = HeaderName::from_static("x-sendoff-key-source");
pub const DUPLICATE: HeaderName = HeaderName::from_static("x-sendoff-duplicate");

/// After how long a refused client should come back: at least this, and up to twice as long, so that not all come at once.
const CROWDED_RETRY: Duration = Duration::from_millis(500);
const FULL_RETRY: Duration = Duration::from_secs(2);
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);

/// How often the log may say that the door changed between accepting and refusing.
const HEALTH_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What the door answers: its own words, or what comes from Lambda.
pub type Answer = Response<Either<Full<Bytes>, Passed>>;

/// Stage 1. Cheap to clone; all clones are one door.
#[derive(Clone)]
pub struct Door<O, P = Off> {
    outbox: O,
    /// None: calls other than Events are refused.
    gate: Option<Gate<P>>,
    rules: Arc<Rules>,
    hosts: Arc<Hosts>,
    hop: Hop,
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    metrics: Arc<Metrics>,
    settings: Settings,
    admission: Admission,
    health: HealthLog,
}

/// What is answered with 202.
struct Accepted {
    /// The event's id, or the first event's for a repeat.
    id: EventId,
    source: KeySource,
    repeat: bool,
}

impl<O: Outbox> Door<O> {
    pub fn new(outbox: O, clock: Clock, metrics: Arc<Metrics>, settings: Settings) -> Self {
        let admission = Admission::new(settings.request_bytes_max);
        let shared = Shared { clock, metrics, settings, admission, health: HealthLog::default() };
        Self {
            outbox,
            gate: None,
            rules: Arc::default(),
            hosts: Arc::default(),
            hop: Hop::nameless(),
            shared: Arc::new(shared),
        }
    }

    /// The same door, through which calls that are not Events pass to Lambda; without limits none does.
    pub fn passing<P: Passthrough>(self, passthrough: P, limits: Option<passthrough::Limits>) -> Door<O, P> {
        let gate = limits.map(|limits| Gate::new(passthrough, limits));
        Door { outbox: self.outbox, gate, rules: self.rules, hosts: self.hosts, hop: self.hop, shared: self.shared }
    }

    /// The same door with rules for keys.
    pub fn ruled(self, rules: Rules) -> Self {
        Self { rules: Arc::new(rules), ..self }
    }
}

impl<O: Outbox, P: Passthrough> Door<O, P> {
    /// The same door, which answers to these names where a browser could be asking.
    pub fn called(self, hosts: Hosts) -> Self {
        Self { hosts: Arc::new(hosts), ..self }
    }

    /// The same door, which tells this process's own calls from those of other sendoffs. It takes neither.
    pub fn marked(self, hop: Hop) -> Self {
        Self { hop, ..self }
    }

    /// The door as [`crate::http::Server`] serves it.
    pub fn service(
        &self,
    ) -> impl Service<Request<Incoming>, Response = Answer, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static {
        let door = self.clone();
        service_fn(move |request| {
            let door = door.clone();
            async move { Ok(door.handle(request).await) }
        })
    }

    /// Answers one request; 202 only once its event is on stable storage (G1).
    ///
    /// Dropping the future is safe at every await (hyper does so when an HTTP/2 client resets its stream; an HTTP/1 client
    /// that closes its side is not noticed until the answer). Before the append, nothing is stored. From the append on,
    /// the outbox alone decides: it stores the event or does not, and a client that saw no answer repeats the request and
    /// is told which (G3). What is lost is a count in the metrics.
    pub async fn handle<B: Body>(&self, request: Request<B>) -> Answer {
        let span = trace::request(request.headers());
        let answer = self.answer(request).instrument(span.clone()).await;
        span.record("status", answer.status().as_u16());
        answer
    }

    async fn answer<B: Body>(&self, request: Request<B>) -> Answer {
        let (head, body) = request.into_parts();
        let mut body = pin!(body);
        let native = head.uri.path().starts_with("/v1/");
        let answer = if let Err(refusal) = browser::check(&head, &self.hosts) {
            Err(refusal)
        } else if let Some(by) = self.hop.find(&head.headers) {
            Err(Refusal::Looped { by })
        } else if native {
            self.native(&head, body.as_mut()).await
        } else {
            self.lambda(&head, body.as_mut()).await
        };
        match answer {
            Ok(answer) => answer,
            Err(refusal) => {
                self.note(&refusal);
                // A client that waits for "100 Continue" has not begun to send; reading would ask it to.
                if refusal.leaves_body() && !head.headers.contains_key(EXPECT) {
                    body::discard(body, self.shared.settings.body_timeout).await;
                }
                let request_id = uuid::Builder::from_random_bytes(self.shared.clock.random_bits().to_be_bytes());
                let response = refusal.response(&request_id.into_uuid().to_string());
                if native { native_refusal(&refusal, response) } else { response }.map(Either::Left)
            }
        }
    }

    async fn lambda<B: Body>(&self, head: &Head, body: Pin<&mut B>) -> Result<Answer, Refusal> {
        let invoke = read_head(head, &self.shared.settings)?;
        match invoke.invocation_type {
            InvocationType::Event => Ok(self.accept(invoke, body).await?.response().map(Either::Left)),
            InvocationType::RequestResponse | InvocationType::DryRun => self.pass(head, invoke, body).await,
        }
    }

    async fn accept<B: Body>(&self, invoke: Invoke, body: Pin<&mut B>) -> Result<Accepted, Refusal> {
        let Shared { settings, admission, .. } = &*self.shared;
        let limit = invoke.payload_max as u64;
        let expected = body.size_hint().exact().unwrap_or(limit);
        if expected > limit {
            return Err(Refusal::PayloadTooLarge { bytes: Some(expected), limit });
        }
        // Held until the answer is ready: until then the payload is in memory, here or in the outbox's queue.
        let _permit = admission
            .admit(expected)
            .map_err(|crowded| Refusal::Crowded { crowded, retry_after: self.retry_after(CROWDED_RETRY) })?;
        let payload = body::read(body, invoke.payload_max, settings.body_timeout).await?;
        check_payload(&payload)?;
        let Invoke { function, carried, keys, payload_max, .. } = invoke;
        self.append(Draft { function, carried, keys, payload, deliver_at: None, expires_at: None, payload_max }).await
    }

    async fn append(&self, draft: Draft) -> Result<Accepted, Refusal> {
        let Shared { clock, metrics, .. } = &*self.shared;
        let started = clock.instant();
        let event = self.event(draft)?;
        // Some clients use one SDK invocation id for several calls. Nobody chose that id, so another payload is another event.
        let other = (event.key.source == KeySource::SdkInvocationId)
            .then(|| Event { key: key::mint(clock.random_bits()), ..event.clone() });
        let event = self.carry(event)?;
        let (id, mut source, function) = (event.id, event.key.source, event.function.name.clone());
        let mut appended = self.append_one(event).await?;
        if let (Appended::Conflict { .. }, Some(other)) = (&appended, other) {
            source = other.key.source;
            appended = self.append_one(self.carry(other)?).await?;
        }
        metrics.outbox_append_seconds.observe(started.elapsed().as_secs_f64());
        let accepted = self.accepted(appended, id, source, &function)?;
        trace::is_for(accepted.id);
        Ok(accepted)
    }

    /// The event that a draft becomes now, with its key.
    fn event(&self, draft: Draft) -> Result<Event, Refusal> {
        let clock = &self.shared.clock;
        let rule = self.rules.of(&draft.function.name);
        let accepted_at = clock.now();
        Ok(Event {
            id: EventId::mint(accepted_at, clock.random_bits(), &draft.function.name),
            key: draft.keys.choose(&draft.payload, rule.key.as_ref(), || clock.random_bits())?,
            function: draft.function,
            carried: draft.carried,
            payload: draft.payload,
            accepted_at,
            deliver_at: draft.deliver_at,
            expires_at: draft.expires_at,
            redrives: 0,
        })
    }

    /// Puts the key where the function finds it.
    fn carry(&self, mut event: Event) -> Result<Event, Refusal> {
        self.rules.of(&event.function.name).carry(&mut event, PAYLOAD_BYTES_MAX)?;
        Ok(event)
    }

    /// What an append means for its client.
    fn accepted(
        &self,
        appended: Appended,
        id: EventId,
        source: KeySource,
        function: &FunctionName,
    ) -> Result<Accepted, Refusal> {
        let metrics = &self.shared.metrics;
        match appended {
            Appended::Stored => {
                self.note_stored(function);
                trace::accepted(id, metrics.function_label(function), false);
                Ok(Accepted { id, source, repeat: false })
            }
            Appended::Repeat { first } => {
                let label = metrics.function_label(function);
                metrics.ingest_repeats.with_label_values(&[label, source.as_str()]).inc();
                trace::accepted(first, label, true);
                Ok(Accepted { id: first, source, repeat: true })
            }
            Appended::Conflict { first } => Err(Refusal::Conflict { first, source }),
            Appended::Full(full) => {
                Err(Refusal::Full { why: full.to_string(), retry_after: self.retry_after(FULL_RETRY) })
            }
        }
    }

    async fn append_one(&self, event: Event) -> Result<Appended, Refusal> {
        self.append_all(vec![event]).await?.pop().ok_or_else(|| Refusal::Unavailable {
            why: "the outbox did not say whether it stored the event".to_owned(),
            retry_after: self.retry_after(UNAVAILABLE_RETRY),
        })
    }

    async fn append_all(&self, events: Vec<Event>) -> Result<Vec<Appended>, Refusal> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        self.outbox.append(events).await.map_err(|error| match error {
            Error::Poisoned { .. } | Error::Closed => {
                Refusal::Unavailable { why: error.to_string(), retry_after: self.retry_after(UNAVAILABLE_RETRY) }
            }
        })
    }

    fn retry_after(&self, at_least: Duration) -> Duration {
        at_least + self.shared.clock.jitter(at_least)
    }

    fn note_stored(&self, function: &FunctionName) {
        let Shared { clock, metrics, health, .. } = &*self.shared;
        metrics.ingest_accepted.with_label_values(&[metrics.function_label(function)]).inc();
        if health.changed(Health::Accepting, clock) {
            tracing::info!("accepting events again");
        }
    }

    fn note(&self, refusal: &Refusal) {
        let Shared { clock, metrics, health, .. } = &*self.shared;
        let reason = refusal.reason();
        metrics.ingest_refused.with_label_values(&[reason]).inc();
        tracing::debug!(reason, "request refused");
        match refusal {
            Refusal::Full { why, .. } if health.changed(Health::Full, clock) => {
                tracing::warn!(why, "refusing events: no room");
            }
            Refusal::Unavailable { why, .. } if health.changed(Health::Unavailable, clock) => {
                tracing::warn!(why, "refusing events: the outbox cannot store");
            }
            Refusal::UnknownOperation
            | Refusal::FromBrowser
            | Refusal::HostUnknown { .. }
            | Refusal::Looped { .. }
            | Refusal::MethodNotAllowed { .. }
            | Refusal::BatchTooLarge { .. }
            | Refusal::EventUnknown { .. }
            | Refusal::Validation(_)
            | Refusal::QualifierMismatch
            | Refusal::InvalidContent(_)
            | Refusal::PayloadTooLarge { .. }
            | Refusal::CallTooLarge { .. }
            | Refusal::ModeNotSupported { .. }
            | Refusal::Crowded { .. }
            | Refusal::CallsInFlight { .. }
            | Refusal::NotPassed { .. }
            | Refusal::AnswerLost { .. }
            | Refusal::CallerGone
            | Refusal::BodyTimeout
            | Refusal::BodyTorn
            | Refusal::Conflict { .. }
            | Refusal::Full { .. }
            | Refusal::Unavailable { .. } => {}
        }
    }
}

impl Accepted {
    fn response(&self) -> Response<Full<Bytes>> {
        let id = header_value(&self.id.to_string());
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::ACCEPTED;
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id.clone());
        headers.insert(EVENT_ID, id);
        headers.insert(KEY_SOURCE, HeaderValue::from_static(self.source.as_str()));
        if self.repeat {
            headers.insert(DUPLICATE, HeaderValue::from_static("true"));
        }
        response
    }

    /// The same with what the headers say as JSON.
    fn native_response(self) -> Answer {
        let (head, _) = self.response().into_parts();
        let mut response = json(head.status, written(&AcceptedEvent::from(self)));
        response.headers_mut().extend(head.headers);
        response
    }
}

impl From<Accepted> for AcceptedEvent {
    fn from(accepted: Accepted) -> Self {
        let Accepted { id, source, repeat } = accepted;
        Self { status: StatusCode::ACCEPTED.as_u16(), id, duplicate: repeat, key_source: source }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Accepting,
    Full,
    Unavailable,
}

/// What the log said last about the door, and when: a full outbox is a line in the log, not one for each request.
#[derive(Debug, Default)]
struct HealthLog {
    /// The time in milliseconds, with the health in the lowest two bits. 0: accepting, said never.
    said: AtomicU64,
}

impl HealthLog {
    /// Whether to log now that the door's health is `health`. Compares with what was logged, not with what was last
    /// seen, so that a state which lasts is told in the end, however it flapped before.
    fn changed(&self, health: Health, clock: &Clock) -> bool {
        let said = self.said.load(Ordering::Relaxed);
        if said & 0b11 == health as u64 {
            return false;
        }
        let now = clock.now();
        if said >> 2 != 0 && now.since(UnixMillis(said >> 2)) < HEALTH_LOG_INTERVAL {
            return false;
        }
        let news = now.0 << 2 | health as u64;
        self.said.compare_exchange(said, news, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests;
