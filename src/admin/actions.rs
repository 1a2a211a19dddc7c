//! The audit: what operators changed, and which payloads they saw.
//!
//! Holds: each action is one log line with the target `sendoff::audit`, which `log.level` does not silence, also if its
//! caller leaves before the answer. The latest are kept in memory for `GET /v1/actions`.
//! Limits: [`KEPT_MAX`] actions in memory, [`TEXT_CHARS_MAX`] characters of a text in one.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::api::{Action, ActionPage, BulkJob, BulkState};
use super::bulk;
use super::lookup::page_size;
use super::operators::Caller;
use crate::clock::Clock;
use crate::event::EventId;
use crate::http::peer::Identity;
use crate::metrics::Metrics;

/// Actions in memory at most.
const KEPT_MAX: usize = 1_000;

/// The number of actions in an answer if the request does not set it.
const SHOWN: usize = 100;

/// Characters of an object or a filter at most.
const TEXT_CHARS_MAX: usize = 512;

/// Ids of a request about several events that are named.
const IDS_MAX: usize = 8;

/// What the audit calls the end of a bulk job.
pub(super) const END_BULK: &str = "end-bulk";

/// How an action ended, as metrics and the log have it.
pub const RESULTS: [&str; 4] = ["done", "failed", "denied", "unfinished"];

/// The latest actions. Cheap to clone. All clones are one.
#[derive(Clone)]
pub struct Actions {
    kept: Arc<Mutex<VecDeque<Action>>>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// What a handler tells the audit of its answer. An extension of the response.
#[derive(Debug, Clone, Default)]
pub(super) struct Note {
    /// What it was done to, if the path does not say so.
    object: Option<String>,
    events: Option<u64>,
    bytes: Option<u64>,
    refused: Option<u64>,
}

impl Note {
    pub(super) fn on(object: impl Into<String>) -> Self {
        Self { object: Some(object.into()), ..Self::default() }
    }

    /// `events` events were changed or shown.
    pub(super) fn of(events: u64) -> Self {
        Self { events: Some(events), ..Self::default() }
    }

    pub(super) fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// Of the events with these ids, as many were changed.
    pub(super) fn some(ids: &[EventId], changed: usize) -> Self {
        let mut object = ids.iter().take(IDS_MAX).map(ToString::to_string).collect::<Vec<_>>().join(" ");
        if ids.len() > IDS_MAX {
            object += &format!(" and {} more", ids.len() - IDS_MAX);
        }
        let refused = Some(ids.len().saturating_sub(changed) as u64);
        Self { object: Some(object), events: Some(changed as u64), refused, ..Self::default() }
    }
}

/// An answer, with what the audit says of it.
pub(super) struct Noted<T>(pub(super) T, pub(super) Note);

impl<T: IntoResponse> IntoResponse for Noted<T> {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        response.extensions_mut().insert(self.1);
        response
    }
}

/// An action that is being carried out. If it is dropped before its answer, its end is unknown.
pub(super) struct Begun {
    actions: Actions,
    action: Option<Action>,
}

impl Actions {
    pub fn new(clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self { kept: Arc::default(), clock, metrics }
    }

    pub fn router(&self) -> Router {
        Router::new().route("/v1/actions", get(list)).with_state(self.clone())
    }

    pub(super) fn begin(
        &self,
        caller: &Caller,
        peer: &Identity,
        action: &'static str,
        object: String,
        filter: String,
    ) -> Begun {
        let address = peer.address.map(|address| address.to_string());
        let user = peer.uid.map(|uid| format!("uid {uid}"));
        let action = Action {
            at: self.clock.now().rfc3339(),
            operator: caller.operator.name.clone(),
            proof: caller.proof.as_str().to_owned(),
            peer: address.or(user).unwrap_or_default(),
            action: action.to_owned(),
            object: short(&object),
            filter: short(&filter),
            ..Action::default()
        };
        Begun { actions: self.clone(), action: Some(action) }
    }

    fn end(&self, action: Action) {
        let Action {
            at: _,
            operator,
            proof,
            peer,
            action: name,
            object,
            filter,
            result,
            status,
            events,
            bytes,
            refused,
        } = &action;
        self.metrics.admin_actions.with_label_values(&[name, result]).inc();
        tracing::info!(
            target: "sendoff::audit",
            action = name, operator, proof, peer, object, filter, result, status, events, bytes, refused,
            "an operator acted"
        );
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(action);
    }

    /// Notes the end of a bulk job, which nobody waits for.
    pub(super) fn note_bulk(&self, job: &BulkJob) {
        let result = match job.state {
            BulkState::Done => "done",
            BulkState::Refused | BulkState::Failed => "failed",
            BulkState::Stopped | BulkState::Counting | BulkState::Running => "unfinished",
        };
        let others = job.results.values().sum::<u64>() - job.done;
        self.end(Action {
            at: self.clock.now().rfc3339(),
            operator: job.by.clone(),
            action: END_BULK.to_owned(),
            object: short(&bulk::in_words(job)),
            result: result.to_owned(),
            events: Some(job.done),
            refused: Some(others),
            ..Action::default()
        });
    }

    fn latest(&self, limit: usize) -> Vec<Action> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().skip(kept.len().saturating_sub(limit)).cloned().collect()
    }
}

impl Begun {
    pub(super) fn answered(mut self, status: StatusCode, note: Note) {
        let result = if status.is_success() { "done" } else { "failed" };
        self.end(result, Some(status), note);
    }

    pub(super) fn denied(mut self, status: StatusCode) {
        self.end("denied", Some(status), Note::default());
    }

    fn end(&mut self, result: &str, status: Option<StatusCode>, note: Note) {
        let Some(action) = self.action.take() else { return };
        let Note { object, events, bytes, refused } = note;
        self.actions.end(Action {
            result: result.to_owned(),
            status: status.map(|status| status.as_u16()),
            object: object.map_or(action.object, |object| short(&object)),
            events,
            bytes,
            refused,
            ..action
        });
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.end("unfinished", None, Note::default());
    }
}

fn short(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// How many actions to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ActionsQuery {
    /// How many, the latest; 100 unless given, at most 1,000.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 4_294_967_295_u32)]
    limit: Option<NonZeroU32>,
}

/// List the latest changes and views of payloads by operators
///
/// They are kept in memory since the start, 1000 of them. The log has all, with the target sendoff::audit.
#[utoipa::path(
    get,
    path = "/v1/actions",
    operation_id = "list_actions",
    params(ActionsQuery),
    responses((status = 200, description = "The latest, the last one at the end", body = ActionPage))
)]
pub(super) async fn list(State(actions): State<Actions>, Query(query): Query<ActionsQuery>) -> Json<ActionPage> {
    Json(ActionPage { actions: actions.latest(page_size(query.limit, SHOWN, KEPT_MAX)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::operators::{Operator, Proof, Role};
    use crate::clock::UnixMillis;

    fn begin(actions: &Actions, object: &str) -> Begun {
        let operator = Arc::new(Operator { name: "oncall".to_owned(), role: Role::Operate, payloads: false });
        let caller = Caller { operator, proof: Proof::Token };
        actions.begin(&caller, &Identity::default(), "pause-function", object.to_owned(), String::new())
    }

    #[test]
    fn the_latest_actions_are_kept_with_their_ends() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let actions = Actions::new(Clock::seeded(UnixMillis(0), 1), metrics.clone());
        for n in 0..KEPT_MAX + 3 {
            begin(&actions, &format!("f{n}")).answered(StatusCode::OK, Note::of(1));
        }
        begin(&actions, "x").denied(StatusCode::FORBIDDEN);
        begin(&actions, "x").answered(StatusCode::NOT_FOUND, Note::default());
        drop(begin(&actions, "left"));
        let kept = actions.latest(usize::MAX);
        assert_eq!((kept.len(), kept[0].object.as_str()), (KEPT_MAX, "f6"));
        let ends: Vec<_> = actions.latest(4).iter().map(|action| (action.result.clone(), action.status)).collect();
        let expected = [("done", Some(200)), ("denied", Some(403)), ("failed", Some(404)), ("unfinished", None)];
        assert_eq!(ends, expected.map(|(result, status)| (result.to_owned(), status)));
        let counted = |result: &str| metrics.admin_actions.with_label_values(&["pause-function", result]).get();
        assert_eq!(RESULTS.map(counted), [KEPT_MAX as u64 + 3, 1, 1, 1]);
    }

    #[test]
    fn texts_and_ids_are_cut() {
        let actions = Actions::new(Clock::seeded(UnixMillis(0), 1), Arc::new(Metrics::new().unwrap()));
        begin(&actions, &"x".repeat(10_000)).answered(StatusCode::OK, Note::default());
        assert_eq!(actions.latest(1)[0].object.len(), TEXT_CHARS_MAX);
        let note = Note::some(&[EventId::from_bytes([7; 16]); 10], 4);
        assert!(note.object.unwrap().ends_with(" and 2 more"));
        assert_eq!((note.events, note.refused), (Some(4), Some(6)));
    }
}
