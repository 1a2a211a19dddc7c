//! Whether another daemon is dead. Pure: no clock is compared with another one's.
//!
//! A daemon counts its beats up in the database. An observer that sees the same count for as long as a lease, on its own
//! clock, takes it for dead. Whenever the observer could not look, it begins anew, so an outage of the database ends nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::base::Member;

/// What an observer has seen of the others.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: BTreeMap<i64, (i64, Instant)>,
}

/// A daemon to be taken for dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dead {
    pub id: i64,
    pub name: String,
    pub beat: i64,
}

impl Watch {
    /// Looks at all living members. Returns those that are to be taken for dead by this observer: only the lowest of those
    /// that still beat does so, and only one member in a look.
    pub(super) fn look(&mut self, me: i64, members: &[Member], now: Instant, lease: Duration) -> Option<Dead> {
        let before = std::mem::take(&mut self.seen);
        for member in members.iter().filter(|member| member.id != me) {
            let since = match before.get(&member.id) {
                Some((beat, since)) if *beat == member.beat => *since,
                _ => now,
            };
            self.seen.insert(member.id, (member.beat, since));
        }
        let is_stale = |member: &&Member| {
            self.seen.get(&member.id).is_some_and(|(_, since)| now.saturating_duration_since(*since) >= lease)
        };
        let is_lowest = members.iter().filter(|member| member.id < me).all(|member| is_stale(&member));
        if !is_lowest {
            return None;
        }
        // Whoever has lanes first: nothing is delivered while they wait.
        let stale = members.iter().filter(|member| member.id != me).filter(is_stale);
        let dead = stale.max_by_key(|member| (member.lanes, std::cmp::Reverse(member.id)))?;
        Some(Dead { id: dead.id, name: dead.name.clone(), beat: dead.beat })
    }

    /// The observer could not look, or was too slow to know.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMillis};

    const LEASE: Duration = Duration::from_secs(10);

    fn member(id: i64, beat: i64, lanes: u64) -> Member {
        Member { id, name: format!("m{id}"), beat, lanes, ..Member::default() }
    }

    fn begin() -> Instant {
        Clock::seeded(UnixMillis(1), 1).instant()
    }

    #[test]
    fn whoever_does_not_beat_for_a_lease_is_dead_and_no_earlier() {
        let (mut watch, start) = (Watch::default(), begin());
        let mut look = |seconds, beat| {
            let members = [member(1, 7, 0), member(2, beat, 3)];
            watch.look(1, &members, start + Duration::from_secs(seconds), LEASE).map(|dead| dead.id)
        };
        assert_eq!([look(0, 5), look(9, 5), look(11, 6), look(20, 6)], [None; 4], "its beat moved at 11");
        assert_eq!(look(21, 6), Some(2));
    }

    #[test]
    fn an_observer_that_could_not_look_begins_anew() {
        let (mut watch, start) = (Watch::default(), begin());
        let members = [member(1, 7, 0), member(2, 5, 3)];
        assert_eq!(watch.look(1, &members, start, LEASE), None);
        watch.forget();
        assert_eq!(watch.look(1, &members, start + LEASE * 3, LEASE), None);
    }

    #[test]
    fn only_the_lowest_that_still_beats_ends_another_and_the_owner_goes_first() {
        let (mut watch, start) = (Watch::default(), begin());
        let at = |beat| [member(1, 7, 0), member(2, 5, 3), member(3, beat, 0), member(4, 1, 0)];
        assert_eq!(watch.look(3, &at(0), start, LEASE), None);
        assert_eq!(watch.look(3, &at(5), start + LEASE, LEASE).map(|dead| dead.id), Some(2), "1 is stale as well");
        let mut watch = Watch::default();
        watch.look(3, &at(0), start, LEASE);
        let mut later = at(5);
        later[0].beat = 8;
        assert_eq!(watch.look(3, &later, start + LEASE, LEASE), None, "1 beats and is lower");
    }
}
