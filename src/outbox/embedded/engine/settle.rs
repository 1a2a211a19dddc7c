//! Writes the results of leased events.

use super::lane::Held;
use super::{Engine, account, unreadable};
use crate::event::EventId;
use crate::outbox::embedded::keys::{self, Due};
use crate::outbox::embedded::kv::{Failed, Kv};
use crate::outbox::embedded::record::{Record, chunk_count};
use crate::outbox::{Count, History, LaneId, Lease, Place, Settlement};

impl<K: Kv> Engine<K> {
    /// Adds settlements to the batch. Returns the leases that were not held, for example because they were settled already.
    pub fn settle(&mut self, done: Vec<(Lease, Settlement)>) -> Result<Vec<Lease>, Failed> {
        let mut lost = Vec::new();
        for (lease, settlement) in done {
            if !self.settle_one(lease, settlement)? {
                lost.push(lease);
            }
        }
        Ok(lost)
    }

    /// Whether the lease was held.
    fn settle_one(&mut self, Lease { lane: lane_id, id }: Lease, settlement: Settlement) -> Result<bool, Failed> {
        let Some(lane) = self.lanes.get_mut(&lane_id) else { return Ok(false) };
        let Some(held) = lane.give_back(id) else { return Ok(false) };
        match settlement {
            Settlement::Release => {
                if held.place == Place::Ready {
                    lane.rewind(id);
                }
                self.touch_view(lane_id);
            }
            Settlement::Delivered | Settlement::Shipped => {
                if settlement == Settlement::Delivered && lane.prove() {
                    self.proven += 1;
                }
                self.outlive(id, held.key)?;
                self.remove(lane_id, id, held);
            }
            Settlement::HandedOver => {
                self.outlive(id, held.key)?;
                self.forget_adoption(id)?;
                self.remove(lane_id, id, held);
            }
            Settlement::RetryAt(history) => {
                let place = match held.place {
                    Place::Ready | Place::Waiting => Place::Waiting,
                    Place::Scheduled => Place::Scheduled,
                    Place::Buried => Place::Buried,
                };
                self.rewrite(lane_id, id, held, place, history)?;
            }
            Settlement::Bury(history) => self.rewrite(lane_id, id, held, Place::Buried, history)?,
        }
        Ok(true)
    }

    pub(super) fn remove(&mut self, lane_id: LaneId, id: EventId, held: Held) {
        self.unindex(lane_id, id, held);
        self.forget_expiry(lane_id, id, held);
        self.batch.remove(keys::event(held.place, lane_id, id));
        for index in 0..chunk_count(held.body_bytes) {
            self.batch.remove(keys::chunk(id, index));
        }
        let count = Count { events: 1, bytes: held.bytes };
        self.totals.subtract(count);
        let now = self.clock.now();
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.removed(held.place, count, now);
        }
        self.touch(lane_id);
    }

    /// Reads a record that must exist. The inner error concerns only this event.
    fn record(&self, key: &[u8]) -> Result<Result<Record, Failed>, Failed> {
        let missing = || Failed::of_value("settling an event", "its record is missing");
        let bytes = self.kv.get(key).and_then(|bytes| bytes.ok_or_else(missing));
        Failed::apart(bytes.and_then(|b| Record::decode(&b).map_err(|e| unreadable("settling an event", &e))))
    }

    /// Moves an event to `place` with a new history. Its chunks do not move. An unreadable event stays in its state and is
    /// set aside.
    pub(super) fn rewrite(
        &mut self,
        lane_id: LaneId,
        id: EventId,
        held: Held,
        place: Place,
        history: History,
    ) -> Result<(), Failed> {
        let key = keys::event(held.place, lane_id, id);
        let mut record = match self.record(&key)? {
            Ok(record) => record,
            Err(failed) if failed.passes => {
                // As if it had been released: the attempt is forgotten, and repeated later.
                if let Some(lane) = self.lanes.get_mut(&lane_id).filter(|_| held.place == Place::Ready) {
                    lane.rewind(id);
                }
                self.starve(lane_id, &failed);
                self.touch_view(lane_id);
                return Ok(());
            }
            Err(failed) => {
                self.set_aside(lane_id, held.place, id, held.due, &failed);
                self.touch_view(lane_id);
                return Ok(());
            }
        };
        record.history = history;
        let encoded = record.encode();

        self.unindex(lane_id, id, held);
        if place != held.place {
            self.batch.remove(key);
        }
        if place == Place::Buried {
            self.forget_expiry(lane_id, id, held);
        }
        let (index, due) = (Due::of(place), record.history.due);
        if let Some(index) = index {
            self.batch.put(keys::due(index, lane_id, due, id), vec![keys::letter(place)]);
        }
        let old = Count { events: 1, bytes: held.bytes };
        let new = Count { events: 1, bytes: account(encoded.len(), record.body_bytes) };
        self.batch.put(keys::event(place, lane_id, id), encoded);
        self.totals.subtract(old);
        self.totals.add(new);
        let now = self.clock.now();
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.removed(held.place, old, now);
            lane.added(place, new, id);
        }
        self.touch(lane_id);
        Ok(())
    }

    fn forget_expiry(&mut self, lane: LaneId, id: EventId, held: Held) {
        if let Some(expires_at) = held.expires_at {
            self.batch.remove(keys::due(Due::Expiry, lane, expires_at, id));
        }
    }

    fn unindex(&mut self, lane: LaneId, id: EventId, held: Held) {
        if let (Some(index), Some(due)) = (Due::of(held.place), held.due) {
            self.batch.remove(keys::due(index, lane, due, id));
        }
    }
}
