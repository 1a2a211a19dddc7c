//! Shows live progress: bars on a terminal, otherwise a line per second. All of it goes to stderr. Results go to
//! stdout.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::clock::Clock;

/// The pause between two lines.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// How far the demo is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) accepted: u64,
    /// Distinct events that the stand-in has taken.
    pub(super) delivered: u64,
    pub(super) throttled: u64,
    /// Attempts that failed for other reasons.
    pub(super) failed: u64,
}

#[derive(Debug)]
pub(super) struct Screen {
    clock: Clock,
    events: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Bars { all: MultiProgress, accepted: ProgressBar, delivered: ProgressBar },
    Lines { last: Mutex<Option<Instant>> },
}

impl Screen {
    pub(super) fn new(events: u64, clock: Clock) -> Self {
        let kind = if std::io::stderr().is_terminal() {
            let all = MultiProgress::new();
            let bar = |what: &'static str| {
                let bar = all.add(ProgressBar::new(events)).with_prefix(what);
                // The template is fixed. If it were wrong, the bar would only look plainer.
                match ProgressStyle::with_template("{prefix:9} {bar:40.green} {pos}/{len}  {msg}") {
                    Ok(style) => bar.with_style(style),
                    Err(_) => bar,
                }
            };
            let (accepted, delivered) = (bar("accepted"), bar("delivered"));
            Kind::Bars { all, accepted, delivered }
        } else {
            Kind::Lines { last: Mutex::new(None) }
        };
        Self { clock, events, kind }
    }

    pub(super) fn show(&self, progress: &Progress) {
        match &self.kind {
            Kind::Bars { accepted, delivered, .. } => {
                accepted.set_position(progress.accepted);
                delivered.set_position(progress.delivered);
                delivered.set_message(format!("{} throttled, {} failed", progress.throttled, progress.failed));
            }
            Kind::Lines { last } => {
                let now = self.clock.instant();
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.is_none_or(|last| now.duration_since(last) >= LINE_EVERY) {
                    *last = Some(now);
                    self.say(&line(progress, self.events));
                }
            }
        }
    }

    /// Prints a sentence about what happens, above the bars.
    pub(super) fn say(&self, text: &str) {
        // If stderr is closed, nobody reads this, and the demo goes on.
        match &self.kind {
            Kind::Bars { all, .. } => all.println(text).unwrap_or_default(),
            Kind::Lines { .. } => crate::cli::say(text),
        }
    }

    /// Removes the bars.
    pub(super) fn finish(&self) {
        // Finish each bar: an unfinished one draws itself once more when it is dropped.
        if let Kind::Bars { accepted, delivered, .. } = &self.kind {
            accepted.finish_and_clear();
            delivered.finish_and_clear();
        }
    }

    /// Prints a result to stdout. It is no failure if the reader has closed the pipe, as `head` does.
    pub(super) fn print(&self, text: &str) -> std::io::Result<()> {
        match writeln!(std::io::stdout(), "{text}") {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }
}

fn line(progress: &Progress, events: u64) -> String {
    let Progress { accepted, delivered, throttled, failed } = progress;
    format!("accepted {accepted} of {events}, delivered {delivered}, attempts throttled {throttled}, failed {failed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_the_demo_is() {
        let progress = Progress { accepted: 70, delivered: 30, throttled: 12, failed: 4 };
        assert_eq!(line(&progress, 100), "accepted 70 of 100, delivered 30, attempts throttled 12, failed 4");
    }
}
