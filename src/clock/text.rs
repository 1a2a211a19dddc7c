//! Times as text: RFC 3339, or how long ago.

use std::time::{Duration, UNIX_EPOCH};

use super::{MILLIS_MAX, UnixMillis};

impl UnixMillis {
    /// RFC 3339 with milliseconds, UTC.
    pub fn rfc3339(self) -> String {
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(self.0.min(MILLIS_MAX))).to_string()
    }

    /// Parses an RFC 3339 time, or a duration such as "2h", which means that long before `now`.
    pub fn read(text: &str, now: Self) -> Option<Self> {
        let ago = humantime::parse_duration(text).ok().and_then(|ago| u64::try_from(ago.as_millis()).ok());
        ago.map(|millis| Self(now.0.saturating_sub(millis))).or_else(|| Self::read_rfc3339(text))
    }

    /// Parses an RFC 3339 time with any offset. `None` if the text is not a time, has no offset, or is before 1970.
    pub fn read_rfc3339(text: &str) -> Option<Self> {
        let utc = |text: &str| {
            let time = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
            u64::try_from(time.as_millis()).ok()
        };
        let text = text.to_ascii_uppercase();
        if text.ends_with('Z') {
            return utc(&text).map(Self);
        }
        let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
        let (hours, minutes) = offset.get(1..)?.split_once(':')?;
        let is_number = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        let (hours, minutes) = (Some(hours).filter(|it| is_number(it))?, Some(minutes).filter(|it| is_number(it))?);
        let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        let (local, offset_millis) = (utc(&format!("{local}Z"))?, (hours * 60 + minutes) * 60_000);
        match offset.as_bytes().first()? {
            b'+' => local.checked_sub(offset_millis),
            b'-' => local.checked_add(offset_millis),
            _ => None,
        }
        .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_with_any_offset() {
        for (text, expected) in [
            ("2026-11-23T15:00:00Z", Some(1_795_446_000_000)),
            ("2026-11-23t15:00:00z", Some(1_795_446_000_000)),
            ("2026-11-23T17:30:00+02:30", Some(1_795_446_000_000)),
            ("2026-11-23T10:00:00.250-05:00", Some(1_795_446_000_250)),
            ("2026-11-23T15:00:00", None),
            ("2026-11-23 15:00:00", None),
            ("2026-11-23T15:00:00+2:00", None),
            ("2026-11-23T15:00:00+24:00", None),
            ("2026-11-23T15:00:00*02:00", None),
            ("1969-12-31T23:00:00Z", None),
            ("ä+00:00", None),
            ("", None),
        ] {
            assert_eq!(UnixMillis::read_rfc3339(text), expected.map(UnixMillis), "{text}");
        }
    }

    #[test]
    fn times_are_read_as_rfc_3339_or_as_how_long_ago() {
        let now = UnixMillis(1_790_000_000_000);
        assert_eq!(UnixMillis::read("2h", now), Some(UnixMillis(now.0 - 7_200_000)));
        assert_eq!(UnixMillis::read("2019-11-15T18:16:05.568Z", now), Some(UnixMillis(1_573_841_765_568)));
        for text in ["", "2", "soon", "1960-01-01T00:00:00Z"] {
            assert_eq!(UnixMillis::read(text, now), None, "{text}");
        }
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(UnixMillis(1_573_841_765_568).rfc3339(), "2019-11-15T18:16:05.568Z");
    }
}
