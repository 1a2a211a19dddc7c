//! Reads small files that a person has named: configuration, certificates, profiles.
//!
//! Holds: a read ends at once, wherever the path leads, and takes no more memory than the given limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Reads at most `bytes_max` bytes. A longer file is an error. So is a pipe: it has no end until its writer closes it,
/// and it cannot be read a second time.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    let read = file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if read as u64 > bytes_max {
        return Err(io::Error::other(format!("it is larger than {} MiB", bytes_max >> 20)));
    }
    Ok(bytes)
}

/// As [`read`], but returns text.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

fn open(path: &Path) -> io::Result<File> {
    // Without this flag, opening a pipe waits for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() {
        return Err(io::Error::other("it is a pipe; write the text to a file and name that"));
    }
    if kind.is_dir() {
        return Err(io::Error::other("it is a directory; name a file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_small_file_is_refused_without_waiting() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        let fifo = path("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_bits_truncate(0o600),
            0,
        )
        .unwrap();
        let huge = path("huge");
        File::create(&huge).unwrap().set_len(1 << 30).unwrap();
        std::fs::write(path("binary"), b"\xff").unwrap();
        for (path, why) in [
            (fifo.as_path(), "it is a pipe"),
            (scratch.path(), "it is a directory"),
            (Path::new("/dev/zero"), "it is larger than 1 MiB"),
            (huge.as_path(), "it is larger than 1 MiB"),
            (path("binary").as_path(), "it is not UTF-8"),
            (path("missing").as_path(), "No such file"),
        ] {
            let said = read_text(path, 1 << 20).unwrap_err().to_string();
            assert!(said.starts_with(why), "{}: {said}", path.display());
        }
        assert_eq!(read_text(Path::new("/dev/null"), 1).unwrap(), "");
        std::fs::write(path("file"), b"text").unwrap();
        assert_eq!(read_text(&path("file"), 4).unwrap(), "text");
    }
}
