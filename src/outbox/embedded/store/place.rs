//! Checks and creates the state directory: private to its owner, on a disk that can keep events.
//!
//! Holds: everything created here is private to its owner, whatever the umask. Existing files are never changed, because
//! another mode may be intended.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FsWord, accessat};

use super::{LOCK, STORE};

/// The file systems in which nobody can create a file: proc and sysfs (statfs(2)).
const KERNELS_OWN: [FsWord; 2] = [0x9fa0, 0x6265_6572];

/// The permission bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// Creates a directory that only its owner may enter.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Options to open a file so that, if it is created, only its owner may read it.
pub(crate) fn options() -> OpenOptions {
    let mut options = File::options();
    options.mode(0o600);
    options
}

/// A warning about a state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    pub is_fatal: bool,
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// A warning if other users can read the store in `state_dir`.
pub fn exposure(state_dir: &Path) -> Option<Remark> {
    let mine = rustix::process::geteuid().as_raw();
    let is_wide = |path: &Path| fs::metadata(path).ok().filter(|found| found.mode() & OTHERS != 0);
    let (home, store) = (is_wide(state_dir), is_wide(&state_dir.join(STORE)));
    let found = home.as_ref()?;
    // An orchestrator's volume belongs to root and is open on purpose. What sendoff keeps in it is not.
    if found.uid() != mine && store.is_none() {
        return None;
    }
    let (shown, mode, quoted) = (state_dir.display(), found.mode() & 0o7777, quoted(state_dir));
    Some(Remark {
        is_fatal: false,
        what: format!(
            "{shown} has mode {mode:04o}: other users of this machine can look into it, and payloads are in it"
        ),
        remedy: format!("take their rights away: chmod -R go-rwx {quoted}"),
    })
}

/// The path, quoted for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A warning if the disk will be full before the outbox reaches its limit. `None` if not, or if that is unknown.
pub fn room(state_dir: &Path, bytes_max: u64, reserve: u64) -> Option<Remark> {
    let (above, _) = first_that_exists(state_dir).ok()?;
    let disk = rustix::fs::statvfs(&above).ok().filter(|disk| disk.f_blocks > 0)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let has = free.saturating_add(size_of(&state_dir.join(STORE))).saturating_sub(reserve);
    let mib = |bytes: u64| bytes >> 20;
    (has < bytes_max).then(|| Remark {
        is_fatal: false,
        what: format!(
            "outbox.bytes_max is {} MiB, and the disk of {} has room for {} MiB of it",
            mib(bytes_max),
            state_dir.display(),
            mib(has)
        ),
        remedy: "events will be refused when the disk is full, before the limit is reached: lower outbox.bytes_max, or enlarge the \
                 disk"
            .into(),
    })
}

/// The disk usage of a directory and everything below, in bytes. Unreadable entries count as 0.
fn size_of(directory: &Path) -> u64 {
    /// The bytes of a block in stat(2), independent of the file system's block size.
    const BLOCK: u64 = 512;
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => found.blocks().saturating_mul(BLOCK),
        Err(_) => 0,
    };
    fs::read_dir(directory).into_iter().flatten().flatten().map(size).sum()
}

/// Checks the place of a store without changing anything. `reserve` is the free space that new events must leave.
pub fn look(state_dir: &Path, reserve: u64) -> Vec<Remark> {
    let shown = state_dir.display();
    let fatal = |what: String, remedy: &str| vec![Remark { is_fatal: true, what, remedy: remedy.to_owned() }];
    let (above, found) = match first_that_exists(state_dir) {
        Ok(found) => found,
        Err(error) => return fatal(format!("{shown} cannot be looked at: {error}"), "check its parents' permissions"),
    };
    if let Some(link) = link_to_nothing(state_dir) {
        let remedy = "make the directory that it leads to, or set another state_dir";
        return fatal(format!("{} is a symbolic link to something that does not exist", link.display()), remedy);
    }
    if rustix::fs::statfs(&above).is_ok_and(|fs| KERNELS_OWN.contains(&fs.f_type)) {
        return fatal(format!("{} belongs to the kernel and keeps no files", above.display()), "set another state_dir");
    }
    if !found.is_dir() {
        let remedy = "set state_dir to a directory, or move the file away";
        return fatal(format!("{} is not a directory", above.display()), remedy);
    }
    let needed = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    if let Err(error) = accessat(CWD, &above, needed, AtFlags::EACCESS) {
        let (who, owner) = (rustix::process::geteuid().as_raw(), found.uid());
        let remedy = match error {
            rustix::io::Errno::ROFS => "the file system is read-only: set state_dir to a writable one".to_owned(),
            _ => format!("this is user {who}, the directory belongs to user {owner}: chown it, or run as that user"),
        };
        return fatal(format!("{} cannot be written: {}", above.display(), io::Error::from(error)), &remedy);
    }
    let mut remarks = Vec::from_iter(exposure(state_dir));
    if let Ok(disk) = rustix::fs::statvfs(&above) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        // A file system that reports no blocks tells nothing.
        if disk.f_blocks > 0 && free <= reserve {
            remarks.push(Remark {
                is_fatal: true,
                what: format!("the disk of {shown} has {free} bytes free, and outbox.disk_reserve keeps {reserve}"),
                remedy: "make room on it, or set state_dir to a larger disk: until then every event is refused".into(),
            });
        }
    }
    remarks
}

/// Describes a disk error, and what to do about it if that is known.
#[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of errors are not ours, and grow")]
pub(super) fn in_words(error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on the disk, then start again",
        io::ErrorKind::ReadOnlyFilesystem => "mount the file system writable, or set another state_dir",
        io::ErrorKind::PermissionDenied => "make it the property of the user that sendoff runs as (chown -R)",
        _ => return error.to_string(),
    };
    format!("{error}; {remedy}")
}

/// The process that holds the lock of a file, if /proc tells.
pub(super) fn lock_holder(file: &File) -> Option<u32> {
    let inode = format!(":{}", file.metadata().ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let line =
        locks.lines().find(|line| line.split_whitespace().nth(5).is_some_and(|place| place.ends_with(&inode)))?;
    line.split_whitespace().nth(4)?.parse().ok().filter(|pid| *pid > 0)
}

/// The file of an open store by which its directory is recognised.
#[derive(Debug, Clone)]
pub struct Anchor {
    path: PathBuf,
    file: (u64, u64),
}

impl Anchor {
    /// The anchor of the store that this process has just opened in `state_dir`.
    pub fn of(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(LOCK);
        let found = fs::metadata(&path)?;
        Ok(Self { path, file: (found.dev(), found.ino()) })
    }

    /// Whether the directory was removed, moved away or replaced. An error that says nothing of this does not count.
    pub fn is_gone(&self) -> bool {
        match fs::metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) != self.file,
            Err(error) => [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()),
        }
    }
}

impl std::fmt::Display for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is gone", self.path.display())
    }
}

/// The symbolic link on the way to `path` that leads nowhere, if there is one.
fn link_to_nothing(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let missing = absolute.ancestors().take_while(|above| fs::metadata(above).is_err());
    missing.filter(|above| fs::symlink_metadata(above).is_ok_and(|found| found.is_symlink())).last().map(Path::to_owned)
}

/// The path itself, or the nearest directory above it that exists.
fn first_that_exists(path: &Path) -> io::Result<(PathBuf, fs::Metadata)> {
    let absolute = std::path::absolute(path)?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for above in absolute.ancestors() {
        match fs::metadata(above) {
            Ok(found) => return Ok((above.to_owned(), found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
            // A file is in the place of a directory. The nearest existing path is that file.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_made_is_for_its_owner_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, file) = (scratch.path().join("d"), scratch.path().join("d/f"));
        make_dir(&dir).unwrap();
        options().write(true).create_new(true).open(&file).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & OTHERS, 0);
        assert_eq!(fs::metadata(&file).unwrap().mode() & OTHERS, 0);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_remarked_upon_with_the_command_that_mends_it() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("it's state");
        make_dir(&dir).unwrap();
        assert_eq!(exposure(&dir), None);
        assert_eq!(exposure(&scratch.path().join("missing")), None);
        mode(&dir, 0o750);
        let remark = exposure(&dir).unwrap();
        assert!(!remark.is_fatal && remark.what.contains("mode 0750"), "{remark:?}");
        assert!(remark.remedy.ends_with(r"state'") && remark.remedy.contains(r"it'\''s"), "{remark:?}");
    }

    #[test]
    fn a_disk_that_is_smaller_than_the_limit_is_remarked_upon_and_what_the_store_has_counts_for_it() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(room(scratch.path(), 1 << 20, 0), None);
        let remark = room(&scratch.path().join("not/there/yet"), u64::MAX, 0).unwrap();
        assert!(!remark.is_fatal && remark.what.starts_with("outbox.bytes_max is"), "{remark:?}");
        let file = scratch.path().join(STORE).join("journal");
        fs::create_dir_all(&file).unwrap();
        fs::write(file.join("1"), vec![1; 3 << 20]).unwrap();
        assert!(size_of(&scratch.path().join(STORE)) >= 3 << 20);
    }

    #[test]
    fn a_directory_that_is_moved_removed_or_replaced_is_missed() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("state");
        let make = || {
            make_dir(&dir).unwrap();
            options().write(true).create_new(true).open(dir.join(LOCK)).unwrap();
        };
        make();
        let anchor = Anchor::of(&dir).unwrap();
        assert!(!anchor.is_gone());
        mode(&dir, 0o000);
        assert!(!anchor.is_gone(), "no right to look says nothing");
        mode(&dir, 0o700);
        fs::rename(&dir, scratch.path().join("elsewhere")).unwrap();
        assert!(anchor.is_gone());
        make();
        assert!(anchor.is_gone(), "another directory is in its place");
    }

    #[test]
    fn a_place_that_cannot_hold_a_store_is_told_from_one_that_can() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        assert_eq!(look(&path("not/there/yet"), 0), []);
        fs::write(path("file"), b"").unwrap();
        for under in ["file", "file/below"] {
            let remarks = look(&path(under), 0);
            assert!(remarks.len() == 1 && remarks[0].is_fatal, "{remarks:?}");
            assert!(remarks[0].what.ends_with("file is not a directory"), "{remarks:?}");
        }
        std::os::unix::fs::symlink(path("nowhere"), path("link")).unwrap();
        for (place, why) in [
            (path("link"), "link to something that does not exist"),
            (path("link/below"), "link to something that does not exist"),
            ("/proc/sendoff".into(), "belongs to the kernel"),
            ("/sys/sendoff".into(), "belongs to the kernel"),
        ] {
            let remarks = look(&place, 0);
            assert!(remarks.len() == 1 && remarks[0].is_fatal && remarks[0].what.contains(why), "{remarks:?}");
        }
        let remarks = look(scratch.path(), u64::MAX);
        assert!(remarks.iter().any(|remark| remark.is_fatal && remark.what.contains("bytes free")), "{remarks:?}");
    }
}
