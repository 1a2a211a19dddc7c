//! What a process did to its state directory, operation by operation, as tests/recorder/recorder.c recorded it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bytes::Bytes;
use sendoff::clock::Clock;
use sendoff::event::EventId;

use crate::load::Ack;
use crate::rig::daemon::{Daemon, Setup};

const MAGIC: u32 = 0x5ec0_4d15;
const HEAD_BYTES: usize = 48;

#[derive(Debug, Clone)]
pub struct Step {
    pub op: Op,
    pub unix_ms: u64,
}

#[derive(Debug, Clone)]
pub enum Op {
    Create {
        inode: u64,
        path: PathBuf,
    },
    Mkdir {
        inode: u64,
        path: PathBuf,
    },
    Write {
        inode: u64,
        at: u64,
        data: Bytes,
    },
    Truncate {
        inode: u64,
        length: u64,
    },
    Sync {
        inode: u64,
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Rmdir {
        path: PathBuf,
    },
    /// The client has its 202.
    Mark(Ack),
}

/// The recorder, compiled once in a run.
pub fn library() -> PathBuf {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = BUILT.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        let library = scratch.path().join("recorder.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorder/recorder.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
        let output = cc.arg("-ldl").arg("-lpthread").output().expect("a C compiler, `cc`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (scratch, library)
    });
    library.clone()
}

/// See [`Recorder::hold`].
#[must_use = "dropped, it holds nothing"]
pub struct Held(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

/// A recording that is being made.
pub struct Recorder {
    state: PathBuf,
    log: PathBuf,
}

impl Recorder {
    /// Records what happens below `state`, into a file in `scratch`.
    pub fn new(state: &Path, scratch: &Path) -> Self {
        Self { state: state.to_owned(), log: scratch.join("recording") }
    }

    /// Makes the recorder record the daemon.
    pub fn watch(&self, setup: Setup) -> Setup {
        setup
            .env("LD_PRELOAD", library().to_str().unwrap())
            .env("RECORD_DIR", self.state.to_str().unwrap())
            .env("RECORD_LOG", self.log.to_str().unwrap())
    }

    /// Returns a function that marks an acknowledgement, at the place in the recording where the client has it.
    pub fn marker(&self) -> impl Fn(&Ack) + Send + Sync + 'static {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let clock = Clock::system();
        move |ack| {
            let mut record = Vec::with_capacity(HEAD_BYTES + 16);
            record.extend(MAGIC.to_ne_bytes());
            record.extend(u32::from(b'M').to_ne_bytes());
            record.extend(ack.n.to_ne_bytes());
            record.extend(0_u64.to_ne_bytes());
            record.extend(clock.now().0.to_ne_bytes());
            record.extend([0_u32, 0, 16, 0].map(u32::to_ne_bytes).concat());
            record.extend(ack.id.as_bytes());
            (&log).write_all(&record).unwrap();
        }
    }

    /// Until the result is dropped, no recorded call of the daemon begins, and none is between its execution and its
    /// record.
    pub fn hold(&self) -> Held {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        log.lock().unwrap();
        Held(log)
    }

    /// Sends SIGKILL between two calls. A kill within a call would leave a wrong recording: the call executed but not
    /// recorded, or its record cut short, because Linux ends a write at the next page for a fatal signal.
    pub fn kill9(&self, daemon: Daemon) {
        let _held = self.hold();
        daemon.kill9();
    }

    /// The recording so far, with paths relative to the state directory.
    pub fn read(&self) -> Vec<Step> {
        let bytes = {
            let _held = self.hold();
            Bytes::from(fs::read(&self.log).unwrap())
        };
        let mut steps = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (step, end) = self.step(&bytes, at);
            steps.push(step);
            at = end;
        }
        steps
    }

    fn step(&self, bytes: &Bytes, at: usize) -> (Step, usize) {
        let u32_at = |offset: usize| u32::from_ne_bytes(*bytes[at + offset..].first_chunk().unwrap());
        let u64_at = |offset: usize| u64::from_ne_bytes(*bytes[at + offset..].first_chunk().unwrap());
        assert_eq!(u32_at(0), MAGIC, "the recording is torn at {at}");
        let (inode, offset, unix_ms) = (u64_at(8), u64_at(16), u64_at(24));
        let (path_end, path2_bytes, data_bytes) = (at + HEAD_BYTES + u32_at(32) as usize, u32_at(36), u32_at(40));
        let path2_end = path_end + path2_bytes as usize;
        let end = path2_end + data_bytes as usize;
        let relative = |range: std::ops::Range<usize>| {
            use std::os::unix::ffi::OsStringExt;
            let path = PathBuf::from(OsString::from_vec(bytes[range].to_vec()));
            path.strip_prefix(&self.state).unwrap_or(&path).to_owned()
        };
        let path = || relative(at + HEAD_BYTES..path_end);
        let data = bytes.slice(path2_end..end);
        let op = match u8::try_from(u32_at(4)).unwrap() {
            b'C' => Op::Create { inode, path: path() },
            b'K' => Op::Mkdir { inode, path: path() },
            b'W' => Op::Write { inode, at: offset, data },
            b'T' => Op::Truncate { inode, length: offset },
            b'S' => Op::Sync { inode, path: path() },
            b'R' => Op::Rename { from: path(), to: relative(path_end..path2_end) },
            b'U' => Op::Unlink { path: path() },
            b'X' => Op::Rmdir { path: path() },
            b'M' => Op::Mark(Ack { n: inode, id: EventId::from_bytes(*data.first_chunk().unwrap()) }),
            other => panic!("an unknown record {other}"),
        };
        (Step { op, unix_ms }, end)
    }
}
