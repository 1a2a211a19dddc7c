//! The values of `log.level`.

use tracing_subscriber::EnvFilter;

use super::read::Reader;

/// If no region is configured, the SDK asks a metadata service for one and logs three long warnings when none answers.
/// Outside of AWS that is normal. sendoff reports the missing region itself (`aws::Error`). A level that names
/// `aws_config` shows the warnings.
const QUIET: &str = "aws_config::imds::region=error";

/// The audit of operators. Nobody switches it off by `log.level`: the last of two directives for the same target counts.
const AUDIT: &str = "sendoff::audit=info";

/// Why a level was not applied.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    #[error("{why}")]
    NoFilter { why: String },
    #[error("the log has ended")]
    Gone,
}

/// Parses a level. Stricter than `EnvFilter`, which would take a mistyped level for a module's name and then log
/// nothing.
pub fn parse(text: &str) -> Result<EnvFilter, LevelError> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let no_filter = |why| Err(LevelError::NoFilter { why });
    let is_odd = |directive: &&str| directive.ends_with('=') || !directive.contains('=') && !is_level(directive);
    match text.split(',').map(str::trim).find(is_odd) {
        Some("") => no_filter("has an empty part".to_owned()),
        Some(part) if part.contains('=') => no_filter(format!("{part:?} has no level")),
        Some(word) => no_filter(format!("{word:?} is not a level")),
        None => {
            // A directive with a span or a field would count before ours.
            if text.contains("sendoff::audit") {
                return no_filter("sendoff::audit is always logged".to_owned());
            }
            let quiet = if text.contains("aws_config") { String::new() } else { format!(",{QUIET}") };
            EnvFilter::try_new(format!("{text}{quiet},{AUDIT}"))
                .or_else(|error| no_filter(format!("not a filter: {error}")))
        }
    }
}

/// Reads `log.level`.
pub fn read(r: &mut Reader) -> Option<String> {
    const KEY: &str = "log.level";
    let text = r.text(KEY)?;
    match parse(&text) {
        Ok(_) => Some(text),
        Err(error) => {
            let hint = "write it like \"info\" or \"info,sendoff::dispatch=debug\"";
            r.refuse(KEY, &error.to_string(), Some(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_metadata_service_is_no_news_unless_it_is_asked_for() {
        for (text, quiet) in [("info", true), ("debug,sendoff=trace", true), ("info,aws_config=debug", false)] {
            assert_eq!(parse(text).unwrap().to_string().contains(QUIET), quiet, "{text}");
        }
        assert!(parse("inof").is_err() && parse("").is_err() && parse("a=b=c").is_err());
        assert!(parse("info,sendoff=").is_err());
    }

    #[test]
    fn no_level_is_without_the_audit() {
        for text in ["off", "error", "info,sendoff=off", "sendoff::admin=trace"] {
            assert!(parse(text).unwrap().to_string().contains(AUDIT), "{text}");
        }
        for text in ["sendoff::audit=off", "info,sendoff::audit[{action}]=off"] {
            assert!(parse(text).unwrap_err().to_string().contains("always logged"), "{text}");
        }
    }
}
