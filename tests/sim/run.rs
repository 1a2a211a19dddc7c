//! Runs one seed from beginning to end: lives with faults, then one without, in which everything must come to rest.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sendoff::outbox::dead::{BuriedWant, Filter};
use sendoff::outbox::operator::Operator;
use sendoff::outbox::{Census, Outbox};
use tokio_util::task::TaskTracker;

use crate::audit::{audit, fits_together};
use crate::clients::client;
use crate::disk::Did;
use crate::life::{Ending, live};
use crate::operator::{operator, resume_all};
use crate::scenario::Scenario;
use crate::tap::Tap;
use crate::world::{Trail, World};

/// Without faults, everything is delivered or shipped within this time of the world.
const LIVELY_WITHIN: Duration = Duration::from_secs(40 * 60);

/// The same if a ceiling makes events wait for the next hours, or if the clock was set: an event that was scheduled
/// while the clock was an hour ahead is due an hour later. Until then, the oldest one would be past any age.
const FRUGAL_WITHIN: Duration = Duration::from_secs(8 * 3_600);

/// The difference between the earliest and the latest clock of a daemon.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(6 * 3_600);

/// More dead letters than a seed can have.
const LETTERS_MAX: usize = 1_000;

/// The result of a seed.
#[derive(Debug, Default)]
pub struct Report {
    pub violations: Vec<String>,
    pub trace: String,
    pub accepted: u64,
    pub repeats: u64,
    pub calls: u64,
    pub shipped: u64,
    pub crashes: u64,
    pub did: Did,
    pub virtual_seconds: u64,
    pub failed_in_outages: u64,
    pub poison_ended: u64,
    pub revived: u64,
    pub redriven: u64,
    pub discarded: u64,
}

impl Report {
    /// Adds the numbers of another seed, but not its texts.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.repeats += other.repeats;
        self.calls += other.calls;
        self.shipped += other.shipped;
        self.crashes += other.crashes;
        self.did.add(other.did);
        self.failed_in_outages += other.failed_in_outages;
        self.poison_ended += other.poison_ended;
        self.revived += other.revived;
        self.redriven += other.redriven;
        self.discarded += other.discarded;
        self.virtual_seconds += other.virtual_seconds;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events accepted, {} repeats recognised, {} calls, {} dead letters in the queue, {} crashes, {} virtual seconds, {} calls failed in outages, {} poison events ended, {} dead letters revived, {} redriven, {} removed, {:?}",
            self.accepted,
            self.repeats,
            self.calls,
            self.shipped,
            self.crashes,
            self.virtual_seconds,
            self.failed_in_outages,
            self.poison_ended,
            self.revived,
            self.redriven,
            self.discarded,
            self.did
        )
    }
}

pub fn run(scenario: Scenario, trail: Trail) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::new(scenario, trail);
        story(&world).await;
        // The front holds the world, which would otherwise last as long as the process.
        world.set_front(None);
        let ledger = world.ledger();
        Report {
            violations: ledger.violations.clone(),
            trace: world.trace(),
            accepted: ledger.accepted.len() as u64,
            repeats: ledger.repeats,
            calls: ledger.calls,
            shipped: ledger.in_queue.len() as u64,
            crashes: world.crashes(),
            did: world.disk.did(),
            failed_in_outages: ledger.failed_in_outages,
            poison_ended: ledger.poison_ended.len() as u64,
            revived: ledger.revived,
            redriven: ledger.redriven,
            discarded: ledger.discarded,
            virtual_seconds: world.now().since(crate::world::START).as_secs(),
        }
    })
}

async fn story(world: &Arc<World>) {
    let scenario = world.scenario.clone();
    let clients = TaskTracker::new();
    for number in 1..=scenario.clients {
        clients.spawn(client(world.clone(), number));
    }
    clients.close();
    let operators = TaskTracker::new();
    if scenario.operator {
        operators.spawn(operator(world.clone()));
    }
    operators.close();
    let mut offset_ms = 0;
    let mut life = 0;
    while life < scenario.lives || !clients.is_empty() {
        life += 1;
        let after = Duration::from_millis(world.draw(|rng| rng.u64(1..scenario.life_ms_max)));
        let ending = if world.draw(|rng| rng.u8(0..3)) == 0 { Ending::Drain(after) } else { Ending::Crash(after) };
        let steps = world.draw(|rng| rng.bool().then(|| rng.u64(1..scenario.steps_max)));
        if life > scenario.lives {
            // The clients must finish, too.
            live(world, life, offset_ms, None, Ending::Drain(Duration::from_secs(60))).await;
        } else {
            live(world, life, offset_ms, steps, ending).await;
        }
        audit(world);
        if !world.ledger().violations.is_empty() {
            return;
        }
        world.pass(3_000).await;
        if scenario.clock_jumps && world.draw(|rng| rng.u8(0..3)) == 0 {
            let most = world.draw(|rng| [100_000, 100_000, 2 * 3_600_000][rng.usize(0..3)]);
            offset_ms = world.draw(|rng| rng.i64(-most..most));
        }
    }
    clients.wait().await;
    world.calm_down();
    let before = world.now();
    rest(world, life + 1, offset_ms).await;
    operators.wait().await;
    audit(world);
    let took = world.now().since(before);
    world.note(|| format!("at rest after {took:?}"));
}

/// The last life, without faults and new orders. Everything must be delivered or in the queue in time.
async fn rest(world: &Arc<World>, life: u32, offset_ms: i64) {
    let waits_for_hours = world.scenario.per_hour > 0 || world.scenario.clock_steps;
    let within = if waits_for_hours { FRUGAL_WITHIN } else { LIVELY_WITHIN };
    // What was scheduled while the clock was ahead waits until the clock is there again.
    let within = if world.scenario.clock_jumps { within + CLOCKS_APART_MAX } else { within };
    let watching = async {
        let began = world.now();
        resume_all(world).await;
        let left = loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let Some(front) = world.front() else { continue };
            let Ok(census) = front.outbox.census().await else { break "the outbox is lost".to_owned() };
            let Ok(kept) = kept(world, &front.outbox).await else { break "the outbox is lost".to_owned() };
            if is_at_rest(world, &census, kept) {
                return;
            }
            if world.now().since(began) > within {
                break format!("{} events are left: {:?}", census.events, census.lanes);
            }
        };
        world.violated("liveness", format!("not at rest within {within:?}: {left}"));
    };
    tokio::select! {
        biased;
        () = watching => {}
        () = live(world, life, offset_ms, None, Ending::Drain(within * 2)) => {
            world.violated("liveness", "the last life ended by itself".into());
        }
    }
    let found = world.disk.synced(crate::disk::settings(&world.scenario));
    if let Err(why) = found.and_then(|pairs| fits_together(&pairs)) {
        world.violated("liveness", format!("at rest, but {why}"));
    }
}

/// Dead letters of the store that the queue has refused for good.
async fn kept(world: &World, outbox: &Tap) -> Result<u64, sendoff::outbox::Error> {
    let filter = Filter { unshippable: Some(true), ..Filter::default() };
    let page = outbox.buried(BuriedWant { filter, letters_max: LETTERS_MAX, ..BuriedWant::default() }).await?;
    let ledger = world.ledger();
    Ok(page.letters.iter().filter(|letter| ledger.unshippable.contains(&letter.event.id)).count() as u64)
}

/// Whether only messages are left that no queue accepts, or that have no queue.
fn is_at_rest(world: &World, census: &Census, kept: u64) -> bool {
    let buried: u64 = census.lanes.values().map(|lane| lane.by_place[&sendoff::outbox::Place::Buried].events).sum();
    let leased: u64 = census.lanes.values().map(|lane| lane.leased).sum();
    let kept = if world.scenario.queue { kept } else { buried };
    census.events == buried && buried == kept && leased == 0
}
