//! Puts the idempotency key into the client context, as `custom.idempotency_key`. Pure.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::value::RawValue;

/// The longest client context, in bytes of base64 (Lambda API reference, `Invoke`).
const CONTEXT_BYTES_MAX: usize = 3_583;

/// The field that holds the key.
const KEY: &str = "idempotency_key";

/// Adds the key to the client's context. Leaves the context unchanged if it has a key already, is not an object that
/// can hold one, or would become too long. The same input gives the same bytes (G4).
pub(in crate::aws) fn with_key(context: Option<String>, key: &str) -> String {
    match context {
        None => BASE64_STANDARD.encode(serde_json::json!({ "custom": { KEY: key } }).to_string()),
        Some(context) => merged(&context, key).filter(|merged| merged.len() <= CONTEXT_BYTES_MAX).unwrap_or(context),
    }
}

/// Values keep their bytes. Only the names on the two rewritten levels are sorted.
fn merged(context: &str, key: &str) -> Option<String> {
    let json = BASE64_STANDARD.decode(context).ok()?;
    let mut outer: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&json).ok()?;
    let mut custom: BTreeMap<String, Box<RawValue>> = match outer.get("custom") {
        Some(custom) => serde_json::from_str(custom.get()).ok()?,
        None => BTreeMap::new(),
    };
    if custom.contains_key(KEY) {
        return None;
    }
    custom.insert(KEY.to_owned(), serde_json::value::to_raw_value(key).ok()?);
    outer.insert("custom".to_owned(), serde_json::value::to_raw_value(&custom).ok()?);
    Some(BASE64_STANDARD.encode(serde_json::to_vec(&outer).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base64(json: &str) -> String {
        BASE64_STANDARD.encode(json)
    }

    fn merged_json(json: &str) -> String {
        String::from_utf8(BASE64_STANDARD.decode(with_key(Some(base64(json)), "k-1")).unwrap()).unwrap()
    }

    #[test]
    fn without_a_context_the_key_makes_one() {
        assert_eq!(with_key(None, "k\"1"), base64(r#"{"custom":{"idempotency_key":"k\"1"}}"#));
    }

    #[test]
    fn the_key_joins_the_clients_own_context() {
        assert_eq!(merged_json("{}"), r#"{"custom":{"idempotency_key":"k-1"}}"#);
        assert_eq!(
            merged_json(r#"{"env": {"b": 1.50, "a": 12345678901234567890123}, "custom": {"z": [ 1 ]}}"#),
            r#"{"custom":{"idempotency_key":"k-1","z":[ 1 ]},"env":{"b": 1.50, "a": 12345678901234567890123}}"#,
        );
    }

    #[test]
    fn a_context_that_has_a_key_or_cannot_take_one_is_unchanged() {
        let long = format!(r#"{{"env":"{}"}}"#, "x".repeat(2_650));
        for json in [
            r#"{"custom":{"idempotency_key":"theirs"}}"#,
            r#"{"custom":{"idempotency_key":null}}"#,
            r#"{"custom":"text"}"#,
            r#"{"custom":null}"#,
            "[1]",
            "not JSON",
            "",
            &long,
        ] {
            assert_eq!(with_key(Some(base64(json)), "k-1"), base64(json), "{json}");
        }
        assert_eq!(with_key(Some("not base64!".into()), "k-1"), "not base64!");
    }
}
