//! The operator's API, as the commands about dead letters call it.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::cli::send::base;
use crate::deadletter::Trouble;

/// An append takes milliseconds, on a loaded disk seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A page of 8 MiB of payloads and one more, as base64 in JSON.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// A daemon's admin listener.
#[derive(Debug, Clone)]
pub struct AdminClient {
    endpoint: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl AdminClient {
    pub fn new(endpoint: &Uri) -> Self {
        Self { endpoint: base(endpoint), client: Client::builder(TokioExecutor::new()).build_http() }
    }

    pub async fn get(&self, path: &str) -> Result<Value, Trouble> {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, Trouble> {
        self.call(Method::DELETE, path, None).await
    }

    /// The answer's JSON. A refusal is a trouble, which may pass if the daemon is not there, starting or stopping.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let unreachable = |why: String| Trouble {
            code: "unreachable".to_owned(),
            message: format!("no answer from the daemon's admin listener at {}: {why}", self.endpoint),
            transient: true,
        };
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Trouble { code: "request".into(), message: error.to_string(), transient: false })?;
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, async {
            let response = self.client.request(request).await.map_err(|error| unreachable(error.to_string()))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| unreachable(error.to_string()))?.to_bytes();
            Ok((head.status, body))
        })
        .await;
        let (status, body) = answered.unwrap_or_else(|elapsed| Err(unreachable(elapsed.to_string())))?;
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status == StatusCode::OK {
            return Ok(json);
        }
        let said = json["message"].as_str().map(str::to_owned);
        let message = said.unwrap_or_else(|| String::from_utf8_lossy(&body).chars().take(200).collect());
        Err(Trouble { code: status.as_u16().to_string(), message, transient: status.is_server_error() })
    }
}
