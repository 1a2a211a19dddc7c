//! On SIGHUP, reads the configuration again and applies what can change while running.
//!
//! Holds: a configuration with problems changes nothing. Keys that need a restart are named and keep their values.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Entry, Loaded, Problems};
use crate::dispatch;
use crate::notify;
use crate::telemetry::LogLevel;

/// Keys that take effect while running, besides those of functions.
const APPLIED: &[&str] = &["log.level", "lambda.in_flight_max", "lambda.in_flight_bytes_max"];

type Load = dyn Fn() -> Result<Loaded, Problems> + Send + Sync;

/// The running configuration, and how to read it again.
pub struct Reload {
    load: Box<Load>,
    /// The entries of the last reading, so that a key that needs a restart is named once for each change.
    entries: Mutex<Vec<Entry>>,
    level: LogLevel,
    dispatch: watch::Sender<dispatch::Settings>,
    /// The number of signals so far, for tasks that read files of their own.
    signals: watch::Sender<u64>,
}

/// The keys that a reading changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub applied: Vec<String>,
    pub needs_restart: Vec<String>,
}

impl Reload {
    /// `load` reads the configuration as at the start. `loaded` is what it returned then.
    pub fn new(
        loaded: &Loaded,
        level: LogLevel,
        load: impl Fn() -> Result<Loaded, Problems> + Send + Sync + 'static,
    ) -> Self {
        let (dispatch, _) = watch::channel(loaded.config.dispatch.clone());
        let (signals, _) = watch::channel(0);
        Self { load: Box::new(load), entries: Mutex::new(loaded.entries.clone()), level, dispatch, signals }
    }

    pub fn level(&self) -> &LogLevel {
        &self.level
    }

    /// The settings of dispatch. Changes with each reload.
    pub fn dispatch(&self) -> watch::Receiver<dispatch::Settings> {
        self.dispatch.subscribe()
    }

    /// Changes with each signal. Tasks then read the files that the configuration names again.
    pub fn signals(&self) -> watch::Receiver<u64> {
        self.signals.subscribe()
    }

    /// Handles the signal, so that it no longer ends the process.
    pub fn signal() -> std::io::Result<Signal> {
        signal(SignalKind::hangup())
    }

    /// Reloads at each signal until stopped.
    pub async fn run(self, mut hangup: Signal, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(()) = hangup.recv() => self.reload(),
            }
        }
    }

    fn reload(&self) {
        notify::reloading();
        match (self.load)() {
            Ok(loaded) => self.apply(loaded),
            Err(problems) => tracing::error!(%problems, "configuration not reloaded: the running one stays in effect"),
        }
        self.signals.send_modify(|signals| *signals += 1);
        notify::reloaded();
    }

    fn apply(&self, Loaded { config, entries }: Loaded) {
        let Config { log, dispatch, .. } = config;
        let mut present = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = changes(&present, &entries);
        // A level set through the admin listener stays unless the file's level has changed.
        if changes.applied.iter().any(|key| key == "log.level")
            && let Err(error) = self.level.set(&log.level)
        {
            tracing::error!(%error, "log level not changed");
            changes.applied.retain(|key| key != "log.level");
        }
        self.dispatch.send_replace(dispatch);
        *present = entries;
        let (applied, needs_restart) = (changes.applied.join(", "), changes.needs_restart.join(", "));
        tracing::info!(applied, "configuration reloaded");
        if !needs_restart.is_empty() {
            tracing::warn!(needs_restart, "some changed keys take effect only after a restart");
        }
    }
}

/// The keys in which two configurations differ.
fn changes(before: &[Entry], after: &[Entry]) -> Changes {
    let keys: BTreeSet<&str> = before.iter().chain(after).map(|entry| entry.key.as_str()).collect();
    let mut changes = Changes::default();
    for key in keys {
        let value = |entries: &[Entry]| entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.clone());
        if value(before) == value(after) {
            continue;
        }
        let list = if is_applied(key) { &mut changes.applied } else { &mut changes.needs_restart };
        list.push(key.to_owned());
    }
    changes
}

fn is_applied(key: &str) -> bool {
    const POLICY: [&str; 5] = ["attempts_max", "age_max", "backoff_base", "backoff_cap", "concurrency_max"];
    let table = key.starts_with("delivery.") || key.starts_with("functions.");
    APPLIED.contains(&key) || (table && POLICY.iter().any(|name| key.ends_with(&format!(".{name}"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, load};

    fn entries(set: &[&str]) -> Vec<Entry> {
        let flags = Flags { set: set.iter().map(|&pair| pair.to_owned()).collect(), ..Flags::default() };
        load(&flags, &Environment::from_pairs(&[("HOME", "/h")])).unwrap().entries
    }

    #[test]
    fn what_changed_is_told_apart_by_whether_it_takes_effect() {
        let before = entries(&["log.level=info", "delivery.age_max=1h"]);
        let after =
            entries(&["log.level=debug", "delivery.age_max=2h", "listen.ingest=127.0.0.1:1", "log.format=json"]);
        let found = changes(&before, &after);
        assert_eq!(found.applied, ["delivery.age_max", "log.level"]);
        assert_eq!(found.needs_restart, ["listen.ingest", "log.format"]);
        assert_eq!(changes(&after, &after), Changes::default());
    }

    #[test]
    fn keys_of_functions_take_effect_where_they_are_policies() {
        assert!(is_applied("functions.\"orders-*\".attempts_max"));
        assert!(!is_applied("functions.\"orders-*\".queue_url"));
        assert!(!is_applied("dead_letter.backoff_cap"));
        assert!(is_applied("lambda.in_flight_max"));
        assert!(!is_applied("lambda.region"));
    }
}
