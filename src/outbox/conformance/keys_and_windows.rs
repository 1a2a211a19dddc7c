//! Repeats, conflicts and windows, also over clocks that jump.

use super::*;
use crate::outbox::dead::{Discarded, Revived};

const HOUR: Duration = Duration::from_secs(3_600);

async fn sweep(bench: &Bench<impl Subject>) -> u64 {
    bench.sweep().await;
    bench.store().census().await.unwrap().keys
}

async fn deliver(bench: &Bench<impl Subject>) {
    for leased in bench.lease("orders", Which::Due, 5).await {
        bench.settle(&leased, Settlement::Delivered).await;
    }
}

async fn again(bench: &Bench<impl Subject>, key: &str) -> Appended {
    bench.append(bench.keyed("orders", "{}", key, KeySource::Header)).await
}

pub async fn a_window_holds_over_a_clock_that_went_back_and_ends_no_earlier(mut bench: Bench<impl Subject>) {
    bench.clock.sleep(HOUR * 5).await;
    let first = bench.keyed("orders", "{}", "k", KeySource::Header);
    bench.append(first.clone()).await;
    deliver(&bench).await;
    bench.clock.sleep(Duration::from_secs(1_800)).await;
    bench.append(bench.event("orders", "the clock is written with it")).await;
    bench.clock = Clock::seeded(START, 2);
    bench.reopen().await;
    assert_eq!(sweep(&bench).await, 1, "nothing is forgotten early");
    assert_eq!(again(&bench, "k").await, Appended::Repeat { first: first.id });
    bench.clock.sleep(Duration::from_secs(1_799)).await;
    assert_eq!(again(&bench, "k").await, Appended::Repeat { first: first.id });
    bench.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(again(&bench, "k").await, Appended::Stored);
}

pub async fn a_window_ends_when_the_clock_went_forward_and_a_sweep_forgets_what_is_over_only(
    mut bench: Bench<impl Subject>,
) {
    bench.append(bench.keyed("orders", "{}", "old", KeySource::Header)).await;
    deliver(&bench).await;
    bench.clock = Clock::seeded(START.plus(HOUR / 2), 2);
    bench.reopen().await;
    let young = bench.keyed("orders", "{}", "young", KeySource::Header);
    bench.append(young.clone()).await;
    bench.clock = Clock::seeded(START.plus(HOUR), 3);
    bench.reopen().await;
    assert_eq!(sweep(&bench).await, 1);
    let again = bench.keyed("orders", "{}", "young", KeySource::Header);
    assert_eq!(bench.append(again).await, Appended::Repeat { first: young.id });
    assert_eq!(bench.append(bench.keyed("orders", "{}", "old", KeySource::Header)).await, Appended::Stored);
}

pub async fn a_key_is_known_also_if_its_event_was_delivered_just_before_a_crash(mut bench: Bench<impl Subject>) {
    let first = bench.keyed("orders", "{}", "k", KeySource::Header);
    bench.append(first.clone()).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Delivered).await;
    bench.reopen().await;
    let again = bench.keyed("orders", "{}", "k", KeySource::Header);
    assert_eq!(bench.append(again).await, Appended::Repeat { first: first.id });
    assert_eq!(bench.store().census().await.unwrap().events, 0);
}

pub async fn a_conflict_within_one_batch_is_told_and_stores_nothing(bench: Bench<impl Subject>) {
    let a = bench.keyed("orders", "{}", "k", KeySource::Header);
    let b = bench.keyed("orders", "[]", "k", KeySource::Header);
    let c = bench.keyed("orders", "{}", "k", KeySource::ClientContext);
    let answers = bench.store().append(vec![a.clone(), b, c]).await.unwrap();
    let first = a.id;
    assert_eq!(answers, [Appended::Stored, Appended::Conflict { first }, Appended::Repeat { first }]);
    assert_eq!(bench.store().census().await.unwrap().events, 1);
}

pub async fn keys_of_the_greatest_length_are_told_apart_by_their_last_character(mut bench: Bench<impl Subject>) {
    let longest = |last: char| format!("{}{last}", "ü".repeat(254));
    let a = bench.keyed("orders", "{}", &longest('a'), KeySource::Header);
    assert_eq!(bench.append(a.clone()).await, Appended::Stored);
    assert_eq!(bench.append(bench.keyed("orders", "{}", &longest('b'), KeySource::Header)).await, Appended::Stored);
    bench.reopen().await;
    let again = bench.keyed("orders", "{}", &longest('a'), KeySource::Header);
    assert_eq!(bench.append(again).await, Appended::Repeat { first: a.id });
    assert_eq!(bench.find(a.id).await.unwrap().event, a);
}

pub async fn what_is_refused_for_want_of_room_leaves_its_key_unknown(mut bench: Bench<impl Subject>) {
    bench.limits.events_max = 1;
    bench.reopen().await;
    bench.append(bench.event("orders", "{}")).await;
    let refused = bench.append(bench.keyed("orders", "{}", "k", KeySource::Header)).await;
    assert!(matches!(refused, Appended::Full(Full::Events { .. })));
    bench.limits.events_max = 2;
    bench.reopen().await;
    assert_eq!(bench.append(bench.keyed("orders", "{}", "k", KeySource::Header)).await, Appended::Stored);
}

pub async fn a_key_is_remembered_as_long_as_its_event_is_stored_and_then_for_its_window(
    mut bench: Bench<impl Subject>,
) {
    let month = HOUR * 24 * 30;
    let deliver_at = Some(bench.clock.now().plus(month));
    let first = Event { deliver_at, ..bench.keyed("orders", "{}", "k", KeySource::Header) };
    let sdk = Event { deliver_at, ..bench.keyed("orders", "{}", "k", KeySource::SdkInvocationId) };
    bench.append(first.clone()).await;
    bench.append(sdk.clone()).await;
    for day in 1..=30 {
        bench.clock.sleep(HOUR * 24).await;
        if day % 2 == 0 {
            assert_eq!(sweep(&bench).await, 2, "day {day}");
        }
        if day % 3 == 0 {
            bench.reopen().await;
        }
        assert_eq!(again(&bench, "k").await, Appended::Repeat { first: first.id }, "day {day}");
        let again = bench.keyed("orders", "{}", "k", KeySource::SdkInvocationId);
        assert_eq!(bench.append(again).await, Appended::Repeat { first: sdk.id }, "day {day}");
    }
    deliver(&bench).await;
    assert_eq!(bench.store().census().await.unwrap().events, 0);
    bench.clock.sleep(HOUR - Duration::from_secs(1)).await;
    assert_eq!(sweep(&bench).await, 1, "the window of an SDK's id is shorter");
    assert_eq!(again(&bench, "k").await, Appended::Repeat { first: first.id }, "the window begins with the delivery");
    bench.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(again(&bench, "k").await, Appended::Stored);
}

pub async fn a_buried_event_and_one_that_came_back_keep_their_key(bench: Bench<impl Subject>) {
    let first = bench.keyed("orders", "{}", "k", KeySource::Header);
    bench.append(first.clone()).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Bury(burial(bench.clock.now()))).await;
    bench.clock.sleep(HOUR * 50).await;
    sweep(&bench).await;
    assert_eq!(again(&bench, "k").await, Appended::Repeat { first: first.id });
    let revived = bench.store().revive(vec![first.id], 9).await.unwrap();
    let [Revived::Stored { id }] = revived[..] else { panic!("{revived:?}") };
    bench.clock.sleep(HOUR * 50).await;
    sweep(&bench).await;
    assert_eq!(again(&bench, "k").await, Appended::Repeat { first: id }, "it is the event that came back");
}

pub async fn the_key_of_an_event_that_an_operator_removed_can_be_sent_again<S: Subject>(mut bench: Bench<S>) {
    let send = |bench: &Bench<S>, source| Event {
        carried: Carried { tenant_id: Some("blue".into()), ..Carried::default() },
        ..bench.keyed("orders", "{}", "k", source)
    };
    for source in [KeySource::Header, KeySource::SdkInvocationId] {
        for keys in [Keys::Forget, Keys::Keep] {
            for how in ["cancel", "purge", "purge dead letter"] {
                let event = send(&bench, source);
                assert_eq!(bench.append(event.clone()).await, Appended::Stored, "{how} {keys:?} {source:?}");
                match how {
                    "cancel" => assert_eq!(bench.store().cancel(event.id, keys).await.unwrap(), Touched::Done),
                    "purge" => {
                        let function = event.function.name.clone();
                        let purge = Purge { function, place: None, accepted_before: None, dry_run: false, keys };
                        assert_eq!(bench.store().purge(purge).await.unwrap().events, 1);
                    }
                    _ => {
                        let leased = bench.lease("orders", Which::Due, 1).await;
                        bench.settle(&leased[0], Settlement::Bury(burial(bench.clock.now()))).await;
                        let discarded = bench.store().discard(vec![event.id], keys).await.unwrap();
                        assert_eq!(discarded, [Discarded::Done]);
                    }
                }
                bench.reopen().await;
                if keys == Keys::Keep {
                    let repeat = bench.append(send(&bench, source)).await;
                    assert_eq!(repeat, Appended::Repeat { first: event.id }, "{how} {source:?}");
                    bench.clock.sleep(HOUR).await;
                }
            }
        }
    }
    // A key that has become another event's is not forgotten with the first.
    let first = bench.keyed("invoices", "{}", "k", KeySource::Header);
    bench.append(first.clone()).await;
    let leased = bench.lease("invoices", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Bury(burial(bench.clock.now()))).await;
    let letter = bench.find(first.id).await.unwrap();
    bench.store().discard(vec![first.id], Keys::Forget).await.unwrap();
    let second = bench.keyed("invoices", "{}", "k", KeySource::Header);
    assert_eq!(bench.append(second.clone()).await, Appended::Stored);
    bench.store().import(vec![(letter.event, letter.history)]).await.unwrap();
    bench.store().discard(vec![first.id], Keys::Forget).await.unwrap();
    let repeat = bench.append(bench.keyed("invoices", "{}", "k", KeySource::Header)).await;
    assert_eq!(repeat, Appended::Repeat { first: second.id });
}

pub async fn the_same_key_of_another_tenant_is_another_event(bench: Bench<impl Subject>) {
    let send = |tenant: Option<&str>| Event {
        carried: Carried { tenant_id: tenant.map(str::to_owned), ..Carried::default() },
        ..bench.keyed("orders", "{}", "17", KeySource::Header)
    };
    let tenants = [None, Some("a"), Some("b")];
    let mut first = Vec::new();
    for tenant in tenants {
        let event = send(tenant);
        assert_eq!(bench.append(event.clone()).await, Appended::Stored, "{tenant:?}");
        first.push(event.id);
    }
    for (tenant, first) in tenants.into_iter().zip(first) {
        assert_eq!(bench.append(send(tenant)).await, Appended::Repeat { first }, "{tenant:?}");
    }
}

pub async fn what_is_remembered_of_a_key_can_be_asked(bench: Bench<impl Subject>) {
    let orders = FunctionName::new("orders");
    let ask = async |function: &FunctionName, tenant: Option<&str>, key: &str| {
        bench.store().known_key(function, tenant.map(str::to_owned), key.to_owned()).await.unwrap()
    };
    let event = bench.keyed("orders", "{}", "order-17", KeySource::Field);
    let of_tenant = Event {
        carried: Carried { tenant_id: Some("blue".to_owned()), ..Carried::default() },
        ..bench.keyed("orders", "{}", "order-17", KeySource::Header)
    };
    bench.append(event.clone()).await;
    bench.append(of_tenant.clone()).await;
    let known = ask(&orders, None, "order-17").await.unwrap();
    assert_eq!(known.first, event.id);
    assert_eq!(known.expires_at, bench.clock.now().plus(bench.limits.dedupe_window));
    assert_eq!(ask(&orders, Some("blue"), "order-17").await.map(|known| known.first), Some(of_tenant.id));
    assert_eq!(ask(&orders, None, "order-18").await, None);
    assert_eq!(ask(&FunctionName::new("mails"), None, "order-17").await, None);
    let leased = bench.lease("orders", Which::Due, 2).await;
    bench.settle(&leased[0], Settlement::Delivered).await;
    assert_eq!(ask(&orders, None, "order-17").await.map(|known| known.first), Some(event.id), "within its window");
    bench.clock.sleep(bench.limits.dedupe_window).await;
    assert_eq!(ask(&orders, None, "order-17").await, None, "after it");
}
