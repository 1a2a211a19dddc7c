//! What keeps the daemon from delivering, in words and with what to do: the part of `sendoff status` to read first. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::api::{self, Severity};
use crate::clock::UnixMillis;
use crate::dispatch::status::Lanes;
use crate::dispatch::verdict::HoldKind;
use crate::event::FunctionName;
use crate::outbox::operator::Fleet;
use crate::outbox::{Census, Place, bytes_for_events};
use crate::plural::{agree, count};
use Severity::{Critical, Info, Warning};

/// Functions that one problem's sentence names; of more it tells the number.
const NAMED_MAX: usize = 3;

/// Functions that one problem lists.
const LISTED_MAX: usize = 20;

/// The oldest event of a function is late when this part of the age has passed at which it is buried.
const LATE_PART: u32 = 2;

/// How long before its end a certificate is a problem.
const CERTIFICATE_SOON: Duration = Duration::from_secs(7 * 24 * 3_600);

/// How much the clock may be set without being mentioned, in milliseconds.
const STEP_MAX: u64 = 60_000;

/// What the problems are found in.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub now: UnixMillis,
    /// How much the clock was set since the start, in milliseconds.
    pub stepped: i64,
    /// Why the daemon is not ready.
    pub not_ready: Option<String>,
    /// What it lacks to reach AWS at all.
    pub missing: Vec<String>,
    /// Why the latest reload of the configuration changed nothing.
    pub not_reloaded: Option<String>,
    pub lanes: Lanes,
    pub paused: Vec<FunctionName>,
    /// The ages of the oldest events, and those at which they are buried.
    pub ages: Vec<(FunctionName, Duration, Duration)>,
    pub census: Census,
    pub limits: Limits,
    /// Functions with dead letters that have no queue to go to.
    pub without_queue: Vec<(FunctionName, u64)>,
    pub certificate_expires: Option<UnixMillis>,
    pub unreadable: u64,
    /// Damaged stores that were set aside.
    pub set_aside: u64,
    pub unshippable: u64,
    /// How often SQS did not take dead letters, by code.
    pub ship_failures: BTreeMap<String, u64>,
    pub log_dropped: u64,
    /// The daemons that share the outbox.
    pub fleet: Option<Fleet>,
}

/// The limits of the store that a problem may be about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub bytes_max: u64,
    pub events_max: u64,
    pub disk_reserve: u64,
}

/// The problems that were found.
#[derive(Default)]
struct Found(Vec<api::Problem>);

impl Found {
    fn say(&mut self, severity: Severity, kind: &str, message: String, remedy: &str) {
        self.of(&[], severity, kind, message, remedy);
    }

    /// A problem of these functions.
    fn of(&mut self, functions: &[FunctionName], severity: Severity, kind: &str, message: String, remedy: &str) {
        let functions = functions.iter().take(LISTED_MAX).map(|name| name.as_str().to_owned()).collect();
        self.0.push(api::Problem { kind: kind.to_owned(), severity, message, remedy: remedy.to_owned(), functions });
    }
}

/// All problems, the worst first.
pub(super) fn problems(facts: &Facts) -> Vec<api::Problem> {
    let mut found = Found::default();
    of_the_daemon(facts, &mut found);
    facts.fleet.iter().for_each(|fleet| of_the_fleet(fleet, &mut found));
    of_functions(facts, &mut found);
    room(facts, &mut found);
    damage(facts, &mut found);
    of_dead_letters(facts, &mut found);
    if facts.log_dropped > 0 {
        let (one, many) = ("log line was dropped", "log lines were dropped");
        let message = format!("{} because stderr could not be written", agree(facts.log_dropped, one, many));
        found.say(Info, "log", message, "see to what reads the daemon's stderr");
    }
    // Problems of one severity keep their order.
    found.0.sort_by_key(|problem| problem.severity);
    found.0
}

fn of_the_daemon(facts: &Facts, found: &mut Found) {
    if let Some(why) = &facts.not_ready {
        found.say(Critical, "not-ready", format!("the daemon is not ready: {why}"), "wait, or read its log");
    }
    for missing in &facts.missing {
        let remedy = "set it and restart; accepted events wait meanwhile";
        found.say(Critical, "configuration", missing.clone(), remedy);
    }
    if let Some(why) = &facts.not_reloaded {
        let message = format!("the latest reload changed nothing: {why}");
        let remedy = "correct the file (`sendoff check-config` tells more) and send SIGHUP again";
        found.say(Warning, "reload", message, remedy);
    }
    if let Some(expires) = facts.certificate_expires.filter(|expires| *expires < facts.now.plus(CERTIFICATE_SOON)) {
        let is_over = expires <= facts.now;
        let (severity, verb) = if is_over { (Critical, "expired") } else { (Warning, "expires") };
        let message = format!("the listeners' certificate {verb} at {}", expires.rfc3339());
        found.say(
            severity,
            "certificate",
            message,
            "put a new one into the files of [tls]; sendoff reads it by itself",
        );
    }
    if facts.stepped.unsigned_abs() > STEP_MAX {
        let (by, way) = (facts.stepped.unsigned_abs() / 1_000, if facts.stepped > 0 { "forward" } else { "back" });
        let message = format!("the clock was set {way} by {by} s since the start; ages and waits kept their length");
        found.say(Info, "clock", message, "see to the machine's time synchronisation if this was not meant");
    }
}

fn of_the_fleet(fleet: &Fleet, found: &mut Found) {
    if fleet.unowned > 0 {
        let one = "function has no daemon that delivers its events";
        let many = "functions have no daemon that delivers their events";
        let remedy = "wait: a daemon takes over within outbox.postgres.lease; if none does, read the daemons' logs";
        found.say(Warning, "unowned", agree(fleet.unowned, one, many), remedy);
    }
    let silent: Vec<_> = fleet.members.iter().filter(|member| !member.answers).map(|member| &*member.name).collect();
    if !silent.is_empty() {
        let message = format!("no answer from {}: the counts of its functions are missing here", silent.join(", "));
        let remedy = "ask that daemon itself; if it is dead, another one takes over within outbox.postgres.lease";
        found.say(Info, "silent", message, remedy);
    }
}

fn of_functions(facts: &Facts, found: &mut Found) {
    for ((kind, reason), functions) in held(&facts.lanes) {
        let message = format!("{} {}: {reason}", named(&functions), words_of(kind));
        found.of(&functions, severity_of(kind), kind.as_str(), message, remedy_of(kind));
    }
    for (function, lane) in facts.lanes.iter().filter(|(_, lane)| lane.held.is_none()) {
        if let Some(since) = lane.failing_since {
            let error = lane.last_error.as_ref().map_or("no error is known", |error| error.words.as_str());
            let (failed, all) =
                (lane.failed_per_minute, lane.failed_per_minute.saturating_add(lane.delivered_per_minute));
            let rate = match all {
                0 => "no attempt in the last minute".to_owned(),
                _ => format!("{failed} of {} in the last minute", count(all.into(), "attempt")),
            };
            let message = format!("{function} fails since {}: {rate}; the last said {error}", since.rfc3339());
            // Lambda's code for every kind of throttling.
            let remedy = if error.contains("TooManyRequestsException") {
                remedy_of(HoldKind::Throttled)
            } else {
                "look at the function's own log; `sendoff functions --watch` shows whether it gets better"
            };
            found.of(std::slice::from_ref(function), Warning, "failing", message, remedy);
        }
    }
    late(facts, found);
    let waiting = &facts.paused;
    if !waiting.is_empty() {
        let message = format!("{} paused by an operator; events are kept and expire", named(waiting));
        found.of(waiting, Info, "paused", message, "`sendoff resume FUNCTION` lets them go");
    }
}

/// Functions whose oldest event has spent much of the time that it has.
fn late(facts: &Facts, found: &mut Found) {
    let mut late: Vec<_> =
        facts.ages.iter().filter(|(_, age, max)| !max.is_zero() && *age > *max / LATE_PART).collect();
    late.sort_by_key(|(_, age, max)| max.saturating_sub(*age));
    let Some((_, age, max)) = late.first() else { return };
    let functions: Vec<FunctionName> = late.iter().map(|(name, ..)| name.clone()).collect();
    let minutes = |time: &Duration| format!("{} min", time.as_secs() / 60);
    let message = format!(
        "{} late: the oldest event has waited {} of the {} after which it is given up",
        named(&functions),
        minutes(age),
        minutes(max),
    );
    let remedy = "see what holds or slows the function; raising age_max gives its events more time";
    found.of(&functions, Warning, "late", message, remedy);
}

fn of_dead_letters(facts: &Facts, found: &mut Found) {
    if facts.unshippable > 0 {
        let one = "dead letter was refused by its queue and stays in the store";
        let many = "dead letters were refused by their queue and stay in the store";
        let message = agree(facts.unshippable, one, many);
        let remedy = "`sendoff dead-letters list` says why; then redrive, export or purge them";
        found.say(Warning, "unshippable", message, remedy);
    }
    let buried: u64 =
        facts.census.lanes.values().filter_map(|lane| lane.by_place.get(&Place::Buried)).map(|c| c.events).sum();
    if buried > 0 && !facts.ship_failures.is_empty() {
        let codes: Vec<String> =
            facts.ship_failures.iter().map(|(code, times)| format!("{code} {}", count(*times, "time"))).collect();
        let message = format!("SQS refused dead letters since the start ({})", codes.join(", "));
        let remedy = "the log names the queue and what to do; `sendoff check-config --online` tries it";
        found.say(Warning, "shipping", message, remedy);
    }
    let waiting: u64 = facts.without_queue.iter().map(|(_, letters)| letters).sum();
    if waiting > 0 {
        let functions: Vec<FunctionName> = facts.without_queue.iter().map(|(name, _)| name.clone()).collect();
        let (one, many) = ("dead letter has no queue and waits", "dead letters have no queue and wait");
        let message = format!("{} in the store", agree(waiting, one, many));
        let remedy = "redrive or purge them, or set dead_letter.queue_url; they take room in the store";
        found.of(&functions, Warning, "dead-letters", message, remedy);
    }
}

/// The lanes that are held, by why. One reason often holds many.
fn held(lanes: &Lanes) -> BTreeMap<(HoldKind, String), Vec<FunctionName>> {
    let mut held: BTreeMap<(HoldKind, String), Vec<FunctionName>> = BTreeMap::new();
    for (function, lane) in lanes {
        if let Some(why) = &lane.held {
            held.entry((why.kind, why.reason.clone())).or_default().push(function.clone());
        }
    }
    held
}

fn words_of(kind: HoldKind) -> &'static str {
    match kind {
        HoldKind::Throttled => "throttled by Lambda",
        HoldKind::Unreachable => "not reached",
        HoldKind::Outage => "in an outage",
        HoldKind::Unready => "not ready",
        HoldKind::Operator => "held",
        HoldKind::Spent => "at the ceiling of invocations an hour",
    }
}

fn severity_of(kind: HoldKind) -> Severity {
    match kind {
        HoldKind::Unreachable | HoldKind::Outage | HoldKind::Operator => Warning,
        HoldKind::Throttled | HoldKind::Unready | HoldKind::Spent => Info,
    }
}

fn remedy_of(kind: HoldKind) -> &'static str {
    match kind {
        HoldKind::Throttled => "raise the concurrency of the function or account; nothing is charged meanwhile",
        HoldKind::Unreachable => "check the network, the proxy and lambda.endpoint_url; sendoff retries by itself",
        HoldKind::Outage => {
            "see to Lambda (health.aws.amazon.com), the proxy or the function; nothing is charged, and it is probed by itself"
        }
        HoldKind::Unready => "wait until the function's update or its network is done; sendoff retries by itself",
        HoldKind::Operator => {
            "repair what it says (`sendoff check-config --online` tries it); sendoff retries by itself"
        }
        HoldKind::Spent => "wait for the next hour, or raise invocations_per_hour_max",
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
fn room(facts: &Facts, found: &mut Found) {
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
        found.say(Critical, "disk", message, remedy);
    } else if disk_free_bytes / 2 < disk_reserve {
        let message = format!(
            "the disk has {} MiB free; at {} MiB (outbox.disk_reserve) events are refused",
            mib(disk_free_bytes),
            mib(disk_reserve)
        );
        found.say(Warning, "disk", message, remedy);
    }
    let of_bytes = ("outbox.bytes_max", "the disk space for new events (15/16 of outbox.bytes_max)");
    let of_events = ("outbox.events_max", "outbox.events_max");
    for (used, limit, (key, what)) in
        [(disk_bytes, bytes_for_events(bytes_max), of_bytes), (events, events_max, of_events)]
    {
        if limit > 0 && used >= limit / 10 * 9 {
            let percent = used.saturating_mul(100) / limit;
            let message = format!("the outbox has used {percent} % of {what}; at 100 % it refuses events");
            let severity = if percent >= 100 { Critical } else { Warning };
            found.say(severity, "room", message, &format!("raise {key}, or find out why events stay"));
        }
    }
}

fn damage(facts: &Facts, found: &mut Found) {
    if facts.unreadable > 0 {
        let message = agree(facts.unreadable, "stored event cannot be read", "stored events cannot be read");
        found.say(Warning, "damage", message, "look at the disk; `sendoff fsck`, with the daemon stopped, tells more");
    }
    if facts.set_aside > 0 {
        let said = agree(facts.set_aside, "damaged store was", "damaged stores were");
        let message = format!("{said} set aside in the state directory");
        found.say(Info, "damage", message, "keep what was set aside until nothing is missed, then remove it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::status::{Held, LaneStatus, LastError};
    use crate::dispatch::verdict::Scope;

    fn lane(kind: HoldKind, reason: &str) -> LaneStatus {
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
        let lanes = (0..5).map(|n| (FunctionName::new(&format!("f{n}")), lane(HoldKind::Operator, "AccessDenied")));
        let mut facts = Facts { lanes: lanes.collect(), ..Facts::default() };
        facts.lanes.insert(FunctionName::new("g"), lane(HoldKind::Unreachable, "connection refused"));
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
        assert!(found[0].remedy.contains("the function's own log"), "{found:?}");
    }

    #[test]
    fn a_function_that_is_throttled_is_told_to_get_more_concurrency() {
        let words = "429 TooManyRequestsException: Rate Exceeded.".to_owned();
        let throttled = LaneStatus {
            last_error: Some(LastError { at: UnixMillis(1), words }),
            failing_since: Some(UnixMillis(0)),
            ..LaneStatus::default()
        };
        let lanes = [(FunctionName::new("orders"), throttled)].into();
        let found = problems(&Facts { lanes, ..Facts::default() });
        assert!(found[0].message.contains("no attempt in the last minute"), "{found:?}");
        assert!(found[0].remedy.contains("concurrency"), "{found:?}");
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
            ["not-ready", "configuration", "disk", "room", "damage", "unshippable", "paused", "damage", "log"];
        assert_eq!(kinds(&facts), expected);
        let full = Census { events: 0, disk_bytes: 94, ..facts.census.clone() };
        let full = problems(&Facts { census: full, ..facts.clone() });
        let room: Vec<_> = full.iter().filter(|problem| problem.kind == "room").collect();
        assert!(room.len() == 1 && room[0].message.contains("100 % of the disk space for new events"), "{full:?}");
        let full = Census { disk_free_bytes: 1, ..facts.census.clone() };
        let full = problems(&Facts { census: full, ..facts });
        assert!(full.iter().any(|problem| problem.kind == "disk" && problem.message.contains("are refused")));
    }
    #[test]
    fn what_will_become_a_problem_is_said_before_it_is_one() {
        let hour = Duration::from_secs(3_600);
        let now = UnixMillis(1_790_000_000_000);
        let orders = FunctionName::new("orders");
        let facts = Facts {
            now,
            ages: vec![(orders.clone(), hour * 4, hour * 6), (FunctionName::new("well"), hour, hour * 6)],
            without_queue: vec![(orders, 3)],
            certificate_expires: Some(now.plus(hour * 24)),
            stepped: -120_000,
            ..Facts::default()
        };
        let found = problems(&facts);
        assert_eq!(kinds(&facts), ["certificate", "late", "dead-letters", "clock"]);
        assert!(found[1].message.contains("orders is late: the oldest event has waited 240 min of the 360 min"));
        assert_eq!(found[1].functions, ["orders"]);
        assert!(found[2].message.starts_with("3 dead letters have no queue"), "{found:?}");
        let over = Facts { certificate_expires: Some(now), ..facts };
        assert_eq!((problems(&over)[0].severity, kinds(&over)[0].as_str()), (Critical, "certificate"));
    }

    #[test]
    fn the_worst_comes_first_and_each_lists_its_functions() {
        let lanes = (0..30).map(|n| (FunctionName::new(&format!("f{n:02}")), lane(HoldKind::Throttled, "slow")));
        let mut facts = Facts { lanes: lanes.collect(), missing: vec!["no region".to_owned()], ..Facts::default() };
        facts.lanes.insert(FunctionName::new("z"), lane(HoldKind::Operator, "AccessDenied"));
        let found = problems(&facts);
        let severities: Vec<_> = found.iter().map(|problem| problem.severity).collect();
        assert_eq!(severities, [Critical, Warning, Info]);
        assert_eq!((found[1].functions.as_slice(), found[2].functions.len()), (&["z".to_owned()][..], LISTED_MAX));
    }
}
