//! AWS Lambda as [`Passthrough`]: the same endpoint and credentials as for Events, but the answer as it comes.
//!
//! The SDK's client reads every answer whole before it gives it, so the request is made here and signed with the SDK's
//! signer (docs/adr/0010).

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_lambda::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorSettings};
use aws_smithy_types::body::SdkBody;
use aws_types::service_config::ServiceConfigKey;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::BodyExt;
use tokio::sync::Mutex;

use super::placed::Placed;
use super::{CREDENTIALS_TIMEOUT, Endpoint, Error, IDLE_TIMEOUT, Place, Settings, Shared, is_region, words_of};
use crate::clock::{Clock, UnixMillis};
use crate::event::Function;
use crate::ingest::passthrough::{AnswerBody, Call, Failed, Operation, Passthrough};

/// How long before they expire credentials are fetched anew: a signature must outlast its way.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

/// How long credentials are kept that do not say when they expire: as long as the SDK keeps them.
const KEPT_WITHOUT_EXPIRY: Duration = Duration::from_secs(15 * 60);

/// What we call ourselves, as every client of AWS does.
const PRODUCT: &str = concat!("sendoff/", env!("CARGO_PKG_VERSION"));

/// The way through to Lambda, in every region that functions are addressed in.
#[derive(Debug, Clone)]
pub struct LambdaPassthrough {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The daemon's own region.
    region: String,
    /// None: each region's public endpoint.
    endpoint_url: Option<String>,
    use_fips: Option<bool>,
    use_dual_stack: Option<bool>,
    resolver: DefaultResolver,
    credentials: Cached,
    connector: Connector,
    clock: Clock,
}

impl LambdaPassthrough {
    pub fn new(shared: &Shared, settings: &Settings, clock: Clock) -> Result<Self, Error> {
        let Place { region, endpoint, timeouts } = shared.place("lambda", settings)?;
        let endpoint_url = match endpoint {
            Endpoint::At(url) => Some(url),
            Endpoint::Public => None,
            Endpoint::AsConfigured => configured_endpoint(shared),
        };
        let mut connecting = HttpConnectorSettings::builder();
        connecting.set_connect_timeout(timeouts.connect_timeout());
        let connector = Connector::builder()
            .connector_settings(connecting.build())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build();
        let credentials = Cached { provider: shared.config.credentials_provider(), kept: Mutex::new(None) };
        let (use_fips, use_dual_stack) = (shared.config.use_fips(), shared.config.use_dual_stack());
        let resolver = DefaultResolver::new();
        let inner = Inner { region, endpoint_url, use_fips, use_dual_stack, resolver, credentials, connector, clock };
        Ok(Self { shared: Arc::new(inner) })
    }
}

/// What environment and profile say for Lambda, else for all services: as the SDK's own client reads it.
fn configured_endpoint(shared: &Shared) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id("Lambda").env("AWS_ENDPOINT_URL").profile("endpoint_url");
    let of_lambda = shared.config.service_config().zip(key.build().ok()).and_then(|(all, key)| all.load_config(key));
    of_lambda.or_else(|| shared.config.endpoint_url().map(str::to_owned))
}

impl Passthrough for LambdaPassthrough {
    async fn call(&self, call: Call) -> Result<Response<AnswerBody>, Failed> {
        let request = self.shared.request(call).await.map_err(Failed::NotSent)?;
        let request = aws_smithy_runtime_api::http::Request::try_from(request.map(SdkBody::from))
            .map_err(|error| Failed::NotSent(words_of(&error)))?;
        let response = self.shared.connector.call(request).await.map_err(|error| {
            let words = words_of(&error);
            if super::lambda::never_connected(&error) { Failed::NotSent(words) } else { Failed::Lost(words) }
        })?;
        let response = response.try_into_http1x().map_err(|error| Failed::Lost(words_of(&error)))?;
        Ok(response.map(BodyExt::boxed_unsync))
    }
}

impl Passthrough for Placed<LambdaPassthrough> {
    async fn call(&self, call: Call) -> Result<Response<AnswerBody>, Failed> {
        match self {
            Self::At(passthrough) => passthrough.call(call).await,
            Self::Nowhere(error) => Err(Failed::NotSent(error.to_string())),
        }
    }
}

impl Inner {
    /// The call as a signed request, or in words why there can be none.
    async fn request(&self, call: Call) -> Result<Request<Bytes>, String> {
        let region = call.function.region.as_deref().unwrap_or(&self.region);
        if !is_region(region) {
            return Err("the function's region cannot be a region's name".to_owned());
        }
        let endpoint = self.endpoint(region).await?;
        let uri: Uri = format!("{}{}", endpoint.trim_end_matches('/'), path(call.operation, &call.function))
            .parse()
            .map_err(|error| format!("the endpoint {endpoint:?} cannot be called: {error}"))?;
        let mut request = Request::new(call.payload);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = call.headers;
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(PRODUCT));
        let credentials = self.credentials.get(&self.clock).await?;
        signed(&mut request, credentials, region, self.clock.now())?;
        let length = HeaderValue::from(request.body().len());
        request.headers_mut().insert(CONTENT_LENGTH, length);
        Ok(request)
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

/// Path and query, each label encoded once; signing encodes the path once more.
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

/// All but RFC 3986's unreserved characters, as the signature's canonical form has it.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Signs with version 4: path encoded twice and the payload hashed, as Lambda wants it (unsigned payloads are S3's alone).
fn signed(request: &mut Request<Bytes>, credentials: Credentials, region: &str, now: UnixMillis) -> Result<(), String> {
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("lambda")
        .time(UNIX_EPOCH + Duration::from_millis(now.0))
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| words_of(&error))?
        .into();
    let uri = request.uri().to_string();
    let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let signable = SignableRequest::new("POST", &uri, headers, SignableBody::Bytes(request.body()))
        .map_err(|error| words_of(&error))?;
    let (instructions, _signature) = sign(signable, &params).map_err(|error| words_of(&error))?.into_parts();
    instructions.apply_to_request_http1x(request);
    Ok(())
}

/// Credentials and when they were fetched: the provider asks its source anew each time.
#[derive(Debug)]
struct Cached {
    provider: Option<SharedCredentialsProvider>,
    /// Locked while they are fetched, so that they are fetched once.
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    credentials: Credentials,
    until: UnixMillis,
}

impl Cached {
    async fn get(&self, clock: &Clock) -> Result<Credentials, String> {
        let provider = self.provider.as_ref().ok_or("there is no provider of credentials")?;
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| clock.now().plus(EXPIRY_MARGIN) < kept.until) {
            return Ok(kept.credentials.clone());
        }
        let fetched = tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await;
        let credentials = fetched
            .map_err(|_elapsed| format!("no credentials within {CREDENTIALS_TIMEOUT:?}"))?
            .map_err(|error| words_of(&error))?;
        let expires = credentials.expiry().and_then(|expiry| expiry.duration_since(UNIX_EPOCH).ok());
        let until = match expires {
            Some(since_epoch) => UnixMillis::default().plus(since_epoch),
            None => clock.now().plus(KEPT_WITHOUT_EXPIRY),
        };
        *kept = Some(Kept { credentials: credentials.clone(), until });
        Ok(credentials)
    }
}

#[cfg(test)]
mod tests;
