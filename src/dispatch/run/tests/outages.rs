//! Tests outages of Lambda, of a proxy and of a function, while some events fail by themselves (docs/adr/0012).

use super::*;
use crate::dispatch::verdict::OUTAGE_HOLD_MAX;

/// Six hours minus a minute. Lambda keeps an event for six hours, and so does the default `age_max`.
const LONG: Duration = Duration::from_secs(6 * 3_600 - 60);

/// The answers in this kind of outage.
fn outage(way: &str, number: usize) -> (Duration, Reply) {
    let lost = |kind| Reply::Lost(Failure { kind, message: "no answer".into() });
    let page =
        |status| Reply::Answer(Answer { status, message: "not Lambda's own answer".into(), ..Answer::default() });
    match way {
        "service" => (FAST, error(500, "ServiceException")),
        "proxy" => (FAST, page(503)),
        "silence" => (Duration::from_secs(10), lost(FailureKind::ReadTimeout)),
        "closed" => (FAST, lost(FailureKind::Closed)),
        "captive portal" => (FAST, Reply::Answer(Answer { status: 200, foreign: true, ..Answer::default() })),
        "firewall" => (FAST, page(403)),
        _ => outage(["service", "proxy", "closed", "captive portal", "firewall"][number % 5], number),
    }
}

/// Each of these functions has one event and fails in the way that it is named after. The other two fail in all ways.
const WAYS: [&str; 6] = ["service", "proxy", "silence", "closed", "captive portal", "firewall"];

/// For nearly six hours `100 - percent` of a hundred calls fail, while lanes of 1, 40 and 2,000 events wait. Then
/// everything is delivered, and nothing was buried.
async fn survives(percent: usize, dry_runs_pass: bool, alone: &[&str]) {
    let over = START.plus(LONG);
    let chance = Arc::new(Mutex::new(fastrand::Rng::with_seed(3)));
    let drawn = move || chance.lock().unwrap().usize(0..100);
    let drawn_too = drawn.clone();
    let says = move |call: &Call, now| {
        let number = drawn();
        let way = call.function.name.as_str();
        if now >= over || number < percent { (FAST, accepted()) } else { outage(way, number) }
    };
    let dry = move |function: &Function, now| {
        let number = drawn_too();
        let is_well = now >= over || dry_runs_pass || number < percent;
        if is_well { (FAST, well()) } else { outage(function.name.as_str(), number) }
    };
    let bench = Bench::with(settings(policy()), Duration::ZERO, says, dry);
    for way in alone {
        bench.append(vec![bench.event(way)]).await;
    }
    bench.append((0..40).map(|_| bench.event("some")).collect()).await;
    bench.append((0..2_000).map(|_| bench.event("many")).collect()).await;
    bench.clock.sleep(LONG).await;
    assert_eq!(bench.count(Place::Buried).await, 0, "{percent} % get through, dry runs pass: {dry_runs_pass}");
    let calls = bench.fake.calls.lock().unwrap().len();
    let took = bench.until_empty(Duration::from_secs(59)).await;
    assert_eq!(bench.count(Place::Buried).await, 0);
    let delivered: usize = bench.fake.delivered.lock().unwrap().values().map(Vec::len).sum();
    assert_eq!(delivered, 2_040 + alone.len());
    println!("{percent} %: {calls} calls in the outage, all delivered {took:?} after it");
    if percent == 0 {
        // One probe every 20 s of each lane, and the attempts in flight when the outage began.
        assert!(calls < (2 + alone.len()) * 1_200 + 200, "{calls} calls in an outage");
    }
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn nearly_six_hours_in_which_everything_fails_bury_nothing_and_send_little_twice() {
    survives(0, false, &WAYS).await;
}

#[tokio::test(start_paused = true)]
async fn nearly_six_hours_bury_nothing_where_few_get_through() {
    survives(1, false, &WAYS[..1]).await;
    survives(30, false, &WAYS[..1]).await;
}

#[tokio::test(start_paused = true)]
async fn nearly_six_hours_bury_nothing_where_dry_runs_pass() {
    survives(0, true, &WAYS[..1]).await;
    survives(30, true, &WAYS[..1]).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_lambdas_place_is_never_charged_even_where_it_answers_dry_runs_as_lambda_would() {
    let says = |_: &Call, _| outage("captive portal", 0);
    let bench = Bench::with(settings(policy()), Duration::ZERO, says, |_: &Function, _| (FAST, well()));
    bench.append(vec![bench.event("lonely")]).await;
    bench.clock.sleep(LONG).await;
    assert_eq!(bench.count(Place::Buried).await, 0);
    assert_eq!(bench.delivered("lonely"), 0);
    bench.end().await;
}

/// Why an event is buried, and its charged attempts.
async fn buried_as(bench: &Bench, id: EventId) -> Option<(BuryReason, u32)> {
    let found = bench.outbox.find(id).await.unwrap()?;
    Some((found.history.burial?.reason, found.history.attempts))
}

/// Whether a call's payload makes it fail.
fn poisonous(call: &Call) -> bool {
    call.payload.as_ref() == b"{\"poison\":1}"
}

fn poison(bench: &Bench, function: &str) -> Event {
    Event { payload: "{\"poison\":1}".into(), ..bench.event(function) }
}

#[tokio::test(start_paused = true)]
async fn a_poison_event_among_healthy_ones_ends_after_its_attempts() {
    for reply in [error(500, "ServiceException"), outage("proxy", 0).1, outage("silence", 0).1] {
        // With other events in the lane, and without.
        for traffic in [true, false] {
            let said = reply.clone();
            let bench = Bench::new(settings(policy()), move |call, _| {
                (FAST, if poisonous(call) { said.clone() } else { accepted() })
            });
            let bad = poison(&bench, "f");
            let id = bad.id;
            let mut events: Vec<_> = (0..50).map(|_| bench.event("f")).collect();
            events.insert(20, bad);
            bench.append(events).await;
            let began = bench.clock.now();
            while buried_as(&bench, id).await.is_none() {
                assert!(bench.clock.now().since(began) < Duration::from_secs(20 * 60), "{reply:?}, {traffic}");
                if traffic {
                    bench.append(vec![bench.event("f"), bench.event("f")]).await;
                }
                bench.clock.sleep(Duration::from_secs(1)).await;
            }
            assert_eq!(buried_as(&bench, id).await, Some((BuryReason::RetriesExhausted, 12)));
            assert_eq!(bench.count(Place::Buried).await, 1);
            bench.end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn several_poison_events_among_many_end_and_delay_nobody() {
    let bench = Bench::new(settings(policy()), move |call, _| {
        (FAST, if poisonous(call) { error(500, "ServiceException") } else { accepted() })
    });
    // The bad events are appended first, so they stand at the head of the lane.
    let bad: Vec<_> = (0..5).map(|_| poison(&bench, "f")).collect();
    let ids: Vec<_> = bad.iter().map(|event| event.id).collect();
    bench.append(bad).await;
    bench.append((0..500).map(|_| bench.event("f")).collect()).await;
    bench.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.delivered("f"), 500, "the healthy ones do not wait for them");
    for _ in 0..1_200 {
        bench.append(vec![bench.event("f")]).await;
        bench.clock.sleep(Duration::from_secs(1)).await;
    }
    for id in ids {
        assert_eq!(buried_as(&bench, id).await, Some((BuryReason::RetriesExhausted, 12)));
    }
    assert_eq!(bench.delivered("f"), 1_700);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_of_nothing_but_poison_ends_by_age_and_lets_a_healthy_event_pass() {
    let bench = Bench::new(settings(policy()), move |call, _| {
        (FAST, if poisonous(call) { error(500, "ServiceException") } else { accepted() })
    });
    bench.append((0..20).map(|_| poison(&bench, "f")).collect()).await;
    bench.clock.sleep(Duration::from_secs(3_600)).await;
    bench.append(vec![bench.event("f")]).await;
    bench.clock.sleep(OUTAGE_HOLD_MAX * 3).await;
    assert_eq!(bench.delivered("f"), 1, "it is not behind those that fail");
    let calls = bench.fake.calls.lock().unwrap().len();
    assert!(calls < 700, "{calls}: they are not tried again and again");
    bench.clock.sleep(LONG).await;
    bench.until_empty(Duration::from_secs(60)).await;
    assert_eq!(bench.count(Place::Buried).await, 20);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_function_that_fails_every_event_for_an_hour_keeps_its_backlog() {
    let mended = START.plus(Duration::from_secs(3_600));
    let policy = Policy { mode: Mode::Confirm { timeout: Duration::from_secs(900) }, ..policy() };
    let bench = Bench::new(settings(policy), move |_, now| {
        let answer = Answer { status: 200, message: "KeyError".into(), ..Answer::default() };
        let failed = Answer { function_error: Some("Unhandled".into()), ..answer.clone() };
        (FAST, Reply::Answer(if now < mended { failed } else { answer }))
    });
    bench.append((0..300).map(|_| bench.event("f")).collect()).await;
    bench.clock.sleep(Duration::from_secs(3_600)).await;
    bench.until_empty(Duration::from_secs(120)).await;
    assert_eq!((bench.delivered("f"), bench.count(Place::Buried).await), (300, 0));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_events_bad_signature_holds_no_other_function() {
    let bench = Bench::new(settings(policy()), move |call, _| {
        (FAST, if poisonous(call) { error(403, "SignatureDoesNotMatch") } else { accepted() })
    });
    let bad = poison(&bench, "f");
    let id = bad.id;
    bench.append(vec![bad]).await;
    bench.clock.sleep(Duration::from_secs(5)).await;
    bench.append((0..50).map(|_| bench.event("g")).collect()).await;
    bench.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.delivered("g"), 50);
    bench.clock.sleep(Duration::from_secs(1_200)).await;
    assert_eq!(buried_as(&bench, id).await, Some((BuryReason::RetriesExhausted, 12)), "it is its own fault");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_operators_word_ends_a_pause_with_one_probe() {
    let mended = START.plus(Duration::from_secs(3_000));
    let bench = Bench::new(settings(policy()), move |_, now| {
        (FAST, if now < mended { error(403, "AccessDeniedException") } else { accepted() })
    });
    bench.append((0..100).map(|_| bench.event("f")).collect()).await;
    bench.clock.sleep(Duration::from_secs(2_000)).await;
    let f = FunctionName::new("f");
    let calls = |bench: &Bench| bench.fake.calls.lock().unwrap().len();
    let before = calls(&bench);
    let held = bench.status.probe(f.clone()).await.unwrap();
    assert_eq!(held.kind, HoldKind::Operator);
    bench.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(calls(&bench), before + 1, "one probe, and it failed");
    assert!(bench.status.lanes().await[&f].held.is_some());
    bench.clock.sleep(Duration::from_secs(1_000)).await;
    bench.status.probe(f.clone()).await;
    let took = bench.until_empty(Duration::from_secs(60)).await;
    assert!(took <= Duration::from_secs(40) && bench.delivered("f") == 100, "{took:?}");
    assert_eq!(bench.status.probe(FunctionName::new("unknown")).await, None);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_expires_while_its_lease_is_awaited_is_not_attempted() {
    let commit = Duration::from_secs(4);
    let bench = Bench::with(settings(policy()), commit, |_, _| (FAST, accepted()), |_, _| (FAST, well()));
    let expires_at = Some(bench.clock.now().plus(Duration::from_secs(6)));
    let event = Event { expires_at, ..bench.event("f") };
    bench.append(vec![event]).await;
    bench.clock.sleep(Duration::from_secs(60)).await;
    let late = bench.fake.calls.lock().unwrap().iter().filter(|(at, _)| Some(*at) >= expires_at).count();
    assert_eq!(late, 0);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_function_that_fails_is_told_with_its_rates_and_its_last_error() {
    let bench = Bench::new(settings(policy()), |call, _| {
        let ill = call.function.name.as_str() == "ill";
        (FAST, if ill { error(429, "TooManyRequestsException") } else { accepted() })
    });
    bench.append((0..20).map(|_| bench.event("ill")).collect()).await;
    bench.append((0..20).map(|_| bench.event("fine")).collect()).await;
    bench.clock.sleep(Duration::from_secs(30)).await;
    let status = bench.status.lanes().await;
    let (ill, fine) = (&status[&FunctionName::new("ill")], &status[&FunctionName::new("fine")]);
    assert!(ill.failed_per_minute > 5 && ill.delivered_per_minute == 0, "{ill:?}");
    assert!(ill.failing_since.is_some());
    assert_eq!(ill.last_error.as_ref().unwrap().words, "429 TooManyRequestsException: why");
    assert_eq!((fine.failed_per_minute, fine.delivered_per_minute, &fine.last_error), (0, 20, &None));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn questions_and_changes_are_answered_however_many_attempts_end() {
    let policy = Policy { concurrency_max: 256, ..policy() };
    let bench = Bench::new(settings(policy), |_, _| (Duration::from_millis(1), accepted()));
    bench.append((0..40_000).map(|_| bench.event("f")).collect()).await;
    let mut asked = 0;
    while bench.delivered("f") < 40_000 {
        let before = bench.clock.now();
        assert!(!bench.status.lanes().await.is_empty());
        assert!(bench.clock.now().since(before) <= Duration::from_millis(20), "within a round or two");
        asked += 1;
        bench.clock.sleep(Duration::from_millis(2)).await;
    }
    assert!(asked > 3, "{asked} questions while it worked");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn large_calls_that_take_minutes_leave_bytes_for_another_function_and_for_burying() {
    let policy = Policy { mode: Mode::Confirm { timeout: Duration::from_secs(900) }, ..policy() };
    let settings = Settings { in_flight_bytes_max: 16 << 20, ..settings(policy) };
    let bench = Bench::new(settings, |call, _| {
        let took = if call.function.name.as_str() == "slow" { Duration::from_secs(890) } else { FAST };
        (took, Reply::Answer(Answer { status: 200, ..Answer::default() }))
    });
    let large = bytes::Bytes::from(vec![b' '; 1 << 20]);
    for _ in 0..30 {
        bench.append(vec![Event { payload: large.clone(), ..bench.event("slow") }]).await;
    }
    bench.clock.sleep(Duration::from_secs(5)).await;
    let expires_at = Some(bench.clock.now().plus(Duration::from_secs(10)));
    let expiring = Event { expires_at, payload: large.clone(), ..bench.event("slow") };
    let id = expiring.id;
    bench.append(vec![expiring]).await;
    bench.append((0..20).map(|_| bench.event("quick")).collect()).await;
    bench.clock.sleep(Duration::from_secs(15)).await;
    assert_eq!(bench.delivered("quick"), 20);
    assert!(buried_as(&bench, id).await.is_some(), "burying needs none of the bytes in flight");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn thousands_of_events_of_a_held_lane_expire_on_time() {
    let bench = Bench::new(settings(policy()), |_, _| (FAST, error(403, "AccessDeniedException")));
    let expires_at = Some(bench.clock.now().plus(Duration::from_secs(30)));
    let events = (0..3_000).map(|_| Event { expires_at, ..bench.event("f") }).collect();
    bench.append(events).await;
    bench.clock.sleep(Duration::from_secs(33)).await;
    assert_eq!(bench.count(Place::Buried).await, 3_000);
    bench.end().await;
}
