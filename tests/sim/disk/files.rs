//! The files of a journal. Entries of the directory, and bytes of a file, are durable after a sync of that directory or
//! file.

use std::collections::BTreeMap;
use std::io;

use fastrand::Rng;
use sendoff::outbox::embedded::journal::files::{Files, SegmentFile};
use sendoff::outbox::embedded::journal::seal::Salt;

use super::{FakeDisk, Plug};
use crate::sabotage::Bug;

/// Bytes that are written completely or not at all. Small, as the frames are.
const SECTOR: usize = 64;

/// A write happens in this many pieces. A kill during it leaves some of them.
const PIECES: usize = 3;

/// The planted bug "202 before the sync" syncs one of this many commits.
const LAZY_SYNC_EVERY: u64 = 4;

#[derive(Clone, Default)]
pub struct Segments {
    entries: BTreeMap<u32, usize>,
    synced_entries: BTreeMap<u32, usize>,
    /// A file may exist without an entry.
    contents: BTreeMap<usize, Content>,
    next: usize,
    /// The file `salt`, which is replaced as a whole.
    salt: Option<Vec<u8>>,
}

#[derive(Clone, Default)]
struct Content {
    /// The content as a reader sees it.
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// The changes from the synced content to this one.
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

impl Segments {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn lose_unsynced(&mut self) {
        self.entries = self.synced_entries.clone();
        for content in self.contents.values_mut() {
            content.unsynced.clear();
        }
        self.settle();
    }

    pub fn tear(&mut self, rng: &mut Rng) {
        for (&segment, &content) in &std::mem::take(&mut self.entries) {
            if self.synced_entries.get(&segment) == Some(&content) || rng.bool() {
                self.entries.insert(segment, content);
            }
        }
        for (&segment, &content) in &self.synced_entries {
            // The file was removed, and the removal was not synced.
            if !self.entries.contains_key(&segment) && rng.bool() {
                self.entries.insert(segment, content);
            }
        }
        for content in self.contents.values_mut() {
            content.tear(rng);
        }
        self.settle();
    }

    /// After a power cut a reader sees what is durable.
    fn settle(&mut self) {
        self.synced_entries = self.entries.clone();
        let entries = &self.entries;
        self.contents.retain(|content, _| entries.values().any(|entered| entered == content));
        for content in self.contents.values_mut() {
            content.bytes = content.synced.clone();
        }
    }
}

impl Content {
    fn change(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write { at, bytes: written } => {
                bytes.resize(bytes.len().max(at + written.len()), 0);
                bytes[*at..at + written.len()].copy_from_slice(written);
            }
            Change::Length(length) => bytes.resize(*length, 0),
        }
    }

    fn do_unsynced(&mut self, change: Change) {
        Self::change(&mut self.bytes, &change);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            Self::change(&mut self.synced, &change);
        }
    }

    /// Each sector that was written is there or not, and so is the file's length.
    fn tear(&mut self, rng: &mut Rng) {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                Change::Write { at, bytes } => {
                    if rng.bool() {
                        let length = self.synced.len().max(at + bytes.len());
                        self.synced.resize(length, 0);
                    }
                    for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                        if rng.bool() {
                            let sector = Change::Write { at: at + n * SECTOR, bytes: sector.to_vec() };
                            Self::change(&mut self.synced, &sector);
                        }
                    }
                }
                Change::Length(_) if rng.bool() => Self::change(&mut self.synced, &change),
                Change::Length(_) => {}
            }
        }
    }
}

#[derive(Clone)]
pub struct FakeFiles {
    pub(super) disk: FakeDisk,
    pub(super) plug: Option<Plug>,
}

pub struct FakeFile {
    files: FakeFiles,
    content: usize,
}

impl FakeFiles {
    fn step(&self, place: &str) -> io::Result<()> {
        Plug::step(self.plug.as_ref(), place)
    }

    fn bug(&self) -> Option<Bug> {
        self.plug.as_ref().and_then(|plug| plug.world.scenario.bug)
    }

    fn sync_or_fail(&self) -> io::Result<()> {
        if let Some(plug) = &self.plug
            && plug.world.sync_fails()
        {
            plug.world.note(|| "a sync failed".into());
            return Err(io::Error::other("input/output error"));
        }
        Ok(())
    }

    fn file(&self, content: usize) -> FakeFile {
        FakeFile { files: self.clone(), content }
    }
}

impl Files for FakeFiles {
    type File = FakeFile;

    fn list(&self) -> io::Result<BTreeMap<u32, u64>> {
        let inner = self.disk.inner();
        let segments = &inner.segments;
        Ok(segments.entries.iter().map(|(&n, content)| (n, segments.contents[content].bytes.len() as u64)).collect())
    }

    fn create(&self, segment: u32) -> io::Result<FakeFile> {
        self.step("before a segment is made")?;
        Plug::note(self.plug.as_ref(), || format!("segment {segment} begins"));
        let mut inner = self.disk.inner();
        let segments = &mut inner.segments;
        let content = segments.next;
        segments.next += 1;
        segments.contents.insert(content, Content::default());
        match segments.entries.insert(segment, content) {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => Ok(self.file(content)),
        }
    }

    fn open(&self, segment: u32) -> io::Result<FakeFile> {
        let content = self.disk.inner().segments.entries.get(&segment).copied();
        content.map(|content| self.file(content)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        self.step("before a segment is removed")?;
        Plug::note(self.plug.as_ref(), || format!("segment {segment} is removed"));
        let mut inner = self.disk.inner();
        inner.did.segments_removed += 1;
        inner.segments.entries.remove(&segment).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.step("before the directory is synced")?;
        self.sync_or_fail()?;
        if self.bug() != Some(Bug::ForgetDirectories) {
            let mut inner = self.disk.inner();
            inner.segments.synced_entries = inner.segments.entries.clone();
        }
        Ok(())
    }

    fn salt(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.disk.inner().segments.salt.clone())
    }

    fn keep_salt(&self, bytes: &[u8]) -> io::Result<()> {
        self.step("before the salt is kept")?;
        self.disk.inner().segments.salt = Some(bytes.to_vec());
        Ok(())
    }

    fn random(&self) -> io::Result<Salt> {
        Ok(*b"the salt")
    }
}

impl FakeFile {
    fn sync(&self) -> io::Result<()> {
        self.files.step("between write and sync")?;
        if let Err(failed) = self.files.sync_or_fail() {
            // A kernel then treats the pages as clean: reads return what was written, and no later sync writes them.
            if let Some(plug) = &self.files.plug
                && plug.world.draw(|rng| rng.bool())
            {
                self.content(&mut self.files.disk.inner().segments)?.unsynced.clear();
            }
            return Err(failed);
        }
        let mut inner = self.files.disk.inner();
        let lazy = self.files.bug() == Some(Bug::AckBeforeSync);
        if !lazy || inner.did.commits.is_multiple_of(LAZY_SYNC_EVERY) {
            self.content(&mut inner.segments)?.sync();
        }
        drop(inner);
        self.files.step("after a sync")
    }

    fn content<'a>(&self, segments: &'a mut Segments) -> io::Result<&'a mut Content> {
        segments.contents.get_mut(&self.content).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SegmentFile for FakeFile {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let mut inner = self.files.disk.inner();
        let found = self.content(&mut inner.segments)?.bytes.get(at as usize..at as usize + bytes.len());
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let piece = (bytes.len() / PIECES).max(SECTOR);
        for (n, bytes) in bytes.chunks(piece).enumerate() {
            self.files.step(if n == 0 { "before a write" } else { "within a write" })?;
            let change = Change::Write { at: at as usize + n * piece, bytes: bytes.to_vec() };
            self.content(&mut self.files.disk.inner().segments)?.do_unsynced(change);
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.files.step("before a segment is cut off")?;
        let mut inner = self.files.disk.inner();
        let content = self.content(&mut inner.segments)?;
        let shortens = content.bytes.len() as u64 > bytes;
        content.do_unsynced(Change::Length(bytes as usize));
        if shortens {
            inner.did.torn += 1;
            Plug::note(self.files.plug.as_ref(), || format!("a torn frame is cut off at {bytes}"));
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}
