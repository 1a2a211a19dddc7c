//! What keeps the daemon from delivering, in words and with what to do: the part of `sendoff status` to read first. Pure.

use std::collections::BTreeMap;

use super::api;
use crate::dispatch::status::Lanes;
use crate::dispatch::verdict::PauseKind;
use crate::event::FunctionName;
use crate::outbox::{Census, Place, bytes_for_events};
use crate::plural::{agree, count};

/// Functions that one problem names; of more it tells the number.
const NAMED_MAX: usize = 3;

/// What the problems are found in.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// Why the daemon is not ready.
    pub not_ready: Option<String>,
    /// What it lacks to reach AWS at all.
    pub missing: Vec<String>,
    /// Why the latest reload of the configuration changed nothing.
    pub not_reloaded: Option<String>,
    pub lanes: Lanes,
    pub paused: Vec<FunctionName>,
    pub census: Census,
    pub limits: Limits,
    pub unreadable: u64,
    /// Damaged stores that were set aside.
    pub set_aside: u64,
    pub unshippable: u64,
    /// How often SQS did not take dead letters, by code.
    pub ship_failures: BTreeMap<String, u64>,
    pub log_dropped: u64,
}

/// The limits of the store that a problem may be about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub bytes_max: u64,
    pub events_max: u64,
    pub disk_reserve: u64,
}

pub(super) fn problems(facts: &Facts) -> Vec<api::Problem> {
    let mut found = Vec::new();
    let mut say = |kind: &str, message: String, remedy: &str| {
        found.push(api::Problem { kind: kind.to_owned(), message, remedy: remedy.to_owned() });
    };
    if let Some(why) = &facts.not_ready {
        say("not-ready", format!("the daemon is not ready: {why}"), "wait, or read its log");
    }
    for missing in &facts.missing {
        let remedy = "set it and restart; accepted events wait meanwhile";
        say("configuration", missing.clone(), remedy);
    }
    if let Some(why) = &facts.not_reloaded {
        let message = format!("the latest reload changed nothing: {why}");
        say("reload", message, "correct the file (`sendoff check-config` tells more) and send SIGHUP again");
    }
    for ((kind, reason), functions) in held(&facts.lanes) {
        let message = format!("{} {}: {reason}", named(&functions), words_of(kind));
        say(kind.as_str(), message, remedy_of(kind));
    }
    for (function, lane) in facts.lanes.iter().filter(|(_, lane)| lane.held.is_none()) {
        if let Some(since) = lane.failing_since {
            let error = lane.last_error.as_ref().map_or("no error is known", |error| error.words.as_str());
            let message = format!(
                "{function} fails since {}: {} of {} in the last minute; the last said {error}",
                since.rfc3339(),
                lane.failed_per_minute,
                count(lane.failed_per_minute.saturating_add(lane.delivered_per_minute).into(), "attempt"),
            );
            say(
                "failing",
                message,
                "look at the function's own log; `sendoff functions --watch` shows whether it gets better",
            );
        }
    }
    let waiting: Vec<FunctionName> = facts.paused.clone();
    if !waiting.is_empty() {
        let message = format!("{} paused by an operator; events are kept and expire", named(&waiting));
        say("paused", message, "`sendoff resume FUNCTION` lets them go");
    }
    room(facts, &mut say);
    damage(facts, &mut say);
    if facts.unshippable > 0 {
        let one = "dead letter was refused by its queue and stays in the store";
        let many = "dead letters were refused by their queue and stay in the store";
        let message = agree(facts.unshippable, one, many);
        say("unshippable", message, "`sendoff dead-letters list` says why; then redrive, export or purge them");
    }
    let buried: u64 =
        facts.census.lanes.values().filter_map(|lane| lane.by_place.get(&Place::Buried)).map(|c| c.events).sum();
    if buried > 0 && !facts.ship_failures.is_empty() {
        let codes: Vec<String> =
            facts.ship_failures.iter().map(|(code, times)| format!("{code} {}", count(*times, "time"))).collect();
        let message = format!("SQS refused dead letters since the start ({})", codes.join(", "));
        say("shipping", message, "the log names the queue and what to do; `sendoff check-config --online` tries it");
    }
    if facts.log_dropped > 0 {
        let (one, many) = ("log line was dropped", "log lines were dropped");
        let message = format!("{} because stderr could not be written", agree(facts.log_dropped, one, many));
        say("log", message, "see to what reads the daemon's stderr");
    }
    found
}

/// The lanes that are held, by why. One reason often holds many.
fn held(lanes: &Lanes) -> BTreeMap<(PauseKind, String), Vec<FunctionName>> {
    let mut held: BTreeMap<(PauseKind, String), Vec<FunctionName>> = BTreeMap::new();
    for (function, lane) in lanes {
        if let Some(why) = &lane.held {
            held.entry((why.kind, why.reason.clone())).or_default().push(function.clone());
        }
    }
    held
}

fn words_of(kind: PauseKind) -> &'static str {
    match kind {
        PauseKind::Throttled => "throttled by Lambda",
        PauseKind::Unreachable => "not reached",
        PauseKind::Outage => "in an outage",
        PauseKind::Unready => "not ready",
        PauseKind::Held => "held",
        PauseKind::Spent => "at the ceiling of invocations an hour",
    }
}

fn remedy_of(kind: PauseKind) -> &'static str {
    match kind {
        PauseKind::Throttled => "raise the concurrency of the function or account; nothing is charged meanwhile",
        PauseKind::Unreachable => "check the network, the proxy and lambda.endpoint_url; sendoff retries by itself",
        PauseKind::Outage => {
            "see to Lambda (health.aws.amazon.com), the proxy or the function; nothing is charged, and it is probed by itself"
        }
        PauseKind::Unready => "wait until the function's update or its network is done; sendoff retries by itself",
        PauseKind::Held => "repair what it says (`sendoff check-config --online` tries it); sendoff retries by itself",
        PauseKind::Spent => "wait for the next hour, or raise invocations_per_hour_max",
    }
}

fn named(functions: &[FunctionName]) -> String {
    let names: Vec<&str> = functions.iter().take(NAMED_MAX).map(FunctionName::as_str).collect();
    let names = names.join(", ");
    match functions.len() {
        1 => format!("{names} is"),
        few if few <= NAMED_MAX => format!("{names} are"),
        many => format!("{names} and {} more are", many - NAMED_MAX),
    }
}

/// Room that is used up, or soon will be.
fn room(facts: &Facts, say: &mut impl FnMut(&str, String, &str)) {
    let Limits { bytes_max, events_max, disk_reserve } = facts.limits;
    let Census { disk_bytes, disk_free_bytes, events, .. } = facts.census;
    let mib = |bytes: u64| bytes >> 20;
    let remedy = "enlarge the volume, or find out why events stay";
    if disk_free_bytes <= disk_reserve && disk_reserve > 0 {
        let message = format!(
            "the disk has {} MiB free, no more than outbox.disk_reserve ({} MiB): events are refused",
            mib(disk_free_bytes),
            mib(disk_reserve)
        );
        say("disk", message, remedy);
    } else if disk_free_bytes / 2 < disk_reserve {
        let message = format!(
            "the disk has {} MiB free; at {} MiB (outbox.disk_reserve) events are refused",
            mib(disk_free_bytes),
            mib(disk_reserve)
        );
        say("disk", message, remedy);
    }
    let of_bytes = ("outbox.bytes_max", "the disk space for new events (15/16 of outbox.bytes_max)");
    let of_events = ("outbox.events_max", "outbox.events_max");
    for (used, limit, (key, what)) in
        [(disk_bytes, bytes_for_events(bytes_max), of_bytes), (events, events_max, of_events)]
    {
        if limit > 0 && used >= limit / 10 * 9 {
            let percent = used.saturating_mul(100) / limit;
            let message = format!("the outbox has used {percent} % of {what}; at 100 % it refuses events");
            say("room", message, &format!("raise {key}, or find out why events stay"));
        }
    }
}

fn damage(facts: &Facts, say: &mut impl FnMut(&str, String, &str)) {
    if facts.unreadable > 0 {
        let message = agree(facts.unreadable, "stored event cannot be read", "stored events cannot be read");
        say("damage", message, "look at the disk; `sendoff fsck`, with the daemon stopped, tells more");
    }
    if facts.set_aside > 0 {
        let said = agree(facts.set_aside, "damaged store was", "damaged stores were");
        let message = format!("{said} set aside in the state directory");
        say("damage", message, "keep what was set aside until nothing is missed, then remove it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::dispatch::status::{Held, LaneStatus, LastError};
    use crate::dispatch::verdict::Scope;

    fn lane(kind: PauseKind, reason: &str) -> LaneStatus {
        let held = Held { scope: Scope::Lane, kind, reason: reason.to_owned(), until: UnixMillis(1) };
        LaneStatus { held: Some(held), ..LaneStatus::default() }
    }

    fn kinds(facts: &Facts) -> Vec<String> {
        problems(facts).into_iter().map(|problem| problem.kind).collect()
    }

    #[test]
    fn a_daemon_that_delivers_has_no_problems() {
        assert_eq!(problems(&Facts::default()), []);
    }

    #[test]
    fn one_reason_that_holds_many_lanes_is_one_problem_with_a_remedy() {
        let lanes = (0..5).map(|n| (FunctionName::new(&format!("f{n}")), lane(PauseKind::Held, "AccessDenied")));
        let mut facts = Facts { lanes: lanes.collect(), ..Facts::default() };
        facts.lanes.insert(FunctionName::new("g"), lane(PauseKind::Unreachable, "connection refused"));
        let found = problems(&facts);
        assert_eq!(found.len(), 2, "{found:?}");
        let said: Vec<&str> = found.iter().map(|problem| problem.message.as_str()).collect();
        assert!(said.contains(&"f0, f1, f2 and 2 more are held: AccessDenied"), "{said:?}");
        assert!(said.contains(&"g is not reached: connection refused"), "{said:?}");
        assert!(found.iter().all(|problem| !problem.remedy.is_empty()));
    }

    #[test]
    fn a_function_that_fails_without_being_held_is_named_with_its_rates_and_last_error() {
        let last_error = LastError { at: UnixMillis(1), words: "500 ServiceException: boom".to_owned() };
        let failing = LaneStatus {
            delivered_per_minute: 1,
            failed_per_minute: 9,
            last_error: Some(last_error),
            failing_since: Some(UnixMillis(0)),
            ..LaneStatus::default()
        };
        let lanes = [(FunctionName::new("orders"), failing), (FunctionName::new("well"), LaneStatus::default())].into();
        let found = problems(&Facts { lanes, ..Facts::default() });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].message.starts_with("orders fails since 1970-01-01T00:00:00.000Z: 9 of 10 attempts"),
            "{found:?}"
        );
        assert!(found[0].message.ends_with("500 ServiceException: boom"), "{found:?}");
    }

    #[test]
    fn whatever_keeps_events_here_is_named() {
        let orders = FunctionName::new("orders");
        let facts = Facts {
            not_ready: Some("draining on request".to_owned()),
            missing: vec!["no AWS region for lambda".to_owned()],
            paused: vec![orders],
            limits: Limits { bytes_max: 100, events_max: 100, disk_reserve: 256 << 20 },
            census: Census { events: 90, disk_bytes: 80, disk_free_bytes: 300 << 20, ..Census::default() },
            unreadable: 1,
            set_aside: 1,
            unshippable: 2,
            log_dropped: 3,
            ..Facts::default()
        };
        let expected =
            ["not-ready", "configuration", "paused", "disk", "room", "damage", "damage", "unshippable", "log"];
        assert_eq!(kinds(&facts), expected);
        let full = Census { events: 0, disk_bytes: 94, ..facts.census.clone() };
        let full = problems(&Facts { census: full, ..facts.clone() });
        let room: Vec<_> = full.iter().filter(|problem| problem.kind == "room").collect();
        assert!(room.len() == 1 && room[0].message.contains("100 % of the disk space for new events"), "{full:?}");
        let full = Census { disk_free_bytes: 1, ..facts.census.clone() };
        let full = problems(&Facts { census: full, ..facts });
        assert!(full.iter().any(|problem| problem.kind == "disk" && problem.message.contains("are refused")));
    }
}
