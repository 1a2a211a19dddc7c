//! The embedded engine: the outbox on the local disk. A journal stores every commit, and an index (sled) finds its parts.
//!
//! `writer` has the thread that owns the store, and its handle. `upkeep` does the maintenance. `engine` has the rules over
//! any key-value store (`kv`), `journaled` is that store, and `store` manages the state directory.

use std::path::Path;
use std::sync::Arc;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::outbox::{Error, Limits, OpenError, Opened};
use engine::Engine;
use store::place::{Anchor, exposure, room};
use upkeep::Upkeep;
use writer::{Handle, Writer};

pub mod writer;

pub mod upkeep;

pub mod engine;

pub mod kv;

pub mod keys;

pub mod record;

pub mod journaled;

pub mod journal;

pub mod sled;

pub mod store;

pub mod repair;

pub mod memory;

#[cfg(test)]
mod conformance;

/// The limits of a store, and the settings of this engine.
#[derive(Debug, Clone)]
pub struct Settings {
    pub limits: Limits,
    /// Bytes of free disk space that appends must leave, so that settling stays possible.
    pub disk_reserve: u64,
    /// The size of a journal segment in bytes. A start reads about this much, and about this much is in memory for the index.
    pub segment_bytes: u64,
    /// The memory for the index's page cache, in bytes.
    pub cache: u64,
}

/// Refuses a store whose events are in another one by now.
fn refuse_imported(state_dir: &Path, shown: &str) -> Result<(), OpenError> {
    let unusable = |why: String| OpenError::Io { doing: "using", path: shown.to_owned(), why };
    match store::imported(state_dir)
        .map_err(|error| unusable(format!("its file `imported` cannot be read: {error}")))?
    {
        None => Ok(()),
        Some(into) => Err(unusable(format!(
            "its events were imported into {into}, and a daemon would deliver them a second time. Set outbox.store = \"postgres\", \
             or use another state directory. If the import does not count, remove the file `imported`"
        ))),
    }
}

/// Opens the store in a state directory, which may take long, and starts its thread.
pub async fn open(
    state_dir: &Path,
    settings: Settings,
    clock: Clock,
    metrics: Arc<Metrics>,
) -> Result<Opened<Handle>, OpenError> {
    let (dir, path, limits) = (state_dir.to_owned(), state_dir.display().to_string(), settings.limits);
    let disk_reserve = settings.disk_reserve;
    let (its_clock, shown) = (clock.clone(), path.clone());
    let opened = tokio::task::spawn_blocking(move || -> Result<_, OpenError> {
        let store::Opened { store, salvaged } = store::open(&dir, &settings)?;
        // With the lock held: an import may have been under way until now.
        refuse_imported(&dir, &shown)?;
        let lost = salvaged.map_or(0, |salvaged| salvaged.report.unreadable_events);
        metrics.outbox_unreadable_events.set(i64::try_from(lost).unwrap_or(i64::MAX));
        metrics.outbox_damaged_stores.set(i64::try_from(store::kept(&dir).len()).unwrap_or(i64::MAX));
        let engine = Engine::open(store, settings, its_clock.clone(), &shown)?;
        Ok(Writer::new(engine, its_clock, metrics))
    });
    let panicked = |error| OpenError::Damaged {
        path: path.clone(),
        why: format!("the engine panicked while opening it: {error}"),
    };
    let (writer, outbox) = opened.await.map_err(panicked)??;
    let room = room(state_dir, limits.bytes_max, disk_reserve);
    for remark in exposure(state_dir).into_iter().chain(room) {
        tracing::warn!(state_dir = path, remedy = remark.remedy, "{}", remark.what);
    }
    let thread = std::thread::Builder::new().name("outbox".into()).spawn(move || writer.run());
    let thread =
        thread.map_err(|error| OpenError::Io { doing: "starting the thread of", path, why: error.to_string() })?;
    let anchor = Anchor::of(state_dir).map_err(|error| OpenError::Io {
        doing: "looking at the lock of",
        path: state_dir.display().to_string(),
        why: error.to_string(),
    })?;
    let (upkeep, closing) = (Upkeep::new(outbox.clone(), clock, &limits).at(anchor), outbox.clone());
    let close = async move {
        closing.close().await;
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        let panicked = || Error::Poisoned { why: "the outbox's thread panicked".to_owned() };
        joined.ok().and_then(Result::ok).ok_or_else(panicked)
    };
    Ok(Opened { outbox, upkeep: Box::pin(upkeep.run()), closing: Box::pin(close) })
}
