//! Adopts events of other stores, and the keys that follow them. `outbox/handoff.rs` has the rules, `sql/011_adopt.sql` keeps
//! them.
//!
//! Holds: an adoption is answered only after its commit. Any daemon adopts, whoever owns the lanes: the owner learns of the
//! events as of those that clients send.
//! Limits: [`EVENTS_MAX`] or [`BYTES_MAX`], and one event more, in one commit.

use super::appending::{answer_of, room};
use super::base::{NotAdopted, Room, Trouble};
use super::engine::Shared;
use super::keys;
use super::live::Link;
use crate::outbox::handoff::{Adopted, Handed, REMEMBERED_MAX, RememberedKey};
use crate::outbox::{Appended, Full};

/// The most events and bytes of one commit.
const EVENTS_MAX: usize = 256;
const BYTES_MAX: usize = 4 << 20;

/// How often a commit is repeated whose locks were not granted.
const TRIES: u32 = 8;

pub(super) async fn adopt(shared: &Shared, events: &[Handed]) -> Result<Vec<Adopted>, Trouble> {
    let mut answers = Vec::with_capacity(events.len());
    for piece in pieces(events) {
        let (room, _alone) = room(shared).await?;
        let stored = adopt_piece(&shared.append[0], piece, room).await;
        // Also after an error: the answer may have been lost.
        shared.ring();
        let refused = stored?;
        note_pauses(shared, piece, &refused);
        answers.extend(piece.iter().zip(refused).map(|(handed, refused)| match refused {
            None => Adopted::Stored,
            Some(NotAdopted::Repeat) => Adopted::Repeat,
            Some(NotAdopted::KnownKey { first }) => Adopted::KnownKey { first },
            Some(NotAdopted::NoRoom(verdict)) => match answer_of(shared, verdict, &handed.event, room) {
                Appended::Full(full) => Adopted::Full(full),
                Appended::Stored | Appended::Repeat { .. } | Appended::Conflict { .. } => Adopted::Full(Full::Behind),
            },
        }));
    }
    Ok(answers)
}

/// Takes over at once what the commit has paused. Otherwise the next beat would tell, and leases look at the database anyway.
fn note_pauses(shared: &Shared, events: &[Handed], refused: &[Option<NotAdopted>]) {
    let stored = events.iter().zip(refused).filter(|(_, refused)| refused.is_none()).map(|(handed, _)| handed);
    let mut state = shared.state();
    for handed in stored.filter(|handed| handed.paused && handed.history.burial.is_none()) {
        if let Some(id) = state.lanes.id_of(&handed.event.function.name) {
            state.lanes.pause(id, true);
        }
    }
    drop(state);
    shared.tell();
}

/// Cuts events into what fits into one commit.
pub(super) fn pieces(events: &[Handed]) -> Vec<&[Handed]> {
    let (mut pieces, mut rest) = (Vec::new(), events);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(EVENTS_MAX).take_while(|handed| {
            let is_first = bytes == 0;
            bytes += handed.event.cost();
            is_first || bytes <= BYTES_MAX
        });
        let (piece, more) = rest.split_at(fits.count());
        pieces.push(piece);
        rest = more;
    }
    pieces
}

/// Stores what fits into one commit. Returns for each event why it was not stored.
pub(super) async fn adopt_piece(
    link: &Link,
    events: &[Handed],
    room: Room,
) -> Result<Vec<Option<NotAdopted>>, Trouble> {
    let mut tries = 0;
    let refused = loop {
        tries += 1;
        match link.adopt(events, room).await {
            Err(Trouble::Locked(_)) if tries < TRIES => {}
            other => break other?,
        }
    };
    let mut answers = vec![None; events.len()];
    for (nth, why) in refused {
        if let Some(answer) = answers.get_mut(nth) {
            *answer = Some(why);
        }
    }
    Ok(answers)
}

/// Remembers keys of another store. Returns how many are new.
pub(super) async fn learn(link: &Link, learned: &[RememberedKey]) -> Result<u64, Trouble> {
    let learned = learned.iter().take(REMEMBERED_MAX).filter_map(|RememberedKey { key, first, fingerprint, left }| {
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Some((keys::learned(*key)?, *first, *fingerprint, left))
    });
    let learned: Vec<_> = learned.collect();
    if learned.is_empty() {
        return Ok(0);
    }
    let mut tries = 0;
    loop {
        tries += 1;
        match link.learn(&learned).await {
            Err(Trouble::Locked(_)) if tries < TRIES => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMillis};
    use crate::event::Event;
    use crate::event::testing::event;
    use crate::outbox::History;

    #[test]
    fn a_commit_has_a_bounded_number_of_events_and_bytes_and_at_least_one_event() {
        let clock = Clock::seeded(UnixMillis(1), 1);
        let handed = |bytes: usize| Handed {
            event: Event { payload: vec![b'x'; bytes].into(), ..event(&clock, "orders") },
            history: History::default(),
            paused: false,
        };
        let sizes = |events: &[Handed]| pieces(events).iter().map(|piece| piece.len()).collect::<Vec<_>>();
        let small: Vec<_> = (0..600).map(|_| handed(2)).collect();
        assert_eq!(sizes(&small), [256, 256, 88]);
        let large: Vec<_> = (0..3).map(|_| handed(BYTES_MAX)).collect();
        assert_eq!(sizes(&large), [1, 1, 1]);
        assert!(pieces(&[]).is_empty());
    }
}
