//! What dispatch is doing, for the operator: asked for, not published, so that it costs nothing while nobody looks.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};

use super::verdict::{PauseKind, Scope};
use crate::clock::UnixMillis;
use crate::event::FunctionName;

/// Questions that may wait for dispatch.
const QUESTIONS_MAX: usize = 16;

/// One lane, as dispatch sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneStatus {
    pub in_flight: u32,
    /// Attempts that may be in flight: what the limiter has found.
    pub limit: u32,
    /// The same over all functions of the region.
    pub account_limit: u32,
    pub held: Option<Held>,
    /// Attempts of the last minute, about.
    pub delivered_per_minute: u32,
    pub failed_per_minute: u32,
    /// What the last failed attempt said, since the start of the process.
    pub last_error: Option<LastError>,
    /// Set while more attempts fail than succeed.
    pub failing_since: Option<UnixMillis>,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    pub at: UnixMillis,
    /// Status, code and message, in words.
    pub words: String,
}

/// Why nothing is attempted, or only a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub scope: Scope,
    pub kind: PauseKind,
    pub reason: String,
    /// When the next probe may go, or attempts go on.
    pub until: UnixMillis,
}

/// What is asked of dispatch.
#[derive(Debug)]
pub enum Question {
    /// How do all lanes fare?
    Lanes(oneshot::Sender<Lanes>),
    /// End the pause of whatever holds this function, and probe it once; the answer is what holds it.
    Probe(FunctionName, oneshot::Sender<Option<Held>>),
}

pub type Lanes = BTreeMap<FunctionName, LaneStatus>;

/// Asks dispatch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Status {
    questions: mpsc::Sender<Question>,
}

/// Where dispatch hears the questions.
pub type Questions = mpsc::Receiver<Question>;

impl Status {
    pub fn new() -> (Self, Questions) {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        (Self { questions }, asked)
    }

    /// All lanes that dispatch knows of; none once it has ended.
    pub async fn lanes(&self) -> Lanes {
        let (answer, answered) = oneshot::channel();
        if self.questions.send(Question::Lanes(answer)).await.is_err() {
            return Lanes::new();
        }
        answered.await.unwrap_or_default()
    }

    /// Has a function that is held probed at once, by one event if one is due. Says what holds it: the probe has not come
    /// back yet.
    pub async fn probe(&self, function: FunctionName) -> Option<Held> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question::Probe(function, answer)).await.ok()?;
        answered.await.ok().flatten()
    }
}
