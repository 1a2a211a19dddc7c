//! The operator's API for dead letters: list, show, import, redrive, purge.
//!
//! `POST /v1/redrive` is the destination of a redrive from a queue: its answer says `stored` or `duplicate` only once the event is on
//! stable storage (G1), so that the message may be deleted then.

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::future::join_all;
use http::StatusCode;
use prometheus::core::Collector;
use serde_json::value::RawValue;

use super::actions::{Note, Noted};
use super::api::{
    self, Answers, Ids, Import, KeysQuery, LetterPage, LetterResult, LetterView, Letters, LettersQuery, Queues,
    UnreadableLetter,
};
use super::lookup::{matching, page_size, pattern, span};
use super::operators::Caller;
use super::whoami::name_of;
use super::{Admin, Problem};
use crate::clock::Clock;
use crate::deadletter::admit::{NotAdmitted, admit};
use crate::deadletter::export::Exported;
use crate::deadletter::letter;
use crate::event::{Event, EventId, FunctionName, Pattern};
use crate::metrics::Metrics;
use crate::outbox::dead::{BuriedWant, Discarded, Filter, Imported, Revived};
use crate::outbox::operator::Operator;
use crate::outbox::{Appended, Found, Full, History, Place};
use crate::past::{End, How};
use crate::plural::count;

/// Letters of one page, and of one request.
pub const LETTERS_MAX: usize = 1_000;

/// The number of letters in a page if the request does not set it.
const LETTERS: usize = 100;

/// The routes below `/v1` that are about dead letters.
pub fn router<O: Operator>() -> Router<Admin<O>> {
    Router::new()
        .route("/v1/dead-letters", get(list::<O>).post(import::<O>))
        .route("/v1/dead-letters/redrive", post(revive::<O>))
        .route("/v1/dead-letters/purge", post(purge_all::<O>))
        .route("/v1/dead-letters/queues", get(queues::<O>))
        .route("/v1/dead-letters/{id}", get(show::<O>).delete(purge::<O>))
        .route("/v1/redrive", post(redrive::<O>))
}

fn want(query: LettersQuery, clock: &Clock) -> Result<BuriedWant, Problem> {
    let (since, until) = span(query.since.as_deref(), query.until.as_deref(), clock)?;
    let reason = query.reason.map(|word| {
        letter::reason_of(&word).ok_or_else(|| Problem::bad(format!("{word:?} is not a reason to bury an event")))
    });
    let filter = Filter {
        function: pattern(query.function)?,
        reason: reason.transpose()?,
        since,
        until,
        error: query.error,
        unshippable: query.unshippable,
    };
    let after = query.after.map(|text| text.parse().map_err(|why| Problem::bad(format!("after: {why}"))));
    let letters_max = page_size(query.limit, LETTERS, LETTERS_MAX);
    Ok(BuriedWant { filter, after: after.transpose()?, letters_max, payloads: query.payloads })
}

/// List the dead letters in the store
///
/// By function and time of acceptance.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    operation_id = "list_dead_letters",
    params(LettersQuery),
    responses(
        (status = 200, description = "A page", body = LetterPage),
        (status = 404, description = "No known function fits", body = api::Message),
    )
)]
pub(super) async fn list<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<LettersQuery>,
) -> Result<Noted<Json<LetterPage>>, Problem> {
    let (store, settings) = (admin.store()?, admin.settings()?);
    let want = want(query, &admin.clock)?;
    let pattern = want.filter.function.clone();
    let lanes = matching(&store, pattern.as_ref()).await?;
    let buried = lanes.iter().filter_map(|(_, lane)| lane.by_place.get(&Place::Buried)).map(|count| count.events).sum();
    let payloads = want.payloads;
    let page = store.buried(want).await?;
    let letters = page.letters.iter();
    let letters =
        letters.map(|letter| view(&letter.event, &letter.history, letter.payload_bytes, letter.leased, payloads));
    let note = Note::of(page.letters.len() as u64);
    let page = LetterPage {
        dead_letters: letters.collect::<Result<_, _>>()?,
        unreadable: page.unreadable.into_iter().map(|(id, why)| UnreadableLetter { id, why }).collect(),
        next: page.next.map(|next| next.to_string()),
        buried,
        shipped: shipped(&admin.metrics, pattern.as_ref()),
        queues: queues_of(&settings.queues, lanes.iter().map(|(name, _)| name)),
    };
    Ok(Noted(Json(page), note))
}

/// Letters that queues have taken since the start, of the functions that fit.
fn shipped(metrics: &Metrics, pattern: Option<&Pattern>) -> u64 {
    let families = metrics.deadletter_shipped.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let fits = |name: &str| pattern.is_none_or(|pattern| FunctionName::new(name).fits(pattern.as_str()));
    let fitting = series.filter(|metric| metric.get_label().iter().any(|label| fits(label.value())));
    fitting.map(|metric| metric.get_counter().get_value() as u64).sum()
}

/// The queues that these functions' letters go to; the default one where there are none yet.
fn queues_of<'a>(queues: &Queues, functions: impl Iterator<Item = &'a FunctionName>) -> Vec<String> {
    let of = |name: &FunctionName| {
        let own = queues.functions.iter().find(|queue| name.fits(&queue.function)).map(|queue| &queue.queue_url);
        own.or(queues.queue_url.as_ref()).cloned()
    };
    let mut found: std::collections::BTreeSet<String> = functions.filter_map(of).collect();
    if found.is_empty() {
        found.extend(queues.queue_url.clone());
    }
    found.into_iter().collect()
}

/// Show where dead letters go
#[utoipa::path(
    get,
    path = "/v1/dead-letters/queues",
    operation_id = "show_queues",
    responses(
        (status = 200, description = "The queues of the configuration", body = Queues),
    )
)]
pub(super) async fn queues<O: Operator>(State(admin): State<Admin<O>>) -> Result<Json<Queues>, Problem> {
    Ok(Json(admin.settings()?.queues))
}

/// Show a dead letter
#[utoipa::path(
    get,
    path = "/v1/dead-letters/{id}",
    operation_id = "show_dead_letter",
    params(("id" = EventId, Path), api::PayloadQuery),
    responses(
        (status = 200, description = "It is in the store", body = LetterView),
        (status = 404, description = "Not in the store", body = api::Message),
        (status = 500, description = "It cannot be read", body = api::Message),
    )
)]
pub(super) async fn show<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(id): Path<EventId>,
    Query(query): Query<api::PayloadQuery>,
) -> Result<Noted<Json<LetterView>>, Problem> {
    let store = admin.store()?;
    let found = if query.payload { store.find(id).await? } else { store.find_head(id).await? };
    let found = found.filter(|found| found.place == Place::Buried);
    let found =
        found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("no dead letter {id} in the store")))?;
    let view = view(&found.event, &found.history, found.payload_bytes, found.leased, query.payload)?;
    Ok(Noted(Json(view), Note::of(1)))
}

/// Remove a dead letter for good
#[utoipa::path(
    delete,
    path = "/v1/dead-letters/{id}",
    operation_id = "purge_dead_letter",
    params(("id" = EventId, Path), KeysQuery),
    responses(
        (status = 200, description = "Removed, on stable storage", body = LetterResult),
        (status = 404, description = "Not in the store", body = api::Message),
        (status = 409, description = "It is on its way to a queue", body = api::Message),
        (status = 500, description = "It cannot be read", body = api::Message),
    )
)]
pub(super) async fn purge<O: Operator>(
    State(admin): State<Admin<O>>,
    caller: Option<Extension<Caller>>,
    Path(id): Path<EventId>,
    Query(query): Query<KeysQuery>,
) -> Result<Noted<Json<LetterResult>>, Problem> {
    match purged(&admin, vec![id], &query, name_of(caller)).await?.pop() {
        Some(answer @ LetterResult::Purged { .. }) => Ok(Noted(Json(answer), Note::of(1))),
        Some(LetterResult::Shipping { message } | LetterResult::Busy { message }) => Err(Problem::conflict(message)),
        Some(LetterResult::Refused { message }) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message)),
        Some(
            LetterResult::NotFound { .. }
            | LetterResult::Stored { .. }
            | LetterResult::Duplicate { .. }
            | LetterResult::Ceiling { .. },
        )
        | None => Err(Problem::not_found(format!("no dead letter {id} in the store"))),
    }
}

/// Remove dead letters for good
#[utoipa::path(
    post,
    path = "/v1/dead-letters/purge",
    operation_id = "purge_dead_letters",
    params(KeysQuery),
    request_body = Ids,
    responses(
        (status = 200, description = "An answer for each, in order", body = Answers),
        (status = 400, description = "Not such letters, or more than 1,000 at once", body = api::Message),
    )
)]
pub(super) async fn purge_all<O: Operator>(
    State(admin): State<Admin<O>>,
    caller: Option<Extension<Caller>>,
    Query(query): Query<KeysQuery>,
    Json(Ids { ids }): Json<Ids>,
) -> Result<Noted<Json<Answers>>, Problem> {
    at_most(ids.len())?;
    let answers = purged(&admin, ids.clone(), &query, name_of(caller)).await?;
    Ok(answered(answers, &ids))
}

async fn purged<O: Operator>(
    admin: &Admin<O>,
    ids: Vec<EventId>,
    query: &KeysQuery,
    by: String,
) -> Result<Vec<LetterResult>, Problem> {
    let store = admin.store()?;
    let heads = heads(admin, &store, &ids).await;
    let discarded = store.discard(ids.clone(), query.keys()).await?;
    let answers: Vec<LetterResult> =
        discarded.into_iter().zip(ids).map(|(answer, id)| of_discarded(answer, id)).collect();
    note_ends(admin, heads, &answers, |answer| match answer {
        LetterResult::Purged { .. } => Some(How::Purged { by: by.clone() }),
        LetterResult::Stored { .. }
        | LetterResult::Duplicate { .. }
        | LetterResult::Busy { .. }
        | LetterResult::Ceiling { .. }
        | LetterResult::Refused { .. }
        | LetterResult::Shipping { .. }
        | LetterResult::NotFound { .. } => None,
    });
    Ok(answers)
}

/// What is known of dead letters that are about to leave the store, for [`note_ends`].
async fn heads<O: Operator>(admin: &Admin<O>, store: &O, ids: &[EventId]) -> Vec<Option<Found>> {
    if !admin.past.is_kept() {
        return Vec::new();
    }
    // All at once, so that one turn of the store reads them. Without its head an end is not noted.
    let found = join_all(ids.iter().map(|id| store.find_head(*id))).await;
    found.into_iter().map(|found| found.ok().flatten()).collect()
}

/// Notes what became of dead letters, where `how` says that they have left the store.
fn note_ends<O: Operator>(
    admin: &Admin<O>,
    heads: Vec<Option<Found>>,
    answers: &[LetterResult],
    how: impl Fn(&LetterResult) -> Option<How>,
) {
    let now = admin.clock.now();
    let ends = heads.into_iter().zip(answers).filter_map(|(head, answer)| {
        let (Found { event, history, .. }, how) = (head?, how(answer)?);
        Some(End::of(event.id, event.function.name, now, how, &history))
    });
    admin.past.note_ends(ends.collect());
}

/// Make dead letters of the store events again
///
/// Under new ids, so that their age counts from now.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/redrive",
    operation_id = "redrive_dead_letters",
    request_body = Ids,
    responses(
        (status = 200, description = "An answer for each, in order", body = Answers),
        (status = 400, description = "Not such letters, or more than 1,000 at once", body = api::Message),
    )
)]
pub(super) async fn revive<O: Operator>(
    State(admin): State<Admin<O>>,
    caller: Option<Extension<Caller>>,
    Json(Ids { ids }): Json<Ids>,
) -> Result<Noted<Json<Answers>>, Problem> {
    let (store, redrives_max) = (admin.store()?, admin.settings()?.rules.redrives_max);
    at_most(ids.len())?;
    let heads = heads(&admin, &store, &ids).await;
    let revived = store.revive(ids.clone(), redrives_max).await?;
    let answers =
        revived.iter().zip(&ids).map(|(answer, id)| counted(of_revived(answer, *id), &admin.metrics, "store"));
    let (answers, by): (Vec<_>, _) = (answers.collect(), name_of(caller));
    note_ends(&admin, heads, &answers, |answer| redriven(answer, &by));
    Ok(answered(answers, &ids))
}

/// What became of a dead letter, if it was redriven.
pub(super) fn redriven(answer: &LetterResult, by: &str) -> Option<How> {
    match answer {
        LetterResult::Stored { id } => Some(How::Redriven { by: by.to_owned(), new_id: *id }),
        LetterResult::Purged { .. }
        | LetterResult::Duplicate { .. }
        | LetterResult::Busy { .. }
        | LetterResult::Ceiling { .. }
        | LetterResult::Refused { .. }
        | LetterResult::Shipping { .. }
        | LetterResult::NotFound { .. } => None,
    }
}

/// Accept letters that come back from a queue
///
/// What is answered with `stored` or `duplicate` is on stable storage, and may be deleted from its queue.
#[utoipa::path(
    post,
    path = "/v1/redrive",
    operation_id = "redrive_letters",
    request_body = Letters,
    responses(
        (status = 200, description = "An answer for each, in order", body = Answers),
        (status = 400, description = "Not such letters, or more than 1,000 at once", body = api::Message),
    )
)]
pub(super) async fn redrive<O: Operator>(
    State(admin): State<Admin<O>>,
    Json(Letters { letters }): Json<Letters>,
) -> Result<Noted<Json<Answers>>, Problem> {
    let (store, rules) = (admin.store()?, admin.settings()?.rules);
    at_most(letters.len())?;
    // The refused keep their place among the answers.
    let mut answers: Vec<Option<LetterResult>> = Vec::with_capacity(letters.len());
    let (mut redriven, mut ids) = (Vec::new(), Vec::new());
    for letter in letters {
        match admit(letter, &rules, &admin.clock) {
            Ok(letter) => {
                ids.push(letter.event.id);
                redriven.push(letter);
                answers.push(None);
            }
            Err(NotAdmitted::Ceiling(message)) => answers.push(Some(LetterResult::Ceiling { message })),
            Err(NotAdmitted::Invalid(message)) => answers.push(Some(LetterResult::Refused { message })),
        }
    }
    let appended = store.redrive(redriven).await?;
    let mut appended = appended.iter().zip(&ids).map(|(answer, id)| of_appended(answer, *id));
    let answers = answers.into_iter().filter_map(|refused| refused.or_else(|| appended.next()));
    Ok(answered(answers.map(|answer| counted(answer, &admin.metrics, "queue")).collect(), &ids))
}

/// The answers about several letters, with what the audit says of them. `ids` are those that were asked about.
fn answered(answers: Vec<LetterResult>, ids: &[EventId]) -> Noted<Json<Answers>> {
    let is_done = |answer: &&LetterResult| match answer {
        LetterResult::Stored { .. } | LetterResult::Duplicate { .. } | LetterResult::Purged { .. } => true,
        LetterResult::Busy { .. }
        | LetterResult::Ceiling { .. }
        | LetterResult::Refused { .. }
        | LetterResult::Shipping { .. }
        | LetterResult::NotFound { .. } => false,
    };
    let note = Note::some(ids, answers.iter().filter(is_done).count());
    Noted(Json(Answers { answers }), note)
}

fn at_most(count: usize) -> Result<(), Problem> {
    if count <= LETTERS_MAX { Ok(()) } else { Err(Problem::bad(format!("more than {LETTERS_MAX} at once"))) }
}

/// What became of one letter of a redrive from a queue, which was to have the id `id`.
fn of_appended(appended: &Appended, id: EventId) -> LetterResult {
    match appended {
        Appended::Stored => LetterResult::Stored { id },
        Appended::Repeat { first } => LetterResult::Duplicate { id: *first },
        Appended::Conflict { first } => {
            LetterResult::Refused { message: format!("{first} came back under the same name with another payload") }
        }
        Appended::Full(full) => busy(full),
    }
}

/// What became of one letter of the store, which had the id `id`.
pub(super) fn of_revived(revived: &Revived, id: EventId) -> LetterResult {
    match revived {
        Revived::Stored { id } => LetterResult::Stored { id: *id },
        Revived::Ceiling { redrives } => {
            LetterResult::Ceiling { message: format!("came back {}", count((*redrives).into(), "time")) }
        }
        Revived::Full(full) => busy(full),
        Revived::NotFound => not_found(id),
        Revived::Leased => shipping(id),
        Revived::Unreadable { why } => LetterResult::Refused { message: why.clone() },
    }
}

fn of_imported(imported: &Imported, id: EventId) -> LetterResult {
    match imported {
        Imported::Stored => LetterResult::Stored { id },
        Imported::Repeat => LetterResult::Duplicate { id },
        Imported::Full(full) => busy(full),
    }
}

pub(super) fn of_discarded(discarded: Discarded, id: EventId) -> LetterResult {
    match discarded {
        Discarded::Done => LetterResult::Purged { id },
        Discarded::NotFound => not_found(id),
        Discarded::Leased => shipping(id),
    }
}

fn busy(full: &Full) -> LetterResult {
    LetterResult::Busy { message: full.to_string() }
}

fn not_found(id: EventId) -> LetterResult {
    LetterResult::NotFound { message: format!("no dead letter {id} in the store") }
}

fn shipping(id: EventId) -> LetterResult {
    LetterResult::Shipping { message: format!("{id} is being shipped just now; try again") }
}

/// The answer, counted as one of a redrive.
pub(super) fn counted(answer: LetterResult, metrics: &Metrics, source: &str) -> LetterResult {
    if let LetterResult::Stored { .. } = answer {
        metrics.deadletter_redriven.with_label_values(&[source]).inc();
    } else {
        metrics.deadletter_redrive_refused.with_label_values(&[answer.result()]).inc();
    }
    answer
}

/// Take in dead letters that were exported
///
/// Each stays a dead letter until it is redriven. One that is not sound refuses the whole request.
#[utoipa::path(
    post,
    path = "/v1/dead-letters",
    operation_id = "import_dead_letters",
    request_body = Import<Exported>,
    responses(
        (status = 200, description = "An answer for each, in order", body = Answers),
        (status = 400, description = "Not such letters, or more than 1,000 at once", body = api::Message),
    )
)]
pub(super) async fn import<O: Operator>(
    State(admin): State<Admin<O>>,
    Json(Import { letters }): Json<Import<Box<RawValue>>>,
) -> Result<Noted<Json<Answers>>, Problem> {
    let (store, home) = (admin.store()?, admin.settings()?.rules.home);
    at_most(letters.len())?;
    let now = admin.clock.now();
    let letters = letters.into_iter().map(|line| Exported::read(line.get())?.buried(now, &home));
    let letters: Result<Vec<_>, String> = letters.collect();
    let letters = letters.map_err(Problem::bad)?;
    let ids: Vec<EventId> = letters.iter().map(|(event, _)| event.id).collect();
    let imported = store.import(letters).await?;
    Ok(answered(imported.iter().zip(&ids).map(|(answer, id)| of_imported(answer, *id)).collect(), &ids))
}

fn view(
    event: &Event,
    history: &History,
    payload_bytes: usize,
    shipping: bool,
    whole: bool,
) -> Result<LetterView, Problem> {
    let export = || {
        let text = serde_json::value::to_raw_value(&Exported::of(event, history));
        text.map_err(|error| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot export {}: {error}", event.id))
        })
    };
    Ok(LetterView {
        id: event.id,
        function: event.function.name.as_str().to_owned(),
        reason: history.burial.as_ref().map(|burial| burial.reason),
        buried_at: history.burial.as_ref().map(|burial| burial.at.rfc3339()),
        accepted_at: event.accepted_at.rfc3339(),
        attempts: history.calls,
        charged: history.attempts,
        redrives: event.redrives,
        last_error: history.last.as_ref().map(Into::into),
        unshippable: history.burial.as_ref().and_then(|burial| burial.unshippable.clone()),
        shipping,
        payload_bytes,
        export: whole.then(export).transpose()?,
    })
}
