//! Tests aws-sdk-lambda, the Rust SDK.

use aws_sdk_lambda::Client;
use aws_sdk_lambda::config::retry::RetryConfig;
use aws_sdk_lambda::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_lambda::error::ProvideErrorMetadata;
use aws_sdk_lambda::operation::RequestId;
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_lambda::types::{InvocationType, LogType};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::*;

pub(super) fn client(endpoint_url: &str, attempts_max: u32) -> Client {
    let connector =
        aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    with(endpoint_url, attempts_max, connector, ("AKIDEXAMPLE", "secret"))
}

/// A client that trusts the authorities in this PEM alone, and calls once.
pub fn client_trusting(endpoint_url: &str, authorities: &[u8]) -> Client {
    client_as(endpoint_url, authorities, ("AKIDEXAMPLE", "secret"))
}

/// As `client`, with a key and its secret.
pub fn client_as(endpoint_url: &str, authorities: &[u8], key: (&str, &str)) -> Client {
    let trust = TrustStore::empty().with_pem_certificate(authorities);
    let tls = TlsContext::builder().with_trust_store(trust).build().unwrap();
    let connector = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https();
    with(endpoint_url, 1, connector, key)
}

fn with(endpoint_url: &str, attempts_max: u32, connector: SharedHttpClient, (id, secret): (&str, &str)) -> Client {
    let config = aws_sdk_lambda::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(python::REGION))
        .credentials_provider(Credentials::new(id, secret, None, None, "test"))
        .endpoint_url(endpoint_url)
        .http_client(connector)
        .retry_config(RetryConfig::standard().with_max_attempts(attempts_max))
        .build();
    Client::from_conf(config)
}

/// What the SDK shows in one case.
async fn shown(client: &Client, args: &Value) -> Value {
    let text = |name: &str| args[name].as_str().map(str::to_owned);
    let payload = match args["Payload"].as_u64() {
        Some(bytes) => format!("\"{}\"", "x".repeat(usize::try_from(bytes).unwrap() - 2)),
        None => args["Payload"].as_str().unwrap().to_owned(),
    };
    let answer = client
        .invoke()
        .set_function_name(text("FunctionName"))
        .set_invocation_type(text("InvocationType").as_deref().map(InvocationType::from))
        .set_log_type(text("LogType").as_deref().map(LogType::from))
        .set_client_context(text("ClientContext"))
        .set_qualifier(text("Qualifier"))
        .set_tenant_id(text("TenantId"))
        .set_durable_execution_name(text("DurableExecutionName"))
        .payload(Blob::new(payload))
        .send()
        .await;
    let shown = match answer {
        Ok(answer) => json!({
            "status": answer.status_code(),
            "payload": answer.payload().map(|it| String::from_utf8_lossy(it.as_ref()).into_owned()),
            "function_error": answer.function_error(),
            "log": answer.log_result().is_some(),
            "version": answer.executed_version(),
            "has_request_id": answer.request_id().is_some(),
        }),
        Err(error) => json!({
            "status": error.raw_response().unwrap_or_else(|| panic!("{args}: {error:?}")).status().as_u16(),
            "code": error.code(),
            "message": error.message(),
            "has_request_id": error.request_id().is_some(),
        }),
    };
    let text = shown.to_string();
    // The answer of a failed function contains the id of the call.
    match text.find("requestId\\\":\\\"") {
        Some(at) => serde_json::from_str(&text.replace(&text[at + 14..at + 50], "ID")).unwrap(),
        None => shown,
    }
}

#[test]
fn the_rust_sdk_shows_the_same_for_every_option() {
    let (_scratch, state) = scratch();
    let (lambda, daemon) = both(&state);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (direct, through) = (client(&lambda.endpoint_url(), 1), client(&daemon.endpoint_url(), 1));
        for (name, _, args) in cases() {
            assert_eq!(shown(&through, &args).await, shown(&direct, &args).await, "{name}: sendoff left, Lambda right");
        }
    });
    daemon.wait_until_empty();
}
