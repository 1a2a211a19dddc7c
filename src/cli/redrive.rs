//! `sendoff redrive`: sends dead letters from a queue or from the daemon's store to their functions again.

use std::time::Duration;

use clap::{Args, ValueEnum};
use http::Method;
use tokio_util::sync::CancellationToken;

use super::admin_client::{AdminClient, Daemon, UNREACHABLE};
use super::arguments::{self, Url};
use super::dead_letters::FilterOptions;
use super::{Exit, Failure, out};
use crate::admin::api::{self, Answers, EMPTY_SPAN, Letters, Queues};
use crate::aws;
use crate::clock::{Clock, UnixMillis};
use crate::config::{Config, Environment};
use crate::deadletter::Trouble;
use crate::deadletter::letter::{Letter, Wanted};
use crate::deadletter::redrive::{Acceptance, Destination, Ended, Plan, Redrive, Tally};
use crate::event::FunctionName;
use crate::plural::count;
use crate::shutdown;
use crate::visible::visible;
use direct::Direct;
use local::Local;
use own_store::OwnStore;
use progress::Progress;

mod direct;

mod local;

mod own_store;

mod progress;

/// How long to try a queue that cannot be reached before the redrive gives up.
const REACH: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  sendoff redrive --dry-run
  sendoff redrive --function 'orders-*' --where reason=retries-exhausted --rate 50/s
  sendoff redrive --queue arn:aws:sqs:eu-central-1:123456789012:orders-dlq
  sendoff redrive --local --limit 10";

/// Send dead letters to their functions again
///
/// Uses the running daemon. Without a daemon, use --standalone to store them in its outbox, or --direct to invoke the
/// functions.
///
/// Reads sendoff's own messages, messages of Lambda's dead-letter queues, and Lambda's destination records from an SQS
/// queue. It deletes a message only after its event is stored durably. You can interrupt it at any time. A later
/// redrive recognises what was accepted. Foreign and broken messages stay on the queue and are named.
///
/// Messages of Lambda's dead-letter queues do not name their function. Use --function, or tag the queue with
/// sendoff:function.
///
/// Without --queue, it uses the queue in the daemon's configuration. With --local, it uses the daemon's own store.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("source").args(["queue", "local"]))]
#[command(group = clap::ArgGroup::new("target").args(["admin", "standalone", "direct"]))]
pub struct Options {
    /// The dead-letter queue, by URL or ARN. By default, the queue in the daemon's configuration
    #[arg(long, value_name = "URL|ARN", value_parser = Url(arguments::queue))]
    queue: Option<String>,
    /// The dead letters in the daemon's store
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    filter: FilterOptions,
    /// Maximum rate, for example 50/s
    #[arg(long, value_name = "N/s", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Redrive at most this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Number of concurrent receive and delete calls. Use 1 with emulators that cannot handle more
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=32))]
    calls: u8,
    /// Only look: accept nothing and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// How long received messages are hidden from other consumers. Longer than the redrive of a FIFO queue takes
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_visibility)]
    visibility: Duration,
    #[command(flatten)]
    daemon: Daemon,
    /// Without a daemon: store events in the outbox in --state-dir. The next daemon there delivers them
    #[arg(long)]
    standalone: bool,
    /// Without a daemon: invoke the functions now, and delete a message when Lambda has accepted its event
    #[arg(long, conflicts_with = "local")]
    direct: bool,
    /// How to show the progress
    #[arg(long, value_enum, default_value_t)]
    progress: Shown,
}

/// How the progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Shown {
    /// A bar on a terminal, otherwise lines
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
    // SQS allows up to 12 h.
    let range = Duration::from_secs(1)..=Duration::from_secs(12 * 3_600);
    let duration = humantime::parse_duration(text).ok().filter(|duration| range.contains(duration));
    duration.ok_or_else(|| "write it like 10m; 1s to 12h".to_owned())
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    super::runtime()?.block_on(redrive(options, environment))
}

async fn redrive(options: Options, environment: &Environment) -> Result<(), Failure> {
    let clock = Clock::system();
    let mut config = match options.standalone {
        true => options.daemon.config.clone().load(environment)?.config,
        false => options.daemon.config(environment)?,
    };
    let mut options = options;
    if !options.local {
        let queues = ask_for_queues(&options, &config, environment).await?;
        options.queue = Some(queue_of(&options, &queues)?);
        config.sqs.endpoint_url = config.sqs.endpoint_url.or(queues.endpoint_url);
        config.sqs.region = config.sqs.region.or(queues.region);
    }
    let own = aws::Own::nobody();
    let shared = aws::Shared::load(config.lambda.region.as_deref(), &config.outside, own, clock.clone()).await;
    let shared = shared.map_err(|error| Failure::new(Exit::Configuration, error))?;
    let only_looks = options.dry_run && options.queue.is_some();
    let own_store = match options.standalone && !only_looks {
        true => Some(OwnStore::open(&config, &shared, &clock).await?),
        false => None,
    };
    let client = match &own_store {
        Some(store) => store.client(),
        None => options.daemon.client(environment)?,
    };
    if !(options.standalone || options.direct || only_looks) {
        must_be_there(&client).await?;
    }
    let stop = CancellationToken::new();
    let done = until_interrupted(&stop, work(&options, &config, &shared, client, &clock, &stop)).await;
    if let Some(store) = own_store {
        store.close().await?;
    }
    done
}

/// The queues for dead letters, from the daemon, or from this side's configuration if no daemon is asked. A command
/// that names a queue and needs no daemon ignores that none runs.
async fn ask_for_queues(options: &Options, config: &Config, environment: &Environment) -> Result<Queues, Failure> {
    if options.standalone || options.direct {
        let functions = config.dead_letter.functions.iter();
        let functions = functions.map(|(function, queue_url)| api::FunctionQueue {
            function: function.clone(),
            queue_url: queue_url.clone(),
        });
        let queue_url = config.dead_letter.queue_url.clone();
        return Ok(Queues { queue_url, functions: functions.collect(), ..Queues::default() });
    }
    match options.daemon.client(environment)?.get("/v1/dead-letters/queues").await {
        Ok(queues) => Ok(queues),
        Err(_) if options.dry_run && options.queue.is_some() => Ok(Queues::default()),
        Err(trouble) if trouble.code == UNREACHABLE => Err(without_a_daemon(trouble)),
        Err(trouble) => Err(trouble.into()),
    }
}

/// The queue that is named, else the queue of the given function, else the only configured queue.
fn queue_of(options: &Options, queues: &Queues) -> Result<String, Failure> {
    if let Some(queue) = &options.queue {
        return Ok(queue.clone());
    }
    let fits = |name: &str| {
        let wanted = options.filter.function.as_ref();
        wanted.is_some_and(|wanted| FunctionName::new(wanted.as_str()).fits(name))
    };
    let own = queues.functions.iter().find(|queue| fits(&queue.function)).map(|queue| &queue.queue_url);
    if let Some(queue) = own.or(queues.queue_url.as_ref()) {
        return Ok(queue.clone());
    }
    let why = match &queues.functions[..] {
        [] => "no dead-letter queue is configured, so dead letters stay in the store: redrive them with --local, or name a \
               queue with --queue"
            .to_owned(),
        some => {
            let names: Vec<&str> = some.iter().map(|queue| queue.queue_url.as_str()).collect();
            format!("only some functions have a dead-letter queue: name one with --queue ({})", names.join(", "))
        }
    };
    Err(Failure::saying(Exit::Failed, why))
}

fn without_a_daemon(trouble: Trouble) -> Failure {
    let message = format!("{}, or redrive without a daemon: --standalone or --direct", trouble.message);
    Failure::from(Trouble { message, ..trouble })
}

/// Fails if no daemon answers, before any message is hidden from others. Later the redrive waits for the daemon.
async fn must_be_there(client: &AdminClient) -> Result<(), Failure> {
    match client.ask(Method::GET, "/livez", None).await {
        Err(trouble) if trouble.code == UNREACHABLE => Err(without_a_daemon(trouble)),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn work(
    options: &Options,
    config: &Config,
    shared: &aws::Shared,
    client: AdminClient,
    clock: &Clock,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let Some(queue) = &options.queue else {
        return Local { client, options }.run(clock, stop).await;
    };
    let source = Source::find(queue, options, config, shared, clock).await?;
    if options.direct {
        let destination = Direct::new(config, shared, clock).await?;
        source.redrive_to(&destination, options, clock, stop, "Lambda has them. No outbox contains them.").await
    } else if options.standalone {
        let said =
            format!("They are in the outbox in {}. The next daemon there delivers them.", config.state_dir.display());
        source.redrive_to(&client, options, clock, stop, &said).await
    } else {
        source.redrive_to(&client, options, clock, stop, "").await
    }
}

/// The first signal ends the work in order, the second one at once.
async fn until_interrupted(
    stop: &CancellationToken,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        signal = shutdown::requested() => {
            let signal = signal.map_err(|error| Failure::new(Exit::Internal, error))?;
            out::note(format!("{signal}: finishing the calls in progress"));
            stop.cancel();
        }
    }
    tokio::select! {
        biased;
        done = &mut work => done,
        // As safe as a crash: messages in hand become visible on the queue again.
        _ = shutdown::requested() => Err(Failure::saying(Exit::Failed, "interrupted twice: ended at once")),
    }
}

fn wanted_of(filter: &FilterOptions, now: UnixMillis) -> Wanted {
    let moment = |text: &Option<String>| text.as_ref().and_then(|text| UnixMillis::read(text, now));
    Wanted {
        function: filter.function.as_ref().map(|pattern| pattern.as_str().to_owned()),
        queue_function: None,
        reason: filter.reason(),
        since: moment(&filter.since),
        until: moment(&filter.until),
        error: filter.error().map(str::to_owned),
    }
}

/// A queue to redrive from, and which messages to redrive.
struct Source {
    queue: aws::sqs::SqsQueue,
    plan: Plan,
    /// The approximate number of messages. Only for the bar.
    expected: Option<u64>,
}

impl Source {
    async fn find(
        queue: &str,
        options: &Options,
        config: &Config,
        shared: &aws::Shared,
        clock: &Clock,
    ) -> Result<Self, Failure> {
        let sqs = aws::sqs::Sqs::new(shared, &config.sqs).map_err(|error| Failure::new(Exit::Configuration, error))?;
        let mut wanted = wanted_of(&options.filter, clock.now());
        if wanted.since.zip(wanted.until).is_some_and(|(since, until)| since >= until) {
            return Err(Failure::saying(Exit::Usage, EMPTY_SPAN));
        }
        let messages = reach(&sqs, queue, config, clock).await?;
        let source = sqs.queue(queue, options.visibility);
        wanted.queue_function = source.tagged_function().await;
        let expected = messages.map_or(options.limit, |messages| Some(options.limit.unwrap_or(u64::MAX).min(messages)));
        let Options { limit, rate, dry_run, calls, .. } = *options;
        let plan = Plan { wanted, limit, rate, dry_run, calls: usize::from(calls) };
        Ok(Self { queue: source, plan, expected })
    }

    async fn redrive_to(
        self,
        destination: &impl Destination,
        options: &Options,
        clock: &Clock,
        stop: &CancellationToken,
        whereabouts: &str,
    ) -> Result<(), Failure> {
        let mut progress = Progress::start(options.progress, self.expected, clock);
        let run = Redrive::new(&self.queue, destination, self.plan, clock.clone());
        let (ended, tally) = run.run(stop, |tally| progress.at(tally.seen())).await;
        progress.finish();
        let whereabouts = if options.dry_run || tally.accepted == 0 { "" } else { whereabouts };
        out::print(&summary(&tally, options.dry_run, whereabouts))?;
        conclude(ended, &tally)
    }
}

/// The number of messages in the queue, if SQS tells it. Fails before the redrive begins if the queue does not exist or
/// nothing answers.
async fn reach(sqs: &aws::sqs::Sqs, queue: &str, config: &Config, clock: &Clock) -> Result<Option<u64>, Failure> {
    let until = clock.now().plus(REACH);
    let way = config.sqs.endpoint_url.as_ref().map(|url| format!(" by way of {url}")).unwrap_or_default();
    loop {
        let asked = tokio::time::timeout(REACH * 2, sqs.facts_of(queue)).await;
        let why = match asked {
            Ok(Ok(facts)) => return Ok(Some(facts.messages)),
            Ok(Err(trouble)) if trouble.code == "unreachable" => trouble.message,
            Ok(Err(trouble))
                if trouble.code.contains("NonExistentQueue") || trouble.code.contains("QueueDoesNotExist") =>
            {
                let why = format!("there is no queue {queue}{way}: {}; nothing was received", trouble.message);
                return Err(Failure::saying(Exit::Failed, why));
            }
            // A role that may receive messages need not have the right to read attributes.
            Ok(Err(_)) => return Ok(None),
            Err(_) => format!("no answer within {} s", (REACH * 2).as_secs()),
        };
        if clock.now() >= until {
            let why = format!(
                "cannot reach the queue {queue}{way}: {why}; correct --queue or sqs.endpoint_url, and see to the network and \
                 the credentials; nothing was received"
            );
            return Err(Failure::saying(Exit::Unavailable, why));
        }
        clock.sleep(Duration::from_millis(500)).await;
    }
}

/// Says what was done, and where the dead letters are now.
fn summary(tally: &Tally, dry_run: bool, whereabouts: &str) -> String {
    let Tally { accepted, repeats, undeleted, left } = tally;
    let mut text = match dry_run {
        true => format!("{accepted} would be redriven\n"),
        false => {
            let duplicates = count(*repeats, "duplicate");
            format!("{accepted} redriven, {duplicates} of earlier redrives\n")
        }
    };
    if !whereabouts.is_empty() {
        text += &format!("{whereabouts}\n");
    }
    if *undeleted > 0 {
        text += &format!("{undeleted} accepted but not deleted: the next redrive recognises them\n");
    }
    for (kind, left) in left {
        text += &format!("{} left on the queue: {kind}\n", left.count);
        if *kind != "not-selected" {
            text.extend(left.named.iter().map(|(id, why)| format!("  {id}: {}\n", visible(why))));
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
        Ended::Interrupted => Err(Failure::saying(Exit::Failed, "interrupted; the rest is still on the queue")),
        Ended::Clogged => Err(Failure::saying(
            Exit::Failed,
            "the queue has too many messages that cannot be redriven; move them to another queue first",
        )),
        Ended::Failed(trouble) => {
            let exit = if trouble.code == UNREACHABLE { Exit::Unavailable } else { Exit::Failed };
            Err(Failure::saying(exit, format!("{trouble}; the rest is still on the queue")))
        }
    }
}

/// The daemon as the destination of a redrive.
impl Destination for AdminClient {
    async fn accept(&self, letters: &[Letter]) -> Result<Vec<Acceptance>, Trouble> {
        let Answers { answers } = self.post("/v1/redrive", &Letters { letters: letters.to_vec() }).await?;
        if answers.len() == letters.len() {
            return Ok(answers.into_iter().map(answer_of).collect());
        }
        let (answers, letters) = (answers.len() as u64, letters.len() as u64);
        let message = format!("{} for {}", count(answers, "answer"), count(letters, "letter"));
        Err(Trouble { code: "unanswered".to_owned(), message, transient: true })
    }
}

fn answer_of(answer: api::LetterResult) -> Acceptance {
    match answer {
        api::LetterResult::Stored { .. } => Acceptance::Accepted,
        api::LetterResult::Duplicate { .. } => Acceptance::Repeat,
        api::LetterResult::Busy { message } | api::LetterResult::Shipping { message } => {
            Acceptance::Busy { why: message, retry_after: None }
        }
        api::LetterResult::Ceiling { message } => Acceptance::Ceiling(message),
        api::LetterResult::Refused { message } | api::LetterResult::NotFound { message } => {
            Acceptance::Refused(message)
        }
        api::LetterResult::Purged { id } => Acceptance::Refused(format!("{id} was purged meanwhile")),
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
        let expected = "3 redriven, 1 duplicate of earlier redrives\n\
                        12 left on the queue: foreign\n  m-1: hello\n  and 11 more\n\
                        2 left on the queue: not-selected\n";
        assert_eq!(summary(&tally, false, ""), expected);
        let said = summary(&tally, true, "They are there.");
        assert!(said.starts_with("3 would be redriven\nThey are there.\n12 left"), "{said}");
        assert!(conclude(Ended::Done, &tally).is_err());
        tally.left.remove("foreign");
        assert!(conclude(Ended::Done, &tally).is_ok());
    }

    #[test]
    fn answers_of_the_daemon_are_told_apart() {
        let id = crate::event::EventId::from_bytes([3; 16]);
        assert_eq!(answer_of(api::LetterResult::Stored { id }), Acceptance::Accepted);
        assert_eq!(answer_of(api::LetterResult::Duplicate { id }), Acceptance::Repeat);
        let busy = Acceptance::Busy { why: "full".into(), retry_after: None };
        assert_eq!(answer_of(api::LetterResult::Busy { message: "full".into() }), busy);
        assert_eq!(answer_of(api::LetterResult::Shipping { message: "full".into() }), busy);
    }
}
