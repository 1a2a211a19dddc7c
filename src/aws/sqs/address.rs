//! The address of a queue, from its URL or its ARN. Pure.

use super::super::is_region;
use crate::event::name::is_account_id;

/// A queue's URL, and its region if the URL or ARN names one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) url: String,
    pub(super) region: Option<String>,
    /// The host of a URL if it is not a region's public endpoint, such as a VPC endpoint or an emulator. The SDK would call
    /// the public endpoint.
    pub(super) endpoint: Option<String>,
}

impl Address {
    /// Parses a URL or an ARN. A configured `endpoint` takes precedence over the host of a URL, and is the base of the URL
    /// made from an ARN, as emulators expect it.
    pub(super) fn of(queue: &str, endpoint: Option<&str>) -> Self {
        let Some(arn) = Arn::parse(queue) else {
            let endpoint = own_endpoint(queue).filter(|_| endpoint.is_none());
            return Self { url: queue.to_owned(), region: region_of(queue).map(str::to_owned), endpoint };
        };
        let Arn { partition, region, account_id, name } = arn;
        let url = match endpoint {
            Some(endpoint) => format!("{}/{account_id}/{name}", endpoint.trim_end_matches('/')),
            None => format!("https://sqs.{region}.{}/{account_id}/{name}", domain_of(partition)),
        };
        Self { url, region: Some(region.to_owned()), endpoint: None }
    }
}

/// Whether `text` is the ARN of a queue.
pub fn is_queue_arn(text: &str) -> bool {
    Arn::parse(text).is_some()
}

struct Arn<'a> {
    partition: &'a str,
    region: &'a str,
    account_id: &'a str,
    name: &'a str,
}

impl<'a> Arn<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "sqs", region, account_id, name] = parts[..] else { return None };
        // A queue's name: at most 80 letters, digits, hyphens and underscores, `.fifo` among them.
        let stem = name.strip_suffix(".fifo").unwrap_or(name);
        let is_name = (1..=80).contains(&name.len())
            && !stem.is_empty()
            && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (!partition.is_empty() && is_region(region) && is_account_id(account_id) && is_name).then_some(Self {
            partition,
            region,
            account_id,
            name,
        })
    }
}

/// The domain of a partition's public endpoints (AWS SDKs, `partitions.json`).
fn domain_of(partition: &str) -> &'static str {
    match partition {
        "aws-cn" => "amazonaws.com.cn",
        "aws-eusc" => "amazonaws.eu",
        "aws-iso" => "c2s.ic.gov",
        "aws-iso-b" => "sc2s.sgov.gov",
        "aws-iso-e" => "cloud.adc-e.uk",
        "aws-iso-f" => "csp.hci.ic.gov",
        _ => "amazonaws.com",
    }
}

/// Scheme and host of a URL, unless this is the public endpoint that the SDK derives from the region.
fn own_endpoint(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next()?;
    let is_public = match host.split_once('.') {
        Some(("sqs" | "queue", rest)) => rest.ends_with("amazonaws.com") || rest.ends_with("amazonaws.com.cn"),
        Some((_, rest)) => rest == "queue.amazonaws.com",
        None => false,
    };
    (!is_public).then(|| format!("{scheme}://{host}"))
}

/// The region in the host of a public endpoint: `sqs.REGION.`, `sqs-fips.REGION.`, the old `REGION.queue.`, or a VPC
/// endpoint's `vpce-ID.sqs.REGION.vpce.`. `None` for all other hosts, such as emulators.
fn region_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.split(['/', ':']).next()?;
    let mut labels = host.split('.');
    let region = match (labels.next()?, labels.next()?, labels.next()?) {
        ("sqs" | "sqs-fips", region, _) => region,
        (vpce, "sqs", region) if vpce.starts_with("vpce-") => region,
        (region, "queue", _) => region,
        ("queue", "amazonaws", "com") => "us-east-1",
        _ => return None,
    };
    (region.contains('-') && is_region(region)).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_read_from_public_urls_only() {
        for (url, region) in [
            ("https://sqs.eu-central-1.amazonaws.com/123456789012/q", Some("eu-central-1")),
            ("https://sqs-fips.us-east-1.amazonaws.com/123456789012/q", Some("us-east-1")),
            ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", Some("cn-north-1")),
            ("https://sqs.eu-west-1.api.aws/123456789012/q", Some("eu-west-1")),
            ("https://eu-west-1.queue.amazonaws.com/123456789012/q", Some("eu-west-1")),
            ("https://queue.amazonaws.com/123456789012/q", Some("us-east-1")),
            ("http://127.0.0.1:4566/123456789012/q", None),
            ("http://localhost:4566/123456789012/q", None),
            ("http://sqs.internal.example.com/123456789012/q", None),
        ] {
            let address = Address::of(url, Some("http://ignored"));
            assert_eq!((address.url.as_str(), address.region.as_deref()), (url, region));
        }
    }

    #[test]
    fn the_host_of_a_url_counts_unless_it_is_public_or_an_endpoint_is_configured() {
        for (url, endpoint) in [
            ("https://sqs.eu-central-1.amazonaws.com/123456789012/q", None),
            ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", None),
            ("https://eu-west-1.queue.amazonaws.com/123456789012/q", None),
            ("https://queue.amazonaws.com/123456789012/q", None),
            ("http://localhost:4566/123456789012/q", Some("http://localhost:4566")),
            ("http://127.0.0.1:4566/123456789012/q", Some("http://127.0.0.1:4566")),
            ("https://sqs-fips.us-east-1.amazonaws.com/1/q", Some("https://sqs-fips.us-east-1.amazonaws.com")),
            (
                "https://vpce-0a1b-c2d3.sqs.eu-central-1.vpce.amazonaws.com/123456789012/q",
                Some("https://vpce-0a1b-c2d3.sqs.eu-central-1.vpce.amazonaws.com"),
            ),
        ] {
            assert_eq!(Address::of(url, None).endpoint.as_deref(), endpoint, "{url}");
            assert_eq!(Address::of(url, Some("http://configured")).endpoint, None, "{url}");
        }
        let vpce = Address::of("https://vpce-0a1b-c2d3.sqs.eu-central-1.vpce.amazonaws.com/123456789012/q", None);
        assert_eq!(vpce.region.as_deref(), Some("eu-central-1"));
    }

    #[test]
    fn an_arn_leads_to_its_url() {
        let of = |arn: &str, endpoint| Address::of(arn, endpoint).url;
        let arn = "arn:aws:sqs:eu-west-1:210987654321:orders-dlq.fifo";
        assert_eq!(of(arn, None), "https://sqs.eu-west-1.amazonaws.com/210987654321/orders-dlq.fifo");
        assert_eq!(of(arn, Some("http://127.0.0.1:1/")), "http://127.0.0.1:1/210987654321/orders-dlq.fifo");
        assert_eq!(
            of("arn:aws-cn:sqs:cn-north-1:210987654321:q", None),
            "https://sqs.cn-north-1.amazonaws.com.cn/210987654321/q"
        );
        assert_eq!(Address::of(arn, None).region.as_deref(), Some("eu-west-1"));
    }

    #[test]
    fn what_is_no_queues_arn_is_none() {
        for text in [
            "",
            "arn:aws:sns:eu-west-1:210987654321:t",
            "arn:aws:sqs:eu-west-1:210987654321:",
            "arn:aws:sqs:eu-west-1:210987654321:.fifo",
            "arn:aws:sqs:eu-west-1:2109:q",
            "arn:aws:sqs::210987654321:q",
            "arn:aws:sqs:eu-west-1:210987654321:a:b",
            "arn:aws:sqs:eu-west-1:210987654321:a/b",
        ] {
            assert!(!is_queue_arn(text), "{text}");
        }
    }
}
