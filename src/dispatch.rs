//! Stage 3: from the outbox to the function.
//!
//! In: leases from the outbox. Out: attempts through [`Invoke`], settlements to the outbox.
//! Holds: every attempt of an event is the same (G4); a lane never exceeds its limits (G5).
//! Limits: `in_flight_max` and `rate` over all; `concurrency_max`, `rate` and `invocations_per_hour_max` a lane.
//! Fails: never by itself; what goes wrong with an attempt is an outcome, and a verdict says what it means.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::UnixMillis;
use crate::event::{Carried, Function, FunctionName, IdempotencyKey};

pub mod verdict;

pub mod limiter;

pub mod lane;

pub mod attempt;

pub mod rate;

pub mod status;

pub use attempt::Dispatch;

/// What carries an event to its function: AWS Lambda, or a fake in the simulation.
pub trait Invoke: Clone + Send + Sync + 'static {
    /// One call of Invoke, once: no retries inside.
    fn invoke(&self, call: Call) -> impl Future<Output = Reply> + Send;

    /// Asks whether the function exists and may be invoked, without invoking it (`DryRun`; Lambda answers 204). One call,
    /// no retries inside. Dispatch asks this when a failed event is the only thing that its lane knows.
    fn dry_run(&self, function: Function) -> impl Future<Output = Reply> + Send;
}

/// One call of Invoke. Made from the event alone, so that every attempt is the same (G4).
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
    /// `Event`: Lambda queues it and answers at once; what the function makes of it is Lambda's to retry.
    #[default]
    Event,
    /// `RequestResponse`, with so long a wait for the answer: the function's own error is seen and retried here.
    Confirm { timeout: Duration },
}

/// What came back, as plain data: an attempt does not fail, it reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Some HTTP answer, from Lambda or from something between.
    Answer(Answer),
    /// The request certainly did not reach anybody: no address, refused, TLS or connect timeout, no credentials.
    NotSent(Failure),
    /// No answer came; the request may have been taken.
    Lost(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    pub status: u16,
    /// Lambda's error code (`x-amzn-ErrorType`, without namespace and suffix); none on success, and none if a proxy or
    /// load balancer answered.
    pub code: Option<String>,
    pub message: String,
    /// `Reason` of a 429.
    pub throttle_reason: Option<String>,
    /// The longer of `Retry-After` (seconds, or a date measured from the answer's own) and `x-amz-retry-after`.
    pub retry_after: Option<Duration>,
    /// A `Retry-After` that is a date, in an answer without a `Date`: to be measured from our own clock.
    pub retry_at: Option<UnixMillis>,
    /// `x-amzn-RequestId`.
    pub request_id: Option<String>,
    /// `X-Amz-Function-Error`: the function ran and failed; its own words are in `message`.
    pub function_error: Option<String>,
    /// Lambda did not write this answer, which is no error: a proxy's page, a captive portal, a redirect. `message` says
    /// what it looks like.
    pub foreign: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// The chain of causes, for the log.
    pub message: String,
}

impl Reply {
    /// The same with a wait that is counted from `now`, where only a date was given.
    pub fn timed(mut self, now: UnixMillis) -> Self {
        if let Self::Answer(answer) = &mut self
            && let Some(at) = answer.retry_at.take().filter(|at| *at > now)
        {
            answer.retry_after = answer.retry_after.max(Some(at.since(now)));
        }
        self
    }

    /// In words, for the log: code and message.
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

/// The ways in which a call gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// No connection: name not found, refused, TLS, connect timeout.
    Connect,
    /// No credentials, or they could not be fetched.
    Credentials,
    /// The request could not even be built (an endpoint or header that is not valid).
    Unbuildable,
    /// Connected and sent, but no answer in time.
    ReadTimeout,
    /// Connected, and the connection ended before an answer.
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
    /// Charged attempts before an event is buried; at least 1.
    pub attempts_max: u32,
    /// Age at which an event is buried, however it fares.
    pub age_max: Duration,
    pub backoff_base: Duration,
    pub backoff_cap: Duration,
    /// Attempts in flight for one lane.
    pub concurrency_max: u32,
    /// Attempts a second of one lane; 0: as the limiter finds.
    pub rate: u32,
    /// Attempts of one lane in each hour of the clock; 0: no ceiling.
    pub invocations_per_hour_max: u32,
    pub mode: Mode,
}

/// What dispatch may do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Attempts in flight over all lanes.
    pub in_flight_max: u32,
    /// Attempts a second over all lanes; 0: no limit.
    pub rate: u32,
    /// Payload bytes in memory over all attempts in flight.
    pub in_flight_bytes_max: u64,
    /// The policy where no pattern matches.
    pub policy: Policy,
    /// Policies by name pattern (`*` stands for any run of characters); the first match in file order counts.
    pub functions: Vec<(String, Policy)>,
}

impl Settings {
    /// The policy for one function.
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
