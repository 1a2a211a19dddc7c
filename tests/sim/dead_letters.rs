//! An operator who moves dead letters: brings them back from the store and from the queue, and removes some for good.
//! The answer may get lost, with the power or alone.

use std::sync::Arc;

use sendoff::deadletter::admit::{Rules, admit};
use sendoff::deadletter::letter::{Reading, Received, Wanted, read};
use sendoff::deadletter::message::Message;
use sendoff::event::EventId;
use sendoff::event::name::Home;
use sendoff::outbox::Appended;
use sendoff::outbox::dead::{BuriedWant, Discarded, Filter, Redriven, Revived};
use sendoff::outbox::operator::Operator;

use crate::ledger::serial_of;
use crate::operator::{any_keys, ask};
use crate::world::{Front, World};

/// How often an event may come back. As the daemon is told in `life.rs`.
pub const REDRIVES_MAX: u32 = 3;

/// The most letters of one request.
const LETTERS_MAX: usize = 4;

/// A few dead letters of a function in the store, with the serial numbers in their payloads.
async fn letters(world: &Arc<World>, front: &Front, function: &str) -> Option<Vec<(EventId, u64)>> {
    let (outbox, most) = (front.outbox.clone(), world.draw(|rng| rng.usize(1..=LETTERS_MAX)));
    let filter = Filter { function: function.parse().ok(), ..Filter::default() };
    let want = BuriedWant { filter, letters_max: most, payloads: true, after: None };
    let page = ask(world, front, async move { outbox.buried(want).await }).await?;
    let named = page.letters.iter().map(|letter| (letter.event.id, serial_of(&letter.event.payload).unwrap()));
    Some(named.collect()).filter(|named: &Vec<_>| !named.is_empty())
}

/// Brings dead letters of the store back.
pub async fn revive(world: &Arc<World>, front: &Front, function: &str) {
    let Some(letters) = letters(world, front, function).await else { return };
    let ids: Vec<EventId> = letters.iter().map(|(id, _)| *id).collect();
    world.note(|| format!("operator: revive {ids:?}"));
    letters.iter().for_each(|(_, serial)| world.ledger().brings_back(*serial));
    let outbox = front.outbox.clone();
    let answers = ask(world, front, async move { outbox.revive(ids, REDRIVES_MAX).await }).await;
    let is_stored = |answer: &&Revived| matches!(answer, Revived::Stored { .. });
    world.ledger().revived += answers.iter().flatten().filter(is_stored).count() as u64;
}

/// Removes dead letters of the store.
pub async fn discard(world: &Arc<World>, front: &Front, function: &str) {
    let Some(letters) = letters(world, front, function).await else { return };
    let ids: Vec<EventId> = letters.iter().map(|(id, _)| *id).collect();
    world.note(|| format!("operator: remove the dead letters {ids:?}"));
    let (outbox, keys, named) = (front.outbox.clone(), any_keys(world), ids.clone());
    letters.iter().for_each(|(id, serial)| world.ledger().discards(*id, *serial, keys));
    let Some(answers) = ask(world, front, async move { outbox.discard(named, keys).await }).await else {
        return world.ledger().has_purged(None);
    };
    let mut ledger = world.ledger();
    for (id, answer) in ids.into_iter().zip(answers) {
        match answer {
            Discarded::Done => {
                ledger.has_cancelled(id);
                ledger.discarded += 1;
            }
            Discarded::NotFound | Discarded::Leased => {}
        }
    }
}

/// Brings messages of the queue back, as `sendoff redrive` does: a message leaves the queue once the event is stored.
pub async fn redrive(world: &Arc<World>, front: &Front, function: &str) {
    let most = world.draw(|rng| rng.usize(1..=LETTERS_MAX));
    let (ids, events): (Vec<EventId>, Vec<Redriven>) = {
        let ledger = world.ledger();
        let letters = ledger.in_queue.values().filter_map(|message| {
            let redriven = redriven(message, front)?;
            (redriven.event.function.name.as_str() == function).then_some((message.id, redriven))
        });
        letters.take(most).unzip()
    };
    if ids.is_empty() {
        return;
    }
    world.note(|| format!("operator: redrive {ids:?}"));
    events.iter().for_each(|redriven| world.ledger().brings_back(serial_of(&redriven.event.payload).unwrap()));
    let outbox = front.outbox.clone();
    let Some(answers) = ask(world, front, async move { outbox.redrive(events).await }).await else { return };
    let mut ledger = world.ledger();
    for (id, answer) in ids.into_iter().zip(answers) {
        match answer {
            Appended::Stored | Appended::Repeat { .. } => {
                ledger.in_queue.remove(&id);
                ledger.redriven += 1;
            }
            Appended::Conflict { .. } | Appended::Full(_) => {}
        }
    }
}

/// The event that a message becomes. `None` if it came back too often.
fn redriven(message: &Message, front: &Front) -> Option<Redriven> {
    let attributes = message.attributes.iter().map(|(name, attribute)| (name.clone(), attribute.value()));
    let received = Received { body: message.body.clone(), attributes: attributes.collect(), ..Received::default() };
    let Reading::Letter(read) = read(&received, &Wanted::default()) else { return None };
    admit(read.letter, &Rules { home: Home::default(), redrives_max: REDRIVES_MAX }, &front.clock).ok()
}
