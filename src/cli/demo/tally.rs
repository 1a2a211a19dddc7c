//! Compares the ledgers. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::cli::demo::sender;
use crate::plural::agree;
use crate::standin::Counts;

/// What the store holds, by function, from the daemon's metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stored {
    buried: BTreeMap<String, u64>,
    waiting: BTreeMap<String, u64>,
}

impl Stored {
    /// Reads `sendoff_outbox_events` from the Prometheus text format. Every state except buried counts as waiting.
    pub(super) fn read(text: &str) -> Self {
        let mut stored = Self::default();
        for line in text.lines() {
            let Some((labels, value)) =
                line.strip_prefix("sendoff_outbox_events{").and_then(|rest| rest.rsplit_once("} "))
            else {
                continue;
            };
            let (Some(function), Some(state)) = (label(labels, "function"), label(labels, "state")) else { continue };
            // A gauge is a double. This one is a whole number and never negative.
            let events = value.trim().parse::<f64>().map_or(0, |it| it as u64);
            let states = if state == "buried" { &mut stored.buried } else { &mut stored.waiting };
            *states.entry(function.to_owned()).or_default() += events;
        }
        stored
    }

    pub(super) fn buried(&self) -> u64 {
        self.buried.values().sum()
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting.values().sum()
    }
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

/// Where the accepted events are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Balance {
    pub(super) accepted: u64,
    /// Accepted and taken by the stand-in.
    pub(super) delivered: u64,
    pub(super) buried: u64,
    /// Neither delivered nor buried, but still in the store.
    pub(super) waiting: u64,
    /// In none of the ledgers.
    pub(super) lost: u64,
    /// Deliveries after an event's first one.
    pub(super) duplicates: u64,
}

/// Compares `accepted` (event id to function) with how often each id was `taken` and with what is `stored`.
///
/// The store gives numbers by function, not ids. That suffices: only one function's events are buried, and the stand-in
/// takes none of them.
pub(super) fn reconcile(
    accepted: &BTreeMap<String, String>,
    taken: &BTreeMap<String, u64>,
    stored: &Stored,
) -> Balance {
    let mut missing = BTreeMap::<&str, u64>::new();
    for (_, function) in accepted.iter().filter(|(id, _)| !taken.contains_key(*id)) {
        *missing.entry(function).or_default() += 1;
    }
    let mut balance = Balance {
        accepted: accepted.len() as u64,
        delivered: accepted.keys().filter(|id| taken.contains_key(*id)).count() as u64,
        buried: stored.buried(),
        duplicates: taken.values().map(|times| times.saturating_sub(1)).sum(),
        ..Balance::default()
    };
    for (function, events) in missing {
        let held = |states: &BTreeMap<String, u64>| states.get(function).copied().unwrap_or(0);
        let unburied = events.saturating_sub(held(&stored.buried));
        let waiting = unburied.min(held(&stored.waiting));
        balance.waiting += waiting;
        balance.lost += unburied - waiting;
    }
    balance
}

/// The result of the demo.
#[derive(Debug, Clone)]
pub(super) struct Summary {
    pub(super) balance: Balance,
    pub(super) receipts: sender::Counts,
    pub(super) standin: Counts,
    /// From the daemon's start to the last 202, including the restart.
    pub(super) accepting: Duration,
    /// From the daemon's start to the last delivery.
    pub(super) whole: Duration,
    /// Of a demo with a shared outbox.
    pub(super) shared: Option<SharedTold>,
}

/// What a demo with a shared outbox has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SharedTold {
    /// Events that were enqueued in transactions that committed. They count as accepted.
    pub(super) committed: u64,
    pub(super) rolled_back: u64,
    /// Events of transactions that were rolled back, and that were delivered nevertheless.
    pub(super) leaked: u64,
    /// From the kill of one daemon until the other had all functions.
    pub(super) takeover: Duration,
}

impl Summary {
    pub(super) fn table(&self) -> String {
        let Self { balance, receipts, standin, .. } = self;
        // Each buried event was refused once. All other failures were overcome by retries.
        let failures = (standin.refused + standin.resets + standin.lost_replies).saturating_sub(balance.buried);
        let rate =
            |events: u64, time: Duration| format!("{:.0} events/s", events as f64 / time.as_secs_f64().max(0.001));
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["", "events"]);
        let mut row = |what: &str, value: String| {
            table.add_row([what.to_owned(), value]);
        };
        match &self.shared {
            None => row("accepted (answered with 202)", balance.accepted.to_string()),
            Some(shared) => {
                row("accepted (answered with 202, or committed by SQL)", balance.accepted.to_string());
                row("  committed by SQL, in transactions of an application", shared.committed.to_string());
                row("rolled back by SQL", shared.rolled_back.to_string());
                row("rolled back and delivered nevertheless", shared.leaked.to_string());
            }
        }
        row("delivered", balance.delivered.to_string());
        row("buried (refused for good; kept in the store)", balance.buried.to_string());
        if balance.waiting > 0 {
            row("still waiting in the store", balance.waiting.to_string());
        }
        row("repeats recognised", format!("{} of {}", receipts.repeats_recognised, receipts.repeats));
        row("retries recognised (202 was lost in the kill)", receipts.retries_recognised.to_string());
        row("throttles absorbed", standin.throttled.to_string());
        row("errors and lost replies absorbed", failures.to_string());
        row("duplicates delivered (lost replies, the kill)", balance.duplicates.to_string());
        row("LOST", balance.lost.to_string());
        let during = if self.shared.is_some() { "accepting, with the takeover" } else { "accepting, with the restart" };
        row(during, rate(balance.accepted, self.accepting));
        row("delivering, with all retries", rate(balance.delivered, self.whole));
        if let Some(shared) = &self.shared {
            row(
                "one daemon killed; the other had all functions after",
                format!("{:.1} s", shared.takeover.as_secs_f64()),
            );
        }
        row("time", format!("{:.1} s", self.whole.as_secs_f64()));
        if let Some(values) = table.column_mut(1) {
            values.set_cell_alignment(CellAlignment::Right);
        }
        table.trim_fmt()
    }

    /// Why the demo failed, a sentence for each reason.
    pub(super) fn problems(&self) -> BTreeSet<String> {
        let missed = self.receipts.repeats - self.receipts.repeats_recognised;
        [
            (
                self.balance.lost,
                "accepted event is neither delivered nor in the store",
                "accepted events are neither delivered nor in the store",
            ),
            (
                self.balance.waiting,
                "accepted event was not delivered in time; it is in the store",
                "accepted events were not delivered in time; they are in the store",
            ),
            (missed, "duplicate was not recognised", "duplicates were not recognised"),
            (
                self.shared.map_or(0, |shared| shared.leaked),
                "event of a transaction that was rolled back was delivered",
                "events of transactions that were rolled back were delivered",
            ),
        ]
        .into_iter()
        .filter(|(events, ..)| *events > 0)
        .map(|(events, one, many)| agree(events, one, many))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
# HELP sendoff_outbox_events Events in the store by state.
# TYPE sendoff_outbox_events gauge
sendoff_outbox_events{function=\"demo-01\",state=\"ready\"} 3
sendoff_outbox_events{function=\"demo-01\",state=\"waiting\"} 2
sendoff_outbox_events{function=\"demo-refusing\",state=\"buried\"} 4
sendoff_outbox_events{function=\"demo-refusing\",state=\"ready\"} 0
sendoff_outbox_events_other{function=\"demo-01\",state=\"ready\"} 9
sendoff_ready 1
";

    fn accepted(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(id, function)| ((*id).to_owned(), (*function).to_owned())).collect()
    }

    fn taken(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(id, times)| ((*id).to_owned(), *times)).collect()
    }

    fn stored(buried: &[(&str, u64)], waiting: &[(&str, u64)]) -> Stored {
        Stored { buried: taken(buried), waiting: taken(waiting) }
    }

    #[test]
    fn the_store_is_read_from_the_metrics() {
        let read = Stored::read(METRICS);
        assert_eq!((read.buried(), read.waiting()), (4, 5));
        assert_eq!(read.waiting.get("demo-01"), Some(&5));
        assert_eq!(Stored::read(""), Stored::default());
    }

    #[test]
    fn the_metrics_that_the_daemon_renders_are_understood() {
        let metrics = crate::metrics::Metrics::new().unwrap();
        metrics.outbox_events.with_label_values(&["orders", "buried"]).set(7);
        metrics.outbox_events.with_label_values(&["orders", "ready"]).set(2);
        let read = Stored::read(&String::from_utf8(metrics.render().unwrap()).unwrap());
        assert_eq!((read.buried(), read.waiting()), (7, 2));
    }

    #[test]
    fn ledgers_that_agree_lose_nothing() {
        let accepted = accepted(&[("a", "f"), ("b", "f"), ("c", "g")]);
        let balance = reconcile(&accepted, &taken(&[("a", 1), ("b", 3)]), &stored(&[("g", 1)], &[]));
        let expected = Balance { accepted: 3, delivered: 2, buried: 1, duplicates: 2, ..Balance::default() };
        assert_eq!(balance, expected);
    }

    #[test]
    fn an_event_in_no_ledger_is_lost_even_if_another_function_buries() {
        let accepted = accepted(&[("a", "f"), ("b", "f"), ("c", "g")]);
        let balance = reconcile(&accepted, &taken(&[("a", 1), ("c", 1)]), &stored(&[("g", 5)], &[("g", 5)]));
        assert_eq!((balance.lost, balance.waiting), (1, 0));
    }

    #[test]
    fn an_event_that_is_still_stored_waits_and_is_not_lost() {
        let accepted = accepted(&[("a", "f"), ("b", "f"), ("c", "f")]);
        let balance = reconcile(&accepted, &taken(&[]), &stored(&[("f", 1)], &[("f", 1)]));
        assert_eq!((balance.buried, balance.waiting, balance.lost), (1, 1, 1));
    }

    fn summary(lost: u64, recognised: u64) -> Summary {
        Summary {
            balance: Balance { accepted: 5_000, delivered: 4_750, buried: 250 - lost, lost, ..Balance::default() },
            receipts: sender::Counts { repeats: 500, repeats_recognised: recognised, ..sender::Counts::default() },
            standin: Counts { throttled: 2_100, refused: 400, ..Counts::default() },
            accepting: Duration::from_secs(2),
            whole: Duration::from_secs(10),
            shared: None,
        }
    }

    #[test]
    fn the_table_says_what_was_promised_and_what_was_absorbed() {
        let table = summary(0, 500).table();
        for (what, value) in [
            ("accepted (answered with 202)", "5000"),
            ("repeats recognised", "500 of 500"),
            ("throttles absorbed", "2100"),
            ("errors and lost replies absorbed", "150"),
            ("LOST", "0"),
            ("accepting, with the restart", "2500 events/s"),
            ("time", "10.0 s"),
        ] {
            let line = table.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}:\n{table}"));
            assert!(line.contains(&format!(" {value} ")), "{line}");
        }
        assert!(!table.contains("still waiting"));
    }

    #[test]
    fn a_shared_outbox_tells_of_its_transactions_and_one_that_leaks_is_a_problem() {
        let told = SharedTold { committed: 20, rolled_back: 10, leaked: 0, takeover: Duration::from_secs(7) };
        let sound = Summary { shared: Some(told), ..summary(0, 500) };
        assert!(sound.problems().is_empty());
        let table = sound.table();
        for (what, value) in [("rolled back by SQL", "10"), ("had all functions after", "7.0 s"), ("LOST", "0")] {
            let line = table.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}:\n{table}"));
            assert!(line.contains(&format!(" {value} ")), "{line}");
        }
        let leaks = Summary { shared: Some(SharedTold { leaked: 1, ..told }), ..sound };
        assert_eq!(leaks.problems().len(), 1);
    }

    #[test]
    fn loss_and_missed_repeats_are_problems() {
        assert!(summary(0, 500).problems().is_empty());
        assert_eq!(summary(2, 499).problems().len(), 2);
    }
}
