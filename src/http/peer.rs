//! Tells whether the peer of a connection is still there while its request is being answered.
//!
//! Once half-closed connections are served, hyper reads nothing between a request and its answer, so it cannot tell.
//! The stream itself looks here, but only while somebody asks. So a client that closes its side after an Event still
//! gets its answer, and a call that is passed through ends when its caller leaves.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;

/// What is known of a peer before its first request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The names that it has proven by a certificate. Empty without a certificate.
    pub names: Vec<String>,
    /// The user that opened the connection, on a Unix socket (`SO_PEERCRED`).
    pub uid: Option<u32>,
    /// The address that it connects from, on a TCP socket.
    pub address: Option<SocketAddr>,
}

/// The peer of one connection. An extension of each of its requests. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many tasks wait to hear that the peer has gone.
    asking: AtomicUsize,
    gone: CancellationToken,
    identity: Identity,
}

impl Peer {
    pub fn known(identity: Identity) -> Self {
        Self { shared: Arc::new(Shared { identity, ..Shared::default() }) }
    }

    /// A peer that has proven these names by a certificate.
    pub fn named(names: Vec<String>) -> Self {
        Self::known(Identity { names, ..Identity::default() })
    }

    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// The names that the peer has proven by a certificate. Empty without a certificate.
    pub fn names(&self) -> &[String] {
        &self.shared.identity.names
    }

    /// Returns when the peer has closed its side or the connection is broken. Does not return on a stream that cannot
    /// tell, nor while the peer has sent bytes that nobody has read.
    pub async fn gone(&self) {
        let _asking = Asking::new(&self.shared);
        self.shared.gone.cancelled().await;
    }
}

struct Asking<'a>(&'a Shared);

impl<'a> Asking<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.asking.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that can tell whether its peer has closed, without taking bytes from its reader.
pub trait Peek {
    /// Ready once the peer has closed. Wakes the task when that happens. The default is never ready.
    fn poll_closed(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// What the stream itself tells about its peer.
    fn identity(&self) -> Identity {
        Identity::default()
    }
}

impl Peek for TcpStream {
    fn identity(&self) -> Identity {
        Identity { address: self.peer_addr().ok(), ..Identity::default() }
    }

    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        match self.poll_peek(context, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Peek for UnixStream {
    fn identity(&self) -> Identity {
        Identity { uid: self.peer_cred().ok().map(|credentials| credentials.uid()), ..Identity::default() }
    }
}

#[cfg(test)]
impl Peek for tokio::io::DuplexStream {}

/// A stream that watches its [`Peer`], and records whether the peer reads what is written.
pub struct Watched<S> {
    stream: S,
    peer: Peer,
    progress: Progress,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, peer: Peer, progress: Progress) -> Self {
        Self { stream, peer, progress }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Peek + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.progress.written(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.progress.written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes whenever the connection's task runs, after it has polled the service. So the look at the peer
    /// happens here, in the task that it must wake.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Shared { asking, gone, identity: _ } = &*this.peer.shared;
        if asking.load(Ordering::Relaxed) > 0 && !gone.is_cancelled() && this.stream.poll_closed(cx).is_ready() {
            gone.cancel();
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
