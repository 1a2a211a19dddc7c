use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::dispatch::Mode;
use crate::outbox::LaneView;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn policy() -> Policy {
    Policy {
        attempts_max: 12,
        age_max: Duration::from_secs(3_600),
        backoff_base: Duration::from_millis(500),
        backoff_cap: Duration::from_secs(60),
        concurrency_max: 64,
        rate: 0,
        invocations_per_hour_max: 0,
        // So that several attempts may begin at once from the start.
        mode: Mode::Confirm { timeout: Duration::from_secs(900) },
    }
}

fn settings(in_flight_max: u32) -> Settings {
    Settings { in_flight_max, rate: 0, in_flight_bytes_max: 1 << 30, policy: policy(), functions: Vec::new() }
}

/// Stands for the outbox and the attempts in flight: enough to drive [`Lanes`] by hand.
struct World {
    lanes: Lanes,
    now: UnixMillis,
    views: BTreeMap<LaneId, LaneView>,
    under_way: Vec<(LaneId, Ticket, UnixMillis)>,
    begin: Instant,
    version: u64,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            lanes: Lanes::new(settings),
            now: NOW,
            views: BTreeMap::new(),
            under_way: Vec::new(),
            begin: Clock::seeded(NOW, 1).instant(),
            version: 0,
        }
    }

    fn wait(&mut self, millis: u64) {
        self.now = self.now.plus(Duration::from_millis(millis));
    }

    fn name(lane: LaneId) -> FunctionName {
        FunctionName::new(&format!("f{}", lane.0))
    }

    /// Sets the ready events of a lane. The rest of its view stays as it is.
    fn set_ready(&mut self, lane: LaneId, ready: u64) {
        let now = self.now;
        self.change(lane, |view| {
            view.ready = ready;
            view.oldest = (ready > 0).then_some(view.oldest.unwrap_or(now));
        });
    }

    fn change(&mut self, lane: LaneId, change: impl FnOnce(&mut LaneView)) {
        let empty = || LaneView {
            lane,
            function: Self::name(lane),
            ready: 0,
            next_due: None,
            oldest: None,
            buried: 0,
            next_ship: None,
            next_expiry: None,
            paused: false,
            spent: crate::outbox::Spent::default(),
            proven: false,
        };
        let view = self.views.entry(lane).or_insert_with(empty);
        change(view);
        self.version += 1;
        let news = LaneNews { version: self.version, lanes: vec![view.clone()], ..LaneNews::default() };
        self.lanes.learn(news, self.now);
    }

    /// Runs one round of the loop: plans, and begins what the plan allows. Returns what began.
    fn go(&mut self) -> Vec<(LaneId, usize)> {
        let wants = self.lanes.plan(self.now);
        let mut begun = Vec::new();
        for want in wants {
            assert!(matches!(want.which, Which::Due | Which::Fresh));
            let there = self.views[&want.lane].ready.min(want.events_max as u64);
            for _ in 0..there {
                let (ticket, _) = self.lanes.started(want.lane, 10, self.now);
                self.under_way.push((want.lane, ticket, self.now));
            }
            self.set_ready(want.lane, self.views[&want.lane].ready - there);
            if there > 0 {
                begun.push((want.lane, there as usize));
            }
        }
        self.lanes.planned(self.now);
        begun
    }

    fn instant(&self, time: UnixMillis) -> Instant {
        self.begin + time.since(NOW)
    }

    /// Ends the attempt at `index`.
    fn end(&mut self, index: usize, outcome: &Outcome, hold: Option<Hold>) -> Vec<Notice> {
        let (lane, ticket, began) = self.under_way.remove(index);
        let (began, ended) = (self.instant(began), self.instant(self.now));
        self.version += 1;
        let event = EventId::mint(self.now, self.version.into(), &Self::name(lane));
        let finished = Finished {
            lane,
            function: &self.views.get(&lane).map_or_else(|| Self::name(lane), |view| view.function.clone()),
            event,
            ticket,
            outcome,
            blame: Blame::Event,
            hold,
            buried: false,
            said: "why".into(),
            payload_bytes: 10,
            began,
            ended,
        };
        let changes = self.lanes.finished(finished, self.now);
        changes.into_iter().filter(|change| !matches!(change, Notice::Failing { .. } | Notice::Well)).collect()
    }

    fn in_flight(&self, lane: LaneId) -> usize {
        self.under_way.iter().filter(|(of, ..)| *of == lane).count()
    }
}

fn hold(scope: Scope, kind: HoldKind, until: UnixMillis) -> Option<Hold> {
    Some(Hold { scope, kind, until, reason: "why".into() })
}

const A: LaneId = LaneId(1);
const B: LaneId = LaneId(2);
const C: LaneId = LaneId(3);

#[test]
fn a_lane_with_a_million_events_does_not_delay_one_with_three() {
    let mut world = World::new(settings(20));
    world.set_ready(A, 1_000_000);
    world.go();
    let taken = world.in_flight(A);
    assert!(taken < 20, "one is left for whoever comes");
    world.set_ready(B, 3);
    // B gets its three slots. A has an endless backlog, but gets no slot that B could use.
    for _ in 0..3 {
        world.go();
        if world.in_flight(B) == 3 {
            break;
        }
        world.wait(10);
        world.end(0, &Outcome::Delivered, None);
    }
    assert_eq!(world.in_flight(B), 3);
}

#[test]
fn lanes_take_turns() {
    let mut world = World::new(settings(1));
    for lane in [A, B, C] {
        world.set_ready(lane, 100);
    }
    let mut order = Vec::new();
    for _ in 0..9 {
        order.extend(world.go().into_iter().map(|(lane, _)| lane));
        world.wait(10);
        world.end(0, &Outcome::Delivered, None);
    }
    assert_eq!(order, [A, B, C, A, B, C, A, B, C]);
}

#[test]
fn lanes_that_never_end_leave_slots_for_a_newcomer() {
    let mut world = World::new(settings(256));
    let hogs: Vec<LaneId> = (10..20).map(LaneId).collect();
    for &hog in &hogs {
        world.set_ready(hog, 1_000);
    }
    // The limits grow: attempts end at first, then hang for a quarter of an hour.
    for _ in 0..2_000 {
        world.go();
        world.wait(5);
        if world.under_way.len() > 200 {
            break;
        }
        if !world.under_way.is_empty() {
            world.end(0, &Outcome::Delivered, None);
        }
    }
    while !world.go().is_empty() {}
    assert!(world.under_way.len() > 60);
    world.set_ready(A, 1);
    assert_eq!(world.go(), [(A, 1)]);
}

#[test]
fn a_hold_probes_one_at_a_time_with_growing_pauses_and_recovers() {
    let mut world = World::new(settings(64));
    world.set_ready(A, 1_000);
    world.go();
    let until = world.now.plus(Duration::from_millis(500));
    let changes = world.end(0, &Outcome::Operator { scope: Scope::Lane }, hold(Scope::Lane, HoldKind::Operator, until));
    assert!(matches!(changes[..], [Notice::Held { scope: Scope::Lane, kind: HoldKind::Operator, .. }]));
    // The other attempts in flight fail too. They prolong the hold, but do not make it grow.
    while !world.under_way.is_empty() {
        assert_eq!(
            world.end(0, &Outcome::Operator { scope: Scope::Lane }, hold(Scope::Lane, HoldKind::Operator, until)),
            []
        );
    }
    let mut pauses = Vec::new();
    for _ in 0..12 {
        assert_eq!(world.go(), [], "held");
        let began = world.now;
        world.now = world.lanes.next_time(world.now);
        pauses.push(world.now.since(began).as_millis());
        assert_eq!(world.go(), [(A, 1)], "one probe");
        assert_eq!(world.go(), [], "and no other while it is under way");
        let until = world.now.plus(Duration::from_millis(500));
        world.end(0, &Outcome::Operator { scope: Scope::Lane }, hold(Scope::Lane, HoldKind::Operator, until));
    }
    assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
    assert_eq!(*pauses.last().unwrap(), 300_000, "five minutes at most");
    world.now = world.lanes.next_time(world.now);
    assert_eq!(world.go(), [(A, 1)]);
    assert_eq!(world.end(0, &Outcome::Delivered, None), [Notice::Recovered { scope: Scope::Lane }]);
    let back: usize = world.go().iter().map(|(_, events)| events).sum();
    assert!((2..=8).contains(&back), "not a herd: {back}");
}

#[test]
fn an_attempt_that_began_before_a_hold_does_not_end_it() {
    let mut world = World::new(settings(64));
    world.set_ready(A, 1_000);
    world.go();
    let until = world.now.plus(Duration::from_secs(1));
    world.end(0, &Outcome::NotSent, hold(Scope::Lane, HoldKind::Unreachable, until));
    assert_eq!(world.end(0, &Outcome::Delivered, None), []);
    assert_eq!(world.go(), []);
}

#[test]
fn a_hold_of_the_account_stops_all_its_lanes_and_its_end_wakes_them() {
    let mut world = World::new(settings(64));
    for lane in [A, B, C] {
        world.set_ready(lane, 2);
    }
    world.go();
    assert_eq!(world.under_way.len(), 6);
    for lane in [A, B, C] {
        world.set_ready(lane, 2);
    }
    let until = world.now.plus(Duration::from_secs(1));
    let outcome = Outcome::Operator { scope: Scope::Account };
    while !world.under_way.is_empty() {
        world.end(0, &outcome, hold(Scope::Account, HoldKind::Operator, until));
    }
    assert_eq!(world.go(), []);
    world.now = world.lanes.next_time(world.now);
    assert_eq!(world.now, until);
    assert_eq!(world.go().len(), 1, "one probe for the whole account");
    assert_eq!(world.go(), []);
    assert_eq!(world.end(0, &Outcome::Delivered, None), [Notice::Recovered { scope: Scope::Account }]);
    let woken: BTreeSet<_> = world.go().into_iter().map(|(lane, _)| lane).collect();
    assert_eq!(woken, BTreeSet::from([A, B, C]));
}

#[test]
fn a_region_that_is_held_does_not_hold_another() {
    let mut world = World::new(settings(64));
    world.set_ready(A, 5);
    world.change(B, |view| (view.function, view.ready) = (FunctionName::new("us-east-1/f"), 5));
    world.go();
    let at = world.under_way.iter().position(|(lane, ..)| *lane == A).unwrap();
    let until = world.now.plus(Duration::from_secs(1));
    world.end(at, &Outcome::Operator { scope: Scope::Account }, hold(Scope::Account, HoldKind::Operator, until));
    world.set_ready(A, 5);
    world.set_ready(B, 5);
    assert!(world.go().iter().all(|(lane, _)| *lane == B));
}

#[test]
fn throttles_of_the_account_slow_it_as_a_whole_and_not_one_lane() {
    let mut world = World::new(settings(64));
    world.set_ready(A, 1_000);
    world.set_ready(B, 1_000);
    world.go();
    let outcome = Outcome::Throttled { scope: Scope::Account, retry_after: None };
    for _ in 0..200 {
        world.go();
        world.wait(5);
        if !world.under_way.is_empty() {
            world.end(0, &outcome, None);
        }
    }
    let status = world.lanes.status(world.now, world.instant(world.now));
    let status = &status[&World::name(A)];
    assert!(status.account_limit <= 2, "{status:?}");
    assert_eq!(status.limit, 8, "the lane's own is untouched");
    assert!(world.under_way.len() <= 2);
}

#[test]
fn a_paused_lane_attempts_nothing_but_still_expires() {
    let mut world = World::new(settings(64));
    world.set_ready(A, 10);
    world.change(A, |view| view.paused = true);
    assert_eq!(world.go(), []);
    assert_eq!(world.lanes.next_time(world.now), NOW.plus(policy().age_max));
    world.now = NOW.plus(policy().age_max);
    assert_eq!(world.lanes.expired(world.now).len(), 1);
    world.change(A, |view| view.paused = false);
    assert_eq!(world.go().len(), 1);
}

#[test]
fn expired_events_are_looked_for_though_no_slot_is_free() {
    let mut world = World::new(settings(1));
    world.set_ready(A, 10);
    world.go();
    world.change(B, |view| {
        (view.next_expiry, view.ready, view.oldest) = (Some(NOW.plus(Duration::from_secs(5))), 1, Some(NOW))
    });
    assert_eq!(world.lanes.next_time(world.now), NOW.plus(Duration::from_secs(5)));
    world.wait(5_000);
    let wants = world.lanes.expired(world.now);
    assert_eq!(wants.iter().map(|want| want.lane).collect::<Vec<_>>(), [B]);
    assert_eq!(world.lanes.expired(world.now).len(), 0, "not at once again");
    assert_eq!(world.lanes.next_time(world.now), world.now.plus(EXPIRY_EVERY));
    world.lanes.found_expired(B, world.now);
    assert_eq!(world.lanes.expired(world.now).len(), 1, "at once, as long as it finds some");
    assert_eq!(world.lanes.next_time(world.now), world.now.plus(EXPIRY_EVERY));
}

#[test]
fn a_retired_lane_is_forgotten_and_its_last_attempt_gives_its_slot_back() {
    let mut world = World::new(settings(1));
    world.set_ready(A, 1);
    world.go();
    world.lanes.learn(LaneNews { version: 99, retired: vec![A], ..LaneNews::default() }, world.now);
    world.end(0, &Outcome::Delivered, None);
    assert_eq!(world.lanes.next_time(world.now), UnixMillis::MAX);
    world.set_ready(B, 1);
    assert_eq!(world.go(), [(B, 1)]);
}

#[test]
fn a_lane_that_has_nothing_after_all_is_not_asked_again_at_once() {
    let mut world = World::new(settings(64));
    world.set_ready(A, 5);
    assert_eq!(world.lanes.plan(world.now).len(), 1);
    world.lanes.planned(world.now);
    assert_eq!(world.lanes.next_time(world.now), world.now.plus(IDLE));
    world.set_ready(A, 6);
    assert_eq!(world.lanes.next_time(world.now), world.now, "news are looked at");
}

#[test]
fn fixed_rates_hold_for_a_lane_and_over_all() {
    for (lane_rate, rate) in [(50, 0), (0, 50)] {
        let policy = Policy { rate: lane_rate, ..policy() };
        let mut world = World::new(Settings { rate, policy, ..settings(64) });
        world.set_ready(A, 1_000_000);
        let mut begun = 0;
        while world.now < NOW.plus(Duration::from_secs(10)) {
            begun += world.go().iter().map(|(_, events)| events).sum::<usize>();
            while !world.under_way.is_empty() {
                world.end(0, &Outcome::Delivered, None);
            }
            let next = world.lanes.next_time(world.now);
            assert!(next > world.now, "it does not spin");
            world.now = next;
        }
        assert!((495..=510).contains(&begun), "{begun} in ten seconds at 50 a second");
    }
}

#[test]
fn the_spend_guard_holds_the_lane_until_the_next_hour_and_says_so() {
    let policy = Policy { invocations_per_hour_max: 3, ..policy() };
    let mut world = World::new(Settings { policy, ..settings(64) });
    world.set_ready(A, 100);
    assert_eq!(world.go(), [(A, 3)]);
    while !world.under_way.is_empty() {
        world.end(0, &Outcome::Delivered, None);
    }
    let held = world.lanes.status(world.now, world.instant(world.now))[&World::name(A)].held.clone().unwrap();
    assert_eq!(held.kind, HoldKind::Spent);
    let next_hour = UnixMillis((NOW.0 / 3_600_000 + 1) * 3_600_000);
    assert_eq!((held.until, world.lanes.next_time(world.now)), (next_hour, next_hour.min(NOW.plus(policy_age()))));
    world.now = next_hour;
    world.lanes.expired(world.now);
    assert_eq!(world.go(), [(A, 3)]);
}

#[test]
fn a_function_that_has_not_answered_yet_gets_one_event_at_a_time() {
    let policy = Policy { mode: Mode::Event, ..policy() };
    let mut world = World::new(Settings { policy, ..settings(64) });
    world.set_ready(A, 100);
    for outcome in [Outcome::Lost, Outcome::Transient, Outcome::Throttled { scope: Scope::Lane, retry_after: None }] {
        assert_eq!((world.go(), world.go()), (vec![(A, 1)], vec![]), "before {outcome:?}");
        world.wait(10);
        world.end(0, &outcome, None);
    }
    world.go();
    world.wait(10);
    world.end(0, &Outcome::Delivered, None);
    assert_eq!(world.go(), [(A, 8)]);
}

#[test]
fn what_was_spent_before_a_restart_is_spent() {
    let policy = Policy { invocations_per_hour_max: 100, ..policy() };
    let mut world = World::new(Settings { policy, ..settings(64) });
    let hour = crate::outbox::Spent::hour_of(NOW);
    world.change(B, |view| (view.ready, view.spent) = (9, crate::outbox::Spent { hour, attempts: 100 }));
    assert!(matches!(&world.lanes.noticed()[..], [(_, Notice::Held { kind: HoldKind::Spent, .. })]));
    world.change(A, |view| (view.ready, view.spent) = (9, crate::outbox::Spent { hour, attempts: 96 }));
    let wants = world.lanes.plan(world.now);
    assert!(wants.iter().all(|want| want.lane == A && want.events_max == 4), "{wants:?}");
    assert_eq!(wants[0].spent, Some(crate::outbox::Spent { hour, attempts: 100 }), "stored before it is spent");
    assert!(world.lanes.may_begin(A, world.now));
    assert!(!world.lanes.may_begin(A, world.now.plus(Duration::from_secs(3_600))), "another hour, another reserve");
    let given_back = world.lanes.give_back();
    assert_eq!(given_back.iter().map(|want| want.spent.unwrap().attempts).collect::<Vec<_>>(), [96]);
}

fn policy_age() -> Duration {
    policy().age_max
}

/// What may happen to the lanes.
#[derive(Debug, Clone)]
enum Step {
    Ready(u32, u64),
    Due(u32, u64),
    Pause(u32, bool),
    Wait(u64),
    End(usize, u8),
    Retire(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u32, 0..40_u64).prop_map(|(lane, events)| Step::Ready(lane, events)),
        1 => (0..6_u32, 0..2_000_u64).prop_map(|(lane, after)| Step::Due(lane, after)),
        1 => (0..6_u32, any::<bool>()).prop_map(|(lane, paused)| Step::Pause(lane, paused)),
        4 => (0..800_u64).prop_map(Step::Wait),
        12 => (any::<usize>(), 0..12_u8).prop_map(|(index, outcome)| Step::End(index, outcome)),
        1 => (0..6_u32).prop_map(Step::Retire),
    ]
}

fn outcome_of(number: u8, now: UnixMillis) -> (Outcome, Option<Hold>) {
    let until = now.plus(Duration::from_millis(300));
    match number {
        0 => (Outcome::Throttled { scope: Scope::Lane, retry_after: None }, None),
        1 => (Outcome::Throttled { scope: Scope::Account, retry_after: None }, None),
        2 => (
            Outcome::Throttled { scope: Scope::Lane, retry_after: None },
            hold(Scope::Lane, HoldKind::Throttled, until),
        ),
        3 => (Outcome::NotSent, hold(Scope::Lane, HoldKind::Unreachable, until)),
        4 => (Outcome::Operator { scope: Scope::Account }, hold(Scope::Account, HoldKind::Operator, until)),
        5 => (Outcome::Lost, None),
        6 => (Outcome::Transient, None),
        _ => (Outcome::Delivered, None),
    }
}

proptest! {
    /// Under any sequence of steps, limits hold, nothing that is paused or not yet due goes, the loop does not spin,
    /// and slots add up. Afterwards every lane is served.
    #[test]
    fn limits_hold_and_nothing_starves(steps in proptest::collection::vec(step(), 1..150), in_flight_max in 1..40_u32) {
        let mut world = World::new(settings(in_flight_max));
        let mut due: BTreeMap<LaneId, UnixMillis> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Ready(lane, events) => world.set_ready(LaneId(lane), events),
                Step::Due(lane, after) => {
                    let time = world.now.plus(Duration::from_millis(after));
                    due.insert(LaneId(lane), time);
                    world.change(LaneId(lane), |view| view.next_due = Some(time));
                }
                Step::Pause(lane, paused) => world.change(LaneId(lane), |view| view.paused = paused),
                Step::Wait(millis) => world.wait(millis),
                Step::End(index, number) => {
                    if !world.under_way.is_empty() {
                        let (outcome, hold) = outcome_of(number, world.now);
                        world.end(index % world.under_way.len(), &outcome, hold);
                    }
                }
                Step::Retire(lane) => {
                    // The outbox retires only lanes without events.
                    if world.in_flight(LaneId(lane)) == 0 && world.views.remove(&LaneId(lane)).is_some() {
                        world.lanes.learn(LaneNews { retired: vec![LaneId(lane)], ..LaneNews::default() }, world.now);
                    }
                }
            }
            let now = world.now;
            world.lanes.expired(now);
            for want in world.lanes.plan(now) {
                let view = &world.views[&want.lane];
                prop_assert!(!view.paused);
                prop_assert!(view.ready > 0 || view.next_due.is_some_and(|due| due <= now), "before its due time");
                for _ in 0..view.ready.min(want.events_max as u64) {
                    let (ticket, _) = world.lanes.started(want.lane, 10, now);
                    world.under_way.push((want.lane, ticket, now));
                }
                let left = view.ready.saturating_sub(want.events_max as u64);
                world.change(want.lane, |view| (view.ready, view.next_due) = (left, view.next_due.filter(|due| *due > now)));
            }
            world.lanes.planned(now);
            prop_assert!(world.under_way.len() <= in_flight_max as usize);
            prop_assert_eq!(world.lanes.in_flight as usize, world.under_way.len());
            for lane in world.views.keys() {
                prop_assert_eq!(world.lanes.in_flight(*lane) as usize, world.in_flight(*lane));
            }
        }
        // The trouble is over. Everything that is ready is delivered, in bounded time and without spinning.
        for lane in world.views.keys().copied().collect::<Vec<_>>() {
            world.change(lane, |view| (view.paused, view.next_due, view.oldest) = (false, None, None));
        }
        for _ in 0..2_000 {
            world.go();
            if world.under_way.is_empty() && world.views.values().all(|view| view.ready == 0) {
                break;
            }
            if world.under_way.is_empty() {
                let next = world.lanes.next_time(world.now);
                prop_assert!(next > world.now && next < UnixMillis::MAX, "stuck or spinning");
                world.now = next;
            } else {
                world.wait(1);
                world.end(0, &Outcome::Delivered, None);
            }
        }
        prop_assert!(world.views.values().all(|view| view.ready == 0), "starved: {:?}", world.views);
    }
}
