//! `sendoff demo`: shows the guarantees with this binary only.
//!
//! A daemon in a scratch directory delivers to a stand-in Lambda that throttles and fails at random. Half way, the
//! daemon is killed with SIGKILL and started again. At the end three ledgers must agree: the events for which the
//! client got 202, those that the stand-in got, and those in the store. With --postgres, two daemons share an outbox
//! (`shared`), and one of them stays dead.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::shutdown;
use crate::standin::{Keep, Reason, Script, Settings, Standin, Trouble};

mod child;

mod screen;

mod server;

mod shared;

mod sender;

mod tally;

use child::{Daemon, Launch};
use screen::{Progress, Screen};
use sender::Sender;
use tally::{Balance, Stored, Summary};

/// The longest time of the whole demo.
const LIMIT: Duration = Duration::from_secs(600);

/// The time without any change after which missing events count as missing.
const STALLED: Duration = Duration::from_secs(30);

/// The pause between two updates of the progress.
const TICK: Duration = Duration::from_millis(100);

/// Show on this machine that no event is lost: throttles, errors, lost replies, and a SIGKILL half way
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Number of events to send
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub events: u32,
    /// Number of functions. One of them refuses all of its events
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(2..=100))]
    pub functions: u16,
    /// Makes the choice of functions and the stand-in's random failures repeatable, but not the order of events in time
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keep the scratch directory with the store
    #[arg(long)]
    pub keep: bool,
    /// Two daemons that share an outbox on PostgreSQL: one of them is killed for good, and transactions are rolled back. Starts
    /// a server of its own in a scratch directory
    #[arg(long)]
    pub postgres: bool,
    /// With --postgres, use this server, by a login without a password that may create a database. The demo's database is
    /// removed at the end
    #[arg(long, value_name = "URL", requires = "postgres")]
    pub url: Option<String>,
}

/// Runs the demo. Returns true only if every event that got 202 is with its function or a dead letter in the store, and
/// every duplicate was recognised.
pub async fn run(args: DemoArgs) -> anyhow::Result<bool> {
    let system = Clock::system();
    let clock = args.seed.map_or_else(|| system.clone(), |seed| Clock::seeded(system.now(), seed));
    let scratch = Scratch::create(&system, args.keep)?;
    let by_sql = if args.postgres { shared::committed(args.events) } else { 0 };
    let screen = Screen::new(u64::from(args.events) + by_sql, clock.clone());
    let played = tokio::select! {
        biased;
        signal = shutdown::requested() => Err(anyhow!("stopped by {}", signal?)),
        () = clock.sleep(LIMIT) => Err(anyhow!("not finished after {}", humantime::format_duration(LIMIT))),
        played = choose(&args, &clock, &scratch.path, &screen) => played,
    };
    screen.finish();
    let summary = played?;
    screen.print(&summary.table())?;
    if args.keep {
        screen.print(&format!("the store is kept in {}", scratch.path.display()))?;
    }
    let problems = summary.problems();
    for problem in &problems {
        screen.say(problem);
    }
    Ok(problems.is_empty())
}

async fn choose(args: &DemoArgs, clock: &Clock, scratch: &Path, screen: &Screen) -> anyhow::Result<Summary> {
    if args.postgres {
        shared::play(args, clock, scratch, screen).await
    } else {
        play(args, clock, scratch, screen).await
    }
}

async fn play(args: &DemoArgs, clock: &Clock, scratch: &Path, screen: &Screen) -> anyhow::Result<Summary> {
    let settings = Settings { keep: Keep::Counts, id_field: Some(sender::ID_FIELD.to_owned()) };
    let standin = Standin::start_with(clock.clone(), settings).context("starting the stand-in Lambda")?;
    let functions = cast(&standin, args.functions);
    let launch = Launch {
        program: std::env::current_exe().context("finding this binary")?,
        state_dir: scratch.to_owned(),
        lambda_url: standin.endpoint_url(),
        settings: Vec::new(),
    };

    let began = clock.instant();
    let mut daemon = Daemon::start(&launch, clock).await?;
    screen.say(&format!("daemon ready on {}, delivering to a stand-in Lambda that misbehaves", daemon.ports.ingest));
    let (door, door_now) = watch::channel(vec![daemon.ports.ingest]);
    let orders = sender::orders(args.events, &functions, clock);
    let sender = Arc::new(Sender::new(orders, door_now, clock.clone()));
    let demo = Demo { sender: Arc::clone(&sender), standin, clock, screen };
    let mut sending = JoinSet::new();
    sending.spawn(Arc::clone(&sender).send_all());

    let half = u64::from(args.events) / 2;
    demo.watch_over(&mut daemon, async {
        tokio::select! {
            biased;
            () = sender.accepted(half) => Ok(()),
            sent = joined(&mut sending) => sent,
        }
    })
    .await?;
    daemon.kill().await?;
    screen.say(&format!("killed the daemon with SIGKILL after {} accepted events", sender.accepted_now()));
    let killed = clock.instant();
    let mut daemon = Daemon::start(&launch, clock).await.context("after the kill")?;
    door.send_replace(vec![daemon.ports.ingest]);
    screen.say(&format!("ready again after {} ms; the client goes on", killed.elapsed().as_millis()));

    if !sending.is_empty() {
        demo.watch_over(&mut daemon, joined(&mut sending)).await?;
    }
    let accepting = began.elapsed();
    screen.say("all events accepted; waiting for the rest to be delivered");
    let admin = daemon.ports.admin;
    let stored = demo.watch_over(&mut daemon, demo.settled(admin)).await?;
    let summary = demo.summary(&stored, accepting, began.elapsed());
    daemon.stop(clock).await?;
    Ok(summary)
}

/// The result of the only task in the set.
async fn joined(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    match tasks.join_next().await {
        Some(ended) => ended.context("the client panicked")?,
        None => Ok(()),
    }
}

/// Gives the stand-in its scripts and returns the names of the functions. About 30 % of the calls are throttled and 10
/// % fail otherwise. The last function refuses all of its events.
fn cast(standin: &Standin, functions: u16) -> Vec<String> {
    let script = Script::default()
        .latency(Duration::from_millis(2), Duration::from_millis(8))
        .chance(0.20, Trouble::throttle(Reason::ReservedFunctionConcurrentInvocationLimitExceeded))
        .chance(0.10, Trouble::throttle(Reason::FunctionInvocationRateLimitExceeded))
        .chance(0.04, Trouble::error(500, "ServiceException", "Internal error of the stand-in."))
        .chance(0.02, Trouble::Html(502))
        .chance(0.02, Trouble::Reset)
        .chance(0.02, Trouble::LostReply);
    standin.default_script(script);
    let mut names = (1..functions).map(|n| format!("demo-{n:02}")).collect::<Vec<_>>();
    let refusing = "demo-refusing";
    let refusal = "Every event of this function is refused: the stand-in's script says so.";
    standin.script(refusing, Script::always(Trouble::error(400, "InvalidParameterValueException", refusal)));
    names.push(refusing.to_owned());
    names
}

/// What stays the same during the demo.
struct Demo<'a> {
    sender: Arc<Sender>,
    standin: Standin,
    clock: &'a Clock,
    screen: &'a Screen,
}

impl Demo<'_> {
    /// Waits for `done` and shows the progress. Fails if the daemon ends.
    async fn watch_over<T>(
        &self,
        daemon: &mut Daemon,
        done: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let mut done = pin!(done);
        loop {
            tokio::select! {
                biased;
                done = &mut done => return done,
                ended = daemon.ended() => return Err(ended),
                () = self.clock.sleep(TICK) => self.screen.show(&self.progress()),
            }
        }
    }

    fn progress(&self) -> Progress {
        let (delivered, counts) =
            self.standin.ledger().read(|book| (book.taken_ids().len() as u64, book.total().clone()));
        Progress {
            accepted: self.sender.accepted_now(),
            delivered,
            throttled: counts.throttled,
            failed: counts.refused + counts.resets + counts.lost_replies,
        }
    }

    /// Waits until the store holds only dead letters and no event is missing, or until nothing has changed for
    /// [`STALLED`]. Returns what the store then holds.
    async fn settled(&self, admin: std::net::SocketAddr) -> anyhow::Result<Stored> {
        let mut changed = self.clock.instant();
        let mut before = (0, 0);
        loop {
            let stalled = changed.elapsed() > STALLED;
            match self.sender.fetch(&format!("http://{admin}/metrics")).await {
                Ok(text) => {
                    let stored = Stored::read(&text);
                    let requests = self.standin.ledger().read(|book| book.total().requests);
                    let now = (requests, stored.buried() + stored.waiting());
                    if (stored.waiting() == 0 && self.agreed(&stored)) || (stalled && now == before) {
                        return Ok(stored);
                    }
                    if now != before {
                        (before, changed) = (now, self.clock.instant());
                    }
                }
                Err(why) if stalled => return Err(why),
                Err(_) => {}
            }
            self.clock.sleep(2 * TICK).await;
        }
    }

    /// Whether every accepted event is with the stand-in or in the store.
    fn agreed(&self, stored: &Stored) -> bool {
        self.balance(stored).lost == 0
    }

    fn balance(&self, stored: &Stored) -> Balance {
        self.sender.receipts(|receipts| {
            self.standin.ledger().read(|book| tally::reconcile(&receipts.accepted, book.taken_ids(), stored))
        })
    }

    fn summary(&self, stored: &Stored, accepting: Duration, whole: Duration) -> Summary {
        Summary {
            balance: self.balance(stored),
            receipts: self.sender.receipts(|receipts| receipts.counts.clone()),
            standin: self.standin.ledger().read(|book| book.total().clone()),
            accepting,
            whole,
            shared: None,
        }
    }
}

/// A scratch directory below the system's temporary one. Dropping it removes it, unless it is to be kept.
struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    fn create(clock: &Clock, keep: bool) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("sendoff-demo-{:016x}", clock.random_bits() as u64));
        std::fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path, keep })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep
            && let Err(why) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), error = %why, "scratch directory could not be removed");
        }
    }
}
