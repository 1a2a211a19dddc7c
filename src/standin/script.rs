//! How a function of the stand-in behaves, as data.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

/// Lambda's reasons for a 429 (`ThrottleReason` in the Lambda API reference, Invoke).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    ConcurrentInvocationLimitExceeded,
    FunctionInvocationRateLimitExceeded,
    ReservedFunctionConcurrentInvocationLimitExceeded,
    ReservedFunctionInvocationRateLimitExceeded,
    CallerRateLimitExceeded,
    ConcurrentSnapshotCreateLimitExceeded,
}

impl Reason {
    pub const ALL: [Self; 6] = [
        Self::ConcurrentInvocationLimitExceeded,
        Self::FunctionInvocationRateLimitExceeded,
        Self::ReservedFunctionConcurrentInvocationLimitExceeded,
        Self::ReservedFunctionInvocationRateLimitExceeded,
        Self::CallerRateLimitExceeded,
        Self::ConcurrentSnapshotCreateLimitExceeded,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConcurrentInvocationLimitExceeded => "ConcurrentInvocationLimitExceeded",
            Self::FunctionInvocationRateLimitExceeded => "FunctionInvocationRateLimitExceeded",
            Self::ReservedFunctionConcurrentInvocationLimitExceeded => {
                "ReservedFunctionConcurrentInvocationLimitExceeded"
            }
            Self::ReservedFunctionInvocationRateLimitExceeded => "ReservedFunctionInvocationRateLimitExceeded",
            Self::CallerRateLimitExceeded => "CallerRateLimitExceeded",
            Self::ConcurrentSnapshotCreateLimitExceeded => "ConcurrentSnapshotCreateLimitExceeded",
        }
    }
}

/// A 429 answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    pub reason: Reason,
    /// The `Retry-After` header, in whole seconds, rounded up.
    pub retry_after: Option<Duration>,
    /// The `x-amz-retry-after` header, in milliseconds. Other AWS services send it.
    pub retry_after_millis: Option<Duration>,
}

impl Throttle {
    pub fn new(reason: Reason) -> Self {
        Self { reason, retry_after: None, retry_after_millis: None }
    }

    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub fn retry_after_millis(mut self, wait: Duration) -> Self {
        self.retry_after_millis = Some(wait);
        self
    }
}

/// A limit on requests per second, as a token bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    pub per_second: f64,
    /// Requests that may come at once after a pause. At least 1.
    pub burst: f64,
    pub throttle: Throttle,
}

/// A limit on concurrent requests, each counted from the end of its headers to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyLimit {
    pub at_once: u64,
    pub throttle: Throttle,
}

/// An error answer with a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    pub status: u16,
    /// Lambda's error code, as in `x-amzn-ErrorType`.
    pub code: String,
    pub message: String,
}

impl ErrorAnswer {
    pub fn new(status: u16, code: &str, message: &str) -> Self {
        Self { status, code: code.to_owned(), message: message.to_owned() }
    }
}

/// What can go wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    Throttle(Throttle),
    /// An error in Lambda's shape.
    Error(ErrorAnswer),
    /// The page of a proxy in between: HTML, no error code, no request id.
    Html(u16),
    /// The connection is reset before the body is read. The event is not taken.
    Reset,
    /// The event is taken, and the connection is reset instead of answered.
    LostReply,
    /// The event is taken, and the answer comes this much later.
    SlowReply(Duration),
    /// The function ran and failed: `Unhandled`, with this text. `RequestResponse` only. Other types succeed.
    FunctionError(String),
}

impl Trouble {
    pub fn throttle(reason: Reason) -> Self {
        Self::Throttle(Throttle::new(reason))
    }

    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::Error(ErrorAnswer::new(status, code, message))
    }
}

/// How long an answer takes that is not a throttle: `fixed`, plus a random part of up to `random`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    pub fixed: Duration,
    pub random: Duration,
}

/// The behaviour of one function. The default answers every request at once, with success.
///
/// The first of these that applies decides: the one-time troubles, the concurrency limit, the rate limit, the troubles
/// by chance. A request that Lambda would refuse as invalid is refused under every script, but may use up a one-time
/// trouble.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    pub(super) once: VecDeque<Trouble>,
    pub(super) concurrency: Option<ConcurrencyLimit>,
    pub(super) rate: Option<RateLimit>,
    pub(super) chances: Vec<(f64, Trouble)>,
    pub(super) latency: Latency,
    pub(super) result: Bytes,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            once: VecDeque::new(),
            concurrency: None,
            rate: None,
            chances: Vec::new(),
            latency: Latency::default(),
            result: Bytes::from_static(b"null"),
        }
    }
}

impl Script {
    /// Every request meets `trouble`.
    pub fn always(trouble: Trouble) -> Self {
        Self::default().chance(1.0, trouble)
    }

    /// The next request meets `trouble`. Called again, the request after it meets that one.
    pub fn once(mut self, trouble: Trouble) -> Self {
        self.once.push_back(trouble);
        self
    }

    /// The next `times` requests meet `trouble`.
    pub fn times(mut self, times: usize, trouble: Trouble) -> Self {
        self.once.extend(std::iter::repeat_n(trouble, times));
        self
    }

    /// A share of the requests meets `trouble`: 0 is none, 1 is all. The shares of several troubles add up, and each
    /// request meets at most one. The part of the sum beyond 1 never happens.
    pub fn chance(mut self, share: f64, trouble: Trouble) -> Self {
        self.chances.push((share, trouble));
        self
    }

    /// Throttles beyond `at_once` requests in flight.
    pub fn concurrency(mut self, at_once: u64, throttle: Throttle) -> Self {
        self.concurrency = Some(ConcurrencyLimit { at_once, throttle });
        self
    }

    /// Throttles beyond `per_second` requests a second. A tenth of a second's requests may come at once, at least 1.
    pub fn rate(mut self, per_second: f64, throttle: Throttle) -> Self {
        self.rate = Some(RateLimit { per_second, burst: (per_second / 10.0).max(1.0), throttle });
        self
    }

    /// As [`Script::rate`], with an explicit burst.
    pub fn rate_with_burst(mut self, limit: RateLimit) -> Self {
        self.rate = Some(limit);
        self
    }

    /// Sets how long answers take that are not throttles.
    pub fn latency(mut self, fixed: Duration, random: Duration) -> Self {
        self.latency = Latency { fixed, random };
        self
    }

    /// The body of a successful `RequestResponse`. Without this it is `null`.
    pub fn result(mut self, body: impl Into<Bytes>) -> Self {
        self.result = body.into();
        self
    }
}
