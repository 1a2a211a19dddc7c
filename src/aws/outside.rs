//! Settings of the environment and the profile for connections to AWS: proxies, trusted certificates, profile files.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aws_config::profile::ProfileSet;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Error, Own};
use crate::readable;
use crate::visible::without_password;

/// Profiles are short. A larger file is not a profile.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The certificates of a whole machine have about 250 KiB.
const BUNDLE_BYTES_MAX: u64 = 16 << 20;

/// From the proxy variables that every AWS SDK reads.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Outside {
    pub http_proxy: Option<String>,
    pub https_proxy: Option<String>,
    pub all_proxy: Option<String>,
    pub no_proxy: Option<String>,
    /// `SSL_CERT_FILE`: the machine's certificates.
    pub machine_bundle: Option<PathBuf>,
    /// `AWS_CA_BUNDLE`.
    pub ca_bundle: Option<PathBuf>,
    /// The configuration file of the profiles, if a home directory is known.
    pub config_file: Option<PathBuf>,
    /// The credentials file of the profiles.
    pub credentials_file: Option<PathBuf>,
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").field("way", &self.in_words()).finish_non_exhaustive()
    }
}

impl Outside {
    /// A description for people, without passwords. `None` if nothing is set.
    pub fn in_words(&self) -> Vec<String> {
        self.named().into_iter().map(|(name, value)| format!("{name} {value}")).collect()
    }

    /// The variables that are set and what they say, without passwords.
    pub fn named(&self) -> Vec<(&'static str, String)> {
        let proxy = |url: &Option<String>| url.as_deref().map(|url| without_password(url).into_owned());
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let all = [
            ("HTTP_PROXY", proxy(&self.http_proxy)),
            ("HTTPS_PROXY", proxy(&self.https_proxy)),
            ("ALL_PROXY", proxy(&self.all_proxy)),
            ("NO_PROXY", self.no_proxy.clone()),
            ("AWS_CA_BUNDLE", path(&self.ca_bundle)),
            ("SSL_CERT_FILE", path(&self.machine_bundle)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// That the files which libraries read by themselves can be read without waiting. A missing file is fine, and so is one that
    /// this user may not read: the daemon then goes without it.
    pub(super) fn check_files(&self) -> Result<(), Error> {
        let files = [
            ("AWS_CONFIG_FILE", &self.config_file, FILE_BYTES_MAX),
            ("AWS_SHARED_CREDENTIALS_FILE", &self.credentials_file, FILE_BYTES_MAX),
            ("SSL_CERT_FILE", &self.machine_bundle, BUNDLE_BYTES_MAX),
        ];
        for (named_by, path, bytes_max) in files {
            let Some(path) = path else { continue };
            match readable::read(path, bytes_max) {
                Err(error) if error.kind() == std::io::ErrorKind::Other => {
                    return Err(Error::File { named_by, path: path.display().to_string(), why: error.to_string() });
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// The only certificates to trust: those in `AWS_CA_BUNDLE`, else in the profile's `ca_bundle`.
    pub(super) fn authorities(
        &self,
        profile: Option<&ProfileSet>,
    ) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
        let of_profile = profile.and_then(|profile| profile.get("ca_bundle")).map(PathBuf::from);
        let named = [("AWS_CA_BUNDLE", self.ca_bundle.clone()), ("ca_bundle of the AWS profile", of_profile)];
        let Some((source, path)) = named.into_iter().find_map(|(source, path)| Some((source, path?))) else {
            return Ok(None);
        };
        let unusable = |why: String| Error::CaBundle { named_by: source, path: path.display().to_string(), why };
        let pem = readable::read(&path, BUNDLE_BYTES_MAX).map_err(|error| unusable(error.to_string()))?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let found = found.map_err(|error| unusable(format!("not PEM: {error:?}")))?;
        if found.is_empty() { Err(unusable("it holds no certificate in PEM".to_owned())) } else { Ok(Some(found)) }
    }

    /// Both files without endpoints that are our own listeners, and these endpoints. `None` if there are no such endpoints.
    /// They are meant for applications on this host, but the SDK would use them for STS and SSO as well.
    pub(super) fn cleaned(&self, own: &Own) -> Option<(String, String, Vec<String>)> {
        let read = |path: &Option<PathBuf>| -> String {
            let text = path.as_deref().map(|path: &Path| readable::read_text(path, FILE_BYTES_MAX));
            text.and_then(Result::ok).unwrap_or_default()
        };
        let mut dropped = Vec::new();
        let mut clean = |text: String| -> String {
            let lines = text.lines().filter(|line| match endpoint_in(line) {
                Some(url) if own.is_at(url) => {
                    dropped.push(url.to_owned());
                    false
                }
                Some(_) | None => true,
            });
            lines.flat_map(|line| [line, "\n"]).collect()
        };
        let (config, credentials) = (clean(read(&self.config_file)), clean(read(&self.credentials_file)));
        (!dropped.is_empty()).then_some((config, credentials, dropped))
    }
}

/// The value of a line `endpoint_url = URL`.
fn endpoint_in(line: &str) -> Option<&str> {
    let (name, value) = line.split_once('=')?;
    let value = value.split([' ', '\t']).find(|word| !word.is_empty())?;
    name.trim().eq_ignore_ascii_case("endpoint_url").then_some(value)
}

/// Whether a host is this machine, or a local source of credentials (instance metadata, ECS, EKS).
pub(super) fn is_near(host: &str) -> bool {
    const EKS_AND_EC2_IPV6: [u16; 2] = [0xfd00, 0x0ec2];
    let name = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    match name.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unspecified() || ip.segments()[..2] == EKS_AND_EC2_IPV6,
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::Hop;

    #[test]
    fn a_proxys_password_is_never_shown() {
        for url in ["http://me:secret@proxy:3128", "me:secret@proxy:3128", "http://me:se@cret@proxy:3128/"] {
            let outside = Outside { https_proxy: Some(url.to_owned()), ..Outside::default() };
            let said = format!("{outside:?}");
            assert!(said.contains("proxy:3128") && !said.contains("cret") && !said.contains("me:"), "{said}");
        }
    }

    #[test]
    fn what_is_near_needs_no_proxy() {
        for host in
            ["127.0.0.1", "localhost", "a.localhost", "[::1]", "169.254.169.254", "169.254.170.2", "[fd00:ec2::254]"]
        {
            assert!(is_near(host), "{host}");
        }
        for host in ["lambda.eu-central-1.amazonaws.com", "10.0.0.1", "[fd01::1]", "localhost.example"] {
            assert!(!is_near(host), "{host}");
        }
    }

    #[test]
    fn endpoints_of_profiles_that_are_our_own_are_taken_out_and_no_others() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("config");
        let text = "[default]\nendpoint_url=http://127.0.0.1:9477\nregion = eu-central-1\nservices = s\n[services s]\nlambda =\n  \
                    endpoint_url = http://localhost:9477 ; ours\nsqs =\n  endpoint_url = http://127.0.0.1:4566\n";
        std::fs::write(&path, text).unwrap();
        let outside = Outside { config_file: Some(path), ..Outside::default() };
        let own = Own { hop: Hop::nameless(), addresses: vec!["127.0.0.1:9477".parse().unwrap()] };
        let (config, credentials, dropped) = outside.cleaned(&own).unwrap();
        assert_eq!(dropped, ["http://127.0.0.1:9477", "http://localhost:9477"]);
        assert!(!config.contains("9477") && config.contains("4566") && config.contains("region"), "{config}");
        assert_eq!(credentials, "");
        let elsewhere = Own { addresses: vec!["127.0.0.1:1".parse().unwrap()], ..own };
        assert_eq!(outside.cleaned(&elsewhere), None);
    }

    #[test]
    fn a_bundle_that_cannot_be_read_is_named_with_its_source() {
        let scratch = tempfile::tempdir().unwrap();
        let empty = scratch.path().join("empty.pem");
        std::fs::write(&empty, "nothing\n").unwrap();
        for path in [scratch.path().join("missing.pem"), empty] {
            let outside = Outside { ca_bundle: Some(path.clone()), ..Outside::default() };
            let error = outside.authorities(None).unwrap_err().to_string();
            assert!(error.contains("AWS_CA_BUNDLE") && error.contains(&path.display().to_string()), "{error}");
        }
    }
}
