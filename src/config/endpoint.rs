//! Whose address an endpoint URL is: sendoff's own must not be where sendoff delivers to.
//!
//! An application is pointed at sendoff by `AWS_ENDPOINT_URL_LAMBDA`. A daemon that inherits this variable (one shell,
//! one pod, one systemd drop-in for both) would hand its events to itself for ever.

use std::net::{IpAddr, SocketAddr};

use http::Uri;

use super::Environment;

/// The variable that makes the SDK ignore all others about endpoints (AWS SDKs and Tools reference, "Service-specific
/// endpoints").
const IGNORE_ALL: &str = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";

/// What the environment says of one service's endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inherited {
    /// The first variable that names an endpoint which is not our own, and its value.
    pub endpoint: Option<(&'static str, String)>,
    /// The variables that were passed over, because they name our own address.
    pub ignored: Vec<&'static str>,
}

/// Reads `variables`, the most specific first, as the SDK would, but passes over those that point at one of `own`.
pub fn inherited(environment: &Environment, variables: &[&'static str], own: &[SocketAddr]) -> Inherited {
    let mut inherited = Inherited::default();
    if environment.get(IGNORE_ALL).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return inherited;
    }
    for &variable in variables {
        let Some(url) = environment.get(variable) else { continue };
        if own.iter().any(|own| points_at(url, *own)) {
            inherited.ignored.push(variable);
        } else {
            inherited.endpoint = Some((variable, url.to_owned()));
            break;
        }
    }
    inherited
}

/// Whether a request to `url` would arrive at our listener `own`. A listener on port 0 has no address yet: never.
pub fn points_at(url: &str, own: SocketAddr) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let Some(host) = uri.host() else { return false };
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    own.port() != 0 && port == own.port() && is_host_of(host, own.ip().to_canonical())
}

fn is_host_of(host: &str, own: IpAddr) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|ip| ip.to_canonical());
    let this_machine = match address {
        // To connect to "any address" is to connect to this machine.
        Ok(address) => address.is_loopback() || address.is_unspecified(),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    };
    address == Ok(own) || (this_machine && (own.is_loopback() || own.is_unspecified()))
}

/// Checks that `url` can be an endpoint: http or https, a host, and no credentials that would end up in logs.
pub(super) fn check(url: &str) -> Result<(), &'static str> {
    let uri = url.parse::<Uri>().map_err(|_| "not a URL")?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("not an http:// or https:// URL");
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err("a URL with credentials in it"),
        Some(authority) if !authority.host().is_empty() => Ok(()),
        Some(_) | None => Err("a URL without a host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLES: &[&str] = &["AWS_ENDPOINT_URL_LAMBDA", "AWS_ENDPOINT_URL"];

    fn own(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    #[test]
    fn every_way_to_write_our_own_address_is_seen_through() {
        for (url, address, points) in [
            ("http://127.0.0.1:9477", "127.0.0.1:9477", true),
            ("http://127.0.0.1:9477/prefix", "127.0.0.1:9477", true),
            ("http://127.9.9.9:9477", "127.0.0.1:9477", true),
            ("http://LOCALHOST:9477", "127.0.0.1:9477", true),
            ("http://localhost.:9477", "127.0.0.1:9477", true),
            ("http://sendoff.localhost:9477", "127.0.0.1:9477", true),
            ("http://[::1]:9477/", "127.0.0.1:9477", true),
            ("http://[::ffff:127.0.0.1]:9477/", "127.0.0.1:9477", true),
            ("http://0.0.0.0:9477", "127.0.0.1:9477", true),
            ("http://localhost:9477", "[::1]:9477", true),
            ("http://localhost:9477", "0.0.0.0:9477", true),
            ("http://10.0.0.5:9477", "10.0.0.5:9477", true),
            ("http://localhost", "127.0.0.1:80", true),
            ("https://localhost", "127.0.0.1:443", true),
            ("http://127.0.0.1:9478", "127.0.0.1:9477", false),
            ("https://localhost", "127.0.0.1:80", false),
            ("http://localhost:9477", "10.0.0.5:9477", false),
            ("http://10.0.0.6:9477", "10.0.0.5:9477", false),
            ("http://localhost.example:9477", "127.0.0.1:9477", false),
            ("http://lambda.eu-central-1.amazonaws.com", "127.0.0.1:9477", false),
            ("http://localhost:0", "127.0.0.1:0", false),
            ("not a url", "127.0.0.1:9477", false),
        ] {
            assert_eq!(points_at(url, own(address)), points, "{url} and {address}");
        }
    }

    #[test]
    fn an_inherited_variable_that_names_ourselves_is_passed_over_for_the_next() {
        let ours = ("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:9477");
        let emulator = ("AWS_ENDPOINT_URL", "http://127.0.0.1:4566");
        let read = |variables: &[(&str, &str)]| {
            inherited(&Environment::from_pairs(variables), VARIABLES, &[own("127.0.0.1:9477")])
        };
        assert_eq!(read(&[]), Inherited::default());
        assert_eq!(read(&[ours]), Inherited { endpoint: None, ignored: vec![ours.0] });
        assert_eq!(
            read(&[ours, emulator]),
            Inherited { endpoint: Some((emulator.0, emulator.1.to_owned())), ignored: vec![ours.0] }
        );
        assert_eq!(
            read(&[(ours.0, "http://127.0.0.1:9001"), emulator]).endpoint,
            Some((ours.0, "http://127.0.0.1:9001".to_owned()))
        );
        assert_eq!(read(&[emulator, (IGNORE_ALL, "True")]), Inherited::default());
    }

    #[test]
    fn an_endpoint_is_http_with_a_host_and_without_credentials() {
        assert_eq!(check("http://127.0.0.1:9001"), Ok(()));
        assert_eq!(check("https://vpce-1.lambda.eu-central-1.vpce.amazonaws.com"), Ok(()));
        assert_eq!(check("ftp://host"), Err("not an http:// or https:// URL"));
        assert_eq!(check("localhost:9001"), Err("not an http:// or https:// URL"));
        assert_eq!(check("/only/a/path"), Err("not an http:// or https:// URL"));
        assert_eq!(check("http://"), Err("not a URL"));
        assert_eq!(check("http://user:secret@host"), Err("a URL with credentials in it"));
    }
}
