//! Reads the variables about networks and profiles that all AWS SDKs read.

use std::path::PathBuf;

use http::Uri;

use super::Environment;
use super::problem::{Origin, Problem};
use super::read::Reader;
use crate::aws::outside::Outside;

/// Reads the variables about proxies and certificates, and the paths of the profile files. The upper-case variable wins
/// over the lower-case one.
pub fn read(r: &mut Reader, environment: &Environment) -> Outside {
    let either =
        |name: &str| environment.get(name).or_else(|| environment.get(&name.to_lowercase())).map(str::to_owned);
    let file = |variable: &str, name: &str| {
        let of_home = || Some(PathBuf::from(environment.get("HOME")?).join(".aws").join(name));
        environment.get(variable).map(PathBuf::from).or_else(of_home)
    };
    let outside = Outside {
        http_proxy: either("HTTP_PROXY"),
        https_proxy: either("HTTPS_PROXY"),
        all_proxy: either("ALL_PROXY"),
        no_proxy: either("NO_PROXY"),
        machine_bundle: environment.get("SSL_CERT_FILE").map(PathBuf::from),
        ca_bundle: environment.get("AWS_CA_BUNDLE").map(PathBuf::from),
        config_file: file("AWS_CONFIG_FILE", "config"),
        credentials_file: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    };
    let proxies =
        [("HTTP_PROXY", &outside.http_proxy), ("HTTPS_PROXY", &outside.https_proxy), ("ALL_PROXY", &outside.all_proxy)];
    for (name, url) in proxies {
        if url.as_ref().is_some_and(|url| !is_proxy(url)) {
            // Leave out the value: it may contain a password.
            r.note(Problem {
                origin: Origin::Environment(name.to_owned()),
                subject: None,
                why: "not the URL of a proxy that sendoff can use".to_owned(),
                hint: Some(
                    "write it like \"http://proxy.example:3128\", also https://, with user:password@ if need be"
                        .to_owned(),
                ),
            });
        }
    }
    outside
}

/// Whether a URL can name a proxy. Without a scheme it means plain HTTP.
fn is_proxy(url: &str) -> bool {
    let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    whole.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_http_with_a_host() {
        for url in ["http://proxy:3128", "https://me:secret@proxy", "proxy:3128", "10.0.0.1:3128"] {
            assert!(is_proxy(url), "{url}");
        }
        for url in ["socks5://proxy:1080", "http://", "a b", "ftp://proxy", ":3128"] {
            assert!(!is_proxy(url), "{url}");
        }
    }
}
