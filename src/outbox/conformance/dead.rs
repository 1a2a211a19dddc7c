//! Dead letters: listing, coming back, being removed.

use futures_util::FutureExt;

use super::*;
use crate::outbox::dead::{BuriedPage, BuriedWant, Discarded, Filter, Imported, Redriven, Revived};

impl<S: Subject> Bench<S> {
    /// Appends an event and buries it.
    async fn bury(&self, function: &str, payload: &str, redrives: u32) -> Event {
        self.clock.sleep(Duration::from_millis(1)).await;
        let event = Event { redrives, ..self.event(function, payload) };
        self.append(event.clone()).await;
        let leased = self.lease(function, Which::Due, 1).await;
        self.settle(&leased[0], Settlement::Bury(burial(self.clock.now()))).await;
        event
    }

    async fn page(&self, want: BuriedWant) -> BuriedPage {
        self.store().buried(want).await.unwrap()
    }

    async fn revive(&self, ids: Vec<EventId>, redrives_max: u32) -> Vec<Revived> {
        self.store().revive(ids, redrives_max).await.unwrap()
    }

    async fn discard(&self, ids: Vec<EventId>) -> Vec<Discarded> {
        self.store().discard(ids, Keys::Forget).await.unwrap()
    }

    async fn redrive(&self, events: Vec<Redriven>) -> Vec<Appended> {
        self.store().redrive(events).await.unwrap()
    }

    async fn import(&self, letters: Vec<(Event, History)>) -> Vec<Imported> {
        self.store().import(letters).await.unwrap()
    }

    async fn totals(&self) -> (u64, u64) {
        let census = self.store().census().await.unwrap();
        (census.events, census.bytes)
    }
}

fn all(letters_max: usize) -> BuriedWant {
    BuriedWant { letters_max, payloads: true, ..BuriedWant::default() }
}

pub async fn whoever_waits_for_changes_of_what_is_buried_hears_of_each_and_of_nothing_else<S: Subject>(
    mut bench: Bench<S>,
) {
    let mut seen = bench.store().lanes(0).await.unwrap().version;
    let mut told = async |bench: &Bench<S>| {
        let told = bench.store().changed(seen, Changes::Buried).now_or_never().is_some();
        seen = bench.store().lanes(0).await.unwrap().version;
        told
    };
    bench.append(bench.event("orders", "{}")).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::RetryAt(retry_at(bench.clock.now()))).await;
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Delivered).await;
    assert!(!told(&bench).await, "nothing was buried");

    let letter = bench.bury("orders", "{}", 0).await;
    assert!(told(&bench).await, "buried");
    for settlement in [Settlement::RetryAt(burial(bench.clock.now())), Settlement::Release] {
        let leased = bench.lease("orders", Which::Buried, 1).await;
        bench.settle(&leased[0], settlement.clone()).await;
        assert!(told(&bench).await, "{settlement:?}");
    }
    bench.revive(vec![letter.id], 9).await;
    assert!(told(&bench).await, "brought back");
    bench.append(bench.event("orders", "{}")).await;
    assert!(!told(&bench).await, "it is Ready");

    let letter = bench.bury("invoices", "{}", 0).await;
    assert!(told(&bench).await, "another one");
    bench.discard(vec![letter.id]).await;
    assert!(told(&bench).await, "purged");
    bench.bury("invoices", "{}", 0).await;
    bench.reopen().await;
    told(&bench).await; // versions begin anew
    let leased = bench.lease("invoices", Which::Buried, 1).await;
    bench.settle(&leased[0], Settlement::Shipped).await;
    assert!(told(&bench).await, "shipped");
}

pub async fn dead_letters_are_listed_page_by_page_each_once(bench: Bench<impl Subject>) {
    let mut buried = Vec::new();
    for n in 0..7 {
        buried.push(bench.bury(if n % 2 == 0 { "orders" } else { "invoices" }, &n.to_string(), 0).await);
    }
    bench.append(bench.event("orders", "alive")).await;
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = bench.page(BuriedWant { after, ..all(2) }).await;
        assert!(page.letters.len() <= 2);
        seen.extend(page.letters.into_iter().map(|letter| letter.event));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    seen.sort_by_key(|event| event.id);
    assert_eq!(seen, buried);
}

pub async fn a_page_without_payloads_tells_only_their_size(bench: Bench<impl Subject>) {
    bench.bury("orders", &"x".repeat(9_000), 0).await;
    let filter = Filter { function: Some("ord*".parse().unwrap()), ..Filter::default() };
    let page = bench.page(BuriedWant { filter, letters_max: 5, ..BuriedWant::default() }).await;
    assert_eq!((page.letters[0].event.payload.len(), page.letters[0].payload_bytes), (0, 9_000));
    let filter = Filter { function: Some("invoices".parse().unwrap()), ..Filter::default() };
    assert!(bench.page(BuriedWant { filter, ..all(5) }).await.letters.is_empty());
}

pub async fn a_revived_letter_is_a_new_event_of_now_and_the_dead_one_is_gone_also_after_reopening(
    mut bench: Bench<impl Subject>,
) {
    let dead = bench.bury("orders", &"x".repeat(9_000), 0).await;
    bench.clock.sleep(Duration::from_secs(3_600)).await;
    let revived = bench.revive(vec![dead.id, dead.id], 3).await;
    let [Revived::Stored { id }, Revived::NotFound] = revived[..] else { panic!("{revived:?}") };
    bench.reopen().await;
    assert!(bench.find(dead.id).await.is_none());
    let leased = bench.lease("orders", Which::Due, 5).await;
    let now = bench.clock.now();
    let expected = Event { id, accepted_at: now, redrives: 1, ..dead };
    assert_eq!(leased.iter().map(|leased| &leased.event).collect::<Vec<_>>(), [&expected]);
    assert_eq!(leased[0].history.attempts, 0);
    bench.settle(&leased[0], Settlement::Delivered).await;
    assert_eq!(bench.totals().await, (0, 0));
}

pub async fn what_is_being_shipped_or_came_back_too_often_stays_dead(bench: Bench<impl Subject>) {
    let shipping = bench.bury("orders", "1", 0).await;
    assert_eq!(bench.lease("orders", Which::Buried, 1).await.len(), 1);
    let often = bench.bury("orders", "2", 3).await;
    let unknown = bench.event("orders", "3").id;
    let ids = vec![shipping.id, often.id, unknown];
    let answers = bench.revive(ids, 3).await;
    assert_eq!(answers, [Revived::Leased, Revived::Ceiling { redrives: 3 }, Revived::NotFound]);
    assert_eq!(bench.page(all(5)).await.letters.len(), 2);
    let answers = bench.discard(vec![shipping.id, often.id, often.id]).await;
    assert_eq!(answers, [Discarded::Leased, Discarded::Done, Discarded::NotFound]);
}

pub async fn a_letter_from_a_queue_is_no_repeat_of_its_original_but_of_its_own_copies<S: Subject>(mut bench: Bench<S>) {
    let original = bench.keyed("orders", "{}", "k1", KeySource::Header);
    bench.append(original.clone()).await;
    let redriven = |bench: &Bench<S>, redrives| {
        let event = Event { redrives, ..bench.keyed("orders", "{}", "k1", KeySource::Header) };
        vec![Redriven { event, origin: original.id.to_string() }]
    };
    let first = redriven(&bench, 1);
    let id = first[0].event.id;
    assert_eq!(bench.redrive(first).await, [Appended::Stored]);
    bench.reopen().await;
    assert_eq!(bench.redrive(redriven(&bench, 1)).await, [Appended::Repeat { first: id }]);
    let again = redriven(&bench, 2);
    let second = again[0].event.id;
    assert_eq!(bench.redrive(again).await, [Appended::Stored]);
    let mut other = redriven(&bench, 2);
    other[0].event.payload = "other".into();
    assert_eq!(bench.redrive(other).await, [Appended::Conflict { first: second }]);
    let repeat = bench.append(bench.keyed("orders", "{}", "k1", KeySource::Header)).await;
    assert_eq!(repeat, Appended::Repeat { first: original.id }, "the client's own key still means the original");

    bench.clock.sleep(bench.limits.dedupe_window).await;
    let swept = async |bench: &Bench<S>| {
        bench.sweep().await;
        bench.store().census().await.unwrap().keys
    };
    assert_eq!(swept(&bench).await, 3, "all three events are still stored");
    for leased in bench.lease("orders", Which::Due, 5).await {
        bench.settle(&leased, Settlement::Delivered).await;
    }
    bench.clock.sleep(bench.limits.dedupe_window).await;
    assert_eq!(swept(&bench).await, 0, "redriven keys are swept too");
}

pub async fn exported_letters_come_in_once_under_their_own_ids(mut bench: Bench<impl Subject>) {
    let dead = bench.bury("orders", &"x".repeat(5_000), 1).await;
    let exported = bench.page(all(1)).await.letters.remove(0);
    let before = bench.totals().await;
    bench.discard(vec![dead.id]).await;
    let letter = (exported.event, exported.history);
    let answers = bench.import(vec![letter.clone(), letter.clone()]).await;
    assert_eq!(answers, [Imported::Stored, Imported::Repeat]);
    bench.reopen().await;
    assert_eq!(bench.import(vec![letter]).await, [Imported::Repeat]);
    assert_eq!(bench.totals().await, before);
    let leased = bench.lease("orders", Which::Buried, 1).await;
    assert_eq!(leased[0].event, dead);
}

pub async fn letters_that_do_not_fit_are_refused(mut bench: Bench<impl Subject>) {
    bench.limits.bytes_max = 2_000;
    bench.reopen().await;
    let event = bench.event("orders", &"x".repeat(3_000));
    let redriven = vec![Redriven { event: event.clone(), origin: "o".into() }];
    assert!(matches!(bench.redrive(redriven).await[..], [Appended::Full(Full::Bytes { .. })]));
    let letter = (event, burial(bench.clock.now()));
    assert!(matches!(bench.import(vec![letter]).await[..], [Imported::Full(Full::Bytes { .. })]));
    assert_eq!(bench.totals().await, (0, 0));
}
