use tokio::task::JoinSet;

use super::*;
use crate::clock::UnixMillis;
use crate::event::testing::event;
use crate::outbox::Limits;
use crate::outbox::embedded::Settings;
use crate::outbox::embedded::memory::{MemoryDisk, MemoryKv};
use crate::outbox::operator::Operator as _;

fn bench() -> (Writer<MemoryKv>, Handle, Clock) {
    let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
    let settings = Settings {
        limits: Limits {
            bytes_max: 1 << 30,
            events_max: 1_000_000,
            functions_max: 100,
            dedupe_window: Duration::from_secs(30),
            sdk_window: Duration::from_secs(30),
        },
        disk_reserve: 0,
        segment_bytes: 1 << 20,
        cache: 0,
    };
    let engine = Engine::open(MemoryDisk::default().open(), settings, clock.clone(), "memory").unwrap();
    let (writer, handle) = Writer::new(engine, clock.clone(), Arc::new(Metrics::new().unwrap()));
    (writer, handle, clock)
}

fn batch(clock: &Clock, events: usize) -> Vec<Event> {
    (0..events).map(|_| event(clock, "f")).collect()
}

/// Two bytes of payload each: by their payloads alone, all of them would fit into one turn and one queue many times over.
#[tokio::test(start_paused = true)]
async fn many_small_events_fill_a_turn_and_the_queue_as_a_few_large_ones_do() {
    let (mut writer, handle, clock) = bench();
    let mut tasks = JoinSet::new();
    for _ in 0..60 {
        let (handle, events) = (handle.clone(), batch(&clock, 1_000));
        tasks.spawn(async move { handle.append(events).await });
    }
    // Each of them runs as far as it can.
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    let waiting = handle.requests.max_capacity() - handle.requests.capacity();
    assert!((16..=32).contains(&waiting), "{waiting} requests of 1 MiB are in the queue");
    let first = writer.requests.recv().await.unwrap();
    let turn = writer.gather(first);
    assert!(turn.bytes <= TURN_BYTES_MAX && turn.appends.len() <= 16, "{} batches in a turn", turn.appends.len());
    assert!(writer.ahead.is_some(), "the one that did not fit is the next turn's first");
    drop(turn);

    // Nobody waits for ever.
    let mut working = JoinSet::new();
    working.spawn(writer.run_async(|| Duration::from_millis(1)));
    drop(handle);
    let answers = tasks.join_all().await;
    let stored = answers.iter().filter(|answer| answer.is_ok()).count();
    // The turn above was thrown away.
    assert!(stored >= 44, "{stored}");
    working.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn what_operators_ask_takes_a_few_commits_of_a_turn_and_leaves_the_rest_to_the_next() {
    let (mut writer, handle, _) = bench();
    let mut tasks = JoinSet::new();
    for n in 0..20 {
        let handle = handle.clone();
        tasks.spawn(async move { handle.pause(&FunctionName::new(&format!("f{n}")), true).await });
    }
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    let first = writer.requests.recv().await.unwrap();
    assert_eq!(writer.gather(first).operations.len(), TURN_COMMITS_MAX);
}
