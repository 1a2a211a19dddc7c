//! Another sendoff as the target of a hand-off, over HTTP.
//!
//! Limits: a request takes at most [`ANSWER_WITHIN`], an answer at most [`ANSWER_BYTES_MAX`].

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::protocol::{Greeting, KEYS_PATH, PATH, Party, read_answers, write_key, write_parcel};
use super::target::{Answer, Parcel, Sizes, Target, Trouble};
use crate::clock::Clock;
use crate::https::{self, Connector, Trust, Unusable};
use crate::outbox::handoff::RememberedKey;

/// The sizes of a batch. The receiver takes 1,000 events and 8 MiB, with payloads in base64. Four batches of this size, as
/// events and as text, take about 30 MiB.
const SIZES: Sizes = Sizes { events_max: 1_000, bytes_max: 3 << 20, batches_max: 4 };

/// How long to wait for an answer. A receiver answers after one commit.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The most bytes of an answer: a line of some hundred bytes for each event.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// When to ask a receiver again that is full or draining, if it does not say so.
const AGAIN: Duration = Duration::from_secs(1);

/// A receiver.
pub struct Peer {
    /// `http://HOST:PORT`, without a path.
    base: String,
    party: Party,
    token_file: Option<PathBuf>,
    client: Client<Connector, Full<Bytes>>,
    clock: Clock,
}

impl Peer {
    /// `url` has no path. The token is read for each request, so that it may change.
    pub fn new(
        url: &Uri,
        party: Party,
        token_file: Option<PathBuf>,
        ca: Option<PathBuf>,
        clock: Clock,
    ) -> Result<Self, Unusable> {
        token_file.as_deref().map(https::bearer).transpose()?;
        let connector = https::connector(url, &ca.map_or(Trust::System, Trust::Authorities))?;
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let base = url.to_string().trim_end_matches('/').to_owned();
        Ok(Self { base, party, token_file, client, clock })
    }

    /// Who would receive here. Hands nothing over.
    pub async fn greet(&self) -> Result<Greeting, Trouble> {
        let (status, answer) = self.ask(Method::GET, PATH, Vec::new()).await?;
        accepted(status, &answer)?;
        let unread = |_| Trouble::Unanswered { why: "something that is not a sendoff answers there".to_owned() };
        serde_json::from_slice(&answer).map_err(unread)
    }

    /// Sends a body. Returns the whole answer.
    async fn post(&self, path: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes), Trouble> {
        self.ask(Method::POST, path, body).await
    }

    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes), Trouble> {
        let unanswered = |why: String| Trouble::Unanswered { why };
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = method;
        let never = |why: String| Trouble::Never { why };
        *request.uri_mut() = format!("{}{path}", self.base).parse().map_err(|_| never("not a URL".to_owned()))?;
        let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let headers = request.headers_mut();
        headers.extend(self.party.headers());
        headers.extend(host.map(|host| (HOST, host)));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        if let Some(path) = &self.token_file {
            headers.insert(AUTHORIZATION, https::bearer(path).map_err(|error| never(error.to_string()))?);
        }
        let answered = async {
            let response = match self.client.request(request).await {
                Ok(response) => response,
                Err(error) if error.is_connect() => {
                    let why = https::trouble(&error).unwrap_or_else(|| "it cannot be reached".to_owned());
                    return Err(Trouble::NotNow { why, retry_after: AGAIN });
                }
                Err(error) => return Err(unanswered(error.to_string())),
            };
            self.read(response).await
        };
        tokio::select! {
            biased;
            answered = answered => answered,
            () = self.clock.sleep(ANSWER_WITHIN) => Err(unanswered(format!("no answer within {ANSWER_WITHIN:?}"))),
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<(StatusCode, Bytes), Trouble> {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        match body {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) => Err(Trouble::Unanswered { why: error.to_string() }),
        }
    }

    async fn send_parcels(&self, batch: &[Parcel]) -> Result<Vec<Answer>, Trouble> {
        let mut body = Vec::new();
        batch.iter().for_each(|parcel| write_parcel(&mut body, parcel));
        let (status, answer) = self.post(PATH, body).await?;
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return match batch.len() {
                0 | 1 => Ok(vec![Answer::Refused(message_of(&answer)); batch.len()]),
                len => {
                    // A receiver with little memory takes smaller batches.
                    let (first, second) = batch.split_at(len / 2);
                    let mut answers = Box::pin(self.send_parcels(first)).await?;
                    match Box::pin(self.send_parcels(second)).await {
                        Ok(more) => answers.extend(more),
                        Err(trouble) => {
                            let why = why_of(&trouble).to_owned();
                            answers.extend(second.iter().map(|_| Answer::Busy(why.clone())));
                        }
                    }
                    Ok(answers)
                }
            };
        }
        accepted(status, &answer)?;
        let unread = || Trouble::Unanswered { why: "its answer cannot be read".to_owned() };
        read_answers(&answer, batch.len()).ok_or_else(unread)
    }

    async fn send_all_keys(&self, keys: &[RememberedKey]) -> Result<(), Trouble> {
        let mut body = Vec::new();
        keys.iter().for_each(|key| write_key(&mut body, key));
        let (status, answer) = self.post(KEYS_PATH, body).await?;
        accepted(status, &answer)
    }
}

impl Target for Peer {
    fn name(&self) -> &str {
        &self.base
    }

    fn sizes(&self) -> Sizes {
        SIZES
    }

    fn send<'a>(&'a self, batch: &'a [Parcel]) -> BoxFuture<'a, Result<Vec<Answer>, Trouble>> {
        self.send_parcels(batch).boxed()
    }

    fn send_keys<'a>(&'a self, keys: &'a [RememberedKey]) -> Option<BoxFuture<'a, Result<(), Trouble>>> {
        Some(self.send_all_keys(keys).boxed())
    }
}

/// What a status means for the whole batch.
fn accepted(status: StatusCode, answer: &Bytes) -> Result<(), Trouble> {
    let said = || {
        let message = message_of(answer);
        if message.is_empty() { format!("it answers {status}") } else { format!("it answers {status}: {message}") }
    };
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            let why = "it takes no hand-offs: it is an older sendoff, or handoff.receive is false".to_owned();
            Err(Trouble::Never { why })
        }
        // It is crowded, full or draining. If its store failed at this very moment, it may have the batch: a duplicate then.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => {
            Err(Trouble::NotNow { why: said(), retry_after: AGAIN })
        }
        status if status.is_client_error() => Err(Trouble::Never { why: said() }),
        // A proxy between the two may answer for a receiver that has stored the batch.
        _ => Err(Trouble::Unanswered { why: said() }),
    }
}

fn why_of(trouble: &Trouble) -> &str {
    match trouble {
        Trouble::NotNow { why, .. } | Trouble::Never { why } | Trouble::Unanswered { why } => why,
    }
}

/// The text of a refusal, shortened.
fn message_of(answer: &Bytes) -> String {
    const CHARS_MAX: usize = 300;
    let value = serde_json::from_slice::<serde_json::Value>(answer).ok();
    let text = value.as_ref().and_then(|value| value.get("message").or_else(|| value.get("Message"))?.as_str());
    text.unwrap_or_default().chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whether_the_target_may_have_the_batch() {
        let of = |status: u16| accepted(StatusCode::from_u16(status).unwrap(), &Bytes::from_static(b"{}"));
        assert_eq!(of(200), Ok(()));
        for status in [400, 401, 403, 404, 405, 409, 415] {
            assert!(matches!(of(status), Err(Trouble::Never { .. })), "{status}");
        }
        for status in [408, 429, 503] {
            assert!(matches!(of(status), Err(Trouble::NotNow { .. })), "{status}");
        }
        for status in [202, 301, 500, 502, 504] {
            assert!(matches!(of(status), Err(Trouble::Unanswered { .. })), "{status}");
        }
    }

    #[test]
    fn a_refusal_is_quoted_in_short() {
        assert_eq!(message_of(&Bytes::from_static(br#"{"Type":"User","message":"no"}"#)), "no");
        assert_eq!(message_of(&Bytes::from_static(br#"{"Message":"No"}"#)), "No");
        assert_eq!(message_of(&Bytes::from_static(b"<html>")), "");
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(9_000));
        assert_eq!(message_of(&Bytes::from(long)).len(), 300);
    }
}
