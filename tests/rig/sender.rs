//! An application that sends events with boto3 until each is accepted.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::process::Process;
use super::{PATIENCE, eventually, python};

/// A running tests/py/send.py.
pub struct Sender {
    process: Process,
}

impl Sender {
    /// Starts to send from `threads` threads. For each pair it sends a payload with that id to that function.
    pub fn start(endpoint_url: &str, threads: usize, scratch: &Path, jobs: &[(String, String)]) -> Self {
        let lines: Vec<_> = jobs
            .iter()
            .map(|(function, id)| json!({ "function": function, "payload": { "id": id } }).to_string())
            .collect();
        let file = scratch.join("jobs");
        std::fs::write(&file, lines.join("\n")).unwrap();
        let mut command = python::script("send.py");
        command.args([endpoint_url, &threads.to_string()]).env("JOBS", file);
        Self { process: Process::spawn("send.py", &mut command) }
    }

    /// The event's id by the payload's id, for all events that got 202 so far.
    pub fn accepted(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.process
            .lines()
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|answer| (text(&answer["id"]), text(&answer["event_id"])))
            .collect()
    }

    pub fn wait_for_accepted(&self, count: usize) {
        eventually("the sender's events are accepted", || (self.accepted().len() >= count).then_some(()));
    }

    /// Waits until all are accepted. See [`Sender::accepted`].
    pub fn finish(mut self) -> BTreeMap<String, String> {
        let status = self.process.wait(PATIENCE);
        self.process.line(PATIENCE, |_| None::<()>);
        assert!(status.success(), "send.py failed: {:?}", self.process.lines());
        self.accepted()
    }
}
