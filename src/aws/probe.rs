//! Finds out what sendoff may do in AWS. Invokes no function, sends no message, and needs no extra permission.
//!
//! In: names of functions and queues. Out: findings, each with the policy that grants what is missing.
//! Holds: functions are asked with `DryRun`. Queues are sent a batch that SQS refuses for its form.
//! Limits: the time-outs of the settings. Makes one call after the other.

use std::time::Duration;

use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_sts::config::Region;
use aws_sdk_sts::config::retry::RetryConfig;

use super::lambda::Lambda;
use super::sqs::{QueueSettings, Sqs};
use super::{CREDENTIALS_TIMEOUT, Error, Settings, Shared, timeouts, words_of};
use crate::deadletter::Trouble;
use crate::dispatch::{Answer, FailureKind, Reply};

/// The shortest retention of a hand-off queue. Nobody may run a sendoff for a weekend.
const RETENTION_MIN: Duration = Duration::from_secs(4 * 24 * 3_600);

mod place;

pub use place::{Queue, Target};

/// The finding about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub subject: String,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It works. The text says how much of it was tested.
    Proven(String),
    /// It does not work until somebody repairs it. The texts are the answer and what to do.
    Missing { said: String, remedy: String },
    /// Unknown. sendoff may still work.
    Unknown(String),
}

impl Finding {
    fn new(subject: impl Into<String>, verdict: Verdict) -> Self {
        Self { subject: subject.into(), verdict }
    }

    pub fn is_missing(&self) -> bool {
        matches!(self.verdict, Verdict::Missing { .. })
    }
}

/// What sendoff uses a queue for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    DeadLetters,
    /// It hands events over to it, ...
    HandOff,
    /// ... or takes them from it.
    Receive,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::DeadLetters => "queue",
            Self::HandOff => "hand-off queue",
            Self::Receive => "receive queue",
        }
    }

    /// The policy that allows it.
    fn policy(self) -> &'static str {
        match self {
            Self::DeadLetters => "deploy/iam/dead-letter.json",
            Self::HandOff => "deploy/iam/handoff-send.json",
            Self::Receive => "deploy/iam/handoff-receive.json",
        }
    }

    /// The key of the configuration that names it.
    fn key(self) -> &'static str {
        match self {
            Self::DeadLetters => "dead_letter.queue_url",
            Self::HandOff => "handoff.to",
            Self::Receive => "handoff.receive_queue",
        }
    }
}

/// Asks AWS as the daemon would: with its credentials, at its endpoints.
#[derive(Debug, Clone)]
pub struct Probe {
    shared: Shared,
    lambda: Lambda,
    sqs: Sqs,
    settings: Settings,
    /// The identity behind the credentials, once STS has told it.
    account_id: Option<String>,
}

impl Probe {
    /// Fails if the daemon would not start, or would wait for a region.
    pub fn new(shared: &Shared, lambda: &Settings, sqs: &Settings) -> Result<Self, Error> {
        Ok(Self {
            shared: shared.clone(),
            lambda: Lambda::new(shared, lambda)?,
            sqs: Sqs::new(shared, sqs)?,
            settings: lambda.clone(),
            account_id: None,
        })
    }

    /// Whether there are credentials, and to whom they belong.
    pub async fn credentials(&mut self) -> Vec<Finding> {
        let subject = "credentials";
        let remedy = "give sendoff a role: an instance profile, EKS Pod Identity or IRSA, or AWS_PROFILE or keys in its \
                      environment (docs/iam.md)";
        let missing = |said: String| vec![Finding::new(subject, Verdict::Missing { said, remedy: remedy.to_owned() })];
        let Some(provider) = self.shared.config.credentials_provider() else {
            return missing("no source of credentials is configured".to_owned());
        };
        match tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await {
            Err(_elapsed) => missing(format!("their source does not answer within {CREDENTIALS_TIMEOUT:?}")),
            Ok(Err(error)) => missing(words_of(&error)),
            Ok(Ok(credentials)) => {
                let proven = format!("found, access key {}", credentials.access_key_id());
                vec![Finding::new(subject, Verdict::Proven(proven)), self.identity().await]
            }
        }
    }

    /// The identity behind the credentials, by `GetCallerIdentity`, which needs no permission.
    async fn identity(&mut self) -> Finding {
        let region = self.settings.region.as_deref().or(self.shared.region()).unwrap_or("us-east-1");
        let mut config = aws_sdk_sts::config::Builder::from(&self.shared.config)
            .region(Region::new(region.to_owned()))
            .timeout_config(timeouts(&self.settings))
            .retry_config(RetryConfig::disabled());
        if self.settings.ignore_configured_endpoint_urls {
            config.set_endpoint_url(None);
        }
        let client = aws_sdk_sts::Client::from_conf(config.build());
        let asked = client.get_caller_identity().send().await;
        let verdict = match &asked {
            Ok(identity) => {
                self.account_id = identity.account().map(str::to_owned);
                Verdict::Proven(identity.arn().unwrap_or("an identity without a name").to_owned())
            }
            Err(error) => {
                let code = aws_sdk_sts::error::ProvideErrorMetadata::code(error);
                let said = said(
                    code,
                    &aws_sdk_sts::error::ProvideErrorMetadata::message(error)
                        .map_or_else(|| words_of(error), str::to_owned),
                );
                match code.and_then(remedy_of_credentials) {
                    Some(remedy) => Verdict::Missing { said, remedy: remedy.to_owned() },
                    None => Verdict::Unknown(format!("STS does not say ({said}); sendoff itself does not need it")),
                }
            }
        };
        Finding::new("identity", verdict)
    }

    /// Whether a function exists and may be invoked.
    pub async fn function(&self, target: &Target) -> Finding {
        let reply = self.lambda.ask(target.region.as_deref(), &target.address, None).await;
        let region = target.region.as_deref().or(self.settings.region.as_deref()).or(self.shared.region());
        let arn = target.arn(region, self.account_id.as_deref());
        Finding::new(format!("function {}", target.address), judge_function(&reply, &arn))
    }

    /// Whether a queue exists, may be looked at, and may be used for this.
    pub async fn queue(&self, queue: &str, role: Role) -> Vec<Finding> {
        let arn = Queue::of(queue, self.settings.region.as_deref().or(self.shared.region())).arn();
        let looked = self.sqs.facts_of(queue).await.map(|facts| {
            let days = facts.retention.as_secs() / 86_400;
            format!("there: takes {} bytes, keeps messages {days} days", facts.message_bytes_max)
        });
        let finding = |what: &str, answer, action: &str| {
            Finding::new(format!("{} {queue}: {what}", role.word()), judge_queue(answer, action, &arn, role))
        };
        let mut found = vec![finding("look", looked, "sqs:GetQueueAttributes")];
        match role {
            Role::DeadLetters | Role::HandOff => {
                found.push(finding("send", self.sqs.would_send(queue).await, "sqs:SendMessage"));
            }
            Role::Receive => {
                found.push(finding("receive", self.sqs.would_receive(queue).await, "sqs:ReceiveMessage"));
                found.push(finding("delete", self.sqs.would_delete(queue).await, "sqs:DeleteMessage"));
            }
        }
        found
    }
}

impl Probe {
    /// Whether a hand-off queue keeps what it is given until a sendoff takes it. Says nothing if it may not be looked at.
    pub async fn keeps(&self, queue: &str) -> Vec<Finding> {
        let Ok(settings) = self.sqs.settings_of(queue).await else { return Vec::new() };
        let finding =
            |(what, verdict): (&str, Verdict)| Finding::new(format!("hand-off queue {queue}: {what}"), verdict);
        judge_keeping(&settings).into_iter().map(finding).collect()
    }
}

/// Interprets the settings of a hand-off queue.
fn judge_keeping(settings: &QueueSettings) -> [(&'static str, Verdict); 3] {
    let QueueSettings { retention, redrive_policy, key, is_encrypted_by_sqs } = settings;
    let retention = match retention {
        None => Verdict::Unknown("SQS does not say how long it keeps messages".to_owned()),
        Some(time) if *time < RETENTION_MIN => Verdict::Missing {
            said: format!("it deletes events after {}, taken or not", humantime::format_duration(*time)),
            remedy: "raise its MessageRetentionPeriod to 1209600, which is 14 days".to_owned(),
        },
        Some(time) => Verdict::Proven(format!("it keeps events for {}", humantime::format_duration(*time))),
    };
    let redrive_policy = match redrive_policy {
        None => Verdict::Proven("none, so every event stays until a sendoff takes it".to_owned()),
        Some(policy) => Verdict::Unknown(format!(
            "SQS moves events away that full receivers give back too often: remove it, or raise maxReceiveCount ({policy})"
        )),
    };
    let encryption = match (key, is_encrypted_by_sqs) {
        (Some(key), _) => Verdict::Unknown(format!(
            "by {key}. Whether that key may be used shows only with a message: deploy/iam/dead-letter-kms.json"
        )),
        (None, true) => Verdict::Proven("by SQS's own key".to_owned()),
        (None, false) => Verdict::Unknown("payloads rest there unencrypted: set SqsManagedSseEnabled".to_owned()),
    };
    [("retention", retention), ("redrive policy", redrive_policy), ("encryption", encryption)]
}

/// Interprets the reply to a dry run.
fn judge_function(reply: &Reply, arn: &str) -> Verdict {
    let said = reply.in_words();
    let missing = |remedy: String| Verdict::Missing { said: said.clone(), remedy };
    let answer = match reply {
        Reply::Answer(answer) => answer,
        Reply::NotSent(failure) if failure.kind == FailureKind::Credentials => {
            return missing("see credentials above".to_owned());
        }
        Reply::NotSent(_) | Reply::Lost(_) => {
            return missing("let sendoff reach Lambda: name resolution, network, lambda.endpoint_url".to_owned());
        }
    };
    match answer {
        Answer { foreign: true, message, .. } => Verdict::Missing {
            said: format!("{} from something that is not Lambda", answer.status),
            remedy: message.clone(),
        },
        Answer { status: 200..=299, .. } => Verdict::Proven("there, and may be invoked (DryRun)".to_owned()),
        Answer { code: Some(code), .. } => match code.as_str() {
            "ResourceNotFoundException" => missing(format!("create {arn}, or correct its name, alias or region")),
            "AccessDeniedException" => missing(format!(
                "allow lambda:InvokeFunction on {arn}: deploy/iam/deliver.json, attached to the identity above"
            )),
            code => match remedy_of_credentials(code) {
                Some(remedy) => missing(remedy.to_owned()),
                None => Verdict::Unknown(format!("Lambda does not say: {said}")),
            },
        },
        Answer { code: None, .. } => Verdict::Unknown(format!("something between answers in Lambda's place: {said}")),
    }
}

/// Interprets SQS's answer.
fn judge_queue(answer: Result<String, Trouble>, action: &str, arn: &str, role: Role) -> Verdict {
    let Trouble { code, message, .. } = match answer {
        Ok(proven) => return Verdict::Proven(proven),
        Err(trouble) => trouble,
    };
    let said = said(Some(&code), &message);
    let missing = |remedy: String| Verdict::Missing { said: said.clone(), remedy };
    if code.contains("AccessDenied") {
        missing(format!(
            "allow {action} on {arn}: {}, attached to the identity above; a queue of another account must allow it in its \
             own policy, too",
            role.policy()
        ))
    } else if code.contains("NonExistentQueue") || code.contains("QueueDoesNotExist") {
        missing(format!("create {arn}, or correct {}", role.key()))
    } else if code.to_ascii_lowercase().contains("kms") {
        missing(
            "allow kms:GenerateDataKey and kms:Decrypt on the queue's key: deploy/iam/dead-letter-kms.json".to_owned(),
        )
    } else if code == "unreachable" {
        missing("let sendoff reach SQS: name resolution, network, sqs.endpoint_url".to_owned())
    } else if let Some(remedy) = remedy_of_credentials(&code) {
        missing(remedy.to_owned())
    } else {
        Verdict::Unknown(format!("SQS does not say: {said}"))
    }
}

/// What to do about the codes with which any AWS service refuses credentials.
fn remedy_of_credentials(code: &str) -> Option<&'static str> {
    let remedies = [
        ("Expired", "renew the credentials: these are past their time"),
        ("InvalidClientTokenId", "correct the access key: AWS does not know it"),
        ("UnrecognizedClient", "correct the access key: AWS does not know it"),
        ("InvalidAccessKeyId", "correct the access key: AWS does not know it"),
        ("SignatureDoesNotMatch", "correct the secret key, and see that the clock is right"),
        ("InvalidSignature", "correct the secret key, and see that the clock is right"),
        ("IncompleteSignature", "correct the keys: they make no whole signature"),
    ];
    remedies.iter().find(|(part, _)| code.contains(part)).map(|&(_, remedy)| remedy)
}

fn said(code: Option<&str>, message: &str) -> String {
    match code {
        Some(code) if message.is_empty() => code.to_owned(),
        Some(code) => format!("{code}: {message}"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
