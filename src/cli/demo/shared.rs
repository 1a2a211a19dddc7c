//! The demo with a shared outbox: two daemons on one PostgreSQL. Half way, one of them is killed for good, and the other one
//! takes over. Meanwhile an application enqueues events in its own transactions, and rolls some of them back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::child::{Daemon, Launch};
use super::screen::Screen;
use super::sender::{ID_FIELD, Order, Sender};
use super::server::Database;
use super::tally::{SharedTold, Summary};
use super::{Demo, DemoArgs, TICK, cast, joined, sender};
use crate::clock::Clock;
use crate::outbox::postgres::{Sql, migrate};
use crate::standin::{Keep, Settings, Standin};

/// One transaction for so many events of the client ...
const EVENTS_FOR_ONE: u32 = 20;

/// ... and every third of them is rolled back.
const ROLLED_BACK: u32 = 3;

/// The shortest lease that daemons accept, so that the demo is short.
const LEASE: &str = "6s";

/// The longest time until the other daemon has taken over.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn play(args: &DemoArgs, clock: &Clock, scratch: &Path, screen: &Screen) -> anyhow::Result<Summary> {
    let database = Database::make(args.url.as_deref(), args.keep, clock).await?;
    screen.say(&format!("the outbox is {}", database.shown));
    let played = play_on(&database, args, clock, scratch, screen).await;
    let ended = database.end().await;
    let summary = played?;
    ended?;
    Ok(summary)
}

async fn play_on(
    database: &Database,
    args: &DemoArgs,
    clock: &Clock,
    scratch: &Path,
    screen: &Screen,
) -> anyhow::Result<Summary> {
    migrate(&database.server).await.map_err(|why| anyhow!("preparing the database: {why}"))?;
    let settings = Settings { keep: Keep::Counts, id_field: Some(ID_FIELD.to_owned()) };
    let standin = Standin::start_with(clock.clone(), settings).context("starting the stand-in Lambda")?;
    let functions = cast(&standin, args.functions);
    let began = clock.instant();
    let first = start(database, &standin, "first", scratch, clock).await?;
    let second = start(database, &standin, "second", scratch, clock).await?;
    screen.say(&format!(
        "two daemons share it, ready on {} and {}; they deliver to a stand-in Lambda that misbehaves",
        first.ports.ingest, second.ports.ingest
    ));
    let (doors, doors_now) = watch::channel(vec![first.ports.ingest, second.ports.ingest]);
    let orders = sender::orders(args.events, &functions, clock);
    let sender = Arc::new(Sender::new(orders, doors_now, clock.clone()));
    let application = Application::open(database, functions, Arc::clone(&sender)).await?;
    let demo = Demo { sender: Arc::clone(&sender), standin, clock, screen };
    let (mut sending, mut enqueuing) = (JoinSet::new(), JoinSet::new());
    sending.spawn(Arc::clone(&sender).send_all());
    enqueuing.spawn(application.enqueue(transactions(args.events)));

    // Whoever has the functions is killed, so that the other one must take over.
    let owner = owner(database, clock).await?;
    let doors_of = [first.ports.ingest, second.ports.ingest];
    let (mut killed, mut left, door) =
        if owner == "first" { (first, second, doors_of[1]) } else { (second, first, doors_of[0]) };
    let half = u64::from(args.events) / 2;
    let reached = async {
        tokio::select! {
            biased;
            () = sender.accepted(half) => Ok(()),
            sent = joined(&mut sending) => sent,
            ended = left.ended() => Err(ended),
        }
    };
    demo.watch_over(&mut killed, reached).await?;
    killed.kill().await?;
    doors.send_replace(vec![door]);
    let at = clock.instant();
    screen.say(&format!(
        "killed the {owner} daemon, which delivered, with SIGKILL after {} accepted events; the client goes on with the other",
        sender.accepted_now()
    ));
    demo.watch_over(&mut left, taken_over(database, &owner, clock)).await?;
    let takeover = at.elapsed();
    screen.say(&format!("the other daemon has all functions after {:.1} s", takeover.as_secs_f64()));
    if !sending.is_empty() {
        demo.watch_over(&mut left, joined(&mut sending)).await?;
    }
    let enqueued =
        async { enqueuing.join_next().await.context("no transactions")?.context("the application panicked")? };
    let told = demo.watch_over(&mut left, enqueued).await?;
    let accepting = began.elapsed();
    screen.say("all events accepted; waiting for the rest to be delivered");
    let admin = left.ports.admin;
    let stored = demo.watch_over(&mut left, demo.settled(admin)).await?;
    let summary = demo.summary(&stored, accepting, began.elapsed());
    let leaked = demo
        .standin
        .ledger()
        .read(|book| told.rolled_back.iter().filter(|id| book.taken_ids().contains_key(id.as_str())).count() as u64);
    left.stop(clock).await?;
    let shared = SharedTold { committed: told.committed, rolled_back: told.rolled_back.len() as u64, leaked, takeover };
    Ok(Summary { shared: Some(shared), ..summary })
}

async fn start(
    database: &Database,
    standin: &Standin,
    name: &str,
    scratch: &Path,
    clock: &Clock,
) -> anyhow::Result<Daemon> {
    let settings = [
        "outbox.store=postgres".to_owned(),
        format!("outbox.postgres.url={}", database.url),
        format!("outbox.postgres.member={name}"),
        format!("outbox.postgres.lease={LEASE}"),
    ];
    let launch = Launch {
        program: std::env::current_exe().context("finding this binary")?,
        state_dir: scratch.join(name),
        lambda_url: standin.endpoint_url(),
        settings: settings.to_vec(),
    };
    Daemon::start(&launch, clock).await.with_context(|| format!("the {name} daemon"))
}

/// The name of the daemon that has the functions, once there is one.
async fn owner(database: &Database, clock: &Clock) -> anyhow::Result<String> {
    let asked = "SELECT daemon FROM sendoff.functions WHERE owned GROUP BY 1 ORDER BY count(*) DESC LIMIT 1";
    asked_until(database, clock, asked, |answer| answer.is_some()).await?.context("a daemon has no name")
}

/// Waits until no function belongs to the daemon that was killed.
async fn taken_over(database: &Database, killed: &str, clock: &Clock) -> anyhow::Result<()> {
    let asked = format!("SELECT count(*) FROM sendoff.functions WHERE daemon IS NULL OR daemon = '{killed}'");
    asked_until(database, clock, &asked, |answer| answer.as_deref() == Some("0")).await.map(drop)
}

/// Asks until the answer is the right one.
async fn asked_until(
    database: &Database,
    clock: &Clock,
    asked: &str,
    is_right: impl Fn(&Option<String>) -> bool,
) -> anyhow::Result<Option<String>> {
    let sql = Sql::open(&database.server).await.map_err(|why| anyhow!("{why}"))?;
    let began = clock.instant();
    loop {
        let rows = sql.ask(asked).await.map_err(|why| anyhow!("{why}"))?;
        let answer = rows.into_iter().flatten().flatten().next();
        if is_right(&answer) {
            return Ok(answer);
        }
        anyhow::ensure!(began.elapsed() < TAKEOVER_LIMIT, "no daemon takes the functions over");
        clock.sleep(TICK).await;
    }
}

/// The transactions of an application, for so many events of the client.
fn transactions(events: u32) -> u32 {
    (events / EVENTS_FOR_ONE).max(3 * ROLLED_BACK)
}

/// Those of them that commit.
pub(super) fn committed(events: u32) -> u64 {
    let transactions = transactions(events);
    u64::from(transactions - transactions / ROLLED_BACK)
}

/// An application with a database of its own, which is this one.
struct Application {
    sql: Sql,
    functions: Vec<String>,
    sender: Arc<Sender>,
}

/// What became of its transactions.
struct Enqueued {
    committed: u64,
    rolled_back: Vec<String>,
}

impl Application {
    async fn open(database: &Database, functions: Vec<String>, sender: Arc<Sender>) -> anyhow::Result<Self> {
        let sql = Sql::open(&database.server).await.map_err(|why| anyhow!("{why}"))?;
        let mut statements = "CREATE TABLE demo_order (id text PRIMARY KEY);".to_owned();
        statements.extend(functions.iter().map(|name| format!("SELECT sendoff.add_function('{name}');")));
        sql.ask(&statements).await.map_err(|why| anyhow!("making the functions known: {why}"))?;
        Ok(Self { sql, functions, sender })
    }

    /// Writes an order and enqueues its event, in one transaction each.
    async fn enqueue(self, transactions: u32) -> anyhow::Result<Enqueued> {
        let mut enqueued = Enqueued { committed: 0, rolled_back: Vec::new() };
        for (n, function) in (0..transactions).zip(self.functions.iter().cycle()) {
            let is_rolled_back = n % ROLLED_BACK == ROLLED_BACK - 1;
            let id = format!("transaction-{n:06}");
            let payload = json!({ ID_FIELD: id, "sent_by": "a transaction" });
            let end = if is_rolled_back { "ROLLBACK" } else { "COMMIT" };
            let statements = format!(
                "BEGIN; INSERT INTO demo_order VALUES ('{id}'); \
                 SELECT sendoff.enqueue('{function}', '{payload}'::text, key => '{id}'); {end}"
            );
            self.sql.ask(&statements).await.map_err(|why| anyhow!("a transaction: {why}"))?;
            if is_rolled_back {
                enqueued.rolled_back.push(id);
            } else {
                enqueued.committed += 1;
                self.sender.note_accepted(&Order { id, function: function.clone() });
            }
        }
        Ok(enqueued)
    }
}
