//! File descriptors: raises their limit, and keeps enough of them from clients.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Descriptors for the files of the store, the listeners, the runtime, and files that are open only for a moment, such
/// as credentials.
const STORE_AND_OURS: u64 = 160;

/// The maximum of most kernels (fs.nr_open), used if there is no other limit.
const NO_LIMIT: u64 = 1 << 20;

/// The fewest client connections that make a listener useful.
const CONNECTIONS_MIN: u64 = 8;

/// Raises the soft limit to the hard one. `ulimit -S` and the old default of 1024 leave it far lower. Returns the limit
/// now.
pub(super) fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (current, wanted) = (current.unwrap_or(NO_LIMIT), maximum.unwrap_or(NO_LIMIT));
    if current >= wanted {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => {
            tracing::debug!(before = current, limit = wanted, "raised the limit of open files");
            wanted
        }
        Err(error) => {
            tracing::warn!(%error, limit = current, "the limit of open files cannot be raised");
            current
        }
    }
}

/// The most client connections that still leave descriptors for the store and for calls to AWS.
pub(super) fn connections(limit: u64, config: &Config, admin: usize) -> usize {
    let calls = u64::from(config.dispatch.in_flight_max)
        + config.passthrough.as_ref().map_or(0, |limits| limits.calls_max as u64);
    let wanted = config.ingest.connections_max as u64;
    let fits = fits(limit, wanted, STORE_AND_OURS + admin as u64, calls);
    if fits < wanted {
        tracing::warn!(
            connections = fits,
            listen.connections_max = wanted,
            open_files = limit,
            "fewer connections than configured: the rest of the open files is kept for the store and for calls of Lambda; \
             raise the limit (LimitNOFILE, ulimit -n) or lower listen.connections_max"
        );
    }
    usize::try_from(fits).unwrap_or(usize::MAX)
}

/// `kept` descriptors are always kept. Calls get at most half of the rest, because there are almost always fewer calls
/// than allowed.
fn fits(limit: u64, wanted: u64, kept: u64, calls: u64) -> u64 {
    let left = limit.saturating_sub(kept);
    let left = left.saturating_sub(calls.min(left / 2));
    wanted.min(left.max(CONNECTIONS_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_the_store_and_our_calls_do_not_need() {
        assert_eq!(fits(65_536, 1_024, 288, 320), 1_024);
        assert_eq!(fits(1_024, 1_024, 288, 320), 416);
        assert_eq!(fits(1_024, 100, 288, 320), 100);
        assert_eq!(fits(512, 1_024, 288, 320), 112);
        assert_eq!(fits(64, 1_024, 288, 320), CONNECTIONS_MIN);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(NO_LIMIT);
        assert_eq!(raise(), hard);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(hard));
    }
}
