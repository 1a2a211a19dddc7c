//! Corrects a wrong local clock. Like the SDK, learns the difference from answers that refuse a signature for its time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// The error codes for a signature whose time may be wrong (aws-runtime, `service_clock_skew`).
const CODES: &[&str] = &[
    "AccessDeniedException",
    "AuthFailure",
    "InvalidSignatureException",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
];

/// A smaller difference cannot be the reason for a refusal: AWS tolerates five minutes.
const SKEW_SECONDS_MIN: i64 = 240;

/// How far AWS's clock is ahead of ours.
#[derive(Debug, Default)]
pub(super) struct Skew {
    seconds: AtomicI64,
}

impl Skew {
    /// The time to sign with.
    pub(super) fn corrected(&self, wall: SystemTime) -> SystemTime {
        let seconds = self.seconds.load(Ordering::Relaxed);
        let by = Duration::from_secs(seconds.unsigned_abs());
        let corrected = if seconds < 0 { wall.checked_sub(by) } else { wall.checked_add(by) };
        corrected.unwrap_or(wall)
    }

    /// Learns the difference from a refusal. `date` is the answer's `Date` header (RFC 9110 section 6.6.1).
    pub(super) fn learn(&self, code: Option<&str>, date: Option<&str>, wall: SystemTime) {
        let blames_the_time = code.is_some_and(|code| CODES.binary_search(&code).is_ok());
        if !blames_the_time {
            return;
        }
        let Some(theirs) = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok()) else { return };
        let ahead = theirs.secs().saturating_sub(DateTime::from(wall).secs());
        let ahead = if ahead.saturating_abs() < SKEW_SECONDS_MIN { 0 } else { ahead };
        if self.seconds.swap(ahead, Ordering::Relaxed) != ahead {
            tracing::warn!(ahead_seconds = ahead, "the local clock differs from Lambda's: signing with Lambda's time");
        }
    }
}
