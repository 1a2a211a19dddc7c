use std::collections::BTreeMap;

use aws_credential_types::Credentials;
use bytes::Bytes;

use super::*;
use crate::aws::testing::{Act, Seen, Server, refusing_address, say, settings, shared};
use crate::aws::{Own, sign};
use crate::event::{Carried, Function, FunctionName, IdempotencyKey, KeySource};

/// The SDK's headers about itself, and headers that depend on them or on the time.
const NOT_COMPARED: &[&str] =
    &["user-agent", "x-amz-user-agent", "amz-sdk-request", "amz-sdk-invocation-id", "x-amz-date", "authorization"];

const CONFIRM: Mode = Mode::Confirm { timeout: Duration::from_secs(5) };

fn call() -> Call {
    Call {
        function: Function {
            name: FunctionName::new("orders"),
            address: "orders".into(),
            qualifier: None,
            region: None,
        },
        key: IdempotencyKey { value: "order-17".into(), source: KeySource::Header },
        carried: Carried::default(),
        payload: Bytes::from_static(b"{\"order\" : 17}"),
        mode: Mode::Event,
    }
}

fn full_call() -> Call {
    Call {
        function: Function {
            address: "arn:aws:lambda:eu-central-1:123456789012:function:a_B-9".into(),
            qualifier: Some("$LATEST".into()),
            ..call().function
        },
        carried: Carried {
            trace_header: Some("Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1;Lineage=a:1".into()),
            client_context: Some("eyJjdXN0b20iOnsiYSI6MX19".into()),
            tenant_id: Some("blue  team/1".into()),
            durable_execution_name: Some("order-17".into()),
        },
        ..call()
    }
}

async fn client(settings: &Settings, transport: Transport) -> Client {
    Client::new(&shared().await, settings, transport, Clock::system()).await.unwrap()
}

/// The request of each transport, direct first.
async fn both_requests(call: Call, prefix: &str) -> (Seen, Seen) {
    let server = Server::start([say("202 Accepted", &[], "")]).await;
    let settings = settings(&format!("{}{prefix}", server.url));
    for transport in [Transport::Direct, Transport::Sdk] {
        let reply = client(&settings, transport).await.invoke(call.clone()).await;
        assert!(matches!(reply, Reply::Answer(Answer { status: 202, .. })), "{transport:?}: {reply:?}");
    }
    let mut seen = server.seen();
    assert_eq!(seen.len(), 2);
    let sdk = seen.remove(1);
    (seen.remove(0), sdk)
}

fn headers(seen: &Seen) -> BTreeMap<String, String> {
    let lines = seen.head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect()
}

#[tokio::test]
async fn on_the_wire_is_what_the_sdk_sends() {
    let empty = Call { payload: Bytes::new(), ..call() };
    let odd = Function { address: "f:with a/b%~é".into(), qualifier: Some("v 1+2".into()), ..call().function };
    let odd = Call { function: odd, ..call() };
    let large = Call { payload: Bytes::from(vec![b'1'; 1 << 20]), ..call() };
    for (call, prefix) in [(call(), ""), (full_call(), ""), (empty, "/"), (odd, "/pre/fix"), (large, "/prefix/")] {
        let (direct, sdk) = both_requests(call, prefix).await;
        assert_eq!(direct.head.lines().next(), sdk.head.lines().next());
        assert_eq!(direct.body, sdk.body);
        let compared = |seen: &Seen| {
            let mut headers = headers(seen);
            headers.retain(|name, _| !NOT_COMPARED.contains(&name.as_str()));
            headers
        };
        assert_eq!(compared(&direct), compared(&sdk));
        let mut known = headers(&sdk);
        known.extend(headers(&direct));
        assert_eq!(known.len(), headers(&sdk).len(), "the direct call has no header that the SDK's has not");
    }
}

#[tokio::test]
async fn the_signature_is_the_sdks() {
    for call in [call(), full_call()] {
        let (direct, sdk) = both_requests(call, "").await;
        for seen in [&direct, &sdk] {
            let mut anew = Request::post(format!(
                "http://{}{}",
                seen.header("host").unwrap(),
                seen.head.split(' ').nth(1).unwrap()
            ));
            let authorization = seen.header("authorization").unwrap();
            let names = authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
            for name in names.split(';').filter(|&name| name != "x-amz-date") {
                anew = anew.header(name, seen.header(name).unwrap());
            }
            let mut anew = anew.body(Bytes::from(seen.body.clone())).unwrap();
            let date = seen.header("x-amz-date").unwrap();
            let time = humantime::parse_rfc3339(&format!(
                "{}-{}-{}T{}:{}:{}Z",
                &date[..4],
                &date[4..6],
                &date[6..8],
                &date[9..11],
                &date[11..13],
                &date[13..15]
            ));
            let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
            sign::signed(&mut anew, credentials, "eu-central-1", time.unwrap()).unwrap();
            assert_eq!(anew.headers()["authorization"].to_str().unwrap(), authorization);
        }
        let signed = |seen: &Seen| {
            let authorization = seen.header("authorization").unwrap().to_owned();
            let names = authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
            names.split(';').filter(|&name| name != "x-amz-user-agent").map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(signed(&direct), signed(&sdk));
    }
}

/// A reply without the texts that may differ between the two transports.
fn in_kind(reply: Reply) -> Reply {
    let bare = |failure: Failure| Failure { message: String::new(), ..failure };
    match reply {
        Reply::Answer(answer) if answer.status < 300 => Reply::Answer(Answer { message: String::new(), ..answer }),
        Reply::Answer(answer) => Reply::Answer(answer),
        Reply::NotSent(failure) => Reply::NotSent(bare(failure)),
        Reply::Lost(failure) => Reply::Lost(bare(failure)),
    }
}

#[tokio::test]
async fn what_comes_back_means_the_same() {
    let throttled = r#"{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","message":"Rate Exceeded."}"#;
    let broken = "HTTP/1.1 202 Accepted\r\ncontent-length: 10\r\nconnection: close\r\n\r\nabc";
    for (act, expected) in [
        (say("202 Accepted", &[("x-amzn-RequestId", "r-1")], ""), "202"),
        (say("200 OK", &[], "null"), "200"),
        (Act::Say(broken.to_owned()), "202"),
        (
            say(
                "429 Too Many Requests",
                &[("x-amzn-ErrorType", "TooManyRequestsException"), ("Retry-After", "2")],
                throttled,
            ),
            "429 TooManyRequestsException",
        ),
        (say("404 Not Found", &[("x-amzn-ErrorType", "ResourceNotFoundException:http://x/")], ""), "404 Resource"),
        (say("413 Any", &[], r#"{"__type":"com.amazon#ValidationException","message":"no"}"#), "413 Validation"),
        (say("502 Bad Gateway", &[("content-type", "text/html")], "<html></html>"), "502: not Lambda's"),
        (Act::CloseUnread, "closed"),
        (Act::CloseUnanswered, "closed"),
        (Act::Hang, "read-timeout"),
    ] {
        let mut replies = Vec::new();
        for transport in [Transport::Direct, Transport::Sdk] {
            let server = Server::start([act.clone()]).await;
            let settings = Settings { read_timeout: Duration::from_millis(300), ..server.settings() };
            let reply = client(&settings, transport).await.invoke(call()).await;
            assert!(server.seen().len() <= 1, "no retries: {reply:?}");
            assert!(reply.in_words().starts_with(expected), "{transport:?}: {act:?}: {reply:?}");
            replies.push(in_kind(reply));
        }
        assert_eq!(replies[0], replies[1], "{act:?}");
    }
}

#[tokio::test]
async fn what_is_certainly_not_sent_is_told_apart() {
    let server = Server::start([Act::CloseUnread]).await;
    let (refusing, tls) = (refusing_address(), server.url.replace("http:", "https:"));
    let wrong = |carried| Call { carried, ..call() };
    let called =
        |address: &str| Call { function: Function { address: address.to_owned(), ..call().function }, ..call() };
    let nameless = called("");
    for (url, call, kind) in [
        (refusing.url.as_str(), call(), FailureKind::Connect),
        (tls.as_str(), call(), FailureKind::Connect),
        (&server.url, nameless, FailureKind::Unbuildable),
        (&server.url, called("."), FailureKind::Unbuildable),
        (&server.url, called(".."), FailureKind::Unbuildable),
        (
            &server.url,
            wrong(Carried { trace_header: Some("a\nb".into()), ..Carried::default() }),
            FailureKind::Unbuildable,
        ),
        (
            &server.url,
            wrong(Carried { tenant_id: Some("a\nb".into()), ..Carried::default() }),
            FailureKind::Unbuildable,
        ),
    ] {
        for transport in [Transport::Direct, Transport::Sdk] {
            let reply = client(&settings(url), transport).await.invoke(call.clone()).await;
            assert!(matches!(&reply, Reply::NotSent(failure) if failure.kind == kind), "{transport:?}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn without_credentials_nothing_is_sent() {
    let server = Server::start([say("202 Accepted", &[], "")]).await;
    let mut direct = Direct::new(
        &shared().await,
        &server.settings(),
        Lambda::new(&shared().await, &server.settings()).unwrap(),
        Clock::system(),
    )
    .await
    .unwrap();
    Arc::get_mut(&mut direct.shared).unwrap().credentials = Keeper::new(None, Clock::system());
    let reply = direct.invoke(call()).await;
    assert!(matches!(&reply, Reply::NotSent(failure) if failure.kind == FailureKind::Credentials), "{reply:?}");
    assert!(server.seen().is_empty());
}

/// The day in `x-amz-date` of each request that a server received.
fn days(server: &Server) -> Vec<String> {
    server.seen().iter().map(|seen| seen.header("x-amz-date").unwrap()[..8].to_owned()).collect()
}

#[tokio::test]
async fn a_wrong_local_clock_is_corrected_after_the_first_refusal() {
    let date = [("date", "Tue, 15 Nov 2044 08:12:31 GMT"), ("x-amzn-ErrorType", "InvalidSignatureException")];
    let refused = say("403 Forbidden", &date, "{\"message\":\"Signature expired\"}");
    let server = Server::start([refused, say("202 Accepted", &[], "")]).await;
    let client = client(&server.settings(), Transport::Direct).await;
    client.invoke(call()).await;
    client.invoke(call()).await;
    let days = days(&server);
    assert_ne!(days[0], "20441115");
    assert_eq!(days[1], "20441115");
}

#[tokio::test]
async fn another_refusal_says_nothing_of_the_clock() {
    let date = [("date", "Tue, 15 Nov 2044 08:12:31 GMT"), ("x-amzn-ErrorType", "ResourceNotFoundException")];
    let server = Server::start([say("404 Not Found", &date, "{}"), say("202 Accepted", &[], "")]).await;
    let client = client(&server.settings(), Transport::Direct).await;
    client.invoke(call()).await;
    client.invoke(call()).await;
    let days = days(&server);
    assert!(days.iter().all(|day| day != "20441115"), "{days:?}");
}

#[tokio::test]
async fn an_answer_that_does_not_end_is_given_up() {
    let endless = Act::SayAndHang("HTTP/1.1 500 Error\r\ncontent-length: 10\r\n\r\nabc".to_owned());
    let server = Server::start([endless]).await;
    let sdk = Lambda::new(&shared().await, &server.settings()).unwrap();
    let mut direct = Direct::new(&shared().await, &server.settings(), sdk, Clock::system()).await.unwrap();
    Arc::get_mut(&mut direct.shared).unwrap().whole = Duration::from_millis(300);
    let reply = direct.invoke(call()).await;
    assert!(matches!(&reply, Reply::Lost(failure) if failure.kind == FailureKind::ReadTimeout), "{reply:?}");
}

#[tokio::test]
async fn a_call_to_another_region_is_the_sdks() {
    let server = Server::start([say("202 Accepted", &[], "")]).await;
    let direct = client(&server.settings(), Transport::Direct).await;
    let there = Function { region: Some("us-east-1".into()), ..call().function };
    assert!(matches!(direct.invoke(Call { function: there, ..call() }).await, Reply::Answer(_)));
    let seen = server.seen().remove(0);
    assert!(seen.header("authorization").unwrap().contains("/us-east-1/lambda/"));
    assert!(seen.header("amz-sdk-invocation-id").is_some());
}

#[tokio::test]
async fn without_a_configured_endpoint_it_is_the_regions_own() {
    let at = async |region: &str| resolve(&shared().await, region, None).await.unwrap();
    assert_eq!(at("eu-central-1").await, "https://lambda.eu-central-1.amazonaws.com");
    assert_eq!(at("cn-north-1").await, "https://lambda.cn-north-1.amazonaws.com.cn");
}

#[tokio::test]
async fn a_success_that_is_not_lambdas_is_told_apart_by_both_transports() {
    let page = "<html><body>Welcome to the guest network</body></html>";
    let own = [("x-amzn-RequestId", "r-1"), ("x-sendoff-event-id", "e-1")];
    for (act, mode, status, foreign) in [
        (say("200 OK", &[("content-type", "text/html")], page), Mode::Event, 200, true),
        (say("202 Accepted", &[("content-type", "text/html")], page), Mode::Event, 202, true),
        (say("204 No Content", &[], ""), Mode::Event, 204, true),
        (say("302 Found", &[("location", "http://portal.example/")], ""), Mode::Event, 302, true),
        (say("202 Accepted", &own, ""), Mode::Event, 508, false),
        (say("202 Accepted", &[], ""), Mode::Event, 202, false),
        (say("200 OK", &[("content-type", "text/html")], page), CONFIRM, 200, true),
        (say("200 OK", &[("content-type", "application/json")], "{}"), CONFIRM, 200, true),
        (say("200 OK", &[("x-amz-executed-version", "$LATEST")], "{}"), CONFIRM, 200, false),
    ] {
        for transport in [Transport::Direct, Transport::Sdk] {
            let server = Server::start([act.clone()]).await;
            let reply = client(&server.settings(), transport).await.invoke(Call { mode, ..call() }).await;
            let Reply::Answer(answer) = &reply else { panic!("{transport:?}: {act:?}: {reply:?}") };
            assert_eq!((answer.status, answer.foreign), (status, foreign), "{transport:?}: {act:?}: {reply:?}");
            assert!(answer.message.contains("lambda.endpoint_url") == (foreign || status == 508), "{reply:?}");
        }
    }
}

#[tokio::test]
async fn every_call_carries_the_mark_and_no_signature_covers_it() {
    let server = Server::start([say("202 Accepted", &[], "")]).await;
    let own = Own { hop: hop::Hop::minted(7), addresses: Vec::new() };
    let shared = Shared { own, ..shared().await };
    for transport in [Transport::Direct, Transport::Sdk] {
        let client = Client::new(&shared, &server.settings(), transport, Clock::system()).await.unwrap();
        client.invoke(call()).await;
        client.invoke(Call { mode: CONFIRM, ..call() }).await;
        client.dry_run(call().function).await;
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 6);
    for request in seen {
        assert_eq!(request.header("cdn-loop"), Some("sendoff; id=0000000000000007"));
        assert!(!request.header("authorization").unwrap().contains("cdn-loop"), "a proxy may add its own name");
    }
}
