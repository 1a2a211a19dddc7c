//! Corrects due times that came from a wrong clock, once the clock is right.
//!
//! A wait is a duration, such as a retry in 30 seconds. The store keeps the time at which it ends. So a clock that is set
//! back by an hour would make it an hour longer, and one that was ten years ahead would make it endless. An instant named
//! by a client, such as `deliver_at`, stays as it is.
//!
//! A start also makes letters due that their queue refused, because the queue or the configuration may have changed.
//!
//! Holds: runs after a start and after each step back, in pieces of [`PIECE_ENTRIES`] entries of the indexes by time.

use super::Engine;
use super::read::Part;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::outbox::embedded::keys::{self, Due};
use crate::outbox::embedded::kv::{Failed, Kv};
use crate::outbox::{History, LaneId, Place};

/// The most entries that one piece visits.
const PIECE_ENTRIES: usize = 250;

/// An event that is due later than this was scheduled by a wrong clock: no door accepts a time further ahead.
const AHEAD_MAX: std::time::Duration = std::time::Duration::from_secs(367 * 24 * 3_600);

/// The progress of the corrections.
#[derive(Debug, Clone, Default)]
pub(super) struct Mending {
    /// Whether refused letters become due again, which is so after a start.
    refused: bool,
    /// The index and the key to continue from. `None` before the first.
    next: Option<(bool, LaneId, Vec<u8>)>,
}

impl Mending {
    pub(super) fn at_start() -> Self {
        Self { refused: true, next: None }
    }
}

/// An index entry with a future time.
struct Ahead {
    lane: LaneId,
    place: Place,
    id: EventId,
}

impl<K: Kv> Engine<K> {
    /// Does one piece of the corrections, if needed, and adds it to the batch. Returns whether there is more.
    pub(super) fn mend(&mut self) -> Result<bool, Failed> {
        let stepped = self.clock.stepped();
        if stepped < self.stepped {
            let refused = self.mending.as_ref().is_some_and(|mending| mending.refused);
            self.mending = Some(Mending { refused, next: None });
        }
        if stepped != self.stepped {
            // A start before the step must not count the step as elapsed time.
            self.note_time(self.clock.now());
        }
        self.stepped = stepped;
        let Some(mending) = self.mending.take() else { return Ok(false) };
        if self.clock.steps().is_empty() && !mending.refused {
            return Ok(false);
        }
        let refused = mending.refused;
        let now = self.clock.now();
        let (found, next) = self.ahead(mending, now)?;
        for Ahead { lane, place, id } in found {
            self.mend_one(lane, place, id, now, refused)?;
        }
        self.mending = next;
        Ok(self.mending.is_some())
    }

    /// Entries that are due later than now, and where to continue.
    fn ahead(&self, mending: Mending, now: UnixMillis) -> Result<(Vec<Ahead>, Option<Mending>), Failed> {
        let mut found = Vec::new();
        let refused = mending.refused;
        let (from_ship, from_lane, mut start) = match mending.next {
            Some((ship, lane, key)) => (ship, lane, Some(key)),
            // Without a step, only refused letters matter.
            None => (self.clock.steps().is_empty(), LaneId(0), None),
        };
        let mut seen = 0;
        for (ship, index) in
            [(false, Due::Attempt), (true, Due::Ship)].into_iter().filter(|(ship, _)| *ship >= from_ship)
        {
            let first = if ship == from_ship { from_lane } else { LaneId(0) };
            for (&lane, leases) in self.lanes.range(first..) {
                let (_, after_now) = keys::due_until(index, lane, now);
                let (_, end) = keys::due_until(index, lane, UnixMillis::MAX);
                let from = start.take().unwrap_or(after_now);
                for pair in self.kv.scan(&from, &end) {
                    let (key, letter) = pair?;
                    if seen == PIECE_ENTRIES {
                        return Ok((found, Some(Mending { refused, next: Some((ship, lane, key.to_vec())) })));
                    }
                    seen += 1;
                    let place =
                        if ship { Some(Place::Buried) } else { letter.first().and_then(|&letter| keys::place(letter)) };
                    let id = keys::id_of(&key).filter(|id| !leases.is_busy(*id));
                    // The index is read before this turn's batch is committed. Events in the batch already have a new time.
                    let rests =
                        |(place, id): &(Place, EventId)| self.batch.pending(&keys::event(*place, lane, *id)).is_none();
                    found.extend(place.zip(id).filter(rests).map(|(place, id)| Ahead { lane, place, id }));
                }
            }
        }
        Ok((found, None))
    }

    /// A history with times in the past, so that it is not corrected twice.
    fn brought_up(&self, mut history: History, now: UnixMillis) -> History {
        let last = history.last.as_mut().map(|last| &mut last.at);
        let burial = history.burial.as_mut().map(|burial| &mut burial.at);
        // Not before the latest step: the clock may have shown that time twice.
        let since = self.clock.steps().latest().map_or(UnixMillis(0), |step| step.after);
        for at in last.into_iter().chain(burial).filter(|at| **at > now) {
            *at = self.clock.present(*at).max(since).min(now);
        }
        history
    }

    fn mend_one(
        &mut self,
        lane: LaneId,
        place: Place,
        id: EventId,
        now: UnixMillis,
        refused: bool,
    ) -> Result<(), Failed> {
        // The next lease reports an unreadable event.
        let Some(Ok(read)) = self.read_at(place, lane, id, Part::Head)? else { return Ok(()) };
        let (held, history, event) = (read.held(place), read.record.history, read.event);
        if history.due <= now {
            return Ok(());
        }
        let set = !self.clock.steps().is_empty();
        let is_refused = history.burial.as_ref().is_some_and(|burial| burial.unshippable.is_some());
        let set_at = match place {
            Place::Buried => history.burial.as_ref().map(|burial| burial.at),
            Place::Ready | Place::Waiting | Place::Scheduled => history.last.as_ref().map(|last| last.at),
        };
        let due = match (place, set_at) {
            (Place::Buried, _) if refused && is_refused => now,
            (Place::Ready | Place::Waiting | Place::Scheduled | Place::Buried, _) if !set => return Ok(()),
            (Place::Buried, Some(at)) if at > now => now,
            (Place::Waiting | Place::Scheduled, Some(at)) if at > now => {
                self.clock.present(at).plus(history.due.since(at))
            }
            (Place::Scheduled, None) if history.due > now.plus(AHEAD_MAX) => {
                now.plus(history.due.since(id.accepted_at()))
            }
            (Place::Ready | Place::Waiting | Place::Scheduled | Place::Buried, _) => return Ok(()),
        };
        // An event that was attempted before its `deliver_at` still waits for that instant.
        let due = match event.deliver_at {
            Some(at) if place == Place::Scheduled && at <= now.plus(AHEAD_MAX) => due.max(at),
            Some(_) | None => due,
        };
        let history = self.brought_up(history, now);
        tracing::debug!(event_id = %id, due = due.rfc3339(), "the event's due time was corrected after the clock was set");
        self.rewrite(lane, id, held, place, History { due, ..history })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::clock::{Clock, UnixMillis};
    use crate::event::testing::event;
    use crate::event::{Event, EventId, IdempotencyKey, KeySource};
    use crate::outbox::embedded::Settings;
    use crate::outbox::embedded::engine::Engine;
    use crate::outbox::embedded::kv::{Disk, Kv};
    use crate::outbox::embedded::memory::MemoryDisk;
    use crate::outbox::{
        Appended, Burial, BuryReason, History, LaneWant, LastOutcome, LeaseWant, Leased, Limits, Settlement, Which,
    };

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);
    const TEN_YEARS_MS: i64 = 315_360_000_000;

    fn open(disk: &MemoryDisk, clock: &Clock) -> Engine<impl Kv + use<>> {
        let settings = Settings {
            limits: Limits {
                bytes_max: 1 << 30,
                events_max: 10_000,
                functions_max: 100,
                dedupe_window: HOUR,
                sdk_window: HOUR,
            },
            disk_reserve: 0,
            segment_bytes: 1 << 20,
            cache: 0,
        };
        Engine::open(disk.open(), settings, clock.clone(), "memory").unwrap()
    }

    fn keyed(clock: &Clock, key: &str, deliver_at: Option<UnixMillis>) -> Event {
        let event = event(clock, "orders");
        Event {
            id: EventId::mint(clock.accepting(), clock.random_bits(), &event.function.name),
            key: IdempotencyKey { value: key.into(), source: KeySource::Header },
            deliver_at,
            ..event
        }
    }

    fn lease<K: Kv>(engine: &mut Engine<K>, which: Which) -> Vec<Leased> {
        let lanes = engine.lanes(0).unwrap().lanes;
        let want = lanes
            .iter()
            .map(|view| LaneWant { lane: view.lane, which, events_max: 1_000, bytes_max: u64::MAX, spent: None })
            .collect();
        engine.lease(&LeaseWant { lanes: want, bytes_max: u64::MAX }).unwrap()
    }

    fn swept<K: Kv>(engine: &mut Engine<K>) {
        while engine.sweep().unwrap() {
            engine.commit().unwrap();
        }
        engine.commit().unwrap();
    }

    fn append<K: Kv>(engine: &mut Engine<K>, event: &Event) -> Appended {
        let appended = engine.append(vec![event.clone()], Disk::ROOM).unwrap().remove(0);
        engine.commit().unwrap();
        appended
    }

    /// Failed at `at`, and to be tried again half a minute later.
    fn failed(at: UnixMillis) -> History {
        let last =
            LastOutcome { at, status: 500, code: "ServiceException".into(), message: String::new(), request_id: None };
        History { attempts: 1, calls: 1, due: at.plus(HOUR / 120), last: Some(last), ..History::default() }
    }

    #[test]
    fn a_store_that_a_clock_ten_years_ahead_has_used_is_sound_once_the_clock_is_corrected() {
        let disk = MemoryDisk::default();
        for over_a_restart in [true, false] {
            let clock = Clock::seeded(UnixMillis(NOW.0 + TEN_YEARS_MS as u64), 1);
            let mut engine = open(&disk, &clock);
            let retried = keyed(&clock, "retried", None);
            let buried = keyed(&clock, "buried", None);
            append(&mut engine, &retried);
            append(&mut engine, &buried);
            let done = lease(&mut engine, Which::Due).into_iter().map(|leased| {
                let burial = Burial { reason: BuryReason::Refused, at: clock.now(), unshippable: None };
                let settlement = if leased.event.id == retried.id {
                    Settlement::RetryAt(failed(clock.now()))
                } else {
                    Settlement::Bury(History {
                        burial: Some(burial),
                        ..History { due: clock.now(), ..failed(clock.now()) }
                    })
                };
                (leased.lease, settlement)
            });
            let done = done.collect();
            engine.settle(done).unwrap();
            let scheduled = keyed(&clock, "scheduled", Some(clock.now().plus(HOUR)));
            append(&mut engine, &scheduled);

            let clock = if over_a_restart {
                drop(engine);
                let clock = Clock::seeded(NOW, 2);
                engine = open(&disk, &clock);
                clock
            } else {
                clock.step(-TEN_YEARS_MS);
                clock
            };
            swept(&mut engine);
            let in_an_hour = keyed(&clock, "in an hour", Some(clock.now().plus(HOUR)));
            assert_eq!(append(&mut engine, &in_an_hour), Appended::Stored);
            assert_eq!(lease(&mut engine, Which::Due).len(), 0, "nothing is due yet");
            assert_eq!(lease(&mut engine, Which::Buried).len(), 1, "the letter may go at once");
            clock.pass_until(clock.now().plus(HOUR / 60));
            let due = lease(&mut engine, Which::Due);
            assert_eq!(due.iter().map(|leased| leased.event.id).collect::<Vec<_>>(), [retried.id]);
            engine.settle(due.into_iter().map(|leased| (leased.lease, Settlement::Delivered)).collect()).unwrap();
            engine.commit().unwrap();
            clock.pass_until(clock.now().plus(HOUR));
            let due = lease(&mut engine, Which::Due);
            let ids: std::collections::BTreeSet<_> = due.iter().map(|leased| leased.event.id).collect();
            assert_eq!(ids, [scheduled.id, in_an_hour.id].into(), "an hour is an hour");
            engine.settle(due.into_iter().map(|leased| (leased.lease, Settlement::Delivered)).collect()).unwrap();
            engine.commit().unwrap();
            let again = keyed(&clock, "retried", None);
            assert_eq!(append(&mut engine, &again), Appended::Stored, "a key is not kept for ten years");
            // The next round begins with an empty store.
            let left: Vec<_> =
                lease(&mut engine, Which::Due).into_iter().map(|l| (l.lease, Settlement::Delivered)).collect();
            engine.settle(left).unwrap();
            engine.commit().unwrap();
            clock.pass_until(clock.now().plus(HOUR * 2));
            swept(&mut engine);
        }
    }

    #[test]
    fn a_retry_waits_as_long_as_it_was_to_wait_over_any_number_of_starts_with_a_clock_set_back() {
        let disk = MemoryDisk::default();
        let mut clock = Clock::seeded(NOW, 1);
        let mut engine = open(&disk, &clock);
        append(&mut engine, &keyed(&clock, "k", None));
        let leased = lease(&mut engine, Which::Due);
        let failed = failed(clock.now());
        engine.settle(leased.into_iter().map(|l| (l.lease, Settlement::RetryAt(failed.clone()))).collect()).unwrap();
        engine.commit().unwrap();
        for start in 1..6 {
            drop(engine);
            clock = Clock::seeded(NOW.shifted(start * -20_000), start as u64);
            engine = open(&disk, &clock);
            swept(&mut engine);
            clock.pass_until(clock.now().plus(Duration::from_secs(2)));
            swept(&mut engine);
            append(&mut engine, &keyed(&clock, &format!("k{start}"), Some(clock.now().plus(HOUR))));
            assert_eq!(lease(&mut engine, Which::Due).len(), 0, "start {start}");
        }
        clock.pass_until(clock.now().plus(Duration::from_secs(30)));
        assert_eq!(lease(&mut engine, Which::Due).len(), 1);
    }

    #[test]
    fn a_key_is_not_forgotten_by_a_step_of_the_clock() {
        for by_hours in [-48, -1, 1, 7, 24 * 366 * 56] {
            let disk = MemoryDisk::default();
            let clock = Clock::seeded(NOW, 1);
            let mut engine = open(&disk, &clock);
            let first = keyed(&clock, "k", None);
            append(&mut engine, &first);
            let leased = lease(&mut engine, Which::Due);
            engine.settle(leased.into_iter().map(|leased| (leased.lease, Settlement::Delivered)).collect()).unwrap();
            clock.pass_until(clock.now().plus(HOUR / 2));
            clock.step(by_hours * 3_600_000);
            swept(&mut engine);
            clock.pass_until(clock.now().plus(HOUR / 3));
            let repeat = append(&mut engine, &keyed(&clock, "k", None));
            assert_eq!(repeat, Appended::Repeat { first: first.id }, "{by_hours} hours, before a restart");
            // The steps are stored with it.
            drop(engine);
            let clock = Clock::seeded(clock.now(), 2);
            let mut engine = open(&disk, &clock);
            swept(&mut engine);
            let repeat = append(&mut engine, &keyed(&clock, "k", None));
            assert_eq!(repeat, Appended::Repeat { first: first.id }, "{by_hours} hours, after it");
            // Set back by an hour, the clock shows the time of the acceptance twice, and the later one counts.
            let twice = if by_hours == -1 { HOUR } else { Duration::ZERO };
            clock.pass_until(clock.now().plus(HOUR / 4 + twice));
            assert_eq!(append(&mut engine, &keyed(&clock, "k", None)), Appended::Stored, "{by_hours} hours");
        }
    }
}
