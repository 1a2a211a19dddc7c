//! The state that all tasks of the engine share.
//!
//! Holds: counts follow the database. A reading of them excludes settlements and operators' changes (`reading`), and
//! arrivals are counted by their transaction, so nothing counts twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, RwLock, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::base::{Member, Position, Trouble};
use super::commands::ASKING_MAX;
use super::lanes::Lanes;
use super::live::{Link, READING_MAX, Reach, STATEMENT_MAX};
use super::overview::Others;
use super::{Settings, appending, settling};
use crate::clock::{Clock, UnixMillis};
use crate::metrics::Metrics;
use crate::outbox::operator::Informant;
use crate::outbox::{Error, LaneId, LaneNews, LaneView};

/// How often a daemon shows that it lives.
pub(super) const BEAT_EVERY: Duration = Duration::from_secs(2);

/// No attempt begins later than a lease, less this, after the last beat that succeeded was sent.
const SAFETY: Duration = Duration::from_secs(2);

/// When to ask again while the database is away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The most lanes that one piece of a reading counts.
const LANES_PIECE: usize = 500;

pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) tasks: TaskTracker,
    pub(super) append: [Link; 2],
    pub(super) settle: Link,
    pub(super) read: Link,
    pub(super) beat: Link,
    pub(super) reach: Arc<Reach>,
    state: Mutex<State>,
    told: watch::Sender<Versions>,
    /// Where the next news begin. `None` without lanes. One reader at a time.
    pub(super) news: tokio::sync::Mutex<Option<Position>>,
    /// Held for writing while counts are read, and for reading by whoever changes them.
    pub(super) reading: RwLock<()>,
    /// One lease at a time.
    pub(super) leasing: tokio::sync::Mutex<()>,
    /// Held by whoever stores near a limit.
    pub(super) storing: tokio::sync::Mutex<()>,
    /// How often own events were stored, and up to which of these times the news have told of them.
    rung: AtomicU64,
    heard: AtomicU64,
    /// Another daemon has the lanes: what was told before counts no longer.
    void: AtomicBool,
    pub(super) bell: Notify,
    /// Rings when another daemon asks this one something.
    pub(super) asked: Notify,
    /// Turns of questions about what other daemons have in flight.
    pub(super) asking: tokio::sync::Semaphore,
    /// Answers what other daemons ask the daemon around this outbox.
    pub(super) informant: OnceLock<Informant>,
    pub(super) told_by_others: tokio::sync::Mutex<Others>,
    pub(super) appends: mpsc::Sender<appending::Queued>,
    pub(super) settles: mpsc::Sender<settling::Queued>,
    /// The memory that queued appends may still take, in KiB.
    pub(super) queue: Arc<tokio::sync::Semaphore>,
    lost: watch::Sender<Option<String>>,
    pub(super) closed: CancellationToken,
}

/// What changes.
pub(super) struct State {
    /// This process, as long as it is not taken for dead.
    pub(super) member: i64,
    pub(super) lanes: Lanes,
    /// Until when attempts may begin.
    pub(super) safe_until: Option<Instant>,
    /// The living, as of the last beat.
    pub(super) members: Vec<Member>,
    /// The beats of the living, and since when each has stood still as seen from here.
    pub(super) moved: BTreeMap<i64, (i64, Instant)>,
    /// Lanes that nobody had at the last beat.
    pub(super) unowned: u64,
    /// This daemon stops: it gives its lanes back, and takes none.
    pub(super) draining: bool,
    /// What of the news this member has been told.
    pub(super) news_xid: Option<i64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Versions {
    any: u64,
    buried: u64,
}

/// The tasks that write, before they run.
pub(super) struct Queues {
    appends: mpsc::Receiver<appending::Queued>,
    settles: mpsc::Receiver<settling::Queued>,
}

impl Queues {
    pub(super) fn begin(self, shared: &Arc<Shared>) {
        let appends = Arc::new(tokio::sync::Mutex::new(self.appends));
        for nth in 0..shared.append.len() {
            let run = appending::run(shared.clone(), nth, appends.clone());
            shared.tasks.spawn_on(run, &shared.runtime);
        }
        shared.tasks.spawn_on(settling::run(shared.clone(), self.settles), &shared.runtime);
    }
}

impl Shared {
    pub(super) fn new(settings: Settings, clock: Clock, metrics: Arc<Metrics>) -> (Arc<Self>, Queues) {
        let reach = Arc::new(Reach::default());
        let link = |statement_max| Link::new(settings.server.clone(), statement_max, clock.clone(), reach.clone());
        let (appends, appends_queued) = mpsc::channel(appending::QUEUE_MAX);
        let (settles, settles_queued) = mpsc::channel(settling::QUEUE_MAX);
        let state = State {
            member: member_id(&clock),
            lanes: Lanes::new(settings.limits.functions_max),
            safe_until: None,
            members: Vec::new(),
            moved: BTreeMap::new(),
            unowned: 0,
            draining: false,
            news_xid: None,
        };
        let shared = Self {
            append: [link(STATEMENT_MAX), link(STATEMENT_MAX)],
            settle: link(STATEMENT_MAX),
            read: link(READING_MAX),
            beat: link(STATEMENT_MAX),
            reach,
            runtime: tokio::runtime::Handle::current(),
            tasks: TaskTracker::new(),
            state: Mutex::new(state),
            told: watch::Sender::default(),
            news: tokio::sync::Mutex::default(),
            reading: RwLock::default(),
            leasing: tokio::sync::Mutex::default(),
            storing: tokio::sync::Mutex::default(),
            rung: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            void: AtomicBool::new(false),
            bell: Notify::new(),
            asked: Notify::new(),
            asking: tokio::sync::Semaphore::new(ASKING_MAX),
            informant: OnceLock::new(),
            told_by_others: tokio::sync::Mutex::default(),
            appends,
            settles,
            queue: Arc::new(tokio::sync::Semaphore::new(appending::QUEUE_KIB_MAX)),
            lost: watch::Sender::default(),
            closed: CancellationToken::new(),
            settings,
            clock,
            metrics,
        };
        (Arc::new(shared), Queues { appends: appends_queued, settles: settles_queued })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present time. In tests, that of the last caller: the engine's runtime does not follow their clock.
    pub(super) fn now(&self) -> UnixMillis {
        #[cfg(test)]
        {
            let (pretended, ahead) = (&self.settings.server.pretended, &self.settings.server.ahead);
            let pretended = pretended.load(Ordering::Relaxed);
            if pretended > 0 {
                return UnixMillis(pretended.saturating_sub(ahead.load(Ordering::Relaxed)));
            }
        }
        self.clock.now()
    }

    pub(super) fn member(&self) -> i64 {
        self.state().member
    }

    /// Whether this daemon has lanes, retired ones included.
    pub(super) fn is_owner(&self) -> bool {
        self.state().news_xid.is_some()
    }

    /// Whether another daemon has lanes and keeps them.
    pub(super) fn is_owned_elsewhere(&self) -> bool {
        let state = self.state();
        state.members.iter().any(|member| member.lanes > 0 && !member.draining && member.id != state.member)
    }

    /// Whether this daemon may take lanes that nobody has.
    pub(super) fn may_claim(&self) -> bool {
        !self.state().draining && !self.is_owned_elsewhere()
    }

    /// The other living daemons, as of the last beat.
    pub(super) fn others(&self) -> Vec<Member> {
        let state = self.state();
        state.members.iter().filter(|member| member.id != state.member).cloned().collect()
    }

    /// Whether this daemon is the one of all that tells what belongs to the whole database.
    pub(super) fn is_first(&self) -> bool {
        let state = self.state();
        state.members.iter().all(|member| member.id >= state.member)
    }

    /// Wakes whoever waits for changes.
    pub(super) fn tell(&self) {
        let versions = {
            let state = self.state();
            Versions { any: state.lanes.version(), buried: state.lanes.buried_version() }
        };
        self.told.send_if_modified(|told| {
            let is_new = *told != versions && told.any != u64::MAX;
            if is_new {
                *told = versions;
            }
            is_new
        });
    }

    /// Returns once there is a version after `since`.
    pub(super) async fn changed(&self, since: u64, buried: bool) {
        let mut told = self.told.subscribe();
        loop {
            let versions = *told.borrow_and_update();
            if (if buried { versions.buried } else { versions.any }) > since {
                return;
            }
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Records that this process has lost the store.
    pub(super) fn poison(&self, why: String) {
        let is_new = self.lost.send_if_modified(|lost| {
            let is_new = lost.is_none();
            lost.get_or_insert(why);
            is_new
        });
        if is_new {
            tracing::error!(why = self.poisoned(), "the outbox is lost for this daemon: a restart is needed");
            self.metrics.outbox_poisoned.set(1);
            self.told.send_replace(Versions { any: u64::MAX, buried: u64::MAX });
        }
    }

    pub(super) fn poisoned(&self) -> Option<String> {
        self.lost.borrow().clone()
    }

    pub(super) async fn until_poisoned(&self) -> String {
        let mut lost = self.lost.subscribe();
        loop {
            if let Some(why) = lost.borrow_and_update().clone() {
                return why;
            }
            if lost.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What callers are told of a trouble.
    pub(super) fn error(&self, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Poisoned(why) => {
                self.poison(why.clone());
                Error::Poisoned { why }
            }
            Trouble::Fenced(_) => {
                self.fenced();
                away(trouble.to_string())
            }
            Trouble::Refused(_) => {
                tracing::error!(%trouble, "the database refused a statement: please report this bug");
                away(trouble.to_string())
            }
            Trouble::Away(_) | Trouble::Replaced | Trouble::Locked(_) | Trouble::DiskFull(_) => {
                away(trouble.to_string())
            }
        }
    }

    /// Whether a call may begin.
    pub(super) fn is_usable(&self) -> Result<(), Error> {
        match self.poisoned() {
            Some(why) => Err(Error::Poisoned { why }),
            None if self.closed.is_cancelled() => Err(Error::Closed),
            None => Ok(()),
        }
    }

    /// Another daemon has the lanes. What is in flight is settled by nobody here.
    pub(super) fn fenced(&self) {
        {
            let mut state = self.state();
            state.lanes.lose_all();
            state.safe_until = None;
            state.news_xid = None;
        }
        self.void.store(true, Ordering::Release);
        self.tell();
        self.bell.notify_one();
    }

    /// Events were stored: somebody should ask for the news.
    pub(super) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::AcqRel);
        self.bell.notify_one();
    }

    /// Whether attempts may begin now: no other daemon can have taken this one for dead.
    pub(super) fn may_begin(&self) -> bool {
        self.state().safe_until.is_some_and(|until| self.clock.instant() < until)
    }

    /// Whether no beat has succeeded for so long that attempts must not begin.
    pub(super) fn is_overdue(&self) -> bool {
        self.state().safe_until.is_some_and(|until| self.clock.instant() >= until)
    }

    pub(super) fn beaten(&self, sent: Instant) {
        self.state().safe_until = Some(sent + self.settings.lease.saturating_sub(SAFETY));
    }

    /// Hears the news if own events were stored since the last time.
    pub(super) async fn catch_up(&self) -> Result<(), Trouble> {
        let rung = self.rung.load(Ordering::Acquire);
        if self.heard.load(Ordering::Acquire) >= rung {
            return Ok(());
        }
        let mut position = self.news.lock().await;
        // Somebody may have heard of them meanwhile.
        if self.heard.load(Ordering::Acquire) >= rung {
            return Ok(());
        }
        self.hear_at(&mut position).await.map(drop)
    }

    /// Asks who has arrived. Returns whether anybody has.
    pub(super) async fn hear(&self) -> Result<bool, Trouble> {
        self.recount().await?;
        let mut position = self.news.lock().await;
        self.hear_at(&mut position).await
    }

    async fn hear_at(&self, position: &mut Option<Position>) -> Result<bool, Trouble> {
        if self.void.swap(false, Ordering::AcqRel) {
            *position = None;
        }
        let rung = self.rung.load(Ordering::Acquire);
        let any = self.hear_now(position, rung).await?;
        self.heard.fetch_max(rung, Ordering::AcqRel);
        Ok(any)
    }

    async fn hear_now(&self, position: &mut Option<Position>, rung: u64) -> Result<bool, Trouble> {
        let is_rung = rung > self.heard.load(Ordering::Acquire);
        let heard = match position.as_ref() {
            Some(from) => self.hear_from(from).await?,
            // Nothing is ours yet, so an own event may be in a lane that nobody has.
            None if is_rung && self.may_claim() => {
                Heard { position: None, unknown: Vec::new(), any: false, strange: true }
            }
            None => {
                let asked = self.read.is_asked(self.member()).await?;
                if asked {
                    self.asked.notify_one();
                }
                return Ok(asked);
            }
        };
        if heard.strange {
            // Another server, or one that has lost commits: nothing that was told before counts.
            self.read_all(position).await?;
            return Ok(true);
        }
        if let Some(heard) = heard.position {
            self.state().news_xid = Some(heard.xmin);
            *position = Some(heard);
        }
        if !heard.unknown.is_empty() {
            self.adopt(&heard.unknown).await?;
        }
        self.tell();
        Ok(heard.any)
    }

    async fn hear_from(&self, from: &Position) -> Result<Heard, Trouble> {
        let news = self.read.news(self.member(), from).await?;
        if news.asked {
            self.asked.notify_one();
        }
        let strange = news.position.incarnation != from.incarnation || news.position.xmax < from.xmax;
        let mut unknown = Vec::new();
        if !strange {
            let _reading = self.reading.read().await;
            let mut state = self.state();
            for arrival in &news.arrivals {
                if !state.lanes.arrived(arrival) {
                    unknown.push(arrival.lane);
                }
            }
        }
        let any = news.asked || !news.arrivals.is_empty();
        Ok(Heard { position: Some(news.position), unknown, any, strange })
    }

    /// Takes over lanes that events have come for, if nobody has them, and reads them.
    async fn adopt(&self, lanes: &[i64]) -> Result<(), Trouble> {
        let member = self.member();
        if self.state().draining {
            return Ok(());
        }
        self.read.claim(member).await?;
        self.read.retire(member, lanes, false).await?;
        let _reading = self.reading.write().await;
        self.read_some(lanes).await
    }

    /// Takes over what nobody has, beside lanes that are read already. Returns how many there were.
    pub(super) async fn claim_more(&self) -> Result<usize, Trouble> {
        let lanes = self.read.claim(self.member()).await?;
        for piece in lanes.chunks(LANES_PIECE) {
            let _reading = self.reading.write().await;
            self.read_some(piece).await?;
        }
        self.tell();
        Ok(lanes.len())
    }

    /// Reads lanes anew whose counts are in doubt.
    pub(super) async fn recount(&self) -> Result<(), Trouble> {
        if self.state().lanes.doubted().is_empty() {
            return Ok(());
        }
        // Nothing is settled from here on, so no further doubt arises before they are read.
        let _reading = self.reading.write().await;
        let lanes: Vec<i64> = self.state().lanes.doubted().iter().copied().take(LANES_PIECE).collect();
        self.read_some(&lanes).await?;
        self.state().lanes.counted(&lanes);
        self.tell();
        Ok(())
    }

    /// Reads these lanes. The caller holds `reading` for writing.
    async fn read_some(&self, lanes: &[i64]) -> Result<(), Trouble> {
        let rows = self.read.lane_views(self.member(), Some(lanes), None, lanes.len()).await?;
        let now = self.now();
        let mut state = self.state();
        rows.into_iter().for_each(|row| state.lanes.read(row, now));
        Ok(())
    }

    /// Claims what nobody has, and reads all own lanes anew.
    pub(super) async fn claim_all(&self) -> Result<(), Trouble> {
        let mut position = self.news.lock().await;
        self.read_all(&mut position).await
    }

    async fn read_all(&self, position: &mut Option<Position>) -> Result<(), Trouble> {
        let member = self.member();
        self.read.claim(member).await?;
        let _reading = self.reading.write().await;
        // Before the reading: whatever commits later is told, and counted by its transaction.
        let begin = self.read.position().await?;
        let (mut rows, mut after) = (Vec::new(), None);
        loop {
            let piece = self.read.lane_views(member, None, after, LANES_PIECE).await?;
            after = piece.last().map(|row| row.id);
            let is_last = piece.len() < LANES_PIECE;
            rows.extend(piece);
            if is_last {
                break;
            }
        }
        rows.sort_by(|a, b| a.function.cmp(&b.function));
        let now = self.now();
        {
            let mut state = self.state();
            let gone: Vec<LaneId> = {
                let kept: std::collections::BTreeSet<i64> = rows.iter().map(|row| row.id).collect();
                let lost = |(number, _): &(i64, _)| !kept.contains(number);
                state
                    .lanes
                    .names()
                    .iter()
                    .filter(|name| lost(name))
                    .filter_map(|(n, _)| state.lanes.of_number(*n))
                    .collect()
            };
            gone.into_iter().for_each(|id| state.lanes.lose(id));
            if rows.is_empty() {
                state.news_xid = None;
                *position = None;
            } else {
                state.news_xid = Some(begin.xmin);
                *position = Some(begin);
            }
            rows.into_iter().for_each(|row| state.lanes.read(row, now));
        }
        self.tell();
        Ok(())
    }

    /// The lanes that changed after `since`, with all that must be asked for.
    pub(super) async fn news_since(&self, since: u64) -> Result<LaneNews, Trouble> {
        let (asked, busy, change, version, changed, retired, crowded) = {
            let state = self.state();
            let (changed, retired) = state.lanes.changed(since);
            let (asked, busy) = state.lanes.unknown(&changed);
            let lanes = &state.lanes;
            (asked, busy, lanes.change(), lanes.version(), changed, retired, lanes.crowded())
        };
        if !asked.is_empty() {
            let peeks = self.read.peek(&asked, &busy).await?;
            let mut state = self.state();
            for (number, peek) in peeks {
                if let Some((_, unknown)) = asked.iter().find(|(lane, _)| *lane == number) {
                    state.lanes.answered(number, *unknown, peek, change);
                }
            }
        }
        let state = self.state();
        let lanes = changed.into_iter().filter_map(|id| state.lanes.view(id)).collect();
        Ok(LaneNews { version, lanes, crowded, retired })
    }

    pub(super) async fn view_of(&self, id: LaneId) -> Result<Option<LaneView>, Trouble> {
        let (asked, busy, change) = {
            let state = self.state();
            let (asked, busy) = state.lanes.unknown(&[id]);
            (asked, busy, state.lanes.change())
        };
        if let [(number, unknown)] = asked[..] {
            let peeks = self.read.peek(&asked, &busy).await?;
            let mut state = self.state();
            peeks.into_iter().for_each(|(_, peek)| state.lanes.answered(number, unknown, peek, change));
        }
        Ok(self.state().lanes.view(id))
    }

    /// Retires lanes that have been empty for long.
    pub(super) async fn retire_idle(&self, now: UnixMillis) -> Result<(), Trouble> {
        let idle = self.state().lanes.long_idle(now);
        self.retire(idle).await
    }

    /// Makes room for one more function. Returns whether there is some now.
    pub(super) async fn make_way(&self, now: UnixMillis) -> Result<bool, Trouble> {
        let Some(lane) = self.state().lanes.may_give_way(now) else { return Ok(false) };
        self.retire(vec![lane]).await?;
        Ok(self.state().lanes.of_number(lane.1).is_none())
    }

    async fn retire(&self, lanes: Vec<(LaneId, i64)>) -> Result<(), Trouble> {
        if lanes.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i64> = lanes.iter().map(|(_, number)| *number).collect();
        let retired = self.read.retire(self.member(), &numbers, true).await?;
        {
            let mut state = self.state();
            for (id, _) in lanes.into_iter().filter(|(_, number)| retired.contains(number)) {
                state.lanes.lose(id);
            }
        }
        self.tell();
        Ok(())
    }

    /// Completes what was asked for, lets all lanes go, and stops.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let (member, left) = (self.member(), self.read.leave(self.member()).await);
        if let Err(trouble) = left {
            tracing::warn!(member, %trouble, "leaving without telling the database: another daemon takes the lanes over after a lease");
        }
    }
}

struct Heard {
    position: Option<Position>,
    /// Lanes that events have come for and that are not known here.
    unknown: Vec<i64>,
    any: bool,
    /// Not the server of before.
    strange: bool,
}

/// A number for this process that no other one has, also after a failover that loses commits.
pub(super) fn member_id(clock: &Clock) -> i64 {
    let bits = crate::clock::secret::<8>().map_or_else(|_| clock.random_bits() as u64, u64::from_be_bytes);
    i64::try_from(bits >> 1).unwrap_or(1).max(1)
}

pub(super) fn away(why: String) -> Error {
    Error::Away { why, retry_after: RETRY_AFTER }
}
