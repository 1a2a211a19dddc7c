//! A hand-off queue as a target of the sender.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, StreamExt};
use tokio::sync::OnceCell;

use super::message::message_of;
use crate::deadletter::message::{MESSAGE_BYTES_MAX, Message};
use crate::deadletter::{QueueFacts, Ship, Shipment};
use crate::event::name::Home;
use crate::handoff::target::{Answer, Parcel, Sizes, Taken, Target, Trouble};
use crate::outbox::handoff::RememberedKey;

/// The most messages of one call (SQS, `SendMessageBatch`).
const MESSAGES_MAX: usize = 10;

/// The most calls at once for one batch of the sender. A call waits some 20 ms for SQS, so the rate comes from calls that
/// wait together.
pub const CALLS_MAX: usize = 16;

/// What the sender may bring at once: with bodies as a copy of the payloads, some 32 MiB of memory.
const SIZES: Sizes = Sizes { events_max: 400, bytes_max: 4 << 20, batches_max: 4 };

/// How long to wait for the queue's settings. Without them SQS's own limits count.
const FACTS_PATIENCE: Duration = Duration::from_secs(3);

/// When to ask a queue again that took nothing.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The code of a call that got no answer: SQS may have the messages.
const UNREACHABLE: &str = "unreachable";

/// Hands events over to a queue.
pub struct ToQueue<S> {
    ship: S,
    /// Its URL or ARN.
    queue: String,
    home: Home,
    facts: OnceCell<QueueFacts>,
}

impl<S: Ship> ToQueue<S> {
    /// `home` is this daemon's, because names of functions are relative to it.
    pub fn new(ship: S, queue: String, home: Home) -> Self {
        Self { ship, queue, home, facts: OnceCell::new() }
    }

    /// The largest message that the queue takes. Asks again if the queue has not answered yet.
    async fn message_bytes_max(&self) -> usize {
        let asked = self.facts.get_or_try_init(|| async {
            let facts = tokio::time::timeout(FACTS_PATIENCE, self.ship.facts(&self.queue)).await;
            facts.ok().and_then(Result::ok).ok_or(())
        });
        asked.await.map_or(MESSAGE_BYTES_MAX, |facts| facts.message_bytes_max)
    }

    async fn send_all(&self, parcels: &[Parcel]) -> Result<Vec<Answer>, Trouble> {
        let bytes_max = self.message_bytes_max().await;
        let mut answers: Vec<Option<Answer>> = vec![None; parcels.len()];
        let mut messages = Vec::with_capacity(parcels.len());
        for (at, parcel) in parcels.iter().enumerate() {
            match message_of(parcel, &self.home, bytes_max) {
                Ok(message) => messages.push((at, message)),
                Err(why) => answers[at] = Some(Answer::Refused(why.to_string())),
            }
        }
        let calls = batches(messages).into_iter().map(|batch| self.call(batch));
        let sent: Vec<(Vec<usize>, Vec<Shipment>)> = stream::iter(calls).buffer_unordered(CALLS_MAX).collect().await;
        if let Some(trouble) = trouble_of(&answers, &sent) {
            return Err(trouble);
        }
        for (places, shipments) in sent {
            for (at, shipment) in places.into_iter().zip(shipments) {
                answers[at] = Some(answer_of(shipment));
            }
        }
        let unanswered = || Answer::Busy("the queue did not answer for this event".to_owned());
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect())
    }

    /// One call of SQS. Returns the places of its events in the sender's batch.
    async fn call(&self, batch: Vec<(usize, Message)>) -> (Vec<usize>, Vec<Shipment>) {
        let (places, messages) = batch.into_iter().unzip();
        (places, self.ship.ship(&self.queue, messages).await)
    }
}

impl<S: Ship> Target for ToQueue<S> {
    fn name(&self) -> &str {
        &self.queue
    }

    fn sizes(&self) -> Sizes {
        SIZES
    }

    fn send<'a>(&'a self, batch: &'a [Parcel]) -> BoxFuture<'a, Result<Vec<Answer>, Trouble>> {
        self.send_all(batch).boxed()
    }

    /// A queue remembers no keys.
    fn send_keys<'a>(&'a self, _keys: &'a [RememberedKey]) -> Option<BoxFuture<'a, Result<(), Trouble>>> {
        None
    }
}

/// Splits messages into calls that SQS accepts: at most ten messages, and together at most the size of the largest one.
fn batches(messages: Vec<(usize, Message)>) -> Vec<Vec<(usize, Message)>> {
    let mut batches: Vec<Vec<(usize, Message)>> = Vec::with_capacity(messages.len() / MESSAGES_MAX + 1);
    let mut bytes = 0;
    for (at, message) in messages {
        let more = message.bytes();
        match batches.last_mut().filter(|last| last.len() < MESSAGES_MAX && bytes + more <= MESSAGE_BYTES_MAX) {
            Some(last) => {
                bytes += more;
                last.push((at, message));
            }
            None => {
                bytes = more;
                batches.push(vec![(at, message)]);
            }
        }
    }
    batches
}

fn answer_of(shipment: Shipment) -> Answer {
    match shipment {
        Shipment::Confirmed { message_id: _ } => Answer::Taken(Taken::Adopted),
        Shipment::Refused { code, message } => Answer::Refused(in_words(&code, &message)),
        Shipment::Later { code, message } => Answer::Busy(in_words(&code, &message)),
    }
}

/// Why the batch as a whole has no answer: every call failed. `None` if the queue decided about at least one event.
fn trouble_of(answers: &[Option<Answer>], sent: &[(Vec<usize>, Vec<Shipment>)]) -> Option<Trouble> {
    let mut why = None;
    let mut unanswered = false;
    if answers.iter().any(Option::is_some) {
        return None;
    }
    for shipment in sent.iter().flat_map(|(_, shipments)| shipments) {
        let Shipment::Later { code, message } = shipment else { return None };
        unanswered |= code == UNREACHABLE;
        why.get_or_insert_with(|| in_words(code, message));
    }
    let why = why?;
    Some(if unanswered { Trouble::Unanswered { why } } else { Trouble::NotNow { why, retry_after: RETRY_AFTER } })
}

fn in_words(code: &str, message: &str) -> String {
    if message.is_empty() { code.to_owned() } else { format!("{code}: {message}") }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::clock::{Clock, UnixMillis};
    use crate::event::Event;
    use crate::event::testing::event;
    use crate::handoff::envelope::Envelope;
    use crate::outbox::History;

    /// A queue that answers calls as told, and then confirms everything.
    #[derive(Clone, Default)]
    struct Told {
        answers: Arc<Mutex<VecDeque<Shipment>>>,
        calls: Arc<Mutex<Vec<Vec<Message>>>>,
        bytes_max: Option<usize>,
    }

    impl Ship for Told {
        async fn ship(&self, _queue_url: &str, batch: Vec<Message>) -> Vec<Shipment> {
            let told = self.answers.lock().unwrap().pop_front();
            let answer = told.unwrap_or(Shipment::Confirmed { message_id: "m".to_owned() });
            let answers = vec![answer; batch.len()];
            self.calls.lock().unwrap().push(batch);
            answers
        }

        async fn facts(&self, _queue_url: &str) -> Result<QueueFacts, crate::deadletter::Trouble> {
            let widest = QueueFacts::default();
            Ok(QueueFacts { message_bytes_max: self.bytes_max.unwrap_or(widest.message_bytes_max), ..widest })
        }
    }

    fn parcels(payloads: impl IntoIterator<Item = usize>) -> Vec<Parcel> {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let parcel = |bytes: usize| {
            let event = Event { payload: vec![b'1'; bytes].into(), ..event(&clock, "orders") };
            let (envelope, payload) = Envelope::seal(event, History::default());
            Parcel { envelope, payload }
        };
        payloads.into_iter().map(parcel).collect()
    }

    fn target(told: &Told) -> ToQueue<Told> {
        ToQueue::new(told.clone(), "https://sqs.example.com/1/q".to_owned(), Home { region: None, account_id: None })
    }

    #[tokio::test]
    async fn calls_hold_ten_messages_and_one_mebibyte_and_no_event_is_left_out() {
        let told = Told::default();
        let sent = parcels([10; 25].into_iter().chain([400_000; 5]));
        let answers = target(&told).send(&sent).await.unwrap();
        assert_eq!(answers, vec![Answer::Taken(Taken::Adopted); 30]);
        let calls = told.calls.lock().unwrap();
        let mut ids = BTreeSet::new();
        for call in calls.iter() {
            assert!(call.len() <= 10 && call.iter().map(Message::bytes).sum::<usize>() <= MESSAGE_BYTES_MAX);
            ids.extend(call.iter().map(|message| message.id));
        }
        assert_eq!(ids, sent.iter().map(|parcel| parcel.envelope.id).collect());
        assert_eq!(calls.len(), 5, "10, 10, 5 and two large ones, two, one");
    }

    #[tokio::test]
    async fn an_event_that_the_queue_refuses_or_that_is_too_large_is_refused_and_the_others_go() {
        let told = Told { bytes_max: Some(2_000), ..Told::default() };
        let noise = Clock::seeded(UnixMillis(0), 7);
        let mut sent = parcels([10, 10]);
        sent[0].payload = std::iter::repeat_with(|| noise.random_bits().to_be_bytes()).flatten().take(3_000).collect();
        let answers = target(&told).send(&sent).await.unwrap();
        assert!(matches!(&answers[0], Answer::Refused(why) if why.contains("the queue takes 2000")), "{answers:?}");
        assert_eq!(answers[1], Answer::Taken(Taken::Adopted));

        let refused = Shipment::Refused { code: "InvalidMessageContents".to_owned(), message: "why".to_owned() };
        told.answers.lock().unwrap().push_back(refused);
        let answers = target(&told).send(&parcels([10])).await.unwrap();
        assert_eq!(answers, [Answer::Refused("InvalidMessageContents: why".to_owned())]);
    }

    #[tokio::test]
    async fn a_queue_that_takes_nothing_is_asked_again_and_one_that_takes_a_part_says_which() {
        let later = |code: &str| Shipment::Later { code: code.to_owned(), message: String::new() };
        let told = Told::default();
        told.answers.lock().unwrap().push_back(later("RequestThrottled"));
        let trouble = target(&told).send(&parcels([10])).await.unwrap_err();
        assert!(matches!(trouble, Trouble::NotNow { ref why, .. } if why == "RequestThrottled"), "{trouble:?}");
        told.answers.lock().unwrap().push_back(later(UNREACHABLE));
        let trouble = target(&told).send(&parcels([10])).await.unwrap_err();
        assert!(matches!(trouble, Trouble::Unanswered { .. }), "{trouble:?}");

        told.answers.lock().unwrap().push_back(later("InternalFailure"));
        let answers = target(&told).send(&parcels([10; 20])).await.unwrap();
        let busy = answers.iter().filter(|answer| matches!(answer, Answer::Busy(_))).count();
        assert_eq!((busy, answers.len()), (10, 20), "{answers:?}");
    }
}
