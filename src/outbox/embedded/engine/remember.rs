//! Remembers idempotency keys.
//!
//! Holds: the store remembers a key as long as it stores the event, and for one window after the event has left (one window
//! after its acceptance, if it left soon). Only an operator who removes the event can end that earlier.

use std::time::Duration;

use super::{Engine, unreadable};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::LaneId;
use crate::outbox::embedded::keys;
use crate::outbox::embedded::kv::{Failed, Kv};
use crate::outbox::embedded::record::KeyRecord;

/// If an event leaves the store within this part of its window, its key keeps the time set at acceptance. The common case
/// then needs no second write of the key.
const SOON_PART: u32 = 8;

/// What the store knows of a key.
pub(super) enum Known {
    Within(KeyRecord),
    /// Its window is over, or the batch forgets it.
    Over,
    /// Neither the store nor the batch has it.
    Nowhere,
}

/// Events that were removed unread, and whose keys the next sweep forgets.
const FORGETTING_MAX: usize = 10_000;

impl<K: Kv> Engine<K> {
    /// How long a key is remembered, by the kind of its record.
    pub(super) fn window(&self, key: &[u8]) -> Duration {
        if keys::is_of_sdk(key) { self.settings.limits.sdk_window } else { self.settings.limits.dedupe_window }
    }

    /// Whether the window of a key is over. It counts elapsed time, whatever the clock was set to since.
    pub(super) fn is_over(&self, key: &[u8], known: &KeyRecord, now: UnixMillis) -> bool {
        let window = self.window(key);
        let began =
            UnixMillis(known.expires_at.0.saturating_sub(u64::try_from(window.as_millis()).unwrap_or(u64::MAX)));
        self.clock.present(began).plus(window) <= now
    }

    /// What is left of the window of a key. It counts elapsed time, as [`Engine::is_over`] does.
    pub(super) fn left(&self, key: &[u8], known: &KeyRecord) -> Duration {
        let window = self.window(key);
        let began =
            UnixMillis(known.expires_at.0.saturating_sub(u64::try_from(window.as_millis()).unwrap_or(u64::MAX)));
        self.clock.present(began).plus(window).since(self.clock.now())
    }

    /// What the store or this batch remembers about an event's key.
    pub(super) fn known_of(&self, event: &Event, key: &[u8], now: UnixMillis) -> Result<Known, Failed> {
        let name = &event.function.name;
        let known = self.known(name, key, now)?;
        let (Some(tenant), Known::Over | Known::Nowhere) = (&event.carried.tenant_id, &known) else { return Ok(known) };
        // Earlier versions wrote keys without the tenant. The tenant is known only while the event is stored. After that the
        // key counts for no tenant: accepting a repeat is better than refusing a new event.
        let Some(old) = keys::remembered(name, None, &event.key) else { return Ok(known) };
        Ok(match self.known(name, &old, now)? {
            Known::Within(record) if self.tenant_of(record.first).as_ref() == Some(tenant) => Known::Within(record),
            Known::Within(_) | Known::Over | Known::Nowhere => known,
        })
    }

    /// What the store or this batch remembers about a key.
    pub(super) fn known(&self, function: &FunctionName, key: &[u8], now: UnixMillis) -> Result<Known, Failed> {
        let Some(known) = self.key_record(key)? else {
            // An unreadable key counts as over.
            let forgotten = self.batch.pending(key).is_some()
                || (!self.key_filter.lacks(key) && self.kv.value_bytes(key)?.is_some());
            return Ok(if forgotten { Known::Over } else { Known::Nowhere });
        };
        let lane = self.by_name.get(function).copied();
        let within = !self.is_over(key, &known, now) || self.stores(lane.as_slice(), known.first)?;
        Ok(if within { Known::Within(known) } else { Known::Over })
    }

    /// The record of a key in this batch or in the store. An unreadable one is ignored: the next event with its key is
    /// accepted and remembered.
    pub(super) fn key_record(&self, key: &[u8]) -> Result<Option<KeyRecord>, Failed> {
        let stored;
        let bytes = match self.batch.pending(key) {
            Some(None) => return Ok(None),
            Some(Some(pending)) => pending,
            None if self.key_filter.lacks(key) => return Ok(None),
            None => {
                match Failed::apart(self.kv.get(key))? {
                    Ok(Some(found)) => stored = found,
                    Ok(None) => return Ok(None),
                    Err(failed) => return Ok(lost(&failed)),
                }
                &stored
            }
        };
        match KeyRecord::decode(bytes) {
            Ok(known) => Ok(Some(known)),
            Err(why) => Ok(lost(&unreadable("reading a remembered key", &why))),
        }
    }

    /// Whether an event is stored in one of these lanes, or will be after this batch.
    pub(super) fn stores(&self, lanes: &[LaneId], id: EventId) -> Result<bool, Failed> {
        for &lane in lanes {
            if self.place_in(lane, id)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The tenant of a stored event.
    fn tenant_of(&self, id: EventId) -> Option<String> {
        // Callers that need the event itself report that it is unreadable.
        self.find(id).ok().flatten().and_then(|found| found.event.carried.tenant_id)
    }

    /// Remembers the key of an event that is about to be stored. `was` is what is known about the key.
    pub(super) fn remember(&mut self, key: Vec<u8>, was: &Known, first: EventId, fingerprint: [u8; 16]) {
        let expires_at = self.clock.now().plus(self.window(&key));
        self.remember_until(key, was, KeyRecord { first, fingerprint, expires_at });
    }

    /// Like [`Engine::remember`], with the end of the window.
    pub(super) fn remember_until(&mut self, key: Vec<u8>, was: &Known, record: KeyRecord) {
        let record = record.encode();
        self.key_filter.added(&key);
        match was {
            Known::Nowhere => self.batch.put_new(key, record),
            Known::Within(_) | Known::Over => self.batch.put(key, record),
        }
        self.keys += u64::from(!matches!(was, Known::Within(_)));
    }

    /// Remembers the key of a redriven or imported event, unless the key belongs to another event by now.
    pub(super) fn remember_again(&mut self, event: &Event) -> Result<(), Failed> {
        let name = &event.function.name;
        let Some(key) = keys::remembered(name, event.carried.tenant_id.as_deref(), &event.key) else { return Ok(()) };
        let fingerprint = keys::fingerprint(&event.payload);
        let known = self.known_of(event, &key, self.clock.now())?;
        if let Known::Within(record) = &known {
            let lane = self.by_name.get(name).copied();
            if record.fingerprint != fingerprint || self.stores(lane.as_slice(), record.first)? {
                return Ok(());
            }
        }
        self.remember(key, &known, event.id, fingerprint);
        Ok(())
    }

    /// Forgets the key of an event that an operator removes, so that an event with the same key is stored again.
    pub(super) fn forget(&mut self, event: &Event) -> Result<(), Failed> {
        let name = &event.function.name;
        let tenant = event.carried.tenant_id.as_deref();
        let scoped = keys::remembered(name, tenant, &event.key);
        let before_tenants = tenant.and_then(|_| keys::remembered(name, None, &event.key));
        for key in scoped.into_iter().chain(before_tenants) {
            if self.key_record(&key)?.is_some_and(|record| record.first == event.id) {
                self.batch.remove(key);
                self.keys = self.keys.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Forgets the adoption of an event that leaves this store for another one, or that an operator removes: it may come back.
    pub(super) fn forget_adoption(&mut self, id: EventId) -> Result<(), Failed> {
        let key = keys::adopted(id);
        if self.key_record(&key)?.is_some() {
            self.batch.remove(key);
            self.keys = self.keys.saturating_sub(1);
        }
        Ok(())
    }

    /// Forgets the key of an event that an operator removes. Where the event could not be read, only a sweep can find its key.
    pub(super) fn forget_removed(&mut self, id: EventId, event: Option<&Event>) -> Result<(), Failed> {
        self.forget_adoption(id)?;
        if let Some(event) = event {
            return self.forget(event);
        }
        if self.forgetting.len() < FORGETTING_MAX {
            self.forgetting.insert(id);
        }
        Ok(())
    }

    /// An event leaves the store, delivered or shipped. Unless it left soon, its key is remembered for one window from now.
    pub(super) fn outlive(&mut self, id: EventId, key: Option<[u8; keys::REMEMBERED_BYTES]>) -> Result<(), Failed> {
        let Some(key) = key else { return Ok(()) };
        let now = self.clock.now();
        let window = self.window(&key);
        if now.since(self.clock.present(id.accepted_at())) < window / SOON_PART {
            return Ok(());
        }
        let record = match self.key_record(&key) {
            Err(failed) if failed.one_value => return Ok(()),
            record => record?,
        };
        if let Some(record) = record.filter(|record| record.first == id) {
            self.batch.put(key.to_vec(), KeyRecord { expires_at: now.plus(window), ..record }.encode());
        }
        Ok(())
    }
}

fn lost(why: &Failed) -> Option<KeyRecord> {
    tracing::error!(error = %why, "forgetting an idempotency key: its record cannot be read");
    None
}

#[cfg(test)]
mod tests {
    use crate::clock::{Clock, UnixMillis};
    use crate::event::testing::event;
    use crate::event::{Carried, Event, IdempotencyKey, KeySource};
    use crate::outbox::embedded::Settings;
    use crate::outbox::embedded::engine::Engine;
    use crate::outbox::embedded::keys;
    use crate::outbox::embedded::kv::{Batch, Disk, Kv};
    use crate::outbox::embedded::memory::MemoryDisk;
    use crate::outbox::{Appended, Limits};

    fn event_of(clock: &Clock, tenant: &str) -> Event {
        Event {
            key: IdempotencyKey { value: "17".into(), source: KeySource::Header },
            carried: Carried { tenant_id: Some(tenant.into()), ..Carried::default() },
            ..event(clock, "orders")
        }
    }

    #[test]
    fn a_key_that_was_written_before_tenants_counted_means_its_own_tenant_only() {
        let (disk, clock) = (MemoryDisk::default(), Clock::seeded(UnixMillis(1_790_000_000_000), 1));
        let hour = std::time::Duration::from_secs(3_600);
        let settings = Settings {
            limits: Limits {
                bytes_max: 1 << 30,
                events_max: 1_000,
                functions_max: 100,
                dedupe_window: hour,
                sdk_window: hour,
            },
            disk_reserve: 0,
            segment_bytes: 1 << 20,
            cache: 0,
        };
        let open = || Engine::open(disk.open(), settings.clone(), clock.clone(), "memory").unwrap();
        let first = event_of(&clock, "a");
        let mut engine = open();
        engine.append(vec![first.clone()], Disk::ROOM).unwrap();
        engine.commit().unwrap();
        // As an earlier version wrote it.
        let mut kv = disk.open();
        let scoped = keys::remembered_of(&first).unwrap();
        let record = kv.get(&scoped).unwrap().unwrap();
        let mut batch = Batch::default();
        batch.remove(scoped.to_vec());
        batch.put(keys::remembered(&first.function.name, None, &first.key).unwrap(), record);
        kv.commit(&batch).unwrap();

        let mut engine = open();
        let repeat = engine.append(vec![event_of(&clock, "a")], Disk::ROOM).unwrap();
        assert_eq!(repeat, [Appended::Repeat { first: first.id }]);
        assert_eq!(engine.append(vec![event_of(&clock, "b")], Disk::ROOM).unwrap(), [Appended::Stored]);
        engine.commit().unwrap();
        engine.cancel(first.id, crate::outbox::operator::Keys::Forget).unwrap();
        engine.commit().unwrap();
        assert_eq!(
            engine.append(vec![event_of(&clock, "a")], Disk::ROOM).unwrap(),
            [Appended::Stored],
            "it is forgotten"
        );
    }
}
