//! Which script a function follows, and what its next request meets.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::standin::script::{RateLimit, Script, Trouble};

/// All scripts, and how far each function has played its own.
#[derive(Debug, Default)]
pub(super) struct Stage {
    cast: Mutex<Cast>,
}

#[derive(Debug, Default)]
struct Cast {
    scripts: Scripts,
    roles: BTreeMap<String, Role>,
}

#[derive(Debug, Default)]
struct Scripts {
    default: Script,
    of: BTreeMap<String, Script>,
}

/// One function's script, as far as it has been played.
#[derive(Debug)]
struct Role {
    script: Script,
    bucket: Option<Bucket>,
    /// Requests in flight that were not throttled. Shared with their turns, so that it survives a change of script.
    in_flight: Arc<AtomicU64>,
}

/// What one request meets.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) trouble: Option<Trouble>,
    pub(super) latency: Duration,
    pub(super) result: Bytes,
    in_flight: Option<Arc<AtomicU64>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Stage {
    pub(super) fn script(&self, function: &str, script: Script) {
        let mut cast = self.lock();
        cast.scripts.of.insert(function.to_owned(), script);
        cast.recast(Some(function));
    }

    pub(super) fn default_script(&self, script: Script) {
        let mut cast = self.lock();
        cast.scripts.default = script;
        cast.recast(None);
    }

    /// Returns the turn of one request. Unless throttled, the request counts as in flight until the turn is dropped.
    pub(super) fn enter(&self, lane: &str, clock: &Clock) -> Turn {
        let mut cast = self.lock();
        let Cast { scripts, roles } = &mut *cast;
        let role = roles.entry(lane.to_owned()).or_insert_with(|| Role::new(scripts.resolve(lane).1));
        let trouble = role.next_trouble(clock);
        let in_flight = (!matches!(trouble, Some(Trouble::Throttle(_)))).then(|| Arc::clone(&role.in_flight));
        if let Some(in_flight) = &in_flight {
            in_flight.fetch_add(1, Ordering::Relaxed);
        }
        let latency = role.script.latency;
        Turn {
            trouble,
            latency: latency.fixed + clock.jitter(latency.random),
            result: role.script.result.clone(),
            in_flight,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cast> {
        self.cast.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cast {
    /// Gives every role whose script is that of `changed` (`None` means the default) the new script, from its
    /// beginning.
    fn recast(&mut self, changed: Option<&str>) {
        for (lane, role) in &mut self.roles {
            let (of, script) = self.scripts.resolve(lane);
            if of == changed {
                *role = Role { in_flight: Arc::clone(&role.in_flight), ..Role::new(script) };
            }
        }
    }
}

impl Scripts {
    /// The script of the lane itself, else of the function without its qualifier, else the default. Also returns whose
    /// script it is.
    fn resolve<'a>(&'a self, lane: &'a str) -> (Option<&'a str>, &'a Script) {
        let bare = lane.split(':').next().unwrap_or(lane);
        [lane, bare]
            .into_iter()
            .find_map(|name| Some((Some(name), self.of.get(name)?)))
            .unwrap_or((None, &self.default))
    }
}

impl Role {
    fn new(script: &Script) -> Self {
        Self { script: script.clone(), bucket: script.rate.map(Bucket::full), in_flight: Arc::default() }
    }

    fn next_trouble(&mut self, clock: &Clock) -> Option<Trouble> {
        if let Some(trouble) = self.script.once.pop_front() {
            return Some(trouble);
        }
        if let Some(limit) = self.script.concurrency
            && self.in_flight.load(Ordering::Relaxed) >= limit.at_once
        {
            return Some(Trouble::Throttle(limit.throttle));
        }
        if let Some(bucket) = &mut self.bucket
            && !bucket.take(clock.instant())
        {
            return Some(Trouble::Throttle(bucket.limit.throttle));
        }
        by_chance(&self.script.chances, share(clock)).cloned()
    }
}

/// The trouble whose part of 0..1 contains `drawn`. `None` means that `drawn` is beyond the sum of all shares.
fn by_chance(chances: &[(f64, Trouble)], drawn: f64) -> Option<&Trouble> {
    let mut upto = 0.0;
    chances.iter().find_map(|(share, trouble)| {
        upto += share;
        (drawn < upto).then_some(trouble)
    })
}

/// A uniformly random number in 0..1 with 53 bits, as many as a double holds.
fn share(clock: &Clock) -> f64 {
    (clock.random_bits() >> 75) as f64 / (1_u64 << 53) as f64
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    limit: RateLimit,
    tokens: f64,
    /// `None` until the first request.
    filled_at: Option<Instant>,
}

impl Bucket {
    fn full(limit: RateLimit) -> Self {
        Self { limit, tokens: limit.burst.max(1.0), filled_at: None }
    }

    fn take(&mut self, now: Instant) -> bool {
        if let Some(filled_at) = self.filled_at {
            let gained = now.duration_since(filled_at).as_secs_f64() * self.limit.per_second;
            self.tokens = (self.tokens + gained).min(self.limit.burst.max(1.0));
        }
        self.filled_at = Some(now);
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::standin::script::{Reason, Throttle};

    #[tokio::test(start_paused = true)]
    async fn a_rate_lets_the_burst_through_and_then_its_tokens() {
        let clock = Clock::seeded(UnixMillis(0), 1);
        let throttle = Throttle::new(Reason::CallerRateLimitExceeded);
        let mut bucket = Bucket::full(RateLimit { per_second: 10.0, burst: 2.0, throttle });
        let mut take = || bucket.take(clock.instant());
        assert_eq!([take(), take(), take()], [true, true, false]);
        clock.sleep(Duration::from_millis(100)).await;
        assert_eq!([take(), take()], [true, false]);
        clock.sleep(Duration::from_secs(60)).await;
        assert_eq!([take(), take(), take()], [true, true, false], "never more than the burst");
    }

    #[test]
    fn shares_of_chance_add_up_and_each_request_meets_one() {
        let chances = [(0.3, Trouble::Reset), (0.2, Trouble::LostReply)];
        assert_eq!(by_chance(&chances, 0.0), Some(&Trouble::Reset));
        assert_eq!(by_chance(&chances, 0.299), Some(&Trouble::Reset));
        assert_eq!(by_chance(&chances, 0.3), Some(&Trouble::LostReply));
        assert_eq!(by_chance(&chances, 0.5), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_more_exact_script_counts_and_a_change_elsewhere_leaves_it_alone() {
        let clock = Clock::seeded(UnixMillis(0), 1);
        let stage = Stage::default();
        stage.script("orders", Script::always(Trouble::Reset));
        stage.script("orders:prod", Script::default().times(2, Trouble::LostReply));
        let trouble = |lane| stage.enter(lane, &clock).trouble.take();
        assert_eq!(trouble("orders:prod"), Some(Trouble::LostReply));
        assert_eq!(trouble("orders:dev"), Some(Trouble::Reset));
        assert_eq!(trouble("bills"), None);
        stage.script("orders", Script::default());
        stage.default_script(Script::always(Trouble::Html(502)));
        assert_eq!(trouble("orders:dev"), None);
        assert_eq!(trouble("orders:prod"), Some(Trouble::LostReply), "its queue went on");
        assert_eq!(trouble("orders:prod"), None);
        assert_eq!(trouble("bills"), Some(Trouble::Html(502)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_script_keeps_count_of_the_requests_in_flight() {
        let clock = Clock::seeded(UnixMillis(0), 1);
        let throttle = Throttle::new(Reason::ConcurrentInvocationLimitExceeded);
        let stage = Stage::default();
        let first = stage.enter("orders", &clock);
        stage.script("orders", Script::default().concurrency(1, throttle));
        assert_eq!(stage.enter("orders", &clock).trouble, Some(Trouble::Throttle(throttle)));
        drop(first);
        assert_eq!(stage.enter("orders", &clock).trouble, None);
    }
}
