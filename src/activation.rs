//! Sockets that were opened before this process began: systemd's socket activation (`sd_listen_fds(3)`).
//!
//! systemd keeps these sockets open over a restart. Clients that connect meanwhile wait instead of being refused.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The `FileDescriptorName=` of sockets for the admin listener and the health listener. All others are for ingest.
const ADMIN: &str = "admin";
const HEALTH: &str = "health";

/// The inherited listeners.
#[derive(Debug, Default)]
pub struct Inherited {
    pub ingest: Vec<TcpListener>,
    pub unix: Vec<UnixListener>,
    pub admin: Option<TcpListener>,
    pub health: Option<TcpListener>,
}

impl Inherited {
    /// Takes the sockets that `LISTEN_FDS` and `LISTEN_PID` assign to this process, if any.
    pub fn take() -> io::Result<Self> {
        let mut inherited = Self::default();
        for (number, name) in sd_notify::listen_fds_with_names()? {
            inherited.add(duplicate(number)?, &name)?;
        }
        Ok(inherited)
    }

    fn add(&mut self, socket: OwnedFd, name: &str) -> io::Result<()> {
        let unix = UnixListener::from(socket.try_clone()?);
        if unix.local_addr().is_ok() {
            unix.set_nonblocking(true)?;
            self.unix.push(unix);
            return Ok(());
        }
        let tcp = TcpListener::from(socket);
        tcp.local_addr()?; // fails here if the socket is neither TCP nor Unix
        tcp.set_nonblocking(true)?;
        match name {
            ADMIN => self.admin = Some(tcp),
            HEALTH => self.health = Some(tcp),
            _ => self.ingest.push(tcp),
        }
        Ok(())
    }
}

/// Duplicates an inherited descriptor number through our own pidfd. The kernel checks the number, so this needs no
/// `unsafe` and cannot close a file of somebody else. Needs Linux 5.6.
fn duplicate(number: i32) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn sockets_are_told_apart_by_kind_and_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut inherited = Inherited::default();
        let tcp = || TcpListener::bind("127.0.0.1:0").unwrap();
        inherited.add(tcp().into(), "ingest").unwrap();
        inherited.add(tcp().into(), "admin").unwrap();
        inherited.add(tcp().into(), "health").unwrap();
        inherited.add(tcp().into(), "unknown").unwrap();
        let unix = UnixListener::bind(directory.path().join("s")).unwrap();
        inherited.add(unix.into(), "ingest").unwrap();
        assert_eq!((inherited.ingest.len(), inherited.unix.len()), (2, 1));
        assert!(inherited.admin.is_some() && inherited.health.is_some());
    }

    #[test]
    fn what_is_no_socket_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(Inherited::default().add(file.into(), "ingest").is_err());
    }

    #[test]
    fn a_number_becomes_a_descriptor_of_the_same_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let copy = TcpListener::from(duplicate(listener.as_raw_fd()).unwrap());
        assert_eq!(copy.local_addr().unwrap(), listener.local_addr().unwrap());
        assert!(duplicate(1_000_000).is_err());
    }
}
