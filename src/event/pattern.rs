//! Patterns of function names. `*` matches any run of characters.
//!
//! Limits: [`Pattern`] bounds the patterns of requests and of the configuration. [`fits`] takes time proportional to
//! the lengths of the pattern and the name.

use std::fmt;
use std::str::FromStr;

/// The longest pattern, in bytes. The longest canonical name has 385: a name of 256, a colon, a qualifier of 128.
pub const BYTES_MAX: usize = 512;

/// The most stars in a pattern. Adjacent stars count as one.
pub const STARS_MAX: usize = 16;

/// A pattern within its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Why a text is not accepted as a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("the pattern is empty; leave it out to mean every function, or write `*`")]
    Empty,
    #[error("the pattern has {0} bytes; use at most {BYTES_MAX}")]
    Long(usize),
    #[error("the pattern has {0} stars; use at most {STARS_MAX}")]
    Stars(usize),
}

impl Pattern {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > BYTES_MAX {
            return Err(PatternError::Long(text.len()));
        }
        let mut collapsed = String::with_capacity(text.len());
        for c in text.chars() {
            if c != '*' || !collapsed.ends_with('*') {
                collapsed.push(c);
            }
        }
        match collapsed.matches('*').count() {
            stars if stars > STARS_MAX => Err(PatternError::Stars(stars)),
            _ => Ok(Self(collapsed)),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `name` matches `pattern`.
///
/// The text between two stars is matched at its first occurrence, because a later one would leave less text for the
/// rest of the pattern. So no position is tried twice, and each search continues where the previous one ended.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(between) = name.strip_prefix(head).and_then(|name| name.strip_suffix(tail)) else { return false };
    let mut parts = middle.split('*');
    parts.try_fold(between, |left, part| left.find(part).map(|at| &left[at + part.len()..])).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, in quadratic time: `fitting[i]` says whether the first `i` characters match the pattern so far.
    fn reference(pattern: &str, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let mut fitting = vec![false; name.len() + 1];
        fitting[0] = true;
        for wanted in pattern.chars() {
            let before = fitting.clone();
            for end in 0..=name.len() {
                fitting[end] = match (wanted, end) {
                    ('*', _) => before[..=end].contains(&true),
                    (_, 0) => false,
                    (wanted, end) => before[end - 1] && name[end - 1] == wanted,
                };
            }
        }
        fitting[name.len()]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_096, ..ProptestConfig::default() })]

        #[test]
        fn a_match_is_what_the_definition_says(pattern in "[abé*]{0,12}", name in "[abé]{0,16}") {
            prop_assert_eq!(fits(&pattern, &name), reference(&pattern, &name), "{} and {}", pattern, name);
        }

        #[test]
        fn a_pattern_means_the_same_when_its_stars_are_collapsed(text in "[ab*]{1,16}", name in "[ab]{0,16}") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                prop_assert!(!pattern.as_str().contains("**"));
                prop_assert_eq!(fits(pattern.as_str(), &name), fits(&text, &name));
            }
        }
    }

    /// A matcher that backtracks to an earlier star, or searches again from the start, would never finish these.
    #[test]
    fn a_hostile_pattern_costs_no_more_than_reading_it() {
        let long = "a".repeat(4 << 20);
        for (pattern, name, expected) in [
            ("*".repeat(200) + "x", "orders", false),
            ("*a".repeat(1 << 20) + "*x", long.as_str(), false),
            ("*a".repeat(1 << 20) + "*", long.as_str(), true),
            ("*".to_owned() + &"a".repeat(1 << 20) + "b*", long.as_str(), false),
            ("*".repeat(1 << 20) + "a", long.as_str(), true),
        ] {
            assert_eq!(fits(&pattern, name), expected, "a pattern of {} bytes", pattern.len());
        }
    }

    #[test]
    fn a_pattern_is_bounded_in_length_and_in_stars() {
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Empty));
        assert_eq!("a".repeat(513).parse::<Pattern>(), Err(PatternError::Long(513)));
        assert_eq!("*a".repeat(17).parse::<Pattern>(), Err(PatternError::Stars(17)));
        assert_eq!(("*".repeat(200) + "x").parse::<Pattern>().unwrap().as_str(), "*x");
        assert_eq!("*a".repeat(16).parse::<Pattern>().unwrap().as_str(), "*a".repeat(16));
    }
}
