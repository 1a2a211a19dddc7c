//! Suggests known keys for an unknown one.

use std::collections::BTreeSet;

/// Below this likeness, a guess is more likely to mislead.
const LIKENESS_MIN: f64 = 0.75;

/// If there are more guesses than this, none is shown.
const GUESSES_MAX: usize = 3;

/// Words of people and of other programs for our keys, which likeness does not find. A key with its table comes before
/// its name alone.
const MEANT: &[(&str, &[&str])] = &[
    ("lambda.timeout", &["lambda.read_timeout", "delivery.confirm_timeout"]),
    ("sqs.timeout", &["sqs.read_timeout", "sqs.connect_timeout"]),
    ("lambda.concurrency", &["lambda.in_flight_max"]),
    ("lambda.concurrency_max", &["lambda.in_flight_max"]),
    ("lambda.max_concurrency", &["lambda.in_flight_max"]),
    ("admin.port", &["listen.admin"]),
    ("health.port", &["listen.health"]),
    ("metrics.port", &["listen.health"]),
    ("dead_letter.retries", &["dead_letter.redrives_max"]),
    ("dead_letter.url", &["dead_letter.queue_url"]),
    ("retries", &["delivery.attempts_max"]),
    ("retry", &["delivery.attempts_max", "delivery.backoff_base"]),
    ("max_retries", &["delivery.attempts_max"]),
    ("retries_max", &["delivery.attempts_max"]),
    ("retry_max", &["delivery.attempts_max"]),
    ("maximum_retry_attempts", &["delivery.attempts_max"]),
    ("maximum_event_age", &["delivery.age_max"]),
    ("maximum_event_age_in_seconds", &["delivery.age_max"]),
    ("ttl", &["delivery.age_max"]),
    ("expiry", &["delivery.age_max"]),
    ("backoff", &["delivery.backoff_base", "delivery.backoff_cap"]),
    ("backoff_max", &["delivery.backoff_cap"]),
    ("max_backoff", &["delivery.backoff_cap"]),
    ("retry_delay", &["delivery.backoff_base", "delivery.backoff_cap"]),
    ("concurrency", &["delivery.concurrency_max", "lambda.in_flight_max"]),
    ("max_concurrency", &["delivery.concurrency_max", "lambda.in_flight_max"]),
    ("parallelism", &["delivery.concurrency_max", "lambda.in_flight_max"]),
    ("rate_limit", &["delivery.rate", "lambda.rate"]),
    ("timeout", &["lambda.read_timeout", "delivery.confirm_timeout", "listen.body_timeout"]),
    ("port", &["listen.ingest", "listen.admin"]),
    ("host", &["listen.ingest", "listen.ingest_hosts"]),
    ("bind", &["listen.ingest", "listen.admin"]),
    ("address", &["listen.ingest", "listen.admin"]),
    ("listen", &["listen.ingest", "listen.admin"]),
    ("socket", &["listen.unix"]),
    ("unix_socket", &["listen.unix"]),
    ("dlq", &["dead_letter.queue_url"]),
    ("queue", &["dead_letter.queue_url"]),
    ("dead_letter_queue", &["dead_letter.queue_url"]),
    ("dlq_url", &["dead_letter.queue_url"]),
    ("endpoint", &["lambda.endpoint_url", "sqs.endpoint_url"]),
    ("data_dir", &["state_dir"]),
    ("directory", &["state_dir"]),
    ("path", &["state_dir", "listen.unix"]),
    ("loglevel", &["log.level"]),
    ("verbosity", &["log.level"]),
    ("debug", &["log.level"]),
    ("max_size", &["outbox.bytes_max"]),
    ("size", &["outbox.bytes_max"]),
    ("dedup", &["outbox.dedupe_window"]),
    ("deduplication", &["outbox.dedupe_window"]),
    ("max_connections", &["listen.connections_max"]),
    ("drain_timeout", &["shutdown.grace"]),
    ("shutdown_timeout", &["shutdown.grace"]),
];

/// The known keys that are most like `wanted`, in their own order. A known key is like it if only a few letters differ,
/// if its name is the same in another table, if it has the same words in another order, or if it has more words (`age`
/// for `delivery.age_max`).
pub(super) fn near_misses<'a>(wanted: &str, known: impl Iterator<Item = &'a str> + Clone) -> Vec<&'a str> {
    let name = wanted.rsplit('.').next().unwrap_or(wanted);
    let meant = [wanted, name].iter().find_map(|word| MEANT.iter().find(|(other, _)| other == word));
    if let Some((_, keys)) = meant {
        // A table of functions has the keys of `[delivery]`, without the table's name.
        let is_it = |meant: &str, key: &str| meant == key || meant.strip_prefix("delivery.") == Some(key);
        let found = keys.iter().filter_map(|meant| known.clone().find(|key| is_it(meant, key)));
        let found: Vec<&str> = found.collect();
        if !found.is_empty() {
            return found;
        }
    }
    let scored: Vec<(f64, &str)> = known.map(|key| (likeness(wanted, key), key)).collect();
    let best = scored.iter().map(|(score, _)| *score).fold(LIKENESS_MIN, f64::max);
    let guesses: Vec<&str> = scored.into_iter().filter(|(score, _)| *score >= best).map(|(_, key)| key).collect();
    if guesses.len() > GUESSES_MAX { Vec::new() } else { guesses }
}

/// The guesses as a question. `None` means that there is no guess.
pub(super) fn did_you_mean(guesses: &[String]) -> Option<String> {
    let quoted: Vec<String> = guesses.iter().map(|guess| format!("`{guess}`")).collect();
    (!quoted.is_empty()).then(|| format!("did you mean {}?", quoted.join(" or ")))
}

fn likeness(wanted: &str, key: &str) -> f64 {
    let letters = strsim::normalized_damerau_levenshtein(wanted, key);
    let (table, name) = split(wanted);
    let (key_table, key_name) = split(key);
    let names = strsim::normalized_damerau_levenshtein(name, key_name);
    let all = words(key);
    let asked = words(name);
    // If a table was written, the key with the most likeness as a whole wins.
    let whole = |at_least: f64| if table.is_empty() { at_least + 0.05 } else { at_least + letters / 20.0 };
    if words(wanted) == all {
        return 1.0;
    }
    let mut best = letters;
    if names >= 0.8 {
        best = best.max(whole(names * 0.9));
    }
    if asked.iter().all(|word| word.len() >= 3 && all.contains(word)) {
        best = best.max(whole(if table == key_table && !table.is_empty() { 0.85 } else { LIKENESS_MIN }));
    }
    best
}

fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(['.', '_', '-']).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::{Document, layered};
    use crate::config::{Environment, Flags};

    fn guesses(wanted: &str) -> Vec<String> {
        let (values, _) = layered(None::<Document<'_>>, &Environment::default(), &Flags::default());
        let known: Vec<&str> = values.entries().iter().map(|entry| entry.key.as_str()).collect();
        for (word, keys) in MEANT {
            assert!(keys.iter().all(|key| known.contains(key)) && !known.contains(word), "{word}: {keys:?}");
        }
        near_misses(wanted, known.iter().copied()).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn what_was_meant_is_among_the_few_that_are_named() {
        for (wanted, meant) in [
            ("age", "delivery.age_max"),
            ("region", "lambda.region"),
            ("lamda.region", "lambda.region"),
            ("queue_url", "dead_letter.queue_url"),
            ("sqs.queue_url", "dead_letter.queue_url"),
            ("dead_letter.url", "dead_letter.queue_url"),
            ("log_level", "log.level"),
            ("level", "log.level"),
            ("outbox.max_bytes", "outbox.bytes_max"),
            ("attempts", "delivery.attempts_max"),
            ("delivery.max_attempts", "delivery.attempts_max"),
            ("delivery.concurrency", "delivery.concurrency_max"),
            ("concurency_max", "delivery.concurrency_max"),
            ("ingest", "listen.ingest"),
            ("listen.ingres", "listen.ingest"),
            ("statedir", "state_dir"),
            ("state-dir", "state_dir"),
            ("dedupe", "outbox.dedupe_window"),
            ("grace", "shutdown.grace"),
            ("lambda.endpoint", "lambda.endpoint_url"),
            ("account", "lambda.account_id"),
            ("delivery.retries", "delivery.attempts_max"),
            ("retries", "delivery.attempts_max"),
            ("maximum_retry_attempts", "delivery.attempts_max"),
            ("delivery.max_concurrency", "delivery.concurrency_max"),
            ("concurrency", "delivery.concurrency_max"),
            ("lambda.concurrency", "lambda.in_flight_max"),
            ("port", "listen.ingest"),
            ("listen.port", "listen.ingest"),
            ("timeout", "lambda.read_timeout"),
            ("lambda.timeout", "lambda.read_timeout"),
            ("delivery.backoff", "delivery.backoff_base"),
            ("dlq", "dead_letter.queue_url"),
            ("data_dir", "state_dir"),
            ("listen.socket", "listen.unix"),
        ] {
            assert_eq!(guesses(wanted).first().map(String::as_str), Some(meant), "{wanted}: {:?}", guesses(wanted));
        }
        for nothing in ["zzz", "outbox.zzz", "max", "url_of_something_else"] {
            assert_eq!(guesses(nothing), Vec::<String>::new(), "{nothing}");
        }
        assert_eq!(near_misses("retries", ["mode", "attempts_max"].into_iter()), ["attempts_max"]);
        assert_eq!(did_you_mean(&["a".into(), "b".into()]).as_deref(), Some("did you mean `a` or `b`?"));
    }
}
