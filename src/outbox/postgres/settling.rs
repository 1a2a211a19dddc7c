//! Writes the results of leased events: gathers what waits, one statement and one commit for all of it.
//!
//! Holds: a settlement whose answer was lost is handed back and may be repeated. A lane that was taken away is settled by
//! nobody here: its leases are answered as lost.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::base::{Settling, Trouble};
use super::engine::Shared;
use super::keys::Family;
use super::lanes::Held;
use crate::clock::UnixMillis;
use crate::outbox::{Lease, Place, Settlement, Unsettled};

/// The most queued requests.
pub(super) const QUEUE_MAX: usize = 1_024;

/// The most settlements of one commit.
const BATCH_MAX: usize = 1_024;

/// An event that leaves within this part of its window keeps the time that its key got at acceptance.
const SOON_PART: u32 = 8;

/// How often a settlement is repeated whose locks were not granted, or whose session was replaced.
const TRIES: u32 = 5;

type Done = Vec<(Lease, Settlement)>;

pub(super) struct Queued {
    pub done: Done,
    pub now: UnixMillis,
    pub answer: oneshot::Sender<Result<Vec<Lease>, Unsettled>>,
}

/// The task that settles.
pub(super) async fn run(shared: Arc<Shared>, mut queue: mpsc::Receiver<Queued>) {
    let mut session = None;
    loop {
        let first = tokio::select! {
            biased;
            first = queue.recv() => first,
            () = shared.closed.cancelled() => queue.try_recv().ok(),
        };
        let Some(first) = first else { return };
        let mut events = first.done.len();
        let mut batch = vec![first];
        while events < BATCH_MAX {
            let Ok(next) = queue.try_recv() else { break };
            events += next.done.len();
            batch.push(next);
        }
        settle(&shared, &mut session, batch).await;
    }
}

/// A settlement that is being written.
struct Writing {
    lease: Lease,
    lane: i64,
    held: Held,
}

async fn settle(shared: &Shared, session: &mut Option<(u64, i64)>, batch: Vec<Queued>) {
    let now = batch.iter().map(|queued| queued.now).max().unwrap_or_default();
    // Nothing of this counts while the lanes are read.
    let reading = shared.reading.read().await;
    let mut writing: Vec<Vec<Option<Writing>>> = Vec::new();
    let mut settling = Settling::default();
    {
        let mut state = shared.state();
        for queued in &batch {
            let mut own = Vec::new();
            for (lease, settlement) in &queued.done {
                let begun = state.lanes.begin_settling(*lease);
                if let Some((lane, held)) = begun {
                    add(&mut settling, shared, lane, *lease, held, settlement, now);
                    if *settlement == Settlement::Delivered && !state.lanes.is_proven(lease.lane) {
                        settling.proven.push(lane);
                    }
                }
                own.push(begun.map(|(lane, held)| Writing { lease: *lease, lane, held }));
            }
            writing.push(own);
        }
    }
    let written = if settling.is_empty() { Ok(Vec::new()) } else { write(shared, session, &settling).await };
    match written {
        Ok(lost) => {
            let lost: BTreeSet<i64> = lost.into_iter().collect();
            let answers = apply(shared, &batch, &writing, &lost, now);
            drop(reading);
            shared.tell();
            for (queued, lost) in batch.into_iter().zip(answers) {
                drop(queued.answer.send(Ok(lost)));
            }
        }
        Err(Trouble::Fenced(_)) => {
            drop(reading);
            shared.fenced();
            for queued in batch {
                let lost = queued.done.into_iter().map(|(lease, _)| lease).collect();
                drop(queued.answer.send(Ok(lost)));
            }
        }
        Err(trouble) => {
            {
                let mut state = shared.state();
                writing.iter().flatten().flatten().for_each(|one| state.lanes.not_settled(one.lease));
            }
            drop(reading);
            let why = shared.error(trouble);
            for queued in batch {
                drop(queued.answer.send(Err(Unsettled { why: why.clone(), done: queued.done })));
            }
        }
    }
}

fn add(
    settling: &mut Settling,
    shared: &Shared,
    lane: i64,
    lease: Lease,
    held: Held,
    settlement: &Settlement,
    now: UnixMillis,
) {
    let buried = held.place == Place::Buried;
    match settlement {
        Settlement::Release => {}
        Settlement::Delivered | Settlement::Shipped | Settlement::HandedOver => {
            let leaving = if buried { &mut settling.shipped } else { &mut settling.delivered };
            leaving.push((lane, lease.id));
            if let Some(key) = held.key {
                let limits = &shared.settings.limits;
                let window = match key.family {
                    Family::Sdk => limits.sdk_window,
                    Family::Given | Family::Redriven | Family::Adopted => limits.dedupe_window,
                };
                if now.since(lease.id.accepted_at()) >= window / SOON_PART {
                    settling.outlive.push((key, lease.id));
                }
            }
        }
        Settlement::RetryAt(history) if buried => settling.reship.push((lane, lease.id, history.clone())),
        Settlement::RetryAt(history) => {
            settling.retry.push((lane, lease.id, waiting(held.place), history.clone()));
        }
        Settlement::Bury(history) => settling.bury.push((lane, lease.id, history.clone())),
    }
}

/// Where an event waits for its next attempt.
fn waiting(place: Place) -> Place {
    match place {
        Place::Ready | Place::Waiting => Place::Waiting,
        Place::Scheduled => Place::Scheduled,
        Place::Buried => Place::Buried,
    }
}

async fn write(shared: &Shared, session: &mut Option<(u64, i64)>, settling: &Settling) -> Result<Vec<i64>, Trouble> {
    let mut tries = 0;
    loop {
        tries += 1;
        let member = shared.member();
        match shared.settle.settle(member, session, settling).await {
            Err(Trouble::Replaced) if tries < TRIES => *session = None,
            Err(Trouble::Locked(_)) if tries < TRIES => {}
            Err(Trouble::DiskFull(why)) => {
                // What only deletes makes room. The rest waits for it.
                let deleting = Settling {
                    delivered: settling.delivered.clone(),
                    shipped: settling.shipped.clone(),
                    ..Settling::default()
                };
                if !deleting.is_empty() {
                    shared.settle.settle(member, session, &deleting).await?;
                }
                return Err(Trouble::DiskFull(why));
            }
            other => return other,
        }
    }
}

/// Takes over what was written. Returns the leases of each request that were not held.
fn apply(
    shared: &Shared,
    batch: &[Queued],
    writing: &[Vec<Option<Writing>>],
    lost_lanes: &BTreeSet<i64>,
    now: UnixMillis,
) -> Vec<Vec<Lease>> {
    let mut state = shared.state();
    let mut answers = Vec::new();
    for (queued, own) in batch.iter().zip(writing) {
        let mut lost = Vec::new();
        for ((lease, settlement), one) in queued.done.iter().zip(own) {
            let Some(one) = one.as_ref().filter(|one| !lost_lanes.contains(&one.lane)) else {
                lost.push(*lease);
                continue;
            };
            match settlement {
                Settlement::Release => state.lanes.release(*lease),
                Settlement::Delivered | Settlement::Shipped | Settlement::HandedOver => {
                    if *settlement == Settlement::Delivered {
                        state.lanes.prove(lease.lane);
                    }
                    state.lanes.left(*lease, now);
                }
                Settlement::RetryAt(history) => state.lanes.waits(*lease, waiting(one.held.place), history.due),
                Settlement::Bury(history) => state.lanes.waits(*lease, Place::Buried, history.due),
            }
        }
        answers.push(lost);
    }
    // Not ours any longer: another daemon has them, with all that is in them.
    for number in lost_lanes {
        if let Some(id) = state.lanes.of_number(*number) {
            state.lanes.lose(id);
        }
    }
    answers
}
