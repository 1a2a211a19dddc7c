//! What a request names: functions, states, events and times, looked up or refused with what to do.

use std::num::NonZeroU32;

use super::api::EMPTY_SPAN;
use super::{Admin, Problem};
use crate::clock::{Clock, UnixMillis};
use crate::event::name::canonical;
use crate::event::{EventId, FunctionName, Pattern};
use crate::outbox::operator::Operator;
use crate::outbox::{LaneCensus, Place};
use crate::plural::count;

/// A time: RFC 3339, or how long ago.
pub(super) fn time(name: &str, text: &str, clock: &Clock) -> Result<UnixMillis, Problem> {
    let why =
        || format!("{name}: {text:?} is not a time; write it like 2026-11-23T14:00:00Z, or how long ago, like 2h");
    UnixMillis::read(text, clock.now()).ok_or_else(|| Problem::bad(why()))
}

/// What lies between `since` and `until`, each as [`time`] reads it.
pub(super) fn span(
    since: Option<&str>,
    until: Option<&str>,
    clock: &Clock,
) -> Result<(Option<UnixMillis>, Option<UnixMillis>), Problem> {
    let read = |name, text: Option<&str>| text.map(|text| time(name, text, clock)).transpose();
    let (from, to) = (read("since", since)?, read("until", until)?);
    match (from, to) {
        (Some(from), Some(to)) if from >= to => Err(Problem::bad(EMPTY_SPAN.to_owned())),
        _ => Ok((from, to)),
    }
}

/// One of the states that may be named here.
pub(super) fn state(word: &str, of: &[Place]) -> Result<Place, Problem> {
    let words: Vec<_> = of.iter().map(|place| place.as_str()).collect();
    let found = of.iter().copied().find(|place| place.as_str() == word);
    found.ok_or_else(|| Problem::bad(format!("{word:?} is not a state here; write {}", words.join(", "))))
}

pub(super) fn event_id(text: &str) -> Result<EventId, Problem> {
    text.parse().map_err(|_| Problem::bad(format!("{text:?} is not an event's id; `sendoff events list` shows ids")))
}

/// How many to show on a page: as many as asked for, at most `max`.
pub(super) fn page_size(asked: Option<NonZeroU32>, default: usize, max: usize) -> usize {
    asked.map_or(default, |asked| usize::try_from(asked.get()).unwrap_or(max)).min(max)
}

pub(super) fn pattern(text: Option<String>) -> Result<Option<Pattern>, Problem> {
    text.map(|text| text.parse().map_err(|why| Problem::bad(format!("function: {why}")))).transpose()
}

/// A function that has a lane: what is done to a misspelt name must not look as if it had worked.
pub(super) async fn known<O: Operator>(admin: &Admin<O>, name: &str) -> Result<FunctionName, Problem> {
    let function = FunctionName::new(name);
    let lane = admin.store()?.lane(&function).await?;
    if lane.is_some() { Ok(function) } else { Err(unknown(name)) }
}

/// A function that has a lane, or may get one.
pub(super) async fn known_or_new<O: Operator>(admin: &Admin<O>, name: &str) -> Result<FunctionName, Problem> {
    let store = admin.store()?;
    if let Some(lane) = store.lane(&FunctionName::new(name)).await? {
        return Ok(lane.function);
    }
    let (settings, known) = (admin.settings()?, store.overview().await?.census.lanes.len());
    let why = "is no function's name: write it as name, name:qualifier or ARN, or as `sendoff functions` lists it";
    let function = canonical(name, &settings.rules.home).ok_or_else(|| Problem::bad(format!("{name:?} {why}")))?;
    let max = settings.functions_max;
    if known as u64 >= max {
        let why =
            format!("the outbox knows {} of at most {max} (outbox.functions_max)", count(known as u64, "function"));
        return Err(Problem::conflict(why));
    }
    Ok(function)
}

pub(super) async fn is_paused<O: Operator>(store: &O, function: &FunctionName) -> Result<bool, Problem> {
    Ok(store.lane(function).await?.is_some_and(|lane| lane.paused))
}

/// The lanes of the functions that fit a pattern; all of them without one. That none fits is an error, since an empty answer
/// would look as if there were no events.
pub(super) async fn matching<O: Operator>(
    store: &O,
    pattern: Option<&Pattern>,
) -> Result<Vec<(FunctionName, LaneCensus)>, Problem> {
    let pattern = pattern.map(Pattern::as_str);
    let lanes = store.overview().await?.census.lanes.into_iter();
    let found: Vec<_> = lanes.filter(|(name, _)| pattern.is_none_or(|pattern| name.fits(pattern))).collect();
    match pattern {
        Some(pattern) if found.is_empty() => Err(unknown(pattern)),
        Some(_) | None => Ok(found),
    }
}

fn unknown(name: &str) -> Problem {
    let why = match name.contains('*') {
        true => format!("no known function fits {name:?}"),
        false => format!("no function {name:?} is known"),
    };
    Problem::not_found(format!("{why}; `sendoff functions` lists those that have events, or had some minutes ago"))
}
