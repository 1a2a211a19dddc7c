//! The one value that flows: what a client handed over, and everything needed to hand it on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::clock::UnixMillis;

pub mod check;

pub mod name;

pub mod sendable;

#[cfg(test)]
pub mod testing;

pub use pattern::{Pattern, PatternError};

pub mod pattern;

/// The largest payload of an Event invocation, in bytes
/// (AWS, "Lambda quotas", gettingstarted-limits: 1 MB, which AWS counts as 1,048,576 bytes).
pub const PAYLOAD_BYTES_MAX: usize = 1_048_576;

/// The longest idempotency key, in characters.
pub const KEY_CHARS_MAX: usize = 255;

/// The permanent id of an event: a UUID version 7 (RFC 9562 section 5.7), so ids sort by the time of acceptance.
///
/// Its last two bytes repeat the function's tag, so that a store sorted by function can find an event by id alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[schema(value_type = String, format = "uuid")]
pub struct EventId(Uuid);

impl EventId {
    /// A new id with this time and these random bits.
    pub fn mint(accepted_at: UnixMillis, random_bits: u128, function: &FunctionName) -> Self {
        let mut random = [0; 10];
        random.copy_from_slice(&random_bits.to_be_bytes()[..10]);
        random[8..].copy_from_slice(&function.tag().to_be_bytes());
        Self(uuid::Builder::from_unix_timestamp_millis(accepted_at.0, &random).into_uuid())
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The time of acceptance, from the id's first 48 bits.
    pub fn accepted_at(&self) -> UnixMillis {
        let mut millis = [0; 8];
        millis[2..].copy_from_slice(&self.as_bytes()[..6]);
        UnixMillis(u64::from_be_bytes(millis))
    }

    /// Whether [`EventId::mint`] makes such ids: UUIDs of version 7 (RFC 9562).
    pub fn is_minted(&self) -> bool {
        self.0.get_version() == Some(uuid::Version::SortRand) && self.0.get_variant() == uuid::Variant::RFC4122
    }

    /// The tag of the function for which the id was made.
    pub fn function_tag(&self) -> u16 {
        let bytes = self.as_bytes();
        u16::from_be_bytes([bytes[14], bytes[15]])
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// The canonical name of a function: `[region/][account/]name[:qualifier]`. Region and account appear only if they
/// differ from the daemon's own. Every form that Lambda accepts for a function maps to the same `FunctionName`, and
/// therefore to the same lane, dedupe scope and metric label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FunctionName(Arc<str>);

impl FunctionName {
    pub fn new(canonical: &str) -> Self {
        Self(canonical.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The region in the name. `None` means the daemon's own region.
    pub fn region(&self) -> Option<&str> {
        let (first, _) = self.0.split_once('/')?;
        first.bytes().any(|byte| !byte.is_ascii_digit()).then_some(first)
    }

    /// Whether the name matches `pattern`, in which `*` matches any run of characters. Takes linear time.
    pub fn fits(&self, pattern: &str) -> bool {
        pattern::fits(pattern, &self.0)
    }

    /// Two bytes of FNV-1a. The tag is not unique; it only narrows a search to a few lanes.
    pub fn tag(&self) -> u16 {
        let hash =
            self.0.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        (hash >> 16) as u16 ^ hash as u16
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The function that an event is addressed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// The canonical name.
    pub name: FunctionName,
    /// `FunctionName` as the client wrote it, percent-decoded. sendoff sends it to Lambda unchanged.
    pub address: String,
    /// The `Qualifier` query parameter, if the client gave one.
    pub qualifier: Option<String>,
    /// The region of an ARN, even if it is the daemon's own region today. `None` means the daemon's own region, also
    /// after that has changed.
    pub region: Option<String>,
}

/// Where an idempotency key came from, in order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// The `Idempotency-Key` header.
    Header,
    /// `X-Amz-Durable-Execution-Name`.
    DurableExecutionName,
    /// The `idempotency_key` field of the native door.
    Field,
    /// `custom.idempotency_key` of the client context.
    ClientContext,
    /// The function's configured expression over the payload.
    Expression,
    /// `source` and `id` of a CloudEvent.
    CloudEvent,
    /// A digest of `amz-sdk-invocation-id` and the caller's access key id. It recognises an SDK's own retries of one call.
    SdkInvocationId,
    /// The client gave none, so sendoff made one for this event alone.
    Minted,
}

impl KeySource {
    pub const ALL: [Self; 8] = [
        Self::Header,
        Self::DurableExecutionName,
        Self::Field,
        Self::ClientContext,
        Self::Expression,
        Self::CloudEvent,
        Self::SdkInvocationId,
        Self::Minted,
    ];

    /// The word for it in headers, logs and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::DurableExecutionName => "durable-execution-name",
            Self::Field => "field",
            Self::ClientContext => "client-context",
            Self::Expression => "expression",
            Self::CloudEvent => "cloud-event",
            Self::SdkInvocationId => "sdk-invocation-id",
            Self::Minted => "minted",
        }
    }
}

/// Two requests with the same idempotency key are the same event. The value is user data: never log it whole.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    pub value: String,
    pub source: KeySource,
}

impl IdempotencyKey {
    /// Makes a key of an SDK's invocation id. The key is a digest, equal for every retry of the call, so that the access
    /// key id in it is not disclosed.
    pub fn of_sdk(access_key: &str, id: &str) -> Self {
        let digest = Sha256::digest(format!("{access_key}/{id}"));
        let value = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { value, source: KeySource::SdkInvocationId }
    }

    /// The key in the form that may leave the daemon. Earlier versions stored an SDK's id together with the access key id.
    pub fn outward(&self) -> Self {
        match (self.source, self.value.split_once('/')) {
            (KeySource::SdkInvocationId, Some((access_key, id))) => Self::of_sdk(access_key, id),
            (
                KeySource::SdkInvocationId
                | KeySource::Header
                | KeySource::DurableExecutionName
                | KeySource::Field
                | KeySource::ClientContext
                | KeySource::Expression
                | KeySource::CloudEvent
                | KeySource::Minted,
                _,
            ) => self.clone(),
        }
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} key of {} bytes", self.source.as_str(), self.value.len())
    }
}

/// The headers that travel with the payload. They stay as the client sent them, the same on every attempt (G4).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// `X-Amzn-Trace-Id` including its lineage, which Lambda's recursion detection needs.
    pub trace_header: Option<String>,
    /// `X-Amz-Client-Context`, base64.
    pub client_context: Option<String>,
    /// `X-Amz-Tenant-Id`.
    pub tenant_id: Option<String>,
    /// `X-Amz-Durable-Execution-Name`.
    pub durable_execution_name: Option<String>,
}

/// An accepted event.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    pub function: Function,
    pub key: IdempotencyKey,
    pub carried: Carried,
    /// The payload bytes as received. May be empty.
    pub payload: Bytes,
    pub accepted_at: UnixMillis,
    /// Do not attempt the event before this time.
    pub deliver_at: Option<UnixMillis>,
    /// After this time the event is buried instead of attempted.
    pub expires_at: Option<UnixMillis>,
    /// How often the event was redriven.
    pub redrives: u32,
}

/// Estimated memory of an event in bytes, without what the client sent: its fields, keys, and entries in a batch.
pub const EVENT_BYTES: usize = 1_024;

impl Event {
    /// Estimated memory in bytes that the event needs while it passes through the store.
    pub fn cost(&self) -> usize {
        let Carried { trace_header, client_context, tenant_id, durable_execution_name } = &self.carried;
        let carried = [trace_header, client_context, tenant_id, durable_execution_name];
        let carried: usize = carried.into_iter().flatten().map(String::len).sum();
        EVENT_BYTES + self.payload.len() + self.key.value.len() + carried
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {} for {}, {} bytes", self.id, self.function.name, self.payload.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_version_7_uuid_that_remembers_time_and_function() {
        let orders = FunctionName::new("orders:prod");
        let id = EventId::mint(UnixMillis(1_790_000_000_123), u128::MAX / 3, &orders);
        assert_eq!(id.0.get_version_num(), 7);
        assert_eq!(id.accepted_at(), UnixMillis(1_790_000_000_123));
        assert_eq!(id.function_tag(), orders.tag());
        assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
    }

    #[test]
    fn ids_sort_by_time_of_acceptance() {
        let orders = FunctionName::new("orders");
        assert!(EventId::mint(UnixMillis(5), u128::MAX, &orders) < EventId::mint(UnixMillis(6), 0, &orders));
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, name, fits) in [
            ("orders", "orders", true),
            ("orders", "orders-eu", false),
            ("orders-*", "orders-eu", true),
            ("orders-*", "orders", false),
            ("*", "anything:prod", true),
            ("*:prod", "orders:prod", true),
            ("*:prod", "orders:dev", false),
            ("a*b*c", "a-b-b-c", true),
        ] {
            assert_eq!(FunctionName::new(name).fits(pattern), fits, "{pattern} and {name}");
        }
    }

    #[test]
    fn debug_shows_neither_key_nor_payload() {
        let event = Event {
            id: EventId::from_bytes([1; 16]),
            function: Function {
                name: FunctionName::new("orders"),
                address: "orders".into(),
                qualifier: None,
                region: None,
            },
            key: IdempotencyKey { value: "secret-key".into(), source: KeySource::Header },
            carried: Carried::default(),
            payload: Bytes::from_static(b"secret-payload"),
            accepted_at: UnixMillis(0),
            deliver_at: None,
            expires_at: None,
            redrives: 0,
        };
        let shown = format!("{event:?} {:?}", event.key);
        assert!(!shown.contains("secret"), "{shown}");
    }
}
