//! The file system that a journal needs: a directory of numbered segments.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::seal::Salt;
use crate::clock;
use crate::outbox::embedded::store::place::options;

const SUFFIX: &str = ".segment";

const SALT: &str = "salt";

/// A directory of segments. A power cut may lose everything that was not synced, in part or whole: directory entries as
/// well as bytes of files.
pub trait Files: Send + 'static {
    type File: SegmentFile;

    /// The existing segments and their sizes in bytes.
    fn list(&self) -> io::Result<BTreeMap<u32, u64>>;

    /// Creates an empty segment. Fails if it exists.
    fn create(&self, segment: u32) -> io::Result<Self::File>;

    fn open(&self, segment: u32) -> io::Result<Self::File>;

    fn remove(&self, segment: u32) -> io::Result<()>;

    /// Removes a segment from the journal but keeps its bytes, if possible.
    fn set_aside(&self, segment: u32) -> io::Result<()> {
        self.remove(segment)
    }

    /// Makes the set of segments durable.
    fn sync(&self) -> io::Result<()>;

    /// The contents of the file `salt`, if it exists.
    fn salt(&self) -> io::Result<Option<Vec<u8>>>;

    /// Replaces the file `salt`, atomically and durably.
    fn keep_salt(&self, bytes: &[u8]) -> io::Result<()>;

    /// Random bytes that no client can guess.
    fn random(&self) -> io::Result<Salt>;
}

/// An open segment. The methods are named after those of [`File`].
pub trait SegmentFile: Send + Sync + 'static {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    fn set_len(&self, bytes: u64) -> io::Result<()>;

    fn sync_data(&self) -> io::Result<()>;

    fn sync_all(&self) -> io::Result<()>;
}

/// A directory of the real file system.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Kept open from the first sync on, so that a lack of file descriptors never prevents the sync of a new segment.
    handle: OnceLock<File>,
}

impl Directory {
    pub fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), handle: OnceLock::new() }
    }

    fn path_of(&self, segment: u32) -> PathBuf {
        self.path.join(format!("{segment:010}{SUFFIX}"))
    }
}

impl Files for Directory {
    type File = File;

    fn list(&self) -> io::Result<BTreeMap<u32, u64>> {
        let mut segments = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|n| n.parse().ok());
            if let Some(number) = number {
                segments.insert(number, entry.metadata()?.len());
            }
        }
        Ok(segments)
    }

    fn create(&self, segment: u32) -> io::Result<File> {
        options().read(true).write(true).create_new(true).open(self.path_of(segment))
    }

    fn open(&self, segment: u32) -> io::Result<File> {
        File::options().read(true).write(true).open(self.path_of(segment))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        fs::remove_file(self.path_of(segment))
    }

    fn set_aside(&self, segment: u32) -> io::Result<()> {
        let path = self.path_of(segment);
        fs::rename(&path, path.with_extension("segment.damaged"))
    }

    fn sync(&self) -> io::Result<()> {
        let handle = match self.handle.get() {
            Some(handle) => handle,
            None => {
                let opened = File::open(&self.path)?;
                self.handle.get_or_init(|| opened)
            }
        };
        handle.sync_all()
    }

    fn salt(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(salt_in(&self.path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn keep_salt(&self, bytes: &[u8]) -> io::Result<()> {
        let (path, new) = (salt_in(&self.path), self.path.join("salt.new"));
        let file = options().write(true).create(true).truncate(true).open(&new)?;
        FileExt::write_all_at(&file, bytes, 0)?;
        file.sync_all()?;
        fs::rename(new, path)?;
        self.sync()
    }

    fn random(&self) -> io::Result<Salt> {
        clock::secret()
    }
}

impl SegmentFile for File {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, at)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        Self::sync_all(self)
    }
}

/// Whether the error is a lack of file descriptors, which passes.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The segments of a journal, oldest first.
pub fn segments_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = Directory::of(dir);
    Ok(directory.list()?.into_keys().map(|segment| directory.path_of(segment)).collect())
}

/// The path of a journal's salt.
pub fn salt_in(dir: &Path) -> PathBuf {
    dir.join(SALT)
}

/// Makes the entries of a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
