//! URLs of the daemon's listeners, and text in them.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::Uri;

use super::{Exit, Failure};

/// The URL of a listener on this machine. A listener on any address is reached by loopback.
pub(super) fn endpoint_of(mut listener: SocketAddr, tls: bool) -> Result<Uri, Failure> {
    if listener.ip().is_unspecified() {
        listener.set_ip(match listener.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{listener}").parse().map_err(|error: http::uri::InvalidUri| Failure::new(Exit::Internal, error))
}

/// The endpoint's URL without a slash at the end.
pub(super) fn base(endpoint: &Uri) -> String {
    endpoint.to_string().trim_end_matches('/').to_owned()
}

/// Percent-encodes everything except the unreserved characters of RFC 3986.
pub(super) fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => write!(encoded, "%{byte:02X}").unwrap_or_default(),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_any_address_is_reached_on_loopback() {
        for (listener, url) in [
            ("0.0.0.0:9477", "http://127.0.0.1:9477/"),
            ("[::]:9477", "http://[::1]:9477/"),
            ("10.0.0.5:1", "http://10.0.0.5:1/"),
        ] {
            assert_eq!(endpoint_of(listener.parse().unwrap(), false).unwrap().to_string(), url);
        }
        assert_eq!(endpoint_of("[::]:1".parse().unwrap(), true).unwrap().to_string(), "https://[::1]:1/");
    }
}
