//! Checkpoints bring the index up to date with the journal. Either a dedicated thread writes them, the only writer of the
//! index, or they take turns with the journal's commits.
//!
//! Holds: the last commit of a checkpoint records the segment up to which the index is complete. After an earlier crash the
//! same segments are read again, and their data takes precedence over the index. Each commit records the live bytes of the
//! index at that point, so they are right after such a crash too.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::entry::{CHECKPOINT, Checkpoint, Entry};
use super::overlay::{Key, Overlay, Value};
use crate::outbox::embedded::kv::{Batch, Failed, Index};

/// The keys in one commit of the index. While sled applies a commit, nobody can read it, and it keeps every version of
/// every touched page. But each commit costs a sync (docs/adr/0006).
pub const KEYS_PER_COMMIT: usize = 256;

/// Who writes to the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoints {
    /// A thread, while commits continue.
    Beside,
    /// The committing thread, one commit of the index for each of the journal. Slower but deterministic, for the simulation.
    InTurn,
}

/// A checkpoint to write.
pub struct Job {
    pub overlay: Arc<Overlay>,
    /// The progress of the index before it.
    pub from: Checkpoint,
    /// The overlay has everything from there to the end of this segment.
    pub segment: u32,
    pub keys_per_commit: usize,
}

/// A running checkpoint, one commit of the index after the other.
pub struct Writing {
    job: Job,
    /// The last key written.
    after: Option<Key>,
    /// The live bytes of the index.
    live: u64,
}

impl Writing {
    pub fn of(job: Job) -> Self {
        Self { after: None, live: job.from.live, job }
    }

    /// Writes the whole checkpoint. Returns the progress of the index.
    pub fn finish<B: Index>(mut self, index: &B) -> Result<Checkpoint, Failed> {
        loop {
            if let Some(checkpoint) = self.step(index)? {
                return Ok(checkpoint);
            }
        }
    }

    /// Writes the next commit. Returns like [`Writing::finish`] after the last one.
    fn step<B: Index>(&mut self, index: &B) -> Result<Option<Checkpoint>, Failed> {
        let mut batch = Batch::default();
        let mut segment = self.job.segment;
        for (key, slot) in self.job.overlay.after(self.after.as_ref()) {
            let old = if slot.is_new { None } else { index.get(key)? };
            let known = old.is_some();
            if let Some(old) = old.as_ref().and_then(Entry::decode) {
                self.live = self.live.saturating_sub(u64::from(old.at.bytes));
            }
            let entry = match &slot.value {
                Value::Held(value) => Some(Entry::of(slot.at, value)),
                Value::Journaled => Some(Entry { at: slot.at, inlined: None }),
                Value::Removed => None,
            };
            match entry {
                Some(entry) => {
                    self.live += u64::from(slot.at.bytes);
                    batch.put(key.to_vec(), entry.encode());
                }
                None if known => batch.remove(key.to_vec()),
                None => {}
            }
            if batch.len() == self.job.keys_per_commit {
                self.after = Some(key.clone());
                segment = self.job.from.segment;
                break;
            }
        }
        let checkpoint = Checkpoint { segment, live: self.live };
        batch.put(CHECKPOINT.to_vec(), checkpoint.encode());
        index.commit(&batch)?;
        Ok((segment == self.job.segment).then_some(checkpoint))
    }
}

/// Writes one checkpoint after the other.
pub enum Checkpointer<B> {
    Beside(Thread),
    InTurn(Arc<B>, Option<Writing>),
}

impl<B: Index> Checkpointer<B> {
    pub fn start(index: Arc<B>, checkpoints: Checkpoints) -> Result<Self, Failed> {
        match checkpoints {
            Checkpoints::Beside => Thread::start(index).map(Self::Beside),
            Checkpoints::InTurn => Ok(Self::InTurn(index, None)),
        }
    }

    pub fn begin(&mut self, job: Job) -> Result<(), Failed> {
        match self {
            Self::Beside(thread) => thread.send(Work::Write(job)),
            Self::InTurn(_, current) => {
                *current = Some(Writing::of(job));
                Ok(())
            }
        }
    }

    /// Frees an overlay that is now in the index.
    pub fn drop_overlay(&self, overlay: Arc<Overlay>) -> Result<(), Failed> {
        match self {
            Self::Beside(thread) => thread.send(Work::Drop(overlay)),
            Self::InTurn(..) => Ok(()),
        }
    }

    /// The result of the running checkpoint, if it is done.
    pub fn poll(&mut self) -> Result<Option<Checkpoint>, Failed> {
        match self {
            Self::Beside(thread) => thread.poll(),
            Self::InTurn(index, current) => {
                let Some(writing) = current else { return Ok(None) };
                let done = writing.step(&**index)?;
                if done.is_some() {
                    *current = None;
                }
                Ok(done)
            }
        }
    }

    /// Whether a dedicated thread writes the index.
    pub fn runs_beside(&self) -> bool {
        matches!(self, Self::Beside(_))
    }

    /// Waits a while for the running checkpoint.
    pub fn wait_for(&mut self, time: Duration) -> Result<Option<Checkpoint>, Failed> {
        match self {
            Self::Beside(thread) => thread.wait_for(time),
            Self::InTurn(..) => self.poll(),
        }
    }

    /// Writes the rest of the running checkpoint.
    pub fn finish(&mut self) -> Result<Checkpoint, Failed> {
        match self {
            Self::Beside(thread) => thread.done.recv().map_err(|_| gone())?,
            Self::InTurn(index, current) => current.take().ok_or_else(gone)?.finish(&**index),
        }
    }
}

enum Work {
    Write(Job),
    /// Frees the memory on this thread instead of one that commits.
    Drop(Arc<Overlay>),
}

/// The thread. It ends after the running checkpoint when this is dropped.
pub struct Thread {
    work: Option<SyncSender<Work>>,
    done: Receiver<Result<Checkpoint, Failed>>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    fn start<B: Index>(index: Arc<B>) -> Result<Self, Failed> {
        let (work, taken) = sync_channel(2);
        let (said, done) = sync_channel(1);
        let run = move || {
            for work in taken {
                match work {
                    Work::Write(job) => {
                        if said.send(Writing::of(job).finish(&*index)).is_err() {
                            return;
                        }
                    }
                    Work::Drop(overlay) => drop(overlay),
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(run);
        let thread = thread.map_err(|error| Failed::new("starting the checkpoint's thread", error))?;
        Ok(Self { work: Some(work), done, thread: Some(thread) })
    }

    fn send(&self, work: Work) -> Result<(), Failed> {
        let sent = self.work.as_ref().is_some_and(|sender| sender.send(work).is_ok());
        if sent { Ok(()) } else { Err(gone()) }
    }

    fn poll(&self) -> Result<Option<Checkpoint>, Failed> {
        match self.done.try_recv() {
            Ok(written) => written.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }

    fn wait_for(&self, time: Duration) -> Result<Option<Checkpoint>, Failed> {
        match self.done.recv_timeout(time) {
            Ok(written) => written.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.work.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked: please report this bug");
        }
    }
}

fn gone() -> Failed {
    Failed::new("writing a checkpoint", "the checkpoint thread has stopped")
}
