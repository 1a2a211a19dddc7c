//! Where what becomes of events is kept: beside the embedded store, or in the database that daemons share.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Store;
use crate::clock::{Clock, UnixMillis};
use crate::config::Config;
use crate::event::EventId;
use crate::metrics::Metrics;
use crate::outbox::{self, postgres};
use crate::past::{self, Archive, Bounds, End, Keep, Past};

/// The most records in one statement.
const PIECE: usize = 1_000;

/// Keeps what becomes of events from now on. Its task is not vital: without it the daemon works all the same.
pub(super) async fn keep(
    config: &Config,
    (store, past): (&Store, &Past),
    (clock, metrics): (&Clock, &Arc<Metrics>),
    tasks: &TaskTracker,
) {
    if let Some(archive) = archive(config, store, clock, metrics).await {
        past.keep_in(archive.clone());
        tasks.spawn(archive.run());
    }
}

/// What keeps the ends of a command's own hand-off. `tasks` writes them.
pub async fn alone(
    config: &Config,
    store: &Store,
    (clock, metrics): (&Clock, &Arc<Metrics>),
    tasks: &mut JoinSet<Result<(), outbox::Error>>,
) -> Past {
    let past = Past::new(0, CancellationToken::new());
    if let Some(archive) = archive(config, store, clock, metrics).await {
        past.keep_in(archive.clone());
        tasks.spawn(async move {
            archive.run().await;
            Ok(())
        });
    }
    past
}

/// Where what becomes of events is kept. `None` if it is not, or cannot be.
async fn archive(config: &Config, store: &Store, clock: &Clock, metrics: &Arc<Metrics>) -> Option<Archive> {
    let past::Settings { events: _, keep, bytes_max } = config.history;
    if keep.is_zero() {
        return None;
    }
    let bounds = Bounds { bytes_max, keep, reserve: config.outbox.disk_reserve };
    if let Store::Postgres(handle) = store {
        let shared = InDatabase { handle: handle.clone(), bounds };
        return Some(Archive::new(Arc::new(shared), clock.clone(), metrics.clone()));
    }
    let dir = config.state_dir.join("history");
    let opened = past::in_directory(&dir, bounds).await;
    let warn = |error: &io::Error| {
        let dir = dir.display();
        tracing::warn!(%dir, %error, "what becomes of events is remembered in memory only: its directory cannot be used");
    };
    let kept = opened.inspect_err(warn).ok()?;
    Some(Archive::new(kept, clock.clone(), metrics.clone()))
}

/// The tables that all daemons of an outbox share.
struct InDatabase {
    handle: postgres::Handle,
    bounds: Bounds,
}

impl Keep for InDatabase {
    fn place(&self) -> String {
        "the database".to_owned()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn append(&self, records: Arc<Vec<u8>>, _now: UnixMillis) -> BoxFuture<'_, io::Result<()>> {
        async move {
            // The latest record of an event counts, and a statement must have each event once.
            let latest: BTreeMap<EventId, &[u8]> = past::split(&records).collect();
            let all: Vec<_> = latest.into_iter().map(|(id, record)| (id, record.to_vec())).collect();
            for piece in all.chunks(PIECE) {
                self.handle.keep_ended(piece).await.map_err(io::Error::other)?;
            }
            Ok(())
        }
        .boxed()
    }

    fn find(&self, id: EventId, now: UnixMillis) -> BoxFuture<'_, io::Result<Option<End>>> {
        async move {
            let record = self.handle.find_ended(id).await.map_err(io::Error::other)?;
            let end = record.and_then(|record| past::read_end(&record));
            Ok(end.filter(|end| now.since(end.at) <= self.bounds.keep))
        }
        .boxed()
    }

    fn sweep(&self, _now: UnixMillis) -> BoxFuture<'_, io::Result<()>> {
        let Bounds { keep, bytes_max, .. } = self.bounds;
        async move { self.handle.forget_ended(keep, bytes_max).await.map_err(io::Error::other) }.boxed()
    }

    fn sync(&self) -> BoxFuture<'_, io::Result<()>> {
        async { Ok(()) }.boxed()
    }
}
