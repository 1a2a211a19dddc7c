//! `GET /v1/config`: the configuration in effect, and where each value comes from.

use axum::Json;
use axum::extract::{Query, State};
use http::StatusCode;

use super::api::ConfigView;
use super::{Admin, Problem, api};
use crate::outbox::operator::Operator;

/// The longest name of a function that is looked for.
const NAME_CHARS_MAX: usize = 512;

/// Show the configuration in effect
///
/// Every value, where it comes from, and whether a reload applies it; or only those that apply to a function. Secrets are in
/// files, and only their names are shown.
#[utoipa::path(
    get,
    path = "/v1/config",
    operation_id = "show_config",
    params(api::ConfigQuery),
    responses((status = 200, description = "As `sendoff show-config` prints it", body = ConfigView))
)]
pub(super) async fn show<O: Operator>(
    State(admin): State<Admin<O>>,
    Query(query): Query<api::ConfigQuery>,
) -> Result<Json<ConfigView>, Problem> {
    if query.function.as_ref().is_some_and(|name| name.is_empty() || name.chars().count() > NAME_CHARS_MAX) {
        return Err(Problem::bad(format!("function: write a name of 1 to {NAME_CHARS_MAX} characters")));
    }
    let unknown = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this process has no configuration to show");
    let config = admin.config.as_ref().ok_or_else(unknown)?;
    Ok(Json(ConfigView { entries: config(query.function.as_deref()) }))
}
