//! Checks whether an event can be sent to Lambda at all. The doors accept only such events. A store, a queue or an
//! export may still hold others, written by an earlier version or by another program.

use super::name::is_account_id;
use super::{Carried, Event, Function};

/// The name of the first field that no request can carry, or `None` if the event can be sent.
pub fn unsendable(event: &Event) -> Option<&'static str> {
    let Event { function: Function { name, address, qualifier, region }, carried, .. } = event;
    let Carried { trace_header, client_context, tenant_id, durable_execution_name } = carried;
    let is_name =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) && !is_dot_segment(text);
    let is_region = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let is_header = |text: &str| text.bytes().all(|byte| byte == b'\t' || (0x20..=0x7e).contains(&byte));
    [
        ("function", is_name(name.as_str()) && is_name(address)),
        ("qualifier", qualifier.as_deref().is_none_or(is_name)),
        ("region", region.as_deref().is_none_or(is_region)),
        ("trace_header", trace_header.as_deref().is_none_or(is_header)),
        ("client_context", client_context.as_deref().is_none_or(is_header)),
        ("tenant_id", tenant_id.as_deref().is_none_or(is_header)),
        ("durable_execution_name", durable_execution_name.as_deref().is_none_or(is_header)),
    ]
    .into_iter()
    .find_map(|(field, fits)| (!fits).then_some(field))
}

/// Whether a text as one part of a path means another path: URLs are resolved, by proxies and by AWS, and percent-encoding does not
/// help, as `%2e` is the same character (RFC 3986, sections 2.3 and 5.2.4).
pub fn is_dot_segment(text: &str) -> bool {
    matches!(text, "." | "..")
}

/// The region in a function's address, if the address is an ARN, or part of one, with a region.
pub fn region_in(address: &str) -> Option<&str> {
    let mut parts = address.split(':');
    let first = parts.next()?;
    let (region, account) = if first == "arn" { (parts.nth(2)?, parts.next()?) } else { (first, parts.next()?) };
    // A function with an alias of twelve digits looks like a region and an account, but has no name after them.
    parts.next()?;
    (is_account_id(account) && region.contains('-')).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_of_an_address_is_that_of_its_arn() {
        for (address, region) in [
            ("orders", None),
            ("orders:prod", None),
            ("123456789012:function:orders", None),
            ("my-function:123456789012", None),
            ("eu-central-1:123456789012:function:orders", Some("eu-central-1")),
            ("arn:aws:lambda:us-gov-west-1:123456789012:function:orders:7", Some("us-gov-west-1")),
            ("arn:aws:s3:::bucket", None),
        ] {
            assert_eq!(region_in(address), region, "{address}");
        }
    }
}
