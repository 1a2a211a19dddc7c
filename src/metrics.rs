//! Every metric, by name. [`Metrics`] is passed as an argument. There is no global registry, so that two daemons fit in
//! one test.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::event::FunctionName;

pub mod catalog;

use catalog::Described;

/// The most functions with a label of their own. All others share [`OTHER`].
const FUNCTION_LABELS_MAX: usize = 200;

/// The most of them to which nothing was delivered yet. Clients can invent any number of names. The rest is for
/// functions from which Lambda has accepted an event.
const UNPROVEN_LABELS_MAX: usize = 100;

/// The label of the functions beyond the limit.
pub const OTHER: &str = "other";

/// Buckets in seconds, from a loopback call of less than a millisecond to Lambda's slowest answer.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Events in one commit.
const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// The codes of failed shipments for which SQS has none.
const SHIP_FAILURES: [&str; 3] = ["unshippable", "unreachable", "unanswered"];

/// Why a message stays on the hand-off queue.
const LEFT: [&str; 3] = ["foreign", "elsewhere", "broken"];

/// What becomes of an event that is handed over.
const HANDED: [&str; 5] = ["adopted", "repeat", "known-key", "busy", "refused"];

/// Classes of an HTTP status.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The label values that are known before anything is counted.
#[derive(Debug, Clone)]
pub struct Words {
    pub refused: &'static [&'static str],
    pub buried: Vec<&'static str>,
    pub outcomes: &'static [&'static str],
    pub key_sources: Vec<&'static str>,
    pub actions: Vec<&'static str>,
    pub action_results: &'static [&'static str],
}

/// The buckets of a metric, if it has any.
fn first<'a>(buckets: &[&'a [f64]]) -> &'a [f64] {
    buckets.first().copied().unwrap_or_default()
}

/// Declares [`Metrics`], and registers each metric once: field, type, labels and buckets, name, help.
macro_rules! metrics {
    ($($field:ident: $kind:ident($($label:literal),*) $(in $buckets:ident)? = $name:literal, $help:literal;)*) => {
        /// All metrics of one daemon.
        pub struct Metrics {
            registry: Registry,
            catalog: Vec<Described>,
            labels: Mutex<Labels>,
            words: OnceLock<Words>,
            /// Set once the series of [`OTHER`] exist.
            other: OnceLock<()>,
            $(
                #[doc = $help]
                $(#[doc = concat!("By ", $label, ".")])*
                pub $field: $kind,
            )*
        }

        impl Metrics {
            pub fn new() -> Result<Self, prometheus::Error> {
                let table = Table::default();
                let build_info: IntGaugeVec = table.register(
                    "sendoff_build_info", "Always 1; the label has the version.", &["version"], &[],
                )?;
                build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
                Ok(Self {
                    $($field: table.register($name, $help, &[$($label),*], first(&[$($buckets)?]))?,)*
                    labels: Mutex::default(),
                    words: OnceLock::new(),
                    other: OnceLock::new(),
                    catalog: table.catalog.into_inner(),
                    registry: table.registry,
                })
            }
        }
    };
}

metrics! {
    ingest_accepted: IntCounterVec("function") = "sendoff_ingest_accepted_total",
        "New events that were stored and answered with 202.";
    ingest_refused: IntCounterVec("reason") = "sendoff_ingest_refused_total",
        "Requests that were refused; nothing of them was stored.";
    ingest_duplicates: IntCounterVec("function", "key_source") = "sendoff_ingest_duplicates_total",
        "Requests that repeated an event with a remembered key; they were answered with 202.";
    ingest_passed: IntCounterVec("status") = "sendoff_ingest_passed_total",
        "Calls passed through to Lambda that Lambda answered.";
    ingest_connections: IntGauge() = "sendoff_ingest_connections",
        "Open connections to the ingest listeners.";
    ingest_client_requests: IntCounterVec("client") = "sendoff_ingest_client_requests_total",
        "Requests by known clients, accepted and refused ones.";
    ingest_client_refused: IntCounterVec("client", "reason") = "sendoff_ingest_client_refused_total",
        "Requests that were refused, by client; `unknown` is everybody else. Counted if clients are configured.";
    auth_reload_failures: IntCounter() = "sendoff_auth_reload_failures_total",
        "Changes of files of secrets that could not be used; the secrets before stay in service.";
    tls_certificate_expiry_timestamp_seconds: Gauge() = "sendoff_tls_certificate_expiry_timestamp_seconds",
        "When the certificate of the listeners expires, Unix time; 0 without TLS.";
    tls_reload_failures: IntCounter() = "sendoff_tls_reload_failures_total",
        "Changes of the TLS files that could not be used; the certificate before stays in service.";
    tls_handshake_failures: IntCounter() = "sendoff_tls_handshake_failures_total",
        "Connections that failed in the TLS handshake, those that began with plain HTTP among them.";
    outbox_append_seconds: Histogram() in SECONDS = "sendoff_outbox_append_seconds",
        "Time from a complete request until its event is on stable storage.";
    outbox_flush_seconds: Histogram() in SECONDS = "sendoff_outbox_flush_seconds",
        "Duration of a group commit: write and sync.";
    outbox_batch_events: Histogram() in BATCH = "sendoff_outbox_batch_events",
        "Events that one group commit appended or settled.";
    outbox_events: IntGaugeVec("function", "state") = "sendoff_outbox_events",
        "Events in the store.";
    outbox_bytes: IntGaugeVec("function", "state") = "sendoff_outbox_bytes",
        "Bytes of event records in the store.";
    outbox_disk_bytes: IntGauge() = "sendoff_outbox_disk_bytes",
        "Disk space that the store takes. Of daemons that share an outbox one shows it, the others 0.";
    outbox_disk_free_bytes: IntGauge() = "sendoff_outbox_disk_free_bytes",
        "Free space on the disk that holds the store.";
    outbox_keys: IntGauge() = "sendoff_outbox_keys",
        "Remembered idempotency keys. Of daemons that share an outbox one shows them, the others 0.";
    outbox_members: IntGauge() = "sendoff_outbox_members",
        "Living daemons that share the outbox, as this one sees them; 0 with an embedded outbox.";
    outbox_functions_owned: IntGauge() = "sendoff_outbox_functions_owned",
        "Functions of a shared outbox that this daemon owns: it delivers their events, and only it shows them here.";
    outbox_functions_unowned: IntGauge() = "sendoff_outbox_functions_unowned",
        "Functions of a shared outbox that no daemon owns, as this one sees it: nothing of them is delivered.";
    outbox_poisoned: IntGauge() = "sendoff_outbox_poisoned",
        "1 after a failed write or sync; a restart recovers.";
    outbox_unreadable_events: IntGauge() = "sendoff_outbox_unreadable_events",
        "Events that could not be read since the start, or that the salvage at the start could not save.";
    outbox_damaged_stores: IntGauge() = "sendoff_outbox_damaged_stores",
        "Damaged stores that the state directory held at the start; inspect and remove them.";
    outbox_oldest_age_seconds: GaugeVec("function") = "sendoff_outbox_oldest_age_seconds",
        "Age of the oldest event that is ready or waiting. Alert on this one.";
    dispatch_attempts: IntCounterVec("function", "outcome") = "sendoff_dispatch_attempts_total",
        "Calls of Lambda's Invoke.";
    dispatch_attempt_seconds: HistogramVec("function") in SECONDS = "sendoff_dispatch_attempt_seconds",
        "Duration of a call of Lambda's Invoke.";
    dispatch_in_flight: IntGaugeVec("function") = "sendoff_dispatch_in_flight",
        "Attempts in flight.";
    dispatch_limit: IntGaugeVec("function") = "sendoff_dispatch_limit",
        "Attempts that the limiter allows in flight.";
    dispatch_retries: IntCounterVec("function") = "sendoff_dispatch_retries_total",
        "Attempts after which the event was set to be retried.";
    dispatch_held: IntGaugeVec("function") = "sendoff_dispatch_held",
        "1 while deliveries to the function are held, for a reason that is not its events' fault.";
    deadletter_buried: IntCounterVec("function", "reason") = "sendoff_deadletter_buried_total",
        "Events that became dead letters.";
    deadletter_shipped: IntCounterVec("function") = "sendoff_deadletter_shipped_total",
        "Dead letters that SQS confirmed.";
    deadletter_ship_failures: IntCounterVec("code") = "sendoff_deadletter_ship_failures_total",
        "Dead letters that SQS did not take; they stay in the store.";
    deadletter_unshippable: IntCounterVec("function") = "sendoff_deadletter_unshippable_total",
        "Dead letters that do not fit their queue, or that SQS refused; they stay in the store.";
    deadletter_queue_messages: IntGaugeVec("queue") = "sendoff_deadletter_queue_messages",
        "Approximate number of messages in a dead-letter queue, as SQS last reported.";
    deadletter_queue_retention_seconds: GaugeVec("queue") = "sendoff_deadletter_queue_retention_seconds",
        "Time after which a dead-letter queue deletes a message, read or not.";
    deadletter_redriven: IntCounterVec("source") = "sendoff_deadletter_redriven_total",
        "Dead letters that a redrive accepted again.";
    deadletter_redrive_refused: IntCounterVec("result") = "sendoff_deadletter_redrive_refused_total",
        "Dead letters that a redrive did not accept.";
    handoff_events: IntCounterVec("direction", "result") = "sendoff_handoff_events_total",
        "Answers about events that this daemon handed over (`out`) or was handed (`in`).";
    handoff_keys: IntCounterVec("direction") = "sendoff_handoff_keys_total",
        "Remembered keys that this daemon handed over (`out`) or learned (`in`).";
    handoff_queue_left: IntCounterVec("reason") = "sendoff_handoff_queue_left_total",
        "Messages that this daemon left on the hand-off queue, each counted once.";
    handoff_queue_failures: IntCounter() = "sendoff_handoff_queue_failures_total",
        "Receives from the hand-off queue that failed.";
    handoff_queue_last_receive_timestamp_seconds: Gauge() = "sendoff_handoff_queue_last_receive_timestamp_seconds",
        "When the hand-off queue last answered a receive, or when the daemon began to ask. 0 without a queue.";
    handoff_queue_oldest_age_seconds: Gauge() = "sendoff_handoff_queue_oldest_age_seconds",
        "How long the oldest event of the latest receive had been on the hand-off queue. 0 once the queue is empty.";
    history_lost: IntCounter() = "sendoff_history_lost_total",
        "Ends of events that could not be kept on disk; the events are not affected.";
    log_dropped: IntCounter() = "sendoff_log_dropped_total",
        "Log lines that could not be written to stderr.";
    admin_refused: IntCounterVec("reason") = "sendoff_admin_refused_total",
        "Requests to the operator's API that were refused before they reached it, such as those of web pages.";
    admin_denied: IntCounterVec("operator", "reason") = "sendoff_admin_denied_total",
        "Requests to the operator's API that its caller may not make; callers who are no known operator are `unknown`.";
    admin_actions: IntCounterVec("action", "result") = "sendoff_admin_actions_total",
        "Changes and views of payloads through the operator's API, each with a log line of the audit.";
    admin_bulk_events: IntCounterVec("action", "result") = "sendoff_admin_bulk_events_total",
        "Events that bulk jobs of operators looked at to change them, by what became of them.";
    ready: IntGauge() = "sendoff_ready",
        "1 while `/readyz` answers 200.";
    start_time_seconds: Gauge() = "sendoff_start_time_seconds",
        "Start of the daemon, as Unix time.";
    clock_offset_seconds: Gauge() = "sendoff_clock_offset_seconds",
        "How much the wall clock was set since the start, suspends included.";
}

impl Metrics {
    /// Creates every series whose labels are known, at 0. `increase()` does not see the first step of a series that
    /// begins at 1. The series of a function are created with its label.
    pub fn begin(&self, words: Words) {
        words.refused.iter().for_each(|word| touch(&self.ingest_refused, &[word]));
        CLASSES.iter().for_each(|class| touch(&self.ingest_passed, &[class]));
        for direction in ["in", "out"] {
            HANDED.iter().for_each(|result| touch(&self.handoff_events, &[direction, result]));
            touch(&self.handoff_keys, &[direction]);
        }
        LEFT.iter().for_each(|reason| touch(&self.handoff_queue_left, &[reason]));
        SHIP_FAILURES.iter().for_each(|code| touch(&self.deadletter_ship_failures, &[code]));
        for action in &words.actions {
            words.action_results.iter().for_each(|result| touch(&self.admin_actions, &[action, result]));
        }
        self.words.get_or_init(|| words);
    }

    fn begin_function(&self, function: &str) {
        let Some(words) = self.words.get() else { return };
        touch(&self.ingest_accepted, &[function]);
        touch(&self.dispatch_retries, &[function]);
        // These calls create the series, at 0.
        self.dispatch_held.with_label_values(&[function]);
        self.dispatch_attempt_seconds.with_label_values(&[function]);
        touch(&self.deadletter_shipped, &[function]);
        touch(&self.deadletter_unshippable, &[function]);
        words.key_sources.iter().for_each(|source| touch(&self.ingest_duplicates, &[function, source]));
        words.outcomes.iter().for_each(|outcome| touch(&self.dispatch_attempts, &[function, outcome]));
        words.buried.iter().for_each(|reason| touch(&self.deadletter_buried, &[function, reason]));
    }

    /// Every possible metric, in the order of this file.
    pub fn catalog(&self) -> &[Described] {
        &self.catalog
    }

    /// The label of a function: its name, or [`OTHER`] beyond the limit. So clients cannot grow the metrics without
    /// bound by inventing names.
    pub fn function_label<'a>(&self, function: &'a FunctionName) -> &'a str {
        let Labels { unproven, proven } = &mut *self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.contains(function) || unproven.contains(function) {
            return function.as_str();
        }
        if unproven.len() < UNPROVEN_LABELS_MAX && unproven.len() + proven.len() < FUNCTION_LABELS_MAX {
            unproven.insert(function.clone());
            self.begin_function(function.as_str());
            return function.as_str();
        }
        self.other.get_or_init(|| self.begin_function(OTHER));
        OTHER
    }

    /// Notes that Lambda has accepted an event of this function, so that its name is not invented.
    pub fn prove(&self, function: &FunctionName) {
        let Labels { unproven, proven } = &mut *self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.contains(function) {
            return;
        }
        if unproven.remove(function) || unproven.len() + proven.len() < FUNCTION_LABELS_MAX {
            proven.insert(function.clone());
            self.begin_function(function.as_str());
        }
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Creates a series, at 0 if it is new.
fn touch(counters: &IntCounterVec, labels: &[&str]) {
    counters.with_label_values(labels).inc_by(0);
}

/// The functions that have a label of their own.
#[derive(Default)]
struct Labels {
    unproven: BTreeSet<FunctionName>,
    proven: BTreeSet<FunctionName>,
}

/// The registered metrics with their descriptions. A family without a series is in no scrape.
#[derive(Default)]
struct Table {
    registry: Registry,
    catalog: RefCell<Vec<Described>>,
}

impl Table {
    fn register<M: Metric>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<M, prometheus::Error> {
        let metric = M::make(Opts::new(name, help), labels, buckets)?;
        self.registry.register(Box::new(metric.clone()))?;
        self.catalog.borrow_mut().extend(catalog::describe(&metric));
        Ok(metric)
    }
}

/// How to create each type of metric. Labels or buckets are empty if the type does not use them.
trait Metric: Collector + Clone + 'static {
    fn make(opts: Opts, labels: &[&str], buckets: &[f64]) -> Result<Self, prometheus::Error>;
}

impl Metric for IntCounter {
    fn make(opts: Opts, _: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(opts)
    }
}

impl Metric for IntCounterVec {
    fn make(opts: Opts, labels: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::new(opts, labels)
    }
}

impl Metric for IntGauge {
    fn make(opts: Opts, _: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(opts)
    }
}

impl Metric for IntGaugeVec {
    fn make(opts: Opts, labels: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::new(opts, labels)
    }
}

impl Metric for Gauge {
    fn make(opts: Opts, _: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(opts)
    }
}

impl Metric for GaugeVec {
    fn make(opts: Opts, labels: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::new(opts, labels)
    }
}

impl Metric for Histogram {
    fn make(opts: Opts, _: &[&str], buckets: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(HistogramOpts::from(opts).buckets(buckets.to_vec()))
    }
}

impl Metric for HistogramVec {
    fn make(opts: Opts, labels: &[&str], buckets: &[f64]) -> Result<Self, prometheus::Error> {
        Self::new(HistogramOpts::from(opts).buckets(buckets.to_vec()), labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_beyond_the_cap_share_one_label() {
        let metrics = Metrics::new().unwrap();
        for n in 0..FUNCTION_LABELS_MAX {
            let name = FunctionName::new(&format!("f{n}"));
            metrics.prove(&name);
            assert_eq!(metrics.function_label(&name), name.as_str());
        }
        assert_eq!(metrics.function_label(&FunctionName::new("late")), OTHER);
        metrics.prove(&FunctionName::new("late"));
        assert_eq!(metrics.function_label(&FunctionName::new("late")), OTHER, "the cap holds");
        assert_eq!(metrics.function_label(&FunctionName::new("f7")), "f7");
    }

    #[test]
    fn a_series_is_there_before_it_counts() {
        let metrics = Metrics::new().unwrap();
        metrics.begin(Words {
            refused: &["full"],
            buried: vec!["refused"],
            outcomes: &["delivered"],
            key_sources: vec!["client"],
            actions: vec!["drain"],
            action_results: &["done"],
        });
        metrics.function_label(&FunctionName::new("orders"));
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for series in [
            "sendoff_ingest_refused_total{reason=\"full\"} 0",
            "sendoff_deadletter_buried_total{function=\"orders\",reason=\"refused\"} 0",
            "sendoff_dispatch_attempts_total{function=\"orders\",outcome=\"delivered\"} 0",
            "sendoff_ingest_accepted_total{function=\"orders\"} 0",
        ] {
            assert!(text.contains(series), "{series} in\n{text}");
        }
        for n in 0..FUNCTION_LABELS_MAX {
            metrics.function_label(&FunctionName::new(&format!("f{n}")));
        }
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains("sendoff_deadletter_buried_total{function=\"other\",reason=\"refused\"} 0"), "{text}");
    }

    #[test]
    fn invented_names_do_not_take_the_labels_of_functions_that_work() {
        let metrics = Metrics::new().unwrap();
        let invented: Vec<_> = (0..10_000).map(|n| FunctionName::new(&format!("invented{n}"))).collect();
        let labelled = invented.iter().filter(|name| metrics.function_label(name) != OTHER).count();
        assert_eq!(labelled, UNPROVEN_LABELS_MAX);
        let orders = FunctionName::new("orders");
        assert_eq!(metrics.function_label(&orders), OTHER);
        metrics.prove(&orders);
        assert_eq!(metrics.function_label(&orders), "orders");
    }
}
