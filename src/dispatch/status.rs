//! What dispatch is doing, for the operator. Dispatch answers questions instead of publishing its state, so that this
//! costs nothing while nobody asks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::verdict::{HoldKind, Scope};
use crate::clock::UnixMillis;
use crate::event::FunctionName;

/// The most questions that may wait for dispatch.
const QUESTIONS_MAX: usize = 16;

/// One lane, as dispatch sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    pub in_flight: u32,
    /// The most attempts that may be in flight, as the limiter has found.
    pub limit: u32,
    /// The lower one of the limits that all functions of the account, and all calls into the region, share.
    pub account_limit: u32,
    pub held: Option<Held>,
    /// Delivered attempts of about the last minute.
    pub delivered_per_minute: u32,
    pub failed_per_minute: u32,
    /// The last failed attempt since the start of the process.
    pub last_error: Option<LastError>,
    /// Set while more attempts fail than succeed.
    pub failing_since: Option<UnixMillis>,
    /// The age at which events of the function are buried.
    pub age_max: Duration,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    pub at: UnixMillis,
    /// Status, code and message, as one text.
    pub words: String,
}

/// Why a lane attempts nothing, or only a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub scope: Scope,
    pub kind: HoldKind,
    pub reason: String,
    /// When the next probe may go, or when attempts continue.
    pub until: UnixMillis,
}

/// A question to dispatch.
#[derive(Debug)]
pub enum Question {
    /// The state of all lanes.
    Lanes(oneshot::Sender<Lanes>),
    /// End the wait of every hold that stops this function, and probe it once. The answer is what holds it.
    Probe(FunctionName, oneshot::Sender<Option<Held>>),
}

pub type Lanes = BTreeMap<FunctionName, LaneStatus>;

/// Asks dispatch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Status {
    questions: mpsc::Sender<Question>,
}

/// The receiver of the questions, for dispatch.
pub type Questions = mpsc::Receiver<Question>;

impl Status {
    pub fn new() -> (Self, Questions) {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        (Self { questions }, asked)
    }

    /// All lanes that dispatch knows. Empty once dispatch has ended.
    pub async fn lanes(&self) -> Lanes {
        let (answer, answered) = oneshot::channel();
        if self.questions.send(Question::Lanes(answer)).await.is_err() {
            return Lanes::new();
        }
        answered.await.unwrap_or_default()
    }

    /// Probes a held function at once, with one event if one is due. Returns what held it when the probe was allowed.
    pub async fn probe(&self, function: FunctionName) -> Option<Held> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question::Probe(function, answer)).await.ok()?;
        answered.await.ok().flatten()
    }
}
