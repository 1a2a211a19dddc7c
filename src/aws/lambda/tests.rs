use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

use super::*;
use crate::aws::loader;
use crate::aws::testing::{Act, Server, refusing_address, say, settings, shared, wire, with};
use crate::event::{Carried, Function, FunctionName, IdempotencyKey, KeySource};

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

/// One call against a server that acts so; exactly one request must have come, or none where it is not read.
async fn reply_to(act: Act) -> Reply {
    let expected = usize::from(!matches!(act, Act::CloseUnread));
    let server = Server::start([act]).await;
    let mut settings = server.settings();
    settings.read_timeout = Duration::from_millis(300);
    let reply = Lambda::new(&shared().await, &settings).unwrap().invoke(call()).await;
    assert_eq!(server.seen().len(), expected, "no retries: {reply:?}");
    reply
}

fn answer(reply: Reply) -> Answer {
    match reply {
        Reply::Answer(answer) => answer,
        Reply::NotSent(failure) | Reply::Lost(failure) => panic!("no answer: {failure:?}"),
    }
}

fn lost(reply: Reply) -> Failure {
    match reply {
        Reply::Lost(failure) => failure,
        Reply::Answer(_) | Reply::NotSent(_) => panic!("not lost: {reply:?}"),
    }
}

fn not_sent(reply: Reply) -> Failure {
    match reply {
        Reply::NotSent(failure) => failure,
        Reply::Answer(_) | Reply::Lost(_) => panic!("sent: {reply:?}"),
    }
}

#[tokio::test]
async fn the_call_is_on_the_wire_as_the_client_made_it() {
    let server = Server::start([say("202 Accepted", &[("x-amzn-RequestId", "r-1")], "")]).await;
    let lambda = Lambda::new(&shared().await, &server.settings()).unwrap();
    let trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1;Lineage=a:1";
    let call = Call {
        function: Function {
            address: "arn:aws:lambda:eu-west-1:123456789012:function:orders".into(),
            qualifier: Some("$LATEST".into()),
            region: Some("eu-west-1".into()),
            ..call().function
        },
        carried: Carried {
            trace_header: Some(trace.into()),
            client_context: Some(BASE64_STANDARD.encode(r#"{"custom":{"a":1}}"#)),
            tenant_id: Some("tenant a".into()),
            durable_execution_name: Some("order-17".into()),
        },
        ..call()
    };
    let reply = lambda.invoke(call.clone()).await;
    let expected = Answer { status: 202, request_id: Some("r-1".into()), ..Answer::default() };
    assert_eq!(reply, Reply::Answer(expected));
    assert!(matches!(lambda.invoke(call).await, Reply::Answer(_)));
    let seen = server.seen();
    let path = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Aorders/invocations";
    for request in &seen {
        assert!(request.head.starts_with(&format!("POST {path}?Qualifier=%24LATEST HTTP/1.1\r\n")), "{}", request.head);
        assert_eq!(request.body, b"{\"order\" : 17}");
        assert_eq!(request.header("x-amz-invocation-type"), Some("Event"));
        assert_eq!(request.header("x-amz-tenant-id"), Some("tenant a"));
        assert_eq!(request.header("x-amz-durable-execution-name"), Some("order-17"));
        assert_eq!(request.header("x-amzn-trace-id"), Some(trace));
        let context = BASE64_STANDARD.decode(request.header("x-amz-client-context").unwrap()).unwrap();
        assert_eq!(context, br#"{"custom":{"a":1,"idempotency_key":"order-17"}}"#);
        let signature = request.header("authorization").unwrap();
        assert!(signature.contains("/eu-west-1/lambda/aws4_request"), "signed for the ARN's region: {signature}");
        assert_eq!(request.header("cdn-loop"), Some("sendoff"));
        assert!(!signature.contains("cdn-loop"), "a proxy may add its own name: {signature}");
        assert!(request.header("user-agent").is_some_and(|agent| agent.contains("app/sendoff")), "{}", request.head);
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_plain_name_goes_to_the_own_region_with_the_key_alone() {
    let server = Server::start([say("200 OK", &[], "null")]).await;
    let lambda = Lambda::new(&shared().await, &server.settings()).unwrap();
    let call = Call { payload: Bytes::new(), ..call() };
    let answer = answer(lambda.invoke(call).await);
    assert_eq!((answer.status, answer.foreign), (200, true), "Lambda answers an Event with 202");
    let seen = server.seen().remove(0);
    assert!(seen.head.starts_with("POST /2015-03-31/functions/orders/invocations HTTP/1.1\r\n"), "{}", seen.head);
    assert!(seen.header("authorization").unwrap().contains("/eu-central-1/lambda/"));
    assert_eq!(seen.header("x-amzn-trace-id"), None);
    assert_eq!(seen.body, b"");
    let context = BASE64_STANDARD.decode(seen.header("x-amz-client-context").unwrap()).unwrap();
    assert_eq!(context, br#"{"custom":{"idempotency_key":"order-17"}}"#);
}

#[tokio::test]
async fn a_429_tells_reason_and_the_longer_wait() {
    let headers = |extra: &[(&'static str, &'static str)]| {
        let mut headers = vec![("x-amzn-ErrorType", "TooManyRequestsException"), ("x-amzn-RequestId", "r-2")];
        headers.extend_from_slice(extra);
        headers
    };
    let body =
        r#"{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}"#;
    for (extra, retry_after) in [
        (&[("Retry-After", "2")][..], Some(Duration::from_secs(2))),
        (&[("Retry-After", "2"), ("x-amz-retry-after", "2500")], Some(Duration::from_millis(2_500))),
        (&[("x-amz-retry-after", "700"), ("Retry-After", "1")], Some(Duration::from_secs(1))),
        (
            &[("Retry-After", "Fri, 31 Dec 1999 23:59:59 GMT"), ("Date", "Fri, 31 Dec 1999 23:59:52 GMT")],
            Some(Duration::from_secs(7)),
        ),
        (&[], None),
    ] {
        let answer = answer(reply_to(say("429 Too Many Requests", &headers(extra), body)).await);
        let expected = Answer {
            status: 429,
            code: Some("TooManyRequestsException".into()),
            message: "Rate Exceeded.".into(),
            throttle_reason: Some("ReservedFunctionConcurrentInvocationLimitExceeded".into()),
            retry_after,
            request_id: Some("r-2".into()),
            ..Answer::default()
        };
        assert_eq!(answer, expected);
    }
}

#[tokio::test]
async fn a_code_is_found_whatever_its_dress() {
    for (headers, body, code, message) in [
        (
            &[("x-amzn-ErrorType", "RequestEntityTooLargeException:http://internal.amazon.com/coral/com.amazon/")][..],
            r#"{"Message":"too large"}"#,
            Some("RequestEntityTooLargeException"),
            "too large",
        ),
        (&[], r#"{"__type":"com.amazon#ValidationException","message":"no"}"#, Some("ValidationException"), "no"),
        (&[("x-amzn-errortype", "AccessDeniedException")], "<not json>", Some("AccessDeniedException"), ""),
        (
            &[("content-type", "text/html")],
            "<html>Bad Gateway</html>",
            None,
            "not Lambda's own answer: it has no error code",
        ),
        (&[], "", None, "not Lambda's own answer: it has no error code"),
    ] {
        let answer = answer(reply_to(say("413 Any", headers, body)).await);
        assert_eq!((answer.status, answer.code.as_deref(), answer.message.as_str()), (413, code, message), "{body}");
    }
}

#[tokio::test]
async fn a_proxys_502_has_no_code() {
    let answer = answer(reply_to(say("502 Bad Gateway", &[("content-type", "text/html")], "<html></html>")).await);
    assert_eq!((answer.status, answer.code), (502, None));
}

#[tokio::test]
async fn a_connection_that_ends_without_an_answer_is_lost() {
    for act in [Act::CloseUnread, Act::CloseUnanswered] {
        let failure = lost(reply_to(act).await);
        assert_eq!(failure.kind, FailureKind::Closed, "{failure:?}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_lost() {
    let failure = lost(reply_to(Act::Hang).await);
    assert_eq!(failure.kind, FailureKind::ReadTimeout);
    assert!(failure.message.contains("HTTP read timeout"), "{}", failure.message);
}

#[tokio::test]
async fn a_202_counts_even_if_its_body_breaks_off() {
    let broken = Act::Say("HTTP/1.1 202 Accepted\r\ncontent-length: 10\r\nconnection: close\r\n\r\nabc".to_owned());
    assert_eq!(answer(reply_to(broken).await).status, 202);
}

#[tokio::test]
async fn an_answer_that_never_ends_is_given_up() {
    let endless = Act::SayAndHang("HTTP/1.1 500 Error\r\ncontent-length: 10\r\n\r\nabc".to_owned());
    let server = Server::start([endless]).await;
    let shared = shared().await;
    let mut place = shared.place("lambda", &server.settings()).unwrap();
    place.timeouts = place.timeouts.to_builder().operation_attempt_timeout(Duration::from_millis(500)).build();
    let failure = lost(Lambda::at(&shared, place).invoke(call()).await);
    assert_eq!(failure.kind, FailureKind::ReadTimeout);
}

#[tokio::test]
async fn no_connection_is_certainly_not_sent() {
    let refusing = refusing_address();
    let lambda = Lambda::new(&shared().await, &settings(&refusing.url)).unwrap();
    let failure = not_sent(lambda.invoke(call()).await);
    assert_eq!(failure.kind, FailureKind::Connect, "{failure:?}");
}

#[tokio::test]
async fn a_failed_tls_handshake_is_certainly_not_sent() {
    let server = Server::start([Act::CloseUnread]).await;
    let lambda = Lambda::new(&shared().await, &settings(&server.url.replace("http:", "https:"))).unwrap();
    let failure = not_sent(lambda.invoke(call()).await);
    assert_eq!(failure.kind, FailureKind::Connect, "{failure:?}");
}

#[tokio::test]
async fn no_credentials_are_not_the_events_fault() {
    let server = Server::start([say("202 Accepted", &[], "")]).await;
    let nobody = aws_config::profile::ProfileFileCredentialsProvider::builder()
        .configure(
            &aws_config::provider_config::ProviderConfig::without_region().with_http_client(wire().http_client()),
        )
        .profile_name("sendoff-test-no-such-profile")
        .build();
    let config = loader(&wire()).region(Region::new("eu-central-1")).credentials_provider(nobody).load().await;
    let lambda = Lambda::new(&with(config), &server.settings()).unwrap();
    let failure = not_sent(lambda.invoke(call()).await);
    assert_eq!(failure.kind, FailureKind::Credentials, "{failure:?}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_call_that_cannot_be_built_is_not_blamed_on_the_credentials() {
    let server = Server::start([say("202 Accepted", &[], "")]).await;
    let lambda = Lambda::new(&shared().await, &server.settings()).unwrap();
    let region = Some("not/a.region".to_owned());
    for call in [
        Call { function: Function { region, ..call().function }, ..call() },
        Call { carried: Carried { trace_header: Some("a\nb".into()), ..Carried::default() }, ..call() },
        Call { carried: Carried { tenant_id: Some("a\nb".into()), ..Carried::default() }, ..call() },
        Call { function: Function { address: String::new(), ..call().function }, ..call() },
    ] {
        let failure = not_sent(lambda.invoke(call).await);
        assert_eq!(failure.kind, FailureKind::Unbuildable, "{failure:?}");
    }
    assert!(server.seen().is_empty());
}
