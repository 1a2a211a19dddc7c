//! The directory that keeps ends: numbered segments, each with an index once it is full.
//!
//! ```text
//! lock       held while the directory is in use
//! N.ends     magic "sendoffE" | format u32 | record record ...       (record.rs)
//! N.index    magic "sendoffX" | format u32 | entries u32 | last end u64 | lowest id | highest id
//!            | crc u32 of what stands before it | entry entry ...
//! entry      id, 16 bytes | offset of its record u32; in the order of ids
//! ```
//!
//! Numbers are little-endian. The last segment has no index on disk, but one in memory.
//!
//! Holds: a crash costs at most the records that were being written. A record is found by its id in a few reads.
//! Limits: [`Bounds`]. The oldest segment makes way for a new one. The index in memory has the ids of one segment.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::End;
use super::record::{self, BYTES_MAX};
use crate::clock::UnixMillis;
use crate::event::EventId;

const FORMAT: u32 = 1;

const ENDS: &str = "ends";
const INDEX: &str = "index";

const ENDS_MAGIC: &[u8; 8] = b"sendoffE";
const INDEX_MAGIC: &[u8; 8] = b"sendoffX";

/// The head of a segment, and of an index.
const ENDS_HEAD: u64 = 12;
const INDEX_HEAD: usize = 60;

/// The bytes of an entry of an index.
const ENTRY: usize = 20;

/// The size of a segment, its index included. A smaller share of the whole keeps more than nothing when one makes way.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
const SHARES: u64 = 16;

/// A segment is closed after this share of the time, so that it can be removed in time.
const AGES: u32 = 8;

/// The largest segment that is read. A batch may exceed a segment's size.
const SCAN_BYTES_MAX: u64 = 64 << 20;

/// What may be kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most bytes of all files.
    pub bytes_max: u64,
    /// How long an end is kept.
    pub keep: Duration,
    /// The free bytes of the disk that a new segment must leave.
    pub reserve: u64,
}

/// The open directory.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    bounds: Bounds,
    /// The oldest first.
    sealed: VecDeque<Sealed>,
    active: Option<Active>,
    /// The number of the next segment.
    next: u32,
    _lock: File,
}

/// The segment that is written.
#[derive(Debug)]
struct Active {
    number: u32,
    file: File,
    bytes: u64,
    index: BTreeMap<EventId, u32>,
    first: UnixMillis,
    last: UnixMillis,
}

/// A full segment.
#[derive(Debug)]
struct Sealed {
    number: u32,
    entries: u32,
    /// Of both files.
    bytes: u64,
    last: UnixMillis,
    lowest: EventId,
    highest: EventId,
}

/// What a segment holds.
struct Scanned {
    index: BTreeMap<EventId, u32>,
    /// The bytes up to the end of the last whole record.
    bytes: u64,
    first: UnixMillis,
    last: UnixMillis,
}

impl Active {
    /// The bytes that it takes once it is sealed.
    fn weight(&self) -> u64 {
        self.bytes + (INDEX_HEAD + ENTRY * self.index.len()) as u64
    }
}

impl Files {
    /// Opens the directory, and creates it if needed. Completes what a crash interrupted.
    pub fn open(dir: &Path, bounds: Bounds) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock = File::options().mode(0o600).create(true).truncate(false).write(true).open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::other("another sendoff uses it"),
            fs::TryLockError::Error(error) => error,
        })?;
        let numbers = numbers(dir)?;
        let (sealed, active, next) = (VecDeque::new(), None, numbers.last().map_or(1, |last| last + 1));
        let mut files = Self { dir: dir.to_owned(), bounds, sealed, active, next, _lock: lock };
        for (nth, &number) in numbers.iter().enumerate() {
            files.adopt(number, nth + 1 == numbers.len())?;
        }
        Ok(files)
    }

    /// Takes an existing segment in. The last one is written on.
    fn adopt(&mut self, number: u32, is_last: bool) -> io::Result<()> {
        if let Some(sealed) = self.read_index(number)? {
            self.sealed.push_back(sealed);
            return Ok(());
        }
        let path = self.path(number, ENDS);
        let scanned = scan(&path)?;
        if scanned.index.is_empty() {
            return fs::remove_file(&path);
        }
        let file = File::options().read(true).write(true).open(&path)?;
        file.set_len(scanned.bytes)?;
        let Scanned { index, bytes, first, last } = scanned;
        let active = Active { number, file, bytes, index, first, last };
        if is_last {
            self.active = Some(active);
            return Ok(());
        }
        let sealed = self.write_index(&active)?;
        self.sealed.push_back(sealed);
        Ok(())
    }

    /// Appends whole records. After an error none of them is kept.
    pub fn append(&mut self, records: &[u8], now: UnixMillis) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.sweep(now)?;
        let is_full = |active: &Active| active.weight() >= self.segment_bytes();
        if self.active.as_ref().is_some_and(is_full) {
            self.seal()?;
        }
        let found: Vec<_> = record::records(records).map(|(offset, record)| (record.id, offset as u64)).collect();
        let more = (records.len() + found.len() * ENTRY) as u64;
        while self.weight() + more > self.bounds.bytes_max && self.remove_oldest()? {}
        if self.active.is_none() {
            self.active = Some(self.begin(now)?);
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        if let Err(error) = active.file.write_all_at(records, active.bytes) {
            // What was written of them would end the records of this segment at the next start.
            return active.file.set_len(active.bytes).and(Err(error));
        }
        for (id, offset) in found {
            active.index.insert(id, u32::try_from(active.bytes + offset).unwrap_or(u32::MAX));
        }
        active.bytes += records.len() as u64;
        active.last = now;
        Ok(())
    }

    /// What is known of an event's end.
    pub fn find(&self, id: EventId, now: UnixMillis) -> io::Result<Option<End>> {
        let end = self.look(id)?;
        Ok(end.filter(|end| now.since(end.at) <= self.bounds.keep))
    }

    fn look(&self, id: EventId) -> io::Result<Option<End>> {
        if let Some(active) = &self.active
            && let Some(&offset) = active.index.get(&id)
        {
            return read_record(&active.file, offset, id);
        }
        for sealed in self.sealed.iter().rev().filter(|sealed| (sealed.lowest..=sealed.highest).contains(&id)) {
            let index = File::open(self.path(sealed.number, INDEX))?;
            if let Some(offset) = search(&index, sealed.entries, id)? {
                return read_record(&File::open(self.path(sealed.number, ENDS))?, offset, id);
            }
        }
        Ok(None)
    }

    /// Removes what is older than the bounds allow, and closes a segment that has been written for long.
    pub fn sweep(&mut self, now: UnixMillis) -> io::Result<()> {
        let is_old = |active: &Active| now.since(active.first) > self.bounds.keep / AGES;
        if self.active.as_ref().is_some_and(is_old) {
            self.seal()?;
        }
        while self.sealed.front().is_some_and(|oldest| now.since(oldest.last) > self.bounds.keep) {
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Makes the segment that is written durable.
    pub fn sync(&self) -> io::Result<()> {
        self.active.as_ref().map_or(Ok(()), |active| active.file.sync_data())
    }

    fn segment_bytes(&self) -> u64 {
        (self.bounds.bytes_max / SHARES).min(SEGMENT_BYTES_MAX)
    }

    /// The bytes of all files.
    fn weight(&self) -> u64 {
        let sealed: u64 = self.sealed.iter().map(|sealed| sealed.bytes).sum();
        sealed + self.active.as_ref().map_or(0, Active::weight)
    }

    fn path(&self, number: u32, kind: &str) -> PathBuf {
        self.dir.join(format!("{number:010}.{kind}"))
    }

    fn begin(&mut self, now: UnixMillis) -> io::Result<Active> {
        while let Some(free) = free(&self.dir).filter(|free| *free < self.bounds.reserve) {
            if !self.remove_oldest()? {
                let why = format!("the disk has {free} bytes free, which are kept for settling (outbox.disk_reserve)");
                return Err(io::Error::new(ErrorKind::StorageFull, why));
            }
        }
        let number = self.next;
        let path = self.path(number, ENDS);
        let file = File::options().mode(0o600).create_new(true).read(true).write(true).open(&path)?;
        self.next += 1;
        let head = [&ENDS_MAGIC[..], &FORMAT.to_le_bytes()].concat();
        if let Err(error) = file.write_all_at(&head, 0) {
            return fs::remove_file(&path).and(Err(error));
        }
        Ok(Active { number, file, bytes: ENDS_HEAD, index: BTreeMap::new(), first: now, last: now })
    }

    /// Closes the segment that is written.
    fn seal(&mut self) -> io::Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        active.file.sync_data()?;
        let sealed = self.write_index(active)?;
        self.sealed.push_back(sealed);
        self.active = None;
        Ok(())
    }

    fn write_index(&self, active: &Active) -> io::Result<Sealed> {
        let Active { number, bytes, index, last, .. } = active;
        let none = || io::Error::other("a segment without records");
        let (lowest, highest) = index.keys().next().zip(index.keys().next_back()).ok_or_else(none)?;
        let entries = u32::try_from(index.len()).map_err(io::Error::other)?;
        let mut out = Vec::with_capacity(INDEX_HEAD + ENTRY * index.len());
        out.extend_from_slice(INDEX_MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&entries.to_le_bytes());
        out.extend_from_slice(&last.0.to_le_bytes());
        out.extend_from_slice(lowest.as_bytes());
        out.extend_from_slice(highest.as_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        for (id, offset) in index {
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        let (path, aside) = (self.path(*number, INDEX), self.path(*number, "new"));
        let file = File::options().mode(0o600).create(true).truncate(true).write(true).open(&aside)?;
        file.write_all_at(&out, 0)?;
        file.sync_data()?;
        fs::rename(&aside, &path)?;
        let bytes = bytes + out.len() as u64;
        Ok(Sealed { number: *number, entries, bytes, last: *last, lowest: *lowest, highest: *highest })
    }

    /// The segment, if its index is whole.
    fn read_index(&self, number: u32) -> io::Result<Option<Sealed>> {
        let file = match File::open(self.path(number, INDEX)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut head = [0; INDEX_HEAD];
        if file.read_exact_at(&mut head, 0).is_err() || &head[..8] != INDEX_MAGIC {
            return Ok(None);
        }
        refuse_newer(number_at(&head, 8))?;
        let crc = number_at(&head, INDEX_HEAD - 4);
        let entries = number_at(&head, 12);
        let bytes = INDEX_HEAD as u64 + u64::from(entries) * ENTRY as u64;
        if crc32fast::hash(&head[..INDEX_HEAD - 4]) != crc || file.metadata()?.len() != bytes {
            return Ok(None);
        }
        let last = u64::from(number_at(&head, 16)) | u64::from(number_at(&head, 20)) << 32;
        let id = |at: usize| head[at..at + 16].try_into().map(EventId::from_bytes).map_err(io::Error::other);
        let bytes = bytes + fs::metadata(self.path(number, ENDS))?.len();
        Ok(Some(Sealed { number, entries, bytes, last: UnixMillis(last), lowest: id(24)?, highest: id(40)? }))
    }

    /// Whether there was one.
    fn remove_oldest(&mut self) -> io::Result<bool> {
        let Some(oldest) = self.sealed.front() else { return Ok(false) };
        fs::remove_file(self.path(oldest.number, ENDS))?;
        // Without its segment it is removed at the next start.
        drop(fs::remove_file(self.path(oldest.number, INDEX)));
        self.sealed.pop_front();
        Ok(true)
    }
}

/// The numbers of the segments, in order. Removes what belongs to none.
fn numbers(dir: &Path) -> io::Result<Vec<u32>> {
    let (mut numbers, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u32>().ok());
        match (number, path.extension().and_then(|kind| kind.to_str())) {
            (Some(number), Some(ENDS)) => numbers.push(number),
            (Some(number), Some(INDEX)) => others.push((number, path)),
            (Some(_), Some("new")) => fs::remove_file(path)?,
            (Some(_) | None, _) => {}
        }
    }
    numbers.sort_unstable();
    for (number, path) in others {
        if numbers.binary_search(&number).is_err() {
            fs::remove_file(path)?;
        }
    }
    Ok(numbers)
}

fn scan(path: &Path) -> io::Result<Scanned> {
    let bytes = if fs::metadata(path)?.len() > SCAN_BYTES_MAX { Vec::new() } else { fs::read(path)? };
    let (mut index, mut last) = (BTreeMap::new(), UnixMillis(0));
    let (mut first, mut whole) = (None, ENDS_HEAD as usize);
    if bytes.starts_with(ENDS_MAGIC) && bytes.len() >= whole {
        refuse_newer(number_at(&bytes, 8))?;
        for (offset, record) in record::records(&bytes[whole..]) {
            let offset = offset + ENDS_HEAD as usize;
            index.insert(record.id, u32::try_from(offset).map_err(io::Error::other)?);
            whole = offset + record.len();
            if let Some(end) = record.end() {
                first.get_or_insert(end.at);
                last = last.max(end.at);
            }
        }
    }
    if index.is_empty() {
        tracing::warn!(path = %path.display(), "a file of the history has no readable record: removing it");
    }
    Ok(Scanned { index, bytes: whole as u64, first: first.unwrap_or(last), last })
}

fn refuse_newer(format: u32) -> io::Result<()> {
    let newer = || format!("a newer sendoff wrote it (format {format}, this one reads up to {FORMAT})");
    if format > FORMAT { Err(io::Error::other(newer())) } else { Ok(()) }
}

/// The little-endian number at an offset, 0 where there is none.
fn number_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The offset of an id in an index.
fn search(index: &File, entries: u32, id: EventId) -> io::Result<Option<u32>> {
    let (mut low, mut high) = (0, u64::from(entries));
    while low < high {
        let middle = low + (high - low) / 2;
        let mut entry = [0; ENTRY];
        index.read_exact_at(&mut entry, INDEX_HEAD as u64 + middle * ENTRY as u64)?;
        match entry[..16].cmp(&id.as_bytes()[..]) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => return Ok(Some(number_at(&entry, 16))),
        }
    }
    Ok(None)
}

fn read_record(file: &File, offset: u32, id: EventId) -> io::Result<Option<End>> {
    let mut bytes = vec![0; BYTES_MAX];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], u64::from(offset) + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    let record = record::first(&bytes[..read]).filter(|record| record.id == id);
    Ok(record.and_then(|record| record.end()))
}

/// The free bytes of the disk, if the file system reports them.
fn free(dir: &Path) -> Option<u64> {
    let fs = rustix::fs::statvfs(dir).ok()?;
    (fs.f_blocks > 0 && fs.f_frsize > 0).then(|| fs.f_bavail.saturating_mul(fs.f_frsize))
}

#[cfg(test)]
mod tests;
