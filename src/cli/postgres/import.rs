//! `sendoff postgres import`: moves the events of a local outbox that no daemon uses into the shared one.
//!
//! Holds: the local store is only read, under its lock. A note in its directory keeps daemons out, and is durable before the
//! first event is imported. So no event is delivered from both stores, and an import that was cut off can be repeated.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cli::{Exit, Failure, print};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon;
use crate::event::EventId;
use crate::outbox::embedded::engine::{Engine, Part};
use crate::outbox::embedded::store::{self, Store};
use crate::outbox::handoff::{Adopted, Handed};
use crate::outbox::operator::{ListWant, PAGE_MAX};
use crate::outbox::postgres::Importer;
use crate::outbox::{OpenError, Place};
use crate::plural::{agree, count};
use crate::visible::visible;

/// The most events and bytes in memory.
const EVENTS_MAX: usize = 1_000;
const BYTES_MAX: usize = 16 << 20;

/// The most ids of unreadable events that are shown.
const SHOWN_MAX: usize = 10;

/// What an import did.
#[derive(Debug, Default)]
struct Summary {
    functions: u64,
    paused: u64,
    /// Imported events by their state.
    imported: BTreeMap<Place, u64>,
    redriven: u64,
    /// Events that an earlier import has brought.
    there: u64,
    /// Events that repeat one that is stored there.
    repeats: u64,
    keys: u64,
    keys_known: u64,
    unreadable: Vec<EventId>,
}

pub(super) async fn run(config: Config) -> Result<(), Failure> {
    let (clock, dir) = (Clock::system(), config.state_dir.clone());
    if !store::is_in(&dir) {
        return Err(Failure::saying(Exit::Failed, format!("there is no local outbox in {}", dir.display())));
    }
    let settings = daemon::shared_settings(&config, &clock).await;
    let settings = settings.map_err(|error| Failure::new(crate::cli::serve::exit_of(&error), error))?;
    let into = settings.server.shown();
    let mut engine = open(&config, &dir, &clock)?;
    refuse_another_outbox(&dir, &into)?;
    let importer = Importer::begin(&settings, &clock).await.map_err(|error| Failure::new(Exit::Unavailable, error))?;
    store::note_import(&dir, &into).map_err(|error| {
        let why = anyhow::Error::new(error).context(format!("writing the file `imported` in {}", dir.display()));
        Failure::new(Exit::Unavailable, why)
    })?;
    let moved = bring_all(&mut engine, &importer).await;
    let left = importer.end().await;
    let summary = moved.map_err(|why| {
        let why = visible(&why);
        Failure::saying(
            Exit::Unavailable,
            format!("the import is not complete: {why}. Run the command again: it goes on where it stopped, and brings nothing twice"),
        )
    })?;
    left.map_err(|why| Failure::saying(Exit::Unavailable, visible(&why)))?;
    print(&summary.in_words(&into, &dir))?;
    if summary.unreadable.is_empty() {
        return Ok(());
    }
    let unreadable = agree(summary.unreadable.len() as u64, "event cannot be read", "events cannot be read");
    Err(Failure::saying(
        Exit::Failed,
        format!("{unreadable} and were not imported: run `sendoff fsck` on {}", dir.display()),
    ))
}

/// Opens the local store, which excludes daemons.
fn open(config: &Config, dir: &Path, clock: &Clock) -> Result<Engine<Store>, Failure> {
    let shown = dir.display().to_string();
    let opened = store::open(dir, &config.outbox).and_then(|opened| {
        let engine = Engine::open(opened.store, config.outbox.clone(), clock.clone(), &shown)?;
        Ok((engine, opened.salvaged))
    });
    match opened {
        Ok((engine, salvaged)) => {
            if let Some(salvage) = salvaged {
                crate::telemetry::say(&format!(
                    "the local outbox was damaged; what can be read of it is imported, and the rest is kept as {}",
                    salvage.kept.display()
                ));
            }
            Ok(engine)
        }
        Err(OpenError::Locked { path, .. }) => {
            Err(Failure::saying(Exit::Unavailable, format!("a daemon uses {path}: stop it first")))
        }
        Err(error @ OpenError::Io { .. }) => Err(Failure::new(Exit::Unavailable, error)),
        Err(error @ (OpenError::Newer { .. } | OpenError::Damaged { .. })) => Err(Failure::new(Exit::Internal, error)),
    }
}

/// Two databases would both deliver what an earlier import has brought into one of them.
fn refuse_another_outbox(dir: &Path, into: &str) -> Result<(), Failure> {
    let noted = store::imported(dir).map_err(|error| Failure::new(Exit::Unavailable, error))?;
    match noted.filter(|known| known != into) {
        None => Ok(()),
        Some(known) => Err(Failure::saying(
            Exit::Failed,
            format!(
                "the events of {} were imported into {known}: a second outbox would deliver them again. If that import does not \
                 count, remove the file `imported` there",
                dir.display()
            ),
        )),
    }
}

/// Brings paused functions, keys and events. In this order: no event of a paused function may be attempted meanwhile, and a
/// repeat that a daemon gets meanwhile should be recognised.
async fn bring_all(engine: &mut Engine<Store>, importer: &Importer) -> Result<Summary, String> {
    let mut summary = Summary::default();
    let lanes = engine.lanes(0).map_err(|failed| failed.to_string())?.lanes;
    summary.functions = lanes.len() as u64;
    for lane in lanes.iter().filter(|lane| lane.paused) {
        importer.pause(&lane.function).await?;
        summary.paused += 1;
    }
    let mut after = None;
    loop {
        let page = engine.remembered(after).map_err(|failed| failed.to_string())?;
        let new = importer.learn(&page.keys).await?;
        summary.keys += new;
        summary.keys_known += (page.keys.len() as u64).saturating_sub(new);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut want = ListWant { max: PAGE_MAX, ..ListWant::default() };
    let (mut waiting, mut bytes) = (Vec::new(), 0);
    loop {
        let page = engine.list(&want).map_err(|failed| failed.to_string())?;
        for listed in page.events {
            match engine.find_part(listed.id, Part::Whole).map_err(|failed| failed.to_string())? {
                None => {}
                Some(Err(_)) => summary.unreadable.push(listed.id),
                Some(Ok(found)) => {
                    bytes += found.event.cost();
                    waiting.push((found.place, Handed { event: found.event, history: found.history, paused: false }));
                }
            }
            if waiting.len() >= EVENTS_MAX || bytes >= BYTES_MAX {
                bring(importer, &mut summary, std::mem::take(&mut waiting)).await?;
                bytes = 0;
            }
        }
        want.after = page.next;
        if want.after.is_none() {
            break;
        }
    }
    bring(importer, &mut summary, waiting).await?;
    Ok(summary)
}

async fn bring(importer: &Importer, summary: &mut Summary, events: Vec<(Place, Handed)>) -> Result<(), String> {
    let (places, handed): (Vec<Place>, Vec<Handed>) = events.into_iter().unzip();
    let answers = importer.adopt(&handed).await?;
    for ((place, handed), answer) in places.into_iter().zip(&handed).zip(answers) {
        match answer {
            Adopted::Stored => {
                *summary.imported.entry(place).or_default() += 1;
                summary.redriven += u64::from(handed.event.redrives > 0);
            }
            Adopted::Repeat => summary.there += 1,
            Adopted::KnownKey { .. } => summary.repeats += 1,
            Adopted::Full(full) => return Err(full.to_string()),
        }
    }
    Ok(())
}

impl Summary {
    fn in_words(&self, into: &str, dir: &Path) -> String {
        let of = |place: Place| self.imported.get(&place).copied().unwrap_or(0);
        let all: u64 = self.imported.values().sum();
        let mut lines = vec![
            format!("{} of {} imported into {into}", count(all, "event"), count(self.functions, "function")),
            format!(
                "  {} ready, {} waiting for a retry, {} scheduled, {}; {} of them redriven before",
                of(Place::Ready),
                of(Place::Waiting),
                of(Place::Scheduled),
                agree(of(Place::Buried), "dead letter", "dead letters"),
                self.redriven
            ),
            format!("{} imported, {} known there", count(self.keys, "remembered key"), self.keys_known),
        ];
        let more = [
            (self.paused, "function is paused there too", "functions are paused there too"),
            (self.there, "event was imported before", "events were imported before"),
            (self.repeats, "event repeats one that is stored there", "events repeat ones that are stored there"),
        ];
        let more = more.into_iter().filter(|(count, ..)| *count > 0);
        lines.extend(more.map(|(count, one, many)| agree(count, one, many)));
        lines.extend(self.unreadable.iter().take(SHOWN_MAX).map(|id| format!("cannot be read: {id}")));
        lines.push(format!("daemons refuse {} from now on; nothing else in it was changed", dir.display()));
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_says_what_it_did_in_numbers() {
        let summary = Summary {
            functions: 2,
            paused: 1,
            imported: [(Place::Ready, 3), (Place::Buried, 1)].into(),
            redriven: 1,
            there: 5,
            keys: 7,
            keys_known: 2,
            ..Summary::default()
        };
        let words = summary.in_words("db/orders", Path::new("/state"));
        for expected in [
            "4 events of 2 functions imported into db/orders\n",
            "3 ready, 0 waiting for a retry, 0 scheduled, 1 dead letter; 1 of them redriven before\n",
            "7 remembered keys imported, 2 known there\n",
            "1 function is paused there too\n5 events were imported before\n",
            "daemons refuse /state from now on",
        ] {
            assert!(words.contains(expected), "{words}");
        }
        assert!(!words.contains("repeat"), "{words}");
    }
}
