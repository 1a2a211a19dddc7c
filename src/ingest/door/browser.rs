//! Recognises requests of web pages. Callers are not authenticated, and every page in a browser on this machine can send
//! requests to loopback addresses.

use http::Method;
use http::header::{HOST, HeaderName, ORIGIN};
use http::request::Parts as Head;

use crate::http::host::{Authority, Hosts, Unclear};
use crate::ingest::refusal::Refusal;

/// Only browsers set it, and only towards https and loopback (W3C, Fetch Metadata). So `Origin` is checked as well.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses requests of web pages. A page's POST always has an `Origin`. Its GET has none if the page made its own name
/// point here (DNS rebinding). So reads must use a known host name. Clients other than browsers may omit the host.
pub(super) fn check(head: &Head, hosts: &Hosts) -> Result<(), Refusal> {
    if head.headers.contains_key(ORIGIN) || head.headers.contains_key(SITE) {
        return Err(Refusal::FromBrowser);
    }
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    match Authority::of_request(&head.uri, &head.headers) {
        Ok(named) if hosts.contain(&named.host) => Ok(()),
        Ok(named) => Err(Refusal::HostUnknown { host: named.host.to_string() }),
        Err(Unclear::Missing) => Ok(()),
        Err(Unclear::Repeated | Unclear::Malformed | Unclear::Contradicting) => {
            let written = head.headers.get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
            Err(Refusal::HostUnknown { host: written.unwrap_or_default().chars().take(256).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn checked(method: Method, target: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let request = Request::builder().method(method).uri(target);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        check(&request.body(()).unwrap().into_parts().0, &Hosts::parse("sendoff.sendoff.svc").unwrap())
    }

    #[test]
    fn what_only_browsers_send_is_refused_whatever_is_asked() {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::OPTIONS] {
            for site in ["cross-site", "same-site", "same-origin", "none"] {
                let headers = [("host", "127.0.0.1:9477"), ("sec-fetch-site", site)];
                assert_eq!(checked(method.clone(), "/v1/events", &headers), Err(Refusal::FromBrowser));
            }
            for origin in ["null", "http://127.0.0.1:9477"] {
                let headers = [("host", "127.0.0.1:9477"), ("origin", origin)];
                assert_eq!(checked(method.clone(), "/v1/events", &headers), Err(Refusal::FromBrowser));
            }
        }
    }

    #[test]
    fn reading_takes_a_known_name_and_invoking_any() {
        let is_refused = |method: Method, target: &str, host: &str| {
            matches!(checked(method, target, &[("host", host)]), Err(Refusal::HostUnknown { .. }))
        };
        for method in [Method::GET, Method::HEAD] {
            for path in ["/v1/events/x", "/2015-03-31/functions/orders"] {
                assert!(is_refused(method.clone(), path, "evil.example:9477"));
                assert!(is_refused(method.clone(), path, "localhost@evil.example"));
                assert!(is_refused(method.clone(), "http://evil.example/v1/events/x", "evil.example"));
                assert!(is_refused(method.clone(), "http://localhost/v1/events/x", "evil.example"));
                for host in ["localhost:9477", "10.0.0.7", "[::1]:9477", "sendoff.sendoff.svc:9477"] {
                    assert!(!is_refused(method.clone(), path, host), "{host}");
                }
                assert_eq!(checked(method.clone(), path, &[]), Ok(()));
            }
        }
        assert!(!is_refused(Method::POST, "/v1/events", "sendoff.elsewhere:9477"));
    }
}
