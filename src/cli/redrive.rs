//! `sendoff redrive`: dead letters back to their functions, from a queue or from the daemon's store.

use std::time::Duration;

use clap::{Args, ValueEnum};
use http::Uri;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::dead_letters::client::AdminClient;
use super::dead_letters::{FilterOptions, failure, letters, pages};
use super::send::{endpoint_of, parse_endpoint};
use super::{ConfigOptions, Exit, Failure, print};
use crate::aws;
use crate::clock::{Clock, UnixMillis};
use crate::config::Environment;
use crate::deadletter::Trouble;
use crate::deadletter::letter::{self, Letter, Wanted};
use crate::deadletter::redrive::{Answer, Door, Ended, Plan, Redrive, Tally};
use crate::shutdown;
use progress::Progress;

mod progress;

/// Ids of one request to the store.
const LOCAL_BATCH: usize = 100;

/// Send dead letters again, through a running daemon
///
/// From an SQS queue: sendoff's own messages, those of Lambda's own dead-letter queues, and Lambda's destination records.
/// Each is accepted durably before it is deleted, so it can be interrupted, or crash, at any time: what was accepted
/// already is recognised when it is met again. What is foreign or broken stays on the queue and is named.
///
/// Messages of Lambda's own queues do not tell their function: --function does, or else the queue's tag sendoff:function.
///
/// With --local from the daemon's own store.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["queue", "local"]))]
pub struct Options {
    /// The dead-letter queue, by URL or ARN
    #[arg(long, value_name = "URL|ARN")]
    queue: Option<String>,
    /// The dead letters in the daemon's store
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    filter: FilterOptions,
    /// At most so many a second, as in 50/s
    #[arg(long, value_name = "N/s", value_parser = parse_rate)]
    rate: Option<f64>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Only look: nothing is accepted or deleted
    #[arg(long)]
    dry_run: bool,
    /// How long messages in hand are hidden from other consumers; longer than the redrive of a FIFO queue takes
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_visibility)]
    visibility: Duration,
    #[command(flatten)]
    config: ConfigOptions,
    /// The daemon's admin listener, as http://HOST:PORT; by default what the configuration says
    #[arg(long, value_name = "URL", value_parser = parse_endpoint)]
    admin: Option<Uri>,
    /// How to show the progress
    #[arg(long, value_enum, default_value_t)]
    progress: Shown,
}

/// How the progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Shown {
    /// A bar on a terminal, else lines
    #[default]
    Auto,
    Bar,
    Lines,
    None,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse::<f64>().ok();
    number.filter(|rate| (0.01..=1e6).contains(rate)).ok_or_else(|| "write it like 50/s".to_owned())
}

fn parse_visibility(text: &str) -> Result<Duration, String> {
    // SQS takes up to 12 h.
    let range = Duration::from_secs(1)..=Duration::from_secs(12 * 3_600);
    let duration = humantime::parse_duration(text).ok().filter(|duration| range.contains(duration));
    duration.ok_or_else(|| "write it like 10m; 1s to 12h".to_owned())
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    super::runtime()?.block_on(redrive(options, environment))
}

async fn redrive(options: Options, environment: &Environment) -> Result<(), Failure> {
    let Options { queue, filter, rate, limit, dry_run, visibility, config, admin, progress, .. } = options;
    let config = config.load(environment)?.config;
    let admin = match admin {
        Some(endpoint) => endpoint,
        None => endpoint_of(config.listen.admin)?,
    };
    let client = AdminClient::new(&admin);
    let clock = Clock::system();
    let stop = CancellationToken::new();
    let work = async {
        match &queue {
            Some(queue) => {
                let wanted = wanted_of(&filter, clock.now());
                let plan = Plan { wanted, limit, rate, dry_run };
                from_queue(&config, queue, visibility, plan, client, &clock, progress, &stop).await
            }
            None => {
                let local = Local { client, query: filter.query(), rate, limit, dry_run };
                local.run(&clock, progress, &stop).await
            }
        }
    };
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        signal = shutdown::requested() => {
            let signal = signal.map_err(|error| Failure::new(Exit::Internal, error))?;
            eprintln!("{signal}: finishing the letters in hand");
            stop.cancel();
        }
    }
    tokio::select! {
        biased;
        done = &mut work => done,
        // As safe as any crash: what is in hand shows up on the queue again.
        _ = shutdown::requested() => Err(Failure::saying(Exit::Failed, "interrupted twice: ended at once")),
    }
}

fn wanted_of(filter: &FilterOptions, now: UnixMillis) -> Wanted {
    let moment = |text: &Option<String>| text.as_ref().and_then(|text| letter::moment(text, now));
    Wanted {
        function: filter.function.clone(),
        queue_function: None,
        reason: filter.reason(),
        since: moment(&filter.since),
        until: moment(&filter.until),
        error: filter.error().map(str::to_owned),
    }
}

#[expect(clippy::too_many_arguments, reason = "one caller, that has just read them off the command line")]
async fn from_queue(
    config: &crate::config::Config,
    queue: &str,
    visibility: Duration,
    mut plan: Plan,
    client: AdminClient,
    clock: &Clock,
    shown: Shown,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let shared = aws::Shared::load(config.lambda.region.as_deref()).await;
    let sqs = aws::sqs::Sqs::new(&shared, &config.sqs).map_err(|error| Failure::new(Exit::Configuration, error))?;
    let source = sqs.queue(queue, visibility);
    plan.wanted.queue_function = source.tagged_function().await;
    // Only for the bar: who may receive need not be allowed to ask.
    let expected = sqs.facts_of(queue).await.ok().map(|facts| facts.messages);
    let dry_run = plan.dry_run;
    let expected = match (expected, plan.limit) {
        (Some(messages), Some(limit)) => Some(messages.min(limit)),
        (messages, limit) => messages.or(limit),
    };
    let mut progress = Progress::start(shown, expected, clock);
    let run = Redrive::new(&source, &client, plan, clock.clone());
    let (ended, tally) = run.run(stop, |tally| progress.at(tally.seen())).await;
    progress.finish();
    print(&summary(&tally, dry_run))?;
    conclude(ended, &tally)
}

/// What was done, in words.
fn summary(tally: &Tally, dry_run: bool) -> String {
    let Tally { accepted, repeats, undeleted, left } = tally;
    let verb = if dry_run { "would be redriven" } else { "redriven" };
    let mut text = format!("{accepted} {verb}, {repeats} repeats of earlier ones\n");
    if *undeleted > 0 {
        text += &format!("{undeleted} accepted but not deleted: the next redrive recognises them\n");
    }
    for (kind, left) in left {
        text += &format!("{} left on the queue: {kind}\n", left.count);
        if *kind != "not-selected" {
            text.extend(left.named.iter().map(|(id, why)| format!("  {id}: {why}\n")));
        }
        if left.count > left.named.len() as u64 && *kind != "not-selected" {
            text += &format!("  and {} more\n", left.count - left.named.len() as u64);
        }
    }
    text
}

fn conclude(ended: Ended, tally: &Tally) -> Result<(), Failure> {
    match ended {
        Ended::Done | Ended::Limit => match tally.left.iter().filter(|(kind, _)| **kind != "not-selected").count() {
            0 => Ok(()),
            _ => Err(Failure::saying(Exit::Failed, "some messages could not be redriven and are still on the queue")),
        },
        Ended::Interrupted => Err(Failure::saying(Exit::Failed, "interrupted; what is left is still on the queue")),
        Ended::Clogged => {
            Err(Failure::saying(Exit::Failed, "too many messages that cannot be redriven; move them away first"))
        }
        Ended::Failed(trouble) => {
            let exit = if trouble.code == "unreachable" { Exit::Unavailable } else { Exit::Failed };
            Err(Failure::saying(exit, format!("{trouble}; what is left is still on the queue")))
        }
    }
}

impl Door for AdminClient {
    async fn accept(&self, letters: &[Letter]) -> Result<Vec<Answer>, Trouble> {
        let answer = self.post("/v1/redrive", &json!({ "letters": letters })).await?;
        let answers: Vec<Answer> = answer["answers"].as_array().into_iter().flatten().map(answer_of).collect();
        if answers.len() == letters.len() {
            return Ok(answers);
        }
        let message = format!("{} answers for {} letters", answers.len(), letters.len());
        Err(Trouble { code: "unanswered".to_owned(), message, transient: true })
    }
}

fn answer_of(answer: &Value) -> Answer {
    let message = answer["message"].as_str().unwrap_or_default().to_owned();
    match answer["result"].as_str() {
        Some("stored") => Answer::Accepted,
        Some("repeat") => Answer::Repeat,
        Some("busy") => Answer::Busy(message),
        Some("ceiling") => Answer::Ceiling(message),
        Some(_) | None => Answer::Refused(message),
    }
}

/// A redrive from the daemon's store.
struct Local {
    client: AdminClient,
    query: String,
    rate: Option<f64>,
    limit: Option<u64>,
    dry_run: bool,
}

impl Local {
    async fn run(self, clock: &Clock, shown: Shown, stop: &CancellationToken) -> Result<(), Failure> {
        let Self { client, query, rate, limit, dry_run } = self;
        let limit = limit.unwrap_or(u64::MAX);
        let mut progress = Progress::start(shown, None, clock);
        let (mut revived, mut stayed, mut seen) = (0_u64, Vec::new(), 0_u64);
        let size = rate.map_or(LOCAL_BATCH, |rate| ((rate / 10.0) as usize).clamp(1, LOCAL_BATCH));
        let done = pages(&client, &format!("{query}&limit={size}"), async |page| {
            progress.expect(page["buried"].as_u64().map_or(0, |buried| (buried + seen).min(limit)));
            let ids = letters(page).iter().map(|letter| letter["id"].clone());
            let ids: Vec<Value> = ids.take(usize::try_from(limit - revived).unwrap_or(usize::MAX)).collect();
            if dry_run {
                revived += ids.len() as u64;
            } else if !ids.is_empty() {
                let answer = client.post("/v1/dead-letters/redrive", &json!({ "ids": ids })).await.map_err(failure)?;
                for (id, answer) in ids.iter().zip(answer["answers"].as_array().into_iter().flatten()) {
                    match answer_of(answer) {
                        Answer::Accepted | Answer::Repeat => revived += 1,
                        Answer::Busy(why) | Answer::Ceiling(why) | Answer::Refused(why) => {
                            stayed.push(format!("{}: {why}", id.as_str().unwrap_or_default()));
                        }
                    }
                }
            }
            seen = revived + stayed.len() as u64;
            progress.at(seen);
            if let Some(rate) = rate {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = clock.sleep(Duration::from_secs_f64(ids.len() as f64 / rate)) => {}
                }
            }
            Ok(revived < limit && !stop.is_cancelled())
        })
        .await;
        progress.finish();
        let verb = if dry_run { "would be redriven" } else { "redriven" };
        let mut text = format!("{revived} {verb} from the store, {} stay there\n", stayed.len());
        text.extend(stayed.iter().take(20).map(|why| format!("  {why}\n")));
        print(&text)?;
        done?;
        if stop.is_cancelled() {
            return Err(Failure::saying(Exit::Failed, "interrupted; what is left is still in the store"));
        }
        if stayed.is_empty() {
            Ok(())
        } else {
            Err(Failure::saying(Exit::Failed, "some dead letters stay in the store"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_with_or_without_their_unit() {
        assert_eq!((parse_rate("50/s"), parse_rate("0.5")), (Ok(50.0), Ok(0.5)));
        for text in ["", "0", "-1/s", "NaN", "50/m", "1e9"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_summary_names_what_stays() {
        let mut tally = Tally { accepted: 3, repeats: 1, ..Tally::default() };
        let foreign = tally.left.entry("foreign").or_default();
        foreign.count = 12;
        foreign.named = vec![("m-1".into(), "hello".into())];
        tally.left.entry("not-selected").or_default().count = 2;
        let expected = "3 redriven, 1 repeats of earlier ones\n\
                        12 left on the queue: foreign\n  m-1: hello\n  and 11 more\n\
                        2 left on the queue: not-selected\n";
        assert_eq!(summary(&tally, false), expected);
        assert!(conclude(Ended::Done, &tally).is_err());
        tally.left.remove("foreign");
        assert!(conclude(Ended::Done, &tally).is_ok());
    }

    #[test]
    fn answers_of_the_daemon_are_told_apart() {
        assert_eq!(answer_of(&json!({ "result": "stored" })), Answer::Accepted);
        assert_eq!(answer_of(&json!({ "result": "repeat" })), Answer::Repeat);
        assert_eq!(answer_of(&json!({ "result": "busy", "message": "full" })), Answer::Busy("full".into()));
        assert_eq!(answer_of(&json!({})), Answer::Refused(String::new()));
    }
}
