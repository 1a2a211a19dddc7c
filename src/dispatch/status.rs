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

pub type Lanes = BTreeMap<FunctionName, LaneStatus>;

/// Asks dispatch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Status {
    questions: mpsc::Sender<oneshot::Sender<Lanes>>,
}

/// Where dispatch hears the questions.
pub type Questions = mpsc::Receiver<oneshot::Sender<Lanes>>;

impl Status {
    pub fn new() -> (Self, Questions) {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        (Self { questions }, asked)
    }

    /// All lanes that dispatch knows of; none once it has ended.
    pub async fn lanes(&self) -> Lanes {
        let (answer, answered) = oneshot::channel();
        if self.questions.send(answer).await.is_err() {
            return Lanes::new();
        }
        answered.await.unwrap_or_default()
    }
}
