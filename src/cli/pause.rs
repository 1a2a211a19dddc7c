//! `sendoff pause` and `sendoff resume`.

use clap::Args;

use super::admin_client::{Asker, Daemon, lane_path};
use super::{Failure, arguments, out};
use crate::admin::api::{Held, Paused};
use crate::config::Environment;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sendoff pause orders\n  sendoff resume 'orders-*'")]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// The function, by name or ARN. With *, all known functions that match
    #[arg(value_parser = arguments::function)]
    function: String,
}

pub fn pause(options: Options, environment: &Environment) -> Result<(), Failure> {
    ask(options, environment, "pause")
}

pub fn resume(options: Options, environment: &Environment) -> Result<(), Failure> {
    ask(options, environment, "resume")
}

fn ask(options: Options, environment: &Environment, verb: &str) -> Result<(), Failure> {
    let asker = Asker::new(&options.daemon, environment)?;
    for function in asker.functions(&options.function)? {
        let paused: Paused = asker.post(&lane_path(&function, verb))?;
        out::line(in_words(&paused))?;
    }
    Ok(())
}

fn in_words(Paused { function, paused, held }: &Paused) -> String {
    match (paused, held) {
        (true, _) => format!("{function} is paused"),
        (false, None) => format!("{function} is resumed"),
        (false, Some(held)) => format!("{function} is resumed, but it is {}", held_in_words(held)),
    }
}

/// What holds a function, for people. The kind is left out if it is `held`, which the sentence says already.
pub(super) fn held_in_words(Held { kind, until, reason, .. }: &Held) -> String {
    let kind_in_words = if kind == "held" { String::new() } else { format!(" ({kind})") };
    let then = if kind == "spent" { "when attempts go on" } else { "when sendoff tries one event" };
    format!("held{kind_in_words} until {until}, {then}: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_function_that_is_held_says_until_when() {
        let held = Held {
            scope: "account".into(),
            kind: "unreachable".into(),
            reason: "no connection".into(),
            until: "2026-11-30T10:00:00.000Z".into(),
        };
        let said = |paused, held| in_words(&Paused { function: "f".into(), paused, held });
        assert_eq!((said(true, None), said(false, None)), ("f is paused".into(), "f is resumed".into()));
        assert!(said(false, Some(held.clone())).contains("held (unreachable) until 2026-11-30T10:00:00.000Z"));
        let held = Held { kind: "held".into(), ..held };
        assert!(
            said(false, Some(held)).contains("but it is held until 2026-11-30T10:00:00.000Z, when sendoff tries one")
        );
    }
}
