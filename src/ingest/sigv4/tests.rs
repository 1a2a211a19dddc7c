use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::{HeaderValue, Request};
use proptest::prelude::*;

use super::*;

const CAPTURED: &str = include_str!("../../../tests/fixtures/sigv4/captured.txt");
const SKEW: Duration = Duration::from_secs(300);

/// The recorded requests, each with its client and its body.
fn captured() -> Vec<(String, Head, Vec<u8>)> {
    let requests = CAPTURED.split("# ").filter(|text| !text.is_empty()).map(|text| {
        let (client, rest) = text.split_once('\n').unwrap();
        let (head, body) = rest.split_once("\n\n").unwrap();
        let mut lines = head.lines();
        let mut line = lines.next().unwrap().split(' ');
        let mut request = Request::builder().method(line.next().unwrap()).uri(line.next().unwrap());
        for line in lines {
            let (name, value) = line.split_once(':').unwrap();
            request = request.header(name, value.trim());
        }
        (client.to_owned(), request.body(()).unwrap().into_parts().0, body.trim().as_bytes().to_vec())
    });
    requests.collect()
}

fn now_of(head: &Head) -> UnixMillis {
    time(text_of(head, &DATE).unwrap()).unwrap()
}

fn holds(head: &Head, secret: &str, body: &[u8]) -> Result<bool, Flaw> {
    let claim = Claim::read(head, now_of(head), SKEW)?.unwrap();
    Ok(claim.payload.is_none_or(|named| named == sha256(body)) && claim.holds(secret.as_bytes(), &sha256(body)))
}

#[test]
fn what_real_clients_have_signed_is_verified() {
    let captured = captured();
    assert!(captured.len() > 50);
    for (client, head, body) in captured {
        assert_eq!(holds(&head, "secret", &body), Ok(true), "{client}: {} {:?}", head.uri, head.headers);
        assert_eq!(holds(&head, "Secret", &body), Ok(false), "{client}: {}", head.uri);
        assert_eq!(holds(&head, "secret", &[&body[..], b" "].concat()), Ok(false), "{client}: {}", head.uri);
        assert_eq!(key_id(&head), Some("AKIDEXAMPLE"));
    }
}

/// A request that AWS's own crate has signed.
fn signed(path: &str, query: &str, headers: &[(&str, String)], body: &[u8], at: u64) -> Head {
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let mut request = Request::post(format!("https://sendoff.test:9477{target}"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let mut request = request.header("host", "sendoff.test:9477").body(()).unwrap();
    let identity = Credentials::new("SOFFAAAAAAAAAAAAAAAA", "a secret of some length", None, None, "test").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-central-1")
        .name("lambda")
        .time(SystemTime::UNIX_EPOCH + Duration::from_secs(at))
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let uri = request.uri().to_string();
    let pairs = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
    let signable = SignableRequest::new("POST", &uri, pairs, SignableBody::Bytes(body)).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    instructions.apply_to_request_http1x(&mut request);
    let mut head = request.into_parts().0;
    head.uri = target.parse().unwrap();
    head
}

/// Whether the request is let in by the secret that signed it.
fn is_let_in(head: &Head, body: &[u8], now: UnixMillis) -> bool {
    let Ok(Some(claim)) = Claim::read(head, now, SKEW) else { return false };
    claim.payload.is_none_or(|named| named == sha256(body))
        && claim.holds(b"a secret of some length", &sha256(body))
        && claim.key_id == "SOFFAAAAAAAAAAAAAAAA"
}

/// `text` with one byte changed, so that the result can still be sent.
fn changed(text: &str, at: usize, to: u8) -> Option<String> {
    let mut bytes = text.as_bytes().to_vec();
    let at = at % bytes.len().max(1);
    let place = bytes.get_mut(at)?;
    let before = std::mem::replace(place, to);
    (before != to).then(|| String::from_utf8(bytes).unwrap())
}

/// What a signature over a query means: escapes in either case are one.
fn meaning(target: &str) -> (String, Vec<u8>) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (path.to_owned(), canonical_query(query))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_aws_signs_is_let_in_and_any_changed_byte_is_not(
        label in "[a-zA-Z0-9-_]{1,12}|arn%3Aaws%3Alambda%3Aeu-central-1%3A123456789012%3Afunction%3A[a-z]{1,9}(%3Aprod)?",
        prefix in "(/c/[a-zA-Z0-9_-]{43})?",
        query in "(Qualifier=(%24LATEST|[a-z0-9]{1,9}))?(&?[a-z]{1,4}=([a-zA-Z0-9~.-]|%2F|%20|%C3%A9){0,6})?",
        tenant in "[a-zA-Z0-9._:/=+@-]{1,9}( {1,3}[a-z]{1,5})?",
        body in proptest::collection::vec(any::<u8>(), 0..64),
        (at, to) in (0_usize..4_096, b'!'..=b'~'),
        seconds in 1_700_000_000_u64..1_900_000_000,
    ) {
        let path = format!("{prefix}/2015-03-31/functions/{label}/invocations");
        let query = query.trim_start_matches('&');
        let headers = [("x-amz-invocation-type", "Event".to_owned()), ("x-amz-tenant-id", tenant)];
        let head = signed(&path, query, &headers, &body, seconds);
        let now = UnixMillis(seconds * 1_000);
        prop_assert!(is_let_in(&head, &body, now), "{head:?}");

        // Path and query.
        let target = head.uri.to_string();
        if let Some(Ok(uri)) = changed(&target, at, to).map(|target| target.parse::<http::Uri>())
            && meaning(&uri.to_string()) != meaning(&target)
        {
            let mut other = head.clone();
            other.uri = uri;
            prop_assert!(!is_let_in(&other, &body, now), "{}", other.uri);
        }
        // Every header that is signed, and the signature itself.
        let names: Vec<_> = head.headers.keys().cloned().collect();
        let name = &names[at % names.len()];
        if let Some(value) = changed(head.headers[name].to_str().unwrap(), at / names.len(), to) {
            let before = head.headers[name].to_str().unwrap();
            // Upper case in hex, and which run of spaces: the same by the rules.
            let is_same = *name == AUTHORIZATION && value.eq_ignore_ascii_case(before);
            let mut other = head.clone();
            other.headers.insert(name, HeaderValue::from_str(&value).unwrap());
            let let_in = is_let_in(&other, &body, now);
            prop_assert!(!let_in || is_same, "{name}: {value}");
        }
        // The body.
        let mut torn = body.clone();
        torn.push(b'x');
        prop_assert!(!is_let_in(&head, &torn, now));
        // A header that tells Lambda something and is not signed.
        let mut more = head.clone();
        more.headers.insert("x-amz-client-context", HeaderValue::from_static("e30="));
        prop_assert!(!is_let_in(&more, &body, now));
        // What any proxy adds changes nothing.
        let mut more = head.clone();
        more.headers.insert("x-forwarded-for", HeaderValue::from_static("10.0.0.1"));
        more.headers.insert("x-amzn-trace-id", HeaderValue::from_static("Root=1-5759e988-bd862e3fe1be46a994272793"));
        prop_assert!(is_let_in(&more, &body, now));
    }

    #[test]
    fn nothing_that_stands_in_the_header_makes_it_panic(text in "(AWS4-HMAC-SHA256 )?[ -~]{0,120}", date in "[ -~]{0,20}") {
        let request = Request::post("/x").header(AUTHORIZATION, text).header("host", "a").header(DATE, date);
        let head = request.body(()).unwrap().into_parts().0;
        drop(Claim::read(&head, UnixMillis(1_790_000_000_000), SKEW));
        let _: Option<&str> = key_id(&head);
    }
}

/// The flaw of a request whose header is changed so.
fn flaw(change: impl FnOnce(&mut Head)) -> Flaw {
    let (_, mut head, _) = captured().remove(0);
    let now = now_of(&head);
    change(&mut head);
    Claim::read(&head, now, SKEW).map(drop).unwrap_err()
}

fn authorization(head: &mut Head, from: &str, to: &str) {
    let text = head.headers[AUTHORIZATION].to_str().unwrap().replace(from, to);
    head.headers.insert(AUTHORIZATION, HeaderValue::from_str(&text).unwrap());
}

#[test]
fn what_cannot_be_read_is_malformed_and_never_repeats_a_signature() {
    for (from, to, why) in [
        ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256", "requires the algorithm AWS4-HMAC-SHA256"),
        ("AWS4-HMAC-SHA256 Credential=", "AWS4-HMAC-SHA256 Cred=", "unknown parameter"),
        ("SignedHeaders=", "", "missing equal-sign"),
        ("Signature=", "Signature=,Signature=", "a parameter twice"),
        ("SignedHeaders=host;x-amz-date;x-amz-invocation-type, ", "", "requires 'SignedHeaders' parameter"),
        ("/aws4_request", "", "end with aws4_request"),
        ("AKIDEXAMPLE/20261123/eu-central-1/", "AKIDEXAMPLE/", "5 slash-delimited"),
        ("Signature=c0", "Signature=zz", "64 hex digits"),
    ] {
        let Flaw::Malformed(said) = flaw(|head| authorization(head, from, to)) else { panic!("{from}") };
        assert!(said.contains(why) && !said.contains("c0934d7eae7"), "{said}");
    }
    let twice = flaw(|head| {
        let again = head.headers[AUTHORIZATION].clone();
        head.headers.append(AUTHORIZATION, again);
    });
    assert!(matches!(twice, Flaw::Malformed(why) if why.contains("more than one")));
    for value in ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "00"] {
        let unsigned = flaw(|head| drop(head.headers.insert(CONTENT_SHA256, HeaderValue::from_static(value))));
        assert!(matches!(unsigned, Flaw::Malformed(why) if why.contains("x-amz-content-sha256")));
    }
    assert!(matches!(flaw(|head| drop(head.headers.remove(DATE))), Flaw::Malformed(_)));
    let at = flaw(|head| drop(head.headers.insert(DATE, HeaderValue::from_static("2026-11-23T07:22:40Z"))));
    assert!(matches!(at, Flaw::Malformed(_)));
}

#[test]
fn scopes_of_other_services_and_days_and_unsigned_hosts_do_not_match() {
    for (from, to) in [
        ("/lambda/", "/s3/"),
        ("/20261123/", "/20261122/"),
        ("SignedHeaders=host;", "SignedHeaders="),
        (";x-amz-invocation-type", ""),
        (";x-amz-date", ""),
        ("host;", "host;x-missing;"),
    ] {
        assert_eq!(flaw(|head| authorization(head, from, to)), Flaw::Mismatch, "{from}");
    }
}

#[test]
fn a_signature_is_good_for_some_minutes_in_both_directions_and_the_refusal_says_which() {
    let (_, head, _) = captured().remove(0);
    let made = now_of(&head);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let read = |now| Claim::read(&head, now, SKEW).map(|claim| claim.is_some());
    assert_eq!((read(made.plus(minutes(5))), read(UnixMillis(made.0 - 300_000))), (Ok(true), Ok(true)));
    assert_eq!(
        read(made.plus(minutes(19))).unwrap_err().message(),
        "Signature expired: 20261123T072240Z is now earlier than 20261123T073640Z (20261123T074140Z - 5 min.)"
    );
    assert_eq!(
        read(UnixMillis(made.0 - 301_000)).unwrap_err().message(),
        "Signature not yet current: 20261123T072240Z is still later than 20261123T072239Z (20261123T071739Z + 5 min.)"
    );
    let mismatch = Flaw::Mismatch.message();
    assert_eq!(serde_json::json!({ "message": mismatch }).to_string().len(), 192, "as long as Lambda's own answer");
}

#[test]
fn a_request_without_a_signature_is_left_to_other_ways() {
    for authorization in [None, Some("Bearer AWS4-HMAC-SHA256"), Some("Basic eDp5")] {
        let mut request = Request::get("/");
        if let Some(text) = authorization {
            request = request.header(AUTHORIZATION, text);
        }
        let head = request.body(()).unwrap().into_parts().0;
        assert_eq!(Claim::read(&head, UnixMillis(0), SKEW).map(|claim| claim.is_none()), Ok(true));
    }
}
