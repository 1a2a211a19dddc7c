//! The operator's API for dead letters: list, show, import, redrive, purge.
//!
//! `POST /v1/redrive` is the door of a redrive from a queue: its answer says `stored` or `repeat` only once the event is on
//! stable storage (G1), so that the message may be deleted then.

use std::sync::PoisonError;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::events::KeysQuery;
use super::{Admin, Problem};
use crate::clock::{Clock, UnixMillis};
use crate::deadletter::letter::{self, Letter, from_base64, to_base64};
use crate::deadletter::message::Envelope;
use crate::event::{
    Carried, Event, EventId, Function, FunctionName, IdempotencyKey, KEY_CHARS_MAX, KeySource, PAYLOAD_BYTES_MAX,
};
use crate::ingest;
use crate::ingest::name::{Parts, is_qualifier};
use crate::metrics::Metrics;
use crate::outbox::dead::{BuriedWant, Change, Changed, Filter, Graveyard, Redriven};
use crate::outbox::{BuryReason, History, Place};

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
}

/// The routes below `/v1` that are about dead letters.
pub fn router<O: Graveyard>() -> Router<Admin<O>> {
    Router::new()
        .route("/v1/dead-letters", get(list::<O>).post(import::<O>))
        .route("/v1/dead-letters/redrive", post(revive::<O>))
        .route("/v1/dead-letters/{id}", get(show::<O>).delete(purge::<O>))
        .route("/v1/redrive", post(redrive::<O>))
}

impl<O: Graveyard> Admin<O> {
    pub fn rules_are(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules);
    }

    fn open(&self) -> Result<(O, Rules), Problem> {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let starting = || Problem(StatusCode::SERVICE_UNAVAILABLE, "the outbox is not open".to_owned());
        self.outbox().zip(rules).ok_or_else(starting)
    }
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
        let now = clock.now();
        let moment = |text: Option<String>| {
            text.map(|text| letter::moment(&text, now).ok_or_else(|| Problem::bad(format!("{text:?} is no time"))))
                .transpose()
        };
        let reason = self.reason.map(|word| {
            letter::reason_of(&word).ok_or_else(|| Problem::bad(format!("{word:?} is not a reason to bury an event")))
        });
        let pattern = self.function.map(|text| text.parse().map_err(|why| Problem::bad(format!("function: {why}"))));
        let filter = Filter {
            function: pattern.transpose()?,
            reason: reason.transpose()?,
            since: moment(self.since)?,
            until: moment(self.until)?,
            error: self.error,
            unshippable: self.unshippable,
        };
        let after = self.after.map(|text| text.parse().map_err(|why| Problem::bad(format!("after: {why}"))));
        let letters_max = self.limit.unwrap_or(LETTERS).clamp(1, LETTERS_MAX);
        Ok(BuriedWant { filter, after: after.transpose()?, letters_max, payloads: self.payloads })
    }
}

async fn list<O: Graveyard>(
    State(admin): State<Admin<O>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let (store, _) = admin.open()?;
    let want = query.want(&admin.clock)?;
    let census = store.census().await?;
    let fits = |name: &FunctionName| want.filter.function.as_ref().is_none_or(|pattern| name.fits(pattern.as_str()));
    let lanes = census.lanes.iter().filter(|(name, _)| fits(name));
    let buried: u64 = lanes.filter_map(|(_, lane)| lane.by_place.get(&Place::Buried)).map(|count| count.events).sum();
    let payloads = want.payloads;
    let page = store.buried(want).await?;
    let letters: Vec<View> = page
        .letters
        .iter()
        .map(|letter| View::of(&letter.event, &letter.history, letter.payload_bytes, letter.leased, payloads))
        .collect();
    Ok(Json(json!({ "dead_letters": letters, "next": page.next.map(|next| next.to_string()), "buried": buried })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    #[serde(default)]
    payload: bool,
}

async fn show<O: Graveyard>(
    State(admin): State<Admin<O>>,
    Path(id): Path<EventId>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<View>, Problem> {
    let (store, _) = admin.open()?;
    let found = store.find(id).await?.filter(|found| found.place == Place::Buried);
    let found = found.ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("no dead letter {id} in the store")))?;
    let bytes = found.event.payload.len();
    Ok(Json(View::of(&found.event, &found.history, bytes, found.leased, query.payload)))
}

async fn purge<O: Graveyard>(
    State(admin): State<Admin<O>>,
    Path(id): Path<EventId>,
    Query(query): Query<KeysQuery>,
) -> Result<Json<Value>, Problem> {
    let (store, _) = admin.open()?;
    match store.change(Change::Purge { ids: vec![id], keys: query.keys() }).await?.pop() {
        Some(Changed::Purged) => Ok(Json(json!({ "purged": id }))),
        Some(Changed::Leased) => Err(Problem(StatusCode::CONFLICT, format!("{id} is being shipped just now"))),
        Some(Changed::Unreadable { why }) => Err(Problem(StatusCode::INTERNAL_SERVER_ERROR, why)),
        Some(
            Changed::NotFound
            | Changed::Stored { .. }
            | Changed::Repeat { .. }
            | Changed::Conflict { .. }
            | Changed::Full(_)
            | Changed::Ceiling { .. },
        )
        | None => Err(Problem(StatusCode::NOT_FOUND, format!("no dead letter {id} in the store"))),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    ids: Vec<EventId>,
}

async fn revive<O: Graveyard>(
    State(admin): State<Admin<O>>,
    Json(Ids { ids }): Json<Ids>,
) -> Result<Json<Value>, Problem> {
    let (store, Rules { redrives_max, .. }) = admin.open()?;
    at_most(ids.len())?;
    let changed = store.change(Change::Revive { ids, redrives_max }).await?;
    let answers: Vec<Value> = changed.iter().map(|changed| answer(changed, &admin.metrics, "store")).collect();
    Ok(Json(json!({ "answers": answers })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Letters {
    letters: Vec<Letter>,
}

async fn redrive<O: Graveyard>(
    State(admin): State<Admin<O>>,
    Json(Letters { letters }): Json<Letters>,
) -> Result<Json<Value>, Problem> {
    let (store, rules) = admin.open()?;
    at_most(letters.len())?;
    // The refused keep their place among the answers.
    let mut answers: Vec<Option<Value>> = Vec::with_capacity(letters.len());
    let mut redriven = Vec::new();
    for letter in letters {
        match admit(letter, &rules, &admin.clock) {
            Ok(letter) => {
                redriven.push(letter);
                answers.push(None);
            }
            Err(refusal) => {
                admin.metrics.deadletter_redrive_refused.with_label_values(&[refusal.result]).inc();
                answers.push(Some(json!({ "result": refusal.result, "message": refusal.message })));
            }
        }
    }
    let changed = store.change(Change::Redrive(redriven)).await?;
    let mut changed = changed.iter().map(|changed| answer(changed, &admin.metrics, "queue"));
    let answers: Vec<Value> = answers.into_iter().filter_map(|refused| refused.or_else(|| changed.next())).collect();
    Ok(Json(json!({ "answers": answers })))
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
    let key_fits = |key: &String| (1..=KEY_CHARS_MAX).contains(&key.chars().count());
    if letter.key.as_ref().is_some_and(|key| !key_fits(key)) {
        return Err(refused(format!("the idempotency key has not 1 to {KEY_CHARS_MAX} characters")));
    }
    let parts = Parts::parse(&letter.function);
    let parts = parts.ok_or_else(|| refused(format!("{:?} is not a function's name", letter.function)))?;
    if let Some(qualifier) = letter.qualifier.as_ref().filter(|qualifier| !is_qualifier(qualifier)) {
        return Err(refused(format!("{qualifier:?} is not a qualifier")));
    }
    let name = parts.canonical(letter.qualifier.as_deref(), &rules.names);
    let accepted_at = clock.now();
    let id = EventId::mint(accepted_at, clock.random_bits(), &name);
    let region = parts.region.filter(|region| rules.names.region.as_deref() != Some(region)).map(str::to_owned);
    let key = match (letter.key, letter.key_source) {
        (Some(value), Some(source)) => IdempotencyKey { value, source },
        (Some(value), None) => IdempotencyKey { value, source: KeySource::Field },
        (None, _) => IdempotencyKey { value: id.to_string(), source: KeySource::Minted },
    };
    let event = Event {
        id,
        function: Function { name, address: letter.function, qualifier: letter.qualifier, region },
        key,
        carried: Carried {
            trace_header: letter.trace_header,
            client_context: letter.client_context,
            tenant_id: letter.tenant_id,
            durable_execution_name: letter.durable_execution_name,
        },
        payload: letter.payload,
        accepted_at,
        deliver_at: None,
        expires_at: None,
        redrives: letter.redrives + 1,
    };
    Ok(Redriven { event, origin: letter.origin })
}

/// One answer of a request that moves letters.
fn answer(changed: &Changed, metrics: &Metrics, source: &str) -> Value {
    let refused = |result: &str, message: String| {
        metrics.deadletter_redrive_refused.with_label_values(&[result]).inc();
        json!({ "result": result, "message": message })
    };
    match changed {
        Changed::Stored { id } => {
            metrics.deadletter_redriven.with_label_values(&[source]).inc();
            json!({ "result": "stored", "id": id })
        }
        Changed::Repeat { first } => {
            metrics.deadletter_redrive_refused.with_label_values(&["repeat"]).inc();
            json!({ "result": "repeat", "id": first })
        }
        Changed::Conflict { first } => {
            refused("refused", format!("{first} came back under the same name with another payload"))
        }
        Changed::Full(full) => refused("busy", full.to_string()),
        Changed::Ceiling { redrives } => refused("ceiling", format!("came back {redrives} times")),
        Changed::Leased => refused("shipping", "is being shipped just now".to_owned()),
        Changed::NotFound | Changed::Purged => refused("not-found", "no such dead letter in the store".to_owned()),
        Changed::Unreadable { why } => refused("refused", why.clone()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exports {
    letters: Vec<Exported>,
}

/// Takes in letters that were exported; each stays dead until it is redriven.
async fn import<O: Graveyard>(
    State(admin): State<Admin<O>>,
    Json(Exports { letters }): Json<Exports>,
) -> Result<Json<Value>, Problem> {
    let (store, _) = admin.open()?;
    at_most(letters.len())?;
    let now = admin.clock.now();
    let letters: Result<Vec<_>, _> = letters.into_iter().map(|letter| letter.event(now)).collect();
    let changed = store.change(Change::Bury(letters?)).await?;
    let result = |changed: &Changed| match changed {
        Changed::Stored { id } => json!({ "result": "stored", "id": id }),
        Changed::Repeat { first } => json!({ "result": "repeat", "id": first }),
        Changed::Full(full) => json!({ "result": "busy", "message": full.to_string() }),
        Changed::Conflict { .. }
        | Changed::Ceiling { .. }
        | Changed::Purged
        | Changed::NotFound
        | Changed::Leased
        | Changed::Unreadable { .. } => json!({ "result": "refused", "message": "cannot be taken in" }),
    };
    Ok(Json(json!({ "answers": changed.iter().map(result).collect::<Vec<_>>() })))
}

/// A dead letter as it is listed.
#[derive(Debug, Serialize)]
struct View {
    id: EventId,
    function: String,
    reason: Option<BuryReason>,
    buried_at: Option<String>,
    accepted_at: String,
    attempts: u32,
    calls: u32,
    redrives: u32,
    error: Option<ErrorView>,
    /// Why no queue can take it.
    unshippable: Option<String>,
    /// On its way to a queue right now.
    shipping: bool,
    payload_bytes: usize,
    /// All of it, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    export: Option<Exported>,
}

#[derive(Debug, Serialize)]
struct ErrorView {
    at: String,
    status: u16,
    code: String,
    message: String,
    request_id: Option<String>,
}

impl View {
    fn of(event: &Event, history: &History, payload_bytes: usize, shipping: bool, whole: bool) -> Self {
        let last = history.last.as_ref();
        Self {
            id: event.id,
            function: event.function.name.as_str().to_owned(),
            reason: history.burial.as_ref().map(|burial| burial.reason),
            buried_at: history.burial.as_ref().map(|burial| burial.at.rfc3339()),
            accepted_at: event.accepted_at.rfc3339(),
            attempts: history.attempts,
            calls: history.calls,
            redrives: event.redrives,
            error: last.map(|last| ErrorView {
                at: last.at.rfc3339(),
                status: last.status,
                code: last.code.clone(),
                message: last.message.clone(),
                request_id: last.request_id.clone(),
            }),
            unshippable: history.burial.as_ref().and_then(|burial| burial.unshippable.clone()),
            shipping,
            payload_bytes,
            export: whole.then(|| Exported {
                envelope: Envelope::of(event),
                history: history.clone(),
                payload: event.payload.clone(),
            }),
        }
    }
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
    fn event(self, now: UnixMillis) -> Result<(Event, History), Problem> {
        let Self { envelope, mut history, payload } = self;
        let name = FunctionName::new(&envelope.function);
        let is_sound = name.tag() == envelope.id.function_tag()
            && payload.len() <= PAYLOAD_BYTES_MAX
            && Parts::parse(&envelope.address).is_some();
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
            key: IdempotencyKey { value: envelope.key, source: envelope.key_source },
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
        Ok((event, history))
    }
}
