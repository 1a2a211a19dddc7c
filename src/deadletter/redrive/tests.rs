use std::sync::Mutex;

use super::*;
use crate::deadletter::letter::{Letter, Received};

/// A queue in memory. A received message is hidden until it is released, or until its receiver crashes.
#[derive(Default)]
struct FakeQueue {
    messages: Mutex<BTreeMap<String, (Received, bool)>>,
    receives: Mutex<u32>,
    /// Troubles that the next receives and deletes return before they work.
    receive_troubles: Mutex<Vec<Trouble>>,
    delete_troubles: Mutex<Vec<Trouble>>,
    /// How long a call takes.
    latency: Duration,
    /// The queue is one message group: while one of its messages is hidden, it gives no other.
    fifo: bool,
}

impl FakeQueue {
    fn of(count: usize) -> Self {
        let queue = Self::default();
        for n in 0..count {
            queue.put(&format!("{n:05}"), lambdas_message(n));
        }
        queue
    }

    fn put(&self, id: &str, message: Received) {
        let message = Received { message_id: id.into(), receipt: id.into(), ..message };
        self.messages.lock().unwrap().insert(id.into(), (message, false));
    }

    fn show_all(&self) {
        self.messages.lock().unwrap().values_mut().for_each(|(_, hidden)| *hidden = false);
    }

    fn len(&self) -> usize {
        self.messages.lock().unwrap().len()
    }

    fn hidden(&self) -> usize {
        self.messages.lock().unwrap().values().filter(|(_, hidden)| *hidden).count()
    }
}

fn lambdas_message(n: usize) -> Received {
    let attributes = [("RequestID", format!("r-{n}")), ("ErrorCode", "200".to_owned())];
    Received {
        body: format!("{{\"id\":{n}}}"),
        attributes: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Received::default()
    }
}

impl Queue for FakeQueue {
    async fn receive(&self, messages_max: usize) -> Result<Vec<Received>, Trouble> {
        assert!((1..=10).contains(&messages_max), "SQS gives 1 to 10, not {messages_max}");
        *self.receives.lock().unwrap() += 1;
        tokio::time::sleep(self.latency).await;
        if let Some(trouble) = self.receive_troubles.lock().unwrap().pop() {
            return Err(trouble);
        }
        let mut messages = self.messages.lock().unwrap();
        if self.fifo && messages.values().any(|(_, hidden)| *hidden) {
            return Ok(Vec::new());
        }
        let visible = messages.values_mut().filter(|(_, hidden)| !hidden).take(messages_max);
        Ok(visible
            .map(|(message, hidden)| {
                *hidden = true;
                message.clone()
            })
            .collect())
    }

    async fn delete(&self, receipts: &[String]) -> Vec<Result<(), Trouble>> {
        assert!((1..=10).contains(&receipts.len()), "SQS deletes 1 to 10, not {}", receipts.len());
        tokio::time::sleep(self.latency).await;
        if let Some(trouble) = self.delete_troubles.lock().unwrap().pop() {
            return vec![Err(trouble); receipts.len()];
        }
        let mut messages = self.messages.lock().unwrap();
        receipts
            .iter()
            .map(|receipt| {
                messages.remove(receipt);
                Ok(())
            })
            .collect()
    }

    async fn release(&self, receipts: &[String]) {
        assert!((1..=10).contains(&receipts.len()), "SQS releases 1 to 10, not {}", receipts.len());
        let mut messages = self.messages.lock().unwrap();
        for receipt in receipts {
            messages.get_mut(receipt).unwrap().1 = false;
        }
    }
}

/// A destination that remembers origins, as the store does.
#[derive(Default)]
struct FakeDestination {
    accepted: Mutex<BTreeMap<String, Letter>>,
    /// Answers to give instead, by origin. A busy answer is given once.
    instead: Mutex<BTreeMap<String, Acceptance>>,
    troubles: Mutex<Vec<Trouble>>,
    batches: Mutex<Vec<usize>>,
    /// Origins, in the order of their acceptance.
    order: Mutex<Vec<String>>,
}

impl Destination for FakeDestination {
    async fn accept(&self, letters: &[Letter]) -> Result<Vec<Acceptance>, Trouble> {
        if let Some(trouble) = self.troubles.lock().unwrap().pop() {
            return Err(trouble);
        }
        self.batches.lock().unwrap().push(letters.len());
        let mut instead = self.instead.lock().unwrap();
        let mut accepted = self.accepted.lock().unwrap();
        let answer = |letter: &Letter| match instead.get(&letter.origin).cloned() {
            Some(busy @ Acceptance::Busy { .. }) => {
                instead.remove(&letter.origin);
                busy
            }
            Some(answer) => answer,
            None => match accepted.insert(letter.origin.clone(), letter.clone()) {
                None => {
                    self.order.lock().unwrap().push(letter.origin.clone());
                    Acceptance::Accepted
                }
                Some(_) => Acceptance::Repeat,
            },
        };
        Ok(letters.iter().map(answer).collect())
    }
}

fn busy(retry_after: Option<Duration>) -> Acceptance {
    Acceptance::Busy { why: "full".into(), retry_after }
}

fn trouble(code: &str, transient: bool) -> Trouble {
    Trouble { code: code.into(), message: "why".into(), transient }
}

/// A plan for messages that do not name their function.
fn unnamed() -> Plan {
    Plan { wanted: Wanted::default(), limit: None, rate: None, dry_run: false, calls: 8 }
}

fn plan() -> Plan {
    Plan { wanted: Wanted { function: Some("orders".into()), ..Wanted::default() }, ..unnamed() }
}

async fn redrive(queue: &FakeQueue, destination: &FakeDestination, plan: Plan) -> (Ended, Tally) {
    let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
    Redrive::new(queue, destination, plan, clock).run(&CancellationToken::new(), |_| {}).await
}

#[tokio::test(start_paused = true)]
async fn all_letters_are_accepted_once_and_then_deleted() {
    let (queue, destination) = (FakeQueue::of(105), FakeDestination::default());
    let (ended, tally) = redrive(&queue, &destination, plan()).await;
    assert_eq!((ended, tally.accepted, queue.len()), (Ended::Done, 105, 0));
    let accepted = destination.accepted.lock().unwrap();
    assert_eq!(accepted.len(), 105);
    assert_eq!(accepted["lambda/r-7"].payload, "{\"id\":7}");
}

#[tokio::test(start_paused = true)]
async fn foreign_refused_and_unselected_messages_stay_counted_named_and_visible() {
    let (queue, destination) = (FakeQueue::of(12), FakeDestination::default());
    queue.put("x-foreign", Received { body: "hello".into(), ..Received::default() });
    destination.instead.lock().unwrap().insert("lambda/r-3".into(), Acceptance::Ceiling("3 times".into()));
    destination.instead.lock().unwrap().insert("lambda/r-4".into(), Acceptance::Refused("no such name".into()));
    let (ended, tally) = redrive(&queue, &destination, plan()).await;
    assert_eq!((ended, tally.accepted, tally.seen(), queue.len(), queue.hidden()), (Ended::Done, 10, 13, 3, 0));
    let left: Vec<_> = tally.left.iter().map(|(kind, left)| (*kind, left.count, left.named[0].0.as_str())).collect();
    assert_eq!(left, [("ceiling", 1, "00003"), ("foreign", 1, "x-foreign"), ("refused", 1, "00004")]);
}

#[tokio::test(start_paused = true)]
async fn messages_that_show_up_again_while_they_stay_are_counted_once_and_do_not_keep_it_going() {
    let (queue, destination) = (FakeQueue::default(), FakeDestination::default());
    queue.put("x", Received { body: "hello".into(), ..Received::default() });
    let clock = Clock::seeded(UnixMillis(0), 1);
    let run = Redrive::new(&queue, &destination, plan(), clock);
    // Makes all messages visible after every step, as if the visibility timeout were over.
    let (ended, tally) = run.run(&CancellationToken::new(), |_| queue.show_all()).await;
    assert_eq!((ended, tally.left["foreign"].count), (Ended::Done, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_and_a_limit_leave_the_rest_where_it_is() {
    let (queue, destination) = (FakeQueue::of(25), FakeDestination::default());
    let (ended, tally) = redrive(&queue, &destination, Plan { dry_run: true, ..plan() }).await;
    assert_eq!((ended, tally.accepted, queue.len(), queue.hidden()), (Ended::Done, 25, 25, 0));
    assert!(destination.accepted.lock().unwrap().is_empty());
    let (ended, tally) = redrive(&queue, &destination, Plan { limit: Some(13), ..plan() }).await;
    assert_eq!((ended, tally.accepted, queue.len(), queue.hidden()), (Ended::Limit, 13, 12, 0));
}

#[tokio::test(start_paused = true)]
async fn what_died_again_during_the_redrive_is_left_for_the_next() {
    let (queue, destination) = (FakeQueue::of(1), FakeDestination::default());
    let envelope = |accepted_at: u64| {
        format!(
            r#"{{"id":"01900000-0000-7000-8000-00000000abcd","function":"f","address":"f","key":"k","key_source":"field","accepted_at":{accepted_at},"redrives":1}}"#
        )
    };
    let ours = |accepted_at| Received {
        body: "{}".into(),
        attributes: [("Sendoff".to_owned(), envelope(accepted_at))].into(),
        ..Received::default()
    };
    queue.put("early", ours(1_789_999_999_999));
    queue.put("late", ours(1_790_000_000_001));
    let (_, tally) = redrive(&queue, &destination, unnamed()).await;
    assert_eq!((tally.accepted, tally.left["died-again"].named[0].0.as_str()), (1, "late"));
    assert_eq!((queue.len(), queue.hidden()), (2, 0), "the other is foreign without a function");
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept() {
    let (queue, destination) = (FakeQueue::of(100), FakeDestination::default());
    let clock = Clock::seeded(UnixMillis(0), 1);
    let run = Redrive::new(&queue, &destination, Plan { rate: Some(50.0), ..plan() }, clock.clone());
    run.run(&CancellationToken::new(), |_| {}).await;
    let took = clock.now().0;
    assert!((1_800..2_200).contains(&took), "{took} ms for 100 letters at 50/s");
    assert!(destination.batches.lock().unwrap().iter().all(|&letters| letters <= 5));
}

#[tokio::test(start_paused = true)]
async fn troubles_that_pass_are_waited_out_and_others_end_it_with_everything_visible() {
    let (queue, destination) = (FakeQueue::of(10), FakeDestination::default());
    queue.receive_troubles.lock().unwrap().push(trouble("RequestThrottled", true));
    queue.delete_troubles.lock().unwrap().push(trouble("ServiceUnavailable", true));
    destination.troubles.lock().unwrap().push(trouble("unreachable", true));
    destination.instead.lock().unwrap().insert("lambda/r-5".into(), busy(None));
    let (ended, tally) = redrive(&queue, &destination, plan()).await;
    assert_eq!((ended, tally.accepted, tally.repeats, tally.undeleted, queue.len()), (Ended::Done, 10, 0, 0, 0));

    let queue = FakeQueue::of(10);
    destination.troubles.lock().unwrap().push(trouble("forbidden", false));
    let (ended, _) = redrive(&queue, &destination, plan()).await;
    assert_eq!((ended, queue.len(), queue.hidden()), (Ended::Failed(trouble("forbidden", false)), 10, 0));

    queue.receive_troubles.lock().unwrap().push(trouble("QueueDoesNotExist", false));
    let (ended, _) = redrive(&queue, &destination, plan()).await;
    assert_eq!(ended, Ended::Failed(trouble("QueueDoesNotExist", false)));

    // Down for longer than the patience.
    queue.receive_troubles.lock().unwrap().extend(vec![trouble("unreachable", true); 1_000]);
    let (ended, _) = redrive(&queue, &destination, plan()).await;
    assert_eq!(ended, Ended::Failed(trouble("unreachable", true)));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_deleted_is_a_repeat_the_next_time() {
    let (queue, destination) = (FakeQueue::of(10), FakeDestination::default());
    queue.delete_troubles.lock().unwrap().push(trouble("ReceiptHandleIsInvalid", false));
    let (_, tally) = redrive(&queue, &destination, plan()).await;
    assert_eq!((tally.accepted, tally.undeleted, queue.len()), (10, 10, 10));
    queue.show_all();
    let (_, tally) = redrive(&queue, &destination, plan()).await;
    assert_eq!((tally.accepted, tally.repeats, queue.len()), (0, 10, 0));
}

#[tokio::test(start_paused = true)]
async fn told_to_stop_it_finishes_the_batch_in_hand_and_shows_the_rest() {
    let (queue, destination) = (FakeQueue::of(35), FakeDestination::default());
    let stop = CancellationToken::new();
    let run = Redrive::new(&queue, &destination, plan(), Clock::seeded(UnixMillis(0), 1));
    let stop_at_first = |tally: &Tally| {
        if tally.accepted > 0 {
            stop.cancel()
        }
    };
    let (ended, tally) = run.run(&stop, stop_at_first).await;
    assert_eq!((ended, queue.len(), queue.hidden()), (Ended::Interrupted, 35 - tally.accepted as usize, 0));
    assert!((1..35).contains(&tally.accepted), "{}", tally.accepted);
}

/// Drops the run at its `n`th step, as a crash would. Returns true if the run ended before.
async fn crashing_at(n: u32, queue: &FakeQueue, destination: &FakeDestination) -> bool {
    struct Crashing<'a, T>(&'a T, &'a Mutex<u32>, Clock);
    impl<T> Crashing<'_, T> {
        /// Stops the run before or after a step. The calls in progress overlap differently each time.
        async fn step(&self) {
            self.2.sleep(self.2.jitter(Duration::from_millis(20))).await;
            let left = {
                let mut left = self.1.lock().unwrap();
                *left = left.saturating_sub(1);
                *left
            };
            if left == 0 {
                std::future::pending::<()>().await;
            }
        }
    }
    impl Queue for Crashing<'_, FakeQueue> {
        async fn receive(&self, messages_max: usize) -> Result<Vec<Received>, Trouble> {
            self.step().await;
            let received = self.0.receive(messages_max).await;
            self.step().await;
            received
        }
        async fn delete(&self, receipts: &[String]) -> Vec<Result<(), Trouble>> {
            self.step().await;
            let deleted = self.0.delete(receipts).await;
            self.step().await;
            deleted
        }
        async fn release(&self, receipts: &[String]) {
            self.0.release(receipts).await;
        }
    }
    impl Destination for Crashing<'_, FakeDestination> {
        async fn accept(&self, letters: &[Letter]) -> Result<Vec<Acceptance>, Trouble> {
            self.step().await;
            let answers = self.0.accept(letters).await;
            self.step().await;
            answers
        }
    }
    let left = Mutex::new(n);
    let clock = Clock::seeded(UnixMillis(0), u64::from(n));
    let (queue, destination) = (Crashing(queue, &left, clock.clone()), Crashing(destination, &left, clock.clone()));
    let run = Redrive::new(&queue, &destination, plan(), clock);
    let ended = tokio::time::timeout(Duration::from_secs(3_600), run.run(&CancellationToken::new(), |_| {})).await;
    ended.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_steps_loses_nothing_and_accepts_nothing_twice() {
    for n in 1.. {
        let (queue, destination) = (FakeQueue::of(95), FakeDestination::default());
        let whole = crashing_at(n, &queue, &destination).await;
        {
            let accepted = destination.accepted.lock().unwrap();
            let messages = queue.messages.lock().unwrap();
            for letter in 0..95 {
                let is_safe = accepted.contains_key(&format!("lambda/r-{letter}"))
                    || messages.contains_key(&format!("{letter:05}"));
                assert!(is_safe, "letter {letter} is nowhere after a crash at step {n}");
            }
        }
        queue.show_all();
        let before = destination.accepted.lock().unwrap().len() as u64;
        let (ended, tally) = redrive(&queue, &destination, plan()).await;
        assert_eq!((ended, before + tally.accepted, queue.len()), (Ended::Done, 95, 0), "crash at step {n}");
        if whole {
            assert!(n > 40, "ten receives, ten deletions and some batches have more steps than {n}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn receives_batches_and_deletions_overlap() {
    let queue = FakeQueue { latency: Duration::from_millis(100), ..FakeQueue::of(1_000) };
    let destination = FakeDestination::default();
    let clock = Clock::seeded(UnixMillis(0), 1);
    let run = Redrive::new(&queue, &destination, plan(), clock.clone());
    let (ended, tally) = run.run(&CancellationToken::new(), |_| {}).await;
    assert_eq!((ended, tally.accepted, queue.len()), (Ended::Done, 1_000, 0));
    let took = clock.now().0;
    assert!(took < 4_000, "{took} ms; one call after another takes 20,000");
    let batches = destination.batches.lock().unwrap();
    assert!(batches.len() < 40, "{} commits for 1,000 letters", batches.len());
    assert!(batches.iter().all(|&letters| letters <= LETTERS_MAX));
}

#[tokio::test(start_paused = true)]
async fn a_group_of_a_fifo_queue_comes_back_whole_and_in_order() {
    let queue = FakeQueue { latency: Duration::from_millis(10), fifo: true, ..FakeQueue::of(55) };
    let destination = FakeDestination::default();
    let (ended, tally) = redrive(&queue, &destination, plan()).await;
    assert_eq!((ended, tally.accepted, queue.len()), (Ended::Done, 55, 0));
    let expected: Vec<String> = (0..55).map(|n| format!("lambda/r-{n}")).collect();
    assert_eq!(*destination.order.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn limit_and_rate_hold_exactly_and_repeats_do_not_count() {
    let queue = FakeQueue { latency: Duration::from_millis(30), ..FakeQueue::of(300) };
    let destination = FakeDestination::default();
    for n in 0..20 {
        destination.accepted.lock().unwrap().insert(format!("lambda/r-{n}"), letter(n));
    }
    let clock = Clock::seeded(UnixMillis(0), 1);
    let plan = Plan { limit: Some(123), rate: Some(100.0), ..plan() };
    let run = Redrive::new(&queue, &destination, plan, clock.clone());
    let (ended, tally) = run
        .run(&CancellationToken::new(), |tally| {
            let allowed = 10.0 + clock.now().0 as f64 / 10.0;
            let done = (tally.accepted + tally.repeats) as f64;
            assert!(done <= allowed, "{done} letters after {} ms", clock.now().0);
        })
        .await;
    assert_eq!((ended, tally.accepted, tally.repeats), (Ended::Limit, 123, 20));
    assert_eq!((queue.len(), queue.hidden()), (300 - 143, 0));
}

fn letter(n: usize) -> Letter {
    let message = Received { message_id: n.to_string(), ..lambdas_message(n) };
    match crate::deadletter::letter::read(&message, &plan().wanted) {
        crate::deadletter::letter::Reading::Letter(read) => read.letter,
        crate::deadletter::letter::Reading::Foreign(why) => panic!("{why}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_names_a_time_is_left_alone_until_then_and_not_for_ever() {
    let (queue, destination) = (FakeQueue::of(5), FakeDestination::default());
    destination.instead.lock().unwrap().insert("lambda/r-2".into(), busy(Some(Duration::from_secs(20))));
    let clock = Clock::seeded(UnixMillis(0), 1);
    let run = Redrive::new(&queue, &destination, plan(), clock.clone());
    let (ended, tally) = run.run(&CancellationToken::new(), |_| {}).await;
    assert_eq!((ended, tally.accepted, queue.len()), (Ended::Done, 5, 0));
    assert!((20_000..25_000).contains(&clock.now().0), "{:?}", clock.now());

    let (queue, destination) = (FakeQueue::of(5), FakeDestination::default());
    destination.instead.lock().unwrap().insert("lambda/r-2".into(), busy(Some(PATIENCE * 2)));
    let (ended, tally) = redrive(&queue, &destination, plan()).await;
    assert!(matches!(&ended, Ended::Failed(trouble) if trouble.code == "busy"), "{ended:?}");
    assert_eq!((tally.accepted, queue.len(), queue.hidden()), (4, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn at_a_low_rate_few_messages_are_hidden() {
    let (queue, destination) = (FakeQueue::of(100), FakeDestination::default());
    let clock = Clock::seeded(UnixMillis(0), 1);
    let run = Redrive::new(&queue, &destination, Plan { rate: Some(0.3), limit: Some(10), ..plan() }, clock);
    let (_, tally) = run.run(&CancellationToken::new(), |_| assert!(queue.hidden() <= 3, "{}", queue.hidden())).await;
    assert_eq!(tally.accepted, 10);
}
