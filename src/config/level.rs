//! What `log.level` may say.

use tracing_subscriber::EnvFilter;

/// Why a level was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    #[error("{why}")]
    NoFilter { why: String },
    #[error("the log has ended")]
    Gone,
}

/// The filter that `text` is. Stricter than the filter's own reading, which takes a mistyped level for a module's name
/// and then shows nothing at all.
pub fn parse(text: &str) -> Result<EnvFilter, LevelError> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let no_filter = |why| Err(LevelError::NoFilter { why });
    match text.split(',').map(str::trim).find(|directive| !directive.contains('=') && !is_level(directive)) {
        Some("") => no_filter("has an empty part".to_owned()),
        Some(word) => no_filter(format!("{word:?} is not a level")),
        None => EnvFilter::try_new(text).or_else(|error| no_filter(format!("not a filter: {error}"))),
    }
}
