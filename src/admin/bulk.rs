//! The operator's API for many events at once: jobs that redrive, purge, cancel or attempt all events that fit a filter.
//!
//! A job goes on without its caller, in pieces, and can be stopped. It first counts what fits, so that its progress means
//! something and a caller who expects fewer events is refused before anything is done.
//! Limits: [`KEPT_MAX`] jobs in memory, [`RUNNING_MAX`] at work, one change of each action at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Extension, Json, Router};
use http::StatusCode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::actions::{Actions, Note, Noted};
use super::api::{self, BulkJob, BulkPage, BulkRequest, BulkState};
use super::lookup::matching;
use super::operators::Caller;
use super::whoami::name_of;
use super::{Admin, Problem};
use crate::outbox::operator::Operator;
use run::Run;
use wanted::Wanted;

mod run;

mod wanted;

/// The most jobs that are remembered.
const KEPT_MAX: usize = 50;

/// The most jobs at work, dry runs included.
const RUNNING_MAX: usize = 8;

/// How long a caller waits for the count, or for the end of a job that it stops.
const PATIENCE: Duration = Duration::from_secs(10);

/// All jobs. Cheap to clone. All clones are one.
#[derive(Clone)]
pub struct Bulk<O> {
    admin: Admin<O>,
    actions: Actions,
    /// Runs the jobs.
    tasks: TaskTracker,
    /// Ends all jobs.
    stop: CancellationToken,
    jobs: Arc<Mutex<Jobs>>,
}

#[derive(Default)]
struct Jobs {
    kept: VecDeque<Job>,
    /// The id of the latest.
    last: u64,
}

struct Job {
    /// What the job tells of itself.
    view: watch::Receiver<BulkJob>,
    stop: CancellationToken,
}

impl Job {
    fn is_over(&self) -> bool {
        self.view.borrow().state.is_over()
    }
}

impl<O: Operator> Bulk<O> {
    pub fn new(admin: Admin<O>, actions: Actions, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { admin, actions, tasks, stop, jobs: Arc::default() }
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/bulk", get(list::<O>).post(start::<O>))
            .route("/v1/bulk/{id}", get(show::<O>).delete(stop::<O>))
            .with_state(self.clone())
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<(watch::Receiver<BulkJob>, CancellationToken), Problem> {
        let jobs = self.jobs();
        let found = jobs.kept.iter().find(|job| job.view.borrow().id == id);
        let found = found.map(|job| (job.view.clone(), job.stop.clone()));
        let why = format!(
            "no bulk job {id:?}; the latest {KEPT_MAX} since the daemon's start are kept, GET /v1/bulk lists them"
        );
        found.ok_or_else(|| Problem::not_found(why))
    }

    /// Begins a job, unless another one is in its way.
    fn begin(&self, request: BulkRequest, wanted: Wanted, by: String) -> Result<watch::Receiver<BulkJob>, Problem> {
        let mut jobs = self.jobs();
        let running: Vec<BulkJob> =
            jobs.kept.iter().filter(|job| !job.is_over()).map(|job| job.view.borrow().clone()).collect();
        let same = running.iter().find(|job| !job.dry_run && !request.dry_run && job.action == request.action);
        if let Some(BulkJob { id, action, .. }) = same {
            let why = format!("job {id} is a {} that still runs: wait for it, or stop it", action.as_str());
            return Err(Problem::conflict(why));
        }
        if running.len() >= RUNNING_MAX {
            return Err(Problem::conflict(format!("{RUNNING_MAX} jobs are at work: wait for one, or stop one")));
        }
        jobs.last += 1;
        let now = self.admin.clock.now();
        let job = BulkJob {
            id: jobs.last.to_string(),
            action: request.action,
            filter: request.filter,
            dry_run: request.dry_run,
            limit: request.limit.map(std::num::NonZero::get),
            rate: request.rate,
            keep_keys: request.keep_keys,
            by,
            state: BulkState::Counting,
            started_at: now.rfc3339(),
            ended_at: None,
            matched: None,
            oldest_at: None,
            looked_at: 0,
            done: 0,
            results: std::collections::BTreeMap::new(),
            message: None,
        };
        let (sender, view) = watch::channel(job);
        let stop = self.stop.child_token();
        while jobs.kept.len() >= KEPT_MAX {
            let oldest = jobs.kept.iter().position(Job::is_over);
            // Some job is over, because fewer run than are kept.
            let Some(oldest) = oldest else { break };
            jobs.kept.remove(oldest);
        }
        jobs.kept.push_back(Job { view: view.clone(), stop: stop.clone() });
        drop(jobs);
        let run = Run { admin: self.admin.clone(), wanted, view: sender, stop };
        let actions = self.actions.clone();
        self.tasks.spawn(async move {
            let job = run.run().await;
            if !job.dry_run {
                actions.note_bulk(&job);
            }
        });
        Ok(view)
    }
}

/// Returns what a job tells of itself once `enough` holds, or after [`PATIENCE`].
async fn until(mut view: watch::Receiver<BulkJob>, enough: impl Fn(&BulkJob) -> bool) -> BulkJob {
    let changed = tokio::time::timeout(PATIENCE, view.wait_for(|job| enough(job))).await;
    drop(changed);
    view.borrow().clone()
}

/// Change many events at once, or count them
///
/// All that fit the filter. The job goes on without its caller. It is answered once it has counted the events, or after ten
/// seconds.
#[utoipa::path(
    post,
    path = "/v1/bulk",
    operation_id = "start_bulk",
    request_body = BulkRequest,
    responses(
        (status = 202, description = "It has begun; or is done, of a dry run", body = BulkJob),
        (status = 400, description = "The filter does not fit the action", body = api::Message),
        (status = 404, description = "No known function fits", body = api::Message),
        (status = 409, description = "More events fit than expected, or such a job runs already", body = api::Message),
    )
)]
pub(super) async fn start<O: Operator>(
    State(bulk): State<Bulk<O>>,
    caller: Option<Extension<Caller>>,
    Json(request): Json<BulkRequest>,
) -> Result<Noted<(StatusCode, Json<BulkJob>)>, Problem> {
    let redrives_max = bulk.admin.settings()?.rules.redrives_max;
    let wanted = Wanted::read(&request, redrives_max, &bulk.admin.clock)?;
    matching(&bulk.admin.store()?, wanted.function.as_ref()).await?;
    let view = bulk.begin(request, wanted, name_of(caller))?;
    let job = until(view, |job| job.state != BulkState::Counting).await;
    match (job.state, &job.message) {
        (BulkState::Refused, Some(why)) => Err(Problem::conflict(why.clone())),
        _ => {
            let note = Note::on(in_words(&job));
            Ok(Noted((StatusCode::ACCEPTED, Json(job)), note))
        }
    }
}

/// A job for the audit.
pub(super) fn in_words(job: &BulkJob) -> String {
    let filter = serde_json::to_string(&job.filter).unwrap_or_default();
    let dry_run = if job.dry_run { " (dry run)" } else { "" };
    format!("job {}: {}{dry_run} {filter}", job.id, job.action.as_str())
}

/// List the latest bulk jobs
#[utoipa::path(
    get,
    path = "/v1/bulk",
    operation_id = "list_bulk",
    responses((status = 200, description = "Running and latest jobs, the last one at the end", body = BulkPage))
)]
pub(super) async fn list<O: Operator>(State(bulk): State<Bulk<O>>) -> Json<BulkPage> {
    Json(BulkPage { jobs: bulk.jobs().kept.iter().map(|job| job.view.borrow().clone()).collect() })
}

/// Show a bulk job
#[utoipa::path(
    get,
    path = "/v1/bulk/{id}",
    operation_id = "show_bulk",
    params(("id" = String, Path, pattern = "^[1-9][0-9]*$")),
    responses(
        (status = 200, description = "How far it is", body = BulkJob),
        (status = 404, description = "No such job is remembered", body = api::Message),
    )
)]
pub(super) async fn show<O: Operator>(
    State(bulk): State<Bulk<O>>,
    Path(id): Path<String>,
) -> Result<Json<BulkJob>, Problem> {
    let (view, _) = bulk.find(&id)?;
    Ok(Json(view.borrow().clone()))
}

/// Stop a bulk job
///
/// What is done stays done.
#[utoipa::path(
    delete,
    path = "/v1/bulk/{id}",
    operation_id = "stop_bulk",
    params(("id" = String, Path, pattern = "^[1-9][0-9]*$")),
    responses(
        (status = 200, description = "It is over, or about to be", body = BulkJob),
        (status = 404, description = "No such job is remembered", body = api::Message),
    )
)]
pub(super) async fn stop<O: Operator>(
    State(bulk): State<Bulk<O>>,
    Path(id): Path<String>,
) -> Result<Noted<Json<BulkJob>>, Problem> {
    let (view, stop) = bulk.find(&id)?;
    stop.cancel();
    let job = until(view, |job| job.state.is_over()).await;
    let note = Note::on(in_words(&job));
    Ok(Noted(Json(job), note))
}

#[cfg(test)]
mod tests;
