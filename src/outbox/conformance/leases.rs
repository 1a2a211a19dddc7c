//! What is handed out, and how much; what lanes tell; events of every awkward size.

use super::*;

pub async fn find_tells_where_an_event_is_and_nothing_of_others(bench: Bench<impl Subject>) {
    let event = bench.event("orders", "{}");
    bench.append(event.clone()).await;
    let found = bench.find(event.id).await.unwrap();
    assert_eq!((found.place, found.leased, &found.event), (Place::Ready, false, &event));
    let leased = bench.lease("orders", Which::Due, 1).await;
    assert!(bench.find(event.id).await.unwrap().leased);
    let due = bench.clock.now().plus(Duration::from_secs(60));
    bench.settle(&leased[0], Settlement::RetryAt(retry_at(due))).await;
    let found = bench.find(event.id).await.unwrap();
    assert_eq!((found.place, found.leased, found.history.due), (Place::Waiting, false, due));
    assert!(bench.find(bench.event("orders", "{}").id).await.is_none());
    assert!(bench.find(EventId::from_bytes([0; 16])).await.is_none());
}

pub async fn lanes_tells_what_changed_since_and_no_more(bench: Bench<impl Subject>) {
    for function in ["a", "b", "c"] {
        bench.append(bench.event(function, "{}")).await;
    }
    let all = bench.store().lanes(0).await.unwrap();
    assert_eq!(all.lanes.len(), 3);
    assert!(bench.store().lanes(all.version).await.unwrap().lanes.is_empty());
    bench.append(bench.event("b", "{}")).await;
    bench.store().changed(all.version, Changes::Any).await;
    let news = bench.store().lanes(all.version).await.unwrap();
    assert_eq!(news.lanes.iter().map(|lane| (lane.function.as_str(), lane.ready)).collect::<Vec<_>>(), [("b", 2)]);
    assert!(news.version > all.version);
}

pub async fn nothing_of_a_paused_lane_is_leased_for_an_attempt_whatever_whoever_asks_has_heard(
    bench: Bench<impl Subject>,
) {
    let event = bench.event("orders", "{}");
    bench.append(event.clone()).await;
    bench.store().pause(&event.function.name, true).await.unwrap();
    assert!(bench.lease("orders", Which::Due, 1).await.is_empty());
    bench.store().pause(&event.function.name, false).await.unwrap();
    assert_eq!(bench.lease("orders", Which::Due, 1).await[0].event, event);
}

pub async fn a_lease_brings_news_that_tell_of_it(bench: Bench<impl Subject>) {
    bench.append(bench.event("orders", "{}")).await;
    let news = bench.store().lanes(0).await.unwrap();
    let lanes =
        vec![LaneWant { lane: news.lanes[0].lane, which: Which::Due, events_max: 1, bytes_max: u64::MAX, spent: None }];
    let leases = bench.store().lease(LeaseWant { lanes, bytes_max: u64::MAX }, Some(news.version)).await.unwrap();
    let told = leases.news.unwrap();
    assert_eq!((leases.events.len(), told.lanes.len(), told.lanes[0].ready), (1, 1, 0));
    assert!(bench.store().lanes(told.version).await.unwrap().lanes.is_empty());
}

pub async fn what_was_never_attempted_is_leased_first_if_asked_for(bench: Bench<impl Subject>) {
    bench.append(bench.event("orders", "attempted")).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::RetryAt(retry_at(bench.clock.now()))).await;
    bench.append(bench.event("orders", "new")).await;
    for (which, payloads) in [(Which::Due, ["attempted", "new"]), (Which::Fresh, ["new", "attempted"])] {
        let leased = bench.lease("orders", which, 2).await;
        assert_eq!(leased.iter().map(|l| &l.event.payload[..]).collect::<Vec<_>>(), payloads.map(str::as_bytes));
        for leased in &leased {
            bench.settle(leased, Settlement::Release).await;
        }
    }
}

pub async fn a_lease_ends_at_its_bytes_but_the_first_event_is_always_taken(bench: Bench<impl Subject>) {
    for _ in 0..4 {
        bench.append(bench.event("orders", &"x".repeat(1_000))).await;
    }
    let lane = bench.view("orders").await.lane;
    let want = |bytes_max| {
        let lanes = vec![LaneWant { lane, which: Which::Due, events_max: 10, bytes_max: u64::MAX, spent: None }];
        bench.store().lease(LeaseWant { lanes, bytes_max }, None)
    };
    assert_eq!(want(0).await.unwrap().events.len(), 0);
    assert_eq!(want(1).await.unwrap().events.len(), 1);
    assert_eq!(want(1_001).await.unwrap().events.len(), 2);
    assert_eq!(want(u64::MAX).await.unwrap().events.len(), 1);
}

pub async fn payloads_at_the_sizes_that_an_engine_stores_in_another_way_come_back_whole_and_leave_nothing_behind<
    S: Subject,
>(
    mut bench: Bench<S>,
) {
    let sizes = S::awkward_bytes(&bench.event("orders", ""));
    for bytes in sizes.into_iter().flat_map(|limit| [limit - 1, limit, limit + 1]) {
        let event = bench.event("orders", &"x".repeat(bytes));
        bench.append(event.clone()).await;
        let leased = bench.lease("orders", Which::Due, 1).await;
        let now = bench.clock.now();
        bench.settle(&leased[0], Settlement::RetryAt(retry_at(now))).await;
        bench.reopen().await;
        let leased = bench.lease("orders", Which::Due, 1).await;
        assert_eq!(leased[0].event, event, "a payload of {bytes} bytes");
        bench.settle(&leased[0], Settlement::Delivered).await;
        assert_eq!(bench.store().census().await.unwrap().bytes, 0);
    }
}

pub async fn an_event_with_the_longest_head_and_the_longest_history_is_kept_whole(mut bench: Bench<impl Subject>) {
    let long = |c: char, n| c.to_string().repeat(n);
    let carried = Carried {
        trace_header: Some(long('t', 1_000)),
        client_context: Some(long('c', 3_583)),
        tenant_id: Some(long('i', 256)),
        durable_execution_name: Some(long('d', 64)),
    };
    let keyed = bench.keyed("orders", "{}", &long('k', 255), KeySource::Header);
    let head = Event { carried, ..keyed };
    // Kept in one piece with its history, where an engine has such pieces.
    let small = bench.event("orders", &long('x', 1_400));
    for event in [head, small] {
        bench.append(event.clone()).await;
        let leased = bench.lease("orders", Which::Due, 1).await;
        let now = bench.clock.now();
        let last = LastOutcome {
            at: now,
            status: 400,
            code: long('ü', 2_000),
            message: long('m', 1_024),
            request_id: Some(long('r', 2_000)),
        };
        let burial = Burial { unshippable: Some(long('u', 4_000)), ..burial(now).burial.unwrap() };
        let history = History { last: Some(last), burial: Some(burial), ..burial_free(now) };
        bench.settle(&leased[0], Settlement::Bury(history)).await;
        bench.reopen().await;
        let found = bench.find(event.id).await.unwrap();
        assert_eq!(found.event, event);
        let last = found.history.last.unwrap();
        assert_eq!(last.message.len(), 1_024, "what Lambda's own dead letters keep is kept");
        assert!(last.code.starts_with('ü') && found.history.burial.unwrap().unshippable.unwrap().len() >= 256);
    }
}

fn burial_free(due: UnixMillis) -> History {
    History { attempts: u32::MAX, calls: u32::MAX, throttles: u32::MAX, setbacks: u32::MAX, ..retry_at(due) }
}

pub async fn ten_thousand_lanes_are_kept_and_told_apart(mut bench: Bench<impl Subject>) {
    const LANES: usize = 10_000;
    bench.limits.functions_max = LANES as u64;
    bench.limits.events_max = LANES as u64 + 1;
    bench.reopen().await;
    let names: Vec<_> = (0..LANES).map(|n| format!("function-{n:05}")).collect();
    for some in names.chunks(1_000) {
        let batch = some.iter().map(|name| bench.event(name, "{}")).collect();
        let answers = bench.store().append(batch).await.unwrap();
        assert!(answers.iter().all(|answer| *answer == Appended::Stored));
    }
    assert!(matches!(bench.append(bench.event("one-more", "{}")).await, Appended::Full(Full::Functions { .. })));
    bench.reopen().await;
    let news = bench.store().lanes(0).await.unwrap();
    assert!(news.lanes.iter().map(|lane| lane.function.as_str()).eq(names.iter().map(String::as_str)));
    assert!(news.lanes.iter().all(|lane| lane.ready == 1));
    bench.append(bench.event("function-07777", "{}")).await;
    let news = bench.store().lanes(news.version).await.unwrap();
    assert_eq!(news.lanes.iter().map(|lane| lane.ready).collect::<Vec<_>>(), [2]);
    let lanes = news.lanes.iter().map(|lane| LaneWant {
        lane: lane.lane,
        which: Which::Due,
        events_max: 5,
        bytes_max: u64::MAX,
        spent: None,
    });
    let want = LeaseWant { lanes: lanes.collect(), bytes_max: u64::MAX };
    assert_eq!(bench.store().lease(want, None).await.unwrap().events.len(), 2);
}
