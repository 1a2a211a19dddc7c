//! The commands' way to a running daemon: its admin listener.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

use super::send::base;
use super::{Exit, Failure};
use crate::config::{self, Environment, Flags};

/// How long to wait for an answer: the daemon counts its store for some of them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer that are read: a page of 8 MiB of payloads and one more, as base64 in JSON.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Which daemon to ask.
#[derive(Debug, Clone, Args)]
pub struct OperatorOptions {
    /// Admin listener of the daemon, as http://HOST:PORT; by default what the configuration says
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    admin: Option<Uri>,
    /// Configuration file of the daemon, to find where it listens
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A daemon's admin listener. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Operator {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl OperatorOptions {
    pub fn connect(&self, environment: &Environment) -> Result<Operator, Failure> {
        if let Some(url) = &self.admin {
            return Ok(Operator::at(url));
        }
        // Whoever only asks has no state directory, and needs none.
        let flags = Flags { file: self.config.clone(), state_dir: Some("/".to_owned()), ..Flags::default() };
        let admin = config::load(&flags, environment)?.config.listen.admin;
        Ok(Operator::of(format!("http://{}", reachable(admin))))
    }
}

impl Operator {
    pub(super) fn at(endpoint: &Uri) -> Self {
        Self::of(base(endpoint))
    }

    fn of(base: String) -> Self {
        Self { base, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// Status and body of one answer; a failure only if there is none.
    pub async fn ask(&self, method: Method, path: &str, body: Option<String>) -> Result<(StatusCode, Bytes), Failure> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())));
        let request = request.map_err(|error| Failure::new(Exit::Internal, error))?;
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, async {
            let response = self.client.request(request).await.map_err(|error| self.unreachable(error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| {
                Failure::new(
                    Exit::Unavailable,
                    anyhow::anyhow!(error).context(format!("no whole answer from {}", self.base)),
                )
            })?;
            Ok((head.status, body.to_bytes()))
        });
        answered.await.unwrap_or_else(|_| {
            Err(Failure::saying(Exit::Unavailable, format!("no answer from {} within {ANSWER_TIMEOUT:?}", self.base)))
        })
    }

    /// The answer's value; what is not a success is a failure with the daemon's own words.
    pub async fn value<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<T, Failure> {
        let (status, bytes) = self.ask(method, path, body).await?;
        if !status.is_success() {
            return Err(Failure::saying(Exit::Failed, words(status, &bytes)));
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            let why = format!(
                "{} answers what this version does not understand; is it a sendoff of {}?",
                self.base,
                env!("CARGO_PKG_VERSION")
            );
            Failure::new(Exit::Failed, anyhow::Error::new(error).context(why))
        })
    }

    /// Must succeed; the answer's body does not matter.
    pub async fn tell(&self, method: Method, path: &str, body: Option<String>) -> Result<(), Failure> {
        let (status, bytes) = self.ask(method, path, body).await?;
        if status.is_success() { Ok(()) } else { Err(Failure::saying(Exit::Failed, words(status, &bytes))) }
    }

    fn unreachable(&self, error: hyper_util::client::legacy::Error) -> Failure {
        if error.is_connect() {
            let why = format!(
                "daemon not running at {}; start it with `sendoff serve`, or name another with --admin",
                self.base
            );
            return Failure::saying(Exit::Unavailable, why);
        }
        Failure::new(Exit::Unavailable, anyhow::Error::new(error).context(format!("no answer from {}", self.base)))
    }
}

/// What an answer says: its `message`, or its text.
pub fn words(status: StatusCode, body: &[u8]) -> String {
    let value: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    match value.as_ref().and_then(|value| value["message"].as_str()) {
        Some(message) => message.to_owned(),
        None if body.is_empty() => status.to_string(),
        None => String::from_utf8_lossy(body).trim().to_owned(),
    }
}

fn parse_url(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|_| "not a URL".to_owned())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(host)) if !host.is_empty() => Ok(uri),
        _ => Err("write it like http://127.0.0.1:9478".to_owned()),
    }
}

/// A listener on any address is reached on loopback.
fn reachable(mut listener: SocketAddr) -> SocketAddr {
    if listener.ip().is_unspecified() {
        listener.set_ip(match listener.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listener
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_any_address_is_reached_on_loopback() {
        for (listener, reached) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")] {
            assert_eq!(reachable(listener.parse().unwrap()).to_string(), reached);
        }
    }

    #[test]
    fn an_answers_own_words_are_shown() {
        assert_eq!(words(StatusCode::BAD_REQUEST, b"{\"message\":\"no\"}"), "no");
        assert_eq!(words(StatusCode::BAD_REQUEST, b"plain\n"), "plain");
        assert_eq!(words(StatusCode::NOT_FOUND, b""), "404 Not Found");
    }
}
