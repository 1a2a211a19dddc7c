//! The journal: every commit of the outbox, in order, in the files of one directory. It holds all data. The index only
//! says where in the journal a value is.
//!
//! Holds: a commit is one frame, written and synced before the next begins. So a power cut can tear only the last frame.
//! Commits and segments are numbered without gaps. Segments are removed oldest first, and each removal is durable before
//! the next. So the journal is always an unbroken suffix of everything written.
//! Limits: keeps [`FILES_OPEN_MAX`] files open.
//! Fails: after a failed write the contents are unknown, and the journal must not be used again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use files::{Directory, Files, SegmentFile, is_out_of_descriptors};
use frame::{BadHead, FRAME_HEAD_BYTES, FrameHead, FrameWriter, Op, PLAIN_HEAD_BYTES, SEGMENT_HEAD_BYTES, SegmentHead};
use seal::{Kept, Seal};

pub mod files;

pub mod frame;

pub mod seal;

/// The most segments kept open for reading.
const FILES_OPEN_MAX: usize = 64;

/// The window of a search for the start of a frame, in bytes. Windows overlap by less than a frame's first bytes.
const WINDOW_BYTES: u64 = 1 << 20;
const OVERLAP_BYTES: u64 = 3;

/// The location of an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    pub segment: u32,
    pub offset: u32,
    pub bytes: u32,
}

/// A commit read from the journal.
#[derive(Debug)]
pub struct Frame {
    pub commit: u64,
    pub ops: Vec<(Location, Op)>,
    /// Where the next frame begins.
    pub end: u64,
}

/// What is at an offset of a segment.
#[derive(Debug)]
pub enum Next {
    Frame(Frame),
    /// Bytes that are not a frame, and where the next frame begins, if there is one.
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

pub struct Journal<D: Files = Directory> {
    dir: D,
    /// The size of each segment in bytes. The last segment is the one being written.
    segments: BTreeMap<u32, u64>,
    /// The seal of each segment's frames. `None` if it is unknown.
    seals: BTreeMap<u32, Seal>,
    /// The salt of new segments. `None` before the first salted segment.
    salt: Option<Kept>,
    bytes: u64,
    current: Arc<D::File>,
    next_commit: u64,
    frame: FrameWriter,
    open: RefCell<BTreeMap<u32, Arc<D::File>>>,
}

impl<D: Files> Journal<D> {
    /// Creates an empty journal in an empty directory, durably. Its first commit gets the number `first_commit`.
    pub fn create(dir: &D, first_commit: u64) -> io::Result<()> {
        let kept = Kept { salt: dir.random()?, since: 1 };
        dir.keep_salt(&kept.encode())?;
        create_segment(dir, SegmentHead { number: 1, first_commit, salt: Some(kept.salt) }).map(drop)
    }

    /// Opens the journal. Removes a segment that a crash left incomplete. With `lenient`, opens it even if segments are missing
    /// or have a damaged head.
    ///
    /// The number of the next commit is unknown until [`Journal::is_at`] sets it.
    pub fn open(dir: D, lenient: bool) -> Result<Self, OpenError> {
        let mut segments = dir.list()?;
        remove_half_made(&dir, &mut segments)?;
        let Some((&last, _)) = segments.last_key_value() else {
            return Err(OpenError::Damaged("the journal has no segment".to_owned()));
        };
        let current = Arc::new(dir.open(last)?);
        // A killed process may have created it. It must be durable before anything builds on it.
        dir.sync()?;
        if !lenient {
            check_heads(&dir, &segments)?;
        }
        let (seals, salt) = read_seals(&dir, &segments)?;
        if let Some(salt) = salt.filter(|_| !lenient) {
            mend_salt(&dir, salt)?;
        }
        let bytes = segments.values().sum();
        let (frame, open) = (FrameWriter::default(), RefCell::default());
        Ok(Self { dir, segments, seals, salt, bytes, current, next_commit: 0, frame, open })
    }

    /// Sets the number of the next commit, once everything was read.
    pub fn is_at(&mut self, next_commit: u64) {
        self.next_commit = next_commit;
    }

    pub fn oldest(&self) -> u32 {
        self.segments.first_key_value().map_or(1, |(&number, _)| number)
    }

    pub fn newest(&self) -> u32 {
        self.segments.last_key_value().map_or(1, |(&number, _)| number)
    }

    /// Whether the segment being written has no salt.
    pub fn is_plain(&self) -> bool {
        self.seals.get(&self.newest()) == Some(&Seal::PLAIN)
    }

    /// Where the first frame of a segment begins.
    pub fn start(&self, segment: u32) -> u64 {
        self.seals.get(&segment).map_or(SEGMENT_HEAD_BYTES as u64, |seal| seal.start)
    }

    /// The size of a segment in bytes. 0 if it does not exist.
    pub fn segment_bytes(&self, number: u32) -> u64 {
        self.segments.get(&number).copied().unwrap_or(0)
    }

    /// The size of all segments in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of a segment's first commit, from its head. `None` if the head is damaged.
    pub fn first_commit(&self, segment: u32) -> io::Result<Option<u64>> {
        Ok(read_head(&*self.file(segment)?)?.ok().map(|head| head.first_commit))
    }

    /// Reads what is at offset `at` of a segment.
    pub fn read(&self, segment: u32, at: u64) -> io::Result<Next> {
        let end = self.segment_bytes(segment);
        if at >= end {
            return Ok(Next::End);
        }
        let Some(seal) = self.seals.get(&segment) else { return Ok(Next::Bad { resumes_at: None }) };
        let file = self.file(segment)?;
        let frame = read_frame(&*file, seal, segment, at, end)?;
        Ok(match frame {
            Some(frame) => Next::Frame(frame),
            None => Next::Bad { resumes_at: find_frame(&*file, seal, segment, at + 1, end) },
        })
    }

    /// Like [`Journal::read`], but treats bytes that the disk cannot read as damaged, and returns the reason.
    pub fn read_on(&self, segment: u32, at: u64) -> io::Result<(Next, Option<String>)> {
        match self.read(segment, at) {
            Ok(next) => Ok((next, None)),
            Err(error) if is_out_of_descriptors(&error) => Err(error),
            Err(error) => {
                let (file, end) = (self.file(segment)?, self.segment_bytes(segment));
                let resumes_at =
                    self.seals.get(&segment).and_then(|seal| find_frame(&*file, seal, segment, at + 1, end));
                Ok((Next::Bad { resumes_at }, Some(error.to_string())))
            }
        }
    }

    /// Reads an op by its location. `None` if it is damaged.
    pub fn read_op(&self, at: Location) -> io::Result<Option<Op>> {
        let mut bytes = vec![0; at.bytes as usize];
        match self.file(at.segment)?.read_exact_at(&mut bytes, u64::from(at.offset)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(frame::read_op(&Bytes::from(bytes)).map(|(op, _)| op))
    }

    /// Collects the ops of the next commit.
    pub fn frame(&mut self) -> &mut FrameWriter {
        &mut self.frame
    }

    /// Writes the collected frame and makes it durable. Returns its location and the number of the commit.
    pub fn append(&mut self) -> io::Result<(Location, u64)> {
        let commit = self.next_commit;
        let segment = self.newest();
        let at = self.segment_bytes(segment);
        let seal = self.seals.get(&segment).copied().unwrap_or(Seal::PLAIN);
        let frame = self.frame.finish(commit, &seal);
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
        let number = self.newest() + 1;
        let kept = match self.salt {
            Some(kept) => kept,
            None => {
                let kept = Kept { salt: self.dir.random()?, since: number };
                self.dir.keep_salt(&kept.encode())?;
                *self.salt.insert(kept)
            }
        };
        let head = SegmentHead { number, first_commit: self.next_commit, salt: Some(kept.salt) };
        self.current = Arc::new(create_segment(&self.dir, head)?);
        let seal = Seal::of(head.salt);
        self.seals.insert(number, seal);
        self.segments.insert(number, seal.start);
        self.bytes += seal.start;
        Ok(())
    }

    /// Reads the newest segment from `from` on, writes these bytes and the length again, and makes them durable. A sync alone is
    /// not enough: after a failed sync the kernel may consider pages clean that it never wrote.
    pub fn write_again(&mut self, from: u64) -> io::Result<()> {
        let mut end = vec![0; self.segment_bytes(self.newest()).saturating_sub(from) as usize];
        self.current.read_exact_at(&mut end, from)?;
        self.current.write_all_at(&end, from)?;
        self.current.set_len(from + end.len() as u64)?;
        self.current.sync_all()
    }

    /// Truncates the newest segment at `end`, where a torn frame begins.
    pub fn cut(&mut self, end: u64) -> io::Result<()> {
        self.current.set_len(end)?;
        self.current.sync_all()?;
        if let Some(cut) = self.segments.insert(self.newest(), end) {
            self.bytes = self.bytes.saturating_sub(cut.saturating_sub(end));
        }
        Ok(())
    }

    /// Removes the oldest segment, durably. Never removes the one being written.
    pub fn remove_oldest(&mut self) -> io::Result<()> {
        let number = self.oldest();
        if number == self.newest() {
            return Ok(());
        }
        self.dir.remove(number)?;
        self.dir.sync()?;
        self.open.get_mut().remove(&number);
        self.seals.remove(&number);
        self.bytes -= self.segments.remove(&number).unwrap_or(0);
        Ok(())
    }

    /// Like [`Journal::remove_oldest`], but keeps the file under another name, because it contains damaged data that is
    /// still needed.
    pub fn set_oldest_aside(&mut self) -> io::Result<()> {
        let number = self.oldest();
        if number == self.newest() {
            return Ok(());
        }
        self.dir.set_aside(number)?;
        self.dir.sync()?;
        self.open.get_mut().remove(&number);
        self.seals.remove(&number);
        self.bytes -= self.segments.remove(&number).unwrap_or(0);
        Ok(())
    }

    fn file(&self, segment: u32) -> io::Result<Arc<D::File>> {
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
        let file = match self.dir.open(segment) {
            // A file that is only cached for reading can be closed.
            Err(error) if is_out_of_descriptors(&error) && open.pop_first().is_some() => self.dir.open(segment)?,
            opened => opened?,
        };
        let file = Arc::new(file);
        open.insert(segment, file.clone());
        Ok(file)
    }
}

fn create_segment<D: Files>(dir: &D, head: SegmentHead) -> io::Result<D::File> {
    let file = dir.create(head.number)?;
    file.write_all_at(&head.encode(), 0)?;
    file.sync_all()?;
    dir.sync()?;
    Ok(file)
}

/// Removes the empty segment that a crash leaves after the last complete one.
fn remove_half_made(dir: &impl Files, segments: &mut BTreeMap<u32, u64>) -> io::Result<()> {
    let Some((&last, &bytes)) = segments.last_key_value() else { return Ok(()) };
    if segments.len() > 1 && bytes <= SEGMENT_HEAD_BYTES as u64 && read_head(&dir.open(last)?)? == Err(BadHead::Damaged)
    {
        dir.remove(last)?;
        dir.sync()?;
        segments.remove(&last);
    }
    Ok(())
}

fn read_head(file: &impl SegmentFile) -> io::Result<Result<SegmentHead, BadHead>> {
    let mut head = [0; SEGMENT_HEAD_BYTES];
    // A segment of format 1 may consist of its head only.
    for bytes in [SEGMENT_HEAD_BYTES, PLAIN_HEAD_BYTES] {
        match file.read_exact_at(&mut head[..bytes], 0) {
            Ok(()) => return Ok(SegmentHead::decode(&head[..bytes])),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Err(BadHead::Damaged))
}

/// The seal of each segment, and the salt of the store. The seal of a segment with a damaged head comes from the file
/// `salt`, else from the heads of other segments.
fn read_seals<D: Files>(dir: &D, segments: &BTreeMap<u32, u64>) -> io::Result<(BTreeMap<u32, Seal>, Option<Kept>)> {
    let (mut seals, mut headless, mut of_heads) = (BTreeMap::new(), Vec::new(), None::<Kept>);
    for (&number, &bytes) in segments {
        let file = dir.open(number)?;
        match read_head(&file) {
            Ok(Ok(head)) => {
                if let Some(salt) = head.salt {
                    let since = of_heads.map_or(number, |kept| kept.since);
                    of_heads = Some(Kept { salt, since });
                }
                seals.insert(number, Seal::of(head.salt));
            }
            // The bytes after a head of format 1 are never a client's.
            Ok(Err(_)) | Err(_) => match read_frame(&file, &Seal::PLAIN, number, Seal::PLAIN.start, bytes) {
                Ok(Some(_)) => drop(seals.insert(number, Seal::PLAIN)),
                Ok(None) | Err(_) => headless.push(number),
            },
        }
    }
    let file = dir.salt();
    let of_file = file.as_ref().ok().and_then(|file| Kept::decode(file.as_deref()?));
    let is_lost = of_file.is_none() && !matches!(file, Ok(None));
    let kept = match (of_file, of_heads) {
        (Some(file), Some(heads)) if file.salt != heads.salt => Some(heads),
        (file, heads) => file.or(heads),
    };
    for number in headless {
        let seal = match kept {
            Some(Kept { salt, since }) => Some(Seal::of((number >= since).then_some(salt))),
            // There were salted segments. Without their salt, a frame cannot be distinguished from a payload.
            None if is_lost => None,
            None => Some(Seal::PLAIN),
        };
        seals.extend(seal.map(|seal| (number, seal)));
    }
    Ok((seals, kept))
}

/// Rewrites the file `salt` if it contradicts the segments.
fn mend_salt(dir: &impl Files, kept: Kept) -> io::Result<()> {
    let bytes = kept.encode();
    let is_right = matches!(dir.salt(), Ok(Some(found)) if found == bytes);
    if is_right { Ok(()) } else { dir.keep_salt(&bytes) }
}

fn check_heads(dir: &impl Files, segments: &BTreeMap<u32, u64>) -> Result<(), OpenError> {
    let oldest = segments.first_key_value().map_or(1, |(&number, _)| number);
    for (expected, &number) in (oldest..).zip(segments.keys()) {
        if number != expected {
            return Err(OpenError::Damaged(format!("segment {expected} of the journal is missing")));
        }
        match read_head(&dir.open(number)?).unwrap_or(Err(BadHead::Damaged)) {
            Ok(head) if head.number == number => {}
            Err(BadHead::Newer(format)) => return Err(OpenError::Newer(format)),
            Ok(_) | Err(BadHead::Damaged) => {
                return Err(OpenError::Damaged(format!("the head of segment {number} of the journal is damaged")));
            }
        }
    }
    Ok(())
}

fn read_frame(file: &impl SegmentFile, seal: &Seal, segment: u32, at: u64, end: u64) -> io::Result<Option<Frame>> {
    let body_at = at + FRAME_HEAD_BYTES as u64;
    if body_at > end {
        return Ok(None);
    }
    let mut head = [0; FRAME_HEAD_BYTES];
    file.read_exact_at(&mut head, at)?;
    let Some(head) = FrameHead::decode(&head, seal).filter(|head| body_at + u64::from(head.body_bytes) <= end) else {
        return Ok(None);
    };
    let mut body = vec![0; head.body_bytes as usize];
    file.read_exact_at(&mut body, body_at)?;
    if !head.fits(&body, seal) {
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

/// Where the next complete frame begins between `from` and `end`. Skips unreadable bytes, a window at a time.
fn find_frame(file: &impl SegmentFile, seal: &Seal, segment: u32, from: u64, end: u64) -> Option<u64> {
    let mut at = from;
    while at < end {
        let mut window = vec![0; WINDOW_BYTES.min(end - at) as usize];
        if file.read_exact_at(&mut window, at).is_ok() {
            let mut within = 0;
            while let Some(found) = frame::find_mark(&window, within, seal) {
                let candidate = at + found as u64;
                if let Ok(Some(_)) = read_frame(file, seal, segment, candidate, end) {
                    return Some(candidate);
                }
                within = found + 1;
            }
        }
        // The start of a frame may cross the end of a window.
        at = if at + (window.len() as u64) < end { at + WINDOW_BYTES - OVERLAP_BYTES } else { end };
    }
    None
}
