//! What becomes of an event between its acceptance and its end, and what an operator may do meanwhile.

use super::*;

pub async fn what_was_appended_is_leased_whole_also_after_reopening(mut bench: Bench<impl Subject>) {
    for bytes in [0, 1, 1_400, 1_536, 4_096, 20_000, 1_048_576] {
        let event = bench.event("orders", &"x".repeat(bytes));
        assert_eq!(bench.append(event.clone()).await, Appended::Stored);
        bench.reopen().await;
        let leased = bench.lease("orders", Which::Due, 10).await;
        assert_eq!(leased.len(), 1, "{bytes} bytes");
        assert_eq!(leased[0].event, event);
        bench.settle(&leased[0], Settlement::Delivered).await;
    }
}

pub async fn a_leased_event_is_nobody_elses_until_the_store_is_reopened(mut bench: Bench<impl Subject>) {
    bench.append(bench.event("orders", "{}")).await;
    assert_eq!(bench.lease("orders", Which::Due, 10).await.len(), 1);
    assert_eq!(bench.lease("orders", Which::Due, 10).await.len(), 0);
    assert_eq!(bench.view("orders").await.ready, 0);
    bench.reopen().await;
    assert_eq!(bench.lease("orders", Which::Due, 10).await.len(), 1);
}

pub async fn a_delivered_event_is_gone_for_good(mut bench: Bench<impl Subject>) {
    let event = bench.event("orders", &"x".repeat(9_000));
    bench.append(event.clone()).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Delivered).await;
    assert!(bench.find(event.id).await.is_none());
    bench.reopen().await;
    assert!(bench.find(event.id).await.is_none());
    let census = bench.store().census().await.unwrap();
    assert_eq!((census.events, census.bytes), (0, 0));
}

pub async fn a_retry_waits_for_its_due_time_and_keeps_its_history_over_reopening(mut bench: Bench<impl Subject>) {
    let event = bench.event("orders", "{}");
    bench.append(event.clone()).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    let due = bench.clock.now().plus(Duration::from_secs(10));
    bench.settle(&leased[0], Settlement::RetryAt(retry_at(due))).await;
    bench.reopen().await;
    assert_eq!(bench.view("orders").await.next_due, Some(due));
    assert!(bench.lease("orders", Which::Due, 1).await.is_empty());
    bench.clock.sleep(Duration::from_secs(10)).await;
    let again = bench.lease("orders", Which::Due, 1).await;
    assert_eq!(again[0].event, event);
    assert_eq!(again[0].history, retry_at(due));
    bench.settle(&again[0], Settlement::Delivered).await;
    assert!(bench.find(event.id).await.is_none());
    assert_eq!(bench.view("orders").await.next_due, None);
}

pub async fn a_released_event_is_leased_again_unchanged(bench: Bench<impl Subject>) {
    for payload in ["1", "2", "3"] {
        bench.append(bench.event("orders", payload)).await;
        bench.clock.sleep(Duration::from_millis(1)).await;
    }
    let leased = bench.lease("orders", Which::Due, 3).await;
    bench.settle(&leased[1], Settlement::Release).await;
    let again = bench.lease("orders", Which::Due, 3).await;
    assert_eq!(again.len(), 1);
    assert_eq!((&again[0].event, &again[0].history), (&leased[1].event, &leased[1].history));
}

pub async fn an_event_committed_late_with_an_earlier_id_is_not_passed_over(bench: Bench<impl Subject>) {
    let early = bench.event("orders", "early");
    bench.clock.sleep(Duration::from_millis(5)).await;
    bench.append(bench.event("orders", "late")).await;
    assert_eq!(bench.lease("orders", Which::Due, 5).await.len(), 1);
    bench.append(early.clone()).await;
    let leased = bench.lease("orders", Which::Due, 5).await;
    assert_eq!(leased.iter().map(|l| &l.event).collect::<Vec<_>>(), [&early]);
}

pub async fn a_scheduled_event_is_not_due_before_its_time(mut bench: Bench<impl Subject>) {
    let at = bench.clock.now().plus(Duration::from_secs(86_400));
    bench.append(Event { deliver_at: Some(at), ..bench.event("orders", "{}") }).await;
    bench.reopen().await;
    let view = bench.view("orders").await;
    assert_eq!((view.ready, view.next_due, view.oldest), (0, Some(at), None));
    assert!(bench.lease("orders", Which::Due, 1).await.is_empty());
    bench.clock.sleep(Duration::from_secs(86_400)).await;
    assert_eq!(bench.lease("orders", Which::Due, 1).await.len(), 1);
}

pub async fn a_key_is_a_repeat_within_its_window_and_a_new_event_after_it(mut bench: Bench<impl Subject>) {
    let first = bench.keyed("orders", "{}", "k1", KeySource::Header);
    assert_eq!(bench.append(first.clone()).await, Appended::Stored);
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Delivered).await;
    bench.reopen().await;
    let repeat = bench.keyed("orders", "{}", "k1", KeySource::Field);
    assert_eq!(bench.append(repeat).await, Appended::Repeat { first: first.id });
    let other = bench.keyed("orders", "[]", "k1", KeySource::Header);
    assert_eq!(bench.append(other).await, Appended::Conflict { first: first.id });
    let elsewhere = bench.keyed("invoices", "{}", "k1", KeySource::Header);
    assert_eq!(bench.append(elsewhere).await, Appended::Stored);
    bench.clock.sleep(Duration::from_secs(3_600)).await;
    assert_eq!(bench.append(bench.keyed("orders", "{}", "k1", KeySource::Header)).await, Appended::Stored);
}

pub async fn two_repeats_in_one_batch_make_one_event(bench: Bench<impl Subject>) {
    let a = bench.keyed("orders", "{}", "k", KeySource::Header);
    let b = bench.keyed("orders", "{}", "k", KeySource::Header);
    let answers = bench.store().append(vec![a.clone(), b]).await.unwrap();
    assert_eq!(answers, [Appended::Stored, Appended::Repeat { first: a.id }]);
    assert_eq!(bench.store().census().await.unwrap().events, 1);
}

pub async fn a_sweep_forgets_keys_whose_window_is_over_and_no_other(mut bench: Bench<impl Subject>) {
    for n in 0..1_500 {
        let source = if n < 1_200 { KeySource::SdkInvocationId } else { KeySource::Header };
        let event = bench.keyed("orders", "{}", &format!("k{n}"), source);
        bench.append(event).await;
        let leased = bench.lease("orders", Which::Due, 1).await;
        bench.settle(&leased[0], Settlement::Delivered).await;
    }
    assert_eq!(bench.store().census().await.unwrap().keys, 1_500);
    bench.clock.sleep(Duration::from_secs(60)).await;
    bench.sweep().await;
    assert_eq!(bench.store().census().await.unwrap().keys, 300);
    bench.reopen().await;
    bench.sweep().await;
    assert_eq!(bench.store().census().await.unwrap().keys, 300);
}

pub async fn a_lane_that_held_nothing_for_long_is_retired_and_comes_back_with_its_next_event(
    mut bench: Bench<impl Subject>,
) {
    // One that Lambda took an event for stays for a week.
    for (settlement, idle) in [(Settlement::Shipped, 600), (Settlement::Delivered, 7 * 86_400)] {
        bench.append(bench.event("orders", "{}")).await;
        let leased = bench.lease("orders", Which::Due, 1).await;
        let before = bench.store().lanes(0).await.unwrap();
        bench.settle(&leased[0], settlement).await;
        bench.clock.sleep(Duration::from_secs(idle - 1)).await;
        bench.sweep().await;
        assert_eq!(bench.store().lanes(before.version).await.unwrap().retired, [], "not yet");
        bench.clock.sleep(Duration::from_secs(1)).await;
        bench.sweep().await;
        let news = bench.store().lanes(before.version).await.unwrap();
        assert_eq!(news.retired, [leased[0].lease.lane]);
        bench.reopen().await;
        assert!(bench.store().lanes(0).await.unwrap().lanes.is_empty());
        bench.append(bench.event("orders", "{}")).await;
        assert_ne!(bench.view("orders").await.lane, leased[0].lease.lane);
        let leased = bench.lease("orders", Which::Due, 1).await;
        bench.settle(&leased[0], Settlement::Shipped).await;
    }
}

pub async fn where_functions_are_many_an_empty_one_gives_way_at_once_but_none_that_lambda_took_an_event_for<
    S: Subject,
>(
    mut bench: Bench<S>,
) {
    bench.limits.functions_max = 4;
    bench.reopen().await;
    let take = async |bench: &Bench<S>, function: &str, settlement: Settlement| {
        let appended = bench.append(bench.event(function, "{}")).await;
        if appended == Appended::Stored {
            let leased = bench.lease(function, Which::Due, 1).await;
            bench.settle(&leased[0], settlement).await;
        }
        appended
    };
    take(&bench, "real-1", Settlement::Delivered).await;
    take(&bench, "real-2", Settlement::Delivered).await;
    bench.reopen().await;
    for n in 0..20 {
        let invented = take(&bench, &format!("invented-{n}"), Settlement::Shipped).await;
        assert_eq!(invented, Appended::Stored);
    }
    let known = bench.store().census().await.unwrap().lanes;
    let real = known.keys().filter(|name| name.as_str().starts_with("real")).count();
    assert_eq!((real, known.len()), (2, 4));
    // Beyond a half of all, those that were delivered to give way as well.
    take(&bench, "real-3", Settlement::Delivered).await;
    take(&bench, "real-4", Settlement::Delivered).await;
    assert_eq!(take(&bench, "real-5", Settlement::Delivered).await, Appended::Stored);
    assert!(!bench.store().census().await.unwrap().lanes.contains_key(&FunctionName::new("real-1")));
}

pub async fn a_buried_event_is_leased_for_shipping_only_and_gone_once_shipped(mut bench: Bench<impl Subject>) {
    let event = bench.event("orders", &"x".repeat(5_000));
    bench.append(event.clone()).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    let now = bench.clock.now();
    bench.settle(&leased[0], Settlement::Bury(burial(now))).await;
    bench.reopen().await;
    assert!(bench.lease("orders", Which::Due, 1).await.is_empty());
    let view = bench.view("orders").await;
    assert_eq!((view.buried, view.next_ship, view.oldest), (1, Some(now), None));
    let buried = bench.lease("orders", Which::Buried, 1).await;
    assert_eq!((&buried[0].event, &buried[0].history), (&event, &burial(now)));
    let later = now.plus(Duration::from_secs(5));
    bench.settle(&buried[0], Settlement::RetryAt(burial(later))).await;
    assert!(bench.lease("orders", Which::Buried, 1).await.is_empty());
    assert_eq!(bench.find(event.id).await.unwrap().place, Place::Buried);
    bench.clock.sleep(Duration::from_secs(5)).await;
    let buried = bench.lease("orders", Which::Buried, 1).await;
    bench.settle(&buried[0], Settlement::Shipped).await;
    assert!(bench.find(event.id).await.is_none());
    assert_eq!(bench.store().census().await.unwrap().bytes, 0);
}

pub async fn events_past_their_age_are_leased_whether_due_or_not(bench: Bench<impl Subject>) {
    bench.append(bench.event("orders", "waits")).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    let due = bench.clock.now().plus(Duration::from_secs(3_600));
    bench.settle(&leased[0], Settlement::RetryAt(retry_at(due))).await;
    bench.append(bench.event("orders", "ready")).await;
    bench.clock.sleep(Duration::from_secs(60)).await;
    let cutoff = bench.clock.now();
    bench.append(bench.event("orders", "young")).await;
    let old = bench.lease("orders", Which::AcceptedBefore(cutoff), 10).await;
    assert_eq!(old.iter().map(|l| &l.event.payload[..]).collect::<Vec<_>>(), [&b"waits"[..], b"ready"]);
    for leased in &old {
        bench.settle(leased, Settlement::Bury(burial(cutoff))).await;
    }
    let view = bench.view("orders").await;
    assert_eq!((view.ready, view.next_due, view.buried), (1, None, 2));
}

pub async fn limits_refuse_what_is_beyond_them_and_keep_what_is_there(mut bench: Bench<impl Subject>) {
    bench.limits.bytes_max = 4 << 20;
    bench.reopen().await;
    assert_eq!(bench.append(bench.event("orders", &"x".repeat(2_000_000))).await, Appended::Stored);
    assert!(matches!(
        bench.append(bench.event("orders", &"x".repeat(2_000_000))).await,
        Appended::Full(Full::Bytes { .. })
    ));
    bench.limits.events_max = 1;
    bench.limits.bytes_max = 64 << 20;
    bench.reopen().await;
    assert!(matches!(bench.append(bench.event("orders", "{}")).await, Appended::Full(Full::Events { .. })));
    bench.limits.events_max = 100;
    bench.limits.functions_max = 1;
    bench.reopen().await;
    assert!(matches!(bench.append(bench.event("new", "{}")).await, Appended::Full(Full::Functions { .. })));
    assert_eq!(bench.lease("orders", Which::Due, 10).await[0].event.payload.len(), 2_000_000);
}

pub async fn counts_by_state_survive_reopening(mut bench: Bench<impl Subject>) {
    for _ in 0..4 {
        bench.append(bench.event("orders", "{}")).await;
    }
    let leased = bench.lease("orders", Which::Due, 3).await;
    let now = bench.clock.now();
    bench.settle(&leased[0], Settlement::RetryAt(retry_at(now))).await;
    bench.settle(&leased[1], Settlement::Bury(burial(now))).await;
    bench.settle(&leased[2], Settlement::Delivered).await;
    let before = bench.store().census().await.unwrap();
    bench.reopen().await;
    let after = bench.store().census().await.unwrap();
    for census in [&before, &after] {
        let events = |place| census.lanes[&FunctionName::new("orders")].by_place[&place].events;
        assert_eq!(Place::ALL.map(events), [1, 1, 0, 1]);
    }
    assert_eq!(before.bytes, after.bytes);
}

pub async fn settling_twice_changes_nothing(bench: Bench<impl Subject>) {
    bench.append(bench.event("orders", "{}")).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Delivered).await;
    let again = vec![(leased[0].lease, Settlement::Bury(burial(START)))];
    assert_eq!(bench.store().settle(again).await.unwrap(), [leased[0].lease], "it says that the lease is lost");
    let census = bench.store().census().await.unwrap();
    assert_eq!((census.events, census.bytes), (0, 0));
}

pub async fn a_clock_that_stands_before_the_last_commit_is_followed_and_the_step_is_remembered(
    mut bench: Bench<impl Subject>,
) {
    bench.clock.sleep(Duration::from_secs(7_200)).await;
    let last = bench.clock.now();
    bench.append(bench.event("orders", "{}")).await;
    for seed in 2..4 {
        bench.clock = Clock::seeded(START, seed);
        bench.reopen().await;
        assert_eq!(bench.clock.now(), START);
        assert_eq!(bench.clock.present(last), START, "what was now then is now");
        bench.append(bench.event("orders", "{}")).await;
    }
}

pub async fn a_pause_outlives_a_restart_and_an_empty_lane(mut bench: Bench<impl Subject>) {
    let orders = FunctionName::new("orders");
    bench.store().pause(&orders, true).await.unwrap();
    bench.reopen().await;
    assert!(bench.view("orders").await.paused);
    bench.clock.sleep(Duration::from_secs(1_200)).await;
    bench.sweep().await;
    assert!(bench.view("orders").await.paused);
    bench.store().pause(&orders, false).await.unwrap();
    bench.reopen().await;
    assert!(!bench.view("orders").await.paused);
}

pub async fn a_purge_counts_first_and_takes_only_what_fits_and_is_not_leased(mut bench: Bench<impl Subject>) {
    let orders = FunctionName::new("orders");
    let old = bench.event("orders", &"x".repeat(9_000));
    let leased_one = bench.event("orders", "{}");
    bench.append(leased_one.clone()).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.append(old.clone()).await;
    bench.clock.sleep(Duration::from_secs(10)).await;
    let middle = bench.clock.now();
    let later = Some(middle.plus(Duration::from_secs(60)));
    for _ in 0..700 {
        bench.append(bench.event("orders", "{}")).await;
    }
    bench.append(Event { deliver_at: later, expires_at: later, ..bench.event("orders", "{}") }).await;
    bench.append(bench.event("others", "{}")).await;
    let purge = |place, accepted_before, dry_run| Purge {
        function: orders.clone(),
        place,
        accepted_before,
        dry_run,
        keys: Keys::Forget,
    };
    let store = bench.store().clone();
    let counted = store.purge(purge(None, None, true)).await.unwrap();
    assert_eq!((counted.events, counted.ids.len()), (702, 0));
    assert_eq!(store.purge(purge(None, Some(middle), true)).await.unwrap().events, 1);
    assert_eq!(store.purge(purge(Some(Place::Scheduled), None, false)).await.unwrap().events, 1);
    assert_eq!(store.purge(purge(None, Some(middle), false)).await.unwrap().ids, [old.id], "what it removed");
    assert!(bench.find(old.id).await.is_none());
    assert_eq!(store.purge(purge(None, None, false)).await.unwrap().events, 700);
    bench.settle(&leased[0], Settlement::Delivered).await;
    drop(store);
    bench.reopen().await;
    let census = bench.store().census().await.unwrap();
    assert_eq!(census.events, 1, "the other function's");
    assert_eq!(bench.view("orders").await.next_expiry, None);
}

pub async fn a_listing_has_every_event_once_however_it_is_cut_into_pages(bench: Bench<impl Subject>) {
    let mut all = std::collections::BTreeSet::new();
    for n in 0..25 {
        let function = if n % 3 == 0 { "orders" } else { "mails" };
        let deliver_at = (n % 4 == 0).then(|| bench.clock.now().plus(Duration::from_secs(60)));
        let event = Event { deliver_at, ..bench.event(function, "{}") };
        all.insert(event.id);
        bench.append(event).await;
    }
    for max in [1, 4, 25, 100] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = bench.store().list(ListWant { after, max, ..ListWant::default() }).await.unwrap();
            assert!(page.events.len() <= max);
            seen.extend(page.events.iter().map(|event| event.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), all.len());
        assert_eq!(seen.iter().copied().collect::<std::collections::BTreeSet<_>>(), all);
    }
    let (function, place) = (Some("ord*".parse().unwrap()), Some(Place::Ready));
    let want = ListWant { function, place, max: 100, ..ListWant::default() };
    assert_eq!(bench.store().list(want).await.unwrap().events.len(), 6);
}

/// Every event that fits, and how many pages that took.
async fn listed(bench: &Bench<impl Subject>, filter: ListFilter) -> (Vec<EventId>, usize) {
    let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let want = ListWant { after, max: 2, filter: filter.clone(), ..ListWant::default() };
        let page = bench.store().list(want).await.unwrap();
        found.extend(page.events.iter().map(|event| event.id));
        (after, pages) = (page.next, pages + 1);
        if after.is_none() {
            return (found, pages);
        }
    }
}

pub async fn a_listing_shows_what_its_filter_fits_and_ends_a_page_though_nothing_does(bench: Bench<impl Subject>) {
    let mut ids = Vec::new();
    for _ in 0..5 {
        let event = bench.event("orders", "{}");
        ids.push(event.id);
        bench.append(event).await;
        bench.clock.sleep(Duration::from_secs(1)).await;
    }
    let leased = bench.lease("orders", Which::Due, 2).await;
    let last = LastOutcome {
        at: bench.clock.now(),
        status: 429,
        code: "TooManyRequestsException".to_owned(),
        message: "Rate Exceeded.".to_owned(),
        request_id: None,
    };
    let due = bench.clock.now().plus(Duration::from_secs(600));
    bench.settle(&leased[0], Settlement::RetryAt(History { last: Some(last), ..retry_at(due) })).await;
    let all = ListFilter::default();
    let at = |nth: usize| Some(ids[nth].accepted_at());
    for (filter, expected) in [
        (all.clone(), &ids[..]),
        (ListFilter { since: at(2), ..all.clone() }, &ids[2..]),
        (ListFilter { until: at(2), ..all.clone() }, &ids[..2]),
        (ListFilter { since: at(1), until: at(3), ..all.clone() }, &ids[1..3]),
        (ListFilter { attempts_min: Some(1), ..all.clone() }, &ids[..1]),
        (ListFilter { attempts_min: Some(2), ..all.clone() }, &[]),
        (ListFilter { error: Some("TooMany".to_owned()), ..all.clone() }, &ids[..1]),
        (ListFilter { error: Some("Exceeded".to_owned()), ..all.clone() }, &ids[..1]),
        (ListFilter { error: Some("other".to_owned()), ..all.clone() }, &[]),
        (ListFilter { in_flight: Some(true), ..all.clone() }, &ids[1..2]),
        (ListFilter { in_flight: Some(false), since: at(1), ..all.clone() }, &ids[2..]),
    ] {
        assert_eq!(listed(&bench, filter.clone()).await.0, expected, "{filter:?}");
    }
    for _ in 0..15 {
        let batch = (0..100).map(|_| bench.event("mails", "{}")).collect();
        bench.store().append(batch).await.unwrap();
    }
    let (found, pages) = listed(&bench, ListFilter { attempts_min: Some(1), ..all }).await;
    assert_eq!((found, pages), (vec![ids[0]], 2), "a page looks at 1,000 records");
}

pub async fn several_events_are_cancelled_and_brought_forward_as_one_is(mut bench: Bench<impl Subject>) {
    let in_an_hour = bench.clock.now().plus(Duration::from_secs(3_600));
    let mut ids = Vec::new();
    for _ in 0..250 {
        let event = Event { deliver_at: Some(in_an_hour), ..bench.event("orders", "{}") };
        ids.push(event.id);
        bench.append(event).await;
    }
    let unknown = EventId::from_bytes([1; 16]);
    let attempted = bench.store().attempt_all(vec![ids[0], unknown, ids[1]]).await.unwrap();
    assert_eq!(attempted, [Touched::Done, Touched::NotFound, Touched::Done]);
    let leased = bench.lease("orders", Which::Due, 10).await;
    assert_eq!(leased.iter().map(|leased| leased.lease.id).collect::<Vec<_>>(), ids[..2]);
    let wanted = [&ids[1..], &ids[249..]].concat();
    let cancelled = bench.store().cancel_all(wanted, Keys::Forget).await.unwrap();
    assert_eq!((cancelled.len(), cancelled[0], cancelled[249]), (250, Touched::InFlight, Touched::NotFound));
    assert_eq!(cancelled.iter().filter(|touched| **touched == Touched::Done).count(), 248);
    bench.reopen().await;
    assert_eq!(bench.store().census().await.unwrap().events, 2);
}

pub async fn an_event_past_its_own_expiry_is_found_wherever_it_rests(mut bench: Bench<impl Subject>) {
    let now = bench.clock.now();
    let at = |seconds| Some(now.plus(Duration::from_secs(seconds)));
    let ready = Event { expires_at: at(10), ..bench.event("orders", "{}") };
    let scheduled = Event { deliver_at: at(100), expires_at: at(20), ..bench.event("orders", "{}") };
    bench.append(ready.clone()).await;
    bench.append(scheduled.clone()).await;
    bench.reopen().await;
    assert_eq!(bench.view("orders").await.next_expiry, at(10));
    assert!(bench.lease("orders", Which::AcceptedBefore(UnixMillis(0)), 10).await.is_empty());
    bench.clock.sleep(Duration::from_secs(20)).await;
    let leased = bench.lease("orders", Which::AcceptedBefore(UnixMillis(0)), 10).await;
    assert_eq!(leased.len(), 2);
    let due = bench.clock.now();
    for leased in &leased {
        bench.settle(leased, Settlement::Bury(burial(due))).await;
    }
    assert_eq!(bench.view("orders").await.next_expiry, None);
}

pub async fn cancelling_and_bringing_forward_reach_only_what_waits(mut bench: Bench<impl Subject>) {
    let event = bench.event("orders", "{}");
    bench.append(event.clone()).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    assert_eq!(bench.store().cancel(event.id, Keys::Forget).await.unwrap(), Touched::InFlight);
    let due = bench.clock.now().plus(Duration::from_secs(600));
    bench.settle(&leased[0], Settlement::RetryAt(retry_at(due))).await;
    assert!(bench.lease("orders", Which::Due, 1).await.is_empty());
    assert_eq!(bench.store().attempt_now(event.id).await.unwrap(), Touched::Done);
    bench.reopen().await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    assert_eq!(leased[0].history.attempts, 1, "its history is kept");
    bench.settle(&leased[0], Settlement::Bury(burial(bench.clock.now()))).await;
    assert_eq!(bench.store().cancel(event.id, Keys::Forget).await.unwrap(), Touched::Buried);
    assert_eq!(bench.store().attempt_now(EventId::from_bytes([1; 16])).await.unwrap(), Touched::NotFound);
}
