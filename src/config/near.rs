//! Suggests known keys for an unknown one.

use std::collections::BTreeSet;

/// Below this likeness, a guess is more likely to mislead.
const LIKENESS_MIN: f64 = 0.75;

/// If there are more guesses than this, none is shown.
const GUESSES_MAX: usize = 3;

/// The known keys that are most like `wanted`, in their own order. A known key is like it if only a few letters differ,
/// if its name is the same in another table, if it has the same words in another order, or if it has more words (`age`
/// for `delivery.age_max`).
pub(super) fn near_misses<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
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
        near_misses(wanted, known.into_iter()).into_iter().map(str::to_owned).collect()
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
        ] {
            assert_eq!(guesses(wanted).first().map(String::as_str), Some(meant), "{wanted}: {:?}", guesses(wanted));
        }
        for nothing in ["zzz", "outbox.zzz", "max", "url_of_something_else"] {
            assert_eq!(guesses(nothing), Vec::<String>::new(), "{nothing}");
        }
        assert_eq!(did_you_mean(&["a".into(), "b".into()]).as_deref(), Some("did you mean `a` or `b`?"));
    }
}
