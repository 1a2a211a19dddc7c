//! Distinguishes a writer that hangs from one that is slow.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The writer's progress, for a watcher on another thread.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    at_work: AtomicBool,
    beats: AtomicU64,
}

impl Pulse {
    pub(super) fn begin(&self) {
        self.beat();
        self.at_work.store(true, Ordering::Release);
    }

    /// Records that a piece of work is done: a commit is durable, or a read is answered.
    pub(super) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Release);
    }

    pub(super) fn rest(&self) {
        self.at_work.store(false, Ordering::Release);
    }

    /// The number of beats. `None` while the writer is idle.
    pub(super) fn read(&self) -> Option<u64> {
        self.at_work.load(Ordering::Acquire).then(|| self.beats.load(Ordering::Acquire))
    }
}

/// Counts consecutive checks that found the writer at the same piece of work.
///
/// It counts checks instead of time: while the process or the machine is stopped, the clock may advance, but no checks
/// are made.
#[derive(Debug, Default)]
pub struct Watch {
    last: Option<u64>,
    looks: u32,
}

impl Watch {
    /// Makes a check. Returns the number of earlier checks that found the writer at the same piece of work.
    pub fn look(&mut self, pulse: Option<u64>) -> u32 {
        self.looks = if pulse.is_some() && pulse == self.last { self.looks + 1 } else { 0 };
        self.last = pulse;
        self.looks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_looks_that_find_the_same_piece_of_work_count() {
        let (pulse, mut watch) = (Pulse::default(), Watch::default());
        assert_eq!([watch.look(pulse.read()), watch.look(pulse.read())], [0, 0], "it rests");
        pulse.begin();
        assert_eq!([watch.look(pulse.read()), watch.look(pulse.read()), watch.look(pulse.read())], [0, 1, 2]);
        pulse.beat();
        assert_eq!([watch.look(pulse.read()), watch.look(pulse.read())], [0, 1], "a slow turn that goes on");
        pulse.rest();
        assert_eq!(watch.look(pulse.read()), 0);
        pulse.begin();
        assert_eq!(watch.look(pulse.read()), 0, "another turn");
    }
}
