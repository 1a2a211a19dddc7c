//! The listeners: sockets that a service manager has opened for us, and for each kind that it has not, our own.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::Error;
use super::socket::{self, Own};
use crate::activation::Inherited;
use crate::config::{Listen, UnixSocket};

/// The most connections that wait to be accepted. The kernel's default maximum.
const BACKLOG: u32 = 4096;

pub(super) struct Listeners {
    /// At least one listener.
    pub(super) ingest: Vec<TcpListener>,
    pub(super) admin: TcpListener,
    pub(super) health: Option<TcpListener>,
    pub(super) unix: Unopened,
    pub(super) admin_unix: Unopened,
}

/// The Unix sockets of a listener, before the store is locked.
pub(super) struct Unopened {
    inherited: Vec<UnixListener>,
    own: Option<UnixSocket>,
}

/// The Unix sockets of a listener.
pub(super) struct UnixSockets {
    pub(super) listeners: Vec<UnixListener>,
    own: Option<Own>,
}

impl Listeners {
    pub(super) async fn open(listen: &Listen) -> Result<Self, Error> {
        let system = |source| Error::System { doing: "taking over sockets", source };
        let inherited = Inherited::take().map_err(system)?;
        let ingest = inherited.ingest.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>();
        let unix = inherited.unix.into_iter().map(UnixListener::from_std).collect::<io::Result<Vec<_>>>();
        let (mut ingest, unix) = (ingest.map_err(system)?, unix.map_err(system)?);
        if ingest.is_empty() {
            for address in &listen.ingest {
                ingest.push(bind("listen.ingest", *address)?);
            }
        }
        let admin = match inherited.admin {
            Some(admin) => TcpListener::from_std(admin).map_err(system)?,
            None => bind("listen.admin", listen.admin)?,
        };
        let health = match (inherited.health, listen.health) {
            (Some(health), _) => Some(TcpListener::from_std(health).map_err(system)?),
            (None, Some(address)) => Some(bind("listen.health", address)?),
            (None, None) => None,
        };
        let unix = Unopened { inherited: unix, own: listen.unix.clone() };
        let admin_unix = Unopened { inherited: Vec::new(), own: listen.admin_unix.clone() };
        Ok(Self { ingest, admin, health, unix, admin_unix })
    }
}

/// Finds what would fail in opening these listeners, without binding a configured port or touching a socket file. Does
/// not check whether a port is free, because the daemon to be checked may be running.
pub(super) fn check(listen: &Listen) -> Result<(), Error> {
    let ingest = listen.ingest.iter().map(|address| ("listen.ingest", *address));
    let others = [("listen.admin", Some(listen.admin)), ("listen.health", listen.health)];
    let others = others.into_iter().filter_map(|(key, address)| Some((key, address?)));
    for (key, address) in ingest.chain(others) {
        let any_port = SocketAddr::new(address.ip(), 0);
        bind(key, any_port).map_err(|error| match error {
            Error::Bind { key, why, remedy, .. } => Error::Bind { key, address: address.to_string(), why, remedy },
            error @ (Error::Store(_)
            | Error::Aws(_)
            | Error::File(_)
            | Error::HandOff(_)
            | Error::Closing(_)
            | Error::System { .. }) => error,
        })?;
    }
    let mut sockets = listen.unix.iter().chain(&listen.admin_unix);
    sockets.try_for_each(|unix| socket::check(unix).map_err(|refused| unix_error(unix, refused)))
}

fn unix_error(socket: &UnixSocket, socket::Refused { why, remedy }: socket::Refused) -> Error {
    Error::Bind { key: socket.key, address: socket.path.display().to_string(), why, remedy }
}

impl Listeners {
    /// The addresses where requests reach this process: real ports, also of inherited sockets.
    pub(super) fn addresses(&self) -> Result<Vec<SocketAddr>, Error> {
        let all = self
            .ingest
            .iter()
            .chain([&self.admin])
            .chain(&self.health)
            .map(TcpListener::local_addr)
            .collect::<io::Result<_>>();
        all.map_err(|source| Error::System { doing: "reading an address", source })
    }
}

impl Unopened {
    /// Opens the sockets. Call this under the store's lock, so that a daemon without the store leaves the other
    /// daemon's socket alone.
    pub(super) fn open(self) -> Result<UnixSockets, Error> {
        if !self.inherited.is_empty() {
            return Ok(UnixSockets { listeners: self.inherited, own: None });
        }
        let Some(socket) = self.own else { return Ok(UnixSockets { listeners: Vec::new(), own: None }) };
        let (listener, own) = socket::listen(&socket).map_err(|refused| unix_error(&socket, refused))?;
        let remedy = format!("choose another {}", socket.key);
        let listener = UnixListener::from_std(listener)
            .map_err(|error| unix_error(&socket, socket::Refused::new(error, remedy)))?;
        Ok(UnixSockets { listeners: vec![listener], own: Some(own) })
    }
}

impl UnixSockets {
    /// Removes the socket file if it is ours.
    pub(super) fn remove(&self) {
        if let Some(own) = &self.own {
            own.remove();
        }
    }
}

/// Listens at an address. `[::]` also accepts IPv4, for every value of net.ipv6.bindv6only. On a machine without IPv6
/// it becomes 0.0.0.0, so that one configuration serves every cluster.
pub(super) fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    let bound = match listen(address) {
        Err(error) if address.ip() == IpAddr::from([0_u16; 8]) && is_without_ipv6(&error) => {
            tracing::warn!(key, "this machine has no IPv6: listening on 0.0.0.0 instead of [::]");
            listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        bound => bound,
    };
    bound.map_err(|error| {
        let (why, remedy) = in_words(key, address, &error);
        Error::Bind { key, address: address.to_string(), why, remedy }
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let none = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|number| none.iter().any(|errno| errno.raw_os_error() == number))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of errors are not ours, and grow")]
fn in_words(key: &str, address: SocketAddr, error: &io::Error) -> (String, String) {
    let port = address.port();
    match error.kind() {
        ErrorKind::AddrInUse => (
            "the address is in use".to_owned(),
            format!("perhaps another sendoff runs (`sendoff status`): stop it, or choose another {key}"),
        ),
        ErrorKind::AddrNotAvailable => (
            "this machine has no such address".to_owned(),
            format!("set {key} to an address of this machine (`ip address` lists them)"),
        ),
        ErrorKind::PermissionDenied if port < 1024 => (
            format!("this user may not listen on a port below 1024, such as {port}"),
            format!("choose a higher port for {key}, or give sendoff the capability CAP_NET_BIND_SERVICE"),
        ),
        _ if is_without_ipv6(error) => {
            ("this machine has no IPv6".to_owned(), format!("set {key} to an IPv4 address, such as 127.0.0.1:{port}"))
        }
        _ => (error.to_string(), format!("choose another {key}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_address_means_both_families() {
        let listener = bind("listen.ingest", "[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "::1"] {
            tokio::net::TcpStream::connect((host, port)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_listener_that_cannot_be_opened_says_why_once_and_what_to_do() {
        let taken = bind("listen.admin", "127.0.0.1:0".parse().unwrap()).unwrap();
        let said = bind("listen.ingest", taken.local_addr().unwrap()).unwrap_err().to_string();
        let address = taken.local_addr().unwrap();
        assert_eq!(
            said,
            format!(
                "cannot listen on {address}: the address is in use; perhaps another sendoff runs (`sendoff status`): \
                 stop it, or choose another listen.ingest"
            )
        );
        let said = bind("listen.ingest", "192.0.2.1:0".parse().unwrap()).unwrap_err().to_string();
        assert!(said.contains("no such address; set listen.ingest to"), "{said}");
    }
}
