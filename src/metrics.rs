//! Every metric, by name. Passed down as an argument; there is no global registry, so that two daemons fit in one test.

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

/// Functions that get a label of their own; all others share [`OTHER`].
const FUNCTION_LABELS_MAX: usize = 200;

/// How many of them nothing was delivered to yet. Their names come from clients, who can invent any number of them; the rest
/// is for functions that Lambda has taken an event for.
const UNPROVEN_LABELS_MAX: usize = 100;

/// The label of the functions beyond the cap.
pub const OTHER: &str = "other";

/// From the loopback call that takes a fraction of a millisecond to Lambda's slowest answer, in seconds.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Events in one commit.
const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Where a dead letter that did not ship may have failed without a word of SQS's own.
const SHIP_FAILURES: [&str; 3] = ["unshippable", "unreachable", "unanswered"];

/// Classes of an HTTP status.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The values of labels that are known before anything is counted.
#[derive(Debug, Clone)]
pub struct Words {
    pub refused: &'static [&'static str],
    pub buried: Vec<&'static str>,
    pub outcomes: &'static [&'static str],
    pub key_sources: Vec<&'static str>,
}

/// All metrics of one daemon.
pub struct Metrics {
    registry: Registry,
    catalog: Vec<Described>,
    labels: Mutex<Labels>,
    words: OnceLock<Words>,
    /// Set once the series of [`OTHER`] are made.
    other: OnceLock<()>,
    /// by function
    pub ingest_accepted: IntCounterVec,
    /// by reason
    pub ingest_refused: IntCounterVec,
    /// by function and key source
    pub ingest_repeats: IntCounterVec,
    pub ingest_connections: IntGauge,
    /// Unix time; 0 while no listener speaks TLS.
    pub tls_certificate_expiry_timestamp_seconds: Gauge,
    pub tls_reload_failures: IntCounter,
    pub tls_handshake_failures: IntCounter,
    /// by class of the status
    pub ingest_passed: IntCounterVec,
    /// From the complete request to the durable commit.
    pub outbox_append_seconds: Histogram,
    /// One write + sync.
    pub outbox_flush_seconds: Histogram,
    pub outbox_batch_events: Histogram,
    /// by function and state
    pub outbox_events: IntGaugeVec,
    /// by function and state
    pub outbox_bytes: IntGaugeVec,
    pub outbox_disk_bytes: IntGauge,
    pub outbox_disk_free_bytes: IntGauge,
    pub outbox_keys: IntGauge,
    pub outbox_poisoned: IntGauge,
    pub outbox_unreadable_events: IntGauge,
    pub outbox_damaged_stores: IntGauge,
    /// by function
    pub outbox_oldest_age_seconds: GaugeVec,
    /// by function and outcome
    pub dispatch_attempts: IntCounterVec,
    /// by function
    pub dispatch_attempt_seconds: HistogramVec,
    /// by function
    pub dispatch_in_flight: IntGaugeVec,
    /// by function
    pub dispatch_limit: IntGaugeVec,
    /// by function
    pub dispatch_retries: IntCounterVec,
    /// by function; 1 while a lane is held
    pub dispatch_held: IntGaugeVec,
    /// by function and reason
    pub deadletter_buried: IntCounterVec,
    /// by function
    pub deadletter_shipped: IntCounterVec,
    /// by code
    pub deadletter_ship_failures: IntCounterVec,
    /// by function
    pub deadletter_unshippable: IntCounterVec,
    /// by queue
    pub deadletter_queue_messages: IntGaugeVec,
    /// by queue
    pub deadletter_queue_retention_seconds: GaugeVec,
    /// by source
    pub deadletter_redriven: IntCounterVec,
    /// by result
    pub deadletter_redrive_refused: IntCounterVec,
    pub log_dropped: IntCounter,
    /// by reason
    pub admin_refused: IntCounterVec,
    pub ready: IntGauge,
    pub start_time_seconds: Gauge,
    /// Since the start.
    pub clock_offset_seconds: Gauge,
}

impl Metrics {
    #[expect(clippy::too_many_lines, reason = "a table: one line or two a metric")]
    pub fn new() -> Result<Self, prometheus::Error> {
        let table = Table::default();
        let r = &table;
        let build_info = int_gauge_vec(r, "sendoff_build_info", "Always 1; the label has the version.", &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            ingest_accepted: counter_vec(
                r,
                "sendoff_ingest_accepted_total",
                "New events that were stored and answered with 202.",
                &["function"],
            )?,
            ingest_refused: counter_vec(
                r,
                "sendoff_ingest_refused_total",
                "Requests that were refused; nothing of them was stored.",
                &["reason"],
            )?,
            ingest_repeats: counter_vec(
                r,
                "sendoff_ingest_duplicates_total",
                "Requests that repeated an event with a remembered key; they were answered with 202.",
                &["function", "key_source"],
            )?,
            ingest_passed: counter_vec(
                r,
                "sendoff_ingest_passed_total",
                "Calls passed through to Lambda that Lambda answered.",
                &["status"],
            )?,
            ingest_connections: int_gauge(
                r,
                "sendoff_ingest_connections",
                "Open connections to the ingest listeners.",
            )?,
            tls_certificate_expiry_timestamp_seconds: register(
                r,
                Gauge::with_opts(Opts::new(
                    "sendoff_tls_certificate_expiry_timestamp_seconds",
                    "When the certificate of the listeners expires, Unix time; 0 without TLS.",
                ))?,
            )?,
            tls_reload_failures: counter(
                r,
                "sendoff_tls_reload_failures_total",
                "Changes of the TLS files that could not be used; the certificate before stays in service.",
            )?,
            tls_handshake_failures: counter(
                r,
                "sendoff_tls_handshake_failures_total",
                "Connections that failed in the TLS handshake, those that began with plain HTTP among them.",
            )?,
            outbox_append_seconds: histogram(
                r,
                "sendoff_outbox_append_seconds",
                "Time from a complete request until its event is on stable storage.",
                SECONDS,
            )?,
            outbox_flush_seconds: histogram(
                r,
                "sendoff_outbox_flush_seconds",
                "Duration of a group commit: write and sync.",
                SECONDS,
            )?,
            outbox_batch_events: histogram(
                r,
                "sendoff_outbox_batch_events",
                "Events that one group commit appended or settled.",
                BATCH,
            )?,
            outbox_events: int_gauge_vec(r, "sendoff_outbox_events", "Events in the store.", &["function", "state"])?,
            outbox_bytes: int_gauge_vec(
                r,
                "sendoff_outbox_bytes",
                "Bytes of event records in the store.",
                &["function", "state"],
            )?,
            outbox_disk_bytes: int_gauge(r, "sendoff_outbox_disk_bytes", "Disk space that the store takes.")?,
            outbox_disk_free_bytes: int_gauge(
                r,
                "sendoff_outbox_disk_free_bytes",
                "Free space on the disk that holds the store.",
            )?,
            outbox_keys: int_gauge(r, "sendoff_outbox_keys", "Remembered idempotency keys.")?,
            outbox_poisoned: int_gauge(
                r,
                "sendoff_outbox_poisoned",
                "1 after a failed write or sync; a restart recovers.",
            )?,
            outbox_unreadable_events: int_gauge(
                r,
                "sendoff_outbox_unreadable_events",
                "Events that could not be read since the start, or that the salvage at the start could not save.",
            )?,
            outbox_damaged_stores: int_gauge(
                r,
                "sendoff_outbox_damaged_stores",
                "Damaged stores that the state directory held at the start; inspect and remove them.",
            )?,
            outbox_oldest_age_seconds: gauge_vec(
                r,
                "sendoff_outbox_oldest_age_seconds",
                "Age of the oldest event that is ready or waiting. Alert on this one.",
                &["function"],
            )?,
            dispatch_attempts: counter_vec(
                r,
                "sendoff_dispatch_attempts_total",
                "Calls of Lambda's Invoke.",
                &["function", "outcome"],
            )?,
            dispatch_attempt_seconds: histogram_vec(
                r,
                "sendoff_dispatch_attempt_seconds",
                "Duration of a call of Lambda's Invoke.",
                SECONDS,
                &["function"],
            )?,
            dispatch_in_flight: int_gauge_vec(r, "sendoff_dispatch_in_flight", "Attempts in flight.", &["function"])?,
            dispatch_limit: int_gauge_vec(
                r,
                "sendoff_dispatch_limit",
                "Attempts that the limiter allows in flight.",
                &["function"],
            )?,
            dispatch_retries: counter_vec(
                r,
                "sendoff_dispatch_retries_total",
                "Attempts after which the event was set to be retried.",
                &["function"],
            )?,
            dispatch_held: int_gauge_vec(
                r,
                "sendoff_dispatch_held",
                "1 while deliveries to the function are held, for a reason that is not its events' fault.",
                &["function"],
            )?,
            deadletter_buried: counter_vec(
                r,
                "sendoff_deadletter_buried_total",
                "Events that became dead letters.",
                &["function", "reason"],
            )?,
            deadletter_shipped: counter_vec(
                r,
                "sendoff_deadletter_shipped_total",
                "Dead letters that SQS confirmed.",
                &["function"],
            )?,
            deadletter_ship_failures: counter_vec(
                r,
                "sendoff_deadletter_ship_failures_total",
                "Dead letters that SQS did not take; they stay in the store.",
                &["code"],
            )?,
            deadletter_unshippable: counter_vec(
                r,
                "sendoff_deadletter_unshippable_total",
                "Dead letters that do not fit their queue, or that SQS refused; they stay in the store.",
                &["function"],
            )?,
            deadletter_queue_messages: int_gauge_vec(
                r,
                "sendoff_deadletter_queue_messages",
                "Approximate number of messages in a dead-letter queue, as SQS last reported.",
                &["queue"],
            )?,
            deadletter_queue_retention_seconds: gauge_vec(
                r,
                "sendoff_deadletter_queue_retention_seconds",
                "Time after which a dead-letter queue deletes a message, read or not.",
                &["queue"],
            )?,
            deadletter_redriven: counter_vec(
                r,
                "sendoff_deadletter_redriven_total",
                "Dead letters that a redrive accepted again.",
                &["source"],
            )?,
            deadletter_redrive_refused: counter_vec(
                r,
                "sendoff_deadletter_redrive_refused_total",
                "Dead letters that a redrive did not accept.",
                &["result"],
            )?,
            log_dropped: counter(r, "sendoff_log_dropped_total", "Log lines that could not be written to stderr.")?,
            admin_refused: counter_vec(
                r,
                "sendoff_admin_refused_total",
                "Requests to the operator's API that were refused before they reached it, such as those of web pages.",
                &["reason"],
            )?,
            ready: int_gauge(r, "sendoff_ready", "1 while `/readyz` answers 200.")?,
            start_time_seconds: register(
                r,
                Gauge::with_opts(Opts::new("sendoff_start_time_seconds", "Start of the daemon, as Unix time."))?,
            )?,
            clock_offset_seconds: register(
                r,
                Gauge::with_opts(Opts::new(
                    "sendoff_clock_offset_seconds",
                    "How much the wall clock was set since the start, suspends included.",
                ))?,
            )?,
            labels: Mutex::default(),
            words: OnceLock::new(),
            other: OnceLock::new(),
            catalog: table.catalog.into_inner(),
            registry: table.registry,
        })
    }

    /// Makes every series whose labels are known, at 0: an `increase()` does not see the first step of a series that is born
    /// at 1. Those of a function follow with its label.
    pub fn begin(&self, words: Words) {
        words.refused.iter().for_each(|word| touch(&self.ingest_refused, &[word]));
        CLASSES.iter().for_each(|class| touch(&self.ingest_passed, &[class]));
        SHIP_FAILURES.iter().for_each(|code| touch(&self.deadletter_ship_failures, &[code]));
        self.words.get_or_init(|| words);
    }

    fn begin_function(&self, function: &str) {
        let Some(words) = self.words.get() else { return };
        touch(&self.ingest_accepted, &[function]);
        touch(&self.dispatch_retries, &[function]);
        // Asking for these makes them, at 0.
        self.dispatch_held.with_label_values(&[function]);
        self.dispatch_attempt_seconds.with_label_values(&[function]);
        touch(&self.deadletter_shipped, &[function]);
        touch(&self.deadletter_unshippable, &[function]);
        words.key_sources.iter().for_each(|source| touch(&self.ingest_repeats, &[function, source]));
        words.outcomes.iter().for_each(|outcome| touch(&self.dispatch_attempts, &[function, outcome]));
        words.buried.iter().for_each(|reason| touch(&self.deadletter_buried, &[function, reason]));
    }

    /// Every metric that there can be, in the order of this file.
    pub fn catalog(&self) -> &[Described] {
        &self.catalog
    }

    /// The label of a function: its name, or [`OTHER`] once the cap is reached. A caller cannot grow the metrics without
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

    /// Notes that Lambda has taken an event of this function, so that it is no invented name.
    pub fn is_proven(&self, function: &FunctionName) {
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

/// Makes a series, at 0 if it is new.
fn touch(counters: &IntCounterVec, labels: &[&str]) {
    counters.with_label_values(labels).inc_by(0);
}

/// The functions that have a label of their own.
#[derive(Default)]
struct Labels {
    unproven: BTreeSet<FunctionName>,
    proven: BTreeSet<FunctionName>,
}

/// What is registered, and its description beside it: a family without a series yet is in no scrape.
#[derive(Default)]
struct Table {
    registry: Registry,
    catalog: RefCell<Vec<Described>>,
}

fn register<C: Collector + Clone + 'static>(table: &Table, collector: C) -> Result<C, prometheus::Error> {
    table.registry.register(Box::new(collector.clone()))?;
    table.catalog.borrow_mut().extend(catalog::describe(&collector));
    Ok(collector)
}

fn counter(r: &Table, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    register(r, IntCounter::with_opts(Opts::new(name, help))?)
}

fn counter_vec(r: &Table, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    register(r, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn int_gauge(r: &Table, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    register(r, IntGauge::with_opts(Opts::new(name, help))?)
}

fn int_gauge_vec(r: &Table, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    register(r, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn gauge_vec(r: &Table, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    register(r, GaugeVec::new(Opts::new(name, help), labels)?)
}

fn histogram(r: &Table, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
    register(r, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
}

fn histogram_vec(
    r: &Table,
    name: &str,
    help: &str,
    buckets: &[f64],
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    register(r, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_beyond_the_cap_share_one_label() {
        let metrics = Metrics::new().unwrap();
        for n in 0..FUNCTION_LABELS_MAX {
            let name = FunctionName::new(&format!("f{n}"));
            metrics.is_proven(&name);
            assert_eq!(metrics.function_label(&name), name.as_str());
        }
        assert_eq!(metrics.function_label(&FunctionName::new("late")), OTHER);
        metrics.is_proven(&FunctionName::new("late"));
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
        metrics.is_proven(&orders);
        assert_eq!(metrics.function_label(&orders), "orders");
    }
}
