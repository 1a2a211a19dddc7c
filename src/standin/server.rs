//! Serves connections, and each request from its head to its answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::clock::{Clock, UnixMillis};
use crate::standin::ledger::{Answered, Entry, Keep, Ledger, Written};
use crate::standin::reply::{self, Reply};
use crate::standin::request::{self, Asked, InvocationType};
use crate::standin::script::{ErrorAnswer, Trouble};
use crate::standin::stage::{Stage, Turn};
use crate::standin::{CONNECTIONS_MAX, Settings};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) stage: Stage,
    pub(super) ledger: Ledger,
    pub(super) outage: AtomicBool,
    clock: Clock,
    settings: Settings,
}

impl Shared {
    pub(super) fn new(clock: Clock, settings: Settings) -> Self {
        Self { stage: Stage::default(), ledger: Ledger::default(), outage: AtomicBool::new(false), clock, settings }
    }

    fn in_outage(&self) -> bool {
        self.outage.load(Ordering::Relaxed)
    }
}

/// Accepts connections until `stop`. Each connection is a task of `tasks`.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async || {
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        Some((slot, listener.accept().await))
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accept() => accepted,
        };
        match accepted {
            Some((slot, Ok((stream, _)))) if !shared.in_outage() => {
                tasks.spawn(connection(stream, slot, Arc::clone(&shared), stop.clone()));
            }
            Some((_, Ok((stream, _)))) => reset(stream),
            // Either descriptors ran out or the peer is already gone. Accept again after a pause.
            Some((_, Err(_))) => shared.clock.sleep(Duration::from_millis(10)).await,
            None => return,
        }
    }
}

async fn connection(stream: TcpStream, slot: OwnedSemaphorePermit, shared: Arc<Shared>, stop: CancellationToken) {
    // Best effort: without it, small answers are only slower.
    stream.set_nodelay(true).ok();
    let to_reset = CancellationToken::new();
    let service = service_fn(|request| {
        let (shared, to_reset) = (Arc::clone(&shared), to_reset.clone());
        async move {
            match shared.answer(request).await {
                Some(reply) => Ok::<Reply, Infallible>(reply),
                None => {
                    to_reset.cancel();
                    std::future::pending().await
                }
            }
        }
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        () = to_reset.cancelled() => reset(connection.into_parts().io.into_inner()),
        () = stop.cancelled() => {}
        // The ledger has the result, however the connection ended.
        _ = &mut connection => {}
    }
    drop(slot);
}

/// Closes the connection with RST.
fn reset(stream: TcpStream) {
    // If this fails, the connection closes normally, also without an answer.
    stream.set_zero_linger().ok();
}

/// Why there is no payload.
enum NoPayload {
    TooLarge,
    Unfinished,
}

impl Shared {
    /// Answers a request. `None` means that the connection is to be reset.
    async fn answer(&self, request: Request<Incoming>) -> Option<Reply> {
        let (head, body) = request.into_parts();
        let at = self.clock.now();
        let request_id = uuid::Builder::from_random_bytes(self.clock.random_bits().to_be_bytes()).into_uuid();
        let asked = match request::read_head(&head) {
            Some(Ok(asked)) => asked,
            other => {
                self.ledger.stray();
                return Some(match other {
                    Some(Err(why)) => reply::error(&why, request_id),
                    _ => reply::unknown_path(request_id),
                });
            }
        };
        let visit = Visit { shared: self, lane: asked.lane(), asked, head, at, request_id };
        let _in_flight = self.ledger.begin(&visit.lane);
        let turn = self.stage.enter(&visit.lane, &self.clock);
        if self.in_outage() || turn.trouble == Some(Trouble::Reset) {
            visit.record(Answered::Reset, None);
            return None;
        }
        match read_payload(body).await {
            Ok(payload) => match request::check_payload(visit.asked.invocation_type, &payload) {
                Ok(()) => visit.play(turn, payload).await,
                Err(why) => Some(visit.refuse(&why, Some(&payload))),
            },
            Err(NoPayload::TooLarge) => {
                let len = request::text(&visit.head.headers, "content-length").and_then(|it| it.parse().ok());
                Some(visit.refuse(&request::too_large(visit.asked.invocation_type, len), None))
            }
            Err(NoPayload::Unfinished) => {
                visit.record(Answered::Unfinished, None);
                None
            }
        }
    }
}

async fn read_payload(body: Incoming) -> Result<Bytes, NoPayload> {
    match Limited::new(body, request::SYNC_BYTES_MAX).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(why) if why.is::<LengthLimitError>() => Err(NoPayload::TooLarge),
        Err(_) => Err(NoPayload::Unfinished),
    }
}

/// One request of Invoke.
struct Visit<'a> {
    shared: &'a Shared,
    asked: Asked,
    lane: String,
    head: Parts,
    at: UnixMillis,
    request_id: Uuid,
}

impl Visit<'_> {
    /// Applies the trouble, if any, to a valid request. Writes the ledger before it waits, so that a request counts
    /// even if its caller does not wait for the answer.
    async fn play(&self, mut turn: Turn, payload: Bytes) -> Option<Reply> {
        let dry = self.asked.invocation_type == InvocationType::DryRun;
        let plain = if dry { Answered::DryRun } else { Answered::Accepted };
        let success = || Some(reply::success(&self.asked, self.request_id, turn.result.clone()));
        let (answered, wait, answer) = match turn.trouble.take() {
            None => (plain, turn.latency, success()),
            Some(Trouble::Throttle(throttle)) => {
                let answer = reply::throttled(throttle, self.request_id);
                (Answered::Throttled(throttle.reason), Duration::ZERO, Some(answer))
            }
            Some(Trouble::Error(why)) => (refused(&why), turn.latency, Some(reply::error(&why, self.request_id))),
            Some(Trouble::Html(status)) => {
                (Answered::Refused { status, code: None }, turn.latency, Some(reply::html(status)))
            }
            Some(Trouble::LostReply) if !dry => (Answered::LostReply, turn.latency, None),
            Some(Trouble::Reset | Trouble::LostReply) => (Answered::Reset, turn.latency, None),
            Some(Trouble::SlowReply(more)) if !dry => (Answered::SlowReply(more), turn.latency + more, success()),
            Some(Trouble::SlowReply(more)) => (plain, turn.latency + more, success()),
            Some(Trouble::FunctionError(message)) if self.asked.invocation_type == InvocationType::RequestResponse => {
                let answer = reply::function_error(&self.asked, self.request_id, &message);
                (Answered::FunctionError, turn.latency, Some(answer))
            }
            Some(Trouble::FunctionError(_)) => (plain, turn.latency, success()),
        };
        self.record(answered, Some(&payload));
        if !wait.is_zero() {
            self.shared.clock.sleep(wait).await;
        }
        answer
    }

    fn refuse(&self, why: &ErrorAnswer, payload: Option<&Bytes>) -> Reply {
        self.record(refused(why), payload);
        reply::error(why, self.request_id)
    }

    fn record(&self, answered: Answered, payload: Option<&Bytes>) {
        let settings = &self.shared.settings;
        let id = settings.id_field.as_deref().zip(payload).and_then(|(field, it)| request::payload_id(it, field));
        let entry = match settings.keep {
            Keep::Counts => None,
            Keep::Entries => Some(self.entry(&answered, id.clone(), payload, false)),
            Keep::EntriesAndPayloads => Some(self.entry(&answered, id.clone(), payload, true)),
        };
        let payload_len = payload.map_or(0, Bytes::len);
        self.shared.ledger.record(&self.lane, Written { answered, payload_len, id, entry });
    }

    fn entry(&self, answered: &Answered, id: Option<String>, payload: Option<&Bytes>, whole: bool) -> Entry {
        let headers: &HeaderMap = &self.head.headers;
        Entry {
            at: self.at,
            function: self.asked.function.clone(),
            lane: self.lane.clone(),
            qualifier: self.asked.qualifier.clone(),
            invocation_type: self.asked.invocation_type,
            headers: headers.clone(),
            idempotency_key: request::idempotency_key(headers),
            trace_header: request::text(headers, "x-amzn-trace-id").map(str::to_owned),
            id,
            payload_len: payload.map_or(0, Bytes::len),
            payload_sha256: payload.map(|it| hex(&Sha256::digest(it))),
            payload: payload.filter(|_| whole).cloned(),
            request_id: self.request_id,
            answered: answered.clone(),
        }
    }
}

fn refused(why: &ErrorAnswer) -> Answered {
    Answered::Refused { status: why.status, code: Some(why.code.clone()) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
