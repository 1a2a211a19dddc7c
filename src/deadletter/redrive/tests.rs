use std::sync::Mutex;

use super::*;

/// A queue in memory: what is received is hidden until released, or until the crash of whoever received it.
#[derive(Default)]
struct FakeQueue {
    messages: Mutex<BTreeMap<String, (Received, bool)>>,
    receives: Mutex<u32>,
    /// Answers of the next receives and deletes, before they work.
    receive_troubles: Mutex<Vec<Trouble>>,
    delete_troubles: Mutex<Vec<Trouble>>,
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
    async fn receive(&self) -> Result<Vec<Received>, Trouble> {
        *self.receives.lock().unwrap() += 1;
        if let Some(trouble) = self.receive_troubles.lock().unwrap().pop() {
            return Err(trouble);
        }
        let mut messages = self.messages.lock().unwrap();
        let visible = messages.values_mut().filter(|(_, hidden)| !hidden).take(10);
        Ok(visible
            .map(|(message, hidden)| {
                *hidden = true;
                message.clone()
            })
            .collect())
    }

    async fn delete(&self, receipts: &[String]) -> Vec<Result<(), Trouble>> {
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
        let mut messages = self.messages.lock().unwrap();
        for receipt in receipts {
            messages.get_mut(receipt).unwrap().1 = false;
        }
    }
}

/// A door that remembers origins, as the store does.
#[derive(Default)]
struct FakeDoor {
    accepted: Mutex<BTreeMap<String, Letter>>,
    /// What to say instead, by origin; a busy one is said once.
    instead: Mutex<BTreeMap<String, Answer>>,
    troubles: Mutex<Vec<Trouble>>,
    batches: Mutex<Vec<usize>>,
}

impl Door for FakeDoor {
    async fn accept(&self, letters: &[Letter]) -> Result<Vec<Answer>, Trouble> {
        if let Some(trouble) = self.troubles.lock().unwrap().pop() {
            return Err(trouble);
        }
        self.batches.lock().unwrap().push(letters.len());
        let mut instead = self.instead.lock().unwrap();
        let mut accepted = self.accepted.lock().unwrap();
        let answer = |letter: &Letter| match instead.get(&letter.origin).cloned() {
            Some(busy @ Answer::Busy(_)) => {
                instead.remove(&letter.origin);
                busy
            }
            Some(answer) => answer,
            None => match accepted.insert(letter.origin.clone(), letter.clone()) {
                None => Answer::Accepted,
                Some(_) => Answer::Repeat,
            },
        };
        Ok(letters.iter().map(answer).collect())
    }
}

fn trouble(code: &str, transient: bool) -> Trouble {
    Trouble { code: code.into(), message: "why".into(), transient }
}

fn plan() -> Plan {
    Plan { wanted: Wanted { function: Some("orders".into()), ..Wanted::default() }, ..Plan::default() }
}

async fn redrive(queue: &FakeQueue, door: &FakeDoor, plan: Plan) -> (Ended, Tally) {
    let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
    Redrive::new(queue, door, plan, clock).run(&CancellationToken::new(), |_| {}).await
}

#[tokio::test(start_paused = true)]
async fn all_letters_are_accepted_once_and_then_deleted() {
    let (queue, door) = (FakeQueue::of(105), FakeDoor::default());
    let (ended, tally) = redrive(&queue, &door, plan()).await;
    assert_eq!((ended, tally.accepted, queue.len()), (Ended::Done, 105, 0));
    let accepted = door.accepted.lock().unwrap();
    assert_eq!(accepted.len(), 105);
    assert_eq!(accepted["lambda/r-7"].payload, "{\"id\":7}");
}

#[tokio::test(start_paused = true)]
async fn foreign_refused_and_unselected_messages_stay_counted_named_and_visible() {
    let (queue, door) = (FakeQueue::of(12), FakeDoor::default());
    queue.put("x-foreign", Received { body: "hello".into(), ..Received::default() });
    door.instead.lock().unwrap().insert("lambda/r-3".into(), Answer::Ceiling("3 times".into()));
    door.instead.lock().unwrap().insert("lambda/r-4".into(), Answer::Refused("no such name".into()));
    let (ended, tally) = redrive(&queue, &door, plan()).await;
    assert_eq!((ended, tally.accepted, tally.seen(), queue.len(), queue.hidden()), (Ended::Done, 10, 13, 3, 0));
    let left: Vec<_> = tally.left.iter().map(|(kind, left)| (*kind, left.count, left.named[0].0.as_str())).collect();
    assert_eq!(left, [("ceiling", 1, "00003"), ("foreign", 1, "x-foreign"), ("refused", 1, "00004")]);
}

#[tokio::test(start_paused = true)]
async fn messages_that_show_up_again_while_they_stay_are_counted_once_and_do_not_keep_it_going() {
    let (queue, door) = (FakeQueue::default(), FakeDoor::default());
    queue.put("x", Received { body: "hello".into(), ..Received::default() });
    let clock = Clock::seeded(UnixMillis(0), 1);
    let run = Redrive::new(&queue, &door, plan(), clock);
    // As if the visibility timeout were over each time.
    let (ended, tally) = run.run(&CancellationToken::new(), |_| queue.show_all()).await;
    assert_eq!((ended, tally.left["foreign"].count), (Ended::Done, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_and_a_limit_leave_the_rest_where_it_is() {
    let (queue, door) = (FakeQueue::of(25), FakeDoor::default());
    let (ended, tally) = redrive(&queue, &door, Plan { dry_run: true, ..plan() }).await;
    assert_eq!((ended, tally.accepted, queue.len(), queue.hidden()), (Ended::Done, 25, 25, 0));
    assert!(door.accepted.lock().unwrap().is_empty());
    let (ended, tally) = redrive(&queue, &door, Plan { limit: Some(13), ..plan() }).await;
    assert_eq!((ended, tally.accepted, queue.len(), queue.hidden()), (Ended::Limit, 13, 12, 0));
}

#[tokio::test(start_paused = true)]
async fn what_died_again_during_the_redrive_is_left_for_the_next() {
    let (queue, door) = (FakeQueue::of(1), FakeDoor::default());
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
    let (_, tally) = redrive(&queue, &door, Plan::default()).await;
    assert_eq!((tally.accepted, tally.left["died-again"].named[0].0.as_str()), (1, "late"));
    assert_eq!((queue.len(), queue.hidden()), (2, 0), "the other is foreign without a function");
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept() {
    let (queue, door) = (FakeQueue::of(100), FakeDoor::default());
    let clock = Clock::seeded(UnixMillis(0), 1);
    let run = Redrive::new(&queue, &door, Plan { rate: Some(50.0), ..plan() }, clock.clone());
    run.run(&CancellationToken::new(), |_| {}).await;
    let took = clock.now().0;
    assert!((1_800..2_200).contains(&took), "{took} ms for 100 letters at 50/s");
    assert!(door.batches.lock().unwrap().iter().all(|&letters| letters <= 5));
}

#[tokio::test(start_paused = true)]
async fn troubles_that_pass_are_waited_out_and_others_end_it_with_everything_visible() {
    let (queue, door) = (FakeQueue::of(10), FakeDoor::default());
    queue.receive_troubles.lock().unwrap().push(trouble("RequestThrottled", true));
    queue.delete_troubles.lock().unwrap().push(trouble("ServiceUnavailable", true));
    door.troubles.lock().unwrap().push(trouble("unreachable", true));
    door.instead.lock().unwrap().insert("lambda/r-5".into(), Answer::Busy("full".into()));
    let (ended, tally) = redrive(&queue, &door, plan()).await;
    assert_eq!((ended, tally.accepted, tally.repeats, tally.undeleted, queue.len()), (Ended::Done, 10, 0, 0, 0));

    let queue = FakeQueue::of(10);
    door.troubles.lock().unwrap().push(trouble("forbidden", false));
    let (ended, _) = redrive(&queue, &door, plan()).await;
    assert_eq!((ended, queue.len(), queue.hidden()), (Ended::Failed(trouble("forbidden", false)), 10, 0));

    queue.receive_troubles.lock().unwrap().push(trouble("QueueDoesNotExist", false));
    let (ended, _) = redrive(&queue, &door, plan()).await;
    assert_eq!(ended, Ended::Failed(trouble("QueueDoesNotExist", false)));

    // Down for longer than the patience.
    queue.receive_troubles.lock().unwrap().extend(vec![trouble("unreachable", true); 1_000]);
    let (ended, _) = redrive(&queue, &door, plan()).await;
    assert_eq!(ended, Ended::Failed(trouble("unreachable", true)));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_deleted_is_a_repeat_the_next_time() {
    let (queue, door) = (FakeQueue::of(10), FakeDoor::default());
    queue.delete_troubles.lock().unwrap().push(trouble("ReceiptHandleIsInvalid", false));
    let (_, tally) = redrive(&queue, &door, plan()).await;
    assert_eq!((tally.accepted, tally.undeleted, queue.len()), (10, 10, 10));
    queue.show_all();
    let (_, tally) = redrive(&queue, &door, plan()).await;
    assert_eq!((tally.accepted, tally.repeats, queue.len()), (0, 10, 0));
}

#[tokio::test(start_paused = true)]
async fn told_to_stop_it_finishes_the_batch_in_hand_and_shows_the_rest() {
    let (queue, door) = (FakeQueue::of(35), FakeDoor::default());
    let stop = CancellationToken::new();
    let run = Redrive::new(&queue, &door, plan(), Clock::seeded(UnixMillis(0), 1));
    let (ended, tally) = run.run(&stop, |_| stop.cancel()).await;
    assert_eq!((ended, tally.accepted, queue.len(), queue.hidden()), (Ended::Interrupted, 10, 25, 0));
}

/// A run that is dropped at its `n`th step, as a crash would end it; true if it came to its end before.
async fn crashing_at(n: u32, queue: &FakeQueue, door: &FakeDoor) -> bool {
    struct Crashing<'a, T>(&'a T, &'a Mutex<u32>);
    impl<T> Crashing<'_, T> {
        /// Stops the world before a step, or after it.
        async fn step(&self) {
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
        async fn receive(&self) -> Result<Vec<Received>, Trouble> {
            self.step().await;
            let received = self.0.receive().await;
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
    impl Door for Crashing<'_, FakeDoor> {
        async fn accept(&self, letters: &[Letter]) -> Result<Vec<Answer>, Trouble> {
            self.step().await;
            let answers = self.0.accept(letters).await;
            self.step().await;
            answers
        }
    }
    let left = Mutex::new(n);
    let (crashing_queue, crashing_door) = (Crashing(queue, &left), Crashing(door, &left));
    let run = Redrive::new(&crashing_queue, &crashing_door, plan(), Clock::seeded(UnixMillis(0), 1));
    let ended = tokio::time::timeout(Duration::from_secs(3_600), run.run(&CancellationToken::new(), |_| {})).await;
    ended.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_steps_loses_nothing_and_accepts_nothing_twice() {
    for n in 1.. {
        let (queue, door) = (FakeQueue::of(25), FakeDoor::default());
        let whole = crashing_at(n, &queue, &door).await;
        {
            let accepted = door.accepted.lock().unwrap();
            let messages = queue.messages.lock().unwrap();
            for letter in 0..25 {
                let is_safe = accepted.contains_key(&format!("lambda/r-{letter}"))
                    || messages.contains_key(&format!("{letter:05}"));
                assert!(is_safe, "letter {letter} is nowhere after a crash at step {n}");
            }
        }
        queue.show_all();
        let before = door.accepted.lock().unwrap().len() as u64;
        let (ended, tally) = redrive(&queue, &door, plan()).await;
        assert_eq!((ended, before + tally.accepted, queue.len()), (Ended::Done, 25, 0), "crash at step {n}");
        if whole {
            assert!(n > 18, "three batches of three calls have more steps than {n}");
            return;
        }
    }
}
