//! What daemons that share an outbox ask each other about what they keep in memory: the state of their lanes, and the
//! latest outcomes.
//!
//! Limits: [`OUTCOMES_MAX`] outcomes of each daemon.

use std::sync::PoisonError;

use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};

use super::api::OutcomeView;
use super::{Admin, Look, Problem, lanes};
use crate::dispatch::status::Status;
use crate::event::{FunctionName, Pattern};
use crate::outbox::Outbox;
use crate::outbox::operator::{Informant, Operator, Overview};
use crate::past::{OUTCOMES_MAX, Past};

/// A question to the daemon around another outbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asked {
    /// How are your lanes?
    Lanes,
    /// Probe this function at once, if it is yours. What holds it?
    Probe { function: FunctionName },
    /// What has happened lately?
    Recent { max: usize, function: Option<String> },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    Lanes(lanes::Lanes),
    Held(lanes::Held),
    Recent(Vec<OutcomeView>),
    #[default]
    Nothing,
}

impl<O: Operator> Admin<O> {
    /// Whom to ask what dispatch is doing. Other daemons that share the outbox may ask, too, and are asked from now on.
    pub fn set_dispatch(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status.clone());
        if let Some(outbox) = self.outbox().filter(Outbox::is_shared) {
            outbox.inform(informant(status, self.past.clone()));
        }
    }

    /// Looks at the store and at dispatch, for an answer about all functions.
    pub(super) async fn look(&self) -> Result<Look, Problem> {
        let Overview { census, paused, fleet } = self.store()?.overview().await?;
        let mut lanes = self.lane_status().await;
        if fleet.is_some() {
            for told in self.ask(&Asked::Lanes).await {
                if let Told::Lanes(others) = told {
                    for (name, lane) in others {
                        lanes.entry(name).or_insert(lane);
                    }
                }
            }
        }
        Ok(Look { census, paused, lanes, fleet })
    }

    /// Probes a held function at once. Returns what holds it until the probe is answered.
    pub(super) async fn probe(&self, function: &FunctionName) -> Option<lanes::Held> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(held) = status?.probe(function.clone()).await {
            return Some(held);
        }
        let told = self.ask(&Asked::Probe { function: function.clone() }).await;
        told.into_iter().find_map(|told| if let Told::Held(held) = told { Some(held) } else { None })
    }

    /// The latest outcomes of all daemons, the last one at the end.
    pub(super) async fn recent(&self, max: usize, function: Option<&Pattern>) -> Vec<OutcomeView> {
        let function = function.map(Pattern::as_str);
        let mut outcomes = latest(&self.past, max, function);
        for told in self.ask(&Asked::Recent { max, function: function.map(str::to_owned) }).await {
            if let Told::Recent(others) = told {
                outcomes.extend(others);
            }
        }
        // All times have one form, so their texts are in order.
        outcomes.sort_by(|one, other| one.at.cmp(&other.at));
        outcomes.drain(..outcomes.len().saturating_sub(max));
        outcomes
    }

    async fn ask(&self, question: &Asked) -> Vec<Told> {
        match self.outbox() {
            Some(outbox) => ask(&outbox, question).await,
            None => Vec::new(),
        }
    }
}

async fn ask(outbox: &impl Operator, question: &Asked) -> Vec<Told> {
    let Ok(text) = serde_json::to_string(question) else { return Vec::new() };
    let answers = outbox.ask_others(text).await;
    // A daemon of another version may say what this one does not know.
    answers.iter().filter_map(|answer| serde_json::from_str(answer).ok()).collect()
}

fn latest(past: &Past, max: usize, function: Option<&str>) -> Vec<OutcomeView> {
    let fits = |name: &FunctionName| function.is_none_or(|pattern| name.fits(pattern));
    past.latest(max, |outcome| fits(&outcome.function)).iter().map(Into::into).collect()
}

fn informant(status: Status, past: Past) -> Informant {
    std::sync::Arc::new(move |question| {
        let (status, past) = (status.clone(), past.clone());
        async move {
            let told = match serde_json::from_str(&question) {
                Ok(Asked::Lanes) => Told::Lanes(status.lanes().await),
                Ok(Asked::Probe { function }) => status.probe(function).await.map_or(Told::Nothing, Told::Held),
                Ok(Asked::Recent { max, function }) => {
                    Told::Recent(latest(&past, max.min(OUTCOMES_MAX), function.as_deref()))
                }
                Err(_) => Told::Nothing,
            };
            serde_json::to_string(&told).unwrap_or_default()
        }
        .boxed()
    })
}
