//! `Retry-After` in both of its forms (RFC 9110 section 10.2.3), and AWS's own header in milliseconds. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::UnixMillis;

/// When the server wants the next request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RetryAfter {
    /// After this time from now.
    pub wait: Option<Duration>,
    /// At this time. Used only if the answer has no `Date` to measure it from.
    pub at: Option<UnixMillis>,
}

impl RetryAfter {
    /// Reads the headers of an answer by name. Measures a date from the answer's own `Date`, so that a wrong clock on
    /// either side does not change the wait. A date in the past means no wait.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Self {
        let after = header("retry-after").map(str::trim);
        let wait = after.and_then(number).map(Duration::from_secs);
        let millis = header("x-amz-retry-after").map(str::trim).and_then(number).map(Duration::from_millis);
        let date = after.filter(|_| wait.is_none()).and_then(|after| httpdate::parse_http_date(after).ok());
        let sent = header("date").and_then(|date| httpdate::parse_http_date(date.trim()).ok());
        match (date, sent) {
            (Some(date), Some(sent)) => {
                let until = date.duration_since(sent).ok().filter(|wait| !wait.is_zero());
                Self { wait: until.max(millis), at: None }
            }
            (Some(date), None) => Self { wait: millis, at: Some(millis_of(date)) },
            (None, _) => Self { wait: wait.max(millis), at: None },
        }
    }
}

/// Parses digits only. A number that overflows means the longest wait.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn millis_of(time: SystemTime) -> UnixMillis {
    UnixMillis(0).plus(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_dates_and_milliseconds_are_read_and_the_longer_wait_counts() {
        let (sent, later) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:07 GMT");
        let seconds = |seconds| RetryAfter { wait: Some(Duration::from_secs(seconds)), at: None };
        let none = RetryAfter::default();
        let at = |wait| RetryAfter { wait, at: Some(UnixMillis(784_111_807_000)) };
        for (after, millis, date, expected) in [
            (None, None, None, none),
            (Some("2"), None, None, seconds(2)),
            (Some(" 2 "), Some("1500"), Some(sent), seconds(2)),
            (Some("1"), Some("3000"), None, seconds(3)),
            (Some("99999999999999999999999"), None, None, seconds(u64::MAX)),
            (Some(later), None, Some(sent), seconds(30)),
            (Some("Sunday, 06-Nov-94 08:50:07 GMT"), None, Some(sent), seconds(30)),
            (Some("Sun Nov  6 08:50:07 1994"), None, Some("Sun Nov  6 08:49:37 1994"), seconds(30)),
            (Some(later), Some("60000"), Some(sent), seconds(60)),
            (Some(sent), None, Some(later), none),
            (Some(sent), None, Some(sent), none),
            (Some(later), None, None, at(None)),
            (Some(later), Some("5"), Some("yesterday"), at(Some(Duration::from_millis(5)))),
            (Some("-5"), None, Some(sent), none),
            (Some("1.5"), None, Some(sent), none),
            (Some("soon"), Some("x"), Some(sent), none),
            (Some(""), Some(""), Some(""), none),
        ] {
            let read = RetryAfter::read(|name| match name {
                "retry-after" => after,
                "x-amz-retry-after" => millis,
                _ => date,
            });
            assert_eq!(read, expected, "{after:?} {millis:?} {date:?}");
        }
    }
}
