//! `GET /v1/snapshot`: status, functions and problems in one answer, for whoever asks again and again.
//!
//! Holds: the store is read at most once in [`FRESH`], however many clients ask, because each reading takes time of the thread
//! that owns the store.
//! Limits: [`FUNCTIONS_MAX`] functions.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::api::{self, FunctionView, Snapshot, StoreLimits};
use super::status::StatusRoutes;
use super::{Problem, functions};
use crate::outbox::operator::Operator;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);

/// The most functions in an answer.
const FUNCTIONS_MAX: usize = 500;

/// The handler's state. Cheap to clone. All clones are one.
#[derive(Clone)]
pub struct Snapshots<O> {
    status: StatusRoutes<O>,
    /// The last answer. The lock is held while a new one is read, so that all who ask meanwhile get the new one.
    last: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

impl<O: Operator> Snapshots<O> {
    pub fn new(status: StatusRoutes<O>) -> Self {
        Self { status, last: Arc::default() }
    }

    pub fn router(&self) -> Router {
        Router::new().route("/v1/snapshot", get(show::<O>)).with_state(self.clone())
    }

    async fn read(&self) -> Result<Snapshot, Problem> {
        let admin = self.status.admin();
        let look = admin.look().await?;
        let status = self.status.whole(&look);
        let rates = admin.series.rates();
        let mut functions = functions::views(admin, &look, &rates, |_| true);
        let functions_total = functions.len() as u64;
        functions.sort_by(|one, other| urgency(other).cmp(&urgency(one)).then(one.function.cmp(&other.function)));
        functions.truncate(FUNCTIONS_MAX);
        let limits = admin.settings()?.limits;
        Ok(Snapshot {
            at: admin.clock.now().rfc3339(),
            clock_offset_seconds: admin.clock.stepped() as f64 / 1_000.0,
            status,
            limits: StoreLimits {
                bytes_max: limits.bytes_max,
                events_max: limits.events_max,
                disk_reserve: limits.disk_reserve,
            },
            functions,
            functions_total,
        })
    }
}

/// The order of functions. The most urgent one sorts last.
fn urgency(view: &FunctionView) -> (bool, bool, bool, u64, u64) {
    (view.held.is_some(), view.failing_since.is_some(), view.paused, view.depth, view.buried)
}

/// Show the daemon and its functions at once
///
/// For whoever asks again and again: it is read at most once a second, however many ask.
#[utoipa::path(
    get,
    path = "/v1/snapshot",
    operation_id = "show_snapshot",
    responses((status = 200, description = "Status, problems and functions", body = api::Snapshot))
)]
pub(super) async fn show<O: Operator>(State(snapshots): State<Snapshots<O>>) -> Result<Response, Problem> {
    snapshots.status.admin().series.is_asked();
    let mut last = snapshots.last.lock().await;
    let now = snapshots.status.admin().clock.instant();
    let fresh =
        last.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < FRESH).map(|(_, body)| body.clone());
    let body = match fresh {
        Some(body) => body,
        None => {
            let snapshot = snapshots.read().await?;
            let failed = |error: serde_json::Error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
            let body = Bytes::from(serde_json::to_vec(&snapshot).map_err(failed)?);
            *last = Some((now, body.clone()));
            body
        }
    };
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}
