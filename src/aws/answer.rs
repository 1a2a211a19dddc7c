//! Classifies an answer by status, headers and body: who sent it, and what it means. Pure.
//!
//! Lambda answers an Event with 202, a call with 200 and a dry run with 204, and gives each request an id. Any other
//! success comes from something else: a proxy, a captive portal, another service, a sendoff. To count it as a delivery
//! would lose the event.

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::http::Headers;
use serde::Deserialize;

use crate::dispatch::Answer;
use crate::hop;
use retry_after::RetryAfter;

mod retry_after;

/// Who answered instead of Lambda.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foreign {
    /// A sendoff: this one, or another.
    Sendoff,
    /// Something else: a proxy, a captive portal, another service.
    Unknown,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Event,
    /// `RequestResponse`: the function's own answer.
    Result,
    DryRun,
}

/// What the head of an answer tells about its sender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Signs {
    pub(super) request_id: Option<String>,
    /// `X-Amz-Executed-Version`, which no other service sends.
    executed_version: bool,
    content_type: Option<String>,
    sendoff: bool,
}

impl Signs {
    pub(super) fn of(headers: &Headers) -> Self {
        Self {
            request_id: headers.get("x-amzn-requestid").map(ToOwned::to_owned),
            executed_version: headers.get("x-amz-executed-version").is_some(),
            content_type: headers.get("content-type").map(str::to_ascii_lowercase),
            sendoff: headers.iter().any(|(name, _)| name.to_ascii_lowercase().starts_with(hop::ANSWER_PREFIX)),
        }
    }

    /// Who answered a request with a status below 400. `None` if it was Lambda.
    ///
    /// Emulators count as Lambda by the same headers: MiniStack, moto and LocalStack send a request id. SAM answers an Event
    /// with a bare 202.
    fn foreign(&self, asked: Asked, status: u16, body: Option<&[u8]>) -> Option<Foreign> {
        if self.sendoff {
            return Some(Foreign::Sendoff);
        }
        let body = body.unwrap_or_default().trim_ascii();
        let is_page = self.content_type.as_ref().is_some_and(|kind| kind.contains("html")) || body.starts_with(b"<");
        let is_named = self.request_id.is_some() || self.executed_version;
        let is_lambdas = match (asked, status) {
            // Lambda's own answer has no body.
            (Asked::Event, 202) => is_named || matches!(body, b"" | b"{}" | b"null" | b"\"\""),
            (Asked::Result, 200) => is_named,
            (Asked::DryRun, 204) => true,
            (Asked::Event | Asked::Result | Asked::DryRun, _) => false,
        };
        (is_page || !is_lambdas).then_some(Foreign::Unknown)
    }

    /// Describes an answer that is not Lambda's, and says what to do.
    fn words(&self, status: u16) -> String {
        format!(
            "not Lambda's own answer (status {status}, content type {}, {}): see that lambda.endpoint_url names Lambda, and \
             that no proxy or portal answers in its place",
            self.content_type.as_deref().unwrap_or("none"),
            if self.request_id.is_some() { "with x-amzn-RequestId" } else { "no x-amzn-RequestId" },
        )
    }
}

/// A success from a sendoff counts as the refusal that a sendoff which knows the mark would have given.
const LOOP_STATUS: u16 = 508;
const LOOP_CODE: &str = "LoopDetectedException";
const LOOP_WORDS: &str = "a sendoff answered in Lambda's place: correct lambda.endpoint_url, AWS_ENDPOINT_URL_LAMBDA, \
                          AWS_ENDPOINT_URL, or endpoint_url in the AWS profile";

/// The reply for an answer with a status below 400: `answer` if Lambda sent it, else a foreign reply.
pub(super) fn judged(asked: Asked, signs: &Signs, body: Option<&[u8]>, answer: Answer) -> Answer {
    match signs.foreign(asked, answer.status, body) {
        None => answer,
        Some(Foreign::Sendoff) => Answer {
            status: LOOP_STATUS,
            code: Some(LOOP_CODE.to_owned()),
            message: LOOP_WORDS.to_owned(),
            request_id: answer.request_id,
            ..Answer::default()
        },
        Some(Foreign::Unknown) => Answer {
            status: answer.status,
            message: signs.words(answer.status),
            foreign: true,
            request_id: answer.request_id,
            ..Answer::default()
        },
    }
}

/// The reply for an answer that is not a success. Reads status, headers and body itself, because a proxy may answer in
/// any form and the SDK loses the error code if a body is not JSON.
pub(super) fn answer_of(asked: Asked, response: &HttpResponse) -> Answer {
    let (status, bytes) = (response.status().as_u16(), response.body().bytes());
    let body: ErrorBody = bytes.and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default();
    let headers = response.headers();
    if status < 400 {
        let signs = Signs::of(headers);
        let answer = Answer { status, request_id: signs.request_id.clone(), ..Answer::default() };
        return judged(asked, &signs, bytes, answer);
    }
    let RetryAfter { wait, at } = RetryAfter::read(|name| headers.get(name));
    let code = headers.get("x-amzn-errortype").map(ToOwned::to_owned).or(body.code).or(body.type_);
    let message = body.message.unwrap_or_else(|| match code {
        Some(_) => String::new(),
        None => "not Lambda's own answer: it has no error code".to_owned(),
    });
    Answer {
        status,
        code: code.as_deref().map(bare_code).filter(|code| !code.is_empty()).map(ToOwned::to_owned),
        message,
        throttle_reason: body.reason,
        retry_after: wait,
        retry_at: at,
        request_id: headers.get("x-amzn-requestid").map(ToOwned::to_owned),
        ..Answer::default()
    }
}

/// The fields of Lambda's error bodies. Their case differs between error shapes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    code: Option<String>,
    #[serde(rename = "__type")]
    type_: Option<String>,
    #[serde(alias = "Message", alias = "errorMessage")]
    message: Option<String>,
    #[serde(rename = "Reason")]
    reason: Option<String>,
}

/// `ns#Code:http://...` is `Code`.
pub(super) fn bare_code(code: &str) -> &str {
    let code = code.split_once(':').map_or(code, |(code, _)| code);
    code.rsplit_once('#').map_or(code, |(_, code)| code).trim()
}

#[cfg(test)]
mod tests;
