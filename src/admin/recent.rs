//! `GET /v1/recent`: what happened to events lately, without anything that clients or functions said.

use axum::Json;
use axum::extract::{Query, State};

use super::api::{self, OutcomePage, RecentQuery};
use super::lookup::{page_size, pattern};
use super::{Admin, Problem};
use crate::outbox::operator::Operator;
use crate::past::OUTCOMES_MAX;

/// The number of outcomes in an answer if the request does not set it.
const SHOWN: usize = 100;

/// List the latest outcomes
///
/// Of attempts, and of what else ended the stay of an event in the store. They are kept in memory, 1,000 of them by each daemon.
#[utoipa::path(
    get,
    path = "/v1/recent",
    operation_id = "list_recent",
    params(RecentQuery),
    responses(
        (status = 200, description = "The latest, the last one at the end", body = OutcomePage),
        (status = 400, description = "Not a pattern", body = api::Message),
    )
)]
pub(super) async fn list<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<RecentQuery>,
) -> Result<Json<OutcomePage>, Problem> {
    let pattern = pattern(query.function)?;
    let max = page_size(query.limit, SHOWN, OUTCOMES_MAX);
    Ok(Json(OutcomePage { outcomes: admin.recent(max, pattern.as_ref()).await }))
}
