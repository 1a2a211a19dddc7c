//! Implements [`Invoke`] for Event invocations, the call made for every event. Uses the SDK's credentials, signer and
//! connector, but not its orchestrator, which takes most of a call's time (docs/adr/0005, docs/performance.md).
//!
//! Holds: sends the same bytes as [`Lambda`], except for the SDK's headers about itself, and reads answers the same way.
//! The SDK's client makes the calls to other regions and those that wait for the function's result.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_lambda::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorSettings};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::HttpError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Limited};

use super::answer::{Asked, answer_of};
use super::lambda::{Lambda, TRACE_HEADER, context, never_connected};
use super::sign::{Keeper, percent_encode, signed};
use super::wire::Connector;
use super::{Error, Place, Settings, Shared, words_of};
use crate::clock::Clock;
use crate::dispatch::{Answer, Call, Failure, FailureKind, Invoke, Mode, Reply};
use crate::event::Function;
use crate::event::sendable::is_dot_segment;
use crate::hop;

mod skew;

use skew::Skew;

/// The most bytes read of an answer's body. Lambda's errors are short, and a proxy's page carries no information.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The `User-Agent` header.
const PRODUCT: &str = concat!("sendoff/", env!("CARGO_PKG_VERSION"));

const INVOCATION_TYPE: HeaderName = HeaderName::from_static("x-amz-invocation-type");
const CLIENT_CONTEXT: HeaderName = HeaderName::from_static("x-amz-client-context");
const TENANT_ID: HeaderName = HeaderName::from_static("x-amz-tenant-id");
const DURABLE_EXECUTION_NAME: HeaderName = HeaderName::from_static("x-amz-durable-execution-name");
const TRACE_ID: HeaderName = HeaderName::from_static(TRACE_HEADER);

/// How Event invocations are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Through [`Direct`].
    #[default]
    Direct,
    /// Through [`Lambda`], the client of aws-sdk-lambda.
    Sdk,
}

/// Lambda by either transport. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Client {
    Direct(Direct),
    Sdk(Lambda),
}

impl Client {
    pub async fn new(shared: &Shared, settings: &Settings, transport: Transport, clock: Clock) -> Result<Self, Error> {
        let sdk = Lambda::new(shared, settings)?;
        Ok(match transport {
            Transport::Sdk => Self::Sdk(sdk),
            Transport::Direct => Self::Direct(Direct::new(shared, settings, sdk, clock).await?),
        })
    }
}

impl Invoke for Client {
    async fn invoke(&self, call: Call) -> Reply {
        match self {
            Self::Direct(direct) => direct.invoke(call).await,
            Self::Sdk(sdk) => sdk.invoke(call).await,
        }
    }

    async fn dry_run(&self, function: Function) -> Reply {
        match self {
            Self::Direct(direct) => direct.dry_run(function).await,
            Self::Sdk(sdk) => sdk.dry_run(function).await,
        }
    }
}

/// The direct transport. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Direct {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sdk: Lambda,
    region: String,
    /// Has no trailing slash.
    endpoint: String,
    credentials: Keeper,
    connector: Connector,
    /// The mark of this process.
    hop: HeaderValue,
    /// Ends a call whose answer does not end.
    whole: Duration,
    clock: Clock,
    skew: Skew,
}

impl Direct {
    async fn new(shared: &Shared, settings: &Settings, sdk: Lambda, clock: Clock) -> Result<Self, Error> {
        let Place { region, endpoint_url, timeouts } = shared.place("lambda", settings)?;
        let endpoint = resolve(shared, &region, endpoint_url).await?;
        let mut connecting = HttpConnectorSettings::builder();
        connecting.set_connect_timeout(timeouts.connect_timeout()).set_read_timeout(timeouts.read_timeout());
        let connector = shared.wire.connector(connecting.build());
        let credentials = shared.credentials.clone();
        let whole = timeouts.operation_attempt_timeout().unwrap_or(Duration::MAX);
        Ok(Self {
            shared: Arc::new(Inner {
                sdk,
                region,
                endpoint,
                credentials,
                connector,
                hop: shared.own.hop.value(),
                whole,
                clock,
                skew: Skew::default(),
            }),
        })
    }
}

/// Resolves the endpoint as the SDK's client does, but once instead of for every call.
async fn resolve(shared: &Shared, region: &str, configured: Option<String>) -> Result<String, Error> {
    let unusable = |why: String| Error::Endpoint { service: "lambda", why };
    let params = Params::builder()
        .region(region)
        .set_endpoint(configured)
        .set_use_fips(shared.config.use_fips())
        .set_use_dual_stack(shared.config.use_dual_stack())
        .build()
        .map_err(|error| unusable(words_of(&error)))?;
    let found = DefaultResolver::new().resolve_endpoint(&params).await;
    let found = found.map_err(|error| unusable(words_of(&*error)))?;
    Ok(found.url().trim_end_matches('/').to_owned())
}

impl Invoke for Direct {
    async fn invoke(&self, call: Call) -> Reply {
        let inner = &*self.shared;
        let elsewhere = call.function.region.as_ref().is_some_and(|region| *region != inner.region);
        if elsewhere || call.mode != Mode::Event {
            return inner.sdk.invoke(call).await;
        }
        let signed = match inner.signed(call).await {
            Ok(signed) => signed,
            Err(failure) => return Reply::NotSent(failure),
        };
        // The time-out covers only the call itself: a call that waits for credentials has sent nothing yet.
        tokio::time::timeout(inner.whole, inner.send(signed)).await.unwrap_or_else(|_elapsed| {
            let message = format!("no complete answer within {:?}", inner.whole);
            Reply::Lost(Failure { kind: FailureKind::ReadTimeout, message })
        })
    }

    async fn dry_run(&self, function: Function) -> Reply {
        self.shared.sdk.dry_run(function).await
    }
}

impl Inner {
    /// The signed request, or why it cannot be sent.
    async fn signed(&self, call: Call) -> Result<HttpRequest, Failure> {
        let unbuildable = |message| Failure { kind: FailureKind::Unbuildable, message };
        let mut request = request(&self.endpoint, call).map_err(unbuildable)?;
        let credentials = self.credentials.get().await;
        let credentials = credentials.map_err(|message| Failure { kind: FailureKind::Credentials, message })?;
        let time = self.skew.corrected(self.clock.wall());
        signed(&mut request, credentials, &self.region, time).map_err(unbuildable)?;
        request.headers_mut().insert(hop::HEADER, self.hop.clone());
        request.map(SdkBody::from).try_into().map_err(|error: HttpError| unbuildable(words_of(&error)))
    }

    async fn send(&self, request: HttpRequest) -> Reply {
        match self.connector.call(request).await {
            Ok(response) => {
                let date = response.headers().get("date").map(str::to_owned);
                let answer = read(response).await;
                self.credentials.refused(answer.code.as_deref());
                self.skew.learn(answer.code.as_deref(), date.as_deref(), self.clock.wall());
                Reply::Answer(answer)
            }
            Err(error) => failed(&error),
        }
    }
}

/// The request without its signature, or why there can be none.
fn request(endpoint: &str, call: Call) -> Result<Request<Bytes>, String> {
    let Call { function, key, carried, payload, mode: _ } = call;
    if function.address.is_empty() {
        return Err("the function's name is empty".to_owned());
    }
    if is_dot_segment(&function.address) {
        return Err(format!("the path to a function called {:?} leads elsewhere", function.address));
    }
    let name = percent_encode(&function.address);
    let mut uri = format!("{endpoint}/2015-03-31/functions/{name}/invocations");
    if let Some(qualifier) = &function.qualifier {
        uri.push_str("?Qualifier=");
        uri.push_str(&percent_encode(qualifier));
    }
    let length = payload.len();
    let context = context::with_key(carried.client_context, &key.value);
    let mut request = Request::post(uri)
        .header(INVOCATION_TYPE, HeaderValue::from_static("Event"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
        .header(CONTENT_LENGTH, length)
        .header(USER_AGENT, HeaderValue::from_static(PRODUCT))
        .header(CLIENT_CONTEXT, context);
    let rest = [
        (TENANT_ID, carried.tenant_id),
        (DURABLE_EXECUTION_NAME, carried.durable_execution_name),
        (TRACE_ID, carried.trace_header),
    ];
    for (name, value) in rest {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    request.body(payload).map_err(|error| words_of(&error))
}

/// The answer as plain data. The status decides: an answer counts even if its body breaks off.
async fn read(mut response: HttpResponse) -> Answer {
    let body = Limited::new(response.take_body(), ANSWER_BYTES_MAX).collect().await;
    *response.body_mut() = SdkBody::from(body.map(|body| body.to_bytes()).unwrap_or_default());
    answer_of(Asked::Event, &response)
}

/// The reply for a call without an answer. It counts as lost unless the request was certainly not sent.
fn failed(error: &ConnectorError) -> Reply {
    let failure = |kind| Failure { kind, message: words_of(error) };
    if error.is_user() {
        Reply::NotSent(failure(FailureKind::Unbuildable))
    } else if never_connected(error) {
        Reply::NotSent(failure(FailureKind::Connect))
    } else if error.is_timeout() {
        Reply::Lost(failure(FailureKind::ReadTimeout))
    } else {
        Reply::Lost(failure(FailureKind::Closed))
    }
}

#[cfg(test)]
mod tests;
