//! TLS on a listener, by rustls: the handshake, the names in the client's certificate, and an answer for clients that
//! send plain HTTP.
//!
//! Holds: the handshake runs in the connection's own task, so a silent peer occupies only its own connection. A
//! connection keeps the certificate that it began with. A new one gets the latest ([`pair`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::peer::{Identity, Peek};
use super::{Accepted, Listener};

use pair::Pair;

mod expiry;

pub mod pair;

pub mod pem;

/// The first byte of a TLS connection: a record of type handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 0x16;

/// The most names of a client certificate that are kept. The log tells of more.
const NAMES_MAX: usize = 128;

/// The most bytes of a plain request that are read before the connection closes, and how long to wait for the rest.
const PLAIN_BYTES_MAX: usize = 64 * 1024;
const PLAIN_PATIENCE: Duration = Duration::from_secs(1);

/// The TLS settings of a listener. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    /// The latest certificate.
    pair: watch::Receiver<Arc<Pair>>,
    /// Whether clients must present a certificate.
    client_required: bool,
    /// Counts failed handshakes.
    failures: IntCounter,
}

impl Tls {
    pub fn new(pair: watch::Receiver<Arc<Pair>>, client_required: bool, failures: IntCounter) -> Self {
        Self { pair, client_required, failures }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let pair = self.pair.borrow();
        TlsAcceptor::from(Arc::clone(if self.client_required { &pair.required } else { &pair.optional }))
    }
}

/// A TCP port, with or without TLS.
pub struct Port {
    listener: TcpListener,
    tls: Option<Tls>,
}

impl Port {
    pub fn new(listener: TcpListener, tls: Option<Tls>) -> Self {
        Self { listener, tls }
    }
}

impl Listener for Port {
    type Accepted = Arrived;

    async fn accept(&self) -> io::Result<Arrived> {
        let stream = Listener::accept(&self.listener).await?;
        Ok(Arrived { stream, tls: self.tls.clone() })
    }

    fn listens(&self) -> bool {
        self.listener.listens()
    }
}

/// A connection before its handshake.
pub struct Arrived {
    stream: TcpStream,
    tls: Option<Tls>,
}

impl Accepted for Arrived {
    type Io = Wire;

    async fn open(self) -> io::Result<(Wire, Identity)> {
        let Self { stream, tls } = self;
        let identity = stream.identity();
        let Some(tls) = tls else { return Ok((Wire::Plain(stream), identity)) };
        let opened = handshake(stream, &tls).await;
        if opened.is_err() {
            tls.failures.inc();
        }
        opened.map(|(wire, names)| (wire, Identity { names, ..identity }))
    }
}

async fn handshake(stream: TcpStream, tls: &Tls) -> io::Result<(Wire, Vec<String>)> {
    let mut first = [0];
    match (stream.peek(&mut first).await?, first) {
        (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
        (_, [HANDSHAKE]) => {}
        (_, [other]) if other.is_ascii_alphabetic() => {
            refuse_plain(stream).await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer sent plain HTTP"));
        }
        // rustls answers with an alert.
        (_, _) => {}
    }
    let stream = tls.acceptor().accept(stream).await?;
    let names = stream.get_ref().1.peer_certificates().map(names).unwrap_or_default();
    Ok((Wire::Tls(Box::new(Secured { stream, ahead: None })), names))
}

/// The DNS names and URIs of a client's certificate (RFC 5280, subjectAltName). rustls has already verified it.
fn names(chain: &[rustls::pki_types::CertificateDer<'_>]) -> Vec<String> {
    let Some(Ok(certificate)) = chain.first().map(webpki::EndEntityCert::try_from) else { return Vec::new() };
    // A URI has a scheme, so none is taken for a DNS name.
    let uris = certificate.valid_uri_names().filter(|uri| uri.contains("://")).map(str::to_owned);
    // The case of a DNS name does not matter (RFC 4343), so all are compared in lower case.
    let hosts = certificate.valid_dns_names().map(str::to_ascii_lowercase);
    let mut names: Vec<_> = uris.chain(hosts).take(NAMES_MAX + 1).collect();
    if names.len() > NAMES_MAX {
        names.truncate(NAMES_MAX);
        let first = names.first();
        tracing::warn!(
            first,
            "a client's certificate has more than {NAMES_MAX} names: sendoff knows it by the first of them only"
        );
    }
    names
}

/// Tells a client that speaks plain HTTP to use https. The answer has the form of Lambda's errors, so that SDKs show
/// it. Most of what the client sent is read as well: closing with unread bytes would reset the connection, and the
/// client would not see the answer.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    const BODY: &str = r#"{"Type":"User","code":"InvalidRequestException","message":"this port speaks TLS: write https:// instead of http:// in the endpoint"}"#;
    let mut piece = [0; 4 * 1024];
    let mut read = stream.read(&mut piece).await?;
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    while read < PLAIN_BYTES_MAX {
        match tokio::time::timeout(PLAIN_PATIENCE, stream.read(&mut piece)).await {
            Ok(Ok(more)) if more > 0 => read += more,
            Ok(_) | Err(_) => break,
        }
    }
    Ok(())
}

/// An open connection.
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<Secured>),
}

/// A TLS stream, and the byte that was read ahead.
pub struct Secured {
    stream: TlsStream<TcpStream>,
    ahead: Option<u8>,
}

impl Peek for Wire {
    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(stream) => stream.poll_closed(context),
            Self::Tls(secured) => secured.poll_closed(context),
        }
    }
}

impl Peek for Secured {
    /// The end of a TLS stream is a record like others, encrypted in TLS 1.3, so only reading finds it. At most one
    /// byte is read ahead and kept for the reader.
    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.ahead.is_some() {
            return Poll::Pending;
        }
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        match Pin::new(&mut self.stream).poll_read(context, &mut read) {
            Poll::Ready(Ok(())) if read.filled().is_empty() => Poll::Ready(()),
            Poll::Ready(Ok(())) => {
                self.ahead = Some(byte[0]);
                // The reader may have been told that no bytes are available. The socket is empty now, so nothing else
                // would wake it.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(secured) => {
                if buf.remaining() > 0
                    && let Some(byte) = secured.ahead.take()
                {
                    buf.put_slice(&[byte]);
                    return Poll::Ready(Ok(()));
                }
                Pin::new(&mut secured.stream).poll_read(cx, buf)
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(secured) => Pin::new(&mut secured.stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(secured) => Pin::new(&mut secured.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(secured) => secured.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(secured) => Pin::new(&mut secured.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(secured) => Pin::new(&mut secured.stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
