//! The digests under which keys are remembered. `enqueue` computes the same in SQL.

use sha2::{Digest, Sha256};

use super::base::{New, Remembered};
use crate::event::{Event, EventId, FunctionName, KeySource};
use crate::outbox::handoff::RememberedKey;

/// The kinds of keys. Their windows differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// A client's own key.
    Given,
    /// The invocation id of an SDK.
    Sdk,
    /// An event that returned from a queue.
    Redriven,
    /// The id of an event that came from another store.
    Adopted,
}

impl Family {
    pub(super) fn number(self) -> i16 {
        match self {
            Self::Given => 0,
            Self::Sdk => 1,
            Self::Redriven => 2,
            Self::Adopted => 3,
        }
    }
}

/// The key of an event, if it can repeat.
pub(super) fn remembered(event: &Event) -> Option<Remembered> {
    let family = match event.key.source {
        KeySource::Minted => return None,
        KeySource::SdkInvocationId => Family::Sdk,
        KeySource::Header
        | KeySource::DurableExecutionName
        | KeySource::Field
        | KeySource::ClientContext
        | KeySource::Expression
        | KeySource::CloudEvent => Family::Given,
    };
    Some(given(family, &event.function.name, event.carried.tenant_id.as_deref(), &event.key.value))
}

/// A key that a client has given.
pub(super) fn given(family: Family, function: &FunctionName, tenant: Option<&str>, value: &str) -> Remembered {
    let function = function.as_str();
    // Neither function names nor tenant ids contain control characters, so different parts never give the same bytes.
    let digest = match tenant {
        None => digest(&[function, "\0", value].map(str::as_bytes)),
        Some(tenant) => digest(&[function, "\u{1}", tenant, "\0", value].map(str::as_bytes)),
    };
    Remembered { family, digest }
}

/// The key of an event that returned from a queue: the name of its dead letter, and how often it was redriven.
pub(super) fn redriven(function: &FunctionName, origin: &str, redrives: u32) -> Remembered {
    let parts = [function.as_str().as_bytes(), &[0], &redrives.to_be_bytes(), origin.as_bytes()];
    Remembered { family: Family::Redriven, digest: digest(&parts) }
}

/// The id of an event that came from another store. No function's name begins with a zero byte.
pub(super) fn adopted(id: EventId) -> Remembered {
    Remembered { family: Family::Adopted, digest: digest(&[b"\0adopted\0", id.as_bytes()]) }
}

/// A key as another store remembers it (`outbox/handoff.rs`): a letter for its kind, and the same digest as here, or an id.
pub(super) fn learned(key: [u8; RememberedKey::BYTES]) -> Option<Remembered> {
    let (kind, rest) = key.split_first()?;
    let digest: [u8; 16] = rest.try_into().ok()?;
    let family = match kind {
        b'h' => return Some(adopted(EventId::from_bytes(digest))),
        b'i' => Family::Redriven,
        b'j' => Family::Sdk,
        b'k' => Family::Given,
        _ => return None,
    };
    Some(Remembered { family, digest })
}

/// The first 16 bytes of the payload's SHA-256.
pub(super) fn print(payload: &[u8]) -> [u8; 16] {
    digest(&[payload])
}

pub(super) fn new(event: Event) -> New {
    New { key: remembered(&event), print: print(&event.payload), event }
}

/// The number of a function's lane: 63 bits of the SHA-256 of its name. Two databases, or one before and after a failover,
/// give a function the same number.
pub(super) fn lane(function: &FunctionName) -> i64 {
    let digest = Sha256::digest(function.as_str());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first) & i64::MAX
}

fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    let mut first = [0; 16];
    first.copy_from_slice(&digest.finalize()[..16]);
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMillis};
    use crate::event::testing::event;
    use crate::event::{Carried, IdempotencyKey};

    #[test]
    fn the_number_of_a_lane_is_never_negative_and_never_changes() {
        // Rows in databases have these numbers.
        assert_eq!(lane(&FunctionName::new("orders")), 2_023_957_755_765_852_388);
        for n in 0..100 {
            assert!(lane(&FunctionName::new(&format!("f{n}"))) >= 0);
        }
    }

    #[test]
    fn keys_of_other_tenants_families_and_functions_differ() {
        let clock = Clock::seeded(UnixMillis(1), 1);
        let keyed = |function: &str, source, tenant: Option<&str>| {
            let carried = Carried { tenant_id: tenant.map(str::to_owned), ..Carried::default() };
            let key = IdempotencyKey { value: "k".into(), source };
            remembered(&Event { key, carried, ..event(&clock, function) })
        };
        assert_eq!(keyed("a", KeySource::Minted, None), None);
        assert_eq!(keyed("a", KeySource::Header, None), keyed("a", KeySource::Field, None));
        let all = [
            keyed("a", KeySource::Header, None),
            keyed("b", KeySource::Header, None),
            keyed("a", KeySource::Header, Some("t")),
            keyed("a", KeySource::SdkInvocationId, None),
            Some(redriven(&FunctionName::new("a"), "k", 1)),
            Some(adopted(EventId::from_bytes([7; 16]))),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().flatten().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn keys_of_the_embedded_engine_are_the_same_here() {
        use crate::outbox::embedded::keys as embedded;
        let clock = Clock::seeded(UnixMillis(1), 1);
        for (source, tenant) in
            [(KeySource::Header, None), (KeySource::Field, Some("t")), (KeySource::SdkInvocationId, None)]
        {
            let carried = Carried { tenant_id: tenant.map(str::to_owned), ..Carried::default() };
            let event = Event { key: IdempotencyKey { value: "k".into(), source }, carried, ..event(&clock, "orders") };
            assert_eq!(learned(embedded::remembered_of(&event).unwrap()), remembered(&event));
        }
        let name = FunctionName::new("orders");
        let of = |key: Vec<u8>| learned(key.try_into().unwrap());
        assert_eq!(of(embedded::redriven(&name, "message", 3)), Some(redriven(&name, "message", 3)));
        let id = EventId::from_bytes([9; 16]);
        assert_eq!(of(embedded::adopted(id)), Some(adopted(id)));
        assert_eq!(print(b"{}"), embedded::fingerprint(b"{}"));
        assert_eq!(learned([b'x'; 17]), None);
    }
}
