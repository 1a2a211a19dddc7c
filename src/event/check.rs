//! What Lambda takes as an invocation: the checks of every door. Pure.
//!
//! Facts are from the API model that the SDKs are generated from (botocore 1.44.5, lambda 2015-03-31) and from recorded
//! answers of the real service.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::name::{Home, NAME_CHARS_MAX, NAME_PATTERN, Parts, QUALIFIER_CHARS_MAX, QUALIFIER_PATTERN, is_qualifier};
use super::{Carried, Function, KEY_CHARS_MAX, KeySource};
use crate::plural::count;

/// The longest client context, in bytes of base64 (Lambda's API model).
pub const CLIENT_CONTEXT_BYTES_MAX: usize = 3_583;

/// The most characters of a client's value that an error message repeats.
const ECHO_CHARS_MAX: usize = 256;

/// Standard base64, with or without padding. SDKs write padding; people who encode by hand often do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why something is not an invocation that Lambda takes. The text is Lambda's own where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalid {
    /// Fields that violate Lambda's API model. At least one.
    Fields(Vec<Violation>),
    /// The function's name has another qualifier as its suffix.
    QualifierMismatch,
    /// A header, a field or the payload is invalid. The text says why.
    Content(String),
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields(violations) => {
                let all: Vec<_> = violations.iter().map(Violation::to_string).collect();
                write!(f, "{} detected: {}", count(all.len() as u64, "validation error"), all.join("; "))
            }
            Self::QualifierMismatch => {
                f.write_str("The derived qualifier from the function name does not match the specified qualifier.")
            }
            Self::Content(why) => f.write_str(why),
        }
    }
}

/// A field that violates Lambda's API model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Lambda's name of the field, for example `functionName`.
    pub field: &'static str,
    /// The value, shortened by [`echo`].
    pub value: String,
    /// The requirement, in Lambda's words.
    pub constraint: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, value, constraint } = self;
        write!(f, "Value '{value}' at '{field}' failed to satisfy constraint: {constraint}")
    }
}

/// Shortens a client's value for an error message. Store only the shortened value, because a client controls its length.
pub fn echo(value: &str) -> String {
    match value.char_indices().nth(ECHO_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

/// Like [`echo`], for an error text that may contain a client's value. Formats no more of `text` than it keeps.
pub fn echo_of(text: &impl fmt::Display) -> String {
    /// Accepts as many characters as an echo may have, then fails, so that formatting stops.
    struct Short(String);

    impl fmt::Write for Short {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = (4 * ECHO_CHARS_MAX + 4).saturating_sub(self.0.len());
            let end = if text.len() <= room { text.len() } else { text.floor_char_boundary(room) };
            self.0.push_str(&text[..end]);
            if end < text.len() { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut short = Short(String::new());
    // The error means that the text is longer. The echo says so.
    fmt::write(&mut short, format_args!("{text}")).unwrap_or_default();
    echo(&short.0)
}

/// The fields of an event that does not arrive as a request of Lambda's API.
#[derive(Debug)]
pub struct Fields {
    pub address: String,
    pub qualifier: Option<String>,
    pub tenant_id: Option<String>,
}

impl Fields {
    /// Checks the fields as Lambda checks them, and returns the function.
    pub fn function(&self, home: &Home) -> Result<Function, Invalid> {
        let Self { address, qualifier, tenant_id } = self;
        let mut check = Check::default();
        let parts = check.name(address);
        check.qualifier(qualifier.as_deref());
        if let Some(tenant_id) = tenant_id {
            check.text(tenant_id, &TENANT);
        }
        let parts = check.passed(parts)?;
        function(&parts, address, qualifier.clone(), home)
    }
}

/// The function of these parts, which were written as `address`.
pub fn function(parts: &Parts<'_>, address: &str, qualifier: Option<String>, home: &Home) -> Result<Function, Invalid> {
    if let (Some(suffix), Some(qualifier)) = (parts.qualifier, &qualifier)
        && suffix != qualifier
    {
        return Err(Invalid::QualifierMismatch);
    }
    Ok(Function {
        name: parts.canonical(qualifier.as_deref(), home),
        // Kept even if it is the daemon's own region: that may change, and the function does not move.
        region: parts.region.map(str::to_owned),
        address: address.to_owned(),
        qualifier,
    })
}

/// Checks the carried headers of an event that does not arrive as a request of Lambda's API.
pub fn check_carried(carried: &Carried) -> Result<(), Invalid> {
    let Carried { trace_header, client_context, tenant_id, durable_execution_name } = carried;
    let mut check = Check::default();
    for (text, rule) in [(tenant_id, &TENANT), (durable_execution_name, &DURABLE_EXECUTION)] {
        if let Some(text) = text {
            check.text(text, rule);
        }
    }
    check.passed(Some(()))?;
    // The same limit as for a client's header.
    let is_text = |text: &str| text.bytes().all(|byte| byte == b'\t' || (0x20..=0x7e).contains(&byte));
    if trace_header.as_deref().is_some_and(|text| !is_text(text)) {
        return Err(Invalid::Content("trace_header must be printable ASCII".to_owned()));
    }
    client_context.as_deref().filter(|text| !text.is_empty()).map(read_client_context).transpose().map(drop)
}

/// Whether a key could have come through a door from this source. Without a source, as if somebody had sent it.
pub fn is_key(key: &str, source: Option<KeySource>) -> bool {
    // An expression may find a key of several lines in a payload; a key that somebody sent has one.
    let lines = matches!(source, Some(KeySource::Expression | KeySource::CloudEvent));
    (1..=KEY_CHARS_MAX).contains(&key.chars().count()) && (lines || !key.chars().any(char::is_control))
}

/// Checks a payload as Lambda does before it answers, also for Events. The refusal begins with Lambda's own words, which repeat
/// themselves (a real answer of 2025-11): applications may look for them.
pub fn check_payload(payload: &[u8]) -> Result<(), Invalid> {
    check_json(payload).map_err(|why| {
        Invalid::Content(format!("Could not parse request body into json: Could not parse payload into json: {why}"))
    })
}

/// Whether a payload is JSON of any depth, or empty; else what is wrong with it.
pub fn check_json(payload: &[u8]) -> Result<(), String> {
    if payload.is_empty() {
        return Ok(());
    }
    // serde_json skips strings without checking their bytes, so UTF-8 is checked first. Skipping values takes no stack
    // however deep they nest.
    let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| error.to_string())
}

/// What Lambda's pattern lets through, and no function can be called.
const NO_DOTS: &str =
    "Member must not be '.' or '..', as no function has such a name and a URL with it leads elsewhere";

/// Decodes `X-Amz-Client-Context`: base64 of a JSON object.
pub fn read_client_context(text: &str) -> Result<Map<String, Value>, Invalid> {
    if text.len() > CLIENT_CONTEXT_BYTES_MAX {
        return Err(Invalid::Content(format!(
            "Client context must be no more than {CLIENT_CONTEXT_BYTES_MAX} bytes when base64-encoded."
        )));
    }
    BASE64
        .decode(text)
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .ok_or_else(|| Invalid::Content("Client context must be a valid Base64-encoded JSON object.".to_owned()))
}

/// A field with a limit on its length and its characters.
pub struct TextRule {
    field: &'static str,
    chars_max: usize,
    /// Lambda's pattern, for the message. `fits` implements it.
    pattern: &'static str,
    fits: fn(u8) -> bool,
}

pub const TENANT: TextRule = TextRule {
    field: "tenantId",
    chars_max: 256,
    pattern: r"[a-zA-Z0-9\._:\/=+\-@ ]+",
    fits: |byte| byte.is_ascii_alphanumeric() || b"._:/=+-@ ".contains(&byte),
};

pub const DURABLE_EXECUTION: TextRule = TextRule {
    field: "durableExecutionName",
    chars_max: 64,
    pattern: "[a-zA-Z0-9-_]+",
    fits: |byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte),
};

/// Collects all problems, because Lambda reports them together.
#[derive(Default)]
pub struct Check {
    violations: Vec<Violation>,
}

impl Check {
    /// What was read, if nothing was refused.
    pub fn passed<T>(self, read: Option<T>) -> Result<T, Invalid> {
        read.filter(|_| self.violations.is_empty()).ok_or(Invalid::Fields(self.violations))
    }

    pub fn refuse(&mut self, field: &'static str, value: &str, constraint: String) {
        self.violations.push(Violation { field, value: echo(value), constraint });
    }

    /// None only if it is refused.
    pub fn name<'a>(&mut self, address: &'a str) -> Option<Parts<'a>> {
        let parts = self.length("functionName", address, NAME_CHARS_MAX).then(|| Parts::parse(address))?;
        if parts.is_none() {
            let constraint = if Parts::is_dotted(address) { NO_DOTS.to_owned() } else { pattern(NAME_PATTERN) };
            self.refuse("functionName", address, constraint);
        }
        parts
    }

    pub fn qualifier(&mut self, qualifier: Option<&str>) {
        let Some(qualifier) = qualifier else { return };
        if self.length("qualifier", qualifier, QUALIFIER_CHARS_MAX) && !is_qualifier(qualifier) {
            self.refuse("qualifier", qualifier, pattern(QUALIFIER_PATTERN));
        }
    }

    pub fn text(&mut self, text: &str, rule: &TextRule) {
        if self.length(rule.field, text, rule.chars_max) && !text.bytes().all(rule.fits) {
            self.refuse(rule.field, text, pattern(rule.pattern));
        }
    }

    /// Whether `text` has 1 to `chars_max` characters.
    fn length(&mut self, field: &'static str, text: &str, chars_max: usize) -> bool {
        let constraint = if text.is_empty() {
            "Member must have length greater than or equal to 1".to_owned()
        } else if text.chars().count() > chars_max {
            format!("Member must have length less than or equal to {chars_max}")
        } else {
            return true;
        };
        self.refuse(field, text, constraint);
        false
    }
}

pub(crate) fn pattern(pattern: &str) -> String {
    format!("Member must satisfy regular expression pattern: {pattern}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_json_of_any_depth_or_empty() {
        let deep = "[".repeat(500_000) + &"]".repeat(500_000);
        for payload in ["", "{}", "null", "\"x\"", " 1e400 ", deep.as_str(), "\"\u{ffff}\""] {
            assert_eq!(check_payload(payload.as_bytes()), Ok(()));
        }
        let parse = "Could not parse request body into json: Could not parse payload into json: ";
        for (payload, why) in [
            (&b"{"[..], "EOF while parsing an object at line 1 column 1"),
            (b"not json", "expected ident at line 1 column 2"),
            (b"{} {}", "trailing characters at line 1 column 4"),
            (b" ", "EOF while parsing a value at line 1 column 1"),
            (b"\"\xff\"", "invalid utf-8 sequence of 1 bytes from index 1"),
            (b"{'a':1}", "key must be a string at line 1 column 2"),
        ] {
            assert_eq!(check_payload(payload).unwrap_err().to_string(), format!("{parse}{why}"));
        }
    }

    #[test]
    fn client_contexts_are_base64_of_a_json_object() {
        for text in ["eyJjdXN0b20iOnt9fQ==", "eyJjdXN0b20iOnt9fQ"] {
            assert!(read_client_context(text).unwrap().contains_key("custom"), "{text}");
        }
        for text in ["", "%%%", "W10=", "bm90IGpzb24=", "eyJ"] {
            assert_eq!(
                read_client_context(text).unwrap_err().to_string(),
                "Client context must be a valid Base64-encoded JSON object.",
                "{text}"
            );
        }
        let over = "A".repeat(CLIENT_CONTEXT_BYTES_MAX + 1);
        assert!(read_client_context(&over).unwrap_err().to_string().contains("3583"));
    }

    #[test]
    fn a_long_value_is_repeated_in_part_only() {
        for long in ["é".repeat(10_000), "x".repeat(10_000)] {
            let start: String = long.chars().take(ECHO_CHARS_MAX).collect();
            assert_eq!(echo(&long), format!("{start}..."));
            assert_eq!(echo_of(&format_args!("{long}{long}")), format!("{start}..."));
        }
        for short in ["", "é".repeat(ECHO_CHARS_MAX).as_str()] {
            assert_eq!((echo(short), echo_of(&short)), (short.to_owned(), short.to_owned()));
        }
    }
}
