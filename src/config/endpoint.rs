//! Checks endpoint URLs, so that sendoff does not deliver to itself.
//!
//! Applications use sendoff through `AWS_ENDPOINT_URL_LAMBDA`. A daemon that inherits this variable (from a shell, pod
//! or systemd drop-in that it shares with the application) would send its events to itself for ever.

use std::net::SocketAddr;

use http::Uri;

use super::Environment;
use crate::hop::points_at;

/// The variable that makes the SDK ignore all other variables about endpoints (AWS SDKs and Tools reference,
/// "Service-specific endpoints").
const IGNORE_ALL: &str = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";

/// The variables that sendoff removed before it started itself again (see [`own_variables`]).
pub const PASSED_OVER: &str = "_SENDOFF_PASSED_OVER";

/// All variables about endpoints that point at one of `own`. The SDK reads the environment itself and would follow them
/// for STS and SSO, too. So sendoff removes them before the SDK starts.
pub fn own_variables(environment: &Environment, own: &[SocketAddr]) -> Vec<String> {
    let is_own = |url: &str| own.iter().any(|own| points_at(url, *own));
    let about_endpoints = environment.iter().filter(|(name, _)| name.starts_with("AWS_ENDPOINT_URL"));
    about_endpoints.filter(|(_, url)| is_own(url)).map(|(name, _)| name.to_owned()).collect()
}

/// What the environment says about one service's endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inherited {
    /// The first variable that names an endpoint other than our own, and its value.
    pub endpoint: Option<(&'static str, String)>,
    /// The variables that were skipped because they name our own address.
    pub ignored: Vec<&'static str>,
}

/// Reads `variables` as the SDK does, the most specific first, but skips those that point at one of `own`.
pub fn inherited(environment: &Environment, variables: &[&'static str], own: &[SocketAddr]) -> Inherited {
    let mut inherited = Inherited::default();
    if environment.get(IGNORE_ALL).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return inherited;
    }
    let passed_over: Vec<&str> = environment.get(PASSED_OVER).unwrap_or_default().split(',').collect();
    for &variable in variables {
        if passed_over.contains(&variable) {
            inherited.ignored.push(variable);
        }
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

/// Checks that `url` can be an endpoint: http or https, a host, and no credentials, because those would end up in logs.
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
    fn every_variable_that_names_ourselves_is_found_and_remembered_over_a_new_start() {
        let ours = "http://127.0.0.1:9477";
        let variables = [
            ("AWS_ENDPOINT_URL", ours),
            ("AWS_ENDPOINT_URL_STS", ours),
            ("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:4566"),
            ("OTHER", ours),
        ];
        let found = own_variables(&Environment::from_pairs(&variables), &[own("127.0.0.1:9477")]);
        assert_eq!(found, ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"]);
        let environment = Environment::from_pairs(&[(PASSED_OVER, &found.join(","))]);
        assert_eq!(inherited(&environment, VARIABLES, &[]).ignored, ["AWS_ENDPOINT_URL"]);
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
