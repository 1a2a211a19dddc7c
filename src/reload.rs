//! On SIGHUP, reads the configuration again and applies what can change while running.
//!
//! Holds: a configuration with problems changes nothing. Keys that need a restart are named and keep their values.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::operators::Operators;
use crate::config::{Config, Entry, Loaded, Origin, Problem, Problems};
use crate::dispatch;
use crate::event::name::Home;
use crate::follow::Bad;
use crate::ingest::client::Clients;
use crate::notify;
use crate::telemetry::LogLevel;

type Load = dyn Fn() -> Result<Loaded, Problems> + Send + Sync;

/// The running configuration, and how to read it again.
pub struct Reload {
    load: Box<Load>,
    /// The entries of the last reading, so that a key that needs a restart is named once for each change.
    entries: Mutex<Vec<Entry>>,
    /// The entries of the start. A key that has its value of then again needs no restart.
    started: Vec<Entry>,
    level: LogLevel,
    dispatch: watch::Sender<dispatch::Settings>,
    clients: watch::Sender<Clients>,
    operators: watch::Sender<Operators>,
    /// What the patterns of clients are relative to, as at the start.
    home: Home,
    /// The number of signals so far, for tasks that read files of their own.
    signals: watch::Sender<u64>,
    /// Why the latest reload changed nothing. `None` means that it succeeded.
    failed: watch::Sender<Option<String>>,
    /// The entries of the last reading, for whoever shows them.
    shown: watch::Sender<Vec<Entry>>,
    /// The variables outside sendoff's own configuration that it follows.
    outside: Vec<Entry>,
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
        let Config { dispatch, clients, operators, ingest, .. } = loaded.config.clone();
        let (dispatch, _) = watch::channel(dispatch);
        let ((clients, _), (operators, _)) = (watch::channel(clients), watch::channel(operators));
        let (signals, _) = watch::channel(0);
        let (failed, _) = watch::channel(None);
        let (shown, _) = watch::channel(loaded.entries.clone());
        let (entries, outside, home) = (Mutex::new(loaded.entries.clone()), Vec::new(), ingest.home);
        let (started, load) = (loaded.entries.clone(), Box::new(load));
        Self { load, entries, started, level, dispatch, clients, operators, home, signals, failed, shown, outside }
    }

    /// Also shows these variables, which a reload does not read.
    pub fn with_outside(self, outside: Vec<Entry>) -> Self {
        Self { outside, ..self }
    }

    /// Tells every value in effect. A key that needs a restart keeps its value of now, and is marked once the latest
    /// reading says something else.
    pub fn in_effect(&self) -> impl Fn() -> Vec<(Entry, bool)> + Send + Sync + 'static {
        let (latest, outside) = (self.shown.subscribe(), self.outside.clone());
        let started = latest.borrow().clone();
        move || {
            let latest = latest.borrow();
            let entries = latest.iter().map(|new| {
                match started.iter().find(|old| old.key == new.key) {
                    _ if new.is_live => (new.clone(), false),
                    Some(old) => (old.clone(), old.value != new.value),
                    // A key of a new table, which is not in effect.
                    None => (new.clone(), true),
                }
            });
            entries.chain(outside.iter().map(|entry| (entry.clone(), false))).collect()
        }
    }

    pub fn level(&self) -> &LogLevel {
        &self.level
    }

    /// The settings of dispatch. Changes with each reload.
    pub fn dispatch(&self) -> watch::Receiver<dispatch::Settings> {
        self.dispatch.subscribe()
    }

    /// The clients of ingest. Their tables change with each reload; the rest of `[auth]` does not.
    pub fn clients(&self) -> watch::Receiver<Clients> {
        self.clients.subscribe()
    }

    /// The operators, in the same way.
    pub fn operators(&self) -> watch::Receiver<Operators> {
        self.operators.subscribe()
    }

    /// Changes with each signal. Tasks then read the files that the configuration names again.
    pub fn signals(&self) -> watch::Receiver<u64> {
        self.signals.subscribe()
    }

    /// A receiver of why the latest reload changed nothing.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
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
        match (self.load)().and_then(|loaded| self.check_files(&loaded).map(|()| loaded)) {
            Ok(loaded) => {
                self.apply(loaded);
                self.failed.send_replace(None);
            }
            Err(problems) => {
                tracing::error!(%problems, "configuration not reloaded: the running one stays in effect");
                self.failed.send_replace(Some(in_one_line(&problems)));
            }
        }
        self.signals.send_modify(|signals| *signals += 1);
        notify::reloaded();
    }

    /// New tables whose secrets cannot be read are a problem of the configuration. With unchanged tables, the follower of
    /// the files tells, and the rest of the configuration is applied.
    fn check_files(&self, Loaded { config, entries }: &Loaded) -> Result<(), Problems> {
        let bad = |Bad { key, path, why }: Bad| {
            let entry = entries.iter().find(|entry| entry.key == key);
            let origin = entry.map_or(Origin::Default, |entry| entry.origin.clone());
            Problems::new(vec![Problem { origin, subject: Some(format!("{key} = {path:?}")), why, hint: None }])
        };
        if config.clients.clients != self.clients.borrow().clients {
            config.clients.load().map_err(bad)?;
        }
        if config.operators.operators != self.operators.borrow().operators {
            config.operators.load().map_err(bad)?;
        }
        Ok(())
    }

    /// Hands over the tables. What protects a listener (`auth`, `tls`, its address) stays as it was at the start: a listener
    /// that is open to others must not lose its protection before it is closed. False if the tables must wait for a restart,
    /// because names of functions would mean others.
    fn hand_over_tables(&self, config: &Config) -> bool {
        if config.ingest.home != self.home {
            return false;
        }
        self.clients.send_modify(|running| running.clients.clone_from(&config.clients.clients));
        self.operators.send_modify(|running| running.operators.clone_from(&config.operators.operators));
        true
    }

    fn apply(&self, Loaded { config, entries }: Loaded) {
        let are_handed_over = self.hand_over_tables(&config);
        let Config { log, dispatch, .. } = config;
        let mut present = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = changes(&present, &entries);
        let still = self::changes(&self.started, &entries).needs_restart;
        changes.needs_restart.retain(|key| still.contains(key));
        // A level set through the admin listener stays unless the file's level has changed.
        if changes.applied.iter().any(|key| key == "log.level")
            && let Err(error) = self.level.set(&log.level)
        {
            tracing::error!(%error, "log level not changed");
            changes.applied.retain(|key| key != "log.level");
        }
        if !are_handed_over {
            let is_of_a_table = |key: &String| key.starts_with("clients.") || key.starts_with("operators.");
            changes.needs_restart.extend(changes.applied.extract_if(.., |key| is_of_a_table(key)));
        }
        self.dispatch.send_replace(dispatch);
        self.shown.send_replace(entries.clone());
        *present = entries;
        let (applied, needs_restart) = (changes.applied.join(", "), changes.needs_restart.join(", "));
        match (applied.is_empty(), needs_restart.is_empty()) {
            (false, _) => tracing::info!(applied, "configuration reloaded"),
            (true, true) => tracing::info!("configuration read again: no key has changed"),
            (true, false) => {
                tracing::info!("configuration read again: no changed key can be applied without a restart")
            }
        }
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
        let [before, after] = [before, after].map(|entries| entries.iter().find(|entry| entry.key == key));
        if before.map(|entry| &entry.value) == after.map(|entry| &entry.value) {
            continue;
        }
        // Of a key that only one of them has, that one tells.
        let list = if [before, after].into_iter().flatten().any(|entry| entry.is_live) {
            &mut changes.applied
        } else {
            &mut changes.needs_restart
        };
        list.push(key.to_owned());
    }
    changes
}

fn in_one_line(problems: &Problems) -> String {
    let each = problems.as_slice().iter().map(|problem| problem.to_string().replace("\n      ", "; "));
    each.collect::<Vec<_>>().join(". ")
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

    /// The keys of dispatch's settings, in which [`Reload`] hands over all that there is, and the level of the log.
    #[test]
    fn what_reaches_dispatch_or_the_log_is_applied_and_all_else_is_told_to_need_a_restart() {
        let live: Vec<String> = entries(&[]).into_iter().filter(|entry| entry.is_live).map(|entry| entry.key).collect();
        let expected = [
            "lambda.in_flight_max",
            "lambda.in_flight_bytes_max",
            "lambda.rate",
            "delivery.mode",
            "delivery.confirm_timeout",
            "delivery.attempts_max",
            "delivery.age_max",
            "delivery.backoff_base",
            "delivery.backoff_cap",
            "delivery.concurrency_max",
            "delivery.rate",
            "delivery.invocations_per_hour_max",
            "log.level",
        ];
        let sorted = |keys: &[String]| keys.iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(sorted(&live), sorted(&expected.map(str::to_owned)));
    }

    #[test]
    fn tables_of_clients_and_operators_take_effect_and_what_protects_listeners_does_not() {
        let client = ["clients.a.functions=a b", "clients.a.token_file=/t", "operators.b.token_file=/t"];
        for (before, after) in [(entries(&[]), entries(&client)), (entries(&client), entries(&[]))] {
            let found = changes(&before, &after);
            assert_eq!(found.applied, ["clients.a.functions", "clients.a.token_file", "operators.b.token_file"]);
        }
        let found = changes(&entries(&client), &entries(&[&client[..], &["auth.ingest=required"]].concat()));
        assert_eq!((found.applied.len(), found.needs_restart), (0, vec!["auth.ingest".to_owned()]));
    }

    #[test]
    fn keys_of_functions_take_effect_where_they_are_policies() {
        let keys = ["functions.\"orders-*\".attempts_max=3", "functions.\"orders-*\".mode=confirm"];
        let queue = "functions.\"orders-*\".queue_url=https://sqs.eu-central-1.amazonaws.com/123456789012/q";
        let inject = "functions.\"orders-*\".inject=key";
        let some = entries(&[keys[0], keys[1], queue, inject]);
        for (before, after) in [(entries(&[]), some.clone()), (some, entries(&[]))] {
            let found = changes(&before, &after);
            assert_eq!(found.applied, ["functions.\"orders-*\".attempts_max", "functions.\"orders-*\".mode"]);
            assert_eq!(found.needs_restart, ["functions.\"orders-*\".inject", "functions.\"orders-*\".queue_url"]);
        }
    }
}
