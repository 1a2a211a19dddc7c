//! Writes output and asks questions, for all commands. Makes text of others visible (functions, errors, answers of a
//! server). No command writes to stdout or stderr itself.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};

use serde::Serialize;

use super::{Exit, Failure};
use crate::telemetry::say;
use crate::visible::{visible, visible_json, visible_lines};

/// Writes one line to stdout.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    raw(format!("{}\n", visible(&text.to_string())).as_bytes())
}

/// Writes several lines to stdout. Text of others in it must already be visible, so that it cannot forge a line.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    raw(visible_lines(text).as_bytes())
}

/// Writes text to stdout that moves the cursor or has colours. Everything else in it must already be visible.
pub(super) fn painted(text: &str) -> Result<(), Failure> {
    raw(text.as_bytes())
}

/// Writes a value to stdout as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::new(Exit::Internal, error))?;
    raw(format!("{}\n", visible_json(&text)).as_bytes())
}

/// Writes a value to stdout as indented JSON.
pub(super) fn pretty(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(Exit::Internal, error))?;
    raw(format!("{}\n", visible_json(&text)).as_bytes())
}

/// Writes a payload to stdout, byte for byte. On a terminal, replaces the characters that would control it.
pub(super) fn payload(bytes: &[u8]) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() {
        return print(&String::from_utf8_lossy(bytes));
    }
    raw(bytes)
}

/// It is no failure if the reader has closed the pipe, as `head` does.
fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, anyhow::Error::new(error).context("cannot write to stdout")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes one line to stderr. It is no failure if stderr cannot be written.
pub(super) fn note(text: impl Display) {
    say(&visible(&text.to_string()));
}

/// Asks a person. An error, not a yes, if there is nobody to ask.
pub(super) fn agreed(question: &str) -> Result<bool, Failure> {
    let failed = |error| Failure::new(Exit::Failed, anyhow::Error::new(error).context("cannot ask"));
    if !std::io::stdin().is_terminal() {
        let why = "cannot ask for confirmation: stdin is not a terminal; repeat with --yes or --dry-run";
        return Err(Failure::saying(Exit::Failed, why));
    }
    let mut stderr = std::io::stderr().lock();
    let asked = write!(stderr, "{} [y/N] ", visible(question)).and_then(|()| stderr.flush());
    asked.map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
