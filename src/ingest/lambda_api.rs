//! Reads requests of Lambda's Invoke API. Pure: needs no socket and no clock, and waits for nothing.
//!
//! The facts come from the API model from which the SDKs are generated (botocore 1.44.5, lambda 2015-03-31) and from
//! recorded answers of the real service.

use http::header::{HeaderMap, HeaderName};
use http::request::Parts as Head;
use http::{Method, Uri};

use crate::event::check::{Check, DURABLE_EXECUTION, TENANT, TextRule, function, read_client_context};
use crate::event::name::percent_decode;
use crate::event::{Carried, Function, PAYLOAD_BYTES_MAX};
use crate::ingest::Settings;
use crate::ingest::key::Offers;
use crate::ingest::passthrough::{CALL_BYTES_MAX, Operation};
use crate::ingest::refusal::Refusal;
use crate::trace;

/// The largest payload of the deprecated InvokeAsync, in bytes (its API reference: 256 KB).
pub const INVOKE_ASYNC_BYTES_MAX: usize = 262_144;

const INVOCATION_TYPE: HeaderName = HeaderName::from_static("x-amz-invocation-type");
const LOG_TYPE: HeaderName = HeaderName::from_static("x-amz-log-type");
const CLIENT_CONTEXT: HeaderName = HeaderName::from_static("x-amz-client-context");
const TENANT_ID: HeaderName = HeaderName::from_static("x-amz-tenant-id");
const DURABLE_EXECUTION_NAME: HeaderName = HeaderName::from_static("x-amz-durable-execution-name");

/// The checked head of an invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoke {
    pub operation: Operation,
    pub function: Function,
    pub invocation_type: InvocationType,
    /// Used by synchronous invocations only.
    pub log_type: LogType,
    pub carried: Carried,
    pub keys: Offers,
    /// The largest payload, in bytes.
    pub payload_max: usize,
}

/// `X-Amz-Invocation-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvocationType {
    Event,
    RequestResponse,
    DryRun,
}

impl InvocationType {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "Event",
            Self::RequestResponse => "RequestResponse",
            Self::DryRun => "DryRun",
        }
    }
}

/// `X-Amz-Log-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogType {
    None,
    Tail,
}

/// Reads a request's head in Lambda's order: path, method, fields, then the contents of the fields.
pub fn read_head(head: &Head, settings: &Settings) -> Result<Invoke, Refusal> {
    let route = Route::of(&head.uri).ok_or(Refusal::UnknownOperation)?;
    if head.method != Method::POST {
        return Err(Refusal::MethodNotAllowed { allow: "POST" });
    }
    match route {
        Route::Invoke { label } => read_invoke(Operation::Invoke, label, head, settings),
        Route::InvokeAsync { label } => read_invoke_async(label, head, settings),
        Route::ResponseStream { label } => read_invoke(Operation::InvokeWithResponseStream, label, head, settings),
    }
}

/// The operations that we know, with the function's label as it stands in the path.
enum Route<'a> {
    Invoke { label: &'a str },
    InvokeAsync { label: &'a str },
    ResponseStream { label: &'a str },
}

impl<'a> Route<'a> {
    fn of(uri: &'a Uri) -> Option<Self> {
        let (version, rest) = uri.path().strip_prefix('/')?.split_once("/functions/")?;
        let (label, operation) = rest.split_once('/')?;
        match (version, operation) {
            ("2015-03-31", "invocations") => Some(Self::Invoke { label }),
            // Old SDKs add the trailing slash.
            ("2014-11-13", "invoke-async" | "invoke-async/") => Some(Self::InvokeAsync { label }),
            ("2021-11-15", "response-streaming-invocations") => Some(Self::ResponseStream { label }),
            _ => None,
        }
    }
}

fn read_invoke(operation: Operation, label: &str, head: &Head, settings: &Settings) -> Result<Invoke, Refusal> {
    let mut check = Check::default();
    let address = percent_decode(label);
    let parts = check.name(&address);
    let qualifier = query(&head.uri, "Qualifier");
    check.qualifier(qualifier.as_deref());
    let headers = &head.headers;
    let invocation_type = invocation_type(&mut check, headers, operation);
    let log_type = log_type(&mut check, headers);
    let tenant_id = text(&mut check, headers, &TENANT_ID, &TENANT);
    let durable_execution_name = text(&mut check, headers, &DURABLE_EXECUTION_NAME, &DURABLE_EXECUTION);
    let parts = check.passed(parts)?;
    let function = function(&parts, &address, qualifier, &settings.home)?;
    let client_context = plain(headers, &CLIENT_CONTEXT).filter(|text| !text.is_empty());
    // sendoff checks only what it stores. Lambda checks the calls that pass through.
    let (keys, payload_max) = if invocation_type == InvocationType::Event {
        let context = client_context.as_deref().map(read_client_context).transpose()?;
        (Offers::read(headers, durable_execution_name.as_deref(), context.as_ref())?, PAYLOAD_BYTES_MAX)
    } else {
        (Offers::default(), CALL_BYTES_MAX)
    };
    Ok(Invoke {
        operation,
        keys,
        function,
        invocation_type,
        log_type,
        carried: Carried { trace_header: trace::header(headers), client_context, tenant_id, durable_execution_name },
        payload_max,
    })
}

/// The deprecated InvokeAsync has neither qualifier nor headers, and is always an Event.
fn read_invoke_async(label: &str, head: &Head, settings: &Settings) -> Result<Invoke, Refusal> {
    let mut check = Check::default();
    let address = percent_decode(label);
    let parts = check.name(&address);
    let parts = check.passed(parts)?;
    Ok(Invoke {
        operation: Operation::Invoke,
        keys: Offers::read(&head.headers, None, None)?,
        function: function(&parts, &address, None, &settings.home)?,
        invocation_type: InvocationType::Event,
        log_type: LogType::None,
        carried: Carried { trace_header: trace::header(&head.headers), ..Carried::default() },
        payload_max: INVOKE_ASYNC_BYTES_MAX,
    })
}

/// The first value of a query parameter, decoded.
fn query(uri: &Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(found, _)| percent_decode(found) == name).map(|(_, value)| percent_decode(value))
}

/// A header as text. Bytes that are not UTF-8 become U+FFFD, which every check refuses.
fn plain(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn text(check: &mut Check, headers: &HeaderMap, header: &HeaderName, rule: &TextRule) -> Option<String> {
    let text = plain(headers, header)?;
    check.text(&text, rule);
    Some(text)
}

fn invocation_type(check: &mut Check, headers: &HeaderMap, operation: Operation) -> InvocationType {
    let (events, known) = match operation {
        Operation::Invoke => (true, "RequestResponse, Event, DryRun"),
        Operation::InvokeWithResponseStream => (false, "RequestResponse, DryRun"),
    };
    match plain(headers, &INVOCATION_TYPE).as_deref() {
        Some("Event") if events => return InvocationType::Event,
        Some("DryRun") => return InvocationType::DryRun,
        Some("RequestResponse") | None => {}
        Some(other) => check.refuse("invocationType", other, one_of(known)),
    }
    InvocationType::RequestResponse
}

fn log_type(check: &mut Check, headers: &HeaderMap) -> LogType {
    match plain(headers, &LOG_TYPE).as_deref() {
        Some("Tail") => return LogType::Tail,
        Some("None") | None => {}
        Some(other) => check.refuse("logType", other, one_of("None, Tail")),
    }
    LogType::None
}

fn one_of(values: &str) -> String {
    format!("Member must satisfy enum value set: [{values}]")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use http::Request;

    use super::*;
    use crate::event::check::{Invalid, pattern};
    use crate::event::name::{Home, NAME_PATTERN, QUALIFIER_PATTERN};
    use crate::event::{FunctionName, KeySource};

    pub(crate) fn settings() -> Settings {
        Settings {
            connections_max: 64,
            request_bytes_max: 64 << 20,
            headers_max: 64,
            header_bytes_max: 16 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            home: Home { region: Some("eu-central-1".to_owned()), account_id: Some("123456789012".to_owned()) },
        }
    }

    fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> Head {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn invoke(label: &str, query: &str, headers: &[(&str, &str)]) -> Result<Invoke, Refusal> {
        read_head(&head("POST", &format!("/2015-03-31/functions/{label}/invocations{query}"), headers), &settings())
    }

    fn refusal(label: &str, query: &str, headers: &[(&str, &str)]) -> String {
        invoke(label, query, headers).unwrap_err().message()
    }

    #[test]
    fn what_is_sent_on_is_what_was_written() {
        let label = "arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Afunction%3Aorders";
        let invoke = invoke(
            label,
            "?Qualifier=%24LATEST",
            &[
                ("x-amz-invocation-type", "Event"),
                ("x-amz-tenant-id", "blue team"),
                ("x-amz-client-context", "eyJjdXN0b20iOnt9fQ=="),
                ("x-amzn-trace-id", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1;Lineage=a:0"),
            ],
        )
        .unwrap();
        assert_eq!(
            invoke.function,
            Function {
                name: FunctionName::new("us-east-1/orders"),
                address: "arn:aws:lambda:us-east-1:123456789012:function:orders".to_owned(),
                qualifier: Some("$LATEST".to_owned()),
                region: Some("us-east-1".to_owned()),
            }
        );
        assert_eq!(
            invoke.carried,
            Carried {
                trace_header: Some("Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1;Lineage=a:0".to_owned()),
                client_context: Some("eyJjdXN0b20iOnt9fQ==".to_owned()),
                tenant_id: Some("blue team".to_owned()),
                durable_execution_name: None,
            }
        );
        assert_eq!(invoke.payload_max, 1_048_576);
    }

    #[test]
    fn an_arn_of_the_own_region_keeps_it_in_case_that_changes() {
        let own = invoke("arn:aws:lambda:eu-central-1:123456789012:function:orders:prod", "", &[]).unwrap();
        assert_eq!(own.function.region.as_deref(), Some("eu-central-1"));
        assert_eq!(own.function.name.as_str(), "orders:prod");
    }

    #[test]
    fn the_invocation_type_is_request_response_by_default() {
        for (headers, expected) in [
            (&[][..], InvocationType::RequestResponse),
            (&[("x-amz-invocation-type", "RequestResponse")], InvocationType::RequestResponse),
            (&[("x-amz-invocation-type", "Event")], InvocationType::Event),
            (&[("x-amz-invocation-type", "DryRun")], InvocationType::DryRun),
        ] {
            assert_eq!(invoke("f", "", headers).unwrap().invocation_type, expected);
        }
        assert_eq!(invoke("f", "", &[("x-amz-log-type", "Tail")]).unwrap().log_type, LogType::Tail);
    }

    #[test]
    fn fields_that_do_not_fit_are_refused_in_lambdas_words() {
        let (long, long_qualifier) = ("a".repeat(257), "q".repeat(129));
        let echo = format!("{}...", "a".repeat(256));
        let query = format!("?Qualifier={long_qualifier}");
        let name = pattern(NAME_PATTERN);
        let at_most = |length| format!("Member must have length less than or equal to {length}");
        for (label, query, header, value, field, constraint) in [
            ("a%20b", "", None, "a b", "functionName", name.clone()),
            ("%ff", "", None, "\u{fffd}", "functionName", name),
            (&long, "", None, &echo, "functionName", at_most(256)),
            ("", "", None, "", "functionName", "Member must have length greater than or equal to 1".to_owned()),
            ("f", &query, None, &long_qualifier, "qualifier", at_most(128)),
            ("f", "?x=1&Qualifier=a.b", None, "a.b", "qualifier", pattern(QUALIFIER_PATTERN)),
            (
                "f",
                "",
                Some(("x-amz-invocation-type", "event")),
                "event",
                "invocationType",
                one_of("RequestResponse, Event, DryRun"),
            ),
            ("f", "", Some(("x-amz-log-type", "All")), "All", "logType", one_of("None, Tail")),
            ("f", "", Some(("x-amz-tenant-id", "a#b")), "a#b", "tenantId", pattern(r"[a-zA-Z0-9\._:\/=+\-@ ]+")),
            (
                "f",
                "",
                Some(("x-amz-durable-execution-name", "a.b")),
                "a.b",
                "durableExecutionName",
                pattern("[a-zA-Z0-9-_]+"),
            ),
        ] {
            let expected = format!(
                "1 validation error detected: Value '{value}' at '{field}' failed to satisfy constraint: {constraint}"
            );
            assert_eq!(refusal(label, query, header.as_slice()), expected);
        }
    }

    #[test]
    fn fields_that_contradict_or_hold_nonsense_are_refused() {
        assert_eq!(invoke("f:prod", "?Qualifier=dev", &[]), Err(Invalid::QualifierMismatch.into()));
        assert_eq!(
            refusal("f", "", &[("x-amz-invocation-type", "Event"), ("x-amz-client-context", "W10=")]),
            "Client context must be a valid Base64-encoded JSON object."
        );
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let message = refusal("a%20b", "?Qualifier=a.b", &[("x-amz-invocation-type", "x"), ("x-amz-tenant-id", "#")]);
        assert!(message.starts_with("4 validation errors detected: Value 'a b' at 'functionName'"), "{message}");
    }

    #[test]
    fn unknown_paths_and_methods_are_told_apart() {
        let known = "/2015-03-31/functions/f/invocations";
        for (method, target, expected) in [
            ("GET", known, Refusal::MethodNotAllowed { allow: "POST" }),
            ("PUT", "/2014-11-13/functions/f/invoke-async/", Refusal::MethodNotAllowed { allow: "POST" }),
            ("POST", "/", Refusal::UnknownOperation),
            ("GET", "/favicon.ico", Refusal::UnknownOperation),
            ("POST", "/pfx/2015-03-31/functions/f/invocations", Refusal::UnknownOperation),
            ("POST", "/2015-03-31/functions/f/invocations/", Refusal::UnknownOperation),
            ("POST", "/2015-03-31/functions/f", Refusal::UnknownOperation),
            ("POST", "/2015-03-31/functions/a/b/invocations", Refusal::UnknownOperation),
            (
                "GET",
                "/2021-11-15/functions/f/response-streaming-invocations",
                Refusal::MethodNotAllowed { allow: "POST" },
            ),
        ] {
            assert_eq!(read_head(&head(method, target, &[]), &settings()), Err(expected), "{method} {target}");
        }
    }

    #[test]
    fn the_deprecated_form_is_an_event_of_its_own_size() {
        for slash in ["", "/"] {
            let target = format!("/2014-11-13/functions/orders%3Aprod/invoke-async{slash}");
            // Headers that this form does not define are ignored.
            let invoke = read_head(&head("POST", &target, &[("x-amz-invocation-type", "x")]), &settings()).unwrap();
            assert_eq!(invoke.invocation_type, InvocationType::Event);
            assert_eq!(invoke.function.name.as_str(), "orders:prod");
            assert_eq!(invoke.payload_max, 262_144);
        }
    }

    /// Heads that real clients sent, each with the expected invocation type, function and key, or the expected refusal.
    const WIRE: [(&str, &str); 9] = [
        ("aws-cli-v1", include_str!("../../tests/golden/wire/aws-cli-v1.txt")),
        ("aws-cli-v2", include_str!("../../tests/golden/wire/aws-cli-v2.txt")),
        ("aws-cli-v2.23", include_str!("../../tests/golden/wire/aws-cli-v2.23.txt")),
        ("boto3", include_str!("../../tests/golden/wire/boto3.txt")),
        ("curl", include_str!("../../tests/golden/wire/curl.txt")),
        ("go-sdk-v2", include_str!("../../tests/golden/wire/go-sdk-v2.txt")),
        ("js-sdk-v3", include_str!("../../tests/golden/wire/js-sdk-v3.txt")),
        ("restate", include_str!("../../tests/golden/wire/restate.txt")),
        ("rust-sdk", include_str!("../../tests/golden/wire/rust-sdk.txt")),
    ];

    struct Recorded {
        title: String,
        head: Head,
        expected: String,
    }

    fn recorded() -> Vec<Recorded> {
        let mut all = Vec::new();
        for (client, text) in WIRE {
            for block in text.split("\n\n") {
                let mut lines = block.trim().lines();
                let title = format!("{client}: {}", lines.next().unwrap().trim_start_matches("# "));
                let mut start = lines.next().unwrap().split(' ');
                let mut request = Request::builder().method(start.next().unwrap()).uri(start.next().unwrap());
                let mut expected = None;
                for line in lines {
                    if let Some(outcome) = line.strip_prefix("=> ") {
                        expected = Some(outcome.to_owned());
                    } else {
                        let (name, value) = line.split_once(':').unwrap();
                        request = request.header(name, value.trim());
                    }
                }
                let head = request.body(()).unwrap().into_parts().0;
                all.push(Recorded { title, head, expected: expected.unwrap() });
            }
        }
        all
    }

    fn describe(head: &Head) -> String {
        match read_head(head, &settings()) {
            Ok(invoke) if invoke.invocation_type != InvocationType::Event => {
                let streaming = matches!(invoke.operation, Operation::InvokeWithResponseStream);
                let streamed = if streaming { " streamed" } else { "" };
                format!("{} {}{streamed}", invoke.invocation_type.as_str(), invoke.function.name)
            }
            Ok(invoke) => {
                let key = invoke.keys.choose(b"{\"k\":\"v\"}", None, || 0).unwrap();
                let kind = invoke.invocation_type.as_str();
                let value = if key.source == KeySource::Minted { "" } else { &key.value };
                format!("{kind} {} {} {value}", invoke.function.name, key.source.as_str()).trim_end().to_owned()
            }
            Err(refusal) => format!("refused {}", refusal.reason()),
        }
    }

    #[test]
    fn the_requests_of_real_clients_are_understood() {
        let recorded = recorded();
        assert_eq!(recorded.len(), 177, "every request that was recorded");
        for Recorded { title, head, expected } in recorded {
            assert_eq!(describe(&head), expected, "{title}");
        }
    }

    #[test]
    fn an_sdks_own_retries_carry_one_key() {
        let mut calls = BTreeMap::new();
        for Recorded { title, head, .. } in recorded() {
            if title.contains("retr") && head.headers.contains_key("amz-sdk-invocation-id") {
                calls.entry(title).or_insert_with(Vec::new).push(describe(&head));
            }
        }
        let retried: Vec<_> = calls.values().filter(|attempts| attempts.len() > 1).collect();
        assert!(retried.len() >= 20, "too few recorded retries: {}", retried.len());
        for attempts in retried {
            assert!(attempts.iter().all(|attempt| *attempt == attempts[0]), "{attempts:?}");
        }
    }
}
