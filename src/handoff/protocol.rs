//! What two sendoffs say to each other in a hand-off, as plain data: `/v1/handoff` and `/v1/handoff/keys` on the ingest
//! listener.
//!
//! Every request says who sends it. A name may stand for several receivers, so each of them checks each request.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::envelope::{ENVELOPE_BYTES_MAX, Envelope, FORMAT};
use super::target::{Answer, Parcel, Taken};
use crate::event::name::Home;
use crate::event::{EventId, PAYLOAD_BYTES_MAX};
use crate::outbox::handoff::RememberedKey;

/// The path of a hand-off, and of the keys that follow it.
pub const PATH: &str = "/v1/handoff";
pub const KEYS_PATH: &str = "/v1/handoff/keys";

/// The version of the envelope. Without this header, a request is no hand-off.
pub const FORMAT_HEADER: HeaderName = HeaderName::from_static("x-sendoff-handoff");

/// The running daemon that sends.
pub const INSTANCE: HeaderName = HeaderName::from_static("x-sendoff-instance");

/// The region and the account to which the names of functions are relative. Missing if the sender knows none.
pub const REGION: HeaderName = HeaderName::from_static("x-sendoff-region");
pub const ACCOUNT: HeaderName = HeaderName::from_static("x-sendoff-account");

/// The most bytes of a line: the largest payload in base64, and an envelope.
pub const LINE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX / 3 * 4 + 4 + ENVELOPE_BYTES_MAX;

/// Who takes part in a hand-off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Names the running process, not its store: a daemon that reaches itself by another address must notice.
    pub instance: Uuid,
    pub home: Home,
}

impl Party {
    /// The headers of a request.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut put = |name, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        };
        put(FORMAT_HEADER, &FORMAT.to_string());
        put(INSTANCE, &self.instance.to_string());
        self.home.region.iter().for_each(|region| put(REGION, region));
        self.home.account_id.iter().for_each(|account_id| put(ACCOUNT, account_id));
        headers
    }

    /// Whether this receiver may take events of a request's sender. The error says why not.
    pub fn may_take_from(&self, headers: &HeaderMap) -> Result<(), String> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        match text(&FORMAT_HEADER).and_then(|format| format.parse::<u32>().ok()) {
            None => return Err(format!("the header {FORMAT_HEADER} with the format is missing")),
            Some(format) if format > FORMAT => {
                return Err(format!(
                    "the sender's format is {format}, and this sendoff reads up to {FORMAT}: update it"
                ));
            }
            Some(_) => {}
        }
        if text(&INSTANCE) == Some(&self.instance.to_string()) {
            return Err("the receiver is the sender itself".to_owned());
        }
        let shown = |text: Option<&str>| text.unwrap_or("none").to_owned();
        for (key, theirs, ours) in [
            ("lambda.region", text(&REGION), self.home.region.as_deref()),
            ("lambda.account_id", text(&ACCOUNT), self.home.account_id.as_deref()),
        ] {
            if theirs != ours {
                return Err(format!("{key} differs: {} at the sender, {} here", shown(theirs), shown(ours)));
            }
        }
        Ok(())
    }
}

/// What a receiver says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Greeting {
    /// The latest version of the envelope that it reads.
    pub format: u32,
    /// The running daemon.
    pub instance: String,
    pub version: String,
    pub region: Option<String>,
    pub account_id: Option<String>,
}

impl Greeting {
    pub fn of(party: &Party) -> Self {
        Self {
            format: FORMAT,
            instance: party.instance.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            region: party.home.region.clone(),
            account_id: party.home.account_id.clone(),
        }
    }
}

#[derive(Serialize)]
struct LineOut<'a> {
    envelope: &'a Envelope,
    payload_base64: &'a str,
}

#[derive(Deserialize)]
struct LineIn<'a> {
    envelope: Envelope,
    #[serde(borrow)]
    payload_base64: Cow<'a, str>,
}

/// Appends an event to the body of a request.
pub fn write_parcel(body: &mut Vec<u8>, parcel: &Parcel) {
    let payload_base64 = BASE64_STANDARD.encode(&parcel.payload);
    write_line(body, &LineOut { envelope: &parcel.envelope, payload_base64: &payload_base64 });
}

/// Reads an event. The error says why it is none.
pub fn read_parcel(line: &str) -> Result<Parcel, String> {
    let LineIn { envelope, payload_base64 } = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let bytes = line.len().saturating_sub(payload_base64.len());
    if bytes > ENVELOPE_BYTES_MAX {
        return Err(format!("its envelope has {bytes} bytes of at most {ENVELOPE_BYTES_MAX}"));
    }
    let payload = BASE64_STANDARD.decode(payload_base64.as_bytes()).map_err(|error| format!("payload: {error}"))?;
    Ok(Parcel { envelope, payload: payload.into() })
}

/// A remembered key as it travels.
#[derive(Serialize, Deserialize)]
struct KeyLine {
    /// Kind and digest, in base64.
    key: String,
    first: EventId,
    /// In base64.
    fingerprint: String,
    left_ms: u64,
}

/// Appends a key to the body of a request.
pub fn write_key(body: &mut Vec<u8>, key: &RememberedKey) {
    let RememberedKey { key, first, fingerprint, left } = key;
    let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let (key, fingerprint) = (BASE64_STANDARD.encode(key), BASE64_STANDARD.encode(fingerprint));
    write_line(body, &KeyLine { key, first: *first, fingerprint, left_ms });
}

/// Reads a key. `None` if it is none.
pub fn read_key(line: &str) -> Option<RememberedKey> {
    let KeyLine { key, first, fingerprint, left_ms } = serde_json::from_str(line).ok()?;
    let bytes = |text: String| BASE64_STANDARD.decode(text).ok();
    Some(RememberedKey {
        key: bytes(key)?.try_into().ok()?,
        first,
        fingerprint: bytes(fingerprint)?.try_into().ok()?,
        left: Duration::from_millis(left_ms),
    })
}

/// What became of one event: a line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HandedEvent {
    /// `adopted`: it is on stable storage here. `repeat`: it was handed over, or accepted here, before. `known-key`: an
    /// event with its key and payload was accepted here. `busy`: there is no room now. `refused`: it is never taken.
    pub result: Cow<'static, str>,
    /// Why it is busy or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The event that has the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "uuid")]
    pub first: Option<EventId>,
}

/// The results that leave the event with its sender.
pub const BUSY: &str = "busy";
pub const REFUSED: &str = "refused";

impl HandedEvent {
    pub fn taken(taken: Taken, first: Option<EventId>) -> Self {
        Self { result: taken.as_str().into(), message: None, first }
    }

    pub fn busy(why: String) -> Self {
        Self { result: BUSY.into(), message: Some(why), first: None }
    }

    pub fn refused(why: String) -> Self {
        Self { result: REFUSED.into(), message: Some(why), first: None }
    }

    /// The answer for the sender. A word of a later version leaves the event with the sender.
    pub fn answer(self) -> Answer {
        let all = [Taken::Adopted, Taken::Repeat, Taken::KnownKey];
        let why = self.message.unwrap_or_default();
        match all.into_iter().find(|taken| taken.as_str() == self.result) {
            Some(taken) => Answer::Taken(taken),
            None if self.result == BUSY => Answer::Busy(why),
            None => Answer::Refused(why),
        }
    }
}

/// What became of a request with keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LearnedKeys {
    /// Keys that were not known here before.
    pub learned: u64,
}

/// Appends a line of JSON.
pub fn write_line(body: &mut Vec<u8>, value: &impl Serialize) {
    // Serialising structs of texts and numbers cannot fail.
    serde_json::to_writer(&mut *body, value).unwrap_or_default();
    body.push(b'\n');
}

/// The answers of a response, if they fit the request.
pub fn read_answers(body: &Bytes, events: usize) -> Option<Vec<Answer>> {
    let text = std::str::from_utf8(body).ok()?;
    let lines = text.lines().map(|line| serde_json::from_str::<HandedEvent>(line).ok().map(HandedEvent::answer));
    lines.collect::<Option<Vec<_>>>().filter(|answers| answers.len() == events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMillis};
    use crate::event::testing::event;
    use crate::outbox::History;

    fn party(n: u8) -> Party {
        let home = Home { region: Some("eu-central-1".to_owned()), account_id: None };
        Party { instance: Uuid::from_bytes([n; 16]), home }
    }

    #[test]
    fn an_event_and_a_key_are_the_same_after_their_journey() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let sent = event(&clock, "orders");
        let (id, payload) = (sent.id, Bytes::from_static(&[0, b'\n', 0xff, b'"']));
        let (envelope, _) = Envelope::seal(sent, History::default());
        let parcel = Parcel { envelope, payload };
        let mut body = Vec::new();
        write_parcel(&mut body, &parcel);
        let text = String::from_utf8(body).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(read_parcel(text.trim_end()).unwrap(), parcel);
        assert!(read_parcel("{}").unwrap_err().contains("missing field"));

        let key = RememberedKey { key: [7; 17], first: id, fingerprint: [9; 16], left: Duration::from_millis(5) };
        let mut body = Vec::new();
        write_key(&mut body, &key);
        assert_eq!(read_key(std::str::from_utf8(&body).unwrap().trim_end()), Some(key));
        assert_eq!(read_key(r#"{"key":"AAAA","first":"x"}"#), None);
    }

    #[test]
    fn a_receiver_takes_from_those_who_mean_the_same_functions_and_not_from_itself() {
        let (sender, receiver) = (party(1), party(2));
        assert_eq!(receiver.may_take_from(&sender.headers()), Ok(()));
        let refused = |headers: &HeaderMap| receiver.may_take_from(headers).unwrap_err();
        assert!(refused(&receiver.headers()).contains("itself"));
        assert!(refused(&HeaderMap::new()).contains("missing"));
        let elsewhere = Home { region: Some("us-east-1".to_owned()), account_id: None };
        let other = Party { home: elsewhere, ..sender.clone() };
        assert_eq!(refused(&other.headers()), "lambda.region differs: us-east-1 at the sender, eu-central-1 here");
        let account_id = Some("123456789012".to_owned());
        let other = Party { home: Home { account_id, ..sender.home.clone() }, ..sender.clone() };
        assert_eq!(refused(&other.headers()), "lambda.account_id differs: 123456789012 at the sender, none here");
        let mut later = sender.headers();
        later.insert(FORMAT_HEADER, HeaderValue::from_static("2"));
        assert!(refused(&later).contains("update"));
    }

    #[test]
    fn an_answer_that_is_not_understood_leaves_the_event_with_its_sender() {
        let answers = |body: &'static str, events| read_answers(&Bytes::from_static(body.as_bytes()), events);
        let all =
            answers("{\"result\":\"adopted\"}\n{\"result\":\"busy\",\"message\":\"full\"}\n{\"result\":\"new\"}\n", 3);
        let expected = [Answer::Taken(Taken::Adopted), Answer::Busy("full".to_owned()), Answer::Refused(String::new())];
        assert_eq!(all.unwrap(), expected);
        assert_eq!(answers("{\"result\":\"adopted\"}\n", 2), None, "an answer is missing");
        assert_eq!(answers("<html>", 1), None);
    }
}
