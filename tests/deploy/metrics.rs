//! Tests the page about metrics, and everything that names metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use sendoff::metrics::{Metrics, catalog};
use serde_json::Value;

use crate::rig::daemon::{Setup, scratch};
use crate::rig::http;
use crate::tools::{root, said, succeed, tool};

#[test]
fn the_page_of_metrics_is_what_the_code_says() {
    let path = root().join("docs/metrics.md");
    let page = catalog::page(Metrics::new().unwrap().catalog());
    if std::env::var_os("SENDOFF_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/metrics.md is not what src/metrics.rs says: SENDOFF_BLESS=1 cargo test --test deploy metrics"
    );
}

/// The labels that a series of each name can have.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let metrics = Metrics::new().unwrap();
    let mut known = BTreeMap::new();
    for metric in metrics.catalog() {
        for series in metric.series() {
            let labels = metric.labels.iter().cloned().chain(["le", "instance", "job"].map(str::to_owned));
            known.insert(series, labels.collect());
        }
    }
    known
}

/// The expressions of the dashboard, each with its panel.
pub fn dashboard() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("deploy/grafana/sendoff.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap().to_owned();
        panel["targets"]
            .as_array()
            .unwrap()
            .iter()
            .map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
    });
    targets.collect()
}

/// The metrics that an expression names, and the labels that it selects by.
fn named(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("sendoff_") {
        let tail = &rest[at..];
        let end = tail.find(|c: char| !is_name(c)).unwrap_or(tail.len());
        let labels = tail[end..].strip_prefix('{').and_then(|selector| selector.split_once('}')).map_or(
            Vec::new(),
            |(inside, _)| {
                inside.split(", ").filter_map(|pair| Some(pair.split_once(['=', '!'])?.0.trim().to_owned())).collect()
            },
        );
        found.push((tail[..end].to_owned(), labels));
        rest = &tail[end..];
    }
    found
}

#[test]
fn the_dashboard_and_the_alerts_name_only_metrics_and_labels_that_exist() {
    let known = known();
    let alerts = std::fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(root().join("deploy/prometheus/alerts_test.yml")).unwrap();
    let texts = dashboard().into_iter().map(|(_, expression)| expression).chain([alerts, tests]);
    let named: Vec<_> = texts.flat_map(|text| named(&text)).collect();
    assert!(named.len() > 30, "{named:?}");
    for (metric, labels) in &named {
        let Some(allowed) = known.get(metric) else { panic!("{metric} does not exist") };
        assert!(labels.iter().all(|label| allowed.contains(label)), "{metric} has no such labels: {labels:?}");
    }
}

/// The metrics in `increase()`, `rate()` and `changes()` of the alerts.
fn stepped() -> BTreeSet<String> {
    let alerts = std::fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).unwrap();
    let mut found = BTreeSet::new();
    for function in ["increase(", "rate(", "changes("] {
        found.extend(
            alerts.split(function).skip(1).filter_map(|rest| named(rest).into_iter().next()).map(|(name, _)| name),
        );
    }
    found
}

#[test]
fn every_series_whose_steps_raise_an_alert_is_there_before_its_first_step() {
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", "http://127.0.0.1:9").start();
    let exported = |series: &str| daemon.scrape().0.lines().any(|line| line.starts_with(series));
    for reason in ["full", "crowded", "unavailable"] {
        assert!(exported(&format!("sendoff_ingest_refused_total{{reason=\"{reason}\"}} 0")), "{reason}");
    }
    daemon.accept("orders", &[], b"{}");
    assert!(stepped().len() >= 6, "{:?}", stepped());
    for name in stepped() {
        assert!(exported(&format!("{name}{{")) || exported(&format!("{name} ")), "{name}");
    }
    for reason in sendoff::outbox::BuryReason::ALL {
        let reason = reason.as_str();
        assert!(exported(&format!("sendoff_deadletter_buried_total{{function=\"orders\",reason=\"{reason}\"}} 0")));
    }
    // A restart knows the functions that have events, and creates their series.
    daemon.kill9();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", "http://127.0.0.1:9").start();
    let text = daemon.scrape().0;
    assert!(text.contains("sendoff_deadletter_buried_total{function=\"orders\",reason=\"refused\"} 0"), "{text}");
}

#[test]
fn selectors_are_read_from_expressions() {
    let read = named("sum(rate(sendoff_a_total{x=~\"$x\", y=\"z\"}[5m])) / sendoff_b");
    assert_eq!(
        read,
        [("sendoff_a_total".to_owned(), vec!["x".to_owned(), "y".to_owned()]), ("sendoff_b".to_owned(), vec![])]
    );
}

#[test]
fn promtool_accepts_what_is_served_and_what_is_deployed() {
    let Some(promtool) = tool("promtool", "prometheus") else { return };
    let (_scratch, state) = scratch();
    let daemon = Setup::new(&state).set("lambda.endpoint_url", "http://127.0.0.1:9").start();
    daemon.accept("orders", &[], b"{}");
    let text = http::get(daemon.admin, "/metrics").body;
    let mut check = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(&text).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success() && said(&output).trim().is_empty(), "{}", said(&output));

    let rules = root().join("deploy/prometheus");
    succeed(Command::new(&promtool).current_dir(&rules).args(["check", "rules", "alerts.yml"]));
    succeed(Command::new(&promtool).current_dir(&rules).args(["check", "config", "scrape.yml"]));
    succeed(Command::new(&promtool).current_dir(&rules).args(["test", "rules", "alerts_test.yml"]));
}
