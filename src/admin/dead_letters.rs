//! The operator's API for dead letters: list, show, import, redrive, purge.
//!
//! `POST /v1/redrive` is the door of a redrive from a queue: its answer says `stored` or `repeat` only once the event is on
//! stable storage (G1), so that the message may be deleted then.

use std::sync::PoisonError;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use prometheus::core::Collector;
use serde::{Deserialize, Serialize};

use super::api::{Answer, Answers, Ids, LetterPage, LetterView, Queues, UnreadableLetter};
use super::events::KeysQuery;
use super::functions::matching;
use super::problems::Limits;
use super::{Admin, Problem, moment};
use crate::clock::{Clock, UnixMillis};
use crate::deadletter::letter::{self, Letter, from_base64, to_base64};
use crate::deadletter::message::Envelope;
use crate::event::sendable::unsendable;
use crate::event::{
    Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KEY_CHARS_MAX, KeySource, PAYLOAD_BYTES_MAX,
};
use crate::ingest;
use crate::ingest::lambda_api::{Fields, check_carried, check_fields, check_payload};
use crate::ingest::name::Parts;
use crate::metrics::Metrics;
use crate::outbox::dead::{BuriedWant, Discarded, Filter, Imported, Redriven, Revived};
use crate::outbox::operator::Operator;
use crate::outbox::{Appended, Full, History, Outbox, Place};

/// Letters of one page, and of one request.
pub const LETTERS_MAX: usize = 1_000;

/// Letters of a page that nobody asked the size of.
const LETTERS: usize = 100;

/// What the daemon makes of the letters that come back.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Its own region and account, which no canonical name has in it.
    pub names: ingest::Settings,
    /// How often an event may come back.
    pub redrives_max: u32,
    /// The limits of the store.
    pub limits: Limits,
    /// How many functions the store may know.
    pub functions_max: u64,
    /// Where dead letters go.
    pub queues: Queues,
}

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

impl<O: Operator> Admin<O> {
    pub fn rules_are(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules);
    }

    fn open(&self) -> Result<(O, Rules), Problem> {
        Ok((self.store()?, self.rules()?))
    }
}

impl<O: Outbox> Admin<O> {
    pub(super) fn limits(&self) -> Limits {
        self.rules().map(|rules| rules.limits).unwrap_or_default()
    }

    fn rules(&self) -> Result<Rules, Problem> {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
        rules.ok_or_else(|| Problem(StatusCode::SERVICE_UNAVAILABLE, "the daemon is starting; try again".to_owned()))
    }

    /// The canonical name of a function that no event was for yet, if there is room for one more.
    pub(super) fn new_lane(&self, name: &str, known: usize) -> Result<FunctionName, Problem> {
        let Rules { names, functions_max, .. } = self.rules()?;
        let why = "is no function's name: write it as name, name:qualifier or ARN, or as `sendoff functions` lists it";
        let function = canonical(name, &names).ok_or_else(|| Problem::bad(format!("{name:?} {why}")))?;
        if known as u64 >= functions_max {
            let why = format!("the outbox knows {known} functions of at most {functions_max} (outbox.functions_max)");
            return Err(Problem::conflict(why));
        }
        Ok(function)
    }
}

/// The canonical name of a function that is named as clients name it, or canonically.
fn canonical(text: &str, names: &ingest::Settings) -> Option<FunctionName> {
    if let Some(parts) = Parts::parse(text) {
        return Some(parts.canonical(None, names));
    }
    let (scope, rest) = text.rsplit_once('/')?;
    let parts = Parts::parse(rest).filter(|parts| parts.region.is_none() && parts.account_id.is_none())?;
    let arn = match scope.split_once('/') {
        Some((region, account)) => format!("{region}:{account}:{}", parts.name),
        None => format!("{scope}:{}", parts.name),
    };
    let scoped = Parts::parse(&arn).filter(|scoped| scoped.name == parts.name && scoped.qualifier.is_none())?;
    Some(Parts { qualifier: parts.qualifier, ..scoped }.canonical(None, names))
}

/// The query of a list; see [`Filter`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    function: Option<String>,
    reason: Option<String>,
    since: Option<String>,
    until: Option<String>,
    error: Option<String>,
    unshippable: Option<bool>,
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    payloads: bool,
}

impl ListQuery {
    fn want(self, clock: &Clock) -> Result<BuriedWant, Problem> {
        let moment = |name, text: Option<String>| text.map(|text| moment(name, &text, clock)).transpose();
        let reason = self.reason.map(|word| {
            letter::reason_of(&word).ok_or_else(|| Problem::bad(format!("{word:?} is not a reason to bury an event")))
        });
        let pattern = self.function.map(|text| text.parse().map_err(|why| Problem::bad(format!("function: {why}"))));
        let filter = Filter {
            function: pattern.transpose()?,
            reason: reason.transpose()?,
            since: moment("since", self.since)?,
            until: moment("until", self.until)?,
            error: self.error,
            unshippable: self.unshippable,
        };
        let after = self.after.map(|text| text.parse().map_err(|why| Problem::bad(format!("after: {why}"))));
        let letters_max = self.limit.unwrap_or(LETTERS).clamp(1, LETTERS_MAX);
        Ok(BuriedWant { filter, after: after.transpose()?, letters_max, payloads: self.payloads })
    }
}

async fn list<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<LetterPage>, Problem> {
    let (store, rules) = admin.open()?;
    let want = query.want(&admin.clock)?;
    let pattern = want.filter.function.as_ref().map(|pattern| pattern.as_str().to_owned());
    let lanes = matching(&store, pattern.as_deref()).await?;
    let buried = lanes.iter().filter_map(|(_, lane)| lane.by_place.get(&Place::Buried)).map(|count| count.events).sum();
    let payloads = want.payloads;
    let page = store.buried(want).await?;
    let letters = page.letters.iter();
    let letters =
        letters.map(|letter| view(&letter.event, &letter.history, letter.payload_bytes, letter.leased, payloads));
    Ok(Json(LetterPage {
        dead_letters: letters.collect::<Result<_, _>>()?,
        unreadable: page.unreadable.into_iter().map(|(id, why)| UnreadableLetter { id, why }).collect(),
        next: page.next.map(|next| next.to_string()),
        buried,
        shipped: shipped(&admin.metrics, pattern.as_deref()),
        queues: queues_of(&rules.queues, lanes.iter().map(|(name, _)| name)),
    }))
}

/// Letters that queues have taken since the start, of the functions that fit.
fn shipped(metrics: &Metrics, pattern: Option<&str>) -> u64 {
    let families = metrics.deadletter_shipped.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let fits = |name: &str| pattern.is_none_or(|pattern| FunctionName::new(name).fits(pattern));
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

async fn queues<O: Operator>(State(admin): State<Admin<O>>) -> Result<Json<Queues>, Problem> {
    Ok(Json(admin.rules()?.queues))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    #[serde(default)]
    payload: bool,
}

async fn show<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(id): Path<EventId>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<LetterView>, Problem> {
    let (store, _) = admin.open()?;
    let found = if query.payload { store.find(id).await? } else { store.find_head(id).await? };
    let found = found.filter(|found| found.place == Place::Buried);
    let found = found.ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("no dead letter {id} in the store")))?;
    Ok(Json(view(&found.event, &found.history, found.payload_bytes, found.leased, query.payload)?))
}

async fn purge<O: Operator>(
    State(admin): State<Admin<O>>,
    Path(id): Path<EventId>,
    Query(query): Query<KeysQuery>,
) -> Result<Json<Answer>, Problem> {
    match purged(&admin, vec![id], &query).await?.pop() {
        Some(answer @ Answer::Purged { .. }) => Ok(Json(answer)),
        Some(Answer::Shipping { message } | Answer::Busy { message }) => Err(Problem::conflict(message)),
        Some(Answer::Refused { message }) => Err(Problem(StatusCode::INTERNAL_SERVER_ERROR, message)),
        Some(Answer::NotFound { .. } | Answer::Stored { .. } | Answer::Duplicate { .. } | Answer::Ceiling { .. })
        | None => Err(Problem::not_found(format!("no dead letter {id} in the store"))),
    }
}

/// Removes several; each has its own answer.
async fn purge_all<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<KeysQuery>,
    Json(Ids { ids }): Json<Ids>,
) -> Result<Json<Answers>, Problem> {
    at_most(ids.len())?;
    Ok(Json(Answers { answers: purged(&admin, ids, &query).await? }))
}

async fn purged<O: Operator>(admin: &Admin<O>, ids: Vec<EventId>, query: &KeysQuery) -> Result<Vec<Answer>, Problem> {
    let discarded = admin.store()?.discard(ids.clone(), query.keys()).await?;
    let answers: Vec<Answer> = discarded.into_iter().zip(ids).map(|(answer, id)| of_discarded(answer, id)).collect();
    let count = answers.iter().filter(|answer| matches!(answer, Answer::Purged { .. })).count();
    tracing::warn!(count, "an operator purged dead letters");
    Ok(answers)
}

async fn revive<O: Operator>(
    State(admin): State<Admin<O>>,
    Json(Ids { ids }): Json<Ids>,
) -> Result<Json<Answers>, Problem> {
    let (store, Rules { redrives_max, .. }) = admin.open()?;
    at_most(ids.len())?;
    let revived = store.revive(ids.clone(), redrives_max).await?;
    let answers = revived.iter().zip(ids).map(|(answer, id)| counted(of_revived(answer, id), &admin.metrics, "store"));
    Ok(Json(Answers { answers: answers.collect() }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Letters {
    letters: Vec<Letter>,
}

async fn redrive<O: Operator>(
    State(admin): State<Admin<O>>,
    Json(Letters { letters }): Json<Letters>,
) -> Result<Json<Answers>, Problem> {
    let (store, rules) = admin.open()?;
    at_most(letters.len())?;
    // The refused keep their place among the answers.
    let mut answers: Vec<Option<Answer>> = Vec::with_capacity(letters.len());
    let (mut redriven, mut ids) = (Vec::new(), Vec::new());
    for letter in letters {
        match admit(letter, &rules, &admin.clock) {
            Ok(letter) => {
                ids.push(letter.event.id);
                redriven.push(letter);
                answers.push(None);
            }
            Err(Refusal { result: "ceiling", message }) => answers.push(Some(Answer::Ceiling { message })),
            Err(Refusal { message, .. }) => answers.push(Some(Answer::Refused { message })),
        }
    }
    let appended = store.redrive(redriven).await?;
    let mut appended = appended.iter().zip(ids).map(|(answer, id)| of_appended(answer, id));
    let answers = answers.into_iter().filter_map(|refused| refused.or_else(|| appended.next()));
    Ok(Json(Answers { answers: answers.map(|answer| counted(answer, &admin.metrics, "queue")).collect() }))
}

fn at_most(count: usize) -> Result<(), Problem> {
    if count <= LETTERS_MAX { Ok(()) } else { Err(Problem::bad(format!("more than {LETTERS_MAX} at once"))) }
}

/// Why a letter is not admitted.
#[derive(Debug)]
pub struct Refusal {
    /// `ceiling` or `refused`.
    pub result: &'static str,
    /// In words.
    pub message: String,
}

/// The event that a letter becomes: a new id, so that its age counts from now, and one redrive more.
pub fn admit(letter: Letter, rules: &Rules, clock: &Clock) -> Result<Redriven, Refusal> {
    let refused = |message: String| Refusal { result: "refused", message };
    if letter.redrives >= rules.redrives_max {
        let message =
            format!("came back {} times, dead_letter.redrives_max is {}", letter.redrives, rules.redrives_max);
        return Err(Refusal { result: "ceiling", message });
    }
    if letter.payload.len() > PAYLOAD_BYTES_MAX {
        return Err(refused(format!("the payload has more than {PAYLOAD_BYTES_MAX} bytes")));
    }
    let (function, carried) = checked(&letter, &rules.names).map_err(refused)?;
    let accepted_at = clock.accepting();
    let id = EventId::mint(accepted_at, clock.random_bits(), &function.name);
    let key = match (letter.key, letter.key_source) {
        (Some(value), Some(source)) => IdempotencyKey { value, source }.outward(),
        (Some(value), None) => IdempotencyKey { value, source: KeySource::Field },
        (None, _) => IdempotencyKey { value: id.to_string(), source: KeySource::Minted },
    };
    let event = Event {
        id,
        function,
        key,
        carried,
        payload: letter.payload,
        accepted_at,
        deliver_at: None,
        expires_at: None,
        redrives: letter.redrives + 1,
    };
    Ok(Redriven { event, origin: letter.origin })
}

/// What a letter has beside its payload, checked as the doors check a client's request: a letter that no request can be made of
/// would hold its function's lane. The error says what is wrong, and with what.
fn checked(letter: &Letter, names: &ingest::Settings) -> Result<(Function, Carried), String> {
    let key_fits = |key: &String| {
        // An expression may find a key of several lines in a payload; a key that somebody sent has one.
        let lines = matches!(letter.key_source, Some(KeySource::Expression | KeySource::CloudEvent));
        (1..=KEY_CHARS_MAX).contains(&key.chars().count()) && (lines || !key.chars().any(char::is_control))
    };
    if letter.key.as_ref().is_some_and(|key| !key_fits(key)) {
        return Err(format!(
            "the idempotency key has not 1 to {KEY_CHARS_MAX} characters, none of them a control character"
        ));
    }
    if Parts::parse(&letter.function).is_none() {
        return Err(format!("{:?} is not a function's name", letter.function));
    }
    check_payload(&letter.payload).map_err(|refusal| refusal.message())?;
    let fields = Fields {
        address: letter.function.clone(),
        qualifier: letter.qualifier.clone(),
        tenant_id: letter.tenant_id.clone(),
    };
    let function = check_fields(&fields, names).map_err(|refusal| refusal.message())?;
    let carried = Carried {
        trace_header: letter.trace_header.clone(),
        client_context: letter.client_context.clone(),
        tenant_id: letter.tenant_id.clone(),
        durable_execution_name: letter.durable_execution_name.clone(),
    };
    check_carried(&carried).map_err(|refusal| refusal.message())?;
    Ok((function, carried))
}

/// What became of one letter of a redrive from a queue, which was to have the id `id`.
fn of_appended(appended: &Appended, id: EventId) -> Answer {
    match appended {
        Appended::Stored => Answer::Stored { id },
        Appended::Repeat { first } => Answer::Duplicate { id: *first },
        Appended::Conflict { first } => {
            Answer::Refused { message: format!("{first} came back under the same name with another payload") }
        }
        Appended::Full(full) => busy(full),
    }
}

/// What became of one letter of the store, which had the id `id`.
fn of_revived(revived: &Revived, id: EventId) -> Answer {
    match revived {
        Revived::Stored { id } => Answer::Stored { id: *id },
        Revived::Ceiling { redrives } => Answer::Ceiling { message: format!("came back {redrives} times") },
        Revived::Full(full) => busy(full),
        Revived::NotFound => not_found(id),
        Revived::Leased => shipping(id),
        Revived::Unreadable { why } => Answer::Refused { message: why.clone() },
    }
}

fn of_imported(imported: &Imported, id: EventId) -> Answer {
    match imported {
        Imported::Stored => Answer::Stored { id },
        Imported::Repeat => Answer::Duplicate { id },
        Imported::Full(full) => busy(full),
    }
}

fn of_discarded(discarded: Discarded, id: EventId) -> Answer {
    match discarded {
        Discarded::Done => Answer::Purged { id },
        Discarded::NotFound => not_found(id),
        Discarded::Leased => shipping(id),
    }
}

fn busy(full: &Full) -> Answer {
    Answer::Busy { message: full.to_string() }
}

fn not_found(id: EventId) -> Answer {
    Answer::NotFound { message: format!("no dead letter {id} in the store") }
}

fn shipping(id: EventId) -> Answer {
    Answer::Shipping { message: format!("{id} is being shipped just now; try again") }
}

/// The answer, counted as one of a redrive.
fn counted(answer: Answer, metrics: &Metrics, source: &str) -> Answer {
    if let Answer::Stored { .. } = answer {
        metrics.deadletter_redriven.with_label_values(&[source]).inc();
    } else {
        metrics.deadletter_redrive_refused.with_label_values(&[answer.result()]).inc();
    }
    answer
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exports {
    letters: Vec<Exported>,
}

/// Takes in letters that were exported; each stays dead until it is redriven.
async fn import<O: Operator>(
    State(admin): State<Admin<O>>,
    Json(Exports { letters }): Json<Exports>,
) -> Result<Json<Answers>, Problem> {
    let (store, rules) = admin.open()?;
    at_most(letters.len())?;
    let now = admin.clock.now();
    let letters: Result<Vec<_>, _> = letters.into_iter().map(|letter| letter.event(now, &rules.names)).collect();
    let letters = letters?;
    let ids: Vec<EventId> = letters.iter().map(|(event, _)| event.id).collect();
    let imported = store.import(letters).await?;
    Ok(Json(Answers { answers: imported.iter().zip(ids).map(|(answer, id)| of_imported(answer, id)).collect() }))
}

fn view(
    event: &Event,
    history: &History,
    payload_bytes: usize,
    shipping: bool,
    whole: bool,
) -> Result<LetterView, Problem> {
    let export = || {
        let (envelope, payload) = (Envelope::of(event), event.payload.clone());
        let exported = Exported { envelope, history: history.clone(), payload };
        let text = serde_json::value::to_raw_value(&exported);
        text.map_err(|error| Problem(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot export {}: {error}", event.id)))
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

/// A dead letter with all that belongs to it: a line of an export.
#[derive(Serialize, Deserialize)]
struct Exported {
    envelope: Envelope,
    history: History,
    #[serde(rename = "payload_base64", serialize_with = "to_base64", deserialize_with = "from_base64")]
    payload: bytes::Bytes,
}

impl std::fmt::Debug for Exported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "export of {}, {} bytes", self.envelope.id, self.payload.len())
    }
}

impl Exported {
    fn letter(&self) -> Letter {
        let Self { envelope, payload, .. } = self;
        Letter {
            origin: envelope.id.to_string(),
            function: envelope.address.clone(),
            qualifier: envelope.qualifier.clone(),
            key: Some(envelope.key.clone()),
            key_source: Some(envelope.key_source),
            trace_header: envelope.trace_header.clone(),
            client_context: envelope.client_context.clone(),
            tenant_id: envelope.tenant_id.clone(),
            durable_execution_name: envelope.durable_execution_name.clone(),
            redrives: envelope.redrives,
            payload: payload.clone(),
        }
    }

    /// What a client's request would be refused for is refused here too: the event would be redriven as it is.
    fn event(self, now: UnixMillis, names: &ingest::Settings) -> Result<(Event, History), Problem> {
        let as_letter = self.letter();
        let Self { envelope, mut history, payload } = self;
        let bad = |why: String| Problem::bad(format!("{}: {why}", envelope.id));
        checked(&as_letter, names).map_err(bad)?;
        let name = FunctionName::new(&envelope.function);
        let is_sound = name.tag() == envelope.id.function_tag()
            && payload.len() <= PAYLOAD_BYTES_MAX
            && Parts::parse(&envelope.address).is_some_and(|parts| envelope.function.contains(parts.name));
        let Some(burial) = history.burial.as_mut().filter(|_| is_sound) else {
            return Err(Problem::bad(format!("{} is not a dead letter that was exported", envelope.id)));
        };
        // Another daemon may have another queue.
        burial.unshippable = None;
        history.due = now;
        let event = Event {
            id: envelope.id,
            function: Function {
                name,
                address: envelope.address,
                qualifier: envelope.qualifier,
                region: envelope.region,
            },
            key: IdempotencyKey { value: envelope.key, source: envelope.key_source }.outward(),
            carried: Carried {
                trace_header: envelope.trace_header,
                client_context: envelope.client_context,
                tenant_id: envelope.tenant_id,
                durable_execution_name: envelope.durable_execution_name,
            },
            payload,
            accepted_at: envelope.id.accepted_at(),
            deliver_at: None,
            expires_at: None,
            redrives: envelope.redrives,
        };
        match unsendable(&event) {
            Some(field) => Err(Problem::bad(format!("{}: its {field} cannot be sent to Lambda", event.id))),
            None => Ok((event, history)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::outbox::{Burial, BuryReason};

    fn rules() -> Rules {
        let names = ingest::Settings {
            connections_max: 64,
            request_bytes_max: 64 << 20,
            headers_max: 64,
            header_bytes_max: 16 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            region: Some("eu-central-1".to_owned()),
            account_id: Some("123456789012".to_owned()),
        };
        Rules { names, redrives_max: 3, limits: Limits::default(), functions_max: 100, queues: Queues::default() }
    }

    fn letter(change: impl FnOnce(&mut Letter)) -> Letter {
        let mut letter: Letter = serde_json::from_value(serde_json::json!({
            "origin": "o", "function": "arn:aws:lambda:eu-central-1:123456789012:function:orders", "payload_base64": "e30=",
        }))
        .unwrap();
        change(&mut letter);
        letter
    }

    #[test]
    fn a_letter_passes_the_checks_of_the_doors() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let sound = admit(letter(|letter| letter.trace_header = Some("Root=1-2-3".into())), &rules(), &clock).unwrap();
        assert_eq!(sound.event.function.name.as_str(), "orders");
        assert_eq!(sound.event.function.region.as_deref(), Some("eu-central-1"), "the region of an ARN is kept");
        type Damage = fn(&mut Letter);
        let changes: [(&str, Damage); 12] = [
            ("trace_header", |letter| letter.trace_header = Some("a\nb".into())),
            ("trace_header", |letter| letter.trace_header = Some("ü".into())),
            ("Client context", |letter| letter.client_context = Some("%%%".into())),
            ("Client context", |letter| letter.client_context = Some("A".repeat(4_000))),
            ("tenantId", |letter| letter.tenant_id = Some("a\r\nx-evil: 1".into())),
            ("durableExecutionName", |letter| letter.durable_execution_name = Some("a b".into())),
            ("is not a function's name", |letter| letter.function = "a/b".into()),
            ("functionName", |letter| letter.function = "f".repeat(300)),
            ("qualifier", |letter| letter.qualifier = Some("a.b".into())),
            ("key", |letter| letter.key = Some("a\nb".into())),
            ("key", |letter| letter.key = Some("k".repeat(256))),
            ("parse", |letter| letter.payload = "not json".into()),
        ];
        for (what, change) in changes {
            let refusal = admit(letter(change), &rules(), &clock).unwrap_err();
            assert!(refusal.result == "refused" && refusal.message.contains(what), "{what}: {}", refusal.message);
        }
    }

    #[test]
    fn an_import_passes_the_checks_of_the_doors() {
        type Damage = fn(&mut Exported);
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let event = admit(letter(|letter| letter.function = "orders".into()), &rules(), &clock).unwrap().event;
        let burial = Burial { reason: BuryReason::Refused, at: clock.now(), unshippable: None };
        let imported = |change: Damage| {
            let history = History { burial: Some(burial.clone()), ..History::default() };
            let mut exported = Exported { envelope: Envelope::of(&event), history, payload: event.payload.clone() };
            change(&mut exported);
            exported.event(clock.now(), &rules().names).map(|(event, _)| event).map_err(|Problem(_, why)| why)
        };
        assert_eq!(imported(|_| {}).unwrap(), event);
        let changes: [(&str, Damage); 6] = [
            ("functionName", |exported| exported.envelope.address = "x".repeat(70_000)),
            ("not a dead letter", |exported| exported.envelope.address = "other".into()),
            ("key", |exported| exported.envelope.key = "k".repeat(70_000)),
            ("key", |exported| exported.envelope.key = String::new()),
            ("key", |exported| exported.envelope.key = "a\nb".into()),
            ("parse", |exported| exported.payload = "not json".into()),
        ];
        for (what, change) in changes {
            let why = imported(change).unwrap_err();
            assert!(why.contains(what), "{what}: {}", &why[..why.len().min(200)]);
        }
    }

    #[test]
    fn an_sdks_key_of_an_earlier_version_comes_back_as_a_digest() {
        let clock = Clock::seeded(UnixMillis(1_790_000_000_000), 1);
        let old = letter(|letter| {
            letter.key = Some("AKIDEXAMPLE/5f2c".into());
            letter.key_source = Some(KeySource::SdkInvocationId);
        });
        let key = admit(old, &rules(), &clock).unwrap().event.key;
        assert_eq!(key, IdempotencyKey::of_sdk("AKIDEXAMPLE", "5f2c"));
        assert!(!key.value.contains("AKID"));
    }
}
