//! A Lambda in virtual time: slots, a rate, calls that slow each other down, throttles by chance. It uses no clock and
//! no threads, so the same seed gives the same run on every machine.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A span of virtual time, in microseconds.
pub type Micros = u64;

pub const SECOND: Micros = 1_000_000;

/// Decides how many calls of one lane may be in flight.
pub trait Controller {
    fn limit(&self) -> u32;

    /// A call begins. `in_flight` includes it.
    fn began(&mut self, in_flight: u32);

    /// A call was answered.
    fn answered(&mut self, began: Micros, now: Micros);

    fn throttled(&mut self, began: Micros, now: Micros);
}

/// How Lambda behaves for a while.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub lasts: Micros,
    /// Calls that can run at once. Further ones are throttled.
    pub slots: u32,
    /// Calls a second, a tenth of them at once. Infinite if there is no such limit.
    pub per_second: f64,
    /// Calls beyond this number at once slow all calls down in proportion.
    pub knee: u32,
    /// The share of calls that is throttled in any case.
    pub noise: f64,
    /// How long a call takes on average. Each takes between half of this and one and a half times this.
    pub latency: Micros,
    pub throttle_latency: Micros,
}

impl Weather {
    pub fn slots(seconds: u64, slots: u32) -> Self {
        Self {
            lasts: seconds * SECOND,
            slots,
            per_second: f64::INFINITY,
            knee: u32::MAX,
            noise: 0.0,
            latency: 100_000,
            throttle_latency: 10_000,
        }
    }

    /// The calls that could be answered in a second.
    fn possible(&self, attempts_max: u32) -> f64 {
        let at_once = self.slots.min(self.knee).min(attempts_max);
        (f64::from(at_once) * SECOND as f64 / self.latency as f64).min(self.per_second)
    }
}

/// The events to send.
#[derive(Debug, Clone, Copy)]
pub enum Backlog {
    Endless,
    /// This many events at once, again and again.
    Bursts {
        events: u32,
        every: Micros,
    },
}

#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub weather: Vec<Weather>,
    pub backlog: Backlog,
    pub lanes: usize,
    pub seed: u64,
}

/// What a controller achieved in a scenario.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub answered: Vec<u64>,
    pub throttled: u64,
    /// Calls that could have been answered, or events that came.
    pub possible: f64,
    call_micros: u64,
    wait_micros: u64,
}

impl Outcome {
    /// Adds up all of the stretches.
    pub fn sum(stretches: &[Self]) -> Self {
        let mut sum = Self::default();
        for stretch in stretches {
            sum.answered.resize(stretch.answered.len(), 0);
            sum.answered.iter_mut().zip(&stretch.answered).for_each(|(sum, more)| *sum += more);
            sum.throttled += stretch.throttled;
            sum.possible += stretch.possible;
            sum.call_micros += stretch.call_micros;
            sum.wait_micros += stretch.wait_micros;
        }
        sum
    }

    pub fn used(&self) -> f64 {
        self.answered_in_all() as f64 / self.possible
    }

    pub fn wasted(&self) -> f64 {
        self.throttled as f64 / (self.answered_in_all() + self.throttled).max(1) as f64
    }

    /// How long an answered call took, in milliseconds.
    pub fn call_millis(&self) -> f64 {
        self.call_micros as f64 / 1_000.0 / self.answered_in_all().max(1) as f64
    }

    /// From an event's arrival to its answer, in milliseconds. Only for bursts.
    pub fn wait_millis(&self) -> f64 {
        self.wait_micros as f64 / 1_000.0 / self.answered_in_all().max(1) as f64
    }

    /// What the lane with the least got, divided by what the lane with the most got.
    pub fn fairness(&self) -> f64 {
        let least = self.answered.iter().min().copied().unwrap_or(0);
        least as f64 / self.answered.iter().max().copied().unwrap_or(0).max(1) as f64
    }

    fn answered_in_all(&self) -> u64 {
        self.answered.iter().sum()
    }
}

/// The most that an event waits after a throttle: the first step of the usual backoff.
const BACKOFF: Micros = 500_000;

/// A limit of attempts that is never exceeded, for what is possible at most.
pub const ATTEMPTS_MAX: u32 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    end: Micros,
    number: u64,
    lane: usize,
    began: Micros,
    /// When its event came.
    event: Micros,
    throttled: bool,
}

/// Runs `controllers`, one for each lane, through a scenario. Returns the result of each stretch of weather. Lanes take
/// turns.
pub fn run(scenario: &Scenario, controllers: &mut [Box<dyn Controller + '_>]) -> Vec<Outcome> {
    let fresh = || Outcome { answered: vec![0; scenario.lanes], ..Outcome::default() };
    let mut outcomes = Vec::new();
    let mut run = Run {
        outcome: fresh(),
        calls: BinaryHeap::new(),
        events: BinaryHeap::new(),
        in_flight: vec![0; scenario.lanes],
        busy: 0,
        tokens: 0.0,
        refilled: 0,
        number: 0,
        now: 0,
        random: fastrand::Rng::with_seed(scenario.seed),
    };
    let mut from = 0;
    for weather in &scenario.weather {
        let until = from + weather.lasts;
        if let Backlog::Bursts { events, every } = scenario.backlog {
            let bursts = (from.div_ceil(every)..until.div_ceil(every)).map(|n| n * every);
            for at in bursts {
                (0..scenario.lanes).for_each(|lane| run.arrive(at, lane, events));
                run.outcome.possible += f64::from(events) * scenario.lanes as f64;
            }
        } else {
            run.outcome.possible += weather.possible(ATTEMPTS_MAX) * weather.lasts as f64 / SECOND as f64;
        }
        run.tokens = run.tokens.min(weather.per_second / 10.0);
        run.go(until, weather, matches!(scenario.backlog, Backlog::Endless), controllers);
        outcomes.push(std::mem::replace(&mut run.outcome, fresh()));
        from = until;
    }
    outcomes
}

struct Run {
    outcome: Outcome,
    calls: BinaryHeap<Reverse<Call>>,
    /// When events may be sent, their lane, and when they came.
    events: BinaryHeap<Reverse<(Micros, u64, usize, Micros)>>,
    in_flight: Vec<u32>,
    busy: u32,
    tokens: f64,
    refilled: Micros,
    number: u64,
    now: Micros,
    random: fastrand::Rng,
}

impl Run {
    fn arrive(&mut self, at: Micros, lane: usize, events: u32) {
        for _ in 0..events {
            self.number += 1;
            self.events.push(Reverse((at, self.number, lane, at)));
        }
    }

    fn go(&mut self, until: Micros, weather: &Weather, endless: bool, controllers: &mut [Box<dyn Controller + '_>]) {
        loop {
            self.begin_all(weather, endless, controllers);
            let end = self.calls.peek().map(|Reverse(call)| call.end);
            let event = self.events.peek().map(|Reverse((at, ..))| *at).filter(|at| *at > self.now);
            let Some(next) = [end, event].into_iter().flatten().min().filter(|next| *next < until) else { break };
            self.now = next;
            while let Some(Reverse(call)) = self.calls.peek().copied().filter(|Reverse(call)| call.end <= next) {
                self.calls.pop();
                self.end(call, endless, controllers);
            }
        }
        self.now = until;
    }

    fn begin_all(&mut self, weather: &Weather, endless: bool, controllers: &mut [Box<dyn Controller + '_>]) {
        let mut waiting = Vec::new();
        if endless {
            let mut went = true;
            while std::mem::take(&mut went) {
                for turn in 0..controllers.len() {
                    let lane = (turn + self.number as usize) % controllers.len();
                    if self.in_flight[lane] < controllers[lane].limit() {
                        self.begin(lane, self.now, weather, controllers);
                        went = true;
                    }
                }
            }
            return;
        }
        while let Some(Reverse((at, number, lane, event))) = self.events.peek().copied().filter(|e| e.0.0 <= self.now) {
            self.events.pop();
            if self.in_flight[lane] < controllers[lane].limit() {
                self.begin(lane, event, weather, controllers);
            } else {
                waiting.push(Reverse((at, number, lane, event)));
                if (0..controllers.len()).all(|lane| self.in_flight[lane] >= controllers[lane].limit()) {
                    break;
                }
            }
        }
        self.events.extend(waiting);
    }

    fn begin(&mut self, lane: usize, event: Micros, weather: &Weather, controllers: &mut [Box<dyn Controller + '_>]) {
        self.in_flight[lane] += 1;
        controllers[lane].began(self.in_flight[lane]);
        let refill = (self.now - self.refilled) as f64 / SECOND as f64 * weather.per_second;
        self.refilled = self.now;
        self.tokens = (self.tokens + refill).min((weather.per_second / 10.0).max(1.0));
        let throttled = self.busy >= weather.slots || self.tokens < 1.0 || self.random.f64() < weather.noise;
        let took = if throttled {
            weather.throttle_latency
        } else {
            self.tokens -= 1.0;
            self.busy += 1;
            let slowed = (f64::from(self.busy) / f64::from(weather.knee)).max(1.0);
            (self.random.u64(weather.latency / 2..=weather.latency * 3 / 2) as f64 * slowed) as Micros
        };
        self.number += 1;
        let call = Call { end: self.now + took.max(1), number: self.number, lane, began: self.now, event, throttled };
        self.calls.push(Reverse(call));
    }

    fn end(&mut self, call: Call, endless: bool, controllers: &mut [Box<dyn Controller + '_>]) {
        let Call { lane, began, event, throttled, .. } = call;
        self.in_flight[lane] -= 1;
        if throttled {
            self.outcome.throttled += 1;
            controllers[lane].throttled(began, self.now);
            if !endless {
                self.number += 1;
                let again = self.now + self.random.u64(0..=BACKOFF);
                self.events.push(Reverse((again, self.number, lane, event)));
            }
        } else {
            self.busy -= 1;
            self.outcome.answered[lane] += 1;
            self.outcome.call_micros += self.now - began;
            self.outcome.wait_micros += self.now - event;
            controllers[lane].answered(began, self.now);
        }
    }
}
