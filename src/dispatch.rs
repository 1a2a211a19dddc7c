//! Stage 3: delivers events from the outbox to their functions.
//!
//! In: leases from the outbox. Out: attempts through [`Invoke`], settlements to the outbox.
//! Holds: every attempt of an event is the same (G4). A lane never exceeds its limits (G5).
//! Limits: `in_flight_max` and `rate` for all lanes together; `concurrency_max`, `rate` and `invocations_per_hour_max`
//! for each lane.
//! Fails: only if the outbox fails. A failed attempt is an outcome, and a verdict decides what follows from it.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::UnixMillis;
use crate::event::{Carried, Function, FunctionName, IdempotencyKey};

pub mod verdict;

pub mod limiter;

pub mod lane;

pub mod run;

pub mod rate;

pub mod status;

pub use run::Dispatch;

/// Delivers an event to its function: AWS Lambda, or a fake in the simulation.
pub trait Invoke: Clone + Send + Sync + 'static {
    /// Makes one call of Invoke. The implementation must not retry.
    fn invoke(&self, call: Call) -> impl Future<Output = Reply> + Send;

    /// Asks Lambda whether the function exists and may be invoked, without invoking it (`DryRun`; Lambda answers 204).
    /// One call, without retries. Dispatch asks this when a failed event is all that its lane knows.
    fn dry_run(&self, function: Function) -> impl Future<Output = Reply> + Send;
}

/// One call of Invoke. Everything in it comes from the event and its policy, so every attempt is the same (G4).
#[derive(Debug, Clone)]
pub struct Call {
    pub function: Function,
    pub key: IdempotencyKey,
    pub carried: Carried,
    pub payload: Bytes,
    pub mode: Mode,
}

/// How a function is invoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Invocation type `Event`: Lambda queues the event and answers at once. Lambda retries errors of the function.
    #[default]
    Event,
    /// Invocation type `RequestResponse`: sendoff waits for the function's answer, at most this long. It sees the
    /// function's own errors and retries them.
    Confirm { timeout: Duration },
}

/// What came back. An attempt never returns an error; everything is a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// An HTTP answer, from Lambda or from something in between.
    Answer(Answer),
    /// The request certainly reached nobody: name not found, connection refused, TLS or connect timeout, no
    /// credentials.
    NotSent(Failure),
    /// No answer arrived. Lambda may have accepted the event.
    Lost(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    pub status: u16,
    /// Lambda's error code (`x-amzn-ErrorType`, without namespace and suffix). `None` means success, or an answer by a
    /// proxy or load balancer.
    pub code: Option<String>,
    pub message: String,
    /// The field `Reason` of a 429 answer.
    pub throttle_reason: Option<String>,
    /// The longer of `Retry-After` and `x-amz-retry-after`. A `Retry-After` that is a date counts from the answer's own
    /// `Date`.
    pub retry_after: Option<Duration>,
    /// A `Retry-After` that is a date, in an answer without a `Date`. [`Reply::timed`] measures it by our own clock.
    pub retry_at: Option<UnixMillis>,
    /// `x-amzn-RequestId`.
    pub request_id: Option<String>,
    /// `X-Amz-Function-Error`: the function ran and failed. `message` holds what the function said.
    pub function_error: Option<String>,
    /// Lambda did not write this answer, although its status is no error: a proxy's page, a captive portal, a redirect.
    /// `message` says what it looks like.
    pub foreign: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// The chain of causes, for the log.
    pub message: String,
}

impl Reply {
    /// Converts a date in `Retry-After` to a wait from `now`.
    pub fn timed(mut self, now: UnixMillis) -> Self {
        if let Self::Answer(answer) = &mut self
            && let Some(at) = answer.retry_at.take().filter(|at| *at > now)
        {
            answer.retry_after = answer.retry_after.max(Some(at.since(now)));
        }
        self
    }

    /// Code and message as one text, for the log.
    pub fn in_words(&self) -> String {
        match self {
            Self::Answer(answer) => match answer.code.as_ref().or(answer.function_error.as_ref()) {
                Some(code) => format!("{} {code}: {}", answer.status, answer.message),
                None => format!("{}: {}", answer.status, answer.message),
            },
            Self::NotSent(failure) | Self::Lost(failure) => format!("{}: {}", failure.kind.as_str(), failure.message),
        }
    }
}

/// Why a call got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// No connection: name not found, connection refused, TLS error, connect timeout.
    Connect,
    /// No credentials are configured, or the SDK could not fetch them.
    Credentials,
    /// The SDK could not build the request, because the endpoint or a header is not valid.
    Unbuildable,
    /// The request was sent, but no answer arrived in time.
    ReadTimeout,
    /// The connection ended before an answer.
    Closed,
    /// Our own code panicked during the call.
    Panicked,
}

impl FailureKind {
    /// The word used in metrics, logs and `last.code`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Credentials => "credentials",
            Self::Unbuildable => "unbuildable",
            Self::ReadTimeout => "read-timeout",
            Self::Closed => "closed",
            Self::Panicked => "panicked",
        }
    }
}

/// How the events of one function are delivered.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The most charged attempts of an event before it is buried. At least 1.
    pub attempts_max: u32,
    /// The age at which an event is buried, whatever its attempts brought.
    pub age_max: Duration,
    pub backoff_base: Duration,
    pub backoff_cap: Duration,
    /// The most attempts in flight of one lane.
    pub concurrency_max: u32,
    /// The most attempts a second of one lane. 0 means that only the limiter decides.
    pub rate: u32,
    /// The most attempts of one lane in each hour of the clock. 0 means no ceiling.
    pub invocations_per_hour_max: u32,
    pub mode: Mode,
}

/// The limits and policies of dispatch.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The most attempts in flight, over all lanes.
    pub in_flight_max: u32,
    /// The most attempts a second, over all lanes. 0 means no limit.
    pub rate: u32,
    /// The most payload bytes in memory, over all attempts in flight.
    pub in_flight_bytes_max: u64,
    /// The policy for functions that match no pattern.
    pub policy: Policy,
    /// Policies by name pattern (`*` matches any characters). The first match in file order wins.
    pub functions: Vec<(String, Policy)>,
}

impl Settings {
    /// Returns the policy of a function.
    pub fn policy(&self, function: &FunctionName) -> &Policy {
        self.functions.iter().find(|(pattern, _)| function.fits(pattern)).map_or(&self.policy, |(_, policy)| policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_after_that_is_a_date_is_measured_from_our_own_clock_where_the_answer_has_none() {
        let now = UnixMillis(1_790_000_000_000);
        let wait = Duration::from_secs(30);
        for (at, retry_after, expected) in [
            (Some(now.plus(wait)), None, Some(wait)),
            (Some(now.plus(wait)), Some(wait * 2), Some(wait * 2)),
            (Some(now), None, None),
            (Some(UnixMillis(0)), Some(wait), Some(wait)),
            (None, None, None),
        ] {
            let answer = Answer { status: 429, retry_after, retry_at: at, ..Answer::default() };
            let timed = Answer { retry_after: expected, retry_at: None, ..answer.clone() };
            assert_eq!(Reply::Answer(answer).timed(now), Reply::Answer(timed), "{at:?}");
        }
    }
}
