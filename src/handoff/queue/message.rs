//! An event as a message of a hand-off queue. Pure.
//!
//! The body is the payload, byte for byte. A payload that SQS cannot carry as text, or that is too large for a message, is
//! packed ([`pack`]). One attribute has everything else.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::UnixMillis;
use crate::deadletter::letter::{HANDED, Received};
use crate::deadletter::message::{Attribute, ENVELOPE, Message, carriable_json, is_carriable};
use crate::deadletter::pack;
use crate::event::name::Home;
use crate::handoff::envelope::{ENVELOPE_BYTES_MAX, Envelope, FORMAT};
use crate::handoff::target::Parcel;
use crate::outbox::handoff::Handed;

/// The attribute, in JSON.
#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    /// Region and account of the sender. Names of functions are relative to them.
    region: Option<String>,
    account: Option<String>,
    /// The first 16 bytes of the payload's SHA-256, in hexadecimal.
    sha256_16: String,
    /// Whether the body is packed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    packed: bool,
    envelope: Envelope,
}

/// What every format has. Read first, because a later format may have anything else.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Why an event cannot become a message of this queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    #[error("its message would have {bytes} bytes even compressed, the queue takes {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("its message cannot be written")]
    Unwritable,
}

/// Makes the message of an event, for a queue that accepts messages of up to `bytes_max`.
pub fn message_of(parcel: &Parcel, home: &Home, bytes_max: usize) -> Result<Message, Unsendable> {
    let plain = std::str::from_utf8(&parcel.payload).ok();
    if let Some(text) = plain.filter(|text| !text.is_empty() && text.chars().all(is_carriable)) {
        let message = with_head(parcel, home, text.to_owned(), false)?;
        if message.bytes() <= bytes_max {
            return Ok(message);
        }
    }
    let packed = pack::pack(&parcel.payload).map_err(|_| Unsendable::Unwritable)?;
    let message = with_head(parcel, home, packed, true)?;
    match message.bytes() {
        bytes if bytes > bytes_max => Err(Unsendable::TooLarge { bytes, limit: bytes_max }),
        _ => Ok(message),
    }
}

fn with_head(parcel: &Parcel, home: &Home, body: String, packed: bool) -> Result<Message, Unsendable> {
    let head = Head {
        format: FORMAT,
        region: home.region.clone(),
        account: home.account_id.clone(),
        sha256_16: checksum(&parcel.payload),
        packed,
        envelope: parcel.envelope.clone(),
    };
    let head =
        serde_json::to_string(&head).ok().and_then(|json| carriable_json(&json)).ok_or(Unsendable::Unwritable)?;
    let mut attributes = BTreeMap::from([(HANDED.to_owned(), Attribute::String(head))]);
    if packed {
        attributes.insert("ContentEncoding".to_owned(), Attribute::String(pack::ENCODING.to_owned()));
    }
    Ok(Message { id: parcel.envelope.id, group: String::new(), body, attributes, trace_header: None })
}

/// Why a message stays on the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub kind: Kind,
    /// What is wrong, and what to do if we know.
    pub why: String,
}

/// What is wrong with a message that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not an event that a sendoff handed over, or in a later format.
    Foreign,
    /// From a sendoff of another region or account.
    Elsewhere,
    /// It was changed on its way, or no door would have accepted it.
    Broken,
}

impl Kind {
    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Elsewhere => "elsewhere",
            Self::Broken => "broken",
        }
    }
}

/// Reads a message. `home` and `now` are the receiver's.
pub fn read(received: &Received, home: &Home, now: UnixMillis) -> Result<Handed, Left> {
    let left = |kind, why: String| Left { kind, why };
    let Some(head) = received.attributes.get(HANDED) else {
        let why = if received.attributes.contains_key(ENVELOPE) {
            "it is a dead letter: bring it back with `sendoff redrive`, and give dead letters a queue of their own"
        } else {
            "it is not an event that a sendoff handed over"
        };
        return Err(left(Kind::Foreign, why.to_owned()));
    };
    let broken = |why: String| left(Kind::Broken, why);
    if head.len() > ENVELOPE_BYTES_MAX {
        return Err(broken(format!("the attribute {HANDED} has {} bytes of at most {ENVELOPE_BYTES_MAX}", head.len())));
    }
    let unread = |error: serde_json::Error| broken(format!("the attribute {HANDED} is broken: {error}"));
    let Format { format } = serde_json::from_str(head).map_err(unread)?;
    if format > FORMAT {
        let why = format!("its format is {format}, and this sendoff reads up to {FORMAT}: upgrade this one");
        return Err(left(Kind::Foreign, why));
    }
    let Head { format: _, region, account, sha256_16, packed, envelope } =
        serde_json::from_str(head).map_err(unread)?;
    if (&region, &account) != (&home.region, &home.account_id) {
        let place = |region: &Option<String>, account: &Option<String>| {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
            format!("region {}, account {}", or_none(region), or_none(account))
        };
        let (there, here) = (place(&region, &account), place(&home.region, &home.account_id));
        let why = format!(
            "its sender has {there}, and this sendoff has {here}: give both the same lambda.region and lambda.account_id"
        );
        return Err(left(Kind::Elsewhere, why));
    }
    let payload = match packed {
        true => pack::unpack(&received.body).map_err(broken)?.into(),
        false => Bytes::from(received.body.clone()),
    };
    if checksum(&payload) != sha256_16 {
        return Err(broken("its payload is not the one that was sent".to_owned()));
    }
    envelope.open(payload, home, now).map_err(broken)
}

fn checksum(payload: &[u8]) -> String {
    Sha256::digest(payload)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
