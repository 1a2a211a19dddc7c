//! The client of the operator's API: of a running daemon, or of a store that the command itself has opened.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::arguments::{self, Url};
use super::https::{Connector, Trust, bearer, connector, trouble};
use super::url::{base, endpoint_of, percent};
use super::{ConfigOptions, Exit, Failure, socket};
use crate::admin::api::{FunctionPage, Message};
use crate::config::{Config, Environment, Loaded, TOKEN_FILE};
use crate::deadletter::Trouble;
use crate::event::{EventId, FunctionName};
use crate::visible::without_password;

/// How long to wait for an answer. An append takes milliseconds, on a loaded disk seconds. For some answers the daemon
/// counts its store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes read of an answer: a page with 8 MiB of payloads and one more, as base64 in JSON.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// The code of a trouble if there was no answer.
pub(super) const UNREACHABLE: &str = "unreachable";

/// Selects the daemon to ask.
#[derive(Debug, Clone, Args)]
pub struct Daemon {
    #[command(flatten)]
    pub(super) config: ConfigOptions,
    /// The daemon's admin listener, as http://HOST:PORT or https://HOST:PORT. By default, the socket
    /// listen.admin_unix of the configuration, or, if that does not answer, its address listen.admin
    #[arg(long, value_name = "URL", value_parser = Url(parse_admin))]
    admin: Option<Uri>,
    /// With https: file with the authorities to trust, in PEM. By default, those of this machine. For the configured
    /// daemon, its own certificate
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File whose first line is the secret by which the daemon knows this operator (operators.NAME.token_file). By
    /// default, the file that SENDOFF_ADMIN_TOKEN_FILE names
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Exists only for its error message
    #[arg(long, hide = true, value_parser = Url(not_the_ingest_listener))]
    endpoint: Option<String>,
}

fn parse_admin(text: &str) -> Result<Uri, String> {
    arguments::listener(text, "http://127.0.0.1:9478")
}

fn not_the_ingest_listener(_: &str) -> Result<String, String> {
    Err("it names the ingest listener, which `sendoff send` speaks to; this command speaks to the admin listener: give \
         --admin, as in --admin http://127.0.0.1:9478"
        .to_owned())
}

/// Selects the daemon and how to show a list.
#[derive(Debug, Clone, Args)]
pub struct Listing {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: u64,
    /// Show all of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Continue a list: the token that the previous list printed
    #[arg(long, value_name = "TOKEN")]
    pub(super) after: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    pub(super) json: bool,
}

impl Listing {
    pub(super) fn limit(&self) -> usize {
        if self.all { usize::MAX } else { usize::try_from(self.limit).unwrap_or(usize::MAX) }
    }
}

/// Selects one event of a daemon.
#[derive(Debug, Clone, Args)]
pub struct One {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    /// The event's id
    pub(super) id: EventId,
}

impl Daemon {
    pub(super) fn client(&self, environment: &Environment) -> Result<AdminClient, Failure> {
        let file = self.token_file.clone().or_else(|| environment.get(TOKEN_FILE).map(PathBuf::from));
        let token = file.map(|file| bearer(&file)).transpose()?;
        Ok(AdminClient { token, ..self.unproven(environment)? })
    }

    /// A client without a token.
    fn unproven(&self, environment: &Environment) -> Result<AdminClient, Failure> {
        match &self.admin {
            Some(endpoint) => AdminClient::new(endpoint, &Trust::of(self.ca.as_deref())),
            None => {
                let Loaded { config, entries } = self.loaded(environment)?;
                let mut unanswered = None;
                if let Some(path) = socket::candidate(&config, &entries) {
                    match socket::Connector::to(&path) {
                        Ok(connector) => return Ok(AdminClient::by_socket(&path, connector)),
                        Err(error) => unanswered = Some(format!("the socket {}: {error}", path.display())),
                    }
                }
                let own = config.tls.filter(|tls| tls.on_admin).map(|tls| Trust::Own(tls.files.cert));
                let endpoint = endpoint_of(config.listen.admin, own.is_some())?;
                let trust = own.filter(|_| self.ca.is_none()).unwrap_or_else(|| Trust::of(self.ca.as_deref()));
                Ok(AdminClient { unanswered, ..AdminClient::new(&endpoint, &trust)? })
            }
        }
    }

    /// The daemon's configuration, as far as this side knows it. A command that only asks needs no state directory.
    pub(super) fn config(&self, environment: &Environment) -> Result<Config, Failure> {
        Ok(self.loaded(environment)?.config)
    }

    fn loaded(&self, environment: &Environment) -> Result<Loaded, Failure> {
        let state_dir = self.config.state_dir.clone().or_else(|| Some("/".to_owned()));
        Ok(ConfigOptions { state_dir, ..self.config.clone() }.load(environment)?)
    }
}

/// A client of the operator's API. Cheap to clone.
#[derive(Clone)]
pub struct AdminClient {
    base: String,
    way: Way,
    /// What was tried before, and why it did not answer.
    unanswered: Option<String>,
    /// Proves who the operator is.
    token: Option<HeaderValue>,
    /// How long to wait for an answer.
    patience: Duration,
}

#[derive(Clone)]
enum Way {
    Http(Box<Client<Connector, Full<Bytes>>>),
    Socket(Box<Client<socket::Connector, Full<Bytes>>>),
    InProcess(TowerToHyperService<axum::Router>),
}

impl AdminClient {
    /// A client of the daemon with this admin listener.
    pub(super) fn new(endpoint: &Uri, trust: &Trust) -> Result<Self, Failure> {
        let client = Client::builder(TokioExecutor::new()).build(connector(endpoint, trust)?);
        Ok(Self {
            base: base(endpoint),
            way: Way::Http(Box::new(client)),
            unanswered: None,
            token: None,
            patience: ANSWER_TIMEOUT,
        })
    }

    /// A client of the daemon that listens on this socket.
    fn by_socket(path: &Path, connector: socket::Connector) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self {
            base: path.display().to_string(),
            way: Way::Socket(Box::new(client)),
            unanswered: None,
            token: None,
            patience: ANSWER_TIMEOUT,
        }
    }

    /// A client of routes in this process.
    pub fn in_process(routes: axum::Router) -> Self {
        Self {
            base: String::new(),
            way: Way::InProcess(TowerToHyperService::new(routes)),
            unanswered: None,
            token: None,
            patience: ANSWER_TIMEOUT,
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        self.call(Method::GET, path, &()).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Trouble> {
        self.call(Method::POST, path, body).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        self.call(Method::DELETE, path, &()).await
    }

    /// Sends a request whose answer has no body.
    pub async fn tell(&self, method: Method, path: &str) -> Result<(), Trouble> {
        let answered = self.ask(method, path, None).await?;
        if answered.status == StatusCode::NO_CONTENT { Ok(()) } else { Err(self.refusal(&answered)) }
    }

    /// Returns the answer as a type of the API. A refusal is a trouble. It may pass if no daemon answers, or one that
    /// starts or stops.
    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> Result<T, Trouble> {
        let trouble = |code: &str, message: String| Trouble { code: code.to_owned(), message, transient: false };
        let body = serde_json::to_vec(body).map_err(|error| trouble("request", error.to_string()))?;
        let body = (method == Method::POST).then(|| body.into());
        self.read(self.ask(method, path, body).await?)
    }

    fn read<T: DeserializeOwned>(&self, answered: Answered) -> Result<T, Trouble> {
        if !answered.status.is_success() {
            return Err(self.refusal(&answered));
        }
        serde_json::from_slice(&answered.body).map_err(|error| {
            let version = env!("CARGO_PKG_VERSION");
            let why = format!(
                "cannot understand the answer of {} ({error}); is it a sendoff of version {version}, as this one?",
                self.place()
            );
            Trouble { code: "answer".to_owned(), message: why, transient: false }
        })
    }

    /// The trouble that an unsuccessful answer means.
    pub(super) fn refusal(&self, answered: &Answered) -> Trouble {
        let Answered { status, body, .. } = answered;
        let transient = status.is_server_error();
        if answered.headers.contains_key("x-amzn-errortype") {
            let message = format!(
                "{} answers as Lambda's API does: that is the ingest listener, or Lambda; name the admin listener with \
                 --admin, by default http://127.0.0.1:9478",
                self.place()
            );
            return Trouble { code: "wrong-listener".to_owned(), message, transient: false };
        }
        let mut message = words(*status, body);
        if let (StatusCode::UNAUTHORIZED, Some(before)) = (*status, &self.unanswered) {
            message += &format!("; {before}");
        }
        Trouble { code: status.as_u16().to_string(), message, transient }
    }

    /// Like [`AdminClient::get`], with an idempotency key, which must not be in a URL.
    pub async fn get_by_key<T: DeserializeOwned>(&self, path: &str, key: HeaderValue) -> Result<T, Trouble> {
        self.read(self.ask_with(Method::GET, path, None, Some(key)).await?)
    }

    /// Sends a request and returns the answer. A trouble means that there is no answer.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Answered, Trouble> {
        self.ask_with(method, path, body, None).await
    }

    async fn ask_with(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        key: Option<HeaderValue>,
    ) -> Result<Answered, Trouble> {
        let body = body.unwrap_or_default();
        let base = match &self.way {
            Way::Http(_) => &self.base,
            // The connector ignores the URL, and the daemon knows this host.
            Way::Socket(_) => "http://localhost",
            Way::InProcess(_) => "",
        };
        let request = Request::builder().method(method).uri(format!("{base}{path}"));
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body));
        let mut request = request.map_err(|error| Trouble {
            code: "request".into(),
            message: error.to_string(),
            transient: false,
        })?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(header::AUTHORIZATION, token.clone());
        }
        if let Some(key) = key {
            request.headers_mut().insert("idempotency-key", key);
        }
        let answered = tokio::time::timeout(self.patience, async {
            match &self.way {
                Way::Http(client) => self.whole(client.request(request).await).await,
                Way::Socket(client) => self.whole(client.request(request).await).await,
                Way::InProcess(routes) => {
                    let response = routes.call(request).await.unwrap_or_else(|never| match never {});
                    let (head, body) = response.into_parts();
                    let body = body.collect().await.map_err(|error| self.unreachable(&error.to_string()))?;
                    Ok(Answered { status: head.status, headers: head.headers, body: body.to_bytes() })
                }
            }
        });
        answered.await.unwrap_or_else(|_| Err(self.unreachable(&format!("no answer within {:?}", self.patience))))
    }

    /// Reads the rest of an answer.
    async fn whole(
        &self,
        answered: Result<http::Response<Incoming>, hyper_util::client::legacy::Error>,
    ) -> Result<Answered, Trouble> {
        let response = answered.map_err(|error| match trouble(&error) {
            Some(tls) => self.distrusted(&tls),
            None if error.is_connect() => self.unreachable("daemon not running"),
            None => self.unreachable(&format!("no answer ({error})")),
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.unreachable(&format!("incomplete answer ({error})")))?;
        Ok(Answered { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    /// Where the daemon is, for messages.
    fn place(&self) -> Cow<'_, str> {
        without_password(&self.base)
    }

    fn distrusted(&self, why: &str) -> Trouble {
        let message =
            format!("TLS with {} failed: {why}; name the authority of its certificate with --ca", self.place());
        Trouble { code: UNREACHABLE.to_owned(), message, transient: false }
    }

    fn unreachable(&self, why: &str) -> Trouble {
        let before = self.unanswered.as_ref().map(|before| format!(" (nor at {before})")).unwrap_or_default();
        let message =
            format!("{why} at {}{before}; start it with `sendoff serve`, or name another with --admin", self.place());
        Trouble { code: UNREACHABLE.to_owned(), message, transient: true }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let exit = if trouble.code == UNREACHABLE { Exit::Unavailable } else { Exit::Failed };
        Self::saying(exit, trouble.message)
    }
}

/// An answer of a daemon.
#[derive(Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The text of an answer: its `message`, or its body.
pub(super) fn words(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice(body) {
        Ok(Message { message }) => message,
        Err(_) if body.is_empty() => status.to_string(),
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    }
}

/// Asks a daemon, one request at a time.
pub(super) struct Asker {
    client: AdminClient,
    runtime: tokio::runtime::Runtime,
}

impl Asker {
    pub(super) fn new(daemon: &Daemon, environment: &Environment) -> Result<Self, Failure> {
        Self::patient(daemon, environment, None)
    }

    /// Waits so much longer for answers.
    pub(super) fn patient(daemon: &Daemon, environment: &Environment, more: Option<Duration>) -> Result<Self, Failure> {
        let client = daemon.client(environment)?;
        let client = AdminClient { patience: client.patience + more.unwrap_or_default(), ..client };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { client, runtime: runtime.map_err(|error| Failure::new(Exit::Internal, error))? })
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        Ok(self.runtime.block_on(self.client.get(path))?)
    }

    pub(super) fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        Ok(self.runtime.block_on(self.client.post(path, &()))?)
    }

    pub(super) fn get_by_key<T: DeserializeOwned>(&self, path: &str, key: HeaderValue) -> Result<T, Failure> {
        Ok(self.runtime.block_on(self.client.get_by_key(path, key))?)
    }

    pub(super) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        Ok(self.runtime.block_on(self.client.delete(path))?)
    }

    /// Returns the function of this name, known or not. For a pattern with `*`, returns the known functions that match,
    /// at least one.
    pub(super) fn functions(&self, name: &str) -> Result<Vec<String>, Failure> {
        if !name.contains('*') {
            return Ok(vec![name.to_owned()]);
        }
        let page: FunctionPage = self.get("/v1/functions")?;
        let names = page.functions.into_iter().map(|function| function.function);
        let fitting: Vec<String> = names.filter(|known| FunctionName::new(known).fits(name)).collect();
        if fitting.is_empty() {
            let why = format!("no known function matches {name:?}; `sendoff functions` lists the known ones");
            return Err(Failure::saying(Exit::Failed, why));
        }
        Ok(fitting)
    }
}

/// The API path of an operation on a function's lane.
pub(super) fn lane_path(function: &str, verb: &str) -> String {
    format!("/v1/functions/{}/{verb}", percent(function))
}

/// A page size in the form that queries need.
pub(super) fn page_size(size: usize) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(size).unwrap_or(u32::MAX))
}

/// Appends a query to a path.
pub(super) fn with_query(path: &str, query: &impl Serialize) -> String {
    // A struct of texts, numbers and booleans can always be written.
    let query = serde_urlencoded::to_string(query).unwrap_or_default();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::EventsQuery;

    #[test]
    fn names_and_values_are_safe_in_a_url() {
        assert_eq!(lane_path("us-east-1/orders:prod", "pause"), "/v1/functions/us-east-1%2Forders%3Aprod/pause");
        let (function, after) = (Some("orders:*".into()), Some("x y&z".into()));
        let page = EventsQuery { function, after, ..EventsQuery::default() };
        assert_eq!(with_query("/v1/events", &page), "/v1/events?function=orders%3A*&after=x+y%26z");
        assert_eq!(with_query("/v1/events", &EventsQuery::default()), "/v1/events");
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
                axum::routing::post(
                    |body: axum::Json<serde_json::Value>| async move { axum::Json(body.0["n"].clone()) },
                ),
            )
            .route("/v1/no", axum::routing::get(|| async { (StatusCode::SERVICE_UNAVAILABLE, "starting") }));
        let client = AdminClient::in_process(routes);
        assert_eq!(client.post("/v1/x", &serde_json::json!({ "n": 7 })).await, Ok(7));
        let trouble = client.get::<u64>("/v1/no").await.unwrap_err();
        assert_eq!((trouble.code.as_str(), trouble.message.as_str(), trouble.transient), ("503", "starting", true));
        let trouble = client.post::<Message>("/v1/x", &serde_json::json!({ "n": 7 })).await.unwrap_err();
        assert!(trouble.message.contains("cannot understand the answer"), "{trouble}");
    }

    #[tokio::test]
    async fn the_ingest_listener_is_told_from_the_admin_listener() {
        let lambda = || async { (StatusCode::NOT_FOUND, [("x-amzn-ErrorType", "UnknownOperationException")], "{}") };
        let client = AdminClient::in_process(axum::Router::new().route("/v1/x", axum::routing::get(lambda)));
        let trouble = client.get::<u64>("/v1/x").await.unwrap_err();
        assert!(trouble.message.contains("--admin") && !trouble.transient, "{trouble}");
    }
}
