//! Writes the log, including panics, to stderr: as text for people or JSON for machines.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{IsTerminal, Write as _};
use std::panic::PanicHookInfo;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tracing::dispatcher::SetGlobalDefaultError;
use tracing::{Dispatch, Level};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{FormatFields, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::config::level::{LevelError, parse};
use crate::config::{Log, LogFormat};
use crate::visible::visible;

pub mod lines;

#[cfg(feature = "otlp")]
pub mod otlp;

use lines::Lines;

/// How long a process that ends waits for stderr to accept the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long a panic waits for its line to be written, which may be the last.
const PANIC_LINE: Duration = Duration::from_millis(200);

/// The log writer of this process, set by [`install`]. Final messages use the same writer as the log.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log.level: {0}")]
    Level(#[from] LevelError),
    #[error("logging is set up already")]
    Twice(#[from] SetGlobalDefaultError),
    #[error("cannot start the log's thread: {0}")]
    Thread(#[from] std::io::Error),
    #[cfg(feature = "otlp")]
    #[error("spans cannot be exported as $OTEL_EXPORTER_OTLP_ENDPOINT says: {0}")]
    Otlp(String),
}

/// Keep this value alive while the process logs. Dropping it waits for the last lines and sends the exporter's queued
/// spans.
#[derive(Default)]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    #[expect(dead_code, reason = "held for its drop")]
    exporter: Option<otlp::Exporter>,
    lines: Lines,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.lines.flush(LAST_LINES);
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("telemetry")
    }
}

/// Sends this process's log and panics to stderr. Uses colours only on a terminal without `NO_COLOR`. Call it once a
/// process.
pub fn install(log: &Log) -> Result<(LogLevel, Telemetry), Error> {
    let colours = !log.no_color && std::io::stderr().is_terminal();
    let lines = Lines::to(std::io::stderr())?;
    let (subscriber, level, telemetry) = whole(log, colours, lines.clone())?;
    tracing::dispatcher::set_global_default(subscriber)?;
    std::panic::set_hook(Box::new(|info| {
        log_panic(info);
        if let Some(lines) = LINES.get() {
            lines.flush(PANIC_LINE);
        }
    }));
    LINES.get_or_init(|| lines);
    Ok((level, telemetry))
}

/// Writes a line for people to stderr. Ignores a failed write, since no other way to report it is left. If this process
/// has a log, the line goes through the log's writer and waits at most a second.
pub fn say(line: &str) {
    match LINES.get() {
        Some(lines) => {
            lines.push(format!("{line}\n").as_bytes());
            lines.flush(LAST_LINES);
        }
        None => drop(writeln!(std::io::stderr(), "{line}")),
    }
}

#[cfg(feature = "otlp")]
fn whole(log: &Log, colours: bool, lines: Lines) -> Result<(Dispatch, LogLevel, Telemetry), Error> {
    let writer = lines.clone();
    let writer = move || writer.clone();
    if let Some(endpoint) = &log.otlp_endpoint {
        let (subscriber, level, exporter) = otlp::subscriber(log, endpoint, colours, writer)?;
        return Ok((subscriber, level.of(&lines), Telemetry { exporter: Some(exporter), lines }));
    }
    let (subscriber, level) = subscriber(log, colours, writer)?;
    Ok((subscriber, level.of(&lines), Telemetry { exporter: None, lines }))
}

#[cfg(not(feature = "otlp"))]
fn whole(log: &Log, colours: bool, lines: Lines) -> Result<(Dispatch, LogLevel, Telemetry), Error> {
    let writer = lines.clone();
    let (subscriber, level) = subscriber(log, colours, move || writer.clone())?;
    Ok((subscriber, level.of(&lines), Telemetry { lines }))
}

type Set = dyn Fn(EnvFilter) -> Result<(), LevelError> + Send + Sync;

/// The log filter, which can be changed at run time. Cheap to clone. All clones share one filter.
#[derive(Clone)]
pub struct LogLevel {
    text: Arc<Mutex<String>>,
    set: Arc<Set>,
    lines: Option<Lines>,
}

impl LogLevel {
    fn of(self, lines: &Lines) -> Self {
        Self { lines: Some(lines.clone()), ..self }
    }

    /// Calls `count` for every dropped log line, including those dropped so far.
    pub fn count_dropped(&self, count: impl Fn(u64) + Send + Sync + 'static) {
        if let Some(lines) = &self.lines {
            lines.count_dropped(count);
        }
    }

    /// Parses the text of `log.level`.
    pub fn get(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets another filter, or keeps the current one if `text` is not a filter.
    pub fn set(&self, text: &str) -> Result<(), LevelError> {
        let filter = parse(text)?;
        // The lock keeps text and filter consistent.
        let mut present = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        (self.set)(filter)?;
        *present = text.to_owned();
        Ok(())
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log level {}", self.get())
    }
}

/// Caps the log level of libraries, whatever `log.level` says. At lower levels they log requests, whose headers contain
/// keys and whose bodies are payloads (aws-sigv4 logs what it signs at `trace`).
fn discreet() -> Targets {
    let libraries = [("aws_", Level::INFO), ("h2", Level::INFO), ("hyper", Level::DEBUG)];
    Targets::new().with_default(LevelFilter::TRACE).with_targets(libraries)
}

/// The layer that writes log lines to `writer` in the format of `log`.
fn subscriber<W>(log: &Log, colours: bool, writer: W) -> Result<(Dispatch, LogLevel), LevelError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = parse(&log.level)?;
    // tracing-subscriber would report a failed write with `eprintln!`, which panics if stderr is closed.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).log_internal_errors(false);
    let lines = lines.with_writer(writer);
    let (dispatch, set): (Dispatch, Arc<Set>) = match log.format {
        LogFormat::Text => {
            let lines = lines.fmt_fields(text_fields()).with_filter_reloading();
            let handle = lines.reload_handle();
            (
                Dispatch::new(lines.finish().with(discreet())),
                Arc::new(move |filter| handle.reload(filter).map_err(|_| LevelError::Gone)),
            )
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_span_list(false).with_filter_reloading();
            let handle = lines.reload_handle();
            (
                Dispatch::new(lines.finish().with(discreet())),
                Arc::new(move |filter| handle.reload(filter).map_err(|_| LevelError::Gone)),
            )
        }
    };
    Ok((dispatch, LogLevel { text: Arc::new(Mutex::new(log.level.clone())), set, lines: None }))
}

/// Formats the fields of a text line. tracing-subscriber writes `Display` fields unescaped, so an error text of Lambda,
/// a client's path or a function name could forge a line or control the terminal.
fn text_fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    debug_fn(|out, field, value| {
        let value = format!("{value:?}");
        let value = visible(&value);
        match field.name() {
            "message" => write!(out, "{value}"),
            name => {
                let name = name.trim_start_matches("r#");
                if out.has_ansi_escapes() {
                    write!(out, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}")
                } else {
                    write!(out, "{name}={value}")
                }
            }
        }
    })
    .delimited(" ")
}

/// Logs panics as log lines, so that they are found where all other lines are.
fn log_panic(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let panic = info.payload_as_str().unwrap_or("a panic without a message");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(panic, location, thread, %backtrace, "panicked");
    } else {
        tracing::error!(panic, location, thread, "panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Everything that is written while `run` runs.
    fn written(format: LogFormat, level: &str, colours: bool, run: impl FnOnce()) -> String {
        let lines = Lines::default();
        let log = Log { format, level: level.to_owned(), no_color: false, otlp_endpoint: None };
        let shared = lines.clone();
        let (subscriber, _) = subscriber(&log, colours, move || shared.clone()).unwrap();
        tracing::dispatcher::with_default(&subscriber, run);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    fn say() {
        tracing::info!(function = "orders", "lane held");
        tracing::debug!("detail");
    }

    #[test]
    fn json_lines_have_their_fields_at_the_top() {
        let text = written(LogFormat::Json, "info", false, say);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!((&lines[0]["message"], &lines[0]["function"]), (&"lane held".into(), &"orders".into()));
        assert_eq!(lines[0]["level"], "INFO");
    }

    #[test]
    fn text_is_coloured_only_if_asked_for() {
        let plain = written(LogFormat::Text, "info", false, say);
        assert!(plain.contains("lane held function=\"orders\"") && !plain.contains('\u{1b}'), "{plain}");
        assert!(written(LogFormat::Text, "info", true, say).contains('\u{1b}'));
    }

    #[test]
    fn text_of_others_neither_forges_a_line_nor_reaches_the_terminal() {
        let hostile = "no\x1b[2J\n2026-11-30T00:00:00Z  INFO sendoff: all is well\u{9b}31m\u{202e}";
        for colours in [false, true] {
            let text = written(LogFormat::Text, "info", colours, || {
                let error = std::io::Error::other(hostile);
                tracing::info_span!("request", path = %hostile).in_scope(|| {
                    tracing::warn!(reason = %hostile, text = hostile, debug = ?hostile, %error, "refused {hostile}");
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "refused");
                });
            });
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(!text.contains(['\u{9b}', '\u{202e}']) && !text.contains("\x1b[2J"), "{text}");
            assert!(text.contains("reason") && text.contains("no\\u{1b}[2J\\n2026"), "{text}");
        }
    }

    #[test]
    fn the_level_is_a_filter_by_module() {
        assert_eq!(written(LogFormat::Text, "info,sendoff::telemetry=warn", false, say), "");
        assert_eq!(written(LogFormat::Text, "warn,sendoff::telemetry=debug", false, say).lines().count(), 2);
    }

    #[test]
    fn the_level_changes_while_running_and_keeps_what_it_was_on_nonsense() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = Lines::default();
            let shared = lines.clone();
            let log = Log { format, level: "info".to_owned(), no_color: true, otlp_endpoint: None };
            let (subscriber, level) = subscriber(&log, false, move || shared.clone()).unwrap();
            tracing::dispatcher::with_default(&subscriber, || {
                level.set("warn").unwrap();
                say();
                assert!(level.set("inof").is_err() && level.set("a=b=c").is_err());
                assert_eq!(level.get(), "warn");
                say();
                assert_eq!(lines.0.lock().unwrap().len(), 0);
                level.set("debug").unwrap();
                say();
            });
            assert_eq!(String::from_utf8(lines.0.lock().unwrap().clone()).unwrap().lines().count(), 2);
        }
    }

    #[test]
    fn libraries_that_see_payloads_are_discreet_at_every_level() {
        let text = written(LogFormat::Text, "trace,aws_sigv4=trace", false, || {
            tracing::trace!(target: "aws_sigv4::http_request", "signing");
            tracing::debug!(target: "h2::codec", "frame");
            tracing::trace!(target: "hyper::proto", "read");
            tracing::warn!(target: "aws_config::imds::region", "no metadata");
            tracing::info!(target: "aws_config", "found");
            tracing::trace!("own");
        });
        assert!(text.contains("found") && text.contains("own"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn a_panic_is_a_log_line() {
        // The panic hook is global. Panics of other tests go to the previous hook.
        let here = std::thread::current().id();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().id() == here { log_panic(info) } else { before(info) }
        }));
        let text = written(LogFormat::Json, "error", false, || {
            assert!(std::panic::catch_unwind(|| panic!("lost {}", "count")).is_err());
        });
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&line["message"], &line["panic"]), (&"panicked".into(), &"lost count".into()));
        assert!(line["location"].as_str().unwrap().starts_with("src/telemetry.rs:"), "{line}");
    }

    #[test]
    fn a_level_that_is_no_filter_is_an_error() {
        let log =
            Log { format: LogFormat::Text, level: "sendoff=loud".to_owned(), no_color: true, otlp_endpoint: None };
        assert!(subscriber(&log, false, std::io::sink).is_err());
    }
}
