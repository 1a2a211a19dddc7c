//! Makes untrusted text safe to show: no character may control a terminal, forge a line, or be invisible.
//!
//! Function names, keys, error texts of Lambda and SQS, and server answers are untrusted. Code that shows them to a
//! person (a table, a message, a text log line) must pass them through this module. JSON for machines carries them
//! unchanged.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal acts on the character or a reader cannot see it: control characters (C0, DEL, C1), line and
/// paragraph separators, marks that change the text direction, and zero-width characters.
fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text on one line, with every such character as an escape, for example `\n` or `\u{1b}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, is_hazard, |out, c| out.extend(c.escape_default()))
}

/// The text with its own line breaks and tabs, and every other such character as an escape.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_hazard(c) && !matches!(c, '\n' | '\t'), |out, c| out.extend(c.escape_default()))
}

/// JSON with every such character in its strings as `\uXXXX`: the same values, safe to show.
pub fn visible_json(json: &str) -> Cow<'_, str> {
    escaped(
        json,
        |c| is_hazard(c) && c != '\n',
        |out, c| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").unwrap_or_default();
            }
        },
    )
}

/// A URL without the user name and password in it, and without the secret of a client of sendoff in its path
/// (`https://HOST/c/SECRET`). What cannot be told from a password is left out, too.
pub fn without_password(url: &str) -> Cow<'_, str> {
    let url = without_secret(url);
    let Some((before, host)) = url.rsplit_once('@') else { return url };
    let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    Cow::Owned(format!("{scheme}***@{host}"))
}

fn without_secret(url: &str) -> Cow<'_, str> {
    const BEFORE: &str = "/c/";
    let Some((scheme, rest)) = url.split_once("://") else { return Cow::Borrowed(url) };
    let Some((host, secret)) = rest.split_once(BEFORE) else { return Cow::Borrowed(url) };
    let end = secret.find(['/', '?', '#']).unwrap_or(secret.len());
    if end == 0 {
        return Cow::Borrowed(url);
    }
    Cow::Owned(format!("{scheme}://{host}{BEFORE}***{}", &secret[end..]))
}

fn escaped(text: &str, is_hazard: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(&is_hazard) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::with_capacity(text.len() + 16), |mut out, c| {
        if is_hazard(c) {
            escape(&mut out, c)
        } else {
            out.push(c)
        }
        out
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_left_out_however_it_is_written() {
        for (url, shown) in [
            ("http://127.0.0.1:9478", "http://127.0.0.1:9478"),
            ("http://me:secret@host:1/x", "http://***@host:1/x"),
            ("http://me:sec@ret@host", "http://***@host"),
            ("http://me:se/c?r#e t@host", "http://***@host"),
            ("me:secret@host", "***@host"),
            ("https://host:9477/c/secret", "https://host:9477/c/***"),
            ("https://host/c/secret/v1?x", "https://host/c/***/v1?x"),
            ("https://host/c/sec@ret/v1", "https://host/c/***/v1"),
            ("https://me:p@host/c/secret", "https://***@host/c/***"),
            ("https://host/c/", "https://host/c/"),
            ("/var/c/file", "/var/c/file"),
        ] {
            assert_eq!(without_password(url), shown, "{url}");
        }
    }

    const HOSTILE: &str = "a\x1b[2J\x07\r\nb\u{9b}31m\u{202e}c\u{2067}\u{200b}\u{2028}\u{feff}\u{e0041}\x7fd";

    #[test]
    fn what_acts_on_a_terminal_or_hides_is_escaped() {
        let shown = visible(HOSTILE);
        assert_eq!(
            shown,
            "a\\u{1b}[2J\\u{7}\\r\\nb\\u{9b}31m\\u{202e}c\\u{2067}\\u{200b}\\u{2028}\\u{feff}\\u{e0041}\\u{7f}d"
        );
        assert!(!shown.contains(is_hazard));
    }

    #[test]
    fn text_that_people_write_stays_as_it_is() {
        for text in ["", "orders:prod", "Größe 10 µm", "日本語", "🙂 \\ \"quoted\""] {
            assert!(matches!(visible(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(visible_lines("a\n\tb\x1b"), "a\n\tb\\u{1b}");
    }

    #[test]
    fn json_keeps_its_values() {
        let value = serde_json::json!({ "message": HOSTILE, "beside": ["é", 1] });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = visible_json(&text);
            assert!(!shown.replace('\n', "").contains(is_hazard), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
