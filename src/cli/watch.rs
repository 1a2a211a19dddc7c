//! `--watch`: shows the same view repeatedly, until interrupted.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;

use super::{Failure, out};
use crate::clock::Clock;

/// Moves the cursor to the corner and clears everything after it.
const TO_THE_CORNER: &str = "\x1b[H\x1b[J";

/// Whether to show a view once or repeatedly.
#[derive(Debug, Clone, Args)]
pub struct Watch {
    /// Show it again every second, until interrupted
    #[arg(long)]
    pub(super) watch: bool,
    /// Seconds between two updates
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600), requires = "watch")]
    interval: u64,
    /// Stop after this many updates
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl Watch {
    /// Shows the result of `look`. A failure is shown, too, and the command goes on, because a restart of the daemon is
    /// worth watching.
    pub(super) async fn show(
        &self,
        json: bool,
        mut look: impl AsyncFnMut() -> Result<String, Failure>,
    ) -> Result<(), Failure> {
        let clock = Clock::system();
        let mut left = self.count;
        while left != Some(0) {
            let text = match look().await {
                Ok(text) => text,
                Err(failure) if json => serde_json::json!({ "message": failure.to_string() }).to_string() + "\n",
                Err(failure) => format!("{failure}\n"),
            };
            let corner = if !json && std::io::stdout().is_terminal() { TO_THE_CORNER } else { "" };
            out::painted(&format!("{corner}{text}"))?;
            left = left.map(|left| left - 1);
            if left != Some(0) {
                clock.sleep(Duration::from_secs(self.interval)).await;
            }
        }
        Ok(())
    }
}
