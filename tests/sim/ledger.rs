//! What everybody was told, and what follows from it: the promises G1 to G6 of docs/guarantees.md as checks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use sendoff::clock::UnixMillis;
use sendoff::deadletter::message::Message;
use sendoff::dispatch::{Call, Mode};
use sendoff::event::{Carried, Event, EventId, KeySource};
use sendoff::outbox::operator::Keys;
use sendoff::outbox::{BuryReason, Leased, Settlement, Spent};

use crate::scenario::{CONFIRM_TIMEOUT, STEADY, Scenario};

/// The longest that an event of the healthy function may wait for its turn.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// A promise, and how it was broken.
pub type Violation = (&'static str, String);

#[derive(Default)]
pub struct Ledger {
    pub violations: Vec<String>,
    /// What clients asked for, by the serial number in the payload.
    pub orders: BTreeMap<u64, Order>,
    /// The events that got 202.
    pub accepted: BTreeMap<EventId, u64>,
    /// The first event of a key, and when it was accepted, by the world's clock.
    keys: BTreeMap<(String, String), (EventId, UnixMillis)>,
    /// How far the daemon's clock is ahead of the world's, in milliseconds.
    ahead: i64,
    /// By how much it went ahead between two lives, and when. A daemon cannot tell this from a time without power.
    jumps: Vec<(UnixMillis, Duration)>,
    /// By how much it was set ahead within a life, and when. A wait for a retry ends sooner by that.
    steps_ahead: Vec<(UnixMillis, Duration)>,
    /// Every event as it was first leased.
    seen: BTreeMap<EventId, Event>,
    by_serial: BTreeMap<u64, BTreeSet<EventId>>,
    /// When a settlement said that an event is to be attempted, or shipped, again, by the daemon's clock. Also when it
    /// said so, by the world's clock, and after how long.
    due: BTreeMap<EventId, (UnixMillis, UnixMillis, Duration)>,
    /// Events that were leased before they were due, which is allowed only for burying.
    early: BTreeSet<EventId>,
    /// What SQS has.
    pub in_queue: BTreeMap<EventId, Message>,
    /// Orders of which an operator has tried to bring a dead letter back, by their serial numbers.
    brought_back: BTreeSet<u64>,
    /// Dead letters that came back, and that were removed by name, as the answers said.
    pub revived: u64,
    pub redriven: u64,
    pub discarded: u64,
    /// What SQS confirmed.
    confirmed: BTreeSet<EventId>,
    /// What SQS will never accept.
    pub unshippable: BTreeSet<EventId>,
    in_flight: BTreeMap<String, u32>,
    /// Times without calls, as the function asked for in this life.
    pauses: BTreeMap<String, (u32, UnixMillis, UnixMillis)>,
    /// When events of the steady function were accepted, until their first call. By the world's clock.
    waiting: BTreeMap<EventId, UnixMillis>,
    /// When the current life began, by the world's clock.
    pub life_began: UnixMillis,
    /// When calls of a function began within the last second of a life.
    starts: BTreeMap<String, (u32, VecDeque<UnixMillis>)>,
    /// Calls of a function in an hour of the daemon's clock. If the clock is set back, earlier hours count again.
    spent: BTreeMap<String, (u64, u32)>,
    /// When the daemon's clock was last set, by the world's clock.
    pub clock_set: Option<UnixMillis>,
    /// Functions that an operator has paused, and since when that is known.
    paused: BTreeMap<String, UnixMillis>,
    /// Events that an operator has cancelled.
    cancelled: BTreeSet<EventId>,
    /// Events that an operator may have removed. Purges name no events, and not every answer is received.
    maybe_removed: BTreeSet<EventId>,
    /// Functions that were purged: up to which time of acceptance, and what was to happen with the keys.
    purges: Vec<(String, UnixMillis, Keys)>,
    /// Events whose keys an operator may have removed.
    maybe_forgotten: BTreeSet<EventId>,
    /// How many events purges said they removed. `None` after one that did not say.
    purged: Option<u64>,
    pub calls: u64,
    pub repeats: u64,
    pub failed_in_outages: u64,
    /// Poison events that were given up after their attempts.
    pub poison_ended: BTreeSet<EventId>,
    /// Whether the world has outages.
    pub has_outages: bool,
}

/// When a call began.
#[derive(Clone, Copy)]
pub struct When {
    pub life: u32,
    /// By the world's clock.
    pub now: UnixMillis,
    pub daemon_now: UnixMillis,
    /// How long a lease may have taken.
    pub slack: Duration,
}

/// One logical request, however often it is sent.
#[derive(Debug, Clone)]
pub struct Order {
    pub serial: u64,
    pub function: String,
    pub payload: Bytes,
    pub carried: Carried,
    /// The key that the client gave, if any.
    pub key: Option<String>,
    pub sdk_id: String,
    /// By the daemon's clock, and by the world's. An instant that has passed once stays in the past.
    pub not_before: Option<(UnixMillis, UnixMillis)>,
    pub expires_at: Option<UnixMillis>,
    /// Whether Lambda will never take it.
    pub refused: bool,
    /// Whether each of its calls fails, in the same way as calls in an outage.
    pub poison: bool,
    pub fate: Fate,
}

/// What Lambda did with an order.
#[derive(Debug, Clone, Default)]
pub struct Fate {
    /// How often it took the event.
    pub taken: u32,
    /// How often it said so and the daemon received it.
    pub confirmed: u32,
    /// Replies that the daemon received.
    pub replies: u32,
    /// Those of them that count as attempts.
    pub charged: u32,
    /// The function's error, Lambda's code, or the kind of failure, of the last call.
    pub said: Option<String>,
}

/// What a 202 said.
pub struct Answered {
    pub id: EventId,
    pub source: KeySource,
    pub duplicate: bool,
}

impl Ledger {
    pub fn new(has_outages: bool) -> Self {
        Self { purged: Some(0), has_outages, ..Self::default() }
    }

    // --- clients ---

    /// A 202 went out, at `world_now` by the world's clock (G3).
    pub fn answered(
        &mut self,
        serial: u64,
        answer: &Answered,
        window: Duration,
        world_now: UnixMillis,
    ) -> Option<Violation> {
        let Answered { id, source, duplicate } = *answer;
        let order = &self.orders[&serial];
        let key = match source {
            KeySource::SdkInvocationId => Some(format!("sdk/{}", order.sdk_id)),
            KeySource::Minted => None,
            _ => order.key.clone(),
        };
        self.repeats += u64::from(duplicate);
        if let Some(&first) = self.accepted.get(&id) {
            if first != serial {
                return Some(("G3", format!("order {serial} was answered with the id of order {first}: {id}")));
            }
            if !duplicate {
                return Some(("G3", format!("{id} was accepted twice and not called a duplicate")));
            }
        }
        self.accepted.insert(id, serial);
        // The event may have been purged before anybody learned that it was stored. Its key is still remembered.
        let purged = |(function, cutoff, _): &&(String, UnixMillis, Keys)| {
            *function == order.function && id.accepted_at() < *cutoff
        };
        for (.., keys) in self.purges.iter().filter(purged) {
            self.maybe_removed.insert(id);
            if *keys == Keys::Forget {
                self.maybe_forgotten.insert(id);
            }
        }
        let scope = (order.function.clone(), key?);
        match self.keys.get(&scope) {
            // The key of an event that came back is the new event's.
            Some(&(first, accepted)) if first != id && duplicate && self.brought_back.contains(&serial) => {
                self.keys.insert(scope, (id, accepted));
                None
            }
            Some(&(first, accepted))
                if first != id
                    && !self.maybe_forgotten.contains(&first)
                    && self.passed(accepted, world_now) < window =>
            {
                Some(("G3", format!("a repeat of {first} within its window was accepted as {id}")))
            }
            Some(&(first, ..)) if first == id => None,
            Some(_) | None => {
                self.keys.insert(scope, (id, world_now));
                None
            }
        }
    }

    // --- the clock ---

    /// A life begins. Its clock is ahead of the world's by this much.
    pub fn begins_life(&mut self, now: UnixMillis, ahead: i64) {
        self.life_began = now;
        let jump = u64::try_from(ahead - self.ahead).unwrap_or(0);
        self.jumps.push((now, Duration::from_millis(jump)));
        self.ahead = ahead;
    }

    /// Somebody sets the daemon's clock.
    pub fn sets_clock(&mut self, now: UnixMillis, by: i64) {
        self.clock_set = Some(now);
        self.ahead += by;
        self.steps_ahead.push((now, Duration::from_millis(u64::try_from(by).unwrap_or(0))));
    }

    /// The most time that may have passed since then for a daemon, by the world's clock.
    fn passed(&self, since: UnixMillis, now: UnixMillis) -> Duration {
        let jumps = self.jumps.iter().filter(|(at, _)| *at >= since).map(|(_, jump)| *jump);
        now.since(since) + jumps.sum::<Duration>()
    }

    // --- the outbox ---

    /// An event of the healthy function waits for its first attempt since `now`, by the world's clock.
    pub fn waits(&mut self, id: EventId, now: UnixMillis) {
        if !self.seen.contains_key(&id) {
            self.waiting.entry(id).or_insert(now);
        }
    }

    /// Whether an event of the healthy function had to wait too long for its first lease (G5).
    pub fn delayed(&mut self, id: EventId, now: UnixMillis) -> Option<Violation> {
        let waited = now.since(self.waiting.remove(&id)?.max(self.life_began));
        (waited > DELAY_MAX).then(|| ("G5", format!("{id} of the healthy function waited {waited:?} for others")))
    }

    /// An event was leased at `now` by the daemon's clock (G4, G5, G6).
    pub fn leased(&mut self, leased: &Leased, now: UnixMillis, world_now: UnixMillis) -> Vec<Violation> {
        let Leased { event, history, .. } = leased;
        let id = event.id;
        let mut found = Vec::new();
        let Some(order) = serial_of(&event.payload).and_then(|serial| self.orders.get(&serial)) else {
            return vec![("G4", format!("{id} has a payload that nobody sent"))];
        };
        if event.payload != order.payload || event.carried != order.carried {
            found.push(("G4", format!("{id} is not as it was sent")));
        }
        if self.seen.entry(id).or_insert_with(|| event.clone()) != event {
            found.push(("G4", format!("{id} has changed since it was leased first")));
        }
        self.by_serial.entry(order.serial).or_default().insert(id);
        let is_exhausted = history.burial.as_ref().is_some_and(|b| b.reason == BuryReason::RetriesExhausted);
        if is_exhausted && order.poison {
            self.poison_ended.insert(id);
        }
        if is_exhausted && !order.poison && self.has_outages {
            found.push(("outage", format!("{id} is buried for lack of attempts, though only outages failed it")));
        }
        if history.burial.is_none() {
            // An event past its age is leased early, but only to be buried. An attempt would be found below as too
            // early.
            if history.calls > order.fate.replies {
                found.push(("G6", format!("{id} counts {} calls, had {} replies", history.calls, order.fate.replies)));
            }
            if history.attempts > order.fate.charged {
                found.push(("G6", format!("{id} is charged {}, owes {}", history.attempts, order.fate.charged)));
            }
            let due = self.due.get(&id).copied().unwrap_or_default();
            let (due, settled, wait) = due;
            let ahead = self.steps_ahead.iter().filter(|(at, _)| *at >= settled).map(|(_, step)| *step);
            if due > now && self.passed(settled, world_now) + ahead.sum::<Duration>() < wait {
                self.early.insert(id);
            } else {
                self.early.remove(&id);
            }
        }
        found
    }

    /// A settlement is on the disk.
    pub fn settled(&mut self, id: EventId, settlement: &Settlement, now: UnixMillis, world_now: UnixMillis) {
        if let Settlement::RetryAt(history) = settlement {
            self.due.insert(id, (history.due, world_now, history.due.since(now)));
        }
    }

    /// A settlement is handed over (G2).
    pub fn settling(&self, id: EventId, settlement: &Settlement) -> Option<Violation> {
        let serial = self.seen.get(&id).and_then(|event| serial_of(&event.payload))?;
        match settlement {
            Settlement::Delivered if self.orders[&serial].fate.confirmed == 0 => {
                Some(("G2", format!("{id} is settled as delivered, but Lambda never said so")))
            }
            Settlement::Shipped if !self.confirmed.contains(&id) => {
                Some(("G2", format!("{id} is settled as shipped, but SQS never said so")))
            }
            Settlement::Bury(history) if self.by_serial[&serial].len() == 1 => {
                let exhausted = history.burial.as_ref().is_some_and(|b| b.reason == BuryReason::RetriesExhausted);
                let said = self.orders[&serial].fate.said.as_ref().filter(|_| exhausted)?;
                let kept = history.last.as_ref().map(|last| &last.code);
                (kept != Some(said)).then(|| ("confirm", format!("{id} is buried with {kept:?}, not {said}")))
            }
            _ => None,
        }
    }

    // --- Lambda ---

    /// A call began (G4, G5).
    pub fn called(&mut self, call: &Call, scenario: &Scenario, when: When) -> Vec<Violation> {
        self.calls += 1;
        let When { life, now, daemon_now, slack } = when;
        let function = call.function.name.as_str().to_owned();
        let limit = scenario.policy.concurrency_max;
        let mut found = if function == STEADY { Vec::new() } else { self.bounded(call, scenario, when) };
        let in_flight = self.in_flight.entry(function.clone()).or_default();
        *in_flight += 1;
        if *in_flight > limit {
            found.push(("G5", format!("{in_flight} calls of {function} at once, at most {limit} are allowed")));
        }
        if let Some(&(paused_in, from, until)) = self.pauses.get(&function)
            && paused_in == life
            && from < now
            && now < until
        {
            found.push(("G5", format!("{function} is called {:?} before its Retry-After is over", until.since(now))));
        }
        let Some(order) = serial_of(&call.payload).and_then(|serial| self.orders.get(&serial)) else {
            found.push(("G4", format!("{function} got a payload that nobody sent")));
            return found;
        };
        let events = self.by_serial.get(&order.serial).into_iter().flatten();
        let same_key = events.clone().any(|id| self.seen[id].key == call.key);
        if call.payload != order.payload
            || call.carried != order.carried
            || call.function.address != order.function
            || !same_key
        {
            found.push(("G4", format!("order {} reached {function} changed", order.serial)));
        }
        // A step of the clock between the lease and the call is not an error.
        let is_even = self.clock_set.is_none_or(|at| now.since(at) > slack);
        let early = is_even && order.not_before.is_some_and(|(at, then)| daemon_now < at && now < then);
        if events.clone().all(|id| self.early.contains(id)) || early {
            found.push(("G5", format!("order {} is attempted before it is due", order.serial)));
        }
        if is_even && order.expires_at.is_some_and(|at| at.plus(slack) < daemon_now) {
            found.push(("expiry", format!("order {} is attempted after its expires_at", order.serial)));
        }
        if events.clone().count() > 0 && events.clone().all(|id| self.cancelled.contains(id)) {
            found.push(("operator", format!("order {} is attempted though it was cancelled", order.serial)));
        }
        found
    }

    /// Checks the limits that an operator has set for all functions except the healthy one.
    fn bounded(&mut self, call: &Call, scenario: &Scenario, when: When) -> Vec<Violation> {
        let When { life, now, daemon_now, slack } = when;
        let function = call.function.name.as_str().to_owned();
        let mut found = Vec::new();
        let mode = if scenario.confirm { Mode::Confirm { timeout: CONFIRM_TIMEOUT } } else { Mode::Event };
        if call.mode != mode {
            found.push(("confirm", format!("{function} is invoked with {:?}", call.mode)));
        }
        if let Some(since) = self.paused.get(&function).filter(|since| since.plus(slack) < now) {
            found.push(("operator", format!("{function} is called {:?} after it was paused", now.since(*since))));
        }
        let starts = self.starts.entry(function.clone()).or_default();
        if starts.0 != life {
            *starts = (life, VecDeque::new());
        }
        starts.1.push_back(now);
        while starts.1.front().is_some_and(|first| now.since(*first) >= Duration::from_secs(1)) {
            starts.1.pop_front();
        }
        // A second's tokens and those that may be saved: a tenth, and at least one.
        let most = f64::from(scenario.rate) * 1.1 + 2.0;
        if scenario.rate > 0 && starts.1.len() as f64 > most {
            found.push((
                "rate",
                format!("{} calls of {function} in a second, {} are allowed", starts.1.len(), scenario.rate),
            ));
        }
        let (hour, spent) = self.spent.entry(function.clone()).or_default();
        if *hour < Spent::hour_of(daemon_now) {
            (*hour, *spent) = (Spent::hour_of(daemon_now), 0);
        }
        *spent += 1;
        if scenario.per_hour > 0 && *spent > scenario.per_hour {
            found.push(("spend", format!("{spent} calls of {function} in an hour, {} are allowed", scenario.per_hour)));
        }
        found
    }

    /// A call has ended in any way.
    pub fn left(&mut self, function: &str) -> u32 {
        let in_flight = self.in_flight.entry(function.to_owned()).or_default();
        *in_flight -= 1;
        *in_flight
    }

    pub fn in_flight(&self, function: &str) -> u32 {
        self.in_flight.get(function).copied().unwrap_or(0)
    }

    pub fn pause(&mut self, function: &str, life: u32, from: UnixMillis, until: UnixMillis) {
        let known = self.pauses.get(function).filter(|pause| pause.0 == life && pause.2 >= until);
        if known.is_none() {
            self.pauses.insert(function.to_owned(), (life, from, until));
        }
    }

    pub fn fate(&mut self, serial: u64) -> &mut Fate {
        &mut self.orders.get_mut(&serial).unwrap().fate
    }

    // --- the operator ---

    /// An accepted event of a function, chosen by a random number.
    pub fn pick(&self, function: &str, drawn: usize) -> Option<(EventId, u64)> {
        let of_it = || self.accepted.iter().filter(|(_, serial)| self.orders[serial].function == function);
        of_it().nth(drawn.checked_rem(of_it().count())?).map(|(&id, &serial)| (id, serial))
    }

    /// Somebody asks to pause or resume a function. Until that is known to have happened, calls may go or not.
    pub fn sets_pause(&mut self, function: &str) {
        self.paused.remove(function);
    }

    pub fn is_paused(&mut self, function: &str, now: UnixMillis) {
        self.paused.insert(function.to_owned(), now);
    }

    pub fn cancels(&mut self, id: EventId, keys: Keys) {
        if keys == Keys::Forget {
            self.maybe_forgotten.insert(id);
        }
        self.maybe_removed.insert(id);
    }

    pub fn has_cancelled(&mut self, id: EventId) {
        self.cancelled.insert(id);
        // Counts as removed by purges, so that purges must not have removed more than they said.
        self.purged = self.purged.map(|purged| purged + 1);
    }

    /// A purge begins that may remove what was accepted before `cutoff`.
    pub fn purges(&mut self, function: &str, cutoff: UnixMillis, keys: Keys) {
        let orders = &self.orders;
        // An event that came back was accepted at another time, which may be before if the clock was set.
        let fits = |(id, serial): &(&EventId, &u64)| {
            orders[serial].function == function && (id.accepted_at() < cutoff || self.brought_back.contains(serial))
        };
        let removed: Vec<EventId> = self.accepted.iter().filter(fits).map(|(&id, _)| id).collect();
        if keys == Keys::Forget {
            self.maybe_forgotten.extend(&removed);
        }
        self.maybe_removed.extend(removed);
        self.purges.push((function.to_owned(), cutoff, keys));
    }

    /// A purge said how much it removed. `None` if it did not happen, or nobody received the answer.
    pub fn has_purged(&mut self, events: Option<u64>) {
        self.purged = self.purged.zip(events).map(|(purged, more)| purged + more);
    }

    /// An operator asks for a dead letter to come back, under a new id. Its times no longer hold.
    pub fn brings_back(&mut self, serial: u64) {
        self.brought_back.insert(serial);
        if let Some(order) = self.orders.get_mut(&serial) {
            (order.not_before, order.expires_at) = (None, None);
        }
    }

    /// An operator asks for the removal of a dead letter. If it came back, it stands for the events that it was before.
    pub fn discards(&mut self, id: EventId, serial: u64, keys: Keys) {
        self.cancels(id, keys);
        if self.brought_back.contains(&serial) {
            let before: Vec<EventId> =
                self.accepted.iter().filter(|(_, of)| **of == serial).map(|(&before, _)| before).collect();
            before.into_iter().for_each(|before| self.cancels(before, keys));
        }
    }

    /// An event is made due now. What was said about its due time no longer holds.
    pub fn brings_forward(&mut self, id: EventId, serial: u64) {
        self.due.remove(&id);
        self.early.remove(&id);
        if let Some(order) = self.orders.get_mut(&serial) {
            order.not_before = None;
        }
    }

    // --- SQS ---

    pub fn queued(&mut self, message: &Message) -> Option<Violation> {
        let (id, body) = (message.id, message.body.as_bytes());
        self.in_queue.insert(id, message.clone());
        match serial_of(body).and_then(|serial| self.orders.get(&serial)) {
            Some(order) if order.payload == body => None,
            _ => Some(("G4", format!("dead letter {id} is not what was sent"))),
        }
    }

    pub fn confirmed(&mut self, id: EventId) {
        self.confirmed.insert(id);
    }

    // --- all of it ---

    /// Accepted events that are lost: not in `stored`, not with Lambda, not in the queue (G1, G2). An event that came back
    /// may be there under another id.
    pub fn nowhere(&self, stored: &BTreeMap<EventId, u64>) -> Vec<EventId> {
        let queued = self.in_queue.values().filter_map(|message| serial_of(message.body.as_bytes()));
        let there: BTreeSet<u64> = stored.values().copied().chain(queued).collect();
        let came_back = |serial| self.brought_back.contains(serial) && there.contains(serial);
        let missing = self.accepted.iter().filter(|(id, serial)| {
            let is_there = stored.contains_key(id) || self.in_queue.contains_key(id);
            !is_there && self.orders[serial].fate.taken == 0 && !came_back(serial)
        });
        missing.map(|(&id, _)| id).collect()
    }

    /// Missing events that no operator can have removed, or how many more are missing than operators removed.
    pub fn lost(&self, missing: &[EventId]) -> Vec<String> {
        let (removed, lost): (Vec<&EventId>, Vec<_>) = missing.iter().partition(|id| self.maybe_removed.contains(id));
        let lost = lost.into_iter().map(|id| format!("{id} was answered with 202 and is nowhere"));
        let too_many = self.purged.filter(|purged| removed.len() as u64 > *purged).map(|purged| {
            format!("{} events of those that operators may have removed are gone, they removed {purged}", removed.len())
        });
        lost.chain(too_many).collect()
    }
}

pub fn serial_of(payload: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(payload).ok()?;
    text.strip_prefix("{\"n\":")?.split([',', '}']).next()?.parse().ok()
}
