//! Events that come from another store, and events that leave for one.

use super::*;
use crate::outbox::handoff::{Adopted, Handed, place_of};
use crate::outbox::operator::Page;

const HOUR: Duration = Duration::from_secs(3_600);

impl<S: Subject> Bench<S> {
    async fn adopt(&self, event: &Event, history: History) -> Adopted {
        self.store().adopt(vec![Handed { event: event.clone(), history, paused: false }]).await.unwrap().remove(0)
    }

    /// Hands over all events in this state.
    async fn hand_over(&self, place: Place) -> Vec<Leased> {
        let leased = self.lease("orders", Which::AtRest { place, after: None }, 1_000).await;
        for leased in &leased {
            self.settle(leased, Settlement::HandedOver).await;
        }
        leased
    }

    async fn again(&self, key: &str, payload: &str) -> Appended {
        self.append(self.keyed("orders", payload, key, KeySource::Header)).await
    }

    async fn keys_after_a_sweep(&self) -> u64 {
        self.sweep().await;
        self.store().census().await.unwrap().keys
    }
}

fn fresh(now: UnixMillis) -> History {
    History { due: now, ..History::default() }
}

pub async fn an_adopted_event_is_as_it_was_also_after_reopening(mut bench: Bench<impl Subject>) {
    let now = bench.clock.now();
    let later = now.plus(HOUR);
    let scheduled = Event { deliver_at: Some(later), expires_at: Some(later.plus(HOUR)), ..bench.event("orders", "3") };
    let large = Event { carried: Carried::default(), ..bench.event("orders", &"x".repeat(100_000)) };
    let handed = [
        (bench.event("orders", "1"), fresh(now), Place::Ready),
        (large, retry_at(later), Place::Waiting),
        (scheduled, fresh(later), Place::Scheduled),
        (bench.event("orders", "4"), burial(later), Place::Buried),
    ];
    let all = handed.iter().map(|(event, history, _)| Handed {
        event: event.clone(),
        history: history.clone(),
        paused: false,
    });
    assert_eq!(bench.store().adopt(all.collect()).await.unwrap(), vec![Adopted::Stored; 4]);
    bench.reopen().await;
    for (event, history, place) in &handed {
        let found = bench.find(event.id).await.unwrap();
        assert_eq!((&found.event, &found.history, found.place), (event, history, *place));
        assert_eq!(place_of(event, history), *place);
    }
    let view = bench.view("orders").await;
    assert_eq!((view.ready, view.next_due, view.buried), (1, Some(later), 1));
    assert_eq!(view.next_expiry, Some(later.plus(HOUR)));
    assert_eq!(bench.lease("orders", Which::Due, 9).await.len(), 1, "the others keep their time");
    bench.clock.sleep(HOUR).await;
    let leased = bench.lease("orders", Which::Due, 9).await;
    assert_eq!(leased.iter().map(|leased| leased.history.attempts).sum::<u32>(), 1, "attempts are not forgotten");
    assert_eq!(leased.len(), 2);
    assert_eq!(bench.lease("orders", Which::Buried, 9).await.len(), 1);
}

pub async fn an_event_is_adopted_once_however_often_it_is_handed_over(mut bench: Bench<impl Subject>) {
    let event = bench.event("orders", "{}");
    let handed = Handed { event: event.clone(), history: fresh(bench.clock.now()), paused: false };
    let adopted = bench.store().adopt(vec![handed.clone(), handed.clone()]).await.unwrap();
    assert_eq!(adopted, [Adopted::Stored, Adopted::Repeat], "within one batch");
    bench.reopen().await;
    assert_eq!(bench.adopt(&event, handed.history.clone()).await, Adopted::Repeat);
    let leased = bench.lease("orders", Which::Due, 9).await;
    assert_eq!(leased.len(), 1);
    assert_eq!(bench.adopt(&event, handed.history.clone()).await, Adopted::Repeat, "it is being attempted");
    bench.settle(&leased[0], Settlement::Delivered).await;
    bench.clock.sleep(HOUR - Duration::from_secs(1)).await;
    assert_eq!(bench.keys_after_a_sweep().await, 1);
    bench.reopen().await;
    assert_eq!(bench.adopt(&event, handed.history.clone()).await, Adopted::Repeat, "it was delivered");
    bench.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.keys_after_a_sweep().await, 0);
    assert_eq!(bench.adopt(&event, handed.history).await, Adopted::Stored, "its window is over");
    let accepted = bench.event("orders", "{}");
    bench.append(accepted.clone()).await;
    assert_eq!(bench.adopt(&accepted, History::default()).await, Adopted::Repeat, "it was accepted here");
}

pub async fn an_adoption_is_remembered_as_long_as_its_event_is_stored(bench: Bench<impl Subject>) {
    let event = bench.event("orders", "{}");
    bench.adopt(&event, fresh(bench.clock.now())).await;
    for _ in 0..3 {
        bench.clock.sleep(HOUR).await;
        assert_eq!(bench.keys_after_a_sweep().await, 1);
    }
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Delivered).await;
    assert_eq!(bench.adopt(&event, History::default()).await, Adopted::Repeat);
}

pub async fn an_event_that_was_handed_on_may_come_back(mut bench: Bench<impl Subject>) {
    let event = bench.keyed("orders", "{}", "k", KeySource::Header);
    for _ in 0..3 {
        assert_eq!(bench.adopt(&event, fresh(bench.clock.now())).await, Adopted::Stored);
        let handed = bench.hand_over(Place::Ready).await;
        assert_eq!(handed.iter().map(|leased| leased.event.id).collect::<Vec<_>>(), [event.id]);
        bench.reopen().await;
        assert!(bench.find(event.id).await.is_none());
        assert_eq!(bench.again("k", "{}").await, Appended::Repeat { first: event.id }, "its key stays");
    }
    assert!(!bench.view("orders").await.proven, "Lambda has not taken it");
    for (keys, expected) in [(Keys::Forget, Adopted::Stored), (Keys::Keep, Adopted::Repeat)] {
        bench.adopt(&event, fresh(bench.clock.now())).await;
        assert_eq!(bench.store().cancel(event.id, keys).await.unwrap(), Touched::Done);
        assert_eq!(bench.adopt(&event, fresh(bench.clock.now())).await, expected, "{keys:?}");
    }
}

pub async fn an_adopted_key_is_known_unless_another_event_has_it(bench: Bench<impl Subject>) {
    let now = bench.clock.now();
    let adopted = bench.keyed("orders", "1", "k", KeySource::Header);
    assert_eq!(bench.adopt(&adopted, fresh(now)).await, Adopted::Stored);
    assert_eq!(bench.again("k", "1").await, Appended::Repeat { first: adopted.id });
    assert_eq!(bench.again("k", "2").await, Appended::Conflict { first: adopted.id });

    let other = bench.keyed("orders", "2", "k", KeySource::Header);
    assert_eq!(bench.adopt(&other, fresh(now)).await, Adopted::Stored, "both were accepted");
    assert_eq!(bench.again("k", "1").await, Appended::Repeat { first: adopted.id }, "and the key stays where it was");

    let same = bench.keyed("orders", "1", "k", KeySource::Header);
    assert_eq!(bench.adopt(&same, retry_at(now)).await, Adopted::KnownKey { first: adopted.id });
    assert!(bench.find(same.id).await.is_none());
    let redriven = Event { redrives: 1, ..bench.keyed("orders", "1", "k", KeySource::Header) };
    assert_eq!(bench.adopt(&redriven, fresh(now)).await, Adopted::Stored, "an operator wanted it again");
    let letter = bench.keyed("orders", "1", "k", KeySource::Header);
    assert_eq!(bench.adopt(&letter, burial(now)).await, Adopted::Stored, "a dead letter is no repeat");
    for minted in [bench.event("orders", "1"), bench.event("orders", "1")] {
        assert_eq!(bench.adopt(&minted, fresh(now)).await, Adopted::Stored);
    }
}

pub async fn a_key_whose_event_has_left_drops_no_other_event(bench: Bench<impl Subject>) {
    let now = bench.clock.now();
    for settlement in [Settlement::HandedOver, Settlement::Delivered] {
        let first = bench.keyed("orders", "{}", "k", KeySource::Header);
        bench.adopt(&first, fresh(now)).await;
        for leased in bench.lease("orders", Which::AtRest { place: Place::Ready, after: None }, 9).await {
            bench.settle(&leased, settlement.clone()).await;
        }
        // Whoever has the first event may have left it to this one, which has the same key.
        let other = bench.keyed("orders", "{}", "k", KeySource::Header);
        assert_eq!(bench.adopt(&other, fresh(now)).await, Adopted::Stored, "{settlement:?}");
        bench.store().cancel(other.id, Keys::Forget).await.unwrap();
    }
}

pub async fn the_window_of_an_adopted_key_counts_from_its_acceptance(bench: Bench<impl Subject>) {
    let event = bench.keyed("orders", "{}", "k", KeySource::Header);
    bench.clock.sleep(HOUR / 16).await;
    assert_eq!(bench.adopt(&event, fresh(bench.clock.now())).await, Adopted::Stored);
    let leased = bench.lease("orders", Which::Due, 1).await;
    bench.settle(&leased[0], Settlement::Delivered).await;
    bench.clock.sleep(HOUR - HOUR / 16 - Duration::from_secs(1)).await;
    assert_eq!(bench.again("k", "{}").await, Appended::Repeat { first: event.id });
    bench.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.again("k", "{}").await, Appended::Stored);
}

pub async fn what_there_is_no_room_for_is_not_adopted(mut bench: Bench<impl Subject>) {
    bench.limits.events_max = 2;
    bench.reopen().await;
    let handed = (0..3).map(|n| Handed {
        event: bench.keyed("orders", "{}", &n.to_string(), KeySource::Header),
        history: History::default(),
        paused: false,
    });
    let handed: Vec<_> = handed.collect();
    let adopted = bench.store().adopt(handed.clone()).await.unwrap();
    assert!(
        matches!(adopted[..], [Adopted::Stored, Adopted::Stored, Adopted::Full(Full::Events { .. })]),
        "{adopted:?}"
    );
    let leased = bench.lease("orders", Which::Due, 9).await;
    assert_eq!(leased.len(), 2);
    bench.settle(&leased[0], Settlement::Delivered).await;
    assert_eq!(bench.adopt(&handed[2].event, History::default()).await, Adopted::Stored, "neither id nor key is known");
}

pub async fn an_event_of_a_paused_function_pauses_it_before_it_can_be_attempted(mut bench: Bench<impl Subject>) {
    let now = bench.clock.now();
    bench.append(bench.event("orders", "{}")).await;
    let paused = |event: &Event, history| Handed { event: event.clone(), history, paused: true };
    let (letter, first, again) = (bench.event("orders", "1"), bench.event("orders", "2"), bench.event("orders", "3"));
    bench.store().adopt(vec![paused(&letter, burial(now))]).await.unwrap();
    assert!(!bench.view("orders").await.paused, "a dead letter is not attempted");
    bench.store().adopt(vec![paused(&first, fresh(now))]).await.unwrap();
    assert!(bench.view("orders").await.paused);
    assert!(bench.lease("orders", Which::Due, 9).await.is_empty());
    bench.reopen().await;
    assert!(bench.view("orders").await.paused, "it is on stable storage with the event");
    bench.store().pause(&first.function.name, false).await.unwrap();
    assert_eq!(bench.store().adopt(vec![paused(&first, fresh(now))]).await.unwrap(), [Adopted::Repeat]);
    assert!(!bench.view("orders").await.paused, "a repeat changes nothing");
    bench.adopt(&again, fresh(now)).await;
    assert_eq!(bench.lease("orders", Which::Due, 9).await.len(), 3);
}

pub async fn events_at_rest_are_leased_by_their_state_from_a_position(bench: Bench<impl Subject>) {
    let mut ids = Vec::new();
    for n in 0..6 {
        bench.clock.sleep(Duration::from_millis(1)).await;
        let event = bench.event("orders", &n.to_string());
        ids.push(event.id);
        let late = bench.clock.now().plus(HOUR);
        let history = if n < 3 { fresh(late) } else { burial(late) };
        bench.adopt(&event, history).await;
    }
    bench.store().pause(&FunctionName::new("orders"), true).await.unwrap();
    let lease = async |place, after, max| {
        let leased = bench.lease("orders", Which::AtRest { place, after }, max).await;
        leased.into_iter().map(|leased| leased.lease.id).collect::<Vec<_>>()
    };
    assert_eq!(lease(Place::Waiting, None, 9).await, []);
    assert_eq!(lease(Place::Ready, None, 1).await, ids[..1]);
    assert_eq!(lease(Place::Ready, Some(ids[1]), 9).await, ids[2..3], "after the position");
    assert_eq!(lease(Place::Ready, None, 9).await, ids[1..2], "and what is leased stays so");
    assert_eq!(lease(Place::Buried, Some(ids[3]), 9).await, ids[4..], "not to be shipped yet");
    let Page { events, .. } = bench.store().list(ListWant { max: 9, ..ListWant::default() }).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.leased).count(), 5);
}
