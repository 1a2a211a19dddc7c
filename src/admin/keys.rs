//! `GET /v1/keys`: what is remembered of an idempotency key.
//!
//! Holds: the key comes in a header, because proxies log URLs. No answer, no audit and no log repeats it.

use axum::Json;
use axum::extract::{Query, State};
use http::HeaderMap;

use super::api::{self, KeyQuery, KeyView};
use super::{Admin, Problem};
use crate::event::name::canonical;
use crate::event::{FunctionName, KEY_CHARS_MAX};
use crate::outbox::operator::{KnownKey, Operator};

const HEADER: &str = "idempotency-key";

/// Show what is remembered of an idempotency key
///
/// The event that came with it first, and until when a repeat is recognised. Not for the ids of SDKs' calls.
#[utoipa::path(
    get,
    path = "/v1/keys",
    operation_id = "show_key",
    params(
        KeyQuery,
        ("Idempotency-Key" = String, Header, min_length = 1, max_length = 255, pattern = "^[!#-~]([ -~]*[!-~])?$",
         description = "The key, as the client sent it"),
    ),
    responses(
        (status = 200, description = "It is remembered", body = KeyView),
        (status = 400, description = "No function, or no key", body = api::Message),
        (status = 404, description = "It is not remembered: an event with it would be a new one", body = api::Message),
    )
)]
pub(super) async fn show<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<KeyQuery>,
    headers: HeaderMap,
) -> Result<Json<KeyView>, Problem> {
    let key = key_of(&headers)?;
    let (store, home) = (admin.store()?, admin.settings()?.rules.home);
    let function = canonical(&query.function, &home).unwrap_or_else(|| FunctionName::new(&query.function));
    let known = store.known_key(&function, query.tenant_id, key).await?;
    let unknown = || {
        let why = format!("no such key of {function} is remembered; outbox.dedupe_window says for how long keys are");
        Problem::not_found(why)
    };
    let KnownKey { first, expires_at } = known.ok_or_else(unknown)?;
    let found = store.find_head(first).await?;
    Ok(Json(KeyView {
        function: function.as_str().to_owned(),
        first,
        expires_at: expires_at.rfc3339(),
        stored: found.is_some(),
        state: found.map(|found| found.place.as_str().to_owned()),
    }))
}

fn key_of(headers: &HeaderMap) -> Result<String, Problem> {
    let mut given = headers.get_all(HEADER).iter();
    let (Some(key), None) = (given.next(), given.next()) else {
        return Err(Problem::bad("send the key in one header Idempotency-Key"));
    };
    // Unlike a client's, this header is read as it is: an operator looks for exactly this key.
    let key = std::str::from_utf8(key.as_bytes()).map_err(|_| Problem::bad("Idempotency-Key is not UTF-8"))?;
    let fits = (1..=KEY_CHARS_MAX).contains(&key.chars().count());
    if fits { Ok(key.to_owned()) } else { Err(Problem::bad("Idempotency-Key must have 1 to 255 characters")) }
}
