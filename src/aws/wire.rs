//! Connections to AWS for all clients, with proxies and trusted certificates.
//!
//! Holds: HTTP/1.1 only, so that a connection that dies silently fails only the one call on it. A cancelled call closes
//! its connection. TCP keepalive detects a dead peer within a minute, and keeps NAT gateways and load balancers from
//! dropping a connection while a function runs for long.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http::header::PROXY_AUTHORIZATION;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::causes;
use super::outside::Outside;

mod way;

use way::{Proxies, Timed, Way};

/// How long an idle connection is kept. Shorter than gateways on the way keep it, so that few requests meet a connection
/// that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The time before the first keepalive probe. NAT gateways and Network Load Balancers of AWS drop a connection after
/// 350 s.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The time between two probes, and how many may stay unanswered before the connection is closed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long sent data may stay unacknowledged before the connection is closed.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// The most clients kept, one for each connect time-out. There are two or three.
const CLIENTS_MAX: usize = 16;

type Pooled = Client<Timed<HttpsConnector<Way>>, SdkBody>;

/// All connections of this process to AWS. Cheap to clone.
#[derive(Clone)]
pub(super) struct Wire(Arc<Inner>);

struct Inner {
    tls: ClientConfig,
    proxies: Arc<Proxies>,
    has_authorities: bool,
    clients: Mutex<BTreeMap<Option<Duration>, Pooled>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Wire {
    /// Trusts only `authorities` if there are any. Else trusts `SSL_CERT_FILE` and `SSL_CERT_DIR`, else the system's
    /// certificates.
    pub(super) fn new(outside: &Outside, authorities: Option<Vec<CertificateDer<'static>>>) -> Self {
        let authorities = authorities.unwrap_or_else(|| rustls_native_certs::load_native_certs().certs);
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authorities);
        let has_authorities = !roots.is_empty();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .unwrap_or_else(|_| unreachable!("ring has cipher suites for both versions"))
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let proxies = Arc::new(Proxies::new(outside));
        Self(Arc::new(Inner { tls, proxies, has_authorities, clients: Mutex::default() }))
    }

    /// Whether there are any trusted certificates.
    pub(super) fn has_authorities(&self) -> bool {
        self.0.has_authorities
    }

    /// The connector for the SDK's clients.
    pub(super) fn http_client(&self) -> SharedHttpClient {
        let wire = self.clone();
        http_client_fn(move |settings, _| SharedHttpConnector::new(wire.connector(settings.clone())))
    }

    /// The connector for modules that make their own requests. All connectors share their connections.
    pub(super) fn connector(&self, settings: HttpConnectorSettings) -> Connector {
        let client = self.0.client(settings.connect_timeout());
        Connector { client, proxies: Arc::clone(&self.0.proxies), read_timeout: settings.read_timeout() }
    }
}

impl Inner {
    fn client(&self, connect_timeout: Option<Duration>) -> Pooled {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&connect_timeout) {
            return client.clone();
        }
        if clients.len() >= CLIENTS_MAX {
            clients.pop_first();
        }
        let client = self.make(connect_timeout);
        clients.insert(connect_timeout, client.clone());
        client
    }

    fn make(&self, connect_timeout: Option<Duration>) -> Pooled {
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
        let way = Way::new(tcp, self.tls.clone(), Arc::clone(&self.proxies));
        let https = HttpsConnector::from((way, self.tls.clone()));
        Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(Timed { inner: https, limit: connect_timeout })
    }
}

/// Makes requests. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector {
    client: Pooled,
    proxies: Arc<Proxies>,
    read_timeout: Option<Duration>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        // A tunnelled request must not disclose the proxy's password to AWS.
        if let Some(authorization) = self.proxies.authorization_of_plain(request.uri()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        let (client, limit) = (self.client.clone(), self.read_timeout);
        HttpConnectorFuture::new(async move {
            let answered = async { client.request(request).await.map_err(failed) };
            let answer = match limit {
                Some(limit) => tokio::time::timeout(limit, answered).await.unwrap_or_else(|_elapsed| {
                    Err(ConnectorError::timeout(Late { what: "HTTP read", limit }.into()))
                })?,
                None => answered.await?,
            };
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

fn failed(error: hyper_util::client::legacy::Error) -> ConnectorError {
    let late = causes(&error).any(|cause| cause.is::<Late>());
    if late { ConnectorError::timeout(error.into()) } else { ConnectorError::io(error.into()) }
}

/// A time-out.
#[derive(Debug, thiserror::Error)]
#[error("{what} timeout occurred after {limit:?}")]
struct Late {
    what: &'static str,
    limit: Duration,
}

#[cfg(test)]
mod tests;
