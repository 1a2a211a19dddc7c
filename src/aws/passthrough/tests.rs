use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_lambda::config::Region;
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use http::HeaderMap;
use sha2::{Digest, Sha256};

use super::*;
use crate::aws::testing::{Act, Seen, Server, refusing_address, say, settings, shared, with};
use crate::clock::UnixMillis;
use crate::event::FunctionName;

/// 2026-11-23T07:27:41Z.
const NOW: UnixMillis = UnixMillis(1_795_418_861_000);

fn call(operation: Operation, address: &str, qualifier: Option<&str>) -> PassthroughCall {
    let function = Function {
        name: FunctionName::new("orders"),
        address: address.to_owned(),
        qualifier: qualifier.map(str::to_owned),
        region: None,
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-invocation-type", HeaderValue::from_static("RequestResponse"));
    headers.insert("x-amz-tenant-id", HeaderValue::from_static("blue  team"));
    headers.insert("x-amzn-trace-id", HeaderValue::from_static("Root=1-5759e988-bd862e3fe1be46a994272793"));
    PassthroughCall { operation, function, headers, payload: Bytes::from_static(b"{\"k\":1}") }
}

async fn passthrough(url: &str) -> LambdaPassthrough {
    LambdaPassthrough::new(&shared().await, &settings(url), Clock::seeded(NOW, 1)).unwrap()
}

async fn body_of(response: Response<AnswerBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The signature of what was received, by the rules of AWS's "Create a signed AWS API request", path encoded once more.
fn signature_of(seen: &Seen) -> String {
    let target = seen.head.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.replace('%', "%25");
    let authorization = seen.header("authorization").unwrap();
    let names = authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
    let words = |value: &str| value.split_whitespace().collect::<Vec<_>>().join(" ");
    let headers: String =
        names.split(';').map(|name| format!("{name}:{}\n", words(seen.header(name).unwrap()))).collect();
    let canonical = format!("POST\n{path}\n{query}\n{headers}\n{names}\n{}", sha256_hex(&seen.body));
    let date = seen.header("x-amz-date").unwrap();
    let scope = format!("{}/eu-central-1/lambda/aws4_request", &date[..8]);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
    let time = UNIX_EPOCH + Duration::from_millis(NOW.0);
    calculate_signature(generate_signing_key("secret", time, "eu-central-1", "lambda"), to_sign.as_bytes())
}

#[tokio::test]
async fn a_call_is_signed_with_our_own_credentials_as_lambda_checks_it() {
    let server = Server::start([say("200 OK", &[("x-amz-executed-version", "7")], "\"done\"")]).await;
    let arn = "arn:aws:lambda:eu-central-1:123456789012:function:orders";
    for (operation, address, qualifier, target) in [
        (Operation::Invoke, "orders", None, "/2015-03-31/functions/orders/invocations"),
        (
            Operation::Invoke,
            arn,
            Some("$LATEST"),
            "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-central-1%3A123456789012%3Afunction%3Aorders/invocations\
             ?Qualifier=%24LATEST",
        ),
        (
            Operation::InvokeWithResponseStream,
            "orders:prod",
            None,
            "/2021-11-15/functions/orders%3Aprod/response-streaming-invocations",
        ),
    ] {
        let answer = passthrough(&server.url).await.call(call(operation, address, qualifier)).await.unwrap();
        assert_eq!(answer.headers()["x-amz-executed-version"], "7");
        assert_eq!(body_of(answer).await, "\"done\"");
        let seen = server.seen().pop().unwrap();
        assert_eq!(seen.head.lines().next().unwrap(), format!("POST {target} HTTP/1.1"));
        assert_eq!(seen.body, b"{\"k\":1}");
        let authorization = seen.header("authorization").unwrap();
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/eu-central-1/lambda/"));
        let signature = signature_of(&seen);
        assert!(authorization.ends_with(&format!("Signature={signature}")), "{authorization} is not {signature}");
        assert!(authorization.contains("x-amz-tenant-id") && !authorization.contains("x-amzn-trace-id"));
        assert!(seen.header("x-amzn-trace-id").is_some());
        assert_eq!(seen.header("cdn-loop"), Some("sendoff"));
    }
}

#[tokio::test]
async fn an_answer_is_given_before_it_is_complete() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nfirst";
    let server = Server::start([Act::SayAndHang(head.to_owned())]).await;
    let answer = passthrough(&server.url).await.call(call(Operation::Invoke, "orders", None)).await.unwrap();
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "first");
}

#[tokio::test]
async fn what_was_not_sent_is_told_from_what_was_lost() {
    let refusing = refusing_address();
    let failed = passthrough(&refusing.url).await.call(call(Operation::Invoke, "orders", None)).await.unwrap_err();
    assert!(matches!(failed, Failed::NotSent(_)), "{failed:?}");
    let server = Server::start([Act::CloseUnanswered]).await;
    let failed = passthrough(&server.url).await.call(call(Operation::Invoke, "orders", None)).await.unwrap_err();
    assert!(matches!(failed, Failed::Lost(_)), "{failed:?}");
}

#[tokio::test]
async fn without_credentials_nothing_is_sent() {
    let server = Server::start([say("200 OK", &[], "")]).await;
    let bare = with(aws_config::SdkConfig::builder().region(Region::new("eu-central-1")).build());
    let passthrough = LambdaPassthrough::new(&bare, &settings(&server.url), Clock::seeded(NOW, 1)).unwrap();
    let failed = passthrough.call(call(Operation::Invoke, "orders", None)).await.unwrap_err();
    assert_eq!(failed, Failed::NotSent("there is no provider of credentials".to_owned()));
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn the_region_of_an_arn_decides_which_endpoint_is_called() {
    let public = Settings { endpoint_url: None, ..settings("http://unused") };
    let passthrough = LambdaPassthrough::new(&shared().await, &public, Clock::seeded(NOW, 1)).unwrap();
    for (region, host) in [
        (None, "lambda.eu-central-1.amazonaws.com"),
        (Some("us-east-1"), "lambda.us-east-1.amazonaws.com"),
        (Some("cn-north-1"), "lambda.cn-north-1.amazonaws.com.cn"),
    ] {
        let mut call = call(Operation::Invoke, "orders", None);
        call.function.region = region.map(str::to_owned);
        let request = passthrough.shared.request(call).await.unwrap();
        assert_eq!(request.uri().host(), Some(host));
        let scope = format!("/{}/lambda/", region.unwrap_or("eu-central-1"));
        assert!(request.headers()["authorization"].to_str().unwrap().contains(&scope));
    }
    let mut call = call(Operation::Invoke, "orders", None);
    call.function.region = Some("evil.example/".to_owned());
    assert!(passthrough.shared.request(call).await.is_err());
}
