//! Reads Invoke requests. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::request::Parts;
use serde::Deserialize;

use crate::event::PAYLOAD_BYTES_MAX;
use crate::standin::script::ErrorAnswer;

/// The largest payload of a `RequestResponse`, in bytes (AWS, "Lambda quotas": 6 MB).
pub(super) const SYNC_BYTES_MAX: usize = 6_291_456;

/// The longest `FunctionName` (Lambda API reference, Invoke).
const NAME_CHARS_MAX: usize = 256;

/// `X-Amz-Invocation-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvocationType {
    Event,
    RequestResponse,
    DryRun,
}

/// What the head of an Invoke request contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// `FunctionName`, percent-decoded, as it was sent.
    pub(super) function: String,
    /// From the name's suffix or the query.
    pub(super) name: String,
    /// Of the name's suffix or the query.
    pub(super) qualifier: Option<String>,
    pub(super) invocation_type: InvocationType,
    /// `X-Amz-Log-Type: Tail`.
    pub(super) tail: bool,
}

impl Asked {
    /// `name` or `name:qualifier`, by which scripts and counts are kept.
    pub(super) fn lane(&self) -> String {
        match &self.qualifier {
            Some(qualifier) => format!("{}:{qualifier}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Reads the head of a request. `None` means that method and path are not Invoke's.
pub(super) fn read_head(head: &Parts) -> Option<Result<Asked, ErrorAnswer>> {
    let segment = head.uri.path().strip_prefix("/2015-03-31/functions/")?.strip_suffix("/invocations")?;
    if head.method != http::Method::POST || segment.contains('/') {
        return None;
    }
    Some(read_invoke(segment, head))
}

fn read_invoke(segment: &str, head: &Parts) -> Result<Asked, ErrorAnswer> {
    let function = percent_decode(segment);
    let Some((name, suffix)) = function.as_deref().and_then(split_name) else {
        return Err(ErrorAnswer::new(
            400,
            "ValidationException",
            &format!(
                "1 validation error detected: Value '{}' at 'functionName' failed to satisfy constraint: Member must \
                 satisfy regular expression pattern: {NAME_PATTERN}",
                function.as_deref().unwrap_or(segment)
            ),
        ));
    };
    let (name, suffix) = (name.to_owned(), suffix.map(str::to_owned));
    let query = head.uri.query().and_then(query_qualifier);
    if let (Some(query), Some(suffix)) = (&query, &suffix)
        && query != suffix
    {
        return Err(ErrorAnswer::new(
            400,
            "InvalidParameterValueException",
            "The derived qualifier from the function name does not match the specified qualifier.",
        ));
    }
    let invocation_type = match text(&head.headers, "x-amz-invocation-type") {
        None | Some("RequestResponse") => InvocationType::RequestResponse,
        Some("Event") => InvocationType::Event,
        Some("DryRun") => InvocationType::DryRun,
        Some(other) => {
            return Err(ErrorAnswer::new(
                400,
                "ValidationException",
                &format!(
                    "1 validation error detected: Value '{other}' at 'invocationType' failed to satisfy constraint: \
                     Member must satisfy enum value set: [Event, RequestResponse, DryRun]"
                ),
            ));
        }
    };
    let tail = text(&head.headers, "x-amz-log-type") == Some("Tail");
    let function = function.unwrap_or_default();
    Ok(Asked { function, name, qualifier: suffix.or(query), invocation_type, tail })
}

/// Lambda's own pattern, as its error message quotes it.
const NAME_PATTERN: &str = r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?";

/// Splits the forms that Lambda accepts into name and qualifier. The shape of each part tells whether it is one of the
/// optional parts.
fn split_name(function: &str) -> Option<(&str, Option<&str>)> {
    if function.len() > NAME_CHARS_MAX {
        return None;
    }
    let mut parts = function.split(':').collect::<Vec<_>>();
    if let ["arn", partition, "lambda", ..] = parts[..]
        && (partition.is_empty() || partition.starts_with("aws"))
    {
        parts.drain(..3);
    }
    // A region is followed by an account. In `my-fn-1:prod`, `my-fn-1` is a name, though it has the shape of a region.
    if let [region, account, ..] = parts[..]
        && is_region(region)
        && is_account(account)
    {
        parts.remove(0);
    }
    let leads: [fn(&str) -> bool; 2] = [is_account, |part| part == "function"];
    for lead in leads {
        if parts.len() > 1 && lead(parts[0]) {
            parts.remove(0);
        }
    }
    let word = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c) || more.contains(c))
    };
    match parts[..] {
        [name] if word(name, ".") => Some((name, None)),
        [name, qualifier]
            if word(name, ".") && (word(qualifier, "") || ["$LATEST", "$LATEST.PUBLISHED"].contains(&qualifier)) =>
        {
            Some((name, Some(qualifier)))
        }
        _ => None,
    }
}

fn is_region(part: &str) -> bool {
    let mut words = part.split('-');
    part.contains('-')
        && words.next_back().is_some_and(|last| last.len() == 1 && last.bytes().all(|b| b.is_ascii_digit()))
        && words.all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase()))
}

fn is_account(part: &str) -> bool {
    part.len() == 12 && part.bytes().all(|b| b.is_ascii_digit())
}

fn query_qualifier(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("Qualifier="))?;
    percent_decode(value)
}

/// `None` means that an escape is broken or the bytes are not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// A header as text. `None` means that it is absent or not ASCII.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The idempotency key as sendoff sends it: in the client context, else as the name of the durable execution.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Option<String> {
    #[derive(Deserialize)]
    struct Context {
        custom: Custom,
    }
    #[derive(Deserialize)]
    struct Custom {
        idempotency_key: String,
    }
    let in_context = || {
        let json = STANDARD.decode(text(headers, "x-amz-client-context")?).ok()?;
        Some(serde_json::from_slice::<Context>(&json).ok()?.custom.idempotency_key)
    };
    in_context().or_else(|| text(headers, "x-amz-durable-execution-name").map(str::to_owned))
}

/// Checks the body as Lambda does before it accepts an event.
pub(super) fn check_payload(invocation_type: InvocationType, payload: &[u8]) -> Result<(), ErrorAnswer> {
    if invocation_type == InvocationType::Event && payload.len() > PAYLOAD_BYTES_MAX {
        return Err(too_large(invocation_type, Some(payload.len())));
    }
    if payload.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(payload) {
        Ok(_) => Ok(()),
        Err(why) => Err(ErrorAnswer::new(
            400,
            "InvalidRequestContentException",
            &format!("Could not parse request body into json: Could not parse payload into json: {why}"),
        )),
    }
}

/// Lambda's messages for a payload beyond the limit of its type. `len` is the length if it is known.
pub(super) fn too_large(invocation_type: InvocationType, len: Option<usize>) -> ErrorAnswer {
    let message = match (invocation_type, len) {
        (InvocationType::Event, Some(len)) => {
            format!("{len} byte payload is too large for the Event invocation type (limit {PAYLOAD_BYTES_MAX} bytes)")
        }
        (InvocationType::Event | InvocationType::RequestResponse | InvocationType::DryRun, _) => {
            format!("Request must be smaller than {SYNC_BYTES_MAX} bytes for the InvokeFunction operation")
        }
    };
    ErrorAnswer::new(413, "RequestEntityTooLargeException", &message)
}

/// The string (or number, as written) in the top-level `field` of a JSON object.
pub(super) fn payload_id(payload: &[u8], field: &str) -> Option<String> {
    let fields =
        serde_json::from_slice::<std::collections::BTreeMap<String, &serde_json::value::RawValue>>(payload).ok()?;
    let value = fields.get(field)?.get();
    Some(serde_json::from_str::<String>(value).unwrap_or_else(|_| value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_a_name_lead_to_name_and_qualifier() {
        for (form, expected) in [
            ("orders", Some(("orders", None))),
            ("orders:prod", Some(("orders", Some("prod")))),
            ("orders:$LATEST", Some(("orders", Some("$LATEST")))),
            ("my-fn-1:prod", Some(("my-fn-1", Some("prod")))),
            ("orders:$OLDEST", None),
            ("function:orders", Some(("orders", None))),
            ("123456789012:function:orders:7", Some(("orders", Some("7")))),
            ("arn:aws:lambda:eu-central-1:123456789012:function:orders", Some(("orders", None))),
            ("arn:aws-us-gov:lambda:us-gov-west-1:123456789012:function:orders:prod", Some(("orders", Some("prod")))),
            ("function", Some(("function", None))),
            ("", None),
            ("orders/new", None),
            ("a:b:c", None),
            ("orders:", None),
        ] {
            assert_eq!(split_name(form), expected, "{form}");
        }
        assert_eq!(split_name(&"n".repeat(NAME_CHARS_MAX + 1)), None);
    }

    #[test]
    fn percent_escapes_are_decoded_once() {
        assert_eq!(percent_decode("orders%3Aprod%2524").as_deref(), Some("orders:prod%24"));
        assert_eq!(percent_decode("%3"), None);
        assert_eq!(percent_decode("%zz"), None);
        assert_eq!(percent_decode("%ff"), None);
    }

    #[test]
    fn an_id_is_found_in_a_top_level_field_only() {
        assert_eq!(payload_id(br#"{"a":{"id":"x"},"id":"y"}"#, "id").as_deref(), Some("y"));
        assert_eq!(payload_id(br#"{"id":17}"#, "id").as_deref(), Some("17"));
        assert_eq!(payload_id(br#"{"a":1}"#, "id"), None);
        assert_eq!(payload_id(b"[1]", "id"), None);
    }
}
