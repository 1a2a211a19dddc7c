//! The journal: every commit of the outbox, in order, in the files of one directory. It is the truth; the index above it only
//! says where in it things stand.
//!
//! Holds: a commit is one frame, written and synced before the next begins, so that after a power cut only the last frame may
//! be torn. Commits are numbered without a gap, and segments too. Segments are removed from the oldest on, each removal durable
//! before the next, so that what is there is always an unbroken end of all that was written.
//! Limits: [`FILES_OPEN_MAX`] files are held open.
//! Fails: after a failed write nothing is known any more, and the journal must not be used again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use frame::{BadHead, FRAME_HEAD_BYTES, FrameHead, FrameWriter, Op, SEGMENT_HEAD_BYTES, SegmentHead};

pub mod frame;

/// Segments that are held open for reading.
const FILES_OPEN_MAX: usize = 64;

const SUFFIX: &str = ".segment";

/// Where an op stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    pub segment: u32,
    pub offset: u32,
    pub bytes: u32,
}

/// One commit, read back.
#[derive(Debug)]
pub struct Frame {
    pub commit: u64,
    pub ops: Vec<(Location, Op)>,
    /// Where the next one begins.
    pub end: u64,
}

/// What stands at some place of a segment.
#[derive(Debug)]
pub enum Next {
    Frame(Frame),
    /// Something that is no frame; and where the next one begins, if there is another.
    Bad {
        resumes_at: Option<u64>,
    },
    End,
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("format {0} of a newer sendoff")]
    Newer(u32),
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub struct Journal {
    dir: PathBuf,
    /// The bytes of each segment. The last one is the one that is written to.
    segments: BTreeMap<u32, u64>,
    bytes: u64,
    current: Arc<File>,
    next_commit: u64,
    frame: FrameWriter,
    open: RefCell<BTreeMap<u32, Arc<File>>>,
}

impl Journal {
    /// Makes a new, empty journal, durably. Its first commit gets the number `first_commit`.
    pub fn create(dir: &Path, first_commit: u64) -> io::Result<()> {
        fs::create_dir(dir)?;
        create_segment(dir, SegmentHead { number: 1, first_commit }).map(drop)
    }

    /// Opens it as it is. A segment that a crash has left half made is removed. With `lenient`, segments that are missing or
    /// whose head is damaged do not keep it from opening.
    ///
    /// The number of the next commit is not known before [`Journal::is_at`] tells it.
    pub fn open(dir: &Path, lenient: bool) -> Result<Self, OpenError> {
        let mut segments = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|n| n.parse::<u32>().ok());
            if let Some(number) = number {
                segments.insert(number, entry.metadata()?.len());
            }
        }
        remove_half_made(dir, &mut segments)?;
        let Some((&last, _)) = segments.last_key_value() else {
            return Err(OpenError::Damaged("the journal has no segment".to_owned()));
        };
        if !lenient {
            check_heads(dir, &segments)?;
        }
        let current = Arc::new(File::options().read(true).write(true).open(path_of(dir, last))?);
        let bytes = segments.values().sum();
        let (frame, open) = (FrameWriter::default(), RefCell::default());
        Ok(Self { dir: dir.to_owned(), segments, bytes, current, next_commit: 0, frame, open })
    }

    /// Tells, once everything was read, which commit comes next.
    pub fn is_at(&mut self, next_commit: u64) {
        self.next_commit = next_commit;
    }

    pub fn oldest(&self) -> u32 {
        self.segments.first_key_value().map_or(1, |(&number, _)| number)
    }

    pub fn newest(&self) -> u32 {
        self.segments.last_key_value().map_or(1, |(&number, _)| number)
    }

    /// The bytes of a segment; 0 if there is none.
    pub fn segment_bytes(&self, number: u32) -> u64 {
        self.segments.get(&number).copied().unwrap_or(0)
    }

    /// The bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number that a segment's head gives its first commit; none if the head is damaged.
    pub fn first_commit(&self, segment: u32) -> io::Result<Option<u64>> {
        let mut head = [0; SEGMENT_HEAD_BYTES];
        match self.file(segment)?.read_exact_at(&mut head, 0) {
            Ok(()) => Ok(SegmentHead::decode(&head).ok().map(|head| head.first_commit)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the first frame of a segment begins.
    pub const fn start() -> u64 {
        SEGMENT_HEAD_BYTES as u64
    }

    /// What stands at `at` of a segment.
    pub fn read(&self, segment: u32, at: u64) -> io::Result<Next> {
        let end = self.segment_bytes(segment);
        if at >= end {
            return Ok(Next::End);
        }
        let file = self.file(segment)?;
        let frame = read_frame(&file, segment, at, end)?;
        Ok(match frame {
            Some(frame) => Next::Frame(frame),
            None => Next::Bad { resumes_at: find_frame(&file, at + 1, end)? },
        })
    }

    /// One op, by its location. None if it is damaged.
    pub fn read_op(&self, at: Location) -> io::Result<Option<Op>> {
        let mut bytes = vec![0; at.bytes as usize];
        match self.file(at.segment)?.read_exact_at(&mut bytes, u64::from(at.offset)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(frame::read_op(&Bytes::from(bytes)).map(|(op, _)| op))
    }

    /// Where the ops of the next commit are put together.
    pub fn frame(&mut self) -> &mut FrameWriter {
        &mut self.frame
    }

    /// Writes the frame that was put together, and makes it durable. Gives its place and the number of the commit.
    pub fn append(&mut self) -> io::Result<(Location, u64)> {
        let commit = self.next_commit;
        let segment = self.newest();
        let at = self.segment_bytes(segment);
        let frame = self.frame.finish(commit);
        self.current.write_all_at(frame, at)?;
        self.current.sync_data()?;
        self.next_commit += 1;
        let bytes = frame.len() as u32;
        self.segments.insert(segment, at + u64::from(bytes));
        self.bytes += u64::from(bytes);
        Ok((Location { segment, offset: at as u32, bytes }, commit))
    }

    /// Begins a new segment.
    pub fn roll(&mut self) -> io::Result<()> {
        let head = SegmentHead { number: self.newest() + 1, first_commit: self.next_commit };
        self.current = Arc::new(create_segment(&self.dir, head)?);
        self.segments.insert(head.number, Self::start());
        self.bytes += Self::start();
        Ok(())
    }

    /// Cuts the newest segment off at `end`, where a torn frame begins.
    pub fn cut(&mut self, end: u64) -> io::Result<()> {
        self.current.set_len(end)?;
        self.current.sync_all()?;
        if let Some(cut) = self.segments.insert(self.newest(), end) {
            self.bytes = self.bytes.saturating_sub(cut.saturating_sub(end));
        }
        Ok(())
    }

    /// Removes the oldest segment, durably. Never the one that is written to.
    pub fn remove_oldest(&mut self) -> io::Result<()> {
        let number = self.oldest();
        if number == self.newest() {
            return Ok(());
        }
        fs::remove_file(path_of(&self.dir, number))?;
        sync_dir(&self.dir)?;
        self.open.get_mut().remove(&number);
        self.bytes -= self.segments.remove(&number).unwrap_or(0);
        Ok(())
    }

    fn file(&self, segment: u32) -> io::Result<Arc<File>> {
        if segment == self.newest() {
            return Ok(self.current.clone());
        }
        let mut open = self.open.borrow_mut();
        if let Some(file) = open.get(&segment) {
            return Ok(file.clone());
        }
        if open.len() >= FILES_OPEN_MAX {
            open.pop_first();
        }
        let file = Arc::new(File::open(path_of(&self.dir, segment))?);
        open.insert(segment, file.clone());
        Ok(file)
    }
}

/// The segments of a journal, oldest first.
pub fn segments_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(SUFFIX) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn path_of(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:010}{SUFFIX}"))
}

fn create_segment(dir: &Path, head: SegmentHead) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path_of(dir, head.number))?;
    file.write_all_at(&head.encode(), 0)?;
    file.sync_all()?;
    sync_dir(dir)?;
    Ok(file)
}

/// A crash while a segment was made leaves one with nothing in it behind the last whole one.
fn remove_half_made(dir: &Path, segments: &mut BTreeMap<u32, u64>) -> io::Result<()> {
    let Some((&last, &bytes)) = segments.last_key_value() else { return Ok(()) };
    if segments.len() > 1 && bytes <= Journal::start() {
        let head = fs::read(path_of(dir, last))?;
        if SegmentHead::decode(&head) == Err(BadHead::Damaged) {
            fs::remove_file(path_of(dir, last))?;
            sync_dir(dir)?;
            segments.remove(&last);
        }
    }
    Ok(())
}

fn check_heads(dir: &Path, segments: &BTreeMap<u32, u64>) -> Result<(), OpenError> {
    let oldest = segments.first_key_value().map_or(1, |(&number, _)| number);
    for (expected, &number) in (oldest..).zip(segments.keys()) {
        if number != expected {
            return Err(OpenError::Damaged(format!("segment {expected} of the journal is missing")));
        }
        let mut head = [0; SEGMENT_HEAD_BYTES];
        let whole = File::open(path_of(dir, number))?.read_exact_at(&mut head, 0);
        match whole.ok().map(|()| SegmentHead::decode(&head)) {
            Some(Ok(head)) if head.number == number => {}
            Some(Err(BadHead::Newer(format))) => return Err(OpenError::Newer(format)),
            Some(Ok(_) | Err(BadHead::Damaged)) | None => {
                return Err(OpenError::Damaged(format!("the head of segment {number} of the journal is damaged")));
            }
        }
    }
    Ok(())
}

fn read_frame(file: &File, segment: u32, at: u64, end: u64) -> io::Result<Option<Frame>> {
    let body_at = at + FRAME_HEAD_BYTES as u64;
    if body_at > end {
        return Ok(None);
    }
    let mut head = [0; FRAME_HEAD_BYTES];
    file.read_exact_at(&mut head, at)?;
    let Some(head) = FrameHead::decode(&head).filter(|head| body_at + u64::from(head.body_bytes) <= end) else {
        return Ok(None);
    };
    let mut body = vec![0; head.body_bytes as usize];
    file.read_exact_at(&mut body, body_at)?;
    if !head.fits(&body) {
        return Ok(None);
    }
    let body = Bytes::from(body);
    let mut ops = Vec::new();
    let mut within = 0;
    while within < body.len() {
        let Some((op, bytes)) = frame::read_op(&body.slice(within..)) else { return Ok(None) };
        let offset = body_at as u32 + within as u32;
        ops.push((Location { segment, offset, bytes: bytes as u32 }, op));
        within += bytes;
    }
    Ok(Some(Frame { commit: head.commit, ops, end: body_at + u64::from(head.body_bytes) }))
}

/// Where the next whole frame begins between `from` and `end`.
fn find_frame(file: &File, from: u64, end: u64) -> io::Result<Option<u64>> {
    if from >= end {
        return Ok(None);
    }
    let mut rest = vec![0; (end - from) as usize];
    file.read_exact_at(&mut rest, from)?;
    Ok(frame::find_frame(&rest, 0).map(|at| from + at as u64))
}

/// Makes the entries of a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
