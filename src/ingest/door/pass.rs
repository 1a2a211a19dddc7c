//! Passes one call through, from its head to the head of its answer.

use std::pin::Pin;

use bytes::Bytes;
use http::Response;
use http::request::Parts as Head;
use http_body_util::Either;
use hyper::body::Body;

use super::{Answer, CROWDED_RETRY, Door, UNAVAILABLE_RETRY};
use crate::http::peer::Peer;
use crate::ingest::body;
use crate::ingest::client::Caller;
use crate::ingest::lambda_api::Invoke;
use crate::ingest::passthrough::{
    AnswerBody, CALL_BYTES_MAX, CALL_TIME_MAX, Failed, Gate, Operation, Other, Passed, Passthrough, PassthroughCall,
    forwarded, without_hop_by_hop,
};
use crate::ingest::refusal::Refusal;
use crate::outbox::Outbox;

impl<O: Outbox, P: Passthrough> Door<O, P> {
    /// Passes the call through. Returns the answer's head as soon as it arrives, and streams the body.
    pub(super) async fn pass<B: Body>(
        &self,
        head: &Head,
        caller: &Caller,
        invoke: Invoke,
        body: Pin<&mut B>,
    ) -> Result<Answer, Refusal> {
        let Some(gate) = &self.gate else { return Err(Refusal::ModeNotSupported { mode: invoke.mode() }) };
        let Invoke { operation, function, payload_max, .. } = invoke;
        let headers = forwarded(&head.headers);
        let call = |payload| gate.passthrough.call(PassthroughCall { operation, function, headers, payload });
        self.through(gate, (head, caller), body, payload_max, call).await
    }

    /// The same for an operation that does not invoke.
    pub(super) async fn pass_other<B: Body>(
        &self,
        gate: &Gate<P>,
        head: &Head,
        caller: &Caller,
        body: Pin<&mut B>,
    ) -> Result<Answer, Refusal> {
        let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let (method, headers) = (head.method.clone(), forwarded(&head.headers));
        let other = |payload| gate.passthrough.other(Other { method, target, headers, payload });
        self.through(gate, (head, caller), body, CALL_BYTES_MAX, other).await
    }

    async fn through<B: Body, F: Future<Output = Result<Response<AnswerBody>, Failed>>>(
        &self,
        gate: &Gate<P>,
        (head, caller): (&Head, &Caller),
        body: Pin<&mut B>,
        limit: usize,
        call: impl FnOnce(Bytes) -> F,
    ) -> Result<Answer, Refusal> {
        let slot = gate.slots.clone().try_acquire_owned().map_err(|_none_left| Refusal::CallsInFlight {
            limit: gate.limits.calls_max,
            retry_after: self.retry_after(CROWDED_RETRY),
        })?;
        // Held until the call is answered, because its payload is in memory until then.
        let mut permit = gate.admission.admit(head).map_err(|crowded| self.crowded(crowded))?;
        let time_max = self.shared.settings.body_timeout;
        let payload = body::read(body, limit, time_max, &mut permit)
            .await
            .map_err(|unread| self.unread(unread, |_| Refusal::CallTooLarge { limit: limit as u64 }))?;
        caller.prove(&payload).map_err(Refusal::Unidentified)?;
        let mut time_is_up = Box::pin(self.shared.clock.sleep(CALL_TIME_MAX));
        let mut gone = Box::pin(gone(head));
        let answer = tokio::select! {
            biased;
            () = gone.as_mut() => Err(Refusal::CallerGone),
            answer = call(payload) => answer.map_err(|failed| match failed {
                Failed::NotSent(why) => Refusal::NotPassed { why, retry_after: self.retry_after(UNAVAILABLE_RETRY) },
                Failed::Lost(why) => Refusal::AnswerLost { why },
            }),
            () = time_is_up.as_mut() => Err(Refusal::AnswerLost { why: format!("none within {CALL_TIME_MAX:?}") }),
        };
        let (mut head, body) = answer?.into_parts();
        without_hop_by_hop(&mut head.headers);
        self.shared.metrics.ingest_passed.with_label_values(&[class(head.status)]).inc();
        Ok(Answer::from_parts(head, Either::Right(Passed { body, gone, time_is_up, _slot: slot })))
    }
}

/// Returns once the caller has left. Never returns on HTTP/2, where the whole future is dropped instead.
fn gone(head: &Head) -> impl Future<Output = ()> + Send + 'static {
    let peer = head.extensions.get::<Peer>().cloned();
    async move {
        match peer {
            Some(peer) => peer.gone().await,
            None => std::future::pending().await,
        }
    }
}

/// The label of an answer in metrics.
fn class(status: http::StatusCode) -> &'static str {
    match status.as_u16() {
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500..600 => "5xx",
        _ => "other",
    }
}

impl Invoke {
    /// The requested operation, for people.
    fn mode(&self) -> &'static str {
        match self.operation {
            Operation::Invoke => self.invocation_type.as_str(),
            Operation::InvokeWithResponseStream => "response streaming",
        }
    }
}
