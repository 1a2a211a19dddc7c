//! Builds the stages, runs them, drains them; the only file that knows them all.

use crate::config::Config;

/// Why the daemon could not run, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine does not give what is needed: an address is taken, the store is locked, a directory not writable.
    #[error("{doing}")]
    Unavailable {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The outbox is poisoned, or something of ours is broken.
    #[error("{doing}")]
    Internal {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Runs until it is told to stop; returns once all is drained.
pub async fn run(_config: Config) -> Result<(), Error> {
    Err(Error::Internal { doing: "cannot start".to_owned(), source: "the stages are not built in".into() })
}
