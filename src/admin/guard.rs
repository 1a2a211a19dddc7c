//! What keeps web pages away from the operator's listener (docs/adr/0015).
//!
//! Loopback is open to every process of this machine, and a browser carries requests of any page to it. So every
//! request must name the listener by a name that is its own, must not come from another site, and a body must be JSON,
//! which a page cannot send without asking first. Only the probes and the metrics are open to every name: they change
//! nothing, and whoever scrapes them uses whatever name a cluster gives.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use hyper::body::Body as _;
use tokio_util::task::TaskTracker;

use super::access::{self, Access};
use super::api::Message;
use super::bodies::{BODY_BYTES_MAX, Bodies, Unread};
use super::refusal;
use crate::event::name::percent_decode;
use crate::http::handover::ToItsEnd;
use crate::http::host::{Authority, Host, Hosts, Unclear};
use crate::metrics::Metrics;

/// The paths that everybody may read. They change nothing.
const OPEN: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// The refusals that any request may get, for the OpenAPI document: status, reason, and whether only a request with a body
/// gets it.
pub(super) const ANSWERS: [(StatusCode, &str, bool); 8] = [
    (
        StatusCode::BAD_REQUEST,
        "The query or the body is not what it must be, or the request does not name one host",
        false,
    ),
    (StatusCode::UNAUTHORIZED, "The caller is no operator, where auth.admin requires one", false),
    (StatusCode::FORBIDDEN, "The operator lacks the right, or a web page of another site sent the request", false),
    (StatusCode::REQUEST_TIMEOUT, "The body did not come in time", true),
    (StatusCode::PAYLOAD_TOO_LARGE, "The body is larger than 2 MiB", true),
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not application/json by its type", true),
    (StatusCode::MISDIRECTED_REQUEST, "The request's host is not a known name of this listener", false),
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "The daemon is starting, its outbox has failed, or the bodies of other requests take the memory",
        false,
    ),
];

/// Headers that a browser sets and a page cannot: where a request comes from, and what for (W3C, Fetch Metadata).
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Headers of every answer. With them a browser lets no other page read or frame it, does not guess its type, and does not
/// keep it.
const HEADERS: [(HeaderName, &str); 6] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (CACHE_CONTROL, "no-store"),
];

/// Why a request is refused before any handler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refused {
    HostUnclear(Unclear),
    HostUnknown(Host),
    /// A page of another site.
    OtherSite,
    /// A page of another site opens a view of payloads.
    PayloadsForOtherSite,
    NotJson,
    NotAnObject,
    /// Its body is too long or incomplete.
    BodyTooLarge,
    /// Other bodies use the memory.
    Crowded,
    BodyLate,
}

/// The state of the guard.
#[derive(Clone)]
pub struct Guard {
    /// The names that the listener has beside addresses and localhost.
    pub hosts: Hosts,
    /// The longest time from the end of the headers to the end of the body.
    pub body_timeout: Duration,
    pub metrics: Arc<Metrics>,
    pub bodies: Bodies,
    /// Runs requests whose client has left to their end.
    pub leftovers: TaskTracker,
}

/// Puts routes behind the guard and the rights of operators. A body is read last, so that a refusal costs no memory.
pub fn guarded(routes: Router, guard: Guard, access: Access) -> Router {
    routes
        .layer(from_fn_with_state(guard.clone(), read_body))
        .layer(from_fn_with_state(access, access::check))
        .layer(from_fn_with_state(guard, stand_guard))
}

async fn stand_guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let is_probe = is_read(request.method()) && OPEN.contains(&request.uri().path());
    let has_body = !request.body().is_end_stream();
    let is_change = !is_read(request.method());
    let mut response = match check(request.method(), request.uri(), request.headers(), has_body, &guard.hosts) {
        Ok(()) if is_probe => guard.hold(next.run(request).await).await,
        // A change is finished and audited with its result, even if its client has left.
        Ok(()) if is_change => {
            let answering = async move { refusal::in_json(next.run(request).await).await };
            ToItsEnd::new(answering, &guard.leftovers).await
        }
        Ok(()) => guard.hold(refusal::in_json(next.run(request).await).await).await,
        Err(refused) => guard.refuse(refused),
    };
    for (name, value) in HEADERS {
        // The console has a policy of its own, which lets it load its files.
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Reads the whole body before a handler runs, so that no handler waits for a slow client. The body keeps its memory until
/// the answer.
async fn read_body(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    match tokio::time::timeout(guard.body_timeout, guard.bodies.read(body)).await {
        // serde also reads a struct from a list of its fields, in the order of the source.
        Ok(Ok((body, _memory))) if body.trim_ascii_start().starts_with(b"[") => guard.refuse(Refused::NotAnObject),
        Ok(Ok((body, _memory))) => next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(Err(Unread::TooLarge)) => guard.refuse(Refused::BodyTooLarge),
        Ok(Err(Unread::Crowded)) => guard.refuse(Refused::Crowded),
        Err(_) => guard.refuse(Refused::BodyLate),
    }
}

impl Guard {
    /// The answer with its memory. Only for requests that change nothing: the result of a change must always be answered.
    async fn hold(&self, answer: Response) -> Response {
        match self.bodies.hold(answer).await {
            Ok(answer) => answer,
            Err(Unread::Crowded | Unread::TooLarge) => self.refuse(Refused::Crowded),
        }
    }

    fn refuse(&self, refused: Refused) -> Response {
        self.metrics.admin_refused.with_label_values(&[refused.reason()]).inc();
        tracing::debug!(reason = refused.reason(), "request to the admin listener refused");
        refused.into_response()
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn check(method: &Method, uri: &Uri, headers: &HeaderMap, has_body: bool, hosts: &Hosts) -> Result<(), Refused> {
    let is_read = is_read(method);
    if is_read && OPEN.contains(&uri.path()) {
        return Ok(());
    }
    let named = Authority::of_request(uri, headers).map_err(Refused::HostUnclear)?;
    if !hosts.contain(&named.host) {
        return Err(Refused::HostUnknown(named.host));
    }
    if !named.is_every_origin_of(headers) {
        return Err(Refused::OtherSite);
    }
    if !is_of_this_site(headers) {
        if !(is_read && opens_a_page(headers)) {
            return Err(Refused::OtherSite);
        }
        if asks_for_payloads(uri) {
            return Err(Refused::PayloadsForOtherSite);
        }
    }
    if !is_read && has_body && !is_json(headers) {
        return Err(Refused::NotJson);
    }
    Ok(())
}

/// Whether a request comes from a page of this listener, from the address bar, or from no browser. To a browser another port
/// of the same machine is "same-site", and that is not enough.
fn is_of_this_site(headers: &HeaderMap) -> bool {
    headers.get_all(SITE).iter().all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"))
}

/// Whether the user followed a link. Then the user leaves the other page, which cannot read the answer. A frame or an object
/// within a page is no such case.
fn opens_a_page(headers: &HeaderMap) -> bool {
    let all_are = |name: HeaderName, value: &[u8]| {
        let mut values = headers.get_all(name).iter().peekable();
        values.peek().is_some() && values.all(|found| found.as_bytes() == value)
    };
    all_are(MODE, b"navigate") && all_are(DEST, b"document")
}

/// Whether the decoded query asks for payloads.
fn asks_for_payloads(uri: &Uri) -> bool {
    percent_decode(uri.query().unwrap_or_default()).contains("payload")
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let Some(Ok(first)) = types.next().map(HeaderValue::to_str) else { return false };
    let essence = first.split(';').next().unwrap_or_default().trim();
    types.next().is_none() && essence.eq_ignore_ascii_case("application/json")
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::HostUnclear(_) | Self::NotAnObject => StatusCode::BAD_REQUEST,
            Self::HostUnknown(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::OtherSite | Self::PayloadsForOtherSite => StatusCode::FORBIDDEN,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyLate => StatusCode::REQUEST_TIMEOUT,
            // It passes by itself: `sendoff redrive` waits and continues.
            Self::Crowded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The label in metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::HostUnclear(_) => "host-unclear",
            Self::HostUnknown(_) => "host-unknown",
            Self::OtherSite | Self::PayloadsForOtherSite => "other-site",
            Self::NotJson => "not-json",
            Self::NotAnObject => "not-an-object",
            Self::BodyTooLarge => "body-too-large",
            Self::BodyLate => "body-late",
            Self::Crowded => "crowded",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::HostUnclear(Unclear::Missing) => {
                "the request names no host: send a Host header, or :authority in HTTP/2".to_owned()
            }
            Self::HostUnclear(Unclear::Repeated) => "the request has more than one Host header: send one".to_owned(),
            Self::HostUnclear(Unclear::Malformed) => {
                "the request's Host is not HOST or HOST:PORT: write it like 127.0.0.1:9478, [::1]:9478 or localhost"
                    .to_owned()
            }
            Self::HostUnclear(Unclear::Contradicting) => {
                "the request's target and its Host header name different hosts: send the same in both".to_owned()
            }
            Self::HostUnknown(host) => format!(
                "{host} is not a known name of this listener, so a web page may have made it point here: use an IP \
                 address or localhost, or add the name to listen.admin_hosts in sendoff's configuration"
            ),
            Self::OtherSite => {
                "a web page of another site sent this request, and the operator's API is not for those: \
                use the sendoff command, or curl without an Origin header"
                    .to_owned()
            }
            Self::PayloadsForOtherSite => {
                "a link of another site leads here, and payloads are not shown by such links: \
                type the address into the browser yourself, or use the sendoff command"
                    .to_owned()
            }
            Self::NotJson => "a request with a body must have the header Content-Type: application/json".to_owned(),
            Self::NotAnObject => "the body is a JSON list: send an object".to_owned(),
            Self::BodyTooLarge => {
                format!("the body is longer than {BODY_BYTES_MAX} bytes, or ended early: send less at once")
            }
            Self::BodyLate => "the body did not come in time (listen.body_timeout)".to_owned(),
            Self::Crowded => "other requests to the operator's API and their answers take the memory for bodies (32 MiB): try again, with fewer at once".to_owned(),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status(), Json(Message { message: self.message() })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURGE: &str = "/v1/functions/orders/purge";

    fn checked(method: Method, target: &str, headers: &[(&str, &str)], has_body: bool) -> Result<(), Refused> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        check(&method, &target.parse().unwrap(), &map, has_body, &Hosts::parse("ops.example.com").unwrap())
    }

    fn sent(method: Method, target: &str, headers: &[(&str, &str)]) -> Result<(), Refused> {
        checked(method, target, &[&[("host", "localhost:9478")], headers].concat(), false)
    }

    #[test]
    fn probes_and_metrics_are_for_everybody_and_nothing_else_is() {
        let evil = [("host", "evil.example:9478"), ("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")];
        for path in OPEN {
            for method in [Method::GET, Method::HEAD] {
                assert_eq!(checked(method, path, &evil, false), Ok(()), "{path}");
            }
            assert!(checked(Method::POST, path, &evil, false).is_err(), "{path}");
            assert_eq!(checked(Method::GET, path, &[], false), Ok(()));
        }
        for path in ["/", "/livez/", "//metrics", "/v1/status", "/v1/events/x?payload=true", "/nowhere"] {
            assert!(checked(Method::GET, path, &evil[..1], false).is_err(), "{path}");
        }
    }

    #[test]
    fn every_method_needs_a_known_host() {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let of = |host: &str| checked(method.clone(), PURGE, &[("host", host)], false);
            let evil = Host::Name("evil.example".to_owned());
            assert_eq!(of("evil.example:9478"), Err(Refused::HostUnknown(evil)));
            assert_eq!(of("evil.example@localhost"), Err(Refused::HostUnclear(Unclear::Malformed)));
            assert_eq!(checked(method.clone(), PURGE, &[], false), Err(Refused::HostUnclear(Unclear::Missing)));
            assert_eq!(of("10.0.0.7:9478"), Ok(()));
            assert_eq!(of("OPS.example.com:9478"), Ok(()));
        }
    }

    #[test]
    fn no_page_of_another_site_changes_anything() {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let of = |headers: &[(&str, &str)]| sent(method.clone(), PURGE, headers);
            for origin in ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:9478", ""] {
                assert_eq!(of(&[("origin", origin)]), Err(Refused::OtherSite), "{origin}");
            }
            for site in ["cross-site", "same-site", "", "Same-Origin", "anything"] {
                assert_eq!(of(&[("sec-fetch-site", site)]), Err(Refused::OtherSite), "{site}");
            }
            let contradicting = [("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")];
            assert_eq!(of(&contradicting), Err(Refused::OtherSite));
            assert_eq!(of(&[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")]), Err(Refused::OtherSite));
            let link =
                [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
            assert_eq!(of(&link), Err(Refused::OtherSite), "a form");

            assert_eq!(of(&[]), Ok(()), "no browser");
            assert_eq!(of(&[("origin", "http://localhost:9478"), ("sec-fetch-site", "same-origin")]), Ok(()));
        }
    }

    #[test]
    fn another_site_may_open_a_page_but_neither_fetch_frame_nor_show_payloads() {
        let from = |site: &str, mode: &str, dest: &str, target: &str| {
            let headers = [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
            sent(Method::GET, target, &headers)
        };
        for site in ["cross-site", "same-site"] {
            assert_eq!(from(site, "navigate", "document", "/v1/status"), Ok(()));
            assert_eq!(from(site, "navigate", "iframe", "/v1/status"), Err(Refused::OtherSite));
            assert_eq!(from(site, "no-cors", "image", "/v1/status"), Err(Refused::OtherSite));
            assert_eq!(from(site, "cors", "empty", "/v1/status"), Err(Refused::OtherSite));
            assert_eq!(sent(Method::GET, "/v1/status", &[("sec-fetch-site", site)]), Err(Refused::OtherSite));
            for query in ["payload=true", "limit=1&payloads=true", "%70ayload=true", "p%61yload%73=true", "payload"] {
                let opened = from(site, "navigate", "document", &format!("/v1/dead-letters?{query}"));
                assert_eq!(opened, Err(Refused::PayloadsForOtherSite), "{query}");
            }
        }
        assert_eq!(from("none", "navigate", "document", "/v1/dead-letters?payloads=true"), Ok(()));
        assert_eq!(sent(Method::GET, "/v1/status", &[("origin", "http://evil.example")]), Err(Refused::OtherSite));
    }

    #[test]
    fn the_document_has_every_answer_of_the_guard() {
        let host = Host::Name("x".to_owned());
        for refused in [
            Refused::HostUnclear(Unclear::Missing),
            Refused::HostUnknown(host),
            Refused::OtherSite,
            Refused::PayloadsForOtherSite,
            Refused::NotJson,
            Refused::BodyTooLarge,
            Refused::Crowded,
            Refused::BodyLate,
        ] {
            assert!(ANSWERS.iter().any(|(status, ..)| *status == refused.status()), "{refused:?}");
        }
    }

    #[test]
    fn a_body_is_json_by_its_type() {
        let with = |headers: &[(&str, &str)]| {
            checked(Method::POST, "/v1/redrive", &[&[("host", "127.0.0.1")], headers].concat(), true)
        };
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/json;"] {
            assert_eq!(with(&[("content-type", good)]), Ok(()), "{good}");
        }
        for bad in
            ["text/plain", "application/x-www-form-urlencoded", "text/plain; application/json", "application/jsonp", ""]
        {
            assert_eq!(with(&[("content-type", bad)]), Err(Refused::NotJson), "{bad}");
        }
        assert_eq!(with(&[]), Err(Refused::NotJson));
        let two = [("content-type", "application/json"), ("content-type", "text/plain")];
        assert_eq!(with(&two), Err(Refused::NotJson));
    }
}
