//! Writes log lines to stderr through a bounded queue and a dedicated thread.
//!
//! Holds: a thread that logs never waits for stderr and never sees its errors. If stderr cannot be written (stuck pipe,
//! full disk, closed terminal), the line is dropped and counted, and the daemon goes on.
//! Limits: at most [`QUEUE_BYTES_MAX`] bytes wait. Further lines are dropped.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The approximate size of the queue in bytes: a few thousand lines, more than any burst of the daemon.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// The overhead of a queued line in bytes.
const LINE_COST: usize = 64;

/// The pause before another write to a non-blocking stderr that is full ...
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// ... and the number of writes before the line is dropped.
const RETRIES_MAX: u32 = 50;

/// The queue. All clones share it.
#[derive(Clone, Default)]
pub struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// A line was queued.
    filled: Condvar,
    /// All lines were written or dropped.
    emptied: Condvar,
    dropped: Mutex<Dropped>,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The thread is writing a line.
    writing: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.writing
    }
}

type Count = dyn Fn(u64) + Send + Sync;

#[derive(Default)]
struct Dropped {
    all: u64,
    /// Dropped lines that no log line has reported yet.
    untold: u64,
    count: Option<Box<Count>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lines {
    /// Starts the thread that writes the lines to `out`. It ends with the process.
    pub fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Self::default();
        let queue = lines.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || queue.write_all_to(out))?;
        Ok(lines)
    }

    /// Queues one line. Never waits and never fails: a line that has no room is dropped and counted.
    pub fn push(&self, line: &[u8]) {
        {
            let mut queue = locked(&self.0.queue);
            let cost = line.len() + LINE_COST;
            if queue.bytes + cost <= QUEUE_BYTES_MAX {
                queue.bytes += cost;
                queue.lines.push_back(line.to_vec());
                self.0.filled.notify_one();
                return;
            }
        }
        self.drop_one();
    }

    /// Waits until every line is written or dropped, at most for `patience`.
    pub fn flush(&self, patience: Duration) {
        let queue = locked(&self.0.queue);
        drop(self.0.emptied.wait_timeout_while(queue, patience, |queue| !queue.is_empty()));
    }

    /// Calls `count` for every dropped line, including those dropped so far.
    pub fn count_dropped(&self, count: impl Fn(u64) + Send + Sync + 'static) {
        let mut dropped = locked(&self.0.dropped);
        count(dropped.all);
        dropped.count = Some(Box::new(count));
    }

    fn drop_one(&self) {
        let mut dropped = locked(&self.0.dropped);
        dropped.all += 1;
        dropped.untold += 1;
        if let Some(count) = &dropped.count {
            count(1);
        }
    }

    fn write_all_to(self, mut out: impl Write) {
        let mut torn = false;
        loop {
            let line = self.next();
            let written = write_line(&mut out, &line, &mut torn);
            {
                let mut queue = locked(&self.0.queue);
                queue.writing = false;
                queue.bytes -= line.len() + LINE_COST;
                if queue.is_empty() {
                    self.0.emptied.notify_all();
                }
            }
            match written {
                Ok(()) => self.tell_of_dropped(),
                Err(_) => self.drop_one(),
            }
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut queue = locked(&self.0.queue);
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.writing = true;
                return line;
            }
            queue = self.0.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Once stderr works again, logs how many lines were dropped.
    fn tell_of_dropped(&self) {
        let untold = std::mem::take(&mut locked(&self.0.dropped).untold);
        if untold > 0 {
            tracing::warn!(dropped = untold, "log lines were dropped: stderr could not be written");
        }
    }
}

/// Writes one line. `torn` means that an earlier line was written in part; a line break then separates the two.
fn write_line(out: &mut impl Write, line: &[u8], torn: &mut bool) -> io::Result<()> {
    if *torn {
        write_patiently(out, b"\n", &mut false)?;
        *torn = false;
    }
    write_patiently(out, line, torn)
}

fn write_patiently(out: &mut impl Write, mut left: &[u8], torn: &mut bool) -> io::Result<()> {
    let mut retries = 0;
    while !left.is_empty() {
        match out.write(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                left = &left[written..];
                *torn = !left.is_empty();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares the terminal or pipe may have made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock && retries < RETRIES_MAX => {
                retries += 1;
                std::thread::sleep(RETRY_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One write is one line: tracing passes whole lines.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn counted(lines: &Lines) -> Arc<AtomicU64> {
        let count = Arc::new(AtomicU64::new(0));
        let counter = count.clone();
        lines.count_dropped(move |dropped| {
            counter.fetch_add(dropped, Ordering::SeqCst);
        });
        count
    }

    /// Accepts as many bytes as the test says, or fails.
    struct Scripted(VecDeque<io::Result<usize>>, Arc<Mutex<Vec<u8>>>);

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let takes = self.0.pop_front().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
            self.1.lock().unwrap().extend(&bytes[..takes]);
            Ok(takes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_fails_is_dropped_and_counted_and_the_next_one_is_written() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let script = [
            Err(ErrorKind::WouldBlock.into()),
            Ok(2),
            Err(ErrorKind::StorageFull.into()),
            Err(ErrorKind::BrokenPipe.into()),
        ];
        let lines = Lines::to(Scripted(script.into(), written.clone())).unwrap();
        let dropped = counted(&lines);
        for line in ["one\n", "two\n", "three\n"] {
            lines.push(line.as_bytes());
            lines.flush(PATIENCE);
        }
        assert_eq!(String::from_utf8(written.lock().unwrap().clone()).unwrap(), "on\nthree\n");
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
    }

    /// Blocks until the test releases it.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().unwrap_or_default();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_stuck_holds_nobody_up_and_costs_bounded_memory() {
        let (let_go, stuck) = mpsc::channel();
        let lines = Lines::to(Stuck(stuck)).unwrap();
        let line = [b'x'; 1024];
        for _ in 0..2 * QUEUE_BYTES_MAX / line.len() {
            lines.push(&line);
        }
        let dropped = counted(&lines).load(Ordering::SeqCst) as usize;
        assert!(dropped >= QUEUE_BYTES_MAX / line.len(), "{dropped} of those before the counter are counted too");
        assert!(locked(&lines.0.queue).bytes <= QUEUE_BYTES_MAX);
        lines.flush(Duration::from_millis(1));
        drop(let_go);
        lines.flush(PATIENCE);
        assert!(locked(&lines.0.queue).is_empty());
    }
}
