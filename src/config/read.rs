//! Typed readers: check the form of a key's value. A reader that refuses a value notes the problem and returns `None`,
//! so that one pass finds all problems.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

use super::endpoint;
use super::problem::{Origin, Problem};
use super::raw::{Entry, Value, Values};
use crate::visible::without_password;

/// The longest duration that makes sense here. Far below where adding durations could overflow.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The largest size on disk: 8 EiB less one byte, as a signed file offset can express.
pub const DISK_MAX: u64 = i64::MAX.cast_unsigned();

/// The largest size in memory: 1 TiB. Far below what semaphores and buffers can count.
pub const MEMORY_MAX: u64 = 1 << 40;

/// The values, the problems so far, and the keys that were read.
#[derive(Debug)]
pub struct Reader {
    values: Values,
    problems: Vec<Problem>,
    asked: BTreeSet<String>,
}

impl Reader {
    pub fn new(values: Values) -> Self {
        Self { values, problems: Vec::new(), asked: BTreeSet::new() }
    }

    /// Returns the values in effect, the problems, and the keys that were read.
    pub fn finish(self) -> (Values, Vec<Problem>, BTreeSet<String>) {
        (self.values, self.problems, self.asked)
    }

    pub fn values(&self) -> &Values {
        &self.values
    }

    /// See [`Values::rename_functions`].
    pub fn rename_functions(&mut self, patterns: impl IntoIterator<Item = String>) {
        self.values.rename_functions(patterns);
    }

    /// See [`Values::fill`].
    pub fn fill(&mut self, key: &str, text: &str, origin: Origin) {
        self.values.fill(key, text, origin);
    }

    /// Reads what a reload applies to the running daemon: every key that `read` asks for is marked as live.
    pub fn live<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::take(&mut self.asked);
        let read = read(self);
        self.values.mark_live(&self.asked);
        self.asked.extend(before);
        read
    }

    pub fn origin(&self, key: &str) -> Origin {
        self.values.find(key).map_or(Origin::Default, |entry| entry.origin.clone())
    }

    /// Any text, even empty.
    pub fn text(&mut self, key: &str) -> Option<String> {
        let entry = self.ask(key)?;
        match entry.value {
            Value::Text(text) => Some(text),
            Value::Integer(_) | Value::Boolean(_) | Value::Other(_) => {
                self.refuse(key, "not text", Some("write it in quotes"))
            }
        }
    }

    /// Text. The inner `None` means that it is empty.
    pub fn optional(&mut self, key: &str) -> Option<Option<String>> {
        Some(Some(self.text(key)?).filter(|text| !text.is_empty()))
    }

    /// A whole number in `range`.
    pub fn number(&mut self, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let number = match self.ask(key)?.value {
            Value::Integer(number) => u32::try_from(number).ok(),
            Value::Text(_) | Value::Boolean(_) | Value::Other(_) => {
                return self.refuse(key, "not a whole number", Some("write digits without quotes and units, like 100"));
            }
        };
        let why = format!("must be from {} to {}", range.start(), range.end());
        number.filter(|number| range.contains(number)).or_else(|| self.refuse(key, &why, None))
    }

    pub fn boolean(&mut self, key: &str) -> Option<bool> {
        match self.ask(key)?.value {
            Value::Boolean(boolean) => Some(boolean),
            Value::Text(_) | Value::Integer(_) | Value::Other(_) => {
                self.refuse(key, "neither true nor false", Some("write true or false, without quotes"))
            }
        }
    }

    /// A number of bytes in `range`.
    pub fn size(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let bytes = match self.ask(key)?.value {
            Value::Text(text) => text.parse().ok().map(|ByteSize(bytes)| bytes),
            Value::Integer(bytes) => u64::try_from(bytes).ok(),
            Value::Boolean(_) | Value::Other(_) => None,
        };
        match bytes {
            None => self.refuse(key, "not a size", Some("write it like \"64KiB\", \"512MiB\" or \"10GiB\"")),
            Some(bytes) if bytes < *range.start() => {
                self.refuse(key, &format!("less than {}, the least that works", ByteSize(*range.start())), None)
            }
            Some(bytes) if bytes > *range.end() => {
                self.refuse(key, &format!("more than {}, the most that works", ByteSize(*range.end())), None)
            }
            Some(bytes) => Some(bytes),
        }
    }

    /// A duration. Zero only if `zero` allows it.
    pub fn duration(&mut self, key: &str, zero: Zero) -> Option<Duration> {
        let duration = match self.ask(key)?.value {
            Value::Text(text) => humantime::parse_duration(&text).ok(),
            Value::Integer(_) | Value::Boolean(_) | Value::Other(_) => None,
        };
        match duration {
            None => self.refuse(key, "not a duration", Some("write it like \"500ms\", \"30s\", \"5m\" or \"6h\"")),
            Some(Duration::ZERO) if zero == Zero::Refused => {
                self.refuse(key, "must not be zero", Some("write it like \"500ms\", \"30s\", \"5m\" or \"6h\""))
            }
            Some(duration) if duration > DURATION_MAX => self.refuse(key, "more than ten years", None),
            Some(duration) => Some(duration),
        }
    }

    /// One of `words`.
    pub fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let written = self.text(key)?;
        let known: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        let found = words.iter().find(|(word, _)| *word == written).map(|&(_, meaning)| meaning);
        found.or_else(|| self.refuse(key, &format!("must be {}", known.join(" or ")), None))
    }

    /// An address and a port to listen on.
    pub fn address(&mut self, key: &str) -> Option<SocketAddr> {
        let text = self.text(key)?;
        let port = match key {
            "listen.admin" => 9478,
            _ => 9479,
        };
        let hint = format!("write it like \"127.0.0.1:{port}\" or \"[::1]:{port}\": an IP address, not a name");
        text.parse().ok().or_else(|| self.refuse(key, "not an address and a port", Some(&hint)))
    }

    /// Addresses and ports to listen on, separated by spaces. At least one, and each only once.
    pub fn addresses(&mut self, key: &str) -> Option<Vec<SocketAddr>> {
        let text = self.text(key)?;
        let read: Result<Vec<SocketAddr>, _> = text.split_whitespace().map(str::parse).collect();
        let Some(addresses) = read.ok().filter(|addresses| !addresses.is_empty()) else {
            let hint = "write it like \"127.0.0.1:9477\", or several separated by spaces, like \"127.0.0.1:9477 [::1]:9477\": \
                        an IP address, not a name";
            return self.refuse(key, "not addresses and ports", Some(hint));
        };
        let same = |one: &SocketAddr, other: &SocketAddr| {
            one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
        };
        let twice =
            addresses.iter().enumerate().find(|(at, one)| addresses[..*at].iter().any(|other| same(one, other)));
        match twice {
            Some((_, address)) if address.port() != 0 => {
                self.refuse(key, &format!("names {address} twice"), Some("name it once"))
            }
            Some(_) | None => Some(addresses),
        }
    }

    /// An address and a port. The inner `None` means that the text is empty.
    pub fn optional_address(&mut self, key: &str) -> Option<Option<SocketAddr>> {
        if self.optional(key)?.is_none() { Some(None) } else { self.address(key).map(Some) }
    }

    /// The URL of an endpoint. The inner `None` means that the text is empty.
    pub fn endpoint(&mut self, key: &str) -> Option<Option<String>> {
        let url = self.optional(key)?;
        match url.as_deref().map_or(Ok(()), endpoint::check) {
            Ok(()) => Some(url),
            Err(why) => {
                let hint = Some(format!("write it like \"{}\"", example_of(key)));
                // Leave out the value: it may contain a password.
                let subject = Some(key.to_owned());
                self.problem(Problem { origin: self.origin(key), subject, why: why.to_owned(), hint });
                None
            }
        }
    }

    /// Notes that the value of `key` is refused. Returns `None`, so that callers can return it.
    pub fn refuse<T>(&mut self, key: &str, why: &str, hint: Option<&str>) -> Option<T> {
        self.problem(Problem {
            origin: self.origin(key),
            subject: Some(self.written(key)),
            why: why.to_owned(),
            hint: hint.map(str::to_owned),
        });
        None
    }

    /// Notes that a table is refused, at its first key.
    pub fn refuse_table(&mut self, table: &str, why: &str, hint: &str) {
        self.problem(Problem {
            origin: self.values.origin_of_table(table).cloned().unwrap_or(Origin::Default),
            subject: Some(format!("[{table}]")),
            why: why.to_owned(),
            hint: Some(hint.to_owned()),
        });
    }

    /// Notes that two keys contradict each other, at the one that the user wrote.
    pub fn contradiction(&mut self, one: &str, relation: &str, other: &str, hint: Option<&str>) {
        let at = if self.origin(one) == Origin::Default { other } else { one };
        self.problem(Problem {
            origin: self.origin(at),
            subject: None,
            why: format!("{} {relation} {}", self.written(one), self.written(other)),
            hint: hint.map(str::to_owned),
        });
    }

    /// A key with its value, for messages.
    fn written(&self, key: &str) -> String {
        /// Enough to recognise a value.
        const CHARS_MAX: usize = 80;
        match self.values.find(key).map(|entry| &entry.value) {
            Some(Value::Text(text)) => {
                let text = without_password(text);
                let shown: String = text.chars().take(CHARS_MAX).collect();
                let more = if shown.len() < text.len() { "..." } else { "" };
                format!("{key} = {shown:?}{more}")
            }
            Some(value) => format!("{key} = {value}"),
            None => key.to_owned(),
        }
    }

    fn ask(&mut self, key: &str) -> Option<Entry> {
        self.asked.insert(key.to_owned());
        self.values.find(key).cloned()
    }

    /// Notes a problem that does not belong to a key.
    pub fn note(&mut self, problem: Problem) {
        self.problem(problem);
    }

    fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }
}

/// An example URL for this key.
fn example_of(key: &str) -> &'static str {
    match key.rsplit('.').next() {
        Some("queue_url") => "https://sqs.eu-central-1.amazonaws.com/123456789012/orders-dlq",
        _ if key.starts_with("sqs.") => {
            "https://vpce-1.sqs.eu-central-1.vpce.amazonaws.com\" or \"http://127.0.0.1:9324"
        }
        _ => "https://vpce-1.lambda.eu-central-1.vpce.amazonaws.com\" or \"http://127.0.0.1:9001",
    }
}

/// Whether a duration may be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    Allowed,
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::{Document, layered};
    use crate::config::{Environment, Flags};

    fn reader(file: &str) -> Reader {
        let file = Document { name: "s.toml", text: file };
        let (values, problems) = layered(Some(file), &Environment::default(), &Flags::default());
        assert_eq!(problems, []);
        Reader::new(values)
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(file: &str, read: impl FnOnce(&mut Reader) -> Option<T>, said: &str) {
        let mut reader = reader(file);
        let read = read(&mut reader);
        assert!(read.is_none(), "{read:?}");
        let problems: Vec<String> = reader.finish().1.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].lines().next(), Some(said));
    }

    #[test]
    fn sizes_are_bytes_or_people_s_units() {
        for (written, bytes) in [("'64KiB'", 65_536), ("'10 GiB'", 10 << 30), ("'1.5MB'", 1_500_000), ("4096", 4096)] {
            assert_eq!(
                reader(&format!("outbox.cache = {written}")).size("outbox.cache", 0..=DISK_MAX),
                Some(bytes),
                "{written}"
            );
        }
        let size = |reader: &mut Reader| reader.size("outbox.cache", 1024..=MEMORY_MAX);
        refused("outbox.cache = '10 parsecs'", size, "s.toml:1: outbox.cache = \"10 parsecs\": not a size");
        refused("outbox.cache = -1", size, "s.toml:1: outbox.cache = -1: not a size");
        refused("outbox.cache = ''", size, "s.toml:1: outbox.cache = \"\": not a size");
        refused("outbox.cache = 3", size, "s.toml:1: outbox.cache = 3: less than 1.0 KiB, the least that works");
        refused(
            "outbox.cache = '9EiB'",
            size,
            "s.toml:1: outbox.cache = \"9EiB\": more than 1.0 TiB, the most that works",
        );
    }

    #[test]
    fn durations_have_a_unit() {
        let grace = |reader: &mut Reader| reader.duration("shutdown.grace", Zero::Refused);
        assert_eq!(grace(&mut reader("shutdown.grace = '1m 30s'")), Some(Duration::from_secs(90)));
        assert_eq!(reader("shutdown.grace = '0s'").duration("shutdown.grace", Zero::Allowed), Some(Duration::ZERO));
        refused("shutdown.grace = 25", grace, "s.toml:1: shutdown.grace = 25: not a duration");
        refused("shutdown.grace = '25'", grace, "s.toml:1: shutdown.grace = \"25\": not a duration");
        refused("shutdown.grace = '0s'", grace, "s.toml:1: shutdown.grace = \"0s\": must not be zero");
        refused("shutdown.grace = '11y'", grace, "s.toml:1: shutdown.grace = \"11y\": more than ten years");
    }

    #[test]
    fn numbers_words_and_addresses_say_what_is_allowed() {
        let number = |reader: &mut Reader| reader.number("listen.headers_max", 1..=9);
        refused("listen.headers_max = 10", number, "s.toml:1: listen.headers_max = 10: must be from 1 to 9");
        refused("listen.headers_max = -1", number, "s.toml:1: listen.headers_max = -1: must be from 1 to 9");
        refused("listen.headers_max = '5'", number, "s.toml:1: listen.headers_max = \"5\": not a whole number");
        refused("listen.headers_max = 5.0", number, "s.toml:1: listen.headers_max = a fraction: not a whole number");
        refused(
            "log.format = 'yaml'",
            |reader| reader.word("log.format", &[("text", 1), ("json", 2)]),
            "s.toml:1: log.format = \"yaml\": must be \"text\" or \"json\"",
        );
        refused(
            "listen.admin = 'localhost:1'",
            |reader| reader.address("listen.admin"),
            "s.toml:1: listen.admin = \"localhost:1\": not an address and a port",
        );
        refused(
            "listen.allow_unauthenticated_remote = 'yes'",
            |reader| reader.boolean("listen.allow_unauthenticated_remote"),
            "s.toml:1: listen.allow_unauthenticated_remote = \"yes\": neither true nor false",
        );
        refused("log.level = 3", |reader| reader.text("log.level"), "s.toml:1: log.level = 3: not text");
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated() {
        refused(
            "sqs.endpoint_url = 'http://me:secret@host'",
            |reader| reader.endpoint("sqs.endpoint_url"),
            "s.toml:1: sqs.endpoint_url: a URL with credentials in it",
        );
        refused(
            "listen.admin = 'http://me:secret@host'",
            |reader| reader.address("listen.admin"),
            "s.toml:1: listen.admin = \"http://***@host\": not an address and a port",
        );
    }
}
