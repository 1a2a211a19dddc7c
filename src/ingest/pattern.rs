//! Converts patterns of function names, as people write them, to the form in which names are stored.
//!
//! Holds: every storable name is a pattern that matches only itself. ARNs and all other forms that Lambda accepts are
//! parsed as in requests, with or without stars in them.

use crate::event::FunctionName;
use crate::event::name::{Home, Parts};
use crate::event::sendable::is_dot_segment;

/// Replaces a star while a pattern is parsed as a name. It is valid in every part of a name.
const STAR: &str = "--any--";

/// The pattern in the form of stored names. `None` if it cannot match the name of any function.
pub fn canonical(pattern: &str, home: &Home) -> Option<String> {
    if !pattern.contains(STAR) {
        let read = pattern.replace('*', STAR);
        if let Some(parts) = Parts::parse(&read) {
            return Some(parts.canonical(None, home).as_str().replace(STAR, "*"));
        }
    }
    stored(pattern, home).map(|name| name.as_str().to_owned())
}

/// A pattern that is written in the stored form: `[region/][account/]name[:qualifier]`.
fn stored(pattern: &str, home: &Home) -> Option<FunctionName> {
    let is_of = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '*' || more.contains(c))
    };
    let (place, function) = pattern.rsplit_once('/').map_or((None, pattern), |(place, name)| (Some(place), name));
    let (name, qualifier) = function.split_once(':').map_or((function, None), |(name, more)| (name, Some(more)));
    let qualifier_fits = qualifier.is_none_or(|qualifier| is_of(qualifier, "-_$."));
    if !is_of(name, "-_.") || is_dot_segment(name) || !qualifier_fits {
        return None;
    }
    let mut parts = Parts { region: None, account_id: None, name, qualifier };
    match place.map(|place| place.split('/').collect::<Vec<_>>()).as_deref() {
        None => {}
        Some([one]) if is_of(one, "-") => {
            let is_account = one.bytes().all(|byte| byte.is_ascii_digit());
            *(if is_account { &mut parts.account_id } else { &mut parts.region }) = Some(*one);
        }
        Some([one, two]) if is_of(one, "-") && is_of(two, "") => {
            (parts.region, parts.account_id) = (Some(*one), Some(*two));
        }
        Some(_) => return None,
    }
    Some(parts.canonical(None, home))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::name::QUALIFIER_PATTERN;
    use crate::ingest::lambda_api::tests::settings;

    fn of(pattern: &str) -> Option<String> {
        canonical(pattern, &settings().home)
    }

    #[test]
    fn every_form_of_a_name_is_a_pattern_of_its_stored_name() {
        for (written, stored) in [
            ("orders", "orders"),
            ("*", "*"),
            ("orders-*", "orders-*"),
            ("orders.v2", "orders.v2"),
            ("orders:$LATEST", "orders"),
            ("orders:$LATEST.PUBLISHED", "orders:$LATEST.PUBLISHED"),
            ("orders:prod", "orders:prod"),
            ("orders:*", "orders:*"),
            ("*:prod", "*:prod"),
            ("123456789012:function:orders", "orders"),
            ("210987654321:orders", "210987654321/orders"),
            ("arn:aws:lambda:eu-central-1:123456789012:function:orders", "orders"),
            ("arn:aws:lambda:eu-central-1:123456789012:function:orders-*:prod", "orders-*:prod"),
            ("arn:aws:lambda:us-east-1:123456789012:function:orders", "us-east-1/orders"),
            ("arn:aws-cn:lambda:cn-north-1:210987654321:function:orders", "cn-north-1/210987654321/orders"),
            ("arn:aws-us-gov:lambda:us-gov-west-1:210987654321:function:*", "us-gov-west-1/210987654321/*"),
            ("eu-central-1/orders", "orders"),
            ("us-east-1/210987654321/orders:7", "us-east-1/210987654321/orders:7"),
            ("us-*/orders", "us-*/orders"),
            ("*/orders", "*/orders"),
        ] {
            assert_eq!(of(written).as_deref(), Some(stored), "{written}");
        }
        for nobody_s in [
            "",
            "a b",
            "orders:",
            ":prod",
            "a/b/c/d",
            "/orders",
            "orders/",
            "orders#1",
            "arn:aws:s3:::b",
            "ö",
            "..",
            "us-east-1/.",
            "..:prod",
        ] {
            assert_eq!(of(nobody_s), None, "{nobody_s}");
        }
    }

    /// Names that could be mistaken for another form: `123456789012:x` is a function in an account.
    fn is_ambiguous(name: &str) -> bool {
        let first = name.split(':').next().unwrap_or_default();
        name.contains(':') && (first == "function" || Parts::parse(&format!("{first}:function:f:q")).is_some())
    }

    proptest! {
        #[test]
        fn whatever_name_the_door_stores_is_a_pattern_of_that_name_alone(
            written in "((arn:aws(-cn)?:lambda:)?((us-east-1|eu-central-1|us-gov-west-1):)?([0-9]{12}:)?(function:)?)?[a-zA-Z0-9_.-]{1,20}(:(\\$LATEST(\\.PUBLISHED)?|[a-zA-Z0-9_-]{1,9}))?",
            qualifier in proptest::option::of(QUALIFIER_PATTERN),
        ) {
            let Some(parts) = Parts::parse(&written) else { return Ok(()) };
            let stored = parts.canonical(qualifier.as_deref(), &settings().home);
            let pattern = canonical(stored.as_str(), &settings().home);
            prop_assert!(pattern.is_some(), "{stored}");
            if !is_ambiguous(stored.as_str()) {
                prop_assert_eq!(pattern.as_deref(), Some(stored.as_str()));
            }
        }
    }
}
