//! Handles one request on the ingest listener, from its head to its answer.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{EXPECT, HeaderName, HeaderValue};
use http::request::Parts as Head;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::clock::{Clock, UnixMillis};
use crate::event::check::check_payload;
use crate::event::{Event, EventId, FunctionName, KeySource, PAYLOAD_BYTES_MAX};
use crate::hop::Hop;
use crate::http::handover::ToItsEnd;
use crate::http::host::Hosts;
use crate::ingest::Settings;
use crate::ingest::admission::{Admission, Crowded, Permit};
use crate::ingest::body::{self, Unread};
use crate::ingest::client::Caller;
use crate::ingest::events_api::{AcceptedEvent, Draft};
use crate::ingest::lambda_api::{InvocationType, Invoke, read_head};
use crate::ingest::passthrough::{self, Gate, Off, Passed, Passthrough};
use crate::ingest::refusal::{EVENT_ID, REQUEST_ID, Refusal, header_value};
use crate::ingest::rules::Rules;
use crate::ingest::{content, key};
use crate::metrics::Metrics;
use crate::outbox::{Appended, Error, Outbox};
use crate::past::Past;
use crate::trace;

mod browser;

mod handed;

mod identity;

mod native;

mod pass;

pub use handed::Reception;
use identity::Known;
use native::{json, native_refusal, written};

pub const KEY_SOURCE: HeaderName = HeaderName::from_static("x-sendoff-key-source");
pub const DUPLICATE: HeaderName = HeaderName::from_static("x-sendoff-duplicate");

/// When a refused client should retry: after this time or up to twice as long, so that not all retry at once.
const CROWDED_RETRY: Duration = Duration::from_millis(500);
const FULL_RETRY: Duration = Duration::from_secs(2);
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);

/// Payloads up to this many bytes are parsed concurrently. Larger ones are parsed one at a time.
const TOGETHER_BYTES_MAX: usize = 64 * 1024;

/// The least time between two log lines about a change between accepting and refusing.
const HEALTH_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The body of an answer: our own, or streamed from Lambda.
pub type Answer = Response<Either<Full<Bytes>, Passed>>;

/// Stage 1. Cheap to clone. All clones share their state.
#[derive(Clone)]
pub struct Door<O, P = Off> {
    outbox: O,
    /// `None` refuses calls other than Events.
    gate: Option<Gate<P>>,
    rules: Arc<Rules>,
    hosts: Arc<Hosts>,
    hop: Hop,
    known: Known,
    /// `None` takes no hand-offs.
    reception: Option<Arc<Reception>>,
    shared: Arc<Shared>,
    /// Runs the appends whose clients have left.
    leftovers: TaskTracker,
    /// Knows what became of events that have left the outbox.
    past: Past,
}

struct Shared {
    clock: Clock,
    metrics: Arc<Metrics>,
    settings: Settings,
    admission: Admission,
    /// Held while a large payload is searched for its key.
    search: Mutex<()>,
    health: HealthLog,
}

/// An accepted event.
struct Accepted {
    /// The event's id, or the first event's for a repeat.
    id: EventId,
    source: KeySource,
    repeat: bool,
}

impl<O: Outbox> Door<O> {
    pub fn new(outbox: O, clock: Clock, metrics: Arc<Metrics>, settings: Settings) -> Self {
        let admission = Admission::new(settings.request_bytes_max);
        let (search, health) = (Mutex::default(), HealthLog::default());
        let shared = Arc::new(Shared { clock, metrics, settings, admission, search, health });
        let (rules, hosts, hop, leftovers) = (Arc::default(), Arc::default(), Hop::nameless(), TaskTracker::new());
        let (known, reception, past) = Default::default();
        Self { outbox, gate: None, rules, hosts, hop, known, reception, shared, leftovers, past }
    }

    /// Passes calls that are not Events to Lambda, within `limits`. Without limits, refuses them.
    pub fn passing<P: Passthrough>(self, passthrough: P, limits: Option<passthrough::Limits>) -> Door<O, P> {
        let gate = limits.map(|limits| Gate::new(passthrough, limits));
        let Self { outbox, gate: _, rules, hosts, hop, known, reception, shared, leftovers, past } = self;
        Door { outbox, gate, rules, hosts, hop, known, reception, shared, leftovers, past }
    }

    /// Tells what became of events that have left the outbox.
    pub fn recalling(self, past: Past) -> Self {
        Self { past, ..self }
    }

    /// Sets the rules for keys.
    pub fn ruled(self, rules: Rules) -> Self {
        Self { rules: Arc::new(rules), ..self }
    }

    /// Runs appends whose clients have left as tasks of `leftovers`, so that a drain can wait for them.
    pub fn leaving(self, leftovers: TaskTracker) -> Self {
        Self { leftovers, ..self }
    }
}

impl<O: Outbox, P: Passthrough> Door<O, P> {
    /// Sets the host names under which requests that a browser could send are answered.
    pub fn called(self, hosts: Hosts) -> Self {
        Self { hosts: Arc::new(hosts), ..self }
    }

    /// Sets the mark that distinguishes this process's calls from those of other sendoffs. Both are refused.
    pub fn marked(self, hop: Hop) -> Self {
        Self { hop, ..self }
    }

    /// Makes the handler that [`crate::http::Server`] serves.
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

    /// Answers one request. Answers 202 only once its event is on stable storage (G1).
    ///
    /// The future may be dropped at every await. hyper drops it when an HTTP/2 client resets its stream; an HTTP/1 client
    /// that leaves is noticed only at the answer. Before the append, nothing is stored. From the append on, the outbox alone
    /// decides. A client that saw no answer repeats the request and learns the outcome (G3). The append continues without
    /// the client and keeps its reserved memory ([`ToItsEnd`]). Only a count in the metrics is lost.
    pub async fn handle<B: Body>(&self, request: Request<B>) -> Answer {
        let span = trace::request(request.headers());
        let answer = self.answer(request).instrument(span.clone()).await;
        span.record("status", answer.status().as_u16());
        answer
    }

    async fn answer<B: Body>(&self, request: Request<B>) -> Answer {
        let (mut head, body) = request.into_parts();
        let mut body = pin!(body);
        let (caller, unidentified) = match self.caller(&mut head) {
            Ok(caller) => (caller, None),
            Err(refusal) => (Caller::Anyone, Some(refusal)),
        };
        let native = head.uri.path().starts_with("/v1/");
        let answer = if let Err(refusal) = browser::check(&head, &self.hosts) {
            Err(refusal)
        } else if let Some(by) = self.hop.find(&head.headers) {
            Err(Refusal::Looped { by })
        } else if let Some(refusal) = unidentified {
            Err(refusal)
        } else if native {
            self.native(&head, &caller, body.as_mut()).await
        } else {
            self.lambda(&head, &caller, body.as_mut()).await
        };
        match answer {
            Ok(answer) => answer,
            Err(refusal) => {
                self.note(&refusal);
                self.note_refused(&caller, &refusal);
                // A client that waits for "100 Continue" has not begun to send. Reading would ask it to.
                let waits = head.headers.contains_key(EXPECT);
                if refusal.is_of_a_stranger() && !waits {
                    body::discard_briefly(body).await;
                } else if refusal.leaves_body() && !waits {
                    // Only while this takes no memory from others.
                    if let Ok(permit) = self.shared.admission.admit(&head) {
                        body::discard(body, self.shared.settings.body_timeout, &permit).await;
                    }
                }
                let request_id = uuid::Builder::from_random_bytes(self.shared.clock.random_bits().to_be_bytes());
                let response = refusal.response(&request_id.into_uuid().to_string());
                if native { native_refusal(&refusal, response) } else { response }.map(Either::Left)
            }
        }
    }

    async fn lambda<B: Body>(&self, head: &Head, caller: &Caller, body: Pin<&mut B>) -> Result<Answer, Refusal> {
        let invoke = match (read_head(head, &self.shared.settings), &self.gate) {
            (Err(Refusal::UnknownOperation), Some(gate)) if gate.limits.others.take(&head.method, head.uri.path()) => {
                self.may_pass(caller, head)?;
                return self.pass_other(gate, head, caller, body).await;
            }
            (read, _) => read?,
        };
        self.may_invoke(caller, &invoke)?;
        match invoke.invocation_type {
            InvocationType::Event => Ok(self.accept(head, caller, invoke, body).await?.response().map(Either::Left)),
            InvocationType::RequestResponse | InvocationType::DryRun => self.pass(head, caller, invoke, body).await,
        }
    }

    async fn accept<B: Body>(
        &self,
        head: &Head,
        caller: &Caller,
        invoke: Invoke,
        body: Pin<&mut B>,
    ) -> Result<Accepted, Refusal> {
        let Shared { settings, admission, .. } = &*self.shared;
        content::is_plain(&head.headers)?;
        let limit = invoke.payload_max;
        let mut permit = admission.admit(head).map_err(|crowded| self.crowded(crowded))?;
        let payload = body::read(body, limit, settings.body_timeout, &mut permit)
            .await
            .map_err(|unread| self.unread(unread, |bytes| Refusal::PayloadTooLarge { bytes, limit: limit as u64 }))?;
        caller.prove(&payload).map_err(Refusal::Unidentified)?;
        check_payload(&payload)?;
        let Invoke { function, carried, keys, payload_max, .. } = invoke;
        let draft = Draft { function, carried, keys, payload, deliver_at: None, expires_at: None, payload_max };
        Ok(self.append(draft, permit).await?.0)
    }

    fn crowded(&self, crowded: Crowded) -> Refusal {
        Refusal::Crowded { crowded, retry_after: self.retry_after(CROWDED_RETRY) }
    }

    /// The refusal for a body that was not read.
    fn unread(&self, unread: Unread, too_large: impl FnOnce(Option<u64>) -> Refusal) -> Refusal {
        match unread {
            Unread::TooLarge(bytes) => too_large(bytes),
            Unread::Crowded(crowded) => self.crowded(crowded),
            Unread::Late => Refusal::BodyTimeout,
            Unread::Torn => Refusal::BodyTorn,
        }
    }

    /// Stores one event. Returns the permit once the outbox has answered.
    async fn append(&self, draft: Draft, mut permit: Permit) -> Result<(Accepted, Permit), Refusal> {
        let Shared { clock, metrics, .. } = &*self.shared;
        let started = clock.instant();
        if self.rules.of(&draft.function.name).inject.is_some() {
            // The payload with the key is a second copy besides the received one.
            permit.grow(draft.payload.len() as u64).map_err(|crowded| self.crowded(crowded))?;
        }
        let event = self.event(draft)?;
        // Some clients use one SDK invocation id for several calls. As nobody chose the id, a different payload is a different
        // event.
        let other = (event.key.source == KeySource::SdkInvocationId)
            .then(|| Event { key: key::mint(clock.random_bits()), ..event.clone() });
        let event = self.carry(event)?;
        let (id, mut source, function) = (event.id, event.key.source, event.function.name.clone());
        let (mut appended, mut permit) = self.append_one(event, permit).await?;
        if let (Appended::Conflict { .. }, Some(other)) = (&appended, other) {
            source = other.key.source;
            (appended, permit) = self.append_one(self.carry(other)?, permit).await?;
        }
        metrics.outbox_append_seconds.observe(started.elapsed().as_secs_f64());
        let accepted = self.accepted(appended, id, source, &function)?;
        trace::set_event(accepted.id);
        Ok((accepted, permit))
    }

    /// Makes an event of the draft and its key, accepted now.
    fn event(&self, draft: Draft) -> Result<Event, Refusal> {
        let clock = &self.shared.clock;
        let rule = self.rules.of(&draft.function.name);
        let accepted_at = clock.accepting();
        let _alone = rule.key.is_some().then(|| self.alone(draft.payload.len()));
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

    /// While this is held, no other large payload is parsed. A parsed payload takes up to 30 times its size.
    fn alone(&self, payload_bytes: usize) -> Option<MutexGuard<'_, ()>> {
        (payload_bytes > TOGETHER_BYTES_MAX).then(|| self.shared.search.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts the key where the function finds it.
    fn carry(&self, mut event: Event) -> Result<Event, Refusal> {
        let rule = self.rules.of(&event.function.name);
        let _alone = rule.inject.is_some().then(|| self.alone(event.payload.len()));
        rule.carry(&mut event, PAYLOAD_BYTES_MAX)?;
        Ok(event)
    }

    /// The answer for the result of an append.
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
                metrics.ingest_duplicates.with_label_values(&[label, source.as_str()]).inc();
                trace::accepted(first, label, true);
                Ok(Accepted { id: first, source, repeat: true })
            }
            Appended::Conflict { first } => Err(Refusal::Conflict { first, source }),
            Appended::Full(full) => {
                Err(Refusal::Full { why: full.to_string(), retry_after: self.retry_after(FULL_RETRY) })
            }
        }
    }

    async fn append_one(&self, event: Event, permit: Permit) -> Result<(Appended, Permit), Refusal> {
        let (mut appended, permit) = self.append_all(vec![event], permit).await?;
        let appended = appended.pop().ok_or_else(|| Refusal::Unavailable {
            why: "the outbox did not say whether it stored the event".to_owned(),
            retry_after: self.retry_after(UNAVAILABLE_RETRY),
        })?;
        Ok((appended, permit))
    }

    /// Appends the events. From here until the outbox has answered, their reserved memory belongs to the append.
    async fn append_all(&self, events: Vec<Event>, permit: Permit) -> Result<(Vec<Appended>, Permit), Refusal> {
        if events.is_empty() {
            return Ok((Vec::new(), permit));
        }
        let outbox = self.outbox.clone();
        let (appended, permit) =
            ToItsEnd::new(async move { (outbox.append(events).await, permit) }, &self.leftovers).await;
        Ok((appended.map_err(|error| self.unavailable(&error))?, permit))
    }

    /// A store that is away says itself when to come again.
    fn unavailable(&self, error: &Error) -> Refusal {
        let at_least = match error {
            Error::Away { retry_after, .. } => *retry_after,
            Error::Poisoned { .. } | Error::Closed | Error::Unreadable { .. } => UNAVAILABLE_RETRY,
        };
        Refusal::Unavailable { why: error.to_string(), retry_after: self.retry_after(at_least) }
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
                tracing::warn!(why, "refusing events: the outbox is full");
            }
            Refusal::Unavailable { why, .. } if health.changed(Health::Unavailable, clock) => {
                tracing::warn!(why, "refusing events: the outbox cannot store");
            }
            Refusal::UnknownOperation
            | Refusal::FromBrowser
            | Refusal::HostUnknown { .. }
            | Refusal::Looped { .. }
            | Refusal::MethodNotAllowed { .. }
            | Refusal::Unidentified(_)
            | Refusal::NotAllowed(_)
            | Refusal::BatchTooLarge { .. }
            | Refusal::EventUnknown { .. }
            | Refusal::TooManyWait { .. }
            | Refusal::Invalid(_)
            | Refusal::Encoded { .. }
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
            | Refusal::HandOffElsewhere { .. }
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

    /// The answer with the information of its headers as JSON.
    fn native_response(self, permit: Permit) -> Answer {
        let (head, _) = self.response().into_parts();
        let mut response = json(head.status, written(&AcceptedEvent::from(self)), permit);
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

/// The last logged health, and when it was logged. Limits the log to one line for a full outbox instead of one for each
/// request.
#[derive(Debug, Default)]
struct HealthLog {
    /// The time in milliseconds, with the health in the lowest two bits. 0 means accepting, never logged.
    said: AtomicU64,
}

impl HealthLog {
    /// Whether to log `health` now. Compares it with the last logged health, not the last seen one, so that a lasting state
    /// is logged in the end, however it flapped before.
    fn changed(&self, health: Health, clock: &Clock) -> bool {
        let said = self.said.load(Ordering::Relaxed);
        if said & 0b11 == health as u64 {
            return false;
        }
        let now = clock.steady();
        if said >> 2 != 0 && now.since(UnixMillis(said >> 2)) < HEALTH_LOG_INTERVAL {
            return false;
        }
        let news = now.0 << 2 | health as u64;
        self.said.compare_exchange(said, news, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests;
