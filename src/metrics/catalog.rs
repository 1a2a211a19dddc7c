//! The metrics as data. docs/metrics.md is generated from it, and dashboards and alert rules are checked against it.

use std::fmt::Write as _;

use prometheus::core::Collector;
use prometheus::proto::MetricType;

/// One metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub name: String,
    pub kind: Kind,
    pub help: String,
    /// In the order in which values are given.
    pub labels: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The meaning of each label, and what bounds its values.
const LABELS: &[(&str, &str)] = &[
    ("action", "what an operator did, such as `pause-function` or `view-payloads`"),
    ("client", "name of a table of `[clients]`, or `unknown`"),
    ("code", "error code of SQS, or `unshippable`, `unreachable`, `unanswered`"),
    ("direction", "`out`: from this daemon to a target of a hand-off. `in`: from another sendoff to this daemon"),
    (
        "function",
        "canonical name of the function. 200 functions have a label of their own, of which at most 100 have had no delivery yet; all others share `other`",
    ),
    ("key_source", "where the idempotency key came from: `header`, `sdk-invocation-id`, ... (docs/lambda-api.md)"),
    ("operator", "name of a table of `[operators]`; `root`, `sendoff` (the daemon's own user), `anyone` or `unknown`"),
    (
        "outcome",
        "`delivered`, `function-failed`, `throttled`, `transient`, `foreign`, `rejected`, `lost`, `not-sent`, `unready`, `held`, `refused` (docs/delivery.md)",
    ),
    ("queue", "name of a configured dead-letter queue"),
    (
        "reason",
        "of dead letters: `retries-exhausted`, `event-age-exceeded`, `refused` (docs/dead-letters.md). Of refused requests: a fixed word for each cause, such as `full` (docs/operations.md)",
    ),
    (
        "result",
        "of redrives: `duplicate`, `busy`, `ceiling`, `refused`, `shipping`, `not-found` (docs/dead-letters.md). Of actions: `done`, `failed`, `denied`, `unfinished` (docs/security.md). Of hand-offs: `adopted`, `repeat`, `known-key`, `busy`, `refused` (docs/handoff.md)",
    ),
    ("source", "where a redriven dead letter came from: `queue` or `store`"),
    (
        "state",
        "`ready`, `waiting`, `scheduled`, `buried`. An event that is being attempted keeps the state that it had before",
    ),
    ("status", "class of the HTTP status: `2xx` to `5xx`"),
    ("version", "version of the binary"),
];

impl Described {
    /// The names of its series. A histogram has three.
    pub fn series(&self) -> Vec<String> {
        match self.kind {
            Kind::Counter | Kind::Gauge => vec![self.name.clone()],
            Kind::Histogram => ["_bucket", "_sum", "_count"].map(|end| format!("{}{end}", self.name)).to_vec(),
        }
    }
}

/// The metrics of one collector.
pub(super) fn describe(collector: &impl Collector) -> Vec<Described> {
    let families = collector.collect();
    let descs = collector.desc();
    families
        .iter()
        .zip(descs)
        .map(|(family, desc)| Described {
            name: desc.fq_name.clone(),
            kind: match family.get_field_type() {
                MetricType::COUNTER => Kind::Counter,
                MetricType::HISTOGRAM => Kind::Histogram,
                MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => Kind::Gauge,
            },
            help: desc.help.clone(),
            labels: desc.variable_labels.clone(),
        })
        .collect()
}

/// The page docs/metrics.md.
pub fn page(catalog: &[Described]) -> String {
    let mut page = "# Metrics\n\n\
        <!-- Written from src/metrics.rs and src/metrics/catalog.rs: SENDOFF_BLESS=1 cargo test --test deploy metrics -->\n\n\
        Use this page to set up monitoring:\n\n\
        1. Scrape `GET /metrics` (Prometheus text format 0.0.4) on `listen.health`, or on the admin listener, by default\n   \
           `127.0.0.1:9478`.\n\
        2. Load the alert rules in `deploy/prometheus/`.\n\
        3. Import the dashboard `deploy/grafana/sendoff.json`.\n\n\
        If you set up one alert only, use `sendoff_outbox_oldest_age_seconds`: it grows whatever goes wrong between sendoff\n\
        and a function.\n\n\
        Names follow `sendoff_<stage>_<noun>_<unit>[_total]`. Times are in seconds, sizes in bytes. All counters start at 0 with\n\
        the process. The gauges of the outbox are read from the store at each scrape, so they are right from the first scrape\n\
        after a restart.\n\n\
        Daemons that share an outbox on PostgreSQL each show their own part: a function's gauges come from the daemon that owns\n\
        it. So add daemons up; nothing counts twice. [postgres.md](postgres.md#operate-it) says more.\n\n\
        | name | type | labels | meaning |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for Described { name, kind, help, labels } in catalog {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        // Writing into a string does not fail.
        writeln!(page, "| `{name}` | {} | {labels} | {help} |", kind.as_str()).unwrap_or_default();
    }
    page += "\n## Labels\n\nNo label has values from payloads or keys. Each has a bounded number of values.\n\n\
        | label | values |\n| --- | --- |\n";
    for (label, values) in LABELS {
        writeln!(page, "| `{label}` | {values} |").unwrap_or_default();
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn every_label_is_explained_and_no_other() {
        let metrics = Metrics::new().unwrap();
        let used: BTreeSet<&str> =
            metrics.catalog().iter().flat_map(|metric| metric.labels.iter().map(String::as_str)).collect();
        let explained: BTreeSet<&str> = LABELS.iter().map(|&(label, _)| label).collect();
        assert_eq!(used, explained);
    }

    #[test]
    fn families_without_a_series_are_described_too() {
        let metrics = Metrics::new().unwrap();
        let find = |name: &str| metrics.catalog().iter().find(|metric| metric.name == name).unwrap();
        let attempts = find("sendoff_dispatch_attempts_total");
        assert_eq!((attempts.kind, attempts.labels.join(" ").as_str()), (Kind::Counter, "function outcome"));
        let seconds = find("sendoff_dispatch_attempt_seconds");
        assert_eq!(seconds.kind, Kind::Histogram);
        assert_eq!(seconds.series()[0], "sendoff_dispatch_attempt_seconds_bucket");
        assert_eq!(find("sendoff_ready").kind, Kind::Gauge);
    }

    #[test]
    fn names_and_units_follow_one_rule() {
        for metric in Metrics::new().unwrap().catalog() {
            assert!(metric.name.starts_with("sendoff_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains('|'), "{}: {}", metric.name, metric.help);
        }
    }
}
