//! The only files that name the AWS SDK: one configuration for both clients, SDK retries off.
//!
//! In: calls and messages as our own types. Out: replies and shipments as our own types; no SDK error leaves.
//! Holds: one call is one request on the wire (retries are the outbox's, where they are counted and survive a crash).
//! Limits: time-outs for connecting, reading and the whole call. Idle connections are closed before a load balancer
//! would close them.
//! Fails: at the start, if neither a region nor an endpoint is known. Missing credentials and unreachable services are
//! replies, not errors.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::{AppName, BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_lambda::config::IdentityCache;
use aws_smithy_runtime_api::client::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::origin::Origin;
use aws_types::os_shim_internal::{Env, Fs};
use aws_types::service_config::ServiceConfigKey;

use crate::clock::Clock;
use crate::hop::{self, Hop};
use crate::visible::without_password;
use outside::Outside;
use sign::Keeper;
use wire::Wire;

mod answer;

pub mod outside;

pub mod lambda;

pub mod direct;

mod sign;

pub mod passthrough;

pub mod sqs;

pub mod configured;

mod regional;

pub mod rds;

pub mod probe;

mod wire;

#[cfg(test)]
mod testing;

/// The time-out for fetching credentials. After it the call fails as unsent.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(15);

/// The region to sign for if only an endpoint is configured: emulators accept any.
const REGION_OF_AN_ENDPOINT: &str = "us-east-1";

/// How to reach one AWS service.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `None` means the SDK's own chain: `AWS_REGION`, profile, instance metadata.
    pub region: Option<String>,
    /// `None` means the endpoint in environment or profile, else the region's public endpoint.
    pub endpoint_url: Option<String>,
    /// Ignore `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_LAMBDA`, and use the region's public endpoint if `endpoint_url` is
    /// not set. On hosts where these variables send applications to sendoff, sendoff must not call itself.
    pub ignore_configured_endpoint_urls: bool,
    pub connect_timeout: Duration,
    /// The time from sending the request to its answer.
    pub read_timeout: Duration,
}

/// Why a client cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no AWS region for {service}: set {service}.region, {service}.endpoint_url or AWS_REGION")]
    NoRegion { service: &'static str },
    #[error("{service}.region is {region:?}, which is not a region's name")]
    Region { service: &'static str, region: String },
    #[error(
        "{service}.endpoint_url is {url:?}: it must be http:// or https:// with a host, and nothing after the path"
    )]
    EndpointUrl { service: &'static str, url: String },
    #[error(
        "{service} is reached by https, and this machine has no CA certificates to know it by: install them (Debian: \
         ca-certificates), or name a file of them in SSL_CERT_FILE"
    )]
    NoCertificates { service: &'static str },
    #[error(
        "{service}.endpoint_url is {url:?}, which is sendoff's own address: it would deliver to itself; leave it empty to \
         use AWS"
    )]
    OwnAddress { service: &'static str, url: String },
    #[error("{service} cannot be reached as configured: {why}")]
    Endpoint { service: &'static str, why: String },
    #[error(
        "{named_by} names {path:?}, which cannot be used: {why}; give it a file of PEM certificates that this user can read, or \
         leave it out to trust the machine's"
    )]
    CaBundle { named_by: &'static str, path: String, why: String },
    #[error("{named_by} is {path:?}, which cannot be used: {why}")]
    File { named_by: &'static str, path: String, why: String },
}

/// How this process is recognised: its mark and its own addresses.
#[derive(Debug, Clone)]
pub struct Own {
    /// The mark on every call to Lambda.
    pub hop: Hop,
    /// The addresses on which this process takes requests. No AWS service can be at one of them.
    pub addresses: Vec<SocketAddr>,
}

impl Own {
    /// A process that takes no requests.
    pub fn nobody() -> Self {
        Self { hop: Hop::nameless(), addresses: Vec::new() }
    }

    fn is_at(&self, url: &str) -> bool {
        self.addresses.iter().any(|own| hop::points_at(url, *own))
    }
}

/// Whether instance metadata may be asked for a region that nothing else names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AskForRegion {
    Yes,
    No,
}

/// What both clients share: credentials and their cache, connections, and the settings of environment and profile.
#[derive(Debug, Clone)]
pub struct Shared {
    config: SdkConfig,
    own: Own,
    wire: Wire,
    credentials: Keeper,
}

impl Shared {
    /// Reads environment, profile and, unless `region` is given, instance metadata. Takes seconds if a metadata
    /// service does not answer. Fails only if certificates cannot be read. Credentials may appear later.
    pub async fn load(region: Option<&str>, outside: &Outside, own: Own, clock: Clock) -> Result<Self, Error> {
        Self::read(region, outside, own, clock, AskForRegion::Yes).await
    }

    /// The same from files and variables alone: nobody is asked for the region. For a check.
    pub async fn without_asking(
        region: Option<&str>,
        outside: &Outside,
        own: Own,
        clock: Clock,
    ) -> Result<Self, Error> {
        Self::read(region, outside, own, clock, AskForRegion::No).await
    }

    async fn read(
        region: Option<&str>,
        outside: &Outside,
        own: Own,
        clock: Clock,
        ask: AskForRegion,
    ) -> Result<Self, Error> {
        outside.check_files()?;
        let mut files = EnvConfigFiles::default();
        if let Some((config, credentials, dropped)) = outside.cleaned(&own) {
            for url in dropped {
                let url = &*without_password(&url);
                tracing::warn!(url, "ignoring endpoint_url of the AWS profile: it is this daemon's own address");
            }
            files = EnvConfigFiles::builder()
                .with_contents(EnvConfigFileKind::Config, config)
                .with_contents(EnvConfigFileKind::Credentials, credentials)
                .build();
        }
        let profile = aws_config::profile::load(&Fs::real(), &Env::real(), &files, None).await;
        let profile = profile.inspect_err(|error| {
            let why = words_of(error);
            tracing::warn!(why, "ignoring the AWS profile: it cannot be read");
        });
        let profile = profile.ok();
        let wire = Wire::new(outside, outside.authorities(profile.as_ref())?);
        let mut loader = loader(&wire).profile_files(files);
        let of_profile = || profile.as_ref().and_then(|profile| profile.get("region")).unwrap_or(REGION_OF_AN_ENDPOINT);
        let region = match ask {
            AskForRegion::Yes => region,
            AskForRegion::No => Some(region.unwrap_or_else(of_profile)),
        };
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        Ok(Self::with(loader.load().await, wire, own, clock))
    }

    fn with(config: SdkConfig, wire: Wire, own: Own, clock: Clock) -> Self {
        let credentials = Keeper::new(config.credentials_provider(), clock);
        let config = config
            .to_builder()
            .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
            .identity_cache(IdentityCache::no_cache())
            .build();
        Self { config, own, wire, credentials }
    }

    /// The mark on every call.
    pub fn hop(&self) -> Hop {
        self.own.hop.clone()
    }

    /// The region found by the SDK's chain. An empty variable counts as unset; the SDK would use it as a region's name.
    pub fn region(&self) -> Option<&str> {
        self.config.region().map(Region::as_ref).filter(|region| !region.is_empty())
    }

    /// Region and endpoint of one service. Checks both, so that no later call fails because of them.
    fn place(&self, service: &'static str, settings: &Settings) -> Result<Place, Error> {
        if let Some(url) = &settings.endpoint_url
            && !is_endpoint_url(url)
        {
            return Err(Error::EndpointUrl { service, url: url.clone() });
        }
        if let Some(url) = settings.endpoint_url.as_ref().filter(|url| self.own.is_at(url)) {
            return Err(Error::OwnAddress { service, url: url.clone() });
        }
        let region = settings.region.as_deref().or(self.region());
        if let Some(region) = region.filter(|region| !is_region(region)) {
            return Err(Error::Region { service, region: region.to_owned() });
        }
        let endpoint_url = match &settings.endpoint_url {
            Some(url) => Some(url.clone()),
            None if settings.ignore_configured_endpoint_urls => None,
            None => self.configured_endpoint(service).filter(|url| {
                let own = self.own.is_at(url);
                if own {
                    tracing::warn!(
                        service,
                        url = &*without_password(url),
                        "ignoring endpoint_url of the AWS profile: it is this daemon's own address"
                    );
                }
                !own
            }),
        };
        let otherwise = endpoint_url.is_some().then_some(REGION_OF_AN_ENDPOINT);
        let region = region.or(otherwise).ok_or(Error::NoRegion { service })?;
        if !endpoint_url.as_deref().is_some_and(is_plain) && !self.wire.has_authorities() {
            return Err(Error::NoCertificates { service });
        }
        Ok(Place { region: region.to_owned(), endpoint_url, timeouts: timeouts(settings) })
    }

    /// The endpoint in environment or profile for this service, else for all services, as the SDK's clients read it.
    fn configured_endpoint(&self, service: &'static str) -> Option<String> {
        let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url");
        let of_service = self.config.service_config().zip(key.build().ok()).and_then(|(all, key)| all.load_config(key));
        of_service.or_else(|| self.config.endpoint_url().map(str::to_owned))
    }

    /// The client configuration for a service at `place`, without retries: one call is one request.
    fn config(&self, place: Place) -> SdkConfig {
        let mut config = self
            .config
            .to_builder()
            .region(Region::new(place.region))
            .timeout_config(place.timeouts)
            .retry_config(RetryConfig::disabled());
        config.set_endpoint_url(place.endpoint_url);
        // Otherwise a client would look for the service's endpoint in environment and profile again.
        config.insert_origin("endpoint_url", Origin::shared_config());
        config.build()
    }
}

/// Where one service is, and how long to wait for it.
#[derive(Debug, Clone)]
struct Place {
    region: String,
    /// `None` means the region's public endpoint.
    endpoint_url: Option<String>,
    timeouts: TimeoutConfig,
}

/// How far a call got. Distinguishes a request that was certainly not sent from one that Lambda may have accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Serialising, or waiting for credentials.
    Preparing,
    Signing,
    /// The connector has the request. It connects first.
    Sending,
}

fn loader(wire: &Wire) -> ConfigLoader {
    aws_config::defaults(BehaviorVersion::v2026_01_12())
        .app_name(AppName::new("sendoff").unwrap_or_else(|_| unreachable!("a literal of letters")))
        .http_client(wire.http_client())
        // Otherwise the SDK reads `retry_mode` and refuses to start for values that only other SDKs know.
        .retry_config(RetryConfig::standard())
        // Bodies are in memory, at most 1 MiB, and covered by the time-outs of a call.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
}

/// The time-out of the whole attempt catches an answer whose body does not end. It covers credentials, connecting, and
/// the answer's head and body.
fn timeouts(settings: &Settings) -> TimeoutConfig {
    let whole = CREDENTIALS_TIMEOUT + settings.connect_timeout + settings.read_timeout.saturating_mul(2);
    TimeoutConfig::builder()
        .connect_timeout(settings.connect_timeout)
        .read_timeout(settings.read_timeout)
        .operation_attempt_timeout(whole)
        .build()
}

/// Whether the text is a DNS label. A region becomes one in an endpoint's host name.
fn is_region(region: &str) -> bool {
    (1..=63).contains(&region.len())
        && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !region.starts_with('-')
        && !region.ends_with('-')
}

fn is_endpoint_url(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
            && url.query().is_none()
    })
}

/// Whether the endpoint is plain HTTP.
fn is_plain(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|url| url.scheme_str() == Some("http"))
}

/// The error and its causes in one line, without repetitions.
fn words_of(error: &(dyn StdError + 'static)) -> String {
    let mut words = error.to_string();
    for cause in causes(error).skip(1) {
        let cause = cause.to_string();
        if !words.contains(&cause) {
            words.push_str(": ");
            words.push_str(&cause);
        }
    }
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The error and its causes, outermost first.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            region: None,
            endpoint_url: None,
            ignore_configured_endpoint_urls: true,
            connect_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(2),
        }
    }

    fn without_region() -> Shared {
        testing::with(SdkConfig::builder().build())
    }

    #[test]
    fn only_neither_region_nor_endpoint_is_an_error() {
        let shared = without_region();
        let error = shared.place("lambda", &settings()).unwrap_err();
        assert_eq!(error, Error::NoRegion { service: "lambda" });
        assert!(error.to_string().contains("AWS_REGION"), "{error}");
        let region = Settings { region: Some("eu-central-1".into()), ..settings() };
        assert_eq!(shared.place("lambda", &region).unwrap().region, "eu-central-1");
        let endpoint = Settings { endpoint_url: Some("http://127.0.0.1:9001".into()), ..settings() };
        assert_eq!(shared.place("sqs", &endpoint).unwrap().region, REGION_OF_AN_ENDPOINT);
        let empty = testing::with(SdkConfig::builder().region(Region::from_static("")).build());
        assert_eq!(empty.place("lambda", &settings()).unwrap_err(), error);
    }

    #[test]
    fn an_endpoint_of_the_environment_counts_only_where_it_is_not_ignored() {
        let shared = testing::with(SdkConfig::builder().endpoint_url("http://127.0.0.1:9477").build());
        assert_eq!(shared.place("lambda", &settings()).unwrap_err(), Error::NoRegion { service: "lambda" });
        let heeded = Settings { ignore_configured_endpoint_urls: false, ..settings() };
        assert_eq!(shared.place("lambda", &heeded).unwrap().region, REGION_OF_AN_ENDPOINT);
    }

    #[test]
    fn what_no_call_could_use_is_found_at_the_start() {
        for url in ["127.0.0.1:9001", "ftp://host", "http://", "/path", "http://host/?q=1", ""] {
            let settings = Settings { endpoint_url: Some(url.into()), ..settings() };
            assert!(matches!(without_region().place("sqs", &settings), Err(Error::EndpointUrl { .. })), "{url}");
        }
        for region in ["", "EU-central-1", "eu.central", "-eu", "a/b", &"x".repeat(64)] {
            let settings = Settings { region: Some(region.into()), ..settings() };
            assert!(matches!(without_region().place("sqs", &settings), Err(Error::Region { .. })), "{region}");
        }
    }

    #[test]
    fn the_whole_attempt_outlasts_its_parts() {
        let timeouts = timeouts(&settings());
        assert_eq!(timeouts.connect_timeout(), Some(Duration::from_secs(1)));
        assert_eq!(timeouts.read_timeout(), Some(Duration::from_secs(2)));
        assert_eq!(timeouts.operation_attempt_timeout(), Some(Duration::from_secs(20)));
    }
}
