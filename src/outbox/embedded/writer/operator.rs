//! The operators' calls of the handle.

use super::{Handle, Operation, Request};
use crate::event::{Event, EventId, FunctionName};
use crate::outbox::dead::{BuriedPage, BuriedWant, Discarded, Imported, Redriven, Revived};
use crate::outbox::operator::{Keys, KnownKey, ListWant, Operator, Page, Purge, Purged, Touched};
use crate::outbox::{Appended, Error, History, LaneView};

impl Operator for Handle {
    async fn lane(&self, function: &FunctionName) -> Result<Option<LaneView>, Error> {
        self.ask(|answer| Request::Lane(function.clone(), answer)).await
    }

    async fn pause(&self, function: &FunctionName, paused: bool) -> Result<(), Error> {
        self.ask(|answer| Request::Operate(Operation::Pause(function.clone(), paused, answer))).await
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, Error> {
        let mut total = Purged::default();
        let mut after = None;
        loop {
            let ask = |answer| Request::Operate(Operation::Purge(purge.clone(), after, answer));
            let (purged, next) = self.ask(ask).await?;
            total.add(purged);
            if next.is_none() {
                return Ok(total);
            }
            after = next;
        }
    }

    async fn cancel(&self, id: EventId, keys: Keys) -> Result<Touched, Error> {
        self.ask(|answer| Request::Operate(Operation::Cancel(id, keys, answer))).await
    }

    async fn attempt_now(&self, id: EventId) -> Result<Touched, Error> {
        self.ask(|answer| Request::Operate(Operation::AttemptNow(id, answer))).await
    }

    async fn cancel_all(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Touched>, Error> {
        self.in_pieces(ids, |ids, answer| Operation::CancelAll(ids, keys, answer)).await
    }

    async fn attempt_all(&self, ids: Vec<EventId>) -> Result<Vec<Touched>, Error> {
        self.in_pieces(ids, Operation::AttemptAll).await
    }

    async fn known_key(
        &self,
        function: &FunctionName,
        tenant: Option<String>,
        key: String,
    ) -> Result<Option<KnownKey>, Error> {
        self.ask(|answer| Request::KnownKey(function.clone(), tenant, key, answer)).await
    }

    async fn list(&self, want: ListWant) -> Result<Page, Error> {
        self.ask(|answer| Request::Operate(Operation::List(want, answer))).await
    }

    async fn buried(&self, want: BuriedWant) -> Result<BuriedPage, Error> {
        self.ask(|answer| Request::Buried(want, answer)).await
    }

    async fn redrive(&self, events: Vec<Redriven>) -> Result<Vec<Appended>, Error> {
        self.in_pieces(events, Operation::Redrive).await
    }

    async fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> Result<Vec<Revived>, Error> {
        self.in_pieces(ids, |ids, answer| Operation::Revive(ids, redrives_max, answer)).await
    }

    async fn import(&self, letters: Vec<(Event, History)>) -> Result<Vec<Imported>, Error> {
        self.in_pieces(letters, Operation::Import).await
    }

    async fn discard(&self, ids: Vec<EventId>, keys: Keys) -> Result<Vec<Discarded>, Error> {
        self.in_pieces(ids, |ids, answer| Operation::Discard(ids, keys, answer)).await
    }
}
