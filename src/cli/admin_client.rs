//! The commands' way to the operator's API: of a running daemon, or of a store that the command itself has opened.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::service::Service as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::send::{base, endpoint_of, parse_endpoint, percent};
use super::{ConfigOptions, Exit, Failure};
use crate::config::{Config, Environment};
use crate::deadletter::Trouble;

/// How long to wait for an answer: an append takes milliseconds, on a loaded disk seconds, and for some answers the daemon
/// counts its store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer that are read: a page of 8 MiB of payloads and one more, as base64 in JSON.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// The code of a trouble that is no answer at all.
pub(super) const UNREACHABLE: &str = "unreachable";

/// Which daemon to ask.
#[derive(Debug, Clone, Args)]
pub struct Daemon {
    #[command(flatten)]
    pub(super) config: ConfigOptions,
    /// The daemon's admin listener, as http://HOST:PORT; by default what the configuration says
    #[arg(long, value_name = "URL", value_parser = parse_endpoint)]
    admin: Option<Uri>,
}

/// Which daemon to ask for a list, and how to show it.
#[derive(Debug, Clone, Args)]
pub struct Listing {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    /// Show so many at most
    #[arg(long, default_value_t = 100)]
    pub(super) limit: usize,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// Which event of which daemon.
#[derive(Debug, Clone, Args)]
pub struct One {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    /// The event's id
    pub(super) id: String,
}

impl Daemon {
    pub(super) fn client(&self, environment: &Environment) -> Result<AdminClient, Failure> {
        match &self.admin {
            Some(endpoint) => Ok(AdminClient::new(endpoint)),
            None => Ok(AdminClient::new(&endpoint_of(self.config(environment)?.listen.admin)?)),
        }
    }

    /// The daemon's configuration as far as this side knows it. Whoever only asks has no state directory, and needs none.
    pub(super) fn config(&self, environment: &Environment) -> Result<Config, Failure> {
        let state_dir = self.config.state_dir.clone().or_else(|| Some("/".to_owned()));
        Ok(ConfigOptions { state_dir, ..self.config.clone() }.load(environment)?.config)
    }
}

/// The operator's API. Cheap to clone.
#[derive(Clone)]
pub struct AdminClient {
    base: String,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Http(Box<Client<HttpConnector, Full<Bytes>>>),
    InProcess(TowerToHyperService<axum::Router>),
}

impl AdminClient {
    /// Of the daemon whose admin listener is there.
    pub fn new(endpoint: &Uri) -> Self {
        Self { base: base(endpoint), way: Way::Http(Box::new(Client::builder(TokioExecutor::new()).build_http())) }
    }

    /// Of this very process.
    pub fn in_process(routes: axum::Router) -> Self {
        Self { base: String::new(), way: Way::InProcess(TowerToHyperService::new(routes)) }
    }

    pub async fn get(&self, path: &str) -> Result<Value, Trouble> {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str) -> Result<Value, Trouble> {
        self.call(Method::PUT, path, None).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, Trouble> {
        self.call(Method::DELETE, path, None).await
    }

    /// The answer as a type of ours.
    pub async fn value<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        serde_json::from_value(self.get(path).await?).map_err(|error| {
            let why =
                format!("{} answers what this version, {}, does not understand", self.base, env!("CARGO_PKG_VERSION"));
            Failure::new(Exit::Failed, anyhow::Error::new(error).context(why))
        })
    }

    /// The answer's JSON. A refusal is a trouble, which may pass if the daemon is not there, starting or stopping.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let (status, body) = self.ask(method, path, body).await?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).unwrap_or_default());
        }
        let message = words(status, &body);
        Err(Trouble { code: status.as_u16().to_string(), message, transient: status.is_server_error() })
    }

    /// Status and body of one answer; a trouble only if there is none.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Bytes), Trouble> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body));
        let request = request.map_err(|error| Trouble {
            code: "request".into(),
            message: error.to_string(),
            transient: false,
        })?;
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, async {
            match &self.way {
                Way::Http(client) => {
                    let response = client.request(request).await.map_err(|error| match error.is_connect() {
                        true => self.unreachable("daemon not running"),
                        false => self.unreachable(&format!("no answer ({error})")),
                    })?;
                    let (head, body) = response.into_parts();
                    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
                    let body = body.map_err(|error| self.unreachable(&format!("no whole answer ({error})")))?;
                    Ok((head.status, body.to_bytes()))
                }
                Way::InProcess(routes) => {
                    let response = routes.call(request).await.unwrap_or_else(|never| match never {});
                    let (head, body) = response.into_parts();
                    let body = body.collect().await.map_err(|error| self.unreachable(&error.to_string()))?;
                    Ok((head.status, body.to_bytes()))
                }
            }
        });
        answered.await.unwrap_or_else(|_| Err(self.unreachable(&format!("no answer within {ANSWER_TIMEOUT:?}"))))
    }

    fn unreachable(&self, why: &str) -> Trouble {
        let message = format!("{why} at {}; start it with `sendoff serve`, or name another with --admin", self.base);
        Trouble { code: UNREACHABLE.to_owned(), message, transient: true }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let exit = if trouble.code == UNREACHABLE { Exit::Unavailable } else { Exit::Failed };
        Self::saying(exit, trouble.message)
    }
}

/// What an answer says: its `message`, or its text.
pub(super) fn words(status: StatusCode, body: &[u8]) -> String {
    let value: Option<Value> = serde_json::from_slice(body).ok();
    match value.as_ref().and_then(|value| value["message"].as_str()) {
        Some(message) => message.to_owned(),
        None if body.is_empty() => status.to_string(),
        None => String::from_utf8_lossy(body).trim().to_owned(),
    }
}

/// One request of the operator's API.
pub(super) enum Ask {
    Get(String),
    Post(String),
    Delete(String),
}

/// A daemon to ask, one request after another.
pub(super) struct Asker {
    client: AdminClient,
    runtime: tokio::runtime::Runtime,
}

impl Asker {
    pub(super) fn new(daemon: &Daemon, environment: &Environment) -> Result<Self, Failure> {
        let client = daemon.client(environment)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { client, runtime: runtime.map_err(|error| Failure::new(Exit::Internal, error))? })
    }

    pub(super) fn ask(&self, ask: &Ask) -> Result<Value, Failure> {
        let answered = self.runtime.block_on(async {
            match ask {
                Ask::Get(path) => self.client.get(path).await,
                Ask::Post(path) => self.client.post(path, &Value::Null).await,
                Ask::Delete(path) => self.client.delete(path).await,
            }
        });
        Ok(answered?)
    }
}

/// The path of something that a function's lane can do.
pub(super) fn lane_path(function: &str, verb: &str) -> String {
    format!("/v1/functions/{}/{verb}", percent(function))
}

/// A query of those pairs that have a value.
pub(super) fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let given = pairs.iter().filter_map(|(name, value)| value.map(|value| format!("{name}={}", percent(value))));
    let given: Vec<_> = given.collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

/// Text of a JSON value, without quotes; a dash where there is none.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_safe_in_a_url() {
        assert_eq!(lane_path("us-east-1/orders:prod", "pause"), "/v1/functions/us-east-1%2Forders%3Aprod/pause");
        assert_eq!(query(&[("a", Some("x y")), ("b", None)]), "?a=x%20y");
        assert_eq!(query(&[("b", None)]), "");
    }

    #[test]
    fn an_answers_own_words_are_shown() {
        assert_eq!(words(StatusCode::BAD_REQUEST, b"{\"message\":\"no\"}"), "no");
        assert_eq!(words(StatusCode::BAD_REQUEST, b"plain\n"), "plain");
        assert_eq!(words(StatusCode::NOT_FOUND, b""), "404 Not Found");
    }

    #[tokio::test]
    async fn routes_of_this_process_are_asked_as_those_of_a_daemon() {
        let routes = axum::Router::new()
            .route(
                "/v1/x",
                axum::routing::post(|body: axum::Json<Value>| async move { axum::Json(body.0["n"].clone()) }),
            )
            .route("/v1/no", axum::routing::get(|| async { (StatusCode::SERVICE_UNAVAILABLE, "starting") }));
        let client = AdminClient::in_process(routes);
        assert_eq!(client.post("/v1/x", &serde_json::json!({ "n": 7 })).await, Ok(Value::from(7)));
        let trouble = client.get("/v1/no").await.unwrap_err();
        assert_eq!((trouble.code.as_str(), trouble.message.as_str(), trouble.transient), ("503", "starting", true));
    }
}
