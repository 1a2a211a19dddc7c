//! Shows the progress: on a terminal a bar with rate and remaining time, otherwise a line now and then.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::Shown;
use crate::cli::out;
use crate::clock::{Clock, UnixMillis};

/// The pause between two lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub(super) enum Progress {
    Bar(ProgressBar),
    Lines { clock: Clock, began: UnixMillis, next: UnixMillis, expected: Option<u64>, last: u64 },
    None,
}

impl Progress {
    pub(super) fn start(shown: Shown, expected: Option<u64>, clock: &Clock) -> Self {
        let bar = || {
            let bar = ProgressBar::with_draw_target(expected, ProgressDrawTarget::stderr_with_hz(10));
            let template = "{bar:32} {pos}/{len} letters  {rate}  {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            // It is no failure if the terminal takes no more text.
            let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
                write!(out, "{:.0}/s", state.per_sec()).unwrap_or_default();
            };
            Self::Bar(bar.with_style(style.with_key("rate", rate)))
        };
        let began = clock.now();
        let lines = || Self::Lines { clock: clock.clone(), began, next: began.plus(LINE_EVERY), expected, last: 0 };
        match shown {
            Shown::Auto if std::io::stderr().is_terminal() => bar(),
            Shown::Auto | Shown::Lines => lines(),
            Shown::Bar => bar(),
            Shown::None => Self::None,
        }
    }

    /// Sets how many dead letters are expected.
    pub(super) fn expect(&mut self, count: u64) {
        match self {
            Self::Bar(bar) => bar.set_length(count),
            Self::Lines { expected, .. } => *expected = Some(count),
            Self::None => {}
        }
    }

    pub(super) fn at(&mut self, count: u64) {
        match self {
            Self::Bar(bar) => {
                // SQS gives only an approximate number.
                if bar.length().is_some_and(|length| length < count) {
                    bar.set_length(count);
                }
                bar.set_position(count);
            }
            Self::Lines { clock, began, next, expected, last } => {
                *last = count;
                let now = clock.now();
                if now >= *next {
                    *next = now.plus(LINE_EVERY);
                    out::note(line(count, *expected, now.since(*began)));
                }
            }
            Self::None => {}
        }
    }

    pub(super) fn finish(self) {
        match self {
            Self::Bar(bar) => {
                bar.abandon();
                // The bar leaves the cursor on its own line.
                out::note("");
            }
            Self::Lines { clock, began, expected, last, .. } => {
                out::note(line(last, expected, clock.now().since(began)));
            }
            Self::None => {}
        }
    }
}

fn line(count: u64, expected: Option<u64>, took: Duration) -> String {
    let rate = count as f64 / took.as_secs_f64().max(0.001);
    let of = expected.map(|expected| format!(" of about {}", expected.max(count))).unwrap_or_default();
    let letters = if of.is_empty() { crate::plural::count(count, "letter") } else { format!("{count}{of} letters") };
    format!("{letters}, {rate:.0}/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_count_total_and_rate() {
        assert_eq!(line(50, Some(200), Duration::from_secs(10)), "50 of about 200 letters, 5/s");
        assert_eq!(line(50, Some(20), Duration::from_secs(10)), "50 of about 50 letters, 5/s");
        assert_eq!(line(0, None, Duration::ZERO), "0 letters, 0/s");
    }
}
