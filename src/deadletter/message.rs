//! The form of a dead letter: Lambda's own, and in addition what a redrive needs. Pure.
//!
//! The body is the payload. `RequestID`, `ErrorCode` and `ErrorMessage` are Lambda's attributes, so that consumers of
//! its queues can read these messages. The other attributes are ours. There are at most ten attributes, as SQS
//! requires.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Format, Oversize, destination, pack};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, IdempotencyKey, KeySource};
use crate::outbox::History;

/// The largest message in bytes: the body with the names, types and values of the attributes (SQS developer guide,
/// "Message quotas"). A queue may have a lower limit.
pub const MESSAGE_BYTES_MAX: usize = 1_048_576;

/// The name of the attribute that carries [`Envelope`].
pub const ENVELOPE: &str = "Sendoff";

/// The most bytes of `ErrorMessage`, as in Lambda's own dead letters.
const ERROR_MESSAGE_BYTES_MAX: usize = 1_024;

/// The most characters of a FIFO queue's message group id (SQS API reference, `SendMessage`).
const GROUP_CHARS_MAX: usize = 128;

/// One SQS message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The event's id. Also the batch entry's id, and the deduplication id on a FIFO queue.
    pub id: EventId,
    /// The function, in the characters that a message group id allows. The group on a FIFO queue.
    pub group: String,
    pub body: String,
    pub attributes: BTreeMap<String, Attribute>,
    /// `AWSTraceHeader`, SQS's only system attribute. `None` unless it is well formed, because SQS would refuse the
    /// message.
    pub trace_header: Option<String>,
}

impl Message {
    /// The size that SQS counts against its limit. System attributes do not count.
    pub fn bytes(&self) -> usize {
        let attributes = self.attributes.iter();
        self.body.len() + attributes.map(|(name, attribute)| name.len() + attribute.bytes()).sum::<usize>()
    }
}

/// A message attribute of SQS type String or Number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    String(String),
    Number(i64),
}

impl Attribute {
    /// SQS's name of the type.
    pub fn data_type(&self) -> &'static str {
        match self {
            Self::String(_) => "String",
            Self::Number(_) => "Number",
        }
    }

    /// The value as SQS expects it. Numbers are text, too.
    pub fn value(&self) -> String {
        match self {
            Self::String(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }

    fn bytes(&self) -> usize {
        self.data_type().len()
            + match self {
                Self::String(text) => text.len(),
                Self::Number(number) => number.to_string().len(),
            }
    }
}

/// Everything that a redrive needs besides the body. One attribute, in JSON. Later versions may add fields, but must
/// not change what a field means.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub id: EventId,
    pub function: String,
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qualifier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    pub key: String,
    pub key_source: KeySource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_header: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_context: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable_execution_name: Option<String>,
    pub accepted_at: UnixMillis,
    #[serde(default)]
    pub redrives: u32,
    /// The payload was empty, which SQS does not allow. The body is `{}`, as Lambda reads an empty payload.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_payload: bool,
    /// The body is a destination record, with the payload in it, ...
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_record: bool,
    /// ... as a JSON string, because the payload is not JSON.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub text_payload: bool,
    /// The body is compressed ([`pack`]): the payload, byte for byte, or the record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compressed: bool,
}

impl Envelope {
    pub fn of(event: &Event) -> Self {
        let Event { id, function, key, carried, payload, accepted_at, deliver_at: _, expires_at: _, redrives } = event;
        Self {
            id: *id,
            function: function.name.as_str().to_owned(),
            address: function.address.clone(),
            qualifier: function.qualifier.clone(),
            region: function.region.clone(),
            key: key.outward().value,
            key_source: key.source,
            trace_header: carried.trace_header.clone(),
            client_context: carried.client_context.clone(),
            tenant_id: carried.tenant_id.clone(),
            durable_execution_name: carried.durable_execution_name.clone(),
            accepted_at: *accepted_at,
            redrives: *redrives,
            empty_payload: payload.is_empty(),
            in_record: false,
            text_payload: false,
            compressed: false,
        }
    }
}

/// Why an event cannot become a message. It stays in the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unshippable {
    #[error("the message would have {bytes} bytes{}, the queue takes {limit}", if *.compressed { " even compressed" } else { "" })]
    TooLarge { bytes: usize, limit: usize, compressed: bool },
    #[error("the payload is not JSON text: SQS cannot carry its bytes")]
    NotText,
    #[error("the envelope cannot be written")]
    Envelope,
    #[error("the body cannot be compressed")]
    NotPackable,
}

/// Makes the dead letter of an event, for a queue that accepts messages of up to `bytes_max`.
pub fn message_of(
    event: &Event,
    history: &History,
    format: Format,
    oversize: Oversize,
    bytes_max: usize,
) -> Result<Message, Unshippable> {
    let mut envelope = Envelope::of(event);
    let (body, record) = match format {
        Format::DeadLetterQueue => (body_of(&event.payload)?, None),
        Format::Destination => {
            let (record, text_payload) = destination::body_of(event, history).ok_or(Unshippable::NotText)?;
            envelope.in_record = true;
            envelope.text_payload = text_payload;
            (carriable_json(&record).ok_or(Unshippable::NotText)?, Some(record))
        }
    };
    let message = with_attributes(event, history, &envelope, body)?;
    let bytes = message.bytes();
    if bytes <= bytes_max {
        return Ok(message);
    }
    if oversize == Oversize::Keep {
        return Err(Unshippable::TooLarge { bytes, limit: bytes_max, compressed: false });
    }
    envelope.compressed = true;
    // Compress the original bytes: base64 needs no escapes for characters that SQS refuses.
    let packed = pack::pack(record.as_deref().map_or(&event.payload[..], str::as_bytes));
    let message = with_attributes(event, history, &envelope, packed.map_err(|_| Unshippable::NotPackable)?)?;
    match message.bytes() {
        bytes if bytes > bytes_max => Err(Unshippable::TooLarge { bytes, limit: bytes_max, compressed: true }),
        _ => Ok(message),
    }
}

fn with_attributes(
    event: &Event,
    history: &History,
    envelope: &Envelope,
    body: String,
) -> Result<Message, Unshippable> {
    Ok(Message {
        id: event.id,
        group: group_of(event.function.name.as_str()),
        body,
        attributes: attributes_of(event, history, envelope)?,
        trace_header: event.carried.trace_header.clone().filter(|header| is_trace_header(header)),
    })
}

fn body_of(payload: &[u8]) -> Result<String, Unshippable> {
    if payload.is_empty() {
        return Ok("{}".to_owned());
    }
    let text = std::str::from_utf8(payload).map_err(|_| Unshippable::NotText)?;
    carriable_json(text).ok_or(Unshippable::NotText)
}

fn attributes_of(
    event: &Event,
    history: &History,
    envelope: &Envelope,
) -> Result<BTreeMap<String, Attribute>, Unshippable> {
    let compressed = envelope.compressed;
    let envelope = serde_json::to_string(envelope).map_err(|_| Unshippable::Envelope)?;
    let envelope = carriable_json(&envelope).ok_or(Unshippable::Envelope)?;
    let request_id = history.last.as_ref().and_then(|last| last.request_id.as_deref()).map(carriable);
    let request_id = request_id.filter(|id| !id.is_empty()).unwrap_or_else(|| event.id.to_string());
    let mut attributes: Vec<(&str, Attribute)> = vec![
        ("RequestID", Attribute::String(request_id)),
        ("ErrorCode", Attribute::Number(history.last.as_ref().map_or(0, |last| i64::from(last.status)))),
        ("ErrorMessage", Attribute::String(error_message(history))),
        ("Function", Attribute::String(carriable(event.function.name.as_str()))),
        ("Attempts", Attribute::Number(i64::from(history.attempts))),
        ("AcceptedAt", Attribute::String(event.accepted_at.rfc3339())),
        (ENVELOPE, Attribute::String(envelope)),
    ];
    if let Some(burial) = &history.burial {
        attributes.push(("Reason", Attribute::String(burial.reason.as_str().to_owned())));
    }
    if let Some(key) = given_key(&event.key) {
        attributes.push(("IdempotencyKey", Attribute::String(key)));
    }
    if compressed {
        attributes.push(("ContentEncoding", Attribute::String(pack::ENCODING.to_owned())));
    }
    let filled = attributes.into_iter().filter(|(_, value)| *value != Attribute::String(String::new()));
    Ok(filled.map(|(name, value)| (name.to_owned(), value)).collect())
}

/// The key for people and consumers, if a client chose it. The envelope has the exact key.
fn given_key(key: &IdempotencyKey) -> Option<String> {
    match key.source {
        KeySource::Minted | KeySource::SdkInvocationId => None,
        KeySource::Header
        | KeySource::DurableExecutionName
        | KeySource::Field
        | KeySource::ClientContext
        | KeySource::Expression
        | KeySource::CloudEvent => Some(carriable(&key.value)),
    }
}

fn error_message(history: &History) -> String {
    let words = match &history.last {
        None => "no attempt was made".to_owned(),
        Some(last) if last.message.is_empty() => carriable(&last.code),
        Some(last) => carriable(&format!("{}: {}", last.code, last.message)),
    };
    words[..words.floor_char_boundary(ERROR_MESSAGE_BYTES_MAX)].to_owned()
}

/// Whether SQS accepts this character (SQS API reference, `SendMessage`): those of XML 1.0.
pub fn is_carriable(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{fffd}' | '\u{10000}'..)
}

/// Replaces the characters that SQS refuses.
fn carriable(text: &str) -> String {
    text.chars().map(|c| if is_carriable(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// The same JSON in characters that SQS accepts. U+FFFE and U+FFFF can only be inside of JSON strings, where their
/// escapes mean the same. `None` means that it has raw control characters, which JSON forbids.
pub fn carriable_json(json: &str) -> Option<String> {
    if json.chars().all(is_carriable) {
        return Some(json.to_owned());
    }
    let json = json.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff");
    json.chars().all(is_carriable).then_some(json)
}

/// The function as a group id: at most 128 letters, digits and punctuation marks of ASCII. If two functions get the
/// same group, SQS only delivers them in order.
fn group_of(function: &str) -> String {
    function.chars().take(GROUP_CHARS_MAX).map(|c| if c.is_ascii_graphic() { c } else { '-' }).collect()
}

/// Whether a header contains `Root=1-<8 hex>-<24 hex>`, alone or among other fields (X-Ray developer guide, "Tracing
/// header").
fn is_trace_header(header: &str) -> bool {
    let is_hex =
        |text: Option<&str>, len| text.is_some_and(|t| t.len() == len && t.bytes().all(|b| b.is_ascii_hexdigit()));
    header.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        && header.split(';').filter_map(|field| field.trim().strip_prefix("Root=")).any(|root| {
            let mut parts = root.split('-');
            parts.next() == Some("1") && is_hex(parts.next(), 8) && is_hex(parts.next(), 24) && parts.next().is_none()
        })
}

#[cfg(test)]
mod tests;
