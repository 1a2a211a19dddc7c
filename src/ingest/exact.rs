//! Reads JSON for the expression engine without loss. The engine's own reader refuses values it cannot represent (half a
//! surrogate pair, 1e400, deep nesting) and rounds others (a number of twenty digits).
//!
//! This reader replaces such a value by a text between two marker characters, which are escaped in all other texts.
//! Different values give different texts, so a key made from them never equals another event's key.

use std::collections::BTreeMap;

use jmespath::{Rcvar, Variable};
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

/// Values that nest deeper are replaced by a digest, because each level costs stack.
const DEPTH_MAX: usize = 100;

/// The markers around a replacement text. Both are Unicode noncharacters, which no text needs.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// A value, and whether any part of it was replaced.
pub struct Read {
    pub value: Variable,
    pub is_exact: bool,
}

/// Reads a JSON text. `None` if it is not JSON.
pub fn read(json: &str) -> Option<Read> {
    // Validates the text. Skipping values takes no stack however deep they nest. The reader below meets valid JSON only.
    serde_json::from_str::<IgnoredAny>(json).ok()?;
    let mut reader = Reader { rest: json, is_exact: true };
    let value = reader.value(0)?;
    Some(Read { value, is_exact: reader.is_exact })
}

/// The number that a replacement text stands for, if it stands for one.
pub fn number_in(text: &str) -> Option<&str> {
    let number = text.strip_prefix(OPEN)?.strip_prefix('#')?.strip_suffix(CLOSE)?;
    (!number.contains([OPEN, CLOSE])).then_some(number)
}

/// Whether a text, or any text in the JSON of a value, is a replacement.
pub fn stands_in(text: &str) -> bool {
    text.contains([OPEN, CLOSE])
}

struct Reader<'a> {
    rest: &'a str,
    is_exact: bool,
}

impl<'a> Reader<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, bytes: usize) -> Option<&'a str> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.rest.bytes().next()
    }

    /// Consumes `byte` if it is next.
    fn comes(&mut self, byte: u8) -> bool {
        let comes = self.peek() == Some(byte);
        if comes {
            self.rest = &self.rest[1..];
        }
        comes
    }

    fn value(&mut self, depth: usize) -> Option<Variable> {
        match self.peek()? {
            b'{' | b'[' if depth >= DEPTH_MAX => self.too_deep(),
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string().map(Variable::String),
            b't' => self.take(4).map(|_| Variable::Bool(true)),
            b'f' => self.take(5).map(|_| Variable::Bool(false)),
            b'n' => self.take(4).map(|_| Variable::Null),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Variable> {
        self.take(1)?;
        let mut fields = BTreeMap::new();
        while !self.comes(b'}') {
            self.comes(b',');
            self.skip_space();
            let name = self.string()?;
            self.comes(b':');
            // The last of several fields of the same name counts, as it does in most functions.
            fields.insert(name, Rcvar::new(self.value(depth + 1)?));
        }
        Some(Variable::Object(fields))
    }

    fn array(&mut self, depth: usize) -> Option<Variable> {
        self.take(1)?;
        let mut items = Vec::new();
        while !self.comes(b']') {
            self.comes(b',');
            items.push(Rcvar::new(self.value(depth + 1)?));
        }
        Some(Variable::Array(items))
    }

    fn string(&mut self) -> Option<String> {
        self.take(1)?;
        let mut text = String::new();
        loop {
            let plain = self.rest.find(['"', '\\', OPEN, CLOSE])?;
            text.push_str(self.take(plain)?);
            match self.rest.chars().next()? {
                '"' => {
                    self.take(1)?;
                    return Some(text);
                }
                '\\' => self.escape(&mut text)?,
                other => {
                    self.take(other.len_utf8())?;
                    self.stand_in(&mut text, &format!("{:x}", u32::from(other)));
                }
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let plain = match self.take(2)?.as_bytes()[1] {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(text),
            other => char::from(other),
        };
        text.push(plain);
        Some(())
    }

    /// Reads what follows `\u`.
    fn unicode(&mut self, text: &mut String) -> Option<()> {
        let unit = |digits: &str| u16::from_str_radix(digits, 16).ok();
        let first = unit(self.take(4)?)?;
        let second = self.rest.strip_prefix("\\u").and_then(|rest| unit(rest.get(..4)?));
        let pair = second.and_then(|second| char::decode_utf16([first, second]).next()?.ok());
        match (char::from_u32(first.into()), pair) {
            (Some(OPEN | CLOSE), _) | (None, None) => self.stand_in(text, &format!("{first:x}")),
            (Some(plain), _) => text.push(plain),
            (None, Some(pair)) => {
                self.take(6)?;
                text.push(pair);
            }
        }
        Some(())
    }

    fn stand_in(&mut self, text: &mut String, what: &str) {
        self.is_exact = false;
        text.push(OPEN);
        text.push_str(what);
        text.push(CLOSE);
    }

    fn number(&mut self) -> Option<Variable> {
        let is_part = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let text = self.take(end)?;
        if let Some(number) = exactly(text) {
            return Some(Variable::Number(number));
        }
        let mut standing = String::new();
        self.stand_in(&mut standing, &format!("#{text}"));
        Some(Variable::String(standing))
    }

    fn too_deep(&mut self) -> Option<Variable> {
        let start = self.rest;
        // Brackets inside strings do not count.
        let (mut open, mut within, mut escaped) = (0_usize, false, false);
        let end = start.bytes().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => within = !within,
                b'[' | b'{' if !within => open += 1,
                b']' | b'}' if !within => open -= 1,
                _ => {}
            }
            open == 0
        });
        let taken = self.take(end? + 1)?;
        let digest: String = Sha256::digest(taken).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut standing = String::new();
        self.stand_in(&mut standing, &digest);
        Some(Variable::String(standing))
    }
}

/// Parses a number that the engine can represent without rounding.
fn exactly(text: &str) -> Option<serde_json::Number> {
    let number: serde_json::Number = serde_json::from_str(text).ok()?;
    if number.is_f64() && decimal(text) != decimal(&number.to_string()) {
        return None;
    }
    Some(number)
}

/// A number as its sign, its digits without leading and trailing zeros, and its exponent.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (digits, power) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all = format!("{whole}{part}");
    let significant = all.trim_start_matches('0');
    let leading = i64::try_from(all.len() - significant.len()).ok()?;
    let significant = significant.trim_end_matches('0');
    if significant.is_empty() {
        return Some((is_negative, String::new(), 0));
    }
    let power: i64 = power.parse().ok()?;
    let magnitude = i64::try_from(whole.len()).ok()?.checked_add(power)?.checked_sub(leading)?;
    Some((is_negative, significant.to_owned(), magnitude))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(json: &str) -> (String, bool) {
        let read = read(json).unwrap();
        (read.value.to_string(), read.is_exact)
    }

    proptest! {
        #[test]
        fn what_the_engine_can_represent_is_read_as_by_the_engine(text in "[\\[\\]{},:\"a-e0-9.\\\\ntu -]{0,30}|\\PC{0,10}", n in any::<f64>()) {
            for json in [text.clone(), serde_json::to_string(&text).unwrap(), serde_json::to_string(&(n, &text)).unwrap()] {
                let theirs = Variable::from_json(&json);
                let ours = read(&json);
                if let (Ok(theirs), Some(ours)) = (theirs, ours)
                    && ours.is_exact
                {
                    prop_assert_eq!(theirs.to_string(), ours.value.to_string());
                }
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}") {
            drop(read(&text));
        }
    }

    #[test]
    fn ordinary_json_is_exact() {
        for json in [
            r#"{"a":[1,-2,0.1,1e3,1.50,18446744073709551615],"b":"\ud83d\ude00 ü \n\"","c":null,"d":{"e":true}}"#,
            " [ ] ",
            "{}",
            "\"\"",
            "1E-7",
            "0.0",
        ] {
            let (ours, is_exact) = shown(json);
            assert!(is_exact, "{json}");
            assert_eq!(ours, Variable::from_json(json).unwrap().to_string());
        }
        assert!(read("not json").is_none() && read("").is_none() && read("[1,]").is_none());
    }

    #[test]
    fn what_cannot_be_represented_is_told_apart() {
        let many = [
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ud83d\ud83d""#,
            r#""\\ud83d""#,
            "\"\u{fdd0}d83d\u{fdd1}\"",
            r#""\ufdd0d83d\ufdd1""#,
            "1e400",
            "1e401",
            "9007199254740993.0",
            "9007199254740992.0",
            "18446744073709551616",
            "18446744073709551617",
            "0.1000000000000000055",
        ];
        let shown: std::collections::BTreeSet<_> = many.iter().map(|json| shown(json).0).collect();
        assert_eq!(shown.len(), many.len() - 1, "raw and escaped noncharacters are one text: {shown:?}");
        let Variable::String(standing) = read("1e400").unwrap().value else { panic!("it stands as a text") };
        assert_eq!(number_in(&standing), Some("1e400"));
    }

    #[test]
    fn depth_costs_no_stack_and_is_told_apart() {
        let deep = |last: &str| format!("{{\"id\":7,\"x\":{}{last}{}}}", "[".repeat(400_000), "]".repeat(400_000));
        let Variable::Object(fields) = read(&deep("1")).unwrap().value else { panic!("an object") };
        assert_eq!(fields["id"].to_string(), "7");
        assert_ne!(shown(&deep("1")).0, shown(&deep("\"]\"")).0);
    }
}
