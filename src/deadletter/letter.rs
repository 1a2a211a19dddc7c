//! Reads the messages of a dead-letter queue: sendoff's own, those of Lambda's dead-letter queues, and Lambda's
//! destination records. Pure. Any other message is foreign and stays on the queue.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::message::{ENVELOPE, Envelope};
use super::{destination, pack};
use crate::clock::UnixMillis;
use crate::event::{FunctionName, KeySource};
use crate::outbox::BuryReason;

/// The attribute of an event that a sendoff handed over. It may be in a dead-letter queue by mistake.
pub const HANDED: &str = "SendoffHandoff";

/// A message as it was received.
#[derive(Debug, Clone, Default)]
pub struct Received {
    pub message_id: String,
    /// The handle that deletes or releases the message.
    pub receipt: String,
    pub body: String,
    /// The attributes of type String and Number.
    pub attributes: BTreeMap<String, String>,
    /// When the message was sent to the queue.
    pub sent_at: Option<UnixMillis>,
}

/// An event on its way back, as the destination of a redrive accepts it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Letter {
    /// The identity of the dead letter, the same in every copy of it.
    pub origin: String,
    /// The function as the client wrote it: a name, a partial ARN or a full ARN.
    pub function: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qualifier: Option<String>,
    /// `None` means that sendoff mints a new key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_source: Option<KeySource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_header: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_context: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable_execution_name: Option<String>,
    /// The number of earlier redrives.
    #[serde(default)]
    #[schema(format = "uint32", maximum = 4_294_967_295_u32)]
    pub redrives: u32,
    #[serde(rename = "payload_base64", serialize_with = "to_base64", deserialize_with = "from_base64")]
    #[schema(value_type = String, content_encoding = "base64")]
    pub payload: Bytes,
}

impl std::fmt::Debug for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "letter {} for {}, {} bytes", self.origin, self.function, self.payload.len())
    }
}

/// Writes bytes as base64 text.
pub fn to_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

/// Reads bytes from base64 text.
pub fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
}

/// What a message turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    Letter(Box<Read>),
    /// Not a dead letter that can be redriven, and why.
    Foreign(String),
}

/// A letter, and the facts that filters use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub letter: Letter,
    /// From our own messages and destination records. Lambda's queues do not contain it.
    pub reason: Option<BuryReason>,
    /// When the event became a dead letter, if known.
    pub at: Option<UnixMillis>,
    /// The error of the last attempt.
    pub error: Option<String>,
    /// When a redrive last accepted it. Only in our own messages.
    pub redriven_at: Option<UnixMillis>,
    /// The function's canonical name. Only in our own messages.
    name: Option<String>,
}

/// Which letters to redrive, and which function to assume for messages that do not name one.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The function's name, with `*` for any characters. Without a `*`, it is also the function of messages from
    /// Lambda's queues, which name none.
    pub function: Option<String>,
    /// The function in the queue's tag, for messages that name none.
    pub queue_function: Option<String>,
    pub reason: Option<BuryReason>,
    pub since: Option<UnixMillis>,
    pub until: Option<UnixMillis>,
    /// A part of the error's text.
    pub error: Option<String>,
}

impl Wanted {
    /// Whether a letter passes the filters.
    pub fn fits(&self, read: &Read) -> bool {
        let function = |pattern: &String| {
            let bare = bare_name(&read.letter.function);
            let mut names =
                [read.name.as_deref(), Some(read.letter.function.as_str()), Some(bare)].into_iter().flatten();
            names.any(|name| FunctionName::new(name).fits(pattern))
        };
        self.function.as_ref().is_none_or(function)
            && self.reason.is_none_or(|reason| read.reason == Some(reason))
            && self.since.is_none_or(|since| read.at.is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| read.at.is_some_and(|at| at < until))
            && self.error.as_ref().is_none_or(|text| read.error.as_ref().is_some_and(|error| error.contains(text)))
    }

    /// The function of messages that name none.
    fn default_function(&self) -> Option<&str> {
        let given = self.function.as_deref().filter(|function| !function.contains('*'));
        given.or(self.queue_function.as_deref())
    }
}

/// The name in an ARN. A bare name is returned as it is.
fn bare_name(function: &str) -> &str {
    let mut parts = function.split(':').skip_while(|part| *part != "function").skip(1);
    parts.next().unwrap_or(function)
}

/// Reads a message.
pub fn read(received: &Received, wanted: &Wanted) -> Reading {
    let read = if let Some(envelope) = received.attributes.get(ENVELOPE) {
        ours(received, envelope)
    } else if received.attributes.contains_key(HANDED) {
        Err("an event that a sendoff handed over, no dead letter: set handoff.receive_queue to this queue, and a sendoff takes it"
            .to_owned())
    } else if received.attributes.contains_key("RequestID") && received.attributes.contains_key("ErrorCode") {
        lambdas(received, wanted)
    } else {
        record(received)
    };
    match read {
        Ok(read) => Reading::Letter(Box::new(read)),
        Err(why) => Reading::Foreign(why),
    }
}

fn ours(received: &Received, envelope: &str) -> Result<Read, String> {
    let envelope: Envelope =
        serde_json::from_str(envelope).map_err(|error| format!("the attribute {ENVELOPE} is broken: {error}"))?;
    let body = match envelope.compressed {
        true => pack::unpack(&received.body)?.into(),
        false => Bytes::from(received.body.clone()),
    };
    let payload = if envelope.empty_payload {
        Bytes::new()
    } else if envelope.in_record {
        let record = std::str::from_utf8(&body).ok().and_then(destination::read);
        let record = record.ok_or("the body is not the destination record that it should be")?;
        text_of(record.payload, envelope.text_payload)?
    } else {
        body
    };
    let attribute = |name: &str| received.attributes.get(name);
    let word = attribute("Reason");
    Ok(Read {
        letter: Letter {
            origin: envelope.id.to_string(),
            function: envelope.address,
            qualifier: envelope.qualifier,
            key: Some(envelope.key),
            key_source: Some(envelope.key_source),
            trace_header: envelope.trace_header,
            client_context: envelope.client_context,
            tenant_id: envelope.tenant_id,
            durable_execution_name: envelope.durable_execution_name,
            redrives: envelope.redrives,
            payload,
        },
        reason: word.and_then(|word| reason_of(word)),
        at: received.sent_at,
        error: attribute("ErrorMessage").cloned(),
        redriven_at: (envelope.redrives > 0).then_some(envelope.accepted_at),
        name: Some(envelope.function),
    })
}

fn text_of(json: String, is_text: bool) -> Result<Bytes, String> {
    if !is_text {
        return Ok(json.into());
    }
    let text: String = serde_json::from_str(&json).map_err(|error| format!("the payload is not text: {error}"))?;
    Ok(text.into())
}

/// Reads a message of Lambda's own dead-letter queues: the body is the event.
fn lambdas(received: &Received, wanted: &Wanted) -> Result<Read, String> {
    let Some(function) = wanted.default_function() else {
        return Err("Lambda's message does not name its function: give --function, or tag the queue sendoff:function"
            .to_owned());
    };
    let id = received.attributes.get("RequestID").map(String::as_str).filter(|id| !id.is_empty());
    Ok(Read {
        letter: fresh(
            format!("lambda/{}", id.unwrap_or(&received.message_id)),
            function.to_owned(),
            received.body.clone().into(),
        ),
        reason: None,
        at: received.sent_at,
        error: received.attributes.get("ErrorMessage").cloned(),
        redriven_at: None,
        name: None,
    })
}

fn record(received: &Received) -> Result<Read, String> {
    let record = destination::read(&received.body)
        .ok_or("neither sendoff's nor Lambda's attributes, and no destination record".to_owned())?;
    let reason = match record.condition.as_str() {
        "RetriesExhausted" => Some(BuryReason::RetriesExhausted),
        "EventAgeExceeded" => Some(BuryReason::EventAgeExceeded),
        "ZeroReservedConcurrency" => None,
        other => return Err(format!("a destination record of condition {other:?}, not of a failure")),
    };
    let at = record.timestamp.as_deref().and_then(UnixMillis::read_rfc3339).or(received.sent_at);
    Ok(Read {
        letter: fresh(format!("lambda/{}", record.request_id), record.function_arn, record.payload.into()),
        reason,
        at,
        error: record.error,
        redriven_at: None,
        name: None,
    })
}

fn fresh(origin: String, function: String, payload: Bytes) -> Letter {
    Letter {
        origin,
        function,
        qualifier: None,
        key: None,
        key_source: None,
        trace_header: None,
        client_context: None,
        tenant_id: None,
        durable_execution_name: None,
        redrives: 0,
        payload,
    }
}

/// The reason with this word.
pub fn reason_of(word: &str) -> Option<BuryReason> {
    BuryReason::ALL.into_iter().find(|reason| reason.as_str() == word)
}

#[cfg(test)]
mod tests;
