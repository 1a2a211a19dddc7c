//! The route to a server: direct, or through a proxy.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector as Tcp};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower_service::Service;

use super::Late;
use crate::aws::outside::{Outside, is_near};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Future_<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// The proxy for each server.
pub(super) struct Proxies {
    matcher: Matcher,
}

impl Proxies {
    pub(super) fn new(outside: &Outside) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let matcher = Matcher::builder()
            .all(text(&outside.all_proxy))
            .http(text(&outside.http_proxy))
            .https(text(&outside.https_proxy))
            .no(text(&outside.no_proxy))
            .build();
        Self { matcher }
    }

    /// Loopback addresses and local sources of credentials never go through a proxy.
    pub(super) fn of(&self, server: &Uri) -> Option<Intercept> {
        if is_near(server.host().unwrap_or_default()) { None } else { self.matcher.intercept(server) }
    }

    /// The proxy's credentials for plain HTTP requests. A tunnel sends them when it is opened.
    pub(super) fn authorization_of_plain(&self, server: &Uri) -> Option<HeaderValue> {
        let proxy = (server.scheme() == Some(&Scheme::HTTP)).then(|| self.of(server)).flatten()?;
        proxy.basic_auth().cloned()
    }
}

/// Connects to a server's address or to its proxy. The server's own TLS is added on top.
#[derive(Clone)]
pub(super) struct Way {
    /// Adds TLS to the proxy if its URL is https.
    tcp: HttpsConnector<Tcp>,
    proxies: Arc<Proxies>,
}

impl Way {
    pub(super) fn new(tcp: Tcp, tls: ClientConfig, proxies: Arc<Proxies>) -> Self {
        Self { tcp: HttpsConnector::from((tcp, tls)), proxies }
    }
}

impl Service<Uri> for Way {
    type Response = Stream;
    type Error = BoxError;
    type Future = Future_<Stream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        let proxy = self.proxies.of(&server);
        Box::pin(async move {
            let is_plain = server.scheme() == Some(&Scheme::HTTP);
            match proxy {
                Some(proxy) if is_plain => {
                    let inner = tcp.call(proxy.uri().clone()).await?;
                    Ok(Stream { inner, reads_requests: true })
                }
                Some(proxy) => {
                    let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
                    if let Some(authorization) = proxy.basic_auth() {
                        tunnel = tunnel.with_auth(authorization.clone());
                    }
                    let inner = tunnel.call(server).await?;
                    Ok(Stream { inner, reads_requests: false })
                }
                None => Ok(Stream { inner: tcp.call(without_tls(&server)?).await?, reads_requests: false }),
            }
        })
    }
}

/// The same host and port as a URL of plain HTTP.
fn without_tls(server: &Uri) -> Result<Uri, http::Error> {
    let host = server.host().unwrap_or_default();
    let port = server.port_u16().unwrap_or(if server.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 });
    Uri::builder().scheme(Scheme::HTTP).authority(format!("{host}:{port}")).path_and_query("/").build()
}

/// A connection to a server or to its proxy.
pub(super) struct Stream {
    inner: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// The peer is a proxy that reads requests, so each request names the server.
    reads_requests: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.reads_requests)
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }
}

/// Limits connecting, which covers name resolution, TCP, proxy and TLS.
#[derive(Clone)]
pub(super) struct Timed<S> {
    pub(super) inner: S,
    pub(super) limit: Option<Duration>,
}

impl<S> Service<Uri> for Timed<S>
where
    S: Service<Uri, Error = BoxError>,
    S::Response: 'static,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Future_<S::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let (connecting, limit) = (self.inner.call(server), self.limit);
        Box::pin(async move {
            match limit {
                Some(limit) => tokio::time::timeout(limit, connecting)
                    .await
                    .unwrap_or_else(|_elapsed| Err(Late { what: "HTTP connect", limit }.into())),
                None => connecting.await,
            }
        })
    }
}
