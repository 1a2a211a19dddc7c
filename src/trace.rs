//! Spans: one for each request and one for each attempt. They share the event's id, and the client's trace if it has one.
//!
//! A trace travels as X-Ray's header, which Lambda passes to the function. A client's W3C `traceparent` is converted to
//! that header with the same ids (X-Ray accepts W3C ids since 2023). No span contains a payload or a key.

use http::{HeaderMap, HeaderName};
use tracing::Span;
use tracing::field::{Empty, display};

use crate::event::EventId;

const XRAY: HeaderName = HeaderName::from_static("x-amzn-trace-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The tracing target of all spans. Spans have level debug, because a span costs some percent of an event's time and
/// few lines at `info` are written within one. An exporter receives them at every log level.
pub const TARGET: &str = "sendoff::trace";

/// A span for one request, from its head to its answer.
pub fn request(headers: &HeaderMap) -> Span {
    let span = tracing::debug_span!(target: TARGET, "request", event_id = Empty, client = Empty, status = Empty);
    if !span.is_disabled() {
        join(&span, header(headers).as_deref().and_then(Ids::of));
    }
    span
}

/// Records the id of the request's event, new or repeated, in the current span. A batch has no id of its own.
pub fn set_event(id: EventId) {
    Span::current().record("event_id", display(id));
}

/// Records the client that makes the request in the current span.
pub fn is_by(client: &str) {
    Span::current().record("client", client);
}

/// Logs that an event of the request is stored, or was known already.
pub fn accepted(id: EventId, function: &str, duplicate: bool) {
    tracing::debug!(target: TARGET, event_id = %id, function, duplicate, "event accepted");
}

/// A span for one attempt. `call` numbers the event's attempts. Without a client's trace, the attempts of an event share
/// a trace that is derived from the event's id.
pub fn attempt(id: EventId, function: &str, call: u32, trace_header: Option<&str>) -> Span {
    let span = tracing::debug_span!(target: TARGET, "attempt", event_id = %id, function, call, outcome = Empty);
    if !span.is_disabled() {
        join(&span, trace_header.and_then(Ids::of).or_else(|| Some(Ids::own(id))));
    }
    span
}

/// Records how the attempt of the current span ended, for span exporters only. The log writes no line after this point,
/// so formatting the field for it would be wasted work.
#[cfg(feature = "otlp")]
pub fn ended(outcome: &'static str) {
    Span::current().record("outcome", outcome);
}

#[cfg(not(feature = "otlp"))]
pub fn ended(_outcome: &'static str) {}

/// The rule for a trace header that arrives as a JSON field, for error messages.
pub const HEADER_RULE: &str = "trace_header must be printable ASCII of at most 1024 bytes";

/// Whether a field follows [`HEADER_RULE`]. Lambda's own headers are shorter than 200 bytes.
pub fn is_header(text: &str) -> bool {
    text.len() <= 1_024 && text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

/// The trace of a request, as X-Ray's header. An X-Ray header takes precedence over a W3C one, because recursion
/// detection needs it on every hop. A header that is not text is ignored.
pub fn header(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty());
    text(XRAY).map(str::to_owned).or_else(|| xray_of(text(TRACEPARENT)?))
}

/// Converts a `traceparent` (W3C Trace Context, section 3.2) to X-Ray's header. `None` if it is not valid.
fn xray_of(traceparent: &str) -> Option<String> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Version 00 has four parts, later versions may have more. Version ff is invalid.
    let known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    let named = is_hex(trace, 32) && is_hex(parent, 16) && !is_zero(trace) && !is_zero(parent);
    if !known || !named || !is_hex(flags, 2) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
    Some(format!("Root=1-{}-{};Parent={parent};Sampled={sampled}", &trace[..8], &trace[8..]))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_zero(hex: &str) -> bool {
    hex.bytes().all(|byte| byte == b'0')
}

/// The ids of a trace in other systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ids {
    trace: u128,
    parent: u64,
    sampled: bool,
}

impl Ids {
    /// Parses X-Ray's header. `None` without a root. If the header names no parent, derives one from the root.
    fn of(header: &str) -> Option<Self> {
        let field = |name: &str| header.split(';').find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='));
        let (time, rest) = field("Root")?.strip_prefix("1-")?.split_once('-')?;
        if !is_hex(time, 8) || !is_hex(rest, 24) {
            return None;
        }
        let trace = u128::from_str_radix(&format!("{time}{rest}"), 16).ok()?;
        let parent = field("Parent").filter(|parent| is_hex(parent, 16));
        let parent = parent.and_then(|parent| u64::from_str_radix(parent, 16).ok()).unwrap_or(trace as u64);
        Some(Self { trace, parent, sampled: field("Sampled") != Some("0") })
    }

    /// The trace of an event whose client sent none.
    fn own(id: EventId) -> Self {
        let trace = u128::from_be_bytes(*id.as_bytes());
        Self { trace, parent: trace as u64, sampled: true }
    }
}

#[cfg(not(feature = "otlp"))]
fn join(_span: &Span, _ids: Option<Ids>) {}

/// Makes the span a child in a trace that began elsewhere.
#[cfg(feature = "otlp")]
fn join(span: &Span, ids: Option<Ids>) {
    use opentelemetry::Context;
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    let Some(Ids { trace, parent, sampled }) = ids else { return };
    let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, parent) = (TraceId::from(trace), SpanId::from(parent));
    let context = SpanContext::new(trace, parent, flags, true, TraceState::default());
    // An error means that no exporter receives this span.
    drop(span.set_parent(Context::new().with_remote_span_context(context)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::event::FunctionName;

    const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const SAME: &str = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_trace_of_w3c_is_carried_as_x_ray_s_unless_the_client_sends_that_itself() {
        assert_eq!(header(&headers(&[("traceparent", W3C)])).as_deref(), Some(SAME));
        let both = headers(&[("traceparent", W3C), ("x-amzn-trace-id", "Root=1-1-1;Lineage=a:0")]);
        assert_eq!(header(&both).as_deref(), Some("Root=1-1-1;Lineage=a:0"));
        assert_eq!(header(&headers(&[("x-amzn-trace-id", "")])), None);
        let unsampled = W3C.replace("-01", "-00");
        assert!(header(&headers(&[("traceparent", &unsampled)])).unwrap().ends_with("Sampled=0"));
    }

    #[test]
    fn a_traceparent_that_is_not_valid_is_none() {
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(xray_of(text), None, "{text}");
        }
        assert!(xray_of("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some(), "a later version");
    }

    #[test]
    fn both_forms_have_the_same_ids() {
        let ids = Ids::of(SAME).unwrap();
        assert_eq!(ids.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((ids.parent, ids.sampled), (0x00f0_67aa_0ba9_02b7, true));
        let root_only = Ids::of("Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Sampled=0;Lineage=x").unwrap();
        assert_eq!((root_only.trace, root_only.parent, root_only.sampled), (ids.trace, ids.trace as u64, false));
        for text in ["", "Root=1", "Root=1-4bf92f35", "Self=1-4bf92f35-77b34da6a3ce929d0e0e4736", "Root=2-a-b"] {
            assert_eq!(Ids::of(text), None, "{text}");
        }
    }

    #[test]
    fn an_event_without_a_trace_gives_its_attempts_one() {
        let id = EventId::mint(UnixMillis(1), 2, &FunctionName::new("orders"));
        assert_eq!(Ids::own(id), Ids::own(id));
        assert_ne!(Ids::own(id).parent, 0);
    }
}
