//! Amazon SQS as [`Ship`].

use std::collections::BTreeMap;

use aws_sdk_sqs::client::Client;
use aws_sdk_sqs::config::Region;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::error::{BuildError, ProvideErrorMetadata};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
    SendMessageBatchRequestEntry,
};

use super::{Endpoint, Error, Place, Settings, Shared, words_of};
use crate::deadletter::message::{Attribute, Message};
use crate::deadletter::{Ship, Shipment};

/// Codes that blame the message itself; all others may pass, or an operator can repair them. Sorted.
const MESSAGE_FAULTS: &[&str] = &[
    "AWS.SimpleQueueService.BatchRequestTooLong",
    "BatchRequestTooLong",
    "InvalidAttributeValue",
    "InvalidMessageContents",
    "InvalidParameterValue",
    "InvalidParameterValueException",
    "MessageTooLong",
];

/// What to do about a code, by what it contains; the first match counts.
const ADVICE: &[(&str, &str)] = &[
    ("NonExistentQueue", "create the queue or correct dead_letter.queue_url"),
    ("QueueDoesNotExist", "create the queue or correct dead_letter.queue_url"),
    ("InvalidAddress", "correct dead_letter.queue_url"),
    ("InvalidSecurity", "the queue's policy demands https: correct sqs.endpoint_url"),
    ("KMS.Throttling", "the queue's key is throttled; it is tried again"),
    ("KMS", "allow kms:GenerateDataKey and kms:Decrypt on the queue's key, and see that it is enabled"),
    ("Throttl", "it is tried again, more slowly"),
    ("AccessDenied", "allow sqs:SendMessage on the queue"),
    ("InvalidClientTokenId", "correct the credentials"),
    ("ExpiredToken", "renew the credentials"),
    ("Signature", "correct the credentials or the clock"),
];

/// SQS in one region. A queue's region is the client's: that of its url is not read.
#[derive(Debug, Clone)]
pub struct Sqs {
    client: Client,
}

impl Sqs {
    pub fn new(shared: &Shared, settings: &Settings) -> Result<Self, Error> {
        let Place { region, endpoint, timeouts } = shared.place("sqs", settings)?;
        let mut config = aws_sdk_sqs::config::Builder::from(&shared.config)
            .region(Region::new(region))
            .timeout_config(timeouts)
            .retry_config(RetryConfig::disabled());
        match endpoint {
            Endpoint::At(url) => config.set_endpoint_url(Some(url)),
            Endpoint::Public => config.set_endpoint_url(None),
            Endpoint::AsConfigured => &mut config,
        };
        Ok(Self { client: Client::from_conf(config.build()) })
    }

    /// One `SendMessageBatch`.
    async fn send(&self, queue_url: &str, batch: &[Message]) -> Result<Vec<Shipment>, Failed> {
        let fifo = queue_url.ends_with(".fifo");
        let entries: Result<Vec<_>, _> = batch.iter().map(|message| entry_of(message, fifo)).collect();
        let entries = entries.map_err(|error| Failed { code: "unbuildable".into(), message: words_of(&error) })?;
        let sent = self.client.send_message_batch().queue_url(queue_url).set_entries(Some(entries)).send().await;
        let output = sent.map_err(|error| Failed {
            code: error.code().unwrap_or("unreachable").to_owned(),
            message: error.message().map_or_else(|| words_of(&error), ToOwned::to_owned),
        })?;
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
        // SQS refuses a whole batch for one message that a queue's lower limit excludes: each alone, so that it does not
        // keep the others here.
        let mut shipments = Vec::with_capacity(batch.len());
        for message in batch.chunks(1) {
            shipments.extend(match self.send(queue_url, message).await {
                Ok(shipments) => shipments,
                Err(failed) => vec![failed.shipment()],
            });
        }
        shipments
    }
}

/// Why a whole call failed.
struct Failed {
    code: String,
    message: String,
}

impl Failed {
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
    let (code, message) = (code.to_owned(), message.to_owned());
    if refused {
        return Shipment::Refused { code, message };
    }
    match ADVICE.iter().find(|(part, _)| code.contains(part)) {
        Some((_, advice)) if message.is_empty() => Shipment::Later { code, message: (*advice).to_owned() },
        Some((_, advice)) => Shipment::Later { code, message: format!("{message} ({advice})") },
        None => Shipment::Later { code, message },
    }
}

fn unanswered() -> Shipment {
    Shipment::Later { code: "unanswered".to_owned(), message: "the answer does not name this message".to_owned() }
}

#[cfg(test)]
mod tests;
