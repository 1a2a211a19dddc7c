//! Where requests come from: sockets that a service manager opened for us; of each kind that it did not, our own.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use super::Error;
use crate::activation::Inherited;
use crate::config::Listen;

pub(super) struct Listeners {
    /// At least one.
    pub(super) ingest: Vec<TcpListener>,
    pub(super) admin: TcpListener,
    pub(super) unix: Unopened,
}

/// The Unix sockets of the ingest door before the store is locked.
pub(super) struct Unopened {
    inherited: Vec<UnixListener>,
    path: Option<PathBuf>,
}

/// The Unix sockets of the ingest door.
pub(super) struct UnixSockets {
    pub(super) listeners: Vec<UnixListener>,
    /// The socket file that is ours to remove.
    pub(super) own_path: Option<PathBuf>,
}

impl Listeners {
    pub(super) async fn open(listen: &Listen) -> Result<Self, Error> {
        let system = |source| Error::System { doing: "taking over sockets", source };
        let inherited = Inherited::take().map_err(system)?;
        let ingest = inherited.ingest.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>();
        let unix = inherited.unix.into_iter().map(UnixListener::from_std).collect::<io::Result<Vec<_>>>();
        let (mut ingest, unix) = (ingest.map_err(system)?, unix.map_err(system)?);
        if ingest.is_empty() {
            ingest.push(bind(&listen.ingest.to_string()).await?);
        }
        let admin = match inherited.admin {
            Some(admin) => TcpListener::from_std(admin).map_err(system)?,
            None => bind(&listen.admin.to_string()).await?,
        };
        Ok(Self { ingest, admin, unix: Unopened { inherited: unix, path: listen.unix.clone() } })
    }
}

impl Listeners {
    /// Where requests reach this process: the real ports, and the addresses of sockets that were inherited.
    pub(super) fn addresses(&self) -> Result<Vec<SocketAddr>, Error> {
        let all = self.ingest.iter().chain([&self.admin]).map(TcpListener::local_addr).collect::<io::Result<_>>();
        all.map_err(|source| Error::System { doing: "reading an address", source })
    }
}

impl Unopened {
    /// To be called under the store's lock, which tells that no other daemon listens on the socket file that is replaced.
    pub(super) fn open(self) -> Result<UnixSockets, Error> {
        if !self.inherited.is_empty() {
            return Ok(UnixSockets { listeners: self.inherited, own_path: None });
        }
        let own = self.path.as_deref().map(bind_unix).transpose()?;
        Ok(UnixSockets { listeners: own.into_iter().collect(), own_path: self.path })
    }
}

async fn bind(address: &str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address: address.to_owned(), source })
}
/// Replaces the socket file that a killed daemon left behind, which would be in the way of `bind`.
fn bind_unix(path: &Path) -> Result<UnixListener, Error> {
    let shown = |source| Error::Bind { address: path.display().to_string(), source };
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(shown(error)),
    }
    UnixListener::bind(path).map_err(shown)
}
