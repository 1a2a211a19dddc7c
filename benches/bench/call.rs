//! Calls of Invoke without sendoff: as a service makes them with aws-sdk-lambda, and as cheaply as possible.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use aws_credential_types::Credentials;
use aws_sdk_lambda::types::InvocationType;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_types::Blob;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sendoff::clock::Clock;
use tokio::task::JoinSet;

use crate::{client, process};

const REGION: &str = "eu-central-1";

#[derive(Debug, Args)]
pub struct Options {
    #[arg(long)]
    transport: Transport,
    #[arg(long)]
    url: String,
    #[arg(long)]
    events: u64,
    #[arg(long)]
    concurrency: usize,
    #[arg(long)]
    functions: usize,
    #[arg(long)]
    payload_bytes: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Transport {
    /// aws-sdk-lambda, used as in its documentation
    Sdk,
    /// aws-sigv4 and hyper's pooled client
    Signed,
}

pub struct Called {
    pub took: Duration,
    pub cpu_before: Duration,
}

/// One way to call. Cheap to clone.
#[derive(Clone)]
pub enum Caller {
    Sdk(aws_sdk_lambda::Client),
    Signed(Arc<Signed>),
}

pub struct Signed {
    client: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    url: String,
    credentials: Credentials,
    clock: Clock,
}

impl Caller {
    pub async fn new(transport: Transport, url: &str) -> Self {
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "bench");
        match transport {
            Transport::Sdk => {
                let http = aws_smithy_http_client::Builder::new()
                    .tls_provider(Provider::Rustls(CryptoMode::Ring))
                    .build_https();
                let config = aws_config::defaults(aws_config::BehaviorVersion::v2026_01_12())
                    .http_client(http)
                    .region(aws_config::Region::new(REGION))
                    .credentials_provider(credentials)
                    .endpoint_url(url)
                    .load()
                    .await;
                Self::Sdk(aws_sdk_lambda::Client::new(&config))
            }
            Transport::Signed => {
                let mut connector = HttpConnector::new();
                connector.set_nodelay(true);
                let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
                Self::Signed(Arc::new(Signed { client, url: url.to_owned(), credentials, clock: Clock::system() }))
            }
        }
    }

    /// Makes one Event call. Any answer except 202 is an error.
    pub async fn call(&self, function: String, payload: Bytes) -> anyhow::Result<()> {
        let status = match self {
            Self::Sdk(client) => {
                let call = client.invoke().invocation_type(InvocationType::Event).function_name(function);
                call.payload(Blob::from_maybe_shared(payload)).send().await?.status_code()
            }
            Self::Signed(signed) => signed.call(&function, payload).await?,
        };
        anyhow::ensure!(status == 202, "answered {status}");
        Ok(())
    }
}

impl Signed {
    async fn call(&self, function: &str, payload: Bytes) -> anyhow::Result<i32> {
        let uri = format!("{}/2015-03-31/functions/{function}/invocations", self.url);
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name("lambda")
            .time(UNIX_EPOCH + Duration::from_millis(self.clock.now().0))
            .settings(SigningSettings::default())
            .build()?
            .into();
        let headers = [("x-amz-invocation-type", "Event")];
        let request = SignableRequest::new("POST", &uri, headers.into_iter(), SignableBody::Bytes(&payload))?;
        let (signature, _) = sign(request, &params)?.into_parts();
        let mut request = http::Request::post(&uri).header(headers[0].0, headers[0].1).body(Full::new(payload))?;
        signature.apply_to_request_http1x(&mut request);
        let answer = self.client.request(request).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok(i32::from(status))
    }
}

/// Calls in a closed loop, after one call on each connection that does not count.
pub async fn run(options: &Options) -> anyhow::Result<Called> {
    let clock = Clock::system();
    let caller = Caller::new(options.transport, &options.url).await;
    let concurrency = u64::try_from(options.concurrency)?;
    calls(&caller, options, concurrency).await?;
    let cpu_before = process::cpu(std::process::id())?;
    let began = clock.instant();
    calls(&caller, options, options.events).await?;
    Ok(Called { took: began.elapsed(), cpu_before })
}

async fn calls(caller: &Caller, options: &Options, events: u64) -> anyhow::Result<()> {
    let left = Arc::new(AtomicU64::new(events));
    let payload = Bytes::from(client::payload(options.payload_bytes));
    let functions = options.functions as u64;
    let mut loops = JoinSet::new();
    for _ in 0..options.concurrency {
        let (caller, left, payload) = (caller.clone(), Arc::clone(&left), payload.clone());
        loops.spawn(async move {
            while let Ok(number) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
                caller.call(format!("f{}", number % functions), payload.clone()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = loops.join_next().await {
        ended.context("a caller panicked")??;
    }
    Ok(())
}
