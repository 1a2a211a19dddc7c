//! Amazon SQS as [`Ship`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::client::Client;
use aws_sdk_sqs::error::{BuildError, ProvideErrorMetadata};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, DeleteMessageBatchRequestEntry, MessageAttributeValue, MessageSystemAttributeNameForSends,
    MessageSystemAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry,
};

use super::regional::RegionalClients;
use super::{Error, Settings, Shared, words_of};
use crate::deadletter::message::{Attribute, Message};
use crate::deadletter::{QueueFacts, Ship, Shipment, Trouble};
use address::Address;

mod address;

mod queue;

pub use address::is_queue_arn;
pub use queue::SqsQueue;

/// Codes that blame the message itself, sorted. All other errors may pass, or an operator can repair them.
const MESSAGE_FAULTS: &[&str] = &[
    "AWS.SimpleQueueService.BatchRequestTooLong",
    "BatchRequestTooLong",
    "InvalidAttributeValue",
    "InvalidMessageContents",
    "InvalidParameterValue",
    "InvalidParameterValueException",
    "MessageTooLong",
];

/// What to do about a code, by a part of it. The first match counts.
const ADVICE: &[(&str, &str)] = &[
    ("NonExistentQueue", "create the queue or correct its name"),
    ("QueueDoesNotExist", "create the queue or correct its name"),
    ("InvalidAddress", "correct the queue's name"),
    ("InvalidSecurity", "the queue's policy demands https: correct sqs.endpoint_url"),
    ("KMS.Throttling", "the queue's KMS key is throttled; sendoff retries"),
    ("KmsThrottled", "the queue's KMS key is throttled; sendoff retries"),
    ("Kms", "allow kms:GenerateDataKey and kms:Decrypt on the queue's key, and see that it is enabled"),
    ("KMS", "allow kms:GenerateDataKey and kms:Decrypt on the queue's key, and see that it is enabled"),
    ("Throttl", "sendoff retries, more slowly"),
    ("AccessDenied", "allow the call in the role's policy and in the queue's"),
    ("InvalidClientTokenId", "correct the credentials"),
    ("ExpiredToken", "renew the credentials"),
    ("Signature", "correct the credentials or the clock"),
];

/// Parts of codes of errors that somebody must repair. All others may pass by themselves.
const LASTING: &[&str] = &[
    "NonExistentQueue",
    "QueueDoesNotExist",
    "InvalidAddress",
    "InvalidSecurity",
    "UnsupportedOperation",
    "AccessDenied",
    "InvalidClientTokenId",
    "UnrecognizedClient",
    "ExpiredToken",
    "Signature",
    "InvalidParameter",
    "ReceiptHandleIsInvalid",
    "InvalidIdFormat",
    "KMS.Disabled",
    "KMS.InvalidState",
    "KMS.NotFound",
    "KMS.OptInRequired",
    "KMS.InvalidKeyUsage",
    "KmsDisabled",
    "KmsInvalidState",
    "KmsNotFound",
    "KmsOptInRequired",
    "KmsInvalidKeyUsage",
];

/// What matters of a queue that events are handed over to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct QueueSettings {
    /// `None` if SQS does not say.
    pub retention: Option<Duration>,
    /// As SQS has it, in JSON.
    pub redrive_policy: Option<String>,
    /// The KMS key that encrypts messages.
    pub key: Option<String>,
    /// Whether SQS encrypts messages by a key of its own.
    pub is_encrypted_by_sqs: bool,
}

/// SQS, in the region of each queue's URL or ARN if it names one, else in the configured region. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sqs {
    shared: Shared,
    settings: Settings,
    client: Client,
    others: Arc<RegionalClients<Client>>,
}

impl Sqs {
    pub fn new(shared: &Shared, settings: &Settings) -> Result<Self, Error> {
        let client = client(shared, settings)?;
        Ok(Self { shared: shared.clone(), settings: settings.clone(), client, others: Arc::default() })
    }

    /// A queue to redrive from, by its URL or ARN. Received messages are hidden from other receivers for `visibility`.
    pub fn queue(&self, queue: &str, visibility: Duration) -> SqsQueue {
        let (client, url) = self.reach(queue);
        SqsQueue { client, url, visibility, wait: queue::SHORT_WAIT }
    }

    /// The same, with receives that wait for a message for `wait`, at most 20 s.
    pub fn patient_queue(&self, queue: &str, visibility: Duration, wait: Duration) -> Result<SqsQueue, Error> {
        let settings = Settings { read_timeout: self.settings.read_timeout + wait, ..self.settings.clone() };
        let (client, url) = Self::new(&self.shared, &settings)?.reach(queue);
        Ok(SqsQueue { client, url, visibility, wait })
    }

    /// The attributes of a queue.
    pub async fn facts_of(&self, queue: &str) -> Result<QueueFacts, Trouble> {
        let (client, url) = self.reach(queue);
        let wanted = [
            QueueAttributeName::MaximumMessageSize,
            QueueAttributeName::MessageRetentionPeriod,
            QueueAttributeName::ApproximateNumberOfMessages,
        ];
        let call = client.get_queue_attributes().queue_url(url).set_attribute_names(Some(wanted.to_vec()));
        let output = call.send().await.map_err(|error| Failed::of(&error).trouble())?;
        let number = |name: QueueAttributeName| output.attributes()?.get(&name)?.parse::<u64>().ok();
        let widest = QueueFacts::default();
        Ok(QueueFacts {
            message_bytes_max: number(QueueAttributeName::MaximumMessageSize)
                .and_then(|bytes| usize::try_from(bytes).ok())
                .unwrap_or(widest.message_bytes_max),
            retention: number(QueueAttributeName::MessageRetentionPeriod).map_or(widest.retention, Duration::from_secs),
            messages: number(QueueAttributeName::ApproximateNumberOfMessages).unwrap_or_default(),
        })
    }

    /// What matters of a queue that events are handed over to.
    pub(super) async fn settings_of(&self, queue: &str) -> Result<QueueSettings, Trouble> {
        let (client, url) = self.reach(queue);
        let call = client.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All);
        let output = call.send().await.map_err(|error| Failed::of(&error).trouble())?;
        let text = |name: QueueAttributeName| output.attributes().and_then(|all| all.get(&name)).map(String::as_str);
        let seconds = text(QueueAttributeName::MessageRetentionPeriod).and_then(|seconds| seconds.parse().ok());
        Ok(QueueSettings {
            retention: seconds.map(Duration::from_secs),
            redrive_policy: text(QueueAttributeName::RedrivePolicy).filter(|text| !text.is_empty()).map(str::to_owned),
            key: text(QueueAttributeName::KmsMasterKeyId).filter(|text| !text.is_empty()).map(str::to_owned),
            is_encrypted_by_sqs: text(QueueAttributeName::SqsManagedSseEnabled) == Some("true"),
        })
    }

    /// Tests without a message whether a queue may be sent to. SQS checks permissions before it checks the batch, and then
    /// refuses this batch because two of its entries have the same id.
    pub(super) async fn would_send(&self, queue: &str) -> Result<String, Trouble> {
        let (client, url) = self.reach(queue);
        let entry = |body: &str| SendMessageBatchRequestEntry::builder().id("check").message_body(body).build();
        let entries = [entry("1"), entry("2")].into_iter().collect::<Result<Vec<_>, _>>();
        let entries = entries.map_err(|error| trouble_of("unbuildable", &words_of(&error)))?;
        match client.send_message_batch().queue_url(url).set_entries(Some(entries)).send().await {
            Ok(_) => Err(trouble_of(
                "unexpected",
                "the queue took a batch that SQS refuses: look for messages \"1\" and \"2\"",
            )),
            Err(error) => match Failed::of(&error) {
                refused if refused.code.contains("BatchEntryIdsNotDistinct") => {
                    Ok("may be sent to, as far as that shows without a message; a key of the queue's own is not tried"
                        .to_owned())
                }
                failed => Err(failed.trouble()),
            },
        }
    }

    /// Tests without a message whether a queue may be received from. SQS checks permissions before the number of messages.
    /// Should it accept that number, nothing is hidden from others.
    pub(super) async fn would_receive(&self, queue: &str) -> Result<String, Trouble> {
        let (client, url) = self.reach(queue);
        let call = client.receive_message().queue_url(url).max_number_of_messages(0).visibility_timeout(0);
        match call.wait_time_seconds(0).send().await.map_err(|error| Failed::of(&error)) {
            Ok(_) => Ok("may be received from".to_owned()),
            Err(failed) if ["InvalidParameter", "OutOfRange"].iter().any(|part| failed.code.contains(part)) => {
                Ok("may be received from, as far as that shows without a message".to_owned())
            }
            Err(failed) => Err(failed.trouble()),
        }
    }

    /// Tests whether messages may be deleted, with a receipt that belongs to none.
    pub(super) async fn would_delete(&self, queue: &str) -> Result<String, Trouble> {
        let (client, url) = self.reach(queue);
        let entry = DeleteMessageBatchRequestEntry::builder().id("check").receipt_handle("check").build();
        let entry = entry.map_err(|error| trouble_of("unbuildable", &words_of(&error)))?;
        match client.delete_message_batch().queue_url(url).entries(entry).send().await {
            Ok(_) => Ok("its messages may be deleted".to_owned()),
            Err(error) => match Failed::of(&error) {
                refused if refused.code.contains("ReceiptHandleIsInvalid") => {
                    Ok("its messages may be deleted".to_owned())
                }
                failed => Err(failed.trouble()),
            },
        }
    }

    /// The client of a queue's region, and its URL.
    fn reach(&self, queue: &str) -> (Client, String) {
        let Address { url, region, endpoint } = Address::of(queue, self.settings.endpoint_url.as_deref());
        let region = region.filter(|region| self.settings.region.as_ref() != Some(region));
        if region.is_none() && endpoint.is_none() {
            return (self.client.clone(), url);
        }
        let make = || {
            let own = self.settings.clone();
            let settings = Settings {
                region: region.clone().or(own.region),
                endpoint_url: endpoint.clone().or(own.endpoint_url),
                ..own
            };
            // The region was checked when it was parsed, everything else when the first client was made.
            client(&self.shared, &settings).unwrap_or_else(|_| self.client.clone())
        };
        let place = format!("{} {}", region.as_deref().unwrap_or_default(), endpoint.as_deref().unwrap_or_default());
        (self.others.client(&place, make), url)
    }

    /// One `SendMessageBatch`.
    async fn send(&self, queue_url: &str, batch: &[Message]) -> Result<Vec<Shipment>, Failed> {
        let (client, queue_url) = self.reach(queue_url);
        let fifo = queue_url.ends_with(".fifo");
        let entries: Result<Vec<_>, _> = batch.iter().map(|message| entry_of(message, fifo)).collect();
        let entries = entries.map_err(|error| Failed { code: "unbuildable".into(), message: words_of(&error) })?;
        let sent = client.send_message_batch().queue_url(queue_url).set_entries(Some(entries)).send().await;
        let output = sent.map_err(|error| Failed::of(&error))?;
        let confirmed = output
            .successful()
            .iter()
            .map(|entry| (entry.id().to_owned(), Shipment::Confirmed { message_id: entry.message_id().to_owned() }));
        let failed = output.failed().iter().map(|entry| (entry.id().to_owned(), failed_entry(entry)));
        let mut answers: BTreeMap<String, Shipment> = confirmed.chain(failed).collect();
        let answer = |message: &Message| answers.remove(&message.id.to_string()).unwrap_or_else(unanswered);
        Ok(batch.iter().map(answer).collect())
    }
}

impl Ship for Sqs {
    async fn ship(&self, queue_url: &str, batch: Vec<Message>) -> Vec<Shipment> {
        let failed = match self.send(queue_url, &batch).await {
            Ok(shipments) => return shipments,
            Err(failed) => failed,
        };
        if !failed.blames_a_message() || batch.len() <= 1 {
            return batch.iter().map(|_| failed.shipment()).collect();
        }
        // SQS refuses a whole batch if one message exceeds a queue's limit. Send each message alone, so that the others get
        // through.
        let mut shipments = Vec::with_capacity(batch.len());
        for message in batch.chunks(1) {
            shipments.extend(match self.send(queue_url, message).await {
                Ok(shipments) => shipments,
                Err(failed) => vec![failed.shipment()],
            });
        }
        shipments
    }

    async fn facts(&self, queue_url: &str) -> Result<QueueFacts, Trouble> {
        self.facts_of(queue_url).await
    }
}

fn client(shared: &Shared, settings: &Settings) -> Result<Client, Error> {
    Ok(Client::new(&shared.config(shared.place("sqs", settings)?)))
}

/// Why a whole call failed.
struct Failed {
    code: String,
    message: String,
}

impl Failed {
    fn of(error: &(impl ProvideErrorMetadata + std::error::Error + 'static)) -> Self {
        Self {
            code: error.code().unwrap_or("unreachable").to_owned(),
            message: error.message().map_or_else(|| words_of(error), ToOwned::to_owned),
        }
    }

    fn trouble(self) -> Trouble {
        trouble_of(&self.code, &self.message)
    }

    fn blames_a_message(&self) -> bool {
        MESSAGE_FAULTS.binary_search(&self.code.as_str()).is_ok()
    }

    fn shipment(&self) -> Shipment {
        shipment_of(&self.code, &self.message, self.blames_a_message())
    }
}

fn entry_of(message: &Message, fifo: bool) -> Result<SendMessageBatchRequestEntry, BuildError> {
    let mut entry =
        SendMessageBatchRequestEntry::builder().id(message.id.to_string()).message_body(message.body.clone());
    for (name, attribute) in &message.attributes {
        entry = entry.message_attributes(name.clone(), attribute_of(attribute)?);
    }
    if let Some(header) = &message.trace_header {
        let value = MessageSystemAttributeValue::builder().data_type("String").string_value(header.clone()).build()?;
        entry = entry.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, value);
    }
    if fifo {
        entry = entry.message_group_id(message.group.clone()).message_deduplication_id(message.id.to_string());
    }
    entry.build()
}

fn attribute_of(attribute: &Attribute) -> Result<MessageAttributeValue, BuildError> {
    MessageAttributeValue::builder().data_type(attribute.data_type()).string_value(attribute.value()).build()
}

fn failed_entry(entry: &BatchResultErrorEntry) -> Shipment {
    let message = entry.message().unwrap_or_default();
    shipment_of(entry.code(), message, entry.sender_fault() && MESSAGE_FAULTS.binary_search(&entry.code()).is_ok())
}

fn shipment_of(code: &str, message: &str, refused: bool) -> Shipment {
    if refused {
        return Shipment::Refused { code: code.to_owned(), message: message.to_owned() };
    }
    Shipment::Later { code: code.to_owned(), message: with_advice(code, message) }
}

fn trouble_of(code: &str, message: &str) -> Trouble {
    let transient = !LASTING.iter().any(|part| code.contains(part));
    Trouble { code: code.to_owned(), message: with_advice(code, message), transient }
}

fn with_advice(code: &str, message: &str) -> String {
    match ADVICE.iter().find(|(part, _)| code.contains(part)) {
        Some((_, advice)) if message.is_empty() => (*advice).to_owned(),
        Some((_, advice)) => format!("{message} ({advice})"),
        None => message.to_owned(),
    }
}

fn unanswered() -> Shipment {
    Shipment::Later { code: "unanswered".to_owned(), message: "the answer does not name this message".to_owned() }
}

#[cfg(test)]
mod tests;
