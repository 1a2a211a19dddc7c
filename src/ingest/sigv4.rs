//! Verifies AWS Signature Version 4 of a request to Lambda. Pure: takes a head, a time, a secret and the payload's hash.
//!
//! The rules are those of "AWS Signature Version 4 for API requests", as Lambda's clients apply them: AWS CLI 1 and 2, boto3, the
//! SDKs for JavaScript, Go and Rust, and curl, whose recorded requests the tests verify.
//! Holds: an accepted signature covers the host, the time and every `x-amz-*`, so nobody on the way can add or change one.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::{AUTHORIZATION, HOST, HeaderName};
use http::request::Parts as Head;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::clock::UnixMillis;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// The header of temporary credentials, which only AWS issues.
pub const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// The most headers that a signature may cover. Clients sign about ten.
const SIGNED_HEADERS_MAX: usize = 64;

/// What is wrong with a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// It cannot be read. The text contains nothing of the signature.
    Malformed(String),
    /// It is not the signature of this request by this secret.
    Mismatch,
    /// Made too long before now.
    Expired { at: String, now: UnixMillis, skew: Duration },
    /// Made too long after now.
    Early { at: String, now: UnixMillis, skew: Duration },
}

impl Flaw {
    /// Lambda's own words.
    pub fn message(&self) -> String {
        match self {
            Self::Malformed(why) => why.clone(),
            Self::Mismatch => {
                "The request signature we calculated does not match the signature you provided. Check your \
                               AWS Secret Access Key and signing method. Consult the service documentation for details."
                    .to_owned()
            }
            Self::Expired { at, now, skew } => {
                let limit = UnixMillis(now.0.saturating_sub(millis(*skew)));
                let (limit, now, minutes) = (basic(limit), basic(*now), skew.as_secs() / 60);
                format!("Signature expired: {at} is now earlier than {limit} ({now} - {minutes} min.)")
            }
            Self::Early { at, now, skew } => {
                let (limit, now, minutes) = (basic(now.plus(*skew)), basic(*now), skew.as_secs() / 60);
                format!("Signature not yet current: {at} is still later than {limit} ({now} + {minutes} min.)")
            }
        }
    }
}

/// A signature that can be verified once its secret and the payload are known.
#[derive(Clone, PartialEq, Eq)]
pub struct Claim {
    pub key_id: String,
    /// The day and the region of the scope.
    day: String,
    region: String,
    /// When it was made, as it is written.
    at: String,
    /// The canonical request up to the payload's hash, in each form that is allowed.
    canonical: Vec<Vec<u8>>,
    signature: [u8; 32],
    /// The payload's hash, if the request names it.
    pub payload: Option<[u8; 32]>,
}

impl Claim {
    /// Reads the signature of a request, without verifying it. `None` if the request has no signature of this kind.
    pub fn read(head: &Head, now: UnixMillis, skew: Duration) -> Result<Option<Self>, Flaw> {
        let mut written = head.headers.get_all(AUTHORIZATION).iter();
        let (Some(first), more) = (written.next(), written.next()) else { return Ok(None) };
        if !is_signature(first.as_bytes()) {
            return Ok(None);
        }
        if more.is_some() {
            return Err(Flaw::Malformed("There is more than one Authorization header.".to_owned()));
        }
        let text = first.to_str().map_err(|_| malformed("is not ASCII"))?;
        let Fields { credential, signed_headers, signature } = Fields::read(text)?;
        let mut scope = credential.rsplitn(5, '/');
        let (Some("aws4_request"), Some(service), Some(region), Some(day), Some(key_id)) =
            (scope.next(), scope.next(), scope.next(), scope.next(), scope.next())
        else {
            return Err(Flaw::Malformed(
                "Credential must have at least 5 slash-delimited elements and end with aws4_request.".to_owned(),
            ));
        };
        let at = text_of(head, &DATE).ok_or_else(|| {
            Flaw::Malformed("Authorization header requires existence of a 'X-Amz-Date' header.".to_owned())
        })?;
        is_timely(at, now, skew)?;
        let payload = match head.headers.get(CONTENT_SHA256) {
            None => None,
            Some(hash) => Some(bytes_of_hex(hash.as_bytes()).ok_or_else(|| {
                Flaw::Malformed("x-amz-content-sha256 must be the SHA-256 of the payload, in hex.".to_owned())
            })?),
        };
        let names: Vec<&str> = signed_headers.split(';').collect();
        let covered = covers(head, &names)?;
        if service != "lambda" || day != &at[..8] || !covered {
            return Err(Flaw::Mismatch);
        }
        let canonical = canonical(head, &names, signed_headers).ok_or(Flaw::Mismatch)?;
        Ok(Some(Self {
            key_id: key_id.to_owned(),
            day: day.to_owned(),
            region: region.to_owned(),
            at: at.to_owned(),
            canonical,
            signature: bytes_of_hex(signature.as_bytes())
                .ok_or_else(|| malformed("has no 'Signature' of 64 hex digits"))?,
            payload,
        }))
    }

    /// Whether this secret made the signature, over a payload with this SHA-256. Compares in constant time.
    pub fn holds(&self, secret: &[u8], payload: &[u8; 32]) -> bool {
        let scope = format!("{}/{}/lambda/aws4_request", self.day, self.region);
        let key = hmac(&[b"AWS4", secret].concat(), self.day.as_bytes());
        let key = hmac(&hmac(&hmac(&key, self.region.as_bytes()), b"lambda"), b"aws4_request");
        let payload = hex(payload);
        self.canonical.iter().fold(false, |holds, before| {
            let request = Sha256::new().chain_update(before).chain_update(&payload).finalize();
            let to_sign = format!("{ALGORITHM}\n{}\n{scope}\n{}", self.at, hex(&request.into()));
            let expected = hmac(&key, to_sign.as_bytes());
            holds | bool::from(expected.ct_eq(&self.signature))
        })
    }
}

/// Whether this value of `Authorization` is a signature of any kind, also one that is not supported.
pub fn is_signature(authorization: &[u8]) -> bool {
    authorization.starts_with(b"AWS4-")
}

/// The key that a request says it is signed with. None if that cannot be told.
pub fn key_id(head: &Head) -> Option<&str> {
    let text = text_of(head, &AUTHORIZATION)?;
    let (_, rest) = text.split_once("Credential=")?;
    let credential = rest.split([',', ' ']).next()?;
    credential.rsplitn(5, '/').nth(4)
}

/// The SHA-256 of a payload.
pub fn sha256(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

fn malformed(what: &str) -> Flaw {
    Flaw::Malformed(format!("Authorization header {what}."))
}

/// The fields of the header `Authorization`.
struct Fields<'a> {
    credential: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, Flaw> {
        let fields = text.strip_prefix(ALGORITHM).filter(|rest| rest.starts_with(' '));
        let fields = fields.ok_or_else(|| malformed(&format!("requires the algorithm {ALGORITHM}")))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in fields.split(',').map(str::trim) {
            let (name, value) = field
                .split_once('=')
                .ok_or_else(|| malformed("has a part that is not a valid key=value pair (missing equal-sign)"))?;
            let place = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(malformed("has an unknown parameter")),
            };
            if place.replace(value).is_some() {
                return Err(malformed("has a parameter twice"));
            }
        }
        let required = |field: Option<&'a str>, name: &str| {
            field.filter(|text| !text.is_empty()).ok_or_else(|| malformed(&format!("requires '{name}' parameter")))
        };
        Ok(Self {
            credential: required(credential, "Credential")?,
            signed_headers: required(signed_headers, "SignedHeaders")?,
            signature: required(signature, "Signature")?,
        })
    }
}

/// Whether the time of a signature is near enough to now.
fn is_timely(at: &str, now: UnixMillis, skew: Duration) -> Result<(), Flaw> {
    let made = time(at).ok_or_else(|| {
        Flaw::Malformed("Date in X-Amz-Date must be in ISO-8601 'basic format', like 20261130T093619Z.".to_owned())
    })?;
    if now.since(made) > skew {
        return Err(Flaw::Expired { at: at.to_owned(), now, skew });
    }
    if made.since(now) > skew {
        return Err(Flaw::Early { at: at.to_owned(), now, skew });
    }
    Ok(())
}

/// A time like `20261130T093619Z`.
fn time(text: &str) -> Option<UnixMillis> {
    let is_shaped = text.len() == 16
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    let part = |from: usize, to: usize| &text[from..to];
    is_shaped
        .then(|| {
            format!("{}-{}-{}T{}:{}:{}Z", part(0, 4), part(4, 6), part(6, 8), part(9, 11), part(11, 13), part(13, 15))
        })
        .and_then(|text| UnixMillis::read_rfc3339(&text))
}

/// The reverse of [`time`].
fn basic(time: UnixMillis) -> String {
    let text = time.rfc3339();
    let whole = text.split('.').next().unwrap_or_default();
    whole.chars().filter(|c| !matches!(c, '-' | ':')).chain(['Z']).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn text_of<'a>(head: &'a Head, name: &HeaderName) -> Option<&'a str> {
    head.headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether the signature covers everything that it must: the host, the time, and every header that tells Lambda what to do.
fn covers(head: &Head, names: &[&str]) -> Result<bool, Flaw> {
    if names.len() > SIGNED_HEADERS_MAX {
        return Err(malformed("signs too many headers"));
    }
    let has = |name: &str| names.contains(&name);
    let told = head.headers.keys().filter(|name| name.as_str().starts_with("x-amz-"));
    Ok(has("host") && told.into_iter().all(|name| has(name.as_str())))
}

/// The canonical request up to the payload's hash. None if a header that is signed is not there.
fn canonical(head: &Head, names: &[&str], signed_headers: &str) -> Option<Vec<Vec<u8>>> {
    let mut after_path = vec![b'\n'];
    after_path.extend_from_slice(&canonical_query(head.uri.query().unwrap_or_default()));
    after_path.push(b'\n');
    for name in names {
        after_path.extend_from_slice(name.as_bytes());
        after_path.push(b':');
        canonical_header(head, name, &mut after_path)?;
        after_path.push(b'\n');
    }
    after_path.push(b'\n');
    after_path.extend_from_slice(signed_headers.as_bytes());
    after_path.push(b'\n');
    let of = |path: &[u8]| [head.method.as_str().as_bytes(), b"\n", path, &after_path].concat();
    let path = if head.uri.path().is_empty() { "/" } else { head.uri.path() };
    // Clients of Lambda encode the path once more for the signature. curl does not. The two differ only if the path contains
    // a character that needs encoding.
    let mut forms = vec![of(&encoded(path.as_bytes(), b"/"))];
    if path.bytes().any(|byte| byte != b'%' && !is_plain(byte, b"/")) {
        forms.push(of(path.as_bytes()));
    }
    Some(forms)
}

/// The values of a header: trimmed, with single spaces, joined by commas.
fn canonical_header(head: &Head, name: &str, to: &mut Vec<u8>) -> Option<()> {
    let mut values = head.headers.get_all(name).iter().map(|value| value.as_bytes()).peekable();
    if values.peek().is_none() {
        // HTTP/2 has no header `host`, but `:authority`.
        let authority = head.uri.authority().filter(|_| name == HOST.as_str())?;
        to.extend_from_slice(authority.as_str().as_bytes());
        return Some(());
    }
    for (at, value) in values.enumerate() {
        if at > 0 {
            to.push(b',');
        }
        let words = value.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        for (at, word) in words.enumerate() {
            if at > 0 {
                to.push(b' ');
            }
            to.extend_from_slice(word);
        }
    }
    Some(())
}

/// The query, encoded in one way and sorted.
fn canonical_query(query: &str) -> Vec<u8> {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encoded(&decoded(name), b""), encoded(&decoded(value), b"")))
        .collect();
    pairs.sort();
    let pairs: Vec<Vec<u8>> = pairs.into_iter().map(|(name, value)| [name, value].join(&b'=')).collect();
    pairs.join(&b'&')
}

/// Whether a byte stays as it is when encoded.
fn is_plain(byte: u8, more: &[u8]) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || more.contains(&byte)
}

fn encoded(text: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(text.len());
    for &byte in text {
        if is_plain(byte, plain) {
            encoded.push(byte);
        } else {
            encoded.extend_from_slice(&[b'%', HEX_UPPER[usize::from(byte >> 4)], HEX_UPPER[usize::from(byte & 15)]]);
        }
    }
    encoded
}

/// Undoes percent-encoding. An invalid escape stays as it is.
fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let escaped = bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(byte_of_hex);
        decoded.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    decoded
}

const HEX_UPPER: &[u8; 16] = b"0123456789ABCDEF";
const HEX_LOWER: &[u8; 16] = b"0123456789abcdef";

fn hex(bytes: &[u8; 32]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(HEX_LOWER[usize::from(digit)]))
        .collect()
}

fn byte_of_hex(pair: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

fn bytes_of_hex(text: &[u8]) -> Option<[u8; 32]> {
    let bytes: Option<Vec<u8>> = text.chunks(2).map(byte_of_hex).collect();
    bytes?.try_into().ok()
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // A key of HMAC may have any length (RFC 2104).
    Hmac::<Sha256>::new_from_slice(key)
        .map(|mac| mac.chain_update(message).finalize().into_bytes().into())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
