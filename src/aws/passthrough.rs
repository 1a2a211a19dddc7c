//! Implements [`Passthrough`]: the same endpoint and credentials as for Events, but answers are streamed.
//!
//! The SDK's client reads an answer completely before it returns it. So this module makes the request itself and signs
//! it with the SDK's signer (docs/adr/0010).

use std::sync::Arc;

use aws_sdk_lambda::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorSettings};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::BodyExt;

use super::answer::bare_code;
use super::configured::Configured;
use super::sign::{Keeper, percent_encode, signed};
use super::wire::Connector;
use super::{Error, Place, Settings, Shared, is_region, words_of};
use crate::clock::Clock;
use crate::event::Function;
use crate::hop;
use crate::ingest::passthrough::{AnswerBody, Failed, Operation, Other, Passthrough, PassthroughCall};

/// The `User-Agent` header.
const PRODUCT: &str = concat!("sendoff/", env!("CARGO_PKG_VERSION"));

/// Passes calls through to Lambda, in all regions that functions are addressed in.
#[derive(Debug, Clone)]
pub struct LambdaPassthrough {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The daemon's own region.
    region: String,
    /// `None` means each region's public endpoint.
    endpoint_url: Option<String>,
    use_fips: Option<bool>,
    use_dual_stack: Option<bool>,
    resolver: DefaultResolver,
    credentials: Keeper,
    connector: Connector,
    clock: Clock,
    /// The mark of this process.
    hop: HeaderValue,
}

impl LambdaPassthrough {
    pub fn new(shared: &Shared, settings: &Settings, clock: Clock) -> Result<Self, Error> {
        let Place { region, endpoint_url, timeouts } = shared.place("lambda", settings)?;
        let mut connecting = HttpConnectorSettings::builder();
        connecting.set_connect_timeout(timeouts.connect_timeout());
        let connector = shared.wire.connector(connecting.build());
        let credentials = shared.credentials.clone();
        let (use_fips, use_dual_stack) = (shared.config.use_fips(), shared.config.use_dual_stack());
        let resolver = DefaultResolver::new();
        let hop = shared.own.hop.value();
        let inner =
            Inner { region, endpoint_url, use_fips, use_dual_stack, resolver, credentials, connector, clock, hop };
        Ok(Self { shared: Arc::new(inner) })
    }
}

impl Passthrough for LambdaPassthrough {
    async fn call(&self, call: PassthroughCall) -> Result<Response<AnswerBody>, Failed> {
        let request = self.shared.request(call).await.map_err(Failed::NotSent)?;
        self.shared.send(request).await
    }

    async fn other(&self, other: Other) -> Result<Response<AnswerBody>, Failed> {
        let Other { method, target, headers, payload } = other;
        let region = &self.shared.region;
        let request = self.shared.signed(region, method, &target, headers, payload).await.map_err(Failed::NotSent)?;
        self.shared.send(request).await
    }
}

impl Passthrough for Configured<LambdaPassthrough> {
    async fn call(&self, call: PassthroughCall) -> Result<Response<AnswerBody>, Failed> {
        match self {
            Self::Ready(passthrough) => passthrough.call(call).await,
            Self::Incomplete(error) => Err(Failed::NotSent(error.to_string())),
        }
    }

    async fn other(&self, other: Other) -> Result<Response<AnswerBody>, Failed> {
        match self {
            Self::Ready(passthrough) => passthrough.other(other).await,
            Self::Incomplete(error) => Err(Failed::NotSent(error.to_string())),
        }
    }
}

impl Inner {
    /// The signed request, or why there can be none.
    async fn request(&self, call: PassthroughCall) -> Result<Request<Bytes>, String> {
        let region = call.function.region.as_deref().unwrap_or(&self.region);
        if !is_region(region) {
            return Err("the function's region cannot be a region's name".to_owned());
        }
        let target = path(call.operation, &call.function);
        self.signed(region, Method::POST, &target, call.headers, call.payload).await
    }

    async fn signed(
        &self,
        region: &str,
        method: Method,
        target: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Request<Bytes>, String> {
        let endpoint = self.endpoint(region).await?;
        let uri: Uri = format!("{}{target}", endpoint.trim_end_matches('/'))
            .parse()
            .map_err(|error| format!("the endpoint {endpoint:?} cannot be called: {error}"))?;
        let sends_length = method == Method::POST || !payload.is_empty();
        let mut request = Request::new(payload);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(PRODUCT));
        let credentials = self.credentials.get().await?;
        signed(&mut request, credentials, region, self.clock.wall())?;
        request.headers_mut().insert(hop::HEADER, self.hop.clone());
        if sends_length {
            let length = HeaderValue::from(request.body().len());
            request.headers_mut().insert(CONTENT_LENGTH, length);
        }
        Ok(request)
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<AnswerBody>, Failed> {
        let request = aws_smithy_runtime_api::http::Request::try_from(request.map(SdkBody::from))
            .map_err(|error| Failed::NotSent(words_of(&error)))?;
        let response = self.connector.call(request).await.map_err(|error| {
            let words = words_of(&error);
            if super::lambda::never_connected(&error) { Failed::NotSent(words) } else { Failed::Lost(words) }
        })?;
        self.credentials.refused(response.headers().get("x-amzn-errortype").map(bare_code));
        let response = response.try_into_http1x().map_err(|error| Failed::Lost(words_of(&error)))?;
        Ok(response.map(BodyExt::boxed_unsync))
    }

    async fn endpoint(&self, region: &str) -> Result<String, String> {
        let params = Params::builder()
            .region(region)
            .set_endpoint(self.endpoint_url.clone())
            .set_use_fips(self.use_fips)
            .set_use_dual_stack(self.use_dual_stack)
            .build()
            .map_err(|error| words_of(&error))?;
        let endpoint = self.resolver.resolve_endpoint(&params).await.map_err(|error| words_of(&*error))?;
        Ok(endpoint.url().to_owned())
    }
}

/// Path and query, each label encoded once. Signing encodes the path a second time.
fn path(operation: Operation, function: &Function) -> String {
    let name = percent_encode(&function.address);
    let path = match operation {
        Operation::Invoke => format!("/2015-03-31/functions/{name}/invocations"),
        Operation::InvokeWithResponseStream => {
            format!("/2021-11-15/functions/{name}/response-streaming-invocations")
        }
    };
    match &function.qualifier {
        Some(qualifier) => format!("{path}?Qualifier={}", percent_encode(qualifier)),
        None => path,
    }
}

#[cfg(test)]
mod tests;
