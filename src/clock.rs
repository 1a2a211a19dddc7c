//! The only source of the current time and of random numbers.
//!
//! Holds: [`Clock::now`] follows the wall clock in both directions, within two seconds. So an instant that a client
//! names means what the client's clock means. Durations since a stored time are corrected for steps of the wall clock
//! ([`Clock::present`]). Waits within one process use [`Clock::steady`], which never steps. docs/adr/0013 lists which
//! time uses which clock.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

pub use steps::{Step, Steps};

mod steps;

mod text;

/// Smaller differences between the wall clock and ours come from reading two clocks one after the other.
const STEP_MIN_MS: u64 = 250;

/// The longest sleep before a sleeper reads the wall clock again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Event ids stay in order if the clock is set back by at most this much.
const ORDERED_WITHIN: Duration = Duration::from_secs(5);

/// A clock that shows a time before 2020 has not been set yet.
const SET_AFTER: UnixMillis = UnixMillis(1_577_836_800_000);

/// The end of the year 9999, the latest time that RFC 3339 can express.
pub const MILLIS_MAX: u64 = 253_402_300_799_999;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The latest time. Means "never due".
    pub const MAX: Self = Self(u64::MAX);

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// This time moved by the given milliseconds, so that it keeps its distance from a clock that was set. [`Self::MAX`]
    /// stays as it is.
    pub fn shifted(self, by_millis: i64) -> Self {
        if self == Self::MAX { self } else { Self(self.0.saturating_add_signed(by_millis)) }
    }

    /// The time since `earlier`, or zero if `earlier` is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Random bytes of the operating system that nobody can guess. Those of a [`Clock`] are no secret: some of them are in the ids of
/// events, and a seed repeats them.
pub fn secret<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// Current time, sleeping and random numbers. Cheap to clone.
///
/// With [`Clock::seeded`] and tokio's paused clock, time and random numbers are reproducible. The simulation depends
/// on that.
#[derive(Debug, Clone)]
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Whether this is the machine's clock, not a test's.
    is_system: bool,
    anchor: Instant,
    anchor_millis: AtomicU64,
    /// The sum of the steps since the anchor, in milliseconds.
    offset: AtomicI64,
    /// How long the machine had been suspended since its start when last checked, in milliseconds.
    asleep: AtomicI64,
    steps: Mutex<Steps>,
    /// The time of the newest id.
    youngest: AtomicU64,
    stepped: Notify,
    random: Mutex<fastrand::Rng>,
}

impl Clock {
    /// The machine's clock, and a generator with a random seed.
    pub fn system() -> Self {
        Self::starting_at(wall_millis(), fastrand::Rng::new(), true)
    }

    /// A clock that starts at `start`, and a generator with a fixed seed. For simulation and tests.
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
                offset: AtomicI64::new(0),
                asleep: AtomicI64::new(suspended_millis()),
                steps: Mutex::default(),
                youngest: AtomicU64::new(0),
                stepped: Notify::new(),
                random: Mutex::new(random),
            }),
        }
    }

    /// The current time, as the wall clock shows it.
    pub fn now(&self) -> UnixMillis {
        if self.shared.is_system {
            let (wall, ours) = (wall_millis(), self.reckoned());
            if is_step(ours, wall) {
                self.look();
            }
        }
        self.reckoned()
    }

    /// The start time plus the monotonic time since then. No step of the wall clock changes it. Use it for waits.
    pub fn steady(&self) -> UnixMillis {
        UnixMillis(self.shared.anchor_millis.load(Ordering::Relaxed)).plus(self.shared.anchor.elapsed())
    }

    /// The sum of all steps since the start, in milliseconds. Move an instant by this sum to keep its distance from now
    /// over a step.
    pub fn stepped(&self) -> i64 {
        self.shared.offset.load(Ordering::Relaxed)
    }

    fn reckoned(&self) -> UnixMillis {
        UnixMillis(self.steady().0.saturating_add_signed(self.stepped()).min(MILLIS_MAX))
    }

    /// Adopts a step of the wall clock, if there was one.
    fn look(&self) {
        let mut steps = self.steps_held();
        // Read again under the lock: another thread may have adopted the step already.
        let (before, after) = (self.reckoned(), wall_millis());
        if !is_step(before, after) {
            return;
        }
        let by = i64::try_from(i128::from(after.0) - i128::from(before.0)).unwrap_or(i64::MAX);
        self.shared.offset.fetch_add(by, Ordering::Relaxed);
        if self.slept(by) {
            tracing::warn!(seconds = by / 1_000, "the machine was suspended: continuing with the current time");
        } else {
            steps.note(Step { before, after });
            let (before, after) = (before.rfc3339(), after.rfc3339());
            tracing::warn!(
                seconds = by as f64 / 1_000.0,
                before,
                after,
                "the wall clock was set: times named by clients follow the new clock, durations count the time that really passed"
            );
        }
        drop(steps);
        self.shared.stepped.notify_waiters();
    }

    /// Whether a suspend of the machine explains the step: the monotonic clock stands still during a suspend.
    fn slept(&self, by: i64) -> bool {
        let asleep = suspended_millis();
        let before = self.shared.asleep.swap(asleep, Ordering::Relaxed);
        by > 0 && asleep.saturating_sub(before).abs_diff(by) < STEP_MIN_MS * 4
    }

    /// Sets a test's clock, as an administrator sets a wall clock.
    pub fn step(&self, by_millis: i64) {
        let before = self.now();
        self.shared.offset.fetch_add(by_millis, Ordering::Relaxed);
        self.steps_held().note(Step { before, after: self.now() });
        self.shared.stepped.notify_waiters();
    }

    /// All known steps, including those from earlier processes.
    pub fn steps(&self) -> Steps {
        self.steps_held().clone()
    }

    fn steps_held(&self) -> MutexGuard<'_, Steps> {
        self.shared.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Continues from what a store knows: its steps and the time of its last commit. Returns whether the clock must have
    /// been set since then.
    pub fn resume(&self, stored: Steps, last: UnixMillis) -> Option<Step> {
        let now = self.now();
        let mut steps = self.steps_held();
        *steps = steps.after(stored);
        // The clock was set back since, or it had not been set when the store was last used.
        let is_step =
            now.0.saturating_add(STEP_MIN_MS) < last.0 || (last.0 > 0 && last < SET_AFTER && SET_AFTER <= now);
        let step = is_step.then_some(Step { before: last, after: now });
        step.into_iter().for_each(|step| steps.note(step));
        step
    }

    /// Converts a time that this clock or an earlier process once showed to the present time line. See
    /// [`Steps::present`].
    pub fn present(&self, at: UnixMillis) -> UnixMillis {
        let now = self.now();
        self.steps_held().present(at, now)
    }

    /// The acceptance time of an event that is accepted now. Ids sort by it, so it does not follow a small step back.
    pub fn accepting(&self) -> UnixMillis {
        let now = self.now();
        let youngest = UnixMillis(self.shared.youngest.fetch_max(now.0, Ordering::Relaxed));
        if youngest <= now {
            return now;
        }
        if youngest.since(now) <= ORDERED_WITHIN {
            return youngest;
        }
        self.shared.youngest.store(now.0, Ordering::Relaxed);
        now
    }

    /// The wall clock's time, for values that others compare with their clocks, such as the time of a signature.
    pub fn wall(&self) -> SystemTime {
        if self.shared.is_system {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
            return SystemTime::now();
        }
        UNIX_EPOCH + Duration::from_millis(self.now().0)
    }

    /// The same as milliseconds. 0 before 1970.
    pub fn wall_millis(&self) -> UnixMillis {
        UnixMillis(0).plus(self.wall().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// Advances a test's clock that no runtime moves, until it shows at least `time`.
    #[cfg(test)]
    pub fn pass_until(&self, time: UnixMillis) {
        let behind = time.since(self.now());
        let millis = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        self.shared.anchor_millis.fetch_add(millis, Ordering::Relaxed);
    }

    /// A monotonic instant, for measuring durations.
    pub fn instant(&self) -> Instant {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
        Instant::now()
    }

    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        tokio::time::sleep(duration)
    }

    /// Sleeps until `time`, or until the clock is set. The caller must then compute `time` again.
    pub async fn sleep_until(&self, time: UnixMillis) {
        let left = time.since(self.now());
        if left.is_zero() {
            // A timer would sleep until the next millisecond.
            return tokio::task::yield_now().await;
        }
        if time == UnixMillis::MAX {
            return self.until_stepped().await;
        }
        let stepped = self.until_stepped();
        tokio::select! {
            biased;
            () = stepped => {}
            () = tokio::time::sleep(left) => {}
        }
    }

    /// Returns once the clock is set.
    pub async fn until_stepped(&self) {
        let set = self.shared.stepped.notified();
        tokio::pin!(set);
        set.as_mut().enable();
        let known = self.stepped();
        loop {
            // A test's clock notifies when it is set. The machine's clock must be polled.
            let look = async {
                match self.shared.is_system {
                    true => tokio::time::sleep(LOOK_EVERY).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = set.as_mut() => return,
                () = look => {}
            }
            self.now();
            if self.stepped() != known {
                return;
            }
        }
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
        let mut random = self.shared.random.lock().unwrap_or_else(PoisonError::into_inner);
        draw(&mut random)
    }
}

/// Whether the wall clock was set and now differs from ours. A wall clock before 1970 is read as the start of 1970.
/// Ours then runs on from there, or there would be a step each second.
fn is_step(ours: UnixMillis, wall: UnixMillis) -> bool {
    let shows_nothing = wall == UnixMillis(0) && ours < SET_AFTER;
    !shows_nothing && wall.0.abs_diff(ours.0) >= STEP_MIN_MS
}

/// The wall clock's time, or the start of 1970 if the clock shows an earlier time.
fn wall_millis() -> UnixMillis {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    let wall = SystemTime::now();
    UnixMillis(UnixMillis::default().plus(wall.duration_since(UNIX_EPOCH).unwrap_or_default()).0.min(MILLIS_MAX))
}

/// How long the machine has been suspended since its start.
fn suspended_millis() -> i64 {
    use rustix::time::{ClockId, clock_gettime};
    let millis = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
    };
    millis(ClockId::Boottime).saturating_sub(millis(ClockId::Monotonic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_follows_the_wall_clock_and_steady_time_does_not() {
        let clock = Clock::seeded(UnixMillis(10_000), 1);
        clock.sleep(Duration::from_millis(500)).await;
        clock.step(-5_000);
        assert_eq!((clock.now(), clock.steady(), clock.stepped()), (UnixMillis(5_500), UnixMillis(10_500), -5_000));
        clock.step(90_000);
        assert_eq!((clock.now(), clock.steady(), clock.stepped()), (UnixMillis(95_500), UnixMillis(10_500), 85_000));
        clock.step(-900_000);
        assert_eq!(clock.now(), UnixMillis(0), "no time is before 1970");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_when_the_clock_is_set() {
        let clock = Clock::seeded(UnixMillis(1_000_000), 1);
        for until in [UnixMillis(9_000_000), UnixMillis::MAX] {
            let (asleep, began) = (clock.clone(), clock.steady());
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(async move { asleep.sleep_until(until).await });
            clock.sleep(Duration::from_secs(1)).await;
            clock.step(500_000);
            tasks.join_next().await.unwrap().unwrap();
            assert_eq!(clock.steady().since(began), Duration::from_secs(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ids_keep_their_order_over_a_small_step_back_and_follow_a_large_one() {
        let clock = Clock::seeded(UnixMillis(1_000_000), 1);
        let first = clock.accepting();
        clock.step(-3_000);
        assert_eq!(clock.accepting(), first);
        clock.step(-60_000);
        assert_eq!(clock.accepting(), UnixMillis(937_000));
    }

    #[test]
    fn a_wall_clock_before_1970_is_one_step_and_not_one_each_second() {
        let now = UnixMillis(1_790_000_000_000);
        assert!(is_step(now, UnixMillis(0)) && is_step(UnixMillis(60_000), now));
        assert!(!is_step(UnixMillis(60_000), UnixMillis(0)) && !is_step(now, now.shifted(100)));
    }

    #[test]
    fn a_store_from_the_future_and_one_of_an_unset_clock_are_told() {
        let now = UnixMillis(1_790_000_000_000);
        let clock = || Clock::seeded(now, 1);
        assert_eq!(clock().resume(Steps::default(), UnixMillis(now.0 - 86_400_000)), None, "it was off for a day");
        assert_eq!(clock().resume(Steps::default(), UnixMillis(0)), None, "a new store");
        for last in [UnixMillis(now.0 + 315_360_000_000), UnixMillis(60_000)] {
            let clock = clock();
            let step = clock.resume(Steps::default(), last).unwrap();
            assert_eq!(step.before, last);
            assert_eq!(clock.present(last), step.after);
        }
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
}
