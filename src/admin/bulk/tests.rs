//! Bulk jobs on the real engine with a store in memory and virtual time.

use std::sync::Arc;

use super::*;
use crate::admin::api::{BulkAction, BulkFilter};
use crate::admin::{Readiness, Settings, problems};
use crate::clock::{Clock, UnixMillis};
use crate::deadletter::admit;
use crate::event::name::Home;
use crate::event::testing::event;
use crate::event::{Event, EventId};
use crate::metrics::Metrics;
use crate::outbox::embedded::engine::Engine;
use crate::outbox::embedded::memory::MemoryDisk;
use crate::outbox::embedded::writer::{Handle, Writer};
use crate::outbox::{
    Burial, BuryReason, History, LaneWant, LastOutcome, LeaseWant, Outbox as _, Settlement, Which, embedded,
};
use crate::past::Past;

/// A store, the jobs on it, and the work of the store.
struct Bench {
    store: Handle,
    bulk: Bulk<Handle>,
    clock: Clock,
    stop: CancellationToken,
}

impl Bench {
    fn new() -> (Self, impl Future<Output = ()>) {
        let (clock, metrics) = (Clock::seeded(UnixMillis(1_790_000_000_000), 1), Arc::new(Metrics::new().unwrap()));
        let limits = crate::outbox::Limits {
            bytes_max: 64 << 20,
            events_max: 10_000,
            functions_max: 100,
            dedupe_window: Duration::from_secs(60),
            sdk_window: Duration::from_secs(60),
        };
        let stored = embedded::Settings { limits, disk_reserve: 0, segment_bytes: 1 << 20, cache: 1 << 20 };
        let engine = Engine::open(MemoryDisk::default().open(), stored, clock.clone(), "memory").unwrap();
        let (writer, store) = Writer::new(engine, clock.clone(), metrics.clone());
        let stop = CancellationToken::new();
        let past = Past::new(10_000, stop.clone());
        let admin = Admin::new(Readiness::new(&metrics), metrics.clone(), clock.clone()).noting(past);
        admin.set_outbox(Some(store.clone()));
        admin.set_settings(Settings {
            rules: admit::Rules { home: Home::default(), redrives_max: 3 },
            limits: problems::Limits { bytes_max: 64 << 20, events_max: 10_000, disk_reserve: 0 },
            functions_max: 100,
            queues: api::Queues::default(),
        });
        let actions = Actions::new(clock.clone(), metrics);
        let bulk = Bulk::new(admin, actions, TaskTracker::new(), stop.clone());
        (Self { store, bulk, clock, stop }, writer.run_async(|| Duration::from_millis(1)))
    }

    async fn append(&self, function: &str, events: usize) -> Vec<EventId> {
        let batch: Vec<Event> = (0..events).map(|_| event(&self.clock, function)).collect();
        let ids = batch.iter().map(|event| event.id).collect();
        self.store.append(batch).await.unwrap();
        ids
    }

    /// Appends events and buries them with this code.
    async fn bury(&self, function: &str, events: usize, code: &str) {
        self.append(function, events).await;
        let lanes = self.store.lanes(0).await.unwrap().lanes;
        let lane = lanes.iter().find(|lane| lane.function.as_str() == function).unwrap().lane;
        let which = Which::Due;
        let want = LaneWant { lane, which, events_max: events, bytes_max: u64::MAX, spent: None };
        let leased = self.store.lease(LeaseWant { lanes: vec![want], bytes_max: u64::MAX }, None).await.unwrap().events;
        assert_eq!(leased.len(), events);
        let now = self.clock.now();
        let last =
            LastOutcome { at: now, status: 400, code: code.to_owned(), message: "no".to_owned(), request_id: None };
        let burial = Burial { reason: BuryReason::Refused, at: now, unshippable: None };
        let history = History { calls: 1, due: now, last: Some(last), burial: Some(burial), ..History::default() };
        let done = leased.into_iter().map(|leased| (leased.lease, Settlement::Bury(history.clone()))).collect();
        self.store.settle(done).await.unwrap();
        self.clock.sleep(Duration::from_secs(1)).await;
    }

    fn begin(&self, request: BulkRequest) -> Result<watch::Receiver<BulkJob>, Problem> {
        let wanted = Wanted::read(&request, 3, &self.clock)?;
        self.bulk.begin(request, wanted, "oncall".to_owned())
    }

    async fn run(&self, request: BulkRequest) -> BulkJob {
        let mut view = self.begin(request).unwrap_or_else(|problem| panic!("{}", problem.message));
        view.wait_for(|job| job.state.is_over()).await.unwrap().clone()
    }

    async fn stored(&self) -> u64 {
        self.store.census().await.unwrap().events
    }
}

fn request(action: BulkAction, function: &str) -> BulkRequest {
    BulkRequest {
        action,
        filter: BulkFilter { function: Some(function.to_owned()), ..BulkFilter::default() },
        limit: None,
        rate: None,
        expect: None,
        dry_run: false,
        keep_keys: false,
    }
}

async fn with(story: impl AsyncFnOnce(Bench)) {
    let (bench, work) = Bench::new();
    tokio::select! {
        () = story(bench) => {}
        () = work => panic!("the outbox ended"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_and_changes_nothing_and_what_fits_is_done_to_all_of_it() {
    with(async |bench: Bench| {
        let ids = bench.append("orders", 1_204).await;
        bench.append("mails", 3).await;
        let counted = bench.run(BulkRequest { dry_run: true, ..request(BulkAction::Cancel, "ord*") }).await;
        assert_eq!((counted.state, counted.matched, counted.done), (BulkState::Done, Some(1_204), 0));
        assert!(counted.oldest_at.is_some());
        bench.clock.sleep(Duration::from_secs(1)).await;
        let cancelled = bench.run(BulkRequest { expect: Some(1_204), ..request(BulkAction::Cancel, "ord*") }).await;
        assert_eq!((cancelled.state, cancelled.done), (BulkState::Done, 1_204));
        assert_eq!(cancelled.results, [("cancelled".to_owned(), 1_204)].into());
        assert_eq!(bench.stored().await, 3);
        let end = bench.bulk.admin.past.end_of(ids[7]).unwrap();
        assert_eq!(end.how, crate::past::How::Cancelled { by: "oncall".to_owned() });
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_and_a_rate_hold_and_a_stopped_job_keeps_what_it_did() {
    with(async |bench: Bench| {
        bench.append("orders", 1_000).await;
        bench.clock.sleep(Duration::from_secs(1)).await;
        let limit = std::num::NonZero::new(100);
        let began = bench.clock.now();
        let rate = Some("50/s".to_owned());
        let job = bench.run(BulkRequest { limit, rate, ..request(BulkAction::Cancel, "orders") }).await;
        assert_eq!((job.matched, job.done, bench.stored().await), (Some(1_000), 100, 900));
        let took = bench.clock.now().since(began);
        assert!((1_900..2_500).contains(&took.as_millis()), "{took:?}");

        let rate = Some("10/s".to_owned());
        let mut view = bench.begin(BulkRequest { rate, ..request(BulkAction::Cancel, "orders") }).ok().unwrap();
        view.wait_for(|job| job.done >= 20).await.unwrap();
        let second = bench.begin(request(BulkAction::Cancel, "orders"));
        assert_eq!(second.err().map(|problem| problem.status), Some(StatusCode::CONFLICT), "one at a time");
        assert!(bench.begin(BulkRequest { dry_run: true, ..request(BulkAction::Cancel, "orders") }).is_ok());
        let id = view.borrow().id.clone();
        bench.bulk.find(&id).ok().unwrap().1.cancel();
        let job = view.wait_for(|job| job.state.is_over()).await.unwrap().clone();
        assert_eq!(job.state, BulkState::Stopped);
        assert!(job.done < 100 && bench.stored().await == 900 - job.done, "{job:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_expects_fewer_is_refused_before_anything_is_done() {
    with(async |bench: Bench| {
        bench.append("orders", 100).await;
        bench.clock.sleep(Duration::from_secs(1)).await;
        let expecting = |expect: u32| BulkRequest { expect: Some(expect), ..request(BulkAction::Cancel, "orders") };
        let refused = bench.run(expecting(90)).await;
        assert_eq!((refused.state, refused.done, bench.stored().await), (BulkState::Refused, 0, 100));
        assert!(refused.message.unwrap().contains("100 events fit now"));
        assert_eq!(bench.run(expecting(91)).await.done, 100, "a tenth more is no surprise");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_redriven_and_purged_by_code_and_a_job_never_meets_its_own_effects() {
    with(async |bench: Bench| {
        bench.bury("orders", 30, "Boom").await;
        bench.bury("orders", 20, "Other").await;
        let of = |action, code: &str| {
            let filter = BulkFilter { code: Some(code.to_owned()), ..BulkFilter::default() };
            BulkRequest { filter, ..request(action, "orders") }
        };
        let redriven = bench.run(of(BulkAction::Redrive, "Boom")).await;
        assert_eq!((redriven.state, redriven.matched, redriven.done), (BulkState::Done, Some(30), 30));
        let purged = bench.run(of(BulkAction::Purge, "Other")).await;
        assert_eq!((purged.done, purged.results), (20, [("purged".to_owned(), 20)].into()));
        assert_eq!(bench.stored().await, 30, "the redriven ones");
        let again = bench.run(request(BulkAction::Redrive, "orders")).await;
        assert_eq!((again.matched, again.done), (Some(0), 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn attempt_brings_forward_what_waits_and_leaves_what_is_scheduled_unless_asked() {
    with(async |bench: Bench| {
        let in_an_hour = Some(bench.clock.now().plus(Duration::from_secs(3_600)));
        let batch = (0..5).map(|_| Event { deliver_at: in_an_hour, ..event(&bench.clock, "orders") }).collect();
        bench.store.append(batch).await.unwrap();
        bench.clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(bench.run(request(BulkAction::Attempt, "orders")).await.matched, Some(0));
        let filter = BulkFilter { state: Some("scheduled".to_owned()), ..BulkFilter::default() };
        let job = bench.run(BulkRequest { filter, ..request(BulkAction::Attempt, "orders") }).await;
        assert_eq!((job.done, job.results), (5, [("due".to_owned(), 5)].into()));
        let due = bench.store.lanes(0).await.unwrap().lanes[0].next_due.unwrap();
        assert!(due <= bench.clock.now());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn fifty_jobs_are_kept_and_a_stop_of_the_daemon_ends_those_that_run() {
    with(async |bench: Bench| {
        bench.append("orders", 10).await;
        bench.clock.sleep(Duration::from_secs(1)).await;
        for _ in 0..KEPT_MAX + 3 {
            bench.run(BulkRequest { dry_run: true, ..request(BulkAction::Cancel, "orders") }).await;
        }
        let kept: Vec<String> = bench.bulk.jobs().kept.iter().map(|job| job.view.borrow().id.clone()).collect();
        assert_eq!((kept.len(), kept[0].as_str(), kept[KEPT_MAX - 1].as_str()), (KEPT_MAX, "4", "53"));
        assert!(bench.bulk.find("1").is_err() && bench.bulk.find("x").is_err() && bench.bulk.find("4").is_ok());
        let rate = Some("1/s".to_owned());
        let mut view = bench.begin(BulkRequest { rate, ..request(BulkAction::Cancel, "orders") }).ok().unwrap();
        view.wait_for(|job| job.done > 0).await.unwrap();
        bench.stop.cancel();
        let job = view.wait_for(|job| job.state.is_over()).await.unwrap().clone();
        assert_eq!(job.state, BulkState::Stopped);
    })
    .await;
}

#[test]
fn a_filter_that_means_nothing_for_its_action_is_refused() {
    let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
    let read = |action, filter: BulkFilter, rate: Option<&str>| {
        let request = BulkRequest { filter, rate: rate.map(str::to_owned), ..request(action, "orders") };
        Wanted::read(&request, 3, &clock).map_err(|problem| problem.message)
    };
    let text = || Some("x".to_owned());
    for (action, filter, why) in [
        (
            BulkAction::Cancel,
            BulkFilter { reason: text(), ..BulkFilter::default() },
            "filter.reason is for dead letters",
        ),
        (BulkAction::Attempt, BulkFilter { code: text(), ..BulkFilter::default() }, "filter.code"),
        (BulkAction::Purge, BulkFilter { state: text(), ..BulkFilter::default() }, "filter.state is for waiting"),
        (BulkAction::Redrive, BulkFilter { attempts_min: Some(1), ..BulkFilter::default() }, "filter.attempts_min"),
        (BulkAction::Redrive, BulkFilter { reason: text(), ..BulkFilter::default() }, "is not a reason"),
        (BulkAction::Cancel, BulkFilter { state: Some("buried".into()), ..BulkFilter::default() }, "not a state here"),
        (BulkAction::Cancel, BulkFilter { since: text(), ..BulkFilter::default() }, "since"),
    ] {
        let said = read(action, filter.clone(), None).unwrap_err();
        assert!(said.contains(why), "{action:?} {filter:?}: {said}");
    }
    for rate in ["", "50", "0/s", "-1/s", "1.5/s", "9999999/s", "50/m", "050/s", "+5/s", "/s"] {
        assert!(read(BulkAction::Cancel, BulkFilter::default(), Some(rate)).is_err(), "{rate}");
    }
    let wanted = read(BulkAction::Cancel, BulkFilter::default(), Some("50/s")).unwrap();
    assert_eq!((wanted.rate, wanted.limit, wanted.is_surprising(u64::MAX)), (Some(50.0), u64::MAX, false));
}
