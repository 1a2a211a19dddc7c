//! An operator who interferes: pauses and resumes functions, purges, cancels, makes events due, and moves dead letters
//! (`dead_letters.rs`). Leaves the healthy function alone.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sendoff::event::FunctionName;
use sendoff::outbox::operator::{Keys, LIVE, Operator, Purge, Touched};
use sendoff::outbox::{Outbox, Place};

use crate::dead_letters;
use crate::scenario::STEADY;
use crate::world::{Front, World};

/// The most time between two actions, in milliseconds.
const GAP_MS_MAX: u64 = 4_000;

/// Interferes until the faults are over.
pub async fn operator(world: Arc<World>) {
    loop {
        world.pass(GAP_MS_MAX).await;
        if world.is_calm() {
            return;
        }
        let Some(front) = world.front() else { continue };
        let functions = &world.scenario.functions;
        let function = world.draw(|rng| functions[rng.usize(0..functions.len())].clone());
        if function == STEADY {
            continue;
        }
        match world.draw(|rng| rng.u8(0..9)) {
            0 => pause(&world, &front, &function, true).await,
            1 | 2 => pause(&world, &front, &function, false).await,
            3 => purge(&world, &front, &function).await,
            4 => cancel(&world, &front, &function).await,
            5 => dead_letters::revive(&world, &front, &function).await,
            6 => dead_letters::discard(&world, &front, &function).await,
            7 => dead_letters::redrive(&world, &front, &function).await,
            _ => attempt_now(&world, &front, &function).await,
        }
    }
}

/// Resumes all paused functions.
pub async fn resume_all(world: &Arc<World>) {
    if !world.scenario.operator {
        return;
    }
    let front = loop {
        match world.front() {
            Some(front) => break front,
            None => world.pass(100).await,
        }
    };
    for function in &world.scenario.functions {
        pause(world, &front, function, false).await;
    }
}

/// Asks within the daemon's life. `None` if its power goes or it refuses.
pub async fn ask<T: Send + 'static>(
    world: &World,
    front: &Front,
    asked: impl Future<Output = Result<T, sendoff::outbox::Error>> + Send + 'static,
) -> Option<T> {
    if !world.is_on(front.life) {
        return None; // an earlier question of the same action met the end of the life
    }
    let asking = front.tasks.spawn(asked);
    world.powers(asking.abort_handle());
    asking.await.ok()?.ok()
}

async fn pause(world: &Arc<World>, front: &Front, function: &str, paused: bool) {
    world.note(|| format!("operator: pause {function} {paused}"));
    world.ledger().sets_pause(function);
    let (outbox, name) = (front.outbox.clone(), FunctionName::new(function));
    let done = ask(world, front, async move { outbox.pause(&name, paused).await }).await;
    if paused && done.is_some() {
        world.ledger().is_paused(function, world.now());
    }
}

async fn purge(world: &Arc<World>, front: &Front, function: &str) {
    let now = front.clock.now();
    let ago = world.draw(|rng| Duration::from_millis(rng.u64(0..20_000)));
    let cutoff = sendoff::clock::UnixMillis(now.0.saturating_sub(ago.as_millis() as u64));
    let place: Option<Place> = world.draw(|rng| rng.bool().then(|| LIVE[rng.usize(0..LIVE.len())]));
    let dry_run = world.draw(|rng| rng.u8(0..3)) == 0;
    world.note(|| format!("operator: purge {function} {place:?} accepted before {} dry run {dry_run}", cutoff.0));
    let keys = any_keys(world);
    if !dry_run {
        world.ledger().purges(function, cutoff, keys);
    }
    let purge = Purge { function: FunctionName::new(function), place, accepted_before: Some(cutoff), dry_run, keys };
    let outbox = front.outbox.clone();
    let purged = ask(world, front, async move { outbox.purge(purge).await }).await;
    if !dry_run {
        world.ledger().has_purged(purged.map(|purged| purged.events));
    }
}

pub fn any_keys(world: &World) -> Keys {
    if world.draw(|rng| rng.bool()) { Keys::Forget } else { Keys::Keep }
}

async fn cancel(world: &Arc<World>, front: &Front, function: &str) {
    let drawn = world.draw(|rng| rng.usize(..));
    let Some((id, _)) = world.ledger().pick(function, drawn) else { return };
    world.note(|| format!("operator: cancel {id}"));
    let (outbox, keys) = (front.outbox.clone(), any_keys(world));
    world.ledger().cancels(id, keys);
    match ask(world, front, async move { outbox.cancel(id, keys).await }).await {
        Some(Touched::Done) => world.ledger().has_cancelled(id),
        Some(Touched::NotFound | Touched::InFlight | Touched::Buried | Touched::Unreadable) => {}
        None => world.ledger().has_purged(None),
    }
}

async fn attempt_now(world: &Arc<World>, front: &Front, function: &str) {
    let drawn = world.draw(|rng| rng.usize(..));
    let Some((id, serial)) = world.ledger().pick(function, drawn) else { return };
    world.note(|| format!("operator: attempt {id} now"));
    world.ledger().brings_forward(id, serial);
    let outbox = front.outbox.clone();
    let asked = async move {
        let before = outbox.find(id).await?;
        let touched = outbox.attempt_now(id).await?;
        Ok((before, touched, outbox.find(id).await?))
    };
    let Some((Some(before), Touched::Done, Some(after))) = ask(world, front, asked).await else { return };
    // An earlier settlement may have been recorded meanwhile.
    world.ledger().brings_forward(id, serial);
    let untouched = after.place != Place::Buried && after.history.calls == before.history.calls;
    // A Ready event does not wait, whatever its record says: the clock may be before the time of its acceptance.
    let waits = after.place != Place::Ready && after.history.due > front.clock.now();
    let is_even = world.ledger().clock_set.is_none_or(|at| world.now().since(at) > Duration::from_secs(1));
    if is_even && untouched && !before.leased && !after.leased && waits {
        world.violated("operator", format!("{id} was to be attempted now, and waits"));
    }
}
