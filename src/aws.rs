//! The only files that name the AWS SDK: one configuration for both clients, SDK retries off.

use std::time::Duration;

pub mod lambda;

pub mod sqs;

/// How to reach one AWS service.
#[derive(Debug, Clone)]
pub struct Settings {
    /// None: from the SDK's own chain (`AWS_REGION`, profile, instance metadata).
    pub region: Option<String>,
    /// None: the region's public endpoint.
    pub endpoint_url: Option<String>,
    pub connect_timeout: Duration,
    /// From the request being sent to its answer.
    pub read_timeout: Duration,
}
