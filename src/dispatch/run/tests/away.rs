//! Tests a store that goes away for a while and comes back.

use super::*;

/// From here on attempts take so long that the store leaves while they are in flight.
const SLOW_FROM: UnixMillis = UnixMillis(START.0 + 60_000);
const SLOW: Duration = Duration::from_secs(3);

const PROVEN: usize = 200;

async fn append(bench: &Bench, events: usize) {
    bench.append((0..events).map(|_| bench.event("orders")).collect()).await;
}

/// Sends forty events and waits until some attempts are in flight. Also returns the number of calls by then.
async fn under_way() -> (Bench, usize) {
    let bench = Bench::new(settings(policy()), |_, now| (if now < SLOW_FROM { FAST } else { SLOW }, accepted()));
    append(&bench, PROVEN).await;
    bench.until_empty(Duration::from_secs(50)).await;
    bench.clock.sleep_until(SLOW_FROM).await;
    append(&bench, 40).await;
    bench.clock.sleep(Duration::from_secs(1)).await;
    let calls = bench.fake.calls.lock().unwrap().len();
    assert!(calls >= PROVEN + 2, "{calls}");
    bench.leaving.leave();
    (bench, calls)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_waited_out_and_what_ended_meanwhile_is_settled_once_it_is_back() {
    let (bench, calls) = under_way().await;
    append(&bench, 10).await;
    bench.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.fake.calls.lock().unwrap().len(), calls, "no attempt begins meanwhile");
    assert_eq!(bench.outbox.census().await.unwrap().events, 50, "nothing is settled meanwhile");
    let refused = bench.leaving.refused();
    assert!((2..=10 * 60).contains(&refused), "it was asked {refused} times within a minute");
    let asked = tokio::time::timeout(Duration::from_secs(1), bench.status.lanes()).await;
    assert_eq!(asked.unwrap().len(), 1, "an operator is answered");

    bench.leaving.come_back();
    bench.until_empty(Duration::from_secs(60)).await;
    let calls = bench.fake.calls.lock().unwrap().len();
    assert_eq!((bench.delivered("orders"), calls), (PROVEN + 50, PROVEN + 50), "each once");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_store_that_is_away_longer_than_its_grace() {
    let (bench, calls) = under_way().await;
    bench.clock.sleep(Duration::from_secs(10)).await;
    let leased: u64 = bench.outbox.census().await.unwrap().lanes.values().map(|lane| lane.leased).sum();
    assert_eq!(leased, (calls - PROVEN) as u64, "what has ended waits for the store");
    let (clock, began) = (bench.clock.clone(), bench.clock.now());
    bench.end().await;
    assert!(clock.now().since(began) < Duration::from_secs(1));
}
