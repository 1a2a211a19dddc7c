//! The matrix of the ingest listener: each door, with each way to know a client, for a client that may, one that may not, and
//! for proofs that are missing, unknown, expired or malformed. Everything is asserted: status, error, body, what is stored,
//! and that nothing is told. The admin listener's matrix is in `operators.rs`, that of the Unix socket in `tables.rs`.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;

use crate::identity::{Guarded, KEY_ID};
use crate::rig::daemon::{invoke_path, scratch};
use crate::rig::http::Response;
use crate::rig::lambda::Lambda;
use crate::tls::authority::Client;

/// A door: its path for a function, and its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Lambda,
    Native,
}

/// What a request proves, and for which function it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Allowed,
    Denied,
    Missing,
    Unknown,
    Expired,
    Malformed,
}

/// How the caller proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Path,
    Certificate,
    Token,
    Signature,
}

const CASES: [Case; 6] = [Case::Allowed, Case::Denied, Case::Missing, Case::Unknown, Case::Expired, Case::Malformed];
const WAYS: [Way; 4] = [Way::Path, Way::Certificate, Way::Token, Way::Signature];

const MISSING: (&str, &str) = ("MissingAuthenticationTokenException", "Missing Authentication Token");
const UNRECOGNIZED: (&str, &str) =
    ("UnrecognizedClientException", "The security token included in the request is invalid.");
const MISMATCH: (&str, &str) = (
    "InvalidSignatureException",
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and \
     signing method. Consult the service documentation for details.",
);

/// The error and its message, or how it begins. `None` means that the request is accepted.
fn expected(way: Way, case: Case) -> Option<(&'static str, &'static str)> {
    match (case, way) {
        (Case::Allowed, _) => None,
        (Case::Denied, _) => Some(("AccessDeniedException", "User: sendoff/by-")),
        (Case::Missing, _) => Some(MISSING),
        // A certificate of the authority that names no client proves nothing.
        (Case::Unknown | Case::Malformed | Case::Expired, Way::Certificate) => Some(MISSING),
        (Case::Unknown, Way::Signature) => Some(MISMATCH),
        (Case::Expired, Way::Signature) => Some(("InvalidSignatureException", "Signature expired: ")),
        (Case::Malformed, Way::Signature) => Some(("IncompleteSignatureException", "")),
        (Case::Unknown | Case::Expired | Case::Malformed, Way::Path | Way::Token) => Some(UNRECOGNIZED),
    }
}

/// The headers of a signature as AWS's own crate makes it.
fn signed(url: &str, secret: &str, body: &[u8], age: Duration) -> Vec<(String, String)> {
    let identity = Credentials::new(KEY_ID, secret, None, None, "test").into();
    let params = v4::SigningParams::builder().identity(&identity).region("eu-central-1").name("lambda");
    let params = params.time(SystemTime::now() - age).settings(SigningSettings::default()).build().unwrap().into();
    let headers = [("x-amz-invocation-type", "Event")];
    let request = SignableRequest::new("POST", url, headers.into_iter(), SignableBody::Bytes(body)).unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Sends one request. `None` if the connection was refused before that.
fn send(guarded: &Guarded, door: Door, way: Way, case: Case, retired: &str) -> Option<Response> {
    let function = if case == Case::Denied { "payroll" } else { "orders" };
    let (mut path, body) = match door {
        Door::Lambda => (invoke_path(function), "{}".to_owned()),
        Door::Native => ("/v1/events".to_owned(), format!(r#"{{"function":"{function}"}}"#)),
    };
    let mut headers = vec![("X-Amz-Invocation-Type".to_owned(), "Event".to_owned())];
    let mut own = None;
    let is_good = matches!(case, Case::Allowed | Case::Denied);
    match way {
        _ if case == Case::Missing => {}
        Way::Path => {
            let secret = match case {
                Case::Malformed => "%2e%2e",
                Case::Expired => retired,
                Case::Unknown => "nobody-01234567890123456789012345678901",
                Case::Allowed | Case::Denied | Case::Missing => &guarded.path_token,
            };
            path = format!("/c/{secret}{path}");
        }
        Way::Token => {
            let bearer = match case {
                Case::Malformed => "Bearer ".to_owned(),
                Case::Expired => format!("Bearer {retired}"),
                Case::Unknown => format!("Bearer {}", guarded.path_token),
                Case::Allowed | Case::Denied | Case::Missing => format!("Bearer {}", guarded.bearer),
            };
            headers.push(("Authorization".to_owned(), bearer));
        }
        Way::Certificate => {
            let name = if is_good { "spiffe://shop.test/orders" } else { "spiffe://shop.test/nobody" };
            own = Some(guarded.authority.issue(&[name], if case == Case::Expired { 2001 } else { 2100 }));
        }
        Way::Signature if case == Case::Malformed => {
            let text = format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/20261130, Signature=00");
            headers.push(("Authorization".to_owned(), text));
        }
        Way::Signature => {
            let url = format!("https://{}{path}", guarded.daemon.ingest);
            let secret = if case == Case::Unknown { &guarded.bearer } else { &guarded.key };
            let age = Duration::from_secs(if case == Case::Expired { 6 * 60 } else { 0 });
            headers.extend(signed(&url, secret, body.as_bytes(), age));
        }
    }
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let client = Client::new(&guarded.authority, own.as_ref());
    client.request(guarded.daemon.ingest, "POST", &path, &headers, body.as_bytes()).ok()
}

#[test]
fn each_door_answers_each_way_of_proof_in_the_same_words_and_stores_nothing_for_strangers() {
    let (scratch, state) = scratch();
    let lambda = Lambda::start();
    lambda.throttle_all();
    let guarded = Guarded::start(scratch.path(), &state, &lambda);
    let retired = "retired-0123456789012345678901234567890";
    let mut stored = 0;
    for door in [Door::Lambda, Door::Native] {
        for way in WAYS {
            for case in CASES {
                let at = format!("{door:?}, {way:?}, {case:?}");
                let answer = send(&guarded, door, way, case, retired);
                if (way, case) == (Way::Certificate, Case::Expired) {
                    assert!(answer.is_none(), "{at}: the handshake lets nobody in with an expired certificate");
                    continue;
                }
                let answer = answer.unwrap_or_else(|| panic!("{at}: no answer"));
                let Some((error, message)) = expected(way, case) else {
                    assert_eq!(answer.status, 202, "{at}: {answer:?}");
                    stored += 1;
                    continue;
                };
                // With an unknown secret before it, no path is known to be the native door's.
                let is_native = door == Door::Native && !(way == Way::Path && answer.status == 403);
                let is_unknown = case != Case::Denied;
                assert_eq!(answer.status, if is_native && is_unknown { 401 } else { 403 }, "{at}: {answer:?}");
                let challenge = (is_native && is_unknown).then_some("Bearer");
                assert_eq!(answer.header("www-authenticate"), challenge, "{at}");
                assert_eq!(answer.header("x-amzn-errortype"), Some(error), "{at}: {answer:?}");
                let body = answer.json();
                let field = if case == Case::Denied { "Message" } else { "message" };
                assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{at}: {body}");
                let said = body[field].as_str().unwrap_or_else(|| panic!("{at}: {body}"));
                assert!(said.starts_with(message), "{at}: {said}");
                let whole = answer.text() + &format!("{:?}", answer.headers);
                for secret in [&guarded.path_token, &guarded.bearer, &guarded.key, retired] {
                    assert!(!whole.contains(secret), "{at}: a secret is told: {whole}");
                }
            }
        }
    }
    let admin = Client::new(&guarded.authority, None);
    let metrics = admin.request(guarded.daemon.admin, "GET", "/metrics", &[], b"").unwrap().text();
    let accepted = format!("sendoff_ingest_accepted_total{{function=\"orders\"}} {stored}\n");
    assert!(stored == 8 && metrics.contains(&accepted), "{accepted} in {metrics}");
    assert!(!metrics.contains("payroll"), "nothing of a stranger's is kept");
    guarded.assert_silent();
}
