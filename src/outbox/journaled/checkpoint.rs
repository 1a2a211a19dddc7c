//! Bringing the index up to the journal, on a thread of its own: the only one that writes to the index.
//!
//! Holds: the last commit of a checkpoint has the segment up to which the index is complete. A crash before it means that the same
//! segments are read again; what of them is in the index already lies below what is read.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use super::entry::{CHECKPOINT, Checkpoint, Entry};
use super::overlay::Overlay;
use crate::outbox::kv::{Batch, Failed, Index};

/// Keys of one commit of the index: sled keeps every version of every page that a commit touches until the commit is over.
const COMMIT_KEYS_MAX: usize = 2_048;

/// What is to be brought into the index.
pub struct Job {
    pub overlay: Arc<Overlay>,
    /// The overlay has everything from the last checkpoint to the end of this segment.
    pub segment: u32,
    /// The live bytes of the journal as far as this overlay knows: what it supersedes in the index is still counted.
    pub live: u64,
}

/// Writes one checkpoint; gives the bytes of journal that it made worthless.
pub fn write<B: Index>(index: &B, job: &Job) -> Result<u64, Failed> {
    let mut batch = Batch::default();
    let mut freed = 0;
    for (key, slot) in job.overlay.iter() {
        let old = if slot.is_new { None } else { index.get(key)? };
        let known = old.is_some();
        if let Some(old) = old.as_ref().and_then(Entry::decode) {
            freed += u64::from(old.at.bytes);
        }
        match &slot.value {
            Some(value) => batch.put(key.to_vec(), Entry::of(slot.at, value).encode()),
            None if known => batch.remove(key.to_vec()),
            None => {}
        }
        if batch.len() == COMMIT_KEYS_MAX {
            index.commit(&std::mem::take(&mut batch))?;
        }
    }
    let checkpoint = Checkpoint { segment: job.segment, live: job.live.saturating_sub(freed) };
    batch.put(CHECKPOINT.to_vec(), checkpoint.encode());
    index.commit(&batch)?;
    Ok(freed)
}

enum Work {
    Write(Job),
    /// To give the memory back here, and not where commits wait.
    Drop(Arc<Overlay>),
}

/// The thread. Ends, after the job at hand, when this is dropped.
pub struct Checkpointer {
    work: Option<SyncSender<Work>>,
    done: Receiver<Result<u64, Failed>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub fn start<B: Index>(index: Arc<B>) -> Result<Self, Failed> {
        let (work, taken) = sync_channel(2);
        let (said, done) = sync_channel(1);
        let run = move || {
            for work in taken {
                match work {
                    Work::Write(job) => {
                        if said.send(write(&*index, &job)).is_err() {
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

    pub fn begin(&self, job: Job) -> Result<(), Failed> {
        self.send(Work::Write(job))
    }

    /// Gives back an overlay that the index now has.
    pub fn drop_overlay(&self, overlay: Arc<Overlay>) -> Result<(), Failed> {
        self.send(Work::Drop(overlay))
    }

    fn send(&self, work: Work) -> Result<(), Failed> {
        let sent = self.work.as_ref().is_some_and(|sender| sender.send(work).is_ok());
        if sent { Ok(()) } else { Err(gone()) }
    }

    /// The outcome of the job at hand, if it is done.
    pub fn poll(&self) -> Result<Option<u64>, Failed> {
        match self.done.try_recv() {
            Ok(written) => written.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }

    /// Waits for the job at hand.
    pub fn wait(&self) -> Result<u64, Failed> {
        self.done.recv().map_err(|_| gone())?
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.work.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint's thread panicked");
        }
    }
}

fn gone() -> Failed {
    Failed::new("writing a checkpoint", "its thread has ended")
}
