//! Exports spans to an OpenTelemetry collector by OTLP over HTTP (protobuf).
//!
//! Holds: exports only the spans of [`trace`](crate::trace) and their fields, never a log line.
//! Limits: the SDK's batch processor queues 2,048 spans and drops further ones. An export takes 5 s at most.
//! Fails: never the daemon. Spans that a collector does not accept are lost.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Runtime;
use tracing::{Dispatch, Level};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::{Error, LevelError, LogLevel};
use crate::config::{Log, LogFormat};
use crate::trace::TARGET;

/// The time-out of an export. A stop waits this long for the last one.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes read of a collector's answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Sends the queued spans when dropped.
pub struct Exporter(SdkTracerProvider);

impl Drop for Exporter {
    fn drop(&mut self) {
        // An unreachable collector must not fail a stop.
        drop(self.0.shutdown_with_timeout(EXPORT_TIMEOUT));
    }
}

/// Writes log lines to `writer` as without an exporter, and exports spans to `endpoint`.
pub(super) fn subscriber<W>(
    log: &Log,
    endpoint: &str,
    colours: bool,
    writer: W,
) -> Result<(Dispatch, LogLevel, Exporter), Error>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let exporter = SpanExporter::builder().with_http().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT);
    let exporter =
        exporter.with_http_client(Collector::new()?).build().map_err(|error| Error::Otlp(error.to_string()))?;
    let resource = Resource::builder().with_service_name("sendoff").build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("sendoff"))
        .with_location(false)
        .with_threads(false)
        .with_filter(Targets::new().with_target(TARGET, Level::DEBUG));
    let (filter, handle) = reload::Layer::new(super::parse(&log.level)?);
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).log_internal_errors(false).with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Text => lines.fmt_fields(super::text_fields()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let dispatch =
        Dispatch::new(Registry::default().with(lines.with_filter(filter)).with(spans).with(super::discreet()));
    let set = Arc::new(move |filter| handle.reload(filter).map_err(|_| LevelError::Gone));
    Ok((dispatch, LogLevel { text: Arc::new(Mutex::new(log.level.clone())), set, lines: None }, Exporter(provider)))
}

/// The connection to a collector: plain HTTP, on the exporter's own thread and runtime.
struct Collector {
    runtime: Mutex<Runtime>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Collector {
    fn new() -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = Mutex::new(runtime.map_err(|error| Error::Otlp(error.to_string()))?);
        // Nothing drives an idle connection between two exports, so no connection is kept.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Ok(Self { runtime, client })
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.block_on(async {
            tokio::time::timeout(EXPORT_TIMEOUT, async {
                let (head, body) = self.client.request(request.map(Full::new)).await?.into_parts();
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
                Ok(Response::from_parts(head, body))
            })
            .await?
        })
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("collector")
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'async_trait>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move { self.send(request) })
    }
}
