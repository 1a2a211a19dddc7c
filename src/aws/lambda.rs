//! AWS Lambda as [`Invoke`].

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_sdk_lambda::client::Client;
use aws_sdk_lambda::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
    BeforeTransmitInterceptorContextRef,
};
use aws_sdk_lambda::config::{ConfigBag, Intercept, Region, RuntimeComponents};
use aws_sdk_lambda::error::{BoxError, SdkError};
use aws_sdk_lambda::operation::RequestId;
use aws_sdk_lambda::operation::invoke::InvokeError;
use aws_sdk_lambda::types::InvocationType;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::Blob;
use aws_smithy_types::timeout::TimeoutConfig;
use serde::Deserialize;

use super::answer::{Asked, Signs, answer_of, judged};
use super::regional::RegionalClients;
use super::sign::Keeper;
use super::{Error, Place, Settings, Shared, Stage, causes, is_region, words_of};
use crate::dispatch::{Answer, Call, Failure, FailureKind, Invoke, Mode, Reply};
use crate::event::Function;
use crate::event::sendable::is_dot_segment;
use crate::hop::{self, Hop};

pub(super) mod context;

/// How many bytes of a function's answer are shown as its error if the answer is not the usual error object.
const FUNCTION_ERROR_BYTES_MAX: usize = 4_096;

/// The name of Lambda's trace header.
pub(super) const TRACE_HEADER: &str = "x-amzn-trace-id";

/// Lambda in all regions that functions are addressed in.
#[derive(Debug, Clone)]
pub struct Lambda {
    shared: Arc<Regions>,
}

#[derive(Debug)]
struct Regions {
    own: Client,
    config: aws_sdk_lambda::config::Builder,
    others: RegionalClients<Client>,
    hop: Hop,
    credentials: Keeper,
}

impl Lambda {
    pub fn new(shared: &Shared, settings: &Settings) -> Result<Self, Error> {
        Ok(Self::at(shared, shared.place("lambda", settings)?))
    }

    fn at(shared: &Shared, place: Place) -> Self {
        let config = aws_sdk_lambda::config::Builder::from(&shared.config(place));
        let own = Client::from_conf(config.clone().build());
        Self {
            shared: Arc::new(Regions {
                own,
                config,
                others: RegionalClients::default(),
                hop: shared.own.hop.clone(),
                credentials: shared.credentials.clone(),
            }),
        }
    }

    /// The client for a region. `None` if the text cannot be a region's name.
    fn client(&self, region: Option<&str>) -> Option<Client> {
        let Regions { own, config, others, hop: _, credentials: _ } = &*self.shared;
        let Some(region) = region.filter(|region| own.config().region().is_none_or(|own| own.as_ref() != *region))
        else {
            return Some(own.clone());
        };
        let make = || Client::from_conf(config.clone().region(Region::new(region.to_owned())).build());
        is_region(region).then(|| others.client(region, make))
    }
}

impl Lambda {
    /// Asks whether a function exists and may be invoked, without invoking it (`DryRun`). One call, no retries.
    pub(super) async fn ask(&self, region: Option<&str>, address: &str, qualifier: Option<String>) -> Reply {
        if is_dot_segment(address) {
            return leads_elsewhere();
        }
        let Some(client) = self.client(region) else { return not_a_region() };
        let progress = Progress::default();
        let asked = client
            .invoke()
            .invocation_type(InvocationType::DryRun)
            .function_name(address)
            .set_qualifier(qualifier)
            .customize()
            .interceptor(self.wire(None, &progress))
            .send()
            .await;
        match asked {
            Ok(output) => {
                let status = u16::try_from(output.status_code()).unwrap_or_default();
                let answer = Answer { status, ..Answer::default() };
                let body = output.payload().map(AsRef::as_ref);
                Reply::Answer(judged(Asked::DryRun, &progress.signs(), body, answer))
            }
            Err(error) => self.refused(reply_of(Asked::DryRun, &error, progress.stage())),
        }
    }
}

impl Lambda {
    /// Marks the credentials as refused if the error says so.
    fn refused(&self, reply: Reply) -> Reply {
        if let Reply::Answer(answer) = &reply {
            self.shared.credentials.refused(answer.code.as_deref());
        }
        reply
    }

    fn wire(&self, trace_header: Option<String>, progress: &Progress) -> Wire {
        Wire { trace_header, hop: self.shared.hop.clone(), progress: progress.clone() }
    }
}

fn not_a_region() -> Reply {
    let message = "the function's region cannot be a region's name".to_owned();
    Reply::NotSent(Failure { kind: FailureKind::Unbuildable, message })
}

fn leads_elsewhere() -> Reply {
    let message = "the path to a function of this name leads elsewhere".to_owned();
    Reply::NotSent(Failure { kind: FailureKind::Unbuildable, message })
}

impl Invoke for Lambda {
    async fn invoke(&self, call: Call) -> Reply {
        if is_dot_segment(&call.function.address) {
            return leads_elsewhere();
        }
        let Some(client) = self.client(call.function.region.as_deref()) else { return not_a_region() };
        let progress = Progress::default();
        let client_context = context::with_key(call.carried.client_context, &call.key.value);
        let (asked, invocation_type, timeouts) = match call.mode {
            Mode::Event => (Asked::Event, InvocationType::Event, None),
            Mode::Confirm { timeout } => {
                (Asked::Result, InvocationType::RequestResponse, Some(confirm_timeouts(&client, timeout)))
            }
        };
        let mut operation = client
            .invoke()
            .invocation_type(invocation_type)
            .function_name(call.function.address)
            .set_qualifier(call.function.qualifier)
            .set_client_context(Some(client_context))
            .set_tenant_id(call.carried.tenant_id)
            .set_durable_execution_name(call.carried.durable_execution_name)
            .payload(Blob::from_maybe_shared(call.payload))
            .customize()
            .interceptor(self.wire(call.carried.trace_header, &progress));
        if let Some(timeouts) = timeouts {
            operation = operation.config_override(aws_sdk_lambda::config::Builder::new().timeout_config(timeouts));
        }
        match operation.send().await {
            Ok(output) => {
                let answer = Answer {
                    status: u16::try_from(output.status_code()).unwrap_or_default(),
                    request_id: output.request_id().map(ToOwned::to_owned),
                    message: match (output.function_error(), output.payload()) {
                        (Some(_), Some(payload)) => words_of_function(payload.as_ref()),
                        (Some(_) | None, _) => String::new(),
                    },
                    function_error: output.function_error().map(ToOwned::to_owned),
                    ..Answer::default()
                };
                let body = output.payload().map(AsRef::as_ref);
                Reply::Answer(judged(asked, &progress.signs(), body, answer))
            }
            Err(error) => self.refused(reply_of(asked, &error, progress.stage())),
        }
    }

    async fn dry_run(&self, function: Function) -> Reply {
        self.ask(function.region.as_deref(), &function.address, function.qualifier).await
    }
}

/// The client's time-outs. Waits for the answer as long as a function may run.
fn confirm_timeouts(client: &Client, wait: Duration) -> TimeoutConfig {
    let usual = client.config().timeout_config().cloned().unwrap_or_else(TimeoutConfig::disabled);
    let whole = usual.operation_attempt_timeout().unwrap_or_default().saturating_add(wait);
    usual.to_builder().read_timeout(wait).operation_attempt_timeout(whole).build()
}

/// The error that a function returned: `errorType: errorMessage` if its runtime wrote these fields, else the raw text.
fn words_of_function(payload: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct FunctionError {
        error_type: Option<String>,
        error_message: String,
    }
    match serde_json::from_slice(payload) {
        Ok(FunctionError { error_type: Some(kind), error_message }) => format!("{kind}: {error_message}"),
        Ok(FunctionError { error_type: None, error_message }) => error_message,
        Err(_) => String::from_utf8_lossy(&payload[..payload.len().min(FUNCTION_ERROR_BYTES_MAX)]).into_owned(),
    }
}

/// What one call records: how far it got, and who answered.
#[derive(Debug, Clone, Default)]
struct Progress(Arc<Notes>);

#[derive(Debug, Default)]
struct Notes {
    stage: AtomicU8,
    signs: OnceLock<Signs>,
}

impl Progress {
    fn reached(&self, stage: Stage) {
        self.0.stage.store(stage as u8, Ordering::Relaxed);
    }

    fn signs(&self) -> Signs {
        self.0.signs.get().cloned().unwrap_or_default()
    }

    fn stage(&self) -> Stage {
        match self.0.stage.load(Ordering::Relaxed) {
            at if at >= Stage::Sending as u8 => Stage::Sending,
            at if at == Stage::Signing as u8 => Stage::Signing,
            _ => Stage::Preparing,
        }
    }
}

/// Adds headers that the SDK's model lacks, and records how far the call gets.
#[derive(Debug)]
struct Wire {
    trace_header: Option<String>,
    hop: Hop,
    progress: Progress,
}

impl Intercept for Wire {
    fn name(&self) -> &'static str {
        "sendoff"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.progress.reached(Stage::Signing);
        if let Some(header) = &self.trace_header {
            context.request_mut().headers_mut().try_insert(TRACE_HEADER, header.clone())?;
        }
        Ok(())
    }

    // Added after signing, because a proxy on the way may append its own name to this header.
    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let hop = self.hop.value();
        context.request_mut().headers_mut().try_insert(hop::HEADER_TEXT, hop.to_str()?.to_owned())?;
        Ok(())
    }

    fn read_before_transmit(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.progress.reached(Stage::Sending);
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.progress.0.signs.get_or_init(|| Signs::of(context.response().headers()));
        Ok(())
    }
}

/// An SDK error as plain data. The call counts as lost unless the request was certainly not sent.
fn reply_of(asked: Asked, error: &SdkError<InvokeError, HttpResponse>, stage: Stage) -> Reply {
    if let Some(response) = error.raw_response() {
        return Reply::Answer(answer_of(asked, response));
    }
    let failure = |kind| Failure { kind, message: words_of(error) };
    match (stage, error) {
        (_, SdkError::ConstructionFailure(_)) | (Stage::Signing, _) => {
            Reply::NotSent(failure(FailureKind::Unbuildable))
        }
        (Stage::Preparing, _) => Reply::NotSent(failure(FailureKind::Credentials)),
        (Stage::Sending, SdkError::DispatchFailure(_)) if never_connected(error) => {
            Reply::NotSent(failure(FailureKind::Connect))
        }
        (Stage::Sending, SdkError::TimeoutError(_)) => Reply::Lost(failure(FailureKind::ReadTimeout)),
        (Stage::Sending, SdkError::DispatchFailure(dispatch)) if dispatch.is_timeout() => {
            Reply::Lost(failure(FailureKind::ReadTimeout))
        }
        (Stage::Sending, _) => Reply::Lost(failure(FailureKind::Closed)),
    }
}

/// Whether connecting failed: name resolution, TCP, TLS, or their time-out. The SDK's own flag for it is private.
pub(super) fn never_connected(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|cause| {
        cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect())
            || cause.to_string().starts_with("HTTP connect")
    })
}

#[cfg(test)]
mod tests;
