//! Tests clients that invent names of functions, beside functions that exist.

use super::*;
use crate::outbox::{Appended, Full, LaneWant, Which};

const FUNCTIONS_MAX: u64 = 16;

const MINUTE: Duration = Duration::from_secs(60);

fn bench() -> Bench {
    let says = |call: &Call, _| {
        let name = call.function.name.as_str();
        let known = !name.starts_with("invented");
        (FAST, if known { accepted() } else { error(404, "ResourceNotFoundException") })
    };
    Bench::of_functions(FUNCTIONS_MAX, settings(policy()), Duration::ZERO, says, |_, _| (FAST, well()))
}

impl Bench {
    async fn offer(&self, function: &str) -> Appended {
        self.outbox.append(vec![self.event(function)]).await.unwrap().remove(0)
    }

    /// Sends to invented functions until the outbox accepts no more of them. Returns how many it accepted.
    async fn invent(&self) -> usize {
        for n in 0.. {
            match self.offer(&format!("invented-{n}")).await {
                Appended::Stored => {}
                Appended::Full(Full::Functions { .. }) => return n,
                other @ (Appended::Repeat { .. } | Appended::Conflict { .. } | Appended::Full(_)) => {
                    panic!("{other:?}")
                }
            }
        }
        0
    }

    /// Ships every dead letter, as the dead-letter stage does if a queue is configured.
    async fn ship(&self) -> usize {
        let lanes = self.outbox.lanes(0).await.unwrap().lanes.into_iter();
        let want = |lane| LaneWant { lane, which: Which::Buried, events_max: 10, bytes_max: u64::MAX, spent: None };
        let lanes = lanes.map(|view| want(view.lane)).collect();
        let leased = self.outbox.lease(LeaseWant { lanes, bytes_max: u64::MAX }, None).await.unwrap().events;
        let shipped: Vec<_> = leased.into_iter().map(|leased| (leased.lease, Settlement::Shipped)).collect();
        let count = shipped.len();
        self.outbox.settle(shipped).await.unwrap();
        count
    }

    async fn lane_of(&self, function: &str) -> Option<LaneId> {
        let lanes = self.outbox.lanes(0).await.unwrap().lanes;
        lanes.into_iter().find(|view| view.function.as_str() == function).map(|view| view.lane)
    }
}

#[tokio::test(start_paused = true)]
async fn invented_functions_fill_the_outbox_and_give_way_to_a_real_one() {
    let bench = bench();
    assert_eq!(bench.offer("orders").await, Appended::Stored);
    bench.until_empty(MINUTE).await;
    let orders = bench.lane_of("orders").await;
    assert_eq!(bench.invent().await as u64, FUNCTIONS_MAX - 1, "what was delivered to keeps its place");
    assert!(matches!(bench.offer("new").await, Appended::Full(Full::Functions { .. })));

    bench.clock.sleep(MINUTE * 9).await;
    assert_eq!(bench.count(Place::Buried).await, 0);
    bench.clock.sleep(MINUTE * 2).await;
    assert_eq!(bench.ship().await as u64, FUNCTIONS_MAX - 1, "they are dead letters, not lost");
    assert_eq!(bench.offer("new").await, Appended::Stored);
    // The known functions still get through, however many more are invented.
    bench.invent().await;
    assert_eq!(bench.offer("orders").await, Appended::Stored);
    bench.clock.sleep(MINUTE).await;
    assert_eq!((bench.delivered("orders"), bench.delivered("new")), (2, 1));
    assert_eq!(bench.lane_of("orders").await, orders);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn events_of_an_unknown_function_wait_until_it_is_there_as_long_as_there_is_room_for_others() {
    let bench = bench();
    for n in 0..FUNCTIONS_MAX * 3 / 4 {
        assert_eq!(bench.offer(&format!("invented-{n}")).await, Appended::Stored);
    }
    bench.clock.sleep(policy().age_max - MINUTE).await;
    assert_eq!(bench.count(Place::Buried).await, 0);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_function_that_took_an_event_before_and_one_that_is_paused_do_not_give_way() {
    let gone = START.plus(MINUTE);
    let says = move |call: &Call, now| {
        let known = call.function.name.as_str() == "orders" && now < gone;
        (FAST, if known { accepted() } else { error(404, "ResourceNotFoundException") })
    };
    let bench = Bench::of_functions(3, settings(policy()), Duration::ZERO, says, |_, _| (FAST, well()));
    bench.offer("orders").await;
    bench.until_empty(MINUTE).await;
    bench.clock.sleep(MINUTE * 2).await;
    bench.offer("orders").await;
    bench.offer("paused").await;
    bench.outbox.pause(&FunctionName::new("paused"), true).await.unwrap();
    bench.offer("invented").await;
    bench.clock.sleep(MINUTE * 30).await;
    assert_eq!((bench.count(Place::Buried).await, bench.ship().await), (1, 1));
    assert!(bench.lane_of("orders").await.is_some() && bench.lane_of("paused").await.is_some());
    bench.end().await;
}
