//! Function names in all forms that Lambda accepts, and the canonical form of each.

use std::sync::LazyLock;

use regex_lite::Regex;

use super::FunctionName;
use super::sendable::is_dot_segment;

/// The longest `FunctionName`, in characters (Lambda's API model).
pub const NAME_CHARS_MAX: usize = 256;

/// The longest `Qualifier`, in characters (Lambda's API model).
pub const QUALIFIER_CHARS_MAX: usize = 128;

/// Lambda's pattern of a `FunctionName`, as in its API model and in its error messages.
pub const NAME_PATTERN: &str = r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?";

/// Lambda's pattern of a `Qualifier`.
pub const QUALIFIER_PATTERN: &str = r"\$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+";

/// The qualifier with the same meaning as no qualifier.
const LATEST: &str = "$LATEST";

static NAME: LazyLock<Regex> = LazyLock::new(|| full_match(NAME_PATTERN));

static QUALIFIER: LazyLock<Regex> = LazyLock::new(|| full_match(QUALIFIER_PATTERN));

#[expect(clippy::expect_used, reason = "constant patterns, both compiled by the tests below")]
fn full_match(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).expect("a constant pattern")
}

/// The daemon's own region and account. Canonical names contain neither, so an ARN in this region and account means the same
/// function as its bare name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Home {
    pub region: Option<String>,
    pub account_id: Option<String>,
}

impl Home {
    /// The same, with `region` if none is configured.
    pub fn or_region(self, region: Option<&str>) -> Self {
        Self { region: self.region.or_else(|| region.map(str::to_owned)), ..self }
    }
}

/// The parts of a `FunctionName`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    pub region: Option<&'a str>,
    pub account_id: Option<&'a str>,
    pub name: &'a str,
    pub qualifier: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// Splits a percent-decoded `FunctionName`. `None` if it does not match [`NAME_PATTERN`], or names `.` or `..`.
    pub fn parse(text: &'a str) -> Option<Self> {
        // The usual case: without a colon only the name group can match, so no regex is needed.
        if !text.contains(':') {
            let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            let fits = fits && !is_dot_segment(text);
            return fits.then_some(Self { region: None, account_id: None, name: text, qualifier: None });
        }
        let found = NAME.captures(text)?;
        let group = |index: usize| found.get(index).map(|part| part.as_str().trim_end_matches(':'));
        let name = group(11).filter(|name| !is_dot_segment(name))?;
        Some(Self { region: group(3), account_id: group(9), name, qualifier: group(13) })
    }

    /// Whether only this keeps a text from being a name: it fits Lambda's pattern, and its name is `.` or `..`. No function has
    /// such a name, since functions are created without dots, and in the path of a call it would lead to another operation.
    pub fn is_dotted(text: &str) -> bool {
        Parts::parse(text).is_none() && NAME.is_match(text)
    }

    /// `[region/][account/]name[:qualifier]`, without the daemon's own region and account.
    pub fn canonical(&self, qualifier: Option<&str>, home: &Home) -> FunctionName {
        let mut text = String::new();
        for (given, own) in [(self.region, &home.region), (self.account_id, &home.account_id)] {
            if let Some(given) = given.filter(|given| own.as_deref() != Some(given)) {
                text.push_str(given);
                text.push('/');
            }
        }
        text.push_str(self.name);
        if let Some(qualifier) = self.qualifier.or(qualifier).filter(|qualifier| *qualifier != LATEST) {
            text.push(':');
            text.push_str(qualifier);
        }
        FunctionName::new(&text)
    }
}

/// The canonical name of a function that is named in one of Lambda's forms, or canonically.
pub fn canonical(text: &str, home: &Home) -> Option<FunctionName> {
    if let Some(parts) = Parts::parse(text) {
        return Some(parts.canonical(None, home));
    }
    let (scope, rest) = text.rsplit_once('/')?;
    let parts = Parts::parse(rest).filter(|parts| parts.region.is_none() && parts.account_id.is_none())?;
    let arn = match scope.split_once('/') {
        Some((region, account)) => format!("{region}:{account}:{}", parts.name),
        None => format!("{scope}:{}", parts.name),
    };
    let scoped = Parts::parse(&arn).filter(|scoped| scoped.name == parts.name && scoped.qualifier.is_none())?;
    Some(Parts { qualifier: parts.qualifier, ..scoped }.canonical(None, home))
}

/// Whether `text` is the id of an AWS account: 12 digits.
pub fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `text` matches [`QUALIFIER_PATTERN`].
pub fn is_qualifier(text: &str) -> bool {
    QUALIFIER.is_match(text)
}

/// Percent-decodes one part of a URI. Invalid escapes stay, and invalid UTF-8 becomes U+FFFD. Neither matches Lambda's
/// patterns, so the check that follows refuses both with Lambda's message.
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = if byte == b'%' { hex_pair(bytes.get(at + 1), bytes.get(at + 2)) } else { None };
        decoded.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex_pair(high: Option<&u8>, low: Option<&u8>) -> Option<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn home() -> Home {
        Home { region: Some("eu-central-1".to_owned()), account_id: Some("123456789012".to_owned()) }
    }

    fn with_qualifier(text: &str, qualifier: Option<&str>) -> Option<String> {
        Parts::parse(text).map(|parts| parts.canonical(qualifier, &home()).as_str().to_owned())
    }

    #[test]
    fn a_canonical_name_is_read_as_itself() {
        for text in
            ["orders", "orders:prod", "us-east-1/orders", "210987654321/orders", "us-east-1/210987654321/orders:7"]
        {
            assert_eq!(canonical(text, &home()).map(|name| name.as_str().to_owned()).as_deref(), Some(text));
        }
        assert_eq!(
            canonical("arn:aws:lambda:eu-central-1:123456789012:function:orders", &home()),
            canonical("orders", &home())
        );
        for text in
            ["a/b", "us-east-1/x/orders", "us-east-1/", "us-east-1/arn:aws:lambda:eu-central-1:123456789012:function:o"]
        {
            assert_eq!(canonical(text, &home()), None, "{text}");
        }
    }

    #[test]
    fn every_form_of_one_function_leads_to_one_name() {
        for (text, qualifier, expected) in [
            ("orders", None, "orders"),
            ("function:orders", None, "orders"),
            ("123456789012:function:orders", None, "orders"),
            ("123456789012:orders", None, "orders"),
            ("eu-central-1:123456789012:function:orders", None, "orders"),
            ("arn:aws:lambda:eu-central-1:123456789012:function:orders", None, "orders"),
            ("arn:aws:lambda:eu-central-1:123456789012:function:orders:$LATEST", None, "orders"),
            ("orders", Some("$LATEST"), "orders"),
            ("orders:$LATEST", Some("$LATEST"), "orders"),
            ("orders:prod", None, "orders:prod"),
            ("orders", Some("prod"), "orders:prod"),
            ("orders:prod", Some("prod"), "orders:prod"),
            ("orders:7", None, "orders:7"),
            ("arn:aws:lambda:eu-central-1:123456789012:function:orders:prod", None, "orders:prod"),
            ("orders:$LATEST.PUBLISHED", None, "orders:$LATEST.PUBLISHED"),
            ("210987654321:function:orders", None, "210987654321/orders"),
            ("arn:aws:lambda:us-east-1:123456789012:function:orders", None, "us-east-1/orders"),
            ("arn:aws-cn:lambda:cn-north-1:210987654321:function:orders:1", None, "cn-north-1/210987654321/orders:1"),
            ("arn:aws-us-gov:lambda:us-gov-west-1:210987654321:function:o", None, "us-gov-west-1/210987654321/o"),
            ("arn:aws-iso-b:lambda:us-isob-east-1:210987654321:function:o", None, "us-isob-east-1/210987654321/o"),
            ("function:prod", None, "prod"),
            ("a.b_c-D", None, "a.b_c-D"),
            ("...", None, "..."),
            ("..a", None, "..a"),
        ] {
            assert_eq!(with_qualifier(text, qualifier).as_deref(), Some(expected), "{text} with {qualifier:?}");
        }
    }

    #[test]
    fn what_lambda_refuses_is_not_a_name() {
        for text in [
            "",
            ":",
            "a:",
            ":a",
            "a b",
            "a/b",
            "a:b:c",
            "ä",
            "a\n",
            "arn:aws:s3:::bucket",
            "arn:aws:lambda:eu-central-1:123:function:orders",
            "orders:$LATESTS",
            "orders:$OTHER",
            "%3A",
            ".",
            "..",
            "..:prod",
            "function:..",
            "arn:aws:lambda:eu-central-1:123456789012:function:.",
        ] {
            assert_eq!(Parts::parse(text), None, "{text}");
        }
    }

    #[test]
    fn qualifiers_are_versions_aliases_or_latest() {
        for text in ["1", "prod", "$LATEST", "$LATEST.PUBLISHED", "a-b_C", "$a"] {
            assert!(is_qualifier(text), "{text}");
        }
        for text in ["", "a.b", "$LATEST.X", "a b", "a:b", "prod\n"] {
            assert!(!is_qualifier(text), "{text}");
        }
    }

    #[test]
    fn escapes_are_decoded_and_nonsense_is_kept() {
        for (text, expected) in [
            ("arn%3Aaws%3alambda", "arn:aws:lambda"),
            ("%24LATEST", "$LATEST"),
            ("a%2Fb", "a/b"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("a+b", "a+b"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(percent_decode(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_short_way_and_lambdas_pattern_agree(text in "[a-zA-Z0-9._:$-]{0,20}|\\PC{0,20}|(function:)?[.]{1,3}(:[a-z]{1,2})?") {
            prop_assert_eq!(Parts::parse(&text).is_some() || Parts::is_dotted(&text), NAME.is_match(&text));
            let whole = NAME.captures(&text);
            let name = whole.as_ref().and_then(|found| found.get(11)).map(|name| name.as_str());
            prop_assert_eq!(Parts::is_dotted(&text), matches!(name, Some("." | "..")));
        }
    }
}
