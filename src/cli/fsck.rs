//! `sendoff fsck`: checks the outbox of a stopped daemon, and repairs it.

use clap::Args;
use serde_json::json;

use super::{ConfigOptions, Exit, Failure, print};
use crate::config::Environment;
use crate::outbox::OpenError;
use crate::outbox::embedded::repair::Report;
use crate::outbox::embedded::store::{Examined, examine, kept};
use crate::plural::{agree, count};

/// The report for a sound store.
const SOUND: &str = "sound: every checksum of the journal is right, every event can be read, and indexes and counts agree with the events";

/// Check the outbox while the daemon is stopped. With --repair, replace a damaged one by what can be read of it
///
/// Reads every event. Without --repair, changes nothing of the store: reads a copy of the index and of the journal's newest
/// segment. A repair keeps the damaged store beside the new one, under a dated name. Exits with 1 if there is
/// damage that was not repaired.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    config: ConfigOptions,
    /// If the store is damaged, replace it by a new one and keep the old one
    #[arg(long)]
    repair: bool,
    /// Report as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    let config = options.config.load(environment)?.config;
    if config.postgres.is_some() {
        let why = "the outbox is a database; `sendoff postgres check` looks at it";
        return Err(Failure::saying(Exit::Usage, why));
    }
    let examined = examine(&config.state_dir, &config.outbox, options.repair).map_err(|error| {
        let exit = match error {
            OpenError::Locked { .. } | OpenError::Io { .. } => Exit::Unavailable,
            OpenError::Newer { .. } | OpenError::Damaged { .. } => Exit::Internal,
        };
        Failure::new(exit, error)
    })?;
    let Some(examined) = examined else {
        return Err(Failure::saying(Exit::Failed, format!("there is no outbox in {}", config.state_dir.display())));
    };
    let set_aside: Vec<_> = kept(&config.state_dir).iter().map(|path| path.display().to_string()).collect();
    print(&if options.json { as_json(&examined, &set_aside) } else { in_words(&examined, &set_aside) })?;
    if examined.replaced.is_some() || is_sound(&examined) {
        return Ok(());
    }
    Err(Failure::saying(Exit::Failed, "the outbox is damaged; `sendoff fsck --repair` replaces it by what can be read"))
}

fn is_sound(examined: &Examined) -> bool {
    examined.unusable.is_none() && examined.report.is_sound()
}

fn as_json(examined: &Examined, kept: &[String]) -> String {
    let report = json!({
        "sound": is_sound(examined),
        "unusable": examined.unusable,
        "found": examined.report,
        "replaced": examined.replaced.as_ref().map(|path| path.display().to_string()),
        "damaged_stores": kept,
    });
    format!("{report}\n")
}

fn in_words(examined: &Examined, kept: &[String]) -> String {
    let Report { functions, events, bytes, keys, .. } = examined.report;
    let mut lines = Vec::new();
    if let Some(why) = &examined.unusable {
        lines.push(format!("the store cannot be used: {why}"));
    }
    if examined.unusable.is_none() || examined.replaced.is_some() {
        let (events, functions) = (count(events, "event"), count(functions, "function"));
        lines.push(format!("{events} of {functions}, {}; {}", count(bytes, "byte"), count(keys, "key")));
    }
    lines.extend(troubles(&examined.report));
    lines.extend(examined.report.damaged.iter().map(|area| format!("  damaged: {area}")));
    lines.extend(examined.report.unreadable_ids.iter().map(|id| format!("  cannot be read: {id}")));
    if is_sound(examined) {
        lines.push(SOUND.to_owned());
    }
    if let Some(path) = &examined.replaced {
        lines.push(format!("replaced; the damaged store is kept as {}", path.display()));
    }
    lines.extend(kept.iter().map(|path| format!("a damaged store is kept: {path}")));
    lines.join("\n") + "\n"
}

fn troubles(report: &Report) -> impl Iterator<Item = String> {
    let counted = [
        (report.unreadable_events, "event cannot be read", "events cannot be read"),
        (report.damaged_areas, "area of the journal is damaged", "areas of the journal are damaged"),
        (
            report.unreadable_ranges,
            "gap holds an unknown number of records that cannot be read",
            "gaps hold an unknown number of records that cannot be read",
        ),
        (
            report.unreadable_records,
            "key or function has a record that cannot be read",
            "keys or functions have a record that cannot be read",
        ),
        (report.wrong_counts, "function has a wrong count", "functions have a wrong count"),
        (report.index_missing, "event is missing from its index", "events are missing from their index"),
        (report.index_stray, "index entry leads to no event", "index entries lead to no event"),
        (
            report.stray_bodies,
            "body has no event (this only takes space)",
            "bodies have no event (this only takes space)",
        ),
    ];
    counted.into_iter().filter(|(count, ..)| *count > 0).map(|(count, one, many)| agree(count, one, many))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_wrong_and_nothing_else() {
        let sound = Examined { unusable: None, report: Report { events: 3, ..Report::default() }, replaced: None };
        assert_eq!(in_words(&sound, &[]), format!("3 events of 0 functions, 0 bytes; 0 keys\n{SOUND}\n"));
        let report = Report { unreadable_events: 1, unreadable_ids: vec!["some-id".into()], ..Report::default() };
        let examined = Examined { unusable: None, report, replaced: None };
        let words = in_words(&examined, &["/s/outbox.damaged-1".into()]);
        assert!(words.contains("1 event cannot be read\n  cannot be read: some-id\n"), "{words}");
        assert!(words.contains("/s/outbox.damaged-1") && !words.contains("\nsound"), "{words}");
        assert!(as_json(&examined, &[]).contains("\"sound\":false"));
    }

    #[test]
    fn a_directory_without_an_outbox_is_no_sound_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = ConfigOptions { config: None, state_dir: Some(dir.path().display().to_string()), set: Vec::new() };
        let options = Options { config, repair: false, json: false };
        let failure = run(options, &Environment::from_pairs(&[("HOME", "/h")])).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
    }
}
