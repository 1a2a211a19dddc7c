//! Brings the events and keys of a store that nobody uses into the shared outbox, for `sendoff postgres import`.
//!
//! Holds: an import may be repeated after any interruption. The database remembers the ids that came in, as long as it stores
//! the events and for a window of keys, so no event comes twice, not even if it has been delivered meanwhile.

use std::sync::Arc;

use super::adopting::{adopt_piece, learn, pieces};
use super::base::{NotAdopted, Room, Trouble};
use super::engine::member_id;
use super::live::{Link, READING_MAX, Reach};
use super::{Settings, examine_for_use, keeper};
use crate::clock::Clock;
use crate::event::FunctionName;
use crate::outbox::handoff::{Adopted, Handed, RememberedKey};
use crate::outbox::{Full, OpenError};

/// A connection that imports.
pub struct Importer {
    link: Link,
    member: i64,
    shown: String,
}

/// An import is an operator's decision, so no limit refuses it. Daemons then accept no event until there is room.
const ALL: Room = Room { events: i64::MAX as u64, bytes: i64::MAX as u64, functions: i32::MAX as u64 };

impl Importer {
    /// Checks the database, and that its daemons deliver to where the imported events belong.
    pub async fn begin(settings: &Settings, clock: &Clock) -> Result<Self, OpenError> {
        examine_for_use(&settings.server).await?;
        let shown = settings.server.shown();
        let link = Link::new(settings.server.clone(), READING_MAX, clock.clone(), Arc::new(Reach::default()));
        let importer = Self { link, member: member_id(clock), shown: shown.clone() };
        let failed =
            |trouble: Trouble| OpenError::Io { doing: "importing into", path: shown.clone(), why: trouble.to_string() };
        let is_new = importer.link.is_new().await.map_err(failed)?;
        // A member without lanes: the database checks that it belongs to the same region, account and endpoint. If it ends
        // without leaving, daemons remove it after a lease.
        let name = format!("import-{:08x}", clock.random_bits() as u32);
        importer.link.join(importer.member, &name, &keeper::realm(settings), None).await.map_err(failed)?;
        if is_new {
            // The first daemon would set them to the same.
            let millis = |window: std::time::Duration| u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
            let limits = &settings.limits;
            importer.link.set_windows(millis(limits.dedupe_window), millis(limits.sdk_window)).await.map_err(failed)?;
        }
        Ok(importer)
    }

    /// Stores events, each with its history and in its state. Returns one answer per event, once all are on stable storage.
    pub async fn adopt(&self, events: &[Handed]) -> Result<Vec<Adopted>, String> {
        let mut answers = Vec::with_capacity(events.len());
        for piece in pieces(events) {
            let refused = adopt_piece(&self.link, piece, ALL).await.map_err(|trouble| self.said(&trouble))?;
            answers.extend(refused.into_iter().map(|refused| match refused {
                None => Adopted::Stored,
                Some(NotAdopted::Repeat) => Adopted::Repeat,
                Some(NotAdopted::KnownKey { first }) => Adopted::KnownKey { first },
                Some(NotAdopted::NoRoom(_)) => Adopted::Full(Full::Behind),
            }));
        }
        Ok(answers)
    }

    /// Remembers keys for the rest of their windows. Returns how many are new.
    pub async fn learn(&self, keys: &[RememberedKey]) -> Result<u64, String> {
        learn(&self.link, keys).await.map_err(|trouble| self.said(&trouble))
    }

    /// Pauses a function, as it was paused where it comes from.
    pub async fn pause(&self, function: &FunctionName) -> Result<(), String> {
        self.link.pause(function.as_str(), true).await.map_err(|trouble| self.said(&trouble))
    }

    pub async fn end(self) -> Result<(), String> {
        self.link.leave(self.member).await.map_err(|trouble| self.said(&trouble))
    }

    fn said(&self, trouble: &Trouble) -> String {
        format!("{}: {trouble}", self.shown)
    }
}
