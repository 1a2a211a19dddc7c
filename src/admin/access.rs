//! Which right each route of the operator's API requires, and the layer that checks it.
//!
//! Holds: a route that is not in [`ROUTES`] is refused to everybody, so a new route without an entry fails at its first use. Changes and views of payloads are audited, also those that are denied to a known caller.

use std::sync::Arc;

use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, RequestExt as _};
use http::header::{ALLOW, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};
use tokio::sync::watch;

use super::actions::{Actions, END_BULK, Note};
use super::api::Message;
use super::operators::{Caller, Directory, Role, UNKNOWN, Unidentified};
use crate::event::name::percent_decode;
use crate::http::peer::Peer;
use crate::metrics::Metrics;

/// What a caller must be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    /// Nothing.
    Open,
    /// To read, if the configuration says so.
    Metrics,
    Read,
    /// To read, and to see payloads if the query asks for them.
    ReadPayloads,
    Operate,
}

/// Every route: method, path, right, and the action that the audit calls it.
const ROUTES: [(&str, &str, Right, &str); 39] = [
    ("GET", "/", Right::Open, ""),
    ("GET", "/console/{*path}", Right::Open, ""),
    ("GET", "/livez", Right::Open, ""),
    ("GET", "/readyz", Right::Open, ""),
    ("GET", "/metrics", Right::Metrics, ""),
    ("GET", "/v1/status", Right::Read, ""),
    ("GET", "/v1/actions", Right::Read, ""),
    ("GET", "/v1/whoami", Right::Read, ""),
    ("GET", "/v1/snapshot", Right::Read, ""),
    ("GET", "/v1/series", Right::Read, ""),
    ("GET", "/v1/recent", Right::Read, ""),
    ("GET", "/v1/config", Right::Read, ""),
    ("GET", "/v1/keys", Right::Read, ""),
    ("GET", "/v1/bulk", Right::Read, ""),
    ("POST", "/v1/bulk", Right::Operate, "start-bulk"),
    ("GET", "/v1/bulk/{id}", Right::Read, ""),
    ("DELETE", "/v1/bulk/{id}", Right::Operate, "stop-bulk"),
    ("GET", "/v1/openapi.json", Right::Read, ""),
    ("GET", "/v1/log-level", Right::Read, ""),
    ("PUT", "/v1/log-level", Right::Operate, "set-log-level"),
    ("PUT", "/v1/drain", Right::Operate, "drain"),
    ("DELETE", "/v1/drain", Right::Operate, "end-drain"),
    ("GET", "/v1/functions", Right::Read, ""),
    ("POST", "/v1/functions/{name}/pause", Right::Operate, "pause-function"),
    ("POST", "/v1/functions/{name}/resume", Right::Operate, "resume-function"),
    ("POST", "/v1/functions/{name}/purge", Right::Operate, "purge-function"),
    ("GET", "/v1/events", Right::Read, ""),
    ("GET", "/v1/events/{id}", Right::ReadPayloads, "view-payload"),
    ("DELETE", "/v1/events/{id}", Right::Operate, "cancel-event"),
    ("POST", "/v1/events/{id}/attempt", Right::Operate, "attempt-event"),
    ("GET", "/v1/dead-letters", Right::ReadPayloads, "view-payloads"),
    ("POST", "/v1/dead-letters", Right::Operate, "import-dead-letters"),
    ("POST", "/v1/dead-letters/redrive", Right::Operate, "redrive-dead-letters"),
    ("POST", "/v1/dead-letters/purge", Right::Operate, "purge-dead-letters"),
    ("GET", "/v1/dead-letters/queues", Right::Read, ""),
    ("GET", "/v1/dead-letters/groups", Right::Read, ""),
    ("GET", "/v1/dead-letters/{id}", Right::ReadPayloads, "view-payload"),
    ("DELETE", "/v1/dead-letters/{id}", Right::Operate, "purge-dead-letters"),
    ("POST", "/v1/redrive", Right::Operate, "redrive-from-queue"),
];

/// The words of actions, for metrics.
pub fn actions() -> Vec<&'static str> {
    let of_routes = ROUTES.iter().map(|(.., action)| *action).filter(|action| !action.is_empty());
    let mut words: Vec<_> = of_routes.chain([END_BULK]).collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// What the layer knows. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    /// The latest operators.
    pub operators: watch::Receiver<Arc<Directory>>,
    pub read_only: bool,
    /// Metrics require the right to read.
    pub metrics_guarded: bool,
    /// The daemon's own user.
    pub own_uid: u32,
    pub actions: Actions,
    pub metrics: Arc<Metrics>,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    right: Right,
    /// The payloads of events, too.
    payloads: bool,
    /// What the audit calls it. Empty if it is not audited.
    action: &'static str,
}

/// Why a request is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Denied {
    NoCredentials,
    UnknownCredentials,
    Operate,
    Payloads,
    ReadOnly,
}

/// The layer around all routes. It comes after the guard, and before a body is read.
pub async fn check(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let Some(need) = need(request.method(), path.as_ref().map(MatchedPath::as_str), request.uri()) else {
        let allowed = methods_of(path.as_ref().map_or("", MatchedPath::as_str));
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, allowed)]).into_response();
    };
    if need.right == Right::Open || need.right == Right::Metrics && !access.metrics_guarded {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let found = access.operators.borrow().identify(request.headers(), peer.identity(), access.own_uid);
    let caller = match found {
        Ok(caller) => caller,
        Err(unidentified) => {
            let denied = match unidentified {
                Unidentified::Missing => Denied::NoCredentials,
                Unidentified::Unknown => Denied::UnknownCredentials,
            };
            access.count(UNKNOWN, denied);
            tracing::debug!(reason = denied.reason(), "request to the operator's API denied");
            return denied.response(UNKNOWN);
        }
    };
    request.extensions_mut().insert(caller.clone());
    let denied = denied(need, &caller, access.read_only);
    if need.action.is_empty() {
        return match denied {
            Some(denied) => access.deny(&caller, denied),
            None => next.run(request).await,
        };
    }
    let object = request.extract_parts::<RawPathParams>().await.ok();
    let object = object.and_then(|params| Some(params.iter().next()?.1.to_owned())).unwrap_or_default();
    let filter = request.uri().query().map(percent_decode).unwrap_or_default();
    let action = access.actions.begin(&caller, peer.identity(), need.action, object, filter);
    match denied {
        Some(denied) => {
            let response = access.deny(&caller, denied);
            action.denied(response.status());
            response
        }
        None => {
            let mut response = next.run(request).await;
            let note = response.extensions_mut().remove::<Note>().unwrap_or_default();
            action.answered(response.status(), note);
            response
        }
    }
}

impl Access {
    fn deny(&self, caller: &Caller, denied: Denied) -> Response {
        self.count(&caller.operator.name, denied);
        denied.response(&caller.operator.name)
    }

    fn count(&self, operator: &str, denied: Denied) {
        self.metrics.admin_denied.with_label_values(&[operator, denied.reason()]).inc();
    }
}

/// The methods that a path has, as the header `Allow` lists them.
fn methods_of(path: &str) -> String {
    let of_path = ROUTES.iter().filter(|route| route.1 == path);
    let methods = of_path.map(|route| if route.0 == "GET" { "GET,HEAD" } else { route.0 });
    methods.collect::<Vec<_>>().join(",")
}

/// The right that a request needs. Unknown paths need the right to read, so that others cannot probe for routes. `None`
/// means that the path has no such method.
fn need(method: &Method, path: Option<&str>, uri: &Uri) -> Option<Need> {
    let Some(path) = path else { return Some(Need { right: Right::Read, payloads: false, action: "" }) };
    let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
    let (_, _, right, action) = ROUTES.iter().find(|route| (route.0, route.1) == (method, path))?;
    let payloads = *right == Right::ReadPayloads && asks_for_payloads(uri.query().unwrap_or_default());
    let is_audited = payloads || *right == Right::Operate;
    Some(Need { right: *right, payloads, action: if is_audited { action } else { "" } })
}

/// Whether a query asks for payloads, as the handlers read it.
fn asks_for_payloads(query: &str) -> bool {
    query.split('&').any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        matches!(percent_decode(key).as_str(), "payload" | "payloads") && percent_decode(value) != "false"
    })
}

fn denied(need: Need, caller: &Caller, read_only: bool) -> Option<Denied> {
    match need.right {
        Right::Operate if read_only => Some(Denied::ReadOnly),
        Right::Operate if caller.operator.role == Role::Read => Some(Denied::Operate),
        Right::Operate | Right::Open | Right::Metrics | Right::Read => None,
        Right::ReadPayloads => (need.payloads && !caller.operator.payloads).then_some(Denied::Payloads),
    }
}

impl Denied {
    /// The label in metrics.
    fn reason(self) -> &'static str {
        match self {
            Self::NoCredentials => "no-credentials",
            Self::UnknownCredentials => "unknown-credentials",
            Self::Operate => "operate",
            Self::Payloads => "payloads",
            Self::ReadOnly => "read-only",
        }
    }

    fn response(self, operator: &str) -> Response {
        const PROVE: &str = "send a token of [operators] as Authorization: Bearer (the sendoff command: --token-file), or \
                             ask as root or sendoff's own user by the socket listen.admin_unix";
        let message = match self {
            Self::NoCredentials => format!("this needs an operator: {PROVE}"),
            Self::UnknownCredentials => format!("these credentials are no operator's: {PROVE}"),
            Self::Operate => {
                format!("{operator} lacks the right to change this: it needs operators.{operator}.role = \"operate\"")
            }
            Self::Payloads => {
                format!("{operator} lacks the right to see payloads: it needs operators.{operator}.payloads = true")
            }
            Self::ReadOnly => "this daemon refuses changes by operators: auth.read_only is true".to_owned(),
        };
        let body = Json(Message { message });
        match self {
            Self::NoCredentials | Self::UnknownCredentials => {
                (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], body).into_response()
            }
            Self::Operate | Self::Payloads | Self::ReadOnly => (StatusCode::FORBIDDEN, body).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::admin::operators::{Operator, Proof};

    /// The routes that the source registers: `.route("/path", get(..).post(..))`.
    fn registered() -> BTreeSet<(String, String)> {
        let mut files = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin.rs")];
        let below = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin")).unwrap();
        files.extend(below.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
        let mut found = BTreeSet::new();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for call in code.split(".route(").skip(1) {
                let call = call.trim_start();
                let Some(call) = call.strip_prefix('"') else { panic!("a path that is no literal in {file:?}") };
                let (path, rest) = call.split_once('"').unwrap();
                let mut depth = 1;
                let end = rest.find(|c| {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    depth == 0
                });
                let handlers = &rest[..end.unwrap()];
                let methods = ["get", "put", "post", "delete", "patch"];
                let used: Vec<_> = methods.iter().filter(|method| handlers.contains(&format!("{method}("))).collect();
                assert!(!used.is_empty() && !handlers.contains("any("), "{path} in {file:?}");
                found.extend(used.iter().map(|method| (method.to_uppercase(), path.to_owned())));
            }
        }
        found
    }

    #[test]
    fn every_route_has_an_entry_and_every_entry_a_route() {
        let listed: BTreeSet<_> = ROUTES.iter().map(|route| (route.0.to_owned(), route.1.to_owned())).collect();
        assert_eq!(listed.len(), ROUTES.len());
        assert_eq!(listed, registered());
    }

    #[test]
    fn changes_take_the_right_to_operate_and_have_a_name_and_reads_take_none() {
        for (method, path, right, action) in ROUTES {
            match right {
                Right::Open | Right::Metrics | Right::Read => assert!(method == "GET" && action.is_empty(), "{path}"),
                Right::ReadPayloads => assert!(method == "GET" && action.starts_with("view-"), "{path}"),
                Right::Operate => assert!(method != "GET" && !action.is_empty(), "{path}"),
            }
        }
        let open: Vec<_> = ROUTES.iter().filter(|route| route.2 == Right::Open).map(|route| route.1).collect();
        assert_eq!(open, ["/", "/console/{*path}", "/livez", "/readyz"]);
    }

    fn needed(method: &str, path: Option<&str>, uri: &str) -> Option<Need> {
        need(&method.parse().unwrap(), path, &uri.parse().unwrap())
    }

    #[test]
    fn payloads_are_a_right_of_their_own_however_the_query_is_written() {
        let asks = |query: &str| needed("GET", Some("/v1/events/{id}"), &format!("/v1/events/1?{query}")).unwrap();
        for query in
            ["payload=true", "payload", "payload=", "limit=1&payload=true", "p%61yload=true", "payloads=tru%65"]
        {
            assert_eq!((asks(query).payloads, asks(query).action), (true, "view-payload"), "{query}");
        }
        for query in ["", "payload=false", "payload=fals%65", "function=payload", "error=payload=true", "apayload=true"]
        {
            assert_eq!((asks(query).payloads, asks(query).action), (false, ""), "{query}");
        }
        assert!(!needed("GET", Some("/v1/status"), "/v1/status?payload=true").unwrap().payloads);
        assert_eq!(
            needed("HEAD", Some("/v1/events/{id}"), "/v1/events/1?payload=true").unwrap().action,
            "view-payload"
        );
        assert_eq!(needed("DELETE", Some("/v1/status"), "/v1/status"), None);
        assert_eq!(needed("GET", Some("/v1/new"), "/v1/new"), None);
        assert_eq!(needed("GET", None, "/nowhere").unwrap().right, Right::Read);
        assert_eq!(methods_of("/v1/events/{id}"), "GET,HEAD,DELETE");
    }

    #[test]
    fn who_may_do_what() {
        let caller = |role, payloads| {
            let operator = Arc::new(Operator { name: "x".to_owned(), role, payloads });
            Caller { operator, proof: Proof::Token }
        };
        let of = |right, payloads| Need { right, payloads, action: "" };
        use Right::{Operate, Read, ReadPayloads};
        for (need, role, payloads, read_only, expected) in [
            (of(Read, false), Role::Read, false, true, None),
            (of(ReadPayloads, false), Role::Read, false, true, None),
            (of(ReadPayloads, true), Role::Operate, false, false, Some(Denied::Payloads)),
            (of(ReadPayloads, true), Role::Read, true, true, None),
            (of(Operate, false), Role::Read, true, false, Some(Denied::Operate)),
            (of(Operate, false), Role::Operate, false, false, None),
            (of(Operate, false), Role::Operate, true, true, Some(Denied::ReadOnly)),
        ] {
            assert_eq!(denied(need, &caller(role, payloads), read_only), expected, "{need:?} {role:?}");
        }
    }
}
