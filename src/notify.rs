//! Notifies the service manager (`sd_notify(3)`) of readiness, status and liveness. Does nothing without a service
//! manager. Also holds the daemon's regular beat, which drives status lines, the watchdog and the sampling of rates.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::admin::api::Summary;
use crate::admin::status::StatusRoutes;
use crate::clock::{Clock, UnixMillis};
use crate::outbox::operator::Operator;
use crate::plural::count;

/// The time between two beats. Each beat samples the rates.
const BEAT: Duration = Duration::from_secs(1);

/// The time between two status lines.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Opening a large store takes long. While it is opened, each beat asks systemd for this much more start-up time.
const START_EXTENSION: Duration = Duration::from_secs(30);

/// The daemon accepts events.
pub fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("accepting events")]);
}

/// The daemon is draining.
pub fn stopping(why: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(&format!("draining: {why}"))]);
}

/// The stop needs this much more time.
pub fn prolong(by: Duration) {
    let by = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(by)]);
}

/// The configuration is being read again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The configuration was reloaded or refused.
pub fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// Ignores a failed notification: the service manager notices a dead process by itself.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be notified");
    }
}

/// Beats until `stop` is cancelled. Feeds the watchdog only while the outbox answers. Killing a daemon that can no
/// longer store or settle loses nothing, and a restart may mend it.
pub async fn pulse<O: Operator>(status: StatusRoutes<O>, clock: Clock, stop: CancellationToken) {
    let feed_every = sd_notify::watchdog_enabled().map(|patience| patience / 3);
    let (mut next_feed, mut next_status) = (UnixMillis(0), UnixMillis(0));
    loop {
        let now = clock.now();
        status.sample().await;
        if status.is_starting() {
            let extension = u32::try_from(START_EXTENSION.as_micros()).unwrap_or(u32::MAX);
            tell(&[NotifyState::ExtendTimeoutUsec(extension)]);
        } else {
            if let Some(every) = feed_every
                && now >= next_feed
                && status.outbox_answers(every).await
            {
                tell(&[NotifyState::Watchdog]);
                next_feed = now.plus(every);
            }
            if now >= next_status
                && let Some(summary) = status.summary().await
            {
                tell(&[NotifyState::Status(&line(&summary))]);
                next_status = now.plus(STATUS_EVERY);
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = clock.sleep(BEAT) => {}
        }
    }
}

/// The line in `systemctl status`.
fn line(summary: &Summary) -> String {
    let Summary { state, outbox, rates, held, .. } = summary;
    let mut line = format!(
        "{state}: {} stored ({} ready, {} waiting, {} buried), oldest {:.0} s; {:.1}/s in, {:.1}/s out",
        count(outbox.events, "event"),
        outbox.ready,
        outbox.waiting,
        outbox.buried,
        outbox.oldest_age_seconds,
        rates.accepted_per_second,
        rates.delivered_per_second,
    );
    if !held.is_empty() {
        line += &format!("; held: {}", held.join(", "));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{OutboxCounts, Rates};

    #[test]
    fn the_status_line_names_what_an_operator_asks_first() {
        let summary = Summary {
            state: "ready".to_owned(),
            outbox: OutboxCounts { events: 5, ready: 3, waiting: 1, buried: 1, ..OutboxCounts::default() },
            rates: Rates { accepted_per_second: 2.5, ..Rates::default() },
            held: vec!["orders".to_owned()],
            ..Summary::default()
        };
        assert_eq!(
            line(&summary),
            "ready: 5 events stored (3 ready, 1 waiting, 1 buried), oldest 0 s; 2.5/s in, 0.0/s out; held: orders"
        );
    }
}
