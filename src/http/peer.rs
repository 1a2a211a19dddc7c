//! Whether the peer of a connection is still there while its request is being answered.
//!
//! hyper reads nothing between a request and its answer once half-closed connections are served, so it cannot tell. Here
//! the stream itself looks, but only while somebody asks: a client that closes its side after an Event still gets its
//! answer, and a call that is passed through ends with its caller.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;

/// The peer of one connection, in the extensions of each of its requests. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many wait to hear that the peer has gone.
    asking: AtomicUsize,
    gone: CancellationToken,
    names: Vec<String>,
}

impl Peer {
    /// A peer that has proven these names.
    pub fn named(names: Vec<String>) -> Self {
        Self { shared: Arc::new(Shared { names, ..Shared::default() }) }
    }

    /// The names that the peer has proven by a certificate; none without one.
    pub fn names(&self) -> &[String] {
        &self.shared.names
    }

    /// Returns once the peer has closed its side or the connection is broken; never on a stream that cannot tell, and not
    /// while the peer has sent more that nobody has read yet.
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

/// A stream that can say whether its peer has closed, without reading.
pub trait Peek {
    /// Ready once the peer has closed; wakes the task then. The default never is.
    fn poll_closed(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Peek for TcpStream {
    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        match self.poll_peek(context, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Peek for UnixStream {}

#[cfg(test)]
impl Peek for tokio::io::DuplexStream {}

/// A stream that looks after its [`Peer`], and tells whether the peer takes what is written.
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

    /// hyper flushes whenever its connection's task runs, after it has asked the service: the place to look at the peer,
    /// in the task that the look must wake.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Shared { asking, gone, names: _ } = &*this.peer.shared;
        if asking.load(Ordering::Relaxed) > 0 && !gone.is_cancelled() && this.stream.poll_closed(cx).is_ready() {
            gone.cancel();
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
