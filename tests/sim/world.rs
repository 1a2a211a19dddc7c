//! What all parts of a simulation share: time, chance, the trace, the ledger, and the power that may go at any step.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sendoff::clock::{Clock, UnixMillis};
use sendoff::ingest::door::Door;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use crate::disk::{Cut, FakeDisk};
use crate::ledger::Ledger;
use crate::outages::How;
use crate::scenario::{Scenario, Weather};
use crate::tap::Tap;

pub const START: UnixMillis = UnixMillis(1_790_000_000_000);

pub struct World {
    pub scenario: Scenario,
    /// The world's own time. A daemon's clock may differ.
    pub clock: Clock,
    pub disk: FakeDisk,
    ledger: Mutex<Ledger>,
    rng: Mutex<fastrand::Rng>,
    trace: Mutex<Trace>,
    power: Mutex<Power>,
    pub power_went: Notify,
    front: Mutex<Option<Front>>,
}

/// The entrance for clients.
#[derive(Clone)]
pub struct Front {
    pub life: u32,
    pub door: Door<Tap>,
    pub outbox: Tap,
    pub clock: Clock,
    pub tasks: TaskTracker,
}

/// Whether the trace is kept or printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trail {
    None,
    Kept,
    Printed,
}

struct Trace {
    trail: Trail,
    text: String,
}

#[derive(Default)]
struct Power {
    life: u32,
    on: bool,
    /// Steps until the power goes. `None` means that it does not go by itself.
    steps_left: Option<u64>,
    tasks: Vec<AbortHandle>,
    crashes: u64,
    calm: bool,
}

impl World {
    pub fn new(scenario: Scenario, trail: Trail) -> Arc<Self> {
        let rng = fastrand::Rng::with_seed(scenario.seed ^ 0x5eed);
        let has_outages = !scenario.outages.is_empty();
        Arc::new(Self {
            clock: Clock::seeded(START, scenario.seed),
            scenario,
            disk: FakeDisk::default(),
            ledger: Mutex::new(Ledger::new(has_outages)),
            rng: Mutex::new(rng),
            trace: Mutex::new(Trace { trail, text: String::new() }),
            power: Mutex::default(),
            power_went: Notify::new(),
            front: Mutex::default(),
        })
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    // --- chance ---

    pub fn draw<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    /// True in this many of a hundred cases. Never after the faults are over.
    pub fn fault(&self, percent: u8) -> bool {
        let drawn = self.draw(|rng| rng.u8(0..100)) < percent;
        drawn && !self.is_calm()
    }

    pub async fn pass(&self, millis_max: u64) {
        let millis = self.draw(|rng| rng.u64(0..=millis_max));
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    pub fn weather(&self, place: &str) -> Weather {
        if self.is_calm() || !self.scenario.outages.is_empty() {
            Weather::Fair
        } else {
            self.scenario.weather(place, self.now().since(START).as_millis() as u64)
        }
    }

    /// How a call of a function fails now, if it is in an outage.
    pub fn outage(&self, function: &str) -> Option<How> {
        if self.is_calm() {
            return None;
        }
        let outage = self.scenario.outage(function, self.now().since(START).as_millis() as u64)?;
        if outage.passes_percent > 0 && self.fault(outage.passes_percent) {
            return None;
        }
        Some(outage.how.unwrap_or_else(|| self.any_failure()))
    }

    /// One of the ways of failing that do not tell whose fault it is.
    pub fn any_failure(&self) -> How {
        self.draw(|rng| How::ALL[rng.usize(0..How::ALL.len())])
    }

    pub fn disk_is_full(&self) -> bool {
        self.scenario.full_disks && matches!(self.weather("disk"), Weather::Operator | Weather::Throttled)
    }

    pub fn sync_fails(&self) -> bool {
        self.scenario.sync_failures && self.draw(|rng| rng.u16(0..1_000)) < 5 && !self.is_calm()
    }

    // --- the trace ---

    pub fn note(&self, line: impl FnOnce() -> String) {
        let mut trace = self.trace.lock().unwrap();
        if trace.trail == Trail::None {
            return;
        }
        let line = format!("{:>9} {}", self.now().since(START).as_millis(), line());
        if trace.trail == Trail::Printed {
            println!("{line}");
        }
        writeln!(trace.text, "{line}").unwrap();
    }

    pub fn trace(&self) -> String {
        self.trace.lock().unwrap().text.clone()
    }

    pub fn violated(&self, promise: &str, what: String) {
        self.note(|| format!("VIOLATED {promise}: {what}"));
        self.ledger().violations.push(format!("{promise}: {what}"));
    }

    // --- power ---

    pub fn switch_on(&self, life: u32, steps_left: Option<u64>) {
        let mut power = self.power.lock().unwrap();
        let (crashes, calm) = (power.crashes, power.calm);
        *power = Power { life, on: true, steps_left, tasks: Vec::new(), crashes, calm };
    }

    /// Registers a task that ends when the power goes.
    pub fn powers(&self, task: AbortHandle) {
        self.power.lock().unwrap().tasks.push(task);
    }

    pub fn is_on(&self, life: u32) -> bool {
        let power = self.power.lock().unwrap();
        power.on && power.life == life
    }

    pub fn crashes(&self) -> u64 {
        self.power.lock().unwrap().crashes
    }

    /// Takes one step of a life. True if the power went with it, or had gone before.
    pub fn step(&self, life: u32, place: &str) -> bool {
        let mut power = self.power.lock().unwrap();
        if !power.on || power.life != life {
            return true;
        }
        match &mut power.steps_left {
            None => return false,
            Some(0) => {}
            Some(steps) => {
                *steps -= 1;
                return false;
            }
        }
        drop(power);
        self.cut_power(place);
        true
    }

    /// As [`World::step`], but a task without power never continues.
    pub async fn point(&self, life: u32, place: &str) {
        if self.step(life, place) {
            std::future::pending::<()>().await;
        }
    }

    pub fn cut_power(&self, place: &str) {
        {
            let mut power = self.power.lock().unwrap();
            power.on = false;
            power.crashes += 1;
            power.tasks.drain(..).for_each(|task| task.abort());
        }
        self.draw(|rng| {
            let cut = [Cut::Kill, Cut::AllLost, Cut::Torn, Cut::Torn, Cut::Torn][rng.usize(0..5)];
            self.disk.cut(cut, rng);
        });
        self.note(|| format!("CRASH {place}"));
        self.set_front(None);
        self.power_went.notify_one();
    }

    /// Ends a process that stopped by itself: its tasks end, but nothing is lost.
    pub fn end_process(&self) {
        let mut power = self.power.lock().unwrap();
        power.on = false;
        power.tasks.drain(..).for_each(|task| task.abort());
    }

    pub fn calm_down(&self) {
        self.power.lock().unwrap().calm = true;
        self.note(|| "the faults are over".into());
    }

    pub fn is_calm(&self) -> bool {
        self.power.lock().unwrap().calm
    }

    // --- the door ---

    pub fn set_front(&self, front: Option<Front>) {
        *self.front.lock().unwrap() = front;
    }

    pub fn front(&self) -> Option<Front> {
        self.front.lock().unwrap().clone()
    }
}
