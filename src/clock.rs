//! The only source of now and of chance.
//!
//! Holds: time never goes backwards, within a process (it follows the monotonic clock) nor over restarts (the outbox
//! hands back the latest time that it stored, see [`Clock::not_before`]). A step of the wall clock in either direction
//! therefore neither expires events early nor keeps keys for ever; it is taken over at the next start.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The end of time, for "not due at all".
    pub const MAX: Self = Self(u64::MAX);

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// RFC 3339 with milliseconds, UTC.
    pub fn rfc3339(self) -> String {
        let millis = self.0.min(253_402_300_799_000); // the end of year 9999, the last that RFC 3339 can write
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).to_string()
    }

    /// A time of RFC 3339, or a duration such as "2h" for so long before `now`.
    pub fn read(text: &str, now: Self) -> Option<Self> {
        let ago = humantime::parse_duration(text).ok().and_then(|ago| u64::try_from(ago.as_millis()).ok());
        ago.map(|millis| Self(now.0.saturating_sub(millis))).or_else(|| Self::read_rfc3339(text))
    }

    /// A time of RFC 3339; none if it is before 1970 or no time at all.
    pub fn read_rfc3339(text: &str) -> Option<Self> {
        let since = humantime::parse_rfc3339_weak(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self(0).plus(since))
    }
}

/// Now, sleeping, and random numbers. Cheap to clone.
///
/// Under tokio's paused clock and with [`Clock::seeded`] both are reproducible, which is what the simulation rests on.
#[derive(Debug, Clone)]
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Whether this is the machine's own clock, and not one of a test.
    is_system: bool,
    anchor: Instant,
    anchor_millis: AtomicU64,
    random: std::sync::Mutex<fastrand::Rng>,
}

impl Clock {
    /// The machine's clock and a randomly seeded generator.
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
        let wall = SystemTime::now();
        let since_epoch = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(UnixMillis::default().plus(since_epoch), fastrand::Rng::new(), true)
    }

    /// A clock that starts at `start` and a generator with a fixed seed: for simulation and tests.
    pub fn seeded(start: UnixMillis, seed: u64) -> Self {
        Self::starting_at(start, fastrand::Rng::with_seed(seed), false)
    }

    fn starting_at(start: UnixMillis, random: fastrand::Rng, is_system: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                is_system,
                #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
                anchor: Instant::now(),
                anchor_millis: AtomicU64::new(start.0),
                random: std::sync::Mutex::new(random),
            }),
        }
    }

    /// The present time.
    pub fn now(&self) -> UnixMillis {
        let start = UnixMillis(self.shared.anchor_millis.load(Ordering::Relaxed));
        start.plus(self.shared.anchor.elapsed())
    }

    /// The time of day, for what others compare with their own clocks, as the time of a signature: it follows every step
    /// of the wall clock, also those that [`Clock::now`] leaves out on purpose.
    pub fn wall(&self) -> SystemTime {
        if self.shared.is_system {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
            return SystemTime::now();
        }
        UNIX_EPOCH + Duration::from_millis(self.now().0)
    }

    /// Moves the clock forward so that it is at least `time`: what a store that has seen a later time asks for.
    /// Returns by how much it had to move.
    pub fn not_before(&self, time: UnixMillis) -> Duration {
        let behind = time.since(self.now());
        let millis = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        self.shared.anchor_millis.fetch_add(millis, Ordering::Relaxed);
        behind
    }

    /// A monotonic instant, for measuring how long something took.
    pub fn instant(&self) -> Instant {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
        Instant::now()
    }

    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        tokio::time::sleep(duration)
    }

    /// Sleeps until `time`; for ever if that is [`UnixMillis::MAX`].
    pub async fn sleep_until(&self, time: UnixMillis) {
        if time == UnixMillis::MAX {
            return std::future::pending().await;
        }
        let left = time.since(self.now());
        if left.is_zero() {
            // A timer would take to the next millisecond.
            return tokio::task::yield_now().await;
        }
        tokio::time::sleep(left).await;
    }

    /// A uniformly random duration in `0..=limit`: full jitter.
    pub fn jitter(&self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random(|random| random.u64(0..=nanos)))
    }

    /// 128 random bits.
    pub fn random_bits(&self) -> u128 {
        self.random(|random| random.u128(..))
    }

    fn random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        let mut random = self.shared.random.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        draw(&mut random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_follows_the_monotonic_clock_and_never_goes_back() {
        let clock = Clock::seeded(UnixMillis(1_000), 1);
        clock.sleep(Duration::from_millis(500)).await;
        assert_eq!(clock.now(), UnixMillis(1_500));
        assert_eq!(clock.not_before(UnixMillis(1_200)), Duration::ZERO);
        assert_eq!(clock.now(), UnixMillis(1_500));
        assert_eq!(clock.not_before(UnixMillis(9_500)), Duration::from_secs(8));
        assert_eq!(clock.now(), UnixMillis(9_500));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_draws_the_same_numbers() {
        let draw = |seed| {
            let clock = Clock::seeded(UnixMillis(0), seed);
            (clock.jitter(Duration::from_secs(60)), clock.random_bits())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn times_are_read_as_rfc_3339_or_as_how_long_ago() {
        let now = UnixMillis(1_790_000_000_000);
        assert_eq!(UnixMillis::read("2h", now), Some(UnixMillis(now.0 - 7_200_000)));
        assert_eq!(UnixMillis::read("2019-11-15T18:16:05.568Z", now), Some(UnixMillis(1_573_841_765_568)));
        for text in ["", "2", "soon", "1960-01-01T00:00:00Z"] {
            assert_eq!(UnixMillis::read(text, now), None, "{text}");
        }
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(UnixMillis(1_573_841_765_568).rfc3339(), "2019-11-15T18:16:05.568Z");
    }
}
