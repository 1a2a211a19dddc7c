//! Repeats, conflicts and windows, also over clocks that jump.

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

async fn sweep(bench: &Bench) -> u64 {
    while bench.store().sweep().await.unwrap() {}
    bench.store().census().await.unwrap().keys
}

async fn again(bench: &Bench, key: &str) -> Appended {
    bench.append(bench.keyed("orders", "{}", key, KeySource::Header)).await
}

#[tokio::test(start_paused = true)]
async fn a_window_holds_over_a_clock_that_went_back_and_ends_no_earlier() {
    on_every_engine(|mut bench| async move {
        bench.clock.sleep(HOUR * 5).await;
        let first = bench.keyed("orders", "{}", "k", KeySource::Header);
        bench.append(first.clone()).await;
        bench.clock.sleep(Duration::from_secs(1_800)).await;
        bench.append(bench.event("orders", "the clock is written with it")).await;
        bench.clock = Clock::seeded(START, 2);
        bench.reopen();
        assert_eq!(sweep(&bench).await, 1, "nothing is forgotten early");
        assert_eq!(again(&bench, "k").await, Appended::Repeat { first: first.id });
        bench.clock.sleep(Duration::from_secs(1_799)).await;
        assert_eq!(again(&bench, "k").await, Appended::Repeat { first: first.id });
        bench.clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(again(&bench, "k").await, Appended::Stored);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_window_ends_when_the_clock_went_forward_and_a_sweep_forgets_what_is_over_only() {
    on_every_engine(|mut bench| async move {
        bench.append(bench.keyed("orders", "{}", "old", KeySource::Header)).await;
        bench.clock = Clock::seeded(START.plus(HOUR / 2), 2);
        bench.reopen();
        let young = bench.keyed("orders", "{}", "young", KeySource::Header);
        bench.append(young.clone()).await;
        bench.clock = Clock::seeded(START.plus(HOUR), 3);
        bench.reopen();
        assert_eq!(sweep(&bench).await, 1);
        let again = bench.keyed("orders", "{}", "young", KeySource::Header);
        assert_eq!(bench.append(again).await, Appended::Repeat { first: young.id });
        assert_eq!(bench.append(bench.keyed("orders", "{}", "old", KeySource::Header)).await, Appended::Stored);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_is_known_also_if_its_event_was_delivered_just_before_a_crash() {
    on_every_engine(|mut bench| async move {
        let first = bench.keyed("orders", "{}", "k", KeySource::Header);
        bench.append(first.clone()).await;
        let leased = bench.lease("orders", Which::Due, 1).await;
        bench.settle(&leased[0], Settlement::Delivered).await;
        bench.reopen();
        let again = bench.keyed("orders", "{}", "k", KeySource::Header);
        assert_eq!(bench.append(again).await, Appended::Repeat { first: first.id });
        assert_eq!(bench.store().census().await.unwrap().events, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_within_one_batch_is_told_and_stores_nothing() {
    on_every_engine(|bench| async move {
        let a = bench.keyed("orders", "{}", "k", KeySource::Header);
        let b = bench.keyed("orders", "[]", "k", KeySource::Header);
        let c = bench.keyed("orders", "{}", "k", KeySource::ClientContext);
        let answers = bench.store().append(vec![a.clone(), b, c]).await.unwrap();
        let first = a.id;
        assert_eq!(answers, [Appended::Stored, Appended::Conflict { first }, Appended::Repeat { first }]);
        assert_eq!(bench.store().census().await.unwrap().events, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn keys_of_the_greatest_length_are_told_apart_by_their_last_character() {
    on_every_engine(|mut bench| async move {
        let longest = |last: char| format!("{}{last}", "ü".repeat(254));
        let a = bench.keyed("orders", "{}", &longest('a'), KeySource::Header);
        assert_eq!(bench.append(a.clone()).await, Appended::Stored);
        assert_eq!(bench.append(bench.keyed("orders", "{}", &longest('b'), KeySource::Header)).await, Appended::Stored);
        bench.reopen();
        let again = bench.keyed("orders", "{}", &longest('a'), KeySource::Header);
        assert_eq!(bench.append(again).await, Appended::Repeat { first: a.id });
        assert_eq!(bench.find(a.id).await.unwrap().event, a);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_want_of_room_leaves_its_key_unknown() {
    on_every_engine(|mut bench| async move {
        bench.settings.events_max = 1;
        bench.reopen();
        bench.append(bench.event("orders", "{}")).await;
        let refused = bench.append(bench.keyed("orders", "{}", "k", KeySource::Header)).await;
        assert!(matches!(refused, Appended::Full(Full::Events { .. })));
        bench.settings.events_max = 2;
        bench.reopen();
        assert_eq!(bench.append(bench.keyed("orders", "{}", "k", KeySource::Header)).await, Appended::Stored);
    })
    .await;
}
