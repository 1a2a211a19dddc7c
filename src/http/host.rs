//! The names that a request uses for its server (`Host`, `:authority`, `Origin`), and which of them a listener answers.
//!
//! A web page can make a name of its own resolve to this machine (DNS rebinding). The browser then treats its requests
//! as same-origin. Only the name in the request shows this, so a listener answers known names only.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Uri};

/// The longest host name in DNS, in characters.
const NAME_CHARS_MAX: usize = 253;

/// A host and its port, as in a URL. Accepts only forms that browsers send: no user, no octal or single-number
/// addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    pub host: Host,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Address(IpAddr),
    /// In lower case, without a trailing dot.
    Name(String),
}

/// Why it is unclear which host a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unclear {
    Missing,
    Repeated,
    Malformed,
    /// `Host` differs from the target (`:authority` in HTTP/2).
    Contradicting,
}

impl Authority {
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']')?;
            let host = Host::Address(address.parse::<Ipv6Addr>().ok()?.into());
            return match rest.strip_prefix(':') {
                Some(port) => Some(Self { host, port: parse_port(port)? }),
                None => rest.is_empty().then_some(Self { host, port: None }),
            };
        }
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        Some(Self { host: Host::parse(host)?, port: parse_port(port)? })
    }

    /// The host that the request names. The target (`:authority` in HTTP/2) and `Host` must agree if both are present.
    pub fn of_request(uri: &Uri, headers: &HeaderMap) -> Result<Self, Unclear> {
        let target = uri.authority().map(|authority| Self::parse(authority.as_str()).ok_or(Unclear::Malformed));
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().map(|host| host.to_str().ok().and_then(Self::parse).ok_or(Unclear::Malformed));
        if hosts.next().is_some() {
            return Err(Unclear::Repeated);
        }
        match (target.transpose()?, host.transpose()?) {
            (Some(target), Some(host)) if target.differs(&host) => Err(Unclear::Contradicting),
            (Some(named), _) | (None, Some(named)) => Ok(named),
            (None, None) => Err(Unclear::Missing),
        }
    }

    fn differs(&self, other: &Self) -> bool {
        // One of them may leave out a port that is the scheme's default.
        let ports_differ = self.port.is_some() && other.port.is_some() && self.port != other.port;
        self.host != other.host || ports_differ
    }

    /// Whether every `Origin` of the request is this server. True if there is none. False for `null`, for a scheme
    /// other than http and https, for another port, and for a malformed value.
    pub fn is_every_origin_of(&self, headers: &HeaderMap) -> bool {
        headers.get_all(ORIGIN).iter().all(|origin| origin.to_str().is_ok_and(|origin| self.is_origin(origin)))
    }

    fn is_origin(&self, origin: &str) -> bool {
        let http = origin.strip_prefix("http://").map(|authority| (authority, 80));
        let https = || origin.strip_prefix("https://").map(|authority| (authority, 443));
        let Some((authority, own_port)) = http.or_else(https) else { return false };
        Self::parse(authority).is_some_and(|origin| {
            origin.host == self.host && origin.port.unwrap_or(own_port) == self.port.unwrap_or(own_port)
        })
    }
}

fn parse_port(text: &str) -> Option<Option<u16>> {
    match text {
        "" => Some(None),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok().map(Some),
        _ => None,
    }
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        is_name(name).then(|| Self::Name(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_label = |label: &str| !label.is_empty() && label.len() <= 63 && label.chars().all(is_part);
    name.len() <= NAME_CHARS_MAX && name.split('.').all(is_label)
}

/// The hosts that a listener answers: IP addresses, `localhost` and names below it, and the listed names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    any: bool,
    listed: Vec<Listed>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Listed {
    Name(String),
    /// A suffix that begins with a dot. Matches every name that ends in it.
    Below(String),
}

impl Hosts {
    /// Answers every host. For a listener that browsers cannot reach, such as a Unix socket.
    pub fn any() -> Self {
        Self { any: true, listed: Vec::new() }
    }

    /// Parses names that are separated by spaces. `*.example.com` stands for every name below `example.com`. The error
    /// is the word that is not a name.
    pub fn parse(text: &str) -> Result<Self, &str> {
        let listed = text.split_whitespace().map(|word| {
            let (below, name) = word.strip_prefix("*.").map_or((false, word), |name| (true, name));
            match Host::parse(name) {
                Some(Host::Name(name)) if below => Ok(Listed::Below(format!(".{name}"))),
                Some(Host::Name(name)) => Ok(Listed::Name(name)),
                // An address needs no entry, but may have one.
                Some(Host::Address(address)) if !below => Ok(Listed::Name(address.to_string())),
                Some(Host::Address(_)) | None => Err(word),
            }
        });
        Ok(Self { any: false, listed: listed.collect::<Result<_, _>>()? })
    }

    /// An address is always accepted, because rebinding needs a name.
    pub fn contain(&self, host: &Host) -> bool {
        let name = match host {
            Host::Address(_) => return true,
            Host::Name(name) => name,
        };
        let is_local = name == "localhost" || name.ends_with(".localhost");
        let is_listed = |listed: &Listed| match listed {
            Listed::Name(listed) => listed == name,
            Listed::Below(end) => name.ends_with(end.as_str()),
        };
        self.any || is_local || self.listed.iter().any(is_listed)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request(target: &str, hosts: &[&str]) -> Result<Authority, Unclear> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        Authority::of_request(&target.parse().unwrap(), &headers)
    }

    #[test]
    fn addresses_and_localhost_are_known_and_no_other_name_in_whatever_disguise() {
        let hosts = Hosts::default();
        let known = [
            "127.0.0.1",
            "127.0.0.1:9478",
            "10.1.2.3:80",
            "[::1]:9478",
            "[::]",
            "[::ffff:127.0.0.1]:9478",
            "[fe80::1]:1",
            "localhost",
            "LOCALHOST:9478",
            "localhost.",
            "orders.localhost:9478",
            "localhost:",
        ];
        for host in known {
            assert!(request("/", &[host]).is_ok_and(|named| hosts.contain(&named.host)), "{host}");
        }
        let unknown = [
            "evil.example",
            "evil.example:9478",
            "evil.example.",
            "127.0.0.1.evil.example",
            "127.0.0.1.nip.io",
            "localhost.evil.example",
            "evillocalhost",
            "xn--e1afmkfd.example",
            "2130706433",
            "0x7f000001",
            "127.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "sendoff",
            "_dns.evil.example",
        ];
        for host in unknown {
            assert!(request("/", &[host]).is_ok_and(|named| !hosts.contain(&named.host)), "{host}");
        }
    }

    #[test]
    fn what_is_no_host_is_malformed() {
        let malformed = [
            "",
            ":9478",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost:x",
            "localhost:99999",
            "localhost:80:80",
            "::1",
            "[::1",
            "[::1]x",
            "[127.0.0.1]",
            "[fe80::1%25eth0]",
            "local host",
            "localhost/x",
            "http://localhost",
            "localhost..",
            ".localhost",
            "localhost,evil.example",
            "localhost#",
            "\u{e9}.example",
        ];
        for host in malformed {
            assert_eq!(request("/", &[host]), Err(Unclear::Malformed), "{host:?}");
        }
        assert_eq!(request("http://user@localhost/", &[]), Err(Unclear::Malformed));
        assert_eq!(request("/", &[&"x".repeat(300)]), Err(Unclear::Malformed));
    }

    #[test]
    fn the_target_and_host_must_agree_and_be_there_once() {
        let localhost = Authority { host: Host::Name("localhost".into()), port: Some(9478) };
        assert_eq!(request("http://localhost:9478/v1/status", &["localhost:9478"]), Ok(localhost.clone()));
        assert_eq!(request("http://localhost:9478/v1/status", &["LocalHost"]), Ok(localhost.clone()));
        assert_eq!(request("http://localhost:9478/v1/status", &[]), Ok(localhost));
        for (target, host) in [
            ("http://localhost:9478/", "evil.example"),
            ("http://evil.example/", "localhost:9478"),
            ("http://localhost:9478/", "localhost:9477"),
            ("http://127.0.0.1/", "localhost"),
        ] {
            assert_eq!(request(target, &[host]), Err(Unclear::Contradicting), "{target} {host}");
        }
        assert_eq!(request("/", &[]), Err(Unclear::Missing));
        assert_eq!(request("/", &["localhost", "localhost"]), Err(Unclear::Repeated));
        assert_eq!(request("http://localhost/", &["localhost", "evil.example"]), Err(Unclear::Repeated));
    }

    #[test]
    fn listed_names_are_known_with_those_below_a_star() {
        let hosts = Hosts::parse("Admin.Example.com.  *.sendoff.svc\t*.cluster.local").unwrap();
        for (host, known) in [
            ("admin.example.com", true),
            ("ADMIN.example.com.", true),
            ("x.admin.example.com", false),
            ("example.com", false),
            ("a.sendoff.svc", true),
            ("a.b.sendoff.svc", true),
            ("sendoff.svc", false),
            ("xsendoff.svc", false),
            ("a.sendoff.svc.evil.example", false),
        ] {
            assert_eq!(hosts.contain(&Host::parse(host).unwrap()), known, "{host}");
        }
        for wrong in ["*", "*.", "http://x.example", "x.example:9478", "a.*.example", "*.127.0.0.1", "x,y"] {
            assert_eq!(Hosts::parse(wrong), Err(wrong), "{wrong}");
        }
        assert_eq!(Hosts::parse(" "), Ok(Hosts::default()));
        assert!(Hosts::any().contain(&Host::parse("evil.example").unwrap()));
    }

    #[test]
    fn an_origin_is_this_server_by_host_and_port_alone() {
        let is_same = |host: &str, origins: &[&str]| {
            let mut headers = HeaderMap::new();
            for origin in origins {
                headers.append(ORIGIN, HeaderValue::from_bytes(origin.as_bytes()).unwrap());
            }
            Authority::parse(host).unwrap().is_every_origin_of(&headers)
        };
        for (host, origin) in [
            ("localhost:9478", "http://localhost:9478"),
            ("localhost:9478", "http://LOCALHOST:9478"),
            ("[::1]:9478", "http://[0:0:0:0:0:0:0:1]:9478"),
            ("admin.example.com", "https://admin.example.com"),
            ("admin.example.com:443", "https://admin.example.com"),
        ] {
            assert!(is_same(host, &[origin]), "{host} {origin}");
        }
        assert!(is_same("localhost:9478", &[]));
        for origin in [
            "null",
            "",
            "https://evil.example",
            "http://localhost",
            "http://localhost:9477",
            "https://localhost",
            "http://127.0.0.1:9478",
            "localhost:9478",
            "file://",
            "chrome-extension://localhost:9478",
            "http://localhost:9478/",
            "http://x@localhost:9478",
            "HTTP://localhost:9478",
            "\u{e9}",
        ] {
            assert!(!is_same("localhost:9478", &[origin]), "{origin}");
        }
        assert!(!is_same("localhost:9478", &["http://localhost:9478", "http://evil.example"]));
    }
}
