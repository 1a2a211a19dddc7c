//! Arguments that several commands take. They are checked before anything is asked or opened, and a bad one ends with
//! exit code 2.

use std::ffi::OsStr;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};
use http::Uri;

use crate::config::queue::{self, NoQueue};
use crate::event::name::Home;
use crate::ingest::pattern;
use crate::past;
use crate::visible::without_password;

/// Parses a URL. clap's own parsers repeat what they refuse. This one leaves a password out.
#[derive(Clone, Copy)]
pub(super) struct Url<T>(pub(super) fn(&str) -> Result<T, String>);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Url<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let text = value.to_string_lossy();
        (self.0)(&text).map_err(|why| {
            let arg = arg.map(ToString::to_string).unwrap_or_default();
            let said = format!("invalid value '{}' for '{arg}': {why}\n", without_password(&text));
            clap::Error::raw(ErrorKind::ValueValidation, said).with_cmd(command)
        })
    }
}

/// How long to wait for the end of an event.
pub(super) fn wait(text: &str) -> Result<Duration, String> {
    past::read_wait(text).map_err(|_| "write it like 30s, at most 60s".to_owned())
}

/// The URL of a daemon's listener, in the form of `example`.
pub(super) fn listener(text: &str, example: &str) -> Result<Uri, String> {
    let uri = text.parse::<Uri>().ok();
    let has_password = |uri: &Uri| uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if uri.as_ref().is_some_and(has_password) {
        return Err(format!(
            "it has a user or a password in it, which sendoff does not ask for; write it like {example}"
        ));
    }
    let fits = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
    };
    uri.filter(fits).ok_or_else(|| format!("write it like {example}"))
}

/// The URL or ARN of a queue.
pub(super) fn queue(text: &str) -> Result<String, String> {
    queue::check(text).map(|()| text.to_owned()).map_err(|NoQueue { why, hint }| format!("{why}; {hint}"))
}

/// The name of a function, as in an ARN, as `sendoff functions` prints it, or as people write it. Also a pattern of
/// names.
pub(super) fn function(text: &str) -> Result<String, String> {
    let known = pattern::canonical(text, &Home::default());
    known.map(|_| text.to_owned()).ok_or_else(|| {
        "no function can have this name; write a name, name:qualifier or ARN, or a name of `sendoff functions`, with * for any \
         characters"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_has_neither_password_nor_query() {
        let read = |text: &str| listener(text, "http://127.0.0.1:9478");
        assert!(read("http://127.0.0.1:9478").is_ok() && read("http://host/prefix").is_ok());
        for text in ["127.0.0.1:9478", "ftp://host", "http://", "http://host/?x", "http://me:secret@host", ""] {
            let why = read(text).unwrap_err();
            assert!(why.contains("write it like http://127.0.0.1:9478") && !why.contains("secret"), "{text}: {why}");
        }
    }

    #[test]
    fn a_function_is_named_in_any_form_or_by_a_pattern() {
        for text in ["orders", "orders:prod", "us-east-1/orders", "orders-*", "*", "123456789012:function:orders"] {
            assert_eq!(function(text).as_deref(), Ok(text));
        }
        for text in ["", "a b", "..", "a/b/c/d"] {
            assert!(function(text).is_err(), "{text}");
        }
    }
}
