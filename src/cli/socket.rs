//! Connects commands to the Unix socket of the operator's API.

use std::io;
use std::os::unix::net::UnixStream as Blocking;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::config::{Config, Entry, Origin};

/// The socket of the packaged service. Commands try it if nothing says where the daemon is.
const PACKAGED: &str = "/run/sendoff/admin.sock";

/// Connects to one socket, whatever the URL says. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    path: PathBuf,
}

impl Connector {
    /// Fails if nobody listens there, or this user may not connect.
    pub(super) fn to(path: &Path) -> io::Result<Self> {
        Blocking::connect(path)?;
        Ok(Self { path: path.to_owned() })
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.path.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

/// The socket to try first: the configured one. If neither it nor `listen.admin` is configured, the one of the packaged
/// service, if that is there.
pub(super) fn candidate(config: &Config, entries: &[Entry]) -> Option<PathBuf> {
    if let Some(socket) = &config.listen.admin_unix {
        return Some(socket.path.clone());
    }
    let is_default = |key: &str| entries.iter().any(|entry| entry.key == key && entry.origin == Origin::Default);
    let packaged = Path::new(PACKAGED);
    let nothing_is_said = ["listen.admin", "listen.admin_unix"].into_iter().all(is_default);
    (nothing_is_said && packaged.exists()).then(|| packaged.to_owned())
}
