//! Hand-offs: what the ingest listener needs to take them, the stage that takes them from a queue, and the sender with its
//! targets.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::vital::Vital;
use super::{Error, Store};
use crate::admin::{Admin, Readiness};
use crate::aws::configured::Configured;
use crate::aws::sqs::Sqs;
use crate::clock::Clock;
use crate::config::Config;
use crate::event::name::Home;
use crate::handoff::peer::Peer;
use crate::handoff::protocol::Party;
use crate::handoff::queue::{Receive, ToQueue, receive};
use crate::handoff::send::{Progress, Sender, Summary, Until};
use crate::handoff::target::Target;
use crate::handoff::{Address, RESERVE, Settings};
use crate::ingest::door::Reception;
use crate::metrics::Metrics;
use crate::notify;
use crate::outbox::{self, Outbox};
use crate::past::Past;
use crate::shutdown::Stop;

/// How often a stop looks at the progress of its hand-off.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a hand-off may stand still before the service manager is no longer asked for more time.
const STILL_MAX: u32 = 5;

/// How much more time the service manager is asked for. systemd stops a unit that does not ask again within this time.
const EXTENSION: Duration = Duration::from_secs(10);

/// This process as a party of hand-offs.
pub fn party(clock: &Clock, home: &Home) -> Party {
    let instance = uuid::Builder::from_random_bytes(clock.random_bits().to_be_bytes()).into_uuid();
    Party { instance, home: home.clone() }
}

/// Whether an operator asks for a hand-off. Without a target nobody can.
pub(super) fn wanted(config: &Config, operator: &Admin<Store>) -> watch::Receiver<bool> {
    if config.handoff.to.is_empty() { watch::channel(false).1 } else { operator.hand_offs() }
}

/// How the ingest listener takes hand-offs.
pub(super) fn reception(config: &Config, party: &Party, readiness: &Readiness) -> Reception {
    let readiness = readiness.clone();
    let stays = Arc::new(move || readiness.is_ready());
    Reception { party: party.clone(), is_open: config.handoff.receive, stays }
}

/// Starts the stage that takes events from the queue, if one is configured.
pub(super) fn take_from_queue<O: Outbox>(
    config: &Config,
    (outbox, sqs, party, readiness): (&O, &Configured<Sqs>, &Party, &Readiness),
    (clock, metrics): (&Clock, &Arc<Metrics>),
    (vital, stages, stop): (&Vital, &TaskTracker, &Stop),
) -> Result<(), Error> {
    let Some(name) = config.handoff.receive_queue.clone() else { return Ok(()) };
    let queue = sqs.clone().and_then(|sqs| sqs.patient_queue(&name, receive::VISIBILITY, receive::LONG_POLL))?;
    let settings = receive::Settings { queue: name.clone(), home: party.home.clone(), limits: config.outbox.limits };
    let (readiness, sqs, stop) = (readiness.clone(), sqs.clone(), stop.clone());
    let open = move || readiness.is_ready();
    let stage = Receive::new(outbox.clone(), queue, open, settings, clock.clone(), metrics.clone());
    vital.spawn(stages, "the hand-off queue", stop.leasing.clone(), async move {
        tokio::select! {
            biased;
            () = stop.leasing.cancelled() => {}
            () = receive::look(&sqs, &name) => {}
        }
        stage.run(stop).await
    });
    Ok(())
}

/// The targets, in the order in which they are tried.
pub fn targets(
    settings: &Settings,
    party: &Party,
    sqs: &Configured<Sqs>,
    clock: &Clock,
) -> Result<Vec<Arc<dyn Target>>, Error> {
    let target = |address: &Address| -> Result<Arc<dyn Target>, Error> {
        match address {
            Address::Peer(url) => {
                let (token_file, ca) = (settings.token_file.clone(), settings.ca.clone());
                Ok(Arc::new(Peer::new(url, party.clone(), token_file, ca, clock.clone())?))
            }
            Address::Queue(queue) => Ok(Arc::new(ToQueue::new(sqs.clone(), queue.clone(), party.home.clone()))),
        }
    };
    settings.to.iter().map(target).collect()
}

/// The sender of a running daemon.
pub(super) struct Handing {
    sender: Sender<Store>,
    on_stop: bool,
    within: Duration,
    /// Whether an operator asks for a hand-off.
    wanted: watch::Receiver<bool>,
    clock: Clock,
}

impl Handing {
    /// `None` without a target.
    pub(super) fn new(
        config: &Config,
        (party, sqs): (&Party, &Configured<Sqs>),
        (outbox, past): (&Store, &Past),
        clock: &Clock,
        metrics: &Arc<Metrics>,
        wanted: watch::Receiver<bool>,
    ) -> Result<Option<Self>, Error> {
        let settings = &config.handoff;
        let targets = targets(settings, party, sqs, clock)?;
        if targets.is_empty() {
            return Ok(None);
        }
        let sender = Sender::new(outbox.clone(), targets, settings.keys, clock.clone(), Arc::clone(metrics));
        let sender = sender.noting(past.clone());
        let (on_stop, within) = (settings.on_stop, settings.within);
        Ok(Some(Self { sender, on_stop, within, wanted, clock: clock.clone() }))
    }

    /// How long a stop with a hand-off may take. `None` if a stop now hands nothing over.
    pub(super) fn within(&self) -> Option<Duration> {
        (self.on_stop || *self.wanted.borrow()).then_some(self.within)
    }

    /// Hands over beside `draining`, which ends the attempts in flight, and after it until nothing is left or the time is
    /// over. Returns what both returned. The summary is `None` if the outbox has failed.
    pub(super) async fn beside<T>(&self, within: Duration, draining: impl Future<Output = T>) -> (T, Option<Summary>) {
        let (until, progress) = (Until::default(), Progress::default());
        let last = until.last.clone();
        let draining = async {
            let drained = draining.await;
            last.cancel();
            drained
        };
        let handing = async {
            let run = self.sender.run(until.clone(), progress.clone());
            tokio::pin!(run);
            let (ends, mut still, mut seen) = (self.clock.steady().plus(within), 0, 0);
            loop {
                tokio::select! {
                    biased;
                    summary = &mut run => return summary.ok(),
                    () = self.clock.sleep(LOOK_EVERY.min(ends.since(self.clock.steady()))) => {}
                }
                let moved = progress.events() + progress.keys();
                still = if moved > seen { 0 } else { still + 1 };
                seen = moved;
                if self.clock.steady() >= ends {
                    until.over.cancel();
                    return run.await.ok();
                }
                if still < STILL_MAX {
                    notify::prolong(EXTENSION);
                }
            }
        };
        let (drained, summary) = tokio::join!(draining, handing);
        summary.iter().for_each(say);
        (drained, summary)
    }
}

/// The task that hands over while an operator asks for it, until `stop`.
pub(super) fn on_request(
    handing: Option<&Handing>,
    stop: CancellationToken,
) -> impl Future<Output = Result<(), outbox::Error>> + Send + use<> {
    let handing = handing.map(|handing| (handing.sender.clone(), handing.wanted.clone()));
    async move {
        let Some((sender, mut wanted)) = handing else {
            stop.cancelled().await;
            return Ok(());
        };
        while is_wanted(&mut wanted, true, &stop).await {
            tracing::info!(to = sender.names(), "handing events over on request");
            let until = Until { over: stop.child_token(), ..Until::default() };
            let (over, mut ends) = (until.over.clone(), wanted.clone());
            let ending = async {
                if is_wanted(&mut ends, false, &stop).await {
                    over.cancel();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                summary = sender.run(until, Progress::default()) => say(&summary?),
                () = ending => {}
            }
            // A run without any hope ends by itself. It begins again once it is asked for again.
            if !is_wanted(&mut wanted, false, &stop).await {
                break;
            }
        }
        Ok(())
    }
}

/// Waits until a hand-off is wanted, or no longer. Returns false if told to stop meanwhile.
async fn is_wanted(wanted: &mut watch::Receiver<bool>, what: bool, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        found = async { wanted.wait_for(|wanted| *wanted == what).await.is_ok() } => {
            if !found {
                // Nobody can ask any more.
                stop.cancelled().await;
            }
            found
        }
    }
}

/// How long attempts in flight may take in a stop with a hand-off, so that their events can follow.
pub(super) fn grace(grace: Duration, within: Duration) -> Duration {
    grace.min(within.saturating_sub(RESERVE))
}

/// Logs how a hand-off ended. Nobody scrapes a daemon that has stopped, so the log has the numbers.
pub(super) fn say(summary: &Summary) {
    let Summary { events, keys, left, refused, functions, why } = summary;
    if *left == 0 {
        tracing::info!(events, keys, left, "handed over");
    } else {
        let why = why.as_deref().unwrap_or("the time was over");
        tracing::error!(
            events,
            keys,
            left,
            refused,
            functions,
            why,
            "handed over, but some events are left on this disk"
        );
    }
}
