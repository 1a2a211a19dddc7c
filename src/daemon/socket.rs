//! Socket files of the listeners: who may connect to one, and which file it may replace.
//!
//! Holds: only a socket without a listener is removed. The file never has more permissions than configured, not even
//! for a moment.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::config::UnixSocket;

/// Maps names of groups to numbers. Groups of a directory service must be given by number.
const GROUPS: &str = "/etc/group";

/// Why the socket file cannot be made, and what to do about it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) why: String,
    pub(super) remedy: String,
}

impl Refused {
    pub(super) fn new(why: impl ToString, remedy: impl Into<String>) -> Self {
        Self { why: why.to_string(), remedy: remedy.into() }
    }
}

/// A socket file that this process removes at its end.
#[derive(Debug)]
pub(super) struct Own {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Own {
    /// Removes the file, unless another one has replaced it.
    pub(super) fn remove(&self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if is_ours {
            drop(fs::remove_file(&self.path)); // if this fails, the next start removes it
        }
    }
}

/// Finds what [`listen`] would refuse, as far as that can be seen: the group, what is in the way, and the directory. A
/// socket in the way is allowed, because it may belong to the daemon to be checked.
pub(super) fn check(socket: &UnixSocket) -> Result<(), Refused> {
    socket.group.as_deref().map(|group| group_id(socket.key, group)).transpose()?;
    let path = &socket.path;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(in_the_way(socket.key, found.file_type())),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(cannot_bind(socket, &error)),
    }
    let directory = directory_of(path);
    fs::metadata(directory).map_err(|error| cannot_bind(socket, &error))?;
    accessat(CWD, directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| cannot_bind(socket, &error.into()))
}

/// Listens at a path. The umask of the process must give others no permissions.
pub(super) fn listen(socket: &UnixSocket) -> Result<(UnixListener, Own), Refused> {
    let path = &socket.path;
    // Looked up first, so that a wrong name removes no socket.
    let group = socket.group.as_deref().map(|group| group_id(socket.key, group)).transpose()?;
    make_way(socket)?;
    let listener = UnixListener::bind(path).map_err(|error| cannot_bind(socket, &error))?;
    let opened = || -> Result<Own, Refused> {
        let failed = |error: io::Error| Refused::new(error, "check the permissions of its directory");
        let found = fs::symlink_metadata(path).map_err(failed)?;
        let own = Own { path: path.clone(), device: found.dev(), inode: found.ino() };
        // Set the group before its permissions. Until then only the owner has any.
        fs::set_permissions(path, fs::Permissions::from_mode(socket.mode & 0o700)).map_err(failed)?;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(|error| {
                let name = socket.group.as_deref().unwrap_or_default();
                let remedy = format!("make sendoff's user a member of {name} (systemd: SupplementaryGroups={name})");
                Refused::new(format!("it cannot be given to the group {name}: {error}"), remedy)
            })?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(socket.mode)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(own)
    };
    let own = opened().inspect_err(|_| drop(fs::remove_file(path)))?;
    Ok((listener, own))
}

/// Removes a socket that a killed daemon has left, because `bind` would fail. Removes nothing else.
fn make_way(socket: &UnixSocket) -> Result<(), Refused> {
    let UnixSocket { key, path, .. } = socket;
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot_bind(socket, &error)),
    };
    if !kind.is_socket() {
        return Err(in_the_way(key, kind));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Refused::new(format!("a dead socket there cannot be removed: {error}"), "remove it")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(Refused::new(
            "another process listens on it",
            format!("perhaps another sendoff runs (`sendoff status`): stop it, or choose another {key}"),
        )),
        Err(error) => Err(Refused::new(
            format!("whether another process listens on it cannot be told: {error}"),
            format!("remove the socket if nobody does, or choose another {key}"),
        )),
    }
}

fn in_the_way(key: &str, kind: fs::FileType) -> Refused {
    let kind = if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else {
        "a file that is no socket"
    };
    Refused::new(format!("{kind} is there, and was left alone"), format!("move it away, or choose another {key}"))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of errors are not ours, and grow")]
fn cannot_bind(socket: &UnixSocket, error: &io::Error) -> Refused {
    let UnixSocket { key, path, .. } = socket;
    let shown = directory_of(path).display();
    match error.kind() {
        ErrorKind::NotFound => Refused::new(
            format!("the directory {shown} does not exist"),
            format!("make it (systemd: RuntimeDirectory=), or choose another {key}"),
        ),
        ErrorKind::NotADirectory => {
            Refused::new(format!("{shown} is not a directory"), format!("choose another {key}"))
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Refused::new(
            format!("the directory {shown} cannot be written: {error}"),
            format!("give sendoff's user the right to (systemd: RuntimeDirectory=), or choose another {key}"),
        ),
        _ => Refused::new(error, format!("choose another {key}")),
    }
}

/// The number of a group, given as a number or as a name in /etc/group.
fn group_id(key: &str, name: &str) -> Result<u32, Refused> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string(GROUPS).unwrap_or_default();
    number_of(name, &text).ok_or_else(|| {
        let remedy = format!("make it, or set {key}_group to its number");
        Refused::new(format!("there is no group {name} in {GROUPS}"), remedy)
    })
}

fn number_of(name: &str, groups: &str) -> Option<u32> {
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(path: &Path, mode: u32) -> UnixSocket {
        UnixSocket { key: "listen.unix", path: path.to_owned(), mode, group: None }
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        const FILE: &str = "root:x:0:\nweb:x:33:a,b\nbroken\nwebs:x:34:\n";
        assert_eq!((number_of("web", FILE), number_of("webs", FILE)), (Some(33), Some(34)));
        assert_eq!((number_of("x", FILE), number_of("broken", FILE), number_of("", FILE)), (None, None, None));
        assert_eq!(group_id("listen.unix", "1234").unwrap(), 1234);
        assert!(group_id("listen.unix", "no such group").unwrap_err().why.contains("no group"));
    }

    #[test]
    fn the_file_has_the_mode_that_was_asked_for_and_is_removed_only_while_it_is_ours() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s");
        for mode in [0o600, 0o660, 0o666] {
            let (_listener, own) = listen(&socket(&path, mode)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode);
            own.remove();
            assert!(!path.exists());
        }
        let (_listener, own) = listen(&socket(&path, 0o600)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"another's").unwrap();
        own.remove();
        assert!(path.exists());
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let (live, _) = listen(&socket(&path, 0o600)).unwrap();
        let said = listen(&socket(&path, 0o600)).unwrap_err();
        assert!(said.why.contains("another process listens"), "{said:?}");
        drop(live);

        let dead = fs::symlink_metadata(&path).unwrap().ino();
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        fs::write(scratch.path().join("file"), b"precious").unwrap();
        fs::create_dir(scratch.path().join("directory")).unwrap();
        for (name, why) in [("file", "no socket"), ("directory", "a directory"), ("link", "a symbolic link")] {
            let said = listen(&socket(&scratch.path().join(name), 0o600)).unwrap_err();
            assert!(said.why.contains(why) && said.remedy.contains("listen.unix"), "{said:?}");
        }
        assert_eq!(fs::read(scratch.path().join("file")).unwrap(), b"precious");
        assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), dead, "nothing behind the link is touched");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let said = listen(&socket(&scratch.path().join("no/s"), 0o600)).unwrap_err();
        assert!(said.why.contains("no does not exist") && said.remedy.contains("RuntimeDirectory"), "{said:?}");
        let mut wrong = socket(&scratch.path().join("s"), 0o600);
        wrong.group = Some("no such group".into());
        assert!(listen(&wrong).is_err() && !wrong.path.exists());
    }
}
