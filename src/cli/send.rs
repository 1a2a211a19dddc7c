//! `sendoff send`: sends one Event invocation to the ingest listener, as an application does.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::arguments::{self, Url};
use super::https::{Connector, Trust, bearer, connector, trouble};
use super::url::{base, endpoint_of, percent};
use super::{Exit, Failure, out};
use crate::clock::{Clock, UnixMillis};
use crate::config::{self, Environment, Flags};
use crate::event::PAYLOAD_BYTES_MAX;
use crate::past::EndView;
use crate::plural::count;
use crate::visible::{visible, visible_json};

/// How long to wait for the answer. An append takes milliseconds, on a loaded disk seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes read of an answer. A refusal is a short JSON object.
const ANSWER_BYTES_MAX: usize = 64 << 10;

const EXAMPLES: &str = "\
Examples:
  sendoff send orders '{\"id\": 17}' --key order-17
  sendoff send orders @order.json --delay 10m --expires 2h
  sendoff send orders @order.json --wait 30s
  sendoff send arn:aws:lambda:eu-central-1:123456789012:function:orders:prod - < order.json";

/// Send one event to the daemon
///
/// Prints the event's id once the event is on disk.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Function to invoke: name, name:qualifier or ARN
    function: String,
    /// JSON payload. @FILE reads a file, - reads stdin. If omitted, the payload is empty
    #[arg(value_name = "PAYLOAD|@FILE|-", allow_hyphen_values = true)]
    payload: Option<String>,
    /// Idempotency key. sendoff accepts one event per key
    #[arg(long, value_parser = parse_key)]
    key: Option<HeaderValue>,
    /// Version or alias of the function
    #[arg(long)]
    qualifier: Option<String>,
    /// Deliver it after this time, for example 10m
    #[arg(long, value_name = "TIME", value_parser = parse_delay, conflicts_with = "at")]
    delay: Option<String>,
    /// Deliver it at this time (RFC 3339), for example 2026-11-23T14:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<String>,
    /// Make it a dead letter if it is not delivered by then: a time (RFC 3339), or how long from now, for example 2h
    #[arg(long, value_name = "TIME|AHEAD", value_parser = parse_time_ahead)]
    expires: Option<String>,
    /// The daemon's ingest listener, as http://HOST:PORT or https://HOST:PORT. By default, the address in the configuration
    #[arg(long, value_name = "URL", value_parser = Url(parse_endpoint))]
    endpoint: Option<Uri>,
    /// With https: file with the authorities to trust, in PEM. By default, those of this machine. For the configured
    /// daemon, its own certificate
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with the secret by which the daemon recognises this client (clients.NAME.token_file), in its first line
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Exists only for its error message
    #[arg(long, hide = true, value_parser = Url(not_the_admin_listener))]
    admin: Option<String>,
    /// Configuration file of the daemon, to find its address
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Wait for the event to be delivered, at most this long. Exits with 0 if it was, 1 if it is a dead letter or was
    /// removed, 75 if it is still under way
    #[arg(long, value_name = "DURATION", value_parser = arguments::wait)]
    wait: Option<Duration>,
    /// Print a JSON object with id and duplicate, and with --wait another one with the event
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let given = Trust::of(options.ca.as_deref());
    let (endpoint, trust) = match &options.endpoint {
        Some(endpoint) => (endpoint.clone(), given),
        None => {
            // A command that only sends needs no state directory.
            let flags = Flags { file: options.config.clone(), state_dir: Some("/".to_owned()), ..Flags::default() };
            let config = config::load(&flags, environment)?.config;
            let ingest = config.listen.ingest.first().copied();
            let ingest = ingest.unwrap_or_else(|| unreachable!("a configuration has at least one"));
            let own = config.tls.filter(|tls| tls.on_ingest).map(|tls| Trust::Own(tls.files.cert));
            let endpoint = endpoint_of(ingest, own.is_some())?;
            (endpoint, own.filter(|_| options.ca.is_none()).unwrap_or(given))
        }
    };
    let connector = connector(&endpoint, &trust)?;
    let payload = payload(options.payload.as_deref())?;
    let mut request = request(&endpoint, &options, payload)?;
    if let Some(path) = &options.token_file {
        request.headers_mut().insert(header::AUTHORIZATION, bearer(path)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, error))?;
    let token = request.headers().get(header::AUTHORIZATION).cloned();
    let answer = runtime.block_on(exchange(&endpoint, connector.clone(), request, ANSWER_TIMEOUT))?;
    out::print(&said(&answer, options.json)?)?;
    let Some(wait) = options.wait else { return Ok(()) };
    let question = question(&endpoint, id_of(&answer), wait, token)?;
    let answer = runtime.block_on(exchange(&endpoint, connector, question, ANSWER_TIMEOUT + wait))?;
    out::print(&became(&answer, options.json)?)?;
    exit_of(&answer)
}

/// Asks what became of an event, once it is known.
fn question(
    endpoint: &Uri,
    id: &str,
    wait: Duration,
    token: Option<HeaderValue>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let uri = format!("{}/v1/events/{}?wait={}ms", base(endpoint), percent(id), wait.as_millis());
    let request = Request::builder().method(Method::GET).uri(uri).body(Full::new(Bytes::new()));
    let mut request = request.map_err(|error| Failure::new(Exit::Failed, error))?;
    if let Some(token) = token {
        request.headers_mut().insert(header::AUTHORIZATION, token);
    }
    Ok(request)
}

/// What is read of the answer about an event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Became {
    state: String,
    attempts: u64,
    reason: Option<String>,
    end: Option<EndView>,
}

impl Became {
    fn of(answer: &Answer) -> Result<Self, Failure> {
        if !answer.status.is_success() {
            return Err(Failure::saying(Exit::Failed, refusal(answer)));
        }
        serde_json::from_slice(&answer.body).map_err(|error| Failure::new(Exit::Failed, error))
    }
}

/// What to print about an event.
fn became(answer: &Answer, json: bool) -> Result<String, Failure> {
    let Became { state, attempts, reason, end } = Became::of(answer)?;
    if json {
        return Ok(format!("{}\n", visible_json(&String::from_utf8_lossy(&answer.body))));
    }
    let after = count(attempts, "attempt");
    let said = match (end, reason) {
        (Some(EndView { outcome, to: Some(to), .. }), _) => format!("{outcome} to {to} after {after}"),
        (Some(end), _) => format!("{} after {after}", end.outcome),
        (None, Some(reason)) => format!("a dead letter after {after}: {reason}"),
        (None, None) => format!("still {state} after {after}"),
    };
    Ok(format!("{}\n", visible(&said)))
}

/// The exit code that an event means.
fn exit_of(answer: &Answer) -> Result<(), Failure> {
    let Became { reason, end, .. } = Became::of(answer)?;
    match (end, reason) {
        (Some(end), None) if end.outcome == "delivered" => Ok(()),
        (Some(EndView { outcome, to: Some(to), .. }), _) if outcome == "handed-over" => {
            let why = format!("the event is still under way: {to} has it now");
            Err(Failure::saying(Exit::UnderWay, visible(&why).into_owned()))
        }
        (Some(_), _) | (None, Some(_)) => Err(Failure::saying(Exit::Failed, "the event was not delivered")),
        (None, None) => Err(Failure::saying(Exit::UnderWay, "the event is still under way; sendoff delivers it")),
    }
}

/// The id of the event that the daemon has accepted.
fn id_of(answer: &Answer) -> &str {
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    header("x-sendoff-event-id").or_else(|| header("x-amzn-requestid")).unwrap_or_default()
}

fn parse_endpoint(text: &str) -> Result<Uri, String> {
    arguments::listener(text, "http://127.0.0.1:9477")
}

fn not_the_admin_listener(_: &str) -> Result<String, String> {
    Err("it names the admin listener, which other commands speak to; `send` speaks to the ingest listener, as an \
         application does: give --endpoint, as in --endpoint http://127.0.0.1:9477"
        .to_owned())
}

/// A time in RFC 3339.
fn parse_time(text: &str) -> Result<String, String> {
    let time = UnixMillis::read_rfc3339(text).map(|time| time.rfc3339());
    time.ok_or_else(|| "write it like 2026-11-23T14:00:00Z".to_owned())
}

/// A time, or how long from now. Returns a time.
fn parse_time_ahead(text: &str) -> Result<String, String> {
    match humantime::parse_duration(text) {
        Ok(ahead) => Ok(Clock::system().now().plus(ahead).rfc3339()),
        Err(_) => parse_time(text).map_err(|_| "write it like 2h or 2026-11-23T14:00:00Z".to_owned()),
    }
}

fn parse_delay(text: &str) -> Result<String, String> {
    humantime::parse_duration(text).map(|_| text.to_owned()).map_err(|_| "write it like 10m or 1h 30m".to_owned())
}

fn parse_key(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|_| "contains characters that a header cannot have".to_owned())
}

/// The payload as given, from a file, or from stdin. At most what Lambda accepts.
fn payload(written: Option<&str>) -> Result<Bytes, Failure> {
    let (name, source): (&str, Box<dyn Read>) = match written {
        None => return Ok(Bytes::new()),
        Some("-") => ("stdin", Box::new(std::io::stdin())),
        Some(text) => match text.strip_prefix('@') {
            None => return Ok(Bytes::from(text.to_owned())),
            Some(path) => {
                let file = std::fs::File::open(path).map_err(|error| unreadable(path, error))?;
                (path, Box::new(file))
            }
        },
    };
    let mut bytes = Vec::new();
    source.take(PAYLOAD_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|error| unreadable(name, error))?;
    if bytes.len() > PAYLOAD_BYTES_MAX {
        let why = format!("{name} has more than the {PAYLOAD_BYTES_MAX} bytes that Lambda takes as a payload");
        return Err(Failure::saying(Exit::Failed, why));
    }
    Ok(bytes.into())
}

fn unreadable(name: &str, error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, anyhow::Error::new(error).context(format!("cannot read the payload from {name}")))
}

fn request(endpoint: &Uri, options: &Options, payload: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
    if options.is_scheduled() {
        return native_request(endpoint, options, &payload);
    }
    let mut uri = format!("{}/2015-03-31/functions/{}/invocations", base(endpoint), percent(&options.function));
    if let Some(qualifier) = &options.qualifier {
        uri += &format!("?Qualifier={}", percent(qualifier));
    }
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header("X-Amz-Invocation-Type", "Event")
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = &options.key {
        request = request.header("Idempotency-Key", key);
    }
    request.body(Full::new(payload)).map_err(|error| Failure::new(Exit::Failed, error))
}

/// An event for the native API, which supports times.
#[derive(Serialize)]
struct NewEvent<'a> {
    function: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qualifier: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<&'a str>,
}

impl Options {
    fn is_scheduled(&self) -> bool {
        self.delay.is_some() || self.at.is_some() || self.expires.is_some()
    }
}

fn native_request(endpoint: &Uri, options: &Options, payload: &[u8]) -> Result<Request<Full<Bytes>>, Failure> {
    let text = std::str::from_utf8(payload).map_err(|error| Failure::saying(Exit::Failed, not_json(error)))?;
    let payload = if text.is_empty() { None } else { Some(serde_json::from_str::<&RawValue>(text)) };
    let payload = payload.transpose().map_err(|error| Failure::saying(Exit::Failed, not_json(error)))?;
    let event = NewEvent {
        function: &options.function,
        payload,
        qualifier: options.qualifier.as_deref(),
        delay: options.delay.as_deref(),
        deliver_at: options.at.as_deref(),
        expires_at: options.expires.as_deref(),
    };
    let body = serde_json::to_vec(&event).map_err(|error| Failure::new(Exit::Internal, error))?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}/v1/events", base(endpoint)))
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = &options.key {
        request = request.header("Idempotency-Key", key);
    }
    request.body(Full::new(body.into())).map_err(|error| Failure::new(Exit::Failed, error))
}

fn not_json(error: impl std::fmt::Display) -> String {
    format!("the payload is not JSON ({error}); Lambda would refuse it")
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

async fn exchange(
    endpoint: &Uri,
    connector: Connector,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> Result<Answer, Failure> {
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let answered = tokio::time::timeout(patience, async {
        let response = client.request(request).await.map_err(|error| {
            if let Some(tls) = trouble(&error) {
                let why = format!(
                    "TLS with {} failed: {tls}; name the authority of its certificate with --ca",
                    shown(endpoint)
                );
                Failure::saying(Exit::Unavailable, why)
            } else if error.is_connect() {
                let why = format!("no daemon at {}; start it with `sendoff serve`", shown(endpoint));
                Failure::saying(Exit::Unavailable, why)
            } else {
                unanswered(endpoint, error)
            }
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| {
            let why = format!("cannot read the answer of {}", shown(endpoint));
            Failure::new(Exit::Unavailable, anyhow::anyhow!(error).context(why))
        })?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    })
    .await;
    answered.unwrap_or_else(|elapsed| Err(unanswered(endpoint, elapsed)))
}

/// The endpoint for messages. Its path is left out, because a client's secret may be in it.
fn shown(endpoint: &Uri) -> String {
    let authority = endpoint.authority().map(ToString::to_string).unwrap_or_default();
    format!("{}://{authority}", endpoint.scheme_str().unwrap_or("http"))
}

/// The event may have been stored anyway.
fn unanswered(endpoint: &Uri, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    let why = format!(
        "no answer from {}; the event may be stored; repeat with the same --key, and it is stored only once",
        shown(endpoint)
    );
    Failure::new(Exit::Unavailable, anyhow::Error::new(error).context(why))
}

/// What to print about an answer. A refusal is a failure with Lambda's code and message.
fn said(answer: &Answer, json: bool) -> Result<String, Failure> {
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    if !answer.status.is_success() {
        return Err(Failure::saying(Exit::Failed, refusal(answer)));
    }
    let id = id_of(answer);
    let duplicate = header("x-sendoff-duplicate") == Some("true");
    Ok(match (json, duplicate) {
        (true, _) => {
            format!("{}\n", visible_json(&serde_json::json!({ "id": id, "duplicate": duplicate }).to_string()))
        }
        (false, true) => format!("{} (duplicate: this event was accepted before)\n", visible(id)),
        (false, false) => format!("{}\n", visible(id)),
    })
}

fn refusal(answer: &Answer) -> String {
    let status = answer.status;
    // Some servers add a namespace before `#` and a link after `:`.
    let code = answer.headers.get("x-amzn-errortype").and_then(|value| value.to_str().ok()).map(|code| {
        let code = code.split(':').next().unwrap_or_default();
        code.rsplit('#').next().unwrap_or_default()
    });
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let message = ["message", "Message"].into_iter().find_map(|name| body.get(name)?.as_str());
    match (code, message) {
        (Some(code), Some(message)) => format!("{code}: {message} (HTTP {status})"),
        (Some(code), None) => format!("{code} (HTTP {status})"),
        (None, Some(message)) => format!("{message} (HTTP {status})"),
        (None, None) => format!(
            "HTTP {status}; this does not look like sendoff's ingest listener or Lambda: name the ingest listener with \
             --endpoint, by default http://127.0.0.1:9477"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &[&str]) -> Options {
        Line::try_parse_from([&["send"], line].concat()).unwrap().options
    }

    /// A listener that answers its first request with `answer`. Join the thread to get the request.
    fn door(answer: &'static str) -> (Uri, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = endpoint_of(listener.local_addr().unwrap(), false).unwrap();
        let served = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !is_whole(&request) {
                let mut chunk = [0; 4096];
                let read = connection.read(&mut chunk).unwrap();
                assert_ne!(read, 0, "the request ended early");
                request.extend_from_slice(&chunk[..read]);
            }
            connection.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (endpoint, served)
    }

    fn is_whole(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        body.len() >= length.parse().unwrap()
    }

    /// Sends as the command does. Returns what it would print, and the request that arrived.
    fn send(line: &[&str], answer: &'static str) -> (Result<String, Failure>, String) {
        let (endpoint, served) = door(answer);
        let options = options(line);
        let request = request(&endpoint, &options, payload(options.payload.as_deref()).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime
            .block_on(exchange(&endpoint, connector(&endpoint, &Trust::System).unwrap(), request, ANSWER_TIMEOUT))
            .unwrap();
        (said(&answer, options.json), served.join().unwrap())
    }

    const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\nx-amzn-RequestId: a\r\nx-sendoff-event-id: e1\r\n\
                            Content-Length: 0\r\n\r\n";
    const REPEATED: &str = "HTTP/1.1 202 Accepted\r\nx-sendoff-event-id: e1\r\nx-sendoff-duplicate: true\r\n\
                            Content-Length: 0\r\n\r\n";

    #[test]
    fn an_event_is_posted_as_lambda_expects_it_and_its_id_printed() {
        let line = ["arn:aws:lambda:eu-central-1:123456789012:function:f", "{\"a\":1}", "--key", "k 1"];
        let (printed, request) = send(&[&line[..], &["--qualifier", "$LATEST"]].concat(), ACCEPTED);
        assert_eq!(printed.unwrap(), "e1\n");
        assert!(
            request.starts_with(
                "POST /2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-central-1%3A123456789012%3Afunction%3Af/invocations\
                 ?Qualifier=%24LATEST HTTP/1.1\r\n"
            ),
            "{request}"
        );
        for header in ["x-amz-invocation-type: Event", "idempotency-key: k 1"] {
            assert!(request.contains(&format!("\r\n{header}\r\n")), "{header} in {request}");
        }
        assert!(request.ends_with("\r\n\r\n{\"a\":1}"), "{request}");
    }

    #[test]
    fn an_event_with_a_time_goes_through_the_native_door_byte_for_byte() {
        let line = ["orders", "{\"a\": 1.0}", "--delay", "10m", "--expires", "2099-01-01T00:00:00Z", "--key", "k"];
        let (printed, request) = send(&line, ACCEPTED);
        assert_eq!(printed.unwrap(), "e1\n");
        assert!(request.starts_with("POST /v1/events HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nidempotency-key: k\r\n"), "{request}");
        let body =
            r#"{"function":"orders","payload":{"a": 1.0},"delay":"10m","expires_at":"2099-01-01T00:00:00.000Z"}"#;
        assert!(request.ends_with(body), "{request}");
        for wrong in [&["--delay", "soon"][..], &["--at", "2h"], &["--delay", "1m", "--at", "2099-01-01T00:00:00Z"]] {
            assert!(Line::try_parse_from([&["send", "f"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_repeat_is_told_apart() {
        assert_eq!(send(&["f"], REPEATED).0.unwrap(), "e1 (duplicate: this event was accepted before)\n");
        assert_eq!(send(&["f", "--json"], REPEATED).0.unwrap(), "{\"duplicate\":true,\"id\":\"e1\"}\n");
        assert_eq!(send(&["f", "--json"], ACCEPTED).0.unwrap(), "{\"duplicate\":false,\"id\":\"e1\"}\n");
    }

    #[test]
    fn a_refusal_is_said_in_lambdas_words() {
        let refused = |answer| {
            let failure = send(&["f"], answer).0.unwrap_err();
            assert_eq!(failure.exit, Exit::Failed);
            failure.to_string()
        };
        assert_eq!(
            refused(
                "HTTP/1.1 429 Too Many Requests\r\nx-amzn-ErrorType: TooManyRequestsException:http://x/\r\n\
                 Content-Length: 18\r\n\r\n{\"message\":\"full\"}"
            ),
            "TooManyRequestsException: full (HTTP 429 Too Many Requests)"
        );
        assert_eq!(
            refused("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>"),
            "HTTP 502 Bad Gateway; this does not look like sendoff's ingest listener or Lambda: name the ingest listener \
             with --endpoint, by default http://127.0.0.1:9477"
        );
    }

    #[test]
    fn without_a_daemon_the_way_to_start_one_is_said() {
        // Bound, so that nobody else can listen there, but not listening.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let free = socket.local_addr().unwrap();
        for path in ["", "/c/the-secret-of-a-client"] {
            let line = ["f", "--endpoint", &format!("http://{free}{path}")];
            let failure = run(options(&line), &Environment::default()).unwrap_err();
            assert_eq!(failure.exit, Exit::Unavailable);
            assert_eq!(failure.to_string(), format!("no daemon at http://{free}; start it with `sendoff serve`"));
        }
    }

    #[test]
    fn the_payload_comes_from_the_line_or_a_file_and_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: usize| {
            let path = directory.path().join(name);
            std::fs::write(&path, vec![b'1'; bytes]).unwrap();
            format!("@{}", path.display())
        };
        assert_eq!(payload(None).unwrap(), "");
        assert_eq!(payload(Some("-1")).unwrap(), "-1");
        assert_eq!(payload(Some(&file("small", 3))).unwrap(), "111");
        assert_eq!(payload(Some(&file("largest", PAYLOAD_BYTES_MAX))).unwrap().len(), PAYLOAD_BYTES_MAX);
        let failure = payload(Some(&file("large", PAYLOAD_BYTES_MAX + 1))).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.to_string().ends_with("more than the 1048576 bytes that Lambda takes as a payload"));
        assert!(payload(Some("@no/such/file")).unwrap_err().to_string().starts_with("cannot read the payload from"));
    }

    #[test]
    fn only_endpoints_of_http_and_keys_that_a_header_can_carry_are_taken() {
        assert!(parse_endpoint("http://localhost:9477").is_ok() && parse_endpoint("https://localhost").is_ok());
        for endpoint in ["ftp://localhost", "localhost:9477", "http://", "nonsense"] {
            assert!(parse_endpoint(endpoint).is_err(), "{endpoint}");
        }
        assert!(parse_key("order-1").is_ok());
        assert!(parse_key("order\n1").is_err());
    }
    #[test]
    fn what_became_of_an_event_is_said_and_told_by_the_exit_code() {
        let of = |body: &str| {
            let body = Bytes::from(body.to_owned());
            let answer = Answer { status: StatusCode::OK, headers: HeaderMap::new(), body };
            (became(&answer, false).unwrap(), exit_of(&answer).map_err(|failure| failure.exit))
        };
        let end = |outcome: &str| format!(r#""end":{{"outcome":"{outcome}","at":"x"}}"#);
        for (body, said, exit) in [
            (format!(r#"{{"state":"done","attempts":1,{}}}"#, end("delivered")), "delivered after 1 attempt\n", Ok(())),
            (
                format!(r#"{{"state":"done","attempts":12,"reason":"refused",{}}}"#, end("shipped")),
                "shipped after 12 attempts\n",
                Err(Exit::Failed),
            ),
            (
                r#"{"state":"buried","attempts":2,"reason":"refused"}"#.to_owned(),
                "a dead letter after 2 attempts: refused\n",
                Err(Exit::Failed),
            ),
            (r#"{"state":"waiting","attempts":3}"#.to_owned(), "still waiting after 3 attempts\n", Err(Exit::UnderWay)),
        ] {
            assert_eq!(of(&body), (said.to_owned(), exit), "{body}");
        }
    }
}
