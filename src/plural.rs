//! Numbers with nouns, for people: `1 event`, `2 events`.

/// A number and its noun, given in the singular: `count(2, "event")` is `2 events`.
pub fn count(number: u64, one: &str) -> String {
    match one.strip_suffix('y') {
        _ if number == 1 => format!("1 {one}"),
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{number} {stem}ies"),
        Some(_) | None => format!("{number} {one}s"),
    }
}

/// A number and the words for it, if a verb depends on the number, too.
pub fn agree(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|n| count(n, "event")), ["0 events", "1 event", "2 events"]);
        assert_eq!([1, 2].map(|n| count(n, "retry")), ["1 retry", "2 retries"]);
        assert_eq!([1, 2].map(|n| count(n, "key")), ["1 key", "2 keys"]);
        assert_eq!([1, 2].map(|n| agree(n, "is left", "are left")), ["1 is left", "2 are left"]);
    }
}
