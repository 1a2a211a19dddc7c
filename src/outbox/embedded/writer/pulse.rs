//! Telling a writer that hangs from one that is only slow.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How far the writer has come, for whoever watches it from outside.
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

    /// A piece of work is done: a commit is durable, or a reader has its answer.
    pub(super) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Release);
    }

    pub(super) fn rest(&self) {
        self.at_work.store(false, Ordering::Release);
    }

    /// The beats so far; none if the writer has nothing to do.
    pub(super) fn read(&self) -> Option<u64> {
        self.at_work.load(Ordering::Acquire).then(|| self.beats.load(Ordering::Acquire))
    }
}

/// Counts the looks at a writer that found it at the same piece of work.
///
/// It counts looks and not time: while this process, or its whole machine, is stopped, the clock may go on, but nobody looks.
#[derive(Debug, Default)]
pub struct Watch {
    last: Option<u64>,
    looks: u32,
}

impl Watch {
    /// Takes a look; gives how many looks before it found the writer at the same piece of work.
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
