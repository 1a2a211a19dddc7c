//! Adopts events of another store, and the keys that follow them (`outbox/handoff.rs` has the rules).

use std::collections::BTreeMap;

use super::lane::Lane;
use super::remember::Known;
use super::{Engine, account};
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::embedded::keys;
use crate::outbox::embedded::kv::{Disk, Failed, Kv};
use crate::outbox::embedded::record::{KeyRecord, Record, encode_body};
use crate::outbox::handoff::{Adopted, Handed, REMEMBERED_MAX, RememberedKey, RememberedPage, place_of};
use crate::outbox::{LaneId, Place};

impl<K: Kv> Engine<K> {
    /// Adds events of another store to the batch. They are adopted once it is committed.
    pub fn adopt(&mut self, events: &[Handed], disk: Disk) -> Result<Vec<Adopted>, Failed> {
        events.iter().map(|handed| self.adopt_one(handed, disk)).collect()
    }

    fn adopt_one(&mut self, Handed { event, history, paused }: &Handed, disk: Disk) -> Result<Adopted, Failed> {
        let (name, now) = (&event.function.name, self.clock.now());
        let adoption = keys::adopted(event.id);
        let known = self.known(name, &adoption, now)?;
        let lane = self.by_name.get(name).copied();
        if matches!(known, Known::Within(_)) || self.stores(lane.as_slice(), event.id)? {
            return Ok(Adopted::Repeat);
        }
        let (place, fingerprint) = (place_of(event, history), keys::fingerprint(&event.payload));
        let claim = match self.claim(event, place, fingerprint)? {
            Claim::None => None,
            Claim::Key(key, known) => Some((key, known)),
            Claim::Repeats(first) => return Ok(Adopted::KnownKey { first }),
        };

        let body = encode_body(event);
        let record = Record::new(history.clone(), &body);
        let encoded = record.encode();
        let bytes = account(encoded.len(), record.body_bytes);
        if let Some(full) = self.full(event, bytes, disk) {
            return Ok(Adopted::Full(full));
        }
        let lane = self.lane_for(name);
        self.put_event(lane, event.id, place, record.history.due, encoded, &body, bytes);
        if let Some(expires_at) = event.expires_at.filter(|_| place != Place::Buried) {
            self.batch.put_new(keys::due(keys::Due::Expiry, lane, expires_at, event.id), Vec::new());
        }
        if *paused && place != Place::Buried {
            self.pause_too(lane, name);
        }
        self.remember(adoption, &known, event.id, fingerprint);
        if let Some((key, known)) = claim {
            // As if this store had accepted it: the window counts from its acceptance.
            let age = now.since(self.clock.present(event.accepted_at));
            let expires_at = now.plus(self.window(&key).saturating_sub(age));
            self.remember_until(key, &known, KeyRecord { first: event.id, fingerprint, expires_at });
        }
        Ok(Adopted::Stored)
    }

    /// Pauses a function because an event of it comes from a store where it is paused.
    fn pause_too(&mut self, lane: LaneId, function: &FunctionName) {
        if self.lanes.get(&lane).is_none_or(Lane::is_paused) {
            return;
        }
        self.pause(function, true);
        tracing::warn!(
            function = function.as_str(),
            "an event of a paused function was handed over: the function is paused here, too, until `sendoff resume`"
        );
    }

    /// What an event that is about to be adopted may do with its key.
    fn claim(&self, event: &Event, place: Place, fingerprint: [u8; 16]) -> Result<Claim, Failed> {
        let Some(key) = keys::remembered(&event.function.name, event.carried.tenant_id.as_deref(), &event.key) else {
            return Ok(Claim::None);
        };
        let lane = self.by_name.get(&event.function.name).copied();
        Ok(match self.known_of(event, &key, self.clock.now())? {
            Known::Within(record) if record.first == event.id => Claim::None,
            // Only an event that is stored here counts: one that was handed on may itself have been left to this one. A
            // redriven event and a dead letter share their key with an earlier event on purpose.
            Known::Within(record)
                if record.fingerprint == fingerprint
                    && event.redrives == 0
                    && place != Place::Buried
                    && self.stores(lane.as_slice(), record.first)? =>
            {
                Claim::Repeats(record.first)
            }
            Known::Within(_) => Claim::None,
            known @ (Known::Over | Known::Nowhere) => Claim::Key(key, known),
        })
    }

    /// A page of the remembered keys whose events are no longer stored.
    pub fn remembered(&self, after: Option<[u8; RememberedKey::BYTES]>) -> Result<RememberedPage, Failed> {
        let (start, end) = keys::all_remembered();
        let start = after.map_or(start, |after| keys::after(&after));
        let (mut page, mut visited) = (RememberedPage::default(), 0);
        let lanes = self.lanes_by_tag();
        for pair in self.kv.pairs(&start, &end) {
            let (key, value) = pair?;
            visited += 1;
            let Ok(key) = <[u8; RememberedKey::BYTES]>::try_from(&key[..]) else { continue };
            // An unreadable key is useless.
            if let Some(record) = value.ok().and_then(|value| KeyRecord::decode(&value).ok())
                && !self.is_over(&key, &record, self.clock.now())
                && !self.is_stored(&lanes, record.first)?
            {
                let left = self.left(&key, &record);
                page.keys.push(RememberedKey { key, first: record.first, fingerprint: record.fingerprint, left });
            }
            if visited == REMEMBERED_MAX {
                page.next = Some(key);
                break;
            }
        }
        Ok(page)
    }

    /// Whether an event is stored, by its id alone.
    fn is_stored(&self, lanes: &BTreeMap<u16, Vec<LaneId>>, id: EventId) -> Result<bool, Failed> {
        lanes.get(&id.function_tag()).map_or(Ok(false), |lanes| self.stores(lanes, id))
    }

    /// Adds keys of another store to the batch. Returns how many are new.
    pub fn learn(&mut self, learned: Vec<RememberedKey>) -> Result<u64, Failed> {
        let (mut new, now, lanes) = (0, self.clock.now(), self.lanes_by_tag());
        for RememberedKey { key, first, fingerprint, left } in learned.into_iter().take(REMEMBERED_MAX) {
            if !keys::is_remembered(&key) {
                continue;
            }
            let known = match self.key_record(&key)? {
                // An unreadable one is replaced, too.
                None => Known::Over,
                Some(record) if self.is_over(&key, &record, now) && !self.is_stored(&lanes, record.first)? => {
                    Known::Over
                }
                Some(_) => continue,
            };
            let expires_at = now.plus(left.min(self.window(&key)));
            self.remember_until(key.to_vec(), &known, KeyRecord { first, fingerprint, expires_at });
            new += 1;
        }
        Ok(new)
    }
}

/// What to do with the key of an event that is about to be adopted.
enum Claim {
    /// Nothing: it cannot repeat, it is remembered as this event's already, or another event has it.
    None,
    /// Remember it. With what is known of it.
    Key(Vec<u8>, Known),
    /// This event was accepted with the same key and payload.
    Repeats(EventId),
}
