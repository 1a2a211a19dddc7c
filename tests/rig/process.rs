//! A child process. Keeps each line of its output, and ends with its test.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// The most lines shown of a process when its test fails.
const LINES_SHOWN: usize = 200;

/// A child in its own process group. Dropping it kills the group.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

#[derive(Default)]
struct Output {
    said: Mutex<Said>,
    news: Condvar,
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    streams_ended: usize,
}

impl Process {
    /// Starts `command`. The failure of a test names it `name`.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|why| panic!("cannot start {name}: {why}"));
        let output = Arc::new(Output::default());
        follow(child.stdout.take().unwrap(), Arc::clone(&output));
        follow(child.stderr.take().unwrap(), Arc::clone(&output));
        Self { name: name.to_owned(), child, output }
    }

    /// All lines that it has written so far, of both streams.
    pub fn lines(&self) -> Vec<String> {
        self.output.said.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Returns the first line for which `pick` returns a value, as soon as it is written. `None` if the process ends
    /// before.
    ///
    /// # Panics
    /// If the line is not written within `patience`.
    pub fn line<T>(&self, patience: Duration, mut pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let begun = Instant::now();
        let mut seen = 0;
        let mut said = self.output.said.lock().unwrap();
        loop {
            if let Some(found) = said.lines[seen..].iter().find_map(|line| pick(line)) {
                return Some(found);
            }
            seen = said.lines.len();
            if said.streams_ended == 2 {
                return None;
            }
            let Some(left) = patience.checked_sub(begun.elapsed()) else {
                drop(said);
                panic!("{} did not write the line that was waited for within {patience:?}", self.name);
            };
            said = self.output.news.wait_timeout(said, left).unwrap().0;
        }
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("signal a process that is ours and not yet reaped");
    }

    /// Sends SIGKILL to the process and all its children. Returns when it is gone.
    pub fn kill9(&mut self) {
        if let Err(why) = rustix::process::kill_process_group(self.pid(), Signal::KILL) {
            assert_eq!(why, rustix::io::Errno::SRCH, "nothing of the group is left");
        }
        self.child.wait().expect("reap our own child");
    }

    /// Waits until it ends. Fails after `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("ask after our own child") {
                return status;
            }
            assert!(begun.elapsed() < patience, "{} still runs after {patience:?}", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let lines = self.lines();
            let from = lines.len().saturating_sub(LINES_SHOWN);
            eprintln!(
                "--- {} wrote {} lines, from {from} on:\n{}\n---",
                self.name,
                lines.len(),
                lines[from..].join("\n")
            );
        }
    }
}

/// Reads a stream to its end in its own thread, so that the child never waits for us.
fn follow(stream: impl Read + Send + 'static, output: Arc<Output>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            output.said.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line);
            output.news.notify_all();
            bytes.clear();
        }
        output.said.lock().unwrap_or_else(PoisonError::into_inner).streams_ended += 1;
        output.news.notify_all();
    });
}
