//! What a job is to do, as it was asked for and checked. Pure.

use crate::admin::Problem;
use crate::admin::api::{BulkAction, BulkFilter, BulkRequest};
use crate::admin::lookup::{pattern, span, state};
use crate::clock::{Clock, UnixMillis};
use crate::deadletter::letter;
use crate::event::Pattern;
use crate::outbox::dead::Filter;
use crate::outbox::operator::{Keys, LIVE, ListFilter};
use crate::outbox::{History, Place};

/// The most digits of a rate.
const RATE_DIGITS_MAX: usize = 6;

/// What a job is to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    pub action: BulkAction,
    pub function: Option<Pattern>,
    pub which: Selection,
    pub limit: u64,
    /// Events a second.
    pub rate: Option<f64>,
    pub expect: Option<u64>,
    pub dry_run: bool,
    pub keys: Keys,
    /// Dead letters that came back so often stay.
    pub redrives_max: u32,
}

/// Which events it is to be done to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Selection {
    Letters { filter: Filter, code: Option<String> },
    Events { place: Option<Place>, filter: ListFilter },
}

impl Wanted {
    /// Checks a request. What is buried or accepted from now on is left alone, so that a job never meets its own effects.
    pub fn read(request: &BulkRequest, redrives_max: u32, clock: &Clock) -> Result<Self, Problem> {
        let BulkRequest { action, filter, limit, rate, expect, dry_run, keep_keys } = request;
        let function = pattern(filter.function.clone())?;
        let is_of_letters = action.is_of_letters();
        refuse_others(filter, *action)?;
        let (since, until) = span(filter.since.as_deref(), filter.until.as_deref(), clock)?;
        let until = Some(until.unwrap_or(UnixMillis::MAX).min(clock.now()));
        let which = if is_of_letters {
            let reason = filter.reason.as_deref().map(|word| {
                let why = || Problem::bad(format!("filter.reason: {word:?} is not a reason to bury an event"));
                letter::reason_of(word).ok_or_else(why)
            });
            let (error, unshippable) = (filter.error.clone(), filter.unshippable);
            let letters =
                Filter { function: function.clone(), reason: reason.transpose()?, since, until, error, unshippable };
            Selection::Letters { filter: letters, code: filter.code.clone() }
        } else {
            let place = filter.state.as_deref().map(|word| state(word, &LIVE)).transpose()?;
            // Somebody has chosen the time of a scheduled event.
            let place = place.or((*action == BulkAction::Attempt).then_some(Place::Waiting));
            let (attempts_min, error) = (filter.attempts_min, filter.error.clone());
            let events = ListFilter { since, until, attempts_min, error, in_flight: Some(false) };
            Selection::Events { place, filter: events }
        };
        Ok(Self {
            action: *action,
            function,
            which,
            limit: limit.map_or(u64::MAX, |limit| limit.get().into()),
            rate: rate.as_deref().map(rate_of).transpose()?,
            expect: expect.map(u64::from),
            dry_run: *dry_run,
            keys: if *keep_keys { Keys::Keep } else { Keys::Forget },
            redrives_max,
        })
    }

    /// Whether a caller who expects so many would be surprised by this many.
    pub fn is_surprising(&self, matched: u64) -> bool {
        self.expect.is_some_and(|expect| matched > expect.saturating_add(expect / 10))
    }
}

impl Selection {
    /// What the store's own filter does not look at.
    pub fn fits(&self, place: Place, history: &History) -> bool {
        match self {
            Self::Letters { code, .. } => code.as_ref().is_none_or(|code| {
                let last = history.last.as_ref().map(|last| last.code.as_str());
                last.unwrap_or_default() == code
            }),
            Self::Events { .. } => place != Place::Buried,
        }
    }
}

/// Refuses fields that mean nothing for the action: a filter that is silently wider than its caller thinks does harm.
fn refuse_others(filter: &BulkFilter, action: BulkAction) -> Result<(), Problem> {
    let BulkFilter { function: _, state, reason, code, error: _, since: _, until: _, attempts_min, unshippable } =
        filter;
    let of_letters = [("reason", reason.is_some()), ("code", code.is_some()), ("unshippable", unshippable.is_some())];
    let of_events = [("state", state.is_some()), ("attempts_min", attempts_min.is_some())];
    let foreign = if action.is_of_letters() { &of_events[..] } else { &of_letters[..] };
    match foreign.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((field, _)) => {
            let (of, other) = match action.is_of_letters() {
                true => ("dead letters", "waiting events"),
                false => ("waiting events", "dead letters"),
            };
            let why = format!("filter.{field} is for {other}, and {} is for {of}: leave it out", action.as_str());
            Err(Problem::bad(why))
        }
    }
}

/// Events a second, as in `50/s`.
fn rate_of(text: &str) -> Result<f64, Problem> {
    let digits = text.strip_suffix("/s").filter(|digits| {
        !digits.starts_with('0') && digits.len() <= RATE_DIGITS_MAX && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
    let rate = digits.and_then(|digits| digits.parse::<u32>().ok());
    rate.map(f64::from).ok_or_else(|| Problem::bad(format!("rate: {text:?} is not a rate; write it like 50/s")))
}
