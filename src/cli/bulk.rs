//! `sendoff bulk`: changes many events at once, by jobs of the daemon.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::admin_client::{AdminClient, Asker, Daemon};
use super::dead_letters::parse_moment;
use super::table::{Rows, or_dash};
use super::{Exit, Failure, out};
use crate::admin::api::{BulkAction, BulkFilter, BulkJob, BulkPage, BulkRequest, BulkState};
use crate::clock::Clock;
use crate::config::Environment;
use crate::event::Pattern;
use crate::plural::count;

/// How often a job is asked how far it is.
const ASK_EVERY: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  sendoff bulk start cancel --function 'orders-*' --since 2h --dry-run
  sendoff bulk start redrive --function orders --code InvalidRequestContentException --rate 50/s
  sendoff bulk start attempt --function orders --yes --detach
  sendoff bulk stop 7";

/// Redrive, purge, cancel or attempt all events that fit a filter
///
/// The daemon does it as a job, which goes on without this command. `list` shows the running and the latest jobs.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin a job and wait for its end
    ///
    /// Counts what fits and asks before it begins. If over a tenth more events fit by then, nothing is done.
    Start(Box<Start>),
    /// List the running and the latest jobs
    List {
        #[command(flatten)]
        daemon: Daemon,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show one job as JSON
    Show(Job),
    /// Stop a job. What is done stays done
    Stop(Job),
}

#[derive(Debug, Args)]
struct Job {
    #[command(flatten)]
    daemon: Daemon,
    /// The job's number, as `list` shows it
    id: NonZeroU64,
}

#[derive(Debug, Args)]
struct Start {
    #[command(flatten)]
    daemon: Daemon,
    /// What to do: redrive or purge dead letters, cancel or attempt events that wait
    action: Action,
    /// Only for this function. * matches any characters
    #[arg(long)]
    function: Option<Pattern>,
    /// Only events in this state: ready, waiting or scheduled (cancel, attempt). By default, `attempt` takes those in
    /// waiting only
    #[arg(long, value_parser = ["ready", "waiting", "scheduled"])]
    state: Option<String>,
    /// Only dead letters with this reason (redrive, purge)
    #[arg(long, value_parser = ["retries-exhausted", "event-age-exceeded", "refused"])]
    reason: Option<String>,
    /// Only dead letters with this code of the last error (redrive, purge)
    #[arg(long)]
    code: Option<String>,
    /// Only those whose last attempt said this
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only those given up (redrive, purge) or accepted (others) at or after this: a time (RFC 3339) or how long ago ("2h")
    #[arg(long, value_name = "TIME|AGO", value_parser = parse_moment)]
    since: Option<String>,
    /// Only those given up or accepted before this
    #[arg(long, value_name = "TIME|AGO", value_parser = parse_moment)]
    until: Option<String>,
    /// Only those that were attempted at least so often (cancel, attempt)
    #[arg(long, value_name = "N")]
    attempts_min: Option<u32>,
    /// Only dead letters that no queue can take (redrive, purge)
    #[arg(long)]
    unshippable: bool,
    /// At most this many
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroU32>,
    /// Maximum rate, for example 50/s
    #[arg(long, value_name = "N/s")]
    rate: Option<String>,
    /// Keep the idempotency keys of removed events. An event with the same key is then a duplicate and is not stored
    #[arg(long)]
    keep_keys: bool,
    /// Only count
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Do not wait for the end of the job
    #[arg(long)]
    detach: bool,
    /// Print the job as JSON at its end
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    Redrive,
    Purge,
    Cancel,
    Attempt,
}

impl From<Action> for BulkAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Redrive => Self::Redrive,
            Action::Purge => Self::Purge,
            Action::Cancel => Self::Cancel,
            Action::Attempt => Self::Attempt,
        }
    }
}

impl Start {
    fn request(&self) -> BulkRequest {
        let filter = BulkFilter {
            function: self.function.as_ref().map(|pattern| pattern.as_str().to_owned()),
            state: self.state.clone(),
            reason: self.reason.clone(),
            code: self.code.clone(),
            error: self.error.clone(),
            since: self.since.clone(),
            until: self.until.clone(),
            attempts_min: self.attempts_min,
            unshippable: self.unshippable.then_some(true),
        };
        BulkRequest {
            action: self.action.into(),
            filter,
            limit: self.limit,
            rate: self.rate.clone(),
            expect: None,
            dry_run: self.dry_run,
            keep_keys: self.keep_keys,
        }
    }
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    match options.command {
        Command::Start(options) => {
            let client = options.daemon.client(environment)?;
            super::runtime()?.block_on(start(&client, &options))
        }
        Command::List { daemon, json } => {
            let BulkPage { jobs } = Asker::new(&daemon, environment)?.get("/v1/bulk")?;
            if json { jobs.iter().try_for_each(out::json) } else { out::print(&listed(&jobs).lines()) }
        }
        Command::Show(Job { daemon, id }) => {
            let job: BulkJob = Asker::new(&daemon, environment)?.get(&path(&id.to_string()))?;
            out::pretty(&job)
        }
        Command::Stop(Job { daemon, id }) => {
            let job: BulkJob = Asker::new(&daemon, environment)?.delete(&path(&id.to_string()))?;
            out::line(ended(&job))
        }
    }
}

fn path(id: &str) -> String {
    format!("/v1/bulk/{id}")
}

async fn start(client: &AdminClient, options: &Start) -> Result<(), Failure> {
    let mut request = options.request();
    if !options.dry_run && !options.yes {
        let dry_run = BulkRequest { dry_run: true, ..request.clone() };
        let counted = wait(client, client.post("/v1/bulk", &dry_run).await?, false).await?;
        let matched = counted.matched.unwrap_or_default();
        if matched == 0 {
            return out::line("no event fits; nothing to do");
        }
        if !out::agreed(&format!("{} {}?", request.action.as_str(), fitting(&counted)))? {
            return Err(Failure::saying(Exit::Failed, "nothing was done"));
        }
        request.expect = Some(u32::try_from(matched).unwrap_or(u32::MAX));
    }
    let job: BulkJob = client.post("/v1/bulk", &request).await?;
    if options.detach && !job.state.is_over() {
        return out::line(format!("job {} has begun; `sendoff bulk show {}` tells how far it is", job.id, job.id));
    }
    let job = wait(client, job, !options.json).await?;
    if options.json {
        out::pretty(&job)?;
    } else {
        out::line(ended(&job))?;
    }
    match job.state {
        BulkState::Done => Ok(()),
        BulkState::Counting | BulkState::Running | BulkState::Stopped | BulkState::Refused | BulkState::Failed => {
            Err(Failure::saying(Exit::Failed, format!("the job is {}", job.state.as_str())))
        }
    }
}

/// Waits for the end of a job.
async fn wait(client: &AdminClient, mut job: BulkJob, tells: bool) -> Result<BulkJob, Failure> {
    let clock = Clock::system();
    while !job.state.is_over() {
        clock.sleep(ASK_EVERY).await;
        job = client.get(&path(&job.id)).await?;
        if tells && !job.state.is_over() {
            out::note(progress(&job));
        }
    }
    Ok(job)
}

/// What fits, for a question: how many events, and how old the oldest is.
fn fitting(job: &BulkJob) -> String {
    let fit = count(job.matched.unwrap_or_default(), "event");
    let oldest = job.oldest_at.as_ref().map(|at| format!(", the oldest accepted at {at}")).unwrap_or_default();
    let limit = job.limit.map(|limit| format!(", at most {limit} of them")).unwrap_or_default();
    format!("{fit}{oldest}{limit}")
}

fn progress(job: &BulkJob) -> String {
    let of = job.matched.map(|matched| format!(" of {matched}")).unwrap_or_default();
    let waits = job.message.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
    format!("job {}: {}, {}{of} done{waits}", job.id, job.state.as_str(), job.done)
}

fn ended(job: &BulkJob) -> String {
    if job.dry_run {
        return format!("{} fit for {}", fitting(job), job.action.as_str());
    }
    let results: Vec<String> = job.results.iter().map(|(word, events)| format!("{events} {word}")).collect();
    let results = if results.is_empty() { "no event was touched".to_owned() } else { results.join(", ") };
    let why = job.message.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
    format!("job {} is {}: {results}{why}", job.id, job.state.as_str())
}

fn listed(jobs: &[BulkJob]) -> Rows {
    let mut rows = Rows::headed(&["ID", "ACTION", "FUNCTION", "BY", "STARTED", "STATE", "MATCHED", "DONE"]);
    for job in jobs {
        let action =
            if job.dry_run { format!("{} (dry run)", job.action.as_str()) } else { job.action.as_str().to_owned() };
        rows.add([
            job.id.clone(),
            action,
            or_dash(job.filter.function.as_deref()),
            job.by.clone(),
            job.started_at.clone(),
            job.state.as_str().to_owned(),
            or_dash(job.matched),
            job.done.to_string(),
        ]);
    }
    rows
}
