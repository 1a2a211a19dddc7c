//! Hand-offs of other sendoffs: takes their events and their remembered keys.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts as Head;
use hyper::body::Body;

use super::native::{events_in, json, written};
use super::{Answer, Door, FULL_RETRY};
use crate::handoff::protocol::{HandedEvent, LearnedKeys, Party, read_key, read_parcel, write_line};
use crate::handoff::target::Taken;
use crate::http::handover::ToItsEnd;
use crate::ingest::admission::{EVENT_BYTES, Permit};
use crate::ingest::client::Caller;
use crate::ingest::events_api::{BATCH_EVENTS_MAX, lines};
use crate::ingest::passthrough::Passthrough;
use crate::ingest::refusal::{NotAllowed, Refusal};
use crate::outbox::Outbox;
use crate::outbox::handoff::{Adopted, Handed};

/// What the door needs to take hand-offs.
#[derive(Clone)]
pub struct Reception {
    pub party: Party,
    /// Whether unknown callers may hand over.
    pub is_open: bool,
    /// Whether the daemon is staying. A draining one would have to hand the events on.
    pub stays: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl<O, P> Door<O, P> {
    /// The same door, open for hand-offs.
    pub fn receiving(self, reception: Reception) -> Self {
        Self { reception: Some(Arc::new(reception)), ..self }
    }
}

impl<O: Outbox, P: Passthrough> Door<O, P> {
    /// The receiver, if this caller may hand over.
    pub(super) fn receiver(&self, caller: &Caller) -> Result<&Party, Refusal> {
        let reception = self.reception.as_deref().ok_or(Refusal::UnknownOperation)?;
        match caller.client() {
            Some(client) if client.hands_over => Ok(&reception.party),
            None if reception.is_open => Ok(&reception.party),
            Some(client) => Err(Refusal::NotAllowed(NotAllowed {
                client: client.name.clone(),
                action: "handing events over",
                resource: "this daemon".to_owned(),
                key: "handoff",
            })),
            None => Err(Refusal::UnknownOperation),
        }
    }

    pub(super) async fn take_handed<B: Body>(
        &self,
        party: &Party,
        head: &Head,
        caller: &Caller,
        body: Pin<&mut B>,
        permit: Permit,
    ) -> Result<Answer, Refusal> {
        let (bytes, mut permit) = self.handed_body(party, head, caller, body, permit).await?;
        let text = std::str::from_utf8(&bytes).map_err(|error| Refusal::content(error.to_string()))?;
        let events = events_in(text)?;
        permit.grow(events as u64 * EVENT_BYTES).map_err(|crowded| self.crowded(crowded))?;
        let (home, now) = (&self.shared.settings.home, self.shared.clock.now());
        let (mut handed, mut refused) = (Vec::new(), Vec::new());
        for line in lines(text) {
            let read = read_parcel(line).and_then(|parcel| parcel.envelope.open(parcel.payload, home, now));
            let read = read.and_then(|handed: Handed| {
                let may_use = self.may_use(caller, &handed.event.function.name);
                may_use.map(|()| handed).map_err(|refusal| refusal.message())
            });
            // A refused event keeps its place among the answers.
            refused.push(match read {
                Ok(event) => {
                    handed.push(event);
                    None
                }
                Err(why) => Some(HandedEvent::refused(why)),
            });
        }
        drop(bytes);
        let (adopted, permit) = self.adopt(handed, permit).await?;
        let mut adopted = adopted.into_iter();
        let (mut answer, metrics) = (Vec::new(), &self.shared.metrics);
        for refused in refused {
            let event = match refused {
                Some(refused) => refused,
                None => adopted.next().map_or_else(|| HandedEvent::busy(String::new()), answer_of),
            };
            metrics.handoff_events.with_label_values(&["in", &event.result]).inc();
            write_line(&mut answer, &event);
        }
        let mut response = json(StatusCode::OK, answer.into(), permit);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        Ok(response)
    }

    pub(super) async fn take_keys<B: Body>(
        &self,
        party: &Party,
        head: &Head,
        caller: &Caller,
        body: Pin<&mut B>,
        permit: Permit,
    ) -> Result<Answer, Refusal> {
        // A digest does not tell whose key it is, and a false one would make a later event a repeat of nothing.
        if let Some(client) = caller.client().filter(|client| !client.may_use_all()) {
            return Err(Refusal::NotAllowed(NotAllowed {
                client: client.name.clone(),
                action: "handing remembered keys over",
                resource: "this daemon".to_owned(),
                key: "functions",
            }));
        }
        let (bytes, permit) = self.handed_body(party, head, caller, body, permit).await?;
        let text = std::str::from_utf8(&bytes).map_err(|error| Refusal::content(error.to_string()))?;
        let keys: Option<Vec<_>> = lines(text).take(BATCH_EVENTS_MAX).map(read_key).collect();
        let keys = keys.ok_or_else(|| Refusal::content("a line is no remembered key".to_owned()))?;
        let outbox = self.outbox.clone();
        let (learned, permit) = ToItsEnd::new(async move { (outbox.learn(keys).await, permit) }, &self.leftovers).await;
        let learned = learned.map_err(|error| self.unavailable(&error))?;
        self.shared.metrics.handoff_keys.with_label_values(&["in"]).inc_by(learned);
        Ok(json(StatusCode::OK, written(&LearnedKeys { learned }), permit))
    }

    /// Reads a body of a sender that may hand over to this daemon now.
    async fn handed_body<B: Body>(
        &self,
        party: &Party,
        head: &Head,
        caller: &Caller,
        body: Pin<&mut B>,
        mut permit: Permit,
    ) -> Result<(Bytes, Permit), Refusal> {
        party.may_take_from(&head.headers).map_err(|why| Refusal::HandOffElsewhere { why, retry_after: None })?;
        if self.reception.as_ref().is_none_or(|reception| !(reception.stays)()) {
            let why = "it is draining itself and takes no hand-offs".to_owned();
            return Err(Refusal::HandOffElsewhere { why, retry_after: Some(self.retry_after(FULL_RETRY)) });
        }
        let bytes = self.batch(head, caller, body, &mut permit).await?;
        // The payloads are decoded.
        permit.grow(bytes.len() as u64).map_err(|crowded| self.crowded(crowded))?;
        Ok((bytes, permit))
    }

    /// Adopts events. From here until the outbox has answered, their reserved memory belongs to the adoption.
    async fn adopt(&self, events: Vec<Handed>, permit: Permit) -> Result<(Vec<Adopted>, Permit), Refusal> {
        if events.is_empty() {
            return Ok((Vec::new(), permit));
        }
        let outbox = self.outbox.clone();
        let adopting = ToItsEnd::new(async move { (outbox.adopt(events).await, permit) }, &self.leftovers);
        let (adopted, permit) = adopting.await;
        Ok((adopted.map_err(|error| self.unavailable(&error))?, permit))
    }
}

fn answer_of(adopted: Adopted) -> HandedEvent {
    match adopted {
        Adopted::Stored => HandedEvent::taken(Taken::Adopted, None),
        Adopted::Repeat => HandedEvent::taken(Taken::Repeat, None),
        Adopted::KnownKey { first } => HandedEvent::taken(Taken::KnownKey, Some(first)),
        Adopted::Full(full) => HandedEvent::busy(full.to_string()),
    }
}
