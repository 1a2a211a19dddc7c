//! Secrets: reads, hides and compares them.

use std::fmt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::readable;

/// The fewest and the most characters of a secret: at least 128 bits in any encoding, and at most what fits in a path
/// or a header.
pub const CHARS_MIN: usize = 32;
pub const CHARS_MAX: usize = 512;

/// The most secrets in one file: the current one, the next one, and some to spare.
const SECRETS_MAX: usize = 16;

/// The most bytes of a file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A secret. Only [`Secret::expose`] returns it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// The secret itself, for comparing and computing. Never show it.
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Whether the secret can be a part of a path unchanged (RFC 3986, "unreserved").
    pub fn fits_a_path(&self) -> bool {
        self.0.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Reads the secrets of a file, at least one, one per line. The error names the line, but not its content.
pub fn read(path: &Path) -> Result<Vec<Secret>, String> {
    let text = readable::read_text(path, FILE_BYTES_MAX).map_err(|error| format!("cannot be read: {error}"))?;
    let mut secrets = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let (number, line) = (number + 1, line.trim());
        if line.is_empty() {
            continue;
        }
        if !line.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("line {number} has spaces or other characters that a secret cannot have"));
        }
        if !(CHARS_MIN..=CHARS_MAX).contains(&line.len()) {
            return Err(format!(
                "line {number} has {} characters, and a secret has {CHARS_MIN} to {CHARS_MAX}: `sendoff auth mint` prints one",
                line.len()
            ));
        }
        secrets.push(Secret(line.into()));
    }
    match secrets.len() {
        0 => Err("holds no secret: `sendoff auth mint` prints one".to_owned()),
        1..=SECRETS_MAX => Ok(secrets),
        more => Err(format!("holds {more} secrets of at most {SECRETS_MAX}")),
    }
}

/// Secrets that callers send as they are, each with its owner.
#[derive(Clone)]
pub struct Tokens<P>(Vec<([u8; 32], P)>);

impl<P> Default for Tokens<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P> Tokens<P> {
    /// Adds a secret. Returns false if it has another owner already. The same line twice in a file is no mistake.
    pub fn add(&mut self, secret: &Secret, of: P) -> bool
    where
        P: PartialEq,
    {
        match self.find(secret.expose()) {
            Some(owner) => *owner == of,
            None => {
                self.0.push((digest(secret.expose()), of));
                true
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the owner of a token. Takes the same time for every token: compares it with all, by digests, in constant
    /// time.
    pub fn find(&self, presented: &[u8]) -> Option<&P> {
        if presented.len() > CHARS_MAX {
            return None;
        }
        let presented = digest(presented);
        self.0
            .iter()
            .fold(None, |found, (known, of)| if bool::from(known.ct_eq(&presented)) { Some(of) } else { found })
    }
}

fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "one-0123456789012345678901234567";
    const TWO: &str = "two-0123456789012345678901234567";

    fn of(text: &str) -> Result<Vec<Secret>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn each_line_is_a_secret_so_that_old_and_new_overlap() {
        let read = of(&format!("{ONE}\n\n  {TWO}\r\n")).unwrap();
        let mut tokens = Tokens::default();
        assert!(read.iter().all(|secret| tokens.add(secret, "orders")));
        assert!(tokens.add(&read[0], "orders"), "a repeated line is no mistake");
        assert!(!tokens.add(&read[0], "mails"), "it stands for one only");
        assert_eq!(tokens.find(ONE.as_bytes()), Some(&"orders"));
        assert_eq!(tokens.find(TWO.as_bytes()), Some(&"orders"));
        for wrong in ["", &ONE[1..], &format!("{ONE} "), &ONE.to_uppercase(), &"x".repeat(CHARS_MAX + 1)] {
            assert_eq!(tokens.find(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_by_its_line_and_never_shown() {
        let short = &ONE[1..];
        for (text, why) in [
            ("", "holds no secret"),
            ("\n \n", "holds no secret"),
            (short, "line 1 has 31 characters"),
            (&format!("{ONE}\n{ONE} {TWO}"), "line 2 has spaces"),
            (&format!("{ONE}ö"), "line 1 has spaces or other"),
            (&"x".repeat(CHARS_MAX + 1), "line 1 has 513 characters"),
            (&format!("{ONE}\n").repeat(17), "holds 17 secrets"),
            (&format!("{ONE}\n").repeat(40_000), "larger than 1 MiB"),
        ] {
            let refused = of(text).unwrap_err();
            assert!(refused.contains(why), "{refused}");
            assert!(!refused.contains("0123456789"), "{refused}");
        }
        assert!(read(Path::new("no/such/file")).unwrap_err().contains("cannot be read"));
        assert_eq!(format!("{:?}", of(ONE).unwrap()), "[Secret]");
    }

    #[test]
    fn a_secret_of_a_path_needs_no_escapes() {
        assert!(of(ONE).unwrap()[0].fits_a_path());
        assert!(!of(&format!("{ONE}/")).unwrap()[0].fits_a_path());
        assert!(!of(&format!("{ONE}+")).unwrap()[0].fits_a_path());
    }
}
