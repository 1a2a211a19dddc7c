//! One queue that messages are taken from: by a redrive, or as events that were handed over.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_sqs::client::Client;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName,
};

use super::{Failed, trouble_of};
use crate::clock::UnixMillis;
use crate::deadletter::Trouble;
use crate::deadletter::letter::Received;
use crate::deadletter::redrive::Queue;

/// How long a redrive waits for a message. Long polling, so that SQS asks all its servers and an empty answer means an empty
/// queue (SQS developer guide, "Long polling").
pub(super) const SHORT_WAIT: Duration = Duration::from_secs(1);

/// The tag of a queue that says for which function its messages are.
const FUNCTION_TAG: &str = "sendoff:function";

/// A queue to take messages from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SqsQueue {
    pub(super) client: Client,
    pub(super) url: String,
    /// How long a received message is hidden from others.
    pub(super) visibility: Duration,
    /// How long a receive waits for a message: 20 s at most, and less than the client's time-out.
    pub(super) wait: Duration,
}

impl SqsQueue {
    /// The function in the queue's tag `sendoff:function`. `None` without the tag, or without permission to read tags.
    pub async fn tagged_function(&self) -> Option<String> {
        let listed = self.client.list_queue_tags().queue_url(&self.url).send().await.ok()?;
        listed.tags()?.get(FUNCTION_TAG).cloned()
    }
}

impl Queue for SqsQueue {
    async fn receive(&self, messages_max: usize) -> Result<Vec<Received>, Trouble> {
        let received = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(messages_max).unwrap_or(i32::MAX))
            .wait_time_seconds(seconds(self.wait))
            .visibility_timeout(seconds(self.visibility))
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .send()
            .await
            .map_err(|error| Failed::of(&error).trouble())?;
        Ok(received.messages.unwrap_or_default().into_iter().map(received_of).collect())
    }

    async fn delete(&self, receipts: &[String]) -> Vec<Result<(), Trouble>> {
        let entries = receipts.iter().enumerate().filter_map(|(n, receipt)| {
            DeleteMessageBatchRequestEntry::builder().id(n.to_string()).receipt_handle(receipt).build().ok()
        });
        let call = self.client.delete_message_batch().queue_url(&self.url).set_entries(Some(entries.collect()));
        let output = match call.send().await {
            Ok(output) => output,
            Err(error) => return vec![Err(Failed::of(&error).trouble()); receipts.len()],
        };
        let mut answers: BTreeMap<String, Result<(), Trouble>> =
            output.successful().iter().map(|entry| (entry.id().to_owned(), Ok(()))).collect();
        for entry in output.failed() {
            let trouble = trouble_of(entry.code(), entry.message().unwrap_or_default());
            answers.insert(entry.id().to_owned(), Err(trouble));
        }
        let unanswered = || Err(trouble_of("unanswered", "the answer does not name this message"));
        (0..receipts.len()).map(|n| answers.remove(&n.to_string()).unwrap_or_else(unanswered)).collect()
    }

    async fn release(&self, receipts: &[String]) {
        let entries = receipts.iter().enumerate().filter_map(|(n, receipt)| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(n.to_string());
            entry.receipt_handle(receipt).visibility_timeout(0).build().ok()
        });
        let call = self.client.change_message_visibility_batch().queue_url(&self.url);
        // A message that is not released appears again after its visibility time-out.
        if let Err(error) = call.set_entries(Some(entries.collect())).send().await {
            let Trouble { code, message, .. } = Failed::of(&error).trouble();
            tracing::debug!(
                code,
                message,
                "messages could not be released and stay hidden until their visibility timeout"
            );
        }
    }
}

fn received_of(message: Message) -> Received {
    let sent = message.attributes().and_then(|all| all.get(&MessageSystemAttributeName::SentTimestamp));
    let sent_at = sent.and_then(|millis| millis.parse().ok()).map(UnixMillis);
    let attributes = message.message_attributes.unwrap_or_default().into_iter();
    Received {
        message_id: message.message_id.unwrap_or_default(),
        receipt: message.receipt_handle.unwrap_or_default(),
        body: message.body.unwrap_or_default(),
        attributes: attributes.filter_map(|(name, value)| Some((name, value.string_value?))).collect(),
        sent_at,
    }
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}
