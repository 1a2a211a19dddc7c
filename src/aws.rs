//! The only files that name the AWS SDK: one configuration for both clients, SDK retries off.

use std::time::Duration;

pub mod lambda;

pub mod sqs;

/// How to reach one AWS service.
#[derive(Debug, Clone)]
pub struct Settings {
    /// None: from the SDK's own chain (`AWS_REGION`, profile, instance metadata).
    pub region: Option<String>,
    /// None: the region's public endpoint, or what a profile says.
    pub endpoint_url: Option<String>,
    /// The SDK must not look for an endpoint in the environment itself: a variable there names our own ingest listener.
    pub ignore_configured_endpoint_urls: bool,
    pub connect_timeout: Duration,
    /// From the request being sent to its answer.
    pub read_timeout: Duration,
}
