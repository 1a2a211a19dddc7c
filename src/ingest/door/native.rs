//! The native door: accepts events as JSON, one or many, and tells where an event is.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::request::Parts as Head;
use http::{Method, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Body;
use serde::Serialize;

use super::{Answer, CROWDED_RETRY, Door, UNAVAILABLE_RETRY};
use crate::event::EventId;
use crate::event::name::percent_decode;
use crate::handoff::protocol::Greeting;
use crate::ingest::admission::{BESIDE_BODY_BYTES, EVENT_BYTES, Permit, SLOT_BYTES};
use crate::ingest::client::Caller;
use crate::ingest::events_api::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, EventAnswer, EventState, RefusedEvent, is_batch, lines, read_event,
};
use crate::ingest::passthrough::Passthrough;
use crate::ingest::refusal::Refusal;
use crate::ingest::{body, content, openapi};
use crate::outbox::Outbox;
use crate::past;

/// The memory of the largest batch without its text, in bytes.
const BATCH_BESIDE_TEXT: u64 = BESIDE_BODY_BYTES + BATCH_EVENTS_MAX as u64 * EVENT_BYTES;

impl<O: Outbox, P: Passthrough> Door<O, P> {
    /// Answers a request below `/v1/`.
    pub(super) async fn native<B: Body>(
        &self,
        head: &Head,
        caller: &Caller,
        body: Pin<&mut B>,
    ) -> Result<Answer, Refusal> {
        let route = head.uri.path().strip_prefix("/v1/").ok_or(Refusal::UnknownOperation)?;
        let of = |method: &Method, allow: &'static str| {
            if head.method == *method { Ok(()) } else { Err(Refusal::MethodNotAllowed { allow }) }
        };
        let admit = || self.shared.admission.admit(head).map_err(|crowded| self.crowded(crowded));
        match route.split_once('/') {
            None if route == "events" => {
                of(&Method::POST, "POST")?;
                self.take_events(head, caller, body, admit()?).await
            }
            None if route == "openapi.json" => {
                of(&Method::GET, "GET")?;
                caller.prove(b"").map_err(Refusal::Unidentified)?;
                Ok(json(StatusCode::OK, Bytes::from_static(openapi::document().as_bytes()), admit()?))
            }
            None if route == "handoff" => {
                of(&Method::POST, "GET, POST").or_else(|refused| of(&Method::GET, "GET, POST").map_err(|_| refused))?;
                let party = self.receiver(caller)?;
                if head.method == Method::GET {
                    caller.prove(b"").map_err(Refusal::Unidentified)?;
                    return Ok(json(StatusCode::OK, written(&Greeting::of(party)), admit()?));
                }
                self.take_handed(party, head, caller, body, admit()?).await
            }
            Some(("handoff", "keys")) => {
                of(&Method::POST, "POST")?;
                self.take_keys(self.receiver(caller)?, head, caller, body, admit()?).await
            }
            Some(("events", id)) => {
                of(&Method::GET, "GET")?;
                caller.prove(b"").map_err(Refusal::Unidentified)?;
                self.show_event(id, head.uri.query(), caller, admit()?).await
            }
            Some(_) | None => Err(Refusal::UnknownOperation),
        }
    }

    async fn show_event(
        &self,
        id: &str,
        query: Option<&str>,
        caller: &Caller,
        permit: Permit,
    ) -> Result<Answer, Refusal> {
        let id: EventId = id.parse().map_err(|_| Refusal::content("not the id of an event".to_owned()))?;
        let wait = query.map(wait_of).transpose()?.flatten();
        let too_many = || Refusal::TooManyWait { retry_after: self.retry_after(CROWDED_RETRY) };
        // Registered before the first look, so that no end is missed.
        let waiter = wait.map(|wait| self.past.waiter(id).map(|waiter| (wait, waiter)).ok_or_else(too_many));
        let waiter = waiter.transpose()?;
        let mut state = self.state_of(id, caller).await?;
        if let Some((mut wait, mut waiter)) = waiter {
            while !wait.is_zero() && !state.is_final() {
                wait = waiter.woken(wait).await;
                state = self.state_of(id, caller).await?;
            }
        }
        Ok(json(StatusCode::OK, written(&state), permit))
    }

    /// Where an event is, or what became of it. Callers that may not use its function get 404.
    async fn state_of(&self, id: EventId, caller: &Caller) -> Result<EventState, Refusal> {
        let unknown = || Refusal::EventUnknown { id };
        match self.outbox.find_head(id).await {
            Ok(Some(found)) => {
                self.may_use(caller, &found.event.function.name).map_err(|_| unknown())?;
                Ok(found.into())
            }
            Ok(None) => {
                let end = self.past.end_of_gone(id, &self.shared.clock).await.ok_or_else(unknown)?;
                self.may_use(caller, &end.function).map_err(|_| unknown())?;
                Ok(end.into())
            }
            Err(error) => Err(self.unavailable(&error)),
        }
    }

    /// Reads the body of a batch, and who sent it.
    pub(super) async fn batch<B: Body>(
        &self,
        head: &Head,
        caller: &Caller,
        body: Pin<&mut B>,
        permit: &mut Permit,
    ) -> Result<Bytes, Refusal> {
        content::is_plain(&head.headers)?;
        let settings = &self.shared.settings;
        // No more than fits at all: otherwise such a batch would be told to retry for ever.
        let room = usize::try_from(settings.request_bytes_max.saturating_sub(BATCH_BESIDE_TEXT) / 2);
        let limit = BATCH_BYTES_MAX.min(room.unwrap_or(usize::MAX));
        let bytes = body::read(body, limit, settings.body_timeout, permit)
            .await
            .map_err(|unread| self.unread(unread, |_| Refusal::BatchTooLarge { limit: format!("{limit} bytes") }))?;
        caller.prove(&bytes).map_err(Refusal::Unidentified)?;
        Ok(bytes)
    }

    async fn take_events<B: Body>(
        &self,
        head: &Head,
        caller: &Caller,
        body: Pin<&mut B>,
        mut permit: Permit,
    ) -> Result<Answer, Refusal> {
        let settings = &self.shared.settings;
        let bytes = self.batch(head, caller, body, &mut permit).await?;
        let text = std::str::from_utf8(&bytes).map_err(|error| Refusal::content(error.to_string()))?;
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        // The parsed fields take at most as much as the text, besides the fixed memory of each event.
        permit.grow(bytes.len() as u64).map_err(|crowded| self.crowded(crowded))?;
        if !is_batch(content_type, text) {
            let draft = read_event(text, &bytes, Some(&head.headers), self.shared.clock.now(), settings)?;
            self.may_use(caller, &draft.function.name)?;
            let (accepted, permit) = self.append(draft, permit).await?;
            return Ok(accepted.native_response(permit));
        }
        let events = events_in(text)?;
        if events == 0 {
            return Err(Refusal::content("there is no event in the batch".to_owned()));
        }
        if head.headers.contains_key("idempotency-key") {
            let why = "Idempotency-Key is for a single event: give idempotency_key in each line of a batch";
            return Err(Refusal::content(why.to_owned()));
        }
        permit.grow(events as u64 * EVENT_BYTES).map_err(|crowded| self.crowded(crowded))?;
        let (answers, permit) = self.append_batch(text, &bytes, caller, permit).await?;
        Ok(batch_response(&answers, permit))
    }

    /// Stores the valid events of a batch in one commit. Returns an answer for each event, in order. An error means that
    /// none is stored.
    async fn append_batch(
        &self,
        text: &str,
        bytes: &Bytes,
        caller: &Caller,
        permit: Permit,
    ) -> Result<(Vec<EventAnswer>, Permit), Refusal> {
        let now = self.shared.clock.now();
        let mut events = Vec::new();
        let mut sources = Vec::new();
        for line in lines(text) {
            let draft = read_event(line, bytes, None, now, &self.shared.settings);
            let draft = draft.and_then(|draft| self.may_use(caller, &draft.function.name).map(|()| draft));
            sources.push(draft.and_then(|draft| self.carry(self.event(draft)?)).map(|event| {
                let source = (event.id, event.key.source, event.function.name.clone());
                events.push(event);
                source
            }));
        }
        let started = self.shared.clock.instant();
        let (appended, permit) = self.append_all(events, permit).await?;
        self.shared.metrics.outbox_append_seconds.observe(started.elapsed().as_secs_f64());
        let mut appended = appended.into_iter();
        let unsaid = || Refusal::Unavailable {
            why: "the outbox did not say whether it stored the event".to_owned(),
            retry_after: self.retry_after(UNAVAILABLE_RETRY),
        };
        let answers = sources.into_iter().map(|source| {
            let accepted = source.and_then(|(id, source, function)| {
                self.accepted(appended.next().ok_or_else(unsaid)?, id, source, &function)
            });
            match accepted {
                Ok(accepted) => EventAnswer::Accepted(accepted.into()),
                Err(refusal) => {
                    self.note(&refusal);
                    self.note_refused(caller, &refusal);
                    EventAnswer::Refused(RefusedEvent::from(&refusal))
                }
            }
        });
        Ok((answers.collect(), permit))
    }
}

/// The number of lines of a batch. Fails if there are too many.
pub(super) fn events_in(text: &str) -> Result<usize, Refusal> {
    let events = lines(text).take(BATCH_EVENTS_MAX + 1).count();
    if events > BATCH_EVENTS_MAX {
        return Err(Refusal::BatchTooLarge { limit: format!("{BATCH_EVENTS_MAX} events") });
    }
    Ok(events)
}

/// How long the query wants to wait. Other parameters mean nothing here.
fn wait_of(query: &str) -> Result<Option<Duration>, Refusal> {
    let text = query.split('&').find_map(|pair| pair.strip_prefix("wait="));
    text.map(|text| past::read_wait(&percent_decode(text))).transpose().map_err(Refusal::content)
}

/// A line for each event. The status is 202 if all were accepted, else 207, which means: read the lines.
fn batch_response(answers: &[EventAnswer], permit: Permit) -> Answer {
    let all = answers.iter().all(EventAnswer::is_accepted);
    let mut body = Vec::new();
    for answer in answers {
        body.extend_from_slice(&written(answer));
        body.push(b'\n');
    }
    let mut response = json(if all { StatusCode::ACCEPTED } else { StatusCode::MULTI_STATUS }, body.into(), permit);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

pub(super) fn written(value: &impl Serialize) -> Bytes {
    // Serialising structs of texts and numbers cannot fail.
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

/// The permit is held until the client has read the answer, because the answer is in memory until then.
pub(super) fn json(status: StatusCode, body: Bytes, mut permit: Permit) -> Answer {
    permit.keep(SLOT_BYTES + body.len() as u64);
    let mut response = Response::new(Either::Left(Full::new(Bytes::from_owner(Untaken { body, _permit: permit }))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer's body with its reserved memory.
struct Untaken {
    body: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for Untaken {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// Where the native door differs from Lambda's: a conflict of keys is 422 (draft-ietf-httpapi-idempotency-key-header), and
/// a caller that is not known gets 401.
pub(super) fn native_refusal(refusal: &Refusal, mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    *response.status_mut() = native_status(refusal, response.status());
    if response.status() == StatusCode::UNAUTHORIZED {
        // RFC 9110, section 11.6.1.
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

pub(super) fn native_status(refusal: &Refusal, lambdas: StatusCode) -> StatusCode {
    if matches!(refusal, Refusal::Conflict { .. }) {
        StatusCode::UNPROCESSABLE_ENTITY
    } else if matches!(refusal, Refusal::Unidentified(_)) {
        StatusCode::UNAUTHORIZED
    } else {
        lambdas
    }
}

impl From<&Refusal> for RefusedEvent {
    fn from(refusal: &Refusal) -> Self {
        let first = if let Refusal::Conflict { first, .. } = refusal { Some(*first) } else { None };
        let (status, code) = refusal.status_and_code();
        let millis = |wait: std::time::Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Self {
            status: native_status(refusal, status).as_u16(),
            code: code.to_owned(),
            message: refusal.message(),
            first,
            retry_after_ms: refusal.retry_after().map(millis),
        }
    }
}
