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
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use files::{Directory, Files, SegmentFile, is_out_of_descriptors};
use frame::{BadHead, FRAME_HEAD_BYTES, FrameHead, FrameWriter, Op, PLAIN_HEAD_BYTES, SEGMENT_HEAD_BYTES, SegmentHead};
use seal::{Kept, Seal};

pub mod files;

pub mod frame;

pub mod seal;

/// Segments that are held open for reading.
const FILES_OPEN_MAX: usize = 64;

/// Bytes that are looked through at once for the beginning of a frame; two windows overlap by less than its first bytes.
const WINDOW_BYTES: u64 = 1 << 20;
const OVERLAP_BYTES: u64 = 3;

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

pub struct Journal<D: Files = Directory> {
    dir: D,
    /// The bytes of each segment. The last one is the one that is written to.
    segments: BTreeMap<u32, u64>,
    /// How the frames of each segment are sealed; none where nobody knows any more.
    seals: BTreeMap<u32, Seal>,
    /// The salt of new segments; none before the first that has one.
    salt: Option<Kept>,
    bytes: u64,
    current: Arc<D::File>,
    next_commit: u64,
    frame: FrameWriter,
    open: RefCell<BTreeMap<u32, Arc<D::File>>>,
}

impl<D: Files> Journal<D> {
    /// Makes a new, empty journal in an empty directory, durably. Its first commit gets the number `first_commit`.
    pub fn create(dir: &D, first_commit: u64) -> io::Result<()> {
        let kept = Kept { salt: dir.random()?, since: 1 };
        dir.keep_salt(&kept.encode())?;
        create_segment(dir, SegmentHead { number: 1, first_commit, salt: Some(kept.salt) }).map(drop)
    }

    /// Opens it as it is. A segment that a crash has left half made is removed. With `lenient`, segments that are missing or
    /// whose head is damaged do not keep it from opening.
    ///
    /// The number of the next commit is not known before [`Journal::is_at`] tells it.
    pub fn open(dir: D, lenient: bool) -> Result<Self, OpenError> {
        let mut segments = dir.list()?;
        remove_half_made(&dir, &mut segments)?;
        let Some((&last, _)) = segments.last_key_value() else {
            return Err(OpenError::Damaged("the journal has no segment".to_owned()));
        };
        let current = Arc::new(dir.open(last)?);
        // That a killed process has begun it must be durable before anything is built on it.
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

    /// Whether the segment that is written to has no salt.
    pub fn is_plain(&self) -> bool {
        self.seals.get(&self.newest()) == Some(&Seal::PLAIN)
    }

    /// Where the first frame of a segment begins.
    pub fn start(&self, segment: u32) -> u64 {
        self.seals.get(&segment).map_or(SEGMENT_HEAD_BYTES as u64, |seal| seal.start)
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
        Ok(read_head(&*self.file(segment)?)?.ok().map(|head| head.first_commit))
    }

    /// What stands at `at` of a segment.
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

    /// As [`Journal::read`], where bytes that the disk does not give are bad like any others; says so in words.
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

    /// Writes the end of the newest segment, from `from` on, and its length, as they read, and makes them durable. To sync it
    /// would not do: after a sync that failed the kernel may take for clean, and never write, what is still read.
    pub fn write_again(&mut self, from: u64) -> io::Result<()> {
        let mut end = vec![0; self.segment_bytes(self.newest()).saturating_sub(from) as usize];
        self.current.read_exact_at(&mut end, from)?;
        self.current.write_all_at(&end, from)?;
        self.current.set_len(from + end.len() as u64)?;
        self.current.sync_all()
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
        self.dir.remove(number)?;
        self.dir.sync()?;
        self.open.get_mut().remove(&number);
        self.seals.remove(&number);
        self.bytes -= self.segments.remove(&number).unwrap_or(0);
        Ok(())
    }

    /// As [`Journal::remove_oldest`], but what was in it is kept under another name: some of it is wanted, and damaged.
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
            // A file that is held for later reads can be spared.
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

/// A crash while a segment was made leaves one with nothing in it behind the last whole one.
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
    // One of format 1 may have no more bytes than its head.
    for bytes in [SEGMENT_HEAD_BYTES, PLAIN_HEAD_BYTES] {
        match file.read_exact_at(&mut head[..bytes], 0) {
            Ok(()) => return Ok(SegmentHead::decode(&head[..bytes])),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Err(BadHead::Damaged))
}

/// How each segment is sealed, and the salt of the store. A segment whose head is damaged has the seal of those around it: by the
/// file `salt`, else by the heads of others.
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
            // The bytes behind a head of format 1 are no client's in any format.
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
            // There were salted segments, and without their salt a frame cannot be told from a payload.
            None if is_lost => None,
            None => Some(Seal::PLAIN),
        };
        seals.extend(seal.map(|seal| (number, seal)));
    }
    Ok((seals, kept))
}

/// Puts the file `salt` right, if it is not what the segments say.
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

/// Where the next whole frame begins between `from` and `end`. What cannot be read is stepped over, a window at a time.
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
        // The beginning of a frame may stand across the end of a window.
        at = if at + (window.len() as u64) < end { at + WINDOW_BYTES - OVERLAP_BYTES } else { end };
    }
    None
}
