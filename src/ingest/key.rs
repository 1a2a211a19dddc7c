//! Finds the idempotency key of an event. Sources take precedence in the order of [`KeySource`].

use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::event::{IdempotencyKey, KEY_CHARS_MAX, KeySource};
use crate::ingest::exact;
use crate::ingest::refusal::Refusal;
use crate::ingest::rules::KeyExpression;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const SDK_INVOCATION_ID: HeaderName = HeaderName::from_static("amz-sdk-invocation-id");

/// The keys in the head of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offers {
    /// A key that the client set on purpose.
    explicit: Option<IdempotencyKey>,
    /// A key that is always present. Counts only if the payload has none.
    sdk: Option<IdempotencyKey>,
}

impl Offers {
    /// Reads the head. `client_context` is the decoded header. Refuses an invalid key that the client set on purpose,
    /// because without it repeats would be stored.
    pub fn read(
        headers: &HeaderMap,
        durable_execution_name: Option<&str>,
        client_context: Option<&Map<String, Value>>,
    ) -> Result<Self, Refusal> {
        let explicit = match (idempotency_key(headers)?, durable_execution_name, client_context) {
            (Some(value), ..) => Some(IdempotencyKey { value, source: KeySource::Header }),
            (None, Some(name), _) => {
                Some(IdempotencyKey { value: name.to_owned(), source: KeySource::DurableExecutionName })
            }
            (None, None, Some(context)) => context_key(context)?,
            (None, None, None) => None,
        };
        Ok(Self { explicit, sdk: sdk_invocation_id(headers) })
    }

    /// The key of the native door: the header, else the field. An SDK's invocation id does not count there.
    pub fn native(headers: Option<&HeaderMap>, field: Option<String>) -> Result<Self, Refusal> {
        let header = headers.map(idempotency_key).transpose()?.flatten();
        // Checked even if the header takes precedence: an invalid key is a mistake that the client should see.
        if field.as_ref().is_some_and(|value| !is_key(value)) {
            return Err(Refusal::content(format!(
                "idempotency_key must have 1 to {KEY_CHARS_MAX} characters, none of them a control character"
            )));
        }
        let of = |source| move |value| IdempotencyKey { value, source };
        let explicit = header.map(of(KeySource::Header)).or(field.map(of(KeySource::Field)));
        Ok(Self { explicit, sdk: None })
    }

    /// Chooses the key, given the payload and the function's expression. Makes a key from `random_bits` if none was given.
    /// Refuses a payload in which the expression cannot distinguish two events.
    pub fn choose(
        self,
        payload: &[u8],
        expression: Option<&KeyExpression>,
        random_bits: impl FnOnce() -> u128,
    ) -> Result<IdempotencyKey, Refusal> {
        if let Some(explicit) = self.explicit {
            return Ok(explicit);
        }
        let found = expression.map(|expression| expression.key(payload)).transpose()?.flatten();
        Ok(found.or_else(|| cloud_event(payload)).or(self.sdk).unwrap_or_else(|| mint(random_bits())))
    }
}

/// A unique key.
pub fn mint(random_bits: u128) -> IdempotencyKey {
    let value = uuid::Builder::from_random_bytes(random_bits.to_be_bytes()).into_uuid().to_string();
    IdempotencyKey { value, source: KeySource::Minted }
}

/// The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header-07): a quoted string of RFC 8941, or bare, as
/// most clients write it.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let refused = |why: &str| Err(Refusal::content(format!("Idempotency-Key {why}")));
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return refused("must be given once");
    }
    let Some(text) = value.to_str().ok().filter(|text| is_printable(text)) else {
        return refused("must be printable ASCII");
    };
    let key = if text.starts_with('"') {
        let Some(key) = quoted(text) else { return refused("has quotes that do not match") };
        key
    } else {
        text.to_owned()
    };
    if !(1..=KEY_CHARS_MAX).contains(&key.chars().count()) {
        return refused(&format!("must have 1 to {KEY_CHARS_MAX} characters"));
    }
    Ok(Some(key))
}

/// The value of a quoted string (RFC 8941 section 3.3.3). Parameters after it are allowed and ignored.
fn quoted(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut rest = text.strip_prefix('"')?.chars();
    loop {
        match rest.next()? {
            '"' => break,
            '\\' => value.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            plain => value.push(plain),
        }
    }
    let after = rest.as_str().trim_start();
    (after.is_empty() || after.starts_with(';')).then_some(value)
}

/// `custom.idempotency_key`, the only place where the AWS CLI can pass a key.
fn context_key(context: &Map<String, Value>) -> Result<Option<IdempotencyKey>, Refusal> {
    let Some(given) = context.get("custom").and_then(|custom| custom.get("idempotency_key")) else { return Ok(None) };
    match given.as_str().filter(|value| is_key(value)) {
        Some(value) => Ok(Some(IdempotencyKey { value: value.to_owned(), source: KeySource::ClientContext })),
        None => Err(Refusal::content(format!(
            "custom.idempotency_key of the client context must be a string of 1 to {KEY_CHARS_MAX} characters, \
            none of them a control character"
        ))),
    }
}

/// The same on every retry of one SDK call. Scoped to the access key id, because ids are unique only within one caller.
/// An unprintable or overlong id is ignored, since nobody chose it on purpose. Stored as a digest, because the key is
/// sent to Lambda and SQS and must not disclose the access key id.
fn sdk_invocation_id(headers: &HeaderMap) -> Option<IdempotencyKey> {
    let id = headers.get(SDK_INVOCATION_ID)?.to_str().ok().filter(|id| !id.is_empty() && is_printable(id))?;
    let access_key = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(access_key);
    let access_key = access_key.unwrap_or("-");
    (access_key.len() + id.len() < KEY_CHARS_MAX).then(|| IdempotencyKey::of_sdk(access_key, id))
}

/// The access key id in the `Credential` of a version 4 signature.
fn access_key(authorization: &str) -> Option<&str> {
    let (_, credential) = authorization.split_once("Credential=")?;
    let (access_key, _) = credential.split_once('/')?;
    (!access_key.is_empty()).then_some(access_key)
}

/// The key of a CloudEvent (CloudEvents 1.0.2 section 3.1), whose `source` and `id` together are unique.
fn cloud_event(payload: &[u8]) -> Option<IdempotencyKey> {
    // Searching the text first avoids a second parse of most payloads.
    let text = std::str::from_utf8(payload).ok()?;
    if !text.trim_start().starts_with('{') || !text.contains("\"specversion\"") {
        return None;
    }
    let read = exact::read(text)?.value;
    let fields = read.as_object()?;
    let text_of =
        |name: &str| fields.get(name)?.as_string().filter(|text| !text.is_empty() && exact::number_in(text).is_none());
    let (Some(_), Some(source), Some(id)) = (text_of("specversion"), text_of("source"), text_of("id")) else {
        return None;
    };
    // A JSON array, because any plain separator could occur in the values and let two events share a key.
    let pair = serde_json::to_string(&(source, id)).ok()?;
    let plain = pair.chars().count() <= KEY_CHARS_MAX && !exact::stands_in(&pair);
    let value = if plain { pair } else { sha256_hex(pair.as_bytes()) };
    Some(IdempotencyKey { value, source: KeySource::CloudEvent })
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text can be a key: any script, but one line, and not longer than the limit.
fn is_key(text: &str) -> bool {
    (1..=KEY_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn header_key(value: &str) -> Result<String, String> {
        let offers = Offers::read(&headers(&[("idempotency-key", value)]), None, None);
        offers
            .and_then(|offers| offers.choose(b"", None, || 0))
            .map(|key| key.value)
            .map_err(|refusal| refusal.message())
    }

    #[test]
    fn a_header_key_is_quoted_or_bare() {
        let long = "k".repeat(KEY_CHARS_MAX);
        for (header, key) in [
            ("order-1", "order-1"),
            ("\"order-1\"", "order-1"),
            ("\"a \\\"b\\\" \\\\c\"", "a \"b\" \\c"),
            ("\"k\"; p=1", "k"),
            ("a b", "a b"),
            (&long, &long),
        ] {
            assert_eq!(header_key(header).as_deref(), Ok(key), "{header}");
        }
    }

    #[test]
    fn a_header_key_that_is_not_valid_is_refused() {
        let too_long = "k".repeat(KEY_CHARS_MAX + 1);
        for (header, why) in [
            ("", "must have 1 to 255 characters"),
            ("\"\"", "must have 1 to 255 characters"),
            (too_long.as_str(), "must have 1 to 255 characters"),
            ("\"open", "has quotes that do not match"),
            ("\"", "has quotes that do not match"),
            ("\"a\"b", "has quotes that do not match"),
            ("\"a\\b\"", "has quotes that do not match"),
            ("a\tb", "must be printable ASCII"),
        ] {
            assert_eq!(header_key(header), Err(format!("Idempotency-Key {why}")), "{header}");
        }
        let mut twice = headers(&[("idempotency-key", "a")]);
        twice.append(IDEMPOTENCY_KEY, HeaderValue::from_static("a"));
        assert!(Offers::read(&twice, None, None).is_err());
        let mut latin = HeaderMap::new();
        latin.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(b"caf\xe9").unwrap());
        assert!(Offers::read(&latin, None, None).is_err());
    }

    #[test]
    fn the_best_source_counts() {
        let all = headers(&[
            ("idempotency-key", "k"),
            ("amz-sdk-invocation-id", "5f2c"),
            ("authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/eu-central-1/lambda/aws4_request"),
        ]);
        let sdk_only = headers(&[("amz-sdk-invocation-id", "5f2c"), ("authorization", "AWS4 Credential=AKID/x")]);
        let unsigned = headers(&[("amz-sdk-invocation-id", "5f2c")]);
        let none = HeaderMap::new();
        let context: Map<String, Value> = serde_json::from_str(r#"{"custom":{"idempotency_key":"c"}}"#).unwrap();
        let plain: Map<String, Value> = serde_json::from_str(r#"{"custom":{"other":1}}"#).unwrap();
        let cloud = br#"{"specversion":"1.0","id":"7","source":"/orders","data":{}}"#;
        for (headers, durable, context, payload, value, source) in [
            (&all, Some("d"), Some(&context), &cloud[..], "k", KeySource::Header),
            (&sdk_only, Some("d"), Some(&context), cloud, "d", KeySource::DurableExecutionName),
            (&sdk_only, None, Some(&context), cloud, "c", KeySource::ClientContext),
            (&sdk_only, None, Some(&plain), cloud, r#"["/orders","7"]"#, KeySource::CloudEvent),
            (&sdk_only, None, None, b"{}", "155b95debae74ea02732a8a68c83a113", KeySource::SdkInvocationId),
            (&unsigned, None, None, b"{}", "fefaedad5d38d3393b80a01069419149", KeySource::SdkInvocationId),
            (&none, None, None, b"{}", "00000000-0000-4000-8000-000000000001", KeySource::Minted),
        ] {
            let key = Offers::read(headers, durable, context).unwrap().choose(payload, None, || 1).unwrap();
            assert_eq!((key.value.as_str(), key.source), (value, source));
        }
    }

    #[test]
    fn an_expression_comes_after_what_the_client_names_and_before_what_happens_to_be_there() {
        let id = KeyExpression::parse("id").unwrap();
        let cloud = br#"{"specversion":"1.0","id":"7","source":"/orders","data":{}}"#;
        let sdk = headers(&[("amz-sdk-invocation-id", "5f2c")]);
        let named = headers(&[("idempotency-key", "k")]);
        for (headers, payload, value, source) in [
            (&named, &cloud[..], "k", KeySource::Header),
            (&sdk, cloud, "7", KeySource::Expression),
            (&sdk, br#"{"id":null}"#, "fefaedad5d38d3393b80a01069419149", KeySource::SdkInvocationId),
        ] {
            let key = Offers::read(headers, None, None).unwrap().choose(payload, Some(&id), || 1).unwrap();
            assert_eq!((key.value.as_str(), key.source), (value, source));
        }
    }

    #[test]
    fn the_native_doors_key_is_the_header_or_the_field() {
        let header = headers(&[("idempotency-key", "h"), ("amz-sdk-invocation-id", "5f2c")]);
        let choose = |headers, field: Option<&str>| {
            let key = Offers::native(headers, field.map(str::to_owned)).unwrap().choose(b"", None, || 1).unwrap();
            (key.value, key.source)
        };
        assert_eq!(choose(Some(&header), Some("f")), ("h".to_owned(), KeySource::Header));
        assert_eq!(choose(None, Some("straße 7")), ("straße 7".to_owned(), KeySource::Field));
        assert_eq!(choose(Some(&HeaderMap::new()), None).1, KeySource::Minted);
        for field in ["", "a\nb", &"k".repeat(256)] {
            for headers in [None, Some(&header)] {
                assert!(Offers::native(headers, Some(field.to_owned())).is_err(), "{field:?}");
            }
        }
    }

    #[test]
    fn a_key_in_the_client_context_that_is_not_valid_is_refused() {
        for json in [
            r#"{"custom":{"idempotency_key":7}}"#,
            r#"{"custom":{"idempotency_key":""}}"#,
            r#"{"custom":{"idempotency_key":"a\u0000b"}}"#,
        ] {
            let context: Map<String, Value> = serde_json::from_str(json).unwrap();
            assert!(Offers::read(&HeaderMap::new(), None, Some(&context)).is_err(), "{json}");
        }
    }

    #[test]
    fn only_a_whole_cloud_event_offers_a_key() {
        for payload in [
            r#"[{"specversion":"1.0","id":"7","source":"s"}]"#,
            r#"["specversion","s","7"]"#,
            r#"{"specversion":"1.0","id":7,"source":"s"}"#,
            r#"{"specversion":"1.0","id":"","source":"s"}"#,
            r#"{"specversion":"1.0","source":"s"}"#,
            r#"{"data":{"specversion":"1.0","id":"7","source":"s"}}"#,
            r#""specversion""#,
            "",
        ] {
            assert_eq!(cloud_event(payload.as_bytes()), None, "{payload}");
        }
    }

    #[test]
    fn two_cloud_events_never_share_a_key() {
        let key = |source: &str, id: &str| {
            let payload = serde_json::json!({ "specversion": "1.0", "source": source, "id": id }).to_string();
            cloud_event(payload.as_bytes()).unwrap().value
        };
        assert_ne!(key("a/b", "c"), key("a", "b/c"));
        assert_ne!(key("a\",\"b", "c"), key("a", "b\",\"c"));
        let long = "s".repeat(400);
        let half = |half: &str| {
            cloud_event(format!(r#"{{"specversion":"1.0","source":"s","id":"{half}"}}"#).as_bytes()).unwrap()
        };
        assert_ne!(half(r"\ud83d"), half(r"\ude00"));
        assert_eq!(half(r#"a","id":"b"#).value, r#"["s","b"]"#, "of two fields of one name the last counts");
        assert_eq!(key(&long, "1").len(), 64);
        assert_ne!(key(&long, "1"), key(&long, "2"));
    }
}
