//! `sendoff events`: the events in a daemon's store.

use std::io::{BufRead as _, Read as _};
use std::num::NonZeroU32;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use http::HeaderValue;

use super::admin_client::{Asker, Daemon, Listing, One, page_size, with_query};
use super::dead_letters::parse_moment;
use super::pause::held_in_words;
use super::table::{Rows, or_dash};
use super::{Exit, Failure, arguments, out};
use crate::admin::api::{
    Cancelled, Due, EventDetail, EventPage, EventQuery, EventView, EventsQuery, KeyQuery, KeyView, KeysQuery,
    OutcomePage, OutcomeView, RecentQuery,
};
use crate::config::Environment;
use crate::event::{EventId, Pattern};
use crate::plural::count;

/// The most bytes read of a key: more than the longest has.
const KEY_LINE_BYTES_MAX: u64 = 4 << 10;

/// The most events of one page.
const PAGE: usize = 500;

const EXAMPLES: &str = "\
Examples:
  sendoff events list --function 'orders-*' --state waiting
  sendoff events show 0197a1b2-... --payload
  sendoff events attempt 0197a1b2-...";

/// List and show stored events, cancel one, or attempt one now
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List events, by function, state and time of acceptance
    List {
        #[command(flatten)]
        listing: Listing,
        /// Only for this function. * matches any characters
        #[arg(long)]
        function: Option<Pattern>,
        /// Only in this state: ready, waiting, scheduled or buried
        #[arg(long, value_parser = ["ready", "waiting", "scheduled", "buried"])]
        state: Option<String>,
        /// Only those accepted at or after this: a time (RFC 3339) or how long ago ("2h")
        #[arg(long, value_name = "TIME|AGO", value_parser = parse_moment)]
        since: Option<String>,
        /// Only those accepted before this
        #[arg(long, value_name = "TIME|AGO", value_parser = parse_moment)]
        until: Option<String>,
        /// Only those that were attempted at least so often
        #[arg(long, value_name = "N")]
        attempts_min: Option<u32>,
        /// Only those whose last attempt said this
        #[arg(long, value_name = "TEXT")]
        error: Option<String>,
        /// Only those in flight
        #[arg(long)]
        in_flight: bool,
    },
    /// Show one event as JSON, without its payload
    ///
    /// Also tells what became of an event that has left the store (`history.keep` says for how long).
    Show {
        #[command(flatten)]
        event: One,
        /// Print its payload instead, byte for byte
        #[arg(long)]
        payload: bool,
        /// Wait until it has left the store or is a dead letter, at most this long
        #[arg(long, value_name = "DURATION", value_parser = arguments::wait, conflicts_with = "payload")]
        wait: Option<Duration>,
    },
    /// List what happened to events lately: outcomes of attempts, and events that left the store
    ///
    /// The daemon keeps the latest 1000 since its start.
    Recent {
        #[command(flatten)]
        daemon: Daemon,
        /// Only for this function. * matches any characters
        #[arg(long)]
        function: Option<Pattern>,
        /// Show at most this many, the latest
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show which event an idempotency key belongs to, and until when it is remembered
    Key {
        #[command(flatten)]
        daemon: Daemon,
        /// The function: name, name:qualifier or ARN
        function: String,
        /// The key, as the client sent it. Use - to read it from stdin
        key: String,
        /// For functions with tenant isolation
        #[arg(long, value_name = "ID")]
        tenant: Option<String>,
    },
    /// Remove an event that waits, without delivering it
    Cancel {
        #[command(flatten)]
        event: One,
        /// Keep its idempotency key. An event with the same key is then a duplicate and is not stored
        #[arg(long)]
        keep_keys: bool,
    },
    /// Make an event that waits due now
    ///
    /// If its function is paused or held, the event waits for that, too. The command then says until when.
    Attempt(One),
}

pub fn run(options: Options, environment: &Environment) -> Result<(), Failure> {
    match options.command {
        Command::List { listing, function, state, since, until, attempts_min, error, in_flight } => {
            let asker = Asker::new(&listing.daemon, environment)?;
            let function = function.map(|pattern| pattern.as_str().to_owned());
            let (after, in_flight) = (listing.after.clone(), in_flight.then_some(true));
            let query =
                EventsQuery { function, state, since, until, attempts_min, error, in_flight, after, limit: None };
            list(&asker, &listing, query)
        }
        Command::Show { event: One { daemon, id }, payload, wait } => {
            show(&Asker::patient(&daemon, environment, wait)?, id, payload, wait)
        }
        Command::Recent { daemon, function, limit, json } => {
            let function = function.map(|pattern| pattern.as_str().to_owned());
            let query = RecentQuery { function, limit: NonZeroU32::new(limit) };
            let page: OutcomePage = Asker::new(&daemon, environment)?.get(&with_query("/v1/recent", &query))?;
            if json {
                page.outcomes.iter().try_for_each(out::json)
            } else {
                out::print(&recent(&page.outcomes).lines())
            }
        }
        Command::Key { daemon, function, key, tenant } => {
            let query = KeyQuery { function, tenant_id: tenant };
            let found: KeyView =
                Asker::new(&daemon, environment)?.get_by_key(&with_query("/v1/keys", &query), key_of(&key)?)?;
            out::pretty(&found)
        }
        Command::Cancel { event: One { daemon, id }, keep_keys } => {
            let path = with_query(&path(id), &KeysQuery { keep_keys });
            let cancelled: Cancelled = Asker::new(&daemon, environment)?.delete(&path)?;
            out::line(format!("{id} is cancelled; it was for {}", cancelled.function))
        }
        Command::Attempt(One { daemon, id }) => {
            let due: Due = Asker::new(&daemon, environment)?.post(&format!("{}/attempt", path(id)))?;
            out::line(due_in_words(&due))
        }
    }
}

/// The key as a header. `-` stands for the first line of stdin, because arguments are visible to other users.
fn key_of(text: &str) -> Result<HeaderValue, Failure> {
    let mut line = String::new();
    let key = if text == "-" {
        let failed = |error| Failure::new(Exit::Failed, anyhow::Error::new(error).context("cannot read the key"));
        std::io::stdin().lock().take(KEY_LINE_BYTES_MAX).read_line(&mut line).map_err(failed)?;
        line.trim_end_matches(['\n', '\r'])
    } else {
        text
    };
    let unfit = |_| Failure::saying(Exit::Usage, "the key contains characters that a header cannot have");
    HeaderValue::from_bytes(key.as_bytes()).map_err(unfit)
}

fn recent(outcomes: &[OutcomeView]) -> Rows {
    let mut rows = Rows::headed(&["AT", "ID", "FUNCTION", "OUTCOME", "STATUS", "CODE", "ATTEMPTS", "NEXT"]);
    for outcome in outcomes {
        let due = outcome.due.as_ref().map(|due| format!(" at {due}")).unwrap_or_default();
        rows.add([
            outcome.at.clone(),
            outcome.id.to_string(),
            outcome.function.clone(),
            outcome.outcome.clone(),
            or_dash(Some(outcome.status).filter(|status| *status > 0)),
            or_dash(Some(&outcome.code).filter(|code| !code.is_empty())),
            outcome.attempts.to_string(),
            format!("{}{due}", outcome.next),
        ]);
    }
    rows
}

fn path(id: EventId) -> String {
    format!("/v1/events/{id}")
}

fn due_in_words(due: &Due) -> String {
    let Due { id, function, paused, held } = due;
    match (paused, held) {
        (true, _) => format!("{id} is due now, but {function} is paused: `sendoff resume {function}` resumes it"),
        (false, Some(held)) => format!("{id} is due now, but {function} is {}", held_in_words(held)),
        (false, None) => format!("{id} is due now"),
    }
}

fn show(asker: &Asker, id: EventId, payload: bool, wait: Option<Duration>) -> Result<(), Failure> {
    let wait = wait.map(|wait| format!("{}ms", wait.as_millis()));
    let event: EventDetail = asker.get(&with_query(&path(id), &EventQuery { payload, wait }))?;
    if !payload {
        return out::pretty(&event);
    }
    let bytes = event.payload_base64.and_then(|text| STANDARD.decode(text).ok());
    out::payload(
        &bytes.ok_or_else(|| Failure::saying(Exit::Failed, "the event has left the store, and its payload with it"))?,
    )
}

/// Lists events page by page, up to the limit.
fn list(asker: &Asker, listing: &Listing, mut query: EventsQuery) -> Result<(), Failure> {
    let mut events: Vec<EventView> = Vec::new();
    let mut total = 0;
    while events.len() < listing.limit() {
        query.limit = page_size((listing.limit() - events.len()).min(PAGE));
        let page: EventPage = asker.get(&with_query("/v1/events", &query))?;
        events.extend(page.events);
        (query.after, total) = (page.next, page.total);
        if query.after.is_none() {
            break;
        }
    }
    let shown = shown(events.len() as u64, total, query.after.as_deref());
    if listing.json {
        events.iter().try_for_each(out::json)?;
        if query.after.is_some() {
            out::note(shown);
        }
        return Ok(());
    }
    out::print(&listed(&events).lines())?;
    out::line(shown)
}

/// How much of the list was shown, and how to see more.
fn shown(shown: u64, total: u64, after: Option<&str>) -> String {
    match after {
        Some(after) => format!("{shown} of {total} shown; continue with --after {after}, or list them with --all"),
        None if shown == total => format!("{} shown", count(shown, "event")),
        None => format!("{} shown, the end of a list of {total}", count(shown, "event")),
    }
}

fn listed(events: &[EventView]) -> Rows {
    let heads = ["ID", "FUNCTION", "STATE", "ACCEPTED", "DUE", "ATTEMPTS", "CHARGED", "LAST ERROR"];
    let mut rows = Rows::headed(&heads);
    for event in events {
        rows.add([
            event.id.to_string(),
            event.function.clone(),
            if event.in_flight { "in flight".to_owned() } else { event.state.clone() },
            event.accepted_at.clone(),
            or_dash(event.due.as_deref()),
            event.attempts.to_string(),
            event.charged.to_string(),
            or_dash(event.last_error.as_ref().map(|error| error.code.as_str())),
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::Held;

    #[test]
    fn a_list_says_what_it_does_not_show() {
        assert_eq!(shown(1, 1, None), "1 event shown");
        assert_eq!(
            shown(100, 150, Some("7r.")),
            "100 of 150 shown; continue with --after 7r., or list them with --all"
        );
        assert_eq!(shown(50, 150, None), "50 events shown, the end of a list of 150");
    }

    #[test]
    fn an_event_that_is_due_names_what_it_still_waits_for() {
        let held = Held {
            scope: "lane".into(),
            kind: "held".into(),
            reason: "AccessDenied".into(),
            until: "2026-11-30T10:00:00.000Z".into(),
        };
        let due =
            |paused, held| due_in_words(&Due { id: EventId::from_bytes([1; 16]), function: "f".into(), paused, held });
        assert!(due(false, None).ends_with("is due now"));
        assert!(due(true, None).contains("`sendoff resume f`"));
        assert!(due(false, Some(held)).contains("until 2026-11-30T10:00:00.000Z"));
    }
}
